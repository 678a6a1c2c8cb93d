/* Corners of the state machines: nothing may stay as it is for ever, and nobody may wait for what cannot
 * come. */
#include "tests/unit/fault_vfs.h"
#include "tests/unit/sched_fake.h"

#include <sys/resource.h>

#include "scheduler/internal.h"

static const char *const groups[] = {"good",      "slow",        "hold",      "slow-not0",
                                     "wait-not1", "poison-not1", "hold-not0", NULL};

#define EXPERIMENT(group, more)                                                                              \
    "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"" group "\"]" more "}"

static void setup(void)
{
    new_store();
}

static void teardown(void)
{
    sched_close(fake_sched);
    end_store();
}

static int log_count(const char *words)
{
    struct buf b = BUF_INIT;
    int n = 0;

    ck_assert_int_eq(fd_read_file(sched_tree_fd(fake_sched), "log", 16 << 20, &b, NULL), 0);
    for (char *p = b.p; (p = strstr(p, words)); p++)
        n++;
    buf_release(&b);
    return n;
}

static void remove_file(const char *path)
{
    ck_assert_int_eq(unlinkat(sched_tree_fd(fake_sched), path, 0), 0);
    event(DROP_UNLINK, path);
}

/* ---- services ---- */

/* What is wrong with a spec is said once, in whatever state the service is. */
START_TEST(wrong_specs_of_a_service)
{
    open_sched("cpu:0");
    put_basics(groups);
    put("services/s.json", "{\"model\":\"tiny\"}");
    wait_text("services/s.status", "RUNNING", 5);
    put("services/s.json", "{\"modell\":1}");
    wait_text("services/s.status", "FAILED\nreason: s.json:1:2: key \"modell\"", 5);
    put("services/s.json", "{\"modelll\":1}");
    wait_text("services/s.status", "FAILED\nreason: s.json:1:2: key \"modelll\"", 5);
    ck_assert_int_eq(word("services/s/control", "stop"), 4);
    put("services/s.json", "{\"modellll\":1}");
    wait_text("services/s.status", "REJECTED\nreason: s.json:1:2: key \"modellll\"", 5);
    put("services/s.json", "{\"model\":\"tiny\"}");
    wait_text("services/s.status", "RUNNING", 5);
    ck_assert_int_eq(log_count("means nothing"), 0);
}
END_TEST

/* Started with a spec that cannot be used: it says what it waits for. */
START_TEST(service_started_without_a_spec)
{
    open_sched("cpu:0");
    put_basics(groups);
    put("services/s.json", "{\"model\":\"tiny\"}");
    wait_text("services/s.status", "RUNNING", 5);
    put("services/s.json", "{\"modell\":1}");
    wait_text("services/s.status", "FAILED", 5);
    ck_assert_int_eq(word("services/s/control", "start"), 5);
    wait_text("services/s.status", "PENDING\nreason: waiting for: ", 5);
}
END_TEST

/* ---- the catalog cannot be written ---- */

/* A removal that cannot be noted is tried again a second later, not a thousand times a second. */
START_TEST(removal_while_the_catalog_fails)
{
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self, .version = "test"};
    int64_t now = clock_mono_ns();
    struct sched *s;

    fault_install();
    ck_assert_int_eq(sched_prepare(&c, &fake_sched, NULL), 0);
    s = fake_sched;
    watcher_close(s);
    put("paramgroups/a.json", "{}");
    pthread_mutex_lock(&s->mutex);
    loop_round(s, now + SECOND_NS);
    pthread_mutex_unlock(&s->mutex);
    ck_assert(text_has("paramgroups/a.status", "READY"));
    fault_arm(1, FAULT_UNTIL_CLEARED, ENOSPC);
    remove_file("paramgroups/a.json");
    pthread_mutex_lock(&s->mutex);
    loop_round(s, now + 2 * SECOND_NS);
    ck_assert_int_ge(intake_next(s), now + 3 * SECOND_NS);
    fault_clear();
    loop_round(s, now + 3 * SECOND_NS);
    pthread_mutex_unlock(&s->mutex);
    ck_assert_ptr_null(text_of("paramgroups/a.status"));
}
END_TEST

