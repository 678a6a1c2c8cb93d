/*
 * The backward products of LoRA that read dy or x:
 *
 *   dh_t = scale dy_t B_t                  [R, out] -> [R, r]
 *   dB_t += dy_t^T h_t                     over a segment's real rows, ascending; the scale is in h
 *   dA_t += dh_t^T drop_t(x)
 *
 * lora_dy reads dy once for both dh and dB: a block has COLS columns of one part and one slice of rows; dB of its
 * columns stays in registers, what its columns add to dh goes to `parts` [column tile][R][hr], which lora_join adds in
 * order (lora_dy_hopper.cu does the same where it can). lora_da reads x once for all parts.
 *
 * A segment's rows go in slices of GRAD_ROWS.  A segment of one slice adds to the gradient at once; otherwise each
 * slice leaves its sum in `partial`, [slot] of dB of all parts [columns, hr] and dA of each [hr, in], and grad_join
 * adds them in order. Bytes: dy and x once, 8 r / COLS bytes a byte of dy for `parts` (r = 16: a quarter with COLS 256,
 * written and read).
 */
#include "kernels/cuda/lora.cuh"
#include "kernels/cuda/lora_dy_hopper.cuh"

enum {
    THREADS = LORA_THREADS,
    CHUNK = 64,
    DA_COLS = 64,
    DA_THREADS = DA_COLS * 2,
    SMALL_SHARED = 99 << 10, /* of a block on sm_86, sm_89 */
};

/* Columns of a block of lora_dy: narrower where there would be too few blocks.  By shape and device alone. */
static int dy_columns(const op_dev *d, int out)
{
    return out >= 8192 && d->shared_bytes > 120 << 10 ? 256 : 128;
}

static int dy_tiles(const lora_args &a, int cols)
{
    int n = 0;
    for (int i = 0; i < a.n_parts; i++)
        n += div_up(a.n[i], cols);
    return n;
}

/* ---- dh and dB ---- */

template <int BN, int COLS> struct dy_shape {
    static constexpr int STAGES = COLS == 256 ? 3 : 4, YLD = COLS + 8, HLD = BN + 8, YT = CHUNK * YLD, HT = CHUNK * HLD,
                         BYTES = STAGES * (YT + HT) * (int)sizeof(bf16);
};

/* grid (column tiles of all parts, slices, blocks of BN).  For dh a warp has 16 rows of the chunk and half of BN, with
 * its share of B in registers; for dB it has COLS / 8 columns. */
