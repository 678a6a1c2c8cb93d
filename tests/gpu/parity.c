/*
 * Every CUDA operation against the CPU one, on random inputs and poisoned outputs.
 *
 *   parity [SEED [DEVICE [WORLDS [CHECKS]]]]
 *
 * exit 0: all within tolerance; prints one line a check: name, relative L2 error, bound.  WORLDS, CHECKS:
 * part of the name of those to do alone, like d32 and linear (see worlds, checks).  Before the last line: a
 * digest of all that was read back from DEVICE, the same whenever the same is computed again.
 *
 * Both devices get the same numbers, rounded to bf16 first; the error is |gpu - cpu| / |cpu| over real rows.
 * Padding must be exactly zero where ops.h says so.  Row invariance is checked to the bit: a segment alone =
 * among others.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/model.h"
#include "kernels/rng.h"

struct side {
    struct dtx_device *device;
    const struct dtx_ops *ops;
    struct op_dev *dev;
};

static struct side cpu, gpu;
static uint64_t seed_key, draws, digest;
static int failures;
static const char *gpu_kind = "cuda:0";

/* Device memory of a world, given back at its end. */
static struct {
    struct side *s;
    void *p;
} held[1 << 14];
static size_t n_held;

static void *take(struct side *s, size_t bytes)
{
    void *p = s->ops->alloc(s->dev, bytes);
    if (!p || n_held == sizeof held / sizeof *held) {
        printf("no device memory for %zu bytes\n", bytes);
        exit(2);
    }
    held[n_held].s = s;
    held[n_held++].p = p;
    return p;
}

static void give_back(void)
{
    while (n_held) {
        n_held--;
        held[n_held].s->ops->free(held[n_held].s->dev, held[n_held].p);
    }
}

static float uniform(void)
{
    return (float)(2.0 * rng_double(seed_key, draws++) - 1.0);
}

static float round_bf16(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &u, 4);
    return x;
}

static void free_all(float **v, int n)
{
    for (int i = 0; i < n; i++)
        free(v[i]);
}

static float *random_floats(size_t n, float scale, bool bf16_values)
{
    float *v = malloc((n + 1) * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = bf16_values ? round_bf16(scale * uniform()) : scale * uniform();
    return v;
}

/* Host floats -> device activations (or the other way), in the device's own width. */
static void *put_act(struct side *s, const float *v, size_t n)
{
    void *p = take(s, n * (size_t)s->ops->act_bytes);
    if (s->ops->act_bytes == 4) {
        s->ops->upload(s->dev, p, v, n * 4);
    } else {
        uint16_t *h = malloc(n * 2);
        for (size_t i = 0; i < n; i++) {
            uint32_t u;
            memcpy(&u, &v[i], 4);
            h[i] = (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
        }
        s->ops->upload(s->dev, p, h, n * 2);
        free(h);
    }
    return p;
}

static void *put_raw(struct side *s, const void *v, size_t bytes)
{
    void *p = take(s, bytes);
    s->ops->upload(s->dev, p, v, bytes);
    return p;
}

static void *put_weights(struct side *s, const float *v, size_t n)
{
    void *p = take(s, n * (size_t)s->ops->weight_bytes);
    s->ops->upload_weights(s->dev, p, 0, v, n);
    return p;
}

static float *get_act(struct side *s, const void *p, size_t n)
{
    float *v = malloc((n + 1) * sizeof *v);
    if (s->ops->act_bytes == 4) {
        s->ops->download(s->dev, v, p, n * 4);
    } else {
        uint16_t *h = malloc(n * 2);
        if (s->ops->download(s->dev, h, p, n * 2))
            printf("device error: %s\n", s->ops->error(s->dev));
        for (size_t i = 0; i < n; i++) {
            uint32_t u = (uint32_t)h[i] << 16;
            memcpy(&v[i], &u, 4);
        }
        free(h);
    }
    return v;
}

static float *get_f32(struct side *s, const void *p, size_t n)
{
    float *v = malloc((n + 1) * sizeof *v);
    if (s->ops->download(s->dev, v, p, n * 4))
        printf("device error: %s\n", s->ops->error(s->dev));
    return v;
}

static void *poisoned(struct side *s, size_t n)
{
    float *v = malloc(n * sizeof *v);
    for (size_t i = 0; i < n; i++)
        v[i] = NAN;
    void *p = put_act(s, v, n);
    free(v);
    return p;
}

static void report(const char *name, double error, double bound)
{
    bool good = error <= bound;
    failures += !good;
    printf("%-44s %.3e  (at most %.0e)  %s\n", name, error, bound, good ? "ok" : "FAILED");
}

/* Relative L2 error of b against a over the rows the filter keeps (NULL: all). */
static double rel_error(const float *a, const float *b, size_t rows, size_t width, const int32_t *seq_of_row)
{
    double num = 0, den = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < width && (!seq_of_row || seq_of_row[r] >= 0); i++) {
            double d = (double)b[r * width + i] - (double)a[r * width + i];
            if (!isfinite(d))
                return INFINITY;
            num += d * d;
            den += (double)a[r * width + i] * (double)a[r * width + i];
        }
    return sqrt(num / (den > 0 ? den : 1));
}

static double padding_sum(const float *v, size_t rows, size_t width, const int32_t *seq_of_row)
{
    double sum = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t i = 0; i < width && seq_of_row[r] < 0; i++)
            sum += isnan(v[r * width + i]) ? INFINITY : fabs(v[r * width + i]);
    return sum;
}

