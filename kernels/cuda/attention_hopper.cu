/*
 * Attention with Hopper's matrix instruction, for head sizes 64 and 128; other devices and sizes use attention.cu.
 *
 * An item of work is 128 positions of one head, 64 for each of the two computing warpgroups (see ring.cuh), which share
 * what is fetched.  Blocks draw items, the longest first; an item is computed by itself, so it is the same in any
 * block.
 *
 *   forward  base: queries, kept in registers; stages: keys and values.  The product of one stage's weights with its
 *            values runs while the next stage's weights are made.
 *   dq, dk and dv: attention_hopper_back.cu
 */
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/hopper_tiles.cuh"

#include <math.h>

#ifdef DTX_WGMMA
struct sums { /* of this thread's two rows */
    float top[2], total[2], keep[2];
};

/* p: scores -> weights; keep: what the sums of the stages before are worth now. */
template <int N>
__device__ __forceinline__ void softmax(float (*p)[4], sums &u, float scale_log2, bool masked, int key0, int row)
{
    int key = key0 + threadIdx.x % 4 * 2;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float m = u.top[h], sum = 0.f;
        if (masked) {
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (key + n * 8 + j > row + h * 8)
                        p[n][h * 2 + j] = -INFINITY;
        }
#pragma unroll
        for (int n = 0; n < N / 8; n++)
            m = fmaxf(m, fmaxf(p[n][h * 2], p[n][h * 2 + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        u.keep[h] = exp2_fast((u.top[h] - m) * scale_log2);
        u.top[h] = m; /* finite: key 0 is visible to every row */
        float shift = m * scale_log2;
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float &x = p[n][h * 2 + j];
                x = exp2_fast(fmaf(x, scale_log2, -shift));
                sum += x;
            }
        u.total[h] = u.total[h] * u.keep[h] + sum;
    }
}

/* The rows of one item: acc and u. */
template <int D, int N, int STAGES>
__device__ __forceinline__ void attend(ring<STAGES> &r, cursor &at, const bf16 *stages, const uint32_t (*q)[4],
                                       const span &w, float (*acc)[4], sums &u)
{
    constexpr int T = N * D;
    float p[N / 8][4], scale_log2 = rsqrtf((float)D) * LOG2E;
    uint32_t a[N / 16][4];
    int now = at.stage;
    bar_wait(smem_addr(&r.full[now]), at.phase);
    wg_fence();
    start_scores<D, N>(p, q, stages + now * 2 * T);
    advance<STAGES>(at);
    wg_wait<0>();
    settled<N / 8>(p);
    softmax<N>(p, u, scale_log2, w.mine == 1, 0, w.row);
    round_probs<N>(a, p);
    if (w.mine > 1)
        bar_wait(smem_addr(&r.full[at.stage]), at.phase);
    for (int i = 1; i < w.mine; i++) {
        int before = now;
        now = at.stage;
        wg_fence();
        start_scores<D, N>(p, q, stages + now * 2 * T);
        start_weighted<D, N>(acc, a, stages + before * 2 * T + T);
        wg_wait<1>();
        settled<N / 8>(p);
        softmax<N>(p, u, scale_log2, i == w.mine - 1, i * N, w.row);
        advance<STAGES>(at);
        if (i + 1 < w.mine) /* here, or the compiler moves the next wait up into the softmax; takes a ring of 3 */
            bar_wait(smem_addr(&r.full[at.stage]), at.phase);
        wg_wait<0>();
        settled<D / 8>(acc);
        release(&r.empty[before]);
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                acc[n][j] *= u.keep[j / 2];
        round_probs<N>(a, p);
    }
    wg_fence();
    start_weighted<D, N>(acc, a, stages + now * 2 * T + T);
    wg_wait<0>();
    settled<D / 8>(acc);
    release(&r.empty[now]);
}
#endif

template <int D, int N, int STAGES>
__global__ void __launch_bounds__(3 * 128, 1)
    forward_kernel(attn_shape s, const attn_tile *tiles, int items, const bf16 *q, const bf16 *k, const bf16 *v,
                   bf16 *o, float *lse)
{
#ifdef DTX_WGMMA
    __shared__ ring<STAGES> r;
    bf16 *base = aligned_shared(), *stages = base + ROWS * D;
    ring_init(r);
    if (threadIdx.x < GROUP) {
        registers_down<40>();
        feed_queries<D, N>(r, s, tiles, items, {q}, {s.q_stride}, k, v, NULL, base, NULL, stages);
        return;
    }
    registers_up<232>();
    cursor at = {0, 0};
    for (int turn = 0;; turn++) {
        work w = next_work(r, turn);
        if (w.head < 0)
            return;
        span me = span_of<N>(w);
        uint32_t qr[D / 16][4];
        load_fragments<D>(qr, base + (me.row0 - w.t.first) * D);
        release(&r.base_empty);
        if (me.mine) {
            float acc[D / 8][4] = {}, inv[2];
            sums u = {{-INFINITY, -INFINITY}, {0.f, 0.f}, {0.f, 0.f}};
            attend<D, N>(r, at, stages, qr, me, acc, u);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float sum = row_sum(u.total[h]);
                inv[h] = 1.f / sum;
                if (threadIdx.x % 4 == 0 && me.row + h * 8 < w.t.len)
                    lse[(int64_t)(w.t.start + me.row + h * 8) * s.heads + w.head] =
                        u.top[h] * rsqrtf((float)D) + logf(sum);
            }
            store_rows<D>(o + (int64_t)(w.t.start + me.row0) * s.o_stride + w.head * D, s.o_stride, acc, inv[0], inv[1],
                          w.t.len - me.row0);
        }
        skip_stages(r, at, me.stages - me.mine);
    }
#endif
}

/* ---- launches ---- */

/* 64 keys a stage: 128 are 2 to 8% faster from 4096 positions on, and 7% slower at 512. */
template <int D> struct forward_build {
    static constexpr int KEYS = 64, STAGES = 6 * 128 / D, BYTES = (ROWS + STAGES * 2 * KEYS) * D * 2 + 1024;
    static constexpr auto kernel = forward_kernel<D, KEYS, STAGES>;
};

cudaError_t hopper_attn_setup()
{
    cudaError_t rc = allow_shared(cudaSuccess, forward_build<64>::kernel, forward_build<64>::BYTES);
    return hopper_attn_back_setup(allow_shared(rc, forward_build<128>::kernel, forward_build<128>::BYTES));
}

template <int D>
static void forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                    const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    int items = ntiles * s->heads;
    launch(stream, forward_build<D>::kernel, blocks(s, items), BLOCK, forward_build<D>::BYTES, *s, tiles, items, q, k,
           v, o, lse);
}

cudaError_t hopper_attn_forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    if (s->head_dim == 128)
        forward<128>(stream, s, tiles, ntiles, q, k, v, o, lse);
    else
        forward<64>(stream, s, tiles, ntiles, q, k, v, o, lse);
    return cudaGetLastError();
}
