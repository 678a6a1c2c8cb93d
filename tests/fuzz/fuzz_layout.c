/* Arbitrary paths: what is found names a row of the table, and what the table says about it can be made. */
#include "mnt-layout/layout.h"
#include "tests/fuzz/fuzz.h"

static void check_child(void *arg, const struct layout_entry *child, const char *name)
{
    const char *parent = arg;
    struct layout_match m;
    struct buf path = BUF_INIT;

    FUZZ_ASSERT(name[0] && !strchr(name, '/') && !strchr(name, '{'));
    buf_addf(&path, "%s%s%s", parent, *parent ? "/" : "", name);
    FUZZ_ASSERT(layout_lookup(path.p, &m) == 0 && m.entry == child);
    buf_release(&path);
}

static void check_match(const char *path, const struct layout_match *m)
{
    struct buf text = BUF_INIT;
    int rc;

    FUZZ_ASSERT(m->entry >= layout_table && m->entry < layout_table + layout_count);
    FUZZ_ASSERT(m->nargs >= 0 && m->nargs <= LAYOUT_MAX_ARGS);
    for (int i = 0; i < m->nargs; i++) {
        FUZZ_ASSERT(m->arg[i][0] && memchr(m->arg[i], '\0', LAYOUT_NAME_MAX));
        FUZZ_ASSERT(!strchr(m->arg[i], '/') && strcmp(m->arg[i], "..") != 0 && strstr(path, m->arg[i]));
    }
    FUZZ_ASSERT(!m->rest || (m->rest >= path && m->rest < path + strlen(path)));
    layout_children(path, check_child, (void *)path);
    rc = layout_render(m, &text);
    FUZZ_ASSERT(rc == -ENOENT || (rc == 0 && text.len > 0));
    buf_release(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *path = malloc(size + 1);
    struct layout_match m;

    FUZZ_ASSERT(path);
    memcpy(path, data, size);
    path[size] = '\0';
    if (layout_lookup(path, &m) == 0)
        check_match(path, &m);
    free(path);
    return 0;
}
