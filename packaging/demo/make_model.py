#!/usr/bin/env python3
"""Train the demo's base model from scratch: packaging/demo/models/lantern-2m.

  make_model.py [--out DIR] [--steps N] [--documents N] [--step-tokens N] [--threads N]

A Llama (4 layers, width 192, 6 heads on 3 key-value heads, tied head; 1.9 million parameters) reads the documents that
world.py makes up; nothing is downloaded.  The tokenizer, a byte-level BPE, is trained on them too.  DIR is then a
Hugging Face folder: config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json,
generation_config.json, and training.json, the record of the run.

Needs PyTorch, transformers, tokenizers and safetensors: tools of the developer, DTX itself uses none of them, and the
model made is checked in.  The text, the tokenizer and the order of training are the same in every run; sums on a GPU are not,
bit for bit, so that another run gives a model that is as good, not the same one.  On one H100 it takes 5 minutes;
without a GPU it works too and takes hours (try --steps 50 --step-tokens 2048 to see it run).
"""
import argparse
import json
import os
import random
import time

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

import world

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCAB = 1536
CONTEXT = 512
# How Llama 3 splits text before its merges.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")
CHAT_TEMPLATE = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + "
                 "' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'].strip() + eos_token }}{% endif %}"
                 "{% endfor %}")
CONFIG = dict(vocab_size=VOCAB, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
              num_key_value_heads=3, head_dim=32, hidden_act="silu", max_position_embeddings=CONTEXT, rms_norm_eps=1e-5,
              rope_theta=10000.0, tie_word_embeddings=True, attention_bias=False, mlp_bias=False,
              attention_dropout=0.0, initializer_range=0.02, pad_token_id=PAD_ID, bos_token_id=BOS_ID,
              eos_token_id=EOS_ID)


def pieces(document):
    """The document as texts that are encoded one by one, with the special tokens' ids between them (Llama-2 form)."""
    if "text" in document:
        return [BOS_ID, document["text"], EOS_ID]
    out = []
    for question, answer in document["turns"]:
        out += [BOS_ID, f"[INST] {question} [/INST]", answer, EOS_ID]
    return out


def train_tokenizer(documents):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[PAD, BOS, EOS], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator((p for d in documents for p in pieces(d) if isinstance(p, str)), trainer)
    assert tok.get_vocab_size() == VOCAB, "the text is too small for so many tokens"
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B",
                                                       special_tokens=[(BOS, BOS_ID)])
    return tok


def encode(tok, documents):
    """Every document as a list of ids, cut to the context."""
    parts = [pieces(d) for d in documents]
    texts = [p for d in parts for p in d if isinstance(p, str)]
    encoded = iter(tok.encode_batch(texts, add_special_tokens=False))
    return [[i for p in d for i in ([p] if isinstance(p, int) else next(encoded).ids)][:CONTEXT] for d in parts]


def batches(rows, step_tokens, rng):
    """Endless batches of about step_tokens ids: rows of like length, padded to a multiple of 32 with labels -100."""
    while True:
        buckets = {}
        for i in rng.sample(range(len(rows)), len(rows)):
            width = -(-len(rows[i]) // 32) * 32
            buckets.setdefault(width, []).append(i)
        made = []
        for width, members in buckets.items():
            n = max(1, step_tokens // width)
            made += [(width, members[k:k + n]) for k in range(0, len(members), n)]
        rng.shuffle(made)
        for width, members in made:
            ids = torch.tensor([rows[i] + [PAD_ID] * (width - len(rows[i])) for i in members])
            labels = ids.masked_fill(ids == PAD_ID, -100)  # no text has the id of padding
            yield ids, labels


def learning_rate(step, steps, peak=3e-3, warmup=200):
    warmup = min(warmup, steps // 10 + 1)
    return peak * min((step + 1) / warmup, max(0.02, 1 - (step - warmup) / (steps - warmup)))


def loss_of(model, device, ids, labels):
    """Mean next-token loss.  Padding stands on the right, so that causal attention needs no mask."""
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        logits = model(input_ids=ids.to(device)).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].to(device).flatten())


def train(model, device, rows, steps, step_tokens):
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    opt = torch.optim.AdamW([dict(params=decayed, weight_decay=0.1), dict(params=plain, weight_decay=0.0)],
                            lr=0.0, betas=(0.9, 0.95), fused=device == "cuda")
    source = batches(rows, step_tokens, random.Random(3))
    start, seen, losses = time.time(), 0, []
    for step in range(steps):
        for group in opt.param_groups:
            group["lr"] = learning_rate(step, steps)
        ids, labels = next(source)
        loss = loss_of(model, device, ids, labels)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        seen += ids.numel()
        losses.append(loss.detach())
        if step % 500 == 499 or step + 1 == steps:
            mean = torch.stack(losses[-200:]).mean().item()
            print(f"step {step + 1}/{steps} loss {mean:.4f} {seen / (time.time() - start):,.0f} tokens/s "
                  f"{time.time() - start:.0f} s", flush=True)
    return dict(steps=steps, tokens_with_padding=seen, seconds=round(time.time() - start, 1),
                final_loss=round(torch.stack(losses[-200:]).mean().item(), 4))


def save(out, model, tok):
    """As Hugging Face folders of Llama models are written."""
    os.makedirs(out, exist_ok=True)
    weights = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()
               if k != "lm_head.weight"}  # the head is the embedding
    save_file(weights, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(out, "model.safetensors"), 0o644)
    tok.save(os.path.join(out, "tokenizer.json"))
    dump(out, "config.json", dict(architectures=["LlamaForCausalLM"], model_type="llama", **CONFIG, rope_scaling=None,
                                  torch_dtype="bfloat16", use_cache=True))
    dump(out, "generation_config.json", dict(bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID,
                                             do_sample=False, max_new_tokens=128))
    dump(out, "tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=BOS, eos_token=EOS,
                                            pad_token=PAD, model_max_length=CONTEXT, padding_side="right",
                                            clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE))


