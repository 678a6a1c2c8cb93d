/* Removing names.  Of what is DTX's own, `rm -r` means something to the scheduler: files are hidden one by
 * one, and the rmdir of an emptied folder deletes the object. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"

/* Keep the file reachable for those who have it open. */
static void pin_if_known(struct fs *f, uint64_t parent, const char *name)
{
    struct node_info node;

    if (nodes_find(f->nodes, parent, name, &node) == 0 && nodes_known(f->nodes, node.id))
        backing_pin(f->backing, node.id);
}

static int remove_user(fuse_req_t req, const struct place *p, uint64_t parent, const char *name, int flags)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    struct backing_fd dir;
    int rc = sched_may_change(f->sched, p->path.p, &who);

    if (!rc)
        rc = backing_get(f->backing, parent, &dir);
    if (rc)
        return rc;
    fs_lock_name(f, parent);
    pin_if_known(f, parent, name);
    rc = unlinkat(dir.fd, name, flags) ? -errno : 0;
    if (!rc)
        nodes_unbind(f->nodes, parent, name);
    fs_unlock_name(f, parent);
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
        rc = remove_user(req, &p, parent, name, 0);
        if (!rc)
            fs_event(f, req, DROP_UNLINK, p.path.p);
    } else if (!rc) {
        rc = sched_unlink(f->sched, &p.m, &who);
    }
    place_release(&p);
    fs_reply_err(req, rc);
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
    int rc = fs_lookup_name(f, parent, name, FS_TYPE_ONLY, &node, &a);

    if (!rc && !node.is_dir)
        rc = -ENOTDIR;
    if (!rc &&
        p->m.entry->object != OBJ_JOB) /* rmdir of a job cancels it: nothing of it needs to go before */
        rc = check_empty(f, p, node.id);
    if (!rc)
        rc = sched_rmdir(f->sched, &p->m, &who);
    if (!rc) /* the kernel holds it for dead: should it come back, it is another one */
        nodes_unbind(f->nodes, parent, name);
    return rc;
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
    int rc;

    if (p->m.entry->kind == LK_DROP_DIR && p->m.nargs == 0)
        return -EPERM; /* a collection */
    rc = remove_user(req, p, parent, name, AT_REMOVEDIR);
    if (rc == -ENOTEMPTY && remove_drop_children(fs_of(req), p, parent, name))
        rc = remove_user(req, p, parent, name, AT_REMOVEDIR);
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
