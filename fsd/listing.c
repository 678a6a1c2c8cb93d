#include "fsd/listing.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COOKIE_DOT = 1, COOKIE_DOTDOT = 2, COOKIE_FIRST = 3 };

void listing_init(struct listing *l)
{
    *l = (struct listing){0};
}

void listing_release(struct listing *l)
{
    for (size_t i = 0; i < l->n; i++)
        free(l->entry[i].name);
    free(l->entry);
    listing_init(l);
}

/* Positive and below 2^63 - 1, so that a last cookie + 1 is one too. */
static int64_t cookie_of(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;

    if (strcmp(name, ".") == 0)
        return COOKIE_DOT;
    if (strcmp(name, "..") == 0)
        return COOKIE_DOTDOT;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    h ^= h >> 32;
    h *= 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
    h >>= 2;
    return (int64_t)(h < COOKIE_FIRST ? h + COOKIE_FIRST : h);
}

void listing_add(struct listing *l, const char *name)
{
    struct listing_entry *e;

    if (l->failed)
        return;
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 64;
        e = realloc(l->entry, cap * sizeof(*e));
        if (!e) {
            l->failed = 1;
            return;
        }
        l->entry = e;
        l->cap = cap;
    }
    e = &l->entry[l->n];
    e->cookie = cookie_of(name);
    e->name = strdup(name);
    if (e->name)
        l->n++;
    else
        l->failed = 1;
}

static int compare(const void *a, const void *b)
{
    const struct listing_entry *x = a, *y = b;

    if (x->cookie != y->cookie)
        return x->cookie < y->cookie ? -1 : 1;
    return strcmp(x->name, y->name);
}

int listing_finish(struct listing *l)
{
    size_t kept = 0;

    if (l->n)
        qsort(l->entry, l->n, sizeof(l->entry[0]), compare);
    for (size_t i = 0; i < l->n; i++) {
        if (kept && strcmp(l->entry[kept - 1].name, l->entry[i].name) == 0)
            free(l->entry[i].name);
        else
            l->entry[kept++] = l->entry[i];
    }
    l->n = kept;
    return l->failed ? -ENOMEM : 0;
}

size_t listing_seek(const struct listing *l, int64_t after)
{
    size_t lo = 0, hi = l->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (l->entry[mid].cookie > after)
            hi = mid;
        else
            lo = mid + 1;
    }
    return lo;
}

int listing_add_folder(struct listing *l, int path_fd)
{
    int fd = openat(path_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *e;
    int rc;

    if (!d) {
        rc = -errno;
        if (fd >= 0)
            close(fd);
        return rc;
    }
    errno = 0;
    while ((e = readdir(d)))
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
            listing_add(l, e->d_name);
    rc = -errno;
    closedir(d);
    return rc;
}
