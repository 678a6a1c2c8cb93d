/*
 * Causal attention inside each sequence, forward and backward.  Queries go in blocks of QUERY_ROWS counted
 * from the sequence's first row; a block's scores exist as [queries, keys up to its last query] in the
 * thread's scratch. Forward: a task is one (sequence, head, block).  Backward: a task is one (sequence, k/v
 * head), so that dk and dv are summed over its query heads and blocks in a fixed order by one thread.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

struct call {
    struct op_dev *d;
    const struct op_pack *p;
    const struct op_attention *a;
    const float *qkv, *o, *dout, *lse;
    float *out, *lse_out, *dqkv;
    int ld, ldo; /* floats of a row of qkv and of o */
    int group;   /* query heads of a k/v head */
};

static struct call call_of(struct op_dev *d, const struct op_pack *p, const struct op_attention *a)
{
    return (struct call){.d = d,
                         .p = p,
                         .a = a,
                         .ld = (a->heads + 2 * a->kv_heads) * a->head_dim,
                         .ldo = a->heads * a->head_dim,
                         .group = a->heads / a->kv_heads};
}

static size_t q_at(const struct call *c, int row, int head)
{
    return (size_t)row * (size_t)c->ld + (size_t)(head * c->a->head_dim);
}

static size_t k_at(const struct call *c, int row, int kv_head)
{
    return q_at(c, row, c->a->heads + kv_head);
}

static size_t v_at(const struct call *c, int row, int kv_head)
{
    return q_at(c, row, c->a->heads + c->a->kv_heads + kv_head);
}

static size_t o_at(const struct call *c, int row, int head)
{
    return (size_t)row * (size_t)c->ldo + (size_t)(head * c->a->head_dim);
}

/* S[n, keys] = scale q k^T for queries q0 .. q0 + n of a sequence and keys 0 .. keys. */
static void scores(const struct call *c, const struct op_seq *s, int head, int q0, int n, int keys, float *S)
{
    cpu_gemm(false, true, n, keys, c->a->head_dim, c->a->scale, c->qkv + q_at(c, s->row0 + q0, head), c->ld,
             c->qkv + k_at(c, s->row0, head / c->group), c->ld, 0, S, keys);
}

static void forward_block(const struct call *c, const struct op_seq *s, int head, int q0, int thread)
{
    int n = s->rows - q0 < QUERY_ROWS ? s->rows - q0 : QUERY_ROWS, keys = q0 + n;
    float *S = cpu_scratch(c->d, thread, (size_t)n * (size_t)keys);
    if (!S)
        return;
    scores(c, s, head, q0, n, keys, S);
    for (int i = 0; i < n; i++) {
        float *row = S + (size_t)i * (size_t)keys;
        size_t seen = (size_t)(q0 + i + 1);
        float max = vec_max(row, seen), sum = vec_exp_sum(row, seen, max), f = 1.0f / sum;
        for (size_t k = 0; k < seen; k++)
            row[k] *= f;
        memset(row + seen, 0, ((size_t)keys - seen) * sizeof *row);
        if (c->lse_out)
            c->lse_out[(size_t)(s->row0 + q0 + i) * (size_t)c->a->heads + (size_t)head] = max + logf(sum);
    }
    cpu_gemm(false, false, n, c->a->head_dim, keys, 1, S, keys, c->qkv + v_at(c, s->row0, head / c->group),
             c->ld, 0, c->out + o_at(c, s->row0 + q0, head), c->ldo);
}

static void forward_task(void *arg, int task, int thread)
{
    const struct call *c = arg;
    const struct op_seq *s = &c->p->seqs[task / c->a->heads];
    for (int q0 = 0; q0 < s->rows; q0 += QUERY_ROWS)
        forward_block(c, s, task % c->a->heads, q0, thread);
}

static void zero_padding(const struct op_pack *p, float *x, int ld)
{
    for (int r = 0; r < p->rows; r++)
        if (p->seq_of_row[r] < 0)
            memset(x + (size_t)r * (size_t)ld, 0, (size_t)ld * sizeof *x);
}

