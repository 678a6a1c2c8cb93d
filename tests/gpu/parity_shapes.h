/*
 * parity.c's checks of what real models, jobs and packs have and the usual world has not: other widths, heads
 * and vocabularies, ranks that are no multiple of 8, segments of one row and of several slices, no adapters
 * at all; arguments left out or given twice; values that are not finite; many rows of decode; uploads,
 * read-only adapters, and rows whose elements are numbered past 2^31.
 */
#ifndef DTX_PARITY_SHAPES_H
#define DTX_PARITY_SHAPES_H

static void report_bits(const struct world *w, const char *what, int differ)
{
    char name[192];
    snprintf(name, sizeof name, "%s %s, bits", w->s.name, what);
    report(name, differ, 0);
}

static void *copy_of(struct side *s, const void *p, size_t n)
{
    void *q = take(s, n * (size_t)s->ops->act_bytes);
    s->ops->copy(s->dev, q, p, n * (size_t)s->ops->act_bytes);
    return q;
}

/* Are n values of two buffers of the GPU the same? */
static bool same_act(const void *a, const void *b, size_t n)
{
    float *x = get_act(&gpu, a, n), *y = get_act(&gpu, b, n);
    bool same = memcmp(x, y, n * sizeof *x) == 0;
    free(x);
    free(y);
    return same;
}

/* ---- arguments that are NULL, or the same as another ---- */

static void bias_alone(struct world *w)
{
    struct op_linear shape = linear_for(&w->s, 0, NULL, NULL);
    size_t R = (size_t)w->gpu_pack.rows, in = (size_t)shape.in, out = (size_t)shape.out;
    float *W = random_floats(in * out, 0.05f, true), *bias = random_floats(out, 1, true),
          *x = random_rows(&w->gpu_pack, in, 1);
    void *y[2];
    for (int i = 0; i < 2; i++) {
        struct side *s = i ? &gpu : &cpu;
        const struct op_pack *p = i ? &w->gpu_pack : &w->cpu_pack;
        struct op_linear l = linear_for(&w->s, 0, put_weights(s, W, in * out), put_weights(s, bias, out));
        y[i] = poisoned(s, R * out);
        s->ops->linear(s->dev, p, &l, put_act(s, x, R * in), NULL, y[i],
                       take(s, s->ops->linear_h_floats(p, &l) * 4));
    }
    compare_act(w, "linear qkv, bias alone", y[0], y[1], out, 6e-3, false);
    free(W);
    free(bias);
    free(x);
}

/* The GPU against itself: what is left out or done in place changes no bit of the rest. */
static void linear_ways(struct world *w)
{
    struct op_linear l = linear_for(&w->s, 3, NULL, NULL);
    const struct op_pack *p = &w->gpu_pack;
    size_t R = (size_t)p->rows, in = (size_t)l.in, out = (size_t)l.out;
    float *W = random_floats(in * out, 0.05f, true), *x = random_rows(p, in, 1),
          *add = random_rows(p, out, 1), *dy = random_rows(p, out, 1);
    void *d_x = put_act(&gpu, x, R * in), *d_add = put_act(&gpu, add, R * out),
         *d_dy = put_act(&gpu, dy, R * out), *y = poisoned(&gpu, R * out), *dx = poisoned(&gpu, R * in);
    float *h = take(&gpu, gpu.ops->linear_h_floats(p, &l) * 4);
    l.W = put_weights(&gpu, W, in * out);
    gpu.ops->linear(gpu.dev, p, &l, d_x, d_add, y, h);
    void *place = copy_of(&gpu, d_add, R * out);
    gpu.ops->linear(gpu.dev, p, &l, d_x, place, place, h);
    report_bits(w, "linear out, add is y", !same_act(y, place, R * out));
    int differ = 0;
    float *g[2][4] = {{0}};
    for (int i = 0; i < 2; i++) { /* without dx, too */
        for (int j = 0; j < w->n_jobs; j++)
            if (w->grads[1][j])
                gpu.ops->zero(gpu.dev, w->grads[1][j], w->floats[j] * 4);
        gpu.ops->linear_back(gpu.dev, p, &l, d_dy, d_x, h, i ? NULL : dx);
        for (int j = 0; j < w->n_jobs; j++)
            g[i][j] = w->grads[1][j] ? get_f32(&gpu, w->grads[1][j], w->floats[j]) : NULL;
    }
    for (int j = 0; j < w->n_jobs; j++) {
        differ |= g[0][j] && memcmp(g[0][j], g[1][j], w->floats[j] * 4) != 0;
        free(g[0][j]);
        free(g[1][j]);
    }
    report_bits(w, "linear_back out without dx, dA dB", differ);
    free(W);
    free(x);
    free(add);
    free(dy);
}

