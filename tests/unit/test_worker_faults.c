/*
 * The worker's files with the Nth open, write, fsync, rename, link, mkdir or truncate failing
 * (tests/crash/shim.c), N = 1, 2, ... until a run injects nothing: two jobs side by side, prepared, trained,
 * saved, exported, scored.  A job then ends as FAILED in words, or goes on; its neighbour ends with its own
 * bytes; when the fault has passed a retry ends with the bytes of an undisturbed run, and nothing half
 * written is left.
 *
 * FULL=1 runs every N; else a sample that differs from run to run (FAULT_N=n runs one; FAULT_PHASE=n chooses
 * the sample).
 */
#include <dirent.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <time.h>

#include "scheduler/worker/job.h"
#include "tests/unit/worker_harness.h"

enum { SAMPLE = 26, LONGEST_S = 60 };

struct fault_page { /* as in tests/crash/shim.c */
    atomic_int calls, injected, nth, sticky, error;
};

static struct harness h;
static struct fault_page *fault;
static char shim[128], page[128];
static const char *const jobs[] = {"exp/a", "exp/b"};
static const char *const groups[] = {"{\"max_steps\":7,\"save_every\":3,\"eval_every\":4}",
                                     "{\"max_steps\":5,\"save_every\":2,\"lora_r\":2}"};

