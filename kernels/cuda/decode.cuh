/* What the kernels of decode share: the adapters' term of an output, and attention over a slice of the cache. */
#ifndef DTX_CUDA_DECODE_CUH
#define DTX_CUDA_DECODE_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/vec.cuh"

#include <math_constants.h>

struct gemv_lora { /* LoRA of the output: y[r, c] += scale * h_t[r] . B_t[c] */
    const bf16 *h;
    const dev_adapter *row_adapters;
    int32_t rows, hr, in, n_parts;
    int32_t target[3], out0[3];
};

struct lora_row { /* the two vectors of one output's term; B NULL: none */
    const bf16 *h, *B;
    int rank;
    float scale;
};

__device__ __forceinline__ lora_row lora_row_of(const gemv_lora &a, const dev_adapter *ad, int layer, int row, int col)
{
    int part = 0;
    while (part + 1 < a.n_parts && col >= a.out0[part + 1])
        part++;
    const bf16 *A = adapter_at(ad, layer, a.target[part]);
    lora_row v = {NULL, NULL, ad->rank, ad->scale};
    if (A) {
        v.B = A + (size_t)v.rank * a.in + (size_t)(col - a.out0[part]) * v.rank;
        v.h = a.h + ((size_t)part * a.rows + row) * a.hr;
    }
    return v;
}

__device__ __forceinline__ float dot8(uint4 a, uint4 b, float sum)
{
    const __nv_bfloat162 *pa = (const __nv_bfloat162 *)&a, *pb = (const __nv_bfloat162 *)&b;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float2 fa = __bfloat1622float2(pa[e]), fb = __bfloat1622float2(pb[e]);
        sum += fa.x * fb.x;
        sum += fa.y * fb.y;
    }
    return sum;
}

__device__ __forceinline__ float lora_term(const lora_row &v)
{
    float sum = 0.f;
    if (!v.B)
        return 0.f;
    if (v.rank % 8 == 0 && ((uintptr_t)v.B & 15) == 0) {
#pragma unroll 2
        for (int j = 0; j < v.rank; j += 8)
            sum = dot8(*(const uint4 *)(v.h + j), *(const uint4 *)(v.B + j), sum);
    } else {
        for (int j = 0; j < v.rank; j++)
            sum += __bfloat162float(v.h[j]) * __bfloat162float(v.B[j]);
    }
    return v.scale * sum;
}

/* The same for N outputs, whose loads are under way together. */
template <int N> __device__ __forceinline__ void lora_terms(const lora_row *v, float *term)
{
    int most = 0;
    bool vectors = true;
#pragma unroll
    for (int u = 0; u < N; u++)
        if (v[u].B) {
            most = max(most, v[u].rank);
            vectors = vectors && v[u].rank % 8 == 0 && ((uintptr_t)v[u].B & 15) == 0;
        }
    if (!vectors) {
        for (int u = 0; u < N; u++)
            term[u] = lora_term(v[u]);
        return;
    }
#pragma unroll
    for (int u = 0; u < N; u++)
        term[u] = 0.f;
    for (int j = 0; j < most; j += 8) {
        uint4 h[N], B[N];
#pragma unroll
        for (int u = 0; u < N; u++)
            if (v[u].B && j < v[u].rank) {
                h[u] = *(const uint4 *)(v[u].h + j);
                B[u] = *(const uint4 *)(v[u].B + j);
            }
#pragma unroll
        for (int u = 0; u < N; u++)
            if (v[u].B && j < v[u].rank)
                term[u] = dot8(h[u], B[u], term[u]);
    }
#pragma unroll
    for (int u = 0; u < N; u++)
        term[u] = v[u].B ? v[u].scale * term[u] : 0.f;
}

gemv_lora gemv_lora_of(const op_pack *p, const op_linear *l, const bf16 *h); /* decode.cu */

/* ---- attention: one row's head over a slice of DECODE_SLICE positions ---- */

enum { MAX_HEAD = 128, ATTEND_WARPS = 8, ATTEND_THREADS = ATTEND_WARPS * 32 };

struct attend_args {
    const op_seq *seqs;
    const float *table;
    const bf16 *qkv;
    int heads, kv_heads, dim, layer, slices;
    float scale;
    float *partial; /* [row][head][slice][2 + dim]: max, sum, weighted values */
};

struct attend_shared {
    float score[DECODE_SLICE], q[MAX_HEAD], k[MAX_HEAD], v[MAX_HEAD], value[ATTEND_WARPS][MAX_HEAD], red[ATTEND_WARPS];
};

