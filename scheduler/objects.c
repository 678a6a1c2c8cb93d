/* Objects, experiments and jobs in memory, and their transitions: catalog first, then memory, then the log.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

enum machine object_machine(enum object_kind kind)
{
    static const enum machine machines[OBJ_KINDS] = {
        [OBJ_DATASET] = M_DATASET,       [OBJ_PARAMGROUP] = M_SPEC,
        [OBJ_EVALUATION] = M_SPEC,       [OBJ_DATA_PLUGIN] = M_PLUGIN,
        [OBJ_SCORING_PLUGIN] = M_PLUGIN, [OBJ_BASE] = M_BASE,
        [OBJ_TUNED] = M_TUNED,           [OBJ_SERVICE] = M_SERVICE,
        [OBJ_EXPERIMENT] = M_EXPERIMENT, [OBJ_JOB] = M_JOB,
        [OBJ_COMPARE] = M_COMPARE,       [OBJ_ASK] = M_COMPARE,
    };
    return machines[kind];
}

/* Names are equal when their NFC forms are: a Mac writes decomposed characters. */
static bool same_name(const char *a, const char *b)
{
    char x[2 * NAME_CAP], y[2 * NAME_CAP];

    if (strcmp(a, b) == 0)
        return true;
    if (text_is_ascii(a) || text_is_ascii(b))
        return false;
    return name_nfc(a, x, sizeof(x)) == 0 && name_nfc(b, y, sizeof(y)) == 0 && strcmp(x, y) == 0;
}

/* ---- finding and making ---- */

uint64_t name_hash(enum object_kind kind, const char *name)
{
    uint64_t h = 0xcbf29ce484222325u ^ (uint64_t)kind;
    char nfc[2 * NAME_CAP];

    if (!text_is_ascii(name) && name_nfc(name, nfc, sizeof(nfc)) == 0)
        name = nfc;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h ^ h >> 29;
}

static struct object **bucket(struct sched *s, enum object_kind kind, const char *name)
{
    return &s->by_name[name_hash(kind, name) % OBJECT_BUCKETS];
}

struct object *object_find(struct sched *s, enum object_kind kind, const char *name)
{
    for (struct object *o = *bucket(s, kind, name); o; o = o->hash_next)
        if (o->kind == kind && same_name(o->name, name))
            return o;
    return NULL;
}

struct object *object_ready(struct sched *s, enum object_kind kind, const char *name)
{
    struct object *o = object_find(s, kind, name);

    if (!o || o->state != ST_READY)
        return NULL;
    /* Somebody was allowed to change it a moment ago; the change itself is about to be noted. */
    return o->touched && clock_mono_ns() - o->touched < SECOND_NS ? NULL : o;
}

struct object *object_new(enum object_kind kind, const char *name)
{
    struct object *o = calloc(1, sizeof(*o));

    if (!o)
        return NULL;
    o->kind = kind;
    o->state = ST_NONE;
    o->created = o->changed = clock_wall_ns();
    snprintf(o->name, sizeof(o->name), "%s", name);
    return o;
}

void object_free(struct object *o)
{
    if (!o)
        return;
    free(o->reason);
    json_decref(o->spec);
    json_decref(o->report);
    free(o);
}

static bool grow(void *list, int n, int *cap)
{
    void **p;

    if (n < *cap)
        return true;
    p = realloc(*(void ***)list, (size_t)(*cap * 2 + 16) * sizeof(*p));
    if (!p)
        return false;
    *(void ***)list = p;
    *cap = *cap * 2 + 16;
    return true;
}

struct object *object_get(struct sched *s, enum object_kind kind, const char *name, const struct caller *who)
{
    struct object *o = object_find(s, kind, name);

    if (o)
        return o;
    if (!grow(&s->objects, s->nobjects, &s->objects_cap) || !(o = object_new(kind, name)))
        return NULL;
    if (who) {
        o->uid = who->uid;
        o->gid = who->gid;
    }
    s->objects[s->nobjects++] = o;
    o->hash_next = *bucket(s, kind, o->name);
    *bucket(s, kind, o->name) = o;
    return o;
}

