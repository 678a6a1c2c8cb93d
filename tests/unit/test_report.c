/* Charts and pages: well-formed, whatever the names and texts are; the numbers where they belong. */
#include <check.h>
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/text.h"
#include "scheduler/report/report.h"

/* ---- a small checker of well-formedness (XML without DTD) ---- */

static const char *skip_name(const char *p)
{
    while (*p && (strchr("-_:.", *p) || isalnum((unsigned char)*p)))
        p++;
    return p;
}

static const char *bad_reference(const char *p)
{
    size_t n = strcspn(p, ";<& \n");
    return n < 12 && n > 1 && p[n] == ';' ? NULL : p;
}

/* NULL, or where it is wrong. */
static const char *malformed(const char *text, size_t len)
{
    const char *stack[100], *p = text;
    int depth = 0, roots = 0;

    if (!text_utf8_valid(text, len) || strlen(text) != len)
        return text;
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < 0x20 && !strchr("\t\n\r", text[i]))
            return text + i;
    if (strncmp(p, "<!DOCTYPE html>", 15) == 0)
        p += 15;
    for (; *p; p++) {
        const char *name = p + 1, *end;
        if (*p == '&' && bad_reference(p + 1))
            return p;
        if (*p != '<') {
            if (depth == 0 && !strchr(" \n", *p))
                return p;
            continue;
        }
        if (p[1] == '/') {
            end = skip_name(++name);
            if (depth == 0 || *end != '>' || strncmp(stack[--depth], name, (size_t)(end - name) + 0) ||
                *skip_name(stack[depth]) == 0 ||
                (size_t)(skip_name(stack[depth]) - stack[depth]) != (size_t)(end - name))
                return p;
            p = end;
            continue;
        }
        end = skip_name(name);
        if (end == name || depth == 100)
            return p;
        roots += depth == 0;
        stack[depth++] = name;
        while (*end == ' ') {
            const char *a = end + 1, *quote = skip_name(a);
            if (quote == a || quote[0] != '=' || quote[1] != '"')
                return end;
            for (end = quote + 2; *end && *end != '"'; end++)
                if (*end == '<' || (*end == '&' && bad_reference(end + 1)))
                    return end;
            if (*end++ != '"')
                return quote;
        }
        if (*end == '/') {
            depth--;
            end++;
        }
        if (*end != '>')
            return p;
        p = end;
    }
    return depth == 0 && roots == 1 ? NULL : p;
}

static void expect_well_formed(const struct buf *b)
{
    const char *bad;

    ck_assert(!b->failed && b->p);
    bad = malformed(b->p, b->len);
    ck_assert_msg(bad == NULL, "at %zu: %.80s", (size_t)(bad - b->p), bad);
}

START_TEST(the_checker_checks)
{
    static const char *const good[] = {"<a/>", "<a b=\"c\">x &amp; y<d/></a>",
                                       "<!DOCTYPE html>\n<html></html>\n"};
    static const char *const bad[] = {
        "<a>",         "<a></b>",  "<a b=c/>",       "<a>&</a>",     "<a>\x01</a>",
        "x",           "<a/><a/>", "<a b=\"<\"/>",   "<a></ab>",     "<ab></a>",
        "<a>\xff</a>", "",         "<a><b></a></b>", "<a b=\"&x\"/>"};

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        ck_assert_msg(!malformed(good[i], strlen(good[i])), "%s", good[i]);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        ck_assert_msg(malformed(bad[i], strlen(bad[i])) != NULL, "%s", bad[i]);
}
END_TEST

static size_t count(const struct buf *b, const char *what)
{
    size_t n = 0;

    for (const char *p = b->p; (p = strstr(p, what)); p += strlen(what))
        n++;
    return n;
}

static bool has(const struct buf *b, const char *what)
{
    return strstr(b->p, what) != NULL;
}

#define HOSTILE "<script>alert(\"1\")</script>&'\x01\xff\xef\xbf\xbe]]>"

/* ---- charts ---- */

static struct curve line(const char *name, size_t n, double (*f)(size_t))
{
    double *x = malloc((n + 1) * sizeof(*x)), *y = malloc((n + 1) * sizeof(*y));

    for (size_t i = 0; i < n; i++) {
        x[i] = (double)i + 1;
        y[i] = f(i);
    }
    return (struct curve){name, x, y, n, false};
}

static void line_release(struct curve *c)
{
    free((double *)c->x);
    free((double *)c->y);
}

static double falling(size_t i)
{
    return 1.5 * exp(-(double)i / 40) + .5;
}

