/* Parsing a spec: the table's rules (spec_check.c), then the rules between keys. */
#include "mnt-layout/spec.h"

#include <string.h>

#include "mnt-layout/spec_keys.h"
#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

enum { SPEC_MAX_BYTES = 16 << 20, SPEC_MAX_JOBS = 1024 };

/* ---- which of the alternatives ---- */

static bool is_given(const json_t *doc, const char *key)
{
    const json_t *v = json_object_get(doc, key);

    return v && !json_is_null(v) && !(json_is_array(v) && json_array_size(v) == 0);
}

static int count_given(const json_t *doc, const char *const *set, int *of)
{
    int n = 0;

    for (*of = 0; *of < SPEC_MAX_TOGETHER && set[*of]; ++*of)
        n += is_given(doc, set[*of]);
    return n;
}

/* "models", "datasets" and "paramgroups" */
static void add_set(struct buf *out, const char *const *set)
{
    int n = 0;

    while (n < SPEC_MAX_TOGETHER && set[n])
        n++;
    for (int i = 0; i < n; i++)
        buf_addf(out, "%s\"%s\"", i == 0 ? "" : i == n - 1 ? " and " : ", ", set[i]);
}

static int fail_alternatives(struct spec_ctx *c, const struct spec_table *t, const char *found)
{
    struct buf b = BUF_INIT;
    int rc;

    add_set(&b, t->alternatives[0]);
    buf_adds(&b, t->either_or ? ", or instead of them " : ", or ");
    add_set(&b, t->alternatives[1]);
    rc = spec_fail(c, false, "%s; expected %s", found, b.p ? b.p : "");
    buf_release(&b);
    return rc;
}

static int check_alternatives(struct spec_ctx *c, const struct spec_table *t, const json_t *doc)
{
    struct buf b = BUF_INIT;
    int of[SPEC_MAX_ALTERNATIVES], given[SPEC_MAX_ALTERNATIVES], rc;

    if (!t->alternatives[0][0])
        return 0;
    for (int i = 0; i < SPEC_MAX_ALTERNATIVES; i++)
        given[i] = count_given(doc, t->alternatives[i], &of[i]);
    if (t->either_or && given[0] && given[1])
        return fail_alternatives(c, t, "both ways are used at once");
    for (int i = 0; i < SPEC_MAX_ALTERNATIVES; i++)
        if (given[i] == of[i])
            return 0;
    if (given[0] == 0 && given[1] == 0)
        return fail_alternatives(c, t, "it names nothing to work on");
    for (int i = 0; i < of[0]; i++)
        if (!is_given(doc, t->alternatives[0][i]))
            buf_addf(&b, "%skey \"%s\": missing", b.len ? ", " : "", t->alternatives[0][i]);
    rc = fail_alternatives(c, t, b.p ? b.p : "");
    buf_release(&b);
    return rc;
}

/* ---- rules of single kinds ---- */

static size_t axis(const json_t *doc, const char *key)
{
    size_t n = json_array_size(json_object_get(doc, key));

    return n ? n : 1;
}

static int check_job_names(struct spec_ctx *c, const json_t *jobs)
{
    for (size_t i = 0; i < json_array_size(jobs); i++) {
        const char *name = json_str(json_array_get(jobs, i), "name", NULL);
        spec_enter_item(c, i);
        spec_enter_key(c, "name");
        if (name && strcmp(name, "best") == 0)
            return spec_fail(c, false, "key \"%s\": \"best\" is the link to the winner; choose another name",
                             c->path);
        for (size_t k = 0; name && k < i; k++)
            if (strcmp(json_str(json_array_get(jobs, k), "name", ""), name) == 0)
                return spec_fail(c, false, "key \"%s\": jobs[%zu] has the same name \"%s\"", c->path, k,
                                 name);
        c->path[strlen("jobs")] = '\0';
    }
    return 0;
}

static int check_experiment(struct spec_ctx *c, const json_t *doc)
{
    size_t models = axis(doc, "models"), datasets = axis(doc, "datasets"), groups = axis(doc, "paramgroups"),
           seeds = axis(doc, "seeds"),
           jobs = models * datasets * groups * seeds; /* each at most 1024: no overflow */

    if (jobs > SPEC_MAX_JOBS)
        return spec_fail(
            c, false,
            "%zu models x %zu datasets x %zu paramgroups x %zu seeds = %zu jobs; expected at most %d in one "
            "experiment: make several",
            models, datasets, groups, seeds, jobs, SPEC_MAX_JOBS);
    if (is_given(doc, "jobs") && is_given(doc, "seeds")) {
        spec_enter_key(c, "seeds");
        return spec_fail(
            c, true,
            "key \"seeds\": belongs to the lists; with \"jobs\" write {\"overrides\": {\"seed\": 1}}");
    }
    spec_enter_key(c, "jobs");
    return check_job_names(c, json_object_get(doc, "jobs"));
}

static int check_evaluation(struct spec_ctx *c, const json_t *doc)
{
    const json_t *metrics = json_object_get(doc, "metrics");
    const char *name;
    json_t *weight;
    double sum = 0;

    json_object_foreach((json_t *)metrics, name, weight) sum += json_number_value(weight);
    if (sum > 0)
        return 0;
    spec_enter_key(c, "metrics");
    return spec_fail(
        c, false,
        "key \"metrics\": the weights add up to 0; expected at least one above 0; e.g. {\"rougeL\": 1}");
}

