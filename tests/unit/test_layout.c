/* The table of the tree is well-formed, every path of the design leads to the right row, and its texts are
 * there. */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mnt-layout/layout.h"
#include "mnt-layout/spec.h"
#include "scheduler/base/buf.h"

/* An example path of a pattern: {name} -> example, ** -> any/thing. */
static void example_path(const char *pattern, char *out, size_t outsz)
{
    struct buf b = BUF_INIT;

    for (const char *p = pattern; *p;) {
        if (*p == '{') {
            buf_adds(&b, "example");
            p = strchr(p, '}') + 1;
        } else if (strncmp(p, "**", 2) == 0) {
            buf_adds(&b, ".any/thing");
            p += 2;
        } else {
            buf_addc(&b, *p++);
        }
    }
    ck_assert_uint_lt(b.len, outsz);
    strcpy(out, b.p ? b.p : "");
    buf_release(&b);
}

START_TEST(every_row_is_reached_by_its_own_example)
{
    for (size_t i = 0; i < layout_count; i++) {
        const struct layout_entry *e = &layout_table[i];
        struct layout_match m;
        char path[512];

        example_path(e->pattern, path, sizeof(path));
        ck_assert_msg(layout_lookup(path, &m) == 0, "%s: not found", path);
        ck_assert_msg(m.entry == e, "%s: leads to %s, not to %s", path, m.entry->pattern, e->pattern);
        ck_assert_msg((m.rest != NULL) == (strstr(e->pattern, "**") != NULL), "%s: rest", path);
        for (int a = 0; a < m.nargs; a++)
            ck_assert_str_eq(m.arg[a], "example");
    }
}
END_TEST

START_TEST(patterns_are_well_formed)
{
    for (size_t i = 0; i < layout_count; i++) {
        const char *p = layout_table[i].pattern, *rest = strstr(p, "**");
        int braces = 0;

        for (const char *q = p; *q; q++) {
            braces += *q == '{';
            if (*q == '{')
                ck_assert_msg((q == p || q[-1] == '/') && strchr(q, '}'), "%s: {} in the middle", p);
        }
        ck_assert_msg(braces <= LAYOUT_MAX_ARGS, "%s: %d names", p, braces);
        ck_assert_msg(!rest || (rest[2] == '\0' && rest > p && rest[-1] == '/'), "%s: ** not last", p);
        ck_assert_msg(!strstr(p, "//") && p[0] != '/', "%s: slashes", p);
        ck_assert_msg(p[0] != '{' && p[0] != '*', "%s: begins with no literal", p);
        for (size_t k = 0; k < i; k++)
            ck_assert_msg(strcmp(layout_table[k].pattern, p) != 0, "%s: twice", p);
    }
}
END_TEST

/* The object of a path: the longest beginning of it that is an object's root. */
START_TEST(objects_are_found_from_any_depth)
{
    for (size_t i = 0; i < layout_count; i++) {
        char path[512], part[512];
        struct layout_match m, want = {.nargs = 0};
        size_t end = 0, want_end = 0;

        example_path(layout_table[i].pattern, path, sizeof(path));
        for (size_t n = 1; n <= strlen(path); n++) {
            if (path[n] != '/' && path[n] != '\0')
                continue;
            snprintf(part, sizeof(part), "%.*s", (int)n, path);
            if (layout_lookup(part, &m) || m.entry->object == OBJ_NONE || !m.nargs)
                continue;
            want = m;
            want_end = n;
        }
        if (!want.nargs) {
            ck_assert_msg(layout_object(path, &m, &end) == -ENOENT, "%s: in an object", path);
            continue;
        }
        ck_assert_msg(layout_object(path, &m, &end) == 0, "%s: in no object", path);
        ck_assert_msg(m.entry == want.entry && end == want_end && m.nargs == want.nargs, "%s: in %s", path,
                      m.entry->pattern);
    }
}
END_TEST

