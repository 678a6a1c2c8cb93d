/*
 * Line charts as self-contained SVG.  Curves of one name share a colour (a job's loss and, dashed, its eval
 * loss) and one entry in the legend, which stands below the plot in columns.
 */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/report/markup.h"
#include "scheduler/report/report.h"

enum {
    WIDTH = 960,
    LEFT = 66, /* y labels */
    RIGHT = 18,
    TOP = 44, /* title */
    PLOT_W = WIDTH - LEFT - RIGHT,
    PLOT_H = 330,
    AXIS_H = 46, /* x labels */
    LEGEND_ROW = 20,
    LETTER = 7, /* width of one, about */
    MAX_TICKS = 30,
};

struct axis {
    double low, high, step;
    double origin, scale; /* pixel = origin + scale * value */
};

struct range {
    double low, high;
};

static bool shown(const struct curve *c, size_t i)
{
    return fabs(c->x[i]) < 1e100 && fabs(c->y[i]) < 1e100; /* false for NAN */
}

static void widen(struct range *r, double v)
{
    if (v < r->low)
        r->low = v;
    if (v > r->high)
        r->high = v;
}

/* 1, 2 or 5 times a power of ten: about `want` steps in a span. */
static double nice_step(double span, int want)
{
    double raw = span / want, power = pow(10, floor(log10(raw))), f = raw / power;

    return power * (f < 1.5 ? 1 : f < 3.5 ? 2 : f < 7.5 ? 5 : 10);
}

static struct axis x_axis(struct range r)
{
    struct axis a = {.low = r.low, .high = r.high};

    if (!(a.high > a.low)) {
        a.low -= .5;
        a.high += .5;
    }
    a.step = nice_step(a.high - a.low, 8);
    if (a.step < 1 && a.high - a.low >= 4) /* steps are whole */
        a.step = 1;
    a.scale = PLOT_W / (a.high - a.low);
    a.origin = LEFT - a.scale * a.low;
    return a;
}

/* Ends at ticks, so that the grid is whole. */
static struct axis y_axis(struct range r)
{
    struct axis a = {.low = r.low, .high = r.high};

    if (!(a.high - a.low > 1e-12 * fmax(fabs(a.high), fabs(a.low)))) {
        double d = a.low == 0 ? 1 : fabs(a.low) * .1;
        a.low -= d;
        a.high += d;
    }
    a.step = nice_step(a.high - a.low, 5);
    a.low = a.step * floor(a.low / a.step);
    a.high = a.step * ceil(a.high / a.step);
    a.scale = -(PLOT_H / (a.high - a.low));
    a.origin = TOP + PLOT_H - a.scale * a.low;
    return a;
}

static double pixel(const struct axis *a, double v)
{
    return a->origin + a->scale * v;
}

static double tick(const struct axis *a, int k)
{
    return (ceil(a->low / a->step - 1e-9) + k) * a->step;
}

static void add_tick(struct buf *out, double v, double step)
{
    int decimals = step >= 1 ? 0 : (int)ceil(-log10(step) - 1e-9);

    if (fabs(v) < step * 1e-6)
        v = 0;
    if (fabs(v) >= 1e6 || (step < 1e-5 && v != 0))
        buf_addf(out, "%.4g", v);
    else if (step >= 1000)
        buf_addf(out, "%.10gk", v / 1000);
    else
        buf_addf(out, "%.*f", decimals, v);
}

/* Colours for viewers without CSS stand in the attributes; the style adds the dark ones. */
static const char style[] =
    "<style>.dtxc text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',Arial,sans-serif}"
    ".dtxc .t{font-size:15px;font-weight:600}"
    "@media(prefers-color-scheme:dark){.dtxc .b{fill:#1b212a}.dtxc text{fill:#aab4c2}.dtxc .t{fill:#e4e9f0}"
    ".dtxc .g{stroke:#2f3845}.dtxc .x{stroke:#5d6b7e}}</style>";

static void add_label(struct buf *out, double x, double y, const char *anchor, const char *class,
                      const char *text)
{
    buf_addf(out, "<text class=\"%s\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" fill=\"#4d5a6b\">", class, x,
             y, anchor);
    markup_text(out, text);
    buf_adds(out, "</text>\n");
}

