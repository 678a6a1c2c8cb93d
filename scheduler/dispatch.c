/*
 * Which job goes to which worker.  Jobs of one base run together on a worker, spread over the workers.  How
 * many is a matter of memory, which the worker plans to the byte once it knows a job's rows: it is given a
 * few jobs ahead, and more as they begin to compute; when one does not fit beside the others it says so, and
 * gets no more. A job that waits there is called back for a worker that has nothing to do, and for a job of
 * higher priority. Order: priority; then the owner with the fewest jobs running, or served least (fair.c);
 * then the experiment with the fewest running; then age.  A job that found no place keeps later ones of lower
 * priority back (and, after a minute, equal ones of other bases too) from the devices that can hold it, so
 * that nothing starves. After a worker's death its jobs are suspects: each runs alone until it has got past
 * the step where it happened. One that dies twice alone on a device goes to another, if there is one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

static const int64_t patience = 60 * SECOND_NS;

static bool has_suspect(struct sched *s, const struct worker *w)
{
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; x->on_workers && k < x->njobs + x->nrows; k++) {
            const struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (j->worker == w && j->suspect)
                return true;
        }
    }
    return false;
}

/* No more jobs for it now, whatever they are. */
static bool full(const struct worker *w)
{
    return w->njobs >= MAX_TOGETHER || w->ahead >= MAX_AHEAD || w->waiting > 0;
}

static bool fits(struct sched *s, const struct worker *w, const struct job *j)
{
    if (w->state != WS_UP || w->quitting || w->let_go || w->eof_at || w->held_body)
        return false;
    if (j->too_big >> w->index & 1)
        return false;
    if (j->deaths_alone >= 2 && j->died_on == w->index + 1 && worker_beside(s, w, j))
        return false; /* is it the job or the device?  The other one will tell */
    if (w->njobs == 0)
        return true;
    return !j->suspect && !full(w) && strcmp(w->job_base, j->base) == 0 && !has_suspect(s, w);
}

static bool any_room(struct sched *s)
{
    for (int i = 0; i < s->nworkers; i++)
        if (s->workers[i].state == WS_UP && (!s->workers[i].njobs || !full(&s->workers[i])))
            return true;
    return false;
}

static struct worker *find_place(struct sched *s, const struct job *j)
{
    struct worker *best = NULL;
    int best_cost = 0;

    for (int i = 0; i < s->nworkers; i++) {
        struct worker *w = &s->workers[i];
        int cost =
            w->njobs * 2 + (strcmp(w->base, j->base) != 0); /* equal load: who has the base in memory */
        if (fits(s, w, j) && (!best || cost < best_cost)) {
            best = w;
            best_cost = cost;
        }
    }
    return best;
}

static struct turn turn_of(struct sched *s, const struct job *j)
{
    const struct owner *o = fair_owner(&s->fair, j->exp->uid);

    return (struct turn){.priority = j->exp->priority,
                         .suspect = j->suspect,
                         .uid = j->exp->uid,
                         .owner_running = o ? o->running : 0,
                         .owner_served = o ? o->served : 0,
                         .exp_running = j->exp->running,
                         .exp_id = j->exp->id,
                         .number = j->number};
}

static int order(const void *a, const void *b, void *arg)
{
    struct turn x = turn_of(arg, *(struct job *const *)a), y = turn_of(arg, *(struct job *const *)b);

    return fair_order(&x, &y);
}

/* Another experiment's row of the same base and evaluation: done, or being done. */
static struct job *twin_of(struct sched *s, const struct job *row)
{
    struct job *twin = NULL;

    for (int i = 0; i < s->nexps; i++)
        for (int k = 0; k < s->exps[i]->nrows; k++) {
            struct job *j = s->exps[i]->rows[k];
            if (j == row || s->exps[i]->deleted || strcmp(j->score_key, row->score_key) != 0)
                continue;
            if (j->state == ST_SUCCESSFUL && j->result)
                return j;
            if (job_runs(j) && j->worker)
                twin = j;
        }
    return twin;
}

/* True when the row need not run: another one's result serves, or will. */
static bool served_by_twin(struct sched *s, struct job *row)
{
    struct job *twin = twin_of(s, row);

    if (!twin)
        return false;
    if (twin->state == ST_SUCCESSFUL) {
        set_json(&row->result, json_deep_copy(twin->result));
        job_event(s, row, EV_DONE, NULL);
    }
    return true;
}

static void need_permission(struct buf *words, const char *what, const char *name)
{
    buf_addf(words, "waiting for: its owner to let you read %s %s (chmod -R)", what, name);
}

/* Is it there, and may the experiment's owner read it?  What the name meant when the experiment began may
 * have been closed since, or be another's by now. */
static bool need(struct sched *s, const struct job *j, enum object_kind kind, const char *name,
                 struct buf *words)
{
    const char *what = kind == OBJ_BASE ? "model" : "dataset";
    const struct object *o = object_ready(s, kind, name);

