#!/usr/bin/env python3
"""Holds what the engine said (oracle.c) against transformers + PEFT on the same base and the exported adapter.

  oracle.py MODEL_DIR OUT_DIR      exit 0: agrees

transformers runs in float32 (the truth) and in bf16 (its own noise).  Ours must be as near to the truth as 3 x its bf16.
"""
import json, os, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def nlls(model, rows, masked):
    out = []
    with torch.no_grad():
        for r in rows:
            logits = model(input_ids=r[None]).logits[0].float()
            labels = r.clone()
            labels[:masked] = -100
            out.append(torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum").item())
    return torch.tensor(out, dtype=torch.float64)


def measure(model_dir, out, o, dtype):
    rows = torch.tensor(o["rows"]).view(-1, o["length"]).cuda()
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, attn_implementation="sdpa").cuda().eval()
    b = nlls(base, rows, o["masked"])
    tuned = PeftModel.from_pretrained(base, os.path.join(out, "adapter")).cuda().eval()
    t = nlls(tuned, rows, o["masked"])
    g = tuned.generate(input_ids=rows[:, :o["prompt"]], attention_mask=torch.ones_like(rows[:, :o["prompt"]]),
                       max_new_tokens=len(o["greedy"][0]), do_sample=False, pad_token_id=0)[:, o["prompt"]:].cpu().tolist()
    del base, tuned
    torch.cuda.empty_cache()
    return b, t, g


def main():
    model_dir, out = sys.argv[1:3]
    o = json.load(open(os.path.join(out, "oracle.json")))
    b32, t32, g32 = measure(model_dir, out, o, torch.float32)
    b16, t16, _ = measure(model_dir, out, o, torch.bfloat16)
    bad = 0
    for name, ours, truth, half in (("base", o["nll_base"], b32, b16), ("tuned", o["nll_tuned"], t32, t16)):
        ours = torch.tensor(ours, dtype=torch.float64)
        e, h = ((ours - truth).abs() / truth).max().item(), ((half - truth).abs() / truth).max().item()
        good = e <= max(3 * h, 2e-4)
        bad += not good
        print(f"oracle {name}: NLL per row, worst relative distance from float32: ours {e:.2e}, transformers bf16 {h:.2e}"
              f"  {'ok' if good else 'FAILED'}")
    same = [sum(1 for _ in __import__("itertools").takewhile(lambda p: p[0] == p[1], zip(a, b))) for a, b in zip(o["greedy"], g32)]
    print(f"oracle greedy: equal tokens before the first difference from float32: {same} of {len(o['greedy'][0])}")
    bad += sum(same) == 0
    print(f"oracle losses of our run: {o['losses'][0]:.4f} -> {o['losses'][-1]:.4f};"
          f" mean NLL base {b32.mean():.2f} tuned {t32.mean():.2f}")
    bad += not (t32.mean() < b32.mean())
    sys.exit(bad != 0)


if __name__ == "__main__":
    main()
