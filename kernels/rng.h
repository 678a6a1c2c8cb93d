/*
 * Random numbers by counters: a number is a pure function of its key, never of call order, so that it is the
 * same on every device, for any number of threads and after a restart.  Plain C that nvcc compiles too.
 */
#ifndef DTX_RNG_H
#define DTX_RNG_H

#include <stdint.h>

#ifdef __CUDACC__
#define RNG_FN static __host__ __device__ inline
#else
#define RNG_FN static inline
#endif

/* The finaliser of splitmix64: every input bit reaches every output bit. */
RNG_FN uint64_t rng_mix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* A key from a key and one more field: rng_key(rng_key(seed, epoch), row) ... */
RNG_FN uint64_t rng_key(uint64_t key, uint64_t field)
{
    return rng_mix64(key ^ rng_mix64(field));
}

/* The key of the dropout mask of one token's input to one adapted matrix.  seq_key comes from (seed, epoch,
 * row). */
RNG_FN uint64_t rng_dropout_key(uint64_t seq_key, int token, int layer, int target)
{
    return rng_key(seq_key, (uint64_t)(uint32_t)token << 32 | (uint32_t)layer << 3 | (uint32_t)target);
}

/* 32 random bits for element i under a key: two rounds of murmur3's finaliser, so that loops vectorise.  In
 * two steps, for who draws many under one key: the start of i + n is that of i plus n * RNG_STEP. */
#define RNG_STEP 0x9e3779b1u

RNG_FN uint32_t rng_start(uint64_t key, uint32_t i)
{
    return i * RNG_STEP + (uint32_t)key;
}

/* What the second half of the key adds, midway. */
RNG_FN uint32_t rng_addend(uint64_t key)
{
    return (uint32_t)(key >> 32) * 0xc2b2ae35u;
}

RNG_FN uint32_t rng_finish(uint32_t start, uint32_t addend)
{
    uint32_t x = start;
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x = x * 0xc2b2ae35u + addend;
    x ^= x >> 16;
    x *= 0x7feb352du;
    return x ^ (x >> 15);
}

RNG_FN uint32_t rng_u32(uint64_t key, uint32_t i)
{
    return rng_finish(rng_start(key, i), rng_addend(key));
}

/* 16 random bits for element i of a row, half of what rng_u32 gives a pair of elements: dropout keeps those
 * that are
 * >= rng_dropout_threshold(p). */
RNG_FN uint32_t rng_dropout(uint64_t key, uint32_t i)
{
    return rng_u32(key, i >> 1) >> (i & 1) * 16 & 0xffff;
}

/* p in steps of 2^-16; 0: everything is kept. */
RNG_FN uint32_t rng_dropout_threshold(float p)
{
    double t = (double)p * 65536.0 + 0.5;
    return t >= 65535.0 ? 65535u : (uint32_t)t;
}

/* Uniform in [0, 1) with 53 bits. */
RNG_FN double rng_double(uint64_t key, uint64_t i)
{
    return (double)(rng_key(key, i) >> 11) * (1.0 / 9007199254740992.0);
}

#endif
