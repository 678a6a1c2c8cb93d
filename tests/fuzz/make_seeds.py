#!/usr/bin/env python3
"""Small seed inputs for the fuzz targets.

  make_seeds.py FOLDER

Writes FOLDER/TARGET/NAME for every target.  Needs only Python's own library; the same bytes every time.
"""
import gzip
import json
import os
import struct
import sys


def put(root, target, name, data):
    folder = os.path.join(root, target)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


# ---- safetensors

def tensor_file(tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, dtype, shape, raw in tensors:
        header[name] = dict(dtype=dtype, shape=shape, data_offsets=[len(data), len(data) + len(raw)])
        data += raw
    h = json.dumps(header, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    return struct.pack("<Q", len(h)) + h + data


def safetensors(root):
    f32 = struct.pack("<4f", 1, -2, 0.5, 1e-40)
    one = ("a", "F32", [2, 2], f32)
    put(root, "fuzz_safetensors", "one", tensor_file([one], {"format": "pt"}))
    put(root, "fuzz_safetensors", "three", tensor_file([
        one, ("layers.0.b", "BF16", [3], b"\x80\x3f\x00\xc0\x01\x00"), ("c", "F16", [1, 1, 1], b"\x01\x00"),
        ("d", "I64", [0], b""), ("e", "F32", [], f32[:4])]))
    put(root, "fuzz_safetensors", "empty", tensor_file([]))
    put(root, "fuzz_safetensors", "cut", tensor_file([one])[:-3])
    put(root, "fuzz_safetensors", "long_header", struct.pack("<Q", 1 << 40) + b"{}")


# ---- SentencePiece

def varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return out


def number(field, v):
    return varint(field << 3) + varint(v)


def text(field, raw):
    return varint(field << 3 | 2) + varint(len(raw)) + raw


def piece(s, score=0.0, kind=1):
    return text(1, text(1, s.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number(3, kind))


def model(pieces, kind=2, fallback=0, normalizer=b""):
    head = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    return head + b"".join(pieces) + text(2, number(3, kind) + number(35, fallback)) + text(3, normalizer)


def sentencepiece(root):
    words = [piece(s, -i) for i, s in enumerate(["aa", "ab", "\u2581a", "ll", "\u2581", "a", "b", "l", "o", "\u00e9"])]
    every = [piece("<0x%02X>" % i, 0, 6) for i in range(256)]
    t = "fuzz_tokenizer_model"
    put(root, t, "plain", model(words))
    put(root, t, "bytes", model(every + words, fallback=1))
    put(root, t, "squeeze", model(words, normalizer=number(3, 1) + number(4, 1) + number(5, 0)))
    put(root, t, "user_unused", model(words + [piece("<s>x", 0, 4), piece("aaa", 1, 5), piece("aaaa", 2)],
                                      normalizer=number(4, 0)))
    put(root, t, "unigram", model(words, kind=1))
    put(root, t, "mapped", model(words, normalizer=text(1, b"nmt_nfkc") + text(2, b"\0\1\2\3")))


# ---- tokenizer.json

def alphabet():
    itself = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    shown = {b: chr(b) for b in itself}
    for k, b in enumerate(b for b in range(256) if b not in shown):
        shown[b] = chr(256 + k)
    return [shown[b] for b in range(256)]


def tokenizer(words, merges, pre, **rest):
    vocab = {c: i for i, c in enumerate(alphabet())}
    for w in words:
        vocab[w] = len(vocab)
    m = dict(type="BPE", vocab=vocab, merges=merges, **rest.pop("model", {}))
    return json.dumps(dict(pre_tokenizer=pre, model=m, **rest), ensure_ascii=False, separators=(",", ":"))


def tokenizer_json(root):
    t, byte_level = "fuzz_tokenizer_json", dict(type="ByteLevel", add_prefix_space=False, use_regex=True)
    words, merges = ["aa", "ab", "aab", "ll", "\u0120w"], ["a a", "a b", "a ab", "l l", "\u0120 w"]
    split = dict(type="Split", pattern=dict(Regex=r"\p{N}{1,3}| ?\p{L}+|\s+(?!\S)|\s+"), behavior="Isolated", invert=False)
    added = [dict(id=261, content="<s>", special=True), dict(id=262, content="<t>", special=False)]
    put(root, t, "gpt2", tokenizer(words, merges, byte_level))
    put(root, t, "pairs", tokenizer(words, [m.split(" ") for m in merges],
                                    dict(type="Sequence", pretokenizers=[split, dict(byte_level, use_regex=False)]),
                                    model=dict(ignore_merges=True), added_tokens=added))
    put(root, t, "config", tokenizer(words, merges, byte_level, added_tokens=added, normalizer=dict(type="NFC")) +
        "\n%%\n" + json.dumps(dict(bos_token="<s>", eos_token=dict(content="<e>"), model_max_length=10 ** 30,
                                   added_tokens_decoder={"263": dict(content="<e>", special=True)})))
    chars = {c: i for i, c in enumerate(["<unk>", "\u2581", "a", "b", "\u2581a", "l", "<0xFF>"])}
    llama = dict(
        normalizer=dict(type="Sequence", normalizers=[dict(type="Prepend", prepend="\u2581"),
                                                      dict(type="Replace", pattern=dict(String=" "), content="\u2581")]),
        decoder=dict(type="Sequence", decoders=[dict(type="Strip", content=" ", start=1, stop=0)]),
        model=dict(type="BPE", unk_token="<unk>", fuse_unk=True, byte_fallback=True, vocab=chars,
                   merges=["\u2581 a"]))
    put(root, t, "llama", json.dumps(llama))
    put(root, t, "metaspace", json.dumps(dict(llama, normalizer=None, pre_tokenizer=dict(
        type="Sequence", pretokenizers=[dict(type="Metaspace", replacement="\u2581", prepend_scheme="first", split=True),
                                        dict(type="Digits", individual_digits=True)]))))


# ---- JSON

def plain_json(root):
    t = "fuzz_json"
    put(root, t, "object", '{"a": {"b": [1, {"c": -2.5e3}], "x": "\\u00e9\\n"}, "k": null,\n "z": [true, false]}')
    put(root, t, "deep", "[" * 64 + "]" * 64)
    put(root, t, "too_deep", "[" * 65 + "]" * 65)
    put(root, t, "string", '"a\\"[{\\\\"')
    put(root, t, "twice", '{"a":1,"a":2}')
    put(root, t, "bytes", b'{"\xff":1}')
    put(root, t, "number", "-0.0")
    put(root, t, "nul", b'{"a": [1\0, 2], "b": 3}')


# ---- dataset files: the first byte is the format (fuzz_dataset.c)

def dataset(root):
    rows = [{"instruction": "q", "input": "i", "output": "a"}, {"prompt": "p", "completion": "c"}, {"text": "t"},
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "u"}]},
                          {"role": "assistant", "content": "a"}]},
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}]},
            {"instruction": "i", "instances": [{"input": "", "output": "o"}]},
            {"question": "q", "answer": 1.5, "history": [["a", "b"]], "system": "s"}]
    lines = "".join(json.dumps(r) + "\n" for r in rows)
    table = 'question{0}answer\r\n"a{0}""b""\nc"{0}d\r\n\r\ne{0}f'
    put(root, "fuzz_dataset", "jsonl", "\0" + lines)
    put(root, "fuzz_dataset", "json", "\1" + json.dumps(rows, indent=1))
    put(root, "fuzz_dataset", "json_data", "\1" + json.dumps({"v": [1], "data": rows, "n": {}}))
    put(root, "fuzz_dataset", "csv", "\2\ufeff" + table.format(","))
    put(root, "fuzz_dataset", "tsv", "\3" + table.format("\t"))
    put(root, "fuzz_dataset", "gz", b"\4" + gzip.compress(json.dumps(rows).encode(), mtime=0) * 2)
    put(root, "fuzz_dataset", "spec", "\5" + json.dumps({
        "splits": {"train": ["train.jsonl"]}, "features": {"instruction": "prompt", "response": "completion"},
        "template": "plain", "metadata": {"tags": ["x"]}}))


