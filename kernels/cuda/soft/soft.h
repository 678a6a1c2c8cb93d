/*
 * A CUDA device in software: the kernels of kernels/cuda, compiled by the host's C++ compiler against the headers in
 * include/, run on the CPU.  It is slow and it is for tests: it shows on any machine what a kernel computes, that it
 * waits for what it reads, and where it hangs.  It shows nothing of speed, registers, or memory ordering.
 *
 * A thread of a kernel is a fiber with a stack of its own.  The blocks of a cluster run on one thread of the host, one
 * cluster after another; several host threads share a grid.  A fiber runs until it waits: for the other lanes of its
 * warp, at a barrier, for a phase of an mbarrier.  If all wait and nothing is in flight, the program is aborted and
 * says who waits for what.
 *
 * What the hardware does asynchronously (cp.async, the bulk tensor copies, wgmma) is done at once or as late as a wait
 * allows, by chance (DTX_SOFT_SEED); so is the order in which warps run.  A kernel whose numbers depend on the seed
 * lacks a wait somewhere.
 */
#ifndef DTX_CUDA_SOFT_H
#define DTX_CUDA_SOFT_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

struct soft_uint3 {
    unsigned x, y, z;
};

/* A place where a known number of threads meet, again and again. */
struct soft_meet {
    int arrived;
    unsigned round;
};

struct soft_copy { /* of one thread, of at most 16 bytes; n < bytes: the rest is zeros */
    void *to;
    const void *from;
    int n, bytes;
};

struct soft_product { /* of one thread, its part of c[64 x n] (+)= a[64 x 16] b[16 x n] */
    float (*c)[4];
    uint64_t a, b; /* descriptors; a: where `registers` is not set */
    uint32_t fragment[4];
    int n;
    bool registers, n_major, m_major, keep;
};

struct soft_map { /* what a CUtensorMap holds: bf16 [rows, columns] */
    char *base;
    int64_t columns, rows, stride; /* stride: bytes */
    int box_columns, box_rows;
};

struct soft_store { /* of a box, from shared memory */
    soft_map map;
    int column, row;
    uint32_t from;
};

/* Operations in flight, in groups as they were committed. */
template <typename T> struct soft_queue {
    std::vector<T> items;
    std::vector<size_t> ends; /* of the committed groups, in items */
    unsigned committed;       /* in all */
    void commit()
    {
        ends.push_back(items.size());
        committed++;
    }
};

struct soft_block;

struct soft_thread {
    void *stack_pointer, *stack;
    soft_block *block;
    soft_uint3 index;
    int number; /* in the block */
    bool done;
    /* it waits while *round == old, or for the phase of `parity` of the barrier at bar */
    const unsigned *round;
    unsigned old, parity;
    const uint64_t *bar;
    const char *where; /* what it waits for, in words */
    soft_queue<soft_copy> copies;
    soft_queue<soft_product> products;
    soft_queue<soft_store> stores;
};

struct soft_warp {
    soft_meet meet;
    int alive;
    unsigned char post[2][32][64]; /* what lanes show each other, in even and odd rounds */
};

enum { SOFT_WARPGROUP = 128, SOFT_BARRIERS = 16 };

struct soft_cluster;

struct soft_block {
    soft_cluster *cluster;
    soft_uint3 index;
    int rank, alive; /* alive: threads that have not ended */
    unsigned char *shared;
    size_t shared_bytes;
    soft_meet barrier[SOFT_BARRIERS];
    int wanted[SOFT_BARRIERS]; /* threads; 0: all that are alive */
    std::vector<soft_thread> threads;
    std::vector<soft_warp> warps;
    std::vector<soft_meet> warpgroups;
};

struct soft_launch {
    soft_uint3 grid, block;
    size_t shared_bytes;
    int cluster;   /* blocks */
    bool together; /* all blocks are there at the same time */
    std::function<void()> body;
};

/* The thread that runs on this thread of the host. */
extern thread_local soft_thread *soft_now;
extern thread_local const soft_launch *soft_running;

/* Runs the grid to its end. */
void soft_run(const soft_launch &l);
[[noreturn]] void soft_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- for the headers in include/ ---- */

/* All lanes of the warp show `n` <= 64 bytes; returns what they show, 64 bytes a lane, until the next call. */
const unsigned char *soft_show(const void *mine, size_t n);
/* c[16 x 8] += a[16 x 16] b[16 x 8] of the warp, as mma.sync has them. */
void soft_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1);
void soft_barrier(int id, int threads); /* threads 0: all */
void soft_cluster_barrier();
/* Lets others run: for a loop that waits.  where: for what. */
void soft_yield(const char *where);

/* Shared memory of this block as 32-bit addresses, and back. */
uint32_t soft_address(const void *p);
unsigned char *soft_pointer(uint32_t address);

void soft_copy_start(void *to, const void *from, int n, int bytes);
void soft_copy_commit();
void soft_copy_wait(int groups);

void soft_product_start(const soft_product &p);
void soft_product_commit();
void soft_product_wait(int groups);

void soft_bar_init(uint32_t bar, unsigned count);
void soft_bar_arrive(uint32_t bar, int rank, unsigned bytes); /* rank < 0: of this block; bytes: to come */
bool soft_bar_over(uint32_t bar, unsigned parity);
void soft_bar_wait(uint32_t bar, unsigned parity);

/* mask: of blocks of the cluster; 0: this one. */
void soft_box_load(uint32_t to, const void *map, int column, int row, uint32_t bar, unsigned mask);
void soft_box_store(const void *map, int column, int row, uint32_t from);
void soft_store_commit();
void soft_store_wait(int groups);

#endif
