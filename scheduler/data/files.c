/* Which files of a dataset's folder make which split.  Nothing outside the folder is ever opened. */
#include "scheduler/data/data_int.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/text.h"

const char *const data_split_names[DATA_SPLITS] = {"train", "validation", "test"};

void data_files_release(struct data_files *f)
{
    for (size_t i = 0; i < f->n; i++)
        free(f->v[i].path);
    free(f->v);
    memset(f, 0, sizeof(*f));
}

bool data_format_of(const char *name, enum data_format *format, bool *gz)
{
    size_t n = strlen(name);

    *gz = n > 3 && strcasecmp(name + n - 3, ".gz") == 0;
    if (*gz)
        n -= 3;
    for (int f = 0; f < DATA_FORMATS; f++) {
        size_t len = strlen(data_format_names[f]);
        if (n > len + 1 && name[n - len - 1] == '.' &&
            strncasecmp(name + n - len, data_format_names[f], len) == 0) {
            *format = (enum data_format)f;
            return true;
        }
    }
    return false;
}

static int files_add(struct data_files *f, const char *path, struct dtx_err *e)
{
    struct data_file file = {0};

    if (!data_format_of(path, &file.format, &file.gz))
        return dtx_fail(
            e, -EINVAL,
            "%.200s: not a format that is read here; expected .jsonl, .json, .csv or .tsv, each also .gz",
            path);
    if (f->n == DATA_MAX_FILES)
        return dtx_fail(e, -EINVAL, "more than %d files in one split", DATA_MAX_FILES);
    if (f->n == f->cap) {
        size_t cap = f->cap ? 2 * f->cap : 4;
        struct data_file *grown = realloc(f->v, cap * sizeof(*grown));
        if (!grown)
            return dtx_fail(e, -ENOMEM, "out of memory");
        f->v = grown;
        f->cap = cap;
    }
    file.path = strdup(path);
    if (!file.path)
        return dtx_fail(e, -ENOMEM, "out of memory");
    f->v[f->n++] = file;
    return 0;
}

/* Does "train-00000-of-00002.jsonl" begin with the word train? */
static bool begins_with_word(const char *name, const char *word)
{
    size_t n = strlen(word);
    return strncmp(name, word, n) == 0 && name[n] && strchr("._-", name[n]);
}

static int split_of(const char *name)
{
    if (begins_with_word(name, "train"))
        return DATA_TRAIN;
    if (begins_with_word(name, "validation") || begins_with_word(name, "val"))
        return DATA_VALIDATION;
    return begins_with_word(name, "test") ? DATA_TEST : -1;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct data_file *)a)->path, ((const struct data_file *)b)->path);
}

/* Where a name says "-of-00003", all three must be there. */
static int check_shards(const struct data_files *f, struct dtx_err *e)
{
    for (size_t i = 0; i < f->n; i++) {
        const char *of = strstr(f->v[i].path, "-of-");
        size_t stem, same = 0;
        long want;
        if (!of)
            continue;
        want = strtol(of + 4, NULL, 10);
        for (stem = (size_t)(of - f->v[i].path); stem && strchr("0123456789", f->v[i].path[stem - 1]);)
            stem--;
        for (size_t k = 0; k < f->n; k++) {
            const char *of_k = strstr(f->v[k].path, "-of-");
            same += of_k && strcmp(of_k, of) == 0 && strncmp(f->v[k].path, f->v[i].path, stem) == 0;
        }
        if (want > 0 && same < (size_t)want)
            return dtx_fail(e, -EINVAL,
                            "%s says that there are %ld parts, but %zu are here; copy the missing ones",
                            f->v[i].path, want, same);
        i += same ? same - 1 : 0; /* sorted: they stand together */
    }
    return 0;
}

static void note_other(struct buf *others, const char *name)
{
    if (others && others->len < 300 && !name_is_leftover(name) && strcmp(name, "dataset.json") &&
        name[0] != '_')
        buf_addf(others, "%s%.60s", others->len ? ", " : "", name);
}

