/*
 * The tables of spec keys, and what walks them.  Only for mnt-layout/ itself.
 *
 * One row says everything about a key: spec_check.c validates by it, spec_text.c makes the JSON Schema, the
 * template and its help from it.  Values (defaults, examples) are JSON texts, so that they read as a user
 * would write them.
 */
#ifndef DTX_SPEC_KEYS_H
#define DTX_SPEC_KEYS_H

#include <jansson.h>
#include <stdbool.h>

#include "mnt-layout/spec.h"

enum spec_type {
    ST_STRING, /* min..max bytes */
    ST_NAME,   /* of an object, or a column: name_check() */
    ST_MODEL,  /* NAME of a base model, or "tuned/NAME" */
    ST_WORD,   /* one of words */
    ST_INT,    /* min..max; 3.0 is taken as 3 */
    ST_NUMBER, /* min..max */
    ST_BOOL,
    ST_INTERVAL, /* steps, "10%" or "epoch" */
    ST_LIST,     /* min..max items like sub[0] */
    ST_OBJECT,   /* with the keys of sub */
    ST_MAP,      /* at most max keys (out of words, if there are words), values like sub[0] */
    ST_FREE,     /* an object that somebody else checks: a plugin's parameters */
    ST_SIZE,     /* min..max bytes: a number, or "50 GiB"; normalized to the number */
    ST_SIZES,    /* a size, or an object of sizes by name: at most max bytes */
    ST_USER,     /* of this machine: a name, or a number from min to max */
};

enum {
    SK_REQUIRED = 1,
    SK_NULL = 2,         /* null is allowed, and is the default where there is no other */
    SK_ABOVE = 4,        /* greater than min, not equal */
    SK_BELOW = 8,        /* less than max, not equal */
    SK_UNIQUE = 16,      /* a list without duplicates */
    SK_NO_TEMPLATE = 32, /* left out of the template */
    SK_PARTIAL = 64      /* an object whose missing keys get no defaults */
};

struct spec_key {
    const char *name; /* NULL ends a table */
    enum spec_type type;
    unsigned flags;
    double min, max;
    const char *const *words;   /* NULL-terminated */
    const char *const *not_yet; /* words that are known, and refused because they are not built */
    const char *value;          /* default */
    const char *example;        /* for the template and messages, where the default shows little */
    const struct spec_key *sub;
    const char *help; /* one line */
};

enum { SPEC_MAX_ALTERNATIVES = 2, SPEC_MAX_TOGETHER = 4 };

struct spec_table {
    const char *name;        /* "paramgroup" */
    const char *title;       /* one line */
    const char *schema_path; /* from where such specs are dropped to its schema */
    const struct spec_key *keys;
    /* Sets of keys of which one whole set must be given (NULL: no such rule); with either_or not both. */
    const char *alternatives[SPEC_MAX_ALTERNATIVES][SPEC_MAX_TOGETHER];
    bool either_or;
};

extern const struct spec_table spec_tables[SPEC_TABLES];

const struct spec_key *spec_key_find(const struct spec_key *keys, const char *name);
/* "a number > 0 and <= 10" */
void spec_expected(const struct spec_key *key, struct buf *out);

/* Where the check is: the text for line and column, and the path of the value being looked at. */
struct spec_ctx {
    const char *file; /* for messages */
    const char *text; /* NULL: no lines and columns */
    size_t n;
    char path[512];   /* "jobs[2].overrides" */
    bool any_map_key; /* a plugin's own metrics: words of ST_MAP keys do not bind */
    struct dtx_err *e;
};

/* Set the error "file:line:column: MESSAGE" for the value (or, with at_key, the key) at c->path.  Returns
 * -EINVAL. */
int spec_fail(struct spec_ctx *c, bool at_key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* key "learning_rate": found "fast" (string); expected a number > 0 and <= 10; e.g. 2e-4; HINT (NULL: none)
 */
int spec_fail_found(struct spec_ctx *c, const struct spec_key *key, const json_t *v, const char *hint);
int spec_fail_missing(struct spec_ctx *c, const struct spec_key *key);
int spec_unknown_key(struct spec_ctx *c, const char *key, const char *const *known, int n);
void spec_add_found(struct buf *out, const json_t *v);
/* Go to a member or item; returns what spec_leave needs to come back. */
size_t spec_enter_key(struct spec_ctx *c, const char *key);
size_t spec_enter_item(struct spec_ctx *c, size_t index);
void spec_leave(struct spec_ctx *c, size_t mark);

/* Check a value; *out is a new, normalized value, NULL on failure. */
int spec_check_value(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out);
/* Check an object's members; with `defaults` the missing ones get theirs, without they stay away.
 * *out is NULL on failure. */
int spec_check_object(struct spec_ctx *c, const struct spec_key *keys, const json_t *v, bool defaults,
                      json_t **out);
/* Is it a key that every object may have and that says nothing: "$schema", "$comment"? */
bool spec_is_comment(const char *key);

/* DataTunerX's Hyperparameter document. */
bool datatunerx_is(const json_t *doc);
int datatunerx_translate(struct spec_ctx *c, const json_t *doc, json_t **out);
json_t *datatunerx_schema(void); /* NULL: out of memory */

json_t *spec_key_schema(const struct spec_key *key);

#endif
