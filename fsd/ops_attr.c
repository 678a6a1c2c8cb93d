/* Attributes, links' targets, statfs, extended attributes. */
#include <fcntl.h>
#include <linux/limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "fsd/channel.h"
#include "fsd/fs.h"
#include "fsd/touch.h"

enum {
    TIMES = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW
};

void fs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct fs_attr a;
    int rc = fs_attr_of(fs_of(req), ino, &a);

    if (rc)
        fs_reply_err(req, rc);
    else
        fuse_reply_attr(req, &a.st, a.attr_timeout);
}

/* ---- setattr ---- */

/* The store's own chown(2) takes set-id bits away as for root: those that a stranger loses go before. */
static int set_owner(fuse_req_t req, int fd, const struct stat *attr, int to_set)
{
    uid_t uid = to_set & FUSE_SET_ATTR_UID ? attr->st_uid : (uid_t)-1;
    gid_t gid = to_set & FUSE_SET_ATTR_GID ? attr->st_gid : (gid_t)-1;
    int rc = fs_kill_setid_of(req, fd);

    if (rc < 0)
        return rc;
    return fchownat(fd, "", uid, gid, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

/* Nothing to set is chown(2) to -1 and -1, which takes set-id bits away and marks ctime.  It is also what the
 * kernel sends before a write to a file with such bits: the write says that they go, and whether a stranger
 * may write is not known here. */
static int set_nothing(fuse_req_t req, int fd)
{
    uid_t uid = fuse_req_ctx(req)->uid;
    struct stat st;

    if (fstat(fd, &st))
        return -errno;
    if (!S_ISDIR(st.st_mode) && (st.st_mode & (S_ISUID | S_ISGID)) && uid != 0 && uid != st.st_uid)
        return 0;
    return set_owner(req, fd, &st, 0);
}

static int set_size(fuse_req_t req, struct handle *h, int path_fd, off_t size)
{
    char path[40];
    int rc = fs_kill_setid_of(req, path_fd);

    if (rc < 0)
        return rc;
    if (h && h->kind == HANDLE_FILE && h->writer)
        return ftruncate(h->fd, size) ? -errno : 0;
    return truncate(backing_proc_path(path_fd, path), size) ? -errno : 0;
}

static struct timespec time_to_set(int to_set, int set, int set_now, struct timespec t)
{
    if (to_set & set_now)
        return (struct timespec){0, UTIME_NOW};
    if (to_set & set)
        return t;
    return (struct timespec){0, UTIME_OMIT};
}

static int set_times(int path_fd, const struct stat *attr, int to_set)
{
    const struct timespec tv[2] = {
        time_to_set(to_set, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW, attr->st_atim),
        time_to_set(to_set, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW, attr->st_mtim),
    };
    char path[40];

    if (utimensat(path_fd, "", tv, AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOENT)
        return -errno;
    return utimensat(AT_FDCWD, backing_proc_path(path_fd, path), tv, 0) ? -errno : 0; /* before Linux 5.8 */
}

/* Ownership first: it clears set-id bits, which the kernel then sends as a mode if they are to stay. */
static int set_backed(fuse_req_t req, int fd, const struct stat *attr, int to_set, struct handle *h)
{
    char path[40];
    int rc = to_set ? 0 : set_nothing(req, fd);

    if (to_set & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))
        rc = set_owner(req, fd, attr, to_set);
    if (!rc && (to_set & FUSE_SET_ATTR_MODE) && chmod(backing_proc_path(fd, path), attr->st_mode & 07777))
        rc = -errno;
    if (!rc && (to_set & FUSE_SET_ATTR_SIZE))
        rc = set_size(req, h, fd, attr->st_size);
    if (!rc && (to_set & TIMES))
        rc = set_times(fd, attr, to_set);
    return rc;
}

/* With the path, NULL where it has none. */
static int change_user(fuse_req_t req, int fd, const struct stat *attr, int to_set, struct handle *h,
                       const char *path)
{
    struct space_claim claim = {.bytes = -1};
    int rc = 0;

    if (to_set & FUSE_SET_ATTR_SIZE)
        rc = fs_claim_size(req, fd, attr->st_size, path, &claim);
    if (rc)
        return rc;
    rc = set_backed(req, fd, attr, to_set, h);
    fs_settle(req, &claim, fd, path, rc);
    if (to_set & (FUSE_SET_ATTR_SIZE | FUSE_SET_ATTR_UID))
        space_note(fs_of(req)->space, fd, path);
    return rc;
}

static int setattr_user(fuse_req_t req, uint64_t id, const struct stat *attr, int to_set, struct handle *h)
{
    struct fs *f = fs_of(req);
    struct buf path = BUF_INIT;
    struct backing_fd file;
    int rc = 0;

    if (to_set & FUSE_SET_ATTR_SIZE)
        rc = fs_may_change_node(f, req, id);
    if (!rc)
        rc = backing_get(f->backing, id, &file);
    if (rc)
        return rc;
    if (nodes_path(f->nodes, id, &path))
        buf_release(&path);
    rc = change_user(req, file.fd, attr, to_set, h, path.p);
    buf_release(&path);
    backing_put(f->backing, &file);
    if (rc)
        return rc;
    if ((to_set & FUSE_SET_ATTR_SIZE) && h)
        fs_writer_wrote(req, h);
    fs_event_node(f, req, to_set & FUSE_SET_ATTR_SIZE ? DROP_WRITE : DROP_SETATTR, id);
    return 0;
}

/* Of what is generated only a control file takes anything: `echo word > control` truncates it first. */
static int setattr_generated(struct fs *f, uint64_t id, int to_set)
{
    struct place p;
    int rc = place_of_node(f, id, &p);

    if (!rc && (p.m.entry->kind != LK_CONTROL ||
                (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))))
        rc = -EPERM;
    place_release(&p);
    return rc;
}

/* Our own helper, for inotify's sake: nothing is set, and the reply tells how it is. */
static void reply_touch(fuse_req_t req, uint64_t id)
{
    struct fs_attr a;
    int rc = touch_attr(fs_of(req), id, &a);

    if (rc)
        fs_reply_err(req, rc);
    else
        fuse_reply_attr(req, &a.st, a.attr_timeout);
}

void fs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
    struct fs *f = fs_of(req);
    struct handle *h = fi ? handles_get(f->handles, fi->fh) : NULL;
    struct node_info node;
    int rc = nodes_get(f->nodes, ino, &node);

    if (!rc && (to_set & ~(TIMES | FUSE_SET_ATTR_CTIME)) == 0 && touch_asks(f, req)) {
        reply_touch(req, ino);
        return;
    }
    if (!rc && node.owner == NODE_GENERATED)
        rc = setattr_generated(f, ino, to_set);
    else if (!rc)
        rc = node.owner == NODE_STORE ? -EPERM : setattr_user(req, ino, attr, to_set, h);
    if (rc)
        fs_reply_err(req, rc);
    else
        fs_op_getattr(req, ino, fi);
}

