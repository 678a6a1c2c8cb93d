/*
 * FlashAttention-2 style kernels on mma.sync (m16n8k16, bf16 -> float32).  See attention.cuh for shapes.
 *
 * forward     one block = 64 queries of one head; K/V tiles of 64 stream through two shared buffers (cp.async).
 * backward    delta = rowsum(dO * O); then two kernels without atomics:
 *             dq:    one block = 64 queries of one head, over its keys;
 *             dk/dv: one block = 64 keys of one key head, over the queries of all its heads in ascending order.
 *             Scores are recomputed in both (7 products instead of 5), the price of a fixed order of sums.
 * P and dS are rounded to bf16 before they enter a product, as in FlashAttention.
 * Dao, "FlashAttention-2", 2023, algorithms 1 and 2.
 */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx/launch.cuh"

#include <math.h>

typedef __nv_bfloat16 bf16;

enum { WARPS = 4, THREADS = WARPS * 32, PAD = 8, TILES = ATTN_ROWS / ATTN_TILE };

/* The 64 positions of this block; false: past the end of the segment. */
__device__ __forceinline__ bool take_tile(const attn_tile *tiles, attn_tile *t)
{
    *t = tiles[blockIdx.x / TILES];
    t->first += blockIdx.x % TILES * ATTN_TILE;
    return t->first < t->len;
}

/* ---- tiles in shared memory: ROWS x D with 8 elements of padding a row (no bank conflicts in ldmatrix) ---- */

template <int D, int ROWS>
__device__ __forceinline__ void load_tile(bf16 *smem, const bf16 *global, int stride, int dim, int rows_valid)
{
    constexpr int CHUNKS = D / 8;
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, c = i % CHUNKS;
        bool valid = row < rows_valid && c * 8 < dim;
        copy16(smem + row * (D + PAD) + c * 8, global + (valid ? (int64_t)row * stride + c * 8 : 0), valid);
    }
}

/* acc[16 x N*8] += A-rows(row..row+16 of a_tile)[., D] @ b_tile[N*8 rows, D]^T */
template <int D, int N>
__device__ __forceinline__ void rows_times_transposed(float (*acc)[4], const bf16 *a_tile, int row, const bf16 *b_tile)
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t a[4];
        frag_a<D + PAD>(a, a_tile, row, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            frag_b<D + PAD>(b, b_tile, n * 8, k);
            mma(acc[n], a, b[0], b[1]);
            mma(acc[n + 1], a, b[2], b[3]);
        }
    }
}

/* acc[16 x D] += P[16 x N*8] (accumulator layout, rounded to bf16) @ tile[N*8 rows, D] */
template <int D, int N>
__device__ __forceinline__ void probs_times_rows(float (*acc)[4], const float (*p)[4], const bf16 *tile)
{
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        uint32_t a[4] = {pack(p[k][0], p[k][1]), pack(p[k][2], p[k][3]), pack(p[k + 1][0], p[k + 1][1]),
                         pack(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            frag_b_t<D + PAD>(b, tile, k * 8, n * 8);
            mma(acc[n], a, b[0], b[1]);
            mma(acc[n + 1], a, b[2], b[3]);
        }
    }
}

template <int D>
__device__ __forceinline__ void store_rows(bf16 *out, int stride, const float (*acc)[4], float scale0, float scale1,
                                           int dim, int row0, int rows_valid)
{
    int lane = threadIdx.x % 32, r0 = row0 + lane / 4, r1 = r0 + 8;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        int col = n * 8 + lane % 4 * 2;
        if (col >= dim)
            break;
        if (r0 < rows_valid)
            *(uint32_t *)(out + (int64_t)r0 * stride + col) = pack(acc[n][0] * scale0, acc[n][1] * scale0);
        if (r1 < rows_valid)
            *(uint32_t *)(out + (int64_t)r1 * stride + col) = pack(acc[n][2] * scale1, acc[n][3] * scale1);
    }
}

