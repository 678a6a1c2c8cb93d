/*
 * Every operation of the CPU device: values against a plain computation in double, gradients against finite
 * differences.  The scalar that is differentiated is f(x) = sum(r * op(x)) for random r, so its gradient is
 * op's backward applied to r; directions are random, and so is every element by itself for a few elements.
 */
#include "tests/unit/engine_util.h"

enum { HEADS = 4, KV = 2, HD = 8, LD = (HEADS + 2 * KV) * HD, IN = 40, FFN = 21, VOCAB = 57 };

static struct util_model model = {
    .layers = 2, .hidden = IN, .ffn = FFN, .heads = HEADS, .kv_heads = KV, .head_dim = HD, .vocab = VOCAB};

/* A device and a pack of two jobs' segments: sequences of 70, 5 and 1 rows, then 40 rows. */
struct env {
    struct util_base u;
    const struct dtx_ops *o;
    struct op_dev *d;
    struct op_pack p;
    float *w[2], *g[2]; /* adapters */
};

static const struct {
    int rank;
    unsigned targets;
    float scale, dropout;
} jobs[2] = {{3, 0x7f, 2.0f, 0.25f}, {5, 1u << DTX_Q | 1u << DTX_DOWN | 1u << DTX_UP, 0.5f, 0}};

static struct env env_open(int threads)
{
    static const struct {
        int seg, rows;
    } seqs[] = {{0, 70}, {0, 5}, {0, 1}, {1, 40}};
    struct env v = {.u = util_base_of(&model, threads)};
    struct dtx_base *b = v.u.base;
    v.o = b->ops;
    v.d = b->dev;
    MUST(pack_new(&v.p, b, (struct pack_room){.rows = 256, .seqs = 4, .segs = 2, .labels = 200}, false, &e));
    for (int s = 0, seg = -1; s < 4; s++) {
        if (seqs[s].seg != seg) {
            seg = seqs[s].seg;
            size_t n = lora_floats(&b->dims, jobs[seg].targets, jobs[seg].rank);
            v.w[seg] = util_floats(50 + (uint64_t)seg, n, 0.4f);
            v.g[seg] = util_floats(0, n, 0);
            struct op_adapter a = {.w = v.w[seg],
                                   .g = v.g[seg],
                                   .rank = jobs[seg].rank,
                                   .targets = jobs[seg].targets,
                                   .scale = jobs[seg].scale,
                                   .dropout = jobs[seg].dropout};
            pack_segment(&v.p, b, &a, seg, 0.5f + (float)seg);
        }
        int32_t ids[80], labels[80];
        for (int i = 0; i <= seqs[s].rows; i++) {
            ids[i] = (s * 31 + i * 7) % VOCAB;
            labels[i] = i % 3 ? (s + i * 11) % VOCAB : -100;
        }
        pack_sequence(&v.p, ids, labels, seqs[s].rows, 0)->drop_key = rng_key(9, (uint64_t)s);
    }
    MUST(pack_ready(&v.p, b, &e));
    ck_assert_int_eq(v.p.rows, 96 + 64);
    return v;
}

static void env_close(struct env *v)
{
    pack_free(&v->p, v->u.base);
    for (int i = 0; i < 2; i++) {
        free(v->w[i]);
        free(v->g[i]);
    }
    util_base_done(&v->u);
}

/* Random [R, n], zero in padding rows. */
static float *rows_of(const struct env *v, uint64_t key, int n, float size)
{
    float *x = util_floats(key, (size_t)v->p.rows * (size_t)n, size);
    for (int r = 0; r < v->p.rows; r++)
        if (v->p.seq_of_row[r] < 0)
            memset(x + r * n, 0, (size_t)n * sizeof *x);
    return x;
}

static double dot(const float *a, const float *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)a[i] * (double)b[i];
    return s;
}

typedef double scalar_fn(const struct env *v, void *arg);

