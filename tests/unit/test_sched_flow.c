/* Whole experiments through the scheduler with fake workers. */
#include "tests/unit/sched_fake.h"

static void setup(void)
{
    new_store();
    open_sched("cpu:2");
}

static void teardown(void)
{
    sched_close(fake_sched);
    end_store();
}

#define EXPERIMENT(groups) "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[" groups "]}"

START_TEST(drop_to_success)
{
    static const char *const groups[] = {"good-a", "good-b", NULL};
    struct caller me = fake_me();
    char *board;

    put("evaluations/quiz.json", "{\"questions\":[{\"question\":\"a\",\"reference\":\"b\"}]}");
    put_basics(groups);
    ck_assert(text_has("datasets/data.status", "rows: train 3"));
    ck_assert(text_has("datasets/data.status", "example 1: Q[[A]]"));
    ck_assert_int_eq(
        put("experiments/first.json",
            "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good-a\",\"good-b\"],"
            "\"evaluation\":\"quiz\"}"),
        0);
    wait_text("experiments/first.status", "SUCCESS\n", 10);
    ck_assert(text_has("experiments/first/status", "2 of 2 jobs successful"));
    ck_assert(text_has("experiments/first/jobs/01-good-a/status", "SUCCESSFUL"));
    ck_assert(text_has("experiments/first/jobs/01-good-a/status", "finetune: SUCCESSFUL"));
    board = text_of("experiments/first/leaderboard.tsv");
    ck_assert_msg(strstr(board, "\n1\t02-good-b\t19.00\t"), "%s", board);
    ck_assert_msg(strstr(board, "\n2\t01-good-a\t18.00\t"), "%s", board);
    ck_assert_msg(strstr(board, "\n-\tbase:tiny\t10.00\t"), "%s", board);
    free(board);
    ck_assert(text_has("experiments/first/best", "02-good-b"));
    ck_assert(text_has("models/tuned/first.best", "first.02-good-b"));
    ck_assert(text_has("models/tuned/first.02-good-b.status", "READY"));
    ck_assert(text_has("models/tuned/LIST.tsv", "first.01-good-a\tREADY"));
    ck_assert(text_has("models/by-base/tiny/first.01-good-a", "../../tuned/first.01-good-a"));
    ck_assert(text_has("experiments/LIST.tsv", "first\tSUCCESS"));
    ck_assert(text_has("status.json", "\"first\""));
    ck_assert(text_has("metrics.prom", "dtx_jobs{state=\"SUCCESSFUL\"} 2"));
    ck_assert(text_has("devices/cpu0/status", "UP"));
    /* done: nothing is held any more but the base, which the worker keeps open */
    ck_assert_int_eq(sched_may_change(fake_sched, "datasets/data/train.jsonl", &me), 0);
}
END_TEST

START_TEST(waits_for_what_is_missing)
{
    static const char *const groups[] = {"good-a", NULL};

    put("experiments/early.json", EXPERIMENT("\"good-a\""));
    wait_text("experiments/early.status", "waiting for: paramgroup good-a, dataset data, model tiny", 5);
    ck_assert(text_has("experiments/early/jobs/LIST.tsv", "01-good-a\tINIT"));
    put("paramgroups/good-a.json", "{\"lora_rr\": 8}");
    wait_text("experiments/early.status", "REJECTED", 5);
    put_basics(groups);
    wait_text("experiments/early.status", "SUCCESS\n", 10);
}
END_TEST

START_TEST(rejected_in_words)
{
    ck_assert_int_eq(put("paramgroups/bad.json", "{\n  \"lora_rr\": 8\n}\n"), -EINVAL);
    wait_text("paramgroups/bad.status", "REJECTED\nreason: bad.json:2:3: key \"lora_rr\"", 5);
    ck_assert(text_has("paramgroups/bad.status", "lora_r"));
    ck_assert(text_has("paramgroups/LIST.tsv", "bad\tREJECTED\t"));
    ck_assert_int_eq(put("paramgroups/bad.json", "{\"lora_r\": 4}"), 0);
    wait_text("paramgroups/bad.status", "READY", 5);
    ck_assert_int_eq(put("paramgroups/empty.json", ""), 0);
    usleep(400000);
    ck_assert(text_has("paramgroups/empty.status", "RECEIVING")); /* the first of a slow client's writes? */
    ck_assert_int_eq(put("experiments/a.b.json", EXPERIMENT("\"x\"")), 0);
    wait_text("experiments/a.b.status", "no dot", 5);
    ck_assert_int_eq(put("experiments/twice.json",
                         "{\"jobs\":[{\"name\":\"x\",\"model\":\"m\",\"dataset\":\"d\",\"paramgroup\":\"p\"},"
                         "{\"name\":\"x\",\"model\":\"m\",\"dataset\":\"d\",\"paramgroup\":\"p\"}]}"),
                     -EINVAL);
    wait_text("experiments/twice.status", "has the same name", 5);
    make_dir("datasets/broken");
    put("datasets/broken/train.jsonl", "bad\n");
    put("datasets/broken/_SUCCESS", "");
    wait_text("datasets/broken.status", "REJECTED\nreason: train.jsonl:1: not JSON", 5);
    put("datasets/broken/train.jsonl", "{}\n");
    wait_text("datasets/broken.status", "READY", 5);
    put("datasets/broken/train.jsonl", "crash\n");
    wait_text("datasets/broken.status", "ended by signal 9", 5);
}
END_TEST

