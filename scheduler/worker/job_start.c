/* WAIT: for the base and for memory, by plan.  Then the engine's job, fresh or restored, and its files. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

static const double MB = 1e6;

/* Tell dtxd why it waits, once for each reason. */
static void wait_longer(struct worker *w, struct job *j, const char *why, double seconds)
{
    j->retry_ns = clock_mono_ns() + (int64_t)(seconds * 1e9);
    if (strncmp(j->why, why, sizeof(j->why) - 1) == 0)
        return;
    snprintf(j->why, sizeof(j->why), "%s", why);
    send_state(w, j->spec.id, "PENDING", j->why, NULL);
    job_log(j, "%s", why);
}

static bool others_run(const struct worker *w, const struct job *j)
{
    for (const struct job *o = w->jobs; o; o = o->next)
        if (o != j && o->base)
            return true;
    return false;
}

/* The base, loaded, with room for the job beside it.  -EAGAIN: not now. */
static int get_base_with_room(struct worker *w, struct job *j, struct dtx_err *e)
{
    int rc = base_get(w, j->spec.base_dir, j->plan, &j->base, e);
    uint64_t limit = room_limit(w), base_bytes;

    if (rc)
        return rc;
    base_bytes = dtx_base_bytes(j->base->base);
    if (base_bytes + j->plan > limit)
        rc = dtx_fail(e, -ENOMEM,
                      "the job needs %.0f MB beside the base model's %.0f MB; %s may use %.0f MB in all: "
                      "use a smaller batch_size, block_size or lora_r",
                      (double)j->plan / MB, (double)base_bytes / MB, w->kind, (double)limit / MB);
    else if (!room_make(w, j->plan, j->base))
        rc = dtx_fail(e, -EAGAIN,
                      "waiting for memory: the job needs %.0f MB beside what runs, %.0f MB are free",
                      (double)j->plan / MB, (double)room_free(w) / MB);
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

static void log_start(struct job *j)
{
    const struct token_cache *t = &j->prep.train, *v = &j->prep.validation;
    const struct dtx_train_params *p = &j->spec.params;

    job_log(j, "data: %u rows, %llu tokens, longest %llu, %llu cut to %d tokens, %llu skipped", t->rows.n,
            (unsigned long long)t->tokens, (unsigned long long)t->longest, (unsigned long long)t->truncated,
            p->block_size, (unsigned long long)t->skipped);
    if (j->prep.has_validation)
        job_log(j, "validation: %u rows, %llu tokens", v->rows.n, (unsigned long long)v->tokens);
    job_log(j, "start: %s on %s, %lld steps, %lld an epoch, rank %d, seed %llu, %.0f MB%s", j->spec.dataset,
            j->spec.base_name, (long long)j->total, (long long)j->per_epoch, p->rank,
            (unsigned long long)p->seed, (double)j->plan / MB,
            j->loop.step       ? ""
            : j->spec.init_dir ? ", from an adapter"
                               : "");
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
    log_start(j);
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
    j->plan = j->spec.score_only
                  ? 0
                  : dtx_job_plan_on(w->device, &j->prep.config, &j->spec.params, &j->prep.train.rows);
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
    base_put(j->base);
    j->base = NULL;
    if (rc == -EAGAIN)
        wait_longer(w, j, e.msg, 0.5);
    else if (rc == -ENOMEM && others_run(w, j))
        wait_longer(w, j, e.msg, 5);
    else
        job_fail(w, j, &e);
}
