/*
 * A decoder layer over a decode pack in nine kernels: for each of its four linears one that makes the linear's input,
 * then the gemv, LoRA in it; and the attention over the cache.
 *
 *   prepare<NORM>     xn = norm(x)
 *   gemv              qkv
 *   attend            rope of q and k, this position's k and v into the cache, attention by slices of the cache
 *   prepare<JOIN>     o = slices joined in order
 *   gemv              x2 = x + o Wo^T
 *   prepare<NORM>     xn = norm(x2)
 *   gemv              gu
 *   prepare<SWIGLU>   a = silu(gate) up
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

enum { NORM, JOIN, SWIGLU };

struct prepare_args {
    const bf16 *x, *w; /* NORM: input and weight; SWIGLU: gate and up */
    float eps;
    const float *partial; /* JOIN */
    const op_seq *seqs;
    int heads, dim, slices;
    int32_t n;
    bf16 *out; /* [R, n] */
    uint4 *h;  /* [n_parts][R][h_pieces] of the gemv behind, to be NOT_YET; NULL: none */
    int32_t rows, n_parts, h_pieces;
};

/* NORM needs the whole row in one block. */
template <int SRC> constexpr int prepare_threads = SRC == NORM ? 512 : 256;
/* Neighbouring elements of a thread, of a width that is a multiple of V. */
template <int SRC, int V> constexpr int prepare_wide = SRC == JOIN ? 2 : V;

template <int V> __device__ __forceinline__ void norm_row(const prepare_args &a, const bf16 *x, bf16 *out)
{
    __shared__ float scratch[prepare_threads<NORM> / 32];
    constexpr int STEP = prepare_threads<NORM> * V;
    int first = threadIdx.x * V;
    vec<V> e = {}, g = {};
    float sum = 0.f;
    for (int i = first + STEP; i < a.n; i += STEP)
        prefetch_l2(a.w + i);
    if (first < a.n)
        g = load<V>(a.w + first);
    chain_wait();
    if (first < a.n)
        e = load<V>(x + first);
    for (int j = 0; j < V; j++)
        sum += e.f[j] * e.f[j];
    for (int i = first + STEP; i < a.n; i += STEP) {
        vec<V> f = load<V>(x + i);
        for (int j = 0; j < V; j++)
            sum += f.f[j] * f.f[j];
    }
    float r = rsqrtf(block_sum(sum, scratch) / a.n + a.eps);
    for (int i = first; i < a.n; i += STEP) {
        if (i > first) {
            e = load<V>(x + i);
            g = load<V>(a.w + i);
        }
        for (int j = 0; j < V; j++)
            e.f[j] = g.f[j] * (e.f[j] * r);
        store<V>(out + i, e);
    }
}

/* Elements i, i + 1 of a row, of one head. */
__device__ __forceinline__ void join_pair(const prepare_args &a, int row, int i, bf16 *out)
{
    int used = a.seqs[row].pos0 / DECODE_SLICE + 1, head = i / a.dim, c = i % a.dim;
    const float *p = a.partial + ((size_t)row * a.heads + head) * a.slices * (2 + a.dim);
    float2 most = *(const float2 *)p, value = *(const float2 *)(p + 2 + c); /* most: max, sum */
#pragma unroll 4
    for (int s = 1; s < used; s++) {
        const float *ps = p + (size_t)s * (2 + a.dim);
        float2 here = *(const float2 *)ps, v = *(const float2 *)(ps + 2 + c);
        float m = fmaxf(most.x, here.x), k = __expf(most.x - m), b = __expf(here.x - m);
        most = make_float2(m, most.y * k + here.y * b);
        value = make_float2(value.x * k + v.x * b, value.y * k + v.y * b);
    }
    *(__nv_bfloat162 *)(out + i) = __floats2bfloat162_rn(value.x / most.y, value.y / most.y);
}