static void add_axes(struct buf *out, const struct axis *x, const struct axis *y, const char *x_label,
                     const char *y_label)
{
    for (int k = 0; k < MAX_TICKS && tick(y, k) <= y->high + y->step * 1e-6; k++) {
        double v = tick(y, k), at = pixel(y, v);
        buf_addf(out, "<line class=\"g\" x1=\"%d\" y1=\"%.1f\" x2=\"%d\" y2=\"%.1f\" stroke=\"#e3e7ec\"/>",
                 LEFT, at, WIDTH - RIGHT, at);
        buf_addf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" fill=\"#4d5a6b\">", LEFT - 9, at + 4.5);
        add_tick(out, v, y->step);
        buf_adds(out, "</text>\n");
    }
    buf_addf(out, "<line class=\"x\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"#8a96a6\"/>\n", LEFT,
             TOP + PLOT_H, WIDTH - RIGHT, TOP + PLOT_H);
    for (int k = 0; k < MAX_TICKS && tick(x, k) <= x->high + x->step * 1e-6; k++) {
        double v = tick(x, k), at = pixel(x, v);
        buf_addf(out, "<line class=\"x\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#8a96a6\"/>",
                 at, TOP + PLOT_H, at, TOP + PLOT_H + 5);
        buf_addf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\" fill=\"#4d5a6b\">", at,
                 TOP + PLOT_H + 20);
        add_tick(out, v, x->step);
        buf_adds(out, "</text>\n");
    }
    add_label(out, LEFT + PLOT_W / 2.0, TOP + PLOT_H + 39, "middle", "l", x_label);
    buf_addf(out, "<g transform=\"translate(15 %.1f) rotate(-90)\">", TOP + PLOT_H / 2.0);
    add_label(out, 0, 0, "middle", "l", y_label);
    buf_adds(out, "</g>\n");
}

/* ---- curves ---- */

struct pen {
    struct buf *out;
    const struct axis *x, *y;
    bool down; /* in a line: the next point goes on */
};

static void pen_to(struct pen *p, const struct curve *c, size_t i)
{
    buf_addf(p->out, "%c%.1f %.1f", p->down ? 'L' : 'M', pixel(p->x, c->x[i]), pixel(p->y, c->y[i]));
    p->down = true;
}

/* Points a to b - 1, all shown and in one column of pixels: the first, the least, the greatest and the last
 * in the order in which they come, which looks the same as all of them. */
static void pen_column(struct pen *p, const struct curve *c, size_t a, size_t b)
{
    size_t least = a, most = a, pick[4];

    for (size_t i = a; i < b; i++) {
        if (c->y[i] < c->y[least])
            least = i;
        if (c->y[i] > c->y[most])
            most = i;
    }
    pick[0] = a;
    pick[1] = least < most ? least : most;
    pick[2] = least < most ? most : least;
    pick[3] = b - 1;
    for (int k = 0; k < 4; k++)
        if (k == 0 || pick[k] != pick[k - 1])
            pen_to(p, c, pick[k]);
}

static void add_path(struct pen *p, const struct curve *c)
{
    for (size_t i = 0; i < c->n;) {
        size_t end = i + 1;
        if (!shown(c, i)) {
            p->down = false;
            i++;
            continue;
        }
        while (end < c->n && shown(c, end) && floor(pixel(p->x, c->x[end])) == floor(pixel(p->x, c->x[i])))
            end++;
        pen_column(p, c, i, end);
        i = end;
    }
}

static bool alone(const struct curve *c, size_t i)
{
    return shown(c, i) && (i == 0 || !shown(c, i - 1)) && (i + 1 == c->n || !shown(c, i + 1));
}

/* Dots where there are few points, and for a point between two gaps, which has no line. */
static void add_dots(struct pen *p, const struct curve *c, const char *color)
{
    size_t dots = 0;

    for (size_t i = 0; i < c->n && dots < 200; i++) {
        if (!shown(c, i) || (c->n > 24 && !alone(c, i)))
            continue;
        buf_addf(p->out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>", pixel(p->x, c->x[i]),
                 pixel(p->y, c->y[i]), color);
        dots++;
    }
}

static void add_curve(struct buf *out, const struct curve *c, const char *color, const struct axis *x,
                      const struct axis *y)
{
    struct pen p = {out, x, y, false};

    buf_addf(out, "<g><title>");
    markup_text(out, c->name);
    buf_addf(
        out,
        "%s</title><path fill=\"none\" stroke=\"%s\" stroke-width=\"1.9\" stroke-linejoin=\"round\"%s d=\"",
        c->dashed ? " (eval)" : "", color, c->dashed ? " stroke-dasharray=\"6 4\"" : "");
    add_path(&p, c);
    buf_adds(out, "\"/>");
    add_dots(&p, c, color);
    buf_adds(out, "</g>\n");
}

