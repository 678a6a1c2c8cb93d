/*
 * dh and dB of lora_back.cu by Hopper's matrix instruction.
 *
 * A block has one item: COLS columns of one part, one slice of rows, BN columns of the rank.  One thread brings 64 rows
 * of dy and of h at a time by TMA into a ring of slots.  Two warpgroups read each slot: the first multiplies dy's rows
 * by B, which lies in shared memory, and writes the chunk's dh; the second keeps the sums of dB, dy read transposed.
 * (With mma.sync it was instructions that took the time: 456 a warp and chunk, for loads of fragments above all.)
 *
 * No row is masked: a slice's last chunk ends in padding, where h and dy are 0 (ops.h), and segments start at multiples
 * of 128 rows.  Columns beyond the part come as zeros, from maps that end with it.
 */
#include "kernels/cuda/gemm_hopper.cuh"
#include "kernels/cuda/lora_dy_hopper.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/tma.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

enum {
    CHUNK = 64,
    GROUP = 128,
    COMPUTING = 2 * GROUP,
    THREADS = COMPUTING + 32,
    BOX = CHUNK * 128, /* bytes: 64 columns of a chunk */
    PARTS = 3,
};
static_assert(ROW_ALIGN % CHUNK == 0 && GRAD_ROWS % CHUNK == 0, "a chunk has rows of one slice and padding");

template <int BN, int COLS> struct dy_ring {
    static constexpr int BLOCKS = BN == 64 ? 1 : 2; /* on a multiprocessor */
    static constexpr int ROOM = (BLOCKS == 1 ? 227 : 113) << 10, BEYOND = 1024 + 256 /* alignment, barriers */;
    static constexpr int B_BYTES = COLS * BN * 2, Y_BYTES = COLS / 64 * BOX, H_BYTES = CHUNK * BN * 2;
    static constexpr int SLOT = Y_BYTES + H_BYTES, SLOTS = (ROOM - B_BYTES - BEYOND) / SLOT;
    static constexpr int BYTES = B_BYTES + SLOTS * SLOT + BEYOND;
    static_assert(SLOTS >= 2 && SLOTS * 16 <= 256, "room for the barriers");
};

struct dy_args {
    CUtensorMap dy[PARTS], h;
    lora_args a;
    float *parts, *partial;
};

#ifdef DTX_WGMMA

/* B of COLS columns (rows of B), transposed: rows of the rank, 64 columns in each tile; zeros beyond. */
template <int BN, int COLS>
__device__ __forceinline__ void load_b(unsigned char *to, const bf16 *B, int stride, int columns, int ranks)
{
    bool wide = ((uintptr_t)B & 15) == 0 && stride % 8 == 0;
#pragma unroll
    for (int i = 0; i < COLS * (BN / 8) / COMPUTING; i++) {
        int c = (i * COMPUTING + (int)threadIdx.x) % COLS, r = (i * COMPUTING + (int)threadIdx.x) / COLS * 8;
        const bf16 *from = B + (size_t)c * stride + r;
        uint32_t w[4] = {};
        if (wide && c < columns && r < ranks) {
            uint4 v = *(const uint4 *)from;
            w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
        } else if (c < columns) {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (r + e < ranks)
                    w[e / 2] |= (uint32_t)((const uint16_t *)from)[e] << e % 2 * 16;
        }
        unsigned char *tile = to + c / 64 * (BN * 128) + r * 128 + c % 8 * 2;
#pragma unroll
        for (int e = 0; e < 8; e++)
            *(uint16_t *)(tile + e * 128 + (c / 8 % 8 ^ e) * 16) = (uint16_t)(w[e / 2] >> e % 2 * 16);
    }
}

/* What the second warpgroup has of dB goes to the gradient, or to the slice's partial sums. */
template <int BN, int COLS>
__device__ __forceinline__ void store_db(const float (*acc)[BN / 8][4], float *to, int stride, int columns, int ranks,
                                         bool add)
{
    int lane = threadIdx.x % 32, first = threadIdx.x % GROUP / 32 * 16 + lane / 4, rank = lane % 4 * 2;
#pragma unroll
    for (int m = 0; m < COLS / 64; m++) {
        float old[BN / 8][4] = {};
        auto each = [&](auto f) {
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int c = m * 64 + first + j / 2 * 8, r = n * 8 + rank + j % 2;
                    if (c < columns && r < ranks)
                        f(to[(size_t)c * stride + r], old[n][j], acc[m][n][j]);
                }
        };
        if (add)
            each([](float &at, float &o, float) { o = at; });
        each([&](float &at, float &o, float x) { at = add ? o + x : x; });
    }
}

