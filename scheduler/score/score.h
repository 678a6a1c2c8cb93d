/*
 * Scores: how near an answer is to its reference.  All values 0..1 except perplexity; NAN when out of memory.
 * Texts are compared by their first 8192 words.
 */
#ifndef DTX_SCORE_H
#define DTX_SCORE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct prf {
    double precision, recall, f1;
};

/* Rouge as in Google's rouge_score (tokenizer: lower case, [a-z0-9]+; Porter stemming of words over 3
 * letters). */
struct prf score_rouge_n(const char *target, const char *prediction, int n, bool stem);
struct prf score_rouge_l(const char *target, const char *prediction, bool stem);
struct prf score_rouge_lsum(const char *target, const char *prediction, bool stem); /* sentences = lines */
double score_bleu(const char *target,
                  const char *prediction); /* sentence BLEU-4, smoothing of chrF/sacrebleu "exp" */
double score_exact_match(const char *target, const char *prediction); /* after SQuAD normalisation */
/* As exact match; but where the reference has a final answer after "####" (GSM8K), that alone is compared. */
double score_accuracy(const char *target, const char *prediction);
struct prf score_token_f1(const char *target, const char *prediction); /* SQuAD token overlap */

/* {"rouge1":x,...} of one pair, every metric that does not need a model (F1 of the Rouges, with stemming). */
json_t *score_pair(const char *target, const char *prediction);

/* Weighted mean of metrics (0..1 each) by {"rougeL":1.0,...} -> 0..100. Unknown names are errors at spec
 * time. Perplexity is shown but never part of it.  NAN when no weighted metric is there. */
double score_weighted(const json_t *metrics, const json_t *weights);
extern const char *const score_metric_names[]; /* NULL-terminated; also what spec.c accepts */

#endif
