/*
 * When is a drop complete?  NFSv3 has no close on the server, NFSv4 opens empty files first, clients write
 * back in bursts up to 30 s apart.  So:
 *
 *   a spec    at once when renamed into place; else when no local writer has it open and it was quiet for 200
 * ms after a RELEASE, 5 s without one; one that is empty or does not parse and saw no RELEASE: 35 s a folder
 * at once when it was renamed into place or holds _SUCCESS (and no local writer is left); a base model also
 *             when all its shards are as long as their headers say; else after 2 s without writers and
 * writes, 35 s where no RELEASE was seen
 *
 * FUSE threads note events (intake_note, a few comparisons under the mutex); the loop's intake_round acts on
 * them.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

static const int64_t spec_released = SECOND_NS / 5, spec_open = 5 * SECOND_NS,
                     folder_released = 2 * SECOND_NS, no_release = 35 * SECOND_NS, keep_for = 10 * SECOND_NS,
                     model_look = SECOND_NS / 2, own_echo = 3 * SECOND_NS;

const char *intake_no_space(const struct sched *s, enum object_kind kind, const char *name)
{
    const struct intake *i;

    TAILQ_FOREACH (i, &s->intakes, list)
        if (i->kind == kind && i->dirty && strcmp(i->name, name) == 0)
            return i->no_space;
    return NULL;
}

/* The file that was cut off is begun again, or gone. */
static void note_whole(struct intake *i, enum drop_event ev, const char *path)
{
    bool anew = ev == DROP_CREATE || ev == DROP_UNLINK || ev == DROP_RENAMED_OUT || ev == DROP_RENAMED_IN;
    size_t n = strlen(path);

    if (!i->cut_off || (!anew && ev != DROP_RMDIR))
        return;
    if (strncmp(i->cut_off, path, n) != 0 || (i->cut_off[n] != '\0' && i->cut_off[n] != '/'))
        return;
    set_text(&i->cut_off, NULL);
    set_text(&i->no_space, NULL);
}

static void change(struct intake *i, int64_t now)
{
    i->dirty = true;
    i->gone = i->wait_long = i->maybe = false; /* whatever else it was, it is looked at anew */
    i->last = now;
    i->gen++;
    if (i->complete && !i->success)
        i->complete = false;
}

/* An event on the root itself, or in it. */
static void note_root_gone(struct intake *i, int64_t now)
{
    change(i, now);
    i->gone = true;
    i->success = i->complete = false;
}

static void note_renamed_in(struct intake *i, bool is_root, int64_t now)
{
    change(i, now);
    i->released = true;
    if (is_root)
        i->complete = true;
}

static void note_closed(struct intake *i, int64_t now)
{
    if (i->writers == 0 && i->remote == 0)
        i->released = true;
    if (i->dirty)
        i->last = now;
}

static void note_release(struct intake *i, const char *rest, int64_t now)
{
    if (i->writers > 0)
        i->writers--;
    note_closed(i, now);
    if (i->dirty && i->folder && strcmp(rest, "_SUCCESS") == 0)
        i->complete = i->success = true;
}

static void note_meta(struct intake *i, int64_t now)
{
    i->meta = !i->maybe || i->meta;
    i->maybe = true;
    i->maybe_at = now;
}

static void note(struct intake *i, enum drop_event ev, const struct place *p, int64_t now)
{
    switch (ev) {
    case DROP_OPEN_WRITE:
        i->writers++;
        i->released = false;
        break;
    case DROP_RELEASE:
        note_release(i, p->rest, now);
        break;
    case DROP_REMOTE_WRITER:
        i->remote++;
        i->released = false;
        break;
    case DROP_REMOTE_RELEASE:
        if (i->remote > 0)
            i->remote--;
        note_closed(i, now);
        break;
    case DROP_FSYNC:
        break;
    case DROP_SETATTR: /* mode, owner or times, not the size */
        i->modes++;
        if (i->dirty)
            i->last = now;
        else
            note_meta(i, now);
        break;
    case DROP_RENAMED_IN:
        note_renamed_in(i, p->is_root, now);
        break;
    case DROP_RENAMED_OUT:
    case DROP_UNLINK:
    case DROP_RMDIR:
        if (p->is_root) {
            note_root_gone(i, now);
            break;
        }
        change(i, now);
        i->released = true;
        break;
    case DROP_LINK:
        change(i, now);
        i->released = true;
        break;
    case DROP_CREATE:
    case DROP_MKDIR:
    case DROP_WRITE:
        change(i, now);
        break;
    }
}

