/*
 * The kernels of attention.cu with Hopper's matrix instruction, for head sizes 64 and 128: the same tiles of 64
 * positions, one warpgroup a block, operands read from shared memory by the matrix unit itself.  Other devices and
 * sizes use attention.cu.
 */
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/wgmma.cuh"

#include <math.h>

typedef __nv_bfloat16 bf16;

enum { THREADS = 128, TILE = ATTN_TILE };

#ifdef DTX_WGMMA

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 64 rows x D as D / 64 swizzled tiles; rows from rows_valid on are zeros. */
template <int D> __device__ __forceinline__ void load_rows(bf16 *smem, const bf16 *global, int stride, int rows_valid)
{
#pragma unroll
    for (int i = 0; i < TILE * (D / 8) / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, row = at / (D / 8), c = at % (D / 8);
        bool valid = row < rows_valid;
        copy16(smem + c / 8 * TILE * 64 + row * 64 + (c % 8 ^ row % 8) * 8,
               global + (valid ? (int64_t)row * stride + c * 8 : 0), valid);
    }
}

/* acc[64 x 64] = A[64, D] B[64, D]^T, started */
template <int D> __device__ __forceinline__ void start_scores(float (*acc)[4], const bf16 *a, const bf16 *b)
{
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        int at = k / 64 * TILE * 64 + k % 64;
        wg_shared<64>(acc, k_major(a + at), k_major(b + at), k > 0);
    }
}

/* acc[64 x D] += P[64 x 64] (rounded to bf16) tile[64, D], started */
template <int D>
__device__ __forceinline__ void start_weighted(float (*acc)[4], const uint32_t (*p)[4], const bf16 *tile)
{
#pragma unroll
    for (int k = 0; k < TILE / 16; k++)
        wg_register<D>(acc, p[k], n_major(tile + k * 16 * 64, TILE * 128), 1);
}

__device__ __forceinline__ void round_probs(uint32_t (*a)[4], const float (*p)[4])
{
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        a[k][0] = pack(p[2 * k][0], p[2 * k][1]);
        a[k][1] = pack(p[2 * k][2], p[2 * k][3]);
        a[k][2] = pack(p[2 * k + 1][0], p[2 * k + 1][1]);
        a[k][3] = pack(p[2 * k + 1][2], p[2 * k + 1][3]);
    }
}

/* A barrier after which the matrix unit sees what the block's copies brought. */
__device__ __forceinline__ void tiles_ready()
{
    shared_for_matrix_unit();
    __syncthreads();
}

template <int D>
__device__ __forceinline__ void store_rows(bf16 *out, int stride, const float (*acc)[4], float scale0, float scale1,
                                           int rows_valid)
{
    int lane = threadIdx.x % 32, r0 = threadIdx.x / 32 * 16 + lane / 4, r1 = r0 + 8;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        int col = n * 8 + lane % 4 * 2;
        if (r0 < rows_valid)
            *(uint32_t *)(out + (int64_t)r0 * stride + col) = pack(acc[n][0] * scale0, acc[n][1] * scale0);
        if (r1 < rows_valid)
            *(uint32_t *)(out + (int64_t)r1 * stride + col) = pack(acc[n][2] * scale1, acc[n][3] * scale1);
    }
}
#endif

/* Shared memory starts at a multiple of 1024 bytes. */
__device__ __forceinline__ bf16 *aligned_shared(unsigned char *raw)
{
    return (bf16 *)(raw + ((1024 - (smem_addr(raw) & 1023)) & 1023));
}

template <int D>
__global__ void __launch_bounds__(THREADS, 2) forward_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q,
                                                             const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
