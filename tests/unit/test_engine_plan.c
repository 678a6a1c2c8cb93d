/*
 * The memory plan: what it says is what the device is asked for, nothing is asked for in a step, and neither
 * packs, nor layers computed again, nor 32 neighbours that come and go change a byte of a job's adapter.
 */
#include "tests/unit/engine_util.h"

enum { JOBS = 32, HEADER = 64 };

static const struct util_model model = {
    .layers = 5, .hidden = 48, .ffn = 80, .heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 101};

/* ---- a device that counts its bytes, and fills new memory with NaN ---- */

static struct dtx_ops counting, plain;
static size_t held, peak, most = SIZE_MAX; /* most: larger requests fail */
static int asked;

static void *counting_alloc(struct op_dev *d, size_t bytes)
{
    char *p = bytes > most ? NULL : plain.alloc(d, bytes + HEADER);
    if (!p)
        return NULL;
    memcpy(p, &bytes, sizeof bytes);
    memset(p + HEADER, 0xff, bytes);
    held += bytes;
    peak = held > peak ? held : peak;
    asked++;
    return p + HEADER;
}

static void counting_free(struct op_dev *d, void *p)
{
    size_t bytes;
    if (!p)
        return;
    memcpy(&bytes, (char *)p - HEADER, sizeof bytes);
    held -= bytes;
    plain.free(d, (char *)p - HEADER);
}

static struct util_base counted_base(const struct util_model *m, int threads)
{
    struct util_base u = {0};
    u.dir = util_dir(u.path);
    util_write_model(u.dir, "model", m);
    MUST(dtx_device_open("cpu", threads, &u.device, &e));
    counting = plain = *u.device->ops;
    counting.alloc = counting_alloc;
    counting.free = counting_free;
    u.device->ops = &counting;
    held = peak = 0;
    asked = 0;
    MUST(dtx_base_load(u.device, u.dir, "model", &u.base, &e));
    return u;
}

/* ---- jobs that differ in everything ---- */

static struct dtx_train_params params_of(int i)
{
    struct dtx_train_params p = util_params();
    p.seed = 100 + (uint64_t)i;
    p.rank = 1 + i % 19;
    p.batch_size = 1 + i % 5;
    p.grad_acc_steps = 1 + i % 3;
    p.targets = i % 4 == 1 ? 1u << DTX_Q | 1u << DTX_V | 1u << DTX_DOWN : p.targets;
    p.optimizer = i % 7 == 3 ? DTX_SGD : i % 7 == 4 ? DTX_ADAM : DTX_ADAMW;
    p.dropout = i % 2 ? 0.02 * (i % 9) : 0;
    p.schedule = i % 3 ? DTX_LINEAR : DTX_CONSTANT;
    p.epochs = 1 + i % 2;
    return p;
}

static struct dtx_rows rows_of(int i)
{
    return util_rows((uint64_t)i + 5, 7 + (uint32_t)i % 6, 9, 30 + 20 * (i % 9), model.vocab);
}

struct set {
    struct util_base u;
    struct dtx_rows rows[JOBS];
    struct dtx_job *jobs[JOBS];
    struct dtx_job_size sizes[JOBS];
};

static struct set *set_of(int first, int n, int threads)
{
    struct set *s = calloc(1, sizeof *s);
    s->u = counted_base(&model, threads);
    for (int i = 0; i < n; i++) {
        struct dtx_train_params p = params_of(first + i);
        s->rows[i] = rows_of(first + i);
        s->sizes[i] = dtx_job_size(&p, &s->rows[i], false);
        MUST(dtx_job_new(s->u.base, &p, &s->rows[i], -1, NULL, &s->jobs[i], &e));
    }
    return s;
}

static void set_done(struct set *s)
{
    for (int i = 0; i < JOBS && s->rows[i].ids; i++) {
        dtx_job_free(s->jobs[i]);
        util_rows_free(&s->rows[i]);
    }
    util_base_done(&s->u);
    ck_assert_uint_eq(held, 0);
    free(s);
}