/* Folders of DTX's own making are no drops. */
static bool is_drop(const struct place *p, enum drop_event ev)
{
    if (p->kind == OBJ_TUNED)
        return p->is_root && (ev == DROP_RMDIR || ev == DROP_RENAMED_OUT);
    return p->kind != OBJ_JOB && (p->kind != OBJ_EXPERIMENT || !p->folder);
}

/* An echo of what came through the mount, or something that may not have changed a byte.  True: nothing to
 * note. */
static bool behind_the_back(struct intake *i, enum drop_event ev, int64_t now)
{
    if (now - i->last_drop < own_echo || i->writers)
        return true;
    if (i->dirty || ev == DROP_RENAMED_OUT || ev == DROP_UNLINK || ev == DROP_RMDIR)
        return false;
    i->maybe = true;
    i->meta = false;
    i->maybe_at = now + spec_released; /* inotify can be quicker than the mount with the same event */
    i->released = ev == DROP_RELEASE || ev == DROP_RENAMED_IN || ev == DROP_LINK;
    i->behind = ev;
    return true;
}

static int64_t next_look(const struct intake *i);

bool intake_note(struct sched *s, enum drop_event ev, const char *path, const struct caller *who, int64_t now)
{
    struct place p;
    struct intake *i;
    bool quiet, known;

    if (!place_of(path, &p) || !is_drop(&p, ev))
        return false;
    i = intake_get(s, &p, now);
    if (!i)
        return false;
    if (!p.is_root && name_is_leftover(base_name(path)) && !i->dirty)
        return false; /* an editor's or rsync's scratch file beside finished ones */
    if (!who) {
        if (behind_the_back(i, ev, now))
            return i->maybe;
    } else {
        i->last_drop = now;
        if (!i->has_who)
            i->who = *who;
        i->has_who = true;
    }
    note_whole(i, ev, path);
    quiet = i->dirty && (ev == DROP_WRITE || ev == DROP_FSYNC || ev == DROP_SETATTR);
    known = i->dirty && !i->gone && i->announced == i->gen;
    note(i, ev, &p, now);
    if (known && i->dirty && !i->gone) { /* RECEIVING already: nothing to do before it is due */
        i->announced = i->gen;
        return next_look(i) < s->looks_at;
    }
    return !quiet;
}

bool intake_receiving(struct sched *s, const char *path)
{
    struct place p;
    struct intake *i = place_of(path, &p) ? intake_find(s, p.root) : NULL;

    if (!i || !i->dirty || i->gone || !i->writers)
        return false;
    i->announced += i->announced == i->gen;
    i->gen++; /* if it is just being taken: that was too early */
    return true;
}

int64_t intake_due(const struct intake *i)
{
    if (i->gone)
        return 0;
    if (i->writers)
        return INT64_MAX;
    if (i->complete)
        return 0;
    if (i->wait_long)
        return i->last + no_release;
    if (i->folder) /* a service is a mkdir and a link: no data, so no close to wait for */
        return i->last + (i->released || i->kind == OBJ_SERVICE ? folder_released : no_release);
    return i->last + (i->released ? spec_released : spec_open);
}

/* ---- what the loop does about it ---- */

/* The stamp that the object had when it was taken, or NULL. */
static const char *taken_stamp(struct sched *s, const struct intake *i)
{
    if (i->kind == OBJ_EXPERIMENT) {
        struct experiment *x = experiment_find(s, i->name);
        return x ? x->stamp : gone_stamp(s, i->name);
    }
    struct object *o = object_find(s, i->kind, i->name);
    return o ? o->stamp : NULL;
}

/* chmod and chown of a READY object change who may read what DTX says of it, and nothing else. */
static void note_modes(struct sched *s, const struct intake *i, const struct stamp *st)
{
    struct object *o = i->kind == OBJ_EXPERIMENT ? NULL : object_find(s, i->kind, i->name);
    struct experiment *x = i->kind == OBJ_EXPERIMENT ? experiment_find(s, i->name) : NULL;

    if (x && geteuid() == 0 && st->uid == x->uid)
        x->gid = st->gid; /* whom the owner lets steer it */
    if (!o)
        return;
    o->closed = st->closed;
    if (geteuid() == 0) {
        o->uid = st->uid;
        o->gid = st->gid;
    }
}

