/* Open files of the store.  Generated files turn off to ops_text.c. */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"
#include "fsd/touch.h"

/* One request may copy so much: a thread is not kept for seconds. */
enum { COPY_MAX = 64 << 20 };

static bool writes(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

static void fill_file_info(const struct handle *h, struct fuse_file_info *fi)
{
    fi->fh = h->fh;
    fi->keep_cache = 1; /* the kernel drops its pages when size or mtime change (AUTO_INVAL_DATA) */
    fi->noflush = !h->judged;
    fs_pass_fill(h, fi);
}

struct handle *fs_file_handle(fuse_req_t req, const struct node_info *node, int fd, const struct place *p,
                              struct fuse_file_info *fi)
{
    struct caller who = fs_caller(req);
    struct handle_spec spec = {.kind = HANDLE_FILE,
                               .node = *node,
                               .fd = fd,
                               .flags = fi->flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_NOATIME),
                               .writer = writes(fi->flags),
                               .remote = writes(fi->flags) && caller_is_remote(&who),
                               .rdwr = (fi->flags & O_ACCMODE) == O_RDWR,
                               .who = who};
    struct handle *h = handles_add(fs_of(req)->handles, &spec);

    if (!h)
        return NULL;
    h->inside = h->writer && p && p->m.entry->kind == LK_USER_ANY;
    /* a close inside an object's folder says nothing at FLUSH that RELEASE does not say */
    h->judged = h->writer && !(h->inside && p->m.nargs > 0);
    fill_file_info(h, fi);
    return h;
}

struct handle *fs_opened_before(fuse_req_t req, struct fuse_file_info *fi)
{
    struct handle *h = kept_resent() ? handles_of_request(fs_of(req)->handles, kept_unique()) : NULL;

    if (h && h->kind == HANDLE_FILE) {
        fill_file_info(h, fi);
    } else if (h) {
        fi->fh = h->fh;
        fi->direct_io = 1;
        fi->noflush = 1;
    }
    return h;
}

static int open_backed(fuse_req_t req, const struct node_info *node, int flags)
{
    struct fs *f = fs_of(req);
    struct backing_fd file;
    int rc = 0;

    if (writes(flags) || (flags & O_TRUNC))
        rc = node->owner == NODE_STORE ? -EPERM : fs_may_change_node(f, req, node->id);
    if (!rc)
        rc = backing_get(f->backing, node->id, &file);
    if (rc)
        return rc;
    fs_kill_setid(req, node->id, file.fd);
    /* Without O_APPEND: a write that is sent again must not append again. */
    rc = backing_reopen(file.fd, flags & (O_ACCMODE | O_TRUNC | O_SYNC | O_DSYNC | O_NOATIME));
    backing_put(f->backing, &file);
    return rc;
}

void fs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct place p = {.path = BUF_INIT};
    struct node_info node;
    struct handle *h;
    int fd, rc = nodes_get(f->nodes, ino, &node);
    bool named = false;

    if (fs_opened_before(req, fi)) {
        fuse_reply_open(req, fi);
        return;
    }
    if (!rc && node.owner != NODE_USER && writes(fi->flags) && touch_asks(f, req)) {
        fs_touch_open(req, fi);
        return;
    }
    if (!rc && node.owner == NODE_GENERATED) {
        fs_text_open(req, &node, fi);
        return;
    }
    fd = rc ? rc : open_backed(req, &node, fi->flags);
    if (fd >= 0 && writes(fi->flags))
        named = place_of_node(f, ino, &p) == 0;
    h = fd < 0 ? NULL : fs_file_handle(req, &node, fd, named ? &p : NULL, fi);
    if (h)
        fs_writer_opened(req, h, named ? &p : NULL);
    place_release(&p);
    if (!h) {
        fs_reply_err(req, fd < 0 ? fd : -ENOMEM);
        return;
    }
    if (fi->flags & O_TRUNC) {
        fs_event_node(f, req, DROP_CREATE, ino);
        space_note(f->space, h->fd, NULL);
    }
    rc = fs_pass_open(req, h, fi);
    if (rc || fuse_reply_open(req, fi) == -ENOENT)
        fs_close_handle(req, h->fh);
    if (rc)
        fs_reply_err(req, rc);
}

