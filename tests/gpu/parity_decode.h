/*
 * parity.c's checks of decode: the choice of tokens (equal to the CPU's), and whole steps queued one after
 * another (decode_load, decode_step, decode_take) against the CPU and, to the bit, against the operations one
 * by one.
 */
#ifndef DTX_PARITY_DECODE_H
#define DTX_PARITY_DECODE_H

/* Tokens of many ways to choose, on one side. */
static int32_t *choices(struct side *s, const float *logits, const struct op_choice *how, int n, int vocab)
{
    int32_t *out = malloc((size_t)n * sizeof *out);
    void *l = put_raw(s, logits, (size_t)n * (size_t)vocab * sizeof *logits),
         *d = take(s, (size_t)n * sizeof *out);
    memset(out, 0xee, (size_t)n * sizeof *out);
    s->ops->upload(s->dev, d, out, (size_t)n * sizeof *out);
    s->ops->choose(s->dev, l, n, vocab, how, d);
    if (s->ops->download(s->dev, out, d, (size_t)n * sizeof *out))
        printf("device error: %s\n", s->ops->error(s->dev));
    return out;
}

static void check_choose(int vocab)
{
    enum { N = 96 };
    static const double heat[] = {0, 0.05, 0.7, 1, 3, 1e-30}, nucleus[] = {1, 0.95, 0.5, 1e-9};
    static const int top[] = {0, 1, 40, 3000};
    struct op_choice how[N];
    float *logits = random_floats((size_t)N * (size_t)vocab, 9, false);
    int32_t *out[2], differ = 0, greedy = 0;
    for (int i = 0; i < N; i++) {
        how[i] =
            (struct op_choice){heat[i % 6], nucleus[i / 6 % 4], top[i / 24], (uint64_t)i, (uint64_t)i * 7};
        float *l = logits + (size_t)i * (size_t)vocab;
        if (i % 5 == 1) /* many equal ones */
            for (int v = 0; v < vocab; v++)
                l[v] = truncf(l[v]);
        if (i % 16 == 3)
            for (int v = 0; v < vocab; v += 3)
                l[v] = v % 2 ? NAN : -INFINITY;
        if (i == 40)
            for (int v = 0; v < vocab; v++)
                l[v] = v == 17 ? INFINITY : v % 2 ? NAN : -INFINITY;
    }
    out[0] = choices(&cpu, logits, how, N, vocab);
    out[1] = choices(&gpu, logits, how, N, vocab);
    for (int i = 0; i < N; i++) {
        struct op_choice best = {0};
        int32_t *b = choices(&cpu, logits + (size_t)i * (size_t)vocab, &best, 1, vocab);
        greedy += out[0][i] == *b;
        free(b);
        differ += out[0][i] != out[1][i];
        if (out[0][i] != out[1][i])
            printf("  row %d: cpu %d, gpu %d\n", i, out[0][i], out[1][i]);
    }
    char name[96];
    snprintf(name, sizeof name, "choose, vocab %d: tokens that differ", vocab);
    report(name, differ, 0);
    snprintf(name, sizeof name, "choose, vocab %d: rows all alike", vocab);
    report(name, greedy == N, 0);
    free(out[0]);
    free(out[1]);
    free(logits);
}

static void check_choices(void)
{
    check_choose(300);
    check_choose(32000);
    check_choose(128256);
}

/* ---- whole steps */

enum { DR_ROWS = 5, DR_MOST = 37, DR_CAP = 700, DR_LAYERS = 2, DR_STEPS = 5 };
enum dr_way { DR_QUEUED /* one ahead */, DR_SINGLE /* loaded anew for each step */, DR_OPS /* one by one */ };

struct dr_model { /* host weights */
    float *qkv, *out, *gate_up, *down, *norm, *rope, *embed, *head, *bias, *cache[DR_MOST];
};

struct dr_result {
    int32_t tokens[DR_STEPS][DR_MOST];
    float *logits; /* of the last step */
    float *cache;  /* of the last row, afterwards */
};

struct dr_run {
    struct side *s;
    struct world *w;
    int first, n, max_rank;
    struct op_layer layer[DR_LAYERS];
    struct op_decode d;
    struct op_choice choice[DR_MOST];
    int32_t id[DR_MOST], pos[DR_MOST];
    void *kv[DR_MOST];
    struct op_adapter adapter[DR_MOST]; /* rank 0: none */
};