struct attend_slice {
    bf16 *k, *v; /* of the slice's first position */
    int n, mine; /* positions of the slice, 0 or less: none; this row's own, perhaps outside */
};

__device__ __forceinline__ attend_slice attend_at(const attend_args &a, const op_seq &s, int head, int slice)
{
    int kv_dim = a.kv_heads * a.dim, kvh = head / (a.heads / a.kv_heads);
    attend_slice c;
    c.n = min(s.pos0 + 1 - slice * DECODE_SLICE, (int)DECODE_SLICE);
    c.mine = s.pos0 - slice * DECODE_SLICE;
    c.k = (bf16 *)s.kv + (size_t)a.layer * 2 * s.kv_cap * kv_dim + (size_t)slice * DECODE_SLICE * kv_dim + kvh * a.dim;
    c.v = c.k + (size_t)s.kv_cap * kv_dim;
    return c;
}

/* Into L2: what does not depend on this step. */
__device__ __forceinline__ void attend_prefetch(const attend_args &a, const op_seq &s, const attend_slice &c,
                                                int thread)
{
    int kv_dim = a.kv_heads * a.dim;
    for (int key = thread; key < c.n; key += ATTEND_THREADS)
        for (int i = 0; i < a.dim && key != c.mine; i += 64) {
            prefetch_l2(c.k + (size_t)key * kv_dim + i);
            prefetch_l2(c.v + (size_t)key * kv_dim + i);
        }
    if (thread * 32 < a.dim)
        prefetch_l2(a.table + (size_t)s.pos0 * a.dim + thread * 32);
}

/* A slice of the cache, but for this row's own position, in the registers of ATTEND_THREADS threads.  Scores: 8 lanes a
 * key, each a run of 8 columns every 64.  Values: 16 lanes a key, each a run of 8 columns. */
struct attend_cache {
    uint4 k[DECODE_SLICE / (ATTEND_WARPS * 4)][MAX_HEAD / 64];
    uint4 v[DECODE_SLICE / (ATTEND_WARPS * 2)];

    __device__ __forceinline__ static int score_key(int round, int thread)
    {
        return round * ATTEND_WARPS * 4 + thread / 8;
    }
    __device__ __forceinline__ static int value_key(int round, int thread)
    {
        return round * ATTEND_WARPS * 2 + thread / 16;
    }
    __device__ __forceinline__ void load(const attend_args &a, const attend_slice &c, int thread)
    {
        int lane = thread % 32, kv_dim = a.kv_heads * a.dim;
#pragma unroll
        for (int r = 0; r < DECODE_SLICE / (ATTEND_WARPS * 4); r++)
#pragma unroll
            for (int part = 0; part < MAX_HEAD / 64; part++) {
                int key = score_key(r, thread), i = part * 64 + lane % 8 * 8;
                if (key < c.n && key != c.mine && i < a.dim)
                    k[r][part] = *(const uint4 *)(c.k + (size_t)key * kv_dim + i);
            }
#pragma unroll
        for (int r = 0; r < DECODE_SLICE / (ATTEND_WARPS * 2); r++) {
            int key = value_key(r, thread), i = lane % 16 * 8;
            if (key < c.n && key != c.mine && i < a.dim)
                v[r] = *(const uint4 *)(c.v + (size_t)key * kv_dim + i);
        }
    }
};

/* Element i of a rotated vector: the pair (i, i +- half), rounded to bf16 as ops->rope leaves it. */
__device__ __forceinline__ float rotated(const bf16 *v, const float *cs, int i, int half)
{
    int k = i % half;
    float x = __bfloat162float(v[k]), y = __bfloat162float(v[k + half]), c = cs[k], s = cs[half + k];
    return __bfloat162float(__float2bfloat16(i < half ? x * c - y * s : y * c + x * s));
}

/* By ATTEND_THREADS threads that have `barrier` of the block.  This row's own key and value come from qkv, so that
 * nobody waits for another's store. */
