/* Tokenizers: the published vectors, the golden encodings, rules on small made-up vocabularies, hostile
 * files. */
#include <check.h>
#include <jansson.h>
#include <stdlib.h>

#include "kernels/dtx_engine.h"
#include "scheduler/base/clock.h"
#include "scheduler/base/text.h"
#include "tests/unit/files_fixture.h"
#include "tests/unit/slow.h"

#define SPACE "\xe2\x96\x81"

static struct dtx_err err;

static struct dtx_tokenizer *load(const char *dir)
{
    struct dtx_tokenizer *t;

    ck_assert_msg(dtx_tokenizer_load(AT_FDCWD, dir, &t, &err) == 0, "%s: %s", dir, err.msg);
    return t;
}

/* The ids of a text as "1 2 3" in a buffer that the next call overwrites. */
static const char *ids_of(const struct dtx_tokenizer *t, const char *text, size_t n)
{
    static char out[1 << 16];
    struct dtx_ids ids = {0};
    size_t at = 0;

    ck_assert_msg(dtx_tokenizer_encode(t, text, n, &ids, &err) == 0, "%s", err.msg);
    out[0] = '\0';
    for (size_t i = 0; i < ids.n; i++)
        at += (size_t)snprintf(out + at, sizeof(out) - at, "%s%d", i ? " " : "", ids.v[i]);
    dtx_ids_release(&ids);
    return out;
}

#define ENC(t, text) ids_of(t, text, strlen(text))

static char *decode(const struct dtx_tokenizer *t, const int32_t *ids, size_t n)
{
    struct buf b = BUF_INIT;

    buf_addc(&b, 'x'); /* decode appends: what was there stays */
    dtx_tokenizer_decode(t, ids, n, &b);
    ck_assert(!b.failed && b.p[0] == 'x');
    memmove(b.p, b.p + 1, b.len);
    return buf_detach(&b, NULL);
}

/* encode, decode: the same bytes. */
static void round_trip(const struct dtx_tokenizer *t, const char *text, size_t n)
{
    struct dtx_ids ids = {0};
    struct buf b = BUF_INIT;

    ck_assert_int_eq(dtx_tokenizer_encode(t, text, n, &ids, &err), 0);
    dtx_tokenizer_decode(t, ids.v, ids.n, &b);
    ck_assert_uint_eq(b.len, n);
    ck_assert(n == 0 || memcmp(b.p, text, n) == 0);
    dtx_ids_release(&ids);
    buf_release(&b);
}

/* ---- published vectors ---- */

static int run_vectors(const char *dir)
{
    static const char separator[] = "\n__ggml_vocab_test__\n";
    struct buf in = BUF_INIT, out = BUF_INIT;
    struct dtx_tokenizer *t = load(dir);
    int d = open(dir, O_RDONLY | O_DIRECTORY), count = 0;
    char *text, *line;

    ck_assert_int_eq(fd_read_file(d, "vectors.inp", 1 << 20, &in, &err), 0);
    ck_assert_int_eq(fd_read_file(d, "vectors.out", 1 << 20, &out, &err), 0);
    close(d);
    text = in.p;
    line = out.p;
    while (line < out.p + out.len) {
        char *end = strstr(text, separator), *newline = strchr(line, '\n');
        size_t n = end ? (size_t)(end - text) : strlen(text);
        ck_assert_ptr_nonnull(newline);
        *newline = '\0';
        ck_assert_str_eq(ids_of(t, text, n), line[0] == ' ' ? line + 1 : line);
        round_trip(t, text, n);
        count++;
        line = newline + 1;
        if (!end)
            break;
        text = end + strlen(separator);
    }
    ck_assert(line >= out.p + out.len);
    buf_release(&in);
    buf_release(&out);
    dtx_tokenizer_free(t);
    return count;
}

static bool absent(const char *test, const char *path)
{
    if (fx_exists(path))
        return false;
    printf("SKIP: %s: %s is not there\n", test, path);
    return true;
}

START_TEST(llama2_vectors)
{
    if (!absent("llama2_vectors", "../shared/tokenizers/llama2/vectors.inp"))
        ck_assert_int_gt(run_vectors("../shared/tokenizers/llama2"), 40);
}
END_TEST

