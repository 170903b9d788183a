#!/usr/bin/env python3
"""Zamba2-1.2B's shape in transformers on the CPU, beside jamba.h.

    bench_zamba2.py make FOLDER                          random weights, bf16
    bench_zamba2.py run FOLDER MODEL.jamba BENCH THREADS REPEATS

`run` prints one JSON object a line, as `bench --json` does: transformers' with "who": "transformers", those of
BENCH (our tool) with "who": "jamba.h". The two take turns.
"""
import json
import subprocess
import sys
import time

import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

PROMPT, WRITTEN = 128, 16
HYBRIDS = (5, 11, 17, 23, 29, 35)


def make(folder):
    config = Zamba2Config(
        vocab_size=32000, hidden_size=2048, num_hidden_layers=38, intermediate_size=8192,
        num_attention_heads=32, num_key_value_heads=32, mamba_d_state=128, mamba_ngroups=1, n_mamba_heads=64,
        num_mem_blocks=1, adapter_rank=128, use_shared_attention_adapter=True, use_mem_rope=True,
        layers_block_type=["hybrid" if i in HYBRIDS else "mamba" for i in range(38)])
    torch.manual_seed(7)
    model = Zamba2ForCausalLM(config).to(torch.bfloat16)
    print(sum(p.numel() for p in model.parameters()) / 1e9, "billion parameters")
    model.save_pretrained(folder)


def theirs(model, ids):
    """Tokens a second of a prompt, and of tokens written after it."""
    with torch.no_grad():
        start = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prompt = PROMPT / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(WRITTEN):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return prompt, WRITTEN / (time.perf_counter() - start)


def run(folder, path, bench, threads, repeats):
    torch.set_num_threads(threads)
    model = Zamba2ForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    ids = torch.randint(3, 32000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(ids[:, :16], use_cache=False)
    command = [bench, path, "--json", "-t", str(threads), "-p", str(PROMPT), "-n", str(WRITTEN), "-r", "1"]
    for _ in range(repeats):
        prompt, decode = theirs(model, ids)
        common = {"who": "transformers", "type": "bf16", "threads": threads}
        print(json.dumps(dict(common, tokens=PROMPT, prompt_tokens_per_s=prompt)), flush=True)
        print(json.dumps(dict(common, tokens=WRITTEN, decode_tokens_per_s=decode)), flush=True)
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            print(json.dumps(dict(json.loads(line), who="jamba.h")), flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == "make":
        make(sys.argv[2])
    elif len(sys.argv) == 7 and sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
    else:
        sys.exit(__doc__)
