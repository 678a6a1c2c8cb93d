/*
 * For the tests of crashes and broken disks: a library (LD_PRELOAD) that sits between a program and its files
 * under $SHIM_STORE.  Built by the tests: cc -shared -fPIC -O1 -o shim.so shim.c -ldl
 *
 *   SHIM_LOG=FILE      record each change of the store (records below) in the order in which they happened,
 * from all processes; powercut.py plays them back SHIM_FAULT=FILE    a shared page (struct fault_page): the
 * Nth of open-to-write, write, fsync, rename, link, mkdir and truncate fails, once or until cleared
 *
 * A record: one line of text "OP arg...\n" where names are %-escaped; "W ino off len\n" is followed by len
 * bytes. C parent name ino mode mtime   a file or folder was made     L parent name ino     hard
 * link, symlink: S U parent name            unlinked or rmdir                            R parent name parent
 * name flags   renamed T ino size mtime         truncated                                   F ino fsync M
 * words                  a mark that somebody appended
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

struct fault_page {
    atomic_int calls, injected, nth, sticky, error;
};

static struct fault_page *fault;
static char store[PATH_MAX];
static size_t store_len;
static int log_fd = -1;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name)
{
    void *p = dlsym(RTLD_NEXT, name);

    if (!p)
        abort();
    return p;
}

__attribute__((constructor)) static void begin(void)
{
    const char *s = getenv("SHIM_STORE"), *log = getenv("SHIM_LOG"), *page = getenv("SHIM_FAULT");
    int fd;

    if (!s || !realpath(s, store))
        return;
    store_len = strlen(store);
    if (log) {
        fd = REAL(open)(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        log_fd = fcntl(fd, F_DUPFD_CLOEXEC,
                       200); /* out of the way of numbers that have a meaning; a check may have 256 */
        close(fd);
    }
    if (page && (fd = REAL(open)(page, O_RDWR | O_CLOEXEC)) >= 0) {
        fault = mmap(NULL, sizeof(*fault), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (fault == MAP_FAILED)
            fault = NULL;
        close(fd);
    }
}

static bool below(const char *path)
{
    return strncmp(path, store, store_len) == 0 && (path[store_len] == '/' || !path[store_len]);
}

static bool ours(int fd)
{
    char link[64], path[PATH_MAX];
    ssize_t n;

    if (!store_len || (log_fd < 0 && !fault))
        return false;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof(path) - 1);
    if (n <= 0)
        return false;
    path[n] = '\0';
    return below(path);
}

/* Is dirfd/path in the store? */
static bool ours_at(int dirfd, const char *path)
{
    if (!store_len || (log_fd < 0 && !fault) || !path)
        return false;
    if (strncmp(path, "/proc/self/fd/", 14) == 0)
        return ours(atoi(path + 14));
    return path[0] == '/' || dirfd == AT_FDCWD ? below(path) : ours(dirfd);
}

static bool fails(void)
{
    int n, nth;

    if (!fault)
        return false;
    n = atomic_fetch_add(&fault->calls, 1) + 1;
    nth = atomic_load(&fault->nth);
    if (!nth || (atomic_load(&fault->sticky) ? n < nth : n != nth))
        return false;
    atomic_fetch_add(&fault->injected, 1);
    errno = atomic_load(&fault->error);
    return true;
}

/* ---- recording: the change and its record under one lock, so that the order is the true one ---- */

static bool lock(void)
{
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    if (log_fd < 0)
        return false;
    pthread_mutex_lock(&mutex);
    while (fcntl(log_fd, F_OFD_SETLKW, &fl) && errno == EINTR)
        ;
    return true;
}

static void unlock(bool locked)
{
    struct flock fl = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    int saved = errno;

    if (!locked)
        return;
    fcntl(log_fd, F_OFD_SETLK, &fl);
    pthread_mutex_unlock(&mutex);
    errno = saved;
}

static void put(const void *data, size_t n)
{
    while (n) {
        ssize_t put = REAL(write)(log_fd, data, n);
        if (put <= 0)
            abort();
        data = (const char *)data + put;
        n -= (size_t)put;
    }
}

static void record(const char *fmt, ...)
{
    char line[2 * PATH_MAX];
    va_list ap;
    int n;

    va_start(ap, fmt);
    n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    put(line, (size_t)n);
}

