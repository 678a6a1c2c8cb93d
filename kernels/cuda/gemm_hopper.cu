/*
 * Products with frozen matrices by Hopper's matrix instruction, and the LoRA part as more steps of the same sum:
 *
 *   forward    y  = x W^T + h_t B_t^T + add + bias      W [N, K] k-major
 *   backward   dx = dy W + sum_t drop_t(dh_t A_t)       W [N, K] read as it lies: N is the inner dimension
 *
 * A block has one warpgroup that brings tiles (one thread by TMA; three warps by cp.async for the tail, whose operands
 * differ from row tile to row tile) and two that multiply, 64 rows each.  Tiles pass through a ring of slots, [128 rows
 * x 64] and [columns x 64], with a barrier each for "full" and "free".  A cluster of two blocks has two row tiles of
 * the same columns; each brings half of W's tile to both.
 *
 * After the inner dimension come the slots of the tail (which the TMA thread hands to the three warps): groups of 16
 * columns of the rank, of one part after another, up to four in a slot; then, in two slots, the rows of `add`, which
 * are added in float32.  The blocks of a cluster go through the same number of slots, the longer of their tails.
 *
 * Of a row tile whose adapter has dropout, a slot with the masks comes before those groups: a part's share of 16
 * columns is summed in accumulators of its own, and what the mask keeps of it added.  (Ten instructions for four
 * elements; without this dx was written, read and written again.)  A warp moves its rows' masks to where it will put
 * its results, and gives the slot back: the groups may need more slots than there are.
 *
 * Row invariance: a tile's sum goes by 16 of the inner dimension, ascending, then by 16 of the rank, whatever the size
 * of tiles; so the choice of tiles (by the number of rows) changes speed alone.  Segments start at multiples of 128
 * rows, so a row tile has one adapter or none.
 */
#include "kernels/cuda/gemm_hopper.cuh"
#include "kernels/cuda/lora.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

#include <math.h>
#include <stdlib.h>

enum {
    INNER = 64, /* of a slot */
    TILE_ROWS = ROW_ALIGN,
    A_BYTES = TILE_ROWS * 128,
    THREADS = 384,
    HELPERS = 96, /* threads that fill the tail's slots */
    STORE_BYTES = 16 * 128,
    WARPS = 8, /* that multiply */
    PARTS = 3,
};

template <int BN> struct tile_ring {
    static constexpr int B_BYTES = BN * 128, SLOT = A_BYTES + B_BYTES,
                         SLOTS = BN == 256   ? 4
                                 : BN == 128 ? 6
                                             : 8,
                         BYTES = SLOTS * SLOT + WARPS * 2 * STORE_BYTES + 3 * SLOTS * 8 + 1024;
};

struct gemm_args {
    CUtensorMap x, W[PARTS], y[PARTS], add[PARTS]; /* backward: W, y and add have one part */
    int32_t rows, inner, parts, n[PARTS];          /* parts of the columns of y */
    int32_t group;                                 /* see hopper_shape */
    uint64_t cache_W, cache_y;                     /* ptx/tma.cuh */
    const bf16 *bias;
    int32_t out0[PARTS];
    bool has_add;
    /* the tail */
    const row_block *blocks; /* NULL: none */
    const dev_adapter *adapters;
    const bf16 *h;
    const uint32_t *kept;                          /* see lora.cuh */
    int32_t hr, layer, in, targets, target[PARTS]; /* in: row length of A */
};

enum direction { FORWARD, BACKWARD, MASKED /* backward, and some adapter has dropout */ };

#ifdef DTX_WGMMA

/* ---- the order of tiles ---- */

struct tile_at {
    int row_tile, part, column; /* column: within the part */
};

template <int BN> __device__ __forceinline__ int tiles_of(const gemm_args &a, int part)
{
    return (a.n[part] + BN - 1) / BN;
}

template <int BN, int CL> __device__ __forceinline__ int all_tiles(const gemm_args &a)
{
    int n = 0, m = (a.rows + TILE_ROWS * CL - 1) / (TILE_ROWS * CL);
    for (int p = 0; p < a.parts; p++)
        n += tiles_of<BN>(a, p);
    return n * m;
}

/* Tile number `i` of a cluster: `group` clusters' rows go over all columns together, so that what runs at the same time
 * reads few rows of x and of W. */
template <int BN, int CL> __device__ __forceinline__ tile_at find_tile(const gemm_args &a, int i, int rank)
{
    int n = 0, m = (a.rows + TILE_ROWS * CL - 1) / (TILE_ROWS * CL);
    for (int p = 0; p < a.parts; p++)
        n += tiles_of<BN>(a, p);
    int group = i / (a.group * n), in = i - group * a.group * n, width = min(a.group, m - group * a.group);
    int column = in / width;
    tile_at t;
    t.row_tile = (group * a.group + in % width) * CL + rank;
    t.part = 0;
    while (t.part + 1 < a.parts && column >= tiles_of<BN>(a, t.part))
        column -= tiles_of<BN>(a, t.part++);
    t.column = column * BN;
    return t;
}

