/* status, status.json, index.html, metrics.prom, devices, services. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/internal.h"
#include "scheduler/report/report.h"

enum {
    SHOWN = 20,         /* lines of each kind on one screen */
    LISTED = 1000,      /* of each kind in status.json, and jobs in all */
    JOBS_AT_ONCE = 100, /* looked at before others get the mutex */
};

static const enum object_kind shown_kinds[] = {OBJ_DATASET,     OBJ_PARAMGROUP,     OBJ_EVALUATION,
                                               OBJ_DATA_PLUGIN, OBJ_SCORING_PLUGIN, OBJ_BASE,
                                               OBJ_TUNED,       OBJ_SERVICE,        OBJ_COMPARE};
enum { KINDS = sizeof(shown_kinds) / sizeof(shown_kinds[0]) };

static int count(const struct sched *s, enum object_kind kind, int state)
{
    int n = 0;

    for (int i = 0; i < s->nobjects; i++)
        n += s->objects[i]->kind == kind && (state < 0 || (int)s->objects[i]->state == state);
    return n;
}

static const char *worker_word(const struct worker *w)
{
    static const char *const words[] = {[WS_DOWN] = "DOWN", [WS_STARTING] = "STARTING", [WS_UP] = "UP"};

    return words[w->state];
}

/* ---- status ---- */

static void counts_line(const struct sched *s, enum object_kind kind, struct buf *out)
{
    int all = count(s, kind, -1);
    const char *sep = ": ";

    if (!all)
        return;
    buf_addf(out, "%s: %d", object_kind_collection(kind), all);
    for (int st = 0; st < ST_COUNT; st++) {
        int n = count(s, kind, st);
        if (n) {
            buf_addf(out, "%s%d %s", sep, n, state_name((enum state)st));
            sep = ", ";
        }
    }
    buf_addc(out, '\n');
}

static void device_line(const struct worker *w, struct buf *out)
{
    buf_addf(out, "  %s: %s", w->label, worker_word(w));
    if (w->state == WS_UP)
        buf_addf(out, ", %d jobs%s%s, %.0f tokens/s", w->njobs, w->base[0] ? " on " : "", w->base,
                 json_num(w->stats, "tokens_per_s", 0));
    else if (w->trouble)
        buf_addf(out, ": %s", w->trouble);
    buf_addc(out, '\n');
}

static void experiment_line(const struct sched *s, const struct experiment *x, struct buf *out)
{
    struct job *best = best_job(x);
    int done = 0;

    for (int i = 0; i < x->njobs; i++)
        done += state_is_end(x->jobs[i]->state);
    buf_adds(out, "  ");
    add_flat(out, x->name);
    buf_addf(out, ": %s, %d of %d jobs ended", state_name(x->state), done, x->njobs);
    if (best)
        buf_addf(out, ", best %s", best->name);
    if (x->reason && !state_is_end(x->state))
        buf_addf(out, ": %s", experiment_words(s, x, x->reason));
    buf_addc(out, '\n');
}

static void rejected_lines(const struct sched *s, struct buf *out)
{
    int n = 0;

    for (int i = 0; i < s->nobjects && n < SHOWN; i++) {
        const struct object *o = s->objects[i];
        if (o->state != ST_REJECTED && o->state != ST_FAILED)
            continue;
        if (n++ == 0)
            buf_adds(out, "needs attention:\n");
        buf_addf(out, "  %s/", object_kind_collection(o->kind));
        add_flat(out, o->name);
        buf_addf(out, ": %s: %s\n", state_name(o->state), shown_reason(public_reason(o)));
    }
}

