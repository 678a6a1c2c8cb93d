#include "fsd/kept.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"

/* FUSE_UNIQUE_RESEND of newer kernels' headers. */
#define RESENT_MARK ((uint64_t)1 << 63)

static _Thread_local struct {
    uint64_t unique; /* without the mark; 0: none */
    bool resent;
    struct kept_once *once;
} turn;

/* ---- taking over ---- */

static int read_items(int fd, struct kept *k, struct dtx_err *e)
{
    struct stat st;

    if (fstat(fd, &st))
        return dtx_fail_errno(e, "what the keeper kept");
    k->items = (size_t)st.st_size / sizeof(*k->item);
    k->item = calloc(k->items + 1, sizeof(*k->item));
    if (!k->item)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if (k->items && fd_pread_all(fd, k->item, k->items * sizeof(*k->item), 0))
        return dtx_fail(e, -EIO, "what the keeper kept cannot be read");
    for (size_t i = 0; i < k->items; i++)
        if (k->item[i].fd >= 0)
            fcntl(k->item[i].fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

static int map_shared(struct kept *k, int fd, struct dtx_err *e)
{
    void *p = mmap(NULL, sizeof(*k->shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    if (p == MAP_FAILED)
        return dtx_fail_errno(e, "cannot map the shared memory");
    k->shared = p;
    return 0;
}

static int new_shared(struct kept *k, struct dtx_err *e)
{
    int fd = memfd_create("dtxd-shared", MFD_CLOEXEC), rc;

    if (fd < 0 || ftruncate(fd, sizeof(*k->shared)))
        rc = dtx_fail_errno(e, "cannot make the shared memory");
    else
        rc = map_shared(k, fd, e);
    if (!rc) {
        k->shared->starts = (uint64_t)(clock_wall_ns() / 1000000000);
        kept_put(k, KEEPER_SHARED, 0, NULL, 0, fd);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Take one item's descriptor out of the list. */
static int take_fd(struct kept *k, enum keeper_kind kind)
{
    for (size_t i = 0; i < k->items; i++)
        if (k->item[i].kind == (uint32_t)kind) {
            int fd = k->item[i].fd;
            k->item[i].fd = -1;
            return fd;
        }
    return -1;
}

/* A process that dies leaves no nonsense here; one whose memory was damaged may. */
static bool is_sound(const struct kept_shared *s)
{
    const struct change_log *c = &s->changes;

    return s->init_len <= sizeof(s->init) && s->reply_len <= sizeof(s->reply) && c->active <= 1 &&
           c->part[0].len <= CHANGE_LOG_BYTES && c->part[1].len <= CHANGE_LOG_BYTES;
}

static int take_over(struct kept *k, struct dtx_err *e)
{
    int fd = take_fd(k, KEEPER_SHARED), rc;
    struct stat st;

    if (fd < 0)
        return new_shared(k, e);
    if (fstat(fd, &st) || st.st_size != sizeof(*k->shared))
        rc = dtx_fail(e, -EPROTO, "the shared memory of the dtxd before has another size: start dtxd anew");
    else
        rc = map_shared(k, fd, e);
    close(fd);
    if (!rc && !is_sound(k->shared))
        rc = dtx_fail(e, -EPROTO, "the shared memory of the dtxd before is damaged: start dtxd anew");
    if (!rc) {
        k->shared->starts++;
        k->mount_fd = take_fd(k, KEEPER_MOUNT);
    }
    return rc;
}

int kept_open(const char *arg, struct kept **out, struct dtx_err *e)
{
    struct kept *k = calloc(1, sizeof(*k));
    int list, rc;

    if (!k)
        return dtx_fail(e, -ENOMEM, "out of memory");
    k->mount_fd = -1;
    if (sscanf(arg, "%d:%d", &k->sock, &list) != 2 || fcntl(k->sock, F_SETFD, FD_CLOEXEC) ||
        fcntl(list, F_SETFD, FD_CLOEXEC)) {
        free(k);
        return dtx_fail(e, -EINVAL, "--kept is for dtxd itself");
    }
    rc = read_items(list, k, e);
    close(list);
    if (!rc)
        rc = take_over(k, e);
    if (rc)
        kept_failed(k, e->msg);
    if (rc)
        kept_close(k);
    else
        *out = k;
    return rc;
}

void kept_close(struct kept *k)
{
    if (!k)
        return;
    for (size_t i = 0; i < k->items; i++)
        if (k->item[i].fd >= 0)
            close(k->item[i].fd);
    free(k->item);
    if (k->shared)
        munmap(k->shared, sizeof(*k->shared));
    close(k->sock);
    free(k);
}

/* ---- messages ---- */

static void say(struct kept *k, const struct keeper_message *m, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec iov = {(void *)m, sizeof(*m)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    ssize_t n;

    if (fd >= 0) {
        msg.msg_control = &control;
        msg.msg_controllen = sizeof(control);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    do { /* ETOOMANYREFS: too many descriptors under way; the keeper takes them soon */
        n = sendmsg(k->sock, &msg, MSG_NOSIGNAL);
        if (n < 0 && errno == ETOOMANYREFS)
            usleep(1000);
    } while (n < 0 && (errno == EINTR || errno == ETOOMANYREFS));
    if (n < 0 && errno != EPIPE && errno != ECONNRESET)
        log_line("cannot send to the keeper: %s: an open file may not outlive this process", strerror(errno));
}

void kept_put(struct kept *k, enum keeper_kind kind, uint64_t key, const void *data, size_t n, int fd)
{
    struct keeper_message m = {.op = KEEPER_PUT, .kind = (uint32_t)kind, .key = key};

    if (n)
        memcpy(m.data, data, n < sizeof(m.data) ? n : sizeof(m.data));
    say(k, &m, fd);
}

void kept_drop(struct kept *k, enum keeper_kind kind, uint64_t key)
{
    struct keeper_message m = {.op = KEEPER_DROP, .kind = (uint32_t)kind, .key = key};

    say(k, &m, -1);
}

void kept_ready(struct kept *k, bool resends)
{
    struct keeper_message m = {.op = KEEPER_READY, .key = resends};

    say(k, &m, -1);
}

void kept_failed(struct kept *k, const char *why)
{
    for (size_t n = strlen(why); n; n = strlen(why)) {
        struct keeper_message m = {.op = KEEPER_FAILED};
        size_t part = n < sizeof(m.data) ? n : sizeof(m.data);

        memcpy(m.data, why, part);
        say(k, &m, -1);
        why += part;
    }
}

/* ---- requests ---- */

void kept_request(uint64_t unique)
{
    turn.unique = unique & ~RESENT_MARK;
    turn.resent = (unique & RESENT_MARK) != 0;
    turn.once = NULL;
}

uint64_t kept_unique(void)
{
    return turn.unique;
}

bool kept_resent(void)
{
    return turn.resent;
}

void kept_answered(struct kept *k)
{
    if (turn.once) {
        turn.once->done = 0; /* a free entry is never done */
        __atomic_store_n(&turn.once->unique, 0, __ATOMIC_RELEASE);
    }
    turn.once = NULL;
}

static struct kept_once *find_once(struct kept *k, uint64_t unique)
{
    for (size_t i = 0; i < KEPT_ONCE; i++)
        if (__atomic_load_n(&k->shared->once[i].unique, __ATOMIC_ACQUIRE) == unique)
            return &k->shared->once[i];
    return NULL;
}

/* A free entry; or, when processes died between reply and kept_answered many times, that of the oldest
 * request: there are far fewer threads than entries. */
static struct kept_once *take_once(struct kept *k, uint64_t unique)
{
    for (;;) {
        struct kept_once *oldest = &k->shared->once[0];
        uint64_t least = UINT64_MAX;

        for (size_t i = unique / 2 % KEPT_ONCE, n = 0; n < KEPT_ONCE; n++, i = (i + 1) % KEPT_ONCE) {
            struct kept_once *o = &k->shared->once[i];
            uint64_t was = __atomic_load_n(&o->unique, __ATOMIC_ACQUIRE);
            if (was < least) {
                least = was;
                oldest = o;
            }
            if (was == 0)
                break;
        }
        if (least)
            oldest->done = 0;
        if (__atomic_compare_exchange_n(&oldest->unique, &least, unique, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_ACQUIRE))
            return oldest;
    }
}

struct kept_turn kept_begin(struct kept *k, uint64_t note)
{
    struct kept_once *o = turn.resent ? find_once(k, turn.unique) : NULL;

    if (o) {
        turn.once = o;
        return (struct kept_turn){.again = true, .done = o->done, .rc = o->rc, .note = o->note};
    }
    o = take_once(k, turn.unique);
    o->note = note;
    turn.once = o;
    return (struct kept_turn){.note = note};
}

void kept_done(struct kept *k, int rc)
{
    if (!turn.once)
        return;
    turn.once->rc = rc;
    __atomic_store_n(&turn.once->done, 1, __ATOMIC_RELEASE);
}
