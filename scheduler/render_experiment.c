/* Everything in experiments/EXP/ but jobs. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/internal.h"
#include "scheduler/report/report.h"

enum { MAX_CSV = 64 << 20, MAX_SCORE = 64 << 20, MAX_SAMPLES = 20 };

/* Jobs and base rows, best first.  The caller frees. */
static struct job **ranked(const struct experiment *x, int *n)
{
    struct job **v = calloc((size_t)(x->njobs + x->nrows) + 1, sizeof(*v));

    *n = 0;
    for (int i = 0; v && i < x->njobs; i++)
        v[(*n)++] = x->jobs[i];
    for (int i = 0; v && i < x->nrows; i++)
        v[(*n)++] = x->rows[i];
    if (v)
        qsort(v, (size_t)*n, sizeof(*v), job_rank_order);
    return v;
}

static json_t *time_or_null(int64_t wall_ns)
{
    char text[32];

    return wall_ns ? json_string(clock_iso(wall_ns, text, sizeof(text))) : json_null();
}

static void copy_result(json_t *to, const struct job *j, const char *key)
{
    json_t *v = json_object_get(j->result, key);

    json_object_set_new(to, key, v ? json_deep_copy(v) : json_null());
}

json_t *leaderboard_json(struct experiment *x)
{
    static const char *const keys[] = {"score", "metrics", "eval_loss", "perplexity",  "loss",
                                       "steps", "seconds", "tokens",    "tokens_per_s"};
    json_t *rows = json_array(), *row;
    int n, rank = 0;
    struct job **v = ranked(x, &n);

    for (int i = 0; v && i < n; i++) {
        struct job *j = v[i];
        row = json_pack("{so ss ss so so so so}", "rank",
                        j->number && j->state == ST_SUCCESSFUL ? json_integer(++rank) : json_null(), "job",
                        j->name, "state", state_name(j->state), "model", text_or_null(j->model), "dataset",
                        text_or_null(j->dataset), "paramgroup", text_or_null(j->paramgroup), "seed",
                        j->number ? json_integer(j->seed) : json_null());
        for (size_t k = 0; k < sizeof(keys) / sizeof(keys[0]); k++)
            copy_result(row, j, keys[k]);
        json_object_set_new(row, "base", json_boolean(!j->number));
        json_array_append_new(rows, row);
    }
    free(v);
    return rows;
}

