/* Training as a whole: gradients of the model, accumulation, packing, schedules, windows, epochs, dropout. */
#include "tests/unit/engine_util.h"

static struct util_model model = {.layers = 3,
                                  .hidden = 48,
                                  .ffn = 70,
                                  .heads = 4,
                                  .kv_heads = 2,
                                  .head_dim = 12,
                                  .vocab = 101,
                                  .bias = true};

static struct dtx_job *new_job(struct dtx_base *b, const struct dtx_train_params *p,
                               const struct dtx_rows *rows)
{
    struct dtx_job *j;
    MUST(dtx_job_new(b, p, rows, -1, NULL, &j, &e));
    return j;
}

/* B is zero at first, so that A has no gradient: make it random. */
static void randomize(struct dtx_job *j)
{
    for (size_t i = 0; i < j->n; i++)
        j->w[i] += 0.1f * util_random(31, i);
}

static struct dtx_step_result step(struct dtx_job *j)
{
    struct dtx_step_result r;
    MUST(dtx_train_step(j->base, &j, 1, &r, &e));
    ck_assert_msg(r.failed == 0, "%s", r.error.msg);
    return r;
}

/* A step that leaves the weights alone: its gradient is in j->g, its loss is returned. */
static double probe(struct dtx_job *j)
{
    float *w = util_weights(j);
    j->params.learning_rate = 0;
    j->params.weight_decay = 0;
    double loss = step(j).loss;
    ck_assert_mem_eq(j->w, w, j->n * sizeof *w);
    free(w);
    j->steps = 0; /* the same window again */
    return loss;
}

static void check_model_gradient(bool dropout)
{
    struct util_base u = util_base_of(&model, 2);
    struct dtx_train_params p = util_params();
    struct dtx_rows rows = util_rows(3, 6, 12, 90, model.vocab);
    p.batch_size = 2;
    p.grad_acc_steps = 3;
    p.rank = 3;
    p.dropout = dropout ? 0.2 : 0;
    struct dtx_job *j = new_job(u.base, &p, &rows);
    randomize(j);
    probe(j);
    float *g = malloc(j->n * sizeof *g), *w = util_weights(j);
    memcpy(g, j->g, j->n * sizeof *g);
    for (int t = 0; t < 7 * model.layers * 2; t++) { /* every matrix of the adapter in a random direction */
        int layer = t / 14, target = t / 2 % 7, which = t % 2;
        size_t at = lora_offset(&u.base->dims, 0x7f, 3, layer, target),
               a = 3 * (size_t)u.base->dims.in[target];
        size_t n = which ? 3 * (size_t)u.base->dims.out[target] : a;
        at += which ? a : 0;
        double got = 0, f[2], size = 0;
        for (int side = 0; side < 2; side++) {
            for (size_t i = 0; i < n; i++)
                j->w[at + i] = w[at + i] + (side ? -1 : 1) * 4e-3f * util_random((uint64_t)t, i);
            f[side] = probe(j);
        }
        for (size_t i = 0; i < n; i++) {
            got += (double)g[at + i] * (double)util_random((uint64_t)t, i);
            size += (double)g[at + i] * (double)g[at + i];
        }
        double want = (f[0] - f[1]) / 8e-3;
        ck_assert_msg(size > 0, "layer %d %s %c: no gradient", layer, dtx_target_names[target],
                      which ? 'B' : 'A');
        ck_assert_msg(fabs(got - want) < 0.01 * sqrt(size / 3) + 2e-4,
                      "layer %d %s %c: backward %.6g, differences %.6g", layer, dtx_target_names[target],
                      which ? 'B' : 'A', got, want);
        memcpy(j->w, w, j->n * sizeof *w);
    }
    free(g);
    free(w);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}

START_TEST(model_gradient)
{
    check_model_gradient(false);
}
END_TEST

START_TEST(model_gradient_dropout)
{
    check_model_gradient(true);
}
END_TEST

