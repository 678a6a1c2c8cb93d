/* bin/dtx, run by every shell there is against a folder that looks like a mount, with a small script in the
 * daemon's place. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mnt-layout/layout.h"
#include "scheduler/base/buf.h"

static const char *const shells[] = {"dash", "bash --posix", "busybox sh"};
enum { N_SHELLS = 3 };

static char root[] = "/tmp/test-bin-dtx-XXXXXX";

/* Run a shell script with $T the mount and $D the command; its output (both streams), its exit status. */
static int run(const char *script, struct buf *out)
{
    char chunk[4096];
    FILE *p;
    size_t n;

    buf_clear(out);
    ck_assert_int_eq(setenv("SCRIPT", script, 1), 0);
    p = popen("exec sh -c \"$SCRIPT\" 2>&1", "r");
    ck_assert_ptr_nonnull(p);
    while ((n = fread(chunk, 1, sizeof(chunk), p)) > 0)
        buf_add(out, chunk, n);
    buf_addc(out, '\0');
    out->len--;
    return WEXITSTATUS(pclose(p));
}

static void expect(const char *script, int status, const char *wanted)
{
    struct buf out = BUF_INIT;
    int rc = run(script, &out);

    ck_assert_msg(rc == status, "%s: exit status %d, expected %d\n%s", script, rc, status, out.p);
    ck_assert_msg(strstr(out.p, wanted) != NULL, "%s: gives\n%s\nwithout\n%s", script, out.p, wanted);
    buf_release(&out);
}

