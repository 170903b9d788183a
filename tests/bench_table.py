#!/usr/bin/env python3
"""Markdown tables of what tests/bench_peer measured.

    bench_table.py LOG.jsonl DATE COMMIT

Ratios are of medians. Fractions are those of the limits that `bench` measures in the same run: of the int8
operations for prompts, of what four streams read for writing; of all measurements with as many threads the best
one is the limit.
"""
import json
import sys
from collections import defaultdict
from statistics import median


class Log:
    def __init__(self, path):
        self.rates = defaultdict(list)   # tokens a second by (part, who, shape, bits, threads, test, depth, batch)
        self.work = {}                   # (shape, bits, test): bytes or operations a token
        self.limits = defaultdict(float)  # (threads, name): the best
        self.memory = {}                 # (shape, depth): KV cache and state, bytes
        self.cpu = self.isa = ""
        with open(path) as lines:
            for line in lines:
                self.add(json.loads(line))

    def add(self, o):
        if "n_threads" in o:
            self.add_peer(o)
            return
        what = "prompt" if "prompt_tokens_per_s" in o else "decode"
        test = f"prompt of {o['tokens']}" if what == "prompt" else "decode"
        rate = o[what + "_tokens_per_s"]
        key = (o["part"], o["who"], o["shape"], o["bits"], o["threads"], test, o.get("context", 0), o.get("batch", 1))
        self.rates[key].append(rate)
        if o["who"] != "jamba.h":
            return
        self.cpu, self.isa = o["cpu"], o["isa"]
        for name in ("read_1_gb_per_s", "read_4_gb_per_s", "int8_gop_per_s"):
            self.limits[o["threads"], name] = max(self.limits[o["threads"], name], o.get(name, 0))
        self.memory[o["shape"], o.get("context", 0)] = o["kv_bytes"] + o["state_bytes"]
        limit = o.get("int8_gop_per_s" if what == "prompt" else "read_4_gb_per_s", 0)
        if what + "_fraction" in o and o.get("batch", 1) == 1:
            self.work[o["shape"], o["bits"], test] = o[what + "_fraction"] * limit / rate

    def add_peer(self, o):
        if o["n_prompt"] == 32:  # its warm-up
            return
        test = f"prompt of {o['n_prompt']}" if o["n_prompt"] else "decode"
        key = (o["part"], "peer", o["shape"], o["bits"], o["n_threads"], test, o["n_depth"], 1)
        self.rates[key] += o["samples_ts"]

    def of(self, part, who, shape, bits, threads, test, depth=0, batch=1):
        return sorted(self.rates.get((part, who, shape, bits, threads, test, depth, batch), []))

    def fraction(self, part, shape, bits, threads, test):
        limit = self.limits[threads, "int8_gop_per_s" if test.startswith("prompt") else "read_4_gb_per_s"]
        rates = self.of(part, "jamba.h", shape, bits, threads, test)
        if not limit or not rates or (shape, bits, test) not in self.work:
            return None
        return self.work[shape, bits, test] * median(rates) / limit


def number(x):
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


def spread(rates):
    return f"{number(rates[0])} **{number(median(rates))}** {number(rates[-1])}" if rates else "-"


def table(heads, rows):
    if not rows:
        return
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def cell(log, part, other, shape, bits, threads, test):
    mine = log.of(part, "jamba.h", shape, bits, threads, test)
    theirs = log.of(part, other, shape, bits, threads, test)
    if not mine or not theirs:
        return "-"
    text = f"{number(median(mine))} / {number(median(theirs))} = **{median(mine) / median(theirs):.2f}**"
    fraction = log.fraction(part, shape, bits, threads, test)
    return text + (f", {fraction:.0%}" if fraction else "")


def compare(log, part, other, name):
    keys = [k for k in log.rates if k[:2] == (part, other)]
    tests = [t for t in ("prompt of 128", "prompt of 512", "decode") if any(k[5] == t for k in keys)]
    places = list(dict.fromkeys(k[2:5] for k in keys))
    if not places:
        return
    print(f"Tokens a second, jamba.h / {name} = ratio of medians, share of the limit:\n")
    table(["shape", "weights", "threads"] + tests,
          [[s, b, str(t)] + [cell(log, part, other, s, b, t, test) for test in tests] for s, b, t in places])
    print(f"Minimum, median, maximum of jamba.h and of {name}:\n")
    table(["shape", "weights", "threads", "test", "jamba.h", name, "turns"],
          [[s, b, str(t), test, spread(log.of(part, "jamba.h", s, b, t, test)),
            spread(log.of(part, other, s, b, t, test)), str(len(log.of(part, other, s, b, t, test)))]
           for s, b, t in places for test in tests])


def depths(log):
    keys = [k for k in log.rates if k[0] == "depth"]
    if not keys:
        return
    shapes, found = list(dict.fromkeys(k[2] for k in keys)), sorted({k[6] for k in keys})
    threads = keys[0][4]
    heads, rows = ["tokens before"], []
    for s in shapes:
        heads += [f"{s}, tokens/s", "state and KV", f"of {found[0]}", "llama.cpp"]
    for depth in found:
        row = [f"{depth:,}"]
        for s in shapes:
            mine, start = (log.of("depth", "jamba.h", s, "q8", threads, "decode", d) for d in (depth, found[0]))
            theirs = log.of("depth", "peer", s, "q8", threads, "decode", depth)
            row += [spread(mine), f"{log.memory[s, depth] / 2**20:.0f} MiB", f"{median(mine) / median(start):.0%}"] \
                if mine and start else ["-"] * 3
            row += [spread(theirs)]
        rows.append(row)
    print(f"Writing behind a context that was not computed, q8, f16 KV, {threads} threads:\n")
    table(heads, rows)


def batches(log):
    rows = []
    for key, rates in log.rates.items():
        one = log.of(*key[:7], 1)
        if key[7] > 1:
            rows.append([key[2], key[3], str(key[4]), str(key[7]), spread(sorted(rates)), spread(one),
                         f"{median(rates) / median(one):.2f}"])
    if rows:
        print("Sessions that write together:\n")
    table(["shape", "weights", "threads", "sessions", "all, tokens/s", "one alone", "ratio"], rows)


def main(path, date, commit):
    log = Log(path)
    print(f"{date} at {commit}, {log.cpu}, {log.isa}. The machine in the same run:", end=" ")
    for threads in sorted({t for t, _ in log.limits}):
        one, four, int8 = (log.limits[threads, n] for n in ("read_1_gb_per_s", "read_4_gb_per_s", "int8_gop_per_s"))
        print(f"{threads} thread{'s' * (threads > 1)} read {one:.1f} GB/s in one stream each and {four:.1f} in four,",
              f"and do {int8:.0f} Gop/s of int8.", end=" ")
    print("\n")
    compare(log, "peer", "peer", "llama.cpp")
    compare(log, "transformers", "transformers", "transformers (bf16)")
    depths(log)
    batches(log)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