# ---- tables: the first byte is the separator (fuzz_csv.c)

def table(root):
    for name, first, sep in (("comma", "\0", ","), ("tab", "\1", "\t")):
        put(root, "fuzz_csv", name, first + 'question{0}answer\r\n"a{0}""b""\nc"{0}d\r\n\r\ne{0}f\n'.replace("{0}", sep))
        put(root, "fuzz_csv", "halves_" + name, f"{first}q{sep}a\n".encode() + b"\xc3" + sep.encode() + b"\xa9\n")
        put(root, "fuzz_csv", "one_column_" + name, first + '\ufeffa\n""\n\n"x"y\nz')


# ---- adapters of the base in fuzz_adapter.c

def adapter(root):
    sizes = dict(q_proj=(4, 4), k_proj=(2, 4), v_proj=(2, 4), o_proj=(4, 4), gate_proj=(6, 4), up_proj=(6, 4), down_proj=(4, 6))
    for name, targets, rank, more in (("two", ["q_proj", "v_proj"], 1, {}), ("all", list(sizes), 2, dict(use_rslora=True)),
                                      ("linear", "all-linear", 1, dict(lora_dropout=0.1)), ("dora", ["q_proj"], 1, dict(use_dora=True))):
        config = dict(dict(peft_type="LORA", r=rank, lora_alpha=16, target_modules=targets, bias="none"), **more)
        tensors = []
        for layer in range(2):
            for t in sizes if targets == "all-linear" else targets:
                rows, cols = sizes[t]
                part = "self_attn" if t[0] in "qkvo" else "mlp"
                for m, shape in (("A", [rank, cols]), ("B", [rows, rank])):
                    tensors.append(("base_model.model.model.layers.%d.%s.%s.lora_%s.weight" % (layer, part, t, m), "BF16", shape,
                                    b"\x80\x3f" * (shape[0] * shape[1])))
        put(root, "fuzz_adapter", name, json.dumps(config).encode() + b"\n%%\n" + tensor_file(tensors))


