/*
 * SCORE: an answer to every question, many at a time; metrics of each pair; perplexity of the references; the
 * weighted score; score.json with every number.  For an untuned base the same without an adapter.
 */
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/score/score.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

enum { SCORE_TOGETHER = 32, SCORE_SLICE_ROWS = 8, SCORE_SLICE_TOKENS = 2048 };

struct score_item {
    struct score_run *run;
    struct gen *gen;
    char *answer, *error;
    size_t prompt_tokens, new_tokens;
    bool stopped, done;
    json_t *metrics;
};

struct score_run {
    struct worker *w;
    struct job *job;
    struct score_item *items; /* one for each question */
    size_t n, asked, done;    /* asked: given to the generator */
    size_t measured;          /* references whose likelihood is known */
    int running;
    double nll;
    uint64_t labels;
};

int score_begin(struct worker *w, struct job *j, struct dtx_err *e)
{
    struct score_run *r = calloc(1, sizeof(*r));
    size_t n = j->prep.questions.n;

    if (r)
        r->items = calloc(n + 1, sizeof(*r->items));
    if (!r || !r->items) {
        free(r);
        return dtx_fail(e, -ENOMEM, "out of memory for %zu questions", n);
    }
    r->w = w;
    r->job = j;
    r->n = n;
    for (size_t i = 0; i < n; i++)
        r->items[i].run = r;
    j->score = r;
    return 0;
}

void score_release(struct job *j)
{
    struct score_run *r = j->score;

    j->score = NULL;
    if (!r)
        return;
    for (size_t i = 0; i < r->n; i++) {
        if (r->items[i].gen)
            gen_cancel(r->items[i].gen);
        free(r->items[i].answer);
        free(r->items[i].error);
        json_decref(r->items[i].metrics);
    }
    free(r->items);
    free(r);
}

static const char *reference_of(const struct data_row *row)
{
    return row->turns[row->n - 1].text;
}

static void item_finish(struct score_item *item, const char *answer, const char *error)
{
    const struct data_row *row = &item->run->job->prep.questions.v[item - item->run->items];

    item->answer = strdup(answer);
    item->error = error ? strdup(error) : NULL;
    item->metrics = score_pair(reference_of(row), answer);
    item->done = true;
    item->run->done++;
}

static void item_answered(struct worker *w, struct gen *g)
{
    struct score_item *item = g->owner;
    struct buf text = BUF_INIT;

    item->gen = NULL;
    item->run->running--;
    item->new_tokens = g->seen;
    item->stopped = g->seq && dtx_seq_finish(g->seq) == DTX_STOP;
    if (!g->error.code)
        gen_text(g, &text);
    item_finish(item, text.p ? text.p : "", g->error.code ? g->error.msg : NULL);
    buf_release(&text);
    w->moved = true;
}

static void ask_item(struct worker *w, struct job *j, size_t i)
{
    const json_t *ev = j->spec.evaluation;
    struct score_item *item = &j->score->items[i];
    struct dtx_sampling s = {.max_new_tokens = (int)json_int(ev, "max_new_tokens", 128),
                             .temperature = json_num(ev, "temperature", 0),
                             .top_p = 1,
                             .seed = (uint64_t)json_int(ev, "seed", 0)};
    struct dtx_ids ids = {0};
    struct dtx_err e = {0};
    int rc =
        chat_encode(j->base->tokenizer, j->spec.template_name, &j->prep.questions.v[i], true, &ids, NULL, &e);

    item->prompt_tokens = ids.n;
    if (rc == 0) {
        item->gen = gen_add(w, j->base, j->adapter, &ids, &s, false);
        if (!item->gen)
            dtx_fail(&e, -ENOMEM, "out of memory");
    }
    dtx_ids_release(&ids);
    if (!item->gen) {
        item_finish(item, "", e.msg);
        return;
    }
    item->gen->owner = item;
    item->gen->done = item_answered;
    j->score->running++;
}

