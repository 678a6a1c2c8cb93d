/* From an experiment's spec to its jobs, and from a job to the spec that a worker gets. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/base/sha256.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

bool job_runs(const struct job *j)
{
    return j->state == ST_PENDING || j->state == ST_FINETUNE || j->state == ST_EXPORT ||
           j->state == ST_SERVE || j->state == ST_SCORE;
}

static void copy_name(char *out, const json_t *v)
{
    const char *t = json_string_value(v);

    snprintf(out, NAME_CAP, "%s", t ? t : "");
}

static struct job *add_job(struct experiment *x, const json_t *model, const json_t *dataset,
                           const json_t *paramgroup, struct dtx_err *e)
{
    struct job *j = x->njobs < MAX_JOBS ? job_new(x, x->njobs + 1) : NULL;

    if (!j) {
        dtx_fail(e, -E2BIG, "more than %d jobs: make several experiments of it", MAX_JOBS);
        return NULL;
    }
    copy_name(j->model, model);
    copy_name(j->dataset, dataset);
    copy_name(j->paramgroup, paramgroup);
    return j;
}

static int expand_product(struct experiment *x, struct job_axes *axes, struct dtx_err *e)
{
    json_t *models = json_object_get(x->spec, "models"), *datasets = json_object_get(x->spec, "datasets");
    json_t *groups = json_object_get(x->spec, "paramgroups"), *seeds = json_object_get(x->spec, "seeds");
    size_t nseeds = json_array_size(seeds), total = nseeds ? nseeds : 1;

    total *= json_array_size(models) * json_array_size(datasets) * json_array_size(groups);
    if (total > MAX_JOBS)
        return dtx_fail(e, -E2BIG, "%zu combinations: an experiment has at most %d jobs; make several of it",
                        total, MAX_JOBS);
    *axes = (struct job_axes){json_array_size(datasets) > 1, json_array_size(models) > 1, nseeds > 1};
    for (size_t i = 0; i < total; i++) {
        size_t seed = i % (nseeds ? nseeds : 1), k = i / (nseeds ? nseeds : 1);
        size_t group = k % json_array_size(groups), dataset, model;
        struct job *j;

        k /= json_array_size(groups);
        dataset = k % json_array_size(datasets);
        model = k / json_array_size(datasets);
        j = add_job(x, json_array_get(models, model), json_array_get(datasets, dataset),
                    json_array_get(groups, group), e);
        if (!j)
            return -E2BIG;
        j->has_seed = nseeds > 0;
        j->seed = nseeds ? json_integer_value(json_array_get(seeds, seed)) : 0;
    }
    return 0;
}

static int expand_list(struct experiment *x, struct job_axes *axes, struct dtx_err *e)
{
    const json_t *v, *name;
    struct job *j, *first = NULL;
    size_t i;

    json_array_foreach(json_object_get(x->spec, "jobs"), i, v)
    {
        json_t *overrides = json_object_get(v, "overrides");
        j = add_job(x, json_object_get(v, "model"), json_object_get(v, "dataset"),
                    json_object_get(v, "paramgroup"), e);
        if (!j)
            return -E2BIG;
        if (json_object_size(overrides))
            j->overrides = json_incref(overrides);
        name = json_object_get(v, "name");
        if (json_is_string(name))
            snprintf(j->name, sizeof(j->name), "%s", json_string_value(name));
        if (!first)
            first = j;
        axes->dataset |= strcmp(first->dataset, j->dataset) != 0;
        axes->model |= strcmp(first->model, j->model) != 0;
    }
    return 0;
}

static int check_job_name(const struct experiment *x, const struct job *j, struct dtx_err *e)
{
    int rc = name_check(j->name, e);

    if (rc)
        return dtx_fail_context(e, "%s.json: jobs[%d].name", x->name, j->number - 1);
    if (strlen(x->name) + strlen(j->name) + 2 > 200)
        return dtx_fail(e, -ENAMETOOLONG, "%s.json: jobs[%d].name is too long", x->name, j->number - 1);
    for (int i = 0; i < j->number - 1; i++)
        if (strcmp(x->jobs[i]->name, j->name) == 0)
            return dtx_fail(e, -EINVAL, "%s.json: jobs[%d].name: \"%s\" is also the name of jobs[%d]",
                            x->name, j->number - 1, j->name, i);
    return 0;
}

int jobs_expand(struct experiment *x, struct dtx_err *e)
{
    struct job_axes axes = {0};
    int rc = json_array_size(json_object_get(x->spec, "jobs")) ? expand_list(x, &axes, e)
                                                               : expand_product(x, &axes, e);

    for (int i = 0; rc == 0 && i < x->njobs; i++) {
        if (!x->jobs[i]->name[0])
            job_name(x->jobs[i], &axes, x->njobs, x->jobs[i]->name, sizeof(x->jobs[i]->name));
        rc = check_job_name(x, x->jobs[i], e);
    }
    if (rc == 0 && x->njobs == 0)
        rc = dtx_fail(e, -EINVAL, "%s.json names no jobs: give models, datasets and paramgroups, or jobs",
                      x->name);
    return rc;
}

/* ---- the untuned bases' rows ---- */