/* ---- the tail of a row tile ---- */

struct tail_size {
    int groups, slots;   /* groups of 16; slots of the longer tail in the cluster */
    bool mask, any_mask; /* this row tile has masks; some of the cluster has */
};

template <int DIR>
__device__ __forceinline__ void tail_of_block(const gemm_args &a, int row_tile, int part, int *groups, bool *mask)
{
    *groups = 0;
    *mask = false;
    if (!a.blocks || row_tile * TILE_ROWS >= a.rows)
        return;
    const row_block b = a.blocks[row_tile];
    int of_each = (b.rank + 15) / 16;
    if (DIR == FORWARD)
        *groups = b.targets >> a.target[part] & 1 ? of_each : 0;
    else
        for (int q = 0; q < a.targets; q++)
            *groups += b.targets >> a.target[q] & 1 ? of_each : 0;
    *mask = DIR == MASKED && b.dropout && *groups;
}

template <int DIR, int CL> __device__ __forceinline__ tail_size tail_of(const gemm_args &a, const tile_at &t)
{
    tail_size s;
    int most;
    tail_of_block<DIR>(a, t.row_tile, t.part, &s.groups, &s.mask);
    most = s.groups;
    s.any_mask = s.mask;
    if (CL == 2) {
        int other;
        bool other_mask;
        tail_of_block<DIR>(a, t.row_tile ^ 1, t.part, &other, &other_mask);
        most = max(most, other);
        s.any_mask |= other_mask;
    }
    s.slots = (most + 3) / 4;
    return s;
}

/* The part of group g, backward, and the group's number within it. */
__device__ __forceinline__ int part_of_group(const gemm_args &a, const row_block &b, int *g)
{
    int of_each = (b.rank + 15) / 16, q = 0;
    for (; !(b.targets >> a.target[q] & 1) || *g >= of_each; q++)
        *g -= b.targets >> a.target[q] & 1 ? of_each : 0;
    return q;
}

/* Group g of the tail into place `at` (0..3) of a slot, by the helpers. */
template <int BN, int DIR>
__device__ __forceinline__ void fill_group(const gemm_args &a, const tile_at &t, int g, int at, bf16 *slot, int thread)
{
    const row_block b = a.blocks[t.row_tile];
    int q = DIR == FORWARD ? t.part : part_of_group(a, b, &g), r0 = g * 16;
    const bf16 *A = adapter_at(a.adapters + b.adapter, a.layer, a.target[q]);
    const bf16 *h = a.h + ((size_t)q * a.rows + (size_t)t.row_tile * TILE_ROWS) * a.hr + r0;
    for (int i = thread; i < TILE_ROWS * 2; i += HELPERS) {
        int row = i / 2, piece = at * 2 + i % 2;
        copy16(slot + row * 64 + (piece ^ row % 8) * 8, h + (size_t)row * a.hr + i % 2 * 8, true);
    }
    bf16 *to = slot + A_BYTES / 2;
    int width = a.n[t.part] - t.column; /* columns that exist */
    if (DIR != FORWARD) {
        for (int i = thread; i < 16 * (BN / 8); i += HELPERS) {
            int k = i / (BN / 8), c = i % (BN / 8) * 8, row = at * 16 + k;
            bool valid = r0 + k < b.rank && c < width;
            bf16 *piece = to + c / 64 * (INNER * 64) + row * 64 + (c / 8 % 8 ^ row % 8) * 8;
            const bf16 *from = A + (valid ? (size_t)(r0 + k) * a.in + t.column + c : 0);
            if (((uintptr_t)A & 15) == 0)
                copy16(piece, from, valid);
            else /* an odd rank, and another matrix with odd sides */
                for (int e = 0; e < 8; e++)
                    piece[e] = valid ? from[e] : __float2bfloat16(0.f);
        }
        return;
    }
    const bf16 *B = A + (size_t)b.rank * a.in + (size_t)t.column * b.rank + r0;
    if (b.rank % 8 == 0) {
        for (int i = thread; i < BN * 2; i += HELPERS) {
            int row = i / 2, c = i % 2 * 8, piece = at * 2 + i % 2;
            bool valid = r0 + c < b.rank && row < width;
            copy16(to + row * 64 + (piece ^ row % 8) * 8, B + (valid ? (size_t)row * b.rank + c : 0), valid);
        }
        return;
    }
    for (int i = thread; i < BN * 16; i += HELPERS) { /* rows of B at odd addresses */
        int row = i / 16, c = i % 16, piece = at * 2 + c / 8;
        to[row * 64 + (piece ^ row % 8) * 8 + c % 8] =
            r0 + c < b.rank && row < width ? B[(size_t)row * b.rank + c] : __float2bfloat16(0.f);
    }
}