/* ---- experiments ---- */

/* All its jobs are over, and the evaluation that it waited for need not come. */
START_TEST(stopped_while_it_waits)
{
    open_sched("cpu:0");
    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("good", ",\"evaluation\":\"quiz\""));
    wait_text("experiments/e.status", "PENDING\nreason: waiting for: evaluation quiz", 5);
    ck_assert_int_eq(word("experiments/e/control", "stop"), 4);
    wait_text("experiments/e.status", "CANCELLED", 5);
}
END_TEST

/* Cancelled before the experiment began, and wanted again after that. */
START_TEST(retried_after_the_start)
{
    open_sched("cpu:1");
    put("experiments/e.json", "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],"
                              "\"paramgroups\":[\"slow\",\"good\",\"late\"]}");
    wait_text("experiments/e.status", "PENDING\nreason: waiting for: ", 5);
    ck_assert_int_eq(word("experiments/e/jobs/02-good/control", "cancel"), 6);
    ck_assert_int_eq(word("experiments/e/jobs/03-late/control", "cancel"), 6);
    put_basics(groups);
    wait_text("experiments/e.status", "PROCESSING", 5);
    ck_assert_int_eq(word("experiments/e/jobs/02-good/control", "retry"), 5);
    wait_text("experiments/e/jobs/02-good/status", "SUCCESSFUL", 5);
    ck_assert_int_eq(word("experiments/e/jobs/03-late/control", "retry"), 5);
    wait_text("experiments/e/jobs/03-late/status", "PENDING\nreason: waiting for: paramgroup late", 5);
    put("paramgroups/late.json", "{}");
    wait_text("experiments/e/jobs/03-late/status", "SUCCESSFUL", 5);
}
END_TEST

/* Somebody touches a model while its jobs are being started: they wait for it, none of them fails. */
START_TEST(model_touched_at_the_start)
{
    struct caller me = fake_me();
    struct buf b = BUF_INIT;
    char *t;

    open_sched("cpu:0");
    put_basics(groups);
    buf_adds(&b, "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good\"],\"seeds\":[0");
    for (int i = 1; i < 900; i++)
        buf_addf(&b, ",%d", i);
    buf_adds(&b, "]}");
    put("experiments/e.json", b.p);
    buf_release(&b);
    while (faccessat(sched_tree_fd(fake_sched), "experiments/e/jobs/100-good-s99/log", F_OK, 0))
        usleep(100);
    ck_assert_int_eq(sched_may_change(fake_sched, "models/base/tiny/config.json", &me), 0);
    wait_text("experiments/e.status", "PROCESSING", 10);
    t = text_of("experiments/e/status");
    ck_assert_ptr_null(strstr(t, "FAILED"));
    free(t);
}
END_TEST

/* After a cancelled job's files are gone it reads its dataset again: it waits for it, and holds it. */
START_TEST(retry_after_cancel_reads_the_dataset)
{
    struct caller me = fake_me();

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("slow", ""));
    wait_text("experiments/e/jobs/01-slow/progress", "step", 5);
    ck_assert_int_eq(sched_may_change(fake_sched, "datasets/data/train.jsonl", &me), 0);
    ck_assert_int_eq(word("experiments/e/jobs/01-slow/control", "cancel"), 6);
    wait_text("experiments/e.status", "CANCELLED", 5);
    wait_text("devices/cpu0/status", "jobs: 0", 5);
    remove_file("datasets/data/train.jsonl");
    remove_file("datasets/data/_SUCCESS");
    ck_assert_int_eq(unlinkat(sched_tree_fd(fake_sched), "datasets/data", AT_REMOVEDIR), 0);
    event(DROP_RMDIR, "datasets/data");
    wait_text("datasets/LIST.tsv", "reason", 5);
    ck_assert_int_eq(word("experiments/e/jobs/01-slow/control", "retry"), 5);
    wait_text("experiments/e/jobs/01-slow/status", "PENDING\nreason: waiting for: dataset data", 5);
}
END_TEST