static double with_gaps(size_t i)
{
    return i == 0 ? INFINITY : i % 10 == 9 ? NAN : (double)i;
}

static double constant(size_t i)
{
    return 2;
}

static double spiky(size_t i)
{
    return i == 54321 ? 9.5 : (double)(i % 7) / 7;
}

static double enormous(size_t i)
{
    return i % 2 ? 1e308 : -1e308;
}

static void chart(struct buf *b, const struct curve *c, size_t n)
{
    chart_svg(b, "Loss of x", "step", "loss", c, n);
    expect_well_formed(b);
    ck_assert_ptr_null(strstr(b->p, "nan"));
    ck_assert_ptr_null(strstr(b->p, "inf"));
}

START_TEST(chart_of_one_curve)
{
    struct curve c = line("job", 120, falling);
    struct buf b = BUF_INIT;

    chart(&b, &c, 1);
    ck_assert(has(&b, ">0.4</text>") && has(&b, ">2.0</text>") && has(&b, ">120</text>"));
    ck_assert(has(&b, ">Loss of x</text>") && has(&b, ">step</text>") && has(&b, ">loss</text>"));
    ck_assert_uint_eq(count(&b, "<path"), 1);
    ck_assert_uint_eq(count(&b, ">job</"), 2); /* tooltip and legend */
    ck_assert_uint_eq(count(&b, "stroke-dasharray"), 0);
    line_release(&c);
    buf_release(&b);
}
END_TEST

START_TEST(chart_of_odd_curves)
{
    struct curve c[] = {line("gaps", 50, with_gaps), line("constant", 30, constant), line("one", 1, constant),
                        line("none", 0, constant), line("enormous", 10, enormous)};
    struct buf b = BUF_INIT;

    chart(&b, c, 5);
    ck_assert(count(&b, "M") >= 6); /* a new start after each gap */
    for (size_t i = 0; i < 5; i++) {
        buf_clear(&b);
        chart(&b, &c[i], 1);
        ck_assert_int_eq(has(&b, "no numbers yet"), i >= 3);
    }
    buf_clear(&b);
    chart(&b, NULL, 0);
    ck_assert(has(&b, "no numbers yet"));
    for (size_t i = 0; i < 5; i++)
        line_release(&c[i]);
    buf_release(&b);
}
END_TEST

START_TEST(chart_of_huge_steps_ends)
{
    double x[] = {1e16, 1e16 + 2, 1e16 + 4}, y[] = {1e-300, 2e-300, 3e-300};
    struct curve c = {"far", x, y, 3, false};
    struct buf b = BUF_INIT;

    chart(&b, &c, 1);
    buf_release(&b);
}
END_TEST

START_TEST(chart_decimates_but_keeps_extremes)
{
    struct curve c = line("long", 100000, spiky);
    struct buf b = BUF_INIT;

    chart(&b, &c, 1);
    ck_assert_msg(b.len < 100000, "%zu bytes", b.len);
    ck_assert(has(&b, ">10</text>"));                   /* the axis reaches over the spike ... */
    ck_assert(has(&b, " 60.5L") || has(&b, " 60.5\"")); /* ... whose point is there: 44 + 330 * 0.5 / 10 */
    line_release(&c);
    buf_release(&b);
}
END_TEST

START_TEST(chart_of_32_curves)
{
    struct curve c[64];
    char name[32][16];
    struct buf b = BUF_INIT;

    for (size_t i = 0; i < 32; i++) {
        snprintf(name[i], sizeof(name[i]), "job-%02zu", i);
        c[2 * i] = line(name[i], 50, falling);
        c[2 * i + 1] = line(name[i], 5, falling);
        c[2 * i + 1].dashed = true;
    }
    chart(&b, c, 64);
    ck_assert_uint_eq(count(&b, "<path"), 64);
    for (size_t i = 0; i < 32; i++) {
        char entry[40], *at, color[8];
        snprintf(entry, sizeof(entry), ">%.15s</text>", name[i]);
        ck_assert_uint_eq(count(&b, entry), 1);
        snprintf(entry, sizeof(entry), "<title>%.15s</title>", name[i]);
        at = strstr(b.p, entry);
        ck_assert_ptr_nonnull(at);
        memcpy(color, strstr(at, "stroke=\"#") + 8, 7);
        color[7] = '\0';
        ck_assert_uint_eq(count(&b, color) >= 3, 1); /* line, dashed line, legend: and no other job's */
        for (size_t k = 0; k < i; k++) {
            snprintf(entry, sizeof(entry), "<title>%.15s</title>", name[k]);
            ck_assert(strncmp(strstr(strstr(b.p, entry), "stroke=\"#") + 8, color, 7) != 0);
        }
    }
    for (size_t i = 0; i < 64; i++)
        line_release(&c[i]);
    buf_release(&b);
}
END_TEST

