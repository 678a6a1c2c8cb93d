/*
 * What POSIX and Linux promise about files and folders, checked in one folder; run by posix_conformance.sh on
 * the mount and on the native file system beside it (so that a wrong expectation shows).  Prints PASS/FAIL
 * lines. posix_conformance DIR [NAME]      all groups of checks, or one As root it also acts as the users
 * 1001 and 1002 (group 1001 for the first, 1002 and 2000 for the second).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/fsuid.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *group = "";
static int failures;
static bool is_root;

#define OK(name, cond)           verdict(name, __LINE__, (errno = 0, (cond)))
#define FAILS(name, error, call) verdict_errno(name, __LINE__, error, (errno = 0, (long)(call)))

static void verdict(const char *name, int line, int good)
{
    if (good) {
        printf("PASS %s: %s\n", group, name);
        return;
    }
    printf("FAIL %s: %s: line %d (errno %s)\n", group, name, line, strerrorname_np(errno));
    failures++;
}

static void verdict_errno(const char *name, int line, int error, long rc)
{
    int got = rc == -1 ? errno : 0;

    if (got == error) {
        printf("PASS %s: %s\n", group, name);
        return;
    }
    printf("FAIL %s: %s: line %d: expected %s, got %s\n", group, name, line, strerrorname_np(error),
           got ? strerrorname_np(got) : "success");
    failures++;
}

/* ---- helpers ---- */

static int make(const char *name, const char *text, mode_t mode)
{
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    if (fd < 0)
        return -1;
    if (write(fd, text, strlen(text)) != (ssize_t)strlen(text) || fchmod(fd, mode)) {
        close(fd);
        return -1;
    }
    return close(fd);
}

static bool has(const char *name, const char *text)
{
    char buf[4096];
    int fd = open(name, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, sizeof(buf));

    if (fd >= 0)
        close(fd);
    return n == (ssize_t)strlen(text) && memcmp(buf, text, (size_t)n) == 0;
}

static struct stat get(const char *name)
{
    struct stat st;

    if (lstat(name, &st))
        memset(&st, 0xff, sizeof(st));
    return st;
}

static mode_t mode_of(const char *name)
{
    return get(name).st_mode & 07777;
}

static int64_t ns(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Long enough that a change shows in the times of any file system (4 ms ticks). */
static void tick(void)
{
    usleep(12000);
}

/* Run fn as another user, in a child: its checks print their own verdicts; failures are passed on. */
static void as_user(uid_t uid, gid_t gid, void (*fn)(void))
{
    gid_t more[] = {gid, 2000};
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        failures = 0;
        if (setgroups(uid == 1002 ? 2 : 1, more) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
            _exit(100);
        is_root = false;
        fn();
        fflush(stdout);
        _exit(failures > 99 ? 99 : failures);
    }
    waitpid(pid, &status, 0);
    if (!WIFEXITED(status))
        failures++;
    else
        failures += WEXITSTATUS(status);
}

static int in_child(int (*fn)(void))
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0)
        _exit(fn());
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

/* Which of a file's times did the call change? 1 atime, 2 mtime, 4 ctime. */
static int changed(const struct stat *a, const struct stat *b)
{
    return (ns(a->st_atim) != ns(b->st_atim)) | (ns(a->st_mtim) != ns(b->st_mtim)) << 1 |
           (ns(a->st_ctim) != ns(b->st_ctim)) << 2;
}

enum { MTIME = 2, CTIME = 4 };

/* ---- times that POSIX requires to be marked ---- */

/* Does `call` mark exactly `want` (of mtime and ctime) of name? */
#define MARKS(what, name, want, call)                                                                        \
    do {                                                                                                     \
        struct stat before = get(name), after;                                                               \
        tick();                                                                                              \
        int good = (call) == 0;                                                                              \
        after = get(name);                                                                                   \
        OK(what, good && (changed(&before, &after) & (MTIME | CTIME)) == (want));                            \
    } while (0)

static int write_byte(const char *name)
{
    int fd = open(name, O_WRONLY), rc = write(fd, "y", 1) == 1 ? 0 : -1;

    close(fd);
    return rc;
}

static int read_byte(const char *name)
{
    char c;
    int fd = open(name, O_RDONLY), rc = read(fd, &c, 1) == 1 ? 0 : -1;

    close(fd);
    return rc;
}

static int open_trunc(const char *name)
{
    return close(open(name, O_WRONLY | O_TRUNC));
}

static void times(void)
{
    make("f", "x", 0644);
    mkdir("d", 0755);
    MARKS("write marks mtime and ctime", "f", MTIME | CTIME, write_byte("f"));
    MARKS("read marks neither", "f", 0, read_byte("f"));
    MARKS("chmod marks ctime", "f", CTIME, chmod("f", 0600));
    MARKS("chown marks ctime", "f", CTIME, chown("f", geteuid(), getegid()));
    MARKS("link marks the file's ctime", "f", CTIME, link("f", "d/l"));
    MARKS("unlink of another name marks ctime", "f", CTIME, unlink("d/l"));
    MARKS("truncate marks both", "f", MTIME | CTIME, truncate("f", 100));
    MARKS("O_TRUNC marks both", "f", MTIME | CTIME, open_trunc("f"));
    MARKS("setxattr marks ctime", "f", CTIME, setxattr("f", "user.a", "1", 1, 0));
    MARKS("removexattr marks ctime", "f", CTIME, removexattr("f", "user.a"));
    MARKS("rename keeps mtime", "f", CTIME, (rename("f", "g"), rename("g", "f")));
    MARKS("create marks the folder", "d", MTIME | CTIME, make("d/new", "", 0644));
    MARKS("unlink marks the folder", "d", MTIME | CTIME, unlink("d/new"));
    MARKS("mkdir marks the folder", "d", MTIME | CTIME, mkdir("d/sub", 0755));
    MARKS("rmdir marks the folder", "d", MTIME | CTIME, rmdir("d/sub"));
    MARKS("symlink marks the folder", "d", MTIME | CTIME, symlink("x", "d/s"));
    MARKS("mkfifo marks the folder", "d", MTIME | CTIME, mkfifo("d/p", 0600));
    MARKS("link marks the folder", "d", MTIME | CTIME, link("f", "d/h"));
    MARKS("rename out marks the folder", "d", MTIME | CTIME, rename("d/h", "h"));
    MARKS("rename in marks the folder", "d", MTIME | CTIME, rename("h", "d/h"));
    MARKS("rename within marks the folder", "d", MTIME | CTIME, rename("d/h", "d/i"));
    MARKS("a failed chmod marks nothing", "f", 0, chmod("f/x", 0) == -1 ? 0 : 1);
    MARKS("a failed mkdir marks nothing", "d", 0, mkdir("d/s", 0755) == -1 ? 0 : 1);
}

