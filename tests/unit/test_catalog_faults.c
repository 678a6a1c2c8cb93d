/*
 * SQLite with the Nth call failing, N = 1, 2, ... until a run injects nothing: a whole life of objects, an
 * experiment and its jobs; and of the mount's node ids.  After each: no crash, what memory says is what the
 * catalog says, all goes on when the fault has passed, the log has words.
 *
 * FULL=1 runs every N; else a sample that differs from run to run (FAULT_N=n runs one; FAULT_PHASE=n chooses
 * the sample).
 */
#include "tests/unit/fault_vfs.h"
#include "tests/unit/sched_fake.h"

#include <sys/wait.h>
#include <time.h>

#include "fsd/nodes.h"
#include "scheduler/internal.h"

enum { TOGETHER = 8, FAULT_MS = 700, PATIENCE_S = 25, SAMPLE = 48 };

/* ---- what memory holds, as text ---- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void add_line(char **lines, int *n, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void add_line(char **lines, int *n, const char *fmt, ...)
{
    va_list ap;

    ck_assert_int_lt(*n, 100);
    va_start(ap, fmt);
    ck_assert_int_ge(vasprintf(&lines[(*n)++], fmt, ap), 0);
    va_end(ap);
}

static const char *or_dash(const char *text)
{
    return text ? text : "-";
}

static void add_job(char **lines, int *n, const struct job *j)
{
    char *result = j->result ? json_dumps(j->result, JSON_SORT_KEYS) : NULL;
    char *params = j->params ? json_dumps(j->params, JSON_SORT_KEYS) : NULL;

    add_line(lines, n, "job %lld %s/%s %d %s %s %s %s %s", (long long)j->id, j->exp->name, j->name, j->number,
             state_name(j->state), state_name(j->finetune), or_dash(j->reason), or_dash(result),
             or_dash(params));
    free(result);
    free(params);
}

static char *snapshot(void)
{
    struct sched *s = fake_sched;
    struct buf b = BUF_INIT;
    char *lines[100];
    int n = 0;

    pthread_mutex_lock(&s->mutex);
    for (int i = 0; i < s->nobjects; i++) {
        const struct object *o = s->objects[i];
        char *spec = o->spec ? json_dumps(o->spec, JSON_SORT_KEYS) : NULL;
        add_line(lines, &n, "object %lld %s %s %s %s %s %s", (long long)o->id, object_kind_name(o->kind),
                 o->name, state_name(o->state), or_dash(o->reason), o->stamp, or_dash(spec));
        free(spec);
    }
    for (int i = 0; i < s->nexps; i++) {
        const struct experiment *x = s->exps[i];
        char *pins = x->pins ? json_dumps(x->pins, JSON_SORT_KEYS) : NULL;
        add_line(lines, &n, "experiment %lld %s %s %s %s %s", (long long)x->id, x->name, state_name(x->state),
                 or_dash(x->reason), x->sha, or_dash(pins));
        free(pins);
        for (int k = 0; k < x->njobs; k++)
            add_job(lines, &n, x->jobs[k]);
        for (int k = 0; k < x->nrows; k++)
            add_job(lines, &n, x->rows[k]);
    }
    pthread_mutex_unlock(&s->mutex);
    qsort(lines, (size_t)n, sizeof(*lines), by_text);
    for (int i = 0; i < n; i++) {
        buf_addf(&b, "%s\n", lines[i]);
        free(lines[i]);
    }
    return buf_detach(&b, NULL);
}

/* ---- a life ---- */

static int64_t fault_until;
static bool said; /* sched_open failed in words */

static void pass_time(void)
{
    if (fault_until && clock_mono_ns() > fault_until) {
        fault_clear();
        fault_until = 0;
    }
    usleep(5000);
}

/* The fault's time begins when it is there. */
static void watch_fault(void)
{
    if (!fault_until && atomic_load(&fault.injected) && atomic_load(&fault.nth) &&
        fault.mode == FAULT_UNTIL_CLEARED)
        fault_until = clock_mono_ns() + FAULT_MS * (int64_t)1000000;
}

