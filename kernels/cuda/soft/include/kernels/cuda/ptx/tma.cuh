/* Stands in for ptx/tma.cuh on the device in software. */
#ifndef DTX_CUDA_PTX_TMA_CUH
#define DTX_CUDA_PTX_TMA_CUH

#include <cuda.h>

#include "kernels/cuda/ptx/barrier.cuh"

enum : uint64_t { CACHE_USUAL, CACHE_GOES_FIRST };

static inline void tma_load(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar,
                            uint64_t = CACHE_USUAL)
{
    soft_box_load(to, map, column, row, bar, 0);
}

static inline void tma_load_all(uint32_t to, const CUtensorMap *map, int column, int row, uint32_t bar, uint16_t mask,
                                uint64_t = CACHE_USUAL)
{
    soft_box_load(to, map, column, row, bar, mask);
}

static inline void tma_store(const CUtensorMap *map, int column, int row, uint32_t from, uint64_t = CACHE_USUAL)
{
    soft_box_store(map, column, row, from);
}

static inline void tma_prefetch(const CUtensorMap *)
{
}

static inline void store_commit()
{
    soft_store_commit();
}

template <int N> static inline void store_wait()
{
    soft_store_wait(N);
}

static inline void store_wait_all()
{
    soft_store_wait(0);
}

#endif
