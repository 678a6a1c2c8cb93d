/* Pieces that the decode kernels share, so that all of them give the same bits: the term of an adapter, a column of
 * h = x A^T, attention over a slice of a cache.  What other blocks may have written since the kernel began is read past
 * the first cache (__ldcg). */
#ifndef DTX_CUDA_DECODE_CUH
#define DTX_CUDA_DECODE_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/vec.cuh"

#include <math_constants.h>

/* ---- adapters ---- */

struct lora_row { /* the two vectors of one output's term; B NULL: none */
    const bf16 *h, *B;
    int rank;
    float scale;
};

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
            sum = dot8(__ldcg((const uint4 *)(v.h + j)), *(const uint4 *)(v.B + j), sum);
    } else {
        for (int j = 0; j < v.rank; j++)
            sum += __bfloat162float(__ldcg(v.h + j)) * __bfloat162float(v.B[j]);
    }
    return __fmul_rn(v.scale, sum); /* not joined with an addition in one kernel and not in the other */
}

enum { TEAM = 4 /* a column of h is the sum of so many pieces of the row, in order */ };

/* The piece `member` of a row of n: [first, end). */
__device__ __forceinline__ void piece_of(int n, int member, int *first, int *end)
{
    int quarter = (n / TEAM + 255) / 256 * 256;
    *first = min(member * quarter, n);
    *end = member + 1 < TEAM ? min(*first + quarter, n) : n;
}

/* One lane's share of a piece of A . x, both 16-byte aligned. */
template <bool FRESH> __device__ __forceinline__ float piece_dot(const bf16 *A, const bf16 *x, int first, int end, int lane)
{
    float sum = 0.f;
#pragma unroll 6
    for (int i = first + lane * 8; i < end; i += 256) {
        uint4 a = *(const uint4 *)(A + i), b = FRESH ? __ldcg((const uint4 *)(x + i)) : *(const uint4 *)(x + i);
        sum = dot8(a, b, sum);
    }
    return sum;
}

/* ---- attention ---- */

enum { MAX_HEAD = 128, ATTEND_WARPS = 4, ATTEND_THREADS = ATTEND_WARPS * 32 };

struct attend_args {
    const op_seq *seqs;
    const float *table;
    const bf16 *qkv;
    int heads, kv_heads, dim, layer, slices;
    float scale;
    float *partial; /* [row][head][slice][2 + dim]: max, sum, weighted values */
};

struct attend_room { /* shared memory of ATTEND_THREADS threads */
    float score[DECODE_SLICE], q[MAX_HEAD], k[MAX_HEAD], value[ATTEND_WARPS][MAX_HEAD], red[ATTEND_WARPS];
};

/* Where a slice begins in the cache: k; v lies `plane` further on. */
__device__ __forceinline__ bf16 *slice_of(const attend_args &a, const op_seq &s, int head, int slice, size_t *plane)
{
    int kv_dim = a.kv_heads * a.dim;
    *plane = (size_t)s.kv_cap * kv_dim;
    return (bf16 *)s.kv + (size_t)a.layer * 2 * *plane + (size_t)slice * DECODE_SLICE * kv_dim +
           head / (a.heads / a.kv_heads) * a.dim;
}

__device__ __forceinline__ void prefetch_slice(const attend_args &a, const op_seq &s, int head, int slice, int tid)
{
    size_t plane;
    const bf16 *k = slice_of(a, s, head, slice, &plane);
    int n = min(s.pos0 - slice * DECODE_SLICE, (int)DECODE_SLICE), kv_dim = a.kv_heads * a.dim;
    if (tid < n)
        for (int i = 0; i < a.dim; i += 64) {
            prefetch_l2(k + (size_t)tid * kv_dim + i);
            prefetch_l2(k + plane + (size_t)tid * kv_dim + i);
        }
}

/* Element i of a rotated vector: the pair (i, i +- half), rounded to bf16 as ops->rope leaves it. */
__device__ __forceinline__ float rotated(const bf16 *v, const float *cs, int i, int half)
{
    int k = i % half;
    float x = __bfloat162float(__ldcg(v + k)), y = __bfloat162float(__ldcg(v + k + half)), c = cs[k], s = cs[half + k];
    return __bfloat162float(__float2bfloat16(i < half ? x * c - y * s : y * c + x * s));
}

/* One slice of a row's head by ATTEND_THREADS threads, of which this is tid; sync() joins them.  This row's own key and
 * value come from qkv, the others from the cache, so that nobody waits for another's store. */
