/*
 * Bulk data at the speed of the disk: the kernel reads and writes a file of the store itself
 * (FUSE_PASSTHROUGH, Linux 6.9), without a message for each read and write.
 *
 * To the kernel an inode is, while it is open, either cached (its pages are FUSE's, reads and writes come to
 * us) or backed (by one file of the store): all opens of a time must agree, or open(2) fails with EIO.  This
 * table remembers which it is, and the number (backing id) by which the kernel knows the backing file.  A
 * backed inode can be opened so that reads and writes come to us nevertheless (PASS_SEEN), uncached; only
 * mmap(2) then goes past us.
 *
 * Debian 12's libfuse does not know any of it: it is agreed on and said by changing messages in channel.c.
 *
 * What we do not see we cannot judge, so of writers only those are let past us whose object is being received
 * anyway: it stays RECEIVING until their RELEASE (fs_pass_open in ops_pass.c).
 *
 * Every function may be called from any thread.
 */
#ifndef DTX_FSD_PASSTHROUGH_H
#define DTX_FSD_PASSTHROUGH_H

#include <stdbool.h>
#include <stdint.h>

enum pass_mode {
    PASS_CACHED, /* through us, with FUSE's page cache */
    PASS_BACKED, /* past us */
    PASS_SEEN,   /* through us, without a cache, because others have it open past us */
};

/* How one open file is open; kept in its handle, and enough to go on with in another process. */
struct pass_grant {
    enum pass_mode mode;
    uint32_t backing_id; /* of the connection; 0 with PASS_CACHED */
};

/* What an opener wishes, and what it gets: if the inode is
 *                 not open     cached       backed
 *   WISH_BACKED   BACKED       CACHED       BACKED
 *   WISH_CACHED   CACHED       CACHED       BACKED
 *   WISH_SEEN     CACHED       CACHED       SEEN     */
enum pass_wish { WISH_BACKED, WISH_CACHED, WISH_SEEN };

/* FUSE's stack depth that files of this folder need: 2 on overlayfs, else 1. */
uint32_t passthrough_depth(int store_fd);

struct passthrough;

struct passthrough *passthrough_new(void); /* off at first; NULL: no memory */
void passthrough_free(struct passthrough *p);
/* The connection stands; does it have passthrough?  why: else, in words, for the log. */
void passthrough_begin(struct passthrough *p, int dev_fd, bool agreed, const char *why);
bool passthrough_is_on(const struct passthrough *p);

/* The file `fd` (open for reading or writing; borrowed) of node id is being opened.  Reply with the grant;
 * then passthrough_close exactly once.  -ENOMEM. */
int passthrough_open(struct passthrough *p, uint64_t id, int fd, enum pass_wish wish,
                     struct pass_grant *grant);
void passthrough_close(struct passthrough *p, uint64_t id, struct pass_grant grant);
/* An open file of a process before this one, on the same connection. */
int passthrough_restore(struct passthrough *p, uint64_t id, struct pass_grant grant);

/* Has anybody this file open for writing, or mapped so?  fd is one that was opened for reading. */
bool passthrough_is_written(int fd);

#endif
