/* Whole jobs through the real dtx-worker: files, results, refusals, full disk, the one-shot checks. */
#include <math.h>

#include "tests/unit/worker_harness.h"

static struct harness h;

static void setup(void)
{
    harness_init(&h);
}

static void teardown(void)
{
    harness_end(&h);
}

/* Every line of metrics.csv has 8 fields and step numbers 1, 2, 3, ...; returns the number of rows and, in
 * *evals, how many have an eval_loss. */
static int check_metrics(const char *path, int *evals)
{
    char *text = harness_text(&h, path), *save = NULL, *line = strtok_r(text, "\n", &save);
    int rows = 0;

    ck_assert_str_eq(line, "step,epoch,loss,eval_loss,lr,grad_norm,tokens_per_s,memory");
    *evals = 0;
    while ((line = strtok_r(NULL, "\n", &save))) {
        int step, commas = 0;
        char *field = line;

        for (const char *c = line; *c; c++)
            commas += *c == ',';
        ck_assert_int_eq(commas, 7);
        ck_assert_int_eq(sscanf(line, "%d,", &step), 1);
        ck_assert_int_eq(step, ++rows);
        for (int i = 0; i < 3; i++)
            field = strchr(field, ',') + 1;
        *evals += *field != ',';
    }
    free(text);
    return rows;
}

static void check_same_file(const char *a, const char *b)
{
    struct stat sa, sb;

    ck_assert_int_eq(fstatat(h.store, a, &sa, 0), 0);
    ck_assert_int_eq(fstatat(h.store, b, &sb, 0), 0);
    ck_assert_uint_eq(sa.st_ino, sb.st_ino);
}

START_TEST(a_whole_job)
{
    json_t *job = harness_job(&h, "exp/01", "{\"epochs\":4}"), *score, *info, *provenance, *result;
    const json_t *body;
    int evals;

    json_object_set_new(harness_spec(job), "evaluation", harness_questions(5, 12));
    harness_start(&h, 1);
    body = harness_wait(&h, PM_HELLO, NULL, NULL, 10);
    ck_assert_int_eq(json_int(body, "pid", 0), h.pid);
    ck_assert_str_eq(json_str(body, "device", ""), "cpu:0");
    ck_assert_str_ne(json_str(body, "fingerprint", ""), "");
    harness_send(&h, PM_JOB_START, job);
    harness_state(&h, "exp/01", "PENDING", 10);
    body = harness_wait(&h, PM_JOB_HELD, NULL, NULL, 20);
    ck_assert_int_eq(json_flag(body, "dataset", 1), 0);
    harness_state(&h, "exp/01", "FINETUNE", 20);
    harness_state(&h, "exp/01", "EXPORT", 60);
    harness_state(&h, "exp/01", "SERVE", 10);
    harness_state(&h, "exp/01", "SCORE", 10);
    result = json_object_get(harness_state(&h, "exp/01", "SUCCESSFUL", 30), "result");

    ck_assert_int_eq(json_int(result, "steps", 0), 24);
    ck_assert(json_is_real(json_object_get(result, "score")));
    ck_assert(json_num(result, "perplexity", 0) > 1);
    ck_assert(json_num(result, "eval_loss", 0) > 0);
    ck_assert(json_num(result, "loss", 1e9) < 4); /* it began near log(264) = 5.6 or above */
    ck_assert_int_eq(json_int(result, "trainable", 0), 4 * TINY_LAYERS * (64 + 48 + 48 + 64 + 80 + 80 + 80));
    ck_assert_int_eq(check_metrics("tree/experiments/exp/jobs/01/metrics.csv", &evals), 24);
    ck_assert_int_eq(evals, 4);

    ck_assert_int_eq(
        json_parse_file(h.store, "tree/experiments/exp/jobs/01/score.json", 1 << 20, &score, NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(score, "items")), 5);
    for (size_t i = 0; i < 5; i++) {
        const json_t *item = json_array_get(json_object_get(score, "items"), i);

        ck_assert_int_eq(json_str(item, "question", "")[6], 'a' + (int)i);
        ck_assert_int_eq(json_str(item, "reference", "")[0], 'b' + (int)i);
        ck_assert(json_is_string(json_object_get(item, "answer")));
        ck_assert_int_gt(json_int(item, "prompt_tokens", 0), 0);
        ck_assert(json_is_number(json_object_get(json_object_get(item, "metrics"), "rougeL")));
    }
    json_decref(score);

    ck_assert_int_eq(json_parse_file(h.store, "tree/models/tuned/exp.01/info.json", 1 << 20, &info, NULL), 0);
    ck_assert_str_eq(json_str(info, "base", ""), "tiny");
    ck_assert(fabs(json_num(info, "perplexity", -1) - json_num(result, "perplexity", -2)) < 1e-9);
    json_decref(info);
    check_same_file("tree/models/tuned/exp.01/adapter_model.safetensors",
                    "tree/experiments/exp/jobs/01/checkpoint/adapter_model.safetensors");
    check_same_file("tree/models/tuned/exp.01/adapter_config.json",
                    "tree/experiments/exp/jobs/01/checkpoint/adapter_config.json");
    check_same_file("tree/models/tuned/exp.01/score.json", "tree/experiments/exp/jobs/01/score.json");

    ck_assert_int_eq(
        json_parse_file(h.store, "tree/experiments/exp/jobs/01/provenance.json", 1 << 20, &provenance, NULL),
        0);
    const json_t *sums = json_object_get(provenance, "sha256");
    ck_assert_str_eq(json_str(sums, "adapter_model.safetensors", ""), harness_adapter(&h, "01"));
    ck_assert_str_eq(json_str(json_object_get(sums, "base"), "model.safetensors", ""),
                     harness_sum(&h, "tree/models/base/tiny/model.safetensors"));
    ck_assert_str_eq(json_str(sums, "dataset", ""), h.sha);
    json_decref(provenance);
}
END_TEST

