/*
 * The map of node ids in memory; nodes.h says what it promises, nodes_db.c keeps it.
 *
 * Three hash tables, all under n->mu: nodes by id, backed nodes by key, names by (parent, name).  A node
 * lists its names (the current one first) and, if it is a folder, the names in it.  Every change is also
 * appended to a queue in the order in which it happened; the flusher takes the whole queue and writes it in
 * one transaction (db_mu).
 *
 * A node without a name is an orphan: unlinked while the kernel knows it.  It leaves the database at once and
 * memory with the kernel's last FORGET.
 */
#include "fsd/nodes.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "fsd/change_log.h"
#include "fsd/nodes_db.h"
#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"

enum { ID_BLOCK = 1 << 16, FIRST_BUCKETS = 1024, MAX_DEPTH = 4096, RANDOMS = 64 };

struct name {
    struct name *hash_next;
    struct name *other_prev, *other_next; /* names of the same node */
    struct name *prev, *next;             /* names in the same folder */
    struct node *node, *folder;           /* folder->info.id is the parent */
    uint64_t hash;
    char text[];
};

struct node {
    struct node *id_next, *key_next;
    struct node_info info; /* .parent is kept up to date with names */
    struct name *names;
    struct name *children;
    uint64_t lookups; /* the kernel's, as far as this process counted them */
    uint64_t uses;    /* open handles */
    unsigned leaving; /* names that are about to go */
    bool maybe_known; /* the kernel may have looked it up before this process began */
    bool stored;      /* in the database, or queued for it */
};

struct nodes {
    pthread_mutex_t mu; /* protects everything down to the next mutex */
    struct node **by_id, **by_key;
    struct name **by_name;
    size_t id_buckets, key_buckets, name_buckets; /* powers of two */
    size_t node_count, key_count, name_count;
    uint64_t generation, next_id, end_id; /* ids [next_id, end_id) are reserved */
    uint64_t spare_id, spare_end;         /* the block after that, once reserved */
    uint32_t random[RANDOMS];             /* for new_generation, each used once */
    unsigned randoms;
    struct nodes_change *queue, **queue_end;
    struct change_log *log; /* the queue, and what is just being written; NULL: none */
    bool unlogged;          /* a change is in the queue only: a killed process loses it */
    bool taken_over;
    bool stop;
    pthread_cond_t wake; /* the flusher */

    pthread_mutex_t db_mu; /* protects db, undurable; taken before mu */
    struct nodes_db *db;
    bool undurable; /* batches were written without fsync */

    pthread_t flusher;
};

/* ---- hashing ---- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31;
    x *= 0x9e3779b97f4a7c15u;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9u;
    return x ^ x >> 32;
}

static uint64_t name_hash(uint64_t parent, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u ^ mix(parent);

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return mix(h);
}

static uint64_t key_hash(const struct node_key *k)
{
    return mix(k->ino ^ mix(k->dev) ^ mix((uint64_t)k->btime));
}

static bool key_equal(const struct node_key *a, const struct node_key *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->btime == b->btime;
}

static bool key_present(const struct node_key *k)
{
    return k->dev || k->ino;
}

static void grow_by_id(struct nodes *n)
{
    size_t buckets = n->id_buckets * 2;
    struct node **t = calloc(buckets, sizeof(struct node *)), *p, *next;

    if (!t)
        return; /* longer chains still work */
    for (size_t i = 0; i < n->id_buckets; i++)
        for (p = n->by_id[i]; p; p = next) {
            struct node **slot = &t[mix(p->info.id) & (buckets - 1)];
            next = p->id_next;
            p->id_next = *slot;
            *slot = p;
        }
    free(n->by_id);
    n->by_id = t;
    n->id_buckets = buckets;
}