# ---- base models (fuzz_model.c)

def base_model(root):
    h, ffn, kv, vocab = 4, 6, 2, 258
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", num_hidden_layers=1, hidden_size=h, intermediate_size=ffn,
                  num_attention_heads=2, num_key_value_heads=1, vocab_size=vocab, max_position_embeddings=64, rms_norm_eps=1e-5,
                  rope_theta=10000.0, tie_word_embeddings=True, torch_dtype="bfloat16",
                  bos_token_id=0, eos_token_id=1)
    shapes = {"model.embed_tokens.weight": [vocab, h], "model.norm.weight": [h], "input_layernorm.weight": [h],
              "post_attention_layernorm.weight": [h], "self_attn.q_proj.weight": [h, h], "self_attn.k_proj.weight": [kv, h],
              "self_attn.v_proj.weight": [kv, h], "self_attn.o_proj.weight": [h, h], "mlp.gate_proj.weight": [ffn, h],
              "mlp.up_proj.weight": [ffn, h], "mlp.down_proj.weight": [h, ffn]}
    size = lambda shape: shape[0] * (shape[1] if len(shape) > 1 else 1)
    tensors = [(n if n.startswith("model.") else "model.layers.0." + n, "BF16", s, b"\x80\x3f" * size(s)) for n, s in shapes.items()]
    words = tokenizer(["aa", "ab"], ["a a", "a b"], dict(type="ByteLevel", add_prefix_space=False, use_regex=True))
    index = dict(weight_map={t[0]: "ab"[i % 2] + ".safetensors" for i, t in enumerate(tensors)})
    join = lambda *parts: b"\n%%\n".join(p if isinstance(p, bytes) else p.encode() for p in parts)
    put(root, "fuzz_model", "one", join(json.dumps(config), "", tensor_file(tensors), "", words))
    put(root, "fuzz_model", "shards", join(json.dumps(config), json.dumps(index), tensor_file(tensors[::2]), tensor_file(tensors[1::2]), words))
    put(root, "fuzz_model", "cut", join(json.dumps(config), json.dumps(index), tensor_file(tensors[::2])[:-3], b"", words))
    put(root, "fuzz_model", "outside", join(json.dumps(config), json.dumps(dict(weight_map={"x": "../a.safetensors"})), b"x", b"", words))
    put(root, "fuzz_model", "qwen2", join(json.dumps(dict(config, architectures=["Qwen2ForCausalLM"], model_type="qwen2", sliding_window=8,
                                                          rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0,
                                                                            high_freq_factor=4.0, original_max_position_embeddings=32))), ""))


