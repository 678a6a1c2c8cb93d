/*
 * The engine's promise: a job's and a sequence's numbers do not depend on its neighbours, on threads, or on a
 * save and restore in between.  Byte for byte.
 */
#include "tests/unit/engine_util.h"

enum { JOBS = 8 };

/* Job 0 is the one that is compared; the others differ in everything. */
static struct dtx_train_params params_of(int i)
{
    struct dtx_train_params p = util_params();
    p.dropout = 0.1;
    if (i == 0)
        return p;
    p.seed = 100 + (uint64_t)i;
    p.rank = 1 + i * 3;
    p.batch_size = 1 + i;
    p.grad_acc_steps = 1 + i % 3;
    p.targets = i % 2 ? p.targets : 1u << DTX_Q | 1u << DTX_V | 1u << DTX_DOWN;
    p.optimizer = i == 3 ? DTX_SGD : i == 4 ? DTX_ADAM : DTX_ADAMW;
    p.dropout = i % 2 ? 0.05 * i : 0;
    p.schedule = i % 3 ? DTX_LINEAR : DTX_CONSTANT;
    return p;
}

struct set {
    struct util_base u;
    struct dtx_rows rows[JOBS];
    struct dtx_job *jobs[JOBS];
};

static struct util_model model = {
    .layers = 2, .hidden = 48, .ffn = 80, .heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 101};
static const char *folder; /* NULL: a random model */

static struct set *set_of(int threads)
{
    struct set *s = calloc(1, sizeof *s); /* jobs point to its rows */
    if (folder) {
        s->u.dir = util_dir(s->u.path);
        MUST(dtx_device_open("cpu", threads, &s->u.device, &e));
        MUST(dtx_base_load(s->u.device, AT_FDCWD, folder, &s->u.base, &e));
    } else {
        s->u = util_base_of(&model, threads);
    }
    for (int i = 0; i < JOBS; i++) {
        struct dtx_train_params p = params_of(i);
        s->rows[i] = util_rows((uint64_t)i + 5, 11 + (uint32_t)i, 9, i == 0 ? 150 : 40 + 20 * i,
                               s->u.base->config.vocab);
        MUST(dtx_job_new(s->u.base, &p, &s->rows[i], -1, NULL, &s->jobs[i], &e));
    }
    return s;
}

static void set_done(struct set *s)
{
    for (int i = 0; i < JOBS; i++) {
        dtx_job_free(s->jobs[i]);
        util_rows_free(&s->rows[i]);
    }
    util_base_done(&s->u);
    free(s);
}

/* Job 0 to its end alone; its adapter. */
static float *alone(int threads, size_t *n)
{
    struct set *s = set_of(threads);
    struct dtx_step_result r;
    do {
        MUST(dtx_train_step(s->u.base, s->jobs, 1, &r, &e));
        ck_assert_int_eq(r.failed, 0);
    } while (!r.done);
    float *w = util_weights(s->jobs[0]);
    *n = s->jobs[0]->n;
    set_done(s);
    return w;
}

/* Job 0 to its end among the others, which are of different lengths, and come and go. */
static float *together(int threads)
{
    struct set *s = set_of(threads);
    for (int step = 0;; step++) {
        struct dtx_job *now[JOBS];
        struct dtx_step_result r[JOBS];
        int n = 0, mine = -1;
        for (int i = 0; i < JOBS; i++)
            if (i == 0 || (step + i) % 4) {
                mine = i == 0 ? n : mine;
                now[n++] = s->jobs[i];
            }
        if (step % 2) { /* not always first */
            now[0] = now[n - 1];
            now[n - 1] = s->jobs[0];
            mine = n - 1;
        }
        MUST(dtx_train_step(s->u.base, now, n, r, &e));
        for (int i = 0; i < n; i++)
            ck_assert_msg(r[i].failed == 0, "%s", r[i].error.msg);
        if (r[mine].done)
            break;
    }
    float *w = util_weights(s->jobs[0]);
    set_done(s);
    return w;
}

/* Job 0 saved after each of some steps and gone on by a new process' worth of objects. */
static float *interrupted(int threads)
{
    char path[64];
    int dir = util_dir(path);
    float *w = NULL;
    bool saved = false;
    for (int life = 0; !w; life++) {
        struct set *s = set_of(threads);
        if (saved)
            MUST(dtx_job_restore(s->jobs[0], dir, "state", &e));
        for (int k = 0; k <= life % 3 && !w; k++) {
            struct dtx_step_result r;
            MUST(dtx_train_step(s->u.base, s->jobs, 1, &r, &e));
            if (r.done)
                w = util_weights(s->jobs[0]);
            if (k == life % 3 / 2) { /* later steps of this life are lost */
                MUST(dtx_job_save(s->jobs[0], dir, "state", &e));
                saved = true;
            }
        }
        set_done(s);
    }
    util_dir_done(dir, path);
    return w;
}

