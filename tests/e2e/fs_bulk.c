/*
 * Calls on large files, for fs_bulk.sh.  One line a check: "PASS name" or "FAIL name: why".
 *   fs_bulk calls DIR            sizes, times, mappings, O_DIRECT and the like, of one file open several
 * times fs_bulk mapped FILE SECONDS  map a new file, close it, write a last row into it after so many seconds
 *   fs_bulk takeover DIR GO      open files, make GO.ready, wait for GO, go on with them
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MB = 1 << 20 };
static char block[MB], back[MB];

static void result(int good, const char *name, int error)
{
    if (good)
        printf("PASS %s\n", name);
    else
        printf("FAIL %s: %s\n", name, strerror(error));
}
#define OK(name, what) (errno = 0, result((what), name, errno))

static off_t size_of(const char *name)
{
    struct stat st;

    return stat(name, &st) ? -1 : st.st_size;
}

static int fill(int fd, int mb)
{
    for (int i = 0; i < mb; i++) {
        memset(block, 'a' + i % 26, MB);
        if (pwrite(fd, block, MB, (off_t)i * MB) != MB)
            return 0;
    }
    return 1;
}

static int holds(int fd, off_t at, char c)
{
    return pread(fd, back, 4096, at) == 4096 && back[0] == c && back[4095] == c;
}

/* Who has it open how sees the same. */
static void sharing(void)
{
    int w = open("big", O_WRONLY | O_CREAT | O_EXCL, 0644), r, rw;
    struct stat a, b;
    char *map;

    OK("write", fill(w, 4));
    OK("size right after a write", size_of("big") == 4 * MB);
    r = open("big", O_RDONLY);
    OK("a second descriptor reads it", r >= 0 && holds(r, 3 * MB, 'd'));
    memset(block, 'X', MB);
    OK("overwrite", pwrite(w, block, MB, MB) == MB);
    OK("the reader sees it at once", holds(r, MB, 'X'));
    OK("at the end of the file too",
       pwrite(w, block, MB, 4 * MB) == MB && holds(r, 4 * MB, 'X') && size_of("big") == 5 * MB);
    map = mmap(NULL, 5 * MB, PROT_READ, MAP_SHARED, r, 0);
    OK("a mapping shows it", map != MAP_FAILED && map[MB] == 'X' && map[0] == 'a');
    memset(block, 'Y', MB);
    OK("and what comes later", pwrite(w, block, MB, 0) == MB && map[0] == 'Y');
    munmap(map, 5 * MB);
    fstat(w, &a);
    usleep(20000);
    OK("write later", pwrite(w, "Z", 1, 10) == 1);
    fstat(r, &b);
    OK("the modification time moves on",
       b.st_mtim.tv_sec > a.st_mtim.tv_sec || b.st_mtim.tv_nsec != a.st_mtim.tv_nsec);
    OK("fsync", fsync(w) == 0 && fdatasync(w) == 0);
    OK("close", close(w) == 0);
    OK("size after the close", size_of("big") == 5 * MB);
    rw = open("big", O_RDWR);
    OK("opened again for both while a reader has it", rw >= 0 && pwrite(rw, block, 4096, MB) == 4096);
    OK("the reader sees that", holds(r, MB, 'Y'));
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, rw, 0);
    OK("a shared mapping for writing", map != MAP_FAILED);
    if (map != MAP_FAILED) {
        memset(map, 'M', 4096);
        OK("what it writes is read", msync(map, 4096, MS_SYNC) == 0 && holds(r, 0, 'M'));
        munmap(map, 4096);
    }
    close(rw);
    close(r);
    r = open("big", O_RDONLY);
    OK("all of it after all is closed", holds(r, 0, 'M') && holds(r, MB, 'Y') && holds(r, 4 * MB, 'X'));
    close(r);
}

static void lengths(void)
{
    int w = open("len", O_RDWR | O_CREAT | O_EXCL, 0644), r, a, b;

    OK("ftruncate makes it longer", ftruncate(w, 3 * MB) == 0 && size_of("len") == 3 * MB);
    OK("fallocate", (fallocate(w, 0, 0, 4 * MB) == 0 || errno == EOPNOTSUPP) && size_of("len") >= 3 * MB);
    OK("write into it", fill(w, 4));
    OK("a hole",
       fallocate(w, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, MB, MB) == 0 || errno == EOPNOTSUPP);
    OK("ftruncate makes it shorter", ftruncate(w, MB + 5) == 0 && size_of("len") == MB + 5);
    r = open("len", O_RDONLY);
    OK("the end is where it is", pread(r, back, MB, MB) == 5);
    OK("truncate by name",
       truncate("len", 2 * MB) == 0 && size_of("len") == 2 * MB && holds(r, MB + 8192, 0));
    close(open("len", O_WRONLY | O_TRUNC));
    OK("O_TRUNC while it is open", size_of("len") == 0 && pread(r, back, 1, 0) == 0);
    a = open("len", O_WRONLY | O_APPEND);
    b = open("len", O_WRONLY | O_APPEND);
    OK("two append in turn", write(a, "one", 3) == 3 && write(b, "two", 3) == 3 && write(a, "three", 5) == 5);
    OK("nothing is lost", pread(r, back, 20, 0) == 11 && memcmp(back, "onetwothree", 11) == 0);
    close(a);
    close(b);
    close(r);
    close(w);
}

