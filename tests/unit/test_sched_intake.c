/* When a drop is complete, with a clock that the test turns: no threads, loop_round is called by hand. */
#include "tests/unit/sched_fake.h"

#include <sched.h>

#include "scheduler/internal.h"

static int64_t now; /* what the scheduler is told */

static void setup(void)
{
    struct sched_config c = {.store = fake_store, .devices = "cpu:0", .worker = fake_self, .version = "test"};
    struct dtx_err e = {0};

    new_store();
    c.store = fake_store;
    ck_assert_msg(sched_prepare(&c, &fake_sched, &e) == 0, "%s", e.msg);
    watcher_close(fake_sched); /* only what the test says has happened */
    now = clock_mono_ns();
}

static void teardown(void)
{
    sched_close(fake_sched);
    end_store();
}

static void at(double seconds, const char *path, enum drop_event ev)
{
    struct caller me = fake_me();

    pthread_mutex_lock(&fake_sched->mutex);
    intake_note(fake_sched, ev, path, &me, now + (int64_t)(seconds * 1e9));
    pthread_mutex_unlock(&fake_sched->mutex);
}

static void round_at(double seconds)
{
    pthread_mutex_lock(&fake_sched->mutex);
    loop_round(fake_sched, now + (int64_t)(seconds * 1e9));
    pthread_mutex_unlock(&fake_sched->mutex);
}

static void file(const char *path, const char *text)
{
    int fd = openat(sched_tree_fd(fake_sched), path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fd_write_all(fd, text, strlen(text)), 0);
    close(fd);
}

static enum state state_of(enum object_kind kind, const char *name)
{
    struct object *o = object_find(fake_sched, kind, name);

    return o ? o->state : ST_NONE;
}

#define PG(name) state_of(OBJ_PARAMGROUP, name)
#define DS(name) state_of(OBJ_DATASET, name)

START_TEST(spec_after_release)
{
    file("paramgroups/a.json", "{}");
    at(0, "paramgroups/a.json", DROP_OPEN_WRITE);
    at(0, "paramgroups/a.json", DROP_CREATE);
    at(0, "paramgroups/a.json", DROP_WRITE);
    round_at(0.1);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    round_at(30); /* still open */
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    at(31, "paramgroups/a.json", DROP_RELEASE);
    round_at(31.19);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    round_at(31.21);
    ck_assert_int_eq(PG("a"), ST_READY);
    at(40, "paramgroups/a.json", DROP_WRITE);
    round_at(40.01);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
}
END_TEST

START_TEST(spec_without_release)
{
    file("paramgroups/a.json", "{}");
    file("paramgroups/cut.json", "{\"lora_r\":");
    at(0, "paramgroups/a.json", DROP_CREATE);
    at(0, "paramgroups/cut.json", DROP_CREATE);
    at(1, "paramgroups/a.json", DROP_WRITE);
    at(1, "paramgroups/cut.json", DROP_WRITE);
    round_at(5.9);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    round_at(6.1);
    ck_assert_int_eq(PG("a"), ST_READY);
    ck_assert_int_eq(PG("cut"), ST_RECEIVING); /* the rest may come */
    round_at(35.9);
    ck_assert_int_eq(PG("cut"), ST_RECEIVING);
    round_at(36.1);
    ck_assert_int_eq(PG("cut"), ST_REJECTED);
    file("paramgroups/cut.json", "{\"lora_r\": 4}");
    at(50, "paramgroups/cut.json", DROP_WRITE);
    round_at(55.1);
    ck_assert_int_eq(PG("cut"), ST_READY);
}
END_TEST

/* ---- what comes while a drop is being taken: the mutex is free meanwhile, and a thread waits for it ---- */

struct rewrite {
    const char *path;
    atomic_bool waits;
    bool in_round, amid;
    bool close; /* only its mode changes */
};

