/* Everything in experiments/EXP/jobs/JOB/. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/internal.h"
#include "scheduler/report/report.h"

enum { MAX_CSV = 64 << 20 };

/* step 120/400 (30%), loss 1.2345, eval_loss 1.3, 5120 tokens/s, 3m20s left */
static void training_line(const json_t *p, struct buf *out)
{
    long long step = json_int(p, "step", 0), total = json_int(p, "total", 0);
    char left[32];

    buf_addf(out, "step %lld/%lld (%.0f%%)", step, total, total ? 100.0 * (double)step / (double)total : 0.0);
    if (json_is_number(json_object_get(p, "loss")))
        buf_addf(out, ", loss %.4f", json_num(p, "loss", 0));
    if (json_is_number(json_object_get(p, "eval_loss")))
        buf_addf(out, ", eval_loss %.4f", json_num(p, "eval_loss", 0));
    if (json_num(p, "tokens_per_s", 0) > 0)
        buf_addf(out, ", %.0f tokens/s", json_num(p, "tokens_per_s", 0));
    if (json_is_number(json_object_get(p, "eta_s")))
        buf_addf(out, ", %s left", clock_human(json_num(p, "eta_s", 0), left, sizeof(left)));
}

void progress_line(const struct job *j, struct buf *out)
{
    const char *phase = json_str(j->progress, "phase", "train");

    buf_addf(out, "%s", state_name(j->state));
    if (j->progress && job_runs(j)) {
        buf_adds(out, ", ");
        if (j->number)
            training_line(j->progress, out);
        if (strcmp(phase, "train") != 0)
            buf_addf(out, "%s%s %lld/%lld", j->number ? ", " : "", phase, json_int(j->progress, "done", 0),
                     json_int(j->progress, "of", 0));
    } else if (j->state == ST_SUCCESSFUL) {
        buf_adds(out, ", score ");
        add_number(out, json_object_get(j->result, "score"), "%.2f");
        buf_adds(out, ", loss ");
        add_number(out, json_object_get(j->result, "loss"), "%.4f");
    } else if (j->reason) {
        buf_addf(out, ", %s", j->reason);
    }
}

int render_job_progress(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct subject it;

    if (!subject_of(s, m, &it))
        return -ENOENT;
    progress_line(it.job, out);
    buf_addc(out, '\n');
    return 0;
}

static void add_result(const struct job *j, const char *key, const char *fmt, struct buf *out)
{
    const json_t *v = json_object_get(j->result, key);

    if (!json_is_number(v))
        return;
    buf_addf(out, "%s: ", key);
    add_number(out, v, fmt);
    buf_addc(out, '\n');
}

int render_job_status(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct subject it;
    struct job *j;

    if (!subject_of(s, m, &it))
        return -ENOENT;
    j = it.job;
    buf_addf(out, "%s\n", state_name(j->state));
    if (j->reason)
        add_field(out, "reason", "%s", j->reason);
    add_field(out, "finetune", "%s", state_name(j->finetune));
    add_field(out, "model", "%s", j->model);
    add_field(out, "dataset", "%s", j->dataset);
    add_field(out, "paramgroup", "%s", j->paramgroup);
    if (j->params)
        add_field(out, "seed", "%lld", j->seed);
    if (j->worker)
        add_field(out, "device", "%s", j->worker->label);
    if (j->suspect)
        add_field(out, "alone", "its worker ended at step %lld; it runs alone until it is past that",
                  j->death_step);
    if (j->progress || j->result) {
        buf_adds(out, "progress: ");
        progress_line(j, out);
        buf_addc(out, '\n');
    }
    add_result(j, "score", "%.2f", out);
    add_result(j, "eval_loss", "%.4f", out);
    add_result(j, "perplexity", "%.4f", out);
    add_result(j, "steps", "%.0f", out);
    add_result(j, "tokens", "%.0f", out);
    add_result(j, "seconds", "%.1f", out);
    add_result(j, "trainable", "%.0f", out);
    if (j->state == ST_SUCCESSFUL)
        add_field(out, "tuned", "models/tuned/%s.%s", j->exp->name, j->name);
    add_time(out, "created", j->created);
    add_time(out, "started", j->started);
    add_time(out, "finished", j->finished);
    return 0;
}

static json_t *copy_or_null(const json_t *v)
{
    return v ? json_deep_copy(v) : json_null();
}

json_t *job_json(struct job *j)
{
    return json_pack(
        "{ss ss so ss ss ss ss ss sI so so so so so}", "name", j->name, "state", state_name(j->state),
        "reason", text_or_null(j->reason), "finetune", state_name(j->finetune), "model", j->model, "base",
        j->base, "dataset", j->dataset, "paramgroup", j->paramgroup, "seed", (json_int_t)j->seed, "device",
        text_or_null(j->worker ? j->worker->label : NULL), "params", copy_or_null(j->params), "progress",
        copy_or_null(j->progress), "result", copy_or_null(j->result), "suspect", json_boolean(j->suspect));
}

int render_job_status_json(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct subject it;
    json_t *v;

    if (!subject_of(s, m, &it))
        return -ENOENT;
    v = job_json(it.job);
    json_print_buf(v, out);
    json_decref(v);
    return 0;
}

int render_job_svg(struct sched *s, const struct layout_match *m, struct buf *out)
{
    char path[PATH_MAX], title[3 * NAME_CAP];
    struct curves curves = {0};
    struct buf csv = BUF_INIT;
    struct subject it;
    bool there;

    pthread_mutex_lock(&s->mutex);
    there = subject_of(s, m, &it);
    pthread_mutex_unlock(&s->mutex);
    if (!there)
        return -ENOENT;
    snprintf(path, sizeof(path), "experiments/%s/jobs/%s/metrics.csv", m->arg[0], m->arg[1]);
    snprintf(title, sizeof(title), "%s/%s", m->arg[0], m->arg[1]);
    if (fd_read_file(s->tree_fd, path, MAX_CSV, &csv, NULL) == 0 && csv.len)
        curves_add_csv(&curves, m->arg[1], csv.p, csv.len);
    chart_svg(out, title, "step", "loss", curves.v, curves.n);
    curves_release(&curves);
    buf_release(&csv);
    return 0;
}