/* The metrics that any row has, in the order of their names. */
static json_t *metric_names(struct experiment *x)
{
    json_t *all = json_object(), *v;
    const char *key;

    for (int i = 0; i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        json_object_foreach(json_object_get(j->result, "metrics"), key, v)
            json_object_set_new(all, key, json_true());
    }
    return all;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static const char **sorted_names(json_t *set, size_t *n)
{
    const char **v = calloc(json_object_size(set) + 1, sizeof(*v)), *key;
    json_t *value;

    *n = 0;
    json_object_foreach(set, key, value)
    {
        if (v)
            v[(*n)++] = key;
    }
    if (v)
        qsort(v, *n, sizeof(*v), by_name);
    return v;
}

static void leaderboard_line(const struct job *j, int rank, const char **metrics, size_t nmetrics,
                             struct buf *out)
{
    const json_t *values = json_object_get(j->result, "metrics");

    if (rank)
        buf_addf(out, "%d", rank);
    else
        buf_addc(out, '-');
    buf_addf(out, "\t%s\t", j->name);
    add_number(out, json_object_get(j->result, "score"), "%.2f");
    for (size_t i = 0; i < nmetrics; i++) {
        buf_addc(out, '\t');
        add_number(out, json_object_get(values, metrics[i]), "%.4f");
    }
    buf_addc(out, '\t');
    add_number(out, json_object_get(j->result, "eval_loss"), "%.4f");
    buf_addc(out, '\t');
    add_number(out, json_object_get(j->result, "perplexity"), "%.4f");
    buf_addf(out, "\t%s\t%s\t%s\t%s\t", state_name(j->state), j->model, j->dataset[0] ? j->dataset : "-",
             j->paramgroup[0] ? j->paramgroup : "-");
    if (j->number)
        buf_addf(out, "%lld\n", j->seed);
    else
        buf_adds(out, "-\n");
}

int render_exp_leaderboard(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    json_t *set = metric_names(x);
    size_t nmetrics;
    const char **metrics = sorted_names(set, &nmetrics);
    int n, rank = 0;
    struct job **v = ranked(x, &n);

    buf_adds(out, "rank\tjob\tscore");
    for (size_t i = 0; i < nmetrics; i++)
        buf_addf(out, "\t%s", metrics[i]);
    buf_adds(out, "\teval_loss\tperplexity\tstate\tmodel\tdataset\tparamgroup\tseed\n");
    for (int i = 0; v && i < n; i++)
        leaderboard_line(v[i], v[i]->number && v[i]->state == ST_SUCCESSFUL ? ++rank : 0, metrics, nmetrics,
                         out);
    free(v);
    free(metrics);
    json_decref(set);
    return 0;
}

/* ---- status ---- */

static void add_counts(const struct experiment *x, struct buf *out)
{
    const char *sep = "";

    buf_addf(out, "jobs: %d: ", x->njobs);
    for (int st = 0; st < ST_COUNT; st++) {
        int n = 0;
        for (int i = 0; i < x->njobs; i++)
            n += (int)x->jobs[i]->state == st;
        if (n) {
            buf_addf(out, "%s%d %s", sep, n, state_name((enum state)st));
            sep = ", ";
        }
    }
    buf_addc(out, '\n');
}

static void add_best(const struct experiment *x, struct buf *out)
{
    struct job *best = best_job(x);
    double score;

    if (best && job_has_score(best, &score))
        add_field(out, "best", "%s score %.2f", best->name, score);
    else if (best)
        add_field(out, "best", "%s eval_loss %.4f", best->name, json_num(best->result, "eval_loss", 0));
}

/* Seconds until the last of the jobs that run is done, as their workers guess; negative: unknown. */
static double eta_of(const struct experiment *x)
{
    double eta = -1;

    for (int i = 0; i < x->njobs; i++)
        if (x->jobs[i]->worker && json_num(x->jobs[i]->progress, "eta_s", -1) > eta)
            eta = json_num(x->jobs[i]->progress, "eta_s", -1);
    return eta;
}

int render_exp_status(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    char text[32];

    buf_addf(out, "%s\n", state_name(x->state));
    if (x->reason)
        add_field(out, "reason", "%s", x->reason);
    add_counts(x, out);
    add_best(x, out);
    if (eta_of(x) >= 0)
        add_field(out, "time left", "%s for what runs now", clock_human(eta_of(x), text, sizeof(text)));
    if (x->priority)
        add_field(out, "priority", "%d", x->priority);
    add_field(out, "owner", "%u", (unsigned)x->uid);
    add_time(out, "created", x->created);
    add_time(out, "started", x->started);
    add_time(out, "finished", x->finished);
    for (int i = 0; i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        add_field(out, j->name, "%s%s%s", state_name(j->state), j->reason ? ": " : "",
                  shown_reason(j->reason));
    }
    return 0;
}

json_t *experiment_summary(const struct experiment *x)
{
    struct job *best = best_job(x);
    json_t *v = json_pack("{ss ss so so so so so so so si}", "name", x->name, "state", state_name(x->state),
                          "reason", text_or_null(x->reason), "best", text_or_null(best ? best->name : NULL),
                          "created", time_or_null(x->created), "started", time_or_null(x->started),
                          "finished", time_or_null(x->finished), "evaluation",
                          text_or_null(json_str(x->spec, "evaluation", NULL)), "spec_refused",
                          text_or_null(x->spec_reason), "priority", x->priority);
    json_t *counts = json_object();

    for (int i = 0; v && i < x->njobs; i++) {
        const char *state = state_name(x->jobs[i]->state);
        json_object_set_new(counts, state,
                            json_integer(json_integer_value(json_object_get(counts, state)) + 1));
    }
    json_object_set_new(v, "job_states", counts);
    return v;
}

json_t *experiment_json(struct sched *s, struct experiment *x)
{
    json_t *v = experiment_summary(x), *jobs = json_array();

    for (int i = 0; i < x->njobs; i++)
        json_array_append_new(jobs, job_json(x->jobs[i]));
    json_object_set_new(v, "jobs", jobs);
    json_object_set_new(v, "leaderboard", leaderboard_json(x));
    return v;
}

static void dump_pretty(json_t *v, struct buf *out)
{
    json_print_buf(v, out);
    json_decref(v);
}

int render_exp_status_json(struct sched *s, const struct layout_match *m, struct buf *out)
{
    dump_pretty(experiment_json(s, experiment_find(s, m->arg[0])), out);
    return 0;
}

int render_exp_progress(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);

    for (int i = 0; i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        buf_addf(out, "%s: ", j->name);
        progress_line(j, out);
        buf_addc(out, '\n');
    }
    return 0;
}

