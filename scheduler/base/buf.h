/*
 * A growable byte buffer.  The owner calls buf_release; buf_detach hands the bytes (malloc'd) to the caller.
 * p is always NUL-terminated once anything was added; len does not count that NUL.  An allocation failure is
 * remembered in `failed` and every later call is a no-op, so that callers check once, at the end.
 */
#ifndef DTX_BASE_BUF_H
#define DTX_BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *p;
    size_t len, cap;
    bool failed;
};

#define BUF_INIT                                                                                             \
    {                                                                                                        \
        NULL, 0, 0, false                                                                                    \
    }

void buf_init(struct buf *b);
void buf_release(struct buf *b);
void buf_clear(struct buf *b);                /* length 0, memory kept */
int buf_reserve(struct buf *b, size_t extra); /* room for extra more bytes and a NUL; -ENOMEM */
void buf_add(struct buf *b, const void *data, size_t n);
void buf_adds(struct buf *b, const char *s);
void buf_addc(struct buf *b, char c);
void buf_addf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void buf_vaddf(struct buf *b, const char *fmt, va_list ap);
void buf_add_json(struct buf *b, const char *s,
                  size_t n); /* "s" quoted and escaped; bad UTF-8 becomes U+FFFD */
void buf_add_html(struct buf *b, const char *s, size_t n); /* & < > " escaped */
char *buf_detach(struct buf *b, size_t *len); /* never NULL unless out of memory; the caller frees */

#endif
