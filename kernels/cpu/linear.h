/* What linear.c and linear_back.c share: an adapter's matrices for one part of a linear, and dropout. */
#ifndef DTX_CPU_LINEAR_H
#define DTX_CPU_LINEAR_H

#include "kernels/cpu/cpu.h"
#include "kernels/rng.h"

struct lora_part {
    const float *A, *B; /* [rank, in], [part's columns, rank] */
    float *dA, *dB;     /* NULL: forward only */
    int rank, target;
    float scale, dropout;
    size_t h0; /* where h of this segment and part begins; rows of rank floats */
};

/* False: this segment has no adapter for that part. */
bool lora_part(const struct op_pack *p, const struct op_linear *l, int32_t seg, int part,
               struct lora_part *out);

/* out[i] = (add ? add[i] : 0) + mask(first + i) x[i] / (1 - p) for n inputs of one row.  Padding: as if
 * masked. */
void lora_drop_row(const struct op_pack *p, const struct op_linear *l, const struct lora_part *lp,
                   int32_t row, int32_t first, int32_t n, const float *x, const float *add, float *out);

/* drop(x) of a run of rows: x itself without dropout, else made in the thread's scratch (NULL: out of
 * memory). */
const float *lora_dropped(struct op_dev *d, const struct op_pack *p, const struct op_linear *l,
                          const struct lora_part *lp, const float *x, int32_t row0, int32_t rows, int thread);

#endif