START_TEST(every_row_says_what_it_is)
{
    for (size_t i = 0; i < layout_count; i++) {
        const struct layout_entry *e = &layout_table[i];
        bool generated = e->kind == LK_TEXT || e->kind == LK_CONTROL || e->kind == LK_LINK;

        ck_assert_msg(e->help && strlen(e->help) > 4 && strlen(e->help) < 110, "%s: help", e->pattern);
        ck_assert_msg(!strchr(e->help, '\n'), "%s: help of several lines", e->pattern);
        ck_assert_msg(!generated || e->reader != LR_NONE, "%s: nobody renders it", e->pattern);
        ck_assert_msg((e->kind == LK_CONTROL) == (e->writer != LW_NONE), "%s: writer", e->pattern);
        ck_assert_msg(e->kind != LK_CONTROL || e->mode & 0200, "%s: cannot be written", e->pattern);
        ck_assert_msg(e->kind != LK_TEXT || !(e->mode & 0222), "%s: text that can be written", e->pattern);
        ck_assert_msg(e->kind != LK_DROP_DIR || e->mode == 01777, "%s: mode of a drop folder", e->pattern);
    }
}
END_TEST

static bool has_row(const char *dir, const char *name)
{
    char pattern[512];

    snprintf(pattern, sizeof(pattern), "%s%s%s", dir, *dir ? "/" : "", name);
    for (size_t i = 0; i < layout_count; i++)
        if (strcmp(layout_table[i].pattern, pattern) == 0)
            return true;
    return false;
}

START_TEST(every_folder_has_what_the_rules_ask)
{
    for (size_t i = 0; i < layout_count; i++) {
        const struct layout_entry *e = &layout_table[i];

        if (e->kind != LK_DIR && e->kind != LK_DROP_DIR)
            continue;
        ck_assert_msg(has_row(e->pattern, "README.md"), "%s: no README.md", e->pattern);
        ck_assert_msg(e->kind != LK_DROP_DIR || has_row(e->pattern, "**"), "%s: no ** for leftovers",
                      e->pattern);
        ck_assert_msg(e->kind != LK_DROP_DIR || e->lists != OBJ_NONE, "%s: lists nothing", e->pattern);
        if (e->lists != OBJ_NONE) {
            ck_assert_msg(has_row(e->pattern, "LIST.tsv"), "%s: no LIST.tsv", e->pattern);
            ck_assert_msg(has_row(e->pattern, "{name}.status"), "%s: no NAME.status", e->pattern);
            ck_assert_str_eq(object_kind_collection(e->lists), e->pattern);
        }
    }
}
END_TEST

START_TEST(parents_are_folders)
{
    for (size_t i = 0; i < layout_count; i++) {
        char dir[512];
        char *slash;
        struct layout_match m;

        strcpy(dir, layout_table[i].pattern);
        slash = strrchr(dir, '/');
        if (!slash)
            continue;
        *slash = '\0';
        ck_assert_msg(layout_lookup(dir, &m) == 0, "%s: its folder is not in the table",
                      layout_table[i].pattern);
        ck_assert_msg(m.entry->kind == LK_DIR || m.entry->kind == LK_DROP_DIR ||
                          m.entry->kind == LK_USER_DIR || m.entry->kind == LK_STORE_DIR,
                      "%s: its folder is none", layout_table[i].pattern);
    }
}
END_TEST

