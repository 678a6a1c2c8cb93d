/*
 * Which job goes to which worker.  Jobs of one base run together on a worker (up to MAX_TOGETHER), spread
 * over the workers.  Order: priority; then the experiment with the fewest jobs running; then age.  A job that
 * found no place keeps later ones of lower priority back (and, after a minute, equal ones of other bases
 * too), so that nothing starves. After a worker's death its jobs are suspects: each runs alone until it has
 * got past the step where it happened.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

static const int64_t patience = 60 * SECOND_NS;

static bool has_suspect(struct sched *s, const struct worker *w)
{
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        for (int k = 0; k < x->njobs + x->nrows; k++) {
            const struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (j->worker == w && j->suspect)
                return true;
        }
    }
    return false;
}

static bool fits(struct sched *s, const struct worker *w, const struct job *j)
{
    if (w->state != WS_UP || w->quitting || w->let_go || w->eof_at || w->held_body)
        return false;
    if (w->njobs == 0)
        return true;
    return !j->suspect && w->njobs < MAX_TOGETHER && strcmp(w->job_base, j->base) == 0 && !has_suspect(s, w);
}

static bool any_room(struct sched *s)
{
    for (int i = 0; i < s->nworkers; i++)
        if (s->workers[i].state == WS_UP && s->workers[i].njobs < MAX_TOGETHER)
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

static int order(const void *a, const void *b)
{
    const struct job *x = *(struct job *const *)a, *y = *(struct job *const *)b;

    if (x->exp->priority != y->exp->priority)
        return x->exp->priority > y->exp->priority ? -1 : 1;
    if (x->suspect != y->suspect)
        return x->suspect ? -1 : 1; /* to know soon which one it is */
    if (x->exp->running != y->exp->running)
        return x->exp->running - y->exp->running;
    if (x->exp->id != y->exp->id)
        return x->exp->id < y->exp->id ? -1 : 1;
    /* the bases' rows are short and make the leaderboard readable: first */
    return x->number - y->number;
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

static bool needs_are_there(struct sched *s, struct job *j)
{
    char words[2 * NAME_CAP];

    if (j->number && !j->params)
        return false;
    words[0] = '\0';
    if (!object_ready(s, OBJ_BASE, j->base))
        snprintf(words, sizeof(words), "waiting for: model %s", j->base);
    else if (j->number && !j->cached && !object_ready(s, OBJ_DATASET, j->dataset))
        snprintf(words, sizeof(words), "waiting for: dataset %s", j->dataset);
    else if (j->init[0] && !j->has_run && !object_find(s, OBJ_TUNED, j->init))
        snprintf(words, sizeof(words), "waiting for: model tuned/%s", j->init);
    if (words[0] && (!j->reason || strcmp(j->reason, words) != 0)) {
        set_text(&j->reason, words);
        job_changed(s, j, false);
    }
    return !words[0];
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
    j->held_dataset = !j->cached;
    j->waiting_since = 0;
    set_text(&j->reason, NULL);
    set_json(&j->progress, NULL);
    w->njobs++;
    j->exp->running++;
    snprintf(w->job_base, sizeof(w->job_base), "%s", j->base);
    snprintf(w->base, sizeof(w->base), "%s", j->base);
    log_line("job %s/%s: to %s%s", j->exp->name, j->name, w->label, j->suspect ? ", alone" : "");
    sched_changed(s, "devices/%s", w->label);
    return true;
}

static int collect(struct sched *s, struct job ***out, int64_t now)
{
    int n = 0, cap = 0;

    *out = NULL;
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        x->running = 0;
        for (int k = 0; k < x->njobs; k++)
            x->running += x->jobs[k]->worker != NULL;
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
    return n;
}

void dispatch_round(struct sched *s, int64_t now)
{
    struct job **jobs, *blocked = NULL;
    int n = collect(s, &jobs, now);
    bool sorted = false;

    /* Sorted again after each placement: the experiment with fewer running goes first. */
    for (int i = 0; i < n && any_room(s); i++) {
        struct job *j;
        struct worker *w;
        if (!sorted)
            qsort(jobs + i, (size_t)(n - i), sizeof(*jobs), order);
        sorted = true;
        j = jobs[i];
        if (blocked && j->exp->priority < blocked->exp->priority)
            break;
        if (blocked && now - blocked->waiting_since > patience && strcmp(j->base, blocked->base) != 0)
            continue;
        if ((!j->number && served_by_twin(s, j)) || !needs_are_there(s, j))
            continue;
        w = find_place(s, j);
        if (w && hand_over(s, j, w)) {
            sorted = false;
            continue;
        }
        if (!j->waiting_since)
            j->waiting_since = now;
        if (!blocked)
            blocked = j;
    }
    free(jobs);
}
