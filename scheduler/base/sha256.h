/* SHA-256 (libcrypto) as 64 hex digits. */
#ifndef DTX_BASE_SHA256_H
#define DTX_BASE_SHA256_H

#include <stddef.h>
#include "scheduler/base/err.h"

struct sha256;
struct sha256 *sha256_new(void); /* NULL: out of memory */
void sha256_add(struct sha256 *s, const void *data, size_t n);
void sha256_finish(struct sha256 *s, char hex[65]); /* frees s */
void sha256_text(const void *data, size_t n, char hex[65]);
int sha256_file(int dirfd, const char *path, char hex[65], struct dtx_err *e);

#endif
