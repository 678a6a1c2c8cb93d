/*
 * Generation of many sequences together, each with its own adapter.
 *
 * A step first takes the new sequences: their prompts go through the model as segments of one pack (in groups
 * of about SERVE_ROWS rows), filling their caches, and each gets its first token.  The others get one more
 * token each in a step of decode.c.  A sequence's numbers depend on itself alone: a prompt is a segment, a
 * decode row its own.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/seq.h"

static int check_prompt(const struct dtx_base *b, const int32_t *prompt, size_t n,
                        const struct dtx_sampling *s, struct dtx_err *e)
{
    const struct dtx_model_config *c = &b->config;
    if (n < 1)
        return dtx_fail(e, -EINVAL, "the prompt is empty");
    if (n >= (size_t)c->max_positions)
        return dtx_fail(e, -EINVAL, "the prompt has %zu tokens, the model has %d positions", n,
                        c->max_positions);
    for (size_t i = 0; i < n; i++)
        if (prompt[i] < 0 || prompt[i] >= c->vocab)
            return dtx_fail(e, -EINVAL, "token %d in the prompt; the model knows 0 to %d", prompt[i],
                            c->vocab - 1);
    if (s->max_new_tokens < 1)
        return dtx_fail(e, -EINVAL, "max_new_tokens is %d, expected at least 1", s->max_new_tokens);
    if (!(s->temperature >= 0) || !isfinite(s->temperature) || !(s->top_p > 0) || s->top_k < 0)
        return dtx_fail(e, -EINVAL,
                        "temperature %g, top_p %g, top_k %d: expected 0 or more, above 0, 0 or more",
                        s->temperature, s->top_p, s->top_k);
    return 0;
}

int dtx_seq_new(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_tokenizer *t,
                const int32_t *prompt, size_t n_prompt, const struct dtx_sampling *s, struct dtx_seq **out,
                struct dtx_err *e)
{
    const struct dtx_model_config *c = &b->config;
    int rc = check_prompt(b, prompt, n_prompt, s, e);
    if (rc == 0) /* now, so that no step has to ask for memory */
        rc = workspace_need(b, pack_padded(b, (int)n_prompt), a ? a->rank : 0, e);
    if (rc < 0)
        return rc;
    size_t cap = n_prompt + (size_t)s->max_new_tokens;
    cap = cap < (size_t)c->max_positions ? cap : (size_t)c->max_positions;
    size_t bytes = dtx_cache_bytes(b->device, c, (int)cap);
    rc = base_need_positions(b, (int)cap, e);
    if (rc < 0)
        return rc;
    struct dtx_seq *q = calloc(1, sizeof *q);
    if (!q)
        return dtx_fail(e, -ENOMEM, "out of memory");
    *q = (struct dtx_seq){.base = b,
                          .adapter = a,
                          .tokenizer = t,
                          .sampling = *s,
                          .n_prompt = (int)n_prompt,
                          .n = (int)n_prompt,
                          .cap = (int)cap};
    q->ids = malloc(cap * sizeof *q->ids);
    q->kv = q->ids ? base_alloc(b, bytes, e) : NULL;
    if (!q->kv) {
        rc = q->ids ? -ENOMEM : dtx_fail(e, -ENOMEM, "out of memory");
        dtx_seq_free(q);
        return rc;
    }
    memcpy(q->ids, prompt, n_prompt * sizeof *prompt);
    *out = q;
    return 0;
}

void dtx_seq_free(struct dtx_seq *s)
{
    if (!s)
        return;
    decode_forget(s->base, s);
    s->base->ops->free(s->base->dev, s->kv);
    free(s->ids);
    free(s);
}

enum dtx_finish dtx_seq_finish(const struct dtx_seq *s)
{
    return s->finish;
}

const int32_t *dtx_seq_tokens(const struct dtx_seq *s, size_t *n)
{
    *n = (size_t)(s->n - s->n_prompt);
    return s->ids + s->n_prompt;
}

struct op_choice seq_choice(const struct dtx_seq *s)
{
    return (struct op_choice){.temperature = s->sampling.temperature,
                              .top_p = s->sampling.top_p,
                              .top_k = s->sampling.top_k,
                              .seed = s->sampling.seed,
                              .number = (uint64_t)(s->n - s->n_prompt)};
}

