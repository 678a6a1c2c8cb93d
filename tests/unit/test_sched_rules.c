/* Rules between experiments and people: next rounds, shared rows, priorities, admins, rm -r. */
#include "tests/unit/sched_fake.h"

#include <sys/sendfile.h>
#include <sys/wait.h>

#include "scheduler/internal.h"

static const char *const groups[] = {"good-a", "good-b", "slow", "hold", NULL};

static void setup(void)
{
    new_store();
}

static void teardown(void)
{
    sched_close(fake_sched);
    end_store();
}

#define EXPERIMENT(model, group, more)                                                                       \
    "{\"models\":[\"" model "\"],\"datasets\":[\"data\"],\"paramgroups\":[" group "]" more "}"

START_TEST(next_round_from_best)
{
    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/two.json", EXPERIMENT("tuned/one.best", "\"good-a\"", ""));
    wait_text("experiments/two.status", "waiting for: model tuned/one.best", 5);
    put("experiments/one.json", EXPERIMENT("tiny", "\"good-a\",\"good-b\"", ""));
    wait_text("experiments/one.status", "SUCCESS\n", 10);
    /* no evaluation: the lowest eval_loss is best */
    ck_assert(text_has("experiments/one/best", "02-good-b"));
    wait_text("experiments/two.status", "SUCCESS\n", 10);
    ck_assert(text_has("experiments/two/jobs/01-good-a/status.json", "\"base\": \"tiny\""));
    ck_assert(text_has("models/by-base/tiny/two.01-good-a", "tuned"));
}
END_TEST

static void count_scores(int *n)
{
    struct buf b = BUF_INIT;

    *n = 0;
    fd_read_file(sched_tree_fd(fake_sched), "log", 1 << 20, &b, NULL);
    for (char *p = b.p; (p = strstr(p, "base:tiny: to ")); p++)
        ++*n;
    buf_release(&b);
}

START_TEST(base_scored_once)
{
    int n;

    open_sched("cpu:2");
    put("evaluations/quiz.json", "{\"questions\":[{\"question\":\"a\",\"reference\":\"b\"}]}");
    put_basics(groups);
    put("experiments/one.json", EXPERIMENT("tiny", "\"good-a\"", ",\"evaluation\":\"quiz\""));
    put("experiments/two.json", EXPERIMENT("tiny", "\"good-b\"", ",\"evaluation\":\"quiz\""));
    wait_text("experiments/one.status", "SUCCESS\n", 10);
    wait_text("experiments/two.status", "SUCCESS\n", 10);
    ck_assert(text_has("experiments/one/leaderboard.tsv", "base:tiny\t10.00"));
    ck_assert(text_has("experiments/two/leaderboard.tsv", "base:tiny\t10.00"));
    count_scores(&n);
    ck_assert_int_eq(n, 1);
}
END_TEST

/* Pinned: the parameter group may change or go once the experiment is accepted. */
START_TEST(specs_are_pinned)
{
    open_sched("cpu:1");
    put("paramgroups/good.json", "{\"lora_r\": 8}");
    wait_text("paramgroups/good.status", "READY", 5);
    put("experiments/e.json", EXPERIMENT("tiny", "\"good\"", ""));
    wait_text("experiments/e.status", "PENDING", 5);
    put("paramgroups/good.json", "{\"lora_r\": 64}");
    wait_text("paramgroups/good.status", "READY", 5);
    unlinkat(sched_tree_fd(fake_sched), "paramgroups/good.json", 0);
    event(DROP_UNLINK, "paramgroups/good.json");
    put_basics(groups);
    wait_text("experiments/e.status", "SUCCESS\n", 10);
    ck_assert(text_has("experiments/e/jobs/01-good/status.json", "\"lora_r\": 8"));
    ck_assert(text_has("experiments/e/spec.json", "\"lora_r\": 8"));
}
END_TEST

