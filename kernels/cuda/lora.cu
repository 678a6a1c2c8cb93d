/*
 * The LoRA products of a pack: every job's rows with its own adapter, in one launch for all jobs and all parts.
 *
 *   down       h_t  = scale drop_t(x) A_t^T        [R, in] -> [R, r]      long contraction
 *   up         y    = add + h_t B_t^T               [R, r]  -> [R, out]    short contraction
 *   up_back    dx   = sum_t drop_t'(dh_t A_t)       [R, r]  -> [R, in]
 *   (dh and the gradients of A and B: lora_back.cu)
 *
 * Where gemm_hopper.cu serves the frozen product, up and up_back are part of that.
 *
 * A and B enter the products rounded to bf16 (dev_adapter.shadow), h and dh are kept in bf16; sums are float32.
 * All are bound by memory: each reads x or dy once and writes y or dx once.  Dropout masks are made where the elements
 * pass through registers on their way down, from (sequence, token, layer, target, element); what was drawn is kept, a
 * bit each, for dA and dx (kept_at). h: bf16 [parts][R][h_columns], columns from a job's rank up to h_columns are
 * zeros.
 */
#include "kernels/cuda/lora.cuh"

enum { THREADS = LORA_THREADS, UP_ROWS = 128, UP_COLS = 128, UP_TILES = 4, DOWN_SPLIT = 512, DOWN_CHUNK = 64 };

/* ---- down: h[128 rows, BN of the rank] over DOWN_SPLIT of in, PARTS parts from one reading of x ----
 *
 * A block has one stretch of the inner dimension, so that few blocks read the same lines of A at the same time (all of
 * them did when each went over the whole of it: the reading of A took longer than that of x).  What the stretches give
 * is added in order by lora_join. */

template <int BN, int PARTS> struct down_shape {
    static constexpr int STAGES = BN == 16 ? 4 : 3, LD = DOWN_CHUNK + 8, XT = ROW_ALIGN * LD, MT = BN * LD,
                         STAGE = XT + PARTS * MT, BYTES = STAGES * STAGE * (int)sizeof(bf16);
};

/* DROP: some adapter of the pack has dropout; others are computed the same either way.
 * grid (128 rows, stretches, blocks of BN); a warp has 16 rows. */
template <int BN, int PARTS, bool DROP>
__global__ void __launch_bounds__(THREADS, 2) lora_down_kernel(lora_args a, const bf16 *x, float *sums, uint32_t *kept)
{
    typedef down_shape<BN, PARTS> G;
    constexpr int STAGES = G::STAGES, LD = G::LD;
    constexpr int STEP = BN > 16 ? 16
                         : DROP  ? 32
                                 : 64; /* columns of x in registers at a time: draws beside each other */
    DYNAMIC_SHARED(bf16, smem);
    const lora_tile t = a.tiles[blockIdx.x * (ROW_ALIGN / LORA_ROWS)];
    int k0 = blockIdx.y * DOWN_SPLIT, length = min(a.in - k0, (int)DOWN_SPLIT), r0 = blockIdx.z * BN;
    int wrow = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    if (t.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[t.adapter];
    const op_seg seg = a.segs[t.seg];
    int rows = min(seg.row0 + seg.rows - t.row0, (int)ROW_ALIGN), r = ad.rank;
    tile_copy<ROW_ALIGN, DOWN_CHUNK> xs;
    tile_copy<BN, DOWN_CHUNK> as[PARTS];
    xs.begin(x + (size_t)t.row0 * a.in + k0, a.in, length);
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        int target = a.target[p];
        size_t A = adapter_offset(a.dims, ad.targets, r, a.layer, target);
        as[p].begin(ad.shadow + A + (size_t)r0 * a.in + k0, a.in, length);
    }

    auto has = [&](int p) { return (ad.targets >> a.target[p] & 1) != 0; };
    int chunks = (length + DOWN_CHUNK - 1) / DOWN_CHUNK;
    auto load_stage = [&](int c) {
        int k = c * DOWN_CHUNK;
        bf16 *stage = smem + c % STAGES * G::STAGE;
        if (c < chunks) {
            xs.load(stage, k, rows, length - k);
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                if (has(p))
                    as[p].load(stage + G::XT + p * G::MT, k, r - r0, length - k);
        }
        copy_commit();
    };
    float acc[PARTS][BN / 8][4] = {};
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    /* dropout, of the lane's rows: where the next draws start, see rng.h */
    uint32_t start[PARTS][2], addend[PARTS][2], spare_15 = (65536 - ad.threshold) << 15;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            int row = t.row0 + wrow + lane / 4 + half * 8;
            uint64_t key = DROP && ad.threshold ? row_key(a, row, a.target[p]) : 0;
            start[p][half] = rng_start(key, (uint32_t)k0 / 2 + lane % 4);
            addend[p][half] = rng_addend(key);
        }
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        const bf16 *xt = smem + c % STAGES * G::STAGE;
        uint32_t words[PARTS] = {};