#ifdef DTX_WGMMA
    extern __shared__ unsigned char raw[];
    constexpr int T = TILE * D;
    bf16 *qs = aligned_shared(raw), *ks = qs + T, *vs = ks + 2 * T;
    const attn_tile t = tiles[blockIdx.x];
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16 *kg = k + (int64_t)t.start * s.k_stride + kv * D, *vg = v + (int64_t)t.start * s.v_stride + kv * D;
    int last = t.first / TILE; /* the diagonal tile */
    float scale_log2 = rsqrtf((float)D) * 1.4426950408889634f;

    load_rows<D>(qs, q + (int64_t)(t.start + t.first) * s.q_stride + head * D, s.q_stride, t.len - t.first);
    load_rows<D>(ks, kg, s.k_stride, t.len);
    load_rows<D>(vs, vg, s.v_stride, t.len);
    copy_commit();

    float acc[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
    for (int kt = 0; kt <= last; kt++) {
        int cur = kt & 1, next = (kt + 1) * TILE;
        copy_wait<0>();
        tiles_ready(); /* and everybody is done with the other buffers */
        if (kt < last) {
            load_rows<D>(ks + (cur ^ 1) * T, kg + (int64_t)next * s.k_stride, s.k_stride, t.len - next);
            load_rows<D>(vs + (cur ^ 1) * T, vg + (int64_t)next * s.v_stride, s.v_stride, t.len - next);
            copy_commit();
        }
        float p[TILE / 8][4];
        wg_fence();
        start_scores<D>(p, qs, ks + cur * T);
        wg_commit();
        wg_wait<0>();
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int qpos = t.first + warp * 16 + lane / 4 + h * 8, k0 = kt * TILE + lane % 4 * 2;
            float m = top[h], sum = 0.f;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = p[n][h * 2 + j];
                    if (kt == last && k0 + n * 8 + j > qpos)
                        x = -INFINITY;
                    m = fmaxf(m, x);
                }
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            float keep = exp2_fast((top[h] - m) * scale_log2), shift = m * scale_log2;
            top[h] = m; /* finite: key 0 is visible to every row */
#pragma unroll
            for (int n = 0; n < TILE / 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float &x = p[n][h * 2 + j];
                    x = exp2_fast(fmaf(x, scale_log2, -shift));
                    sum += x;
                }
            total[h] = total[h] * keep + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                acc[n][h * 2] *= keep;
                acc[n][h * 2 + 1] *= keep;
            }
        }
        uint32_t a[TILE / 16][4];
        round_probs(a, p);
        wg_fence();
        start_weighted<D>(acc, a, vs + cur * T);
        wg_commit();
        wg_wait<0>();
    }
    float inv[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = total[h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        inv[h] = 1.f / sum;
        int row = warp * 16 + lane / 4 + h * 8;
        if (lane % 4 == 0 && t.first + row < t.len)
            lse[(int64_t)(t.start + t.first + row) * s.heads + head] = top[h] * rsqrtf((float)D) + logf(sum);
    }
    store_rows<D>(o + (int64_t)(t.start + t.first) * s.o_stride + head * D, s.o_stride, acc, inv[0], inv[1],
                  t.len - t.first);
#endif
}

template <int D>
__global__ void __launch_bounds__(THREADS, 2)
    dq_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse,
              const bf16 *d_o, const float *delta, bf16 *dq)
{
#ifdef DTX_WGMMA
    extern __shared__ unsigned char raw[];
    constexpr int T = TILE * D;
    bf16 *qs = aligned_shared(raw), *dos = qs + T, *ks = dos + T, *vs = ks + 2 * T;
    const attn_tile t = tiles[blockIdx.x];
    int head = blockIdx.y, kv = head / (s.heads / s.kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bf16 *kg = k + (int64_t)t.start * s.k_stride + kv * D, *vg = v + (int64_t)t.start * s.v_stride + kv * D;
    int rows = t.len - t.first, last = t.first / TILE;
    float scale = rsqrtf((float)D), scale_log2 = scale * 1.4426950408889634f;

    load_rows<D>(qs, q + (int64_t)(t.start + t.first) * s.q_stride + head * D, s.q_stride, rows);
    load_rows<D>(dos, d_o + (int64_t)(t.start + t.first) * s.do_stride + head * D, s.do_stride, rows);
    load_rows<D>(ks, kg, s.k_stride, t.len);
    load_rows<D>(vs, vg, s.v_stride, t.len);
    copy_commit();
    float l[2], dl[2], acc[D / 8][4] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int row = warp * 16 + lane / 4 + h * 8;
        int64_t at = (int64_t)(t.start + t.first + row) * s.heads + head;
        l[h] = row < rows ? lse[at] * 1.4426950408889634f : INFINITY;
        dl[h] = row < rows ? delta[at] : 0.f;
    }
    for (int kt = 0; kt <= last; kt++) {
        int cur = kt & 1, next = (kt + 1) * TILE;
        copy_wait<0>();
        tiles_ready();
        if (kt < last) {
            load_rows<D>(ks + (cur ^ 1) * T, kg + (int64_t)next * s.k_stride, s.k_stride, t.len - next);
            load_rows<D>(vs + (cur ^ 1) * T, vg + (int64_t)next * s.v_stride, s.v_stride, t.len - next);
            copy_commit();
        }
        float p[TILE / 8][4], dp[TILE / 8][4];
        wg_fence();
        start_scores<D>(p, qs, ks + cur * T);
        wg_commit();
        start_scores<D>(dp, dos, vs + cur * T);
        wg_commit();
        wg_wait<1>();
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int h = j / 2, key = kt * TILE + n * 8 + lane % 4 * 2 + j % 2,
                    qpos = t.first + warp * 16 + lane / 4 + h * 8;
                float e = exp2_fast(fmaf(p[n][j], scale_log2, -l[h]));
                p[n][j] = kt < last || key <= qpos ? e : 0.f;
            }
        wg_wait<0>();
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                dp[n][j] = p[n][j] * (dp[n][j] - dl[j / 2]);
        uint32_t a[TILE / 16][4];
        round_probs(a, dp);
        wg_fence();
        start_weighted<D>(acc, a, ks + cur * T);
        wg_commit();
        wg_wait<0>();
    }
    store_rows<D>(dq + (int64_t)(t.start + t.first) * s.dq_stride + head * D, s.dq_stride, acc, scale, scale, rows);