static void grow_by_key(struct nodes *n)
{
    size_t buckets = n->key_buckets * 2;
    struct node **t = calloc(buckets, sizeof(struct node *)), *p, *next;

    if (!t)
        return;
    for (size_t i = 0; i < n->key_buckets; i++)
        for (p = n->by_key[i]; p; p = next) {
            struct node **slot = &t[key_hash(&p->info.key) & (buckets - 1)];
            next = p->key_next;
            p->key_next = *slot;
            *slot = p;
        }
    free(n->by_key);
    n->by_key = t;
    n->key_buckets = buckets;
}

static void grow_by_name(struct nodes *n)
{
    size_t buckets = n->name_buckets * 2;
    struct name **t = calloc(buckets, sizeof(struct name *)), *p, *next;

    if (!t)
        return;
    for (size_t i = 0; i < n->name_buckets; i++)
        for (p = n->by_name[i]; p; p = next) {
            struct name **slot = &t[p->hash & (buckets - 1)];
            next = p->hash_next;
            p->hash_next = *slot;
            *slot = p;
        }
    free(n->by_name);
    n->by_name = t;
    n->name_buckets = buckets;
}

/* ---- the tables (mu held) ---- */

static struct node *node_by_id(struct nodes *n, uint64_t id)
{
    struct node *p = n->by_id[mix(id) & (n->id_buckets - 1)];

    while (p && p->info.id != id)
        p = p->id_next;
    return p;
}

static struct node *node_by_key(struct nodes *n, const struct node_key *key)
{
    struct node *p = n->by_key[key_hash(key) & (n->key_buckets - 1)];

    while (p && !key_equal(&p->info.key, key))
        p = p->key_next;
    return p;
}

static struct name *find_name(struct nodes *n, uint64_t parent, const char *text)
{
    uint64_t hash = name_hash(parent, text);
    struct name *p = n->by_name[hash & (n->name_buckets - 1)];

    while (p && (p->hash != hash || p->folder->info.id != parent || strcmp(p->text, text) != 0))
        p = p->hash_next;
    return p;
}

static void remove_key(struct nodes *n, struct node *node)
{
    struct node **p = &n->by_key[key_hash(&node->info.key) & (n->key_buckets - 1)];

    if (!key_present(&node->info.key))
        return;
    while (*p && *p != node)
        p = &(*p)->key_next;
    if (*p) {
        *p = node->key_next;
        n->key_count--;
    }
    node->info.key = (struct node_key){0};
}

static struct node *add_node(struct nodes *n, const struct node_info *info)
{
    struct node *node = calloc(1, sizeof(*node));
    struct node **slot;

    if (!node)
        return NULL;
    node->info = *info;
    node->info.parent = 0;
    slot = &n->by_id[mix(info->id) & (n->id_buckets - 1)];
    node->id_next = *slot;
    *slot = node;
    if (++n->node_count > n->id_buckets)
        grow_by_id(n);
    if (key_present(&info->key)) {
        slot = &n->by_key[key_hash(&info->key) & (n->key_buckets - 1)];
        node->key_next = *slot;
        *slot = node;
        if (++n->key_count > n->key_buckets)
            grow_by_key(n);
    }
    return node;
}

static void free_node(struct nodes *n, struct node *node)
{
    struct node **p = &n->by_id[mix(node->info.id) & (n->id_buckets - 1)];

    remove_key(n, node);
    while (*p != node)
        p = &(*p)->id_next;
    *p = node->id_next;
    n->node_count--;
    free(node);
}

static void unlink_child(struct name *name)
{
    if (name->prev)
        name->prev->next = name->next;
    else
        name->folder->children = name->next;
    if (name->next)
        name->next->prev = name->prev;
}

static void unhash_name(struct nodes *n, struct name *name)
{
    struct name **p = &n->by_name[name->hash & (n->name_buckets - 1)];

    while (*p != name)
        p = &(*p)->hash_next;
    *p = name->hash_next;
    n->name_count--;
}

/* Both ways, because a file may have 65,000 names, and everybody waits for mu. */
static void unlink_other(struct name *name)
{
    if (name->other_prev)
        name->other_prev->other_next = name->other_next;
    else
        name->node->names = name->other_next;
    if (name->other_next)
        name->other_next->other_prev = name->other_prev;
}

