/*
 * Reading safetensors.  A file's header is checked completely before anybody sees a tensor; afterwards the
 * descriptors can be trusted: every extent lies in the map, no two overlap, sizes are shape times type.
 */
#include "kernels/safetensors.h"

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"

enum {
    ST_MAX_HEADER = 100000000, /* bytes; the limit of the format's own library */
    ST_MAX_INDEX = 64 << 20,   /* bytes of model.safetensors.index.json */
    ST_MAX_TENSORS = 1 << 18,
    ST_MAX_SHARDS = 4096,
    ST_MAX_NAME = 512,
};

struct st_file {
    char *name;
    unsigned char *map;
    size_t len;
    int fd; /* while it is being opened, else -1 */
};

struct st_set {
    struct st_file *files;
    size_t n_files;
    struct st_tensor *tensors; /* in the order of the files and their headers */
    size_t n, cap;
    uint32_t *by_name; /* indices of tensors, sorted by name */
};

static const struct {
    const char *name;
    enum st_type type;
    unsigned bits;
} type_table[] = {
    {"F32", ST_F32, 32},      {"F16", ST_F16, 16},   {"BF16", ST_BF16, 16},    {"F64", ST_OTHER, 64},
    {"I64", ST_OTHER, 64},    {"U64", ST_OTHER, 64}, {"I32", ST_OTHER, 32},    {"U32", ST_OTHER, 32},
    {"I16", ST_OTHER, 16},    {"U16", ST_OTHER, 16}, {"I8", ST_OTHER, 8},      {"U8", ST_OTHER, 8},
    {"BOOL", ST_OTHER, 8},    {"C64", ST_OTHER, 64}, {"F8_E4M3", ST_OTHER, 8}, {"F8_E5M2", ST_OTHER, 8},
    {"F8_E8M0", ST_OTHER, 8}, {"F4", ST_OTHER, 4},   {"F6_E2M3", ST_OTHER, 6}, {"F6_E3M2", ST_OTHER, 6},
};

/* ---- one tensor of a header ---- */

struct extent {
    uint64_t begin, end;
    size_t tensor;
};

static int type_of(const char *file, const char *tensor, const char *name, struct st_tensor *t,
                   unsigned *bits, struct dtx_err *e)
{
    for (size_t i = 0; name && i < sizeof(type_table) / sizeof(type_table[0]); i++) {
        if (strcmp(type_table[i].name, name))
            continue;
        t->type = type_table[i].type;
        *bits = type_table[i].bits;
        return 0;
    }
    return dtx_fail(e, -EINVAL, "%s: tensor %s has dtype %.32s: not a type of safetensors", file, tensor,
                    name ? name : "missing");
}

static int shape_of(const char *file, const char *tensor, const json_t *shape, struct st_tensor *t,
                    struct dtx_err *e)
{
    if (!json_is_array(shape))
        return dtx_fail(e, -EINVAL, "%s: tensor %s has no shape", file, tensor);
    if (json_array_size(shape) > ST_MAX_DIMS)
        return dtx_fail(e, -EINVAL, "%s: tensor %s has %zu dimensions; at most %d are supported", file,
                        tensor, json_array_size(shape), ST_MAX_DIMS);
    t->ndim = (int)json_array_size(shape);
    t->elements = 1;
    for (int i = 0; i < t->ndim; i++) {
        const json_t *d = json_array_get(shape, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return dtx_fail(e, -EINVAL, "%s: tensor %s: dimension %d is not a whole number >= 0", file,
                            tensor, i);
        t->shape[i] = json_integer_value(d);
        if (__builtin_mul_overflow(t->elements, (uint64_t)t->shape[i], &t->elements))
            return dtx_fail(e, -EINVAL, "%s: tensor %s: the product of its dimensions overflows", file,
                            tensor);
    }
    return 0;
}

static int extent_of(const char *file, const char *tensor, const json_t *at, unsigned bits,
                     struct st_tensor *t, struct extent *x, struct dtx_err *e)
{
    const json_t *a = json_array_get(at, 0), *b = json_array_get(at, 1);
    uint64_t total;

