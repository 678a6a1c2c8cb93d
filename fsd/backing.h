/*
 * Files in the store: from a node id to a descriptor.
 *
 * A backed node is reached by an O_PATH descriptor, opened component by component from STORE/tree, never
 * following a link, and checked against the node's key; so neither a link that a caller made nor a rename
 * meanwhile leads out of the tree or to another file.  Descriptors are kept (the most recently used
 * BACKING_KEEP of them, for a minute); that of a file that was unlinked while the kernel knows it is pinned,
 * because it has no name to be opened by any more.
 *
 * Every function may be called from any thread.
 */
#ifndef DTX_FSD_BACKING_H
#define DTX_FSD_BACKING_H

#include <sys/stat.h>

#include "fsd/nodes.h"

struct backing;

struct backing_fd { /* borrowed from the cache until backing_put */
    int fd;         /* O_PATH */
    struct backing_entry *entry;
};

/* tree_fd is borrowed. keep: how many idle descriptors at most. */
int backing_new(int tree_fd, struct nodes *nodes, unsigned keep, struct backing **out);
void backing_free(struct backing *b);

/* The node's descriptor.  -ESTALE: it is not there any more, or another file is.  A generated folder's is
 * that of the folder at the same path in the store; -ENOENT if there is none. */
int backing_get(struct backing *b, uint64_t id, struct backing_fd *out);
void backing_put(struct backing *b, struct backing_fd *f);

/* Keep the node's descriptor until backing_drop (call before unlinking a file that the kernel knows). */
void backing_pin(struct backing *b, uint64_t id);
/* The same with a descriptor that is at hand, duplicated: the file may have lost its name already. */
void backing_pin_fd(struct backing *b, uint64_t id, int fd);
void backing_drop(struct backing *b, uint64_t id);
/* Close what was idle for a minute. */
void backing_tidy(struct backing *b);

/* Attributes and identity of `name` in the folder dirfd ("" = dirfd itself).  Links are not followed. */
int backing_stat(const struct backing *b, int dirfd, const char *name, struct stat *st, struct node_key *key);
/* Open what an O_PATH descriptor means.  Only regular files and folders: anything else is -EINVAL. */
int backing_reopen(int path_fd, int flags);
/* "/proc/self/fd/N", for the calls that take no descriptor. */
const char *backing_proc_path(int fd, char out[40]);

#endif
