/* Making new names in users' folders. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/channel.h"
#include "fsd/fs.h"

/* Where a new name is made: place and folder, with the folder's names locked. */
struct spot {
    struct place p;
    struct backing_fd dir;
    uint64_t parent;
    struct space_claim claim;
    int made; /* O_PATH of what was made, -1: nothing */
    int file; /* the file that was made, open; -1: none */
};

static int spot_begin(fuse_req_t req, uint64_t parent, const char *name, mode_t type, struct spot *s)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    int rc = place_may_create(f, parent, name, type, who.uid, &s->p);

    s->parent = parent;
    s->claim = (struct space_claim){.bytes = -1};
    s->made = s->file = -1;
    if (!rc) /* a dataset that a job reads must not grow a validation.jsonl either */
        rc = sched_may_change(f->sched, s->p.path.p, &who);
    if (!rc)
        rc = backing_get(f->backing, parent, &s->dir);
    if (!rc && (rc = fs_claim_new(req, s->p.path.p, &s->claim)))
        backing_put(f->backing, &s->dir);
    if (rc) {
        place_release(&s->p);
        return rc;
    }
    fs_lock_name(f, parent);
    return 0;
}

static void spot_end(fuse_req_t req, struct spot *s, int rc)
{
    struct fs *f = fs_of(req);

    fs_settle(req, &s->claim, s->made, s->p.path.p, rc);
    if (s->made >= 0)
        close(s->made);
    fs_unlock_name(f, s->parent);
    backing_put(f->backing, &s->dir);
    place_release(&s->p);
}

/* A new object belongs to the caller, and to the folder's group where that is set-group-id (the backing file
 * system has seen to that).  Giving away clears set-id bits: they are put back.  What is open: fd,
 * "". */
static int give_to_caller(struct fs *f, fuse_req_t req, int dirfd, int fd, const char *name, mode_t mode)
{
    struct caller who = fs_caller(req);
    struct stat dir;
    gid_t gid;

    if (!f->root || (who.uid == 0 && who.gid == 0)) /* it is the caller's as it was made */
        return 0;
    if (fstat(dirfd, &dir))
        return -errno;
    gid = dir.st_mode & S_ISGID ? (gid_t)-1 : who.gid;
    if (fchownat(fd, name, who.uid, gid, AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH))
        return -errno;
    if (S_ISDIR(mode) || S_ISLNK(mode) || !(mode & (S_ISUID | S_ISGID)))
        return 0;
    /* fchmodat takes no AT_EMPTY_PATH before Linux 6.6 */
    return (*name ? fchmodat(fd, name, mode & 07777, 0) : fchmod(fd, mode & 07777)) ? -errno : 0;
}

/* What was just made: owner, node, attributes. On failure it is removed again. */
static int adopt(struct fs *f, fuse_req_t req, struct spot *s, const char *name, mode_t mode,
                 struct fuse_entry_param *e, struct node_info *node)
{
    struct fs_attr a;
    bool opened = s->file >= 0;
    int rc = give_to_caller(f, req, s->dir.fd, opened ? s->file : s->dir.fd, opened ? "" : name, mode);

    if (!rc)
        rc = fs_bind_new(f, s->parent, s->dir.fd, name, s->file, node, &a);
    if (rc)
        unlinkat(s->dir.fd, name, S_ISDIR(mode) ? AT_REMOVEDIR : 0);
    else
        fs_fill_entry(node, &a, e);
    if (!rc && s->claim.bytes >= 0)
        s->made = fs_hold(s->dir.fd, name);
    return rc;
}

/* A name is there already: was it made by this very request, in a process before?  Then what kind it is of is
 * right. */
