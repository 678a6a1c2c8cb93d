/* The administrator's limits: the configuration file, sizes, who is counted how, whose turn it is. */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
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

/* ---- logs ---- */

START_TEST(a_log_keeps_its_newer_half)
{
    char name[] = "/tmp/dtx-limits.XXXXXX", text[32], *all;
    struct buf b = BUF_INIT;
    int fd = mkstemp(name);

    for (int i = 0; i < 2000; i++)
        ck_assert_int_eq(write(fd, text, (size_t)snprintf(text, sizeof(text), "line %06d\n", i)), 12);
    ck_assert_int_eq(log_trim(AT_FDCWD, name, 24000), 0); /* not longer than that: as it is */
    ck_assert_int_eq(lseek(fd, 0, SEEK_END), 24000);
    ck_assert_int_eq(log_trim(AT_FDCWD, name, 16384), 0);
    ck_assert_int_eq(fd_read_file(AT_FDCWD, name, 1 << 20, &b, NULL), 0);
    ck_assert(b.len >= 8192 && b.len <= 8192 + 4096);
    all = strstr(b.p, "line ");
    ck_assert(all && all - b.p < 12);
    for (int i = atoi(all + 5); i < 2000; i++, all += 12)
        ck_assert_int_eq(atoi(all + 5), i);
    ck_assert_int_eq(*all, '\0');
    buf_release(&b);
    close(fd);
    unlink(name);
}
END_TEST

/* ---- groups ---- */

START_TEST(groups_of_a_caller)
{
    struct caller me = {.uid = geteuid(), .gid = 4000000, .pid = getpid()}, other = me, nobody = me;
    gid_t mine[64];
    int n = getgroups(64, mine);

    ck_assert(caller_in_group(&me, 4000000));
    for (int i = 0; i < n; i++)
        ck_assert(caller_in_group(&me, mine[i]));
    ck_assert(!caller_in_group(&me, 4000001));
    other.uid = 3999999; /* the process of that number is not the caller's: its groups say nothing */
    for (int i = 0; i < n; i++)
        ck_assert(!caller_in_group(&other, mine[i]));
    nobody.pid = 0;
    nobody.uid = 0; /* as from another machine: the database knows root's */
    ck_assert(caller_in_group(&nobody, 0));
    ck_assert(!caller_in_group(&nobody, 4000001));
    ck_assert(user_in_group(0, 0) && !user_in_group(3999999, 0));
}
END_TEST

/* ---- whose turn it is ---- */

START_TEST(turns)
{
    static const struct {
        const char *what;
        struct turn first, second;
    } rows[] = {
        {"priority before all", {.priority = 1, .uid = 1, .owner_running = 9}, {.priority = 0, .uid = 2}},
        {"a suspect, to know soon", {.suspect = true, .uid = 1, .owner_running = 9}, {.uid = 2}},
        {"the owner with fewer running",
         {.uid = 2, .owner_running = 0, .owner_served = 900, .exp_id = 9},
         {.uid = 1, .owner_running = 1, .owner_served = 0, .exp_id = 1}},
        {"of equals the one served least",
         {.uid = 2, .owner_served = 5, .exp_running = 3, .exp_id = 9},
         {.uid = 1, .owner_served = 6, .exp_running = 0, .exp_id = 1}},
        {"one owner's: the experiment with fewer running",
         {.uid = 1, .exp_running = 0, .exp_id = 9},
         {.uid = 1, .exp_running = 1}},
        {"then the older experiment",
         {.uid = 1, .exp_id = 1, .number = 7},
         {.uid = 2, .exp_id = 2, .number = 1}},
        {"then the base's row", {.uid = 1, .number = 0}, {.uid = 1, .number = 1}},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        ck_assert_msg(fair_order(&rows[i].first, &rows[i].second) < 0, "%s", rows[i].what);
        ck_assert_msg(fair_order(&rows[i].second, &rows[i].first) > 0, "%s, turned round", rows[i].what);
    }
}
END_TEST

/* Two owners, `slots` places, each with jobs of some length; experiments of one job each or all in one.  Job
 * by job, second by second, as dispatch.c does it. */
