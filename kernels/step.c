/*
 * dtx_train_step: one optimizer step of each job, together.
 *
 *   windows  each job's rows of this step, cut into chunks (window.c); the number of label tokens of the
 *            whole window scales the gradient, so that chunks and micro-batches simply add up
 *   passes   the m-th chunks of all jobs go side by side through forward, head_loss and backward, in packs of
 *            about ops->pack_rows rows, or as many as were planned (how they are grouped changes no number)
 *   update   one ops->optim over all jobs; what is not finite is not applied, and that job fails alone
 *
 * A job's gradient is the sum over its own chunks in order, so nothing of it depends on its neighbours.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/job.h"
#include "kernels/rng.h"

enum { KEY_DROPOUT = 0x64726f70 };

struct step {
    struct dtx_base *b;
    struct dtx_job *const *jobs;
    int n;
    struct window *windows;   /* [n] */
    struct op_optim *updates; /* [n] */
    int *job_of;              /* [n] the job of an update */
    int n_updates;
    double *loss;               /* [n] by job */
    struct op_outcome *outcome; /* [n] by update */
};

static int rows_of_chunk(const struct step *s, int job, uint32_t m, struct pack_room *room)
{
    const struct window *w = &s->windows[job];
    int rows = 0;
    for (uint32_t i = 0; i < w->chunks[m].n; i++) {
        uint32_t row = w->rows[w->chunks[m].first + i], n = row_trained(s->jobs[job]->rows, row);
        if (!n)
            continue;
        rows += (int)n;
        room->seqs++;
        room->labels += (int)row_labels(s->jobs[job]->rows, row);
    }
    room->segs++;
    rows = pack_padded(s->b, rows);
    room->rows += rows;
    return rows;
}

static void add_chunk(const struct step *s, struct op_pack *p, int job, uint32_t m)
{
    const struct dtx_job *j = s->jobs[job];
    const struct window *w = &s->windows[job];
    struct op_adapter a = job_op(j, true);
    pack_segment(p, s->b, &a, job, (float)(1.0 / w->label_tokens));
    uint64_t key = rng_key(rng_key(j->params.seed, KEY_DROPOUT), w->epoch);
    for (uint32_t i = 0; i < w->chunks[m].n; i++) {
        uint32_t row = w->rows[w->chunks[m].first + i], n = row_trained(j->rows, row);
        if (!n)
            continue;
        uint64_t at = j->rows->start[row];
        struct op_seq *q = pack_sequence(p, j->rows->ids + at, j->rows->labels + at, (int)n, 0);
        q->drop_key = rng_key(key, row);
    }
}

/* The m-th chunks of jobs[first .. end), those that have one, in one pass. */
static int pass(const struct step *s, uint32_t m, int first, int end, struct dtx_err *e)
{
    struct pack_room room = {0};
    struct op_pack p;
    for (int i = first; i < end; i++)
        if (m < s->windows[i].n_chunks)
            rows_of_chunk(s, i, m, &room);
    int rc = pack_new(&p, s->b, room, false, e);
    if (rc < 0)
        return rc;
    for (int i = first; i < end; i++)
        if (m < s->windows[i].n_chunks)
            add_chunk(s, &p, i, m);
    rc = pack_ready(&p, s->b, e);
    if (rc == 0)
        rc = forward(s->b, &p, true, e);
    if (rc == 0) {
        const struct dtx_model_config *c = &s->b->config;
        s->b->ops->head_loss(s->b->dev, &p, s->b->ws->xn, s->b->head, c->vocab, c->hidden, s->b->loss,
                             s->b->ws->dx);
        backward(s->b, &p);
    }
    pack_free(&p, s->b);
    return rc;
}