/* ---- a pack of several jobs ---- */

enum { MOST_ROWS = 2048 /* of a sequence */ };

struct shape {
    const char *name;
    int hidden, ffn, heads, kv_heads, head_dim, vocab;
    float dropout;
};

struct job {
    int rank;
    unsigned targets;
    bool dry; /* without dropout, whatever the shape says */
    int seqs, len[4];
    float *w; /* host */
};

struct world {
    struct shape s;
    struct dtx_base cpu_base, gpu_base; /* only what pack.c needs */
    struct op_pack cpu_pack, gpu_pack;
    struct job jobs[4];
    int n_jobs;
    bool usual;         /* these are the usual jobs */
    float *grads[2][4]; /* device */
    size_t floats[4];
};

static struct lora_dims dims_of(const struct shape *s)
{
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    return (struct lora_dims){.layers = 2,
                              .in = {s->hidden, s->hidden, s->hidden, q, s->hidden, s->hidden, s->ffn},
                              .out = {q, kv, kv, s->hidden, s->ffn, s->ffn, s->hidden}};
}

static void build_pack(struct world *w, struct side *side, struct op_pack *p, int which, int only)
{
    struct dtx_base *align = &w->gpu_base; /* the coarser alignment, for both */
    struct pack_room room = {.rows = 8192, .seqs = 32, .segs = 8, .labels = 8192};
    uint64_t saved = draws;
    draws = 1000000; /* the same ids on both sides */
    pack_new(p, align, room, false, NULL);
    for (int j = 0; j < w->n_jobs; j++) {
        struct op_adapter a = {.rank = w->jobs[j].rank,
                               .targets = w->jobs[j].targets,
                               .scale = 0.7f + (float)j,
                               .dropout = w->jobs[j].dry ? 0 : w->s.dropout};
        if (only >= 0 && j != only) {
            for (int q = 0; q < w->jobs[j].seqs; q++)
                draws += (uint64_t)w->jobs[j].len[q];
            continue;
        }
        if (a.rank) {
            a.w = put_raw(side, w->jobs[j].w, w->floats[j] * sizeof(float));
            a.g = take(side, w->floats[j] * sizeof(float));
            side->ops->zero(side->dev, a.g, w->floats[j] * sizeof(float));
            w->grads[which][j] = a.g;
        }
        pack_segment(p, align, a.rank ? &a : NULL, only >= 0 ? 0 : j, 0.01f * (float)(j + 1));
        for (int q = 0; q < w->jobs[j].seqs; q++) {
            int n = w->jobs[j].len[q];
            static int32_t ids[MOST_ROWS], labels[MOST_ROWS + 1];
            for (int i = 0; i < n; i++) {
                ids[i] = (int32_t)((uniform() * 0.5f + 0.5f) * (float)(w->s.vocab - 1));
                labels[i] = i % 3 ? ids[i] : -100;
            }
            labels[n] = -100;
            struct op_seq *s = pack_sequence(p, ids, labels, n, 0);
            s->drop_key = rng_key((uint64_t)j, (uint64_t)q);
        }
    }
    struct dtx_base b = {
        .ops = side->ops, .dev = side->dev, .dims = w->gpu_base.dims, .device = side->device};
    int end = pack_padded(align, p->rows);
    for (; p->rows < end; p->rows++) {
        p->ids[p->rows] = -1;
        p->pos[p->rows] = 0;
        p->seq_of_row[p->rows] = -1;
    }
    p->dims = &w->gpu_base.dims;
    if (b.ops->pack_prepare(b.dev, p))
        printf("pack_prepare failed\n");
    draws = saved;
}

/* jobs [4], NULL: the usual ones */
static void world_of(struct world *w, struct shape s, const struct job *jobs)
{
    static const struct job as_usual[4] = {{.rank = 8, .targets = 0x7f, .seqs = 3, .len = {70, 1, 130}},
                                           {.rank = 0, .seqs = 1, .len = {33}},
                                           {.rank = 20, .targets = 0x25, .seqs = 2, .len = {200, 64}},
                                           {.rank = 64, .targets = 0x7f, .seqs = 1, .len = {128}}};
    *w = (struct world){.s = s, .n_jobs = 4, .usual = !jobs};
    memcpy(w->jobs, jobs ? jobs : as_usual, sizeof w->jobs);
    w->gpu_base = (struct dtx_base){.ops = gpu.ops, .dev = gpu.dev, .dims = dims_of(&s)};
    w->cpu_base = (struct dtx_base){.ops = cpu.ops, .dev = cpu.dev, .dims = dims_of(&s)};
    for (int j = 0; j < w->n_jobs; j++) {
        if (!w->jobs[j].rank)
            continue;
        w->floats[j] = lora_floats(&w->gpu_base.dims, w->jobs[j].targets, w->jobs[j].rank);
        w->jobs[j].w = random_floats(w->floats[j], 0.1f, true);
    }
    build_pack(w, &cpu, &w->cpu_pack, 0, -1);
    build_pack(w, &gpu, &w->gpu_pack, 1, -1);
}

static void world_done(struct world *w)
{
    pack_free(&w->cpu_pack, &w->cpu_base);
    pack_free(&w->gpu_pack, &w->gpu_base);
    for (int j = 0; j < w->n_jobs; j++)
        free(w->jobs[j].w);
    give_back();
}