template <int N> __device__ __forceinline__ void clear(float (*acc)[4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            acc[n][j] = 0.f;
}

/* ---- forward ---- */

struct softmax_rows { /* of the two rows (lane/4, lane/4 + 8) that a thread shares with three others */
    float max[2], sum[2];
};

template <int D>
__device__ __forceinline__ void online_softmax(float (*s)[4], float (*o)[4], softmax_rows &st, float scale_log2,
                                               bool diagonal, int q0, int k0)
{
    constexpr int N = ATTN_TILE / 8;
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int qpos = q0 + lane / 4 + h * 8;
        float m = st.max[h], sum = 0.f, old = st.max[h];
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float &x = s[n][h * 2 + j];
                if (diagonal && k0 + n * 8 + lane % 4 * 2 + j > qpos)
                    x = -INFINITY;
                m = fmaxf(m, x);
            }
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        st.max[h] = m; /* finite: key 0 is visible to every row */
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float &x = s[n][h * 2 + j];
                x = exp2f((x - m) * scale_log2);
                sum += x;
            }
        float keep = exp2f((old - m) * scale_log2);
        st.sum[h] = st.sum[h] * keep + sum;
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            o[n][h * 2] *= keep;
            o[n][h * 2 + 1] *= keep;
        }
    }
}

