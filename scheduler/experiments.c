/* Experiments: accepting a spec, pinning what it names, starting when all is there, ending. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/base/sha256.h"
#include "scheduler/internal.h"

/* ---- accepting ---- */

static const char *const other_bytes =
    "an experiment of this name is there, made from other bytes: rm -r experiments/%s/ "
    "first, or give this one another name";

/* The spec's file holds these bytes while NAME/ exists. */
static int take_again(struct sched *s, struct experiment *x, const char *sha, const char *stamp)
{
    char words[512];
    struct dtx_err e = {0};
    int rc;

    snprintf(words, sizeof(words), other_bytes, x->name);
    set_text(&x->spec_reason, strcmp(sha, x->sha) == 0 ? NULL : words);
    snprintf(x->stamp, sizeof(x->stamp), "%s", stamp);
    slow_begin(s);
    rc = catalog_put_experiment(s->catalog, x, x->state, x->reason, &e);
    slow_end(s);
    if (rc)
        catalog_trouble(s, &e);
    else if (x->spec_reason)
        log_line("experiment %s: spec refused: %s", x->name, words);
    experiment_changed(s, x, false);
    return rc;
}

/* Copies of the parameter groups and the evaluation that are READY.  True if a new one was pinned. */
static bool pin(struct sched *s, struct experiment *x)
{
    const char *evaluation = json_str(x->spec, "evaluation", NULL);
    json_t *groups;
    struct object *o;
    bool news = false;

    if (!x->pins)
        x->pins = json_pack("{s{}sn}", "paramgroups", "evaluation");
    groups = json_object_get(x->pins, "paramgroups");
    for (int i = 0; i < x->njobs; i++) {
        const char *name = x->jobs[i]->paramgroup;
        if (json_object_get(groups, name) || !(o = object_ready(s, OBJ_PARAMGROUP, name)) ||
            !object_readable(o, x->uid, x->gid))
            continue;
        json_object_set_new(groups, name, json_deep_copy(o->spec));
        news = true;
    }
    if (evaluation && json_is_null(json_object_get(x->pins, "evaluation")) &&
        (o = object_ready(s, OBJ_EVALUATION, evaluation)) && object_readable(o, x->uid, x->gid)) {
        json_object_set_new(x->pins, "evaluation", json_deep_copy(o->spec));
        news = true;
    }
    evaluation = json_str(json_object_get(x->pins, "evaluation"), "dataset", NULL);
    if (evaluation && !json_object_get(x->pins, "evaluation_dataset") &&
        (o = object_ready(s, OBJ_DATASET, evaluation)) && object_readable(o, x->uid, x->gid)) {
        json_object_set_new(x->pins, "evaluation_dataset", json_deep_copy(o->spec));
        json_object_set_new(json_object_get(x->pins, "evaluation"), "dataset",
                            json_string(o->name)); /* as its folder writes it */
        news = true;
    }
    return news;
}

static void forget(struct experiment *x)
{
    for (int i = 0; i < x->njobs; i++)
        job_free(x->jobs[i]);
    free(x->jobs);
    x->jobs = NULL;
    x->njobs = 0;
    set_json(&x->spec, NULL);
    set_json(&x->pins, NULL);
}

static int refuse(struct sched *s, struct experiment *x, const char *words)
{
    forget(x);
    return experiment_event(s, x, EV_ERROR, words);
}

/* Spec, pins and jobs in one transaction. */
static int write_accepted(struct sched *s, struct experiment *x)
{
    struct dtx_err e = {0};
    int64_t id = x->id;
    int rc;

    slow_begin(s);
    rc = catalog_begin(s->catalog, &e);
    if (rc == 0)
        rc = catalog_put_experiment(s->catalog, x, ST_PENDING, NULL, &e);
    for (int i = 0; rc == 0 && i < x->njobs; i++)
        rc = catalog_put_job(s->catalog, x->jobs[i], ST_INIT, ST_INIT, NULL, &e);
    if (rc == 0)
        rc = catalog_event(s->catalog, "experiment", x->name, x->state, EV_SETTLE, ST_PENDING, NULL, &e);
    if (rc == 0)
        rc = catalog_commit(s->catalog, &e);
    else
        catalog_rollback(s->catalog);
    slow_end(s);
    if (rc) {
        catalog_trouble(s, &e);
        x->id = id; /* one that was rolled back will be another's */
    }
    return rc;
}

