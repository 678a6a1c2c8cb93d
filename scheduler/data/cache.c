/*
 * Token caches.  A file of
 *
 *   4096 bytes   text: "dtx-token-cache 1", then lines "name value" (see write_header), padded with NUL
 *   4 * tokens   ids of all rows, one after the other (int32, native byte order: a cache never leaves its
 * machine) 4 * tokens   labels 8 * (rows+1) where each row starts (uint64), the last = tokens
 *
 * `key` is the SHA-256 of everything that the ids follow from: an existing file with another key is made
 * anew. `payload` is the SHA-256 of all bytes after the header: a damaged file is made anew too.
 */
#include "scheduler/data/data_int.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"

enum { CACHE_HEADER = 4096, CACHE_FLUSH = 1 << 20 };

static int key_of(struct dataset *d, enum data_split split, const struct dtx_tokenizer *t,
                  const char *template_name, int block_size, char key[65], struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    char sha[65];
    int rc = dataset_sha256(d, sha, e);

    if (rc)
        return rc;
    buf_addf(&b, "1 %s %s %s %s %d ", sha, data_split_names[split], dtx_tokenizer_sha256(t), template_name,
             block_size);
    json_dump_buf(d->spec, &b);
    if (b.failed)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    else
        sha256_text(b.p, b.len, key);
    buf_release(&b);
    return rc;
}

/* ---- mapping ---- */

void token_cache_release(struct token_cache *c)
{
    if (c->map)
        munmap(c->map, c->map_len);
    memset(c, 0, sizeof(*c));
}

static bool parse_header(const char *head, const char *key, struct token_cache *c, char payload[65])
{
    char text[CACHE_HEADER + 1], found[65];
    unsigned rows;

    memcpy(text, head, CACHE_HEADER);
    text[CACHE_HEADER] = '\0';
    if (sscanf(text,
               "dtx-token-cache 1\nkey %64s\nrows %u\ntokens %" SCNu64 "\nlongest %" SCNu64
               "\ntruncated %" SCNu64 "\nskipped %" SCNu64 "\npayload %64s\n",
               found, &rows, &c->tokens, &c->longest, &c->truncated, &c->skipped, payload) != 7)
        return false;
    c->rows.n = rows;
    return (!key || strcmp(found, key) == 0) && c->tokens < UINT64_C(1) << 40 && rows > 0;
}

static bool starts_are_sound(const struct token_cache *c, int block_size)
{
    const uint64_t *s = c->rows.start;

    if (s[0] != 0 || s[c->rows.n] != c->tokens)
        return false;
    for (uint32_t i = 0; i < c->rows.n; i++)
        if (s[i + 1] <= s[i] || s[i + 1] - s[i] > (uint64_t)block_size)
            return false;
    return true;
}

/* true: *c is the cache that the key asks for (NULL: whatever key it has).  false: there is none that can be
 * used. */
static bool cache_map(int dirfd, const char *path, const char *key, int block_size, struct token_cache *c)
{
    int fd = openat(dirfd, path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    char payload[65] = "", sum[65];
    struct stat st;
    char *p;

    memset(c, 0, sizeof(*c));
    if (fd < 0)
        return false;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_size <= CACHE_HEADER) {
        close(fd);
        return false;
    }
    p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (p == MAP_FAILED)
        return false;
    c->map = p;
    c->map_len = (size_t)st.st_size;
    if (parse_header(p, key, c, payload) &&
        c->map_len == CACHE_HEADER + 8 * c->tokens + 8 * ((uint64_t)c->rows.n + 1)) {
        c->rows.ids = (int32_t *)(void *)(p + CACHE_HEADER);
        c->rows.labels = c->rows.ids + c->tokens;
        c->rows.start = (uint64_t *)(void *)(c->rows.labels + c->tokens);
        sha256_text(p + CACHE_HEADER, c->map_len - CACHE_HEADER, sum);
        if (strcmp(sum, payload) == 0 && starts_are_sound(c, block_size))
            return true;
    }
    token_cache_release(c);
    return false;
}

int token_cache_map(int dirfd, const char *path, int block_size, struct token_cache *out, struct dtx_err *e)
{
    if (!cache_map(dirfd, path, NULL, block_size, out))
        return dtx_fail(e, -ENOENT, "%s is not there or is damaged", path);
    return 0;
}

/* ---- making ---- */

struct stream { /* a file written from the front */
    int fd;
    struct buf pending;
};

