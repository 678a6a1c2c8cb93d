/*
 * Decode: few rows, every weight read once; and attention over the KV cache.
 *
 * gemv: y[M, N] = add + x W^T + bias + LoRA.  A block owns 16 rows of W, a warp every eighth chunk of K; it feeds them
 * to the tensor core as the 16-row operand, straight from global memory in 16-byte loads, with up to 8 rows of x as the
 * 8-column operand.  (Any fixed permutation of k applied to both operands leaves the product as it is, so each lane
 * loads 8 consecutive k of its row and they serve as the fragments of two instructions.)  The WARPS slices are summed
 * in order.  Column j of the product depends on row j of x alone, so a row's result is the same for every M.
 * Floor: bytes of W / memory bandwidth.
 *
 * attention_cached: positions in slices of SLICE; each slice's max, sum and weighted values by itself, slices joined in
 * ascending order: independent of load.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

#include <math_constants.h>

enum { WARPS = 8, ROWS = 8, UNROLL = 4 };

struct gemv_lora { /* LoRA of the output: y[r, c] += scale * h_t[r] . B_t[c] */
    const bf16 *h;
    const dev_adapter *row_adapters;
    lora_dims dims;
    int32_t rows, hr, layer, in, n_parts;
    int32_t target[3], out0[3], n[3];
};

struct lora_row { /* the two vectors of one output's term; B NULL: none */
    const bf16 *h, *B;
    int rank;
    float scale;
};

__device__ __forceinline__ lora_row lora_row_of(const gemv_lora &a, int row, int col)
{
    const dev_adapter *ad = &a.row_adapters[row];
    int part = 0;
    while (part + 1 < a.n_parts && col >= a.out0[part + 1])
        part++;
    const bf16 *A = adapter_at(ad, a.layer, a.target[part]);
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

/* One block = 16 rows of W x all of K; grid.x = M / 8, grid.y = N / 16.  Warp w takes chunks w, w + WARPS, ... of 32
 * columns, so that the block reads runs of 2 KB of its rows.  Weights do not depend on earlier kernels: their first
 * loads go out before the wait.  (More, prefetched into L2, made it slower: what the small kernels read queues behind
 * it.) */
template <bool LORA, bool OUT_F32>
__global__ void __launch_bounds__(WARPS * 32, 2) gemv_kernel(gemv_lora a, int M, int N, int K, const bf16 *x,
                                                             const bf16 *W, const bf16 *bias, const bf16 *add, void *y)
{
    __shared__ float part[WARPS][16 * ROWS];
    constexpr int STEP = WARPS * UNROLL;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int n0 = blockIdx.y * 16, m0 = blockIdx.x * ROWS, chunks = K / 32;
    const bf16 *w0 = W + (size_t)min(n0 + g, N - 1) * K + t * 8, *w1 = W + (size_t)min(n0 + g + 8, N - 1) * K + t * 8;
    const bf16 *xr = x + (size_t)min(m0 + g, M - 1) * K + t * 8;
    uint4 a0[2][UNROLL], a1[2][UNROLL];
    chain_next();
    auto fetch = [&](int c, uint4 *p0, uint4 *p1) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            bool in = c + u * WARPS < chunks;
            p0[u] = in ? __ldcs((const uint4 *)(w0 + (size_t)(c + u * WARPS) * 32)) : make_uint4(0, 0, 0, 0);
            p1[u] = in ? __ldcs((const uint4 *)(w1 + (size_t)(c + u * WARPS) * 32)) : make_uint4(0, 0, 0, 0);
        }
    };
    fetch(warp, a0[0], a1[0]);
    int col = n0 + threadIdx.x % 16, row = m0 + threadIdx.x / 16, at = threadIdx.x % 16 * ROWS + threadIdx.x / 16;
    bool writes = threadIdx.x < 16 * ROWS && col < N && row < M;
    lora_row extra = {};
    if (LORA && writes) {
        extra = lora_row_of(a, row, col);
        if (extra.B)
            prefetch_l2(extra.B);
    }
    chain_wait();
    float acc[4] = {};
    auto feed = [&](int c, const uint4 *p0, const uint4 *p1) {
        uint4 b[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            b[u] =
                c + u * WARPS < chunks ? *(const uint4 *)(xr + (size_t)(c + u * WARPS) * 32) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            uint32_t lo[4] = {p0[u].x, p1[u].x, p0[u].y, p1[u].y}, hi[4] = {p0[u].z, p1[u].z, p0[u].w, p1[u].w};
            mma(acc, lo, b[u].x, b[u].y);
            mma(acc, hi, b[u].z, b[u].w);
        }
    };
    for (int c = warp; c < chunks; c += 2 * STEP) {
        fetch(c + STEP, a0[1], a1[1]);
        feed(c, a0[0], a1[0]);
        fetch(c + 2 * STEP, a0[0], a1[0]);
        feed(c + STEP, a0[1], a1[1]);
    }
    float term = LORA && writes ? lora_term(extra) : 0.f, onto = 0.f;
    if (writes && add)
        onto = __bfloat162float(add[(size_t)row * N + col]);
    for (int i = 0; i < 4; i++)
        part[warp][(g + i / 2 * 8) * ROWS + t * 2 + i % 2] = acc[i];
    __syncthreads();
    if (!writes)
        return;
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += part[i][at];
    for (int k = chunks * 32; k < K; k++) /* the tail of a K that is no multiple of 32 */
        sum += __bfloat162float(W[(size_t)col * K + k]) * __bfloat162float(x[(size_t)row * K + k]);
    if (bias)
        sum += __bfloat162float(bias[col]);
    sum = sum + term + onto;
    if (OUT_F32)
        ((float *)y)[(size_t)row * N + col] = sum;
    else
        ((bf16 *)y)[(size_t)row * N + col] = __float2bfloat16(sum);
}

