/*
 * The backward of attention_hopper.cu, by the same items of work: 128 queries for dq, 128 keys for dk and dv.
 *
 *   dq       base: queries, dO, o, lse; stages: keys and values.  delta = rowsum(dO o) on the way.
 *   dk, dv   base: keys and values; stages: queries, dO, lse, delta, of all heads of the group in ascending order.
 *
 * Scores are computed in both: seven products instead of five are the price of a fixed order of sums.
 *
 * nvcc 13.0's assembler overwrites registers that stay the same around a loop and are operand a of its first product,
 * if as many others are operand a of another (seen in dq_kernel<64>): hence the queries of dq in shared memory.
 */
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/hopper_tiles.cuh"

#include <math.h>

/* ---- dq ---- */

#ifdef DTX_WGMMA
/* acc += dS K of the rows of one item, whose queries lie in q; l: lse of this thread's two rows in powers of 2, dl:
 * delta. */
template <int D, int N, int STAGES>
__device__ __forceinline__ void attend_back(ring<STAGES> &r, cursor &at, const bf16 *stages, const bf16 *q,
                                            const uint32_t (*d_o)[4], const span &w, const float l[2],
                                            const float dl[2], float (*acc)[4])
{
    constexpr int T = N * D;
    float scale_log2 = rsqrtf((float)D) * LOG2E;
    int before = 0;
    for (int i = 0; i < w.mine; i++) {
        const bf16 *ks = stages + at.stage * 2 * T;
        float p[N / 8][4], dp[N / 8][4];
        uint32_t a[N / 16][4];
        bar_wait(smem_addr(&r.full[at.stage]), at.phase);
        wg_fence();
        start_scores<D>(p, q, ks);
        start_scores<D, N>(dp, d_o, ks + T);
        wg_wait<1>();
        settled<N / 8>(p);
        if (i > 0)
            release(&r.empty[before]);
        if (i == w.mine - 1)
            release(&r.base_empty);
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                p[n][j] = exp2_fast(fmaf(p[n][j], scale_log2, -l[j / 2]));
        if (i == w.mine - 1) {
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    if (i * N + n * 8 + (int)threadIdx.x % 4 * 2 + j % 2 > w.row + j / 2 * 8)
                        p[n][j] = 0.f;
        }
        settled<N / 8>(p);
        wg_wait<0>();
        settled<N / 8>(dp);
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                dp[n][j] = p[n][j] * (dp[n][j] - dl[j / 2]);
        round_probs<N>(a, dp);
        wg_fence();
        start_weighted<D, N>(acc, a, ks);
        before = at.stage;
        advance<STAGES>(at);
    }
    wg_wait<0>();
    settled<D / 8>(acc);
    release(&r.empty[before]);
}
#endif

template <int D, int STAGES>
__global__ void __launch_bounds__(3 * 128, 1)
    dq_kernel(attn_shape s, const attn_tile *tiles, int items, const bf16 *q, const bf16 *k, const bf16 *v,
              const bf16 *o, const float *lse, const bf16 *d_o, float *delta, bf16 *dq)
{
#ifdef DTX_WGMMA
    __shared__ ring<STAGES> r;
    __shared__ float base_lse[ROWS];
    bf16 *base = aligned_shared(), *stages = base + 3 * ROWS * D;
    ring_init(r);
    if (threadIdx.x < GROUP) {
        registers_down<40>();
        feed_queries<D, TILE>(r, s, tiles, items, {q, d_o, o}, {s.q_stride, s.do_stride, s.o_stride}, k, v, lse, base,
                              base_lse, stages);
        return;
    }
    registers_up<232>();
    cursor at = {0, 0};
    for (int turn = 0;; turn++) {
        work w = next_work(r, turn);
        if (w.head < 0)
            return;
        span me = span_of<TILE>(w);
        const bf16 *rows = base + (me.row0 - w.t.first) * D;
        uint32_t dor[D / 16][4], og[D / 16][4];
        float l[2], dl[2] = {}, scale = rsqrtf((float)D);
        load_fragments<D>(dor, rows + ROWS * D);
        load_fragments<D>(og, rows + 2 * ROWS * D);
#pragma unroll
        for (int i = 0; i < D / 16; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                dl[j % 2] += dot(og[i][j], dor[i][j]);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            l[h] = base_lse[me.row - w.t.first + h * 8] * LOG2E;
            dl[h] = row_sum(dl[h]);
            if (threadIdx.x % 4 == 0 && me.row + h * 8 < w.t.len)
                delta[(int64_t)(w.t.start + me.row + h * 8) * s.heads + w.head] = dl[h];
        }
        if (me.mine) {
            float acc[D / 8][4] = {};
            attend_back<D, TILE>(r, at, stages, rows, dor, me, l, dl, acc);
            if (s.rope)
                turn_back<D>(acc, s.rope, s.pos + w.t.start + me.row0, w.t.len - me.row0);
            store_rows<D>(dq + (int64_t)(w.t.start + me.row0) * s.dq_stride + w.head * D, s.dq_stride, acc, scale,
                          scale, w.t.len - me.row0);
        } else {
            release(&r.base_empty);
        }
        skip_stages(r, at, me.stages - me.mine);
    }
#endif
}

