/* Which open files the kernel may read and write past us (passthrough.h). */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/channel.h"
#include "fsd/fs.h"

/* A smaller file is read with one or two messages: not worth registering. */
enum { PASS_MIN = 256 << 10 };

/* ---- many small files ----
 *
 * To register a new file with the kernel costs more than the few messages with which a small one is written;
 * and one that is not registered is written without the kernel's cache, because with it the kernel asks for
 * security.capability before the first write.  How large a new file will be nobody says: but where so many
 * files in a row, of one folder and with names that differ in digits only, have been small, the next one
 * probably is. */
enum { FAMILY_SMALL = 64 << 10, FAMILY_ROW = 16, FAMILY_COUNT = 0xff };

/* The low bits are for the count. */
static uint64_t family_of(uint64_t folder, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u ^ folder;

    for (; *name; name++)
        if (*name < '0' || *name > '9')
            h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return (h * 0x9e3779b97f4a7c15u) | FAMILY_COUNT;
}

static uint64_t *place_of_family(struct fs *f, uint64_t family)
{
    return &f->family[(family >> 32) % FS_FAMILIES];
}

void fs_family_expect(struct fs *f, struct handle *h, uint64_t folder, const char *name)
{
    uint64_t family = family_of(folder, name),
             known = __atomic_load_n(place_of_family(f, family), __ATOMIC_RELAXED);

    h->family = family;
    h->small =
        h->inside && !h->rdwr && (known | FAMILY_COUNT) == family && (known & FAMILY_COUNT) >= FAMILY_ROW;
}

/* Two threads at once may count one file less: it is a guess anyhow. */
void fs_family_learn(struct fs *f, const struct handle *h, off_t size)
{
    uint64_t *p = place_of_family(f, h->family), known = __atomic_load_n(p, __ATOMIC_RELAXED), row = 0;

    if (!h->family)
        return;
    if ((known | FAMILY_COUNT) == h->family)
        row = known & FAMILY_COUNT;
    row = size > FAMILY_SMALL ? 0 : row < FAMILY_ROW ? row + 1 : row;
    __atomic_store_n(p, (h->family & ~(uint64_t)FAMILY_COUNT) | row, __ATOMIC_RELAXED);
}

/* What a user writes past us must be of a folder that is being received; a spec is judged at close.  Of
 * set-id bits that writing takes away the kernel would not hear; and where the owner has a limit, each write
 * has to be counted before it is made. */
static bool may_write_unseen(fuse_req_t req, const struct handle *h)
{
    struct fs *f = fs_of(req);
    struct buf path = BUF_INIT;
    struct stat st;
    bool may = h->inside && !h->remote && fstat(h->fd, &st) == 0 && !(st.st_mode & (S_ISUID | S_ISGID)) &&
               !space_limited(f->space, st.st_uid) && handles_writer_path(f->handles, h, &path) && path.p &&
               sched_receiving(f->sched, path.p);

    buf_release(&path);
    return may;
}

/* A reader past us would make the next writer's mapping go past us, uncounted: not where there is a limit. */
static bool may_read_unseen(struct fs *f, const struct handle *h)
{
    struct stat st;

    return fstat(h->fd, &st) == 0 && st.st_size >= PASS_MIN && !space_limited(f->space, st.st_uid);
}

static bool takes_o_direct(int fd)
{
    char path[40];
    int again = open(backing_proc_path(fd, path), O_RDONLY | O_DIRECT | O_CLOEXEC | O_NOCTTY);

    if (again >= 0)
        close(again);
    return again >= 0;
}

/* through_us: past us it would not do.  With O_APPEND the kernel would go on appending after fcntl(2) took it
 * away.  With O_DIRECT the store's file system may ask for aligned buffers: of a small file we take any, also
 * while it is backed because its writer is not gone yet (close(2) does not wait for that). */
static enum pass_wish wish_of(fuse_req_t req, const struct handle *h, int flags, bool through_us)
{
    if (through_us || h->small)
        return h->writer ? WISH_SEEN : WISH_CACHED;
    if (h->writer)
        return !(flags & O_APPEND) && may_write_unseen(req, h) ? WISH_BACKED : WISH_SEEN;
    if (may_read_unseen(fs_of(req), h))
        return WISH_BACKED;
    return flags & O_DIRECT ? WISH_SEEN : WISH_CACHED;
}