/* grid (rows, parts of a row) */
template <int SRC, int V> __global__ void __launch_bounds__(prepare_threads<SRC>) prepare_kernel(prepare_args a)
{
    int row = blockIdx.x, i = (blockIdx.y * prepare_threads<SRC> + threadIdx.x) * prepare_wide<SRC, V>;
    bf16 *out = a.out + (size_t)row * a.n;
    chain_next();
    if (SRC == NORM)
        norm_row<V>(a, a.x + (size_t)row * a.n, out);
    else
        chain_wait();
    for (int k = threadIdx.x; a.h && blockIdx.y == 0 && k < a.n_parts * a.h_pieces; k += prepare_threads<SRC>)
        a.h[(k / a.h_pieces * a.rows + row) * a.h_pieces + k % a.h_pieces] = make_uint4(~0u, ~0u, ~0u, ~0u);
    if (SRC == NORM || i >= a.n)
        return;
    if (SRC == SWIGLU) {
        const bf16 *x = a.x + (size_t)row * 2 * a.n;
        vec<V> g = load<V>(x + i), u = load<V>(x + a.n + i);
        for (int j = 0; j < V; j++)
            g.f[j] = g.f[j] / (1.f + __expf(-g.f[j])) * u.f[j];
        store<V>(out + i, g);
    } else {
        join_pair(a, row, i, out);
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

static bool has_lora(const op_pack *p)
{
    return p->n_adapters > 0 && p->max_rank > 0;
}

template <int SRC, int V> static void launch_prepare(op_dev *d, int rows, const prepare_args &a)
{
    constexpr int THREADS = prepare_threads<SRC>;
    int parts = SRC == NORM ? 1 : div_up(a.n, THREADS * prepare_wide<SRC, V>);
    chain_launch(d, prepare_kernel<SRC, V>, dim3(rows, parts), THREADS, 0, a);
}

template <int SRC>
static void prepare(op_dev *d, const op_pack *p, const op_linear *l, prepare_args a, void *out, float *h)
{
    a.out = (bf16 *)out;
    a.n = l->in;
    a.h = has_lora(p) ? (uint4 *)h : NULL;
    a.rows = p->rows;
    a.n_parts = l->n_parts;
    a.h_pieces = h_columns(p) / 8;
    if (a.n % 8 == 0)
        launch_prepare<SRC, 8>(d, p->rows, a);
    else
        launch_prepare<SRC, 1>(d, p->rows, a);
}

static void product(op_dev *d, const op_pack *p, const op_linear *l, const void *x, const void *add, void *y, float *h)
{
    bool lora = has_lora(p);
    gemv(d, p, l, p->rows, l->out, l->in, (const bf16 *)x, (const bf16 *)l->W, (const bf16 *)l->bias, (const bf16 *)add,
         lora ? (bf16 *)h : NULL, lora, y, false);
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
    prepare<NORM>(d, p, &l->qkv, a, l->xn, l->h_qkv);
    product(d, p, &l->qkv, l->xn, NULL, l->qkv_y, l->h_qkv);
    chain_launch(d, attend_kernel, dim3(p->rows, at->heads, slices), ATTEND_THREADS, 0, t);
    prepare<JOIN>(d, p, &l->out, a, l->o, l->h_out);
    product(d, p, &l->out, l->o, l->x, l->x2, l->h_out);
    a.x = (const bf16 *)l->x2;
    a.w = (const bf16 *)l->norm2;
    prepare<NORM>(d, p, &l->gate_up, a, l->xn, l->h_gate_up);
    product(d, p, &l->gate_up, l->xn, NULL, l->gu, l->h_gate_up);
    a.x = (const bf16 *)l->gu;
    prepare<SWIGLU>(d, p, &l->down, a, l->a, l->h_down);
    product(d, p, &l->down, l->a, l->x2, l->x_out, l->h_down);
    DEV_LAUNCHED(d, "decode_layer");
}
