/* attention_hopper.cu, attention_hopper_back.cu: attention.cuh's kernels for devices of compute capability 9.0, head
 * sizes 64 and 128. */
#ifndef DTX_CUDA_ATTENTION_HOPPER_CUH
#define DTX_CUDA_ATTENTION_HOPPER_CUH

#include "kernels/cuda/attention.cuh"

cudaError_t hopper_attn_setup();                    /* once for each device */
cudaError_t hopper_attn_back_setup(cudaError_t rc); /* its second half, unless rc is an error */
cudaError_t hopper_attn_forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                                __nv_bfloat16 *o, float *lse);
/* Makes delta, too. */
cudaError_t hopper_attn_backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                                 const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                                 const __nv_bfloat16 *o, const float *lse, const __nv_bfloat16 *d_o, float *delta,
                                 __nv_bfloat16 *dq, __nv_bfloat16 *dk, __nv_bfloat16 *dv);

#endif
