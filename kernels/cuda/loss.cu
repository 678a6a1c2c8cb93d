/*
 * The head: cross-entropy at labelled rows, and logits for generation.
 *
 * Labelled rows are gathered in chunks of HEAD_ROWS; a chunk's logits [rows, vocab] are float32; one block a row makes
 * log sum exp, the loss and the bf16 gradient.  The sum over a segment's rows runs in a fixed order, in double.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"

#include <math_constants.h>

enum { HEAD_THREADS = 512 };

/* ROWS of out = picked rows of x, or the other way round.  16 bytes a thread where rows allow it. */
template <bool SCATTER> __global__ void move_rows_kernel(const bf16 *from, const int32_t *rows, int hidden, bf16 *to)
{
    size_t packed = (size_t)blockIdx.x * hidden, picked = (size_t)rows[blockIdx.x] * hidden;
    const bf16 *src = from + (SCATTER ? packed : picked);
    bf16 *dst = to + (SCATTER ? picked : packed);
    if (hidden % 8 == 0) {
        for (int i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8)
            *(uint4 *)(dst + i) = *(const uint4 *)(src + i);
    } else {
        for (int i = threadIdx.x; i < hidden; i += blockDim.x)
            dst[i] = src[i];
    }
}

struct max_sum {
    float max, sum;
};

__device__ __forceinline__ max_sum join(max_sum a, max_sum b)
{
    float m = fmaxf(a.max, b.max);
    if (m == -CUDART_INF_F)
        return {m, a.sum + b.sum}; /* 0, or NaN */
    return {m, a.sum * __expf(a.max - m) + b.sum * __expf(b.max - m)};
}

/* Logits i .. i + 7 of a row that begins at a multiple of 32 bytes; -inf behind its end. */
struct eight {
    float v[8];
    __device__ __forceinline__ void load(const float *l, int i, int vocab)
    {
        if (i + 8 <= vocab) {
            *(float4 *)v = *(const float4 *)(l + i);
            *(float4 *)(v + 4) = *(const float4 *)(l + i + 4);
        } else {
#pragma unroll
            for (int k = 0; k < 8; k++)
                v[k] = i + k < vocab ? l[i + k] : -CUDART_INF_F;
        }
    }
    __device__ __forceinline__ max_sum soft() const
    {
        float m = -CUDART_INF_F, sum = 0.f;
#pragma unroll
        for (int k = 0; k < 8; k++)
            m = fmaxf(m, v[k]); /* passes over NaN; the sum does not */
        float base = m == -CUDART_INF_F ? 0.f : m;
#pragma unroll
        for (int k = 0; k < 8; k++)
            sum += __expf(v[k] - base);
        return {m, sum};
    }
};

/* A block a row; eight logits a thread at a time, read twice: for max and sum, then (mostly from L2) for the gradient.
 * logits, dlogits [rows, ld], ld a multiple of 8.  scale_of[row]: the segment's loss_scale.  dlogits NULL: only the
 * loss. */
__global__ void __launch_bounds__(HEAD_THREADS)
    cross_entropy_kernel(const float *logits, const int32_t *labels, const float *scale_of, int vocab, int ld,
                         double *row_loss, bf16 *dlogits)
{
    __shared__ max_sum part[HEAD_THREADS / 32];
    const float *l = logits + (size_t)blockIdx.x * ld;
    max_sum ms = {-CUDART_INF_F, 0.f};
#pragma unroll 2
    for (int i = threadIdx.x * 8; i < vocab; i += HEAD_THREADS * 8) {
        eight e;
        e.load(l, i, vocab);
        ms = join(ms, e.soft());
    }
    for (int m = 16; m; m /= 2)
        ms = join(ms, {__shfl_xor_sync(~0u, ms.max, m), __shfl_xor_sync(~0u, ms.sum, m)});
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = ms;
    __syncthreads();
    ms = part[0];
    for (int i = 1; i < HEAD_THREADS / 32; i++)
        ms = join(ms, part[i]);
    int label = labels[blockIdx.x];
    if (threadIdx.x == 0)
        row_loss[blockIdx.x] = (double)ms.max + log((double)ms.sum) - (double)l[label];
    if (!dlogits)
        return;
    bf16 *out = dlogits + (size_t)blockIdx.x * ld;
    float scale = scale_of[blockIdx.x], inv = 1.f / ms.sum;
#pragma unroll 2
    for (int i = threadIdx.x * 8; i < vocab; i += HEAD_THREADS * 8) {
        eight e;
        e.load(l, i, vocab);
#pragma unroll
        for (int k = 0; k < 8; k++)
            e.v[k] = scale * (__expf(e.v[k] - ms.max) * inv - (i + k == label ? 1.f : 0.f));
        *(uint4 *)(out + i) =
            make_uint4(pack(e.v[0], e.v[1]), pack(e.v[2], e.v[3]), pack(e.v[4], e.v[5]), pack(e.v[6], e.v[7]));
    }
}

