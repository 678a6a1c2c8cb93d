/*
 * A tiny Llama model and a tiny dataset, made by a test, so that no test needs a model from elsewhere.
 *
 *   tiny_model_make(dirfd, "tree/models/base/tiny", 1)   config.json, model.safetensors (float32),
 * tokenizer.json tiny_dataset_make(dirfd, "tree/datasets/words", 24, 6)   train.jsonl and validation.jsonl
 * (none when 0 rows)
 *
 * The weights are random but keyed by the seed: the same files every time.  The tokenizer is byte-level BPE
 * without merges: one token a byte (ids 0 to 255 in the order of GPT-2's byte alphabet) and the special
 * tokens of Llama 3 from 256 on.
 */
#ifndef TINY_MODEL_H
#define TINY_MODEL_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/safetensors.h"
#include "scheduler/base/buf.h"
#include "scheduler/base/fdio.h"

enum {
    TINY_LAYERS = 2,
    TINY_HIDDEN = 32,
    TINY_FFN = 48,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_VOCAB = 264,
    TINY_POSITIONS = 256
};

static inline float tiny_random(uint64_t *state) /* about normal: the sum of four uniform numbers */
{
    float sum = 0;

    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005ull + 1442695040888963407ull;
        sum += (float)(*state >> 40) / 16777216.0f - 0.5f;
    }
    return sum * 1.7f;
}

static inline void tiny_tensor(struct st_tensor *t, const char *name, int rows, int columns, float scale,
                               uint64_t *rng)
{
    uint64_t n = (uint64_t)rows * (uint64_t)(columns ? columns : 1);
    float *w = malloc(n * sizeof(float));

    *t = (struct st_tensor){.name = strdup(name),
                            .type = ST_F32,
                            .ndim = columns ? 2 : 1,
                            .shape = {rows, columns},
                            .elements = n,
                            .nbytes = n * sizeof(float),
                            .data = w};
    for (uint64_t i = 0; i < n; i++)
        w[i] = columns ? tiny_random(rng) * scale : 1.0f; /* a vector is a norm's weight */
}

static inline size_t tiny_layer(struct st_tensor *t, int layer, uint64_t *rng)
{
    const int kv = TINY_KV_HEADS * (TINY_HIDDEN / TINY_HEADS);
    const struct {
        const char *name;
        int rows, columns;
    } parts[] = {
        {"input_layernorm", TINY_HIDDEN, 0},
        {"self_attn.q_proj", TINY_HIDDEN, TINY_HIDDEN},
        {"self_attn.k_proj", kv, TINY_HIDDEN},
        {"self_attn.v_proj", kv, TINY_HIDDEN},
        {"self_attn.o_proj", TINY_HIDDEN, TINY_HIDDEN},
        {"post_attention_layernorm", TINY_HIDDEN, 0},
        {"mlp.gate_proj", TINY_FFN, TINY_HIDDEN},
        {"mlp.up_proj", TINY_FFN, TINY_HIDDEN},
        {"mlp.down_proj", TINY_HIDDEN, TINY_FFN},
    };
    size_t n = sizeof(parts) / sizeof(*parts);

    for (size_t i = 0; i < n; i++) {
        char name[128];

        snprintf(name, sizeof(name), "model.layers.%d.%s.weight", layer, parts[i].name);
        tiny_tensor(&t[i], name, parts[i].rows, parts[i].columns, 0.15f, rng);
    }
    return n;
}

static inline int tiny_weights(int dirfd, const char *dir, uint64_t seed)
{
    struct st_tensor t[3 + 9 * TINY_LAYERS];
    uint64_t rng = seed * 0x9e3779b97f4a7c15ull + 1;
    char path[512];
    size_t n = 0;
    struct dtx_err e = {0};
    int rc;

    tiny_tensor(&t[n++], "model.embed_tokens.weight", TINY_VOCAB, TINY_HIDDEN, 0.5f, &rng);
    for (int i = 0; i < TINY_LAYERS; i++)
        n += tiny_layer(t + n, i, &rng);
    tiny_tensor(&t[n++], "model.norm.weight", TINY_HIDDEN, 0, 1, &rng);
    tiny_tensor(&t[n++], "lm_head.weight", TINY_VOCAB, TINY_HIDDEN, 0.3f, &rng);
    snprintf(path, sizeof(path), "%s/model.safetensors", dir);
    rc = st_write(dirfd, path, t, n, &e);
    if (rc)
        fprintf(stderr, "tiny_model: %s\n", e.msg);
    for (size_t i = 0; i < n; i++) {
        free(t[i].name);
        free((void *)(uintptr_t)t[i].data);
    }
    return rc;
}