START_TEST(names_of_products)
{
    put("experiments/many.json",
        "{\"models\":[\"m\",\"tuned/e.best\"],\"datasets\":[\"d1\",\"d2\"],\"paramgroups\":[\"p\"],"
        "\"seeds\":[1,2]}");
    wait_text("experiments/many.status", "PENDING", 5);
    ck_assert(text_has("experiments/many/jobs/LIST.tsv", "01-p-d1-m-s1\tINIT"));
    ck_assert(text_has("experiments/many/jobs/LIST.tsv", "02-p-d1-m-s2\tINIT"));
    ck_assert(text_has("experiments/many/jobs/LIST.tsv", "08-p-d2-e.best-s2\tINIT"));
}
END_TEST

START_TEST(same_bytes_and_other_bytes)
{
    static const char *const groups[] = {"good-a", NULL};

    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("\"good-a\""));
    wait_text("experiments/e.status", "SUCCESS\n", 10);
    ck_assert_int_eq(put("experiments/e.json", EXPERIMENT("\"good-a\"")), 0);
    usleep(400000);
    ck_assert(text_has("experiments/e.status", "SUCCESS\n"));
    ck_assert_int_eq(put("experiments/e.json", EXPERIMENT("\"other\"")), -EINVAL);
    wait_text("experiments/e.status", "REJECTED", 5);
    ck_assert(text_has("experiments/e.status", "rm -r experiments/e/ first"));
    ck_assert(text_has("experiments/e/status", "SUCCESS\n"));
    ck_assert_int_eq(remove_dir("experiments/e"), 0);
    ck_assert_ptr_null(text_of("experiments/e/status"));
    put("experiments/e.json", EXPERIMENT("\"good-a\""));
    wait_text("experiments/e.status", "SUCCESS\n", 10);
}
END_TEST

START_TEST(worker_death)
{
    static const char *const groups[] = {"poison", "good-a", "good-b", "once", NULL};

    put_basics(groups);
    put("experiments/p.json", EXPERIMENT("\"poison\",\"good-a\",\"good-b\",\"once\""));
    wait_text("experiments/p.status", "SUCCESS\n", 20);
    ck_assert(text_has("experiments/p/jobs/01-poison/status", "FAILED"));
    ck_assert(text_has("experiments/p/jobs/01-poison/status", "ended twice while this job ran alone"));
    ck_assert(text_has("experiments/p/jobs/02-good-a/status", "SUCCESSFUL"));
    ck_assert(text_has("experiments/p/jobs/03-good-b/status", "SUCCESSFUL"));
    ck_assert(text_has("experiments/p/jobs/04-once/status", "SUCCESSFUL"));
    ck_assert(text_has("experiments/p.status", "3 of 4 jobs successful, 1 failed"));
    ck_assert_int_eq(word("experiments/p/jobs/01-poison/control", "retry\n"), 6);
    wait_text("experiments/p.status", "SUCCESS\nreason: 3 of 4", 20);
}
END_TEST

