/* NAME.status and LIST.tsv. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

static void add_report_int(struct buf *out, const json_t *report, const char *key)
{
    if (json_is_integer(json_object_get(report, key)))
        add_field(out, key, "%lld", json_int(report, key, 0));
}

static void add_report_text(struct buf *out, const json_t *report, const char *key)
{
    const char *text = json_str(report, key, NULL);

    if (text)
        add_field(out, key, "%s", text);
}

static void add_rows(struct buf *out, const json_t *rows)
{
    const char *split, *sep = "";
    json_t *n;

    buf_adds(out, "rows: ");
    json_object_foreach((json_t *)rows, split, n)
    {
        buf_addf(out, "%s%s %lld", sep, split, (long long)json_integer_value(n));
        sep = ", ";
    }
    buf_addc(out, '\n');
}

/* Three rendered rows; what is trained stands between [[ and ]]. */
static void add_examples(struct buf *out, const json_t *examples)
{
    size_t i, k;
    json_t *v, *piece;

    json_array_foreach(examples, i, v)
    {
        buf_addf(out, "example %zu: ", i + 1);
        json_array_foreach(json_object_get(v, "pieces"), k, piece)
        {
            bool trained = json_flag(piece, "trained", 0);
            buf_adds(out, trained ? "[[" : "");
            add_flat(out, json_str(piece, "text", ""));
            buf_adds(out, trained ? "]]" : "");
        }
        buf_addc(out, '\n');
    }
    if (json_array_size(examples))
        buf_adds(out, "examples: what is trained stands between [[ and ]]\n");
}

/* The status is everybody's: rows that others may not read do not appear in it. */
static void dataset_report(struct buf *out, const json_t *r, bool hide_rows)
{
    const json_t *reasons = json_object_get(r, "skip_reasons");
    json_t *v;
    size_t i;

    if (json_is_object(json_object_get(r, "rows")))
        add_rows(out, json_object_get(r, "rows"));
    add_report_int(out, r, "tokens");
    add_report_int(out, r, "longest");
    add_report_int(out, r, "longest_chars");
    add_report_int(out, r, "skipped");
    json_array_foreach(reasons, i, v) add_field(out, "skipped row", "%s", json_string_value(v));
    add_report_text(out, r, "template");
    add_report_text(out, r, "sha256");
    if (hide_rows && json_array_size(json_object_get(r, "examples")))
        add_field(out, "examples", "not shown before the dataset is READY again");
    else
        add_examples(out, json_object_get(r, "examples"));
}

/* Whatever the check of a model says: numbers and texts. */
static void plain_report(struct buf *out, const json_t *r)
{
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)r, key, v)
    {
        if (json_is_integer(v))
            add_field(out, key, "%lld", (long long)json_integer_value(v));
        else if (json_is_real(v))
            add_field(out, key, "%g", json_real_value(v));
        else if (json_is_string(v))
            add_field(out, key, "%s", json_string_value(v));
        else if (json_is_boolean(v))
            add_field(out, key, "%s", json_is_true(v) ? "yes" : "no");
    }
}

static void answers_report(struct buf *out, const json_t *r)
{
    json_t *v;
    size_t i;

    json_array_foreach(json_object_get(r, "answers"), i, v)
    {
        if (json_str(v, "error", NULL))
            add_field(out, json_str(v, "model", "?"), "ERROR: %s", json_str(v, "error", ""));
        else
            add_field(out, json_str(v, "model", "?"),
                      "%lld tokens, %.1f tokens/s, first token after %.3f s, %.3f s",
                      json_int(v, "new_tokens", 0), json_num(v, "tokens_per_s", 0), json_num(v, "ttft_s", 0),
                      json_num(v, "total_s", 0));
    }
}

static void tuned_report(struct buf *out, const struct object *o)
{
    static const char *const keys[] = {"base", "experiment", "job", "dataset", "paramgroup"};

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        add_report_text(out, o->spec, keys[i]);
    if (json_is_number(json_object_get(o->spec, "score")))
        add_field(out, "score", "%.2f", json_num(o->spec, "score", 0));
    if (json_is_number(json_object_get(o->spec, "eval_loss")))
        add_field(out, "eval_loss", "%.4f", json_num(o->spec, "eval_loss", 0));
}