/* d f / d x[0..n) against g, along random directions and at single elements; x is what f reads. */
static void check_gradient(const struct env *v, const char *what, scalar_fn *f, void *arg, float *x,
                           const float *g, size_t n, float h)
{
    float *keep = malloc(n * sizeof *x), *dir = malloc(n * sizeof *x);
    memcpy(keep, x, n * sizeof *x);
    double size = sqrt(dot(g, g, n) / (double)n);
    for (int t = 0; t < 24; t++) {
        size_t one = rng_key(77, (uint64_t)t) % n;
        for (size_t i = 0; i < n; i++) /* six whole directions, then elements */
            dir[i] = t < 6 ? util_random(200 + (uint64_t)t, i) : i == one;
        for (size_t i = 0; i < n; i++)
            x[i] = keep[i] + h * dir[i];
        double up = f(v, arg);
        for (size_t i = 0; i < n; i++)
            x[i] = keep[i] - h * dir[i];
        double down = f(v, arg), got = dot(g, dir, n), want = (up - down) / (2 * (double)h);
        double scale = t < 6 ? size * sqrt((double)n / 3) : size;
        ck_assert_msg(fabs(got - want) < 5e-3 * (scale + fabs(want)),
                      "%s, direction %d: backward %.6g, differences %.6g", what, t, got, want);
        memcpy(x, keep, n * sizeof *x);
    }
    ck_assert_msg(size > 1e-6, "%s: the gradient is zero", what);
    free(keep);
    free(dir);
}

static void near(const char *what, const float *got, const double *want, size_t n)
{
    for (size_t i = 0; i < n; i++)
        ck_assert_msg(fabs((double)got[i] - want[i]) < 2e-5 * (1 + fabs(want[i])),
                      "%s: value %zu: %.7g, expected %.7g", what, i, (double)got[i], want[i]);
}

/* ---- embedding, RMSNorm */

struct norm_arg {
    float *x, *y, *w, *r;
};

static double norm_f(const struct env *v, void *arg)
{
    struct norm_arg *a = arg;
    v->o->rmsnorm(v->d, &v->p, a->x, a->w, IN, 1e-5f, a->y, NULL);
    return dot(a->r, a->y, (size_t)v->p.rows * IN);
}

START_TEST(rmsnorm)
{
    struct env v = env_open(2);
    size_t n = (size_t)v.p.rows * IN;
    struct norm_arg a = {rows_of(&v, 1, IN, 1), rows_of(&v, 2, IN, 0), util_floats(3, IN, 2),
                         rows_of(&v, 4, IN, 1)};
    float *rstd = util_floats(0, (size_t)v.p.rows, 0), *add = rows_of(&v, 5, IN, 1),
          *dx = rows_of(&v, 6, IN, 0);
    v.o->rmsnorm(v.d, &v.p, a.x, a.w, IN, 1e-5f, a.y, rstd);
    double *want = calloc(n, sizeof *want);
    for (int r = 0; r < v.p.rows; r++) {
        double mean = dot(a.x + r * IN, a.x + r * IN, IN) / IN;
        for (int i = 0; i < IN; i++)
            want[r * IN + i] = (double)a.w[i] * (double)a.x[r * IN + i] / sqrt(mean + 1e-5);
    }
    near("rmsnorm", a.y, want, n);
    v.o->rmsnorm_back(v.d, &v.p, a.r, a.x, a.w, rstd, IN, NULL, dx);
    check_gradient(&v, "rmsnorm", norm_f, &a, a.x, dx, n, 1e-3f);
    for (size_t i = 0; i < n; i++)
        want[i] = (double)dx[i] + (double)add[i];
    v.o->rmsnorm_back(v.d, &v.p, a.r, a.x, a.w, rstd, IN, add, add);
    near("rmsnorm_back with add in place", add, want, n);
    free(want);
    free(rstd);
    free(add);
    free(dx);
    free(a.x);
    free(a.y);
    free(a.w);
    free(a.r);
    env_close(&v);
}
END_TEST

