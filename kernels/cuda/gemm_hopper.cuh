/* Products with frozen matrices on Hopper, the LoRA part within (gemm_hopper.cu). */
#ifndef DTX_CUDA_GEMM_HOPPER_CUH
#define DTX_CUDA_GEMM_HOPPER_CUH

#include "kernels/cuda/cuda.h"

#include <cuda.h>

struct hopper_shape {
    int columns, cluster, group; /* of a tile; blocks that share W; clusters whose rows go together */
};

/* bf16 [rows, columns], a row every `stride` elements; boxes of 64, 32 or 16 columns, swizzled as ptx/wgmma.cuh says.
 */
void hopper_map(op_dev *d, CUtensorMap *m, const bf16 *p, int columns, int rows, size_t stride, int box_rows,
                int box_columns = 64);
cudaError_t hopper_gemm_setup(op_dev *d);
void hopper_gemm_close(op_dev *d);
/* By the base's shape alone. */
bool hopper_gemm_fits(const op_dev *d, const op_linear *l);
/* y = add + x W^T + bias + LoRA from h (NULL: none); add may be y. */
void hopper_linear(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, const bf16 *add, bf16 *y,
                   const bf16 *h);
/* dx = dy W + LoRA from dh (NULL: none), kept: lora_kept. */
void hopper_linear_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *dh,
                        const uint32_t *kept, bf16 *dx);

#endif
