/*
 * Memory by plan: jobs share what there is, what does not fit beside what runs waits, what can never fit is
 * refused with numbers, bases that nobody uses make way, and none of this changes a byte of an adapter.
 */
#include "kernels/dtx_engine.h"
#include "tests/unit/worker_harness.h"

enum { MANY = 32 };

static struct harness h;
static struct dtx_device *cpu;
static struct dtx_model_config config;
static uint64_t base; /* a base with what serving needs and room for answers */

/* The plan of n jobs of the default group within a budget. */
static struct dtx_plan plan_of(int n, uint64_t budget)
{
    struct dtx_job_size sizes[MANY];
    struct token_cache cache = {0};
    struct dtx_train_params p = {.batch_size = 4, .rank = 4, .targets = 127, .optimizer = DTX_ADAMW};
    struct dtx_plan plan;
    struct dtx_err e = {0};

    ck_assert_msg(token_cache_map(h.store, "work/exp/00/train.tokens", 128, &cache, &e) == 0, "%s", e.msg);
    for (int i = 0; i < n; i++)
        sizes[i] = dtx_job_size(&p, &cache.rows, true);
    (void)dtx_plan_make(cpu, &config, sizes, n, budget, &plan);
    token_cache_release(&cache);
    return plan;
}

/* One job without a limit: its token cache and its adapter are there for all tests. */
static void setup(void)
{
    struct dtx_err e = {0};

    harness_init(&h);
    ck_assert_int_eq(tiny_model_make(h.store, "tree/models/base/other", 2), 0);
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/00", "{\"max_steps\":6}"));
    harness_state(&h, "exp/00", "SUCCESSFUL", 30);
    harness_quit(&h);
    ck_assert_msg(dtx_device_open("cpu", 1, &cpu, &e) == 0, "%s", e.msg);
    ck_assert_msg(dtx_model_check(h.store, "tree/models/base/tiny", &config, &e) == 0, "%s", e.msg);
    base = dtx_base_plan(cpu, &config) + dtx_cache_bytes(cpu, &config, 4096);
}

/* Nothing was ever promised beyond the limit. */
static void check_promises(void)
{
    const json_t *m;
    size_t i;

    json_array_foreach(h.seen, i, m)
    {
        const json_t *body = json_object_get(m, "body");

        if (h.memory && json_int(m, "type", 0) == PM_DEVICE)
            ck_assert_uint_le((uint64_t)json_int(body, "mem_planned", INT64_MAX), h.memory);
    }
}

static void teardown(void)
{
    check_promises();
    dtx_device_close(cpu);
    harness_end(&h);
}

static bool waits_for_memory(const json_t *body, const void *arg)
{
    return !strcmp(json_str(body, "id", ""), arg) && !strcmp(json_str(body, "state", ""), "PENDING") &&
           json_flag(body, "waits", 0);
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
    const json_t *body;
    const char *why;

    h.memory = base + plan_of(2, 0).total - 1; /* one job, not two */
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"epochs\":100000,\"save_every\":1}"));
    harness_state(&h, "exp/01", "FINETUNE", 30);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/02", "{\"max_steps\":3}"));
    body = harness_wait(&h, PM_JOB_STATE, waits_for_memory, "exp/02", 30);
    why = json_str(body, "reason", "");
    ck_assert_msg(strncmp(why, "waits for ", 10) == 0 && strstr(why, " of device memory: cpu:0 has ") &&
                      strstr(why, "by model tiny with 1 job") && strstr(why, " free"),
                  "%s", why);
    harness_send(&h, PM_JOB_STOP, json_pack("{s:s,s:s}", "id", "exp/01", "how", "stop"));
    harness_state(&h, "exp/01", "SUCCESSFUL", 30);
    harness_state_any(&h, "exp/02", "SUCCESSFUL", 30);
}
END_TEST

START_TEST(what_can_never_fit_fails_with_numbers)
{
    struct harness_want want = {"exp/01", "FAILED"};
    const json_t *body;
    const char *why;

    h.memory = base + plan_of(1, 0).total - 1;
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{}"));
    body = harness_wait(&h, PM_JOB_STATE, harness_is_state, &want, 30);
    why = json_str(body, "reason", "");
    ck_assert_msg(strstr(why, "can never fit: model tiny ") && strstr(why, "longest row: ") &&
                      strstr(why, "1 of 2 layers computed again") && strstr(why, "use a smaller block_size"),
                  "%s", why);
}
END_TEST

static void expect_log(const char *job, const char *words)
{
    char path[128], *text;

    snprintf(path, sizeof(path), "tree/experiments/exp/jobs/%s/log", job);
    text = harness_text(&h, path);
    ck_assert_msg(strstr(text, words), "\"%s\" is not in the log: %s", words, text);
    free(text);
}

START_TEST(with_less_memory_layers_are_computed_again)
{
    h.memory = base + plan_of(1, 0).total;
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"max_steps\":6}"));
    harness_state(&h, "exp/01", "SUCCESSFUL", 30);
    expect_log("00", "0 of 2 layers computed again");
    expect_log("01", "1 of 2 layers computed again");
    ck_assert_str_eq(harness_adapter(&h, "01"), harness_adapter(&h, "00"));
}
END_TEST

