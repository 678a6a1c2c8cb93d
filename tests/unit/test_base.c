/* scheduler/base: what every part stands on. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"
#include "scheduler/base/text.h"
#include "tests/unit/files_fixture.h"

static struct dtx_err err;

/* ---- json ---- */

static void bad_json(const char *text, size_t n, const char *message)
{
    json_t *v = (json_t *)1;

    ck_assert_int_eq(json_parse_text("x.json", text, n, &v, &err), -EINVAL);
    ck_assert_ptr_null(v);
    ck_assert_msg(strstr(err.msg, message) != NULL, "\"%s\" does not contain \"%s\"", err.msg, message);
}

#define BAD_JSON(text, message) bad_json(text, sizeof(text) - 1, message)

START_TEST(json_refuses_with_a_position)
{
    BAD_JSON("{\"a\":1,\n \"a\":2}", "x.json:2:");
    BAD_JSON("{\"a\":1,\n \"a\":2}", "duplicate");
    BAD_JSON("{\"a\":\n\"\xff\"}", "x.json:2:2: byte 0xff is not UTF-8");
    BAD_JSON("{\"a\":1} x", "x.json:1:");
    BAD_JSON("{\"a\": [1\0, 2]}", "x.json:1:9: a NUL byte"); /* jansson would take it */
    BAD_JSON("{\"a\":1,}", "x.json:1:");
    BAD_JSON("", "x.json:1:1");
    BAD_JSON("{\"a\": NaN}", "not valid JSON");
    BAD_JSON("\xed\xa0\x80", "UTF-8"); /* a surrogate */
}
END_TEST

START_TEST(json_depth)
{
    char text[4096];
    json_t *v;

    for (int depth = 63; depth <= 66; depth++) {
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        if (depth <= 64) {
            ck_assert_int_eq(json_parse_text("d", text, 2 * (size_t)depth, &v, &err), 0);
            json_decref(v);
        } else {
            bad_json(text, 2 * (size_t)depth, "x.json:1:65: nested deeper than 64");
        }
    }
    memset(text, '[', sizeof(text));
    bad_json(text, sizeof(text), "nested deeper");
    /* brackets in a string, behind an escaped quote, do not count */
    text[0] = '"';
    text[1] = '\\';
    text[2] = '"';
    text[sizeof(text) - 1] = '"';
    ck_assert_int_eq(json_parse_text("d", text, sizeof(text), &v, &err), 0);
    json_decref(v);
}
END_TEST

START_TEST(json_values)
{
    static const char text[] = "{\"s\":\"x\",\"i\":3,\"r\":2.5,\"t\":true,\"n\":null,\"z\":\"a\\u0000b\"}";
    json_t *v;
    struct buf b = BUF_INIT;

    ck_assert_int_eq(json_parse_text("v", text, strlen(text), &v, &err), 0);
    ck_assert_str_eq(json_str(v, "s", "f"), "x");
    ck_assert_str_eq(json_str(v, "i", "f"), "f");
    ck_assert_int_eq(json_int(v, "i", 9), 3);
    ck_assert_int_eq(json_int(v, "r", 9), 9);
    ck_assert(json_num(v, "i", 0) == 3 && json_num(v, "r", 0) == 2.5 && json_num(v, "t", 7) == 7);
    ck_assert(json_flag(v, "t", 0) == 1 && json_flag(v, "i", 5) == 5 && json_flag(v, "none", 5) == 5);
    ck_assert_uint_eq(json_string_length(json_object_get(v, "z")), 3);
    json_dump_buf(v, &b);
    ck_assert_str_eq(b.p, "{\"i\":3,\"n\":null,\"r\":2.5,\"s\":\"x\",\"t\":true,\"z\":\"a\\u0000b\"}");
    buf_release(&b);
    json_decref(v);
}
END_TEST

static void at(const char *text, const char *path, int want_key, int line, int column)
{
    int l = 0, c = 0;

    ck_assert_msg(json_locate(text, strlen(text), path, want_key, &l, &c) == 0, "%s not found", path);
    ck_assert_msg(l == line && c == column, "%s: %d:%d, expected %d:%d", path, l, c, line, column);
}