START_TEST(priority_first)
{
    char *t;
    struct buf b = BUF_INIT;

    open_sched("cpu:0"); /* nobody to run them yet */
    put_basics(groups);
    put("experiments/low.json", EXPERIMENT("tiny", "\"good-a\"", ",\"priority\":-1"));
    put("experiments/mid.json", EXPERIMENT("tiny", "\"good-a\"", ""));
    put("experiments/high.json", EXPERIMENT("tiny", "\"good-a\"", ",\"priority\":5"));
    wait_text("experiments/low.status", "PROCESSING", 5);
    wait_text("experiments/mid.status", "PROCESSING", 5);
    wait_text("experiments/high.status", "PROCESSING", 5);
    sched_close(fake_sched);
    open_sched("cpu:1");
    wait_text("experiments/low.status", "SUCCESS\n", 10);
    wait_text("experiments/mid.status", "SUCCESS\n", 10);
    wait_text("experiments/high.status", "SUCCESS\n", 10);
    fd_read_file(sched_tree_fd(fake_sched), "log", 1 << 20, &b, NULL);
    t = strstr(b.p, "job high/01-good-a: to cpu0");
    ck_assert_ptr_nonnull(t);
    t = strstr(t, "job mid/01-good-a: to cpu0");
    ck_assert_ptr_nonnull(t);
    ck_assert_ptr_nonnull(strstr(t, "job low/01-good-a: to cpu0"));
    buf_release(&b);
}
END_TEST

static void write_config(const char *path, const char *text)
{
    ck_assert_int_eq(fd_replace_file(AT_FDCWD, path, text, strlen(text), 0600, NULL), 0);
}

START_TEST(admins)
{
    char path[128];
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self, .config = path};
    struct caller owner = {1000, 1000, 0}, group = {2000, 1000, 0}, admin = {4242, 4242, 0}, root = {0, 0, 0};
    struct buf b = BUF_INIT;

    snprintf(path, sizeof(path), "%s/config.json", fake_store);
    write_config(path, "{\"admins\": [4242]}");
    ck_assert_int_eq(sched_open(&c, &fake_sched, NULL), 0);
    ck_assert(caller_may(fake_sched, &owner, 1000, 1000, 0644));
    ck_assert(caller_may(fake_sched, &admin, 1000, 1000, 0644));
    ck_assert(caller_may(fake_sched, &root, 1000, 1000, 0644));
    ck_assert(!caller_may(fake_sched, &group, 1000, 1000, 0644));
    ck_assert(caller_may(fake_sched, &group, 1000, 1000, 0664));
    write_config(path, "{\"admin\": []}"); /* wrong: the old one stays, the log says why */
    for (int i = 0; i < 400 && !(b.p && strstr(b.p, "did you mean")); i++) {
        usleep(10000);
        buf_clear(&b);
        fd_read_file(sched_tree_fd(fake_sched), "log", 1 << 20, &b, NULL);
    }
    ck_assert_ptr_nonnull(
        strstr(b.p, "config.json:1:2: key \"admin\": unknown key; did you mean \"admins\"?"));
    write_config(path, "{\"admins\": [1, 2]}");
    for (int i = 0; i < 400 && !strstr(b.p, "2 admins"); i++) {
        usleep(10000);
        buf_clear(&b);
        fd_read_file(sched_tree_fd(fake_sched), "log", 1 << 20, &b, NULL);
    }
    ck_assert_ptr_nonnull(strstr(b.p, "2 admins"));
    buf_release(&b);
}
END_TEST

static int unlink_text(const char *path)
{
    struct caller me = fake_me();
    struct layout_match m;

    ck_assert_int_eq(layout_lookup(path, &m), 0);
    return sched_unlink(fake_sched, &m, &me);
}