/* Random rows, zeros in padding. */
static float *random_rows(const struct op_pack *p, size_t width, float scale)
{
    float *v = random_floats((size_t)p->rows * width, scale, true);
    for (int r = 0; r < p->rows; r++)
        if (p->seq_of_row[r] < 0)
            memset(v + (size_t)r * width, 0, width * sizeof *v);
    return v;
}

static void compare_act(const struct world *w, const char *op, const void *on_cpu, const void *on_gpu,
                        size_t width, double bound, bool zero_padding)
{
    char name[96];
    size_t n = (size_t)w->gpu_pack.rows * width;
    float *a = get_act(&cpu, on_cpu, n), *b = get_act(&gpu, on_gpu, n);
    snprintf(name, sizeof name, "%s %s", w->s.name, op);
    report(name, rel_error(a, b, (size_t)w->gpu_pack.rows, width, w->gpu_pack.seq_of_row), bound);
    if (zero_padding) {
        snprintf(name, sizeof name, "%s %s, padding", w->s.name, op);
        report(name, padding_sum(b, (size_t)w->gpu_pack.rows, width, w->gpu_pack.seq_of_row), 0);
    }
    free(a);
    free(b);
}

/* ---- checks ---- */

static void check_elementwise(struct world *w)
{
    size_t R = (size_t)w->gpu_pack.rows, H = (size_t)w->s.hidden, F = (size_t)w->s.ffn;
    float *E = random_floats((size_t)w->s.vocab * H, 1, true), *x = random_rows(&w->gpu_pack, H, 2),
          *g = random_floats(H, 1, true), *dy = random_rows(&w->gpu_pack, H, 1),
          *gu = random_rows(&w->gpu_pack, 2 * F, 3), *df = random_rows(&w->gpu_pack, F, 1);
    void *out[2][5], *rstd[2];
    struct side *sides[2] = {&cpu, &gpu};
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        const struct op_pack *p = i ? &w->gpu_pack : &w->cpu_pack;
        void *dx = put_act(s, x, R * H), *dg = put_weights(s, g, H), *ddy = put_act(s, dy, R * H),
             *dgu = put_act(s, gu, R * 2 * F), *ddf = put_act(s, df, R * F);
        for (int k = 0; k < 5; k++)
            out[i][k] = poisoned(s, R * (k == 4 ? 2 * F : k == 3 ? F : H));
        rstd[i] = take(s, R * 4);
        s->ops->embed(s->dev, p, put_weights(s, E, (size_t)w->s.vocab * H), w->s.hidden, out[i][0]);
        s->ops->rmsnorm(s->dev, p, dx, dg, w->s.hidden, 1e-5f, out[i][1], rstd[i]);
        s->ops->rmsnorm_back(s->dev, p, ddy, dx, dg, rstd[i], w->s.hidden, ddy, out[i][2]);
        s->ops->swiglu(s->dev, p, dgu, w->s.ffn, out[i][3]);
        s->ops->swiglu_back(s->dev, p, ddf, dgu, w->s.ffn, out[i][4]);
    }
    compare_act(w, "embed", out[0][0], out[1][0], H, 0, true);
    compare_act(w, "rmsnorm", out[0][1], out[1][1], H, 3e-3, true);
    compare_act(w, "rmsnorm_back", out[0][2], out[1][2], H, 3e-3, true);
    compare_act(w, "swiglu", out[0][3], out[1][3], F, 3e-3, true);
    compare_act(w, "swiglu_back", out[0][4], out[1][4], 2 * F, 3e-3, true);
    free_all((float *[]){E, x, g, dy, gu, df}, 6);
}

static void check_attention(struct world *w)
{
    struct op_attention a = {
        w->s.heads, w->s.kv_heads, w->s.head_dim, 2, 0, 1.f / sqrtf((float)w->s.head_dim)};
    size_t R = (size_t)w->gpu_pack.rows, Q = (size_t)(a.heads * a.head_dim),
           LD = Q + 2 * (size_t)(a.kv_heads * a.head_dim);
    float *qkv = random_rows(&w->gpu_pack, LD, 2), *dout = random_rows(&w->gpu_pack, Q, 1);
    float *table = malloc(MOST_ROWS * (size_t)a.head_dim * sizeof *table);
    void *rot[2], *o[2], *back[2], *turned[2], *lse[2];
    struct side *sides[2] = {&cpu, &gpu};
    for (int pos = 0; pos < MOST_ROWS; pos++)
        for (int i = 0; i < a.head_dim / 2; i++) {
            double angle = pos * pow(10000.0, -2.0 * i / a.head_dim);
            table[pos * a.head_dim + i] = (float)cos(angle);
            table[pos * a.head_dim + a.head_dim / 2 + i] = (float)sin(angle);
        }
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        const struct op_pack *p = i ? &w->gpu_pack : &w->cpu_pack;
        void *d_qkv = put_act(s, qkv, R * LD), *t = put_raw(s, table, MOST_ROWS * (size_t)a.head_dim * 4);
        rot[i] = put_act(s, qkv, R * LD);
        o[i] = poisoned(s, R * Q);
        back[i] = poisoned(s, R * LD);
        lse[i] = take(s, R * (size_t)a.heads * 4);
        s->ops->rope(s->dev, p, &a, t, false, rot[i]);
        s->ops->attention(s->dev, p, &a, d_qkv, o[i], lse[i]);
        turned[i] = poisoned(s, R * LD);
        void *d_dout = put_act(s, dout, R * Q);
        s->ops->attention_back(s->dev, p, &a, d_dout, o[i], d_qkv, lse[i], NULL, back[i]);
        s->ops->attention_back(s->dev, p, &a, d_dout, o[i], d_qkv, lse[i], t, turned[i]);
    }
    compare_act(w, "rope", rot[0], rot[1], LD, 3e-3, true);
    compare_act(w, "attention", o[0], o[1], Q, 5e-3, true);
    compare_act(w, "attention_back", back[0], back[1], LD, 1.5e-2, true);
    compare_act(w, "attention_back, rotated back", turned[0], turned[1], LD, 1.5e-2, true);
    free(qkv);
    free(dout);
    free(table);
}

