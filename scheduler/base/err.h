/*
 * Errors with context.
 *
 * Library functions return 0 or a negative errno and describe what happened in a caller-owned struct dtx_err.
 * The text is meant for a user: what was found, where, what was expected, what to do.  Nothing here
 * allocates.
 */
#ifndef DTX_BASE_ERR_H
#define DTX_BASE_ERR_H

#include <errno.h>
#include <stddef.h>

struct dtx_err {
    int code;       /* negative errno, 0 = no error */
    char msg[1016]; /* UTF-8, one line, always terminated */
};

/* Fill *e (may be NULL) and return code.  code must be a negative errno. */
int dtx_fail(struct dtx_err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* As dtx_fail with -errno and ": strerror" appended. */
int dtx_fail_errno(struct dtx_err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Put "text: " in front of the message already in *e; returns e->code. */
int dtx_fail_context(struct dtx_err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

void dtx_err_clear(struct dtx_err *e);

#endif
