/*
 * What shell tools cannot ask for.  Compiled by the fs_*.sh scripts.
 *   fs_helper posix DIR        checks in a user-owned folder; prints PASS/FAIL lines
 *   fs_helper handle PATH      prints PATH's NFS-style handle in hex
 *   fs_helper open MOUNT HEX   opens that handle, prints "INO SIZE first-bytes"
 *   fs_helper inodes DIR       compares d_ino of readdir(3) with st_ino
 *   fs_helper kept FILE SECONDS   keeps FILE open: is what pread(2) gives from 0 as long as stat(2) says?
 *   fs_helper drops DIR N P    P processes drop N specs each: written under another name and renamed into
 * place fs_helper sizes            reads every file named on stdin; prints those whose read, fstat and mmap
 * sizes differ
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static void verdict(const char *name, int good)
{
    if (good)
        printf("PASS posix: %s\n", name);
    else
        printf("FAIL posix: %s: errno %d (%s)\n", name, errno, strerror(errno));
}

static int fails_with(int rc, int err)
{
    return rc < 0 && errno == err;
}

static int make_file(const char *name, const char *text)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);

    if (fd >= 0 && write(fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        close(fd);
        return -1;
    }
    return fd;
}

static int content_is(const char *name, const char *text)
{
    char buf[4096];
    int fd = open(name, O_RDONLY);
    ssize_t n = read(fd, buf, sizeof(buf));

    close(fd);
    return n == (ssize_t)strlen(text) && memcmp(buf, text, (size_t)n) == 0;
}

static void open_after_unlink(void)
{
    char buf[8] = "";
    struct stat st;
    int fd = make_file("gone", "hello");

    verdict("unlink of an open file", unlink("gone") == 0 && access("gone", F_OK) < 0);
    verdict("fstat of it", fstat(fd, &st) == 0 && st.st_nlink == 0 && st.st_size == 5);
    verdict("write and read of it",
            pwrite(fd, "J", 1, 0) == 1 && pread(fd, buf, 5, 0) == 5 && !strcmp(buf, "Jello"));
    verdict("fchmod, ftruncate, fsync of it", fchmod(fd, 0600) == 0 && ftruncate(fd, 2) == 0 &&
                                                  fsync(fd) == 0 && fstat(fd, &st) == 0 && st.st_size == 2 &&
                                                  (st.st_mode & 0777) == 0600);
    close(fd);
    fd = make_file("over", "old");
    close(make_file("new", "new"));
    verdict("rename over an open file", rename("new", "over") == 0 && pread(fd, buf, 3, 0) == 3 &&
                                            !memcmp(buf, "old", 3) && content_is("over", "new"));
    close(fd);
}

static void renames(void)
{
    struct stat a, b, st;

    close(make_file("a", "A"));
    close(make_file("b", "B"));
    stat("a", &a);
    stat("b", &b);
    verdict("RENAME_NOREPLACE",
            fails_with(renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE), EEXIST));
    verdict("RENAME_EXCHANGE", renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_EXCHANGE) == 0 &&
                                   content_is("a", "B") && stat("a", &st) == 0 && st.st_ino == b.st_ino &&
                                   stat("b", &st) == 0 && st.st_ino == a.st_ino);
    verdict("RENAME_WHITEOUT", renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_WHITEOUT) == 0 &&
                                   content_is("b", "B") && lstat("a", &st) == 0 && S_ISCHR(st.st_mode) &&
                                   unlink("a") == 0);
    mkdir("d1", 0755);
    mkdir("d1/in", 0755);
    close(make_file("d1/in/f", "deep"));
    stat("d1/in/f", &a);
    verdict("rename of a folder keeps ids below it",
            rename("d1", "d2") == 0 && stat("d2/in/f", &b) == 0 && a.st_ino == b.st_ino);
    mkdir("d3", 0755);
    verdict("rename over an empty folder", rename("d2", "d3") == 0 && content_is("d3/in/f", "deep"));
    mkdir("d4", 0755);
    verdict("rename over a full folder", fails_with(rename("d4", "d3"), ENOTEMPTY) || errno == EEXIST);
    verdict("rename into itself", fails_with(rename("d3", "d3/in/x"), EINVAL));
    verdict("rmdir of a full folder", fails_with(rmdir("d3"), ENOTEMPTY));
}

static void links(void)
{
    struct stat a, b;
    char target[256] = "";

    close(make_file("l1", "x"));
    verdict("hard link shares inode", link("l1", "l2") == 0 && stat("l1", &a) == 0 && stat("l2", &b) == 0 &&
                                          a.st_ino == b.st_ino && b.st_nlink == 2);
    verdict("link of the other name after unlink",
            unlink("l1") == 0 && link("l2", "l3") == 0 && content_is("l3", "x"));
    verdict("rename between links does nothing", rename("l2", "l3") == 0 && access("l2", F_OK) == 0);
    verdict("symlink and readlink", symlink("no/where", "s") == 0 && readlink("s", target, 255) == 8 &&
                                        !strcmp(target, "no/where") && lstat("s", &a) == 0 && a.st_size == 8);
    verdict("hard link to a symlink", link("s", "s2") == 0 && readlink("s2", target, 255) == 8);
    verdict("dangling symlink", fails_with(open("s", O_RDONLY), ENOENT));
    symlink("loop", "loop");
    verdict("symlink loop", fails_with(open("loop", O_RDONLY), ELOOP));
    verdict("lchown and utimens of a symlink", lchown("s", 0, 0) == 0 || errno == EPERM
                                                   ? utimensat(AT_FDCWD, "s", NULL, AT_SYMLINK_NOFOLLOW) == 0
                                                   : 0);
    verdict("FIFO", mkfifo("fifo", 0600) == 0 && lstat("fifo", &a) == 0 && S_ISFIFO(a.st_mode) &&
                        unlink("fifo") == 0);
    if (geteuid() == 0)
        verdict("a device node", mknod("dev", S_IFCHR | 0600, 0x103) == 0 && lstat("dev", &a) == 0 &&
                                     a.st_rdev == 0x103 && fails_with(open("dev", O_RDONLY), EACCES) &&
                                     unlink("dev") == 0);
    else
        verdict("no device nodes", fails_with(mknod("dev", S_IFCHR | 0600, 0x103), EPERM));
}

static void sizes_and_holes(void)
{
    int fd = make_file("holes", "");
    struct stat st;

    verdict("sparse write",
            pwrite(fd, "end", 3, 1 << 20) == 3 && fstat(fd, &st) == 0 && st.st_size == (1 << 20) + 3);
    verdict("SEEK_DATA", lseek(fd, 0, SEEK_DATA) > 0);
    verdict("SEEK_HOLE", lseek(fd, 0, SEEK_HOLE) == 0);
    verdict("fallocate", fallocate(fd, 0, 0, 2 << 20) == 0 && fstat(fd, &st) == 0 && st.st_size == 2 << 20);
    verdict("fallocate KEEP_SIZE", fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 3 << 20) == 0 &&
                                       fstat(fd, &st) == 0 && st.st_size == 2 << 20);
    verdict("punch hole", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1 << 20, 4096) == 0);
    verdict("truncate by path", truncate("holes", 7) == 0 && fstat(fd, &st) == 0 && st.st_size == 7);
    verdict("truncate to a negative size", fails_with(truncate("holes", -1), EINVAL));
    close(fd);
}

static void appends(void)
{
    struct stat st;
    pid_t pid[4];
    int bad = 0;

    close(make_file("log", ""));
    for (int p = 0; p < 4; p++)
        if ((pid[p] = fork()) == 0) {
            int fd = open("log", O_WRONLY | O_APPEND);
            for (int i = 0; i < 200; i++)
                if (write(fd, "0123456789\n", 11) != 11)
                    _exit(1);
            _exit(0);
        }
    for (int p = 0; p < 4; p++) {
        int status;
        waitpid(pid[p], &status, 0);
        bad += status != 0;
    }
    verdict("O_APPEND from four processes", !bad && stat("log", &st) == 0 && st.st_size == 4 * 200 * 11);
}

static void locks(void)
{
    int a = make_file("lock", "x"), b = open("lock", O_RDWR);
    struct flock fl = {.l_type = F_WRLCK, .l_whence = SEEK_SET}, other;
    int status;

    verdict("flock", flock(a, LOCK_EX) == 0 && fails_with(flock(b, LOCK_EX | LOCK_NB), EWOULDBLOCK));
    flock(a, LOCK_UN);
    fcntl(a, F_SETLK, &fl);
    if (fork() == 0) {
        other = fl;
        _exit(fcntl(b, F_SETLK, &other) < 0 && (errno == EAGAIN || errno == EACCES) ? 0 : 1);
    }
    wait(&status);
    verdict("fcntl lock", status == 0);
    close(a);
    close(b);
}

static void maps(void)
{
    int fd = make_file("map", "");
    char *p, buf[4] = "";

    ftruncate(fd, 8192);
    p = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    verdict("mmap shared", p != MAP_FAILED);
    if (p == MAP_FAILED)
        return;
    memcpy(p + 5000, "abc", 3);
    verdict("msync, then read",
            msync(p, 8192, MS_SYNC) == 0 && pread(fd, buf, 3, 5000) == 3 && !memcmp(buf, "abc", 3));
    verdict("write, then mapped read", pwrite(fd, "xyz", 3, 100) == 3 && !memcmp(p + 100, "xyz", 3));
    munmap(p, 8192);
    close(fd);
}

static void attributes(void)
{
    struct timespec tv[2] = {{1000000000, 123456789}, {1100000000, 987654321}};
    struct statvfs vfs;
    struct stat st;
    char name[300], value[16] = "";
    int fd, writer;

    close(make_file("at", "x"));
    verdict("utimens to the nanosecond", utimensat(AT_FDCWD, "at", tv, 0) == 0 && stat("at", &st) == 0 &&
                                             st.st_mtim.tv_sec == 1100000000 &&
                                             st.st_mtim.tv_nsec == 987654321 &&
                                             st.st_atim.tv_sec == 1000000000);
    verdict("chmod", chmod("at", 04751) == 0 && stat("at", &st) == 0 && (st.st_mode & 07777) == 04751);
    verdict("user xattr", setxattr("at", "user.k", "v1", 2, 0) == 0 &&
                              getxattr("at", "user.k", value, 16) == 2 && !memcmp(value, "v1", 2));
    verdict("listxattr", listxattr("at", name, sizeof(name)) == 7 && !strcmp(name, "user.k"));
    verdict("XATTR_CREATE", fails_with(setxattr("at", "user.k", "v", 1, XATTR_CREATE), EEXIST));
    verdict("removexattr", removexattr("at", "user.k") == 0 &&
                               fails_with((int)getxattr("at", "user.k", value, 16), ENODATA));
    verdict("other xattrs", fails_with(setxattr("at", "trusted.k", "v", 1, 0), EOPNOTSUPP) || errno == EPERM);
    verdict("statfs", statvfs(".", &vfs) == 0 && vfs.f_namemax == 255 && vfs.f_blocks > 0);
    memset(name, 'n', 255);
    name[255] = '\0';
    fd = make_file(name, "x");
    verdict("name of 255 bytes", fd >= 0 && content_is(name, "x") && unlink(name) == 0);
    close(fd);
    name[255] = 'n';
    name[256] = '\0';
    verdict("name of 256 bytes", fails_with(open(name, O_CREAT | O_WRONLY, 0644), ENAMETOOLONG));
    verdict("O_EXCL", fails_with(open("at", O_CREAT | O_EXCL | O_WRONLY, 0644), EEXIST));
    fd = open(".", O_TMPFILE | O_RDWR, 0644);
    verdict("O_TMPFILE works or is refused cleanly", /* before Linux 6.1 */
            fd >= 0 ? write(fd, "x", 1) == 1 && close(fd) == 0 : errno == EOPNOTSUPP);
    writer = make_file("direct", "0123456789");
    fd = open("direct", O_RDONLY | O_DIRECT);
    verdict("O_DIRECT with any buffer, of a small file that is being written",
            fd >= 0 && pread(fd, value, 3, 1) == 3 && !memcmp(value, "123", 3));
    close(fd);
    close(writer);
    fd = open("direct", O_RDONLY | O_DIRECT);
    verdict("O_DIRECT with any buffer", fd >= 0 && pread(fd, value, 3, 1) == 3 && !memcmp(value, "123", 3));
    close(fd);
}

