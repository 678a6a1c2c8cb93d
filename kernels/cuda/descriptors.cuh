/* Where the operands of wgmma (ptx/wgmma.cuh) lie in shared memory, in the words that it takes: the same on a GPU and
 * on the device in software. */
#ifndef DTX_CUDA_DESCRIPTORS_CUH
#define DTX_CUDA_DESCRIPTORS_CUH

#include "kernels/cuda/ptx/warp.cuh"

/* Descriptors: address / 16; bits 16: leading offset / 16; 32: stride offset / 16; 62: 1, 2, 3 = swizzle of 128, 64,
 * 32 bytes. */

/* Operand with k along the rows of 128 bytes; groups of 8 rows are 1024 bytes apart. */
__device__ __forceinline__ uint64_t k_major(const void *p)
{
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)64 << 32 | (uint64_t)1 << 62;
}

/* Operand b with k down the rows, n along them; `tile` bytes from one 64 columns of n to the next.  Operand a likewise,
 * with its 64 rows along those of the tile. */
__device__ __forceinline__ uint64_t n_major(const void *p, uint32_t tile)
{
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)(tile >> 4) << 16 | (uint64_t)64 << 32 |
           (uint64_t)1 << 62;
}

/* The same of a tile of N = 16, 32 or 64 columns, in rows of 32, 64 or 128 bytes: their 16-byte pieces p lie at
 * p ^ address / 128 % (N / 8). */
template <int N> __device__ __forceinline__ uint64_t n_major_narrow(const void *p)
{
    static_assert(N == 16 || N == 32 || N == 64, "as the swizzle allows");
    return (uint64_t)(smem_addr(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)N << 32 |
           (uint64_t)(N == 64   ? 1
                      : N == 32 ? 2
                                : 3)
               << 62;
}

#endif
