/* The operands of mma (ptx/warp.cuh): pairs of bf16, and pieces of tiles in shared memory. */
#ifndef DTX_CUDA_MMA_CUH
#define DTX_CUDA_MMA_CUH

#include "kernels/cuda/ptx/warp.cuh"

__device__ __forceinline__ uint32_t pack(float lo, float hi)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    return *(uint32_t *)&v;
}

/* Tiles in shared memory have rows of LD elements, LD * 2 bytes = 16 mod 32 or so: no bank conflicts in ldmatrix. */

/* A operand: rows row.., columns col.. of tile[rows][LD]. */
template <int LD> __device__ __forceinline__ void frag_a(uint32_t a[4], const __nv_bfloat16 *tile, int row, int col)
{
    int lane = threadIdx.x % 32;
    load4(a, tile + (row + lane % 16) * LD + col + lane / 16 * 8);
}

/* A operand of the transposed tile: a[m][k] = tile[k][m]; m from col, k from row. */
template <int LD> __device__ __forceinline__ void frag_a_t(uint32_t a[4], const __nv_bfloat16 *tile, int row, int col)
{
    int lane = threadIdx.x % 32;
    load4t(a, tile + (row + lane % 8 + lane / 16 * 8) * LD + col + lane / 8 % 2 * 8);
}

/* B operand of X tile^T: n = 16 rows from row (b[0..1]: first 8, b[2..3]: next), k = 16 columns from col. */
template <int LD> __device__ __forceinline__ void frag_b(uint32_t b[4], const __nv_bfloat16 *tile, int row, int col)
{
    int lane = threadIdx.x % 32;
    load4(b, tile + (row + lane % 8 + lane / 16 * 8) * LD + col + lane / 8 % 2 * 8);
}

/* B operand of X tile: k = 16 rows from row, n = 16 columns from col. */
template <int LD> __device__ __forceinline__ void frag_b_t(uint32_t b[4], const __nv_bfloat16 *tile, int row, int col)
{
    int lane = threadIdx.x % 32;
    load4t(b, tile + (row + lane % 16) * LD + col + lane / 16 * 8);
}

#endif