START_TEST(llama3_vectors)
{
    if (!absent("llama3_vectors", "../shared/tokenizers/llama3/vectors.inp"))
        ck_assert_int_gt(run_vectors("../shared/tokenizers/llama3"), 40);
}
END_TEST

START_TEST(llama3_special_tokens)
{
    struct dtx_tokenizer *t;

    if (absent("llama3_special_tokens", "../shared/tokenizers/llama3/tokenizer.json"))
        return;
    t = load("../shared/tokenizers/llama3");
    ck_assert_int_eq(dtx_tokenizer_size(t), 128256);
    ck_assert_int_eq(dtx_tokenizer_bos(t), 128000);
    ck_assert_int_eq(dtx_tokenizer_eos(t), 128001);
    ck_assert_int_eq(dtx_tokenizer_special(t, "<|eot_id|>"), 128009);
    ck_assert_int_eq(dtx_tokenizer_special(t, "hello"), -1);
    ck_assert(dtx_tokenizer_is_stop(t, 128001) && dtx_tokenizer_is_stop(t, 128009));
    ck_assert(!dtx_tokenizer_is_stop(t, 128000) && !dtx_tokenizer_is_stop(t, 5));
    ck_assert_uint_eq(strlen(dtx_tokenizer_sha256(t)), 64);
    /* the text of a special token is plain text, and its id decodes to nothing */
    ck_assert_ptr_null(strstr(ENC(t, "a<|eot_id|>b"), "128009"));
    char *s = decode(t, (int32_t[]){128000, 9906, 128009}, 3);
    ck_assert_str_eq(s, "Hello");
    free(s);
    dtx_tokenizer_free(t);
}
END_TEST

/* ---- golden encodings: HF's legacy Llama behaviour ---- */

static void add_ids(struct dtx_ids *ids, const struct dtx_tokenizer *t, const char *text)
{
    ck_assert_int_eq(dtx_tokenizer_encode(t, text, strlen(text), ids, &err), 0);
}

static void check_golden_row(const struct dtx_tokenizer *t, const char *row_text, const char *encoded_text)
{
    json_t *row = json_loads(row_text, 0, NULL), *encoded = json_loads(encoded_text, 0, NULL);
    json_t *want = json_object_get(encoded, "input_ids"), *labels = json_object_get(encoded, "labels");
    struct dtx_ids ids = {0};
    struct buf prompt = BUF_INIT;
    size_t n_prompt;

    ck_assert(row && json_is_array(want));
    buf_addf(&prompt, "[INST] %s [/INST]", json_string_value(json_object_get(row, "instruction")));
    ck_assert_int_eq(dtx_ids_add(&ids, dtx_tokenizer_bos(t)), 0);
    add_ids(&ids, t, prompt.p);
    n_prompt = ids.n;
    add_ids(&ids, t, json_string_value(json_object_get(row, "response")));
    ck_assert_int_eq(dtx_ids_add(&ids, dtx_tokenizer_eos(t)), 0);
    ck_assert_uint_eq(ids.n, json_array_size(want));
    for (size_t i = 0; i < ids.n; i++) {
        ck_assert_int_eq(ids.v[i], json_integer_value(json_array_get(want, i)));
        ck_assert_int_eq(i < n_prompt ? -100 : ids.v[i], json_integer_value(json_array_get(labels, i)));
    }
    buf_release(&prompt);
    dtx_ids_release(&ids);
    json_decref(row);
    json_decref(encoded);
}

START_TEST(golden_rows)
{
    struct buf rows = BUF_INIT, encoded = BUF_INIT;
    struct dtx_tokenizer *t;
    char *r, *e, *sr = NULL, *se = NULL;
    int n = 0;

    if (absent("golden_rows", "../shared/golden/peft/encoded.jsonl"))
        return;
    t = load("../shared/models/stories260K");
    ck_assert_int_eq(fd_read_file(AT_FDCWD, "../shared/golden/peft/rows.jsonl", 1 << 24, &rows, &err), 0);
    ck_assert_int_eq(fd_read_file(AT_FDCWD, "../shared/golden/peft/encoded.jsonl", 1 << 24, &encoded, &err),
                     0);
    r = strtok_r(rows.p, "\n", &sr);
    e = strtok_r(encoded.p, "\n", &se);
    for (; r && e; r = strtok_r(NULL, "\n", &sr), e = strtok_r(NULL, "\n", &se), n++)
        check_golden_row(t, r, e);
    ck_assert(!r && !e && n > 50);
    buf_release(&rows);
    buf_release(&encoded);
    dtx_tokenizer_free(t);
}
END_TEST

