/*
 * The forward pass of a Llama over a pack:
 *
 *      x = embed(ids)
 *      layer: qkv = rope(Wqkv norm1(x));  x2 = x + Wo attention(qkv);  x = x2 + Wdown swiglu(Wgu norm2(x2))
 *      xn = norm(x)                                     (the head belongs to the caller: loss or logits)
 *
 * every W with the adapters of the pack.  With training each layer keeps its struct layer_acts for
 * backward.c, or its x alone, from which forward_again makes the rest; without, all layers share one, and
 * x_last is the same buffer as every layer's x.
 */
#include <math.h>

#include "kernels/model.h"

struct op_linear linear_of(const struct dtx_base *b, int layer, int which)
{
    const struct dtx_model_config *c = &b->config;
    const struct layer_weights *w = &b->layer[layer];
    int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    switch (which) {
    case H_QKV:
        return (struct op_linear){.W = w->qkv,
                                  .bias = w->qkv_bias,
                                  .in = c->hidden,
                                  .out = q + 2 * kv,
                                  .layer = layer,
                                  .n_parts = 3,
                                  .part = {{DTX_Q, 0, q}, {DTX_K, q, kv}, {DTX_V, q + kv, kv}}};
    case H_O:
        return (struct op_linear){.W = w->o,
                                  .in = q,
                                  .out = c->hidden,
                                  .layer = layer,
                                  .n_parts = 1,
                                  .part = {{DTX_O, 0, c->hidden}}};
    case H_GATE_UP:
        return (struct op_linear){.W = w->gate_up,
                                  .in = c->hidden,
                                  .out = 2 * c->ffn,
                                  .layer = layer,
                                  .n_parts = 2,
                                  .part = {{DTX_GATE, 0, c->ffn}, {DTX_UP, c->ffn, c->ffn}}};
    default:
        return (struct op_linear){.W = w->down,
                                  .in = c->ffn,
                                  .out = c->hidden,
                                  .layer = layer,
                                  .n_parts = 1,
                                  .part = {{DTX_DOWN, 0, c->hidden}}};
    }
}

struct op_attention attention_of(const struct dtx_base *b, int layer)
{
    const struct dtx_model_config *c = &b->config;
    return (struct op_attention){.heads = c->heads,
                                 .kv_heads = c->kv_heads,
                                 .head_dim = c->head_dim,
                                 .layers = c->layers,
                                 .layer = layer,
                                 .scale = (float)(1.0 / sqrt((double)c->head_dim))};
}

static void attend(struct dtx_base *b, const struct op_pack *p, int layer, bool train)
{
    const struct dtx_ops *o = b->ops;
    struct layer_acts *a = &b->ws->layer[layer];
    struct op_attention at = attention_of(b, layer);
    o->rope(b->dev, p, &at, b->rope, false, a->qkv);
    if (p->n_seqs && p->seqs[0].kv)
        o->kv_store(b->dev, p, &at, a->qkv);
    if (p->decode)
        o->attention_cached(b->dev, p, &at, a->qkv, a->o);
    else
        o->attention(b->dev, p, &at, a->qkv, a->o, train ? a->lse : NULL);
}

struct op_layer layer_of(const struct dtx_base *b, int layer)
{
    const struct layer_weights *w = &b->layer[layer];
    const struct layer_acts *a = &b->ws->layer[layer];
    return (struct op_layer){.qkv = linear_of(b, layer, H_QKV),
                             .out = linear_of(b, layer, H_O),
                             .gate_up = linear_of(b, layer, H_GATE_UP),
                             .down = linear_of(b, layer, H_DOWN),
                             .attention = attention_of(b, layer),
                             .norm1 = w->norm1,
                             .norm2 = w->norm2,
                             .rope = b->rope,
                             .eps = b->config.rms_eps,
                             .x = a->x,
                             .xn = a->xn1,
                             .qkv_y = a->qkv,
                             .o = a->o,
                             .x2 = a->x2,
                             .gu = a->gu,
                             .a = a->a,
                             .x_out =
                                 layer + 1 < b->config.layers ? b->ws->layer[layer + 1].x : b->ws->x_last,
                             .h_qkv = a->h[H_QKV],
                             .h_out = a->h[H_O],
                             .h_gate_up = a->h[H_GATE_UP],
                             .h_down = a->h[H_DOWN]};
}

/* A layer but for its last product. */
static void forward_inside(struct dtx_base *b, const struct op_pack *p, int layer, bool train)
{
    const struct dtx_ops *o = b->ops;
    const struct dtx_model_config *c = &b->config;
    const struct layer_weights *w = &b->layer[layer];
    struct layer_acts *a = &b->ws->layer[layer];
    struct op_linear qkv = linear_of(b, layer, H_QKV), out = linear_of(b, layer, H_O),
                     gate_up = linear_of(b, layer, H_GATE_UP);
    o->rmsnorm(b->dev, p, a->x, w->norm1, c->hidden, c->rms_eps, a->xn1, train ? a->rstd1 : NULL);
    o->linear(b->dev, p, &qkv, a->xn1, NULL, a->qkv, a->h[H_QKV]);
    attend(b, p, layer, train);
    o->linear(b->dev, p, &out, a->o, a->x, a->x2, a->h[H_O]);
    o->rmsnorm(b->dev, p, a->x2, w->norm2, c->hidden, c->rms_eps, a->xn2, train ? a->rstd2 : NULL);
    o->linear(b->dev, p, &gate_up, a->xn2, NULL, a->gu, a->h[H_GATE_UP]);
}

void forward_again(struct dtx_base *b, const struct op_pack *p, int layer)
{
    forward_inside(b, p, layer, true);
}

static void forward_layer(struct dtx_base *b, const struct op_pack *p, int layer, bool train, void *x_out)
{
    struct layer_acts *a = &b->ws->layer[layer];
    struct op_linear down = linear_of(b, layer, H_DOWN);
    forward_inside(b, p, layer, train);
    b->ops->swiglu(b->dev, p, a->gu, b->config.ffn, a->a);
    b->ops->linear(b->dev, p, &down, a->a, a->x2, x_out, a->h[H_DOWN]);
}

int forward(struct dtx_base *b, const struct op_pack *p, bool train, struct dtx_err *e)
{
    const struct dtx_model_config *c = &b->config;
    int rc = workspace_need_for(b, p, train, e);
    if (rc < 0)
        return rc;
    struct workspace *ws = b->ws;
    b->ops->embed(b->dev, p, b->embed, c->hidden, ws->layer[0].x);
    for (int i = 0; i < c->layers; i++) {
        void *x_out = i + 1 < c->layers ? ws->layer[i + 1].x : ws->x_last;
        forward_layer(b, p, i, train, x_out);
    }
    b->ops->rmsnorm(b->dev, p, ws->x_last, b->norm, c->hidden, c->rms_eps, ws->xn,
                    train ? ws->rstd_last : NULL);
    return 0;
}