/* ---- links, space ---- */

static void readlink_generated(fuse_req_t req, uint64_t id)
{
    struct fs *f = fs_of(req);
    struct snapshot *s;
    struct place p;
    int rc = place_of_node(f, id, &p);

    if (!rc && p.m.entry->kind != LK_LINK)
        rc = -EINVAL;
    if (!rc)
        rc = fs_render(f, id, &p, RENDER_FOR_OPEN, &s);
    place_release(&p);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    fuse_reply_readlink(req, s->data);
    snapshot_put(s);
}

void fs_op_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct fs *f = fs_of(req);
    char target[4096 + 1];
    struct node_info node;
    struct backing_fd file;
    ssize_t n;
    int rc = nodes_get(f->nodes, ino, &node);

    if (!rc && node.owner == NODE_GENERATED) {
        readlink_generated(req, ino);
        return;
    }
    if (!rc)
        rc = backing_get(f->backing, ino, &file);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    n = readlinkat(file.fd, "", target, sizeof(target) - 1);
    rc = n < 0 ? -errno : 0;
    backing_put(f->backing, &file);
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    target[n] = '\0';
    fuse_reply_readlink(req, target);
}

void fs_op_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct statvfs s;

    if (fstatvfs(fs_of(req)->tree_fd, &s)) {
        fs_reply_err(req, -errno);
        return;
    }
    s.f_namemax = FS_NAME_MAX;
    space_statvfs(fs_of(req)->space, fuse_req_ctx(req)->uid, &s);
    fuse_reply_statfs(req, &s);
}