/* For every labelled row its segment's loss_scale. */
__global__ void label_scales_kernel(const op_seg *segs, float *scale_of)
{
    const op_seg s = segs[blockIdx.x];
    for (int i = threadIdx.x; i < s.labels; i += blockDim.x)
        scale_of[s.label0 + i] = s.loss_scale;
}

/* One warp a segment; lane i takes every 32nd row, then the lanes in order. */
__global__ void sum_losses_kernel(const op_seg *segs, const double *row_loss, double *loss)
{
    const op_seg s = segs[blockIdx.x];
    double sum = 0.;
    for (int i = threadIdx.x; i < s.labels; i += 32)
        sum += row_loss[s.label0 + i];
    for (int m = 16; m; m /= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    if (threadIdx.x == 0 && s.labels)
        loss[s.slot] += sum;
}

/* Row length of logits and their gradient: rows begin at multiples of 16 bytes, as the kernels above want it.  A
 * product of rows at other places may sum in another order for another number of rows: seen with odd vocabularies. */
static int head_ld(int32_t vocab)
{
    return div_up(vocab, 8) * 8;
}

/* What cu_head_loss allocates for so many labels. */
size_t head_scratch(int32_t labels, int32_t hidden, int32_t vocab)
{
    vocab = head_ld(vocab);
    size_t chunk = labels < HEAD_ROWS ? labels : HEAD_ROWS;
    return chunk * ((size_t)hidden * sizeof(bf16) + (size_t)vocab * (sizeof(float) + sizeof(bf16))) +
           (size_t)labels * (sizeof(float) + sizeof(double));
}

void cu_head_loss(op_dev *d, const op_pack *p, const void *x, const void *W, int32_t vocab, int32_t hidden,
                  double *loss, void *dx)
{
    TRACE(d, "head_loss R %d", p->rows);
    const cuda_pack *c = pack_dev(p);
    int chunk = p->n_labels < HEAD_ROWS ? p->n_labels : HEAD_ROWS, ld = head_ld(vocab);
    bf16 *rows, *dlogits = NULL;
    float *logits, *scale_of;
    double *row_loss;

    if (dx)
        DEV_CHECK(d, cudaMemsetAsync(dx, 0, (size_t)p->rows * hidden * sizeof(bf16), d->stream));
    if (!p->n_labels)
        return;
    rows = (bf16 *)dev_alloc(d, (size_t)chunk * hidden * sizeof(bf16));
    logits = (float *)dev_alloc(d, (size_t)chunk * ld * sizeof(float));
    scale_of = (float *)dev_alloc(d, (size_t)p->n_labels * sizeof(float));
    row_loss = (double *)dev_alloc(d, (size_t)p->n_labels * sizeof(double));
    if (dx)
        dlogits = (bf16 *)dev_alloc(d, (size_t)chunk * ld * sizeof(bf16));
    if (rows && logits && scale_of && row_loss && (!dx || dlogits)) {
        launch(d->stream, label_scales_kernel, p->n_segs, 128, 0, c->segs, scale_of);
        for (int at = 0; at < p->n_labels; at += chunk) {
            int n = p->n_labels - at < chunk ? p->n_labels - at : chunk;
            launch(d->stream, move_rows_kernel<false>, n, 256, 0, (const bf16 *)x, c->lab_row + at, hidden, rows);
            gemm(d, false, n, vocab, hidden, rows, hidden, (const bf16 *)W, false, logits, ld, true);
            launch(d->stream, cross_entropy_kernel, n, HEAD_THREADS, 0, logits, c->lab_id + at, scale_of + at, vocab,
                   ld, row_loss + at, dlogits);
            if (dx) {
                gemm(d, true, n, vocab, hidden, dlogits, ld, (const bf16 *)W, false, rows, hidden, false);
                launch(d->stream, move_rows_kernel<true>, n, 256, 0, rows, c->lab_row + at, hidden, (bf16 *)dx);
            }
        }
        launch(d->stream, sum_losses_kernel, p->n_segs, 32, 0, c->segs, row_loss, loss);
        DEV_LAUNCHED(d, "head loss");
    }
    dev_free(d, dlogits);
    dev_free(d, row_loss);
    dev_free(d, scale_of);
    dev_free(d, logits);
    dev_free(d, rows);
}

/* ---- generation ---- */

void cu_logits(op_dev *d, const void *x, const int32_t *rows, int32_t n, const void *W, int32_t vocab, int32_t hidden,
               float *logits)
{
    TRACE(d, "logits n %d", n);
    int32_t *dev_rows = (int32_t *)dev_alloc(d, (size_t)n * sizeof(int32_t));
    bf16 *picked = (bf16 *)dev_alloc(d, (size_t)n * hidden * sizeof(bf16));

    if (dev_rows && picked) {
        dev_upload(d, dev_rows, rows, (size_t)n * sizeof(int32_t));
        launch(d->stream, move_rows_kernel<false>, n, 256, 0, (const bf16 *)x, dev_rows, hidden, picked);
        gemv(d, NULL, NULL, n, vocab, hidden, picked, (const bf16 *)W, NULL, NULL, NULL, false, logits, true);
    }
    dev_free(d, picked);
    dev_free(d, dev_rows);
}
