/* The four runs of transformers + PEFT, reproduced from their first adapters. */
#include "tests/unit/engine_util.h"
#include "tests/unit/golden.h"

static double relative(double got, double want)
{
    return fabs(got - want) / (fabs(want) > 1e-12 ? fabs(want) : 1);
}

static void check_steps(struct dtx_base *b, struct dtx_job *j, const json_t *steps, const char *name)
{
    double worst_loss = 0, worst_norm = 0;
    ck_assert_int_eq(dtx_job_total_steps(j), (int)json_array_size(steps));
    for (size_t i = 0; i < json_array_size(steps); i++) {
        const json_t *want = json_array_get(steps, i);
        struct dtx_step_result r;
        MUST(dtx_train_step(b, &j, 1, &r, &e));
        ck_assert_msg(r.failed == 0, "%s", r.error.msg);
        double loss = relative(r.loss, json_num(want, "loss", 0)),
               norm = relative(r.grad_norm, json_num(want, "grad_norm", 0));
        ck_assert_msg(relative(r.lr, json_num(want, "lr", -1)) < 1e-9, "%s step %zu: lr %.17g", name, i,
                      r.lr);
        ck_assert_msg(loss < 1e-4, "%s step %zu: loss %.9g, expected %.9g", name, i, r.loss,
                      json_num(want, "loss", 0));
        ck_assert_msg(norm < 1e-3, "%s step %zu: norm %.9g, expected %.9g", name, i, r.grad_norm,
                      json_num(want, "grad_norm", 0));
        worst_loss = fmax(worst_loss, loss);
        worst_norm = fmax(worst_norm, norm);
    }
    printf("%s: worst relative error: loss %.2g, gradient norm %.2g\n", name, worst_loss, worst_norm);
}

static void check_final(const struct dtx_job *j, const char *name)
{
    char dir[256];
    snprintf(dir, sizeof dir, GOLDEN "/%s/final", name);
    float *want = malloc(j->n * sizeof *want);
    MUST(peft_read(&j->base->dims, j->params.targets, j->params.rank, AT_FDCWD, dir, want, &e));
    double diff = 0, size = 0;
    for (size_t i = 0; i < j->n; i++) {
        diff += pow((double)j->w[i] - (double)want[i], 2);
        size += pow((double)want[i], 2);
    }
    free(want);
    printf("%s: final adapter: relative L2 distance %.2g\n", name, sqrt(diff / size));
    ck_assert_msg(sqrt(diff / size) < 1e-3, "%s: final adapters differ by %.3g", name, sqrt(diff / size));
}

static void check_loss(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_rows *rows,
                       double want)
{
    double sum;
    uint64_t n;
    MUST(dtx_eval_rows(b, a, rows, &sum, &n, &e));
    ck_assert_msg(relative(sum / (double)n, want) < 1e-4, "loss %.9g, expected %.9g", sum / (double)n, want);
}

static void check_answers(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_tokenizer *t,
                          const json_t *answers)
{
    struct dtx_sampling greedy = {.max_new_tokens = 40, .top_p = 1};
    struct dtx_seq *s[16];
    int n = (int)json_array_size(answers), running = n;
    ck_assert_int_eq(n, 8);
    for (int i = 0; i < n; i++) {
        int32_t ids[512];
        const json_t *p = json_object_get(json_array_get(answers, (size_t)i), "prompt_ids");
        for (size_t k = 0; k < json_array_size(p); k++)
            ids[k] = (int32_t)json_integer_value(json_array_get(p, k));
        MUST(dtx_seq_new(b, a, t, ids, json_array_size(p), &greedy, &s[i], &e));
    }
    while (running) {
        MUST(dtx_seq_step(b, s, n, &e));
        running = 0;
        for (int i = 0; i < n; i++)
            running += dtx_seq_finish(s[i]) == DTX_RUNNING;
    }
    for (int i = 0; i < n; i++) {
        const json_t *want = json_object_get(json_array_get(answers, (size_t)i), "answer_ids");
        size_t got_n, want_n = json_array_size(want);
        const int32_t *got = dtx_seq_tokens(s[i], &got_n);
        if (dtx_seq_finish(s[i]) == DTX_STOP) /* the golden ids keep the stop token */
            ck_assert_int_eq(json_integer_value(json_array_get(want, --want_n)), 2);
        ck_assert_int_eq(got_n, want_n);
        for (size_t k = 0; k < want_n; k++)
            ck_assert_int_eq(got[k], json_integer_value(json_array_get(want, k)));
        dtx_seq_free(s[i]);
    }
}

static void run_case(const char *name)
{
    if (!util_have(name, GOLDEN "/encoded.jsonl"))
        return;
    char path[256];
    struct dtx_device *d;
    struct dtx_base *b;
    struct dtx_job *j;
    struct dtx_adapter *a;
    struct dtx_tokenizer *t;
    struct dtx_rows rows;
    struct dtx_err e = {0};
    MUST(golden_rows(&rows, &e));
    json_t *c = golden_json(name, "case.json", &e), *steps = golden_json(name, "steps.json", &e),
           *eval = golden_json(name, "eval.json", &e);
    ck_assert_msg(c && steps && eval, "%s", e.msg);
    snprintf(path, sizeof path, GOLDEN "/%s/init", name);
    struct dtx_train_params p = golden_params(c);
    MUST(dtx_device_open("cpu", 2, &d, &e));
    MUST(dtx_base_load(d, AT_FDCWD, MODEL, &b, &e));
    MUST(dtx_tokenizer_load(AT_FDCWD, MODEL, &t, &e));
    MUST(dtx_job_new(b, &p, &rows, AT_FDCWD, path, &j, &e));
    check_loss(b, NULL, &rows, json_num(eval, "loss_before", 0));
    check_steps(b, j, steps, name);
    check_final(j, name);
    MUST(dtx_adapter_from_job(j, &a, &e));
    check_loss(b, a, &rows, json_num(eval, "loss_after", 0));
    check_answers(b, a, t, json_object_get(eval, "answers"));
    dtx_adapter_free(a);
    dtx_job_free(j);
    dtx_tokenizer_free(t);
    dtx_base_free(b);
    dtx_device_close(d);
    json_decref(c);
    json_decref(steps);
    json_decref(eval);
    golden_rows_free(&rows);
}

START_TEST(all_cosine)
{
    run_case("all_cosine");
}
END_TEST

START_TEST(qv_linear)
{
    run_case("qv_linear");
}
END_TEST

START_TEST(rs_constant)
{
    run_case("rs_constant");
}
END_TEST

START_TEST(sgd_linear)
{
    run_case("sgd_linear");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine golden");
    TCase *c = tcase_create("peft");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, all_cosine);
    tcase_add_test(c, qv_linear);
    tcase_add_test(c, rs_constant);
    tcase_add_test(c, sgd_linear);
    suite_add_tcase(s, c);
    return util_main(s);
}