START_TEST(chart_of_hostile_names)
{
    struct curve c = line(HOSTILE, 5, falling);
    struct buf b = BUF_INIT;

    chart_svg(&b, HOSTILE, HOSTILE, HOSTILE, &c, 1);
    expect_well_formed(&b);
    ck_assert(!has(&b, "<script"));
    line_release(&c);
    buf_release(&b);
}
END_TEST

START_TEST(curves_of_csv)
{
    const char *csv =
        "step,epoch,loss,eval_loss,lr\n1,0.1,2.5,,0.1\n2,0.2,2.25,2.4,0.1\n\nx,y\n3,0.3,nan,,0.1\r\n"
        "4,0.4,1.5,1.75,0.1\n5,0.5,1.2";
    struct curves c = {0};

    ck_assert_int_eq(curves_add_csv(&c, "a", csv, strlen(csv)), 0);
    ck_assert_int_eq(curves_add_csv(&c, "b", "", 0), 0);
    ck_assert_uint_eq(c.n, 3);
    ck_assert_uint_eq(c.v[0].n, 4); /* the last line is not finished */
    ck_assert(c.v[0].x[3] == 4 && c.v[0].y[1] == 2.25 && isnan(c.v[0].y[2]) && !c.v[0].dashed);
    ck_assert_uint_eq(c.v[1].n, 2);
    ck_assert(c.v[1].x[0] == 2 && c.v[1].y[1] == 1.75 && c.v[1].dashed);
    ck_assert_str_eq(c.v[2].name, "b");
    ck_assert_uint_eq(c.v[2].n, 0);
    curves_release(&c);
}
END_TEST

/* ---- pages ---- */

static json_t *experiment(void)
{
    return json_pack("{s:s,s:s,s:s,s:s,s:n,s:[{s:s,s:s,s:f,s:{s:f},s:i},{s:s,s:s,s:f},{s:s,s:s,s:s}],"
                     "s:[{s:s,s:s,s:{s:s,s:s,s:s}}]}",
                     "name", "exp", "state", "SUCCESS", "best", "02-b", "evaluation", "quiz", "finished",
                     "rows", "job", "02-b", "state", "SUCCESSFUL", "score", 81.25, "metrics", "rougeL", 0.875,
                     "seconds", 75, "job", "base:tiny", "state", "SUCCESSFUL", "score", 12.5, "job", "01-a",
                     "state", "FAILED", "reason", "loss <NaN>", "samples", "question", "why <b>?",
                     "reference", "because", "answers", "base:tiny", "dunno", "02-b", "because", "01-a",
                     "<i>other</i>");
}

START_TEST(report_of_an_experiment)
{
    const char *csv = "step,loss,eval_loss\n1,2,\n2,1,1.5\n";
    json_t *x = experiment();
    struct curves c = {0};
    struct buf b = BUF_INIT;

    curves_add_csv(&c, "01-a", csv, strlen(csv));
    report_html(&b, x, &c);
    expect_well_formed(&b);
    ck_assert(has(&b, "<title>exp</title>") && has(&b, "<tr class=\"best\"><td class=\"name\">02-b</td>"));
    ck_assert(has(&b, "81.2") && has(&b, "the untuned base has 12.5") && has(&b, ">rougeL</th>") &&
              has(&b, "0.8750"));
    ck_assert(has(&b, "1m15s") && has(&b, "loss &lt;NaN&gt;") && has(&b, "why &lt;b&gt;?"));
    ck_assert(has(&b, "02-b (best)") && has(&b, "base:tiny (untuned)") && has(&b, "1 more answer<"));
    ck_assert(has(&b, "&lt;i&gt;other") && has(&b, "<svg ") && has(&b, "width:81.2%"));
    ck_assert(!has(&b, "src=") && !has(&b, "<script") && !has(&b, "<link") && !has(&b, "url("));
    ck_assert(!has(&b, "href="));
    curves_release(&c);
    json_decref(x);
    buf_release(&b);
}
END_TEST

