#!/usr/bin/env python3
"""A table of DTX beside its peer, with each case's floor.

  table.py SHAPE CONFIG_JSON DTX_JSONL PEER_JSONL

Floor of training: 4 x matrix parameters + 3 x causal attention FLOPs a token, at the bf16 matrix rate that the peer's
program measured in the same run; in brackets the share of the rate that products sustain (sustained.py).  Floor of
decode: all weights read once, at the copy rate measured there.
"""
import json, os, sys


def lines(path):
    out = []
    if os.path.exists(path):
        for line in open(path):
            if line.startswith("{"):
                out.append(json.loads(line))
    return out


def matrix_parameters(c):
    h, f, q = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"]
    hd = c.get("head_dim") or h // q
    kv = c.get("num_key_value_heads", q) * hd
    return c["num_hidden_layers"] * (h * (q * hd + 2 * kv) + q * hd * h + 3 * h * f) + c["vocab_size"] * h


def train_flops(c, n, seq):
    return 4.0 * n + 3.0 * 2 * 2 * c["hidden_size"] * seq / 2 * c["num_hidden_layers"]


def peer_of(peer, kind, parts):
    """What the peer does instead: the rate by way of running it."""
    def one(**want):
        for p in peer:
            if "error" not in p and all(p.get(k) == v for k, v in want.items()):
                return p
        return {}
    if kind == "train":
        jobs, batch, seq, _, dropout = parts
        if jobs > 1:
            return {"one after the other": one(case="small job", batch=batch, seq=seq).get("tokens_per_s")}
        if dropout:
            return {"eager": one(case=f"train dropout {dropout:g}", batch=batch, seq=seq).get("tokens_per_s")}
        found = {"eager": one(case="train", batch=batch, seq=seq, compiled=False).get("tokens_per_s")
                 or one(case="small job", batch=batch, seq=seq).get("tokens_per_s"),
                 "compiled": one(case="train", batch=batch, seq=seq, compiled=True).get("tokens_per_s")}
        return found
    n, rank = parts
    return {"eager": one(case="decode lora" if rank else "decode base", batch=n).get("tokens_per_s_total")}


def main():
    shape, config, dtx, peer = sys.argv[1:5]
    c, dtx, peer = json.load(open(config)), lines(dtx), lines(peer)
    ceiling = next((p for p in peer if p.get("case") == "ceilings"), {})
    gemm, copy = ceiling.get("gemm_tflops", 786.0), ceiling.get("copy_gb_s", 3000.0)
    lasting = next((p for p in peer if p.get("case") == "sustained"), {})
    n = matrix_parameters(c)
    print(f"{shape}: {n / 1e9:.2f} G matrix parameters; ceilings {'measured in this run' if ceiling else 'assumed'}:"
          f" {gemm:.0f} TFLOP/s, {copy:.0f} GB/s")
    if lasting:
        print(f"products without a pause: {lasting['gemm_tflops']:.0f} TFLOP/s, {lasting['watts']:.0f} W,"
              f" {lasting['mhz']:.0f} MHz")
    print()
    print("| case | DTX tok/s | ms | of floor (sustained) | peer tok/s | DTX / peer |\n|---|---|---|---|---|---|")
    for r in dtx:
        f = r["case"].split(":")
        if f[0] == "load":
            print(f"| load | | {r['seconds'] * 1e3:.0f} | | | {r['gib_per_s']:.2f} GiB/s |")
            continue
        if f[0] == "train":
            jobs, batch, seq, rank, dropout = int(f[1]), int(f[2]), int(f[3]), int(f[4]), float(f[5])
            name = f"train, {jobs} job{'s' if jobs > 1 else ''} x {batch} x {seq}, r{rank}" + (
                f", dropout {dropout:g}" if dropout else "")
            rate, ms = r["tokens_per_s"], r["ms_per_step"]
            done = rate * train_flops(c, n, seq) / 1e12
            share = f"{done / gemm:.0%}" + (f" ({done / lasting['gemm_tflops']:.0%})" if lasting else "")
            other = peer_of(peer, "train", (jobs, batch, seq, rank, dropout))
        else:
            seqs, rank = int(f[1]), int(f[4])
            name = f"decode, {seqs} sequence{'s' if seqs > 1 else ''}, " + (f"r{rank} each its own" if rank else "bare base")
            rate, ms = r["tokens_per_s_total"], r["ms_per_token"]
            share = f"{2 * n / (copy * 1e9) / (ms * 1e-3):.0%}"
            other = peer_of(peer, "decode", (seqs, rank))
        other = {k: v for k, v in other.items() if v}
        print(f"| {name} | {rate:,.0f} | {ms:.2f} | {share} | "
              + ", ".join(f"{v:,.0f} {k}" for k, v in other.items()) + " | "
              + ", ".join(f"{rate / v:.2f}" for v in other.values()) + " |")
        if "gib_beside_base" in r:
            print(f"| &nbsp; memory | | | | {r['gib_used']:.2f} GiB used in all | beside the base {r['gib_beside_base']:.2f},"
                  f" planned {r['gib_planned_beside_base']:.2f} |")


if __name__ == "__main__":
    main()
