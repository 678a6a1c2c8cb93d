#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

enum { PREPARE_TOGETHER = 2, STEP_PASSES = 4 };

static struct job *find_job(const struct worker *w, const char *id)
{
    for (struct job *j = w->jobs; j; j = j->next)
        if (j->phase != JP_OVER && !strcmp(j->spec.id, id))
            return j;
    return NULL;
}

void job_phase(struct worker *w, struct job *j, enum job_phase phase)
{
    j->phase = phase;
    w->moved = true;
}

/* Those that train beside it get its share. */
static void free_training(struct job *j)
{
    if (j->train)
        j->base->replan = true;
    dtx_job_free(j->train);
    j->train = NULL;
}

/* Give back what a job uses of the device. */
static void release_device(struct job *j)
{
    score_release(j);
    dtx_adapter_free(j->eval_adapter);
    j->eval_adapter = NULL;
    free_training(j);
    adapter_put(j->adapter);
    j->adapter = NULL;
    base_put(j->base);
    j->base = NULL;
}

void job_end(struct worker *w, struct job *j, const char *state, const char *reason, json_t *result)
{
    struct dtx_err e;

    release_device(j);
    if (j->metrics_fd >= 0 && j->metrics.len)
        (void)metrics_flush(j, false, &e);
    job_log(j, "%s%s%s", state, reason && *reason ? ": " : "", reason ? reason : "");
    send_end(w, j->spec.id, state, reason, result, j->never);
    job_files_close(j);
    job_phase(w, j, JP_OVER);
}

/* A device that has failed is not the job's fault, nor that of those behind it: the worker ends, and what ran
 * goes on from its last save in the next one. */
void job_fail(struct worker *w, struct job *j, const struct dtx_err *e)
{
    struct dtx_err device = {0};

    if (dtx_device_failed(w->device, &device)) {
        send_log(w, "%s: job %s: %s (%s)", w->kind, j->spec.id, e->msg, device.msg);
        w->fatal = true;
        return;
    }
    job_end(w, j, "FAILED", e->msg, NULL);
}

static void job_free(struct job *j)
{
    release_device(j);
    job_files_close(j);
    prepare_release(&j->prep);
    json_decref(j->result);
    job_spec_release(&j->spec);
    free(j);
}

static void refuse(struct worker *w, const json_t *body, const struct dtx_err *e)
{
    const char *id = json_str(body, "id", NULL);

    if (id)
        send_state(w, id, "FAILED", e->msg, NULL);
    else
        send_log(w, "a job without an id was refused: %s", e->msg);
}

void job_message(struct worker *w, const json_t *body, bool score_only)
{
    struct job *j = calloc(1, sizeof(*j)), **p = &w->jobs;
    struct dtx_err e = {0};
    int rc;

    if (!j) {
        dtx_fail(&e, -ENOMEM, "out of memory");
        refuse(w, body, &e);
        return;
    }
    j->log_fd = j->metrics_fd = -1;
    j->started_ns = clock_wall_ns();
    job_loop_init(&j->loop);
    rc = job_spec_parse(&j->spec, body, score_only, &e);
    if (rc == 0 && find_job(w, j->spec.id)) {
        send_log(w, "job %s is already here", j->spec.id);
        job_free(j);
        return;
    }
    if (rc == 0)
        rc = job_files_open(w, j, &e);
    if (rc) {
        refuse(w, body, &e);
        job_free(j);
        return;
    }
    while (*p)
        p = &(*p)->next;
    *p = j;
    send_state(w, j->spec.id, "PENDING", "preparing the data", NULL);
}

static void pause_job(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};

    if (j->train && !j->loop.trained && j->loop.step > j->saved_step && job_state_save(w, j, &e)) {
        dtx_fail_context(&e, "pausing: the job could not be saved");
        job_fail(w, j, &e);
        return;
    }
    job_end(w, j, "PAUSED", "", NULL);
}

static void stop_job(struct worker *w, struct job *j)
{
    j->stop = true;
    if (j->phase == JP_TRAIN)
        job_stop_training(w, j);
}