/* The masks of a row tile's BN columns: [part][16 rows][64 columns][32 words]. */
template <int BN>
__device__ __forceinline__ void fill_masks(const gemm_args &a, const tile_at &t, uint32_t *to, int thread)
{
    enum { BLOCKS = TILE_ROWS / 16 };
    const row_block b = a.blocks[t.row_tile];
    for (int i = thread; i < a.targets * BLOCKS * (BN / 8); i += HELPERS) {
        int q = i / (BLOCKS * (BN / 8)), rows = i / (BN / 8) % BLOCKS, piece = i % (BN / 8);
        int column = t.column + piece / 8 * 64;
        bool valid = column < a.in && (b.targets >> a.target[q] & 1);
        const uint32_t *from = a.kept;
        if (valid)
            from += kept_at(a.in, a.rows, q, t.row_tile * TILE_ROWS + rows * 16, column) + piece % 8 * 4;
        copy16(to + i * 4, from, valid);
    }
}

/* Those of 16 rows, number `rows` of the tile's, out of a slot: [part][64 columns][32 words]. */
template <int BN> __device__ __forceinline__ void take_masks(const uint4 *slot, int parts, int rows, uint4 *to)
{
    static_assert(PARTS * (BN / 8) * 16 <= 2 * STORE_BYTES, "fits");
    for (int i = threadIdx.x % 32; i < parts * (BN / 8); i += 32)
        to[i] = slot[(i / (BN / 8) * (TILE_ROWS / 16) + rows) * (BN / 8) + i % (BN / 8)];
}

/* acc += what `mask` keeps of the sum of n <= MOST groups, which lie in a slot from place k on; `row`: of the
 * warp's 16. By mma.sync: beside sums of wgmma in other registers the compiler would have the main loop wait for each
 * product. */
template <int BN, int MOST>
__device__ __forceinline__ void add_groups(float (*acc)[4], uint32_t slot, int row, int k, int n, const uint32_t *mask,
                                           float keep)
{
    constexpr int AHEAD = MOST == 1 ? 2 : 0; /* how long before its use a piece is taken out of shared memory */
    int lane = threadIdx.x % 32, mrow = lane % 16, mpiece = lane / 16;
    uint32_t fa[MOST][4], fb[AHEAD + 1][4], from = slot + A_BYTES + (k * 16 + mrow) * 128;
    auto load = [&](int c, int i) {
        load4t_at(fb[c % (AHEAD + 1)],
                  from + c / 4 * (INNER * 128) + i * 2048 + ((c % 4 * 2 + mpiece) ^ mrow % 8) * 16);
    };
#pragma unroll
    for (int i = 0; i < MOST; i++)
        if (i == 0 || i < n)
            load4_at(fa[i], slot + (row + mrow) * 128 + (((k + i) * 2 + mpiece) ^ mrow % 8) * 16);
#pragma unroll
    for (int c = 0; c < AHEAD; c++)
        load(c, 0);
#pragma unroll
    for (int c = 0; c < BN / 16; c++) {
        float sum[2][4] = {};
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            if (i > 0 && i >= n)
                continue;
            if (c + AHEAD < BN / 16)
                load(c + AHEAD, i);
            const uint32_t *b = fb[c % (AHEAD + 1)];
            mma(sum[0], fa[i], b[0], b[1]);
            mma(sum[1], fa[i], b[2], b[3]);
        }
        uint32_t word = mask[c / 4 * 32];
        kept_add(acc[c * 2], sum[0], word, c % 4 * 2, keep);
        kept_add(acc[c * 2 + 1], sum[1], word, c % 4 * 2 + 1, keep);
    }
}

/* acc += what the masks keep of groups first .. first + n - 1, which lie in a slot, part after part.  masks: of the
 * warp's rows, as take_masks leaves them. */
template <int BN>
__device__ __forceinline__ void add_kept(float (*acc)[4], const gemm_args &a, const tile_at &t, int first, int n,
                                         uint32_t slot, int row, const uint4 *masks)
{
    const row_block b = a.blocks[t.row_tile];
    float keep = a.adapters[b.adapter].keep;
    for (int k = 0, end; k < n; k = end) {
        int g = first + k, q = part_of_group(a, b, &g);
        end = min(n, k + (b.rank + 15) / 16 - g);
        const uint32_t *mask = (const uint32_t *)(masks + q * (BN / 8)) + kept_word(threadIdx.x % 32);
        if (end - k == 1) /* ranks up to 16, the usual case */
            add_groups<BN, 1>(acc, slot, row, k, 1, mask, keep);
        else
            add_groups<BN, 4>(acc, slot, row, k, end - k, mask, keep);
    }
}