static void plan_of(struct set *s, int n, uint64_t budget, struct dtx_plan *p)
{
    int rc = dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, n, budget, p);
    ck_assert(rc == 0 || rc == -ENOSPC);
    MUST(dtx_base_plan_training(s->u.base, p, &e));
}

/* Job i to its end alone, nothing computed twice. */
static float *alone(int i, size_t *n)
{
    struct set *s = set_of(i, 1, 1);
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

/* ---- the tests ---- */

/* r = -1: not even norms and swiglu are computed again. */
START_TEST(recompute_changes_no_byte)
{
    for (int i = 0; i < 4; i++) {
        size_t n;
        float *want = alone(i, &n);
        for (int r = -1; r < model.layers; r++) {
            struct set *s = set_of(i, 1, 1 + (r + 2) % 2);
            struct dtx_step_result res;
            struct dtx_plan p;
            plan_of(s, 1, UINT64_MAX, &p);
            p.recompute = r < 0 ? 0 : r;
            p.keep = r < 0;
            MUST(dtx_base_plan_training(s->u.base, &p, &e));
            do
                MUST(dtx_train_step(s->u.base, s->jobs, 1, &res, &e));
            while (!res.done);
            ck_assert_int_eq(s->u.base->spaces[1].recompute, p.recompute);
            ck_assert_int_eq(s->u.base->spaces[1].keep, p.keep);
            ck_assert_int_eq(s->u.base->spaces[1].layer[0].a != s->u.base->spaces[1].layer[1].a, p.keep);
            ck_assert_msg(!memcmp(s->jobs[0]->w, want, n * sizeof *want),
                          "job %d with %d layers computed again", i, r);
            set_done(s);
        }
        free(want);
    }
}
END_TEST

/* Which of them make step `round`: now these, now those, in another order; all of them in the end. */
static int pick(struct set *s, const bool *done, int round, int *which)
{
    int n = 0;
    for (int k = 0; k < JOBS; k++) {
        int i = (k * 5 + round * 3) % JOBS;
        if (s->jobs[i] && !done[i] && (round % 4 == 0 || (i + round) % 5))
            which[n++] = i;
    }
    return n;
}

START_TEST(thirty_two_together_are_as_alone)
{
    struct set *s = set_of(0, JOBS, 2);
    bool done[JOBS] = {0};
    int left = JOBS;
    for (int round = 0; left; round++) {
        int which[JOBS], n = pick(s, done, round, which);
        struct dtx_job *jobs[JOBS];
        struct dtx_step_result r[JOBS];
        struct dtx_plan most, p;
        for (int k = 0; k < n; k++)
            jobs[k] = s->jobs[which[k]];
        plan_of(s, JOBS, UINT64_MAX, &most);
        plan_of(s, JOBS, round % 3 == 0 ? UINT64_MAX : round % 3 == 1 ? 0 : most.total * 2 / 3, &p);
        MUST(dtx_train_step(s->u.base, jobs, n, r, &e));
        for (int k = 0; k < n; k++) {
            ck_assert_msg(r[k].failed == 0, "%s", r[k].error.msg);
            left -= r[k].done;
            done[which[k]] = r[k].done;
        }
    }
    for (int i = 0; i < JOBS; i++) {
        size_t was = held, n;
        float *want = alone(i, &n);
        held = was; /* alone counts from 0 */
        ck_assert_msg(!memcmp(s->jobs[i]->w, want, n * sizeof *want), "job %d among 32", i);
        free(want);
    }
    set_done(s);
}
END_TEST

/* The CPU's operations take their scratch elsewhere, so the device is asked for exactly what was planned, but
 * for what the plan counts for the tables of packs. */
static void expect_planned(struct set *s, int n, const struct dtx_plan *p, size_t before)
{
    uint64_t used = held - before, planned = p->adapters + p->activations;
    ck_assert_msg(used == planned, "planned %llu, used %llu (%d jobs, %d rows, %d layers again)",
                  (unsigned long long)planned, (unsigned long long)used, n, p->rows, p->recompute);
    ck_assert_msg((double)p->total <= 1.03 * (double)used + 256.0 * p->rows, "%llu of %llu",
                  (unsigned long long)p->total, (unsigned long long)used);
}

START_TEST(the_plan_is_what_is_used)
{
    static const int counts[] = {1, 3, 8, JOBS};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        int n = counts[k];
        struct set *s = set_of(0, n, 1);
        uint64_t states = 0;
        for (int i = 0; i < n; i++)
            states += 4 * s->jobs[i]->n * (s->jobs[i]->params.optimizer == DTX_SGD ? 2 : 4);
        size_t base = held - states;
        ck_assert_uint_eq(base, dtx_base_held(s->u.base));
        ck_assert_uint_eq(base, dtx_base_plan(s->u.device, &s->u.base->config));
        struct dtx_plan p, least;
        plan_of(s, n, 0, &least);
        expect_planned(s, n, &least, base);
        ck_assert_int_eq(least.recompute, model.layers - 1);
        plan_of(s, n, UINT64_MAX, &p);
        expect_planned(s, n, &p, base);
        ck_assert(p.keep);
        plan_of(s, n, 2 * p.total - 1, &p); /* norms and swiglu are not kept at the cost of half of it */
        expect_planned(s, n, &p, base);
        ck_assert_int_eq(p.recompute, 0);
        ck_assert(!p.keep);
        struct dtx_step_result r[JOBS];
        peak = 0;
        asked = 0;
        for (int step = 0; step < 3; step++)
            MUST(dtx_train_step(s->u.base, s->jobs, n, r, &e));
        ck_assert_int_eq(asked, 0);
        ck_assert_uint_eq(dtx_base_held(s->u.base), base + p.activations);
        plan_of(s, 0, UINT64_MAX, &p); /* no jobs: the workspace goes */
        ck_assert_uint_eq(p.total, 0);
        ck_assert_uint_eq(held, base + states);
        set_done(s);
    }
}
END_TEST

