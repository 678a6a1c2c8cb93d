/*
 * Decode steps one after another, without the host between them.
 *
 * The tables of a step (tokens, positions, caches, adapters, choices) lie at fixed places on the device; the last
 * kernel of a step, the choice of the tokens, moves them on.  So a whole step is a CUDA graph, made once for each
 * combination of what its launches carry (the number of rows, the slices of the longest cache up to a power of two, the
 * largest rank, the addresses of buffers and weights) and launched with one call.  The tokens are copied to pinned
 * memory behind each step.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode_run.cuh"

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

enum { MOST_GRAPHS = 32 };

typedef std::vector<uint64_t> graph_key;

struct decode_graph {
    decode_graph *next; /* the most recently used first */
    graph_key key;
    cudaGraphExec_t exec;
};

struct decode_run {
    op_pack pack; /* as the launchers see it; its dev is &tables */
    cuda_pack tables;
    lora_dims dims;
    op_decode step;
    std::vector<op_layer> layer;
    void *block;           /* the tables' memory */
    int32_t room, longest; /* rows in the tables; positions of the longest row before the next step */
    op_choice *choice;
    float *partial;
    size_t partial_bytes;
    int32_t *host; /* pinned [DECODE_AHEAD][room] */
    cudaEvent_t done[DECODE_AHEAD];
    uint32_t queued, taken;
    bool loaded, plain; /* plain: launch the kernels one by one */
    decode_graph *graphs;
};

/* ---- memory ---- */

static void free_graphs(decode_run *r, int keep)
{
    decode_graph **at = &r->graphs;
    while (*at && keep-- > 0)
        at = &(*at)->next;
    while (*at) {
        decode_graph *g = *at;
        *at = g->next;
        cudaGraphExecDestroy(g->exec);
        delete g;
    }
}

void decode_run_close(op_dev *d)
{
    decode_run *r = d->run;
    if (!r)
        return;
    cudaStreamSynchronize(d->stream);
    free_graphs(r, 0);
    dev_free(d, r->block);
    dev_free(d, r->partial);
    if (r->host)
        cudaFreeHost(r->host);
    for (cudaEvent_t e : r->done)
        if (e)
            cudaEventDestroy(e);
    delete r;
    d->run = NULL;
}

static decode_run *run_open(op_dev *d)
{
    if (d->run)
        return d->run;
    decode_run *r = new (std::nothrow) decode_run();
    d->run = r;
    for (int i = 0; r && i < DECODE_AHEAD; i++)
        if (cudaEventCreateWithFlags(&r->done[i], cudaEventDisableTiming) != cudaSuccess) {
            decode_run_close(d);
            return NULL;
        }
    if (r)
        r->plain = d->tracing || getenv("DTX_CUDA_NO_GRAPH");
    return r;
}

static size_t place(size_t *at, size_t bytes)
{
    size_t here = *at;
    *at += (bytes + 255) & ~(size_t)255;
    return here;
}

/* Tables for so many rows, at the same place until there are more. */
static bool need_tables(op_dev *d, decode_run *r, int rows)
{
    if (rows <= r->room)
        return true;
    rows = div_up(rows, 16) * 16;
    size_t at = 0, ids = place(&at, rows * 4ull), pos = place(&at, rows * 4ull), sor = place(&at, rows * 4ull),
           seqs = place(&at, rows * sizeof(op_seq)), ads = place(&at, rows * sizeof(dev_adapter)),
           choice = place(&at, rows * sizeof(op_choice));
    dev_free(d, r->block);
    cudaStreamSynchronize(d->stream); /* copies to the old pinned memory */
    if (r->host)
        cudaFreeHost(r->host);
    r->host = NULL;
    r->room = 0;
    char *p = (char *)cu_alloc(d, at);
    r->block = p;
    if (!p)
        return false;
    if (cudaMallocHost((void **)&r->host, (size_t)DECODE_AHEAD * rows * 4) != cudaSuccess) {
        (void)cudaGetLastError();
        return false;
    }
    r->room = rows;
    r->tables.ids = (int32_t *)(p + ids);
    r->tables.pos = (int32_t *)(p + pos);
    r->tables.seq_of_row = (int32_t *)(p + sor);
    r->tables.seqs = (op_seq *)(p + seqs);
    r->tables.row_adapters = (dev_adapter *)(p + ads);
    r->choice = (op_choice *)(p + choice);
    return true;
}