/* Bytes that are not UTF-8 become U+FFFD, as in HF's text. */
static char *lossy(char *text)
{
    struct buf b = BUF_INIT;

    for (size_t i = 0, n = strlen(text), step; i < n; i += step ? step : 1) {
        step = text_utf8_step(text + i, n - i);
        buf_add(&b, step ? text + i : "\xef\xbf\xbd", step ? step : 3);
    }
    free(text);
    return buf_detach(&b, NULL);
}

static void check_answers(const struct dtx_tokenizer *t, const char *path)
{
    json_t *root = json_load_file(path, 0, NULL), *a;
    size_t i, k;

    ck_assert_uint_gt(json_array_size(json_object_get(root, "answers")), 0);
    json_array_foreach(json_object_get(root, "answers"), i, a)
    {
        json_t *list = json_object_get(a, "answer_ids"), *v;
        int32_t ids[1024];
        char *s;
        json_array_foreach(list, k, v)
        {
            ids[k] = (int32_t)json_integer_value(v);
        }
        s = lossy(decode(t, ids, json_array_size(list)));
        ck_assert_str_eq(s, json_string_value(json_object_get(a, "answer")));
        free(s);
    }
    json_decref(root);
}

START_TEST(golden_answers)
{
    static const char *const cases[] = {"all_cosine", "qv_linear", "rs_constant", "sgd_linear"};
    struct dtx_tokenizer *t;
    char path[128];

    if (absent("golden_answers", "../shared/golden/peft/all_cosine/eval.json"))
        return;
    t = load("../shared/models/stories260K");
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof(path), "../shared/golden/peft/%s/eval.json", cases[i]);
        check_answers(t, path);
    }
    dtx_tokenizer_free(t);
}
END_TEST

/* ---- SentencePiece rules ---- */

static struct dtx_tokenizer *load_spm(struct fx *f, struct buf *b)
{
    fx_put(f, "tokenizer.model", b->p, b->len);
    buf_release(b);
    return load(f->path);
}

