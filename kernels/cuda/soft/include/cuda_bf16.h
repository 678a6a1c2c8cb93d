/* Stands in for CUDA's header: what the kernels use of it. */
#ifndef DTX_SOFT_CUDA_BF16_H
#define DTX_SOFT_CUDA_BF16_H

#include <cstring>
#include <cuda_runtime.h>

struct __nv_bfloat16 {
    uint16_t bits;
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

static inline float __bfloat162float(__nv_bfloat16 v)
{
    uint32_t word = (uint32_t)v.bits << 16;
    float f;
    memcpy(&f, &word, 4);
    return f;
}

/* To the nearest, halfway to even. */
static inline __nv_bfloat16 __float2bfloat16(float f)
{
    uint32_t word;
    memcpy(&word, &f, 4);
    if (f != f)
        return {0x7fff};
    return {(uint16_t)((word + 0x7fff + (word >> 16 & 1)) >> 16)};
}

static inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y)
{
    return {__float2bfloat16(x), __float2bfloat16(y)};
}

static inline float2 __bfloat1622float2(__nv_bfloat162 v)
{
    return {__bfloat162float(v.x), __bfloat162float(v.y)};
}

#endif
