/* Scores against rouge_score's published figures, NLTK's stemmer, sacrebleu and hand-made cases. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/buf.h"
#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/score/porter.h"
#include "scheduler/score/score.h"
#include "tests/unit/slow.h"

#include <fcntl.h>

#define ROUGE "../shared/metrics/rouge/"

static bool skip_without(const char *test, const char *path)
{
    struct buf b = BUF_INIT;
    int rc = fd_read_file(AT_FDCWD, path, 1 << 24, &b, NULL);

    buf_release(&b);
    if (rc)
        printf("SKIP: %s: %s is not there\n", test, path);
    return rc != 0;
}

static char *read_text(const char *path)
{
    struct buf b = BUF_INIT;
    struct dtx_err e;

    ck_assert_msg(fd_read_file(AT_FDCWD, path, 1 << 24, &b, &e) == 0, "%s", e.msg);
    return buf_detach(&b, NULL);
}

static void near(double got, double want, double tolerance)
{
    ck_assert_msg(fabs(got - want) <= tolerance, "%.6f, expected %.6f +- %g", got, want, tolerance);
}

static void near_prf(struct prf got, double precision, double recall, double f1, double tolerance)
{
    near(got.precision, precision, tolerance);
    near(got.recall, recall, tolerance);
    near(got.f1, f1, tolerance);
}

START_TEST(stems_as_nltk)
{
    static const char *const table[][2] = {{"caresses", "caress"},
                                           {"ponies", "poni"},
                                           {"ties", "tie"},
                                           {"dies", "die"},
                                           {"caress", "caress"},
                                           {"cats", "cat"},
                                           {"feed", "feed"},
                                           {"agreed", "agre"},
                                           {"plastered", "plaster"},
                                           {"bled", "bled"},
                                           {"motoring", "motor"},
                                           {"sing", "sing"},
                                           {"conflated", "conflat"},
                                           {"troubled", "troubl"},
                                           {"sized", "size"},
                                           {"hopping", "hop"},
                                           {"tanned", "tan"},
                                           {"falling", "fall"},
                                           {"hissing", "hiss"},
                                           {"fizzed", "fizz"},
                                           {"failing", "fail"},
                                           {"filing", "file"},
                                           {"happy", "happi"},
                                           {"enjoy", "enjoy"},
                                           {"spied", "spi"},
                                           {"flies", "fli"},
                                           {"relational", "relat"},
                                           {"conditional", "condit"},
                                           {"rational", "ration"},
                                           {"valency", "valenc"},
                                           {"hesitancy", "hesit"},
                                           {"digitizer", "digit"},
                                           {"conformably", "conform"},
                                           {"radically", "radic"},
                                           {"differently", "differ"},
                                           {"vilely", "vile"},
                                           {"analogously", "analog"},
                                           {"vietnamization", "vietnam"},
                                           {"predication", "predic"},
                                           {"operator", "oper"},
                                           {"feudalism", "feudal"},
                                           {"decisiveness", "decis"},
                                           {"hopefulness", "hope"},
                                           {"callousness", "callous"},
                                           {"formality", "formal"},
                                           {"sensitivity", "sensit"},
                                           {"sensibility", "sensibl"},
                                           {"triplicate", "triplic"},
                                           {"formative", "form"},
                                           {"formalize", "formal"},
                                           {"electricity", "electr"},
                                           {"electrical", "electr"},
                                           {"hopeful", "hope"},
                                           {"goodness", "good"},
                                           {"revival", "reviv"},
                                           {"allowance", "allow"},
                                           {"inference", "infer"},
                                           {"airliner", "airlin"},
                                           {"gyroscopic", "gyroscop"},
                                           {"adjustable", "adjust"},
                                           {"defensible", "defens"},
                                           {"irritant", "irrit"},
                                           {"replacement", "replac"},
                                           {"adjustment", "adjust"},
                                           {"dependent", "depend"},
                                           {"adoption", "adopt"},
                                           {"homologou", "homolog"},
                                           {"communism", "commun"},
                                           {"activate", "activ"},
                                           {"angularities", "angular"},
                                           {"homologous", "homolog"},
                                           {"effective", "effect"},
                                           {"bowdlerize", "bowdler"},
                                           {"probate", "probat"},
                                           {"rate", "rate"},
                                           {"cease", "ceas"},
                                           {"controlling", "control"},
                                           {"rolling", "roll"},
                                           {"dying", "die"},
                                           {"skies", "sky"},
                                           {"proceed", "proceed"},
                                           {"innings", "inning"},
                                           {"geology", "geolog"},
                                           {"theologically", "theolog"},
                                           {"hopefully", "hope"},
                                           {"beautifully", "beauti"},
                                           {"oed", "o"},
                                           {"used", "use"},
                                           {"yyyyy", "yyyyy"},
                                           {"syzygy", "syzygi"},
                                           {"toying", "toy"},
                                           {"yes", "ye"},
                                           {"3rds", "3rd"},
                                           {"abilities", "abil"}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        char w[64];
        size_t n = strlen(table[i][0]);
        memcpy(w, table[i][0], n + 1);
        n = porter_stem(w, n);
        w[n] = '\0';
        ck_assert_msg(strcmp(w, table[i][1]) == 0, "%s -> %s, expected %s", table[i][0], w, table[i][1]);
    }
}
END_TEST

struct sums {
    struct prf plain1, stem1, stem_l, plain2, plain_lsum;
    int n;
};

static void add(struct prf *sum, struct prf s)
{
    sum->precision += s.precision;
    sum->recall += s.recall;
    sum->f1 += s.f1;
}

static struct prf mean(struct prf sum, int n)
{
    return (struct prf){sum.precision / n, sum.recall / n, sum.f1 / n};
}

static struct sums corpus_sums(char *targets, char *predictions)
{
    struct sums s = {0};
    char *tp, *pp;
    char *t = strtok_r(targets, "\n", &tp), *p = strtok_r(predictions, "\n", &pp);

    for (; t && p; t = strtok_r(NULL, "\n", &tp), p = strtok_r(NULL, "\n", &pp), s.n++) {
        add(&s.plain1, score_rouge_n(t, p, 1, false));
        add(&s.plain2, score_rouge_n(t, p, 2, false));
        add(&s.stem1, score_rouge_n(t, p, 1, true));
        add(&s.stem_l, score_rouge_l(t, p, true));
        add(&s.plain_lsum, score_rouge_lsum(t, p, false));
    }
    return s;
}

START_TEST(rouge_corpus_as_published)
{
    char *targets, *predictions, *json;
    json_t *want;
    struct sums s;

    if (skip_without("rouge_corpus", ROUGE "target_large.txt"))
        return;
    targets = read_text(ROUGE "target_large.txt");
    predictions = read_text(ROUGE "prediction_large.txt");
    s = corpus_sums(targets, predictions);
    ck_assert_int_eq(s.n, 1000);
    near_prf(mean(s.plain1, s.n), .49879, .31950, .38554, .002);
    near_prf(mean(s.stem1, s.n), .52434, .33580, .40524, .002);
    near_prf(mean(s.stem_l, s.n), .52104, .33377, .40275, .002);
    json = read_text(ROUGE "expected_bootstrap_results.json"); /* F in per cent */
    ck_assert_int_eq(json_parse_text("expected", json, strlen(json), &want, NULL), 0);
    near(mean(s.plain1, s.n).f1, json_num(want, "rouge1", 0) / 100, .002);
    near(mean(s.plain2, s.n).f1, json_num(want, "rouge2", 0) / 100, .002);
    near(mean(s.plain_lsum, s.n).f1, json_num(want, "rougeLsum", 0) / 100, .002);
    json_decref(want);
    free(json);
    free(targets);
    free(predictions);
}
END_TEST

