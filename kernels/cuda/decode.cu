/*
 * Decode: few rows, every weight read once; and attention over the KV cache.
 *
 * gemv: y[M, N] = add + x W^T + bias + LoRA.  A block owns 16 rows of W, a warp every eighth chunk of K; it feeds them
 * to the tensor core as the 16-row operand, straight from global memory in 16-byte loads, with up to 8 rows of x as the
 * 8-column operand.  (Any fixed permutation of k applied to both operands leaves the product as it is, so each lane
 * loads 8 consecutive k of its row and they serve as the fragments of two instructions.)  The WARPS slices are summed
 * in order.  Column j of the product depends on row j of x alone, so a row's result is the same for every M.
 * Floor: bytes of W / memory bandwidth.
 * LoRA costs little time beside that: the first blocks make h = x A^T while the others read W; these need h only when
 * they are done with that.  A value of h that is not there yet is NOT_YET, so that it tells of itself.
 *
 * attention_cached: positions in slices of SLICE; each slice's max, sum and weighted values by itself, slices joined in
 * ascending order: independent of load.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

#include <math_constants.h>

enum {
    WARPS = 8,
    ROWS = 8,
    UNROLL = 4,
    MOST_MAKERS = 64,
    HELD = 16,  /* 16-byte pieces of A that a lane loads before it waits for x */
    STAGED = 4, /* 16-byte pieces of an output's B that come to shared memory while W is read */
    TILE = 16,  /* columns of y; as many threads have a row, and bring as many pieces of its h */
};

struct gemv_lora { /* LoRA of the output: y[r, c] += scale * h_t[r] . B_t[c] */
    bf16 *h;
    const dev_adapter *row_adapters;
    int32_t rows, hr, layer, in, n_parts;
    int32_t makers; /* blocks that make h of ROWS rows; 0: it is there */
    int32_t near;   /* as many blocks run at a time: the first may have started before the kernel before has ended */
    int32_t target[3], out0[3];
};

struct lora_row { /* the two vectors of one output's term; B NULL: none */
    const bf16 *h, *B;
    int rank;
    float scale;
};

__device__ __forceinline__ int part_of(const gemv_lora &a, int col)
{
    int part = 0;
    while (part + 1 < a.n_parts && col >= a.out0[part + 1])
        part++;
    return part;
}

