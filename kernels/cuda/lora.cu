/*
 * The LoRA products of a pack: every job's rows with its own adapter, in one launch for all jobs and all parts.
 *
 *   down       h_t  = drop_t(x) A_t^T              [R, in] -> [R, r]      long contraction
 *   up         y    = add + scale h_t B_t^T         [R, r]  -> [R, out]    short contraction
 *   down_back  dh_t = scale dy_t B_t               [R, out] -> [R, r]
 *   up_back    dx   = sum_t drop_t'(dh_t A_t)       [R, r]  -> [R, in]
 *   grads      dB_t += scale dy_t^T h_t, dA_t += dh_t^T drop_t(x)   over the segment's real rows, ascending
 *
 * A and B enter the products rounded to bf16 (dev_adapter.shadow), h and dh are kept in bf16; sums are float32.
 * All are bound by memory: each reads x or dy once a part and writes y or dx once.  Dropout masks are made where the
 * elements pass through registers, from (sequence, token, layer, target, element): never stored.
 * h: bf16 [parts][R][h_columns], columns from a job's rank up to h_columns are zeros.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/rng.h"
}

enum { THREADS = 128, CHUNK = 64, LD = CHUNK + 8 };

struct lora_args { /* what every kernel here needs; by value */
    const lora_tile *tiles;
    const op_seg *segs;
    const op_seq *seqs;
    const int32_t *seq_of_row;
    const dev_adapter *adapters;
    lora_dims dims;
    int32_t rows, hr; /* R and h_columns */
    int32_t layer, in, out, n_parts;
    int32_t target[3], out0[3], n[3];
};

static lora_args make_args(const op_pack *p, const op_linear *l)
{
    const cuda_pack *c = pack_dev(p);
    lora_args a = {};
    a.tiles = c->tiles;
    a.segs = c->segs;
    a.seqs = c->seqs;
    a.seq_of_row = c->seq_of_row;
    a.adapters = c->adapters;
    a.dims = *p->dims;
    a.rows = p->rows;
    a.hr = h_columns(p);
    a.layer = l->layer;
    a.in = l->in;
    a.out = l->out;
    a.n_parts = l->n_parts;
    for (int i = 0; i < l->n_parts; i++) {
        a.target[i] = l->part[i].target;
        a.out0[i] = l->part[i].out0;
        a.n[i] = l->part[i].n;
    }
    return a;
}

/* ops.h, lora_offset, for the device. */
__device__ __forceinline__ size_t adapter_offset(const lora_dims &d, uint32_t targets, int rank, int layer, int target)
{
    size_t whole = 0, before = 0;
    for (int t = 0; t < DTX_TARGETS; t++) {
        size_t n = targets >> t & 1 ? (size_t)rank * ((size_t)d.in[t] + (size_t)d.out[t]) : 0;
        whole += n;
        before += t < target ? n : 0;
    }
    return (size_t)layer * whole + before;
}

/* rows x 64 elements of a matrix into a tile of row length LD; element (r, c) valid for r < nr, c < nc, else zero.
 * 16-byte copies where the matrix allows it. */
__device__ __forceinline__ void load_chunk(bf16 *tile, const bf16 *src, size_t stride, int rows, int nr, int nc)
{
    if (((uintptr_t)src & 15) == 0 && stride % 8 == 0 && (nc >= CHUNK || nc % 8 == 0)) {
        for (int i = threadIdx.x; i < rows * (CHUNK / 8); i += THREADS) {
            int r = i / (CHUNK / 8), c = i % (CHUNK / 8) * 8;
            bool valid = r < nr && c < nc;
            copy16(tile + r * LD + c, src + (valid ? r * stride + c : 0), valid);
        }
    } else {
        for (int i = threadIdx.x; i < rows * CHUNK; i += THREADS) {
            int r = i / CHUNK, c = i % CHUNK;
            tile[r * LD + c] = r < nr && c < nc ? src[r * stride + c] : __float2bfloat16(0.f);
        }
    }
}

/* The dropout key of a row for (layer, target); 0 rows of padding get any key. */
__device__ __forceinline__ uint64_t row_key(const lora_args &a, int row, int target)
{
    int s = a.seq_of_row[row];
    if (s < 0)
        return 0;
    op_seq q = a.seqs[s];
    return rng_dropout_key(q.drop_key, q.token0 + row - q.row0, a.layer, target);
}