void fs_writer_opened(fuse_req_t req, struct handle *h, const struct place *p)
{
    struct fs *f = fs_of(req);
    char *path = h->writer && p ? strdup(p->path.p) : NULL;

    if (!path)
        return;
    pthread_mutex_lock(&f->writers);
    if (!h->remote)
        fs_event(f, req, DROP_OPEN_WRITE, path);
    handles_set_path(f->handles, h, path);
    pthread_mutex_unlock(&f->writers);
}

void fs_writer_wrote(fuse_req_t req, struct handle *h)
{
    struct fs *f = fs_of(req);
    struct buf path = BUF_INIT;

    if (!h->remote) {
        __atomic_store_n(&h->wrote, true, __ATOMIC_RELAXED);
        return;
    }
    pthread_mutex_lock(&f->writers);
    if (!__atomic_exchange_n(&h->wrote, true, __ATOMIC_RELAXED) &&
        handles_writer_path(f->handles, h, &path) && path.p)
        fs_event(f, req, DROP_REMOTE_WRITER, path.p);
    pthread_mutex_unlock(&f->writers);
    buf_release(&path);
}

struct moves {
    struct moved {
        struct moved *next;
        bool remote, wrote;
        char *from, *to;
    } * first;
};

static void note_move(void *arg, const struct handle *h, const char *was)
{
    struct moves *list = arg;
    struct moved *m = calloc(1, sizeof(*m));

    if (!m)
        return;
    *m = (struct moved){.next = list->first,
                        .remote = h->remote,
                        .wrote = __atomic_load_n(&h->wrote, __ATOMIC_RELAXED),
                        .from = strdup(was),
                        .to = strdup(h->path)};
    list->first = m;
}

void fs_writers_moved(fuse_req_t req, const char *from, const char *to, bool exchange)
{
    struct fs *f = fs_of(req);
    struct moves list = {NULL};
    struct moved *m;

    pthread_mutex_lock(&f->writers);
    handles_move(f->handles, from, to, exchange, note_move, &list);
    while ((m = list.first)) {
        list.first = m->next;
        if (m->from && m->to &&
            (m->wrote || !m->remote)) { /* first the new place: it shall not settle between */
            fs_event(f, req, m->remote ? DROP_REMOTE_WRITER : DROP_OPEN_WRITE, m->to);
            fs_event(f, req, m->remote ? DROP_REMOTE_RELEASE : DROP_RELEASE, m->from);
        }
        free(m->from);
        free(m->to);
        free(m);
    }
    pthread_mutex_unlock(&f->writers);
}

static void tell_closed(fuse_req_t req, const struct handle *h, const char *path)
{
    struct fs *f = fs_of(req);

    if (h->restored) /* a process before may have written through it: the stamp tells */
        fs_event(f, req, DROP_SETATTR, path);
    if (!h->remote)
        fs_event(f, req, DROP_RELEASE, path);
    else if (__atomic_load_n(&h->wrote, __ATOMIC_RELAXED))
        fs_event(f, req, DROP_REMOTE_RELEASE, path);
}

/* From here on a rename does not move it any more. */
static void writer_closed(fuse_req_t req, struct handle *h)
{
    struct fs *f = fs_of(req);
    char *path;

    pthread_mutex_lock(&f->writers);
    path = handles_take_path(f->handles, h);
    if (path && !fs_pass_lingers(req, h, path))
        tell_closed(req, h, path);
    pthread_mutex_unlock(&f->writers);
    free(path);
}

/* A writer is done: what the file takes now counts, also what was written past us. */
static void note_closed(struct fs *f, const struct handle *h)
{
    struct buf path = BUF_INIT;
    struct stat st;

    if (fstat(h->fd, &st))
        return;
    if (nodes_path(f->nodes, h->id, &path))
        buf_clear(&path);
    space_note_stat(f->space, &st, path.len ? path.p : NULL);
    buf_release(&path);
    fs_family_learn(f, h, st.st_size);
}