START_TEST(embed)
{
    struct env v = env_open(2);
    float *E = util_floats(1, VOCAB * IN, 1), *x = util_floats(2, (size_t)v.p.rows * IN, 1);
    v.o->embed(v.d, &v.p, E, IN, x);
    for (int r = 0; r < v.p.rows; r++)
        for (int i = 0; i < IN; i++)
            ck_assert_float_eq(x[r * IN + i], v.p.ids[r] < 0 ? 0 : E[v.p.ids[r] * IN + i]);
    free(E);
    free(x);
    env_close(&v);
}
END_TEST

/* ---- SwiGLU */

struct swiglu_arg {
    float *gu, *y, *r;
};

static double swiglu_f(const struct env *v, void *arg)
{
    struct swiglu_arg *a = arg;
    v->o->swiglu(v->d, &v->p, a->gu, FFN, a->y);
    return dot(a->r, a->y, (size_t)v->p.rows * FFN);
}

START_TEST(swiglu)
{
    struct env v = env_open(2);
    size_t n = (size_t)v.p.rows * FFN;
    struct swiglu_arg a = {rows_of(&v, 1, 2 * FFN, 4), rows_of(&v, 2, FFN, 0), rows_of(&v, 3, FFN, 1)};
    double *want = calloc(n, sizeof *want);
    for (int r = 0; r < v.p.rows; r++)
        for (int i = 0; i < FFN; i++) {
            double g = (double)a.gu[r * 2 * FFN + i], u = (double)a.gu[r * 2 * FFN + FFN + i];
            want[r * FFN + i] = g / (1 + exp(-g)) * u;
        }
    swiglu_f(&v, &a);
    near("swiglu", a.y, want, n);
    float *dgu = rows_of(&v, 4, 2 * FFN, 0);
    v.o->swiglu_back(v.d, &v.p, a.r, a.gu, FFN, dgu);
    check_gradient(&v, "swiglu", swiglu_f, &a, a.gu, dgu, 2 * n, 1e-3f);
    v.o->swiglu_back(v.d, &v.p, a.r, a.gu, FFN, a.gu);
    ck_assert_mem_eq(a.gu, dgu, 2 * n * sizeof *dgu);
    free(want);
    free(dgu);
    free(a.gu);
    free(a.y);
    free(a.r);
    env_close(&v);
}
END_TEST

/* ---- RoPE and attention */

struct attention_arg {
    float *qkv, *turned, *o, *lse, *r;
    bool rope;
};

static double attention_f(const struct env *v, void *arg)
{
    struct attention_arg *a = arg;
    struct op_attention at = attention_of(v->u.base, 0);
    memcpy(a->turned, a->qkv, (size_t)v->p.rows * LD * sizeof(float));
    v->o->rope(v->d, &v->p, &at, v->u.base->rope, false, a->turned);
    v->o->attention(v->d, &v->p, &at, a->turned, a->o, a->lse);
    return dot(a->r, a->o, (size_t)v->p.rows * HEADS * HD);
}

/* o of one row and head, in double, from qkv after rope. */
static void attention_row(const struct env *v, const float *qkv, int row, int head, double *o)
{
    const struct op_seq *s = &v->p.seqs[v->p.seq_of_row[row]];
    double w[128], sum = 0;
    for (int k = s->row0; k <= row; k++)
        sum += w[k - s->row0] =
            exp(dot(qkv + row * LD + head * HD, qkv + k * LD + (HEADS + head / (HEADS / KV)) * HD, HD) /
                sqrt(HD));
    for (int i = 0; i < HD; i++) {
        o[i] = 0;
        for (int k = s->row0; k <= row; k++)
            o[i] += w[k - s->row0] / sum * (double)qkv[k * LD + (HEADS + KV + head / (HEADS / KV)) * HD + i];
    }
}

