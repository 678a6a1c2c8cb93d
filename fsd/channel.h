/*
 * /dev/fuse: mounting, and every message between the kernel and libfuse.
 *
 * The mount is made here and the descriptor given to libfuse as a "custom io", so that
 *  - a process can take the connection over from one that died (kept.h): libfuse is told INIT as it came
 * then, its answer goes nowhere, and the kernel is asked to send again what was not answered;
 *  - what this libfuse does not know can be agreed on with the kernel by changing messages on their way.
 * Today that is FUSE_DIRECT_IO_ALLOW_MMAP (Linux 6.6): shared mappings of generated files, which are opened
 * past the cache.
 */
#ifndef DTX_FSD_CHANNEL_H
#define DTX_FSD_CHANNEL_H

#include <fuse_lowlevel.h>

#include "fsd/kept.h"
#include "scheduler/base/err.h"

struct channel {
    unsigned long long init_unique; /* of the INIT that is being answered; atomic */
    unsigned kernel_flags2;         /* what the kernel offered in it */
    struct kept *kept;              /* borrowed */
    bool replay;                    /* INIT is to be told again; before there are threads */
    bool taken_over;
};

/* Open the device and mount it; as a user through fusermount3.  The descriptor, or a negative errno. */
int channel_mount(const char *mountpoint, struct dtx_err *e);
/* Let se talk through fd (which it takes over).  c must live as long as se; se's userdata stays what it is.
 */
int channel_attach(struct channel *c, struct fuse_session *se, struct kept *kept, int fd, struct dtx_err *e);
/* Answer INIT, also if it came to a process before, and say that the mount is live.  Before other threads. */
int channel_begin(struct channel *c, struct fuse_session *se, struct dtx_err *e);
/* After a takeover: what was not answered comes again. */
void channel_resend(struct channel *c, struct fuse_session *se);

#endif
