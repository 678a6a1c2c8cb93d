/* index.html: the appliance at a glance, from status.json. */
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/report/markup.h"
#include "scheduler/report/report.h"

enum { CONSOLE_REFRESH_S = 5 };

/* The lists of status.json in this order, each with its columns; lists that are not named here follow. */
static const char *const device_columns[] = {"name",     "device",    "state",       "base",
                                             "jobs",     "asks",      "utilisation", "tokens_per_s",
                                             "mem_used", "mem_total", NULL};
static const char *const experiment_columns[] = {"name",  "state", "progress", "jobs",   "best",
                                                 "score", "eta_s", "created",  "reason", NULL};
static const char *const job_columns[] = {"experiment",   "job",   "name",   "state",     "progress",
                                          "step",         "total", "loss",   "eval_loss", "score",
                                          "tokens_per_s", "eta_s", "device", "reason",    NULL};
static const char *const service_columns[] = {"name",         "state",  "model", "asks",
                                              "tokens_per_s", "reason", NULL};
static const char *const object_columns[] = {"name", "state", "size", "age", "reason", NULL};

static const struct {
    const char *key, *title, *const *columns;
} lists[] = {
    {"devices", "Devices", device_columns},
    {"experiments", "Experiments", experiment_columns},
    {"jobs", "Jobs", job_columns},
    {"services", "Services", service_columns},
    {"waiting", "Waiting", object_columns},
    {"problems", "Problems", object_columns},
    {"datasets", "Datasets", object_columns},
    {"models", "Models", object_columns},
};
enum { LISTS = sizeof(lists) / sizeof(lists[0]) };

static bool is_list_of_objects(const json_t *v)
{
    return json_is_object(json_array_get(v, 0));
}

static bool is_known_list(const char *key)
{
    for (int i = 0; i < LISTS; i++)
        if (strcmp(lists[i].key, key) == 0)
            return true;
    return false;
}

/* Everything at the top that is a plain value becomes a tile, but the few that the head shows. */
static void add_tiles(struct buf *out, const json_t *status)
{
    static const char *const in_head[] = {"name", "version", "state", "host", "time", "updated", NULL};
    const char *key;
    json_t *v;
    bool any = false;

    json_object_foreach((json_t *)status, key, v)
    {
        bool head = json_is_object(v) || json_is_array(v) || json_is_null(v);
        for (int k = 0; in_head[k]; k++)
            head |= strcmp(key, in_head[k]) == 0;
        if (head)
            continue;
        if (!any)
            buf_adds(out, "<div class=\"tiles\">");
        any = true;
        buf_adds(out, "<div class=\"card tile\"><b>");
        page_value(out, key, v);
        buf_adds(out, "</b><span>");
        page_label(out, key);
        buf_adds(out, "</span></div>\n");
    }
    if (any)
        buf_adds(out, "</div>\n");
}

/* An object of plain values: {"datasets":3,"READY":2}. */
static void add_facts(struct buf *out, const char *key, const json_t *facts)
{
    const char *name;
    json_t *v;

    buf_adds(out, "<h2>");
    page_label(out, key);
    buf_adds(out, "</h2><div class=\"card\"><table><tbody>\n");
    json_object_foreach((json_t *)facts, name, v)
    {
        buf_adds(out, "<tr><td>");
        page_label(out, name);
        buf_adds(out, "</td><td class=\"n\">");
        page_value(out, name, v);
        buf_adds(out, "</td></tr>\n");
    }
    buf_adds(out, "</tbody></table></div>\n");
}

static void add_head(struct buf *out, const json_t *status)
{
    const char *state = json_str(status, "state", NULL);
    static const char *const parts[] = {"version", "host", "time", "updated"};
    bool any = false;

    buf_adds(out, "<h1>");
    markup_text(out, json_str(status, "name", "DTX"));
    buf_adds(out, "</h1>");
    if (state)
        page_state(out, state);
    buf_adds(out, "<p class=\"meta\">");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        const json_t *v = json_object_get(status, parts[i]);
        if (!v || json_is_null(v))
            continue;
        buf_addf(out, "%s%s ", any ? " &#183; " : "", parts[i]);
        page_value(out, parts[i], v);
        any = true;
    }
    buf_adds(out, "</p>\n");
}

void console_html(struct buf *out, const json_t *status)
{
    const char *key;
    json_t *v;

    page_begin(out, json_str(status, "name", "DTX"), CONSOLE_REFRESH_S);
    add_head(out, status);
    add_tiles(out, status);
    for (int i = 0; i < LISTS; i++) {
        const json_t *list = json_object_get(status, lists[i].key);
        if (!is_list_of_objects(list))
            continue;
        buf_addf(out, "<h2>%s</h2>\n", lists[i].title);
        page_table(out, list, lists[i].columns, NULL);
    }
    json_object_foreach((json_t *)status, key, v)
    {
        if (is_list_of_objects(v) && !is_known_list(key)) {
            buf_adds(out, "<h2>");
            page_label(out, key);
            buf_adds(out, "</h2>\n");
            page_table(out, v, NULL, NULL);
        } else if (json_is_object(v) && json_object_size(v)) {
            add_facts(out, key, v);
        }
    }
    buf_addf(out, "<footer>This page reads status.json and renews itself every %d seconds.</footer>\n",
             CONSOLE_REFRESH_S);
    page_end(out);
}