__device__ __forceinline__ uint32_t drop_pair(uint32_t v, uint64_t key, int i, uint32_t threshold)
{
    if (rng_u32(key, (uint32_t)i) < threshold)
        v &= 0xffff0000u;
    if (rng_u32(key, (uint32_t)i + 1) < threshold)
        v &= 0x0000ffffu;
    return v;
}

/* ---- long contraction: out[32 rows, BN of the rank] = X[32, K] M ---- */

/* TRANS false: M = A [r, K] (drop may apply to X, K = in); true: M = B [K, r], X = dy part. */
template <int BN, bool TRANS> __global__ void __launch_bounds__(THREADS) lora_long_kernel(lora_args a, const bf16 *x, bf16 *h)
{
    constexpr int STAGES = 4, XT = LORA_ROWS * LD, MROWS = TRANS ? CHUNK : BN, MT = MROWS * LD;
    extern __shared__ __align__(16) bf16 smem[];
    bf16 *xs = smem, *ms = smem + STAGES * XT;
    const lora_tile t = a.tiles[blockIdx.x];
    int part = blockIdx.y, r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (t.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[t.adapter];
    int target = a.target[part], r = ad.rank;
    bf16 *out = h + ((size_t)part * a.rows + t.row0) * a.hr;
    if (!(ad.targets >> target & 1) || r0 >= a.hr)
        return;
    int K = TRANS ? a.n[part] : a.in, xstride = TRANS ? a.out : a.in;
    const bf16 *xg = x + (size_t)t.row0 * xstride + (TRANS ? a.out0[part] : 0);
    const bf16 *m = ad.shadow + adapter_offset(a.dims, ad.targets, r, a.layer, target) + (TRANS ? (size_t)r * a.in : 0);
    bool drop = !TRANS && ad.threshold;
    uint64_t key0 = 0, key1 = 0;
    int wrow = warp % 2 * 16, khalf = warp / 2 * 32;
    if (drop) {
        key0 = row_key(a, t.row0 + wrow + lane / 4, target);
        key1 = row_key(a, t.row0 + wrow + lane / 4 + 8, target);
    }

    int chunks = (K + CHUNK - 1) / CHUNK;
    auto load_stage = [&](int c) {
        int k = c * CHUNK, s = c % STAGES;
        if (c < chunks) {
            load_chunk(xs + s * XT, xg + k, xstride, LORA_ROWS, t.rows, K - k);
            if (TRANS)
                load_chunk(ms + s * MT, m + (size_t)k * r + r0, r, CHUNK, K - k, min(r - r0, BN));
            else
                load_chunk(ms + s * MT, m + (size_t)r0 * K + k, K, BN, r - r0, K - k);
        }
        copy_commit();
    };
    float acc[BN / 8][4] = {};
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        const bf16 *xt = xs + c % STAGES * XT, *mt = ms + c % STAGES * MT;
#pragma unroll
        for (int kk = 0; kk < 32; kk += 16) {
            uint32_t fa[4];
            frag_a<LD>(fa, xt, wrow, khalf + kk);
            if (drop) {
                int i = c * CHUNK + khalf + kk + lane % 4 * 2;
                fa[0] = drop_pair(fa[0], key0, i, ad.threshold);
                fa[1] = drop_pair(fa[1], key1, i, ad.threshold);
                fa[2] = drop_pair(fa[2], key0, i + 8, ad.threshold);
                fa[3] = drop_pair(fa[3], key1, i + 8, ad.threshold);
            }
#pragma unroll
            for (int n = 0; n < BN; n += 16) {
                uint32_t fb[4];
                if (TRANS)
                    frag_b_t<LD>(fb, mt, khalf + kk, n);
                else
                    frag_b<LD>(fb, mt, n, khalf + kk);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
    /* the two halves of K, in this order; the second pair of warps hands over through shared memory */
    copy_wait<0>();
    __syncthreads();
    float *other = (float *)smem;
    if (warp >= 2)
        for (int n = 0; n < BN / 8; n++)
            for (int j = 0; j < 4; j++)
                other[((warp - 2) * 32 + lane) * (BN / 2) + n * 4 + j] = acc[n][j];
    __syncthreads();
    if (warp >= 2)
        return;
    float factor = TRANS ? ad.scale : ad.keep;
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
        float v[4];
        for (int j = 0; j < 4; j++)
            v[j] = factor * (acc[n][j] + other[(warp * 32 + lane) * (BN / 2) + n * 4 + j]);
        int col = r0 + n * 8 + lane % 4 * 2, row = wrow + lane / 4;
        if (col < a.hr) {
            *(uint32_t *)(out + (size_t)row * a.hr + col) = pack(v[0], v[1]);
            *(uint32_t *)(out + (size_t)(row + 8) * a.hr + col) = pack(v[2], v[3]);
        }
    }
}

/* ---- short contraction: 32 rows x 128 columns of y or dx from h or dh ---- */

enum { UP_COLS = 128, UP_LD = UP_COLS + 8 };

/* acc[16 rows of the warp.. x 64 columns] += h tile x M over the whole rank in chunks of 64. */
template <bool TRANS>
__device__ __forceinline__ void short_product(float (*acc)[4], const bf16 *hg, int hr, const bf16 *m, int ldm, int rank,
                                              int rows, int cols_valid, bf16 *hs, bf16 *ms, int wrow, int wcol)
{
    for (int r0 = 0; r0 < rank; r0 += CHUNK) {
        __syncthreads();
        load_chunk(hs, hg + r0, hr, LORA_ROWS, rows, min(hr - r0, CHUNK));
        if (TRANS) { /* m = A [rank, in]: 64 rank rows x 128 columns, as two tiles of 64 columns */
            load_chunk(ms, m + (size_t)r0 * ldm, ldm, CHUNK, rank - r0, cols_valid);
            load_chunk(ms + CHUNK * LD, m + (size_t)r0 * ldm + (cols_valid > CHUNK ? CHUNK : 0), ldm, CHUNK, rank - r0,
                       cols_valid - CHUNK);
        } else { /* m = B [out, rank]: 128 rows x 64 rank columns */
            load_chunk(ms, m + r0, ldm, UP_COLS, cols_valid, rank - r0);
        }
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        int kmax = min((rank - r0 + 15) / 16 * 16, (int)CHUNK);
        for (int k = 0; k < kmax; k += 16) {
            uint32_t fa[4];
            frag_a<LD>(fa, hs, wrow, k);
#pragma unroll
            for (int n = 0; n < 64; n += 16) {
                uint32_t fb[4];
                if (TRANS)
                    frag_b_t<LD>(fb, ms + wcol / CHUNK * CHUNK * LD, k, n);
                else
                    frag_b<LD>(fb, ms, wcol + n, k);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
}

/* Forward: grid (tiles, 128-column tiles of all parts, one after another). */
__global__ void __launch_bounds__(THREADS) lora_up_kernel(lora_args a, const bf16 *h, const bf16 *add, bf16 *y)
{
    __shared__ __align__(16) bf16 hs[LORA_ROWS * LD], ms[UP_COLS * LD];
    const lora_tile t = a.tiles[blockIdx.x];
    int part = 0, tile = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    while (tile >= (a.n[part] + UP_COLS - 1) / UP_COLS)
        tile -= (a.n[part++] + UP_COLS - 1) / UP_COLS;
    int c0 = tile * UP_COLS, cols = min(a.n[part] - c0, (int)UP_COLS), wrow = warp % 2 * 16, wcol = warp / 2 * 64;
    float acc[8][4] = {}, scale = 0.f;
    if (t.adapter >= 0) {
        const dev_adapter ad = a.adapters[t.adapter];
        int target = a.target[part];
        if (ad.targets >> target & 1) {
            const bf16 *B = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
                            (size_t)ad.rank * a.in + (size_t)c0 * ad.rank;
            short_product<false>(acc, h + ((size_t)part * a.rows + t.row0) * a.hr, a.hr, B, ad.rank, ad.rank, LORA_ROWS,
                                 cols, hs, ms, wrow, wcol);
            scale = ad.scale;
        }
    }
    for (int n = 0; n < 8; n++)
        for (int half = 0; half < 2; half++) {
            int col = wcol + n * 8 + lane % 4 * 2, row = t.row0 + wrow + lane / 4 + half * 8;
            size_t at = (size_t)row * a.out + a.out0[part] + c0 + col;
            for (int j = 0; j < 2; j++)
                if (col + j < cols)
                    y[at + j] = __float2bfloat16((add ? __bfloat162float(add[at + j]) : 0.f) +
                                                 scale * acc[n][half * 2 + j]);
        }
}

/* Backward: grid (tiles, 128-column tiles of `in`); the parts are summed in order, each under its own mask. */
__global__ void __launch_bounds__(THREADS) lora_up_back_kernel(lora_args a, const bf16 *dh, bf16 *dx)
{
    __shared__ __align__(16) bf16 hs[LORA_ROWS * LD], ms[2 * CHUNK * LD];
    const lora_tile t = a.tiles[blockIdx.x];
    int c0 = blockIdx.y * UP_COLS, cols = min(a.in - c0, (int)UP_COLS);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wrow = warp % 2 * 16, wcol = warp / 2 * 64;
    float sum[8][4] = {};
    for (int part = 0; part < a.n_parts && t.adapter >= 0; part++) {
        const dev_adapter ad = a.adapters[t.adapter];
        int target = a.target[part];
        if (!(ad.targets >> target & 1))
            continue;
        const bf16 *A = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) + c0;
        float acc[8][4] = {};
        short_product<true>(acc, dh + ((size_t)part * a.rows + t.row0) * a.hr, a.hr, A, a.in, ad.rank, LORA_ROWS, cols,
                            hs, ms, wrow, wcol);
        uint64_t keys[2] = {0, 0};
        if (ad.threshold)
            for (int half = 0; half < 2; half++)
                keys[half] = row_key(a, t.row0 + wrow + lane / 4 + half * 8, target);
        for (int n = 0; n < 8; n++)
            for (int j = 0; j < 4; j++) {
                int col = c0 + wcol + n * 8 + lane % 4 * 2 + j % 2;
                bool kept = !ad.threshold || rng_u32(keys[j / 2], (uint32_t)col) >= ad.threshold;
                sum[n][j] += kept ? ad.keep * acc[n][j] : 0.f;
            }
    }
    for (int n = 0; n < 8; n++)
        for (int half = 0; half < 2; half++) {
            int col = wcol + n * 8 + lane % 4 * 2, row = t.row0 + wrow + lane / 4 + half * 8;
            bf16 *out = dx + (size_t)row * a.in + c0 + col;
            for (int j = 0; j < 2; j++)
                if (col + j < cols)
                    out[j] = __float2bfloat16(sum[n][half * 2 + j]);
        }
}

/* ---- gradients: G[c, r] += factor * sum over rows X[row, c] V[row, r], rows ascending ---- */

/* WHAT 0: dB [n, r]: X = dy part, V = h.   1: dA [r, in]: X = drop(x), V = dh.
 * grid (64-column tiles of X of all parts, segments, rank / BN). */
template <int BN, int WHAT>
__global__ void __launch_bounds__(THREADS) lora_grad_kernel(lora_args a, const bf16 *x, const bf16 *v)
{
    constexpr int STAGES = 3, XT = CHUNK * LD;
    extern __shared__ __align__(16) bf16 smem[];
    bf16 *xs = smem, *vs = smem + STAGES * XT;
    const op_seg seg = a.segs[blockIdx.y];
    int part = 0, tile = blockIdx.x, r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int width = WHAT == 0 ? a.n[0] : a.in;
    while (tile >= (width + CHUNK - 1) / CHUNK) {
        tile -= (width + CHUNK - 1) / CHUNK;
        part++;
        width = WHAT == 0 ? a.n[part] : a.in;
    }
    if (seg.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    int target = a.target[part];
    if (!ad.g || !(ad.targets >> target & 1) || r0 >= ad.rank)
        return;
    int c0 = tile * CHUNK, xstride = WHAT == 0 ? a.out : a.in, chunks = (seg.rows + CHUNK - 1) / CHUNK;
    const bf16 *xg = x + (size_t)seg.row0 * xstride + (WHAT == 0 ? a.out0[part] : 0) + c0;
    const bf16 *vg = v + ((size_t)part * a.rows + seg.row0) * a.hr + r0;
    bool drop = WHAT == 1 && ad.threshold;

    auto load_stage = [&](int c) {
        int k = c * CHUNK, s = c % STAGES;
        if (c < chunks) {
            load_chunk(xs + s * XT, xg + (size_t)k * xstride, xstride, CHUNK, seg.rows - k, width - c0);
            load_chunk(vs + s * XT, vg + (size_t)k * a.hr, a.hr, CHUNK, seg.rows - k, min(a.hr - r0, BN));
        }
        copy_commit();
    };
    float acc[BN / 8][4] = {};
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        bf16 *xt = xs + c % STAGES * XT, *vt = vs + c % STAGES * XT;
        if (drop) { /* mask the tile in place, each thread half a row */
            int row = threadIdx.x / 2, half = threadIdx.x % 2 * 32;
            uint64_t key = row < seg.rows - c * CHUNK ? row_key(a, seg.row0 + c * CHUNK + row, target) : 0;
            for (int i = 0; i < 32; i += 2) {
                uint32_t *e = (uint32_t *)(xt + row * LD + half + i);
                *e = drop_pair(*e, key, c0 + half + i, ad.threshold);
            }
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < CHUNK; k += 16) {
            uint32_t fa[4];
            frag_a_t<LD>(fa, xt, k, warp * 16);
#pragma unroll
            for (int n = 0; n < BN; n += 16) {
                uint32_t fb[4];
                frag_b_t<LD>(fb, vt, k, n);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
    float *g = ad.g + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
               (WHAT == 0 ? (size_t)ad.rank * a.in : 0);
    float factor = WHAT == 0 ? ad.scale : ad.keep;
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
        for (int j = 0; j < 4; j++) {
            int c = c0 + warp * 16 + lane / 4 + j / 2 * 8, r = r0 + n * 8 + lane % 4 * 2 + j % 2;
            if (c < width && r < ad.rank)
                g[WHAT == 0 ? (size_t)c * ad.rank + r : (size_t)r * a.in + c] += factor * acc[n][j];
        }
}

__global__ void lora_round_kernel(const float *w, bf16 *shadow, size_t n)
{
    size_t i = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= n) {
        float4 v = *(const float4 *)(w + i);
        *(uint2 *)(shadow + i) = make_uint2(pack(v.x, v.y), pack(v.z, v.w));
    } else {
        for (; i < n; i++)
            shadow[i] = __float2bfloat16(w[i]);
    }
}

void lora_round(op_dev *d, const float *w, bf16 *shadow, size_t n)
{
    lora_round_kernel<<<div_up((int64_t)n, 4 * 256), 256, 0, d->stream>>>(w, shadow, n);
    DEV_LAUNCHED(d, "lora_round");
}

/* ---- launches ---- */

template <int BN, bool TRANS> static void launch_long(op_dev *d, const op_pack *p, const lora_args &a, const bf16 *x, bf16 *h)
{
    size_t bytes = 4 * (LORA_ROWS + (TRANS ? CHUNK : BN)) * LD * sizeof(bf16);
    DEV_CHECK(d, cudaFuncSetAttribute(lora_long_kernel<BN, TRANS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    dim3 grid(pack_dev(p)->n_tiles, a.n_parts, div_up(a.hr, BN));
    lora_long_kernel<BN, TRANS><<<grid, THREADS, bytes, d->stream>>>(a, x, h);
    DEV_LAUNCHED(d, "lora long product");
}

template <bool TRANS> static void long_product(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    lora_args a = make_args(p, l);
    if (pack_dev(p)->n_tiles == 0)
        return;
    if (a.hr <= 16)
        launch_long<16, TRANS>(d, p, a, x, h);
    else if (a.hr <= 32)
        launch_long<32, TRANS>(d, p, a, x, h);
    else
        launch_long<64, TRANS>(d, p, a, x, h);
}

void lora_down(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    TRACE(d, "lora_down %d -> %d R %d", l->in, l->out, p->rows);
    long_product<false>(d, p, l, x, h);
}

void lora_down_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, bf16 *dh)
{
    TRACE(d, "lora_down_back %d -> %d R %d", l->in, l->out, p->rows);
    long_product<true>(d, p, l, dy, dh);
}

void lora_up(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *h, const bf16 *add, bf16 *y)
{
    TRACE(d, "lora_up %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    int cols = 0;
    for (int i = 0; i < a.n_parts; i++)
        cols += div_up(a.n[i], UP_COLS);
    lora_up_kernel<<<dim3(pack_dev(p)->n_tiles, cols), THREADS, 0, d->stream>>>(a, h, add, y);
    DEV_LAUNCHED(d, "lora_up");
}

void lora_up_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dh, bf16 *dx)
{
    TRACE(d, "lora_up_back %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    lora_up_back_kernel<<<dim3(pack_dev(p)->n_tiles, div_up(a.in, UP_COLS)), THREADS, 0, d->stream>>>(a, dh, dx);
    DEV_LAUNCHED(d, "lora_up_back");
}

template <int BN, int WHAT>
static void launch_grad(op_dev *d, const op_pack *p, const lora_args &a, const bf16 *x, const bf16 *v)
{
    size_t bytes = 3 * 2 * CHUNK * LD * sizeof(bf16);
    int cols = 0;
    for (int i = 0; i < a.n_parts; i++)
        cols += div_up(WHAT == 0 ? a.n[i] : a.in, CHUNK);
    DEV_CHECK(d, cudaFuncSetAttribute(lora_grad_kernel<BN, WHAT>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      (int)bytes));
    lora_grad_kernel<BN, WHAT><<<dim3(cols, p->n_segs, div_up(a.hr, BN)), THREADS, bytes, d->stream>>>(a, x, v);
    DEV_LAUNCHED(d, "lora gradients");
}

template <int WHAT> static void grad(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, const bf16 *v)
{
    TRACE(d, "lora_grad d%s %d -> %d R %d", WHAT ? "A" : "B", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    if (a.hr <= 16)
        launch_grad<16, WHAT>(d, p, a, x, v);
    else if (a.hr <= 32)
        launch_grad<32, WHAT>(d, p, a, x, v);
    else
        launch_grad<64, WHAT>(d, p, a, x, v);
}

void lora_grads(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *x, const bf16 *h,
                const bf16 *dh)
{
    grad<0>(d, p, l, dy, h);
    grad<1>(d, p, l, x, dh);
}

/* ---- decode: one row = one segment; h = x A^T, one warp a rank column ---- */

__global__ void lora_decode_down_kernel(lora_args a, const bf16 *x, bf16 *h)
{
    int row = blockIdx.x, part = blockIdx.y, lane = threadIdx.x % 32;
    int j = blockIdx.z * (blockDim.x / 32) + threadIdx.x / 32;
    const op_seg seg = a.segs[a.seqs[a.seq_of_row[row]].seg];
    if (seg.adapter < 0 || j >= a.hr)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    int target = a.target[part];
    if (!(ad.targets >> target & 1))
        return;
    float sum = 0.f;
    if (j < ad.rank) {
        const bf16 *A = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) + (size_t)j * a.in;
        const bf16 *xr = x + (size_t)row * a.in;
        if (a.in % 8 == 0 && ((uintptr_t)A & 15) == 0) {
            for (int i = lane * 8; i < a.in; i += 256) {
                uint4 va = *(const uint4 *)(A + i), vx = *(const uint4 *)(xr + i);
                const __nv_bfloat162 *pa = (const __nv_bfloat162 *)&va, *px = (const __nv_bfloat162 *)&vx;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float2 fa = __bfloat1622float2(pa[e]), fx = __bfloat1622float2(px[e]);
                    sum += fa.x * fx.x;
                    sum += fa.y * fx.y;
                }
            }
        } else {
            for (int i = lane; i < a.in; i += 32)
                sum += __bfloat162float(A[i]) * __bfloat162float(xr[i]);
        }
        for (int m = 16; m; m /= 2)
            sum += __shfl_xor_sync(~0u, sum, m);
    }
    if (lane == 0)
        h[((size_t)part * a.rows + row) * a.hr + j] = __float2bfloat16(sum);
}

void lora_decode_down(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    TRACE(d, "lora_decode_down %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    lora_decode_down_kernel<<<dim3(p->rows, a.n_parts, div_up(a.hr, 4)), 128, 0, d->stream>>>(a, x, h);
    DEV_LAUNCHED(d, "lora_decode_down");
}
