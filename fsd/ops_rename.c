/* Renaming in users' folders. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"

struct rename {
    struct place from, to;
    uint64_t parent, newparent;
    const char *name, *newname;
    unsigned flags;
    struct backing_fd dir, newdir;
    bool replaces; /* newname exists */
    bool made;     /* a process before has made it already */
};

/* An NFS client hides an open file that it removes: that is an unlink. */
static int rename_own(fuse_req_t req, const struct rename *r)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);

    bool again = fs_again(req);
    int rc;

    if (r->parent != r->newparent || strncmp(r->newname, ".nfs", 4) != 0 || (r->flags & RENAME_EXCHANGE))
        return -EPERM;
    rc = fs_hide(f, &r->from, &who);
    return rc == -ENOENT && again ? 0 : rc;
}

/* May the thing at one end go to the other? */
static int check_ends(struct fs *f, struct rename *r, uid_t uid)
{
    struct stat from, to;
    struct place back;
    int rc;

    if (r->from.m.entry->kind == LK_DROP_DIR)
        return -EPERM;
    if (fstatat(r->dir.fd, r->name, &from, AT_SYMLINK_NOFOLLOW))
        return -errno;
    if ((r->flags & RENAME_WHITEOUT) && r->from.m.entry->kind != LK_USER_ANY)
        return -EPERM; /* no device instead of a spec or an object */
    rc = place_may_create(f, r->newparent, r->newname, from.st_mode, uid, &r->to);
    if (rc)
        return rc;
    r->replaces = fstatat(r->newdir.fd, r->newname, &to, AT_SYMLINK_NOFOLLOW) == 0;
    if (!(r->flags & RENAME_EXCHANGE) || !r->replaces)
        return 0;
    rc = place_may_create(f, r->parent, r->name, to.st_mode, uid, &back);
    place_release(&back);
    return rc;
}

static int check_holders(fuse_req_t req, const struct rename *r)
{
    struct fs *f = fs_of(req);
    struct caller who = fs_caller(req);
    int rc = sched_may_change(f->sched, r->from.path.p, &who);

    if (!rc && r->replaces)
        rc = sched_may_change(f->sched, r->to.path.p, &who);
    return rc;
}

/* Was this very request carried out by a process before?  While it waits, nobody else can use these names: so
 * the name is gone (and the new one there), or, exchanged or whited out, means another file than at the first
 * time. */
static bool was_made(fuse_req_t req, const struct rename *r)
{
    struct stat from, to;
    bool there = fstatat(r->dir.fd, r->name, &from, AT_SYMLINK_NOFOLLOW) == 0;
    struct kept_turn turn = kept_begin(fs_of(req)->kept, there ? from.st_ino : 0);

    if (!turn.again)
        return false;
    if (r->flags & (RENAME_EXCHANGE | RENAME_WHITEOUT))
        return there && turn.note && from.st_ino != turn.note;
    return !there && fstatat(r->newdir.fd, r->newname, &to, AT_SYMLINK_NOFOLLOW) == 0;
}

static void rename_nodes(struct fs *f, const struct rename *r)
{
    struct node_info node;
    struct node_key key;
    struct stat st;

    /* Not a second time. */
    if (r->made &&
        (nodes_find(f->nodes, r->parent, r->name, &node) ||
         ((r->flags & RENAME_EXCHANGE) && backing_stat(f->backing, r->dir.fd, r->name, &st, &key) == 0 &&
          memcmp(&key, &node.key, sizeof(key)) == 0)))
        return;
    if (r->flags & RENAME_EXCHANGE)
        nodes_exchange(f->nodes, r->parent, r->name, r->newparent, r->newname);
    else
        nodes_rename(f->nodes, r->parent, r->name, r->newparent, r->newname);
}

/* A file counts for its new place at once, what lies in a folder after the next scan. */
static void note_space(struct fs *f, const struct rename *r)
{
    struct stat st;
    int fd = fs_hold(r->newdir.fd, r->newname);

    space_moved(f->space);
    if (fd >= 0 && fstat(fd, &st) == 0 && S_ISDIR(st.st_mode))
        space_look(f->space);
    fs_note_held(f, fd, r->to.path.p);
}