static void object_remove(struct sched *s, struct object *o)
{
    for (int i = 0; i < s->nobjects; i++)
        if (s->objects[i] == o)
            s->objects[i] = s->objects[--s->nobjects];
    for (struct object **p = bucket(s, o->kind, o->name); *p; p = &(*p)->hash_next)
        if (*p == o) {
            *p = o->hash_next;
            break;
        }
    object_free(o);
}

void object_drop_unsaved(struct sched *s, struct object *o)
{
    if (o->id == 0 && o->state == ST_NONE)
        object_remove(s, o);
}

void object_path(const struct object *o, char *out, size_t n)
{
    const char *slash = strchr(o->name, '/');

    switch (o->kind) {
    case OBJ_PARAMGROUP:
    case OBJ_EVALUATION:
        snprintf(out, n, "%s/%s.json", object_kind_collection(o->kind), o->name);
        break;
    case OBJ_COMPARE:
        snprintf(out, n, "models/compare/%s.txt", o->name);
        break;
    case OBJ_ASK:
        snprintf(out, n, "services/%.*s/ask/%s.txt", slash ? (int)(slash - o->name) : 0, o->name,
                 slash ? slash + 1 : "");
        break;
    default:
        snprintf(out, n, "%s/%s", object_kind_collection(o->kind), o->name);
    }
}

static struct experiment **experiment_bucket(struct sched *s, const char *name)
{
    return &s->exp_by_name[name_hash(OBJ_EXPERIMENT, name) % EXPERIMENT_BUCKETS];
}

struct experiment *experiment_new(struct sched *s, const char *name)
{
    struct experiment *x, **slot;

    if (!grow(&s->exps, s->nexps, &s->exps_cap) || !(x = calloc(1, sizeof(*x))))
        return NULL;
    snprintf(x->name, sizeof(x->name), "%s", name);
    x->created = x->changed = clock_wall_ns();
    s->exps[s->nexps++] = x;
    slot = experiment_bucket(s, x->name);
    x->hash_next = *slot;
    *slot = x;
    return x;
}

void experiment_drop(struct sched *s, struct experiment *x)
{
    struct experiment **slot = experiment_bucket(s, x->name);

    while (*slot != x)
        slot = &(*slot)->hash_next;
    *slot = x->hash_next;
    for (int i = 0; i < s->nexps; i++)
        if (s->exps[i] == x)
            memmove(&s->exps[i], &s->exps[i + 1], (size_t)(--s->nexps - i) * sizeof(s->exps[0]));
    experiment_free(x);
}

struct job *job_new(struct experiment *x, int number)
{
    struct job *j = calloc(1, sizeof(*j)), **p;
    int *n = number ? &x->njobs : &x->nrows;
    struct job ***list = number ? &x->jobs : &x->rows;

    p = j ? realloc(*list, (size_t)(*n + 1) * sizeof(*p)) : NULL;
    if (!p) {
        free(j);
        return NULL;
    }
    *list = p;
    p[(*n)++] = j;
    j->exp = x;
    j->number = number;
    j->created = j->changed = clock_wall_ns();
    return j;
}

void job_free(struct job *j)
{
    if (!j)
        return;
    free(j->reason);
    json_decref(j->overrides);
    json_decref(j->data);
    json_decref(j->params);
    json_decref(j->result);
    json_decref(j->progress);
    free(j);
}

void experiment_free(struct experiment *x)
{
    if (!x)
        return;
    for (int i = 0; i < x->njobs; i++)
        job_free(x->jobs[i]);
    for (int i = 0; i < x->nrows; i++)
        job_free(x->rows[i]);
    free(x->jobs);
    free(x->rows);
    free(x->reason);
    free(x->spec_reason);
    free(x->text);
    json_decref(x->spec);
    json_decref(x->pins);
    free(x);
}