#endif

/* grid: clusters of CL blocks, each takes every so many tiles. */
template <int BN, int CL, int DIR>
__global__ void __launch_bounds__(THREADS, 1) gemm_kernel(const __grid_constant__ gemm_args a)
{
#ifdef DTX_WGMMA
    typedef tile_ring<BN> G;
    DYNAMIC_SHARED(unsigned char, raw);
    unsigned char *smem = raw + ((1024 - (smem_addr(raw) & 1023)) & 1023);
    uint32_t slots = smem_addr(smem), stores = slots + G::SLOTS * G::SLOT, full = stores + WARPS * 2 * STORE_BYTES,
             empty = full + G::SLOTS * 8, turn = empty + G::SLOTS * 8;
    int rank = CL == 1 ? 0 : (int)cluster_rank(), first = blockIdx.x / CL, step = gridDim.x / CL;
    int total = all_tiles<BN, CL>(a), chunks = (a.inner + INNER - 1) / INNER;
    int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    constexpr int BACK = DIR != FORWARD;

    if (threadIdx.x == 0) {
        for (int i = 0; i < G::SLOTS; i++) {
            bar_init(full + i * 8, 1);
            bar_init(empty + i * 8, WARPS * CL);
            bar_init(turn + i * 8, 1);
        }
        bar_init_seen();
    }
    if (CL > 1)
        cluster_sync();
    else
        __syncthreads();
    chain_wait();

    int slot = 0;
    uint32_t phase = 0; /* of the slot's "full" */
    auto advance = [&]() {
        if (++slot == G::SLOTS) {
            slot = 0;
            phase ^= 1;
        }
    };

    if (warpgroup == 0) {
        registers_down<72>();
        if (warp == 0 && lane == 0) {
            tma_prefetch(&a.x);
            for (int i = first; i < total; i += step) {
                tile_at t = find_tile<BN, CL>(a, i, rank);
                tail_size tail = tail_of<DIR, CL>(a, t);
                const CUtensorMap *W = &a.W[t.part];
                for (int c = 0; c < chunks; c++) {
                    uint32_t to = slots + slot * G::SLOT, bar = full + slot * 8;
                    bar_wait(empty + slot * 8, phase ^ 1);
                    bar_expect(bar, G::SLOT);
                    tma_load(to, &a.x, c * INNER, t.row_tile * TILE_ROWS, bar);
                    if (DIR != FORWARD) {
#pragma unroll
                        for (int s = 0; s < BN / 64; s++) {
                            uint32_t at = to + A_BYTES + s * (INNER * 128);
                            if (CL == 1)
                                tma_load(at, W, t.column + s * 64, c * INNER, bar, a.cache_W);
                            else if (s % CL == rank)
                                tma_load_all(at, W, t.column + s * 64, c * INNER, bar, (1 << CL) - 1, a.cache_W);
                        }
                    } else if (CL == 1) {
                        tma_load(to + A_BYTES, W, c * INNER, t.column, bar, a.cache_W);
                    } else {
                        tma_load_all(to + A_BYTES + rank * (BN / CL * 128), W, c * INNER, t.column + rank * (BN / CL),
                                     bar, (1 << CL) - 1, a.cache_W);
                    }
                    advance();
                }
                for (int j = 0; j < tail.slots + tail.any_mask; j++) { /* the helpers' turn */
                    bar_wait(empty + slot * 8, phase ^ 1);
                    bar_arrive(turn + slot * 8);
                    advance();
                }
                for (int w = 0; w < 2 && a.has_add; w++) {
                    uint32_t to = slots + slot * G::SLOT + A_BYTES, bar = full + slot * 8;
                    bar_wait(empty + slot * 8, phase ^ 1);
                    bar_expect(bar, BN * 128);
                    for (int s = 0; s < BN / 64; s++)
                        tma_load(to + s * (64 * 128), &a.add[t.part], t.column + s * 64,
                                 t.row_tile * TILE_ROWS + w * 64, bar, a.cache_y);
                    advance();
                }
            }
        } else if (warp > 0 && a.blocks) {
            /* A barrier's phases may be followed only by who waits for each of them: not so here, hence the barriers
             * of their own for the slots of the tail. */
            int thread = threadIdx.x - 32;
            uint32_t turns = 0; /* phases */
            for (int i = first; i < total; i += step) {
                tile_at t = find_tile<BN, CL>(a, i, rank);
                tail_size tail = tail_of<DIR, CL>(a, t);
                slot = (slot + chunks) % G::SLOTS;
                for (int j = -(int)tail.any_mask; j < tail.slots; j++) {
                    bar_wait(turn + slot * 8, turns >> slot & 1);
                    turns ^= 1u << slot;
                    if (j < 0 && tail.mask)
                        fill_masks<BN>(a, t, (uint32_t *)(smem + slot * G::SLOT), thread);
                    for (int g = j * 4; g >= 0 && g < min(j * 4 + 4, tail.groups); g++)
                        fill_group<BN, DIR>(a, t, g, g % 4, (bf16 *)(smem + slot * G::SLOT), thread);
                    copy_commit();
                    copy_wait<0>();
                    shared_for_matrix_unit();
                    named_barrier<1, HELPERS>();
                    if (thread == 0)
                        bar_arrive(full + slot * 8);
                    advance();
                }
                slot = (slot + (a.has_add ? 2 : 0)) % G::SLOTS;
            }
        }
    } else {
        registers_up<216>();
        int half = warpgroup - 1;
        uint32_t mine = stores + (half * 4 + warp) * 2 * STORE_BYTES, buffer = 0;
        auto release = [&](int s) {
            if (lane < CL) {
                if (CL == 1)
                    bar_arrive(empty + s * 8);
                else
                    bar_arrive_at(empty + s * 8, lane);
            }
        };
        /* what ldmatrix and stmatrix want of each lane: four 8 x 8 blocks of 16 x 16, rows 0-7, 8-15, then to the
         * right */
        int mrow = lane % 16, mpiece = lane / 16;
        for (int i = first; i < total; i += step) {
            tile_at t = find_tile<BN, CL>(a, i, rank);
            tail_size tail = tail_of<DIR, CL>(a, t);
            float acc[BN / 8][4];
            int last = -1; /* slot that the matrix unit may still read */
            for (int c = 0; c < chunks; c++) {
                bar_wait(full + slot * 8, phase);
                const unsigned char *p = smem + slot * G::SLOT;
                uint64_t da = k_major(p + half * 8192),
                         db = BACK ? n_major(p + A_BYTES, INNER * 128) : k_major(p + A_BYTES);
                wg_fence();
#pragma unroll
                for (int k = 0; k < INNER / 16; k++)
                    wg_tiles<BN, BACK>(acc, da + k * 2, db + k * (BACK ? 128 : 2), c + k > 0);
                wg_commit();
                wg_wait<1>();
                if (last >= 0)
                    release(last);
                last = slot;
                advance();
            }
            bool masked = DIR == MASKED && tail.mask;
            uint4 *masks = (uint4 *)(smem + (mine - slots));
            if (DIR == MASKED && tail.any_mask) {
                bar_wait(full + slot * 8, phase);
                if (masked) {
                    if (lane == 0)
                        store_wait<0>();
                    __syncwarp();
                    take_masks<BN>((const uint4 *)(smem + slot * G::SLOT), a.targets, half * 4 + warp, masks);
                }
                __syncwarp();
                release(slot);
                advance();
            }
            for (int j = 0; j < tail.slots && !masked; j++) {
                bar_wait(full + slot * 8, phase);
                const unsigned char *p = smem + slot * G::SLOT;
                uint64_t da = k_major(p + half * 8192),
                         db = BACK ? n_major(p + A_BYTES, INNER * 128) : k_major(p + A_BYTES);
                int n = min(4, tail.groups - j * 4);
#pragma unroll 1
                for (int k = 0; k < n; k++) {
                    wg_fence();
                    wg_tiles<BN, BACK>(acc, da + k * 2, db + k * (BACK ? 128 : 2), 1);
                    wg_commit();
                    wg_wait<1>();
                    if (k == 0)
                        release(last);
                }
                if (n <= 0) {
                    wg_wait<0>();
                    release(last);
                }
                last = slot;
                advance();
            }
            wg_wait<0>();
            release(last);
            for (int j = 0; j < tail.slots && masked; j++) {
                bar_wait(full + slot * 8, phase);
                add_kept<BN>(acc, a, t, j * 4, min(4, tail.groups - j * 4), slots + slot * G::SLOT,
                             half * 64 + warp * 16, masks);
                __syncwarp();
                release(slot);
                advance();
            }
            for (int w = 0; w < 2 && a.has_add; w++) {
                bar_wait(full + slot * 8, phase);
                if (w == half) {
                    uint32_t from = slots + slot * G::SLOT + A_BYTES + (warp * 16 + mrow) * 128;
#pragma unroll
                    for (int n = 0; n < BN / 16; n++) {
                        uint32_t r[4];
                        load4_at(r, from + n / 4 * 8192 + ((n % 4 * 2 + mpiece) ^ mrow % 8) * 16);
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            acc[n * 2 + e / 2][e % 2 * 2] += __uint_as_float(r[e] << 16);
                            acc[n * 2 + e / 2][e % 2 * 2 + 1] += __uint_as_float(r[e] & 0xffff0000u);
                        }
                    }
                }
                __syncwarp(); /* whoever has not seen "full" yet would miss it when the slot is filled again */
                release(slot);
                advance();
            }
            if (a.bias) {
                const bf16 *b = a.bias + a.out0[t.part] + t.column;
#pragma unroll
                for (int n = 0; n < BN / 8; n++) {
                    int c = n * 8 + lane % 4 * 2;
                    if (t.column + c < a.n[t.part]) {
                        float b0 = __bfloat162float(b[c]), b1 = __bfloat162float(b[c + 1]);
                        acc[n][0] += b0;
                        acc[n][1] += b1;
                        acc[n][2] += b0;
                        acc[n][3] += b1;
                    }
                }
            }
            int row0 = t.row_tile * TILE_ROWS + half * 64 + warp * 16;
#pragma unroll
            for (int s = 0; s < BN / 64; s++) {
                uint32_t to = mine + buffer * STORE_BYTES;
                if (lane == 0)
                    store_wait<1>();
                __syncwarp();
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    float *v = acc[s * 8 + n * 2], *u = acc[s * 8 + n * 2 + 1];
                    uint32_t r[4] = {pack(v[0], v[1]), pack(v[2], v[3]), pack(u[0], u[1]), pack(u[2], u[3])};
                    store4_at(to + mrow * 128 + ((n * 2 + mpiece) ^ mrow % 8) * 16, r);
                }
                shared_for_matrix_unit();
                __syncwarp();
                if (lane == 0) {
                    tma_store(&a.y[t.part], t.column + s * 64, row0, to, a.cache_y);
                    store_commit();
                }
                buffer ^= 1;
            }
        }
        if (lane == 0)
            store_wait_all();
        __syncwarp();
    }
    if (CL > 1) { /* the other block may still write here, or release slots here */
        __syncwarp();
        cluster_sync();
    }
