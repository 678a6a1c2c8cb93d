/*
 * The memory plan.  Every byte that a base and the jobs on it take of the device follows from shapes, ranks
 * and row lengths, so it is known before anything is allocated:
 *
 *   a base        weights, rotary table, and what serving needs (model.h, base_reserve)
 *   each job      adapter, gradient, moments; a copy of the adapter if it evaluates while it trains
 *   a group       the workspace of its packs, which all jobs of a base share, and what operations take for
 *                 themselves (ops->scratch_bytes), as far as serving does not take it already
 *
 * Three things are free to choose, and none changes a number: how many rows a pack has, how many layers run
 * forward twice, and who is admitted.  dtx_plan_make takes the fastest that fits: packs as large as the
 * device likes them, smaller ones down to a quarter of that, then layers computed again, as few as will do,
 * then packs of one chunk.  What is quickly computed again (norms, swiglu: 2% of a step for 40% more
 * activations) is kept where the whole leaves half of the budget to other bases.
 */
#include "kernels/job.h"

enum { PACK_TABLES = 256 /* bytes a row: ids, positions and the like */ };

struct group {
    const struct dtx_device *d;
    const struct dtx_model_config *c;
    int chunk, together; /* rows: the largest chunk, all chunks side by side */
    int rank;
    bool masks;
};

struct dtx_job_size dtx_job_size(const struct dtx_train_params *p, const struct dtx_rows *rows, bool eval)
{
    struct dtx_job_size s = {.rank = p->rank,
                             .targets = p->targets,
                             .moments = p->optimizer != DTX_SGD,
                             .eval = eval,
                             .dropout = p->dropout > 0,
                             .tokens = largest_chunk(p, rows)};
    for (uint32_t i = 0; i < rows->n; i++) {
        int n = (int)(rows->start[i + 1] - rows->start[i]);
        s.longest = n > s.longest ? n : s.longest;
    }
    return s;
}

static uint64_t scratch(const struct dtx_device *d, const struct dtx_model_config *c, int rows, int rank,
                        unsigned targets)
{
    struct lora_dims dims = lora_dims_of(c);
    return d->ops->scratch_bytes ? d->ops->scratch_bytes(&dims, c->hidden, c->vocab, rows, rank, targets) : 0;
}

uint64_t dtx_adapter_plan(const struct dtx_device *d, const struct dtx_model_config *c, int rank,
                          unsigned targets)
{
    struct lora_dims dims = lora_dims_of(c);
    return lora_floats(&dims, targets, rank) * sizeof(float) + scratch(d, c, 0, rank, targets);
}

uint64_t dtx_job_state_bytes(const struct dtx_device *d, const struct dtx_model_config *c,
                             const struct dtx_job_size *s)
{
    struct lora_dims dims = lora_dims_of(c);
    uint64_t floats = lora_floats(&dims, s->targets, s->rank) * (s->moments ? 4 : 2);
    return floats * sizeof(float) + scratch(d, c, 0, s->rank, s->targets) +
           (s->eval ? dtx_adapter_plan(d, c, s->rank, s->targets) : 0);
}

static struct group group_of(const struct dtx_device *d, const struct dtx_model_config *c,
                             const struct dtx_job_size *jobs, int n)
{
    struct group g = {.d = d, .c = c};
    int64_t sum = 0;
    for (int i = 0; i < n; i++) {
        int rows = rows_padded(d->ops, jobs[i].tokens);
        sum += rows;
        g.chunk = rows > g.chunk ? rows : g.chunk;
        g.rank = jobs[i].rank > g.rank ? jobs[i].rank : g.rank;
        g.masks = g.masks || (jobs[i].dropout && d->ops->keeps_masks);
    }
    int most = g.chunk > d->ops->pack_rows ? g.chunk : d->ops->pack_rows;
    g.together = sum < most ? (int)sum : most;
    return g;
}

/* Fills in what the shared workspace takes with so many rows and layers computed again; true if it fits. */
static bool try(const struct group *g, int rows, int recompute, bool keep, uint64_t budget,
                struct dtx_plan *p)
{
    struct workspace w = {
        .rows = rows, .rank = g->rank, .recompute = recompute, .keep = keep, .masks = g->masks};
    uint64_t most = scratch(g->d, g->c, rows, g->rank, 0), /* one operation runs at a time */
        counted = scratch(g->d, g->c, SERVE_ROWS, SERVE_RANK, 0);
    p->rows = rows;
    p->rank = g->rank;
    p->recompute = recompute;
    p->keep = keep;
    p->masks = g->masks;
    p->activations = rows ? workspace_layout(&w, g->c, g->d->ops->act_bytes, true) : 0;
    p->scratch = (most > counted ? most - counted : 0) + (uint64_t)rows * PACK_TABLES;
    p->total = p->adapters + p->activations + p->scratch;
    return p->total <= budget;
}

static bool least_recompute(const struct group *g, int rows, uint64_t budget, struct dtx_plan *p)
{
    for (int r = 0; r < g->c->layers; r++)
        if (try(g, rows, r, false, budget, p))
            return true;
    return false;
}