int render_exp_best(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    struct job *best = best_job(x), *model = best_model(s, x);

    if (!best) {
        buf_adds(out, "none\n");
        add_field(out, "reason", "%s",
                  state_is_end(x->state) ? "no successful job has a score or an eval_loss"
                                         : "no job has ended well yet");
        return 0;
    }
    buf_addf(out, "%s\n", best->name);
    buf_adds(out, "score: ");
    add_number(out, json_object_get(best->result, "score"), "%.2f");
    buf_adds(out, "\neval_loss: ");
    add_number(out, json_object_get(best->result, "eval_loss"), "%.4f");
    buf_adds(out, "\nperplexity: ");
    add_number(out, json_object_get(best->result, "perplexity"), "%.4f");
    if (model == best)
        buf_addf(out, "\nmodel: models/tuned/%s.%s\n", x->name, best->name);
    else
        buf_adds(out, "\nmodel: removed\n");
    if (model)
        buf_addf(out, "link: models/tuned/%s.best -> %s.%s\n", x->name, x->name, model->name);
    return 0;
}

/* What was started: the spec with every default, and the pinned copies. */
int render_exp_spec(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    json_t *v = json_deep_copy(x->spec);

    if (!v)
        return -ENOENT;
    json_object_set_new(v, "pinned", json_deep_copy(x->pins));
    dump_pretty(v, out);
    return 0;
}

/* ---- report.html: what the catalog knows is copied under the mutex, files are read outside of it ---- */

struct report_row {
    char name[NAME_CAP], dir[PATH_MAX];
    bool curve;
};

static struct report_row *report_rows(const struct experiment *x, int *n)
{
    struct report_row *v = calloc((size_t)(x->njobs + x->nrows) + 1, sizeof(*v));
    char work[PATH_MAX], tuned[PATH_MAX];

    *n = 0;
    for (int i = 0; v && i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        struct report_row *r = &v[(*n)++];
        snprintf(r->name, sizeof(r->name), "%s", j->name);
        job_paths(j, r->dir, work, tuned, sizeof(work));
        r->curve = j->number != 0;
    }
    return v;
}

static void add_curve(struct sched *s, const struct report_row *r, struct curves *curves)
{
    char path[PATH_MAX + 16];
    struct buf b = BUF_INIT;

    snprintf(path, sizeof(path), "%s/metrics.csv", r->dir);
    if (r->curve && fd_read_file(s->store_fd, path, MAX_CSV, &b, NULL) == 0 && b.len)
        curves_add_csv(curves, r->name, b.p, b.len);
    buf_release(&b);
}

/* One model's answers into samples: [{"question","reference","answers":{MODEL:text}}]. */
static void add_samples(struct sched *s, const struct report_row *r, json_t *samples)
{
    char path[PATH_MAX + 16];
    json_t *score = NULL, *item, *sample;
    size_t i;

    snprintf(path, sizeof(path), "%s/score.json", r->dir);
    if (json_parse_file(s->store_fd, path, MAX_SCORE, &score, NULL))
        return;
    json_array_foreach(json_object_get(score, "items"), i, item)
    {
        if (i == MAX_SAMPLES)
            break;
        sample = json_array_get(samples, i);
        if (!sample) {
            sample = json_pack("{sO? sO? s{}}", "question", json_object_get(item, "question"), "reference",
                               json_object_get(item, "reference"), "answers");
            json_array_append_new(samples, sample);
        }
        json_object_set(json_object_get(sample, "answers"), r->name, json_object_get(item, "answer"));
    }
    json_decref(score);
}

int render_exp_report(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct curves curves = {0};
    struct report_row *rows = NULL;
    struct experiment *x;
    json_t *v = NULL, *samples = json_array();
    int n = 0;

    pthread_mutex_lock(&s->mutex);
    x = experiment_find(s, m->arg[0]);
    if (x && x->njobs) {
        v = experiment_json(s, x);
        json_object_set(v, "rows", json_object_get(v, "leaderboard"));
        rows = report_rows(x, &n);
    }
    pthread_mutex_unlock(&s->mutex);
    for (int i = 0; rows && i < n; i++) {
        add_curve(s, &rows[i], &curves);
        add_samples(s, &rows[i], samples);
    }
    if (v) {
        json_object_set(v, "samples", samples);
        report_html(out, v, &curves);
    }
    curves_release(&curves);
    free(rows);
    json_decref(samples);
    if (!v)
        return -ENOENT;
    json_decref(v);
    return 0;
}