static void folders(void)
{
    int fd = open(".", O_RDONLY | O_DIRECTORY), status, in;
    struct stat st;
    char cwd[4096];

    verdict("fsync of a folder", fsync(fd) == 0);
    close(fd);
    mkdir("cwd", 0755);
    if (fork() == 0) {
        if (chdir("cwd") || rmdir("../cwd") || stat(".", &st) || open("f", O_CREAT | O_WRONLY, 0644) >= 0)
            _exit(1);
        _exit(getcwd(cwd, sizeof(cwd)) == NULL && errno == ENOENT ? 0 : 2);
    }
    wait(&status);
    verdict("a removed working folder", status == 0);
    close(make_file("src", "copy this"));
    in = open("src", O_RDONLY);
    fd = make_file("dst", "");
    verdict("copy_file_range",
            copy_file_range(in, NULL, fd, NULL, 9, 0) == 9 && content_is("dst", "copy this"));
    close(in);
    close(fd);
}

static void sockets(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "sock"};
    int s = socket(AF_UNIX, SOCK_STREAM, 0);

    verdict("socket", bind(s, (struct sockaddr *)&sa, sizeof(sa)) == 0);
    close(s);
}

static int posix(const char *dir)
{
    if (chdir(dir)) {
        perror(dir);
        return 1;
    }
    open_after_unlink();
    renames();
    links();
    sizes_and_holes();
    appends();
    locks();
    maps();
    attributes();
    folders();
    sockets();
    return 0;
}

