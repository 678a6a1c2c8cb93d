#include "fsd/device_number.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

enum { FIRST = 256, COUNT = 240, FSCONFIG_CREATE = 6, CLOEXEC = 1 /* of fsopen and fsmount */ };

static unsigned wanted(const char *mountpoint)
{
    unsigned h = 2166136261u;

    for (; *mountpoint; mountpoint++)
        h = (h ^ (unsigned char)*mountpoint) * 16777619u;
    return FIRST + h % COUNT;
}

/* A file system of its own, mounted nowhere: a descriptor that ends it when closed. */
static int hold_one(unsigned *number)
{
    int context = (int)syscall(SYS_fsopen, "tmpfs", CLOEXEC), fd = -1;
    struct stat st;

    if (context < 0)
        return -1;
    if (syscall(SYS_fsconfig, context, FSCONFIG_CREATE, NULL, NULL, 0) == 0)
        fd = (int)syscall(SYS_fsmount, context, CLOEXEC, 0);
    close(context);
    if (fd < 0 || fstat(fd, &st)) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *number = minor(st.st_dev);
    return fd;
}

void device_number_reserve(struct device_number *d, const char *mountpoint)
{
    unsigned want = wanted(mountpoint), number;

    d->n = 0;
    while (d->n < DEVICE_NUMBER_MAX) {
        int fd = hold_one(&number);
        if (fd < 0)
            break;
        if (number >= want) { /* it is free again once closed; if it is higher, ours is somebody else's */
            close(fd);
            if (number == want)
                return;
            break;
        }
        d->held[d->n++] = fd;
    }
    device_number_release(d);
}

void device_number_release(struct device_number *d)
{
    while (d->n)
        close(d->held[--d->n]);
}