int render_status(struct sched *s, const struct layout_match *m, struct buf *out)
{
    int shown = 0, experiments = 0;

    buf_adds(out, s->trouble ? "TROUBLE\n" : "RUNNING\n");
    if (s->trouble)
        add_field(out, "reason", "%s", s->trouble);
    add_field(out, "version", "%s", s->version);
    add_time(out, "started", s->started);
    for (int i = 0; i < KINDS; i++)
        counts_line(s, shown_kinds[i], out);
    buf_adds(out, "devices:\n");
    for (int i = 0; i < s->nworkers; i++)
        device_line(&s->workers[i], out);
    render_owners(s, out);
    for (int i = 0; i < s->nexps; i++)
        experiments += !s->exps[i]->deleted;
    add_field(out, "experiments", "%d", experiments);
    for (int i = s->nexps - 1; i >= 0 && shown < SHOWN; i--)
        if (!s->exps[i]->deleted) {
            experiment_line(s, s->exps[i], out);
            shown++;
        }
    rejected_lines(s, out);
    return 0;
}

/* ---- status.json ---- */

static json_t *device_json(const struct worker *w)
{
    return json_pack("{ss ss ss si si so so so}", "name", w->label, "state", worker_word(w), "base", w->base,
                     "jobs", w->njobs, "asks", w->asks, "hello",
                     w->hello ? json_deep_copy(w->hello) : json_null(), "stats",
                     w->stats ? json_deep_copy(w->stats) : json_null(), "reason",
                     w->trouble ? json_string(w->trouble) : json_null());
}

/* How many there are by state. */
static json_t *counts_json(const int by_state[ST_COUNT])
{
    json_t *v = json_object();

    for (int st = 0; st < ST_COUNT; st++)
        if (by_state[st])
            json_object_set_new(v, state_name((enum state)st), json_integer(by_state[st]));
    return v;
}

static void count_experiments(const struct sched *s, json_t *counts)
{
    int experiments[ST_COUNT] = {0}, jobs[ST_COUNT] = {0};

    for (int i = 0; i < s->nexps; i++) {
        const struct experiment *x = s->exps[i];
        experiments[x->state] += !x->deleted;
        for (int k = 0; !x->deleted && k < x->njobs; k++)
            jobs[x->jobs[k]->state]++;
    }
    json_object_set_new(counts, "experiments", counts_json(experiments));
    json_object_set_new(counts, "jobs", counts_json(jobs));
}

static int newest_first(const void *a, const void *b)
{
    const struct object *x = *(const struct object *const *)a, *y = *(const struct object *const *)b;

    return (x->created < y->created) - (x->created > y->created);
}

static json_t *object_json(const struct object *o)
{
    char created[32];

    return json_pack("{ss ss so sI ss}", "name", o->name, "state", state_name(o->state), "reason",
                     public_reason(o) ? json_string(public_reason(o)) : json_null(), "size",
                     (json_int_t)o->size, "created", clock_iso(o->created, created, sizeof(created)));
}

/* The list of a kind, the newest last, and their counts. */
static void add_objects(struct sched *s, enum object_kind kind, json_t *into, json_t *counts)
{
    const struct object **v = calloc((size_t)s->nobjects + 1, sizeof(*v));
    int by_state[ST_COUNT] = {0}, n = 0;
    json_t *list = json_array();

    for (int i = 0; v && i < s->nobjects; i++)
        if (s->objects[i]->kind == kind) {
            by_state[s->objects[i]->state]++;
            v[n++] = s->objects[i];
        }
    if (n)
        qsort(v, (size_t)n, sizeof(*v), newest_first);
    for (int i = (n < LISTED ? n : LISTED) - 1; i >= 0; i--)
        json_array_append_new(list, object_json(v[i]));
    free(v);
    json_object_set_new(into, object_kind_collection(kind), list);
    json_object_set_new(counts, object_kind_collection(kind), counts_json(by_state));
}

