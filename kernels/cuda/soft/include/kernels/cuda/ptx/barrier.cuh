/* Stands in for ptx/barrier.cuh on the device in software. */
#ifndef DTX_CUDA_PTX_BARRIER_CUH
#define DTX_CUDA_PTX_BARRIER_CUH

#include "kernels/cuda/ptx/wgmma.cuh"

static inline void bar_init(uint32_t bar, uint32_t count)
{
    soft_bar_init(bar, count);
}

static inline void bar_init_seen()
{
}

static inline void bar_wait(uint32_t bar, uint32_t parity)
{
    soft_bar_wait(bar, parity);
}

static inline bool bar_over(uint32_t bar, uint32_t parity)
{
    return soft_bar_over(bar, parity);
}

static inline bool bar_over(uint64_t *b, uint32_t parity)
{
    return soft_bar_over(smem_addr(b), parity);
}

static inline void bar_arrive(uint32_t bar)
{
    soft_bar_arrive(bar, -1, 0);
}

static inline void bar_arrive_at(uint32_t bar, uint32_t rank)
{
    soft_bar_arrive(bar, (int)rank, 0);
}

static inline void bar_expect(uint32_t bar, uint32_t bytes)
{
    soft_bar_arrive(bar, -1, bytes);
}

static inline uint32_t cluster_rank()
{
    return (uint32_t)soft_now->block->rank;
}

static inline void cluster_sync()
{
    soft_cluster_barrier();
}

template <int N> static inline void registers_down()
{
}

template <int N> static inline void registers_up()
{
}

#endif