/* For widths whose rows are not 16-byte aligned (small test models): one warp an output. */
template <bool LORA, bool OUT_F32>
__global__ void gemv_any_kernel(gemv_lora a, int M, int N, int K, const bf16 *x, const bf16 *W, const bf16 *bias,
                                const bf16 *add, void *y)
{
    int col = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, row = blockIdx.y, lane = threadIdx.x % 32;
    chain_next();
    chain_wait();
    if (col >= N)
        return;
    float sum = 0.f;
    for (int k = lane; k < K; k += 32)
        sum += __bfloat162float(W[(size_t)col * K + k]) * __bfloat162float(x[(size_t)row * K + k]);
    for (int m = 16; m; m /= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    if (lane)
        return;
    if (bias)
        sum += __bfloat162float(bias[col]);
    if (LORA)
        sum += lora_term(lora_row_of(a, row, col));
    if (add)
        sum += __bfloat162float(add[(size_t)row * N + col]);
    if (OUT_F32)
        ((float *)y)[(size_t)row * N + col] = sum;
    else
        ((bf16 *)y)[(size_t)row * N + col] = __float2bfloat16(sum);
}

template <bool LORA, bool OUT_F32>
static void launch_gemv(op_dev *d, const gemv_lora &a, int M, int N, int K, const bf16 *x, const bf16 *W,
                        const bf16 *bias, const bf16 *add, void *y)
{
    if (K % 8 == 0)
        chain_launch(d, gemv_kernel<LORA, OUT_F32>, dim3(div_up(M, ROWS), div_up(N, 16)), WARPS * 32, 0, a, M, N, K, x,
                     W, bias, add, y);
    else
        chain_launch(d, gemv_any_kernel<LORA, OUT_F32>, dim3(div_up(N, 8), M), 256, 0, a, M, N, K, x, W, bias, add, y);
    DEV_LAUNCHED(d, "gemv");
}

void gemv(op_dev *d, const op_pack *p, const op_linear *l, int M, int N, int K, const bf16 *x, const bf16 *W,
          const bf16 *bias, const bf16 *add, const bf16 *h, void *y, bool out_f32)
{
    TRACE(d, "gemv N %d K %d M %d lora %d", N, K, M, h != NULL);
    gemv_lora a = {};
    if (h) {
        const cuda_pack *c = pack_dev(p);
        a.h = h;
        a.row_adapters = c->row_adapters;
        a.dims = *p->dims;
        a.rows = p->rows;
        a.hr = h_columns(p);
        a.layer = l->layer;
        a.in = l->in;
        a.n_parts = l->n_parts;
        for (int i = 0; i < l->n_parts; i++) {
            a.target[i] = l->part[i].target;
            a.out0[i] = l->part[i].out0;
            a.n[i] = l->part[i].n;
        }
        launch_gemv<true, false>(d, a, M, N, K, x, W, bias, add, y);
    } else if (out_f32) {
        launch_gemv<false, true>(d, a, M, N, K, x, W, bias, add, y);
    } else {
        launch_gemv<false, false>(d, a, M, N, K, x, W, bias, add, y);
    }
}

/* ---- the cache: [layers][2][cap][kv_dim] per sequence ---- */

__device__ __forceinline__ bf16 *cache_at(const op_seq &q, int layer, int which, int kv_dim)
{
    return (bf16 *)q.kv + ((size_t)layer * 2 + which) * q.kv_cap * kv_dim;
}

__global__ void kv_store_kernel(const int32_t *seq_of_row, const op_seq *seqs, const bf16 *qkv, int ld, int q_dim,
                                int kv_dim, int layer)
{
    int row = blockIdx.x, s = seq_of_row[row];
    if (s < 0)
        return;
    const op_seq q = seqs[s];
    int pos = q.pos0 + row - q.row0;
    if (!q.kv || pos >= q.kv_cap)
        return;
    const bf16 *src = qkv + (size_t)row * ld + q_dim;
    bf16 *k = cache_at(q, layer, 0, kv_dim) + (size_t)pos * kv_dim,
         *v = cache_at(q, layer, 1, kv_dim) + (size_t)pos * kv_dim;
    for (int i = threadIdx.x; i < kv_dim; i += blockDim.x) {
        k[i] = src[i];
        v[i] = src[kv_dim + i];
    }
}

void cu_kv_store(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv)
{
    TRACE(d, "kv_store R %d", p->rows);
    int q_dim = a->heads * a->head_dim, kv_dim = a->kv_heads * a->head_dim;
    const cuda_pack *c = pack_dev(p);
    launch(d->stream, kv_store_kernel, p->rows, 128, 0, c->seq_of_row, c->seqs, (const bf16 *)qkv, q_dim + 2 * kv_dim,
           q_dim, kv_dim, a->layer);
    DEV_LAUNCHED(d, "kv_store");
}

enum { SLICE = DECODE_SLICE, MAX_HEAD = 128, CACHED_WARPS = 4 };

/* One block: (row, head, slice).  partial [row][head][slice][2 + dim]: max, sum, weighted values. */
__global__ void __launch_bounds__(CACHED_WARPS * 32)
    cached_slice_kernel(const int32_t *seq_of_row, const op_seq *seqs, const bf16 *qkv, int ld, int heads, int kv_heads,
                        int dim, int layer, float scale, int slices, float *partial)
{
    __shared__ float score[SLICE], q_s[MAX_HEAD], value[CACHED_WARPS][MAX_HEAD], red[CACHED_WARPS];
    int row = blockIdx.x, head = blockIdx.y, slice = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const op_seq q = seqs[seq_of_row[row]];
    int n = q.pos0 + row - q.row0 + 1 - slice * SLICE, kv_dim = kv_heads * dim;
    if (n <= 0)
        return;
    n = min(n, (int)SLICE);
    int kvh = head / (heads / kv_heads);
    const bf16 *k = cache_at(q, layer, 0, kv_dim) + (size_t)slice * SLICE * kv_dim + kvh * dim;
    const bf16 *v = cache_at(q, layer, 1, kv_dim) + (size_t)slice * SLICE * kv_dim + kvh * dim;
    for (int i = threadIdx.x; i < dim; i += blockDim.x)
        q_s[i] = __bfloat162float(qkv[(size_t)row * ld + head * dim + i]) * scale;
    __syncthreads();

    /* scores: 8 lanes a key, each lane a run of 8 elements every 64 */
    float top = -CUDART_INF_F;
    for (int key = warp * 4 + lane / 8; key < SLICE; key += CACHED_WARPS * 4) {
        float dot = 0.f;
        if (key < n)
            for (int i = lane % 8 * 8; i < dim; i += 64) {
                uint4 raw = *(const uint4 *)(k + (size_t)key * kv_dim + i);
                const __nv_bfloat162 *h = (const __nv_bfloat162 *)&raw;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float2 f = __bfloat1622float2(h[e]);
                    dot += f.x * q_s[i + 2 * e];
                    dot += f.y * q_s[i + 2 * e + 1];
                }
            }
        for (int m = 4; m; m /= 2)
            dot += __shfl_xor_sync(~0u, dot, m);
        if (key < n) {
            top = fmaxf(top, dot);
            if (lane % 8 == 0)
                score[key] = dot;
        }
    }
    for (int m = 16; m; m /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    if (lane == 0)
        red[warp] = top;
    __syncthreads();
    for (int i = 0; i < CACHED_WARPS; i++)
        top = fmaxf(top, red[i]);
    for (int key = threadIdx.x; key < n; key += blockDim.x)
        score[key] = __expf(score[key] - top);
    __syncthreads();

    /* values: warp w takes keys w, w + 4, ...; lane a pair of columns */
    float acc[MAX_HEAD / 32] = {}, sum = 0.f;
    for (int key = warp; key < n; key += CACHED_WARPS) {
        float p = score[key];
        sum += p;
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane * 2;
            if (i < dim) {
                float2 f = __bfloat1622float2(*(const __nv_bfloat162 *)(v + (size_t)key * kv_dim + i));
                acc[2 * c] += p * f.x;
                acc[2 * c + 1] += p * f.y;
            }
        }
    }
    for (int c = 0; c < MAX_HEAD / 64; c++)
        if (c * 64 + lane * 2 < dim) {
            value[warp][c * 64 + lane * 2] = acc[2 * c];
            value[warp][c * 64 + lane * 2 + 1] = acc[2 * c + 1];
        }
    __syncthreads(); /* red was read by all before this */
    if (lane == 0)
        red[warp] = sum;
    __syncthreads();
    float *out = partial + (((size_t)row * heads + head) * slices + slice) * (2 + dim);
    if (threadIdx.x == 0) {
        out[0] = top;
        out[1] = red[0] + red[1] + red[2] + red[3];
    }
    for (int i = threadIdx.x; i < dim; i += blockDim.x)
        out[2 + i] = value[0][i] + value[1][i] + value[2][i] + value[3][i];
}

