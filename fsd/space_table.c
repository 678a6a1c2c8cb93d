#include "fsd/space_table.h"

#include <stdlib.h>
#include <string.h>

#include "fsd/space.h"

enum { OBJECT_BUCKETS = 4096, FIRST_BUCKETS = 4096 };

int space_table_init(struct space_table *t)
{
    *t = (struct space_table){.inode_buckets = FIRST_BUCKETS, .now = 1};
    t->inodes = calloc(FIRST_BUCKETS, sizeof(*t->inodes));
    t->objects = calloc(OBJECT_BUCKETS, sizeof(*t->objects));
    return t->inodes && t->objects ? 0 : -ENOMEM;
}

void space_table_release(struct space_table *t)
{
    if (t->inodes && t->objects)
        space_sweep(t, t->now + 1); /* frees the objects too */
    while (t->owners) {
        struct space_owner *o = t->owners;
        t->owners = o->next;
        free(o);
    }
    free(t->inodes);
    free(t->objects);
}

struct space_owner *space_owner_of(struct space_table *t, uid_t uid)
{
    struct space_owner *o;

    for (o = t->owners; o; o = o->next)
        if (o->uid == uid)
            return o;
    o = calloc(1, sizeof(*o));
    if (!o)
        return NULL;
    o->uid = uid;
    o->next = t->owners;
    t->owners = o;
    t->new_owner = true;
    return o;
}

/* ---- objects ---- */

/* Length of the part of a path that names the object: two names, three below models/ and plugins/.  0: none.
 */
static size_t root_length(const char *path)
{
    int names = strncmp(path, "models/", 7) == 0 || strncmp(path, "plugins/", 8) == 0 ? 3 : 2;
    const char *p = path;

    for (; names > 0; names--) {
        size_t n = strcspn(p, "/");
        if (n == 0)
            return 0;
        p += n;
        if (names > 1 && *p++ != '/')
            return 0;
    }
    return (size_t)(p - path);
}

static struct space_object **object_slot(struct space_table *t, const char *path, size_t n)
{
    struct space_object **p;
    uint32_t h = 2166136261u;

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)path[i]) * 16777619u;
    for (p = &t->objects[h % OBJECT_BUCKETS]; *p; p = &(*p)->next)
        if (strncmp((*p)->path, path, n) == 0 && (*p)->path[n] == '\0')
            break;
    return p;
}

static struct space_object *object_of(struct space_table *t, const char *path)
{
    size_t n = root_length(path);
    struct space_object **slot, *o;

    if (n == 0)
        return NULL;
    slot = object_slot(t, path, n);
    if (*slot)
        return *slot;
    o = calloc(1, sizeof(*o) + n + 1);
    if (o)
        memcpy(o->path, path, n);
    return *slot = o;
}

static void object_drop(struct space_table *t, struct space_object *o)
{
    struct space_object **slot = object_slot(t, o->path, strlen(o->path));

    *slot = o->next;
    free(o);
}

/* ---- inodes ---- */

static size_t bucket_of(size_t buckets, uint64_t dev, uint64_t ino)
{
    uint64_t h = (ino ^ dev << 40) * 0x9e3779b97f4a7c15ull;

    return (size_t)(h >> 32) & (buckets - 1);
}

static struct space_inode **inode_slot(struct space_table *t, uint64_t dev, uint64_t ino)
{
    struct space_inode **p = &t->inodes[bucket_of(t->inode_buckets, dev, ino)];

    while (*p && ((*p)->ino != ino || (*p)->dev != dev))
        p = &(*p)->next;
    return p;
}

/* Twice as many buckets; without the memory for it, longer chains. */
static void widen(struct space_table *t)
{
    size_t buckets = t->inode_buckets * 2;
    struct space_inode **wide = calloc(buckets, sizeof(*wide));

    if (!wide)
        return;
    for (size_t i = 0; i < t->inode_buckets; i++)
        for (struct space_inode *n = t->inodes[i], *next; n; n = next) {
            struct space_inode **p = &wide[bucket_of(buckets, n->dev, n->ino)];
            next = n->next;
            n->next = *p;
            *p = n;
        }
    free(t->inodes);
    t->inodes = wide;
    t->inode_buckets = buckets;
}

/* Add an inode to its owner's and object's sums, or take it out of them. */
static void add(struct space_table *t, struct space_inode *n, int sign)
{
    int64_t bytes = sign * n->bytes;

    t->bytes += bytes;
    n->owner->bytes += bytes;
    n->owner->files += sign;
    if (!n->object)
        return;
    n->object->bytes += bytes;
    n->object->files += sign;
    n->object->owner = n->owner;
}

static int64_t charge(const struct stat *st)
{
    int64_t bytes = (int64_t)st->st_blocks * 512;

    return bytes < SPACE_INODE ? SPACE_INODE : bytes;
}

void space_count(struct space_table *t, const struct stat *st, uid_t uid, const char *path)
{
    struct space_owner *owner = space_owner_of(t, uid);
    struct space_inode **slot = inode_slot(t, st->st_dev, st->st_ino), *n = *slot;
    struct space_object *was = n ? n->object : NULL;

    if (!owner)
        return;
    if (n) {
        add(t, n, -1);
    } else {
        n = calloc(1, sizeof(*n));
        if (!n)
            return; /* the next scan tries again */
        n->dev = st->st_dev;
        n->ino = st->st_ino;
        *slot = n;
        if (++t->ninodes > t->inode_buckets)
            widen(t);
    }
    n->bytes = charge(st);
    n->owner = owner;
    n->seen = t->now;
    if (path)
        n->object = object_of(t, path);
    add(t, n, 1);
    if (was && was != n->object && was->files == 0)
        object_drop(t, was);
}

static void inode_drop(struct space_table *t, struct space_inode **slot)
{
    struct space_inode *n = *slot;

    add(t, n, -1);
    if (n->object && n->object->files == 0)
        object_drop(t, n->object);
    *slot = n->next;
    t->ninodes--;
    free(n);
}

void space_discount(struct space_table *t, const struct stat *st)
{
    struct space_inode **slot = inode_slot(t, st->st_dev, st->st_ino);

    if (*slot)
        inode_drop(t, slot);
}

void space_sweep(struct space_table *t, unsigned oldest)
{
    for (size_t i = 0; i < t->inode_buckets; i++)
        for (struct space_inode **p = &t->inodes[i]; *p;) {
            if ((*p)->seen < oldest)
                inode_drop(t, p);
            else
                p = &(*p)->next;
        }
}

const struct space_object *space_largest(const struct space_table *t, const struct space_owner *o)
{
    const struct space_object *best = NULL;

    for (size_t i = 0; i < OBJECT_BUCKETS; i++)
        for (const struct space_object *p = t->objects[i]; p; p = p->next)
            if (p->owner == o && (!best || p->bytes > best->bytes))
                best = p;
    return best;
}