__device__ __forceinline__ lora_row lora_row_of(const gemv_lora &a, int row, int col)
{
    const dev_adapter *ad = &a.row_adapters[row];
    int part = part_of(a, col);
    /* as adapter_at, but all of the table's loads at a time */
    const bf16 *shadow = ad->shadow;
    int target = a.target[part], rank = ad->rank;
    size_t at = (size_t)a.layer * ad->layer_floats + ad->offset[target] + (size_t)rank * a.in +
                (size_t)(col - a.out0[part]) * rank;
    bool has = shadow && (ad->targets >> target & 1);
    return {has ? a.h + ((size_t)part * a.rows + row) * a.hr : NULL, has ? shadow + at : NULL, rank, ad->scale};
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

/* One of the values of h that a group of rows has, and the row of A for it; A NULL: nobody reads it. */
struct h_value {
    const bf16 *A, *x;
    bf16 *to;
};

__device__ __forceinline__ h_value h_value_of(const gemv_lora &a, int i, int m0, int rows, const bf16 *x)
{
    int row = m0 + i % rows, column = i / rows, part = column / a.hr, j = column % a.hr;
    if (part >= a.n_parts)
        return {};
    const dev_adapter *ad = &a.row_adapters[row];
    const bf16 *A = adapter_at(ad, a.layer, a.target[part]);
    if (!A || j >= ad->rank)
        return {};
    return {A + (size_t)j * a.in, x + (size_t)row * a.in, a.h + ((size_t)part * a.rows + row) * a.hr + j};
}

/* h of ROWS rows by some blocks, a warp a value; those of A that it can hold are there before x is. */
__device__ __forceinline__ void make_h(const gemv_lora &a, int M, const bf16 *x)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, m0 = blockIdx.x * ROWS, rows = min(M - m0, (int)ROWS);
    int end = a.n_parts * a.hr * rows, i = blockIdx.y * WARPS + warp;
    uint4 held[HELD];
    h_value v = i < end ? h_value_of(a, i, m0, rows, x) : h_value();
    auto pieces = [&] { return v.A && a.in % 8 == 0 && ((uintptr_t)v.A & 15) == 0; };
    auto hold = [&](int from) {
#pragma unroll
        for (int u = 0; u < HELD; u++) {
            int k = from + u * 256 + lane * 8;
            held[u] = k < a.in ? *(const uint4 *)(v.A + k) : make_uint4(0, 0, 0, 0);
        }
    };
    if (pieces()) {
        hold(0);
        for (int k = HELD * 256 + lane * 64; k < a.in; k += 32 * 64)
            prefetch_l2(v.A + k);
    }
    chain_wait();
    while (i < end) {
        float sum = 0.f;
        if (pieces()) {
            for (int from = 0; from < a.in; from += HELD * 256) {
                if (from)
                    hold(from);
#pragma unroll
                for (int u = 0; u < HELD; u += HELD / 2) {
                    uint4 piece[HELD / 2];
#pragma unroll
                    for (int i = 0; i < HELD / 2; i++) {
                        int k = from + (u + i) * 256 + lane * 8;
                        piece[i] = k < a.in ? *(const uint4 *)(v.x + k) : make_uint4(0, 0, 0, 0);
                    }
#pragma unroll
                    for (int i = 0; i < HELD / 2; i++)
                        sum = dot8(held[u + i], piece[i], sum);
                }
            }
        } else if (v.A) {
            for (int k = lane; k < a.in; k += 32)
                sum += __bfloat162float(v.A[k]) * __bfloat162float(v.x[k]);
        }
        for (int m = 16; m; m /= 2)
            sum += __shfl_xor_sync(~0u, sum, m);
        if (v.A && lane == 0)
            *v.to = __float2bfloat16(sum == sum ? sum : __uint_as_float(0x7fc00000)); /* never NOT_YET */
        i += a.makers * WARPS;
        v = i < end ? h_value_of(a, i, m0, rows, x) : h_value();
        if (pieces())
            hold(0);
    }
}

__device__ __forceinline__ bool not_yet(uint4 h)
{
    bool missing = false;
    for (uint32_t w : {h.x, h.y, h.z, h.w})
        missing |= (w & 0xffff) == NOT_YET || w >> 16 == NOT_YET;
    return missing;
}

__device__ __forceinline__ bool in_pieces(const lora_row &v)
{
    return v.B && v.rank % 8 == 0 && ((uintptr_t)v.B & 15) == 0;
}

/* A row's h that the TILE threads of the row share: a piece each, until all of it is there.  Called by whole warps.
 * (Read by every thread, the same few lines of the second level's cache took 8 rows 70 ns a tile.) */
__device__ __forceinline__ void await_h(const lora_row &v, uint4 *h, bool shares)
{
    int piece = threadIdx.x % TILE;
    bool missing;
    do {
        missing = shares && piece * 8 < v.rank && not_yet(h[piece]);
        if (missing)
            h[piece] = poll16(v.h + piece * 8);
    } while (__ballot_sync(~0u, missing));
    __syncwarp();
}

/* lora_term with h from shared memory, or as soon as it is there, and B's first pieces from shared memory. */
__device__ __forceinline__ float staged_term(const lora_row &v, const uint4 *h, bool shares,
                                             const uint4 (*B)[TILE * ROWS])
{
    float sum = 0.f;
    if (in_pieces(v)) {
        for (int i = 0; i * 8 < v.rank; i++) {
            uint4 b = i < STAGED ? B[i][threadIdx.x] : *(const uint4 *)(v.B + i * 8), x;
            if (shares && i < TILE)
                x = h[i];
            else
                do
                    x = poll16(v.h + i * 8);
                while (not_yet(x));
            sum = dot8(x, b, sum);
        }
    } else if (v.B) {
        for (int j = 0; j < v.rank; j++) {
            uint16_t x;
            do
                x = poll2(v.h + j);
            while (x == NOT_YET);
            sum += __uint_as_float((uint32_t)x << 16) * __bfloat162float(v.B[j]);
        }
    }
    return v.scale * sum;
}

