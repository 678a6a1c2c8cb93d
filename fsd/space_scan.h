/* Counting everything that is in the store. */
#ifndef DTX_FSD_SPACE_SCAN_H
#define DTX_FSD_SPACE_SCAN_H

#include <stdbool.h>
#include <sys/stat.h>

/* Calls fn for every file and folder below store_fd, never through links.  uid: who it counts for (work
 * files: the experiment's owner).  path: in the mount of what it belongs to, NULL: nothing.  fn gives false
 * to end it. Returns false if it was ended. */
bool space_scan(int store_fd, bool (*fn)(void *arg, const struct stat *st, uid_t uid, const char *path),
                void *arg);

#endif
