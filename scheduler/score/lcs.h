/* Longest common subsequences of word lists. */
#ifndef DTX_SCORE_LCS_H
#define DTX_SCORE_LCS_H

#include "scheduler/score/words.h"

size_t lcs_length(const struct words *a, const struct words *b, bool *failed);
/* Set hit[i] for every word of ref that is in the longest common subsequence with can; of several the one
 * that rouge_score's backtracking finds. */
void lcs_mark(const struct words *ref, const struct words *can, bool *hit, bool *failed);

#endif
