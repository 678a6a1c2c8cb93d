/*
 * Messages between the kernel and libfuse (fsd/channel.c): what is read of them and what is changed in them,
 * without a kernel and without libfuse.  fuse_session_custom_io is ours here, so the channel's own functions
 * are called; every message lies in memory of exactly its size.
 *
 * The input: one byte (1: the mount is taken over from a process before, 2: passthrough is wanted), then
 * steps: one byte of what it is (STEPS), one of how many words of 8 bytes follow, the words.
 */
#include <linux/fuse.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "fsd/channel.h"
#include "fsd/passthrough.h"
#include "scheduler/base/log.h"
#include "tests/fuzz/fuzz.h"

enum { REQUEST, REPLY, REPLY_IN_PARTS, NEXT_OPEN, BEGIN, STEPS };

static struct fuse_custom_io io;

int fuse_session_custom_io(struct fuse_session *se, const struct fuse_custom_io *given, int fd)
{
    io = *given;
    return 0;
}

static void *exact(const void *data, size_t n)
{
    void *p = malloc(n ? n : 1);

    FUZZ_ASSERT(p);
    memcpy(p, data, n);
    return p;
}

/* Only these say that set-id bits go, or do not say that they stay. */
static bool may_kill(uint32_t opcode)
{
    return opcode == FUSE_WRITE || opcode == FUSE_SETATTR || opcode == FUSE_OPEN ||
           opcode == FUSE_FALLOCATE || opcode == FUSE_COPY_FILE_RANGE;
}

static void request(int kernel, int ours, const uint8_t *data, size_t n)
{
    const struct fuse_in_header *h = (const void *)data;
    void *buf = exact(data, n);
    struct fuse_in_header *is = buf;
    ssize_t got;

    FUZZ_ASSERT(send(kernel, data, n, 0) == (ssize_t)n);
    got = io.read(ours, buf, n, NULL);
    if (n >= sizeof(*h)) {
        FUZZ_ASSERT(kept_unique() == (h->unique & ~((uint64_t)1 << 63)) &&
                    (!channel_kills_setid() || may_kill(h->opcode)));
        FUZZ_ASSERT(channel_unnamed() == (h->opcode == FUSE_TMPFILE));
        if (channel_unnamed() &&
            is->opcode == FUSE_CREATE) /* as which libfuse knows it; nothing else changes */
            is->opcode = FUSE_TMPFILE;
    }
    FUZZ_ASSERT(got == (ssize_t)n && memcmp(buf, data, n) == 0);
    free(buf);
}

/* What was not asked for is not changed: of INIT flags and what follows max_pages, of OPEN the last 16 bytes.
 */
static void check_reply(const uint8_t *was, const uint8_t *is, size_t n, bool init, bool open)
{
    size_t head = sizeof(struct fuse_out_header);

    for (size_t i = 0; i < n; i++)
        if (was[i] != is[i])
            FUZZ_ASSERT(i >= head && (init ? i - head < 40 : open && i >= n - 8));
}

/* As libfuse does it: the header is one part, what follows another, or several. */
static void reply(int kernel, int ours, const uint8_t *data, size_t n, bool parts, bool *open,
                  struct channel *c)
{
    size_t head = sizeof(struct fuse_out_header), half = head + (n - head) / 16 * 8;
    const struct fuse_out_header *h = (const void *)data;
    struct iovec iov[3] = {{exact(data, head), head}};
    int count = n == head ? 1 : parts ? 3 : 2;
    bool init = c->init_unique && c->init_unique == h->unique, dropped = init && c->taken_over;
    uint8_t sent[4096];
    ssize_t got;

    if (count == 2)
        iov[1] = (struct iovec){exact(data + head, n - head), n - head};
    if (count == 3) {
        iov[1] = (struct iovec){exact(data + head, half - head), half - head};
        iov[2] = (struct iovec){exact(data + half, n - half), n - half};
    }
    FUZZ_ASSERT(io.writev(ours, iov, count, NULL) == (ssize_t)n);
    got = recv(kernel, sent, sizeof(sent), MSG_DONTWAIT);
    FUZZ_ASSERT(got == (dropped ? -1 : (ssize_t)n));
    if (!dropped)
        check_reply(data, sent, n, init, *open && count == 2 && !h->error);
    FUZZ_ASSERT(!init || !c->init_unique);
    *open &= init; /* that of INIT is no reply to OPEN */
    for (int i = 0; i < count; i++)
        free(iov[i].iov_base);
}

static void play(int kernel, int ours, const uint8_t *data, size_t size, struct channel *c)
{
    bool open = false;

    while (size >= 2) {
        unsigned what = data[0] % STEPS;
        size_t n = (size_t)data[1] * 8;
        data += 2;
        size -= 2;
        n = n < size ? n : size / 8 * 8;
        if (what == REQUEST && n) {
            request(kernel, ours, data, n);
        } else if ((what == REPLY || what == REPLY_IN_PARTS) && n >= sizeof(struct fuse_out_header)) {
            reply(kernel, ours, data, n, what == REPLY_IN_PARTS, &open, c);
        } else if (what == NEXT_OPEN) {
            channel_next_open(DTX_FOPEN_PASSTHROUGH, (uint32_t)size);
            open = true;
        } else if (what == BEGIN) {
            kept_done(c->kept, kept_begin(c->kept, size).rc);
        }
        data += n;
        size -= n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct kept_shared shared;
    struct kept kept = {.shared = &shared, .mount_fd = -1};
    struct channel c = {0};
    struct dtx_err e;
    int pair[2];

    if (size < 1)
        return 0;
    c.passthrough = passthrough_new();
    FUZZ_ASSERT(c.passthrough);
    log_to_fd(-1);
    FUZZ_ASSERT(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    memset(&shared, 0, sizeof(shared));
    if (data[0] & 1) { /* INIT of before: whatever it was */
        kept.mount_fd = 0;
        shared.init_len = shared.reply_len = (uint32_t)(size < KEPT_INIT_MAX ? size : KEPT_INIT_MAX);
        memcpy(shared.init, data, shared.init_len);
        memcpy(shared.reply, data, shared.reply_len);
    }
    c.stack_depth = data[0] & 2 ? 1 : 0;
    channel_next_open(0, 0);
    FUZZ_ASSERT(channel_attach(&c, NULL, &kept, pair[0], &e) == 0);
    if (c.replay) { /* libfuse reads into a buffer of megabytes */
        static uint8_t buf[1 << 16];
        FUZZ_ASSERT(io.read(pair[0], buf, sizeof(buf), NULL) == (ssize_t)shared.init_len);
    }
    play(pair[1], pair[0], data + 1, size - 1, &c);
    close(pair[0]);
    close(pair[1]);
    passthrough_free(c.passthrough);
    return 0;
}
