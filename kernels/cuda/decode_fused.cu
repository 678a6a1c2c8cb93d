/*
 * All layers of a decode step in one kernel, for up to FUSED_ROWS rows on Hopper: one block a multiprocessor, and the
 * weights stream through a ring in its shared memory without ever waiting for the activations.
 *
 *   warp 8            copies W by bulk copies (TMA) into the ring, slots of 16 rows x SLOT_COLS columns, in the order in
 *                     which its block needs them; only a full ring stops it
 *   warps 0 to 7      per layer:  x -> xn | h, qkv | attention by (row, head, slice) | o -> h, x2 | x2 -> xn | h, a = silu(gate)
 *                     up | a -> h, x = x2 + ...     where | is a barrier of all blocks
 *
 * A tile is 16 rows of W x all of K, dealt to the blocks in turn; gate_up's tiles are 8 rows of gate and the same 8 of up,
 * so that a block has both.  Within a tile warp w takes every eighth chunk of 32 columns and the warps' sums are added in
 * order: the same instructions in the same order as in gemv_kernel, as prepare_kernel's for norms and h, so that the bits
 * are those of the kernels of decode_layer.cu, whatever the number of rows.  The ring (150 to 190 KB, some 5 us of
 * bandwidth) bridges the barriers and what is between them.  h = x A^T is shared out over all warps of all blocks; its
 * own barrier is waited for only where the first tile is finished.
 *
 * Floor: bytes of the weights / memory bandwidth.
 */
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/decode_fused.cuh"
#include "kernels/cuda/mma.cuh"

#include <cstdlib>

enum {
    WARPS = 8,
    CONSUMERS = WARPS * 32,
    THREADS = CONSUMERS + 32,
    COLUMNS = 8,              /* of the instruction: rows of x */
    SLOT_COLS = 512,
    SLOT_BYTES = 16 * SLOT_COLS * 2,
    MOST_SLOTS = 12,
    GOOD_SLOTS = 8,
    LEAST_SLOTS = 4,
    WINDOW_TILES = 4,         /* tiles whose sums a block keeps while x comes in windows */
    NORM_THREADS = 512,       /* the sum of squares is that of a block of so many threads */
    QKV = 0, OUT = 1, GATE_UP = 2, DOWN = 3,
};

struct fused_room { /* shared memory, followed by x's rows and the ring */
    float part[2][WARPS][16 * COLUMNS];
    float norm[COLUMNS][NORM_THREADS / 32];
    uint64_t full[MOST_SLOTS], empty[MOST_SLOTS];
    int last[2]; /* a team's slice was the last of its head */
};

/* ---- barriers ---- */

__device__ __forceinline__ void give_up_after(long long start)
{
    if (clock64() - start > 8000000000ll) /* some 4 s: a fault, better told than waited for */
        __trap();
}

__device__ __forceinline__ void bar_init(uint64_t *b, int count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(b)), "r"(count) : "memory");
}

__device__ __forceinline__ void bar_expect(uint64_t *b, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_addr(b)), "r"(bytes) : "memory");
}

__device__ __forceinline__ void bar_arrive(uint64_t *b)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(b)) : "memory");
}

__device__ __forceinline__ void bar_wait(uint64_t *b, uint32_t phase)
{
    uint32_t done = 0;
    long long start = 0;
    for (int i = 0; !done; i++) {
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(smem_addr(b)), "r"(phase)
                     : "memory");
        if (i == 1000)
            start = clock64();
        if (i > 1000)
            give_up_after(start);
    }
}

template <int ID, int N> __device__ __forceinline__ void named_sync()
{
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(N) : "memory");
}

__device__ __forceinline__ void consumers_sync()
{
    named_sync<1, CONSUMERS>();
}

/* Threads of a team of the attention. */
__device__ __forceinline__ void team_sync(int team)
{
    asm volatile("bar.sync %0, %1;" ::"r"(2 + team), "r"((int)ATTEND_THREADS) : "memory");
}