/* ---- dk, dv ---- */

template <int STAGES> struct query_values { /* of a stage's queries, in shared memory */
    float lse[STAGES][TILE], delta[STAGES][TILE];
};

#ifdef DTX_WGMMA
/* Keys and values of an item; with SPLIT, 64 of them, for both warpgroups.  Then queries and dO, 64 a stage; with
 * SPLIT, of the first warpgroup's head and of the second's by turns. */
template <int D, int STAGES, bool SPLIT>
__device__ __forceinline__ void feed_keys(ring<STAGES> &r, query_values<STAGES> &values, const attn_shape &s,
                                          const attn_tile *tiles, int items, const bf16 *q, const bf16 *k,
                                          const bf16 *v, const float *lse, const bf16 *d_o, const float *delta,
                                          bf16 *base, bf16 *stages)
{
    constexpr int HALVES = SPLIT ? 2 : 1, T = TILE * D;
    int ntiles = items / HALVES / s.kv_heads, group = s.heads / s.kv_heads;
    feeder f = feed_begin(s.next, items);
    for (int item; (item = feed_draw(f, r)) >= 0;) {
        int place = item / s.kv_heads;
        work w = {tiles[ntiles - 1 - place / HALVES], item % s.kv_heads}; /* from the end: first keys, most queries */
        w.t.first += place % HALVES * TILE;
        if (SPLIT && w.t.first >= w.t.len)
            continue;
        feed_base(f, r, w);
        int64_t first = w.t.start + w.t.first;
#pragma unroll
        for (int g = 0; g < COMPUTING / HALVES; g++) {
            int rows = w.t.len - w.t.first - g * TILE;
            feed_rows<D, TILE>(base + 2 * g * T, k + (first + g * TILE) * s.k_stride + w.head * D, s.k_stride, rows);
            feed_rows<D, TILE>(base + (2 * g + 1) * T, v + (first + g * TILE) * s.v_stride + w.head * D, s.v_stride,
                               rows);
        }
        feed_owe(f, &r.base_full);
        for (int h = w.head * group; h < (w.head + 1) * group; h += HALVES)
            for (int query = w.t.first; query < w.t.len; query += TILE)
                for (int head = h; head < h + HALVES; head++) {
                    int stage = feed_stage(f, r), i = threadIdx.x % TILE;
                    int64_t row = w.t.start + query;
                    bf16 *to = stages + stage * 2 * T;
                    bool valid = query + i < w.t.len;
                    feed_rows<D, TILE>(to, q + row * s.q_stride + head * D, s.q_stride, w.t.len - query);
                    feed_rows<D, TILE>(to + T, d_o + row * s.do_stride + head * D, s.do_stride, w.t.len - query);
                    copy4(threadIdx.x < TILE ? &values.lse[stage][i] : &values.delta[stage][i],
                          (threadIdx.x < TILE ? lse : delta) + (valid ? (row + i) * s.heads + head : 0), valid);
                    feed_stage_done(f, r);
                }
    }
    feed_end(f, r);
}

/* One stage of queries: dk += dS^T Q, dv += P^T dO; rows are keys, columns queries.  done: passed when keys and values
 * were read for the last time, or NULL. */