int experiment_restamp(struct sched *s, struct experiment *x, const char *name, const char *stamp)
{
    struct dtx_err e = {0};
    int rc;

    if (x)
        snprintf(x->stamp, sizeof(x->stamp), "%s", stamp);
    else if (gone_note(s, name, stamp))
        return -ENOMEM;
    slow_begin(s);
    rc = x ? catalog_put_experiment(s->catalog, x, x->state, x->reason, &e)
           : catalog_put_gone(s->catalog, name, stamp, &e);
    slow_end(s);
    if (rc)
        catalog_trouble(s, &e);
    return rc;
}

/* A folder left from an experiment of this name that was deleted. */
void experiment_trash(struct sched *s, const char *name)
{
    static unsigned counter;
    char from[PATH_MAX], to[PATH_MAX];
    const char *dirs[] = {"tree/experiments", "work"};

    slow_begin(s);
    mkdirat(s->store_fd, "work/.trash", 0700);
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof(from), "%s/%s", dirs[i], name);
        snprintf(to, sizeof(to), "work/.trash/%lld.%u", (long long)clock_wall_ns(), ++counter);
        if (renameat(s->store_fd, from, s->store_fd, to) == 0) {
            fd_sync_path(s->store_fd, dirs[i], NULL);
            fd_sync_path(s->store_fd, "work/.trash", NULL);
            fd_remove_tree(s->store_fd, to, NULL);
        }
    }
    slow_end(s);
}

static void make_folders(struct sched *s, struct experiment *x)
{
    char path[PATH_MAX];
    struct dtx_err e = {0};
    int rc = 0;

    slow_begin(s);
    snprintf(path, sizeof(path), "tree/experiments/%s/jobs", x->name);
    rc = fd_mkdirs(s->store_fd, path, 0755, &e);
    for (int i = 0; rc == 0 && i < x->njobs; i++) {
        snprintf(path, sizeof(path), "tree/experiments/%s/jobs/%s", x->name, x->jobs[i]->name);
        /* the worker syncs it when it begins; a thousand jobs are accepted without a thousand syncs */
        if (mkdirat(s->store_fd, path, 0755) && errno != EEXIST)
            rc = dtx_fail_errno(&e, "cannot make folder %s", path);
        give_to(s, path + 5, x->uid, x->gid);
    }
    snprintf(path, sizeof(path), "experiments/%s/jobs", x->name);
    give_to(s, path, x->uid, x->gid);
    snprintf(path, sizeof(path), "experiments/%s", x->name);
    give_to(s, path, x->uid, x->gid);
    slow_end(s);
    if (rc)
        log_line("experiment %s: %s", x->name, e.msg);
}

/* A tuned model outlives its experiment, and another's must not go because somebody takes the name again:
 * exporting, and cancelling a job too, would replace or remove it. */
static int check_tuned_names(struct sched *s, const struct experiment *x, struct dtx_err *e)
{
    char path[PATH_MAX];
    struct stat st;
    int rc = 0;

    if (geteuid() != 0 || x->uid == 0)
        return 0;
    slow_begin(s);
    for (int i = 0; rc == 0 && i < x->njobs; i++) {
        snprintf(path, sizeof(path), "models/tuned/%s.%s", x->name, x->jobs[i]->name);
        if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid != x->uid)
            rc = dtx_fail(e, -EPERM,
                          "%s is a model of another user, made by an earlier experiment of this name: give "
                          "this one another name",
                          path);
    }
    slow_end(s);
    return rc;
}

