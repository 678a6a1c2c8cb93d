/*
 * The layers of a decode step in one kernel whose weights never stop flowing (compute capability 9.0 and newer).
 *
 * One block a multiprocessor.  A warp of it, the producer, copies weights into a ring of stages in shared memory (bulk
 * copies); the others, the consumers, multiply.  What the producer copies depends on no result, so it runs ahead into
 * the next products while the consumers wait for each other at the end of a product, make norms or attend: as long as
 * such a pause is shorter than the ring, the memory never idles.  Floor: bytes of all weights / memory bandwidth.
 *
 * A product is cut into tiles of 16 rows of W (gate_up: 8 of gate and the 8 of up that belong to them).  Tiles are
 * numbered on and on through the products and dealt to the blocks in turn, so that all read the same amount.  A block
 * takes up to TILES of its tiles of a product together, over all of K, COLUMNS at a time: a stage is that much of a
 * tile.  The rows of A of the adapters are tiles too, before the others: they make h = x A^T, which the ends of the
 * other tiles need.
 *
 * Each warp takes every eighth chunk of 32 columns and keeps the rows of x for it in registers; sums are in gemv's
 * order (decode.cu), the norm's in prepare_kernel's (decode_layer.cu).  A column of a product depends on its own row of
 * x alone, and nothing else here looks at two rows.
 */
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/decode_stream.cuh"
#include "kernels/cuda/mma.cuh"

#include <cstdlib>

#ifndef STREAM_COLUMNS
#define STREAM_COLUMNS 512
#endif
enum {
    WARPS = 8, /* consumers */
    CONSUMERS = WARPS * 32,
    PRODUCERS = 128,
    THREADS = CONSUMERS + PRODUCERS,
    COLUMNS = STREAM_COLUMNS, /* of a stage */
    CHUNKS = COLUMNS / 32 / WARPS,
    STAGE_ROW = COLUMNS + 32, /* elements: rows two apart start in the same bank, and a phase of a load reads two */
    STAGE = 16 * STAGE_ROW,
    MOST_ROWS = 32,
    MOST_STAGES = 32,
    AHEAD = 8,         /* slices of the cache that are asked for before their turn */
    COUNTS_APART = 32, /* the blocks' count has a line of its own */
    LAYERS = 64,       /* of one launch */
    QKV = 0,
    OUT = 1,
    GATE_UP = 2,
    DOWN = 3,
    HEAD = 4, /* norm and head of the model, as qkv of one more layer */
};

/* Tiles that a block takes together. */
template <int GROUPS> constexpr int tiles_together = GROUPS == 4 ? 2 : 4;

struct stream_layer {
    const bf16 *W[4], *bias[4], *norm1, *norm2, *x;
    bf16 *x_out;
    int32_t layer, cache; /* number in the adapters, in the caches */
};

struct stream_args {
    gemv_lora lora[5];
    int32_t out[5], rows, layers, steps /* products */, stages, norm_threads /* whose order of summing a norm keeps */;
    float eps;
    bool adapters;
    attend_args attend;
    bf16 *qkv, *o, *x2, *a;
    float *logits;
    uint32_t *arrived; /* 0 between launches */
    uint32_t *joined;  /* [rows][heads] slices done; 0 between layers */
    stream_layer layer[LAYERS + 1];
};

template <int GROUPS> struct stream_shared { /* beside the stages */
    static constexpr int TILES = tiles_together<GROUPS>;
    static constexpr int X = GROUPS == 4 ? 16384 : 8192; /* elements of a part of x */
    union {
        float part[TILES * WARPS * GROUPS * 128]; /* [tile][warp][group of rows][16][8] */
        attend_shared attend;
    };
    bf16 x[2][X + 8 * GROUPS * 32]; /* rows as far apart as those of a stage */
    float rstd[MOST_ROWS], squares[MOST_ROWS][WARPS];
    bool last[CONSUMERS];
    dev_adapter adapters[MOST_ROWS]; /* of the rows, if there are no more */
    op_seq seqs[MOST_ROWS];
    uint64_t full[MOST_STAGES], empty[MOST_STAGES];
    __align__(128) char end[128];
};

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

#ifdef STREAM_PROF
__device__ long long stream_prof[256][8];
#define PROF(cat)                                                                                                      \
    do {                                                                                                               \
        if (threadIdx.x == 0) {                                                                                        \
            long long now_ = clock64();                                                                                \
            stream_prof[blockIdx.x][cat] += now_ - last_;                                                              \
            last_ = now_;                                                                                              \
        }                                                                                                              \
    } while (0)
#else
#define PROF(cat)
#endif

/* ---- barriers ---- */

