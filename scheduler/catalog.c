/*
 * The catalog: what must survive, in SQLite (WAL, synchronous=FULL: a commit that returned is on the disk).
 * Only the loop thread uses it.  Rows are written whole from the in-memory objects; the states to write are
 * given, because the memory changes only after the commit.
 */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/catalog_schema.h"
#include "scheduler/internal.h"

enum { HISTORY = 100000 }; /* events that are kept: history is for people */

enum statement {
    Q_PUT_OBJECT,
    Q_DEL_OBJECT,
    Q_PUT_EXPERIMENT,
    Q_DEL_EXPERIMENT,
    Q_PUT_GONE,
    Q_DEL_GONE,
    Q_PUT_JOB,
    Q_EVENT,
    Q_FORGET,
    Q_BEGIN,
    Q_COMMIT,
    Q_ROLLBACK,
    Q_COUNT
};

static const char *const queries[Q_COUNT] = {
    [Q_PUT_OBJECT] =
        "INSERT INTO object(id,kind,name,state,reason,uid,gid,created,changed,size,stamp,spec,report)"
        " VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13)"
        " ON CONFLICT(id) DO UPDATE SET state=?4,reason=?5,uid=?6,gid=?7,created=?8,changed=?9,size=?10,"
        "stamp=?11,spec=?12,report=?13",
    [Q_DEL_OBJECT] = "DELETE FROM object WHERE id=?1",
    [Q_PUT_EXPERIMENT] =
        "INSERT INTO "
        "experiment(id,name,state,reason,spec_reason,uid,gid,created,started,finished,changed,priority,"
        "text,sha,stamp,spec,pins) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17)"
        " ON CONFLICT(id) DO UPDATE SET "
        "state=?3,reason=?4,spec_reason=?5,uid=?6,gid=?7,created=?8,started=?9,"
        "finished=?10,changed=?11,priority=?12,text=?13,sha=?14,stamp=?15,spec=?16,pins=?17",
    [Q_DEL_EXPERIMENT] = "DELETE FROM experiment WHERE id=?1",
    [Q_PUT_GONE] = "INSERT OR REPLACE INTO gone(name,stamp) VALUES(?1,?2)",
    [Q_DEL_GONE] = "DELETE FROM gone WHERE name=?1",
    [Q_PUT_JOB] =
        "INSERT INTO job(id,experiment,number,name,state,finetune,reason,fields,params,result,created,"
        "started,finished,changed) VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14)"
        " ON CONFLICT(id) DO UPDATE SET state=?5,finetune=?6,reason=?7,fields=?8,params=?9,result=?10,"
        "created=?11,started=?12,finished=?13,changed=?14",
    [Q_EVENT] = "INSERT INTO event(at,machine,name,was,event,became,reason) VALUES(?1,?2,?3,?4,?5,?6,?7)",
    [Q_FORGET] = "DELETE FROM event WHERE id <= ?1",
    [Q_BEGIN] = "BEGIN IMMEDIATE",
    [Q_COMMIT] = "COMMIT",
    [Q_ROLLBACK] = "ROLLBACK",
};

struct catalog {
    sqlite3 *db;
    sqlite3_stmt *q[Q_COUNT];
    int depth; /* of catalog_begin */
};

static int fail(struct catalog *c, struct dtx_err *e, const char *what)
{
    int code = sqlite3_errcode(c->db) & 0xff;
    int rc = code == SQLITE_FULL    ? -ENOSPC
             : code == SQLITE_NOMEM ? -ENOMEM
             : code == SQLITE_BUSY  ? -EBUSY
                                    : -EIO;

    return dtx_fail(e, rc, "the catalog (catalog.db) cannot be %s: %s%s", what, sqlite3_errmsg(c->db),
                    rc == -ENOSPC ? "; make room on the store's disk" : "");
}