START_TEST(json_prints_short_numbers)
{
    static const double numbers[] = {0.003, 1e-4,   2e-05,   0.1 + 0.2, 3.0, -0.5,
                                     1e300, 5e-324, 1.0 / 3, 1e15,      0.0};
    struct dtx_err err;
    struct buf b = BUF_INIT;
    json_t *v = json_pack("{s:f, s:i, s:s, s:[f,b,n]}", "lr", 0.003, "n", 12, "0.10000000000000001",
                          "a \"0.10000000000000001\" b", "more", 2.5, 1),
           *back;

    json_print_buf(v, &b);
    ck_assert_str_eq(
        b.p, "{\n  \"lr\": 0.003,\n  \"n\": 12,\n  \"0.10000000000000001\": \"a "
             "\\\"0.10000000000000001\\\" b\",\n  \"more\": [\n    2.5,\n    true,\n    null\n  ]\n}\n");
    json_decref(v);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        buf_clear(&b);
        v = json_real(numbers[i]);
        json_print_buf(v, &b);
        json_decref(v);
        ck_assert_int_eq(json_parse_text("n", b.p, b.len, &back, &err), 0);
        ck_assert_msg(json_is_real(back) && json_real_value(back) == numbers[i], "%s", b.p);
        json_decref(back);
    }
    buf_release(&b);
}
END_TEST

START_TEST(json_positions)
{
    static const char text[] =
        "{ \"a\": {\"b\\\"]\": [1, {\"x\": 2}, \"}\"],\n  \"c\": true},\n \"\xc3\xa9\": 5, \"d\": []}";
    int l, c;

    at(text, "a", 1, 1, 3);
    at(text, "a", 0, 1, 8);
    at(text, "a.c", 1, 2, 3);
    at(text, "a.c", 0, 2, 8);
    at(text, "d", 1, 3, 10); /* é is one column */
    at("{\"jobs\":[{\"n\":1},\n{\"n\":[2,3]}]}", "jobs[1].n[1]", 0, 2, 9);
    at("{\"jobs\":[{\"n\":1},\n{\"n\":[2,3]}]}", "jobs[1]", 1, 2, 1);
    ck_assert_int_eq(json_locate(text, strlen(text), "a.z", 0, &l, &c), -ENOENT);
    ck_assert_int_eq(json_locate(text, strlen(text), "d[0]", 0, &l, &c), -ENOENT);
    ck_assert_int_eq(json_locate(text, strlen(text), "a[0]", 0, &l, &c), -ENOENT);
    ck_assert_int_eq(json_locate("", 0, "a", 0, &l, &c), -ENOENT);
    ck_assert_int_eq(json_locate("{\"a\": [1\0, 2], \"b\": 3}", 23, "b", 1, &l, &c), 0); /* it ends */
}
END_TEST

START_TEST(json_files_are_bounded)
{
    struct fx f = fx_new();
    json_t *v;

    fx_puts(&f, "a.json", "{\"a\":[1,2,3]}");
    ck_assert_int_eq(json_parse_file(f.fd, "a.json", 13, &v, &err), 0);
    json_decref(v);
    ck_assert_int_eq(json_parse_file(f.fd, "a.json", 12, &v, &err), -EFBIG);
    ck_assert_int_eq(json_parse_file(f.fd, "b.json", 12, &v, &err), -ENOENT);
    ck_assert_int_eq(mkfifoat(f.fd, "fifo", 0600), 0);
    ck_assert_int_eq(json_parse_file(f.fd, "fifo", 12, &v, &err), -EINVAL); /* and does not wait */
    fx_drop(&f);
}
END_TEST

/* ---- text ---- */

