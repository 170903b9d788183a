#!/usr/bin/env python3
"""Small tokenizers of every form that the converter accepts, with the results of the `tokenizers` library.

    python3 tests/make_tokenizer_cases.py [--seed N] [--count N] > tests/tokenizers/cases.jsonl
    python3 tests/make_tokenizer_cases.py --words        numbers of jmb_word_runs in jamba.h

One JSON object a line: name, vocab, tokenizer (a whole tokenizer.json), encode: rows of text, ids with special
tokens matched, ids without; decode: rows of ids, text with special tokens written out, text without them.
The first lines are forms chosen by hand, the rest is random. Needs tokenizers 0.23.
"""
import argparse
import json
import random

from tokenizers import Tokenizer

SPACE = "\u2581"
WORDS = "a b ab ba aab \u00e9 \u65e5 x xy < > y".split()
FIXED = ["", "a", " ", "  ", "   ", "ab", " ab", "ab ", "  ab  ab ", "a\u2581b", "\u2581\u2581a", "a \u2581 b",
         "\u00e9\u65e5", "ab<s>ab", "<s>ab", "<s> ab", " <s>ab", "ab <s> <s>ab ", "<s><s>", "ab</s>", "aXYb",
         "ab XY ba", "XYXY a XY", "\nXY\t a", "a\x00b", "zz\u00e9z", "z\u65e5z", "_XY_ XY. \u00e9XY XY\u00e9"]


def bpe(rng, spaces=True, bytes_="some", unk=True, fuse=True):
    """A model over a small alphabet with random merges."""
    vocab = {"<unk>": 0} if unk else {}
    codes = {"all": range(256), "some": [0x61, 0xc3, 0xa9, 0xe2, 0x96, 0x81, 0x7a, 0x20, 0x0a], "none": []}[bytes_]
    letters = list("ab<>xXYs/") + ([SPACE] if spaces else [" "]) + (["\u00e9"] if rng.random() < 0.7 else [])
    for token in ["<0x%02X>" % c for c in codes] + letters:
        vocab.setdefault(token, len(vocab))
    merges, parts = [], list(letters)
    for _ in range(rng.randint(0, 40)):
        left, right = rng.choice(parts), rng.choice(parts)
        if len(left + right) > 8 or [left, right] in merges:
            continue
        merges.append([left, right])
        vocab.setdefault(left + right, len(vocab))
        parts.append(left + right)
    if rng.random() < 0.3:
        rng.shuffle(merges)
    if merges and rng.random() < 0.2:
        merges.append(merges[0])
    if rng.random() < 0.5:
        merges = [" ".join(m) for m in merges] if spaces else merges
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>" if unk else None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": fuse, "byte_fallback": bytes_ != "none", "ignore_merges": False,
            "vocab": vocab, "merges": merges}


def prepend(text=SPACE):
    return {"type": "Prepend", "prepend": text}


def replace(pattern=" ", content=SPACE):
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def sequence(kind, items):
    return {"type": "Sequence", kind: items}


def metaspace(scheme="always", split=True):
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": split}


def decoders(strip=1):
    tail = [{"type": "Strip", "content": " ", "start": strip, "stop": 0}] if strip else []
    return sequence("decoders", [replace(SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}] + tail)


def added(content, special=False, normalized=False, lstrip=False, rstrip=False, single_word=False):
    return {"content": content, "special": special, "normalized": normalized, "lstrip": lstrip, "rstrip": rstrip,
            "single_word": single_word}


def tokenizer(model, normalizer, pre_tokenizer, decoder, tokens):
    """A tokenizer.json; ids of added tokens are those that the library gives."""
    extra = len(model["vocab"])
    listed = []
    for token in tokens:
        known = model["vocab"].get(token["content"])
        if known is None:
            known, extra = extra, extra + 1
        listed.append(dict(token, id=known))
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": listed, "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model}


def chosen(rng):
    """Name and tokenizer.json of the forms chosen by hand."""
    specials = [added("<unk>", special=True), added("<s>", special=True), added("</s>", special=True), added("XY")]
    for scheme in ("first", "always", "never"):
        for split in (True, False):
            name = "metaspace %s %s" % (scheme, "split" if split else "whole")
            yield name, tokenizer(bpe(rng), None, metaspace(scheme, split), decoders(), specials)
    old = {"type": "Metaspace", "replacement": SPACE, "add_prefix_space": True, "str_rep": SPACE}
    yield "metaspace old form", tokenizer(bpe(rng), None, old, {"type": "Metaspace", "replacement": SPACE,
                                                               "add_prefix_space": True}, specials)
    yield "metaspace decoder never", tokenizer(bpe(rng), None, metaspace("never"), metaspace("never"), specials)
    yield "prepend and replace", tokenizer(bpe(rng), sequence("normalizers", [prepend(), replace()]), None, decoders(),
                                           specials)
    yield "replace only", tokenizer(bpe(rng, bytes_="all"), replace(), None, decoders(0), specials)
    yield "no normaliser", tokenizer(bpe(rng, spaces=False), None, None, {"type": "Fuse"}, specials)
    yield "prepend before metaspace", tokenizer(bpe(rng), prepend(), metaspace("first", False), decoders(), specials)
    yield "replace strings", tokenizer(bpe(rng), sequence("normalizers", [replace("aab", "ba"), replace("z", ""),
                                       replace("x", "xX"), replace()]), None, decoders(2), specials)
    yield "no unk, no bytes", tokenizer(bpe(rng, bytes_="none", unk=False), replace(), None, decoders(0), specials[1:])
    yield "unk not fused", tokenizer(bpe(rng, fuse=False), replace(), None, decoders(0),
                                       specials)
    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        tokens = [added("<s>", special=True, **{flag: flag != "normalized"}), added("XY", **{flag: True}),
                  added("XYX"), added(" a")]
        normal = sequence("normalizers", [prepend(), replace()])
        yield "added " + flag, tokenizer(bpe(rng), normal, None, decoders(), tokens)
        yield "added %s, metaspace" % flag, tokenizer(bpe(rng), None, metaspace("first"), decoders(), tokens)


