/* What the kernels of attention_hopper.cu and attention_hopper_back.cu do with tiles of 64 rows. */
#ifndef DTX_CUDA_HOPPER_TILES_CUH
#define DTX_CUDA_HOPPER_TILES_CUH

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx/launch.cuh"
#include "kernels/cuda/ring.cuh"

typedef __nv_bfloat16 bf16;

enum { TILE = ATTN_TILE, ROWS = ATTN_ROWS, BLOCK = 3 * 128 /* THREADS of ring.cuh, on the host too */ };

#define LOG2E 1.4426950408889634f

#ifdef DTX_WGMMA

/* ---- products ---- */

/* 64 rows x D as the a operands of D / 16 products. */
template <int D> __device__ __forceinline__ void load_fragments(uint32_t (*a)[4], const bf16 *tile)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP / 32 * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        int c = k * 2 + lane / 16;
        load4(a[k], tile + c / 8 * TILE * 64 + row * 64 + (c % 8 ^ row % 8) * 8);
    }
}

/* acc[64 x N] = A[64, D] B[N, D]^T, started */
template <int D, int N>
__device__ __forceinline__ void start_scores(float (*acc)[4], const uint32_t (*a)[4], const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < D; k += 16)
        wg_registers<N, 0>(acc, a[k / 16], k_major(b + k / 64 * N * 64 + k % 64), k > 0);
    wg_commit();
}

template <int D> __device__ __forceinline__ void start_scores(float (*acc)[4], const bf16 *a, const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        int at = k / 64 * TILE * 64 + k % 64;
        wg_tiles<TILE, 0>(acc, k_major(a + at), k_major(b + at), k > 0);
    }
    wg_commit();
}

/* acc[64 x D] += P[64 x N] (rounded to bf16) tile[N, D], started */
template <int D, int N>
__device__ __forceinline__ void start_weighted(float (*acc)[4], const uint32_t (*p)[4], const bf16 *tile)
{
#pragma unroll
    for (int k = 0; k < N / 16; k++)
        wg_registers<D, 1>(acc, p[k], n_major(tile + k * 16 * 64, N * 128), 1);
    wg_commit();
}

template <int N> __device__ __forceinline__ void round_probs(uint32_t (*a)[4], const float (*p)[4])
{
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        a[k][0] = pack(p[2 * k][0], p[2 * k][1]);
        a[k][1] = pack(p[2 * k][2], p[2 * k][3]);
        a[k][2] = pack(p[2 * k + 1][0], p[2 * k + 1][1]);
        a[k][3] = pack(p[2 * k + 1][2], p[2 * k + 1][3]);
    }
}

/* Products of two pairs of bf16. */
__device__ __forceinline__ float dot(uint32_t a, uint32_t b)
{
    float2 x = __bfloat1622float2(*(const __nv_bfloat162 *)&a), y = __bfloat1622float2(*(const __nv_bfloat162 *)&b);
    return fmaf(x.x, y.x, x.y * y.y);
}

/* The sum over a row's four lanes. */
__device__ __forceinline__ float row_sum(float x)
{
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

/* Turns this thread's two rows back by their positions' angles, as rope does with inverse; see ops.h. */
template <int D>
__device__ __forceinline__ void turn_back(float (*acc)[4], const float *table, const int32_t *pos, int rows_valid)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (row + h * 8 >= rows_valid)
            continue;
        const float *cos = table + (int64_t)pos[row + h * 8] * D + lane % 4 * 2, *sin = cos + D / 2;
#pragma unroll
        for (int n = 0; n < D / 16; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float &x = acc[n][h * 2 + j], &y = acc[n + D / 16][h * 2 + j], c = cos[n * 8 + j], z = sin[n * 8 + j];
                float back = x * c + y * z;
                y = y * c - x * z;
                x = back;
            }
    }
}

/* A row's four lanes have its columns in pairs.  Of four pieces of 8 columns, each gets one whole. */
__device__ __forceinline__ void exchange(uint32_t w[4])
{
    int t = threadIdx.x % 4;
#pragma unroll
    for (int m = 1; m <= 2; m++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint32_t &low = w[m == 1 ? 2 * i : i], &high = w[m == 1 ? 2 * i + 1 : i + 2];
            uint32_t got = __shfl_xor_sync(~0u, t & m ? low : high, m);
            low = t & m ? got : low;
            high = t & m ? high : got;
        }
}