START_TEST(utf8)
{
    static const struct {
        const char *s;
        size_t n, bad_at;
    } cases[] = {
        {"abc", 3, 3},
        {"\xc3\xa9", 2, 2},
        {"\xf0\x9f\xa6\x99", 4, 4},
        {"\xf4\x8f\xbf\xbf", 4, 4},
        {"a\x80", 2, 1},
        {"\xc0\x80", 2, 0},
        {"\xe0\x80\x80", 3, 0},
        {"\xed\xa0\x80", 3, 0},
        {"\xf4\x90\x80\x80", 4, 0},
        {"a\xe2\x82", 3, 1},
        {"\xf5\x80\x80\x80", 4, 0},
        {"a\0b", 3, 3},
        {"", 0, 0},
    };

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_uint_eq(text_utf8_bad_at(cases[i].s, cases[i].n), cases[i].bad_at);
        ck_assert(text_utf8_valid(cases[i].s, cases[i].n) == (cases[i].bad_at == cases[i].n));
    }
}
END_TEST

START_TEST(names)
{
    static const char *const good[] = {"a",
                                       "r\xc3\xa9sum\xc3\xa9 2",
                                       "tuned.best",
                                       "sedan",
                                       "part",
                                       "49131",
                                       "x.tmp.1",
                                       "statuses",
                                       "a.status.json",
                                       "012345678901234567890123456789012345678901234567890123456789012"};
    static const char *const bad[] = {"",
                                      ".a",
                                      "..",
                                      "a/b",
                                      "a\nb",
                                      "a\x7f",
                                      "x.status",
                                      ".status",
                                      "a\xc2\x9b[2J",
                                      "a\xe2\x80\xae.txt",
                                      "x~",
                                      "x.tmp",
                                      "x.part",
                                      "x.swp",
                                      "sedabc123",
                                      "4913",
                                      "\xff",
                                      "0123456789012345678901234567890123456789012345678901234567890123"};
    char long_name[301];

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        ck_assert_msg(name_check(good[i], &err) == 0, "%s: %s", good[i], err.msg);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        err.msg[0] = '\0';
        ck_assert_msg(name_check(bad[i], &err) < 0, "accepted: %s", bad[i]);
        ck_assert(err.msg[0]);
    }
    memset(long_name, 'n', 300);
    long_name[300] = '\0';
    ck_assert_int_eq(name_check(long_name, &err), -ENAMETOOLONG);
    ck_assert_ptr_nonnull(strstr(err.msg, "300 bytes"));
}
END_TEST

START_TEST(leftovers)
{
    static const char *const yes[] = {".a",        "a~",  "x.swp",     ".x.swo",   "a.tmp", "a.part",
                                      "sedAb12CD", "._x", ".DS_Store", ".nfs0001", "4913"};
    static const char *const no[] = {"a",    "sed", "sedan", "sedAb12CDE", "a.json",
                                     "4914", "tmp", "swp",   "a.swap"};

    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
        ck_assert_msg(name_is_leftover(yes[i]), "%s", yes[i]);
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++)
        ck_assert_msg(!name_is_leftover(no[i]), "%s", no[i]);
}
END_TEST

START_TEST(nfc)
{
    char out[16];

    ck_assert_int_eq(name_nfc("e\xcc\x81", out, sizeof(out)), 0);
    ck_assert_str_eq(out, "\xc3\xa9");
    ck_assert_int_eq(name_nfc("abcdef", out, 6), -ENAMETOOLONG);
    ck_assert_int_eq(name_nfc("abcde", out, 6), 0);
    ck_assert_int_eq(name_nfc("\xff", out, sizeof(out)), -EINVAL);
}
END_TEST

START_TEST(blank_text)
{
    ck_assert(text_is_blank(NULL, 0));
    ck_assert(text_is_blank(" \t\r\n", 4));
    ck_assert(!text_is_blank(" x", 2));
    ck_assert(!text_is_blank(" \0", 2));
}
END_TEST

START_TEST(joined_paths)
{
    struct dtx_err err = {0};
    char path[PATH_MAX], name[PATH_MAX];

    ck_assert_int_eq(fd_join(path, "a/b", "c.json", &err), 0);
    ck_assert_str_eq(path, "a/b/c.json");
    memset(name, 'x', sizeof(name));
    name[PATH_MAX - 3] = '\0';
    ck_assert_int_eq(fd_join(path, "a", name, &err), 0);
    ck_assert_int_eq(fd_join(path, "ab", name, &err), -ENAMETOOLONG);
    ck_assert(strstr(err.msg, "path too long: ab"));
}
END_TEST

