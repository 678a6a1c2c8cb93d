/*
 * Decode packs: one row per sequence, each by dot products in a fixed order, so that a row's numbers do not
 * depend on how many other rows there are.  A weight row is read once for all of them (it stays in the first
 * cache).
 */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec.h"

enum { COLS = 32 }; /* columns of one task */

struct linear_call {
    const struct op_pack *p;
    const struct op_linear *l;
    const float *x, *add;
    float *y, *h;
    int blocks[3];
};

static void h_task(void *arg, int task, int thread)
{
    const struct linear_call *c = arg;
    int seg = task / c->l->n_parts;
    struct lora_part lp;
    if (!lora_part(c->p, c->l, seg, task % c->l->n_parts, &lp))
        return;
    const float *x = c->x + (size_t)c->p->segs[seg].row0 * (size_t)c->l->in;
    for (int j = 0; j < lp.rank; j++)
        c->h[lp.h0 + (size_t)j] = vec_dot(x, lp.A + (size_t)j * (size_t)c->l->in, (size_t)c->l->in);
}

static void y_task(void *arg, int task, int thread)
{
    const struct linear_call *c = arg;
    const struct op_linear *l = c->l;
    int part = 0;
    while (task >= c->blocks[part])
        task -= c->blocks[part++];
    int n0 = task * COLS, n1 = n0 + COLS < l->part[part].n ? n0 + COLS : l->part[part].n;
    for (int n = n0; n < n1; n++) {
        int col = l->part[part].out0 + n;
        const float *w = (const float *)l->W + (size_t)col * (size_t)l->in;
        for (int r = 0; r < c->p->rows; r++) {
            size_t at = (size_t)r * (size_t)l->out + (size_t)col;
            float y = vec_dot(c->x + (size_t)r * (size_t)l->in, w, (size_t)l->in);
            if (l->bias)
                y += ((const float *)l->bias)[col];
            c->y[at] = c->add ? c->add[at] + y : y;
        }
    }
    for (int s = 0; s < c->p->n_segs; s++) {
        struct lora_part lp;
        if (!lora_part(c->p, l, s, part, &lp))
            continue;
        float *y = c->y + (size_t)c->p->segs[s].row0 * (size_t)l->out + l->part[part].out0;
        for (int n = n0; n < n1; n++)
            y[n] += lp.scale * vec_dot(c->h + lp.h0, lp.B + (size_t)n * (size_t)lp.rank, (size_t)lp.rank);
    }
}

void cpu_linear_decode(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const float *x,
                       const float *add, float *y)
{
    struct linear_call c = {.p = p, .l = l, .x = x, .add = add, .y = y};
    int tasks = 0;
    for (int i = 0; i < l->n_parts; i++)
        tasks += c.blocks[i] = div_up(l->part[i].n, COLS);
    if (p->max_rank) {
        c.h = cpu_shared(d, &d->shared, cpu_linear_h_floats(p, l));
        if (!c.h)
            return;
        pool_run(d->pool, p->n_segs * l->n_parts, h_task, &c);
    }
    pool_run(d->pool, tasks, y_task, &c);
}

/* Where k (which = 0) or v (which = 1) of a layer begins in a sequence's cache. */
static float *cache_at(const struct op_seq *s, const struct op_attention *a, int which)
{
    size_t plane = (size_t)s->kv_cap * (size_t)(a->kv_heads * a->head_dim);
    return (float *)s->kv + ((size_t)a->layer * 2 + (size_t)which) * plane;
}

void cpu_kv_store(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const void *qkv)
{
    size_t dim = (size_t)(a->kv_heads * a->head_dim), ld = (size_t)(a->heads * a->head_dim) + 2 * dim;
    for (int i = 0; i < p->n_seqs; i++) {
        const struct op_seq *s = &p->seqs[i];
        for (int r = 0; r < s->rows; r++) {
            const float *k =
                (const float *)qkv + (size_t)(s->row0 + r) * ld + (size_t)(a->heads * a->head_dim);
            size_t at = (size_t)(s->pos0 + r) * dim;
            memcpy(cache_at(s, a, 0) + at, k, dim * sizeof *k);
            memcpy(cache_at(s, a, 1) + at, k + dim, dim * sizeof *k);
        }
    }
}

struct cached_call {
    struct op_dev *d;
    const struct op_pack *p;
    const struct op_attention *a;
    const float *qkv;
    float *o;
};

static void cached_task(void *arg, int task, int thread)
{
    const struct cached_call *c = arg;
    const struct op_attention *a = c->a;
    const struct op_seq *s = &c->p->seqs[task / a->heads];
    int head = task % a->heads, kv = head / (a->heads / a->kv_heads);
    size_t hd = (size_t)a->head_dim, dim = (size_t)a->kv_heads * hd, n = (size_t)s->pos0 + 1;
    float *w = cpu_scratch(c->d, thread, n);
    if (!w)
        return;
    const float *q = c->qkv + (size_t)s->row0 * ((size_t)a->heads * hd + 2 * dim) + (size_t)head * hd;
    const float *k = cache_at(s, a, 0) + (size_t)kv * hd, *v = cache_at(s, a, 1) + (size_t)kv * hd;
    for (size_t i = 0; i < n; i++)
        w[i] = a->scale * vec_dot(q, k + i * dim, hd);
    float f = 1.0f / vec_exp_sum(w, n, vec_max(w, n));
    float *o = c->o + ((size_t)s->row0 * (size_t)a->heads + (size_t)head) * hd;
    memset(o, 0, hd * sizeof *o);
    for (size_t i = 0; i < n; i++)
        vec_axpy(w[i] * f, v + i * dim, o, hd);
}

void cpu_attention_cached(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                          const void *qkv, void *o)
{
    struct cached_call c = {.d = d, .p = p, .a = a, .qkv = qkv, .o = o};
    pool_run(d->pool, p->n_seqs * a->heads, cached_task, &c);
}

struct logits_call {
    const float *x, *W;
    const int32_t *rows;
    float *logits;
    int32_t n, vocab, hidden;
};

static void logits_task(void *arg, int task, int thread)
{
    const struct logits_call *c = arg;
    size_t hidden = (size_t)c->hidden;
    for (int v = task * COLS; v < c->vocab && v < (task + 1) * COLS; v++)
        for (int i = 0; i < c->n; i++)
            c->logits[(size_t)i * (size_t)c->vocab + (size_t)v] =
                vec_dot(c->x + (size_t)c->rows[i] * hidden, c->W + (size_t)v * hidden, hidden);
}

void cpu_logits(struct op_dev *d, const void *x, const int32_t *rows, int32_t n, const void *W, int32_t vocab,
                int32_t hidden, float *logits)
{
    struct logits_call c = {
        .x = x, .W = W, .rows = rows, .logits = logits, .n = n, .vocab = vocab, .hidden = hidden};
    pool_run(d->pool, div_up(vocab, COLS), logits_task, &c);
}