START_TEST(attention)
{
    struct env v = env_open(2);
    size_t n = (size_t)v.p.rows * HEADS * HD, all = (size_t)v.p.rows * LD;
    struct op_attention at = attention_of(v.u.base, 0);
    struct attention_arg a = {.qkv = rows_of(&v, 1, LD, 1.5f),
                              .turned = rows_of(&v, 2, LD, 0),
                              .o = util_floats(3, n, 1),
                              .lse = util_floats(4, (size_t)v.p.rows * HEADS, 0),
                              .r = rows_of(&v, 5, HEADS * HD, 1)};
    attention_f(&v, &a);
    double *want = calloc(n, sizeof *want);
    for (int r = 0; r < v.p.rows; r++)
        for (int h = 0; v.p.seq_of_row[r] >= 0 && h < HEADS; h++)
            attention_row(&v, a.turned, r, h, want + (r * HEADS + h) * HD);
    near("attention", a.o, want, n);
    float *dqkv = util_floats(6, all, 1);
    v.o->attention_back(v.d, &v.p, &at, a.r, a.o, a.turned, a.lse, v.u.base->rope, dqkv);
    check_gradient(&v, "rope and attention", attention_f, &a, a.qkv, dqkv, all, 2e-3f);
    free(want);
    free(dqkv);
    free(a.qkv);
    free(a.turned);
    free(a.o);
    free(a.lse);
    free(a.r);
    env_close(&v);
}
END_TEST

START_TEST(rope)
{
    struct env v = env_open(2);
    struct op_attention at = attention_of(v.u.base, 0);
    float *x = rows_of(&v, 1, LD, 1);
    size_t n = (size_t)v.p.rows * LD;
    double *want = calloc(n, sizeof *want), *back = calloc(n, sizeof *back);
    for (size_t i = 0; i < n; i++)
        want[i] = back[i] = (double)x[i];
    for (int r = 0; r < v.p.rows; r++)
        for (int h = 0; h < HEADS + KV; h++)
            for (int i = 0; i < HD / 2; i++) {
                double angle = v.p.pos[r] * pow(10000, -2.0 * i / HD), *p = &want[r * LD + h * HD + i];
                double a = p[0], b = p[HD / 2];
                p[0] = a * cos(angle) - b * sin(angle);
                p[HD / 2] = b * cos(angle) + a * sin(angle);
            }
    v.o->rope(v.d, &v.p, &at, v.u.base->rope, false, x);
    near("rope", x, want, n);
    v.o->rope(v.d, &v.p, &at, v.u.base->rope, true, x);
    near("rope there and back", x, back, n);
    free(x);
    free(want);
    free(back);
    env_close(&v);
}
END_TEST

/* ---- linear with adapters */

struct linear_arg {
    struct op_linear l;
    float *x, *add, *y, *h, *r;
};

static double linear_f(const struct env *v, void *arg)
{
    struct linear_arg *a = arg;
    v->o->linear(v->d, &v->p, &a->l, a->x, a->add, a->y, a->h);
    return dot(a->r, a->y, (size_t)v->p.rows * (size_t)a->l.out);
}

/* One value of y in double. */
static double linear_value(const struct env *v, const struct linear_arg *a, int row, int col)
{
    const struct op_linear *l = &a->l;
    const float *x = a->x + row * l->in;
    const struct op_seq *s = &v->p.seqs[v->p.seq_of_row[row]];
    const struct op_adapter *ad = &v->p.adapters[v->p.segs[s->seg].adapter];
    double y = dot(x, (const float *)l->W + col * l->in, (size_t)l->in) +
               (a->add ? (double)a->add[row * l->out + col] : 0);
    y += l->bias ? (double)((const float *)l->bias)[col] : 0;
    int part = 0;
    while (col >= l->part[part].out0 + l->part[part].n)
        part++;
    int t = l->part[part].target;
    if (!(ad->targets >> t & 1))
        return y;
    const float *A = ad->w + lora_offset(v->p.dims, ad->targets, ad->rank, l->layer, t),
                *B = A + ad->rank * l->in;
    uint64_t key = rng_dropout_key(s->drop_key, row - s->row0, l->layer, t);
    for (int j = 0; j < ad->rank; j++) {
        double h = 0;
        for (int i = 0; i < l->in; i++) {
            bool keep =
                !(ad->dropout > 0) || rng_dropout(key, (uint32_t)i) >= rng_dropout_threshold(ad->dropout);
            h += keep ? (double)x[i] / (1 - (double)ad->dropout) * (double)A[j * l->in + i] : 0;
        }
        y += (double)ad->scale * h * (double)B[(col - l->part[part].out0) * ad->rank + j];
    }
    return y;
}

