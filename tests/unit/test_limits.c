/* The administrator's limits: the configuration file, sizes, who is counted how, whose turn it is. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/text.h"
#include "scheduler/internal.h"
#include "tests/unit/slow.h"

/* ---- sizes ---- */

START_TEST(sizes_are_read)
{
    static const struct {
        const char *text;
        int64_t bytes;
    } rows[] = {
        {"0", 0},
        {"1048576", 1 << 20},
        {"50 GiB", 50ll << 30},
        {"50G", 50ll << 30},
        {"50g", 50ll << 30},
        {"50 GB", 50000000000},
        {"1.5K", 1536},
        {"2 TiB", 2ll << 40},
        {"7 B", 7},
        {"", -1},
        {"G", -1},
        {"-1", -1},
        {"1.5", -1},
        {"1. G", -1},
        {"50  GiB", -1},
        {"50 GiBs", -1},
        {"50 iB", -1},
        {"50 X", -1},
        {"99999999999 PiB", -1},
        {"1e3", -1},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        ck_assert_msg(text_parse_size(rows[i].text) == rows[i].bytes, "\"%s\": %lld", rows[i].text,
                      (long long)text_parse_size(rows[i].text));
}
END_TEST

START_TEST(sizes_are_written)
{
    char b[24];

    ck_assert_str_eq(text_size(0, b), "0 B");
    ck_assert_str_eq(text_size(1023, b), "1023 B");
    ck_assert_str_eq(text_size(1536, b), "1.5 KiB");
    ck_assert_str_eq(text_size(50ll << 30, b), "50 GiB");
    ck_assert_str_eq(text_size((50ll << 30) - (100 << 20), b), "49.9 GiB");
    ck_assert_str_eq(text_size(INT64_MAX, b), "8192 PiB");
}
END_TEST

/* ---- the configuration ---- */

START_TEST(configuration_is_read)
{
    static const char text[] =
        "{\"admins\": [\"root\", 1001], \"quotas\": {\"default\": \"1 GiB\", \"1002\": 4096, \"1003\": "
        "null},\n"
        " \"store_max\": \"2T\", \"store_reserve\": 1000, \"log_max\": \"1M\", \"work_days\": 0.5}";
    struct settings set;
    struct dtx_err e;

    ck_assert_msg(config_parse("f", text, strlen(text), &set, &e) == 0, "%s", e.msg);
    ck_assert(set.nadmins == 2 && set.admins[0] == 0 && set.admins[1] == 1001);
    ck_assert_int_eq(settings_quota(&set, 1001), 1 << 30);
    ck_assert_int_eq(settings_quota(&set, 1002), 4096);
    ck_assert_int_eq(settings_quota(&set, 1003), -1);
    ck_assert_int_eq(settings_quota(&set, 0), -1);
    ck_assert(set.store_max == 2ll << 40 && set.store_reserve == 1000 && set.log_max == 1 << 20);
    ck_assert_int_eq(set.work_ns, 43200 * SECOND_NS);
    ck_assert_int_eq(config_parse("f", "{}", 2, &set, &e), 0);
    ck_assert(set.nadmins == 0 && settings_quota(&set, 1002) == -1 && set.store_max == -1 &&
              set.store_reserve == 0 && set.log_max == 64 << 20 && set.work_ns == -1);
}
END_TEST

START_TEST(configuration_is_refused_in_words)
{
    static const struct {
        const char *text, *words;
    } rows[] = {
        {"{\n \"quota\": {}}", "f:2:2: key \"quota\": unknown key; did you mean \"quotas\"?"},
        {"{\"quotas\": {\"root\": \"fast\"}}",
         "f:1:21: key \"quotas.root\": found \"fast\" (string); expected a "
         "number of bytes, or a size like \"50 GiB\", or null"},
        {"{\"quotas\": {\"nobody-of-that-name\": 1}}", "found nobody-of-that-name"},
        {"{\"quotas\": 7}", "found 7; expected an object"},
        {"{\"quotas\": {\"default\": -1}}", "found -1"},
        {"{\"admins\": \"alice\"}", "write it in brackets"},
        {"{\"admins\": [true]}", "expected a user's name or number"},
        {"{\"log_max\": 1}", "key \"log_max\": found 1"},
        {"{\"hosts\": [\"example.org\"]}",
         "key \"hosts\": found a list of 1; expected a list of 0 to 0 items"},
        {"[]", "found a list; expected an object"},
        {"", "the file is empty"},
    };
    struct settings set;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct dtx_err e = {0};
        ck_assert_msg(config_parse("f", rows[i].text, strlen(rows[i].text), &set, &e) != 0, "taken: %s",
                      rows[i].text);
        ck_assert_msg(strstr(e.msg, rows[i].words) != NULL, "%s\ngives: %s\nwant: %s", rows[i].text, e.msg,
                      rows[i].words);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("limits");
    TCase *c = tcase_create("limits");
    SRunner *r;
    int failed;

    tcase_add_test(c, sizes_are_read);
    tcase_add_test(c, sizes_are_written);
    tcase_add_test(c, configuration_is_read);
    tcase_add_test(c, configuration_is_refused_in_words);
    suite_add_tcase(suite, c);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
