/*
 * Who uses how much of the store, and who may still grow.
 *
 * What a file takes (its blocks; at least SPACE_INODE bytes) is counted for its owner, each inode once.  The
 * counts come from a scan of the store in a thread of its own (at start, then about once a minute, never more
 * than a fiftieth of the time) and, between scans, from what goes through the mount: a file that was written,
 * truncated, unlinked, replaced or given away is looked at again (fstat) and its difference added.  So
 * nothing drifts, holes and hard links count as on the disk, and what is done behind the mount's back is seen
 * within a minute.  A file that was unlinked while it is open counts until it is closed.
 *
 * A growth is claimed before it is made, so that many writers together do not pass a limit, and settled when
 * it is known what became of it.  Of owners without a limit only the settled state of closed files is
 * counted.
 *
 * Every function may be called from any thread.  None waits for the disk, but for one fstat or fstatvfs.
 */
#ifndef DTX_FSD_SPACE_H
#define DTX_FSD_SPACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/types.h>

#include "scheduler/base/err.h"

struct sched;
struct space;

enum { SPACE_INODE = 1024, SPACE_WORDS = 512 };

/* Files that are open and have no name any more, which no scan of the store finds; the caller frees *out. */
typedef size_t (*space_unlinked_fn)(void *arg, struct stat **out);

/* Starts the thread, and gives the scheduler what status shows: so free it after sched_close.  store_fd is
 * borrowed; unlinked is called in the thread. */
int space_new(struct sched *sched, int store_fd, space_unlinked_fn unlinked, void *arg, struct space **out,
              struct dtx_err *e);
void space_free(struct space *sp);

struct space_claim {
    uid_t owner;
    int64_t bytes; /* -1: nothing to settle */
};

/* May the file that is open at fd (O_PATH will do) get n bytes written at off?  0, -EDQUOT or -ENOSPC, with
 * the words for it in why.  Settle the claim in any case after a 0. */
int space_claim_write(struct space *sp, int fd, off_t off, off_t n, struct space_claim *c,
                      char why[SPACE_WORDS]);
/* The same for a growth that is known: a new file (SPACE_INODE), a longer size. */
int space_claim_bytes(struct space *sp, uid_t owner, int64_t bytes, struct space_claim *c,
                      char why[SPACE_WORDS]);
/* fd: what it is now; -1: it came to nothing.  path: of it in the mount, NULL if it has none. */
void space_settle(struct space *sp, struct space_claim *c, int fd, const char *path);
/* Look at a file again: it was closed by a writer, truncated, renamed, given away, or lost a name. */
void space_note(struct space *sp, int fd, const char *path);
void space_note_stat(struct space *sp, const struct stat *st, const char *path);
/* Names moved: a scan that is under way may have missed some. */
void space_moved(struct space *sp);
/* More changed than was told (a folder was removed or renamed): scan soon. */
void space_look(struct space *sp);

/* Is there a limit that writes to this owner's files have to be checked against?  Such files must not be
 * given to the kernel to write past us (passthrough). */
bool space_limited(struct space *sp, uid_t owner);
/* What df shows this caller: the disk's figures, bounded by the limits. */
void space_statvfs(struct space *sp, uid_t caller, struct statvfs *v);
/* "the disk of the store is full ...": for an ENOSPC that the store itself gave. */
void space_full_words(struct space *sp, char why[SPACE_WORDS]);

#endif
