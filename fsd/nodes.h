/*
 * Node ids: the 64-bit numbers by which the kernel (and an NFS client's handle) names files.
 *
 * An id is given once and never again: neither pointers nor the backing inode's number, which is used again
 * after a removal.  Ids, names and generations live in STORE/nodes.db and in memory, so that (id, generation)
 * means the same file after a restart of the daemon.  A row (parent id, name) -> id is a name; a node with
 * several is hard-linked; a renamed folder takes everything below it along by one row.
 *
 * Durability.  Changes are written behind, a batch every NODES_FLUSH_MS, without fsync: a killed daemon
 * forgets at most that much (such a handle turns stale, it never means another file, because ids are taken
 * from blocks that were reserved durably beforehand).  nodes_sync makes everything durable; an fsync of a
 * file does it.
 *
 * Which file a backed node is, is checked with its key (device, inode, birth time): a file that was replaced
 * behind the mount's back gets a new id.  A generated node's identity is its name; its key is all zero.
 *
 * Every function may be called from any thread.
 */
#ifndef DTX_FSD_NODES_H
#define DTX_FSD_NODES_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

enum { NODE_ROOT = 1, NODES_FLUSH_MS = 200 };

/* Who a node belongs to; what it is told to do follows from that. */
enum node_owner {
    NODE_GENERATED, /* made by DTX from what it knows */
    NODE_USER,      /* passed through to the store */
    NODE_STORE,     /* in the store, written by DTX, read-only through the mount */
};

struct node_key {
    uint64_t dev, ino;
    int64_t btime; /* ns; 0 where the backing file system has no birth times */
};

struct node_info {
    uint64_t id;
    uint64_t generation; /* 32 bits: an NFS handle has no room for more */
    uint64_t parent;     /* of its current name; 0: it has no name any more */
    struct node_key key;
    enum node_owner owner;
    bool is_dir;
};

struct nodes;
struct change_log;

/* log: where changes are until they are in the database (change_log.h), or NULL; what is in it is applied
 * first. taken_over: the kernel may know any of the nodes, from a process before this one. */
int nodes_open(const char *db_path, struct change_log *log, bool taken_over, struct nodes **out,
               struct dtx_err *e);
/* Everything is written durably.  Frees n. */
void nodes_close(struct nodes *n);

/* The node that (parent, name) means: the one with that key (or, generated, of that name) if there is one,
 * else a new one.  A name that meant another node loses it.  With count, the kernel's lookup count goes up by
 * one. */
int nodes_bind(struct nodes *n, uint64_t parent, const char *name, const struct node_info *what, bool count,
               struct node_info *out);
int nodes_get(struct nodes *n, uint64_t id, struct node_info *out);                        /* -ESTALE */
int nodes_find(struct nodes *n, uint64_t parent, const char *name, struct node_info *out); /* -ENOENT */
/* The k-th name of a node (0 = the current one), appended to *name. -ENOENT after the last. */
int nodes_name(struct nodes *n, uint64_t id, unsigned k, uint64_t *parent, struct buf *name);
/* Path relative to the root, without a leading slash, appended.  -ESTALE: it has none any more. */
int nodes_path(struct nodes *n, uint64_t id, struct buf *path);

/* The name is gone (and, for a folder, all names below it). */
void nodes_unbind(struct nodes *n, uint64_t parent, const char *name);
void nodes_rename(struct nodes *n, uint64_t parent, const char *name, uint64_t newparent,
                  const char *newname);
void nodes_exchange(struct nodes *n, uint64_t parent, const char *name, uint64_t newparent,
                    const char *newname);

/* The kernel knows this node, from a process before: if it is not there, it has no name any more. */
int nodes_restore(struct nodes *n, const struct node_info *info);

/* The kernel learns the node by its id: its lookup count goes up by one. -ESTALE */
int nodes_count_lookup(struct nodes *n, uint64_t id);
/* The kernel has dropped `count` lookups; true: it knows the node no more. */
bool nodes_forget(struct nodes *n, uint64_t id, uint64_t count);
/* An open handle needs the node, and does no more; true: the kernel knows it no more. */
void nodes_use(struct nodes *n, uint64_t id);
bool nodes_unuse(struct nodes *n, uint64_t id);
bool nodes_is_open(struct nodes *n, uint64_t id); /* does an open handle use it? */
/* A name of it is about to go or to change, until nodes_stay.  True: it is open. */
bool nodes_leave(struct nodes *n, uint64_t id);
void nodes_stay(struct nodes *n, uint64_t id);
/* Would a process after this one, whenever it begins, find it by its name? */
bool nodes_stays(struct nodes *n, uint64_t id);
/* Is it in that folder, at any depth, or the folder itself? */
bool nodes_below(struct nodes *n, uint64_t id, uint64_t folder);
bool nodes_known(struct nodes *n, uint64_t id); /* has the kernel looked it up, or may it have? */

/* DTX's own nodes (generated, or of the store) in a folder that the kernel knows. */
size_t nodes_own_children(struct nodes *n, uint64_t folder, struct node_info *out, size_t max);

int nodes_sync(struct nodes *n, struct dtx_err *e);
uint64_t nodes_count(struct nodes *n);

#endif