template <int BN, int COLS>
__global__ void __launch_bounds__(THREADS, BN == 32 && COLS == 256 ? 1 : 2)
    lora_dy_kernel(lora_args a, const bf16 *dy, const bf16 *h, float *parts, float *partial)
{
    typedef dy_shape<BN, COLS> G;
    constexpr int STAGES = G::STAGES, NB = BN / 16, MT = COLS / 128;
    DYNAMIC_SHARED(bf16, smem);
    bf16 *ys = smem, *hs = smem + STAGES * G::YT;
    const grad_slice sl = a.slices[blockIdx.y];
    const op_seg seg = a.segs[sl.seg];
    int part = 0, tile = blockIdx.x, r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    to_part(a, COLS, &part, &tile);
    if (seg.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    int target = a.target[part];
    if (!(ad.targets >> target & 1) || r0 >= a.hr)
        return;
    int c0 = tile * COLS, cols = min(a.n[part] - c0, COLS), row0 = seg.row0 + sl.first;
    int chunks = (sl.rows + CHUNK - 1) / CHUNK, ranks = min(a.hr - r0, BN);
    size_t a_at = adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target), b_at = a_at + (size_t)ad.rank * a.in;
    tile_copy<CHUNK, COLS> y_rows;
    tile_copy<CHUNK, BN> h_rows;
    y_rows.begin(dy + (size_t)row0 * a.out + a.out0[part] + c0, a.out, cols);
    h_rows.begin(h + ((size_t)part * a.rows + row0) * a.hr + r0, a.hr, ranks);

    int group = warp % 4, side = warp / 4;
    uint32_t fb[COLS / 16][NB][2];
    load_tile<BN>(smem, ad.shadow + b_at + (size_t)c0 * ad.rank + r0, ad.rank, COLS, cols, min(ad.rank - r0, BN));
    copy_commit();
    copy_wait<0>();
    __syncthreads();
#pragma unroll
    for (int k = 0; k < COLS / 16; k++) {
        uint32_t f[4];
        frag_b_t<G::HLD>(f, smem, k * 16, BN == 16 ? 0 : side * 16);
#pragma unroll
        for (int n = 0; n < NB; n++) {
            int which = BN == 16 ? side : n;
            fb[k][n][0] = which ? f[2] : f[0];
            fb[k][n][1] = which ? f[3] : f[1];
        }
    }
    __syncthreads();

    auto load_stage = [&](int c) {
        int k = c * CHUNK, s = c % STAGES;
        if (c < chunks) {
            y_rows.load(ys + s * G::YT, (size_t)k * a.out, sl.rows - k, cols);
            h_rows.load(hs + s * G::HT, (size_t)k * a.hr, sl.rows - k, ranks);
        }
        copy_commit();
    };
    float acc[MT][BN / 8][4] = {};
    int wcol = warp * (COLS / 8);
    float *out = parts + ((size_t)blockIdx.x * a.rows + row0) * a.hr + r0 + side * (BN / 2) + lane % 4 * 2;
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        const bf16 *yt = ys + c % STAGES * G::YT, *ht = hs + c % STAGES * G::HT;
        float sum[NB][4] = {};
#pragma unroll
        for (int k = 0; k < COLS / 16; k++) {
            uint32_t fa[4];
            frag_a<G::YLD>(fa, yt, group * 16, k * 16);
#pragma unroll
            for (int n = 0; n < NB; n++)
                mma(sum[n], fa, fb[k][n][0], fb[k][n][1]);
        }
#pragma unroll
        for (int n = 0; n < NB; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = c * CHUNK + group * 16 + lane / 4 + half * 8;
                if (row < sl.rows && side * (BN / 2) + n * 8 < ranks)
                    *(float2 *)(out + (size_t)row * a.hr + n * 8) = make_float2(sum[n][half * 2], sum[n][half * 2 + 1]);
            }
        if (!ad.g)
            continue;
#pragma unroll
        for (int k = 0; k < CHUNK; k += 16) {
            uint32_t fh[BN / 16][4];
#pragma unroll
            for (int n = 0; n < BN / 16; n++)
                frag_b_t<G::HLD>(fh[n], ht, k, n * 16);
#pragma unroll
            for (int m = 0; m < MT; m++) {
                uint32_t fa[4];
                frag_a_t<G::YLD>(fa, yt, k, wcol + m * 16);
#pragma unroll
                for (int n = 0; n < BN / 16; n++) {
                    mma(acc[m][2 * n], fa, fh[n][0], fh[n][1]);
                    mma(acc[m][2 * n + 1], fa, fh[n][2], fh[n][3]);
                }
            }
        }
    }
    copy_wait<0>();
    if (!ad.g)
        return;
    float *mine = partial + ((size_t)max(sl.slot, 0) * grad_columns(a) + a.out0[part] + c0) * a.hr + r0;
    float *g = ad.g + b_at + (size_t)c0 * ad.rank + r0;
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int c = wcol + m * 16 + lane / 4 + j / 2 * 8, r = n * 8 + lane % 4 * 2 + j % 2;
                if (c >= cols || r0 + r >= ad.rank)
                    continue;
                if (sl.slot >= 0)
                    mine[(size_t)c * a.hr + r] = acc[m][n][j];
                else
                    g[(size_t)c * ad.rank + r] += acc[m][n][j];
            }
}

/* ---- dA ---- */

/* Narrow blocks of few threads, with as many stages as fit, so that more is on its way to a multiprocessor: with blocks
 * of 128 columns the H200 read x at 40% of what its memory gives. */
template <int BN, int PARTS, bool DROP> struct da_shape {
    static constexpr int XLD = DA_COLS + 8, VLD = BN + 8, XT = CHUNK * XLD, VT = CHUNK * VLD,
                         MASK = CHUNK * DA_COLS / 16, STAGE = XT + PARTS * (VT + (DROP ? MASK : 0)),
                         MOST = SMALL_SHARED / (STAGE * (int)sizeof(bf16)), STAGES = MOST < 5 ? MOST : 5,
                         BYTES = STAGES * STAGE * (int)sizeof(bf16);
    static_assert(STAGES >= 3, "shared memory");
};

/* DROP: some adapter of the pack has dropout; others are computed the same either way.
 * grid (DA_COLS columns of x, slices, blocks of BN); a warp has 16 columns. */
