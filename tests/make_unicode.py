#!/usr/bin/env python3
"""The Unicode tables of jamba.h, from a module like Python's unicodedata.

    python3 tests/make_unicode.py                    print the tables
    python3 tests/make_unicode.py --check jamba.h    compare them with those in the header
    python3 tests/make_unicode.py --library          list the characters that the tokenizers library treats otherwise

They are of Unicode 16.0: needs unicodedata2 16.0.0 (pip), or a Python whose own module has that version (3.14).
tests/unit_unicode.c checks what the header makes of them against the Unicode Consortium's files.
"""
import argparse
import sys

try:
    import unicodedata2 as unicodedata
except ImportError:
    import unicodedata

VERSION = "16.0.0"
COUNT = 0x110000
WHITE_SPACE = {0x20, 0x85, 0xa0, 0x1680, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000, *range(9, 14), *range(0x2000, 0x200b)}
# Alphabetic by the property Other_Alphabetic alone, and joiners: word characters of no category for such.
WORD = {0x200c, 0x200d, *range(0x24b6, 0x24ea), *range(0x1f130, 0x1f14a), *range(0x1f150, 0x1f16a),
        *range(0x1f170, 0x1f18a)}
OTHER, MARK, LETTER, NUMBER, DIGIT, SPACE = range(6)  # jmb_char_class
STEP = 32  # JMB_CLASS_STEP
LONGEST = 65535 // 8


def char_class(c):
    category = unicodedata.category(chr(c))
    if c in WHITE_SPACE:
        return SPACE
    if category[0] == "L":
        return LETTER
    if category[0] == "N":
        return NUMBER if category == "No" else DIGIT
    return MARK if category[0] == "M" or category == "Pc" or c in WORD else OTHER


def runs(function):
    """First code point and value of each stretch of equal values."""
    out = []
    for c in range(COUNT):
        value = function(c)
        if not out or out[-1][1] != value:
            out.append((c, value))
    return out


def class_runs():
    """Lengths with classes, and the first code point of each STEP-th."""
    numbers, starts = [], []
    stretches = runs(char_class)
    for (start, value), (end, _) in zip(stretches, stretches[1:] + [(COUNT, None)]):
        while start < end:
            length = min(end - start, LONGEST)
            if len(numbers) % STEP == 0:
                starts.append(start)
            numbers.append(length * 8 + value)
            start += length
    return numbers, starts


def decompositions():
    """One step of each character's canonical decomposition; Hangul has a formula."""
    out = {}
    for c in range(COUNT):
        text = unicodedata.decomposition(chr(c))
        if text and text[0] != "<":
            out[c] = [int(word, 16) for word in text.split()]
    return out


def tables():
    """Name, C type and numbers of each table."""
    numbers, starts = class_runs()
    yield "jmb_class_runs", "uint16_t", map(str, numbers)
    yield "jmb_class_starts", "uint32_t", map(str, starts)
    combining = runs(lambda c: unicodedata.combining(chr(c)))
    yield "jmb_combining_runs", "uint32_t", ("0x%x" % (c << 8 | value) for c, value in combining)
    steps = decompositions()
    firsts = [(c, i) for i, c in enumerate(steps) if c - 1 not in steps]
    yield "jmb_decomposed_runs", "uint32_t", ("%d" % number for run in firsts for number in run)
    yield "jmb_decomposed", "uint32_t", (str(c) for step in steps.values() for c in (step + [0])[:2])
    pairs = [(step, i) for i, (c, step) in enumerate(steps.items())
             if len(step) == 2 and unicodedata.normalize("NFC", "".join(map(chr, step))) == chr(c)]
    yield "jmb_composed", "uint16_t", (str(i) for _, i in sorted(pairs))


def render():
    lines = []
    for name, kind, numbers in tables():
        lines.append("static const %s %s[] = {" % (kind, name))
        line = "   "
        for number in numbers:
            if len(line) + len(number) + 2 > 120:
                lines.append(line)
                line = "   "
            line += " %s," % number
        lines += [line[:-1], "};", ""]
    return "\n".join(lines)


def library_differences():
    """Kinds of difference between these tables and the tokenizers library, with the characters of each."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
    split, nfc = pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()
    word = Tokenizer(models.BPE(vocab={"?": 0}, merges=[], unk_token="?"))
    word.add_tokens([AddedToken("X@", single_word=True)])
    found = {"class": [], "word": [], "composition": [], "combining class": []}
    for c in range(COUNT):
        text, kind = chr(c), char_class(c)
        if 0xd800 <= c < 0xe000:
            continue
        like = [LETTER] * (len(split.pre_tokenize_str("a" + text)) == 1)
        like += [NUMBER] * (len(split.pre_tokenize_str("1" + text)) == 1)
        like += [OTHER] * (len(split.pre_tokenize_str("!" + text)) == 1)
        if (like or [SPACE]) != [{DIGIT: NUMBER, MARK: OTHER}.get(kind, kind)]:
            found["class"].append(c)
        if (1 not in word.encode(text + "X@").ids) != (kind in (MARK, LETTER, DIGIT)):
            found["word"].append(c)
        marked = "\u0345" + text + "\u0334"
        if any(nfc.normalize_str(form) != unicodedata.normalize("NFC", form)
               for form in (text, unicodedata.normalize("NFD", text))):
            found["composition"].append(c)
        elif nfc.normalize_str(marked) != unicodedata.normalize("NFC", marked):
            found["combining class"].append(c)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="HEADER", help="exit 1 unless the header holds exactly these tables")
    parser.add_argument("--library", action="store_true", help="compare with the tokenizers library")
    options = parser.parse_args()
    if unicodedata.unidata_version != VERSION:
        sys.exit("needs Unicode %s, this is %s: pip install unicodedata2==%s"
                 % (VERSION, unicodedata.unidata_version, VERSION))
    if options.library:
        for kind, characters in library_differences().items():
            print("%s: %d" % (kind, len(characters)), " ".join("U+%04X" % c for c in characters))
        return
    text = render()
    if not options.check:
        print(text, end="")
    elif text not in open(options.check, encoding="utf-8").read():
        sys.exit("%s: its Unicode tables are not what tests/make_unicode.py prints" % options.check)


if __name__ == "__main__":
    main()