void seq_add_token(struct dtx_seq *s, int32_t id)
{
    s->n_cached = s->n;
    if (s->tokenizer && dtx_tokenizer_is_stop(s->tokenizer, id)) {
        s->finish = DTX_STOP;
        return;
    }
    s->ids[s->n++] = id;
    if (s->n >= s->cap)
        s->finish = DTX_LENGTH;
}

/* A token for each sequence of a pack that went forward; last[i]: the row that predicts it. */
static int first_tokens(struct dtx_base *b, struct dtx_seq *const *seqs, int n, const int32_t *last,
                        struct dtx_err *e)
{
    int rc = base_need_logits(b, n, e);
    if (rc < 0)
        return rc;
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    struct op_choice *choice = malloc((size_t)n * sizeof *choice);
    if (tokens && choice) {
        for (int i = 0; i < n; i++)
            choice[i] = seq_choice(seqs[i]);
        b->ops->logits(b->dev, b->ws->xn, last, n, b->head, b->config.vocab, b->config.hidden, b->logits);
        b->ops->choose(b->dev, b->logits, n, b->config.vocab, choice, b->tokens);
        rc = b->ops->download(b->dev, tokens, b->tokens, (size_t)n * sizeof *tokens);
        if (rc < 0)
            dtx_fail(e, rc, "device: %s", b->ops->error(b->dev));
    } else {
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    }
    for (int i = 0; rc == 0 && i < n; i++)
        seq_add_token(seqs[i], tokens[i]);
    free(choice);
    free(tokens);
    return rc;
}

/* The prompts of n sequences in one pass. */
static int prefill(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct dtx_err *e)
{
    struct pack_room room = {.segs = n, .seqs = n};
    struct op_pack p;
    int32_t *last = malloc((size_t)n * sizeof *last);
    if (!last)
        return dtx_fail(e, -ENOMEM, "out of memory");
    for (int i = 0; i < n; i++)
        room.rows += pack_padded(b, seqs[i]->n);
    int rc = pack_new(&p, b, room, false, e);
    for (int i = 0; rc == 0 && i < n; i++) {
        struct dtx_seq *s = seqs[i];
        struct op_adapter a = s->adapter ? adapter_op(s->adapter) : (struct op_adapter){0};
        pack_segment(&p, b, s->adapter ? &a : NULL, 0, 0);
        struct op_seq *q = pack_sequence(&p, s->ids, NULL, s->n, 0);
        q->kv = s->kv;
        q->kv_cap = s->cap;
        last[i] = q->row0 + q->rows - 1;
    }
    if (rc == 0) {
        rc = pack_ready(&p, b, e);
        if (rc == 0)
            rc = forward(b, &p, false, e);
        if (rc == 0)
            rc = first_tokens(b, seqs, n, last, e);
        pack_free(&p, b);
    }
    free(last);
    return rc;
}

int dtx_seq_step(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct dtx_err *e)
{
    struct dtx_seq **group = malloc(((size_t)n + 1) * sizeof *group);
    if (!group)
        return dtx_fail(e, -ENOMEM, "out of memory");
    int rc = 0, k = 0, rows = 0;
    bool *decoding = calloc((size_t)n + 1, sizeof *decoding); /* those that had their prompt done before */
    if (!decoding)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    for (int i = 0; rc == 0 && i < n; i++)
        decoding[i] = seqs[i]->n_cached > 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        if (decoding[i] || seqs[i]->finish != DTX_RUNNING)
            continue;
        int r = pack_padded(b, seqs[i]->n);
        if (k && rows + r > SERVE_ROWS) {
            rc = prefill(b, group, k, e);
            k = rows = 0;
        }
        group[k++] = seqs[i];
        rows += r;
    }
    if (rc == 0 && k)
        rc = prefill(b, group, k, e);
    k = 0;
    for (int i = 0; rc == 0 && i < n; i++)
        if (decoding[i] && seqs[i]->finish == DTX_RUNNING)
            group[k++] = seqs[i];
    if (rc == 0 && k)
        rc = decode_step(b, group, k, e);
    free(decoding);
    free(group);
    return rc;
}