START_TEST(nearest_word)
{
    static const char *const words[] = {"learning_rate", "epochs", "lora_r", "lora_alpha"};
    char long_word[200];

    ck_assert_int_eq(text_nearest("learning_rat", words, 4), 0);
    ck_assert_int_eq(text_nearest("leraning_rate", words, 4), 0);
    ck_assert_int_eq(text_nearest("epoch", words, 4), 1);
    ck_assert_int_eq(text_nearest("lora_r", words, 4), 2);
    ck_assert_int_eq(text_nearest("zebra", words, 4), -1);
    ck_assert_int_eq(text_nearest("", words, 4), -1);
    memset(long_word, 'e', sizeof(long_word) - 1);
    long_word[sizeof(long_word) - 1] = '\0';
    ck_assert_int_eq(text_nearest(long_word, words, 4), -1);
}
END_TEST

/* ---- buffers ---- */

static void check_json_text(const char *in, size_t n, const char *want)
{
    struct buf b = BUF_INIT;

    buf_add_json(&b, in, n);
    ck_assert_str_eq(b.p, want);
    buf_release(&b);
}

START_TEST(buf_json)
{
    json_t *v;
    struct buf b = BUF_INIT;

    check_json_text("a\"b\\c", 5, "\"a\\\"b\\\\c\"");
    check_json_text("a\nb\tc\x01", 6, "\"a\\nb\\tc\\u0001\"");
    check_json_text("", 0, "\"\"");
    check_json_text("a\xff"
                    "b\xe2\x82",
                    5,
                    "\"a\xef\xbf\xbd"
                    "b\xef\xbf\xbd\xef\xbf\xbd\"");
    /* every byte, twice in a row: always valid JSON */
    for (int i = 0; i < 256; i++) {
        char two[2] = {(char)i, (char)i};
        buf_clear(&b);
        buf_add_json(&b, two, 2);
        ck_assert_int_eq(json_parse_text("b", b.p, b.len, &v, &err), 0);
        json_decref(v);
    }
    buf_release(&b);
}
END_TEST

START_TEST(buf_growth)
{
    struct buf b = BUF_INIT;
    size_t n = 0;
    char *p;

    for (int i = 0; i < 10000; i++)
        buf_addf(&b, "%d,", i);
    ck_assert_uint_eq(b.len, 10 * 2 + 90 * 3 + 900 * 4 + 9000 * 5);
    ck_assert_int_eq(b.p[b.len], '\0');
    buf_clear(&b);
    ck_assert_uint_eq(b.len, 0);
    buf_add_html(&b, "<a & \"b\">", 9);
    ck_assert_ptr_null(strchr(b.p, '<'));
    ck_assert_ptr_nonnull(strstr(b.p, "&lt;a &amp; "));
    p = buf_detach(&b, &n);
    ck_assert_uint_eq(strlen(p), n);
    ck_assert_ptr_null(b.p);
    free(p);
    p = buf_detach(&b, &n);
    ck_assert_str_eq(p, "");
    free(p);
    ck_assert_int_eq(buf_reserve(&b, SIZE_MAX - 4), -ENOMEM);
    buf_adds(&b, "x"); /* a failed buffer stays failed */
    ck_assert(b.failed && b.len == 0);
    buf_release(&b);
}
END_TEST

/* ---- errors ---- */

