#include "fsd/nodes_db.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"

enum { SCHEMA_VERSION = 1 };

enum statement { ST_PUT_NODE, ST_DROP_NODE, ST_PUT_NAME, ST_DROP_NAME, ST_COUNT };

static const char *const statements[ST_COUNT] = {
    [ST_PUT_NODE] = ("INSERT OR REPLACE INTO node(id, generation, owner, is_dir, dev, ino, btime) "
                     "VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7)"),
    [ST_DROP_NODE] = "DELETE FROM node WHERE id = ?1",
    [ST_PUT_NAME] = "INSERT OR REPLACE INTO name(parent, name, id) VALUES(?1, ?2, ?3)",
    [ST_DROP_NAME] = "DELETE FROM name WHERE parent = ?1 AND name = ?2",
};

static const char schema[] =
    "CREATE TABLE node(id INTEGER PRIMARY KEY, generation INTEGER NOT NULL,"
    " owner INTEGER NOT NULL, is_dir INTEGER NOT NULL, dev INTEGER NOT NULL,"
    " ino INTEGER NOT NULL, btime INTEGER NOT NULL);"
    "CREATE TABLE name(parent INTEGER NOT NULL, name BLOB NOT NULL, id INTEGER NOT NULL,"
    " PRIMARY KEY(parent, name)) WITHOUT ROWID;"
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;";

struct nodes_db {
    sqlite3 *sql;
    sqlite3_stmt *st[ST_COUNT];
};

static int db_fail(struct nodes_db *db, struct dtx_err *e, const char *what)
{
    int rc = sqlite3_errcode(db->sql), code = -EIO;

    if (rc == SQLITE_FULL)
        code = -ENOSPC;
    else if (rc == SQLITE_BUSY || rc == SQLITE_LOCKED)
        code = -EBUSY;
    return dtx_fail(e, code, "nodes.db: %s: %s", what, sqlite3_errmsg(db->sql));
}

static int db_exec(struct nodes_db *db, const char *sql, struct dtx_err *e)
{
    return sqlite3_exec(db->sql, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : db_fail(db, e, sql);
}

/* One integer, or fallback where there is no row. */
static int db_number(struct nodes_db *db, const char *sql, int64_t fallback, int64_t *out, struct dtx_err *e)
{
    sqlite3_stmt *st = NULL;
    int rc;

    if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, e, sql);
    rc = sqlite3_step(st);
    *out = rc == SQLITE_ROW ? sqlite3_column_int64(st, 0) : fallback;
    sqlite3_finalize(st);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : db_fail(db, e, sql);
}

static int db_set(struct nodes_db *db, const char *key, int64_t value, struct dtx_err *e)
{
    char sql[160];

    sqlite3_snprintf(sizeof(sql), sql, "INSERT OR REPLACE INTO meta(key, value) VALUES(%Q, %lld)", key,
                     (long long)value);
    return db_exec(db, sql, e);
}

/* A generation that no earlier nodes.db of this store had: seconds since 2020, which fit 32 bits. */
static int db_create(struct nodes_db *db, struct dtx_err *e)
{
    int64_t generation = clock_wall_ns() / 1000000000 - 1577836800;
    int rc = db_exec(db, "BEGIN IMMEDIATE", e);

    if (!rc)
        rc = db_exec(db, schema, e);
    if (!rc)
        rc = db_set(db, "generation", generation > 0 ? generation & 0xffffffff : 1, e);
    if (!rc)
        rc = db_set(db, "next_id", NODE_ROOT + 1, e);
    if (!rc)
        rc = db_exec(db, "PRAGMA user_version = 1", e);
    if (!rc)
        rc = db_exec(db, "COMMIT", e);
    return rc;
}

