/* Programs at work on a mount whose daemon is killed again and again: every call must succeed, and mean what
 * it says.  survive_load ROOT FOLDER STOPFILE: one process a kind of work, until STOPFILE is there; prints
 * what was done, and each error; exit status 1 if there was any.  ROOT: of the mount; FOLDER: where users may
 * write. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

static const char *root, *folder, *stop_file, *what;
static unsigned long turns, errors;

static void wrong(const char *fmt, ...)
{
    va_list ap;
    char text[400];

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    errors++;
    if (errors <= 10)
        printf("ERROR %s, turn %lu: %s\n", what, turns, text);
    fflush(stdout);
}

#define MUST(call)                                                                                           \
    ({                                                                                                       \
        long must_rc = (long)(call);                                                                         \
        if (must_rc < 0)                                                                                     \
            wrong("%s (line %d): %s", #call, __LINE__, strerror(errno));                                     \
        must_rc;                                                                                             \
    })

static int go_on(void)
{
    turns++;
    return access(stop_file, F_OK) != 0 && errors < 20;
}

static const char *in(const char *fmt, ...)
{
    static char path[8][512];
    static int next;
    char *p = path[next++ % 8];
    va_list ap;
    int n = snprintf(p, 512, "%s/", folder);

    va_start(ap, fmt);
    vsnprintf(p + n, (size_t)(512 - n), fmt, ap);
    va_end(ap);
    return p;
}

static void expect_gone(const char *path)
{
    struct stat st;

    if (lstat(path, &st) == 0 || errno != ENOENT)
        wrong("%s should be gone: %s", path, errno == ENOENT ? "it is there" : strerror(errno));
}

/* ---- kinds of work ---- */

/* Lines, each of which must be there once. */
static void append(int who)
{
    int fd = (int)MUST(open(in("append"), O_WRONLY | O_CREAT | O_APPEND, 0644));
    char line[64];

    while (fd >= 0 && go_on()) {
        int n = snprintf(line, sizeof(line), "%d %lu\n", who, turns);
        if (MUST(write(fd, line, (size_t)n)) != n)
            wrong("a short write");
        if (turns % 50 == 0) {
            MUST(close(fd));
            fd = (int)MUST(open(in("append"), O_WRONLY | O_APPEND));
        }
        usleep(500);
    }
    close(fd);
}

static void fill(unsigned char *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525 + 1013904223;
        p[i] = (unsigned char)(seed >> 24);
    }
}

static void write_all(int fd, const unsigned char *p, size_t n)
{
    while (n) {
        long k = MUST(write(fd, p, n < 200000 ? n : 200000));
        if (k <= 0)
            return;
        p += k;
        n -= (size_t)k;
    }
}

static void compare(int fd, const unsigned char *want, size_t n)
{
    static unsigned char have[1 << 20];
    size_t at = 0;
    long k;

    while ((k = MUST(pread(fd, have, sizeof(have), (off_t)at))) > 0) {
        if (at + (size_t)k > n || memcmp(have, want + at, (size_t)k) != 0) {
            wrong("other bytes than were written, in those from %zu", at);
            return;
        }
        at += (size_t)k;
    }
    if (at != n)
        wrong("%zu bytes, not %zu", at, n);
}