START_TEST(axes_that_vary_are_columns)
{
    json_t *x = json_pack("{s:s,s:[{s:s,s:s,s:i,s:b},{s:s,s:s,s:i,s:b},{s:s,s:n,s:n,s:b}]}", "name", "exp",
                          "rows", "job", "01", "model", "tiny", "seed", 1, "base", 0, "job", "02", "model",
                          "tiny", "seed", 2, "base", 0, "job", "base:tiny", "model", "seed", "base", 1);
    struct buf b = BUF_INIT;

    report_html(&b, x, NULL);
    expect_well_formed(&b);
    ck_assert(has(&b, ">seed</th>") && !has(&b, ">model</th>") && !has(&b, ">base</th>"));
    json_decref(x);
    buf_release(&b);
}
END_TEST

START_TEST(report_of_nothing)
{
    json_t *x = json_object();
    struct buf b = BUF_INIT;

    report_html(&b, x, NULL);
    expect_well_formed(&b);
    json_decref(x);
    buf_release(&b);
}
END_TEST

/* A value as hostile as jansson lets it be: every string and key. */
static json_t *hostile(int depth)
{
    static const char *const keys[] = {
        "name",       "state",       "best",    "job",       "rows",     "samples", "question",
        "answers",    "devices",     "score",   "reason",    "prompt",   "model",   "text",
        "error",      "experiments", "metrics", "reference", "counts",   "running", "jobs",
        "job_states", "leaderboard", "<k&\"'>", "seconds",   "progress", "created"};
    json_t *o = json_object(), *list;

    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        switch ((i + (size_t)depth) % 4) {
        case 0:
            json_object_set_new(o, keys[i], json_real(1e300));
            break;
        case 1:
            json_object_set_new(o, keys[i], depth ? hostile(depth - 1) : json_null());
            break;
        case 2:
            list = json_array();
            json_array_append_new(list, depth ? hostile(depth - 1) : json_true());
            json_array_append_new(list, json_array());
            json_object_set_new(o, keys[i], list);
            break;
        default:
            json_object_set_new(o, keys[i], json_string("<script>\x01 \"'&]]> `|` \xef\xbf\xbf"));
        }
    }
    return o;
}

START_TEST(pages_of_hostile_documents)
{
    for (int depth = 0; depth < 4; depth++) {
        json_t *x = hostile(depth);
        struct buf b = BUF_INIT;
        report_html(&b, x, NULL);
        expect_well_formed(&b);
        ck_assert(!has(&b, "<script"));
        buf_clear(&b);
        console_html(&b, x);
        expect_well_formed(&b);
        ck_assert(!has(&b, "<script"));
        compare_markdown(&b, x);
        compare_stats_tsv(&b, x);
        buf_release(&b);
        json_decref(x);
    }
}
END_TEST

