/*
 * The head and its cross-entropy, at labelled rows only.  Chunks of HEAD_ROWS labelled rows counted from a
 * segment's first: gather, logits, softmax, gradient, scatter, all in the thread's scratch.  The last chunk
 * of a segment is padded with zero rows to a multiple of ROW_ALIGN, as everywhere.  Losses of chunks are
 * added in order at the end.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/vec.h"

struct chunk {
    int32_t seg, first, n; /* labelled rows */
    double loss;
};

struct call {
    struct op_dev *d;
    const struct op_pack *p;
    const float *x, *W;
    float *dx;
    struct chunk *chunks;
    int32_t vocab, hidden;
};

/* -log softmax(z)[label]; z becomes grad_scale * (softmax(z) - onehot(label)). */
static double cross_entropy(float *z, size_t vocab, int32_t label, float grad_scale)
{
    float zl = z[label], max = vec_max(z, vocab), sum = vec_exp_sum(z, vocab, max), f = grad_scale / sum;
    for (size_t i = 0; i < vocab; i++)
        z[i] *= f;
    z[label] -= grad_scale;
    return (double)(max - zl) + (double)logf(sum);
}

static void gather(const struct call *c, const struct chunk *k, int m, float *xg)
{
    size_t hidden = (size_t)c->hidden;
    for (int i = 0; i < k->n; i++)
        memcpy(xg + (size_t)i * hidden, c->x + (size_t)c->p->lab_row[k->first + i] * hidden,
               hidden * sizeof *xg);
    memset(xg + (size_t)k->n * hidden, 0, (size_t)(m - k->n) * hidden * sizeof *xg);
}

static void head_task(void *arg, int task, int thread)
{
    const struct call *c = arg;
    struct chunk *k = &c->chunks[task];
    int m = div_up(k->n, ROW_ALIGN) * ROW_ALIGN;
    size_t hidden = (size_t)c->hidden, vocab = (size_t)c->vocab;
    float *xg = cpu_scratch(c->d, thread, (size_t)m * (hidden + vocab));
    if (!xg)
        return;
    float *z = xg + (size_t)m * hidden, scale = c->dx ? c->p->segs[k->seg].loss_scale : 0;
    gather(c, k, m, xg);
    cpu_gemm(false, true, m, c->vocab, c->hidden, 1, xg, c->hidden, c->W, c->hidden, 0, z, c->vocab);
    for (int i = 0; i < k->n; i++)
        k->loss += cross_entropy(z + (size_t)i * vocab, vocab, c->p->lab_id[k->first + i], scale);
    if (!c->dx)
        return;
    memset(z + (size_t)k->n * vocab, 0, (size_t)(m - k->n) * vocab * sizeof *z);
    cpu_gemm(false, false, m, c->hidden, c->vocab, 1, z, c->vocab, c->W, c->hidden, 0, xg, c->hidden);
    for (int i = 0; i < k->n; i++)
        memcpy(c->dx + (size_t)c->p->lab_row[k->first + i] * hidden, xg + (size_t)i * hidden,
               hidden * sizeof *xg);
}

void cpu_head_loss(struct op_dev *d, const struct op_pack *p, const void *x, const void *W, int32_t vocab,
                   int32_t hidden, double *loss, void *dx)
{
    struct call c = {.d = d, .p = p, .x = x, .W = W, .dx = dx, .vocab = vocab, .hidden = hidden};
    int n = 0, most = p->n_segs + p->n_labels / HEAD_ROWS;
    c.chunks = calloc((size_t)most + 1, sizeof *c.chunks);
    if (!c.chunks) {
        cpu_failed(d, -ENOMEM);
        return;
    }
    if (dx)
        memset(dx, 0, (size_t)p->rows * (size_t)hidden * sizeof(float));
    for (int s = 0; s < p->n_segs; s++)
        for (int i = 0; i < p->segs[s].labels; i += HEAD_ROWS) {
            int left = p->segs[s].labels - i;
            c.chunks[n++] = (struct chunk){
                .seg = s, .first = p->segs[s].label0 + i, .n = left < HEAD_ROWS ? left : HEAD_ROWS};
        }
    pool_run(d->pool, n, head_task, &c);
    for (int i = 0; i < n; i++)
        loss[p->segs[c.chunks[i].seg].slot] += c.chunks[i].loss;
    free(c.chunks);
}
