/*
 * Operations bound by memory: embedding, RMSNorm, RoPE, SwiGLU, and the glue of attention.  Each row is computed from
 * that row alone; float32 inside.  Vectors of 8 (16 bytes) where the width allows, single elements elsewhere.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/vec.cuh"

static inline int row_threads(int n)
{
    return n >= 2048 ? 256 : n >= 512 ? 64 : 32;
}

/* ---- embedding ---- */

template <int V> __global__ void embed_kernel(const int32_t *ids, const bf16 *E, int hidden, bf16 *x)
{
    int row = blockIdx.x, id = ids[row];
    for (int i = threadIdx.x * V; i < hidden; i += blockDim.x * V) {
        vec<V> v = {};
        if (id >= 0)
            v = load<V>(E + (size_t)id * hidden + i);
        store<V>(x + (size_t)row * hidden + i, v);
    }
}

void cu_embed(op_dev *d, const op_pack *p, const void *E, int32_t hidden, void *x)
{
    TRACE(d, "embed R %d", p->rows);
    const int32_t *ids = pack_dev(p)->ids;
    int t = row_threads(hidden);
    launch(d->stream, hidden % 8 == 0 ? embed_kernel<8> : embed_kernel<1>, p->rows, t, 0, ids, (const bf16 *)E, hidden,
           (bf16 *)x);
    DEV_LAUNCHED(d, "embed");
}

/* ---- RMSNorm ---- */

template <int V> __global__ void rmsnorm_kernel(const bf16 *x, const bf16 *w, int n, float eps, bf16 *y, float *rstd)
{
    __shared__ float scratch[8];
    chain_begin();
    const bf16 *xr = x + (size_t)blockIdx.x * n;
    float sum = 0.f;
    for (int i = threadIdx.x * V; i < n; i += blockDim.x * V) {
        vec<V> v = load<V>(xr + i);
        for (int j = 0; j < V; j++)
            sum += v.f[j] * v.f[j];
    }
    float r = rsqrtf(block_sum(sum, scratch) / n + eps);
    for (int i = threadIdx.x * V; i < n; i += blockDim.x * V) {
        vec<V> v = load<V>(xr + i), g = load<V>(w + i);
        for (int j = 0; j < V; j++)
            v.f[j] = g.f[j] * (v.f[j] * r);
        store<V>(y + (size_t)blockIdx.x * n + i, v);
    }
    if (rstd && threadIdx.x == 0)
        rstd[blockIdx.x] = r;
}

void cu_rmsnorm(op_dev *d, const op_pack *p, const void *x, const void *w, int32_t n, float eps, void *y, float *rstd)
{
    TRACE(d, "rmsnorm R %d", p->rows);
    int t = row_threads(n);
    chain_launch(d, n % 8 == 0 ? rmsnorm_kernel<8> : rmsnorm_kernel<1>, p->rows, t, 0, (const bf16 *)x, (const bf16 *)w,
                 n, eps, (bf16 *)y, rstd);
    DEV_LAUNCHED(d, "rmsnorm");
}

template <int V>
__global__ void rmsnorm_back_kernel(const bf16 *dy, const bf16 *x, const bf16 *w, const float *rstd, int n,
                                    const bf16 *add, bf16 *dx)
{
    __shared__ float scratch[8];
    chain_begin();
    size_t row = (size_t)blockIdx.x * n;
    float r = rstd[blockIdx.x], sum = 0.f;
    for (int i = threadIdx.x * V; i < n; i += blockDim.x * V) {
        vec<V> g = load<V>(dy + row + i), v = load<V>(x + row + i), s = load<V>(w + i);
        for (int j = 0; j < V; j++)
            sum += g.f[j] * s.f[j] * v.f[j];
    }
    float mean = block_sum(sum, scratch) * r / n; /* mean(w dy xhat) */
    for (int i = threadIdx.x * V; i < n; i += blockDim.x * V) {
        vec<V> g = load<V>(dy + row + i), v = load<V>(x + row + i), s = load<V>(w + i), o = {};
        if (add)
            o = load<V>(add + row + i);
        for (int j = 0; j < V; j++)
            o.f[j] += r * (s.f[j] * g.f[j] - v.f[j] * r * mean);
        store<V>(dx + row + i, o);
    }
}

