/* Everything about a base model that can be known without reading its weights. */
#include "kernels/safetensors.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TENSOR_NAME = 96 };

struct check {
    const struct dtx_model_config *c;
    const struct st_set *set;
    bool *seen; /* by tensor of the set */
    struct dtx_err *e;
};

static void shape_text(const int64_t *shape, int ndim, char *out, size_t n)
{
    size_t at = (size_t)snprintf(out, n, "[");

    for (int i = 0; i < ndim && at < n; i++)
        at += (size_t)snprintf(out + at, n - at, "%s%" PRId64, i ? ", " : "", shape[i]);
    if (at < n)
        snprintf(out + at, n - at, "]");
}

/* One tensor that must be there, of shape [rows, columns], or [rows] when columns is 0. */
static int expect(struct check *k, const char *name, int64_t rows, int64_t columns)
{
    const struct st_tensor *t = st_find(k->set, name);
    int64_t want[2] = {rows, columns};
    int ndim = columns ? 2 : 1;

    if (!t)
        return dtx_fail(k->e, -EINVAL,
                        "tensor %s is missing: the weights do not belong to config.json, or a file is "
                        "missing: copy the model again",
                        name);
    k->seen[t - st_at(k->set, 0)] = true;
    if (t->ndim != ndim || t->shape[0] != rows || (columns && t->shape[1] != columns)) {
        char is[128], should[64];
        shape_text(t->shape, t->ndim, is, sizeof(is));
        shape_text(want, ndim, should, sizeof(should));
        return dtx_fail(k->e, -EINVAL,
                        "tensor %s has shape %s, config.json asks for %s: the weights and config.json "
                        "are of different models",
                        name, is, should);
    }
    if (t->type == ST_OTHER)
        return dtx_fail(k->e, -EINVAL,
                        "tensor %s is neither F32 nor F16 nor BF16 (quantized?): copy the unquantized "
                        "model",
                        name);
    return 0;
}

static int expect_in_layer(struct check *k, int layer, const char *part, int64_t rows, int64_t columns)
{
    char name[MAX_TENSOR_NAME];

    snprintf(name, sizeof(name), "model.layers.%d.%s", layer, part);
    return expect(k, name, rows, columns);
}

static int expect_layer(struct check *k, int layer)
{
    const struct dtx_model_config *c = k->c;
    int64_t h = c->hidden, f = c->ffn, q = (int64_t)c->heads * c->head_dim,
            kv = (int64_t)c->kv_heads * c->head_dim;
    const struct {
        const char *part;
        int64_t rows, columns;
        bool bias;
    } parts[] = {
        {"input_layernorm.weight", h, 0, false},
        {"self_attn.q_proj.weight", q, h, false},
        {"self_attn.k_proj.weight", kv, h, false},
        {"self_attn.v_proj.weight", kv, h, false},
        {"self_attn.q_proj.bias", q, 0, true},
        {"self_attn.k_proj.bias", kv, 0, true},
        {"self_attn.v_proj.bias", kv, 0, true},
        {"self_attn.o_proj.weight", h, q, false},
        {"post_attention_layernorm.weight", h, 0, false},
        {"mlp.gate_proj.weight", f, h, false},
        {"mlp.up_proj.weight", f, h, false},
        {"mlp.down_proj.weight", h, f, false},
    };
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(parts) / sizeof(parts[0]); i++)
        if (!parts[i].bias || c->attention_bias)
            rc = expect_in_layer(k, layer, parts[i].part, parts[i].rows, parts[i].columns);
    return rc;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n >= m && strcmp(s + n - m, end) == 0;
}

/* A tensor that nothing uses means another architecture, unless it can be computed or is a copy. */
static int refuse_others(struct check *k)
{
    for (size_t i = 0; i < st_count(k->set); i++) {
        const char *name = st_at(k->set, i)->name;
        if (k->seen[i] || ends_with(name, "rotary_emb.inv_freq"))
            continue;
        if (k->c->tied_head && strcmp(name, "lm_head.weight") == 0)
            continue;
        return dtx_fail(k->e, -EINVAL,
                        "tensor %.200s does not belong to a %s of %d layers: the weights and "
                        "config.json are of different models",
                        name, k->c->arch, k->c->layers);
    }
    return 0;
}

static int check_tensors(struct check *k)
{
    const struct dtx_model_config *c = k->c;
    int rc = expect(k, "model.embed_tokens.weight", c->vocab, c->hidden);

    for (int i = 0; rc == 0 && i < c->layers; i++)
        rc = expect_layer(k, i);
    if (rc == 0)
        rc = expect(k, "model.norm.weight", c->hidden, 0);
    if (rc == 0 && !c->tied_head)
        rc = expect(k, "lm_head.weight", c->vocab, c->hidden);
    return rc ? rc : refuse_others(k);
}

static int check_weights(int dirfd, const char *dir, struct dtx_model_config *c, struct dtx_err *e)
{
    static const char *const types[] = {[ST_F32] = "F32", [ST_F16] = "F16", [ST_BF16] = "BF16"};
    struct check k = {.c = c, .e = e};
    struct st_set *set;
    int rc = st_open_model(dirfd, dir, &set, e);

    if (rc)
        return rc;
    k.set = set;
    k.seen = calloc(st_count(set) + 1, sizeof(*k.seen));
    rc = k.seen ? check_tensors(&k) : dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0) {
        snprintf(c->dtype, sizeof(c->dtype), "%s", types[st_find(set, "model.embed_tokens.weight")->type]);
        c->file_bytes = st_file_bytes(set);
    }
    free(k.seen);
    st_close(set);
    return rc;
}

/* The embedding may have rows without a token (padding), never a token without a row. */
static int check_tokenizer(int dirfd, const char *dir, const struct dtx_model_config *c, struct dtx_err *e)
{
    struct dtx_tokenizer *t;
    int32_t size, slack = c->vocab / 4 > 1024 ? c->vocab / 4 : 1024;
    int rc = dtx_tokenizer_load(dirfd, dir, &t, e);

    if (rc)
        return rc;
    size = dtx_tokenizer_size(t);
    if (size > c->vocab)
        rc = dtx_fail(e, -EINVAL,
                      "the tokenizer has %d tokens, the model only %d (vocab_size): copy the tokenizer "
                      "that belongs to the model",
                      size, c->vocab);
    else if (size < c->vocab - slack)
        rc = dtx_fail(e, -EINVAL,
                      "the tokenizer has only %d tokens, the model %d (vocab_size): copy the tokenizer "
                      "that belongs to the model",
                      size, c->vocab);
    else if (dtx_tokenizer_eos(t) < 0)
        rc = dtx_fail(e, -EINVAL,
                      "the tokenizer has no end-of-text token: give eos_token in tokenizer_config.json");
    dtx_tokenizer_free(t);
    return rc;
}

int dtx_model_check(int dirfd, const char *dir, struct dtx_model_config *config, struct dtx_err *e)
{
    int rc = model_config_load(dirfd, dir, config, e);

    if (rc == 0)
        rc = check_weights(dirfd, dir, config, e);
    return rc ? rc : check_tokenizer(dirfd, dir, config, e);
}