static void until_text(const char *path, const char *words)
{
    int64_t end = clock_mono_ns() + PATIENCE_S * SECOND_NS;

    while (!text_has(path, words)) {
        watch_fault();
        pass_time();
        if (clock_mono_ns() > end) {
            char *t = text_of(path), *all = text_of("status");
            ck_abort_msg("%s has no \"%s\":\n%.1000s\n%.1000s", path, words, t ? t : "(not there)",
                         all ? all : "");
        }
    }
}

static void until_open(void)
{
    int64_t end = clock_mono_ns() + PATIENCE_S * SECOND_NS;
    struct sched_config c = {.store = fake_store, .devices = "cpu:1", .worker = fake_self, .version = "test"};
    struct dtx_err e = {0};

    while (sched_open(&c, &fake_sched, &e)) {
        said = true;
        ck_assert_msg(strlen(e.msg) > 10 && e.code < 0, "sched_open failed without words: \"%s\"", e.msg);
        ck_assert_msg(clock_mono_ns() < end, "it never opens: %s", e.msg);
        watch_fault();
        pass_time();
    }
}

/* As a person who tries again when told of an error. */
static void until_done(int (*act)(const char *path), const char *path)
{
    int64_t end = clock_mono_ns() + PATIENCE_S * SECOND_NS;
    int rc;

    while ((rc = act(path))) {
        ck_assert_msg(clock_mono_ns() < end, "%s: %s", path, strerror(-rc));
        watch_fault();
        pass_time();
    }
}

static int retry_word(const char *path)
{
    int rc = word(path, "retry\n");

    return rc < 0 ? rc : 0;
}

static bool gone(const char *path)
{
    char *t = text_of(path);
    bool is = !t;

    free(t);
    return is;
}

static void until_gone(const char *path)
{
    int64_t end = clock_mono_ns() + PATIENCE_S * SECOND_NS;

    while (!gone(path)) {
        ck_assert_msg(clock_mono_ns() < end, "%s is still there", path);
        watch_fault();
        pass_time();
    }
}

static void remove_file(const char *path)
{
    ck_assert_int_eq(unlinkat(sched_tree_fd(fake_sched), path, 0), 0);
    event(DROP_UNLINK, path);
}

static void drops(void)
{
    make_dir("models/base/tiny");
    put("models/base/tiny/config.json", "{}");
    put("models/base/tiny/_SUCCESS", "");
    make_dir("datasets/data");
    put("datasets/data/train.jsonl", "{\"text\":\"hello\"}\n");
    put("datasets/data/_SUCCESS", "");
    put("paramgroups/good-a.json", "{\"lora_r\":8}");
    put("paramgroups/fail.json", "{\"lora_r\":4}");
    put("paramgroups/wrong.json", "{\"lora_rr\":4}");
    put("evaluations/quiz.json", "{\"questions\":[{\"question\":\"a\",\"reference\":\"b\"}]}");
    put("experiments/e.json",
        "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good-a\",\"fail\"],"
        "\"evaluation\":\"quiz\"}");
    put("experiments/gone.json",
        "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"good-a\"]}");
    put("models/compare/q.txt", "Why?\n");
}

static void live(void)
{
    until_open();
    drops();
    until_text("paramgroups/wrong.status", "REJECTED\nreason: wrong.json");
    until_text("experiments/gone.status", "SUCCESS\nreason: 1 of 1");
    until_done(remove_dir, "experiments/gone");
    until_text("experiments/e.status", "SUCCESS\nreason: 1 of 2 jobs successful, 1 failed");
    until_done(retry_word, "experiments/e/jobs/02-fail/control");
    until_text("experiments/e/jobs/02-fail/status", "FAILED\nreason: loss is not finite");
    until_text("experiments/e.status", "SUCCESS\nreason: 1 of 2 jobs successful, 1 failed");
    until_text("models/compare/q.status", "DONE");
    remove_file("paramgroups/wrong.json");
    until_gone("paramgroups/wrong.status");
}