static void check_linear(int which, bool bias, bool add)
{
    struct env v = env_open(2);
    struct linear_arg a = {.l = linear_of(v.u.base, 1, which)};
    int in = a.l.in, out = a.l.out;
    float *b = util_floats(8, (size_t)out, 1);
    a.l.bias = bias ? b : NULL;
    a.x = rows_of(&v, 1, in, 1);
    a.y = rows_of(&v, 2, out, 0);
    a.add = add ? rows_of(&v, 3, out, 1) : NULL;
    a.r = rows_of(&v, 4, out, 1);
    a.h = util_floats(0, v.o->linear_h_floats(&v.p, &a.l) + 1, 0);
    linear_f(&v, &a);
    for (int r = 0; r < v.p.rows; r++)
        for (int c = 0; v.p.seq_of_row[r] >= 0 && c < out; c++) {
            double want = linear_value(&v, &a, r, c);
            near("linear", &a.y[r * out + c], &want, 1);
        }
    float *dx = util_floats(5, (size_t)v.p.rows * (size_t)in, 1);
    for (int i = 0; i < 2; i++)
        memset(v.g[i], 0, lora_floats(v.p.dims, jobs[i].targets, jobs[i].rank) * sizeof(float));
    v.o->linear_back(v.d, &v.p, &a.l, a.r, a.x, a.h, dx);
    check_gradient(&v, "linear dx", linear_f, &a, a.x, dx, (size_t)v.p.rows * (size_t)in, 1e-2f);
    for (int i = 0; i < 2; i++)
        if (jobs[i].targets >> a.l.part[0].target & 1) {
            size_t at = lora_offset(v.p.dims, jobs[i].targets, jobs[i].rank, 1, a.l.part[0].target);
            size_t na = (size_t)(jobs[i].rank * in), nb = (size_t)(jobs[i].rank * a.l.part[0].n);
            check_gradient(&v, "linear dA", linear_f, &a, v.w[i] + at, v.g[i] + at, na, 1e-2f);
            check_gradient(&v, "linear dB", linear_f, &a, v.w[i] + at + na, v.g[i] + at + na, nb, 1e-2f);
        }
    v.o->linear_back(v.d, &v.p, &a.l, a.r, a.x, a.h, NULL); /* gradients add up */
    if (jobs[0].targets >> a.l.part[0].target & 1) {
        size_t at = lora_offset(v.p.dims, jobs[0].targets, jobs[0].rank, 1, a.l.part[0].target);
        double g = (double)v.g[0][at];
        v.o->linear_back(v.d, &v.p, &a.l, a.r, a.x, a.h, dx);
        ck_assert_double_eq_tol((double)v.g[0][at], 1.5 * g, 1e-4 * (1 + fabs(g)));
    }
    free(dx);
    free(b);
    free(a.x);
    free(a.y);
    free(a.add);
    free(a.r);
    free(a.h);
    env_close(&v);
}

START_TEST(linear)
{
    check_linear(H_QKV, true, false);
    check_linear(H_O, false, true);
    check_linear(H_GATE_UP, false, false);
    check_linear(H_DOWN, true, true);
}
END_TEST

/* ---- head and loss */

struct head_arg {
    float *x, *W;
};

static double head_f(const struct env *v, void *arg)
{
    struct head_arg *a = arg;
    double loss[2] = {0, 0};
    v->o->head_loss(v->d, &v->p, a->x, a->W, VOCAB, IN, loss, NULL);
    return loss[0] * (double)v->p.segs[0].loss_scale + loss[1] * (double)v->p.segs[1].loss_scale;
}

