/*
 * Hopper's matrix instruction (sm_90a): one warpgroup, c[64 x N] (+)= a[64 x 16] b[16 x N], bf16 -> float32.  The
 * operands in shared memory are tiles of 64 columns: rows of 128 bytes, their eight 16-byte pieces swizzled (piece p of
 * row r lies at p ^ r % 8), tiles at multiples of 1024 bytes.  The accumulators lie as those of mma.sync: warp w has
 * rows 16 w ...
 */
#ifndef DTX_CUDA_PTX_WGMMA_CUH
#define DTX_CUDA_PTX_WGMMA_CUH

#include "kernels/cuda/descriptors.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DTX_WGMMA 1

__device__ __forceinline__ void wg_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wg_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int N> __device__ __forceinline__ void wg_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

/* What this thread put into shared memory is seen by the matrix unit after this and a barrier. */
__device__ __forceinline__ void shared_for_matrix_unit()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* keep 0: c is overwritten.  b: k-major or N_MAJOR (0 or 1). */

#define WG_FOUR(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])

/* Both operands in shared memory, a k-major or M_MAJOR. */
template <int N, int N_MAJOR, int M_MAJOR = 0>
__device__ __forceinline__ void wg_tiles(float (*c)[4], uint64_t a, uint64_t b, int keep)
{
    static_assert(N == 16 || N == 32 || N == 64 || N == 128 || N == 256, "shapes that are used");
    if constexpr (N == 16)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, p, 1, 1, %12, %11;\n}"
                     : WG_FOUR(0), WG_FOUR(1)
                     : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR), "n"(M_MAJOR));
    else if constexpr (N == 32)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, %16, %17, p, 1, 1, "
                     "%20, %19;\n}"
                     : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3)
                     : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR), "n"(M_MAJOR));
    else if constexpr (N == 64)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                     "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, %32, %33, p, 1, 1, %36, %35;\n}"
                     : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3), WG_FOUR(4), WG_FOUR(5), WG_FOUR(6), WG_FOUR(7)
                     : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR), "n"(M_MAJOR));
    else if constexpr (N == 128)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                     "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, "
                     "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                     "%58, %59, %60, %61, %62, %63}, %64, %65, p, 1, 1, %68, %67;\n}"
                     : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3), WG_FOUR(4), WG_FOUR(5), WG_FOUR(6), WG_FOUR(7),
                       WG_FOUR(8), WG_FOUR(9), WG_FOUR(10), WG_FOUR(11), WG_FOUR(12), WG_FOUR(13), WG_FOUR(14),
                       WG_FOUR(15)
                     : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR), "n"(M_MAJOR));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
                     "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, "
                     "%39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, "
                     "%58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, "
                     "%77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
                     "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
                     "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
                     "%127}, %128, %129, p, 1, 1, %132, %131;\n}"
                     : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3), WG_FOUR(4), WG_FOUR(5), WG_FOUR(6), WG_FOUR(7),
                       WG_FOUR(8), WG_FOUR(9), WG_FOUR(10), WG_FOUR(11), WG_FOUR(12), WG_FOUR(13), WG_FOUR(14),
                       WG_FOUR(15), WG_FOUR(16), WG_FOUR(17), WG_FOUR(18), WG_FOUR(19), WG_FOUR(20), WG_FOUR(21),
                       WG_FOUR(22), WG_FOUR(23), WG_FOUR(24), WG_FOUR(25), WG_FOUR(26), WG_FOUR(27), WG_FOUR(28),
                       WG_FOUR(29), WG_FOUR(30), WG_FOUR(31)
                     : "l"(a), "l"(b), "r"(keep), "n"(N_MAJOR), "n"(M_MAJOR));
}

/* a in registers, as mma.sync has it. */
template <int N, int N_MAJOR>
__device__ __forceinline__ void wg_registers(float (*c)[4], const uint32_t a[4], uint64_t b, int keep)
{
    static_assert(N == 64 || N == 128, "shapes that are used");
    if constexpr (N == 64)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
                     "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, "
                     "1, 1, %38;\n}"
                     : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3), WG_FOUR(4), WG_FOUR(5), WG_FOUR(6), WG_FOUR(7)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(N_MAJOR));
    else
        asm volatile(
            "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
            "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
            "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "
            "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "
            "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "
            "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}"
            : WG_FOUR(0), WG_FOUR(1), WG_FOUR(2), WG_FOUR(3), WG_FOUR(4), WG_FOUR(5), WG_FOUR(6), WG_FOUR(7),
              WG_FOUR(8), WG_FOUR(9), WG_FOUR(10), WG_FOUR(11), WG_FOUR(12), WG_FOUR(13), WG_FOUR(14), WG_FOUR(15)
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(N_MAJOR));
}

#undef WG_FOUR

#endif
#endif