/* With every byte less than the plan needs, one more layer is computed again, and never one too many. */
START_TEST(the_least_recompute_that_fits)
{
    struct set *s = set_of(0, 6, 1);
    struct dtx_plan p, smaller;
    ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, UINT64_MAX, &p), 0);
    uint64_t budget = 2 * p.total - 1;
    for (int r = 0; r < model.layers; r++) {
        ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, budget, &p), 0);
        ck_assert_int_eq(p.recompute, r);
        ck_assert_int_eq(p.layers, model.layers);
        ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, p.total, &smaller), 0);
        ck_assert_int_eq(smaller.recompute, r);
        budget = p.total - 1;
    }
    /* then packs of one chunk, of which fewer layers must be computed again */
    ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, budget, &smaller), 0);
    ck_assert_int_lt(smaller.rows, p.rows);
    int rc = dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, 0, &p);
    ck_assert_int_eq(rc, -ENOSPC);
    rc = dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, p.total - 1, &smaller);
    ck_assert_int_eq(rc, -ENOSPC);
    rc = dtx_plan_make(s->u.device, &s->u.base->config, s->sizes, 6, p.total, &smaller);
    ck_assert_int_eq(rc, 0);
    set_done(s);
}
END_TEST

/* Packs get smaller before layers are computed twice. */
START_TEST(smaller_packs_come_first)
{
    struct set *s = set_of(0, 1, 1);
    struct dtx_job_size big[JOBS];
    struct dtx_plan p, q;
    for (int i = 0; i < JOBS; i++)
        big[i] =
            (struct dtx_job_size){.rank = 8, .targets = 127, .moments = true, .tokens = 500, .longest = 500};
    ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, big, JOBS, UINT64_MAX, &p), 0);
    ck_assert_int_eq(dtx_plan_make(s->u.device, &s->u.base->config, big, JOBS, 2 * p.total - 1, &p), 0);
    ck_assert_int_eq(p.rows, plain.pack_rows);
    ck_assert_int_eq(
        dtx_plan_make(s->u.device, &s->u.base->config, big, JOBS, p.adapters + p.activations / 2, &q), 0);
    ck_assert_int_lt(q.rows, p.rows);
    ck_assert_int_ge(q.rows, plain.pack_rows / 4);
    ck_assert_int_eq(q.recompute, 0);
    ck_assert_int_eq(
        dtx_plan_make(s->u.device, &s->u.base->config, big, JOBS, p.adapters + p.activations / 6, &q), 0);
    ck_assert_int_eq(q.rows, plain.pack_rows / 4);
    ck_assert_int_gt(q.recompute, 0);
    set_done(s);
}
END_TEST