/* A spec that was refused, or not yet taken, and went while no dtxd ran. */
START_TEST(spec_went_while_away)
{
    open_sched("cpu:0");
    put_basics(groups);
    put("experiments/wrong.json", "{\"models\":3}");
    wait_text("experiments/wrong.status", "REJECTED", 5);
    put("experiments/e.json", EXPERIMENT("good", ""));
    wait_text("experiments/e.status", "PROCESSING", 5);
    put("experiments/e.json", EXPERIMENT("slow", ""));
    wait_text("experiments/e.status", "REJECTED\nreason: e.json: an experiment of this name is there", 5);
    ck_assert_int_eq(openat(sched_tree_fd(fake_sched), "experiments/half.json", O_CREAT, 0644) < 0, 0);
    event(DROP_OPEN_WRITE, "experiments/half.json");
    event(DROP_CREATE, "experiments/half.json");
    wait_text("experiments/half.status", "RECEIVING", 5);
    unlinkat(sched_tree_fd(fake_sched), "experiments/wrong.json", 0);
    unlinkat(sched_tree_fd(fake_sched), "experiments/half.json", 0);
    unlinkat(sched_tree_fd(fake_sched), "experiments/e.json", 0);
    sched_close(fake_sched);
    open_sched("cpu:0");
    wait_text("experiments/e.status", "PROCESSING", 5);
    for (int i = 0;
         i < 200 && (text_has("experiments/LIST.tsv", "half") || text_has("experiments/LIST.tsv", "wrong"));
         i++)
        usleep(10000);
    ck_assert_ptr_null(text_of("experiments/wrong.status"));
    ck_assert_ptr_null(text_of("experiments/half.status"));
}
END_TEST

/* The questions' dataset is as needed as the one to train on. */
START_TEST(waits_for_the_questions)
{
    open_sched("cpu:0");
    make_dir("datasets/exam");
    put("datasets/exam/train.jsonl", "{\"text\":\"hello\"}\n");
    put("datasets/exam/_SUCCESS", "");
    put("evaluations/quiz.json", "{\"dataset\":\"exam\"}");
    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("good", ",\"evaluation\":\"quiz\""));
    wait_text("experiments/e.status", "PROCESSING", 5);
    sched_close(fake_sched);
    open_sched("cpu:0");
    remove_file("datasets/exam/train.jsonl");
    wait_text("datasets/exam.status", "RECEIVING", 5);
    sched_close(fake_sched);
    open_sched("cpu:1");
    wait_text("experiments/e/jobs/01-good/status", "reason: waiting for: dataset exam", 5);
    put("datasets/exam/train.jsonl", "{\"text\":\"hello\"}\n");
    wait_text("experiments/e.status", "SUCCESS", 10);
}
END_TEST

/* ---- names ---- */

/* A Mac writes names decomposed: the folder keeps that form, the spec that names it is kept composed. */
START_TEST(decomposed_names)
{
    open_sched("cpu:1");
    put_basics(groups);
    make_dir("datasets/cafe\xcc\x81");
    put("datasets/cafe\xcc\x81/train.jsonl", "{\"text\":\"hello\"}\n");
    put("datasets/cafe\xcc\x81/_SUCCESS", "");
    make_dir("models/base/the\xcc\x81");
    put("models/base/the\xcc\x81/config.json", "{}");
    put("models/base/the\xcc\x81/_SUCCESS", "");
    put("evaluations/quiz.json", "{\"dataset\":\"cafe\xcc\x81\"}");
    put("experiments/e.json", "{\"models\":[\"th\xc3\xa9\"],\"datasets\":[\"caf\xc3\xa9\"],"
                              "\"paramgroups\":[\"good\"],\"evaluation\":\"quiz\"}");
    wait_text("experiments/e.status", "SUCCESS\nreason: 1 of 1", 10);
    ck_assert(text_has("experiments/e/leaderboard.tsv", "base:the\xcc\x81\t10.00"));
}
END_TEST