static bool made_before(const struct spot *s, const char *name, mode_t type, bool again)
{
    struct stat st;

    return again && fstatat(s->dir.fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && (st.st_mode & S_IFMT) == type;
}

/* What a call that makes a name returned, seen so. */
static int made(const struct spot *s, const char *name, mode_t type, bool again, int failed)
{
    int rc = failed ? -errno : 0;

    return rc == -EEXIST && made_before(s, name, type, again) ? 0 : rc;
}

static void reply_entry(fuse_req_t req, int rc, const struct fuse_entry_param *e)
{
    struct fs *f = fs_of(req);

    if (rc)
        fs_reply_err(req, rc);
    else if (fuse_reply_entry(req, e) == -ENOENT)
        fs_forget(f, e->ino, 1);
}

/* Devices too: nobody can open them here (the mount is nodev), but archives and copies of root's hold some.
 * The kernel lets only root make them; whoever claims to be root over NFS may not. */
static bool may_make(fuse_req_t req, mode_t mode)
{
    struct caller who = fs_caller(req);

    if (S_ISCHR(mode) || S_ISBLK(mode))
        return !caller_is_remote(&who);
    return S_ISREG(mode) || S_ISFIFO(mode) || S_ISSOCK(mode);
}

void fs_op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct spot s;
    bool again;
    int rc = may_make(req, mode) ? 0 : -EPERM;

    if (!rc)
        rc = spot_begin(req, parent, name, mode, &s);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    again = fs_again(req);
    if (!S_ISREG(mode) && s.p.m.entry->kind != LK_USER_ANY)
        rc = -EPERM; /* a spec is a file */
    else
        rc = made(&s, name, mode & S_IFMT, again, mknodat(s.dir.fd, name, mode, rdev));
    if (!rc)
        rc = adopt(f, req, &s, name, mode, &e, &node);
    if (!rc)
        fs_event(f, req, DROP_CREATE, s.p.path.p);
    spot_end(req, &s, rc);
    reply_entry(req, rc, &e);
}

void fs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct spot s;
    bool again;
    int rc = spot_begin(req, parent, name, S_IFDIR, &s);

    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    again = fs_again(req);
    rc = made(&s, name, S_IFDIR, again, mkdirat(s.dir.fd, name, mode & 07777));
    if (!rc)
        rc = adopt(f, req, &s, name, mode | S_IFDIR, &e, &node);
    if (!rc)
        fs_event(f, req, DROP_MKDIR, s.p.path.p);
    spot_end(req, &s, rc);
    reply_entry(req, rc, &e);
}

void fs_op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct spot s;
    bool again;
    int rc = spot_begin(req, parent, name, S_IFLNK, &s);

    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    again = fs_again(req);
    rc = made(&s, name, S_IFLNK, again, symlinkat(link, s.dir.fd, name));
    if (!rc)
        rc = adopt(f, req, &s, name, S_IFLNK, &e, &node);
    if (!rc)
        fs_event(f, req, DROP_LINK, s.p.path.p);
    spot_end(req, &s, rc);
    reply_entry(req, rc, &e);
}

/* Is there a name of this very file already? */
static bool is_name_of(int fd, int dirfd, const char *name)
{
    struct stat a, b;

    return fstat(fd, &a) == 0 && fstatat(dirfd, name, &b, AT_SYMLINK_NOFOLLOW) == 0 && a.st_dev == b.st_dev &&
           a.st_ino == b.st_ino;
}

/* As Linux's protected_hardlinks, wherever that is set: a link gives its maker's folder the content of the
 * file, and DTX reads it as root.  Only one's own, and what one may read and write. */
static bool may_link(const struct caller *who, int path_fd)
{
    struct stat st;
    mode_t rights;

    if (fstat(path_fd, &st))
        return false;
    if (who->uid == 0 || who->uid == st.st_uid)
        return true;
    rights = caller_in_group(who, st.st_gid) ? st.st_mode >> 3 : st.st_mode;
    return S_ISREG(st.st_mode) && (rights & 0006) == 0006 && !(st.st_mode & (S_ISUID | S_ISGID));
}

