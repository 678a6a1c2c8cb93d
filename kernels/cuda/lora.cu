/*
 * The LoRA products of a pack: every job's rows with its own adapter, in one launch for all jobs and all parts.
 *
 *   down       h_t  = drop_t(x) A_t^T              [R, in] -> [R, r]      long contraction
 *   up         y    = add + scale h_t B_t^T         [R, r]  -> [R, out]    short contraction
 *   up_back    dx   = sum_t drop_t'(dh_t A_t)       [R, r]  -> [R, in]
 *   (dh and the gradients of A and B: lora_back.cu)
 *
 * A and B enter the products rounded to bf16 (dev_adapter.shadow), h and dh are kept in bf16; sums are float32.
 * All are bound by memory: each reads x or dy once and writes y or dx once.  Dropout masks are made where the elements
 * pass through registers, from (sequence, token, layer, target, element): never stored.
 * h: bf16 [parts][R][h_columns], columns from a job's rank up to h_columns are zeros.
 */
#include "kernels/cuda/lora.cuh"

enum { THREADS = LORA_THREADS, UP_ROWS = 128, UP_COLS = 128, LONG_K = 256 };

/* ---- long contraction: h[32 rows, BN of the rank] = drop(x)[32, in] A^T, PARTS parts from one reading of x ---- */

/* SMALL: for devices with about 100 KB of shared memory a block. */
template <int BN, int PARTS, bool SMALL> struct long_shape {
    static constexpr int STAGES = SMALL ? 2 : BN * PARTS >= 64 ? 3 : 4, LD = LONG_K + 8, XT = LORA_ROWS * LD, MT = BN * LD,
                         STAGE = XT + PARTS * MT, BYTES = STAGES * STAGE * (int)sizeof(bf16);
};

/* grid (row tiles, groups of PARTS parts, blocks of BN).  8 warps: 2 groups of 16 rows x 4 quarters of every chunk of
 * LONG_K; the quarters' sums are joined in order. */