static double distance(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        d += pow((double)a[i] - (double)b[i], 2);
        s += pow((double)b[i], 2);
    }
    return sqrt(d / s);
}

/* One window of 8 rows as 8 x 1, 1 x 8 and 2 x 4: packed side by side, or one at a time. */
START_TEST(accumulation)
{
    static const int cut[][2] = {{8, 1}, {1, 8}, {2, 4}};
    struct util_base u = util_base_of(&model, 2);
    struct dtx_rows rows = util_rows(4, 8, 5, 120, model.vocab);
    float *g = NULL;
    double loss = 0;
    for (int i = 0; i < 3; i++) {
        struct dtx_train_params p = util_params();
        p.batch_size = cut[i][0];
        p.grad_acc_steps = cut[i][1];
        p.dropout = 0.1;
        struct dtx_job *j = new_job(u.base, &p, &rows);
        ck_assert_int_eq(dtx_job_steps_per_epoch(j), 1);
        randomize(j);
        double l = probe(j);
        if (!g) {
            g = malloc(j->n * sizeof *g);
            memcpy(g, j->g, j->n * sizeof *g);
            loss = l;
        }
        ck_assert_double_eq_tol(l, loss, 1e-5 * loss);
        ck_assert_msg(distance(j->g, g, j->n) < 1e-5, "%d x %d: gradients differ by %.3g", cut[i][0],
                      cut[i][1], distance(j->g, g, j->n));
        dtx_job_free(j);
    }
    free(g);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

/* No cross-talk: changing one row's tokens changes no other row's loss.  And no loss from masked tokens. */
START_TEST(packing)
{
    struct util_base u = util_base_of(&model, 2);
    struct dtx_rows rows = util_rows(5, 5, 30, 60, model.vocab), one[5];
    double sum, all = 0, together;
    uint64_t n, count = 0;
    MUST(dtx_eval_rows(u.base, NULL, &rows, &together, &n, &e));
    for (uint32_t i = 0; i < 5; i++) {
        one[i] = (struct dtx_rows){.ids = rows.ids, .labels = rows.labels, .start = rows.start + i, .n = 1};
        MUST(dtx_eval_rows(u.base, NULL, &one[i], &sum, &n, &e));
        all += sum;
        count += n;
    }
    ck_assert_double_eq_tol(together, all, 1e-5 * all);
    MUST(dtx_eval_rows(u.base, NULL, &rows, &together, &n, &e));
    ck_assert_int_eq(count, n);
    double before, after;
    MUST(dtx_eval_rows(u.base, NULL, &one[2], &before, &n, &e));
    for (uint64_t k = rows.start[1]; k < rows.start[2]; k++)
        rows.ids[k] = (rows.ids[k] + 1) % model.vocab;
    for (uint64_t k = rows.start[3]; k < rows.start[4]; k++)
        rows.labels[k] = -100;
    MUST(dtx_eval_rows(u.base, NULL, &rows, &together, &n, &e));
    all = 0;
    for (uint32_t i = 0; i < 5; i++) {
        MUST(dtx_eval_rows(u.base, NULL, &one[i], &sum, &n, &e));
        ck_assert(i != 3 || (sum == 0 && n == 0));
        after = i == 2 ? sum : 0;
        ck_assert(i != 2 || after == before);
        all += sum;
    }
    ck_assert_double_eq_tol(together, all, 1e-5 * all);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(schedules)
{
    struct dtx_train_params p = util_params();
    p.batch_size = 4;
    p.grad_acc_steps = 3;
    p.epochs = 2.5;
    ck_assert_int_eq(schedule_steps_per_epoch(&p, 41), 4); /* 11 batches */
    ck_assert_int_eq(schedule_total(&p, 41), 10);
    ck_assert_int_eq(schedule_warmup(&p, 10), 1);
    p.max_steps = 7;
    ck_assert_int_eq(schedule_total(&p, 41), 7);
    p.learning_rate = 2;
    p.warmup_ratio = 0.2;
    ck_assert_int_eq(schedule_warmup(&p, 12), 3);
    ck_assert_double_eq(schedule_lr(&p, 0, 12, 3), 0);
    ck_assert_double_eq_tol(schedule_lr(&p, 2, 12, 3), 2 * 2 / 3.0, 1e-15);
    ck_assert_double_eq(schedule_lr(&p, 3, 12, 3), 2);
    ck_assert_double_eq_tol(schedule_lr(&p, 6, 12, 3), 1 + cos(M_PI / 3), 1e-15);
    p.schedule = DTX_LINEAR;
    ck_assert_double_eq_tol(schedule_lr(&p, 6, 12, 3), 2 * 6 / 9.0, 1e-15);
    p.schedule = DTX_CONSTANT;
    ck_assert_int_eq(schedule_warmup(&p, 12), 0);
    ck_assert_double_eq(schedule_lr(&p, 0, 12, 0), 2);
}
END_TEST

/* Every epoch takes every row once; orders differ by epoch and seed; a window without labels trains nothing.
 */
START_TEST(windows)
{
    struct util_base u = util_base_of(&model, 1);
    struct dtx_rows rows = util_rows(6, 23, 5, 9, model.vocab);
    struct dtx_train_params p = util_params();
    p.grad_acc_steps = 2;
    struct dtx_job *j = new_job(u.base, &p, &rows);
    uint32_t first[2] = {0, 0};
    ck_assert_int_eq(dtx_job_steps_per_epoch(j), 3);
    for (int epoch = 0; epoch < 2; epoch++) {
        int seen[23] = {0}, batches = 0;
        for (int k = 0; k < 3; k++) {
            struct window w;
            MUST(window_make(j, epoch * 3 + k, &w, &e));
            first[epoch] = first[epoch] * 31 + w.rows[0];
            for (uint32_t i = 0; i < w.n; i++)
                seen[w.rows[i]]++;
            batches += (int)w.n_chunks;
            window_release(&w);
        }
        for (int i = 0; i < 23; i++)
            ck_assert_int_eq(seen[i], 1);
        ck_assert_int_eq(batches, 6);
    }
    ck_assert_int_ne(first[0], first[1]);
    dtx_job_free(j);

    p.shuffle = false;
    for (uint64_t k = rows.start[8]; k < rows.start[16]; k++)
        rows.labels[k] = -100;
    j = new_job(u.base, &p, &rows);
    struct dtx_step_result r = step(j);
    ck_assert(!r.skipped && r.step == 1 && r.label_tokens > 0);
    float *w = util_weights(j);
    r = step(j);
    ck_assert(r.skipped && r.step == 2 && r.label_tokens == 0 && isnan(r.loss));
    ck_assert_mem_eq(w, j->w, j->n * sizeof *w);
    ck_assert_int_eq(j->updates, 1);
    r = step(j);
    ck_assert(!r.skipped && r.step == 3 && r.epoch == 1.0 && j->updates == 2);
    ck_assert(memcmp(w, j->w, j->n * sizeof *w) != 0);
    free(w);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

/* Chunks of a batch larger than CHUNK_TOKENS add up to the whole, and jobs beyond pack_rows still train. */
START_TEST(large_batches)
{
    struct util_base u = util_base_of(&model, 2);
    struct dtx_rows rows = util_rows(7, 24, 380, 500, model.vocab);
    struct dtx_train_params p = util_params();
    p.batch_size = 24;
    p.targets = 1u << DTX_Q;
    p.rank = 1;
    struct dtx_job *j[3];
    struct dtx_step_result r[3];
    struct window w;
    double sum;
    uint64_t n;
    for (int i = 0; i < 3; i++)
        j[i] = new_job(u.base, &p, &rows);
    MUST(window_make(j[0], 0, &w, &e));
    ck_assert_int_ge(w.n_chunks, 2);
    for (uint32_t i = 0; i < w.n_chunks; i++) {
        uint32_t tokens = 0;
        for (uint32_t k = 0; k < w.chunks[i].n; k++)
            tokens += row_trained(&rows, w.rows[w.chunks[i].first + k]);
        ck_assert_int_le(tokens, CHUNK_TOKENS);
        ck_assert_int_le(tokens, largest_chunk(&p, &rows));
    }
    window_release(&w);
    MUST(dtx_train_step(u.base, j, 3, r, &e));
    MUST(dtx_eval_rows(u.base, NULL, &rows, &sum, &n, &e)); /* B is 0: the adapters change nothing yet */
    ck_assert_int_eq(r[2].label_tokens, n);
    ck_assert_double_eq_tol(r[2].loss, sum / (double)n, 1e-5);
    ck_assert_double_eq(r[0].loss, r[2].loss);
    ck_assert_mem_eq(j[0]->w, j[2]->w, j[0]->n * sizeof(float));
    for (int i = 0; i < 3; i++)
        dtx_job_free(j[i]);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

/* Training must learn: twelve rows by heart. */
START_TEST(learns)
{
    struct util_base u = util_base_of(&model, 2);
    struct dtx_rows rows = util_rows(8, 12, 6, 10, model.vocab);
    struct dtx_train_params p = util_params();
    p.epochs = 60;
    p.dropout = 0.05;
    p.rank = 8;
    p.alpha = 16;
    struct dtx_job *j = new_job(u.base, &p, &rows);
    struct dtx_step_result r = step(j);
    double first = r.loss;
    while (!r.done)
        r = step(j);
    ck_assert_int_eq(r.step, 180);
    ck_assert_msg(r.loss < 0.2 * first, "loss %.3f at first, %.3f at the end", first, r.loss);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(wrong_jobs)
{
    struct util_base u = util_base_of(&model, 1);
    struct dtx_rows rows = util_rows(9, 4, 5, 9, model.vocab);
    struct dtx_job *j;
    struct dtx_err e;
    for (int i = 0; i < 12; i++) {
        struct dtx_train_params p = util_params();
        switch (i) {
        case 0:
            p.rank = 0;
            break;
        case 1:
            p.rank = 100000;
            break;
        case 2:
            p.targets = 0;
            break;
        case 3:
            p.targets = 1u << 7;
            break;
        case 4:
            p.batch_size = 0;
            break;
        case 5:
            p.grad_acc_steps = -1;
            break;
        case 6:
            p.dropout = 1;
            break;
        case 7:
            p.learning_rate = NAN;
            break;
        case 8:
            p.warmup_ratio = 2;
            break;
        case 9:
            p.epochs = 0;
            break;
        case 10:
            p.alpha = INFINITY;
            break;
        case 11:
            p.max_grad_norm = -1;
            break;
        }
        ck_assert_int_eq(dtx_job_new(u.base, &p, &rows, -1, NULL, &j, &e), -EINVAL);
    }
    struct dtx_train_params p = util_params();
    rows.ids[3] = model.vocab;
    ck_assert_int_eq(dtx_job_new(u.base, &p, &rows, -1, NULL, &j, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "row 1"));
    struct dtx_rows none = {.start = rows.start, .ids = rows.ids, .labels = rows.labels};
    ck_assert_int_eq(dtx_job_new(u.base, &p, &none, -1, NULL, &j, &e), -EINVAL);
    struct dtx_rows longer = util_rows(9, 1, 600, 600, model.vocab);
    ck_assert_int_eq(dtx_job_new(u.base, &p, &longer, -1, NULL, &j, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "positions"));
    util_rows_free(&longer);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine training");
    TCase *c = tcase_create("train");
    tcase_set_timeout(c, 120);
    tcase_add_test(c, model_gradient);
    tcase_add_test(c, model_gradient_dropout);
    tcase_add_test(c, accumulation);
    tcase_add_test(c, packing);
    tcase_add_test(c, schedules);
    tcase_add_test(c, windows);
    tcase_add_test(c, large_batches);
    tcase_add_test(c, learns);
    tcase_add_test(c, wrong_jobs);
    suite_add_tcase(s, c);
    return util_main(s);
}
