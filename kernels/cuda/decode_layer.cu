/*
 * A decoder layer over a decode pack in nine kernels: for each of its four linears one that makes the linear's input
 * and the adapters' h = input A^T, then the gemv; and the attention over the cache.
 *
 *   prepare<NORM>     xn = norm(x)                        and h of qkv
 *   gemv              qkv
 *   attend            rope of q and k, this position's k and v into the cache, attention by slices of the cache
 *   prepare<JOIN>     o = slices joined in order          and h of o
 *   gemv              x2 = x + o Wo^T
 *   prepare<NORM>     xn = norm(x2)                       and h of gate_up
 *   gemv              gu
 *   prepare<SWIGLU>   a = silu(gate) up                   and h of down
 *   gemv              x = x2 + a Wdown^T
 *
 * Each kernel begins with chain_wait, so the next ones are on the multiprocessors already and fetch their weights while
 * the small ones run: the memory is never idle.  Floor: bytes of all weights / memory bandwidth.
 * Everything is computed for one row from that row alone.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/ptx/warp.cuh"
#include "kernels/cuda/vec.cuh"

#include <math_constants.h>

enum { PREPARE_THREADS = 512, TEAM = 4, /* warps of one h column */ MAX_BLOCKS = 64, NORM = 0, JOIN = 1, SWIGLU = 2 };

struct prepare_args {
    const bf16 *x, *w; /* NORM: input and weight; SWIGLU: gate and up */
    float eps;
    const float *partial; /* JOIN */
    const op_seq *seqs;
    int heads, dim, slices;
    bf16 *out; /* [R, in] */
    /* h = out A^T */
    const dev_adapter *row_adapters; /* NULL: no adapters in the pack */
    bf16 *h;
    lora_dims dims;
    int32_t rows, hr, layer, in, n_parts;
    int32_t target[3];
};

/* A row of A of (part, rank column), or NULL. */
__device__ __forceinline__ const bf16 *a_row(const prepare_args &a, const dev_adapter *ad, int part, int j)
{
    const bf16 *A = adapter_at(ad, a.layer, a.target[part]);
    return A && j < ad->rank ? A + (size_t)j * a.in : NULL;
}

/* The values of a row into shared memory, rounded as they are kept. */
template <int SRC, int V> __device__ __forceinline__ void make_row(const prepare_args &a, int row, bf16 *v)
{
    __shared__ float scratch[PREPARE_THREADS / 32];
    int n = a.in;
    if (SRC == NORM) {
        const bf16 *x = a.x + (size_t)row * n;
        float sum = 0.f;
        for (int i = threadIdx.x * V; i < n; i += PREPARE_THREADS * V) {
            vec<V> e = load<V>(x + i);
            for (int j = 0; j < V; j++)
                sum += e.f[j] * e.f[j];
        }
        float r = rsqrtf(block_sum(sum, scratch) / n + a.eps);
        for (int i = threadIdx.x * V; i < n; i += PREPARE_THREADS * V) {
            vec<V> e = load<V>(x + i), g = load<V>(a.w + i);
            for (int j = 0; j < V; j++)
                e.f[j] = g.f[j] * (e.f[j] * r);
            store<V>(v + i, e);
        }
    } else if (SRC == SWIGLU) {
        const bf16 *x = a.x + (size_t)row * 2 * n;
#pragma unroll 2
        for (int i = threadIdx.x * V; i < n; i += PREPARE_THREADS * V) {
            vec<V> g = load<V>(x + i), u = load<V>(x + n + i);
            for (int j = 0; j < V; j++)
                g.f[j] = g.f[j] / (1.f + __expf(-g.f[j])) * u.f[j];
            store<V>(v + i, g);
        }
    } else {
        int used = (a.seqs[row].pos0) / DECODE_SLICE + 1;
        for (int i = threadIdx.x; i < n; i += PREPARE_THREADS) {
            int head = i / a.dim, c = i % a.dim;
            const float *p = a.partial + ((size_t)row * a.heads + head) * a.slices * (2 + a.dim);
            float top = p[0], sum = p[1], value = p[2 + c];
            for (int s = 1; s < used; s++) {
                const float *ps = p + (size_t)s * (2 + a.dim);
                float m = fmaxf(top, ps[0]), k = __expf(top - m), b = __expf(ps[0] - m);
                sum = sum * k + ps[1] * b;
                value = value * k + ps[2 + c] * b;
                top = m;
            }
            v[i] = __float2bfloat16(value / sum);
        }
    }
}

/* grid (rows, blocks): each block makes the row, the first writes it; TEAM warps an h column at a time, each a quarter
 * of the row, the quarters' sums joined in order. */
