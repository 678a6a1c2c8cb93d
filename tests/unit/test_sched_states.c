/* The table of states, the names of jobs, paths to objects. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/internal.h"

/* The states that DESIGN gives each object. */
static const struct {
    enum machine m;
    enum state states[12];
} design[] = {
    {M_DATASET, {ST_RECEIVING, ST_FETCHING, ST_CHECKING, ST_READY, ST_REJECTED}},
    {M_SPEC, {ST_RECEIVING, ST_READY, ST_REJECTED}},
    {M_PLUGIN, {ST_RECEIVING, ST_CHECKING, ST_READY, ST_REJECTED}},
    {M_BASE, {ST_RECEIVING, ST_CHECKING, ST_READY, ST_REJECTED}},
    {M_TUNED, {ST_READY}},
    {M_SERVICE, {ST_PENDING, ST_RUNNING, ST_STOPPED, ST_FAILED, ST_REJECTED}},
    {M_EXPERIMENT,
     {ST_RECEIVING, ST_REJECTED, ST_PENDING, ST_PROCESSING, ST_PAUSED, ST_SUCCESS, ST_FAILED, ST_CANCELLED}},
    {M_JOB,
     {ST_INIT, ST_PENDING, ST_FINETUNE, ST_EXPORT, ST_SERVE, ST_SCORE, ST_PAUSED, ST_SUCCESSFUL, ST_FAILED,
      ST_CANCELLED}},
    {M_FINETUNE, {ST_INIT, ST_PENDING, ST_RUNNING, ST_SUCCESSFUL, ST_FAILED}},
    {M_COMPARE, {ST_RECEIVING, ST_PENDING, ST_ANSWERING, ST_DONE, ST_FAILED}},
};

static bool in_design(size_t row, enum state s)
{
    for (int i = 0; i < 12; i++)
        if (design[row].states[i] == s && s != ST_NONE)
            return true;
    return false;
}

/* Every pair leads to a state of that machine or is refused; every state of DESIGN can be reached, no other.
 */
START_TEST(every_pair)
{
    for (size_t row = 0; row < sizeof(design) / sizeof(design[0]); row++) {
        bool reached[ST_COUNT] = {[ST_NONE] = true};
        for (int again = 0; again < ST_COUNT; again++)
            for (int st = 0; st < ST_COUNT; st++)
                for (int ev = 0; ev < EV_COUNT; ev++) {
                    int to = state_next(design[row].m, (enum state)st, (enum event)ev);
                    ck_assert_int_ge(to, -1);
                    ck_assert_int_lt(to, ST_COUNT);
                    if (to < 0)
                        continue;
                    ck_assert_msg(st == ST_NONE || in_design(row, (enum state)st), "%s leaves %s",
                                  machine_name(design[row].m), state_name((enum state)st));
                    ck_assert_msg(to == ST_GONE || in_design(row, (enum state)to), "%s enters %s",
                                  machine_name(design[row].m), state_name((enum state)to));
                    if (reached[st])
                        reached[to] = true;
                }
        for (int st = ST_NONE + 1; st < ST_GONE; st++)
            ck_assert_msg(reached[st] == in_design(row, (enum state)st), "%s: %s",
                          machine_name(design[row].m), state_name((enum state)st));
        for (int ev = 0; ev < EV_COUNT; ev++)
            ck_assert_int_eq(state_next(design[row].m, ST_GONE, (enum event)ev), -1);
    }
}
END_TEST

START_TEST(later_writes)
{
    static const enum machine received[] = {M_DATASET, M_SPEC, M_PLUGIN, M_BASE};

    for (size_t i = 0; i < 4; i++) {
        ck_assert_int_eq(state_next(received[i], ST_READY, EV_WRITE), ST_RECEIVING);
        ck_assert_int_eq(state_next(received[i], ST_REJECTED, EV_RENAME), ST_RECEIVING);
        ck_assert_int_eq(state_next(received[i], ST_READY, EV_DONE), -1);
    }
    ck_assert_int_eq(state_next(M_SPEC, ST_READY, EV_UNLINK), ST_GONE);
    ck_assert_int_eq(state_next(M_DATASET, ST_READY, EV_UNLINK), ST_RECEIVING);
    ck_assert_int_eq(state_next(M_EXPERIMENT, ST_PROCESSING, EV_WRITE), -1);
    ck_assert_int_eq(state_next(M_JOB, ST_SUCCESSFUL, EV_CANCEL), -1);
    ck_assert_int_eq(state_next(M_JOB, ST_SUCCESSFUL, EV_RETRY), -1);
    ck_assert_int_eq(state_next(M_JOB, ST_SCORE, EV_LOST), ST_PENDING);
    ck_assert_int_eq(state_next(M_FINETUNE, ST_SUCCESSFUL, EV_LOST), -1);
}
END_TEST

START_TEST(names_go_both_ways)
{
    for (int st = 0; st < ST_COUNT; st++)
        ck_assert_int_eq(state_by_name(state_name((enum state)st)), st);
    ck_assert_int_eq(state_by_name("NOTHING"), -1);
    for (int ev = 0; ev < EV_COUNT; ev++)
        ck_assert_ptr_nonnull(event_name((enum event)ev));
}
END_TEST

/* ---- names of jobs ---- */

static struct job one_job(const char *group, const char *dataset, const char *model, int number)
{
    struct job j = {.number = number, .seed = 7};

    snprintf(j.paramgroup, sizeof(j.paramgroup), "%s", group);
    snprintf(j.dataset, sizeof(j.dataset), "%s", dataset);
    snprintf(j.model, sizeof(j.model), "%s", model);
    return j;
}