static void dr_make(struct dr_run *r, const struct dr_model *m)
{
    struct side *s = r->s;
    const struct shape *c = &r->w->s;
    int H = c->hidden, F = c->ffn, hd = c->head_dim, Q = c->heads * hd, KV = c->kv_heads * hd,
        LD = Q + 2 * KV;
    size_t R = (size_t)r->n;
    void *qkv = put_weights(s, m->qkv, (size_t)LD * (size_t)H),
         *out = put_weights(s, m->out, (size_t)H * (size_t)Q),
         *gu = put_weights(s, m->gate_up, (size_t)2 * (size_t)F * (size_t)H),
         *down = put_weights(s, m->down, (size_t)H * (size_t)F), *norm = put_weights(s, m->norm, (size_t)H),
         *bias = put_weights(s, m->bias, (size_t)LD), *x = poisoned(s, R * (size_t)H);
    struct op_layer l = {
        .attention = {c->heads, c->kv_heads, hd, DR_LAYERS, 0, 1.f / sqrtf((float)hd)},
        .qkv = {.W = qkv,
                .bias = bias,
                .in = H,
                .out = LD,
                .n_parts = 3,
                .part = {{DTX_Q, 0, Q}, {DTX_K, Q, KV}, {DTX_V, Q + KV, KV}}},
        .out = {.W = out, .in = Q, .out = H, .n_parts = 1, .part = {{DTX_O, 0, H}}},
        .gate_up = {.W = gu, .in = H, .out = 2 * F, .n_parts = 2, .part = {{DTX_GATE, 0, F}, {DTX_UP, F, F}}},
        .down = {.W = down, .in = F, .out = H, .n_parts = 1, .part = {{DTX_DOWN, 0, H}}},
        .norm1 = norm,
        .norm2 = norm,
        .rope = put_raw(s, m->rope, (size_t)DR_CAP * (size_t)hd * 4),
        .eps = 1e-5f,
        .x = x,
        .x_out = x,
        .xn = poisoned(s, R * (size_t)H),
        .qkv_y = poisoned(s, R * (size_t)LD),
        .o = poisoned(s, R * (size_t)Q),
        .x2 = poisoned(s, R * (size_t)H),
        .gu = poisoned(s, R * (size_t)(2 * F)),
        .a = poisoned(s, R * (size_t)F)};
    struct op_pack widest = {.rows = r->n, .max_rank = r->max_rank, .decode = true};
    size_t h = s->ops->linear_h_floats(&widest, &l.qkv) * sizeof(float);
    l.h_qkv = take(s, h);
    l.h_out = take(s, h);
    l.h_gate_up = take(s, h);
    l.h_down = take(s, h);
    for (int i = 0; i < DR_LAYERS; i++) {
        r->layer[i] = l;
        r->layer[i].attention.layer = r->layer[i].qkv.layer = r->layer[i].out.layer =
            r->layer[i].gate_up.layer = r->layer[i].down.layer = i;
    }
    r->d = (struct op_decode){.layer = r->layer,
                              .layers = DR_LAYERS,
                              .hidden = H,
                              .vocab = c->vocab,
                              .embed = put_weights(s, m->embed, (size_t)c->vocab * (size_t)H),
                              .norm = norm,
                              .head = put_weights(s, m->head, (size_t)c->vocab * (size_t)H),
                              .eps = 1e-5f,
                              .x = x,
                              .x_last = x,
                              .xn = l.xn,
                              .logits = take(s, R * (size_t)c->vocab * sizeof(float)),
                              .tokens = take(s, R * sizeof(int32_t)),
                              .choice = r->choice};
    for (int i = 0; i < r->n; i++)
        r->kv[i] = put_act(s, m->cache[r->first + i], (size_t)(2 * DR_LAYERS) * DR_CAP * (size_t)KV);
}

static void dr_pack(struct dr_run *r, struct op_pack *p)
{
    struct dtx_base b = {.ops = r->s->ops, .dev = r->s->dev, .dims = r->w->gpu_base.dims};
    pack_new(p, &b, (struct pack_room){DR_MOST, DR_MOST, DR_MOST, 1}, true, NULL);
    p->dims = &r->w->gpu_base.dims;
    for (int i = 0; i < r->n; i++) {
        pack_segment(p, &b, r->adapter[i].rank ? &r->adapter[i] : NULL, 0, 0);
        struct op_seq *q = pack_sequence(p, &r->id[i], NULL, 1, r->pos[i]);
        q->kv = r->kv[i];
        q->kv_cap = DR_CAP;
    }
}