static int link_backed(fuse_req_t req, const struct spot *s, uint64_t id, const char *name, bool again)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    struct backing_fd file;
    char path[40];
    int rc = backing_get(f->backing, id, &file);

    if (rc)
        return rc;
    if (!may_link(&who, file.fd))
        rc = -EPERM;
    else if (linkat(AT_FDCWD, backing_proc_path(file.fd, path), s->dir.fd, name, AT_SYMLINK_FOLLOW))
        rc = -errno;
    if (rc == -EEXIST && again && is_name_of(file.fd, s->dir.fd, name))
        rc = 0;
    backing_put(f->backing, &file);
    return rc;
}

/* A file that was made without a name got one: from now on it is somebody's concern that it is written, and
 * how much it takes. */
static void first_named(fuse_req_t req, struct spot *s, uint64_t id, const char *name)
{
    struct fs *f = fs_of(req);

    pthread_mutex_lock(&f->writers);
    for (unsigned n = handles_named(f->handles, id, s->p.path.p); n; n--)
        fs_event(f, req, DROP_OPEN_WRITE, s->p.path.p);
    pthread_mutex_unlock(&f->writers);
    if (s->claim.bytes >= 0)
        s->made = fs_hold(s->dir.fd, name);
}

void fs_op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct fs_attr a;
    struct spot s;
    int rc = nodes_get(f->nodes, ino, &node);

    if (!rc && node.owner != NODE_USER) /* its other name would be writable */
        rc = -EPERM;
    if (!rc)
        rc = spot_begin(req, newparent, newname, S_IFREG, &s);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    rc = link_backed(req, &s, ino, newname, fs_again(req));
    if (!rc)
        rc = fs_bind_new(f, newparent, s.dir.fd, newname, -1, &node, &a);
    if (!rc) {
        fs_fill_entry(&node, &a, &e);
        fs_event(f, req, DROP_LINK, s.p.path.p);
        if (a.st.st_nlink == 1)
            first_named(req, &s, ino, newname);
    }
    spot_end(req, &s, rc);
    reply_entry(req, rc, &e);
}

/* ---- create and open ---- */

/* The kernel saw no such name.  If there is one now, it has not checked permissions: -ESTALE makes it look
 * again. */
static int create_file(const struct spot *s, const char *name, mode_t mode, int flags, bool again)
{
    int keep = flags & (O_ACCMODE | O_SYNC | O_DSYNC);
    int fd =
        openat(s->dir.fd, name, keep | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY, mode & 07777);

    if (fd < 0 && errno == EEXIST && made_before(s, name, S_IFREG, again))
        fd = openat(s->dir.fd, name, keep | O_NOFOLLOW | O_CLOEXEC | O_NOCTTY);
    if (fd >= 0)
        return fd;
    return errno == EEXIST && !(flags & O_EXCL) ? -ESTALE : -errno;
}

/* Answer CREATE with an open file, or with rc; what the reply told the kernel is forgotten if it is not
 * heard.
 */
static void reply_created(fuse_req_t req, int rc, struct handle *h, const struct fuse_entry_param *e,
                          struct fuse_file_info *fi)
{
    if (h)
        rc = fs_pass_open(req, h, fi);
    if (h && (rc || fuse_reply_create(req, e, fi) == -ENOENT)) {
        fs_close_handle(req, h->fh);
        fs_forget(fs_of(req), e->ino, 1);
    }
    if (rc)
        fs_reply_err(req, rc);
}

/* A process before had made the file and opened it: only the reply is missing. */
static void reply_created_before(fuse_req_t req, const struct handle *h, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct node_info node;
    struct fs_attr a;
    int rc = nodes_get(f->nodes, h->id, &node);

    if (!rc)
        rc = fs_attr_of(f, h->id, &a);
    if (!rc)
        rc = nodes_count_lookup(f->nodes, h->id);
    if (rc) {
        fs_close_handle(req, h->fh);
        fs_reply_err(req, rc);
        return;
    }
    fs_fill_entry(&node, &a, &e);
    fs_again(req); /* it is answered now */
    fs_event_node(f, req, DROP_CREATE, h->id);
    fuse_reply_create(req, &e, fi);
}