static int check_between_keys(struct spec_ctx *c, enum spec_kind kind, const json_t *doc)
{
    int rc = check_alternatives(c, &spec_tables[kind], doc);

    if (rc)
        return rc;
    if (kind == SPEC_EXPERIMENT)
        return check_experiment(c, doc);
    return kind == SPEC_EVALUATION ? check_evaluation(c, doc) : 0;
}

/* ---- parsing ---- */

static int check_document(struct spec_ctx *c, enum spec_kind kind, const json_t *doc, json_t **out)
{
    int rc;

    if (!json_is_object(doc) && kind >= SPEC_KINDS)
        return spec_fail(c, false, "found %s; expected an object {...}",
                         json_is_array(doc) ? "a list" : "a single value");
    if (!json_is_object(doc))
        return spec_fail(c, false, "found %s; expected an object {...} as in templates/%s.json",
                         json_is_array(doc) ? "a list" : "a single value", spec_tables[kind].name);
    if (kind == SPEC_PARAMGROUP && datatunerx_is(doc))
        return datatunerx_translate(c, doc, out);
    c->any_map_key = kind == SPEC_EVALUATION && is_given(doc, "plugin");
    rc = spec_check_object(c, spec_tables[kind].keys, doc, true, out);
    return rc ? rc : check_between_keys(c, kind, *out);
}

int spec_parse(enum spec_kind kind, const char *file, const char *text, size_t n, json_t **out,
               struct dtx_err *e)
{
    struct spec_ctx c = {.file = file, .text = text, .n = n, .e = e};
    json_t *doc = NULL;
    int rc;

    *out = NULL;
    if (n > SPEC_MAX_BYTES)
        return dtx_fail(e, -EFBIG, "%s: %zu bytes; expected at most %d MiB in a spec", file, n,
                        SPEC_MAX_BYTES >> 20);
    if (text_is_blank(text, n) && kind >= SPEC_KINDS)
        return dtx_fail(e, -EINVAL, "%s:1:1: the file is empty; expected an object {...}", file);
    if (text_is_blank(text, n))
        return dtx_fail(e, -EINVAL, "%s:1:1: the file is empty; start from templates/%s.json", file,
                        spec_tables[kind].name);
    rc = json_parse_text(file, text, n, &doc, e);
    if (rc == 0)
        rc = check_document(&c, kind, doc, out);
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    json_decref(doc);
    return rc;
}

int spec_merge_overrides(json_t *paramgroup, const json_t *overrides, struct dtx_err *e)
{
    struct spec_ctx c = {.file = "overrides", .e = e};
    json_t *checked = NULL;
    int rc;

    if (!overrides || json_is_null(overrides))
        return 0;
    if (!json_is_object(overrides))
        return spec_fail(&c, false, "expected an object {...} of parameter group keys");
    rc = spec_check_object(&c, spec_tables[SPEC_PARAMGROUP].keys, overrides, false, &checked);
    if (rc == 0 && json_object_update(paramgroup, checked))
        rc = dtx_fail(e, -ENOMEM, "overrides: out of memory");
    json_decref(checked);
    return rc;
}

/* ---- prompts with settings ---- */

/* Length of the line at text[at], with its newline; *len without it and without a carriage return. */
static size_t line_at(const char *text, size_t n, size_t at, size_t *len)
{
    const char *nl = memchr(text + at, '\n', n - at);
    size_t whole = nl ? (size_t)(nl - text) + 1 - at : n - at;

    *len = whole - (nl != NULL);
    if (*len && text[at + *len - 1] == '\r')
        --*len;
    return whole;
}

static bool is_fence(const char *text, size_t at, size_t len)
{
    return len == 3 && memcmp(text + at, "---", 3) == 0;
}

/* The settings in the first n bytes, whose first line is a fence: blanked, so that lines and columns stay
 * true. */
static int parse_settings(const char *file, const char *text, size_t n, json_t **settings, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc = -ENOMEM;

    buf_adds(&b, "   ");
    buf_add(&b, text + 3, n - 3);
    *settings = NULL;
    if (b.failed)
        dtx_fail(e, rc, "%s: out of memory", file);
    else
        rc = spec_parse(SPEC_COMPARE, file, b.p, b.len, settings, e);
    buf_release(&b);
    return rc;
}

int spec_parse_prompt(const char *file, const char *text, size_t n, json_t **settings, const char **prompt,
                      size_t *prompt_len, struct dtx_err *e)
{
    size_t len, from = line_at(text, n, 0, &len), at, whole;

    *prompt = text;
    *prompt_len = n;
    if (n == 0 || !is_fence(text, 0, len))
        return spec_parse(SPEC_COMPARE, file, "{}", 2, settings, e);
    for (at = from; at < n; at += whole) {
        whole = line_at(text, n, at, &len);
        if (!is_fence(text, at, len))
            continue;
        *prompt = text + at + whole;
        *prompt_len = n - at - whole;
        return parse_settings(file, text, at, settings, e);
    }
    *settings = NULL;
    return dtx_fail(
        e, -EINVAL,
        "%s:1:1: it begins with a line --- but has no second one; expected ---, the settings as in "
        "templates/compare.json, ---, then the prompt",
        file);
}