__device__ __forceinline__ void mbar_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(count) : "memory");
}

__device__ __forceinline__ void mbar_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_addr(b)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(b)) : "memory");
}

__device__ __forceinline__ void mbar_wait(uint64_t *b, uint32_t parity)
{
    uint32_t done = 0;
#ifdef STREAM_TRAP
    long long start = clock64();
#endif
    while (!done) {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(smem_addr(b)), "r"(parity)
                     : "memory");
#ifdef STREAM_TRAP
        if (clock64() - start > 1000000000ll)
            __trap();
#endif
    }
}

/* The consumers of the block. */
__device__ __forceinline__ void consumers_sync()
{
    asm volatile("bar.sync 1, %0;" ::"r"((int)CONSUMERS) : "memory");
}

/* All blocks, in two halves: everything before arrive is seen after wait. */
struct grid_meeting {
    uint32_t *arrived, target, arrivals;

    __device__ void arrive()
    {
        consumers_sync();
        arrivals++;
        if (threadIdx.x == 0)
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
    }
    __device__ void wait()
    {
        target += gridDim.x;
        if (threadIdx.x == 0) {
            uint32_t now;
#ifdef STREAM_TRAP
            long long start = clock64();
#endif
            do {
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(arrived) : "memory");
#ifdef STREAM_TRAP
                if (clock64() - start > 1000000000ll)
                    __trap();
#endif
#ifdef STREAM_NOSYNC
                break;
#endif
            } while (now < target);
        }
        consumers_sync();
    }
    /* The last block to leave puts the count back. */
    __device__ void leave()
    {
        if (threadIdx.x == 0 && atomicAdd(arrived, 1) == gridDim.x * (arrivals + 1) - 1)
            *arrived = 0;
    }
};

/* ---- who does what ---- */

/* A product of a layer for a block of rows: tiles first, first + gridDim.x, ... below downs + tiles are this block's.
 */
struct stream_work {
    int layer, linear, row0, rows;
    int downs, tiles, first; /* tiles of adapters' A, of W */
};

template <int GROUPS>
__device__ __forceinline__ stream_work work_at(const stream_args &a, int step, int row0, uint32_t *dealt)
{
    int layer = step / 4, linear = layer < a.layers ? step % 4 : HEAD;
    stream_work w = {layer, linear, row0, min(8 * GROUPS, a.rows - row0), 0, (a.out[linear] + 15) / 16, 0};
    if (a.adapters && linear != HEAD)
        w.downs = w.rows * a.lora[linear].n_parts * (a.lora[linear].hr / 16);
    w.first = (blockIdx.x + gridDim.x - *dealt) % gridDim.x;
    *dealt = (*dealt + w.downs + w.tiles) % gridDim.x;
    return w;
}

/* The tiles that are taken together from tile n on: of one kind. */
__device__ __forceinline__ int tiles_from(const stream_work &w, int n, int most)
{
    int end = n < w.downs ? w.downs : w.downs + w.tiles;
    return min(most, (end - n + (int)gridDim.x - 1) / (int)gridDim.x);
}

struct down_tile { /* h columns first .. first + 15 of a part of a row; A NULL: none there */
    const bf16 *A;
    int row, part, first, rank;
};

__device__ __forceinline__ down_tile down_at(const stream_args &a, const dev_adapter *adapters, const stream_work &w,
                                             int n)
{
    const gemv_lora &l = a.lora[w.linear];
    int ranks = l.hr / 16;
    down_tile t = {NULL, w.row0 + n / (l.n_parts * ranks), n / ranks % l.n_parts, n % ranks * 16, 0};
    const dev_adapter *ad = &adapters[t.row];
    t.rank = ad->rank;
    if (t.first < t.rank)
        t.A = adapter_at(ad, a.layer[w.layer].layer, l.target[t.part]);
    return t;
}

/* Row i of W of a tile of W; may be past the end. */
__device__ __forceinline__ int row_at(const stream_args &a, const stream_work &w, int tile, int i)
{
    return w.linear == GATE_UP ? tile * 8 + i % 8 + i / 8 * (a.out[GATE_UP] / 2) : tile * 16 + i;
}

