/* Opening and closing, and what FUSE threads call: see sched.h. */
#include "scheduler/sched.h"

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

enum { MAX_CHANGES = 1000, RESERVE = 4 << 20 /* bytes */ };

/* ---- small things that all files use ---- */

void slow_begin(struct sched *s)
{
    pthread_mutex_unlock(&s->mutex);
}

void slow_end(struct sched *s)
{
    pthread_mutex_lock(&s->mutex);
}

void sched_wake(struct sched *s)
{
    uint64_t one = 1;

    (void)!write(s->wake, &one, sizeof(one));
}

void set_text(char **field, const char *text)
{
    char *old = *field;

    *field = text && *text ? strdup(text) : NULL;
    free(old);
}

void set_json(json_t **field, json_t *value)
{
    json_t *old = *field;

    *field = value;
    json_decref(old);
}

void give_at(int dirfd, const char *name, uid_t uid, gid_t gid)
{
    if (geteuid() == 0)
        (void)!fchownat(dirfd, name, uid, gid, AT_SYMLINK_NOFOLLOW);
}

void give_to(struct sched *s, const char *tree_path, uid_t uid, gid_t gid)
{
    give_at(s->tree_fd, tree_path, uid, gid);
}

/* Mutex held.  Told to the file system by a thread of its own: it may have to wait for requests that wait for
 * us. */
void sched_changed(struct sched *s, const char *fmt, ...)
{
    char path[PATH_MAX];
    va_list ap;

    if (!s->on_change)
        return;
    va_start(ap, fmt);
    vsnprintf(path, sizeof(path), fmt, ap);
    va_end(ap);
    for (int i = 0; i < s->nchanges; i++)
        if (s->changes[i] && strcmp(s->changes[i], path) == 0)
            return;
    if (s->nchanges == MAX_CHANGES) {
        path[0] = '\0'; /* anything */
        s->nchanges--;
        free(s->changes[s->nchanges]);
    }
    s->changes[s->nchanges++] = strdup(path);
    pthread_cond_signal(&s->changes_cond);
}

static void *notify_main(void *arg)
{
    struct sched *s = arg;
    char *paths[MAX_CHANGES];
    int n;

    pthread_mutex_lock(&s->mutex);
    while (!s->notify_end) {
        if (s->nchanges == 0) {
            pthread_cond_wait(&s->changes_cond, &s->mutex);
            continue;
        }
        void (*fn)(void *, const char *) = s->on_change;
        void *fn_arg = s->on_change_arg;
        n = s->nchanges;
        memcpy(paths, s->changes, (size_t)n * sizeof(*paths));
        s->nchanges = 0;
        pthread_mutex_unlock(&s->mutex);
        for (int i = 0; i < n; i++) {
            if (fn && paths[i])
                fn(fn_arg, paths[i]);
            free(paths[i]);
        }
        usleep(50000); /* bundle what comes close together */
        pthread_mutex_lock(&s->mutex);
    }
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}

/* ---- opening ---- */

static char *dup_or_null(const char *text)
{
    return text ? strdup(text) : NULL;
}

static int make_folders(struct sched *s, struct dtx_err *e)
{
    static const char *const dirs[] = {"tree", "work", "work/.trash", "work/.base", "run"};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < sizeof(dirs) / sizeof(dirs[0]); i++)
        if (mkdirat(s->store_fd, dirs[i], i == 0 ? 0755 : 0700) && errno != EEXIST)
            rc = dtx_fail_errno(e, "cannot make folder %s in the store", dirs[i]);
    for (size_t i = 0; rc == 0 && i < layout_count; i++) {
        char path[PATH_MAX];
        const struct layout_entry *row = &layout_table[i];
        if ((row->kind != LK_DROP_DIR && row->kind != LK_DIR) || strpbrk(row->pattern, "{*") ||
            !*row->pattern)
            continue;
        snprintf(path, sizeof(path), "tree/%s", row->pattern);
        rc = fd_mkdirs(s->store_fd, path, 0755, e);
    }
    fd_remove_tree(s->store_fd, "work/.trash", NULL);
    return rc;
}

/* STORE/reserve: room that is given up when there is no other, so that dtxd starts on a full disk and files
 * can be removed through the mount. */