/* Two stamps' numbers of files and bytes are the same. */
static bool same_amount(const char *a, const char *b)
{
    size_t n = strcspn(a, ":");

    n += strcspn(a + n + (a[n] != '\0'), ":") + 1;
    return strncmp(a, b, n + 1) == 0;
}

/* Modes, owners or times were set of something that is taken, and that is all: it stays what it is.  What was
 * refused is looked at anew, in case it could not be read.  False: it must be taken again. */
static bool keep_content(struct sched *s, const struct intake *i, const char *was, const char *stamp)
{
    struct object *o;
    struct experiment *x;

    if (!was || !same_amount(was, stamp))
        return false;
    if (i->kind == OBJ_EXPERIMENT) {
        x = experiment_find(s, i->name);
        if (x && x->state == ST_REJECTED)
            return false;
        return experiment_restamp(s, x, i->name, stamp) == 0;
    }
    o = object_find(s, i->kind, i->name);
    if (!o || o->state == ST_REJECTED || o->state == ST_RECEIVING)
        return false;
    snprintf(o->stamp, sizeof(o->stamp), "%s", stamp);
    object_keep(s, o);
    object_changed(s, o, false);
    return true;
}

/* Something may have changed behind the mount's back, or only a mode: compare. */
static void look_closer(struct sched *s, struct intake *i, int64_t now)
{
    const char *was;
    char text[96];
    struct stamp st;
    bool meta = i->meta;
    int rc;

    i->maybe = i->meta = false;
    slow_begin(s);
    rc = stamp_path(s->tree_fd, i->path, &st);
    slow_end(s);
    stamp_text(&st, text, sizeof(text));
    was = taken_stamp(s, i);
    if (rc == -ENOENT) {
        if (was)
            note_root_gone(i, now);
        return;
    }
    note_modes(s, i, &st);
    if (was && strcmp(was, text) == 0 && !st.foreign[0])
        return;
    if (meta && !st.foreign[0] && !i->maybe && !i->dirty && keep_content(s, i, was, text))
        return;
    change(i, now);
    i->last -= i->found_age;
    i->found_age = 0;
    i->success = i->complete = st.success || i->behind == DROP_RENAMED_IN;
}

/* Through an NFS server not every request comes with the client's uid: the file knows. */
static void find_owner(struct sched *s, struct intake *i)
{
    int fd = geteuid() == 0 ? open_beneath(s->tree_fd, i->path, O_PATH) : -1;
    struct stat st;

    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0) {
        i->closed = privacy_of(st.st_mode);
        i->who.uid = st.st_uid;
        i->who.gid = st.st_gid;
        i->has_who = i->owner_known = true;
    }
    close(fd);
}

static void announce_experiment(struct sched *s, struct intake *i)
{
    struct experiment *x = experiment_find(s, i->name);

    if (x && x->state != ST_REJECTED)
        return;
    if (!x && !(x = experiment_new(s, i->name)))
        return;
    if (x->id == 0) {
        x->uid = i->who.uid;
        x->gid = i->who.gid;
    }
    if (experiment_event(s, x, EV_WRITE, NULL) && x->id == 0)
        experiment_drop(s, x);
}

/* The object is RECEIVING from the first byte on. */
static void announce(struct sched *s, struct intake *i)
{
    struct object *o;

    if (!i->owner_known)
        find_owner(s, i);
    if (i->kind == OBJ_EXPERIMENT) {
        announce_experiment(s, i);
        return;
    }
    if (i->kind == OBJ_SERVICE || i->kind == OBJ_TUNED)
        return; /* a service is taken whole */
    o = object_get(s, i->kind, i->name, i->has_who ? &i->who : NULL);
    if (!o || o->state == ST_RECEIVING)
        return;
    o->closed |= i->closed;
    check_cancel(s, o);
    asking_cancel(s, o);
    if (object_event(s, o, i->complete ? EV_RENAME : EV_WRITE, NULL))
        object_drop_unsaved(s, o);
}

void intake_found(struct sched *s, struct intake *i)
{
    if (!taken_stamp(s, i))
        announce(s, i);
}

/* NAME.json went, NAME/ is there: the link in it counts now, or it waits for one. */
static bool service_without_spec(struct sched *s, struct object *o, const char *path)
{
    struct dtx_err e = {0};
    int rc = service_take(s, o, path, &e);

    return rc == 0 || (rc != -EAGAIN && object_event(s, o, EV_ERROR, e.msg) == 0);
}

