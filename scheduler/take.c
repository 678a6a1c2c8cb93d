/* A complete drop becomes an object: specs are parsed, folders are measured and sent to CHECKING. */
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

int open_beneath(int dirfd, const char *path, int flags)
{
    int quietly = flags & O_PATH ? 0 : O_NONBLOCK | O_NOCTTY; /* O_PATH takes neither */
    struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW | quietly),
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};

    return (int)syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
}

int read_beneath(int dirfd, const char *path, size_t max, struct buf *b, struct dtx_err *e)
{
    int fd = open_beneath(dirfd, path, O_RDONLY), rc = 0;
    struct stat st;
    ssize_t got = 1;

    if (fd < 0)
        return errno == ELOOP
                   ? dtx_fail(e, -ELOOP, "%s is or lies behind a symbolic link: copy the file itself", path)
                   : dtx_fail_errno(e, "cannot open %s", path);
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        rc = dtx_fail(e, -EINVAL, "%s is not a regular file", path);
    while (rc == 0 && got > 0) {
        if (b->len > max)
            rc = dtx_fail(e, -EFBIG, "%s has more than %zu bytes", path, max);
        else if (buf_reserve(b, 65536))
            rc = dtx_fail(e, -ENOMEM, "out of memory reading %s", path);
        else if ((got = read(fd, b->p + b->len, 65536)) < 0 && errno != EINTR)
            rc = dtx_fail_errno(e, "cannot read %s", path);
        else if (got > 0)
            b->p[b->len += (size_t)got] = '\0';
        else if (got < 0)
            got = 1;
    }
    close(fd);
    return rc;
}

bool error_passes(int rc)
{
    return rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM;
}

static const enum spec_kind spec_of[OBJ_KINDS] = {
    [OBJ_DATASET] = SPEC_DATASET,       [OBJ_PARAMGROUP] = SPEC_PARAMGROUP,
    [OBJ_EVALUATION] = SPEC_EVALUATION, [OBJ_DATA_PLUGIN] = SPEC_PLUGIN,
    [OBJ_SCORING_PLUGIN] = SPEC_PLUGIN, [OBJ_SERVICE] = SPEC_SERVICE,
    [OBJ_EXPERIMENT] = SPEC_EXPERIMENT, [OBJ_COMPARE] = SPEC_COMPARE,
    [OBJ_ASK] = SPEC_COMPARE,
};

/* Settings and, beside them, "prompt". */
static int parse_prompt(const char *file, const char *text, size_t n, json_t **out, struct dtx_err *e)
{
    size_t bad = text_utf8_bad_at(text, n), prompt_n = 0;
    const char *prompt = text;
    int rc;

    if (bad < n)
        return dtx_fail(e, -EINVAL, "%s: byte %zu (0x%02x) is not UTF-8; save the file as UTF-8",
                        base_name(file), bad, (unsigned char)text[bad]);
    if (n && memchr(text, '\0', n))
        return dtx_fail(e, -EINVAL, "%s: holds a NUL byte: a prompt is text", base_name(file));
    rc = spec_parse_prompt(base_name(file), text, n, out, &prompt, &prompt_n, e);
    if (rc)
        return rc;
    n = prompt_n;
    while (n && strchr("\r\n", prompt[n - 1]))
        n--;
    if (text_is_blank(prompt, n)) {
        json_decref(*out);
        *out = NULL;
        return dtx_fail(e, -EINVAL, "%s: the prompt is empty", base_name(file));
    }
    json_object_set_new(*out, "prompt", json_stringn(prompt, n));
    json_object_set_new(*out, "own_settings", json_boolean(prompt != text));
    return 0;
}

int take_parse(enum object_kind kind, const char *path, const char *text, size_t n, json_t **out,
               struct dtx_err *e)
{
    if (kind == OBJ_COMPARE || kind == OBJ_ASK)
        return parse_prompt(path, text, n, out, e);
    return spec_parse(spec_of[kind], base_name(path), text, n, out, e);
}

/* A prompt's answers lie beside it under its name: of a.txt.txt they would take the place of the prompt
 * a.txt, which may be anybody's, or a link. */
