/* models/by-X/VALUE/NAME: the tuned models filed by a property, from their catalog entries. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/internal.h"

static const struct category {
    const char *dir, *key;
    bool of_metadata;
} categories[] = {
    {"models/by-base", "base", false},
    {"models/by-dataset", "dataset", false},
    {"models/by-experiment", "experiment", false},
    {"models/by-task", "task", true},
    {"models/by-language", "languages", true},
    {"models/by-tag", "tags", true},
};

static const struct category *category_of(const struct layout_match *m)
{
    for (size_t i = 0; i < sizeof(categories) / sizeof(categories[0]); i++) {
        size_t n = strlen(categories[i].dir);
        if (strncmp(m->entry->pattern, categories[i].dir, n) == 0 &&
            (m->entry->pattern[n] == '/' || m->entry->pattern[n] == '\0'))
            return &categories[i];
    }
    return NULL;
}

/* A value as the name of a folder: what a name cannot hold becomes a dash. */
static bool folder_name(const char *value, char *out, size_t n)
{
    size_t i = 0;

    if (!value || !*value || *value == '.')
        return false;
    for (; value[i] && i + 1 < n; i++)
        out[i] = value[i] == '/' || (unsigned char)value[i] < 0x20 ? '-' : value[i];
    out[i] = '\0';
    return value[i] == '\0';
}

/* Call fn for each folder of a category in which a model is. */
static void each_value(const struct category *c, const struct object *o,
                       void (*fn)(void *arg, const char *name), void *arg)
{
    const json_t *from = c->of_metadata ? json_object_get(o->spec, "metadata") : o->spec;
    const json_t *v = json_object_get(from, c->key);
    char name[NAME_CAP];

    if (json_is_string(v) && folder_name(json_string_value(v), name, sizeof(name)))
        fn(arg, name);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (folder_name(json_string_value(json_array_get(v, i)), name, sizeof(name)))
            fn(arg, name);
}

struct want {
    const char *name;
    bool found;
};

static void match(void *arg, const char *name)
{
    struct want *w = arg;

    w->found |= strcmp(w->name, name) == 0;
}

static bool is_in(const struct category *c, const struct object *o, const char *value)
{
    struct want w = {.name = value};

    if (o->kind == OBJ_TUNED && o->state == ST_READY)
        each_value(c, o, match, &w);
    return w.found;
}

bool category_has(struct sched *s, const struct layout_match *m, struct subject *out)
{
    const struct category *c = category_of(m);

    if (!c)
        return false;
    if (m->nargs > 1) {
        struct object *o = object_find(s, OBJ_TUNED, m->arg[1]);
        if (!o || !is_in(c, o, m->arg[0]))
            return false;
        out->object = o;
        return true;
    }
    for (int i = 0; i < s->nobjects; i++)
        if (is_in(c, s->objects[i], m->arg[0]))
            return true;
    return false;
}

int list_category(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
                  void *arg)
{
    const struct category *c = category_of(m);

    for (int i = 0; c && i < s->nobjects; i++)
        if (s->objects[i]->kind == OBJ_TUNED)
            each_value(c, s->objects[i], fn, arg); /* the file system drops what comes twice */
    return 0;
}

int list_category_value(struct sched *s, const struct layout_match *m,
                        void (*fn)(void *arg, const char *name), void *arg)
{
    const struct category *c = category_of(m);

    for (int i = 0; c && i < s->nobjects; i++)
        if (is_in(c, s->objects[i], m->arg[0]))
            fn(arg, s->objects[i]->name);
    return 0;
}

int render_category_link(struct sched *s, const struct layout_match *m, struct buf *out)
{
    buf_addf(out, "../../tuned/%s", m->arg[1]);
    return 0;
}