static void check_log(void)
{
    struct buf b = BUF_INIT;
    char path[128];

    snprintf(path, sizeof(path), "%s/tree/log", fake_store);
    ck_assert_int_eq(fd_read_file(AT_FDCWD, path, 16 << 20, &b, NULL), 0);
    ck_assert_msg(strstr(b.p, "catalog.db") != NULL, "nothing in the log:\n%.2000s", b.p);
    buf_release(&b);
}

/* Lines that only one of them has. */
static int print_missing(const char *what, char *from, const char *in)
{
    char *save = NULL, *copy = strdup(from);
    int n = 0;

    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        if (!strstr(in, line) && ++n)
            fprintf(stderr, "%s: %s\n", what, line);
    free(copy);
    return n;
}

static void compare(char *before, char *after)
{
    int n = print_missing("only in memory", before, after);

    n += print_missing("only after the restart", after, before);
    ck_assert_msg(n == 0, "memory and catalog differ in %d lines", n);
}

static void check_life(void)
{
    char *before, *after;

    ck_assert(text_has("models/tuned/e.01-good-a.status", "READY"));
    ck_assert(text_has("datasets/data.status", "READY"));
    ck_assert(text_has("experiments/e/leaderboard.tsv", "\n1\t01-good-a\t"));
    ck_assert(text_has("experiments/e/leaderboard.tsv", "base:tiny"));
    until_text("status", "RUNNING\n");
    before = snapshot();
    sched_close(fake_sched);
    if (atomic_load(&fault.wal_writes) && !said)
        check_log();
    fault_clear();
    until_open();
    usleep(200000); /* what it finds in the store is noted: experiments/gone.json is not a new one */
    after = snapshot();
    compare(before, after);
    free(before);
    free(after);
    sched_close(fake_sched);
}

/* In a process of its own.  Exit status 0: nothing was injected any more; 10: injected, and all is well. */
static void life(int n)
{
    new_store();
    fault_install();
    fault_arm(n, n % 2 ? FAULT_ONCE : FAULT_UNTIL_CLEARED, n % 3 ? ENOSPC : EIO);
    live();
    check_life();
    end_store();
    if (getenv("FAULT_N"))
        printf("%d calls, %d failed\n", atomic_load(&fault.calls), atomic_load(&fault.injected)),
            fflush(stdout);
    _exit(atomic_load(&fault.injected) ? 10 : 0);
}

/* ---- node ids: what was synced is there again, and no id is given twice ---- */

static uint64_t bind_node(struct nodes *n, uint64_t parent, const char *name, uint64_t ino)
{
    struct node_info what = {.owner = NODE_USER, .is_dir = true, .key = {1, ino, 77}}, out;
    int rc = nodes_bind(n, parent, name, &what, false, &out);

    ck_assert_msg(rc == 0 || rc == -ENOSPC || rc == -EIO, "nodes_bind: %s", strerror(-rc));
    return rc ? 0 : out.id;
}

static struct nodes *open_nodes(const char *path)
{
    struct nodes *n = NULL;
    struct dtx_err e = {0};

    for (int i = 0; nodes_open(path, NULL, false, &n, &e); i++) {
        ck_assert_msg(strlen(e.msg) > 10, "nodes_open failed without words");
        ck_assert_msg(i < 500, "it never opens: %s", e.msg);
        watch_fault();
        pass_time();
    }
    return n;
}

static void sync_nodes(struct nodes *n)
{
    struct dtx_err e = {0};

    for (int i = 0; nodes_sync(n, &e); i++) {
        ck_assert_msg(strlen(e.msg) > 10, "nodes_sync failed without words");
        ck_assert_msg(i < 500, "it never syncs: %s", e.msg);
        watch_fault();
        pass_time();
    }
}