template <int D>
__global__ void __launch_bounds__(THREADS) attn_forward_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q,
                                                               const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    DYNAMIC_SHARED(bf16, smem);
    constexpr int TILE = ATTN_TILE * (D + PAD);
    bf16 *qs = smem, *ks = smem + TILE, *vs = ks + 2 * TILE;
    attn_tile t;
    if (!take_tile(tiles, &t))
        return;
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16 *kg = k + (int64_t)t.start * s.k_stride + kv * s.head_dim,
               *vg = v + (int64_t)t.start * s.v_stride + kv * s.head_dim;
    int last = t.first / ATTN_TILE; /* the diagonal tile */
    float scale_log2 = rsqrtf((float)s.head_dim) * 1.4426950408889634f;

    load_tile<D, ATTN_TILE>(qs, q + (int64_t)(t.start + t.first) * s.q_stride + head * s.head_dim, s.q_stride,
                            s.head_dim, t.len - t.first);
    load_tile<D, ATTN_TILE>(ks, kg, s.k_stride, s.head_dim, t.len);
    load_tile<D, ATTN_TILE>(vs, vg, s.v_stride, s.head_dim, t.len);
    copy_commit();

    float acc[D / 8][4];
    clear<D / 8>(acc);
    softmax_rows st = {{-INFINITY, -INFINITY}, {0.f, 0.f}};
    for (int kt = 0; kt <= last; kt++) {
        int cur = kt & 1;
        if (kt < last) {
            int next = (kt + 1) * ATTN_TILE;
            load_tile<D, ATTN_TILE>(ks + (cur ^ 1) * TILE, kg + (int64_t)next * s.k_stride, s.k_stride, s.head_dim,
                                    t.len - next);
            load_tile<D, ATTN_TILE>(vs + (cur ^ 1) * TILE, vg + (int64_t)next * s.v_stride, s.v_stride, s.head_dim,
                                    t.len - next);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float p[ATTN_TILE / 8][4];
        clear<ATTN_TILE / 8>(p);
        rows_times_transposed<D, ATTN_TILE / 8>(p, qs, warp * 16, ks + cur * TILE);
        online_softmax<D>(p, acc, st, scale_log2, kt == last, t.first + warp * 16, kt * ATTN_TILE);
        probs_times_rows<D, ATTN_TILE / 8>(acc, p, vs + cur * TILE);
        __syncthreads();
    }

    float inv[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = st.sum[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        inv[h] = 1.f / sum;
        int row = warp * 16 + lane / 4 + h * 8;
        if (lane % 4 == 0 && t.first + row < t.len)
            lse[(int64_t)(t.start + t.first + row) * s.heads + head] =
                st.max[h] * rsqrtf((float)s.head_dim) + logf(sum);
    }
    store_rows<D>(o + (int64_t)(t.start + t.first) * s.o_stride + head * s.head_dim, s.o_stride, acc, inv[0], inv[1],
                  s.head_dim, warp * 16, t.len - t.first);
}

/* ---- backward ---- */

/* delta[h, t] = sum_d dO * O; one warp a (token, head). */
__global__ void attn_delta_kernel(attn_shape s, const bf16 *o, const bf16 *d_o, float *delta)
{
    int64_t pair = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    int token = (int)(pair / s.heads), head = (int)(pair % s.heads), lane = threadIdx.x % 32;
    if (token >= s.tokens)
        return;
    const bf16 *a = o + (int64_t)token * s.o_stride + head * s.head_dim;
    const bf16 *b = d_o + (int64_t)token * s.do_stride + head * s.head_dim;
    float sum = 0.f;
    for (int d = lane * 2; d < s.head_dim; d += 64) {
        float2 x = __bfloat1622float2(*(const __nv_bfloat162 *)(a + d)),
               y = __bfloat1622float2(*(const __nv_bfloat162 *)(b + d));
        sum += x.x * y.x;
        sum += x.y * y.y;
    }
    for (int m = 16; m; m /= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    if (lane == 0)
        delta[(int64_t)token * s.heads + head] = sum;
}

template <int D>
__global__ void __launch_bounds__(THREADS)
    attn_dq_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse,
                   const bf16 *d_o, const float *delta, bf16 *dq)
{
    DYNAMIC_SHARED(bf16, smem);
    constexpr int TILE = ATTN_TILE * (D + PAD), BK = 32, KTILE = BK * (D + PAD);
    bf16 *qs = smem, *dos = smem + TILE, *ks = dos + TILE, *vs = ks + 2 * KTILE;
    attn_tile t;
    if (!take_tile(tiles, &t))
        return;
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16 *kg = k + (int64_t)t.start * s.k_stride + kv * s.head_dim,
               *vg = v + (int64_t)t.start * s.v_stride + kv * s.head_dim;
    int rows = t.len - t.first, end = min(t.first + ATTN_TILE, t.len), nk = (end + BK - 1) / BK;
    float scale = rsqrtf((float)s.head_dim), scale_log2 = scale * 1.4426950408889634f;

    load_tile<D, ATTN_TILE>(qs, q + (int64_t)(t.start + t.first) * s.q_stride + head * s.head_dim, s.q_stride,
                            s.head_dim, rows);
    load_tile<D, ATTN_TILE>(dos, d_o + (int64_t)(t.start + t.first) * s.do_stride + head * s.head_dim, s.do_stride,
                            s.head_dim, rows);
    load_tile<D, BK>(ks, kg, s.k_stride, s.head_dim, t.len);
    load_tile<D, BK>(vs, vg, s.v_stride, s.head_dim, t.len);
    copy_commit();

    float l[2], dl[2], acc[D / 8][4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * 16 + lane / 4 + h * 8;
        int64_t at = (int64_t)(t.start + t.first + row) * s.heads + head;
        l[h] = row < rows ? lse[at] * 1.4426950408889634f : INFINITY;
        dl[h] = row < rows ? delta[at] : 0.f;
    }
    clear<D / 8>(acc);
    for (int kt = 0; kt < nk; kt++) {
        int cur = kt & 1, k0 = kt * BK;
        if (kt + 1 < nk) {
            int next = k0 + BK;
            load_tile<D, BK>(ks + (cur ^ 1) * KTILE, kg + (int64_t)next * s.k_stride, s.k_stride, s.head_dim,
                             t.len - next);
            load_tile<D, BK>(vs + (cur ^ 1) * KTILE, vg + (int64_t)next * s.v_stride, s.v_stride, s.head_dim,
                             t.len - next);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float p[BK / 8][4], dp[BK / 8][4];
        clear<BK / 8>(p);
        clear<BK / 8>(dp);
        rows_times_transposed<D, BK / 8>(p, qs, warp * 16, ks + cur * KTILE);
        rows_times_transposed<D, BK / 8>(dp, dos, warp * 16, vs + cur * KTILE);
#pragma unroll
        for (int n = 0; n < BK / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int h = j / 2, key = k0 + n * 8 + lane % 4 * 2 + j % 2, qpos = t.first + warp * 16 + lane / 4 + h * 8;
                float prob = key <= qpos ? exp2f(p[n][j] * scale_log2 - l[h]) : 0.f;
                dp[n][j] = prob * (dp[n][j] - dl[h]);
            }
        probs_times_rows<D, BK / 8>(acc, dp, ks + cur * KTILE);
        __syncthreads();
    }
    store_rows<D>(dq + (int64_t)(t.start + t.first) * s.dq_stride + head * s.head_dim, s.dq_stride, acc, scale, scale,
                  s.head_dim, warp * 16, rows);
}

/* Queries in tiles of BQ from the diagonal on, for every head of the group: one step = (head, query tile). */
template <int D, int BQ>
__device__ __forceinline__ void load_query_step(const attn_shape &s, const attn_tile &t, int head, int q0,
                                                const bf16 *q, const bf16 *d_o, const float *lse, const float *delta,
                                                bf16 *qs, bf16 *dos, float *ls, float *ds)
{
    load_tile<D, BQ>(qs, q + (int64_t)(t.start + q0) * s.q_stride + head * s.head_dim, s.q_stride, s.head_dim,
                     t.len - q0);
    load_tile<D, BQ>(dos, d_o + (int64_t)(t.start + q0) * s.do_stride + head * s.head_dim, s.do_stride, s.head_dim,
                     t.len - q0);
    if (threadIdx.x < BQ) {
        bool valid = q0 + (int)threadIdx.x < t.len;
        int64_t at = (int64_t)(t.start + q0 + (int)threadIdx.x) * s.heads + head;
        ls[threadIdx.x] = valid ? lse[at] * 1.4426950408889634f : INFINITY;
        ds[threadIdx.x] = valid ? delta[at] : 0.f;
    }
    copy_commit();
}

template <int D, int BQ>
__global__ void __launch_bounds__(THREADS)
    attn_dkv_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse,
                    const bf16 *d_o, const float *delta, bf16 *dk, bf16 *dv)
{
    DYNAMIC_SHARED(bf16, smem);
    constexpr int TILE = ATTN_TILE * (D + PAD), QTILE = BQ * (D + PAD);
    bf16 *ks = smem, *vs = smem + TILE, *qs = vs + TILE, *dos = qs + 2 * QTILE;
    float *ls = (float *)(dos + 2 * QTILE), *ds = ls + 2 * BQ;
    attn_tile t;
    if (!take_tile(tiles, &t))
        return;
    int kv = blockIdx.y, group = s.heads / s.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int rows = t.len - t.first, per_head = (rows + BQ - 1) / BQ, steps = per_head * group;
    float scale = rsqrtf((float)s.head_dim), scale_log2 = scale * 1.4426950408889634f;

    load_tile<D, ATTN_TILE>(ks, k + (int64_t)(t.start + t.first) * s.k_stride + kv * s.head_dim, s.k_stride, s.head_dim,
                            rows);
    load_tile<D, ATTN_TILE>(vs, v + (int64_t)(t.start + t.first) * s.v_stride + kv * s.head_dim, s.v_stride, s.head_dim,
                            rows);
    load_query_step<D, BQ>(s, t, kv * group, t.first, q, d_o, lse, delta, qs, dos, ls, ds);

    float acc_k[D / 8][4], acc_v[D / 8][4];
    clear<D / 8>(acc_k);
    clear<D / 8>(acc_v);
    for (int step = 0; step < steps; step++) {
        int cur = step & 1, q0 = t.first + step % per_head * BQ;
        if (step + 1 < steps) {
            int nh = kv * group + (step + 1) / per_head, nq = t.first + (step + 1) % per_head * BQ;
            load_query_step<D, BQ>(s, t, nh, nq, q, d_o, lse, delta, qs + (cur ^ 1) * QTILE, dos + (cur ^ 1) * QTILE,
                                   ls + (cur ^ 1) * BQ, ds + (cur ^ 1) * BQ);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float p[BQ / 8][4], dp[BQ / 8][4]; /* transposed: rows are keys, columns queries */
        clear<BQ / 8>(p);
        rows_times_transposed<D, BQ / 8>(p, ks, warp * 16, qs + cur * QTILE);
#pragma unroll
        for (int n = 0; n < BQ / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int c = n * 8 + lane % 4 * 2 + j % 2, key = t.first + warp * 16 + lane / 4 + j / 2 * 8;
                p[n][j] = key <= q0 + c ? exp2f(p[n][j] * scale_log2 - ls[cur * BQ + c]) : 0.f;
            }
        probs_times_rows<D, BQ / 8>(acc_v, p, dos + cur * QTILE);
        clear<BQ / 8>(dp);
        rows_times_transposed<D, BQ / 8>(dp, vs, warp * 16, dos + cur * QTILE);
#pragma unroll
        for (int n = 0; n < BQ / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                dp[n][j] = p[n][j] * (dp[n][j] - ds[cur * BQ + n * 8 + lane % 4 * 2 + j % 2]);
        probs_times_rows<D, BQ / 8>(acc_k, dp, qs + cur * QTILE);
        __syncthreads();
    }
    int64_t at = t.start + t.first;
    store_rows<D>(dk + at * s.dk_stride + kv * s.head_dim, s.dk_stride, acc_k, scale, scale, s.head_dim, warp * 16,
                  rows);
    store_rows<D>(dv + at * s.dv_stride + kv * s.head_dim, s.dv_stride, acc_v, 1.f, 1.f, s.head_dim, warp * 16, rows);
}

/* ---- launches ---- */

template <typename K> static cudaError_t allow_smem(K kernel, size_t bytes)
{
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

template <int D>
static cudaError_t forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                           const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    size_t bytes = 5 * ATTN_TILE * (D + PAD) * sizeof(bf16);
    cudaError_t rc = allow_smem(attn_forward_kernel<D>, bytes);
    if (rc != cudaSuccess)
        return rc;
    launch(stream, attn_forward_kernel<D>, dim3(ntiles * TILES, s->heads), THREADS, bytes, *s, tiles, q, k, v, o, lse);
    return cudaGetLastError();
}

template <int D>
static cudaError_t backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                            const bf16 *k, const bf16 *v, const float *lse, const bf16 *d_o, const float *delta,
                            bf16 *dq, bf16 *dk, bf16 *dv)
{
    constexpr int BQ = 32;
    size_t dq_bytes = (2 * ATTN_TILE + 4 * 32) * (D + PAD) * sizeof(bf16);
    size_t dkv_bytes = (2 * ATTN_TILE + 4 * BQ) * (D + PAD) * sizeof(bf16) + 4 * BQ * sizeof(float);
    cudaError_t rc = allow_smem(attn_dq_kernel<D>, dq_bytes);
    if (rc == cudaSuccess)
        rc = allow_smem(attn_dkv_kernel<D, BQ>, dkv_bytes);
    if (rc != cudaSuccess)
        return rc;
    launch(stream, attn_dq_kernel<D>, dim3(ntiles * TILES, s->heads), THREADS, dq_bytes, *s, tiles, q, k, v, lse, d_o,
           delta, dq);
    launch(stream, attn_dkv_kernel<D, BQ>, dim3(ntiles * TILES, s->kv_heads), THREADS, dkv_bytes, *s, tiles, q, k, v,
           lse, d_o, delta, dk, dv);
    return cudaGetLastError();
}

/* The smallest build that holds the head; missing columns are zeros. */
#define BY_HEAD_DIM(call)                                                                                              \
    if (s->head_dim % 8 != 0 || s->head_dim <= 0 || s->head_dim > 128)                                                 \
        return cudaErrorInvalidValue;                                                                                  \
    if (s->head_dim <= 16)                                                                                             \
        return call(16);                                                                                               \
    if (s->head_dim <= 32)                                                                                             \
        return call(32);                                                                                               \
    if (s->head_dim <= 64)                                                                                             \
        return call(64);                                                                                               \
    if (s->head_dim <= 96)                                                                                             \
        return call(96);                                                                                               \
    return call(128);

cudaError_t attn_forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                         const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    if (attn_on_hopper(s))
        return hopper_attn_forward(stream, s, tiles, ntiles, q, k, v, o, lse);
#define FORWARD(D) forward<D>(stream, s, tiles, ntiles, q, k, v, o, lse)
    BY_HEAD_DIM(FORWARD)
}

cudaError_t attn_backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                          const bf16 *k, const bf16 *v, const bf16 *o, const float *lse, const bf16 *d_o, float *delta,
                          bf16 *dq, bf16 *dk, bf16 *dv)
{
    if (attn_on_hopper(s))
        return hopper_attn_backward(stream, s, tiles, ntiles, q, k, v, o, lse, d_o, delta, dq, dk, dv);
    int pairs = s->tokens * s->heads;
    launch(stream, attn_delta_kernel, (pairs + 7) / 8, 256, 0, *s, o, d_o, delta);
#define BACKWARD(D) backward<D>(stream, s, tiles, ntiles, q, k, v, lse, d_o, delta, dq, dk, dv)
    BY_HEAD_DIM(BACKWARD)
}