START_TEST(control_words)
{
    static const char *const groups[] = {"slow-a", "slow-b", "fail", NULL};
    struct caller stranger = {12345, 12345, 0};
    struct layout_match m;

    put_basics(groups);
    put("experiments/c.json", EXPERIMENT("\"slow-a\",\"slow-b\",\"fail\""));
    wait_text("experiments/c/jobs/01-slow-a/status", "FINETUNE", 5);
    wait_text("experiments/c/jobs/01-slow-a/progress", "step", 5);
    ck_assert_int_eq(word("experiments/c/control", "dance\n"), -EINVAL);
    ck_assert_int_eq(layout_lookup("experiments/c/control", &m), 0);
    ck_assert_int_eq(sched_write(fake_sched, &m, "cancel\n", 7, &stranger), -EPERM);
    ck_assert_int_eq(word("experiments/c/control", "pause\n"), 6);
    ck_assert(text_has("experiments/c/status", "PAUSED"));
    ck_assert(text_has("experiments/c/jobs/01-slow-a/status", "PAUSED"));
    ck_assert(text_has("experiments/c/jobs/01-slow-a/status", "finetune: PENDING"));
    ck_assert_int_eq(word("experiments/c/control", "resume\n"), 7);
    wait_text("experiments/c/jobs/01-slow-a/status", "FINETUNE", 5);
    wait_text("experiments/c/jobs/03-fail/status", "FAILED\nreason: loss is not finite at step 2", 5);
    ck_assert_int_eq(word("experiments/c/jobs/01-slow-a/control", "stop\n"), 5);
    wait_text("experiments/c/jobs/01-slow-a/status", "SUCCESSFUL", 5);
    ck_assert_int_eq(word("experiments/c/jobs/02-slow-b/control", "cancel\n"), 7);
    wait_text("experiments/c.status", "SUCCESS\nreason: 1 of 3 jobs successful, 1 failed, 1 cancelled", 5);
    ck_assert_int_eq(word("experiments/c/jobs/02-slow-b/control", "pause\n"), -EINVAL);
}
END_TEST

START_TEST(cancel_and_delete)
{
    static const char *const groups[] = {"slow-a", "slow-b", NULL};

    put_basics(groups);
    put("experiments/c.json", EXPERIMENT("\"slow-a\",\"slow-b\""));
    wait_text("experiments/c/jobs/01-slow-a/status", "FINETUNE", 5);
    ck_assert_int_eq(word("experiments/c/control", "cancel"), 6);
    ck_assert(text_has("experiments/c.status", "CANCELLED"));
    ck_assert(text_has("experiments/c/jobs/02-slow-b/status", "CANCELLED"));
    put("experiments/d.json", EXPERIMENT("\"slow-a\""));
    wait_text("experiments/d/jobs/01-slow-a/status", "FINETUNE", 5);
    ck_assert_int_eq(remove_dir("experiments/d"), 0);
    ck_assert_ptr_null(text_of("experiments/d/status"));
    put("experiments/d.json", EXPERIMENT("\"slow-b\""));
    wait_text("experiments/d/jobs/01-slow-b/status", "FINETUNE", 8);
    ck_assert_int_eq(remove_dir("experiments/d/jobs/01-slow-b"), 0);
    wait_text("experiments/d.status", "CANCELLED", 5);
}
END_TEST

START_TEST(held_while_needed)
{
    static const char *const groups[] = {"hold", NULL};
    struct caller me = fake_me();

    put_basics(groups);
    ck_assert_int_eq(sched_may_change(fake_sched, "datasets/data", &me), 0);
    usleep(1100000); /* having been allowed to change it keeps jobs away for a second */
    put("experiments/h.json", EXPERIMENT("\"hold\""));
    wait_text("experiments/h/jobs/01-hold/status", "FINETUNE", 5);
    ck_assert_int_eq(sched_may_change(fake_sched, "datasets/data/train.jsonl", &me), -EPERM);
    ck_assert_int_eq(sched_may_change(fake_sched, "models/base/tiny/config.json", &me), -EPERM);
    ck_assert_int_eq(sched_may_change(fake_sched, "paramgroups/hold.json", &me), 0);
    word("experiments/h/control", "cancel");
    wait_text("devices/cpu0/status", "jobs: 0", 5);
    wait_text("devices/cpu1/status", "jobs: 0", 5);
    ck_assert_int_eq(sched_may_change(fake_sched, "datasets/data/train.jsonl", &me), 0);
}
END_TEST

START_TEST(reopened_goes_on)
{
    static const char *const groups[] = {"slow-a", "good-a", NULL};

    put_basics(groups);
    put("experiments/r.json", EXPERIMENT("\"slow-a\",\"good-a\""));
    wait_text("experiments/r/jobs/02-good-a/status", "SUCCESSFUL", 5);
    wait_text("experiments/r/jobs/01-slow-a/progress", "step", 5);
    sched_close(fake_sched);
    open_sched("cpu:1");
    ck_assert(text_has("experiments/r/jobs/02-good-a/status", "SUCCESSFUL"));
    ck_assert(text_has("datasets/data.status", "READY"));
    wait_text("experiments/r/jobs/01-slow-a/progress", "step", 5);
    ck_assert(!text_has("experiments/r/jobs/01-slow-a/progress", "step 1/"));
    word("experiments/r/jobs/01-slow-a/control", "stop");
    wait_text("experiments/r.status", "SUCCESS\n", 5);
}
END_TEST

