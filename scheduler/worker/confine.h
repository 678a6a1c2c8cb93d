/*
 * What a process gives up before it reads what users wrote.
 *
 * A check reads files of anybody, and hostile ones: it may read the folder that it checks, and do nothing
 * else. A worker reads them too, but writes all over the store and drives a device: it keeps what that needs.
 */
#ifndef DTX_CONFINE_H
#define DTX_CONFINE_H

#include <stdbool.h>

#include "scheduler/base/err.h"

/* For the rest of this process' life; it must have one thread.  dir, model (NULL: none) are relative to tree.
 * As root it becomes the folder's owner: who dropped the file gets nothing by it that is not theirs.  -EACCES
 * and the like: not confined, read nothing. */
int confine_check(int tree, const char *dir, const char *model, struct dtx_err *e);

/* Before the first thread is there.  gpu: it will open a CUDA device. */
int confine_worker(bool gpu, struct dtx_err *e);

#endif