static void object_text(struct sched *s, const struct object *o, struct buf *out)
{
    const char *no_space = intake_no_space(s, o->kind, o->name);

    buf_addf(out, "%s\n", state_name(o->state));
    if (no_space || o->reason)
        add_field(out, "reason", "%s", no_space ? no_space : o->reason);
    add_field(out, "kind", "%s", object_kind_name(o->kind));
    add_field(out, "owner", "%u", (unsigned)o->uid);
    if (o->size) {
        buf_adds(out, "size: ");
        add_bytes(out, o->size);
        buf_addc(out, '\n');
    }
    add_time(out, "created", o->created);
    add_time(out, "changed", o->changed);
    if (o->kind == OBJ_DATASET)
        dataset_report(out, o->report, o->state != ST_READY);
    else if (o->kind == OBJ_COMPARE || o->kind == OBJ_ASK)
        answers_report(out, o->report);
    else if (o->kind == OBJ_TUNED)
        tuned_report(out, o);
    else
        plain_report(out, o->report);
    if (o->kind == OBJ_SERVICE)
        add_report_text(out, o->spec, "model");
}

/* experiments/NAME.status: beside the spec, so a refused later spec is said here. */
static void experiment_text(const struct experiment *x, struct buf *out)
{
    if (x->spec_reason) {
        buf_adds(out, "REJECTED\n");
        add_field(out, "reason", "%s.json: %s", x->name, x->spec_reason);
        add_field(out, "experiment", "%s (%s/status)", state_name(x->state), x->name);
    } else {
        buf_addf(out, "%s\n", state_name(x->state));
        if (x->reason)
            add_field(out, "reason", "%s", x->reason);
    }
    add_field(out, "kind", "experiment");
    add_field(out, "owner", "%u", (unsigned)x->uid);
    if (x->njobs)
        add_field(out, "jobs", "%d", x->njobs);
    add_time(out, "created", x->created);
    add_time(out, "started", x->started);
    add_time(out, "finished", x->finished);
    add_time(out, "changed", x->changed);
}

int render_object_status(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct subject it;

    if (!subject_of(s, m, &it))
        return -ENOENT;
    if (it.object) {
        object_text(s, it.object, out);
        return 0;
    }
    if (it.job)
        return render_job_status(s, m, out);
    experiment_text(it.exp, out);
    return 0;
}

/* ---- LIST.tsv ---- */

static void list_line(struct buf *out, const char *name, const char *state, int64_t size, int64_t since,
                      const char *reason)
{
    char age[32];

    add_flat(out, name); /* one that came past the mount may hold anything */
    buf_addf(out, "\t%s\t", state);
    if (size >= 0)
        add_bytes(out, size);
    else
        buf_addc(out, '-');
    buf_addf(out, "\t%s\t",
             clock_human((double)((clock_wall_ns() - since) / SECOND_NS / 10 * 10), age, sizeof(age)));
    add_flat(out, shown_reason(reason));
    buf_addc(out, '\n');
}

static void list_objects(struct sched *s, const struct layout_match *m, struct buf *out)
{
    size_t n = m->nargs ? strlen(m->arg[0]) : 0;

    for (int i = 0; i < s->nobjects; i++) {
        const struct object *o = s->objects[i];
        const char *name = o->name;
        if (o->kind != m->entry->lists)
            continue;
        if (o->kind == OBJ_ASK) {
            if (strncmp(name, m->arg[0], n) != 0 || name[n] != '/')
                continue;
            name += n + 1;
        }
        list_line(out, name, state_name(o->state), o->size, o->created, public_reason(o));
    }
}

int render_list(struct sched *s, const struct layout_match *m, struct buf *out)
{
    struct experiment *x;

    buf_adds(out, "name\tstate\tsize\tage\treason\n");
    if (m->entry->lists == OBJ_EXPERIMENT) {
        for (int i = 0; i < s->nexps; i++)
            if (!(x = s->exps[i])->deleted)
                list_line(out, x->name, x->spec_reason ? "REJECTED" : state_name(x->state), -1, x->created,
                          experiment_words(s, x, x->spec_reason ? x->spec_reason : x->reason));
    } else if (m->entry->lists == OBJ_JOB) {
        x = experiment_find(s, m->arg[0]);
        for (int i = 0; x && i < x->njobs; i++)
            list_line(out, x->jobs[i]->name, state_name(x->jobs[i]->state), -1, x->jobs[i]->created,
                      x->jobs[i]->reason);
    } else {
        list_objects(s, m, out);
    }
    return 0;
}
