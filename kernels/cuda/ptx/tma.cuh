/* Hopper's copies of whole tiles between global memory, as a tensor map describes it, and shared memory, by address. */
#ifndef DTX_CUDA_PTX_TMA_CUH
#define DTX_CUDA_PTX_TMA_CUH

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cuda.h>

#ifdef DTX_WGMMA

__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
                 "[%4];" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar)
                 : "memory");
}

/* To the same place in every block of `mask`. */
__device__ __forceinline__ void tma_load_all(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar,
                                             uint16_t mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar), "h"(mask)
                 : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap *map, int column, int row, uint32_t from)
{
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column),
                 "r"(row), "r"(from)
                 : "memory");
}

__device__ __forceinline__ void tma_prefetch(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

__device__ __forceinline__ void store_commit()
{
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/* All but the last N stores have read their shared memory. */
template <int N> __device__ __forceinline__ void store_wait()
{
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}

/* All stores are done. */
__device__ __forceinline__ void store_wait_all()
{
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

#endif
#endif
