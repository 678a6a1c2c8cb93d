/*
 * A job's bytes: alone = beside others = killed at random moments and gone on = paused and resumed = the
 * worker told to quit = on two threads.  And stop, cancel, early stopping.
 */
#include <time.h>

#include "tests/unit/worker_harness.h"

static struct harness h;
static const char *const jobs[] = {"exp/a", "exp/b"};
/* different shapes of job, so that they do not end together */
static const char *const groups[] = {
    "{\"epochs\":40,\"save_every\":4,\"eval_every\":7}",
    "{\"epochs\":30,\"lora_r\":2,\"batch_size\":3,\"grad_acc_steps\":2,\"optimizer\":\"adam\",\"save_every\":"
    "3,"
    "\"lora_dropout\":0.2,\"eval_every\":2}",
};

static void setup(void)
{
    harness_init(&h);
}

static void teardown(void)
{
    harness_end(&h);
}

static void remove_results(void)
{
    ck_assert_int_eq(fd_remove_tree(h.store, "work", NULL), 0);
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/experiments", NULL), 0);
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/models/tuned", NULL), 0);
}

/* The adapter, and metrics.csv without its column of speeds. */
struct bytes {
    char adapter[65], metrics[65];
};

static void metrics_sum(const char *job, char hex[65])
{
    char path[128], *text, *save = NULL;
    struct sha256 *s = sha256_new();

    snprintf(path, sizeof(path), "tree/experiments/exp/jobs/%s/metrics.csv", job);
    text = harness_text(&h, path);
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        for (int i = 0; i < 2; i++) /* tokens_per_s and memory */
            *strrchr(line, ',') = '\0';
        sha256_add(s, line, strlen(line) + 1);
    }
    sha256_finish(s, hex);
    free(text);
}

static struct bytes bytes_of(const char *id)
{
    struct bytes b;

    snprintf(b.adapter, sizeof(b.adapter), "%s", harness_adapter(&h, strchr(id, '/') + 1));
    ck_assert_str_ne(b.adapter, "");
    metrics_sum(strchr(id, '/') + 1, b.metrics);
    return b;
}

static void ck_assert_same(struct bytes a, struct bytes b)
{
    ck_assert_str_eq(a.adapter, b.adapter);
    ck_assert_str_eq(a.metrics, b.metrics);
}

static struct bytes alone(int i, int threads)
{
    struct bytes b;

    harness_start(&h, threads);
    harness_send(&h, PM_JOB_START, harness_job(&h, jobs[i], groups[i]));
    harness_state(&h, jobs[i], "SUCCESSFUL", 60);
    harness_quit(&h);
    b = bytes_of(jobs[i]);
    remove_results();
    return b;
}

START_TEST(two_together_are_each_as_alone)
{
    struct bytes a = alone(0, 1), b = alone(1, 2);

    ck_assert_str_ne(a.adapter, b.adapter);
    harness_start(&h, 2);
    for (int i = 0; i < 2; i++)
        harness_send(&h, PM_JOB_START, harness_job(&h, jobs[i], groups[i]));
    harness_state(&h, jobs[0], "SUCCESSFUL", 60);
    harness_state_any(&h, jobs[1], "SUCCESSFUL", 60);
    ck_assert_same(a, bytes_of(jobs[0]));
    ck_assert_same(b, bytes_of(jobs[1]));
}
END_TEST

/* Kill -9 after a random time, again and again, until both jobs have ended. */
START_TEST(killed_at_random_and_gone_on)
{
    struct bytes a = alone(0, 1), b = alone(1, 1);
    bool done[2] = {false, false};
    unsigned seed = (unsigned)time(NULL);
    int kills = 0;

    for (; !done[0] || !done[1]; kills++) {
        int64_t end;

        harness_start(&h, 1);
        for (int i = 0; i < 2; i++)
            if (!done[i])
                harness_send(&h, PM_JOB_START, harness_job(&h, jobs[i], groups[i]));
        /* later kills come later, so that the test ends on a slow machine too */
        end = clock_mono_ns() + 1000000ll * (10 + kills * 4 + rand_r(&seed) % 250);
        while (clock_mono_ns() < end)
            ck_assert(harness_read(&h, 2));
        for (size_t k = 0; k < json_array_size(h.seen); k++) {
            const json_t *body = json_object_get(json_array_get(h.seen, k), "body");

            ck_assert_str_ne(json_str(body, "state", ""), "FAILED");
            for (int i = 0; i < 2; i++)
                if (!strcmp(json_str(body, "state", ""), "SUCCESSFUL") &&
                    !strcmp(json_str(body, "id", ""), jobs[i]))
                    done[i] = true;
        }
        harness_kill(&h);
    }
    ck_assert_int_gt(kills, 2);
    ck_assert_same(a, bytes_of(jobs[0]));
    ck_assert_same(b, bytes_of(jobs[1]));
}
END_TEST

static void wait_for_step(int step)
{
    harness_wait(&h, PM_SAVED, harness_step_reached, &step, 30);
}

static json_t *stop_message(const char *id, const char *how)
{
    return json_pack("{s:s,s:s}", "id", id, "how", how);
}