template <int BN, int PARTS, bool SMALL>
__global__ void __launch_bounds__(THREADS) lora_down_kernel(lora_args a, const bf16 *x, bf16 *h)
{
    typedef long_shape<BN, PARTS, SMALL> L;
    constexpr int STAGES = L::STAGES, LD = L::LD;
    extern __shared__ __align__(16) bf16 smem[];
    const lora_tile t = a.tiles[blockIdx.x];
    int part0 = blockIdx.y * PARTS, r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32, K = a.in;
    if (t.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[t.adapter];
    int wrow = warp % 2 * 16, quarter = warp / 2, r = ad.rank;
    const bf16 *xg = x + (size_t)t.row0 * K, *m[PARTS];
    uint64_t key0[PARTS], key1[PARTS];
    bool any = false;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int target = a.target[part0 + p];
        m[p] = NULL;
        if (ad.targets >> target & 1) {
            m[p] = ad.shadow + adapter_offset(a.dims, ad.targets, r, a.layer, target) + (size_t)r0 * K;
            any = true;
        }
        key0[p] = ad.threshold ? row_key(a, t.row0 + wrow + lane / 4, target) : 0;
        key1[p] = ad.threshold ? row_key(a, t.row0 + wrow + lane / 4 + 8, target) : 0;
    }
    if (!any)
        return;

    int chunks = (K + LONG_K - 1) / LONG_K;
    auto load_stage = [&](int c) {
        int k = c * LONG_K;
        bf16 *stage = smem + c % STAGES * L::STAGE;
        if (c < chunks) {
            load_tile<LONG_K>(stage, xg + k, K, LORA_ROWS, t.rows, K - k);
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                if (m[p])
                    load_tile<LONG_K>(stage + L::XT + p * L::MT, m[p] + k, K, BN, r - r0, K - k);
        }
        copy_commit();
    };
    float acc[PARTS][BN / 8][4] = {};
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        const bf16 *xt = smem + c % STAGES * L::STAGE;
#pragma unroll
        for (int kk = 0; kk < LONG_K / 4; kk += 16) {
            int k = quarter * (LONG_K / 4) + kk;
            uint32_t fx[4];
            frag_a<LD>(fx, xt, wrow, k);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                if (!m[p])
                    continue;
                const bf16 *mt = xt + L::XT + p * L::MT;
                uint32_t fa[4] = {fx[0], fx[1], fx[2], fx[3]};
                if (ad.threshold) {
                    int i = c * LONG_K + k + lane % 4 * 2;
                    fa[0] = drop_pair(fa[0], key0[p], i, ad.threshold);
                    fa[1] = drop_pair(fa[1], key1[p], i, ad.threshold);
                    fa[2] = drop_pair(fa[2], key0[p], i + 8, ad.threshold);
                    fa[3] = drop_pair(fa[3], key1[p], i + 8, ad.threshold);
                }
#pragma unroll
                for (int n = 0; n < BN; n += 16) {
                    uint32_t fb[4];
                    frag_b<LD>(fb, mt, n, k);
                    mma(acc[p][n / 8], fa, fb[0], fb[1]);
                    mma(acc[p][n / 8 + 1], fa, fb[2], fb[3]);
                }
            }
        }
    }
    copy_wait<0>();
    __syncthreads();
    /* sums [quarter][32 rows][PARTS * BN + 2] through shared memory */
    constexpr int SLD = PARTS * BN + 2;
    float *sums = (float *)smem;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
            for (int j = 0; j < 4; j++)
                sums[(quarter * LORA_ROWS + wrow + lane / 4 + j / 2 * 8) * SLD + p * BN + n * 8 + lane % 4 * 2 + j % 2] =
                    acc[p][n][j];
    __syncthreads();
    for (int i = threadIdx.x; i < LORA_ROWS * PARTS * BN / 2; i += THREADS) {
        int row = i / (PARTS * BN / 2), col = i % (PARTS * BN / 2) * 2, p = col / BN, c = r0 + col % BN;
        float v[2];
        for (int j = 0; j < 2; j++) {
            const float *s = sums + row * SLD + col + j;
            v[j] = ad.keep * (((s[0] + s[LORA_ROWS * SLD]) + s[2 * LORA_ROWS * SLD]) + s[3 * LORA_ROWS * SLD]);
        }
        if (c < a.hr && (ad.targets >> a.target[part0 + p] & 1))
            *(uint32_t *)(h + ((size_t)(part0 + p) * a.rows + t.row0 + row) * a.hr + c) = pack(v[0], v[1]);
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

static bool small_device(const op_dev *d)
{
    return d->shared_bytes < long_shape<32, 3, false>::BYTES;
}

template <int BN, int PARTS, bool SMALL> static void launch_down(op_dev *d, const op_pack *p, const lora_args *a, const bf16 *x, bf16 *h)
{
    int bytes = long_shape<BN, PARTS, SMALL>::BYTES;
    if (!a) { /* once, when the device opens: tiles of more than 48 KB */
        allow_smem(d, lora_down_kernel<BN, PARTS, SMALL>, bytes);
        return;
    }
    dim3 grid(pack_dev(p)->n_tiles, a->n_parts / PARTS, div_up(a->hr, BN));
    lora_down_kernel<BN, PARTS, SMALL><<<grid, THREADS, bytes, d->stream>>>(*a, x, h);
    DEV_LAUNCHED(d, "lora_down");
}

template <int BN> static void down_by_parts(op_dev *d, const op_pack *p, const lora_args *a, const bf16 *x, bf16 *h)
{
    bool small = small_device(d);
    if (small)
        launch_down<BN, 1, true>(d, p, a, x, h);
    if (!small && (!a || a->n_parts == 1))
        launch_down<BN, 1, false>(d, p, a, x, h);
    if (!small && (!a || a->n_parts == 2))
        launch_down<BN, 2, false>(d, p, a, x, h);
    if (!small && (!a || a->n_parts == 3))
        launch_down<BN, 3, false>(d, p, a, x, h);
}

void lora_setup(op_dev *d)
{
    down_by_parts<16>(d, NULL, NULL, NULL, NULL);
    down_by_parts<32>(d, NULL, NULL, NULL, NULL);
    lora_back_setup(d);
}

void lora_down(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    TRACE(d, "lora_down %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    if (pack_dev(p)->n_tiles == 0)
        return;
    if (a.hr <= 16)
        down_by_parts<16>(d, p, &a, x, h);
    else
        down_by_parts<32>(d, p, &a, x, h);
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