void cu_rmsnorm_back(op_dev *d, const op_pack *p, const void *dy, const void *x, const void *w, const float *rstd,
                     int32_t n, const void *add, void *dx)
{
    TRACE(d, "rmsnorm_back R %d", p->rows);
    const bf16 *a = (const bf16 *)dy, *b = (const bf16 *)x, *c = (const bf16 *)w, *e = (const bf16 *)add;
    int t = row_threads(n);
    chain_launch(d, n % 8 == 0 ? rmsnorm_back_kernel<8> : rmsnorm_back_kernel<1>, p->rows, t, 0, a, b, c, rstd, n, e,
                 (bf16 *)dx);
    DEV_LAUNCHED(d, "rmsnorm_back");
}

/* ---- RoPE: one block a row, a thread V pairs (head, i .. i + V) ---- */

template <int V>
__global__ void rope_kernel(const int32_t *pos, const float *table, int n_heads, int dim, int ld, float sign, bf16 *qkv)
{
    chain_begin();
    int half = dim / 2;
    const float *cs = table + (size_t)pos[blockIdx.x] * dim;
    bf16 *row = qkv + (size_t)blockIdx.x * ld;
    for (int i = threadIdx.x * V; i < n_heads * half; i += blockDim.x * V) {
        int h = i / half, k = i % half;
        bf16 *a = row + h * dim + k, *b = a + half;
        vec<V> x = load<V>(a), y = load<V>(b), u, v;
#pragma unroll
        for (int j = 0; j < V; j++) {
            float c = cs[k + j], s = sign * cs[half + k + j];
            u.f[j] = x.f[j] * c - y.f[j] * s;
            v.f[j] = y.f[j] * c + x.f[j] * s;
        }
        store<V>(a, u);
        store<V>(b, v);
    }
}

static int qkv_width(const op_attention *a)
{
    return (a->heads + 2 * a->kv_heads) * a->head_dim;
}

static void rotate(op_dev *d, const op_pack *p, const op_attention *a, const float *table, bool inverse, void *qkv)
{
    const int32_t *pos = pack_dev(p)->pos;
    int heads = a->heads + a->kv_heads, ld = qkv_width(a), t = heads * a->head_dim >= 2048 ? 256 : 64;
    float sign = inverse ? -1.f : 1.f;
    chain_launch(d, a->head_dim % 16 == 0 && ld % 8 == 0 ? rope_kernel<8> : rope_kernel<1>, p->rows, t, 0, pos, table,
                 heads, a->head_dim, ld, sign, (bf16 *)qkv);
    DEV_LAUNCHED(d, "rope");
}

void cu_rope(op_dev *d, const op_pack *p, const op_attention *a, const float *table, bool inverse, void *qkv)
{
    TRACE(d, "rope R %d", p->rows);
    rotate(d, p, a, table, inverse, qkv);
}

/* ---- SwiGLU ---- */

template <int V> __global__ void swiglu_kernel(const bf16 *gu, int ffn, size_t total, bf16 *y)
{
    chain_begin();
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= total)
        return;
    size_t row = i / ffn, c = i % ffn;
    vec<V> g = load<V>(gu + row * 2 * ffn + c), u = load<V>(gu + row * 2 * ffn + ffn + c);
    for (int j = 0; j < V; j++)
        g.f[j] = g.f[j] / (1.f + __expf(-g.f[j])) * u.f[j];
    store<V>(y + i, g);
}

template <int V> __global__ void swiglu_back_kernel(const bf16 *dy, const bf16 *gu, int ffn, size_t total, bf16 *dgu)
{
    chain_begin();
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    if (i >= total)
        return;
    size_t row = i / ffn, at = row * 2 * ffn + i % ffn;
    vec<V> g = load<V>(gu + at), u = load<V>(gu + at + ffn), dg = load<V>(dy + i), du = dg;
    for (int j = 0; j < V; j++) {
        float s = 1.f / (1.f + __expf(-g.f[j])), silu = g.f[j] * s, dyj = dg.f[j];
        du.f[j] = dyj * silu;
        dg.f[j] = dyj * u.f[j] * s * (1.f + g.f[j] * (1.f - s));
    }
    store<V>(dgu + at, dg);
    store<V>(dgu + at + ffn, du);
}