    if (json_array_size(at) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 ||
        json_integer_value(b) < json_integer_value(a))
        return dtx_fail(e, -EINVAL, "%s: tensor %s: data_offsets must be two ascending whole numbers", file,
                        tensor);
    x->begin = (uint64_t)json_integer_value(a);
    x->end = (uint64_t)json_integer_value(b);
    t->nbytes = x->end - x->begin;
    if (__builtin_mul_overflow(t->elements, (uint64_t)bits, &total))
        return dtx_fail(e, -EINVAL, "%s: tensor %s: its size in bytes overflows", file, tensor);
    if (total % 8 || total / 8 != t->nbytes)
        return dtx_fail(e, -EINVAL,
                        "%s: tensor %s: its shape and type need %" PRIu64 " bytes, data_offsets give %" PRIu64
                        ": the header lies, get the file again",
                        file, tensor, total / 8, t->nbytes);
    return 0;
}

static int add_tensor(struct st_set *s, const char *file, const char *name, const json_t *v, struct extent *x,
                      struct dtx_err *e)
{
    struct st_tensor t = {0};
    unsigned bits = 0;
    int rc;

    if (!*name || strlen(name) > ST_MAX_NAME)
        return dtx_fail(e, -EINVAL, "%s: a tensor's name has %zu bytes; 1 to %d are allowed", file,
                        strlen(name), ST_MAX_NAME);
    if (!json_is_object(v))
        return dtx_fail(e, -EINVAL, "%s: header entry %s is not an object", file, name);
    rc = type_of(file, name, json_str(v, "dtype", NULL), &t, &bits, e);
    if (rc == 0)
        rc = shape_of(file, name, json_object_get(v, "shape"), &t, e);
    if (rc == 0)
        rc = extent_of(file, name, json_object_get(v, "data_offsets"), bits, &t, x, e);
    if (rc)
        return rc;
    t.name = strdup(name);
    if (!t.name)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    x->tensor = s->n;
    s->tensors[s->n++] = t;
    return 0;
}

/* ---- one file ---- */

static int by_begin(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;

    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

/* The extents must tile [0, data_len) without gap or overlap; then the tensors get their data. */
static int place(struct st_set *s, const struct st_file *f, uint64_t data_at, struct extent *x, size_t n,
                 struct dtx_err *e)
{
    uint64_t at = 0, data_len = f->len - data_at, last = 0;

    for (size_t i = 0; i < n; i++)
        last = x[i].end > last ? x[i].end : last;
    if (last > data_len)
        return dtx_fail(e, -EINVAL, "%s: header says %.1f MB, file has %.1f MB: copy it again", f->name,
                        ((double)last + (double)data_at) / 1e6, (double)f->len / 1e6);
    qsort(x, n, sizeof(*x), by_begin);
    for (size_t i = 0; i < n; i++) {
        struct st_tensor *t = &s->tensors[x[i].tensor];
        if (x[i].begin < at)
            return dtx_fail(e, -EINVAL,
                            "%s: tensor %s overlaps another one at byte %" PRIu64 ": get the file again",
                            f->name, t->name, x[i].begin);
        if (x[i].begin > at)
            return dtx_fail(e, -EINVAL, "%s: a gap of %" PRIu64 " bytes before tensor %s: get the file again",
                            f->name, x[i].begin - at, t->name);
        at = x[i].end;
        t->data = f->map + data_at + x[i].begin;
    }
    if (at != data_len)
        return dtx_fail(e, -EINVAL, "%s: %" PRIu64 " bytes after the last tensor: get the file again",
                        f->name, data_len - at);
    return 0;
}

static int grow(struct st_set *s, size_t more, const char *file, struct dtx_err *e)
{
    struct st_tensor *p;

    if (more > ST_MAX_TENSORS || s->n + more > ST_MAX_TENSORS)
        return dtx_fail(e, -EFBIG, "%s: more than %d tensors", file, ST_MAX_TENSORS);
    p = realloc(s->tensors, (s->n + more + 1) * sizeof(*p));
    if (!p)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    s->tensors = p;
    s->cap = s->n + more;
    return 0;
}

static int read_header(struct st_set *s, const struct st_file *f, uint64_t header_len, const json_t *header,
                       struct dtx_err *e)
{
    size_t count = json_object_size(header), n = 0;
    struct extent *x;
    const char *name;
    json_t *v;
    int rc = grow(s, count, f->name, e);

    if (rc)
        return rc;
    x = calloc(count + 1, sizeof(*x));
    if (!x)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", f->name);
    json_object_foreach((json_t *)header, name, v)
    {
        if (strcmp(name, "__metadata__") == 0) {
            if (!json_is_object(v))
                rc = dtx_fail(e, -EINVAL, "%s: __metadata__ is not an object", f->name);
        } else {
            rc = add_tensor(s, f->name, name, v, &x[n], e);
            n += rc == 0;
        }
        if (rc)
            break;
    }
    if (rc == 0)
        rc = place(s, f, 8 + header_len, x, n, e);
    free(x);
    return rc;
}

static int parse_header(struct st_set *s, const struct st_file *f, const char *text, uint64_t len,
                        struct dtx_err *e)
{
    json_t *header;
    int rc = json_parse_text(f->name, text, len, &header, e);

    if (rc)
        return rc;
    if (json_is_object(header))
        rc = read_header(s, f, len, header, e);
    else
        rc = dtx_fail(e, -EINVAL, "%s: the header is not a JSON object: not a safetensors file", f->name);
    json_decref(header);
    return rc;
}

/* The header is read, not mapped: a file that somebody cuts off meanwhile gives an error and no SIGBUS. */
static int parse_file(struct st_set *s, const struct st_file *f, struct dtx_err *e)
{
    uint64_t len;
    char *text;
    int rc;

    if (f->len < 8 || fd_pread_all(f->fd, &len, 8, 0))
        return dtx_fail(e, -EINVAL, "%s has %zu bytes: not a safetensors file, copy it again", f->name,
                        f->len);
    len = le64toh(len);
    if (len > ST_MAX_HEADER)
        return dtx_fail(e, -EINVAL, "%s: a header of %" PRIu64 " bytes (at most %d): not a safetensors file",
                        f->name, len, ST_MAX_HEADER);
    if (len > f->len - 8)
        return dtx_fail(e, -EINVAL, "%s: its header has %" PRIu64 " bytes, the file only %zu: copy it again",
                        f->name, len, f->len);
    text = malloc(len + 1);
    if (!text)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", f->name);
    rc = fd_pread_all(f->fd, text, len, 8);
    rc = rc ? dtx_fail(e, rc, "%s: cannot read its header: copy it again", f->name)
            : parse_header(s, f, text, len, e);
    free(text);
    return rc;
}

static int map_file(int dirfd, const char *path, struct st_file *f, struct dtx_err *e)
{
    struct stat st;
    void *p;

    f->fd = fd_open_file(dirfd, path, e);
    if (f->fd < 0)
        return f->fd;
    f->name = strdup(path);
    if (!f->name)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", path);
    if (fstat(f->fd, &st))
        return dtx_fail_errno(e, "cannot look at %s", path);
    if (st.st_size == 0)
        return 0;
    p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, f->fd, 0);
    if (p == MAP_FAILED)
        return dtx_fail_errno(e, "cannot map %s", path);
    f->map = p;
    f->len = (size_t)st.st_size;
    return 0;
}

static int add_file(struct st_set *s, int dirfd, const char *path, struct dtx_err *e)
{
    struct st_file *f = &s->files[s->n_files++]; /* also after a failure: st_close releases what there is */
    int rc = map_file(dirfd, path, f, e);

    if (rc == 0)
        rc = parse_file(s, f, e);
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
    return rc;
}

/* ---- sets ---- */

static int compare_names(const void *a, const void *b, void *arg)
{
    const struct st_set *s = arg;

    return strcmp(s->tensors[*(const uint32_t *)a].name, s->tensors[*(const uint32_t *)b].name);
}

static int sort_names(struct st_set *s, struct dtx_err *e)
{
    s->by_name = malloc((s->n + 1) * sizeof(*s->by_name));
    if (!s->by_name)
        return dtx_fail(e, -ENOMEM, "out of memory");
    for (size_t i = 0; i < s->n; i++)
        s->by_name[i] = (uint32_t)i;
    qsort_r(s->by_name, s->n, sizeof(*s->by_name), compare_names, s);
    for (size_t i = 1; i < s->n; i++) {
        const char *name = s->tensors[s->by_name[i]].name;
        if (strcmp(name, s->tensors[s->by_name[i - 1]].name) == 0)
            return dtx_fail(e, -EINVAL,
                            "tensor %s is in two files of the model: remove the file that does not belong",
                            name);
    }
    return 0;
}

static struct st_set *new_set(size_t max_files)
{
    struct st_set *s = calloc(1, sizeof(*s));