static int accept_spec(struct sched *s, struct experiment *x)
{
    int rc;

    pin(s, x);
    x->priority = (int)json_int(x->spec, "priority", 0);
    experiment_trash(s, x->name); /* before: its jobs must never go on from the files of a deleted one */
    rc = write_accepted(s, x);
    if (rc) {
        forget(x);
        return rc;
    }
    x->state = ST_PENDING;
    x->changed = clock_wall_ns();
    set_text(&x->reason, NULL);
    for (int i = 0; i < x->njobs; i++)
        x->jobs[i]->state = x->jobs[i]->finetune = ST_INIT;
    make_folders(s, x);
    experiment_close_folder(s, x);
    log_line("experiment %s: RECEIVING -> PENDING: %d jobs", x->name, x->njobs);
    experiment_log(s, x, "accepted: %d jobs", x->njobs);
    experiment_changed(s, x, true);
    sched_changed(s, "experiments/%s/jobs/", x->name);
    return 0;
}

int experiment_take(struct sched *s, const char *name, const struct buf *text, const char *refused,
                    const struct caller *who, const char *stamp, bool final)
{
    struct experiment *x = experiment_find(s, name);
    char file[NAME_CAP + 8], sha[65];
    struct dtx_err e = {0};
    json_t *spec = NULL;
    int rc;

    if (!x || experiment_find_deleted(s, name))
        return -EBUSY; /* the old one is still being cancelled; or RECEIVING could not be written */
    sha256_text(text->p ? text->p : "", text->len, sha);
    if (x->njobs && x->state != ST_RECEIVING)
        return take_again(s, x, sha, stamp);
    if (x->state != ST_RECEIVING)
        return -EBUSY;
    snprintf(x->stamp, sizeof(x->stamp), "%s", stamp);
    snprintf(x->sha, sizeof(x->sha), "%s", sha);
    x->uid = who->uid;
    x->gid = who->gid;
    if (refused)
        return refuse(s, x, refused);
    snprintf(file, sizeof(file), "%s.json", name);
    rc = spec_parse(SPEC_EXPERIMENT, file, text->p ? text->p : "", text->len, &spec, &e);
    if (rc && !final)
        return -EAGAIN;
    if (rc)
        return refuse(s, x, e.msg);
    forget(x);
    x->spec = spec;
    set_text(&x->text, text->p);
    rc = jobs_expand(x, &e);
    if (rc == 0)
        rc = check_tuned_names(s, x, &e);
    if (rc)
        return refuse(s, x, e.msg);
    return accept_spec(s, x);
}

/* For close(): would this text be refused?  Mutex held. */
int experiment_refusal(struct sched *s, const char *name, const char *text, size_t n, struct dtx_err *e)
{
    struct experiment *x = experiment_find(s, name);
    char sha[65];

    if (!x || !x->njobs)
        return 0;
    sha256_text(text, n, sha);
    return strcmp(sha, x->sha) == 0 ? 0 : dtx_fail(e, -EINVAL, other_bytes, name);
}

/* ---- starting ---- */

static void want(struct buf *b, const char *what, const char *name, const struct object *o)
{
    buf_addf(b, "%s%s %s", b->len ? ", " : "waiting for: ", what, name);
    if (o && o->state == ST_REJECTED)
        buf_addf(b, " (REJECTED: %s)", public_reason(o) ? public_reason(o) : "");
    else if (o)
        buf_addf(b, " (%s)", state_name(o->state));
}

static bool waits(const struct job *j)
{
    return !j->params && !state_is_end(j->state);
}

/* Has a job before this one that waits too the same name there? */
static bool seen_before(const struct experiment *x, int i, size_t field)
{
    for (int k = 0; k < i; k++)
        if (waits(x->jobs[k]) &&
            strcmp((const char *)x->jobs[k] + field, (const char *)x->jobs[i] + field) == 0)
            return true;
    return false;
}

