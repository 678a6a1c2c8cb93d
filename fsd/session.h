/* The conversation with the kernel: from the mount to the unmount. */
#ifndef DTX_FSD_SESSION_H
#define DTX_FSD_SESSION_H

#include "fsd/fs.h"

/* Mounts f at mountpoint (prepared, absolute) and serves it until it is unmounted or SIGTERM or SIGINT comes
 * (both must be blocked in every thread); the mount is gone when this returns.  f->started is called when it
 * is live. */
int session_serve(struct fs *f, const char *mountpoint, struct dtx_err *e);

#endif
