#!/usr/bin/env python3
"""What it costs to keep and save conversations, beside llama.cpp where its tools can do it.

    tests/bench_sessions.py [BUILD]     BUILD: folder with bench_sessions inside (default: build)

Settings, from the environment: MODELS, TOKENS (512), JAMBA_PEER (~/.cache/jamba-peer): where tests/bench_peer keeps
models and peer. The peer's part needs its llama-completion there (cmake --build build --target llama-completion) and is
left out without it. One thread, q8 and Q8_0. Prints the CPU's name and Markdown tables.

The peer saves a prompt's state with --prompt-cache and starts from it in a second run; both times are differences of
the time stamps in its log. It saves in front of the prompt's last token and reads that one again.
"""
import json
import os
import random
import re
import subprocess
import sys
import tempfile

BUILD = sys.argv[1] if len(sys.argv) > 1 else "build"
PEER = os.environ.get("JAMBA_PEER", os.path.expanduser("~/.cache/jamba-peer"))
MODELS = os.environ.get("MODELS", "jamba-3b zamba2-1.2b mamba2-780m llama-3.2b").split()
TOKENS = int(os.environ.get("TOKENS", "512"))
COMPLETION = os.path.join(PEER, "build/bin/llama-completion")
WORDS = "time people way water day man thing woman life child world school state family group country".split()


def output_of(command):
    """A finished run; a failed one ends this program in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise SystemExit(f"bench_sessions.py: {command[0]}: {error.strerror}")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise SystemExit(f"bench_sessions.py: {command[0]} ended with status {done.returncode}: {lines[-1]}")
    return done


def ours(model):
    command = [f"{BUILD}/bench_sessions", f"{PEER}/{model}.q8.jamba", "-t", "1", "-p", str(TOKENS), "--json"]
    return json.loads(output_of(command).stdout)


def stamp(log, text):
    """Milliseconds at the first line of the log that holds `text`."""
    match = re.search(r"(\d+)\.(\d+)\.(\d{3})\.(\d{3}) [^\n]*" + re.escape(text), log)
    if not match:
        raise SystemExit(f"bench_sessions.py: no line with '{text}' in the log of llama-completion")
    minutes, seconds, ms, us = (int(part) for part in match.groups())
    return (minutes * 60 + seconds) * 1000 + ms + us / 1000


def completion(model, prompt, cache):
    command = [COMPLETION, "-m", f"{PEER}/{model}.Q8_0.gguf", "-t", "1", "-f", prompt, "-n", "2", "-c", "1024",
               "--prompt-cache", cache, "-no-cnv", "--no-warmup", "--ignore-eos"]
    return output_of(command).stderr


def theirs(model):
    random.seed(1)
    with tempfile.TemporaryDirectory() as folder:
        prompt, cache = os.path.join(folder, "prompt.txt"), os.path.join(folder, "cache.bin")
        with open(prompt, "w") as file:
            file.write(" ".join(random.choice(WORDS) for _ in range(TOKENS - 1)))  # a token a word, and one before
        first, second = completion(model, prompt, cache), completion(model, prompt, cache)
        if not os.path.exists(cache):
            raise SystemExit(f"bench_sessions.py: llama-completion has saved no state of {model}")
        size = os.path.getsize(cache)
    read = re.search(r"prompt eval time =\s*([\d.]+) ms", first)
    if not read:
        raise SystemExit("bench_sessions.py: no line with 'prompt eval time' in the log of llama-completion")
    asked = stamp(second, "attempting to load saved session")
    return {"bytes": size, "read": float(read.group(1)), "load": stamp(second, "loaded a session") - asked,
            "ready": stamp(second, "replayed last token") - asked}


def mib(size):
    return f"{size / 1048576:.1f}"


def ms(value):
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def table(head, rows):
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def main():
    with open("/proc/cpuinfo") as file:
        cpu = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    results = {model: ours(model) for model in MODELS}
    print(f"{cpu}, 1 thread, {TOKENS} tokens of prompt")
    table(["MiB", "state saved: exact", "f16", "q8", "a fork for 256 more tokens"],
          [[m] + [mib(r[k]) for k in ("bytes_exact", "bytes_f16", "bytes_q8", "fork_bytes")]
           for m, r in results.items()])
    keys = ["read", "mark", "rewind", "fork", "save", "restore", "load", "save_q8", "restore_q8"]
    table(["ms", "read the prompt", "mark", "rewind", "fork", "save", "restore", "start from a file", "save q8",
           "restore q8"], [[m] + [ms(r[k + "_ms"]) for k in keys] for m, r in results.items()])
    if not os.path.exists(COMPLETION):
        print("\nno llama-completion: the peer is left out")
        return
    rows = []
    for model, r in results.items():
        if not os.path.exists(f"{PEER}/{model}.Q8_0.gguf"):
            continue
        peer = theirs(model)
        rows.append([model, mib(peer["bytes"]), mib(r["bytes_exact"]), ms(peer["read"]), ms(r["read_ms"]),
                     ms(peer["load"]), ms(peer["ready"]), ms(r["load_ms"])])
    table(["beside llama.cpp", "its file, MiB", "ours", "it reads the prompt, ms", "we do", "it loads, ms",
           "it can sample after, ms", "we can after"], rows)


main()
