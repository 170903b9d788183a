#!/usr/bin/env python3
"""Compare q8 and q4 with llama.cpp's Q8_0 and Q4_0 on a model: only the weights differ, all else is f32.

    tests/compare_gguf.py [BUILD [FOLDER [TEXT]]]     default: build examples/storyteller .../held.txt

Converts the folder to f32, q8 and q4, and writes copies of the f32 file whose matrices have gone through a
format and back: q8's and q4's as the converter stored them, the others through the gguf package. Rows are padded
with zeros to whole blocks. build/perplexity compares each copy with the f32 file. Llama.cpp's blocks are also
laid 8, 16 and 24 columns further on: the spread that this makes is what chance does to such figures.
Needs numpy and gguf.
"""
import os
import re
import struct
import subprocess
import sys
import tempfile

import numpy as np
from gguf import GGMLQuantizationType, quants

F32, Q8, Q4 = 0, 3, 4
SHIFTS = (0, 8, 16, 24)


def q4_levels():
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "jamba.h")) as header:
        found = re.search(r"jmb_q4_levels\[16\] = \{([^}]*)\}", header.read())
    return np.array([int(level) for level in found.group(1).split(",")]) - 128


LEVELS = q4_levels()


class Model:
    """A .jamba file; its tensors as lists of 16-row panels, whose order does not matter here."""

    def __init__(self, path):
        self.bytes = bytearray(open(path, "rb").read())
        blocks, count = struct.unpack_from("<II", self.bytes, 76)
        entries = (struct.unpack_from("<HHHHIIQQ", self.bytes, 256 + 128 * blocks + 64 * i) for i in range(count))
        self.tensors = [dict(type=e[3], rows=e[4], cols=e[5], offset=e[6], bytes=e[7]) for e in entries]

    def weights(self, index):
        t = self.tensors[index]
        cols, pad = t["cols"], -(-t["cols"] // 64) * 64
        data = np.frombuffer(self.bytes, np.uint8, t["bytes"], t["offset"])
        if t["type"] == F32:
            return data.view("<f4").reshape(-1, cols, 16).transpose(0, 2, 1).reshape(-1, cols)
        if t["type"] == Q8:
            data = data.reshape(-1, -(-(pad * 16 + pad // 2) // 64) * 64)
            codes = data[:, : pad * 16].reshape(-1, pad // 4, 16, 4).transpose(0, 2, 1, 3).reshape(-1, 16, pad)
            values, block, scales = codes.astype(np.float32) - 128, 64, data[:, pad * 16 : pad * 16 + pad // 2]
        else:
            data = data.reshape(-1, pad * 9)
            codes = data[:, : pad * 8].reshape(-1, pad // 32, 4, 16, 4).transpose(0, 3, 1, 2, 4)
            codes = codes.reshape(-1, 16, pad // 32, 16)
            values = LEVELS[np.concatenate([codes & 15, codes >> 4], 3)].reshape(-1, 16, pad).astype(np.float32)
            block, scales = 32, data[:, pad * 8 :]
        scales = np.ascontiguousarray(scales).view("<f2").reshape(-1, pad // block, 16).transpose(0, 2, 1)
        return (values * np.repeat(scales.astype(np.float32), block, 2)).reshape(-1, pad)[:, :cols]

    def replace(self, index, weights):
        t = self.tensors[index]
        panels = weights.reshape(-1, 16, t["cols"]).transpose(0, 2, 1)
        self.bytes[t["offset"] : t["offset"] + t["bytes"]] = np.ascontiguousarray(panels, "<f4").tobytes()


def through_gguf(weights, kind, shift):
    """Weights through a format and back, and its bytes."""
    cols = weights.shape[1]
    padded = np.zeros((weights.shape[0], -(-cols // 32) * 32), np.float32)
    padded[:, :cols] = weights
    stored = quants.quantize(np.roll(padded, shift, 1), kind)
    return np.roll(quants.dequantize(stored, kind), -shift, 1)[:, :cols], stored.nbytes


class Comparison:
    def __init__(self, build, folder, text, temporary):
        self.build, self.text = build, text
        self.paths = {}
        for kind in ("f32", "q8", "q4"):
            self.paths[kind] = os.path.join(temporary, kind + ".jamba")
            subprocess.run([f"{build}/convert", folder, self.paths[kind], "--type", kind, "--force"], check=True)
        self.exact = Model(self.paths["f32"])
        self.copy = os.path.join(temporary, "copy.jamba")

    def perplexity(self, *arguments):
        with open(self.text, "rb") as text:
            run = subprocess.run([f"{self.build}/perplexity", *arguments], stdin=text, check=True, capture_output=True)
        return run.stdout.decode()

    def score(self, replaced):
        """Of a copy of the f32 file with {index: weights}: KL divergence, top-1 agreement, perplexity, and the
        share of the replaced weights' energy that is lost."""
        copy, lost, energy = Model(self.paths["f32"]), 0.0, 0.0
        for index, weights in replaced.items():
            exact = self.exact.weights(index).astype(np.float64)
            lost += ((weights - exact) ** 2).sum()
            energy += (exact**2).sum()
            copy.replace(index, weights)
        with open(self.copy, "wb") as file:
            file.write(copy.bytes)
        out = self.perplexity(self.copy, "--against", self.paths["f32"])
        found = dict(re.findall(r"(\w+): (\S+)", out))
        return [float(found[k]) for k in ("kl_divergence", "top1_agreement", "perplexity")] + [lost / energy]

    def count(self, index):
        t = self.exact.tensors[index]
        return t["bytes"] // 4 // (-(-t["rows"] // 16) * 16) * t["rows"]

    def ours(self, kind):
        stored = Model(self.paths[kind])
        kept = {i: t for i, t in enumerate(stored.tensors) if t["type"] in (Q8, Q4)}
        score = self.score({i: stored.weights(i) for i in kept})
        bits = 8 * sum(t["bytes"] for t in kept.values()) / sum(map(self.count, kept))
        return dict(name=kind, bits=bits, scores=[score], kinds={i: t["type"] for i, t in kept.items()})

    def theirs(self, name, kinds):
        """`kinds`: {index: format}."""
        scores = []
        for shift in SHIFTS:
            size, replaced = 0, {}
            for index, kind in kinds.items():
                replaced[index], used = through_gguf(self.exact.weights(index), kind, shift)
                size += used
            scores.append(self.score(replaced))
        return dict(name=name, bits=8 * size / sum(map(self.count, kinds)), scores=scores)

    def all_q4(self):
        """q4 for the matrices too that a q4 file keeps in q8, which no file can hold."""
        line = re.search(r"^all +(\d+) +(\d+) +-?\d+ +(\S+) +(\S+) +(\S+)", self.ablate(), re.M)
        count, size, *score = map(float, line.groups())
        return dict(name="q4", bits=8 * size / count, scores=[score + [float("nan")]])

    def ablate(self):
        return self.perplexity(self.paths["f32"], "--ablate", "q4")


def show(title, theirs, ours):
    print(f"\n{title}")
    print("         bits  KL divergence              (spread)    top-1  perplexity  energy lost")
    means = []
    for row in (theirs, ours):
        kl, top1, perplexity, lost = mean = np.mean(row["scores"], 0)
        every = [score[0] for score in row["scores"]]
        spread = f"{min(every):.6f}-{max(every):.6f}" if len(every) > 1 else ""
        print(f"{row['name']:6} {row['bits']:6.3f} {kl:14.6f} {spread:>21} {top1:8.4f} {perplexity:11.4f} {lost:12.3e}")
        means.append(mean)
    ratios = means[1] / means[0]
    print(f"{'ratio':13} {ratios[0]:14.3f} {'':42} {ratios[3]:12.3f}")


def main():
    given = sys.argv[1:] + [None] * 3
    build, folder = given[0] or "build", given[1] or "examples/storyteller"
    text = given[2] or os.path.join(folder, "held.txt")
    with tempfile.TemporaryDirectory() as temporary:
        c = Comparison(build, folder, text, temporary)
        q8_0, q4_0 = GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0
        q8, q4 = c.ours("q8"), c.ours("q4")
        everything = {i: q8_0 for i in q8["kinds"]}
        show("8 bits, all matrices (the same as a q8 file has)", c.theirs("Q8_0", everything), q8)
        mixed = {i: q8_0 if kind == Q8 else q4_0 for i, kind in q4["kinds"].items()}
        show("4 bits, the matrices of a q4 file: those that it keeps in q8 in Q8_0", c.theirs("Q4_0", mixed), q4)
        whole = c.theirs("Q4_0", {i: q4_0 for i in everything})
        show("4 bits, all matrices", whole, c.all_q4())
        show("4 bits, all matrices of Q4_0 against a q4 file", whole, q4)


main()