static int check_answers_place(const struct intake *i, struct dtx_err *e)
{
    const char *slash = strchr(i->name, '/');
    char path[PATH_MAX];
    struct layout_match m;

    if (i->kind == OBJ_COMPARE)
        snprintf(path, sizeof(path), "models/compare/%s", i->name);
    else
        snprintf(path, sizeof(path), "services/%.*s/ask/%s.md", (int)(slash - i->name), i->name, slash + 1);
    if (layout_lookup(path, &m) == 0 && (m.entry->kind == LK_STORE_DIR || m.entry->kind == LK_STORE_FILE))
        return 0;
    return dtx_fail(e, -EINVAL, "the answers would be %s, which is another file's name: rename the prompt",
                    base_name(path));
}

/* Names that the file system let through but that no object may have. */
static int check_name(const struct intake *i, struct dtx_err *e)
{
    const char *name = i->kind == OBJ_ASK ? base_name(i->name) : i->name;
    int rc = name_check(name, e);

    if (rc == 0 && (i->kind == OBJ_COMPARE || i->kind == OBJ_ASK))
        rc = check_answers_place(i, e);
    if (rc == 0 && i->kind == OBJ_EXPERIMENT && strchr(name, '.'))
        rc = dtx_fail(e, -EINVAL, "an experiment's name has no dot: rename %s.json", name);
    return rc;
}

static int reject(struct sched *s, struct object *o, const char *reason)
{
    set_json(&o->spec, NULL);
    return object_event(s, o, EV_ERROR, reason);
}

/* paramgroup, evaluation, prompt.  refused: the file cannot even be read, words. */
static int take_spec(struct sched *s, struct intake *i, struct object *o, const struct buf *text,
                     const char *refused, bool last_chance)
{
    struct dtx_err e = {0};
    json_t *spec = NULL;
    int rc = refused ? dtx_fail(&e, -EINVAL, "%s", refused) : check_name(i, &e);

    if (rc)
        return reject(s, o, e.msg);
    slow_begin(s);
    rc = take_parse(i->kind, i->path, text->p ? text->p : "", text->len, &spec, &e);
    slow_end(s);
    if (rc && !last_chance && !i->released)
        return -EAGAIN;
    if (rc)
        return reject(s, o, e.msg);
    set_json(&o->spec, spec);
    set_json(&o->report, NULL);
    return object_event(s, o, i->kind == OBJ_COMPARE || i->kind == OBJ_ASK ? EV_SETTLE : EV_DONE, NULL);
}

/* A folder of the store, not a link to one somewhere else. */
static int check_folder(struct sched *s, const char *path, struct dtx_err *e)
{
    int fd = open_beneath(s->tree_fd, path, O_RDONLY | O_DIRECTORY);

    if (fd < 0)
        return errno == ELOOP || errno == ENOTDIR
                   ? dtx_fail(e, -ENOTDIR,
                              "%s is not a folder (or a symbolic link to one): copy the folder itself", path)
                   : dtx_fail_errno(e, "cannot open %s", path);
    close(fd);
    return 0;
}

/* The description in a folder: dataset.json or plugin.json. */
static int take_folder(struct sched *s, struct intake *i, struct object *o)
{
    static const char *const files[OBJ_KINDS] = {[OBJ_DATASET] = "dataset.json",
                                                 [OBJ_DATA_PLUGIN] = "plugin.json",
                                                 [OBJ_SCORING_PLUGIN] = "plugin.json"};
    char path[PATH_MAX];
    struct buf text = BUF_INIT;
    struct dtx_err e = {0};
    json_t *spec = NULL;
    int rc = check_name(i, &e);

    if (rc == 0)
        rc = check_folder(s, i->path, &e);
    if (rc == 0 && files[i->kind]) {
        snprintf(path, sizeof(path), "%s/%s", i->path, files[i->kind]);
        slow_begin(s);
        rc = read_beneath(s->tree_fd, path, MAX_SPEC, &text, &e);
        if (rc == -ENOENT && i->kind == OBJ_DATASET) {
            buf_adds(&text, "{}");
            rc = 0;
        }
        if (rc == 0)
            rc = take_parse(i->kind, path, text.p, text.len, &spec, &e);
        slow_end(s);
    }
    buf_release(&text);
    if (rc)
        return error_passes(rc) ? rc : reject(s, o, e.msg);
    set_json(&o->spec, spec);
    set_json(&o->report, NULL);
    return object_event(s, o, EV_SETTLE, NULL);
}

