/* Launches of kernels, and the shared memory whose size a launch says. */
#ifndef DTX_CUDA_PTX_LAUNCH_CUH
#define DTX_CUDA_PTX_LAUNCH_CUH

#include <cuda_runtime.h>

/* The block's shared memory of that size, as T *name.  No function: with one, nvcc 13.0 orders the sums of addresses in
 * the LoRA kernels otherwise. */
#define DYNAMIC_SHARED(T, name) extern __shared__ __align__(16) T name[]

/* An error stays for cudaGetLastError.  NULL as an argument must be nullptr. */
template <typename... P, typename... A>
static inline void launch(cudaStream_t stream, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, A... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = stream;
    (void)cudaLaunchKernelEx(&config, kernel, args...);
}

#endif
