/* The table of renderers, and the small pieces that their texts are made of. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

/* ---- pieces ---- */

const char *shown_reason(const char *reason)
{
    return reason ? reason : "";
}

void add_field(struct buf *out, const char *key, const char *fmt, ...)
{
    va_list ap;

    buf_addf(out, "%s: ", key);
    va_start(ap, fmt);
    buf_vaddf(out, fmt, ap);
    va_end(ap);
    buf_addc(out, '\n');
}

void add_flat(struct buf *out, const char *text)
{
    for (size_t n; *text; text += n ? n : 1) {
        n = text_control_step(text);
        if (*text == '\n')
            buf_adds(out, "\\n");
        else if (*text == '\t')
            buf_adds(out, "\\t");
        else if (!n)
            buf_addc(out, *text);
    }
}

void add_time(struct buf *out, const char *key, int64_t wall_ns)
{
    char text[32];

    if (wall_ns)
        add_field(out, key, "%s", clock_iso(wall_ns, text, sizeof(text)));
}

json_t *text_or_null(const char *text)
{
    return text && *text ? json_string(text) : json_null();
}

void add_bytes(struct buf *out, int64_t n)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    double v = (double)n;
    int u = 0;

    for (; v >= 1000 && u < 4; u++)
        v /= 1000;
    buf_addf(out, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
}

void add_number(struct buf *out, const json_t *v, const char *fmt)
{
    /* fmt is one of this program's own formats for a double */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (json_is_number(v))
        buf_addf(out, fmt, json_number_value(v));
    else
        buf_addc(out, '-');
#pragma GCC diagnostic pop
}

/* ---- lists ---- */

struct lister {
    void (*fn)(void *arg, const char *name);
    void *arg;
};

static void add_suffixed(struct lister *l, const char *name, const char *suffix)
{
    char full[2 * NAME_CAP + 16];

    snprintf(full, sizeof(full), "%s%s", name, suffix);
    l->fn(l->arg, full);
}

static void list_experiments(struct sched *s, struct lister *l, bool folders)
{
    for (int i = 0; i < s->nexps; i++) {
        struct experiment *x = s->exps[i];
        if (x->deleted)
            continue;
        add_suffixed(l, x->name, ".status");
        if (folders && x->njobs)
            l->fn(l->arg, x->name);
    }
}

/* NAME.status of each object of the folder's kind; in models/tuned/ the links to the best ones too. */
static int list_collection(struct sched *s, const struct layout_match *m,
                           void (*fn)(void *arg, const char *name), void *arg)
{
    struct lister l = {fn, arg};
    size_t n = m->nargs ? strlen(m->arg[0]) : 0;

    for (int i = 0; i < s->nobjects; i++) {
        const struct object *o = s->objects[i];
        if (o->kind != m->entry->lists)
            continue;
        if (o->kind == OBJ_ASK) {
            if (strncmp(o->name, m->arg[0], n) == 0 && o->name[n] == '/')
                add_suffixed(&l, o->name + n + 1, ".status");
        } else {
            add_suffixed(&l, o->name, ".status");
        }
    }
    for (int i = 0; m->entry->lists == OBJ_TUNED && i < s->nexps; i++)
        if (!s->exps[i]->deleted && best_model(s, s->exps[i]))
            add_suffixed(&l, s->exps[i]->name, ".best");
    return 0;
}

static int list_exps(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
                     void *arg)
{
    struct lister l = {fn, arg};

    list_experiments(s, &l, true);
    return 0;
}

static int list_jobs(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
                     void *arg)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    struct lister l = {fn, arg};

    for (int i = 0; x && i < x->njobs; i++) {
        fn(arg, x->jobs[i]->name);
        add_suffixed(&l, x->jobs[i]->name, ".status");
    }
    return x ? 0 : -ENOENT;
}

static int list_devices(struct sched *s, const struct layout_match *m,
                        void (*fn)(void *arg, const char *name), void *arg)
{
    for (int i = 0; i < s->nworkers; i++)
        fn(arg, s->workers[i].label);
    return 0;
}

static int render_best_link(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x = experiment_find(s, m->arg[0]);
    struct job *best = x ? best_model(s, x) : NULL;

    if (!best)
        return -ENOENT;
    buf_addf(out, "%s.%s", x->name, best->name);
    return 0;
}

static int render_control(struct sched *s, const struct layout_match *m, struct buf *out)
{
    buf_adds(out, m->entry->writer == LW_SERVICE_CONTROL
                      ? "write one of: stop, start\n"
                      : "write one of: pause, resume, cancel, stop, retry\n");
    return 0;
}

const struct render_ops render_table[LR_COUNT] = {
    [LR_STATUS] = {.text = render_status},
    [LR_STATUS_JSON] = {.text = render_status_json, .heavy = true},
    [LR_CONSOLE] = {.text = render_console, .heavy = true},
    [LR_METRICS] = {.text = render_metrics},
    [LR_LIST] = {.text = render_list},
    [LR_OBJECT_STATUS] = {.text = render_object_status},
    [LR_COLLECTION] = {.list = list_collection},
    [LR_SERVICES] = {.list = list_collection},
    [LR_EXPERIMENTS] = {.list = list_exps},
    [LR_CATEGORY] = {.list = list_category},
    [LR_CATEGORY_VALUE] = {.list = list_category_value},
    [LR_CATEGORY_LINK] = {.text = render_category_link},
    [LR_BEST_LINK] = {.text = render_best_link},
    [LR_EXP_STATUS] = {.text = render_exp_status},
    [LR_EXP_STATUS_JSON] = {.text = render_exp_status_json},
    [LR_EXP_PROGRESS] = {.text = render_exp_progress},
    [LR_EXP_LEADERBOARD] = {.text = render_exp_leaderboard},
    [LR_EXP_BEST] = {.text = render_exp_best},
    [LR_EXP_REPORT] = {.text = render_exp_report, .heavy = true},
    [LR_EXP_CONTROL] = {.text = render_control},
    [LR_EXP_SPEC] = {.text = render_exp_spec},
    [LR_JOBS] = {.list = list_jobs},
    [LR_JOB_STATUS] = {.text = render_job_status},
    [LR_JOB_STATUS_JSON] = {.text = render_job_status_json},
    [LR_JOB_PROGRESS] = {.text = render_job_progress},
    [LR_JOB_CONTROL] = {.text = render_control},
    [LR_JOB_SVG] = {.text = render_job_svg, .heavy = true},
    [LR_DEVICES] = {.list = list_devices},
    [LR_DEVICE_STATUS] = {.text = render_device},
    [LR_SERVICE_STATS] = {.text = render_service_stats},
    [LR_SERVICE_ENDPOINT] = {.text = render_service_endpoint},
    [LR_SERVICE_CONTROL] = {.text = render_control},
};