static void norm_ways(struct world *w)
{
    size_t R = (size_t)w->gpu_pack.rows, H = (size_t)w->s.hidden, F = (size_t)w->s.ffn;
    float *x = random_rows(&w->gpu_pack, H, 2), *g = random_floats(H, 1, true),
          *dy = random_rows(&w->gpu_pack, H, 1), *add = random_rows(&w->gpu_pack, H, 1),
          *gu = random_rows(&w->gpu_pack, 2 * F, 3), *df = random_rows(&w->gpu_pack, F, 1);
    void *alone[2];
    for (int i = 0; i < 2; i++) {
        struct side *s = i ? &gpu : &cpu;
        const struct op_pack *p = i ? &w->gpu_pack : &w->cpu_pack;
        void *d_x = put_act(s, x, R * H), *d_g = put_weights(s, g, H), *d_dy = put_act(s, dy, R * H);
        float *rstd = take(s, R * 4);
        alone[i] = poisoned(s, R * H);
        s->ops->rmsnorm(s->dev, p, d_x, d_g, w->s.hidden, 1e-5f, copy_of(s, d_x, R * H), rstd);
        s->ops->rmsnorm_back(s->dev, p, d_dy, d_x, d_g, rstd, w->s.hidden, NULL, alone[i]);
        if (!i)
            continue;
        void *d_add = put_act(s, add, R * H), *to = poisoned(s, R * H), *d_gu = put_act(s, gu, R * 2 * F),
             *d_df = put_act(s, df, R * F), *dgu = poisoned(s, R * 2 * F);
        s->ops->rmsnorm_back(s->dev, p, d_dy, d_x, d_g, rstd, w->s.hidden, d_add, to);
        s->ops->rmsnorm_back(s->dev, p, d_dy, d_x, d_g, rstd, w->s.hidden, d_add, d_add);
        report_bits(w, "rmsnorm_back, add is dx", !same_act(to, d_add, R * H));
        s->ops->swiglu_back(s->dev, p, d_df, d_gu, w->s.ffn, dgu);
        s->ops->swiglu_back(s->dev, p, d_df, d_gu, w->s.ffn, d_gu);
        report_bits(w, "swiglu_back in place", !same_act(dgu, d_gu, R * 2 * F));
    }
    compare_act(w, "rmsnorm_back, nothing to add", alone[0], alone[1], H, 3e-3, true);
    free(x);
    free(g);
    free(dy);
    free(add);
    free(gu);
    free(df);
}

static struct op_attention attention_for(const struct world *w)
{
    return (struct op_attention){
        w->s.heads, w->s.kv_heads, w->s.head_dim, 2, 1, 1.f / sqrtf((float)w->s.head_dim)};
}

static void attention_ways(struct world *w)
{
    struct op_attention a = attention_for(w);
    const struct op_pack *p = &w->gpu_pack;
    size_t R = (size_t)p->rows, Q = (size_t)(a.heads * a.head_dim),
           LD = Q + 2 * (size_t)(a.kv_heads * a.head_dim);
    float *qkv = random_rows(p, LD, 2), *table = random_floats(MOST_ROWS * (size_t)a.head_dim, 1, false);
    for (int i = 0; i < MOST_ROWS * a.head_dim; i += a.head_dim) /* cosines and sines of anything */
        for (int k = 0; k < a.head_dim / 2; k++) {
            float angle = 3 * table[i + k];
            table[i + k] = cosf(angle);
            table[i + a.head_dim / 2 + k] = sinf(angle);
        }
    void *d_qkv = put_act(&gpu, qkv, R * LD), *o = poisoned(&gpu, R * Q), *bare = poisoned(&gpu, R * Q);
    float *t = put_raw(&gpu, table, MOST_ROWS * (size_t)a.head_dim * 4);
    gpu.ops->attention(gpu.dev, p, &a, d_qkv, o, take(&gpu, R * (size_t)a.heads * 4));
    gpu.ops->attention(gpu.dev, p, &a, d_qkv, bare, NULL);
    report_bits(w, "attention without lse", !same_act(o, bare, R * Q));
    gpu.ops->rope(gpu.dev, p, &a, t, false, d_qkv);
    gpu.ops->rope(gpu.dev, p, &a, t, true, d_qkv);
    float *back = get_act(&gpu, d_qkv, R * LD);
    char name[96];
    snprintf(name, sizeof name, "%s rope there and back", w->s.name);
    report(name, rel_error(qkv, back, R, LD, p->seq_of_row), 6e-3);
    free(back);
    free(qkv);
    free(table);
}

static void head_ways(struct world *w)
{
    const struct op_pack *p = &w->gpu_pack;
    size_t R = (size_t)p->rows, H = (size_t)w->s.hidden, V = (size_t)w->s.vocab;
    float *W = random_floats(V * H, 0.2f, true), *x = random_rows(p, H, 1);
    void *d_W = put_weights(&gpu, W, V * H), *d_x = put_act(&gpu, x, R * H), *dx = poisoned(&gpu, R * H);
    double loss[2][4] = {{1, 2, 3, 4}, {1, 2, 3, 4}}; /* added to */
    for (int i = 0; i < 2; i++) {
        void *d_loss = put_raw(&gpu, loss[i], sizeof loss[i]);
        gpu.ops->head_loss(gpu.dev, p, d_x, d_W, w->s.vocab, w->s.hidden, d_loss, i ? NULL : dx);
        gpu.ops->download(gpu.dev, loss[i], d_loss, sizeof loss[i]);
    }
    report_bits(w, "head_loss without dx, loss", memcmp(loss[0], loss[1], sizeof loss[0]) != 0);
    struct op_pack none = *p; /* nothing labelled; the device's table is not looked at then */
    none.n_labels = 0;
    void *d_loss = put_raw(&gpu, loss[0], sizeof loss[0]);
    struct op_seg segs[8];
    memcpy(segs, p->segs, (size_t)p->n_segs * sizeof *segs);
    for (int i = 0; i < p->n_segs; i++)
        segs[i].labels = 0;
    none.segs = segs;
    dx = poisoned(&gpu, R * H);
    gpu.ops->head_loss(gpu.dev, &none, d_x, d_W, w->s.vocab, w->s.hidden, d_loss, dx);
    gpu.ops->download(gpu.dev, loss[1], d_loss, sizeof loss[1]);
    float *zero = get_act(&gpu, dx, R * H);
    int differ = memcmp(loss[0], loss[1], sizeof loss[0]) != 0;
    for (size_t i = 0; i < R * H; i++)
        differ |= zero[i] != 0;
    report_bits(w, "head_loss without labels", differ);
    free(zero);
    free(W);
    free(x);
}

static void check_ways(struct world *w)
{
    bias_alone(w);
    linear_ways(w);
    norm_ways(w);
    attention_ways(w);
    head_ways(w);
}

