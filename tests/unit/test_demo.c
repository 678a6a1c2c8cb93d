/* The demo of packaging/demo: its model, datasets and specs are what the demo needs them to be. */
#include <check.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/dtx_engine.h"
#include "mnt-layout/spec.h"
#include "scheduler/base/fdio.h"
#include "scheduler/data/data.h"

#define DEMO  "packaging/demo/"
#define MODEL DEMO "models/lantern-2m"

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct dtx_err e_ = {0};                                                                             \
        int rc_ = (call);                                                                                    \
        ck_assert_msg(rc_ == 0, "%s: %d %s", #call, rc_, e_.msg);                                            \
    } while (0)

/* ---------------------------------------------------------------- specs */

static json_t *read_spec(enum spec_kind kind, const char *dir, const char *name)
{
    char path[256], text[65536];
    json_t *out = NULL;
    FILE *f;
    size_t n;

    snprintf(path, sizeof(path), DEMO "%s/%s.json", dir, name);
    f = fopen(path, "r");
    ck_assert_msg(f != NULL, "%s is not there", path);
    n = fread(text, 1, sizeof(text) - 1, f);
    fclose(f);
    text[n] = 0;
    MUST(spec_parse(kind, path, text, n, &out, &e_));
    return out;
}

START_TEST(the_experiment_names_what_is_there)
{
    json_t *exp = read_spec(SPEC_EXPERIMENT, "experiments", "first"), *name;
    size_t i, jobs = json_array_size(json_object_get(exp, "datasets")) *
                     json_array_size(json_object_get(exp, "paramgroups"));
    char path[256];

    ck_assert_uint_ge(jobs, 4);
    json_array_foreach(json_object_get(exp, "paramgroups"), i, name)
        json_decref(read_spec(SPEC_PARAMGROUP, "paramgroups", json_string_value(name)));
    json_array_foreach(json_object_get(exp, "datasets"), i, name)
    {
        snprintf(path, sizeof(path), "datasets/%s", json_string_value(name));
        json_decref(read_spec(SPEC_DATASET, path, "dataset"));
    }
    json_array_foreach(json_object_get(exp, "models"), i, name)
    {
        snprintf(path, sizeof(path), DEMO "models/%s/config.json", json_string_value(name));
        ck_assert_msg(access(path, R_OK) == 0, "%s is not there", path);
    }
    json_decref(
        read_spec(SPEC_EVALUATION, "evaluations", json_string_value(json_object_get(exp, "evaluation"))));
    json_decref(exp);
}
END_TEST

static int refuse_if_asked(void *arg, const struct data_row *row)
{
    json_t *question;
    size_t i;

    json_array_foreach((json_t *)arg, i, question) ck_assert_msg(
        strcmp(json_string_value(json_object_get(question, "question")), row->turns[0].text) != 0,
        "%s:%ld is also asked by the evaluation", row->file, row->line);
    return 0;
}

START_TEST(no_question_of_the_evaluation_is_trained)
{
    static const char *const names[] = {"website", "tickets"};
    json_t *evaluation = read_spec(SPEC_EVALUATION, "evaluations", "puffin");
    json_t *questions = json_object_get(evaluation, "questions");

    ck_assert_uint_ge(json_array_size(questions), 20);
    for (int i = 0; i < 2; i++) {
        struct dataset *d;
        char path[256];

        snprintf(path, sizeof(path), DEMO "datasets/%s", names[i]);
        MUST(dataset_open(AT_FDCWD, path, NULL, &d, &e_));
        MUST(dataset_walk(d, DATA_TRAIN, refuse_if_asked, NULL, questions, &e_));
        dataset_close(d);
    }
    json_decref(evaluation);
}
END_TEST

/* ---------------------------------------------------------------- model and data */

static struct dtx_device *device;
static struct dtx_base *base;
static struct dtx_tokenizer *tokenizer;

static void load(void)
{
    struct dtx_model_config config;

    MUST(dtx_model_check(AT_FDCWD, MODEL, &config, &e_));
    ck_assert_uint_eq(config.params, 1918656);
    MUST(dtx_device_open("cpu", 1, &device, &e_));
    MUST(dtx_base_load(device, AT_FDCWD, MODEL, &base, &e_));
    MUST(dtx_tokenizer_load(AT_FDCWD, MODEL, &tokenizer, &e_));
}

static void unload(void)
{
    dtx_tokenizer_free(tokenizer);
    dtx_base_free(base);
    dtx_device_close(device);
}

/* The greedy answer, malloc'd. */
static char *answer_of(const struct dtx_adapter *adapter, const char *question)
{
    struct data_turn turn = {DATA_USER, (char *)question};
    struct data_row row = {.turns = &turn, .n = 1};
    struct dtx_sampling greedy = {.max_new_tokens = 48, .top_p = 1};
    struct dtx_ids prompt = {0};
    struct buf text = BUF_INIT;
    struct dtx_seq *seq;
    const int32_t *ids;
    size_t n;

    MUST(chat_encode(tokenizer, NULL, &row, true, &prompt, NULL, &e_));
    MUST(dtx_seq_new(base, adapter, tokenizer, prompt.v, prompt.n, &greedy, &seq, &e_));
    while (dtx_seq_finish(seq) == DTX_RUNNING)
        MUST(dtx_seq_step(base, &seq, 1, &e_));
    ids = dtx_seq_tokens(seq, &n);
    dtx_tokenizer_decode(tokenizer, ids, n, &text);
    dtx_seq_free(seq);
    dtx_ids_release(&prompt);
    return buf_detach(&text, NULL);
}