static void nodes_life(int nth)
{
    enum { FOLDERS = 24 };
    uint64_t ids[FOLDERS], moved;
    char path[128], name[32];
    struct node_info info;
    struct nodes *n;

    new_store();
    snprintf(path, sizeof(path), "%s/nodes.db", fake_store);
    fault_install();
    fault_arm(nth, nth % 2 ? FAULT_ONCE : FAULT_UNTIL_CLEARED, nth % 3 ? ENOSPC : EIO);
    n = open_nodes(path);
    for (uint64_t i = 0; i < FOLDERS; i++) {
        snprintf(name, sizeof(name), "d%d", (int)i);
        ids[i] = bind_node(n, i % 4 ? ids[i - 1] : NODE_ROOT, name, 100 + i);
        ck_assert_uint_ne(ids[i], 0);
        if (i % 8 == 7)
            sync_nodes(n);
    }
    nodes_rename(n, NODE_ROOT, "d0", NODE_ROOT, "moved");
    nodes_unbind(n, NODE_ROOT, "d4");
    sync_nodes(n);
    nodes_close(n);
    fault_clear();
    n = open_nodes(path);
    ck_assert_int_eq(nodes_find(n, NODE_ROOT, "moved", &info), 0);
    ck_assert_uint_eq(info.id, ids[0]);
    ck_assert_int_eq(nodes_find(n, NODE_ROOT, "d4", &info), -ENOENT);
    ck_assert_int_eq(nodes_get(n, ids[5], &info), -ESTALE);
    ck_assert_int_eq(nodes_find(n, ids[10], "d11", &info), 0);
    ck_assert_uint_eq(info.id, ids[11]);
    moved = bind_node(n, NODE_ROOT, "new", 500);
    for (int i = 0; i < FOLDERS; i++)
        ck_assert_uint_ne(moved, ids[i]);
    nodes_close(n);
    end_store();
    if (getenv("FAULT_N"))
        printf("%d calls, %d failed\n", atomic_load(&fault.calls), atomic_load(&fault.injected)),
            fflush(stdout);
    _exit(atomic_load(&fault.injected) ? 10 : 0);
}

/* ---- many lives, side by side: they mostly wait ---- */

static int failures, injections;

/* False: this one injected nothing. */
static bool reap(pid_t *pids, int *ns, int *running)
{
    int status;
    pid_t pid = wait(&status);

    for (int i = 0; i < *running; i++) {
        if (pids[i] != pid)
            continue;
        if (!WIFEXITED(status) || (WEXITSTATUS(status) != 10 && WEXITSTATUS(status) != 0)) {
            fprintf(stderr, "N=%d: ended with status %x (run it alone with FAULT_N=%d)\n", ns[i], status,
                    ns[i]);
            failures++;
        }
        injections += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
        pids[i] = pids[--*running];
        ns[i] = ns[*running];
        return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    }
    return true;
}

static void run_lives(void (*one)(int), int total_guess, const char *what)
{
    const char *only = getenv("FAULT_N"), *phase = getenv("FAULT_PHASE");
    int step = getenv("FULL") ? 1 : total_guess / SAMPLE > 0 ? total_guess / SAMPLE : 1, running = 0, n;
    pid_t pids[TOGETHER];
    int ns[TOGETHER];
    bool more = true;

    if (only)
        one(atoi(only)); /* exits */
    n = 1 + (phase ? atoi(phase) : (int)(time(NULL) % step));
    for (; more; n += step) {
        if (running == TOGETHER)
            more = reap(pids, ns, &running);
        ns[running] = n;
        pids[running] = fork();
        ck_assert_int_ge(pids[running], 0);
        if (pids[running] == 0)
            one(n);
        running++;
    }
    while (running)
        reap(pids, ns, &running);
    printf("%s: %d injections, up to N=%d, every %d\n", what, injections, n - step, step);
    ck_assert_msg(failures == 0, "%d of %d went wrong", failures, injections);
    ck_assert_int_gt(injections, 20);
}

START_TEST(nth_call_of_a_life)
{
    run_lives(life, 560, "catalog");
}
END_TEST

START_TEST(nth_call_of_node_ids)
{
    run_lives(nodes_life, 100, "node ids");
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("catalog_faults");
    TCase *t = tcase_create("faults");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_set_timeout(t, getenv("FULL") ? 1800 : 120);
    tcase_add_test(t, nth_call_of_a_life);
    tcase_add_test(t, nth_call_of_node_ids);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
