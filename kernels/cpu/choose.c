/* The choice of a token; the rule is in kernels/choice.h. */
#include <math.h>
#include <stdlib.h>

#include "kernels/choice.h"
#include "kernels/cpu/cpu.h"

static int32_t best_of(const float *l, int32_t vocab)
{
    int32_t best = 0;
    float top = -INFINITY;
    for (int32_t v = 0; v < vocab; v++)
        if (l[v] > top) {
            top = l[v];
            best = v;
        }
    return best;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t weight_of(uint64_t key)
{
    return choice_weight((uint32_t)(key >> 32));
}

/* How many of n keys in order are kept; *sum: their weights. */
static int32_t keep(const uint64_t *key, int32_t n, const struct op_choice *how, uint64_t *sum)
{
    n = how->top_k > 0 && how->top_k < n ? how->top_k : n;
    *sum = 0;
    for (int32_t i = 0; i < n; i++)
        *sum += weight_of(key[i]);
    if (!(how->top_p < 1))
        return n;
    uint64_t limit = choice_limit(how->top_p, *sum), kept = 0;
    int32_t k = 0;
    while (k < n && kept < limit)
        kept += weight_of(key[k++]);
    *sum = kept;
    return k;
}

static int32_t draw(const float *l, int32_t vocab, int32_t best, const struct op_choice *how, uint64_t *key)
{
    float factor = choice_factor(how->temperature);
    int32_t n = 0;
    for (int32_t v = 0; v < vocab; v++) {
        uint32_t level = choice_level(l[v], l[best], factor);
        if (level != CHOICE_NONE)
            key[n++] = (uint64_t)level << 32 | (uint32_t)v;
    }
    if (!n)
        return best;
    qsort(key, (size_t)n, sizeof *key, ascending);
    uint64_t sum;
    uint64_t last = key[keep(key, n, how, &sum) - 1];
    uint64_t left = (uint64_t)((unsigned __int128)choice_random(how->seed, how->number) * sum >> 64);
    for (int32_t v = 0; v < vocab; v++) {
        uint32_t level = choice_level(l[v], l[best], factor);
        if (level == CHOICE_NONE || ((uint64_t)level << 32 | (uint32_t)v) > last)
            continue;
        uint64_t w = choice_weight(level);
        if (left < w)
            return v;
        left -= w;
    }
    return best; /* not reached: left was below the sum */
}

void cpu_choose(struct op_dev *d, const float *logits, int32_t n, int32_t vocab, const struct op_choice *how,
                int32_t *out)
{
    uint64_t *key = NULL;
    for (int32_t i = 0; i < n; i++) {
        const float *row = logits + (size_t)i * (size_t)vocab;
        out[i] = best_of(row, vocab);
        if (!(how[i].temperature > 0))
            continue;
        if (!key && !(key = malloc((size_t)vocab * sizeof *key))) {
            cpu_failed(d, -ENOMEM);
            return;
        }
        out[i] = draw(row, vocab, out[i], &how[i], key);
    }
    free(key);
}