/* Writing through a mapping goes past us also where write(2) does not: the opening counts as a write then. */
static void note_mappable(fuse_req_t req, struct handle *h)
{
    fs_writer_wrote(req, h);
    fs_event_node(fs_of(req), req, DROP_WRITE, h->id);
}

void fs_pass_fill(const struct handle *h, struct fuse_file_info *fi)
{
    if (h->pass.mode == PASS_CACHED) {
        if (h->small)
            fi->direct_io = 1;
        return;
    }
    fi->keep_cache = 0; /* what FUSE has in its cache would be stale when it is opened cached again */
    fi->direct_io = h->pass.mode == PASS_SEEN;
    channel_next_open(DTX_FOPEN_PASSTHROUGH, h->pass.backing_id);
}

static int decide(fuse_req_t req, struct handle *h, const struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    /* the kernel would open the file of the store with O_DIRECT too */
    bool no_direct = (fi->flags & O_DIRECT) && !takes_o_direct(h->fd);
    int rc;

    h->small &= !(fi->flags & O_APPEND);
    rc = passthrough_open(f->pass, h->id, h->fd,
                          wish_of(req, h, fi->flags, no_direct || !f->want_passthrough), &h->pass);
    if (!rc && no_direct && h->pass.mode != PASS_CACHED)
        rc = -EINVAL;
    if (!rc && h->pass.mode == PASS_SEEN && h->rdwr)
        note_mappable(req, h);
    return rc;
}

int fs_pass_open(fuse_req_t req, struct handle *h, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    int rc = passthrough_is_on(f->pass) ? decide(req, h, fi) : 0;

    if (rc)
        return rc;
    handles_keep(f->handles, h);
    fs_pass_fill(h, fi);
    return 0;
}

/* ---- mappings that outlive the descriptor ----
 *
 * The kernel sends RELEASE when the last descriptor is closed.  A mapping of a cached file counts as one;
 * that of a backed file does not.  So before such a writer counts as gone, the file of the store is asked
 * whether it is written any more, once a second. */

struct lingering {
    struct lingering *next;
    int fd;
    bool remote;
    char *path;
    struct caller who;
};

struct linger {
    pthread_mutex_t mu; /* protects what follows */
    struct lingering *first;
};

int fs_linger_new(struct fs *f)
{
    f->linger = calloc(1, sizeof(*f->linger));
    if (!f->linger)
        return -ENOMEM;
    pthread_mutex_init(&f->linger->mu, NULL);
    return 0;
}

static void free_lingering(struct lingering *l)
{
    close(l->fd);
    free(l->path);
    free(l);
}

void fs_linger_free(struct fs *f)
{
    struct lingering *l;

    if (!f->linger)
        return;
    while ((l = f->linger->first)) {
        f->linger->first = l->next;
        free_lingering(l);
    }
    pthread_mutex_destroy(&f->linger->mu);
    free(f->linger);
}

static void add_lingering(struct fs *f, struct lingering *l)
{
    pthread_mutex_lock(&f->linger->mu);
    l->next = f->linger->first;
    f->linger->first = l;
    pthread_mutex_unlock(&f->linger->mu);
}

/* Whether it is written is seen at the next round only: here we have it open ourselves. */
bool fs_pass_lingers(fuse_req_t req, const struct handle *h, const char *path)
{
    struct lingering *l;
    char name[40];

    if (!h->rdwr || h->pass.mode == PASS_CACHED || !(l = calloc(1, sizeof(*l))))
        return false;
    *l = (struct lingering){.fd = open(backing_proc_path(h->fd, name), O_RDONLY | O_CLOEXEC | O_NOCTTY),
                            .remote = h->remote,
                            .path = strdup(path),
                            .who = fs_caller(req)};
    if (l->fd < 0 || !l->path) {
        if (l->fd >= 0)
            close(l->fd);
        free(l->path);
        free(l);
        return false;
    }
    add_lingering(fs_of(req), l);
    return true;
}

void fs_linger_round(struct fs *f)
{
    struct lingering **p, *l, *done = NULL;

    pthread_mutex_lock(&f->linger->mu);
    for (p = &f->linger->first; (l = *p);) {
        if (passthrough_is_written(l->fd)) {
            p = &l->next;
            continue;
        }
        *p = l->next;
        l->next = done;
        done = l;
    }
    pthread_mutex_unlock(&f->linger->mu);
    while ((l = done)) {
        done = l->next;
        sched_drop_event(f->sched, l->remote ? DROP_REMOTE_RELEASE : DROP_RELEASE, l->path, &l->who);
        free_lingering(l);
    }
}