template <class Sync>
__device__ __forceinline__ void attend_slice(const attend_args &a, attend_room *m, const op_seq &s, int row, int head,
                                             int slice, int tid, Sync sync)
{
    int warp = tid / 32, lane = tid % 32, dim = a.dim, kv_dim = a.kv_heads * dim, group = a.heads / a.kv_heads;
    int n = min(s.pos0 + 1 - slice * DECODE_SLICE, (int)DECODE_SLICE), mine = s.pos0 - slice * DECODE_SLICE;
    size_t plane;
    bf16 *k = slice_of(a, s, head, slice, &plane), *v = k + plane;
    const float *cs = a.table + (size_t)s.pos0 * dim;
    const bf16 *qkv = a.qkv + (size_t)row * (a.heads + 2 * a.kv_heads) * dim;
    const bf16 *own_k = qkv + (a.heads + head / group) * dim, *own_v = own_k + kv_dim;
    for (int i = tid; i < dim; i += ATTEND_THREADS) {
        m->q[i] = rotated(qkv + head * dim, cs, i, dim / 2) * a.scale;
        if (mine < DECODE_SLICE) {
            m->k[i] = rotated(own_k, cs, i, dim / 2);
            if (head % group == 0 && s.pos0 < s.kv_cap) {
                k[(size_t)mine * kv_dim + i] = __float2bfloat16(m->k[i]);
                v[(size_t)mine * kv_dim + i] = __ldcg(own_v + i);
            }
        }
    }
    sync();

    /* scores: 8 lanes a key, each lane a run of 8 elements every 64 */
    float top = -CUDART_INF_F;
#pragma unroll
    for (int round = 0; round < DECODE_SLICE / (ATTEND_WARPS * 4); round++) {
        int key = round * ATTEND_WARPS * 4 + warp * 4 + lane / 8;
        float dot = 0.f;
        if (key < n && key != mine) {
#pragma unroll
            for (int c = 0; c < MAX_HEAD; c += 64) {
                int i = c + lane % 8 * 8;
                if (i < dim) {
                    vec<8> e = load<8>(k + (size_t)key * kv_dim + i);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        dot += e.f[j] * m->q[i + j];
                }
            }
        } else if (key == mine) {
            for (int i = lane % 8 * 8; i < dim; i += 64)
                for (int j = 0; j < 8; j++)
                    dot += m->k[i + j] * m->q[i + j];
        }
        for (int x = 4; x; x /= 2)
            dot += __shfl_xor_sync(~0u, dot, x);
        if (key < n) {
            top = fmaxf(top, dot);
            if (lane % 8 == 0)
                m->score[key] = dot;
        }
    }
    for (int x = 16; x; x /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, x));
    if (lane == 0)
        m->red[warp] = top;
    sync();
    for (int i = 0; i < ATTEND_WARPS; i++)
        top = fmaxf(top, m->red[i]);
    for (int key = tid; key < n; key += ATTEND_THREADS)
        m->score[key] = __expf(m->score[key] - top);
    sync();

    /* values: warp w takes keys w, w + 4, ...; a lane pairs of columns */
    float acc[MAX_HEAD / 32] = {}, sum = 0.f;
#pragma unroll 8
    for (int key = warp; key < n; key += ATTEND_WARPS) {
        float p = m->score[key];
        const bf16 *vr = key == mine ? own_v : v + (size_t)key * kv_dim;
        sum += p;
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane * 2;
            if (i < dim) {
                float2 f = __bfloat1622float2(__ldcg((const __nv_bfloat162 *)(vr + i)));
                acc[2 * c] += p * f.x;
                acc[2 * c + 1] += p * f.y;
            }
        }
    }
    for (int c = 0; c < MAX_HEAD / 64; c++)
        if (c * 64 + lane * 2 < dim) {
            m->value[warp][c * 64 + lane * 2] = acc[2 * c];
            m->value[warp][c * 64 + lane * 2 + 1] = acc[2 * c + 1];
        }
    if (lane == 0)
        m->red[warp] = sum; /* its maxima were read before the last sync */
    sync();
    float *out = a.partial + (((size_t)row * a.heads + head) * a.slices + slice) * (2 + dim);
    if (tid == 0) {
        out[0] = top;
        out[1] = m->red[0] + m->red[1] + m->red[2] + m->red[3];
    }
    for (int i = tid; i < dim; i += ATTEND_THREADS)
        out[2 + i] = m->value[0][i] + m->value[1][i] + m->value[2][i] + m->value[3][i];
}

/* Column c of a head from its slices, joined in order; p: the first slice's partial. */
__device__ __forceinline__ bf16 join_slices(const float *p, int used, int dim, int c)
{
    float top = __ldcg(p), sum = __ldcg(p + 1), value = __ldcg(p + 2 + c);
    for (int s = 1; s < used; s++) {
        const float *ps = p + (size_t)s * (2 + dim);
        float next = __ldcg(ps), m = fmaxf(top, next), k = __expf(top - m), b = __expf(next - m);
        sum = sum * k + __ldcg(ps + 1) * b;
        value = value * k + __ldcg(ps + 2 + c) * b;
        top = m;
    }
    return __float2bfloat16(value / sum);
}

#endif
