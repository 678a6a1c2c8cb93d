/* Chat templates and token caches: the golden encodings, masks, several turns, files. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/data/data.h"

#define SHARED "../shared/"

static struct dtx_tokenizer *load(const char *test, const char *dir)
{
    struct dtx_tokenizer *t = NULL;
    struct dtx_err e;

    if (access(dir, F_OK)) {
        printf("SKIP: %s: %s is not there\n", test, dir);
        return NULL;
    }
    ck_assert_msg(dtx_tokenizer_load(AT_FDCWD, dir, &t, &e) == 0, "%s", e.msg);
    return t;
}

static struct data_row row_of(struct data_turn *turns, int n)
{
    return (struct data_row){.turns = turns, .n = n, .file = "test", .line = 1};
}

struct coded {
    struct dtx_ids ids, labels;
};

static void encode(const struct dtx_tokenizer *t, const char *form, const struct data_row *row,
                   bool for_answer, struct coded *c)
{
    struct dtx_err e;

    memset(c, 0, sizeof(*c));
    ck_assert_msg(chat_encode(t, form, row, for_answer, &c->ids, &c->labels, &e) == 0, "%s", e.msg);
    ck_assert_uint_eq(c->ids.n, c->labels.n);
    for (size_t i = 0; i < c->ids.n; i++)
        ck_assert(c->labels.v[i] == -100 || c->labels.v[i] == c->ids.v[i]);
}

static void coded_release(struct coded *c)
{
    dtx_ids_release(&c->ids);
    dtx_ids_release(&c->labels);
}

static void expect_ids(const struct dtx_ids *got, const json_t *want)
{
    ck_assert_uint_eq(got->n, json_array_size(want));
    for (size_t i = 0; i < got->n; i++)
        ck_assert_int_eq(got->v[i], json_integer_value(json_array_get(want, i)));
}

/* ids written by hand: text pieces tokenized for themselves, special tokens by number. */
static void add_text(const struct dtx_tokenizer *t, struct dtx_ids *ids, const char *text)
{
    ck_assert_int_eq(dtx_tokenizer_encode(t, text, strlen(text), ids, NULL), 0);
}

static void expect_same(const struct dtx_ids *got, const struct dtx_ids *want)
{
    ck_assert_uint_eq(got->n, want->n);
    for (size_t i = 0; i < got->n; i++)
        ck_assert_int_eq(got->v[i], want->v[i]);
}

/* ---- golden encodings ---- */

struct golden {
    const struct dtx_tokenizer *t;
    char *next; /* line of encoded.jsonl */
    int n;
};

static int golden_row(void *arg, const struct data_row *row)
{
    struct golden *g = arg;
    size_t len = strcspn(g->next, "\n"), prompt = 0;
    struct coded whole, asked;
    json_t *want;

    ck_assert_int_eq(json_parse_text("encoded.jsonl", g->next, len, &want, NULL), 0);
    encode(g->t, NULL, row, false, &whole);
    expect_ids(&whole.ids, json_object_get(want, "input_ids"));
    expect_ids(&whole.labels, json_object_get(want, "labels"));
    encode(g->t, "llama2", row, true, &asked);
    while (whole.labels.v[prompt] == -100)
        prompt++;
    ck_assert_uint_eq(asked.ids.n, prompt);
    ck_assert_int_eq(memcmp(asked.ids.v, whole.ids.v, prompt * sizeof(int32_t)), 0);
    coded_release(&whole);
    coded_release(&asked);
    json_decref(want);
    g->next += len + 1;
    g->n++;
    return 0;
}

static int open_golden(struct dataset **d, struct dtx_err *e)
{
    json_t *spec = json_pack("{s:{s:s}}", "splits", "train", "rows.jsonl");
    int rc = dataset_open(AT_FDCWD, SHARED "golden/peft", spec, d, e);

    json_decref(spec);
    return rc;
}