START_TEST(spm_merges_by_score_then_leftmost)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;

    spm_begin(&b, true);
    spm_piece(&b, "a", -10, 1);        /* 259 */
    spm_piece(&b, "aa", -1, 1);        /* 260 */
    spm_piece(&b, "b", -11, 1);        /* 261 */
    spm_piece(&b, "ab", -1, 1);        /* 262: equal to aa */
    spm_piece(&b, "aab", -5, 1);       /* 263 */
    spm_piece(&b, "a\xc3\xa9", -7, 1); /* 264: é itself is no piece */
    spm_end(&b, 2, true, false, false, NULL);
    t = load_spm(&f, &b);
    ck_assert_str_eq(ENC(t, "aab"), "263"); /* aa first: leftmost of equals; then aa+b */
    ck_assert_str_eq(ENC(t, "aaa"), "260 259");
    ck_assert_str_eq(ENC(t, "bab"), "261 262");
    ck_assert_str_eq(ENC(t, "a\xc3\xa9"), "264");
    ck_assert_str_eq(ENC(t, "\xc3\xa9"), "198 172"); /* bytes C3 A9 */
    ck_assert_str_eq(ENC(t, ""), "");
    ck_assert_str_eq(ids_of(t, "a\0\xff", 3), "259 3 258");
    ck_assert_str_eq(ENC(t, "<s>"), "63 118 65"); /* not the control piece */
    ck_assert_int_eq(dtx_tokenizer_bos(t), 1);
    ck_assert_int_eq(dtx_tokenizer_eos(t), 2);
    ck_assert_int_eq(dtx_tokenizer_special(t, "</s>"), 2);
    round_trip(t, "a\0\xff\xe2\x96", 5);
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(spm_spaces)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;
    char *s;

    spm_begin(&b, true);
    spm_piece(&b, SPACE, -10, 1);      /* 259 */
    spm_piece(&b, "a", -10, 1);        /* 260 */
    spm_piece(&b, SPACE "a", -1, 1);   /* 261 */
    spm_piece(&b, SPACE SPACE, -2, 1); /* 262 */
    spm_end(&b, 2, true, true, false, NULL);
    t = load_spm(&f, &b);
    ck_assert_str_eq(ENC(t, "a a"), "261 261");
    ck_assert_str_eq(ENC(t, " a"), "259 261");
    ck_assert_str_eq(ENC(t, "a   a"), "261 262 261");
    ck_assert_str_eq(ENC(t, " "), "262");
    ck_assert_str_eq(ENC(t, "a "), "261 259");
    s = decode(t, (int32_t[]){1, 261, 259, 261, 2}, 5);
    ck_assert_str_eq(s, "a  a");
    free(s);
    s = decode(t, (int32_t[]){-1, 100000, 260}, 3); /* ids that are none */
    ck_assert_str_eq(s, "a");
    free(s);
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(spm_squeezes_spaces)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;

    spm_begin(&b, true);
    spm_piece(&b, SPACE, -10, 1); /* 259 */
    spm_piece(&b, "a", -10, 1);   /* 260 */
    spm_end(&b, 2, true, true, true, NULL);
    t = load_spm(&f, &b);
    ck_assert_str_eq(ENC(t, "  a   a  "), "259 260 259 260");
    ck_assert_str_eq(ENC(t, "   "), "");
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(spm_user_unused_and_unknown)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;

    spm_begin(&b, false);
    spm_piece(&b, "a", -10, 1);  /* 3 */
    spm_piece(&b, "b", -10, 1);  /* 4 */
    spm_piece(&b, "ab", -1, 5);  /* 5: unused, but a step to abb */
    spm_piece(&b, "abb", -2, 1); /* 6 */
    spm_piece(&b, "<x>", 0, 4);  /* 7: user defined */
    spm_piece(&b, "<x>>", 0, 4); /* 8 */
    spm_end(&b, 2, false, false, false, NULL);
    t = load_spm(&f, &b);
    ck_assert_str_eq(ENC(t, "ab"), "3 4");
    ck_assert_str_eq(ENC(t, "abb"), "6");
    ck_assert_str_eq(ENC(t, "a<x>b<x>>"), "3 7 4 8");
    ck_assert_str_eq(ENC(t, "a<x"), "3 0"); /* a row of unknown characters is one unknown token */
    ck_assert_str_eq(ENC(t, "?\xff?a?"), "0 3 0");
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

static void expect_refused(const struct fx *f, const char *word)
{
    struct dtx_tokenizer *t;

    ck_assert_int_lt(dtx_tokenizer_load(AT_FDCWD, f->path, &t, &err), 0);
    ck_assert_ptr_null(t);
    ck_assert_msg(strstr(err.msg, word) != NULL, "\"%s\" does not speak of \"%s\"", err.msg, word);
}

START_TEST(spm_refuses)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;

    expect_refused(&f, "tokenizer.model");
    spm_begin(&b, true);
    spm_end(&b, 1, true, true, false, NULL);
    fx_put(&f, "tokenizer.model", b.p, b.len);
    expect_refused(&f, "unigram");
    fx_put(&f, "tokenizer.model", b.p, b.len - 5);
    expect_refused(&f, "damaged");
    buf_clear(&b);
    spm_begin(&b, true);
    spm_end(&b, 2, true, true, false, "map");
    fx_put(&f, "tokenizer.model", b.p, b.len);
    expect_refused(&f, "nmt_nfkc");
    buf_clear(&b);
    spm_begin(&b, false);
    spm_end(&b, 2, true, true, false, NULL);
    fx_put(&f, "tokenizer.model", b.p, b.len);
    expect_refused(&f, "<0x00>");
    buf_clear(&b);
    spm_begin(&b, true);
    spm_piece(&b, "x", 0.0f / 0.0f, 1);
    spm_end(&b, 2, true, true, false, NULL);
    fx_put(&f, "tokenizer.model", b.p, b.len);
    expect_refused(&f, "score");
    buf_release(&b);
    fx_drop(&f);
}
END_TEST