START_TEST(rm_r_of_an_experiment)
{
    struct caller stranger = {12345, 12345, 0};
    struct layout_match m;

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("tiny", "\"good-a\"", ""));
    wait_text("experiments/e.status", "SUCCESS\n", 10);
    ck_assert_int_eq(unlink_text("status"), -EPERM);
    ck_assert_int_eq(unlink_text("paramgroups/good-a.status"), -EPERM);
    ck_assert_int_eq(unlink_text("experiments/e/status"), 0);
    ck_assert(sched_hidden(fake_sched, "experiments/e/status"));
    ck_assert(!sched_hidden(fake_sched, "experiments/e/best"));
    ck_assert_int_eq(unlink_text("experiments/e/jobs/01-good-a/log"), 0);
    ck_assert_int_eq(remove_dir("experiments/e/jobs/01-good-a"), 0);
    ck_assert(sched_hidden(fake_sched, "experiments/e/jobs/01-good-a"));
    ck_assert_int_eq(layout_lookup("experiments/e", &m), 0);
    ck_assert_int_eq(sched_rmdir(fake_sched, &m, &stranger), -EPERM);
    ck_assert_int_eq(remove_dir("experiments/e"), 0);
    ck_assert_int_ne(faccessat(sched_tree_fd(fake_sched), "experiments/e", F_OK, 0),
                     0); /* the name is free */
    ck_assert(!sched_hidden(fake_sched, "experiments/e/status"));
    ck_assert_int_eq(unlink_text("experiments/e.status"), 0);        /* gone with its experiment */
    ck_assert(text_has("models/tuned/e.01-good-a.status", "READY")); /* stays until removed itself */
    ck_assert_int_eq(unlink_text("models/tuned/e.01-good-a/adapter_model.safetensors"), 0);
    ck_assert_int_eq(remove_dir("models/tuned/e.01-good-a"), 0);
    ck_assert_ptr_null(text_of("models/tuned/e.01-good-a.status"));
    ck_assert_int_ne(faccessat(sched_tree_fd(fake_sched), "models/tuned/e.01-good-a", F_OK, 0), 0);
}
END_TEST

static void count_best(void *arg, const char *name)
{
    *(int *)arg += strcmp(name, "e.best") == 0;
}

static int listed_best(void)
{
    struct layout_match m;
    int n = 0;

    ck_assert_int_eq(layout_lookup("models/tuned", &m), 0);
    ck_assert_int_eq(sched_list(fake_sched, &m, count_best, &n), 0);
    return n;
}

/* The winner's model may be removed: EXP.best is never a link to nothing. */
START_TEST(best_of_what_is_there)
{
    struct layout_match m;
    struct sched_attr attr;

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/e.json", EXPERIMENT("tiny", "\"good-a\",\"good-b\"", ""));
    wait_text("experiments/e.status", "SUCCESS\n", 10);
    ck_assert(text_has("models/tuned/e.best", "e.02-good-b"));
    ck_assert(text_has("experiments/e/best", "model: models/tuned/e.02-good-b\n"));
    ck_assert_int_eq(remove_dir("models/tuned/e.02-good-b"), 0);
    ck_assert(text_has("models/tuned/e.best", "e.01-good-a"));
    ck_assert(text_has("experiments/e/best", "02-good-b\n")); /* the results stay what they are */
    ck_assert(text_has("experiments/e/best", "model: removed\nlink: models/tuned/e.best -> e.01-good-a\n"));
    ck_assert_int_eq(listed_best(), 1);
    put("experiments/on.json", EXPERIMENT("tuned/e.best", "\"good-a\"", ""));
    wait_text("experiments/on.status", "SUCCESS\n", 10);
    ck_assert(text_has("models/tuned/LIST.tsv", "on.01-good-a\tREADY"));
    ck_assert_int_eq(remove_dir("models/tuned/e.01-good-a"), 0);
    ck_assert_int_eq(layout_lookup("models/tuned/e.best", &m), 0);
    ck_assert_int_eq(sched_stat(fake_sched, &m, &attr), -ENOENT);
    ck_assert_ptr_null(text_of("models/tuned/e.best"));
    ck_assert_int_eq(listed_best(), 0);
    ck_assert(!text_has("experiments/e/best", "link:"));
}
END_TEST

static json_t *status_json(void)
{
    char *t = text_of("status.json");
    json_t *v = json_loads(t ? t : "", 0, NULL);

    free(t);
    ck_assert_ptr_nonnull(v);
    return v;
}

/* status.json stays readable: of older experiments it counts the jobs only; who runs is told whatever it is
 * of. */
