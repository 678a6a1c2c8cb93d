/* Attributes of nodes and names: from the store for what is backed, from the scheduler for what is generated.
 */
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"
#include "scheduler/base/text.h"

#define BACKED_TIMEOUT          1.0
#define GENERATED_ENTRY_TIMEOUT 1.0
#define GENERATED_ATTR_TIMEOUT  (RENDER_HOLD_MS / 1000.0)

/* ---- generated ---- */

struct render_arg {
    struct fs *f;
    const struct place *p;
};

static int render_text(void *arg, struct buf *out, int64_t *mtime_ns)
{
    struct render_arg *a = arg;
    struct sched_attr attr = {0};
    int rc = sched_render(a->f->sched, &a->p->m, out);

    if (!rc && sched_stat(a->f->sched, &a->p->m, &attr) == 0)
        *mtime_ns = attr.mtime_ns;
    return rc;
}

int fs_render(struct fs *f, uint64_t id, const struct place *p, enum render_use use, struct snapshot **out)
{
    struct render_arg a = {f, p};

    return render_cache_get(f->renders, id, use, render_text, &a, out);
}

static mode_t generated_type(enum layout_kind kind)
{
    return kind == LK_DIR ? S_IFDIR : kind == LK_LINK ? S_IFLNK : S_IFREG;
}

static void set_times(struct stat *st, int64_t ns)
{
    st->st_mtim = (struct timespec){ns / 1000000000, ns % 1000000000};
    st->st_ctim = st->st_atim = st->st_mtim;
}

/* Is it there?  Fills everything but size and, where there is a rendering, the times. */
static int generated_exists(struct fs *f, const struct place *p, struct fs_attr *a)
{
    struct sched_attr attr = {0};
    int rc;

    if (sched_hidden(f->sched, p->path.p))
        return -ENOENT;
    rc = sched_stat(f->sched, &p->m, &attr);
    if (rc)
        return rc;
    *a = (struct fs_attr){.entry_timeout = GENERATED_ENTRY_TIMEOUT, .attr_timeout = GENERATED_ATTR_TIMEOUT};
    a->st.st_mode = generated_type(p->m.entry->kind) | (p->m.entry->mode & ~attr.closed);
    a->st.st_nlink = 1; /* for a folder: "not counted", which find(1) understands */
    a->st.st_uid = attr.uid;
    a->st.st_gid = attr.gid;
    a->st.st_blksize = 4096;
    set_times(&a->st, attr.mtime_ns);
    return 0;
}

static int generated_content(struct fs *f, uint64_t id, const struct place *p, struct fs_attr *a)
{
    struct snapshot *s;
    int rc;

    if (S_ISDIR(a->st.st_mode))
        return 0;
    rc = fs_render(f, id, p, RENDER_FOR_ATTR, &s);
    if (rc)
        return rc;
    a->st.st_size = (off_t)s->size;
    a->st.st_blocks = (blkcnt_t)((s->size + 511) / 512);
    set_times(&a->st, s->mtime_ns);
    snapshot_put(s);
    return 0;
}

/* ---- backed ---- */

static void present_backed(struct fs_attr *a, const struct node_info *node)
{
    a->st.st_ino = node->id;
    a->entry_timeout = a->attr_timeout = BACKED_TIMEOUT;
    if (node->owner != NODE_STORE || S_ISDIR(a->st.st_mode))
        return;
    a->st.st_mode &= ~(mode_t)0222;
    a->attr_timeout = 0; /* written beside the mount: who saw SUCCESS shall see every row of metrics.csv */
}

/* A folder of DTX's inside a user's object (services/NAME/ask) is made when it is first looked for. */
static int make_drop_folder(struct fs *f, const struct place *p, int dirfd, const char *name)
{
    struct sched_attr attr;

    if (p->m.entry->kind != LK_DROP_DIR || sched_hidden(f->sched, p->path.p) ||
        sched_stat(f->sched, &p->m, &attr) != 0)
        return -ENOENT;
    if (mkdirat(dirfd, name, p->m.entry->mode) && errno != EEXIST)
        return -errno;
    return 0;
}

static int stat_child(struct fs *f, uint64_t parent, const struct place *p, const char *name, struct stat *st,
                      struct node_key *key)
{
    struct backing_fd dir;
    int rc;