struct experiment *experiment_find(struct sched *s, const char *name)
{
    for (struct experiment *x = *experiment_bucket(s, name); x; x = x->hash_next)
        if (!x->deleted && same_name(x->name, name))
            return x;
    return NULL;
}

struct experiment *experiment_find_deleted(struct sched *s, const char *name)
{
    for (struct experiment *x = *experiment_bucket(s, name); x; x = x->hash_next)
        if (x->deleted && strcmp(x->name, name) == 0)
            return x;
    return NULL;
}

struct job *job_find(struct experiment *x, const char *name)
{
    for (int i = 0; x && i < x->njobs; i++)
        if (strcmp(x->jobs[i]->name, name) == 0)
            return x->jobs[i];
    for (int i = 0; x && i < x->nrows; i++)
        if (strcmp(x->rows[i]->name, name) == 0)
            return x->rows[i];
    return NULL;
}

/* Deleted experiments too: their jobs are waited for. */
struct job *job_find_worker(struct sched *s, const struct worker *w, const char *id)
{
    const char *slash = strchr(id, '/');

    for (int i = 0; slash && i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        struct job *j;
        if (strlen(x->name) != (size_t)(slash - id) || strncmp(x->name, id, (size_t)(slash - id)) != 0)
            continue;
        j = job_find(x, slash + 1);
        if (j && j->worker == w)
            return j;
    }
    return NULL;
}

/* ---- transitions ---- */

void catalog_trouble(struct sched *s, const struct dtx_err *e)
{
    if (!s->trouble || strcmp(s->trouble, e->msg) != 0)
        log_line("%s; trying again", e->msg);
    set_text(&s->trouble, e->msg);
}

static void no_trouble(struct sched *s)
{
    if (s->trouble)
        log_line("the store can be written again");
    set_text(&s->trouble, NULL);
}

/* Ends a transaction that began with rc 0. */
static int finish(struct sched *s, int rc, struct dtx_err *e)
{
    if (rc == 0)
        rc = catalog_commit(s->catalog, e);
    else
        catalog_rollback(s->catalog);
    return rc;
}

static int settle_trouble(struct sched *s, int rc, const struct dtx_err *e, int64_t *retry_at)
{
    if (rc) {
        catalog_trouble(s, e);
        *retry_at = clock_mono_ns() + SECOND_NS;
    } else {
        no_trouble(s);
        *retry_at = 0;
        s->transitions++;
    }
    return rc;
}

static int refuse(enum machine m, const char *name, enum state from, enum event ev)
{
    log_line("%s %s: \"%s\" means nothing while it is %s", machine_name(m), name, event_name(ev),
             state_name(from));
    return -EINVAL;
}

