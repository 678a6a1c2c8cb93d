/*
 * Whose turn it is.  Workers are shared between owners, not between experiments or jobs: within a priority
 * the owner with the fewest jobs running goes first; of equals the one who was served least, in seconds of
 * running jobs.  So 200 jobs, or 200 experiments of one job, hold another owner's single job back only until
 * a job ends.
 *
 * Served time counts while an owner has jobs, as in a fair queue: who comes back after a pause begins where
 * the least served of those present stands, and can neither save time up nor has to make up for it.  It is
 * kept in memory: after a restart all begin equal.
 */
#include <stdlib.h>

#include "scheduler/internal.h"

int *count_of_owner(struct by_owner *b, uid_t uid)
{
    int i = 0, slots = sizeof(b->of) / sizeof(b->of[0]);

    while (i < b->owners && b->of[i].uid != uid)
        i++;
    if (i == b->owners && i < slots)
        b->of[b->owners++].uid = uid;
    return &b->of[i < slots ? i : slots - 1].n;
}

struct owner *fair_owner(struct fair *f, uid_t uid)
{
    struct owner *p;

    for (int i = 0; i < f->n; i++)
        if (f->v[i].uid == uid)
            return &f->v[i];
    if (f->n == f->cap) {
        p = realloc(f->v, (size_t)(f->cap * 2 + 8) * sizeof(*p));
        if (!p)
            return NULL;
        f->v = p;
        f->cap = f->cap * 2 + 8;
    }
    p = &f->v[f->n++];
    *p = (struct owner){.uid = uid};
    return p;
}

void fair_begin(struct fair *f, int64_t now)
{
    for (int i = 0; i < f->n; i++) {
        struct owner *o = &f->v[i];
        if (o->running > 0 && now > f->at)
            o->served += (now - f->at) * o->running;
        o->was_present = o->present;
        o->present = false;
        o->running = 0;
    }
    f->at = now;
}

void fair_present(struct fair *f, uid_t uid, int running)
{
    struct owner *o = fair_owner(f, uid);

    if (!o)
        return;
    o->present = true;
    o->running += running;
}

void fair_ready(struct fair *f)
{
    int64_t least = -1;

    for (int i = 0; i < f->n; i++)
        if (f->v[i].present && f->v[i].was_present && (least < 0 || f->v[i].served < least))
            least = f->v[i].served;
    for (int i = 0; i < f->n; i++)
        if (f->v[i].present && !f->v[i].was_present && f->v[i].served < least)
            f->v[i].served = least;
}

int fair_order(const struct turn *x, const struct turn *y)
{
    if (x->priority != y->priority)
        return x->priority > y->priority ? -1 : 1;
    if (x->suspect != y->suspect)
        return x->suspect ? -1 : 1; /* to know soon which one it is */
    if (x->owner_running != y->owner_running)
        return x->owner_running - y->owner_running;
    if (x->uid != y->uid && x->owner_served != y->owner_served)
        return x->owner_served < y->owner_served ? -1 : 1;
    if (x->exp_running != y->exp_running)
        return x->exp_running - y->exp_running;
    if (x->exp_id != y->exp_id)
        return x->exp_id < y->exp_id ? -1 : 1;
    /* the bases' rows are short and make the leaderboard readable: first */
    return x->number - y->number;
}