/* Somebody asks while training has taken all that it may: the answer's room was kept. */
START_TEST(answers_have_their_room)
{
    int id = 1;

    h.memory = base + plan_of(1, 0).total;
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/01", "{\"epochs\":100000,\"save_every\":1000}"));
    harness_state(&h, "exp/01", "FINETUNE", 30);
    harness_send(&h, PM_ASK, ask(id, "tree/models/base/tiny"));
    expect_answer(id, 30);
    harness_send(&h, PM_JOB_STOP, json_pack("{s:s,s:s}", "id", "exp/01", "how", "stop"));
    harness_state_any(&h, "exp/01", "SUCCESSFUL", 30);
}
END_TEST

static bool any(const json_t *body, const void *arg)
{
    return true;
}

/* What the device says that was measured after now.  Much may be waiting to be read, for filling 2 GB can
 * take seconds; and one message may be under way. */
static void look(int64_t *others, int64_t *usable)
{
    const json_t *body = NULL;

    harness_pass_over(&h);
    for (int i = 0; i < 2; i++)
        body = harness_wait(&h, PM_DEVICE, any, NULL, 10);
    *others = json_int(body, "mem_others", 0);
    *usable = json_int(body, "mem_usable", 0);
}

/* Another program (this one) takes memory of the device: the plan has that much less.  Yet other programs may
 * give memory back at the same moment, so one try of a few has to show it. */
START_TEST(what_others_use_is_not_there)
{
    enum { BALLAST = 2000 << 20, TRIES = 6 };
    int64_t others = 0, usable = 0, others_then = 0, usable_then = 0;
    bool seen = false;
    char *ballast;

    harness_start(&h, 1);
    for (int i = 0; !seen && i < TRIES; i++) {
        look(&others, &usable);
        ck_assert_int_gt(usable, 0);
        ballast = malloc(BALLAST);
        ck_assert_ptr_nonnull(ballast);
        memset(ballast, 1, BALLAST);
        look(&others_then, &usable_then);
        ck_assert_int_eq(ballast[BALLAST / 2], 1);
        free(ballast);
        seen = others_then > others + BALLAST / 2 && usable_then < usable - BALLAST / 2;
    }
    ck_assert_msg(seen, "others %lld -> %lld, usable %lld -> %lld", (long long)others, (long long)others_then,
                  (long long)usable, (long long)usable_then);
}
END_TEST

/* ---- many jobs ---- */

static json_t *job_of_many(int i, const char *prefix)
{
    char id[32], group[200];
    json_t *job;

    snprintf(id, sizeof(id), "exp/%s%02d", prefix, i);
    snprintf(group, sizeof(group),
             "{\"max_steps\":%d,\"lora_r\":%d,\"batch_size\":%d,\"lora_dropout\":%g,\"eval_every\":%d}",
             4 + i % 5, 1 + i % 9, 1 + i % 4, 0.02 * (i % 3), 2 + i % 4);
    job = harness_job(&h, id, group);
    json_object_set_new(harness_spec(job), "seed", json_integer(100 + i));
    return job;
}

static void run_many(const char *prefix, bool together)
{
    char id[MANY][32];

    for (int i = 0; i < MANY; i++) {
        snprintf(id[i], sizeof(id[i]), "exp/%s%02d", prefix, i);
        harness_send(&h, PM_JOB_START, job_of_many(i, prefix));
        if (!together)
            harness_state(&h, id[i], "SUCCESSFUL", 60);
    }
    for (int i = 0; together && i < MANY; i++)
        harness_state_any(&h, id[i], "SUCCESSFUL", 120);
}

static int count_waiting(void)
{
    const json_t *m;
    size_t i;
    int n = 0;

    json_array_foreach(h.seen, i, m) n +=
        json_int(m, "type", 0) == PM_JOB_STATE && json_flag(json_object_get(m, "body"), "waits", 0);
    return n;
}

/* All at once, in little memory and in plenty: the adapters are those of jobs that had the device to
 * themselves. */
START_TEST(many_share_what_there_is)
{
    static const char *const runs[] = {"few", "all"};

    harness_start(&h, 1);
    run_many("one", false);
    harness_quit(&h);
    for (int r = 0; r < 2; r++) {
        h.memory = r ? 0 : base + plan_of(3, 0).total;
        harness_start(&h, 2);
        run_many(runs[r], true);
        ck_assert_int_eq(count_waiting() > 0, r == 0);
        for (int i = 0; i < MANY; i++) {
            char one[16], other[16];
            snprintf(one, sizeof(one), "one%02d", i);
            snprintf(other, sizeof(other), "%s%02d", runs[r], i);
            ck_assert_str_ne(harness_adapter(&h, one), "");
            ck_assert_str_eq(harness_adapter(&h, other), harness_adapter(&h, one));
        }
        check_promises();
        harness_quit(&h);
    }
    harness_start(&h, 1);
}
END_TEST

START_TEST(unused_bases_make_way)
{
    json_t *job;

    h.memory = base * 3 / 2 + plan_of(1, 0).total; /* one base and half of a second */
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
    ck_assert_msg(strstr(json_str(body, "error", ""), " MiB"), "%s", json_str(body, "error", ""));
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
    tcase_add_test(tc, with_less_memory_layers_are_computed_again);
    tcase_add_test(tc, answers_have_their_room);
    tcase_add_test(tc, what_others_use_is_not_there);
    tcase_add_test(tc, many_share_what_there_is);
    tcase_add_test(tc, unused_bases_make_way);
    tcase_add_test(tc, a_base_over_the_limit_is_refused_in_words);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