static void keep_reserve(struct sched *s)
{
    struct statvfs v;
    int fd;

    if (fstatvfs(s->store_fd, &v))
        return;
    if (v.f_bavail * v.f_frsize < 2 * RESERVE) {
        if (unlinkat(s->store_fd, "reserve", 0) == 0)
            log_line("the store's disk is full: the reserve (%d MB) is used; make room", RESERVE >> 20);
        return;
    }
    fd = openat(s->store_fd, "reserve", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    if (posix_fallocate(fd, 0, RESERVE))
        unlinkat(s->store_fd, "reserve", 0);
    close(fd);
}

static int open_store(struct sched *s, struct dtx_err *e)
{
    int rc;

    s->store_fd = open(s->store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->store_fd < 0)
        return dtx_fail_errno(e, "cannot open the store %s", s->store);
    s->lock_fd = fd_lock_file(s->store_fd, "lock", e);
    if (s->lock_fd < 0)
        return s->lock_fd == -EBUSY ? dtx_fail(e, -EBUSY, "another dtxd runs on the store %s", s->store)
                                    : s->lock_fd;
    keep_reserve(s);
    rc = make_folders(s, e);
    if (rc)
        return rc;
    s->tree_fd = openat(s->store_fd, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->tree_fd < 0)
        return dtx_fail_errno(e, "cannot open tree/ in the store");
    s->log_fd = openat(s->tree_fd, "log", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (s->log_fd < 0)
        return dtx_fail_errno(e, "cannot open log in the store");
    log_to_fd(s->log_fd);
    return 0;
}

static int open_catalog(struct sched *s, struct dtx_err *e)
{
    char path[PATH_MAX];
    int rc;

    snprintf(path, sizeof(path), "%s/catalog.db", s->store);
    rc = catalog_open(path, &s->catalog, e);
    return rc ? rc : catalog_load(s->catalog, s, e);
}

/* The path of the store as processes may need it later, from whatever folder. */
static char *full_path(const char *path)
{
    char *real = realpath(path, NULL);

    return real ? real : strdup(path);
}

static int start_threads(struct sched *s, struct dtx_err *e)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the main thread */
    rc = pthread_create(&s->notifier, NULL, notify_main, s);
    s->notifier_on = rc == 0;
    if (rc == 0)
        rc = pthread_create(&s->thread, NULL, loop_main, s);
    s->thread_on = rc == 0;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc ? dtx_fail(e, -rc, "cannot start a thread: %s", strerror(rc)) : 0;
}

/* All but the threads; tests drive loop_round themselves. */
int sched_prepare(const struct sched_config *c, struct sched **out, struct dtx_err *e)
{
    struct sched *s = calloc(1, sizeof(*s));
    int rc;

    *out = NULL;
    if (!s)
        return dtx_fail(e, -ENOMEM, "out of memory");
    intakes_init(s);
    s->store_fd = s->tree_fd = s->lock_fd = s->log_fd = s->wake = -1;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->answered, NULL);
    pthread_cond_init(&s->changes_cond, NULL);
    s->store = full_path(c->store);
    s->config_path = c->config ? full_path(c->config) : NULL;
    s->worker_path = full_path(c->worker ? c->worker : "dtx-worker");
    s->devices = dup_or_null(c->devices);
    s->version = dup_or_null(c->version ? c->version : "?");
    s->changes = calloc(MAX_CHANGES, sizeof(*s->changes));
    s->started = clock_wall_ns();
    s->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_lock(&s->mutex);
    rc = s->store && s->changes && s->wake >= 0 ? open_store(s, e) : dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = open_catalog(s, e);
    if (rc == 0)
        rc = workers_plan(s, e);
    if (rc == 0)
        rc = watcher_open(s, e);
    if (rc == 0) {
        config_load(s);
        scan_store(s, clock_mono_ns());
    }
    pthread_mutex_unlock(&s->mutex);
    if (rc)
        sched_close(s);
    else
        *out = s;
    return rc;
}

int sched_open(const struct sched_config *c, struct sched **out, struct dtx_err *e)
{
    int rc = sched_prepare(c, out, e);

    if (rc)
        return rc;
    log_line("dtxd %s started on %s: %d objects, %d experiments, %d devices", (*out)->version, (*out)->store,
             (*out)->nobjects, (*out)->nexps, (*out)->nworkers);
    rc = start_threads(*out, e);
    if (rc) {
        sched_close(*out);
        *out = NULL;
    }
    return rc;
}

/* ---- closing ---- */

