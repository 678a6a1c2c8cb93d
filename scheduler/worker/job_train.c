/* TRAIN and EVAL: what happens after each optimizer step. */
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/worker/job.h"

enum { EVAL_SLICE_TOKENS = 2048, SAVE_SECONDS = 300, SAVE_RETRIES = 3, SAVE_RETRY_SECONDS = 20 };

static double since(int64_t ns)
{
    return (double)(clock_mono_ns() - ns) / 1e9;
}

static double smooth(double old, double now)
{
    return old > 0 ? 0.8 * old + 0.2 * now : now;
}

void job_progress(struct worker *w, struct job *j, const char *phase, uint64_t done, uint64_t of)
{
    json_t *body;

    if (since(j->progress_ns) < 0.5 && done != of)
        return;
    j->progress_ns = clock_mono_ns();
    body = json_pack("{s:s,s:I,s:I,s:o,s:o,s:o,s:o}", "id", j->spec.id, "step", (json_int_t)j->loop.step,
                     "total", (json_int_t)j->total, "epoch", json_number(j->last.epoch), "loss",
                     json_number(j->loop.loss), "eval_loss", json_number(j->loop.eval_loss), "lr",
                     json_number(j->last.lr));
    json_object_set_new(body, "grad_norm", json_number(j->last.grad_norm));
    json_object_set_new(body, "tokens_per_s", json_number(j->tokens_per_s));
    json_object_set_new(body, "eta_s", json_number((double)(j->total - j->loop.step) * j->step_s));
    json_object_set_new(body, "memory", json_integer(j->train ? (json_int_t)dtx_job_bytes(j->train) : 0));
    json_object_set_new(body, "phase", json_string(phase));
    json_object_set_new(body, "done", json_integer((json_int_t)done));
    json_object_set_new(body, "of", json_integer((json_int_t)of));
    send_message(w, PM_PROGRESS, body);
}

static void training_over(struct worker *w, struct job *j, const char *why)
{
    struct dtx_err e = {0};

    j->loop.trained = true;
    job_log(j, "training %s at step %lld of %lld: loss %.4f", why, (long long)j->loop.step,
            (long long)j->total, j->loop.loss);
    if (job_state_save(w, j, &e)) {
        dtx_fail_context(&e, "the trained adapter could not be saved");
        job_fail(w, j, &e);
        return;
    }
    send_state(w, j->spec.id, "EXPORT", "", NULL);
    job_phase(w, j, JP_EXPORT);
}

/* A save that fails is tried again soon; training goes on, the save before is intact. */
static void save_when_due(struct worker *w, struct job *j)
{
    struct dtx_err e = {0};
    bool due = j->save_failures ? since(j->saved_ns) > SAVE_RETRY_SECONDS
                                : j->loop.step % j->save_steps == 0 || since(j->saved_ns) > SAVE_SECONDS;

    /* a suspect (proto.h): long enough alone to be believed, not so long that others wait for it in vain */
    due |= j->spec.save_after >= j->saved_step && j->loop.step > j->spec.save_after && !j->save_failures &&
           since(j->saved_ns) > j->spec.save_after_s;
    if (!due)
        return;
    if (job_state_save(w, j, &e) == 0) {
        j->save_failures = 0;
        job_log(j, "saved at step %lld", (long long)j->loop.step);
        return;
    }
    j->saved_ns = clock_mono_ns();
    if (++j->save_failures < SAVE_RETRIES) {
        job_log(j, "could not save at step %lld: %s; trying again in %d s", (long long)j->loop.step, e.msg,
                SAVE_RETRY_SECONDS);
        return;
    }
    dtx_fail_context(
        &e, "the job could not be saved %d times; the last save is of step %lld, retry goes on from it",
        SAVE_RETRIES, (long long)j->saved_step);
    job_fail(w, j, &e);
}

static void log_epoch(struct job *j, double eval_loss)
{
    bool epoch_end = j->per_epoch > 0 && j->loop.step % j->per_epoch == 0;

    if (isfinite(eval_loss))
        job_log(j, "epoch %.2f, step %lld/%lld: loss %.4f, eval_loss %.4f", j->last.epoch,
                (long long)j->loop.step, (long long)j->total, j->loop.loss, eval_loss);
    else if (epoch_end || j->last.done)
        job_log(j, "epoch %.2f, step %lld/%lld: loss %.4f", j->last.epoch, (long long)j->loop.step,
                (long long)j->total, j->loop.loss);
}