static bool make_shim(void)
{
    char command[512];
    int fd;

    snprintf(shim, sizeof(shim), "%s.so", h.dir);
    snprintf(page, sizeof(page), "%s.page", h.dir);
    snprintf(command, sizeof(command), "cc -shared -fPIC -O1 -o %s tests/crash/shim.c -ldl 2>&1", shim);
    if (system(command) != 0)
        return false;
    fd = open(page, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ck_assert_int_eq(ftruncate(fd, sizeof(*fault)), 0);
    fault = mmap(NULL, sizeof(*fault), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    ck_assert_ptr_ne(fault, MAP_FAILED);
    close(fd);
    return true;
}

static void start(void)
{
    setenv("LD_PRELOAD", shim, 1);
    setenv("SHIM_STORE", h.dir, 1);
    setenv("SHIM_FAULT", page, 1);
    setenv("ASAN_OPTIONS", "verify_asan_link_order=0:detect_leaks=0", 1);
    harness_start(&h, 1);
    unsetenv("LD_PRELOAD");
}

static void arm(int nth, bool sticky, int error)
{
    atomic_store(&fault->sticky, sticky);
    atomic_store(&fault->error, error);
    atomic_store(&fault->calls, 0);
    atomic_store(&fault->injected, 0);
    atomic_store(&fault->nth, nth);
}

static void send_job(int i)
{
    json_t *job = harness_job(&h, jobs[i], groups[i]);

    json_object_set_new(harness_spec(job), "evaluation", harness_questions(2, 4));
    json_object_set_new(harness_spec(job), "evaluation_name", json_string("quiz"));
    harness_send(&h, PM_JOB_START, job);
}

static bool is_end(const json_t *body, const void *id)
{
    const char *state = json_str(body, "state", "");

    return !strcmp(json_str(body, "id", ""), id) &&
           (!strcmp(state, "SUCCESSFUL") || !strcmp(state, "FAILED"));
}

/* True: SUCCESSFUL.  FAILED must have words. */
static bool job_ends(int i)
{
    const json_t *body;

    h.next = 0;
    body = harness_wait(&h, PM_JOB_STATE, is_end, jobs[i], LONGEST_S);
    if (!strcmp(json_str(body, "state", ""), "SUCCESSFUL"))
        return true;
    if (getenv("FAULT_N") || !atomic_load(&fault->nth))
        fprintf(stderr, "%s: %s\n", jobs[i], json_str(body, "reason", ""));
    ck_assert_msg(strlen(json_str(body, "reason", "")) > 20, "job %s failed without words: \"%s\"", jobs[i],
                  json_str(body, "reason", ""));
    return false;
}

/* Names of half-written files, in all folders below. */
static void check_clean(const char *path)
{
    DIR *d = opendir(path);
    struct dirent *ent;
    char sub[PATH_MAX];

    if (!d)
        return;
    while ((ent = readdir(d))) {
        const char *name = ent->d_name;
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        ck_assert_msg(!strstr(name, ".tmp") && !strstr(name, ".new"), "left behind: %s/%s", path, name);
        snprintf(sub, sizeof(sub), "%s/%s", path, name);
        if (ent->d_type == DT_DIR)
            check_clean(sub);
    }
    closedir(d);
}

struct files {
    char adapter[65], score[65];
};

static struct files files_of(int i)
{
    const char *name = strchr(jobs[i], '/') + 1;
    char path[128], tuned[128];
    struct files f;
    json_t *v = NULL;

    snprintf(f.adapter, sizeof(f.adapter), "%s", harness_adapter(&h, name));
    snprintf(path, sizeof(path), "tree/experiments/exp/jobs/%s/score.json", name);
    snprintf(f.score, sizeof(f.score), "%s", harness_sum(&h, path));
    snprintf(tuned, sizeof(tuned), "tree/models/tuned/exp.%s/adapter_model.safetensors", name);
    ck_assert_str_eq(f.adapter, harness_sum(&h, tuned));
    snprintf(tuned, sizeof(tuned), "tree/models/tuned/exp.%s/score.json", name);
    ck_assert_str_eq(f.score, harness_sum(&h, tuned));
    snprintf(path, sizeof(path), "tree/experiments/exp/jobs/%s/provenance.json", name);
    ck_assert_int_eq(json_parse_file(h.store, path, 1 << 20, &v, NULL), 0);
    ck_assert_str_eq(f.adapter, json_str(json_object_get(v, "sha256"), "adapter_model.safetensors", "?"));
    json_decref(v);
    return f;
}

static void same(int n, int i, const struct files *want)
{
    struct files f = files_of(i);

    ck_assert_msg(!strcmp(f.adapter, want[i].adapter), "N=%d: job %s has another adapter", n, jobs[i]);
    ck_assert_msg(!strcmp(f.score, want[i].score), "N=%d: job %s has another score.json", n, jobs[i]);
}

/* False: nothing was injected. */
static bool one(int n, const struct files *want)
{
    bool sticky = n % 3 == 0, well[2];

    arm(n, sticky, n % 2 ? ENOSPC : EIO);
    start();
    send_job(0);
    send_job(1);
    well[0] = job_ends(0);
    well[1] = job_ends(1);
    ck_assert_msg(sticky || well[0] || well[1], "N=%d: one failed call failed both jobs", n);
    for (int i = 0; i < 2; i++)
        if (well[i])
            same(n, i, want);
    arm(0, false, 0);
    json_array_clear(h.seen);
    for (int i = 0; i < 2; i++)
        if (!well[i])
            send_job(i);
    for (int i = 0; i < 2; i++)
        ck_assert_msg(well[i] || job_ends(i), "N=%d: the retry of %s failed", n, jobs[i]);
    harness_quit(&h);
    for (int i = 0; i < 2; i++)
        same(n, i, want);
    check_clean(h.dir);
    return true;
}

static void remove_results(void)
{
    ck_assert_int_eq(fd_remove_tree(h.store, "work", NULL), 0);
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/experiments", NULL), 0);
    ck_assert_int_eq(fd_remove_tree(h.store, "tree/models/tuned", NULL), 0);
}

START_TEST(nth_call_fails)
{
    const char *only = getenv("FAULT_N"), *phase = getenv("FAULT_PHASE");
    struct files want[2];
    int total, step, n, done = 0;

    harness_init(&h);
    if (!make_shim()) {
        printf("SKIP: nth_call_fails: no C compiler (cc) to build tests/crash/shim.c\n");
        return;
    }
    arm(0, false, 0);
    start();
    send_job(0);
    send_job(1);
    ck_assert(job_ends(0) && job_ends(1));
    harness_quit(&h);
    total = atomic_load(&fault->calls);
    ck_assert_int_gt(total, 100);
    want[0] = files_of(0);
    want[1] = files_of(1);
    step = getenv("FULL") ? 1 : total / SAMPLE;
    n = only ? atoi(only) : 1 + (phase ? atoi(phase) : (int)(time(NULL) % step));
    for (; n <= total + 20; n += step) {
        remove_results();
        one(n, want);
        done++;
        if (only)
            break;
    }
    printf("%d calls, %d runs with one of them failing\n", total, done);
    unlink(shim);
    unlink(page);
    harness_end(&h);
}
END_TEST

/* As a power cut may leave it: the first row, a hole, a row behind it. */
START_TEST(torn_metrics_are_cut)
{
    static const char header[] = "step,epoch,loss,eval_loss,lr,grad_norm,tokens_per_s,memory\n";
    static const char row1[] = "1,0.5,2,,0.1,1,100,5\n", row2[] = "2,1,2,,0.1,1,100,5\n";
    char path[] = "/tmp/dtx-metrics-XXXXXX", hole[40] = "";
    struct job j = {.metrics_fd = mkostemp(path, O_APPEND)};
    struct dtx_err e = {0};

    ck_assert_int_eq(fd_write_all(j.metrics_fd, header, sizeof(header) - 1), 0);
    ck_assert_int_eq(fd_write_all(j.metrics_fd, row1, sizeof(row1) - 1), 0);
    ck_assert_int_eq(fd_write_all(j.metrics_fd, hole, sizeof(hole)), 0);
    ck_assert_int_eq(fd_write_all(j.metrics_fd, row2, sizeof(row2) - 1), 0);
    ck_assert_int_eq(metrics_cut(&j, 9, &e), 0);
    ck_assert_int_eq(lseek(j.metrics_fd, 0, SEEK_END), (off_t)(sizeof(header) + sizeof(row1)) - 2);
    ck_assert_int_eq(metrics_cut(&j, 0, &e), 0);
    ck_assert_int_eq(lseek(j.metrics_fd, 0, SEEK_END), (off_t)sizeof(header) - 1);
    close(j.metrics_fd);
    unlink(path);
}
END_TEST

/* For tests/e2e/powercut.sh: model and dataset of the harness into a folder. */
static int make_inputs(const char *dir)
{
    int fd = open(dir, O_RDONLY | O_DIRECTORY);

    return fd < 0 || tiny_model_make(fd, "tiny", 1) || tiny_dataset_make(fd, "words", 24, 6);
}

int main(int argc, char **argv)
{
    Suite *suite;
    TCase *t;
    SRunner *r;
    int failed;

    if (argc == 3 && strcmp(argv[1], "--make-inputs") == 0)
        return make_inputs(argv[2]);
    suite = suite_create("worker_faults");
    t = tcase_create("faults");
    signal(SIGPIPE, SIG_IGN);
    tcase_set_timeout(t, getenv("FULL") ? 1800 : 200);
    tcase_add_test(t, torn_metrics_are_cut);
    tcase_add_test(t, nth_call_fails);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
