#include <cblas.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"

static struct {
    pthread_mutex_t lock;
    void *library; /* under lock; never closed: its threads and locks live as long as the process */
    __typeof__(cblas_sgemm) *sgemm; /* constant once the library is open */
    __typeof__(openblas_set_num_threads) *set_threads;
    __typeof__(openblas_get_config) *config;
    __typeof__(openblas_get_corename) *core;
} blas = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const char *best_core(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    return "Haswell"; /* AVX2 and FMA, which the device asks for anyway */
}

static int load(struct dtx_err *e)
{
    const char *chosen = getenv("OPENBLAS_CORETYPE");
    if (!chosen)
        setenv("OPENBLAS_CORETYPE", best_core(), 1);
    void *l = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (!chosen)
        unsetenv("OPENBLAS_CORETYPE");
    if (!l)
        return dtx_fail(e, -ENOENT, "OpenBLAS cannot be loaded (%s): install libopenblas0-pthread",
                        dlerror());
    blas.sgemm = (__typeof__(blas.sgemm))dlsym(l, "cblas_sgemm");
    blas.set_threads = (__typeof__(blas.set_threads))dlsym(l, "openblas_set_num_threads");
    blas.config = (__typeof__(blas.config))dlsym(l, "openblas_get_config");
    blas.core = (__typeof__(blas.core))dlsym(l, "openblas_get_corename");
    if (!blas.sgemm || !blas.set_threads || !blas.config || !blas.core) {
        dlclose(l);
        return dtx_fail(e, -ENOENT, "libopenblas.so.0 lacks functions of OpenBLAS");
    }
    blas.set_threads(1);
    blas.library = l;
    return 0;
}

int blas_open(struct dtx_err *e)
{
    pthread_mutex_lock(&blas.lock);
    int rc = blas.library ? 0 : load(e);
    pthread_mutex_unlock(&blas.lock);
    return rc;
}

void blas_describe(char *out, size_t n)
{
    snprintf(out, n, "%s, kernel %s", blas.config(), blas.core());
}

void cpu_gemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
              int ldb, float beta, float *c, int ldc)
{
    blas.sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, m, n, k, alpha,
               a, lda, b, ldb, beta, c, ldc);
}
