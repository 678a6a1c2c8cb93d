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

enum { THREADS = 256, UP_ROWS = 128, UP_COLS = 128, LONG_K = 256, GRAD_COLS = 64, GRAD_CHUNK = 64 };

struct lora_args { /* what every kernel here needs; by value */
    const lora_tile *tiles;
    const op_seg *segs;
    const op_seq *seqs;
    const int32_t *seq_of_row;
    const dev_adapter *adapters;
    const grad_slice *slices;
    const int32_t *first_slice;
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
    a.slices = c->slices;
    a.first_slice = c->first_slice;
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

/* rows x COLS elements of a matrix into a tile of row length COLS + 8; element (r, c) valid for r < nr, c < nc, else
 * zero.  16-byte copies where the matrix allows it. */
template <int COLS>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *src, size_t stride, int rows, int nr, int nc)
{
    constexpr int LD = COLS + 8;
    if (((uintptr_t)src & 15) == 0 && stride % 8 == 0 && (nc >= COLS || nc % 8 == 0)) {
        for (int i = threadIdx.x; i < rows * (COLS / 8); i += THREADS) {
            int r = i / (COLS / 8), c = i % (COLS / 8) * 8;
            bool valid = r < nr && c < nc;
            copy16(tile + r * LD + c, src + (valid ? r * stride + c : 0), valid);
        }
    } else {
        for (int i = threadIdx.x; i < rows * COLS; i += THREADS) {
            int r = i / COLS, c = i % COLS;
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

/* SMALL: for devices with about 100 KB of shared memory a block. */
template <int BN, bool TRANS, bool SMALL> struct long_shape {
    static constexpr int STAGES = SMALL ? 2 : BN == 64 || TRANS ? 3 : 4, XLD = LONG_K + 8, MLD = TRANS ? BN + 8 : XLD,
                         XT = LORA_ROWS * XLD, MT = (TRANS ? LONG_K : BN) * MLD,
                         BYTES = STAGES * (XT + MT) * (int)sizeof(bf16);
};

/* TRANS false: M = A [r, K] (drop may apply to X, K = in); true: M = B [K, r], X = dy part.
 * 8 warps: 2 groups of 16 rows x 4 quarters of every chunk of LONG_K; the quarters' sums are joined in order. */
template <int BN, bool TRANS, bool SMALL>
__global__ void __launch_bounds__(THREADS) lora_long_kernel(lora_args a, const bf16 *x, bf16 *h)
{
    typedef long_shape<BN, TRANS, SMALL> L;
    constexpr int STAGES = L::STAGES;
    extern __shared__ __align__(16) bf16 smem[];
    bf16 *xs = smem, *ms = smem + STAGES * L::XT;
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
    int wrow = warp % 2 * 16, quarter = warp / 2;
    if (drop) {
        key0 = row_key(a, t.row0 + wrow + lane / 4, target);
        key1 = row_key(a, t.row0 + wrow + lane / 4 + 8, target);
    }

    int chunks = (K + LONG_K - 1) / LONG_K;
    auto load_stage = [&](int c) {
        int k = c * LONG_K, s = c % STAGES;
        if (c < chunks) {
            load_tile<LONG_K>(xs + s * L::XT, xg + k, xstride, LORA_ROWS, t.rows, K - k);
            if (TRANS)
                load_tile<BN>(ms + s * L::MT, m + (size_t)k * r + r0, r, LONG_K, K - k, min(r - r0, BN));
            else
                load_tile<LONG_K>(ms + s * L::MT, m + (size_t)r0 * K + k, K, BN, r - r0, K - k);
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
        const bf16 *xt = xs + c % STAGES * L::XT, *mt = ms + c % STAGES * L::MT;
#pragma unroll
        for (int kk = 0; kk < LONG_K / 4; kk += 16) {
            int k = quarter * (LONG_K / 4) + kk;
            uint32_t fa[4];
            frag_a<L::XLD>(fa, xt, wrow, k);
            if (drop) {
                int i = c * LONG_K + k + lane % 4 * 2;
                fa[0] = drop_pair(fa[0], key0, i, ad.threshold);
                fa[1] = drop_pair(fa[1], key1, i, ad.threshold);
                fa[2] = drop_pair(fa[2], key0, i + 8, ad.threshold);
                fa[3] = drop_pair(fa[3], key1, i + 8, ad.threshold);
            }
#pragma unroll
            for (int n = 0; n < BN; n += 16) {
                uint32_t fb[4];
                if (TRANS)
                    frag_b_t<L::MLD>(fb, mt, k, n);
                else
                    frag_b<L::MLD>(fb, mt, n, k);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    /* sums [quarter][32 rows][BN + 2] through shared memory */
    constexpr int SLD = BN + 2;
    float *sums = (float *)smem;
#pragma unroll
    for (int n = 0; n < BN / 8; n++)
        for (int j = 0; j < 4; j++)
            sums[(quarter * LORA_ROWS + wrow + lane / 4 + j / 2 * 8) * SLD + n * 8 + lane % 4 * 2 + j % 2] = acc[n][j];
    __syncthreads();
    float factor = TRANS ? ad.scale : ad.keep;
    for (int i = threadIdx.x; i < LORA_ROWS * BN / 2; i += THREADS) {
        int row = i / (BN / 2), col = i % (BN / 2) * 2;
        float v[2];
        for (int j = 0; j < 2; j++) {
            const float *s = sums + row * SLD + col + j;
            v[j] = factor * (((s[0] + s[LORA_ROWS * SLD]) + s[2 * LORA_ROWS * SLD]) + s[3 * LORA_ROWS * SLD]);
        }
        if (r0 + col < a.hr)
            *(uint32_t *)(out + (size_t)row * a.hr + r0 + col) = pack(v[0], v[1]);
    }
}

/* ---- short contraction: 128 rows x 128 columns of y or dx from h or dh; a warp has 16 rows ---- */

enum { OUT_LD = UP_COLS + 8 };

template <int KC> struct short_shape { /* KC: columns of the rank at a time */
    static constexpr int H = UP_ROWS * (KC + 8), MB = UP_COLS * (KC + 8), MA = KC * OUT_LD, M = MB > MA ? MB : MA,
                         OUT = UP_ROWS * OUT_LD, ALL = H + M > OUT ? H + M : OUT;
};

/* acc[16 rows of the warp x 128 columns] += h tile x M over the whole rank, KC at a time. */
template <int KC, bool TRANS>
__device__ __forceinline__ void short_product(float (*acc)[4], const bf16 *hg, int hr, const bf16 *m, int ldm, int rank,
                                              int cols, bf16 *smem)
{
    bf16 *hs = smem, *ms = smem + short_shape<KC>::H;
    int wrow = threadIdx.x / 32 * 16;
    for (int r0 = 0; r0 < rank; r0 += KC) {
        __syncthreads();
        load_tile<KC>(hs, hg + r0, hr, UP_ROWS, UP_ROWS, min(hr - r0, KC));
        if (TRANS) /* m = A [rank, in]: KC rows x 128 columns */
            load_tile<UP_COLS>(ms, m + (size_t)r0 * ldm, ldm, KC, rank - r0, cols);
        else /* m = B [out, rank]: 128 rows x KC columns */
            load_tile<KC>(ms, m + r0, ldm, UP_COLS, cols, min(rank - r0, KC));
        copy_commit();
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < KC; k += 16) {
            uint32_t fa[4];
            frag_a<KC + 8>(fa, hs, wrow, k);
#pragma unroll
            for (int n = 0; n < UP_COLS; n += 16) {
                uint32_t fb[4];
                if (TRANS)
                    frag_b_t<OUT_LD>(fb, ms, k, n);
                else
                    frag_b<KC + 8>(fb, ms, n, k);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
}

/* out[128 rows, cols] = add + factor * acc; each warp its 16 rows, through shared memory, so that rows are read and
 * written 16 bytes a thread. */
__device__ __forceinline__ void store_short(bf16 *out, const bf16 *add, size_t stride, int cols, const float (*acc)[4],
                                            float factor, bf16 *smem)
{
    int wrow = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    if (stride % 8 || cols % 8 || ((uintptr_t)out & 15) || ((uintptr_t)add & 15)) {
        for (int n = 0; n < UP_COLS / 8; n++)
            for (int j = 0; j < 4; j++) {
                int row = wrow + lane / 4 + j / 2 * 8, col = n * 8 + lane % 4 * 2 + j % 2;
                if (col < cols)
                    out[row * stride + col] =
                        __float2bfloat16((add ? __bfloat162float(add[row * stride + col]) : 0.f) + factor * acc[n][j]);
            }
        return;
    }
    __syncthreads(); /* the tiles of the product were read */
    if (add)
#pragma unroll
        for (int i = lane; i < 16 * (UP_COLS / 8); i += 32) {
            int row = wrow + i / (UP_COLS / 8), col = i % (UP_COLS / 8) * 8;
            if (col < cols)
                *(uint4 *)(smem + row * OUT_LD + col) = *(const uint4 *)(add + row * stride + col);
        }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < UP_COLS / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t *e = (uint32_t *)(smem + (wrow + lane / 4 + half * 8) * OUT_LD + n * 8 + lane % 4 * 2);
            float2 o = add ? __bfloat1622float2(*(__nv_bfloat162 *)e) : make_float2(0.f, 0.f);
            *e = pack(o.x + factor * acc[n][half * 2], o.y + factor * acc[n][half * 2 + 1]);
        }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * (UP_COLS / 8); i += 32) {
        int row = wrow + i / (UP_COLS / 8), col = i % (UP_COLS / 8) * 8;
        if (col < cols)
            *(uint4 *)(out + row * stride + col) = *(const uint4 *)(smem + row * OUT_LD + col);
    }
}

/* Forward: grid (blocks of 128 rows, 128-column tiles of all parts, one after another). */
template <int KC>
__global__ void __launch_bounds__(THREADS) lora_up_kernel(lora_args a, const bf16 *h, const bf16 *add, bf16 *y)
{
    __shared__ __align__(16) bf16 smem[short_shape<KC>::ALL];
    const lora_tile t = a.tiles[blockIdx.y * (UP_ROWS / LORA_ROWS)];
    int part = 0, tile = blockIdx.x;
    while (tile >= (a.n[part] + UP_COLS - 1) / UP_COLS)
        tile -= (a.n[part++] + UP_COLS - 1) / UP_COLS;
    int c0 = tile * UP_COLS, cols = min(a.n[part] - c0, (int)UP_COLS);
    float acc[UP_COLS / 8][4] = {}, scale = 0.f;
    if (t.adapter >= 0) {
        const dev_adapter ad = a.adapters[t.adapter];
        int target = a.target[part];
        if (ad.targets >> target & 1) {
            const bf16 *B = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
                            (size_t)ad.rank * a.in + (size_t)c0 * ad.rank;
            short_product<KC, false>(acc, h + ((size_t)part * a.rows + t.row0) * a.hr, a.hr, B, ad.rank, ad.rank, cols,
                                     smem);
            scale = ad.scale;
        }
    }
    size_t at = (size_t)t.row0 * a.out + a.out0[part] + c0;
    store_short(y + at, add ? add + at : NULL, a.out, cols, acc, scale, smem);
}

/* Backward: grid (blocks of 128 rows, 128-column tiles of `in`); the parts are summed in order, each under its own mask.
 * DROP: some adapter of the pack has dropout; others are computed the same either way. */
template <int KC, bool DROP>
__global__ void __launch_bounds__(THREADS) lora_up_back_kernel(lora_args a, const bf16 *dh, bf16 *dx)
{
    __shared__ __align__(16) bf16 smem[short_shape<KC>::ALL];
    const lora_tile t = a.tiles[blockIdx.y * (UP_ROWS / LORA_ROWS)];
    int c0 = blockIdx.x * UP_COLS, cols = min(a.in - c0, (int)UP_COLS);
    int wrow = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    float sum[UP_COLS / 8][4] = {};
    for (int part = 0; part < a.n_parts && t.adapter >= 0; part++) {
        const dev_adapter ad = a.adapters[t.adapter];
        int target = a.target[part];
        if (!(ad.targets >> target & 1))
            continue;
        const bf16 *A = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) + c0;
        const bf16 *dhg = dh + ((size_t)part * a.rows + t.row0) * a.hr;
        if (!DROP || !ad.threshold) {
            short_product<KC, true>(sum, dhg, a.hr, A, a.in, ad.rank, cols, smem);
            continue;
        }
        float acc[UP_COLS / 8][4] = {};
        short_product<KC, true>(acc, dhg, a.hr, A, a.in, ad.rank, cols, smem);
        uint64_t keys[2] = {row_key(a, t.row0 + wrow + lane / 4, target), row_key(a, t.row0 + wrow + lane / 4 + 8, target)};
#pragma unroll
        for (int n = 0; n < UP_COLS / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int col = c0 + n * 8 + lane % 4 * 2 + j % 2;
                if (rng_u32(keys[j / 2], (uint32_t)col) >= ad.threshold)
                    sum[n][j] += ad.keep * acc[n][j];
            }
    }
    store_short(dx + (size_t)t.row0 * a.in + c0, NULL, a.in, cols, sum, 1.f, smem);
}

/* ---- gradients: G[c, r] += factor * sum over rows X[row, c] V[row, r], rows ascending ----
 *
 * A segment's rows go in slices of GRAD_ROWS.  A segment of one slice adds to the gradient at once; otherwise each slice
 * leaves its sum in `partial` [slot][columns of all parts of dB, then of dA][hr] and grad_join adds them in order. */

template <int BN> struct grad_shape {
    static constexpr int STAGES = 4, XLD = GRAD_COLS + 8, VLD = BN + 8, XT = GRAD_CHUNK * XLD, VT = GRAD_CHUNK * VLD,
                         BYTES = STAGES * (XT + VT) * (int)sizeof(bf16);
};

__host__ __device__ __forceinline__ size_t grad_columns(const lora_args &a)
{
    return (size_t)a.out + (size_t)a.n_parts * a.in;
}

/* WHAT 0: dB [n, r]: X = dy part, V = h.   1: dA [r, in]: X = drop(x), V = dh.
 * grid (64-column tiles of X of all parts, slices, rank / BN); 4 warps of 16 columns x 2 halves of each chunk's rows. */
template <int BN, int WHAT>
__device__ __forceinline__ void grad_block(const lora_args &a, int tile, const bf16 *x, const bf16 *v, float *partial)
{
    typedef grad_shape<BN> G;
    constexpr int STAGES = G::STAGES;
    extern __shared__ __align__(16) bf16 smem[];
    bf16 *xs = smem, *vs = smem + STAGES * G::XT;
    const grad_slice sl = a.slices[blockIdx.y];
    const op_seg seg = a.segs[sl.seg];
    int part = 0, r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int width = WHAT == 0 ? a.n[0] : a.in;
    while (tile >= (width + GRAD_COLS - 1) / GRAD_COLS) {
        tile -= (width + GRAD_COLS - 1) / GRAD_COLS;
        part++;
        width = WHAT == 0 ? a.n[part] : a.in;
    }
    if (seg.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    int target = a.target[part];
    if (!ad.g || !(ad.targets >> target & 1) || r0 >= ad.rank)
        return;
    int c0 = tile * GRAD_COLS, xstride = WHAT == 0 ? a.out : a.in, chunks = (sl.rows + GRAD_CHUNK - 1) / GRAD_CHUNK;
    int row0 = seg.row0 + sl.first;
    const bf16 *xg = x + (size_t)row0 * xstride + (WHAT == 0 ? a.out0[part] : 0) + c0;
    const bf16 *vg = v + ((size_t)part * a.rows + row0) * a.hr + r0;
    bool drop = WHAT == 1 && ad.threshold;

    auto load_stage = [&](int c) {
        int k = c * GRAD_CHUNK, s = c % STAGES;
        if (c < chunks) {
            load_tile<GRAD_COLS>(xs + s * G::XT, xg + (size_t)k * xstride, xstride, GRAD_CHUNK, sl.rows - k, width - c0);
            load_tile<BN>(vs + s * G::VT, vg + (size_t)k * a.hr, a.hr, GRAD_CHUNK, sl.rows - k, min(a.hr - r0, BN));
        }
        copy_commit();
    };
    float acc[BN / 8][4] = {};
    int wcol = warp % 4 * 16, half = warp / 4;
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        bf16 *xt = xs + c % STAGES * G::XT, *vt = vs + c % STAGES * G::VT;
        if (drop) { /* mask the tile in place, each thread a quarter of a row */
            int row = threadIdx.x / 4, at = threadIdx.x % 4 * 16;
            uint64_t key = row < sl.rows - c * GRAD_CHUNK ? row_key(a, row0 + c * GRAD_CHUNK + row, target) : 0;
#pragma unroll
            for (int i = 0; i < 16; i += 2) {
                uint32_t *e = (uint32_t *)(xt + row * G::XLD + at + i);
                *e = drop_pair(*e, key, c0 + at + i, ad.threshold);
            }
            __syncthreads();
        }
#pragma unroll
        for (int k = 0; k < GRAD_CHUNK / 2; k += 16) {
            uint32_t fa[4];
            frag_a_t<G::XLD>(fa, xt, half * (GRAD_CHUNK / 2) + k, wcol);
#pragma unroll
            for (int n = 0; n < BN; n += 16) {
                uint32_t fb[4];
                frag_b_t<G::VLD>(fb, vt, half * (GRAD_CHUNK / 2) + k, n);
                mma(acc[n / 8], fa, fb[0], fb[1]);
                mma(acc[n / 8 + 1], fa, fb[2], fb[3]);
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    /* halves joined, [64 columns][BN + 2] */
    constexpr int SLD = BN + 2;
    float *sums = (float *)smem;
    for (int n = 0; n < BN / 8; n++)
        for (int j = 0; j < 4; j++)
            sums[(half * GRAD_COLS + wcol + lane / 4 + j / 2 * 8) * SLD + n * 8 + lane % 4 * 2 + j % 2] = acc[n][j];
    __syncthreads();
    float *g = ad.g + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
               (WHAT == 0 ? (size_t)ad.rank * a.in : 0);
    float factor = WHAT == 0 ? ad.scale : ad.keep;
    float *mine = partial + ((size_t)max(sl.slot, 0) * grad_columns(a) +
                             (WHAT == 0 ? (size_t)a.out0[part] : a.out + (size_t)part * a.in) + c0) * a.hr + r0;
    for (int i = threadIdx.x; i < GRAD_COLS * BN; i += THREADS) {
        /* dB and partial sums lie by column, dA by rank */
        bool by_column = WHAT == 0 || sl.slot >= 0;
        int c = by_column ? i / BN : i % GRAD_COLS, r = by_column ? i % BN : i / GRAD_COLS;
        if (c0 + c >= width || r0 + r >= ad.rank)
            continue;
        float s = factor * (sums[c * SLD + r] + sums[(GRAD_COLS + c) * SLD + r]);
        if (sl.slot >= 0)
            mine[(size_t)c * a.hr + r] = s;
        else
            g[WHAT == 0 ? (size_t)(c0 + c) * ad.rank + r0 + r : (size_t)(r0 + r) * a.in + c0 + c] += s;
    }
}

template <int BN>
__global__ void __launch_bounds__(THREADS) lora_grad_kernel(lora_args a, int b_tiles, const bf16 *dy, const bf16 *h,
                                                           const bf16 *x, const bf16 *dh, float *partial)
{
    if ((int)blockIdx.x < b_tiles)
        grad_block<BN, 0>(a, blockIdx.x, dy, h, partial);
    else
        grad_block<BN, 1>(a, blockIdx.x - b_tiles, x, dh, partial);
}

/* grid (elements / THREADS of [rank][columns], segments): adds a segment's slices in order. */
__global__ void __launch_bounds__(THREADS) grad_join_kernel(lora_args a, const float *partial)
{
    const grad_slice first = a.slices[a.first_slice[blockIdx.y]];
    if (first.slot < 0)
        return;
    const op_seg seg = a.segs[first.seg];
    const dev_adapter ad = a.adapters[seg.adapter < 0 ? 0 : seg.adapter];
    if (seg.adapter < 0 || !ad.g)
        return;
    size_t columns = grad_columns(a), i = (size_t)blockIdx.x * THREADS + threadIdx.x, col = i / a.hr;
    int r = (int)(i % a.hr), part = 0, n = (seg.rows + GRAD_ROWS - 1) / GRAD_ROWS;
    if (col >= columns || r >= ad.rank)
        return;
    bool is_b = col < (size_t)a.out;
    if (is_b)
        while (part + 1 < a.n_parts && col >= (size_t)a.out0[part + 1])
            part++;
    else
        part = (int)((col - a.out) / a.in);
    int target = a.target[part];
    if (!(ad.targets >> target & 1))
        return;
    const float *p = partial + (size_t)first.slot * columns * a.hr + i;
    float sum = p[0];
    for (int s = 1; s < n; s++)
        sum += p[(size_t)s * columns * a.hr];
    float *g = ad.g + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target);
    if (is_b)
        g[(size_t)ad.rank * a.in + (col - a.out0[part]) * ad.rank + r] += sum;
    else
        g[(size_t)r * a.in + (col - a.out) % a.in] += sum;
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

template <typename K> static void allow_smem(op_dev *d, K kernel, int bytes)
{
    DEV_CHECK(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <int BN, bool SMALL> static void allow_long(op_dev *d)
{
    allow_smem(d, lora_long_kernel<BN, false, SMALL>, long_shape<BN, false, SMALL>::BYTES);
    allow_smem(d, lora_long_kernel<BN, true, SMALL>, long_shape<BN, true, SMALL>::BYTES);
}

static bool small_device(const op_dev *d)
{
    return d->shared_bytes < long_shape<64, true, false>::BYTES;
}

/* Kernels whose tiles need more than 48 KB; once, when the device opens. */
void lora_setup(op_dev *d)
{
    if (small_device(d)) {
        allow_long<16, true>(d);
        allow_long<32, true>(d);
    } else {
        allow_long<16, false>(d);
        allow_long<32, false>(d);
        allow_long<64, false>(d);
    }
    allow_smem(d, lora_grad_kernel<16>, grad_shape<16>::BYTES);
    allow_smem(d, lora_grad_kernel<32>, grad_shape<32>::BYTES);
    allow_smem(d, lora_grad_kernel<64>, grad_shape<64>::BYTES);
}

template <int BN, bool TRANS, bool SMALL>
static void launch_long(op_dev *d, const op_pack *p, const lora_args &a, const bf16 *x, bf16 *h)
{
    dim3 grid(pack_dev(p)->n_tiles, a.n_parts, div_up(a.hr, BN));
    lora_long_kernel<BN, TRANS, SMALL><<<grid, THREADS, long_shape<BN, TRANS, SMALL>::BYTES, d->stream>>>(a, x, h);
    DEV_LAUNCHED(d, "lora long product");
}

template <bool TRANS> static void long_product(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    lora_args a = make_args(p, l);
    if (pack_dev(p)->n_tiles == 0)
        return;
    if (small_device(d)) {
        if (a.hr <= 16)
            launch_long<16, TRANS, true>(d, p, a, x, h);
        else
            launch_long<32, TRANS, true>(d, p, a, x, h);
    } else if (a.hr <= 16) {
        launch_long<16, TRANS, false>(d, p, a, x, h);
    } else if (a.hr <= 32) {
        launch_long<32, TRANS, false>(d, p, a, x, h);
    } else {
        launch_long<64, TRANS, false>(d, p, a, x, h);
    }
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
    dim3 grid(cols, p->rows / UP_ROWS);
    if (a.hr <= 16)
        lora_up_kernel<16><<<grid, THREADS, 0, d->stream>>>(a, h, add, y);
    else
        lora_up_kernel<64><<<grid, THREADS, 0, d->stream>>>(a, h, add, y);
    DEV_LAUNCHED(d, "lora_up");
}

void lora_up_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dh, bf16 *dx)
{
    TRACE(d, "lora_up_back %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    dim3 grid(div_up(a.in, UP_COLS), p->rows / UP_ROWS);
    bool drop = pack_dev(p)->dropout;
    if (a.hr <= 16 && drop)
        lora_up_back_kernel<16, true><<<grid, THREADS, 0, d->stream>>>(a, dh, dx);
    else if (a.hr <= 16)
        lora_up_back_kernel<16, false><<<grid, THREADS, 0, d->stream>>>(a, dh, dx);
    else if (drop)
        lora_up_back_kernel<64, true><<<grid, THREADS, 0, d->stream>>>(a, dh, dx);
    else
        lora_up_back_kernel<64, false><<<grid, THREADS, 0, d->stream>>>(a, dh, dx);
    DEV_LAUNCHED(d, "lora_up_back");
}

/* Floats of `partial` for a linear. */
size_t lora_grad_scratch(const op_pack *p, const op_linear *l)
{
    return (size_t)pack_dev(p)->n_slots * ((size_t)l->out + (size_t)l->n_parts * l->in) * h_columns(p);
}

void lora_grads(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *x, const bf16 *h,
                const bf16 *dh)
{
    TRACE(d, "lora_grads %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    size_t floats = lora_grad_scratch(p, l);
    float *partial = floats ? (float *)dev_alloc(d, floats * sizeof(float)) : NULL;
    int b_tiles = 0;
    if (pack_dev(p)->n_slices == 0 || (floats && !partial))
        return;
    for (int i = 0; i < a.n_parts; i++)
        b_tiles += div_up(a.n[i], GRAD_COLS);
    dim3 grid(b_tiles + a.n_parts * div_up(a.in, GRAD_COLS), pack_dev(p)->n_slices, 1);
    if (a.hr <= 16) {
        lora_grad_kernel<16><<<grid, THREADS, grad_shape<16>::BYTES, d->stream>>>(a, b_tiles, dy, h, x, dh, partial);
    } else if (a.hr <= 32) {
        lora_grad_kernel<32><<<grid, THREADS, grad_shape<32>::BYTES, d->stream>>>(a, b_tiles, dy, h, x, dh, partial);
    } else {
        grid.z = div_up(a.hr, 64);
        lora_grad_kernel<64><<<grid, THREADS, grad_shape<64>::BYTES, d->stream>>>(a, b_tiles, dy, h, x, dh, partial);
    }
    if (partial)
        grad_join_kernel<<<dim3(div_up((int64_t)grad_columns(a) * a.hr, THREADS), p->n_segs), THREADS, 0, d->stream>>>(
            a, partial);
    DEV_LAUNCHED(d, "lora gradients");
    dev_free(d, partial);
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