union handle {
    struct file_handle h;
    unsigned char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
};

static int print_handle(const char *path)
{
    union handle u = {.h.handle_bytes = MAX_HANDLE_SZ};
    int mount_id;

    if (name_to_handle_at(AT_FDCWD, path, &u.h, &mount_id, 0)) {
        perror("name_to_handle_at");
        return 1;
    }
    for (size_t i = 0; i < sizeof(u.h) + u.h.handle_bytes; i++)
        printf("%02x", u.bytes[i]);
    puts("");
    return 0;
}

static int open_handle(const char *mount, const char *hex)
{
    union handle u = {0};
    char text[32] = "";
    struct stat st;
    int dir = open(mount, O_RDONLY | O_DIRECTORY), fd;

    for (size_t i = 0; hex[2 * i] && i < sizeof(u.bytes); i++)
        sscanf(hex + 2 * i, "%2hhx", &u.bytes[i]);
    fd = open_by_handle_at(dir, &u.h, O_RDONLY);
    if (fd < 0 || fstat(fd, &st)) {
        perror("open_by_handle_at");
        return 1;
    }
    if (S_ISREG(st.st_mode) && read(fd, text, sizeof(text) - 1) < 0)
        return 1;
    printf("%llu %lld %s\n", (unsigned long long)st.st_ino, (long long)st.st_size, text);
    return 0;
}