START_TEST(golden_encodings)
{
    struct dtx_tokenizer *t = load("golden_encodings", SHARED "models/stories260K");
    struct buf encoded = BUF_INIT;
    struct golden g = {.t = t};
    struct dataset *d;
    struct dtx_err e = {0};

    if (!t)
        return;
    ck_assert_int_eq(fd_read_file(AT_FDCWD, SHARED "golden/peft/encoded.jsonl", 1 << 24, &encoded, NULL), 0);
    g.next = encoded.p;
    ck_assert_msg(open_golden(&d, &e) == 0, "%s", e.msg);
    ck_assert_msg(dataset_walk(d, DATA_TRAIN, golden_row, NULL, &g, &e) == 0, "%s", e.msg);
    ck_assert_int_gt(g.n, 20);
    ck_assert_int_eq(*g.next, 0);
    printf("golden rows equal: %d\n", g.n);
    dataset_close(d);
    buf_release(&encoded);
    dtx_tokenizer_free(t);
}
END_TEST

/* ---- several turns, system ---- */

START_TEST(llama2_turns_and_system)
{
    struct dtx_tokenizer *t = load("llama2_turns", SHARED "tokenizers/llama2");
    struct data_turn turns[] = {{DATA_SYSTEM, " be brief\n"},
                                {DATA_USER, "one?"},
                                {DATA_ASSISTANT, " 1 "},
                                {DATA_USER, "two?"},
                                {DATA_ASSISTANT, "2"}};
    struct data_row row = row_of(turns, 5);
    struct dtx_ids want = {0};
    struct coded c, asked;

    if (!t)
        return;
    dtx_ids_add(&want, 1);
    add_text(t, &want, "[INST] <<SYS>>\nbe brief\n<</SYS>>\n\none? [/INST]");
    add_text(t, &want, "1");
    dtx_ids_add(&want, 2);
    dtx_ids_add(&want, 1);
    add_text(t, &want, "[INST] two? [/INST]");
    encode(t, NULL, &row, true, &asked);
    expect_same(&asked.ids, &want);
    add_text(t, &want, "2");
    dtx_ids_add(&want, 2);
    encode(t, NULL, &row, false, &c);
    expect_same(&c.ids, &want);
    ck_assert_int_eq(c.labels.v[0], -100);
    ck_assert_int_eq(c.labels.v[c.labels.n - 1], 2);
    ck_assert_int_ne(c.labels.v[c.labels.n - 2], -100);
    row.n = 4; /* a question to be answered, as serving asks */
    coded_release(&asked);
    encode(t, NULL, &row, true, &asked);
    ck_assert_int_eq(memcmp(asked.ids.v, want.v, asked.ids.n * sizeof(int32_t)), 0);
    ck_assert_uint_lt(asked.ids.n, want.n);
    coded_release(&asked);
    coded_release(&c);
    dtx_ids_release(&want);
    dtx_tokenizer_free(t);
}
END_TEST

START_TEST(plain_text_trains_every_token)
{
    struct dtx_tokenizer *t = load("plain_text", SHARED "tokenizers/llama2");
    struct data_turn turn = {DATA_ASSISTANT, "Once upon a time"};
    struct data_row row = row_of(&turn, 1);
    struct dtx_ids want = {0};
    struct coded c;

    if (!t)
        return;
    row.plain_text = true;
    dtx_ids_add(&want, 1);
    add_text(t, &want, "Once upon a time");
    dtx_ids_add(&want, 2);
    encode(t, NULL, &row, false, &c);
    expect_same(&c.ids, &want);
    for (size_t i = 1; i < c.labels.n; i++)
        ck_assert_int_eq(c.labels.v[i], c.ids.v[i]);
    coded_release(&c);
    dtx_ids_release(&want);
    dtx_tokenizer_free(t);
}
END_TEST

