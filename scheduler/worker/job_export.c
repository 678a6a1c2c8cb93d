/*
 * EXPORT: the PEFT folder jobs/JOB/checkpoint and the tuned model's folder with the same files.  Each folder
 * is made under work_dir and put into its place by one rename, so that it is never seen half written; made
 * again after a crash it takes the place of the one before.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

static int sync_parent(struct worker *w, const char *path, struct dtx_err *e)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/');

    snprintf(parent, sizeof(parent), "%.*s", slash ? (int)(slash - path) : 1, slash ? path : ".");
    return fd_sync_path(w->store, parent, e);
}

static int make_parent(struct worker *w, const char *path, struct dtx_err *e)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(path, '/');

    if (!slash)
        return 0;
    snprintf(parent, sizeof(parent), "%.*s", (int)(slash - path), path);
    return fd_mkdirs(w->store, parent, 0755, e);
}

/* Rename the folder `from` to `to`, in the place of one that may be there. */
static int install(struct worker *w, const char *from, const char *to, struct dtx_err *e)
{
    int rc = make_parent(w, to, e);

    if (rc)
        return rc;
    if (renameat2(w->store, from, w->store, to, RENAME_NOREPLACE)) {
        if (errno != EEXIST || renameat2(w->store, from, w->store, to, RENAME_EXCHANGE))
            return dtx_fail_errno(e, "cannot put %s into its place", to);
        rc = fd_remove_tree(w->store, from, e);
    }
    return rc ? rc : sync_parent(w, to, e);
}

/* As closed to others as the experiment's folder, which is two above the job's. */
static mode_t folder_mode(struct worker *w, const struct job *j)
{
    char path[PATH_MAX];
    struct stat st;

    if (fd_join(path, j->spec.job_dir, "../..", NULL) || fstatat(w->store, path, &st, 0))
        return 0755;
    return st.st_mode & 0755;
}

static int fresh_folder(struct worker *w, struct job *j, const char *path, struct dtx_err *e)
{
    int rc = fd_remove_tree(w->store, path, e);

    if (rc)
        return rc;
    if (mkdirat(w->store, path, folder_mode(w, j)))
        return dtx_fail_errno(e, "cannot make folder %s", path);
    job_chown(w, j, path);
    return 0;
}

/* Call fn for every file of a folder. */
static int each_file(struct worker *w, struct job *j, const char *dir, const char *other,
                     int (*fn)(struct worker *w, struct job *j, const char *from, const char *to,
                               struct dtx_err *e),
                     struct dtx_err *e)
{
    int fd = openat(w->store, dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc = 0;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *ent;

    if (!d) {
        rc = dtx_fail_errno(e, "cannot open %s", dir);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    while (rc == 0 && (ent = readdir(d))) {
        char from[PATH_MAX], to[PATH_MAX];

        if (ent->d_name[0] == '.')
            continue;
        rc = fd_join(from, dir, ent->d_name, e);
        if (rc == 0)
            rc = fd_join(to, other, ent->d_name, e);
        if (rc == 0)
            rc = fn(w, j, from, to, e);
    }
    closedir(d);
    return rc;
}

static int own_file(struct worker *w, struct job *j, const char *from, const char *to, struct dtx_err *e)
{
    if (fchmodat(w->store, from, 0644, 0) || job_chown(w, j, from))
        return dtx_fail_errno(e, "cannot set the owner of %s", from);
    return fd_sync_path(w->store, from, e);
}

static int link_file(struct worker *w, struct job *j, const char *from, const char *to, struct dtx_err *e)
{
    if (linkat(w->store, from, w->store, to, 0))
        return dtx_fail_errno(e, "cannot link %s to %s", from, to);
    return 0;
}

static json_t *tuned_info(const struct job *j)
{
    const struct job_spec *s = &j->spec;
    json_t *v =
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:I}", "experiment", s->experiment, "job", s->job, "base",
                  s->base_name, "dataset", s->dataset, "paramgroup", json_str(s->json, "paramgroup_name", ""),
                  "seed", (json_int_t)s->params.seed, "steps", (json_int_t)j->loop.step);
    const json_t *metadata = json_object_get(s->dataset_spec, "metadata");
    char stamp[32];

