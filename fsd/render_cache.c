#include "fsd/render_cache.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"

enum { BUCKETS = 4096 };

struct entry {
    struct entry *next; /* protected by the cache's mu */
    uint64_t id;
    unsigned users; /* threads inside; protected by the cache's mu */

    pthread_mutex_t mu;   /* protects what follows; taken after the cache's mu is dropped */
    struct snapshot *now; /* NULL: never made, or dropped when idle */
    uint64_t hash;        /* of the last text, also when it was dropped */
    size_t size;
    int64_t mtime_ns;   /* 0: never made */
    int64_t changed_ms; /* monotonic: when the content changed */
    int64_t checked_ms; /* when the maker was last called */
    int64_t kernel_ms;  /* until when the kernel may hold its attributes */
    int64_t used_ms;
};

struct render_cache {
    pthread_mutex_t mu; /* protects the table */
    struct entry *table[BUCKETS];
};

static int64_t now_ms(void)
{
    return clock_mono_ns() / 1000000;
}

static uint64_t text_hash(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)p[i]) * 0x100000001b3u;
    return h;
}

struct render_cache *render_cache_new(void)
{
    struct render_cache *c = calloc(1, sizeof(*c));

    if (c)
        pthread_mutex_init(&c->mu, NULL);
    return c;
}

struct snapshot *snapshot_ref(struct snapshot *s)
{
    if (s)
        __atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
    return s;
}

void snapshot_put(struct snapshot *s)
{
    if (s && __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        if (s->fd >= 0)
            close(s->fd);
        free(s->data);
        free(s);
    }
}

int snapshot_fd(struct snapshot *s)
{
    int fd = __atomic_load_n(&s->fd, __ATOMIC_ACQUIRE), none = -1;

    if (fd >= 0)
        return fd;
    fd = memfd_create("dtxd-text", MFD_CLOEXEC);
    if (fd >= 0 && fd_write_all(fd, s->data, s->size)) {
        close(fd);
        return -1;
    }
    if (fd >= 0 &&
        !__atomic_compare_exchange_n(&s->fd, &none, fd, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        close(fd); /* another thread was faster */
        fd = none;
    }
    return fd;
}

/* With room for n bytes. */
static struct snapshot *new_snapshot(size_t n, int64_t mtime_ns)
{
    struct snapshot *s = calloc(1, sizeof(*s));

    if (!s || !(s->data = malloc(n + 1))) {
        free(s);
        return NULL;
    }
    s->data[n] = '\0';
    s->size = n;
    s->mtime_ns = mtime_ns;
    s->refs = 1;
    s->fd = -1;
    return s;
}

struct snapshot *snapshot_of_fd(int fd, int64_t mtime_ns)
{
    struct snapshot *s;
    struct stat st;

    if (fstat(fd, &st) || st.st_size > RENDER_MAX || !(s = new_snapshot((size_t)st.st_size, mtime_ns)))
        return NULL;
    if (fd_pread_all(fd, s->data, s->size, 0)) {
        snapshot_put(s);
        return NULL;
    }
    return s;
}

struct snapshot *snapshot_of_text(const void *text, size_t n, int64_t mtime_ns)
{
    struct snapshot *s = new_snapshot(n, mtime_ns);

    if (s)
        memcpy(s->data, text, n);
    return s;
}

static void free_entry(struct entry *p)
{
    snapshot_put(p->now);
    pthread_mutex_destroy(&p->mu);
    free(p);
}

void render_cache_free(struct render_cache *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct entry *p = c->table[i], *next; p; p = next) {
            next = p->next;
            free_entry(p);
        }
    pthread_mutex_destroy(&c->mu);
    free(c);
}

static struct entry **slot_of(struct render_cache *c, uint64_t id)
{
    return &c->table[(id * 0x9e3779b97f4a7c15u) >> 52];
}

/* The entry, made if need be, kept from being freed until leave(). */
static struct entry *enter(struct render_cache *c, uint64_t id)
{
    struct entry *p;

    pthread_mutex_lock(&c->mu);
    for (p = *slot_of(c, id); p && p->id != id;)
        p = p->next;
    if (!p && (p = calloc(1, sizeof(*p)))) {
        p->id = id;
        pthread_mutex_init(&p->mu, NULL);
        p->next = *slot_of(c, id);
        *slot_of(c, id) = p;
    }
    if (p)
        p->users++;
    pthread_mutex_unlock(&c->mu);
    if (p)
        pthread_mutex_lock(&p->mu);
    return p;
}

