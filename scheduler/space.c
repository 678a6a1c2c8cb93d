/* Space as the scheduler sees it: what the file system counts, and what is said where there is none. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

/* The log says it so often of one file at most: a program that goes on writing must not fill it. */
static const int64_t tell_every = 2 * SECOND_NS;

void sched_on_usage(struct sched *s, size_t (*fn)(void *arg, struct sched_usage *out, size_t max), void *arg)
{
    pthread_mutex_lock(&s->mutex);
    s->usage = fn;
    s->usage_arg = arg;
    pthread_mutex_unlock(&s->mutex);
}

struct sched_usage *space_usage(struct sched *s, size_t *n)
{
    struct sched_usage *rows = s->usage ? calloc(MAX_OWNERS, sizeof(*rows)) : NULL;

    *n = rows ? s->usage(s->usage_arg, rows, MAX_OWNERS) : 0;
    return rows;
}

bool space_used_up(struct sched *s, uid_t uid, char *words, size_t n)
{
    int64_t quota = settings_quota(&s->settings, uid);
    struct sched_usage *rows;
    bool up = false;
    size_t count;

    if (quota < 0)
        return false;
    rows = space_usage(s, &count);
    for (size_t i = 0; i < count; i++)
        if (rows[i].uid == uid && rows[i].bytes >= quota) {
            char a[24], b[24];
            up = true;
            snprintf(words, n, "waiting for: space: your quota of %s is used up (%s): remove something",
                     text_size(quota, a), text_size(rows[i].bytes, b));
        }
    free(rows);
    return up;
}

/* Only what is being received can be cut off: a refused append leaves a READY object as it is. */
static void mark_cut_off(struct sched *s, const char *path, const char *words)
{
    struct place p;
    struct intake *i = place_of(path, &p) ? intake_find(s, p.root) : NULL;

    if (!i || !i->dirty)
        return;
    set_text(&i->no_space, words);
    if (!i->cut_off)
        set_text(&i->cut_off, path);
    sched_changed(s, "%s", i->path);
}

void sched_no_space(struct sched *s, const char *path, const struct caller *who, const char *words)
{
    int64_t now = clock_mono_ns();

    pthread_mutex_lock(&s->mutex);
    mark_cut_off(s, path, words);
    if (now - s->told_no_space > tell_every || strncmp(s->told_path, path, sizeof(s->told_path) - 1) != 0) {
        s->told_no_space = now;
        s->told_path[0] = '\0';
        strncat(s->told_path, path, sizeof(s->told_path) - 1);
        /* the object, not what is in it: everybody reads the log */
        size_t kind = strcspn(path, "/"), n = kind + (path[kind] == '/');
        n += strcspn(path + n, "/");
        log_line("uid %u cannot write %.*s: %s", (unsigned)who->uid, (int)n, path, words);
    }
    pthread_mutex_unlock(&s->mutex);
}
