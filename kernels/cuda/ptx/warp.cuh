/* What a warp does beyond plain C++: cp.async, ldmatrix, stmatrix, mma.sync m16n8k16 (bf16 x bf16 -> float32), the
 * chain of kernels, barriers by number. */
#ifndef DTX_CUDA_PTX_WARP_CUH
#define DTX_CUDA_PTX_WARP_CUH

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

/* ---- four 8 x 8 tiles between shared memory and a warp's registers; each lane gives the place of one row ---- */

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

/* By address, in order with other accesses to memory. */
__device__ __forceinline__ void load4_at(uint32_t r[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

/* sm_90 and newer. */
__device__ __forceinline__ void load4t_at(uint32_t r[4], uint32_t from)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(from)
                 : "memory");
}

__device__ __forceinline__ void store4_at(uint32_t to, const uint32_t r[4])
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/* ---- arithmetic ---- */

/* c[16 x 8] += a[16 x 16] b[16 x 8].  Lane: g = lane / 4, t = lane % 4.  c: rows g, g (+1 column), g + 8, g + 8;
 * columns 2t, 2t + 1. */
__device__ __forceinline__ void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* a << 16, where the compiler does not join it with what is done next. */
__device__ __forceinline__ uint32_t lower_half_up(uint32_t a)
{
    uint32_t up;
    asm("shl.b32 %0, %1, 16;" : "=r"(up) : "r"(a));
    return up;
}

/* All bits of the lower half where a < 0, of the upper half where b < 0, as signed numbers. */
__device__ __forceinline__ uint32_t signs(uint32_t a, uint32_t b)
{
    uint32_t m;
    asm("prmt.b32 %0, %1, %2, 0xffbb;" : "=r"(m) : "r"(a), "r"(b));
    return m;
}

/* All bits of each half that is < 0. */
__device__ __forceinline__ uint32_t half_signs(uint32_t a)
{
    uint32_t m;
    asm("prmt.b32 %0, %1, %1, 0xbb99;" : "=r"(m) : "r"(a));
    return m;
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Registers that the matrix unit wrote are read after this only: to the compiler, arithmetic and a wait have no order.
 */
template <int N> __device__ __forceinline__ void settled(float (*c)[4])
{
#pragma unroll
    for (int n = 0; n < N; n++)
        asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

/* ---- other kernels, other warps ---- */

/* What earlier kernels wrote may be read, and anything written, only after this. */
__device__ __forceinline__ void chain_wait()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The next kernel of the chain may be put on free multiprocessors once every block has said this. */
__device__ __forceinline__ void chain_next()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* 2 or 16 bytes as they are now: for a loop that waits until other blocks have written them.  Those blocks must have
 * started: they have lower indexes. */
__device__ __forceinline__ uint16_t poll2(const void *p)
{
    uint16_t v;
    asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ uint4 poll16(const void *p)
{
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}

/* The loads before this are issued before those behind it. */
__device__ __forceinline__ void in_order()
{
    asm volatile("bar.warp.sync 0xffffffff;" ::: "memory");
}

__device__ __forceinline__ void prefetch_l2(const void *p)
{
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

/* __syncthreads() of N threads of the block, whole warps; ID from 1 on. */
template <int ID, int N> __device__ __forceinline__ void named_barrier()
{
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(N) : "memory");
}

#endif
