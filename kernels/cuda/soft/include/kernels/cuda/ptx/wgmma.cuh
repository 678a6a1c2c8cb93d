/* Stands in for ptx/wgmma.cuh on the device in software. */
#ifndef DTX_CUDA_PTX_WGMMA_CUH
#define DTX_CUDA_PTX_WGMMA_CUH

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ptx/warp.cuh"

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

static inline uint64_t k_major(const void *p)
{
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

static inline uint64_t n_major(const void *p, uint32_t tile)
{
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)(tile >> 4) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

template <int N> static inline uint64_t n_major_narrow(const void *p)
{
    static_assert(N == 16 || N == 32 || N == 64, "as the swizzle allows");
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)N << 32 |
           (uint64_t)(N == 64   ? 1
                      : N == 32 ? 2
                                : 3)
               << 62;
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
