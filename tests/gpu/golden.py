#!/usr/bin/env python3
"""Holds the bf16 golden runs (golden.c on a GPU) against PEFT's own bf16 runs of the same cases.

  golden.py OURS.jsonl      exit 0: our distance from the float32 curve is bf16 noise, as PEFT's is

Both start from the same first adapters and see the same rows; the truth is the float32 run in ../shared/golden/peft.
PEFT's base is bf16, its adapters are float32 (its default), as ours.  A curve's distance is the root mean square of the
relative differences of the losses; ours may be up to 2 x PEFT's.
"""
import json, math, os, sys
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, get_scheduler

GOLDEN, MODEL = "../shared/golden/peft", "../shared/models/stories260K"


def batch_of(rows):
    n = max(len(r["input_ids"]) for r in rows)
    pad = lambda k, p: torch.tensor([r[k] + [p] * (n - len(r[k])) for r in rows]).cuda()
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (n - len(r["input_ids"])) for r in rows]).cuda()
    return pad("input_ids", 0), pad("labels", -100), mask


def loss_sum(model, rows):
    ids, labels, mask = batch_of(rows)
    logits = model(input_ids=ids, attention_mask=mask).logits.float()
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.size(-1)), labels[:, 1:].reshape(-1),
                                             ignore_index=-100, reduction="sum")


def labels_of(rows):
    return sum(sum(t != -100 for t in r["labels"][1:]) for r in rows)


def peft_run(name, rows):
    c = json.load(open(f"{GOLDEN}/{name}/case.json"))
    base = LlamaForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16, attn_implementation="eager").cuda()
    model = PeftModel.from_pretrained(base, f"{GOLDEN}/{name}/init", is_trainable=True).cuda()
    params = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in params)
    opt = (torch.optim.AdamW(params, lr=c["lr"], weight_decay=c["wd"]) if c["optimizer"] == "adamw"
           else torch.optim.SGD(params, lr=c["lr"], weight_decay=c["wd"]))
    micro = [rows[i:i + c["batch"]] for i in range(0, len(rows), c["batch"])]
    windows = [sum(micro[i:i + c["accum"]], []) for i in range(0, len(micro), c["accum"])]
    total = len(windows) * c["epochs"]
    sched = get_scheduler(c["scheduler"], opt, num_warmup_steps=math.ceil(c["warmup_ratio"] * total), num_training_steps=total)
    losses = []
    for _ in range(c["epochs"]):
        for w in windows:
            opt.zero_grad()
            n, whole = labels_of(w), 0.0
            for i in range(0, len(w), c["batch"]):
                part = loss_sum(model, w[i:i + c["batch"]]) / n
                part.backward()
                whole += part.item()
            torch.nn.utils.clip_grad_norm_(params, c["clip"] or float("inf"))
            losses.append(whole)
            opt.step()
            sched.step()
    model.eval()
    with torch.no_grad():
        after = sum(loss_sum(model, rows[i:i + 8]).item() for i in range(0, len(rows), 8)) / labels_of(rows)
    return losses, after


def distance(losses, truth):
    return math.sqrt(sum(((a - b) / b) ** 2 for a, b in zip(losses, truth, strict=True)) / len(truth))


def main():
    rows = [json.loads(line) for line in open(f"{GOLDEN}/encoded.jsonl")]
    bad, seen = 0, 0
    for ours in map(json.loads, open(sys.argv[1])):
        name = ours["case"]
        truth = [s["loss"] for s in json.load(open(f"{GOLDEN}/{name}/steps.json"))]
        after = json.load(open(f"{GOLDEN}/{name}/eval.json"))["loss_after"]
        peft, peft_after = peft_run(name, rows)
        d, p = distance(ours["losses"], truth), distance(peft, truth)
        good = d <= max(2 * p, 1e-3)
        bad += not good
        seen += 1
        print(f"bf16 {name}: distance from the float32 losses: ours {d:.2e}, PEFT's bf16 {p:.2e}; loss after {after:.4f},"
              f" ours {ours['after']:.4f}, PEFT's bf16 {peft_after:.4f}  {'ok' if good else 'FAILED'}", flush=True)
    sys.exit(bad != 0 or seen == 0)


if __name__ == "__main__":
    main()