static bool source_still_runs(struct sched *s, const char *model)
{
    char name[NAME_CAP];
    size_t n = strlen(model);
    struct experiment *x;

    if (n < 11 || strncmp(model, "tuned/", 6) != 0 || strcmp(model + n - 5, ".best") != 0)
        return false;
    snprintf(name, sizeof(name), "%.*s", (int)(n - 11), model + 6);
    x = experiment_find(s, name);
    return x && !state_is_end(x->state);
}

static void want_permission(struct buf *b, const char *what, const char *name)
{
    buf_addf(b, "%sits owner to let you read %s %s (chmod -R)", b->len ? ", " : "waiting for: ", what, name);
}

static void want_object(struct sched *s, const struct experiment *x, enum object_kind kind, const char *name,
                        struct buf *missing)
{
    const struct object *o = object_find(s, kind, name);

    if (o && !object_readable(o, x->uid, x->gid))
        want_permission(missing, object_kind_name(kind), name);
    else if (!object_ready(s, kind, name))
        want(missing, object_kind_name(kind), name, o);
}

static void want_model(struct sched *s, const struct job *j, struct buf *missing)
{
    struct model_ref ref;
    struct dtx_err e = {0};

    if (source_still_runs(s, j->model))
        want(missing, "the end of the experiment of", j->model, NULL);
    else if (model_resolve(s, j->model, &ref, &e))
        want(missing, "model", j->model, object_find(s, OBJ_BASE, j->model));
    else if (!model_readable(s, &ref, j->exp->uid, j->exp->gid))
        want_permission(missing, "model", j->model);
}

/* What is not READY yet, in words; nothing if all is. */
static void find_missing(struct sched *s, struct experiment *x, struct buf *missing)
{
    const char *evaluation = json_str(x->spec, "evaluation", NULL), *name;
    json_t *pinned = json_object_get(x->pins, "evaluation");

    for (int i = 0; i < x->njobs; i++) {
        struct job *j = x->jobs[i];
        if (!waits(j))
            continue;
        if (!json_object_get(json_object_get(x->pins, "paramgroups"), j->paramgroup) &&
            !seen_before(x, i, offsetof(struct job, paramgroup)))
            want_object(s, x, OBJ_PARAMGROUP, j->paramgroup, missing);
        if (!seen_before(x, i, offsetof(struct job, dataset)))
            want_object(s, x, OBJ_DATASET, j->dataset, missing);
        if (!seen_before(x, i, offsetof(struct job, model)))
            want_model(s, j, missing);
    }
    if (evaluation && !json_is_object(pinned))
        want_object(s, x, OBJ_EVALUATION, evaluation, missing);
    name = json_str(pinned, "dataset", NULL);
    if (name)
        want_object(s, x, OBJ_DATASET, name, missing);
}

/* Parameters with overrides and seed; base and adapter under the model's name. */
static int pin_job(struct sched *s, struct job *j, struct dtx_err *e)
{
    struct model_ref ref;
    json_t *params;
    int rc = model_resolve(s, j->model, &ref, e);

    if (rc)
        return rc;
    params = json_deep_copy(json_object_get(json_object_get(j->exp->pins, "paramgroups"), j->paramgroup));
    if (!params)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if (j->overrides)
        rc = spec_merge_overrides(params, j->overrides, e);
    if (rc) {
        json_decref(params);
        return rc;
    }
    if (j->has_seed)
        json_object_set_new(params, "seed", json_integer(j->seed));
    else
        j->seed = json_int(params, "seed", 42);
    set_json(&j->params, params);
    snprintf(j->base, sizeof(j->base), "%s", ref.base);
    snprintf(j->init, sizeof(j->init), "%s", ref.tuned);
    return 0;
}