static void link_other(struct node *node, struct name *name)
{
    name->other_prev = NULL;
    name->other_next = node->names;
    if (name->other_next)
        name->other_next->other_prev = name;
    node->names = name;
}

static void set_parent(struct node *node)
{
    node->info.parent = node->names ? node->names->folder->info.id : 0;
}

static struct name *add_name(struct nodes *n, struct node *folder, const char *text, struct node *node)
{
    size_t len = strlen(text);
    struct name *name = calloc(1, sizeof(*name) + len + 1), **slot;

    if (!name)
        return NULL;
    memcpy(name->text, text, len + 1);
    name->hash = name_hash(folder->info.id, text);
    name->folder = folder;
    name->node = node;
    slot = &n->by_name[name->hash & (n->name_buckets - 1)];
    name->hash_next = *slot;
    *slot = name;
    name->next = folder->children;
    if (name->next)
        name->next->prev = name;
    folder->children = name;
    link_other(node, name);
    set_parent(node);
    if (++n->name_count > n->name_buckets)
        grow_by_name(n);
    return name;
}

/* The name that was used last is the one that a path is made of. */
static void make_current(struct node *node, struct name *name)
{
    if (node->names == name)
        return;
    unlink_other(name);
    link_other(node, name);
    set_parent(node);
}

/* ---- the queue of changes (mu held) ---- */

static void queue_change(struct nodes *n, enum nodes_op op, const struct node_info *info, uint64_t parent,
                         const char *name)
{
    size_t len = name ? strlen(name) : 0;
    struct nodes_change *c = malloc(sizeof(*c) + len + 1);

    if (!c) {
        log_line("out of memory: a node id may be lost at the next restart");
        n->unlogged = true;
        return;
    }
    *c = (struct nodes_change){.op = op, .node = *info, .parent = parent};
    memcpy(c->name, name ? name : "", len + 1);
    if (!n->queue)
        pthread_cond_signal(&n->wake);
    *n->queue_end = c;
    n->queue_end = &c->next;
    n->unlogged |= !change_log_add(n->log, c);
}

static void store_node(struct nodes *n, struct node *node)
{
    node->stored = true;
    queue_change(n, NOP_PUT_NODE, &node->info, 0, NULL);
}

static void unstore_node(struct nodes *n, struct node *node)
{
    if (node->stored)
        queue_change(n, NOP_DROP_NODE, &node->info, 0, NULL);
    node->stored = false;
}

static void free_changes(struct nodes_change *c)
{
    while (c) {
        struct nodes_change *next = c->next;
        free(c);
        c = next;
    }
}

static bool is_known(const struct node *node)
{
    return node->lookups || node->uses || node->maybe_known;
}

/* Take the name away; the node and what is below it go with its last one. */
static void remove_name(struct nodes *n, struct name *name)
{
    struct node *node = name->node;

    queue_change(n, NOP_DROP_NAME, &node->info, name->folder->info.id, name->text);
    unlink_other(name);
    unhash_name(n, name);
    unlink_child(name);
    free(name);
    set_parent(node);
    if (node->names || node->info.id == NODE_ROOT)
        return;
    while (node->children)
        remove_name(n, node->children);
    unstore_node(n, node);
    if (!is_known(node))
        free_node(n, node);
}

/* ---- ids ---- */

/* Reserve the next block, if it is not there (db_mu held, mu not). */
static int reserve_block(struct nodes *n, struct dtx_err *e)
{
    uint64_t first;
    bool have;
    int rc;

    pthread_mutex_lock(&n->mu);
    have = n->spare_end != 0;
    pthread_mutex_unlock(&n->mu);
    if (have)
        return 0;
    rc = nodes_db_reserve(n->db, ID_BLOCK, &first, e);
    if (rc)
        return rc;
    pthread_mutex_lock(&n->mu);
    n->spare_id = first;
    n->spare_end = first + ID_BLOCK;
    pthread_mutex_unlock(&n->mu);
    return 0;
}

