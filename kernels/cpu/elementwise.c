/* Operations that look at one row at a time: embedding, RMSNorm, RoPE, SwiGLU.  Threads take blocks of rows.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

enum { ROW_BLOCK = 32 };

struct row_call {
    const struct op_pack *p;
    const float *x, *x2, *w, *rstd, *add;
    float *y, *rstd_out;
    const struct op_attention *a;
    int32_t n;
    float eps;
    bool inverse;
    void (*row)(const struct row_call *c, int32_t r);
};

static void row_task(void *arg, int task, int thread)
{
    const struct row_call *c = arg;
    int32_t end = (task + 1) * ROW_BLOCK;
    for (int32_t r = task * ROW_BLOCK; r < c->p->rows && r < end; r++)
        c->row(c, r);
}

static void run_rows(struct op_dev *d, struct row_call *c)
{
    pool_run(d->pool, div_up(c->p->rows, ROW_BLOCK), row_task, c);
}

static void embed_row(const struct row_call *c, int32_t r)
{
    size_t bytes = (size_t)c->n * sizeof(float);
    float *y = c->y + (size_t)r * (size_t)c->n;
    if (c->p->ids[r] < 0)
        memset(y, 0, bytes);
    else
        memcpy(y, c->w + (size_t)c->p->ids[r] * (size_t)c->n, bytes);
}

void cpu_embed(struct op_dev *d, const struct op_pack *p, const void *E, int32_t hidden, void *x)
{
    struct row_call c = {.p = p, .w = E, .y = x, .n = hidden, .row = embed_row};
    run_rows(d, &c);
}

static void rmsnorm_row(const struct row_call *c, int32_t r)
{
    size_t n = (size_t)c->n, at = (size_t)r * n;
    const float *x = c->x + at;
    float *y = c->y + at;
    float rstd = 1.0f / sqrtf(vec_dot(x, x, n) / (float)c->n + c->eps);
    for (size_t i = 0; i < n; i++)
        y[i] = c->w[i] * (x[i] * rstd);
    if (c->rstd_out)
        c->rstd_out[r] = rstd;
}

void cpu_rmsnorm(struct op_dev *d, const struct op_pack *p, const void *x, const void *w, int32_t n,
                 float eps, void *y, float *rstd)
{
    struct row_call c = {
        .p = p, .x = x, .w = w, .y = y, .rstd_out = rstd, .n = n, .eps = eps, .row = rmsnorm_row};
    run_rows(d, &c);
}

/* sum of a * b * c in a fixed order */
static float dot3(const float *a, const float *b, const float *c, size_t n)
{
    v8 s = v8_all(0);
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        s += v8_load(a + i) * v8_load(b + i) * v8_load(c + i);
    float rest = 0;
    for (; i < n; i++)
        rest += a[i] * b[i] * c[i];
    return v8_sum(s) + rest;
}

static void rmsnorm_back_row(const struct row_call *c, int32_t r)
{
    size_t n = (size_t)c->n, at = (size_t)r * n;
    const float *x = c->x + at, *dy = c->x2 + at, *add = c->add ? c->add + at : NULL;
    float *dx = c->y + at, rstd = c->rstd[r];
    float mean = dot3(dy, c->w, x, n) * rstd / (float)c->n;
    for (size_t i = 0; i < n; i++) {
        float g = rstd * (c->w[i] * dy[i] - x[i] * rstd * mean);
        dx[i] = add ? add[i] + g : g;
    }
}

void cpu_rmsnorm_back(struct op_dev *d, const struct op_pack *p, const void *dy, const void *x, const void *w,
                      const float *rstd, int32_t n, const void *add, void *dx)
{
    struct row_call c = {
        .p = p, .x = x, .x2 = dy, .w = w, .rstd = rstd, .add = add, .y = dx, .n = n, .row = rmsnorm_back_row};
    run_rows(d, &c);
}

static void rope_row(const struct row_call *c, int32_t r)
{
    const struct op_attention *a = c->a;
    int32_t half = a->head_dim / 2, heads = a->heads + a->kv_heads;
    const float *cs = c->w + (size_t)c->p->pos[r] * (size_t)a->head_dim, *sn = cs + half;
    float sign = c->inverse ? -1.0f : 1.0f;
    float *x = c->y + (size_t)r * (size_t)c->n;
    for (int32_t h = 0; h < heads; h++, x += a->head_dim)
        for (int32_t i = 0; i < half; i++) {
            float x1 = x[i], x2 = x[i + half], s = sign * sn[i];
            x[i] = x1 * cs[i] - x2 * s;
            x[i + half] = x2 * cs[i] + x1 * s;
        }
}

void cpu_rope(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const float *table,
              bool inverse, void *qkv)
{
    struct row_call c = {.p = p,
                         .a = a,
                         .w = table,
                         .y = qkv,
                         .n = (a->heads + 2 * a->kv_heads) * a->head_dim,
                         .inverse = inverse,
                         .row = rope_row};
    run_rows(d, &c);
}

static v8 silu_times(v8 g, v8 u)
{
    return g / (v8_all(1.0f) + v8_exp(-g)) * u;
}

static void swiglu_row(const struct row_call *c, int32_t r)
{
    size_t n = (size_t)c->n, i = 0;
    const float *g = c->x + 2 * n * (size_t)r, *u = g + n;
    float *y = c->y + n * (size_t)r;
    for (; i + 8 <= n; i += 8)
        v8_store(y + i, silu_times(v8_load(g + i), v8_load(u + i)));
    if (i < n)
        v8_store_part(y + i, silu_times(v8_load_part(g + i, n - i), v8_load_part(u + i, n - i)), n - i);
}

void cpu_swiglu(struct op_dev *d, const struct op_pack *p, const void *gu, int32_t ffn, void *y)
{
    struct row_call c = {.p = p, .x = gu, .y = y, .n = ffn, .row = swiglu_row};
    run_rows(d, &c);
}

static void swiglu_grad(v8 g, v8 u, v8 dy, v8 *dg, v8 *du)
{
    v8 one = v8_all(1.0f), s = one / (one + v8_exp(-g)), silu = g * s;
    *dg = dy * u * (s + silu * (one - s));
    *du = dy * silu;
}

static void swiglu_back_row(const struct row_call *c, int32_t r)
{
    size_t n = (size_t)c->n, i = 0;
    const float *g = c->x + 2 * n * (size_t)r, *u = g + n, *dy = c->x2 + n * (size_t)r;
    float *dg = c->y + 2 * n * (size_t)r, *du = dg + n;
    v8 a, b;
    for (; i + 8 <= n; i += 8) {
        swiglu_grad(v8_load(g + i), v8_load(u + i), v8_load(dy + i), &a, &b);
        v8_store(dg + i, a);
        v8_store(du + i, b);
    }
    if (i < n) {
        size_t k = n - i;
        swiglu_grad(v8_load_part(g + i, k), v8_load_part(u + i, k), v8_load_part(dy + i, k), &a, &b);
        v8_store_part(dg + i, a, k);
        v8_store_part(du + i, b, k);
    }
}

void cpu_swiglu_back(struct op_dev *d, const struct op_pack *p, const void *dy, const void *gu, int32_t ffn,
                     void *dgu)
{
    struct row_call c = {.p = p, .x = gu, .x2 = dy, .y = dgu, .n = ffn, .row = swiglu_back_row};
    run_rows(d, &c);
}
