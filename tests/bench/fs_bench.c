/*
 * Times of file system calls in one folder, for fs_bench.sh.  One line a measurement: NAME VALUE UNIT.
 *   fs_bench bulk DIR MEGABYTES   sequential write, cold and second read, random 4 KiB reads, warm and cold
 *   fs_bench small DIR N          creates, stats, reads and removals of N small files
 *   fs_bench read FILE N          open + read + close of FILE, N times: median and 99th percentile
 *   fs_bench list DIR             readdir + lstat of everything in DIR, as ls -l does
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 1 << 20, RANDOM_READS = 100000, COLD_READS = 5000 };
static char block[BLOCK];

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void drop_caches(void)
{
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);

    sync();
    if (fd < 0 || write(fd, "3", 1) != 1)
        fprintf(stderr, "cannot drop the caches: the cold figures are warm ones\n");
    close(fd);
}

static double read_all(const char *name)
{
    double start = now();
    int fd = open(name, O_RDONLY);
    ssize_t n;

    while ((n = read(fd, block, BLOCK)) > 0)
        ;
    if (fd < 0 || n < 0)
        die(name);
    close(fd);
    return now() - start;
}

static void bulk(int mb)
{
    double start = now(), t;
    int fd = open("bulk", O_WRONLY | O_CREAT | O_TRUNC, 0644);

    for (int i = 0; i < mb; i++) {
        memset(block, i, 64);
        if (write(fd, block, BLOCK) != BLOCK)
            die("write");
    }
    t = now() - start;
    if (fsync(fd))
        die("fsync");
    close(fd);
    printf("write %.0f MB/s\nwrite+fsync %.0f MB/s\n", mb / t, mb / (now() - start));
    drop_caches();
    printf("cold-read %.0f MB/s\n", mb / read_all("bulk"));
    printf("second-read %.0f MB/s\n", mb / read_all("bulk"));
}

static void random_reads(const char *what, int mb, int n)
{
    int fd = open("bulk", O_RDONLY);
    unsigned long x = 88172645463325252ul;
    double start = now();

    for (int i = 0; i < n; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        if (pread(fd, block, 4096, (off_t)(x % ((unsigned long)mb * 256)) * 4096) != 4096)
            die("pread");
    }
    printf("%s %.0f /s\n", what, n / (now() - start));
    close(fd);
}

static void make_file(const char *name)
{
    int fd = open(name, O_WRONLY | O_CREAT, 0644);

    if (fd < 0 || write(fd, block, 100) != 100)
        die(name);
    close(fd);
}

static void look_at(const char *name)
{
    struct stat st;

    if (stat(name, &st))
        die(name);
}

static void read_small(const char *name)
{
    int fd = open(name, O_RDONLY);

    if (fd < 0 || read(fd, block, BLOCK) != 100)
        die(name);
    close(fd);
}

static void remove_file(const char *name)
{
    if (unlink(name))
        die(name);
}

static void each_file(const char *what, int n, void (*act)(const char *name))
{
    double start = now();
    char name[32];

    for (int i = 0; i < n; i++) {
        snprintf(name, sizeof(name), "s%d", i);
        act(name);
    }
    printf("%s %.0f /s\n", what, n / (now() - start));
}

static void small_files(int n)
{
    each_file("create", n, make_file);
    drop_caches();
    each_file("stat", n, look_at);
    each_file("small-read", n, read_small);
    each_file("unlink", n, remove_file);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static int time_reads(const char *name, int n)
{
    double *t = calloc((size_t)n, sizeof(*t));

    for (int i = 0; t && i < n; i++)
        t[i] = read_all(name) * 1e6;
    if (!t)
        return 1;
    qsort(t, (size_t)n, sizeof(*t), by_value);
    printf("read-median %.0f us\nread-p99 %.0f us\n", t[n / 2], t[n - 1 - n / 100]);
    free(t);
    return 0;
}

static int time_list(const char *path)
{
    double start = now();
    DIR *d = opendir(path);
    struct dirent *e;
    struct stat st;
    int n = 0;

    while (d && (e = readdir(d)))
        n += fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0;
    if (!d)
        die(path);
    closedir(d);
    printf("list-%d-entries %.0f ms\n", n, (now() - start) * 1e3);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && !strcmp(argv[1], "read"))
        return time_reads(argv[2], atoi(argv[3]));
    if (argc == 3 && !strcmp(argv[1], "list"))
        return time_list(argv[2]);
    if (argc != 4 || (strcmp(argv[1], "bulk") && strcmp(argv[1], "small")) || chdir(argv[2]) ||
        atoi(argv[3]) < 1) {
        fprintf(stderr, "usage: see the top of fs_bench.c\n");
        return 2;
    }
    if (strcmp(argv[1], "small") == 0) {
        small_files(atoi(argv[3]));
        return 0;
    }
    bulk(atoi(argv[3]));
    random_reads("random-4k", atoi(argv[3]), RANDOM_READS);
    drop_caches();
    random_reads("cold-random-4k", atoi(argv[3]), COLD_READS);
    unlink("bulk");
    return 0;
}