/* The references of a few questions as rows; those longer than the model's positions are left out. */
static int encode_references(struct job *j, struct dtx_ids *ids, struct dtx_ids *labels, uint64_t *start,
                             uint32_t *n, struct dtx_err *e)
{
    struct score_run *r = j->score;
    size_t most = (size_t)dtx_base_config(j->base->base)->max_positions;
    int rc = 0;

    start[0] = 0;
    *n = 0;
    while (rc == 0 && r->measured < r->n && *n < SCORE_SLICE_ROWS && ids->n < SCORE_SLICE_TOKENS) {
        rc = chat_encode(j->base->tokenizer, j->spec.template_name, &j->prep.questions.v[r->measured], false,
                         ids, labels, e);
        r->measured++;
        if (rc == 0 && ids->n - start[*n] <= most)
            start[++*n] = ids->n;
        else
            ids->n = labels->n = start[*n];
    }
    return rc;
}

static int measure_slice(struct job *j, struct dtx_err *e)
{
    struct score_run *r = j->score;
    struct dtx_ids ids = {0}, labels = {0};
    uint64_t start[SCORE_SLICE_ROWS + 1], counted = 0;
    struct dtx_rows rows = {.start = start};
    double nll = 0;
    int rc = encode_references(j, &ids, &labels, start, &rows.n, e);

    rows.ids = ids.v;
    rows.labels = labels.v;
    if (rc == 0 && rows.n)
        rc = dtx_eval_rows(j->base->base, j->adapter ? j->adapter->adapter : NULL, &rows, &nll, &counted, e);
    r->nll += nll;
    r->labels += counted;
    dtx_ids_release(&ids);
    dtx_ids_release(&labels);
    return rc;
}

/* Mean of each metric over all questions. */
static json_t *mean_metrics(const struct score_run *r)
{
    json_t *sum = json_object();
    const char *key;
    json_t *value;

    for (size_t i = 0; i < r->n; i++)
        json_object_foreach(r->items[i].metrics, key, value) json_object_set_new(
            sum, key, json_real(json_num(sum, key, 0) + json_number_value(value) / (double)r->n));
    return sum;
}

static json_t *turns_json(const struct data_row *row)
{
    static const char *const roles[] = {"system", "user", "assistant"};
    json_t *v = json_array();

    for (int i = 0; i < row->n - 1; i++)
        json_array_append_new(
            v, json_pack("{s:s,s:s}", "role", roles[row->turns[i].role], "content", row->turns[i].text));
    return v;
}

static const char *question_of(const struct data_row *row)
{
    for (int i = row->n - 2; i >= 0; i--)
        if (row->turns[i].role == DATA_USER)
            return row->turns[i].text;
    return "";
}

static json_t *item_json(const struct score_run *r, size_t i)
{
    const struct score_item *item = &r->items[i];
    const struct data_row *row = &r->job->prep.questions.v[i];
    const json_t *weights = json_object_get(r->job->spec.evaluation, "metrics");
    json_t *v =
        json_pack("{s:s,s:o,s:s,s:O,s:o}", "question", question_of(row), "answer",
                  json_text(item->answer, strlen(item->answer)), "reference", reference_of(row), "metrics",
                  item->metrics, "score", json_number(score_weighted(item->metrics, weights)));

    if (row->n > 2)
        json_object_set_new(v, "messages", turns_json(row));
    json_object_set_new(v, "prompt_tokens", json_integer((json_int_t)item->prompt_tokens));
    json_object_set_new(v, "new_tokens", json_integer((json_int_t)item->new_tokens));
    json_object_set_new(v, "finish", json_string(item->stopped ? "stop" : "length"));
    if (item->error)
        json_object_set_new(v, "error", json_text(item->error, strlen(item->error)));
    return v;
}

