#include "fsd/channel.h"
#include "fsd/device_number.h"
#include "fsd/passthrough.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/log.h"

extern char **environ;

/* Of newer kernels' headers; flags2 holds bits 32 and up. */
#define DTX_FUSE_INIT_EXT              (1u << 30)
#define DTX_FUSE2_DIRECT_IO_ALLOW_MMAP (1u << (36 - 32))
#define DTX_FUSE2_PASSTHROUGH          (1u << (37 - 32))
#define DTX_FUSE2_HAS_RESEND           (1u << (39 - 32))
#define DTX_FUSE_NOTIFY_RESEND         7

/* struct fuse_init_out as of protocol 7.40: flags2 and what follows took the place of unused words. */
struct init_reply {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
};

/* struct fuse_open_out as of protocol 7.40: backing_id took the place of padding. */
struct open_reply {
    uint64_t fh;
    uint32_t open_flags;
    uint32_t backing_id;
};

/* ---- mounting ---- */

/* One READ asks for so much at most: as much as the kernel reads ahead.  For what is read past its cache
 * (generated files) it gets hold of each page of the reader's buffer, so a buffer of 1 MiB costs more than
 * the reading. */
#define MAX_READ "max_read=131072"

static int mount_as_root(const char *mountpoint, struct dtx_err *e)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    struct device_number number;
    char options[160];
    int rc = 0;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open /dev/fuse (modprobe fuse?)");
    snprintf(options, sizeof(options),
             "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions,allow_other," MAX_READ, fd,
             (unsigned)getuid(), (unsigned)getgid());
    device_number_reserve(&number, mountpoint);
    if (mount("dtx", mountpoint, "fuse.dtx", MS_NOSUID | MS_NODEV, options))
        rc = dtx_fail_errno(e, "cannot mount at %s", mountpoint);
    device_number_release(&number);
    if (rc)
        close(fd);
    return rc ? rc : fd;
}

/* Does /etc/fuse.conf let users show their mounts to others? */
static bool others_allowed(void)
{
    FILE *in = fopen("/etc/fuse.conf", "re");
    char line[256];
    bool found = false;

    while (in && !found && fgets(line, sizeof(line), in))
        found = strncmp(line, "user_allow_other", 16) == 0;
    if (in)
        fclose(in);
    return found;
}

static int receive_fd(int sock)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    char byte;
    struct iovec iov = {&byte, 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c;
    ssize_t n;
    int fd;

    do
        n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    c = n > 0 ? CMSG_FIRSTHDR(&msg) : NULL;
    if (!c || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
        return -EIO;
    memcpy(&fd, CMSG_DATA(c), sizeof(fd));
    return fd;
}

/* fusermount3 mounts for us and sends the descriptor over the socket that _FUSE_COMMFD names. */
static int spawn_fusermount(const char *mountpoint, int sock, pid_t *pid)
{
    char options[] = "fsname=dtx,subtype=dtx,default_permissions," MAX_READ ",allow_other", comm[32];
    char *argv[] = {"fusermount3", "-o", options, "--", (char *)mountpoint, NULL};

    if (!others_allowed())
        *strstr(options, ",allow_other") = '\0';
    snprintf(comm, sizeof(comm), "%d", sock);
    if (setenv("_FUSE_COMMFD", comm, 1))
        return -errno;
    return -posix_spawnp(pid, argv[0], NULL, NULL, argv, environ);
}

static int mount_as_user(const char *mountpoint, struct dtx_err *e)
{
    int sock[2], rc, fd = -EIO;
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sock))
        return dtx_fail_errno(e, "socketpair");
    fcntl(sock[0], F_SETFD, FD_CLOEXEC);
    rc = spawn_fusermount(mountpoint, sock[1], &pid);
    close(sock[1]);
    unsetenv("_FUSE_COMMFD");
    if (!rc) {
        fd = receive_fd(sock[0]);
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    close(sock[0]);
    if (rc || fd < 0)
        return dtx_fail(e, rc ? rc : fd,
                        "fusermount3 cannot mount at %s: is fuse3 installed, and may you use it?",
                        mountpoint);
    return fd;
}