static bool removed(struct sched *s, struct intake *i)
{
    struct object *o = object_find(s, i->kind, i->name);
    struct experiment *x;

    if (i->kind == OBJ_EXPERIMENT) {
        x = experiment_find(s, i->name);
        if (x && (x->state == ST_RECEIVING || x->state == ST_REJECTED) && x->njobs == 0) {
            if (experiment_event(s, x, EV_UNLINK, NULL))
                return false;
            experiment_drop(s, x);
        } else if (x && x->spec_reason) {
            set_text(&x->spec_reason, NULL);
        }
        return true;
    }
    if (!o)
        return true;
    if (o->kind == OBJ_SERVICE && service_still_there(s, o))
        return i->folder || service_without_spec(s, o, i->path);
    check_cancel(s, o);
    asking_cancel(s, o);
    return object_event(s, o, object_machine(o->kind) == M_SPEC ? EV_UNLINK : EV_RMDIR, NULL) == 0;
}

static bool ripe(struct sched *s, struct intake *i, int64_t now)
{
    bool complete;

    if (intake_due(i) <= now)
        return true;
    if (i->kind != OBJ_BASE || i->writers || now - i->last < spec_released || now < i->look_at)
        return false;
    i->look_at = now + model_look;
    slow_begin(s);
    complete = model_shards_complete(s->tree_fd, i->path);
    slow_end(s);
    return complete;
}

static void settle(struct sched *s, struct intake *i, int64_t now)
{
    unsigned gen = i->gen, modes;
    int rc;

    if (i->gone) {
        if (!removed(s, i))
            i->retry_at = now + SECOND_NS;
        else if (gen == i->gen)
            i->dirty = i->gone = false;
        return;
    }
    announce(s, i);
    if (!ripe(s, i, now))
        return;
    modes = i->modes;
    rc = take_drop(s, i, i->wait_long || i->complete);
    if (rc == -EAGAIN && gen == i->gen) /* what came while it was taken is looked at for itself */
        i->wait_long = true;
    if (rc || gen != i->gen) {
        if (gen != i->gen)
            i->announced = i->gen - 1; /* changed while it was taken: RECEIVING again, at once */
        if (rc != -EAGAIN && rc)
            i->retry_at = now + SECOND_NS;
        return;
    }
    i->dirty = i->complete = i->success = i->wait_long = i->has_who = i->owner_known = false;
    set_text(&i->no_space, NULL);
    set_text(&i->cut_off, NULL);
    if (modes != i->modes) /* closed to others while it was taken, maybe after that was looked at */
        note_meta(i, now);
}

/* Taking one costs a synced write or two, and thousands may be dropped at once: of each owner a round takes
 * so many, then everybody else has a turn. */
enum { TURN = 16 };

static bool has_turn(struct by_owner *taken, const struct intake *i, int64_t now)
{
    if (!i->dirty || (!i->gone && i->announced == i->gen && intake_due(i) > now))
        return true; /* nothing to write down yet */
    return ++*count_of_owner(taken, i->has_who ? i->who.uid : (uid_t)-1) <= TURN;
}

void intake_round(struct sched *s, int64_t now)
{
    struct by_owner taken = {.owners = 0};
    struct intake *i, *next;

    for (i = TAILQ_FIRST(&s->intakes); i; i = next) {
        loop_commands(s);
        if (i->retry_at <= now) {
            if (i->maybe && i->maybe_at <= now)
                look_closer(s, i, now);
            if (has_turn(&taken, i, now)) {
                i->announced = i->gen;
                if (i->dirty)
                    settle(s, i, now);
            }
        }
        next = TAILQ_NEXT(i, list); /* only now: the mutex may have been given up meanwhile */
        if (!i->dirty && !i->maybe && !i->writers)
            intake_rest(s, i);
    }
    intakes_forget(s, now - keep_for);
}

/* Mono time at which intake_round has something to do about it. */
static int64_t next_look(const struct intake *i)
{
    int64_t t = INT64_MAX;

    if (i->maybe)
        t = i->maybe_at;
    else if (i->dirty)
        t = i->announced != i->gen ? 0 : intake_due(i);
    if (i->dirty && i->kind == OBJ_BASE && !i->writers && i->look_at < t)
        t = i->look_at > i->last + spec_released ? i->look_at : i->last + spec_released;
    return t < i->retry_at ? i->retry_at : t;
}

int64_t intake_next(const struct sched *s)
{
    int64_t next = INT64_MAX, t;
    const struct intake *i;

    TAILQ_FOREACH (i, &s->intakes, list)
        if ((t = next_look(i)) < next)
            next = t;
    return next;
}