/* Not worth failing for: what it says is that nothing is there. */
static void give_whiteout(fuse_req_t req, const struct rename *r)
{
    const struct fuse_ctx *who = fuse_req_ctx(req);

    if (fs_of(req)->root && fchownat(r->dir.fd, r->name, who->uid, who->gid, AT_SYMLINK_NOFOLLOW))
        return;
}

static int rename_backed(fuse_req_t req, const struct rename *r)
{
    struct fs *f = fs_of(req);
    struct node_info node, over;
    int rc, held = -1;
    bool bound, known, open = false;

    fs_lock_names(f, r->parent, r->newparent);
    known = !r->made && nodes_find(f->nodes, r->newparent, r->newname, &over) == 0 &&
            nodes_known(f->nodes, over.id);
    if (known) {
        backing_pin(f->backing, over.id);
        open = fs_leave(f, &over) && !(r->flags & RENAME_EXCHANGE);
    }
    bound = !r->made && nodes_find(f->nodes, r->parent, r->name, &node) == 0;
    if (bound) /* a process after us might find the new name in the store and the old one in nodes.db */
        fs_leave(f, &node);
    if (r->replaces && !open) /* what is open goes on to take space until it is closed */
        held = fs_hold(r->newdir.fd, r->newname);
    rc = 0;
    if (!r->made && renameat2(r->dir.fd, r->name, r->newdir.fd, r->newname, r->flags))
        rc = -errno;
    if (!rc)
        rename_nodes(f, r);
    if (!rc && (r->flags & RENAME_WHITEOUT))
        give_whiteout(req, r);
    if (known)
        nodes_stay(f->nodes, over.id);
    if (bound)
        nodes_stay(f->nodes, node.id);
    fs_unlock_names(f, r->parent, r->newparent);
    if (!rc)
        note_space(f, r);
    fs_note_held(f, held, r->flags & RENAME_EXCHANGE ? r->from.path.p : NULL);
    return rc;
}

static int rename_user(fuse_req_t req, struct rename *r)
{
    struct fs *f = fs_of(req);
    int rc = backing_get(f->backing, r->parent, &r->dir);

    if (rc)
        return rc;
    rc = backing_get(f->backing, r->newparent, &r->newdir);
    if (rc) {
        backing_put(f->backing, &r->dir);
        return rc;
    }
    r->made = was_made(req, r);
    if (r->made) /* it was allowed then */
        rc = place_of_child(f, r->newparent, r->newname, &r->to);
    else
        rc = check_ends(f, r, fuse_req_ctx(req)->uid);
    if (!rc && !r->made)
        rc = check_holders(req, r);
    if (!rc)
        rc = rename_backed(req, r);
    backing_put(f->backing, &r->dir);
    backing_put(f->backing, &r->newdir);
    if (rc)
        return rc;
    fs_writers_moved(req, r->from.path.p, r->to.path.p, r->flags & RENAME_EXCHANGE);
    if (r->flags & RENAME_EXCHANGE)
        fs_event(f, req, DROP_RENAMED_IN, r->from.path.p);
    else
        fs_event(f, req, DROP_RENAMED_OUT, r->from.path.p);
    fs_event(f, req, DROP_RENAMED_IN, r->to.path.p);
    return 0;
}

void fs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent,
                  const char *newname, unsigned int flags)
{
    struct fs *f = fs_of(req);
    struct rename r = {
        .parent = parent, .newparent = newparent, .name = name, .newname = newname, .flags = flags};
    int rc = flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT) ? -EINVAL : 0;

    if (!rc)
        rc = place_of_child(f, parent, name, &r.from);
    if (!rc)
        rc = r.from.owner == NODE_USER ? rename_user(req, &r) : rename_own(req, &r);
    place_release(&r.from);
    place_release(&r.to);
    fs_reply_err(req, rc);
}