void cu_swiglu(op_dev *d, const op_pack *p, const void *gu, int32_t ffn, void *y)
{
    TRACE(d, "swiglu R %d", p->rows);
    size_t total = (size_t)p->rows * ffn;
    int v = ffn % 8 == 0 ? 8 : 1;
    chain_launch(d, v == 8 ? swiglu_kernel<8> : swiglu_kernel<1>, div_up(total, v * 256), 256, 0, (const bf16 *)gu, ffn,
                 total, (bf16 *)y);
    DEV_LAUNCHED(d, "swiglu");
}

void cu_swiglu_back(op_dev *d, const op_pack *p, const void *dy, const void *gu, int32_t ffn, void *dgu)
{
    TRACE(d, "swiglu_back R %d", p->rows);
    size_t total = (size_t)p->rows * ffn;
    const bf16 *a = (const bf16 *)dy, *b = (const bf16 *)gu;
    int v = ffn % 8 == 0 ? 8 : 1;
    chain_launch(d, v == 8 ? swiglu_back_kernel<8> : swiglu_back_kernel<1>, div_up(total, v * 256), 256, 0, a, b, ffn,
                 total, (bf16 *)dgu);
    DEV_LAUNCHED(d, "swiglu_back");
}

/* ---- attention over whole sequences ---- */

/* Zeros in the rows that belong to no sequence. */
__global__ void zero_padding_kernel(const int32_t *seq_of_row, int n, bf16 *x)
{
    if (seq_of_row[blockIdx.x] < 0)
        for (int i = threadIdx.x; i < n; i += blockDim.x)
            x[(size_t)blockIdx.x * n + i] = __float2bfloat16(0.f);
}

static void zero_padding(op_dev *d, const op_pack *p, int n, void *x)
{
    const cuda_pack *c = pack_dev(p);
    if (c->padded)
        launch(d->stream, zero_padding_kernel, p->rows, 128, 0, c->seq_of_row, n, (bf16 *)x);
}

static attn_shape shape_of(const op_dev *d, const op_pack *p, const op_attention *a)
{
    attn_shape s = {};
    int ld = qkv_width(a);
    s.hopper = d->hopper;
    s.sms = d->sms;
    s.next = d->drawn;
    s.tokens = p->rows;
    s.heads = a->heads;
    s.kv_heads = a->kv_heads;
    s.head_dim = a->head_dim;
    s.q_stride = s.k_stride = s.v_stride = s.dq_stride = s.dk_stride = s.dv_stride = ld;
    s.o_stride = s.do_stride = a->heads * a->head_dim;
    return s;
}

void cu_attention(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv, void *o, float *lse)
{
    TRACE(d, "attention R %d", p->rows);
    const cuda_pack *c = pack_dev(p);
    attn_shape s = shape_of(d, p, a);
    const bf16 *q = (const bf16 *)qkv, *k = q + a->heads * a->head_dim, *v = k + a->kv_heads * a->head_dim;
    float *scratch = lse ? NULL : (float *)dev_alloc(d, (size_t)p->rows * a->heads * sizeof(float));

    zero_padding(d, p, s.o_stride, o);
    if (c->n_attn && (lse || scratch))
        DEV_CHECK(d, attn_forward(d->stream, &s, c->attn, c->n_attn, q, k, v, (bf16 *)o, lse ? lse : scratch));
    dev_free(d, scratch);
}

void cu_attention_back(op_dev *d, const op_pack *p, const op_attention *a, const void *dout, const void *o,
                       const void *qkv, const float *lse, const float *table, void *dqkv)
{
    TRACE(d, "attention_back R %d", p->rows);
    const cuda_pack *c = pack_dev(p);
    attn_shape s = shape_of(d, p, a);
    int k0 = a->heads * a->head_dim, v0 = k0 + a->kv_heads * a->head_dim;
    const bf16 *q = (const bf16 *)qkv;
    bf16 *dq = (bf16 *)dqkv;
    float *delta = (float *)dev_alloc(d, (size_t)p->rows * a->heads * sizeof(float));
    s.rope = table;
    s.pos = c->pos;

    zero_padding(d, p, s.q_stride, dqkv);
    if (c->n_attn && delta)
        DEV_CHECK(d, attn_backward(d->stream, &s, c->attn, c->n_attn, q, q + k0, q + v0, (const bf16 *)o, lse,
                                   (const bf16 *)dout, delta, dq, dq + k0, dq + v0));
    if (table && !attn_on_hopper(&s))
        rotate(d, p, a, table, true, dqkv);
    dev_free(d, delta);
}