/* What the block's consumers wrote is there for every block that has waited for it. */
__device__ __forceinline__ void grid_arrive(uint32_t *counter)
{
    consumers_sync();
    if (threadIdx.x == 0) {
        __threadfence();
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    }
}

/* By one thread; a barrier of the block must follow. */
__device__ __forceinline__ void grid_poll(const uint32_t *counter, uint32_t target)
{
    uint32_t seen = 0;
    long long start = clock64();
    for (;;) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (seen >= target)
            break;
        give_up_after(start);
    }
    __threadfence();
}

__device__ __forceinline__ void grid_wait(const uint32_t *counter, uint32_t target)
{
    if (threadIdx.x == 0)
        grid_poll(counter, target);
    consumers_sync();
}

/* ---- the ring ---- */

struct ring_place {
    int slot;
    uint32_t phase;
    __device__ __forceinline__ void next(int slots)
    {
        if (++slot == slots) {
            slot = 0;
            phase ^= 1;
        }
    }
};

struct share { /* of a block in a stage: tiles first, first + gridDim.x, ... */
    int first, n;
};

/* Deals the tiles of a stage; whoever got one more is last to get one more in the next. */
__device__ __forceinline__ share deal(const fused_args &a, int stage, int *offset)
{
    int blocks = gridDim.x, first = (int)blockIdx.x + *offset;
    first -= first >= blocks ? blocks : 0;
    *offset -= a.tiles[stage] % blocks;
    *offset += *offset < 0 ? blocks : 0;
    return {first, first < a.tiles[stage] ? (a.tiles[stage] - 1 - first) / blocks + 1 : 0};
}

__device__ __forceinline__ int window_of(const fused_args &a, int stage)
{
    return stage == DOWN ? a.window : a.K[stage];
}

/* Row `at` of a tile among the rows of W, the columns of the linear's output. */
__device__ __forceinline__ int column_at(const fused_args &a, int stage, int tile, int at)
{
    return stage != GATE_UP ? tile * 16 + at : tile * 8 + at % 8 + (at < 8 ? 0 : a.tiles[GATE_UP] * 8);
}

/* The warp that copies. */
[[maybe_unused]] static __device__ void produce(const fused_args &a, fused_room *m, char *ring)
{
    int lane = threadIdx.x % 32, offset = 0;
    ring_place at = {0, 0}, under = {0, 0}; /* under way: the oldest that may be */
    int flight = 0;
    uint64_t once;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
    for (int layer = 0; layer < a.layers; layer++)
        for (int stage = 0; stage < 4; stage++) {
            const bf16 *W = a.layer[layer].W[stage];
            share mine = deal(a, stage, &offset);
            int K = a.K[stage], window = window_of(a, stage);
            for (int k0 = 0; k0 < K; k0 += window)
                for (int i = 0; i < mine.n; i++) {
                    int tile = mine.first + i * gridDim.x, end = min(K, k0 + window);
                    int row = column_at(a, stage, tile, lane);
                    const bf16 *w = W + (size_t)row * K;
                    for (int k = k0; k < end; k += SLOT_COLS) {
                        int bytes = min((int)SLOT_COLS, end - k) * 2;
                        if (lane == 0) {
                            if (flight == a.flight) {
                                bar_wait(&m->full[under.slot], under.phase);
                                under.next(a.slots);
                            } else {
                                flight++;
                            }
                            bar_wait(&m->empty[at.slot], at.phase ^ 1);
                            bar_expect(&m->full[at.slot], 16 * bytes);
                        }
                        __syncwarp();
                        if (lane < 16)
                            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                                         "[%0], [%1], %2, [%3], %4;" ::"r"(smem_addr(ring + at.slot * SLOT_BYTES + lane * SLOT_COLS * 2)),
                                         "l"(w + k), "r"(bytes), "r"(smem_addr(&m->full[at.slot])), "l"(once)
                                         : "memory");
                        at.next(a.slots);
                    }
                }
        }
}