/* ---- extended attributes: user.* of users' files ---- */

/* The path for the *xattr calls (links have none of these attributes), the descriptor to put back afterwards.
 */
static int xattr_target(struct fs *f, uint64_t id, const char *name, struct backing_fd *file, char path[40])
{
    struct node_info node;
    int rc = nodes_get(f->nodes, id, &node);

    if (rc)
        return rc;
    if (node.owner == NODE_GENERATED || (name && strncmp(name, "user.", 5) != 0))
        return -EOPNOTSUPP;
    rc = backing_get(f->backing, id, file);
    if (!rc)
        backing_proc_path(file->fd, path);
    return rc;
}

static bool writable_xattrs(struct fs *f, uint64_t id)
{
    struct node_info node;

    return nodes_get(f->nodes, id, &node) != 0 || node.owner != NODE_STORE;
}

void fs_op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size,
                    int flags)
{
    struct fs *f = fs_of(req);
    struct backing_fd file;
    char path[40];
    int rc = writable_xattrs(f, ino) ? xattr_target(f, ino, name, &file, path) : -EPERM;

    if (!rc) {
        bool again = fs_again(req);
        rc = setxattr(path, name, value, size, flags) ? -errno : 0;
        if (rc == -EEXIST && again)
            rc = 0;
        backing_put(f->backing, &file);
    }
    fs_reply_err(req, rc);
}

void fs_op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct fs *f = fs_of(req);
    struct backing_fd file;
    char path[40];
    int rc = writable_xattrs(f, ino) ? xattr_target(f, ino, name, &file, path) : -EPERM;

    if (!rc) {
        bool again = fs_again(req);
        rc = removexattr(path, name) ? -errno : 0;
        if (rc == -ENODATA && again)
            rc = 0;
        backing_put(f->backing, &file);
    }
    fs_reply_err(req, rc);
}

/* size 0 asks for the length only. */
static void reply_xattr(fuse_req_t req, const char *value, ssize_t n, size_t size)
{
    if (n < 0)
        fs_reply_err(req, (int)n);
    else if (size == 0)
        fuse_reply_xattr(req, (size_t)n);
    else if ((size_t)n > size)
        fs_reply_err(req, -ERANGE);
    else
        fuse_reply_buf(req, value, (size_t)n);
}

void fs_op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct fs *f = fs_of(req);
    struct backing_fd file;
    char path[40], *value = NULL;
    ssize_t n;
    int rc;

    if (strcmp(name, "security.capability") == 0) { /* the kernel asks before every write */
        fs_reply_err(req, -ENODATA);
        return;
    }
    rc = xattr_target(f, ino, name, &file, path);
    if (!rc && size && !(value = malloc(size))) {
        backing_put(f->backing, &file);
        rc = -ENOMEM;
    }
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    n = getxattr(path, name, value, size);
    reply_xattr(req, value, n < 0 ? -errno : n, size);
    backing_put(f->backing, &file);
    free(value);
}

/* Only the names that getxattr would answer to. */
static ssize_t keep_user_names(char *list, ssize_t n)
{
    ssize_t kept = 0;

    for (ssize_t i = 0; i < n;) {
        ssize_t len = (ssize_t)strlen(list + i) + 1;
        if (strncmp(list + i, "user.", 5) == 0) {
            memmove(list + kept, list + i, (size_t)len);
            kept += len;
        }
        i += len;
    }
    return kept;
}

void fs_op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct fs *f = fs_of(req);
    struct backing_fd file;
    char path[40], *list;
    ssize_t n;
    int rc = xattr_target(f, ino, NULL, &file, path);

    if (rc == -EOPNOTSUPP) { /* a generated file has none */
        reply_xattr(req, "", 0, size);
        return;
    }
    if (rc) {
        fs_reply_err(req, rc);
        return;
    }
    list = malloc(XATTR_LIST_MAX);
    n = list ? listxattr(path, list, XATTR_LIST_MAX) : -1;
    if (n >= 0)
        n = keep_user_names(list, n);
    reply_xattr(req, list, n < 0 ? -errno : n, size);
    backing_put(f->backing, &file);
    free(list);
}