int channel_mount(const char *mountpoint, struct dtx_err *e)
{
    return geteuid() == 0 ? mount_as_root(mountpoint, e) : mount_as_user(mountpoint, e);
}

/* ---- messages ---- */

/* se's userdata is the file system: the one channel that this process serves is known here. */
static struct channel *the_channel;

static void note_init(const struct fuse_in_header *h, size_t n)
{
    const struct fuse_init_in *in = (const void *)(h + 1);
    struct kept_shared *shared = the_channel->kept->shared;

    if (n < sizeof(*h) + 16)
        return;
    if (!the_channel->taken_over && n <= sizeof(shared->init)) {
        memcpy(shared->init, h, n);
        shared->init_len = (uint32_t)n;
    }
    the_channel->kernel_flags = in->flags;
    the_channel->kernel_flags2 =
        n >= sizeof(*h) + sizeof(*in) && (in->flags & DTX_FUSE_INIT_EXT) ? in->flags2 : 0;
    __atomic_store_n(&the_channel->init_unique, h->unique, __ATOMIC_RELEASE);
}

/* What libfuse does not pass on. */
static _Thread_local bool kills_setid;

bool channel_kills_setid(void)
{
    return kills_setid;
}

static bool asks_to_kill(const struct fuse_in_header *h, size_t n)
{
    const void *arg = h + 1;

    n -= sizeof(*h);
    switch (h->opcode) {
    case FUSE_WRITE:
        return n >= sizeof(struct fuse_write_in) &&
               (((const struct fuse_write_in *)arg)->write_flags & FUSE_WRITE_KILL_SUIDGID);
    case FUSE_SETATTR:
        return n >= sizeof(struct fuse_setattr_in) && /* nothing to set: chown(2) to -1 and -1 */
               (((const struct fuse_setattr_in *)arg)->valid & FATTR_KILL_SUIDGID ||
                ((const struct fuse_setattr_in *)arg)->valid == 0);
    case FUSE_OPEN:
        return n >= sizeof(struct fuse_open_in) &&
               (((const struct fuse_open_in *)arg)->open_flags & FUSE_OPEN_KILL_SUIDGID);
    case FUSE_FALLOCATE: /* these do not say */
    case FUSE_COPY_FILE_RANGE:
        return h->uid != 0;
    default:
        return false;
    }
}

/* TMPFILE is laid out as CREATE is, and answered as CREATE is. */
static _Thread_local bool unnamed;

bool channel_unnamed(void)
{
    return unnamed;
}

static void tmpfile_as_create(struct fuse_in_header *h)
{
    unnamed = h->opcode == FUSE_TMPFILE;
    if (unnamed)
        h->opcode = FUSE_CREATE;
}

/* This thread has read a message, and will work on it. */
static void note_message(void *message, size_t n)
{
    struct fuse_in_header *h = message;

    if (n < sizeof(*h))
        return;
    kept_request(h->unique);
    if (h->opcode == FUSE_INIT)
        note_init(h, n);
    kills_setid = asks_to_kill(h, n);
    tmpfile_as_create(h);
}

static bool passthrough_possible(void)
{
    return the_channel->kernel_flags2 & DTX_FUSE2_PASSTHROUGH;
}

/* Put what libfuse does not know into its answer to INIT. */
static void patch_init(struct iovec *iov, int count)
{
    const struct fuse_out_header *h = iov[0].iov_base;
    struct init_reply *r;

    if (count < 2 || h->error || iov[1].iov_len < sizeof(*r))
        return;
    r = iov[1].iov_base;
    if (!(r->flags & DTX_FUSE_INIT_EXT))
        r->flags2 = r->max_stack_depth = 0;
    r->flags |= the_channel->kernel_flags & FUSE_HANDLE_KILLPRIV_V2;
    r->flags |= DTX_FUSE_INIT_EXT; /* the bits count, not the protocol version that libfuse speaks */
    r->flags2 |= the_channel->kernel_flags2 & DTX_FUSE2_DIRECT_IO_ALLOW_MMAP;
    if (passthrough_possible() && the_channel->stack_depth) {
        r->flags2 |= DTX_FUSE2_PASSTHROUGH;
        r->max_stack_depth = the_channel->stack_depth;
    }
}