/* ---- alone and among others: what check_invariance leaves out ---- */

struct seen { /* of the rows [first, first + rows) */
    float *o, *dqkv, *dx;
    double loss;
};

static struct seen look(struct world *w, const struct op_pack *p, int slot, const float *qkv,
                        const float *dout, const float *x, const void *W, size_t first, size_t rows)
{
    struct op_attention a = attention_for(w);
    size_t R = (size_t)p->rows, H = (size_t)w->s.hidden, Q = (size_t)(a.heads * a.head_dim),
           LD = Q + 2 * (size_t)(a.kv_heads * a.head_dim), act = (size_t)gpu.ops->act_bytes;
    void *d_qkv = put_act(&gpu, qkv, R * LD), *o = poisoned(&gpu, R * Q), *dqkv = poisoned(&gpu, R * LD),
         *dx = poisoned(&gpu, R * H);
    float *lse = take(&gpu, R * (size_t)a.heads * 4);
    double loss[4] = {0};
    void *d_loss = put_raw(&gpu, loss, sizeof loss);
    gpu.ops->attention(gpu.dev, p, &a, d_qkv, o, lse);
    gpu.ops->attention_back(gpu.dev, p, &a, put_act(&gpu, dout, R * Q), o, d_qkv, lse, NULL, dqkv);
    gpu.ops->head_loss(gpu.dev, p, put_act(&gpu, x, R * H), W, w->s.vocab, w->s.hidden, d_loss, dx);
    gpu.ops->download(gpu.dev, loss, d_loss, sizeof loss);
    return (struct seen){.o = get_act(&gpu, (char *)o + first * Q * act, rows * Q),
                         .dqkv = get_act(&gpu, (char *)dqkv + first * LD * act, rows * LD),
                         .dx = get_act(&gpu, (char *)dx + first * H * act, rows * H),
                         .loss = loss[slot]};
}

static void seen_free(struct seen *s)
{
    free(s->o);
    free(s->dqkv);
    free(s->dx);
}

static int seen_differ(const struct world *w, const struct seen *a, const struct seen *b, size_t rows)
{
    size_t Q = (size_t)(w->s.heads * w->s.head_dim), LD = Q + 2 * (size_t)(w->s.kv_heads * w->s.head_dim);
    return (memcmp(a->o, b->o, rows * Q * 4) != 0) + 2 * (memcmp(a->dqkv, b->dqkv, rows * LD * 4) != 0) +
           4 * (memcmp(a->dx, b->dx, rows * (size_t)w->s.hidden * 4) != 0) +
           8 * (memcmp(&a->loss, &b->loss, sizeof a->loss) != 0);
}

static void check_alone(struct world *w, int job)
{
    const struct op_seg *seg = &w->gpu_pack.segs[job];
    size_t rows = (size_t)pack_padded(&w->gpu_base, seg->rows), first = (size_t)seg->row0,
           H = (size_t)w->s.hidden, V = (size_t)w->s.vocab, Q = (size_t)(w->s.heads * w->s.head_dim),
           LD = Q + 2 * (size_t)(w->s.kv_heads * w->s.head_dim);
    float *qkv = random_rows(&w->gpu_pack, LD, 2), *dout = random_rows(&w->gpu_pack, Q, 1),
          *x = random_rows(&w->gpu_pack, H, 1), *W = random_floats(V * H, 0.2f, true);
    void *d_W = put_weights(&gpu, W, V * H), *g = w->grads[1][job];
    struct op_pack alone;
    build_pack(w, &gpu, &alone, 1, job);
    w->grads[1][job] = g;
    struct seen a = look(w, &w->gpu_pack, job, qkv, dout, x, d_W, first, rows),
                b = look(w, &alone, 0, qkv + first * LD, dout + first * Q, x + first * H, d_W, 0, rows);
    char what[64];
    snprintf(what, sizeof what, "attention, head: job %d alone", job);
    report_bits(w, what, seen_differ(w, &a, &b, rows));
    seen_free(&a);
    seen_free(&b);
    pack_free(&alone, &w->gpu_base);
    free(qkv);
    free(dout);
    free(x);
    free(W);
}

static void check_all_alone(struct world *w)
{
    for (int j = 0; j < w->n_jobs; j++)
        check_alone(w, j);
}

/* ---- values that are not finite stay in their segment ---- */

static void spoil(const struct world *w, int job, size_t width, float *v)
{
    const struct op_seg *seg = &w->gpu_pack.segs[job];
    for (size_t i = 0; i < (size_t)seg->rows * width; i++)
        v[(size_t)seg->row0 * width + i] = i % 3 ? NAN : INFINITY;
}

/* Rows of other jobs of two [R, width] buffers of the GPU. */
static int others_differ(const struct world *w, int job, size_t width, const float *a, const float *b)
{
    int differ = 0;
    for (int j = 0; j < w->n_jobs; j++) {
        const struct op_seg *seg = &w->gpu_pack.segs[j];
        size_t at = (size_t)seg->row0 * width, n = (size_t)pack_padded(&w->gpu_base, seg->rows) * width;
        differ |= j != job && memcmp(a + at, b + at, n * sizeof *a) != 0;
    }
    return differ;
}