template <int BN, int PARTS, bool DROP>
__global__ void __launch_bounds__(DA_THREADS, 3)
    lora_da_kernel(lora_args a, const bf16 *x, const bf16 *dh, float *partial, const uint32_t *kept)
{
    typedef da_shape<BN, PARTS, DROP> G;
    constexpr int STAGES = G::STAGES;
    DYNAMIC_SHARED(bf16, smem);
    const grad_slice sl = a.slices[blockIdx.y];
    const op_seg seg = a.segs[sl.seg];
    int r0 = blockIdx.z * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (seg.adapter < 0)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    if (!ad.g || r0 >= ad.rank)
        return;
    int c0 = blockIdx.x * DA_COLS, chunks = (sl.rows + CHUNK - 1) / CHUNK, row0 = seg.row0 + sl.first;
    tile_copy<CHUNK, DA_COLS, DA_THREADS> x_rows;
    tile_copy<CHUNK, BN, DA_THREADS> dh_rows;
    x_rows.begin(x + (size_t)row0 * a.in + c0, a.in, a.in - c0);
    dh_rows.begin(dh + (size_t)row0 * a.hr + r0, a.hr, a.hr - r0);

    auto load_stage = [&](int c) {
        int k = c * CHUNK;
        bf16 *stage = smem + c % STAGES * G::STAGE;
        if (c < chunks) {
            x_rows.load(stage, (size_t)k * a.in, sl.rows - k, a.in - c0);
#pragma unroll
            for (int p = 0; p < PARTS; p++)
                if (ad.targets >> a.target[p] & 1)
                    dh_rows.load(stage + G::XT + p * G::VT, ((size_t)p * a.rows + k) * a.hr, sl.rows - k, a.hr - r0);
            int q = threadIdx.x / 32, piece = lane % 8;
            if (DROP && ad.threshold && q < PARTS && (ad.targets >> a.target[q] & 1))
                copy16(stage + G::XT + PARTS * G::VT + threadIdx.x * 8,
                       kept + kept_at(a.in, a.rows, q, row0 + k + lane / 8 * 16, c0) + piece * 4, true);
        }
        copy_commit();
    };
    float acc[PARTS][BN / 8][4] = {};
    int wcol = warp * 16;
    for (int c = 0; c < STAGES - 1; c++)
        load_stage(c);
    for (int c = 0; c < chunks; c++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load_stage(c + STAGES - 1);
        const bf16 *xt = smem + c % STAGES * G::STAGE;
        uint32_t fx[CHUNK / 16][4];
#pragma unroll
        for (int k = 0; k < CHUNK / 16; k++)
            frag_a_t<G::XLD>(fx[k], xt, k * 16, wcol);
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            if (!(ad.targets >> a.target[p] & 1))
                continue;
            auto multiply = [&](const uint32_t(*fa)[4]) {
#pragma unroll
                for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
                    for (int n = 0; n < BN; n += 16) {
                        uint32_t fb[4];
                        frag_b_t<G::VLD>(fb, xt + G::XT + p * G::VT, k * 16, n);
                        mma(acc[p][n / 8], fa[k], fb[0], fb[1]);
                        mma(acc[p][n / 8 + 1], fa[k], fb[2], fb[3]);
                    }
            };
            if (DROP && ad.threshold) {
                uint32_t fa[CHUNK / 16][4];
#pragma unroll
                for (int k = 0; k < CHUNK / 16; k++) {
                    /* fa[k][j]: column lane / 4 (8 on if j % 2), rows lane % 4 * 2 and the next (8 on if j / 2) */
                    uint2 rows = *(const uint2 *)(xt + G::XT + PARTS * G::VT + p * G::MASK + k * 64 +
                                                  (lane % 4 * 8 + lane / 8 * 2) * 2);
                    uint32_t bits = __byte_perm(rows.x, rows.y, lane / 4 % 2 ? 0x7632 : 0x5410) << (12 - 4 * warp);
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        fa[k][j] = fx[k][j] & half_signs(bits << (3 - j % 2 * 2 - j / 2));
                }
                multiply(fa);
            } else {
                multiply(fx);
            }
        }
    }
    copy_wait<0>();
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        if (!(ad.targets >> a.target[p] & 1))
            continue;
        float *g = ad.g + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, a.target[p]);
        float *mine = partial + ((size_t)max(sl.slot, 0) * grad_columns(a) + a.out + (size_t)p * a.in) * a.hr;
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int c = wcol + lane / 4 + j / 2 * 8, r = n * 8 + lane % 4 * 2 + j % 2;
                if (c0 + c >= a.in || r0 + r >= ad.rank)
                    continue;
                size_t at = (size_t)(r0 + r) * a.in + c0 + c;
                if (sl.slot >= 0)
                    mine[at] = ad.keep * acc[p][n][j];
                else
                    g[at] += ad.keep * acc[p][n][j];
            }
    }
}