static const char *escaped(const char *path, char out[3 * NAME_MAX + 1])
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = 0;

    for (; *name && n < 3 * NAME_MAX - 3; name++)
        n += (size_t)sprintf(out + n, (unsigned char)*name <= ' ' || *name == '%' ? "%%%02x" : "%c",
                             (unsigned char)*name);
    out[n] = '\0';
    return out;
}

/* Inode number of the folder that holds dirfd/path. */
static unsigned long long parent_of(int dirfd, const char *path)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    struct stat st = {0};

    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    fstatat(dirfd, dir, &st, 0);
    return st.st_ino;
}

static long long mtime_of(const struct stat *st)
{
    return st->st_mtim.tv_sec * 1000000000ll + st->st_mtim.tv_nsec;
}

static void record_made(char op, int dirfd, const char *path)
{
    char name[3 * NAME_MAX + 1];
    struct stat st;

    if (fstatat(dirfd, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
        record("%c %llu %s %llu %o %lld\n", op, parent_of(dirfd, path), escaped(path, name),
               (unsigned long long)st.st_ino, st.st_mode, mtime_of(&st));
}

static void record_cut(int fd, off_t size)
{
    struct stat st = {0};

    fstat(fd, &st);
    record("T %llu %lld %lld\n", (unsigned long long)st.st_ino, (long long)size, mtime_of(&st));
}

static void record_sync(int fd)
{
    struct stat st = {0};

    fstat(fd, &st);
    record("F %llu %lld\n", (unsigned long long)st.st_ino, mtime_of(&st));
}

static void record_data(int fd, off_t at, size_t n)
{
    char link[64], *p = malloc(n ? n : 1);
    struct stat st;
    int again;

    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd); /* it may be open for writing only */
    again = REAL(open)(link, O_RDONLY | O_CLOEXEC);
    if (fstat(fd, &st) || again < 0 || pread(again, p, n, at) != (ssize_t)n)
        abort();
    close(again);
    record("W %llu %lld %zu %lld\n", (unsigned long long)st.st_ino, (long long)at, n, mtime_of(&st));
    put(p, n);
    free(p);
}

/* ---- the calls ---- */

static int do_open(int dirfd, const char *path, int flags, mode_t mode)
{
    __typeof__(&openat) open_real = REAL(openat);
    struct stat st;
    bool was, locked;
    int fd;

    if ((!(flags & (O_CREAT | O_TRUNC)) && (flags & O_ACCMODE) == O_RDONLY) || !ours_at(dirfd, path))
        return open_real(dirfd, path, flags, mode);
    if (fails())
        return -1;
    locked = lock();
    was = locked && fstatat(dirfd, path, &st, 0) == 0;
    fd = open_real(dirfd, path, flags, mode);
    if (locked && fd >= 0 && !was && (flags & O_CREAT))
        record_made('C', dirfd, path);
    else if (locked && fd >= 0 && was && (flags & O_TRUNC))
        record_cut(fd, 0);
    unlock(locked);
    return fd;
}

static mode_t mode_of(int flags, va_list ap)
{
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
}

#define OPEN(name, dir, params)                                                                              \
    int name params                                                                                          \
    {                                                                                                        \
        va_list ap;                                                                                          \
        mode_t mode;                                                                                         \
        va_start(ap, flags);                                                                                 \
        mode = mode_of(flags, ap);                                                                           \
        va_end(ap);                                                                                          \
        return do_open(dir, path, flags, mode);                                                              \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...))
OPEN(openat, dirfd, (int dirfd, const char *path, int flags, ...))
OPEN(openat64, dirfd, (int dirfd, const char *path, int flags, ...))

#define WRITES(call, position)                                                                               \
    ssize_t n;                                                                                               \
    bool locked;                                                                                             \
    if (!ours(fd))                                                                                           \
        return call;                                                                                         \
    if (fails())                                                                                             \
        return -1;                                                                                           \
    locked = lock();                                                                                         \
    n = call;                                                                                                \
    if (locked && n > 0)                                                                                     \
        record_data(fd, position, (size_t)n);                                                                \
    unlock(locked);                                                                                          \
    return n

ssize_t write(int fd, const void *p, size_t size)
{
    WRITES(REAL(write)(fd, p, size), lseek(fd, 0, SEEK_CUR) - n);
}

ssize_t writev(int fd, const struct iovec *v, int count)
{
    WRITES(REAL(writev)(fd, v, count), lseek(fd, 0, SEEK_CUR) - n);
}

ssize_t pwrite(int fd, const void *p, size_t size, off_t at)
{
    WRITES(REAL(pwrite)(fd, p, size, at), at);
}

