/*
 * Renderings of generated files.
 *
 * Readers must find size, mtime and content agreeing although the text changes all the time.  So:
 *  - a rendering is made when attributes are asked for, and is what an open after that reads, as long as the
 * kernel may still hold those attributes;
 *  - it changes at most once a second (RENDER_MIN_MS), and not within RENDER_HOLD_MS after it was last handed
 * out, so that stat, open, fstat in a row see one rendering;
 *  - its mtime is when its content last changed; size and mtime change together;
 *  - whoever holds a snapshot keeps it whole: it is counted, and never changes.
 *
 * Every function may be called from any thread; the maker is called with the entry's own lock held, so that
 * two readers do not make the same text twice, and never with the cache's.
 */
#ifndef DTX_FSD_RENDER_CACHE_H
#define DTX_FSD_RENDER_CACHE_H

#include <stdint.h>
#include <time.h>

#include "scheduler/base/buf.h"

enum { RENDER_MIN_MS = 1000, RENDER_HOLD_MS = 250, RENDER_IDLE_MS = 30000, RENDER_MAX = 64 << 20 };

struct snapshot {
    char *data;
    size_t size;
    int64_t mtime_ns; /* wall clock */
    unsigned refs;    /* atomic */
    int fd;           /* of snapshot_fd; -1: not made; atomic */
};

struct render_cache;

/* Appends the text; *mtime_ns: when the content was last changed, as far as the maker knows (0: unknown),
 * used for the first rendering only. */
typedef int (*render_fn)(void *arg, struct buf *out, int64_t *mtime_ns);

enum render_use {
    RENDER_FOR_ATTR, /* size and mtime go to the kernel, which may keep them for RENDER_HOLD_MS */
    RENDER_FOR_OPEN,
};

struct render_cache *render_cache_new(void);
void render_cache_free(struct render_cache *c);
/* A reference to the snapshot to use now. */
int render_cache_get(struct render_cache *c, uint64_t id, enum render_use use, render_fn make, void *arg,
                     struct snapshot **out);
/* A reference to the last snapshot that was handed out, however old; NULL: there is none. */
struct snapshot *render_cache_last(struct render_cache *c, uint64_t id);
struct snapshot *snapshot_ref(struct snapshot *s); /* NULL is allowed, in both */
void snapshot_put(struct snapshot *s);
/* A file with the same text, for another process; it is the snapshot's.  -1: there is none. */
int snapshot_fd(struct snapshot *s);
/* The snapshot that such a file was made of; NULL: no memory, or it cannot be read. */
struct snapshot *snapshot_of_fd(int fd, int64_t mtime_ns);
struct snapshot *snapshot_of_text(const void *text, size_t n, int64_t mtime_ns); /* copied; NULL: no memory */
/* Drop the texts that nobody asked for in RENDER_IDLE_MS (what they were is remembered for their mtime). */
void render_cache_tidy(struct render_cache *c);
/* When the text was last found to be what it is (CLOCK_MONOTONIC, ms); 0: there is none. */
int64_t render_cache_checked(struct render_cache *c, uint64_t id);
void render_cache_forget(struct render_cache *c, uint64_t id);

#endif
