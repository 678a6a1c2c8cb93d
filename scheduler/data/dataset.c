#include "scheduler/data/data_int.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"

enum { DATASET_JSON_MAX = 1 << 20 };

static int read_spec_file(struct dataset *d, int fd, struct dtx_err *e)
{
    struct buf text = BUF_INIT;
    int rc = fd_read_open(fd, "dataset.json", DATASET_JSON_MAX, &text, e);

    if (rc == 0)
        rc = json_parse_text("dataset.json", text.p ? text.p : "", text.len, &d->spec, e);
    if (rc == 0 && !json_is_object(d->spec))
        rc = dtx_fail(e, -EINVAL, "dataset.json:1:1: expected an object {...}");
    buf_release(&text);
    return rc;
}

static int read_spec(struct dataset *d, const json_t *given, struct dtx_err *e)
{
    int fd = -1, rc;

    if (!given) {
        fd = fd_open_file(d->fd, "dataset.json", e);
        if (fd < 0 && fd != -ENOENT)
            return fd;
        if (fd < 0) /* it need not be there: that is no error to be told of */
            dtx_err_clear(e);
    }
    if (fd >= 0) {
        rc = read_spec_file(d, fd, e);
        close(fd);
        return rc;
    }
    d->spec = given ? json_deep_copy(given) : json_object();
    return d->spec ? 0 : dtx_fail(e, -ENOMEM, "out of memory");
}

static int feature(const json_t *features, const char *name, const char **out, struct dtx_err *e)
{
    const json_t *v = json_object_get(features, name);

    if (v && !json_is_null(v) && (!json_is_string(v) || !json_string_length(v)))
        return dtx_fail(e, -EINVAL, "dataset.json: features.%s: expected the name of a column", name);
    *out = json_string_value(v);
    return 0;
}

static int use_spec(struct dataset *d, struct dtx_err *e)
{
    const json_t *features = json_object_get(d->spec, "features"),
                 *plugin = json_object_get(d->spec, "plugin");
    const json_t *template_value = json_object_get(d->spec, "template");
    int rc;

    if (plugin && !json_is_null(plugin))
        return dtx_fail(
            e, -EINVAL,
            "dataset.json: plugin: data plugins are not built yet; put the rows into train.jsonl");
    if (features && !json_is_null(features) && !json_is_object(features))
        return dtx_fail(e, -EINVAL,
                        "dataset.json: features: expected an object {\"instruction\": COLUMN, ...}");
    if (template_value && !json_is_null(template_value) && !json_is_string(template_value))
        return dtx_fail(e, -EINVAL, "dataset.json: template: expected a name");
    d->template_name = json_string_value(template_value);
    rc = chat_template_of(NULL, d->template_name, NULL, e);
    if (rc == 0)
        rc = feature(features, "instruction", &d->features.instruction, e);
    if (rc == 0)
        rc = feature(features, "response", &d->features.response, e);
    if (rc == 0)
        rc = feature(features, "system", &d->features.system, e);
    if (rc == 0)
        rc = feature(features, "history", &d->features.history, e);
    return rc;
}

/* Splits that the spec names replace what would be found by name. */
static int find_files(struct dataset *d, struct dtx_err *e)
{
    const json_t *splits = json_object_get(d->spec, "splits");
    int rc = data_discover(d->fd, d->files, &d->others, e);

    for (int s = 0; rc == 0 && s < DATA_SPLITS; s++) {
        const json_t *names = json_object_get(splits, data_split_names[s]);
        if (!names || json_is_null(names))
            continue;
        data_files_release(&d->files[s]);
        rc = data_files_named(data_split_names[s], names, &d->files[s], e);
    }
    return rc;
}