/* A step by the operations that are tested one by one elsewhere. */
static void dr_ops(struct dr_run *r, struct op_pack *p)
{
    const struct dtx_ops *o = r->s->ops;
    struct op_dev *d = r->s->dev;
    int32_t rows[DR_MOST];
    for (int i = 0; i < r->n; i++)
        rows[i] = i;
    o->pack_prepare(d, p);
    o->embed(d, p, r->d.embed, r->d.hidden, r->d.x);
    for (int i = 0; i < DR_LAYERS; i++) {
        struct layer_run one = {.s = r->s, .p = *p, .l = r->layer[i]};
        if (o->decode_layer)
            o->decode_layer(d, p, &r->layer[i]);
        else
            primitives(&one, r->w->s.hidden, r->w->s.ffn);
    }
    o->rmsnorm(d, p, r->d.x_last, r->d.norm, r->d.hidden, r->d.eps, r->d.xn, NULL);
    o->logits(d, r->d.xn, rows, r->n, r->d.head, r->d.vocab, r->d.hidden, r->d.logits);
    o->choose(d, r->d.logits, r->n, r->d.vocab, r->choice, r->d.tokens);
    struct dtx_base b = {.ops = o, .dev = d};
    pack_free(p, &b);
}

/* Until the next is loaded, a pack is the device's. */
static void dr_loaded(const struct dr_run *r, const struct op_pack *p)
{
    static struct op_pack last[2];
    struct op_pack *mine = &last[r->s == &gpu];
    struct dtx_base b = {.ops = r->s->ops, .dev = r->s->dev};
    pack_free(mine, &b);
    *mine = *p;
}

static void dr_steps(struct dr_run *r, int steps, enum dr_way way, struct dr_result *out)
{
    const struct dtx_ops *o = r->s->ops;
    struct op_pack p = {0};
    int rc = 0, queued = 0;
    for (int step = 0; step < steps; step++) {
        int32_t *t = out->tokens[step];
        if (step == 0 || way != DR_QUEUED)
            dr_pack(r, &p);
        if (way == DR_OPS) {
            dr_ops(r, &p);
            rc |= o->download(r->s->dev, t, r->d.tokens, (size_t)r->n * sizeof *t);
        } else {
            if (step == 0 || way == DR_SINGLE) {
                rc |= o->decode_load(r->s->dev, &p, &r->d);
                dr_loaded(r, &p);
                queued = step;
            }
            while (queued < steps && queued <= step + (way == DR_QUEUED)) {
                o->decode_step(r->s->dev);
                queued++;
            }
            rc |= o->decode_take(r->s->dev, t);
        }
        for (int i = 0; i < r->n; i++) {
            r->id[i] = t[i];
            r->pos[i]++;
            r->choice[i].number++;
        }
    }
    if (rc)
        printf("device error: %s\n", o->error(r->s->dev));
    out->logits = get_f32(r->s, r->d.logits, (size_t)r->n * (size_t)r->d.vocab);
    out->cache = get_act(r->s, r->kv[r->n - 1],
                         (size_t)(2 * DR_LAYERS * DR_CAP * r->w->s.kv_heads * r->w->s.head_dim));
}

static struct dr_result dr_go(struct world *w, struct side *s, const struct dr_model *m, int first, int n,
                              int steps, enum dr_way way)
{
    static const int pos[DR_ROWS] = {0, 5, 127, 254, 600};
    struct dr_run r = {.s = s, .w = w, .first = first, .n = n};
    struct dr_result out = {0};
    for (int i = 0; i < n; i++) {
        int which = first + i, job = which % w->n_jobs;
        r.id[i] = 3 + which;
        r.pos[i] = pos[which % DR_ROWS] + which / DR_ROWS;
        r.choice[i] =
            (struct op_choice){which % 2 ? 0.8 : 0, which == 3 ? 0.9 : 1, which == 1 ? 20 : 0, 5, 11};
        if (w->jobs[job].rank && which != 1)
            r.adapter[i] =
                (struct op_adapter){.rank = w->jobs[job].rank,
                                    .targets = w->jobs[job].targets,
                                    .scale = 1.5f,
                                    .w = put_raw(s, w->jobs[job].w, w->floats[job] * sizeof(float))};
        r.max_rank = r.adapter[i].rank > r.max_rank ? r.adapter[i].rank : r.max_rank;
    }
    dr_make(&r, m);
    dr_steps(&r, steps, way, &out);
    return out;
}

static void dr_equal(struct world *w, const char *what, const struct dr_result *a, const struct dr_result *b,
                     int first, int n)
{
    size_t vocab = (size_t)w->s.vocab, rows = (size_t)n;
    size_t cache = (size_t)(2 * DR_LAYERS * DR_CAP * w->s.kv_heads * w->s.head_dim);
    int differ = 0;
    for (int step = 0; step < DR_STEPS; step++)
        differ |= memcmp(a->tokens[step] + first, b->tokens[step], rows * sizeof(int32_t)) != 0;
    differ += 2 * (memcmp(a->logits + (size_t)first * vocab, b->logits, rows * vocab * sizeof(float)) != 0);
    differ += 4 * (memcmp(a->cache, b->cache, cache * sizeof(float)) != 0);
    char name[96];
    snprintf(name, sizeof name, "%s %s, bits", w->s.name, what);
    report(name, differ, 0);
}