#pragma unroll
        for (int k = 0; k < DOWN_CHUNK; k += STEP) {
            uint32_t fx[STEP / 16][4];
#pragma unroll
            for (int h = 0; h < STEP / 16; h++)
                frag_a<LD>(fx[h], xt, wrow, k + h * 16);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                if (!has(p))
                    continue;
                auto multiply = [&](const uint32_t(*fa)[4]) {
#pragma unroll
                    for (int h = 0; h < STEP / 16; h++)
#pragma unroll
                        for (int n = 0; n < BN; n += 16) {
                            uint32_t fb[4];
                            frag_b<LD>(fb, xt + G::XT + p * G::MT, n, k + h * 16);
                            mma(acc[p][n / 8], fa[h], fb[0], fb[1]);
                            mma(acc[p][n / 8 + 1], fa[h], fb[2], fb[3]);
                        }
                };
                if (DROP && ad.threshold) {
                    uint32_t fa[STEP / 16][4];
                    /* i as kept_at says: 8 rows on if i % 2, 8 columns on if i / 2 % 2 */
#pragma unroll
                    for (int i = 0; i < STEP / 4; i++) {
                        uint32_t from = start[p][i % 2] + (k / 2 + i / 4 * 8 + i / 2 % 2 * 4) * RNG_STEP,
                                 mask = kept_pair(rng_finish(from, addend[p][i % 2]), spare_15);
                        fa[i / 4][i % 4] = fx[i / 4][i % 4] & mask;
                        words[p] += mask * (KEPT_ONES << (k / 4 + i));
                    }
                    multiply(fa);
                } else {
                    multiply(fx);
                }
            }
        }
        if (DROP && ad.threshold) {
            uint32_t *to = kept + kept_at(a.in, a.rows, 0, t.row0 + wrow, k0 + c * DOWN_CHUNK) + kept_word(lane);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                start[p][0] += DOWN_CHUNK / 2 * RNG_STEP;
                start[p][1] += DOWN_CHUNK / 2 * RNG_STEP;
                if (has(p) && blockIdx.z == 0)
                    to[kept_at(a.in, a.rows, p, 0, 0)] = words[p];
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        float *out = sums + (((size_t)p * gridDim.y + blockIdx.y) * a.rows + t.row0 + wrow + lane / 4) * a.hr + r0 +
                     lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < BN; n += 8)
            if (has(p) && r0 + n < a.hr) {
                *(float2 *)(out + n) = make_float2(acc[p][n / 8][0], acc[p][n / 8][1]);
                *(float2 *)(out + (size_t)8 * a.hr + n) = make_float2(acc[p][n / 8][2], acc[p][n / 8][3]);
            }
    }
}

/* grid (row tiles, parts): out[part] = factor * the sum of its n[part] blocks of `sums` [R, hr]; zeros in padding. The
 * factor is alpha / rank, forward also that of kept elements.  JOIN_SHARES groups of threads sum a run of the blocks
 * each, in order, and what they have is added in order: few reads wait for each other. */
enum { JOIN_SHARES = 4, JOIN_GROUP = 128, JOIN_AHEAD = 8 };

