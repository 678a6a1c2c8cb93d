#include "scheduler/base/fdio.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SYNC_MAX_DEPTH = 64 };

int fd_read_file(int dirfd, const char *path, size_t max, struct buf *b, struct dtx_err *e)
{
    int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc = 0;
    size_t start = b->len;
    struct stat st;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        close(fd);
        return dtx_fail(e, -EINVAL, "%s is not a regular file", path);
    }
    for (;;) {
        ssize_t got;

        if (b->len - start > max) {
            rc = dtx_fail(e, -EFBIG, "%s has more than %zu bytes", path, max);
            break;
        }
        if (buf_reserve(b, 65536)) {
            rc = dtx_fail(e, -ENOMEM, "out of memory reading %s", path);
            break;
        }
        got = read(fd, b->p + b->len, 65536);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            rc = dtx_fail_errno(e, "cannot read %s", path);
        if (got <= 0)
            break;
        b->len += (size_t)got;
        b->p[b->len] = '\0';
    }
    close(fd);
    return rc;
}

int fd_write_all(int fd, const void *data, size_t n)
{
    const char *p = data;

    while (n) {
        ssize_t put = write(fd, p, n);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        p += put;
        n -= (size_t)put;
    }
    return 0;
}

int fd_pwrite_all(int fd, const void *data, size_t n, off_t at)
{
    const char *p = data;

    while (n) {
        ssize_t put = pwrite(fd, p, n, at);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return -errno;
        p += put;
        at += put;
        n -= (size_t)put;
    }
    return 0;
}

int fd_read_all(int fd, void *data, size_t n)
{
    char *p = data;

    while (n) {
        ssize_t got = read(fd, p, n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return -EPIPE;
        p += got;
        n -= (size_t)got;
    }
    return 0;
}

int fd_pread_all(int fd, void *data, size_t n, off_t at)
{
    char *p = data;

    while (n) {
        ssize_t got = pread(fd, p, n, at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -errno;
        if (got == 0)
            return -EPIPE;
        p += got;
        at += got;
        n -= (size_t)got;
    }
    return 0;
}

static int parent_of(const char *path, char *out, size_t outsz)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return snprintf(out, outsz, ".") < (int)outsz ? 0 : -ENAMETOOLONG;
    if (slash == path)
        return snprintf(out, outsz, "/") < (int)outsz ? 0 : -ENAMETOOLONG;
    if ((size_t)(slash - path) >= outsz)
        return -ENAMETOOLONG;
    memcpy(out, path, (size_t)(slash - path));
    out[slash - path] = '\0';
    return 0;
}

int fd_sync_path(int dirfd, const char *path, struct dtx_err *e)
{
    int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), rc = 0;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s to sync it", path);
    if (fsync(fd))
        rc = dtx_fail_errno(e, "cannot sync %s", path);
    close(fd);
    return rc;
}

int fd_replace_file(int dirfd, const char *path, const void *data, size_t n, mode_t mode, struct dtx_err *e)
{
    static unsigned counter;
    char tmp[PATH_MAX], dir[PATH_MAX];
    int fd, rc;

    if (parent_of(path, dir, sizeof(dir)) ||
        snprintf(tmp, sizeof(tmp), "%s/.%d.%u.tmp", dir, (int)getpid(),
                 __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED)) >= (int)sizeof(tmp))
        return dtx_fail(e, -ENAMETOOLONG, "path too long: %.200s", path);
    fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
    if (fd < 0)
        return dtx_fail_errno(e, "cannot create %s", tmp);
    rc = fd_write_all(fd, data, n);
    if (rc == 0 && fsync(fd))
        rc = -errno;
    if (close(fd) && rc == 0)
        rc = -errno;
    if (rc == 0 && renameat(dirfd, tmp, dirfd, path))
        rc = -errno;
    if (rc) {
        unlinkat(dirfd, tmp, 0);
        return dtx_fail(e, rc, "cannot write %s: %s", path, strerror(-rc));
    }
    return fd_sync_path(dirfd, dir, e);
}

int fd_join(char out[PATH_MAX], const char *dir, const char *name, struct dtx_err *e)
{
    if (snprintf(out, PATH_MAX, "%s/%s", dir, name) < PATH_MAX)
        return 0;
    return dtx_fail(e, -ENAMETOOLONG, "path too long: %.200s", dir);
}

int fd_make_private(const char *path, struct dtx_err *e)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600), rc = 0;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    if (fchmod(fd, 0600))
        rc = dtx_fail_errno(e, "cannot set the permissions of %s", path);
    close(fd);
    return rc;
}

int fd_mkdirs(int dirfd, const char *path, mode_t mode, struct dtx_err *e)
{
    char part[PATH_MAX];
    size_t n = strlen(path);

    if (n >= sizeof(part))
        return dtx_fail(e, -ENAMETOOLONG, "path too long: %.200s", path);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdirat(dirfd, part, mode) == 0) {
            char parent[PATH_MAX];
            int rc = parent_of(part, parent, sizeof(parent));
            rc = rc ? dtx_fail(e, rc, "path too long: %.200s", path) : fd_sync_path(dirfd, parent, e);
            if (rc)
                return rc;
        } else if (errno != EEXIST) {
            return dtx_fail_errno(e, "cannot make folder %s", part);
        }
    }
    return 0;
}