START_TEST(a_base_is_scored_without_training)
{
    json_t *spec = json_pack("{s:s,s:s,s:s,s:s,s:s,s:s}", "experiment", "exp", "job", "base:tiny", "base",
                             "tiny", "base_dir", "tree/models/base/tiny", "work_dir", "work/exp/base:tiny",
                             "evaluation_name", "quiz"),
           *score;
    const json_t *body;

    json_object_set_new(spec, "evaluation", harness_questions(3, 8));
    harness_start(&h, 1);
    harness_send(&h, PM_SCORE, json_pack("{s:s,s:o}", "id", "exp/base:tiny", "spec", spec));
    body = harness_state(&h, "exp/base:tiny", "SUCCESSFUL", 30);
    ck_assert(json_is_real(json_object_get(json_object_get(body, "result"), "score")));
    ck_assert_int_eq(json_parse_file(h.store, "work/exp/base:tiny/score.json", 1 << 20, &score, NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(score, "items")), 3);
    ck_assert_str_eq(json_str(score, "evaluation", ""), "quiz");
    json_decref(score);
    ck_assert(!harness_exists(&h, "tree/experiments"));
}
END_TEST

START_TEST(questions_of_a_dataset_split)
{
    json_t *job = harness_job(&h, "exp/01", "{\"max_steps\":2}"), *ev = harness_questions(0, 4), *score;

    ck_assert_int_eq(tiny_dataset_make(h.store, "tree/datasets/quiz", 2, 9), 0);
    json_object_set_new(ev, "split", json_string("validation"));
    json_object_set_new(ev, "limit", json_integer(4));
    json_object_set_new(harness_spec(job), "evaluation", ev);
    json_object_set_new(harness_spec(job), "evaluation_dataset_dir", json_string("tree/datasets/quiz"));
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, job);
    harness_state(&h, "exp/01", "SUCCESSFUL", 60);
    ck_assert_int_eq(
        json_parse_file(h.store, "tree/experiments/exp/jobs/01/score.json", 1 << 20, &score, NULL), 0);
    ck_assert_uint_eq(json_array_size(json_object_get(score, "items")), 4);
    json_decref(score);
}
END_TEST