/* A tokenizer.json with a few tokens and Llama 3's special ones. */
static void write_tokenizer(int fd, const char *const *special, int n_special)
{
    struct buf b = BUF_INIT;
    int id = 0;

    buf_adds(&b, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (int i = 0; i < n_special; i++)
        buf_addf(&b, "%s{\"id\":%d,\"content\":\"%s\",\"special\":true}", i ? "," : "", 300 + i, special[i]);
    buf_adds(&b,
             "],\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
             "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"merges\":[],\"vocab\":{");
    for (int c = '!'; c <= '~'; c++) {
        char text[2] = {(char)c, 0};
        buf_addf(&b, "%s", id ? "," : "");
        buf_add_json(&b, text, 1);
        buf_addf(&b, ":%d", id++);
    }
    for (int c = 0xa1; c < 0x144;
         c++) /* the letters that stand for the other bytes, among them line end and space */
        if (c != 0xad)
            buf_addf(&b, ",\"%c%c\":%d", 0xc0 | c >> 6, 0x80 | (c & 0x3f), id++);
    buf_adds(&b, "}}}");
    ck_assert_int_eq(fd_replace_file(fd, "tokenizer.json", b.p, b.len, 0600, NULL), 0);
    buf_release(&b);
}

static char root[64];
static int root_fd;

static void make_root(void)
{
    strcpy(root, "/tmp/dtx-test-chat-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
    root_fd = open(root, O_RDONLY | O_DIRECTORY);
}

static void remove_root(void)
{
    fd_remove_tree(AT_FDCWD, root, NULL);
    close(root_fd);
}

static struct dtx_tokenizer *special_tokenizer(const char *const *special, int n, const char *bos)
{
    struct dtx_tokenizer *t = NULL;
    struct dtx_err e = {0};
    struct buf b = BUF_INIT;

    write_tokenizer(root_fd, special, n);
    buf_addf(&b, "{\"bos_token\":%s,\"eos_token\":\"%s\"}", bos, special[n - 1]);
    ck_assert_int_eq(fd_replace_file(root_fd, "tokenizer_config.json", b.p, b.len, 0600, NULL), 0);
    buf_release(&b);
    ck_assert_msg(dtx_tokenizer_load(root_fd, ".", &t, &e) == 0, "%s", e.msg);
    return t;
}

START_TEST(llama3_template)
{
    static const char *const special[] = {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                                          "<|eot_id|>"};
    struct dtx_tokenizer *t = special_tokenizer(special, 4, "\"<|begin_of_text|>\"");
    struct data_turn turns[] = {{DATA_USER, "hi"}, {DATA_ASSISTANT, "yo"}};
    struct data_row row = row_of(turns, 2);
    struct dtx_ids want = {0};
    struct coded c, asked;
    size_t prompt;

    dtx_ids_add(&want, 300);
    dtx_ids_add(&want, 301);
    add_text(t, &want, "user");
    dtx_ids_add(&want, 302);
    add_text(t, &want, "\n\n");
    add_text(t, &want, "hi");
    dtx_ids_add(&want, 303);
    dtx_ids_add(&want, 301);
    add_text(t, &want, "assistant");
    dtx_ids_add(&want, 302);
    add_text(t, &want, "\n\n");
    prompt = want.n;
    encode(t, NULL, &row, true, &asked); /* found by its special tokens */
    expect_same(&asked.ids, &want);
    add_text(t, &want, "yo");
    dtx_ids_add(&want, 303);
    encode(t, "llama3", &row, false, &c);
    expect_same(&c.ids, &want);
    for (size_t i = 0; i < c.labels.n; i++)
        ck_assert_int_eq(c.labels.v[i], i < prompt ? -100 : want.v[i]);
    coded_release(&c);
    coded_release(&asked);
    dtx_ids_release(&want);
    dtx_tokenizer_free(t);
}
END_TEST

START_TEST(chatml_template)
{
    static const char *const special[] = {"<|im_start|>", "<|im_end|>"};
    struct dtx_tokenizer *t = special_tokenizer(special, 2, "null");
    struct data_turn turns[] = {{DATA_SYSTEM, "s"}, {DATA_USER, "hi"}, {DATA_ASSISTANT, "yo"}};
    struct data_row row = row_of(turns, 3);
    struct dtx_ids want = {0};
    struct coded c;
    struct dtx_err e;

    for (int i = 0; i < 3; i++) {
        static const char *const head[] = {"system\n", "user\n", "assistant\n"};
        dtx_ids_add(&want, 300);
        add_text(t, &want, head[i]);
        add_text(t, &want, turns[i].text);
        dtx_ids_add(&want, 301);
        add_text(t, &want, "\n");
    }
    encode(t, NULL, &row, false, &c);
    expect_same(&c.ids, &want);
    ck_assert_int_eq(c.labels.v[c.labels.n - 2], 301);
    ck_assert_int_eq(c.labels.v[c.labels.n - 1], -100);
    ck_assert_int_lt(chat_encode(t, "llama3", &row, false, &want, NULL, &e), 0);
    ck_assert_ptr_nonnull(strstr(e.msg, "the model's tokenizer has no <|start_header_id|>"));
    ck_assert_int_lt(chat_encode(t, "vicuna", &row, false, &want, NULL, &e), 0);
    ck_assert_ptr_nonnull(strstr(e.msg, "template \"vicuna\": unknown"));
    coded_release(&c);
    dtx_ids_release(&want);
    dtx_tokenizer_free(t);
}
END_TEST

/* ---- token caches ---- */

START_TEST(cache_holds_the_golden_rows)
{
    struct dtx_tokenizer *t = load("token_cache", SHARED "models/stories260K");
    struct buf encoded = BUF_INIT;
    struct token_cache c;
    struct dataset *d;
    struct dtx_err e = {0};
    char *line;

    if (!t)
        return;
    ck_assert_int_eq(fd_read_file(AT_FDCWD, SHARED "golden/peft/encoded.jsonl", 1 << 24, &encoded, NULL), 0);
    ck_assert_int_eq(open_golden(&d, &e), 0);
    ck_assert_msg(token_cache_make(d, DATA_TRAIN, t, 1024, root_fd, "cache", &c, &e) == 0, "%s", e.msg);
    line = encoded.p;
    for (uint32_t i = 0; i < c.rows.n; i++, line += strcspn(line, "\n") + 1) {
        size_t n = c.rows.start[i + 1] - c.rows.start[i];
        struct dtx_ids ids = {c.rows.ids + c.rows.start[i], n, n},
                       labels = {c.rows.labels + c.rows.start[i], n, n};
        json_t *want;
        ck_assert_int_eq(json_parse_text("encoded", line, strcspn(line, "\n"), &want, NULL), 0);
        expect_ids(&ids, json_object_get(want, "input_ids"));
        expect_ids(&labels, json_object_get(want, "labels"));
        json_decref(want);
    }
    ck_assert_int_eq(*line, 0);
    ck_assert_uint_eq(c.tokens, c.rows.start[c.rows.n]);
    token_cache_release(&c);
    dataset_close(d);
    buf_release(&encoded);
    dtx_tokenizer_free(t);
}
END_TEST

static ino_t inode_of(const char *name)
{
    struct stat st;

    ck_assert_int_eq(fstatat(root_fd, name, &st, 0), 0);
    return st.st_ino;
}

static void make(struct dtx_tokenizer *t, int block, struct token_cache *c)
{
    struct dataset *d;
    struct dtx_err e = {0};

    ck_assert_int_eq(dataset_open(root_fd, "ds", NULL, &d, &e), 0);
    ck_assert_msg(token_cache_make(d, DATA_TRAIN, t, block, root_fd, "cache", c, &e) == 0, "%s", e.msg);
    dataset_close(d);
}

static void put(const char *name, const char *text)
{
    ck_assert_int_eq(fd_replace_file(root_fd, name, text, strlen(text), 0600, NULL), 0);
}

START_TEST(cache_is_kept_made_anew_and_checked)
{
    static const char *const special[] = {"<s>", "</s>"};
    struct dtx_tokenizer *t = special_tokenizer(special, 2, "\"<s>\"");
    struct token_cache c;
    ino_t first;
    int fd;

    mkdirat(root_fd, "ds", 0700);
    put("ds/train.jsonl",
        "{\"text\":\"abcdefgh\"}\nbroken\n{\"prompt\":\"long long question\",\"completion\":\"a\"}\n");
    make(t, 64, &c);
    ck_assert_uint_eq(c.rows.n, 2);
    ck_assert_uint_eq(c.rows.start[1], 10);
    ck_assert_uint_eq(c.skipped, 1);
    ck_assert_uint_eq(c.truncated, 0);
    token_cache_release(&c);
    first = inode_of("cache");
    make(t, 64, &c); /* the same: only mapped */
    ck_assert_uint_eq(inode_of("cache"), first);
    ck_assert_uint_eq(c.longest, c.rows.start[2] - c.rows.start[1]);
    token_cache_release(&c);
    make(t, 6, &c); /* another block size; nothing of the second row's answer is left */
    ck_assert_uint_ne(inode_of("cache"), first);
    ck_assert_uint_eq(c.rows.n, 1);
    ck_assert_uint_eq(c.rows.start[1], 6);
    ck_assert_uint_eq(c.truncated, 2);
    ck_assert_uint_eq(c.skipped, 2);
    token_cache_release(&c);
    first = inode_of("cache");
    fd = openat(root_fd, "cache", O_WRONLY);
    ck_assert_int_eq(pwrite(fd, "\x7f", 1, 4100), 1); /* a damaged one */
    close(fd);
    make(t, 6, &c);
    ck_assert_uint_ne(inode_of("cache"), first);
    ck_assert_int_eq(c.rows.ids[0], 300);
    token_cache_release(&c);
    put("ds/train.jsonl", "{\"text\":\"xyz\"}\n"); /* other data */
    make(t, 6, &c);
    ck_assert_uint_eq(c.tokens, 5);
    token_cache_release(&c);
    dtx_tokenizer_free(t);
}
END_TEST

START_TEST(cache_without_rows_or_room)
{
    static const char *const special[] = {"<s>", "</s>"};
    struct dtx_tokenizer *t = special_tokenizer(special, 2, "\"<s>\"");
    struct token_cache c;
    struct dataset *d;
    struct dtx_err e = {0};

    mkdirat(root_fd, "ds", 0700);
    put("ds/train.jsonl", "{\"prompt\":\"q\"}\n");
    ck_assert_int_eq(dataset_open(root_fd, "ds", NULL, &d, &e), 0);
    ck_assert_int_eq(token_cache_make(d, DATA_TRAIN, t, 64, root_fd, "cache", &c, &e), -EINVAL);
    ck_assert_ptr_nonnull(
        strstr(e.msg, "no usable row in the train split: train.jsonl:1: \"prompt\" without"));
    ck_assert_int_ne(faccessat(root_fd, "cache", F_OK, 0), 0);
    ck_assert_int_lt(token_cache_make(d, DATA_TRAIN, t, 64, root_fd, "none/cache", &c, &e), 0);
    ck_assert_ptr_nonnull(strstr(e.msg, "none/cache"));
    dataset_close(d);
    dtx_tokenizer_free(t);
}
END_TEST

START_TEST(check_with_tokenizer)
{
    static const char *const special[] = {"<s>", "</s>"};
    struct dtx_tokenizer *t = special_tokenizer(special, 2, "\"<s>\"");
    json_t *r, *pieces;
    struct dtx_err e = {0};

    mkdirat(root_fd, "ds", 0700);
    put("ds/train.jsonl", "{\"prompt\":\"q\",\"completion\":\"abc\"}\n");
    ck_assert_msg(dataset_check(root_fd, "ds", t, &r, &e) == 0, "%s", e.msg);
    ck_assert_int_eq(json_int(r, "tokens", 0), 1 + 16 + 3 + 1);
    ck_assert_int_eq(json_int(r, "longest", 0), 21);
    ck_assert_str_eq(json_str(r, "template", ""), "llama2");
    pieces = json_object_get(json_array_get(json_object_get(r, "examples"), 0), "pieces");
    ck_assert_int_eq(json_int(json_array_get(pieces, 0), "tokens", 0), 17);
    ck_assert_int_eq(json_int(json_array_get(pieces, 1), "tokens", 0), 4);
    ck_assert_str_eq(json_str(json_array_get(pieces, 1), "text", ""), "abc</s>");
    ck_assert(json_flag(json_array_get(pieces, 1), "trained", 0));
    json_decref(r);
    dtx_tokenizer_free(t);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("chat");
    TCase *tc = tcase_create("chat");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, make_root, remove_root);
    tcase_add_test(tc, golden_encodings);
    tcase_add_test(tc, llama2_turns_and_system);
    tcase_add_test(tc, plain_text_trains_every_token);
    tcase_add_test(tc, llama3_template);
    tcase_add_test(tc, chatml_template);
    tcase_add_test(tc, cache_holds_the_golden_rows);
    tcase_add_test(tc, cache_is_kept_made_anew_and_checked);
    tcase_add_test(tc, cache_without_rows_or_room);
    tcase_add_test(tc, check_with_tokenizer);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