START_TEST(rouge_pairs_as_published)
{
    char *t, *p, *t1, *p1;

    if (skip_without("rouge_pairs", ROUGE "target.txt"))
        return;
    t = read_text(ROUGE "target.txt");
    p = read_text(ROUGE "prediction.txt");
    t1 = strchr(t, '\n');
    p1 = strchr(p, '\n');
    *t1++ = *p1++ = '\0';
    near_prf(score_rouge_n(t, p, 1, false), .68750, .40741, .51163, 1e-5);
    near_prf(score_rouge_n(t, p, 2, false), .53333, .30769, .39024, 1e-5);
    near_prf(score_rouge_n(t1, p1, 1, false), .65385, .40476, .50000, 1e-5);
    near_prf(score_rouge_n(t1, p1, 2, false), .48000, .29268, .36364, 1e-5);
    free(t);
    free(p);
    t = read_text(ROUGE "target_multi.0.txt");
    p = read_text(ROUGE "prediction_multi.0.txt");
    near_prf(score_rouge_lsum(t, p, true), .66667, .36538, .47205, 1e-5);
    free(t);
    free(p);
}
END_TEST

START_TEST(rouge_by_hand)
{
    near_prf(score_rouge_n("testing one two", "testing", 1, false), 1, 1.0 / 3, .5, 1e-9);
    near_prf(score_rouge_n("testing one two", "", 1, false), 0, 0, 0, 0);
    near_prf(score_rouge_n("", "", 1, false), 0, 0, 0, 0);
    near_prf(score_rouge_n("a b", "a b", 3, false), 0, 0, 0, 0);
    near_prf(score_rouge_l("a b c d", "a x c", false), 2.0 / 3, .5, 4.0 / 7, 1e-9);
    /* The example of section 3.2 of the paper: union LCS of w1 w2 w3 w4 w5 is 4 words. */
    near_prf(score_rouge_lsum("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", false), .4, .8, 8.0 / 15,
             1e-9);
    near(score_rouge_n("\xe2\x84\xaa"
                       "elvin",
                       "kelvin", 1, false)
             .f1,
         1, 0);
}
END_TEST