static void end_threads(struct sched *s)
{
    pthread_mutex_lock(&s->mutex);
    s->closing = true;
    pthread_mutex_unlock(&s->mutex);
    if (s->wake >= 0)
        sched_wake(s);
    if (s->thread_on)
        pthread_join(s->thread, NULL);
    else if (s->workers) {
        pthread_mutex_lock(&s->mutex);
        workers_end(s);
        checks_end(s);
        pthread_mutex_unlock(&s->mutex);
    }
    pthread_mutex_lock(&s->mutex);
    s->notify_end = true;
    pthread_cond_broadcast(&s->changes_cond);
    pthread_mutex_unlock(&s->mutex);
    if (s->notifier_on)
        pthread_join(s->notifier, NULL);
}

static void free_model(struct sched *s)
{
    for (int i = 0; i < s->nobjects; i++) {
        asking_cancel(s, s->objects[i]);
        object_free(s->objects[i]);
    }
    for (int i = 0; i < s->nexps; i++)
        experiment_free(s->exps[i]);
    for (int i = 0; i < s->nchanges; i++)
        free(s->changes[i]);
    intakes_free(s);
    while (s->hidden) {
        struct hidden *h = s->hidden;
        s->hidden = h->next;
        free(h->path);
        free(h);
    }
    gone_free(s);
    free(s->fair.v);
    free(s->objects);
    free(s->exps);
    free(s->changes);
}

void sched_close(struct sched *s)
{
    int *fds[] = {&s->wake, &s->tree_fd, &s->store_fd, &s->lock_fd};

    end_threads(s);
    free_model(s);
    watcher_close(s);
    catalog_close(s->catalog);
    if (s->log_fd >= 0) {
        log_line("dtxd ended");
        log_to_fd(STDERR_FILENO);
        close(s->log_fd);
    }
    for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
        if (*fds[i] >= 0)
            close(*fds[i]);
    free(s->store);
    free(s->config_path);
    free(s->worker_path);
    free(s->devices);
    free(s->version);
    free(s->trouble);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->answered);
    pthread_cond_destroy(&s->changes_cond);
    free(s);
}

void sched_on_change(struct sched *s, void (*fn)(void *arg, const char *path), void *arg)
{
    pthread_mutex_lock(&s->mutex);
    s->on_change = fn;
    s->on_change_arg = arg;
    pthread_mutex_unlock(&s->mutex);
}

int sched_store_fd(const struct sched *s)
{
    return s->store_fd;
}

int sched_tree_fd(const struct sched *s)
{
    return s->tree_fd;
}

/* ---- drops ---- */

void sched_drop_event(struct sched *s, enum drop_event ev, const char *path, const struct caller *who)
{
    bool news;

    pthread_mutex_lock(&s->mutex);
    news = intake_note(s, ev, path, who, clock_mono_ns());
    if (ev == DROP_RMDIR || ev == DROP_RENAMED_OUT)
        forget_hidden(s, path);
    pthread_mutex_unlock(&s->mutex);
    if (news)
        sched_wake(s);
}

bool sched_receiving(struct sched *s, const char *path)
{
    bool yes;

    pthread_mutex_lock(&s->mutex);
    yes = intake_receiving(s, path);
    pthread_mutex_unlock(&s->mutex);
    return yes;
}

/* A job that needs the files of a dataset or of a model, or a worker that has it open. */
static bool held_by(struct sched *s, const struct place *p, char *who, size_t n)
{
    for (int i = 0; i < s->nexps; i++)
        for (int k = 0; s->exps[i]->on_workers && k < s->exps[i]->njobs + s->exps[i]->nrows; k++) {
            struct experiment *x = s->exps[i];
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (!j->worker)
                continue;
            if ((p->kind == OBJ_DATASET && j->held_dataset &&
                 (strcmp(j->dataset, p->name) == 0 ||
                  strcmp(json_str(json_object_get(x->pins, "evaluation"), "dataset", ""), p->name) == 0)) ||
                (p->kind == OBJ_BASE && strcmp(j->base, p->name) == 0) ||
                (p->kind == OBJ_TUNED && strcmp(j->init, p->name) == 0)) {
                snprintf(who, n, "job %s/%s", x->name, j->name);
                return true;
            }
        }
    for (int i = 0; p->kind == OBJ_BASE && i < s->nworkers; i++)
        if (worker_has_base(&s->workers[i], p->name) && (s->workers[i].njobs || s->workers[i].asks)) {
            snprintf(who, n, "the worker of %s", s->workers[i].label);
            return true;
        }
    return false;
}