struct ring_place {
    int stage;
    uint32_t parity;
    __device__ void next(int stages)
    {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

/* ---- the producers ---- */

template <int GROUPS>
__device__ void produce(const stream_args &a, const dev_adapter *adapters, bf16 *stages, stream_shared<GROUPS> &m)
{
    constexpr int TILES = tiles_together<GROUPS>;
    uint32_t dealt = 0;
    uint64_t once;
    ring_place at = {0, 1};
#ifdef STREAM_BULK
    int lane = threadIdx.x % 32, row = (threadIdx.x - CONSUMERS) / 32 * 4 + lane, col = 0;
    bool mine = lane < 4;
#else
    int row = (threadIdx.x - CONSUMERS) / 8, col = threadIdx.x % 8 * 8;
    bool mine = true;
#endif
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    for (int step = 0; step < a.steps; step++)
        for (int row0 = 0; row0 < a.rows; row0 += 8 * GROUPS) {
            const stream_work w = work_at<GROUPS>(a, step, row0, &dealt);
            const int K = a.lora[w.linear].in;
            const bf16 *W = a.layer[w.layer].W[w.linear % HEAD];
            for (int n = w.first, count; n < w.downs + w.tiles; n += count * gridDim.x) {
                const bf16 *src[TILES];
                int there[TILES]; /* rows */
                count = tiles_from(w, n, TILES);
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    int tile = n + i * gridDim.x;
                    src[i] = NULL;
                    there[i] = 0;
                    if (i >= count)
                        continue;
                    if (n < w.downs) {
                        down_tile t = down_at(a, adapters, w, tile);
                        there[i] = t.A ? min(16, t.rank - t.first) : 0;
                        if (row < there[i])
                            src[i] = t.A + (size_t)(t.first + row) * K + col;
                    } else {
                        int r = row_at(a, w, tile - w.downs, row);
                        there[i] = w.linear == GATE_UP ? 16 : min(16, a.out[w.linear] - (tile - w.downs) * 16);
                        if (row < there[i])
                            src[i] = W + (size_t)r * K + col;
                    }
                    if (!mine)
                        src[i] = NULL;
                }
                for (int k = 0; k < K; k += COLUMNS) {
#pragma unroll
                    for (int i = 0; i < TILES; i++) {
                        if (!there[i])
                            continue;
                        mbar_wait(&m.empty[at.stage], at.parity);
                        bf16 *to = stages + at.stage * STAGE + row * STAGE_ROW + col;
#ifdef STREAM_BULK
                        int bytes = min((int)COLUMNS, K - k) * (int)sizeof(bf16);
                        if (threadIdx.x == CONSUMERS)
                            mbar_expect(&m.full[at.stage], there[i] * bytes);
                        if (src[i])
                            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                                         ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(to)),
                                         "l"(src[i] + k), "r"(bytes), "r"(smem_addr(&m.full[at.stage])), "l"(once)
                                         : "memory");
#else
                        if (src[i])
#pragma unroll
                            for (int u = 0; u < COLUMNS; u += 64)
                                if (k + u + col < K)
                                    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                                                     smem_addr(to + u)),
                                                 "l"(src[i] + k + u), "l"(once)
                                                 : "memory");
                        asm volatile(
                            "cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_addr(&m.full[at.stage]))
                            : "memory");
#endif
                        at.next(a.stages);
                    }
                }
            }
        }
#ifndef STREAM_BULK
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* ---- the consumers ---- */

