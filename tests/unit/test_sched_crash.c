/* kill -9 of dtxd at any moment, and a store that cannot be written. */
#include "tests/unit/sched_fake.h"

#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "scheduler/internal.h"

static void setup(void)
{
    new_store();
}

static void teardown(void)
{
    end_store();
}

static const char *const groups[] = {"good-a", "good-b", "good-c", "once", NULL};

/* A daemon of its own process that drops an experiment (if it is not there yet) and waits to be killed. */
static void daemon_process(void)
{
    open_sched("cpu:2");
    if (!text_has("experiments/k/status", "\n")) {
        put_basics(groups);
        put("experiments/k.json", "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],"
                                  "\"paramgroups\":[\"good-a\",\"good-b\",\"good-c\",\"once\"]}");
    }
    for (;;)
        pause();
}

static void run_and_kill(int ms)
{
    pid_t pid = fork();

    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        daemon_process();
    usleep((useconds_t)ms * 1000);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

START_TEST(killed_again_and_again)
{
    run_and_kill(900); /* usually through all the drops; what is missing is dropped again */
    for (int i = 0; i < 8; i++)
        run_and_kill(60 + 37 * i);
    open_sched("cpu:2");
    ck_assert_msg(text_has("experiments/k/status", "\n"), "the experiment is gone");
    wait_text("experiments/k.status", "SUCCESS\nreason: 4 of 4 jobs successful", 20);
    ck_assert(text_has("models/tuned/LIST.tsv", "k.04-once\tREADY"));
    ck_assert(text_has("datasets/LIST.tsv", "data\tREADY"));
    sched_close(fake_sched);
}
END_TEST

/* Every acknowledged transition is in the catalog's history, in order. */
#define WAITS "{\"models\":[\"m\"],\"datasets\":[\"d\"],\"paramgroups\":[\"p\"]}"

/* Written whole, and still open: RECEIVING. */
static void half_dropped(const char *path, const char *text)
{
    fd_replace_file(sched_tree_fd(fake_sched), path, text, strlen(text), 0644, NULL);
    event(DROP_OPEN_WRITE, path);
    event(DROP_CREATE, path);
}

static void receiving_process(int ready)
{
    open_sched("cpu:0");
    put("experiments/again.json", WAITS);
    wait_text("experiments/again.status", "PENDING", 5);
    ck_assert_int_eq(remove_dir("experiments/again"), 0);
    event(DROP_OPEN_WRITE, "experiments/again.json"); /* dropped again, every byte and time the same */
    event(DROP_WRITE, "experiments/again.json");
    half_dropped("paramgroups/new.json", "{\"lora_r\":4}");
    half_dropped("experiments/new.json", WAITS);
    make_dir("datasets/new");
    half_dropped("datasets/new/train.jsonl", "{\"text\":\"a\"}");
    wait_text("experiments/again.status", "RECEIVING", 5);
    wait_text("experiments/new.status", "RECEIVING", 5);
    wait_text("paramgroups/new.status", "RECEIVING", 5);
    wait_text("datasets/new.status", "RECEIVING", 5);
    (void)!write(ready, "", 1);
    for (;;)
        pause();
}

/* What was being received is taken after a crash, whether that was written down (a deleted one's spec) or
 * not. */
START_TEST(killed_while_receiving)
{
    int ready[2];
    char byte;
    pid_t pid;

    ck_assert_int_eq(pipe(ready), 0);
    pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0)
        receiving_process(ready[1]);
    close(ready[1]);
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    open_sched("cpu:0");
    ck_assert(text_has("experiments/again.status", "\n")); /* at once: who looks all the time sees no gap */
    ck_assert(text_has("experiments/new.status", "\n"));
    ck_assert(text_has("paramgroups/new.status", "\n"));
    ck_assert(text_has("datasets/new.status", "RECEIVING"));
    wait_text("experiments/again.status", "PENDING", 10);
    wait_text("experiments/new.status", "PENDING", 10);
    wait_text("paramgroups/new.status", "READY", 10);
    event(DROP_RELEASE, "datasets/new/train.jsonl");
    wait_text("datasets/new.status", "READY", 50);
    sched_close(fake_sched);
}
END_TEST

