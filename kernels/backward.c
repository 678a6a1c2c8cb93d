/*
 * The backward pass: forward.c's lines in reverse, with the gradient of the residual stream in ws.dres.
 * Frozen weights get no gradient; adapters get theirs inside ops->linear_back.  Norm outputs and swiglu are
 * computed again unless ws.keep; of the layers below ws.recompute all but x is.  Below the lowest
 * layer nothing is trained, so the gradient of the embedding is not computed.
 */
#include "kernels/model.h"

static void backward_mlp(struct dtx_base *b, const struct op_pack *p, int layer)
{
    const struct dtx_ops *o = b->ops;
    const struct dtx_model_config *c = &b->config;
    struct workspace *ws = b->ws;
    struct layer_acts *a = &ws->layer[layer];
    struct op_linear gate_up = linear_of(b, layer, H_GATE_UP), down = linear_of(b, layer, H_DOWN);
    if (!ws->keep)
        o->swiglu(b->dev, p, a->gu, c->ffn, a->a);
    o->linear_back(b->dev, p, &down, ws->dres, a->a, a->h[H_DOWN], ws->da);
    o->swiglu_back(b->dev, p, ws->da, a->gu, c->ffn, a->gu);
    if (!ws->keep)
        o->rmsnorm(b->dev, p, a->x2, b->layer[layer].norm2, c->hidden, c->rms_eps, a->xn2, NULL);
    o->linear_back(b->dev, p, &gate_up, a->gu, a->xn2, a->h[H_GATE_UP], ws->dx);
    o->rmsnorm_back(b->dev, p, ws->dx, a->x2, b->layer[layer].norm2, a->rstd2, c->hidden, ws->dres, ws->dres);
}

static void backward_attention(struct dtx_base *b, const struct op_pack *p, int layer)
{
    const struct dtx_ops *o = b->ops;
    const struct dtx_model_config *c = &b->config;
    struct workspace *ws = b->ws;
    struct layer_acts *a = &ws->layer[layer];
    struct op_linear qkv = linear_of(b, layer, H_QKV), out = linear_of(b, layer, H_O);
    struct op_attention at = attention_of(b, layer);
    o->linear_back(b->dev, p, &out, ws->dres, a->o, a->h[H_O], ws->dout);
    o->attention_back(b->dev, p, &at, ws->dout, a->o, a->qkv, a->lse, b->rope, ws->dqkv);
    if (!ws->keep)
        o->rmsnorm(b->dev, p, a->x, b->layer[layer].norm1, c->hidden, c->rms_eps, a->xn1, NULL);
    o->linear_back(b->dev, p, &qkv, ws->dqkv, a->xn1, a->h[H_QKV], layer ? ws->dx : NULL);
    if (layer)
        o->rmsnorm_back(b->dev, p, ws->dx, a->x, b->layer[layer].norm1, a->rstd1, c->hidden, ws->dres,
                        ws->dres);
}

void backward(struct dtx_base *b, const struct op_pack *p)
{
    const struct dtx_model_config *c = &b->config;
    struct workspace *ws = b->ws;
    b->ops->rmsnorm_back(b->dev, p, ws->dx, ws->x_last, b->norm, ws->rstd_last, c->hidden, NULL, ws->dres);
    for (int layer = c->layers - 1; layer >= 0; layer--) {
        if (layer < ws->recompute)
            forward_again(b, p, layer);
        backward_mlp(b, p, layer);
        backward_attention(b, p, layer);
    }
}
