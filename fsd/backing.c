#include "fsd/backing.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "scheduler/base/clock.h"

enum { BUCKETS = 4096, IDLE_S = 60, MAX_DEPTH = 4096 };

struct backing_entry {
    struct backing_entry *hash_next;
    struct backing_entry *newer, *older; /* in the idle list, if refs == 0 && !pinned */
    uint64_t id;
    int64_t idle_since; /* clock_mono_ns */
    unsigned refs;
    int fd;
    bool pinned;
    bool cached; /* in the table; else it goes with its last reference */
};

struct backing {
    int tree_fd;
    dev_t home; /* the device of tree_fd */
    struct nodes *nodes;
    unsigned keep;

    pthread_mutex_t mu; /* protects what follows, and every entry */
    struct backing_entry *table[BUCKETS];
    struct backing_entry *newest, *oldest; /* idle entries */
    unsigned idle;
};

/* ---- identity ---- */

/* The main device is 1 whatever number it has after the next boot. */
static uint64_t stable_dev(const struct backing *b, dev_t dev)
{
    return dev == b->home ? 1 : (uint64_t)dev + 2;
}

static void stat_of_statx(const struct statx *x, struct stat *st)
{
    *st = (struct stat){
        .st_dev = makedev(x->stx_dev_major, x->stx_dev_minor),
        .st_ino = x->stx_ino,
        .st_mode = x->stx_mode,
        .st_nlink = x->stx_nlink,
        .st_uid = x->stx_uid,
        .st_gid = x->stx_gid,
        .st_rdev = makedev(x->stx_rdev_major, x->stx_rdev_minor),
        .st_size = (off_t)x->stx_size,
        .st_blksize = (blksize_t)x->stx_blksize,
        .st_blocks = (blkcnt_t)x->stx_blocks,
        .st_atim = {x->stx_atime.tv_sec, x->stx_atime.tv_nsec},
        .st_mtim = {x->stx_mtime.tv_sec, x->stx_mtime.tv_nsec},
        .st_ctim = {x->stx_ctime.tv_sec, x->stx_ctime.tv_nsec},
    };
}

int backing_stat(const struct backing *b, int dirfd, const char *name, struct stat *st, struct node_key *key)
{
    struct statx x;

    if (statx(dirfd, name, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT,
              STATX_BASIC_STATS | STATX_BTIME, &x))
        return -errno;
    stat_of_statx(&x, st);
    if (key) {
        key->dev = stable_dev(b, st->st_dev);
        key->ino = st->st_ino;
        key->btime = x.stx_mask & STATX_BTIME
                         ? (int64_t)x.stx_btime.tv_sec * 1000000000 + (int64_t)x.stx_btime.tv_nsec
                         : 0;
    }
    return 0;
}

const char *backing_proc_path(int fd, char out[40])
{
    snprintf(out, 40, "/proc/self/fd/%d", fd);
    return out;
}

int backing_reopen(int path_fd, int flags)
{
    char path[40];
    struct stat st;
    int fd;

    if (fstat(path_fd, &st))
        return -errno;
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return -EINVAL;
    fd = open(backing_proc_path(path_fd, path), (flags & ~O_NOFOLLOW) | O_CLOEXEC | O_NOCTTY);
    return fd < 0 ? -errno : fd;
}

/* ---- the cache ---- */

int backing_new(int tree_fd, struct nodes *nodes, unsigned keep, struct backing **out)
{
    struct backing *b = calloc(1, sizeof(*b));
    struct stat st;

    if (!b)
        return -ENOMEM;
    if (fstat(tree_fd, &st)) {
        free(b);
        return -errno;
    }
    b->tree_fd = tree_fd;
    b->home = st.st_dev;
    b->nodes = nodes;
    b->keep = keep;
    pthread_mutex_init(&b->mu, NULL);
    *out = b;
    return 0;
}

static struct backing_entry **slot_of(struct backing *b, uint64_t id)
{
    return &b->table[(id * 0x9e3779b97f4a7c15u) >> 52];
}

static struct backing_entry *find_entry(struct backing *b, uint64_t id)
{
    struct backing_entry *p = *slot_of(b, id);