static struct op_linear linear_for(const struct shape *s, int which, const void *W, const void *bias)
{
    int q = s->heads * s->head_dim, kv = s->kv_heads * s->head_dim;
    switch (which) {
    case 0:
        return (struct op_linear){.W = W,
                                  .bias = bias,
                                  .in = s->hidden,
                                  .out = q + 2 * kv,
                                  .layer = 1,
                                  .n_parts = 3,
                                  .part = {{DTX_Q, 0, q}, {DTX_K, q, kv}, {DTX_V, q + kv, kv}}};
    case 1:
        return (struct op_linear){.W = W,
                                  .in = s->hidden,
                                  .out = 2 * s->ffn,
                                  .layer = 1,
                                  .n_parts = 2,
                                  .part = {{DTX_GATE, 0, s->ffn}, {DTX_UP, s->ffn, s->ffn}}};
    case 3:
        return (struct op_linear){
            .W = W, .in = q, .out = s->hidden, .layer = 1, .n_parts = 1, .part = {{DTX_O, 0, s->hidden}}};
    default:
        return (struct op_linear){.W = W,
                                  .in = s->ffn,
                                  .out = s->hidden,
                                  .layer = 1,
                                  .n_parts = 1,
                                  .part = {{DTX_DOWN, 0, s->hidden}}};
    }
}

static void check_linear(struct world *w, int which)
{
    static const char *const names[] = {"qkv", "gate_up", "down", "out"};
    struct op_linear shape = linear_for(&w->s, which, NULL, NULL);
    size_t R = (size_t)w->gpu_pack.rows, in = (size_t)shape.in, out = (size_t)shape.out;
    float *W = random_floats(in * out, 0.05f, true), *bias = random_floats(out, 1, true),
          *x = random_rows(&w->gpu_pack, in, 1), *dy = random_rows(&w->gpu_pack, out, 1),
          *add = random_rows(&w->gpu_pack, out, 1);
    void *y[2], *dx[2];
    struct side *sides[2] = {&cpu, &gpu};
    char name[96];
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        const struct op_pack *p = i ? &w->gpu_pack : &w->cpu_pack;
        struct op_linear l = linear_for(&w->s, which, put_weights(s, W, in * out), put_weights(s, bias, out));
        void *d_x = put_act(s, x, R * in), *d_add = which == 1 ? NULL : put_act(s, add, R * out);
        float *h = take(s, s->ops->linear_h_floats(p, &l) * 4);
        for (int j = 0; j < w->n_jobs; j++)
            if (w->grads[i][j])
                s->ops->zero(s->dev, w->grads[i][j], w->floats[j] * 4);
        y[i] = poisoned(s, R * out);
        dx[i] = poisoned(s, R * in);
        s->ops->linear(s->dev, p, &l, d_x, d_add, y[i], h);
        s->ops->linear_back(s->dev, p, &l, put_act(s, dy, R * out), d_x, h, dx[i]);
    }
    snprintf(name, sizeof name, "linear %s", names[which]);
    compare_act(w, name, y[0], y[1], out, 6e-3, shape.n_parts != 3); /* bias reaches padding rows of qkv */
    snprintf(name, sizeof name, "linear_back %s dx", names[which]);
    compare_act(w, name, dx[0], dx[1], in, 8e-3, true);
    for (int j = 0; j < w->n_jobs; j++) {
        if (!w->grads[0][j])
            continue;
        float *a = get_f32(&cpu, w->grads[0][j], w->floats[j]),
              *b = get_f32(&gpu, w->grads[1][j], w->floats[j]);
        snprintf(name, sizeof name, "%s linear_back %s dA dB, rank %d", w->s.name, names[which],
                 w->jobs[j].rank);
        report(name, rel_error(a, b, 1, w->floats[j], NULL), 8e-3);
        free(a);
        free(b);
    }
    free(W);
    free(bias);
    free(x);
    free(dy);
    free(add);
}

/* The segment of a job alone in a pack: y, dx and gradients equal to the bit.  Alone, ranks up to 16 run in
 * kernels of their own; beside a job of a higher rank they do not.  A segment without an adapter is the
 * product alone there, added to zeros beside others: two choices of algorithms. */