struct maker {
    const struct dtx_tokenizer *t;
    const char *template_name, *path;
    size_t block_size;
    struct stream ids, labels, starts; /* labels and starts are put behind the ids at the end */
    struct dtx_ids row_ids, row_labels;
    uint64_t rows, tokens, longest, truncated, skipped;
    char first_reason[1016];
    struct dtx_err *e;
};

static int stream_flush(struct maker *m, struct stream *s)
{
    int rc = s->pending.failed ? -ENOMEM : fd_write_all(s->fd, s->pending.p, s->pending.len);

    buf_clear(&s->pending);
    return rc ? dtx_fail(m->e, rc, "cannot write the token cache %s: %s", m->path, strerror(-rc)) : 0;
}

static int stream_add(struct maker *m, struct stream *s, const void *data, size_t n)
{
    buf_add(&s->pending, data, n);
    return s->pending.len >= CACHE_FLUSH || s->pending.failed ? stream_flush(m, s) : 0;
}

static bool has_trained(const struct dtx_ids *labels)
{
    for (size_t i = 1; i < labels->n; i++)
        if (labels->v[i] != -100)
            return true;
    return false;
}

static void maker_skip(void *arg, const char *why)
{
    struct maker *m = arg;

    if (m->skipped++ == 0)
        snprintf(m->first_reason, sizeof(m->first_reason), "%.500s", why);
}

static int maker_row(void *arg, const struct data_row *row)
{
    struct maker *m = arg;
    int rc;

    m->row_ids.n = m->row_labels.n = 0;
    rc = chat_encode(m->t, m->template_name, row, false, &m->row_ids, &m->row_labels, m->e);
    if (rc)
        return rc;
    if (m->row_ids.n > m->block_size) {
        m->truncated++;
        m->row_ids.n = m->row_labels.n = m->block_size;
    }
    if (!has_trained(&m->row_labels)) {
        struct dtx_err why;
        dtx_fail(&why, -EINVAL, "%.200s:%ld: nothing of the answer is within block_size (%zu tokens)",
                 row->file, row->line, m->block_size);
        maker_skip(m, why.msg);
        return 0;
    }
    if (m->rows == UINT32_MAX)
        return dtx_fail(m->e, -EFBIG, "more than 4 billion rows");
    if (m->row_ids.n > m->longest)
        m->longest = m->row_ids.n;
    rc = stream_add(m, &m->ids, m->row_ids.v, m->row_ids.n * sizeof(int32_t));
    if (rc == 0)
        rc = stream_add(m, &m->labels, m->row_labels.v, m->row_ids.n * sizeof(int32_t));
    if (rc == 0)
        rc = stream_add(m, &m->starts, &m->tokens, sizeof(m->tokens));
    m->tokens += m->row_ids.n;
    m->rows++;
    return rc;
}

/* A file that is gone when it is closed. */
static int open_scratch(int dirfd, const char *name)
{
    int fd = openat(dirfd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd >= 0)
        unlinkat(dirfd, name, 0);
    return fd;
}

static int append_stream(struct maker *m, struct stream *from)
{
    char *p = malloc(CACHE_FLUSH);
    int rc = p ? stream_flush(m, from) : dtx_fail(m->e, -ENOMEM, "out of memory");

    if (rc == 0 && lseek(from->fd, 0, SEEK_SET) < 0)
        rc = dtx_fail_errno(m->e, "cannot read back part of the token cache %s", m->path);
    while (rc == 0) {
        ssize_t got = read(from->fd, p, CACHE_FLUSH);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            rc = dtx_fail_errno(m->e, "cannot read back part of the token cache %s", m->path);
        if (got <= 0)
            break;
        rc = stream_add(m, &m->ids, p, (size_t)got);
    }
    free(p);
    return rc;
}

static int write_header(struct maker *m, const char *key)
{
    uint64_t size = CACHE_HEADER + 8 * m->tokens + 8 * (m->rows + 1);
    char *p = mmap(NULL, size, PROT_READ, MAP_SHARED, m->ids.fd, 0);
    char head[CACHE_HEADER] = "", payload[65];
    int rc;

    if (p == MAP_FAILED)
        return dtx_fail_errno(m->e, "cannot map the token cache %s", m->path);
    sha256_text(p + CACHE_HEADER, size - CACHE_HEADER, payload);
    munmap(p, size);
    snprintf(head, sizeof(head),
             "dtx-token-cache 1\nkey %s\nrows %" PRIu64 "\ntokens %" PRIu64 "\nlongest %" PRIu64
             "\ntruncated %" PRIu64 "\nskipped %" PRIu64 "\npayload %s\n",
             key, m->rows, m->tokens, m->longest, m->truncated, m->skipped, payload);
    rc = fd_pwrite_all(m->ids.fd, head, sizeof(head), 0);
    return rc ? dtx_fail(m->e, rc, "cannot write the token cache %s: %s", m->path, strerror(-rc)) : 0;
}

