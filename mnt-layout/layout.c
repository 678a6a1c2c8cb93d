/* Walking the table of layout_table.c: lookup, children.  The texts made from it are in layout_text.c. */
#include "mnt-layout/layout.h"

#include <errno.h>
#include <string.h>

#include "scheduler/base/text.h"

enum { MAX_ROWS = 256 };

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

/* Could this pattern fit a path that begins so?  Most rows begin with another literal: every request on the
 * mount comes here, so they are left out at a glance. */
static bool begins_so(const char *pattern, struct component have)
{
    return *pattern == '{' || *pattern == '*' ||
           (strncmp(pattern, have.s, have.n) == 0 && (pattern[have.n] == '/' || pattern[have.n] == '\0'));
}

static size_t first_candidates(const char *path, struct candidate c[MAX_ROWS])
{
    struct component have = first_component(path);
    size_t n = 0;

    for (size_t i = 0; i < layout_count; i++)
        if (begins_so(layout_table[i].pattern, have))
            c[n++] = (struct candidate){&layout_table[i], layout_table[i].pattern};
    return n;
}

/* Goes down the path one component at a time, never back: what fits a row better (a literal, a folder of
 * DTX's) hides what fits worse (**), also where it leads nowhere.  So a path below experiments/EXP/ is DTX's
 * or does not exist. */
int layout_lookup(const char *path, struct layout_match *m)
{
    struct candidate c[MAX_ROWS];
    size_t n = first_candidates(path, c), bound = 0;

    m->nargs = 0;
    m->rest = NULL;
    m->entry = &layout_table[0]; /* the root */
    while (*path) {
        struct component have = first_component(path);
        enum fit fit;
        if (!component_ok(have))
            return -ENOENT;
        n = narrow(c, n, have, m->entry && m->entry->kind == LK_DROP_DIR && is_leftover(have), &fit, &bound);
        if (n == 0)
            return -ENOENT;
        if (fit == FIT_REST) {
            m->rest = path;
            m->entry = c[0].row;
            return rest_ok(path) ? 0 : -ENOENT;
        }
        bind(m, have, bound);
        m->entry = complete(c, n);
        path = after_component(have);
    }
    return m->entry ? 0 : -ENOENT;
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