static int compare_inodes(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int bad = 0, n = 0;

    while (d && (e = readdir(d))) {
        struct stat st;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        n++;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) || st.st_ino != e->d_ino) {
            printf("%s: d_ino %llu\n", e->d_name, (unsigned long long)e->d_ino);
            bad++;
        }
    }
    return bad || !n;
}

/* stat before, open, fstat, read to the end, map: one size? */
static int compare_sizes(void)
{
    static char data[1 << 20], more[1 << 16];
    char path[4096];
    int bad = 0;

    while (fgets(path, sizeof(path), stdin)) {
        struct stat st;
        size_t n = 0;
        ssize_t got;
        int fd;

        path[strcspn(path, "\n")] = '\0';
        fd = open(path, O_RDONLY);
        if (fd < 0 || fstat(fd, &st)) {
            printf("%s: %s\n", path, strerror(errno));
            bad++;
            continue;
        }
        while ((got = n < sizeof(data) ? read(fd, data + n, sizeof(data) - n)
                                       : read(fd, more, sizeof(more))) > 0)
            n += (size_t)got;
        if (got < 0 || n != (size_t)st.st_size) {
            printf("%s: st_size %lld, read %zu\n", path, (long long)st.st_size, n);
            bad++;
        }
        if (st.st_size > 0 && n <= sizeof(data)) {
            char *p = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
            if (p == MAP_FAILED || memcmp(p, data, n) != 0) {
                printf("%s: mapped text differs\n", path);
                bad++;
            }
            if (p != MAP_FAILED)
                munmap(p, n);
        }
        close(fd);
    }
    return bad != 0;
}