#endif
}

/* ---- launches ---- */

typedef CUresult (*encode_fn)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                              const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                              CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

void hopper_map(op_dev *d, CUtensorMap *m, const bf16 *p, int columns, int rows, size_t stride, int box_rows,
                int box_columns)
{
    cuuint64_t size[2] = {(cuuint64_t)columns, (cuuint64_t)rows}, strides[1] = {stride * sizeof(bf16)};
    cuuint32_t box[2] = {(cuuint32_t)box_columns, (cuuint32_t)box_rows}, ones[2] = {1, 1};
    CUtensorMapSwizzle swizzle = box_columns == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                 : box_columns == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                     : CU_TENSOR_MAP_SWIZZLE_32B;
    CUresult rc = ((encode_fn)d->encode_map)(m, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)p, size, strides, box,
                                             ones, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (rc != CUDA_SUCCESS)
        dev_fail(d, cudaErrorInvalidValue, "tensor map");
}

static void make_maps(op_dev *d, gemm_args *a, const hopper_shape &s, bool back, const op_linear *l, const bf16 *x,
                      const bf16 *add, bf16 *y)
{
    const bf16 *W = (const bf16 *)l->W;
    int ld = back ? l->in : l->out;
    hopper_map(d, &a->x, x, a->inner, a->rows, a->inner, TILE_ROWS);
    for (int p = 0; p < a->parts; p++) {
        if (back)
            hopper_map(d, &a->W[p], W, l->in, l->out, l->in, INNER);
        else
            hopper_map(d, &a->W[p], W + (size_t)a->out0[p] * l->in, l->in, a->n[p], l->in, s.columns / s.cluster);
        hopper_map(d, &a->y[p], y + a->out0[p], a->n[p], a->rows, ld, 16);
        if (add)
            hopper_map(d, &a->add[p], add + a->out0[p], a->n[p], a->rows, ld, 64);
    }
}

