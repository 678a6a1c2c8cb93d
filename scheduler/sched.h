/*
 * The scheduler as the file system sees it.
 *
 * One struct sched per daemon.  It owns the catalog (SQLite) and an in-memory copy of it, and runs one thread
 * of its own (events, timers, workers).  Every function here may be called from any FUSE thread, takes one
 * mutex for microseconds, and never blocks on a job, a plugin, a worker or the network.
 *
 * Store (a plain folder): STORE/tree/ mirrors the mount (users' files, and what DTX writes: logs, metrics,
 * checkpoints); STORE/work/EXP/JOB/ holds what the mount does not show (training state, token caches);
 * STORE/catalog.db, STORE/log. Paths in this interface are relative to the mount, which is relative to
 * STORE/tree.
 */
#ifndef DTX_SCHED_H
#define DTX_SCHED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "mnt-layout/layout.h"
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

struct sched;

struct sched_config {
    const char *store;  /* folder, exists */
    const char *config; /* administrator's configuration file (JSON) or NULL */
    const char *
        devices; /* "cpu", "cpu:N" (N workers), "cuda", "cuda:0,1", or NULL: cuda if there is one, else cpu */
    const char *worker; /* path of the dtx-worker program */
    const char *version;
};

struct caller { /* of a FUSE request */
    uid_t uid;
    gid_t gid;
    pid_t pid;
};

/* Opens and locks the store (-EBUSY: another daemon has it), recovers, starts workers and the thread. */
int sched_open(const struct sched_config *c, struct sched **out, struct dtx_err *e);
/* Orderly end: jobs are saved, workers end.  Frees s. */
void sched_close(struct sched *s);
/* Called (from any thread) when generated files or links under `path` may have changed or vanished, so that
 * the file system can invalidate the kernel's copies.  path "" = anything; "folder/" = also which names it
 * has. */
void sched_on_change(struct sched *s, void (*fn)(void *arg, const char *path), void *arg);

/* ---- what callers do to backed (user-owned) paths; called after the operation succeeded ---- */

enum drop_event {
    DROP_CREATE,     /* file created or truncated by open */
    DROP_OPEN_WRITE, /* a writer opened it (DROP_RELEASE pairs with it) */
    DROP_WRITE,
    DROP_FSYNC,
    DROP_RELEASE, /* a writer closed it */
    /* The same for what an NFS server opened: it keeps files open for hours after the client's close, so that
     * only a handle that something was written through counts, and that not for ever. */
    DROP_REMOTE_WRITER,  /* first write through such a handle */
    DROP_REMOTE_RELEASE, /* such a handle was closed after writes */
    DROP_RENAMED_IN,     /* path is the new name (of a file, or of a folder with all it holds) */
    DROP_RENAMED_OUT,    /* path is the old name */
    DROP_UNLINK,
    DROP_MKDIR,
    DROP_RMDIR,
    DROP_SETATTR,
    DROP_LINK, /* symbolic or hard link made */
};
void sched_drop_event(struct sched *s, enum drop_event ev, const char *path, const struct caller *who);

/* A local writer was noted (DROP_OPEN_WRITE): is what path belongs to RECEIVING, so that it stays so until
 * DROP_RELEASE whether or not DROP_WRITE is told? */
bool sched_receiving(struct sched *s, const char *path);

/* May `path` be changed, removed, renamed or truncated now?  0, or -EPERM when a job holds it (the log says
 * which). */
int sched_may_change(struct sched *s, const char *path, const struct caller *who);

/* Is the calling process in a group?  Takes no lock. */
bool caller_in_group(const struct caller *who, gid_t gid);
/* Does the request come from an NFS server, so that uid and gid are what its client claims?  Takes no lock.
 */
bool caller_is_remote(const struct caller *who);

/* FLUSH of a spec that was written: 0, or -EINVAL when it has been parsed and is wrong (its .status says
 * why). An empty or unwritten file gives 0. */
int sched_flush(struct sched *s, const char *path);

/* ---- generated files, folders and links; m comes from layout_lookup(path) ---- */

struct sched_attr {
    uid_t uid;
    gid_t gid;
    int64_t mtime_ns; /* wall clock, of the object's last change */
    mode_t closed;    /* permission bits that it does not have: what it tells of is private */
};

/* Does this generated file, folder or link exist now (are its {name}s known objects)?  0 or -ENOENT. */
int sched_stat(struct sched *s, const struct layout_match *m, struct sched_attr *attr);
/* Append the text of a generated file, or the target of a link.  0, -ENOENT. */
int sched_render(struct sched *s, const struct layout_match *m, struct buf *out);
/* Names (not declared literally in the table) in a generated folder: "EXP", "NAME.status", ... */
int sched_list(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
               void *arg);
/* One write(2) to a control file: whole lines.  Number of bytes taken = n, or -EINVAL (unknown word), -EPERM.
 */
int sched_write(struct sched *s, const struct layout_match *m, const char *data, size_t n,
                const struct caller *who);
/* unlink of a generated file: 0 = hidden for a minute (rm -r in progress); -EPERM where it makes no sense. */
int sched_unlink(struct sched *s, const struct layout_match *m, const struct caller *who);
/* rmdir of an experiment's, job's, service's or compare prompt's folder: deletes the object, cancels what
 * runs. */
int sched_rmdir(struct sched *s, const struct layout_match *m, const struct caller *who);
/* Is this path hidden by sched_unlink? (lookup and readdir leave it out) */
bool sched_hidden(struct sched *s, const char *path);

/* ---- space ---- */

struct sched_limits { /* of the administrator, for files of one owner; bytes, -1: none */
    int64_t quota, store_max, reserve;
};
void sched_limits(struct sched *s, uid_t uid, struct sched_limits *out);
/* Grows whenever the limits may have changed. Cheap. */
unsigned sched_limits_version(struct sched *s);

struct sched_usage { /* what one owner's files take */
    uid_t uid;
    char name[64]; /* "": not known yet */
    int64_t bytes, files;
};
/* Who can say it: fn fills at most max rows and returns their number; it must not call the scheduler. */
void sched_on_usage(struct sched *s, size_t (*fn)(void *arg, struct sched_usage *out, size_t max), void *arg);
/* A change of `path` was refused, or ended early, for want of space: in words to the log and to the object's
 * NAME.status.  What was cut off is REJECTED unless that file is begun again or removed. */
void sched_no_space(struct sched *s, const char *path, const struct caller *who, const char *words);

int sched_store_fd(const struct sched *s); /* descriptor of STORE; borrowed */
int sched_tree_fd(const struct sched *s);  /* descriptor of STORE/tree; borrowed */

#endif
