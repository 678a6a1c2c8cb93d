/* The process that touches files through the mount; see touch.h.  It holds nothing open there between two
 * orders: the mount can be unmounted. */
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsd/touch.h"

/* No link on the way and nothing outside of the mount: users own some of the folders. */
static int open_in_mount(int root, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};

    return (int)syscall(SYS_openat2, root, path, &how, sizeof(how));
}

static int touch_open(int fd, enum touch_kind kind)
{
    const struct timespec modified[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
    const struct timespec both[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};
    struct statx st;
    char path[40];
    int writer;

    if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st))
        return -errno;
    if (S_ISDIR(st.stx_mode) != (kind == TOUCH_FOLDER))
        return S_ISDIR(st.stx_mode) ? -EISDIR : -ENOTDIR;
    /* Of the modification time alone the kernel says IN_MODIFY, of both times IN_ATTRIB. */
    if (utimensat(AT_FDCWD, backing_proc_path(fd, path), kind == TOUCH_FOLDER ? both : modified, 0))
        return -errno;
    if (kind == TOUCH_FOLDER)
        return 0;
    writer = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (writer >= 0) /* not allowed where dtxd is not root: then without IN_CLOSE_WRITE */
        close(writer);
    return 0;
}

static int carry_out(const char *mountpoint, const struct touch_order *order)
{
    int root = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC), fd, rc;

    if (root < 0)
        return -errno;
    fd = *order->path ? open_in_mount(root, order->path) : dup(root);
    rc = fd < 0 ? -errno : touch_open(fd, order->kind);
    if (fd >= 0)
        close(fd);
    close(root);
    return rc;
}

int touch_helper_main(const char *mountpoint)
{
    struct touch_order order;
    ssize_t n;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_NAME, "dtxd-touch");
    while ((n = recv(TOUCH_FD, &order, sizeof(order), 0)) > 0 || (n < 0 && errno == EINTR)) {
        int rc = -EINVAL;
        if (n > (ssize_t)offsetof(struct touch_order, path) && ((char *)&order)[n - 1] == '\0')
            rc = carry_out(mountpoint, &order);
        if (send(TOUCH_FD, &rc, sizeof(rc), MSG_NOSIGNAL) < 0)
            break;
    }
    return 0;
}