ssize_t pwrite64(int fd, const void *p, size_t size, off_t at)
{
    WRITES(REAL(pwrite)(fd, p, size, at), at);
}

ssize_t pwritev(int fd, const struct iovec *v, int count, off_t at)
{
    WRITES(REAL(pwritev)(fd, v, count, at), at);
}

static ssize_t do_splice(int in, off_t *in_at, int fd, off_t *at, size_t size, unsigned flags)
{
    WRITES(REAL(splice)(in, in_at, fd, at, size, flags), at ? *at - n : lseek(fd, 0, SEEK_CUR) - n);
}

ssize_t splice(int in, off_t *in_at, int fd, off_t *at, size_t size, unsigned flags)
{
    return do_splice(in, in_at, fd, at, size, flags);
}

static ssize_t do_copy(int in, off_t *in_at, int fd, off_t *at, size_t size, unsigned flags)
{
    WRITES(REAL(copy_file_range)(in, in_at, fd, at, size, flags), at ? *at - n : lseek(fd, 0, SEEK_CUR) - n);
}

ssize_t copy_file_range(int in, off_t *in_at, int fd, off_t *at, size_t size, unsigned flags)
{
    return do_copy(in, in_at, fd, at, size, flags);
}

#define CHANGES(is_ours, call, on_success)                                                                   \
    bool locked;                                                                                             \
    int rc;                                                                                                  \
    if (!(is_ours))                                                                                          \
        return call;                                                                                         \
    if (fails())                                                                                             \
        return -1;                                                                                           \
    locked = lock();                                                                                         \
    rc = call;                                                                                               \
    if (locked && rc == 0) {                                                                                 \
        on_success;                                                                                          \
    }                                                                                                        \
    unlock(locked);                                                                                          \
    return rc

/* Taking away works on a full or broken disk. */
#define REMOVES(is_ours, call, on_success)                                                                   \
    bool locked;                                                                                             \
    int rc;                                                                                                  \
    if (!(is_ours))                                                                                          \
        return call;                                                                                         \
    locked = lock();                                                                                         \
    rc = call;                                                                                               \
    if (locked && rc == 0) {                                                                                 \
        on_success;                                                                                          \
    }                                                                                                        \
    unlock(locked);                                                                                          \
    return rc

int ftruncate(int fd, off_t size)
{
    REMOVES(ours(fd), REAL(ftruncate)(fd, size), record_cut(fd, size));
}

int ftruncate64(int fd, off_t size)
{
    return ftruncate(fd, size);
}

int fallocate(int fd, int mode, off_t at, off_t n)
{
    CHANGES(ours(fd), REAL(fallocate)(fd, mode, at, n), record_data(fd, at, 0));
}

/* A check may write to no file; its syncs are recorded all the same. */
int setrlimit(__rlimit_resource_t what, const struct rlimit *limit)
{
    return what == RLIMIT_FSIZE && log_fd >= 0 ? 0 : REAL(setrlimit)(what, limit);
}

int fsync(int fd)
{
    CHANGES(ours(fd), REAL(fsync)(fd), record_sync(fd));
}

int fdatasync(int fd)
{
    CHANGES(ours(fd), REAL(fdatasync)(fd), record_sync(fd));
}

static void record_rename(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    char a[3 * NAME_MAX + 1], b[3 * NAME_MAX + 1];

    record("R %llu %s %llu %s %u\n", parent_of(from_dir, from), escaped(from, a), parent_of(to_dir, to),
           escaped(to, b), flags);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    CHANGES(ours_at(from_dir, from), REAL(renameat2)(from_dir, from, to_dir, to, flags),
            record_rename(from_dir, from, to_dir, to, flags));
}

int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to)
{
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    CHANGES(ours_at(to_dir, to), REAL(linkat)(from_dir, from, to_dir, to, flags),
            record_made('L', to_dir, to));
}

int mkdirat(int dirfd, const char *path, mode_t mode)
{
    CHANGES(ours_at(dirfd, path), REAL(mkdirat)(dirfd, path, mode), record_made('C', dirfd, path));
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

static void record_removed(unsigned long long parent, const char *path)
{
    char name[3 * NAME_MAX + 1];

    record("U %llu %s\n", parent, escaped(path, name));
}

int unlinkat(int dirfd, const char *path, int flags)
{
    REMOVES(ours_at(dirfd, path), REAL(unlinkat)(dirfd, path, flags),
            record_removed(parent_of(dirfd, path), path));
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}