/* One block = 16 rows of W x all of K; grid.x = M / 8, grid.y = (LORA: makers of h) + N / 16.  Warp w takes chunks w,
 * w + WARPS, ... of 32 columns, so that the block reads runs of 2 KB of its rows.  Weights do not depend on earlier
 * kernels: their first loads go out before the wait; those of two stages in the blocks that start when no small kernel
 * runs.  (More, prefetched into L2, made it slower: what the small kernels read queues behind it.) */
template <bool LORA, bool OUT_F32>
__global__ void __launch_bounds__(WARPS * 32, 2)
    gemv_kernel(const __grid_constant__ gemv_lora a, int M, int N, int K, const bf16 *x, const bf16 *W,
                const bf16 *bias, const bf16 *add, void *y)
{
    __shared__ float part[WARPS][16 * ROWS];
    __shared__ uint4 h_s[LORA ? ROWS : 1][TILE], B_s[LORA ? STAGED : 1][TILE * ROWS];
    constexpr int STEP = WARPS * UNROLL;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int tile = LORA ? (int)blockIdx.y - a.makers : (int)blockIdx.y, n0 = tile * 16, m0 = blockIdx.x * ROWS,
        chunks = K / 32;
    chain_next();
    if (LORA && tile < 0) {
        make_h(a, M, x);
        return;
    }
    const bf16 *w0 = W + (size_t)min(n0 + g, N - 1) * K + t * 8, *w1 = W + (size_t)min(n0 + g + 8, N - 1) * K + t * 8;
    const bf16 *xr = x + (size_t)min(m0 + g, M - 1) * K + t * 8;
    uint4 a0[2][UNROLL], a1[2][UNROLL];
    auto fetch = [&](int c, uint4 *p0, uint4 *p1) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            bool in = c + u * WARPS < chunks;
            p0[u] = in ? __ldcs((const uint4 *)(w0 + (size_t)(c + u * WARPS) * 32)) : make_uint4(0, 0, 0, 0);
            p1[u] = in ? __ldcs((const uint4 *)(w1 + (size_t)(c + u * WARPS) * 32)) : make_uint4(0, 0, 0, 0);
        }
    };
    bool ahead = (int)(blockIdx.y * gridDim.x + blockIdx.x) >= a.near;
    fetch(warp, a0[0], a1[0]);
    if (ahead)
        fetch(warp + STEP, a0[1], a1[1]);
    in_order();
    int col = n0 + threadIdx.x % 16, row = m0 + threadIdx.x / 16, at = threadIdx.x % 16 * ROWS + threadIdx.x / 16;
    bool has_row = threadIdx.x < TILE * ROWS && row < M, writes = has_row && col < N;
    uint4 *h_row = h_s[LORA ? threadIdx.x / TILE % ROWS : 0];
    lora_row extra = {};
    bool shares = false; /* h with the row's other threads: all columns are of one part */
    if (LORA && has_row) {
        extra = lora_row_of(a, row, min(col, N - 1));
        shares = in_pieces(extra) && part_of(a, n0) == part_of(a, min(n0 + TILE, N) - 1);
#pragma unroll
        for (int i = 0; i < STAGED; i++)
            if (in_pieces(extra) && i * 8 < extra.rank)
                copy16(&B_s[i][threadIdx.x], extra.B + i * 8, true);
    }
    auto bring_h = [&] {
        int piece = threadIdx.x % TILE;
        if (shares && piece * 8 < extra.rank)
            copy16(h_row + piece, extra.h + piece * 8, true);
    };
    chain_wait();
    if (!ahead)
        fetch(warp + STEP, a0[1], a1[1]);
    float acc[4] = {}, onto = 0.f;
    if (writes && add)
        onto = __bfloat162float(add[(size_t)row * N + col]);
    in_order();
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
        feed(c, a0[0], a1[0]);
        fetch(c + 2 * STEP, a0[0], a1[0]);
        if (LORA && c + 2 * STEP >= chunks) /* the last time */
            bring_h();
        in_order();
        feed(c + STEP, a0[1], a1[1]);
        fetch(c + 3 * STEP, a0[1], a1[1]);
        in_order();
    }
    float term = 0.f;
    if (LORA) {
        if (warp >= chunks) /* the loop had nothing to do */
            bring_h();
        copy_commit();
        copy_wait<0>();
        if (warp < TILE * ROWS / 32) {
            await_h(extra, h_row, shares);
            term = staged_term(extra, h_row, shares, B_s);
        }
    }
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

