/* Gradient norm, clipping and the update of all jobs.  Blocks of BLOCK values; a job's norm is the sum of its
 * blocks' sums of squares in order. */
#include <math.h>
#include <stdlib.h>

#include "kernels/cpu/cpu.h"

enum { BLOCK = 16384 };

struct block {
    const struct op_optim *job;
    int32_t index; /* of the job */
    size_t first, n;
    double squares;
};

struct call {
    struct block *blocks;
    const struct op_outcome *out;
};

static void squares_task(void *arg, int task, int thread)
{
    struct block *b = &((struct call *)arg)->blocks[task];
    const float *g = b->job->g + b->first;
    double s[8] = {0};
    size_t i = 0;
    for (; i + 8 <= b->n; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += (double)g[i + (size_t)k] * (double)g[i + (size_t)k];
    for (; i < b->n; i++)
        s[0] += (double)g[i] * (double)g[i];
    b->squares = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static void adam_block(const struct op_optim *j, size_t first, size_t n, float clip)
{
    float *w = j->w + first, *m = j->m + first, *v = j->v + first;
    const float *g = j->g + first;
    float decay = j->kind == DTX_ADAMW ? (float)(1.0 - j->lr * j->weight_decay) : 1.0f;
    float l2 = j->kind == DTX_ADAM ? (float)j->weight_decay : 0.0f;
    float b1 = (float)(1.0 - j->beta1), b2 = (float)j->beta2, c2 = (float)(1.0 - j->beta2);
    float step = (float)(j->lr / j->bias1), root = (float)sqrt(j->bias2), eps = (float)j->eps;
    for (size_t i = 0; i < n; i++) {
        float gi = g[i] * clip + l2 * w[i];
        m[i] += b1 * (gi - m[i]);
        v[i] = b2 * v[i] + c2 * gi * gi;
        w[i] = w[i] * decay - step * (m[i] / (sqrtf(v[i]) / root + eps));
    }
}

static void sgd_block(const struct op_optim *j, size_t first, size_t n, float clip)
{
    float *w = j->w + first, lr = (float)j->lr, l2 = (float)j->weight_decay;
    const float *g = j->g + first;
    for (size_t i = 0; i < n; i++)
        w[i] -= lr * (g[i] * clip + l2 * w[i]);
}

static void update_task(void *arg, int task, int thread)
{
    const struct call *c = arg;
    const struct block *b = &c->blocks[task];
    const struct op_outcome *o = &c->out[b->index];
    if (!o->applied)
        return;
    double ratio = b->job->max_norm > 0 ? b->job->max_norm / (o->norm + 1e-6) : 1;
    float clip = ratio < 1 ? (float)ratio : 1.0f;
    if (b->job->kind == DTX_SGD)
        sgd_block(b->job, b->first, b->n, clip);
    else
        adam_block(b->job, b->first, b->n, clip);
}

static int cut_blocks(const struct op_optim *jobs, int32_t n, struct block *blocks)
{
    int k = 0;
    for (int32_t j = 0; j < n; j++)
        for (size_t first = 0; first < jobs[j].n; first += BLOCK, k++) {
            size_t left = jobs[j].n - first;
            if (blocks)
                blocks[k] = (struct block){
                    .job = &jobs[j], .index = j, .first = first, .n = left < BLOCK ? left : BLOCK};
        }
    return k;
}

void cpu_optim(struct op_dev *d, const struct op_optim *jobs, int32_t n, const double *loss,
               struct op_outcome *out)
{
    int k = cut_blocks(jobs, n, NULL);
    struct call c = {.blocks = calloc((size_t)k + 1, sizeof *c.blocks), .out = out};
    if (!c.blocks) {
        cpu_failed(d, -ENOMEM);
        return;
    }
    cut_blocks(jobs, n, c.blocks);
    pool_run(d->pool, k, squares_task, &c);
    for (int32_t j = 0; j < n; j++)
        out[j] = (struct op_outcome){0};
    for (int i = 0; i < k; i++)
        out[c.blocks[i].index].norm += c.blocks[i].squares;
    for (int32_t j = 0; j < n; j++) {
        out[j].norm = sqrt(out[j].norm);
        out[j].applied = isfinite(out[j].norm) && isfinite(loss[jobs[j].slot]) && !atomic_load(&d->error);
    }
    pool_run(d->pool, k, update_task, &c);
    free(c.blocks);
}
