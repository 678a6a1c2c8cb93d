/*
 * Inside of the CPU device.  Activations and weights are float32.
 *
 * Row invariance (the promise of kernels/ops.h) is kept like this: BLAS changes the bits of a row with the
 * number of rows of a call, so every segment is cut into tiles of TILE_ROWS rows counted from its own first
 * row, the last one rounded up to a multiple of ROW_ALIGN (the padding is there), and each tile is
 * single-threaded BLAS calls whose shapes follow from the segment and the matrix alone; threads take tiles.
 * Rows of decode packs never go through BLAS.
 */
#ifndef DTX_CPU_H
#define DTX_CPU_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/cpu/pool.h"
#include "kernels/ops.h"

enum {
    ROW_ALIGN = 32,
    TILE_ROWS = 256,
    HEAD_ROWS = 64,  /* labelled rows whose logits exist at a time, per thread */
    QUERY_ROWS = 64, /* queries of one attention block */
    PACK_ROWS = 8192,
};

struct scratch {
    float *p;
    size_t n;
};

struct op_dev {
    struct pool *pool;
    struct scratch *scratch; /* one per thread */
    struct scratch shared;   /* for values that threads hand to each other within one operation */
    struct scratch shared2;
    struct decode_run *run; /* decode_run.c; NULL: none loaded */
    _Atomic int error;      /* negative errno, sticky */
};

struct tile {
    int32_t seg, row0, m; /* m rows from row0, with padding */
};

struct cpu_pack {
    struct tile *tiles;
    int32_t n_tiles;
};

/* n floats of a thread's own scratch, contents undefined; NULL (and the device failed): out of memory. */
float *cpu_scratch(struct op_dev *d, int thread, size_t n);
float *cpu_shared(struct op_dev *d, struct scratch *s, size_t n);
void cpu_failed(struct op_dev *d, int code);

static inline int div_up(int a, int b)
{
    return (a + b - 1) / b;
}

/* Columns of one task of a GEMM with n columns: about 256, at least two tasks for 128 and more. */
static inline int col_block(int n)
{
    int blocks = div_up(n, 256);
    if (blocks == 1 && n >= 128)
        blocks = 2;
    return div_up(div_up(n, blocks), 16) * 16;
}

/* C[m, n] = alpha op(A) op(B) + beta C, row-major, on this thread; ta: A is stored [k, m]; tb: B is stored
 * [n, k]. */
void cpu_gemm(bool ta, bool tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
              int ldb, float beta, float *c, int ldc);

/* The operations, by file. */
void cpu_embed(struct op_dev *d, const struct op_pack *p, const void *E, int32_t hidden, void *x);
void cpu_rmsnorm(struct op_dev *d, const struct op_pack *p, const void *x, const void *w, int32_t n,
                 float eps, void *y, float *rstd);
void cpu_rmsnorm_back(struct op_dev *d, const struct op_pack *p, const void *dy, const void *x, const void *w,
                      const float *rstd, int32_t n, const void *add, void *dx);
void cpu_rope(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const float *table,
              bool inverse, void *qkv);
void cpu_swiglu(struct op_dev *d, const struct op_pack *p, const void *gu, int32_t ffn, void *y);
void cpu_swiglu_back(struct op_dev *d, const struct op_pack *p, const void *dy, const void *gu, int32_t ffn,
                     void *dgu);
void cpu_linear(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *x,
                const void *add, void *y, float *h);
size_t cpu_linear_h_floats(const struct op_pack *p, const struct op_linear *l);
void cpu_linear_back(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *dy,
                     const void *x, const float *h, void *dx);
void cpu_linear_decode(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const float *x,
                       const float *add, float *y);
void cpu_attention(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const void *qkv,
                   void *o, float *lse);
void cpu_attention_back(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                        const void *dout, const void *o, const void *qkv, const float *lse,
                        const float *table, void *dqkv);
void cpu_kv_store(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const void *qkv);
void cpu_attention_cached(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                          const void *qkv, void *o);
void cpu_head_loss(struct op_dev *d, const struct op_pack *p, const void *x, const void *W, int32_t vocab,
                   int32_t hidden, double *loss, void *dx);
void cpu_logits(struct op_dev *d, const void *x, const int32_t *rows, int32_t n, const void *W, int32_t vocab,
                int32_t hidden, float *logits);
void cpu_choose(struct op_dev *d, const float *logits, int32_t n, int32_t vocab, const struct op_choice *how,
                int32_t *out);
int cpu_decode_load(struct op_dev *d, struct op_pack *p, const struct op_decode *s);
void cpu_decode_step(struct op_dev *d);
int cpu_decode_take(struct op_dev *d, int32_t *tokens);
void cpu_decode_close(struct op_dev *d);
void cpu_optim(struct op_dev *d, const struct op_optim *jobs, int32_t n, const double *loss,
               struct op_outcome *out);

#endif
