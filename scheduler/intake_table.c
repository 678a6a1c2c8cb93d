/*
 * Where the intakes are: found by path, and in one of two lists.  What the loop has something to do about,
 * now or when a time has come, is in s->intakes.  What is settled rests for a while, so that its echo by
 * inotify is known as such; of those there may be thousands, and nobody goes through them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "scheduler/internal.h"

static struct intake **slot_of(struct sched *s, const char *path)
{
    uint32_t h = 2166136261u; /* FNV-1a */

    for (const char *c = path; *c; c++)
        h = (h ^ (unsigned char)*c) * 16777619u;
    return &s->intake_by_path[(h ^ h >> 16) % INTAKE_BUCKETS];
}

void intakes_init(struct sched *s)
{
    TAILQ_INIT(&s->intakes);
    TAILQ_INIT(&s->resting);
}

struct intake *intake_find(struct sched *s, const char *path)
{
    struct intake *i = *slot_of(s, path);

    while (i && strcmp(i->path, path) != 0)
        i = i->hash_next;
    return i;
}

static void wake(struct sched *s, struct intake *i)
{
    if (!i->rests)
        return;
    TAILQ_REMOVE(&s->resting, i, list);
    TAILQ_INSERT_TAIL(&s->intakes, i, list);
    i->rests = false;
}

void intake_rest(struct sched *s, struct intake *i)
{
    TAILQ_REMOVE(&s->intakes, i, list);
    TAILQ_INSERT_TAIL(&s->resting, i, list);
    i->rests = true;
}

/* Names that differ only in how their letters are composed are one object's name.  Behind the mount's back
 * there may be files of two such names: the second is nobody's. */
static bool is_twin(struct sched *s, const struct place *p)
{
    const struct experiment *x = p->kind == OBJ_EXPERIMENT ? experiment_find(s, p->name) : NULL;
    const struct object *o = p->kind == OBJ_EXPERIMENT ? NULL : object_find(s, p->kind, p->name);
    char path[PATH_MAX];
    struct stat st;

    if (x)
        return strcmp(x->name, p->name) != 0;
    if (!o || strcmp(o->name, p->name) == 0)
        return false;
    if (o->kind == OBJ_SERVICE)
        return service_still_there(s, o);
    object_path(o, path, sizeof(path));
    return fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* NULL: no memory, or not to be taken in. */
struct intake *intake_get(struct sched *s, const struct place *p, int64_t now)
{
    struct intake *i = intake_find(s, p->root), **slot;

    if (i) {
        wake(s, i);
        return i;
    }
    i = is_twin(s, p) ? NULL : calloc(1, sizeof(*i));
    if (!i)
        return NULL;
    snprintf(i->path, sizeof(i->path), "%s", p->root);
    snprintf(i->name, sizeof(i->name), "%s", p->name);
    i->kind = p->kind;
    i->folder = p->folder;
    i->last = now;
    i->last_drop = -3600 * SECOND_NS; /* none yet */
    slot = slot_of(s, i->path);
    i->hash_next = *slot;
    *slot = i;
    TAILQ_INSERT_TAIL(&s->intakes, i, list);
    return i;
}

static void forget(struct sched *s, struct intake *i)
{
    struct intake **slot = slot_of(s, i->path);

    while (*slot != i)
        slot = &(*slot)->hash_next;
    *slot = i->hash_next;
    TAILQ_REMOVE(i->rests ? &s->resting : &s->intakes, i, list);
    free(i->no_space);
    free(i->cut_off);
    free(i);
}

void intakes_forget(struct sched *s, int64_t before)
{
    struct intake *i;

    while ((i = TAILQ_FIRST(&s->resting)) && i->last <= before)
        forget(s, i);
}

void intakes_free(struct sched *s)
{
    struct intake *i;

    while ((i = TAILQ_FIRST(&s->intakes)) || (i = TAILQ_FIRST(&s->resting)))
        forget(s, i);
}
