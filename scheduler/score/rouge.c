/*
 * Rouge as Google's rouge_score computes it (C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of
 * Summaries", 2004): precision over the prediction's words, recall over the target's.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/score/lcs.h"
#include "scheduler/score/score.h"
#include "scheduler/score/words.h"

static struct prf prf_of(double hits, double n_target, double n_prediction, bool failed)
{
    struct prf s = {0, 0, 0};

    if (failed)
        return (struct prf){NAN, NAN, NAN};
    s.precision = n_prediction > 0 ? hits / n_prediction : 0;
    s.recall = n_target > 0 ? hits / n_target : 0;
    if (s.precision + s.recall > 0)
        s.f1 = 2 * s.precision * s.recall / (s.precision + s.recall);
    return s;
}

struct pair { /* both texts as words of one vocabulary */
    struct vocab vocab;
    struct words target, prediction;
};

static void pair_release(struct pair *p)
{
    words_release(&p->target);
    words_release(&p->prediction);
    vocab_release(&p->vocab);
}

static void pair_rouge(struct pair *p, const char *target, const char *prediction, bool stem)
{
    memset(p, 0, sizeof(*p));
    words_rouge(&p->target, &p->vocab, target, strlen(target), stem);
    words_rouge(&p->prediction, &p->vocab, prediction, strlen(prediction), stem);
}

static double grams(const struct words *w, size_t n)
{
    return w->n >= n ? (double)(w->n - n + 1) : 0;
}

struct prf score_rouge_n(const char *target, const char *prediction, int n, bool stem)
{
    struct pair p;
    size_t order = n > 0 ? (size_t)n : 1, hits;
    struct prf s;

    pair_rouge(&p, target, prediction, stem);
    hits = ngrams_shared(&p.target, &p.prediction, order, &p.vocab.failed);
    s = prf_of((double)hits, grams(&p.target, order), grams(&p.prediction, order), p.vocab.failed);
    pair_release(&p);
    return s;
}

struct prf score_rouge_l(const char *target, const char *prediction, bool stem)
{
    struct pair p;
    size_t hits;
    struct prf s;

    pair_rouge(&p, target, prediction, stem);
    hits = lcs_length(&p.target, &p.prediction, &p.vocab.failed);
    s = prf_of((double)hits, (double)p.target.n, (double)p.prediction.n, p.vocab.failed);
    pair_release(&p);
    return s;
}

void rouge_1_2_l(const char *target, const char *prediction, bool stem, struct prf *out)
{
    struct pair p;
    size_t hits[3];

    pair_rouge(&p, target, prediction, stem);
    hits[0] = ngrams_shared(&p.target, &p.prediction, 1, &p.vocab.failed);
    hits[1] = ngrams_shared(&p.target, &p.prediction, 2, &p.vocab.failed);
    hits[2] = lcs_length(&p.target, &p.prediction, &p.vocab.failed);
    for (size_t k = 0; k < 3; k++)
        out[k] = prf_of((double)hits[k], grams(&p.target, k == 1 ? 2 : 1),
                        grams(&p.prediction, k == 1 ? 2 : 1), p.vocab.failed);
    pair_release(&p);
}

struct sentences { /* the lines of a text that are not empty */
    struct words *v;
    size_t n, words;
};

static void sentences_release(struct sentences *s)
{
    for (size_t i = 0; i < s->n; i++)
        words_release(&s->v[i]);
    free(s->v);
}

/* At most WORDS_MAX words in all of a text's lines together. */
static struct sentences sentences_of(const char *text, struct vocab *v, bool stem)
{
    struct sentences s = {NULL, 0, 0};
    size_t cap = 0;

    for (const char *p = text; *p && s.words < WORDS_MAX;) {
        size_t len = strcspn(p, "\n");
        if (s.n == cap) {
            struct words *grown = realloc(s.v, (cap = cap * 2 + 8) * sizeof(*grown));
            if (!grown) {
                v->failed = true;
                return s;
            }
            s.v = grown;
        }
        s.v[s.n] = (struct words){NULL, 0, 0};
        words_rouge(&s.v[s.n], v, p, len, stem);
        if (s.v[s.n].n > WORDS_MAX - s.words)
            s.v[s.n].n = WORDS_MAX - s.words;
        s.words += s.v[s.n].n;
        if (s.v[s.n].n)
            s.n++;
        else
            words_release(&s.v[s.n]);
        p += len + (p[len] == '\n');
    }
    return s;
}

static int32_t *count_words(const struct sentences *s, size_t vocab)
{
    int32_t *count = calloc(vocab + 1, sizeof(*count));

    for (size_t i = 0; count && i < s->n; i++)
        for (size_t k = 0; k < s->v[i].n; k++)
            count[s->v[i].id[k]]++;
    return count;
}

/* Words of one target line that are in its LCS with any prediction line; a word is a hit only as often as
 * both texts have it. */
static size_t union_hits(const struct words *line, const struct sentences *prediction, int32_t *left_t,
                         int32_t *left_p, bool *failed)
{
    bool *hit = calloc(line->n + 1, sizeof(*hit));
    size_t hits = 0;

    if (!hit) {
        *failed = true;
        return 0;
    }
    for (size_t i = 0; i < prediction->n && !*failed; i++)
        lcs_mark(line, &prediction->v[i], hit, failed);
    for (size_t k = 0; k < line->n; k++) {
        int32_t id = line->id[k];
        if (hit[k] && left_t[id] > 0 && left_p[id] > 0) {
            hits++;
            left_t[id]--;
            left_p[id]--;
        }
    }
    free(hit);
    return hits;
}

struct prf score_rouge_lsum(const char *target, const char *prediction, bool stem)
{
    struct vocab v;
    struct sentences t, p;
    int32_t *left_t = NULL, *left_p = NULL;
    size_t hits = 0;
    struct prf s;

    vocab_init(&v);
    t = sentences_of(target, &v, stem);
    p = sentences_of(prediction, &v, stem);
    if (!v.failed) {
        left_t = count_words(&t, v.n);
        left_p = count_words(&p, v.n);
        v.failed = !left_t || !left_p;
    }
    for (size_t i = 0; i < t.n && !v.failed; i++)
        hits += union_hits(&t.v[i], &p, left_t, left_p, &v.failed);
    s = prf_of((double)hits, (double)t.words, (double)p.words, v.failed);
    free(left_t);
    free(left_p);
    sentences_release(&t);
    sentences_release(&p);
    vocab_release(&v);
    return s;
}