static void rewrite(const struct rewrite *r)
{
    struct caller me = fake_me();

    if (r->close) {
        ck_assert_int_eq(fchmodat(sched_tree_fd(fake_sched), r->path, 0600, 0), 0);
        intake_note(fake_sched, DROP_SETATTR, r->path, &me, now);
        return;
    }
    file(r->path, "{\"lora_r\": 4}");
    intake_note(fake_sched, DROP_OPEN_WRITE, r->path, &me, now);
    intake_note(fake_sched, DROP_WRITE, r->path, &me, now);
    intake_note(fake_sched, DROP_RELEASE, r->path, &me, now);
}

static void *rewrite_amid(void *arg)
{
    struct rewrite *r = arg;
    struct intake *i;

    atomic_store(&r->waits, true);
    while (pthread_mutex_trylock(&fake_sched->mutex)) /* awake: the loop lets go of it for moments */
        sched_yield();
    i = intake_find(fake_sched, r->path);
    r->amid =
        r->in_round && i && i->dirty && !i->wait_long && !i->gone; /* the round is not through with it */
    if (r->amid)
        rewrite(r);
    pthread_mutex_unlock(&fake_sched->mutex);
    return NULL;
}

/* One try with a file that is empty at first (or not there, and made meanwhile; or whole, and its mode
 * changes): false: it did not come amid. */
enum amid { EMPTY, MISSING, MODE, AMID_KINDS };
static bool try_amid(int n, enum amid kind)
{
    struct rewrite r = {.close = kind == MODE};
    struct object *o;
    pthread_t thread;
    char path[64], name[16];

    snprintf(name, sizeof(name), "p%d", n);
    snprintf(path, sizeof(path), "paramgroups/%s.json", name);
    r.path = path;
    if (kind != MISSING)
        file(path, kind == MODE ? "{}" : "");
    at(-6, path, DROP_CREATE);
    round_at(-5.9); /* RECEIVING is written down */
    pthread_mutex_lock(&fake_sched->mutex);
    r.in_round = true;
    ck_assert_int_eq(pthread_create(&thread, NULL, rewrite_amid, &r), 0);
    while (!atomic_load(&r.waits))
        sched_yield();
    loop_round(fake_sched, now);
    r.in_round = false;
    pthread_mutex_unlock(&fake_sched->mutex);
    pthread_join(thread, NULL);
    round_at(0.3);
    if (r.amid)
        ck_assert_msg(PG(name) == ST_READY, "%s is not READY: what came meanwhile waits", name);
    o = object_find(fake_sched, OBJ_PARAMGROUP, name);
    if (r.amid && kind == MODE)
        ck_assert_msg(o && o->closed == 077, "%s was closed meanwhile, and is open to all", name);
    return r.amid;
}

START_TEST(written_while_it_is_taken)
{
    enum { TRIES = 12 };
    int64_t until = clock_mono_ns() + (int64_t)(20 * slow() * 1e9); /* a bound for busy machines */
    int amid = 0;

    for (int n = 0; amid < TRIES && clock_mono_ns() < until; n++)
        amid += try_amid(n, (enum amid)_i);
    ck_assert_msg(amid == TRIES, "%d tries came in the middle", amid);
}
END_TEST

/* One owner's many drops do not keep another's one waiting. */
START_TEST(each_owner_has_a_turn)
{
    enum { N = 100 };
    struct caller other = {fake_me().uid + 1, fake_me().gid, fake_me().pid};
    char path[64], name[16];
    int ready = 0;

    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof(path), "paramgroups/p%d.json", i);
        file(path, "{}");
        at(0, path, DROP_CREATE);
        at(0, path, DROP_RELEASE);
    }
    file("paramgroups/other.json", "{}");
    ck_assert(geteuid() ||
              fchownat(sched_tree_fd(fake_sched), "paramgroups/other.json", other.uid, other.gid, 0) == 0);
    pthread_mutex_lock(&fake_sched->mutex);
    intake_note(fake_sched, DROP_CREATE, "paramgroups/other.json", &other, now);
    intake_note(fake_sched, DROP_RELEASE, "paramgroups/other.json", &other, now);
    pthread_mutex_unlock(&fake_sched->mutex);
    round_at(0.3);
    ck_assert_int_eq(PG("other"), ST_READY);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "p%d", i);
        ready += PG(name) == ST_READY;
    }
    ck_assert_int_gt(ready, 0);
    ck_assert_int_lt(ready, N / 2);
    ck_assert_int_le(intake_next(fake_sched), now + (int64_t)3e8); /* the loop comes back at once */
    for (int i = 0; i < N / 8; i++)
        round_at(0.3);
    ck_assert_int_eq(PG("p99"), ST_READY);
}
END_TEST