    if (!o)
        buf_addf(words, "waiting for: %s %s", what, name);
    else if (!object_readable(o, j->exp->uid, j->exp->gid))
        need_permission(words, what, name);
    return !words->len;
}

static bool need_init(struct sched *s, const struct job *j, struct buf *words)
{
    struct model_ref ref = {0};

    snprintf(ref.tuned, sizeof(ref.tuned), "%s", j->init);
    if (!object_find(s, OBJ_TUNED, j->init))
        buf_addf(words, "waiting for: model tuned/%s", j->init);
    else if (!model_readable(s, &ref, j->exp->uid, j->exp->gid))
        need_permission(words, "model", j->init);
    return !words->len;
}

/* The dataset that the evaluation takes its questions from. */
static bool need_questions(struct sched *s, const struct job *j, struct buf *words)
{
    const char *name = json_str(json_object_get(j->exp->pins, "evaluation"), "dataset", NULL);
    const struct object *o = name ? object_find(s, OBJ_DATASET, name) : NULL;

    if (name && j->number)
        return need(s, j, OBJ_DATASET, name, words);
    if (o && !object_readable(o, j->exp->uid, j->exp->gid))
        need_permission(words, "dataset", name);
    return !words->len;
}

static void find_needs(struct sched *s, const struct job *j, struct buf *words)
{
    char full[2 * NAME_CAP] = "";

    if (!need(s, j, OBJ_BASE, j->base, words))
        return;
    if (j->number && !j->cached && !need(s, j, OBJ_DATASET, j->dataset, words))
        return;
    if (!j->cached && !need_questions(s, j, words))
        return;
    if (j->init[0] && !j->has_run && !need_init(s, j, words))
        return;
    if (j->number && !j->has_run)
        space_used_up(s, j->exp->uid, full, sizeof(full));
    buf_adds(words, full);
}

static bool needs_are_there(struct sched *s, struct job *j)
{
    struct buf words = BUF_INIT;
    bool there;

    if (j->number && !j->params)
        return false;
    find_needs(s, j, &words);
    there = !words.len && !words.failed;
    if (words.len && (!j->reason || strcmp(j->reason, words.p) != 0)) {
        set_text(&j->reason, words.p);
        job_changed(s, j, false);
    }
    buf_release(&words);
    return there;
}

static int make_work_dir(struct sched *s, struct job *j)
{
    char job_dir[PATH_MAX], work_dir[PATH_MAX], tuned[PATH_MAX];
    struct dtx_err e = {0};
    int rc;

    job_paths(j, job_dir, work_dir, tuned, sizeof(tuned));
    slow_begin(s);
    rc = fd_mkdirs(s->store_fd, work_dir, 0700, &e);
    if (rc == 0)
        rc = fd_mkdirs(s->store_fd, job_dir, 0755, &e);
    slow_end(s);
    if (rc)
        catalog_trouble(s, &e);
    return rc;
}

static bool hand_over(struct sched *s, struct job *j, struct worker *w)
{
    bool had_run = j->has_run;

    if (j->number)
        job_pin_data(s, j);
    j->has_run = true;
    if (make_work_dir(s, j) || job_keep(s, j)) {
        j->has_run = had_run;
        return false;
    }
    if (worker_send(s, w, j->number ? PM_JOB_START : PM_SCORE, job_spec(j)))
        return false;
    if (j->stop_asked)
        worker_send(s, w, PM_JOB_STOP,
                    json_pack("{so ss}", "id", json_sprintf("%s/%s", j->exp->name, j->name), "how", "stop"));
    j->worker = w;
    j->exp->on_workers++;
    j->held_dataset = !j->cached;
    j->waiting_since = 0;
    set_text(&j->reason, NULL);
    set_json(&j->progress, NULL);
    w->njobs++;
    w->ahead++;
    j->exp->running++;
    fair_present(&s->fair, j->exp->uid, 1);
    snprintf(w->job_base, sizeof(w->job_base), "%s", j->base);
    snprintf(w->base, sizeof(w->base), "%s", j->base);
    log_line("job %s/%s: to %s%s", j->exp->name, j->name, w->label, j->suspect ? ", alone" : "");
    sched_changed(s, "devices/%s", w->label);
    return true;
}

static void count_on_workers(struct sched *s)
{
    for (int i = 0; i < s->nworkers; i++)
        s->workers[i].ahead = s->workers[i].waiting = 0;
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; x->on_workers && k < x->njobs + x->nrows; k++) {
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (!j->worker)
                continue;
            j->worker->ahead += !j->begun;
            j->worker->waiting += j->waits;
        }
    }
}

