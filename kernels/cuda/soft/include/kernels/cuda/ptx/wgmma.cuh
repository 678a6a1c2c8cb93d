/* Stands in for ptx/wgmma.cuh on the device in software. */
#ifndef DTX_CUDA_PTX_WGMMA_CUH
#define DTX_CUDA_PTX_WGMMA_CUH

#include "kernels/cuda/descriptors.cuh"
#include "kernels/cuda/mma.cuh"

#define DTX_WGMMA 1

static inline void wg_fence()
{
}

static inline void wg_commit()
{
    soft_product_commit();
}

template <int N> static inline void wg_wait()
{
    soft_product_wait(N);
}

static inline void shared_for_matrix_unit()
{
}

template <int N, int N_MAJOR, int M_MAJOR = 0>
static inline void wg_tiles(float (*c)[4], uint64_t a, uint64_t b, int keep)
{
    soft_product_start({c, a, b, {0}, N, false, N_MAJOR != 0, M_MAJOR != 0, keep != 0});
}

template <int N, int N_MAJOR> static inline void wg_registers(float (*c)[4], const uint32_t a[4], uint64_t b, int keep)
{
    soft_product_start({c, 0, b, {a[0], a[1], a[2], a[3]}, N, true, N_MAJOR != 0, false, keep != 0});
}

#endif