static void linear_contained(struct world *w, int job, int which)
{
    struct op_linear l = linear_for(&w->s, which, NULL, NULL);
    const struct op_pack *p = &w->gpu_pack;
    size_t R = (size_t)p->rows, in = (size_t)l.in, out = (size_t)l.out;
    float *W = random_floats(in * out, 0.05f, true), *x = random_rows(p, in, 1), *dy = random_rows(p, out, 1),
          *y[2], *dx[2], *g[2][4] = {{0}};
    l.W = put_weights(&gpu, W, in * out);
    for (int i = 0; i < 2; i++) {
        if (i) {
            spoil(w, job, in, x);
            spoil(w, job, out, dy);
        }
        void *d_x = put_act(&gpu, x, R * in), *d_y = poisoned(&gpu, R * out), *d_dx = poisoned(&gpu, R * in);
        float *h = take(&gpu, gpu.ops->linear_h_floats(p, &l) * 4);
        for (int j = 0; j < w->n_jobs; j++)
            if (w->grads[1][j])
                gpu.ops->zero(gpu.dev, w->grads[1][j], w->floats[j] * 4);
        gpu.ops->linear(gpu.dev, p, &l, d_x, NULL, d_y, h);
        gpu.ops->linear_back(gpu.dev, p, &l, put_act(&gpu, dy, R * out), d_x, h, d_dx);
        y[i] = get_act(&gpu, d_y, R * out);
        dx[i] = get_act(&gpu, d_dx, R * in);
        for (int j = 0; j < w->n_jobs; j++)
            g[i][j] = w->grads[1][j] ? get_f32(&gpu, w->grads[1][j], w->floats[j]) : NULL;
    }
    int differ = others_differ(w, job, out, y[0], y[1]) + 2 * others_differ(w, job, in, dx[0], dx[1]),
        grads = 0;
    for (int j = 0; j < w->n_jobs; j++) {
        grads |= j != job && g[0][j] && memcmp(g[0][j], g[1][j], w->floats[j] * 4) != 0;
        free(g[0][j]);
        free(g[1][j]);
    }
    char what[64];
    snprintf(what, sizeof what, "linear %d: NaN of job %d stays there", which, job);
    report_bits(w, what, differ + 4 * grads);
    for (int i = 0; i < 2; i++) {
        free(y[i]);
        free(dx[i]);
    }
    free(W);
    free(x);
    free(dy);
}

static void check_contained(struct world *w)
{
    const struct op_pack *p = &w->gpu_pack;
    int job = w->usual ? 2 : 1;
    size_t R = (size_t)p->rows, H = (size_t)w->s.hidden, V = (size_t)w->s.vocab,
           Q = (size_t)(w->s.heads * w->s.head_dim), LD = Q + 2 * (size_t)(w->s.kv_heads * w->s.head_dim);
    for (int k = 0; k < 4; k++)
        linear_contained(w, job, k);
    float *qkv = random_rows(p, LD, 2), *dout = random_rows(p, Q, 1), *x = random_rows(p, H, 1),
          *W = random_floats(V * H, 0.2f, true);
    void *d_W = put_weights(&gpu, W, V * H);
    int other = job ? 0 : 1;
    struct seen clean = look(w, p, other, qkv, dout, x, d_W, 0, R);
    spoil(w, job, LD, qkv);
    spoil(w, job, Q, dout);
    spoil(w, job, H, x);
    struct seen bad = look(w, p, other, qkv, dout, x, d_W, 0, R),
                own = look(w, p, job, qkv, dout, x, d_W, 0, R);
    report_bits(w, "attention, head: NaN stays there",
                others_differ(w, job, Q, clean.o, bad.o) +
                    2 * others_differ(w, job, LD, clean.dqkv, bad.dqkv) +
                    4 * others_differ(w, job, H, clean.dx, bad.dx) + 8 * (clean.loss != bad.loss));
    report_bits(w, "head: a loss of NaN is one", isfinite(own.loss));
    seen_free(&clean);
    seen_free(&bad);
    seen_free(&own);
    free(qkv);
    free(dout);
    free(x);
    free(W);
}

/* ---- logits, and decode, of more rows than one block takes ---- */

static void check_logits(struct world *w)
{
    enum { R = 40, N = 19 };
    size_t H = (size_t)w->s.hidden, V = (size_t)w->s.vocab;
    float *W = random_floats(V * H, 0.1f, true), *x = random_floats(R * H, 1, true), *got[3];
    int32_t rows[N];
    for (int i = 0; i < N; i++)
        rows[i] = i * 7 % R;            /* in any order */
    for (int run = 0; run < 3; run++) { /* cpu, gpu, gpu with row 11 alone */
        struct side *s = run ? &gpu : &cpu;
        int n = run == 2 ? 1 : N;
        float *logits = take(s, (size_t)N * V * 4);
        s->ops->logits(s->dev, put_act(s, x, R * H), rows + (run == 2 ? 11 : 0), n, put_weights(s, W, V * H),
                       w->s.vocab, w->s.hidden, logits);
        got[run] = get_f32(s, logits, (size_t)n * V);
    }
    char name[96];
    snprintf(name, sizeof name, "%s logits of %d rows", w->s.name, N);
    report(name, rel_error(got[0], got[1], N, V, NULL), 1e-4);
    report_bits(w, "logits, 1 row = among 19", memcmp(got[1] + 11 * V, got[2], V * 4) != 0);
    for (int i = 0; i < 3; i++)
        free(got[i]);
    free(W);
    free(x);
}

/* A decode pack of `n` rows from `first`; each of jobs' adapters in turn, none for some. */
static void many_pack(struct world *w, struct side *s, struct op_pack *p, int first, int n)
{
    struct dtx_base b = {.ops = s->ops, .dev = s->dev, .dims = w->gpu_base.dims};
    pack_new(p, &b, (struct pack_room){64, 64, 64, 1}, true, NULL);
    p->dims = &w->gpu_base.dims;
    for (int i = first; i < first + n; i++) {
        const struct job *j = &w->jobs[i % w->n_jobs];
        int32_t id = i;
        struct op_adapter a = {.rank = j->rank, .targets = j->targets, .scale = 0.5f + (float)(i % 3)};
        if (a.rank)
            a.w = put_raw(s, j->w, w->floats[i % w->n_jobs] * 4);
        pack_segment(p, &b, a.rank ? &a : NULL, 0, 0);
        pack_sequence(p, &id, NULL, 1, i);
    }
    s->ops->pack_prepare(s->dev, p);
}

