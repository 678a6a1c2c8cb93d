/* index.html: the appliance at a glance, from status.json. */
#include <math.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/report/markup.h"
#include "scheduler/report/report.h"

enum { CONSOLE_REFRESH_S = 5, CONSOLE_ROWS = 40 };

static bool is_one_of(const char *state, const char *const *states)
{
    for (; *states; states++)
        if (strcmp(state, *states) == 0)
            return true;
    return false;
}

static bool state_is(const json_t *object, const char *const *states)
{
    return is_one_of(json_str(object, "state", ""), states);
}

/* Of {"STATE": how many}, those in one of these states; NULL: all. */
static double counted(const json_t *counts, const char *const *states)
{
    const char *state;
    double n = 0;
    json_t *v;

    json_object_foreach((json_t *)counts, state, v) if (!states || is_one_of(state, states)) n +=
        json_number_value(v);
    return n;
}

static const char *const ended[] = {"SUCCESSFUL", "SUCCESS", "FAILED", "CANCELLED", NULL};
static const char *const working[] = {"FINETUNE", "EXPORT", "SERVE", "SCORE", NULL};
static const char *const bad[] = {"FAILED", "REJECTED", NULL};
static const char *const ready[] = {"READY", "RUNNING", "DONE", NULL};

static void copy(json_t *to, const char *key, const json_t *from)
{
    json_t *v = json_object_get(from, key);

    if (v && !json_object_get(to, key))
        json_object_set(to, key, v);
}

/* How much of a job is done, 0..1: training counts for nearly all of it. */
static double job_progress(const json_t *job)
{
    const json_t *p = json_object_get(job, "progress");
    double step = json_num(p, "step", 0), total = json_num(p, "total", 0);

    if (state_is(job, ended))
        return 1;
    return total > 0 && step > 0 ? .98 * fmin(step / total, 1) : 0;
}

/* ---- rows of the tables ---- */

static json_t *device_rows(const json_t *status)
{
    static const char *const own[] = {"name", "state", "base", "jobs", "asks", "reason"};
    static const char *const measured[] = {"device", "tokens_per_s", "mem_used", "mem_total"};
    json_t *rows = json_array(), *d;
    size_t i;

    json_array_foreach(json_object_get(status, "devices"), i, d)
    {
        json_t *row = json_object();
        for (size_t k = 0; k < sizeof(own) / sizeof(own[0]); k++)
            copy(row, own[k], d);
        for (size_t k = 0; k < sizeof(measured) / sizeof(measured[0]); k++) {
            copy(row, measured[k], json_object_get(d, "stats"));
            copy(row, measured[k], json_object_get(d, "hello"));
        }
        json_array_append_new(rows, row);
    }
    return rows;
}

static json_t *best_score(const json_t *experiment)
{
    const char *best = json_str(experiment, "best", NULL);
    size_t i;
    json_t *row;

    json_array_foreach(json_object_get(experiment, "leaderboard"), i, row)
    {
        if (best && strcmp(json_str(row, "job", ""), best) == 0)
            return json_object_get(row, "score");
    }
    return NULL;
}

static json_t *experiment_row(const json_t *x)
{
    static const char *const own[] = {"name", "state", "best", "created", "reason"};
    json_t *row = json_object(), *job, *score = best_score(x), *states = json_object_get(x, "job_states");
    double n = counted(states, NULL), done = counted(states, ended), progress = done;
    size_t i;

    for (size_t k = 0; k < sizeof(own) / sizeof(own[0]); k++)
        copy(row, own[k], x);
    json_array_foreach(json_object_get(x, "jobs"), i, job) if (!state_is(job, ended)) progress +=
        job_progress(job);
    if (n > 0) {
        json_object_set_new(row, "jobs", json_sprintf("%.0f of %.0f", done, n));
        json_object_set_new(row, "progress", json_real(progress / n));
    }
    if (score)
        json_object_set(row, "score", score);
    return row;
}

/* The newest first. */
static json_t *experiment_rows(const json_t *status)
{
    const json_t *all = json_object_get(status, "experiments");
    json_t *rows = json_array();

    for (size_t i = json_array_size(all); i > 0 && json_array_size(rows) < CONSOLE_ROWS; i--)
        json_array_append_new(rows, experiment_row(json_array_get(all, i - 1)));
    return rows;
}

static json_t *job_row(const json_t *job)
{
    static const char *const own[] = {"state", "device"};
    static const char *const measured[] = {"step",      "total",        "epoch", "loss",
                                           "eval_loss", "tokens_per_s", "eta_s"};
    json_t *row = json_object();

    json_object_set_new(row, "experiment", json_string(json_str(job, "experiment", "?")));
    json_object_set_new(row, "job", json_string(json_str(job, "name", "?")));
    json_object_set_new(row, "progress", json_real(job_progress(job)));
    for (size_t k = 0; k < sizeof(own) / sizeof(own[0]); k++)
        copy(row, own[k], job);
    for (size_t k = 0; k < sizeof(measured) / sizeof(measured[0]); k++)
        copy(row, measured[k], json_object_get(job, "progress"));
    return row;
}

static json_t *job_rows(const json_t *status)
{
    json_t *rows = json_array(), *job;
    size_t i;

    json_array_foreach(json_object_get(status, "running"), i,
                       job) if (state_is(job, working) && json_array_size(rows) < CONSOLE_ROWS)
        json_array_append_new(rows, job_row(job));
    return rows;
}