static void set_times(void)
{
    struct timespec both[2] = {{1000000000, 1}, {1100000000, 999999999}},
                    omit[2] = {{0, UTIME_OMIT}, {0, UTIME_OMIT}}, one[2] = {{0, UTIME_OMIT}, {1200000000, 5}},
                    now[2] = {{0, UTIME_NOW}, {0, UTIME_NOW}}, bad[2] = {{0, 1000000000}, {0, 0}},
                    old[2] = {{-100, 0}, {-200, 7}}, late[2] = {{4000000000, 0}, {4000000000, 0}};
    struct timespec wall;
    struct stat st;

    make("f", "x", 0644);
    OK("to the nanosecond", utimensat(AT_FDCWD, "f", both, 0) == 0 &&
                                (st = get("f"), ns(st.st_atim) == ns(both[0])) &&
                                ns(st.st_mtim) == ns(both[1]));
    OK("UTIME_OMIT of both",
       utimensat(AT_FDCWD, "f", omit, 0) == 0 && (st = get("f"), ns(st.st_mtim) == ns(both[1])));
    OK("UTIME_OMIT of atime", utimensat(AT_FDCWD, "f", one, 0) == 0 &&
                                  (st = get("f"), ns(st.st_atim) == ns(both[0])) &&
                                  ns(st.st_mtim) == ns(one[1]));
    clock_gettime(CLOCK_REALTIME, &wall);
    OK("UTIME_NOW", utimensat(AT_FDCWD, "f", now, 0) == 0 &&
                        (st = get("f"), llabs(ns(st.st_mtim) - ns(wall)) < 2000000000));
    OK("NULL is now", utimensat(AT_FDCWD, "f", NULL, 0) == 0);
    FAILS("nanoseconds out of range", EINVAL, utimensat(AT_FDCWD, "f", bad, 0));
    OK("before 1970", utimensat(AT_FDCWD, "f", old, 0) == 0 && (st = get("f"), st.st_mtim.tv_sec == -200));
    OK("after 2038",
       utimensat(AT_FDCWD, "f", late, 0) == 0 && (st = get("f"), st.st_mtim.tv_sec == 4000000000));
    symlink("f", "s");
    OK("of a link itself", utimensat(AT_FDCWD, "s", both, AT_SYMLINK_NOFOLLOW) == 0 &&
                               (st = get("s"), ns(st.st_mtim) == ns(both[1])) &&
                               (st = get("f"), st.st_mtim.tv_sec == 4000000000));
    int fd = open("f", O_RDONLY);
    OK("futimens", futimens(fd, both) == 0 && (st = get("f"), ns(st.st_mtim) == ns(both[1])));
    close(fd);
    fd = open("f", O_WRONLY);
    OK("kept at close after a write", write(fd, "z", 1) == 1 && futimens(fd, both) == 0 && close(fd) == 0 &&
                                          (st = get("f"), ns(st.st_mtim) == ns(both[1])));
}

/* ---- modes and owners ---- */

static void mine(void)
{
    OK("chmod of one's own", chmod("mine", 0640) == 0);
    FAILS("chmod of another's", EPERM, chmod("roots", 0777));
    FAILS("chown of one's own to another", EPERM, chown("mine", 1002, (gid_t)-1));
    FAILS("chgrp to a strange group", EPERM, chown("mine", (uid_t)-1, 2000));
    OK("chown to oneself", chown("mine", 1001, 1001) == 0);
    OK("chmod u+s", chmod("mine", 04755) == 0 && mode_of("mine") == 04755);
    OK("a no-op chown clears set-id", chown("mine", 1001, 1001) == 0 && mode_of("mine") == 0755);
    FAILS("utimens of another's to a time", EPERM,
          utimensat(AT_FDCWD, "roots", (struct timespec[2]){{1, 0}, {1, 0}}, 0));
    FAILS("utimens NULL of another's, not writable", EACCES, utimensat(AT_FDCWD, "roots", NULL, 0));
    OK("utimens NULL of another's, writable", utimensat(AT_FDCWD, "writable", NULL, 0) == 0);
    FAILS("truncate of another's", EACCES, truncate("roots", 0));
    FAILS("open for writing of another's", EACCES, open("roots", O_WRONLY));
    FAILS("read of 0600", EACCES, open("secret", O_RDONLY));
    FAILS("a folder without x", EACCES, open("closed/f", O_RDONLY));
    FAILS("a folder without r", EACCES, open("blind", O_RDONLY | O_DIRECTORY));
    OK("through a folder without r", has("blind/f", "in"));
    FAILS("create in a folder without w", EACCES, open("readonly/new", O_CREAT | O_WRONLY, 0644));
    FAILS("unlink in a folder without w", EACCES, unlink("readonly/f"));
    FAILS("rename out of a folder without w", EACCES, rename("readonly/f", "f2"));
    FAILS("mkdir in a folder without w", EACCES, mkdir("readonly/d", 0755));
    FAILS("link into a folder without w", EACCES, link("mine", "readonly/l"));
    FAILS("access W_OK", EACCES, access("roots", W_OK));
    OK("access R_OK", access("roots", R_OK) == 0);
    FAILS("access X_OK without x", EACCES, access("roots", X_OK));
    FAILS("setxattr on another's", EACCES, setxattr("roots", "user.x", "1", 1, 0));
}

static void sticky(void)
{
    FAILS("unlink of another's in a sticky folder", EPERM, unlink("sticky/one"));
    FAILS("rename of another's in a sticky folder", EPERM, rename("sticky/one", "sticky/two"));
    FAILS("rename over another's in a sticky folder", EPERM,
          (make("sticky/own", "x", 0644), rename("sticky/own", "sticky/one")));
    FAILS("rmdir of another's in a sticky folder", EPERM, rmdir("sticky/dir"));
    OK("one's own in a sticky folder",
       rename("sticky/own", "sticky/own2") == 0 && unlink("sticky/own2") == 0);
}

static void in_group(void) /* 1002, also in group 2000 */
{
    OK("a group's folder", make("group/f", "x", 0644) == 0);
    OK("chgrp to one of one's groups",
       chown("group/f", (uid_t)-1, 2000) == 0 && get("group/f").st_gid == 2000);
    OK("set-group-id folder gives its group",
       make("setgid/f", "x", 0644) == 0 && get("setgid/f").st_gid == 3000);
    OK("and its bit to folders",
       mkdir("setgid/d", 0755) == 0 && get("setgid/d").st_gid == 3000 && mode_of("setgid/d") == 02755);
    OK("chmod g+s on a file of a strange group drops it",
       chmod("setgid/f", 02755) == 0 && mode_of("setgid/f") == 0755);
    OK("owner of a link", symlink("x", "setgid/s") == 0 && get("setgid/s").st_uid == 1002);
    OK("owner of a FIFO", mkfifo("setgid/p", 0600) == 0 && get("setgid/p").st_uid == 1002);
    OK("a write by a stranger to its group drops set-group-id of what nobody executes",
       write_byte("sgid") == 0 && mode_of("sgid") == 0666);
    OK("so does fallocate", ({
           int fd = open("sgid2", O_WRONLY);
           int rc = fallocate(fd, 0, 0, 10);
           close(fd);
           rc == 0 && mode_of("sgid2") == 0666;
       }));
    OK("and truncate", truncate("sgid3", 5) == 0 && mode_of("sgid3") == 0666);
    OK("a write by its group does not", write_byte("sgid4") == 0 && mode_of("sgid4") == 02666);
    OK("chown to -1 and -1 by another changes nothing of what is set-user-id",
       (chown("suid", -1, -1), mode_of("suid")) == 04777);
    OK("a link to what one's group may write", link("groups", "group/l") == 0 && unlink("group/l") == 0);
    OK("a write by another drops set-user-id", write_byte("suid") == 0 && (mode_of("suid") & 04000) == 0);
    OK("truncate by another drops set-user-id", truncate("suid2", 0) == 0 && (mode_of("suid2") & 04000) == 0);
}

