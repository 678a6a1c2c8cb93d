/* A real model that nobody here trained: greedy text and mean loss equal to those of llama2.c. */
#include "tests/unit/engine_util.h"

#define MODEL   "../shared/models/stories260K"
#define STORIES "../shared/data/tinystories"

struct env {
    struct dtx_device *d;
    struct dtx_base *b;
    struct dtx_tokenizer *t;
};

static bool env_open(struct env *v, const char *test)
{
    if (!util_have(test, MODEL) || !util_have(test, STORIES))
        return false;
    MUST(dtx_device_open("cpu", 2, &v->d, &e));
    MUST(dtx_base_load(v->d, AT_FDCWD, MODEL, &v->b, &e));
    MUST(dtx_tokenizer_load(AT_FDCWD, MODEL, &v->t, &e));
    return true;
}

static void env_close(struct env *v)
{
    dtx_tokenizer_free(v->t);
    dtx_base_free(v->b);
    dtx_device_close(v->d);
}

/* The text between the n-th "-i ..." command line of the reference and the next line that starts with "$" or
 * "token". */
static void reference_text(const char *file, const char *command, struct buf *out)
{
    const char *at = strstr(file, command);
    ck_assert_ptr_nonnull(at);
    at = strchr(at, '\n') + 1;
    while (*at && *at != '$' && strncmp(at, "token ids", 9) != 0) {
        size_t n = strcspn(at, "\n") + 1;
        buf_add(out, at, n);
        at += n;
    }
    while (out->len && out->p[out->len - 1] == '\n')
        out->p[--out->len] = 0;
}

/* llama2.c's -n 200 counts positions: after the BOS 199 more tokens are printed, those of the prompt among
 * them. */
static void check_text(struct env *v, const char *file, const char *command, const char *prompt)
{
    struct dtx_ids ids = {0};
    struct buf want = BUF_INIT, got = BUF_INIT;
    struct dtx_seq *s;
    size_t n;
    reference_text(file, command, &want);
    dtx_ids_add(&ids, dtx_tokenizer_bos(v->t));
    MUST(dtx_tokenizer_encode(v->t, prompt, strlen(prompt), &ids, &e));
    struct dtx_sampling how = {.max_new_tokens = 200 - (int)ids.n + 1, .top_p = 1};
    MUST(dtx_seq_new(v->b, NULL, v->t, ids.v, ids.n, &how, &s, &e));
    while (dtx_seq_finish(s) == DTX_RUNNING)
        MUST(dtx_seq_step(v->b, &s, 1, &e));
    const int32_t *new = dtx_seq_tokens(s, &n);
    for (size_t i = 0; i < n; i++)
        dtx_ids_add(&ids, new[i]);
    dtx_tokenizer_decode(v->t, ids.v, ids.n, &got);
    const char *text = got.p + (got.p[0] == ' ' && want.p[0] != ' ');
    ck_assert_str_eq(text, want.p);
    dtx_seq_free(s);
    dtx_ids_release(&ids);
    buf_release(&want);
    buf_release(&got);
}

START_TEST(greedy_text)
{
    struct env v;
    struct buf file = BUF_INIT;
    if (!env_open(&v, "greedy_text"))
        return;
    MUST(fd_read_file(AT_FDCWD, MODEL "/reference_output.txt", 1 << 20, &file, &e));
    check_text(&v, file.p, "-n 200 -i \"\"", "");
    check_text(&v, file.p, "-n 200 -i \"Once upon a time\"", "Once upon a time");
    buf_release(&file);
    env_close(&v);
}
END_TEST

static void add_story(struct env *v, const char *text, size_t n, struct dtx_rows *rows)
{
    struct dtx_ids ids = {0};
    dtx_ids_add(&ids, dtx_tokenizer_bos(v->t));
    MUST(dtx_tokenizer_encode(v->t, text, n, &ids, &e));
    size_t len = ids.n < 256 ? ids.n : 256;
    memcpy(rows->ids + rows->start[rows->n], ids.v, len * sizeof *ids.v);
    memcpy(rows->labels + rows->start[rows->n], ids.v, len * sizeof *ids.v);
    rows->start[rows->n + 1] = rows->start[rows->n] + len;
    rows->n++;
    dtx_ids_release(&ids);
}

START_TEST(mean_loss)
{
    static const char end[] = "<|endoftext|>";
    struct env v;
    struct buf file = BUF_INIT;
    struct dtx_rows rows = {
        .ids = calloc(60 * 256, 4), .labels = calloc(60 * 256, 4), .start = calloc(61, 8)};
    double sum;
    uint64_t n;
    if (!env_open(&v, "mean_loss"))
        return;
    MUST(fd_read_file(AT_FDCWD, STORIES "/tinystories_sample.txt", 4 << 20, &file, &e));
    const char *at = file.p;
    while (rows.n < 50) {
        const char *stop = strstr(at, end);
        ck_assert_ptr_nonnull(stop);
        size_t len = (size_t)(stop - at);
        while (len && strchr(" \n\r\t", *at)) {
            at++;
            len--;
        }
        while (len && strchr(" \n\r\t", at[len - 1]))
            len--;
        if (len)
            add_story(&v, at, len, &rows);
        at = stop + sizeof end - 1;
    }
    MUST(dtx_eval_rows(v.b, NULL, &rows, &sum, &n, &e));
    printf("50 stories, %llu predicted tokens, mean NLL %.6f\n", (unsigned long long)n, sum / (double)n);
    ck_assert_double_eq_tol(sum / (double)n, 1.2264, 0.002);
    buf_release(&file);
    util_rows_free(&rows);
    env_close(&v);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine stories");
    TCase *c = tcase_create("stories260K");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, greedy_text);
    tcase_add_test(c, mean_loss);
    suite_add_tcase(s, c);
    return util_main(s);
}
