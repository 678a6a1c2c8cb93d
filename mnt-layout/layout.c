/* Walking the table of layout_table.c: lookup, children.  The texts made from it are in layout_text.c. */
#include "mnt-layout/layout.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "scheduler/base/text.h"

/* Rows that begin with the same literal; such literals. */
enum { MAX_ROWS = 96, MAX_GROUPS = 64 };

/* How closely a pattern component fits, worst first. */
enum fit { FIT_NOT, FIT_REST, FIT_NAME, FIT_SUFFIX, FIT_LITERAL };

struct component {
    const char *s;
    size_t n;
};

/* A row that fits the path so far. */
struct candidate {
    const struct layout_entry *row;
    const char *left; /* what is left of its pattern */
};

/* The next component of a path or pattern; n is 0 at the end. */
static struct component first_component(const char *path)
{
    return (struct component){path, (size_t)(strchrnul(path, '/') - path)};
}

static const char *after_component(struct component c)
{
    return c.s[c.n] == '/' ? c.s + c.n + 1 : c.s + c.n;
}

static bool is_rest(struct component want)
{
    return want.n == 2 && memcmp(want.s, "**", 2) == 0;
}

/* Does `have` fit the pattern component `want`?  *bound is how many bytes {name} takes. */
static enum fit fit_component(struct component want, struct component have, bool no_names, size_t *bound)
{
    const char *close;
    size_t suffix;

    *bound = 0;
    if (is_rest(want))
        return FIT_REST;
    if (want.s[0] != '{')
        return want.n == have.n && memcmp(want.s, have.s, have.n) == 0 ? FIT_LITERAL : FIT_NOT;
    close = memchr(want.s, '}', want.n);
    suffix = want.n - (size_t)(close + 1 - want.s);
    if (no_names || have.n <= suffix || memcmp(have.s + have.n - suffix, close + 1, suffix) != 0)
        return FIT_NOT;
    if (strncmp(want.s, "{exp}", 5) == 0 && memchr(have.s, '.', have.n - suffix))
        return FIT_NOT;
    *bound = have.n - suffix;
    return suffix ? FIT_SUFFIX : FIT_NAME;
}

/* Keep only the candidates that fit the next component best, and move them past it.  All of them have bound
 * the same bytes, because equal fits at equal places come from equal components (the tests hold the table to
 * that). */
static size_t narrow(struct candidate *c, size_t n, struct component have, bool no_names, enum fit *best,
                     size_t *bound)
{
    size_t kept = 0;

    *best = FIT_NOT;
    for (size_t i = 0; i < n; i++) {
        struct component want = first_component(c[i].left);
        size_t b = 0;
        enum fit f = want.n ? fit_component(want, have, no_names, &b) : FIT_NOT;
        if (f == FIT_NOT || f < *best)
            continue;
        if (f > *best)
            kept = 0;
        *best = f;
        *bound = b;
        c[kept++] = (struct candidate){c[i].row, after_component(want)};
    }
    return kept;
}

/* The candidate whose pattern ends here. */
static const struct layout_entry *complete(const struct candidate *c, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (*c[i].left == '\0')
            return c[i].row;
    return NULL;
}

/* Has the path a good next component?  Not "", "." or "..", not too long, no slash at the end. */
static bool component_ok(struct component c)
{
    if (c.n == 0 || c.n >= LAYOUT_NAME_MAX || (c.s[c.n] == '/' && c.s[c.n + 1] == '\0'))
        return false;
    return !(c.s[0] == '.' && (c.n == 1 || (c.n == 2 && c.s[1] == '.')));
}

static bool rest_ok(const char *rest)
{
    while (*rest) {
        struct component c = first_component(rest);
        if (!component_ok(c))
            return false;
        rest = after_component(c);
    }
    return true;
}

static bool is_leftover(struct component c)
{
    char name[LAYOUT_NAME_MAX];

    memcpy(name, c.s, c.n);
    name[c.n] = '\0';
    return name_is_leftover(name);
}

static void bind(struct layout_match *m, struct component have, size_t bound)
{
    if (bound == 0 || m->nargs == LAYOUT_MAX_ARGS)
        return;
    memcpy(m->arg[m->nargs], have.s, bound);
    m->arg[m->nargs++][bound] = '\0';
}

/* ---- where a lookup begins ----
 *
 * Every request on the mount comes here several times, and most rows begin with another literal than the
 * path: the rows are grouped by it, once. */

