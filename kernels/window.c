/*
 * Which rows a step trains on, and how they are cut into passes.
 *
 * The order of an epoch is the file's, or a permutation keyed by (seed, epoch).  Each batch of the window is
 * cut between rows into chunks of at most CHUNK_TOKENS tokens (one longer row is a chunk by itself), so the
 * cut depends on the spec and the data alone.
 */
#include <stdlib.h>

#include "kernels/job.h"
#include "kernels/rng.h"

enum { KEY_ORDER = 0x6f72646572 }; /* apart from other uses of the seed */

uint32_t row_trained(const struct dtx_rows *rows, uint32_t i)
{
    uint64_t first = rows->start[i], n = rows->start[i + 1] - first;
    while (n > 1 && rows->labels[first + n - 1] == -100)
        n--;
    return n > 1 ? (uint32_t)(n - 1) : 0;
}

uint32_t row_labels(const struct dtx_rows *rows, uint32_t i)
{
    uint32_t n = 0;
    for (uint64_t k = rows->start[i] + 1; k < rows->start[i + 1]; k++)
        n += rows->labels[k] != -100;
    return n;
}

/* A number below n, by rejection, so that all are equally likely. */
static uint32_t rng_below(uint64_t key, uint32_t n, uint64_t *counter)
{
    uint64_t limit = UINT64_MAX - UINT64_MAX % n, x;
    do
        x = rng_key(key, (*counter)++);
    while (x >= limit);
    return (uint32_t)(x % n);
}

static void order_epoch(struct dtx_job *j, int64_t epoch)
{
    if (j->order_epoch == epoch)
        return;
    uint32_t n = j->rows->n;
    for (uint32_t i = 0; i < n; i++)
        j->order[i] = i;
    uint64_t key = rng_key(rng_key(j->params.seed, KEY_ORDER), (uint64_t)epoch), counter = 0;
    for (uint32_t i = n; j->params.shuffle && i > 1; i--) {
        uint32_t k = rng_below(key, i, &counter), t = j->order[i - 1];
        j->order[i - 1] = j->order[k];
        j->order[k] = t;
    }
    j->order_epoch = epoch;
}

/* Cut rows [first, end) of the window, which are one batch. */
static void cut_batch(const struct dtx_rows *rows, struct window *w, uint32_t first, uint32_t end)
{
    struct chunk *c = NULL;
    uint32_t used = 0;
    for (uint32_t i = first; i < end; i++) {
        uint32_t n = row_trained(rows, w->rows[i]);
        if (!n)
            continue;
        if (!c || used + n > CHUNK_TOKENS) {
            c = &w->chunks[w->n_chunks++];
            *c = (struct chunk){.first = i};
            used = 0;
        }
        used += n;
        c->n = i + 1 - c->first;
    }
}

int window_make(struct dtx_job *j, int64_t step, struct window *w, struct dtx_err *e)
{
    const struct dtx_train_params *p = &j->params;
    uint64_t size = (uint64_t)p->batch_size * (uint64_t)p->grad_acc_steps;
    uint64_t first = (uint64_t)(step % j->steps_per_epoch) * size;
    uint64_t end = first + size < j->rows->n ? first + size : j->rows->n;
    *w = (struct window){.epoch = (uint32_t)(step / j->steps_per_epoch), .n = (uint32_t)(end - first)};
    w->rows = malloc((size_t)w->n * sizeof *w->rows);
    w->chunks = malloc((size_t)w->n * sizeof *w->chunks);
    if (!w->rows || !w->chunks) {
        window_release(w);
        return dtx_fail(e, -ENOMEM, "out of memory");
    }
    order_epoch(j, w->epoch);
    for (uint32_t i = 0; i < w->n; i++) {
        uint32_t row = w->rows[i] = j->order[first + i];
        w->tokens += (uint32_t)(j->rows->start[row + 1] - j->rows->start[row]);
        w->label_tokens += row_labels(j->rows, row);
    }
    for (uint32_t i = 0; i < w->n; i += (uint32_t)p->batch_size)
        cut_batch(j->rows, w, i, w->n - i < (uint32_t)p->batch_size ? w->n : i + (uint32_t)p->batch_size);
    return 0;
}

void window_release(struct window *w)
{
    free(w->rows);
    free(w->chunks);
    *w = (struct window){0};
}

static int longer_first(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

int largest_chunk(const struct dtx_train_params *p, const struct dtx_rows *rows)
{
    uint32_t *n = malloc(((size_t)rows->n + 1) * sizeof *n);
    if (!n)
        return CHUNK_TOKENS;
    for (uint32_t i = 0; i < rows->n; i++)
        n[i] = row_trained(rows, i);
    qsort(n, rows->n, sizeof *n, longer_first);
    uint64_t sum = 0, longest = rows->n ? n[0] : 0;
    for (uint32_t i = 0; i < rows->n && i < (uint32_t)p->batch_size; i++)
        sum += n[i];
    free(n);
    if (sum > CHUNK_TOKENS)
        sum = longest > CHUNK_TOKENS ? longest : CHUNK_TOKENS;
    return (int)sum;
}
