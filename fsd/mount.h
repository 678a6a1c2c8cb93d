/* The mountpoint: what is there now, clearing a dead mount, mounting, unmounting. */
#ifndef DTX_FSD_MOUNT_H
#define DTX_FSD_MOUNT_H

#include <stddef.h>

#include "scheduler/base/err.h"

/* The absolute path of a mountpoint without touching what may be mounted on it. */
int mount_resolve(const char *path, char *out, size_t outsz, struct dtx_err *e);
/* Make it ready: a missing folder is made, a dead FUSE mount is cleared, -EBUSY if anything live is mounted
 * there. */
int mount_prepare(const char *mountpoint, struct dtx_err *e);
/* Unmount; -EBUSY while files on it are open.  lazy: detach it all the same. */
int mount_remove(const char *mountpoint, int lazy);

#endif