template <int SRC, int V> __global__ void __launch_bounds__(PREPARE_THREADS) prepare_kernel(prepare_args a)
{
    DYNAMIC_SHARED(bf16, v);
    constexpr int TEAMS = PREPARE_THREADS / 32 / TEAM;
    __shared__ float sums[TEAMS][TEAM];
    int row = blockIdx.x, team = threadIdx.x / 32 / TEAM, member = threadIdx.x / 32 % TEAM, lane = threadIdx.x % 32;
    int columns = a.row_adapters ? a.n_parts * a.hr : 0;
    int quarter = (a.in / TEAM + 255) / 256 * 256, first = min(member * quarter, a.in),
        end = member + 1 < TEAM ? min(first + quarter, a.in) : a.in;
    const dev_adapter *ad = a.row_adapters ? &a.row_adapters[row] : NULL;
    chain_next();
    int j0 = blockIdx.y * TEAMS + team;
    if (j0 < columns) {
        const bf16 *A = a_row(a, ad, j0 / a.hr, j0 % a.hr);
        for (int i = first + lane * 64; A && i < end; i += 32 * 64)
            prefetch_l2(A + i);
    }
    if (SRC == NORM)
        for (int i = threadIdx.x * 64; i < a.in; i += PREPARE_THREADS * 64)
            prefetch_l2(a.w + i);
    chain_wait();
    if (blockIdx.y > 0 && !ad->shadow)
        return;
    make_row<SRC, V>(a, row, v);
    __syncthreads();
    if (blockIdx.y == 0)
        for (int i = threadIdx.x * V; i < a.in; i += PREPARE_THREADS * V) {
            if (V == 8)
                *(uint4 *)(a.out + (size_t)row * a.in + i) = *(uint4 *)(v + i);
            else
                a.out[(size_t)row * a.in + i] = v[i];
        }
    if (!ad || !ad->shadow)
        return;
    for (int c = blockIdx.y * TEAMS; c < columns; c += gridDim.y * TEAMS) { /* the same rounds for every thread */
        int j = c + team;
        const bf16 *A = j < columns ? a_row(a, ad, j / a.hr, j % a.hr) : NULL;
        float sum = 0.f;
        if (A && V == 8 && ((uintptr_t)A & 15) == 0) {
#pragma unroll 6
            for (int i = first + lane * 8; i < end; i += 256) {
                vec<8> e = load<8>(A + i), x = load<8>(v + i);
#pragma unroll
                for (int k = 0; k < 8; k++)
                    sum += e.f[k] * x.f[k];
            }
        } else if (A) {
            for (int i = first + lane; i < end; i += 32)
                sum += __bfloat162float(A[i]) * __bfloat162float(v[i]);
        }
        for (int m = 16; m; m /= 2)
            sum += __shfl_xor_sync(~0u, sum, m);
        if (lane == 0)
            sums[team][member] = sum;
        __syncthreads();
        if (lane == 0 && member == 0 && j < columns) {
            for (int i = 1; i < TEAM; i++)
                sum += sums[team][i];
            a.h[((size_t)(j / a.hr) * a.rows + row) * a.hr + j % a.hr] = __float2bfloat16(sum);
        }
        __syncthreads();
    }
}

/* ---- attention ---- */

enum { MAX_HEAD = 128, ATTEND_WARPS = 4, ATTEND_THREADS = ATTEND_WARPS * 32 };

struct attend_args {
    const op_seq *seqs;
    const float *table;
    const bf16 *qkv;
    int heads, kv_heads, dim, layer, slices;
    float scale;
    float *partial; /* [row][head][slice][2 + dim]: max, sum, weighted values */
};

/* Element i of a rotated vector: the pair (i, i +- half), rounded to bf16 as ops->rope leaves it. */
__device__ __forceinline__ float rotated(const bf16 *v, const float *cs, int i, int half)
{
    int k = i % half;
    float x = __bfloat162float(v[k]), y = __bfloat162float(v[k + half]), c = cs[k], s = cs[half + k];
    return __bfloat162float(__float2bfloat16(i < half ? x * c - y * s : y * c + x * s));
}

/* grid (row, head, slice of DECODE_SLICE positions).  This row's own key and value come from qkv, the others from the
 * cache, so that no block waits for another's store. */
