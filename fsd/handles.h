/*
 * Open files and folders.  The kernel holds a number, never a pointer: it is made of the daemon's start (high
 * half) and a counter, so that a number from before a restart is recognised as such.
 */
#ifndef DTX_FSD_HANDLES_H
#define DTX_FSD_HANDLES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "fsd/listing.h"
#include "fsd/passthrough.h"
#include "fsd/render_cache.h"

enum handle_kind {
    HANDLE_FILE,    /* a file of the store: fd */
    HANDLE_TEXT,    /* a generated file: snapshot */
    HANDLE_CONTROL, /* the same, writable */
    HANDLE_DIR,     /* list; fd for fsyncdir is opened when asked for */
};

struct handle {
    struct handle *next;
    uint64_t fh;
    enum handle_kind kind;
    uint64_t id;
    int fd;      /* HANDLE_FILE; else -1 */
    bool writer; /* opened for writing by a caller, in a user-owned folder */
    bool remote; /* opened by an NFS server */
    bool wrote;  /* atomic */
    bool rdwr;   /* may be mapped writable */
    char *path; /* of a writer, as it was opened or renamed since; owned; NULL: none; protected by the table's
                   mutex */
    struct pass_grant pass; /* HANDLE_FILE */

    pthread_mutex_t mu;        /* protects what follows */
    struct snapshot *snapshot; /* HANDLE_TEXT, HANDLE_CONTROL */
    int64_t taken_ms;          /* when snapshot was taken, monotonic */
    struct listing list;       /* HANDLE_DIR */
    bool listed;
};

struct handles;

struct handles *handles_new(void);
void handles_free(struct handles *t);
/* A new handle with fd and snapshot (both taken over, also on failure: NULL). */
struct handle *handles_add(struct handles *t, enum handle_kind kind, uint64_t id, int fd,
                           struct snapshot *snapshot);
/* NULL: not one of ours.  Valid until handles_remove, which the kernel asks for after everything else. */
struct handle *handles_get(struct handles *t, uint64_t fh);
void handles_remove(struct handles *t, uint64_t fh);

/* The path of a writer's handle, appended; false: it is none.  Set it (owned by h from then on). */
bool handles_writer_path(struct handles *t, const struct handle *h, struct buf *path);
void handles_set_path(struct handles *t, struct handle *h, char *path);
/* Writers of `from` or below it write below `to` from now on; fn is told of each (with the table locked: it
 * may only note). */
typedef void (*handles_moved_fn)(void *arg, const struct handle *h, const char *was);
void handles_move(struct handles *t, const char *from, const char *to, bool exchange, handles_moved_fn fn,
                  void *arg);

#endif