static int collect(struct sched *s, struct job ***out, int64_t now)
{
    int n = 0, cap = 0;

    *out = NULL;
    fair_begin(&s->fair, now);
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        x->running = 0;
        for (int k = 0; x->on_workers && k < x->njobs; k++)
            x->running += x->jobs[k]->worker != NULL;
        if (x->running || (x->state == ST_PROCESSING && !x->deleted))
            fair_present(&s->fair, x->uid, x->running);
        for (int k = 0; !x->deleted && x->state == ST_PROCESSING && k < x->njobs + x->nrows; k++) {
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (j->worker || !job_runs(j) || j->retry_at > now)
                continue;
            if (j->state != ST_PENDING && job_event(s, j, EV_LOST, NULL))
                continue; /* its worker is gone; that could not be written then */
            if (n == cap) {
                struct job **p = realloc(*out, (size_t)(cap = cap * 2 + 64) * sizeof(*p));
                if (!p)
                    return n;
                *out = p;
            }
            (*out)[n++] = j;
        }
    }
    fair_ready(&s->fair);
    return n;
}

/* ---- jobs that wait ---- */

static void waits_words(struct sched *s, struct buf *out)
{
    buf_adds(out, "waits for a device:");
    for (int i = 0; i < s->nworkers; i++) {
        const struct worker *w = &s->workers[i];
        buf_addf(out, "%s %s ", i ? ";" : "", w->label);
        if (w->state != WS_UP) {
            buf_adds(out, "is not up");
            continue;
        }
        buf_addf(out, "has %d job%s on %s", w->njobs, w->njobs == 1 ? "" : "s", w->job_base);
        if (w->waiting)
            buf_addf(out, ", %d of them without memory", w->waiting);
        else if (w->ahead)
            buf_addf(out, ", %d of them begin", w->ahead);
    }
}

static void tell_waits(struct sched *s, struct job *j, struct buf *words)
{
    if (!words->len)
        waits_words(s, words);
    if (!words->p ||
        (j->reason && (strcmp(j->reason, words->p) == 0 || strncmp(j->reason, "its worker", 10) == 0)))
        return;
    set_text(&j->reason, words->p);
    sched_changed(s, "experiments/%s/jobs/%s", j->exp->name, j->name);
}

static void recall(struct sched *s, struct job *j, const char *why)
{
    if (worker_send(s, j->worker, PM_JOB_STOP,
                    json_pack("{so ss}", "id", json_sprintf("%s/%s", j->exp->name, j->name), "how", "pause")))
        return;
    j->recalled = true;
    log_line("job %s/%s: back from %s, where it waits for memory: %s", j->exp->name, j->name,
             j->worker->label, why);
}

static bool idle_for(struct sched *s, const struct job *j)
{
    for (int i = 0; i < s->nworkers; i++)
        if (s->workers[i].njobs == 0 && fits(s, &s->workers[i], j))
            return true;
    return false;
}

/* Jobs without memory go where there is some; and they make way for `blocked` if that has a higher priority.
 */
static void recall_waiting(struct sched *s, const struct job *blocked)
{
    int idle = 0;

    for (int i = 0; i < s->nworkers; i++)
        idle += s->workers[i].njobs == 0 && s->workers[i].state == WS_UP && !s->workers[i].quitting;
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; x->on_workers && k < x->njobs + x->nrows; k++) {
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (!j->worker || !j->waits || j->recalled || !job_runs(j) || j->worker->njobs < 2)
                continue;
            if (blocked && x->priority < blocked->exp->priority)
                recall(s, j, "another one has a higher priority");
            else if (idle > 0 && idle_for(s, j) && idle--)
                recall(s, j, "another device is idle");
        }
    }
}

/* `blocked`, which could run on w, goes before j; after a minute also where both are equal. */
static bool kept_for(const struct job *blocked, const struct job *j, const struct worker *w, int64_t now)
{
    if (blocked->too_big >> w->index & 1)
        return false;
    return j->exp->priority < blocked->exp->priority ||
           (now - blocked->waiting_since > patience &&
            (blocked->suspect || strcmp(j->base, blocked->base) != 0));
}

void dispatch_round(struct sched *s, int64_t now)
{
    struct job **jobs = NULL, *blocked = NULL;
    struct buf words = BUF_INIT;
    bool sorted = false;
    int n = 0;

    count_on_workers(s);
    if (any_room(s) || now >= s->waits_at) { /* without room only to say why they wait */
        n = collect(s, &jobs, now);
        s->waits_at = now + SECOND_NS;
    }
    /* Sorted again after each placement: the owner with fewer running goes first. */
    for (int i = 0; i < n; i++) {
        struct job *j;
        struct worker *w;
        if (!sorted)
            qsort_r(jobs + i, (size_t)(n - i), sizeof(*jobs), order, s);
        sorted = true;
        j = jobs[i];
        if (!j->number && served_by_twin(s, j))
            continue;
        if (!needs_are_there(s, j))
            continue;
        w = find_place(s, j);
        if (w && blocked && kept_for(blocked, j, w, now))
            w = NULL;
        if (w && hand_over(s, j, w)) {
            sorted = false;
            buf_clear(&words);
            continue;
        }
        tell_waits(s, j, &words);
        if (!j->waiting_since)
            j->waiting_since = now;
        if (!blocked && worker_for(s, j)) /* what waits for a device that is down holds nobody back */
            blocked = j;
    }
    recall_waiting(s, blocked);
    buf_release(&words);
    free(jobs);
}