static void check_invariance(struct world *w, int job, int which)
{
    struct op_linear shape = linear_for(&w->s, which, NULL, NULL);
    size_t in = (size_t)shape.in, out = (size_t)shape.out, n = w->floats[job];
    const struct op_seg *seg = &w->gpu_pack.segs[job];
    size_t rows = (size_t)pack_padded(&w->gpu_base, seg->rows), first = (size_t)seg->row0,
           R = (size_t)w->gpu_pack.rows;
    float *W = random_floats(in * out, 0.05f, true), *x = random_rows(&w->gpu_pack, in, 1),
          *dy = random_rows(&w->gpu_pack, out, 1);
    struct op_linear l = linear_for(&w->s, which, put_weights(&gpu, W, in * out), NULL);
    struct op_pack alone;
    float *got[2][3];
    void *together_grad = w->grads[1][job];
    build_pack(w, &gpu, &alone, 1, job);
    for (int i = 0; i < 2; i++) {
        const struct op_pack *p = i ? &alone : &w->gpu_pack;
        size_t skip = i ? first : 0, r = i ? rows : R;
        void *d_x = put_act(&gpu, x + skip * in, r * in), *y = poisoned(&gpu, r * out),
             *dx = poisoned(&gpu, r * in);
        float *h = take(&gpu, gpu.ops->linear_h_floats(p, &l) * 4);
        float *g = i ? w->grads[1][job] : together_grad;
        if (g)
            gpu.ops->zero(gpu.dev, g, n * 4);
        gpu.ops->linear(gpu.dev, p, &l, d_x, NULL, y, h);
        gpu.ops->linear_back(gpu.dev, p, &l, put_act(&gpu, dy + skip * out, r * out), d_x, h, dx);
        got[i][0] = get_act(&gpu, (char *)y + (i ? 0 : first * out * (size_t)gpu.ops->act_bytes), rows * out);
        got[i][1] = get_act(&gpu, (char *)dx + (i ? 0 : first * in * (size_t)gpu.ops->act_bytes), rows * in);
        got[i][2] = g ? get_f32(&gpu, g, n) : NULL;
    }
    char name[96];
    snprintf(name, sizeof name, "%s linear %d, rank %d alone = among 4, bits", w->s.name, which,
             w->jobs[job].rank);
    report(name,
           (memcmp(got[0][0], got[1][0], rows * out * 4) != 0) +
               2 * (memcmp(got[0][1], got[1][1], rows * in * 4) != 0) +
               4 * (n && memcmp(got[0][2], got[1][2], n * 4) != 0),
           0);
    w->grads[1][job] = together_grad;
    pack_free(&alone, &w->gpu_base);
    for (int i = 0; i < 6; i++)
        free(got[i / 3][i % 3]);
    free(W);
    free(x);
    free(dy);
}

static void check_head(struct world *w)
{
    size_t R = (size_t)w->gpu_pack.rows, H = (size_t)w->s.hidden, V = (size_t)w->s.vocab;
    float *W = random_floats(V * H, 0.2f, true), *x = random_rows(&w->gpu_pack, H, 1);
    void *dx[2];
    double loss[2][4] = {{0}};
    struct side *sides[2] = {&cpu, &gpu};
    for (int i = 0; i < 2; i++) {
        struct side *s = sides[i];
        void *d_loss = put_raw(s, loss[i], sizeof loss[i]);
        dx[i] = poisoned(s, R * H);
        s->ops->head_loss(s->dev, i ? &w->gpu_pack : &w->cpu_pack, put_act(s, x, R * H),
                          put_weights(s, W, V * H), w->s.vocab, w->s.hidden, d_loss, dx[i]);
        s->ops->download(s->dev, loss[i], d_loss, sizeof loss[i]);
    }
    compare_act(w, "head_loss dx", dx[0], dx[1], H, 1e-2, true);
    for (int j = 0; j < w->n_jobs; j++) {
        char name[96];
        snprintf(name, sizeof name, "%s head_loss, job %d (%.4f)", w->s.name, j, loss[0][j]);
        report(name, fabs(loss[1][j] - loss[0][j]) / (loss[0][j] > 0 ? loss[0][j] : 1), 1e-5);
    }
    free(W);
    free(x);
}

static void check_optim(void)
{
    static const enum dtx_optimizer kinds[] = {DTX_ADAMW, DTX_ADAM, DTX_SGD};
    size_t n = 70001;
    float *w0 = random_floats(n, 1, false), *g0 = random_floats(n, 0.1f, false),
          *m0 = random_floats(n, 0.1f, false), *v0 = random_floats(n, 0.1f, false);
    for (size_t i = 0; i < n; i++)
        v0[i] = fabsf(v0[i]);
    for (int k = 0; k < 3; k++) {
        float *got[2];
        struct op_outcome out[2][2];
        struct side *sides[2] = {&cpu, &gpu};
        for (int i = 0; i < 2; i++) {
            struct side *s = sides[i];
            double loss[2] = {1, NAN};
            struct op_optim o[2] = {{.w = put_raw(s, w0, n * 4),
                                     .g = put_raw(s, g0, n * 4),
                                     .m = put_raw(s, m0, n * 4),
                                     .v = put_raw(s, v0, n * 4),
                                     .n = n,
                                     .kind = kinds[k],
                                     .slot = 0,
                                     .lr = 1e-3,
                                     .weight_decay = 0.01,
                                     .beta1 = 0.9,
                                     .beta2 = 0.999,
                                     .eps = 1e-8,
                                     .bias1 = 0.1,
                                     .bias2 = 0.001,
                                     .max_norm = 1.0}};
            o[1] = o[0];
            o[1].w = put_raw(s, w0, n * 4);
            o[1].slot = 1;
            void *d_out = take(s, sizeof out[i]);
            s->ops->optim(s->dev, o, 2, put_raw(s, loss, sizeof loss), d_out);
            s->ops->download(s->dev, out[i], d_out, sizeof out[i]);
            got[i] = get_f32(s, o[0].w, n);
            float *untouched = get_f32(s, o[1].w, n);
            report("optim, a job with a NaN loss is left alone",
                   memcmp(untouched, w0, n * 4) != 0 || out[i][1].applied != 0 || out[i][0].applied != 1, 0);
            free(untouched);
        }
        for (size_t i = 0; i < n; i++) { /* compare the updates, not the weights */
            got[0][i] -= w0[i];
            got[1][i] -= w0[i];
        }
        report("optim, update", rel_error(got[0], got[1], 1, n, NULL), 1e-3);
        report("optim, norm", fabs(out[0][0].norm - out[1][0].norm) / out[0][0].norm, 1e-6);
        free_all(got, 2);
    }
    free_all((float *[]){w0, g0, m0, v0}, 4);
}