__global__ void cached_join_kernel(const int32_t *seq_of_row, const op_seq *seqs, int heads, int dim, int slices,
                                   const float *partial, bf16 *o)
{
    int row = blockIdx.x, head = blockIdx.y, i = threadIdx.x;
    const op_seq q = seqs[seq_of_row[row]];
    int n = (q.pos0 + row - q.row0) / SLICE + 1;
    const float *p = partial + ((size_t)row * heads + head) * slices * (2 + dim);
    float top = p[0], sum = p[1], value = i < dim ? p[2 + i] : 0.f;
    for (int s = 1; s < n; s++) {
        const float *ps = p + (size_t)s * (2 + dim);
        float m = fmaxf(top, ps[0]), a = __expf(top - m), b = __expf(ps[0] - m);
        sum = sum * a + ps[1] * b;
        value = value * a + (i < dim ? ps[2 + i] * b : 0.f);
        top = m;
    }
    if (i < dim)
        o[((size_t)row * heads + head) * dim + i] = __float2bfloat16(value / sum);
}

/* Scratch for the slices of the longest sequence, one for all layers of a pack. */
float *cached_partial(op_dev *d, const op_pack *p, const op_attention *a, int *slices)
{
    cuda_pack *c = pack_dev(p);
    int longest = 0;

    if (a->head_dim > MAX_HEAD || a->head_dim % 8) {
        dev_fail(d, cudaErrorInvalidValue, "attention_cached: head size must be a multiple of 8 up to 128");
        return NULL;
    }
    if (!c->partial) {
        for (int i = 0; i < p->n_seqs; i++)
            longest = p->seqs[i].pos0 + p->seqs[i].rows > longest ? p->seqs[i].pos0 + p->seqs[i].rows : longest;
        c->slices_cached = div_up(longest, SLICE);
        c->partial =
            (float *)dev_alloc(d, (size_t)p->rows * a->heads * c->slices_cached * (2 + a->head_dim) * sizeof(float));
    }
    *slices = c->slices_cached;
    return c->partial;
}

void cu_attention_cached(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv, void *o)
{
    TRACE(d, "attention_cached R %d", p->rows);
    const cuda_pack *c = pack_dev(p);
    int ld = (a->heads + 2 * a->kv_heads) * a->head_dim, slices;
    float *partial = cached_partial(d, p, a, &slices);

    if (!partial)
        return;
    launch(d->stream, cached_slice_kernel, dim3(p->rows, a->heads, slices), CACHED_WARPS * 32, 0, c->seq_of_row,
           c->seqs, (const bf16 *)qkv, ld, a->heads, a->kv_heads, a->head_dim, a->layer, a->scale, slices, partial);
    launch(d->stream, cached_join_kernel, dim3(p->rows, a->heads), div_up(a->head_dim, 32) * 32, 0, c->seq_of_row,
           c->seqs, a->heads, a->head_dim, slices, partial, (bf16 *)o);
    DEV_LAUNCHED(d, "attention_cached");
}