/* grid (elements of the largest gradient / V / THREADS, dB and dA of each part, segments): adds a segment's slices in
 * order. */
template <int V> __global__ void __launch_bounds__(THREADS) grad_join_kernel(lora_args a, const float *partial)
{
    chain_begin();
    const grad_slice first = a.slices[a.first_slice[blockIdx.z]];
    if (first.slot < 0)
        return;
    const op_seg seg = a.segs[first.seg];
    const dev_adapter ad = a.adapters[seg.adapter < 0 ? 0 : seg.adapter];
    int part = blockIdx.y / 2, i = (int)(blockIdx.x * THREADS + threadIdx.x) * V, target = a.target[part];
    if (seg.adapter < 0 || !ad.g || !(ad.targets >> target & 1))
        return;
    size_t slice = grad_columns(a) * a.hr, at;
    float *g = ad.g + adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target);
    if (blockIdx.y % 2) { /* dA, [rank, in] in both */
        if (i >= ad.rank * a.in)
            return;
        at = ((size_t)a.out + (size_t)part * a.in) * a.hr + i;
        g += i;
    } else {
        int column = i / a.hr, r = i % a.hr;
        if (column >= a.n[part] || r >= ad.rank)
            return;
        at = (size_t)a.out0[part] * a.hr + i;
        g += (size_t)ad.rank * a.in + (size_t)column * ad.rank + r;
    }
    floats<V> sum = *(floats<V> *)g;
    add(sum, sum_of<V, 4>(partial + first.slot * slice + at, (seg.rows + GRAD_ROWS - 1) / GRAD_ROWS, slice));
    *(floats<V> *)g = sum;
}

/* ---- launches: with `a` NULL, what the device needs to know of a kernel, once, when it opens ---- */

struct back_args {
    const lora_args *a;
    const bf16 *dy, *x, *h;
    bf16 *dh;
    float *parts, *partial;
    dim3 grid;
    bool drop; /* some adapter of the pack has dropout */
    const uint32_t *kept;
};

template <int BN, int COLS> static void launch_dy(op_dev *d, const back_args &b)
{
    int bytes = dy_shape<BN, COLS>::BYTES;
    if (!b.a)
        allow_smem(d, lora_dy_kernel<BN, COLS>, bytes);
    else
        launch(d->stream, lora_dy_kernel<BN, COLS>, b.grid, THREADS, bytes, *b.a, b.dy, b.h, b.parts, b.partial);
}

template <int BN, int PARTS> static void launch_da(op_dev *d, const back_args &b)
{
    int dry = da_shape<BN, PARTS, false>::BYTES, drop = da_shape<BN, PARTS, true>::BYTES;
    if (!b.a) {
        allow_smem(d, lora_da_kernel<BN, PARTS, false>, dry);
        allow_smem(d, lora_da_kernel<BN, PARTS, true>, drop);
    } else if (b.drop) {
        launch(d->stream, lora_da_kernel<BN, PARTS, true>, b.grid, DA_THREADS, drop, *b.a, b.x, b.dh, b.partial,
               b.kept);
    } else {
        launch(d->stream, lora_da_kernel<BN, PARTS, false>, b.grid, DA_THREADS, dry, *b.a, b.x, b.dh, b.partial,
               nullptr);
    }
}

template <int BN> static void launch_da_parts(op_dev *d, const back_args &b)
{
    if (!b.a || b.a->n_parts == 1)
        launch_da<BN, 1>(d, b);
    if (!b.a || b.a->n_parts == 2)
        launch_da<BN, 2>(d, b);
    if (!b.a || b.a->n_parts == 3)
        launch_da<BN, 3>(d, b);
}

void lora_back_setup(op_dev *d)
{
    back_args none = {};
    launch_dy<16, 128>(d, none);
    launch_dy<32, 128>(d, none);
    if (dy_columns(d, 1 << 20) == 256) {
        launch_dy<16, 256>(d, none);
        launch_dy<32, 256>(d, none);
    }
    launch_da_parts<16>(d, none);
    launch_da_parts<32>(d, none);
    if (d->hopper)
        hopper_dy_setup(d);
}