/* A new id; 0 when the reserve is used up and the database cannot be written (mu held). */
static uint64_t take_id(struct nodes *n)
{
    if (n->next_id == n->end_id) {
        n->next_id = n->spare_id;
        n->end_id = n->spare_end;
        n->spare_id = n->spare_end = 0;
        pthread_cond_signal(&n->wake);
    }
    return n->next_id == n->end_id ? 0 : n->next_id++;
}

/* ---- flushing ---- */

static int write_queue(struct nodes *n, bool durable, struct dtx_err *e)
{
    struct nodes_change *list, **end;
    int rc;

    pthread_mutex_lock(&n->db_mu);
    pthread_mutex_lock(&n->mu);
    list = n->queue;
    end = n->queue_end;
    n->queue = NULL;
    n->queue_end = &n->queue;
    change_log_take(n->log);
    pthread_mutex_unlock(&n->mu);
    rc = reserve_block(n, e);
    if (rc == 0 && (list || (durable && n->undurable)))
        rc = nodes_db_apply(n->db, list, durable, e);
    if (rc == 0 && (list || durable))
        n->undurable = !durable;
    pthread_mutex_lock(&n->mu);
    if (rc && list) { /* put them back in front, in their order */
        *end = n->queue;
        if (n->queue_end == &n->queue)
            n->queue_end = end;
        n->queue = list;
        list = NULL;
    } else if (!rc) {
        change_log_committed(n->log);
        n->unlogged &= n->queue != NULL;
    }
    pthread_mutex_unlock(&n->mu);
    free_changes(list);
    pthread_mutex_unlock(&n->db_mu);
    return rc;
}

static void *flusher_main(void *arg)
{
    struct nodes *n = arg;
    bool failing = false, stop;

    do {
        struct dtx_err e;
        struct timespec until;
        int64_t at;

        pthread_mutex_lock(&n->mu);
        while (!n->stop && !n->queue && n->spare_end)
            pthread_cond_wait(&n->wake, &n->mu);
        at = clock_mono_ns() + (failing ? 5000 : NODES_FLUSH_MS) * (int64_t)1000000;
        until = (struct timespec){at / 1000000000, at % 1000000000};
        while (!n->stop && (failing || n->spare_end) && pthread_cond_timedwait(&n->wake, &n->mu, &until) == 0)
            ; /* let a batch gather */
        stop = n->stop;
        pthread_mutex_unlock(&n->mu);
        if (stop)
            break;
        if (write_queue(n, false, &e)) {
            if (!failing)
                log_line("cannot write node ids (kept in memory, tried again every 5 s): %s", e.msg);
            failing = true;
        } else {
            failing = false;
        }
    } while (!stop);
    return NULL;
}

int nodes_sync(struct nodes *n, struct dtx_err *e)
{
    return write_queue(n, true, e);
}

/* ---- opening and closing ---- */

static int load_node(void *arg, const struct node_info *info)
{
    struct nodes *n = arg;
    struct node *node;

    if (info->id == 0 || node_by_id(n, info->id))
        return 0;
    node = add_node(n, info);
    if (!node)
        return -ENOMEM;
    node->stored = true;
    node->maybe_known = n->taken_over;
    return 0;
}

static int load_name(void *arg, uint64_t parent, const char *text, uint64_t id)
{
    struct nodes *n = arg;
    struct node *folder = node_by_id(n, parent), *node = node_by_id(n, id);

    if (!folder || !node || node == folder || id == NODE_ROOT || find_name(n, parent, text))
        return 0; /* left by a batch that was cut: harmless */
    return add_name(n, folder, text, node) ? 0 : -ENOMEM;
}

/* Its generation is 0: the kernel takes no other, and complains where an NFS server looks up "..". */
static int make_root(struct nodes *n)
{
    struct node_info root = {.id = NODE_ROOT, .owner = NODE_GENERATED, .is_dir = true};

    return add_node(n, &root) ? 0 : -ENOMEM;
}

