/*
 * The file system as a whole: what the operations (ops_*.c) share.
 *
 * The way of a request: ops.c's table -> an operation in ops_*.c -> place (what does the layout say about
 * this path?)
 * -> the scheduler (generated files), or the store through backing.h (users' files) -> one reply.
 *
 * Locks, in the order in which they may be taken: dir_lock (one of a few, by folder id) -> writers -> those
 * inside nodes, backing, renders, handles and sched, which are leaves and never held across each other, but
 * for handles, which may ask nodes.
 */
#ifndef DTX_FSD_FS_H
#define DTX_FSD_FS_H

#include <fuse_lowlevel.h>
#include <pthread.h>

#include "fsd/backing.h"
#include "fsd/handles.h"
#include "fsd/kept.h"
#include "fsd/nodes.h"
#include "fsd/passthrough.h"
#include "fsd/render_cache.h"
#include "fsd/space.h"
#include "mnt-layout/layout.h"
#include "scheduler/sched.h"

enum { FS_DIR_LOCKS = 64, FS_NAME_MAX = 255, FS_FAMILIES = 256 };

struct fs {
    struct sched *sched;
    struct kept *kept; /* borrowed */
    struct nodes *nodes;
    struct backing *backing;
    struct render_cache *renders;
    struct handles *handles;
    struct space *space;
    struct passthrough *pass;
    struct fuse_session *se;      /* borrowed; NULL before session_serve */
    struct linger *linger;        /* ops_pass.c */
    bool want_passthrough;        /* set before session_serve */
    int tree_fd;                  /* borrowed */
    bool root;                    /* may give files away */
    uint64_t family[FS_FAMILIES]; /* atomic; ops_pass.c */
    /* A lookup (read) must not bind a name that an unlink (write) has just taken away. */
    pthread_rwlock_t dir_lock[FS_DIR_LOCKS];
    /* A writer's path and what the scheduler was told of it change together: else a close beside a rename
     * would be told of the old name, and the new one count as being written for ever. */
    pthread_mutex_t writers;
    struct touch *touch; /* atomic; NULL: no inotify events for what DTX changes */
};

/* Takes over what a process before had open. sched must be open. */
int fs_init(struct fs *f, struct sched *sched, struct kept *kept, const char *store, struct dtx_err *e);
void fs_release(struct fs *f);
extern const struct fuse_lowlevel_ops fs_ops; /* userdata: struct fs */

/* ---- place.c: what a path is ---- */

struct place {
    struct buf path;       /* relative to the mount; owned */
    struct layout_match m; /* m.rest points into path */
    enum node_owner owner;
};

/* All give -ENOENT where the layout knows no such path; release the place in any case. */
int place_of_node(struct fs *f, uint64_t id, struct place *p);
int place_of_child(struct fs *f, uint64_t parent, const char *name, struct place *p);
int place_of_path(const char *path, struct place *p);
void place_release(struct place *p);
/* May a caller create an object of this type (S_IFMT) of this name here?  Fills p. */
int place_may_create(struct fs *f, uint64_t parent, const char *name, mode_t type, uid_t uid,
                     struct place *p);

/* ---- attr.c: attributes of nodes and names ---- */

struct fs_attr {
    struct stat st; /* st_ino is the node id */
    double attr_timeout, entry_timeout;
};

enum {
    FS_COUNT = 1 /* the kernel will count it */,
    FS_TYPE_ONLY = 2 /* only st_ino and the type in st_mode */
};

/* Look a name up, binding it to a node. */
int fs_lookup_name(struct fs *f, uint64_t parent, const char *name, int flags, struct node_info *node,
                   struct fs_attr *a);
int fs_attr_of(struct fs *f, uint64_t id, struct fs_attr *a);
/* Bind a name that was just made in the store (dirfd is the folder's; fd: of what was made, or -1). */
int fs_bind_new(struct fs *f, uint64_t parent, int dirfd, const char *name, int fd, struct node_info *node,
                struct fs_attr *a);
/* The newest rendering of a generated file. */
int fs_render(struct fs *f, uint64_t id, const struct place *p, enum render_use use, struct snapshot **out);
void fs_fill_entry(const struct node_info *node, const struct fs_attr *a, struct fuse_entry_param *e);

/* ---- fs.c: small things ---- */

struct fs *fs_of(fuse_req_t req);
struct caller fs_caller(fuse_req_t req);
/* Tell the scheduler about a user-owned path. */
void fs_event(struct fs *f, fuse_req_t req, enum drop_event ev, const char *path);
void fs_event_node(struct fs *f, fuse_req_t req, enum drop_event ev, uint64_t id);
/* A change that must not be made twice begins: was it begun by a process before? (kept.h) */
bool fs_again(fuse_req_t req);
/* If the request says so, take the set-id bits of a file away, as Linux does when it is written. 1: it had
 * some */
int fs_kill_setid_of(fuse_req_t req, int fd);
/* The same, of a node's file; the kernel is told.  0 or negative errno */
int fs_kill_setid(fuse_req_t req, uint64_t id, int fd);
/* 0, or -EPERM while a job holds it. */
int fs_may_change_node(struct fs *f, fuse_req_t req, uint64_t id);
/* The kernel dropped lookups of a node, or was not told about one after all. */
void fs_forget(struct fs *f, uint64_t id, uint64_t count);
/* A name of the node is about to go or to change, until nodes_stay: from here on a process after this one
 * finds its open files, and those below it, without it.  True: it is open itself. */