static const struct {
    const char *path, *pattern; /* NULL: there is no such path */
    const char *arg0, *arg1, *rest;
} paths[] = {
    {"", "", NULL, NULL, NULL},
    {"README.md", "README.md", NULL, NULL, NULL},
    {"status", "status", NULL, NULL, NULL},
    {"status.json", "status.json", NULL, NULL, NULL},
    {"index.html", "index.html", NULL, NULL, NULL},
    {"metrics.prom", "metrics.prom", NULL, NULL, NULL},
    {"log", "log", NULL, NULL, NULL},
    {"bin/dtx", "bin/dtx", NULL, NULL, NULL},
    {"templates/paramgroup.json", "templates/paramgroup.json", NULL, NULL, NULL},
    {"schemas/experiment.json", "schemas/experiment.json", NULL, NULL, NULL},
    {"datasets/faq", "datasets/{name}", "faq", NULL, NULL},
    {"datasets/faq.status", "datasets/{name}.status", "faq", NULL, NULL},
    {"datasets/faq/train.jsonl", "datasets/{name}/**", "faq", NULL, "train.jsonl"},
    {"datasets/faq/a/.b/c", "datasets/{name}/**", "faq", NULL, "a/.b/c"},
    {"datasets/faq/dataset.json", "datasets/{name}/dataset.json", "faq", NULL, NULL},
    {"datasets/.DS_Store", "datasets/**", NULL, NULL, ".DS_Store"},
    {"datasets/.partial/x", "datasets/**", NULL, NULL, ".partial/x"},
    {"paramgroups/lora.json", "paramgroups/{name}.json", "lora", NULL, NULL},
    {"paramgroups/v1.2.json", "paramgroups/{name}.json", "v1.2", NULL, NULL},
    {"paramgroups/.json", "paramgroups/**", NULL, NULL, ".json"},
    {"paramgroups/.lora.json.swp", "paramgroups/**", NULL, NULL, ".lora.json.swp"},
    {"paramgroups/lora.json~", "paramgroups/**", NULL, NULL, "lora.json~"},
    {"paramgroups/notes.txt", "paramgroups/**", NULL, NULL, "notes.txt"},
    {"paramgroups/4913", "paramgroups/**", NULL, NULL, "4913"},
    {"evaluations/e.json", "evaluations/{name}.json", "e", NULL, NULL},
    {"plugins/data/p/plugin.json", "plugins/data/{name}/plugin.json", "p", NULL, NULL},
    {"plugins/scoring/p/run.py", "plugins/scoring/{name}/**", "p", NULL, "run.py"},
    {"models/base/llama/config.json", "models/base/{name}/**", "llama", NULL, "config.json"},
    {"models/tuned/first.01-lora", "models/tuned/{name}", "first.01-lora", NULL, NULL},
    {"models/tuned/first.best", "models/tuned/{exp}.best", "first", NULL, NULL},
    {"models/tuned/first.01-a.status", "models/tuned/{name}.status", "first.01-a", NULL, NULL},
    {"models/tuned/first.01-lora/info.json", "models/tuned/{name}/**", "first.01-lora", NULL, "info.json"},
    {"models/by-base/llama/first.01-lora", "models/by-base/{value}/{name}", "llama", "first.01-lora", NULL},
    {"models/by-language/en", "models/by-language/{value}", "en", NULL, NULL},
    {"models/compare/parcel.txt", "models/compare/{name}.txt", "parcel", NULL, NULL},
    {"models/compare/parcel/answers.md", "models/compare/{name}/answers.md", "parcel", NULL, NULL},
    {"models/compare/parcel/llama.txt", "models/compare/{name}/**", "parcel", NULL, "llama.txt"},
    {"services/faq.json", "services/{name}.json", "faq", NULL, NULL},
    {"services/faq/model", "services/{name}/model", "faq", NULL, NULL},
    {"services/faq/ask/q.txt", "services/{name}/ask/{name}.txt", "faq", "q", NULL},
    {"services/faq/endpoint", "services/{name}/endpoint", "faq", NULL, NULL},
    {"experiments/first.json", "experiments/{name}.json", "first", NULL, NULL},
    {"experiments/a.b.json", "experiments/{name}.json", "a.b", NULL, NULL},
    {"experiments/first", "experiments/{exp}", "first", NULL, NULL},
    {"experiments/first.status", "experiments/{name}.status", "first", NULL, NULL},
    {"experiments/first.json.bak", "experiments/**", NULL, NULL, "first.json.bak"},
    {"experiments/first/leaderboard.tsv", "experiments/{exp}/leaderboard.tsv", "first", NULL, NULL},
    {"experiments/first/jobs/LIST.tsv", "experiments/{exp}/jobs/LIST.tsv", "first", NULL, NULL},
    {"experiments/first/jobs/01-a.b", "experiments/{exp}/jobs/{job}", "first", "01-a.b", NULL},
    {"experiments/first/jobs/01-a/metrics.csv", "experiments/{exp}/jobs/{job}/metrics.csv", "first", "01-a",
     NULL},
    {"experiments/first/jobs/01-a/checkpoint/adapter_model.safetensors",
     "experiments/{exp}/jobs/{job}/checkpoint/**", "first", "01-a", "adapter_model.safetensors"},
    {"experiments/first/jobs/sedation1", "experiments/{exp}/jobs/{job}", "first", "sedation1", NULL},
    {"devices/gpu0/status", "devices/{name}/status", "gpu0", NULL, NULL},
    {"experiments/first/nothing", NULL, NULL, NULL, NULL},
    {"experiments/first/status/x", NULL, NULL, NULL, NULL},
    {"nothing", NULL, NULL, NULL, NULL},
    {"devices/gpu0/fan", NULL, NULL, NULL, NULL},
    {"datasets/", NULL, NULL, NULL, NULL},
    {"datasets//a", NULL, NULL, NULL, NULL},
    {"/datasets", NULL, NULL, NULL, NULL},
    {".", NULL, NULL, NULL, NULL},
    {"datasets/a/../b", NULL, NULL, NULL, NULL},
    {"datasets/a/x/..", NULL, NULL, NULL, NULL},
};