template <int D>
__device__ __forceinline__ void attend_queries(const bf16 *ks, const bf16 *vs, const bf16 *qs, const bf16 *dos,
                                               const float *lse, const float *delta, bool diagonal, uint64_t *done,
                                               float (*dk)[4], float (*dv)[4])
{
    constexpr int N = TILE;
    int row = threadIdx.x % GROUP / 32 * 16 + threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    float p[N / 8][4], dp[N / 8][4], scale_log2 = rsqrtf((float)D) * LOG2E;
    uint32_t a[N / 16][4], b[N / 16][4];
    wg_fence();
    start_scores<D>(p, ks, qs);
    start_scores<D>(dp, vs, dos);
    wg_wait<1>();
    settled<N / 8>(p);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        float2 l = *(const float2 *)(lse + n * 8 + col);
        l.x *= LOG2E;
        l.y *= LOG2E;
#pragma unroll
        for (int j = 0; j < 4; j++)
            p[n][j] = exp2_fast(fmaf(p[n][j], scale_log2, j % 2 ? -l.y : -l.x));
    }
    if (diagonal) {
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (row + j / 2 * 8 > n * 8 + col + j % 2)
                    p[n][j] = 0.f;
    }
    round_probs<N>(a, p);
    settled<N / 8>(p);
    wg_wait<0>();
    settled<N / 8>(dp);
    if (done)
        release(done);
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        float2 dl = *(const float2 *)(delta + n * 8 + col);
#pragma unroll
        for (int j = 0; j < 4; j++)
            dp[n][j] = p[n][j] * (dp[n][j] - (j % 2 ? dl.y : dl.x));
    }
    round_probs<N>(b, dp);
    wg_fence();
    start_weighted<D, N>(dv, a, dos);
    start_weighted<D, N>(dk, b, qs);
    wg_wait<0>();
    settled<D / 8>(dk);
    settled<D / 8>(dv);
}

/* The first warpgroup gets dk of both, the second dv, through shared memory; the first's sums come first. */
template <int D> __device__ __forceinline__ void join_sums(int g, float *shared, float (*dk)[4], float (*dv)[4])
{
    shared += threadIdx.x % GROUP;
    computing_sync(); /* nobody reads keys or values any more */
#pragma unroll
    for (int i = 0; i < D / 2; i++)
        shared[(g * D / 2 + i) * GROUP] = g ? dk[i / 4][i % 4] : dv[i / 4][i % 4];
    computing_sync();
#pragma unroll
    for (int i = 0; i < D / 2; i++) {
        float x = shared[((g ^ 1) * D / 2 + i) * GROUP];
        if (g)
            dv[i / 4][i % 4] = x + dv[i / 4][i % 4];
        else
            dk[i / 4][i % 4] += x;
    }
}
#endif

/* SPLIT: of the group's heads each warpgroup has every other, for the same 64 keys: where few heads of keys make few
 * items of much work. */
