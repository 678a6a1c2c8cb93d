/* lora_dy of lora_back.cu, for Hopper (lora_dy_hopper.cu). */
#ifndef DTX_CUDA_LORA_DY_HOPPER_CUH
#define DTX_CUDA_LORA_DY_HOPPER_CUH

#include "kernels/cuda/lora.cuh"

void hopper_dy_setup(op_dev *d);
/* By the base's shape and where matrices lie alone. */
bool hopper_dy_fits(const op_dev *d, const lora_args &a, const bf16 *dy, const bf16 *h);
/* As lora_dy_kernel, whose tiles have `cols` columns, `tiles` of them; partial: NULL if no segment has several slices.
 */
void hopper_dy(op_dev *d, const lora_args &a, int slices, int cols, int tiles, const bf16 *dy, const bf16 *h,
               float *parts, float *partial);

#endif