template <int BN, int CL, int DIR> static cudaError_t setup_kernel(int *blocks)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[1];
    int clusters = 0;
    cudaError_t rc = cudaFuncSetAttribute(gemm_kernel<BN, CL, DIR>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                          tile_ring<BN>::BYTES);
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = CL;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    config.gridDim = dim3(CL);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = tile_ring<BN>::BYTES;
    config.attrs = attribute;
    config.numAttrs = 1;
    if (rc == cudaSuccess)
        rc = cudaOccupancyMaxActiveClusters(&clusters, gemm_kernel<BN, CL, DIR>, &config);
    if (rc == cudaSuccess && (*blocks == 0 || clusters * CL < *blocks))
        *blocks = clusters * CL;
    return rc == cudaSuccess && clusters == 0 ? cudaErrorNotSupported : rc;
}

template <int BN, int CL, int DIR> static void launch_kernel(op_dev *d, const gemm_args &a)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[2];
    int tiles = 0, blocks = d->gemm_blocks[CL - 1];
    for (int p = 0; p < a.parts; p++)
        tiles += div_up(a.n[p], BN);
    tiles *= div_up(a.rows, TILE_ROWS * CL);
    if (tiles == 0)
        return;
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = CL;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    attribute[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(tiles * CL < blocks ? tiles * CL : blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = tile_ring<BN>::BYTES;
    config.stream = d->stream;
    config.attrs = attribute;
    config.numAttrs = d->overlap ? 2 : 1;
    DEV_CHECK(d, cudaLaunchKernelEx(&config, gemm_kernel<BN, CL, DIR>, a));
}

template <int DIR> static void launch_shape(op_dev *d, const hopper_shape &s, const gemm_args &a)
{
    if (s.columns == 256 && s.cluster == 2)
        launch_kernel<256, 2, DIR>(d, a);
    else if (s.columns == 256)
        launch_kernel<256, 1, DIR>(d, a);
    else if (s.columns == 128 && s.cluster == 2)
        launch_kernel<128, 2, DIR>(d, a);
    else if (s.columns == 128)
        launch_kernel<128, 1, DIR>(d, a);
    else if (s.cluster == 2)
        launch_kernel<64, 2, DIR>(d, a);
    else
        launch_kernel<64, 1, DIR>(d, a);
}

template <int DIR> static cudaError_t setup_all(op_dev *d)
{
    cudaError_t rc;
    if ((rc = setup_kernel<256, 1, DIR>(&d->gemm_blocks[0])) || (rc = setup_kernel<128, 1, DIR>(&d->gemm_blocks[0])) ||
        (rc = setup_kernel<64, 1, DIR>(&d->gemm_blocks[0])) || (rc = setup_kernel<256, 2, DIR>(&d->gemm_blocks[1])) ||
        (rc = setup_kernel<128, 2, DIR>(&d->gemm_blocks[1])))
        return rc;
    return setup_kernel<64, 2, DIR>(&d->gemm_blocks[1]);
}

/* ---- the size of tiles: all give the same bits, so the fastest is taken, by measurement ---- */

enum { LARGE = 3, CANDIDATES = 7 }; /* for more than 1024 rows the first LARGE of them */

static const hopper_shape candidates[CANDIDATES] = {{256, 2, 8},  {256, 2, 16}, {256, 1, 16}, {128, 2, 8},
                                                    {128, 1, 16}, {64, 2, 8},   {64, 1, 16}};

/* DTX_CUDA_TILES: the number of a candidate, to test each. */
static void choose_before(op_dev *d)
{
    const char *s = getenv("DTX_CUDA_TILES");
    long n = s && *s ? strtol(s, NULL, 10) : -1;
    d->tiles = n >= 0 && n < CANDIDATES ? (int32_t)n : -1;
}

cudaError_t hopper_gemm_setup(op_dev *d)
{
    choose_before(d);
    cudaDriverEntryPointQueryResult found;
    cudaError_t rc =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &d->encode_map, 12000, cudaEnableDefault, &found);
    if (rc == cudaSuccess && found != cudaDriverEntryPointSuccess)
        rc = cudaErrorNotSupported;
    if (rc == cudaSuccess)
        rc = setup_all<FORWARD>(d);
    if (rc == cudaSuccess)
        rc = setup_all<BACKWARD>(d);
    return rc == cudaSuccess ? setup_all<MASKED>(d) : rc;
}

