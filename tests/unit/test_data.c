/* Datasets: every form and format, and one test for each kind of bad input. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/data/data.h"

static char root[64]; /* a folder of this test */
static int root_fd;

static void make_root(void)
{
    strcpy(root, "/tmp/dtx-test-data-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
    root_fd = open(root, O_RDONLY | O_DIRECTORY);
    ck_assert_int_eq(mkdirat(root_fd, "ds", 0700), 0);
}

static void remove_root(void)
{
    fd_remove_tree(AT_FDCWD, root, NULL);
    close(root_fd);
}

static void put_bytes(const char *name, const void *data, size_t n)
{
    char path[256];
    int fd;

    snprintf(path, sizeof(path), "ds/%s", name);
    fd = openat(root_fd, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fd_write_all(fd, data, n), 0);
    close(fd);
}

static void put(const char *name, const char *text)
{
    put_bytes(name, text, strlen(text));
}

/* Everything that a walk gave, as text: "role:text|role:text\n" a row. */
struct seen {
    struct buf rows, skips;
    int n, n_skips;
    int stop_after;
};

static int see_row(void *arg, const struct data_row *row)
{
    struct seen *s = arg;

    for (int i = 0; i < row->n; i++)
        buf_addf(&s->rows, "%s%c:%s", i ? "|" : "", row->plain_text ? 't' : "sua"[row->turns[i].role],
                 row -> turns[i].text);
    buf_addc(&s->rows, '\n');
    s->n++;
    return s->stop_after && s->n == s->stop_after ? -77 : 0;
}

static void see_skip(void *arg, const char *why)
{
    struct seen *s = arg;

    buf_addf(&s->skips, "%s\n", why);
    s->n_skips++;
}

static void seen_release(struct seen *s)
{
    buf_release(&s->rows);
    buf_release(&s->skips);
}

static int walk_split(enum data_split split, struct seen *s, struct dtx_err *e)
{
    struct dataset *d;
    int rc = dataset_open(root_fd, "ds", NULL, &d, e);

    if (rc)
        return rc;
    rc = dataset_walk(d, split, see_row, see_skip, s, e);
    dataset_close(d);
    return rc;
}

static void expect_rows(const char *rows)
{
    struct seen s = {0};
    struct dtx_err e = {0};
    int rc = walk_split(DATA_TRAIN, &s, &e);

    ck_assert_msg(rc == 0, "%s", e.msg);
    ck_assert_str_eq(s.rows.p ? s.rows.p : "", rows);
    ck_assert_msg(s.n_skips == 0, "%s", s.skips.p ? s.skips.p : "");
    seen_release(&s);
}

/* One row is skipped, the good one beside it ("q" -> "a") is read. */
static void expect_skip(const char *why)
{
    struct seen s = {0};
    struct dtx_err e = {0};
    int rc = walk_split(DATA_TRAIN, &s, &e);

    ck_assert_msg(rc == 0, "%s", e.msg);
    ck_assert_str_eq(s.rows.p ? s.rows.p : "", "u:q|a:a\n");
    ck_assert_int_eq(s.n_skips, 1);
    ck_assert_msg(strstr(s.skips.p, why) != NULL, "\"%s\" is not in: %s", why, s.skips.p);
    seen_release(&s);
}

static void expect_failure(const char *why)
{
    struct seen s = {0};
    struct dtx_err e = {0};
    int rc = walk_split(DATA_TRAIN, &s, &e);

    ck_assert_msg(rc < 0, "no error; rows: %s", s.rows.p ? s.rows.p : "");
    ck_assert_msg(strstr(e.msg, why) != NULL, "\"%s\" is not in: %s", why, e.msg);
    seen_release(&s);
}

static void expect_check_failure(const char *why)
{
    struct dtx_err e = {0};
    json_t *report;

    ck_assert_int_lt(dataset_check(root_fd, "ds", NULL, &report, &e), 0);
    ck_assert_ptr_null(report);
    ck_assert_msg(strstr(e.msg, why) != NULL, "\"%s\" is not in: %s", why, e.msg);
}

#define GOOD "{\"instruction\":\"q\",\"response\":\"a\"}\n"

/* ---- forms ---- */

START_TEST(forms_of_rows)
{
    put("train.jsonl", GOOD
        "{\"instruction\":\"sum\",\"input\":\"1 2\",\"output\":3}\n"
        "{\"instruction\":\"x\",\"input\":\"\",\"output\":\"y\",\"system\":\"be brief\"}\n"
        "{\"prompt\":\"p\",\"completion\":\"c\"}\n"
        "{\"question\":\"q?\",\"answer\":\"a!\"}\n"
        "{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":\"user\",\"content\":\"u1\"},"
        "{\"role\":\"assistant\",\"content\":\"a1\"},{\"role\":\"user\",\"content\":[{\"type\":\"text\","
        "\"text\":\"u2\"}]},"
        "{\"role\":\"assistant\",\"content\":\"a2\"},{\"role\":\"user\",\"content\":\"not answered\"}]}\n"
        "{\"conversations\":[{\"from\":\"human\",\"value\":\"h\"},{\"from\":\"gpt\",\"value\":\"g\"}]}\n"
        "{\"text\":\" once upon a time \"}\n"
        "{\"instruction\":\"i\",\"response\":\"r\",\"history\":[[\"q0\",\"a0\"]]}\n"
        "{\"instruction\":\"two\",\"instances\":[{\"input\":\"\",\"output\":\"o1\"},{\"input\":\"n\","
        "\"output\":\"o2\"}]}\n"
        "{\"prompt\":[{\"role\":\"user\",\"content\":\"pp\"}],\"completion\":[{\"role\":\"assistant\","
        "\"content\":\"cc\"}]}\n");
    expect_rows("u:q|a:a\nu:sum\n1 2|a:3\ns:be brief|u:x|a:y\nu:p|a:c\nu:q?|a:a!\ns:s|u:u1|a:a1|u:u2|a:a2\n"
                "u:h|a:g\nt: once upon a time \nu:q0|a:a0|u:i|a:r\nu:two|a:o1\nu:two\nn|a:o2\nu:pp|a:cc\n");
}
END_TEST

START_TEST(features_map_columns)
{
    put("dataset.json", "{\"features\":{\"instruction\":\"ask\",\"response\":\"say\",\"system\":\"who\","
                        "\"history\":\"before\"}}");
    put("train.csv", "who,before,ask,say\nme,\"[[\"\"a\"\",\"\"b\"\"]]\",q,r\n,,q2,r2\n");
    expect_rows("s:me|u:a|a:b|u:q|a:r\nu:q2|a:r2\n");
    put("train.csv", "who,ask\nme,q\n");
    expect_check_failure("no column \"say\" (features.response of dataset.json)");
}
END_TEST

/* ---- formats ---- */

START_TEST(json_array_wrapper_and_lines)
{
    put("train.json",
        " [ {\"prompt\":\"a\",\"completion\":\"b\"},\n {\"prompt\":\"[{\\\"\",\"completion\":\"]}\"} ]\n");
    expect_rows("u:a|a:b\nu:[{\"|a:]}\n");
    put("train.json",
        "{\"version\":[1,{\"data\":[]}],\"data\":[{\"prompt\":\"a\",\"completion\":\"b\"}],\"n\":{\"x\":1}}");
    expect_rows("u:a|a:b\n");
    put("train.json", "{\"prompt\":\"a\",\"completion\":\"b\"}\n{\"prompt\":\"c\",\"completion\":\"d\"}\n");
    expect_rows("u:a|a:b\nu:c|a:d\n");
    put("train.json", "[]");
    expect_rows("");
}
END_TEST

START_TEST(csv_quoting)
{
    put("train.csv", "\xef\xbb\xbf"
                     "id,question,answer\r\n"
                     "1,\"What, \"\"this\"\"?\",\"line one\nline two\"\r\n"
                     "\r\n"
                     "2,plain \"quotes\" inside,\"\"\"\"\r\n"
                     "3,last,without line end");
    expect_rows("u:What, \"this\"?|a:line one\nline two\nu:plain \"quotes\" inside|a:\"\nu:last|a:without "
                "line end\n");
}
END_TEST

START_TEST(tsv)
{
    put("train.tsv", "question\tanswer\nq, with comma\ta\n\"tab\there\"\tb\n");
    expect_rows("u:q, with comma|a:a\nu:tab\there|a:b\n");
}
END_TEST

static size_t gzip(const char *text, size_t n, char *out, size_t max)
{
    z_stream z = {0};

    ck_assert_int_eq(deflateInit2(&z, 9, Z_DEFLATED, 16 + MAX_WBITS, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)text;
    z.avail_in = (uInt)n;
    z.next_out = (unsigned char *)out;
    z.avail_out = (uInt)max;
    ck_assert_int_eq(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return max - z.avail_out;
}

START_TEST(gz_of_several_members)
{
    char packed[1000];
    size_t n = gzip(GOOD, strlen(GOOD), packed, 500);

    n += gzip("\n" GOOD, strlen(GOOD) + 1, packed + n, 500);
    memset(packed + n, 0, 20);
    put_bytes("train.jsonl.gz", packed, n + 20);
    expect_rows("u:q|a:a\nu:q|a:a\n");
    put_bytes("train.jsonl.gz", packed, n - 9);
    expect_failure("train.jsonl.gz: ends in the middle");
    packed[n - 6] ^= 1;
    put_bytes("train.jsonl.gz", packed, n);
    expect_failure("train.jsonl.gz: its packed data is damaged");
    put("train.jsonl.gz", "not packed");
    expect_failure("train.jsonl.gz: is not gzip data");
    unlinkat(root_fd, "ds/train.jsonl.gz", 0);
    put_bytes("train.jsonl", packed, n);
    expect_failure("its name must end in .gz");
}
END_TEST

START_TEST(shards_in_order)
{
    struct seen s = {0};
    struct dtx_err e;

    put("train-00001-of-00002.jsonl", "{\"text\":\"two\"}");
    put("train-00000-of-00002.jsonl", "{\"text\":\"one\"}");
    put("train.csv~", "leftover");
    put("trainer.jsonl", "no split\n");
    put("val.csv", "text\nv\n");
    put("test.json", "[{\"text\":\"t\"}]");
    expect_rows("t:one\nt:two\n");
    ck_assert_int_eq(walk_split(DATA_VALIDATION, &s, &e), 0);
    ck_assert_int_eq(walk_split(DATA_TEST, &s, &e), 0);
    ck_assert_int_eq(s.n, 2);
    seen_release(&s);
    unlinkat(root_fd, "ds/train-00000-of-00002.jsonl", 0);
    expect_failure("2 parts, but 1 are here");
}
END_TEST

START_TEST(splits_of_dataset_json)
{
    mkdirat(root_fd, "ds/sub", 0700);
    put("sub/x.jsonl", GOOD);
    put("train.jsonl", "{\"text\":\"not this\"}");
    put("dataset.json", "{\"splits\":{\"train\":[\"sub/x.jsonl\",\"sub//x.jsonl\"],\"test\":null}}");
    expect_rows("u:q|a:a\nu:q|a:a\n");
    put("dataset.json", "{\"splits\":{\"train\":\"../ds/train.jsonl\"}}");
    expect_failure("leaves the dataset's folder");
    put("dataset.json", "{\"splits\":{\"train\":\"/etc/passwd.csv\"}}");
    expect_failure("not built yet");
    put("dataset.json", "{\"splits\":{\"train\":\"s3://bucket/train.jsonl\"}}");
    expect_failure("not built yet");
    put("dataset.json", "{\"splits\":{\"train\":\"http://host/train.jsonl\"}}");
    expect_failure("not built yet");
    put("dataset.json", "{\"splits\":{\"train\":\"sub/x.parquet\"}}");
    expect_failure("sub/x.parquet: not a format");
    put("dataset.json", "{\"splits\":{\"train\":\"none.csv\"}}");
    expect_failure("none.csv: No such file");
    put("dataset.json", "{\"plugin\":\"p\"}");
    expect_failure("not built yet");
    put("dataset.json", "{\"template\":\"lama2\"}");
    expect_failure("template \"lama2\": unknown; expected");
    put("dataset.json", "{\"features\":");
    expect_failure("dataset.json:1:");
}
END_TEST

START_TEST(walk_ends_when_asked)
{
    struct seen s = {.stop_after = 2};
    struct dtx_err e;

    put("train.jsonl", GOOD GOOD GOOD GOOD);
    ck_assert_int_eq(walk_split(DATA_TRAIN, &s, &e), -77);
    ck_assert_int_eq(s.n, 2);
    seen_release(&s);
}
END_TEST

/* ---- bad input ---- */

START_TEST(empty_dataset)
{
    expect_check_failure("no training data: expected train.jsonl");
    put("train.parquet", "PAR1");
    expect_check_failure("found train.parquet");
    put("train.jsonl", "");
    expect_check_failure("no usable row in the train split: it is empty");
    put("train.jsonl", "\n\n  \n");
    expect_check_failure("no usable row in the train split: it is empty");
}
END_TEST

START_TEST(rows_without_answers)
{
    static const char *const rows[][2] = {
        {"{\"instruction\":\"q\"}\n", "train.jsonl:1: \"instruction\" without an answer"},
        {"{\"question\":\"q\",\"answer\":\"  \"}\n", "train.jsonl:1: no answer"},
        {"{\"question\":\"q\",\"answer\":null}\n", "train.jsonl:1: no answer"},
        {"{\"question\":\"\",\"answer\":\"a\"}\n", "train.jsonl:1: an answer without a question"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}\n", "train.jsonl:1: no answer"},
        {"{\"messages\":[]}\n", "train.jsonl:1: no answer"},
        {"{\"messages\":7}\n", "train.jsonl:1: \"messages\" is no list"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\"}]}\n", "role \"tool\" cannot be trained"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}\n", "\"image_url\""},
        {"{\"conversations\":[{\"from\":\"gpt\",\"value\":\"x\"}]}\n", "an answer without a question"},
        {"{\"question\":{},\"answer\":\"a\"}\n", "\"question\" is an object; expected text"},
        {"{\"question\":\"a\\u0000b\",\"answer\":\"a\"}\n", "has a NUL character"},
        {"{\"foo\":1,\"bar\":2}\n", "found: foo, bar. Name yours in dataset.json"},
        {"[1]\n", "train.jsonl:1: a row is an object"},
        {"{\"instruction\":\"q\",\"instances\":[]}\n", "\"instances\" is empty"},
        {"{\"instruction\":\"q\",\"response\":\"r\",\"history\":[\"x\"]}\n", "history item 1"},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct buf b = BUF_INIT;
        buf_addf(&b, "%s%s", rows[i][0], GOOD);
        put("train.jsonl", b.p);
        expect_skip(rows[i][1]);
        buf_release(&b);
    }
    put("train.jsonl", "{\"instruction\":\"q\"}\n{\"instruction\":\"r\"}\n");
    expect_check_failure(
        "no usable row in the train split: train.jsonl:1: \"instruction\" without an answer");
}
END_TEST

START_TEST(bad_utf8)
{
    put("train.jsonl", GOOD "{\"question\":\"caf\xe9\",\"answer\":\"a\"}\n");
    expect_skip("train.jsonl:2: column 17: byte 0xe9 is not UTF-8");
    unlinkat(root_fd, "ds/train.jsonl", 0);
    put("train.csv", "question,answer\nq,a\nb,\xc3\n");
    expect_skip("train.csv:3: byte 0xc3 is not UTF-8");
    put("train.csv", "question,answer\nq,a\n\xc3,\xa9\n"); /* together they would be an e with an accent */
    expect_skip("train.csv:3: byte 0xc3 is not UTF-8");
    put("train.csv", "question,answ\xe9r\nq,a\n");
    expect_failure("train.csv:1: the header row is not UTF-8");
    put_bytes("train.csv", "a\0b,a\0c\nq,a\n", 12);
    expect_failure("train.csv:1: the header row holds a NUL byte");
    put_bytes("train.csv", "\xff\xfeq\0", 4);
    expect_failure("is UTF-16");
}
END_TEST

START_TEST(broken_json_line_has_its_number)
{
    put("train.jsonl", "\n" GOOD "{\"question\": \"x\", \"answer\" \"a\"}\n");
    expect_skip("train.jsonl:3: column ");
    unlinkat(root_fd, "ds/train.jsonl", 0);
    put("train.json", "[{\"prompt\":\"q\",\"completion\":\"a\"},\n{\"prompt\":\n x}]");
    expect_skip("train.json:3: column ");
    put("train.json", "[{\"prompt\":\"q\",\"completion\":\"a\"}\n{\"prompt\":\"r\"}]");
    expect_failure("train.json:2: expected , or ]");
    put("train.json", "[{\"prompt\":\"q\",\"completion\":\"a\"},\n");
    expect_failure("train.json:2: the file ends before the array");
    put("train.json", "[\n{\"prompt\":\"q");
    expect_failure("train.json:2: a text that starts on this line");
    put("train.json", "[{\"prompt\":\"q\",\"completion\":\"a\"}] x");
    expect_failure("train.json:1: more text after the end");
    put("train.json", "\"hello\"");
    expect_failure("train.json:1: expected an array of rows");
    put("train.json", "{\"a\" 1}");
    expect_failure("train.json:1: expected : after a key");
}
END_TEST

START_TEST(json_a_million_deep)
{
    size_t n = 1000000;
    char *text = malloc(n + sizeof(GOOD) + 1);

    memset(text, '[', n);
    text[n] = '\n';
    strcpy(text + n + 1, GOOD);
    put("train.jsonl", text);
    expect_skip("nested deeper than 64 levels");
    unlinkat(root_fd, "ds/train.jsonl", 0);
    put("train.json", text);
    expect_failure("train.json:1: the file ends inside the value");
    free(text);
}
END_TEST

START_TEST(huge_line)
{
    size_t n = 5 << 20;
    char *text = malloc(n + 100);

    memset(text, 'x', n);
    strcpy(text + n, "\n" GOOD);
    put("train.jsonl", text);
    expect_skip("train.jsonl:1: this row is longer than 4 MiB");
    unlinkat(root_fd, "ds/train.jsonl", 0);
    memcpy(text, "question,answer\n\"", 17);
    put("train.csv", text);
    expect_failure("train.csv:2: the row that starts here is longer than 4 MiB");
    memcpy(text, "question,answer\n1,", 18);
    strcpy(text + n, "\nq,a\n");
    put("train.csv", text);
    expect_skip("train.csv:2: this row is longer than 4 MiB");
    unlinkat(root_fd, "ds/train.csv", 0);
    memcpy(text, "[{\"x\":\"", 7);
    strcpy(text + n, "\"},\n{\"prompt\":\"q\",\"completion\":\"a\"}]");
    put("train.json", text);
    expect_skip("train.json:1: this row is longer than 4 MiB");
    free(text);
}
END_TEST

START_TEST(bad_csv)
{
    struct buf wide = BUF_INIT;

    put("train.csv", "question,answer\nq,a\nonly one\n");
    expect_skip("train.csv:3: 1 fields, but the header row has 2");
    put("train.csv", "question,answer\nq,a\n\"x\" y,b\n");
    expect_skip("train.csv:3: text after a closing \"");
    put("train.csv", "question,answer\nq,a\n\"x,b\n1,2\n");
    expect_failure("train.csv:3: a field of the row that starts here is never closed");
    put("train.csv", "answer,answer\nq,a\n");
    expect_failure("train.csv:1: two columns are called \"answer\"");
    put("train.csv", "what,ever\nq,a\n");
    expect_check_failure("found: what, ever");
    buf_adds(&wide, "question,answer\nq,a\n");
    for (int i = 0; i < 3000; i++)
        buf_addc(&wide, ',');
    put("train.csv", wide.p);
    expect_skip("more than 1024 columns");
    buf_release(&wide);
}
END_TEST

START_TEST(gz_bomb)
{
    size_t n = 200u << 20; /* 200 MiB of line ends in 200 KiB */
    char *zeros = malloc(n), *packed = malloc(1 << 20);
    size_t len;

    memset(zeros, '\n', n);
    len = gzip(zeros, n, packed, 1 << 20);
    put_bytes("train.jsonl.gz", packed, len);
    expect_failure("train.jsonl.gz: grows more than 250 times when unpacked");
    free(zeros);
    free(packed);
}
END_TEST

START_TEST(links_are_not_followed)
{
    char outside[128];
    int fd = openat(root_fd, "outside.jsonl", O_WRONLY | O_CREAT, 0600);

    ck_assert_int_eq(fd_write_all(fd, GOOD, strlen(GOOD)), 0);
    close(fd);
    snprintf(outside, sizeof(outside), "%s/outside.jsonl", root);
    ck_assert_int_eq(symlinkat("../outside.jsonl", root_fd, "ds/train.jsonl"), 0);
    expect_failure("train.jsonl: \"train.jsonl\" is a link");
    unlinkat(root_fd, "ds/train.jsonl", 0);
    ck_assert_int_eq(symlinkat("..", root_fd, "ds/sub"), 0);
    put("dataset.json", "{\"splits\":{\"train\":\"sub/outside.jsonl\"}}");
    expect_failure("\"sub\" is a link");
    unlinkat(root_fd, "ds/dataset.json", 0);
    ck_assert_int_eq(symlinkat(outside, root_fd, "ds/dataset.json"), 0);
    expect_failure("is a symbolic link");
    unlinkat(root_fd, "ds/dataset.json", 0);
    ck_assert_int_eq(mkfifoat(root_fd, "ds/train.jsonl", 0600), 0);
    expect_failure("not a regular file");
}
END_TEST

START_TEST(random_bytes_do_no_harm)
{
    static const char alphabet[] = "{}[]\":,\\\"\n\r\t ax1\xc3\xa9\0-";
    unsigned seed = 1;

    for (int round = 0; round < 300; round++) {
        char text[400];
        size_t n = (size_t)round;
        struct seen s = {0};
        struct dtx_err e;
        for (size_t i = 0; i < n; i++) {
            seed = seed * 1103515245u + 12345u;
            text[i] = alphabet[(seed >> 16) % (sizeof(alphabet) - 1)];
        }
        unlinkat(root_fd, "ds/train.jsonl", 0);
        unlinkat(root_fd, "ds/train.csv", 0);
        unlinkat(root_fd, "ds/train.json", 0);
        put_bytes(round % 3 == 0 ? "train.jsonl" : round % 3 == 1 ? "train.json" : "train.csv", text, n);
        walk_split(DATA_TRAIN, &s, &e);
        ck_assert_int_eq(s.n, 0);
        seen_release(&s);
    }
}
END_TEST

/* ---- check and hash ---- */

START_TEST(check_report)
{
    json_t *r, *example;
    struct dtx_err e = {0};

    put("train.jsonl", GOOD GOOD "{\"text\":\"\xc3\xa9\xc3\xa9\"}\nbroken\n" GOOD);
    put("test.csv", "question,answer\nq,a\n");
    put("dataset.json", "{\"metadata\":{\"languages\":[\"en\"]}}");
    ck_assert_msg(dataset_check(root_fd, "ds", NULL, &r, &e) == 0, "%s", e.msg);
    ck_assert_int_eq(json_int(json_object_get(r, "rows"), "train", 0), 4);
    ck_assert_int_eq(json_int(json_object_get(r, "rows"), "test", 0), 1);
    ck_assert_ptr_null(json_object_get(json_object_get(r, "rows"), "validation"));
    ck_assert_int_eq(json_int(r, "skipped", 0), 1);
    ck_assert_ptr_nonnull(
        strstr(json_string_value(json_array_get(json_object_get(r, "skip_reasons"), 0)), "train.jsonl:4:"));
    ck_assert_int_eq(json_int(r, "chars", 0), 10);
    ck_assert_int_eq(json_int(r, "longest_chars", 0), 2);
    ck_assert_uint_eq(strlen(json_str(r, "sha256", "")), 64);
    ck_assert_uint_eq(json_array_size(json_object_get(r, "formats")), 2);
    ck_assert_uint_eq(json_array_size(json_object_get(r, "examples")), 3);
    example = json_array_get(json_object_get(r, "examples"), 0);
    ck_assert_str_eq(json_str(example, "text", ""), "<s>[INST] q [/INST]a</s>");
    ck_assert_str_eq(json_str(example, "trained", ""), "a</s>");
    ck_assert_uint_eq(json_array_size(json_object_get(example, "pieces")), 2);
    ck_assert_ptr_nonnull(json_object_get(json_object_get(r, "metadata"), "languages"));
    json_decref(r);
}
END_TEST

static void hash(char hex[65])
{
    struct dataset *d;
    struct dtx_err e;

    ck_assert_int_eq(dataset_open(root_fd, "ds", NULL, &d, &e), 0);
    ck_assert_int_eq(dataset_sha256(d, hex, &e), 0);
    dataset_close(d);
}

START_TEST(hash_follows_the_content)
{
    char a[65], b[65], c[65], f[65];

    put("train.jsonl", GOOD);
    hash(a);
    put("notes.txt", "not data");
    hash(b);
    put("dataset.json", "{}");
    hash(c);
    put("train.jsonl", GOOD "\n");
    hash(f);
    ck_assert_str_eq(a, b);
    ck_assert_str_ne(b, c);
    ck_assert_str_ne(c, f);
}
END_TEST

/* ---- real data ---- */

static bool copy_shared(const char *test, const char *from, const char *to)
{
    struct buf b = BUF_INIT;

    if (fd_read_file(AT_FDCWD, from, 1 << 24, &b, NULL)) {
        printf("SKIP: %s: %s is not there\n", test, from);
        buf_release(&b);
        return false;
    }
    put_bytes(to, b.p, b.len);
    buf_release(&b);
    return true;
}

START_TEST(real_datasets_parse_fully)
{
    json_t *r;
    struct dtx_err e = {0};
    int64_t start = clock_mono_ns();

    if (!copy_shared("gsm8k", "../shared/data/gsm8k/train.jsonl", "train.jsonl") ||
        !copy_shared("gsm8k", "../shared/data/gsm8k/test.jsonl", "test.jsonl") ||
        !copy_shared("self_instruct", "../shared/data/self_instruct/seed_tasks.jsonl", "val-0.jsonl") ||
        !copy_shared("self_instruct", "../shared/data/self_instruct/user_oriented_instructions.jsonl",
                     "val-1.jsonl"))
        return;
    ck_assert_msg(dataset_check(root_fd, "ds", NULL, &r, &e) == 0, "%s", e.msg);
    printf("check of 5 MB: %.0f ms\n", (double)(clock_mono_ns() - start) / 1e6);
    ck_assert_int_eq(json_int(json_object_get(r, "rows"), "train", 0), 7473);
    ck_assert_int_eq(json_int(json_object_get(r, "rows"), "test", 0), 1319);
    ck_assert_int_ge(json_int(json_object_get(r, "rows"), "validation", 0), 175 + 252);
    if (json_int(r, "skipped", -1))
        json_dumpf(json_object_get(r, "skip_reasons"), stdout, JSON_INDENT(1));
    ck_assert_int_eq(json_int(r, "skipped", -1), 0);
    json_decref(r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("data");
    TCase *tc = tcase_create("data");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, make_root, remove_root);
    tcase_add_test(tc, forms_of_rows);
    tcase_add_test(tc, features_map_columns);
    tcase_add_test(tc, json_array_wrapper_and_lines);
    tcase_add_test(tc, csv_quoting);
    tcase_add_test(tc, tsv);
    tcase_add_test(tc, gz_of_several_members);
    tcase_add_test(tc, shards_in_order);
    tcase_add_test(tc, splits_of_dataset_json);
    tcase_add_test(tc, walk_ends_when_asked);
    tcase_add_test(tc, empty_dataset);
    tcase_add_test(tc, rows_without_answers);
    tcase_add_test(tc, bad_utf8);
    tcase_add_test(tc, broken_json_line_has_its_number);
    tcase_add_test(tc, json_a_million_deep);
    tcase_add_test(tc, huge_line);
    tcase_add_test(tc, bad_csv);
    tcase_add_test(tc, gz_bomb);
    tcase_add_test(tc, links_are_not_followed);
    tcase_add_test(tc, random_bytes_do_no_harm);
    tcase_add_test(tc, check_report);
    tcase_add_test(tc, hash_follows_the_content);
    tcase_add_test(tc, real_datasets_parse_fully);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
