/* The counts of space.h: inodes, their owners, the objects they lie in.  The caller locks. */
#ifndef DTX_FSD_SPACE_TABLE_H
#define DTX_FSD_SPACE_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "scheduler/sched.h"

struct space_owner { /* lives as long as the table */
    struct space_owner *next;
    uid_t uid;
    char name[64]; /* "": not looked up yet */
    int64_t bytes, files;
    int64_t claimed;
    struct sched_limits limits;
    unsigned version; /* of limits */
};

struct space_object { /* datasets/NAME, models/tuned/NAME, ...: while it has inodes */
    struct space_object *next;
    struct space_owner *owner; /* of the inode that was counted last */
    int64_t bytes, files;
    char path[];
};

struct space_inode {
    struct space_inode *next;
    uint64_t dev, ino;
    int64_t bytes;
    struct space_owner *owner;
    struct space_object *object; /* or NULL */
    unsigned seen;
};

struct space_table {
    struct space_owner *owners;
    struct space_object **objects;
    struct space_inode **inodes;
    size_t inode_buckets, ninodes; /* a power of two */
    int64_t bytes, claimed;
    unsigned now; /* what inodes that are seen are marked with */
    bool new_owner;
};

int space_table_init(struct space_table *t);
void space_table_release(struct space_table *t);
struct space_owner *space_owner_of(struct space_table *t, uid_t uid); /* NULL: no memory */
/* Count a file as it is.  path: in the mount, or NULL: where it was. */
void space_count(struct space_table *t, const struct stat *st, uid_t uid, const char *path);
void space_discount(struct space_table *t, const struct stat *st);
/* Forget inodes that were last marked before `oldest`. */
void space_sweep(struct space_table *t, unsigned oldest);
/* Of an owner's, or NULL. */
const struct space_object *space_largest(const struct space_table *t, const struct space_owner *o);

#endif
