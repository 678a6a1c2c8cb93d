/* The Porter stemmer as NLTK's PorterStemmer (its default mode), which rouge_score uses. */
#ifndef DTX_SCORE_PORTER_H
#define DTX_SCORE_PORTER_H

#include <stddef.h>

/* Stem the lower-case word w[0..n) in place (w needs room for n + 1 bytes: a stem may grow by an e); new
 * length. */
size_t porter_stem(char *w, size_t n);

#endif
