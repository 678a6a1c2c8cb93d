/* Decode steps one after another: a queued step is done when its tokens are taken, a dropped one never. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

struct decode_run {
    struct op_pack *p;
    struct op_decode s;
    struct op_layer *layer;
    struct op_choice *choice;
    int32_t queued;
};

void cpu_decode_close(struct op_dev *d)
{
    if (!d->run)
        return;
    free(d->run->layer);
    free(d->run->choice);
    free(d->run);
    d->run = NULL;
}

int cpu_decode_load(struct op_dev *d, struct op_pack *p, const struct op_decode *s)
{
    size_t layers = (size_t)s->layers * sizeof *s->layer, rows = (size_t)p->rows;
    cpu_decode_close(d);
    struct decode_run *r = d->run = calloc(1, sizeof *r);
    if (!r)
        return -ENOMEM;
    *r = (struct decode_run){.p = p, .s = *s};
    r->layer = malloc(layers);
    r->choice = malloc(rows * sizeof *r->choice);
    if (!r->layer || !r->choice) {
        cpu_decode_close(d);
        return -ENOMEM;
    }
    memcpy(r->layer, s->layer, layers);
    memcpy(r->choice, s->choice, rows * sizeof *r->choice);
    return 0;
}

static void layer_step(struct op_dev *d, const struct op_pack *p, const struct op_decode *s,
                       const struct op_layer *l)
{
    cpu_rmsnorm(d, p, l->x, l->norm1, s->hidden, l->eps, l->xn, NULL);
    cpu_linear(d, p, &l->qkv, l->xn, NULL, l->qkv_y, l->h_qkv);
    cpu_rope(d, p, &l->attention, l->rope, false, l->qkv_y);
    cpu_kv_store(d, p, &l->attention, l->qkv_y);
    cpu_attention_cached(d, p, &l->attention, l->qkv_y, l->o);
    cpu_linear(d, p, &l->out, l->o, l->x, l->x2, l->h_out);
    cpu_rmsnorm(d, p, l->x2, l->norm2, s->hidden, l->eps, l->xn, NULL);
    cpu_linear(d, p, &l->gate_up, l->xn, NULL, l->gu, l->h_gate_up);
    cpu_swiglu(d, p, l->gu, l->down.in, l->a);
    cpu_linear(d, p, &l->down, l->a, l->x2, l->x_out, l->h_down);
}

void cpu_decode_step(struct op_dev *d)
{
    if (!d->run || d->run->queued >= DECODE_AHEAD)
        cpu_failed(d, -EINVAL);
    else
        d->run->queued++;
}

static void whole_step(struct op_dev *d, struct op_pack *p, const struct decode_run *r)
{
    const struct op_decode *s = &r->s;
    cpu_embed(d, p, s->embed, s->hidden, s->x);
    for (int i = 0; i < s->layers; i++)
        layer_step(d, p, s, &r->layer[i]);
    cpu_rmsnorm(d, p, s->x_last, s->norm, s->hidden, s->eps, s->xn, NULL);
    for (int i = 0; i < p->rows; i++)
        s->tokens[i] = i;
    cpu_logits(d, s->xn, s->tokens, p->rows, s->head, s->vocab, s->hidden, s->logits);
    cpu_choose(d, s->logits, p->rows, s->vocab, r->choice, s->tokens);
}

int cpu_decode_take(struct op_dev *d, int32_t *tokens)
{
    struct decode_run *r = d->run;
    if (!r || !r->queued)
        return -EINVAL;
    struct op_pack *p = r->p;
    r->queued--;
    whole_step(d, p, r);
    for (int i = 0; i < p->rows; i++) {
        tokens[i] = p->ids[i] = r->s.tokens[i];
        p->pos[i]++;
        p->seqs[p->seq_of_row[i]].pos0++;
        r->choice[i].number++;
    }
    return atomic_load(&d->error);
}