#endif
}

#ifdef DTX_WGMMA
/* 64 queries from q0 of one head: q, dO, lse, delta. */
template <int D>
__device__ __forceinline__ void load_queries(const attn_shape &s, const attn_tile &t, int head, int q0, const bf16 *q,
                                             const bf16 *d_o, const float *lse, const float *delta, bf16 *qs, bf16 *dos,
                                             float *ls, float *ds)
{
    load_rows<D>(qs, q + (int64_t)(t.start + q0) * s.q_stride + head * D, s.q_stride, t.len - q0);
    load_rows<D>(dos, d_o + (int64_t)(t.start + q0) * s.do_stride + head * D, s.do_stride, t.len - q0);
    if (threadIdx.x < TILE) {
        bool valid = q0 + (int)threadIdx.x < t.len;
        int64_t at = (int64_t)(t.start + q0 + (int)threadIdx.x) * s.heads + head;
        ls[threadIdx.x] = valid ? lse[at] * 1.4426950408889634f : INFINITY;
        ds[threadIdx.x] = valid ? delta[at] : 0.f;
    }
    copy_commit();
}
#endif

template <int D>
__global__ void __launch_bounds__(THREADS, 2)
    dkv_kernel(attn_shape s, const attn_tile *tiles, const bf16 *q, const bf16 *k, const bf16 *v, const float *lse,
               const bf16 *d_o, const float *delta, bf16 *dk, bf16 *dv)
{
#ifdef DTX_WGMMA
    extern __shared__ unsigned char raw[];
    constexpr int T = TILE * D;
    bf16 *ks = aligned_shared(raw), *vs = ks + T, *qs = vs + T, *dos = qs + 2 * T;
    float *ls = (float *)(dos + 2 * T), *ds = ls + 2 * TILE;
    const attn_tile t = tiles[blockIdx.x];
    int kv = blockIdx.y, group = s.heads / s.kv_heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int rows = t.len - t.first, per_head = (rows + TILE - 1) / TILE, steps = per_head * group;
    float scale = rsqrtf((float)D), scale_log2 = scale * 1.4426950408889634f;

    load_rows<D>(ks, k + (int64_t)(t.start + t.first) * s.k_stride + kv * D, s.k_stride, rows);
    load_rows<D>(vs, v + (int64_t)(t.start + t.first) * s.v_stride + kv * D, s.v_stride, rows);
    load_queries<D>(s, t, kv * group, t.first, q, d_o, lse, delta, qs, dos, ls, ds);

    float acc_k[D / 8][4] = {}, acc_v[D / 8][4] = {};
    for (int step = 0; step < steps; step++) {
        int cur = step & 1, tile = step % per_head;
        copy_wait<0>();
        tiles_ready();
        if (step + 1 < steps)
            load_queries<D>(s, t, kv * group + (step + 1) / per_head, t.first + (step + 1) % per_head * TILE, q, d_o,
                            lse, delta, qs + (cur ^ 1) * T, dos + (cur ^ 1) * T, ls + (cur ^ 1) * TILE,
                            ds + (cur ^ 1) * TILE);
        float p[TILE / 8][4], dp[TILE / 8][4]; /* transposed: rows are keys, columns queries */
        wg_fence();
        start_scores<D>(p, ks, qs + cur * T);
        wg_commit();
        start_scores<D>(dp, vs, dos + cur * T);
        wg_commit();
        wg_wait<1>();
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int c = n * 8 + lane % 4 * 2 + j % 2, key = warp * 16 + lane / 4 + j / 2 * 8;
                float e = exp2_fast(fmaf(p[n][j], scale_log2, -ls[cur * TILE + c]));
                p[n][j] = tile > 0 || key <= c ? e : 0.f;
            }
        uint32_t a[TILE / 16][4];
        round_probs(a, p);
        wg_wait<0>();
        wg_fence();
        start_weighted<D>(acc_v, a, dos + cur * T);
        wg_commit();
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                dp[n][j] = p[n][j] * (dp[n][j] - ds[cur * TILE + n * 8 + lane % 4 * 2 + j % 2]);
        uint32_t b[TILE / 16][4];
        round_probs(b, dp);
        wg_fence();
        start_weighted<D>(acc_k, b, qs + cur * T);
        wg_commit();
        wg_wait<0>();
    }
    int64_t at = t.start + t.first;
    store_rows<D>(dk + at * s.dk_stride + kv * D, s.dk_stride, acc_k, scale, scale, rows);
    store_rows<D>(dv + at * s.dv_stride + kv * D, s.dv_stride, acc_v, 1.f, 1.f, rows);
