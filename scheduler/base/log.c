#include "scheduler/base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/text.h"

static int log_fd = STDERR_FILENO;

void log_to_fd(int fd)
{
    __atomic_store_n(&log_fd, fd, __ATOMIC_RELEASE);
}

void log_line(const char *fmt, ...)
{
    char line[2048], stamp[32];
    int n, m;
    va_list ap;

    n = snprintf(line, sizeof(line), "%s ", clock_iso(clock_wall_ns(), stamp, sizeof(stamp)));
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
    va_end(ap);
    if (m < 0)
        return;
    n += m;
    if (n > (int)sizeof(line) - 2)
        n = (int)sizeof(line) - 2;
    line[n] = '\0';
    text_flatten(line); /* a file's name may hold anything: no lines of its own */
    line[n++] = '\n';
    (void)!fd_write_all(__atomic_load_n(&log_fd, __ATOMIC_ACQUIRE), line, (size_t)n);
}
