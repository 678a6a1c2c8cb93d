/* Stands in for ptx/warp.cuh on the device in software: same names, same meaning. */
#ifndef DTX_CUDA_PTX_WARP_CUH
#define DTX_CUDA_PTX_WARP_CUH

#include <cmath>
#include <cstring>
#include <cuda_bf16.h>

#include "kernels/cuda/soft/soft.h"

static inline uint32_t smem_addr(const void *p)
{
    return soft_address(p);
}

static inline void copy16(void *smem, const void *global, bool valid)
{
    soft_copy_start(smem, global, valid ? 16 : 0, 16);
}

static inline void copy4(void *smem, const void *global, bool valid)
{
    soft_copy_start(smem, global, valid ? 4 : 0, 4);
}

static inline void copy_commit()
{
    soft_copy_commit();
}

template <int N> static inline void copy_wait()
{
    soft_copy_wait(N);
}

/* ldmatrix: lane i gives the address of row i % 8 of matrix i / 8; a lane gets a pair of each matrix. */
static inline void soft_load4(uint32_t r[4], const void *p, bool transposed)
{
    const unsigned char *all = soft_show(&p, sizeof(p));
    unsigned lane = threadIdx.x % 32;
    for (unsigned m = 0; m < 4; m++)
        for (unsigned j = 0; j < 2; j++) {
            unsigned row = transposed ? lane % 4 * 2 + j : lane / 4, column = transposed ? lane / 4 : lane % 4 * 2 + j;
            const uint16_t *at;
            memcpy(&at, all + (m * 8 + row) * 64, sizeof(at));
            if ((uintptr_t)at % 16)
                soft_die("ldmatrix: an odd address");
            memcpy((char *)&r[m] + j * 2, at + column, 2);
        }
    soft_show(NULL, 0); /* the others may have read what this lane writes next */
}

static inline void load4(uint32_t r[4], const __nv_bfloat16 *p)
{
    soft_load4(r, p, false);
}

static inline void load4t(uint32_t r[4], const __nv_bfloat16 *p)
{
    soft_load4(r, p, true);
}

static inline void load4_at(uint32_t r[4], uint32_t from)
{
    soft_load4(r, soft_pointer(from), false);
}

static inline void load4t_at(uint32_t r[4], uint32_t from)
{
    soft_load4(r, soft_pointer(from), true);
}

static inline void store4_at(uint32_t to, const uint32_t r[4])
{
    struct {
        uint32_t to, r[4];
    } mine = {to, {r[0], r[1], r[2], r[3]}}, from;
    const unsigned char *all = soft_show(&mine, sizeof(mine));
    unsigned lane = threadIdx.x % 32; /* writes the row whose address it gave */
    unsigned char *row = soft_pointer(to);
    for (unsigned q = 0; q < 4; q++) {
        memcpy(&from, all + (lane % 8 * 4 + q) * 64, sizeof(from));
        memcpy(row + q * 4, &from.r[lane / 8], 4);
    }
    soft_show(NULL, 0);
}

static inline void mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    soft_mma(c, a, b0, b1);
}

static inline uint32_t lower_half_up(uint32_t a)
{
    return a << 16;
}

static inline uint32_t signs(uint32_t a, uint32_t b)
{
    return (a >> 31 ? 0xffffu : 0) | (b >> 31 ? 0xffff0000u : 0);
}

static inline uint32_t half_signs(uint32_t a)
{
    return signs(a << 16, a);
}

static inline float exp2_fast(float x)
{
    return exp2f(x);
}

static inline void in_order()
{
}

static inline void prefetch_l2(const void *)
{
}

static inline uint16_t poll2(const void *p)
{
    soft_yield("what a block with a lower index writes");
    return *(const volatile uint16_t *)p;
}

static inline uint4 poll16(const void *p)
{
    soft_yield("what a block with a lower index writes");
    const volatile uint32_t *w = (const volatile uint32_t *)p;
    return make_uint4(w[0], w[1], w[2], w[3]);
}

static inline void chain_wait()
{
}

static inline void chain_next()
{
}

template <int ID, int N> static inline void named_barrier()
{
    soft_barrier(ID, N);
}

template <int N> static inline void settled(float (*)[4])
{
}

#endif