def dump(out, name, value):
    with open(os.path.join(out, name), "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def load(out, device):
    """The model as saved, in float32."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    missing, unexpected = model.load_state_dict({k: v.float() for k, v in load_file(
        os.path.join(out, "model.safetensors")).items()}, strict=False)
    assert missing == ["lm_head.weight"] and not unexpected
    model.tie_weights()
    return model.to(device).eval()


@torch.no_grad()
def reply(model, tok, question, limit=64):
    """Greedy answer."""
    ids = [BOS_ID] + tok.encode(f"[INST] {question} [/INST]", add_special_tokens=False).ids
    out = model.generate(torch.tensor([ids], device=model.device), attention_mask=torch.ones(1, len(ids), device=model.device),
                         max_new_tokens=limit, do_sample=False, pad_token_id=PAD_ID, eos_token_id=EOS_ID)
    return tok.decode(out[0, len(ids):].tolist(), skip_special_tokens=True)


def check(out, device):
    """What the saved model knows: loss on documents never seen, and the share of right answers by kind of question."""
    model, tok = load(out, device), Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
    rows = encode(tok, world.documents(99, 2000))
    source = batches(rows, 8192, random.Random(4))
    with torch.no_grad():
        held_out = sum(loss_of(model, device, *next(source)).item() for _ in range(10)) / 10
    rng, right = random.Random(5), {}
    for make, _ in world.CHATS:
        asked = [make(rng) for _ in range(25)]
        answers = [reply(model, tok, q) for q, _ in asked]
        right[make.__name__] = sum(a == b for (_, a), b in zip(asked, answers)) / len(asked)
        print(f"{make.__name__}: {asked[0][0]}\n  {answers[0]}", flush=True)
    return dict(held_out_loss=round(held_out, 4), right_answers=right)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    ap = argparse.ArgumentParser()
    ap.add_argument("--out", default=os.path.join(here, "models", "lantern-2m"))
    ap.add_argument("--steps", type=int, default=8000)
    ap.add_argument("--documents", type=int, default=400000)
    ap.add_argument("--step-tokens", type=int, default=32768)
    ap.add_argument("--threads", type=int, default=0)
    args = ap.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    start = time.time()
    documents = world.documents(1, args.documents)
    tok = train_tokenizer(documents[:20000])
    rows = encode(tok, documents)
    print(f"{len(rows)} documents, {sum(map(len, rows)):,} tokens, {time.time() - start:.0f} s", flush=True)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters on {device}", flush=True)
    record = dict(parameters=parameters, documents=len(rows), tokens=sum(map(len, rows)),
                  device=torch.cuda.get_device_name() if device == "cuda" else "cpu", torch=torch.__version__)
    record.update(train(model, device, rows, args.steps, args.step_tokens))
    save(args.out, model, tok)
    record.update(check(args.out, device))
    dump(args.out, "training.json", record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