START_TEST(head)
{
    struct env v = env_open(2);
    size_t n = (size_t)v.p.rows * IN;
    struct head_arg a = {rows_of(&v, 1, IN, 1), util_floats(2, VOCAB * IN, 0.5f)};
    double want[2] = {0, 0}, loss[2] = {0, 0};
    for (int s = 0; s < 2; s++)
        for (int k = v.p.segs[s].label0; k < v.p.segs[s].label0 + v.p.segs[s].labels; k++) {
            double sum = 0, z = dot(a.x + v.p.lab_row[k] * IN, a.W + v.p.lab_id[k] * IN, IN);
            for (int i = 0; i < VOCAB; i++)
                sum += exp(dot(a.x + v.p.lab_row[k] * IN, a.W + i * IN, IN));
            want[s] += log(sum) - z;
        }
    float *dx = util_floats(3, n, 1);
    v.o->head_loss(v.d, &v.p, a.x, a.W, VOCAB, IN, loss, dx);
    ck_assert_double_eq_tol(loss[0], want[0], 1e-5 * want[0]);
    ck_assert_double_eq_tol(loss[1], want[1], 1e-5 * want[1]);
    check_gradient(&v, "head", head_f, &a, a.x, dx, n, 3e-3f);
    free(dx);
    free(a.x);
    free(a.W);
    env_close(&v);
}
END_TEST

/* ---- optimizers, three steps, in double */

static void check_optim(enum dtx_optimizer kind, double clip)
{
    struct env v = env_open(2);
    enum { N = 40000 };
    float *w = util_floats(1, N, 1), *g = util_floats(2, N, 0.1f), *m = util_floats(3, N, 0),
          *q = util_floats(4, N, 0);
    double *ww = calloc(N, 8), *mm = calloc(N, 8), *qq = calloc(N, 8), norm = sqrt(dot(g, g, N)), loss = 1;
    double f = clip > 0 && clip / (norm + 1e-6) < 1 ? clip / (norm + 1e-6) : 1, lr = 0.01, wd = 0.1;
    for (int i = 0; i < N; i++)
        ww[i] = (double)w[i];
    for (int t = 1; t <= 3; t++) {
        struct op_optim job = {.w = w,
                               .g = g,
                               .m = m,
                               .v = q,
                               .n = N,
                               .kind = kind,
                               .lr = lr,
                               .weight_decay = wd,
                               .beta1 = 0.9,
                               .beta2 = 0.999,
                               .eps = 1e-8,
                               .bias1 = 1 - pow(0.9, t),
                               .bias2 = 1 - pow(0.999, t),
                               .max_norm = clip};
        struct op_outcome out;
        v.o->optim(v.d, &job, 1, &loss, &out);
        ck_assert_int_eq(out.applied, 1);
        ck_assert_double_eq_tol(out.norm, norm, 1e-6 * norm);
        for (int i = 0; i < N; i++) {
            double gi = (double)g[i] * f + (kind == DTX_ADAMW ? 0 : wd * ww[i]);
            mm[i] = 0.9 * mm[i] + 0.1 * gi;
            qq[i] = 0.999 * qq[i] + 0.001 * gi * gi;
            double step = mm[i] / job.bias1 / (sqrt(qq[i] / job.bias2) + 1e-8);
            ww[i] =
                kind == DTX_SGD ? ww[i] - lr * gi : ww[i] * (kind == DTX_ADAMW ? 1 - lr * wd : 1) - lr * step;
        }
        near("weights", w, ww, N);
    }
    free(w);
    free(g);
    free(m);
    free(q);
    free(ww);
    free(mm);
    free(qq);
    env_close(&v);
}

START_TEST(optimizers)
{
    check_optim(DTX_ADAMW, 0);
    check_optim(DTX_ADAMW, 1);
    check_optim(DTX_ADAM, 1);
    check_optim(DTX_SGD, 1e9);
    check_optim(DTX_SGD, 0.5);
}
END_TEST

