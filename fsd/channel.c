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
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* Of newer kernels' headers; flags2 holds bits 32 and up. */
#define DTX_FUSE_INIT_EXT              (1u << 30)
#define DTX_FUSE2_DIRECT_IO_ALLOW_MMAP (1u << (36 - 32))
#define DTX_FUSE2_PASSTHROUGH          (1u << (37 - 32))

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

static int mount_as_root(const char *mountpoint, struct dtx_err *e)
{
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    struct device_number number;
    char options[160];
    int rc = 0;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open /dev/fuse (modprobe fuse?)");
    snprintf(options, sizeof(options),
             "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions,allow_other", fd,
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
    char options[] = "fsname=dtx,subtype=dtx,default_permissions,allow_other", comm[32];
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

    if (n < sizeof(*h) + 16)
        return;
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
        return n >= sizeof(struct fuse_setattr_in) &&
               (((const struct fuse_setattr_in *)arg)->valid & FATTR_KILL_SUIDGID);
    case FUSE_OPEN:
        return n >= sizeof(struct fuse_open_in) &&
               (((const struct fuse_open_in *)arg)->open_flags & FUSE_OPEN_KILL_SUIDGID);
    default:
        return false;
    }
}

/* This thread has read a message, and will work on it. */
static void note_message(const void *message, size_t n)
{
    const struct fuse_in_header *h = message;

    if (n < sizeof(*h))
        return;
    if (h->opcode == FUSE_INIT)
        note_init(h, n);
    kills_setid = asks_to_kill(h, n);
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

static void tell_passthrough(int fd, bool answered)
{
    bool wanted = the_channel->stack_depth != 0;

    passthrough_begin(the_channel->passthrough, fd, answered && wanted && passthrough_possible(),
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

static ssize_t channel_read(int fd, void *buf, size_t n, void *userdata)
{
    ssize_t got = read(fd, buf, n);

    if (got > 0)
        note_message(buf, (size_t)got);
    return got;
}

static ssize_t channel_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    const struct fuse_out_header *h = iov[0].iov_base;
    unsigned long long unique = __atomic_load_n(&the_channel->init_unique, __ATOMIC_ACQUIRE);

    if (unique && h->unique == unique) {
        ssize_t n;

        patch_init(iov, count);
        __atomic_store_n(&the_channel->init_unique, 0, __ATOMIC_RELEASE);
        n = writev(fd, iov, count);
        tell_passthrough(fd, n > 0);
        return n;
    }
    if (next_open.open_flags)
        patch_open(iov, count);
    return writev(fd, iov, count);
}

static ssize_t channel_splice_in(int fdin, off_t *offin, int fdout, off_t *offout, size_t n, unsigned flags,
                                 void *userdata)
{
    return splice(fdin, offin, fdout, offout, n, flags);
}

static ssize_t channel_splice_out(int fdin, off_t *offin, int fdout, off_t *offout, size_t n, unsigned flags,
                                  void *userdata)
{
    return splice(fdin, offin, fdout, offout, n, flags);
}

int channel_attach(struct channel *c, struct fuse_session *se, int fd, struct dtx_err *e)
{
    static const struct fuse_custom_io io = {.read = channel_read,
                                             .writev = channel_writev,
                                             .splice_receive = channel_splice_in,
                                             .splice_send = channel_splice_out};
    int rc;

    the_channel = c;
    rc = fuse_session_custom_io(se, &io, fd);
    return rc ? dtx_fail(e, rc < 0 ? rc : -EIO, "libfuse does not take the connection") : 0;
}
