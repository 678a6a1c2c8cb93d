#include "scheduler/score/score.h"

#include <math.h>
#include <string.h>

#include "scheduler/base/text.h"
#include "scheduler/score/words.h"

const char *const score_metric_names[] = {"rouge1", "rouge2",      "rougeL",     "rougeLsum",
                                          "bleu",   "exact_match", "accuracy",   "precision",
                                          "recall", "f1",          "perplexity", NULL};

/* sacrebleu's sentence_bleu: 13a tokens, "exp" smoothing (the k-th order without a match counts 1/2^k
 * matches), and only the orders that the prediction is long enough for. */
double score_bleu(const char *target, const char *prediction)
{
    struct vocab v;
    struct words t = {0}, p = {0};
    double log_sum = 0, halving = 1, score = 0;
    size_t order = 0, matches = 0;

    vocab_init(&v);
    words_13a(&t, &v, target);
    words_13a(&p, &v, prediction);
    for (size_t n = 1; n <= 4 && p.n >= n && !v.failed; n++) {
        size_t total = p.n - n + 1, shared = ngrams_shared(&t, &p, n, &v.failed);
        matches += shared;
        if (shared == 0)
            halving *= 2;
        log_sum += log((shared ? (double)shared : 1 / halving) / (double)total);
        order = n;
    }
    if (matches) {
        double ratio = (double)t.n / (double)p.n;
        score = exp(log_sum / (double)order + (ratio > 1 ? 1 - ratio : 0));
    }
    if (v.failed)
        score = NAN;
    words_release(&t);
    words_release(&p);
    vocab_release(&v);
    return score > 1 ? 1 : score;
}

static double equal_normalized(const char *a, const char *b)
{
    struct buf x = BUF_INIT, y = BUF_INIT;
    double equal;

    normalize_squad(a, &x);
    normalize_squad(b, &y);
    equal = x.failed || y.failed ? NAN : strcmp(x.p, y.p) == 0;
    buf_release(&x);
    buf_release(&y);
    return equal;
}

double score_exact_match(const char *target, const char *prediction)
{
    return equal_normalized(target, prediction);
}

/* What follows "####" on its line, without spaces, thousands' commas, dollar signs and a final full stop. */
static void final_answer(const char *text, struct buf *out)
{
    for (; *text && *text != '\n'; text++)
        if (!strchr(" \t\r,$", *text))
            buf_addc(out, *text);
    if (out->len && out->p[out->len - 1] == '.')
        out->len--;
}

double score_accuracy(const char *target, const char *prediction)
{
    const char *t = strstr(target, "####"), *p = strstr(prediction, "####");
    struct buf x = BUF_INIT, y = BUF_INIT;
    double equal;

    if (!t)
        return equal_normalized(target, prediction);
    if (!p)
        return 0;
    final_answer(t + 4, &x);
    final_answer(p + 4, &y);
    equal = x.failed || y.failed ? NAN : x.len == y.len && (x.len == 0 || memcmp(x.p, y.p, x.len) == 0);
    buf_release(&x);
    buf_release(&y);
    return equal;
}

struct prf score_token_f1(const char *target, const char *prediction)
{
    struct vocab v;
    struct words t = {0}, p = {0};
    struct buf x = BUF_INIT, y = BUF_INIT;
    struct prf s = {0, 0, 0};
    double shared;

    vocab_init(&v);
    normalize_squad(target, &x);
    normalize_squad(prediction, &y);
    v.failed = x.failed || y.failed;
    if (!v.failed) {
        words_split(&t, &v, x.p, x.len);
        words_split(&p, &v, y.p, y.len);
    }
    shared = (double)ngrams_shared(&t, &p, 1, &v.failed);
    if (v.failed)
        s = (struct prf){NAN, NAN, NAN};
    else if (t.n == 0 || p.n == 0) /* as SQuAD 2: nothing expected and nothing said is right */
        s.precision = s.recall = s.f1 = t.n == p.n;
    else if (shared > 0)
        s = (struct prf){shared / (double)p.n, shared / (double)t.n, 2 * shared / (double)(p.n + t.n)};
    words_release(&t);
    words_release(&p);
    vocab_release(&v);
    buf_release(&x);
    buf_release(&y);
    return s;
}

static void put(json_t *o, const char *name, double value)
{
    json_object_set_new(o, name, isfinite(value) ? json_real(value) : json_null());
}

json_t *score_pair(const char *target, const char *prediction)
{
    json_t *o = json_object();
    struct prf token = score_token_f1(target, prediction), rouge[3];

    if (!o)
        return NULL;
    rouge_1_2_l(target, prediction, true, rouge);
    put(o, "rouge1", rouge[0].f1);
    put(o, "rouge2", rouge[1].f1);
    put(o, "rougeL", rouge[2].f1);
    put(o, "rougeLsum", score_rouge_lsum(target, prediction, true).f1);
    put(o, "bleu", score_bleu(target, prediction));
    put(o, "exact_match", score_exact_match(target, prediction));
    put(o, "accuracy", score_accuracy(target, prediction));
    put(o, "precision", token.precision);
    put(o, "recall", token.recall);
    put(o, "f1", token.f1);
    return o;
}

double score_weighted(const json_t *metrics, const json_t *weights)
{
    const char *name;
    json_t *w;
    double sum = 0, total = 0;

    json_object_foreach((json_t *)weights, name, w)
    {
        const json_t *m = json_object_get(metrics, name);
        double weight = json_is_number(w) ? json_number_value(w) : 0;
        if (weight <= 0 || !json_is_number(m) || strcmp(name, "perplexity") == 0)
            continue;
        sum += weight * json_number_value(m);
        total += weight;
    }
    return total > 0 ? 100 * sum / total : NAN;
}