/* Decode: rows of several sequences over a cache; the same through both devices, and 1 row = among 5 to the
 * bit. */
static void check_decode(struct world *w)
{
    struct op_attention a = {
        w->s.heads, w->s.kv_heads, w->s.head_dim, 2, 1, 1.f / sqrtf((float)w->s.head_dim)};
    size_t kv = (size_t)(a.kv_heads * a.head_dim), Q = (size_t)(a.heads * a.head_dim), LD = Q + 2 * kv,
           cap = 700;
    struct op_linear shape = linear_for(&w->s, 0, NULL, NULL);
    int pos[5] = {0, 5, 127, 128, 600};
    float *qkv = random_floats(5 * LD, 1, true), *x = random_floats(5 * (size_t)w->s.hidden, 1, true),
          *W = random_floats((size_t)shape.out * (size_t)shape.in, 0.05f, true),
          *add = random_floats(5 * LD, 1, true);
    float *caches[5];
    for (int i = 0; i < 5; i++)
        caches[i] = random_floats(4 * cap * kv, 1, true);
    float *o[3], *y[3];
    for (int run = 0; run < 3; run++) { /* cpu, gpu, gpu with sequence 4 alone */
        struct side *s = run ? &gpu : &cpu;
        int first = run == 2 ? 4 : 0, n = run == 2 ? 1 : 5;
        struct op_pack p;
        struct dtx_base b = {.ops = s->ops, .dev = s->dev, .dims = w->gpu_base.dims};
        pack_new(&p, &b, (struct pack_room){8, 8, 8, 1}, true, NULL);
        p.dims = &w->gpu_base.dims;
        for (int i = first; i < first + n; i++) {
            struct op_adapter ad = {.rank = w->jobs[0].rank,
                                    .targets = w->jobs[0].targets,
                                    .scale = 1.5f,
                                    .w = put_raw(s, w->jobs[0].w, w->floats[0] * 4)};
            int32_t id = 3;
            pack_segment(&p, &b, i == 1 ? NULL : &ad, 0, 0);
            struct op_seq *q = pack_sequence(&p, &id, NULL, 1, pos[i]);
            q->kv = put_act(s, caches[i], 4 * cap * kv);
            q->kv_cap = (int32_t)cap;
        }
        s->ops->pack_prepare(s->dev, &p);
        void *d_qkv = put_act(s, qkv + (size_t)first * LD, (size_t)n * LD), *d_o = poisoned(s, (size_t)n * Q),
             *d_y = poisoned(s, (size_t)n * LD);
        s->ops->kv_store(s->dev, &p, &a, d_qkv);
        s->ops->attention_cached(s->dev, &p, &a, d_qkv, d_o);
        struct op_linear l =
            linear_for(&w->s, 0, put_weights(s, W, (size_t)shape.out * (size_t)shape.in), NULL);
        float *h = take(s, s->ops->linear_h_floats(&p, &l) * 4);
        s->ops->linear(s->dev, &p, &l,
                       put_act(s, x + (size_t)first * (size_t)shape.in, (size_t)n * (size_t)shape.in),
                       put_act(s, add + (size_t)first * LD, (size_t)n * LD), d_y, h);
        o[run] = get_act(s, d_o, (size_t)n * Q);
        y[run] = get_act(s, d_y, (size_t)n * LD);
        pack_free(&p, &b);
    }
    char name[96];
    snprintf(name, sizeof name, "%s attention_cached", w->s.name);
    report(name, rel_error(o[0], o[1], 5, Q, NULL), 5e-3);
    snprintf(name, sizeof name, "%s linear, decode", w->s.name);
    report(name, rel_error(y[0], y[1], 5, LD, NULL), 5e-3);
    snprintf(name, sizeof name, "%s decode: 1 row = among 5, bits", w->s.name);
    report(name, (memcmp(o[1] + 4 * Q, o[2], Q * 4) != 0) + 2 * (memcmp(y[1] + 4 * LD, y[2], LD * 4) != 0),
           0);
    free_all((float *[]){qkv, x, W, add}, 4);
    free_all(caches, 5);
    free_all(o, 3);
    free_all(y, 3);
}

/* A whole decode layer: on the GPU at once, on the CPU by its operations.  Twice, so that the second step
 * reads what the first put into the caches. */
struct layer_run {
    struct side *s;
    struct op_pack p;
    struct op_layer l;
    float *x, *out;
};

static void *layer_weights(struct side *s, const float *v, int rows, int cols)
{
    return put_weights(s, v, (size_t)rows * (size_t)cols);
}

