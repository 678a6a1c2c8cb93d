/*
 * Eight floats at a time, with GCC's and clang's vector extensions.  The order of every sum is fixed by the
 * code, so a result does not depend on the compiler's taste (the build has -ffp-contract=off and no
 * -ffast-math).
 */
#ifndef DTX_CPU_VEC_H
#define DTX_CPU_VEC_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32)));
typedef int32_t v8i __attribute__((vector_size(32)));
typedef float v8_any __attribute__((vector_size(32), aligned(4), may_alias)); /* at any address */

static inline v8 v8_load(const float *p)
{
    return *(const v8_any *)p;
}

static inline void v8_store(float *p, v8 x)
{
    *(v8_any *)p = x;
}

static inline v8 v8_all(float x)
{
    return (v8){x, x, x, x, x, x, x, x};
}

static inline float v8_sum(v8 x)
{
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* if mask then a else b, by lanes (a mask lane is 0 or -1). */
static inline v8 v8_pick(v8i mask, v8 a, v8 b)
{
    return (v8)((mask & (v8i)a) | (~mask & (v8i)b));
}

/* First n < 8 floats, the rest 0; and the reverse. */
static inline v8 v8_load_part(const float *p, size_t n)
{
    float t[8] = {0};
    memcpy(t, p, n * sizeof *p);
    return v8_load(t);
}

static inline void v8_store_part(float *p, v8 x, size_t n)
{
    float t[8];
    v8_store(t, x);
    memcpy(p, t, n * sizeof *p);
}

/* e^x within 2 ulp; below -87.3 it gives 1.2e-38, above 88.3 2.2e38; NaN stays NaN (comparisons are false for
 * it). */
static inline v8 v8_exp(v8 x)
{
    const v8 lo = v8_all(-87.3f), hi = v8_all(88.3f), magic = v8_all(12582912.0f); /* 1.5 * 2^23: rounds */
    x = v8_pick(x < lo, lo, x);
    x = v8_pick(x > hi, hi, x);
    v8 t = x * v8_all(1.44269504f) + magic;
    v8 n = t - magic;
    v8i power = (v8i)t - 0x4B400000;
    v8 r = x - n * v8_all(0.693359375f) - n * v8_all(-2.12194440e-4f);
    v8 p = v8_all(1.9875691500e-4f);
    p = p * r + v8_all(1.3981999507e-3f);
    p = p * r + v8_all(8.3334519073e-3f);
    p = p * r + v8_all(4.1665795894e-2f);
    p = p * r + v8_all(1.6666665459e-1f);
    p = p * r + v8_all(5.0000001201e-1f);
    p = p * (r * r) + r + v8_all(1.0f);
    return p * (v8)((power + 127) << 23);
}

static inline float vec_dot(const float *a, const float *b, size_t n)
{
    v8 s0 = v8_all(0), s1 = s0, s2 = s0, s3 = s0;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        s0 += v8_load(a + i) * v8_load(b + i);
        s1 += v8_load(a + i + 8) * v8_load(b + i + 8);
        s2 += v8_load(a + i + 16) * v8_load(b + i + 16);
        s3 += v8_load(a + i + 24) * v8_load(b + i + 24);
    }
    for (; i + 8 <= n; i += 8)
        s0 += v8_load(a + i) * v8_load(b + i);
    if (i < n)
        s1 += v8_load_part(a + i, n - i) * v8_load_part(b + i, n - i);
    return v8_sum((s0 + s1) + (s2 + s3));
}

/* y += k * x */
static inline void vec_axpy(float k, const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += k * x[i];
}

static inline void vec_add(const float *x, float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += x[i];
}

/* The largest; NaN if there is one (a softmax of it must not look healthy): a lane that holds NaN keeps it.
 */
static inline float vec_max(const float *x, size_t n)
{
    float best = x[0];
    size_t i = 0;
    if (n >= 8) {
        v8 m = v8_load(x);
        for (i = 8; i + 8 <= n; i += 8) {
            v8 y = v8_load(x + i);
            m = v8_pick((y > m) | (y != y), y, m);
        }
        for (int k = 0; k < 8; k++)
            best = m[k] > best || m[k] != m[k] ? m[k] : best;
    }
    for (; i < n; i++)
        best = x[i] > best || x[i] != x[i] ? x[i] : best;
    return best;
}

/* x[i] = exp(x[i] - shift); returns their sum. */
static inline float vec_exp_sum(float *x, size_t n, float shift)
{
    v8 s = v8_all(0), sh = v8_all(shift);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        v8 e = v8_exp(v8_load(x + i) - sh);
        v8_store(x + i, e);
        s += e;
    }
    float rest = 0;
    if (i < n) {
        v8_store_part(x + i, v8_exp(v8_load_part(x + i, n - i) - sh), n - i);
        for (; i < n; i++)
            rest += x[i];
    }
    return v8_sum(s) + rest;
}

#endif
