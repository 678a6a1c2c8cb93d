/* report.html of an experiment. */
#include <math.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/report/markup.h"
#include "scheduler/report/report.h"

enum { REPORT_SAMPLES = 20 };

static const char *const columns[] = {
    "rank",       "job",       "name",         "state",  "score",      "model",     "base", "dataset",
    "paramgroup", "seed",      "rouge1",       "rouge2", "rougeL",     "rougeLsum", "bleu", "exact_match",
    "accuracy",   "precision", "recall",       "f1",     "perplexity", "eval_loss", "loss", "steps",
    "tokens",     "seconds",   "tokens_per_s", "reason", NULL};

static const char *row_name(const json_t *row)
{
    return json_str(row, "job", json_str(row, "name", ""));
}

static bool is_base(const char *job)
{
    return strncmp(job, "base", 4) == 0 && (job[4] == '\0' || job[4] == ':' || job[4] == '/');
}

static const json_t *find_row(const json_t *rows, const char *name)
{
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row) if (strcmp(row_name(row), name) == 0) return row;
    return NULL;
}

/* Do all rows that have it agree on it? */
static bool is_constant(const json_t *rows, const char *key)
{
    const json_t *first = NULL;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        const json_t *v = json_object_get(row, key);
        if (!v || json_is_null(v))
            continue;
        if (first && !json_equal(first, v))
            return false;
        first = v;
    }
    return true;
}

/* The leaderboard for people: an axis (model, dataset, ...) is worth a column only where it varies. */
static json_t *shown_rows(const json_t *rows)
{
    static const char *const axes[] = {"model", "dataset", "paramgroup", "seed"};
    json_t *shown = json_deep_copy(rows), *row;
    bool drop[4];
    size_t i;

    for (size_t k = 0; k < 4; k++)
        drop[k] = is_constant(rows, axes[k]);
    json_array_foreach(shown, i, row)
    {
        for (size_t k = 0; k < 4; k++)
            if (drop[k])
                json_object_del(row, axes[k]);
        json_object_del(row, "base"); /* its name says so */
    }
    return shown;
}

static void add_tile(struct buf *out, const char *what, const char *key, const json_t *v)
{
    if (!v || json_is_null(v))
        return;
    buf_adds(out, "<div class=\"card tile\"><b>");
    page_value(out, key, v);
    buf_addf(out, "</b><span>%s</span></div>", what);
}

/* Score of the best and how far it is above the best untuned base. */
static void add_gain(struct buf *out, const json_t *rows, const json_t *best_row)
{
    double best = json_num(best_row, "score", NAN), base = NAN;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        double score = json_num(row, "score", NAN);
        if (is_base(row_name(row)) && isfinite(score) && !(base >= score))
            base = score;
    }
    if (!isfinite(best))
        return;
    buf_addf(out, "<div class=\"card tile\"><b>%.1f</b><span>score of 100", best);
    if (isfinite(base))
        buf_addf(out, "; the untuned base has %.1f", base);
    buf_adds(out, "</span></div>");
}

static void add_head(struct buf *out, const json_t *x)
{
    const json_t *rows = json_object_get(x, "rows");
    const char *best = json_str(x, "best", ""), *parts[] = {"created", "finished", "evaluation"};
    const json_t *best_row = find_row(rows, best);
    bool any = false;

    buf_adds(out, "<h1>");
    markup_text(out, json_str(x, "name", "experiment"));
    buf_adds(out, "</h1>");
    page_state(out, json_str(x, "state", "?"));
    buf_adds(out, "<p class=\"meta\">");
    for (size_t i = 0; i < 3; i++) {
        const json_t *v = json_object_get(x, parts[i]);
        if (!v || json_is_null(v))
            continue;
        buf_addf(out, "%s%s ", any ? " &#183; " : "", parts[i]);
        page_value(out, "", v);
        any = true;
    }
    buf_adds(out, "</p>\n");
    if (*best) {
        buf_adds(out, "<div class=\"tiles\">");
        add_tile(out, "best job", "", json_object_get(x, "best"));
        add_gain(out, rows, best_row);
        add_tile(out, "eval loss", "eval_loss", json_object_get(best_row, "eval_loss"));
        add_tile(out, "perplexity", "perplexity", json_object_get(best_row, "perplexity"));
        add_tile(out, "training time", "seconds", json_object_get(best_row, "seconds"));
        buf_adds(out, "</div>\n");
    }
}

