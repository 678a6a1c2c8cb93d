/* The file system object, and the small things that the operations share. */
#include "fsd/channel.h"
#include "fsd/fs.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/log.h"

/* As many descriptors as we may have: half of them are for the cache of backing.c. */
static unsigned raise_descriptor_limit(void)
{
    struct rlimit lim;
    unsigned long keep;

    if (getrlimit(RLIMIT_NOFILE, &lim))
        return 256;
    lim.rlim_cur = lim.rlim_max;
    if (lim.rlim_cur > 1 << 20)
        lim.rlim_cur = 1 << 20;
    setrlimit(RLIMIT_NOFILE, &lim);
    getrlimit(RLIMIT_NOFILE, &lim);
    keep = lim.rlim_cur / 4;
    return keep > 16384 ? 16384 : (unsigned)keep;
}

/* The folders of DTX's that callers create objects in, and those above them, as the table declares them. */
static int make_store_folders(int tree_fd, struct dtx_err *e)
{
    struct stat st;

    for (size_t i = 0; i < layout_count; i++) {
        const struct layout_entry *row = &layout_table[i];
        if (strchr(row->pattern, '{') || strchr(row->pattern, '*') || !*row->pattern)
            continue;
        if (row->kind != LK_DIR && row->kind != LK_DROP_DIR)
            continue;
        if (mkdirat(tree_fd, row->pattern, 0755) && errno != EEXIST)
            return dtx_fail_errno(e, "cannot make tree/%s in the store", row->pattern);
        if (fstatat(tree_fd, row->pattern, &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode))
            return dtx_fail(e, -ENOTDIR, "tree/%s in the store is not a folder", row->pattern);
        /* sticky: it has been set up before, and keeps the permissions that an administrator gave it since */
        if (row->kind == LK_DROP_DIR && !(st.st_mode & S_ISVTX) &&
            fchmodat(tree_fd, row->pattern, row->mode, 0))
            return dtx_fail_errno(e, "cannot set the permissions of tree/%s in the store", row->pattern);
    }
    return 0;
}

static size_t unlinked_files(void *handles, struct stat **out)
{
    return handles_unlinked(handles, out);
}

static int open_parts(struct fs *f, const char *store, struct dtx_err *e)
{
    char path[PATH_MAX];
    int rc = make_store_folders(f->tree_fd, e);

    if (rc)
        return rc;
    if (snprintf(path, sizeof(path), "%s/nodes.db", store) >= (int)sizeof(path))
        return dtx_fail(e, -ENAMETOOLONG, "the store's path is too long");
    rc = nodes_open(path, &f->kept->shared->changes, f->kept->mount_fd >= 0, &f->nodes, e);
    if (rc)
        return rc;
    rc = backing_new(f->tree_fd, f->nodes, raise_descriptor_limit(), &f->backing);
    if (rc)
        return dtx_fail(e, rc, "cannot look at tree/ in the store: %s", strerror(-rc));
    f->renders = render_cache_new();
    f->handles = handles_new(f->nodes, f->kept, f->root);
    f->pass = passthrough_new();
    if (!f->renders || !f->handles || !f->pass || fs_linger_new(f))
        return dtx_fail(e, -ENOMEM, "out of memory");
    return space_new(f->sched, sched_store_fd(f->sched), unlinked_files, f->handles, &f->space, e);
}

/* ---- what a process before had open ---- */

static int handle_restored(struct fs *f, struct handle *h, const struct caller *who)
{
    struct buf path = BUF_INIT;
    size_t n;
    int rc = h->kind == HANDLE_FILE ? passthrough_restore(f->pass, h->id, h->pass) : 0;

    if (!rc && h->writer && nodes_path(f->nodes, h->id, &path) == 0 && path.p) {
        if (!h->remote)
            sched_drop_event(f->sched, DROP_OPEN_WRITE, path.p, who);
        if (h->pass.mode != PASS_CACHED) /* what is written past us goes on */
            sched_drop_event(f->sched, DROP_WRITE, path.p, who);
        h->path = buf_detach(&path, &n);
    }
    buf_release(&path);
    return rc;
}

static int restore_given(struct fs *f, struct keeper_item *item)
{
    struct caller who;
    struct handle *h;
    int rc = handles_restore(f->handles, item, &h, &who);

    if (rc)
        return rc;
    if (h->kind == HANDLE_FILE)
        backing_pin_fd(f->backing, h->id, h->fd);
    return handle_restored(f, h, &who);
}

static int reopen(void *arg, uint64_t id, int flags)
{
    struct fs *f = arg;
    struct backing_fd file;
    int rc = backing_get(f->backing, id, &file);

    if (rc)
        return rc;
    rc = backing_reopen(file.fd, flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_NOATIME));
    backing_put(f->backing, &file);
    return rc;
}

