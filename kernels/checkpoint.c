/*
 * A job's saved state.  One file, little-endian, written under a temporary name, synced and renamed:
 *
 *      "DTXJOB1\n"   8 bytes
 *      key           64 hex digits: SHA-256 of parameters, rows and the base's shape (dtx_job.key)
 *      steps, updates, skipped, floats    int64 each; floats = length of the adapter
 *      adapter [floats], m [floats], v [floats]   float32; m and v only with Adam and AdamW
 *      checksum      64 hex digits: SHA-256 of everything before
 *
 * The file is hostile until length, key, counters and checksum are right; the job is touched only then.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/job.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/sha256.h"

static const char magic[8] = "DTXJOB1\n";

enum { KEY = 64, COUNTERS = 4 };
enum { HEADER = 8 + KEY + COUNTERS * 8 };

static size_t planes(const struct dtx_job *j)
{
    return j->m ? 3 : 1;
}

static size_t file_size(const struct dtx_job *j)
{
    return HEADER + planes(j) * j->n * sizeof(float) + KEY;
}

static int get_planes(const struct dtx_job *j, char *to, struct dtx_err *e)
{
    const float *from[] = {j->w, j->m, j->v};
    size_t bytes = j->n * sizeof(float);
    for (size_t i = 0; i < planes(j); i++) {
        int rc = j->base->ops->download(j->base->dev, to + i * bytes, from[i], bytes);
        if (rc < 0)
            return dtx_fail(e, rc, "device: %s", j->base->ops->error(j->base->dev));
    }
    return 0;
}

int dtx_job_save(const struct dtx_job *j, int dirfd, const char *path, struct dtx_err *e)
{
    size_t size = file_size(j);
    int64_t counters[COUNTERS] = {j->steps, j->updates, j->skipped, (int64_t)j->n};
    char *file = malloc(size), sum[65];
    if (!file)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", path);
    memcpy(file, magic, sizeof magic);
    memcpy(file + sizeof magic, j->key, KEY);
    memcpy(file + sizeof magic + KEY, counters, sizeof counters);
    int rc = get_planes(j, file + HEADER, e);
    if (rc == 0) {
        sha256_text(file, size - KEY, sum);
        memcpy(file + size - KEY, sum, KEY);
        rc = fd_replace_file(dirfd, path, file, size, 0644, e);
    }
    free(file);
    return rc;
}

static int check_file(const struct dtx_job *j, const char *path, const struct buf *b, int64_t *counters,
                      struct dtx_err *e)
{
    char sum[65];
    if (b->len < HEADER || memcmp(b->p, magic, sizeof magic) != 0)
        return dtx_fail(e, -EINVAL, "%s: not a saved state of a job", path);
    if (memcmp(b->p + sizeof magic, j->key, KEY) != 0)
        return dtx_fail(e, -EINVAL, "%s: saved by a job with other parameters, rows or base model", path);
    memcpy(counters, b->p + sizeof magic + KEY, COUNTERS * sizeof *counters);
    if (b->len != file_size(j) || counters[3] != (int64_t)j->n)
        return dtx_fail(e, -EINVAL, "%s: has %zu bytes, expected %zu: cut off or damaged", path, b->len,
                        file_size(j));
    sha256_text(b->p, b->len - KEY, sum);
    if (memcmp(b->p + b->len - KEY, sum, KEY) != 0)
        return dtx_fail(e, -EINVAL, "%s: checksum does not match: damaged", path);
    if (counters[0] < 0 || counters[0] > j->total_steps || counters[1] < 0 || counters[2] < 0 ||
        counters[1] > counters[0] || counters[2] != counters[0] - counters[1])
        return dtx_fail(e, -EINVAL, "%s: impossible step counters", path);
    return 0;
}

int dtx_job_restore(struct dtx_job *j, int dirfd, const char *path, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int64_t counters[COUNTERS];
    int rc = fd_read_file(dirfd, path, file_size(j), &b, e);
    if (rc == 0)
        rc = check_file(j, path, &b, counters, e);
    if (rc == 0) {
        float *to[] = {j->w, j->m, j->v};
        size_t bytes = j->n * sizeof(float);
        for (size_t i = 0; i < planes(j); i++)
            j->base->ops->upload(j->base->dev, to[i], b.p + HEADER + i * bytes, bytes);
        j->steps = counters[0];
        j->updates = counters[1];
        j->skipped = counters[2];
    }
    buf_release(&b);
    return rc;
}