/* Slices of the longest row in its next step, rounded up to a power of two, and scratch for them. */
static bool need_partial(op_dev *d, decode_run *r)
{
    const op_attention *a = &r->layer[0].attention;
    int slices = 1;
    while (slices * DECODE_SLICE < r->longest + 1)
        slices *= 2;
    size_t bytes = (size_t)r->pack.rows * a->heads * slices * (2 + a->head_dim) * sizeof(float);
    if (bytes > r->partial_bytes) {
        dev_free(d, r->partial);
        r->partial = (float *)dev_alloc(d, bytes);
        r->partial_bytes = r->partial ? bytes : 0;
    }
    r->tables.partial = r->partial;
    r->tables.slices_cached = slices;
    return r->partial != NULL;
}

/* ---- loading ---- */

static bool fill_tables(op_dev *d, decode_run *r, const op_pack *p, const op_choice *choice)
{
    int n = p->rows;
    std::vector<dev_adapter> ads(p->n_adapters + 1), row_ads(n);
    std::vector<op_seq> seqs(n);
    if (!fill_adapters(d, p, &r->tables, ads.data()))
        return false;
    for (int i = 0; i < n; i++) { /* row i is sequence i: the kernels of decode_layer look there */
        seqs[i] = p->seqs[p->seq_of_row[i]];
        int ad = p->segs[seqs[i].seg].adapter;
        row_ads[i] = ad >= 0 ? ads[ad] : dev_adapter();
        r->longest = seqs[i].pos0 + 1 > r->longest ? seqs[i].pos0 + 1 : r->longest;
    }
    dev_upload(d, r->tables.ids, p->ids, n * 4ull);
    dev_upload(d, r->tables.pos, p->pos, n * 4ull);
    dev_upload(d, r->tables.seq_of_row, p->seq_of_row, n * 4ull);
    dev_upload(d, r->tables.seqs, seqs.data(), n * sizeof(op_seq));
    dev_upload(d, r->tables.row_adapters, row_ads.data(), n * sizeof(dev_adapter));
    dev_upload(d, r->choice, choice, n * sizeof(op_choice));
    return true;
}

int cu_decode_load(op_dev *d, op_pack *p, const op_decode *s)
{
    TRACE(d, "decode_load R %d", p->rows);
    decode_run *r = run_open(d);
    const op_attention *a = &s->layer[0].attention;

    if (!r)
        return -ENOMEM;
    if (a->head_dim > 128 || a->head_dim % 8) {
        dev_fail(d, cudaErrorInvalidValue, "decode: head size must be a multiple of 8 up to 128");
        return -EINVAL;
    }
    r->loaded = false;
    r->queued = r->taken = 0;
    r->longest = 0;
    r->layer.assign(s->layer, s->layer + s->layers);
    r->step = *s;
    r->step.layer = r->layer.data();
    r->step.choice = NULL;
    r->dims = *p->dims;
    if (!need_tables(d, r, p->rows) || !fill_tables(d, r, p, s->choice))
        return d->status == cudaSuccess ? -ENOMEM : -EIO;
    r->pack = op_pack();
    r->pack.rows = r->pack.n_seqs = r->pack.n_segs = p->rows;
    r->pack.decode = true;
    r->pack.n_adapters = p->n_adapters;
    r->pack.max_rank = p->max_rank;
    r->pack.dims = &r->dims;
    r->pack.dev = &r->tables;
    r->loaded = true;
    return d->status == cudaSuccess ? 0 : -EIO;
}

/* ---- a step ---- */

static void launch_all(op_dev *d, decode_run *r)
{
    const op_decode *s = &r->step;
    const op_pack *p = &r->pack;
    const step_tables t = {r->tables.ids, r->tables.pos, r->tables.seqs};

    cu_embed(d, p, s->embed, s->hidden, s->x);
    for (const op_layer &l : r->layer)
        cu_decode_layer(d, p, &l);
    cu_rmsnorm(d, p, s->x_last, s->norm, s->hidden, s->eps, s->xn, NULL);
    gemv(d, NULL, NULL, p->rows, s->vocab, s->hidden, (const bf16 *)s->xn, (const bf16 *)s->head, NULL, NULL, NULL,
         false, s->logits, true);
    choose_launch(d, s->logits, p->rows, s->vocab, r->choice, s->tokens, t);
}

static void key_linear(graph_key *k, const op_linear *l)
{
    k->insert(k->end(), {(uint64_t)l->W, (uint64_t)l->bias, (uint64_t)l->in << 32 | (uint32_t)l->out,
                         (uint64_t)l->layer << 32 | (uint32_t)l->n_parts});
    for (int i = 0; i < l->n_parts; i++)
        k->insert(k->end(), {(uint64_t)l->part[i].target, (uint64_t)l->part[i].out0 << 32 | (uint32_t)l->part[i].n});
}