/* Everybody reads this: of a private experiment it says that it is there. */
static json_t *public_experiment(struct sched *s, struct experiment *x, int *jobs)
{
    json_t *v;

    if (experiment_closed(s, x) & 07)
        return json_pack("{ss ss so ss s[] s[]}", "name", x->name, "state", state_name(x->state), "best",
                         json_null(), "reason", experiment_words(s, x, ""), "jobs", "leaderboard");
    if (x->njobs <= *jobs) {
        *jobs -= x->njobs;
        return experiment_json(s, x);
    }
    *jobs = 0; /* no smaller one that is older either */
    v = experiment_summary(x);
    json_object_set_new(v, "jobs", json_null());
    json_object_set_new(v, "leaderboard", json_null());
    return v;
}

/* Many jobs take a while: others get the mutex in between. */
static void pause_for_others(struct sched *s, int *seen, int more)
{
    if ((*seen += more) < JOBS_AT_ONCE)
        return;
    *seen = 0;
    pthread_mutex_unlock(&s->mutex);
    usleep(1); /* long enough for those who wait to take it */
    pthread_mutex_lock(&s->mutex);
}

/* The newest, by their names: they may go while they are written down.  The caller frees. */
static char (*newest_experiments(const struct sched *s, int *n))[NAME_CAP]
{
    char(*names)[NAME_CAP] = malloc(LISTED * sizeof(*names));

    *n = 0;
    for (int i = s->nexps - 1; names && i >= 0 && *n < LISTED; i--)
        if (!s->exps[i]->deleted)
            snprintf(names[(*n)++], NAME_CAP, "%s", s->exps[i]->name);
    return names;
}

/* The newest last; of them the newest with all of their jobs. */
static json_t *experiments_json(struct sched *s)
{
    int n, jobs = LISTED, seen = 0;
    char(*names)[NAME_CAP] = newest_experiments(s, &n);
    json_t **v = calloc(LISTED, sizeof(json_t *)), *list = json_array();

    for (int i = 0; v && i < n; i++) {
        struct experiment *x = experiment_find(s, names[i]);
        if (!x)
            continue;
        v[i] = public_experiment(s, x, &jobs);
        pause_for_others(s, &seen, x->njobs);
    }
    for (int i = n - 1; v && i >= 0; i--)
        if (v[i])
            json_array_append_new(list, v[i]);
    free(v);
    free(names);
    return list;
}

/* Jobs that workers have, of whatever experiment. */
static json_t *running_json(struct sched *s)
{
    json_t *list = json_array(), *v;

    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        if (!x->on_workers || x->deleted || (experiment_closed(s, x) & 07))
            continue;
        for (int k = 0; k < x->njobs && json_array_size(list) < LISTED; k++) {
            if (!x->jobs[k]->worker)
                continue;
            v = job_json(x->jobs[k]);
            json_object_set_new(v, "experiment", json_string(x->name));
            json_array_append_new(list, v);
        }
    }
    return list;
}

/* Mutex held, but given up now and then.  However much there is, it stays a file that one can read. */
static json_t *appliance_json(struct sched *s)
{
    json_t *v, *exps = experiments_json(s), *devices = json_array(), *counts = json_object();
    char started[32];

    for (int i = 0; i < s->nworkers; i++)
        json_array_append_new(devices, device_json(&s->workers[i]));
    count_experiments(s, counts);
    v = json_pack("{ss ss so ss so so so so}", "state", s->trouble ? "TROUBLE" : "RUNNING", "version",
                  s->version, "reason", s->trouble ? json_string(s->trouble) : json_null(), "started",
                  clock_iso(s->started, started, sizeof(started)), "counts", counts, "devices", devices,
                  "running", running_json(s), "experiments", exps);
    if (v)
        owners_json(s, v);
    for (int i = 0; v && i < KINDS; i++)
        add_objects(s, shown_kinds[i], v, counts);
    return v;
}

static json_t *appliance_now(struct sched *s)
{
    json_t *v;

    pthread_mutex_lock(&s->mutex);
    v = appliance_json(s);
    pthread_mutex_unlock(&s->mutex);
    return v;
}