void cpu_attention(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const void *qkv,
                   void *o, float *lse)
{
    struct call c = call_of(d, p, a);
    c.qkv = qkv;
    c.out = o;
    c.lse_out = lse;
    zero_padding(p, o, c.ldo);
    pool_run(d->pool, p->n_seqs * a->heads, forward_task, &c);
}

/* In place: P from S, and dS = scale * P (dP - D), D = sum over the head of dout * o. */
static void softmax_back(const struct call *c, const struct op_seq *s, int head, int q0, int n, int keys,
                         float *P, float *dS)
{
    for (int i = 0; i < n; i++) {
        int row = s->row0 + q0 + i;
        float *p = P + (size_t)i * (size_t)keys, *ds = dS + (size_t)i * (size_t)keys;
        size_t seen = (size_t)(q0 + i + 1), rest = ((size_t)keys - seen) * sizeof *p;
        float D = vec_dot(c->dout + o_at(c, row, head), c->o + o_at(c, row, head), (size_t)c->a->head_dim);
        vec_exp_sum(p, seen, c->lse[(size_t)row * (size_t)c->a->heads + (size_t)head]);
        for (size_t k = 0; k < seen; k++)
            ds[k] = c->a->scale * p[k] * (ds[k] - D);
        memset(p + seen, 0, rest);
        memset(ds + seen, 0, rest);
    }
}

static void back_block(const struct call *c, const struct op_seq *s, int head, int q0, int thread)
{
    int n = s->rows - q0 < QUERY_ROWS ? s->rows - q0 : QUERY_ROWS, keys = q0 + n, hd = c->a->head_dim;
    int kv = head / c->group, row = s->row0 + q0;
    size_t block = (size_t)n * (size_t)keys;
    float *P = cpu_scratch(c->d, thread, 2 * block), *dS;
    if (!P)
        return;
    dS = P + block;
    scores(c, s, head, q0, n, keys, P);
    cpu_gemm(false, true, n, keys, hd, 1, c->dout + o_at(c, row, head), c->ldo, c->qkv + v_at(c, s->row0, kv),
             c->ld, 0, dS, keys);
    softmax_back(c, s, head, q0, n, keys, P, dS);
    cpu_gemm(false, false, n, hd, keys, 1, dS, keys, c->qkv + k_at(c, s->row0, kv), c->ld, 0,
             c->dqkv + q_at(c, row, head), c->ld);
    cpu_gemm(true, false, keys, hd, n, 1, dS, keys, c->qkv + q_at(c, row, head), c->ld, 1,
             c->dqkv + k_at(c, s->row0, kv), c->ld);
    cpu_gemm(true, false, keys, hd, n, 1, P, keys, c->dout + o_at(c, row, head), c->ldo, 1,
             c->dqkv + v_at(c, s->row0, kv), c->ld);
}

static void back_task(void *arg, int task, int thread)
{
    const struct call *c = arg;
    const struct op_seq *s = &c->p->seqs[task / c->a->kv_heads];
    int kv = task % c->a->kv_heads;
    size_t bytes = (size_t)c->a->head_dim * sizeof(float);
    for (int r = 0; r < s->rows; r++) {
        memset(c->dqkv + k_at(c, s->row0 + r, kv), 0, bytes);
        memset(c->dqkv + v_at(c, s->row0 + r, kv), 0, bytes);
    }
    for (int head = kv * c->group; head < (kv + 1) * c->group; head++)
        for (int q0 = 0; q0 < s->rows; q0 += QUERY_ROWS)
            back_block(c, s, head, q0, thread);
}

void cpu_attention_back(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                        const void *dout, const void *o, const void *qkv, const float *lse,
                        const float *table, void *dqkv)
{
    struct call c = call_of(d, p, a);
    c.qkv = qkv;
    c.o = o;
    c.dout = dout;
    c.lse = lse;
    c.dqkv = dqkv;
    zero_padding(p, dqkv, c.ld);
    pool_run(d->pool, p->n_seqs * a->kv_heads, back_task, &c);
    if (table)
        cpu_rope(d, p, a, table, true, dqkv);
}