/* Idle workers that keep the base in memory start afresh: it is about to become another one. */
static void let_go(struct sched *s, const char *base)
{
    for (int i = 0; i < s->nworkers; i++)
        if (worker_has_base(&s->workers[i], base))
            s->workers[i].let_go = true;
}

int sched_may_change(struct sched *s, const char *path, const struct caller *who)
{
    char holder[3 * NAME_CAP];
    int64_t now = clock_mono_ns();
    struct object *o;
    struct place p;
    bool held, tell = false;

    if (!place_of(path, &p) || (p.kind != OBJ_DATASET && p.kind != OBJ_BASE && p.kind != OBJ_TUNED))
        return 0;
    pthread_mutex_lock(&s->mutex);
    o = object_find(s, p.kind, p.name);
    held = held_by(s, &p, holder, sizeof(holder));
    if (held && o) {
        tell = !o->told || now - o->told > SECOND_NS;
        o->told = now;
    } else if (o && !held) {
        o->touched = now;
        if (p.kind == OBJ_BASE)
            let_go(s, p.name);
    }
    pthread_mutex_unlock(&s->mutex);
    if (held && tell)
        log_line("%s %s cannot be changed now (uid %d tried): %s needs it", object_kind_name(p.kind), p.name,
                 (int)who->uid, holder);
    return held ? -EPERM : 0;
}

/* ---- is a spec that was just written wrong? ---- */

static int refuse_experiment(struct sched *s, const char *name, const char *text, size_t n, struct dtx_err *e)
{
    struct experiment trial = {0};
    int rc = spec_parse(SPEC_EXPERIMENT, name, text, n, &trial.spec, e);

    snprintf(trial.name, sizeof(trial.name), "%.*s", NAME_CAP - 1, name);
    if (rc == 0)
        rc = jobs_expand(&trial, e);
    for (int i = 0; i < trial.njobs; i++)
        job_free(trial.jobs[i]);
    free(trial.jobs);
    json_decref(trial.spec);
    if (rc)
        return rc;
    pthread_mutex_lock(&s->mutex);
    rc = experiment_refusal(s, name, text, n, e);
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

static bool is_spec(const struct place *p)
{
    if (p->kind == OBJ_DATASET)
        return strcmp(p->rest, "dataset.json") == 0;
    if (p->kind == OBJ_DATA_PLUGIN || p->kind == OBJ_SCORING_PLUGIN)
        return strcmp(p->rest, "plugin.json") == 0;
    return p->is_root && !p->folder;
}

int sched_flush(struct sched *s, const char *path)
{
    struct buf text = BUF_INIT;
    struct dtx_err e = {0};
    json_t *spec = NULL;
    struct place p;
    int rc;

    if (!place_of(path, &p) || !is_spec(&p))
        return 0;
    rc = read_beneath(s->tree_fd, path, MAX_SPEC, &text, &e);
    if (rc == 0 && (text.len == 0 || strspn(text.p, " \t\r\n") == text.len)) {
        buf_release(&text);
        return 0;
    }
    if (rc == 0 && p.kind == OBJ_EXPERIMENT)
        rc = refuse_experiment(s, p.name, text.p, text.len, &e);
    else if (rc == 0)
        rc = take_parse(p.kind, path, text.p, text.len, &spec, &e);
    json_decref(spec);
    buf_release(&text);
    return rc == 0 || rc == -ENOENT || error_passes(rc) ? 0 : -EINVAL;
}

/* ---- commands: handed to the loop and waited for ---- */

int sched_run_command(struct sched *s, struct command *c)
{
    int rc;

    pthread_mutex_lock(&s->mutex);
    if (s->closing || !s->thread_on) {
        rc = s->closing ? -EIO : c->fn(s, c);
        pthread_mutex_unlock(&s->mutex);
        return rc;
    }
    c->next = NULL;
    struct command **p = &s->commands;
    while (*p)
        p = &(*p)->next;
    *p = c;
    sched_wake(s);
    while (!c->done)
        pthread_cond_wait(&s->answered, &s->mutex);
    rc = c->rc;
    pthread_mutex_unlock(&s->mutex);
    return rc;
}