static void check_decode_many(struct world *w)
{
    enum { N = 21, ONE = 18 };
    for (int which = 0; which < 4; which++) {
        struct op_linear l = linear_for(&w->s, which, NULL, NULL);
        size_t in = (size_t)l.in, out = (size_t)l.out;
        float *W = random_floats(in * out, 0.05f, true), *bias = random_floats(out, 1, true),
              *x = random_floats(N * in, 1, true), *add = random_floats(N * out, 1, true), *y[3];
        for (int run = 0; run < 3; run++) { /* cpu, gpu, gpu with one row alone */
            struct side *s = run ? &gpu : &cpu;
            size_t first = run == 2 ? ONE : 0, n = run == 2 ? 1 : N;
            struct op_pack p;
            struct dtx_base b = {.ops = s->ops, .dev = s->dev};
            many_pack(w, s, &p, (int)first, (int)n);
            l.W = put_weights(s, W, in * out);
            l.bias = which ? NULL : put_weights(s, bias, out);
            void *to = poisoned(s, n * out);
            s->ops->linear(s->dev, &p, &l, put_act(s, x + first * in, n * in),
                           which % 2 ? put_act(s, add + first * out, n * out) : NULL, to,
                           take(s, s->ops->linear_h_floats(&p, &l) * 4));
            y[run] = get_act(s, to, n * out);
            pack_free(&p, &b);
        }
        char name[96];
        snprintf(name, sizeof name, "%s linear %d, decode of %d rows", w->s.name, which, N);
        report(name, rel_error(y[0], y[1], N, out, NULL), 6e-3);
        snprintf(name, sizeof name, "linear %d, decode: 1 row = among %d", which, N);
        report_bits(w, name, memcmp(y[1] + ONE * out, y[2], out * 4) != 0);
        for (int i = 0; i < 3; i++)
            free(y[i]);
        free(W);
        free(bias);
        free(x);
        free(add);
    }
}

/* ---- other shapes and other jobs ---- */

static const struct job narrow[4] = {{.rank = 1, .targets = 0x7f, .seqs = 1, .len = {2}},
                                     {.rank = 3, .targets = 0x11, .seqs = 2, .len = {127, 1}},
                                     {.rank = 16, .targets = 0x7f, .seqs = 1, .len = {65}},
                                     {.rank = 12, .targets = 0x48, .seqs = 3, .len = {2, 64, 63}}},
                        wide[4] = {{.rank = 1, .targets = 0x7f, .seqs = 1, .len = {2}},
                                   {.rank = 100, .targets = 0x6c, .seqs = 1, .len = {129}},
                                   {.rank = 256, .targets = 0x7f, .seqs = 3, .len = {64, 63, 1}},
                                   {.rank = 17, .targets = 0x2, .seqs = 1, .len = {191}}},
                        tall[4] = {{.rank = 16, .targets = 0x7f, .seqs = 2, .len = {1500, 1100}},
                                   {.rank = 5, .targets = 0x7f, .seqs = 1, .len = {1025}},
                                   {.rank = 40, .targets = 0x52, .seqs = 3, .len = {700, 323, 1}},
                                   {.rank = 0, .seqs = 1, .len = {33}}},
                        mixed[4] = {{.rank = 512, .targets = 0x33, .dry = true, .seqs = 1, .len = {257}},
                                    {.rank = 16, .targets = 0x7f, .seqs = 2, .len = {1300, 90}},
                                    {.rank = 0, .seqs = 1, .len = {129}},
                                    {.rank = 24, .targets = 0x5e, .dry = true, .seqs = 2, .len = {640, 7}}},
                        none[4] = {{.rank = 0, .seqs = 2, .len = {70, 59}},
                                   {.rank = 0, .seqs = 1, .len = {5}},
                                   {.rank = 0, .seqs = 1, .len = {128}},
                                   {.rank = 0, .seqs = 1, .len = {1}}},
                        high[4] = {{.rank = 128, .targets = 0x7f, .seqs = 1, .len = {65}},
                                   {.rank = 4, .targets = 0x7f, .dry = true, .seqs = 1, .len = {2}},
                                   {.rank = 0, .seqs = 1, .len = {128}},
                                   {.rank = 40, .targets = 0x2d, .seqs = 2, .len = {100, 60}}},
                        dry[4] = {{.rank = 200, .targets = 0x7f, .dry = true, .seqs = 1, .len = {7}},
                                  {.rank = 16, .targets = 0x5a, .seqs = 1, .len = {128}},
                                  {.rank = 21, .targets = 0x7f, .seqs = 2, .len = {1, 100}},
                                  {.rank = 1, .targets = 0x7f, .seqs = 1, .len = {129}}},
                        low[4] = {{.rank = 1, .targets = 0x7f, .seqs = 1, .len = {9}},
                                  {.rank = 3, .targets = 0x7f, .dry = true, .seqs = 1, .len = {129}},
                                  {.rank = 5, .targets = 0x68, .seqs = 1, .len = {40}},
                                  {.rank = 16, .targets = 0x15, .seqs = 1, .len = {1}}},
                        middle[4] = {{.rank = 32, .targets = 0x7f, .seqs = 2, .len = {65, 30}},
                                     {.rank = 8, .targets = 0x7f, .seqs = 1, .len = {1100}},
                                     {.rank = 17, .targets = 0x72, .dry = true, .seqs = 1, .len = {130}},
                                     {.rank = 31, .targets = 0x24, .seqs = 1, .len = {64}}};