/* Adds columns [k0, k1) of a tile to acc; xs holds x's rows from column k0 on. */
__device__ __forceinline__ void feed(const fused_args &a, fused_room *m, const char *ring, ring_place *at, const bf16 *xs,
                                     int k0, int k1, float acc[4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const bf16 *xr = xs + (size_t)min(g, a.rows - 1) * a.x_stride + t * 8;
    for (int k = k0; k < k1; k += SLOT_COLS) {
        int chunks = min((int)SLOT_COLS, k1 - k) / 32;
        const bf16 *w = (const bf16 *)(ring + at->slot * SLOT_BYTES) + g * SLOT_COLS + t * 8;
        bar_wait(&m->full[at->slot], at->phase);
#pragma unroll
        for (int u = 0; u < SLOT_COLS / 32 / WARPS; u++) {
            int c = warp + u * WARPS;
            if (c >= chunks)
                break;
            uint4 p0 = *(const uint4 *)(w + c * 32), p1 = *(const uint4 *)(w + 8 * SLOT_COLS + c * 32);
            uint4 b = *(const uint4 *)(xr + (k - k0) + c * 32);
            uint32_t lo[4] = {p0.x, p1.x, p0.y, p1.y}, hi[4] = {p0.z, p1.z, p0.w, p1.w};
            mma(acc, lo, b.x, b.y);
            mma(acc, hi, b.z, b.w);
        }
        __syncwarp();
        if (lane == 0)
            bar_arrive(&m->empty[at->slot]);
        at->next(a.slots);
    }
}

/* ---- the input of a stage ---- */

/* Columns [k0, k0 + n) of all rows of src into shared memory; a barrier of the consumers must follow. */
__device__ __forceinline__ void load_rows(const fused_args &a, const bf16 *src, int ld, int k0, int n, bf16 *xs)
{
    for (int r = 0; r < a.rows; r++)
        for (int i = threadIdx.x * 8; i < n; i += CONSUMERS * 8)
            copy16(xs + (size_t)r * a.x_stride + i, src + (size_t)r * ld + k0 + i, true);
    copy_commit();
    copy_wait<0>();
}

/* xs = norm(x): thread t does what threads t and t + CONSUMERS of prepare_kernel do. */
__device__ __forceinline__ void norm_rows(const fused_args &a, fused_room *m, const bf16 *x, const bf16 *w, bf16 *xs)
{
    int warp = threadIdx.x / 32, H = a.hidden;
    load_rows(a, x, H, 0, H, xs); /* a thread gets what it copied itself */
    for (int r = 0; r < a.rows; r++)
        for (int half = 0; half < NORM_THREADS / CONSUMERS; half++) {
            float sum = 0.f;
            for (int i = (threadIdx.x + half * CONSUMERS) * 8; i < H; i += NORM_THREADS * 8) {
                vec<8> e = load<8>(xs + (size_t)r * a.x_stride + i);
                for (int j = 0; j < 8; j++)
                    sum += e.f[j] * e.f[j];
            }
            for (int d = 16; d; d /= 2)
                sum += __shfl_xor_sync(~0u, sum, d);
            if (threadIdx.x % 32 == 0)
                m->norm[r][warp + half * WARPS] = sum;
        }
    consumers_sync();
    for (int r = 0; r < a.rows; r++) {
        float sum = 0.f;
        for (int i = 0; i < NORM_THREADS / 32; i++)
            sum += m->norm[r][i];
        float scale = rsqrtf(sum / H + a.eps);
        for (int i = threadIdx.x * 8; i < H; i += CONSUMERS * 8) {
            bf16 *at = xs + (size_t)r * a.x_stride + i;
            vec<8> e = load<8>(at), g = load<8>(w + i);
            for (int j = 0; j < 8; j++)
                e.f[j] = g.f[j] * (e.f[j] * scale);
            store<8>(at, e);
        }
    }
    consumers_sync();
}

struct column { /* of h: row, part and rank index; A NULL: none there */
    const bf16 *A;
    int row, part, j;
};

__device__ __forceinline__ column column_of(const fused_args &a, int layer, int stage, int id)
{
    const fused_parts &p = a.parts[stage];
    column c = {NULL, id / (a.hr * p.n), id / a.hr % p.n, id % a.hr};
    const dev_adapter *ad = &a.row_adapters[c.row];
    if (c.j < ad->rank)
        c.A = adapter_at(ad, layer, p.target[c.part]);
    if (c.A)
        c.A += (size_t)c.j * a.K[stage];
    return c;
}

/* h of a stage: a column a warp, the blocks first.  x: shared memory, or (FRESH) global rows of ld. */
template <bool FRESH, int stage>
static __device__ __forceinline__ void make_h(const fused_args &a, int layer, const bf16 *x, int ld)
{
    int lane = threadIdx.x % 32, K = a.K[stage], total = a.rows * a.parts[stage].n * a.hr;
    for (int id = threadIdx.x / 32 * gridDim.x + blockIdx.x; id < total; id += WARPS * gridDim.x) {
        column c = column_of(a, layer, stage, id);
        if (!c.A)
            continue;
        float piece[TEAM], sum = 0.f;
#pragma unroll
        for (int i = 0; i < TEAM; i++) {
            int first, end;
            piece_of(K, i, &first, &end);
            piece[i] = piece_dot<FRESH>(c.A, x + (size_t)c.row * ld, first, end, lane);
        }
#pragma unroll
        for (int i = 0; i < TEAM; i++) {
            for (int d = 16; d; d /= 2)
                piece[i] += __shfl_xor_sync(~0u, piece[i], d);
            sum = i ? sum + piece[i] : piece[i];
        }
        if (lane == 0)
            a.h[stage][((size_t)c.part * a.rows + c.row) * a.hr + c.j] = __float2bfloat16(sum);
    }
}

/* Ask for the rows of A that make_h will read. */
__device__ __forceinline__ void prefetch_h(const fused_args &a, int layer, int stage)
{
    int lane = threadIdx.x % 32, K = a.K[stage], total = a.row_adapters ? a.rows * a.parts[stage].n * a.hr : 0;
    for (int id = threadIdx.x / 32 * gridDim.x + blockIdx.x; id < total; id += WARPS * gridDim.x) {
        column c = column_of(a, layer, stage, id);
        for (int i = lane * 64; c.A && i < K; i += 32 * 64)
            prefetch_l2(c.A + i);
    }
}

/* ---- the end of a tile ---- */

__device__ __forceinline__ lora_row lora_row_of(const fused_args &a, int layer, int stage, int row, int col)
{
    const fused_parts &p = a.parts[stage];
    const dev_adapter *ad = &a.row_adapters[row];
    int part = 0;
    while (part + 1 < p.n && col >= p.out0[part + 1])
        part++;
    const bf16 *A = adapter_at(ad, layer, p.target[part]);
    lora_row v = {NULL, NULL, ad->rank, ad->scale};
    if (A) {
        v.B = A + (size_t)v.rank * a.K[stage] + (size_t)(col - p.out0[part]) * v.rank;
        v.h = a.h[stage] + ((size_t)part * a.rows + row) * a.hr;
    }
    return v;
}

__device__ __forceinline__ float output_of(const fused_args &a, const fused_room *m, int layer, int stage, int buffer,
                                           int at, int row, int col)
{
    float sum = 0.f, term = 0.f;
#pragma unroll
    for (int i = 0; i < WARPS; i++)
        sum += m->part[buffer][i][at * COLUMNS + row];
    if (stage == QKV && a.layer[layer].bias)
        sum += __bfloat162float(a.layer[layer].bias[col]);
    if (a.row_adapters)
        term = lora_term(lora_row_of(a, layer, stage, row, col));
    return sum + term;
}

/* Ask for what the end of a tile will read of B. */
__device__ __forceinline__ void prefetch_b(const fused_args &a, int layer, int stage, int tile)
{
    int row = threadIdx.x / 16;
    if (!a.row_adapters || row >= a.rows)
        return;
    lora_row v = lora_row_of(a, layer, stage, row, column_at(a, stage, tile, threadIdx.x % 16));
    if (v.B)
        prefetch_l2(v.B);
}

__device__ __forceinline__ void finish_tile(const fused_args &a, fused_room *m, int layer, int stage, int tile, int number,
                            uint32_t h_target, const float acc[4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, buffer = number % 2;
    for (int i = 0; i < 4; i++)
        m->part[buffer][warp][(g + i / 2 * 8) * COLUMNS + t * 2 + i % 2] = acc[i];
    if (number == 0 && a.row_adapters && threadIdx.x == 0)
        grid_poll(&a.sync->h, h_target);
    consumers_sync();
    int i = threadIdx.x % 16, row = threadIdx.x / 16;
    if (row >= a.rows || (stage == GATE_UP && i >= 8))
        return;
    if (stage == GATE_UP) {
        int col = column_at(a, stage, tile, i), ffn = a.tiles[GATE_UP] * 8;
        float gate = __bfloat162float(__float2bfloat16(output_of(a, m, layer, stage, buffer, i, row, col)));
        float up = __bfloat162float(__float2bfloat16(output_of(a, m, layer, stage, buffer, i + 8, row, ffn + col)));
        a.a[(size_t)row * ffn + col] = __float2bfloat16(gate / (1.f + __expf(-gate)) * up);
        return;
    }
    int col = column_at(a, stage, tile, i), N = a.tiles[stage] * 16;
    size_t at = (size_t)row * N + col;
    float sum = output_of(a, m, layer, stage, buffer, i, row, col);
    if (stage == OUT)
        a.x2[at] = __float2bfloat16(sum + __bfloat162float(__ldcg(a.x + at)));
    else if (stage == DOWN)
        a.x[at] = __float2bfloat16(sum + __bfloat162float(__ldcg(a.x2 + at)));
    else
        a.qkv[at] = __float2bfloat16(sum);
}

__device__ __forceinline__ void stamp(const fused_args &a, int layer, int stage, int what)
{
    if (a.clocks && threadIdx.x == 0 && layer == a.layers / 2 && blockIdx.x % 44 == 0)
        a.clocks[(blockIdx.x / 44 * 5 + stage) * 8 + what] = clock64();
}

/* ---- stages ---- */

struct progress { /* of a consumer */
    ring_place ring;
    int offset;           /* see deal */
    uint32_t y, h;        /* barriers waited for */
};

template <int stage>
__device__ __forceinline__ void linear_stage(const fused_args &a, fused_room *m, const char *ring, bf16 *xs, int layer,
                                             progress *at)
{
    const fused_layer &w = a.layer[layer];
    share mine = deal(a, stage, &at->offset);
    int K = a.K[stage], window = window_of(a, stage);
    bool lora = a.row_adapters != NULL, windows = stage == DOWN && window < K;

    stamp(a, layer, stage, 0);
    prefetch_h(a, layer, stage);
    if (layer || stage)
        grid_wait(&a.sync->y, ++at->y * gridDim.x);
    stamp(a, layer, stage, 1);
    if (stage == QKV || stage == GATE_UP) {
        norm_rows(a, m, stage == QKV ? a.x : a.x2, stage == QKV ? w.norm1 : w.norm2, xs);
    } else if (!windows) {
        load_rows(a, stage == OUT ? a.o : a.a, K, 0, K, xs);
        consumers_sync();
    }
    stamp(a, layer, stage, 2);
    if (lora) {
        if (windows)
            make_h<true, stage>(a, layer, a.a, K);
        else
            make_h<false, stage>(a, layer, xs, a.x_stride);
        grid_arrive(&a.sync->h);
        at->h++;
    }
    stamp(a, layer, stage, 3);
    if (!windows) {
        for (int i = 0; i < mine.n; i++) {
            if (i == 1)
                stamp(a, layer, stage, 4);
            float acc[4] = {};
            prefetch_b(a, layer, stage, mine.first + i * gridDim.x);
            feed(a, m, ring, &at->ring, xs, 0, K, acc);
            finish_tile(a, m, layer, stage, mine.first + i * gridDim.x, i, at->h * gridDim.x, acc);
        }
    } else {
        float acc[WINDOW_TILES][4] = {};
        for (int i = 0; i < mine.n; i++)
            prefetch_b(a, layer, stage, mine.first + i * gridDim.x);
        for (int k0 = 0; k0 < K; k0 += window) {
            int end = min(K, k0 + window);
            consumers_sync(); /* all are done with the last window */
            load_rows(a, a.a, K, k0, end - k0, xs);
            consumers_sync();
#pragma unroll
            for (int i = 0; i < WINDOW_TILES; i++)
                if (i < mine.n)
                    feed(a, m, ring, &at->ring, xs, k0, end, acc[i]);
        }
#pragma unroll
        for (int i = 0; i < WINDOW_TILES; i++)
            if (i < mine.n)
                finish_tile(a, m, layer, stage, mine.first + i * gridDim.x, i, at->h * gridDim.x, acc[i]);
    }
    stamp(a, layer, stage, 5);
    grid_arrive(&a.sync->y);
    stamp(a, layer, stage, 6);
}

/* The slices of task number `task` of `used` slices a head; false: the row is not that long. */
__device__ __forceinline__ bool task_of(const attend_args &t, int task, int used, int *row, int *head, int *slice)
{
    *slice = task % used;
    *head = task / used % t.heads;
    *row = task / used / t.heads;
    return t.seqs[*row].pos0 >= *slice * DECODE_SLICE;
}

[[maybe_unused]] static __device__ void attend_stage(const fused_args &a, attend_room *rooms, fused_room *m, int layer, progress *at)
{
    attend_args t = a.attend;
    int team = threadIdx.x / ATTEND_THREADS, tid = threadIdx.x % ATTEND_THREADS, used = 1, row, head, slice;
    t.layer = layer;
    for (int r = 0; r < a.rows; r++)
        used = max(used, t.seqs[r].pos0 / DECODE_SLICE + 1);
    int total = a.rows * t.heads * used, first = team * gridDim.x + blockIdx.x, step = 2 * gridDim.x;
    for (int task = first; task < total && task < 2 * step; task += step)
        if (task_of(t, task, used, &row, &head, &slice))
            prefetch_slice(t, t.seqs[row], head, slice, tid);
    stamp(a, layer, 4, 0);
    grid_wait(&a.sync->y, ++at->y * gridDim.x);
    stamp(a, layer, 4, 1);
    for (int task = first; task < total; task += step) {
        if (!task_of(t, task, used, &row, &head, &slice))
            continue;
        const op_seq s = t.seqs[row];
        attend_slice(t, &rooms[team], s, row, head, slice, tid, [=] { team_sync(team); });
        team_sync(team);
        if (tid == 0) { /* whoever ends the last slice of a head joins them */
            __threadfence();
            uint32_t *done = &a.sync->slices[row * t.heads + head];
            m->last[team] = (int)atomicAdd(done, 1u) == s.pos0 / DECODE_SLICE;
            if (m->last[team])
                *done = 0;
            __threadfence();
        }
        team_sync(team);
        if (m->last[team]) {
            const float *p = t.partial + ((size_t)row * t.heads + head) * t.slices * (2 + t.dim);
            for (int c = tid; c < t.dim; c += ATTEND_THREADS)
                a.o[((size_t)row * t.heads + head) * t.dim + c] = join_slices(p, s.pos0 / DECODE_SLICE + 1, t.dim, c);
        }
        team_sync(team);
    }
    stamp(a, layer, 4, 5);
    grid_arrive(&a.sync->y);
    stamp(a, layer, 4, 6);
}

__global__ void __launch_bounds__(THREADS, 1) fused_kernel(const __grid_constant__ fused_args a)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    extern __shared__ __align__(128) char memory[];
    char *ring = memory;
    bf16 *xs = (bf16 *)(memory + a.slots * SLOT_BYTES);
    fused_room *m = (fused_room *)((char *)xs + a.x_bytes);
    if (threadIdx.x == 0) {
        for (int i = 0; i < a.slots; i++) {
            bar_init(&m->full[i], 1);
            bar_init(&m->empty[i], WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        produce(a, m, ring);
        return;
    }
    progress at = {};
    for (int layer = 0; layer < a.layers; layer++) {
        linear_stage<QKV>(a, m, ring, xs, layer, &at);
        attend_stage(a, (attend_room *)xs, m, layer, &at);
        linear_stage<OUT>(a, m, ring, xs, layer, &at);
        linear_stage<GATE_UP>(a, m, ring, xs, layer, &at);
        linear_stage<DOWN>(a, m, ring, xs, layer, &at);
    }
#endif
}

/* ---- the host's side ---- */

/* How x and the ring share a block's memory: x of down in as few windows as leave a ring of GOOD_SLOTS.  False: too
 * little for these sizes. */
static bool share_memory(fused_args *a, int shared_bytes)
{
    int K = a->K[QKV] > a->K[OUT] ? a->K[QKV] : a->K[OUT], room = shared_bytes - (int)sizeof(fused_room);

    a->slots = 0;
    for (int windows = 1; windows <= 8 && a->slots < GOOD_SLOTS; windows++) {
        int k = windows == 1 ? a->K[DOWN] : div_up(div_up(a->K[DOWN], windows), SLOT_COLS) * SLOT_COLS;
        int stride = (k > K ? k : K) + 32; /* half a line more, so that neighbours use other banks */
        int bytes = a->rows * stride * 2, least = 2 * (int)sizeof(attend_room);
        bytes = div_up(bytes > least ? bytes : least, 128) * 128;
        int slots = (room - bytes) / SLOT_BYTES;
        slots = slots > MOST_SLOTS ? (int)MOST_SLOTS : slots;
        if (slots > a->slots) {
            a->window = k;
            a->x_stride = stride;
            a->x_bytes = bytes;
            a->slots = slots;
        }
    }
    return a->slots >= LEAST_SLOTS;
}

bool fused_fits(const op_dev *d, fused_args *a, int blocks)
{
    if (!d->hopper || getenv("DTX_CUDA_NO_FUSED") || a->rows > FUSED_ROWS)
        return false;
    for (int i = 0; i < 4; i++)
        if (a->K[i] % 256 || a->tiles[i] < 1)
            return false;
    if (!share_memory(a, d->shared_bytes))
        return false;
    const char *f = getenv("DTX_FUSED_FLIGHT");
    a->flight = f ? atoi(f) : 5;
    a->flight = a->flight > a->slots ? a->slots : a->flight;
    return a->window >= a->K[DOWN] || div_up(a->tiles[DOWN], blocks) <= WINDOW_TILES;
}

static size_t fused_memory(const fused_args *a)
{
    return (size_t)a->slots * SLOT_BYTES + a->x_bytes + sizeof(fused_room);
}

void fused_launch(op_dev *d, const fused_args *a, int blocks)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeCooperative; /* all blocks are there at once, or none */
    attribute[0].val.cooperative = 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = fused_memory(a);
    config.stream = d->stream;
    config.attrs = attribute;
    config.numAttrs = 1;
    DEV_CHECK(d, cudaMemsetAsync(a->sync, 0, sizeof(fused_sync) + sizeof(uint32_t) * a->rows * a->attend.heads, d->stream));
    DEV_CHECK(d, cudaLaunchKernelEx(&config, fused_kernel, *a));
}

void fused_setup(op_dev *d)
{
    if (d->hopper)
        DEV_CHECK(d, cudaFuncSetAttribute(fused_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, d->shared_bytes));
}
