/* metrics.csv -> curves. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/buf.h"
#include "scheduler/report/report.h"

enum { CURVE_MAX_POINTS = 4 << 20, CURVE_MAX_FIELDS = 32 };

struct points {
    double *x, *y;
    size_t n, cap;
};

static int points_add(struct points *p, double x, double y)
{
    if (p->n == CURVE_MAX_POINTS)
        return 0;
    if (p->n == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 256;
        double *grown = realloc(p->x, cap * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        p->x = grown;
        grown = realloc(p->y, cap * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        p->y = grown;
        p->cap = cap;
    }
    p->x[p->n] = x;
    p->y[p->n++] = y;
    return 0;
}

/* Fields of one line as [start, length]; returns their number. */
static int split(const char *line, size_t n, size_t at[CURVE_MAX_FIELDS][2])
{
    int k = 0;
    size_t start = 0;

    for (size_t i = 0; i <= n && k < CURVE_MAX_FIELDS; i++)
        if (i == n || line[i] == ',') {
            at[k][0] = start;
            at[k++][1] = i - start;
            start = i + 1;
        }
    return k;
}

/* NAN where there is no number. */
static double number(const char *line, size_t at[CURVE_MAX_FIELDS][2], int fields, int k)
{
    char text[48], *end;
    double v;

    if (k < 0 || k >= fields || at[k][1] == 0 || at[k][1] >= sizeof(text))
        return NAN;
    memcpy(text, line + at[k][0], at[k][1]);
    text[at[k][1]] = '\0';
    v = strtod(text, &end);
    return end == text ? NAN : v;
}

static int column(const char *line, size_t at[CURVE_MAX_FIELDS][2], int fields, const char *name)
{
    for (int k = 0; k < fields; k++)
        if (at[k][1] == strlen(name) && memcmp(line + at[k][0], name, at[k][1]) == 0)
            return k;
    return -1;
}

static int read_csv(const char *csv, size_t len, struct points *loss, struct points *eval)
{
    size_t at[CURVE_MAX_FIELDS][2], n = 0;
    int step = -1, loss_at = -1, eval_at = -1;

    for (const char *line = csv, *end = csv + len; line < end; line += n + 1) {
        const char *nl = memchr(line, '\n', (size_t)(end - line));
        int fields, rc = 0;
        double x, y;
        if (!nl) /* a line that is still being written */
            break;
        n = (size_t)(nl - line);
        fields = split(line, n && line[n - 1] == '\r' ? n - 1 : n, at);
        if (line == csv) {
            step = column(line, at, fields, "step");
            loss_at = column(line, at, fields, "loss");
            eval_at = column(line, at, fields, "eval_loss");
            continue;
        }
        x = number(line, at, fields, step);
        if (!isfinite(x))
            continue;
        rc = points_add(loss, x, number(line, at, fields, loss_at));
        y = number(line, at, fields, eval_at);
        if (rc == 0 && isfinite(y))
            rc = points_add(eval, x, y);
        if (rc)
            return rc;
    }
    return 0;
}

/* Takes the points, also none: a job is in the legend from its start. */
static int curves_add(struct curves *c, const char *name, struct points *p, bool dashed)
{
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 8;
        struct curve *grown = realloc(c->v, cap * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        c->v = grown;
        c->cap = cap;
    }
    name = strdup(name);
    if (!name)
        return -ENOMEM;
    c->v[c->n++] = (struct curve){.name = name, .x = p->x, .y = p->y, .n = p->n, .dashed = dashed};
    memset(p, 0, sizeof(*p));
    return 0;
}

static void points_release(struct points *p)
{
    free(p->x);
    free(p->y);
}

int curves_add_csv(struct curves *c, const char *name, const char *csv, size_t len)
{
    struct points loss = {0}, eval = {0};
    int rc = read_csv(csv, len, &loss, &eval);

    if (rc == 0)
        rc = curves_add(c, name, &loss, false);
    if (rc == 0 && eval.n)
        rc = curves_add(c, name, &eval, true);
    points_release(&loss);
    points_release(&eval);
    return rc;
}

void curves_release(struct curves *c)
{
    for (size_t i = 0; i < c->n; i++) {
        free((char *)c->v[i].name);
        free((double *)c->v[i].x);
        free((double *)c->v[i].y);
    }
    free(c->v);
    memset(c, 0, sizeof(*c));
}