bool fs_leave(struct fs *f, const struct node_info *node);
void fs_lock_name(struct fs *f, uint64_t parent);
void fs_unlock_name(struct fs *f, uint64_t parent);
void fs_lock_names(struct fs *f, uint64_t a, uint64_t b);
void fs_unlock_names(struct fs *f, uint64_t a, uint64_t b);
void fs_lock_lookup(struct fs *f, uint64_t parent);
void fs_unlock_lookup(struct fs *f, uint64_t parent);
void fs_reply_err(fuse_req_t req, int rc); /* rc: 0 or negative errno */
/* The node of a path (which is cut up), as far as lookups have bound it.  *parent and *name (in path) are
 * those of the last component; when one before that is not bound, *parent is 0 and the result -ENOTDIR. */
int fs_find_path(struct fs *f, char *path, uint64_t *parent, const char **name, struct node_info *node);
/* Is it a generated file or folder of something that is not there any more? */
bool fs_is_gone(struct fs *f, uint64_t id);
/* Names in a folder, as a caller sees them. */
int fs_list(struct fs *f, uint64_t id, struct listing *l);

/* ---- growth.c: space.h at a request ---- */

/* Something new is to be made in a folder, in the caller's name.  An error has been told to the scheduler. */
int fs_claim_new(fuse_req_t req, const char *path, struct space_claim *c);
/* n bytes are to be written at off of what is open at fd (n 0: nothing grows).  path: NULL if it has none. */
int fs_claim_write(fuse_req_t req, int fd, off_t off, off_t n, const char *path, struct space_claim *c);
/* The size is to become `size`. */
int fs_claim_size(fuse_req_t req, int fd, off_t size, const char *path, struct space_claim *c);
/* rc: 0 or the error that the store gave; one for want of space is told to the scheduler. fd -1: nothing was
 * made. */
void fs_settle(fuse_req_t req, struct space_claim *c, int fd, const char *path, int rc);
/* A name is about to go: an O_PATH descriptor for space_note afterwards, or -1. */
int fs_hold(int dirfd, const char *name);
/* Look at what is held again, and let go of it. */
void fs_note_held(struct fs *f, int fd, const char *path);

/* ---- operations ---- */

/* ops_attr.c */
void fs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
void fs_op_readlink(fuse_req_t req, fuse_ino_t ino);
void fs_op_statfs(fuse_req_t req, fuse_ino_t ino);
void fs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                    int flags);
void fs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void fs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void fs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
/* ops_dir.c */
void fs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void fs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void fs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
/* ops_name.c */
void fs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void fs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void fs_op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void fs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void fs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                  struct fuse_file_info *fi);
/* ops_remove.c */
void fs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void fs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
/* Hide a generated file (rm -r), also from a process after this one. */
int fs_hide(struct fs *f, const struct place *p, const struct caller *who);
void fs_restore_hidden(struct fs *f, const struct keeper_item *item);
/* ops_rename.c */
void fs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                  const char *newname, unsigned int flags);
/* ops_file.c */
void fs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void fs_op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t off,
                     struct fuse_file_info *fi);
void fs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                     struct fuse_file_info *fi);
void fs_op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t off_in, struct fuse_file_info *fi_in,
                           fuse_ino_t out, off_t off_out, struct fuse_file_info *fi_out, size_t len,
                           int flags);
void fs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
/* If a process before has carried this very open out: its handle goes into fi. */
struct handle *fs_opened_before(fuse_req_t req, struct fuse_file_info *fi);
/* A handle was made: if it is a writer's, the scheduler is told now, and again when it is closed. */
void fs_writer_opened(fuse_req_t req, struct handle *h, const struct place *p);
void fs_writer_wrote(fuse_req_t req, struct handle *h);
/* Something was renamed: who writes in it writes there from now on. */
void fs_writers_moved(fuse_req_t req, const char *from, const char *to, bool exchange);
/* Forget a handle, telling the scheduler if it was a writer's. */
void fs_close_handle(fuse_req_t req, uint64_t fh);
/* Make a handle for a file of the store that is open at fd (taken over), and fill fi for the reply.  p: where
 * a writer's file is; NULL: it has no name any more.  NULL: no memory. */
struct handle *fs_file_handle(fuse_req_t req, const struct node_info *node, int fd, const struct place *p,
                              struct fuse_file_info *fi);
/* ops_pass.c: past us or through us (passthrough.h) */
/* How the handle's file is opened; it is given to the keeper as it is then.  Fills fi and arms the reply,
 * which must follow in this thread. */
int fs_pass_open(fuse_req_t req, struct handle *h, struct fuse_file_info *fi);
/* A file was made under this name, before fs_pass_open: how large were those like it?  And when it is closed:
 * how large has it become? */
void fs_family_expect(struct fs *f, struct handle *h, uint64_t folder, const char *name);
void fs_family_learn(struct fs *f, const struct handle *h, off_t size);
/* The same for a file that is open already. */
void fs_pass_fill(const struct handle *h, struct fuse_file_info *fi);
/* The handle of a writer is being closed: can its file still be written, through a mapping?  Then its release
 * is told later. */
bool fs_pass_lingers(fuse_req_t req, const struct handle *h, const char *path);
void fs_linger_round(struct fs *f); /* once a second */
int fs_linger_new(struct fs *f);
void fs_linger_free(struct fs *f);
/* ops_text.c: generated files */
void fs_touch_open(fuse_req_t req, struct fuse_file_info *fi);
void fs_text_open(fuse_req_t req, const struct node_info *node, struct fuse_file_info *fi);
void fs_text_read(fuse_req_t req, struct handle *h, size_t size, off_t off);
void fs_text_write(fuse_req_t req, struct handle *h, struct fuse_bufvec *in);
void fs_text_lseek(fuse_req_t req, struct handle *h, off_t off, int whence);

#endif
