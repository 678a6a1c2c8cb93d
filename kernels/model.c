/*
 * A base model on a device: weights from safetensors, rotary table, memory.
 *
 * Matrices that read the same input lie below each other in one allocation (q, k, v; gate, up), so that one
 * GEMM serves them.  Weights pass through a host buffer of CONVERT floats into the device's weight type.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/model.h"
#include "kernels/safetensors.h"
#include "kernels/seq.h"

enum { CONVERT = 1 << 20 };

struct loader {
    struct dtx_base *b;
    const struct st_set *files;
    float *buffer; /* [CONVERT] */
    struct dtx_err *e;
};

void *base_alloc(struct dtx_base *b, size_t bytes, struct dtx_err *e)
{
    void *p = b->ops->alloc(b->dev, bytes);
    if (!p)
        dtx_fail(e, -ENOMEM, "the device has no %zu MiB left", bytes >> 20);
    return p;
}

/* Device memory for n weights, counted in b->bytes. */
static int new_weights(struct loader *l, void **out, size_t n)
{
    size_t bytes = n * (size_t)l->b->ops->weight_bytes;
    *out = base_alloc(l->b, bytes, l->e);
    l->b->bytes += bytes;
    return *out ? 0 : -ENOMEM;
}

/* The tensor `name`, rows x cols (cols 0: a vector), to dst + first. */
static int load_tensor(struct loader *l, const char *name, int64_t rows, int64_t cols, void *dst,
                       size_t first)
{
    const struct st_tensor *t = st_find(l->files, name);
    if (!t)
        return dtx_fail(l->e, -EINVAL, "tensor %s is missing from the safetensors files", name);
    bool right = cols ? t->ndim == 2 && t->shape[0] == rows && t->shape[1] == cols
                      : t->ndim == 1 && t->shape[0] == rows;
    if (!right)
        return dtx_fail(
            l->e, -EINVAL,
            "tensor %s has the wrong shape: expected [%lld%s%lld], found %d dimensions of %llu values", name,
            (long long)rows, cols ? ", " : "] x ", (long long)(cols ? cols : 1), t->ndim,
            (unsigned long long)t->elements);
    const struct dtx_ops *o = l->b->ops;
    if (t->type == ST_BF16 && o->weight_bytes == 2) { /* as it is */
        o->upload(l->b->dev, (char *)dst + 2 * first, t->data, 2 * t->elements);
        return 0;
    }
    for (uint64_t at = 0; at < t->elements; at += CONVERT) {
        uint64_t n = t->elements - at < CONVERT ? t->elements - at : CONVERT;
        int rc = st_read_f32(t, at, n, l->buffer);
        if (rc < 0)
            return dtx_fail(l->e, rc, "tensor %s is not of type F32, F16 or BF16", name);
        o->upload_weights(l->b->dev, dst, first + at, l->buffer, n);
    }
    return 0;
}

/* A matrix (or vector, cols 0) of its own. */
static int load_own(struct loader *l, const char *name, int64_t rows, int64_t cols, void **out)
{
    int rc = new_weights(l, out, (size_t)rows * (size_t)(cols ? cols : 1));
    return rc < 0 ? rc : load_tensor(l, name, rows, cols, *out, 0);
}

struct piece {
    const char *name; /* under the layer, without ".weight" */
    int64_t rows;
};

/* Pieces below each other, of the kind "weight" (cols > 0) or "bias" (cols 0). */
static int load_pieces(struct loader *l, int layer, const struct piece *pieces, int n, int64_t cols,
                       void **out)
{
    size_t width = (size_t)(cols ? cols : 1), first = 0, total = 0;
    for (int i = 0; i < n; i++)
        total += (size_t)pieces[i].rows * width;
    int rc = new_weights(l, out, total);
    for (int i = 0; rc == 0 && i < n; i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.%d.%s.%s", layer, pieces[i].name, cols ? "weight" : "bias");
        rc = load_tensor(l, name, pieces[i].rows, cols, *out, first);
        first += (size_t)pieces[i].rows * width;
    }
    return rc;
}