/* ---- a device that keeps masks: something in their place, as far behind h as CUDA's may lie ---- */

static uint8_t *masks_of(const struct op_pack *p, const struct op_linear *l, const float *h, size_t *n)
{
    size_t rows = (size_t)l->n_parts * (size_t)p->rows, rank = (size_t)(p->max_rank + 15) / 16 * 16;
    *n = pack_drops(p) ? rows * mask_bytes(l->in) : 0;
    return (uint8_t *)(h + rows * rank);
}

static int mark_of(const struct op_linear *l)
{
    return 1 + l->layer * DTX_TARGETS + l->part[0].target;
}

static void marking_linear(struct op_dev *d, const struct op_pack *p, const struct op_linear *l,
                           const void *x, const void *add, void *y, float *h)
{
    size_t n;
    uint8_t *m = masks_of(p, l, h, &n);
    plain.linear(d, p, l, x, add, y, h);
    memset(m, mark_of(l), n);
}

static void marking_linear_back(struct op_dev *d, const struct op_pack *p, const struct op_linear *l,
                                const void *dy, const void *x, const float *h, void *dx)
{
    size_t n;
    const uint8_t *m = masks_of(p, l, h, &n);
    for (size_t i = 0; i < n; i++)
        ck_assert_int_eq(m[i], mark_of(l));
    plain.linear_back(d, p, l, dy, x, h, dx);
}

/* Two jobs, the first with dropout. */
static struct set *marked_set(void)
{
    struct set *s = set_of(3, 2, 1);
    ck_assert(s->sizes[0].dropout && !s->sizes[1].dropout);
    counting.keeps_masks = true;
    counting.linear = marking_linear;
    counting.linear_back = marking_linear_back;
    return s;
}

/* Bytes that masks add to a workspace as planned. */
static size_t masks_planned(const struct dtx_plan *p)
{
    size_t down = mask_bytes(model.ffn), layer = 3 * mask_bytes(model.hidden) +
                                                 mask_bytes(model.heads * model.head_dim) +
                                                 2 * mask_bytes(model.hidden) + down;
    size_t again = (size_t)p->recompute;
    return (size_t)p->rows * (((size_t)model.layers - again) * layer + again * down);
}

