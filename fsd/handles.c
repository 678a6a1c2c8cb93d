#include "fsd/handles.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/clock.h"

enum { BUCKETS = 1024 };

struct handles {
    struct nodes *nodes;
    struct kept *kept;
    pthread_mutex_t mu; /* protects what follows */
    struct handle *table[BUCKETS];
    uint64_t next;
};

/* What the keeper keeps of a handle beside its descriptor. */
struct kept_handle {
    struct node_info node;
    uint64_t unique;
    int64_t mtime_ns; /* of the text */
    uint32_t kind;
    uint32_t uid, gid, pid;
    uint8_t writer, remote, unused, rdwr;
    uint32_t pass_mode, backing_id;
};
_Static_assert(sizeof(struct kept_handle) <= KEEPER_DATA, "room in a message");

struct handles *handles_new(struct nodes *nodes, struct kept *kept)
{
    struct handles *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->nodes = nodes;
    t->kept = kept;
    pthread_mutex_init(&t->mu, NULL);
    t->next = kept->shared->starts << 32 | 1;
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

static struct handle *make_handle(const struct handle_spec *spec)
{
    struct handle *h = calloc(1, sizeof(*h));

    if (!h) {
        if (spec->fd >= 0)
            close(spec->fd);
        snapshot_put(spec->snapshot);
        return NULL;
    }
    h->kind = spec->kind;
    h->id = spec->node.id;
    h->fd = spec->fd;
    h->snapshot = spec->snapshot;
    h->writer = spec->writer;
    h->remote = spec->remote;
    h->rdwr = spec->rdwr;
    h->node = spec->node;
    h->who = spec->who;
    h->taken_ms = clock_mono_ns() / 1000000;
    listing_init(&h->list);
    pthread_mutex_init(&h->mu, NULL);
    return h;
}

/* fh 0: the next number. */
static void insert(struct handles *t, struct handle *h, uint64_t fh)
{
    pthread_mutex_lock(&t->mu);
    h->fh = fh ? fh : t->next++;
    h->next = t->table[h->fh % BUCKETS];
    t->table[h->fh % BUCKETS] = h;
    pthread_mutex_unlock(&t->mu);
}

void handles_keep(struct handles *t, const struct handle *h)
{
    struct kept_handle k = {.node = h->node,
                            .unique = h->unique,
                            .mtime_ns = h->snapshot ? h->snapshot->mtime_ns : 0,
                            .kind = (uint32_t)h->kind,
                            .uid = h->who.uid,
                            .gid = h->who.gid,
                            .pid = (uint32_t)h->who.pid,
                            .writer = h->writer,
                            .remote = h->remote,
                            .rdwr = h->rdwr,
                            .pass_mode = (uint32_t)h->pass.mode,
                            .backing_id = h->pass.backing_id};

    kept_put(t->kept, KEEPER_HANDLE, h->fh, &k, sizeof(k), h->snapshot ? snapshot_fd(h->snapshot) : h->fd);
}

struct handle *handles_add(struct handles *t, const struct handle_spec *spec)
{
    struct handle *h = make_handle(spec);

    if (!h)
        return NULL;
    h->unique = kept_unique();
    insert(t, h, 0);
    if (h->kind == HANDLE_DIR)
        return h;
    nodes_use(t->nodes, h->id);
    if (h->kind != HANDLE_FILE)
        handles_keep(t, h);
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

struct handle *handles_get_dir(struct handles *t, uint64_t fh, uint64_t id)
{
    struct handle_spec spec = {.kind = HANDLE_DIR, .node.id = id, .fd = -1};
    struct handle *h = handles_get(t, fh), *again;