static void check_bounds(void)
{
    json_t *v, *list, *big, *last, *count;
    const char *state;
    json_int_t sum = 0;

    put("experiments/new.json", EXPERIMENT("tiny", "\"good-a\"", ""));
    wait_text("experiments/new/jobs/LIST.tsv", "01-good-a", 20);
    v = status_json();
    list = json_object_get(v, "experiments");
    ck_assert_uint_eq(json_array_size(list), 2);
    big = json_array_get(list, 0);
    last = json_array_get(list, 1);
    ck_assert_str_eq(json_str(big, "name", ""), "big");
    ck_assert(json_is_null(json_object_get(big, "jobs")) &&
              json_is_null(json_object_get(big, "leaderboard")));
    ck_assert_int_eq(json_int(json_object_get(big, "job_states"), "PENDING", 0) +
                         json_int(json_object_get(big, "job_states"), "FINETUNE", 0),
                     1000);
    ck_assert_str_eq(json_str(last, "name", ""), "new");
    ck_assert_uint_eq(json_array_size(json_object_get(last, "jobs")), 1);
    list = json_object_get(v, "running");
    ck_assert_uint_ge(json_array_size(list), 512);
    ck_assert_str_eq(json_str(json_array_get(list, 0), "experiment", ""), "big");
    ck_assert_int_eq(json_int(json_object_get(json_object_get(v, "counts"), "paramgroups"), "READY", 0), 4);
    json_object_foreach(json_object_get(json_object_get(v, "counts"), "experiments"), state, count)
    {
        sum += json_integer_value(count); /* the new one may be on its way from one state to the next */
    }
    ck_assert_int_eq(sum, 2);
    json_decref(v);
}

START_TEST(a_thousand_jobs)
{
    struct buf b = BUF_INIT;

    open_sched("cpu:2");
    put_basics(groups);
    buf_adds(&b, "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"slow\"],\"seeds\":[0");
    for (int i = 1; i < 1000; i++)
        buf_addf(&b, ",%d", i);
    buf_adds(&b, "]}");
    ck_assert_int_eq(put("experiments/big.json", b.p), 0);
    wait_text("experiments/big.status", "PROCESSING", 10);
    wait_text("devices/cpu0/status", "jobs: 256", 20); /* as many as memory, here without end, lets it have */
    wait_text("devices/cpu1/status", "jobs: 256", 20);
    wait_text("experiments/big/jobs/1000-slow-s999/status", "waits for a device: cpu0 has 256 jobs on tiny",
              5);
    ck_assert(text_has("experiments/big/jobs/LIST.tsv", "1000-slow-s999\tPENDING"));
    check_bounds();
    ck_assert_int_eq(word("experiments/big/control", "cancel"), 6);
    ck_assert(text_has("experiments/big.status", "CANCELLED"));
    buf_release(&b);
}
END_TEST

/* A worker with two jobs dies: they are suspects, tried one after the other, and then run together again. */
START_TEST(suspects_one_by_one)
{
    char *t;
    pid_t pid;

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/s.json",
        "{\"models\":[\"tiny\"],\"datasets\":[\"data\"],\"paramgroups\":[\"slow\"],\"seeds\":[1,2]}");
    wait_text("devices/cpu0/status", "jobs: 2", 5);
    wait_text("experiments/s/jobs/02-slow-s2/progress", "step", 5);
    t = text_of("devices/cpu0/status");
    pid = (pid_t)atoi(strstr(t, "pid: ") + 5);
    free(t);
    kill(pid, SIGKILL);
    wait_text("experiments/s/jobs/02-slow-s2/status", "alone: its worker ended", 5);
    wait_text("devices/cpu0/status", "jobs: 2", 10);
    ck_assert(!text_has("experiments/s/jobs/01-slow-s1/status", "alone:"));
    ck_assert(!text_has("experiments/s/jobs/02-slow-s2/status", "alone:"));
    ck_assert_int_eq(word("experiments/s/control", "stop"), 4);
    wait_text("experiments/s.status", "SUCCESS\nreason: 2 of 2", 10);
}
END_TEST

static pid_t worker_pid(void)
{
    char *t = text_of("devices/cpu0/status"), *p = strstr(t, "pid: ");
    pid_t pid = p ? (pid_t)atoi(p + 5) : 0;

    free(t);
    return pid;
}

START_TEST(hung_worker_is_killed)
{
    struct buf log = BUF_INIT;
    pid_t pid;

    open_sched("cpu:1");
    put_basics(groups);
    put("experiments/s.json", EXPERIMENT("tiny", "\"slow\"", ""));
    wait_text("experiments/s/jobs/01-slow/progress", "step", 5);
    pthread_mutex_lock(&fake_sched->mutex);
    fake_sched->settings.worker_timeout = 1;
    pthread_mutex_unlock(&fake_sched->mutex);
    pid = worker_pid();
    kill(pid, SIGSTOP);
    for (int i = 0; i < 3000 && (worker_pid() == pid || !worker_pid()); i++)
        usleep(10000);
    ck_assert_int_ne(worker_pid(), pid);
    ck_assert_int_eq(
        fd_read_file(sched_tree_fd(fake_sched), "experiments/s/jobs/01-slow/log", 1 << 16, &log, NULL), 0);
    ck_assert_ptr_nonnull(strstr(log.p, "it said nothing for 1 s and was killed"));
    buf_release(&log);
    wait_text("experiments/s/jobs/01-slow/status", "FINETUNE", 5);
    ck_assert_int_eq(word("experiments/s/control", "stop"), 4);
    wait_text("experiments/s.status", "SUCCESS\n", 10);
}
END_TEST

