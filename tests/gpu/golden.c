/*
 * The golden runs on a device, for golden.py to hold against transformers + PEFT in bf16.
 *
 *   golden DEVICE      prints one JSON line a case: {"case": NAME, "losses": [per step], "grad_norms": [...],
 *                      "before": mean loss of all rows by the base, "after": by the tuned model}
 */
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

static int train(struct dtx_base *b, struct dtx_job *j, struct dtx_err *e)
{
    struct buf norms = BUF_INIT;
    int rc = 0, steps = (int)dtx_job_total_steps(j);
    for (int i = 0; i < steps && !rc; i++) {
        struct dtx_step_result r;
        rc = dtx_train_step(b, &j, 1, &r, e);
        if (!rc && r.failed) {
            *e = r.error;
            rc = -EIO;
        }
        printf("%s%.9g", i ? "," : "", r.loss);
        buf_addf(&norms, "%s%.9g", i ? "," : "", r.grad_norm);
    }
    printf("],\"grad_norms\":[%s]", norms.p ? norms.p : "");
    buf_release(&norms);
    return rc;
}

static int run_case(struct dtx_base *b, const struct dtx_rows *rows, const char *name, struct dtx_err *e)
{
    char init[256];
    struct dtx_job *j = NULL;
    struct dtx_adapter *a = NULL;
    double before, after;
    json_t *c = golden_json(name, "case.json", e);
    if (!c)
        return -EINVAL;
    struct dtx_train_params p = golden_params(c);
    json_decref(c);
    snprintf(init, sizeof init, GOLDEN "/%s/init", name);
    int rc = dtx_job_new(b, &p, rows, AT_FDCWD, init, &j, e);
    if (rc)
        return rc;
    printf("{\"case\":\"%s\",\"losses\":[", name);
    rc = train(b, j, e);
    if (!rc && !(rc = dtx_adapter_from_job(j, &a, e)) && !(rc = mean_loss(b, NULL, rows, &before, e)) &&
        !(rc = mean_loss(b, a, rows, &after, e)))
        printf(",\"before\":%.9g,\"after\":%.9g}\n", before, after);
    dtx_adapter_free(a);
    dtx_job_free(j);
    return rc;
}

int main(int argc, char **argv)
{
    struct dtx_device *d = NULL;
    struct dtx_base *b = NULL;
    struct dtx_rows rows = {0};
    struct dtx_err e = {0};
    if (argc != 2)
        return fprintf(stderr, "usage: golden DEVICE\n"), 2;
    int rc = golden_rows(&rows, &e);
    if (!rc && !(rc = dtx_device_open(argv[1], 0, &d, &e)))
        rc = dtx_base_load(d, AT_FDCWD, MODEL, &b, &e);
    for (size_t i = 0; i < sizeof golden_cases / sizeof *golden_cases && !rc; i++)
        rc = run_case(b, &rows, golden_cases[i], &e);
    if (rc)
        fprintf(stderr, "%s\n", e.msg);
    if (b)
        dtx_base_free(b);
    if (d)
        dtx_device_close(d);
    golden_rows_free(&rows);
    return rc ? 1 : 0;
}
