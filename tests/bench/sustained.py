#!/usr/bin/env python3
"""What the library's products reach when they do not stop: a GPU slows down under its own power, and a training step
is seconds of products, where the ceiling that the peer measures is 40 ms of them.

  sustained.py CONFIG_JSON [TOKENS [SECONDS]]

x W^T and dy W for the four matrices of a layer, random bf16, one after another through PyTorch (cuBLAS).  Prints one
JSON object: the rate in the last half of the time, and the power and clock seen then.
"""
import json, subprocess, sys, time
import torch


def main(config, tokens=4096, seconds=3):
    c, tokens, seconds = json.load(open(config)), int(tokens), float(seconds)
    h, f, q = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    head = c.get("head_dim") or h // q
    kv = c.get("num_key_value_heads", q) * head
    shapes = [(q * head + 2 * kv, h), (h, q * head), (2 * f, h), (h, f)]
    make = lambda *s: torch.randn(*s, device="cuda", dtype=torch.bfloat16)
    work = [(make(tokens, k), make(n, k) * 0.02, make(tokens, n)) for n, k in shapes]
    flops = sum(4.0 * tokens * n * k for n, k in shapes)

    def run(until):
        n, start = 0, time.time()
        while time.time() - start < until:
            for _ in range(8):
                for x, w, dy in work:
                    x @ w.t()
                    dy @ w
            torch.cuda.synchronize()
            n += 8
        return flops * n / (time.time() - start)
    run(seconds / 2)
    smi = subprocess.Popen(["nvidia-smi", "--query-gpu=power.draw,clocks.sm", "--format=csv,noheader,nounits"],
                           stdout=subprocess.PIPE, text=True)
    rate = run(seconds / 2)
    seen = smi.communicate()[0].split("\n")[0].split(",")
    print(json.dumps(dict(case="sustained", tokens=tokens, seconds=seconds, gemm_tflops=round(rate / 1e12, 1),
                          watts=float(seen[0]), mhz=float(seen[1]))))


if __name__ == "__main__":
    main(*sys.argv[1:])