/* Everything that the launches of a step carry. */
static graph_key key_of(const decode_run *r)
{
    const op_decode *s = &r->step;
    const op_attention *a = &r->layer[0].attention;
    uint64_t eps = 0, scale = 0;
    memcpy(&eps, &s->eps, sizeof(s->eps));
    memcpy(&scale, &a->scale, sizeof(a->scale));
    graph_key k = {(uint64_t)r->pack.rows,
                   (uint64_t)(r->pack.n_adapters > 0),
                   (uint64_t)r->pack.max_rank,
                   (uint64_t)r->tables.slices_cached,
                   (uint64_t)r->room,
                   (uint64_t)r->block,
                   (uint64_t)r->partial,
                   (uint64_t)s->layers,
                   (uint64_t)s->hidden,
                   (uint64_t)s->vocab,
                   eps,
                   scale,
                   (uint64_t)s->embed,
                   (uint64_t)s->norm,
                   (uint64_t)s->head,
                   (uint64_t)s->x,
                   (uint64_t)s->x_last,
                   (uint64_t)s->xn,
                   (uint64_t)s->logits,
                   (uint64_t)s->tokens,
                   (uint64_t)a->heads,
                   (uint64_t)a->kv_heads,
                   (uint64_t)a->head_dim,
                   (uint64_t)a->layers};
    for (int t = 0; t < DTX_TARGETS; t++)
        k.push_back((uint64_t)r->dims.in[t] << 32 | (uint32_t)r->dims.out[t]);
    for (const op_layer &l : r->layer) {
        key_linear(&k, &l.qkv);
        key_linear(&k, &l.out);
        key_linear(&k, &l.gate_up);
        key_linear(&k, &l.down);
        k.insert(k.end(), {(uint64_t)l.norm1, (uint64_t)l.norm2, (uint64_t)l.rope, (uint64_t)l.x, (uint64_t)l.xn,
                           (uint64_t)l.qkv_y, (uint64_t)l.o, (uint64_t)l.x2, (uint64_t)l.gu, (uint64_t)l.a,
                           (uint64_t)l.x_out, (uint64_t)l.h_qkv, (uint64_t)l.h_out, (uint64_t)l.h_gate_up,
                           (uint64_t)l.h_down, (uint64_t)l.attention.layer});
    }
    return k;
}

/* The graph of this step, the first of the list afterwards; NULL: none could be made. */
static decode_graph *find_graph(op_dev *d, decode_run *r)
{
    graph_key key = key_of(r);
    for (decode_graph **at = &r->graphs; *at; at = &(*at)->next)
        if ((*at)->key == key) {
            decode_graph *g = *at;
            *at = g->next;
            g->next = r->graphs;
            return r->graphs = g;
        }
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t rc = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal);
    if (rc == cudaSuccess) {
        launch_all(d, r);
        rc = cudaStreamEndCapture(d->stream, &graph);
    }
    if (rc == cudaSuccess)
        rc = cudaGraphInstantiate(&exec, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    if (rc != cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    r->graphs = new decode_graph{r->graphs, key, exec};
    free_graphs(r, MOST_GRAPHS);
    return r->graphs;
}

void cu_decode_step(op_dev *d)
{
    TRACE(d, "decode_step");
    decode_run *r = d->run;

    if (!r || !r->loaded || r->queued - r->taken >= DECODE_AHEAD) {
        dev_fail(d, cudaErrorInvalidValue, "decode_step: nothing loaded, or too many steps queued");
        return;
    }
    if (!need_partial(d, r))
        return;
    decode_graph *g = r->plain ? NULL : find_graph(d, r);
    if (g) {
        DEV_CHECK(d, cudaGraphLaunch(g->exec, d->stream));
    } else {
        r->plain = true;
        launch_all(d, r);
    }
    int slot = r->queued++ % DECODE_AHEAD;
    r->longest++;
    DEV_CHECK(d, cudaMemcpyAsync(r->host + (size_t)slot * r->room, r->step.tokens, r->pack.rows * 4ull,
                                 cudaMemcpyDeviceToHost, d->stream));
    DEV_CHECK(d, cudaEventRecord(r->done[slot], d->stream));
}

int cu_decode_take(op_dev *d, int32_t *tokens)
{
    decode_run *r = d->run;

    if (!r || !r->loaded || r->taken == r->queued)
        return -EINVAL;
    int slot = r->taken++ % DECODE_AHEAD;
    DEV_CHECK(d, cudaEventSynchronize(r->done[slot]));
    memcpy(tokens, r->host + (size_t)slot * r->room, r->pack.rows * 4ull);
    return d->status == cudaSuccess ? 0 : -EIO;
}