int dtx_plan_make(const struct dtx_device *d, const struct dtx_model_config *c,
                  const struct dtx_job_size *jobs, int n, uint64_t budget, struct dtx_plan *p)
{
    struct group g = group_of(d, c, jobs, n);
    int good =
        rows_padded(d->ops, d->ops->pack_rows / 4); /* rows from which on a pack is about as fast as any */
    int least = g.chunk > good ? g.chunk : good;
    *p = (struct dtx_plan){.jobs = n, .layers = c->layers};
    for (int i = 0; i < n; i++) {
        p->adapters += dtx_job_state_bytes(d, c, &jobs[i]);
        p->longest = jobs[i].longest > p->longest ? jobs[i].longest : p->longest;
    }
    least = least < g.together ? least : g.together;
    if (try(&g, g.together, 0, true, budget / 2, p))
        return 0;
    for (int rows = g.together; rows > least; rows = rows_padded(d->ops, rows / 2))
        if (try(&g, rows, 0, false, budget, p))
            return 0;
    return least_recompute(&g, least, budget, p) || least_recompute(&g, g.chunk, budget, p) ? 0 : -ENOSPC;
}

static uint64_t weights_of(const struct dtx_model_config *c)
{
    struct lora_dims d = lora_dims_of(c);
    uint64_t hidden = (uint64_t)c->hidden, layer = 2 * hidden, embed = (uint64_t)c->vocab * hidden;
    for (int t = 0; t < DTX_TARGETS; t++)
        layer += (uint64_t)d.in[t] * (uint64_t)d.out[t];
    if (c->attention_bias)
        layer += (uint64_t)(d.out[DTX_Q] + d.out[DTX_K] + d.out[DTX_V]);
    return (uint64_t)c->layers * layer + hidden + embed * (c->tied_head ? 1 : 2);
}

/* The workspace of passes without training. */
static uint64_t serving(const struct dtx_device *d, const struct dtx_model_config *c, int rows, int rank)
{
    struct workspace w = {.rows = rows, .rank = rank};
    return workspace_layout(&w, c, d->ops->act_bytes, false);
}

uint64_t dtx_base_plan(const struct dtx_device *d, const struct dtx_model_config *c)
{
    uint64_t positions = 256, row = (uint64_t)c->head_dim * sizeof(float);
    while (positions < (uint64_t)c->max_positions && positions < SERVE_POSITIONS)
        positions *= 2;
    return weights_of(c) * (uint64_t)d->ops->weight_bytes + positions * row +
           serving(d, c, SERVE_ROWS, SERVE_RANK) + scratch(d, c, SERVE_ROWS, SERVE_RANK, 0) +
           SERVE_LOGITS * ((uint64_t)c->vocab * sizeof(float) + sizeof(int32_t)) +
           STEP_JOBS * (sizeof(double) + sizeof(struct op_outcome));
}

uint64_t dtx_base_held(const struct dtx_base *b)
{
    return b->bytes + (uint64_t)b->rope_positions * (uint64_t)b->config.head_dim * sizeof(float) +
           b->spaces[0].bytes + b->spaces[1].bytes +
           scratch(b->device, &b->config, b->spaces[0].rows, b->spaces[0].rank, 0) +
           (uint64_t)b->gen_rows * ((uint64_t)b->config.vocab * sizeof(float) + sizeof(int32_t)) +
           (uint64_t)b->step_jobs * (sizeof(double) + sizeof(struct op_outcome));
}

uint64_t dtx_base_training_bytes(const struct dtx_base *b)
{
    return b->spaces[1].bytes;
}

uint64_t dtx_cache_bytes(const struct dtx_device *d, const struct dtx_model_config *c, int positions)
{
    return 2ull * (uint64_t)c->layers * (uint64_t)positions * (uint64_t)(c->kv_heads * c->head_dim) *
           (uint64_t)d->ops->act_bytes;
}

/* Keys and values; of a prompt that is longer than any before, what the workspace grows by. */
uint64_t dtx_seq_plan(const struct dtx_base *b, size_t n_prompt, const struct dtx_sampling *s)
{
    const struct workspace *w = &b->spaces[0];
    size_t most = (size_t)b->config.max_positions, n = n_prompt < most ? n_prompt : most;
    size_t all = s->max_new_tokens < 0 ? n : n + (size_t)s->max_new_tokens;
    int rows = pack_padded(b, (int)n);
    uint64_t cache = dtx_cache_bytes(b->device, &b->config, (int)(all < most ? all : most));
    return rows <= w->rows ? cache : cache + serving(b->device, &b->config, rows, w->rank) - w->bytes;
}

int base_reserve(struct dtx_base *b, struct dtx_err *e)
{
    int most = b->config.max_positions < SERVE_POSITIONS ? b->config.max_positions : SERVE_POSITIONS;
    int rc = base_need_positions(b, most, e);
    if (rc == 0)
        rc = base_need_step(b, STEP_JOBS, e);
    if (rc == 0)
        rc = base_need_logits(b, SERVE_LOGITS, e);
    return rc == 0 ? workspace_need(b, SERVE_ROWS, SERVE_RANK, e) : rc;
}

int dtx_base_plan_training(struct dtx_base *b, const struct dtx_plan *p, struct dtx_err *e)
{
    int rc = base_need_step(b, (p->jobs + STEP_JOBS - 1) / STEP_JOBS * STEP_JOBS, e);
    if (rc == 0)
        rc = base_need_positions(b, p->longest, e);
    if (rc == 0)
        rc = workspace_set(b, p, e);
    b->pack_rows = p->rows;
    return rc;
}