/* What was put into the store past the mount may have any name: it makes no lines of its own. */
START_TEST(names_make_no_lines)
{
    open_sched("cpu:0");
    put("paramgroups/x\ngood\tREADY.json", "{}");
    put("experiments/y\nz.json", "{}");
    wait_text("paramgroups/LIST.tsv", "x\\ngood\\tREADY\tREJECTED\t", 5);
    wait_text("experiments/LIST.tsv", "y\\nz\tREJECTED\t", 5);
    wait_text("status", "  paramgroups/x\\ngood\\tREADY: REJECTED: ", 5);
    ck_assert(text_has("status", "  y\\nz: REJECTED"));
}
END_TEST

/* ---- devices ---- */

static void kill_worker(int i, int failures)
{
    pthread_mutex_lock(&fake_sched->mutex);
    fake_sched->workers[i].failures = failures;
    kill(fake_sched->workers[i].pid, SIGKILL);
    pthread_mutex_unlock(&fake_sched->mutex);
}

/* One device is gone; what fits only there does not keep the others from those that are left. */
START_TEST(lost_device_holds_nobody_back)
{
    open_sched("cpu:2");
    put_basics(groups);
    wait_text("devices/cpu0/status", "UP", 5);
    wait_text("devices/cpu1/status", "UP", 5);
    put("experiments/big.json", EXPERIMENT("slow-not0", ",\"priority\":5"));
    wait_text("experiments/big/jobs/01-slow-not0/status", "device: cpu1", 5);
    kill_worker(1, 20);
    wait_text("devices/cpu1/status", "DOWN", 5);
    put("experiments/e.json", EXPERIMENT("good", ""));
    wait_text("experiments/e.status", "SUCCESS", 5);
    ck_assert(text_has("experiments/big/jobs/01-slow-not0/status", "PENDING"));
}
END_TEST

/* A more important job waits for the one device that can hold it; the other one is not kept free for it. */
START_TEST(too_large_here_keeps_nothing_free)
{
    open_sched("cpu:2");
    put_basics(groups);
    make_dir("models/base/other");
    put("models/base/other/config.json", "{}");
    put("models/base/other/_SUCCESS", "");
    wait_text("models/base/other.status", "READY", 5);
    wait_text("devices/cpu0/status", "UP", 5);
    wait_text("devices/cpu1/status", "UP", 5);
    put("experiments/o.json",
        "{\"models\":[\"other\"],\"datasets\":[\"data\"],\"paramgroups\":[\"hold-not0\"]}");
    wait_text("experiments/o/jobs/01-hold-not0/status", "device: cpu1", 5);
    put("experiments/big.json", EXPERIMENT("slow-not0", ",\"priority\":5"));
    wait_text("experiments/big/jobs/01-slow-not0/status", "reason: waits for a device", 5);
    put("experiments/e.json", EXPERIMENT("good", ""));
    wait_text("experiments/e.status", "SUCCESS", 5);
}
END_TEST

/* A job that waits for memory is not called back for an idle device that is too small for it. */
START_TEST(not_called_back_in_vain)
{
    open_sched("cpu:2");
    put_basics(groups);
    wait_text("devices/cpu0/status", "UP", 5);
    wait_text("devices/cpu1/status", "UP", 5);
    put("experiments/a.json", EXPERIMENT("slow", ""));
    wait_text("devices/cpu0/status", "jobs: 1", 5);
    put("experiments/w.json", EXPERIMENT("wait-not1", ""));
    wait_text("experiments/w/jobs/01-wait-not1/status", "device: cpu0", 5);
    usleep(300000);
    ck_assert_int_eq(log_count("back from cpu0"), 0);
}
END_TEST

/* ---- many at once ---- */

static double seconds_since(int64_t t)
{
    return (double)(clock_mono_ns() - t) / 1e9;
}