/* What cannot be opened again (it was removed behind the mount's back) is lost: using it gives EBADF. */
static int restore_kept(struct fs *f, size_t i, size_t *handles)
{
    struct caller who;
    struct handle *h;
    int rc = handles_restore_kept(f->handles, i, reopen, f, &h, &who);

    if (rc == -ENOMEM)
        return rc;
    if (rc) {
        if (rc != -EEXIST)
            log_line("an open file cannot be opened again: %s", strerror(-rc));
        return 0;
    }
    ++*handles;
    return handle_restored(f, h, &who);
}

static int restore_all(struct fs *f, struct dtx_err *e)
{
    struct kept *k = f->kept;
    size_t handles = 0;
    int rc = 0;

    for (size_t i = 0; !rc && i < k->items; i++) {
        if (k->item[i].kind == KEEPER_HANDLE) {
            rc = restore_given(f, &k->item[i]);
            handles++;
        } else if (k->item[i].kind == KEEPER_HIDDEN) {
            fs_restore_hidden(f, &k->item[i]);
        }
    }
    for (size_t i = 0; !rc && i < KEPT_FILES; i++)
        if (k->shared->file[i].fh)
            rc = restore_kept(f, i, &handles);
    if (rc)
        return dtx_fail(e, rc, "cannot take over what was open: %s", strerror(-rc));
    if (k->mount_fd >= 0)
        log_line("taking the mount over: %zu open files", handles);
    return 0;
}

int fs_init(struct fs *f, struct sched *sched, struct kept *kept, const char *store, struct dtx_err *e)
{
    int rc;

    *f = (struct fs){.sched = sched, .kept = kept, .tree_fd = sched_tree_fd(sched), .root = geteuid() == 0};
    for (int i = 0; i < FS_DIR_LOCKS; i++)
        pthread_rwlock_init(&f->dir_lock[i], NULL);
    pthread_mutex_init(&f->writers, NULL);
    rc = open_parts(f, store, e);
    if (!rc)
        rc = restore_all(f, e);
    if (rc) {
        sched_on_usage(sched, NULL, NULL); /* it lives on */
        fs_release(f);
    }
    return rc;
}

void fs_release(struct fs *f)
{
    space_free(f->space);
    fs_linger_free(f);
    handles_free(f->handles);
    passthrough_free(f->pass);
    render_cache_free(f->renders);
    backing_free(f->backing);
    nodes_close(f->nodes);
    for (int i = 0; i < FS_DIR_LOCKS; i++)
        pthread_rwlock_destroy(&f->dir_lock[i]);
    pthread_mutex_destroy(&f->writers);
}

struct fs *fs_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

struct caller fs_caller(fuse_req_t req)
{
    const struct fuse_ctx *c = fuse_req_ctx(req);

    return (struct caller){c->uid, c->gid, c->pid};
}

void fs_event(struct fs *f, fuse_req_t req, enum drop_event ev, const char *path)
{
    struct caller who = fs_caller(req);

    sched_drop_event(f->sched, ev, path, &who);
}

bool fs_again(fuse_req_t req)
{
    return kept_begin(fs_of(req)->kept, 0).again;
}

void fs_event_node(struct fs *f, fuse_req_t req, enum drop_event ev, uint64_t id)
{
    struct buf path = BUF_INIT;

    if (nodes_path(f->nodes, id, &path) == 0 && path.p) /* an unlinked file concerns nobody */
        fs_event(f, req, ev, path.p);
    buf_release(&path);
}

/* Set-group-id of what no group may execute once meant mandatory locking: it goes when a stranger to the
 * group writes. */
static mode_t setid_lost(fuse_req_t req, const struct stat *st)
{
    struct caller who = fs_caller(req);
    mode_t lost = st->st_mode & S_ISUID;

    if (!S_ISREG(st->st_mode))
        return 0;
    if ((st->st_mode & S_ISGID) &&
        ((st->st_mode & S_IXGRP) || (who.uid != 0 && !caller_in_group(&who, st->st_gid))))
        lost |= S_ISGID;
    return lost;
}

int fs_kill_setid_of(fuse_req_t req, int fd)
{
    char path[40];
    struct stat st;
    mode_t lost;

    if (!channel_kills_setid())
        return 0;
    if (fstat(fd, &st))
        return -errno;
    lost = setid_lost(req, &st);
    if (!lost)
        return 0;
    return chmod(backing_proc_path(fd, path), st.st_mode & 07777 & ~lost) ? -errno : 1;
}