static bool log_has(const char *words)
{
    struct buf b = BUF_INIT;
    bool has;

    ck_assert_int_eq(fd_read_file(sched_tree_fd(fake_sched), "log", 1 << 20, &b, NULL), 0);
    has = strstr(b.p, words) != NULL;
    buf_release(&b);
    return has;
}

/* A job that does not fit there keeps others away from its device, and goes to one that becomes idle. */
START_TEST(memory_decides)
{
    static const char *const names[] = {"slow", "wait", NULL};

    open_sched("cpu:2");
    put_basics(names);
    put("experiments/a.json", EXPERIMENT("tiny", "\"slow\"", ""));
    put("experiments/b.json", EXPERIMENT("tiny", "\"slow\"", ""));
    wait_text("devices/cpu0/status", "jobs: 1", 5);
    wait_text("devices/cpu1/status", "jobs: 1", 5);
    put("experiments/w.json", EXPERIMENT("tiny", "\"wait\"", ",\"seeds\":[1,2,3,4,5,6,7,8,9,10,11,12]"));
    wait_text("experiments/w/jobs/01-wait-s1/status", "reason: waits for 1.0 GiB of device memory", 5);
    wait_text("experiments/w/jobs/12-wait-s12/status", " of them without memory", 5);
    ck_assert_int_eq(word("experiments/a/control", "cancel"), 6);
    wait_text("experiments/w/status", "1 FINETUNE", 5);
    ck_assert_int_eq(word("experiments/b/control", "cancel"), 6);
    wait_text("experiments/w/status", "2 FINETUNE", 5);
    ck_assert_int_eq(word("experiments/w/control", "cancel"), 6);
}
END_TEST

/* One waits on a busy device while another device becomes idle: it is called back and goes there. */
START_TEST(called_back_for_an_idle_device)
{
    static const char *const names[] = {"slow", "wait", "good", NULL};

    open_sched("cpu:2");
    put_basics(names);
    put("experiments/a.json", EXPERIMENT("tiny", "\"slow\"", ""));
    wait_text("devices/cpu0/status", "jobs: 1", 5);
    put("experiments/b.json", EXPERIMENT("tiny", "\"slow\"", ",\"seeds\":[1,2]"));
    wait_text("devices/cpu1/status", "jobs: 1", 5);
    wait_text("devices/cpu0/status", "jobs: 2", 5);
    put("experiments/w.json", EXPERIMENT("tiny", "\"wait\"", ""));
    wait_text("experiments/w/jobs/01-wait/status", "device: cpu1", 5);
    put("experiments/x.json", EXPERIMENT("tiny", "\"wait\"", ""));
    wait_text("experiments/x/jobs/01-wait/status", "device: cpu0", 5);
    ck_assert_int_eq(word("experiments/w/control", "cancel"), 6);
    ck_assert_int_eq(word("experiments/b/control", "cancel"), 6);
    wait_text("experiments/x/jobs/01-wait/status", "device: cpu1", 5);
    wait_text("experiments/x.status", "PROCESSING", 5);
    wait_text("experiments/x/status", "1 FINETUNE", 5);
    ck_assert(log_has("job x/01-wait: back from cpu0, where it waits for memory: another device is idle"));
    ck_assert(text_has("experiments/a/status", "1 FINETUNE"));
}
END_TEST