int dataset_open(int dirfd, const char *dir, const json_t *spec, struct dataset **out, struct dtx_err *e)
{
    struct dataset *d = calloc(1, sizeof(*d));
    int rc = 0;

    *out = NULL;
    if (!d)
        return dtx_fail(e, -ENOMEM, "out of memory");
    d->fd = openat(dirfd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (d->fd < 0)
        rc = dtx_fail_errno(e, "cannot open the dataset's folder %.200s", dir);
    if (rc == 0)
        rc = read_spec(d, spec, e);
    if (rc == 0)
        rc = use_spec(d, e);
    if (rc == 0)
        rc = find_files(d, e);
    if (rc) {
        dataset_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void dataset_close(struct dataset *d)
{
    if (!d)
        return;
    for (int s = 0; s < DATA_SPLITS; s++)
        data_files_release(&d->files[s]);
    buf_release(&d->others);
    json_decref(d->spec);
    if (d->fd >= 0)
        close(d->fd);
    free(d);
}

bool dataset_has(const struct dataset *d, enum data_split split)
{
    return d->files[split].n > 0;
}

/* ---- walk ---- */

struct walk {
    struct dataset *d;
    const char *file;
    long line;
    int (*fn)(void *arg, const struct data_row *row);
    void (*skip)(void *arg, const char *why);
    void *arg;
    int stopped; /* what fn returned */
};

static void walk_bad(void *arg, long line, const char *why)
{
    struct walk *w = arg;
    struct dtx_err text;

    dtx_fail(&text, -EINVAL, "%s:%ld: %s", w->file, line, why);
    if (w->skip)
        w->skip(w->arg, text.msg);
}

static int walk_emit(void *arg, struct data_row *row)
{
    struct walk *w = arg;

    row->file = w->file;
    row->line = w->line;
    w->stopped = w->fn ? w->fn(w->arg, row) : 0;
    return w->stopped ? 1 : 0;
}

static int walk_object(void *arg, const json_t *object, long line)
{
    struct walk *w = arg;
    enum data_form form = FORM_TEXT;
    struct dtx_err why;
    int rc;

    w->line = line;
    rc = data_rows_of(&w->d->features, object, walk_emit, w, &form, &why);
    if (rc == 0 || rc == 1)
        w->d->forms |= 1u << form;
    if (rc >= 0)
        return rc;
    walk_bad(w, line, why.msg);
    return 0;
}

/* A hole costs nothing and reads as zero bytes, which no text has: terabytes of it would keep a check busy
 * for an hour. */
static bool has_hole(int fd, off_t size)
{
    off_t hole = lseek(fd, 0, SEEK_HOLE);

    return hole >= 0 && hole < size;
}

static int open_file(const struct dataset *d, const char *path, struct dtx_err *e)
{
    int fd = data_open_beneath(d->fd, path, O_RDONLY, e), rc = 0;
    struct stat st;

    if (fd < 0)
        return fd;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode))
        rc = dtx_fail(e, -EINVAL, "%.200s is not a regular file", path);
    else if (has_hole(fd, st.st_size))
        rc = dtx_fail(e, -EINVAL, "%.200s has holes (it was not copied whole): copy it again", path);
    if (rc || lseek(fd, 0, SEEK_SET)) {
        close(fd);
        return rc ? rc : dtx_fail_errno(e, "cannot read %.200s", path);
    }
    return fd;
}

static int walk_file(struct walk *w, const struct data_file *f, struct dtx_err *e)
{
    const struct row_sink sink = {walk_object, walk_bad, w};
    int fd = open_file(w->d, f->path, e), rc;
    struct data_in in;

    if (fd < 0)
        return fd;
    w->file = f->path;
    rc = data_in_init(&in, fd, f->path, f->gz, e);
    if (rc == 0)
        rc = data_read(&in, f->format, &sink, e);
    data_in_release(&in);
    close(fd);
    return rc;
}

int dataset_walk(struct dataset *d, enum data_split split, int (*fn)(void *arg, const struct data_row *row),
                 void (*skip)(void *arg, const char *why), void *arg, struct dtx_err *e)
{
    struct walk w = {.d = d, .fn = fn, .skip = skip, .arg = arg};
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < d->files[split].n; i++)
        rc = walk_file(&w, &d->files[split].v[i], e);
    return w.stopped ? w.stopped : rc;
}

/* ---- content hash ---- */

static int hash_file(struct dataset *d, struct sha256 *s, const char *label, const char *path,
                     struct dtx_err *e)
{
    static const size_t chunk = 1 << 18;
    int fd = open_file(d, path, e), rc = 0;
    char *p = fd < 0 ? NULL : malloc(chunk);
    struct stat st;
    struct buf head = BUF_INIT;

    if (fd < 0)
        return fd;
    if (!p || fstat(fd, &st))
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    else
        buf_addf(&head, "%s %s %lld\n", label, path, (long long)st.st_size);
    sha256_add(s, head.p ? head.p : "", head.len);
    while (rc == 0) {
        ssize_t got = read(fd, p, chunk);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            rc = dtx_fail_errno(e, "cannot read %.200s", path);
        if (got <= 0)
            break;
        sha256_add(s, p, (size_t)got);
    }
    buf_release(&head);
    free(p);
    close(fd);
    return rc;
}

int dataset_sha256(struct dataset *d, char hex[65], struct dtx_err *e)
{
    struct sha256 *s = d->sha256[0] ? NULL : sha256_new();
    int rc = 0;

    if (!d->sha256[0]) {
        if (!s)
            return dtx_fail(e, -ENOMEM, "out of memory");
        for (int split = 0; split < DATA_SPLITS; split++)
            for (size_t i = 0; rc == 0 && i < d->files[split].n; i++)
                rc = hash_file(d, s, data_split_names[split], d->files[split].v[i].path, e);
        if (rc == 0 && faccessat(d->fd, "dataset.json", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
            rc = hash_file(d, s, "spec", "dataset.json", e);
        sha256_finish(s, hex);
        if (rc)
            return rc;
        memcpy(d->sha256, hex, sizeof(d->sha256));
    }
    memcpy(hex, d->sha256, sizeof(d->sha256));
    return 0;
}