    json_object_set_new(v, "created", json_string(clock_iso(clock_wall_ns(), stamp, sizeof(stamp))));
    json_object_set_new(v, "template", s->template_name ? json_string(s->template_name) : json_null());
    json_object_set_new(v, "rank", json_integer(s->params.rank));
    json_object_set_new(v, "loss", json_number(j->loop.loss));
    json_object_set_new(v, "eval_loss", json_number(j->loop.eval_loss));
    if (s->init_dir)
        json_object_set_new(v, "init", json_string(s->init_dir));
    if (metadata)
        json_object_set(v, "metadata", (json_t *)(uintptr_t)metadata);
    return v;
}

static int write_info(struct worker *w, struct job *j, const char *dir, struct dtx_err *e)
{
    char path[PATH_MAX];
    json_t *v = tuned_info(j);
    int rc = fd_join(path, dir, "info.json", e);

    if (j->result) {
        json_object_set(v, "score", json_object_get(j->result, "score"));
        json_object_set(v, "metrics", json_object_get(j->result, "metrics"));
        json_object_set(v, "perplexity", json_object_get(j->result, "perplexity"));
    }
    if (rc == 0)
        rc = job_write_json(w, j, path, v, e);
    json_decref(v);
    return rc;
}

static int export_checkpoint(struct worker *w, struct job *j, const char *place, struct dtx_err *e)
{
    char temp[PATH_MAX];
    int rc = fd_join(temp, j->spec.work_dir, "checkpoint.new", e);

    if (rc == 0)
        rc = fresh_folder(w, j, temp, e);
    if (rc == 0)
        rc = dtx_job_export(j->train, w->store, temp, j->spec.base_name, e);
    if (rc == 0)
        rc = each_file(w, j, temp, temp, own_file, e);
    if (rc == 0)
        rc = fd_sync_path(w->store, temp, e);
    if (rc == 0)
        rc = install(w, temp, place, e);
    if (rc)
        fd_remove_tree(w->store, temp, NULL);
    return rc;
}

static int export_tuned(struct worker *w, struct job *j, const char *checkpoint, struct dtx_err *e)
{
    char temp[PATH_MAX];
    int rc = fd_join(temp, j->spec.work_dir, "tuned.new", e);

    if (rc == 0)
        rc = fresh_folder(w, j, temp, e);
    if (rc == 0)
        rc = each_file(w, j, checkpoint, temp, link_file, e);
    if (rc == 0)
        rc = write_info(w, j, temp, e);
    if (rc == 0)
        rc = fd_sync_path(w->store, temp, e);
    if (rc == 0)
        rc = install(w, temp, j->spec.tuned_dir, e);
    if (rc)
        fd_remove_tree(w->store, temp, NULL);
    return rc;
}

int job_export(struct worker *w, struct job *j, struct dtx_err *e)
{
    char checkpoint[PATH_MAX];
    int rc = fd_join(checkpoint, j->spec.job_dir, "checkpoint", e);

    if (rc == 0)
        rc = export_checkpoint(w, j, checkpoint, e);
    if (rc == 0)
        rc = export_tuned(w, j, checkpoint, e);
    if (rc)
        return dtx_fail_context(e, "the adapter could not be exported");
    job_log(j, "exported to %s", j->spec.tuned_dir);
    return 0;
}

/* score.json of job_dir also in tuned_dir, in the place of an older one. */
static int link_score(struct worker *w, struct job *j, struct dtx_err *e)
{
    char from[PATH_MAX], temp[PATH_MAX], to[PATH_MAX];
    int rc = fd_join(from, j->spec.job_dir, "score.json", e);

    if (rc == 0)
        rc = fd_join(temp, j->spec.tuned_dir, ".score.tmp", e);
    if (rc == 0)
        rc = fd_join(to, j->spec.tuned_dir, "score.json", e);
    if (rc)
        return rc;
    unlinkat(w->store, temp, 0);
    if (linkat(w->store, from, w->store, temp, 0) || renameat(w->store, temp, w->store, to))
        return dtx_fail_errno(e, "cannot link %s to %s", from, to);
    return 0;
}

int job_export_result(struct worker *w, struct job *j, struct dtx_err *e)
{
    int rc = j->prep.questions.n ? link_score(w, j, e) : 0;

    return rc ? rc : write_info(w, j, j->spec.tuned_dir, e); /* which syncs the folder */
}