template <int D, int STAGES, bool SPLIT>
__global__ void __launch_bounds__(3 * 128, 1)
    dkv_kernel(attn_shape s, const attn_tile *tiles, int items, const bf16 *q, const bf16 *k, const bf16 *v,
               const float *lse, const bf16 *d_o, const float *delta, bf16 *dk, bf16 *dv)
{
#ifdef DTX_WGMMA
    __shared__ ring<STAGES> r;
    __shared__ query_values<STAGES> values;
    constexpr int T = TILE * D;
    bf16 *base = aligned_shared(), *stages = base + 2 * ROWS * D;
    ring_init(r);
    if (threadIdx.x < GROUP) {
        registers_down<40>();
        feed_keys<D, STAGES, SPLIT>(r, values, s, tiles, items, q, k, v, lse, d_o, delta, base, stages);
        return;
    }
    registers_up<232>();
    int g = threadIdx.x / GROUP - 1, behind = SPLIT ? 0 : g; /* stages of queries before the keys of this warpgroup */
    const bf16 *ks = base + (SPLIT ? 0 : 2 * g * T), *vs = ks + T;
    float scale = rsqrtf((float)D);
    cursor at = {0, 0};
    for (int turn = 0;; turn++) {
        work w = next_work(r, turn);
        if (w.head < 0)
            return;
        int per_head = (w.t.len - w.t.first + TILE - 1) / TILE, steps = per_head * (s.heads / s.kv_heads), tile = 0;
        int rows = w.t.len - w.t.first - behind * TILE;
        float acc_k[D / 8][4] = {}, acc_v[D / 8][4] = {};
        for (int step = 0; step < steps; step++) {
            const bf16 *qs = stages + at.stage * 2 * T;
            bar_wait(smem_addr(&r.full[at.stage]), at.phase);
            if ((!SPLIT || step % 2 == g) && tile >= behind && rows > 0)
                attend_queries<D>(ks, vs, qs, qs + T, values.lse[at.stage], values.delta[at.stage], tile == behind,
                                  !SPLIT && step == steps - 1 ? &r.base_empty : NULL, acc_k, acc_v);
            release(&r.empty[at.stage]);
            advance<STAGES>(at);
            if ((!SPLIT || step % 2) && ++tile == per_head)
                tile = 0;
        }
        if (SPLIT)
            join_sums<D>(g, (float *)base, acc_k, acc_v);
        if (SPLIT || rows <= 0)
            release(&r.base_empty);
        int64_t first = w.t.start + w.t.first + behind * TILE;
        if (s.rope && (!SPLIT || g == 0))
            turn_back<D>(acc_k, s.rope, s.pos + first, rows);
        if (!SPLIT || g == 0)
            store_rows<D>(dk + first * s.dk_stride + w.head * D, s.dk_stride, acc_k, scale, scale, rows);
        if (!SPLIT || g == 1)
            store_rows<D>(dv + first * s.dv_stride + w.head * D, s.dv_stride, acc_v, 1.f, 1.f, rows);
    }
#endif
}

/* ---- launches ---- */

template <int D> struct back_build {
    static constexpr int STAGES = D == 128 ? 4 : 8, DQ = (3 * ROWS + STAGES * 2 * TILE) * D * 2 + 1024,
                         DKV = (2 * ROWS + STAGES * 2 * TILE) * D * 2 + 1024;
    static constexpr auto dq = dq_kernel<D, STAGES>;
    static constexpr auto dkv = dkv_kernel<D, STAGES, false>, dkv_split = dkv_kernel<D, STAGES, true>;
};

template <int D> static cudaError_t setup(cudaError_t rc)
{
    rc = allow_shared(rc, back_build<D>::dq, back_build<D>::DQ);
    rc = allow_shared(rc, back_build<D>::dkv, back_build<D>::DKV);
    return allow_shared(rc, back_build<D>::dkv_split, back_build<D>::DKV);
}

cudaError_t hopper_attn_back_setup(cudaError_t rc)
{
    return setup<128>(setup<64>(rc));
}

template <int D>
static void backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                     const bf16 *k, const bf16 *v, const bf16 *o, const float *lse, const bf16 *d_o, float *delta,
                     bf16 *dq, bf16 *dk, bf16 *dv)
{
    int items = ntiles * s->heads, group = s->heads / s->kv_heads;
    bool split = group % 2 == 0;
    launch(stream, back_build<D>::dq, blocks(s, items), BLOCK, back_build<D>::DQ, *s, tiles, items, q, k, v, o, lse,
           d_o, delta, dq);
    items = ntiles * s->kv_heads * (split ? 2 : 1);
    launch(stream, split ? back_build<D>::dkv_split : back_build<D>::dkv, blocks(s, items), BLOCK, back_build<D>::DKV,
           *s, tiles, items, q, k, v, lse, d_o, delta, dk, dv);
}

cudaError_t hopper_attn_backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                 const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *o, const float *lse,
                                 const bf16 *d_o, float *delta, bf16 *dq, bf16 *dk, bf16 *dv)
{
    if (s->head_dim == 128)
        backward<128>(stream, s, tiles, ntiles, q, k, v, o, lse, d_o, delta, dq, dk, dv);
    else
        backward<64>(stream, s, tiles, ntiles, q, k, v, o, lse, d_o, delta, dq, dk, dv);
    return cudaGetLastError();
}
