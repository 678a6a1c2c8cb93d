/* Removing names.  Of what is DTX's own, `rm -r` means something to the scheduler: files are hidden one by
 * one, and the rmdir of an emptied folder deletes the object. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"
#include "scheduler/base/clock.h"

/* What is about to lose its name, for a look at it afterwards. */
struct removed {
    struct backing_fd known;
    uint64_t id; /* of a node that the kernel knows; else 0 */
    int fd;      /* of one that it does not know; -1 */
    bool open;
};

/* The file stays reachable for those who have it open. */
static void hold(struct fs *f, uint64_t parent, int dirfd, const char *name, struct removed *r)
{
    struct node_info node;

    *r = (struct removed){.known = {.fd = -1}, .fd = -1};
    if (nodes_find(f->nodes, parent, name, &node) || !nodes_known(f->nodes, node.id)) {
        r->fd = fs_hold(dirfd, name);
        return;
    }
    r->id = node.id;
    r->open = fs_leave(f, &node);
    backing_pin(f->backing, node.id);
    if (backing_get(f->backing, node.id, &r->known))
        r->known = (struct backing_fd){.fd = -1};
}

/* What is open goes on to take space until it is closed. */
static void let_go(struct fs *f, struct removed *r)
{
    if (!r->open)
        space_note(f->space, r->known.fd, NULL);
    backing_put(f->backing, &r->known);
    fs_note_held(f, r->fd, NULL);
}

/* again: a process before had begun this; the name may be gone already. */
static int remove_user(fuse_req_t req, const struct place *p, uint64_t parent, const char *name, int flags,
                       bool again)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    struct backing_fd dir;
    struct removed removed;
    int rc = sched_may_change(f->sched, p->path.p, &who);

    if (!rc)
        rc = backing_get(f->backing, parent, &dir);
    if (rc)
        return rc;
    fs_lock_name(f, parent);
    hold(f, parent, dir.fd, name, &removed);
    rc = unlinkat(dir.fd, name, flags) ? -errno : 0;
    if (rc == -ENOENT && again)
        rc = 0;
    if (!rc)
        nodes_unbind(f->nodes, parent, name);
    fs_unlock_name(f, parent);
    if (removed.id)
        nodes_stay(f->nodes, removed.id);
    let_go(f, &removed);
    backing_put(f->backing, &dir);
    return rc;
}

void fs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    struct place p;
    int rc = place_of_child(f, parent, name, &p);

    if (!rc && p.owner == NODE_USER) {
        rc = remove_user(req, &p, parent, name, 0, fs_again(req));
        if (!rc)
            fs_event(f, req, DROP_UNLINK, p.path.p);
    } else if (!rc) {
        bool again = fs_again(req);
        rc = fs_hide(f, &p, &who);
        if (rc == -ENOENT && again)
            rc = 0;
    }
    place_release(&p);
    fs_reply_err(req, rc);
}

/* ---- hidden files ---- */

/* The scheduler remembers for a minute what was hidden: a process after this one has to know it as well, or
 * the rmdir at the end of an rm -r would find the folder full.  That rmdir is kept, too: what is hidden below
 * it is over, the name may be used again.  There is room for so many (the keeper's keys), beyond which some
 * are shown again after a death: as if their minute were over. */
enum { HIDDEN_KEYS = 4096, HIDDEN_S = 60 };

struct kept_hidden {
    int64_t at; /* wall clock, ns */
    struct caller who;
    uint32_t removed; /* a folder that was removed, not a file that was hidden */
    char path[KEEPER_DATA - 32];
};
_Static_assert(sizeof(struct kept_hidden) <= KEEPER_DATA, "room in a message");

static void keep_hidden(struct fs *f, const char *path, const struct caller *who, bool removed)
{
    struct kept_hidden h = {.at = clock_wall_ns(), .who = *who, .removed = removed};
    uint64_t key = removed;

    if (snprintf(h.path, sizeof(h.path), "%s", path) >= (int)sizeof(h.path))
        return;
    for (const char *c = path; *c; c++)
        key = key * 31 + (unsigned char)*c;
    kept_put(f->kept, KEEPER_HIDDEN, key % HIDDEN_KEYS, &h, sizeof(h), -1);
}

int fs_hide(struct fs *f, const struct place *p, const struct caller *who)
{
    int rc = sched_unlink(f->sched, &p->m, who);

    if (!rc && sched_hidden(f->sched, p->path.p)) /* else it went for good */
        keep_hidden(f, p->path.p, who, false);
    return rc;
}

static bool read_hidden(const struct keeper_item *item, struct kept_hidden *h)
{
    if (item->kind != KEEPER_HIDDEN)
        return false;
    memcpy(h, item->data, sizeof(*h));
    h->path[sizeof(h->path) - 1] = '\0';
    return true;
}

