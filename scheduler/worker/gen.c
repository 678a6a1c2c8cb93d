#include "scheduler/worker/gen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/worker/job.h"

struct gen *gen_add(struct worker *w, struct base_entry *b, struct adapter_entry *a, struct dtx_ids *prompt,
                    const struct dtx_sampling *s, bool urgent)
{
    struct gen *g = calloc(1, sizeof(*g)), **p = &w->gens;

    if (!g)
        return NULL;
    g->base = b;
    g->adapter = a;
    g->prompt = *prompt;
    *prompt = (struct dtx_ids){0};
    g->sampling = *s;
    g->urgent = urgent;
    g->asked_ns = clock_mono_ns();
    while (*p && ((*p)->urgent || !urgent)) /* behind those of its kind, urgent ones first */
        p = &(*p)->next;
    g->next = *p;
    *p = g;
    w->moved = true;
    return g;
}

static void gen_free(struct gen *g)
{
    dtx_seq_free(g->seq);
    dtx_ids_release(&g->prompt);
    free(g);
}

void gen_cancel(struct gen *g)
{
    dtx_seq_free(g->seq); /* now: its base and adapter may be dropped before the list is swept */
    g->seq = NULL;
    g->done = NULL;
    g->over = true;
}

static void sweep(struct worker *w)
{
    for (struct gen **p = &w->gens; *p;) {
        struct gen *g = *p;

        if (!g->over) {
            p = &g->next;
            continue;
        }
        *p = g->next;
        if (g->done)
            g->done(w, g);
        gen_free(g);
        p = &w->gens; /* done may have added some */
    }
}

static void gen_over(struct gen *g)
{
    g->end_ns = clock_mono_ns();
    g->over = true;
}

/* Will memory become free by itself? */
static bool others_end(const struct worker *w, const struct gen *g)
{
    for (const struct gen *o = w->gens; o; o = o->next)
        if (o->seq)
            return true;
    return !g->urgent && jobs_training(w); /* an evaluation can wait for them, a person not */
}

/* Give a waiting gen its sequence.  False: no memory now. */
static bool admit(struct worker *w, struct gen *g)
{
    const struct dtx_adapter *a = g->adapter ? g->adapter->adapter : NULL;
    uint64_t bytes = dtx_seq_plan(g->base->base, g->prompt.n, &g->sampling);
    bool fits = room_for_answer(w, g->base, bytes);
    int rc = fits ? dtx_seq_new(g->base->base, a, g->base->tokenizer, g->prompt.v, g->prompt.n, &g->sampling,
                                &g->seq, &g->error)
                  : -ENOMEM;

    g->bytes = bytes;
    if (rc == -ENOMEM && others_end(w, g)) {
        g->error = (struct dtx_err){0};
        return false;
    }
    if (rc && dtx_device_failed(w->device, &g->error)) {
        w->fatal = true;
    } else if (!fits) {
        char what[64];
        snprintf(what, sizeof(what), "an answer of up to %d tokens", g->sampling.max_new_tokens);
        room_wait(w, bytes, what, &g->error);
        dtx_fail_context(&g->error, "nothing here will give it back soon; ask for fewer tokens");
    }
    if (rc)
        gen_over(g);
    return true;
}

static int gather(struct worker *w, const struct base_entry *b, struct gen **v)
{
    int n = 0, fresh = 0;

    for (struct gen *g = w->gens; g && n < GEN_TOGETHER; g = g->next)
        if (g->base == b && !g->over && g->seq)
            v[n++] = g;
    for (struct gen *g = w->gens; g && n < GEN_TOGETHER && fresh < GEN_PREFILLS; g = g->next) {
        if (g->base != b || g->over || g->seq)
            continue;
        if (!admit(w, g))
            break;
        if (g->over)
            continue;
        v[n++] = g;
        fresh++;
    }
    return n;
}

static void after_step(struct worker *w, struct gen *g, int together)
{
    size_t n;

    dtx_seq_tokens(g->seq, &n);
    if (!g->first_ns)
        g->first_ns = clock_mono_ns();
    if (n > g->seen)
        w->tokens += n - g->seen;
    g->seen = n;
    if (together > g->together)
        g->together = together;
    if (dtx_seq_finish(g->seq) != DTX_RUNNING)
        gen_over(g);
}

static bool step_base(struct worker *w, struct base_entry *b)
{
    struct gen *v[GEN_TOGETHER];
    struct dtx_seq *seqs[GEN_TOGETHER];
    struct dtx_err e = {0};
    int n = gather(w, b, v), rc;

    if (!n)
        return false;
    for (int i = 0; i < n; i++)
        seqs[i] = v[i]->seq;
    rc = dtx_seq_step(b->base, seqs, n, &e);
    if (rc) {
        send_log(w, "%s: generation failed: %s", w->kind, e.msg);
        w->fatal = rc != -ENOMEM || dtx_device_failed(w->device, NULL);
    }
    for (int i = 0; i < n; i++) {
        if (rc == 0) {
            after_step(w, v[i], n);
        } else {
            v[i]->error = e;
            gen_over(v[i]);
        }
    }
    b->used_ns = clock_mono_ns();
    return true;
}

bool gens_turn(struct worker *w, double budget)
{
    int64_t end = clock_mono_ns() + (int64_t)(budget * 1e9);
    bool any = false, more;

    do {
        more = false;
        for (struct base_entry *b = w->bases; b; b = b->next)
            more |= step_base(w, b);
        any |= more;
        sweep(w);
    } while (more && !w->fatal && clock_mono_ns() < end);
    return any;
}

bool gens_urgent(const struct worker *w)
{
    return w->gens && w->gens->urgent;
}

int gens_running(const struct worker *w)
{
    int n = 0;

    for (const struct gen *g = w->gens; g; g = g->next)
        n += !g->over;
    return n;
}

void gens_release(struct worker *w)
{
    while (w->gens) {
        struct gen *g = w->gens;
        w->gens = g->next;
        gen_free(g);
    }
}

void gen_text(const struct gen *g, struct buf *out)
{
    size_t n = 0, from = 0;
    const int32_t *ids = g->seq ? dtx_seq_tokens(g->seq, &n) : NULL;

    dtx_tokenizer_decode(g->base->tokenizer, ids, n, out);
    if (!out->p)
        return;
    while (out->len && strchr(" \t\r\n", out->p[out->len - 1]))
        out->p[--out->len] = '\0';
    while (from < out->len && strchr(" \t\r\n", out->p[from]))
        from++;
    memmove(out->p, out->p + from, out->len - from + 1);
    out->len -= from;
}