static size_t grad_floats(const op_pack *p, const lora_args &a)
{
    return (size_t)pack_dev(p)->n_slots * grad_columns(a) * a.hr;
}

/* The most bytes that lora_back allocates for R rows, `slots` of them partial sums, of a linear with parts of n[]
 * columns. */
size_t lora_back_scratch(size_t R, size_t slots, int in, int n_parts, const int *n, int hr)
{
    size_t out = 0, tiles = 0;
    for (int i = 0; i < n_parts; i++) {
        out += n[i];
        tiles += div_up(n[i], 128);
    }
    return (tiles * R + slots * (out + (size_t)n_parts * in)) * hr * sizeof(float);
}

static void back_dy(op_dev *d, const op_pack *p, back_args b, int cols, int tiles)
{
    const lora_args &a = *b.a;
    TRACE(d, "lora_dy %d -> %d", a.in, a.out);
    b.grid = dim3(tiles, pack_dev(p)->n_slices, div_up(a.hr, a.hr <= 16 ? 16 : 32));
    if (hopper_dy_fits(d, a, b.dy, b.h))
        hopper_dy(d, a, pack_dev(p)->n_slices, cols, tiles, b.dy, b.h, b.parts, b.partial);
    else if (a.hr <= 16 && cols == 128)
        launch_dy<16, 128>(d, b);
    else if (a.hr <= 16)
        launch_dy<16, 256>(d, b);
    else if (cols == 128)
        launch_dy<32, 128>(d, b);
    else
        launch_dy<32, 256>(d, b);
    DEV_LAUNCHED(d, "lora dy");
}

/* By four where all ranks and sides are multiples of that. */
static void join_slices(op_dev *d, const op_pack *p, const back_args &b)
{
    const lora_args &a = *b.a;
    bool four = a.in % 4 == 0;
    int most = a.in;
    for (int i = 0; i < p->n_adapters; i++)
        four = four && (!p->adapters[i].g || (p->adapters[i].rank % 4 == 0 && ((uintptr_t)p->adapters[i].g & 15) == 0));
    for (int i = 0; i < a.n_parts; i++)
        most = a.n[i] > most ? a.n[i] : most;
    dim3 grid(div_up((int64_t)most * a.hr, (four ? 4 : 1) * THREADS), 2 * a.n_parts, p->n_segs);
    chain_launch(d, four ? grad_join_kernel<4> : grad_join_kernel<1>, grid, THREADS, 0, a, (const float *)b.partial);
}

static void back_da(op_dev *d, const op_pack *p, back_args b)
{
    const lora_args &a = *b.a;
    TRACE(d, "lora_da %d -> %d", a.in, a.out);
    b.grid = dim3(div_up(a.in, DA_COLS), pack_dev(p)->n_slices, div_up(a.hr, a.hr <= 16 ? 16 : 32));
    if (a.hr <= 16)
        launch_da_parts<16>(d, b);
    else
        launch_da_parts<32>(d, b);
    if (b.partial)
        join_slices(d, p, b);
    DEV_LAUNCHED(d, "lora dA");
}

void lora_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *x, const bf16 *h, bf16 *dh)
{
    TRACE(d, "lora_back %d -> %d R %d", l->in, l->out, p->rows);
    lora_args a = make_args(p, l);
    int cols = dy_columns(d, a.out), tiles = dy_tiles(a, cols);
    size_t floats = grad_floats(p, a), all = floats + (size_t)tiles * a.rows * a.hr;
    if (pack_dev(p)->n_slices == 0)
        return;
    float *scratch = (float *)dev_alloc(d, all * sizeof(float));
    if (!scratch)
        return;
    back_args b = {&a,
                   dy,
                   x,
                   h,
                   dh,
                   scratch,
                   floats ? scratch + (size_t)tiles * a.rows * a.hr : NULL,
                   dim3(),
                   pack_dev(p)->dropout,
                   lora_kept(p, l, h)};
    int3 n = make_int3(div_up(a.n[0], cols), div_up(a.n[1], cols), div_up(a.n[2], cols));
    back_dy(d, p, b, cols, tiles);
    lora_join(d, p, a, n, true, scratch, dh);
    back_da(d, p, b);
    dev_free(d, scratch);
}
