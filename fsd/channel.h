/*
 * /dev/fuse: mounting, and every message between the kernel and libfuse.
 *
 * The mount is made here and the descriptor given to libfuse as a "custom io", so that
 *  - a process can take the connection over from one that died (kept.h): libfuse is told INIT as it came
 * then, its answer goes nowhere, and the kernel is asked to send again what was not answered;
 *  - what this libfuse does not know can be agreed on with the kernel by changing messages on their way.
 * Today that is FUSE_DIRECT_IO_ALLOW_MMAP (Linux 6.6): shared mappings of generated files, which are opened
 * past the cache; FUSE_PASSTHROUGH (Linux 6.9, passthrough.h); FUSE_HANDLE_KILLPRIV_V2 (Linux 5.12): who
 * writes says with the request that set-id bits go, where the kernel else asks for security.capability before
 * each write; and TMPFILE (Linux 6.1), which libfuse is told as CREATE.
 */
#ifndef DTX_FSD_CHANNEL_H
#define DTX_FSD_CHANNEL_H

#include <fuse_lowlevel.h>
#include <stdbool.h>

#include "fsd/kept.h"
#include "scheduler/base/err.h"

struct passthrough;

struct channel {
    /* set by the caller of channel_attach */
    struct passthrough *passthrough; /* borrowed; told what was agreed */
    uint32_t stack_depth;            /* to agree on with passthrough; 0: it is not wanted */

    unsigned long long init_unique;       /* of the INIT that is being answered; atomic */
    unsigned kernel_flags, kernel_flags2; /* what the kernel offered in it */
    struct kept *kept;                    /* borrowed */
    bool replay;                          /* INIT is to be told again; before there are threads */
    bool taken_over;
};

/* Must the request that this thread works on (WRITE, SETATTR, OPEN) take the set-id bits of its file away? */
bool channel_kills_setid(void);
/* Is the CREATE that this thread works on one of a file without a name (O_TMPFILE)? */
bool channel_unnamed(void);
/* The next message that this thread sends is the reply to OPEN or CREATE: open_flags (FOPEN_*) that libfuse
 * does not know, and the backing id. */
void channel_next_open(uint32_t open_flags, uint32_t backing_id);
enum { DTX_FOPEN_PASSTHROUGH = 1 << 7 };

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
