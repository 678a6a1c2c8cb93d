#ifndef DTX_BASE_CLOCK_H
#define DTX_BASE_CLOCK_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

int64_t clock_mono_ns(void); /* CLOCK_MONOTONIC, nanoseconds */
int64_t clock_wall_ns(void); /* CLOCK_REALTIME, nanoseconds since 1970 */

/* "2026-11-23T18:46:45Z" into out (at least 24 bytes); returns out. */
char *clock_iso(int64_t wall_ns, char *out, size_t n);
/* "1h02m", "3m20s", "12s", "0.4s" into out (at least 24 bytes); returns out. */
char *clock_human(double seconds, char *out, size_t n);

#endif