static int alloc_tables(struct nodes *n)
{
    n->id_buckets = n->key_buckets = n->name_buckets = FIRST_BUCKETS;
    n->by_id = calloc(FIRST_BUCKETS, sizeof(struct node *));
    n->by_key = calloc(FIRST_BUCKETS, sizeof(struct node *));
    n->by_name = calloc(FIRST_BUCKETS, sizeof(struct name *));
    return n->by_id && n->by_key && n->by_name ? 0 : -ENOMEM;
}

static void free_nodes(struct nodes *n)
{
    for (size_t i = 0; n->by_name && i < n->name_buckets; i++)
        for (struct name *p = n->by_name[i], *next; p; p = next) {
            next = p->hash_next;
            free(p);
        }
    for (size_t i = 0; n->by_id && i < n->id_buckets; i++)
        for (struct node *p = n->by_id[i], *next; p; p = next) {
            next = p->id_next;
            free(p);
        }
    free(n->by_id);
    free(n->by_key);
    free(n->by_name);
    free_changes(n->queue);
    nodes_db_close(n->db);
    pthread_cond_destroy(&n->wake);
    pthread_mutex_destroy(&n->mu);
    pthread_mutex_destroy(&n->db_mu);
    free(n);
}

/* What a process before had no time to write. */
static int apply_log(struct nodes *n, struct dtx_err *e)
{
    struct nodes_change *list;
    int rc = change_log_read(n->log, &list);

    if (rc)
        dtx_fail(e, rc, "the changes of node ids that the dtxd before left cannot be read");
    else if (list)
        rc = nodes_db_apply(n->db, list, false, e);
    free_changes(list);
    if (!rc)
        change_log_clear(n->log);
    return rc;
}

static int load_all(struct nodes *n, const char *path, struct dtx_err *e)
{
    uint64_t first;
    int rc = alloc_tables(n) || make_root(n) ? dtx_fail(e, -ENOMEM, "out of memory") : 0;

    if (!rc)
        rc = nodes_db_open(path, &n->db, &n->generation, e);
    if (!rc && n->log)
        rc = apply_log(n, e);
    if (!rc)
        rc = nodes_db_load(n->db, load_node, load_name, n, e);
    if (!rc)
        rc = nodes_db_reserve(n->db, ID_BLOCK, &first, e);
    if (rc)
        return rc;
    n->next_id = first;
    n->end_id = first + ID_BLOCK;
    return reserve_block(n, e);
}

int nodes_open(const char *db_path, struct change_log *log, bool taken_over, struct nodes **out,
               struct dtx_err *e)
{
    struct nodes *n = calloc(1, sizeof(*n));
    pthread_condattr_t attr;
    int rc;

    if (!n)
        return dtx_fail(e, -ENOMEM, "out of memory");
    n->queue_end = &n->queue;
    n->log = log;
    n->taken_over = taken_over;
    pthread_mutex_init(&n->mu, NULL);
    pthread_mutex_init(&n->db_mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&n->wake, &attr);
    pthread_condattr_destroy(&attr);
    rc = load_all(n, db_path, e);
    if (!rc && pthread_create(&n->flusher, NULL, flusher_main, n))
        rc = dtx_fail(e, -EAGAIN, "cannot start a thread");
    if (rc) {
        free_nodes(n);
        return rc;
    }
    *out = n;
    return 0;
}

void nodes_close(struct nodes *n)
{
    struct dtx_err e;

    if (!n)
        return;
    pthread_mutex_lock(&n->mu);
    n->stop = true;
    pthread_cond_signal(&n->wake);
    pthread_mutex_unlock(&n->mu);
    pthread_join(n->flusher, NULL);
    if (nodes_sync(n, &e))
        log_line("node ids of the last moments are lost: %s", e.msg);
    free_nodes(n);
}

/* ---- what callers use ---- */