/* Every layer's masks are there in backward, whatever is computed again, and nothing else lies there. */
START_TEST(masks_have_room_of_their_own)
{
    size_t n[2];
    float *want[2] = {alone(3, &n[0]), alone(4, &n[1])};
    for (int r = -1; r < model.layers; r++) {
        struct set *s = marked_set();
        struct dtx_step_result res[2];
        struct dtx_plan p, without;
        size_t base = held;
        plan_of(s, 2, UINT64_MAX, &p);
        ck_assert(p.masks);
        p.recompute = r < 0 ? 0 : r;
        p.keep = r < 0;
        MUST(dtx_base_plan_training(s->u.base, &p, &e));
        size_t with = held - base;
        without = p;
        without.masks = false;
        MUST(dtx_base_plan_training(s->u.base, &without, &e));
        size_t more = with - (held - base), slack = 256 * H_COUNT * (size_t)model.layers;
        ck_assert_uint_ge(more + slack, masks_planned(&p));
        ck_assert_uint_le(more, masks_planned(&p) + slack);
        MUST(dtx_base_plan_training(s->u.base, &p, &e));
        ck_assert_uint_eq(held - base, with);
        asked = 0;
        do {
            MUST(dtx_train_step(s->u.base, s->jobs, 2, res, &e));
            ck_assert(!res[0].failed && !res[1].failed);
        } while (!res[0].done || !res[1].done);
        ck_assert_int_eq(asked, 0);
        for (int i = 0; i < 2; i++)
            ck_assert_mem_eq(s->jobs[i]->w, want[i], n[i] * sizeof *want[i]);
        set_done(s);
    }
    free(want[0]);
    free(want[1]);
}
END_TEST

/* With masks it is still what is used, and jobs without dropout pay nothing for them. */
START_TEST(the_plan_counts_masks)
{
    struct set *s = marked_set();
    struct dtx_plan p, dry;
    size_t base = dtx_base_held(s->u.base);
    plan_of(s, 2, UINT64_MAX, &p);
    ck_assert(p.masks);
    expect_planned(s, 2, &p, base);
    ck_assert_uint_eq(dtx_base_training_bytes(s->u.base), p.activations);
    s->sizes[0].dropout = false;
    plan_of(s, 2, UINT64_MAX, &dry);
    ck_assert(!dry.masks);
    ck_assert_uint_gt(p.activations, dry.activations);
    expect_planned(s, 2, &dry, base);
    counting.keeps_masks = false; /* as the CPU */
    s->sizes[0].dropout = true;
    plan_of(s, 2, UINT64_MAX, &p);
    ck_assert(!p.masks);
    ck_assert_uint_eq(p.activations, dry.activations);
    set_done(s);
}
END_TEST

/* Without a plan the workspace gets room for masks with the first job that has dropout, and keeps it. */
START_TEST(masks_come_with_the_first_dropout)
{
    struct set *s = marked_set();
    const struct workspace *w = &s->u.base->spaces[1];
    struct dtx_adapter *a;
    struct dtx_step_result r;
    uint64_t labels;
    double nll;
    MUST(dtx_train_step(s->u.base, s->jobs + 1, 1, &r, &e));
    ck_assert(!w->masks);
    MUST(dtx_train_step(s->u.base, s->jobs, 1, &r, &e));
    ck_assert(w->masks);
    MUST(dtx_train_step(s->u.base, s->jobs + 1, 1, &r, &e));
    ck_assert(w->masks);
    MUST(dtx_adapter_from_job(s->jobs[0], &a, &e)); /* its evaluation drops nothing */
    MUST(dtx_eval_rows(s->u.base, a, &s->rows[0], &nll, &labels, &e));
    ck_assert(!s->u.base->spaces[0].masks);
    dtx_adapter_free(a);
    set_done(s);
}
END_TEST

/* Evaluation, prompts and answers ask for their own cache or copy alone, which the plan counts. */
START_TEST(serving_asks_for_nothing_more)
{
    struct set *s = set_of(3, 1, 1);
    struct dtx_adapter *a;
    struct dtx_seq *seqs[8];
    struct dtx_sampling how = {.max_new_tokens = 12, .top_p = 1};
    size_t before = held;
    uint64_t labels;
    double nll;
    MUST(dtx_adapter_from_job(s->jobs[0], &a, &e));
    ck_assert_uint_eq(held - before, dtx_adapter_bytes(a));
    before = held;
    for (int i = 0; i < 8; i++)
        MUST(dtx_seq_new(s->u.base, a, NULL, s->rows[0].ids, 5, &how, &seqs[i], &e));
    ck_assert_uint_ge(held - before, 8 * dtx_cache_bytes(s->u.device, &s->u.base->config, 17));
    asked = 0;
    MUST(dtx_eval_rows(s->u.base, a, &s->rows[0], &nll, &labels, &e));
    while (dtx_seq_finish(seqs[7]) == DTX_RUNNING)
        MUST(dtx_seq_step(s->u.base, seqs, 8, &e));
    ck_assert_int_eq(asked, 0);
    for (int i = 0; i < 8; i++)
        dtx_seq_free(seqs[i]);
    dtx_adapter_free(a);
    ck_assert_uint_gt(labels, 0);
    set_done(s);
}
END_TEST

