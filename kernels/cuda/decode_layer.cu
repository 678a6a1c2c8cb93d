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

/* Elements i, i + 1 of a row, of one head, from `used` slices. */
__device__ __forceinline__ void join_pair(const prepare_args &a, int row, int i, int used, bf16 *out)
{
    int head = i / a.dim, c = i % a.dim;
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
    int used = SRC == JOIN ? a.seqs[row].pos0 / DECODE_SLICE + 1 : 0;
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
        join_pair(a, row, i, used, out);
    }
}

/* ---- attention ---- */

enum {
    MAX_HEAD = 128,
    ATTEND_WARPS = 4,
    ATTEND_THREADS = ATTEND_WARPS * 32,
    KEY_ROUNDS = DECODE_SLICE / (ATTEND_WARPS * 4),
    WARP_KEYS = DECODE_SLICE / ATTEND_WARPS,
};

struct attend_args {
    const op_seq *seqs;
    const float *table;
    const bf16 *qkv;
    int heads, kv_heads, dim, layer, slices;
    float scale;
    float *partial; /* [row][head][slice][2 + dim]: max, sum, weighted values */
};

/* Element i of a rotated vector from the pair (i, i +- half), rounded to bf16 as ops->rope leaves it. */
__device__ __forceinline__ bf16 rotated(bf16 first, bf16 second, float c, float s, bool is_first)
{
    float x = __bfloat162float(first), y = __bfloat162float(second);
    return __float2bfloat16(is_first ? x * c - y * s : y * c + x * s);
}

/* grid (row, head, slice of DECODE_SLICE positions).  This row's own key and value come from qkv, the others from the
 * cache, so that no block waits for another's store.  Those are older than the step, which begins after all of the one
 * before (embed waits for it), so before the wait keys come to registers, 8 lanes a key, each lane a run of 8 elements
 * every 64, and values to the second level of the cache; those go to registers while keys are multiplied, w, w + 4, ...
 * to warp w, a lane pairs of columns. */
__global__ void __launch_bounds__(ATTEND_THREADS, 4) attend_kernel(attend_args a)
{
    static_assert(MAX_HEAD <= ATTEND_THREADS, "a thread rotates one element");
    __shared__ float score[DECODE_SLICE], q_s[MAX_HEAD], value[ATTEND_WARPS][MAX_HEAD], red[ATTEND_WARPS];
    __shared__ uint4 own_s[2][MAX_HEAD / 8]; /* this row's key and value */
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
    auto key_of = [&](int round) { return (round * ATTEND_WARPS + warp) * 4 + lane / 8; };
    auto value_of = [&](int round) { return round * ATTEND_WARPS + warp; };
    uint4 key_r[KEY_ROUNDS][MAX_HEAD / 64];
    uint32_t value_r[WARP_KEYS][MAX_HEAD / 64];
#pragma unroll
    for (int round = 0; round < KEY_ROUNDS; round++) {
        int key = key_of(round);
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane % 8 * 8;
            key_r[round][c] = key < n && key != mine && i < dim ? *(const uint4 *)(k + (size_t)key * kv_dim + i)
                                                                : make_uint4(0, 0, 0, 0);
        }
    }
    if ((int)threadIdx.x < n && (int)threadIdx.x != mine)
        for (int i = 0; i < dim; i += 64)
            prefetch_l2(v + (size_t)threadIdx.x * kv_dim + i);
    int e = threadIdx.x, half = dim / 2, pair = e % half;
    float c = e < dim ? cs[pair] : 0.f, sn = e < dim ? cs[half + pair] : 0.f;
    bf16 *own_k = (bf16 *)own_s[0], *own_v = (bf16 *)own_s[1];
    chain_wait();
    if (n <= 0)
        return;
    if (e < dim) {
        const bf16 *q = qkv + head * dim, *kn = qkv + (a.heads + kvh) * dim;
        bf16 q0 = q[pair], q1 = q[half + pair], k0 = kn[pair], k1 = kn[half + pair], vn = kn[kv_dim + e];
        q_s[e] = __bfloat162float(rotated(q0, q1, c, sn, e < half)) * a.scale;
        own_k[e] = rotated(k0, k1, c, sn, e < half);
        own_v[e] = vn;
        if (mine < DECODE_SLICE && head % group == 0 && s.pos0 < s.kv_cap) {
            k[(size_t)mine * kv_dim + e] = own_k[e];
            v[(size_t)mine * kv_dim + e] = vn;
        }
    } else if (e < MAX_HEAD) {
        q_s[e] = 0.f;
        own_k[e] = own_v[e] = __float2bfloat16(0.f);
    }
    __syncthreads();

    float top = -CUDART_INF_F, dot[KEY_ROUNDS] = {};
#pragma unroll
    for (int round = 0; round < KEY_ROUNDS; round++) {
        int key = key_of(round);
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane % 8 * 8;
            uint4 piece = key == mine ? own_s[0][i / 8] : key_r[round][c];
            vec<8> f = load<8>((const bf16 *)&piece);
#pragma unroll
            for (int j = 0; j < 8; j++)
                dot[round] += f.f[j] * q_s[i + j];
        }
    }
#pragma unroll
    for (int round = 0; round < WARP_KEYS; round++) {
        int key = value_of(round);
#pragma unroll
        for (int c = 0; c < MAX_HEAD / 64; c++) {
            int i = c * 64 + lane * 2;
            value_r[round][c] =
                key < n && key != mine && i < dim ? *(const uint32_t *)(v + (size_t)key * kv_dim + i) : 0;
        }
    }
    in_order(); /* their time is that of the maximum and the powers */
#pragma unroll
    for (int m = 4; m; m /= 2)
#pragma unroll
        for (int round = 0; round < KEY_ROUNDS; round++)
            dot[round] += __shfl_xor_sync(~0u, dot[round], m);
#pragma unroll
    for (int round = 0; round < KEY_ROUNDS; round++) {
        int key = key_of(round);
        if (key < n) {
            top = fmaxf(top, dot[round]);
            if (lane % 8 == 0)
                score[key] = dot[round];
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

    float acc[MAX_HEAD / 32] = {}, sum = 0.f;
#pragma unroll
    for (int round = 0; round < WARP_KEYS; round++) {
        int key = value_of(round);
        if (key < n) {
            float p = score[key];
            sum += p;
#pragma unroll
            for (int c = 0; c < MAX_HEAD / 64; c++) {
                int i = c * 64 + lane * 2;
                uint32_t two = key == mine ? *(const uint32_t *)(own_v + i) : value_r[round][c];
                float2 f = __bfloat1622float2(*(const __nv_bfloat162 *)&two);
                acc[2 * c] += p * f.x;
                acc[2 * c + 1] += p * f.y;
            }
        }
    }
#pragma unroll
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
