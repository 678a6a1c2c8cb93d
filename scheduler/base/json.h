/*
 * Strict JSON from strangers, on top of jansson: bounded size and depth, duplicate keys refused, and the line
 * and column of every key, so that a message can point at it.
 */
#ifndef DTX_BASE_JSON_H
#define DTX_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

/* Parse one JSON value.  name is used in messages ("name:line:column: ...").  Depth is at most 64 (checked
 * before jansson sees the text).  *out is a new reference. */
int json_parse_text(const char *name, const char *text, size_t n, json_t **out, struct dtx_err *e);

/* As above from a file of at most max bytes. */
int json_parse_file(int dirfd, const char *path, size_t max, json_t **out, struct dtx_err *e);

/* Where the value at a path lies in a text that parsed: path is like "spec.parameters.loRA_R" or
 * "jobs[2].name". With want_key the position of the key itself.  Returns 0 and 1-based line and column, or
 * -ENOENT. */
int json_locate(const char *text, size_t n, const char *path, int want_key, int *line, int *column);

/* Compact dump with sorted keys (a canonical form). */
void json_dump_buf(const json_t *v, struct buf *b);

/* For people: indented, keys in their order, a newline at the end; real numbers with as few digits as read
 * back to the same double. */
void json_print_buf(const json_t *v, struct buf *b);

/* Typed getters with defaults; a value of another type counts as absent. */
const char *json_str(const json_t *obj, const char *key, const char *fallback);
long long json_int(const json_t *obj, const char *key, long long fallback);
double json_num(const json_t *obj, const char *key, double fallback);
int json_flag(const json_t *obj, const char *key, int fallback);

#endif