START_TEST(errors)
{
    struct dtx_err e = {0};
    char big[4000];

    ck_assert_int_eq(dtx_fail(&e, -EINVAL, "line\nbreak %d", 7), -EINVAL);
    ck_assert_str_eq(e.msg, "line break 7");
    ck_assert_int_eq(dtx_fail_context(&e, "file %s", "x"), -EINVAL);
    ck_assert_str_eq(e.msg, "file x: line break 7");
    errno = ENOSPC;
    ck_assert_int_eq(dtx_fail_errno(&e, "cannot write"), -ENOSPC);
    ck_assert_str_eq(e.msg, "cannot write: No space left on device");
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    ck_assert_int_eq(dtx_fail(&e, -EIO, "%s", big), -EIO);
    ck_assert_uint_lt(strlen(e.msg), sizeof(e.msg));
    ck_assert_int_eq(dtx_fail_context(&e, "%s", big), -EIO);
    ck_assert_int_eq(dtx_fail(NULL, -EIO, "nobody asks"), -EIO);
}
END_TEST

/* ---- files ---- */

START_TEST(replace_file)
{
    struct fx f = fx_new();
    struct buf b = BUF_INIT;
    struct stat st;

    ck_assert_int_eq(fd_replace_file(f.fd, "a", "one", 3, 0640, &err), 0);
    ck_assert_int_eq(fd_replace_file(f.fd, "a", "four", 4, 0640, &err), 0);
    ck_assert_int_eq(fd_read_file(f.fd, "a", 100, &b, &err), 0);
    ck_assert_str_eq(b.p, "four");
    ck_assert_int_eq(fstatat(f.fd, "a", &st, 0), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0640);
    ck_assert_int_eq(fd_mkdirs(f.fd, "d/e/f", 0755, &err), 0);
    ck_assert_int_eq(fd_mkdirs(f.fd, "d/e/f", 0755, &err), 0);
    ck_assert_int_lt(fd_replace_file(f.fd, "d/e/f", "x", 1, 0644, &err), 0); /* a folder is in the way */
    ck_assert_int_eq(fd_replace_file(f.fd, "no/such", "x", 1, 0644, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.msg, "no/"));
    /* no temporary file stays behind: only a and d, and nothing in d/e beside f */
    ck_assert_int_eq(unlinkat(f.fd, "d/e/f", AT_REMOVEDIR), 0);
    ck_assert_int_eq(unlinkat(f.fd, "d/e", AT_REMOVEDIR), 0);
    buf_release(&b);
    fx_drop(&f);
}
END_TEST

START_TEST(remove_tree_follows_no_links)
{
    struct fx f = fx_new();

    ck_assert_int_eq(fd_mkdirs(f.fd, "keep/in", 0755, &err), 0);
    fx_puts(&f, "keep/file", "x");
    ck_assert_int_eq(fd_mkdirs(f.fd, "gone/a/b", 0755, &err), 0);
    fx_puts(&f, "gone/a/file", "x");
    ck_assert_int_eq(symlinkat("../keep", f.fd, "gone/link"), 0);
    ck_assert_int_eq(symlinkat("../../keep/file", f.fd, "gone/a/link"), 0);
    ck_assert_int_eq(symlinkat("keep", f.fd, "link"), 0);
    ck_assert_int_eq(fd_remove_tree(f.fd, "gone", &err), 0);
    ck_assert_int_eq(faccessat(f.fd, "gone", F_OK, 0), -1);
    ck_assert_int_eq(faccessat(f.fd, "keep/file", F_OK, 0), 0);
    ck_assert_int_eq(faccessat(f.fd, "keep/in", F_OK, 0), 0);
    ck_assert_int_eq(fd_remove_tree(f.fd, "link", &err), 0); /* the link, not what it points to */
    ck_assert_int_eq(faccessat(f.fd, "keep/file", F_OK, 0), 0);
    ck_assert_int_eq(fd_remove_tree(f.fd, "never", &err), 0);
    fx_drop(&f);
}
END_TEST

START_TEST(locks)
{
    struct fx f = fx_new();
    int a = fd_lock_file(f.fd, "lock", &err);

    ck_assert_int_ge(a, 0);
    ck_assert_int_eq(fd_lock_file(f.fd, "lock", &err), -EBUSY);
    close(a);
    a = fd_lock_file(f.fd, "lock", &err);
    ck_assert_int_ge(a, 0);
    close(a);
    fx_drop(&f);
}
END_TEST