static void answer(struct util_base *u, const int32_t *prompt, size_t asked_bytes, int32_t out[12])
{
    struct dtx_sampling how = {.max_new_tokens = 12, .top_p = 1};
    struct dtx_seq *seq;
    size_t n;
    MUST(dtx_seq_new(u->base, NULL, NULL, prompt, 5, &how, &seq, &e));
    for (int step = 0; dtx_seq_finish(seq) == DTX_RUNNING; step++) {
        struct dtx_err e = {0};
        most = asked_bytes;
        if (step == 4 && asked_bytes < SIZE_MAX)
            ck_assert_int_eq(base_need_logits(u->base, SERVE_LOGITS + 1, &e), -ENOMEM);
        most = SIZE_MAX;
        MUST(dtx_seq_step(u->base, &seq, 1, &e));
    }
    memcpy(out, dtx_seq_tokens(seq, &n), 12 * sizeof *out);
    ck_assert_uint_eq(n, 12);
    dtx_seq_free(seq);
}

/* Where there is no memory for more logits, answers that are being made do not go on in those that were given
 * back. */
START_TEST(no_room_for_logits)
{
    static const int32_t prompt[5] = {3, 14, 15, 92, 65};
    struct util_base u = counted_base(&model, 1);
    int32_t want[12], got[12];
    answer(&u, prompt, SIZE_MAX, want);
    unsigned moved = u.base->moved;
    answer(&u, prompt, 64, got);
    ck_assert_uint_gt(u.base->moved, moved);
    ck_assert_mem_eq(want, got, sizeof want);
    util_base_done(&u);
}
END_TEST

/* A model that a device's attention is not built for is refused in words: an operation that cannot run would
 * fail the device for all who use it. */
START_TEST(heads_that_the_device_cannot_have)
{
    struct util_base u = counted_base(&model, 1);
    struct dtx_base *other = NULL;
    struct dtx_err e = {0};
    counting.head_most = 8;
    ck_assert_int_eq(dtx_base_load(u.device, u.dir, "model", &other, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "heads have 16 values"));
    counting.head_most = 128;
    counting.head_step = 12; /* 16 is no multiple of it */
    ck_assert_int_eq(dtx_base_load(u.device, u.dir, "model", &other, &e), -EINVAL);
    counting.head_step = 8;
    MUST(dtx_base_load(u.device, u.dir, "model", &other, &e));
    dtx_base_free(other);
    util_base_done(&u);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine_plan");
    TCase *c = tcase_create("plan");
    tcase_set_timeout(c, 300);
    tcase_add_test(c, recompute_changes_no_byte);
    tcase_add_test(c, thirty_two_together_are_as_alone);
    tcase_add_test(c, the_plan_is_what_is_used);
    tcase_add_test(c, the_least_recompute_that_fits);
    tcase_add_test(c, smaller_packs_come_first);
    tcase_add_test(c, masks_have_room_of_their_own);
    tcase_add_test(c, the_plan_counts_masks);
    tcase_add_test(c, masks_come_with_the_first_dropout);
    tcase_add_test(c, serving_asks_for_nothing_more);
    tcase_add_test(c, no_room_for_logits);
    tcase_add_test(c, heads_that_the_device_cannot_have);
    suite_add_tcase(s, c);
    return util_main(s);
}