static const struct planned {
    struct shape shape;
    const struct job *jobs; /* NULL: the usual ones */
    bool tiles;             /* see check_tiles */
} worlds[] = {
    {{"[64,172,d8]", 64, 172, 8, 4, 8, 512, 0.f}, NULL, false},
    {{"[256,384,d128]", 256, 384, 2, 1, 128, 300, 0.1f}, NULL, false},
    {{"[192,512,d32]", 192, 512, 6, 6, 32, 1000, 0.25f}, NULL, false},
    {{"[512,1376,d64]", 512, 1376, 8, 2, 64, 4000, 0.f}, NULL, false},
    {{"[512,1024,d128]", 512, 1024, 4, 4, 128, 32000, 0.1f}, NULL, false},
    {{"[640,1712,d80]", 640, 1712, 8, 8, 80, 3000, 0.f}, NULL, false},
    {{"[100,172,d16 4:1 narrow]", 100, 172, 4, 1, 16, 37, 0.1f}, narrow, false},
    {{"[896,1216,d64 7:1 wide]", 896, 1216, 14, 2, 64, 2001, 0.f}, wide, false},
    {{"[256,768,d48 6:1 narrow]", 256, 768, 6, 1, 48, 1001, 0.3f}, narrow, false},
    {{"[320,960,d96 2:1 wide]", 320, 960, 4, 2, 96, 997, 0.5f}, wide, false},
    {{"[104,344,d120 bare]", 104, 344, 3, 3, 120, 515, 0.f}, none, false},
    {{"[128,256,d64 tall]", 128, 256, 4, 2, 64, 1003, 0.f}, tall, false},
    {{"[128,192,d64 8:1 tall]", 128, 192, 8, 1, 64, 251, 0.f}, tall, false},
    {{"[192,256,d128 3:1 wide]", 192, 256, 3, 1, 128, 509, 0.f}, wide, false},
    {{"[136,200,d112 tall]", 136, 200, 2, 2, 112, 257, 0.2f}, tall, false},
    {{"[192,320,d128 8:1 tall]", 192, 320, 8, 1, 128, 129, 0.1f}, tall, false},
    {{"[1024,2824,d64 mixed]", 1024, 2824, 16, 8, 64, 300, 0.1f}, mixed, false},
    {{"[64,11008,d32 narrow]", 64, 11008, 2, 2, 32, 32001, 0.1f}, narrow, false},
    /* tails of products: jobs of other ranks, with dropout and without, side by side in one cluster */
    {{"[136,264,d8 17:1 high]", 136, 264, 17, 1, 8, 64, 0.25f}, high, true},
    {{"[200,136,d40 5:1 dry]", 200, 136, 5, 1, 40, 64, 0.1f}, dry, true},
    {{"[264,392,d8 1:1 low]", 264, 392, 1, 1, 8, 64, 0.5f}, low, true},
    {{"[64,100,d8 2:1 low]", 64, 100, 8, 4, 8, 64, 0.3f}, low, true},
    {{"[64,72,d8 1:1 high]", 64, 72, 1, 1, 8, 64, 0.3f}, high, true},
    /* wide tiles of lora_dy, the last of each part with 8 columns */
    {{"[64,4104,d8 2:1 middle]", 64, 4104, 8, 4, 8, 64, 0.1f}, middle, false},
    {{"[72,4360,d8 1:1 high]", 72, 4360, 1, 1, 8, 64, 0.f}, high, false},
};

/* ---- tiles of other shapes ---- */

enum { TILES = 7 /* shapes that DTX_CUDA_TILES knows */ };

/* y, dx and all gradients of a linear, one after another. */
static float *linear_values(struct world *w, int which, size_t *n)
{
    struct op_linear l = linear_for(&w->s, which, NULL, NULL);
    const struct op_pack *p = &w->gpu_pack;
    size_t R = (size_t)p->rows, in = (size_t)l.in, out = (size_t)l.out, at = R * (in + out);
    float *W = random_floats(in * out, 0.05f, true), *x = random_rows(p, in, 1), *dy = random_rows(p, out, 1);
    void *d_x = put_act(&gpu, x, R * in), *y = poisoned(&gpu, R * out), *dx = poisoned(&gpu, R * in);
    float *h = take(&gpu, gpu.ops->linear_h_floats(p, &l) * 4);
    l.W = put_weights(&gpu, W, in * out);
    for (int j = 0; j < w->n_jobs; j++)
        if (w->grads[1][j])
            gpu.ops->zero(gpu.dev, w->grads[1][j], w->floats[j] * 4);
    gpu.ops->linear(gpu.dev, p, &l, d_x, NULL, y, h);
    gpu.ops->linear_back(gpu.dev, p, &l, put_act(&gpu, dy, R * out), d_x, h, dx);
    *n = at;
    for (int j = 0; j < w->n_jobs; j++)
        *n += w->floats[j];
    float *all = calloc(*n, sizeof *all), *part[2] = {get_act(&gpu, y, R * out), get_act(&gpu, dx, R * in)};
    memcpy(all, part[0], R * out * 4);
    memcpy(all + R * out, part[1], R * in * 4);
    for (int j = 0; j < w->n_jobs; at += w->floats[j++])
        if (w->grads[1][j])
            gpu.ops->download(gpu.dev, all + at, w->grads[1][j], w->floats[j] * 4);
    free(part[0]);
    free(part[1]);
    free(W);
    free(x);
    free(dy);
    return all;
}