__global__ void __launch_bounds__(ATTEND_THREADS) attend_kernel(attend_args a)
{
    __shared__ float score[DECODE_SLICE], q_s[MAX_HEAD], k_s[MAX_HEAD], value[ATTEND_WARPS][MAX_HEAD],
        red[ATTEND_WARPS];
    int row = blockIdx.x, head = blockIdx.y, slice = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int dim = a.dim, kv_dim = a.kv_heads * dim, group = a.heads / a.kv_heads, kvh = head / group;
    chain_next();
    const op_seq s = a.seqs[row];
    int n = min(s.pos0 + 1 - slice * DECODE_SLICE, (int)DECODE_SLICE), mine = s.pos0 - slice * DECODE_SLICE;
    bf16 *k =
        (bf16 *)s.kv + (size_t)a.layer * 2 * s.kv_cap * kv_dim + (size_t)slice * DECODE_SLICE * kv_dim + kvh * dim;
    bf16 *v = k + (size_t)s.kv_cap * kv_dim;
    const float *cs = a.table + (size_t)s.pos0 * dim;
    const bf16 *qkv = a.qkv + (size_t)row * (a.heads + 2 * a.kv_heads) * dim;
    const bf16 *own_k = qkv + (a.heads + kvh) * dim, *own_v = own_k + kv_dim;
    if ((int)threadIdx.x < n && (int)threadIdx.x != mine) {
        for (int i = 0; i < dim; i += 64) {
            prefetch_l2(k + (size_t)threadIdx.x * kv_dim + i);
            prefetch_l2(v + (size_t)threadIdx.x * kv_dim + i);
        }
    }
    if ((int)threadIdx.x * 32 < dim)
        prefetch_l2(cs + threadIdx.x * 32);
    chain_wait();
    if (n <= 0)
        return;
    for (int i = threadIdx.x; i < dim; i += ATTEND_THREADS) {
        q_s[i] = rotated(qkv + head * dim, cs, i, dim / 2) * a.scale;
        if (mine < DECODE_SLICE) {
            k_s[i] = rotated(own_k, cs, i, dim / 2);
            if (head % group == 0 && s.pos0 < s.kv_cap) {
                k[(size_t)mine * kv_dim + i] = __float2bfloat16(k_s[i]);
                v[(size_t)mine * kv_dim + i] = own_v[i];
            }
        }
    }
    __syncthreads();

    /* scores: 8 lanes a key, each lane a run of 8 elements every 64 */
    float top = -CUDART_INF_F;
#pragma unroll
    for (int round = 0; round < DECODE_SLICE / (ATTEND_WARPS * 4); round++) {
        int key = round * ATTEND_WARPS * 4 + warp * 4 + lane / 8;
        float dot = 0.f;
        if (key < n && key != mine) {
#pragma unroll
            for (int c = 0; c < MAX_HEAD; c += 64) {
                int i = c + lane % 8 * 8;
                if (i < dim) {
                    vec<8> e = load<8>(k + (size_t)key * kv_dim + i);
#pragma unroll
                    for (int j = 0; j < 8; j++)
                        dot += e.f[j] * q_s[i + j];
                }
            }
        } else if (key == mine) {
            for (int i = lane % 8 * 8; i < dim; i += 64)
                for (int j = 0; j < 8; j++)
                    dot += k_s[i + j] * q_s[i + j];
        }
        for (int m = 4; m; m /= 2)
            dot += __shfl_xor_sync(~0u, dot, m);
        if (key < n) {
            top = fmaxf(top, dot);
            if (lane % 8 == 0)
                score[key] = dot;
        }
    }
    for (int m = 16; m; m /= 2)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, m));
    if (lane == 0)
        red[warp] = top;
    __syncthreads();
    for (int i = 0; i < ATTEND_WARPS; i++)
        top = fmaxf(top, red[i]);
    for (int key = threadIdx.x; key < n; key += ATTEND_THREADS)
        score[key] = __expf(score[key] - top);
    __syncthreads();

    /* values: warp w takes keys w, w + 4, ...; a lane pairs of columns */
    float acc[MAX_HEAD / 32] = {}, sum = 0.f;
#pragma unroll 8
    for (int key = warp; key < n; key += ATTEND_WARPS) {
        float p = score[key];
        const bf16 *vr = key == mine ? own_v : v + (size_t)key * kv_dim;
        sum += p;
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane * 2;
            if (i < dim) {
                float2 f = __bfloat1622float2(*(const __nv_bfloat162 *)(vr + i));
                acc[2 * c] += p * f.x;
                acc[2 * c + 1] += p * f.y;
            }
        }
    }
    for (int c = 0; c < MAX_HEAD / 64; c++)
        if (c * 64 + lane * 2 < dim) {
            value[warp][c * 64 + lane * 2] = acc[2 * c];
            value[warp][c * 64 + lane * 2 + 1] = acc[2 * c + 1];
        }
    if (lane == 0)
        red[warp] = sum; /* its maxima were read before the last barrier */
    __syncthreads();
    float *out = a.partial + (((size_t)row * a.heads + head) * a.slices + slice) * (2 + dim);
    if (threadIdx.x == 0) {
        out[0] = top;
        out[1] = red[0] + red[1] + red[2] + red[3];
    }
    for (int i = threadIdx.x; i < dim; i += ATTEND_THREADS)
        out[2 + i] = value[0][i] + value[1][i] + value[2][i] + value[3][i];
}

