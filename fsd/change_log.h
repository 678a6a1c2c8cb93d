/*
 * Changes of nodes that are not in nodes.db yet, in memory that outlives the process: a new one applies them
 * before it loads nodes.db, so that a killed daemon forgets no node id that the kernel was told.
 *
 * Two buffers.  New changes go to the active one; who writes a batch switches over (change_log_take) and
 * empties the other when the batch is committed.  A change may be applied twice: each says how things are
 * afterwards, and they are applied in their order.  When a buffer is full (the disk is, for long), what does
 * not fit is lost if the process is killed then, as without this log.
 *
 * nodes.c calls these with its mutex held.
 */
#ifndef DTX_FSD_CHANGE_LOG_H
#define DTX_FSD_CHANGE_LOG_H

#include <stdbool.h>

#include "fsd/nodes_db.h"

enum { CHANGE_LOG_BYTES = 4 << 20 };

struct change_log { /* all zero: empty */
    uint32_t active;
    struct {
        uint32_t len; /* bytes whose changes are complete */
        uint8_t bytes[CHANGE_LOG_BYTES];
    } part[2];
};

/* All of these do nothing if log is NULL. */
bool change_log_add(struct change_log *log, const struct nodes_change *c); /* false: there is no room */
/* A batch of everything so far is about to be written. */
void change_log_take(struct change_log *log);
/* It is committed. */
void change_log_committed(struct change_log *log);
/* What is in it, in order, for nodes_db_apply; the caller frees the list.  -ENOMEM, or -EIO: it is damaged.
 */
int change_log_read(const struct change_log *log, struct nodes_change **out);
void change_log_clear(struct change_log *log);

#endif
