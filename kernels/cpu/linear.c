/*
 * A frozen matrix with the adapters of all jobs, forward.
 *
 * h holds, for each segment and part t whose adapter has that target, h_t = drop_t(x) A_t^T as [padded rows,
 * rank], the parts of a segment one after the other, the segment beginning at row0 * n_parts * max_rank.
 */
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec.h"

size_t cpu_linear_h_floats(const struct op_pack *p, const struct op_linear *l)
{
    return (size_t)p->rows * (size_t)l->n_parts * (size_t)p->max_rank;
}

bool lora_part(const struct op_pack *p, const struct op_linear *l, int32_t seg, int part,
               struct lora_part *out)
{
    const struct op_seg *s = &p->segs[seg];
    if (s->adapter < 0)
        return false;
    const struct op_adapter *a = &p->adapters[s->adapter];
    int target = l->part[part].target;
    if (!(a->targets >> target & 1))
        return false;
    size_t at = lora_offset(p->dims, a->targets, a->rank, l->layer, target);
    size_t b_at = at + (size_t)a->rank * (size_t)l->in;
    size_t padded = p->decode ? 1 : (size_t)(div_up(s->rows, ROW_ALIGN) * ROW_ALIGN);
    *out = (struct lora_part){
        .A = a->w + at,
        .B = a->w + b_at,
        .dA = a->g ? a->g + at : NULL,
        .dB = a->g ? a->g + b_at : NULL,
        .rank = a->rank,
        .target = target,
        .scale = a->scale,
        .dropout = a->dropout,
        .h0 = ((size_t)s->row0 * (size_t)l->n_parts * (size_t)p->max_rank) +
              (size_t)part * padded * (size_t)a->rank,
    };
    return true;
}

void lora_drop_row(const struct op_pack *p, const struct op_linear *l, const struct lora_part *lp,
                   int32_t row, int32_t first, int32_t n, const float *x, const float *add, float *out)
{
    const struct op_seq *s = p->seq_of_row[row] < 0 ? NULL : &p->seqs[p->seq_of_row[row]];
    if (!s) {
        for (int32_t i = 0; i < n; i++)
            out[i] = add ? add[i] : 0;
        return;
    }
    uint64_t key = rng_dropout_key(s->drop_key, s->token0 + row - s->row0, l->layer, lp->target);
    uint32_t limit = rng_dropout_threshold(lp->dropout), i0 = (uint32_t)first;
    float f = limit ? 1.0f / (1.0f - lp->dropout) : 1.0f;
    if (add) {
        for (int32_t i = 0; i < n; i++)
            out[i] = add[i] + (rng_dropout(key, i0 + (uint32_t)i) >= limit ? x[i] * f : 0.0f);
    } else {
        for (int32_t i = 0; i < n; i++)
            out[i] = rng_dropout(key, i0 + (uint32_t)i) >= limit ? x[i] * f : 0.0f;
    }
}

const float *lora_dropped(struct op_dev *d, const struct op_pack *p, const struct op_linear *l,
                          const struct lora_part *lp, const float *x, int32_t row0, int32_t rows, int thread)
{
    const float *xt = x + (size_t)row0 * (size_t)l->in;
    if (!(lp->dropout > 0))
        return xt;
    float *xd = cpu_scratch(d, thread, (size_t)rows * (size_t)l->in);
    for (int32_t r = 0; xd && r < rows; r++)
        lora_drop_row(p, l, lp, row0 + r, 0, l->in, xt + (size_t)r * (size_t)l->in, NULL,
                      xd + (size_t)r * (size_t)l->in);
    return xd;
}

struct forward_call {
    struct op_dev *d;
    const struct op_pack *p;
    const struct op_linear *l;
    const struct cpu_pack *cp;
    const float *x, *add;
    float *y, *h;
    int blocks[3], per_tile; /* column blocks of each part, of all parts */
};

/* h of one tile and part. */
static void down_task(void *arg, int task, int thread)
{
    const struct forward_call *c = arg;
    const struct op_linear *l = c->l;
    const struct tile *t = &c->cp->tiles[task / l->n_parts];
    struct lora_part lp;
    if (!lora_part(c->p, l, t->seg, task % l->n_parts, &lp))
        return;
    const float *x = lora_dropped(c->d, c->p, l, &lp, c->x, t->row0, t->m, thread);
    float *h = c->h + lp.h0 + (size_t)(t->row0 - c->p->segs[t->seg].row0) * (size_t)lp.rank;
    if (x)
        cpu_gemm(false, true, t->m, lp.rank, l->in, 1, x, l->in, lp.A, l->in, 0, h, lp.rank);
}

static void copy_block(const float *from, float *to, int rows, int cols, int ld)
{
    for (int r = 0; r < rows; r++)
        memcpy(to + (size_t)r * (size_t)ld, from + (size_t)r * (size_t)ld, (size_t)cols * sizeof *to);
}

/* y of one tile and one block of columns. */
static void up_task(void *arg, int task, int thread)
{
    const struct forward_call *c = arg;
    const struct op_linear *l = c->l;
    const struct tile *t = &c->cp->tiles[task / c->per_tile];
    int part = 0, b = task % c->per_tile;
    while (b >= c->blocks[part])
        b -= c->blocks[part++];
    int width = col_block(l->part[part].n), n0 = b * width;
    int n = l->part[part].n - n0 < width ? l->part[part].n - n0 : width, col = l->part[part].out0 + n0;
    size_t at = (size_t)t->row0 * (size_t)l->out + (size_t)col;
    float *y = c->y + at;
    if (c->add && c->add != c->y)
        copy_block(c->add + at, y, t->m, n, l->out);
    cpu_gemm(false, true, t->m, n, l->in, 1, c->x + (size_t)t->row0 * (size_t)l->in, l->in,
             (const float *)l->W + (size_t)col * (size_t)l->in, l->in, c->add ? 1 : 0, y, l->out);
    for (int r = 0; l->bias && r < t->m; r++)
        vec_add((const float *)l->bias + col, y + (size_t)r * (size_t)l->out, (size_t)n);
    struct lora_part lp;
    if (lora_part(c->p, l, t->seg, part, &lp))
        cpu_gemm(false, true, t->m, n, lp.rank, lp.scale,
                 c->h + lp.h0 + (size_t)(t->row0 - c->p->segs[t->seg].row0) * (size_t)lp.rank, lp.rank,
                 lp.B + (size_t)n0 * (size_t)lp.rank, lp.rank, 1, y, l->out);
}

void cpu_linear(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *x,
                const void *add, void *y, float *h)
{
    if (p->decode) {
        cpu_linear_decode(d, p, l, x, add, y);
        return;
    }
    struct forward_call c = {.d = d, .p = p, .l = l, .cp = p->dev, .x = x, .add = add, .y = y, .h = h};
    for (int i = 0; i < l->n_parts; i++)
        c.per_tile += c.blocks[i] = div_up(l->part[i].n, col_block(l->part[i].n));
    if (p->max_rank)
        pool_run(d->pool, c.cp->n_tiles * l->n_parts, down_task, &c);
    pool_run(d->pool, c.cp->n_tiles * c.per_tile, up_task, &c);
}