START_TEST(bleu_as_sacrebleu)
{
    static const struct {
        const char *target, *prediction;
        double want;
    } table[] = {
        {"the cat sat on the mat", "the cat sat on the mat", 1.0000000000},
        {"the cat sat on the mat", "the the the the", 0.1152159099},
        {"The quick brown fox jumps over the lazy dog.", "A quick brown fox jumped over the lazy dog!",
         0.3799178428},
        {"hello world", "goodbye", 0.0000000000},
        {"It costs $1,234.56 (about 10-20% more), doesn't it?",
         "It costs $1,234.56 -- 10-20% more, isn't it?", 0.4289307920},
        {"Yes", "Yes", 1.0000000000},
        {"one two three four five", "one two three", 0.5134171190},
        {"a &amp; b\nsecond line, of 3.", "a & b second line of 3 .", 0.6101950432},
        {"x", "", 0.0000000000},
    };

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        near(score_bleu(table[i].target, table[i].prediction), table[i].want, 1e-9);
}
END_TEST

START_TEST(exact_match_and_overlap)
{
    near(score_exact_match("The Eiffel Tower.", "eiffel  tower"), 1, 0);
    near(score_exact_match("\xc3\x89"
                           "COLE",
                           "\xc3\xa9"
                           "cole!"),
         1, 0);
    near(score_exact_match("four", "five"), 0, 0);
    near(score_exact_match("", ""), 1, 0);
    near(score_accuracy("3 + 4 = 7\n#### 1,234", "so it is\n#### 1234.\nmore"), 1, 0);
    near(score_accuracy("#### 4.5", "#### 45"), 0, 0);
    near(score_accuracy("#### 7", "7"), 0, 0);
    near(score_accuracy("Positive", "positive."), 1, 0);
    near_prf(score_token_f1("the cat sat", "a cat sat down"), 2.0 / 3, 1, .8, 1e-9);
    near_prf(score_token_f1("a b", "c d"), 0, 0, 0, 0);
    near_prf(score_token_f1("the", "a"), 1, 1, 1, 0);
}
END_TEST