bool hopper_gemm_fits(const op_dev *d, const op_linear *l)
{
    bool fits = d->hopper && l->in % 8 == 0 && l->out % 8 == 0 && ((uintptr_t)l->W & 15) == 0;
    for (int p = 0; p < l->n_parts; p++)
        fits = fits && l->part[p].out0 % 8 == 0 && l->part[p].n % 8 == 0;
    return fits;
}

struct hopper_choice {
    bool back;
    int32_t in, out, n_parts, size; /* size: log2 of the rows */
    hopper_shape shape;
    hopper_choice *next;
};

static void run(op_dev *d, bool back, const hopper_shape &s, const op_linear *l, const bf16 *x, const bf16 *add,
                bf16 *y, gemm_args *a)
{
    a->group = s.group;
    /* A group's rows of x are read again for every few columns: where they can stay, W and y, which cannot, go first.
     * (H200, 7B, 4096 rows: a step 0.5% shorter, by less power.) */
    bool stays = (size_t)s.group * s.cluster * TILE_ROWS * a->inner * sizeof(bf16) < (size_t)d->cache_bytes / 3;
    a->cache_W = a->cache_y = stays ? CACHE_GOES_FIRST : CACHE_USUAL;
    make_maps(d, a, s, back, l, x, add, y);
    if (back && a->kept)
        launch_shape<MASKED>(d, s, *a);
    else if (back)
        launch_shape<BACKWARD>(d, s, *a);
    else
        launch_shape<FORWARD>(d, s, *a);
}