/* What was taken is remembered for ten seconds, to know its echo, and is no work meanwhile. */
START_TEST(what_is_taken_rests)
{
    enum { N = 60 };
    struct intake *first;
    char path[64];

    for (int i = 0; i < N; i++) {
        snprintf(path, sizeof(path), "paramgroups/p%d.json", i);
        file(path, "{}");
        at(0, path, DROP_CREATE);
        at(0, path, DROP_RELEASE);
    }
    for (int i = 0; i < 2 * N / 16 + 2; i++)
        round_at(0.3);
    ck_assert_int_eq(PG("p0"), ST_READY);
    ck_assert_int_eq(PG("p59"), ST_READY);
    ck_assert(TAILQ_EMPTY(&fake_sched->intakes));
    ck_assert_int_eq(intake_next(fake_sched), INT64_MAX);
    first = intake_find(fake_sched, "paramgroups/p0.json");
    ck_assert_ptr_nonnull(first);
    at(5, "paramgroups/p0.json", DROP_WRITE); /* one wakes */
    ck_assert_ptr_eq(TAILQ_FIRST(&fake_sched->intakes), first);
    ck_assert_ptr_null(TAILQ_NEXT(first, list));
    round_at(5.1);
    ck_assert_int_eq(PG("p0"), ST_RECEIVING);
    round_at(10.1);
    ck_assert_int_eq(PG("p0"), ST_READY);
    ck_assert_ptr_null(intake_find(fake_sched, "paramgroups/p1.json"));
    ck_assert_ptr_eq(intake_find(fake_sched, "paramgroups/p0.json"), first);
    round_at(16);
    ck_assert(TAILQ_EMPTY(&fake_sched->resting));
}
END_TEST

/* Modes and times are not content. */
START_TEST(metadata_alone)
{
    static const struct timespec early[2] = {{1, 0}, {1, 0}}, later[2] = {{2, 0}, {2, 0}};
    int tree = sched_tree_fd(fake_sched);
    char stamp[96];

    file("paramgroups/a.json", "{}");
    at(0, "paramgroups/a.json", DROP_RENAMED_IN);
    round_at(0);
    ck_assert_int_eq(PG("a"), ST_READY);
    snprintf(stamp, sizeof(stamp), "%s", object_find(fake_sched, OBJ_PARAMGROUP, "a")->stamp);
    ck_assert_int_eq(fchmodat(tree, "paramgroups/a.json", 0600, 0), 0);
    ck_assert_int_eq(utimensat(tree, "paramgroups/a.json", early, 0), 0);
    at(20, "paramgroups/a.json", DROP_SETATTR);
    round_at(20.01);
    ck_assert_int_eq(PG("a"), ST_READY);
    ck_assert_int_eq(object_find(fake_sched, OBJ_PARAMGROUP, "a")->closed, 077);
    ck_assert_str_ne(object_find(fake_sched, OBJ_PARAMGROUP, "a")->stamp, stamp); /* a restart knows it */
    /* other bytes together with it: another content */
    file("paramgroups/a.json", "{\"lora_r\":");
    at(40, "paramgroups/a.json", DROP_SETATTR);
    round_at(40.01);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    at(40.1, "paramgroups/a.json", DROP_RENAMED_IN);
    round_at(40.1);
    ck_assert_int_eq(PG("a"), ST_REJECTED);
    ck_assert_int_eq(utimensat(tree, "paramgroups/a.json", later, 0), 0);
    at(60, "paramgroups/a.json", DROP_SETATTR); /* what was refused is looked at again */
    round_at(60.01);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
}
END_TEST

START_TEST(spec_renamed_in)
{
    file("paramgroups/a.json", "{}");
    at(0, "paramgroups/a.json", DROP_RENAMED_IN);
    round_at(0);
    ck_assert_int_eq(PG("a"), ST_READY);
    at(1, "paramgroups/a.json", DROP_RENAMED_OUT);
    round_at(1);
    ck_assert_int_eq(PG("a"), ST_NONE);
}
END_TEST