/* ---- O_TMPFILE: a file without a name ----
 *
 * It is what a file is that was unlinked while it is open, until somebody links it. */

static int open_unnamed(fuse_req_t req, const struct spot *s, mode_t mode, int flags)
{
    int keep = flags & (O_ACCMODE | O_SYNC | O_DSYNC | O_EXCL), rc;
    int fd = openat(s->dir.fd, ".", keep | O_TMPFILE | O_CLOEXEC, mode & 07777);

    if (fd < 0)
        return -errno;
    rc = give_to_caller(fs_of(req), req, s->dir.fd, fd, "", mode | S_IFREG);
    if (rc)
        close(fd);
    return rc ? rc : fd;
}

/* Nodes are made with a name: it gets one that no file can have, for a moment. */
static int bind_unnamed(struct fs *f, uint64_t parent, int fd, struct fuse_entry_param *e,
                        struct node_info *node)
{
    struct node_info what = {.owner = NODE_USER};
    struct fs_attr a;
    int rc = backing_stat(f->backing, fd, "", &a.st, &what.key);

    if (!rc)
        rc = nodes_bind(f->nodes, parent, "/", &what, true, node);
    if (rc)
        return rc;
    nodes_unbind(f->nodes, parent, "/");
    backing_pin_fd(f->backing, node->id, fd);
    rc = fs_attr_of(f, node->id, &a);
    if (rc)
        fs_forget(f, node->id, 1);
    else
        fs_fill_entry(node, &a, e);
    return rc;
}

static void create_unnamed(fuse_req_t req, uint64_t parent, mode_t mode, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct handle *h = NULL;
    struct fuse_entry_param e;
    struct node_info node;
    struct spot s;
    int fd, rc = spot_begin(req, parent, ".tmpfile", S_IFREG, &s); /* a name that may be anywhere */

    if (rc) {
        fs_reply_err(req, rc == -ESTALE ? -ENOENT : rc); /* a removed folder: the kernel does not look */
        return;
    }
    fd = rc = open_unnamed(req, &s, mode, fi->flags);
    if (fd >= 0)
        rc = bind_unnamed(f, parent, fd, &e, &node);
    if (fd >= 0 && rc)
        close(fd);
    if (!rc && !(h = fs_file_handle(req, &node, fd, NULL, fi))) {
        rc = -ENOMEM;
        fs_forget(f, node.id, 1);
    }
    spot_end(req, &s, rc);
    reply_created(req, rc, h, &e, fi);
}

/* ---- CREATE ---- */

void fs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct fuse_entry_param e;
    struct handle *h = fs_opened_before(req, fi);
    struct node_info node;
    struct spot s;
    int fd, rc;

    if (h) {
        reply_created_before(req, h, fi);
        return;
    }
    if (channel_unnamed()) {
        create_unnamed(req, parent, mode, fi);
        return;
    }
    rc = spot_begin(req, parent, name, S_IFREG, &s);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    fd = rc = s.file = create_file(&s, name, mode, fi->flags, fs_again(req));
    if (fd >= 0)
        rc = adopt(f, req, &s, name, mode | S_IFREG, &e, &node);
    if (fd >= 0 && rc)
        close(fd);
    if (!rc) {
        h = fs_file_handle(req, &node, fd, &s.p, fi);
        if (!h) {
            rc = -ENOMEM;
            fs_forget(f, node.id, 1);
        }
    }
    if (h) {
        fs_writer_opened(req, h, &s.p);
        fs_event(f, req, DROP_CREATE, s.p.path.p);
        fs_family_expect(f, h, parent, name);
    }
    spot_end(req, &s, rc);
    reply_created(req, rc, h, &e, fi);
}