void job_stop_message(struct worker *w, const json_t *body)
{
    const char *id = json_str(body, "id", ""), *how = json_str(body, "how", "");
    struct job *j = find_job(w, id);

    if (!j)
        send_log(w, "%s: job %s is not here", how, id);
    else if (!strcmp(how, "cancel"))
        job_end(w, j, "CANCELLED", "", NULL);
    else if (!strcmp(how, "pause"))
        pause_job(w, j);
    else if (!strcmp(how, "stop"))
        stop_job(w, j);
    else
        send_log(w, "job %s: \"%s\" is not a way to stop", id, how);
}

/* Two threads at a time, and never two in one work_dir (a cancelled job's thread may still be in it). */
static bool may_prepare(const struct worker *w, const struct job *j)
{
    int running = 0;

    for (const struct job *o = w->jobs; o; o = o->next) {
        running += o->prep.started;
        if (o != j && o->prep.started && !strcmp(o->spec.work_dir, j->spec.work_dir))
            return false;
    }
    return running < PREPARE_TOGETHER;
}

static void prepare_turn(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};

    if (!j->prep.started) {
        if (may_prepare(w, j) && prepare_start(w, j, &e))
            job_fail(w, j, &e);
        return;
    }
    if (!prepare_ended(j))
        return;
    if (j->prep.rc) {
        job_fail(w, j, &j->prep.error);
        return;
    }
    j->prepared = true;
    if (!j->spec.score_only)
        send_message(w, PM_JOB_HELD, json_pack("{s:s,s:b}", "id", j->spec.id, "dataset", 0));
    job_phase(w, j, JP_WAIT);
}

static void export_turn(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};

    if (job_export(w, j, &e)) {
        job_fail(w, j, &e);
        return;
    }
    free_training(j);
    send_state(w, j->spec.id, "SERVE", "", NULL);
    job_phase(w, j, JP_SERVE);
}

static void serve_turn(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};

    if (!j->spec.score_only && adapter_get(w, j->base, j->spec.tuned_dir, true, &j->adapter, &e)) {
        dtx_fail_context(&e, "the exported adapter cannot be loaded again");
        job_fail(w, j, &e);
        return;
    }
    if (score_begin(w, j, &e)) {
        job_fail(w, j, &e);
        return;
    }
    if (j->prep.questions.n)
        send_state(w, j->spec.id, "SCORE", "", NULL);
    job_phase(w, j, JP_SCORE);
}

static void metrics_turn(struct job *j)
{
    int64_t now = clock_mono_ns();
    struct dtx_err e;

    if (j->metrics_fd < 0 || !j->metrics.len || now - j->metrics_ns < 1000000000ll)
        return;
    j->metrics_ns = now;
    if (metrics_flush(j, false, &e))
        job_log(j, "%s; trying again", e.msg);
}

static void job_turn(struct worker *w, struct job *j)
{
    metrics_turn(j);
    switch (j->phase) {
    case JP_PREPARE:
        prepare_turn(w, j);
        break;
    case JP_WAIT:
        job_try_start(w, j);
        break;
    case JP_EVAL:
        job_eval_slice(w, j);
        break;
    case JP_EXPORT:
        export_turn(w, j);
        break;
    case JP_SERVE:
        serve_turn(w, j);
        break;
    case JP_SCORE:
        score_turn(w, j);
        break;
    case JP_TRAIN:
    case JP_OVER:
        break;
    }
}

void jobs_turn(struct worker *w)
{
    for (struct job *j = w->jobs; j && !w->fatal; j = j->next)
        job_turn(w, j);
    for (struct job **p = &w->jobs; *p;) {
        struct job *j = *p;

        if (j->phase == JP_OVER && prepare_ended(j)) {
            *p = j->next;
            job_free(j);
        } else {
            p = &j->next;
        }
    }
}

struct together { /* the jobs that make a step, [n] each */
    struct job **jobs;
    struct dtx_job **train;
    struct dtx_step_result *results;
    int n;
};

static void together_release(struct together *t)
{
    free(t->jobs);
    free(t->train);
    free(t->results);
}

static int longest_ago(const void *a, const void *b)
{
    const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;

    return x->step_ns < y->step_ns ? -1 : x->step_ns > y->step_ns;
}

