/* Files of the engine: saved states, PEFT folders; hostile ones are refused and change nothing. */
#include "tests/unit/engine_util.h"

static struct dtx_job *job_of(struct util_base *u, const struct dtx_rows *rows,
                              const struct dtx_train_params *p, int steps)
{
    struct dtx_job *j;
    struct dtx_step_result r;
    MUST(dtx_job_new(u->base, p, rows, -1, NULL, &j, &e));
    for (int i = 0; i < steps; i++)
        MUST(dtx_train_step(u->base, &j, 1, &r, &e));
    return j;
}

static void refused(struct dtx_job *j, int dir, const char *path, const char *words)
{
    struct dtx_err e = {0};
    float *w = util_weights(j);
    int rc = dtx_job_restore(j, dir, path, &e);
    ck_assert_msg(rc < 0 && rc == e.code, "%s was accepted", path);
    ck_assert_msg(!words || strstr(e.msg, words), "message: %s", e.msg);
    ck_assert_mem_eq(w, j->w, j->n * sizeof *w);
    ck_assert_int_eq(j->steps, 0);
    free(w);
}

static void write_bytes(int dir, const char *path, const struct buf *b, size_t n)
{
    MUST(fd_replace_file(dir, path, b->p, n, 0644, &e));
}

START_TEST(save_restore)
{
    struct util_base u = util_base_of(&util_small, 1);
    struct dtx_rows rows = util_rows(1, 9, 5, 30, util_small.vocab);
    for (int kind = DTX_ADAMW; kind <= DTX_SGD; kind++) {
        struct dtx_train_params p = util_params();
        p.optimizer = (enum dtx_optimizer)kind;
        struct dtx_job *a = job_of(&u, &rows, &p, 4), *b = job_of(&u, &rows, &p, 0);
        MUST(dtx_job_save(a, u.dir, "state", &e));
        MUST(dtx_job_restore(b, u.dir, "state", &e));
        ck_assert_int_eq(dtx_job_steps_done(b), 4);
        ck_assert_mem_eq(a->w, b->w, a->n * sizeof(float));
        ck_assert(kind == DTX_SGD || memcmp(a->m, b->m, a->n * sizeof(float)) == 0);
        ck_assert(kind == DTX_SGD || memcmp(a->v, b->v, a->n * sizeof(float)) == 0);
        dtx_job_free(a);
        dtx_job_free(b);
    }
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(hostile_states)
{
    struct util_base u = util_base_of(&util_small, 1);
    struct dtx_rows rows = util_rows(1, 9, 5, 30, util_small.vocab);
    struct dtx_train_params p = util_params();
    struct dtx_job *a = job_of(&u, &rows, &p, 3), *j = job_of(&u, &rows, &p, 0);
    struct buf b = BUF_INIT;
    MUST(dtx_job_save(a, u.dir, "state", &e));
    MUST(fd_read_file(u.dir, "state", 1 << 24, &b, &e));
    refused(j, u.dir, "absent", NULL);
    write_bytes(u.dir, "x", &b, 0);
    refused(j, u.dir, "x", "not a saved state");
    write_bytes(u.dir, "x", &b, 50);
    refused(j, u.dir, "x", "not a saved state");
    write_bytes(u.dir, "x", &b, b.len - 1);
    refused(j, u.dir, "x", "damaged");
    size_t flips[] = {0, 9, 75, 90, 200, b.len / 2, b.len - 70, b.len - 1};
    for (size_t i = 0; i < sizeof flips / sizeof *flips; i++) {
        b.p[flips[i]] ^= 1;
        write_bytes(u.dir, "x", &b, b.len);
        refused(j, u.dir, "x", NULL);
        b.p[flips[i]] ^= 1;
    }
    struct buf longer = BUF_INIT;
    buf_add(&longer, b.p, b.len);
    buf_adds(&longer, "more");
    write_bytes(u.dir, "x", &longer, longer.len);
    refused(j, u.dir, "x", NULL);
    dtx_job_free(a);
    p.learning_rate *= 2; /* another job */
    a = job_of(&u, &rows, &p, 0);
    refused(a, u.dir, "state", "other parameters");
    dtx_job_free(a);
    p = util_params();
    rows.ids[3] ^= 1;
    a = job_of(&u, &rows, &p, 0);
    refused(a, u.dir, "state", "other parameters");
    dtx_job_free(a);
    MUST(dtx_job_restore(j, u.dir, "state", &e)); /* after all that */
    ck_assert_int_eq(dtx_job_steps_done(j), 3);
    dtx_job_free(j);
    buf_release(&b);
    buf_release(&longer);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

/* Out to a PEFT folder and in again, as an adapter and as the start of the next job. */
START_TEST(peft_round_trip)
{
    struct util_base u = util_base_of(&util_small, 1);
    struct dtx_rows rows = util_rows(1, 9, 5, 30, util_small.vocab);
    struct dtx_train_params p = util_params(), q;
    p.targets = 1u << DTX_K | 1u << DTX_O | 1u << DTX_DOWN;
    p.rank = 5;
    p.alpha = 7.5;
    p.rslora = true;
    struct dtx_job *j = job_of(&u, &rows, &p, 4), *k;
    struct dtx_adapter *a, *b;
    MUST(fd_mkdirs(u.dir, "out", 0755, &e));
    MUST(dtx_job_export(j, u.dir, "out", "a \"base\"", &e));
    MUST(dtx_adapter_check(&u.base->config, u.dir, "out", &q, &e));
    ck_assert(q.rank == 5 && q.alpha == 7.5 && q.rslora && q.targets == p.targets);
    MUST(dtx_adapter_load(u.base, u.dir, "out", &a, &e));
    MUST(dtx_adapter_from_job(j, &b, &e));
    ck_assert_mem_eq(a->w, j->w, j->n * sizeof(float));
    ck_assert_mem_eq(b->w, j->w, j->n * sizeof(float));
    ck_assert_float_eq(a->scale, (float)(7.5 / sqrt(5)));
    ck_assert_float_eq(a->scale, b->scale);
    MUST(dtx_job_new(u.base, &p, &rows, u.dir, "out", &k, &e));
    ck_assert_mem_eq(k->w, j->w, j->n * sizeof(float));
    dtx_job_free(k);
    struct dtx_err e;
    p.rank = 6;
    ck_assert_int_eq(dtx_job_new(u.base, &p, &rows, u.dir, "out", &k, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "rank 5"));
    json_t *c = NULL;
    MUST(json_parse_file(u.dir, "out/adapter_config.json", 1 << 20, &c, &e));
    ck_assert_str_eq(json_str(c, "base_model_name_or_path", ""), "a \"base\"");
    ck_assert_str_eq(json_str(c, "task_type", ""), "CAUSAL_LM");
    json_decref(c);
    dtx_adapter_free(a);
    dtx_adapter_free(b);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(wrong_adapters)
{
    static const char ok[] =
        "\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]";
    static const struct {
        const char *config, *words;
    } wrong[] = {
        {"{\"peft_type\":\"IA3\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]}",
         "peft_type"},
        {"{\"peft_type\":\"LORA\",\"r\":\"4\",\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]}",
         "r must"},
        {"{\"peft_type\":\"LORA\",\"r\":99999,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]}",
         "r must"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"target_modules\":[\"q_proj\",\"v_proj\"]}", "lora_alpha"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"lm_head\"]}",
         "lm_head"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[7]}", "not text"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":\".*\"}", "target_modules"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\"]}",
         "has 8 tensors, expected 4"},
        {"{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\",\"o_"
         "proj\"]}",
         "missing"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":8,\"target_modules\":[\"q_proj\",\"v_proj\"]}",
         "shape"},
        {"[]", "object"},
        {"{", NULL},
        {"", NULL},
    };
    struct util_base u = util_base_of(&util_small, 1);
    struct dtx_rows rows = util_rows(1, 9, 5, 30, util_small.vocab);
    struct dtx_train_params p = util_params();
    p.targets = 1u << DTX_Q | 1u << DTX_V;
    struct dtx_job *j = job_of(&u, &rows, &p, 1);
    struct dtx_adapter *a = NULL;
    struct dtx_err e;
    MUST(fd_mkdirs(u.dir, "out", 0755, &e));
    MUST(dtx_job_export(j, u.dir, "out", "base", &e));
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        MUST(fd_replace_file(u.dir, "out/adapter_config.json", wrong[i].config, strlen(wrong[i].config), 0644,
                             &e));
        ck_assert_msg(dtx_adapter_load(u.base, u.dir, "out", &a, &e) < 0, "accepted: %s", wrong[i].config);
        ck_assert_msg(!wrong[i].words || strstr(e.msg, wrong[i].words), "%s: %s", wrong[i].config, e.msg);
    }
    static const char *const extra[] = {"\"use_dora\":true", "\"bias\":\"all\"",
                                        "\"modules_to_save\":[\"lm_head\"]",
                                        "\"rank_pattern\":{\"q_proj\":8}", "\"layers_to_transform\":[0]"};
    char config[512];
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        int n = snprintf(config, sizeof config, "{%s,%s}", ok, extra[i]);
        MUST(fd_replace_file(u.dir, "out/adapter_config.json", config, (size_t)n, 0644, &e));
        ck_assert_msg(dtx_adapter_load(u.base, u.dir, "out", &a, &e) == -EINVAL, "accepted: %s", config);
    }
    int n = snprintf(config, sizeof config, "{%s}", ok);
    MUST(fd_replace_file(u.dir, "out/adapter_config.json", config, (size_t)n, 0644, &e));
    MUST(dtx_adapter_load(u.base, u.dir, "out", &a, &e));
    dtx_adapter_free(a);
    j->w[5] = NAN; /* values that are not finite */
    MUST(dtx_job_export(j, u.dir, "out", "base", &e));
    ck_assert_int_eq(dtx_adapter_load(u.base, u.dir, "out", &a, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "not finite"));
    MUST(fd_replace_file(u.dir, "out/adapter_model.safetensors", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10,
                         0644, &e));
    ck_assert_int_lt(dtx_adapter_load(u.base, u.dir, "out", &a, &e), 0);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(first_values)
{
    struct util_base u = util_base_of(&util_small, 1);
    struct dtx_rows rows = util_rows(1, 4, 5, 9, util_small.vocab);
    struct dtx_train_params p = util_params();
    struct dtx_job *j = job_of(&u, &rows, &p, 0);
    const struct lora_dims *d = &u.base->dims;
    for (int t = 0; t < DTX_TARGETS; t++) {
        const float *a = j->w + lora_offset(d, 0x7f, p.rank, 1, t);
        size_t na = (size_t)(p.rank * d->in[t]), nb = (size_t)(p.rank * d->out[t]);
        double bound = 1 / sqrt(d->in[t]), square = 0;
        for (size_t i = 0; i < na; i++) {
            ck_assert_double_le(fabs((double)a[i]), bound);
            square += (double)a[i] * (double)a[i];
        }
        ck_assert_double_eq_tol(square / (double)na, bound * bound / 3, 0.25 * bound * bound / 3);
        for (size_t i = 0; i < nb; i++)
            ck_assert_float_eq(a[na + i], 0);
    }
    p.seed++;
    struct dtx_job *other = job_of(&u, &rows, &p, 0);
    ck_assert(memcmp(j->w, other->w, j->n * sizeof(float)) != 0);
    dtx_job_free(other);
    dtx_job_free(j);
    util_rows_free(&rows);
    util_base_done(&u);
}
END_TEST

START_TEST(wrong_devices)
{
    struct dtx_device *d;
    struct dtx_err e;
    static const char *const wrong[] = {"gpu", "cuda:", "cuda:x", "cuda:-1", "", "cpu:2"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        ck_assert_int_lt(dtx_device_open(wrong[i], 1, &d, &e), 0);
        ck_assert_int_ne(e.msg[0], 0);
    }
    ck_assert_int_eq(dtx_device_open("cpu", -1, &d, &e), -EINVAL);
    MUST(dtx_device_open("cpu", 0, &d, &e));
    struct dtx_device_info info;
    dtx_device_info(d, &info);
    ck_assert_int_ge(info.threads, 1);
    ck_assert_ptr_nonnull(strstr(info.fingerprint, "OpenBLAS"));
    ck_assert_uint_gt(info.mem_total, info.mem_used);
    dtx_device_close(d);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine files");
    TCase *c = tcase_create("files");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, save_restore);
    tcase_add_test(c, hostile_states);
    tcase_add_test(c, peft_round_trip);
    tcase_add_test(c, wrong_adapters);
    tcase_add_test(c, first_values);
    tcase_add_test(c, wrong_devices);
    suite_add_tcase(s, c);
    return util_main(s);
}