struct group {
    struct component first;
    size_t count;
    struct candidate row[MAX_ROWS];
};

static struct group groups[MAX_GROUPS];
static size_t group_count;
static pthread_once_t grouped = PTHREAD_ONCE_INIT;

static struct group *find_group(struct component first)
{
    for (size_t i = 0; i < group_count; i++)
        if (groups[i].first.n == first.n && memcmp(groups[i].first.s, first.s, first.n) == 0)
            return &groups[i];
    return NULL;
}

/* No pattern begins with {name} or ** (the tests hold the table to that). */
static void make_groups(void)
{
    for (size_t i = 0; i < layout_count; i++) {
        struct component first = first_component(layout_table[i].pattern);
        struct group *g = find_group(first);
        if (!g && group_count < MAX_GROUPS) {
            g = &groups[group_count++];
            g->first = first;
        }
        if (g && g->count < MAX_ROWS)
            g->row[g->count++] = (struct candidate){&layout_table[i], after_component(first)};
    }
}

/* ---- going down a path ---- */

struct walk {
    struct candidate c[MAX_ROWS];
    size_t n;
    const char *path; /* what is left of it */
    bool begun;
};

/* The rows that fit the first component, which has no other fit than a literal one. */
static enum fit begin(struct walk *w, struct component have)
{
    const struct group *g = find_group(have);

    w->begun = true;
    w->n = g ? g->count : 0;
    if (g)
        memcpy(w->c, g->row, g->count * sizeof(g->row[0]));
    return FIT_LITERAL;
}

/* One component further.  Never back: what fits a row better (a literal, a folder of DTX's) hides what fits
 * worse (**), also where it leads nowhere.  So a path below experiments/EXP/ is DTX's or does not exist. */
static int step(struct walk *w, struct layout_match *m)
{
    struct component have = first_component(w->path);
    size_t bound = 0;
    enum fit fit;

    if (!component_ok(have))
        return -ENOENT;
    if (!w->begun)
        fit = begin(w, have);
    else
        w->n = narrow(w->c, w->n, have, m->entry && m->entry->kind == LK_DROP_DIR && is_leftover(have), &fit,
                      &bound);
    if (w->n == 0)
        return -ENOENT;
    if (fit == FIT_REST) {
        m->rest = w->path;
        m->entry = w->c[0].row;
        w->path += strlen(w->path);
        return rest_ok(m->rest) ? 0 : -ENOENT;
    }
    bind(m, have, bound);
    m->entry = complete(w->c, w->n);
    w->path = after_component(have);
    return 0;
}

static void start(struct walk *w, const char *path, struct layout_match *m)
{
    pthread_once(&grouped, make_groups);
    w->path = path;
    w->begun = false;
    m->nargs = 0;
    m->rest = NULL;
    m->entry = &layout_table[0]; /* the root */
}

int layout_lookup(const char *path, struct layout_match *m)
{
    struct walk w;

    for (start(&w, path, m); *w.path;)
        if (step(&w, m))
            return -ENOENT;
    return m->entry ? 0 : -ENOENT;
}

int layout_object(const char *path, struct layout_match *m, size_t *end)
{
    const struct layout_entry *found = NULL;
    struct walk w;
    int nargs = 0;

    start(&w, path, m);
    while (*w.path && step(&w, m) == 0)
        if (m->entry && !m->rest && m->entry->object != OBJ_NONE && m->nargs > 0) {
            found = m->entry;
            nargs = m->nargs;
            *end = (size_t)(w.path - path) - (*w.path != '\0');
        }
    m->entry = found;
    m->nargs = nargs;
    m->rest = NULL;
    return found ? 0 : -ENOENT;
}

void layout_children(const char *path,
                     void (*fn)(void *arg, const struct layout_entry *child, const char *name), void *arg)
{
    struct layout_match m;
    size_t n;

    if (layout_lookup(path, &m) || m.rest)
        return;
    n = strlen(m.entry->pattern);
    for (size_t i = 0; i < layout_count; i++) {
        const char *p = layout_table[i].pattern, *name = n ? p + n + 1 : p;
        if (strncmp(p, m.entry->pattern, n) != 0 || (n && p[n] != '/') || *p == '\0')
            continue;
        if (!strchr(name, '/') && !strchr(name, '{') && strcmp(name, "**") != 0)
            fn(arg, &layout_table[i], name);
    }
}
