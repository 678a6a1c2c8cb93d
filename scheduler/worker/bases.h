/*
 * Base models in memory, each with its tokenizer and the adapters loaded for it.
 *
 * base_get and adapter_get count a user; base_put and adapter_put give it back.  What has no user stays
 * loaded until its memory is needed (room_make), least recently used first.  A folder whose files have
 * changed since (signature: names, sizes, times) is another base or adapter and is loaded anew.
 */
#ifndef DTX_WORKER_BASES_H
#define DTX_WORKER_BASES_H

#include "scheduler/worker/worker.h"

struct adapter_entry {
    struct adapter_entry *next;
    struct base_entry *base;
    char *dir;           /* relative to STORE */
    char *template_name; /* chat form it was trained with (info.json); NULL: the default */
    uint64_t signature;
    struct dtx_adapter *adapter;
    int users;
    int64_t used_ns;
};

struct base_entry {
    struct base_entry *next;
    char *dir, *name; /* relative to STORE; its last component */
    uint64_t signature;
    struct dtx_base *base;
    struct dtx_tokenizer *tokenizer;
    struct adapter_entry *adapters;
    struct dtx_plan plan; /* of the jobs that train on it */
    bool replan;          /* one of them has left */
    int users;
    int64_t used_ns;
};

/* -EAGAIN: would fit if others ended (words say what is needed and free); -ENOMEM: can never fit. */
int base_get(struct worker *w, const char *dir, uint64_t beside, struct base_entry **out, struct dtx_err *e);
void base_put(struct base_entry *b);
bool base_resident(const struct worker *w, const char *dir);
/* promised: its memory is counted already (a job that loads what it exported).  Errors as base_get. */
int adapter_get(struct worker *w, struct base_entry *b, const char *dir, bool promised,
                struct adapter_entry **out, struct dtx_err *e);
void adapter_put(struct adapter_entry *a);
/* Free the least recently used base without users, or, if there is none, an adapter.  False: nothing to free.
 */
bool bases_drop_one(struct worker *w, const struct base_entry *keep);
void bases_release(struct worker *w);

/* Over names, sizes and times of the files in a folder (0: it cannot be read). */
uint64_t folder_signature(int dirfd, const char *dir);

#endif
