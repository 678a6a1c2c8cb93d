/* STORE/nodes.db: the durable side of nodes.c.  One thread at a time (nodes.c's db_mu). */
#ifndef DTX_FSD_NODES_DB_H
#define DTX_FSD_NODES_DB_H

#include "fsd/nodes.h"

enum nodes_op { NOP_PUT_NODE, NOP_DROP_NODE, NOP_PUT_NAME, NOP_DROP_NAME };

/* One change, in the order in which they happened. */
struct nodes_change {
    struct nodes_change *next;
    enum nodes_op op;
    struct node_info node; /* PUT_NODE: all of it; DROP_NODE: id; PUT_NAME: id */
    uint64_t parent;       /* ..._NAME */
    char name[];           /* ..._NAME */
};

struct nodes_db;

typedef int (*nodes_db_node_fn)(void *arg, const struct node_info *node);
typedef int (*nodes_db_name_fn)(void *arg, uint64_t parent, const char *name, uint64_t id);

/* generation: what new nodes get (it differs for every new nodes.db). */
int nodes_db_open(const char *path, struct nodes_db **out, uint64_t *generation, struct dtx_err *e);
void nodes_db_close(struct nodes_db *db);
int nodes_db_load(struct nodes_db *db, nodes_db_node_fn node, nodes_db_name_fn name, void *arg,
                  struct dtx_err *e);
/* Reserve ids durably: the first of `count` that nobody was given. */
int nodes_db_reserve(struct nodes_db *db, uint64_t count, uint64_t *first, struct dtx_err *e);
/* One transaction; durable: with fsync. */
int nodes_db_apply(struct nodes_db *db, const struct nodes_change *list, bool durable, struct dtx_err *e);

#endif