/* Tiles of every shape give the bits of those that are taken. */
static void check_tiles(struct shape s, const struct job *jobs)
{
    struct side usual = gpu;
    uint64_t from = draws;
    float *want[4];
    for (int t = -1; t < TILES; t++) {
        char what[64], number[16];
        struct world w;
        snprintf(number, sizeof number, "%d", t);
        if (t >= 0 && (setenv("DTX_CUDA_TILES", number, 1) || open_side(&gpu, gpu_kind)))
            exit(2);
        draws = from;
        world_of(&w, s, jobs);
        for (int k = 0; k < 4; k++) {
            size_t n;
            float *got = linear_values(&w, k, &n);
            snprintf(what, sizeof what, "linear %d, tiles of shape %d", k, t);
            if (t >= 0)
                report_bits(&w, what, memcmp(want[k], got, n * sizeof *got) != 0);
            if (t < 0)
                want[k] = got;
            else
                free(got);
        }
        world_done(&w);
        if (t >= 0)
            dtx_device_close(gpu.device);
    }
    unsetenv("DTX_CUDA_TILES");
    gpu = usual;
    for (int k = 0; k < 4; k++)
        free(want[k]);
}

static void check_all_tiles(void)
{
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++)
        if (worlds[i].tiles)
            check_tiles(worlds[i].shape, worlds[i].jobs);
}

/* ---- memory ---- */

/* Uploads of more than the staging memory, small ones between them, copies, zeros, weights from an odd place.
 */
static void check_memory(void)
{
    enum { BIG = 100 * 1000 * 1000 + 13, SMALL = 3000, PIECE = 1000 };
    unsigned char *big = malloc(BIG), *got = malloc(BIG);
    for (size_t i = 0; i < BIG; i++)
        big[i] = (unsigned char)rng_u32(seed_key, (uint32_t)i);
    char *d = take(&gpu, BIG), *e = take(&gpu, BIG), *f = take(&gpu, (size_t)SMALL * PIECE);
    int differ = 0;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < SMALL / 2; i++)
            gpu.ops->upload(gpu.dev, f + i * PIECE, big + i * PIECE, PIECE);
        gpu.ops->upload(gpu.dev, d, big, BIG);
        for (size_t i = SMALL / 2; i < SMALL; i++)
            gpu.ops->upload(gpu.dev, f + i * PIECE, big + i * PIECE, PIECE);
        gpu.ops->copy(gpu.dev, e, d, BIG);
        gpu.ops->zero(gpu.dev, d + 5, 1001);
        gpu.ops->download(gpu.dev, got, e, BIG);
        differ |= memcmp(got, big, BIG) != 0;
        gpu.ops->download(gpu.dev, got, f, (size_t)SMALL * PIECE);
        differ |= 2 * (memcmp(got, big, (size_t)SMALL * PIECE) != 0);
        gpu.ops->download(gpu.dev, got, d, 2000);
        for (size_t i = 0; i < 2000; i++)
            differ |= 4 * (got[i] != (i >= 5 && i < 1006 ? 0 : big[i]));
        memset(got, 0, BIG);
    }
    report("uploads, copies, zeros", differ, 0);
    free(big);
    free(got);

    enum { N = 20 * 1000 * 1000 + 7, AT = 5 };
    static const uint32_t odd[] = {0x7f800000, 0xff800000, 0x00000001, 0x80000001, 0x007fffff,
                                   0x3f808000, 0x3f818000, 0x3f808001, 0x7f7fffff, 0x80000000};
    float *v = random_floats(N, 3, false);
    memcpy(v + 100, odd, sizeof odd);
    void *w = take(&gpu, (AT + (size_t)N) * (size_t)gpu.ops->weight_bytes);
    gpu.ops->upload_weights(gpu.dev, w, AT, v, N);
    float *back = get_act(&gpu, (char *)w + AT * gpu.ops->weight_bytes, N);
    differ = 0;
    for (size_t i = 0; i < N; i++) {
        float want = gpu.ops->weight_bytes == 2 ? round_bf16(v[i]) : v[i];
        differ += memcmp(&want, &back[i], 4) != 0;
    }
    report("weights in bf16: values that differ", differ, 0);
    free(v);
    free(back);
    give_back();
}

/* An adapter that is only read keeps a rounded copy: it must follow uploads, copies and updates. */
static void check_read_adapters(void)
{
    struct world w;
    world_of(&w, (struct shape){"[64,172,d8]", 64, 172, 8, 4, 8, 512, 0.f}, NULL);
    struct op_linear shape = linear_for(&w.s, 1, NULL, NULL);
    size_t in = (size_t)shape.in, out = (size_t)shape.out, n = w.floats[0];
    float *W = random_floats(in * out, 0.05f, true), *x = random_floats(128 * in, 1, true),
          *one = random_floats(n, 0.2f, true), *two = random_floats(n, 0.2f, true), *y[2][4];
    for (int i = 0; i < 2; i++) {
        struct side *s = i ? &gpu : &cpu;
        struct dtx_base b = {.ops = s->ops, .dev = s->dev, .dims = w.gpu_base.dims};
        float *a = put_raw(s, w.jobs[0].w, n * 4), *g = put_raw(s, one, n * 4);
        double loss = 1;
        struct op_linear l = linear_for(&w.s, 1, put_weights(s, W, in * out), NULL);
        for (int k = 0; k < 4; k++) {
            struct op_optim o = {.w = a, .g = g, .n = n, .kind = DTX_SGD, .lr = 0.5, .bias1 = 1, .bias2 = 1};
            if (k == 1)
                s->ops->upload(s->dev, a, one, n * 4);
            if (k == 2)
                s->ops->copy(s->dev, a, put_raw(s, two, n * 4), n * 4);
            if (k == 3)
                s->ops->optim(s->dev, &o, 1, put_raw(s, &loss, sizeof loss),
                              take(s, sizeof(struct op_outcome)));
            struct op_adapter ad = {.rank = w.jobs[0].rank, .targets = 0x7f, .scale = 2, .w = a};
            struct op_pack p;
            int32_t ids[128] = {0};
            pack_new(&p, &b, (struct pack_room){256, 2, 2, 1}, false, NULL);
            p.dims = &w.gpu_base.dims;
            pack_segment(&p, &b, &ad, 0, 0);
            pack_sequence(&p, ids, NULL, 128, 0);
            s->ops->pack_prepare(s->dev, &p);
            void *to = poisoned(s, 128 * out);
            s->ops->linear(s->dev, &p, &l, put_act(s, x, 128 * in), NULL, to,
                           take(s, s->ops->linear_h_floats(&p, &l) * 4));
            y[i][k] = get_act(s, to, 128 * out);
            pack_free(&p, &b);
        }
    }
    static const char *const how[] = {"loaded", "uploaded anew", "copied over", "updated"};
    for (int k = 0; k < 4; k++) {
        char name[96];
        snprintf(name, sizeof name, "an adapter that is only read, %s", how[k]);
        report(name, rel_error(y[0][k], y[1][k], 128, out, NULL), 6e-3);
        free(y[0][k]);
        free(y[1][k]);
    }
    free(W);
    free(x);
    free(one);
    free(two);
    world_done(&w);
}