/* An NFS server hands (id, generation) out as a handle, and takes one from whoever sends it, past the modes
 * of the folders above.  Ids count up, so the generation is what cannot be guessed. */
static uint64_t new_generation(struct nodes *n)
{
    uint32_t random;

    if (!n->randoms && getrandom(n->random, sizeof(n->random), GRND_NONBLOCK) == (ssize_t)sizeof(n->random))
        n->randoms = RANDOMS;
    random = n->randoms ? n->random[--n->randoms] : 0;
    return random ? random : n->generation;
}

/* The node that `what` is, or a new one (mu held). */
static int node_for(struct nodes *n, const struct node_info *what, struct name *old, struct node **out)
{
    struct node_info info = *what;

    if (key_present(&what->key))
        *out = node_by_key(n, &what->key);
    else
        *out = old && !key_present(&old->node->info.key) && old->node->info.is_dir == what->is_dir ? old->node
                                                                                                   : NULL;
    if (*out)
        return 0;
    info.id = take_id(n);
    info.generation = new_generation(n);
    if (info.id == 0)
        return -ENOSPC;
    *out = add_node(n, &info);
    return *out ? 0 : -ENOMEM;
}

/* (folder, text) means node from now on (mu held). */
static int give_name(struct nodes *n, struct node *folder, const char *text, struct node *node,
                     struct name *old)
{
    struct name *name;

    if (old && old->node == node) {
        make_current(node, old);
        return 0;
    }
    if (old)
        remove_name(n, old);
    name = add_name(n, folder, text, node);
    if (!name)
        return -ENOMEM;
    if (!node->stored)
        store_node(n, node);
    queue_change(n, NOP_PUT_NAME, &node->info, folder->info.id, text);
    while (node->info.is_dir &&
           name->other_next) /* a folder has one name: it was renamed behind the mount's back */
        remove_name(n, name->other_next);
    return 0;
}

static bool is_below(const struct node *node, const struct node *folder)
{
    for (int depth = 0; node && depth < MAX_DEPTH; depth++) {
        if (node == folder)
            return true;
        node = node->names ? node->names->folder : NULL;
    }
    return false;
}

static int bind_locked(struct nodes *n, uint64_t parent, const char *text, const struct node_info *what,
                       bool count, struct node_info *out)
{
    struct node *folder = node_by_id(n, parent), *node;
    struct name *old;
    int rc;

    if (!folder || (!folder->names && parent != NODE_ROOT))
        return -ESTALE;
    old = find_name(n, parent, text);
    rc = node_for(n, what, old, &node);
    if (rc)
        return rc;
    if (node->info.is_dir && is_below(folder, node))
        return -ELOOP; /* a bind mount of a folder into itself */
    node->lookups++;   /* keeps it while its names change */
    rc = give_name(n, folder, text, node, old);
    if (!rc && node->info.owner != what->owner) {
        node->info.owner = what->owner;
        store_node(n, node);
    }
    *out = node->info;
    if (!count || rc)
        node->lookups--;
    if (rc && !node->names && !is_known(node))
        free_node(n, node);
    return rc;
}

int nodes_bind(struct nodes *n, uint64_t parent, const char *name, const struct node_info *what, bool count,
               struct node_info *out)
{
    int rc;

    pthread_mutex_lock(&n->mu);
    rc = bind_locked(n, parent, name, what, count, out);
    pthread_mutex_unlock(&n->mu);
    return rc;
}

int nodes_get(struct nodes *n, uint64_t id, struct node_info *out)
{
    struct node *node;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node)
        *out = node->info;
    pthread_mutex_unlock(&n->mu);
    return node ? 0 : -ESTALE;
}

int nodes_find(struct nodes *n, uint64_t parent, const char *name, struct node_info *out)
{
    struct name *p;

    pthread_mutex_lock(&n->mu);
    p = find_name(n, parent, name);
    if (p)
        *out = p->node->info;
    pthread_mutex_unlock(&n->mu);
    return p ? 0 : -ENOENT;
}