static void primitives(struct layer_run *r, int hidden, int ffn)
{
    const struct dtx_ops *o = r->s->ops;
    struct op_dev *d = r->s->dev;
    struct op_layer *l = &r->l;
    o->rmsnorm(d, &r->p, l->x, l->norm1, hidden, l->eps, l->xn, NULL);
    o->linear(d, &r->p, &l->qkv, l->xn, NULL, l->qkv_y, l->h_qkv);
    o->rope(d, &r->p, &l->attention, l->rope, false, l->qkv_y);
    o->kv_store(d, &r->p, &l->attention, l->qkv_y);
    o->attention_cached(d, &r->p, &l->attention, l->qkv_y, l->o);
    o->linear(d, &r->p, &l->out, l->o, l->x, l->x2, l->h_out);
    o->rmsnorm(d, &r->p, l->x2, l->norm2, hidden, l->eps, l->xn, NULL);
    o->linear(d, &r->p, &l->gate_up, l->xn, NULL, l->gu, l->h_gate_up);
    o->swiglu(d, &r->p, l->gu, ffn, l->a);
    o->linear(d, &r->p, &l->down, l->a, l->x2, l->x_out, l->h_down);
}

static void check_decode_layer(struct world *w)
{
    enum { N = 5, CAP = 700, STEPS = 2 };
    static const int pos[N] = {0, 5, 127, 128, 600};
    int H = w->s.hidden, F = w->s.ffn, hd = w->s.head_dim, Q = w->s.heads * hd, KV = w->s.kv_heads * hd,
        LD = Q + 2 * KV;
    struct op_attention at = {w->s.heads, w->s.kv_heads, hd, 2, 1, 1.f / sqrtf((float)hd)};
    const struct lora_dims *dims = &w->gpu_base.dims;
    float *weights[6] = {random_floats((size_t)LD * (size_t)H, 0.05f, true),
                         random_floats((size_t)H * (size_t)Q, 0.05f, true),
                         random_floats((size_t)2 * (size_t)F * (size_t)H, 0.05f, true),
                         random_floats((size_t)H * (size_t)F, 0.05f, true),
                         random_floats((size_t)H, 1, true),
                         random_floats((size_t)CAP * (size_t)hd, 1, false)};
    float *x = random_floats((size_t)N * (size_t)H, 1, true), *cache[N], *out[3][STEPS];
    for (int i = 0; i < N; i++)
        cache[i] = random_floats((size_t)4 * CAP * (size_t)KV, 1, true);
    for (int run = 0; run < 3; run++) { /* cpu, gpu, gpu with sequence 4 alone */
        struct layer_run r = {.s = run ? &gpu : &cpu};
        struct side *s = r.s;
        int first = run == 2 ? 4 : 0, n = run == 2 ? 1 : N;
        size_t R = (size_t)n;
        void *kv[N];
        for (int i = 0; i < N; i++)
            kv[i] = put_act(s, cache[i], (size_t)4 * CAP * (size_t)KV);
        float *adapter = put_raw(s, w->jobs[0].w, w->floats[0] * 4);
        void *norm = put_weights(s, weights[4], (size_t)H);
        r.l = (struct op_layer){.qkv = {.W = layer_weights(s, weights[0], LD, H),
                                        .in = H,
                                        .out = LD,
                                        .n_parts = 3,
                                        .part = {{DTX_Q, 0, Q}, {DTX_K, Q, KV}, {DTX_V, Q + KV, KV}}},
                                .out = {.W = layer_weights(s, weights[1], H, Q),
                                        .in = Q,
                                        .out = H,
                                        .n_parts = 1,
                                        .part = {{DTX_O, 0, H}}},
                                .gate_up = {.W = layer_weights(s, weights[2], 2 * F, H),
                                            .in = H,
                                            .out = 2 * F,
                                            .n_parts = 2,
                                            .part = {{DTX_GATE, 0, F}, {DTX_UP, F, F}}},
                                .down = {.W = layer_weights(s, weights[3], H, F),
                                         .in = F,
                                         .out = H,
                                         .n_parts = 1,
                                         .part = {{DTX_DOWN, 0, H}}},
                                .attention = at,
                                .norm1 = norm,
                                .norm2 = norm,
                                .rope = put_raw(s, weights[5], (size_t)CAP * (size_t)hd * 4),
                                .eps = 1e-5f,
                                .xn = poisoned(s, R * (size_t)H),
                                .qkv_y = poisoned(s, R * (size_t)LD),
                                .o = poisoned(s, R * (size_t)Q),
                                .x2 = poisoned(s, R * (size_t)H),
                                .gu = poisoned(s, R * (size_t)(2 * F)),
                                .a = poisoned(s, R * (size_t)F),
                                .x_out = poisoned(s, R * (size_t)H)};
        for (int step = 0; step < STEPS; step++) {
            struct dtx_base b = {.ops = s->ops, .dev = s->dev, .dims = *dims};
            r.l.x = put_act(s, x + (size_t)first * (size_t)H, R * (size_t)H);
            pack_new(&r.p, &b, (struct pack_room){8, 8, 8, 1}, true, NULL);
            r.p.dims = dims;
            for (int i = first; i < first + n; i++) {
                struct op_adapter ad = {
                    .rank = w->jobs[0].rank, .targets = w->jobs[0].targets, .scale = 1.5f, .w = adapter};
                int32_t id = 3;
                pack_segment(&r.p, &b, i == 1 ? NULL : &ad, 0, 0);
                struct op_seq *q = pack_sequence(&r.p, &id, NULL, 1, pos[i] + step);
                q->kv = kv[i];
                q->kv_cap = CAP;
            }
            s->ops->pack_prepare(s->dev, &r.p);
            size_t h = s->ops->linear_h_floats(&r.p, &r.l.qkv) * 4;
            r.l.h_qkv = take(s, h);
            r.l.h_out = take(s, h);
            r.l.h_gate_up = take(s, h);
            r.l.h_down = take(s, h);
            if (s->ops->decode_layer)
                s->ops->decode_layer(s->dev, &r.p, &r.l);
            else
                primitives(&r, H, F);
            out[run][step] = get_act(s, r.l.x_out, R * (size_t)H);
            pack_free(&r.p, &b);
        }
    }
    char name[96];
    for (int step = 0; step < STEPS; step++) {
        snprintf(name, sizeof name, "%s decode_layer, step %d", w->s.name, step);
        report(name, rel_error(out[0][step], out[1][step], N, (size_t)H, NULL), 1.5e-2);
        snprintf(name, sizeof name, "%s decode_layer, step %d: 1 row, bits", w->s.name, step);
        report(name, memcmp(out[1][step] + 4 * (size_t)H, out[2][step], (size_t)H * sizeof(float)) != 0, 0);
    }
    free(x);
    free_all(weights, 6);
    free_all(cache, N);
    free_all(out[0], 3 * STEPS);
}

