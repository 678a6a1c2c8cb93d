#include "fsd/handles.h"

#include <stdlib.h>
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