#endif

/* grid (blocks of BN, column tiles of all parts, slices) */
template <int BN, int COLS>
__global__ void __launch_bounds__(THREADS, dy_ring<BN, COLS>::BLOCKS)
    hopper_dy_kernel(const __grid_constant__ dy_args d)
{
#ifdef DTX_WGMMA
    typedef dy_ring<BN, COLS> G;
    const lora_args &a = d.a;
    DYNAMIC_SHARED(unsigned char, raw);
    unsigned char *b = raw + ((1024 - (smem_addr(raw) & 1023)) & 1023), *slots = b + G::B_BYTES;
    uint32_t full = smem_addr(slots) + G::SLOTS * G::SLOT, empty = full + G::SLOTS * 8;
    int part = 0, tile = blockIdx.y, r0 = blockIdx.x * BN, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    to_part(a, COLS, &part, &tile);
    if (threadIdx.x == COMPUTING) {
        tma_prefetch(&d.dy[part]);
        tma_prefetch(&d.h);
    }
    chain_wait();
    const grad_slice sl = a.slices[blockIdx.z];
    const op_seg seg = a.segs[sl.seg];
    if (seg.adapter < 0 || sl.rows <= 0)
        return;
    const dev_adapter ad = a.adapters[seg.adapter];
    int target = a.target[part], ranks = min(a.hr - r0, BN);
    if (!(ad.targets >> target & 1))
        return;
    int c0 = tile * COLS, cols = min(a.n[part] - c0, COLS), row0 = seg.row0 + sl.first;
    float *dh = d.parts + ((size_t)blockIdx.y * a.rows + row0) * a.hr + r0;
    if (r0 >= ad.rank) { /* another adapter of the pack has more */
        for (int i = threadIdx.x; i < sl.rows * (ranks / 4); i += THREADS)
            *(float4 *)(dh + (size_t)(i / (ranks / 4)) * a.hr + i % (ranks / 4) * 4) = make_float4(0.f, 0.f, 0.f, 0.f);
        return;
    }
    int chunks = (sl.rows + CHUNK - 1) / CHUNK;
    size_t b_at = adapter_offset(a.dims, ad.targets, ad.rank, a.layer, target) + (size_t)ad.rank * a.in +
                  (size_t)c0 * ad.rank + r0;

    auto bring = [&](int c) {
        uint32_t to = smem_addr(slots) + c % G::SLOTS * G::SLOT, bar = full + c % G::SLOTS * 8;
        bar_expect(bar, G::Y_BYTES + (ad.g ? G::H_BYTES : 0));
#pragma unroll
        for (int s = 0; s < COLS / 64; s++)
            tma_load(to + s * BOX, &d.dy[part], c0 + s * 64, row0 + c * CHUNK, bar);
        if (ad.g)
            tma_load(to + G::Y_BYTES, &d.h, r0, part * a.rows + row0 + c * CHUNK, bar);
    };
    if (warp < COMPUTING / 32) {
        load_b<BN, COLS>(b, ad.shadow + b_at, ad.rank, cols, ad.rank - r0);
        shared_for_matrix_unit();
    } else if (lane == 0) {
        for (int i = 0; i < G::SLOTS; i++) {
            bar_init(full + i * 8, 1);
            bar_init(empty + i * 8, (ad.g ? COMPUTING : GROUP) / 32);
        }
        bar_init_seen();
        shared_for_matrix_unit();
        for (int c = 0; c < min(chunks, G::SLOTS); c++)
            bring(c);
    }
    __syncthreads();

    if (warp >= COMPUTING / 32) {
        for (int c = G::SLOTS; c < chunks && lane == 0; c++) {
            bar_wait(empty + c % G::SLOTS * 8, (c / G::SLOTS - 1) & 1);
            bring(c);
        }
    } else if (warp < GROUP / 32) {
        dh += (size_t)(warp * 16 + lane / 4) * a.hr + lane % 4 * 2;
        for (int c = 0; c < chunks; c++, dh += (size_t)CHUNK * a.hr) {
            const unsigned char *y = slots + c % G::SLOTS * G::SLOT;
            float acc[BN / 8][4];
            bar_wait(full + c % G::SLOTS * 8, c / G::SLOTS & 1);
            wg_fence();
#pragma unroll
            for (int k = 0; k < COLS / 16; k++)
                wg_tiles<BN, 0>(acc, k_major(y + k / 4 * BOX) + k % 4 * 2, k_major(b + k / 4 * (BN * 128)) + k % 4 * 2,
                                k > 0);
            wg_commit();
            wg_wait<0>();
            settled<BN / 8>(acc);
            if (lane == 0)
                bar_arrive(empty + c % G::SLOTS * 8);
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
                if (n * 8 < ranks) {
                    *(float2 *)(dh + n * 8) = make_float2(acc[n][0], acc[n][1]);
                    *(float2 *)(dh + (size_t)8 * a.hr + n * 8) = make_float2(acc[n][2], acc[n][3]);
                }
        }
    } else if (ad.g) {
        float acc[COLS / 64][BN / 8][4];
        for (int c = 0; c < chunks; c++) {
            const unsigned char *y = slots + c % G::SLOTS * G::SLOT;
            bar_wait(full + c % G::SLOTS * 8, c / G::SLOTS & 1);
            wg_fence();
#pragma unroll
            for (int k = 0; k < CHUNK / 16; k++)
#pragma unroll
                for (int m = 0; m < COLS / 64; m++)
                    wg_tiles<BN, 1, 1>(acc[m], n_major(y + m * BOX + k * 2048, BOX),
                                       n_major_narrow<BN>(y + G::Y_BYTES + k * (BN * 32)), c + k > 0);
            wg_commit();
            wg_wait<0>();
            if (lane == 0)
                bar_arrive(empty + c % G::SLOTS * 8);
        }
#pragma unroll
        for (int m = 0; m < COLS / 64; m++)
            settled<BN / 8>(acc[m]);
        if (sl.slot >= 0)
            store_db<BN, COLS>(acc, d.partial + ((size_t)sl.slot * grad_columns(a) + a.out0[part] + c0) * a.hr + r0,
                               a.hr, cols, ad.rank - r0, false);
        else
            store_db<BN, COLS>(acc, ad.g + b_at, ad.rank, cols, ad.rank - r0, true);
    }
#endif
}

