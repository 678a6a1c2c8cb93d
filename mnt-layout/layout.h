/*
 * The tree under the mount, declared once (layout.c): dispatch, the README.md files, dtx.layout(5) and the
 * tests all come from this table.  See DESIGN of the tree in ARCHITECTURE.md.
 *
 * A pattern is a path relative to the mount, without a leading slash, whose components are
 *     literal      experiments
 *     {name}       any object name, bound to the next argument (the word in braces is only for people, except
 * that {exp} takes no dot: an experiment's name has none) {name}.json  object name with a suffix
 *     **           the user-owned rest of a path (last component only)
 */
#ifndef DTX_LAYOUT_H
#define DTX_LAYOUT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum layout_kind {
    LK_DIR,        /* a folder of DTX's: listed from the table and from the objects that exist */
    LK_DROP_DIR,   /* a folder of DTX's in which callers create objects (backed by the same path in the store)
                    */
    LK_USER_DIR,   /* an object's folder that belongs to its owner (backed) */
    LK_USER_ANY,   /* anything under a user-owned folder (backed) */
    LK_USER_FILE,  /* a file that belongs to its owner, e.g. a spec (backed) */
    LK_TEXT,       /* generated: rendered at getattr by `reader` */
    LK_CONTROL,    /* generated and writable: `writer` takes whole lines */
    LK_STORE_FILE, /* written by DTX into the store at the same path, read-only through the mount, may grow */
    LK_STORE_DIR,  /* a folder of such files; rm -r of it may mean something (see ops) */
    LK_STORE_ANY,  /* anything under such a folder, file or folder (what it is says the store) */
    LK_LINK,       /* a symbolic link made by `reader` */
};

/* Who renders a generated file, lists a generated folder or gives a link's target. One function each in
 * scheduler/render*.c (table render_ops); the texts are made from the in-memory state. */
enum layout_reader {
    LR_NONE,
    LR_README, /* README.md of the folder it is in: layout_readme() */
    LR_STATUS,
    LR_STATUS_JSON,
    LR_CONSOLE,
    LR_METRICS,
    LR_LOG,
    LR_BIN_DTX,
    LR_TEMPLATE,      /* templates/KIND.json */
    LR_SCHEMA,        /* schemas/KIND.json */
    LR_LIST,          /* LIST.tsv of the collection it is in */
    LR_OBJECT_STATUS, /* NAME.status beside the object */
    LR_COLLECTION,    /* lists the objects of a collection (folder) */
    LR_CATEGORY,
    LR_CATEGORY_VALUE,
    LR_CATEGORY_LINK, /* models/by-X/VALUE/NAME */
    LR_BEST_LINK,     /* models/tuned/EXP.best */
    LR_EXPERIMENTS,
    LR_EXP_STATUS,
    LR_EXP_STATUS_JSON,
    LR_EXP_PROGRESS,
    LR_EXP_LEADERBOARD,
    LR_EXP_BEST,
    LR_EXP_REPORT,
    LR_EXP_CONTROL,
    LR_EXP_SPEC,
    LR_JOBS,
    LR_JOB_STATUS,
    LR_JOB_STATUS_JSON,
    LR_JOB_PROGRESS,
    LR_JOB_CONTROL,
    LR_JOB_SVG,
    LR_DEVICES,
    LR_DEVICE_STATUS,
    LR_SERVICES,
    LR_SERVICE_STATS,
    LR_SERVICE_ENDPOINT,
    LR_SERVICE_CONTROL,
    LR_COUNT
};

enum layout_writer { LW_NONE, LW_EXP_CONTROL, LW_JOB_CONTROL, LW_SERVICE_CONTROL };

/* The object kinds of the catalog; a table row says which kind (if any) an object at that path is. */
enum object_kind {
    OBJ_NONE,
    OBJ_DATASET,
    OBJ_PARAMGROUP,
    OBJ_EVALUATION,
    OBJ_DATA_PLUGIN,
    OBJ_SCORING_PLUGIN,
    OBJ_BASE,
    OBJ_TUNED,
    OBJ_SERVICE,
    OBJ_EXPERIMENT,
    OBJ_JOB,
    OBJ_COMPARE,
    OBJ_ASK /* a prompt in services/NAME/ask */,
    OBJ_KINDS
};

struct layout_entry {
    const char *pattern;
    enum layout_kind kind;
    mode_t mode; /* permission bits */
    enum layout_reader reader;
    enum layout_writer writer;
    enum object_kind object; /* of the object whose root (folder or spec file) this path is */
    enum object_kind
        lists; /* for a collection's folder, its LIST.tsv and NAME.status rows: the objects they are about */
    const char *help; /* one line, for README.md and the man page */
};

extern const struct layout_entry layout_table[];
extern const size_t layout_count;

enum { LAYOUT_MAX_ARGS = 4, LAYOUT_NAME_MAX = 256 };

struct layout_match {
    const struct layout_entry *entry;
    int nargs;
    char arg[LAYOUT_MAX_ARGS][LAYOUT_NAME_MAX]; /* what {name} bound to, in order, suffix removed */
    const char *rest;                           /* what ** matched (points into the path), NULL otherwise */
};

/* Find the row for a path ("" = the root).  Literals win over {name}.json, {name}.json over {name}, {name}
 * over **. Leftover names (name_is_leftover) match no {name} pattern below an LK_DROP_DIR, but the ** or a
 * LK_USER_FILE row if the folder takes files.  Returns 0 or -ENOENT. */
int layout_lookup(const char *path, struct layout_match *m);
/* The innermost object that a path lies in or is the root of: its row, its arguments, and where in the path
 * its name ends.  Returns 0 or -ENOENT. */
int layout_object(const char *path, struct layout_match *m, size_t *end);

/* Call fn for every fixed (literal) child that the table declares in the folder at `path` (or pattern).
 * Children of a backed kind (LK_USER_*, LK_STORE_*) exist only where the store has them. */
void layout_children(const char *path,
                     void (*fn)(void *arg, const struct layout_entry *child, const char *name), void *arg);

struct buf;
/* README.md of a folder: what it is for, what one does in it, and the help of each child, from the table. */
int layout_readme(const char *dir, struct buf *out);
/* A text embedded at build time: "bin/dtx", "man", or a folder's pattern ("" = the root).  NULL: there is
 * none.  Not NUL-terminated. */
const char *layout_text(const char *name, size_t *len);
/* The generated texts that depend on the table alone: LR_README, LR_TEMPLATE, LR_SCHEMA, LR_BIN_DTX.  -ENOENT
 * for any other row. */
int layout_render(const struct layout_match *m, struct buf *out);
/* dtx.layout(5) in man format. */
void layout_man_page(struct buf *out);

const char *object_kind_name(enum object_kind k);       /* "dataset", "paramgroup", ... */
const char *object_kind_collection(enum object_kind k); /* "datasets", "models/base", ... */

#endif