START_TEST(added_tokens_beside_a_model_file)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;
    char without[65];

    spm_begin(&b, true);
    spm_piece(&b, "a", -10, 1);
    spm_end(&b, 2, true, false, false, NULL);
    t = load_spm(&f, &b);
    snprintf(without, sizeof(without), "%s", dtx_tokenizer_sha256(t));
    dtx_tokenizer_free(t);
    fx_puts(&f, "tokenizer_config.json",
            "{\"model_max_length\":1000000000000000019884624838656,\"eos_token\":{\"content\":\"<|im_end|>\"}"
            ",\"bos_token\":null,\"added_tokens_decoder\":{"
            "\"260\":{\"content\":\"<|im_end|>\",\"special\":true},\"261\":{\"content\":\"<tool>\","
            "\"special\":false}}}");
    fx_puts(&f, "generation_config.json", "{\"eos_token_id\":[260,2]}");
    t = load(f.path);
    ck_assert_int_eq(dtx_tokenizer_size(t), 262);
    ck_assert_int_eq(dtx_tokenizer_eos(t), 260);
    ck_assert_int_eq(dtx_tokenizer_bos(t), -1);
    ck_assert(dtx_tokenizer_is_stop(t, 260) && dtx_tokenizer_is_stop(t, 2) && !dtx_tokenizer_is_stop(t, 1));
    ck_assert_str_eq(ENC(t, "a<tool>a"), "259 261 259");
    ck_assert_str_ne(dtx_tokenizer_sha256(t), without);
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

/* ---- tokenizer.json rules ---- */

/* The 256 single bytes of GPT-2's alphabet as "key":id pairs, ids 0-255 by byte. */
static void byte_vocab(struct buf *b)
{
    int next = 256;

    for (int i = 0; i < 256; i++) {
        bool itself = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        buf_addf(b, "%s\"\\u%04x\":%d", i ? "," : "", itself ? i : next++, i);
    }
}

static struct dtx_tokenizer *load_json(struct fx *f, const char *pre, const char *model, const char *vocab,
                                       const char *merges, const char *rest)
{
    struct buf b = BUF_INIT;

    buf_addf(&b, "{\"pre_tokenizer\":%s,%s\"model\":{\"type\":\"BPE\",%s\"vocab\":{", pre, rest, model);
    byte_vocab(&b);
    buf_addf(&b, "%s},\"merges\":%s}}", vocab, merges);
    fx_put(f, "tokenizer.json", b.p, b.len);
    buf_release(&b);
    return load(f->path);
}

#define G "\\u0120" /* GPT-2's sign for a space */

START_TEST(json_gpt2_like)
{
    static const char vocab[] = ",\"ab\":256,\"" G "a\":257,\"" G "ab\":258,\"bc\":259";
    static const char *const merges[] = {
        "[\"a b\",\"" G " a\",\"" G " ab\",\"b c\"]",
        "[[\"a\",\"b\"],[\"" G "\",\"a\"],[\"" G "\",\"ab\"],[\"b\",\"c\"]]",
    };
    static const char added[] =
        "\"added_tokens\":[{\"id\":260,\"content\":\"<|endoftext|>\",\"special\":true},"
        "{\"id\":261,\"content\":\"<t>\",\"special\":false}],";

    for (int i = 0; i < 2; i++) {
        struct fx f = fx_new();
        struct dtx_tokenizer *t =
            load_json(&f, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "", vocab, merges[i], added);
        ck_assert_str_eq(ENC(t, "ab ab"), "256 258");
        ck_assert_str_eq(ENC(t, "abc"), "256 99");
        ck_assert_str_eq(ENC(t, "bc a"), "259 257");
        ck_assert_str_eq(ENC(t, "a  ab"), "97 32 258");
        ck_assert_str_eq(ENC(t, "ab<t>ab"), "256 261 256");
        ck_assert_str_eq(ENC(t, "\xc3\xa9"), "195 169");
        ck_assert_str_eq(ids_of(t, "ab\xff\0ab", 6), "256 255 0 256");
        ck_assert_int_eq(dtx_tokenizer_special(t, "<|endoftext|>"), 260);
        ck_assert(dtx_tokenizer_is_stop(t, 260));
        round_trip(t, "ab \xff\xfe ab\xe2\x82", 10);
        dtx_tokenizer_free(t);
        fx_drop(&f);
    }
}
END_TEST