def coin(rng, share=0.5):
    return rng.random() < share


def anything(rng):
    model = bpe(rng, spaces=coin(rng, 0.9), bytes_=rng.choice(["all", "some", "some", "some", "none"]),
                unk=coin(rng, 0.8), fuse=coin(rng))
    normal = rng.choice([None, prepend(), replace(), replace("a", "bb"), replace("ab", "x"),
                         sequence("normalizers", [prepend(), replace()]), sequence("normalizers", []),
                         sequence("normalizers", [replace(), prepend("x")]), replace("x", "")])
    scheme = rng.choice(["first", "always", "never"])
    if scheme == "first" and any(p in json.dumps(normal) for p in ('"ab"', '"content": ""')):
        scheme = "always"
    pre = rng.choice([None, None, metaspace(scheme, coin(rng))])
    decoder = rng.choice([decoders(), decoders(0), decoders(3), metaspace(rng.choice(["first", "never"])),
                          {"type": "ByteFallback"}, {"type": "Fuse"}, replace(SPACE, " ")])
    names = rng.sample(["<s>", "</s>", "XY", "X", "XYX", " ", "  ", "\n", " a", "<unk>", "ab", SPACE, "<0x61>", "s>",
                        "\u00e9", "<", "<s"], rng.randint(0, 6))
    tokens = []
    for name in names:
        special = coin(rng)
        tokens.append(added(name, special, coin(rng, 0.3) and not special, coin(rng, 0.2), coin(rng, 0.2),
                            coin(rng, 0.2)))
    return tokenizer(model, normal, pre, decoder, tokens)


def random_text(rng):
    parts = ["a", "b", "ab", " ", "  ", "x", "XY", "X", "<s>", "</s>", "<unk>", "\n", SPACE, "\u00e9", "\u65e5", "z",
             "<", "s>", "<0x61>", "\u00a0", "_", "\U0001f600"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 12)))


def encode_rows(t, texts):
    rows = []
    for text in texts:
        try:
            t.encode_special_tokens = False
            matched = t.encode(text, add_special_tokens=False).ids
            t.encode_special_tokens = True
            rows.append([text, matched, t.encode(text, add_special_tokens=False).ids])
        except BaseException as error:  # the library panics where a right strip overlaps the next token
            if type(error).__name__ != "PanicException":
                raise
    return rows


def case(name, spec, rng, texts):
    t = Tokenizer.from_str(json.dumps(spec))
    vocab = t.get_vocab_size() + 3
    ids = [[rng.randrange(vocab) for _ in range(rng.randint(0, 10))] for _ in range(6)]
    chosen_few = ("<0xC3>", "<0xA9>", "<s>", SPACE, "a", "<0x20>")
    few = [i for token, i in sorted(t.get_vocab().items()) if token in chosen_few]
    if few:
        ids += [[rng.choice(few) for _ in range(rng.randint(1, 8))] for _ in range(6)]
    decode = [[row, t.decode(row, skip_special_tokens=False), t.decode(row, skip_special_tokens=True)] for row in ids]
    return {"name": name, "vocab": vocab, "tokenizer": spec, "encode": encode_rows(t, texts), "decode": decode}


def word_runs():
    """Lengths of runs of characters by whether one in front keeps a single_word token from matching."""
    t = Tokenizer.from_str(json.dumps(tokenizer(
        {"type": "BPE", "unk_token": "?", "vocab": {"?": 0}, "merges": []}, None, None, None,
        [added("X@", single_word=True)])))
    runs, inside, length, end = [], False, 0, 0
    for c in range(0x110000):
        word = not 0xd800 <= c < 0xe000 and 1 not in t.encode(chr(c) + "X@").ids
        if word != inside:
            runs.append(length)
            inside, length, end = word, 0, len(runs)
        length += 1
        if length == 65536:  # the table is of 16-bit numbers
            runs += [65535, 0]
            length = 1
    return runs[:end]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="random tokenizers")
    parser.add_argument("--words", action="store_true", help="print the table of word characters instead")
    options = parser.parse_args()
    if options.words:
        print(", ".join(map(str, word_runs())))
        return
    rng = random.Random(options.seed)
    cases = [case(name, spec, rng, FIXED + [random_text(rng) for _ in range(4)]) for name, spec in chosen(rng)]
    for i in range(options.count):
        texts = FIXED[:6] + [random_text(rng) for _ in range(14)]
        cases.append(case("random %d" % i, anything(rng), rng, texts))
    for row in cases:
        print(json.dumps(row, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
