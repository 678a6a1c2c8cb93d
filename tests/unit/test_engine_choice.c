/* The choice of tokens (kernels/choice.h) and decode steps that run ahead of the host. */
#include "kernels/choice.h"
#include "tests/unit/engine_util.h"

enum { VOCAB = 40, DRAWS = 40000 };

static struct util_base u;
static float logits[VOCAB];

static struct util_model model = {
    .layers = 2, .hidden = 32, .ffn = 48, .heads = 4, .kv_heads = 2, .head_dim = 8, .vocab = VOCAB};

static void setup(void)
{
    u = util_base_of(&model, 2);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = (float)((i * 17) % VOCAB) * 0.15f;
}

static void teardown(void)
{
    util_base_done(&u);
}

static int32_t choose(struct op_choice how)
{
    int32_t out = -1;
    u.base->ops->choose(u.base->dev, logits, 1, VOCAB, &how, &out);
    return out;
}

/* Probabilities by doubles and sorting, as the rule says it. */
static void expect(double *p, double temperature, int top_k, double top_p)
{
    int order[VOCAB];
    double sum = 0, kept = 0;
    for (int i = 0; i < VOCAB; i++) {
        int at = i;
        for (; at > 0 && logits[order[at - 1]] < logits[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
        p[i] = 0;
    }
    int n = top_k ? top_k : VOCAB;
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[order[i]] / temperature);
    for (int i = 0; i < n && (i == 0 || kept < top_p * sum * (1 - 1e-9)); i++)
        kept += p[order[i]] = exp((double)logits[order[i]] / temperature);
    for (int i = 0; i < VOCAB; i++)
        p[i] /= kept;
}

static void check_frequencies(double temperature, int top_k, double top_p)
{
    double p[VOCAB];
    int seen[VOCAB] = {0};
    expect(p, temperature, top_k, top_p);
    for (int i = 0; i < DRAWS; i++)
        seen[choose((struct op_choice){temperature, top_p, top_k, 7, (uint64_t)i})]++;
    for (int i = 0; i < VOCAB; i++) {
        double want = p[i] * DRAWS, room = 5 * sqrt(want) + 1e-9;
        ck_assert_msg(fabs(seen[i] - want) <= room,
                      "temperature %g, top_k %d, top_p %g: token %d %d times, not %.0f", temperature, top_k,
                      top_p, i, seen[i], want);
    }
}

START_TEST(frequencies)
{
    check_frequencies(1, 0, 1);
    check_frequencies(0.5, 0, 1);
    check_frequencies(2, 5, 1);
    check_frequencies(1, 0, 0.6);
    check_frequencies(1.3, 20, 0.8);
}
END_TEST

START_TEST(borders)
{
    int best = 0;
    for (int i = 0; i < VOCAB; i++)
        best = logits[i] > logits[best] ? i : best;
    for (uint64_t i = 0; i < 200; i++) {
        ck_assert_int_eq(choose((struct op_choice){1, 1, 1, 3, i}), best);
        ck_assert_int_eq(choose((struct op_choice){1, 1e-12, 0, 3, i}), best);
        ck_assert_int_eq(choose((struct op_choice){1e-30, 1, 0, 3, i}), best);
        ck_assert_int_eq(choose((struct op_choice){0, 0.5, 7, 3, i}), best);
    }
    for (int i = 0; i < VOCAB; i++)
        logits[i] = i % 2 ? -INFINITY : NAN;
    ck_assert_int_eq(choose((struct op_choice){1, 0.9, 3, 3, 1}), 0);
    logits[11] = 2;
    ck_assert_int_eq(choose((struct op_choice){1, 0.9, 3, 3, 1}), 11);
    logits[5] = INFINITY; /* inf - inf has no weight */
    ck_assert_int_eq(choose((struct op_choice){1, 0.9, 3, 3, 1}), 5);
    for (int i = 0; i < VOCAB; i++)
        logits[i] = 1; /* of equal ones top_k keeps the lowest ids */
    for (uint64_t i = 0; i < 200; i++)
        ck_assert_int_lt(choose((struct op_choice){1, 1, 4, 3, i}), 4);
}
END_TEST

START_TEST(weights)
{
    uint64_t last = UINT64_MAX;
    for (uint32_t level = 0; level < (uint32_t)CHOICE_REACH << CHOICE_STEPS; level += 999331) {
        uint64_t w = choice_weight(level);
        double want = exp2(CHOICE_REACH - (double)level / (1 << CHOICE_STEPS));
        ck_assert_msg(fabs((double)w - want) <= 1 + 1e-6 * want, "level %u: %llu, not %.1f", level,
                      (unsigned long long)w, want);
        ck_assert(w >= 1 && w <= last);
        last = w;
    }
    ck_assert_uint_eq(choice_weight(CHOICE_NONE), 0);
    ck_assert_uint_eq(choice_level(-50, 0, choice_factor(1)), CHOICE_NONE);
    ck_assert_uint_eq(choice_level(1, 1, choice_factor(1)), 0);
}
END_TEST

/* ---- sequences that come and go while steps are queued ahead */

static struct dtx_seq *sequence(int which)
{
    static const int32_t prompt[] = {3, 9, 27, 1, 5, 8, 13, 2};
    struct dtx_sampling how = {.max_new_tokens = 6 + 5 * which, .top_p = 0.95, .seed = (uint64_t)which};
    struct dtx_seq *s;
    how.temperature = which % 2 ? 1.1 : 0;
    MUST(dtx_seq_new(u.base, NULL, NULL, prompt, (size_t)(1 + which), &how, &s, &e));
    return s;
}

static void check_tokens(const struct dtx_seq *s, const struct dtx_seq *want)
{
    size_t n, m;
    const int32_t *a = dtx_seq_tokens(s, &n), *b = dtx_seq_tokens(want, &m);
    ck_assert_uint_le(n, m);
    ck_assert_mem_eq(a, b, n * sizeof *a);
}

START_TEST(sets_change)
{
    enum { N = 6 };
    struct dtx_seq *alone[N], *v[N] = {0};
    for (int i = 0; i < N; i++) {
        alone[i] = sequence(i);
        while (dtx_seq_finish(alone[i]) == DTX_RUNNING)
            MUST(dtx_seq_step(u.base, &alone[i], 1, &e));
        size_t n;
        dtx_seq_tokens(alone[i], &n);
        ck_assert_uint_eq(n, (size_t)(6 + 5 * i));
    }
    for (int step = 0; step < 120; step++) {
        struct dtx_seq *now[N];
        int n = 0, gone = step % 7 == 3 ? step % N : -1;
        if (gone >= 0) { /* freed with a step of it under way; another takes its memory */
            dtx_seq_free(v[gone]);
            v[gone] = sequence(gone);
        }
        for (int i = 0; i < N; i++) {
            v[i] = v[i] ? v[i] : sequence(i);
            if (step % 5 != i && dtx_seq_finish(v[i]) == DTX_RUNNING)
                now[n++] = v[i];
        }
        for (int again = 0; again < 3; again++) /* the same set a few times, finished ones among them */
            MUST(dtx_seq_step(u.base, now, n, &e));
        for (int i = 0; i < N; i++)
            check_tokens(v[i], alone[i]);
    }
    for (int i = 0; i < N; i++) {
        dtx_seq_free(alone[i]);
        dtx_seq_free(v[i]);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("choice of tokens");
    TCase *c = tcase_create("choice");
    tcase_set_timeout(c, 60);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, frequencies);
    tcase_add_test(c, borders);
    tcase_add_test(c, weights);
    tcase_add_test(c, sets_change);
    suite_add_tcase(s, c);
    return util_main(s);
}