# ---- saved states: the first byte says what the target puts right (fuzz_restore.c)

def state(root):
    counters = lambda *n: struct.pack("<4q", *n)
    head = b"DTXJOB1\n" + b"0" * 64
    for name, body in (("fresh", counters(0, 0, 0, 0)), ("going_on", counters(2, 1, 1, 0) + struct.pack("<6f", 1, -1, 0, 1e30, 1e-40, float("nan"))),
                       ("at_end", counters(6, 6, 0, 0)), ("too_far", counters(7, 7, 0, 0)), ("negative", counters(-1, 0, -1, 0))):
        for first in (0, 3, 7):
            put(root, "fuzz_restore", "%s_%d" % (name, first), bytes([first]) + head + body)


# ---- specs, prompts

def specs(root):
    t = "fuzz_spec"
    put(root, t, "group", json.dumps({"learning_rate": 2e-4, "lora_r": 8, "target_modules": ["q_proj"], "save_every": "10%"}))
    put(root, t, "datatunerx", json.dumps({"kind": "Hyperparameter", "spec": {"objective": {"type": "SFT"}, "parameters": {
        "loRA_R": "4", "loRA_Alpha": "32", "learningRate": "0.001", "int4": False, "PEFT": True, "scheduler": "Cosine"}}}))
    put(root, t, "evaluation", json.dumps({"questions": [{"question": "q", "reference": "r"}], "metrics": {"rougeL": 1, "exact_match": 0.5}}))
    put(root, t, "lists", json.dumps({"models": ["a", "tuned/b.best"], "datasets": ["c"], "paramgroups": ["d"], "seeds": [1, 2],
                                      "evaluation": None, "priority": 3}))
    put(root, t, "jobs", json.dumps({"jobs": [{"name": "x", "model": "a", "dataset": "b", "paramgroup": "c", "overrides": {"lora_r": 2}}]}))
    put(root, t, "dataset", json.dumps({"splits": {"train": ["a.jsonl"]}, "features": {"instruction": "q"}, "metadata": {"tags": ["x"]}}))
    put(root, t, "service", json.dumps({"model": "tuned/e.best"}))
    put(root, t, "plugin", json.dumps({"command": ["./run", "--x"], "metrics": ["a"]}))
    put(root, t, "prompt", '---\n{"models": ["a"], "max_new_tokens": 9}\n---\nHello?\n')
    put(root, "fuzz_prompt", "settings", '{"models": ["a", "tuned/b"], "max_new_tokens": 9, "temperature": 0.5}')
    put(root, "fuzz_prompt", "empty", "{}")
    put(root, "fuzz_prompt", "crlf", '{\r\n"seed": 3\r\n}\r\n---\r\nthe prompt\r\n---')
    put(root, "fuzz_prompt", "plain", b"\xffWhat is a lantern?\n---\n")
    put(root, "fuzz_prompt", "open", b"\xff---\n{}\n")


# ---- paths, words

def paths(root):
    for i, path in enumerate((
            "", "README.md", "bin/dtx", "templates/paramgroup.json", "schemas/experiment.json", "datasets/d/a/b.jsonl", "datasets/d.status",
            "models/base/m/config.json", "models/by-base/m/e.01-a", "models/tuned/e.01-a/adapter_config.json", "models/compare/p.txt",
            "experiments/e/jobs/01-a/control", "experiments/e.json", "experiments/e/report.html", "services/s/ask/q.txt", "services/s/stats",
            "devices/cpu0/status", "plugins/scoring/p/run", "paramgroups/.x.json.swp", "a//b", "../x")):
        put(root, "fuzz_layout", str(i), path)
    for i, words in enumerate(("pause\n", "resume", "cancel\nretry\n", "stop start", "\t stop\r\n", "retry\0", "pause " * 43)):
        put(root, "fuzz_control", str(i), words)