/* The step's row is whole (its evaluation, if due, is done): write it, then end, save or go on. */
static void step_end(struct worker *w, struct job *j, double eval_loss)
{
    bool early = j->spec.patience > 0 && j->loop.bad_evals >= j->spec.patience;

    metrics_add(j, &j->last, eval_loss, j->tokens_per_s);
    j->row_open = false;
    log_epoch(j, eval_loss);
    if (j->last.done)
        training_over(w, j, "done");
    else if (early)
        training_over(w, j, "stopped early (no better eval_loss)");
    else if (j->stop)
        training_over(w, j, "stopped");
    else {
        job_phase(w, j, JP_TRAIN);
        save_when_due(w, j);
    }
}

static bool eval_due(const struct job *j)
{
    return j->prep.has_validation && j->prep.validation.rows.n && j->loop.last_eval_step != j->loop.step &&
           (j->loop.step % j->eval_steps == 0 || j->last.done || j->stop);
}

void job_after_step(struct worker *w, struct job *j, const struct dtx_step_result *r)
{
    struct dtx_err e = r->error;
    double elapsed = since(j->step_ns);

    if (r->failed) {
        job_fail(w, j, &e);
        return;
    }
    j->step_ns = clock_mono_ns();
    j->step_s = smooth(j->step_s, elapsed);
    j->tokens_per_s = smooth(j->tokens_per_s, w->last_step_s > 0 ? r->tokens / w->last_step_s : 0);
    j->loop.step = r->step;
    j->loop.tokens += r->tokens;
    if (!r->skipped)
        j->loop.loss = r->loss;
    j->last = *r;
    j->row_open = true;
    job_progress(w, j, "train", (uint64_t)r->step, (uint64_t)j->total);
    if (eval_due(j))
        job_phase(w, j, JP_EVAL);
    else
        step_end(w, j, NAN);
}

/* Rows [first, first + n) that make a slice: the same slices whatever else the device does. */
static struct dtx_rows slice_of(const struct dtx_rows *all, uint32_t first)
{
    struct dtx_rows s = {all->ids, all->labels, all->start + first, 0};

    while (first + s.n < all->n && (s.n == 0 || s.start[s.n] - s.start[0] < EVAL_SLICE_TOKENS))
        s.n++;
    return s;
}

static void eval_done(struct worker *w, struct job *j)
{
    struct job_loop *l = &j->loop;
    double loss = j->eval_labels ? j->eval_nll / (double)j->eval_labels : NAN;

    dtx_adapter_free(j->eval_adapter);
    j->eval_adapter = NULL;
    l->last_eval_step = l->step;
    l->eval_loss = loss;
    if (isfinite(loss) && (!isfinite(l->best_eval) || loss < l->best_eval - j->spec.min_delta)) {
        l->best_eval = loss;
        l->best_step = l->step;
        l->bad_evals = 0;
    } else {
        l->bad_evals++;
    }
    job_progress(w, j, "eval", 1, 1);
    if (j->row_open)
        step_end(w, j, loss);
    else /* stopped between two evaluations: the row of this step is written already */
        training_over(w, j, "stopped");
}

void job_eval_slice(struct worker *w, struct job *j)
{
    const struct dtx_rows *all = &j->prep.validation.rows;
    struct dtx_err e = {0};
    struct dtx_rows s;
    uint64_t labels = 0;
    double nll = 0;
    int rc = 0;

    if (!j->eval_adapter) {
        j->eval_row = 0;
        j->eval_nll = 0;
        j->eval_labels = 0;
        rc = dtx_adapter_from_job(j->train, &j->eval_adapter, &e);
    }
    s = slice_of(all, j->eval_row);
    if (rc == 0)
        rc = dtx_eval_rows(j->base->base, j->eval_adapter, &s, &nll, &labels, &e);
    if (rc) {
        dtx_fail_context(&e, "evaluation at step %lld", (long long)j->loop.step);
        job_fail(w, j, &e);
        return;
    }
    j->eval_nll += nll;
    j->eval_labels += labels;
    j->eval_row += s.n;
    w->moved = true;
    if (j->eval_row >= all->n)
        eval_done(w, j);
    else
        job_progress(w, j, "eval", j->eval_row, all->n);
}

void job_stop_training(struct worker *w, struct job *j)
{
    struct dtx_err e;

    if (j->loop.step == 0) {
        dtx_fail(&e, -ECANCELED, "stopped before its first step: there is nothing to export");
        job_fail(w, j, &e);
    } else if (eval_due(j))
        job_phase(w, j, JP_EVAL);
    else
        training_over(w, j, "stopped");
}