static void expect_failed(json_t *job, const char *word)
{
    struct harness_want want = {"exp/01", "FAILED"};
    const json_t *body;

    harness_send(&h, PM_JOB_START, job);
    body = harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 30);
    ck_assert_msg(strstr(json_str(body, "reason", ""), word), "the reason is: %s",
                  json_str(body, "reason", ""));
}

START_TEST(wrong_jobs_fail_in_words)
{
    json_t *job;

    harness_start(&h, 1);
    job = harness_job(&h, "exp/01", "{}");
    json_object_set_new(harness_spec(job), "dataset_sha256",
                        json_string("0000000000000000000000000000000000000000000000000000000000000000"));
    expect_failed(job, "not the one that was checked");
    job = harness_job(&h, "exp/01", "{}");
    json_object_set_new(harness_spec(job), "dataset_dir", json_string("tree/datasets/none"));
    expect_failed(job, "none");
    job = harness_job(&h, "exp/01", "{}");
    json_object_set_new(harness_spec(job), "base_dir", json_string("tree/models/base/none"));
    expect_failed(job, "none");
    job = harness_job(&h, "exp/01", "{}");
    json_object_set_new(harness_spec(job), "evaluation", json_pack("{s:s}", "plugin", "judge"));
    expect_failed(job, "plugins are not built yet");
    expect_failed(harness_job(&h, "exp/01", "{\"target_modules\":[\"r_proj\"]}"), "r_proj");
    expect_failed(harness_job(&h, "exp/01", "{\"quantization\":\"int8\"}"), "not built yet");
    /* and a good one still works */
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"max_steps\":1,\"warmup_ratio\":0}"));
    harness_state(&h, "exp/01", "SUCCESSFUL", 30);
}
END_TEST

START_TEST(a_job_that_explodes_fails_alone)
{
    struct harness_want want = {"exp/bad", "FAILED"};
    const json_t *body;

    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START,
                 harness_job(&h, "exp/bad",
                             "{\"learning_rate\":1e30,\"warmup_ratio\":0,"
                             "\"optimizer\":\"sgd\",\"max_grad_norm\":0}"));
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/02", "{\"max_steps\":10}"));
    body = harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 30);
    ck_assert_msg(strstr(json_str(body, "reason", ""), "not finite"), "%s", json_str(body, "reason", ""));
    harness_state_any(&h, "exp/02", "SUCCESSFUL", 30);
}
END_TEST

/* Files may have 16 KB: the big job's state does not fit, the small one's does. */
START_TEST(a_full_disk_fails_the_job_that_hits_it)
{
    struct harness_want want = {"exp/big", "FAILED"};
    const json_t *body;

    ck_assert_int_eq(tiny_dataset_make(h.store, "tree/datasets/few", 4, 0), 0);
    h.file_limit = 16384;
    harness_start(&h, 1);
    json_t *big = harness_job(&h, "exp/big", "{\"max_steps\":4}");
    json_t *small =
        harness_job(&h, "exp/small", "{\"max_steps\":4,\"lora_r\":1,\"target_modules\":[\"q_proj\"]}");
    json_t *jobs[] = {big, small};
    for (int i = 0; i < 2; i++) {
        json_object_set_new(harness_spec(jobs[i]), "dataset_dir", json_string("tree/datasets/few"));
        json_object_set_new(harness_spec(jobs[i]), "dataset_sha256", json_null());
        harness_send(&h, PM_JOB_START, jobs[i]);
    }
    body = harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 60);
    ck_assert_msg(strstr(json_str(body, "reason", ""), "too large"), "%s", json_str(body, "reason", ""));
    harness_state_any(&h, "exp/small", "SUCCESSFUL", 60);
    ck_assert(!harness_exists(&h, "tree/models/tuned/exp.big"));
    ck_assert(harness_exists(&h, "tree/models/tuned/exp.small/adapter_model.safetensors"));
}
END_TEST

