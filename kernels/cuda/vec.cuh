/* Vectors of bf16 as floats, and sums over a block. */
#ifndef DTX_CUDA_VEC_CUH
#define DTX_CUDA_VEC_CUH

#include "kernels/cuda/cuda.h"

template <int V> struct vec { /* V bf16 as floats */
    float f[V];
};

template <int V> __device__ __forceinline__ vec<V> load(const bf16 *p)
{
    vec<V> v;
    if constexpr (V == 8) {
        uint4 raw = *(const uint4 *)p;
        const __nv_bfloat162 *h = (const __nv_bfloat162 *)&raw;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = __bfloat1622float2(h[i]);
            v.f[2 * i] = f.x;
            v.f[2 * i + 1] = f.y;
        }
    } else {
        v.f[0] = __bfloat162float(*p);
    }
    return v;
}

template <int V> __device__ __forceinline__ void store(bf16 *p, const vec<V> &v)
{
    if constexpr (V == 8) {
        __nv_bfloat162 h[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            h[i] = __floats2bfloat162_rn(v.f[2 * i], v.f[2 * i + 1]);
        *(uint4 *)p = *(uint4 *)h;
    } else {
        *p = __float2bfloat16(v.f[0]);
    }
}

/* Sum over the block, the same in every thread; a fixed tree. */
__device__ __forceinline__ float block_sum(float x, float *scratch)
{
    for (int m = 16; m; m /= 2)
        x += __shfl_xor_sync(~0u, x, m);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        scratch[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0.f;
    for (int i = 0; i < (int)blockDim.x / 32; i++)
        sum += scratch[i];
    return sum;
}

#endif