static int start_job(struct sched *s, struct job *j)
{
    struct dtx_err e = {0};
    int rc = 0;

    if (state_is_end(j->state))
        return 0;
    if (!j->params)
        rc = pin_job(s, j, &e);
    if (rc == -ENOENT) /* it was there a moment ago: the experiment waits for it */
        return -EAGAIN;
    if (rc)
        return job_event(s, j, EV_ERROR, e.msg);
    return j->state == ST_INIT ? job_event(s, j, EV_START, NULL) : 0;
}

/* All of them in one transaction: a thousand jobs, one sync. */
static int start_jobs(struct sched *s, struct experiment *x)
{
    enum state *was = calloc((size_t)x->njobs, sizeof(*was));
    struct dtx_err e = {0};
    int rc, i = 0;

    if (!was)
        return -ENOMEM;
    slow_begin(s);
    rc = catalog_begin(s->catalog, &e);
    slow_end(s);
    for (; rc == 0 && i < x->njobs; i++) {
        was[i] = x->jobs[i]->state;
        rc = start_job(s, x->jobs[i]);
    }
    slow_begin(s);
    rc = rc ? rc : catalog_commit(s->catalog, &e);
    if (rc)
        catalog_rollback(s->catalog);
    slow_end(s);
    if (e.code)
        catalog_trouble(s, &e);
    while (rc && i-- > 0) /* nobody has acted on it: no worker has one of these */
        if (x->jobs[i]->state != was[i])
            x->jobs[i]->state = x->jobs[i]->finetune = was[i];
    free(was);
    return rc;
}

static bool any_open(const struct experiment *x)
{
    for (int i = 0; i < x->njobs; i++)
        if (!state_is_end(x->jobs[i]->state))
            return true;
    return false;
}

static void pin_more(struct sched *s, struct experiment *x)
{
    struct dtx_err e = {0};
    int rc;

    if (!pin(s, x))
        return;
    slow_begin(s);
    rc = catalog_put_experiment(s->catalog, x, x->state, x->reason, &e);
    slow_end(s);
    if (rc)
        catalog_trouble(s, &e);
}

static void try_start(struct sched *s, struct experiment *x)
{
    struct buf missing = BUF_INIT;
    int rc;

    pin_more(s, x);
    if (any_open(x)) /* else nobody needs anything: it starts only to end */
        find_missing(s, x, &missing);
    if (missing.len) {
        experiment_event(s, x, EV_WAIT, missing.p);
        buf_release(&missing);
        return;
    }
    rc = start_jobs(s, x);
    if (rc == 0)
        experiment_close_folder(s, x);
    if (rc == 0)
        rc = rows_expand(s, x);
    if (rc == 0)
        experiment_event(s, x, EV_START, NULL);
}

/* Jobs that were cancelled before the experiment started, and retried after that. */
static void start_late(struct sched *s, struct experiment *x)
{
    struct buf missing = BUF_INIT;
    bool any = false;

    for (int i = 0; i < x->njobs && !any; i++)
        any = waits(x->jobs[i]);
    if (!any)
        return;
    pin_more(s, x);
    find_missing(s, x, &missing);
    if (!missing.len && start_jobs(s, x) == 0)
        rows_expand(s, x);
    for (int i = 0; missing.len && i < x->njobs; i++) {
        struct job *j = x->jobs[i];
        if (!waits(j) || (j->reason && strcmp(j->reason, missing.p) == 0))
            continue;
        set_text(&j->reason, missing.p);
        job_changed(s, j, false);
    }
    buf_release(&missing);
}

/* ---- ending ---- */

static void count(const struct experiment *x, int *good, int *cancelled, int *failed, int *open)
{
    *good = *cancelled = *failed = *open = 0;
    for (int i = 0; i < x->njobs; i++)
        switch (x->jobs[i]->state) {
        case ST_SUCCESSFUL:
            ++*good;
            break;
        case ST_CANCELLED:
            ++*cancelled;
            break;
        case ST_FAILED:
            ++*failed;
            break;
        default:
            ++*open;
        }
}