void fs_close_handle(fuse_req_t req, uint64_t fh)
{
    struct fs *f = fs_of(req);
    struct handle *h = handles_get(f->handles, fh);
    struct pass_grant pass = {PASS_CACHED, 0};
    uint64_t gone, id = 0;

    if (h && h->kind == HANDLE_FILE) {
        id = h->id;
        pass = h->pass;
    }
    if (h && h->writer) {
        writer_closed(req, h);
        note_closed(f, h);
    }
    gone = handles_remove(f->handles, fh);
    /* After that: a process that found the handle would open the file with a number that the kernel does not
     * know any more (EIO).  If this one dies right here, the kernel keeps the number until it is unmounted.
     */
    if (id)
        passthrough_close(f->pass, id, pass);
    if (gone)
        backing_drop(f->backing, gone);
}

void fs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    fs_close_handle(req, fi->fh);
    fs_reply_err(req, 0);
}

void fs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    struct handle *h = handles_get(fs_of(req)->handles, fi->fh);
    struct fuse_bufvec data = FUSE_BUFVEC_INIT(size);

    if (!h || h->kind == HANDLE_DIR) {
        fs_reply_err(req, -EBADF);
    } else if (h->kind != HANDLE_FILE) {
        fs_text_read(req, h, size, off);
    } else {
        data.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
        data.buf[0].fd = h->fd;
        data.buf[0].pos = off;
        fuse_reply_data(req, &data, FUSE_BUF_SPLICE_MOVE);
    }
}

/* A change through an open file. */
struct change {
    struct buf path; /* none: the file was unlinked, nobody's concern */
    struct space_claim claim;
};

/* May it be, and is there room for n bytes at off? */
static int begin_change(fuse_req_t req, struct handle *h, off_t off, size_t n, struct change *c)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    int rc = 0;

    buf_init(&c->path);
    c->claim = (struct space_claim){.bytes = -1};
    if (nodes_path(f->nodes, h->id, &c->path) == 0)
        rc = sched_may_change(f->sched, c->path.p, &who);
    else
        buf_release(&c->path);
    return rc ? rc : fs_claim_write(req, h->fd, off, (off_t)n, c->path.p, &c->claim);
}

/* It ended with rc; the scheduler is told. */
static void end_change(fuse_req_t req, struct handle *h, struct change *c, ssize_t rc)
{
    fs_settle(req, &c->claim, h->fd, c->path.p, rc < 0 ? (int)rc : 0);
    if (rc >= 0) {
        fs_writer_wrote(req, h);
        if (c->path.p)
            fs_event(fs_of(req), req, DROP_WRITE, c->path.p);
    }
}

/* Where a write goes.  The kernel knows the end of a file that is opened with O_APPEND, unless it grew behind
 * the mount's back; a request that is sent again goes where it went.  The flags are those of the request:
 * fcntl(2) may have changed what open(2) said, and pages of a mapping, which come through any open file, go
 * to their place. */
static off_t place_to_write(const struct handle *h, const struct fuse_file_info *fi, off_t off)
{
    struct stat st;

    if (!(fi->flags & O_APPEND) || fi->writepage || kept_resent() || fstat(h->fd, &st) || st.st_size <= off)
        return off;
    return st.st_size;
}

/* A single write may ask to be on the disk when it returns (RWF_DSYNC; the kernel's NFS server does): where
 * the kernel writes past its cache it leaves that to us.  Files opened with O_SYNC are so in the store too.
 */
static int sync_if_asked(const struct handle *h, const struct fuse_file_info *fi)
{
    int asked = fi->flags & (O_SYNC | O_DSYNC);

    if (!asked || fi->writepage || (fcntl(h->fd, F_GETFL) & asked) == asked)
        return 0;
    return (asked & O_SYNC) == O_SYNC ? fsync(h->fd) ? -errno : 0 : fdatasync(h->fd) ? -errno : 0;
}

void fs_op_write_buf(fuse_req_t req, fuse_ino_t ino, struct fuse_bufvec *in, off_t off,
                     struct fuse_file_info *fi)
{
    struct handle *h = handles_get(fs_of(req)->handles, fi->fh);
    struct fuse_bufvec out = FUSE_BUFVEC_INIT(fuse_buf_size(in));
    struct change c;
    ssize_t n;
    int rc;

