/* What lies in a dropped file or folder: how much, since when, and whether a model's shards are all there. */
#include <dirent.h>
#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

enum { STAMP_MAX_DEPTH = 8, STAMP_MAX_FILES = 200000, MAX_HEADER = 64 << 20, MAX_INDEX = 16 << 20 };

static int64_t when(struct timespec t)
{
    return (int64_t)t.tv_sec * SECOND_NS + t.tv_nsec;
}

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9e3779b97f4a7c15u + (h << 6) + (h >> 2);
    return h * 0xff51afd7ed558ccdu;
}

static void add_file(const char *name, const struct stat *st, struct stamp *out)
{
    uint64_t h = mix((uint64_t)st->st_size, (uint64_t)when(st->st_mtim));

    for (const char *c = name; *c; c++)
        h = mix(h, (unsigned char)*c);
    out->hash += h; /* a sum: the order of a folder does not matter */
    out->files++;
    out->bytes += st->st_size;
}

static void note_time(const struct stat *st, struct stamp *out)
{
    int64_t m = when(st->st_mtim), c = when(st->st_ctim);

    if (m > c)
        m = c; /* times set into the future count from when they were set */
    if (m > out->newest)
        out->newest = m;
    if (c > out->newest)
        out->newest = c;
}

static int walk(int dirfd, const char *name, int depth, struct stamp *out)
{
    int fd = openat(dirfd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd_look_into(fd);
    struct dirent *ent;
    struct stat st;
    int rc = 0;

    if (!d)
        return -errno;
    while (rc == 0 && out->files < STAMP_MAX_FILES && (ent = readdir(d))) {
        if (!strcmp(ent->d_name, ".") || !strcmp(ent->d_name, "..") ||
            fstatat(fd, ent->d_name, &st, AT_SYMLINK_NOFOLLOW))
            continue;
        note_time(&st, out);
        out->closed |= privacy_of(st.st_mode);
        if (depth == 0 && strcmp(ent->d_name, "_SUCCESS") == 0)
            out->success = true;
        if (S_ISDIR(st.st_mode) && depth < STAMP_MAX_DEPTH)
            rc = walk(fd, ent->d_name, depth + 1, out);
        else if (!name_is_leftover(ent->d_name))
            add_file(ent->d_name, &st, out);
    }
    closedir(d);
    return rc == -ENOENT ? 0 : rc;
}

int stamp_path(int tree_fd, const char *path, struct stamp *out)
{
    struct stat st;

    *out = (struct stamp){0};
    if (fstatat(tree_fd, path, &st, AT_SYMLINK_NOFOLLOW))
        return -errno;
    out->uid = st.st_uid;
    out->gid = st.st_gid;
    out->closed = privacy_of(st.st_mode);
    note_time(&st, out);
    if (S_ISDIR(st.st_mode))
        return walk(tree_fd, path, 0, out);
    add_file("", &st, out);
    return 0;
}

void stamp_text(const struct stamp *st, char *out, size_t n)
{
    snprintf(out, n, "%" PRId64 ":%" PRId64 ":%016" PRIx64 ":%02o", st->files, st->bytes, st->hash,
             (unsigned)st->closed);
}

/* ---- safetensors shards: is every one as long as its header says? ---- */

static bool exists(int dir, const char *name)
{
    struct stat st;

    return fstatat(dir, name, &st, 0) == 0 && S_ISREG(st.st_mode) && st.st_size > 0;
}

/* The end of the last tensor, from the header's data_offsets. */
static int64_t data_end(const json_t *header)
{
    const char *key;
    json_t *v;
    int64_t end = 0;

    json_object_foreach((json_t *)header, key, v)
    {
        json_t *to = json_array_get(json_object_get(v, "data_offsets"), 1);
        if (json_is_integer(to) && json_integer_value(to) > end)
            end = json_integer_value(to);
    }
    return end;
}

static bool shard_complete(int dir, const char *name)
{
    int fd = strchr(name, '/') ? -1 : openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    uint64_t length = 0;
    char *text = NULL;
    json_t *header = NULL;
    bool ok = false;
    struct stat st;

    if (fd < 0)
        return false;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && fd_pread_all(fd, &length, 8, 0) == 0) {
        length = le64toh(length);
        if (length <= MAX_HEADER && (text = malloc(length + 1)) && fd_pread_all(fd, text, length, 8) == 0 &&
            json_parse_text(name, text, length, &header, NULL) == 0)
            ok = st.st_size == 8 + (int64_t)length + data_end(header);
    }
    json_decref(header);
    free(text);
    close(fd);
    return ok;
}

static bool index_complete(int dir, const json_t *index)
{
    const char *key, *last = "";
    json_t *v;

    json_object_foreach(json_object_get(index, "weight_map"), key, v)
    {
        const char *name = json_string_value(v);
        if (!name || (strcmp(name, last) != 0 && !shard_complete(dir, name)))
            return false;
        last = name;
    }
    return json_object_size(json_object_get(index, "weight_map")) > 0;
}

bool model_shards_complete(int tree_fd, const char *path)
{
    int dir = openat(tree_fd, path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    json_t *index = NULL;
    bool ok = false;

    if (dir < 0)
        return false;
    if (exists(dir, "config.json") && (exists(dir, "tokenizer.json") || exists(dir, "tokenizer.model"))) {
        if (json_parse_file(dir, "model.safetensors.index.json", MAX_INDEX, &index, NULL) == 0)
            ok = index_complete(dir, index);
        else
            ok = !exists(dir, "model.safetensors.index.json") && shard_complete(dir, "model.safetensors");
    }
    json_decref(index);
    close(dir);
    return ok;
}
