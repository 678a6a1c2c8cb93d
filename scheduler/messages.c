/* What workers say, and what their death means for their jobs. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

void job_release(struct sched *s, struct job *j)
{
    struct worker *w = j->worker;

    j->worker = NULL;
    j->held_dataset = j->begun = j->waits = j->recalled = false;
    if (w && w->njobs > 0)
        w->njobs--;
    if (w) {
        j->exp->on_workers--;
        sched_changed(s, "devices/%s", w->label);
    }
    if (j->cleanup && !j->exp->deleted) {
        j->cleanup = false;
        job_remove_files(s, j);
    }
}

/* ---- job_state ---- */

static int finish_job(struct sched *s, struct job *j, json_t *body)
{
    json_t *result = json_object_get(body, "result");
    int rc;

    set_json(&j->result, json_is_object(result) ? json_incref(result) : json_object());
    if (j->number) {
        rc = tuned_register(s, j);
        if (rc)
            return rc;
    }
    rc = job_event(s, j, EV_DONE, NULL);
    if (rc == 0) {
        job_release(s, j);
        job_remove_work(s, j); /* after the catalog has it: nothing goes on from there any more */
    }
    return rc;
}

static int end_badly(struct sched *s, struct job *j, const char *reason)
{
    int rc = job_event(s, j, EV_ERROR, reason && *reason ? reason : "the worker gave no reason");

    if (rc == 0)
        job_release(s, j);
    return rc;
}

/* It does not fit on w's device: on another one, or nowhere. */
static int too_big(struct sched *s, struct worker *w, struct job *j, const char *reason)
{
    int rc;

    j->too_big |= 1ull << w->index;
    if (!worker_for(s, j)) {
        j->too_big = 0;
        return end_badly(s, j, reason);
    }
    log_line("job %s/%s: not on %s: %.600s", j->exp->name, j->name, w->label, reason);
    rc = job_event(s, j, EV_LOST, reason);
    if (rc == 0)
        job_release(s, j);
    return rc;
}

static int on_job_state(struct sched *s, struct worker *w, json_t *body)
{
    static const struct {
        const char *name;
        enum event ev;
    } stages[] = {{"FINETUNE", EV_FINETUNE}, {"EXPORT", EV_EXPORT}, {"SERVE", EV_SERVE}, {"SCORE", EV_SCORE}};
    struct job *j = job_find_worker(s, w, json_str(body, "id", ""));
    const char *state = json_str(body, "state", ""), *reason = json_str(body, "reason", NULL);
    bool end = !strcmp(state, "SUCCESSFUL") || !strcmp(state, "FAILED") || !strcmp(state, "PAUSED") ||
               !strcmp(state, "CANCELLED");

    if (!j)
        return 0;
    if (j->exp->deleted || !job_runs(j)) { /* deleted, cancelled or paused meanwhile: only its end matters */
        if (end)
            job_release(s, j);
        return 0;
    }
    for (size_t i = 0; i < sizeof(stages) / sizeof(stages[0]); i++)
        if (strcmp(state, stages[i].name) == 0) {
            j->begun = true;
            j->waits = false;
            return job_event(s, j, stages[i].ev, NULL);
        }
    if (strcmp(state, "SUCCESSFUL") == 0)
        return finish_job(s, j, body);
    if (strcmp(state, "FAILED") == 0)
        return json_flag(body, "never", 0) && reason ? too_big(s, w, j, reason) : end_badly(s, j, reason);
    if (end) { /* it let go, and nobody wants that any more: again */
        int rc = job_event(s, j, EV_LOST, reason);
        if (rc == 0)
            job_release(s, j);
        return rc;
    }
    if (strcmp(state, "PENDING") == 0 && j->state == ST_PENDING) {
        j->waits = json_flag(body, "waits", 0);
        set_text(&j->reason, reason);
        sched_changed(s, "experiments/%s/jobs/%s", j->exp->name, j->name);
    }
    return 0;
}

/* ---- the others ---- */

static int on_held(struct sched *s, struct worker *w, json_t *body)
{
    struct job *j = job_find_worker(s, w, json_str(body, "id", ""));

    if (!j || json_flag(body, "dataset", 1))
        return 0;
    j->held_dataset = false;
    j->cached = true;
    return j->exp->deleted ? 0 : job_keep(s, j);
}

static int on_progress(struct sched *s, struct worker *w, json_t *body)
{
    struct job *j = job_find_worker(s, w, json_str(body, "id", ""));

    if (!j)
        return 0;
    set_json(&j->progress, json_incref(body));
    j->progress_at = clock_mono_ns();
    j->changed = j->exp->changed = clock_wall_ns();
    job_changed(s, j, false);
    return 0;
}