/* How many of them fill a few passes: more in a step gain nothing, and people who ask wait for its end.  The
 * others come next time. */
static int enough(const struct together *t, const struct base_entry *b)
{
    int64_t rows = 0;
    int n = 0;

    while (n < t->n && (n == 0 || rows < (int64_t)STEP_PASSES * b->plan.rows)) {
        const struct job *j = t->jobs[n++];
        const struct token_cache *c = &j->prep.train;
        int64_t window = (int64_t)j->spec.params.batch_size * j->spec.params.grad_acc_steps;
        rows += (int64_t)(c->tokens / c->rows.n) * (window < c->rows.n ? window : c->rows.n);
    }
    return n;
}

static int together_make(struct worker *w, const struct base_entry *b, struct together *t)
{
    size_t most = 1;

    for (const struct job *j = w->jobs; j; j = j->next)
        most++;
    *t = (struct together){.jobs = calloc(most, sizeof(*t->jobs)),
                           .train = calloc(most, sizeof(*t->train)),
                           .results = calloc(most, sizeof(*t->results))};
    if (!t->jobs || !t->train || !t->results)
        return -ENOMEM;
    for (struct job *j = w->jobs; j; j = j->next)
        if (j->phase == JP_TRAIN && j->base == b)
            t->jobs[t->n++] = j;
    qsort(t->jobs, (size_t)t->n, sizeof(*t->jobs), longest_ago);
    t->n = enough(t, b);
    for (int i = 0; i < t->n; i++)
        t->train[i] = t->jobs[i]->train;
    return 0;
}

static void step_together(struct worker *w, struct base_entry *b, struct together *t)
{
    int64_t start = clock_mono_ns();
    struct dtx_err e = {0};

    if (dtx_train_step(b->base, t->train, t->n, t->results, &e)) {
        send_log(w, "%s: a training step of %d jobs failed: %s", w->kind, t->n, e.msg);
        w->fatal = true;
        return;
    }
    w->moved = true;
    w->last_step_s = (double)(clock_mono_ns() - start) / 1e9;
    b->used_ns = clock_mono_ns();
    for (int i = 0; i < t->n; i++) {
        t->jobs[i]->loop.seconds += w->last_step_s;
        w->tokens += t->results[i].tokens;
        job_after_step(w, t->jobs[i], &t->results[i]);
    }
}

static void train_base(struct worker *w, struct base_entry *b)
{
    struct together t;

    if (b->replan)
        group_leave(w, b);
    if (w->fatal)
        return;
    if (together_make(w, b, &t)) {
        send_log(w, "%s: out of memory for a step", w->kind);
        w->fatal = true;
    } else if (t.n) {
        step_together(w, b, &t);
    }
    together_release(&t);
}

void jobs_train(struct worker *w)
{
    for (struct base_entry *b = w->bases; b && !w->fatal; b = b->next)
        train_base(w, b);
}

void jobs_save_all(struct worker *w)
{
    struct dtx_err e = {0};

    for (struct job *j = w->jobs; j; j = j->next) {
        if ((j->phase != JP_TRAIN && j->phase != JP_EVAL) || j->loop.step <= j->saved_step)
            continue;
        if (job_state_save(w, j, &e))
            job_log(j, "the worker ends and the job could not be saved: %s; it will go on from step %lld",
                    e.msg, (long long)j->saved_step);
        else
            job_log(j, "the worker ends: saved at step %lld", (long long)j->loop.step);
    }
}

void jobs_release(struct worker *w)
{
    while (w->jobs) {
        struct job *j = w->jobs;

        w->jobs = j->next;
        job_free(j);
    }
}

int jobs_active(const struct worker *w)
{
    int n = 0;

    for (const struct job *j = w->jobs; j; j = j->next)
        n += j->base != NULL;
    return n;
}

bool jobs_training(const struct worker *w)
{
    for (const struct job *j = w->jobs; j; j = j->next)
        if (j->train)
            return true;
    return false;
}

bool jobs_preparing(const struct worker *w)
{
    for (struct job *j = w->jobs; j; j = j->next)
        if (!prepare_ended(j))
            return true;
    return false;
}