    if (h)
        return h->kind == HANDLE_DIR ? h : NULL;
    h = make_handle(&spec);
    if (!h)
        return NULL;
    pthread_mutex_lock(&t->mu);
    for (again = t->table[fh % BUCKETS]; again && again->fh != fh;)
        again = again->next;
    if (!again) {
        h->fh = fh;
        h->next = t->table[fh % BUCKETS];
        t->table[fh % BUCKETS] = h;
    }
    pthread_mutex_unlock(&t->mu);
    if (again)
        free_handle(h); /* another thread was faster */
    return again ? again : h;
}

struct handle *handles_of_request(struct handles *t, uint64_t unique)
{
    struct handle *h = NULL;

    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; !h && i < BUCKETS; i++)
        for (h = t->table[i]; h && (!h->restored || h->unique != unique);)
            h = h->next;
    pthread_mutex_unlock(&t->mu);
    return h;
}

uint64_t handles_remove(struct handles *t, uint64_t fh)
{
    struct handle **p, *h;
    uint64_t gone = 0;

    pthread_mutex_lock(&t->mu);
    for (p = &t->table[fh % BUCKETS]; *p && (*p)->fh != fh;)
        p = &(*p)->next;
    h = *p;
    if (h)
        *p = h->next;
    pthread_mutex_unlock(&t->mu);
    if (!h)
        return 0;
    if (h->kind != HANDLE_DIR) {
        kept_drop(t->kept, KEEPER_HANDLE, fh);
        if (nodes_unuse(t->nodes, h->id))
            gone = h->id;
    }
    free_handle(h);
    return gone;
}

int handles_restore(struct handles *t, struct keeper_item *item, struct handle **out, struct caller *who)
{
    struct handle_spec spec = {.fd = -1};
    struct kept_handle k;
    int rc;

    memcpy(&k, item->data, sizeof(k));
    rc = nodes_restore(t->nodes, &k.node);
    if (rc)
        return rc;
    spec.kind = (enum handle_kind)k.kind;
    spec.node = k.node;
    spec.writer = k.writer;
    spec.remote = k.remote;
    spec.rdwr = k.rdwr;
    spec.who = (struct caller){k.uid, k.gid, (pid_t)k.pid};
    if (spec.kind == HANDLE_FILE) {
        spec.fd = item->fd;
        item->fd = -1;
    } else if (item->fd >= 0) {
        spec.snapshot = snapshot_of_fd(item->fd, k.mtime_ns);
    }
    *who = spec.who;
    *out = make_handle(&spec);
    if (!*out)
        return -ENOMEM;
    (*out)->unique = k.unique;
    (*out)->pass = (struct pass_grant){(enum pass_mode)k.pass_mode, k.backing_id};
    (*out)->restored = true;
    (*out)->judged = k.writer;
    insert(t, *out, item->key);
    nodes_use(t->nodes, k.node.id);
    return 0;
}

/* Room for one more; false: no memory, and *v is as it was. */
static bool grow(struct stat **v, size_t n, size_t *room)
{
    struct stat *more;

    if (n < *room)
        return true;
    more = realloc(*v, (2 * n + 16) * sizeof(*more));
    if (!more)
        return false;
    *v = more;
    *room = 2 * n + 16;
    return true;
}

size_t handles_unlinked(struct handles *t, struct stat **out)
{
    size_t n = 0, room = 0;
    struct stat st;

    *out = NULL;
    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct handle *h = t->table[i]; h; h = h->next)
            if (h->kind == HANDLE_FILE && fstat(h->fd, &st) == 0 && st.st_nlink == 0 && grow(out, n, &room))
                (*out)[n++] = st; /* without memory the next scan tries again */
    pthread_mutex_unlock(&t->mu);
    return n;
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

char *handles_take_path(struct handles *t, struct handle *h)
{
    char *path;

    pthread_mutex_lock(&t->mu);
    path = h->path;
    h->path = NULL;
    pthread_mutex_unlock(&t->mu);
    return path;
}

unsigned handles_named(struct handles *t, uint64_t id, const char *path)
{
    unsigned n = 0;

    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct handle *h = t->table[i]; h; h = h->next)
            if (h->id == id && h->writer && !h->path && (h->path = strdup(path)))
                n++;
    pthread_mutex_unlock(&t->mu);
    return n;
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