START_TEST(empty_spec_waits)
{
    file("paramgroups/a.json", "");
    at(0, "paramgroups/a.json", DROP_OPEN_WRITE);
    at(0, "paramgroups/a.json", DROP_CREATE);
    at(0, "paramgroups/a.json", DROP_RELEASE); /* NFSv4's first, empty open */
    round_at(1);
    ck_assert_int_eq(PG("a"), ST_RECEIVING);
    file("paramgroups/a.json", "{}");
    at(20, "paramgroups/a.json", DROP_OPEN_WRITE);
    at(20, "paramgroups/a.json", DROP_WRITE);
    at(20, "paramgroups/a.json", DROP_RELEASE);
    round_at(20.3);
    ck_assert_int_eq(PG("a"), ST_READY);
}
END_TEST

START_TEST(folder_quiet)
{
    mkdirat(sched_tree_fd(fake_sched), "datasets/d", 0755);
    at(0, "datasets/d", DROP_MKDIR);
    round_at(0);
    ck_assert_int_eq(DS("d"), ST_RECEIVING);
    file("datasets/d/train.jsonl", "{}");
    at(1, "datasets/d/train.jsonl", DROP_OPEN_WRITE);
    at(1, "datasets/d/train.jsonl", DROP_WRITE);
    at(3, "datasets/d/train.jsonl", DROP_RELEASE);
    round_at(4.9);
    ck_assert_int_eq(DS("d"), ST_RECEIVING);
    round_at(5.1);
    ck_assert_int_eq(DS("d"), ST_CHECKING);
}
END_TEST

START_TEST(folder_without_release)
{
    mkdirat(sched_tree_fd(fake_sched), "datasets/d", 0755);
    at(0, "datasets/d", DROP_MKDIR);
    at(1, "datasets/d/train.jsonl", DROP_WRITE);
    round_at(35.9);
    ck_assert_int_eq(DS("d"), ST_RECEIVING);
    round_at(36.1);
    ck_assert_int_eq(DS("d"), ST_CHECKING);
}
END_TEST

START_TEST(folder_success_and_rename)
{
    mkdirat(sched_tree_fd(fake_sched), "datasets/d", 0755);
    mkdirat(sched_tree_fd(fake_sched), "datasets/e", 0755);
    at(0, "datasets/d", DROP_MKDIR);
    at(0, "datasets/d/_SUCCESS", DROP_OPEN_WRITE);
    at(0, "datasets/d/_SUCCESS", DROP_CREATE);
    at(0, "datasets/d/_SUCCESS", DROP_RELEASE);
    at(0, "datasets/e", DROP_RENAMED_IN);
    round_at(0);
    ck_assert_int_eq(DS("d"), ST_CHECKING);
    ck_assert_int_eq(DS("e"), ST_CHECKING);
    unlinkat(sched_tree_fd(fake_sched), "datasets/e", AT_REMOVEDIR);
    at(1, "datasets/e", DROP_RMDIR);
    round_at(1);
    ck_assert_int_eq(DS("e"), ST_NONE);
}
END_TEST

START_TEST(leftovers)
{
    file("paramgroups/a.json", "{}");
    file("paramgroups/a.json~", "{}");
    at(0, "paramgroups/.a.json.swp", DROP_CREATE);
    at(0, "paramgroups/a.json~", DROP_RENAMED_IN);
    at(0, "paramgroups/sedAbCdEf", DROP_CREATE);
    round_at(0.5);
    ck_assert_int_eq(fake_sched->nobjects, 0);
    at(1, "paramgroups/a.json", DROP_RENAMED_IN);
    round_at(1);
    ck_assert_int_eq(PG("a"), ST_READY);
    mkdirat(sched_tree_fd(fake_sched), "datasets/d", 0755);
    at(2, "datasets/d", DROP_RENAMED_IN);
    round_at(2);
    ck_assert_int_eq(DS("d"), ST_CHECKING);
    at(3, "datasets/d/.train.jsonl.swp", DROP_CREATE); /* an editor looks at a finished one */
    round_at(3);
    ck_assert_int_ne(DS("d"), ST_RECEIVING);
}
END_TEST