/* The next round of training goes on from a tuned adapter. */
START_TEST(training_goes_on_from_a_tuned_adapter)
{
    json_t *job;

    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"epochs\":4}"));
    double first =
        json_num(json_object_get(harness_state(&h, "exp/01", "SUCCESSFUL", 60), "result"), "eval_loss", 9);
    job = harness_job(&h, "exp/02", "{\"max_steps\":2,\"learning_rate\":1e-6}");
    json_object_set_new(harness_spec(job), "init_dir", json_string("tree/models/tuned/exp.01"));
    harness_send(&h, PM_JOB_START, job);
    double second =
        json_num(json_object_get(harness_state(&h, "exp/02", "SUCCESSFUL", 60), "result"), "eval_loss", 9);
    ck_assert_msg(second < first + 0.02, "eval_loss %g after %g", second, first);
    job = harness_job(&h, "exp/03", "{\"max_steps\":2,\"lora_r\":3}");
    json_object_set_new(harness_spec(job), "init_dir", json_string("tree/models/tuned/exp.01"));
    harness_send(&h, PM_JOB_START, job);
    struct harness_want want = {"exp/03", "FAILED"};
    harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 30);
}
END_TEST

/* Runs `dtx-worker --store DIR ...` and parses what it prints. */
static json_t *one_shot(const char *a, const char *b, const char *c, const char *d)
{
    char program[PATH_MAX], text[65536];
    int out[2], status;
    size_t n = 0;
    ssize_t got;
    json_t *v = NULL;
    pid_t pid;

    harness_program(program);
    ck_assert_int_eq(pipe(out), 0);
    pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        close(out[0]);
        execl(program, "dtx-worker", "--store", h.dir, a, b, c, d, (char *)NULL);
        _exit(127);
    }
    close(out[1]);
    while (n < sizeof(text) && (got = read(out[0], text + n, sizeof(text) - n)) > 0)
        n += (size_t)got;
    close(out[0]);
    waitpid(pid, &status, 0);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(json_parse_text("out", text, n, &v, NULL), 0);
    return v;
}

START_TEST(one_shot_checks)
{
    struct buf config = BUF_INIT;
    json_t *v = one_shot("--check-model", "models/base/tiny", NULL, NULL);
    const json_t *report = json_object_get(v, "report");

    ck_assert(json_flag(v, "ok", 0));
    ck_assert_int_eq(json_int(report, "layers", 0), TINY_LAYERS);
    ck_assert_int_eq(json_int(report, "tokenizer_size", 0), TINY_VOCAB);
    ck_assert_str_eq(json_str(report, "dtype", ""), "F32");
    json_decref(v);

    v = one_shot("--check-dataset", "datasets/words", "--model", "models/base/tiny");
    ck_assert(json_flag(v, "ok", 0));
    report = json_object_get(v, "report");
    ck_assert_int_eq(json_int(json_object_get(report, "rows"), "train", 0), 24);
    ck_assert_str_eq(json_str(report, "sha256", ""), h.sha);
    json_decref(v);

    buf_adds(&config, "{\"architectures\":[\"GPT\"]}");
    ck_assert_int_eq(tiny_put(h.store, "tree/models/base/tiny", "config.json", &config), 0);
    v = one_shot("--check-model", "models/base/tiny", NULL, NULL);
    ck_assert(!json_flag(v, "ok", 1));
    ck_assert_str_ne(json_str(v, "reason", ""), "");
    json_decref(v);
    v = one_shot("--check-dataset", "datasets/none", NULL, NULL);
    ck_assert(!json_flag(v, "ok", 1));
    ck_assert_str_ne(json_str(v, "reason", ""), "");
    json_decref(v);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("worker_job");
    TCase *tc = tcase_create("job");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_whole_job);
    tcase_add_test(tc, a_base_is_scored_without_training);
    tcase_add_test(tc, questions_of_a_dataset_split);
    tcase_add_test(tc, wrong_jobs_fail_in_words);
    tcase_add_test(tc, a_job_that_explodes_fails_alone);
    tcase_add_test(tc, a_full_disk_fails_the_job_that_hits_it);
    tcase_add_test(tc, training_goes_on_from_a_tuned_adapter);
    tcase_add_test(tc, one_shot_checks);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
