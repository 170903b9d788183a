#!/usr/bin/env python3
"""Small tokenizers of every form that the converter accepts, with the results of the reference libraries.

    python3 tests/make_tokenizer_cases.py [--seed N] [--count N] > tests/tokenizers/cases.jsonl

One JSON object a line: name, vocab, tokenizer (a whole tokenizer.json), encode: rows of text, ids with special
tokens matched, ids without; decode: rows of ids, text with special tokens written out, text without them.
A tokenizer.model has `model`, its bytes in hexadecimal, instead, and rows of encode without the second item.
The first lines are forms chosen by hand, the rest is random. Needs tokenizers 0.23 and sentencepiece 0.2.
"""
import argparse
import json
import random
import struct
import unicodedata

import sentencepiece
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


def byte_letters():
    """The character of each byte in a byte-level vocabulary."""
    plain = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [c for c in range(256) if c not in plain]
    return {**{c: chr(c) for c in plain}, **{c: chr(0x100 + i) for i, c in enumerate(others)}}


LETTERS = byte_letters()
PARTS = ["a", "b", "ab", "A", "z", "1", "23", "\u00bd", "\u2167", "\u0663", " ", "  ", "   ", "\n", "\t ", "\u00a0",
         "\u3000", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "''", "!", "...", "_", "-", "\u00e9",
         "e\u0301", "\u0301", "\u0327\u0301", "\u212b", "\u1100\u1161\u11a8", "\uac00\u11a8", "\uac00", "\u1fb7",
         "\u0958", "\u2f81a", "\u0344", "\u65e5", "\U0001f600", "\u200d", "\u0e33", "<s>", "XY", "<|e|>",
         "\U0001d15e", "\u093c", "\x00", "\x1c", "\x85"]


def byte_level(rng):
    """A byte-level tokenizer over most bytes with random merges."""
    codes = [c for c in range(256) if rng.random() < 0.9 or c in b"ab 1'!"]
    letters = [LETTERS[c] for c in codes]
    vocab = {letter: i for i, letter in enumerate(letters)}
    if coin(rng, 0.3):
        vocab["<unk>"] = len(vocab)
    often = [LETTERS[c] for c in b" ab1'!.se\n" if LETTERS[c] in vocab] + [LETTERS[c] for c in (0xc3, 0xa9, 0xcc, 0x81)
                                                                        if LETTERS[c] in vocab]
    merges, parts = [], list(often)
    for _ in range(rng.randint(0, 60)):
        left, right = rng.choice(parts), rng.choice(parts)
        if len(left + right) <= 8 and [left, right] not in merges:
            merges.append([left, right])
            vocab.setdefault(left + right, len(vocab))
            parts.append(left + right)
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>" if "<unk>" in vocab else None,
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": coin(rng),
             "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": merges}
    if coin(rng, 0.3):
        vocab["  "] = len(vocab)  # of no bytes: an added token only
    names = rng.sample(["<s>", "XY", "<|e|>", "  ", "e\u0301", "\u65e5", "a b", "ab", "\u212b x", " "],
                       rng.randint(0, 5))
    tokens = [added(name, coin(rng), coin(rng, 0.4), coin(rng, 0.2), coin(rng, 0.2), coin(rng, 0.2)) for name in names]
    if "  " in vocab and "  " not in names:
        tokens.append(added("  ", False, coin(rng)))
    level = {"type": "ByteLevel", "add_prefix_space": coin(rng, 0.3), "trim_offsets": True,
             "use_regex": coin(rng, 0.85)}
    normal = rng.choice([None, {"type": "NFC"}, {"type": "NFC"}, sequence("normalizers", [{"type": "NFC"}]),
                         sequence("normalizers", [replace("b", "e\u0301"), {"type": "NFC"}, replace("!", "a")])])
    return tokenizer(model, normal, level, dict(level, add_prefix_space=True), tokens)


def field(number, value):
    """A field of a protocol buffer."""
    def varint(n):
        return bytes([n & 127 | 128]) + varint(n >> 7) if n > 127 else bytes([n])
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(int(value))


