/* Hopper's barriers in shared memory, by address, clusters, and registers that warpgroups hand to each other. */
#ifndef DTX_CUDA_PTX_BARRIER_CUH
#define DTX_CUDA_PTX_BARRIER_CUH

#include "kernels/cuda/ptx/wgmma.cuh"

#ifdef DTX_WGMMA

__device__ __forceinline__ void bar_init(uint32_t bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

/* New barriers are seen by the cluster's blocks after this and cluster_sync. */
__device__ __forceinline__ void bar_init_seen()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/* Is the phase of this parity over?  (Of a new barrier: that of parity 1.) */
__device__ __forceinline__ bool bar_over(uint32_t bar, uint32_t parity)
{
    uint32_t over;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                 : "=r"(over)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return over;
}

__device__ __forceinline__ bool bar_over(uint64_t *b, uint32_t parity)
{
    return bar_over(smem_addr(b), parity);
}

__device__ __forceinline__ void bar_wait(uint32_t bar, uint32_t parity)
{
    uint32_t done;
    do {
        asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                     : "=r"(done)
                     : "r"(bar), "r"(parity)
                     : "memory");
    } while (!done);
}

__device__ __forceinline__ void bar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

/* The barrier at the same place in block `rank` of the cluster.  No scope wider than the block: this says that a slot
 * was read, and the other block answers by TMA alone; a release to the cluster waits for all memory operations of the
 * thread, a microsecond a slot. */
__device__ __forceinline__ void bar_arrive_at(uint32_t bar, uint32_t rank)
{
    asm volatile("{\n.reg .b32 at;\nmapa.shared::cluster.u32 at, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [at];\n}" ::"r"(bar),
                 "r"(rank)
                 : "memory");
}

__device__ __forceinline__ void bar_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t r;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
    return r;
}

__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* Registers of each thread of this warpgroup from here on; what some give up, others can take. */
template <int N> __device__ __forceinline__ void registers_down()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N> __device__ __forceinline__ void registers_up()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif
#endif
