#include "scheduler/data/data_int.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

struct gz {
    z_stream z;
    unsigned char packed[DATA_IN_CHUNK];
    uint64_t in, out;
    bool file_ended, member_ended;
};

static int in_fail(struct data_in *in, int code, const char *why)
{
    in->at = in->end = 0;
    in->failed = dtx_fail(&in->err, code, "%s: %s", in->name, why);
    return DATA_FAILED;
}

static ssize_t read_retry(int fd, void *p, size_t n)
{
    ssize_t got;

    do
        got = read(fd, p, n);
    while (got < 0 && errno == EINTR);
    return got;
}

static int gz_refill(struct data_in *in)
{
    struct gz *g = in->gz;
    ssize_t got = read_retry(in->fd, g->packed, sizeof(g->packed));

    if (got < 0)
        return in_fail(in, -errno, strerror(errno));
    g->file_ended = got == 0;
    g->in += (uint64_t)got;
    g->z.next_in = g->packed;
    g->z.avail_in = (uInt)got;
    return 0;
}

/* A file may hold several members one after the other (pigz, cat a.gz b.gz), and zero bytes after the last.
 */
static int gz_next_member(struct data_in *in)
{
    struct gz *g = in->gz;

    for (;;) {
        while (g->z.avail_in && *g->z.next_in == 0) {
            g->z.next_in++;
            g->z.avail_in--;
        }
        if (g->z.avail_in)
            break;
        if (gz_refill(in))
            return DATA_FAILED;
        if (g->file_ended)
            return DATA_END;
    }
    if (inflateReset(&g->z) != Z_OK)
        return in_fail(in, -EINVAL, "cannot be unpacked");
    g->member_ended = false;
    return 0;
}

static int gz_check_growth(struct data_in *in)
{
    struct gz *g = in->gz;

    if (g->out > DATA_MAX_UNPACKED)
        return in_fail(in, -EFBIG, "has more than 64 GiB when unpacked; split it");
    if (g->out > DATA_BOMB_FREE && g->out / DATA_BOMB_RATIO > g->in)
        return in_fail(in, -EFBIG, "grows more than 250 times when unpacked: this is not a dataset");
    return 0;
}

static int gz_fill(struct data_in *in)
{
    struct gz *g = in->gz;

    g->z.next_out = in->chunk;
    g->z.avail_out = DATA_IN_CHUNK;
    while (g->z.avail_out == DATA_IN_CHUNK) {
        int rc;
        if (g->member_ended && (rc = gz_next_member(in)))
            return rc;
        if (g->z.avail_in == 0 && !g->file_ended && gz_refill(in))
            return DATA_FAILED;
        rc = inflate(&g->z, Z_NO_FLUSH);
        if (rc == Z_STREAM_END)
            g->member_ended = true;
        else if (rc == Z_BUF_ERROR && g->file_ended)
            return in_fail(in, -EINVAL, "ends in the middle of its packed data; copy it again");
        else if (rc != Z_OK && rc != Z_BUF_ERROR)
            return in_fail(in, -EINVAL, g->out ? "its packed data is damaged" : "is not gzip data");
    }
    in->end = DATA_IN_CHUNK - g->z.avail_out;
    g->out += in->end;
    return gz_check_growth(in);
}

int data_in_fill(struct data_in *in)
{
    ssize_t got;

    if (in->failed)
        return DATA_FAILED;
    in->at = in->end = 0;
    if (in->gz)
        return gz_fill(in);
    got = read_retry(in->fd, in->chunk, DATA_IN_CHUNK);
    if (got < 0)
        return in_fail(in, -errno, strerror(errno));
    in->end = (size_t)got;
    return got ? 0 : DATA_END;
}

/* The first bytes tell what a file is not. */
static int check_start(struct data_in *in, struct dtx_err *e)
{
    const unsigned char *p;
    size_t n;

    if (data_in_peek(in) == DATA_FAILED) {
        if (e)
            *e = in->err;
        return in->failed;
    }
    p = in->chunk + in->at;
    n = in->end - in->at;
    if (n >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0)
        in->at += 3;
    else if (n >= 2 && (memcmp(p, "\xff\xfe", 2) == 0 || memcmp(p, "\xfe\xff", 2) == 0))
        return dtx_fail(e, -EINVAL, "%s: is UTF-16; save it as UTF-8", in->name);
    else if (n >= 2 && memcmp(p, "\x1f\x8b", 2) == 0)
        return dtx_fail(e, -EINVAL, "%s: is gzip data%s", in->name,
                        in->gz ? " packed twice; unpack it once" : "; its name must end in .gz");
    return 0;
}

int data_in_init(struct data_in *in, int fd, const char *name, bool gz, struct dtx_err *e)
{
    memset(in, 0, sizeof(*in));
    in->fd = fd;
    in->name = name;
    in->line = 1;
    in->chunk = malloc(DATA_IN_CHUNK);
    in->gz = gz ? calloc(1, sizeof(*in->gz)) : NULL;
    if (!in->chunk || (gz && !in->gz))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", name);
    if (gz && inflateInit2(&in->gz->z, 16 + MAX_WBITS) != Z_OK) {
        free(in->gz);
        in->gz = NULL;
        return dtx_fail(e, -ENOMEM, "%s: out of memory", name);
    }
    return check_start(in, e);
}

void data_in_release(struct data_in *in)
{
    if (in->gz)
        inflateEnd(&in->gz->z);
    free(in->gz);
    free(in->chunk);
    in->gz = NULL;
    in->chunk = NULL;
}
