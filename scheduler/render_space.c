/* Who uses what: owners, their files, objects and jobs, in status, status.json and metrics.prom. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>

#include "scheduler/base/text.h"
#include "scheduler/internal.h"

struct owner_row {
    struct sched_usage use;
    int objects, running, waiting;
    int64_t quota; /* -1: none */
};

struct space_report {
    struct owner_row *rows; /* the largest first; owned */
    size_t n, cap;
    int64_t used, available;
};

static struct owner_row *row_of(struct space_report *r, uid_t uid)
{
    struct owner_row *p;

    for (size_t i = 0; i < r->n; i++)
        if (r->rows[i].use.uid == uid)
            return &r->rows[i];
    if (r->n == r->cap) {
        p = realloc(r->rows, (r->cap * 2 + 16) * sizeof(*p));
        if (!p)
            return NULL;
        r->rows = p;
        r->cap = r->cap * 2 + 16;
    }
    p = &r->rows[r->n++];
    *p = (struct owner_row){.use = {.uid = uid}};
    return p;
}

static void count_jobs(struct sched *s, struct space_report *r)
{
    for (int i = 0; i < s->nexps; i++) {
        const struct experiment *x = s->exps[i];
        struct owner_row *row = x->deleted ? NULL : row_of(r, x->uid);
        if (!row)
            continue;
        row->objects++;
        for (int k = 0; k < x->njobs; k++) {
            row->running += x->jobs[k]->worker != NULL;
            row->waiting += !x->jobs[k]->worker && !state_is_end(x->jobs[k]->state);
        }
    }
}

static int by_bytes(const void *a, const void *b)
{
    const struct owner_row *x = a, *y = b;

    if (x->use.bytes != y->use.bytes)
        return x->use.bytes < y->use.bytes ? 1 : -1;
    return x->use.uid < y->use.uid ? -1 : x->use.uid > y->use.uid;
}

static struct space_report make_report(struct sched *s)
{
    struct space_report r = {.rows = NULL};
    struct owner_row *row;
    struct statvfs v;
    size_t n;
    struct sched_usage *use = space_usage(s, &n);

    for (size_t i = 0; i < n; i++) {
        r.used += use[i].bytes;
        if ((row = row_of(&r, use[i].uid)))
            row->use = use[i];
    }
    free(use);
    for (int i = 0; i < s->nobjects; i++)
        if ((row = row_of(&r, s->objects[i]->uid)))
            row->objects++;
    count_jobs(s, &r);
    for (size_t i = 0; i < r.n; i++) {
        row = &r.rows[i];
        row->quota = settings_quota(&s->settings, row->use.uid);
        if (!row->use.name[0])
            snprintf(row->use.name, sizeof(row->use.name), "%u", (unsigned)row->use.uid);
    }
    if (r.n)
        qsort(r.rows, r.n, sizeof(*r.rows), by_bytes);
    r.available = fstatvfs(s->store_fd, &v) ? 0 : (int64_t)(v.f_bavail * v.f_frsize);
    return r;
}

void render_owners(struct sched *s, struct buf *out)
{
    struct space_report r = make_report(s);
    char a[24], b[24];

    buf_addf(out, "space: %s used", text_size(r.used, a));
    if (s->settings.store_max >= 0)
        buf_addf(out, " of %s", text_size(s->settings.store_max, b));
    buf_addf(out, ", %s free on the disk", text_size(r.available, b));
    if (s->settings.store_reserve > 0)
        buf_addf(out, ", %s must stay free", text_size(s->settings.store_reserve, b));
    buf_adds(out, "\nowners:\n");
    for (size_t i = 0; i < r.n; i++) {
        const struct owner_row *row = &r.rows[i];
        buf_addf(out, "  %s: %s", row->use.name, text_size(row->use.bytes, a));
        if (row->quota >= 0)
            buf_addf(out, " of %s", text_size(row->quota, b));
        buf_addf(out, ", %d objects, %d jobs running, %d waiting\n", row->objects, row->running,
                 row->waiting);
    }
    free(r.rows);
}

static json_t *bytes_or_null(int64_t n)
{
    return n < 0 ? json_null() : json_integer(n);
}

void owners_json(struct sched *s, json_t *into)
{
    struct space_report r = make_report(s);
    json_t *list = json_array();

    for (size_t i = 0; i < r.n; i++) {
        const struct owner_row *row = &r.rows[i];
        json_array_append_new(list, json_pack("{ss sI sI sI so si si si}", "name", row->use.name, "uid",
                                              (json_int_t)row->use.uid, "bytes", (json_int_t)row->use.bytes,
                                              "files", (json_int_t)row->use.files, "quota",
                                              bytes_or_null(row->quota), "objects", row->objects,
                                              "jobs_running", row->running, "jobs_waiting", row->waiting));
    }
    json_object_set_new(into, "space",
                        json_pack("{sI so sI sI}", "used", (json_int_t)r.used, "max",
                                  bytes_or_null(s->settings.store_max), "free", (json_int_t)r.available,
                                  "reserve", (json_int_t)s->settings.store_reserve));
    json_object_set_new(into, "owners", list);
    free(r.rows);
}

static void gauge(struct buf *out, const struct space_report *r, const char *name, const char *help,
                  int64_t (*value)(const struct owner_row *row))
{
    buf_addf(out, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
    for (size_t i = 0; i < r->n; i++) {
        if (value(&r->rows[i]) < 0)
            continue;
        buf_addf(out, "%s{owner=", name);
        buf_add_json(out, r->rows[i].use.name, strlen(r->rows[i].use.name));
        buf_addf(out, "} %lld\n", (long long)value(&r->rows[i]));
    }
}

static int64_t bytes_of(const struct owner_row *row)
{
    return row->use.bytes;
}

static int64_t quota_of(const struct owner_row *row)
{
    return row->quota;
}

static int64_t objects_of(const struct owner_row *row)
{
    return row->objects;
}

static int64_t running_of(const struct owner_row *row)
{
    return row->running;
}

static int64_t waiting_of(const struct owner_row *row)
{
    return row->waiting;
}

void owners_metrics(struct sched *s, struct buf *out)
{
    struct space_report r = make_report(s);

    gauge(out, &r, "dtx_owner_bytes", "what an owner's files take in the store", bytes_of);
    gauge(out, &r, "dtx_owner_quota_bytes", "how much they may take", quota_of);
    gauge(out, &r, "dtx_owner_objects", "objects and experiments of an owner", objects_of);
    gauge(out, &r, "dtx_owner_jobs_running", "jobs of an owner that a worker has", running_of);
    gauge(out, &r, "dtx_owner_jobs_waiting", "jobs of an owner that wait", waiting_of);
    buf_addf(out,
             "# HELP dtx_store_bytes what everything in the store takes\n# TYPE dtx_store_bytes gauge\n"
             "dtx_store_bytes %lld\n",
             (long long)r.used);
    buf_addf(out,
             "# HELP dtx_store_free_bytes free on the store's disk\n# TYPE dtx_store_free_bytes gauge\n"
             "dtx_store_free_bytes %lld\n",
             (long long)r.available);
    free(r.rows);
}
