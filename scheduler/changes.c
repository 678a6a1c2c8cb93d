/* Which generated files and folders change when an object, an experiment or a job does.  A trailing slash:
 * what the folder lists has changed too. */
#include <stdio.h>
#include <string.h>

#include "scheduler/internal.h"

void object_changed(struct sched *s, const struct object *o, bool listed)
{
    const char *slash = o->kind == OBJ_ASK ? strchr(o->name, '/') : NULL, *name = slash ? slash + 1 : o->name;
    char folder[3 * NAME_CAP];

    if (slash)
        snprintf(folder, sizeof(folder), "services/%.*s/ask", (int)(slash - o->name), o->name);
    else
        snprintf(folder, sizeof(folder), "%s", object_kind_collection(o->kind));
    sched_changed(s, "%s/%s.status", folder, name);
    sched_changed(s, "%s/LIST.tsv", folder);
    if (listed)
        sched_changed(s, "%s/", folder);
    if (o->kind == OBJ_TUNED) /* an experiment's name has no dot */
        sched_changed(s, "models/tuned/%.*s.best", (int)strcspn(o->name, "."), o->name);
}

void experiment_changed(struct sched *s, const struct experiment *x, bool listed)
{
    sched_changed(s, "experiments/%s%s", x->name, listed ? "/" : "");
    sched_changed(s, "experiments/%s.status", x->name);
    sched_changed(s, "experiments/LIST.tsv");
    if (listed)
        sched_changed(s, "experiments/");
}

void job_changed(struct sched *s, const struct job *j, bool listed)
{
    if (j->number) {
        sched_changed(s, "experiments/%s/jobs/%s%s", j->exp->name, j->name, listed ? "/" : "");
        sched_changed(s, "experiments/%s/jobs/%s.status", j->exp->name, j->name);
        sched_changed(s, "experiments/%s/jobs/LIST.tsv", j->exp->name);
        if (listed)
            sched_changed(s, "models/tuned/%s.best", j->exp->name);
    }
    experiment_changed(s, j->exp, false);
}