static void owners(void)
{
    mode_t old;

    if (!is_root) {
        printf("SKIP %s: needs root\n", group);
        return;
    }
    make("mine", "x", 0644);
    chown("mine", 1001, 1001);
    make("roots", "x", 0644);
    make("secret", "x", 0600);
    make("writable", "x", 0666);
    mkdir("closed", 0755);
    make("closed/f", "in", 0644);
    chmod("closed", 0644);
    mkdir("blind", 0755);
    make("blind/f", "in", 0644);
    chmod("blind", 0711);
    mkdir("readonly", 0755);
    make("readonly/f", "in", 0644);
    mkdir("sticky", 0755);
    chmod("sticky", 01777);
    make("sticky/one", "x", 0666);
    mkdir("sticky/dir", 0777);
    mkdir("group", 0755);
    chown("group", 0, 2000);
    chmod("group", 0770);
    mkdir("setgid", 0755);
    chown("setgid", 0, 3000);
    chmod("setgid", 02777);
    make("suid", "x", 0644);
    chmod("suid", 04777);
    make("suid2", "x", 0644);
    chmod("suid2", 04777);
    make("sgid", "x", 02666);
    make("sgid2", "x", 02666);
    make("sgid3", "x", 02666);
    make("sgid4", "x", 0644);
    chown("sgid4", 0, 2000);
    chmod("sgid4", 02666);
    make("groups", "x", 0644);
    chown("groups", 0, 2000);
    chmod("groups", 0660);
    OK("modes as set", mode_of("sticky") == 01777 && mode_of("setgid") == 02777 && mode_of("suid") == 04777);
    as_user(1001, 1001, mine);
    as_user(1001, 1001, sticky);
    as_user(1002, 1002, in_group);
    OK("root's chown keeps set-id of a non-executable",
       chmod("roots", 02644) == 0 && chown("roots", 5, 5) == 0);
    make("nothing", "x", 06755);
    OK("chown to -1 and -1 drops set-id", chown("nothing", -1, -1) == 0 && mode_of("nothing") == 0755);
    MARKS("and marks ctime", "nothing", CTIME, chown("nothing", -1, -1));
    OK("chown by root",
       chown("roots", 1001, 1002) == 0 && get("roots").st_uid == 1001 && get("roots").st_gid == 1002);
    OK("chown of uid alone",
       chown("roots", 7, (gid_t)-1) == 0 && get("roots").st_uid == 7 && get("roots").st_gid == 1002);
    symlink("roots", "link");
    OK("lchown", lchown("link", 9, 9) == 0 && get("link").st_uid == 9 && get("roots").st_uid == 7);
    old = umask(027);
    close(open("masked", O_CREAT | O_WRONLY, 0666));
    mkdir("maskeddir", 0777);
    umask(old);
    OK("umask", mode_of("masked") == 0640 && mode_of("maskeddir") == 0750);
}

/* ---- names ---- */

static void names(void)
{
    char name[300], path[PATH_MAX + 100] = "", text[16];
    struct stat st;

    memset(name, 'n', sizeof(name));
    name[255] = '\0';
    OK("255 bytes", make(name, "x", 0644) == 0 && has(name, "x") && rename(name, "short") == 0 &&
                        rename("short", name) == 0 && unlink(name) == 0);
    OK("a folder of 255 bytes", mkdir(name, 0755) == 0 && rmdir(name) == 0);
    name[255] = 'n';
    name[256] = '\0';
    make("f", "x", 0644);
    FAILS("create of 256 bytes", ENAMETOOLONG, open(name, O_CREAT | O_WRONLY, 0644));
    FAILS("mkdir of 256 bytes", ENAMETOOLONG, mkdir(name, 0755));
    FAILS("stat of 256 bytes", ENAMETOOLONG, lstat(name, &st));
    FAILS("unlink of 256 bytes", ENAMETOOLONG, unlink(name));
    FAILS("rename to 256 bytes", ENAMETOOLONG, rename("f", name));
    FAILS("link to 256 bytes", ENAMETOOLONG, link("f", name));
    FAILS("symlink of 256 bytes", ENAMETOOLONG, symlink("f", name));
    memset(path, 'a', PATH_MAX);
    for (int i = 0; i < PATH_MAX; i += 100)
        path[i] = '/';
    path[PATH_MAX] = '\0';
    FAILS("a path of PATH_MAX", ENAMETOOLONG, lstat(path, &st));
    FAILS("a link's target of PATH_MAX", ENAMETOOLONG, symlink(path, "toolong"));
    path[PATH_MAX - 1] = '\0';
    OK("a link's target of PATH_MAX - 1",
       symlink(path, "long") == 0 && lstat("long", &st) == 0 && st.st_size == PATH_MAX - 1);
    OK("readlink cuts", readlink("long", text, sizeof(text)) == sizeof(text));
    FAILS("an empty name", ENOENT, open("", O_RDONLY));
    FAILS("through a file", ENOTDIR, open("f/x", O_RDONLY));
    FAILS("a file with a slash", ENOTDIR, open("f/", O_RDONLY));
    FAILS("unlink through a file", ENOTDIR, unlink("f/x"));
    FAILS("not there", ENOENT, open("no", O_RDONLY));
    FAILS("not there either", ENOENT, open("no/where", O_CREAT | O_WRONLY, 0644));
    OK("any bytes", make("\xff\xfe\x01\n*?\"", "x", 0644) == 0 && has("\xff\xfe\x01\n*?\"", "x"));
    symlink("loop2", "loop1");
    symlink("loop1", "loop2");
    FAILS("a loop of links", ELOOP, open("loop1", O_RDONLY));
    FAILS("a loop, created", ELOOP, open("loop1", O_CREAT | O_WRONLY, 0644));
    FAILS("a loop in a path", ELOOP, mkdir("loop1/d", 0755));
    FAILS("O_NOFOLLOW", ELOOP, open("long", O_RDONLY | O_NOFOLLOW));
    FAILS("O_DIRECTORY of a file", ENOTDIR, open("f", O_RDONLY | O_DIRECTORY));
    FAILS("O_CREAT of a folder", EISDIR, open(".", O_CREAT | O_WRONLY, 0644));
    symlink("created", "dangling");
    OK("O_CREAT through a dangling link",
       close(open("dangling", O_CREAT | O_WRONLY, 0644)) == 0 && has("created", ""));
    unlink("created");
    FAILS("O_EXCL of a dangling link", EEXIST, open("dangling", O_CREAT | O_EXCL | O_WRONLY, 0644));
    for (int i = 0; i < 30; i++)
        strcpy(path + i * 100, "/");
    path[0] = '\0';
    for (int i = 0; i < 40; i++) {
        if (mkdir("deepdeepdeepdeepdeepdeepdeepdeepdeepdeep", 0755) ||
            chdir("deepdeepdeepdeepdeepdeepdeepdeepdeepdeep"))
            break;
        snprintf(path, sizeof(path), "%d", i);
    }
    OK("40 folders deep", strcmp(path, "39") == 0 && make("bottom", "x", 0644) == 0 && has("bottom", "x"));
    for (int i = 0; i < 40; i++)
        if (chdir(".."))
            break;
    OK("and up again", has("f", "x"));
}

/* ---- removing, renaming, linking ---- */

static void removing(void)
{
    struct stat st;
    char buf[16] = "";
    int fd;

    make("f", "hello", 0644);
    fd = open("f", O_RDWR);
    OK("an open file", unlink("f") == 0 && lstat("f", &st) == -1 && fstat(fd, &st) == 0 && st.st_nlink == 0);
    OK("read and write after",
       pwrite(fd, "J", 1, 0) == 1 && pread(fd, buf, 5, 0) == 5 && !strcmp(buf, "Jello"));
    OK("ftruncate, fchmod, fchown, futimens after", ftruncate(fd, 3) == 0 && fchmod(fd, 0600) == 0 &&
                                                        fchown(fd, -1, -1) == 0 && futimens(fd, NULL) == 0 &&
                                                        fstat(fd, &st) == 0 && st.st_size == 3);
    OK("fsync, fallocate, fsetxattr after",
       fsync(fd) == 0 && posix_fallocate(fd, 0, 4096) == 0 && fsetxattr(fd, "user.a", "b", 1, 0) == 0);
    OK("a new file of the name is another",
       make("f", "new", 0644) == 0 && has("f", "new") && pread(fd, buf, 3, 0) == 3 && !memcmp(buf, "Jel", 3));
    close(fd);
    FAILS("unlink of a folder", EISDIR, (mkdir("d", 0755), unlink("d")));
    FAILS("rmdir of a file", ENOTDIR, rmdir("f"));
    FAILS("rmdir of a full folder", ENOTEMPTY, (make("d/f", "", 0644), rmdir("d")));
    FAILS("rmdir of .", EINVAL, rmdir("d/."));
    FAILS("rmdir of ..", ENOTEMPTY, rmdir("d/.."));
    unlink("d/f");
    fd = open("d", O_RDONLY | O_DIRECTORY);
    OK("rmdir of an open folder", rmdir("d") == 0 && fstat(fd, &st) == 0);
    FAILS("create in it", ENOENT, openat(fd, "x", O_CREAT | O_WRONLY, 0644));
    DIR *dir = fdopendir(fd);
    struct dirent *e;
    int n = 0;
    while (dir && (e = readdir(dir)))
        n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
    OK("it lists nothing", n == 0);
    closedir(dir);
    symlink("f", "s");
    OK("unlink of a link keeps its target", unlink("s") == 0 && has("f", "new"));
    fd = open("f", O_RDONLY);
    make("g", "over", 0644);
    OK("a renamed-over open file", rename("g", "f") == 0 && pread(fd, buf, 3, 0) == 3 &&
                                       !memcmp(buf, "new", 3) && fstat(fd, &st) == 0 && st.st_nlink == 0);
    close(fd);
}

