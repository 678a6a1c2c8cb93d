/*
 * What attention_hopper.cu's blocks have in common.  A block stays on its multiprocessor and draws items of work.  One
 * warpgroup fetches, two compute: first what an item has once (its base), then stage after stage of a ring in shared
 * memory, for both.  A barrier `full` is passed when all 128 fetching threads know that their copies are there, `empty`
 * when the 8 computing warps are done with a place.
 */
#ifndef DTX_CUDA_RING_CUH
#define DTX_CUDA_RING_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ptx/barrier.cuh"
#include "kernels/cuda/ptx/wgmma.cuh"

#ifdef DTX_WGMMA

enum { GROUP = 128 /* threads of a warpgroup */, COMPUTING = 2 /* warpgroups */, THREADS = (1 + COMPUTING) * GROUP };

/* ---- the ring ---- */

struct work {
    attn_tile t;
    int head; /* < 0: there is no more */
};

template <int STAGES> struct ring { /* in shared memory */
    uint64_t full[STAGES], empty[STAGES], base_full, base_empty;
    work now; /* with the base */
    int drawn[2];
};

struct cursor { /* a place in the ring */
    int stage;
    uint32_t phase;
};

template <int STAGES> __device__ __forceinline__ void advance(cursor &c)
{
    if (++c.stage == STAGES) {
        c.stage = 0;
        c.phase ^= 1;
    }
}

template <int STAGES> __device__ __forceinline__ void ring_init(ring<STAGES> &r)
{
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            bar_init(smem_addr(&r.full[i]), GROUP);
            bar_init(smem_addr(&r.empty[i]), COMPUTING * GROUP / 32);
        }
        bar_init(smem_addr(&r.base_full), GROUP);
        bar_init(smem_addr(&r.base_empty), COMPUTING * GROUP / 32);
    }
    __syncthreads();
}

/* ---- the warpgroup that fetches: threads 0 .. GROUP - 1 ---- */

struct feeder {
    unsigned *next, items, ahead; /* thread 0's: the counter of all blocks, and what was drawn from it last */
    int draws, bases;
    uint64_t *owed; /* the barrier of copies that are not known to be done, or NULL */
    cursor at;
};

/* Together the blocks draw every item, and each once more; the very last draw puts the counter back to 0. */
__device__ __forceinline__ void feed_draw_ahead(feeder &f)
{
    f.ahead = atomicAdd(f.next, 1);
    if (f.ahead == f.items + gridDim.x - 1)
        *f.next = 0;
}

__device__ __forceinline__ feeder feed_begin(unsigned *next, int items)
{
    feeder f = {next, (unsigned)items, 0, 0, 0, NULL, {0, 0}};
    if (threadIdx.x == 0)
        feed_draw_ahead(f);
    return f;
}

/* The next item, or -1. */
template <int STAGES> __device__ __forceinline__ int feed_draw(feeder &f, ring<STAGES> &r)
{
    int *drawn = &r.drawn[f.draws++ & 1];
    if (threadIdx.x == 0) {
        *drawn = f.ahead < f.items ? (int)f.ahead : -1;
        if (f.ahead < f.items)
            feed_draw_ahead(f);
    }
    __syncwarp();
    named_barrier<1, GROUP>();
    return *drawn;
}

__device__ __forceinline__ void feed_pay(feeder &f)
{
    if (!f.owed)
        return;
    copy_wait<0>();
    shared_for_matrix_unit();
    bar_arrive(smem_addr(f.owed));
    f.owed = NULL;
}

/* Waits until a place is free.  Whoever is to free it may need what is owed. */
__device__ __forceinline__ void feed_wait(feeder &f, uint64_t *empty, uint32_t parity)
{
    if (!bar_over(empty, parity)) {
        feed_pay(f);
        bar_wait(smem_addr(empty), parity);
    }
}

/* The copies since the last call are owed to `full`. */
__device__ __forceinline__ void feed_owe(feeder &f, uint64_t *full)
{
    copy_commit();
    if (f.owed) {
        copy_wait<1>();
        shared_for_matrix_unit();
        bar_arrive(smem_addr(f.owed));
    }
    f.owed = full;
}

/* For the base of an item: wait, copy, owe it to base_full. */
template <int STAGES> __device__ __forceinline__ void feed_base(feeder &f, ring<STAGES> &r, const work &w)
{
    feed_wait(f, &r.base_empty, (f.bases++ & 1) ^ 1);
    if (threadIdx.x == 0)
        r.now = w;
}

template <int STAGES> __device__ __forceinline__ void feed_end(feeder &f, ring<STAGES> &r)
{
    feed_base(f, r, {{0, 0, 0}, -1});
    feed_pay(f);
    bar_arrive(smem_addr(&r.base_full));
}

/* For a stage: wait, copy to this stage, feed_stage_done. */
template <int STAGES> __device__ __forceinline__ int feed_stage(feeder &f, ring<STAGES> &r)
{
    feed_wait(f, &r.empty[f.at.stage], f.at.phase ^ 1);
    return f.at.stage;
}

template <int STAGES> __device__ __forceinline__ void feed_stage_done(feeder &f, ring<STAGES> &r)
{
    feed_owe(f, &r.full[f.at.stage]);
    advance<STAGES>(f.at);
}

/* N rows x D as D / 64 swizzled tiles; rows from rows_valid on are zeros. */
template <int D, int N>
__device__ __forceinline__ void feed_rows(__nv_bfloat16 *smem, const __nv_bfloat16 *global, int stride, int rows_valid)
{
    constexpr int STEP = GROUP / (D / 8); /* rows, a multiple of 8 */
    int row = threadIdx.x / (D / 8), c = threadIdx.x % (D / 8);
    __nv_bfloat16 *to = smem + c / 8 * N * 64 + row * 64 + (c % 8 ^ row % 8) * 8;
    const __nv_bfloat16 *from = global + (int64_t)row * stride + c * 8;
#pragma unroll 4
    for (int i = 0; i < N / STEP; i++) {
        bool valid = row + i * STEP < rows_valid;
        copy16(to + i * STEP * 64, valid ? from : global, valid);
        from += STEP * stride;
    }
}

/* ---- the warpgroups that compute ---- */

/* The item whose base is there, in turn. */
template <int STAGES> __device__ __forceinline__ work next_work(ring<STAGES> &r, int turn)
{
    bar_wait(smem_addr(&r.base_full), turn & 1);
    return r.now;
}

/* This warp is done with a place. */
__device__ __forceinline__ void release(uint64_t *empty)
{
    __syncwarp();
    if (threadIdx.x % 32 == 0)
        bar_arrive(smem_addr(empty));
}

/* Stages that are the other warpgroup's alone: a place is given back only after it was filled, or it would count for
 * the round before. */
template <int STAGES> __device__ __forceinline__ void skip_stages(ring<STAGES> &r, cursor &at, int n)
{
    for (; n > 0; n--) {
        bar_wait(smem_addr(&r.full[at.stage]), at.phase);
        release(&r.empty[at.stage]);
        advance<STAGES>(at);
    }
}

/* A barrier of the computing warpgroups. */
__device__ __forceinline__ void computing_sync()
{
    named_barrier<2, COMPUTING * GROUP>();
}

#endif
#endif