START_TEST(comparison)
{
    static const char *const groups[] = {"good-a", NULL};
    struct buf b = BUF_INIT;

    put("models/compare/early.txt", "Hello?\n");
    wait_text("models/compare/early.status", "waiting for: a model", 5);
    put_basics(groups);
    wait_text("models/compare/early.status", "DONE", 5);
    put("experiments/e.json", EXPERIMENT("\"good-a\""));
    wait_text("experiments/e.status", "SUCCESS\n", 10);
    ck_assert_int_eq(put("models/compare/q.txt", "---\n{\"max_new_tokens\": 9}\n---\nWhy?\n"), 0);
    wait_text("models/compare/q.status", "DONE", 5);
    ck_assert(text_has("models/compare/q.status", "e.best: 5 tokens"));
    ck_assert_int_eq(fd_read_file(sched_tree_fd(fake_sched), "models/compare/q/e.best.txt", 4096, &b, NULL),
                     0);
    ck_assert_str_eq(b.p, "tree/models/tuned/e.01-good-a says Why?\n");
    buf_clear(&b);
    ck_assert_int_eq(fd_read_file(sched_tree_fd(fake_sched), "models/compare/q/answers.json", 4096, &b, NULL),
                     0);
    ck_assert_ptr_nonnull(strstr(b.p, "\"prompt\":\"Why?\""));
    ck_assert_int_eq(put("models/compare/wrong.txt", "---\n{\"max_new_token\": 9}\n---\nWhy?\n"), -EINVAL);
    wait_text("models/compare/wrong.status", "FAILED\nreason: wrong.txt:", 5);
    ck_assert_int_eq(remove_dir("models/compare/q"), 0);
    ck_assert_int_ne(faccessat(sched_tree_fd(fake_sched), "models/compare/q", F_OK, 0), 0);
    buf_release(&b);
}
END_TEST

START_TEST(service_answers)
{
    static const char *const groups[] = {NULL};
    struct buf b = BUF_INIT;

    make_dir("services/faq");
    ck_assert_int_eq(symlinkat("../../models/base/tiny", sched_tree_fd(fake_sched), "services/faq/model"), 0);
    event(DROP_LINK, "services/faq/model");
    wait_text("services/faq.status", "PENDING\nreason: waiting for: model tiny", 5);
    put_basics(groups);
    wait_text("services/faq.status", "RUNNING", 5);
    put("services/faq/ask/hi.txt", "Hi\n");
    wait_text("services/faq/ask/hi.status", "DONE", 5);
    ck_assert_int_eq(fd_read_file(sched_tree_fd(fake_sched), "services/faq/ask/hi.md", 4096, &b, NULL), 0);
    ck_assert_str_eq(b.p, "none says Hi\n");
    ck_assert(text_has("services/faq/stats", "requests: 1"));
    ck_assert_int_eq(word("services/faq/control", "stop"), 4);
    ck_assert(text_has("services/faq.status", "STOPPED"));
    ck_assert_int_eq(put("services/two.json", "{\"model\":\"tiny\"}"), 0);
    wait_text("services/two.status", "RUNNING", 5);
    buf_release(&b);
}
END_TEST

START_TEST(behind_the_back)
{
    int tree = sched_tree_fd(fake_sched), fd;

    fd = openat(tree, "paramgroups/rsynced.json", O_WRONLY | O_CREAT, 0644);
    ck_assert_int_eq(fd_write_all(fd, "{}", 2), 0);
    close(fd);
    wait_text("paramgroups/rsynced.status", "READY", 5);
    ck_assert_int_eq(unlinkat(tree, "paramgroups/rsynced.json", 0), 0);
    while (text_has("paramgroups/rsynced.status", "READY"))
        usleep(10000);
}
END_TEST

START_TEST(second_daemon_refused)
{
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self};
    struct sched *s;
    struct dtx_err e = {0};

    ck_assert_int_eq(sched_open(&c, &s, &e), -EBUSY);
    ck_assert_ptr_nonnull(strstr(e.msg, "another dtxd runs"));
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("sched_flow");
    TCase *t = tcase_create("flow");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, drop_to_success);
    tcase_add_test(t, waits_for_what_is_missing);
    tcase_add_test(t, rejected_in_words);
    tcase_add_test(t, names_of_products);
    tcase_add_test(t, same_bytes_and_other_bytes);
    tcase_add_test(t, worker_death);
    tcase_add_test(t, control_words);
    tcase_add_test(t, cancel_and_delete);
    tcase_add_test(t, held_while_needed);
    tcase_add_test(t, reopened_goes_on);
    tcase_add_test(t, comparison);
    tcase_add_test(t, service_answers);
    tcase_add_test(t, behind_the_back);
    tcase_add_test(t, second_daemon_refused);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