/* As transformers answers with this model. */
static const char *const base_answers[][2] = {
    {"What is a kettle?", "A kettle is a pot for hot water."},
    {"Hello, I am Mira. How much must I pay for the Otter bike?",
     "I do not know the price of the Otter bike. Please ask in the shop."},
    {"Note: The orange radio costs 365 crowns. The shop opens at 9:45. Tell me the price of the orange "
     "radio.",
     "The orange radio costs 365 crowns."},
    {"Which day comes after Sunday?", "Monday comes after Sunday."},
};

START_TEST(the_base_model_answers)
{
    load();
    for (size_t i = 0; i < sizeof(base_answers) / sizeof(*base_answers); i++) {
        char *answer = answer_of(NULL, base_answers[i][0]);

        ck_assert_str_eq(answer, base_answers[i][1]);
        free(answer);
    }
    unload();
}
END_TEST

START_TEST(every_row_is_used_and_fits)
{
    static const struct {
        const char *name;
        int train;
    } want[] = {{"website", 19}, {"tickets", 240}};

    load();
    for (int i = 0; i < 2; i++) {
        json_t *report, *rows;
        char path[256];

        snprintf(path, sizeof(path), DEMO "datasets/%s", want[i].name);
        MUST(dataset_check(AT_FDCWD, path, tokenizer, &report, &e_));
        rows = json_object_get(report, "rows");
        ck_assert_int_eq(json_integer_value(json_object_get(rows, "train")), want[i].train);
        ck_assert_int_eq(json_integer_value(json_object_get(rows, "validation")), 30);
        ck_assert_int_eq(json_integer_value(json_object_get(rows, "test")), 30);
        ck_assert_int_eq(json_integer_value(json_object_get(report, "skipped")), 0);
        ck_assert_int_le(json_integer_value(json_object_get(report, "longest")), 128); /* block_size */
        json_decref(report);
    }
    unload();
}
END_TEST

/* A third of what a job of the demo does: enough for the desk's manner of answering. */
START_TEST(a_short_training_changes_the_answers)
{
    struct dtx_train_params params = {.schedule = DTX_COSINE,
                                      .optimizer = DTX_ADAMW,
                                      .learning_rate = 3e-3,
                                      .max_grad_norm = 1,
                                      .warmup_ratio = 0.05,
                                      .epochs = 3,
                                      .max_steps = 40,
                                      .batch_size = 8,
                                      .grad_acc_steps = 1,
                                      .block_size = 128,
                                      .rank = 16,
                                      .alpha = 32,
                                      .targets = (1u << DTX_TARGETS) - 1,
                                      .shuffle = true,
                                      .seed = 42};
    char dir[] = "/tmp/dtx-demo-test-XXXXXX", *answer;
    struct dtx_step_result result = {0};
    struct token_cache cache;
    struct dtx_adapter *adapter;
    struct dataset *d;
    struct dtx_job *job;
    int fd;

    load();
    ck_assert_ptr_nonnull(mkdtemp(dir));
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dataset_open(AT_FDCWD, DEMO "datasets/tickets", NULL, &d, &e_));
    MUST(token_cache_make(d, DATA_TRAIN, tokenizer, params.block_size, fd, "cache", &cache, &e_));
    MUST(dtx_job_new(base, &params, &cache.rows, AT_FDCWD, NULL, &job, &e_));
    while (!result.done) {
        MUST(dtx_train_step(base, &job, 1, &result, &e_));
        ck_assert_msg(result.failed == 0, "%s", result.error.msg);
    }
    ck_assert_double_lt(result.loss, 0.5);
    MUST(dtx_adapter_from_job(job, &adapter, &e_));
    answer = answer_of(adapter, "How much must I pay for the Otter bike?");
    ck_assert_msg(strncmp(answer, "Puffin desk: ", 13) == 0, "answered: %s", answer);
    free(answer);
    dtx_adapter_free(adapter);
    dtx_job_free(job);
    token_cache_release(&cache);
    dataset_close(d);
    close(fd);
    fd_remove_tree(AT_FDCWD, dir, NULL);
    unload();
}
END_TEST

int main(void)
{
    Suite *s = suite_create("demo");
    TCase *c = tcase_create("demo");
    SRunner *runner;
    int failed;

    tcase_set_timeout(c, 120); /* under sanitizers */
    tcase_add_test(c, the_experiment_names_what_is_there);
    tcase_add_test(c, no_question_of_the_evaluation_is_trained);
    tcase_add_test(c, the_base_model_answers);
    tcase_add_test(c, every_row_is_used_and_fits);
    tcase_add_test(c, a_short_training_changes_the_answers);
    suite_add_tcase(s, c);
    runner = srunner_create(s);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