static const char *report_sha(struct sched *s, enum object_kind kind, const char *name)
{
    struct object *o = object_find(s, kind, name);
    const char *sha = o ? json_str(o->report, "sha256", NULL) : NULL;

    return sha ? sha : o ? o->stamp : "";
}

static void score_key(struct sched *s, struct experiment *x, struct job *j)
{
    const json_t *evaluation = json_object_get(x->pins, "evaluation");
    struct buf b = BUF_INIT;

    buf_addf(&b, "%s %s %s ", j->base, report_sha(s, OBJ_BASE, j->base),
             report_sha(s, OBJ_DATASET, json_str(evaluation, "dataset", "")));
    json_dump_buf(evaluation, &b);
    sha256_text(b.p, b.len, j->score_key);
    buf_release(&b);
}

static struct job *new_row(struct sched *s, struct experiment *x, const char *base)
{
    struct job *row = job_new(x, 0);

    if (!row)
        return NULL;
    snprintf(row->name, sizeof(row->name), "base:%.240s", base);
    snprintf(row->base, sizeof(row->base), "%s", base);
    snprintf(row->model, sizeof(row->model), "%s", base);
    score_key(s, x, row);
    /* experiments_round tries again: a row without an id is dropped there */
    return job_event(s, row, EV_WRITE, NULL) ? NULL : row;
}

int rows_expand(struct sched *s, struct experiment *x)
{
    char name[NAME_CAP];

    if (!json_is_object(json_object_get(x->pins, "evaluation")))
        return 0;
    for (int i = 0; i < x->njobs; i++) {
        struct job *j = x->jobs[i], *row;
        snprintf(name, sizeof(name), "base:%.240s", j->base);
        if (!j->base[0])
            continue;
        row = job_find(x, name);
        if (!row && !(row = new_row(s, x, j->base)))
            return -EIO;
        if (row->state == ST_INIT && job_event(s, row, EV_START, NULL))
            return -EIO;
    }
    return 0;
}

/* ---- what a worker gets ---- */

void job_paths(const struct job *j, char *job_dir, char *work_dir, char *tuned, size_t n)
{
    if (j->number) {
        snprintf(job_dir, n, "tree/experiments/%s/jobs/%s", j->exp->name, j->name);
        snprintf(work_dir, n, "work/%s/%s", j->exp->name, j->name);
        snprintf(tuned, n, "tree/models/tuned/%s.%s", j->exp->name, j->name);
    } else {
        snprintf(work_dir, n, "work/.base/%.32s", j->score_key);
        snprintf(job_dir, n, "%s", work_dir);
        tuned[0] = '\0';
    }
}

static void add_dir(json_t *v, const char *key, const char *prefix, const char *name)
{
    if (name && name[0])
        json_object_set_new(v, key, json_sprintf("%s/%s", prefix, name));
    else
        json_object_set_new(v, key, json_null());
}

static void add_copy(json_t *v, const char *key, const json_t *value)
{
    json_object_set_new(v, key, value ? json_deep_copy(value) : json_null());
}

/* What the dataset is now; kept with the job, so that it can go on from its cache when the dataset is gone.
 */
void job_pin_data(struct sched *s, struct job *j)
{
    struct object *o = object_find(s, OBJ_DATASET, j->dataset);

    if (j->cached || !o)
        return;
    snprintf(j->dataset, sizeof(j->dataset), "%.*s", NAME_CAP - 1, o->name); /* as its folder writes it */
    set_json(&j->data,
             json_pack("{sOss}", "spec", o->spec, "sha256", report_sha(s, OBJ_DATASET, j->dataset)));
}

