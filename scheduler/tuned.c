/* Tuned models: the catalog's entry for a folder that a worker made in models/tuned/. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/internal.h"

static void copy(json_t *to, const char *key, const json_t *from)
{
    json_object_set_new(to, key, from ? json_deep_copy(from) : json_null());
}

static json_t *describe(const struct job *j)
{
    json_t *v = json_pack("{ss ss ss ss ss}", "base", j->base, "experiment", j->exp->name, "job", j->name,
                          "dataset", j->dataset, "paramgroup", j->paramgroup);

    copy(v, "score", json_object_get(j->result, "score"));
    copy(v, "eval_loss", json_object_get(j->result, "eval_loss"));
    copy(v, "metadata", json_object_get(json_object_get(j->data, "spec"), "metadata"));
    return v;
}

int tuned_register(struct sched *s, struct job *j)
{
    char name[2 * NAME_CAP], path[PATH_MAX];
    struct caller who = {.uid = j->exp->uid, .gid = j->exp->gid};
    struct stamp st = {0};
    struct object *o;
    int rc;

    snprintf(name, sizeof(name), "%s.%s", j->exp->name, j->name);
    snprintf(path, sizeof(path), "models/tuned/%s", name);
    o = object_get(s, OBJ_TUNED, name, &who);
    if (!o)
        return -ENOMEM;
    slow_begin(s);
    stamp_path(s->tree_fd, path, &st);
    slow_end(s);
    o->size = st.bytes;
    stamp_text(&st, o->stamp, sizeof(o->stamp));
    set_json(&o->spec, describe(j));
    if (o->state == ST_READY) {
        object_keep(s, o);
        return 0;
    }
    rc = object_event(s, o, EV_DONE, NULL);
    if (rc)
        object_drop_unsaved(s, o);
    return rc;
}
