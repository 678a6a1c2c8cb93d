#!/usr/bin/env python3
"""A model folder with random weights at a real shape, for oracles and benchmarks on a GPU machine.

  make_model.py SHAPE DIR [--layers N] [--shards N]      SHAPE: 7b, 8b, 1b

config.json, bf16 safetensors (sharded with an index), and a tokenizer.json of the right size that only tests use.
"""
import argparse, json, os
import torch
from safetensors.torch import save_file

SHAPES = {  # Llama-2-7B, Llama-3-8B, TinyLlama-1.1B
    "7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=32, vocab_size=32000, rope_theta=10000.0, rms_norm_eps=1e-5),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
               num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0, rms_norm_eps=1e-5),
    "1b": dict(hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
               num_key_value_heads=4, vocab_size=32000, rope_theta=10000.0, rms_norm_eps=1e-5),
}


def byte_alphabet():
    """GPT-2's printable alphabet for bytes."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    extra = [b for b in range(256) if b not in keep]
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(len(extra))]


def tokenizer(vocab_size):
    vocab = {"<s>": 1, "</s>": 2, "<unk>": 0}
    for i, c in enumerate(byte_alphabet()):
        vocab[c] = 3 + i
    for i in range(3 + 256, vocab_size):
        vocab[f"<filler{i}>"] = i
    added = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
             for t, i in (("<unk>", 0), ("<s>", 1), ("</s>", 2))]
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added, normalizer=None,
                pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True),
                post_processor=None, decoder=dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
                model=dict(type="BPE", dropout=None, unk_token=None, continuing_subword_prefix=None,
                           end_of_word_suffix=None, fuse_unk=False, byte_fallback=False, vocab=vocab, merges=[]))


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("shape", choices=SHAPES)
    ap.add_argument("dir")
    ap.add_argument("--layers", type=int)
    ap.add_argument("--shards", type=int, default=4)
    a = ap.parse_args()
    c = dict(SHAPES[a.shape])
    if a.layers:
        c["num_hidden_layers"] = a.layers
    os.makedirs(a.dir, exist_ok=True)
    h, f, v = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    kv = h // c["num_attention_heads"] * c["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (v, h), "model.norm.weight": (h,), "lm_head.weight": (v, h)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes |= {p + "input_layernorm.weight": (h,), p + "post_attention_layernorm.weight": (h,),
                   p + "self_attn.q_proj.weight": (h, h), p + "self_attn.k_proj.weight": (kv, h),
                   p + "self_attn.v_proj.weight": (kv, h), p + "self_attn.o_proj.weight": (h, h),
                   p + "mlp.gate_proj.weight": (f, h), p + "mlp.up_proj.weight": (f, h), p + "mlp.down_proj.weight": (h, f)}
    g = torch.Generator(device="cuda").manual_seed(0)
    names, index = list(shapes), {}
    per = -(-len(names) // a.shards)
    for s in range(a.shards):
        part, file = {}, f"model-{s + 1:05d}-of-{a.shards:05d}.safetensors"
        for n in names[s * per:(s + 1) * per]:
            t = torch.randn(shapes[n], generator=g, device="cuda", dtype=torch.float32)
            t = 1 + 0.02 * t if len(shapes[n]) == 1 else 0.02 * t
            part[n] = t.to(torch.bfloat16).cpu().contiguous()
            index[n] = file
        save_file(part, os.path.join(a.dir, file), metadata={"format": "pt"})
    dump = lambda name, obj: json.dump(obj, open(os.path.join(a.dir, name), "w"))
    dump("model.safetensors.index.json", dict(metadata={}, weight_map=index))
    dump("config.json", dict(c, architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu",
                             max_position_embeddings=16384, tie_word_embeddings=False, attention_bias=False,
                             torch_dtype="bfloat16", bos_token_id=1, eos_token_id=2))
    dump("tokenizer.json", tokenizer(v))
    dump("tokenizer_config.json", dict(bos_token="<s>", eos_token="</s>", tokenizer_class="PreTrainedTokenizerFast"))


if __name__ == "__main__":
    main()
