/* Prompts: while training runs, of several bases and adapters together, wrong ones, cancelled ones. */
#include "tests/unit/worker_harness.h"

static struct harness h;

static void setup(void)
{
    harness_init(&h);
    harness_start(&h, 1);
}

static void teardown(void)
{
    harness_end(&h);
}

static json_t *ask(int id, const char *base, const char *adapter, const char *prompt, int tokens)
{
    return json_pack("{s:i,s:s,s:s?,s:n,s:s,s:i,s:i,s:i,s:i,s:i}", "id", id, "base", base, "adapter", adapter,
                     "system", "prompt", prompt, "max_new_tokens", tokens, "temperature", 0, "top_p", 1,
                     "top_k", 0, "seed", 1);
}

static bool is_answer(const json_t *body, const void *arg)
{
    return json_int(body, "id", -1) == *(const int *)arg;
}

static const json_t *answer(int id, double seconds)
{
    h.next = 0;
    return harness_wait(&h, PM_ANSWER, is_answer, &id, seconds);
}

static void check_good(const json_t *a, int most)
{
    ck_assert_msg(json_is_null(json_object_get(a, "error")), "%s", json_str(a, "error", ""));
    ck_assert_int_gt(json_int(a, "prompt_tokens", 0), 0);
    ck_assert_int_le(json_int(a, "new_tokens", 1 << 20), most);
    ck_assert(json_num(a, "ttft_s", -1) > 0);
    ck_assert(json_num(a, "total_s", -1) >= json_num(a, "ttft_s", 9));
    ck_assert_int_ge(json_int(a, "together", 0), 1);
    ck_assert(json_is_string(json_object_get(a, "text")));
}

START_TEST(answered_while_training)
{
    int step = 2;
    const json_t *a;

    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/a", "{\"epochs\":100000,\"save_every\":1000000}"));
    harness_wait(&h, PM_PROGRESS, harness_step_reached, &step, 30);
    harness_send(&h, PM_ASK, ask(1, "tree/models/base/tiny", NULL, "after c?", 20));
    a = answer(1, 5);
    check_good(a, 20);
    ck_assert(json_num(a, "total_s", 99) < 3);
    step = 10;
    harness_wait(&h, PM_PROGRESS, harness_step_reached, &step, 30); /* and it still trains */
    harness_send(&h, PM_JOB_STOP, json_pack("{s:s,s:s}", "id", "exp/a", "how", "cancel"));
    harness_state_any(&h, "exp/a", "CANCELLED", 10);
}
END_TEST

START_TEST(many_together_are_each_as_alone)
{
    char *text;

    harness_send(&h, PM_ASK, ask(1, "tree/models/base/tiny", NULL, "next g?", 16));
    text = strdup(json_str(answer(1, 10), "text", ""));
    ck_assert_int_eq(json_int(answer(1, 10), "together", 0), 1);
    for (int i = 2; i < 10; i++) {
        char prompt[32];

        snprintf(prompt, sizeof(prompt), "%s", i == 5 ? "next g?" : "something else that is longer");
        harness_send(&h, PM_ASK, ask(i, "tree/models/base/tiny", NULL, prompt, 16));
    }
    for (int i = 2; i < 10; i++)
        check_good(answer(i, 20), 16);
    ck_assert_str_eq(json_str(answer(5, 1), "text", ""), text);
    ck_assert_int_gt(json_int(answer(5, 1), "together", 0), 1);
    free(text);
}
END_TEST

static void send_sampled(int id, const char *prompt, int seed)
{
    json_t *body = ask(id, "tree/models/base/tiny", NULL, prompt, 16);

    json_object_set_new(body, "temperature", json_real(1.5));
    json_object_set_new(body, "top_k", json_integer(30));
    json_object_set_new(body, "top_p", json_real(0.95));
    json_object_set_new(body, "seed", json_integer(seed));
    harness_send(&h, PM_ASK, body);
}