/* A word is heard while hundreds of drops are being written down. */
START_TEST(control_words_get_through)
{
    char path[64];
    int64_t start;
    double answered;

    open_sched("cpu:0");
    put_basics(groups);
    put("services/s.json", "{\"model\":\"tiny\"}");
    wait_text("services/s.status", "RUNNING", 5);
    for (int i = 0; i < 600; i++) {
        snprintf(path, sizeof(path), "models/compare/p%d.txt", i);
        put(path, "hello");
    }
    usleep(250000); /* they are complete now */
    start = clock_mono_ns();
    ck_assert_int_eq(word("services/s/control", "stop"), 4);
    answered = seconds_since(start);
    while (text_has("models/compare/LIST.tsv", "RECEIVING"))
        usleep(1000);
    ck_assert_msg(answered < 0.1 || answered < seconds_since(start) / 2, "%.3f s of %.3f s", answered,
                  seconds_since(start));
}
END_TEST

/* Prompts that wait for the first model say so, and get it. */
START_TEST(prompts_wait_for_a_model)
{
    char path[64];

    open_sched("cpu:1");
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof(path), "models/compare/p%d.txt", i);
        put(path, "hello");
    }
    wait_text("models/compare/p4.status", "PENDING\nreason: waiting for: a model", 5);
    wait_text("models/compare/p1.status", "PENDING\nreason: waiting for: a model", 5);
    put_basics(groups);
    wait_text("models/compare/p4.status", "DONE", 5);
    wait_text("models/compare/p1.status", "DONE", 5);
}
END_TEST

/* History does not grow while dtxd runs. */
START_TEST(history_is_bounded)
{
    char path[128];
    sqlite3 *db;

    open_sched("cpu:0");
    snprintf(path, sizeof(path), "%s/catalog.db", fake_store);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_exec(db,
                                  "INSERT INTO event(id,at,machine,name,was,event,became) VALUES"
                                  "(999,0,'m','old','a','b','c'),(1001,0,'m','kept','a','b','c'),"
                                  "(100998,0,'m','new','a','b','c')",
                                  NULL, NULL, NULL),
                     SQLITE_OK);
    put("paramgroups/a.json", "{}");
    wait_text("paramgroups/a.status", "READY", 5);
    put("paramgroups/b.json", "{}"); /* an event each */
    wait_text("paramgroups/b.status", "READY", 5);
    sqlite3_stmt *st;
    ck_assert_int_eq(sqlite3_prepare_v2(db, "SELECT count(*), min(id) FROM event", -1, &st, NULL), SQLITE_OK);
    ck_assert_int_eq(sqlite3_step(st), SQLITE_ROW);
    ck_assert_int_eq(sqlite3_column_int(st, 0), 4);
    ck_assert_int_eq(sqlite3_column_int(st, 1), 1001);
    sqlite3_finalize(st);
    sqlite3_close(db);
}
END_TEST

/* Names in the catalog's table `gone`, one a line. */
static void expect_gone(const char *want, double seconds)
{
    int64_t until = clock_mono_ns() + (int64_t)(seconds * slow() * 1e9);
    char path[128], have[256];
    sqlite3_stmt *st;
    sqlite3 *db;

    snprintf(path, sizeof(path), "%s/catalog.db", fake_store);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(sqlite3_prepare_v2(db, "SELECT name FROM gone ORDER BY name", -1, &st, NULL), SQLITE_OK);
    do {
        usleep(10000);
        have[0] = '\0';
        while (sqlite3_step(st) == SQLITE_ROW && strlen(have) < 200)
            sprintf(have + strlen(have), "%.50s\n", (const char *)sqlite3_column_text(st, 0));
        sqlite3_reset(st);
    } while (strcmp(have, want) != 0 && clock_mono_ns() < until);
    sqlite3_finalize(st);
    sqlite3_close(db);
    ck_assert_str_eq(have, want);
}