int nodes_name(struct nodes *n, uint64_t id, unsigned k, uint64_t *parent, struct buf *name)
{
    struct node *node;
    struct name *p = NULL;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node)
        for (p = node->names; p && k; k--)
            p = p->other_next;
    if (p) {
        *parent = p->folder->info.id;
        buf_adds(name, p->text);
    }
    pthread_mutex_unlock(&n->mu);
    if (!node)
        return -ESTALE;
    return p ? (name->failed ? -ENOMEM : 0) : -ENOENT;
}

static int path_locked(struct nodes *n, const struct node *node, struct buf *path)
{
    const char *part[MAX_DEPTH];
    int depth = 0;

    for (; node && node->info.id != NODE_ROOT; node = node->names->folder) {
        if (!node->names)
            return -ESTALE;
        if (depth == MAX_DEPTH)
            return -ENAMETOOLONG;
        part[depth++] = node->names->text;
    }
    while (depth--) {
        buf_adds(path, part[depth]);
        if (depth)
            buf_addc(path, '/');
    }
    return node ? 0 : -ESTALE;
}

int nodes_path(struct nodes *n, uint64_t id, struct buf *path)
{
    int rc;

    pthread_mutex_lock(&n->mu);
    rc = path_locked(n, node_by_id(n, id), path);
    pthread_mutex_unlock(&n->mu);
    return rc ? rc : path->failed ? -ENOMEM : 0;
}

void nodes_unbind(struct nodes *n, uint64_t parent, const char *name)
{
    struct name *p;

    pthread_mutex_lock(&n->mu);
    p = find_name(n, parent, name);
    if (p)
        remove_name(n, p);
    pthread_mutex_unlock(&n->mu);
}

/* mu held */
static void move_name(struct nodes *n, struct name *name, struct node *folder, const char *text)
{
    struct node *node = name->node;

    node->lookups++; /* keeps it while it has no name */
    if (add_name(n, folder, text, node))
        queue_change(n, NOP_PUT_NAME, &node->info, folder->info.id, text);
    if (node->names != name) /* else no memory: it keeps the old name until the next lookup */
        remove_name(n, name);
    node->lookups--;
}

void nodes_rename(struct nodes *n, uint64_t parent, const char *name, uint64_t newparent, const char *newname)
{
    struct name *from, *over;
    struct node *folder;

    pthread_mutex_lock(&n->mu);
    from = find_name(n, parent, name);
    over = find_name(n, newparent, newname);
    folder = node_by_id(n, newparent);
    if (from && over && from->node == over->node) {
        ; /* two names of one file: rename(2) does nothing */
    } else {
        if (over)
            remove_name(n, over);
        if (from && folder)
            move_name(n, from, folder, newname);
    }
    pthread_mutex_unlock(&n->mu);
}

void nodes_exchange(struct nodes *n, uint64_t parent, const char *name, uint64_t newparent,
                    const char *newname)
{
    struct name *a, *b;

    pthread_mutex_lock(&n->mu);
    a = find_name(n, parent, name);
    b = find_name(n, newparent, newname);
    if (a && b && a->node != b->node) {
        struct node *one = a->node, *two = b->node, *fa = a->folder, *fb = b->folder;

        one->lookups++;
        two->lookups++;
        if (add_name(n, fb, newname, one) && add_name(n, fa, name, two)) {
            remove_name(n, a);
            remove_name(n, b);
            queue_change(n, NOP_PUT_NAME, &one->info, fb->info.id, newname);
            queue_change(n, NOP_PUT_NAME, &two->info, fa->info.id, name);
            if (!one->stored)
                store_node(n, one);
            if (!two->stored)
                store_node(n, two);
        }
        one->lookups--;
        two->lookups--;
    } else { /* one of them was never looked up: lookups will tell */
        if (a)
            remove_name(n, a);
        if (b)
            remove_name(n, b);
    }
    pthread_mutex_unlock(&n->mu);
}