struct side {
    int jobs, seconds, from; /* from: the second in which they are dropped */
    bool many;               /* each job an experiment of its own */
};

static void play(const struct side side[2], int slots, int seconds, int first_start[2], int busy[2])
{
    struct fair f = {.n = 0};
    int left[2] = {side[0].jobs, side[1].jobs}, running[2] = {0, 0}, end[64], who[64], n = 0;

    for (int k = 0; k < 2; k++) {
        first_start[k] = -1;
        busy[k] = 0;
    }
    for (int t = 0; t < seconds; t++) {
        for (int i = 0; i < n; i++)
            if (end[i] == t) {
                running[who[i]]--;
                n--;
                end[i] = end[n];
                who[i] = who[n];
                i--;
            }
        fair_begin(&f, t * SECOND_NS);
        for (int k = 0; k < 2; k++)
            if (t >= side[k].from && left[k] + running[k])
                fair_present(&f, (uid_t)k, running[k]);
        fair_ready(&f);
        while (n < slots) {
            struct turn turn[2];
            int k = -1;
            for (int c = 0; c < 2; c++) {
                const struct owner *o = fair_owner(&f, (uid_t)c);
                turn[c] = (struct turn){.uid = (uid_t)c,
                                        .owner_running = o->running,
                                        .owner_served = o->served,
                                        .exp_running = side[c].many ? 0 : running[c],
                                        .exp_id = c};
                if (left[c] && t >= side[c].from && (k < 0 || fair_order(&turn[c], &turn[k]) < 0))
                    k = c;
            }
            if (k < 0)
                break;
            fair_present(&f, (uid_t)k, 1);
            left[k]--;
            running[k]++;
            if (first_start[k] < 0)
                first_start[k] = t;
            end[n] = t + side[k].seconds;
            who[n++] = k;
        }
        for (int k = 0; k < 2; k++)
            busy[k] += running[k];
    }
    free(f.v);
}

START_TEST(nobody_starves)
{
    static const struct {
        const char *what;
        struct side side[2];
        int slots, seconds;
        int late;                 /* the second owner's first job has begun by then */
        int share_min, share_max; /* of the busy seconds, the second owner's, in percent */
    } rows[] = {
        {"200 jobs in one experiment, then one",
         {{200, 10, 0, false}, {1, 10, 5, false}},
         1,
         100,
         10,
         10,
         10},
        {"200 experiments of one job, then one", {{200, 10, 0, true}, {1, 10, 5, true}}, 1, 100, 10, 10, 10},
        {"the same on eight places", {{200, 10, 0, true}, {1, 10, 5, true}}, 8, 100, 10, 1, 2},
        {"both have many, one place", {{500, 10, 0, false}, {500, 10, 0, false}}, 1, 1000, 10, 49, 51},
        {"both have many, eight places", {{5000, 10, 0, false}, {5000, 10, 0, true}}, 8, 1000, 0, 49, 51},
        {"short jobs beside long ones, one place",
         {{500, 50, 0, false}, {5000, 5, 0, false}},
         1,
         2000,
         50,
         45,
         55},
        {"who comes late has saved nothing up",
         {{500, 10, 0, false}, {500, 10, 500, false}},
         1,
         1000,
         510,
         20,
         30},
    };

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int start[2], busy[2], share;
        play(rows[i].side, rows[i].slots, rows[i].seconds, start, busy);
        share = busy[1] * 100 / (busy[0] + busy[1]);
        ck_assert_msg(start[1] >= 0 && start[1] <= rows[i].late, "%s: begun at %d", rows[i].what, start[1]);
        ck_assert_msg(share >= rows[i].share_min && share <= rows[i].share_max, "%s: %d%%", rows[i].what,
                      share);
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
    tcase_add_test(c, a_log_keeps_its_newer_half);
    tcase_add_test(c, groups_of_a_caller);
    tcase_add_test(c, turns);
    tcase_add_test(c, nobody_starves);
    suite_add_tcase(suite, c);
    r = srunner_create(suite);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