static int run_sql(struct catalog *c, const char *sql, struct dtx_err *e)
{
    return sqlite3_exec(c->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(c, e, "written");
}

static int schema_version(struct catalog *c)
{
    sqlite3_stmt *st;
    int version = -1;

    if (sqlite3_prepare_v2(c->db, "PRAGMA user_version", -1, &st, NULL) != SQLITE_OK)
        return -1;
    if (sqlite3_step(st) == SQLITE_ROW)
        version = sqlite3_column_int(st, 0);
    sqlite3_finalize(st);
    return version;
}

static int migrate(struct catalog *c, struct dtx_err *e)
{
    int newest = (int)(sizeof(migrations) / sizeof(migrations[0])), version = schema_version(c), rc = 0;
    char sql[64];

    if (version < 0)
        return fail(c, e, "read");
    if (version > newest)
        return dtx_fail(e, -EINVAL,
                        "catalog.db has schema version %d, this dtxd knows %d: start the newer dtxd", version,
                        newest);
    for (; rc == 0 && version < newest; version++) {
        snprintf(sql, sizeof(sql), "PRAGMA user_version=%d; COMMIT", version + 1);
        rc = run_sql(c, "BEGIN IMMEDIATE", e);
        if (rc == 0)
            rc = run_sql(c, migrations[version], e);
        if (rc == 0)
            rc = run_sql(c, sql, e);
    }
    return rc;
}

int catalog_open(const char *path, struct catalog **out, struct dtx_err *e)
{
    struct catalog *c = calloc(1, sizeof(*c));
    int rc = 0;

    *out = NULL;
    if (!c)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if ((rc = fd_make_private(path, e))) {
        free(c);
        return rc;
    }
    if (sqlite3_open_v2(path, &c->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
                        NULL) != SQLITE_OK)
        rc = fail(c, e, "opened");
    if (rc == 0)
        rc = run_sql(c, "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON", e);
    if (rc == 0)
        rc = migrate(c, e);
    for (int i = 0; rc == 0 && i < Q_COUNT; i++)
        if (sqlite3_prepare_v3(c->db, queries[i], -1, SQLITE_PREPARE_PERSISTENT, &c->q[i], NULL) != SQLITE_OK)
            rc = fail(c, e, "read");
    if (rc)
        catalog_close(c);
    else
        *out = c;
    return rc;
}

void catalog_close(struct catalog *c)
{
    if (!c)
        return;
    for (int i = 0; i < Q_COUNT; i++)
        sqlite3_finalize(c->q[i]);
    sqlite3_close(c->db);
    free(c);
}

static int step(struct catalog *c, enum statement q, struct dtx_err *e)
{
    int rc = 0, got = sqlite3_step(c->q[q]);

    if (got != SQLITE_DONE && got != SQLITE_ROW)
        rc = fail(c, e, "written");
    sqlite3_reset(c->q[q]);
    sqlite3_clear_bindings(c->q[q]);
    return rc;
}

int catalog_begin(struct catalog *c, struct dtx_err *e)
{
    int rc = c->depth ? 0 : step(c, Q_BEGIN, e);

    if (rc == 0)
        c->depth++;
    return rc;
}

int catalog_commit(struct catalog *c, struct dtx_err *e)
{
    int rc;

    if (--c->depth)
        return 0;
    rc = step(c, Q_COMMIT, e);
    if (rc && !sqlite3_get_autocommit(c->db))
        step(c, Q_ROLLBACK, NULL);
    return rc;
}

/* Gives up the whole transaction, however deep. */
void catalog_rollback(struct catalog *c)
{
    c->depth = 0;
    if (!sqlite3_get_autocommit(c->db))
        step(c, Q_ROLLBACK, NULL);
}

static void bind_text(sqlite3_stmt *st, int i, const char *text)
{
    if (text)
        sqlite3_bind_text(st, i, text, -1, SQLITE_TRANSIENT);
}

static void bind_json(sqlite3_stmt *st, int i, const json_t *v)
{
    struct buf b = BUF_INIT;

    if (v) {
        json_dump_buf(v, &b);
        sqlite3_bind_text(st, i, b.p, (int)b.len, SQLITE_TRANSIENT);
    }
    buf_release(&b);
}

static void bind_id(sqlite3_stmt *st, int64_t id)
{
    if (id)
        sqlite3_bind_int64(st, 1, id);
}

static int put_row(struct catalog *c, enum statement q, int64_t *id, struct dtx_err *e)
{
    int rc = step(c, q, e);

    if (rc == 0 && *id == 0)
        *id = sqlite3_last_insert_rowid(c->db);
    return rc;
}

int catalog_put_object(struct catalog *c, struct object *o, enum state to, const char *reason,
                       struct dtx_err *e)
{
    sqlite3_stmt *st = c->q[Q_PUT_OBJECT];

    bind_id(st, o->id);
    sqlite3_bind_int(st, 2, o->kind);
    bind_text(st, 3, o->name);
    bind_text(st, 4, state_name(to));
    bind_text(st, 5, reason);
    sqlite3_bind_int64(st, 6, o->uid);
    sqlite3_bind_int64(st, 7, o->gid);
    sqlite3_bind_int64(st, 8, o->created);
    sqlite3_bind_int64(st, 9, clock_wall_ns());
    sqlite3_bind_int64(st, 10, o->size);
    bind_text(st, 11, o->stamp);
    bind_json(st, 12, o->spec);
    bind_json(st, 13, o->report);
    return put_row(c, Q_PUT_OBJECT, &o->id, e);
}

int catalog_del_object(struct catalog *c, const struct object *o, struct dtx_err *e)
{
    sqlite3_bind_int64(c->q[Q_DEL_OBJECT], 1, o->id);
    return step(c, Q_DEL_OBJECT, e);
}

int catalog_put_experiment(struct catalog *c, struct experiment *x, enum state to, const char *reason,
                           struct dtx_err *e)
{
    sqlite3_stmt *st = c->q[Q_PUT_EXPERIMENT];

    bind_id(st, x->id);
    bind_text(st, 2, x->name);
    bind_text(st, 3, state_name(to));
    bind_text(st, 4, reason);
    bind_text(st, 5, x->spec_reason);
    sqlite3_bind_int64(st, 6, x->uid);
    sqlite3_bind_int64(st, 7, x->gid);
    sqlite3_bind_int64(st, 8, x->created);
    sqlite3_bind_int64(st, 9, x->started);
    sqlite3_bind_int64(st, 10, x->finished);
    sqlite3_bind_int64(st, 11, clock_wall_ns());
    sqlite3_bind_int(st, 12, x->priority);
    bind_text(st, 13, x->text);
    bind_text(st, 14, x->sha);
    bind_text(st, 15, x->stamp);
    bind_json(st, 16, x->spec);
    bind_json(st, 17, x->pins);
    return put_row(c, Q_PUT_EXPERIMENT, &x->id, e);
}

int catalog_put_gone(struct catalog *c, const char *name, const char *stamp, struct dtx_err *e)
{
    bind_text(c->q[Q_PUT_GONE], 1, name);
    bind_text(c->q[Q_PUT_GONE], 2, stamp);
    return step(c, Q_PUT_GONE, e);
}

int catalog_del_gone(struct catalog *c, const char *name, struct dtx_err *e)
{
    bind_text(c->q[Q_DEL_GONE], 1, name);
    return step(c, Q_DEL_GONE, e);
}

int catalog_del_experiment(struct catalog *c, const struct experiment *x, struct dtx_err *e)
{
    int rc;

    sqlite3_bind_int64(c->q[Q_DEL_EXPERIMENT], 1, x->id);
    rc = step(c, Q_DEL_EXPERIMENT, e);
    if (rc)
        return rc;
    return catalog_put_gone(c, x->name, x->stamp, e);
}

/* What the catalog keeps of a job beside its columns. */
static json_t *job_fields(const struct job *j)
{
    json_t *f = json_pack("{ss ss ss ss ss sI sb sb sb sb si sI ss}", "model", j->model, "base", j->base,
                          "init", j->init, "dataset", j->dataset, "paramgroup", j->paramgroup, "seed",
                          (json_int_t)j->seed, "has_seed", j->has_seed, "stop", j->stop_asked, "has_run",
                          j->has_run, "suspect", j->suspect, "deaths", j->deaths_alone, "death_step",
                          (json_int_t)j->death_step, "score_key", j->score_key);

    if (f && j->overrides)
        json_object_set(f, "overrides", j->overrides);
    if (f && j->data)
        json_object_set(f, "data", j->data);
    if (f && j->cached)
        json_object_set_new(f, "cached", json_true());
    return f;
}

int catalog_put_job(struct catalog *c, struct job *j, enum state to, enum state finetune, const char *reason,
                    struct dtx_err *e)
{
    sqlite3_stmt *st = c->q[Q_PUT_JOB];
    json_t *fields = job_fields(j);

    if (!fields)
        return dtx_fail(e, -ENOMEM, "out of memory, or a name of job %s is not UTF-8", j->name);
    bind_id(st, j->id);
    sqlite3_bind_int64(st, 2, j->exp->id);
    sqlite3_bind_int(st, 3, j->number);
    bind_text(st, 4, j->name);
    bind_text(st, 5, state_name(to));
    bind_text(st, 6, state_name(finetune));
    bind_text(st, 7, reason);
    bind_json(st, 8, fields);
    bind_json(st, 9, j->params);
    bind_json(st, 10, j->result);
    sqlite3_bind_int64(st, 11, j->created);
    sqlite3_bind_int64(st, 12, j->started);
    sqlite3_bind_int64(st, 13, j->finished);
    sqlite3_bind_int64(st, 14, clock_wall_ns());
    json_decref(fields);
    return put_row(c, Q_PUT_JOB, &j->id, e);
}

/* Now and then what is too old goes, so that it does not grow while dtxd runs. */
static int forget_history(struct catalog *c, int64_t newest, struct dtx_err *e)
{
    if (newest % 1000)
        return 0;
    sqlite3_bind_int64(c->q[Q_FORGET], 1, newest - HISTORY);
    return step(c, Q_FORGET, e);
}

int catalog_event(struct catalog *c, const char *machine, const char *name, enum state from, enum event ev,
                  enum state to, const char *reason, struct dtx_err *e)
{
    sqlite3_stmt *st = c->q[Q_EVENT];
    int rc;

    sqlite3_bind_int64(st, 1, clock_wall_ns());
    bind_text(st, 2, machine);
    bind_text(st, 3, name);
    bind_text(st, 4, state_name(from));
    bind_text(st, 5, event_name(ev));
    bind_text(st, 6, state_name(to));
    bind_text(st, 7, reason);
    rc = step(c, Q_EVENT, e);
    return rc ? rc : forget_history(c, sqlite3_last_insert_rowid(c->db), e);
}

/* ---- loading ---- */

static void column_copy(sqlite3_stmt *st, int i, char *out, size_t n)
{
    const char *t = (const char *)sqlite3_column_text(st, i);

    snprintf(out, n, "%s", t ? t : "");
}

static char *column_dup(sqlite3_stmt *st, int i)
{
    const char *t = (const char *)sqlite3_column_text(st, i);

    return t ? strdup(t) : NULL;
}

static json_t *column_json(sqlite3_stmt *st, int i)
{
    const char *t = (const char *)sqlite3_column_text(st, i);

    return t ? json_loads(t, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL) : NULL;
}

static enum state column_state(sqlite3_stmt *st, int i)
{
    int state = state_by_name((const char *)sqlite3_column_text(st, i));

    return state < 0 ? ST_NONE : (enum state)state;
}

static int load_object(struct sched *s, sqlite3_stmt *st)
{
    char name[2 * NAME_CAP];
    struct object *o;

    column_copy(st, 2, name, sizeof(name));
    o = object_get(s, (enum object_kind)sqlite3_column_int(st, 1), name, NULL);
    if (!o)
        return -ENOMEM;
    o->id = sqlite3_column_int64(st, 0);
    o->state = column_state(st, 3);
    o->reason = column_dup(st, 4);
    o->uid = (uid_t)sqlite3_column_int64(st, 5);
    o->gid = (gid_t)sqlite3_column_int64(st, 6);
    o->created = sqlite3_column_int64(st, 7);
    o->changed = sqlite3_column_int64(st, 8);
    o->size = sqlite3_column_int64(st, 9);
    column_copy(st, 10, o->stamp, sizeof(o->stamp));
    o->spec = column_json(st, 11);
    o->report = column_json(st, 12);
    o->closed = o->kind <= OBJ_BASE || o->kind == OBJ_COMPARE || o->kind == OBJ_ASK
                    ? 077
                    : 0; /* until the scan has looked */
    return 0;
}

static int load_experiment(struct sched *s, sqlite3_stmt *st)
{
    char name[NAME_CAP];
    struct experiment *x;

    column_copy(st, 1, name, sizeof(name));
    x = experiment_new(s, name);
    if (!x)
        return -ENOMEM;
    x->id = sqlite3_column_int64(st, 0);
    x->state = column_state(st, 2);
    x->reason = column_dup(st, 3);
    x->spec_reason = column_dup(st, 4);
    x->uid = (uid_t)sqlite3_column_int64(st, 5);
    x->gid = (gid_t)sqlite3_column_int64(st, 6);
    x->created = sqlite3_column_int64(st, 7);
    x->started = sqlite3_column_int64(st, 8);
    x->finished = sqlite3_column_int64(st, 9);
    x->changed = sqlite3_column_int64(st, 10);
    x->priority = sqlite3_column_int(st, 11);
    x->text = column_dup(st, 12);
    column_copy(st, 13, x->sha, sizeof(x->sha));
    column_copy(st, 14, x->stamp, sizeof(x->stamp));
    x->spec = column_json(st, 15);
    x->pins = column_json(st, 16);
    return 0;
}

static int load_gone(struct sched *s, sqlite3_stmt *st)
{
    char name[NAME_CAP], stamp[96];

    column_copy(st, 0, name, sizeof(name));
    column_copy(st, 1, stamp, sizeof(stamp));
    return gone_note(s, name, stamp);
}

static void load_job_fields(struct job *j, const json_t *f)
{
    snprintf(j->model, sizeof(j->model), "%s", json_str(f, "model", ""));
    snprintf(j->base, sizeof(j->base), "%s", json_str(f, "base", ""));
    snprintf(j->init, sizeof(j->init), "%s", json_str(f, "init", ""));
    snprintf(j->dataset, sizeof(j->dataset), "%s", json_str(f, "dataset", ""));
    snprintf(j->paramgroup, sizeof(j->paramgroup), "%s", json_str(f, "paramgroup", ""));
    snprintf(j->score_key, sizeof(j->score_key), "%s", json_str(f, "score_key", ""));
    j->seed = json_int(f, "seed", 0);
    j->has_seed = json_flag(f, "has_seed", 0);
    j->stop_asked = json_flag(f, "stop", 0);
    j->has_run = json_flag(f, "has_run", 0);
    j->suspect = json_flag(f, "suspect", 0);
    j->deaths_alone = (int)json_int(f, "deaths", 0);
    j->death_step = json_int(f, "death_step", 0);
    j->overrides = json_incref(json_object_get(f, "overrides"));
    j->data = json_incref(json_object_get(f, "data"));
    j->cached = json_flag(f, "cached", 0);
}

static int by_id(const void *key, const void *member)
{
    const int64_t *id = key, other = (*(struct experiment *const *)member)->id;

    return *id < other ? -1 : *id > other;
}

/* They were loaded in the order of their ids. */
static struct experiment *experiment_of(struct sched *s, int64_t id)
{
    struct experiment **x = s->nexps ? bsearch(&id, s->exps, (size_t)s->nexps, sizeof(*x), by_id) : NULL;

    return x ? *x : NULL;
}

static int load_job(struct sched *s, sqlite3_stmt *st)
{
    struct experiment *x = experiment_of(s, sqlite3_column_int64(st, 1));
    json_t *fields = column_json(st, 7);
    struct job *j;

    j = x ? job_new(x, sqlite3_column_int(st, 2)) : NULL;
    if (!j) {
        json_decref(fields);
        return x ? -ENOMEM : 0;
    }
    j->id = sqlite3_column_int64(st, 0);
    column_copy(st, 3, j->name, sizeof(j->name));
    j->state = column_state(st, 4);
    j->finetune = column_state(st, 5);
    j->reason = column_dup(st, 6);
    load_job_fields(j, fields);
    json_decref(fields);
    j->params = column_json(st, 8);
    j->result = column_json(st, 9);
    j->created = sqlite3_column_int64(st, 10);
    j->started = sqlite3_column_int64(st, 11);
    j->finished = sqlite3_column_int64(st, 12);
    j->changed = sqlite3_column_int64(st, 13);
    return 0;
}

static int load_rows(struct catalog *c, struct sched *s, const char *sql,
                     int (*row)(struct sched *, sqlite3_stmt *), struct dtx_err *e)
{
    sqlite3_stmt *st;
    int rc = 0, got;

    if (sqlite3_prepare_v2(c->db, sql, -1, &st, NULL) != SQLITE_OK)
        return fail(c, e, "read");
    while (rc == 0 && (got = sqlite3_step(st)) != SQLITE_DONE)
        if (got != SQLITE_ROW)
            rc = fail(c, e, "read");
        else if (row(s, st))
            rc = dtx_fail(e, -ENOMEM, "out of memory loading the catalog");
    sqlite3_finalize(st);
    return rc;
}

int catalog_load(struct catalog *c, struct sched *s, struct dtx_err *e)
{
    int rc = load_rows(
        c, s, "SELECT id,kind,name,state,reason,uid,gid,created,changed,size,stamp,spec,report FROM object",
        load_object, e);

    if (rc == 0)
        rc = load_rows(
            c, s,
            "SELECT id,name,state,reason,spec_reason,uid,gid,created,started,finished,changed,priority,"
            "text,sha,stamp,spec,pins FROM experiment ORDER BY id",
            load_experiment, e);
    if (rc == 0)
        rc = load_rows(
            c, s,
            "SELECT id,experiment,number,name,state,finetune,reason,fields,params,result,created,started,"
            "finished,changed FROM job ORDER BY experiment,number,id",
            load_job, e);
    if (rc == 0)
        rc = load_rows(c, s, "SELECT name,stamp FROM gone", load_gone, e);
    return rc;
}