template <int GROUPS> struct consumer {
    static constexpr int TILES = tiles_together<GROUPS>;
    static constexpr int X_LOADS = stream_shared<GROUPS>::X / 8 / CONSUMERS; /* of 16 bytes, of a thread */
    static constexpr int OUTPUTS = TILES * GROUPS * 128 / CONSUMERS;         /* of a thread */
    const stream_args &a;
    const dev_adapter *adapters; /* of the rows */
    const op_seq *seqs;
    const bf16 *stages;
    stream_shared<GROUPS> &m;
    ring_place at;
    grid_meeting grid;
#ifdef STREAM_PROF
    long long last_;
#endif

    /* rstd of the block's rows, in the order of rmsnorm_kernel (elementwise.cu). */
    __device__ void norms(const bf16 *x, int n, int row0, int rows)
    {
        for (int r0 = 0; r0 < rows; r0 += 8) {
            float sum[8] = {};
            if ((int)threadIdx.x < a.norm_threads)
                for (int i = threadIdx.x * 8; i < n; i += a.norm_threads * 8) {
                    uint4 raw[8];
#pragma unroll
                    for (int r = 0; r < 8; r++)
                        if (r0 + r < rows)
                            raw[r] = *(const uint4 *)(x + (size_t)(row0 + r0 + r) * n + i);
#pragma unroll
                    for (int r = 0; r < 8; r++)
                        if (r0 + r < rows) {
                            vec<8> e = load<8>((const bf16 *)&raw[r]);
#pragma unroll
                            for (int j = 0; j < 8; j++)
                                sum[r] += e.f[j] * e.f[j];
                        }
                }
#pragma unroll
            for (int r = 0; r < 8; r++)
                if (r0 + r < rows) {
                    for (int s = 16; s; s /= 2)
                        sum[r] += __shfl_xor_sync(~0u, sum[r], s);
                    if (threadIdx.x % 32 == 0)
                        m.squares[r0 + r][threadIdx.x / 32] = sum[r];
                }
        }
        consumers_sync();
        if ((int)threadIdx.x < rows) {
            float sum = 0.f;
            for (int i = 0; i < a.norm_threads / 32; i++)
                sum += m.squares[threadIdx.x][i];
            m.rstd[threadIdx.x] = rsqrtf(sum / n + a.eps);
        }
        consumers_sync();
    }

    /* x of a product in shared memory, normed: `span` columns at a time, in one of two places. */
    struct x_part {
        const bf16 *x, *norm; /* norm NULL: as it is */
        int K, row0, rows, span, place;
        uint4 raw[X_LOADS], gain[X_LOADS];
    };

    __device__ __forceinline__ bool x_place(const x_part &p, int first, int u, int *row, int *col)
    {
        int i = u * CONSUMERS + threadIdx.x, width = min(p.span, p.K - first) / 8;
        *row = i / width;
        *col = i % width * 8;
        return *row < p.rows;
    }

    __device__ __forceinline__ void x_fetch(x_part &p, int first)
    {
        int row, col;
#pragma unroll
        for (int u = 0; u < X_LOADS; u++)
            if (x_place(p, first, u, &row, &col)) {
                p.raw[u] = *(const uint4 *)(p.x + (size_t)(p.row0 + row) * p.K + first + col);
                if (p.norm)
                    p.gain[u] = *(const uint4 *)(p.norm + first + col);
            }
    }

    __device__ __forceinline__ void x_store(x_part &p, int first)
    {
        int row, col;
        p.place ^= 1;
#pragma unroll
        for (int u = 0; u < X_LOADS; u++)
            if (x_place(p, first, u, &row, &col)) {
                uint4 *to = (uint4 *)(m.x[p.place] + row * (p.span + 32) + col);
                *to = p.raw[u];
                if (p.norm) {
                    vec<8> e = load<8>((const bf16 *)&p.raw[u]), g = load<8>((const bf16 *)&p.gain[u]);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        e.f[j] = g.f[j] * (e.f[j] * m.rstd[row]);
                    store<8>((bf16 *)to, e);
                }
            }
        consumers_sync();
    }

    /* x times the tiles of which `there` has the bit, into m.part.  p has the first part of x; afterwards again, if
     * there is `more` to do with it. */
    __device__ void multiply(const stream_work &w, uint32_t there, x_part &p, bool more)
    {
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, K = p.K;
        float acc[TILES][GROUPS][4] = {};
        for (int first = 0; first < K; first += p.span) {
            int next = first + p.span < K ? first + p.span : more && p.span < K ? 0 : -1;
            if (next >= 0)
                x_fetch(p, next);
            for (int k = first; k < min(first + p.span, K); k += COLUMNS) {
                uint4 b[CHUNKS][GROUPS];
#pragma unroll
                for (int c = 0; c < GROUPS; c++) {
                    const bf16 *x = m.x[p.place] + min(c * 8 + g, w.rows - 1) * (p.span + 32) + k - first + t * 8;
#pragma unroll
                    for (int u = 0; u < CHUNKS; u++)
                        b[u][c] = *(const uint4 *)(x + (u * WARPS + warp) * 32);
                }
#pragma unroll
                for (int i = 0; i < TILES; i++) {
                    if (!(there >> i & 1))
                        continue;
                    mbar_wait(&m.full[at.stage], at.parity);
                    const bf16 *s = stages + at.stage * STAGE + g * STAGE_ROW + warp * 32 + t * 8;
                    uint4 p0[CHUNKS], p1[CHUNKS];
#pragma unroll
                    for (int u = 0; u < CHUNKS; u++) {
                        p0[u] = *(const uint4 *)(s + u * WARPS * 32);
                        p1[u] = *(const uint4 *)(s + 8 * STAGE_ROW + u * WARPS * 32);
                    }
#pragma unroll
                    for (int u = 0; u < CHUNKS; u++) {
                        if (k + (u * WARPS + warp) * 32 >= K)
                            continue;
                        uint32_t lo[4] = {p0[u].x, p1[u].x, p0[u].y, p1[u].y},
                                 hi[4] = {p0[u].z, p1[u].z, p0[u].w, p1[u].w};
#pragma unroll
                        for (int c = 0; c < GROUPS; c++) {
                            mma(acc[i][c], lo, b[u][c].x, b[u][c].y);
                            mma(acc[i][c], hi, b[u][c].z, b[u][c].w);
                        }
                    }
                    __syncwarp();
                    if (lane == 0)
                        mbar_arrive(&m.empty[at.stage]);
                    at.next(a.stages);
                }
            }
            if (next >= 0)
                x_store(p, next);
        }
#pragma unroll
        for (int i = 0; i < TILES; i++)
#pragma unroll
            for (int c = 0; c < GROUPS; c++)
                if (there >> i & 1) {
                    float *part = m.part + ((i * WARPS + warp) * GROUPS + c) * 128 + g * 8 + t * 2;
                    *(float2 *)part = make_float2(acc[i][c][0], acc[i][c][1]);
                    *(float2 *)(part + 64) = make_float2(acc[i][c][2], acc[i][c][3]);
                }
    }

    /* Output i of a tile for row j of a group, of the count x GROUPS x 128 ones taken together. */
    __device__ float sum_at(int tile, int group, int i, int j)
    {
        float sum = 0.f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++)
            sum += m.part[((tile * WARPS + warp) * GROUPS + group) * 128 + i * 8 + j];
        return sum;
    }

    __device__ void down(const stream_work &w, int n, int count, x_part &p)
    {
        const gemv_lora &l = a.lora[w.linear];
        uint32_t there = 0;
        for (int i = 0; i < count; i++)
            there |= (uint32_t)(down_at(a, adapters, w, n + i * gridDim.x).A != NULL) << i;
        multiply(w, there, p, n + count * (int)gridDim.x < w.downs + w.tiles);
        consumers_sync();
        int tile = threadIdx.x / 16, i = threadIdx.x % 16; /* TILES * 16 <= CONSUMERS */
        if (tile < count && there >> tile & 1) {
            down_tile t = down_at(a, adapters, w, n + tile * gridDim.x);
            int row = t.row - w.row0;
            if (t.first + i < t.rank)
                ((bf16 *)l.h)[((size_t)t.part * l.rows + t.row) * l.hr + t.first + i] =
                    __float2bfloat16(sum_at(tile, row / 8, i, row % 8));
        }
        consumers_sync();
    }

    __device__ void up(const stream_work &w, int n, int count, x_part &p, bool wait)
    {
        const gemv_lora &l = a.lora[w.linear];
        const stream_layer &s = a.layer[w.layer];
        const int N = a.out[w.linear], i = threadIdx.x % 16, j = threadIdx.x / 16 % 8;
        const bf16 *bias = w.linear == HEAD ? NULL : s.bias[w.linear], *add = w.linear == OUT    ? s.x
                                                                              : w.linear == DOWN ? a.x2
                                                                                                 : NULL;
        bf16 *y = w.linear == QKV ? a.qkv : w.linear == OUT ? a.x2 : w.linear == GATE_UP ? a.a : s.x_out;
        /* output u of this thread: column col, row row of y */
        auto place = [&](int u, int *tile, int *group, int *col, int *row) {
            int o = u * (CONSUMERS / 128) + threadIdx.x / 128;
            *tile = o / GROUPS;
            *group = o % GROUPS;
            *col = row_at(a, w, n + *tile * gridDim.x - w.downs, i);
            *row = w.row0 + *group * 8 + j;
            return *tile < count && *col < N && *row < w.row0 + w.rows;
        };
        int tile, group, col, row;
        if (w.downs)
#pragma unroll
            for (int u = 0; u < OUTPUTS; u++)
                if (place(u, &tile, &group, &col, &row)) {
                    lora_row v = lora_row_of(l, &adapters[row], s.layer, row, col);
                    for (int e = 0; v.B && e < v.rank; e += 64)
                        prefetch_l2(v.B + e);
                }
        multiply(w, (1u << count) - 1, p, n + count * (int)gridDim.x < w.downs + w.tiles);
        PROF(3);
        if (wait)
            grid.wait();
        else
            consumers_sync();
        PROF(4);
#pragma unroll 1
        for (int u0 = 0; u0 < OUTPUTS; u0 += 2) { /* two at a time: their loads are under way together */
            float onto[2], term[2] = {};
#pragma unroll
            for (int u = 0; u < 2; u++)
                onto[u] = place(u0 + u, &tile, &group, &col, &row) && add ? __bfloat162float(add[(size_t)row * N + col])
                                                                          : 0.f;
            if (w.downs) {
                lora_row v[2] = {};
#pragma unroll
                for (int u = 0; u < 2; u++)
                    if (place(u0 + u, &tile, &group, &col, &row))
                        v[u] = lora_row_of(l, &adapters[row], s.layer, row, col);
                lora_terms<2>(v, term);
            }
#pragma unroll
            for (int u = 0; u < 2; u++) {
                bool in = place(u0 + u, &tile, &group, &col, &row);
                float sum = 0.f;
                if (in) {
                    sum = sum_at(tile, group, i, j);
                    if (bias)
                        sum += __bfloat162float(bias[col]);
                    sum = sum + term[u] + onto[u];
                }
                if (w.linear == GATE_UP) {
                    float gate = __bfloat162float(__float2bfloat16(sum)), up = __shfl_down_sync(~0u, gate, 8);
                    if (i < 8 && in)
                        y[(size_t)row * (N / 2) + col] = __float2bfloat16(gate / (1.f + __expf(-gate)) * up);
                } else if (in && w.linear == HEAD) {
                    a.logits[(size_t)row * N + col] = sum;
                } else if (in) {
                    y[(size_t)row * N + col] = __float2bfloat16(sum);
                }
            }
        }
        consumers_sync();
        PROF(5);
    }

    __device__ void product(const stream_work &w)
    {
        const stream_layer &s = a.layer[w.layer];
        const bf16 *x = w.linear == QKV || w.linear == HEAD ? s.x
                        : w.linear == OUT                   ? a.o
                        : w.linear == GATE_UP               ? a.x2
                                                            : a.a;
        const bf16 *norm = w.linear == QKV || w.linear == HEAD ? s.norm1 : w.linear == GATE_UP ? s.norm2 : NULL;
        int n = w.first, count;
        x_part p = {x, norm, a.lora[w.linear].in, w.row0, w.rows, stream_shared<GROUPS>::X / w.rows / COLUMNS * COLUMNS,
                    0};
        x_fetch(p, 0);
        if (norm)
            norms(x, p.K, w.row0, w.rows);
        x_store(p, 0);
        PROF(1);
        for (; n < w.downs; n += count * gridDim.x) {
            count = tiles_from(w, n, TILES);
            down(w, n, count, p);
        }
        PROF(2);
        bool wait = w.downs > 0;
        if (wait)
            grid.arrive();
        for (; n < w.downs + w.tiles; n += count * gridDim.x) {
            count = tiles_from(w, n, TILES);
            up(w, n, count, p, wait);
            wait = false;
        }
        if (wait)
            grid.wait();
    }

    struct attend_task {
        int row, head, slice;
        attend_slice c;
    };

    __device__ attend_task task_at(const attend_args &t, int task)
    {
        attend_task k = {task / t.heads % a.rows, task % t.heads, task / t.heads / a.rows, {}};
        k.c = attend_at(t, seqs[k.row], k.head, k.slice);
        return k;
    }

    __device__ void attention(int layer)
    {
        static_assert((int)ATTEND_THREADS == (int)CONSUMERS, "all consumers attend together");
        attend_args t = a.attend;
        t.layer = layer;
        int end = t.slices * a.rows * t.heads, stride = gridDim.x, first = blockIdx.x, thread = threadIdx.x;
        attend_cache old;
        for (int i = 0; i < AHEAD && first + i * stride < end; i++) {
            attend_task k = task_at(t, first + i * stride);
            attend_prefetch(t, seqs[k.row], k.c, thread);
        }
        if (first < end)
            old.load(t, task_at(t, first).c, thread);
        grid.wait();
        PROF(6);
        for (int task = first; task < end; task += stride) {
            attend_task k = task_at(t, task);
            if (task + AHEAD * stride < end) {
                attend_task next = task_at(t, task + AHEAD * stride);
                attend_prefetch(t, seqs[next.row], next.c, thread);
            }
            if (k.c.n > 0)
                attend(t, seqs[k.row], k.c, old, k.row, k.head, k.slice, thread, 1, m.attend);
            if (task + stride < end)
                old.load(t, task_at(t, task + stride).c, thread);
        }
        consumers_sync();
        /* Whoever made the last slice of a head joins its slices. */
        for (int base = first; base < end; base += CONSUMERS * stride) {
            int mine = base + thread * stride;
            m.last[thread] = false;
            if (mine < end) {
                attend_task k = task_at(t, mine);
                int head = k.row * t.heads + k.head, used = seqs[k.row].pos0 / DECODE_SLICE + 1;
                if (k.c.n > 0) {
                    __threadfence();
                    m.last[thread] = atomicAdd(&a.joined[head], 1) == (uint32_t)used - 1;
                    if (m.last[thread])
                        a.joined[head] = 0;
                    __threadfence();
                }
            }
            consumers_sync();
            for (int i = 0; i < CONSUMERS && base + i * stride < end; i++) {
                if (!m.last[i])
                    continue;
                attend_task k = task_at(t, base + i * stride);
                int head = k.row * t.heads + k.head, used = seqs[k.row].pos0 / DECODE_SLICE + 1;
                if (thread < t.dim)
                    a.o[(size_t)head * t.dim + thread] = __float2bfloat16(
                        attend_join(t.partial + (size_t)head * t.slices * (2 + t.dim), used, t.dim, thread));
            }
            consumers_sync();
        }
        PROF(7);
        grid.arrive();
    }

    __device__ void run()
    {
        uint32_t dealt = 0;
#ifdef STREAM_PROF
        last_ = clock64();
#endif
        for (int step = 0; step < a.steps; step++) {
            if (step > 0)
                grid.wait();
            PROF(0);
            for (int row0 = 0; row0 < a.rows; row0 += 8 * GROUPS)
                product(work_at<GROUPS>(a, step, row0, &dealt));
            if (step + 1 < a.steps)
                grid.arrive();
            if (step % 4 == QKV && step / 4 < a.layers)
                attention(a.layer[step / 4].cache);
        }
        grid.leave();
    }
};