START_TEST(weights)
{
    json_t *metrics =
        json_pack("{s:f,s:f,s:f,s:n}", "rougeL", 0.5, "exact_match", 1.0, "perplexity", 7.0, "bleu");
    json_t *weights =
        json_pack("{s:f,s:i,s:i,s:i}", "rougeL", 3.0, "exact_match", 1, "perplexity", 5, "bleu", 1);
    json_t *none = json_pack("{s:i}", "perplexity", 1), *pair = score_pair("one two", "one two");

    near(score_weighted(metrics, weights), 62.5, 1e-9);
    ck_assert(isnan(score_weighted(metrics, none)));
    for (int i = 0; score_metric_names[i]; i++)
        if (strcmp(score_metric_names[i], "perplexity"))
            ck_assert_msg(json_num(pair, score_metric_names[i], -1) == 1, "%s of equal texts is not 1",
                          score_metric_names[i]);
    json_decref(metrics);
    json_decref(weights);
    json_decref(none);
    json_decref(pair);
}
END_TEST

/* n words out of 500, joined by spaces, a line end every 20. */
static char *many_words(size_t n, unsigned seed)
{
    struct buf b = BUF_INIT;

    for (size_t i = 0; i < n; i++) {
        seed = seed * 1103515245u + 12345u;
        buf_addf(&b, "word%u%c", (seed >> 16) % 500, i % 20 == 19 ? '\n' : ' ');
    }
    return buf_detach(&b, NULL);
}

START_TEST(pair_holds_what_each_metric_gives)
{
    const char *t = "The cats sat\non the mats, running.", *p = "A cat sits\non mats and runs";
    json_t *pair = score_pair(t, p);

    near(json_num(pair, "rouge1", -1), score_rouge_n(t, p, 1, true).f1, 0);
    near(json_num(pair, "rouge2", -1), score_rouge_n(t, p, 2, true).f1, 0);
    near(json_num(pair, "rougeL", -1), score_rouge_l(t, p, true).f1, 0);
    near(json_num(pair, "rougeLsum", -1), score_rouge_lsum(t, p, true).f1, 0);
    near(json_num(pair, "bleu", -1), score_bleu(t, p), 0);
    near(json_num(pair, "recall", -1), score_token_f1(t, p).recall, 0);
    json_decref(pair);
}
END_TEST

START_TEST(long_texts_are_quick_and_bounded)
{
    char *a = many_words(1000, 1), *b = many_words(1000, 2), *huge = many_words(300000, 3);
    int64_t start = clock_mono_ns();
    json_t *pair = score_pair(a, b);
    double ms = (double)(clock_mono_ns() - start) / 1e6;

    printf("score_pair of two texts of 1000 words: %.1f ms\n", ms);
    ck_assert_msg(ms < 200 * slow(), "%.1f ms",
                  ms); /* 2-3 ms on an idle machine; sanitizers and neighbours are allowed for */
    json_decref(pair);
    near(score_rouge_n(huge, huge, 2, true).f1, 1, 0);
    near(score_rouge_lsum(huge, huge, false).f1, 1, 0);
    free(a);
    free(b);
    free(huge);
}
END_TEST

START_TEST(bad_bytes_do_no_harm)
{
    json_t *pair = score_pair("\xff\xc3 a\xe2\x84", "\xe2\x84\xaa\xff\xf0\x9f a");

    ck_assert(json_is_object(pair));
    ck_assert(json_num(pair, "rouge1", -1) >= 0);
    json_decref(pair);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("score");
    TCase *tc = tcase_create("score");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, stems_as_nltk);
    tcase_add_test(tc, rouge_corpus_as_published);
    tcase_add_test(tc, rouge_pairs_as_published);
    tcase_add_test(tc, rouge_by_hand);
    tcase_add_test(tc, bleu_as_sacrebleu);
    tcase_add_test(tc, exact_match_and_overlap);
    tcase_add_test(tc, weights);
    tcase_add_test(tc, pair_holds_what_each_metric_gives);
    tcase_add_test(tc, long_texts_are_quick_and_bounded);
    tcase_add_test(tc, bad_bytes_do_no_harm);
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
