/* Between decode_run.cu and the kernel that ends a step (choose.cu). */
#ifndef DTX_CUDA_DECODE_RUN_CUH
#define DTX_CUDA_DECODE_RUN_CUH

#include "kernels/cuda/cuda.h"

struct step_tables { /* moved on with the choice of each row's token; ids NULL: nothing to move on */
    int32_t *ids, *pos;
    op_seq *seqs;
};

/* choice [n] and out [n] on the device; with tables, choice's numbers count up too. */
void choose_launch(op_dev *d, const float *logits, int32_t n, int32_t vocab, op_choice *choice, int32_t *out,
                   step_tables t);

#endif
