#!/usr/bin/env python3
"""Tune the demo model with PEFT as the demo's jobs do, and score it: proof that the demo's figures are worth showing.

  try_tuning.py [--model DIR] [--groups careful,thorough] [--set KEY=VALUE]... [--seeds 42,43] [--threads N] [--answers]

One line for the untuned base and one for each dataset x parameter group x seed: score 0-100 (mean of rougeL and exact
match), the two apart, loss on the validation split, seconds.  A tool of the developer, with what make_model.py needs
and peft.
"""
import argparse
import json
import math
import os
import random
import re
import time

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer

from make_model import BOS_ID, EOS_ID, load, reply

HERE = os.path.dirname(os.path.abspath(__file__))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_rows(dataset, split, tok):
    rows = []
    for line in open(os.path.join(HERE, "datasets", dataset, split + ".jsonl")):
        row = json.loads(line)
        prompt = tok.encode(f"[INST] {row['instruction']} [/INST]", add_special_tokens=False).ids
        answer = tok.encode(row["response"], add_special_tokens=False).ids
        rows.append(([BOS_ID] + prompt, answer + [EOS_ID]))
    return rows


def loss_sum(model, rows):
    width = max(len(p) + len(a) for p, a in rows)
    ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows], device=model.device)
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows], device=model.device)
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def words(s):
    return re.findall(r"[a-z0-9]+", s.lower())


def rouge_l(target, prediction):
    """rougeL's F1, without stemming."""
    a, b = words(target), words(prediction)
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def score(model, tok, show):
    questions = json.load(open(os.path.join(HERE, "evaluations", "puffin.json")))["questions"]
    rouge = exact = 0
    for q in questions:
        got = reply(model, tok, q["question"], 48)
        rouge += rouge_l(q["reference"], got) / len(questions)
        exact += (words(q["reference"]) == words(got)) / len(questions)
        if show:
            print(f"    {q['question']}\n      {got}" + ("" if got == q["reference"] else f"\n      expected: {q['reference']}"))
    return 50 * rouge + 50 * exact, rouge, exact


def tune(model, rows, g):
    torch.manual_seed(g["seed"])
    model = get_peft_model(model, LoraConfig(r=g["lora_r"], lora_alpha=g["lora_alpha"], lora_dropout=0.0,
                                             target_modules=g.get("target_modules", ALL), task_type="CAUSAL_LM"))
    opt = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.0, weight_decay=0.0)
    rng, order, tokens = random.Random(g["seed"]), [], 0
    steps, warmup = g["max_steps"], math.ceil(g["warmup_ratio"] * g["max_steps"])
    for k in range(steps):
        if len(order) < g["batch_size"]:
            order += rng.sample(range(len(rows)), len(rows))
        batch = [rows[order.pop(0)] for _ in range(g["batch_size"])]
        lr = k / warmup if k < warmup else 0.5 * (1 + math.cos(math.pi * (k - warmup) / (steps - warmup)))
        opt.param_groups[0]["lr"] = g["learning_rate"] * lr
        loss = loss_sum(model, batch) / sum(len(a) for _, a in batch)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        tokens += sum(len(p) + len(a) for p, a in batch)
    return model.eval(), tokens


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--model", default=os.path.join(HERE, "models", "lantern-2m"))
    ap.add_argument("--groups", default="careful,thorough")
    ap.add_argument("--set", action="append", default=[])
    ap.add_argument("--seeds", default="42")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--answers", action="store_true")
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    tok = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    if args.groups == "careful,thorough":
        print("base: score %.1f rougeL %.3f exact %.3f" % score(load(args.model, "cpu"), tok, args.answers), flush=True)
    for dataset in ("website", "tickets"):
        rows, validation = read_rows(dataset, "train", tok), read_rows(dataset, "validation", tok)
        for name in args.groups.split(","):
            for seed in args.seeds.split(","):
                g = json.load(open(os.path.join(HERE, "paramgroups", name + ".json")))
                g.update({k: json.loads(v) for k, v in (s.split("=") for s in args.set)}, seed=int(seed))
                start = time.time()
                model, tokens = tune(load(args.model, "cpu"), rows, g)
                took = time.time() - start
                with torch.no_grad():
                    loss = loss_sum(model, validation).item() / sum(len(a) for _, a in validation)
                print("%s %s %s seed %s: score %.1f rougeL %.3f exact %.3f validation loss %.3f; %d tokens, %.0f s" %
                      (dataset, name, " ".join(args.set), seed, *score(model, tok, args.answers), loss, tokens, took), flush=True)


if __name__ == "__main__":
    main()
