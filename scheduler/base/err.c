#include "scheduler/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void flatten(char *s)
{
    for (; *s; s++)
        if (*s == '\n' || *s == '\r')
            *s = ' ';
}

static void fill(struct dtx_err *e, int code, const char *fmt, va_list ap)
{
    e->code = code;
    vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
    flatten(e->msg);
}

int dtx_fail(struct dtx_err *e, int code, const char *fmt, ...)
{
    va_list ap;

    if (!e)
        return code;
    va_start(ap, fmt);
    fill(e, code, fmt, ap);
    va_end(ap);
    return code;
}

int dtx_fail_errno(struct dtx_err *e, const char *fmt, ...)
{
    int saved = errno ? errno : EIO;
    va_list ap;
    size_t n;

    if (!e)
        return -saved;
    va_start(ap, fmt);
    fill(e, -saved, fmt, ap);
    va_end(ap);
    n = strlen(e->msg);
    snprintf(e->msg + n, sizeof(e->msg) - n, ": %s", strerror(saved));
    return -saved;
}

int dtx_fail_context(struct dtx_err *e, const char *fmt, ...)
{
    char old[sizeof(e->msg)];
    va_list ap;
    size_t n;

    if (!e)
        return -EIO;
    memcpy(old, e->msg, sizeof(old));
    va_start(ap, fmt);
    fill(e, e->code ? e->code : -EIO, fmt, ap);
    va_end(ap);
    n = strlen(e->msg);
    if (n < sizeof(e->msg) - 3)
        snprintf(e->msg + n, sizeof(e->msg) - n, ": %.*s", (int)(sizeof(e->msg) - n - 3), old);
    return e->code;
}

void dtx_err_clear(struct dtx_err *e)
{
    if (e) {
        e->code = 0;
        e->msg[0] = '\0';
    }
}