static void renaming(void)
{
    struct stat a, b;

    make("a", "A", 0644);
    make("b", "B", 0644);
    mkdir("d", 0755);
    mkdir("e", 0755);
    mkdir("full", 0755);
    make("full/f", "", 0644);
    a = get("a");
    OK("over a file",
       rename("a", "b") == 0 && has("b", "A") && get("b").st_ino == a.st_ino && access("a", F_OK) == -1);
    OK("over an empty folder", rename("d", "e") == 0);
    FAILS("over a full folder", ENOTEMPTY, rename("e", "full"));
    FAILS("a file over a folder", EISDIR, rename("b", "e"));
    FAILS("a folder over a file", ENOTDIR, rename("e", "b"));
    FAILS("into itself", EINVAL, rename("full", "full/in"));
    FAILS("what is not there", ENOENT, rename("no", "x"));
    FAILS("to a folder that is not there", ENOENT, rename("b", "no/x"));
    OK("to itself", rename("b", "b") == 0 && has("b", "A"));
    link("b", "b2");
    OK("over a link of the same file does nothing",
       rename("b", "b2") == 0 && has("b", "A") && has("b2", "A"));
    FAILS("NOREPLACE", EEXIST, renameat2(AT_FDCWD, "b", AT_FDCWD, "full/f", RENAME_NOREPLACE));
    OK("NOREPLACE to a new name", renameat2(AT_FDCWD, "b2", AT_FDCWD, "c", RENAME_NOREPLACE) == 0);
    unlink("c");
    a = get("b");
    b = get("full");
    OK("EXCHANGE of a file and a folder", renameat2(AT_FDCWD, "b", AT_FDCWD, "full", RENAME_EXCHANGE) == 0 &&
                                              get("full").st_ino == a.st_ino && get("b").st_ino == b.st_ino &&
                                              has("b/f", "") && has("full", "A"));
    FAILS("EXCHANGE with nothing", ENOENT, renameat2(AT_FDCWD, "b", AT_FDCWD, "no", RENAME_EXCHANGE));
    make("w", "W", 0644);
    OK("WHITEOUT leaves one", renameat2(AT_FDCWD, "w", AT_FDCWD, "w2", RENAME_WHITEOUT) == 0 &&
                                  has("w2", "W") && S_ISCHR(get("w").st_mode) && get("w").st_rdev == 0 &&
                                  get("w").st_uid == geteuid() && unlink("w") == 0 && unlink("w2") == 0);
    FAILS("both flags", EINVAL,
          renameat2(AT_FDCWD, "b", AT_FDCWD, "full", RENAME_EXCHANGE | RENAME_NOREPLACE));
    FAILS("EXCHANGE with what is in it", EINVAL, renameat2(AT_FDCWD, "b", AT_FDCWD, "b/f", RENAME_EXCHANGE));
    mkdir("p", 0755);
    mkdir("p/q", 0755);
    make("p/q/f", "deep", 0644);
    a = get("p/q/f");
    OK("a tree to another folder", rename("p/q", "e/q") == 0 && has("e/q/f", "deep") &&
                                       get("e/q/f").st_ino == a.st_ino && get("e").st_nlink == 3 &&
                                       get("p").st_nlink == 2);
    OK(".. of it", get("e/q/..").st_ino == get("e").st_ino);
    symlink("nowhere", "s");
    OK("a link", rename("s", "s2") == 0 && S_ISLNK(get("s2").st_mode));
    OK("over a link", make("n", "N", 0644) == 0 && rename("n", "s2") == 0 && has("s2", "N") &&
                          access("nowhere", F_OK) == -1);
}

static void linking(void)
{
    struct stat a;

    make("f", "x", 0644);
    OK("two names", link("f", "g") == 0 && get("f").st_nlink == 2 && get("f").st_ino == get("g").st_ino);
    OK("one content", make("g", "changed", 0644) == 0 && has("f", "changed"));
    OK("one mode", chmod("g", 0600) == 0 && mode_of("f") == 0600);
    FAILS("over a name", EEXIST, link("f", "g"));
    mkdir("d", 0755);
    FAILS("a folder", EPERM, link("d", "d2"));
    FAILS("what is not there", ENOENT, link("no", "x"));
    OK("unlink lowers the count", unlink("f") == 0 && get("g").st_nlink == 1 && has("g", "changed"));
    OK("a hundred names", ({
           int bad = 0;
           char name[16];
           for (int i = 0; i < 100; i++) {
               snprintf(name, sizeof(name), "d/l%d", i);
               bad |= link("g", name);
           }
           !bad &&get("g").st_nlink == 101;
       }));
    symlink("g", "s");
    OK("of a link itself", linkat(AT_FDCWD, "s", AT_FDCWD, "s2", 0) == 0 && S_ISLNK(get("s2").st_mode));
    OK("of what a link means",
       linkat(AT_FDCWD, "s", AT_FDCWD, "s3", AT_SYMLINK_FOLLOW) == 0 && S_ISREG(get("s3").st_mode));
    int fd = open("g", O_RDONLY);
    char proc[64];
    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
    OK("of a descriptor",
       linkat(AT_FDCWD, proc, AT_FDCWD, "s4", AT_SYMLINK_FOLLOW) == 0 && get("s4").st_ino == get("g").st_ino);
    close(fd);
    a = get("d");
    OK("a folder's link count", a.st_nlink == 2 && mkdir("d/sub", 0755) == 0 && get("d").st_nlink == 3 &&
                                    rmdir("d/sub") == 0 && get("d").st_nlink == 2);
}

/* ---- special files ---- */

static void no_devices(void)
{
    FAILS("a user makes none", EPERM, mknod("c", S_IFCHR | 0600, makedev(7, 300)));
}

/* They are kept, moved and shown; where they may be opened is another matter. */
static void devices(void)
{
    dev_t number = makedev(7, 300);
    struct stat st;

    if (!is_root)
        return;
    OK("a character device", mknod("c", S_IFCHR | 0640, number) == 0 &&
                                 (st = get("c"), S_ISCHR(st.st_mode)) && st.st_rdev == number);
    OK("a block device", mknod("b", S_IFBLK | 0600, number) == 0 && (st = get("b"), S_ISBLK(st.st_mode)) &&
                             st.st_rdev == number);
    FAILS("made twice", EEXIST, mknod("c", S_IFCHR | 0640, number));
    OK("chmod, chown, utimens of it", chmod("c", 0622) == 0 && chown("c", 1001, 1001) == 0 &&
                                          utimensat(AT_FDCWD, "c", NULL, 0) == 0 &&
                                          (st = get("c"), st.st_uid == 1001) && mode_of("c") == 0622);
    OK("link and rename of it",
       link("c", "c2") == 0 && rename("c2", "b") == 0 && S_ISCHR(get("b").st_mode) && get("c").st_nlink == 2);
    OK("unlink of it", unlink("c") == 0 && unlink("b") == 0);
    as_user(1001, 1001, no_devices);
}

