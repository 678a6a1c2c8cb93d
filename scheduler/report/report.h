/* Pictures and pages made from results; pure functions text -> text. */
#ifndef DTX_REPORT_H
#define DTX_REPORT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include "scheduler/base/buf.h"

struct curve { /* one line of a chart */
    const char *name;
    const double *x, *y; /* NAN in y: a gap */
    size_t n;
    bool dashed; /* eval loss */
};

/* Self-contained SVG line chart. */
void chart_svg(struct buf *out, const char *title, const char *x_label, const char *y_label,
               const struct curve *curves, size_t n);

/* Curves of a metrics.csv (step,epoch,loss,eval_loss,lr,grad_norm,tokens_per_s,memory): loss and, dashed,
 * eval_loss. curves_release frees what it made. */
struct curves {
    struct curve *v;
    size_t n, cap;
};
int curves_add_csv(struct curves *c, const char *name, const char *csv, size_t len);
void curves_release(struct curves *c);

/* report.html of an experiment: table, loss curves of all jobs on one chart, best, answers of the evaluation
 * side by side.  experiment: {"name","state","best","created","finished","evaluation","rows":[{leaderboard
 * row}], "samples":[{"question","reference","answers":{"JOB":text}}]}; csvs: job name -> metrics.csv text in
 * `curves`. */
void report_html(struct buf *out, const json_t *experiment, const struct curves *curves);

/* models/compare/PROMPT/answers.md and stats.tsv from {"prompt","answers":[{"model","text","prompt_tokens",
 * "new_tokens","tokens_per_s","ttft_s","total_s","together","error"}]}. */
void compare_markdown(struct buf *out, const json_t *comparison);
void compare_stats_tsv(struct buf *out, const json_t *comparison);

/* index.html of the appliance from status.json:
 * {"state","version","started","reason","counts":{"experiments":{"STATE":n},"jobs":{},"datasets":{}, ...},
 * "devices":[{"name","state","base","jobs","asks","hello":{},"stats":{}}],
 * "running":[{"experiment","name","state","reason","device","progress":{}}],
 * "experiments":[{"name","state","reason","best","created","job_states":{"STATE":n},"jobs":[as in running] or
 * null, "leaderboard":[{"job","score"}] or null}], and by collection ("datasets", ...)
 * [{"name","state","reason","size","created"}]}: of each the newest. */
void console_html(struct buf *out, const json_t *status);

#endif
