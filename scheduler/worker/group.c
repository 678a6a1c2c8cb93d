/*
 * The jobs that train on one base share its workspace, so their memory is planned together: when one joins,
 * and when one has left.  A plan may have fewer rows in a pack or compute layers twice; that costs time and
 * changes no number (kernels/plan.c).
 */
#include <stdlib.h>

#include "scheduler/worker/bases.h"
#include "scheduler/worker/job.h"

/* Sizes of the jobs that train on b, and of `one_more` unless it is NULL.  free() it. */
static struct dtx_job_size *sizes_of(const struct worker *w, const struct base_entry *b,
                                     const struct job *one_more, int *n)
{
    struct dtx_job_size *v;
    size_t most = 1;

    *n = 0;
    for (const struct job *j = w->jobs; j; j = j->next)
        most++;
    v = malloc(most * sizeof(*v));
    for (const struct job *j = w->jobs; v && j; j = j->next)
        if (j == one_more || (j->base == b && j->train))
            v[(*n)++] = j->size;
    return v;
}

/* Bytes that the group on b may have: all but what is promised to others.  When a job has just left, its
 * share and the adapter that it will load are both promised, more than there is: so this is no sum of what
 * the group has and what is free. */
static uint64_t budget_of(const struct worker *w, const struct base_entry *b)
{
    uint64_t own = dtx_base_training_bytes(b->base) + b->plan.adapters + b->plan.scratch;
    struct room r;

    room_look(w, &r);
    return r.planned - own < r.usable ? r.usable - (r.planned - own) : 0;
}

/* Where the device does not have what was planned, back to what was there before. */
static int take(struct worker *w, struct base_entry *b, const struct dtx_plan *p, struct dtx_err *e)
{
    int rc = dtx_base_plan_training(b->base, p, e);

    if (rc == 0) {
        b->plan = *p;
        return 0;
    }
    if (dtx_base_plan_training(b->base, &b->plan, e)) {
        send_log(w, "%s: the memory that was planned is not there: %s", w->kind, e->msg);
        w->fatal = true;
    }
    return rc;
}

int group_join(struct worker *w, struct base_entry *b, const struct job *j, struct dtx_err *e)
{
    struct dtx_plan plan;
    int n, rc;
    struct dtx_job_size *sizes = sizes_of(w, b, j, &n);

    if (!sizes)
        return dtx_fail(e, -ENOMEM, "out of memory");
    do
        rc = dtx_plan_make(w->device, dtx_base_config(b->base), sizes, n, budget_of(w, b), &plan);
    while (rc && bases_drop_one(w, b));
    free(sizes);
    if (rc == 0)
        return take(w, b, &plan, e);
    room_wait(w, plan.total - (b->plan.total < plan.total ? b->plan.total : 0), "", e);
    return -EAGAIN;
}

void group_leave(struct worker *w, struct base_entry *b)
{
    struct dtx_plan plan;
    struct dtx_err e = {0};
    struct dtx_job_size *sizes;
    int n;

    b->replan = false;
    sizes = sizes_of(w, b, NULL, &n);
    if (sizes && dtx_plan_make(w->device, dtx_base_config(b->base), sizes, n, budget_of(w, b), &plan) == 0)
        (void)take(w, b, &plan, &e); /* there is room: fewer jobs, and the budget is what is free */
    free(sizes);
}

/* What the smallest plan takes of a device that has nothing else to do. */
int group_never(const struct worker *w, const struct job *j, struct dtx_err *e)
{
    const struct dtx_model_config *c = &j->prep.config;
    uint64_t base = dtx_base_plan(w->device, c) + room_answers(w, c), all;
    char total[24], model[24], own[24], acts[24], limit[24];
    struct dtx_plan p;
    struct room r;

    room_look(w, &r);
    if (r.limit > base && dtx_plan_make(w->device, c, &j->size, 1, r.limit - base, &p) == 0)
        return 0;
    dtx_plan_make(w->device, c, &j->size, 1, 0, &p);
    all = base + p.total;
    return dtx_fail(
        e, -ENOMEM,
        "it can never fit: model %s %s (with room for answers) + adapter and optimizer %s + activations of "
        "%d tokens (longest row: %d) with %d of %d layers computed again %s = %s, %s may use %s: use a "
        "smaller block_size, batch_size or lora_r, or a smaller model",
        j->spec.base_name, room_words(base, model), room_words(p.adapters, own), j->size.tokens,
        j->size.longest, p.recompute, p.layers, room_words(p.activations + p.scratch, acts),
        room_words(all, total), w->kind, room_words(r.limit, limit));
}
