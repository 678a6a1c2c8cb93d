/*
 * Open files and folders.  The kernel holds a number, never a pointer: it is made of the process's start
 * (high half) and a counter, so that no number is given twice while a mount lives.
 *
 * Files outlive this process (kept.h): each handle is in the shared memory, with the text of a generated
 * file; or the keeper has its descriptor, where a successor could not open it again.  An open folder has
 * nothing to keep: its listing can be made again, and cookies mean the same there.
 */
#ifndef DTX_FSD_HANDLES_H
#define DTX_FSD_HANDLES_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "fsd/kept.h"
#include "fsd/listing.h"
#include "fsd/passthrough.h"
#include "fsd/render_cache.h"
#include "scheduler/sched.h"

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
    int fd;          /* HANDLE_FILE; else -1 */
    int flags;       /* of open(2), to open it again with */
    int kept_at;     /* in kept_shared.file, -1: the keeper has it; protected by the table's mutex */
    bool writer;     /* opened for writing by a caller, in a user-owned folder */
    bool remote;     /* opened by an NFS server */
    bool rdwr;       /* may be mapped writable */
    bool judged;     /* a spec's writer: FLUSH says whether it is right */
    bool inside;     /* a writer's file lies in an object's folder, where DTX reads no single file at once */
    bool wrote;      /* atomic */
    bool small;      /* just made, and like those before it probably small */
    uint64_t family; /* of a file that was just made: ops_pass.c; else 0 */
    bool restored;   /* opened by a process before this one */
    uint64_t unique; /* the request that opened it */
    char *path; /* of a writer, as it was opened or renamed since; owned; NULL: none; protected by the table's
                   mutex */
    struct pass_grant pass; /* HANDLE_FILE */
    struct node_info node;  /* as it was opened */
    struct caller who;

    pthread_mutex_t mu;        /* protects what follows */
    struct snapshot *snapshot; /* HANDLE_TEXT, HANDLE_CONTROL */
    int64_t taken_ms;          /* when snapshot was taken, monotonic */
    struct listing list;       /* HANDLE_DIR */
    bool listed;
};

/* What a handle is made of. */
struct handle_spec {
    enum handle_kind kind;
    struct node_info node;
    int fd, flags;
    struct snapshot *snapshot;
    bool writer, remote, rdwr;
    struct caller who;
};

struct handles;

/* reopens: a successor may open any file of the store by its name (we are root). */
struct handles *handles_new(struct nodes *nodes, struct kept *kept, bool reopens);
void handles_free(struct handles *t);
/* A new handle with spec's fd and snapshot (both taken over, also on failure: NULL); its node is in use from
 * now on.  A HANDLE_FILE is kept for a successor by handles_keep, before the reply. */
struct handle *handles_add(struct handles *t, const struct handle_spec *spec);
void handles_keep(struct handles *t, struct handle *h);
/* A name of the node is about to go or to change (after nodes_leave): its descriptors, and those of all files
 * below it, go to the keeper. */
void handles_give_away(struct handles *t, uint64_t id, bool is_dir);
/* NULL: not one of ours.  Valid until handles_remove, which the kernel asks for after everything else. */
struct handle *handles_get(struct handles *t, uint64_t fh);
/* That of an open folder, made again if a process before gave this number out. NULL: no memory, or no
 * folder's. */
struct handle *handles_get_dir(struct handles *t, uint64_t fh, uint64_t id);
/* Of a request that a process before carried out but did not answer; NULL: there is none. */
struct handle *handles_of_request(struct handles *t, uint64_t unique);
/* id: its node, if nothing needs that any more; else 0. */
uint64_t handles_remove(struct handles *t, uint64_t fh);
/* Take over an item of a process before (its descriptor too); tells whose it is. */
int handles_restore(struct handles *t, struct keeper_item *item, struct handle **out, struct caller *who);
/* The same of kept_shared.file[i]; reopen: a descriptor for the node, or a negative errno: then there is no
 * such handle any more. */
typedef int (*handles_reopen_fn)(void *arg, uint64_t id, int flags);
int handles_restore_kept(struct handles *t, size_t i, handles_reopen_fn reopen, void *arg,
                         struct handle **out, struct caller *who);

/* What the open files are that have no name any more; the caller frees *out. */
size_t handles_unlinked(struct handles *t, struct stat **out);

/* The path of a writer's handle, appended; false: it is none.  Set it (owned by h from then on). */
bool handles_writer_path(struct handles *t, const struct handle *h, struct buf *path);
void handles_set_path(struct handles *t, struct handle *h, char *path);
/* Take it away from the handle, which is being closed: owned by the caller, NULL: there is none. */
char *handles_take_path(struct handles *t, struct handle *h);
/* A node that was opened without a name has one now: its writers write there.  How many they are. */
unsigned handles_named(struct handles *t, uint64_t id, const char *path);
/* Writers of `from` or below it write below `to` from now on; fn is told of each (with the table locked: it
 * may only note). */
typedef void (*handles_moved_fn)(void *arg, const struct handle *h, const char *was);
void handles_move(struct handles *t, const char *from, const char *to, bool exchange, handles_moved_fn fn,
                  void *arg);

#endif