static inline int tiny_put(int dirfd, const char *dir, const char *name, struct buf *text)
{
    char path[512];
    struct dtx_err e = {0};
    int rc;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    rc = fd_replace_file(dirfd, path, text->p, text->len, 0644, &e);
    if (rc)
        fprintf(stderr, "tiny_model: %s\n", e.msg);
    buf_release(text);
    return rc;
}

/* GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and up. */
static inline void tiny_byte_char(struct buf *b, int byte, int *next)
{
    int c = byte;
    char utf8[2];

    if (!((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174))
        c = 256 + (*next)++;
    if (c < 128) {
        utf8[0] = (char)c;
        buf_add_json(b, utf8, 1);
        return;
    }
    utf8[0] = (char)(0xc0 | c >> 6);
    utf8[1] = (char)(0x80 | (c & 63));
    buf_add_json(b, utf8, 2);
}

static const char *const tiny_specials[] = {"<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                            "<|end_header_id|>", "<|eot_id|>",      "<|eom_id|>",
                                            "<|pad|>",           "<|python_tag|>"};

static inline int tiny_tokenizer(int dirfd, const char *dir)
{
    struct buf b = BUF_INIT;
    int next = 0;

    buf_adds(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (int i = 0; i < 8; i++)
        buf_addf(&b,
                 "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                 "\"normalized\":false,\"special\":true}",
                 i ? "," : "", 256 + i, tiny_specials[i]);
    buf_adds(&b,
             "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":"
             "\"Split\","
             "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
             "\\\\p{N}{1,3}| "
             "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
             "\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
             "\"trim_offsets\":true,\"use_regex\":false}]},\"post_processor\":null,\"decoder\":{\"type\":"
             "\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},\"model\":{"
             "\"type\":"
             "\"BPE\",\"dropout\":null,\"unk_token\":null,\"continuing_subword_prefix\":null,"
             "\"end_of_word_suffix\":null,\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":true,"
             "\"vocab\":{");
    for (int i = 0; i < 256; i++) {
        if (i)
            buf_addc(&b, ',');
        tiny_byte_char(&b, i, &next);
        buf_addf(&b, ":%d", i);
    }
    buf_adds(&b, "},\"merges\":[]}}");
    return tiny_put(dirfd, dir, "tokenizer.json", &b);
}

static inline int tiny_model_make(int dirfd, const char *dir, uint64_t seed)
{
    struct buf b = BUF_INIT;

    if (fd_mkdirs(dirfd, dir, 0755, NULL) || tiny_weights(dirfd, dir, seed) || tiny_tokenizer(dirfd, dir))
        return -1;
    buf_addf(
        &b,
        "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":%d,"
        "\"intermediate_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,"
        "\"num_key_value_heads\":%d,\"vocab_size\":%d,\"max_position_embeddings\":%d,\"rms_norm_eps\":1e-05,"
        "\"rope_theta\":10000.0,\"hidden_act\":\"silu\",\"tie_word_embeddings\":false,\"bos_token_id\":256,"
        "\"eos_token_id\":257,\"attention_bias\":false,\"torch_dtype\":\"float32\"}\n",
        TINY_HIDDEN, TINY_FFN, TINY_LAYERS, TINY_HEADS, TINY_KV_HEADS, TINY_VOCAB, TINY_POSITIONS);
    if (tiny_put(dirfd, dir, "config.json", &b))
        return -1;
    buf_adds(&b, "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"bos_token\":\"<|begin_of_text|>\","
                 "\"eos_token\":\"<|end_of_text|>\",\"model_max_length\":256}\n");
    return tiny_put(dirfd, dir, "tokenizer_config.json", &b);
}

/* Rows with something to learn: "say the letter after c" -> "d d d". */
static inline int tiny_rows(int dirfd, const char *dir, const char *file, int rows, int from)
{
    struct buf b = BUF_INIT;

    for (int i = from; i < from + rows; i++)
        buf_addf(&b, "{\"instruction\":\"%s %c?\",\"response\":\"%c%c%c\"}\n", i % 3 ? "after" : "next",
                 'a' + i % 25, 'b' + i % 25, 'b' + i % 25, i % 2 ? '.' : '!');
    return tiny_put(dirfd, dir, file, &b);
}

static inline int tiny_dataset_make(int dirfd, const char *dir, int train, int validation)
{
    if (fd_mkdirs(dirfd, dir, 0755, NULL) || tiny_rows(dirfd, dir, "train.jsonl", train, 0))
        return -1;
    return validation ? tiny_rows(dirfd, dir, "validation.jsonl", validation, 7) : 0;
}

#endif