/* A job that is suspected of having killed its worker saves as soon as it is past the place. */
START_TEST(saved_after_the_step_of_a_death)
{
    json_t *job = harness_job(&h, jobs[0], "{\"max_steps\":40,\"save_every\":1000}");
    const json_t *body;
    int any = 0;

    json_object_set_new(harness_spec(job), "save_after", json_integer(5));
    json_object_set_new(harness_spec(job), "save_after_s", json_integer(0));
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, job);
    body = harness_wait(&h, PM_SAVED, harness_step_reached, &any, 30);
    ck_assert_int_eq(json_int(body, "step", 0), 6);
    body = harness_wait(&h, PM_SAVED, harness_step_reached, &any, 30); /* and then as usual */
    ck_assert_int_eq(json_int(body, "step", 0), 40);
    harness_state_any(&h, jobs[0], "SUCCESSFUL", 30);
}
END_TEST

START_TEST(paused_and_resumed_without_the_dataset)
{
    struct bytes a = alone(0, 1);

    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, jobs[0], groups[0]));
    wait_for_step(4);
    harness_send(&h, PM_JOB_STOP, stop_message(jobs[0], "pause"));
    harness_state(&h, jobs[0], "PAUSED", 20);
    harness_send(&h, PM_JOB_STOP, stop_message(jobs[0], "pause")); /* not there any more: no harm */
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/datasets/words", NULL), 0);
    harness_send(&h, PM_JOB_START, harness_job(&h, jobs[0], groups[0]));
    wait_for_step(8);
    harness_quit(&h); /* saves */
    harness_start(&h, 2);
    harness_send(&h, PM_JOB_START, harness_job(&h, jobs[0], groups[0]));
    harness_state(&h, jobs[0], "SUCCESSFUL", 60);
    ck_assert_same(a, bytes_of(jobs[0]));
}
END_TEST

START_TEST(stop_exports_and_scores_what_there_is)
{
    json_t *job = harness_job(&h, "exp/a", "{\"epochs\":100000,\"save_every\":1}");
    const json_t *result;

    json_object_set_new(harness_spec(job), "evaluation", harness_questions(2, 6));
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, job);
    wait_for_step(3);
    harness_send(&h, PM_JOB_STOP, stop_message("exp/a", "stop"));
    result = json_object_get(harness_state(&h, "exp/a", "SUCCESSFUL", 30), "result");
    ck_assert_int_ge(json_int(result, "steps", 0), 3);
    ck_assert_int_lt(json_int(result, "steps", 0), 100000);
    ck_assert(json_is_real(json_object_get(result, "score")));
    ck_assert(json_is_real(json_object_get(result, "eval_loss")));
    ck_assert_str_ne(harness_adapter(&h, "a"), "");
}
END_TEST

START_TEST(cancel_ends_at_once)
{
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/a", "{\"epochs\":100000}"));
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/b", "{\"epochs\":100000,\"save_every\":1}"));
    harness_send(&h, PM_JOB_STOP, stop_message("exp/a", "cancel")); /* while it is prepared */
    harness_state(&h, "exp/a", "CANCELLED", 10);
    wait_for_step(1);
    harness_send(&h, PM_JOB_STOP, stop_message("exp/b", "cancel"));
    harness_state(&h, "exp/b", "CANCELLED", 10);
    ck_assert_str_eq(harness_adapter(&h, "b"), "");
    ck_assert(harness_exists(&h, "tree/experiments/exp/jobs/b/log"));
}
END_TEST

START_TEST(early_stopping_counts_evaluations_without_progress)
{
    /* learning rate 0: no evaluation is better than the first; patience 3 ends after the fourth */
    json_t *job =
        harness_job(&h, "exp/a", "{\"epochs\":50,\"learning_rate\":0,\"eval_every\":2,\"save_every\":3}");
    const json_t *result;

    json_object_set_new(harness_spec(job), "early_stopping",
                        json_pack("{s:i,s:f}", "patience", 3, "min_delta", 0.001));
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, json_deep_copy(job));
    wait_for_step(3);
    harness_kill(&h); /* the count goes on where it was */
    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, job);
    result = json_object_get(harness_state(&h, "exp/a", "SUCCESSFUL", 30), "result");
    ck_assert_int_eq(json_int(result, "steps", 0), 8);
}
END_TEST

START_TEST(the_worker_ends_with_its_socket)
{
    int status, waited = 0;

    harness_start(&h, 1);
    harness_send(&h, PM_JOB_START, harness_job(&h, "exp/a", "{\"epochs\":100000,\"save_every\":1}"));
    wait_for_step(2);
    close(h.sock);
    while (waitpid(h.pid, &status, WNOHANG) == 0) {
        usleep(10000);
        ck_assert_int_lt(++waited, 500);
    }
    h.pid = 0;
}
END_TEST

int main(void)
{
    Suite *s = suite_create("worker_resume");
    TCase *tc = tcase_create("resume");
    SRunner *r;
    int failed;

    tcase_set_timeout(tc, 180);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, two_together_are_each_as_alone);
    tcase_add_test(tc, killed_at_random_and_gone_on);
    tcase_add_test(tc, saved_after_the_step_of_a_death);
    tcase_add_test(tc, paused_and_resumed_without_the_dataset);
    tcase_add_test(tc, stop_exports_and_scores_what_there_is);
    tcase_add_test(tc, cancel_ends_at_once);
    tcase_add_test(tc, early_stopping_counts_evaluations_without_progress);
    tcase_add_test(tc, the_worker_ends_with_its_socket);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