/* The one that waits for memory makes way for a more important one, which is then the next to get some. */
START_TEST(priority_before_memory)
{
    static const char *const names[] = {"slow", "wait", NULL};

    open_sched("cpu:1");
    put_basics(names);
    put("experiments/a.json", EXPERIMENT("tiny", "\"slow\"", ""));
    wait_text("devices/cpu0/status", "jobs: 1", 5);
    put("experiments/w.json", EXPERIMENT("tiny", "\"wait\"", ""));
    wait_text("experiments/w/jobs/01-wait/status", "device: cpu0", 5);
    put("experiments/vip.json", EXPERIMENT("tiny", "\"wait\"", ",\"priority\":5"));
    wait_text("experiments/vip/jobs/01-wait/status", "device: cpu0", 5);
    ck_assert(log_has("job w/01-wait: back from cpu0, where it waits for memory: another one has a higher"));
    ck_assert_int_eq(word("experiments/a/control", "cancel"), 6);
    wait_text("experiments/vip/status", "1 FINETUNE", 5);
    ck_assert(text_has("experiments/w/jobs/01-wait/status", "PENDING"));
}
END_TEST

/* A process that is an NFS server by its program's name. */
static pid_t start_nfs_server(char program[64])
{
    int from = open("/bin/sleep", O_RDONLY | O_CLOEXEC), to;
    struct stat st;
    pid_t pid;

    strcpy(program, "/tmp/dtx-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(program));
    strcat(program, "/ganesha.nfsd");
    to = open(program, O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    ck_assert(from >= 0 && to >= 0 && fstat(from, &st) == 0);
    ck_assert_int_eq(sendfile(to, from, NULL, (size_t)st.st_size), st.st_size);
    close(from);
    close(to);
    pid = fork();
    if (pid == 0) {
        execl(program, "sleep", "60", (char *)NULL);
        _exit(127);
    }
    return pid;
}

static bool runs(pid_t pid, const char *program)
{
    char link[40], path[PATH_MAX];
    ssize_t n;

    snprintf(link, sizeof(link), "/proc/%d/exe", (int)pid);
    n = readlink(link, path, sizeof(path) - 1);
    return n == (ssize_t)strlen(program) && memcmp(path, program, (size_t)n) == 0;
}

START_TEST(nobody_is_root_over_nfs)
{
    enum { OWNER = 1234, ADMIN = 1300 };
    char program[64];
    pid_t server = start_nfs_server(program);
    struct caller root = {0, 0, getpid()}, remote = {0, 0, server}, admin = {ADMIN, ADMIN, server},
                  owner = {OWNER, OWNER, server};

    for (int i = 0; i < 500 && !runs(server, program); i++)
        usleep(10000);
    ck_assert(runs(server, program));
    open_sched("cpu:1");
    fake_sched->settings.admins[0] = ADMIN;
    fake_sched->settings.nadmins = 1;
    ck_assert(caller_may(fake_sched, &root, OWNER, OWNER, 0600));
    ck_assert(!caller_may(fake_sched, &remote, OWNER, OWNER, 0600));
    ck_assert(!caller_may(fake_sched, &admin, OWNER, OWNER, 0600));
    ck_assert(caller_may(fake_sched, &owner, OWNER, OWNER, 0600));
    fake_sched->settings.nfs_admins = true;
    ck_assert(caller_may(fake_sched, &remote, OWNER, OWNER, 0600));
    ck_assert(caller_may(fake_sched, &admin, OWNER, OWNER, 0600));
    admin.pid = getpid();
    fake_sched->settings.nfs_admins = false;
    ck_assert(caller_may(fake_sched, &admin, OWNER, OWNER, 0600));
    kill(server, SIGKILL);
    waitpid(server, NULL, 0);
    unlink(program);
    *strrchr(program, '/') = '\0';
    rmdir(program);
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("sched_rules");
    TCase *t = tcase_create("rules");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 60);
    tcase_add_test(t, next_round_from_best);
    tcase_add_test(t, base_scored_once);
    tcase_add_test(t, specs_are_pinned);
    tcase_add_test(t, priority_first);
    tcase_add_test(t, admins);
    tcase_add_test(t, nobody_is_root_over_nfs);
    tcase_add_test(t, rm_r_of_an_experiment);
    tcase_add_test(t, best_of_what_is_there);
    tcase_add_test(t, a_thousand_jobs);
    tcase_add_test(t, suspects_one_by_one);
    tcase_add_test(t, hung_worker_is_killed);
    tcase_add_test(t, memory_decides);
    tcase_add_test(t, called_back_for_an_idle_device);
    tcase_add_test(t, priority_before_memory);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