int fd_sync_chain(int dirfd, const char *path, struct dtx_err *e)
{
    char part[PATH_MAX], next[PATH_MAX];
    int rc = strlen(path) < sizeof(part) ? 0 : dtx_fail(e, -ENAMETOOLONG, "path too long: %.200s", path);

    snprintf(part, sizeof(part), "%.*s", PATH_MAX - 1, path);
    while (rc == 0) {
        rc = fd_sync_path(dirfd, part, e);
        if (strcmp(part, ".") == 0 || strcmp(part, "/") == 0)
            break;
        parent_of(part, next, sizeof(next));
        memcpy(part, next, sizeof(part));
    }
    return rc;
}

static int sync_entries(int fd, int depth, struct dtx_err *e);

/* fd is closed.  Only files and folders: a FIFO must not be waited for, a link's target is another's. */
static int sync_entry(int dirfd, const char *name, int depth, struct dtx_err *e)
{
    struct stat st;
    int fd, rc = 0;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? 0 : dtx_fail_errno(e, "cannot look at %s", name);
    if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode))
        return 0;
    fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return errno == ENOENT ? 0 : dtx_fail_errno(e, "cannot open %s to sync it", name);
    if (S_ISDIR(st.st_mode) && depth < SYNC_MAX_DEPTH)
        rc = sync_entries(dup(fd), depth + 1, e);
    if (rc == 0 && fsync(fd))
        rc = dtx_fail_errno(e, "cannot sync %s", name);
    close(fd);
    return rc;
}

DIR *fd_look_into(int fd)
{
    DIR *d;
    int error;

    if (fd < 0)
        return NULL;
    fcntl(fd, F_SETFL, O_NOATIME); /* refused for what is another's */
    d = fdopendir(fd);
    if (d)
        return d;
    error = errno;
    close(fd);
    errno = error;
    return NULL;
}

static int sync_entries(int fd, int depth, struct dtx_err *e)
{
    DIR *d = fd_look_into(fd);
    struct dirent *ent;
    int rc = 0;

    if (!d)
        return dtx_fail_errno(e, "cannot list a folder");
    while (rc == 0 && (ent = readdir(d)))
        if (strcmp(ent->d_name, ".") && strcmp(ent->d_name, ".."))
            rc = sync_entry(dirfd(d), ent->d_name, depth, e);
    closedir(d);
    return rc;
}

int fd_sync_tree(int dirfd, const char *path, struct dtx_err *e)
{
    char parent[PATH_MAX];
    int rc = sync_entry(dirfd, path, 0, e);

    if (rc == 0 && parent_of(path, parent, sizeof(parent)))
        rc = dtx_fail(e, -ENAMETOOLONG, "path too long: %.200s", path);
    return rc ? rc : fd_sync_path(dirfd, parent, e);
}

/* Is it the name of a file that is being written, by another process than this? */
static bool half_written(const char *name)
{
    const char *tokens = strstr(name, ".tokens.");
    int pid = 0, n = 0;
    unsigned count;

    if (sscanf(name, ".%d.%u%n", &pid, &count, &n) == 2 && n &&
        (strcmp(name + n, ".tmp") == 0 || strcmp(name + n, ".st.tmp") == 0))
        return pid != getpid();
    if (tokens && sscanf(tokens, ".tokens.%d.tmp%n", &pid, &n) == 1 && n)
        return pid != getpid();
    return strcmp(name, ".score.tmp") == 0;
}

void fd_sweep(int dirfd, const char *path)
{
    int fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *ent;

    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((ent = readdir(d)))
        if (half_written(ent->d_name))
            unlinkat(fd, ent->d_name, 0);
    closedir(d);
}

static int remove_entries(int fd, struct dtx_err *e)
{
    DIR *d = fdopendir(fd);
    struct dirent *ent;
    int rc = 0;

    if (!d) {
        rc = dtx_fail_errno(e, "cannot list a folder");
        close(fd);
        return rc;
    }
    while (rc == 0 && (ent = readdir(d)))
        if (strcmp(ent->d_name, ".") && strcmp(ent->d_name, ".."))
            rc = fd_remove_tree(fd, ent->d_name, e);
    closedir(d);
    return rc;
}

int fd_remove_tree(int dirfd, const char *path, struct dtx_err *e)
{
    int fd, rc;

    if (unlinkat(dirfd, path, 0) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return dtx_fail_errno(e, "cannot remove %s", path);
    fd = openat(dirfd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    rc = remove_entries(fd, e);
    if (rc)
        return rc;
    if (unlinkat(dirfd, path, AT_REMOVEDIR) && errno != ENOENT)
        return dtx_fail_errno(e, "cannot remove folder %s", path);
    return 0;
}

int fd_lock_file(int dirfd, const char *path, struct dtx_err *e)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int fd = openat(dirfd, path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open lock file %s", path);
    if (fcntl(fd, F_OFD_SETLK, &fl)) {
        int rc = errno == EAGAIN || errno == EACCES
                     ? dtx_fail(e, -EBUSY, "%s is locked by another process", path)
                     : dtx_fail_errno(e, "cannot lock %s", path);
        close(fd);
        return rc;
    }
    return fd;
}
