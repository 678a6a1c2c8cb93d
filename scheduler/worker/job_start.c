/* WAIT: for the base and for memory, by plan.  Then the engine's job, fresh or restored, and its files. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

/* Tell dtxd why it waits, once for each reason; numbers that move by themselves are no new reason. */
static void wait_longer(struct worker *w, struct job *j, const struct dtx_err *e, double seconds)
{
    struct room r;

    room_look(w, &r);
    j->retry_ns = clock_mono_ns() + (int64_t)(seconds * 1e9);
    if (j->why[0] && r.planned == j->why_planned)
        return;
    if (!j->why[0])
        job_log(j, "%s", e->msg);
    snprintf(j->why, sizeof(j->why), "%.500s", e->msg);
    j->why_planned = r.planned;
    send_waits(w, j->spec.id, j->why);
}

static bool others_run(const struct worker *w, const struct job *j)
{
    for (const struct job *o = w->jobs; o; o = o->next)
        if (o != j && o->base)
            return true;
    return false;
}

/* Bytes beside the base without which there is no use in loading it. */
static uint64_t least_beside(const struct worker *w, const struct job *j)
{
    struct dtx_plan p;

    if (j->spec.score_only)
        return 0;
    (void)dtx_plan_make(w->device, &j->prep.config, &j->size, 1, 0, &p);
    return p.total;
}

/* The base, loaded, with room for the job beside it.  -EAGAIN: not now. */
static int get_base_with_room(struct worker *w, struct job *j, struct dtx_err *e)
{
    int rc = j->spec.score_only ? 0 : group_never(w, j, e);

    if (rc == 0)
        rc = base_get(w, j->spec.base_dir, least_beside(w, j), &j->base, e);
    if (rc || j->spec.score_only)
        return rc;
    rc = group_join(w, j->base, j, e);
    if (rc) {
        base_put(j->base);
        j->base = NULL;
    }
    return rc;
}

static int make_engine_job(struct worker *w, struct job *j, struct dtx_err *e)
{
    char state[PATH_MAX];
    int has = job_state_load(w, j, state, sizeof(state), e), rc;
    const char *init = has == 0 ? NULL : j->spec.init_dir; /* a saved state holds the adapter */

    if (has && has != -ENOENT)
        return has;
    rc = dtx_job_new(j->base->base, &j->spec.params, &j->prep.train.rows, w->store, init, &j->train, e);
    if (rc == 0 && has == 0) {
        rc = dtx_job_restore(j->train, w->store, state, e);
        if (rc == 0 && dtx_job_steps_done(j->train) != j->loop.step)
            rc = dtx_fail(e, -EINVAL, "%s is at step %lld, state.json says %lld", state,
                          (long long)dtx_job_steps_done(j->train), (long long)j->loop.step);
        if (rc)
            dtx_fail_context(e, "the saved state cannot be used");
    }
    if (rc) {
        dtx_job_free(j->train);
        j->train = NULL;
    }
    return rc;
}

static void log_plan(const struct worker *w, struct job *j)
{
    const struct dtx_plan *p = &j->base->plan;
    char own[24], acts[24];

    job_log(j,
            "memory: %s for itself; activations of %d tokens a pass %s, shared by %d job%s, %d of %d layers "
            "computed again",
            room_words(dtx_job_state_bytes(w->device, &j->prep.config, &j->size), own), p->rows,
            room_words(p->activations + p->scratch, acts), p->jobs, p->jobs > 1 ? "s" : "", p->recompute,
            p->layers);
}

static void log_start(struct worker *w, struct job *j)
{
    const struct token_cache *t = &j->prep.train, *v = &j->prep.validation;
    const struct dtx_train_params *p = &j->spec.params;

    job_log(j, "data: %u rows, %llu tokens, longest %llu, %llu cut to %d tokens, %llu skipped", t->rows.n,
            (unsigned long long)t->tokens, (unsigned long long)t->longest, (unsigned long long)t->truncated,
            p->block_size, (unsigned long long)t->skipped);
    if (j->prep.has_validation)
        job_log(j, "validation: %u rows, %llu tokens", v->rows.n, (unsigned long long)v->tokens);
    job_log(j, "start: %s on %s, %lld steps, %lld an epoch, rank %d, seed %llu%s", j->spec.dataset,
            j->spec.base_name, (long long)j->total, (long long)j->per_epoch, p->rank,
            (unsigned long long)p->seed,
            j->loop.step       ? ""
            : j->spec.init_dir ? ", from an adapter"
                               : "");
    log_plan(w, j);
    if (j->loop.step)
        job_log(j, "goes on from step %lld", (long long)j->loop.step);
    if (j->total == 1 && p->warmup_ratio > 0 && p->schedule != DTX_CONSTANT)
        job_log(j,
                "warning: the only step is a warm-up step with learning rate 0, nothing will be learned; set "
                "warmup_ratio to 0 or train longer");
}

static int start_training(struct worker *w, struct job *j, struct dtx_err *e)
{
    int rc = make_engine_job(w, j, e);

    if (rc == 0)
        rc = metrics_cut(j, j->loop.step - (j->row_open ? 1 : 0), e);
    if (rc == 0)
        rc = job_provenance(w, j, e);
    if (rc)
        return rc;
    j->total = dtx_job_total_steps(j->train);
    j->per_epoch = dtx_job_steps_per_epoch(j->train);
    j->save_steps = job_every_steps(&j->spec.save_every, j->per_epoch, j->total);
    j->eval_steps = job_every_steps(&j->spec.eval_every, j->per_epoch, j->total);
    j->saved_step = j->loop.step;
    j->saved_ns = j->step_ns = clock_mono_ns();
    log_start(w, j);
    send_state(w, j->spec.id, "FINETUNE", "", NULL);
    return 0;
}

static void after_start(struct worker *w, struct job *j)
{
    if (j->loop.trained) {
        send_state(w, j->spec.id, "EXPORT", "", NULL);
        job_phase(w, j, JP_EXPORT);
    } else if (j->row_open) {
        job_phase(w, j, JP_EVAL);
    } else if (j->stop || j->loop.step >= j->total) {
        job_stop_training(w, j);
    } else {
        job_phase(w, j, JP_TRAIN);
    }
}

void job_try_start(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};
    int rc;

    if (clock_mono_ns() < j->retry_ns)
        return;
    j->spec.params.block_size = j->prep.block_size;
    if (!j->spec.score_only && !j->size.rank)
        j->size = dtx_job_size(&j->spec.params, &j->prep.train.rows, j->prep.has_validation);
    rc = get_base_with_room(w, j, &e);
    if (rc == 0 && !j->spec.score_only)
        rc = start_training(w, j, &e);
    if (rc == 0) {
        if (j->spec.score_only)
            job_phase(w, j, JP_SERVE);
        else
            after_start(w, j);
        return;
    }
    dtx_job_free(j->train);
    j->train = NULL;
    if (j->base && !j->spec.score_only)
        j->base->replan = true; /* its share is not needed after all */
    base_put(j->base);
    j->base = NULL;
    if (rc == -EAGAIN)
        wait_longer(w, j, &e, 0.5);
    else if (rc == -ENOMEM && others_run(w, j) && (j->spec.score_only || group_never(w, j, NULL) == 0))
        wait_longer(w, j, &e, 5);
    else {
        j->never = rc == -ENOMEM;
        job_fail(w, j, &e);
    }
}