/* ---- what was read back ---- */

static const struct dtx_ops *gpu_ops;

static void digest_add(const void *p, size_t n)
{
    const unsigned char *v = p;
    for (uint64_t word = 0; n; v += 8, word = 0) {
        size_t part = n < 8 ? n : 8;
        memcpy(&word, v, part);
        digest = (digest ^ word) * 0x9e3779b97f4a7c15u;
        digest ^= digest >> 29;
        n -= part;
    }
}

static int download_seen(struct op_dev *d, void *host, const void *src, size_t bytes)
{
    int rc = gpu_ops->download(d, host, src, bytes);
    digest_add(host, bytes);
    return rc;
}

static int open_side(struct side *s, const char *kind)
{
    struct dtx_err e;
    if (dtx_device_open(kind, 0, &s->device, &e)) {
        printf("%s\n", e.msg);
        return -1;
    }
    s->ops = s->device->ops;
    s->dev = s->device->dev;
    return 0;
}

static int open_sides(const char *kind)
{
    static struct dtx_ops seen;
    if (open_side(&cpu, "cpu") || open_side(&gpu, kind))
        return -1;
    gpu_ops = gpu.ops;
    seen = *gpu.ops;
    seen.download = download_seen;
    gpu.ops = &seen;
    return 0;
}

#include "tests/gpu/parity_decode.h"
#include "tests/gpu/parity_shapes.h"

/* ---- which worlds, which checks ---- */

static void check_linears(struct world *w)
{
    for (int k = 0; k < 4; k++)
        check_linear(w, k);
}

static void check_invariances(struct world *w)
{
    for (int j = 0; j < w->n_jobs; j++)
        for (int k = 0; k < 4; k++)
            check_invariance(w, j, k);
}

enum { USUAL = 1, OTHER = 2, ALL = USUAL | OTHER };

static const struct {
    const char *name;
    void (*run)(struct world *);
    int worlds;
} checks[] = {
    {"elementwise", check_elementwise, ALL},
    {"attention", check_attention, ALL},
    {"linear", check_linears, ALL},
    {"invariance", check_invariances, ALL},
    {"alone", check_all_alone, OTHER},
    {"head", check_head, ALL},
    {"ways", check_ways, ALL},
    {"contained", check_contained, ALL},
    {"logits", check_logits, ALL},
    {"decode", check_decode, USUAL},
    {"decode-many", check_decode_many, ALL},
    {"decode-layer", check_decode_layer, USUAL},
    {"decode-run", check_decode_run, USUAL},
    {"decode-rows", check_decode_rows, USUAL},
};

/* Worlds of their own, without such checks. */
static const struct {
    const char *name;
    void (*run)(void);
} others[] = {
    {"choose", check_choices},
    {"optim", check_optim},
    {"decode shapes", check_decode_shapes},
    {"memory", check_memory},
    {"read adapters", check_read_adapters},
    {"far rows", check_far_rows},
    {"tiles", check_all_tiles},
};

static int run_world(const struct planned *p, const char *part)
{
    struct world w;
    int n = 0;
    world_of(&w, p->shape, p->jobs);
    for (size_t i = 0; i < sizeof checks / sizeof checks[0]; i++)
        if (checks[i].worlds & (p->jobs ? OTHER : USUAL) && strstr(checks[i].name, part)) {
            checks[i].run(&w);
            n++;
        }
    world_done(&w);
    return n;
}

/* DEVICE cpu: the CPU against itself, to try the checks where there is no GPU. */
int main(int argc, char **argv)
{
    const char *only = argc > 3 ? argv[3] : "", *part = argc > 4 ? argv[4] : "";
    int n = 0;
    seed_key = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    gpu_kind = argc > 2 ? argv[2] : gpu_kind;
    if (open_sides(gpu_kind))
        return 2;
    for (size_t i = 0; i < sizeof worlds / sizeof worlds[0]; i++)
        if (strstr(worlds[i].shape.name, only))
            n += run_world(&worlds[i], part);
    for (size_t i = 0; i < sizeof others / sizeof others[0] && !*part; i++)
        if (strstr(others[i].name, only)) {
            others[i].run();
            n++;
        }
    if (!n)
        return printf("parity: no such worlds or checks\n"), 2;
    printf("digest of what was read back: %016llx\n", (unsigned long long)digest);
    printf("parity: %d failed\n", failures);
    return failures != 0;
}