/* Of the product alone, into scratch memory. */
static int fastest(op_dev *d, bool back, const op_linear *l, const bf16 *x, const gemm_args &args, int n)
{
    enum { ROUNDS = 2, RUNS = 3 };
    gemm_args a = args;
    cudaEvent_t begin = NULL, end = NULL;
    void *y = NULL;
    float least[CANDIDATES];
    int pick = 0;

    if (cudaMallocAsync(&y, (size_t)a.rows * (back ? l->in : l->out) * sizeof(bf16), d->stream) != cudaSuccess) {
        (void)cudaGetLastError(); /* no memory to spare: not an error */
        return 0;
    }
    a.has_add = false;
    a.blocks = NULL;
    a.kept = NULL;
    DEV_CHECK(d, cudaEventCreate(&begin));
    DEV_CHECK(d, cudaEventCreate(&end));
    for (int i = 0; i < ROUNDS * n && d->status == cudaSuccess; i++) {
        float ms = INFINITY;
        run(d, back, candidates[i % n], l, x, NULL, (bf16 *)y, &a);
        DEV_CHECK(d, cudaEventRecord(begin, d->stream));
        for (int k = 0; k < RUNS; k++)
            run(d, back, candidates[i % n], l, x, NULL, (bf16 *)y, &a);
        DEV_CHECK(d, cudaEventRecord(end, d->stream));
        DEV_CHECK(d, cudaEventSynchronize(end));
        DEV_CHECK(d, cudaEventElapsedTime(&ms, begin, end));
        least[i % n] = i < n || ms < least[i % n] ? ms : least[i % n];
    }
    for (int i = 1; i < n && d->status == cudaSuccess; i++)
        if (least[i] < least[pick] * 0.99f)
            pick = i;
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    dev_free(d, y);
    return pick;
}

/* Waits for the device, once for each size of each matrix shape.  (H200, 7B, 4096 rows: 256 columns in clusters of two,
 * a step 2% shorter than with blocks alone.) */
static hopper_shape choose_shape(op_dev *d, bool back, const op_linear *l, const bf16 *x, const gemm_args &a)
{
    int size = 7; /* 128 rows or fewer are one case */
    hopper_choice *c;

    if (d->tiles >= 0)
        return candidates[d->tiles];
    while (a.rows > 1 << size)
        size++;
    for (c = d->hopper_choices; c; c = c->next)
        if (c->back == back && c->in == l->in && c->out == l->out && c->n_parts == l->n_parts && c->size == size)
            return c->shape;
    c = (hopper_choice *)calloc(1, sizeof(*c));
    if (!c)
        return candidates[0];
    *c = {back, l->in, l->out, l->n_parts, size, {}, d->hopper_choices};
    c->shape = candidates[fastest(d, back, l, x, a, size > 10 ? (int)LARGE : (int)CANDIDATES)];
    d->hopper_choices = c;
    return c->shape;
}

void hopper_gemm_close(op_dev *d)
{
    while (d->hopper_choices) {
        hopper_choice *c = d->hopper_choices;
        d->hopper_choices = c->next;
        free(c);
    }
}

static void tail_args(gemm_args *a, const op_pack *p, const op_linear *l, const bf16 *h)
{
    const cuda_pack *c = pack_dev(p);
    a->targets = l->n_parts;
    a->in = l->in;
    a->layer = l->layer;
    a->hr = h_columns(p);
    for (int i = 0; i < l->n_parts; i++)
        a->target[i] = l->part[i].target;
    if (!h)
        return;
    a->h = h;
    a->blocks = c->blocks;
    a->adapters = c->adapters;
}

void hopper_linear(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, const bf16 *add, bf16 *y,
                   const bf16 *h)
{
    TRACE(d, "hopper y %d -> %d R %d", l->in, l->out, p->rows);
    gemm_args a = {};
    a.rows = p->rows;
    a.inner = l->in;
    a.parts = l->n_parts;
    for (int i = 0; i < l->n_parts; i++) {
        a.n[i] = l->part[i].n;
        a.out0[i] = l->part[i].out0;
    }
    a.bias = (const bf16 *)l->bias;
    a.has_add = add != NULL;
    tail_args(&a, p, l, h);
    run(d, false, choose_shape(d, false, l, x, a), l, x, add, y, &a);
}

void hopper_linear_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *dh,
                        const uint32_t *kept, bf16 *dx)
{
    TRACE(d, "hopper dx %d -> %d R %d", l->in, l->out, p->rows);
    gemm_args a = {};
    a.rows = p->rows;
    a.inner = l->out;
    a.parts = 1;
    a.n[0] = l->in;
    a.kept = dh ? kept : NULL;
    tail_args(&a, p, l, dh);
    run(d, true, choose_shape(d, true, l, dy, a), l, dy, NULL, dx, &a);
}
