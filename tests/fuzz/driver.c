/*
 * A main for fuzz targets that are built without libFuzzer: runs every file, and every file of every folder,
 * given.
 *
 *   fuzz_X [--random N SEED] FILE|FOLDER...
 *
 * With --random also N random changes of them, the same ones for the same seed.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { FUZZ_BYTES = 1 << 20, FUZZ_FILES = 10000 };

static struct buf inputs[FUZZ_FILES];
static size_t n_inputs;
static uint64_t state;

static void run(const uint8_t *data, size_t n)
{
    uint8_t *exact = malloc(n ? n : 1); /* of exactly that size, so that a sanitizer sees one byte too many */

    if (!exact)
        abort();
    if (n)
        memcpy(exact, data, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
}

static int add_file(int dirfd, const char *path)
{
    struct dtx_err e;
    struct buf *b = &inputs[n_inputs];

    if (n_inputs == FUZZ_FILES)
        return 0;
    if (fd_read_file(dirfd, path, FUZZ_BYTES, b, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return 1;
    }
    run((const uint8_t *)b->p, b->len);
    n_inputs++;
    return 0;
}

static int add_path(const char *path)
{
    struct stat st;
    struct dirent *ent;
    int bad = 0;
    DIR *d;

    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
        return add_file(AT_FDCWD, path);
    d = opendir(path);
    if (!d) {
        perror(path);
        return 1;
    }
    while ((ent = readdir(d)))
        if (ent->d_name[0] != '.')
            bad |= add_file(dirfd(d), ent->d_name);
    closedir(d);
    return bad;
}

static uint64_t random_below(uint64_t n)
{
    state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return n ? (z ^ (z >> 31)) % n : 0;
}

/* One change at a place in p (n bytes, room for n + 64); the new length. */
static size_t change(uint8_t *p, size_t n)
{
    static const uint8_t tempting[] = {0,   1,   0x7f, 0x80, 0xff, '"', '{', '[',
                                       '}', ']', ',',  '0',  '9',  '-', '\\'};
    size_t at = random_below(n + 1), len = 1 + random_below(16);

    switch (random_below(5)) {
    case 0: /* a bit */
        if (at < n)
            p[at] ^= (uint8_t)(1u << random_below(8));
        return n;
    case 1: /* a byte that matters somewhere */
        if (at < n)
            p[at] = tempting[random_below(sizeof(tempting))];
        return n;
    case 2: /* cut out */
        len = len > n - at ? n - at : len;
        memmove(p + at, p + at + len, n - at - len);
        return n - len;
    case 3: /* repeat */
        len = len > n - at ? n - at : len;
        memmove(p + at + len, p + at, n - at);
        return n + len;
    default: /* cut off */
        return random_below(16) ? n : at;
    }
}

static void run_random(long count)
{
    static uint8_t work[FUZZ_BYTES + 64 * 8];

    for (long i = 0; i < count && n_inputs; i++) {
        const struct buf *b = &inputs[random_below(n_inputs)];
        size_t n = b->len, changes = 1 + random_below(8);
        if (n)
            memcpy(work, b->p, n);
        for (size_t k = 0; k < changes; k++)
            n = change(work, n);
        run(work, n);
    }
}

int main(int argc, char **argv)
{
    long count = 0;
    int bad = 0, first = 1;

    if (argc > 3 && strcmp(argv[1], "--random") == 0) {
        count = strtol(argv[2], NULL, 10);
        state = strtoull(argv[3], NULL, 10);
        first = 4;
    }
    if (argc <= first) {
        fprintf(stderr, "usage: %s [--random N SEED] FILE|FOLDER...\n", argv[0]);
        return 2;
    }
    for (int i = first; i < argc; i++)
        bad |= add_path(argv[i]);
    run_random(count);
    printf("%s: %zu inputs, %ld random changes\n", argv[0], n_inputs, count);
    for (size_t i = 0; i < n_inputs; i++)
        buf_release(&inputs[i]);
    return bad;
}