static void try_end(struct sched *s, struct experiment *x)
{
    int good, cancelled, failed, open;
    char words[128];
    bool rows_open = false;

    count(x, &good, &cancelled, &failed, &open);
    if (open || x->njobs == 0)
        return;
    for (int i = 0; i < x->nrows; i++)
        if (!state_is_end(x->rows[i]->state)) {
            if (cancelled == x->njobs)
                control_job(s, x->rows[i], "cancel");
            rows_open = true;
        }
    if (rows_open)
        return;
    snprintf(words, sizeof(words), "%d of %d jobs successful, %d failed, %d cancelled", good, x->njobs,
             failed, cancelled);
    experiment_event(s, x, good ? EV_DONE : cancelled == x->njobs ? EV_ALL_CANCELLED : EV_NONE_WELL, words);
}

/* The catalog forgets it at once; memory and files go when no worker has a job of it any more. */
int experiment_delete(struct sched *s, struct experiment *x)
{
    int rc;

    rc = experiment_event(s, x, EV_RMDIR, NULL);
    if (rc)
        return rc;
    x->deleted = true;
    gone_note(s, x->name, x->stamp);
    if (!x->on_workers) /* at once: while its folder is there nobody else can take the name */
        experiment_trash(s, x->name);
    for (int i = 0; i < x->njobs + x->nrows; i++) {
        struct job *j = i < x->njobs ? x->jobs[i] : x->rows[i - x->njobs];
        if (j->worker)
            worker_send(s, j->worker, PM_JOB_STOP,
                        json_pack("{so ss}", "id", json_sprintf("%s/%s", x->name, j->name), "how", "cancel"));
    }
    return 0;
}

/* Answers that were being written.  A service has one folder for all of its prompts. */
static void sweep_answers(struct sched *s)
{
    slow_begin(s);
    for (int i = 0; i < s->nobjects; i++) {
        const struct object *o = s->objects[i];
        char path[PATH_MAX];
        if (o->kind == OBJ_COMPARE)
            snprintf(path, sizeof(path), "models/compare/%s", o->name);
        else if (o->kind == OBJ_SERVICE)
            snprintf(path, sizeof(path), "services/%s/ask", o->name);
        else
            continue;
        fd_sweep(s->tree_fd, path);
    }
    slow_end(s);
}

void experiments_sweep(struct sched *s)
{
    gone_sweep(s);
    for (int i = 0; i < s->nexps; i++)
        for (int k = 0; k < s->exps[i]->njobs; k++) {
            struct job *j = s->exps[i]->jobs[k];
            if (j->state == ST_CANCELLED)
                job_remove_files(s, j);
            else if (j->state == ST_SUCCESSFUL)
                job_remove_work(s, j);
        }
    sweep_answers(s);
}

static void drop_unsaved_rows(struct experiment *x)
{
    while (x->nrows && x->rows[x->nrows - 1]->id == 0)
        job_free(x->rows[--x->nrows]);
}

void experiments_round(struct sched *s, int64_t now)
{
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        if (x->deleted && !x->on_workers) {
            experiment_trash(s, x->name);
            experiment_drop(s, x);
            i--;
            continue;
        }
        if (x->deleted || x->retry_at > now)
            continue;
        drop_unsaved_rows(x);
        if ((x->state == ST_PENDING || x->state == ST_PROCESSING) && x->njobs &&
            (x->looked != s->transitions || now >= x->look_at)) {
            x->looked = s->transitions;
            x->look_at = now + SECOND_NS;
            if (x->state == ST_PENDING)
                try_start(s, x);
            else
                start_late(s, x);
        }
        if (x->state == ST_PROCESSING || x->state == ST_PAUSED)
            try_end(s, x);
    }
}