START_TEST(paths_lead_to_their_rows)
{
    struct layout_match m;
    int rc = layout_lookup(paths[_i].path, &m);

    if (!paths[_i].pattern) {
        ck_assert_msg(rc == -ENOENT, "%s: found", paths[_i].path);
        return;
    }
    ck_assert_msg(rc == 0, "%s: not found", paths[_i].path);
    ck_assert_str_eq(m.entry->pattern, paths[_i].pattern);
    ck_assert_int_eq(m.nargs, (paths[_i].arg0 != NULL) + (paths[_i].arg1 != NULL));
    if (paths[_i].arg0)
        ck_assert_str_eq(m.arg[0], paths[_i].arg0);
    if (paths[_i].arg1)
        ck_assert_str_eq(m.arg[1], paths[_i].arg1);
    ck_assert_pstr_eq(m.rest, paths[_i].rest);
}
END_TEST

START_TEST(a_name_of_300_bytes_is_not_bound)
{
    char path[400] = "datasets/";
    struct layout_match m;

    memset(path + 9, 'x', 300);
    ck_assert_int_eq(layout_lookup(path, &m), -ENOENT);
    path[9 + 255] = '\0';
    ck_assert_int_eq(layout_lookup(path, &m), 0);
    ck_assert_uint_eq(strlen(m.arg[0]), 255);
}
END_TEST

struct names {
    struct buf text;
};

static void collect(void *arg, const struct layout_entry *child, const char *name)
{
    struct names *n = arg;

    ck_assert_ptr_nonnull(child->help);
    buf_addf(&n->text, "%s ", name);
}

static void children_are(const char *path, const char *expected)
{
    struct names n = {BUF_INIT};

    layout_children(path, collect, &n);
    ck_assert_str_eq(n.text.p ? n.text.p : "", expected);
    buf_release(&n.text);
}

START_TEST(children_are_the_literal_ones)
{
    children_are("models",
                 "README.md base tuned by-base by-dataset by-experiment by-task by-language by-tag compare ");
    children_are("datasets", "README.md LIST.tsv ");
    children_are("experiments/x/jobs/y",
                 "README.md status status.json progress log metrics.csv loss.svg score.json "
                 "provenance.json checkpoint control ");
    children_are("devices/cpu0", "README.md status ");
    children_are("nothing", "");
    children_are("datasets/a/b", "");
}
END_TEST

START_TEST(readmes_name_every_child)
{
    for (size_t i = 0; i < layout_count; i++) {
        struct buf b = BUF_INIT;
        struct layout_match m;
        char path[512];

        if (layout_table[i].reader != LR_README)
            continue;
        example_path(layout_table[i].pattern, path, sizeof(path));
        ck_assert_int_eq(layout_lookup(path, &m), 0);
        ck_assert_int_eq(layout_render(&m, &b), 0);
        ck_assert_msg(b.len > 80 && strncmp(b.p, "# /dtx", 6) == 0, "%s", path);
        ck_assert_msg(strstr(b.p, "README.md") != NULL, "%s: does not name README.md", path);
        ck_assert_msg(!strchr(b.p, '\t') && b.p[b.len - 1] == '\n', "%s: tab, or no newline at the end",
                      path);
        buf_release(&b);
    }
}
END_TEST