static struct dr_model dr_model_new(const struct world *w, int rows)
{
    size_t H = (size_t)w->s.hidden, F = (size_t)w->s.ffn, hd = (size_t)w->s.head_dim,
           Q = (size_t)w->s.heads * hd, KV = (size_t)w->s.kv_heads * hd, V = (size_t)w->s.vocab;
    struct dr_model m = {.qkv = random_floats((Q + 2 * KV) * H, 0.05f, true),
                         .out = random_floats(H * Q, 0.05f, true),
                         .gate_up = random_floats(2 * F * H, 0.05f, true),
                         .down = random_floats(H * F, 0.05f, true),
                         .norm = random_floats(H, 1, true),
                         .rope = random_floats(DR_CAP * hd, 1, false),
                         .embed = random_floats(V * H, 1, true),
                         .head = random_floats(V * H, 0.1f, true),
                         .bias = random_floats(Q + 2 * KV, 0.5f, true)};
    for (int i = 0; i < rows; i++)
        m.cache[i] = random_floats(2 * DR_LAYERS * DR_CAP * KV, 1, true);
    return m;
}

static void dr_model_free(struct dr_model *m)
{
    free_all((float *[]){m->qkv, m->out, m->gate_up, m->down, m->norm, m->rope, m->embed, m->head, m->bias},
             9);
    free_all(m->cache, (int)(sizeof m->cache / sizeof m->cache[0]));
}

static void dr_result_free(struct dr_result *r)
{
    free(r->logits);
    free(r->cache);
}

static void check_decode_run(struct world *w)
{
    size_t V = (size_t)w->s.vocab;
    struct dr_model m = dr_model_new(w, DR_ROWS);
    struct dr_result want = dr_go(w, &cpu, &m, 0, DR_ROWS, 1, DR_QUEUED),
                     one = dr_go(w, &gpu, &m, 0, DR_ROWS, 1, DR_QUEUED),
                     ops = dr_go(w, &gpu, &m, 0, DR_ROWS, DR_STEPS, DR_OPS),
                     queued = dr_go(w, &gpu, &m, 0, DR_ROWS, DR_STEPS, DR_QUEUED),
                     single = dr_go(w, &gpu, &m, 0, DR_ROWS, DR_STEPS, DR_SINGLE),
                     alone = dr_go(w, &gpu, &m, 4, 1, DR_STEPS, DR_QUEUED);
    char name[96];
    snprintf(name, sizeof name, "%s decode step, logits", w->s.name);
    report(name, rel_error(want.logits, one.logits, DR_ROWS, V, NULL), 2.5e-2);
    dr_equal(w, "decode steps queued = op by op", &ops, &queued, 0, DR_ROWS);
    dr_equal(w, "decode steps loaded each time", &ops, &single, 0, DR_ROWS);
    dr_equal(w, "decode steps, 1 row = among 5", &queued, &alone, 4, 1);
    struct dr_result *all[] = {&want, &one, &ops, &queued, &single, &alone};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        dr_result_free(all[i]);
    dr_model_free(&m);
}

/* Any number of rows: each as if it were alone. */
static void check_decode_rows(struct world *w)
{
    static const int numbers[] = {1, 2, 8, 9, 16, 17, 32, 33};
    if (w->s.head_dim != 64 && w->s.head_dim != 80) /* two of the usual worlds are enough */
        return;
    struct dr_model m = dr_model_new(w, DR_MOST);
    struct dr_result all = dr_go(w, &gpu, &m, 0, DR_MOST, DR_STEPS, DR_QUEUED);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        int n = numbers[i], first = DR_MOST - n;
        struct dr_result some = dr_go(w, &gpu, &m, first, n, DR_STEPS, DR_QUEUED);
        char name[48];
        snprintf(name, sizeof name, "decode steps, %d rows = among %d", n, DR_MOST);
        dr_equal(w, name, &all, &some, first, n);
        dr_result_free(&some);
    }
    dr_result_free(&all);
    dr_model_free(&m);
}

/* Widths of real models. */
static void check_decode_shapes(void)
{
    static const struct shape shapes[] = {
        {"[2048,1024,d64]", 2048, 1024, 32, 8, 64, 500, 0.f},
        {"[512,11008,d128]", 512, 11008, 4, 2, 128, 500, 0.f},
        {"[4096,2816,d128]", 4096, 2816, 32, 32, 128, 500, 0.f},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        struct world w;
        world_of(&w, shapes[i], NULL);
        check_decode_run(&w);
        world_done(&w);
    }
}

#endif
