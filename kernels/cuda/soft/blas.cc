/* cuBLASLt of the device in software: y = op(A) B + beta C, every sum in ascending order, in float32. */
#include <cublasLt.h>
#include <cuda_bf16.h>

#include <vector>

cublasStatus_t cublasLtCreate(cublasLtHandle_t *lt)
{
    *lt = new int();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t lt)
{
    delete lt;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion()
{
    return 0;
}

const char *cublasLtGetStatusString(cublasStatus_t rc)
{
    return rc == CUBLAS_STATUS_SUCCESS ? "success" : "failure";
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType_t type, uint64_t rows, uint64_t cols,
                                          int64_t ld)
{
    *l = new soft_layout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, int attribute, const void *value, size_t n)
{
    if (attribute != CUBLASLT_MATRIX_LAYOUT_COLS || n != sizeof(l->cols))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&l->cols, value, n);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    delete l;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t, cudaDataType_t)
{
    *d = new soft_desc();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int attribute, const void *value, size_t n)
{
    if (attribute != CUBLASLT_MATMUL_DESC_TRANSA || n != sizeof(d->transa))
        return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(&d->transa, value, n);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    delete d;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    *p = new int();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, int, const void *, size_t)
{
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    delete p;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *, int attribute, void *value, size_t n,
                                                    size_t *written)
{
    memset(value, 0, n);
    if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM)
        *(int32_t *)value = 1;
    *written = n;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int room,
                                              cublasLtMatmulHeuristicResult_t *found, int *n)
{
    *n = room ? 1 : 0;
    found[0] = {{0}, CUBLAS_STATUS_SUCCESS};
    return CUBLAS_STATUS_SUCCESS;
}

struct product {
    soft_desc desc;
    soft_layout a, b, d;
    const __nv_bfloat16 *A, *B;
    void *D;
    float beta;
};

static void store(const product &p, size_t at, float sum)
{
    if (p.d.type == CUDA_R_32F) {
        float *y = (float *)p.D + at;
        *y = sum + (p.beta != 0.f ? p.beta * *y : 0.f);
    } else {
        __nv_bfloat16 *y = (__nv_bfloat16 *)p.D + at;
        *y = __float2bfloat16(sum + (p.beta != 0.f ? p.beta * __bfloat162float(*y) : 0.f));
    }
}

/* COLS columns of the result at a time, so that A is read and converted seldom. */
static void multiply(const product &p)
{
    enum { COLS = 16 };
    size_t m = p.d.rows, inner = p.b.rows;
    bool t = p.desc.transa == CUBLAS_OP_T;
    std::vector<float> b(inner * COLS), sum(m * COLS);
    for (size_t j0 = 0; j0 < p.d.cols; j0 += COLS) {
        size_t n = std::min(p.d.cols - j0, (size_t)COLS);
        for (size_t j = 0; j < n; j++)
            for (size_t k = 0; k < inner; k++)
                b[k * COLS + j] = __bfloat162float(p.B[(j0 + j) * (size_t)p.b.ld + k]);
        std::fill(sum.begin(), sum.end(), 0.f);
        for (size_t x = 0; x < (t ? m : inner); x++) /* as A lies in memory */
            for (size_t y = 0; y < (t ? inner : m); y++) {
                size_t i = t ? x : y, k = t ? y : x;
                float a = __bfloat162float(p.A[x * (size_t)p.a.ld + y]);
                for (int j = 0; j < COLS; j++)
                    sum[i * COLS + j] += a * b[k * COLS + j];
            }
        for (size_t j = 0; j < n; j++)
            for (size_t i = 0; i < m; i++)
                store(p, (j0 + j) * (size_t)p.d.ld + i, sum[i * COLS + j]);
    }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb, const void *beta,
                              const void *c, cublasLtMatrixLayout_t, void *d, cublasLtMatrixLayout_t ld,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t stream)
{
    product p = {*desc, *la, *lb, *ld, (const __nv_bfloat16 *)a, (const __nv_bfloat16 *)b, d, *(const float *)beta};
    bool t = desc->transa == CUBLAS_OP_T;
    if (*(const float *)alpha != 1.f || c != d || la->type != CUDA_R_16BF || lb->type != CUDA_R_16BF ||
        (t ? la->rows : la->cols) != lb->rows || (t ? la->cols : la->rows) != ld->rows || lb->cols != ld->cols)
        return CUBLAS_STATUS_INVALID_VALUE;
    soft_enqueue(stream, [p] { multiply(p); });
    return CUBLAS_STATUS_SUCCESS;
}
