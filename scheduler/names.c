/* From paths to objects, and the names of jobs. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/text.h"
#include "scheduler/internal.h"

const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

/* The innermost object that a path belongs to: a prompt in services/NAME/ask is one of its own. */
bool place_of(const char *path, struct place *p)
{
    struct layout_match m;
    size_t end;

    if (strlen(path) >= sizeof(p->root) || layout_object(path, &m, &end))
        return false;
    p->kind = m.entry->object;
    p->folder = m.entry->kind != LK_USER_FILE;
    memcpy(p->root, path, end);
    p->root[end] = '\0';
    if (m.nargs > 1)
        snprintf(p->name, sizeof(p->name), "%s/%s", m.arg[0], m.arg[1]);
    else
        snprintf(p->name, sizeof(p->name), "%s", m.arg[0]);
    p->is_root = path[end] == '\0';
    p->rest = path + end + !p->is_root;
    return true;
}

static void add_part(char *out, size_t n, const char *part)
{
    size_t len = strlen(out);

    snprintf(out + len, n - len, "-%s", part);
    for (char *c = out + len + 1; *c; c++)
        if (*c == '/')
            *c = '.';
}

void job_name(const struct job *j, const struct job_axes *axes, int njobs, char *out, size_t n)
{
    const char *model = strncmp(j->model, "tuned/", 6) == 0 ? j->model + 6 : j->model;
    char seed[32];
    size_t len, step;

    snprintf(out, n, "%0*d", njobs > 999 ? 4 : njobs > 99 ? 3 : 2, j->number);
    add_part(out, n, j->paramgroup);
    if (axes->dataset)
        add_part(out, n, j->dataset);
    if (axes->model)
        add_part(out, n, model);
    if (axes->seed) {
        snprintf(seed, sizeof(seed), "s%lld", j->seed);
        add_part(out, n, seed);
    }
    /* Too long: cut at a whole character.  The number keeps it unique. */
    for (len = 0;
         out[len] && (step = text_utf8_step(out + len, strlen(out + len))) && len + step <= JOB_NAME_MAX;)
        len += step;
    out[len] = '\0';
}