static void add_training(struct job *j, json_t *v)
{
    add_dir(v, "init_dir", "tree/models/tuned", j->init);
    json_object_set_new(v, "dataset", json_string(j->dataset));
    add_dir(v, "dataset_dir", "tree/datasets", j->dataset);
    add_copy(v, "dataset_spec", json_object_get(j->data, "spec"));
    add_copy(v, "dataset_sha256", json_object_get(j->data, "sha256"));
    add_copy(v, "paramgroup", j->params);
    json_object_set_new(v, "paramgroup_name", json_string(j->paramgroup));
    json_object_set_new(v, "seed", json_integer(j->seed));
    add_copy(v, "early_stopping", json_object_get(j->exp->spec, "early_stopping"));
}

json_t *job_spec(struct job *j)
{
    char job_dir[PATH_MAX], work_dir[PATH_MAX], tuned[PATH_MAX];
    json_t *v = json_object(), *evaluation = json_object_get(j->exp->pins, "evaluation");
    const char *eval_dataset = json_str(evaluation, "dataset", NULL);

    job_paths(j, job_dir, work_dir, tuned, sizeof(tuned));
    json_object_set_new(v, "experiment", json_string(j->exp->name));
    json_object_set_new(v, "job", json_string(j->name));
    json_object_set_new(v, "base", json_string(j->base));
    add_dir(v, "base_dir", "tree/models/base", j->base);
    if (j->number)
        add_training(j, v);
    add_copy(v, "evaluation", evaluation);
    add_copy(v, "evaluation_name", json_object_get(j->exp->spec, "evaluation"));
    add_dir(v, "evaluation_dataset_dir", "tree/datasets", eval_dataset);
    add_copy(v, "evaluation_dataset_spec", json_object_get(j->exp->pins, "evaluation_dataset"));
    json_object_set_new(v, "job_dir", json_string(job_dir));
    json_object_set_new(v, "work_dir", json_string(work_dir));
    if (tuned[0])
        json_object_set_new(v, "tuned_dir", json_string(tuned));
    if (j->suspect)
        json_object_set_new(v, "save_after", json_integer(j->death_step));
    json_object_set_new(v, "uid", json_integer(j->exp->uid));
    json_object_set_new(v, "gid", json_integer(j->exp->gid));
    return json_pack("{so so}", "id", json_sprintf("%s/%s", j->exp->name, j->name), "spec", v);
}

/* Cancelled: only the logs stay. */
void job_remove_work(struct sched *s, const struct job *j)
{
    char job_dir[PATH_MAX - 64], work_dir[PATH_MAX - 64], tuned[PATH_MAX - 64];
    struct dtx_err e = {0};
    int rc;

    if (!j->number)
        return; /* a row's score is kept there */
    job_paths(j, job_dir, work_dir, tuned, sizeof(tuned));
    slow_begin(s);
    rc = fd_remove_tree(s->store_fd, work_dir, &e);
    slow_end(s);
    if (rc)
        log_line("job %s/%s: its training state could not be removed: %s", j->exp->name, j->name, e.msg);
}

void job_remove_files(struct sched *s, struct job *j)
{
    static const char *const of_tree[] = {"checkpoint", "score.json", "provenance.json"};
    char job_dir[PATH_MAX - 64], work_dir[PATH_MAX - 64], tuned[PATH_MAX - 64], path[PATH_MAX];
    struct dtx_err e = {0};
    int rc;

    if (j->has_run || j->cached) { /* first: a retry begins anew, and reads the dataset again */
        j->has_run = j->cached = false;
        job_keep(s, j);
    }
    job_paths(j, job_dir, work_dir, tuned, sizeof(tuned));
    slow_begin(s);
    rc = j->number ? fd_remove_tree(s->store_fd, work_dir, &e) : 0;
    for (size_t i = 0; rc == 0 && j->number && i < sizeof(of_tree) / sizeof(of_tree[0]); i++) {
        snprintf(path, sizeof(path), "%s/%s", job_dir, of_tree[i]);
        rc = fd_remove_tree(s->store_fd, path, &e);
    }
    if (rc == 0 && tuned[0])
        rc = fd_remove_tree(s->store_fd, tuned, &e);
    slow_end(s);
    if (rc)
        log_line("job %s/%s was cancelled, but not all of its files could be removed: %s", j->exp->name,
                 j->name, e.msg);
}
