/* Who is best: the highest score; without an evaluation the lowest eval_loss; ties by perplexity, then by
 * number. */
#include <stdio.h>

#include "scheduler/base/json.h"
#include "scheduler/internal.h"

static bool number_of(const struct job *j, const char *key, double *out)
{
    const json_t *v = json_object_get(j->result, key);

    if (!json_is_number(v))
        return false;
    *out = json_number_value(v);
    return true;
}

bool job_has_score(const struct job *j, double *score)
{
    return number_of(j, "score", score);
}

/* <0: a is better.  A value beats none; sign 1: low is good, -1: high is good. */
static int by(const struct job *a, const struct job *b, const char *key, int sign)
{
    double x = 0, y = 0;
    bool has_x = number_of(a, key, &x), has_y = number_of(b, key, &y);

    if (has_x != has_y)
        return has_x ? -1 : 1;
    return !has_x || x == y ? 0 : (x < y ? -sign : sign);
}

static int compare_jobs(const struct job *a, const struct job *b)
{
    int d = (b->state == ST_SUCCESSFUL) - (a->state == ST_SUCCESSFUL);

    if (d == 0)
        d = by(a, b, "score", -1);
    if (d == 0 && !json_is_object(json_object_get(a->exp->pins, "evaluation")))
        d = by(a, b, "eval_loss", 1);
    if (d == 0)
        d = by(a, b, "perplexity", 1);
    return d ? d : a->number - b->number;
}

int job_rank_order(const void *a, const void *b)
{
    return compare_jobs(*(struct job *const *)a, *(struct job *const *)b);
}

bool tuned_ready(struct sched *s, const struct job *j)
{
    char name[2 * NAME_CAP];
    const struct object *o;

    snprintf(name, sizeof(name), "%s.%s", j->exp->name, j->name);
    o = object_find(s, OBJ_TUNED, name);
    return o && o->state == ST_READY;
}

/* with s: of those whose models are there */
static struct job *best_of(struct sched *s, const struct experiment *x)
{
    const char *key = json_is_object(json_object_get(x->pins, "evaluation")) ? "score" : "eval_loss";
    struct job *best = NULL;
    double value;

    for (int i = 0; i < x->njobs; i++) {
        struct job *j = x->jobs[i];
        if (j->state == ST_SUCCESSFUL && number_of(j, key, &value) && (!best || compare_jobs(j, best) < 0) &&
            (!s || tuned_ready(s, j)))
            best = j;
    }
    return best;
}

struct job *best_job(const struct experiment *x)
{
    return best_of(NULL, x);
}

struct job *best_model(struct sched *s, const struct experiment *x)
{
    return best_of(s, x);
}