static int passes(const struct step *s, struct dtx_err *e)
{
    int limit = s->b->pack_rows ? s->b->pack_rows : s->b->ops->pack_rows;
    uint32_t most = 0;
    for (int i = 0; i < s->n; i++)
        most = s->windows[i].n_chunks > most ? s->windows[i].n_chunks : most;
    for (uint32_t m = 0; m < most; m++) {
        int first = 0, rows = 0;
        for (int i = 0; i < s->n; i++) {
            struct pack_room one = {0};
            int n = m < s->windows[i].n_chunks ? rows_of_chunk(s, i, m, &one) : 0;
            if (rows && n && rows + n > limit) {
                int rc = pass(s, m, first, i, e);
                if (rc < 0)
                    return rc;
                first = i;
                rows = 0;
            }
            rows += n;
        }
        int rc = pass(s, m, first, s->n, e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static struct op_optim update_of(const struct dtx_job *j, int slot)
{
    double t = (double)j->updates + 1;
    return (struct op_optim){.w = j->w,
                             .g = j->g,
                             .m = j->m,
                             .v = j->v,
                             .n = j->n,
                             .kind = j->params.optimizer,
                             .slot = slot,
                             .lr = schedule_lr(&j->params, j->steps, j->total_steps, j->warmup),
                             .weight_decay = j->params.weight_decay,
                             .beta1 = 0.9,
                             .beta2 = 0.999,
                             .eps = 1e-8,
                             .bias1 = 1 - pow(0.9, t),
                             .bias2 = 1 - pow(0.999, t),
                             .max_norm = j->params.max_grad_norm};
}

/* Windows, results' first values, and which jobs have something to train on. */
static int prepare(struct step *s, struct dtx_step_result *results, struct dtx_err *e)
{
    const struct dtx_ops *o = s->b->ops;
    int rc = base_need_step(s->b, s->n, e);
    if (rc < 0)
        return rc;
    o->zero(s->b->dev, s->b->loss, (size_t)s->n * sizeof *s->b->loss);
    for (int i = 0; i < s->n; i++) {
        struct dtx_job *j = s->jobs[i];
        results[i] = (struct dtx_step_result){.step = j->steps, .loss = NAN, .grad_norm = NAN};
        if (j->steps >= j->total_steps)
            continue;
        rc = window_make(j, j->steps, &s->windows[i], e);
        if (rc < 0)
            return rc;
        if (!s->windows[i].label_tokens)
            continue;
        s->job_of[s->n_updates] = i;
        s->updates[s->n_updates++] = update_of(j, i);
        o->zero(s->b->dev, j->g, j->n * sizeof *j->g);
    }
    return 0;
}

static void advance(struct dtx_job *j, const struct window *w, struct dtx_step_result *r)
{
    r->lr = schedule_lr(&j->params, j->steps, j->total_steps, j->warmup);
    r->step = ++j->steps;
    r->epoch = (double)j->steps / (double)j->steps_per_epoch;
    r->tokens = w->tokens;
    r->label_tokens = w->label_tokens;
    r->done = j->steps >= j->total_steps;
}

static void finish_update(struct dtx_job *j, const struct window *w, const struct op_outcome *o,
                          double loss_sum, struct dtx_step_result *r)
{
    r->loss = loss_sum / w->label_tokens;
    r->grad_norm = o->norm;
    if (o->applied) {
        j->updates++;
        advance(j, w, r);
        return;
    }
    r->lr = schedule_lr(&j->params, j->steps, j->total_steps, j->warmup);
    r->failed =
        dtx_fail(&r->error, -EDOM,
                 "step %lld: %s is not finite (loss %g, gradient norm %g): the update was not applied; "
                 "try a smaller learning_rate or a max_grad_norm",
                 (long long)j->steps + 1, isfinite(loss_sum) ? "the gradient" : "the loss", r->loss, o->norm);
}

static void finish(struct step *s, struct dtx_step_result *results)
{
    for (int i = 0; i < s->n; i++) {
        struct dtx_job *j = s->jobs[i];
        if (j->steps >= j->total_steps) {
            results[i].done = true;
        } else if (!s->windows[i].label_tokens) {
            j->skipped++;
            advance(j, &s->windows[i], &results[i]);
            results[i].skipped = true;
        }
    }
    for (int k = 0; k < s->n_updates; k++) {
        int i = s->job_of[k];
        finish_update(s->jobs[i], &s->windows[i], &s->outcome[k], s->loss[i], &results[i]);
    }
}

static int compute(struct step *s, struct dtx_err *e)
{
    const struct dtx_ops *o = s->b->ops;
    int rc = passes(s, e);
    if (rc < 0)
        return rc;
    o->optim(s->b->dev, s->updates, s->n_updates, s->b->loss, s->b->outcome);
    rc = o->download(s->b->dev, s->outcome, s->b->outcome, (size_t)s->n_updates * sizeof *s->outcome);
    if (rc == 0)
        rc = o->download(s->b->dev, s->loss, s->b->loss, (size_t)s->n * sizeof *s->loss);
    return rc < 0 ? dtx_fail(e, rc, "device: %s", o->error(s->b->dev)) : 0;
}

int dtx_train_step(struct dtx_base *b, struct dtx_job *const *jobs, int n, struct dtx_step_result *results,
                   struct dtx_err *e)
{
    if (n < 1)
        return 0;
    size_t k = (size_t)n;
    struct step s = {.b = b,
                     .jobs = jobs,
                     .n = n,
                     .windows = calloc(k, sizeof *s.windows),
                     .updates = calloc(k, sizeof *s.updates),
                     .job_of = calloc(k, sizeof *s.job_of),
                     .loss = calloc(k, sizeof *s.loss),
                     .outcome = calloc(k, sizeof *s.outcome)};
    int rc =
        s.windows && s.updates && s.job_of && s.loss && s.outcome ? 0 : dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = prepare(&s, results, e);
    if (rc == 0 && s.n_updates)
        rc = compute(&s, e);
    if (rc == 0)
        finish(&s, results);
    for (int i = 0; s.windows && i < n; i++)
        window_release(&s.windows[i]);
    free(s.windows);
    free(s.updates);
    free(s.job_of);
    free(s.loss);
    free(s.outcome);
    return rc;
}
