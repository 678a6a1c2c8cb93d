/* Looking up and listing. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fsd/fs.h"

/* "." and ".." come from NFS servers that hold a handle the kernel has forgotten. */
static int lookup_dot(struct fs *f, uint64_t id, bool dotdot, struct node_info *node, struct fs_attr *a)
{
    int rc = nodes_get(f->nodes, id, node);

    if (!rc && dotdot && id != NODE_ROOT)
        rc = node->parent ? nodes_get(f->nodes, node->parent, node) : -ESTALE;
    if (!rc)
        rc = fs_attr_of(f, node->id, a);
    if (!rc)
        rc = nodes_count_lookup(f->nodes, node->id);
    return rc;
}

static int lookup(struct fs *f, uint64_t parent, const char *name, struct node_info *node, struct fs_attr *a)
{
    if (strcmp(name, ".") == 0)
        return lookup_dot(f, parent, false, node, a);
    if (strcmp(name, "..") == 0)
        return lookup_dot(f, parent, true, node, a);
    return fs_lookup_name(f, parent, name, FS_COUNT, node, a);
}

void fs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct fs_attr a;
    int rc = lookup(f, parent, name, &node, &a);

    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    fs_fill_entry(&node, &a, &e);
    if (fuse_reply_entry(req, &e) == -ENOENT)
        fs_forget(f, node.id, 1);
}

void fs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
    fs_forget(fs_of(req), ino, nlookup);
    fuse_reply_none(req);
}

void fs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    for (size_t i = 0; i < count; i++)
        fs_forget(fs_of(req), forgets[i].ino, forgets[i].nlookup);
    fuse_reply_none(req);
}

/* ---- listing ---- */

void fs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct handle_spec spec = {.kind = HANDLE_DIR, .node.id = ino, .fd = -1};
    struct handle *h = handles_add(f->handles, &spec);

    if (!h) {
        fs_reply_err(req, -ENOMEM);
        return;
    }
    fi->fh = h->fh;
    if (fuse_reply_open(req, fi) == -ENOENT)
        handles_remove(f->handles, h->fh);
}

/* The listing is made at the first read and again after rewinddir(3) (h->mu held). */
static int refresh_listing(struct fs *f, struct handle *h, off_t off)
{
    int rc;

    if (h->listed && off != 0)
        return 0;
    listing_release(&h->list);
    rc = fs_list(f, h->id, &h->list);
    h->listed = rc == 0;
    return rc;
}

struct reply {
    char *buf;
    size_t used, size;
};

static bool is_dot(const char *name)
{
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

/* Look an entry of a listing up.  "." and ".." are not counted by the kernel. */
static int lookup_entry(struct fs *f, uint64_t dir, const char *name, int flags, struct node_info *node,
                        struct fs_attr *a)
{
    int rc;

    if (!is_dot(name))
        return fs_lookup_name(f, dir, name, flags, node, a);
    rc = nodes_get(f->nodes, dir, node);
    if (!rc && name[1] && node->parent)
        rc = nodes_get(f->nodes, node->parent, node);
    *a = (struct fs_attr){.st = {.st_ino = node->id, .st_mode = S_IFDIR}};
    return rc;
}

static size_t add_direntry(fuse_req_t req, struct reply *r, const struct listing_entry *le,
                           const struct node_info *node, const struct fs_attr *a, bool plus)
{
    struct fuse_entry_param e;

    if (!plus)
        return fuse_add_direntry(req, r->buf + r->used, r->size - r->used, le->name, &a->st, le->cookie);
    fs_fill_entry(node, a, &e);
    if (is_dot(le->name)) /* not looked up: only d_ino and d_type */
        e.ino = 0;
    return fuse_add_direntry_plus(req, r->buf + r->used, r->size - r->used, le->name, &e, le->cookie);
}

/* Fill the buffer from the listing; entries that went meanwhile are left out. */
static void fill(fuse_req_t req, struct handle *h, off_t off, bool plus, struct reply *r)
{
    struct fs *f = fs_of(req);
    int flags = plus ? FS_COUNT : FS_TYPE_ONLY;

    for (size_t i = listing_seek(&h->list, off); i < h->list.n; i++) {
        const struct listing_entry *le = &h->list.entry[i];
        struct node_info node;
        struct fs_attr a;
        size_t need;

        if (lookup_entry(f, h->id, le->name, flags, &node, &a))
            continue;
        need = add_direntry(req, r, le, &node, &a, plus);
        if (need > r->size - r->used) {
            if (plus && !is_dot(le->name))
                fs_forget(f, node.id, 1);
            break;
        }
        r->used += need;
    }
}

static void read_folder(fuse_req_t req, uint64_t ino, struct fuse_file_info *fi, size_t size, off_t off,
                        bool plus)
{
    struct fs *f = fs_of(req);
    struct handle *h = handles_get_dir(f->handles, fi->fh, ino);
    struct reply r = {.buf = malloc(size), .size = size};
    int rc;

    if (!h || !r.buf) {
        free(r.buf);
        fs_reply_err(req, h ? -ENOMEM : -EBADF);
        return;
    }
    pthread_mutex_lock(&h->mu);
    rc = refresh_listing(f, h, off);
    if (!rc)
        fill(req, h, off, plus, &r);
    pthread_mutex_unlock(&h->mu);
    if (rc)
        fs_reply_err(req, rc);
    else
        fuse_reply_buf(req, r.buf, r.used);
    free(r.buf);
}

void fs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    read_folder(req, ino, fi, size, off, false);
}

void fs_op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
    read_folder(req, ino, fi, size, off, true);
}

void fs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    handles_remove(fs_of(req)->handles, fi->fh);
    fs_reply_err(req, 0);
}

void fs_op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct backing_fd dir;
    int fd, rc = backing_get(f->backing, ino, &dir);

    if (rc) { /* a generated folder that has nothing in the store */
        fs_reply_err(req, rc == -ENOENT ? 0 : rc);
        return;
    }
    fd = backing_reopen(dir.fd, O_RDONLY | O_DIRECTORY);
    backing_put(f->backing, &dir);
    rc = fd < 0 ? fd : fsync(fd) ? -errno : 0;
    if (fd >= 0)
        close(fd);
    if (!rc)
        rc = nodes_sync(f->nodes, NULL);
    fs_reply_err(req, rc);
}