template <int D>
__device__ __forceinline__ void store_rows(bf16 *out, int stride, const float (*acc)[4], float scale0, float scale1,
                                           int rows_valid)
{
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float scale = h ? scale1 : scale0;
        bf16 *to = out + (int64_t)(row + h * 8) * stride + lane % 4 * 8;
#pragma unroll
        for (int n = 0; n < D / 8; n += 4) {
            uint32_t w[4];
#pragma unroll
            for (int i = 0; i < 4; i++)
                w[i] = pack(acc[n + i][h * 2] * scale, acc[n + i][h * 2 + 1] * scale);
            exchange(w);
            if (row + h * 8 < rows_valid)
                *(uint4 *)(to + n * 8) = make_uint4(w[0], w[1], w[2], w[3]);
        }
    }
}

/* ---- fetching for forward_kernel and dq_kernel ---- */

/* COUNT matrices' rows of an item as its base, by warpgroup, and their lse, if it has a place; then the keys and
 * values, N a stage. */
template <int D, int N, int STAGES, int COUNT>
__device__ __forceinline__ void feed_queries(ring<STAGES> &r, const attn_shape &s, const attn_tile *tiles, int items,
                                             const bf16 *const (&rows)[COUNT], const int (&stride)[COUNT],
                                             const bf16 *k, const bf16 *v, const float *lse, bf16 *base,
                                             float *base_lse, bf16 *stages)
{
    feeder f = feed_begin(s.next, items);
    for (int item; (item = feed_draw(f, r)) >= 0;) {
        work w = {tiles[item / s.heads], item % s.heads};
        feed_base(f, r, w);
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int g = 0; g < COMPUTING; g++) {
                int first = w.t.first + g * TILE;
                feed_rows<D, TILE>(base + (i * COMPUTING + g) * TILE * D,
                                   rows[i] + (int64_t)(w.t.start + first) * stride[i] + w.head * D, stride[i],
                                   w.t.len - first);
            }
        if (base_lse) {
            int row = w.t.first + threadIdx.x;
            copy4(base_lse + threadIdx.x, lse + (row < w.t.len ? (int64_t)(w.t.start + row) * s.heads + w.head : 0),
                  row < w.t.len);
        }
        feed_owe(f, &r.base_full);
        int kv = w.head / (s.heads / s.kv_heads);
        for (int key = 0; key < min(w.t.first + ROWS, w.t.len); key += N) {
            bf16 *to = stages + feed_stage(f, r) * 2 * N * D;
            int64_t row = w.t.start + key;
            feed_rows<D, N>(to, k + row * s.k_stride + kv * D, s.k_stride, w.t.len - key);
            feed_rows<D, N>(to + N * D, v + row * s.v_stride + kv * D, s.v_stride, w.t.len - key);
            feed_stage_done(f, r);
        }
    }
    feed_end(f, r);
}

struct span {      /* what a computing warpgroup does of an item of queries */
    int row0, row; /* position of its first row and this thread's first row, the other being 8 further */
    int stages, mine;
};

template <int N> __device__ __forceinline__ span span_of(const work &w)
{
    int g = threadIdx.x / GROUP - 1, row0 = w.t.first + g * TILE;
    return {row0, row0 + (int)threadIdx.x % GROUP / 32 * 16 + (int)threadIdx.x % 32 / 4,
            (min(w.t.first + ROWS, w.t.len) + N - 1) / N, row0 < w.t.len ? row0 / N + 1 : 0};
}
#endif

/* Shared memory starts at a multiple of 1024 bytes. */
__device__ __forceinline__ bf16 *aligned_shared()
{
    DYNAMIC_SHARED(unsigned char, raw);
    return (bf16 *)(raw + ((1024 - (smem_addr(raw) & 1023)) & 1023));
}

template <typename K> static cudaError_t allow_shared(cudaError_t rc, K kernel, int bytes)
{
    return rc == cudaSuccess ? cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) : rc;
}

static inline int blocks(const attn_shape *s, int items)
{
    return items < s->sms ? items : s->sms;
}

#endif
