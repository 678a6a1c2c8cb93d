/* Stands in for ptx/launch.cuh on the device in software. */
#ifndef DTX_CUDA_PTX_LAUNCH_CUH
#define DTX_CUDA_PTX_LAUNCH_CUH

#include <cuda_runtime.h>

#define DYNAMIC_SHARED(T, name) T *name = (T *)soft_now->block->shared

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
