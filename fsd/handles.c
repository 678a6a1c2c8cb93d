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
    bool reopens;
    pthread_mutex_t mu; /* protects what follows, and kept_shared.file */
    struct handle *table[BUCKETS];
    uint64_t next;
    uint16_t spare[KEPT_FILES]; /* free places in kept_shared.file, used from the end on */
    size_t spares;
};

/* What a successor is told of a handle. */
struct kept_handle {
    struct node_info node;
    uint64_t unique;
    int64_t mtime_ns; /* of the text */
    uint32_t kind;
    uint32_t uid, gid, pid;
    uint8_t writer, remote, has_text, rdwr;
    uint32_t pass_mode, backing_id;
    int32_t flags;
};
_Static_assert(sizeof(struct kept_handle) <= KEEPER_DATA, "room in a message");
_Static_assert(sizeof(struct kept_handle) <= KEPT_DATA, "room in the shared memory");

struct handles *handles_new(struct nodes *nodes, struct kept *kept, bool reopens)
{
    struct handles *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->nodes = nodes;
    t->kept = kept;
    t->reopens = reopens;
    pthread_mutex_init(&t->mu, NULL);
    t->next = kept->shared->starts << 32 | 1;
    for (size_t i = KEPT_FILES; i--;)
        if (!kept->shared->file[i].fh)
            t->spare[t->spares++] = (uint16_t)i;
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
    h->flags = spec->flags;
    h->kept_at = -1;
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

/* ---- for a successor ---- */

static struct kept_handle describe(const struct handle *h)
{
    return (struct kept_handle){.node = h->node,
                                .unique = h->unique,
                                .mtime_ns = h->snapshot ? h->snapshot->mtime_ns : 0,
                                .kind = (uint32_t)h->kind,
                                .uid = h->who.uid,
                                .gid = h->who.gid,
                                .pid = (uint32_t)h->who.pid,
                                .writer = h->writer,
                                .remote = h->remote,
                                .has_text = h->snapshot != NULL,
                                .rdwr = h->rdwr,
                                .pass_mode = (uint32_t)h->pass.mode,
                                .backing_id = h->pass.backing_id,
                                .flags = h->flags};
}

static void give_to_keeper(struct handles *t, const struct handle *h)
{
    struct kept_handle k = describe(h);

    kept_put(t->kept, KEEPER_HANDLE, h->fh, &k, sizeof(k), h->snapshot ? snapshot_fd(h->snapshot) : h->fd);
}

/* mu held.  False: there is no room. */
static bool note(struct handles *t, struct handle *h)
{
    struct kept_shared *shared = t->kept->shared;
    struct kept_handle k = describe(h);
    struct kept_file *p;

    if (!t->spares)
        return false;
    h->kept_at = t->spare[--t->spares];
    p = &shared->file[h->kept_at];
    memcpy(p->data, &k, sizeof(k));
    p->text = h->snapshot ? (uint32_t)h->snapshot->size : 0;
    if (h->snapshot)
        memcpy(shared->text[h->kept_at], h->snapshot->data, h->snapshot->size);
    __atomic_store_n(&p->fh, h->fh, __ATOMIC_RELEASE);
    return true;
}

/* mu held */
static void free_note(struct handles *t, int at)
{
    __atomic_store_n(&t->kept->shared->file[at].fh, 0, __ATOMIC_RELEASE);
    t->spare[t->spares++] = (uint16_t)at;
}

/* DTX's own files are replaced and removed by others than us: their descriptors go to the keeper at once. */
static bool may_note(const struct handles *t, const struct handle *h)
{
    if (h->kind == HANDLE_FILE)
        return t->reopens && h->node.owner == NODE_USER;
    return !h->snapshot || h->snapshot->size <= KEPT_TEXT;
}

/* mu held */
static void give_away(struct handles *t, struct handle *h)
{
    if (h->kept_at < 0)
        return;
    give_to_keeper(t, h); /* before the note goes: a death in between leaves both */
    free_note(t, h->kept_at);
    h->kept_at = -1;
}

void handles_keep(struct handles *t, struct handle *h)
{
    bool noted = false;

    if (may_note(t, h)) {
        pthread_mutex_lock(&t->mu);
        noted = note(t, h);
        pthread_mutex_unlock(&t->mu);
    }
    if (!noted) {
        give_to_keeper(t, h);
    } else if (h->kind == HANDLE_FILE && !nodes_stays(t->nodes, h->id)) {
        /* who takes the name away has looked at the open files before, or sees this one */
        pthread_mutex_lock(&t->mu);
        give_away(t, h);
        pthread_mutex_unlock(&t->mu);
    }
}

void handles_give_away(struct handles *t, uint64_t id, bool is_dir)
{
    pthread_mutex_lock(&t->mu);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct handle *h = t->table[i]; h; h = h->next)
            if (h->kind == HANDLE_FILE && h->kept_at >= 0 &&
                (h->id == id || (is_dir && nodes_below(t->nodes, h->id, id))))
                give_away(t, h);
    pthread_mutex_unlock(&t->mu);
}