/* ---- launches ---- */

template <int SRC>
static void prepare(op_dev *d, const op_pack *p, const op_linear *l, prepare_args a, bf16 *out, float *h)
{
    bool lora = p->n_adapters > 0 && p->max_rank > 0;
    a.out = out;
    a.row_adapters = lora ? pack_dev(p)->row_adapters : NULL;
    a.h = (bf16 *)h;
    a.dims = *p->dims;
    a.rows = p->rows;
    a.hr = h_columns(p);
    a.layer = l->layer;
    a.in = l->in;
    a.n_parts = l->n_parts;
    for (int i = 0; i < l->n_parts; i++)
        a.target[i] = l->part[i].target;
    int blocks = lora ? div_up(a.n_parts * a.hr, PREPARE_THREADS / 32 / TEAM) : 1;
    dim3 grid(p->rows, blocks < MAX_BLOCKS ? blocks : MAX_BLOCKS);
    size_t smem = (size_t)a.in * sizeof(bf16);
    if (a.in % 8 == 0)
        chain_launch(d, prepare_kernel<SRC, 8>, grid, PREPARE_THREADS, smem, a);
    else
        chain_launch(d, prepare_kernel<SRC, 1>, grid, PREPARE_THREADS, smem, a);
}

static void product(op_dev *d, const op_pack *p, const op_linear *l, const void *x, const void *add, void *y, float *h)
{
    bool lora = p->n_adapters > 0 && p->max_rank > 0;
    gemv(d, p, l, p->rows, l->out, l->in, (const bf16 *)x, (const bf16 *)l->W, (const bf16 *)l->bias, (const bf16 *)add,
         lora ? (bf16 *)h : NULL, y, false);
}

void cu_decode_layer(op_dev *d, const op_pack *p, const op_layer *l)
{
    TRACE(d, "decode_layer R %d", p->rows);
    const op_attention *at = &l->attention;
    prepare_args a = {};
    attend_args t = {};
    int slices = 0;
    float *partial = cached_partial(d, p, at, &slices);

    if (!partial)
        return;
    a.seqs = t.seqs = pack_dev(p)->seqs;
    a.eps = l->eps;
    a.partial = t.partial = partial;
    a.heads = t.heads = at->heads;
    a.dim = t.dim = at->head_dim;
    a.slices = t.slices = slices;
    t.table = l->rope;
    t.qkv = (const bf16 *)l->qkv_y;
    t.kv_heads = at->kv_heads;
    t.layer = at->layer;
    t.scale = at->scale;

    a.x = (const bf16 *)l->x;
    a.w = (const bf16 *)l->norm1;
    prepare<NORM>(d, p, &l->qkv, a, (bf16 *)l->xn, l->h_qkv);
    product(d, p, &l->qkv, l->xn, NULL, l->qkv_y, l->h_qkv);
    chain_launch(d, attend_kernel, dim3(p->rows, at->heads, slices), ATTEND_THREADS, 0, t);
    prepare<JOIN>(d, p, &l->out, a, (bf16 *)l->o, l->h_out);
    product(d, p, &l->out, l->o, l->x, l->x2, l->h_out);
    a.x = (const bf16 *)l->x2;
    a.w = (const bf16 *)l->norm2;
    prepare<NORM>(d, p, &l->gate_up, a, (bf16 *)l->xn, l->h_gate_up);
    product(d, p, &l->gate_up, l->xn, NULL, l->gu, l->h_gate_up);
    a.x = (const bf16 *)l->gu;
    prepare<SWIGLU>(d, p, &l->down, a, (bf16 *)l->a, l->h_down);
    product(d, p, &l->down, l->a, l->x2, l->x_out, l->h_down);
    DEV_LAUNCHED(d, "decode_layer");
}

/* Rows wider than 48 KB need more shared memory than the default; once, when the device opens. */
void decode_setup(op_dev *d)
{
    int most = d->shared_bytes - 1024; /* beside what prepare_kernel has of its own */
    DEV_CHECK(d, cudaFuncSetAttribute(prepare_kernel<NORM, 8>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    DEV_CHECK(d, cudaFuncSetAttribute(prepare_kernel<JOIN, 8>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    DEV_CHECK(d, cudaFuncSetAttribute(prepare_kernel<SWIGLU, 8>, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
}