template <int GROUPS> __global__ void __launch_bounds__(THREADS, 1) stream_kernel(const __grid_constant__ stream_args a)
{
    extern __shared__ __align__(128) char memory[];
    stream_shared<GROUPS> &m = *(stream_shared<GROUPS> *)memory;
    bf16 *stages = (bf16 *)(memory + sizeof(m));
    const dev_adapter *adapters = a.lora[0].row_adapters;
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.stages; i++) {
#ifdef STREAM_BULK
            mbar_init(&m.full[i], 1);
#else
            mbar_init(&m.full[i], PRODUCERS);
#endif
            mbar_init(&m.empty[i], WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (a.adapters && a.rows <= MOST_ROWS) {
        for (int i = threadIdx.x; i < a.rows * (int)(sizeof(dev_adapter) / 4); i += THREADS)
            ((uint32_t *)m.adapters)[i] = ((const uint32_t *)adapters)[i];
        adapters = m.adapters;
    }
    const op_seq *seqs = a.attend.seqs;
    if (a.rows <= MOST_ROWS) {
        for (int i = threadIdx.x; i < a.rows * (int)(sizeof(op_seq) / 4); i += THREADS)
            ((uint32_t *)m.seqs)[i] = ((const uint32_t *)seqs)[i];
        seqs = m.seqs;
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS)
        produce<GROUPS>(a, adapters, stages, m);
    else
        consumer<GROUPS>{a, adapters, seqs, stages, m, {0, 0}, {a.arrived, 0, 0}}.run();
}

#else
template <int GROUPS> __global__ void stream_kernel(const __grid_constant__ stream_args a)
{
}
#endif

/* ---- launches ---- */

struct stream_way { /* by the number of rows */
    const void *kernel;
    size_t shared; /* beside the stages */
};

static stream_way way_for(int rows)
{
    if (rows <= 8)
        return {(const void *)stream_kernel<1>, sizeof(stream_shared<1>)};
    if (rows <= 16)
        return {(const void *)stream_kernel<2>, sizeof(stream_shared<2>)};
    return {(const void *)stream_kernel<4>, sizeof(stream_shared<4>)};
}

static int stages_of(const op_dev *d, const stream_way &w)
{
    int n = (d->shared_bytes - (int)w.shared) / (int)(STAGE * sizeof(bf16));
    return n < MOST_STAGES ? n : (int)MOST_STAGES;
}

static size_t smem_of(const op_dev *d, const stream_way &w)
{
    return w.shared + stages_of(d, w) * STAGE * sizeof(bf16);
}

void stream_setup(op_dev *d)
{
    int together = 0;
    if (!getenv("DTX_CUDA_STREAM")) /* not yet faster in all cases: asked for by name */
        return;
    DEV_CHECK(d, cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, d->index));
    DEV_CHECK(d, cudaDeviceGetAttribute(&d->processors, cudaDevAttrMultiProcessorCount, d->index));
    if (d->status != cudaSuccess || !d->overlap || !together || stages_of(d, way_for(MOST_ROWS)) < 2)
        return;
    for (int rows : {8, 16, (int)MOST_ROWS}) {
        stream_way w = way_for(rows);
        DEV_CHECK(d, cudaFuncSetAttribute(w.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem_of(d, w)));
    }
    d->streams = true;
}