static void special(void)
{
    struct sockaddr_un sa = {.sun_family = AF_UNIX, .sun_path = "sock"};
    int fd, s, c;
    char buf[4] = "";

    OK("FIFO", mkfifo("p", 0600) == 0 && S_ISFIFO(get("p").st_mode));
    fd = open("p", O_RDWR | O_NONBLOCK);
    OK("bytes through it",
       fd >= 0 && write(fd, "abc", 3) == 3 && read(fd, buf, 3) == 3 && !strcmp(buf, "abc"));
    close(fd);
    FAILS("a FIFO without a reader", ENXIO, open("p", O_WRONLY | O_NONBLOCK));
    s = socket(AF_UNIX, SOCK_STREAM, 0);
    OK("socket", bind(s, (struct sockaddr *)&sa, sizeof(sa)) == 0 && S_ISSOCK(get("sock").st_mode) &&
                     listen(s, 1) == 0);
    c = socket(AF_UNIX, SOCK_STREAM, 0);
    OK("connect to it", connect(c, (struct sockaddr *)&sa, sizeof(sa)) == 0);
    close(c);
    close(s);
    OK("a FIFO is made with set-id bits",
       mknod("setid", S_IFIFO | 06711, 0) == 0 && mode_of("setid") == 06711);
    devices();
    OK("mknod of a file", mknod("plain", S_IFREG | 0644, 0) == 0 && has("plain", ""));
    OK("a FIFO is removed", unlink("p") == 0 && unlink("sock") == 0);
}

/* ---- data ---- */

static void data(void)
{
    static char big[1 << 20], back[1 << 20];
    struct stat st;
    struct iovec iov[2] = {{(void *)"ab", 2}, {(void *)"cd", 2}};
    int fd;

    for (size_t i = 0; i < sizeof(big); i++)
        big[i] = (char)(i * 2654435761u >> 13);
    fd = open("big", O_RDWR | O_CREAT, 0644);
    OK("1 MB at once", write(fd, big, sizeof(big)) == sizeof(big) &&
                           pread(fd, back, sizeof(back), 0) == sizeof(back) &&
                           !memcmp(big, back, sizeof(big)));
    OK("past the end", pread(fd, back, 10, sizeof(big)) == 0 && pread(fd, back, 10, sizeof(big) - 4) == 4);
    OK("a hole reads as zeros", pwrite(fd, "end", 3, 4 << 20) == 3 &&
                                    pread(fd, back, 4096, 2 << 20) == 4096 && !back[0] && !back[4095]);
    OK("and takes no space",
       fstat(fd, &st) == 0 && st.st_size == (4 << 20) + 3 && st.st_blocks < (3 << 20) / 512);
    OK("SEEK_HOLE and SEEK_DATA",
       lseek(fd, 0, SEEK_HOLE) == 1 << 20 && lseek(fd, 2 << 20, SEEK_DATA) == 4 << 20);
    FAILS("SEEK_DATA past the end", ENXIO, lseek(fd, 5 << 20, SEEK_DATA));
    OK("ftruncate longer and shorter", ftruncate(fd, 8 << 20) == 0 && fstat(fd, &st) == 0 &&
                                           st.st_size == 8 << 20 && ftruncate(fd, 10) == 0 &&
                                           fstat(fd, &st) == 0 && st.st_size == 10 &&
                                           pread(fd, back, 100, 0) == 10);
    OK("what was cut off reads as zeros",
       ftruncate(fd, 20) == 0 && pread(fd, back, 20, 0) == 20 && back[10] == 0 && back[19] == 0);
    OK("pwritev, preadv",
       pwritev(fd, iov, 2, 0) == 4 && pread(fd, back, 4, 0) == 4 && !memcmp(back, "abcd", 4));
    OK("fsync, fdatasync, sync_file_range, syncfs",
       fsync(fd) == 0 && fdatasync(fd) == 0 && sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE) == 0 &&
           syncfs(fd) == 0);
    FAILS("truncate to a negative size", EINVAL, ftruncate(fd, -1));
    FAILS("write to a read-only descriptor", EBADF, ({
              int r = open("big", O_RDONLY);
              int w = write(r, "x", 1);
              int e = errno;
              close(r);
              errno = e;
              w;
          }));
    close(fd);
    FAILS("truncate of a folder", EISDIR, (mkdir("d", 0755), truncate("d", 0)));
    FAILS("truncate of nothing", ENOENT, truncate("no", 0));
    FAILS("open of a folder for writing", EISDIR, open("d", O_WRONLY));
    FAILS("read of a folder", EISDIR, ({
              int r = open("d", O_RDONLY);
              int w = read(r, back, 1);
              int e = errno;
              close(r);
              errno = e;
              w;
          }));
    fd = open("app", O_WRONLY | O_CREAT | O_APPEND, 0644);
    OK("O_APPEND writes at the end", write(fd, "one", 3) == 3 && lseek(fd, 0, SEEK_SET) == 0 &&
                                         write(fd, "two", 3) == 3 && has("app", "onetwo"));
    OK("taken away by fcntl, no more",
       fcntl(fd, F_SETFL, 0) == 0 && pwrite(fd, "ON", 2, 0) == 2 && has("app", "ONetwo"));
    OK("given by fcntl, it does again", fcntl(fd, F_SETFL, O_APPEND) == 0 && lseek(fd, 0, SEEK_SET) == 0 &&
                                            write(fd, "3", 1) == 1 && has("app", "ONetwo3"));
    close(fd);
    fd = open("sync", O_WRONLY | O_CREAT | O_SYNC, 0644);
    OK("O_SYNC", write(fd, "s", 1) == 1 && has("sync", "s"));
    close(fd);
    fd = open("sync", O_WRONLY | O_CREAT | O_TRUNC | O_EXCL, 0644);
    OK("O_EXCL keeps what is there", fd == -1 && has("sync", "s"));
}

static void allocating(void)
{
    struct stat st;
    char buf[8];
    int fd = open("f", O_RDWR | O_CREAT, 0644), rc, error;

    OK("fallocate", fallocate(fd, 0, 0, 1 << 20) == 0 && fstat(fd, &st) == 0 && st.st_size == 1 << 20 &&
                        st.st_blocks >= (1 << 20) / 512);
    OK("KEEP_SIZE", fallocate(fd, FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20) == 0 && fstat(fd, &st) == 0 &&
                        st.st_size == 1 << 20);
    pwrite(fd, "abcdefgh", 8, 8192);
    OK("PUNCH_HOLE", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 4096) == 0 &&
                         pread(fd, buf, 8, 8192) == 8 && !buf[0]);
    pwrite(fd, "abcdefgh", 8, 8192);
    rc = fallocate(fd, FALLOC_FL_ZERO_RANGE, 8192, 4);
    error = errno;
    OK("ZERO_RANGE",
       (rc == 0 && pread(fd, buf, 8, 8192) == 8 && !buf[0] && buf[4] == 'e') || error == EOPNOTSUPP);
    rc = fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    error = errno;
    OK("COLLAPSE_RANGE", (rc == 0 && pread(fd, buf, 8, 4096) == 8 && buf[4] == 'e') || error == EOPNOTSUPP);
    FAILS("of nothing", EINVAL, fallocate(fd, 0, 0, 0));
    close(fd);
}

static void copying(void)
{
    static char text[200000], back[200000];
    off_t in_at = 0, out_at = 5;
    ssize_t n, total = 0;
    int in = open("in", O_RDWR | O_CREAT, 0644), out = open("out", O_RDWR | O_CREAT, 0644);

    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (char)(i % 251);
    pwrite(in, text, sizeof(text), 0);
    while ((n = copy_file_range(in, &in_at, out, &out_at, sizeof(text), 0)) > 0)
        total += n;
    OK("copy_file_range", n == 0 && total == sizeof(text) && in_at == sizeof(text) &&
                              pread(out, back, sizeof(back), 5) == sizeof(back) &&
                              !memcmp(text, back, sizeof(text)));
    in_at = 0, out_at = 1000;
    OK("within a file", copy_file_range(out, &in_at, out, &out_at, 500, 0) == 500);
    FAILS("overlapping", EINVAL, ({
              in_at = 0, out_at = 10;
              copy_file_range(out, &in_at, out, &out_at, 500, 0);
          }));
    FAILS("to a read-only descriptor", EBADF, ({
              int r = open("out", O_RDONLY);
              long k = copy_file_range(in, NULL, r, NULL, 10, 0);
              int e = errno;
              close(r);
              errno = e;
              k;
          }));
    close(in);
    close(out);
}

