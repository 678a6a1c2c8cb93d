/* Control words: pause, resume, cancel, stop, retry; of services: stop, start. */
#include <stdio.h>
#include <string.h>

#include "scheduler/internal.h"

static const char *const words[] = {"pause", "resume", "cancel", "stop", "retry"};
static const char *const service_words[] = {"stop", "start"};

bool control_word_known(enum layout_writer w, const char *word)
{
    if (w == LW_SERVICE_CONTROL) {
        for (size_t i = 0; i < sizeof(service_words) / sizeof(service_words[0]); i++)
            if (strcmp(word, service_words[i]) == 0)
                return true;
        return false;
    }
    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
        if (strcmp(word, words[i]) == 0)
            return true;
    return false;
}

static void tell_worker(struct sched *s, struct job *j, const char *how)
{
    if (j->worker)
        worker_send(s, j->worker, PM_JOB_STOP,
                    json_pack("{so ss}", "id", json_sprintf("%s/%s", j->exp->name, j->name), "how", how));
}

static int cancel_job(struct sched *s, struct job *j, const char *why)
{
    int rc = j->state == ST_CANCELLED ? 0 : job_event(s, j, EV_CANCEL, why);

    if (rc)
        return rc;
    if (j->worker) {
        j->cleanup = true;
        tell_worker(s, j, "cancel");
    } else {
        job_remove_files(s, j);
    }
    return 0;
}

static int pause_job(struct sched *s, struct job *j)
{
    int rc = j->state == ST_PAUSED ? 0 : job_event(s, j, EV_PAUSE, NULL);

    if (rc == 0)
        tell_worker(s, j, "pause");
    return rc;
}

static int stop_job(struct sched *s, struct job *j)
{
    int rc;

    if (!job_runs(j) && j->state != ST_INIT && j->state != ST_PAUSED)
        return -EINVAL;
    if (!j->has_run)
        return cancel_job(s, j, "stopped before it began");
    if (j->state == ST_PAUSED && (rc = job_event(s, j, EV_RESUME, NULL)))
        return rc;
    j->stop_asked = true;
    rc = job_keep(s, j);
    if (rc == 0)
        tell_worker(s, j, "stop");
    else
        j->stop_asked = false;
    return rc;
}

static int retry_job(struct sched *s, struct job *j)
{
    struct experiment *x = j->exp;
    int rc;

    if (j->state != ST_FAILED && j->state != ST_CANCELLED)
        return -EINVAL;
    j->suspect = j->stop_asked = false;
    j->deaths_alone = j->died_on = 0;
    set_json(&j->result, NULL);
    /* the experiment first: with no job to run it just ends again, a job of an ended one would wait for ever
     */
    rc = state_is_end(x->state) ? experiment_event(s, x, EV_RETRY, NULL) : 0;
    return rc ? rc : job_event(s, j, EV_RETRY, NULL);
}

int control_job(struct sched *s, struct job *j, const char *word)
{
    if (strcmp(word, "pause") == 0)
        return pause_job(s, j);
    if (strcmp(word, "resume") == 0)
        return job_runs(j) ? 0 : job_event(s, j, EV_RESUME, NULL);
    if (strcmp(word, "cancel") == 0)
        return cancel_job(s, j, NULL);
    if (strcmp(word, "stop") == 0)
        return stop_job(s, j);
    if (strcmp(word, "retry") == 0)
        return retry_job(s, j);
    return -EINVAL;
}

/* The word to every job (and base row) for which it means something; the first true error. */
static int each_job(struct sched *s, struct experiment *x, const char *word,
                    bool (*fits)(const struct job *j))
{
    int rc = 0;

    for (int i = 0; rc == 0 && i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        if (fits(j))
            rc = control_job(s, j, word);
    }
    return rc;
}

static bool is_paused(const struct job *j)
{
    return j->state == ST_PAUSED;
}

static bool is_open(const struct job *j)
{
    return !state_is_end(j->state);
}

static bool is_open_job(const struct job *j)
{
    return j->number && !state_is_end(j->state);
}

static bool is_unlucky(const struct job *j)
{
    return j->state == ST_FAILED || j->state == ST_CANCELLED;
}

static bool any_good(const struct experiment *x)
{
    for (int i = 0; i < x->njobs; i++)
        if (x->jobs[i]->state == ST_SUCCESSFUL)
            return true;
    return false;
}

static int cancel_experiment(struct sched *s, struct experiment *x)
{
    int rc;

    if (x->state == ST_CANCELLED)
        return 0;
    if (state_next(M_EXPERIMENT, x->state, EV_CANCEL) < 0)
        return -EINVAL;
    rc = each_job(s, x, "cancel", is_open);
    /* with a successful job among them it ends as SUCCESS (experiments_round) */
    return rc || any_good(x) ? rc : experiment_event(s, x, EV_CANCEL, NULL);
}

static int pause_experiment(struct sched *s, struct experiment *x)
{
    int rc = x->state == ST_PAUSED ? 0 : experiment_event(s, x, EV_PAUSE, NULL);

    return rc ? rc : each_job(s, x, "pause", job_runs);
}

static int resume_experiment(struct sched *s, struct experiment *x)
{
    int rc = 0;

    if (x->state == ST_PAUSED)
        rc = experiment_event(s, x, EV_RESUME, NULL);
    else if (x->state != ST_PENDING && x->state != ST_PROCESSING)
        rc = -EINVAL;
    return rc ? rc : each_job(s, x, "resume", is_paused);
}

static int stop_experiment(struct sched *s, struct experiment *x)
{
    int rc = x->state == ST_PAUSED ? resume_experiment(s, x) : 0;

    if (x->state != ST_PENDING && x->state != ST_PROCESSING)
        return -EINVAL;
    return rc ? rc : each_job(s, x, "stop", is_open_job);
}

int control_experiment(struct sched *s, struct experiment *x, const char *word)
{
    if (x->njobs == 0)
        return -EINVAL;
    if (strcmp(word, "pause") == 0)
        return pause_experiment(s, x);
    if (strcmp(word, "resume") == 0)
        return resume_experiment(s, x);
    if (strcmp(word, "cancel") == 0)
        return cancel_experiment(s, x);
    if (strcmp(word, "stop") == 0)
        return stop_experiment(s, x);
    if (strcmp(word, "retry") == 0)
        return each_job(s, x, "retry", is_unlucky);
    return -EINVAL;
}
