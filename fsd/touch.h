/*
 * Events for those who watch a file instead of asking again and again (inotify: editors, build tools,
 * inotifywait).
 *
 * The kernel raises inotify events for what programs do through the mount, never for what changes behind it.
 * So a small process of ours (touch_helper.c) does something through the mount: it sets the modification time
 * of the file that has changed, and opens it for writing and closes it.  The file system knows the process by
 * its id and changes nothing; the kernel tells the watchers IN_MODIFY, IN_OPEN, IN_CLOSE_WRITE, and of a
 * folder with new names IN_ATTRIB.
 *
 * dtxd never waits for its own mount: only the helper blocks there, and only a thread that nobody waits for
 * waits for the helper.
 *
 *  - Only files that the kernel knows, or whose folder it knows: nobody can watch another.
 *  - At most one touch a file in TOUCH_MIN_MS, later for those that take long to render (a hundredth of one
 * processor each); all of them together may take a fifth of one processor.  The last change is always
 * followed by a touch.
 *  - A touch is given only when a reader whom it wakes will see what has changed (-EAGAIN until then), and
 *    not at all when the text is what it was (-EALREADY).
 */
#ifndef DTX_FSD_TOUCH_H
#define DTX_FSD_TOUCH_H

#include <limits.h>

#include "fsd/fs.h"

/* A little more than a rendering's shortest life. */
enum { TOUCH_MIN_MS = RENDER_MIN_MS + RENDER_HOLD_MS + 50 };

struct touch;

/* Starts the helper (this program, as "dtxd --touch") and a thread; f->touch is set until touch_free. */
int touch_new(struct fs *f, const char *mountpoint, struct touch **out, struct dtx_err *e);
/* Something under this path (relative to the mount) changed; listed: a folder has other names in it.  From
 * any thread, also after touch_stop. */
void touch_changed(struct touch *t, const char *path, bool listed);
/* Ends the helper, so that the mount is not busy.  Called again: nothing happens. */
void touch_stop(struct touch *t);
void touch_free(struct touch *t);

/* Is this request the helper's? */
bool touch_asks(struct fs *f, fuse_req_t req);
/* Its setattr: the attributes as they are now; -EAGAIN, -EALREADY: no event. */
int touch_attr(struct fs *f, uint64_t id, struct fs_attr *a);

/* ---- the helper process: touch_helper.c ---- */

enum { TOUCH_FD = 3 };
enum touch_kind { TOUCH_FILE, TOUCH_FOLDER };

struct touch_order { /* one packet; the answer is an int: 0 or a negative errno */
    uint32_t kind;
    char path[PATH_MAX]; /* NUL-terminated */
};

int touch_helper_main(const char *mountpoint); /* until its socket closes */

#endif