static bool whole(const op_linear *l)
{
    return l->in % 32 == 0 && l->out % 16 == 0;
}

/* Is it built for these layers?  Of the model alone: rows must not choose between two ways to sum. */
bool stream_fits(const op_dev *d, const op_layer *l)
{
    const op_attention *t = &l->attention;
    return d->streams && whole(&l->qkv) && whole(&l->out) && whole(&l->gate_up) && whole(&l->down) &&
           t->head_dim * t->kv_heads % 8 == 0;
}

/* Counts that are 0 between launches: of blocks, then of slices. */
static bool need_counts(op_dev *d, int n)
{
    if (n <= d->n_counts)
        return true;
    dev_free(d, d->counts);
    d->counts = (uint32_t *)dev_alloc(d, n * sizeof(uint32_t));
    d->n_counts = d->counts ? n : 0;
    if (d->counts)
        DEV_CHECK(d, cudaMemsetAsync(d->counts, 0, n * sizeof(uint32_t), d->stream));
    return d->counts != NULL;
}

bool stream_need(op_dev *d, int rows, int heads)
{
    return need_counts(d, COUNTS_APART + rows * heads);
}

static void fill_linear(stream_args *a, int i, const op_pack *p, const op_linear *l, float *h)
{
    a->lora[i] = gemv_lora_of(p, l, (const bf16 *)h);
    a->out[i] = l->out;
}