/* h by itself: for decode_h, and for widths whose rows are not 16-byte aligned (small test models), where a warp then
 * makes an output. */
__global__ void __launch_bounds__(WARPS * 32) h_kernel(const __grid_constant__ gemv_lora a, int M, const bf16 *x)
{
    chain_next();
    make_h(a, M, x);
}

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
static void launch_gemv(op_dev *d, gemv_lora a, int M, int N, int K, const bf16 *x, const bf16 *W, const bf16 *bias,
                        const bf16 *add, void *y)
{
    int groups = div_up(M, ROWS);
    if (K % 8 == 0) {
        chain_launch(d, gemv_kernel<LORA, OUT_F32>, dim3(groups, a.makers + div_up(N, 16)), WARPS * 32, 0, a, M, N, K,
                     x, W, bias, add, y);
    } else {
        if (a.makers)
            chain_launch(d, h_kernel, dim3(groups, a.makers), WARPS * 32, 0, a, M, x);
        chain_launch(d, gemv_any_kernel<LORA, OUT_F32>, dim3(div_up(N, 8), M), 256, 0, a, M, N, K, x, W, bias, add, y);
    }
    DEV_LAUNCHED(d, "gemv");
}

/* rows: of h to be made, 0: none */
static gemv_lora lora_of(const op_pack *p, const op_linear *l, bf16 *h, int rows)
{
    gemv_lora a = {};
    a.h = h;
    a.row_adapters = pack_dev(p)->row_adapters;
    a.rows = p->rows;
    a.hr = h_columns(p);
    a.layer = l->layer;
    a.in = l->in;
    a.n_parts = l->n_parts;
    for (int i = 0; i < l->n_parts; i++) {
        a.target[i] = l->part[i].target;
        a.out0[i] = l->part[i].out0;
    }
    a.makers = div_up(a.n_parts * a.hr * (rows < ROWS ? rows : ROWS), WARPS);
    a.makers = a.makers < MOST_MAKERS ? a.makers : MOST_MAKERS;
    return a;
}

void decode_h(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    TRACE(d, "decode_h %d -> %d R %d", l->in, l->out, p->rows);
    gemv_lora a = lora_of(p, l, h, p->rows);
    chain_launch(d, h_kernel, dim3(div_up(p->rows, ROWS), a.makers), WARPS * 32, 0, a, p->rows, x);
    DEV_LAUNCHED(d, "decode_h");
}

void gemv(op_dev *d, const op_pack *p, const op_linear *l, int M, int N, int K, const bf16 *x, const bf16 *W,
          const bf16 *bias, const bf16 *add, bf16 *h, bool make_h, void *y, bool out_f32)
{
    TRACE(d, "gemv N %d K %d M %d lora %d", N, K, M, h != NULL);
    gemv_lora a = h ? lora_of(p, l, h, make_h ? M : 0) : gemv_lora();
    a.near = 2 * d->sms;
    if (h)
        launch_gemv<true, false>(d, a, M, N, K, x, W, bias, add, y);
    else if (out_f32)
        launch_gemv<false, true>(d, a, M, N, K, x, W, bias, add, y);
    else
        launch_gemv<false, false>(d, a, M, N, K, x, W, bias, add, y);
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
