/*
 * Decode steps of sequences whose prompts are cached, one step ahead of the host.
 *
 * A run is a set of sequences loaded on the device (ops->decode_load).  As long as it stays the same, a step
 * is queued before the tokens of the one before it are looked at, so that the device never waits for the
 * host.  When the set changes, or another base of the device takes its turn, a step queued too many is
 * dropped: what it wrote into the caches is written again, the same.  No step is queued that could pass the
 * end of a cache.
 */
#include <stdlib.h>

#include "kernels/seq.h"

struct decode_run {
    struct op_pack pack;
    struct op_layer *layer; /* [layers] */
    struct dtx_seq **seqs;  /* [n] */
    int n, room;
    int ahead;      /* steps queued and not taken */
    unsigned moved; /* the base's count when it was loaded */
};

void decode_forget(struct dtx_base *b, const struct dtx_seq *s)
{
    struct decode_run *r = b->run;
    for (int i = 0; r && i < r->n; i++)
        if (r->seqs[i] == s)
            r->n = 0;
}

void decode_free(struct dtx_base *b)
{
    struct decode_run *r = b->run;
    if (!r)
        return;
    if (b->device->decoding == r)
        b->device->decoding = NULL;
    pack_free(&r->pack, b);
    free(r->layer);
    free(r->seqs);
    free(r);
    b->run = NULL;
}

/* Are these what the device has loaded? */
static bool same_set(const struct dtx_base *b, struct dtx_seq *const *seqs, int n)
{
    const struct decode_run *r = b->run;
    if (b->device->decoding != r || b->moved != r->moved)
        return false;
    for (int i = 0; i < n && r->n == n; i++)
        if (r->seqs[i] != seqs[i])
            return false;
    return r->n == n;
}

static int run_room(struct dtx_base *b, int n, struct dtx_err *e)
{
    struct decode_run *r = b->run;
    if (!r && (r = b->run = calloc(1, sizeof *r)))
        r->layer = calloc((size_t)b->config.layers, sizeof *r->layer);
    if (!r || !r->layer)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if (n <= r->room)
        return 0;
    struct dtx_seq **seqs = realloc(r->seqs, (size_t)n * sizeof(struct dtx_seq *));
    if (!seqs)
        return dtx_fail(e, -ENOMEM, "out of memory");
    r->seqs = seqs;
    r->room = n;
    return 0;
}

/* The pack of the next step, a row a sequence; *positions: what its rows may reach. */
static int make_pack(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct op_choice *choice,
                     int *positions, struct dtx_err *e)
{
    struct op_pack *p = &b->run->pack;
    pack_free(p, b);
    int rc = pack_new(p, b, (struct pack_room){.segs = n, .seqs = n, .rows = n}, true, e);
    for (int i = 0; rc == 0 && i < n; i++) {
        struct dtx_seq *s = seqs[i];
        struct op_adapter a = s->adapter ? adapter_op(s->adapter) : (struct op_adapter){0};
        pack_segment(p, b, s->adapter ? &a : NULL, 0, 0);
        struct op_seq *q = pack_sequence(p, s->ids + s->n_cached, NULL, 1, s->n_cached);
        q->kv = s->kv;
        q->kv_cap = s->cap;
        choice[i] = seq_choice(s);
        *positions = s->cap > *positions ? s->cap : *positions;
    }
    return rc;
}

static int load(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct op_choice *choice,
                struct dtx_err *e)
{
    struct decode_run *r = b->run;
    const struct dtx_model_config *c = &b->config;
    int positions = 0;
    r->n = r->ahead = 0;
    int rc = make_pack(b, seqs, n, choice, &positions, e);
    if (rc == 0)
        rc = base_need_positions(b, positions, e);
    if (rc == 0)
        rc = workspace_need(b, n, r->pack.max_rank, e);
    if (rc == 0)
        rc = base_need_logits(b, n, e);
    if (rc < 0)
        return rc;
    for (int i = 0; i < c->layers; i++)
        r->layer[i] = layer_of(b, i);
    struct op_decode step = {.layer = r->layer,
                             .layers = c->layers,
                             .hidden = c->hidden,
                             .vocab = c->vocab,
                             .embed = b->embed,
                             .norm = b->norm,
                             .head = b->head,
                             .eps = c->rms_eps,
                             .x = b->ws->layer[0].x,
                             .x_last = b->ws->x_last,
                             .xn = b->ws->xn,
                             .logits = b->logits,
                             .tokens = b->tokens,
                             .choice = choice};
    b->device->decoding = r;
    r->moved = b->moved;
    rc = b->ops->decode_load(b->dev, &r->pack, &step);
    if (rc < 0)
        return pack_failed(b, rc, e);
    for (int i = 0; i < n; i++)
        r->seqs[i] = seqs[i];
    r->n = n;
    return 0;
}

/* May a step be queued whose rows get their tokens only after the one under way? */
static bool room_ahead(const struct decode_run *r)
{
    for (int i = 0; i < r->n; i++)
        if (r->seqs[i]->n + 1 >= r->seqs[i]->cap)
            return false;
    return true;
}

static int step(struct dtx_base *b, int32_t *tokens, struct dtx_err *e)
{
    struct decode_run *r = b->run;
    if (!r->ahead) {
        b->ops->decode_step(b->dev);
        r->ahead++;
    }
    if (room_ahead(r)) {
        b->ops->decode_step(b->dev);
        r->ahead++;
    }
    int rc = b->ops->decode_take(b->dev, tokens);
    if (rc < 0) {
        r->n = 0;
        return dtx_fail(e, rc, "device: %s", b->ops->error(b->dev));
    }
    r->ahead--;
    for (int i = 0; i < r->n; i++)
        seq_add_token(r->seqs[i], tokens[i]);
    return 0;
}

int decode_step(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct dtx_err *e)
{
    int rc = run_room(b, n, e);
    if (rc < 0)
        return rc;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    struct op_choice *choice = malloc((size_t)n * sizeof *choice);
    if (!tokens || !choice)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0 && !same_set(b, seqs, n))
        rc = load(b, seqs, n, choice, e);
    if (rc == 0)
        rc = step(b, tokens, e);
    free(choice);
    free(tokens);
    return rc;
}