def sentence_model(rng):
    """Bytes of a tokenizer.model, and its number of pieces. Scores often tie."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    fallback = coin(rng, 0.7)
    if fallback:
        pieces += [("<0x%02X>" % c, 0.0, 6) for c in range(256)]
    letters = [SPACE, "a", "b", "c", "\u00e9", "x", "<", "s", ">"]
    texts, scores = list(letters), [-1.0, -2.0, -3.0, -3.5, -1e9, -4.0, -0.5]
    for _ in range(rng.randint(3, 40)):
        text = rng.choice(texts) + rng.choice(texts)
        if len(text) <= 6 and text not in texts and text != "<s>":
            texts.append(text)
    pieces += [(text, rng.choice(scores), 1) for text in texts]
    defined = [t for t in ("[X]", "ab" + SPACE, "\u65e5", "aXa", SPACE * 3) if coin(rng, 0.4) and t not in texts]
    pieces += [(text, 0.0, 4) for text in defined]
    data = b"".join(field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind > 1 else b""))
                    for text, score, kind in pieces)
    data += field(2, field(3, 2) + field(35, fallback) + field(40, 0) + field(41, 1) + field(42, 2))
    return data + field(3, field(1, b"identity") + field(3, coin(rng, 0.7)) + field(4, 0)), len(pieces)


def sentence_case(name, rng):
    data, count = sentence_model(rng)
    t = sentencepiece.SentencePieceProcessor(model_proto=data)
    parts = ["a", "aa", "b", "ab", "c", " ", "  ", "   ", "\u00e9", "x", "<s>", "<", "s>", "[X]", "aXa", "\u65e5", "z",
             SPACE, "\n", "\U0001f600", "ab "]
    texts = ["", " ", "  a", "aaaaaaa", "abababab"]
    texts += ["".join(rng.choice(parts) for _ in range(rng.randint(1, 14))) for _ in range(25)]
    rows = [[text, t.encode(text)] for text in texts]
    decode = [[ids, t.decode(ids), t.decode(ids)] for _, ids in rows if 0 not in ids]
    return {"name": name, "vocab": count, "model": data.hex(), "encode": rows, "decode": decode}


def byte_level_case(name, rng):
    texts = ["".join(rng.choice(PARTS) for _ in range(rng.randint(1, 12))) for _ in range(40)]
    return case(name, byte_level(rng), rng, texts + [" ".join(PARTS), "".join(PARTS)])


def nfc_case(rng):
    """Random characters and what NFC makes of them, all of Unicode 3.2."""
    everything = [chr(c) for c in range(0xc0, 0x30000) if unicodedata.category(chr(c)) not in ("Cs", "Cn")]
    old = [c for c in everything if unicodedata.ucd_3_2_0.category(c) != "Cn"]
    marks = [c for c in old if unicodedata.combining(c)]
    composed = [c for c in old if unicodedata.decomposition(c)[:1] not in ("", "<")]
    texts = []
    for _ in range(400):
        parts = [rng.choice([rng.choice(marks), rng.choice(composed), rng.choice(old), rng.choice("aeoAEO"),
                             unicodedata.normalize("NFD", rng.choice(composed))]) for _ in range(rng.randint(1, 12))]
        texts.append("".join(parts))
    return {"name": "NFC", "nfc": [[text, unicodedata.normalize("NFC", text)] for text in texts]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20, help="random tokenizers")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    cases = [case(name, spec, rng, FIXED + [random_text(rng) for _ in range(4)]) for name, spec in chosen(rng)]
    for i in range(options.count):
        texts = FIXED[:6] + [random_text(rng) for _ in range(14)]
        cases.append(case("random %d" % i, anything(rng), rng, texts))
    cases += [byte_level_case("byte level %d" % i, rng) for i in range(options.count)]
    cases += [sentence_case("tokenizer.model %d" % i, rng) for i in range(options.count)]
    cases.append(nfc_case(rng))
    for row in cases:
        print(json.dumps(row, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
