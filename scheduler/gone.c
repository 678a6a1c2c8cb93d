/* Experiments that were deleted while their spec's file stayed: the stamp that it had, so that it is no new
 * one. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

static struct gone **slot_of(const struct sched *s, const char *name)
{
    struct gone **p = (struct gone **)&s->gone[name_hash(OBJ_EXPERIMENT, name) % GONE_BUCKETS];

    while (*p && strcmp((*p)->name, name) != 0)
        p = &(*p)->next;
    return p;
}

int gone_note(struct sched *s, const char *name, const char *stamp)
{
    struct gone **p = slot_of(s, name);

    if (!*p) {
        *p = calloc(1, sizeof(**p));
        if (!*p)
            return -ENOMEM;
        snprintf((*p)->name, sizeof((*p)->name), "%s", name);
    }
    snprintf((*p)->stamp, sizeof((*p)->stamp), "%s", stamp);
    return 0;
}

const char *gone_stamp(const struct sched *s, const char *name)
{
    const struct gone *g = *slot_of(s, name);

    return g ? g->stamp : NULL;
}

/* Nothing is there that could be taken for a new one. */
static bool is_needless(const struct sched *s, const char *name)
{
    char path[PATH_MAX];
    struct stat st;

    snprintf(path, sizeof(path), "experiments/%s.json", name);
    return fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) && errno == ENOENT;
}

static void remove_from(struct gone **p)
{
    struct gone *g = *p;

    *p = g->next;
    free(g);
}

/* What was asked for is forgotten in one transaction; a disk that cannot take that has it another time. */
static void forget(struct sched *s, struct gone *needless)
{
    struct dtx_err e = {0};
    int rc;

    slow_begin(s);
    rc = fd_sync_path(s->tree_fd, "experiments", &e); /* that the specs went must outlive a power cut too */
    if (rc == 0)
        rc = catalog_begin(s->catalog, &e);
    for (const struct gone *g = needless; rc == 0 && g; g = g->next)
        rc = catalog_del_gone(s->catalog, g->name, &e);
    rc = rc ? rc : catalog_commit(s->catalog, &e);
    if (rc)
        catalog_rollback(s->catalog);
    slow_end(s);
    if (rc)
        log_line("deleted experiments are remembered on: %s", e.msg);
    while (needless)
        remove_from(&needless);
}

void gone_sweep(struct sched *s)
{
    struct gone *needless = NULL, *g;

    for (size_t i = 0; i < GONE_BUCKETS; i++)
        for (struct gone **p = &s->gone[i]; (g = *p);) {
            if (!experiment_find(s, g->name) && !experiment_find_deleted(s, g->name))
                experiment_trash(s, g->name);
            if (!is_needless(s, g->name)) {
                p = &g->next;
                continue;
            }
            *p = g->next;
            g->next = needless;
            needless = g;
        }
    if (needless)
        forget(s, needless);
}

void gone_free(struct sched *s)
{
    for (size_t i = 0; i < GONE_BUCKETS; i++)
        while (s->gone[i])
            remove_from(&s->gone[i]);
}
