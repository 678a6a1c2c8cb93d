/*
 * Telling the kernel that generated files changed or went, from a thread of its own (a FUSE handler that did
 * so could wait for itself), and what is to be tidied up from time to time.
 *
 * The kernel keeps attributes of generated files for a quarter of a second anyway; this makes changes seen at
 * once, takes away the names of objects that are gone, and has inotify watchers woken (touch.h).
 */
#ifndef DTX_FSD_NOTIFY_H
#define DTX_FSD_NOTIFY_H

#include "fsd/fs.h"

struct notify;

int notify_new(struct fs *f, struct fuse_session *se, const char *mountpoint, struct notify **out,
               struct dtx_err *e);
/* For sched_on_change: arg is the struct notify; from any thread, also after notify_stop. */
void notify_changed(void *arg, const char *path);
/* Nothing of ours uses the mount after this (touch.h); FUSE requests must still be answered. */
void notify_quiet(struct notify *n);
void notify_stop(struct notify *n); /* before the session goes */
void notify_free(struct notify *n);

#endif