static int write_score(struct worker *w, struct job *j, struct dtx_err *e)
{
    const struct score_run *r = j->score;
    json_t *items = json_array(), *v;
    char path[PATH_MAX];
    int rc;

    for (size_t i = 0; i < r->n; i++)
        json_array_append_new(items, item_json(r, i));
    v = json_pack("{s:O,s:O,s:O,s:s,s:s,s:s,s:I,s:O,s:o}", "score", json_object_get(j->result, "score"),
                  "metrics", json_object_get(j->result, "metrics"), "perplexity",
                  json_object_get(j->result, "perplexity"), "evaluation",
                  json_str(j->spec.json, "evaluation_name", ""), "job", j->spec.job, "base",
                  j->spec.base_name, "questions", (json_int_t)r->n, "weights",
                  json_object_get(j->spec.evaluation, "metrics"), "items", items);
    rc = v ? fd_join(path, j->spec.score_only ? j->spec.work_dir : j->spec.job_dir, "score.json", e)
           : dtx_fail(e, -ENOMEM, "out of memory for score.json");
    if (rc == 0)
        rc = job_write_json(w, j, path, v, e);
    json_decref(v);
    return rc;
}

static json_int_t trainable_of(const struct job *j)
{
    const struct dtx_model_config *c = &j->prep.config;
    const int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    const int in_out[DTX_TARGETS] = {
        [DTX_Q] = c->hidden + q,         [DTX_K] = c->hidden + kv,        [DTX_V] = c->hidden + kv,
        [DTX_O] = q + c->hidden,         [DTX_GATE] = c->hidden + c->ffn, [DTX_UP] = c->hidden + c->ffn,
        [DTX_DOWN] = c->ffn + c->hidden,
    };
    json_int_t n = 0;

    for (int t = 0; t < DTX_TARGETS; t++)
        if (j->spec.params.targets >> t & 1)
            n += (json_int_t)in_out[t] * j->spec.params.rank * c->layers;
    return n;
}

static void make_result(struct job *j)
{
    const struct score_run *r = j->score;
    const struct job_loop *l = &j->loop;
    json_t *metrics = mean_metrics(r), *v = json_object();
    const json_t *weights = json_object_get(j->spec.evaluation, "metrics");

    json_object_set_new(v, "score", r->n ? json_number(score_weighted(metrics, weights)) : json_null());
    json_object_set_new(v, "metrics", metrics);
    json_object_set_new(v, "perplexity",
                        r->labels ? json_number(exp(r->nll / (double)r->labels)) : json_null());
    json_object_set_new(v, "eval_loss", json_number(l->eval_loss));
    json_object_set_new(v, "loss", json_number(l->loss));
    json_object_set_new(v, "steps", json_integer((json_int_t)l->step));
    json_object_set_new(v, "seconds", json_number(l->seconds));
    json_object_set_new(v, "tokens", json_integer((json_int_t)l->tokens));
    json_object_set_new(v, "tokens_per_s", json_number(l->seconds > 0 ? (double)l->tokens / l->seconds : 0));
    json_object_set_new(v, "trainable", json_integer(j->spec.score_only ? 0 : trainable_of(j)));
    json_decref(j->result);
    j->result = v;
}

static int finish(struct worker *w, struct job *j, struct dtx_err *e)
{
    int rc = 0;

    make_result(j);
    if (j->score->n)
        rc = write_score(w, j, e);
    if (rc == 0 && !j->spec.score_only)
        rc = job_export_result(w, j, e);
    if (rc == 0 && !j->spec.score_only)
        rc = metrics_flush(j, true, e);
    if (rc == 0 && !j->spec.score_only)
        rc = job_provenance(w, j, e);
    if (rc == 0 && j->score->n)
        job_log(j, "score %.2f of %zu questions, perplexity %.3f", json_num(j->result, "score", 0),
                j->score->n, json_num(j->result, "perplexity", NAN));
    return rc;
}

void score_turn(struct worker *w, struct job *j)
{
    struct score_run *r = j->score;
    struct dtx_err e = {0};
    int rc = 0;

    while (r->asked < r->n && r->running < SCORE_TOGETHER)
        ask_item(w, j, r->asked++);
    if (r->done < r->n) {
        job_progress(w, j, "score", r->done, r->n);
        return;
    }
    w->moved = true;
    if (r->measured < r->n)
        rc = measure_slice(j, &e);
    else
        rc = finish(w, j, &e);
    if (rc)
        job_fail(w, j, &e);
    else if (j->result)
        job_end(w, j, "SUCCESSFUL", "", json_incref(j->result));
}
