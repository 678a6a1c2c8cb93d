#include "fsd/change_log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct entry { /* followed by the name */
    uint32_t len;
    uint32_t op;
    struct node_info node;
    uint64_t parent;
};

static uint32_t size_of(size_t name)
{
    return (uint32_t)((sizeof(struct entry) + name + 1 + 7) & ~(size_t)7);
}

bool change_log_add(struct change_log *log, const struct nodes_change *c)
{
    struct entry e = {.op = (uint32_t)c->op, .node = c->node, .parent = c->parent};
    uint32_t part, at;

    if (!log)
        return true;
    part = log->active;
    at = log->part[part].len;
    e.len = size_of(strlen(c->name));
    if (at + e.len > CHANGE_LOG_BYTES)
        return false;
    memcpy(log->part[part].bytes + at, &e, sizeof(e));
    strcpy((char *)log->part[part].bytes + at + sizeof(e), c->name);
    __atomic_store_n(&log->part[part].len, at + e.len, __ATOMIC_RELEASE);
    return true;
}

void change_log_take(struct change_log *log)
{
    if (log && log->part[!log->active].len == 0) /* else the last batch was not committed */
        __atomic_store_n(&log->active, !log->active, __ATOMIC_RELEASE);
}

void change_log_committed(struct change_log *log)
{
    if (log)
        __atomic_store_n(&log->part[!log->active].len, 0, __ATOMIC_RELEASE);
}

static int read_part(const uint8_t *bytes, uint32_t len, struct nodes_change ***end)
{
    for (uint32_t at = 0; at < len;) {
        struct nodes_change *c;
        struct entry e;
        size_t room;

        if (len - at < sizeof(e) + 1)
            return -EIO;
        memcpy(&e, bytes + at, sizeof(e));
        if (e.len <= sizeof(e) || e.len > len - at || e.op > NOP_DROP_NAME)
            return -EIO;
        room = e.len - sizeof(e);
        c = calloc(1, sizeof(*c) + room + 1);
        if (!c)
            return -ENOMEM;
        c->op = (enum nodes_op)e.op;
        c->node = e.node;
        c->parent = e.parent;
        memcpy(c->name, bytes + at + sizeof(e), room);
        **end = c;
        *end = &c->next;
        at += e.len;
    }
    return 0;
}

int change_log_read(const struct change_log *log, struct nodes_change **out)
{
    struct nodes_change **end = out;
    uint32_t first = !(log->active & 1);
    int rc = -EIO;

    *out = NULL;
    if (log->active <= 1 && log->part[0].len <= CHANGE_LOG_BYTES && log->part[1].len <= CHANGE_LOG_BYTES)
        rc = read_part(log->part[first].bytes, log->part[first].len, &end);
    return rc ? rc : read_part(log->part[!first].bytes, log->part[!first].len, &end);
}

void change_log_clear(struct change_log *log)
{
    __atomic_store_n(&log->part[!log->active].len, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&log->part[log->active].len, 0, __ATOMIC_RELEASE);
}