int fs_kill_setid(fuse_req_t req, uint64_t id, int fd)
{
    int rc = fs_kill_setid_of(req, fd);

    if (rc <= 0)
        return rc;
    fuse_lowlevel_notify_inval_inode(fs_of(req)->se, id, -1, 0); /* the kernel keeps a mode for a second */
    return 0;
}

int fs_may_change_node(struct fs *f, fuse_req_t req, uint64_t id)
{
    struct caller who = fs_caller(req);
    struct buf path = BUF_INIT;
    int rc = 0;

    if (nodes_path(f->nodes, id, &path) == 0 && path.p)
        rc = sched_may_change(f->sched, path.p, &who);
    buf_release(&path);
    return rc;
}

void fs_forget(struct fs *f, uint64_t id, uint64_t count)
{
    if (nodes_forget(f->nodes, id, count))
        backing_drop(f->backing, id);
}

bool fs_leave(struct fs *f, const struct node_info *node)
{
    bool open = nodes_leave(f->nodes, node->id);

    if (open || node->is_dir)
        handles_give_away(f->handles, node->id, node->is_dir);
    return open;
}

/* ---- locks ---- */

static pthread_rwlock_t *lock_of(struct fs *f, uint64_t id)
{
    return &f->dir_lock[id % FS_DIR_LOCKS];
}

void fs_lock_name(struct fs *f, uint64_t parent)
{
    pthread_rwlock_wrlock(lock_of(f, parent));
}

void fs_unlock_name(struct fs *f, uint64_t parent)
{
    pthread_rwlock_unlock(lock_of(f, parent));
}

void fs_lock_names(struct fs *f, uint64_t a, uint64_t b)
{
    pthread_rwlock_t *x = lock_of(f, a), *y = lock_of(f, b);

    pthread_rwlock_wrlock(x < y ? x : y);
    if (x != y)
        pthread_rwlock_wrlock(x < y ? y : x);
}

void fs_unlock_names(struct fs *f, uint64_t a, uint64_t b)
{
    pthread_rwlock_t *x = lock_of(f, a), *y = lock_of(f, b);

    pthread_rwlock_unlock(x);
    if (x != y)
        pthread_rwlock_unlock(y);
}

void fs_lock_lookup(struct fs *f, uint64_t parent)
{
    pthread_rwlock_rdlock(lock_of(f, parent));
}

void fs_unlock_lookup(struct fs *f, uint64_t parent)
{
    pthread_rwlock_unlock(lock_of(f, parent));
}

void fs_reply_err(fuse_req_t req, int rc)
{
    fuse_reply_err(req, -rc);
}

int fs_find_path(struct fs *f, char *path, uint64_t *parent, const char **name, struct node_info *node)
{
    char *save = NULL;
    int rc = nodes_get(f->nodes, NODE_ROOT, node);

    *parent = 0;
    for (char *part = strtok_r(path, "/", &save); part; part = strtok_r(NULL, "/", &save)) {
        if (rc) {
            *parent = 0;
            return -ENOTDIR;
        }
        *parent = node->id;
        *name = part;
        rc = nodes_find(f->nodes, node->id, part, node);
    }
    return rc;
}

bool fs_is_gone(struct fs *f, uint64_t id)
{
    struct sched_attr attr;
    struct place p;
    bool gone = place_of_node(f, id, &p) == 0 && p.owner == NODE_GENERATED &&
                sched_stat(f->sched, &p.m, &attr) == -ENOENT;

    place_release(&p);
    return gone;
}

/* ---- listing ---- */

static void add_literal(void *arg, const struct layout_entry *child, const char *name)
{
    listing_add(arg, name);
}

static void add_listed(void *arg, const char *name)
{
    listing_add(arg, name);
}

/* Everything that might be there: readers look each name up and leave out what is not. */
int fs_list(struct fs *f, uint64_t id, struct listing *l)
{
    struct backing_fd dir;
    struct place p;
    int rc = place_of_node(f, id, &p);

    if (!rc) {
        listing_add(l, ".");
        listing_add(l, "..");
        if (!p.m.rest)
            layout_children(p.path.p, add_literal, l);
        if (!p.m.rest && p.m.entry->reader != LR_NONE)
            sched_list(f->sched, &p.m, add_listed, l);
        rc = backing_get(f->backing, id, &dir);
        if (!rc) {
            rc = listing_add_folder(l, dir.fd);
            backing_put(f->backing, &dir);
        } else if (rc == -ENOENT && p.owner == NODE_GENERATED) {
            rc = 0; /* DTX keeps nothing there yet */
        }
    }
    place_release(&p);
    return rc ? rc : listing_finish(l);
}
