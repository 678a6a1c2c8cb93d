/*
 * How a token is chosen from its logits l, the same on every device to the bit: temperature, then top_k, then
 * top_p, as in transformers, in integers, so that no sum depends on its order.
 *
 *   temperature 0: the largest logit, the lowest id of equal ones; NaN counts as -infinity.
 *   else           level(i) = (max - l_i) log2(e) / temperature in steps of 2^-25, from 0; those CHOICE_REACH
 * and more below the best are never chosen; weight(i) = 2^(CHOICE_REACH - level) rounded down. order by
 * level, then by id.  top_k keeps the first k of it; top_p the fewest whose weights reach floor(p * sum), at
 * least one. the choice     the first in ascending order of id where the kept weights so far exceed floor(u /
 * 2^64 * their sum), u from (seed, number).
 *
 * When nothing has a weight (infinite logits), the largest.  Plain C that nvcc compiles too.
 */
#ifndef DTX_CHOICE_H
#define DTX_CHOICE_H

#include <math.h>

#include "kernels/rng.h"

enum { CHOICE_KEY = 0x73616d70, CHOICE_REACH = 40, CHOICE_STEPS = 25 };

#define CHOICE_NONE UINT32_MAX

RNG_FN float choice_factor(double temperature)
{
    return (float)(1.4426950408889634 / temperature);
}

RNG_FN uint32_t choice_level(float logit, float top, float factor)
{
    float z = (top - logit) * factor;
    return z < (float)CHOICE_REACH ? (uint32_t)(z * (float)(1 << CHOICE_STEPS)) : CHOICE_NONE;
}

/* 1 to 2^CHOICE_REACH; 0 for CHOICE_NONE.  2^-f by its series around f = 1/2. */
RNG_FN uint64_t choice_weight(uint32_t level)
{
    float f = (float)(level & ((1u << CHOICE_STEPS) - 1)) * (1.0f / (1 << CHOICE_STEPS)) - 0.5f,
          p = 1.0891941e-4f;
    if (level == CHOICE_NONE)
        return 0;
    p = fmaf(p, f, -9.4282494e-4f);
    p = fmaf(p, f, 0.0068010443f);
    p = fmaf(p, f, -0.03924733f);
    p = fmaf(p, f, 0.1698658f);
    p = fmaf(p, f, -0.49012907f);
    p = fmaf(p, f, 0.70710678f);
    uint64_t w = (uint64_t)(p * (float)(1ull << CHOICE_REACH)) >> (level >> CHOICE_STEPS);
    return w ? w : 1;
}

RNG_FN uint64_t choice_random(uint64_t seed, uint64_t number)
{
    return rng_key(rng_key(seed, CHOICE_KEY), number);
}

RNG_FN uint64_t choice_limit(double top_p, uint64_t sum)
{
    uint64_t limit = (uint64_t)(top_p * (double)sum);
    return limit ? limit : 1;
}

#endif
