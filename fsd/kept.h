/*
 * The child's side of the keeper (keeper.h): what a successor finds when this process dies at any moment.
 *
 *  - Descriptors with the keeper: /dev/fuse; each open file with its handle's number (so an unlinked one
 * lives on); the text of each open generated file.  They are sent before the reply that makes the kernel
 * count on them.
 *  - Memory shared with successors (struct kept_shared): INIT and our answer, changes of nodes that are not
 * in nodes.db yet, and which requests were begun.
 *
 * Requests that run twice.  A successor asks the kernel to send again what was not answered; such a request
 * carries a mark in its number.  It may have been carried out, or half of it, or not at all.  Most requests
 * may simply run again (reads, writes at an offset, truncation).  One that may not calls kept_begin first; if
 * that says `again`, an earlier process had begun it, and the operation takes for its own work what it finds
 * done: the kernel holds the folder's lock meanwhile, so nobody else can have done it.  Where that cannot be
 * seen (a word written to a control file, an exchange of two names) kept_done records the result before the
 * reply.
 *
 * Every function may be called from any thread once kept_open has returned.
 */
#ifndef DTX_FSD_KEPT_H
#define DTX_FSD_KEPT_H

#include <stddef.h>

#include "fsd/change_log.h"
#include "fsd/keeper.h"

enum { KEPT_INIT_MAX = 256, KEPT_ONCE = 1024 };

struct kept_once {
    uint64_t unique; /* of the request; 0: free; atomic */
    uint64_t note;
    int32_t done, rc;
};

struct kept_shared {
    uint64_t starts;    /* handles of this child: starts << 32 and up */
    uint32_t init_len;  /* of the kernel's INIT; 0: none yet */
    uint32_t reply_len; /* of our answer to it, header and all */
    uint8_t init[KEPT_INIT_MAX], reply[KEPT_INIT_MAX];
    struct kept_once once[KEPT_ONCE];
    struct change_log changes;
};

struct kept {
    int sock;
    struct kept_shared *shared;
    struct keeper_item *item; /* of the predecessor */
    size_t items;
    int mount_fd; /* taken over with the mount; -1: there is none yet */
};

/* arg: of --kept.  Takes over what there is. */
int kept_open(const char *arg, struct kept **out, struct dtx_err *e);
void kept_close(struct kept *k);

/* fd is duplicated; -1: none.  data: up to KEEPER_DATA bytes. */
void kept_put(struct kept *k, enum keeper_kind kind, uint64_t key, const void *data, size_t n, int fd);
void kept_drop(struct kept *k, enum keeper_kind kind, uint64_t key);
void kept_ready(struct kept *k, bool resends);
void kept_failed(struct kept *k, const char *why);

/* ---- the request that this thread works on ---- */

void kept_request(uint64_t unique); /* it was just read from the kernel */
uint64_t kept_unique(void);         /* its number, without the mark */
bool kept_resent(void);
/* Its reply was written. */
void kept_answered(struct kept *k);

struct kept_turn {
    bool again; /* an earlier process has begun it */
    bool done;  /* ... and recorded the result rc */
    int rc;
    uint64_t note; /* as of the first time */
};

/* Before a change that must not be made twice. */
struct kept_turn kept_begin(struct kept *k, uint64_t note);
void kept_done(struct kept *k, int rc);

#endif
