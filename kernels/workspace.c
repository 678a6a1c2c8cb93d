/* The memory of a pass: one allocation, laid out by the same function that the planner asks for its size. */
#include <stdlib.h>

#include "kernels/model.h"

enum { ALIGN = 256 };

struct cutter {
    char *base; /* NULL: only count */
    size_t used;
};

static void *cut(struct cutter *c, size_t rows, size_t width, size_t bytes)
{
    size_t at = c->used;
    c->used += (rows * width * bytes + ALIGN - 1) / ALIGN * ALIGN;
    return c->base ? c->base + at : NULL;
}

/* Enough for every device's linear_h_floats. */
static float *cut_h(struct cutter *k, const struct dtx_model_config *c, const struct workspace *w, int which)
{
    static const size_t parts[H_COUNT] = {3, 1, 2, 1};
    int in = which == H_O ? c->heads * c->head_dim : which == H_DOWN ? c->ffn : c->hidden;
    size_t row = parts[which] * ((size_t)w->rank * sizeof(float) + (w->masks ? mask_bytes(in) : 0));
    return cut(k, (size_t)w->rows, row, 1);
}

static struct layer_acts cut_layer(struct cutter *k, const struct dtx_model_config *c, size_t act,
                                   const struct workspace *w)
{
    size_t rows = (size_t)w->rows, hidden = (size_t)c->hidden, q = (size_t)(c->heads * c->head_dim),
           kv = (size_t)(c->kv_heads * c->head_dim);
    struct layer_acts a = {
        .x = cut(k, rows, hidden, act),
        .qkv = cut(k, rows, q + 2 * kv, act),
        .o = cut(k, rows, q, act),
        .x2 = cut(k, rows, hidden, act),
        .gu = cut(k, rows, 2 * (size_t)c->ffn, act),
        .lse = cut(k, rows, (size_t)c->heads, sizeof(float)),
        .rstd1 = cut(k, rows, 1, sizeof(float)),
        .rstd2 = cut(k, rows, 1, sizeof(float)),
    };
    for (int i = 0; i < H_COUNT; i++)
        a.h[i] = cut_h(k, c, w, i);
    if (w->keep) {
        a.xn1 = cut(k, rows, hidden, act);
        a.xn2 = cut(k, rows, hidden, act);
        a.a = cut(k, rows, (size_t)c->ffn, act);
    }
    return a;
}

/* Layers 0 .. recompute share one set of activations: forward overwrites it layer by layer, backward of layer
 * `recompute` finds its own there, the layers below run forward again first.  Each keeps what that starts
 * from (x), and h of the down projection, which is small and spares that product. */
static struct layer_acts cut_next(struct cutter *k, const struct dtx_model_config *c,
                                  const struct workspace *w, size_t act, int i, bool train,
                                  struct layer_acts last)
{
    size_t rows = (size_t)w->rows;
    if (i == 0 || (train && i > w->recompute))
        return cut_layer(k, c, act, w);
    if (train) {
        last.x = cut(k, rows, (size_t)c->hidden, act);
        last.h[H_DOWN] = cut_h(k, c, w, H_DOWN);
    }
    return last;
}

size_t workspace_layout(struct workspace *w, const struct dtx_model_config *c, int act_bytes, bool train)
{
    struct cutter k = {.base = w->memory};
    size_t act = (size_t)act_bytes, R = (size_t)w->rows, hidden = (size_t)c->hidden, ffn = (size_t)c->ffn;
    size_t q = (size_t)(c->heads * c->head_dim), kv = (size_t)(c->kv_heads * c->head_dim);
    struct layer_acts a = {0};
    w->rank = (w->rank + 15) / 16 * 16;
    w->xn = cut(&k, R, hidden, act);
    void *shared_a = w->keep ? NULL : cut(&k, R, ffn, act);
    for (int i = 0; i < c->layers; i++) {
        a = cut_next(&k, c, w, act, i, train, a);
        if (!w->keep) {
            a.xn1 = a.xn2 = w->xn;
            a.a = shared_a;
        }
        if (w->layer)
            w->layer[i] = a;
    }
    w->x_last = train ? cut(&k, R, hidden, act) : a.x;
    w->rstd_last = cut(&k, R, 1, sizeof(float));
    if (train) {
        w->da = cut(&k, R, ffn, act);
        w->dx = cut(&k, R, hidden, act);
        w->dres = cut(&k, R, hidden, act);
        w->dout = cut(&k, R, q, act);
        w->dqkv = cut(&k, R, q + 2 * kv, act);
    }
    return w->bytes = k.used;
}

static void space_free(struct dtx_base *b, struct workspace *w)
{
    b->ops->free(b->dev, w->memory);
    free(w->layer);
    *w = (struct workspace){0};
}

void workspace_free(struct dtx_base *b)
{
    space_free(b, &b->spaces[0]);
    space_free(b, &b->spaces[1]);
}

/* b->spaces[train] as `n` says; the old one goes first, there may be no room for both. */
static int space_new(struct dtx_base *b, struct workspace n, bool train, struct dtx_err *e)
{
    space_free(b, &b->spaces[train]);
    b->moved += !train;
    n.layer = calloc((size_t)b->config.layers, sizeof *n.layer);
    if (!n.layer)
        return dtx_fail(e, -ENOMEM, "out of memory");
    struct workspace size = n;
    n.memory = base_alloc(b, workspace_layout(&size, &b->config, b->ops->act_bytes, train), e);
    if (!n.memory) {
        free(n.layer);
        dtx_fail_context(e, "activations of %d tokens", n.rows);
        return -ENOMEM;
    }
    workspace_layout(&n, &b->config, b->ops->act_bytes, train);
    b->spaces[train] = n;
    return 0;
}

static int space_grow(struct dtx_base *b, int rows, int rank, bool masks, bool train, struct dtx_err *e)
{
    struct workspace *w = b->ws = &b->spaces[train];
    if (w->memory && rows <= w->rows && rank <= w->rank && masks <= w->masks)
        return 0;
    struct workspace n = {.rows = rows > w->rows ? rows : w->rows,
                          .rank = rank > w->rank ? rank : w->rank,
                          .recompute = w->recompute,
                          .keep = w->keep,
                          .masks = masks || w->masks};
    return space_new(b, n, train, e);
}

int workspace_need(struct dtx_base *b, int rows, int rank, struct dtx_err *e)
{
    return space_grow(b, rows, rank, false, false, e);
}

int workspace_need_for(struct dtx_base *b, const struct op_pack *p, bool train, struct dtx_err *e)
{
    return space_grow(b, p->rows, p->max_rank, b->ops->keeps_masks && pack_drops(p), train, e);
}

int workspace_set(struct dtx_base *b, const struct dtx_plan *p, struct dtx_err *e)
{
    const struct workspace *w = &b->spaces[1];
    int rounded = (p->rank + 15) / 16 * 16;
    if (w->memory && w->rows == p->rows && w->rank == rounded && w->recompute == p->recompute &&
        w->keep == p->keep && w->masks == p->masks)
        return 0;
    if (p->rows > 0)
        return space_new(b,
                         (struct workspace){.rows = p->rows,
                                            .rank = p->rank,
                                            .recompute = p->recompute,
                                            .keep = p->keep,
                                            .masks = p->masks},
                         true, e);
    space_free(b, &b->spaces[1]);
    return 0;
}