static void mapping(void)
{
    char buf[8] = "", *p, *q;
    struct stat before, after;
    int fd = open("f", O_RDWR | O_CREAT, 0644), ro;

    ftruncate(fd, 16384);
    p = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    OK("shared", p != MAP_FAILED);
    if (p == MAP_FAILED)
        return;
    before = get("f");
    tick();
    memcpy(p + 9000, "abc", 3);
    OK("msync shows it to read",
       msync(p, 16384, MS_SYNC) == 0 && pread(fd, buf, 3, 9000) == 3 && !memcmp(buf, "abc", 3));
    after = get("f");
    OK("and marks mtime and ctime", (changed(&before, &after) & 6) == 6);
    OK("a write shows in the map", pwrite(fd, "xyz", 3, 20) == 3 && !memcmp(p + 20, "xyz", 3));
    q = mmap(NULL, 16384, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    OK("private",
       q != MAP_FAILED && (q[20] = '!') && p[20] == 'x' && pread(fd, buf, 1, 20) == 1 && buf[0] == 'x');
    munmap(q, 16384);
    memcpy(p, "kept", 4);
    munmap(p, 16384);
    close(fd);
    fd = open("f", O_RDONLY);
    OK("kept after munmap and close", pread(fd, buf, 4, 0) == 4 && !memcmp(buf, "kept", 4));
    p = mmap(NULL, 16384, PROT_READ, MAP_SHARED, fd, 0);
    OK("read-only shared", p != MAP_FAILED && !memcmp(p, "kept", 4));
    OK("a map outlives its name", unlink("f") == 0 && !memcmp(p + 9000, "abc", 3));
    munmap(p, 16384);
    close(fd);
    fd = open("app", O_RDWR | O_CREAT | O_APPEND, 0644);
    write(fd, "0123456789", 10);
    p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED)
        memcpy(p + 2, "map", 3);
    OK("a map of what is open for appending writes in its place",
       p != MAP_FAILED && msync(p, 4096, MS_SYNC) == 0 && munmap(p, 4096) == 0 && has("app", "01map56789"));
    OK("and appending appends", write(fd, "end", 3) == 3 && has("app", "01map56789end"));
    close(fd);
    ro = open("ro", O_RDONLY | O_CREAT, 0644);
    ftruncate(ro, 10);
    FAILS("writable map of a read-only descriptor", EACCES,
          mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ro, 0));
    close(ro);
}

static void direct(void)
{
    char *buf, text[16];
    int fd = open("f", O_RDWR | O_CREAT | O_DIRECT, 0644), error = errno;

    if (fd < 0) {
        OK("O_DIRECT is refused cleanly", error == EINVAL);
        return;
    }
    if (posix_memalign((void **)&buf, 4096, 8192))
        return;
    memset(buf, 'd', 8192);
    OK("aligned", pwrite(fd, buf, 8192, 0) == 8192 &&
                      (memset(buf, 0, 8192), pread(fd, buf, 4096, 4096)) == 4096 && buf[0] == 'd');
    errno = 0;
    OK("unaligned works or is EINVAL", pread(fd, text, 10, 3) == 10 || errno == EINVAL);
    close(fd);
    OK("read back without",
       (fd = open("f", O_RDONLY)) >= 0 && pread(fd, text, 4, 8188) == 4 && text[3] == 'd');
    close(fd);
    free(buf);
}

static int link_fd(int fd, const char *name)
{
    char proc[64];

    snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
    return linkat(AT_FDCWD, proc, AT_FDCWD, name, AT_SYMLINK_FOLLOW);
}

static bool lists_nothing(void)
{
    DIR *d = opendir(".");
    struct dirent *e;
    int n = 0;

    while (d && (e = readdir(d)))
        n++;
    if (d)
        closedir(d);
    return d && n == 2;
}

static void unnamed_by_user(void)
{
    int fd = open("setgid", O_TMPFILE | O_WRONLY, 0640);

    OK("a user's, where the folder gives its group",
       fd >= 0 && link_fd(fd, "setgid/u") == 0 && get("setgid/u").st_uid == 1002 &&
           get("setgid/u").st_gid == 3000 && mode_of("setgid/u") == 0640);
    close(fd);
    fd = open("setgid", O_TMPFILE | O_WRONLY, 04750);
    OK("with its set-id bit", fd >= 0 && link_fd(fd, "setgid/s") == 0 && get("setgid/s").st_uid == 1002 &&
                                  mode_of("setgid/s") == 04750);
    close(fd);
    FAILS("in a folder without w", EACCES, open("readonly", O_TMPFILE | O_RDWR, 0600));
}

static void tmpfile_(void)
{
    int fd = open(".", O_TMPFILE | O_RDWR, 0604);
    char buf[8] = "";
    struct stat st;
    ino_t ino;

    if (fd < 0 && errno == EOPNOTSUPP) { /* FUSE has it from Linux 6.1 on */
        printf("SKIP %s: this kernel does not have it here\n", group);
        return;
    }
    OK("a file without a name", fd >= 0 && write(fd, "hello", 5) == 5 && fstat(fd, &st) == 0 &&
                                    st.st_nlink == 0 && st.st_size == 5 && (st.st_mode & 07777) == 0604 &&
                                    st.st_uid == geteuid());
    ino = st.st_ino;
    OK("its folder lists nothing", lists_nothing());
    OK("read, ftruncate, fchmod, fsetxattr, fsync",
       pread(fd, buf, 5, 0) == 5 && !strcmp(buf, "hello") && ftruncate(fd, 4) == 0 && fchmod(fd, 0640) == 0 &&
           fsetxattr(fd, "user.a", "b", 1, 0) == 0 && fsync(fd) == 0);
    OK("it gets a name", link_fd(fd, "f") == 0 && has("f", "hell") && get("f").st_nlink == 1 &&
                             get("f").st_ino == ino && mode_of("f") == 0640);
    OK("and goes on under it", pwrite(fd, "J", 1, 0) == 1 && has("f", "Jell") && link_fd(fd, "g") == 0 &&
                                   get("g").st_nlink == 2 && unlink("f") == 0);
    close(fd);
    OK("it stays after close", has("g", "Jell") && getxattr("g", "user.a", buf, 8) == 1 && unlink("g") == 0);
    FAILS("nothing without its names", ENOENT, (fd = open("g", O_RDONLY)));
    fd = open(".", O_TMPFILE | O_RDWR | O_EXCL, 0600);
    FAILS("O_EXCL: it gets none", ENOENT, link_fd(fd, "f"));
    close(fd);
    OK("and is gone", lists_nothing());
    FAILS("of a read-only descriptor", EINVAL, open(".", O_TMPFILE | O_RDONLY, 0600));
    if (!is_root)
        return;
    mkdir("setgid", 0755);
    chown("setgid", 0, 3000);
    chmod("setgid", 02777);
    mkdir("readonly", 0755);
    as_user(1002, 1002, unnamed_by_user);
}

/* ---- extended attributes ---- */