static int make_into(struct maker *m, struct dataset *d, enum data_split split, const char *key)
{
    static const char blank[CACHE_HEADER];
    int rc = stream_add(m, &m->ids, blank, sizeof(blank));

    if (rc == 0)
        rc = dataset_walk(d, split, maker_row, maker_skip, m, m->e);
    if (rc == 0 && m->rows == 0)
        rc = dtx_fail(m->e, -EINVAL, "no usable row in the %s split%s%.400s", data_split_names[split],
                      m->skipped ? ": " : "", m->first_reason);
    if (rc == 0)
        rc = stream_add(m, &m->starts, &m->tokens, sizeof(m->tokens));
    if (rc == 0)
        rc = append_stream(m, &m->labels);
    if (rc == 0)
        rc = append_stream(m, &m->starts);
    if (rc == 0)
        rc = stream_flush(m, &m->ids);
    if (rc == 0)
        rc = write_header(m, key);
    if (rc == 0 && fsync(m->ids.fd))
        rc = dtx_fail_errno(m->e, "cannot sync the token cache %s", m->path);
    return rc;
}

static void stream_release(struct stream *s)
{
    if (s->fd >= 0)
        close(s->fd);
    buf_release(&s->pending);
}

/* Write to PATH.tmp, then rename. */
static int cache_write(struct maker *m, struct dataset *d, enum data_split split, const char *key, int dirfd)
{
    char tmp[512], labels[512], starts[512], dir[512];
    const char *slash = strrchr(m->path, '/');
    int rc = 0;

    if (snprintf(tmp, sizeof(tmp), "%s.%d.tmp", m->path, (int)getpid()) >= (int)sizeof(tmp) - 8)
        return dtx_fail(m->e, -ENAMETOOLONG, "path too long: %.200s", m->path);
    snprintf(labels, sizeof(labels), "%.500s.labels", tmp);
    snprintf(starts, sizeof(starts), "%.500s.starts", tmp);
    snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - m->path) : 1, slash ? m->path : ".");
    m->ids.fd = openat(dirfd, tmp, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    m->labels.fd = open_scratch(dirfd, labels);
    m->starts.fd = open_scratch(dirfd, starts);
    if (m->ids.fd < 0 || m->labels.fd < 0 || m->starts.fd < 0)
        rc = dtx_fail_errno(m->e, "cannot make the token cache %s", m->path);
    if (rc == 0)
        rc = make_into(m, d, split, key);
    if (rc == 0 && renameat(dirfd, tmp, dirfd, m->path))
        rc = dtx_fail_errno(m->e, "cannot rename the token cache %s into place", m->path);
    if (rc == 0)
        rc = fd_sync_path(dirfd, dir, m->e);
    else
        unlinkat(dirfd, tmp, 0);
    stream_release(&m->ids);
    stream_release(&m->labels);
    stream_release(&m->starts);
    dtx_ids_release(&m->row_ids);
    dtx_ids_release(&m->row_labels);
    return rc;
}

int token_cache_make(struct dataset *d, enum data_split split, const struct dtx_tokenizer *t, int block_size,
                     int dirfd, const char *path, struct token_cache *out, struct dtx_err *e)
{
    struct maker m = {.t = t, .path = path, .block_size = (size_t)block_size, .e = e};
    char key[65];
    int rc;

    memset(out, 0, sizeof(*out));
    if (block_size < 2)
        return dtx_fail(e, -EINVAL, "block_size %d: expected at least 2", block_size);
    rc = chat_template_of(t, d->template_name, &m.template_name, e);
    if (rc == 0)
        rc = key_of(d, split, t, m.template_name, block_size, key, e);
    if (rc || cache_map(dirfd, path, key, block_size, out))
        return rc;
    m.ids.fd = m.labels.fd = m.starts.fd = -1;
    rc = cache_write(&m, d, split, key, dirfd);
    if (rc == 0 && !cache_map(dirfd, path, key, block_size, out))
        rc = dtx_fail(e, -EIO, "the token cache %s cannot be read back as it was written", path);
    return rc;
}
