/* The catalog's tables, one entry a schema version: entry i leads from version i to i+1.  Never edit an entry
 * that was released; add one. */
static const char *const migrations[] = {
    "CREATE TABLE object("
    " id INTEGER PRIMARY KEY, kind INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, reason TEXT,"
    " uid INTEGER NOT NULL, gid INTEGER NOT NULL, created INTEGER NOT NULL, changed INTEGER NOT NULL,"
    " size INTEGER NOT NULL, stamp TEXT NOT NULL, spec TEXT, report TEXT, UNIQUE(kind, name));"
    "CREATE TABLE experiment("
    " id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT, spec_reason TEXT,"
    " uid INTEGER NOT NULL, gid INTEGER NOT NULL, created INTEGER NOT NULL, started INTEGER NOT NULL,"
    " finished INTEGER NOT NULL, changed INTEGER NOT NULL, priority INTEGER NOT NULL, text TEXT, sha TEXT "
    "NOT NULL,"
    " stamp TEXT NOT NULL, spec TEXT, pins TEXT);"
    "CREATE TABLE job("
    " id INTEGER PRIMARY KEY, experiment INTEGER NOT NULL REFERENCES experiment(id) ON DELETE CASCADE,"
    " number INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, finetune TEXT NOT NULL, reason TEXT,"
    " fields TEXT NOT NULL, params TEXT, result TEXT, created INTEGER NOT NULL, started INTEGER NOT NULL,"
    " finished INTEGER NOT NULL, changed INTEGER NOT NULL, UNIQUE(experiment, name));"
    "CREATE TABLE event("
    " id INTEGER PRIMARY KEY, at INTEGER NOT NULL, machine TEXT NOT NULL, name TEXT NOT NULL, was TEXT NOT "
    "NULL,"
    " event TEXT NOT NULL, became TEXT NOT NULL, reason TEXT);"
    "CREATE INDEX event_name ON event(machine, name);",
    /* deleted experiments whose spec may still lie there: it is not a new one */
    "CREATE TABLE gone(name TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID;",
};
