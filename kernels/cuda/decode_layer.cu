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
 * Each kernel begins with chain_wait (cuda.h), so the next ones are on the multiprocessors already and fetch their
 * weights while the small ones run: the memory is never idle.  Floor: bytes of all weights / memory bandwidth.
 * Everything is computed for one row from that row alone.
 */
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/decode_stream.cuh"

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
            v[i] = __float2bfloat16(attend_join(p, used, a.dim, c));
        }
    }
}

/* grid (rows, blocks): each block makes the row, the first writes it; TEAM warps an h column at a time, each a quarter
 * of the row, the quarters' sums joined in order. */
template <int SRC, int V> __global__ void __launch_bounds__(PREPARE_THREADS) prepare_kernel(prepare_args a)
{
    extern __shared__ __align__(16) bf16 v[];
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

/* grid (row, head, slice) */
__global__ void __launch_bounds__(ATTEND_THREADS) attend_kernel(attend_args a)
{
    __shared__ attend_shared m;
    chain_next();
    const op_seq s = a.seqs[blockIdx.x];
    const attend_slice c = attend_at(a, s, blockIdx.y, blockIdx.z);
    attend_cache old;
    old.load(a, c, threadIdx.x);
    chain_wait();
    if (c.n > 0)
        attend(a, s, c, old, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, 0, m);
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
    if (stream_fits(d, l)) {
        if (stream_need(d, p->rows, at->heads))
            stream_layers(d, p, l, 1, NULL, partial, slices);
        return;
    }
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
    stream_setup(d);
}
