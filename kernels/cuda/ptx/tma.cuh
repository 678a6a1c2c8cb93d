/* Hopper's copies of whole tiles between global memory, as a tensor map describes it, and shared memory, by address. */
#ifndef DTX_CUDA_PTX_TMA_CUH
#define DTX_CUDA_PTX_TMA_CUH

#include "kernels/cuda/ptx/wgmma.cuh"

#include <cuda.h>

/* What goes first from the second level of the cache: createpolicy's words for the whole of a copy. */
enum : uint64_t {
    CACHE_USUAL = 0x1000000000000000,
    CACHE_GOES_FIRST = 0x12f0000000000000,
};

#ifdef DTX_WGMMA

__device__ __forceinline__ void tma_load(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar,
                                         uint64_t cache = CACHE_USUAL)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar), "l"(cache)
                 : "memory");
}

/* To the same place in every block of `mask`. */
__device__ __forceinline__ void tma_load_all(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar,
                                             uint16_t mask, uint64_t cache = CACHE_USUAL)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(to),
                 "l"(map), "r"(column), "r"(row), "r"(bar), "h"(mask), "l"(cache)
                 : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap *map, int column, int row, uint32_t from,
                                          uint64_t cache = CACHE_USUAL)
{
    asm volatile(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%1, %2}], [%3], %4;" ::"l"(map),
        "r"(column), "r"(row), "r"(from), "l"(cache)
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