static void direct(void)
{
    int native = open("/dev/null", O_RDONLY), w = open("dir", O_RDWR | O_CREAT | O_EXCL | O_DIRECT, 0644);
    void *aligned;

    close(native);
    if (w < 0) {
        printf("SKIP O_DIRECT: %s\n", strerror(errno));
        return;
    }
    if (posix_memalign(&aligned, 4096, MB))
        return;
    memset(aligned, 'D', MB);
    OK("O_DIRECT writes", pwrite(w, aligned, MB, 0) == MB && pwrite(w, aligned, MB, MB) == MB);
    OK("O_DIRECT reads", pread(w, aligned, MB, MB) == MB && ((char *)aligned)[77] == 'D');
    close(w);
    w = open("dir", O_RDONLY);
    OK("others read it", holds(w, MB, 'D'));
    close(w);
    free(aligned);
}

static void names(void)
{
    int w = open("gone", O_RDWR | O_CREAT | O_EXCL, 0644), from, to;
    loff_t in = 0, out = 0;

    OK("write, then unlink", fill(w, 2) && unlink("gone") == 0);
    OK("still open",
       holds(w, MB, 'b') && pwrite(w, "q", 1, 0) == 1 && pread(w, back, 1, 0) == 1 && back[0] == 'q');
    close(w);
    from = open("big", O_RDONLY);
    to = open("copied", O_WRONLY | O_CREAT | O_EXCL, 0644);
    OK("copy_file_range",
       copy_file_range(from, &in, to, &out, 2 * MB, 0) == 2 * MB && size_of("copied") == 2 * MB);
    close(to);
    to = open("copied", O_RDONLY);
    OK("it copied", holds(to, MB, 'Y'));
    OK("rename over an open file",
       rename("copied", "big") == 0 && holds(from, 4 * MB, 'X') && size_of("big") == 2 * MB);
    close(from);
    close(to);
    for (int i = 0; i < 200; i++) { /* opens and closes of a few, all ways, one after the other */
        int fd = open("big", i % 3 == 0 ? O_RDWR : i % 3 == 1 ? O_RDONLY : O_WRONLY);
        int other = open("big", i % 2 ? O_RDONLY : O_RDWR);
        if (fd < 0 || other < 0 || (i % 2 && !holds(other, MB, 'Y'))) {
            printf("FAIL mixed opens: %d: %s\n", i, strerror(errno));
            return;
        }
        close(fd);
        if (i % 5)
            close(other);
    }
    printf("PASS mixed opens\n");
}

static int mapped(const char *name, int seconds)
{
    static const char row[] =
        "{\"instruction\":\"first\",\"response\":\"ok\"}\n{\"instruction\":\"-----\",\"response\":\"ok\"}\n";
    int fd = open(name, O_RDWR | O_CREAT | O_EXCL, 0644);
    char *map;

    if (fd < 0 || ftruncate(fd, sizeof(row) - 1))
        return 1;
    map = mmap(NULL, sizeof(row) - 1, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return 1;
    memcpy(map, row, sizeof(row) - 1);
    sleep((unsigned)seconds);
    memcpy(strstr(map, "\"-----\""), "\"last\" ", 7);
    return msync(map, sizeof(row) - 1, MS_SYNC) || munmap(map, sizeof(row) - 1);
}

static int takeover(const char *dir, const char *go)
{
    char ready[4096];
    int w, r, again, other;

    if (chdir(dir))
        return 1;
    w = open("train.jsonl", O_RDWR | O_CREAT | O_EXCL, 0644);
    if (w < 0 || !fill(w, 3))
        return 1;
    r = open("train.jsonl", O_RDONLY);
    snprintf(ready, sizeof(ready), "%s.ready", go);
    close(open(ready, O_WRONLY | O_CREAT, 0644));
    while (access(go, F_OK))
        usleep(20000);
    memset(block, 'N', MB);
    again = open("train.jsonl", O_RDONLY);
    other = open("train.jsonl", O_WRONLY);
    if (pwrite(w, block, MB, MB) == MB && holds(r, MB, 'N') && again >= 0 && holds(again, MB, 'N') &&
        other >= 0 && pwrite(other, block, 4096, 0) == 4096 && holds(r, 0, 'N') && fsync(w) == 0)
        puts("PASS");
    else
        printf("FAIL %d %d: %s\n", again, other, strerror(errno));
    return 0;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc == 4 && strcmp(argv[1], "mapped") == 0)
        return mapped(argv[2], atoi(argv[3]));
    if (argc == 4 && strcmp(argv[1], "takeover") == 0)
        return takeover(argv[2], argv[3]);
    if (argc != 3 || strcmp(argv[1], "calls") || chdir(argv[2]))
        return 2;
    sharing();
    lengths();
    direct();
    names();
    return 0;
}
