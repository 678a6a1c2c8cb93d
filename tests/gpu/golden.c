/*
 * The golden runs on a device, for golden.py to hold against transformers + PEFT in bf16.
 *
 *   golden DEVICE [CASE [STEPS]]   prints one JSON line a case: {"case": NAME, "losses": [per step],
 *                                  "grad_norms": [...], "distance": root mean square of the relative
 * differences from PEFT's losses in float32, "before": mean loss of all rows by the base, "after": by the
 * tuned model}; with STEPS the first ones alone, no "before", "after"
 */
#include <math.h>
#include <stdio.h>

#include "tests/unit/golden.h"

static int mean_loss(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_rows *rows,
                     double *mean, struct dtx_err *e)
{
    uint64_t labels;
    int rc = dtx_eval_rows(b, a, rows, mean, &labels, e);
    if (!rc)
        *mean /= (double)labels;
    return rc;
}

/* sum += of the squared relative differences, of `steps` steps. */
static int train(struct dtx_base *b, struct dtx_job *j, int steps, const json_t *golden, double *sum,
                 struct dtx_err *e)
{
    struct buf norms = BUF_INIT;
    int rc = 0;
    for (int i = 0; i < steps && !rc; i++) {
        struct dtx_step_result r;
        double want = json_num(json_array_get(golden, (size_t)i), "loss", 0);
        rc = dtx_train_step(b, &j, 1, &r, e);
        if (!rc && r.failed) {
            *e = r.error;
            rc = -EIO;
        }
        printf("%s%.9g", i ? "," : "", r.loss);
        buf_addf(&norms, "%s%.9g", i ? "," : "", r.grad_norm);
        *sum += (r.loss - want) / want * ((r.loss - want) / want);
    }
    printf("],\"grad_norms\":[%s]", norms.p ? norms.p : "");
    buf_release(&norms);
    return rc;
}

/* most: steps; 0: all of them, and the losses of all rows before and after */
static int run_job(struct dtx_base *b, struct dtx_job *j, const struct dtx_rows *rows, const char *name,
                   int most, struct dtx_err *e)
{
    struct dtx_adapter *a = NULL;
    double before, after, sum = 0;
    int steps = (int)dtx_job_total_steps(j);
    json_t *golden = golden_json(name, "steps.json", e);
    if (!golden)
        return -EINVAL;
    if (most && most < steps)
        steps = most;
    printf("{\"case\":\"%s\",\"losses\":[", name);
    int rc = train(b, j, steps, golden, &sum, e);
    json_decref(golden);
    printf(",\"distance\":%.3e", sqrt(sum / steps));
    if (!rc && !most && !(rc = dtx_adapter_from_job(j, &a, e)) &&
        !(rc = mean_loss(b, NULL, rows, &before, e)) && !(rc = mean_loss(b, a, rows, &after, e)))
        printf(",\"before\":%.9g,\"after\":%.9g", before, after);
    printf("}\n");
    fflush(stdout);
    dtx_adapter_free(a);
    return rc;
}

static int run_case(struct dtx_base *b, const struct dtx_rows *rows, const char *name, int most,
                    struct dtx_err *e)
{
    char init[256];
    struct dtx_job *j = NULL;
    json_t *c = golden_json(name, "case.json", e);
    if (!c)
        return -EINVAL;
    struct dtx_train_params p = golden_params(c);
    json_decref(c);
    snprintf(init, sizeof init, GOLDEN "/%s/init", name);
    int rc = dtx_job_new(b, &p, rows, AT_FDCWD, init, &j, e);
    if (!rc)
        rc = run_job(b, j, rows, name, most, e);
    dtx_job_free(j);
    return rc;
}

int main(int argc, char **argv)
{
    struct dtx_device *d = NULL;
    struct dtx_base *b = NULL;
    struct dtx_rows rows = {0};
    struct dtx_err e = {0};
    const char *only = argc > 2 ? argv[2] : "";
    int steps = argc > 3 ? atoi(argv[3]) : 0;
    if (argc < 2 || argc > 4)
        return fprintf(stderr, "usage: golden DEVICE [CASE [STEPS]]\n"), 2;
    int rc = golden_rows(&rows, &e);
    if (!rc && !(rc = dtx_device_open(argv[1], 0, &d, &e)))
        rc = dtx_base_load(d, AT_FDCWD, MODEL, &b, &e);
    for (size_t i = 0; i < sizeof golden_cases / sizeof *golden_cases && !rc; i++)
        if (strstr(golden_cases[i], only))
            rc = run_case(b, &rows, golden_cases[i], steps, &e);
    if (rc)
        fprintf(stderr, "%s\n", e.msg);
    if (b)
        dtx_base_free(b);
    if (d)
        dtx_device_close(d);
    golden_rows_free(&rows);
    return rc ? 1 : 0;
}
