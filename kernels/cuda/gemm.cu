/*
 * Products with frozen matrices, by cuBLASLt.
 *
 * Row invariance: the numbers of a row must not depend on how many rows there are.  So one algorithm is chosen for each
 * (orientation, N, K, output type, beta), by the library's own ranking for PLAN_ROWS rows, and used for every number of
 * rows.  Algorithms that split the inner dimension (split-K, stream-K) are left out: their sums depend on the grid.
 * The ranking is a pure function of library version and device, both part of the fingerprint.
 */
#include "kernels/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>

enum { PLAN_ROWS = 2048, CANDIDATES = 32 };

struct gemm_plan {
    bool transposed, beta, out_f32;
    int N, K;
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulAlgo_t algo;
    gemm_plan *next;
};

static void lt_check(op_dev *d, cublasStatus_t rc, const char *what)
{
    if (rc != CUBLAS_STATUS_SUCCESS && d->status == cudaSuccess) {
        d->status = cudaErrorUnknown;
        snprintf(d->words, sizeof(d->words), "%s: %s", what, cublasLtGetStatusString(rc));
    }
}

/* Column-major views: y^T [cols, M] = op(W) x^T.  W is [N, K] row-major = K x N column-major. */
struct layouts {
    cublasLtMatrixLayout_t w, x, y;
};

static void make_layouts(op_dev *d, const gemm_plan *g, int M, layouts *l)
{
    int inner = g->transposed ? g->N : g->K, cols = g->transposed ? g->K : g->N;
    lt_check(d, cublasLtMatrixLayoutCreate(&l->w, CUDA_R_16BF, g->K, g->N, g->K), "matrix layout");
    lt_check(d, cublasLtMatrixLayoutCreate(&l->x, CUDA_R_16BF, inner, M, inner), "matrix layout");
    lt_check(d, cublasLtMatrixLayoutCreate(&l->y, g->out_f32 ? CUDA_R_32F : CUDA_R_16BF, cols, M, cols),
             "matrix layout");
}

static void free_layouts(layouts *l)
{
    cublasLtMatrixLayoutDestroy(l->w);
    cublasLtMatrixLayoutDestroy(l->x);
    cublasLtMatrixLayoutDestroy(l->y);
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

static void choose(op_dev *d, gemm_plan *g)
{
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulHeuristicResult_t found[CANDIDATES];
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_NONE;
    size_t workspace = CUBLAS_WORKSPACE;
    layouts l;
    int n = 0, pick = -1;

    make_layouts(d, g, PLAN_ROWS, &l);
    lt_check(d, cublasLtMatmulPreferenceCreate(&pref), "preference");
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                         sizeof(reductions));
    lt_check(d, cublasLtMatmulAlgoGetHeuristic(d->lt, g->desc, l.w, l.x, l.y, l.y, pref, CANDIDATES, found, &n),
             "choosing an algorithm");
    for (int i = 0; i < n && pick < 0; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && keeps_order(&found[i].algo))
            pick = i;
    if (pick < 0)
        lt_check(d, CUBLAS_STATUS_NOT_SUPPORTED, "no algorithm that keeps the order of sums");
    else
        g->algo = found[pick].algo;
    cublasLtMatmulPreferenceDestroy(pref);
    free_layouts(&l);
}

static gemm_plan *plan(op_dev *d, bool transposed, int N, int K, bool beta, bool out_f32)
{
    cublasOperation_t op_w = transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
    gemm_plan *g;

    for (g = d->plans; g; g = g->next)
        if (g->transposed == transposed && g->N == N && g->K == K && g->beta == beta && g->out_f32 == out_f32)
            return g;
    g = (gemm_plan *)calloc(1, sizeof(*g));
    if (!g) {
        dev_fail(d, cudaErrorMemoryAllocation, "GEMM plan");
        return NULL;
    }
    g->transposed = transposed;
    g->N = N;
    g->K = K;
    g->beta = beta;
    g->out_f32 = out_f32;
    lt_check(d, cublasLtMatmulDescCreate(&g->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "product description");
    cublasLtMatmulDescSetAttribute(g->desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_w, sizeof(op_w));
    choose(d, g);
    g->next = d->plans;
    d->plans = g;
    return g;
}

void gemm(op_dev *d, bool transposed, int M, int N, int K, const bf16 *x, const bf16 *W, bool beta, void *y,
          bool out_f32)
{
    TRACE(d, "gemm %s N %d K %d beta %d M %d", transposed ? "dx" : "y", N, K, beta, M);
    float one = 1.f, zero = 0.f;
    gemm_plan *g = plan(d, transposed, N, K, beta, out_f32);
    layouts l;

    if (!g || d->status != cudaSuccess || M == 0)
        return;
    make_layouts(d, g, M, &l);
    lt_check(d,
             cublasLtMatmul(d->lt, g->desc, &one, W, l.w, x, l.x, beta ? &one : &zero, y, l.y, y, l.y, &g->algo,
                            d->workspace, CUBLAS_WORKSPACE, d->stream),
             "product");
    free_layouts(&l);
}

void gemm_free_plans(op_dev *d)
{
    while (d->plans) {
        gemm_plan *g = d->plans;
        d->plans = g->next;
        cublasLtMatmulDescDestroy(g->desc);
        free(g);
    }
}