START_TEST(history_is_whole)
{
    char path[128];
    sqlite3 *db;
    sqlite3_stmt *st;
    enum state at = ST_NONE;

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/k.json", "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good-a\"]}");
    wait_text("experiments/k.status", "SUCCESS\n", 10);
    sched_close(fake_sched);
    snprintf(path, sizeof(path), "%s/catalog.db", fake_store);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    ck_assert_int_eq(
        sqlite3_prepare_v2(db, "SELECT was,event,became FROM event WHERE name='k/01-good-a' ORDER BY id", -1,
                           &st, NULL),
        SQLITE_OK);
    while (sqlite3_step(st) == SQLITE_ROW) {
        int was = state_by_name((const char *)sqlite3_column_text(st, 0));
        ck_assert(at == ST_NONE || was == (int)at);
        at = (enum state)state_by_name((const char *)sqlite3_column_text(st, 2));
    }
    ck_assert_int_eq(at, ST_SUCCESSFUL);
    sqlite3_finalize(st);
    sqlite3_close(db);
}
END_TEST

/* A spec that was there before dtxd was, one that was changed while it was away, one that went. */
START_TEST(changed_while_away)
{
    char path[256];
    int fd;

    open_sched("cpu:0");
    put("paramgroups/stays.json", "{}");
    put("paramgroups/changes.json", "{\"lora_r\":4}");
    put("paramgroups/goes.json", "{}");
    wait_text("paramgroups/stays.status", "READY", 5);
    wait_text("paramgroups/changes.status", "READY", 5);
    wait_text("paramgroups/goes.status", "READY", 5);
    sched_close(fake_sched);
    snprintf(path, sizeof(path), "%s/tree/paramgroups/goes.json", fake_store);
    unlink(path);
    snprintf(path, sizeof(path), "%s/tree/paramgroups/changes.json", fake_store);
    fd = open(path, O_WRONLY | O_TRUNC);
    ck_assert_int_eq(fd_write_all(fd, "{\"lora_r\":16}", 13), 0);
    close(fd);
    open_sched("cpu:0");
    wait_text("paramgroups/changes.status", "RECEIVING", 2);
    ck_assert(text_has("paramgroups/stays.status", "READY"));
    wait_text("paramgroups/changes.status", "READY", 10);
    ck_assert_ptr_null(text_of("paramgroups/goes.status"));
    sched_close(fake_sched);
}
END_TEST

/* The largest file of the store, in bytes. */
static rlim_t catalog_size(void)
{
    char path[128];
    struct stat st = {0}, wal = {0};

    snprintf(path, sizeof(path), "%s/catalog.db", fake_store);
    stat(path, &st);
    snprintf(path, sizeof(path), "%s/catalog.db-wal", fake_store);
    stat(path, &wal);
    return (rlim_t)(wal.st_size > st.st_size ? wal.st_size : st.st_size);
}

/* No byte more can be written: states stay, the status says why, and all goes on when there is room again. */
START_TEST(store_full)
{
    struct rlimit old, full;

    signal(SIGXFSZ, SIG_IGN);
    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/k.json",
        "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good-a\",\"good-b\"]}");
    wait_text("experiments/k/jobs/01-good-a/status", "FINETUNE", 5);
    getrlimit(RLIMIT_FSIZE, &old);
    full = old;
    full.rlim_cur = catalog_size() / 2;
    setrlimit(RLIMIT_FSIZE, &full);
    wait_text("status", "TROUBLE\nreason: the catalog (catalog.db) cannot be written", 5);
    ck_assert(!text_has("experiments/k.status", "SUCCESS"));
    setrlimit(RLIMIT_FSIZE, &old);
    wait_text("experiments/k.status", "SUCCESS\nreason: 2 of 2", 10);
    ck_assert(text_has("status", "RUNNING\n"));
    sched_close(fake_sched);
}
END_TEST

START_TEST(newer_schema_refused)
{
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self};
    struct dtx_err e = {0};
    struct sched *s;
    char path[128];
    sqlite3 *db;

    open_sched("cpu:0");
    sched_close(fake_sched);
    snprintf(path, sizeof(path), "%s/catalog.db", fake_store);
    ck_assert_int_eq(sqlite3_open(path, &db), SQLITE_OK);
    sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL);
    sqlite3_close(db);
    ck_assert_int_eq(sched_open(&c, &s, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "schema version 99"));
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("sched_crash");
    TCase *t = tcase_create("crash");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 90);
    tcase_add_test(t, killed_again_and_again);
    tcase_add_test(t, killed_while_receiving);
    tcase_add_test(t, history_is_whole);
    tcase_add_test(t, changed_while_away);
    tcase_add_test(t, store_full);
    tcase_add_test(t, newer_schema_refused);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
