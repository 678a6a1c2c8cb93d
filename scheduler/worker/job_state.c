/*
 * What a job goes on from: work_dir/state.json
 *     {"generation":3,"file":"state.3","loop":{...},"row":{...}|null}
 * and the engine's file that it names.  A save writes state.4 (durable), then replaces state.json (one
 * rename: from then on generation 4 counts), then removes state.3.  A crash in between leaves a file that the
 * next save or load removes.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

void job_loop_init(struct job_loop *l)
{
    *l = (struct job_loop){.loss = NAN, .eval_loss = NAN, .best_eval = NAN};
}

static json_t *loop_to_json(const struct job_loop *l)
{
    return json_pack("{s:I,s:I,s:I,s:o,s:o,s:o,s:i,s:f,s:I,s:b}", "step", (json_int_t)l->step,
                     "last_eval_step", (json_int_t)l->last_eval_step, "best_step", (json_int_t)l->best_step,
                     "loss", json_number(l->loss), "eval_loss", json_number(l->eval_loss), "best_eval",
                     json_number(l->best_eval), "bad_evals", l->bad_evals, "seconds", l->seconds, "tokens",
                     (json_int_t)l->tokens, "trained", (int)l->trained);
}

static void loop_from_json(struct job_loop *l, const json_t *v)
{
    l->step = json_int(v, "step", 0);
    l->last_eval_step = json_int(v, "last_eval_step", 0);
    l->best_step = json_int(v, "best_step", 0);
    l->loss = json_num(v, "loss", NAN);
    l->eval_loss = json_num(v, "eval_loss", NAN);
    l->best_eval = json_num(v, "best_eval", NAN);
    l->bad_evals = (int)json_int(v, "bad_evals", 0);
    l->seconds = json_num(v, "seconds", 0);
    l->tokens = (uint64_t)json_int(v, "tokens", 0);
    l->trained = json_flag(v, "trained", 0);
}

/* A step whose row waits for its evaluation: the evaluation is made again after a restart. */
static json_t *row_to_json(const struct job *j)
{
    const struct dtx_step_result *r = &j->last;

    if (!j->row_open)
        return json_null();
    return json_pack("{s:I,s:f,s:o,s:f,s:o,s:f,s:b}", "step", (json_int_t)r->step, "epoch", r->epoch, "loss",
                     json_number(r->loss), "lr", r->lr, "grad_norm", json_number(r->grad_norm),
                     "tokens_per_s", j->tokens_per_s, "done", (int)r->done);
}

static void row_from_json(struct job *j, const json_t *v)
{
    j->row_open = json_is_object(v);
    if (!j->row_open)
        return;
    j->last = (struct dtx_step_result){.step = json_int(v, "step", 0),
                                       .epoch = json_num(v, "epoch", 0),
                                       .loss = json_num(v, "loss", NAN),
                                       .lr = json_num(v, "lr", 0),
                                       .grad_norm = json_num(v, "grad_norm", NAN),
                                       .done = json_flag(v, "done", 0)};
    j->tokens_per_s = json_num(v, "tokens_per_s", 0);
}

/* Remove states that state.json does not name. */
static void sweep_states(struct worker *w, const struct job *j, const char *keep)
{
    int fd = openat(w->store, j->spec.work_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *ent;

    if (!d) {
        if (fd >= 0)
            close(fd);
        return;
    }
    while ((ent = readdir(d)))
        if (!strncmp(ent->d_name, "state.", 6) && strcmp(ent->d_name, "state.json") &&
            strcmp(ent->d_name, keep))
            unlinkat(fd, ent->d_name, 0);
    closedir(d);
}

int job_state_load(struct worker *w, struct job *j, char *file, size_t n, struct dtx_err *e)
{
    char path[PATH_MAX];
    const char *name;
    json_t *v = NULL;
    int rc;

    rc = fd_join(path, j->spec.work_dir, "state.json", e);
    if (rc)
        return rc;
    if (faccessat(w->store, path, F_OK, 0))
        return -ENOENT;
    rc = json_parse_file(w->store, path, 65536, &v, e);
    if (rc)
        return rc;
    name = json_str(v, "file", "");
    if (strncmp(name, "state.", 6) != 0 || strchr(name, '/')) {
        rc = dtx_fail(e, -EINVAL, "%s names no state", path);
    } else {
        loop_from_json(&j->loop, json_object_get(v, "loop"));
        row_from_json(j, json_object_get(v, "row"));
        j->state_generation = json_int(v, "generation", 0);
        sweep_states(w, j, name);
        rc = snprintf(file, n, "%s/%s", j->spec.work_dir, name) < (int)n ? 0 : -ENAMETOOLONG;
    }
    json_decref(v);
    return rc;
}

static int write_state_json(struct worker *w, struct job *j, const char *name, int64_t generation,
                            struct dtx_err *e)
{
    json_t *v = json_pack("{s:I,s:s,s:o,s:o}", "generation", (json_int_t)generation, "file", name, "loop",
                          loop_to_json(&j->loop), "row", row_to_json(j));
    char path[PATH_MAX];
    struct buf b = BUF_INIT;
    int rc;

    json_dump_buf(v, &b);
    json_decref(v);
    rc = fd_join(path, j->spec.work_dir, "state.json", e);
    if (rc == 0)
        rc = fd_replace_file(w->store, path, b.p, b.len, 0600, e);
    buf_release(&b);
    return rc;
}

/* Did the failed write_state_json go far enough that state.json names this generation? */
static bool state_json_names(struct worker *w, const struct job *j, int64_t generation)
{
    char path[PATH_MAX];
    json_t *v = NULL;
    bool named;

    if (fd_join(path, j->spec.work_dir, "state.json", NULL) || faccessat(w->store, path, F_OK, 0))
        return false;
    named = json_parse_file(w->store, path, 65536, &v, NULL) || json_int(v, "generation", -1) == generation;
    json_decref(v);
    return named;
}

int job_state_save(struct worker *w, struct job *j, struct dtx_err *e)
{
    int64_t generation = j->state_generation + 1;
    char name[64], path[PATH_MAX];
    int rc = metrics_flush(j, true, e);

    snprintf(name, sizeof(name), "state.%lld", (long long)generation);
    if (rc == 0)
        rc = fd_join(path, j->spec.work_dir, name, e);
    if (rc == 0)
        rc = dtx_job_save(j->train, w->store, path, e);
    if (rc == 0) {
        j->state_generation = generation; /* a number is never used twice */
        rc = write_state_json(w, j, name, generation, e);
        if (rc && !state_json_names(w, j, generation))
            unlinkat(w->store, path, 0);
    }
    if (rc)
        return rc;
    j->saved_ns = clock_mono_ns();
    j->saved_step = j->loop.step;
    sweep_states(w, j, name);
    send_message(w, PM_SAVED, json_pack("{s:s,s:I}", "id", j->spec.id, "step", (json_int_t)j->loop.step));
    return 0;
}
