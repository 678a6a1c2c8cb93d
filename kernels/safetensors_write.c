/* Writing safetensors: header and tensors streamed into a temporary file, which takes the place of the old
 * one. */
#include "kernels/safetensors.h"

#include <endian.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

static const char *const type_names[] = {[ST_F32] = "F32", [ST_F16] = "F16", [ST_BF16] = "BF16"};

static int check_tensor(const char *path, const struct st_tensor *t, struct dtx_err *e)
{
    uint64_t elements = 1;

    if (t->type != ST_F32 && t->type != ST_F16 && t->type != ST_BF16)
        return dtx_fail(e, -EINVAL, "%s: tensor %s: only F32, F16 and BF16 are written", path, t->name);
    if (t->ndim < 0 || t->ndim > ST_MAX_DIMS)
        return dtx_fail(e, -EINVAL, "%s: tensor %s has %d dimensions", path, t->name, t->ndim);
    for (int i = 0; i < t->ndim; i++)
        if (t->shape[i] < 0 || __builtin_mul_overflow(elements, (uint64_t)t->shape[i], &elements))
            return dtx_fail(e, -EINVAL, "%s: tensor %s has an impossible shape", path, t->name);
    if (elements != t->elements || elements > INT64_MAX / 4 ||
        t->nbytes != elements * (t->type == ST_F32 ? 4 : 2))
        return dtx_fail(e, -EINVAL, "%s: tensor %s: shape, elements and bytes do not agree", path, t->name);
    return 0;
}

/* The 8 bytes of length and the header, padded with spaces so that the data begins at a multiple of 8. */
static int make_header(const char *path, const struct st_tensor *tensors, size_t n, struct buf *h,
                       struct dtx_err *e)
{
    uint64_t at = 0, len;
    int rc;

    buf_add(h, "\0\0\0\0\0\0\0\0", 8);
    buf_adds(h, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        const struct st_tensor *t = &tensors[i];
        rc = check_tensor(path, t, e);
        if (rc)
            return rc;
        buf_addc(h, ',');
        buf_add_json(h, t->name, strlen(t->name));
        buf_addf(h, ":{\"dtype\":\"%s\",\"shape\":[", type_names[t->type]);
        for (int d = 0; d < t->ndim; d++)
            buf_addf(h, "%s%" PRId64, d ? "," : "", t->shape[d]);
        buf_addf(h, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + t->nbytes);
        at += t->nbytes;
    }
    buf_addc(h, '}');
    while (!h->failed && h->len % 8)
        buf_addc(h, ' ');
    if (h->failed)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", path);
    len = htole64(h->len - 8);
    memcpy(h->p, &len, 8);
    return 0;
}

static int write_data(int fd, const struct buf *header, const struct st_tensor *tensors, size_t n)
{
    int rc = fd_write_all(fd, header->p, header->len);

    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = fd_write_all(fd, tensors[i].data, tensors[i].nbytes);
    if (rc == 0 && fsync(fd))
        rc = -errno;
    return rc;
}

/* "a/b/x" -> folder "a/b" and a temporary name in it. */
static int temporary_name(const char *path, char *dir, char *tmp, size_t size)
{
    static unsigned counter;
    const char *slash = strrchr(path, '/');
    int n = slash ? (int)(slash - path) : 0;

    if (slash && n >= (int)size)
        return -ENAMETOOLONG;
    snprintf(dir, size, "%.*s", slash ? (n ? n : 1) : 1, slash ? path : ".");
    if (snprintf(tmp, size, "%s/.%d.%u.st.tmp", dir, (int)getpid(),
                 __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED)) >= (int)size)
        return -ENAMETOOLONG;
    return 0;
}

static int write_file(int dirfd, const char *path, const struct buf *header, const struct st_tensor *tensors,
                      size_t n, struct dtx_err *e)
{
    char dir[PATH_MAX], tmp[PATH_MAX];
    int fd, rc = temporary_name(path, dir, tmp, sizeof(dir));

    if (rc)
        return dtx_fail(e, rc, "path too long: %.200s", path);
    fd = openat(dirfd, tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return dtx_fail_errno(e, "cannot create %s", tmp);
    rc = write_data(fd, header, tensors, n);
    if (close(fd) && rc == 0)
        rc = -errno;
    if (rc == 0 && renameat(dirfd, tmp, dirfd, path))
        rc = -errno;
    if (rc) {
        unlinkat(dirfd, tmp, 0);
        return dtx_fail(e, rc, "cannot write %s: %s", path, strerror(-rc));
    }
    return fd_sync_path(dirfd, dir, e);
}

int st_write(int dirfd, const char *path, const struct st_tensor *tensors, size_t n, struct dtx_err *e)
{
    struct buf header = BUF_INIT;
    int rc = make_header(path, tensors, n, &header, e);

    if (rc == 0)
        rc = write_file(dirfd, path, &header, tensors, n, e);
    buf_release(&header);
    return rc;
}