/* The answer that holds is the one that the kernel got, be it from a process before. */
static bool passthrough_agreed(void)
{
    const struct kept_shared *shared = the_channel->kept->shared;
    const struct init_reply *r = (const void *)(shared->reply + sizeof(struct fuse_out_header));

    return shared->reply_len >= sizeof(struct fuse_out_header) + sizeof(*r) &&
           (r->flags & DTX_FUSE_INIT_EXT) && (r->flags2 & DTX_FUSE2_PASSTHROUGH);
}

static void tell_passthrough(int fd, bool answered)
{
    bool wanted = the_channel->stack_depth != 0;

    passthrough_begin(the_channel->passthrough, fd, answered && passthrough_agreed(),
                      wanted ? "this kernel does not have it (Linux 6.9 with CONFIG_FUSE_PASSTHROUGH does)"
                             : "not wanted");
}

/* What the next message of this thread is to have. */
static _Thread_local struct open_reply next_open;

void channel_next_open(uint32_t open_flags, uint32_t backing_id)
{
    next_open.open_flags = open_flags;
    next_open.backing_id = backing_id;
}

/* Both replies end with struct fuse_open_out. */
static void patch_open(struct iovec *iov, int count)
{
    const struct fuse_out_header *h = iov[0].iov_base;
    struct open_reply *r;

    if (count == 2 && !h->error && iov[1].iov_len >= sizeof(*r)) {
        r = (void *)((char *)iov[1].iov_base + iov[1].iov_len - sizeof(*r));
        r->open_flags |= next_open.open_flags;
        r->backing_id = next_open.backing_id;
    }
    next_open.open_flags = 0;
}

/* The kernel sends RELEASE after all replies to other requests on that file: what came before a reply came
 * before what is read next.  This says so in terms of the language (and of race detectors). */
static unsigned replies;

static void before_reply(void)
{
    __atomic_add_fetch(&replies, 1, __ATOMIC_RELEASE);
}

static void after_request(void)
{
    (void)__atomic_load_n(&replies, __ATOMIC_ACQUIRE);
}

/* A request that the kernel cannot copy whole into our buffer fails at the client with EIO.  It cannot if
 * this process is being killed and a page of the buffer is not there yet (faults are refused then): so all
 * are there before.  For the same reason nobody forks here (workers.c, checks.c and touch.c use vfork): pages
 * would be write-protected. */
static void make_pages_present(void *buf, size_t n)
{
    static _Thread_local void *known;
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)buf & ~(page - 1),
              to = ((uintptr_t)buf + n + page - 1) & ~(page - 1);

    if (buf == known)
        return;
    known = buf;
    if (madvise((void *)from, to - from, MADV_POPULATE_WRITE)) /* before Linux 5.14 */
        memset(buf, 0, n);
}

static ssize_t channel_read(int fd, void *buf, size_t n, void *userdata)
{
    const struct kept_shared *shared = the_channel->kept->shared;
    ssize_t got;

    if (the_channel->replay) {
        the_channel->replay = false;
        got = (ssize_t)shared->init_len;
        memcpy(buf, shared->init, shared->init_len);
    } else {
        make_pages_present(buf, n);
        got = read(fd, buf, n);
        after_request();
    }
    if (got > 0)
        note_message(buf, (size_t)got);
    return got;
}

static size_t gather(const struct iovec *iov, int count, uint8_t *out, size_t max)
{
    size_t n = 0;

    for (int i = 0; i < count; i++) {
        if (n + iov[i].iov_len <= max)
            memcpy(out + n, iov[i].iov_base, iov[i].iov_len);
        n += iov[i].iov_len;
    }
    return n;
}

