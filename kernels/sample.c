/*
 * Temperature, then top_k, then top_p, as in transformers: top_k keeps the k largest, top_p the fewest whose
 * probabilities reach p (at least one).  The random number is keyed by (seed, number of the token).
 */
#include <math.h>
#include <stdlib.h>

#include "kernels/rng.h"
#include "kernels/sample.h"

enum { KEY_SAMPLE = 0x73616d70 };

int sample_room_need(struct sample_room *r, int vocab)
{
    if (r->vocab >= vocab)
        return 0;
    sample_room_free(r);
    r->c = malloc((size_t)vocab * sizeof *r->c);
    r->p = malloc((size_t)vocab * sizeof *r->p);
    if (!r->c || !r->p) {
        sample_room_free(r);
        return -ENOMEM;
    }
    r->vocab = vocab;
    return 0;
}

void sample_room_free(struct sample_room *r)
{
    free(r->c);
    free(r->p);
    *r = (struct sample_room){0};
}

/* Larger logits first, then lower ids. */
static int better_first(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Probabilities of the first n candidates (sorted), unnormalised; returns their sum. */
static double weigh(struct sample_room *r, int n, double temperature)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        double d = ((double)r->c[i].logit - (double)r->c[0].logit) / temperature;
        sum += r->p[i] = isnan(d) ? 0 : exp(d); /* inf - inf */
    }
    return sum;
}

int32_t sample_token(struct sample_room *r, const float *logits, int vocab, const struct dtx_sampling *s,
                     uint64_t number)
{
    for (int i = 0; i < vocab; i++)
        r->c[i] = (struct candidate){isnan(logits[i]) ? -INFINITY : logits[i], i};
    qsort(r->c, (size_t)vocab, sizeof *r->c, better_first);
    int n = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    double sum = weigh(r, n, s->temperature);
    if (s->top_p < 1) {
        double kept = 0, limit = s->top_p * sum;
        int k = 0;
        while (k < n && (k == 0 || kept < limit))
            kept += r->p[k++];
        n = k;
        sum = kept;
    }
    double x = rng_double(rng_key(s->seed, KEY_SAMPLE), number) * sum;
    for (int i = 0; i < n - 1; i++) {
        x -= r->p[i];
        if (x < 0)
            return r->c[i].id;
    }
    return r->c[n - 1].id;
}