int nodes_restore(struct nodes *n, const struct node_info *info)
{
    struct node *node;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, info->id);
    if (!node)
        node = add_node(n, info);
    if (node)
        node->maybe_known = true;
    pthread_mutex_unlock(&n->mu);
    return node ? 0 : -ENOMEM;
}

/* Is a node unknown to the kernel now?  Then one without a name goes (mu held). */
static bool settle(struct nodes *n, struct node *node)
{
    if (node && is_known(node))
        return false;
    if (node && !node->names && node->info.id != NODE_ROOT)
        free_node(n, node);
    return true;
}

void nodes_use(struct nodes *n, uint64_t id)
{
    struct node *node;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node)
        node->uses++;
    pthread_mutex_unlock(&n->mu);
}

bool nodes_unuse(struct nodes *n, uint64_t id)
{
    struct node *node;
    bool gone;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node && node->uses)
        node->uses--;
    gone = settle(n, node);
    pthread_mutex_unlock(&n->mu);
    return gone;
}

int nodes_count_lookup(struct nodes *n, uint64_t id)
{
    struct node *node;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node)
        node->lookups++;
    pthread_mutex_unlock(&n->mu);
    return node ? 0 : -ESTALE;
}

bool nodes_forget(struct nodes *n, uint64_t id, uint64_t count)
{
    struct node *node;
    bool gone;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node && node->lookups <= count) {
        node->lookups = 0;
        node->maybe_known = false; /* it forgets all at once, also what we did not count */
    } else if (node) {
        node->lookups -= count;
    }
    gone = settle(n, node);
    pthread_mutex_unlock(&n->mu);
    return gone;
}

bool nodes_is_open(struct nodes *n, uint64_t id)
{
    struct node *node;
    bool open;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    open = node && node->uses;
    pthread_mutex_unlock(&n->mu);
    return open;
}

bool nodes_leave(struct nodes *n, uint64_t id)
{
    struct node *node;
    bool open;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    open = node && node->uses;
    if (node)
        node->leaving++;
    pthread_mutex_unlock(&n->mu);
    return open;
}

void nodes_stay(struct nodes *n, uint64_t id)
{
    struct node *node;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    if (node && node->leaving)
        node->leaving--;
    pthread_mutex_unlock(&n->mu);
}

bool nodes_stays(struct nodes *n, uint64_t id)
{
    struct node *node;
    bool stays;
    int depth = 0;

    pthread_mutex_lock(&n->mu);
    stays = !n->unlogged;
    for (node = node_by_id(n, id); stays && (!node || node->info.id != NODE_ROOT);) {
        stays = node && node->names && !node->leaving && ++depth < MAX_DEPTH;
        node = stays ? node->names->folder : NULL;
    }
    pthread_mutex_unlock(&n->mu);
    return stays;
}

bool nodes_below(struct nodes *n, uint64_t id, uint64_t folder)
{
    struct node *above;
    bool below;

    pthread_mutex_lock(&n->mu);
    above = node_by_id(n, folder);
    below = above && is_below(node_by_id(n, id), above);
    pthread_mutex_unlock(&n->mu);
    return below;
}

bool nodes_known(struct nodes *n, uint64_t id)
{
    struct node *node;
    bool known;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, id);
    known = node && is_known(node);
    pthread_mutex_unlock(&n->mu);
    return known;
}

size_t nodes_own_children(struct nodes *n, uint64_t folder, struct node_info *out, size_t max)
{
    struct node *node;
    size_t k = 0;

    pthread_mutex_lock(&n->mu);
    node = node_by_id(n, folder);
    for (struct name *p = node ? node->children : NULL; p && k < max; p = p->next)
        if (p->node->info.owner != NODE_USER && is_known(p->node))
            out[k++] = p->node->info;
    pthread_mutex_unlock(&n->mu);
    return k;
}

uint64_t nodes_count(struct nodes *n)
{
    uint64_t count;

    pthread_mutex_lock(&n->mu);
    count = n->node_count;
    pthread_mutex_unlock(&n->mu);
    return count;
}
