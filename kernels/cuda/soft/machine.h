/* What machine.cc and async.cc know of each other. */
#ifndef DTX_CUDA_SOFT_MACHINE_H
#define DTX_CUDA_SOFT_MACHINE_H

#include <cstring>

#include "kernels/cuda/soft/soft.h"

struct soft_load { /* of a box, to the same place of each block of the mask */
    soft_map map;
    int column, row;
    uint32_t to, bar;
    unsigned mask;
};

struct soft_cluster {
    std::vector<soft_block> blocks;
    soft_meet meet;
    std::vector<soft_load> loads; /* in flight */
    uint64_t seed, random;        /* random: the state of soft_chance */
    unsigned load_odds;           /* once in so many turns of a warp some loads are done before they must */
    bool pause;                   /* the warp that runs is to stop */
    const void *host_stack;       /* for AddressSanitizer */
    size_t host_stack_bytes;
};

static inline unsigned soft_chance(soft_cluster *c)
{
    c->random = c->random * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(c->random >> 33);
}

/* Bytes of a red zone behind memory: AddressSanitizer has its own. */
#if defined(__SANITIZE_ADDRESS__)
#define SOFT_RED_ZONE(n) ((size_t)0)
#else
#define SOFT_RED_ZONE(n) ((size_t)(n))
#endif

static inline bool soft_untouched(const unsigned char *zone, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (zone[i] != 0xff)
            return false;
    return true;
}

/* The lower or the upper bf16 of a word. */
static inline float soft_half(uint32_t word, unsigned which)
{
    uint32_t bits = which ? word & 0xffff0000u : word << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* After what others may wait for: by chance they run now, and this warp later. */
void soft_pause();
/* Does some of the loads in flight, at least one if `must`; false if there was none to do. */
bool soft_loads_some(soft_cluster *c, bool must);
bool soft_phase_over(uint64_t bar, unsigned parity);
unsigned char *soft_pointer_in(soft_block *b, uint32_t address);
bool soft_arrive(soft_meet *m, int count);
void soft_wait_round(const soft_meet *m, unsigned old, const char *where);

#endif
