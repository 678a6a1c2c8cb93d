#include "scheduler/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/base/text.h"

/* One line that a terminal can show: control characters (also those of quoted input) become spaces, and a
 * UTF-8 character that the end of the buffer cut in two goes. */
static void flatten(char *s)
{
    size_t n = strlen(s), start = n;

    text_flatten(s);
    while (start > 0 && n - start < 3 && ((unsigned char)s[start - 1] & 0xc0) == 0x80)
        start--;
    if (start > 0 && (unsigned char)s[start - 1] >= 0xc0) {
        unsigned char lead = (unsigned char)s[start - 1];
        size_t want = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
        if (n - start + 1 < want)
            s[start - 1] = '\0';
    }
}

__attribute__((nonnull(3))) static void fill(struct dtx_err *e, int code, const char *fmt, va_list ap)
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