static void add_problem(json_t *rows, const char *where, const char *name, const json_t *o)
{
    if (json_array_size(rows) < CONSOLE_ROWS)
        json_array_append_new(rows,
                              json_pack("{s:o,s:s,s:s}", "name", json_sprintf("%s/%s", where, name), "state",
                                        json_str(o, "state", "?"), "reason", json_str(o, "reason", "")));
}

/* Whatever was refused or failed, in every list at the top, and the failed jobs. */
static json_t *problem_rows(const json_t *status)
{
    json_t *rows = json_array(), *list, *o, *job;
    const char *key;
    size_t i, k;

    json_object_foreach((json_t *)status, key, list)
    {
        if (strcmp(key, "running") == 0)
            continue;
        json_array_foreach(list, i, o)
        {
            const char *name = json_str(o, "name", "?");
            if (state_is(o, bad))
                add_problem(rows, key, name, o);
            json_array_foreach(json_object_get(o, "jobs"), k, job)
            {
                if (state_is(job, bad))
                    add_problem(rows, name, json_str(job, "name", "?"), job);
            }
        }
    }
    return rows;
}

/* How many of each kind there are, and how many of them can be used. */
static json_t *object_rows(const json_t *status)
{
    json_t *rows = json_array(), *states;
    const char *key;

    json_object_foreach(json_object_get(status, "counts"), key, states) if (strcmp(key, "experiments") != 0 &&
                                                                            strcmp(key, "jobs") != 0 &&
                                                                            json_object_size(states))
        json_array_append_new(rows, json_pack("{s:s,s:I,s:I}", "name", key, "objects",
                                              (json_int_t)counted(states, NULL), "ready",
                                              (json_int_t)counted(states, ready)));
    return rows;
}

/* ---- the page ---- */

static void add_head(struct buf *out, const json_t *status)
{
    static const char *const parts[] = {"version", "host", "started", "reason"};
    const char *between = "";

    buf_adds(out, "<h1>");
    markup_text(out, json_str(status, "name", "DTX"));
    buf_adds(out, "</h1>");
    page_state(out, json_str(status, "state", "?"));
    buf_adds(out, "<p class=\"meta\">");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        const json_t *v = json_object_get(status, parts[i]);
        if (!v || json_is_null(v))
            continue;
        buf_addf(out, "%s%s ", between, parts[i]);
        page_value(out, parts[i], v);
        between = " &#183; ";
    }
    buf_adds(out, "</p>\n");
}

static void add_tile(struct buf *out, const char *what, double n)
{
    buf_addf(out, "<div class=\"card tile\"><b>%.0f</b><span>%s</span></div>\n", isfinite(n) ? n : 0, what);
}

static void add_tiles(struct buf *out, const json_t *status)
{
    const json_t *jobs = json_object_get(json_object_get(status, "counts"), "jobs");
    double running = counted(jobs, working), done = counted(jobs, ended), tokens = 0;
    json_t *x;
    size_t i;

    json_array_foreach(json_object_get(status, "devices"), i, x) tokens +=
        json_num(json_object_get(x, "stats"), "tokens_per_s", 0);
    buf_adds(out, "<div class=\"tiles\">");
    add_tile(out, "jobs running", running);
    add_tile(out, "jobs waiting", counted(jobs, NULL) - running - done);
    add_tile(out, "jobs ended", done);
    add_tile(out, "tokens/s", tokens);
    add_tile(out, "devices", (double)json_array_size(json_object_get(status, "devices")));
    buf_adds(out, "</div>\n");
}

static void add_section(struct buf *out, const char *title, json_t *rows, const char *const *columns)
{
    if (json_array_size(rows)) {
        buf_addf(out, "<h2>%s</h2>\n", title);
        page_table(out, rows, columns, NULL);
    }
    json_decref(rows);
}

void console_html(struct buf *out, const json_t *status)
{
    static const char *const problems[] = {"name", "state", "reason", NULL};
    static const char *const devices[] = {"name",         "state",    "device",    "base",   "jobs", "asks",
                                          "tokens_per_s", "mem_used", "mem_total", "reason", NULL};
    static const char *const jobs[] = {"experiment", "job",    "state", "progress",  "step",
                                       "total",      "epoch",  "loss",  "eval_loss", "tokens_per_s",
                                       "eta_s",      "device", NULL};
    static const char *const experiments[] = {"name",  "state",   "jobs",   "progress", "best",
                                              "score", "created", "reason", NULL};
    static const char *const services[] = {"name", "state", "size", "created", "reason", NULL};
    static const char *const objects[] = {"name", "objects", "ready", NULL};

    page_begin(out, json_str(status, "name", "DTX"), CONSOLE_REFRESH_S);
    add_head(out, status);
    add_tiles(out, status);
    add_section(out, "Needs attention", problem_rows(status), problems);
    add_section(out, "Running now", job_rows(status), jobs);
    add_section(out, "Experiments", experiment_rows(status), experiments);
    add_section(out, "Devices", device_rows(status), devices);
    add_section(out, "Services", json_incref(json_object_get(status, "services")), services);
    add_section(out, "In the store", object_rows(status), objects);
    buf_addf(out, "<footer>Made from status.json; renews itself every %d seconds.</footer>\n",
             CONSOLE_REFRESH_S);
    page_end(out);
}
