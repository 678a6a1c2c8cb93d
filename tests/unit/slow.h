/* How much longer things may take: CK_TIMEOUT_MULTIPLIER, which Check and tests/e2e/lib.sh obey too (sanitizers). */
#ifndef TESTS_SLOW_H
#define TESTS_SLOW_H

#include <stdlib.h>

static inline double slow(void)
{
    const char *text = getenv("CK_TIMEOUT_MULTIPLIER");
    double x = text ? atof(text) : 1;

    return x > 1 ? x : 1;
}

#endif
