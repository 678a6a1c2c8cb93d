/* Pieces of PTX that the kernels share: cp.async, ldmatrix, mma.sync m16n8k16 (bf16 x bf16 -> float32). */
#ifndef DTX_CUDA_MMA_CUH
#define DTX_CUDA_MMA_CUH

#include <cuda_bf16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t smem_addr(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes global -> shared; zeros where not valid (global is not read then). */
__device__ __forceinline__ void copy16(void *smem, const void *global, bool valid)
{
    int n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(smem)), "l"(global), "r"(n));
}

/* 4 bytes global -> shared; zero where not valid. */
__device__ __forceinline__ void copy4(void *smem, const void *global, bool valid)
{
    int n = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(smem_addr(smem)), "l"(global), "r"(n));
}

__device__ __forceinline__ void copy_commit()
{
    asm volatile("cp.async.commit_group;");
}

template <int N> __device__ __forceinline__ void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
}

__device__ __forceinline__ void load4(uint32_t r[4], const __nv_bfloat16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(p)));
}

__device__ __forceinline__ void load4t(uint32_t r[4], const __nv_bfloat16 *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem_addr(p)));
}

/* c[16 x 8] += a[16 x 16] b[16 x 8].  Lane: g = lane / 4, t = lane % 4.  c: rows g, g (+1 column), g + 8, g + 8;
 * columns 2t, 2t + 1. */
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

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