static void xattrs(void)
{
    static char value[65537], list[65536];
    char name[300] = "user.";
    int fd;

    make("f", "x", 0644);
    mkdir("d", 0755);
    OK("set and get", setxattr("f", "user.a", "one", 3, 0) == 0 && getxattr("f", "user.a", value, 10) == 3 &&
                          !memcmp(value, "one", 3));
    OK("the length alone", getxattr("f", "user.a", NULL, 0) == 3 && listxattr("f", NULL, 0) >= 7);
    FAILS("too short a buffer", ERANGE, getxattr("f", "user.a", value, 1));
    FAILS("listing into too short a buffer", ERANGE, listxattr("f", list, 2));
    FAILS("not there", ENODATA, getxattr("f", "user.b", value, 10));
    FAILS("XATTR_CREATE", EEXIST, setxattr("f", "user.a", "x", 1, XATTR_CREATE));
    FAILS("XATTR_REPLACE", ENODATA, setxattr("f", "user.b", "x", 1, XATTR_REPLACE));
    OK("XATTR_REPLACE of one", setxattr("f", "user.a", "two", 3, XATTR_REPLACE) == 0 &&
                                   getxattr("f", "user.a", value, 10) == 3 && !memcmp(value, "two", 3));
    OK("empty value",
       setxattr("f", "user.empty", "", 0, 0) == 0 && getxattr("f", "user.empty", value, 10) == 0);
    OK("binary value", setxattr("f", "user.bin", "a\0b", 3, 0) == 0 &&
                           getxattr("f", "user.bin", value, 10) == 3 && !memcmp(value, "a\0b", 3));
    OK("a folder's", setxattr("d", "user.a", "x", 1, 0) == 0 && getxattr("d", "user.a", value, 10) == 1);
    OK("listed", listxattr("f", list, sizeof(list)) > 0 && memmem(list, 64, "user.bin", 9));
    OK("removed",
       removexattr("f", "user.a") == 0 && getxattr("f", "user.a", value, 10) == -1 && errno == ENODATA);
    FAILS("removed twice", ENODATA, removexattr("f", "user.a"));
    fd = open("f", O_RDWR);
    OK("by descriptor", fsetxattr(fd, "user.fd", "v", 1, 0) == 0 &&
                            fgetxattr(fd, "user.fd", value, 10) == 1 && fremovexattr(fd, "user.fd") == 0);
    close(fd);
    memset(name + 5, 'n', 250);
    name[255] = '\0';
    OK("name of 255 bytes", setxattr("f", name, "x", 1, 0) == 0 && removexattr("f", name) == 0);
    name[255] = 'n';
    name[256] = '\0';
    FAILS("name of 256 bytes", ERANGE, setxattr("f", name, "x", 1, 0));
    FAILS("value of more than 64 KiB", E2BIG, setxattr("f", "user.big", value, 65537, 0));
    symlink("f", "s");
    FAILS("user.* of a link", EPERM, lsetxattr("s", "user.a", "x", 1, 0));
    OK("cp keeps them (rename too)", setxattr("f", "user.k", "v", 1, 0) == 0 && rename("f", "g") == 0 &&
                                         getxattr("g", "user.k", value, 10) == 1);
}

/* ---- locks, between two processes ---- */

static int try_flock(void)
{
    int fd = open("lock", O_RDWR);

    return flock(fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK ? 0 : 1;
}

static int try_shared(void)
{
    int fd = open("lock", O_RDWR);

    return flock(fd, LOCK_SH | LOCK_NB) == 0 ? 0 : 1;
}

static int try_fcntl(void)
{
    struct flock fl = {.l_type = F_WRLCK, .l_start = 5, .l_len = 10},
                 far = {.l_type = F_WRLCK, .l_start = 100, .l_len = 1}, ask = fl;
    int fd = open("lock", O_RDWR);

    if (fcntl(fd, F_SETLK, &fl) != -1 || (errno != EAGAIN && errno != EACCES))
        return 1;
    if (fcntl(fd, F_GETLK, &ask) || ask.l_type != F_WRLCK || ask.l_pid != getppid() || ask.l_start != 10)
        return 2;
    return fcntl(fd, F_SETLK, &far) == 0 ? 0 : 3;
}

static int wait_fcntl(void)
{
    struct flock fl = {.l_type = F_WRLCK, .l_start = 10, .l_len = 10};
    int fd = open("lock", O_RDWR);

    alarm(5);
    return fcntl(fd, F_SETLKW, &fl) == 0 ? 0 : 1;
}

static int try_ofd(void)
{
    struct flock fl = {.l_type = F_WRLCK, .l_start = 0, .l_len = 1};
    int fd = open("lock", O_RDWR);

    return fcntl(fd, F_OFD_SETLK, &fl) == -1 && errno == EAGAIN ? 0 : 1;
}

static void locking(void)
{
    struct flock fl = {.l_type = F_WRLCK, .l_start = 10, .l_len = 10}, un = {.l_type = F_UNLCK},
                 ofd = {.l_type = F_WRLCK, .l_len = 1};
    int fd, other, status;
    pid_t pid;

    make("lock", "x", 0644);
    fd = open("lock", O_RDWR);
    flock(fd, LOCK_EX);
    OK("flock holds", in_child(try_flock) == 0);
    flock(fd, LOCK_SH);
    OK("two shared flocks", in_child(try_shared) == 0);
    flock(fd, LOCK_UN);
    OK("fcntl holds its range", fcntl(fd, F_SETLK, &fl) == 0 && in_child(try_fcntl) == 0);
    fflush(stdout);
    pid = fork();
    if (pid == 0)
        _exit(wait_fcntl());
    usleep(100000);
    fcntl(fd, F_SETLK, &un);
    waitpid(pid, &status, 0);
    OK("a waiting lock gets it", WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fcntl(fd, F_SETLK, &fl);
    other = open("lock", O_RDONLY);
    close(other);
    OK("closing any descriptor drops fcntl's", in_child(wait_fcntl) == 0);
    OK("open-file-description locks", fcntl(fd, F_OFD_SETLK, &ofd) == 0 && in_child(try_ofd) == 0);
    close(fd);
}

/* ---- two processes at once ---- */

static int append_lines(void)
{
    int fd = open("log", O_WRONLY | O_APPEND);
    char line[32];

    for (int i = 0; i < 300; i++) {
        int n = snprintf(line, sizeof(line), "%d %05d\n", getpid() % 10, i);
        if (write(fd, line, (size_t)n) != n)
            return 1;
    }
    return close(fd);
}

static void appending(void)
{
    int status, bad = 0;
    char line[64];
    int lines = 0;
    FILE *in;

    make("log", "", 0644);
    fflush(stdout);
    for (int p = 0; p < 4; p++)
        if (fork() == 0)
            _exit(append_lines());
    for (int p = 0; p < 4; p++) {
        wait(&status);
        bad |= status;
    }
    in = fopen("log", "r");
    while (in && fgets(line, sizeof(line), in)) {
        lines++;
        bad |= strlen(line) != 8;
    }
    fclose(in);
    OK("four processes with O_APPEND lose no line", !bad && lines == 1200);
}

static void racing(void)
{
    int won = 0, status, renamed = 0;
    char name[16];

    fflush(stdout);
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof(name), "x%d", i);
        for (int p = 0; p < 3; p++)
            if (fork() == 0)
                _exit(open(name, O_CREAT | O_EXCL | O_WRONLY, 0644) >= 0);
        for (int p = 0; p < 3; p++) {
            wait(&status);
            won += WEXITSTATUS(status);
        }
    }
    OK("O_EXCL has one winner", won == 50);
    for (int i = 0; i < 50; i++) {
        make("token", "x", 0644);
        for (int p = 0; p < 3; p++)
            if (fork() == 0) {
                snprintf(name, sizeof(name), "t%d", p);
                _exit(rename("token", name) == 0);
            }
        for (int p = 0; p < 3; p++) {
            wait(&status);
            renamed += WEXITSTATUS(status);
        }
    }
    OK("rename has one winner", renamed == 50);
    for (int p = 0; p < 3; p++)
        if (fork() == 0) {
            for (int i = 0; i < 100; i++)
                mkdir("same", 0755), rmdir("same");
            _exit(0);
        }
    while (wait(&status) > 0)
        ;
    OK("mkdir and rmdir of one name by three", rmdir("same") == 0 || errno == ENOENT);
    /* a reader never misses a name that is replaced by rename */
    make("cfg", "0", 0644);
    if (fork() == 0) {
        for (int i = 0; i < 300; i++) {
            snprintf(name, sizeof(name), "%d", i % 10);
            make("cfg.new", name, 0644);
            rename("cfg.new", "cfg");
        }
        _exit(0);
    }
    int missed = 0, empty = 0;
    while (waitpid(-1, &status, WNOHANG) == 0) {
        int fd = open("cfg", O_RDONLY);
        if (fd < 0)
            missed++;
        else if (read(fd, name, 1) != 1)
            empty++;
        close(fd);
    }
    OK("replaced by rename, never missing or empty", missed == 0 && empty == 0);
}