static void fill_layer(stream_layer *s, const op_layer *l)
{
    const op_linear *linear[4] = {&l->qkv, &l->out, &l->gate_up, &l->down};
    for (int i = 0; i < 4; i++) {
        s->W[i] = (const bf16 *)linear[i]->W;
        s->bias[i] = (const bf16 *)linear[i]->bias;
    }
    s->norm1 = (const bf16 *)l->norm1;
    s->norm2 = (const bf16 *)l->norm2;
    s->x = (const bf16 *)l->x;
    s->x_out = (bf16 *)l->x_out;
    s->layer = l->qkv.layer;
    s->cache = l->attention.layer;
}

void stream_layers(op_dev *d, const op_pack *p, const op_layer *l, int layers, const op_decode *end, float *partial,
                   int slices)
{
    const op_attention *t = &l->attention;
    stream_args a = {};
    fill_linear(&a, QKV, p, &l->qkv, l->h_qkv);
    fill_linear(&a, OUT, p, &l->out, l->h_out);
    fill_linear(&a, GATE_UP, p, &l->gate_up, l->h_gate_up);
    fill_linear(&a, DOWN, p, &l->down, l->h_down);
    a.rows = p->rows;
    const stream_way way = way_for(p->rows);
    a.stages = stages_of(d, way);
    a.norm_threads = row_threads(l->qkv.in);
    a.eps = l->eps;
    a.adapters = p->n_adapters > 0 && p->max_rank > 0;
    a.attend = {pack_dev(p)->seqs, l->rope, (const bf16 *)l->qkv_y, t->heads, t->kv_heads, t->head_dim, 0, slices,
                t->scale,          partial};
    a.qkv = (bf16 *)l->qkv_y;
    a.o = (bf16 *)l->o;
    a.x2 = (bf16 *)l->x2;
    a.a = (bf16 *)l->a;
    a.arrived = d->counts;
    a.joined = d->counts + COUNTS_APART;
    for (int i = 0; i < layers; i += LAYERS) {
        a.layers = layers - i < LAYERS ? layers - i : LAYERS;
        a.steps = a.layers * 4;
        for (int k = 0; k < a.layers; k++)
            fill_layer(&a.layer[k], &l[i + k]);
        if (end && i + a.layers == layers) {
            stream_layer *last = &a.layer[a.layers];
            *last = {};
            last->W[0] = (const bf16 *)end->head;
            last->norm1 = (const bf16 *)end->norm;
            last->x = (const bf16 *)end->x_last;
            a.lora[HEAD].in = end->hidden;
            a.out[HEAD] = end->vocab;
            a.logits = end->logits;
            a.steps++;
        }
        void *params[] = {&a};
        DEV_CHECK(d, cudaLaunchCooperativeKernel(way.kernel, dim3(d->processors), dim3(THREADS), params,
                                                 smem_of(d, way), d->stream));
    }
    DEV_LAUNCHED(d, "decode layers");
}

#ifdef STREAM_PROF
#include <cstdio>
void prof_print(int blocks)
{
    static long long h[256][8];
    const char *name[8] = {"wait", "norms", "down", "multiply", "h wait", "ends", "attn wait", "attend"};
    cudaMemcpyFromSymbol(h, stream_prof, sizeof h);
    for (int c = 0; c < 8; c++) {
        double sum = 0, most = 0;
        for (int b = 0; b < blocks; b++) {
            sum += h[b][c];
            most = h[b][c] > most ? h[b][c] : most;
        }
        printf("    %-10s %8.3f of 35 runs' Mclk, most %.3f\n", name[c], sum / blocks / 1e6, most / 1e6);
    }
    memset(h, 0, sizeof h);
    cudaMemcpyToSymbol(stream_prof, h, sizeof h);
}
#endif