/* ---- launches ---- */

template <int BN, int COLS> static void setup(op_dev *d)
{
    allow_smem(d, hopper_dy_kernel<BN, COLS>, dy_ring<BN, COLS>::BYTES);
}

void hopper_dy_setup(op_dev *d)
{
    setup<16, 128>(d);
    setup<32, 128>(d);
    setup<64, 128>(d);
    setup<16, 256>(d);
    setup<32, 256>(d);
    setup<64, 256>(d);
}

bool hopper_dy_fits(const op_dev *d, const lora_args &a, const bf16 *dy, const bf16 *h)
{
    bool fits = d->hopper && a.out % 8 == 0 && ((uintptr_t)dy & 15) == 0 && ((uintptr_t)h & 15) == 0;
    for (int p = 0; p < a.n_parts; p++)
        fits = fits && a.out0[p] % 8 == 0;
    return fits;
}

template <int BN, int COLS> static void run(op_dev *d, const dy_args &args, int slices, int tiles)
{
    chain_launch(d, hopper_dy_kernel<BN, COLS>, dim3(div_up(args.a.hr, BN), tiles, slices), THREADS,
                 dy_ring<BN, COLS>::BYTES, args);
}

template <int BN> static void run_columns(op_dev *d, dy_args *args, int slices, int cols, int tiles, const bf16 *h)
{
    hopper_map(d, &args->h, h, args->a.hr, args->a.n_parts * args->a.rows, args->a.hr, CHUNK, BN);
    if (cols == 128)
        run<BN, 128>(d, *args, slices, tiles);
    else
        run<BN, 256>(d, *args, slices, tiles);
}

void hopper_dy(op_dev *d, const lora_args &a, int slices, int cols, int tiles, const bf16 *dy, const bf16 *h,
               float *parts, float *partial)
{
    dy_args args = {};
    args.a = a;
    args.parts = parts;
    args.partial = partial;
    for (int p = 0; p < a.n_parts; p++)
        hopper_map(d, &args.dy[p], dy + a.out0[p], a.n[p], a.rows, a.out, CHUNK);
    if (a.hr <= 16)
        run_columns<16>(d, &args, slices, cols, tiles, h);
    else if (a.hr <= 32)
        run_columns<32>(d, &args, slices, cols, tiles, h);
    else
        run_columns<64>(d, &args, slices, cols, tiles, h);
}