static void add_bars(struct buf *out, const json_t *rows, const char *best)
{
    bool any = false;
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)rows, i, row)
    {
        double score = json_num(row, "score", NAN);
        const char *name = row_name(row);
        if (!isfinite(score))
            continue;
        if (!any)
            buf_adds(out, "<h2>Scores</h2><div class=\"card bars\">\n");
        any = true;
        buf_adds(out, "<span>");
        markup_text(out, name);
        buf_addf(out,
                 "</span><span><i style=\"width:%.1f%%;background:var(--%s)\"></i></span><span>%.1f</span>\n",
                 score < 0     ? 0
                 : score > 100 ? 100
                               : score,
                 strcmp(name, best) == 0 ? "good"
                 : is_base(name)         ? "soft"
                                         : "accent",
                 score);
    }
    if (any)
        buf_adds(out, "</div>\n");
}

static void add_answer(struct buf *out, const char *class, const char *who, const char *note,
                       const json_t *text)
{
    buf_addf(out, "<div class=\"%s\"><div class=\"who\">", class);
    markup_text(out, who);
    buf_addf(out, "%s</div><div class=\"a\">", note);
    page_value(out, "", text);
    buf_adds(out, "</div></div>\n");
}

/* Reference, base and best beside each other; the others can be unfolded. */
static void add_sample(struct buf *out, const json_t *sample, const char *best)
{
    const json_t *answers = json_object_get(sample, "answers"),
                 *reference = json_object_get(sample, "reference");
    const char *job;
    json_t *text;
    size_t others = 0;

    buf_adds(out, "<div class=\"card\"><div class=\"q\">");
    page_value(out, "", json_object_get(sample, "question"));
    buf_adds(out, "</div><div class=\"pair\">\n");
    if (reference && !json_is_null(reference))
        add_answer(out, "ref", "reference", "", reference);
    json_object_foreach((json_t *)answers, job, text)
    {
        others += !is_base(job) && strcmp(job, best);
        if (is_base(job))
            add_answer(out, "base", job, " (untuned)", text);
    }
    if (json_object_get(answers, best))
        add_answer(out, "tuned", best, " (best)", json_object_get(answers, best));
    buf_adds(out, "</div>");
    if (others) {
        buf_addf(out, "<details><summary>%zu more answer%s</summary>\n", others, others == 1 ? "" : "s");
        json_object_foreach((json_t *)answers, job, text) if (!is_base(job) && strcmp(job, best))
            add_answer(out, "other", job, "", text);
        buf_adds(out, "</details>");
    }
    buf_adds(out, "</div>\n");
}

void report_html(struct buf *out, const json_t *experiment, const struct curves *curves)
{
    const json_t *rows = json_object_get(experiment, "rows"),
                 *samples = json_object_get(experiment, "samples");
    const char *best = json_str(experiment, "best", "");
    size_t n = json_array_size(samples);

    page_begin(out, json_str(experiment, "name", "experiment"), 0);
    add_head(out, experiment);
    if (json_array_size(rows)) {
        json_t *shown = shown_rows(rows);
        buf_adds(out, "<h2>Leaderboard</h2>\n");
        page_table(out, shown, columns, best);
        json_decref(shown);
        add_bars(out, rows, best);
    }
    if (curves && curves->n) {
        buf_adds(out, "<h2>Loss</h2><div class=\"card\">\n");
        chart_svg(out, "Loss of all jobs", "step", "loss", curves->v, curves->n);
        buf_adds(out, "</div>\n");
    }
    if (n)
        buf_adds(out, "<h2>Answers</h2>\n");
    for (size_t i = 0; i < n && i < REPORT_SAMPLES; i++)
        add_sample(out, json_array_get(samples, i), best);
    if (n > REPORT_SAMPLES)
        buf_addf(out, "<p class=\"soft\">%zu more in score.json of each job</p>\n", n - REPORT_SAMPLES);
    page_end(out);
}