/* ---- legend ---- */

/* index[i]: which of the distinct names curve i has, in order of first appearance; returns how many there
 * are. */
static size_t name_indices(const struct curve *curves, size_t n, size_t *index)
{
    size_t distinct = 0;

    for (size_t i = 0; i < n; i++) {
        size_t k = 0;
        while (strcmp(curves[k].name, curves[i].name))
            k++;
        index[i] = k < i ? index[k] : distinct++;
    }
    return distinct;
}

struct legend {
    size_t entries, columns, rows;
    bool dashed;
};

static struct legend legend_of(const struct curve *curves, size_t n, size_t entries)
{
    struct legend l = {.entries = entries};
    size_t longest = 0, fit;

    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(curves[i].name);
        l.dashed |= curves[i].dashed;
        longest = len > longest ? len : longest;
    }
    fit = PLOT_W / (longest * LETTER + 50);
    l.columns = fit < 1 ? 1 : fit > 6 ? 6 : fit;
    l.rows = (l.entries + l.columns - 1) / l.columns;
    return l;
}

static void add_sample(struct buf *out, double x, double y, const char *color, bool dashed)
{
    buf_addf(out,
             "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"3\"%s/>", x,
             y - 4.5, x + 22, y - 4.5, color, dashed ? " stroke-dasharray=\"6 4\"" : "");
}

static void add_legend(struct buf *out, const struct curve *curves, size_t n, const size_t *index,
                       const struct legend *l)
{
    double top = TOP + PLOT_H + AXIS_H + 16;
    char color[MARKUP_COLOR];
    size_t next = 0;

    for (size_t i = 0; i < n; i++) {
        size_t k = index[i];
        double x, y;
        if (k != next) /* its name is there already */
            continue;
        next++;
        x = LEFT + (double)(k / l->rows) * (PLOT_W / (double)l->columns);
        y = top + (double)(k % l->rows) * LEGEND_ROW;
        markup_color(k, color);
        add_sample(out, x, y, color, false);
        add_label(out, x + 29, y, "start", "l", curves[i].name);
    }
    if (l->dashed) {
        add_sample(out, WIDTH - RIGHT - 178, 26, "#8a96a6", false);
        add_label(out, WIDTH - RIGHT - 150, 26, "start", "l", "train");
        add_sample(out, WIDTH - RIGHT - 92, 26, "#8a96a6", true);
        add_label(out, WIDTH - RIGHT - 64, 26, "start", "l", "evaluation");
    }
}

static void add_plot(struct buf *out, const char *x_label, const char *y_label, const struct curve *curves,
                     size_t n, const size_t *index)
{
    struct range rx = {DBL_MAX, -DBL_MAX}, ry = {DBL_MAX, -DBL_MAX};
    char color[MARKUP_COLOR];
    struct axis x, y;

    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < curves[i].n; k++)
            if (shown(&curves[i], k)) {
                widen(&rx, curves[i].x[k]);
                widen(&ry, curves[i].y[k]);
            }
    if (rx.low > rx.high) {
        add_label(out, WIDTH / 2.0, TOP + PLOT_H / 2.0, "middle", "l", "no numbers yet");
        return;
    }
    x = x_axis(rx);
    y = y_axis(ry);
    add_axes(out, &x, &y, x_label, y_label);
    for (size_t i = 0; i < n; i++) {
        markup_color(index[i], color);
        add_curve(out, &curves[i], color, &x, &y);
    }
}

void chart_svg(struct buf *out, const char *title, const char *x_label, const char *y_label,
               const struct curve *curves, size_t n)
{
    size_t *index = calloc(n + 1, sizeof(*index));
    struct legend l;
    int height;

    if (!index) {
        out->failed = true;
        return;
    }
    l = legend_of(curves, n, name_indices(curves, n, index));
    height = TOP + PLOT_H + AXIS_H + 16 + (int)l.rows * LEGEND_ROW;
    buf_addf(out,
             "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"dtxc\" viewBox=\"0 0 %d %d\" width=\"%d\" "
             "height=\"%d\" "
             "font-family=\"sans-serif\" font-size=\"13\" role=\"img\">%s\n<title>",
             WIDTH, height, WIDTH, height, style);
    markup_text(out, title);
    buf_addf(out, "</title><rect class=\"b\" width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", WIDTH, height);
    add_label(out, LEFT, 27, "start", "t", title);
    add_plot(out, x_label, y_label, curves, n, index);
    add_legend(out, curves, n, index, &l);
    buf_adds(out, "</svg>\n");
    free(index);
}