/* ---- handles ---- */

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
    if (h && h->kept_at >= 0)
        free_note(t, h->kept_at);
    pthread_mutex_unlock(&t->mu);
    if (!h)
        return 0;
    if (h->kind != HANDLE_DIR) {
        if (h->kept_at < 0)
            kept_drop(t->kept, KEEPER_HANDLE, fh);
        if (nodes_unuse(t->nodes, h->id))
            gone = h->id;
    }
    free_handle(h);
    return gone;
}

/* ---- taking over ---- */

/* The handle that k describes; fd and snapshot are taken over. */
static struct handle *restore(struct handles *t, uint64_t fh, const struct kept_handle *k, int fd,
                              struct snapshot *snapshot)
{
    struct handle_spec spec = {.kind = (enum handle_kind)k->kind,
                               .node = k->node,
                               .fd = fd,
                               .flags = k->flags,
                               .snapshot = snapshot,
                               .writer = k->writer,
                               .remote = k->remote,
                               .rdwr = k->rdwr,
                               .who = {k->uid, k->gid, (pid_t)k->pid}};
    struct handle *h = make_handle(&spec);

    if (!h)
        return NULL;
    h->unique = k->unique;
    h->pass = (struct pass_grant){(enum pass_mode)k->pass_mode, k->backing_id};
    h->restored = true;
    h->judged = k->writer;
    insert(t, h, fh);
    nodes_use(t->nodes, k->node.id);
    return h;
}

int handles_restore(struct handles *t, struct keeper_item *item, struct handle **out, struct caller *who)
{
    struct snapshot *snapshot = NULL;
    struct kept_handle k;
    int fd = -1, rc;

    memcpy(&k, item->data, sizeof(k));
    rc = nodes_restore(t->nodes, &k.node);
    if (rc)
        return rc;
    if (k.kind == HANDLE_FILE) {
        fd = item->fd;
        item->fd = -1;
    } else if (item->fd >= 0) {
        snapshot = snapshot_of_fd(item->fd, k.mtime_ns);
    }
    *out = restore(t, item->key, &k, fd, snapshot);
    if (!*out)
        return -ENOMEM;
    *who = (*out)->who;
    return 0;
}

static int check_kept(struct handles *t, const struct kept_file *p, const struct kept_handle *k)
{
    if (!p->fh || p->text > KEPT_TEXT ||
        (k->kind != HANDLE_FILE && k->kind != HANDLE_TEXT && k->kind != HANDLE_CONTROL))
        return -EPROTO;
    return handles_get(t, p->fh) ? -EEXIST : 0; /* the keeper has it as well */
}

/* Is note i one that an open file goes by, rather than a second one of it? */
static bool in_use(struct handles *t, size_t i)
{
    const struct handle *h = handles_get(t, t->kept->shared->file[i].fh);

    return h && h->kept_at == (int)i;
}

int handles_restore_kept(struct handles *t, size_t i, handles_reopen_fn reopen, void *arg,
                         struct handle **out, struct caller *who)
{
    struct kept_shared *shared = t->kept->shared;
    struct kept_file *p = &shared->file[i];
    struct snapshot *snapshot = NULL;
    struct kept_handle k;
    int fd = -1, rc;

    memcpy(&k, p->data, sizeof(k));
    rc = check_kept(t, p, &k);
    if (!rc)
        rc = nodes_restore(t->nodes, &k.node);
    if (!rc && k.kind == HANDLE_FILE)
        rc = fd = reopen(arg, k.node.id, k.flags);
    else if (!rc && k.has_text && !(snapshot = snapshot_of_text(shared->text[i], p->text, k.mtime_ns)))
        rc = -ENOMEM;
    if (rc >= 0) {
        *out = restore(t, p->fh, &k, fd, snapshot);
        rc = *out ? 0 : -ENOMEM;
    }
    if (rc) {
        if (p->fh && !in_use(t, i))
            free_note(t, (int)i);
        return rc;
    }
    (*out)->kept_at = (int)i;
    *who = (*out)->who;
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