static bool same_text(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

static void log_transition(const char *what, const char *name, enum state from, enum state to,
                           const char *reason)
{
    log_line("%s %s: %s -> %s%s%s", what, name, state_name(from), state_name(to), reason ? ": " : "",
             reason ? reason : "");
}

/* RECEIVING of something new is not written down, so that taking it costs one synced write: after a crash its
 * files are as new as they were.  Nor is that such a thing went. */
static bool in_memory_only(int64_t id, enum state to)
{
    return id == 0 && (to == ST_RECEIVING || to == ST_GONE);
}

static int write_object(struct sched *s, struct object *o, enum event ev, enum state to, const char *reason,
                        struct dtx_err *e)
{
    int rc = catalog_begin(s->catalog, e);

    if (rc == 0)
        rc = to == ST_GONE ? catalog_del_object(s->catalog, o, e)
                           : catalog_put_object(s->catalog, o, to, reason, e);
    if (rc == 0)
        rc = catalog_event(s->catalog, object_kind_name(o->kind), o->name, o->state, ev, to,
                           public_words(o, reason), e);
    return finish(s, rc, e);
}

int object_event(struct sched *s, struct object *o, enum event ev, const char *reason)
{
    enum machine m = object_machine(o->kind);
    enum state from = o->state;
    int to = state_next(m, from, ev), rc;
    int64_t id = o->id;
    struct dtx_err e = {0};

    if (to < 0)
        return refuse(m, o->name, from, ev);
    if ((enum state)to == from && same_text(o->reason, reason))
        return 0;
    if (in_memory_only(o->id, (enum state)to)) {
        s->transitions++;
    } else {
        slow_begin(s);
        rc = write_object(s, o, ev, (enum state)to, reason, &e);
        slow_end(s);
        if (settle_trouble(s, rc, &e, &o->retry_at)) {
            o->id = id;
            return rc;
        }
    }
    if ((enum state)to != from || reason)
        log_transition(object_kind_name(o->kind), o->name, from, (enum state)to, public_words(o, reason));
    o->state = (enum state)to;
    o->changed = clock_wall_ns();
    set_text(&o->reason, reason);
    object_changed(s, o, from == ST_NONE || to == ST_GONE);
    if (to == ST_GONE)
        object_remove(s, o);
    return 0;
}

void object_keep(struct sched *s, struct object *o)
{
    struct dtx_err e = {0};
    int rc;

    slow_begin(s);
    rc = catalog_put_object(s->catalog, o, o->state, o->reason, &e);
    slow_end(s);
    settle_trouble(s, rc, &e, &o->retry_at);
}

/* Append one line to a file of the tree that belongs to an experiment's owner. */
static void append_line(struct sched *s, const char *path, uid_t uid, gid_t gid, const char *text)
{
    char stamp[32];
    struct buf b = BUF_INIT;
    int fd;

    buf_addf(&b, "%s %s\n", clock_iso(clock_wall_ns(), stamp, sizeof(stamp)), text);
    fd = openat(s->tree_fd, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd >= 0) {
        if (geteuid() == 0)
            (void)!fchown(fd, uid, gid);
        (void)!fd_write_all(fd, b.p, b.len); /* a full disk loses a line of the log, nothing else */
        close(fd);
        if (s->settings.log_max > 0)
            log_trim(s->tree_fd, path, s->settings.log_max);
    }
    buf_release(&b);
}

void experiment_log(struct sched *s, struct experiment *x, const char *fmt, ...)
{
    char path[PATH_MAX], text[2048];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    slow_begin(s);
    snprintf(path, sizeof(path), "experiments/%s", x->name);
    if (mkdirat(s->tree_fd, path, 0755) == 0)
        give_to(s, path, x->uid, x->gid);
    snprintf(path, sizeof(path), "experiments/%s/log", x->name);
    append_line(s, path, x->uid, x->gid, text);
    slow_end(s);
    sched_changed(s, "experiments/%s/log", x->name);
}

static void job_log(struct sched *s, struct job *j, const char *text)
{
    char path[PATH_MAX];

    if (!j->number)
        return;
    snprintf(path, sizeof(path), "experiments/%s/jobs/%s/log", j->exp->name, j->name);
    slow_begin(s);
    append_line(s, path, j->exp->uid, j->exp->gid, text);
    slow_end(s);
}

static int write_experiment(struct sched *s, struct experiment *x, enum event ev, enum state to,
                            const char *reason, struct dtx_err *e)
{
    int rc = catalog_begin(s->catalog, e);

    if (rc == 0)
        rc = to == ST_GONE ? catalog_del_experiment(s->catalog, x, e)
                           : catalog_put_experiment(s->catalog, x, to, reason, e);
    if (rc == 0)
        rc = catalog_event(s->catalog, "experiment", x->name, x->state, ev, to, reason, e);
    return finish(s, rc, e);
}

int experiment_event(struct sched *s, struct experiment *x, enum event ev, const char *reason)
{
    enum state from = x->state;
    int to = state_next(M_EXPERIMENT, from, ev), rc;
    int64_t id = x->id, started = x->started, finished = x->finished;
    struct dtx_err e = {0};

    if (to < 0)
        return refuse(M_EXPERIMENT, x->name, from, ev);
    if ((enum state)to == from && same_text(x->reason, reason))
        return 0;
    if (to == ST_PROCESSING && !x->started)
        x->started = clock_wall_ns();
    x->finished = state_is_end((enum state)to) ? clock_wall_ns() : 0;
    /* One that was deleted, and whose spec comes with the same stamp, is a new one only as long as that is
     * known. */
    if (in_memory_only(x->id, (enum state)to) && !gone_stamp(s, x->name)) {
        s->transitions++;
    } else {
        slow_begin(s);
        rc = write_experiment(s, x, ev, (enum state)to, reason, &e);
        slow_end(s);
        if (settle_trouble(s, rc, &e, &x->retry_at)) {
            x->id = id; /* one that was rolled back will be another's */
            x->started = started;
            x->finished = finished;
            return rc;
        }
    }
    x->state = (enum state)to;
    x->changed = clock_wall_ns();
    log_transition("experiment", x->name, from, x->state, experiment_words(s, x, reason));
    set_text(&x->reason, reason);
    if (to != ST_GONE && x->njobs)
        experiment_log(s, x, "%s%s%s", state_name(x->state), reason ? ": " : "", reason ? reason : "");
    experiment_changed(s, x, from == ST_NONE || to == ST_GONE || from == ST_RECEIVING || from == ST_REJECTED);
    return 0;
}

int job_keep(struct sched *s, struct job *j)
{
    struct dtx_err e = {0};
    int rc;

    slow_begin(s);
    rc = catalog_put_job(s->catalog, j, j->state, j->finetune, j->reason, &e);
    slow_end(s);
    return settle_trouble(s, rc, &e, &j->retry_at);
}

static void job_tell(struct sched *s, struct job *j, enum state from)
{
    char name[2 * NAME_CAP + 2], line[1200];

    snprintf(name, sizeof(name), "%s/%s", j->exp->name, j->name);
    log_transition("job", name, from, j->state, experiment_words(s, j->exp, j->reason));
    snprintf(line, sizeof(line), "state %s%s%s", state_name(j->state), j->reason ? ": " : "",
             j->reason ? j->reason : "");
    if (j->state != from) {
        job_log(s, j, line);
        experiment_log(s, j->exp, "job %s: %s%s%s", j->name, state_name(j->state), j->reason ? ": " : "",
                       j->reason ? j->reason : "");
    }
    job_changed(s, j, j->state != from); /* score.json, checkpoint/ and the like come with a state */
}

int job_event(struct sched *s, struct job *j, enum event ev, const char *reason)
{
    enum state from = j->state;
    int to = state_next(M_JOB, from, ev), finetune = state_next(M_FINETUNE, j->finetune, ev), rc;
    int64_t id = j->id, started = j->started, finished = j->finished;
    char name[2 * NAME_CAP + 2];
    struct dtx_err e = {0};

    snprintf(name, sizeof(name), "%s/%s", j->exp->name, j->name);
    if (to < 0)
        return refuse(M_JOB, name, from, ev);
    if (finetune < 0)
        finetune = (int)j->finetune;
    if ((enum state)to == from && same_text(j->reason, reason) && finetune == (int)j->finetune)
        return 0;
    if (!j->started && (ev == EV_FINETUNE || ev == EV_SCORE || ev == EV_EXPORT || ev == EV_SERVE))
        j->started = clock_wall_ns();
    j->finished = state_is_end((enum state)to) ? clock_wall_ns() : 0;
    slow_begin(s);
    rc = catalog_begin(s->catalog, &e);
    if (rc == 0)
        rc = catalog_put_job(s->catalog, j, (enum state)to, (enum state)finetune, reason, &e);
    if (rc == 0)
        rc = catalog_event(s->catalog, "job", name, from, ev, (enum state)to, reason, &e);
    rc = finish(s, rc, &e);
    slow_end(s);
    if (settle_trouble(s, rc, &e, &j->retry_at)) {
        j->id = id;
        j->started = started;
        j->finished = finished;
        return rc;
    }
    j->state = (enum state)to;
    j->finetune = (enum state)finetune;
    j->changed = j->exp->changed = clock_wall_ns();
    set_text(&j->reason, reason);
    job_tell(s, j, from);
    return 0;
}