static int load_layer(struct loader *l, int i)
{
    const struct dtx_model_config *c = &l->b->config;
    struct layer_weights *w = &l->b->layer[i];
    int64_t q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const struct piece qkv[] = {{"self_attn.q_proj", q}, {"self_attn.k_proj", kv}, {"self_attn.v_proj", kv}};
    const struct piece gate_up[] = {{"mlp.gate_proj", c->ffn}, {"mlp.up_proj", c->ffn}};
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", i);
    int rc = load_own(l, name, c->hidden, 0, &w->norm1);
    if (rc == 0)
        rc = load_pieces(l, i, qkv, 3, c->hidden, &w->qkv);
    if (rc == 0 && c->attention_bias)
        rc = load_pieces(l, i, qkv, 3, 0, &w->qkv_bias);
    if (rc == 0)
        rc = load_pieces(l, i, (struct piece[]){{"self_attn.o_proj", c->hidden}}, 1, q, &w->o);
    snprintf(name, sizeof name, "model.layers.%d.post_attention_layernorm.weight", i);
    if (rc == 0)
        rc = load_own(l, name, c->hidden, 0, &w->norm2);
    if (rc == 0)
        rc = load_pieces(l, i, gate_up, 2, c->hidden, &w->gate_up);
    if (rc == 0)
        rc = load_pieces(l, i, (struct piece[]){{"mlp.down_proj", c->hidden}}, 1, c->ffn, &w->down);
    return rc;
}

static int load_all(struct loader *l)
{
    struct dtx_base *b = l->b;
    const struct dtx_model_config *c = &b->config;
    int rc = load_own(l, "model.embed_tokens.weight", c->vocab, c->hidden, &b->embed);
    for (int i = 0; rc == 0 && i < c->layers; i++)
        rc = load_layer(l, i);
    if (rc == 0)
        rc = load_own(l, "model.norm.weight", c->hidden, 0, &b->norm);
    b->head = b->embed;
    if (rc == 0 && !c->tied_head) {
        b->head = NULL;
        rc = load_own(l, "lm_head.weight", c->vocab, c->hidden, &b->head);
    }
    return rc < 0 ? rc : b->ops->sync(b->dev);
}

/* Known before the weights are read: an operation that cannot run would take the whole device with it. */
static int check_head(const struct dtx_ops *o, const struct dtx_model_config *c, struct dtx_err *e)
{
    if (c->head_dim % o->head_step == 0 && c->head_dim <= o->head_most)
        return 0;
    return dtx_fail(e, -EINVAL,
                    "the model's heads have %d values; on this device (%s) they must have a multiple of %d "
                    "and at most %d",
                    c->head_dim, o->name, o->head_step, o->head_most);
}