/* A file under a temporary name, renamed over the old one, read back, through the cache and past it. */
static void contents(int who)
{
    size_t n = 3 << 20;
    unsigned char *want = malloc(n);

    while (want && go_on()) {
        size_t size = n / 4 + (size_t)(turns * 7919 % (n / 2));
        int fd = (int)MUST(open(in("content.tmp"), O_RDWR | O_CREAT | O_TRUNC, 0600));
        fill(want, size, (unsigned)turns);
        write_all(fd, want, size);
        if (turns % 4 == 0)
            MUST(fsync(fd));
        MUST(rename(in("content.tmp"), in("content")));
        compare(fd, want, size);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        compare(fd, want, size);
        MUST(ftruncate(fd, (off_t)(size / 2)));
        compare(fd, want, size / 2);
        if (turns % 3 == 0) {
            void *map = mmap(NULL, size / 2, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (map == MAP_FAILED)
                wrong("mmap: %s", strerror(errno));
            else {
                fill(want, size / 2, (unsigned)turns + 1);
                memcpy(map, want, size / 2);
                MUST(msync(map, size / 2, MS_SYNC));
                munmap(map, size / 2);
                compare(fd, want, size / 2);
            }
        }
        MUST(close(fd));
        fd = (int)MUST(open(in("content"), O_RDONLY));
        compare(fd, want, size / 2);
        MUST(close(fd));
    }
    free(want);
}

/* Each call has its one right answer. */
static void names(int who)
{
    struct stat a, b;

    while (go_on()) {
        int fd = (int)MUST(open(in("n/file"), O_WRONLY | O_CREAT | O_EXCL, 0444));
        MUST(write(fd, "x", 1));
        MUST(close(fd));
        MUST(link(in("n/file"), in("n/hard")));
        MUST(symlink("file", in("n/soft")));
        MUST(mkdir(in("n/dir"), 0755));
        MUST(mkdir(in("n/dir/sub"), 0755));
        MUST(rename(in("n/dir"), in("n/dir2")));
        MUST(rename(in("n/hard"), in("n/dir2/sub/hard")));
        expect_gone(in("n/hard"));
        MUST(mkfifo(in("n/fifo"), 0600));
        MUST(stat(in("n/file"), &a));
        MUST(renameat2(AT_FDCWD, in("n/file"), AT_FDCWD, in("n/dir2"), RENAME_EXCHANGE));
        MUST(stat(in("n/dir2"), &b));
        if (a.st_ino != b.st_ino || !S_ISREG(b.st_mode))
            wrong("exchanged, and not, or twice");
        MUST(renameat2(AT_FDCWD, in("n/file"), AT_FDCWD, in("n/dir2"), RENAME_EXCHANGE));
        MUST(setxattr(in("n/file"), "user.x", "1", 1, XATTR_CREATE));
        MUST(removexattr(in("n/file"), "user.x"));
        MUST(chmod(in("n/file"), 0600));
        MUST(renameat2(AT_FDCWD, in("n/file"), AT_FDCWD, in("n/other"), RENAME_NOREPLACE));
        MUST(unlink(in("n/other")));
        MUST(unlink(in("n/soft")));
        MUST(unlink(in("n/fifo")));
        expect_gone(in("n/other"));
        MUST(unlink(in("n/dir2/sub/hard")));
        MUST(rmdir(in("n/dir2/sub")));
        MUST(rmdir(in("n/dir2")));
        expect_gone(in("n/dir2"));
        if (mkdir(in("n"), 0755) == 0 || errno != EEXIST)
            wrong("mkdir of what is there: %s", strerror(errno));
        if (rmdir(in("n/none")) == 0 || errno != ENOENT)
            wrong("rmdir of what is not there: %s", strerror(errno));
    }
}

/* An open file without a name. */
static void unlinked(int who)
{
    int fd = (int)MUST(open(in("unlinked"), O_RDWR | O_CREAT | O_TRUNC, 0400));
    char word[32], back[32];
    struct stat st;

    MUST(unlink(in("unlinked")));
    while (fd >= 0 && go_on()) {
        int n = snprintf(word, sizeof(word), "%020lu", turns);
        MUST(pwrite(fd, word, (size_t)n, (off_t)(turns % 1000 * 4096)));
        if (turns % 20 == 0)
            posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        if (MUST(pread(fd, back, (size_t)n, (off_t)(turns % 1000 * 4096))) != n ||
            memcmp(word, back, (size_t)n))
            wrong("other bytes");
        if (MUST(fstat(fd, &st)) == 0 && st.st_nlink != 0)
            wrong("%d links", (int)st.st_nlink);
        usleep(2000);
    }
    close(fd);
}

/* A file that is made without a name and gets one. */
static void unnamed(int who)
{
    char proc[64], word[32];
    struct stat st;

    while (go_on()) {
        int fd = open(folder, O_TMPFILE | O_RDWR, 0600), n = snprintf(word, sizeof(word), "%020lu", turns);
        if (fd < 0 && errno == EOPNOTSUPP)
            return; /* the store's file system does not have it */
        MUST(fd);
        MUST(write(fd, word, (size_t)n));
        if (MUST(fstat(fd, &st)) == 0 && (st.st_nlink != 0 || st.st_size != n))
            wrong("%d links, %d bytes", (int)st.st_nlink, (int)st.st_size);
        snprintf(proc, sizeof(proc), "/proc/self/fd/%d", fd);
        MUST(linkat(AT_FDCWD, proc, AT_FDCWD, in("named"), AT_SYMLINK_FOLLOW));
        MUST(write(fd, "more", 4));
        MUST(close(fd));
        if (MUST(stat(in("named"), &st)) == 0 && (st.st_nlink != 1 || st.st_size != n + 4))
            wrong("named: %d links, %d bytes", (int)st.st_nlink, (int)st.st_size);
        MUST(unlink(in("named")));
    }
}

/* JSON in small portions: one rendering, whole. */
static void generated(int who)
{
    char path[512], text[1 << 16];

    snprintf(path, sizeof(path), "%s/status.json", root);
    while (go_on()) {
        int fd = (int)MUST(open(path, O_RDONLY)), depth = 0, text_on = 0;
        size_t n = 0;
        long k;
        while ((k = MUST(read(fd, text + n, 100))) > 0 && n + 200 < sizeof(text))
            n += (size_t)k;
        for (size_t i = 0; i < n; i++) {
            if (text[i] == '"' && (i == 0 || text[i - 1] != '\\'))
                text_on = !text_on;
            if (!text_on)
                depth += text[i] == '{' ? 1 : text[i] == '}' ? -1 : 0;
            if (depth == 0 && i + 2 < n && !text_on && text[i] == '}')
                wrong("more after the end: %.60s", text + i);
        }
        if (depth || n < 10 || text[0] != '{')
            wrong("not whole: %zu bytes: %.200s", n, n > 200 ? text + n - 200 : text);
        MUST(close(fd));
    }
}

enum { LISTED = 300 };

static void listings(int who)
{
    char seen[LISTED];

    for (int i = 0; i < LISTED; i++)
        MUST(close((int)MUST(open(in("l/file%d", i), O_WRONLY | O_CREAT, 0644))));
    while (go_on()) {
        DIR *d = opendir(in("l"));
        struct dirent *e;
        int n = 0, i;

        if (!d) {
            wrong("opendir: %s", strerror(errno));
            continue;
        }
        memset(seen, 0, sizeof(seen));
        for (errno = 0; (e = readdir(d)); errno = 0)
            if (sscanf(e->d_name, "file%d", &i) == 1) {
                if (seen[i]++)
                    wrong("%s is listed twice", e->d_name);
                n++;
            }
        if (errno || n != LISTED)
            wrong("%d names, not %d: %s", n, LISTED, strerror(errno));
        closedir(d);
    }
}

static void locks(int who)
{
    int a = (int)MUST(open(in("lock"), O_RDWR | O_CREAT, 0644)), b = (int)MUST(open(in("lock"), O_RDWR));

    while (go_on()) {
        MUST(flock(a, LOCK_EX));
        usleep(5000);
        if (flock(b, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK)
            wrong("a second lock: %s", strerror(errno));
        MUST(flock(a, LOCK_UN));
    }
}

/* After all: every line of each writer once, in its order. */
static int check_lines(unsigned long *lines)
{
    FILE *f = fopen(in("append"), "r");
    unsigned long last[8] = {0}, n;
    int bad = 0, who;

    *lines = 0;
    if (!f)
        return 1;
    while (fscanf(f, "%d %lu\n", &who, &n) == 2 && who >= 0 && who < 8) {
        if (n != last[who] + 1) {
            printf("ERROR append: after line %lu of %d comes %lu\n", last[who], who, n);
            bad = 1;
        }
        last[who] = n;
        ++*lines;
    }
    if (!feof(f)) {
        printf("ERROR append: what is at %ld is no line\n", ftell(f));
        bad = 1;
    }
    fclose(f);
    return bad;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*fn)(int who);
    } work[] = {{"append", append},       {"append", append},     {"contents", contents},
                {"names", names},         {"unlinked", unlinked}, {"unnamed", unnamed},
                {"generated", generated}, {"listings", listings}, {"locks", locks}};
    int status, bad = 0;
    unsigned long lines;

    if (argc != 4)
        return 2;
    root = argv[1];
    folder = argv[2];
    stop_file = argv[3];
    mkdir(in("n"), 0755);
    mkdir(in("l"), 0755);
    for (size_t i = 0; i < sizeof(work) / sizeof(work[0]); i++)
        if (fork() == 0) {
            what = work[i].name;
            work[i].fn((int)i);
            printf("%s: %lu turns, %lu errors\n", what, turns - 1, errors);
            fflush(stdout);
            _exit(errors != 0);
        }
    while (wait(&status) > 0)
        bad |= !WIFEXITED(status) || WEXITSTATUS(status);
    bad |= check_lines(&lines);
    printf("append: %lu lines\n", lines);
    return bad;
}