    while (p && p->id != id)
        p = p->hash_next;
    return p;
}

static void idle_remove(struct backing *b, struct backing_entry *p)
{
    *(p->older ? &p->older->newer : &b->oldest) = p->newer;
    *(p->newer ? &p->newer->older : &b->newest) = p->older;
    p->newer = p->older = NULL;
    b->idle--;
}

static void idle_add(struct backing *b, struct backing_entry *p)
{
    p->idle_since = clock_mono_ns();
    p->older = b->newest;
    p->newer = NULL;
    *(b->newest ? &b->newest->newer : &b->oldest) = p;
    b->newest = p;
    b->idle++;
}

static void table_remove(struct backing *b, struct backing_entry *p)
{
    struct backing_entry **q = slot_of(b, p->id);

    while (*q != p)
        q = &(*q)->hash_next;
    *q = p->hash_next;
    p->cached = false;
}

/* Take an idle entry out; the caller closes it (chained by hash_next) without the lock. */
static void evict(struct backing *b, struct backing_entry *p, struct backing_entry **dead)
{
    idle_remove(b, p);
    table_remove(b, p);
    p->hash_next = *dead;
    *dead = p;
}

static void close_entries(struct backing_entry *p)
{
    while (p) {
        struct backing_entry *next = p->hash_next;
        close(p->fd);
        free(p);
        p = next;
    }
}

void backing_free(struct backing *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < BUCKETS; i++)
        close_entries(b->table[i]);
    pthread_mutex_destroy(&b->mu);
    free(b);
}

static bool take_cached(struct backing *b, uint64_t id, struct backing_fd *out)
{
    struct backing_entry *p;

    pthread_mutex_lock(&b->mu);
    p = find_entry(b, id);
    if (p) {
        if (p->refs++ == 0 && !p->pinned)
            idle_remove(b, p);
        *out = (struct backing_fd){p->fd, p};
    }
    pthread_mutex_unlock(&b->mu);
    return p != NULL;
}

/* Put a descriptor that was just opened into the cache (cached) or at least into an entry of its own. */
static int take_new(struct backing *b, uint64_t id, int fd, bool cached, struct backing_fd *out)
{
    struct backing_entry *p = calloc(1, sizeof(*p)), **slot;

    if (!p) {
        close(fd);
        return -ENOMEM;
    }
    p->id = id;
    p->fd = fd;
    p->refs = 1;
    pthread_mutex_lock(&b->mu);
    if (cached && !find_entry(b, id)) { /* else another thread was faster: both are right */
        slot = slot_of(b, id);
        p->hash_next = *slot;
        *slot = p;
        p->cached = true;
    }
    pthread_mutex_unlock(&b->mu);
    *out = (struct backing_fd){fd, p};
    return 0;
}

void backing_put(struct backing *b, struct backing_fd *f)
{
    struct backing_entry *p = f->entry, *dead = NULL;

    if (!p)
        return;
    f->entry = NULL;
    pthread_mutex_lock(&b->mu);
    if (--p->refs == 0) {
        if (!p->cached) {
            p->hash_next = NULL;
            dead = p;
        } else if (!p->pinned) {
            idle_add(b, p);
        }
    }
    while (b->idle > b->keep)
        evict(b, b->oldest, &dead);
    pthread_mutex_unlock(&b->mu);
    close_entries(dead);
}

void backing_pin(struct backing *b, uint64_t id)
{
    struct backing_fd f;
    bool done = false;

    for (int i = 0; i < 3 && !done; i++) { /* again where another thread's descriptor is the cached one */
        if (backing_get(b, id, &f))
            return;
        pthread_mutex_lock(&b->mu);
        done = f.entry->pinned = f.entry->cached;
        pthread_mutex_unlock(&b->mu);
        backing_put(b, &f);
    }
}

void backing_pin_fd(struct backing *b, uint64_t id, int fd)
{
    char path[40];
    int copy = open(backing_proc_path(fd, path), O_PATH | O_CLOEXEC); /* no writer, whatever fd is */
    struct backing_fd f;

    if (copy < 0 || take_new(b, id, copy, true, &f))
        return;
    pthread_mutex_lock(&b->mu);
    f.entry->pinned = f.entry->cached;
    pthread_mutex_unlock(&b->mu);
    backing_put(b, &f);
}

