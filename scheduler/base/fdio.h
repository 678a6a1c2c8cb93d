/*
 * Files, durably.  All paths are relative to a directory descriptor (AT_FDCWD allowed).
 */
#ifndef DTX_BASE_FDIO_H
#define DTX_BASE_FDIO_H

#include <dirent.h>
#include <limits.h>
#include <stddef.h>
#include <sys/types.h>
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

/* Append the whole regular file to *b; -EFBIG when it has more than max bytes. */
int fd_read_file(int dirfd, const char *path, size_t max, struct buf *b, struct dtx_err *e);

/* Write all of it, retrying short writes and EINTR.  0 or -errno. */
int fd_write_all(int fd, const void *data, size_t n);
int fd_pwrite_all(int fd, const void *data, size_t n, off_t at);
/* Read exactly n bytes; -EPIPE at end of file. */
int fd_read_all(int fd, void *data, size_t n);
int fd_pread_all(int fd, void *data, size_t n, off_t at);

/* fdopendir(3) for a look that is no use of the folder: its access time stays, if we may say so.  Takes fd
 * over, also on failure: NULL with errno; so does a negative fd. */
DIR *fd_look_into(int fd);
/* Temporary name in the same folder, write, fsync, rename over path, fsync the folder. */
int fd_replace_file(int dirfd, const char *path, const void *data, size_t n, mode_t mode, struct dtx_err *e);

/* fsync a folder (or any path) by name. */
int fd_sync_path(int dirfd, const char *path, struct dtx_err *e);

/* dir/name; -ENAMETOOLONG. */
int fd_join(char out[PATH_MAX], const char *dir, const char *name, struct dtx_err *e);

/* Make the file if it is not there, and readable by its owner alone: SQLite gives its journals the same mode.
 */
int fd_make_private(const char *path, struct dtx_err *e);
/* The same for all that lies in it (never through links) and for the folder that holds it. */
int fd_sync_tree(int dirfd, const char *path, struct dtx_err *e);
/* The folder `path` and those above it, up to dirfd. */
int fd_sync_chain(int dirfd, const char *path, struct dtx_err *e);

/* mkdir -p; the names of the new folders are on the disk when it returns. */
int fd_mkdirs(int dirfd, const char *path, mode_t mode, struct dtx_err *e);

/* rm -r; never follows links; a path that does not exist is success. */
int fd_remove_tree(int dirfd, const char *path, struct dtx_err *e);

/* Remove what writers of the functions above (and of token caches) that were killed have left half written in
 * a folder, not in those below.  For a folder in which no other process writes now. */
void fd_sweep(int dirfd, const char *path);

/* Lock a file of the store for this process (OFD lock); -EBUSY if another holds it. Returns the fd. */
int fd_lock_file(int dirfd, const char *path, struct dtx_err *e);

#endif