START_TEST(json_ignore_merges_and_prefix_space)
{
    struct fx f = fx_new();
    struct dtx_tokenizer *t;

    t = load_json(&f, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "\"ignore_merges\":true,",
                  ",\"" G "xyz\":256", "[]", "");
    ck_assert_str_eq(ENC(t, "xyz"), "256");
    ck_assert_str_eq(ENC(t, " xyz"), "256");
    ck_assert_str_eq(ENC(t, " xy"), "32 120 121");
    dtx_tokenizer_free(t);
    t = load_json(&f, "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "", ",\"" G "xyz\":256", "[]",
                  "");
    ck_assert_str_eq(ENC(t, "xyz"), "32 120 121 122");
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(json_split_and_digits)
{
    static const char pre[] =
        "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"String\":\".\"},"
        "\"behavior\":\"Removed\"},{\"type\":\"Digits\",\"individual_digits\":true},"
        "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}";
    struct fx f = fx_new();
    struct dtx_tokenizer *t = load_json(&f, pre, "", ",\"12\":256,\"ab\":257", "[\"1 2\",\"a b\"]", "");

    ck_assert_str_eq(ENC(t, "ab12.ab"), "257 49 50 257");
    ck_assert_str_eq(ENC(t, "a.b"), "97 98");
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(json_nfc)
{
    struct fx f = fx_new();
    struct dtx_tokenizer *t = load_json(&f, "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}", "", "",
                                        "[]", "\"normalizer\":{\"type\":\"NFC\"},");

    ck_assert_str_eq(ENC(t, "e\xcc\x81"), "195 169"); /* e + acute = é */
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

/* tokenizer.json as Llama 2's is: characters, byte fallback, Prepend and Replace. */
START_TEST(json_llama2_like)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct dtx_tokenizer *t;
    char *s;

    buf_adds(
        &b, "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true}],\"normalizer\":{\"type\":"
            "\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"" SPACE
            "\"},{\"type\":\"Replace\","
            "\"pattern\":{\"String\":\" \"},\"content\":\"" SPACE "\"}]},\"pre_tokenizer\":null,\"decoder\":{"
            "\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Strip\",\"content\":"
            "\" \","
            "\"start\":1,\"stop\":0}]},\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,"
            "\"byte_fallback\":true,\"vocab\":{\"<unk>\":0");
    for (int i = 0; i < 256; i++)
        buf_addf(&b, ",\"<0x%02X>\":%d", i, i + 1);
    buf_adds(&b, ",\"" SPACE "\":257,\"a\":258,\"" SPACE "a\":259},\"merges\":[\"" SPACE " a\"]}}");
    fx_put(&f, "tokenizer.json", b.p, b.len);
    buf_release(&b);
    t = load(f.path);
    ck_assert_str_eq(ENC(t, "a a"), "259 259");
    ck_assert_str_eq(ENC(t, "\xc3\xa9"), "257 196 170");
    s = decode(t, (int32_t[]){259, 259, 196, 170, 0}, 5);
    ck_assert_str_eq(s, "a a\xc3\xa9");
    free(s);
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

START_TEST(json_refuses)
{
    static const char *const bad[][2] = {
        {"{}", "no model"},
        {"[1]", "not a JSON object"},
        {"{\"model\":", "not valid JSON"},
        {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", "Unigram"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "not in model.vocab"},
        {"{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}}", "merges[0]"},
        {"{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "token id -1"},
        {"{\"model\":{\"vocab\":{\"a\":99999999999},\"merges\":[]}}", "token id 99999999999"},
        {"{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "two tokens"},
        {"{\"normalizer\":{\"type\":\"Lowercase\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         "Lowercase"},
        {"{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"},\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         "Bert"},
        {"{\"pre_tokenizer\":{\"type\":\"Split\",\"behavior\":\"Isolated\",\"pattern\":{\"Regex\":\"(\"}},"
         "\"model\":{\"vocab\":{\"a\":0},\"merges\":[]}}",
         "pattern"},
    };
    struct fx f = fx_new();

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        fx_puts(&f, "tokenizer.json", bad[i][0]);
        expect_refused(&f, bad[i][1]);
    }
    fx_drop(&f);
}
END_TEST

START_TEST(json_pattern_that_explodes)
{
    struct fx f = fx_new();
    struct dtx_tokenizer *t;
    struct dtx_ids ids = {0};
    char text[4096];
    int64_t start = clock_mono_ns();

    t = load_json(&f,
                  "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"behavior\":\"Isolated\","
                  "\"pattern\":{"
                  "\"Regex\":\"(a|aa|aaa)+[!?]\"}},{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}",
                  "", "", "[]", "");
    memset(text, 'a', sizeof(text));
    ck_assert_int_eq(dtx_tokenizer_encode(t, text, sizeof(text), &ids, &err), -EINVAL);
    ck_assert_ptr_nonnull(strstr(err.msg, "too many steps"));
    ck_assert_uint_eq(ids.n, 0);
    ck_assert((double)(clock_mono_ns() - start) < 1e10 * slow());
    dtx_ids_release(&ids);
    dtx_tokenizer_free(t);
    fx_drop(&f);
}
END_TEST

/* ---- speed: a megabyte of anything takes no quadratic time ---- */

static void timed(const struct dtx_tokenizer *t, const char *what, const char *text, size_t n)
{
    struct dtx_ids ids = {0};
    int64_t start = clock_mono_ns();
    double s;

    ck_assert_int_eq(dtx_tokenizer_encode(t, text, n, &ids, &err), 0);
    s = (double)(clock_mono_ns() - start) / 1e9;
    printf("  %-28s %6.2f MB/s, %.2f bytes a token\n", what, (double)n / 1e6 / s, (double)n / (double)ids.n);
    ck_assert_msg(s < 30 * slow(), "%s took %.1f s", what, s);
    dtx_ids_release(&ids);
}

START_TEST(speed)
{
    static const char *const dirs[] = {"../shared/tokenizers/llama2", "../shared/tokenizers/llama3"};
    size_t n = 1 << 20;
    char *same;
    struct buf prose = BUF_INIT;

    if (absent("speed", "../shared/data/tinystories/tinystories_sample.txt"))
        return;
    same = malloc(n);
    ck_assert_int_eq(
        fd_read_file(AT_FDCWD, "../shared/data/tinystories/tinystories_sample.txt", 1 << 24, &prose, &err),
        0);
    for (int i = 0; i < 2; i++) {
        struct dtx_tokenizer *t = load(dirs[i]);
        printf("%s\n", dirs[i]);
        timed(t, "prose", prose.p, prose.len);
        memset(same, 'a', n);
        timed(t, "1 MB of a", same, n);
        memset(same, ' ', n);
        timed(t, "1 MB of spaces", same, n);
        memset(same, '\n', n);
        timed(t, "1 MB of newlines", same, n);
        memset(same, 0xff, n);
        timed(t, "1 MB of bytes 0xff", same, n);
        dtx_tokenizer_free(t);
    }
    free(same);
    buf_release(&prose);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("tokenizer");
    TCase *c = tcase_create("all");
    SRunner *r;
    int failed;

    tcase_set_timeout(c, 120);
    tcase_add_test(c, llama2_vectors);
    tcase_add_test(c, llama3_vectors);
    tcase_add_test(c, llama3_special_tokens);
    tcase_add_test(c, golden_rows);
    tcase_add_test(c, golden_answers);
    tcase_add_test(c, spm_merges_by_score_then_leftmost);
    tcase_add_test(c, spm_spaces);
    tcase_add_test(c, spm_squeezes_spaces);
    tcase_add_test(c, spm_user_unused_and_unknown);
    tcase_add_test(c, spm_refuses);
    tcase_add_test(c, added_tokens_beside_a_model_file);
    tcase_add_test(c, json_gpt2_like);
    tcase_add_test(c, json_ignore_merges_and_prefix_space);
    tcase_add_test(c, json_split_and_digits);
    tcase_add_test(c, json_nfc);
    tcase_add_test(c, json_llama2_like);
    tcase_add_test(c, json_refuses);
    tcase_add_test(c, json_pattern_that_explodes);
    tcase_add_test(c, speed);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
