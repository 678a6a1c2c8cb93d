/*
 * A frozen matrix with the adapters of all jobs, backward.  First dh of every tile, then, all independent of
 * each other: dx by tiles and column blocks, dA and dB by segments (over a segment's real rows, tile after
 * tile). dh lies in d->shared, laid out as h.
 */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"

struct back_call {
    struct op_dev *d;
    const struct op_pack *p;
    const struct op_linear *l;
    const struct cpu_pack *cp;
    const float *dy, *x, *h;
    float *dx, *dh;
    int dx_blocks, dx_tasks;
};

static void dh_task(void *arg, int task, int thread)
{
    const struct back_call *c = arg;
    const struct op_linear *l = c->l;
    const struct tile *t = &c->cp->tiles[task / l->n_parts];
    int part = task % l->n_parts;
    struct lora_part lp;
    if (!lora_part(c->p, l, t->seg, part, &lp))
        return;
    float *dh = c->dh + lp.h0 + (size_t)(t->row0 - c->p->segs[t->seg].row0) * (size_t)lp.rank;
    const float *dy = c->dy + (size_t)t->row0 * (size_t)l->out + l->part[part].out0;
    cpu_gemm(false, false, t->m, lp.rank, l->part[part].n, lp.scale, dy, l->out, lp.B, lp.rank, 0, dh,
             lp.rank);
}

/* dx += mask * (dh A) for a tile's columns [k0, k0 + n), through a scratch block because of the mask. */
static void dx_dropped(const struct back_call *c, const struct tile *t, const struct lora_part *lp,
                       const float *dh, int k0, int n, float *dx, int thread)
{
    const struct op_linear *l = c->l;
    float *tmp = cpu_scratch(c->d, thread, (size_t)t->m * (size_t)n);
    if (!tmp)
        return;
    cpu_gemm(false, false, t->m, n, lp->rank, 1, dh, lp->rank, lp->A + k0, l->in, 0, tmp, n);
    for (int r = 0; r < t->m; r++) {
        float *row = dx + (size_t)r * (size_t)l->in;
        lora_drop_row(c->p, l, lp, t->row0 + r, k0, n, tmp + (size_t)r * (size_t)n, row, row);
    }
}

static void dx_task(const struct back_call *c, int task, int thread)
{
    const struct op_linear *l = c->l;
    const struct tile *t = &c->cp->tiles[task / c->dx_blocks];
    int width = col_block(l->in), k0 = task % c->dx_blocks * width;
    int n = l->in - k0 < width ? l->in - k0 : width;
    float *dx = c->dx + (size_t)t->row0 * (size_t)l->in + k0;
    cpu_gemm(false, false, t->m, n, l->out, 1, c->dy + (size_t)t->row0 * (size_t)l->out, l->out,
             (const float *)l->W + k0, l->in, 0, dx, l->in);
    for (int part = 0; part < l->n_parts; part++) {
        struct lora_part lp;
        if (!lora_part(c->p, l, t->seg, part, &lp))
            continue;
        const float *dh = c->dh + lp.h0 + (size_t)(t->row0 - c->p->segs[t->seg].row0) * (size_t)lp.rank;
        if (lp.dropout > 0)
            dx_dropped(c, t, &lp, dh, k0, n, dx, thread);
        else
            cpu_gemm(false, false, t->m, n, lp.rank, 1, dh, lp.rank, lp.A + k0, l->in, 1, dx, l->in);
    }
}

/* dB (which = 0) or dA (which = 1) of one segment and part. */
static void weight_task(const struct back_call *c, int seg, int part, int which, int thread)
{
    const struct op_linear *l = c->l;
    const struct op_seg *s = &c->p->segs[seg];
    struct lora_part lp;
    if (!lora_part(c->p, l, seg, part, &lp) || !lp.dA)
        return;
    for (int r = 0; r < s->rows; r += TILE_ROWS) {
        int rows = s->rows - r < TILE_ROWS ? s->rows - r : TILE_ROWS;
        size_t h_at = lp.h0 + (size_t)r * (size_t)lp.rank;
        if (which == 0) {
            const float *dy = c->dy + (size_t)(s->row0 + r) * (size_t)l->out + l->part[part].out0;
            cpu_gemm(true, false, l->part[part].n, lp.rank, rows, lp.scale, dy, l->out, c->h + h_at, lp.rank,
                     1, lp.dB, lp.rank);
        } else {
            const float *x = lora_dropped(c->d, c->p, l, &lp, c->x, s->row0 + r, rows, thread);
            if (x)
                cpu_gemm(true, false, lp.rank, l->in, rows, 1, c->dh + h_at, lp.rank, x, l->in, 1, lp.dA,
                         l->in);
        }
    }
}

static void back_task(void *arg, int task, int thread)
{
    const struct back_call *c = arg;
    if (task < c->dx_tasks) {
        dx_task(c, task, thread);
        return;
    }
    task -= c->dx_tasks;
    weight_task(c, task / 2 / c->l->n_parts, task / 2 % c->l->n_parts, task % 2, thread);
}

void cpu_linear_back(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *dy,
                     const void *x, const float *h, void *dx)
{
    struct back_call c = {.d = d, .p = p, .l = l, .cp = p->dev, .dy = dy, .x = x, .h = h, .dx = dx};
    int weight_tasks = 0;
    if (p->max_rank) {
        c.dh = cpu_shared(d, &d->shared, cpu_linear_h_floats(p, l));
        if (!c.dh)
            return;
        pool_run(d->pool, c.cp->n_tiles * l->n_parts, dh_task, &c);
        weight_tasks = p->n_segs * l->n_parts * 2;
    }
    c.dx_blocks = div_up(l->in, col_block(l->in));
    c.dx_tasks = dx ? c.cp->n_tiles * c.dx_blocks : 0;
    pool_run(d->pool, c.dx_tasks + weight_tasks, back_task, &c);
}
