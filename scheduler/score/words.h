/* Texts as sequences of numbered words, so that comparing two words is comparing two numbers. */
#ifndef DTX_SCORE_WORDS_H
#define DTX_SCORE_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "scheduler/base/buf.h"

/* A text is cut here, which bounds time (LCS: 8192^2 steps, about 0.1 s) and memory. */
enum { WORDS_MAX = 8192 };

struct vocab { /* word -> number; one for the texts that are compared */
    struct buf text;
    struct vocab_entry *entry;
    size_t n, cap;
    int32_t *bucket;
    size_t buckets; /* a power of two */
    bool failed;    /* out of memory */
};
void vocab_init(struct vocab *v);
void vocab_release(struct vocab *v);
int32_t vocab_add(struct vocab *v, const char *word, size_t n); /* its number; -1: out of memory */

struct words {
    int32_t *id;
    size_t n, cap;
};
void words_add(struct words *w, struct vocab *v, const char *word, size_t n);
void words_release(struct words *w);

/* rouge_score's tokenizer: lower case, runs of [a-z0-9], words over 3 letters stemmed if asked. */
void words_rouge(struct words *w, struct vocab *v, const char *text, size_t n, bool stem);
/* mteval-v13a's (sacrebleu's "13a"): case kept, punctuation apart, numbers whole. */
void words_13a(struct words *w, struct vocab *v, const char *text);
/* SQuAD's answer normalisation: lower case, without ASCII punctuation and articles, single spaces. */
void normalize_squad(const char *text, struct buf *out);
/* Split at white space. */
void words_split(struct words *w, struct vocab *v, const char *text, size_t n);

/* How many n-grams two word lists share, each counted at most as often as the rarer side has it. */
size_t ngrams_shared(const struct words *a, const struct words *b, size_t n, bool *failed);

struct prf;
/* rouge1, rouge2 and rougeL of a pair together (rouge.c): its words are found once; out holds 3. */
void rouge_1_2_l(const char *target, const char *prediction, bool stem, struct prf *out);

#endif