/* The answer to INIT holds for the life of the mount, whatever a later program would have answered. */
static ssize_t answer_init(int fd, struct iovec *iov, int count)
{
    struct kept_shared *shared = the_channel->kept->shared;
    uint8_t reply[KEPT_INIT_MAX] = {0};
    size_t n;

    patch_init(iov, count);
    n = gather(iov, count, reply, sizeof(reply));
    if (the_channel->taken_over) {
        if (n != shared->reply_len || memcmp(reply, shared->reply, n) != 0)
            log_line("this dtxd would have agreed on other things with the kernel: they hold from the next "
                     "mount on");
        return (ssize_t)n;
    }
    if (n <= sizeof(shared->reply)) {
        memcpy(shared->reply, reply, n);
        shared->reply_len = (uint32_t)n;
    }
    return writev(fd, iov, count);
}

static ssize_t channel_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct fuse_out_header *h = iov[0].iov_base;
    unsigned long long unique = __atomic_load_n(&the_channel->init_unique, __ATOMIC_ACQUIRE);

    ssize_t n;

    if (unique && h->unique == unique) {
        __atomic_store_n(&the_channel->init_unique, 0, __ATOMIC_RELEASE);
        n = answer_init(fd, iov, count);
        tell_passthrough(fd, n > 0);
        return n;
    }
    if (next_open.open_flags)
        patch_open(iov, count);
    before_reply();
    n = writev(fd, iov, count);
    if (h->unique) { /* a thread answers what it read, and nothing else */
        int error = errno;
        kept_answered(the_channel->kept);
        errno = error;
    }
    return n;
}

static ssize_t channel_splice_in(int fdin, off_t *offin, int fdout, off_t *offout, size_t n, unsigned flags,
                                 void *userdata)
{
    return splice(fdin, offin, fdout, offout, n, flags);
}

static ssize_t channel_splice_out(int fdin, off_t *offin, int fdout, off_t *offout, size_t n, unsigned flags,
                                  void *userdata)
{
    before_reply();
    return splice(fdin, offin, fdout, offout, n, flags);
}

int channel_attach(struct channel *c, struct fuse_session *se, struct kept *kept, int fd, struct dtx_err *e)
{
    static const struct fuse_custom_io io = {.read = channel_read,
                                             .writev = channel_writev,
                                             .splice_receive = channel_splice_in,
                                             .splice_send = channel_splice_out};
    int rc;

    c->kept = kept;
    c->taken_over = kept->mount_fd >= 0 && kept->shared->init_len;
    c->replay = c->taken_over;
    the_channel = c;
    rc = fuse_session_custom_io(se, &io, fd);
    return rc ? dtx_fail(e, rc < 0 ? rc : -EIO, "libfuse does not take the connection") : 0;
}

int channel_begin(struct channel *c, struct fuse_session *se, struct dtx_err *e)
{
    struct fuse_buf buf = {0};
    int rc;

    do
        rc = fuse_session_receive_buf(se, &buf);
    while (rc == -EINTR);
    if (rc > 0)
        fuse_session_process_buf(se, &buf);
    free(buf.mem);
    if (rc < 0)
        return dtx_fail(e, rc, "the kernel does not begin to talk: %s", strerror(-rc));
    if (rc > 0 && !fuse_session_exited(se))
        kept_ready(c->kept, (c->kernel_flags2 & DTX_FUSE2_HAS_RESEND) != 0);
    return 0; /* 0: unmounted meanwhile; the loop ends at once */
}

void channel_resend(struct channel *c, struct fuse_session *se)
{
    struct fuse_out_header h = {.len = sizeof(h), .error = DTX_FUSE_NOTIFY_RESEND};

    if (c->taken_over && write(fuse_session_fd(se), &h, sizeof(h)) < 0 && errno != ENODEV)
        log_line("the kernel does not send unanswered requests again: %s", strerror(errno));
}
