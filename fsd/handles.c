#include "fsd/handles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/clock.h"

enum { BUCKETS = 1024 };

struct handles {
    pthread_mutex_t mu; /* protects what follows */
    struct handle *table[BUCKETS];
    uint64_t next;
};

struct handles *handles_new(void)
{
    struct handles *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    pthread_mutex_init(&t->mu, NULL);
    t->next = (uint64_t)(clock_wall_ns() / 1000000000) << 32 | 1;
    return t;
}

static void free_handle(struct handle *h)
{
    if (h->fd >= 0)
        close(h->fd);
    free(h->path);
    snapshot_put(h->snapshot);
    listing_release(&h->list);
    pthread_mutex_destroy(&h->mu);
    free(h);
}

void handles_free(struct handles *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct handle *h = t->table[i], *next; h; h = next) {
            next = h->next;
            free_handle(h);
        }
    pthread_mutex_destroy(&t->mu);
    free(t);
}

struct handle *handles_add(struct handles *t, enum handle_kind kind, uint64_t id, int fd,
                           struct snapshot *snapshot)
{
    struct handle *h = calloc(1, sizeof(*h));

    if (!h) {
        if (fd >= 0)
            close(fd);
        snapshot_put(snapshot);
        return NULL;
    }
    h->kind = kind;
    h->id = id;
    h->fd = fd;
    h->snapshot = snapshot;
    h->taken_ms = clock_mono_ns() / 1000000;
    listing_init(&h->list);
    pthread_mutex_init(&h->mu, NULL);
    pthread_mutex_lock(&t->mu);
    h->fh = t->next++;
    h->next = t->table[h->fh % BUCKETS];
    t->table[h->fh % BUCKETS] = h;
    pthread_mutex_unlock(&t->mu);
    return h;
}

struct handle *handles_get(struct handles *t, uint64_t fh)
{
    struct handle *h;

    pthread_mutex_lock(&t->mu);
    for (h = t->table[fh % BUCKETS]; h && h->fh != fh;)
        h = h->next;
    pthread_mutex_unlock(&t->mu);
    return h;
}

void handles_remove(struct handles *t, uint64_t fh)
{
    struct handle **p, *h;

    pthread_mutex_lock(&t->mu);
    for (p = &t->table[fh % BUCKETS]; *p && (*p)->fh != fh;)
        p = &(*p)->next;
    h = *p;
    if (h)
        *p = h->next;
    pthread_mutex_unlock(&t->mu);
    if (h)
        free_handle(h);
}

bool handles_writer_path(struct handles *t, const struct handle *h, struct buf *path)
{
    bool writer;

    pthread_mutex_lock(&t->mu);
    writer = h->path != NULL;
    if (writer)
        buf_adds(path, h->path);
    pthread_mutex_unlock(&t->mu);
    return writer;
}

void handles_set_path(struct handles *t, struct handle *h, char *path)
{
    pthread_mutex_lock(&t->mu);
    h->path = path;
    pthread_mutex_unlock(&t->mu);
}

/* What follows `folder` in path ("" or "/..."), or NULL: it is not there. */
static const char *below(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/') ? path + n : NULL;
}

static void move_one(struct handle *h, const char *from, const char *to, handles_moved_fn fn, void *arg)
{
    const char *rest = below(h->path, from);
    char *was = h->path, *now = NULL;

    if (!rest || asprintf(&now, "%s%s", to, rest) < 0)
        return;
    h->path = now;
    fn(arg, h, was);
    free(was);
}

void handles_move(struct handles *t, const char *from, const char *to, bool exchange, handles_moved_fn fn,
                  void *arg)
{
    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct handle *h = t->table[i]; h; h = h->next) {
            if (h->path && below(h->path, from))
                move_one(h, from, to, fn, arg);
            else if (h->path && exchange)
                move_one(h, to, from, fn, arg);
        }
    pthread_mutex_unlock(&t->mu);
}