START_TEST(job_names)
{
    struct job j = one_job("lora", "faq", "tuned/first.best", 3);
    struct job_axes none = {0}, all = {true, true, true};
    char name[NAME_CAP];

    job_name(&j, &none, 4, name, sizeof(name));
    ck_assert_str_eq(name, "03-lora");
    job_name(&j, &all, 400, name, sizeof(name));
    ck_assert_str_eq(name, "003-lora-faq-first.best-s7");
    /* 63 bytes at most, cut at a whole character */
    j = one_job("p234567890123456789012345678901234567890123456789012345678\xc3\xa4\xc3\xa4", "d", "m", 12);
    job_name(&j, &all, 20, name, sizeof(name));
    ck_assert_uint_eq(strlen(name), 63);
    ck_assert_int_eq((unsigned char)name[62], 0xa4);
    j = one_job("p2345678901234567890123456789012345678901234567890123456789\xc3\xa4\xc3\xa4", "d", "m", 12);
    job_name(&j, &all, 20, name, sizeof(name));
    ck_assert_uint_eq(strlen(name), 62); /* not in the middle of a character */
    ck_assert_int_eq(name[61], '9');
}
END_TEST

static struct experiment *expand(const char *spec, struct dtx_err *e)
{
    struct experiment *x = calloc(1, sizeof(*x));

    snprintf(x->name, sizeof(x->name), "exp");
    ck_assert_msg(spec_parse(SPEC_EXPERIMENT, "exp.json", spec, strlen(spec), &x->spec, e) == 0, "%s",
                  e->msg);
    jobs_expand(x, e);
    return x;
}

START_TEST(products)
{
    struct dtx_err e = {0};
    struct experiment *x =
        expand("{\"models\":[\"m\"],\"datasets\":[\"a\",\"b\"],\"paramgroups\":[\"p\",\"q\"]}", &e);

    ck_assert_int_eq(e.code, 0);
    ck_assert_int_eq(x->njobs, 4);
    ck_assert_str_eq(x->jobs[0]->name, "01-p-a");
    ck_assert_str_eq(x->jobs[1]->name, "02-q-a");
    ck_assert_str_eq(x->jobs[3]->name, "04-q-b");
    ck_assert(!x->jobs[0]->has_seed);
    experiment_free(x);
    x = expand(
        "{\"jobs\":[{\"model\":\"m\",\"dataset\":\"a\",\"paramgroup\":\"p\",\"overrides\":{\"lora_r\":4}},"
        "{\"name\":\"mine\",\"model\":\"n\",\"dataset\":\"a\",\"paramgroup\":\"p\"}]}",
        &e);
    ck_assert_int_eq(x->njobs, 2);
    ck_assert_str_eq(x->jobs[0]->name, "01-p-m");
    ck_assert_str_eq(x->jobs[1]->name, "mine");
    ck_assert_int_eq(json_integer_value(json_object_get(x->jobs[0]->overrides, "lora_r")), 4);
    experiment_free(x);
}
END_TEST

START_TEST(products_refused)
{
    struct dtx_err e = {0};
    struct buf b = BUF_INIT;
    struct experiment *x;

    x = expand("{\"jobs\":[{\"model\":\"m\",\"dataset\":\"a\",\"paramgroup\":\"p\"},"
               "{\"name\":\"01-p\",\"model\":\"m\",\"dataset\":\"a\",\"paramgroup\":\"p\"}]}",
               &e);
    ck_assert_ptr_nonnull(strstr(e.msg, "is also the name of jobs[0]"));
    experiment_free(x);
    buf_adds(&b, "{\"models\":[\"m\"],\"datasets\":[\"a\"],\"paramgroups\":[\"p\"],\"seeds\":[0");
    for (int i = 1; i < 1001; i++)
        buf_addf(&b, ",%d", i);
    buf_adds(&b, "]}");
    x = expand(b.p, &e);
    ck_assert_ptr_nonnull(strstr(e.msg, "1001 combinations"));
    experiment_free(x);
    buf_release(&b);
}
END_TEST

/* ---- places ---- */

static void check_place(const char *path, enum object_kind kind, const char *name, const char *rest)
{
    struct place p;

    ck_assert_msg(place_of(path, &p), "%s", path);
    ck_assert_int_eq(p.kind, kind);
    ck_assert_str_eq(p.name, name);
    ck_assert_str_eq(p.rest, rest);
    ck_assert_int_eq(p.is_root, *rest == '\0');
}

START_TEST(places)
{
    struct place p;

    check_place("datasets/a", OBJ_DATASET, "a", "");
    check_place("datasets/a/sub/train.jsonl", OBJ_DATASET, "a", "sub/train.jsonl");
    check_place("paramgroups/x.json", OBJ_PARAMGROUP, "x", "");
    check_place("models/base/b/config.json", OBJ_BASE, "b", "config.json");
    check_place("experiments/e.json", OBJ_EXPERIMENT, "e", "");
    check_place("experiments/e/jobs/j/log", OBJ_JOB, "e/j", "log");
    check_place("services/s/model", OBJ_SERVICE, "s", "model");
    check_place("services/s/ask/q.txt", OBJ_ASK, "s/q", "");
    check_place("models/compare/q.txt", OBJ_COMPARE, "q", "");
    ck_assert(!place_of("paramgroups/x.json.swp", &p));
    ck_assert(!place_of("paramgroups/.x.json", &p));
    ck_assert(!place_of("status", &p));
    ck_assert(!place_of("", &p));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("sched_states");
    TCase *t = tcase_create("states");
    SRunner *r;
    int failed;

    tcase_add_test(t, every_pair);
    tcase_add_test(t, later_writes);
    tcase_add_test(t, names_go_both_ways);
    tcase_add_test(t, job_names);
    tcase_add_test(t, products);
    tcase_add_test(t, products_refused);
    tcase_add_test(t, places);
    suite_add_tcase(suite, t);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
