/*
 * Products with frozen matrices, by cuBLASLt: of the head, and of linears that gemm_hopper.cu does not serve.
 *
 * Row invariance: the numbers of a row must not depend on how many rows there are.  For each (orientation, N, K, row
 * lengths, output type) the library's first choice for PLAN_ROWS rows is the reference.  Algorithms that split the
 * inner dimension (split-K, stream-K) are left out: their sums depend on the grid.  For other numbers of rows, by
 * powers of two, another tile shape is faster: of the library's candidates for that size, those that give the
 * reference's bits are timed, and the fastest is taken.  (On Hopper all of them do: each feeds the same wgmma
 * instruction with k ascending; seen for all candidates of the 7B shapes but one.)  That is checked here on random rows
 * against the real matrix, CHECK_ROWS x N sums of K products, on what is left of them when the rounded sum is taken
 * off: another order of sums would show in many of them.  So a row's result is that of the reference algorithm,
 * whatever ran, and which one ran changes speed alone.
 */
#include "kernels/cuda/cuda.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

extern "C" {
#include "kernels/rng.h"
}

enum { PLAN_ROWS = 2048, CHECK_ROWS = 64, CANDIDATES = 8, SIZES = 16 };

struct layouts { /* column-major views: y^T [cols, M] = op(W) x^T.  W is [N, K] row-major = K x N column-major */
    cublasLtMatrixLayout_t w, x, y;
    int M;
};

struct gemm_plan {
    bool transposed, out_f32;
    int N, K, ldx, ldy;
    cublasLtMatmulDesc_t desc;
    layouts shape;
    cublasLtMatmulAlgo_t reference, algo[SIZES]; /* by log2 of the rows */
    bool chosen[SIZES];
    gemm_plan *next;
};

static void lt_check(op_dev *d, cublasStatus_t rc, const char *what)
{
    if (rc != CUBLAS_STATUS_SUCCESS && d->status == cudaSuccess) {
        d->status = cudaErrorUnknown;
        snprintf(d->words, sizeof(d->words), "%s: %s", what, cublasLtGetStatusString(rc));
    }
}

static void make_layouts(op_dev *d, gemm_plan *g)
{
    layouts *l = &g->shape;
    int inner = g->transposed ? g->N : g->K, cols = g->transposed ? g->K : g->N;
    l->M = PLAN_ROWS;
    lt_check(d, cublasLtMatrixLayoutCreate(&l->w, CUDA_R_16BF, g->K, g->N, g->K), "matrix layout");
    lt_check(d, cublasLtMatrixLayoutCreate(&l->x, CUDA_R_16BF, inner, l->M, g->ldx), "matrix layout");
    lt_check(d, cublasLtMatrixLayoutCreate(&l->y, g->out_f32 ? CUDA_R_32F : CUDA_R_16BF, cols, l->M, g->ldy),
             "matrix layout");
}

static void set_rows(op_dev *d, gemm_plan *g, int M)
{
    uint64_t cols = (uint64_t)M;
    if (g->shape.M == M)
        return;
    g->shape.M = M;
    lt_check(d, cublasLtMatrixLayoutSetAttribute(g->shape.x, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof(cols)), "rows");
    lt_check(d, cublasLtMatrixLayoutSetAttribute(g->shape.y, CUBLASLT_MATRIX_LAYOUT_COLS, &cols, sizeof(cols)), "rows");
}

/* No split of the inner dimension. */
static bool keeps_order(const cublasLtMatmulAlgo_t *algo)
{
    int32_t split = 0;
    uint32_t reduction = 1;
    size_t n;
    return cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split, sizeof(split), &n) ==
               CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &reduction,
                                                sizeof(reduction), &n) == CUBLAS_STATUS_SUCCESS &&
           split <= 1 && reduction == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* The library's ranking for the rows that are set; only algorithms that keep the order of sums. */
static int ranking(op_dev *d, gemm_plan *g, cublasLtMatmulAlgo_t *out)
{
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t workspace = CUBLAS_WORKSPACE;
    int n = 0, kept = 0;

    lt_check(d, cublasLtMatmulPreferenceCreate(&pref), "preference");
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                         sizeof(reductions));
    cublasLtMatmulAlgoGetHeuristic(d->lt, g->desc, g->shape.w, g->shape.x, g->shape.y, g->shape.y, pref, CANDIDATES,
                                   found, &n);
    for (int i = 0; i < n; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && keeps_order(&found[i].algo))
            out[kept++] = found[i].algo;
    cublasLtMatmulPreferenceDestroy(pref);
    return kept;
}