    if (s)
        s->files = calloc(max_files, sizeof(*s->files));
    if (s && !s->files) {
        free(s);
        return NULL;
    }
    return s;
}

int st_open(int dirfd, const char *path, struct st_set **out, struct dtx_err *e)
{
    struct st_set *s = new_set(1);
    int rc;

    *out = NULL;
    if (!s)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", path);
    rc = add_file(s, dirfd, path, e);
    if (rc == 0)
        rc = sort_names(s, e);
    if (rc) {
        st_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_shard_name(const char *file, const char *tensor, struct dtx_err *e)
{
    size_t n = strlen(file);

    if (n == 0 || n > 255 || file[0] == '.' || strchr(file, '/') || n < 12 ||
        strcmp(file + n - 12, ".safetensors"))
        return dtx_fail(
            e, -EINVAL,
            "model.safetensors.index.json: tensor %.100s is said to be in \"%.100s\": a shard is a "
            "*.safetensors file in the same folder",
            tensor, file);
    return 0;
}

/* The different file names of a weight map, sorted; they belong to map.  The caller frees *names. */
static int shard_names(const json_t *map, const char ***names, size_t *n, struct dtx_err *e)
{
    size_t count = json_object_size(map), k = 0, unique = 0;
    const char *tensor, **v;
    json_t *file;
    int rc = 0;

    if (count == 0 || count > ST_MAX_TENSORS)
        return dtx_fail(e, -EINVAL,
                        "model.safetensors.index.json: weight_map has %zu entries; 1 to %d are expected",
                        count, ST_MAX_TENSORS);
    v = calloc(count, sizeof(*v));
    if (!v)
        return dtx_fail(e, -ENOMEM, "out of memory");
    json_object_foreach((json_t *)map, tensor, file)
    {
        if (!json_is_string(file))
            rc = dtx_fail(e, -EINVAL, "model.safetensors.index.json: weight_map: %.100s has no file name",
                          tensor);
        else
            rc = check_shard_name(json_string_value(file), tensor, e);
        if (rc) {
            free(v);
            return rc;
        }
        v[k++] = json_string_value(file);
    }
    qsort(v, count, sizeof(*v), compare_text);
    for (size_t i = 0; i < count; i++)
        if (unique == 0 || strcmp(v[i], v[unique - 1]))
            v[unique++] = v[i];
    *names = v;
    *n = unique;
    return 0;
}

static bool inside(const struct st_file *f, const void *data)
{
    return f->map && (const unsigned char *)data >= f->map && (const unsigned char *)data <= f->map + f->len;
}

/* Every tensor that the index names is where the index says. */
static int check_map(const struct st_set *s, const json_t *map, struct dtx_err *e)
{
    const char *name;
    json_t *file;

    json_object_foreach((json_t *)map, name, file)
    {
        const struct st_tensor *t = st_find(s, name);
        bool found = false;
        for (size_t i = 0; t && i < s->n_files; i++)
            found |= strcmp(s->files[i].name, json_string_value(file)) == 0 && inside(&s->files[i], t->data);
        if (!found)
            return dtx_fail(
                e, -EINVAL,
                "%s has no tensor %.200s, which model.safetensors.index.json puts there: copy the model "
                "again",
                json_string_value(file), name);
    }
    return 0;
}

static int open_shards(int fd, const json_t *index, struct st_set **out, struct dtx_err *e)
{
    const json_t *map = json_object_get(index, "weight_map");
    const char **names = NULL;
    struct st_set *s = NULL;
    size_t n = 0;
    int rc;

    if (!json_is_object(map))
        return dtx_fail(e, -EINVAL, "model.safetensors.index.json has no weight_map");
    rc = shard_names(map, &names, &n, e);
    if (rc)
        return rc;
    if (n > ST_MAX_SHARDS)
        rc = dtx_fail(e, -EFBIG, "model.safetensors.index.json names %zu files; at most %d are allowed", n,
                      ST_MAX_SHARDS);
    else if (!(s = new_set(n)))
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = add_file(s, fd, names[i], e);
    if (rc == 0)
        rc = sort_names(s, e);
    if (rc == 0)
        rc = check_map(s, map, e);
    free(names);
    if (rc)
        st_close(s);
    else
        *out = s;
    return rc;
}

static int open_model(int fd, struct st_set **out, struct dtx_err *e)
{
    json_t *index;
    int rc;

    if (faccessat(fd, "model.safetensors", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return st_open(fd, "model.safetensors", out, e);
    if (faccessat(fd, "model.safetensors.index.json", F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
        rc = json_parse_file(fd, "model.safetensors.index.json", ST_MAX_INDEX, &index, e);
        if (rc)
            return rc;
        rc = open_shards(fd, index, out, e);
        json_decref(index);
        return rc;
    }
    if (faccessat(fd, "pytorch_model.bin", F_OK, AT_SYMLINK_NOFOLLOW) == 0 ||
        faccessat(fd, "pytorch_model.bin.index.json", F_OK, AT_SYMLINK_NOFOLLOW) == 0)
        return dtx_fail(e, -ENOENT,
                        "the model has only pytorch_model.bin: copy its *.safetensors files instead");
    return dtx_fail(e, -ENOENT,
                    "no model.safetensors and no model.safetensors.index.json: copy the weights too");
}

int st_open_model(int dirfd, const char *dir, struct st_set **out, struct dtx_err *e)
{
    int fd = openat(dirfd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), rc;

    *out = NULL;
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open folder %s", dir);
    rc = open_model(fd, out, e);
    close(fd);
    return rc;
}

void st_close(struct st_set *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_files; i++) {
        if (s->files[i].map)
            munmap(s->files[i].map, s->files[i].len);
        free(s->files[i].name);
    }
    for (size_t i = 0; i < s->n; i++)
        free(s->tensors[i].name);
    free(s->tensors);
    free(s->by_name);
    free(s->files);
    free(s);
}

size_t st_count(const struct st_set *s)
{
    return s->n;
}

const struct st_tensor *st_at(const struct st_set *s, size_t i)
{
    return i < s->n ? &s->tensors[i] : NULL;
}

const struct st_tensor *st_find(const struct st_set *s, const char *name)
{
    size_t lo = 0, hi = s->n;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct st_tensor *t = &s->tensors[s->by_name[mid]];
        int c = strcmp(name, t->name);
        if (c == 0)
            return t;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

uint64_t st_file_bytes(const struct st_set *s)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < s->n_files; i++)
        sum += s->files[i].len;
    return sum;
}