static void check_job(void)
{
    size_t n;
    float *want = alone(1, &n);
    float *got[] = {alone(2, &n), alone(3, &n), together(1), together(2), interrupted(1)};
    for (size_t i = 0; i < sizeof got / sizeof *got; i++) {
        for (size_t k = 0; k < n; k++)
            ck_assert_msg(memcmp(&got[i][k], &want[k], 4) == 0,
                          "variant %zu: value %zu of %zu: %.9g, alone %.9g", i, k, n, (double)got[i][k],
                          (double)want[k]);
        free(got[i]);
    }
    free(want);
}

START_TEST(job_small)
{
    check_job();
}
END_TEST

START_TEST(job_qwen_like)
{
    model = (struct util_model){.layers = 3,
                                .hidden = 72,
                                .ffn = 300,
                                .heads = 6,
                                .kv_heads = 6,
                                .head_dim = 12,
                                .vocab = 333,
                                .tied = true,
                                .bias = true,
                                .llama3 = true};
    check_job();
}
END_TEST

START_TEST(job_stories)
{
    folder = "../shared/models/stories260K";
    if (util_have("job_stories", folder))
        check_job();
}
END_TEST

enum { SEQS = 9 };

/* Sequence `which` of SEQS, generated alone (only >= 0) or with the others; its tokens. */
static struct dtx_ids generate(int threads, int which, bool with_others)
{
    struct set *s = set_of(threads);
    struct dtx_seq *seqs[SEQS];
    struct dtx_adapter *a[2];
    struct dtx_step_result r;
    struct dtx_ids out = {0};
    int n = 0, mine = 0;
    for (int i = 0; i < 4; i++) {
        MUST(dtx_train_step(s->u.base, &s->jobs[1], 1, &r, &e));
        MUST(dtx_train_step(s->u.base, &s->jobs[2], 1, &r, &e));
    }
    MUST(dtx_adapter_from_job(s->jobs[1], &a[0], &e));
    MUST(dtx_adapter_from_job(s->jobs[2], &a[1], &e));
    for (int i = 0; i < SEQS; i++) {
        if (i != which && !with_others)
            continue;
        struct dtx_sampling how = {.max_new_tokens = 20 + i, .top_p = 1, .seed = (uint64_t)i};
        if (i % 2) {
            how.temperature = 0.9;
            how.top_k = 20;
            how.top_p = 0.95;
        }
        mine = i == which ? n : mine;
        const struct dtx_rows *rows = &s->rows[i % JOBS];
        MUST(dtx_seq_new(s->u.base, i % 3 ? a[i % 3 - 1] : NULL, NULL, rows->ids, (size_t)(1 + i * i), &how,
                         &seqs[n++], &e));
    }
    for (int step = 0; dtx_seq_finish(seqs[mine]) == DTX_RUNNING; step++) /* others join one by one */
        MUST(dtx_seq_step(s->u.base, seqs, n < mine + 1 + step ? n : mine + 1 + step, &e));
    size_t len;
    const int32_t *ids = dtx_seq_tokens(seqs[mine], &len);
    for (size_t i = 0; i < len; i++)
        dtx_ids_add(&out, ids[i]);
    for (int i = 0; i < n; i++)
        dtx_seq_free(seqs[i]);
    dtx_adapter_free(a[0]);
    dtx_adapter_free(a[1]);
    set_done(s);
    return out;
}

START_TEST(sequences)
{
    for (int which = 0; which < SEQS; which++) {
        struct dtx_ids want = generate(1, which, false), got = generate(2, which, true);
        ck_assert_int_eq(want.n, 20 + which);
        ck_assert_int_eq(got.n, want.n);
        ck_assert_mem_eq(got.v, want.v, want.n * sizeof *want.v);
        dtx_ids_release(&want);
        dtx_ids_release(&got);
    }
}
END_TEST

/* A job whose numbers stop being finite fails alone, untouched, and its neighbours do not notice. */
START_TEST(failure_alone)
{
    size_t n;
    float *want = alone(1, &n);
    struct set *s = set_of(2);
    struct dtx_step_result r[3];
    s->jobs[1]->w[17] = NAN;
    s->jobs[2]->w[3] = INFINITY;
    float *before = util_weights(s->jobs[1]);
    struct dtx_job *jobs[] = {s->jobs[1], s->jobs[0], s->jobs[2]};
    do {
        MUST(dtx_train_step(s->u.base, jobs, 3, r, &e));
        ck_assert_int_eq(r[0].failed, -EDOM);
        ck_assert_ptr_nonnull(strstr(r[0].error.msg, "not finite"));
        ck_assert_int_eq(r[1].failed, 0);
        ck_assert_int_eq(r[2].failed, -EDOM);
    } while (!r[1].done);
    ck_assert_mem_eq(s->jobs[0]->w, want, n * sizeof *want);
    ck_assert_mem_eq(s->jobs[1]->w, before, s->jobs[1]->n * sizeof *before);
    ck_assert_int_eq(dtx_job_steps_done(s->jobs[1]), 0);
    free(want);
    free(before);
    set_done(s);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine invariance");
    TCase *c = tcase_create("invariance");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, job_small);
    tcase_add_test(c, job_qwen_like);
    tcase_add_test(c, job_stories);
    tcase_add_test(c, sequences);
    tcase_add_test(c, failure_alone);
    suite_add_tcase(s, c);
    return util_main(s);
}