static cublasStatus_t product(op_dev *d, const gemm_plan *g, const cublasLtMatmulAlgo_t *algo, const bf16 *x,
                              const bf16 *W, bool beta, void *y)
{
    static const float one = 1.f, zero = 0.f;
    return cublasLtMatmul(d->lt, g->desc, &one, W, g->shape.w, x, g->shape.x, beta ? &one : &zero, y, g->shape.y, y,
                          g->shape.y, algo, d->workspace, CUBLAS_WORKSPACE, d->stream);
}

/* ---- do two algorithms give the same bits? ---- */

__global__ void random_rows_kernel(bf16 *x, size_t n)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        x[i] = __float2bfloat16((float)(int32_t)rng_u32(0x5eed, (uint32_t)i) * 0x1p-31f);
}

__global__ void negate_kernel(const uint32_t *y, size_t n, uint32_t signs, uint32_t *out)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        out[i] = y[i] ^ signs;
}

__global__ void differ_kernel(const uint32_t *a, const uint32_t *b, size_t n, int *differ)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        if (a[i] != b[i])
            *differ = 1;
}

struct bit_check { /* in one piece of scratch memory: x, what y holds before (the rounded sums, negative), the
                    * reference's y, another's, the answer */
    char *x, *y2, *y0, *y1;
    int *differ;
    size_t words;
};

static bool check_begin(op_dev *d, gemm_plan *g, const bf16 *W, bit_check *c)
{
    size_t xb = (CHECK_ROWS * (size_t)g->ldx * 2 + 255) & ~(size_t)255,
           yb = CHECK_ROWS * (size_t)g->ldy * (g->out_f32 ? 4 : 2);
    c->words = yb / 4;
    yb = (yb + 255) & ~(size_t)255;
    c->x = (char *)dev_alloc(d, xb + 3 * yb + 256);
    if (!c->x)
        return false;
    c->y2 = c->x + xb;
    c->y0 = c->y2 + yb;
    c->y1 = c->y0 + yb;
    c->differ = (int *)(c->y1 + yb);
    set_rows(d, g, CHECK_ROWS);
    launch(d->stream, random_rows_kernel, 256, 256, 0, (bf16 *)c->x, xb / 2);
    DEV_CHECK(d, cudaMemsetAsync(c->y2, 0, 3 * yb, d->stream)); /* between the rows, too */
    if (product(d, g, &g->reference, (bf16 *)c->x, W, false, c->y0) != CUBLAS_STATUS_SUCCESS)
        return false;
    launch(d->stream, negate_kernel, 256, 256, 0, (uint32_t *)c->y0, c->words, g->out_f32 ? 0x80000000u : 0x80008000u,
           (uint32_t *)c->y2);
    DEV_CHECK(d, cudaMemcpyAsync(c->y0, c->y2, c->words * 4, cudaMemcpyDeviceToDevice, d->stream));
    return product(d, g, &g->reference, (bf16 *)c->x, W, true, c->y0) == CUBLAS_STATUS_SUCCESS;
}

static bool same_bits(op_dev *d, gemm_plan *g, const bf16 *W, const bit_check *c, const cublasLtMatmulAlgo_t *algo)
{
    int differ = 1;
    DEV_CHECK(d, cudaMemsetAsync(c->differ, 0, sizeof(int), d->stream));
    DEV_CHECK(d, cudaMemcpyAsync(c->y1, c->y2, c->words * 4, cudaMemcpyDeviceToDevice, d->stream));
    if (product(d, g, algo, (bf16 *)c->x, W, true, c->y1) != CUBLAS_STATUS_SUCCESS)
        return false;
    launch(d->stream, differ_kernel, 256, 256, 0, (uint32_t *)c->y0, (uint32_t *)c->y1, c->words, c->differ);
    DEV_CHECK(d, cudaMemcpyAsync(&differ, c->differ, sizeof(int), cudaMemcpyDeviceToHost, d->stream));
    DEV_CHECK(d, cudaStreamSynchronize(d->stream));
    return d->status == cudaSuccess && !differ;
}

/* The fastest of n algorithms on the rows at hand, y going to scratch memory.  All give the same bits, so what is
 * measured here changes no number.  0 where it cannot be measured. */