/* ---- listing ---- */

static int count(DIR *d, char *seen, int max)
{
    struct dirent *e;
    int n = 0, k;

    while ((e = readdir(d)))
        if (sscanf(e->d_name, "f%d", &k) == 1 && k >= 0 && k < max) {
            seen[k]++;
            n++;
        }
    return n;
}

static void listing(void)
{
    enum { N = 10000 };
    static char seen[2 * N];
    long at[N];
    char name[32], names_at[4][256];
    struct dirent *e;
    int bad = 0, n = 0, fd;
    DIR *d;

    mkdir("many", 0755);
    fd = open("many", O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        bad |= mknodat(fd, name, S_IFREG | 0644, 0);
    }
    OK("10,000 entries are made", !bad);
    d = opendir("many");
    n = count(d, seen, N);
    for (int i = 0; i < N; i++)
        bad |= seen[i] != 1;
    OK("each is listed once", n == N && !bad);
    rewinddir(d);
    memset(seen, 0, sizeof(seen));
    OK("and once again after rewinddir", count(d, seen, N) == N);
    rewinddir(d);
    for (n = 0; n < 4000 && (e = readdir(d)); n++)
        at[n] = telldir(d);
    for (int i = 0; i < 4; i++) {
        seekdir(d, at[i * 999]);
        e = readdir(d);
        snprintf(names_at[i], 256, "%s", e ? e->d_name : "");
    }
    rewinddir(d);
    bad = 0;
    for (n = 0; n < 4000 && (e = readdir(d)); n++)
        for (int i = 0; i < 4; i++)
            bad |= n == i * 999 + 1 && strcmp(names_at[i], e->d_name) != 0;
    OK("telldir and seekdir", !bad);
    rewinddir(d);
    memset(seen, 0, sizeof(seen));
    for (n = 0; n < 1000 && (e = readdir(d)); n++) /* take away and add while listing */
        if (e->d_name[0] == 'f')
            seen[atoi(e->d_name + 1)]++;
    for (int i = 0; i < N; i += 10) {
        snprintf(name, sizeof(name), "f%d", i);
        unlinkat(fd, name, 0);
        snprintf(name, sizeof(name), "f%d", N + i);
        mknodat(fd, name, S_IFREG | 0644, 0);
    }
    count(d, seen, 2 * N);
    bad = 0;
    for (int i = 0; i < N; i++)
        bad |= i % 10 ? seen[i] != 1 : seen[i] > 1;
    for (int i = N; i < 2 * N; i++)
        bad |= seen[i] > 1;
    OK("what stays is listed once while others come and go", !bad);
    closedir(d);
    d = opendir("many");
    bad = 0;
    while ((e = readdir(d)))
        if (e->d_name[0] == 'f')
            bad |= unlinkat(fd, e->d_name, 0);
    closedir(d);
    OK("unlink while reading empties it", !bad && unlinkat(AT_FDCWD, "many", AT_REMOVEDIR) == 0);
    close(fd);
}

static int run(const char *program)
{
    int status;
    pid_t pid;

    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        execl(program, program, "0", NULL);
        _exit(errno == ETXTBSY ? 77 : 78);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 200;
}

static void executing(void)
{
    pid_t pid;
    int fd;

    if (system("cp /bin/sleep sleep") != 0)
        return;
    fd = open("sleep", O_WRONLY);
    OK("a program that is open for writing does not start", run("./sleep") == 77);
    close(fd);
    OK("closed, it does", run("./sleep") == 0);
    fflush(stdout);
    pid = fork();
    if (pid == 0) {
        execl("./sleep", "sleep", "60", NULL);
        _exit(1);
    }
    usleep(300000);
    FAILS("a running program is not opened for writing", ETXTBSY, open("sleep", O_WRONLY));
    FAILS("nor truncated", ETXTBSY, truncate("sleep", 0));
    OK("but removed", unlink("sleep") == 0 && kill(pid, 0) == 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void size_limit(void)
{
    struct rlimit old, low;
    static char text[8192];
    int fd = open("limited", O_RDWR | O_CREAT, 0644);

    getrlimit(RLIMIT_FSIZE, &old);
    low = (struct rlimit){5000, old.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &low);
    OK("a write ends at the limit of a file's size", write(fd, text, sizeof(text)) == 5000);
    FAILS("there it ends", EFBIG, write(fd, text, 1));
    FAILS("ftruncate past it", EFBIG, ftruncate(fd, 5001));
    setrlimit(RLIMIT_FSIZE, &old);
    close(fd);
}

static void whole(void)
{
    struct statvfs v;
    int fd;

    OK("statvfs", statvfs(".", &v) == 0 && v.f_namemax == 255 && v.f_blocks > 0 && v.f_bavail <= v.f_bfree &&
                      v.f_bsize > 0 && v.f_files > 0);
    make("f", "x", 0644);
    fd = open("f", O_RDONLY);
    OK("fstatvfs", fstatvfs(fd, &v) == 0);
    OK("fpathconf", fpathconf(fd, _PC_NAME_MAX) == 255 && fpathconf(fd, _PC_LINK_MAX) > 1);
    close(fd);
    OK("O_PATH", (fd = open("f", O_PATH)) >= 0 && fstat(fd, &(struct stat){0}) == 0 && close(fd) == 0);
    OK("a program runs from here", ({
           make("run", "#!/bin/sh\nexit 7\n", 0755);
           WEXITSTATUS(system("./run")) == 7;
       }));
    executing();
    size_limit();
    fd = open("run", O_RDONLY);
    OK("fexecve's needs (X_OK)", access("run", X_OK) == 0 && faccessat(AT_FDCWD, "f", X_OK, 0) == -1);
    close(fd);
}

/* ---- all ---- */

static const struct {
    const char *name;
    void (*fn)(void);
} groups[] = {
    {"times", times},      {"utimens", set_times},    {"owners", owners},   {"names", names},
    {"remove", removing},  {"rename", renaming},      {"link", linking},    {"special", special},
    {"data", data},        {"fallocate", allocating}, {"copy", copying},    {"mmap", mapping},
    {"direct", direct},    {"tmpfile", tmpfile_},     {"xattr", xattrs},    {"lock", locking},
    {"append", appending}, {"race", racing},          {"listing", listing}, {"whole", whole},
};

int main(int argc, char **argv)
{
    if (argc < 2 || chdir(argv[1])) {
        fprintf(stderr, "usage: posix_conformance DIR [GROUP]\n");
        return 2;
    }
    umask(022);
    is_root = geteuid() == 0;
    for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++) {
        if (argc > 2 && strcmp(argv[2], groups[i].name) != 0)
            continue;
        group = groups[i].name;
        if (mkdir(group, 0755) || chdir(group)) {
            printf("FAIL %s: cannot make its folder\n", group);
            return 1;
        }
        chmod(".", 0777);
        groups[i].fn();
        fflush(stdout);
        if (chdir(argv[1])) {
            printf("FAIL %s: cannot go back\n", group);
            return 1;
        }
    }
    return failures != 0;
}