    if (p->owner == NODE_STORE && (sched_hidden(f->sched, p->path.p) || name_is_leftover(name)))
        return -ENOENT; /* a leftover in DTX's own folders is a file that is being written */
    rc = backing_get(f->backing, parent, &dir);
    if (rc)
        return rc;
    rc = backing_stat(f->backing, dir.fd, name, st, key);
    if (rc == -ENOENT && p->m.entry->kind == LK_DROP_DIR) {
        rc = make_drop_folder(f, p, dir.fd, name);
        if (!rc)
            rc = backing_stat(f->backing, dir.fd, name, st, key);
    }
    backing_put(f->backing, &dir);
    return rc;
}

int fs_bind_new(struct fs *f, uint64_t parent, int dirfd, const char *name, int fd, struct node_info *node,
                struct fs_attr *a)
{
    struct node_info what = {.owner = NODE_USER};
    int rc = backing_stat(f->backing, fd >= 0 ? fd : dirfd, fd >= 0 ? "" : name, &a->st, &what.key);

    if (rc)
        return rc;
    what.is_dir = S_ISDIR(a->st.st_mode);
    rc = nodes_bind(f->nodes, parent, name, &what, true, node);
    if (!rc)
        present_backed(a, node);
    return rc;
}

/* ---- names and nodes ---- */

static int lookup_place(struct fs *f, uint64_t parent, const char *name, int flags, const struct place *p,
                        struct node_info *node, struct fs_attr *a)
{
    struct node_info what = {.owner = p->owner};
    int rc;

    if (p->owner == NODE_GENERATED)
        rc = generated_exists(f, p, a);
    else
        rc = stat_child(f, parent, p, name, &a->st, &what.key);
    if (rc == -ENOENT && (p->owner == NODE_USER || !sched_hidden(f->sched, p->path.p)))
        nodes_unbind(f->nodes, parent, name); /* what is only hidden comes back as the same node */
    if (rc)
        return rc;
    what.is_dir = S_ISDIR(a->st.st_mode);
    rc = nodes_bind(f->nodes, parent, name, &what, flags & FS_COUNT, node);
    if (rc)
        return rc;
    a->st.st_ino = node->id;
    if (p->owner != NODE_GENERATED) {
        present_backed(a, node);
    } else if (!(flags & FS_TYPE_ONLY)) {
        rc = generated_content(f, node->id, p, a);
        if (rc && (flags & FS_COUNT))
            nodes_forget(f->nodes, node->id, 1);
    }
    return rc;
}

int fs_lookup_name(struct fs *f, uint64_t parent, const char *name, int flags, struct node_info *node,
                   struct fs_attr *a)
{
    struct place p;
    int rc = place_of_child(f, parent, name, &p);

    if (!rc) {
        fs_lock_lookup(f, parent);
        rc = lookup_place(f, parent, name, flags, &p, node, a);
        fs_unlock_lookup(f, parent);
    }
    place_release(&p);
    return rc;
}

static int attr_of_backed(struct fs *f, const struct node_info *node, struct fs_attr *a)
{
    struct backing_fd file;
    int rc = backing_get(f->backing, node->id, &file);

    if (rc)
        return rc;
    rc = backing_stat(f->backing, file.fd, "", &a->st, NULL);
    backing_put(f->backing, &file);
    if (!rc)
        present_backed(a, node);
    return rc;
}

int fs_attr_of(struct fs *f, uint64_t id, struct fs_attr *a)
{
    struct node_info node;
    struct place p;
    int rc = nodes_get(f->nodes, id, &node);

    if (rc)
        return rc;
    if (node.owner != NODE_GENERATED)
        return attr_of_backed(f, &node, a);
    rc = place_of_node(f, id, &p);
    if (!rc)
        rc = generated_exists(f, &p, a);
    if (!rc)
        rc = generated_content(f, id, &p, a);
    a->st.st_ino = id;
    place_release(&p);
    return rc;
}

void fs_fill_entry(const struct node_info *node, const struct fs_attr *a, struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.ino = node->id,
                                   .generation = node->generation,
                                   .attr = a->st,
                                   .attr_timeout = a->attr_timeout,
                                   .entry_timeout = a->entry_timeout};
}