int render_status_json(struct sched *s, const struct layout_match *m, struct buf *out)
{
    json_t *v = appliance_now(s);

    if (!v)
        return -ENOMEM;
    json_print_buf(v, out);
    json_decref(v);
    return 0;
}

int render_console(struct sched *s, const struct layout_match *m, struct buf *out)
{
    json_t *v = appliance_now(s);

    if (!v)
        return -ENOMEM;
    console_html(out, v);
    json_decref(v);
    return 0;
}

/* ---- metrics.prom ---- */

static void metric(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* A label's value: backslash, quote and newline escaped. */
static void label(struct buf *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            buf_addc(out, '\\');
        if (*value == '\n')
            buf_adds(out, "\\n");
        else
            buf_addc(out, *value);
    }
}

static void object_metrics(struct sched *s, struct buf *out)
{
    metric(out, "dtx_objects", "gauge", "objects by kind and state");
    for (int i = 0; i < KINDS; i++)
        for (int st = 0; st < ST_COUNT; st++) {
            int n = count(s, shown_kinds[i], st);
            if (n)
                buf_addf(out, "dtx_objects{kind=\"%s\",state=\"%s\"} %d\n", object_kind_name(shown_kinds[i]),
                         state_name((enum state)st), n);
        }
}

static void job_metrics(struct sched *s, struct buf *out)
{
    metric(out, "dtx_jobs", "gauge", "jobs by state");
    for (int st = 0; st < ST_COUNT; st++) {
        int n = 0;
        for (int i = 0; i < s->nexps; i++)
            for (int k = 0; k < s->exps[i]->njobs; k++)
                n += !s->exps[i]->deleted && (int)s->exps[i]->jobs[k]->state == st;
        if (n)
            buf_addf(out, "dtx_jobs{state=\"%s\"} %d\n", state_name((enum state)st), n);
    }
    metric(out, "dtx_job_loss", "gauge", "training loss of running jobs");
    for (int i = 0; i < s->nexps; i++)
        for (int k = 0; s->exps[i]->on_workers && k < s->exps[i]->njobs; k++) {
            struct job *j = s->exps[i]->jobs[k];
            if (!j->worker || !json_is_number(json_object_get(j->progress, "loss")) ||
                experiment_closed(s, s->exps[i]) & 07)
                continue;
            buf_adds(out, "dtx_job_loss{experiment=\"");
            label(out, s->exps[i]->name);
            buf_adds(out, "\",job=\"");
            label(out, j->name);
            buf_addf(out, "\"} %g\n", json_num(j->progress, "loss", 0));
        }
}

static void device_metric(struct sched *s, const char *name, const char *help, const char *key,
                          struct buf *out)
{
    metric(out, name, "gauge", help);
    for (int i = 0; i < s->nworkers; i++)
        buf_addf(out, "%s{device=\"%s\"} %.17g\n", name, s->workers[i].label,
                 json_num(s->workers[i].stats, key, 0));
}

int render_metrics(struct sched *s, const struct layout_match *m, struct buf *out)
{
    object_metrics(s, out);
    job_metrics(s, out);
    metric(out, "dtx_device_up", "gauge", "1 if the device's worker is up");
    for (int i = 0; i < s->nworkers; i++)
        buf_addf(out, "dtx_device_up{device=\"%s\"} %d\n", s->workers[i].label, s->workers[i].state == WS_UP);
    device_metric(s, "dtx_device_memory_bytes", "memory used by the device's worker", "mem_used", out);
    device_metric(s, "dtx_device_memory_planned_bytes", "memory promised to models, jobs and answers",
                  "mem_planned", out);
    device_metric(s, "dtx_device_memory_usable_bytes", "memory that they may have", "mem_usable", out);
    device_metric(s, "dtx_device_tokens_per_second", "tokens trained and generated in the last second",
                  "tokens_per_s", out);
    owners_metrics(s, out);
    metric(out, "dtx_store_writable", "gauge", "0 while the catalog or the store cannot be written");
    buf_addf(out, "dtx_store_writable %d\n", s->trouble == NULL);
    return 0;
}