/* Was the folder that it was in removed since? */
static bool folder_went(const struct kept *k, const struct kept_hidden *h)
{
    struct kept_hidden other;

    for (size_t i = 0; i < k->items; i++) {
        size_t n;
        if (!read_hidden(&k->item[i], &other) || !other.removed || other.at < h->at)
            continue;
        n = strlen(other.path);
        if (strncmp(h->path, other.path, n) == 0 && h->path[n] == '/')
            return true;
    }
    return false;
}

void fs_restore_hidden(struct fs *f, const struct keeper_item *item)
{
    struct kept_hidden h;
    struct place p;

    if (!read_hidden(item, &h) || h.removed || clock_wall_ns() - h.at > HIDDEN_S * (int64_t)1000000000 ||
        folder_went(f->kept, &h))
        return;
    if (place_of_path(h.path, &p) == 0)
        sched_unlink(f->sched, &p.m, &h.who);
    place_release(&p);
}

/* ---- folders ---- */

/* What still counts as inside.  In a generated folder a log or checkpoint file may have been written since rm
 * -r listed it: that is no reason to fail. */
static bool counts(const struct place *folder, const struct node_info *node)
{
    return folder->owner == NODE_STORE || node->owner != NODE_STORE || node->is_dir;
}

static int check_empty(struct fs *f, const struct place *p, uint64_t id)
{
    struct listing l;
    int rc;

    listing_init(&l);
    rc = fs_list(f, id, &l);
    for (size_t i = 0; !rc && i < l.n; i++) {
        struct node_info node;
        struct fs_attr a;
        if (strcmp(l.entry[i].name, ".") == 0 || strcmp(l.entry[i].name, "..") == 0)
            continue;
        if (fs_lookup_name(f, id, l.entry[i].name, FS_TYPE_ONLY, &node, &a) == 0 && counts(p, &node))
            rc = -ENOTEMPTY;
    }
    listing_release(&l);
    return rc;
}

static int rmdir_own(fuse_req_t req, const struct place *p, uint64_t parent, const char *name)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    struct node_info node;
    struct fs_attr a;
    bool again = fs_again(req);
    int rc = fs_lookup_name(f, parent, name, FS_TYPE_ONLY, &node, &a);

    if (!rc && !node.is_dir)
        rc = -ENOTDIR;
    if (!rc &&
        p->m.entry->object != OBJ_JOB) /* rmdir of a job cancels it: nothing of it needs to go before */
        rc = check_empty(f, p, node.id);
    if (!rc)
        rc = sched_rmdir(f->sched, &p->m, &who);
    if (!rc) {
        space_look(f->space);
        keep_hidden(f, p->path.p, &who, true);
        nodes_unbind(f->nodes, parent,
                     name); /* the kernel holds it for dead: should it come back, it is another */
    }
    return rc == -ENOENT && again ? 0 : rc;
}

struct drop_children {
    struct fs *f;
    uint64_t id;
    int fd;
    unsigned removed;
};

static void remove_drop_child(void *arg, const struct layout_entry *child, const char *name)
{
    struct drop_children *d = arg;

    if (child->kind == LK_DROP_DIR && unlinkat(d->fd, name, AT_REMOVEDIR) == 0) {
        nodes_unbind(d->f->nodes, d->id, name);
        d->removed++;
    }
}

/* DTX's own empty folders in a user's object (services/NAME/ask) do not keep it from being removed. */
static bool remove_drop_children(struct fs *f, const struct place *p, uint64_t parent, const char *name)
{
    struct drop_children d = {.f = f};
    struct backing_fd dir;
    struct node_info node;

    if (p->m.rest || nodes_find(f->nodes, parent, name, &node) || backing_get(f->backing, node.id, &dir))
        return false;
    d.id = node.id;
    d.fd = dir.fd;
    layout_children(p->path.p, remove_drop_child, &d);
    backing_put(f->backing, &dir);
    return d.removed > 0;
}

static int rmdir_user(fuse_req_t req, const struct place *p, uint64_t parent, const char *name)
{
    bool again;
    int rc;

    if (p->m.entry->kind == LK_DROP_DIR && p->m.nargs == 0)
        return -EPERM; /* a collection */
    again = fs_again(req);
    rc = remove_user(req, p, parent, name, AT_REMOVEDIR, again);
    if (rc == -ENOTEMPTY && remove_drop_children(fs_of(req), p, parent, name))
        rc = remove_user(req, p, parent, name, AT_REMOVEDIR, again);
    if (!rc)
        fs_event(fs_of(req), req, DROP_RMDIR, p->path.p);
    return rc;
}

void fs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fs *f = fs_of(req);
    struct place p;
    int rc = place_of_child(f, parent, name, &p);

    if (!rc)
        rc = p.owner == NODE_USER ? rmdir_user(req, &p, parent, name) : rmdir_own(req, &p, parent, name);
    place_release(&p);
    fs_reply_err(req, rc);
}
