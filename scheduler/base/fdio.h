/*
 * Files, durably.  All paths are relative to a directory descriptor (AT_FDCWD allowed).
 */
#ifndef DTX_BASE_FDIO_H
#define DTX_BASE_FDIO_H

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

/* Temporary name in the same folder, write, fsync, rename over path, fsync the folder. */
int fd_replace_file(int dirfd, const char *path, const void *data, size_t n, mode_t mode, struct dtx_err *e);

/* fsync a folder (or any path) by name. */
int fd_sync_path(int dirfd, const char *path, struct dtx_err *e);

/* dir/name; -ENAMETOOLONG. */
int fd_join(char out[PATH_MAX], const char *dir, const char *name, struct dtx_err *e);

/* mkdir -p. */
int fd_mkdirs(int dirfd, const char *path, mode_t mode, struct dtx_err *e);

/* rm -r; never follows links; a path that does not exist is success. */
int fd_remove_tree(int dirfd, const char *path, struct dtx_err *e);

/* Lock a file of the store for this process (OFD lock); -EBUSY if another holds it. Returns the fd. */
int fd_lock_file(int dirfd, const char *path, struct dtx_err *e);

#endif