START_TEST(console_page)
{
    static const char text[] =
        "{\"state\":\"RUNNING\",\"version\":\"1.0\",\"reason\":null,\"started\":\"2026-11-23T18:46:45Z\","
        "\"devices\":[{\"name\":\"gpu0\",\"state\":\"UP\",\"base\":\"llama\",\"jobs\":2,\"asks\":0,\"hello\":"
        "{\"device\":"
        "\"NVIDIA "
        "H100\",\"mem_total\":85899345920},\"stats\":{\"mem_used\":5368709120,\"tokens_per_s\":18244.5}}],"
        "\"counts\":{\"experiments\":{\"PROCESSING\":1},\"jobs\":{\"SUCCESSFUL\":1,\"FINETUNE\":1,\"FAILED\":"
        "1,"
        "\"PENDING\":1},\"datasets\":{\"READY\":7001,\"REJECTED\":9}},"
        "\"running\":[{\"experiment\":\"first\",\"name\":\"02-b\",\"state\":\"FINETUNE\",\"device\":\"gpu0\","
        "\"progress\":{\"step\":50,\"total\":100,\"loss\":1.25,\"eta_s\":75}}],"
        "\"experiments\":[{\"name\":\"old\",\"state\":\"SUCCESS\",\"job_states\":{\"SUCCESSFUL\":30,"
        "\"FAILED\":1},"
        "\"jobs\":null,\"leaderboard\":null},"
        "{\"name\":\"first\",\"state\":\"PROCESSING\",\"best\":\"01-a\",\"job_states\":{\"SUCCESSFUL\":1,"
        "\"FINETUNE\":1,\"FAILED\":1,\"PENDING\":1},\"jobs\":[{\"name\":"
        "\"01-a\","
        "\"state\":\"SUCCESSFUL\"},{\"name\":\"02-b\",\"state\":\"FINETUNE\",\"device\":\"gpu0\","
        "\"progress\":{\"step\":50,"
        "\"total\":100,\"loss\":1.25,\"eta_s\":75}},{\"name\":\"03-c\",\"state\":\"FAILED\",\"reason\":"
        "\"loss <NaN>\"},"
        "{\"name\":\"04-d\",\"state\":\"PENDING\"}],\"leaderboard\":[{\"job\":\"01-a\",\"score\":61.5}]}],"
        "\"datasets\":[{\"name\":\"d1\",\"state\":\"READY\"},{\"name\":\"d2\",\"state\":\"REJECTED\","
        "\"reason\":\"no <x>\"}],"
        "\"services\":[]}";
    struct buf b = BUF_INIT;
    json_t *s = json_loads(text, 0, NULL);

    ck_assert_ptr_nonnull(s);
    console_html(&b, s);
    expect_well_formed(&b);
    ck_assert(has(&b, "http-equiv=\"refresh\"") && has(&b, "started 2026-11-23T18:46:45Z"));
    ck_assert(has(&b, "<b>1</b><span>jobs running") && has(&b, "<b>1</b><span>jobs waiting"));
    ck_assert(has(&b, "<b>2</b><span>jobs ended") && has(&b, "<b>18244</b><span>tokens/s"));
    ck_assert(has(&b, "datasets/d2") && has(&b, "no &lt;x&gt;") && has(&b, "first/03-c") &&
              has(&b, "loss &lt;NaN&gt;"));
    ck_assert(has(&b, "<em>49%</em>") && has(&b, "1m15s") && has(&b, "1.2500")); /* of the job */
    ck_assert(has(&b, "2 of 4") && has(&b, "<em>62%</em>") &&
              has(&b, "<em>61.5</em>")); /* of the experiment */
    ck_assert(has(&b, "31 of 31") &&
              has(&b, "<em>100%</em>"));           /* of one of which the counts are all there is */
    ck_assert(has(&b, "7010") && has(&b, "7001")); /* more than are listed */
    ck_assert(has(&b, "NVIDIA H100") && has(&b, "80.0 GiB") && has(&b, "5.0 GiB"));
    ck_assert(has(&b, "state run\">PROCESSING") && has(&b, "state bad\">REJECTED"));
    ck_assert(!has(&b, "src=") && !has(&b, "<script") && !has(&b, "Services"));
    json_decref(s);
    buf_release(&b);
}
END_TEST

START_TEST(comparison)
{
    json_t *c = json_pack("{s:s,s:[{s:s,s:s,s:i,s:i,s:f,s:f,s:f,s:i,s:n},{s:s,s:s}]}", "prompt", "Why?",
                          "answers", "model", "a|b", "text", "```c\nx\n```", "prompt_tokens", 7, "new_tokens",
                          9, "tokens_per_s", 190.25, "ttft_s", 0.0215, "total_s", 0.07, "together", 2,
                          "error", "model", "gone", "error", "stopped\twhile\nanswering");
    struct buf b = BUF_INIT;

    compare_markdown(&b, c);
    ck_assert(has(&b, "# Prompt\n\n```text\nWhy?\n```\n"));
    ck_assert(has(&b, "| a\\|b | 7 | 9 | 190.2 | 0.021 | 0.070 | 2 |\n") ||
              has(&b, "| 0.022 | 0.070 | 2 |\n"));
    ck_assert(has(&b, "## a|b\n\n````text\n```c\nx\n```\n````\n"));
    ck_assert(has(&b, "## gone\n\nNo answer: stopped while answering\n"));
    buf_clear(&b);
    compare_stats_tsv(&b, c);
    ck_assert(has(
        &b, "model\tprompt_tokens\tnew_tokens\ttokens_per_s\tttft_s\ttotal_s\ttogether\terror\na|b\t7\t9\t"));
    ck_assert(has(&b, "\ngone\t-\t-\t-\t-\t-\t-\tstopped while answering\n"));
    json_decref(c);
    buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("report");
    TCase *tc = tcase_create("report");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, the_checker_checks);
    tcase_add_test(tc, chart_of_one_curve);
    tcase_add_test(tc, chart_of_odd_curves);
    tcase_add_test(tc, chart_of_huge_steps_ends);
    tcase_add_test(tc, chart_decimates_but_keeps_extremes);
    tcase_add_test(tc, chart_of_32_curves);
    tcase_add_test(tc, chart_of_hostile_names);
    tcase_add_test(tc, curves_of_csv);
    tcase_add_test(tc, report_of_an_experiment);
    tcase_add_test(tc, axes_that_vary_are_columns);
    tcase_add_test(tc, report_of_nothing);
    tcase_add_test(tc, pages_of_hostile_documents);
    tcase_add_test(tc, console_page);
    tcase_add_test(tc, comparison);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
