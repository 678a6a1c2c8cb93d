/*
 * The mount's st_dev, the same after every restart and boot.
 *
 * The kernel gives each mount without a disk the lowest free minor number, so it depends on what else is
 * mounted. But nfs-ganesha builds it into the handles that clients keep (backup programs remember it too):
 * with another number all of them are stale.  So a number above those that other mounts ever reach is derived
 * from the mountpoint, and all free ones below it are held, by small file systems that are mounted nowhere,
 * while the mount is made.
 */
#ifndef DTX_FSD_DEVICE_NUMBER_H
#define DTX_FSD_DEVICE_NUMBER_H

#include <stddef.h>

enum { DEVICE_NUMBER_MAX = 512 };

struct device_number {
    int held[DEVICE_NUMBER_MAX];
    size_t n;
};

/* Make this mountpoint's number the lowest free one.  Where that is impossible (not root, an old kernel, the
 * number is in use) any number will do. */
void device_number_reserve(struct device_number *d, const char *mountpoint);
void device_number_release(struct device_number *d);

#endif
