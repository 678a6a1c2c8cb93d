/*
 * The child's side of the keeper (keeper.h): what a successor finds when this process dies at any moment.
 *
 *  - Memory shared with successors (struct kept_shared): INIT and our answer, changes of nodes that are not
 * in nodes.db yet, which requests were begun, and what is open: a user's file, which a successor opens again
 * by its name, a generated file with its text.
 *  - Descriptors with the keeper: /dev/fuse; with its handle's number each open file that could not be opened
 * again (before it loses its name, so that an unlinked one lives on), and the text of each open generated
 * file for which there is no room in the memory.
 * All of it is there before the reply that makes the kernel count on it.
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

enum { KEPT_INIT_MAX = 256, KEPT_ONCE = 1024, KEPT_FILES = 4096, KEPT_DATA = 128, KEPT_TEXT = 8192 };

struct kept_once {
    uint64_t unique; /* of the request; 0: free; atomic */
    uint64_t note;
    int32_t done, rc;
};

/* An open file; handles.c knows what is in data. */
struct kept_file {
    uint64_t fh;   /* 0: free; atomic: set when the rest is there */
    uint32_t text; /* bytes in kept_shared.text */
    uint8_t data[KEPT_DATA];
};

struct kept_shared {
    uint64_t starts;    /* handles of this child: starts << 32 and up */
    uint32_t init_len;  /* of the kernel's INIT; 0: none yet */
    uint32_t reply_len; /* of our answer to it, header and all */
    uint8_t init[KEPT_INIT_MAX], reply[KEPT_INIT_MAX];
    struct kept_once once[KEPT_ONCE];
    struct change_log changes;
    struct kept_file file[KEPT_FILES];
    uint8_t text[KEPT_FILES][KEPT_TEXT]; /* of generated files; pages that were never used take no memory */
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