START_TEST(sampled_answers_follow_their_seed)
{
    char *text;
    int differ = 0;

    send_sampled(1, "next g?", 5);
    text = strdup(json_str(answer(1, 10), "text", ""));
    for (int i = 2; i < 10; i++)
        send_sampled(i, "next g?", i);
    for (int i = 2; i < 10; i++) {
        check_good(answer(i, 20), 16);
        differ += strcmp(json_str(answer(i, 1), "text", ""), text) != 0;
    }
    ck_assert_str_eq(json_str(answer(5, 1), "text", ""), text);
    ck_assert_int_gt(json_int(answer(5, 1), "together", 0), 1);
    ck_assert_int_gt(differ, 3);
    free(text);
}
END_TEST

START_TEST(an_adapter_answers_as_its_job_taught_it)
{
    const json_t *a;

    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/a", "{\"epochs\":40,\"learning_rate\":0.02}"));
    harness_state(&h, "exp/a", "SUCCESSFUL", 60);
    harness_send(&h, PM_ASK, ask(1, "tree/models/base/tiny", "tree/models/tuned/exp.a", "next d?", 12));
    harness_send(&h, PM_ASK, ask(2, "tree/models/base/tiny", NULL, "next d?", 12));
    a = answer(1, 10);
    check_good(a, 12);
    check_good(answer(2, 10), 12);
    ck_assert_str_ne(json_str(a, "text", ""), json_str(answer(2, 1), "text", ""));
    ck_assert_str_eq(json_str(a, "finish", ""), "stop"); /* the rows are short and end with the stop token */
}
END_TEST

START_TEST(several_bases_answer_and_a_replaced_base_is_loaded_anew)
{
    char *first;

    ck_assert_int_eq(tiny_model_make(h.store, "tree/models/base/other", 2), 0);
    harness_send(&h, PM_ASK, ask(1, "tree/models/base/tiny", NULL, "next g?", 16));
    harness_send(&h, PM_ASK, ask(2, "tree/models/base/other", NULL, "next g?", 16));
    check_good(answer(1, 10), 16);
    check_good(answer(2, 10), 16);
    first = strdup(json_str(answer(2, 1), "text", ""));
    ck_assert_str_ne(json_str(answer(1, 1), "text", ""), first);
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/models/base/other", NULL), 0);
    ck_assert_int_eq(tiny_model_make(h.store, "tree/models/base/other", 3), 0);
    harness_send(&h, PM_ASK, ask(3, "tree/models/base/other", NULL, "next g?", 16));
    check_good(answer(3, 10), 16);
    ck_assert_str_ne(json_str(answer(3, 1), "text", ""), first);
    free(first);
}
END_TEST

START_TEST(wrong_prompts_get_words)
{
    char *huge = malloc(4001);
    int id = 7;

    harness_send(&h, PM_ASK, ask(1, "tree/models/base/none", NULL, "hello", 4));
    ck_assert_str_ne(json_str(answer(1, 10), "error", ""), "");
    harness_send(&h, PM_ASK, ask(2, "tree/models/base/tiny", "tree/models/tuned/none", "hello", 4));
    ck_assert_str_ne(json_str(answer(2, 10), "error", ""), "");
    memset(huge, 'x', 4000);
    huge[4000] = '\0';
    harness_send(&h, PM_ASK, ask(3, "tree/models/base/tiny", NULL, huge, 4));
    ck_assert_str_ne(json_str(answer(3, 10), "error", ""), "");
    harness_send(&h, PM_ASK, ask(4, "tree/models/base/tiny", NULL, "", 4));
    answer(4, 10);
    harness_send(&h, PM_ASK, ask(5, "tree/models/base/tiny", NULL, "hello", 200));
    harness_send(&h, PM_ASK_CANCEL, json_pack("{s:i}", "id", 5));
    harness_send(&h, PM_ASK_CANCEL, json_pack("{s:i}", "id", 99));
    harness_send(&h, PM_ASK, ask(id, "tree/models/base/tiny", NULL, "hello", 4));
    check_good(answer(id, 10), 4);
    free(huge);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("worker_ask");
    TCase *tc = tcase_create("ask");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, answered_while_training);
    tcase_add_test(tc, many_together_are_each_as_alone);
    tcase_add_test(tc, sampled_answers_follow_their_seed);
    tcase_add_test(tc, an_adapter_answers_as_its_job_taught_it);
    tcase_add_test(tc, several_bases_answer_and_a_replaced_base_is_loaded_anew);
    tcase_add_test(tc, wrong_prompts_get_words);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