/* ---- devices, services ---- */

int render_device(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct subject it;
    struct worker *w;

    if (!subject_of(s, m, &it))
        return -ENOENT;
    w = it.worker;
    buf_addf(out, "%s\n", worker_word(w));
    if (w->state != WS_UP && w->trouble)
        add_field(out, "reason", "%s", w->trouble);
    add_field(out, "device", "%s", json_str(w->hello, "device", w->device));
    if (w->pid)
        add_field(out, "pid", "%d", (int)w->pid);
    if (w->threads)
        add_field(out, "threads", "%d", w->threads);
    buf_adds(out, "memory: ");
    add_bytes(out, json_int(w->stats, "mem_used", json_int(w->hello, "mem_used", 0)));
    buf_adds(out, " of ");
    add_bytes(out, json_int(w->hello, "mem_total", 0));
    if (w->stats) {
        buf_adds(out, " used\nplanned: ");
        add_bytes(out, json_int(w->stats, "mem_planned", 0));
        buf_adds(out, " of ");
        add_bytes(out, json_int(w->stats, "mem_usable", 0));
        buf_adds(out, " for models and jobs; other programs use ");
        add_bytes(out, json_int(w->stats, "mem_others", 0));
    }
    buf_addf(out, "\nbase: %s\n", w->base[0] ? w->base : "none");
    add_field(out, "tokens_per_s", "%.0f", json_num(w->stats, "tokens_per_s", 0));
    add_field(out, "asks", "%d", w->asks);
    add_field(out, "jobs", "%d", w->njobs);
    for (int i = 0; i < s->nexps; i++)
        for (int k = 0; s->exps[i]->on_workers && k < s->exps[i]->njobs + s->exps[i]->nrows; k++) {
            struct experiment *x = s->exps[i];
            struct job *j = k < x->njobs ? x->jobs[k] : x->rows[k - x->njobs];
            if (j->worker != w)
                continue;
            buf_addf(out, "  %s/%s: ", x->name, j->name);
            if (experiment_closed(s, x) & 07)
                buf_adds(out, state_name(j->state));
            else
                progress_line(j, out);
            buf_addc(out, '\n');
        }
    return 0;
}

int render_service_stats(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct object *o = object_find(s, OBJ_SERVICE, m->arg[0]);
    uint64_t good;
    int waiting = 0;

    if (!o)
        return -ENOENT;
    good = o->served.requests - o->served.failed;
    for (int i = 0; i < s->nobjects; i++)
        waiting += s->objects[i]->kind == OBJ_ASK &&
                   (s->objects[i]->state == ST_PENDING || s->objects[i]->state == ST_ANSWERING) &&
                   strncmp(s->objects[i]->name, o->name, strlen(o->name)) == 0 &&
                   s->objects[i]->name[strlen(o->name)] == '/';
    buf_addf(out, "%s\n", state_name(o->state));
    add_field(out, "requests", "%llu", (unsigned long long)o->served.requests);
    add_field(out, "failed", "%llu", (unsigned long long)o->served.failed);
    add_field(out, "waiting", "%d", waiting);
    add_field(out, "new_tokens", "%llu", (unsigned long long)o->served.tokens);
    add_field(out, "tokens_per_s", "%.1f",
              o->served.seconds > 0 ? (double)o->served.tokens / o->served.seconds : 0);
    add_field(out, "ttft_s", "%.3f", good ? o->served.ttft / (double)good : 0);
    return 0;
}

int render_service_endpoint(struct sched *s, const struct layout_match *m, struct buf *out)
{
    buf_addf(out, "services/%s/ask/\n", m->arg[0]);
    add_field(out, "how", "write NAME.txt into it, read NAME.md beside it; NAME.status says when it is DONE");
    return 0;
}