static int discover_names(DIR *d, struct data_files files[DATA_SPLITS], struct buf *others, struct dtx_err *e)
{
    struct dirent *ent;
    int rc = 0;

    while (rc == 0 && (errno = 0, ent = readdir(d))) {
        int split = split_of(ent->d_name);
        enum data_format format;
        bool gz;
        if (split >= 0 && !name_is_leftover(ent->d_name) && data_format_of(ent->d_name, &format, &gz))
            rc = files_add(&files[split], ent->d_name, e);
        else
            note_other(others, ent->d_name);
    }
    return rc == 0 && errno ? dtx_fail_errno(e, "cannot list the dataset's folder") : rc;
}

int data_discover(int dirfd, struct data_files files[DATA_SPLITS], struct buf *others, struct dtx_err *e)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;
    DIR *d = fd_look_into(fd);

    if (!d)
        return dtx_fail_errno(e, "cannot list the dataset's folder");
    rc = discover_names(d, files, others, e);
    closedir(d);
    for (int s = 0; rc == 0 && s < DATA_SPLITS; s++) {
        if (files[s].n)
            qsort(files[s].v, files[s].n, sizeof(*files[s].v), by_path);
        rc = check_shards(&files[s], e);
    }
    return rc;
}

static int open_step(int dirfd, const char *name, int flags, const char *path, struct dtx_err *e)
{
    int fd = openat(dirfd, name, flags | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd >= 0)
        return fd;
    if (errno == ELOOP || (errno == ENOTDIR && flags & O_DIRECTORY))
        return dtx_fail(e, -EINVAL, "%.200s: \"%.60s\" is a link (or no folder); copy the files themselves",
                        path, name);
    return dtx_fail_errno(e, "cannot open %.200s", path);
}

int data_open_beneath(int dirfd, const char *path, int flags, struct dtx_err *e)
{
    char part[NAME_MAX + 1];
    int at = dirfd, fd;

    if (path[0] == '/' || path[0] == '\0')
        return dtx_fail(e, -EINVAL, "\"%.200s\": expected a path inside the dataset's folder", path);
    for (const char *p = path;;) {
        size_t n = strcspn(p, "/"), next = n + strspn(p + n, "/");
        bool last = p[next] == '\0';
        if (n > NAME_MAX || (n == 2 && memcmp(p, "..", 2) == 0))
            return (void)(at != dirfd && close(at)),
                   dtx_fail(e, -EINVAL, "\"%.200s\" leaves the dataset's folder; expected a path inside it",
                            path);
        memcpy(part, p, n);
        part[n] = '\0';
        fd = open_step(at, part, last ? flags : O_PATH | O_DIRECTORY, path, e);
        if (at != dirfd)
            close(at);
        if (last || fd < 0)
            return fd;
        at = fd;
        p += next;
    }
}

static int named_file(const char *split, const char *path, struct data_files *files, struct dtx_err *e)
{
    static const char *const schemes[] = {"s3:", "http:", "https:", "file:"};

    for (size_t i = 0; i < sizeof(schemes) / sizeof(schemes[0]); i++)
        if (strncasecmp(path, schemes[i], strlen(schemes[i])) == 0)
            return dtx_fail(
                e, -EINVAL,
                "dataset.json: splits.%s: \"%.200s\": fetching from %.5s//... is not built yet; copy the "
                "file into the dataset's folder",
                split, path, schemes[i]);
    if (path[0] == '/')
        return dtx_fail(
            e, -EINVAL,
            "dataset.json: splits.%s: \"%.200s\": local paths outside the folder are not built yet; copy "
            "the file into the dataset's folder",
            split, path);
    return files_add(files, path, e);
}

int data_files_named(const char *split, const json_t *names, struct data_files *files, struct dtx_err *e)
{
    size_t i;
    json_t *name;

    if (json_is_string(names))
        return named_file(split, json_string_value(names), files, e);
    if (!json_is_array(names))
        return dtx_fail(e, -EINVAL, "dataset.json: splits.%s: expected a path or a list of paths", split);
    json_array_foreach((json_t *)names, i, name)
    {
        int rc = json_is_string(name)
                     ? named_file(split, json_string_value(name), files, e)
                     : dtx_fail(e, -EINVAL, "dataset.json: splits.%s: item %zu is no path", split, i + 1);
        if (rc)
            return rc;
    }
    return 0;
}