    if (!h || (h->kind != HANDLE_FILE && h->kind != HANDLE_CONTROL)) {
        fs_reply_err(req, -EBADF);
        return;
    }
    if (h->kind == HANDLE_CONTROL) {
        fs_text_write(req, h, in);
        return;
    }
    out.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    out.buf[0].fd = h->fd;
    out.buf[0].pos = place_to_write(h, fi, off);
    n = begin_change(req, h, out.buf[0].pos, fuse_buf_size(in), &c);
    if (!n) {
        n = fs_kill_setid(req, h->id, h->fd);
        if (!n)
            n = fuse_buf_copy(&out, in, 0);
        end_change(req, h, &c, n);
        if (n > 0 && (rc = sync_if_asked(h, fi)))
            n = rc;
    }
    buf_release(&c.path);
    if (n < 0)
        fs_reply_err(req, (int)n);
    else
        fuse_reply_write(req, (size_t)n);
}

/* A spec that was written is judged when it is closed. */
void fs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct handle *h = handles_get(f->handles, fi->fh);
    struct place p;
    int rc = 0;

    if (h && h->kind == HANDLE_FILE && h->judged) {
        if (place_of_node(f, h->id, &p) == 0 && p.m.entry->kind == LK_USER_FILE)
            rc = sched_flush(f->sched, p.path.p);
        place_release(&p);
    }
    fs_reply_err(req, rc);
}

void fs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct handle *h = handles_get(f->handles, fi->fh);
    int rc = 0;

    if (h && h->kind == HANDLE_FILE) {
        if (datasync ? fdatasync(h->fd) : fsync(h->fd))
            rc = -errno;
        if (!rc)
            rc = nodes_sync(f->nodes, NULL);
        if (!rc && h->writer)
            fs_event_node(f, req, DROP_FSYNC, h->id);
    }
    fs_reply_err(req, rc);
}

void fs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len,
                     struct fuse_file_info *fi)
{
    struct handle *h = handles_get(fs_of(req)->handles, fi->fh);
    bool shrinks = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_COLLAPSE_RANGE);
    struct change c;
    int rc;

    if (!h || h->kind != HANDLE_FILE) {
        fs_reply_err(req, -EOPNOTSUPP);
        return;
    }
    rc = begin_change(req, h, off, shrinks || len < 0 ? 0 : (size_t)len, &c);
    if (!rc) {
        rc = fs_kill_setid(req, h->id, h->fd);
        if (!rc && fallocate(h->fd, mode, off, len))
            rc = -errno;
        end_change(req, h, &c, rc);
    }
    buf_release(&c.path);
    fs_reply_err(req, rc);
}

void fs_op_copy_file_range(fuse_req_t req, fuse_ino_t in, off_t off_in, struct fuse_file_info *fi_in,
                           fuse_ino_t out, off_t off_out, struct fuse_file_info *fi_out, size_t len,
                           int flags)
{
    struct fs *f = fs_of(req);
    struct handle *from = handles_get(f->handles, fi_in->fh), *to = handles_get(f->handles, fi_out->fh);
    struct change c;
    ssize_t n;

    if (!from || !to || from->kind != HANDLE_FILE || to->kind != HANDLE_FILE) {
        fs_reply_err(req, -EXDEV); /* the kernel copies by reading and writing then */
        return;
    }
    len = len > COPY_MAX ? COPY_MAX : len;
    n = begin_change(req, to, off_out, len, &c);
    if (!n && (n = fs_kill_setid(req, to->id, to->fd)))
        end_change(req, to, &c, n);
    if (!n) {
        n = copy_file_range(from->fd, &off_in, to->fd, &off_out, len, (unsigned)flags);
        if (n < 0)
            n = errno == ENOSYS ? -EXDEV : -errno;
        end_change(req, to, &c, n);
    }
    buf_release(&c.path);
    if (n < 0)
        fs_reply_err(req, (int)n);
    else
        fuse_reply_write(req, (size_t)n);
}

void fs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
    struct handle *h = handles_get(fs_of(req)->handles, fi->fh);
    off_t at;

    if (!h || h->kind == HANDLE_DIR) {
        fs_reply_err(req, -EBADF);
        return;
    }
    if (h->kind != HANDLE_FILE) {
        fs_text_lseek(req, h, off, whence);
        return;
    }
    at = lseek(h->fd, off, whence);
    if (at < 0)
        fs_reply_err(req, -errno);
    else
        fuse_reply_lseek(req, at);
}