template <bool BACK>
__global__ void __launch_bounds__(JOIN_GROUP *JOIN_SHARES)
    lora_join_kernel(lora_args a, int3 n, const float *sums, bf16 *out)
{
    __shared__ floats<4> others[JOIN_SHARES - 1][JOIN_GROUP];
    const lora_tile t = a.tiles[blockIdx.x];
    int part = blockIdx.y, quads = a.hr / 4, count = part == 0 ? n.x : part == 1 ? n.y : n.z;
    chain_begin();
    if (t.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[t.adapter];
    if (!(ad.targets >> a.target[part] & 1))
        return;
    size_t block = (size_t)a.rows * a.hr;
    float factor = BACK ? ad.scale : ad.keep * ad.scale;
    int share = threadIdx.x / JOIN_GROUP, lane = threadIdx.x % JOIN_GROUP,
        run = (count + JOIN_SHARES - 1) / JOIN_SHARES;
    int begin = min(share * run, count), end = min(begin + run, count);
    const float *from = sums + ((part > 0 ? n.x : 0) + (part > 1 ? n.y : 0)) * block + (size_t)t.row0 * a.hr;
    for (int i = lane; i < LORA_ROWS * quads; i += JOIN_GROUP) { /* the same rounds for every thread */
        int row = i / quads, c = i % quads * 4;
        floats<4> s = {};
        if (row < t.rows)
            s = sum_of<4, JOIN_AHEAD>(from + begin * block + (size_t)row * a.hr + c, end - begin, block);
        if (share)
            others[share - 1][lane] = s;
        __syncthreads();
        if (share == 0) {
#pragma unroll
            for (int k = 0; k < JOIN_SHARES - 1; k++)
                add(s, others[k][lane]);
            *(uint2 *)(out + ((size_t)part * a.rows + t.row0 + row) * a.hr + c) =
                make_uint2(pack(factor * s.f[0], factor * s.f[1]), pack(factor * s.f[2], factor * s.f[3]));
        }
        __syncthreads();
    }
}

void lora_join(op_dev *d, const op_pack *p, const lora_args &a, int3 n, bool back, const float *sums, bf16 *out)
{
    dim3 grid(pack_dev(p)->n_tiles, a.n_parts);
    chain_launch(d, back ? lora_join_kernel<true> : lora_join_kernel<false>, grid, JOIN_GROUP * JOIN_SHARES, 0, a, n,
                 sums, out);
    DEV_LAUNCHED(d, "lora_join");
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

/* out[128 rows, cols] = add + acc; each warp its 16 rows, through shared memory, so that rows are read and
 * written 16 bytes a thread. */
__device__ __forceinline__ void store_short(bf16 *out, const bf16 *add, size_t stride, int cols, const float (*acc)[4],
                                            bf16 *smem)
{
    int wrow = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
    if (stride % 8 || cols % 8 || ((uintptr_t)out & 15) || ((uintptr_t)add & 15)) {
        for (int n = 0; n < UP_COLS / 8; n++)
            for (int j = 0; j < 4; j++) {
                int row = wrow + lane / 4 + j / 2 * 8, col = n * 8 + lane % 4 * 2 + j % 2;
                if (col < cols)
                    out[row * stride + col] =
                        __float2bfloat16((add ? __bfloat162float(add[row * stride + col]) : 0.f) + acc[n][j]);
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
            *e = pack(o.x + acc[n][half * 2], o.y + acc[n][half * 2 + 1]);
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
    to_part(a, UP_COLS, &part, &tile);
    int c0 = tile * UP_COLS, cols = min(a.n[part] - c0, (int)UP_COLS);
    float acc[UP_COLS / 8][4] = {};
    if (t.adapter >= 0) {
        const dev_adapter ad = a.adapters[t.adapter];
        int target = a.target[part];
        if (ad.targets >> target & 1) {
            const bf16 *B = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
                            (size_t)ad.rank * a.in + (size_t)c0 * ad.rank;
            short_product<KC, false>(acc, h + ((size_t)part * a.rows + t.row0) * a.hr, a.hr, B, ad.rank, ad.rank, cols,
                                     smem);
        }
    }
    size_t at = (size_t)t.row0 * a.out + a.out0[part] + c0;
    store_short(y + at, add ? add + at : NULL, a.out, cols, acc, smem);
}

/* Backward: grid (blocks of 128 rows, 128-column tiles of `in`); the parts are summed in order, each under its own
 * mask. DROP: some adapter of the pack has dropout; others are computed the same either way. */
template <int KC, bool DROP>
__global__ void __launch_bounds__(THREADS)
    lora_up_back_kernel(lora_args a, const bf16 *dh, const uint32_t *kept, bf16 *dx)
{
    __shared__ __align__(16) bf16 smem[short_shape<KC>::ALL];
    const lora_tile t = a.tiles[blockIdx.y * (UP_ROWS / LORA_ROWS)];
    int c0 = blockIdx.x * UP_COLS, cols = min(a.in - c0, (int)UP_COLS);
    int wrow = threadIdx.x / 32 * 16;
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
        const uint32_t *words = kept + kept_at(a.in, a.rows, part, t.row0 + wrow, c0) + kept_word(threadIdx.x % 32);
        short_product<KC, true>(acc, dhg, a.hr, A, a.in, ad.rank, cols, smem);
#pragma unroll
        for (int n = 0; n < UP_COLS / 8; n++)
            kept_add(sum[n], acc[n], words[n / 8 * 32], n % 8, ad.keep);
    }
    store_short(dx + (size_t)t.row0 * a.in + c0, NULL, a.in, cols, sum, smem);
}

/* ---- the same for ranks up to 16, the usual case: a block goes over UP_TILES column tiles, the next one's part of B
 * or A and its rows of `add` on their way meanwhile ---- */

struct narrow_shape {
    static constexpr int LD = 16 + 8, H = UP_ROWS * LD, M = UP_COLS * LD, OUT = UP_ROWS * OUT_LD,
                         KEPT_LD = UP_COLS / 32, KEPT = UP_ROWS * KEPT_LD; /* words */
    static constexpr int bytes(int parts, bool drop = false)
    {
        return (parts * H + 2 * parts * M + OUT) * (int)sizeof(bf16) + drop * parts * KEPT * (int)sizeof(uint32_t);
    }
};

__host__ __device__ __forceinline__ int narrow_groups(int columns)
{
    return (columns + UP_COLS * UP_TILES - 1) / (UP_COLS * UP_TILES);
}

/* BACK: dx from dh and A, parts summed in order, each under its own mask; else y of one part from h and B.
 * grid (groups of column tiles, of all parts if forward; 128 rows); a warp has 16 rows. */
template <bool BACK, bool DROP>
__global__ void __launch_bounds__(THREADS, 2)
    lora_narrow_kernel(lora_args a, const bf16 *h, const uint32_t *kept, const bf16 *add, bf16 *y)
{
    typedef narrow_shape S;
    DYNAMIC_SHARED(bf16, smem);
    const lora_tile t = a.tiles[blockIdx.y * (UP_ROWS / LORA_ROWS)];
    int parts = BACK ? a.n_parts : 1, first = 0, group = blockIdx.x, wrow = threadIdx.x / 32 * 16,
        lane = threadIdx.x % 32;
    while (!BACK && group >= narrow_groups(a.n[first]))
        group -= narrow_groups(a.n[first++]);
    int width = BACK ? a.in : a.n[first], begin = group * UP_TILES * UP_COLS,
        end = min(width, begin + UP_TILES * UP_COLS);
    size_t ld = BACK ? a.in : a.out, at = (size_t)t.row0 * ld + (BACK ? 0 : a.out0[first]);
    bf16 *hs = smem, *ms = hs + parts * S::H, *os = ms + 2 * parts * S::M;
    const bf16 *m[3] = {};
    dev_adapter ad = {};
    if (t.adapter >= 0)
        ad = a.adapters[t.adapter];
#pragma unroll
    for (int q = 0; q < 3; q++)
        if (q < parts && t.adapter >= 0 && (ad.targets >> a.target[first + q] & 1)) {
            int target = a.target[first + q];
            m[q] = ad.shadow + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) +
                   (BACK ? 0 : (size_t)ad.rank * a.in);
            load_tile<16>(hs + q * S::H, h + ((size_t)(first + q) * a.rows + t.row0) * a.hr, a.hr, UP_ROWS, UP_ROWS,
                          16);
        }
    auto load_m = [&](int c0, int buffer) {
#pragma unroll
        for (int q = 0; q < 3; q++)
            if (m[q] && c0 < end) {
                bf16 *tile = ms + (buffer * parts + q) * S::M;
                if (BACK)
                    load_tile<UP_COLS>(tile, m[q] + c0, a.in, 16, ad.rank, width - c0);
                else
                    load_tile<16>(tile, m[q] + (size_t)c0 * ad.rank, ad.rank, UP_COLS, width - c0, ad.rank);
            }
        copy_commit();
    };
    load_m(begin, 0);
    /* A warp has what its own rows kept to itself: its part of the next tile is on its way when this one's is used. */
    uint32_t *my_kept = (uint32_t *)(os + S::OUT) + wrow * S::KEPT_LD;
    auto load_kept = [&](int c0) {
        if (!DROP || !ad.threshold)
            return;
        __syncwarp();
#pragma unroll
        for (int q = 0; q < 3; q++)
            if (m[q] && lane < 16 && c0 < end)
                copy16(my_kept + q * S::KEPT + lane * 4, kept + kept_at(a.in, a.rows, q, t.row0 + wrow, c0) + lane * 4,
                       true);
        copy_commit();
    };
    load_kept(begin);
    bool wide = ld % 8 == 0 && width % 8 == 0 && ((uintptr_t)(y + at) & 15) == 0 &&
                ((uintptr_t)(add ? add + at : y + at) & 15) == 0;
    /* as rows of `add` and y are read and written: 16 lanes a row, 8 elements each, every second row */
    int col8 = lane % 16 * 8;
    bf16 *mine = os + (wrow + lane / 16) * OUT_LD + col8;
    size_t own = at + (wrow + lane / 16) * ld + col8;
    for (int c0 = begin, i = 0; c0 < end; c0 += UP_COLS, i++) {
        int cols = min(end - c0, (int)UP_COLS);
        copy_wait<0>();
        __syncthreads();
        if (add && wide) {
            const bf16 *from = add + own + c0;
#pragma unroll
            for (int e = 0; e < 8; e++, from += 2 * ld)
                copy16(mine + e * 2 * OUT_LD, from, col8 < cols);
        }
        load_m(c0 + UP_COLS, (i + 1) % 2);
        float sum[UP_COLS / 8][4] = {};
#pragma unroll
        for (int q = 0; q < 3; q++) {
            if (!m[q])
                continue;
            const uint32_t *words = my_kept + q * S::KEPT + kept_word(lane);
            const bf16 *tile = ms + (i % 2 * parts + q) * S::M;
            uint32_t fa[4];
            frag_a<S::LD>(fa, hs + q * S::H, wrow, 0);
#pragma unroll
            for (int n = 0; n < UP_COLS; n += 16) {
                uint32_t fb[4];
                if (BACK)
                    frag_b_t<OUT_LD>(fb, tile, 0, n);
                else
                    frag_b<S::LD>(fb, tile, n, 0);
                if (!DROP || !ad.threshold) {
                    mma(sum[n / 8], fa, fb[0], fb[1]);
                    mma(sum[n / 8 + 1], fa, fb[2], fb[3]);
                    continue;
                }
                float acc[2][4] = {};
                mma(acc[0], fa, fb[0], fb[1]);
                mma(acc[1], fa, fb[2], fb[3]);
                uint32_t word = words[n / 64 * 32];
                kept_add(sum[n / 8], acc[0], word, n / 8 % 8, ad.keep);
                kept_add(sum[n / 8 + 1], acc[1], word, n / 8 % 8 + 1, ad.keep);
            }
        }
        load_kept(c0 + UP_COLS);
        if (!wide) {
            for (int n = 0; n < UP_COLS / 8; n++)
                for (int j = 0; j < 4; j++) {
                    int col = n * 8 + lane % 4 * 2 + j % 2;
                    size_t to = at + (wrow + lane / 4 + j / 2 * 8) * ld + c0 + col;
                    if (col < cols)
                        y[to] = __float2bfloat16((add ? __bfloat162float(add[to]) : 0.f) + sum[n][j]);
                }
            continue;
        }
        if (add)
            copy_wait<0>();
        __syncwarp();
#pragma unroll
        for (int n = 0; n < UP_COLS / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                uint32_t *e = (uint32_t *)(os + (wrow + lane / 4 + half * 8) * OUT_LD + n * 8 + lane % 4 * 2);
                float2 o = add ? __bfloat1622float2(*(__nv_bfloat162 *)e) : make_float2(0.f, 0.f);
                *e = pack(o.x + sum[n][half * 2], o.y + sum[n][half * 2 + 1]);
            }
        __syncwarp();
        bf16 *to = y + own + c0;
#pragma unroll
        for (int e = 0; e < 8; e++, to += 2 * ld)
            if (col8 < cols)
                *(uint4 *)to = *(const uint4 *)(mine + e * 2 * OUT_LD);
        __syncwarp();
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
    launch(d->stream, lora_round_kernel, div_up((int64_t)n, 4 * 256), 256, 0, w, shadow, n);
    DEV_LAUNCHED(d, "lora_round");
}

/* ---- launches ---- */

template <int BN, int PARTS>
static void launch_down(op_dev *d, const op_pack *p, const lora_args *a, const bf16 *x, float *sums, uint32_t *kept)
{
    int bytes = down_shape<BN, PARTS>::BYTES;
    if (!a) { /* once, when the device opens: tiles of more than 48 KB */
        allow_smem(d, lora_down_kernel<BN, PARTS, false>, bytes);
        allow_smem(d, lora_down_kernel<BN, PARTS, true>, bytes);
        return;
    }
    dim3 grid(p->rows / ROW_ALIGN, div_up(a->in, DOWN_SPLIT), div_up(a->hr, BN));
    launch(d->stream, pack_dev(p)->dropout ? lora_down_kernel<BN, PARTS, true> : lora_down_kernel<BN, PARTS, false>,
           grid, THREADS, bytes, *a, x, sums, kept);
    DEV_LAUNCHED(d, "lora_down");
}

template <int BN>
static void down_by_parts(op_dev *d, const op_pack *p, const lora_args *a, const bf16 *x, float *sums, uint32_t *kept)
{
    if (!a || a->n_parts == 1)
        launch_down<BN, 1>(d, p, a, x, sums, kept);
    if (!a || a->n_parts == 2)
        launch_down<BN, 2>(d, p, a, x, sums, kept);
    if (!a || a->n_parts == 3)
        launch_down<BN, 3>(d, p, a, x, sums, kept);
}

void lora_setup(op_dev *d)
{
    down_by_parts<16>(d, NULL, NULL, NULL, NULL, NULL);
    down_by_parts<32>(d, NULL, NULL, NULL, NULL, NULL);
    allow_smem(d, lora_narrow_kernel<false, false>, narrow_shape::bytes(1));
    allow_smem(d, lora_narrow_kernel<true, false>, narrow_shape::bytes(3));
    allow_smem(d, lora_narrow_kernel<true, true>, narrow_shape::bytes(3, true));
    lora_back_setup(d);
}

uint32_t *lora_kept(const op_pack *p, const op_linear *l, const bf16 *h)
{
    return pack_dev(p)->dropout ? (uint32_t *)(h + (size_t)l->n_parts * p->rows * h_columns(p)) : NULL;
}

/* Bytes that lora_down allocates. */
size_t lora_down_scratch(size_t R, int in, int n_parts, int hr)
{
    return (size_t)n_parts * div_up(in, DOWN_SPLIT) * R * hr * sizeof(float);
}

void lora_down(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h)
{
    TRACE(d, "lora_down %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    int n = div_up(a.in, DOWN_SPLIT);
    if (pack_dev(p)->n_tiles == 0)
        return;
    float *sums = (float *)dev_alloc(d, lora_down_scratch(p->rows, a.in, a.n_parts, a.hr));
    if (!sums)
        return;
    if (a.hr <= 16)
        down_by_parts<16>(d, p, &a, x, sums, lora_kept(p, l, h));
    else
        down_by_parts<32>(d, p, &a, x, sums, lora_kept(p, l, h));
    lora_join(d, p, a, make_int3(n, n, n), false, sums, h);
    dev_free(d, sums);
}

void lora_up(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *h, const bf16 *add, bf16 *y)
{
    TRACE(d, "lora_up %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    bool narrow = a.hr <= 16;
    int cols = 0;
    for (int i = 0; i < a.n_parts; i++)
        cols += narrow ? narrow_groups(a.n[i]) : div_up(a.n[i], UP_COLS);
    dim3 grid(cols, p->rows / UP_ROWS);
    if (narrow)
        launch(d->stream, lora_narrow_kernel<false, false>, grid, THREADS, narrow_shape::bytes(1), a, h, nullptr, add,
               y);
    else
        launch(d->stream, lora_up_kernel<64>, grid, THREADS, 0, a, h, add, y);
    DEV_LAUNCHED(d, "lora_up");
}

void lora_up_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dh, const uint32_t *kept, bf16 *dx)
{
    TRACE(d, "lora_up_back %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    bool narrow = a.hr <= 16, drop = pack_dev(p)->dropout;
    int bytes = narrow ? narrow_shape::bytes(a.n_parts, drop) : 0;
    dim3 grid(narrow ? narrow_groups(a.in) : div_up(a.in, UP_COLS), p->rows / UP_ROWS);
    if (narrow && drop)
        launch(d->stream, lora_narrow_kernel<true, true>, grid, THREADS, bytes, a, dh, kept, nullptr, dx);
    else if (narrow)
        launch(d->stream, lora_narrow_kernel<true, false>, grid, THREADS, bytes, a, dh, nullptr, nullptr, dx);
    else if (drop)
        launch(d->stream, lora_up_back_kernel<64, true>, grid, THREADS, bytes, a, dh, kept, dx);
    else
        launch(d->stream, lora_up_back_kernel<64, false>, grid, THREADS, bytes, a, dh, nullptr, dx);
    DEV_LAUNCHED(d, "lora_up_back");
}