static void leave(struct render_cache *c, struct entry *p)
{
    pthread_mutex_unlock(&p->mu);
    pthread_mutex_lock(&c->mu);
    p->users--;
    pthread_mutex_unlock(&c->mu);
}

/* May the rendering be replaced now?  See the rules in render_cache.h. */
static bool may_advance(const struct entry *p, enum render_use use, int64_t now)
{
    if (!p->now)
        return true;
    if (now - p->changed_ms < RENDER_MIN_MS || now - p->checked_ms < RENDER_HOLD_MS)
        return false;
    return use == RENDER_FOR_ATTR || now > p->kernel_ms;
}

static void note_change(struct entry *p, int64_t now)
{
    int64_t wall = clock_wall_ns();

    p->mtime_ns = wall > p->mtime_ns ? wall : p->mtime_ns + 1000;
    p->changed_ms = now;
}

/* Make the text and, if it differs from the last, take it (p->mu held). */
static int advance(struct entry *p, render_fn make, void *arg, int64_t now)
{
    struct buf text = BUF_INIT;
    struct snapshot *s;
    int64_t mtime = 0;
    uint64_t hash;
    int rc = make(arg, &text, &mtime);

    if (!rc && (text.failed || text.len > RENDER_MAX))
        rc = text.failed ? -ENOMEM : -EFBIG;
    if (rc || !(s = calloc(1, sizeof(*s)))) {
        buf_release(&text);
        return rc ? rc : -ENOMEM;
    }
    p->checked_ms = now;
    hash = text_hash(text.p, text.len);
    if (p->now && hash == p->hash && text.len == p->size) {
        buf_release(&text);
        free(s);
        return 0;
    }
    if (p->mtime_ns == 0)
        p->mtime_ns = mtime > 0 ? mtime : clock_wall_ns();
    else if (hash != p->hash || text.len != p->size) /* else it was only dropped when idle */
        note_change(p, now);
    p->hash = hash;
    p->size = text.len;
    s->data = buf_detach(&text, &s->size);
    s->mtime_ns = p->mtime_ns;
    s->refs = 1;
    s->fd = -1;
    snapshot_put(p->now);
    p->now = s;
    return 0;
}

int render_cache_get(struct render_cache *c, uint64_t id, enum render_use use, render_fn make, void *arg,
                     struct snapshot **out)
{
    struct entry *p = enter(c, id);
    int64_t now = now_ms();
    int rc = 0;

    if (!p)
        return -ENOMEM;
    if (may_advance(p, use, now))
        rc = advance(p, make, arg, now);
    if (!rc) {
        p->used_ms = now;
        if (use == RENDER_FOR_ATTR)
            p->kernel_ms = now_ms() + RENDER_HOLD_MS + 20;
        *out = snapshot_ref(p->now);
    }
    leave(c, p);
    return rc;
}

struct snapshot *render_cache_last(struct render_cache *c, uint64_t id)
{
    struct entry *p = enter(c, id);
    struct snapshot *s;

    if (!p)
        return NULL;
    s = snapshot_ref(p->now);
    leave(c, p);
    return s;
}

void render_cache_tidy(struct render_cache *c)
{
    int64_t limit = now_ms() - RENDER_IDLE_MS;

    pthread_mutex_lock(&c->mu);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct entry *p = c->table[i]; p; p = p->next)
            if (p->users == 0 && p->now &&
                p->used_ms < limit) { /* no users: its lock is free, and stays so */
                snapshot_put(p->now);
                p->now = NULL;
            }
    pthread_mutex_unlock(&c->mu);
}

int64_t render_cache_checked(struct render_cache *c, uint64_t id)
{
    struct entry *p = enter(c, id);
    int64_t at;

    if (!p)
        return 0;
    at = p->now ? p->checked_ms : 0;
    leave(c, p);
    return at;
}

void render_cache_forget(struct render_cache *c, uint64_t id)
{
    struct entry **q, *p;

    pthread_mutex_lock(&c->mu);
    for (q = slot_of(c, id); *q && (*q)->id != id;)
        q = &(*q)->next;
    p = *q;
    if (p && p->users == 0)
        *q = p->next;
    else
        p = NULL;
    pthread_mutex_unlock(&c->mu);
    if (p)
        free_entry(p);
}
