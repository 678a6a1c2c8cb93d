/*
 * Who may see what an object is made of.  The daemon reads everything as root, so what it shows and uses of
 * one user's files for another must follow the modes that the first one gave them:
 *
 *   foreign  a file in an object that the object's owner may not read: somebody else's, in a folder that both
 * can write.  Such an object is REJECTED: as root we would read it for the owner
 *
 *   closed   permission bits (a class of users at a time: 07 others, 070 the group) that some file or folder
 * of the object withholds; noted when the object is taken or its modes change (stamp_path)
 *
 * NAME.status has no more readers than the object; LIST.tsv, status and the log leave the reasons of closed
 * objects out, because they quote; an experiment uses only what its owner may read, and its folder and models
 * are as closed as the most closed thing it was made from.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

mode_t privacy_of(mode_t mode)
{
    mode_t need = S_ISDIR(mode) ? 05 : 04, closed = 0;

    if (S_ISLNK(mode))
        return 0;
    if ((mode & need) != need)
        closed |= 07;
    if ((mode & need << 3) != need << 3)
        closed |= 070;
    return closed;
}

mode_t privacy_of_part(const struct stat *st, uid_t uid, gid_t gid, bool *foreign)
{
    mode_t closed = privacy_of(st->st_mode);
    bool group_reads = !(closed & 070);

    *foreign = false;
    if (!(closed & 07) || S_ISLNK(st->st_mode))
        return closed;
    if (st->st_gid != gid) /* its bits for a group are another group's */
        closed |= 070;
    *foreign = geteuid() == 0 && uid != 0 && st->st_uid != uid &&
               !(group_reads && (st->st_gid == gid || user_in_group(uid, st->st_gid)));
    return closed;
}

mode_t privacy_of_path(int tree_fd, const char *path)
{
    struct stat st;

    return fstatat(tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) ? 0 : privacy_of(st.st_mode);
}

static bool may_read(mode_t closed, uid_t owner, gid_t group, uid_t uid, gid_t gid)
{
    return uid == 0 || geteuid() != 0 || uid == owner || !closed ||
           !(closed & (gid == group || user_in_group(uid, group) ? 070 : 07));
}

bool object_readable(const struct object *o, uid_t uid, gid_t gid)
{
    return may_read(o->closed, o->uid, o->gid, uid, gid);
}

/* Of a tuned model the folder says it. */
bool model_readable(struct sched *s, const struct model_ref *ref, uid_t uid, gid_t gid)
{
    const struct object *base = object_find(s, OBJ_BASE, ref->base);
    char path[PATH_MAX];
    struct stat st;

    if (base && !object_readable(base, uid, gid))
        return false;
    if (!ref->tuned[0])
        return true;
    snprintf(path, sizeof(path), "models/tuned/%s", ref->tuned);
    return fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) ||
           may_read(privacy_of(st.st_mode), st.st_uid, st.st_gid, uid, gid);
}

const char *public_words(const struct object *o, const char *reason)
{
    return reason && o->closed & 07 ? "(private: its .status says it to those who may read it)" : reason;
}

const char *public_reason(const struct object *o)
{
    return public_words(o, o->reason);
}

/* gone: of what is no longer there. */
static mode_t closed_by(struct sched *s, enum object_kind kind, const char *name, mode_t gone)
{
    const struct object *o = name ? object_find(s, kind, name) : NULL;

    return o ? o->closed : name ? gone : 0;
}

/* Its folder has the mode of the most closed thing it was made from; before there is one, the spec's. */
mode_t experiment_closed(const struct sched *s, const struct experiment *x)
{
    char path[PATH_MAX];
    mode_t closed;

    snprintf(path, sizeof(path), "experiments/%s.json", x->name);
    closed = privacy_of_path(s->tree_fd, path);
    path[strlen(path) - 5] = '\0';
    return closed | privacy_of_path(s->tree_fd, path);
}

const char *experiment_words(const struct sched *s, const struct experiment *x, const char *reason)
{
    return reason && experiment_closed(s, x) & 07 ? "(private: its .status says it to those who may read it)"
                                                  : reason;
}

mode_t model_closed(struct sched *s, const struct model_ref *ref)
{
    char path[PATH_MAX];
    mode_t closed = closed_by(s, OBJ_BASE, ref->base, 077);

    if (!ref->tuned[0])
        return closed;
    snprintf(path, sizeof(path), "models/tuned/%s", ref->tuned);
    return closed | privacy_of_path(s->tree_fd, path);
}

/* What a job reads.  gone: as in closed_by. */
static mode_t closed_by_job(struct sched *s, const struct job *j, mode_t gone)
{
    char path[PATH_MAX];
    mode_t closed = closed_by(s, OBJ_DATASET, j->dataset, gone) |
                    closed_by(s, OBJ_PARAMGROUP, j->paramgroup, gone) |
                    closed_by(s, OBJ_BASE, j->base[0] ? j->base : NULL, gone);

    if (!j->init[0])
        return closed;
    snprintf(path, sizeof(path), "models/tuned/%s", j->init);
    return closed | privacy_of_path(s->tree_fd, path);
}

/* Specs may be removed once they are pinned: what they closed stays closed. */
void experiment_close_folder(struct sched *s, const struct experiment *x)
{
    char folder[PATH_MAX], path[PATH_MAX];
    struct stat st;
    mode_t closed, group = 0, gone;

    snprintf(folder, sizeof(folder), "experiments/%s", x->name);
    gone = privacy_of_path(s->tree_fd, folder);
    snprintf(path, sizeof(path), "experiments/%s.json", x->name);
    if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 && (geteuid() != 0 || st.st_uid == x->uid)) {
        closed = privacy_of(st.st_mode);
        group = st.st_mode & 020; /* may steer it */
    } else {
        closed = gone;
    }
    for (int i = 0; i < x->njobs; i++)
        closed |= closed_by_job(s, x->jobs[i], gone);
    closed |= closed_by(s, OBJ_EVALUATION, json_str(x->spec, "evaluation", NULL), gone);
    closed |=
        closed_by(s, OBJ_DATASET, json_str(json_object_get(x->pins, "evaluation"), "dataset", NULL), gone);
    if (fchmodat(s->tree_fd, folder, (0755 | group) & ~closed, 0) && errno != ENOENT)
        log_line("experiment %s: cannot close its folder to others", x->name);
}