int dtx_base_load(struct dtx_device *d, int dirfd, const char *dir, struct dtx_base **out, struct dtx_err *e)
{
    struct st_set *files = NULL;
    struct dtx_base *b = calloc(1, sizeof *b);
    struct loader l = {.b = b, .buffer = malloc(CONVERT * sizeof(float)), .e = e};
    int rc = b && l.buffer ? 0 : dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = model_config_load(dirfd, dir, &b->config, e);
    if (rc == 0)
        rc = check_head(d->ops, &b->config, e);
    if (rc == 0)
        rc = st_open_model(dirfd, dir, &files, e);
    if (rc == 0) {
        b->device = d;
        b->ops = d->ops;
        b->dev = d->dev;
        b->dims = lora_dims_of(&b->config);
        b->layer = calloc((size_t)b->config.layers, sizeof *b->layer);
        l.files = files;
        rc = b->layer ? load_all(&l) : dtx_fail(e, -ENOMEM, "out of memory");
        if (rc == 0)
            rc = base_reserve(b, e);
    }
    st_close(files);
    free(l.buffer);
    if (rc < 0) {
        dtx_base_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void dtx_base_free(struct dtx_base *b)
{
    if (!b)
        return;
    void (*release)(struct op_dev *, void *) = b->ops ? b->ops->free : NULL;
    decode_free(b);
    for (int i = 0; b->layer && i < b->config.layers; i++) {
        struct layer_weights *w = &b->layer[i];
        void *all[] = {w->norm1, w->qkv, w->qkv_bias, w->o, w->norm2, w->gate_up, w->down};
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            release(b->dev, all[k]);
    }
    if (release) {
        if (b->head != b->embed)
            release(b->dev, b->head);
        release(b->dev, b->embed);
        release(b->dev, b->norm);
        release(b->dev, b->rope);
        release(b->dev, b->loss);
        release(b->dev, b->outcome);
        release(b->dev, b->logits);
        release(b->dev, b->tokens);
        workspace_free(b);
    }
    free(b->layer);
    free(b);
}

const struct dtx_model_config *dtx_base_config(const struct dtx_base *b)
{
    return &b->config;
}

uint64_t dtx_base_bytes(const struct dtx_base *b)
{
    return b->bytes;
}

/* The angle of one turn per position of each pair, as transformers computes it (float32). */
static float inv_freq(const struct dtx_model_config *c, int i)
{
    float f = (float)(1.0 / pow(c->rope_theta, 2.0 * i / c->head_dim));
    if (!c->rope_llama3)
        return f;
    double wave = 2.0 * M_PI / f, old = c->rope_original;
    if (wave < old / c->rope_high)
        return f;
    if (wave > old / c->rope_low)
        return f / c->rope_factor;
    double smooth = (old / wave - c->rope_low) / ((double)c->rope_high - c->rope_low);
    return (float)((1 - smooth) * f / c->rope_factor + smooth * f);
}

int base_need_positions(struct dtx_base *b, int positions, struct dtx_err *e)
{
    if (positions <= b->rope_positions)
        return 0;
    size_t n = 256, hd = (size_t)b->config.head_dim;
    while (n < (size_t)positions)
        n *= 2;
    float *host = malloc(n * hd * sizeof *host),
          *table = host ? base_alloc(b, n * hd * sizeof *host, e) : NULL;
    if (!table) {
        free(host);
        return host ? -ENOMEM : dtx_fail(e, -ENOMEM, "out of memory for %zu positions", n);
    }
    for (size_t i = 0; i < hd / 2; i++) {
        float f = inv_freq(&b->config, (int)i);
        for (size_t pos = 0; pos < n; pos++) {
            float angle = (float)pos * f;
            host[pos * hd + i] = (float)cos((double)angle);
            host[pos * hd + hd / 2 + i] = (float)sin((double)angle);
        }
    }
    b->ops->upload(b->dev, table, host, n * hd * sizeof *host);
    free(host);
    b->ops->free(b->dev, b->rope);
    b->rope = table;
    b->moved++;
    b->rope_positions = (int)n;
    return 0;
}

int base_need_step(struct dtx_base *b, int jobs, struct dtx_err *e)
{
    if (jobs <= b->step_jobs)
        return 0;
    b->ops->free(b->dev, b->loss);
    b->ops->free(b->dev, b->outcome);
    b->step_jobs = 0;
    b->loss = base_alloc(b, (size_t)jobs * sizeof *b->loss, e);
    b->outcome = base_alloc(b, (size_t)jobs * sizeof *b->outcome, e);
    if (!b->loss || !b->outcome)
        return -ENOMEM;
    b->step_jobs = jobs;
    return 0;
}

int base_need_logits(struct dtx_base *b, int rows, struct dtx_err *e)
{
    if (rows <= b->gen_rows)
        return 0;
    b->ops->free(b->dev, b->logits);
    b->ops->free(b->dev, b->tokens);
    b->gen_rows = 0;
    b->moved++; /* also where there will be none: the steps that are loaded write to those that were freed */
    b->logits = base_alloc(b, (size_t)rows * (size_t)b->config.vocab * sizeof *b->logits, e);
    b->tokens = base_alloc(b, (size_t)rows * sizeof *b->tokens, e);
    if (!b->logits || !b->tokens)
        return -ENOMEM;
    b->gen_rows = rows;
    return 0;
}