static int db_prepare(struct nodes_db *db, uint64_t *generation, struct dtx_err *e)
{
    int64_t version, gen;
    int rc = db_exec(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;", e);

    if (!rc)
        rc = db_number(db, "PRAGMA user_version", 0, &version, e);
    if (!rc && version > SCHEMA_VERSION)
        rc = dtx_fail(e, -EPROTO, "nodes.db has schema version %lld, this dtxd knows %d: use a newer dtxd",
                      (long long)version, SCHEMA_VERSION);
    if (!rc && version == 0)
        rc = db_create(db, e);
    for (int i = 0; !rc && i < ST_COUNT; i++)
        if (sqlite3_prepare_v3(db->sql, statements[i], -1, SQLITE_PREPARE_PERSISTENT, &db->st[i], NULL) !=
            SQLITE_OK)
            rc = db_fail(db, e, statements[i]);
    if (!rc)
        rc = db_number(db, "SELECT value FROM meta WHERE key = 'generation'", 1, &gen, e);
    if (!rc)
        *generation = (uint64_t)gen;
    return rc;
}

int nodes_db_open(const char *path, struct nodes_db **out, uint64_t *generation, struct dtx_err *e)
{
    struct nodes_db *db = calloc(1, sizeof(*db));
    int rc;

    if (!db)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if ((rc = fd_make_private(path, e))) {
        free(db);
        return rc;
    }
    if (sqlite3_open_v2(path, &db->sql,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                            SQLITE_OPEN_NOFOLLOW,
                        NULL) != SQLITE_OK)
        rc = dtx_fail(e, -EIO, "cannot open %s: %s", path,
                      db->sql ? sqlite3_errmsg(db->sql) : "out of memory");
    else
        rc = db_prepare(db, generation, e);
    if (rc) {
        nodes_db_close(db);
        return rc;
    }
    *out = db;
    return 0;
}

void nodes_db_close(struct nodes_db *db)
{
    if (!db)
        return;
    for (int i = 0; i < ST_COUNT; i++)
        sqlite3_finalize(db->st[i]);
    sqlite3_close(db->sql);
    free(db);
}

static int load_nodes(struct nodes_db *db, nodes_db_node_fn fn, void *arg, struct dtx_err *e)
{
    static const char sql[] = "SELECT id, generation, owner, is_dir, dev, ino, btime FROM node";
    sqlite3_stmt *st = NULL;
    int rc, step = SQLITE_DONE;

    if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, e, sql);
    for (rc = 0; rc == 0 && (step = sqlite3_step(st)) == SQLITE_ROW;) {
        struct node_info node = {
            .id = (uint64_t)sqlite3_column_int64(st, 0),
            .generation = (uint64_t)sqlite3_column_int64(st, 1),
            .owner = (enum node_owner)sqlite3_column_int(st, 2),
            .is_dir = sqlite3_column_int(st, 3) != 0,
            .key = {.dev = (uint64_t)sqlite3_column_int64(st, 4),
                    .ino = (uint64_t)sqlite3_column_int64(st, 5),
                    .btime = sqlite3_column_int64(st, 6)},
        };
        rc = fn(arg, &node);
    }
    sqlite3_finalize(st);
    if (rc)
        return dtx_fail(e, rc, "nodes.db: out of memory");
    return step == SQLITE_DONE ? 0 : db_fail(db, e, sql);
}

static int load_names(struct nodes_db *db, nodes_db_name_fn fn, void *arg, struct dtx_err *e)
{
    static const char sql[] = "SELECT parent, CAST(name AS TEXT), id FROM name";
    sqlite3_stmt *st = NULL;
    int rc, step = SQLITE_DONE;

    if (sqlite3_prepare_v2(db->sql, sql, -1, &st, NULL) != SQLITE_OK)
        return db_fail(db, e, sql);
    for (rc = 0; rc == 0 && (step = sqlite3_step(st)) == SQLITE_ROW;) {
        const char *name = (const char *)sqlite3_column_text(st, 1);
        rc = name
                 ? fn(arg, (uint64_t)sqlite3_column_int64(st, 0), name, (uint64_t)sqlite3_column_int64(st, 2))
                 : -ENOMEM;
    }
    sqlite3_finalize(st);
    if (rc)
        return dtx_fail(e, rc, "nodes.db: out of memory");
    return step == SQLITE_DONE ? 0 : db_fail(db, e, sql);
}