/* A shard: header of 8 + n bytes, then what its offsets promise. */
static void shard(const char *path, int promised, int present)
{
    char header[128], data[256] = {0};
    uint64_t n;
    struct buf b = BUF_INIT;

    n = (uint64_t)snprintf(header, sizeof(header),
                           "{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,%d]}}", promised);
    buf_add(&b, &n, 8);
    buf_adds(&b, header);
    buf_add(&b, data, (size_t)present);
    int fd = openat(sched_tree_fd(fake_sched), path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ck_assert_int_eq(fd_write_all(fd, b.p, b.len), 0);
    close(fd);
    buf_release(&b);
}

START_TEST(model_complete_by_shards)
{
    mkdirat(sched_tree_fd(fake_sched), "models/base/m", 0755);
    file("models/base/m/config.json", "{}");
    file("models/base/m/tokenizer.json", "{}");
    file("models/base/m/model.safetensors.index.json",
         "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    shard("models/base/m/one.safetensors", 100, 100);
    shard("models/base/m/two.safetensors", 100, 60);
    at(0, "models/base/m", DROP_MKDIR);
    at(1, "models/base/m/two.safetensors", DROP_WRITE);
    round_at(1.5);
    ck_assert_int_eq(state_of(OBJ_BASE, "m"), ST_RECEIVING);
    shard("models/base/m/two.safetensors", 100, 100);
    at(2, "models/base/m/two.safetensors", DROP_WRITE);
    round_at(2.7);
    ck_assert_int_eq(state_of(OBJ_BASE, "m"), ST_CHECKING);
}
END_TEST

START_TEST(hostile_links)
{
    file("outside", "{}");
    symlinkat("../outside", sched_tree_fd(fake_sched), "paramgroups/a.json");
    at(0, "paramgroups/a.json", DROP_LINK);
    round_at(0.3);
    ck_assert_int_eq(PG("a"), ST_REJECTED);
    ck_assert_ptr_nonnull(strstr(object_find(fake_sched, OBJ_PARAMGROUP, "a")->reason, "symbolic link"));
    symlinkat("/etc", sched_tree_fd(fake_sched), "models/base/etc");
    at(1, "models/base/etc", DROP_RENAMED_IN);
    round_at(1);
    ck_assert_int_eq(state_of(OBJ_BASE, "etc"), ST_REJECTED);
}
END_TEST

START_TEST(long_name)
{
    char path[256] = "paramgroups/";

    memset(path + 12, 'x', 100);
    strcpy(path + 112, ".json");
    file(path, "{}");
    at(0, path, DROP_RENAMED_IN);
    round_at(0);
    path[112] = '\0';
    ck_assert_int_eq(PG(path + 12), ST_REJECTED);
    ck_assert_ptr_nonnull(
        strstr(object_find(fake_sched, OBJ_PARAMGROUP, path + 12)->reason, "has 100 bytes"));
}
END_TEST

int main(int argc, char **argv)
{
    Suite *suite = suite_create("sched_intake");
    TCase *t = tcase_create("intake");
    SRunner *r;
    int failed;

    fake_worker_main(argc, argv);
    tcase_set_timeout(t, 30);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, spec_after_release);
    tcase_add_test(t, spec_without_release);
    tcase_add_test(t, each_owner_has_a_turn);
    tcase_add_test(t, what_is_taken_rests);
    tcase_add_loop_test(t, written_while_it_is_taken, 0, AMID_KINDS);
    tcase_add_test(t, metadata_alone);
    tcase_add_test(t, spec_renamed_in);
    tcase_add_test(t, empty_spec_waits);
    tcase_add_test(t, folder_quiet);
    tcase_add_test(t, folder_without_release);
    tcase_add_test(t, folder_success_and_rename);
    tcase_add_test(t, leftovers);
    tcase_add_test(t, model_complete_by_shards);
    tcase_add_test(t, hostile_links);
    tcase_add_test(t, long_name);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