__device__ __forceinline__ void attend(const attend_args &a, const op_seq &s, const attend_slice &c,
                                       const attend_cache &old, int row, int head, int slice, int thread, int barrier,
                                       attend_shared &m)
{
    int warp = thread / 32, lane = thread % 32, dim = a.dim, kv_dim = a.kv_heads * dim, group = a.heads / a.kv_heads;
    const float *cs = a.table + (size_t)s.pos0 * dim;
    const bf16 *qkv = a.qkv + (size_t)row * (a.heads + 2 * a.kv_heads) * dim;
    const bf16 *own_k = qkv + (a.heads + head / group) * dim, *own_v = own_k + kv_dim;
    auto sync = [&]() { asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"((int)ATTEND_THREADS) : "memory"); };
    for (int i = thread; i < dim; i += ATTEND_THREADS) {
        m.q[i] = rotated(qkv + head * dim, cs, i, dim / 2) * a.scale;
        if (c.mine < DECODE_SLICE) {
            m.k[i] = rotated(own_k, cs, i, dim / 2);
            m.v[i] = __bfloat162float(own_v[i]);
            if (head % group == 0 && s.pos0 < s.kv_cap) {
                c.k[(size_t)c.mine * kv_dim + i] = __float2bfloat16(m.k[i]);
                c.v[(size_t)c.mine * kv_dim + i] = own_v[i];
            }
        }
    }
    sync();

    float top = -CUDART_INF_F;
#pragma unroll
    for (int r = 0; r < DECODE_SLICE / (ATTEND_WARPS * 4); r++) {
        int key = attend_cache::score_key(r, thread);
        float dot = 0.f;
        if (key < c.n && key != c.mine) {
#pragma unroll
            for (int part = 0; part < MAX_HEAD / 64; part++) {
                int i = part * 64 + lane % 8 * 8;
                if (i < dim) {
                    vec<8> e = load<8>((const bf16 *)&old.k[r][part]);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        dot += e.f[j] * m.q[i + j];
                }
            }
        } else if (key == c.mine) {
            for (int i = lane % 8 * 8; i < dim; i += 64)
                for (int j = 0; j < 8; j++)
                    dot += m.k[i + j] * m.q[i + j];
        }
        for (int x = 4; x; x /= 2)
            dot += __shfl_xor_sync(~0u, dot, x);
        if (key < c.n) {
            top = fmaxf(top, dot);
            if (lane % 8 == 0)
                m.score[key] = dot;
        }
    }
    for (int x = 16; x; x /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
    if (lane == 0)
        m.red[warp] = top;
    sync();
    for (int i = 0; i < ATTEND_WARPS; i++)
        top = fmaxf(top, m.red[i]);
    for (int key = thread; key < c.n; key += ATTEND_THREADS)
        m.score[key] = __expf(m.score[key] - top);
    sync();

    float acc[8] = {}, sum = 0.f;
    int col = lane % 16 * 8;
#pragma unroll
    for (int r = 0; r < DECODE_SLICE / (ATTEND_WARPS * 2); r++) {
        int key = attend_cache::value_key(r, thread);
        if (key >= c.n)
            break;
        float p = m.score[key];
        sum += p;
        if (col >= dim)
            continue;
        if (key == c.mine) {
#pragma unroll
            for (int j = 0; j < 8; j++)
                acc[j] += p * m.v[col + j];
        } else {
            vec<8> e = load<8>((const bf16 *)&old.v[r]);
#pragma unroll
            for (int j = 0; j < 8; j++)
                acc[j] += p * e.f[j];
        }
    }
    sum += __shfl_xor_sync(~0u, sum, 16); /* even keys and odd ones */
#pragma unroll
    for (int j = 0; j < 8; j++) {
        acc[j] += __shfl_xor_sync(~0u, acc[j], 16);
        if (lane < 16 && col < dim)
            m.value[warp][col + j] = acc[j];
    }
    if (lane == 0)
        m.red[warp] = sum; /* its maxima were read before the last barrier */
    sync();
    float *out = a.partial + (((size_t)row * a.heads + head) * a.slices + slice) * (2 + dim);
    if (thread == 0) {
        float total = 0.f;
        for (int w = 0; w < ATTEND_WARPS; w++)
            total += m.red[w];
        out[0] = top;
        out[1] = total;
    }
    for (int i = thread; i < dim; i += ATTEND_THREADS) {
        float value = 0.f;
        for (int w = 0; w < ATTEND_WARPS; w++)
            value += m.value[w][i];
        out[2 + i] = value;
    }
}

/* Column c of a head: its `used` slices, joined in order. */
__device__ __forceinline__ float attend_join(const float *p, int used, int dim, int c)
{
    enum { AHEAD = 8 }; /* loads under way */
    float top = p[0], sum = p[1], value = p[2 + c];
    for (int s = 1; s < used; s += AHEAD) {
        float tops[AHEAD], sums[AHEAD], values[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const float *ps = p + (size_t)min(s + i, used - 1) * (2 + dim);
            tops[i] = ps[0];
            sums[i] = ps[1];
            values[i] = ps[2 + c];
        }
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (s + i >= used)
                break;
            float m = fmaxf(top, tops[i]), k = __expf(top - m), b = __expf(tops[i] - m);
            sum = sum * k + sums[i] * b;
            value = value * k + values[i] * b;
            top = m;
        }
    }
    return value / sum;
}

#endif