START_TEST(reading)
{
    struct fx f = fx_new();
    char four[4];
    int fd;

    fx_puts(&f, "a", "abcdef");
    fd = openat(f.fd, "a", O_RDWR);
    ck_assert_int_eq(fd_read_all(fd, four, 4), 0);
    ck_assert_int_eq(memcmp(four, "abcd", 4), 0);
    ck_assert_int_eq(fd_read_all(fd, four, 4), -EPIPE);
    ck_assert_int_eq(fd_pread_all(fd, four, 4, 2), 0);
    ck_assert_int_eq(memcmp(four, "cdef", 4), 0);
    ck_assert_int_eq(fd_pwrite_all(fd, "XY", 2, 1), 0);
    ck_assert_int_eq(fd_pread_all(fd, four, 4, 0), 0);
    ck_assert_int_eq(memcmp(four, "aXYd", 4), 0);
    ck_assert_int_eq(fd_pread_all(fd, four, 4, 3), -EPIPE);
    close(fd);
    fx_drop(&f);
}
END_TEST

/* ---- sha256, clock ---- */

START_TEST(sha256_values)
{
    static const char abc[] = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    struct fx f = fx_new();
    struct sha256 *s = sha256_new();
    char hex[65];

    sha256_text("abc", 3, hex);
    ck_assert_str_eq(hex, abc);
    sha256_text("", 0, hex);
    ck_assert_str_eq(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    sha256_add(s, "a", 1);
    sha256_add(s, "bc", 2);
    sha256_finish(s, hex);
    ck_assert_str_eq(hex, abc);
    fx_puts(&f, "abc", "abc");
    ck_assert_int_eq(sha256_file(f.fd, "abc", hex, &err), 0);
    ck_assert_str_eq(hex, abc);
    ck_assert_int_eq(sha256_file(f.fd, "none", hex, &err), -ENOENT);
    fx_drop(&f);
}
END_TEST

START_TEST(clocks)
{
    char out[32];
    int64_t a = clock_mono_ns();

    ck_assert_str_eq(clock_human(0.4, out, sizeof(out)), "0.4s");
    ck_assert_str_eq(clock_human(12, out, sizeof(out)), "12s");
    ck_assert_str_eq(clock_human(200, out, sizeof(out)), "3m20s");
    ck_assert_str_eq(clock_human(3720, out, sizeof(out)), "1h02m");
    ck_assert_uint_lt(strlen(clock_human(1e30, out, sizeof(out))), 24);
    ck_assert_uint_lt(strlen(clock_human((double)NAN, out, sizeof(out))), 24);
    ck_assert_uint_lt(strlen(clock_human(-5, out, sizeof(out))), 24);
    ck_assert_str_eq(clock_iso(0, out, sizeof(out)), "1970-01-01T00:00:00Z");
    ck_assert_str_eq(clock_iso(1795459605ll * 1000000000, out, sizeof(out)), "2026-11-23T18:46:45Z");
    ck_assert_int_ge(clock_mono_ns(), a);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base");
    TCase *c = tcase_create("all");
    SRunner *r;
    int failed;

    tcase_add_test(c, json_refuses_with_a_position);
    tcase_add_test(c, json_depth);
    tcase_add_test(c, json_values);
    tcase_add_test(c, json_prints_short_numbers);
    tcase_add_test(c, json_positions);
    tcase_add_test(c, json_files_are_bounded);
    tcase_add_test(c, utf8);
    tcase_add_test(c, names);
    tcase_add_test(c, leftovers);
    tcase_add_test(c, nfc);
    tcase_add_test(c, blank_text);
    tcase_add_test(c, joined_paths);
    tcase_add_test(c, nearest_word);
    tcase_add_test(c, buf_json);
    tcase_add_test(c, buf_growth);
    tcase_add_test(c, errors);
    tcase_add_test(c, replace_file);
    tcase_add_test(c, remove_tree_follows_no_links);
    tcase_add_test(c, locks);
    tcase_add_test(c, reading);
    tcase_add_test(c, sha256_values);
    tcase_add_test(c, clocks);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
