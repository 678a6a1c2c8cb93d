/* Memory by plan: what does not fit beside what runs waits, what can never fit is refused with numbers, and
 * bases that nobody uses make way. */
#include "tests/unit/worker_harness.h"

static struct harness h;
static uint64_t plan, base; /* bytes of a job of the default group, and of a base */

/* Run one job without a limit to learn what a job is planned with. */
static void setup(void)
{
    struct stat st;
    char *text;

    harness_init(&h);
    ck_assert_int_eq(tiny_model_make(h.store, "tree/models/base/other", 2), 0);
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/00", "{\"max_steps\":1,\"warmup_ratio\":0}"));
    harness_state(&h, "exp/00", "SUCCESSFUL", 30);
    harness_quit(&h);
    text = harness_text(&h, "tree/experiments/exp/jobs/00/metrics.csv");
    plan = strtoull(strrchr(text, ',') + 1, NULL, 10);
    free(text);
    ck_assert_uint_gt(plan, 100000);
    ck_assert_int_eq(fstatat(h.store, "tree/models/base/tiny/model.safetensors", &st, 0), 0);
    base = (uint64_t)st.st_size;
}

static void teardown(void)
{
    harness_end(&h);
}

static bool waits_for_memory(const json_t *body, const void *arg)
{
    return !strcmp(json_str(body, "id", ""), arg) && !strcmp(json_str(body, "state", ""), "PENDING") &&
           strstr(json_str(body, "reason", ""), "waiting for memory");
}

static bool is_id(const json_t *body, const void *arg)
{
    return json_int(body, "id", -1) == *(const int *)arg;
}

static json_t *ask(int id, const char *base_dir)
{
    return json_pack("{s:i,s:s,s:n,s:s,s:i}", "id", id, "base", base_dir, "adapter", "prompt", "next c?",
                     "max_new_tokens", 4);
}

static void expect_answer(int id, double seconds)
{
    const json_t *body;

    h.next = 0;
    body = harness_wait(&h, PM_ANSWER, is_id, &id, seconds);
    ck_assert_msg(json_is_null(json_object_get(body, "error")), "%s", json_str(body, "error", ""));
}

START_TEST(what_does_not_fit_beside_others_waits)
{
    h.memory = base * 3 / 2 + plan * 3 / 2; /* one job, not two */
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"epochs\":100000,\"save_every\":1}"));
    harness_state(&h, "exp/01", "FINETUNE", 30);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/02", "{\"max_steps\":3}"));
    harness_wait(&h, PM_JOB_STATE, waits_for_memory, "exp/02", 30);
    harness_send(&h, PM_JOB_STOP, json_pack("{s:s,s:s}", "id", "exp/01", "how", "stop"));
    harness_state(&h, "exp/01", "SUCCESSFUL", 30);
    harness_state_any(&h, "exp/02", "SUCCESSFUL", 30);
}
END_TEST

START_TEST(what_can_never_fit_fails_with_numbers)
{
    struct harness_want want = {"exp/01", "FAILED"};
    const json_t *body;

    h.memory = base * 3 / 2 + plan / 2;
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{}"));
    body = harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 30);
    ck_assert_msg(strstr(json_str(body, "reason", ""), " MB"), "%s", json_str(body, "reason", ""));
}
END_TEST

START_TEST(unused_bases_make_way)
{
    json_t *job;

    h.memory = base * 3 / 2 + plan; /* one base and most of a second */
    harness_start(&h, 1);
    for (int i = 0; i < 4; i++) {
        harness_send(&h, PM_ASK, ask(i, i % 2 ? "tree/models/base/other" : "tree/models/base/tiny"));
        expect_answer(i, 10);
    }
    job = harness_job(&h, "exp/01", "{\"max_steps\":20}");
    json_object_set_new(harness_spec(job), "base_dir", json_string("tree/models/base/other"));
    harness_send(&h, PM_JOB_START, job);
    harness_state(&h, "exp/01", "FINETUNE", 30);
    harness_send(&h, PM_ASK,
                 ask(9, "tree/models/base/tiny")); /* waits until the job has ended, at the latest */
    harness_state(&h, "exp/01", "SUCCESSFUL", 30);
    expect_answer(9, 30);
}
END_TEST

START_TEST(a_base_over_the_limit_is_refused_in_words)
{
    int id = 1;
    const json_t *body;

    h.memory = base / 2;
    harness_start(&h, 1);
    harness_send(&h, PM_ASK, ask(id, "tree/models/base/tiny"));
    body = harness_wait(&h, PM_ANSWER, is_id, &id, 10);
    ck_assert_msg(strstr(json_str(body, "error", ""), " MB"), "%s", json_str(body, "error", ""));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("worker_memory");
    TCase *tc = tcase_create("memory");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, what_does_not_fit_beside_others_waits);
    tcase_add_test(tc, what_can_never_fit_fails_with_numbers);
    tcase_add_test(tc, unused_bases_make_way);
    tcase_add_test(tc, a_base_over_the_limit_is_refused_in_words);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