int nodes_db_load(struct nodes_db *db, nodes_db_node_fn node, nodes_db_name_fn name, void *arg,
                  struct dtx_err *e)
{
    int rc = load_nodes(db, node, arg, e);

    return rc ? rc : load_names(db, name, arg, e);
}

int nodes_db_reserve(struct nodes_db *db, uint64_t count, uint64_t *first, struct dtx_err *e)
{
    int64_t next;
    int rc = db_exec(db, "PRAGMA synchronous = FULL", e);

    if (!rc)
        rc = db_number(db, "SELECT value FROM meta WHERE key = 'next_id'", -1, &next, e);
    if (!rc && next <= NODE_ROOT)
        return dtx_fail(
            e, -EIO, "nodes.db is damaged: no next_id; move it away, and handles of NFS clients turn stale");
    if (!rc)
        rc = db_set(db, "next_id", next + (int64_t)count, e);
    if (!rc)
        *first = (uint64_t)next;
    return rc;
}

static void bind_change(sqlite3_stmt *st, const struct nodes_change *c)
{
    const struct node_info *n = &c->node;

    switch (c->op) {
    case NOP_PUT_NODE:
        sqlite3_bind_int64(st, 1, (sqlite3_int64)n->id);
        sqlite3_bind_int64(st, 2, (sqlite3_int64)n->generation);
        sqlite3_bind_int(st, 3, (int)n->owner);
        sqlite3_bind_int(st, 4, n->is_dir);
        sqlite3_bind_int64(st, 5, (sqlite3_int64)n->key.dev);
        sqlite3_bind_int64(st, 6, (sqlite3_int64)n->key.ino);
        sqlite3_bind_int64(st, 7, n->key.btime);
        break;
    case NOP_DROP_NODE:
        sqlite3_bind_int64(st, 1, (sqlite3_int64)n->id);
        break;
    case NOP_PUT_NAME:
        sqlite3_bind_int64(st, 3, (sqlite3_int64)n->id);
        /* fallthrough */
    case NOP_DROP_NAME:
        sqlite3_bind_int64(st, 1, (sqlite3_int64)c->parent);
        sqlite3_bind_blob(st, 2, c->name, (int)strlen(c->name), SQLITE_STATIC);
        break;
    }
}

static int apply_one(struct nodes_db *db, const struct nodes_change *c, struct dtx_err *e)
{
    static const enum statement of[] = {[NOP_PUT_NODE] = ST_PUT_NODE,
                                        [NOP_DROP_NODE] = ST_DROP_NODE,
                                        [NOP_PUT_NAME] = ST_PUT_NAME,
                                        [NOP_DROP_NAME] = ST_DROP_NAME};
    sqlite3_stmt *st = db->st[of[c->op]];
    int rc;

    bind_change(st, c);
    rc = sqlite3_step(st) == SQLITE_DONE ? 0 : db_fail(db, e, sqlite3_sql(st));
    sqlite3_reset(st);
    return rc;
}

int nodes_db_apply(struct nodes_db *db, const struct nodes_change *list, bool durable, struct dtx_err *e)
{
    int rc = db_exec(db, durable ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL", e);

    if (!rc)
        rc = db_exec(db, "BEGIN IMMEDIATE", e);
    if (rc)
        return rc;
    if (durable) /* an empty transaction would sync nothing of the batches before it */
        rc = db_exec(db, "UPDATE meta SET value = value WHERE key = 'generation'", e);
    for (; !rc && list; list = list->next)
        rc = apply_one(db, list, e);
    if (!rc)
        rc = db_exec(db, "COMMIT", e);
    if (rc)
        sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}