/* As an NFS server does: a file is kept open, and what is read from its beginning is as long as it was said
 * to be just before. */
static int compare_kept_open(const char *path, double seconds)
{
    static char text[1 << 20];
    int fd = open(path, O_RDONLY), turns = 0, sizes = 0;
    struct timespec t;
    off_t last = -1;
    double end;

    clock_gettime(CLOCK_MONOTONIC, &t);
    end = (double)t.tv_sec + (double)t.tv_nsec / 1e9 + seconds;
    while (fd >= 0 && (double)t.tv_sec + (double)t.tv_nsec / 1e9 < end) {
        struct stat st;
        ssize_t n = stat(path, &st) ? -1 : pread(fd, text, sizeof(text), 0);
        if (n != st.st_size) {
            printf("%zd bytes are read of %lld, in turn %d\n", n, (long long)st.st_size, turns);
            return 1;
        }
        sizes += st.st_size != last;
        last = st.st_size;
        turns++;
        usleep(20000);
        clock_gettime(CLOCK_MONOTONIC, &t);
    }
    printf("%d turns, %d sizes\n", turns, sizes);
    return turns && sizes > 2 ? 0 : 1;
}

static int drop_one(const char *dir, int process, int i)
{
    static const char text[] = "{\"lora_r\": 8}";
    char part[PATH_MAX], name[PATH_MAX];
    int fd;

    snprintf(part, sizeof(part), "%s/.part%d", dir, process);
    snprintf(name, sizeof(name), "%s/drop%d-%d.json", dir, process, i);
    fd = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, sizeof(text) - 1) != sizeof(text) - 1 || close(fd))
        return 1;
    return rename(part, name) != 0; /* before the file system has heard of the close, often */
}

static int drop_many(const char *dir, int n, int processes)
{
    int bad = 0, status;

    for (int p = 0; p < processes; p++)
        if (fork() == 0) {
            for (int i = 0; i < n; i++)
                if (drop_one(dir, p, i))
                    _exit(1);
            _exit(0);
        }
    while (wait(&status) > 0)
        bad |= status != 0;
    return bad;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 3 && !strcmp(argv[1], "posix"))
        return posix(argv[2]);
    if (argc == 3 && !strcmp(argv[1], "handle"))
        return print_handle(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "open"))
        return open_handle(argv[2], argv[3]);
    if (argc == 3 && !strcmp(argv[1], "inodes"))
        return compare_inodes(argv[2]);
    if (argc == 5 && !strcmp(argv[1], "drops"))
        return drop_many(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (argc == 4 && !strcmp(argv[1], "kept"))
        return compare_kept_open(argv[2], atof(argv[3]));
    if (argc == 2 && !strcmp(argv[1], "sizes"))
        return compare_sizes();
    fprintf(stderr, "usage: see the top of fs_helper.c\n");
    return 2;
}