static int fastest(op_dev *d, gemm_plan *g, const cublasLtMatmulAlgo_t *algo, int n, int M, const bf16 *x,
                   const bf16 *W, bool beta)
{
    enum { RUNS = 3 };
    size_t bytes = (size_t)M * g->ldy * (g->out_f32 ? 4 : 2);
    cudaEvent_t begin = NULL, end = NULL;
    void *y = NULL;
    float least = INFINITY;
    int pick = 0;

    if (n < 2 || cudaMallocAsync(&y, bytes, d->stream) != cudaSuccess) {
        (void)cudaGetLastError(); /* no memory to spare: not an error */
        return 0;
    }
    DEV_CHECK(d, cudaMemsetAsync(y, 0, bytes, d->stream));
    DEV_CHECK(d, cudaEventCreate(&begin));
    DEV_CHECK(d, cudaEventCreate(&end));
    set_rows(d, g, M);
    for (int i = 0; i < n && d->status == cudaSuccess; i++) {
        float ms = INFINITY;
        bool ran = product(d, g, &algo[i], x, W, beta, y) == CUBLAS_STATUS_SUCCESS;
        DEV_CHECK(d, cudaEventRecord(begin, d->stream));
        for (int k = 0; k < RUNS && ran; k++)
            ran = product(d, g, &algo[i], x, W, beta, y) == CUBLAS_STATUS_SUCCESS;
        DEV_CHECK(d, cudaEventRecord(end, d->stream));
        DEV_CHECK(d, cudaEventSynchronize(end));
        DEV_CHECK(d, cudaEventElapsedTime(&ms, begin, end));
        if (ran && ms < least * 0.99f) { /* the library's ranking where it makes no difference */
            least = ms;
            pick = i;
        }
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    dev_free(d, y);
    return pick;
}

size_t gemm_scratch(size_t rows, size_t widest, size_t out_bytes)
{
    size_t y = rows * widest * out_bytes, check = CHECK_ROWS * widest * (2 + 3 * out_bytes) + 1024;
    return y > check ? y : check; /* one after the other */
}

/* The algorithm for up to 2^size rows.  Waits for the device, once for each size of each matrix shape. */
static void choose(op_dev *d, gemm_plan *g, int size, int M, const bf16 *x, const bf16 *W, bool beta)
{
    cublasLtMatmulAlgo_t found[CANDIDATES];
    bit_check c = {};
    int n, equal = 0;

    set_rows(d, g, 1 << size);
    n = ranking(d, g, found);
    if (check_begin(d, g, W, &c))
        for (int i = 0; i < n; i++)
            if (same_bits(d, g, W, &c, &found[i]))
                found[equal++] = found[i];
    dev_free(d, c.x);
    g->algo[size] = equal ? found[fastest(d, g, found, equal, M, x, W, beta)] : g->reference;
    g->chosen[size] = true;
}

static gemm_plan *plan(op_dev *d, bool transposed, int N, int K, int ldx, int ldy, bool out_f32)
{
    cublasOperation_t op_w = transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
    cublasLtMatmulAlgo_t found[CANDIDATES];
    gemm_plan *g;

    for (g = d->plans; g; g = g->next)
        if (g->transposed == transposed && g->N == N && g->K == K && g->ldx == ldx && g->ldy == ldy &&
            g->out_f32 == out_f32)
            return g;
    g = (gemm_plan *)calloc(1, sizeof(*g));
    if (!g) {
        dev_fail(d, cudaErrorMemoryAllocation, "GEMM plan");
        return NULL;
    }
    g->transposed = transposed;
    g->N = N;
    g->K = K;
    g->ldx = ldx;
    g->ldy = ldy;
    g->out_f32 = out_f32;
    lt_check(d, cublasLtMatmulDescCreate(&g->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product description");
    cublasLtMatmulDescSetAttribute(g->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_w, sizeof(op_w));
    make_layouts(d, g);
    if (ranking(d, g, found) > 0)
        g->reference = found[0];
    else
        lt_check(d, CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm that keeps the order of sums");
    g->next = d->plans;
    d->plans = g;
    return g;
}

void gemm(op_dev *d, bool transposed, int M, int N, int K, const bf16 *x, int ldx, const bf16 *W, bool beta, void *y,
          int ldy, bool out_f32)
{
    gemm_plan *g = plan(d, transposed, N, K, ldx, ldy, out_f32);
    int size = 7; /* 128 rows or fewer are one case */

    if (!g || d->status != cudaSuccess || M == 0)
        return;
    while (size + 1 < SIZES && M > 1 << size)
        size++;
    if (!g->chosen[size])
        choose(d, g, size, M, x, W, beta);
    TRACE(d, "gemm %s N %d K %d beta %d M %d", transposed ? "dx" : "y", N, K, beta, M);
    set_rows(d, g, M);
    lt_check(d, product(d, g, &g->algo[size], x, W, beta, y), "product");
}

void gemm_free_plans(op_dev *d)
{
    while (d->plans) {
        gemm_plan *g = d->plans;
        d->plans = g->next;
        cublasLtMatrixLayoutDestroy(g->shape.w);
        cublasLtMatrixLayoutDestroy(g->shape.x);
        cublasLtMatrixLayoutDestroy(g->shape.y);
        cublasLtMatmulDescDestroy(g->desc);
        free(g);
    }
}