/* A deleted experiment is remembered as long as its spec may be taken for a new one. */
START_TEST(gone_until_the_spec_goes)
{
    char path[64];

    open_sched("cpu:0");
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof(path), "experiments/e%d.json", i);
        put(path, EXPERIMENT("none", ""));
        snprintf(path, sizeof(path), "experiments/e%d.status", i);
        wait_text(path, "PENDING", 5);
        snprintf(path, sizeof(path), "experiments/e%d", i);
        ck_assert_int_eq(remove_dir(path), 0);
    }
    ck_assert_int_eq(unlinkat(sched_tree_fd(fake_sched), "experiments/e0.json", 0), 0);
    sched_close(fake_sched);
    expect_gone("e0\ne1\ne2\n", 0);
    open_sched("cpu:0");
    expect_gone("e1\ne2\n", 5);
    usleep(700000); /* longer than a spec waits */
    ck_assert_ptr_null(text_of("experiments/e1.status"));
    remove_file("experiments/e1.json");
    put("experiments/e0.json", EXPERIMENT("none", "")); /* a new one of that name */
    wait_text("experiments/e0.status", "PENDING", 5);
    put("experiments/e2.json", EXPERIMENT("none", ",\"priority\":1"));
    wait_text("experiments/e2.status", "PENDING", 5);
    sched_close(fake_sched);
    open_sched("cpu:0");
    expect_gone("e2\n", 5);
    ck_assert(text_has("experiments/e0.status", "PENDING"));
    ck_assert(text_has("experiments/e2.status", "PENDING"));
}
END_TEST

/* A job that kills its worker and fits nowhere else: it fails, and nobody waits for it. */
START_TEST(deaths_where_no_other_device_will_do)
{
    open_sched("cpu:2");
    put_basics(groups);
    wait_text("devices/cpu0/status", "UP", 5);
    wait_text("devices/cpu1/status", "UP", 5);
    put("experiments/e.json", EXPERIMENT("poison-not1", ""));
    wait_text("experiments/e.status", "FAILED", 10);
    ck_assert(text_has("experiments/e/jobs/01-poison-not1/status",
                       "its worker ended twice while this job ran alone"));
}
END_TEST

/* ---- no descriptors left ---- */

static void limit_files(rlim_t n)
{
    struct rlimit r;

    getrlimit(RLIMIT_NOFILE, &r);
    r.rlim_cur = n ? n : r.rlim_max;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &r), 0);
}

/* A spec is not refused because dtxd could not open it just then. */
START_TEST(no_descriptors_just_now)
{
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self, .version = "test"};
    int64_t now = clock_mono_ns();
    int fd;

    ck_assert_int_eq(sched_prepare(&c, &fake_sched, NULL), 0);
    watcher_close(fake_sched);
    put("paramgroups/a.json", "{}");
    fd = dup(0);
    close(fd);
    pthread_mutex_lock(&fake_sched->mutex);
    limit_files((rlim_t)fd);
    loop_round(fake_sched, now + SECOND_NS);
    limit_files(0);
    loop_round(fake_sched, now + 3 * SECOND_NS);
    pthread_mutex_unlock(&fake_sched->mutex);
    wait_text("paramgroups/a.status", "READY", 0);
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("sched_corners");
    TCase *t = tcase_create("corners");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, wrong_specs_of_a_service);
    tcase_add_test(t, service_started_without_a_spec);
    tcase_add_test(t, removal_while_the_catalog_fails);
    tcase_add_test(t, stopped_while_it_waits);
    tcase_add_test(t, retried_after_the_start);
    tcase_add_test(t, model_touched_at_the_start);
    tcase_add_test(t, retry_after_cancel_reads_the_dataset);
    tcase_add_test(t, spec_went_while_away);
    tcase_add_test(t, waits_for_the_questions);
    tcase_add_test(t, decomposed_names);
    tcase_add_test(t, names_make_no_lines);
    tcase_add_test(t, lost_device_holds_nobody_back);
    tcase_add_test(t, too_large_here_keeps_nothing_free);
    tcase_add_test(t, not_called_back_in_vain);
    tcase_add_test(t, control_words_get_through);
    tcase_add_test(t, prompts_wait_for_a_model);
    tcase_add_test(t, history_is_bounded);
    tcase_add_test(t, gone_until_the_spec_goes);
    tcase_add_test(t, deaths_where_no_other_device_will_do);
    tcase_add_test(t, no_descriptors_just_now);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
