/* Open generated files: each open reads one snapshot, past the kernel's cache (direct_io), so that what a
 * reader gets is whole, and is what fstat said. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fsd/fs.h"
#include "scheduler/base/clock.h"

/* One write(2) to a control file takes a few words. */
enum { CONTROL_MAX = 64 << 10 };

static int open_text(fuse_req_t req, const struct node_info *node, int flags, struct handle **h)
{
    struct handle_spec spec = {.node = *node, .fd = -1, .who = fs_caller(req)};
    struct fs *f = fs_of(req);
    bool read = (flags & O_ACCMODE) != O_WRONLY, write = (flags & O_ACCMODE) != O_RDONLY;
    struct place p;
    int rc = place_of_node(f, node->id, &p);

    if (!rc && (write || (flags & O_TRUNC)) && p.m.entry->kind != LK_CONTROL)
        rc = -EPERM;
    if (!rc && read)
        rc = fs_render(f, node->id, &p, RENDER_FOR_OPEN, &spec.snapshot);
    if (!rc) {
        spec.kind = p.m.entry->kind == LK_CONTROL ? HANDLE_CONTROL : HANDLE_TEXT;
        *h = handles_add(f->handles, &spec);
        rc = *h ? 0 : -ENOMEM;
    }
    place_release(&p);
    return rc;
}

/* Our own helper opens and closes it, so that the kernel says IN_CLOSE_WRITE: there is nothing behind it, not
 * even a handle. */
void fs_touch_open(fuse_req_t req, struct fuse_file_info *fi)
{
    fi->fh = 0;
    fi->direct_io = fi->keep_cache = fi->noflush = 1;
    fuse_reply_open(req, fi);
}

void fs_text_open(fuse_req_t req, const struct node_info *node, struct fuse_file_info *fi)
{
    struct handle *h;
    int rc = open_text(req, node, fi->flags, &h);

    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    fi->fh = h->fh;
    fi->direct_io = 1;
    fi->noflush = 1;
    if (fuse_reply_open(req, fi) == -ENOENT)
        fs_close_handle(req, h->fh);
}

/* h->mu held */
static void take(struct handle *h, struct snapshot *s)
{
    snapshot_put(h->snapshot);
    h->snapshot = s;
}

/* Who starts again from the beginning a second or more after taking a snapshot (a poller that seeks back, an
 * NFS server that keeps the file open for all its clients) gets the rendering of now; who does so before that
 * gets the one whose size was told last. h->mu held. */
static void renew(struct fs *f, struct handle *h)
{
    int64_t now = clock_mono_ns() / 1000000;
    struct snapshot *s;
    struct place p;

    if (h->snapshot && now - h->taken_ms < RENDER_MIN_MS) {
        if ((s = render_cache_last(f->renders, h->id)))
            take(h, s);
        return;
    }
    if (place_of_node(f, h->id, &p) == 0 && fs_render(f, h->id, &p, RENDER_FOR_OPEN, &s) == 0) {
        take(h, s);
        h->taken_ms = now;
    }
    place_release(&p);
}

/* The handle may be released as soon as there is a reply: nothing of it is touched after that. */
void fs_text_read(fuse_req_t req, struct handle *h, size_t size, off_t off)
{
    struct snapshot *s;
    size_t have = 0;

    pthread_mutex_lock(&h->mu);
    if (off == 0)
        renew(fs_of(req), h);
    s = snapshot_ref(h->snapshot);
    pthread_mutex_unlock(&h->mu);
    if (s && off >= 0 && (size_t)off < s->size)
        have = s->size - (size_t)off;
    if (have > size)
        have = size;
    fuse_reply_buf(req, have ? s->data + off : NULL, have);
    snapshot_put(s);
}

static int take_words(struct fs *f, const struct handle *h, const char *words, size_t n,
                      const struct caller *who)
{
    struct place p;
    int rc = place_of_node(f, h->id, &p);

    if (!rc)
        rc = sched_write(f->sched, &p.m, words, n, who);
    place_release(&p);
    return rc;
}

void fs_text_write(fuse_req_t req, struct handle *h, struct fuse_bufvec *in)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    size_t n = fuse_buf_size(in);
    struct fuse_bufvec out = FUSE_BUFVEC_INIT(n);
    struct kept_turn turn;
    ssize_t rc;

    if (n > CONTROL_MAX || !(out.buf[0].mem = malloc(n + 1))) {
        fs_reply_err(req, n > CONTROL_MAX ? -EFBIG : -ENOMEM);
        return;
    }
    rc = fuse_buf_copy(&out, in, 0);
    if (rc >= 0) {
        ((char *)out.buf[0].mem)[rc] = '\0';
        turn = kept_begin(f->kept, 0);
        rc = turn.done ? turn.rc : take_words(f, h, out.buf[0].mem, (size_t)rc, &who);
        kept_done(f->kept, (int)rc);
    }
    free(out.buf[0].mem);
    if (rc < 0)
        fs_reply_err(req, (int)rc);
    else
        fuse_reply_write(req, (size_t)rc);
}

void fs_text_lseek(fuse_req_t req, struct handle *h, off_t off, int whence)
{
    off_t size;

    pthread_mutex_lock(&h->mu);
    size = h->snapshot ? (off_t)h->snapshot->size : 0;
    pthread_mutex_unlock(&h->mu);
    if (whence != SEEK_DATA && whence != SEEK_HOLE)
        fs_reply_err(req, -EINVAL);
    else if (off < 0 || off >= size)
        fs_reply_err(req, -ENXIO);
    else
        fuse_reply_lseek(req, whence == SEEK_DATA ? off : size);
}
