/* What the layout says about a path. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fsd/fs.h"
#include "scheduler/base/text.h"

static enum node_owner owner_of(enum layout_kind kind)
{
    switch (kind) {
    case LK_DIR:
    case LK_TEXT:
    case LK_CONTROL:
    case LK_LINK:
        return NODE_GENERATED;
    case LK_STORE_FILE:
    case LK_STORE_DIR:
    case LK_STORE_ANY:
        return NODE_STORE;
    case LK_DROP_DIR:
    case LK_USER_DIR:
    case LK_USER_ANY:
    case LK_USER_FILE:
        return NODE_USER;
    }
    return NODE_GENERATED;
}

static int look_up(struct place *p)
{
    int rc = p->path.failed ? -ENOMEM : layout_lookup(p->path.p ? p->path.p : "", &p->m);

    if (!rc)
        p->owner = owner_of(p->m.entry->kind);
    return rc;
}

int place_of_node(struct fs *f, uint64_t id, struct place *p)
{
    int rc;

    buf_init(&p->path);
    buf_reserve(&p->path, 0); /* the root's path is "", not NULL */
    rc = nodes_path(f->nodes, id, &p->path);
    return rc ? rc : look_up(p);
}

int place_of_child(struct fs *f, uint64_t parent, const char *name, struct place *p)
{
    int rc;

    buf_init(&p->path);
    if (strlen(name) > FS_NAME_MAX)
        return -ENAMETOOLONG;
    rc = nodes_path(f->nodes, parent, &p->path);
    if (rc)
        return rc;
    if (p->path.len)
        buf_addc(&p->path, '/');
    buf_adds(&p->path, name);
    return look_up(p);
}

int place_of_path(const char *path, struct place *p)
{
    buf_init(&p->path);
    buf_adds(&p->path, path);
    return look_up(p);
}

void place_release(struct place *p)
{
    buf_release(&p->path);
}

/* The first level of a collection: names of objects. */
static int check_object_name(const struct place *p, const struct place *folder, const char *name, mode_t type)
{
    const struct layout_match *m = &p->m;

    if (name_is_leftover(name))
        return 0;
    if (folder->m.entry->reader == LR_EXPERIMENTS && S_ISDIR(type))
        return -EPERM; /* NAME.json makes experiments/NAME/ */
    return name_check(m->rest || !m->nargs || m->entry->object == OBJ_NONE ? name : m->arg[m->nargs - 1],
                      NULL);
}

/* The part of a file's name that is an object's, composed. */
static bool compose(const char *name, char *out, size_t n)
{
    size_t len;

    if (name_nfc(name, out, n))
        return false;
    len = strlen(out);
    if (len > 5 && strcmp(out + len - 5, ".json") == 0) /* a service is a folder or a spec */
        out[len - 5] = '\0';
    return true;
}

/* Names that differ only in how their letters are composed are one object's name.  A second file of it would
 * be taken for the first, which may be anybody's. */
static int check_twin(struct fs *f, uint64_t parent, const char *name)
{
    char composed[2 * FS_NAME_MAX], other[2 * FS_NAME_MAX];
    struct backing_fd dir;
    struct listing l;
    int rc;

    if (text_is_ascii(name) || !compose(name, composed, sizeof(composed)))
        return 0;
    rc = backing_get(f->backing, parent, &dir);
    if (rc)
        return rc;
    listing_init(&l);
    rc = listing_add_folder(&l, dir.fd);
    backing_put(f->backing, &dir);
    for (size_t i = 0; !rc && i < l.n; i++)
        if (strcmp(l.entry[i].name, name) != 0 && !text_is_ascii(l.entry[i].name) &&
            compose(l.entry[i].name, other, sizeof(other)) && strcmp(composed, other) == 0)
            rc = -EEXIST;
    listing_release(&l);
    return rc;
}

/* NAME.json and NAME/ are one experiment or service, NAME.txt and NAME/ (or NAME.md) a prompt and its
 * answers. The other half of a name; false: it has none. */
static bool other_half(const struct place *p, const char *name, char *out, size_t size)
{
    enum object_kind kind = p->m.entry->object;
    int stem = (int)strlen(name) - (kind == OBJ_COMPARE || kind == OBJ_ASK ? 4 : 5);

    if (kind != OBJ_EXPERIMENT && kind != OBJ_SERVICE && kind != OBJ_COMPARE && kind != OBJ_ASK)
        return false;
    if (p->m.entry->kind == LK_USER_FILE)
        snprintf(out, size, "%.*s%s", stem, name, kind == OBJ_ASK ? ".md" : "");
    else
        snprintf(out, size, "%s.json", name);
    return true;
}

/* Either half may be there without the other: who adds it must be whose the first is. */
static int check_other_half(struct fs *f, uint64_t parent, const char *name, const struct place *p, uid_t uid)
{
    char other[FS_NAME_MAX + 8];
    struct backing_fd dir;
    struct stat st;
    bool taken;
    int rc;

    if (!f->root || uid == 0 || !other_half(p, name, other, sizeof(other)))
        return 0;
    rc = backing_get(f->backing, parent, &dir);
    if (rc)
        return rc;
    taken = fstatat(dir.fd, other, &st, AT_SYMLINK_NOFOLLOW) == 0 && st.st_uid != uid;
    backing_put(f->backing, &dir);
    return taken ? -EEXIST : 0;
}

int place_may_create(struct fs *f, uint64_t parent, const char *name, mode_t type, uid_t uid, struct place *p)
{
    struct place folder;
    int rc = place_of_child(f, parent, name, p);

    if (rc == -ENOENT)
        return -EPERM; /* nothing may be made here */
    if (rc)
        return rc;
    if (p->owner != NODE_USER || p->m.entry->kind == LK_DROP_DIR)
        return -EPERM;
    if (p->m.entry->kind == LK_USER_FILE && S_ISDIR(type))
        return -EPERM;
    if (p->m.entry->kind == LK_USER_DIR && !S_ISDIR(type) && !S_ISLNK(type))
        return -EPERM; /* an object here is a folder */
    rc = place_of_node(f, parent, &folder);
    if (!rc && folder.m.entry->kind == LK_DROP_DIR)
        rc = check_object_name(p, &folder, name, type);
    if (!rc && folder.m.entry->kind == LK_DROP_DIR)
        rc = check_twin(f, parent, name);
    if (!rc && folder.m.entry->kind == LK_DROP_DIR)
        rc = check_other_half(f, parent, name, p, uid);
    place_release(&folder);
    return rc;
}