static int take_object(struct sched *s, struct intake *i, const struct stamp *st, const struct buf *text,
                       const char *refused, bool last_chance)
{
    struct object *o = object_get(s, i->kind, i->name, i->has_who ? &i->who : NULL);
    struct dtx_err e = {0};
    int rc;

    if (!o)
        return -ENOMEM;
    o->size = st->bytes;
    o->closed = st->closed;
    stamp_text(st, o->stamp, sizeof(o->stamp));
    if (geteuid() == 0 || !i->has_who) {
        o->uid = st->uid;
        o->gid = st->gid;
    }
    if (i->kind == OBJ_SERVICE) {
        rc = check_name(i, &e);
        if (rc == 0)
            rc = service_take(s, o, i->path, &e);
        if (rc && e.msg[0] && !error_passes(rc))
            rc = o->state == ST_NONE && object_event(s, o, EV_WRITE, NULL) ? -EIO : reject(s, o, e.msg);
    } else if (i->folder) {
        rc = refused ? reject(s, o, refused) : take_folder(s, i, o);
    } else {
        rc = take_spec(s, i, o, text, refused, last_chance);
    }
    if (rc)
        object_drop_unsaved(s, o);
    return rc;
}

/* We read as root: so nothing for an owner that is not the owner's to read, nor what was not looked at. */
static int check_readable(const struct stamp *st, struct dtx_err *e)
{
    if (st->foreign[0])
        return dtx_fail(e, -EACCES,
                        "%s in it belongs to another user and does not let you read it: ask for chmod g+r or "
                        "o+r, or remove it",
                        st->foreign);
    if (st->unseen)
        return dtx_fail(e, -EFBIG, "it has too many files, or folders too deep: pack or move them");
    return 0;
}

int take_drop(struct sched *s, struct intake *i, bool last_chance)
{
    struct buf text = BUF_INIT;
    struct dtx_err e = {0};
    struct stamp st;
    char stamp[96];
    unsigned gen = i->gen;
    int rc, sync = 0;

    slow_begin(s);
    rc = stamp_path(s->tree_fd, i->path, &st);
    if (rc == 0 && !i->folder)
        rc = read_beneath(s->tree_fd, i->path, MAX_SPEC, &text, &e);
    /* on the disk before any state says that we have it; datasets and base models: by their check */
    if (rc == 0 && i->kind != OBJ_DATASET && i->kind != OBJ_BASE)
        sync = fd_sync_tree(s->tree_fd, i->path, &e);
    slow_end(s);
    if (rc && !e.code)
        dtx_fail(&e, rc, "cannot read %s: %s", i->path, strerror(-rc));
    if (sync || error_passes(rc)) {
        catalog_trouble(s, &e);
        buf_release(&text);
        return sync ? sync : rc;
    }
    if (rc ==
        -ENOENT) { /* gone meanwhile, its event is on the way; or it came again since, and that was told */
        buf_release(&text);
        i->gone = gen == i->gen;
        return -EAGAIN;
    }
    if (rc == 0 && !i->folder && text_is_blank(text.p, text.len) && !last_chance) {
        buf_release(&text);
        return -EAGAIN;
    }
    stamp_text(&st, stamp, sizeof(stamp));
    if (rc == 0 && i->folder && i->kind != OBJ_SERVICE)
        rc = check_readable(&st, &e);
    if (rc == 0 && i->no_space)
        rc = dtx_fail(&e, -ENOSPC, "%s; %s was cut off: copy it again then", i->no_space, i->cut_off);
    if (i->kind == OBJ_EXPERIMENT) {
        struct caller who = {.uid = st.uid, .gid = st.gid};
        if (geteuid() != 0 && i->has_who)
            who = i->who;
        rc = rc ? rc : check_name(i, &e);
        rc = experiment_take(s, i->name, &text, rc ? e.msg : NULL, &who, stamp, last_chance || i->released);
    } else {
        rc = take_object(s, i, &st, &text, rc ? e.msg : NULL, last_chance);
    }
    buf_release(&text);
    return rc;
}