static void setup(void)
{
    static const char make[] =
        "set -e; mkdir -p $T/bin $T/templates $T/models/base/llama $T/models/tuned/e.best $T/models/compare\n"
        "for c in experiments datasets paramgroups evaluations models/base models/tuned; do\n"
        "  mkdir -p $T/$c; printf 'name\\tstate\\nlong-name-here\\tREADY\\nx\\tREJECTED\\n' > "
        "$T/$c/LIST.tsv\n"
        "done\n"
        "echo x > $T/README.md; echo 'all is well' > $T/status; echo '{}' > $T/templates/paramgroup.json\n"
        "echo 'one line' > $T/log\n"
        "mkdir -p $T/experiments/old/jobs/01-a; echo SUCCESS > $T/experiments/old.status\n"
        "echo SUCCESS > $T/experiments/old/status; echo 'job status' > $T/experiments/old/jobs/01-a/status\n"
        "echo 'exp log' > $T/experiments/old/log; : > $T/experiments/old/control\n"
        ": > $T/experiments/old/jobs/01-a/control; echo '01-a 90.0' > $T/experiments/old/best\n"
        "chmod 755 $T/bin/dtx\n";
    struct buf out = BUF_INIT;
    size_t n;
    const char *text = layout_text("bin/dtx", &n);
    char path[64];
    FILE *f;

    strcpy(root + strlen(root) - 6, "XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(root));
    setenv("T", root, 1);
    unsetenv("DTX");
    snprintf(path, sizeof(path), "%s/bin", root);
    ck_assert_int_eq(mkdir(path, 0755), 0);
    snprintf(path, sizeof(path), "%s/bin/dtx", root);
    f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(text, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_msg(run(make, &out) == 0, "%s", out.p);
    buf_release(&out);
}

static void teardown(void)
{
    struct buf out = BUF_INIT;

    run("rm -rf \"$T\"", &out);
    buf_release(&out);
}

/* $D runs the command by one of the shells; false (and a word about it) where that shell is not installed. */
static bool choose_shell(int i)
{
    char d[128];
    struct buf out = BUF_INIT;
    bool there;

    snprintf(d, sizeof(d), "%s -c : 2>/dev/null", shells[i]);
    there = run(d, &out) == 0;
    buf_release(&out);
    snprintf(d, sizeof(d), "%s %s/bin/dtx", shells[i], root);
    setenv("D", d, 1);
    return there;
}

#define FOR_SHELL(i)                                                                                         \
    if (!choose_shell(i)) {                                                                                  \
        printf("SKIP: bin_dtx: %s is not installed\n", shells[i]);                                           \
        return;                                                                                              \
    }

START_TEST(simple_commands)
{
    FOR_SHELL(_i)
    expect("$D help", 0, "usage: dtx COMMAND");
    expect("$D", 0, "usage: dtx COMMAND");
    expect("$D fly", 2, "dtx: fly: no such command");
    expect("DTX=/nowhere $D status", 1, "no DTX mount at /nowhere; set DTX");
    expect("$D status", 0, "all is well");
    expect("DTX=$T sh $T/bin/dtx status", 0, "all is well");
    expect("mkdir $T/b; ln -s ../bin/dtx $T/b/dtx; sh $T/b/dtx status", 0, "all is well");
    expect("$D status old", 0, "SUCCESS");
    expect("$D status old/01-a", 0, "job status");
    expect("$D status nothing", 1, "there is no such experiment or job");
    expect("$D status ../../etc", 2, "expected EXP or EXP/JOB");
    expect("$D ls datasets", 0, "  long-name-here  READY\n  x               REJECTED\n");
    expect("$D ls", 0, "models/tuned\n");
    expect("$D ls planets", 2, "ls planets: no such collection");
    expect("$D log", 0, "one line");
    expect("$D log old", 0, "exp log");
    expect("$D best old", 0, "01-a 90.0");
    expect("$D wait", 2, "wait: expected one name");
    expect("$D wait old", 0, "SUCCESS");
}
END_TEST

START_TEST(templates_are_copied)
{
    FOR_SHELL(_i)
    expect("cd $T/b 2>/dev/null || { mkdir $T/b; cd $T/b; }; $D new paramgroup mine && cat mine.json", 0,
           "mine.json: edit it, then: cp mine.json");
    expect("cd $T/b; $D new paramgroup mine", 1, "mine.json is there already");
    expect("$D new spaceship x", 2, "new spaceship: no such kind of spec");
    expect("$D new paramgroup", 2, "expected KIND NAME");
}
END_TEST

START_TEST(control_words_are_written)
{
    FOR_SHELL(_i)
    expect("$D cancel old && cat $T/experiments/old/control", 0, "cancel\n");
    expect("$D stop old/01-a && cat $T/experiments/old/jobs/01-a/control", 0, "stop\n");
    expect("rm $T/experiments/old/control; mkdir $T/experiments/old/control; $D pause old", 1,
           "dtx: old: pause was refused; its status is:\nSUCCESS");
}
END_TEST

/* Takes experiments/new.json: PROCESSING, then what is in $END. */
#define EXPERIMENT_DAEMON                                                                                    \
    "cd $T/experiments; (i=0; until [ -e new.json ] || [ $i = 100 ]; do sleep 0.1; i=$((i+1)); done; mkdir " \
    "new;\n"                                                                                                 \
    "echo 'step 1 of 2' > new/progress; echo PROCESSING > new.status; sleep 1.5\n"                           \
    "printf 'job\\tscore\\n01-lora\\t88.1\\nbase:llama\\t3.0\\n' > new/leaderboard.tsv; echo '01-lora "      \
    "88.1' > new/best\n"                                                                                     \
    "printf '%s\\nreason: because\\n' $END > new.status) & "

START_TEST(run_shows_progress_and_leaderboard)
{
    FOR_SHELL(_i)
    setenv("END", "SUCCESS", 1);
    expect(EXPERIMENT_DAEMON
           "cd $T; echo '{\"models\":[]}' > new.json; $D run new.json; rc=$?; wait; exit $rc",
           0,
           "new: PROCESSING\nstep 1 of 2\nnew: SUCCESS\nstep 1 of 2\n\njob         score\n01-lora     88.1\n"
           "base:llama  3.0\n\n01-lora 88.1\n");
    expect("cat $T/experiments/new.json; ls -A $T/experiments", 0,
           "{\"models\":[]}\nLIST.tsv\nnew\nnew.json\nnew.status\nold");
    expect("$D run $T/experiments/new.json", 0, "01-lora 88.1");
    expect("cd $T/experiments && $D run new.json", 0, "01-lora 88.1");
}
END_TEST

START_TEST(run_says_why_it_failed)
{
    FOR_SHELL(_i)
    setenv("END", "REJECTED", 1);
    expect(EXPERIMENT_DAEMON "cd $T; echo '{}' > new.json; $D run new.json; rc=$?; wait; exit $rc", 1,
           "reason: because");
    expect("$D wait new", 1, "REJECTED");
    expect("$D run nothing.json", 1, "nothing.json: there is no such file");
    expect("$D run nothing", 2, "expected a file NAME.json");
}
END_TEST

/* Answers whatever prompt appears by showing it. */
#define COMPARE_DAEMON                                                                                       \
    "cd $T/models/compare; (i=0; until ls | grep -q txt || [ $i = 100 ]; do sleep 0.1; i=$((i+1)); done\n"   \
    "for f in *.txt; do n=${f%.txt}; echo ANSWERING > $n.status; mkdir $n; sleep 1; cat $f > "               \
    "$n/answers.md\n"                                                                                        \
    "echo DONE > $n.status; done) & cd $T; "

START_TEST(ask_names_the_model)
{
    FOR_SHELL(_i)
    expect(COMPARE_DAEMON "$D ask e.best 'a \"b\" \\n c'; rc=$?; wait; exit $rc", 0,
           "---\n{\"models\": [\"tuned/e.best\"]}\n---\na \"b\" \\n c\n");
    expect("$D ask nobody hello", 1, "nobody: there is no such model");
    expect("$D ask 'a\"b' hello", 1, "a model's name with a quote");
    expect("$D ask llama", 2, "expected MODEL \"PROMPT\"");
}
END_TEST

START_TEST(compare_takes_a_file)
{
    FOR_SHELL(_i)
    expect(COMPARE_DAEMON "printf 'How?\\n' > q.txt; $D compare q.txt; rc=$?; wait; exit $rc", 0,
           "How?\n\n(all of it: ");
    expect("$D compare nothing.txt", 1, "there is no such file");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("bin_dtx");
    TCase *t = tcase_create("bin_dtx");
    SRunner *r;
    int failed;

    tcase_set_timeout(t, 60);
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, simple_commands, 0, N_SHELLS);
    tcase_add_loop_test(t, templates_are_copied, 0, N_SHELLS);
    tcase_add_loop_test(t, control_words_are_written, 0, N_SHELLS);
    tcase_add_loop_test(t, run_shows_progress_and_leaderboard, 0, N_SHELLS);
    tcase_add_loop_test(t, run_says_why_it_failed, 0, N_SHELLS);
    tcase_add_loop_test(t, ask_names_the_model, 0, N_SHELLS);
    tcase_add_loop_test(t, compare_takes_a_file, 0, N_SHELLS);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