START_TEST(optimizer_refuses)
{
    struct env v = env_open(2);
    float w[3] = {1, 2, 3}, g[2][3] = {{1, NAN, 1}, {1, 1, 1}};
    double loss[3] = {1, NAN, 1};
    struct op_outcome out[3];
    struct op_optim jobs3[3] = {{.w = w, .g = g[0], .n = 3, .kind = DTX_SGD, .slot = 0, .lr = 1},
                                {.w = w, .g = g[1], .n = 3, .kind = DTX_SGD, .slot = 1, .lr = 1},
                                {.w = w, .g = g[1], .n = 2, .kind = DTX_SGD, .slot = 2, .lr = 1}};
    v.o->optim(v.d, jobs3, 3, loss, out);
    ck_assert_int_eq(out[0].applied, 0); /* gradient */
    ck_assert_int_eq(out[1].applied, 0); /* loss */
    ck_assert_int_eq(out[2].applied, 1);
    ck_assert_float_eq(w[0], 0);
    ck_assert_float_eq(w[1], 1);
    ck_assert_float_eq(w[2], 3);
    env_close(&v);
}
END_TEST

/* ---- generation */

START_TEST(greedy)
{
    struct env v = env_open(1);
    float z[4][5] = {
        {1, 5, 3, 5, 2}, {NAN, -3, -2, NAN, -9}, {-INFINITY, -1, NAN, -2, -3}, {7, NAN, 6, 7, 1}};
    int32_t out[4];
    struct op_choice how[4] = {0};
    v.o->choose(v.d, &z[0][0], 4, 5, how, out);
    ck_assert_int_eq(out[0], 1);
    ck_assert_int_eq(out[1], 2);
    ck_assert_int_eq(out[2], 1);
    ck_assert_int_eq(out[3], 0);
    env_close(&v);
}
END_TEST

/* A whole forward pass by cache, token after token, against the same tokens in one pass. */
START_TEST(decode_equals_prefill)
{
    enum { N = 21 };
    struct util_base u = util_base_of(&model, 2);
    struct dtx_base *b = u.base;
    int32_t ids[N];
    size_t kv_bytes = (size_t)model.layers * 2 * N * KV * HD * sizeof(float),
           n = lora_floats(&b->dims, 0x7f, 3);
    float *w = util_floats(5, n, 0.3f), *want = util_floats(0, N * IN, 0),
          *kv = util_floats(0, kv_bytes / 4, 0);
    struct op_adapter a = {.w = w, .rank = 3, .targets = 0x7f, .scale = 1.5f};
    struct op_pack p;
    for (int i = 0; i < N; i++)
        ids[i] = (i * 17 + 3) % VOCAB;
    for (int step = 0; step <= N; step++) { /* 0: all at once */
        int rows = step ? 1 : N;
        MUST(pack_new(&p, b, (struct pack_room){.rows = 32, .seqs = 1, .segs = 1}, step > 0, &e));
        pack_segment(&p, b, &a, 0, 0);
        struct op_seq *s = pack_sequence(&p, ids + (step ? step - 1 : 0), NULL, rows, step ? step - 1 : 0);
        if (step) {
            s->kv = kv;
            s->kv_cap = N;
        }
        MUST(pack_ready(&p, b, &e));
        MUST(forward(b, &p, false, &e));
        const float *x = b->ws->xn;
        if (!step)
            memcpy(want, x, N * IN * sizeof *x);
        for (int i = 0; step && i < IN; i++)
            ck_assert_msg(fabsf(x[i] - want[(step - 1) * IN + i]) < 1e-4f,
                          "token %d value %d: %.7g, in one pass %.7g", step - 1, i, (double)x[i],
                          (double)want[(step - 1) * IN + i]);
        pack_free(&p, b);
    }
    free(w);
    free(want);
    free(kv);
    util_base_done(&u);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("engine operations");
    TCase *c = tcase_create("cpu");
    tcase_set_timeout(c, 60);
    tcase_add_test(c, embed);
    tcase_add_test(c, rmsnorm);
    tcase_add_test(c, swiglu);
    tcase_add_test(c, rope);
    tcase_add_test(c, attention);
    tcase_add_test(c, linear);
    tcase_add_test(c, head);
    tcase_add_test(c, optimizers);
    tcase_add_test(c, optimizer_refuses);
    tcase_add_test(c, greedy);
    tcase_add_test(c, decode_equals_prefill);
    suite_add_tcase(s, c);
    return util_main(s);
}
