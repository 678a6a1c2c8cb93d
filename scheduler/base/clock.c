#include "scheduler/base/clock.h"

#include <stdio.h>

static int64_t read_clock(clockid_t id)
{
    struct timespec ts;

    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t clock_mono_ns(void)
{
    return read_clock(CLOCK_MONOTONIC);
}

int64_t clock_wall_ns(void)
{
    return read_clock(CLOCK_REALTIME);
}

char *clock_iso(int64_t wall_ns, char *out, size_t n)
{
    time_t t = (time_t)(wall_ns / 1000000000);
    struct tm tm;

    gmtime_r(&t, &tm);
    strftime(out, n, "%Y-%m-%dT%H:%M:%SZ", &tm);
    return out;
}

char *clock_human(double s, char *out, size_t n)
{
    long whole;

    if (!(s > 0)) /* also what is not a number */
        s = 0;
    if (s > 1e11) /* 3,000 years */
        s = 1e11;
    whole = (long)s;
    if (s < 10)
        snprintf(out, n, "%.1fs", s);
    else if (whole < 60)
        snprintf(out, n, "%lds", whole);
    else if (whole < 3600)
        snprintf(out, n, "%ldm%02lds", whole / 60, whole % 60);
    else if (whole < 86400)
        snprintf(out, n, "%ldh%02ldm", whole / 3600, whole / 60 % 60);
    else
        snprintf(out, n, "%ldd%02ldh", whole / 86400, whole / 3600 % 24);
    return out;
}