/* Does another job wait to be tried alone? */
static bool suspects_wait(struct sched *s)
{
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; !x->deleted && x->state == ST_PROCESSING && k < x->njobs; k++)
            if (x->jobs[k]->suspect && !x->jobs[k]->worker && job_runs(x->jobs[k]))
                return true;
    }
    return false;
}

/* Past the place where its worker died: it is not the one.  It makes room for the others that must be tried
 * alone; it goes on from this save, together with its neighbours. */
static int clear_suspect(struct sched *s, struct worker *w, struct job *j)
{
    int rc;

    j->suspect = false;
    j->deaths_alone = j->died_on = 0;
    rc = job_keep(s, j);
    if (rc == 0 && suspects_wait(s))
        worker_send(s, w, PM_JOB_STOP,
                    json_pack("{so ss}", "id", json_sprintf("%s/%s", j->exp->name, j->name), "how", "pause"));
    return rc;
}

static int on_saved(struct sched *s, struct worker *w, json_t *body)
{
    struct job *j = job_find_worker(s, w, json_str(body, "id", ""));

    if (!j || j->exp->deleted)
        return 0;
    j->saved_step = json_int(body, "step", 0);
    w->failures = 0;
    if (!j->suspect || j->saved_step <= j->death_step)
        return 0;
    return clear_suspect(s, w, j);
}

static int on_hello(struct sched *s, struct worker *w, json_t *body)
{
    set_json(&w->hello, json_incref(body));
    w->state = WS_UP;
    set_text(&w->trouble, NULL);
    log_line("%s: worker %d is up", w->label, (int)w->pid);
    sched_changed(s, "devices/%s", w->label);
    return 0;
}

static int on_device(struct sched *s, struct worker *w, json_t *body)
{
    set_json(&w->stats, json_incref(body));
    snprintf(w->base, sizeof(w->base), "%s", json_str(body, "base", ""));
    sched_changed(s, "devices/%s", w->label);
    return 0;
}

static int on_answer(struct sched *s, struct worker *w, json_t *body)
{
    asking_answer(s, w, body);
    return 0;
}

static int on_log(struct sched *s, struct worker *w, json_t *body)
{
    log_line("%s: %.1000s", w->label, json_str(body, "text", ""));
    if (w->state == WS_STARTING) /* why it will not come up, perhaps */
        set_text(&w->trouble, json_str(body, "text", ""));
    return 0;
}

int worker_message(struct sched *s, struct worker *w, enum proto_type type, json_t *body)
{
    static int (*const handlers[PM_MAX])(struct sched * s, struct worker * w, json_t * body) = {
        [PM_HELLO] = on_hello,   [PM_JOB_STATE] = on_job_state,
        [PM_JOB_HELD] = on_held, [PM_PROGRESS] = on_progress,
        [PM_SAVED] = on_saved,   [PM_ANSWER] = on_answer,
        [PM_DEVICE] = on_device, [PM_LOG] = on_log,
    };

    return handlers[type] ? handlers[type](s, w, body) : -EPROTO;
}

/* ---- death ---- */

/* Two deaths alone are the job's fault, unless they may be the device's and there is another to try. */
static void job_lost(struct sched *s, struct job *j, bool alone, bool blame, const char *why)
{
    struct worker *w = j->worker;
    bool elsewhere = j->died_on && j->died_on != w->index + 1;
    char words[1200];
    long long step = json_int(j->progress, "step", 0);

    if (j->exp->deleted || !job_runs(j)) {
        job_release(s, j);
        return;
    }
    if (blame) {
        j->suspect = true;
        j->death_step = step;
        j->deaths_alone += alone;
        if (alone)
            j->died_on = w->index + 1;
    }
    job_release(s, j);
    set_json(&j->progress, NULL);
    if (j->deaths_alone >= 2 && (elsewhere || !worker_beside(s, w, j))) {
        snprintf(words, sizeof(words),
                 "its worker ended twice while this job ran alone there%s (last time at step %lld: %.200s); "
                 "echo retry > control to try once more",
                 elsewhere ? ", and on another device too" : "", step, why);
        job_event(s, j, EV_ERROR, words);
        return;
    }
    snprintf(words, sizeof(words), "its worker ended (%.200s): goes on from the last save%s", why,
             blame ? ", alone at first" : "");
    if (job_event(s, j, EV_LOST, words) == 0 && j->state == ST_PENDING)
        job_keep(s, j); /* the suspicion must survive dtxd too, also where the state was PENDING before */
}

void worker_lost(struct sched *s, struct worker *w, const char *why)
{
    bool blame = w->state == WS_UP && !w->quitting;
    int n = w->njobs;

    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; x->on_workers && k < x->njobs + x->nrows; k++) {
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (j->worker == w)
                job_lost(s, j, n == 1, blame, why);
        }
    }
    w->njobs = 0;
    asking_worker_lost(s, w);
}