/* A small job behind one whose elements are numbered past 2^31: as alone.  20 GB; on the CPU a few MB. */
static void check_far_rows(void)
{
    enum { NEAR = 200 };
    size_t act = (size_t)gpu.ops->act_bytes, far = act == 2 ? 131072 : 1024;
    struct dtx_device_info info;
    dtx_device_info(gpu.device, &info);
    if (act == 2 && getenv("PARITY_QUICK")) /* compute-sanitizer looks at each access */
        return;
    if (act == 2 && info.mem_total - info.mem_used + info.mem_own < 40ull << 30) {
        printf("far rows: left out, for want of memory\n");
        return;
    }
    struct world w = {.s = {"[64,14336,d16]", 64, 14336, 4, 4, 16, 64, 0.f}};
    w.gpu_base = (struct dtx_base){.ops = gpu.ops, .dev = gpu.dev, .dims = dims_of(&w.s)};
    struct op_linear l = linear_for(&w.s, 1, NULL, NULL);
    size_t in = (size_t)l.in, out = (size_t)l.out, n = lora_floats(&w.gpu_base.dims, 0x7f, 8);
    float *W = random_floats(in * out, 0.05f, true), *x = random_floats((far + NEAR) * in, 1, true),
          *a = random_floats(n, 0.1f, true), *got[2][4];
    int32_t *ids = calloc(far, sizeof *ids);
    l.W = put_weights(&gpu, W, in * out);
    for (int alone = 0; alone < 2; alone++) {
        struct op_pack p;
        float *g = NULL;
        pack_new(&p, &w.gpu_base, (struct pack_room){(int)far + 1024, 2, 2, 1}, false, NULL);
        p.dims = &w.gpu_base.dims;
        for (int j = alone; j < 2; j++) {
            struct op_adapter ad = {.rank = 8, .targets = 0x7f, .scale = 1, .w = put_raw(&gpu, a, n * 4)};
            ad.g = g = take(&gpu, n * 4);
            gpu.ops->zero(gpu.dev, g, n * 4);
            pack_segment(&p, &w.gpu_base, &ad, j, 1);
            pack_sequence(&p, ids, NULL, j ? NEAR : (int)far, 0);
        }
        size_t rows = (size_t)pack_padded(&w.gpu_base, p.rows), first = alone ? 0 : far;
        for (; p.rows < (int32_t)rows; p.rows++) {
            p.ids[p.rows] = p.seq_of_row[p.rows] = -1;
            p.pos[p.rows] = 0;
        }
        if (gpu.ops->pack_prepare(gpu.dev, &p))
            printf("pack_prepare failed\n");
        void *d_x = take(&gpu, rows * in * act), *y = take(&gpu, rows * out * act),
             *dx = take(&gpu, rows * in * act), *f = take(&gpu, rows * out / 2 * act);
        float *h = take(&gpu, gpu.ops->linear_h_floats(&p, &l) * 4);
        void *values = put_act(&gpu, x + (alone ? far * in : 0), (far * (size_t)!alone + NEAR) * in);
        gpu.ops->zero(gpu.dev, d_x, rows * in * act);
        gpu.ops->copy(gpu.dev, d_x, values, (far * (size_t)!alone + NEAR) * in * act);
        gpu.ops->linear(gpu.dev, &p, &l, d_x, NULL, y, h);
        gpu.ops->swiglu(gpu.dev, &p, y, w.s.ffn, f);
        gpu.ops->linear_back(gpu.dev, &p, &l, y, d_x, h, dx);
        got[alone][0] = get_act(&gpu, (char *)y + first * out * act, NEAR * out);
        got[alone][1] = get_act(&gpu, (char *)f + first * out / 2 * act, NEAR * out / 2);
        got[alone][2] = get_act(&gpu, (char *)dx + first * in * act, NEAR * in);
        got[alone][3] = get_f32(&gpu, g, n);
        pack_free(&p, &w.gpu_base);
        give_back();
        l.W = put_weights(&gpu, W, in * out);
    }
    report_bits(&w, act == 2 ? "a job behind 131,072 rows" : "a job behind 1,024 rows",
                (memcmp(got[0][0], got[1][0], NEAR * out * 4) != 0) +
                    2 * (memcmp(got[0][1], got[1][1], NEAR * out / 2 * 4) != 0) +
                    4 * (memcmp(got[0][2], got[1][2], NEAR * in * 4) != 0) +
                    8 * (memcmp(got[0][3], got[1][3], n * 4) != 0));
    for (int i = 0; i < 8; i++)
        free(got[i / 4][i % 4]);
    free(ids);
    free(W);
    free(x);
    free(a);
    give_back();
}

#endif