# ---- messages of FUSE, and what is kept of open files (fuzz_channel.c, fuzz_passthrough.c, fuzz_handles.c)

def messages(root):
    request, reply, parts, next_open = 0, 1, 2, 3
    step = lambda what, raw: bytes([what, (len(raw) + 7) // 8]) + raw + b"\0" * (-len(raw) % 8)
    ask = lambda opcode, unique, body, uid=1000: struct.pack("<IIQQIIII", 40 + len(body), opcode, unique, 1, uid, 0, 1, 0) + body
    answer = lambda unique, body, error=0: struct.pack("<IiQ", 16 + len(body), error, unique) + body
    init = struct.pack("<IIIII", 7, 45, 131072, 0x73fffffb, 0xff) + b"\0" * 44
    agreed = struct.pack("<IIIIHHIIHHI", 7, 38, 131072, 1 << 30, 12, 9, 1 << 20, 1, 256, 0, 0) + b"\0" * 28
    opened = struct.pack("<QII", 9, 2, 0)
    start = step(request, ask(26, 2, init)) + step(reply, answer(2, agreed))
    for flag in range(4):
        put(root, "fuzz_channel", "open_%d" % flag, bytes([flag]) + start + step(request, ask(14, 4, struct.pack("<II", 0x8002, 1))) +
            step(next_open, b"") + step(reply, answer(4, opened)) + step(reply, answer(6, opened)))
    put(root, "fuzz_channel", "create", b"\0" + step(request, ask(35, 4, b"\0" * 16 + b"name\0")) + step(next_open, b"") +
        step(reply, answer(4, b"\0" * 128 + opened)))
    put(root, "fuzz_channel", "refused", b"\0" + step(next_open, b"") + step(reply, answer(4, b"", -5)) + step(parts, answer(6, opened)))
    put(root, "fuzz_channel", "kill", b"\0" + b"".join(step(request, ask(op, 8 + op, struct.pack("<IIQQI", 1 << 11, 4, 0, 0, 4) + b"\0" * 60, uid))
                                                      for op in (4, 14, 16, 43, 47) for uid in (0, 1000)))
    put(root, "fuzz_channel", "again", b"\1" + init + step(request, ask(12, 1 << 63 | 10, b"\0" * 8)) + step(4, b"") + step(reply, answer(10, b"")))
    put(root, "fuzz_channel", "short", b"\0" + step(request, b"\0" * 8) + step(request, ask(26, 2, b"")[:40]) + step(request, ask(16, 4, b"")))
    for name, steps in (("open", "000 001 010 100"), ("restored", "201 211 001 100 100"), ("seen", "000 002 012 100 002")):
        for refuses in range(4):
            put(root, "fuzz_passthrough", "%s_%d" % (name, refuses), bytes([refuses]) + bytes(int(c) for c in steps.replace(" ", "")))
    for kind in range(5):
        node = struct.pack("<QQQQQqII", 7 + kind, 1, 1, 1, 1234, 5, 0, 0)
        put(root, "fuzz_handles", str(kind), (bytes([3]) + struct.pack("<Q", 1 << 32 | kind) + node + struct.pack("<QqIIIIBBBBII", 2, 0, kind, 1000, 1000, 1,
                                                                                                          1, 0, 0, 1, 1, 1)).ljust(265, b"\0") * 2)
        put(root, "fuzz_handles", "noted_%d" % kind, (bytes([5]) + struct.pack("<Q", 1 << 32 | kind) + node + struct.pack("<QqIIIIBBBBIIi", 2, 0, kind, 1000, 1000, 1,
                                                                                                                 1, 0, 1, 1, 1, 1, 2)).ljust(265, b"\0") * 2)


def main():
    for make in (safetensors, sentencepiece, tokenizer_json, plain_json, dataset, table, adapter, base_model, state, specs, paths, messages):
        make(sys.argv[1])


if __name__ == "__main__":
    main()