void backing_drop(struct backing *b, uint64_t id)
{
    struct backing_entry *p, *dead = NULL;

    pthread_mutex_lock(&b->mu);
    p = find_entry(b, id);
    if (p && p->refs == 0) {
        if (p->pinned)
            idle_add(b, p);
        p->pinned = false;
        evict(b, p, &dead);
    } else if (p) {
        table_remove(b, p);
        p->pinned = false;
    }
    pthread_mutex_unlock(&b->mu);
    close_entries(dead);
}

void backing_tidy(struct backing *b)
{
    struct backing_entry *dead = NULL;
    int64_t limit = clock_mono_ns() - IDLE_S * (int64_t)1000000000;

    pthread_mutex_lock(&b->mu);
    while (b->oldest && b->oldest->idle_since < limit)
        evict(b, b->oldest, &dead);
    pthread_mutex_unlock(&b->mu);
    close_entries(dead);
}

/* ---- from id to file ---- */

static int open_beneath(int dirfd, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, dirfd, *path ? path : ".", &how, sizeof(how));

    return fd < 0 ? -errno : fd;
}

/* A generated folder has no key to check: its path says what it is, each time. */
static int get_generated(struct backing *b, uint64_t id, struct backing_fd *out)
{
    struct buf path = BUF_INIT;
    int rc = nodes_path(b->nodes, id, &path);

    if (!rc)
        rc = open_beneath(b->tree_fd, path.p ? path.p : "");
    buf_release(&path);
    return rc < 0 ? rc : take_new(b, id, rc, false, out);
}

static int get_at_depth(struct backing *b, uint64_t id, int depth, struct backing_fd *out);

/* Try one of the node's names. */
static int open_by_name(struct backing *b, const struct node_info *node, uint64_t parent, const char *name,
                        int depth, struct backing_fd *out)
{
    struct backing_fd dir;
    struct node_key key;
    struct stat st;
    int fd, rc = get_at_depth(b, parent, depth + 1, &dir);

    if (rc)
        return rc;
    fd = openat(dir.fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    rc = fd < 0 ? -errno : 0;
    backing_put(b, &dir);
    if (rc)
        return rc == -ENOENT || rc == -ENOTDIR ? -ESTALE : rc;
    rc = backing_stat(b, fd, "", &st, &key);
    if (!rc && memcmp(&key, &node->key, sizeof(key)) != 0)
        rc = -ESTALE;
    if (rc) {
        close(fd);
        return rc;
    }
    return take_new(b, node->id, fd, true, out);
}

static int get_at_depth(struct backing *b, uint64_t id, int depth, struct backing_fd *out)
{
    struct buf name = BUF_INIT;
    struct node_info node;
    uint64_t parent;
    int rc;

    if (depth > MAX_DEPTH)
        return -ENAMETOOLONG;
    if (take_cached(b, id, out))
        return 0;
    rc = nodes_get(b->nodes, id, &node);
    if (rc)
        return rc;
    if (node.owner == NODE_GENERATED)
        return node.is_dir ? get_generated(b, id, out) : -EINVAL;
    for (unsigned k = 0; k < 64;
         k++) { /* a rename meanwhile, or behind the mount's back: try the other names */
        buf_clear(&name);
        rc = nodes_name(b->nodes, id, k, &parent, &name);
        if (rc == 0)
            rc = open_by_name(b, &node, parent, name.p, depth, out);
        else if (rc == -ENOENT)
            rc = -ESTALE;
        else
            break;
        if (rc != -ESTALE || nodes_name(b->nodes, id, k + 1, &parent, &name))
            break;
    }
    buf_release(&name);
    return rc;
}

int backing_get(struct backing *b, uint64_t id, struct backing_fd *out)
{
    int rc = get_at_depth(b, id, 0, out);

    if (rc == -ESTALE) /* renamed while we walked? */
        rc = get_at_depth(b, id, 0, out);
    return rc;
}
