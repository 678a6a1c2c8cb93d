/*
 * The optimizer over all jobs' flat buffers in three launches: squares summed by fixed blocks of NORM_BLOCK elements,
 * each job's blocks summed in order, then the update.  A job whose loss or norm is not finite is left alone.
 */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>

enum { NORM_BLOCK = 16384, NORM_THREADS = 256 };

struct optim_job { /* op_optim on the device, with its blocks in the grid */
    float *w, *g, *m, *v;
    size_t n;
    int32_t kind, slot, block0, blocks;
    double lr, weight_decay, beta1, beta2, eps, bias1, bias2, max_norm;
};

__device__ __forceinline__ const optim_job &job_of_block(const optim_job *jobs, int n, int block)
{
    int lo = 0, hi = n - 1;
    while (lo < hi) {
        int mid = (lo + hi + 1) / 2;
        if (jobs[mid].block0 <= block)
            lo = mid;
        else
            hi = mid - 1;
    }
    return jobs[lo];
}

__global__ void squares_kernel(const optim_job *jobs, int n, double *partial)
{
    __shared__ double scratch[NORM_THREADS / 32];
    const optim_job &j = job_of_block(jobs, n, blockIdx.x);
    size_t first = (size_t)(blockIdx.x - j.block0) * NORM_BLOCK, end = min(first + NORM_BLOCK, j.n);
    double sum = 0.;
    for (size_t i = first + threadIdx.x; i < end; i += NORM_THREADS)
        sum += (double)j.g[i] * (double)j.g[i];
    for (int m = 16; m; m /= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < NORM_THREADS / 32; i++)
            sum += scratch[i];
        partial[blockIdx.x] = sum;
    }
}

__global__ void norm_kernel(const optim_job *jobs, const double *partial, const double *loss, op_outcome *out)
{
    const optim_job j = jobs[blockIdx.x];
    double sum = 0.;
    for (int i = threadIdx.x; i < j.blocks; i += 32)
        sum += partial[j.block0 + i];
    for (int m = 16; m; m /= 2)
        sum += __shfl_xor_sync(~0u, sum, m);
    if (threadIdx.x == 0) {
        out[blockIdx.x].norm = sqrt(sum);
        out[blockIdx.x].applied = isfinite(sum) && isfinite(loss[j.slot]);
        out[blockIdx.x].unused = 0;
    }
}

__global__ void update_kernel(const optim_job *jobs, int n, const op_outcome *out)
{
    const optim_job &j = job_of_block(jobs, n, blockIdx.x);
    const op_outcome o = out[&j - jobs];
    if (!o.applied)
        return;
    double clip = j.max_norm > 0 ? j.max_norm / (o.norm + 1e-6) : 1.;
    float factor = clip < 1. ? (float)clip : 1.f, lr = (float)j.lr, wd = (float)j.weight_decay;
    float b1 = (float)j.beta1, b2 = (float)j.beta2, step = (float)(j.lr / j.bias1), root = (float)sqrt(j.bias2);
    size_t first = (size_t)(blockIdx.x - j.block0) * NORM_BLOCK, end = min(first + NORM_BLOCK, j.n);
    for (size_t i = first + threadIdx.x; i < end; i += NORM_THREADS) {
        float g = j.g[i] * factor, w = j.w[i];
        if (j.kind == DTX_ADAMW)
            w *= 1.f - lr * wd;
        else
            g += wd * w;
        if (j.kind == DTX_SGD) {
            j.w[i] = w - lr * g;
            continue;
        }
        float m = j.m[i], v = j.v[i];
        m += (1.f - b1) * (g - m);
        v = b2 * v + (1.f - b2) * g * g;
        j.m[i] = m;
        j.v[i] = v;
        j.w[i] = w - step * (m / (sqrtf(v) / root + (float)j.eps));
    }
}

void cu_optim(op_dev *d, const op_optim *jobs, int32_t n, const double *loss, op_outcome *out)
{
    TRACE(d, "optim %d jobs", n);
    optim_job *host = (optim_job *)calloc((size_t)n, sizeof(*host)), *dev;
    double *partial;
    int blocks = 0;

    if (n == 0 || !host) {
        if (n)
            dev_fail(d, cudaErrorMemoryAllocation, "tables of the optimizer");
        free(host);
        return;
    }
    for (int i = 0; i < n; i++) {
        const op_optim *j = &jobs[i];
        int b = div_up((int64_t)j->n, NORM_BLOCK);
        host[i] = {j->w,
                   j->g,
                   j->m,
                   j->v,
                   j->n,
                   (int32_t)j->kind,
                   j->slot,
                   blocks,
                   b,
                   j->lr,
                   j->weight_decay,
                   j->beta1,
                   j->beta2,
                   j->eps,
                   j->bias1,
                   j->bias2,
                   j->max_norm};
        blocks += b;
        shadow_forget(d, j->w, j->n * sizeof(float));
    }
    dev = (optim_job *)dev_alloc(d, (size_t)n * sizeof(*dev));
    partial = (double *)dev_alloc(d, (size_t)blocks * sizeof(double));
    if (dev && partial) {
        dev_upload(d, dev, host, (size_t)n * sizeof(*dev));
        launch(d->stream, squares_kernel, blocks, NORM_THREADS, 0, dev, n, partial);
        launch(d->stream, norm_kernel, n, 32, 0, dev, partial, loss, out);
        launch(d->stream, update_kernel, blocks, NORM_THREADS, 0, dev, n, out);
        DEV_LAUNCHED(d, "optimizer");
    }
    dev_free(d, partial);
    dev_free(d, dev);
    free(host);
}