START_TEST(the_first_readme_begins_with_commands)
{
    static const char *const expected[] = {"cp -r",     "datasets/",       "experiments/", "tail -f",
                                           "templates", "leaderboard.tsv", "bin/dtx help", "models/compare/"};
    struct buf b = BUF_INIT;

    ck_assert_int_eq(layout_readme("", &b), 0);
    for (size_t i = 0; i < sizeof(expected) / sizeof(expected[0]); i++)
        ck_assert_msg(strstr(b.p, expected[i]) != NULL, "%s", expected[i]);
    buf_release(&b);
    ck_assert_int_eq(layout_readme("nothing", &b), -ENOENT);
    ck_assert_int_eq(layout_readme("status", &b), -ENOENT);
}
END_TEST

START_TEST(static_rows_render_and_others_do_not)
{
    for (size_t i = 0; i < layout_count; i++) {
        const struct layout_entry *e = &layout_table[i];
        struct layout_match m = {.entry = e};
        struct buf b = BUF_INIT;
        bool is_static = e->reader == LR_README || e->reader == LR_TEMPLATE || e->reader == LR_SCHEMA ||
                         e->reader == LR_BIN_DTX;

        ck_assert_msg(layout_render(&m, &b) == (is_static ? 0 : -ENOENT), "%s", e->pattern);
        ck_assert_msg(!is_static || b.len > 60, "%s: short", e->pattern);
        buf_release(&b);
    }
}
END_TEST

START_TEST(every_spec_kind_has_template_and_schema)
{
    for (int k = 0; k < SPEC_KINDS; k++) {
        char name[64];
        snprintf(name, sizeof(name), "%s.json", spec_kind_name((enum spec_kind)k));
        ck_assert_msg(has_row("templates", name) && has_row("schemas", name), "%s", name);
    }
}
END_TEST

START_TEST(kinds_have_names_and_collections)
{
    for (int k = OBJ_NONE + 1; k < OBJ_KINDS; k++) {
        struct layout_match m;
        ck_assert_msg(strlen(object_kind_name((enum object_kind)k)) > 2, "%d", k);
        ck_assert_int_eq(layout_lookup(object_kind_collection((enum object_kind)k), &m), 0);
        ck_assert_int_eq(m.entry->lists, k);
    }
}
END_TEST

START_TEST(the_man_page_has_every_path)
{
    struct buf b = BUF_INIT;

    layout_man_page(&b);
    ck_assert(strncmp(b.p, ".TH DTX.LAYOUT 5", 16) == 0);
    ck_assert_ptr_nonnull(strstr(b.p, "/dtx/experiments/EXP/jobs/JOB/metrics.csv\n"));
    ck_assert_ptr_nonnull(strstr(b.p, "/dtx/models/tuned/EXP.best\n"));
    ck_assert_ptr_nonnull(strstr(b.p, ".SH STATES\n"));
    ck_assert_ptr_null(strstr(b.p, "{name}"));
    buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("layout");
    TCase *t = tcase_create("layout");
    SRunner *r;
    int failed;

    tcase_add_test(t, every_row_is_reached_by_its_own_example);
    tcase_add_test(t, patterns_are_well_formed);
    tcase_add_test(t, objects_are_found_from_any_depth);
    tcase_add_test(t, every_row_says_what_it_is);
    tcase_add_test(t, every_folder_has_what_the_rules_ask);
    tcase_add_test(t, parents_are_folders);
    tcase_add_loop_test(t, paths_lead_to_their_rows, 0, (int)(sizeof(paths) / sizeof(paths[0])));
    tcase_add_test(t, a_name_of_300_bytes_is_not_bound);
    tcase_add_test(t, children_are_the_literal_ones);
    tcase_add_test(t, readmes_name_every_child);
    tcase_add_test(t, the_first_readme_begins_with_commands);
    tcase_add_test(t, static_rows_render_and_others_do_not);
    tcase_add_test(t, every_spec_kind_has_template_and_schema);
    tcase_add_test(t, kinds_have_names_and_collections);
    tcase_add_test(t, the_man_page_has_every_path);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