#endif
}

/* ---- launches ---- */

template <int D> struct bytes_of {
    static constexpr int FORWARD = 5 * TILE * D * 2 + 1024, DQ = 6 * TILE * D * 2 + 1024,
                         DKV = 6 * TILE * D * 2 + 4 * TILE * 4 + 1024;
};

template <int D> static cudaError_t setup()
{
    cudaError_t rc =
        cudaFuncSetAttribute(forward_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of<D>::FORWARD);
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(dq_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of<D>::DQ);
    if (rc == cudaSuccess)
        rc = cudaFuncSetAttribute(dkv_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes_of<D>::DKV);
    return rc;
}

cudaError_t hopper_attn_setup()
{
    cudaError_t rc = setup<64>();
    return rc == cudaSuccess ? setup<128>() : rc;
}

cudaError_t hopper_attn_forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                const bf16 *q, const bf16 *k, const bf16 *v, bf16 *o, float *lse)
{
    dim3 grid(ntiles, s->heads);
    if (s->head_dim == 128)
        forward_kernel<128><<<grid, THREADS, bytes_of<128>::FORWARD, stream>>>(*s, tiles, q, k, v, o, lse);
    else
        forward_kernel<64><<<grid, THREADS, bytes_of<64>::FORWARD, stream>>>(*s, tiles, q, k, v, o, lse);
    return cudaGetLastError();
}

template <int D>
static void backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles, const bf16 *q,
                     const bf16 *k, const bf16 *v, const float *lse, const bf16 *d_o, const float *delta, bf16 *dq,
                     bf16 *dk, bf16 *dv)
{
    dq_kernel<D><<<dim3(ntiles, s->heads), THREADS, bytes_of<D>::DQ, stream>>>(*s, tiles, q, k, v, lse, d_o, delta, dq);
    dkv_kernel<D>
        <<<dim3(ntiles, s->kv_heads), THREADS, bytes_of<D>::DKV, stream>>>(*s, tiles, q, k, v, lse, d_o, delta, dk, dv);
}

cudaError_t hopper_attn_backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                 const bf16 *q, const bf16 *k, const bf16 *v, const float *lse, const bf16 *d_o,
                                 const float *delta, bf16 *dq, bf16 *dk, bf16 *dv)
{
    if (s->head_dim == 128)
        backward<128>(stream, s, tiles, ntiles, q, k, v, lse, d_o, delta, dq, dk, dv);
    else
        backward<64>(stream, s, tiles, ntiles, q, k, v, lse, d_o, delta, dq, dk, dv);
    return cudaGetLastError();
}
