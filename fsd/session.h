/* The conversation with the kernel: from the mount to the unmount. */
#ifndef DTX_FSD_SESSION_H
#define DTX_FSD_SESSION_H

#include "fsd/fs.h"

/* Mounts f at mountpoint (prepared, absolute), or takes over the mount of a process before, and serves it
 * until it is unmounted or SIGTERM or SIGINT comes: the mount is gone when this returns.  SIGHUP: returns 1,
 * the mount is left to a process after this one.  These signals must be blocked in every thread. */
int session_serve(struct fs *f, const char *mountpoint, struct dtx_err *e);

#endif
