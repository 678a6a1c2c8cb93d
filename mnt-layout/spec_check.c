/* Checking a document against a table of keys (spec_keys.h), with errors that say where, what was found, and
 * what was expected. */
#include "mnt-layout/spec_keys.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

enum { MAX_KNOWN = 64 };

/* ---- single values ---- */

static int check_string(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    size_t n = json_string_length(v);

    if (!json_is_string(v) || (double)n < key->min || (double)n > key->max)
        return spec_fail_found(c, key, v, NULL);
    if (strlen(json_string_value(v)) != n)
        return spec_fail_found(c, key, v, "it holds a NUL character: remove \\u0000");
    *out = json_stringn(json_string_value(v), n);
    return 0;
}

/* A name, or for models also "tuned/NAME" and "base/NAME"; NFC, so that equal names are equal bytes. */
static int check_name(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    struct dtx_err why;
    const char *name = json_string_value(v), *prefix = "";
    char nfc[256];

    if (!name || strlen(name) != json_string_length(v))
        return spec_fail_found(c, key, v, NULL);
    if (key->type == ST_MODEL && strncmp(name, "tuned/", 6) == 0) {
        prefix = "tuned/";
        name += 6;
    } else if (key->type == ST_MODEL && strncmp(name, "base/", 5) == 0) {
        name += 5; /* the same as the name alone */
    }
    if (name_check(name, &why) || name_nfc(name, nfc, sizeof(nfc)))
        return spec_fail_found(c, key, v, why.msg);
    *out = json_sprintf("%s%s", prefix, nfc);
    return 0;
}

static bool has_word(const char *const *words, const char *word)
{
    for (int i = 0; words && words[i]; i++)
        if (strcmp(words[i], word) == 0)
            return true;
    return false;
}

static int count_words(const char *const *words)
{
    int n = 0;

    while (words && words[n])
        n++;
    return n;
}

static int check_word(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    const char *word = json_string_value(v);
    char hint[96];
    int near;

    if (word && strlen(word) == json_string_length(v) && has_word(key->words, word)) {
        *out = json_string(word);
        return 0;
    }
    if (word && has_word(key->not_yet, word))
        return spec_fail_found(c, key, v, "that is known, but not built into this version of DTX yet");
    near = word ? text_nearest(word, key->words, count_words(key->words)) : -1;
    if (near >= 0)
        snprintf(hint, sizeof(hint), "did you mean \"%s\"?", key->words[near]);
    return spec_fail_found(c, key, v, near >= 0 ? hint : NULL);
}

static bool in_range(const struct spec_key *key, double x)
{
    if (!isfinite(x) || x < key->min || x > key->max)
        return false;
    return !(key->flags & SK_ABOVE && x == key->min) && !(key->flags & SK_BELOW && x == key->max);
}

static const char *number_hint(const json_t *v)
{
    const char *s = json_string_value(v);
    char *end;

    if (!s || !*s)
        return NULL;
    strtod(s, &end);
    return *end == '\0' ? "write it without quotes" : NULL;
}

static int check_int(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    double x = json_number_value(v);

    if (!json_is_number(v) || !in_range(key, x))
        return spec_fail_found(c, key, v, number_hint(v));
    if (json_is_real(v) && x != floor(x))
        return spec_fail_found(c, key, v, "it must be a whole number");
    *out = json_integer(json_is_integer(v) ? json_integer_value(v) : (json_int_t)x);
    return 0;
}

static int check_number(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    if (!json_is_number(v) || !in_range(key, json_number_value(v)))
        return spec_fail_found(c, key, v, number_hint(v));
    *out = json_real(json_number_value(v));
    return 0;
}

static int check_bool(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    if (!json_is_boolean(v))
        return spec_fail_found(c, key, v, NULL);
    *out = json_boolean(json_is_true(v));
    return 0;
}

/* "0.1%" to "100%", digits and one point only */
static bool is_percent(const char *s)
{
    size_t digits = strspn(s, "0123456789"), more;
    double x;

    if (digits == 0 || digits > 3)
        return false;
    more = s[digits] == '.' ? 1 + strspn(s + digits + 1, "0123456789") : 0;
    if (more == 1 || more > 6 || strcmp(s + digits + more, "%") != 0 || sscanf(s, "%lf", &x) != 1)
        return false;
    return x > 0 && x <= 100;
}

static int check_interval(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    const char *s = json_string_value(v);

    if (!s)
        return check_int(c, key, v, out);
    if (strlen(s) != json_string_length(v) || (strcmp(s, "epoch") != 0 && !is_percent(s)))
        return spec_fail_found(c, key, v, NULL);
    *out = json_string(s);
    return 0;
}

static int check_size(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    const char *s = json_string_value(v);
    int64_t bytes = -1;

    if (s && strlen(s) == json_string_length(v))
        bytes = text_parse_size(s);
    else if (json_is_integer(v))
        bytes = json_integer_value(v);
    if (bytes < 0 || (double)bytes < key->min || (double)bytes > key->max)
        return spec_fail_found(c, key, v, NULL);
    *out = json_integer(bytes);
    return 0;
}

/* The same for all, or an object of sizes. */
static int check_sizes(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    const char *name;
    json_t *size, *one = NULL;
    int rc = 0;

    if (!json_is_object(v))
        return check_size(c, key, v, out);
    *out = json_object();
    json_object_foreach((json_t *)v, name, size)
    {
        size_t mark = spec_enter_key(c, name);
        rc = check_size(c, key, size, &one);
        spec_leave(c, mark);
        if (rc)
            return rc;
        json_object_set_new(*out, name, one);
    }
    return 0;
}

static int check_user(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    if (json_is_integer(v) && in_range(key, json_number_value(v)))
        *out = json_integer(json_integer_value(v));
    else if (json_string_length(v) > 0 && strlen(json_string_value(v)) == json_string_length(v))
        *out = json_string(json_string_value(v));
    else
        return spec_fail_found(c, key, v, NULL);
    return 0;
}

/* ---- lists and objects ---- */

static int check_unique(struct spec_ctx *c, const json_t *list, size_t i)
{
    struct buf b = BUF_INIT;
    int rc = 0;

    for (size_t k = 0; k < i && rc == 0; k++) {
        if (!json_equal(json_array_get(list, k), json_array_get(list, i)))
            continue;
        spec_add_found(&b, json_array_get(list, i));
        rc = spec_fail(c, false, "key \"%s\": %s is there twice (also item [%zu]); remove one", c->path,
                       b.p ? b.p : "", k);
    }
    buf_release(&b);
    return rc;
}

static int check_list(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    size_t n = json_array_size(v);
    int rc = 0;

    if (!json_is_array(v) || (double)n < key->min || (double)n > key->max)
        return spec_fail_found(c, key, v, json_is_string(v) ? "write it in brackets, as a list" : NULL);
    *out = json_array();
    for (size_t i = 0; i < n && rc == 0; i++) {
        size_t mark = spec_enter_item(c, i);
        json_t *item = NULL;
        rc = spec_check_value(c, &key->sub[0], json_array_get(v, i), &item);
        if (rc == 0 && json_array_append_new(*out, item))
            rc = spec_fail(c, false, "out of memory");
        if (rc == 0 && key->flags & SK_UNIQUE)
            rc = check_unique(c, *out, i);
        spec_leave(c, mark);
    }
    return rc;
}

static int check_map(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    const char *name;
    struct dtx_err why;
    json_t *value;
    int rc = 0;

    if (!json_is_object(v) || (double)json_object_size(v) > key->max)
        return spec_fail_found(c, key, v, NULL);
    *out = json_object();
    json_object_foreach((json_t *)v, name, value)
    {
        json_t *checked = NULL;
        size_t mark;
        if (spec_is_comment(name))
            continue;
        if (!c->any_map_key && key->words && !has_word(key->words, name))
            return spec_unknown_key(c, name, key->words, count_words(key->words));
        mark = spec_enter_key(c, name);
        rc = name_check(name, &why) ? spec_fail(c, true, "%s", why.msg)
                                    : spec_check_value(c, &key->sub[0], value, &checked);
        spec_leave(c, mark);
        if (rc)
            return rc;
        if (json_object_set_new(*out, name, checked))
            return spec_fail(c, false, "out of memory");
    }
    return 0;
}

static int check_free(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    if (!json_is_object(v))
        return spec_fail_found(c, key, v, NULL);
    *out = json_deep_copy(v);
    return 0;
}

static int check_typed(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    switch (key->type) {
    case ST_STRING:
        return check_string(c, key, v, out);
    case ST_NAME:
    case ST_MODEL:
        return check_name(c, key, v, out);
    case ST_WORD:
        return check_word(c, key, v, out);
    case ST_INT:
        return check_int(c, key, v, out);
    case ST_NUMBER:
        return check_number(c, key, v, out);
    case ST_BOOL:
        return check_bool(c, key, v, out);
    case ST_INTERVAL:
        return check_interval(c, key, v, out);
    case ST_LIST:
        return check_list(c, key, v, out);
    case ST_OBJECT:
        if (!json_is_object(v))
            return spec_fail_found(c, key, v, NULL);
        return spec_check_object(c, key->sub, v, !(key->flags & SK_PARTIAL), out);
    case ST_MAP:
        return check_map(c, key, v, out);
    case ST_FREE:
        return check_free(c, key, v, out);
    case ST_SIZE:
        return check_size(c, key, v, out);
    case ST_SIZES:
        return check_sizes(c, key, v, out);
    case ST_USER:
        return check_user(c, key, v, out);
    }
    return spec_fail(c, false, "key \"%s\": no such type", c->path);
}

int spec_check_value(struct spec_ctx *c, const struct spec_key *key, const json_t *v, json_t **out)
{
    int rc;

    *out = NULL;
    if (json_is_null(v) && key->flags & SK_NULL) {
        *out = json_null();
        return 0;
    }
    rc = check_typed(c, key, v, out);
    if (rc == 0 && !*out)
        rc = spec_fail(c, false, "out of memory");
    if (rc) {
        json_decref(*out);
        *out = NULL;
    }
    return rc;
}

const struct spec_key *spec_key_find(const struct spec_key *keys, const char *name)
{
    for (; keys->name; keys++)
        if (strcmp(keys->name, name) == 0)
            return keys;
    return NULL;
}

bool spec_is_comment(const char *key)
{
    return strcmp(key, "$schema") == 0 || strcmp(key, "$comment") == 0;
}

static int check_members(struct spec_ctx *c, const struct spec_key *keys, const json_t *v, json_t *out)
{
    const char *known[MAX_KNOWN], *name;
    json_t *value, *checked;
    int n = 0, rc;

    for (const struct spec_key *k = keys; k->name && n < MAX_KNOWN; k++)
        known[n++] = k->name;
    json_object_foreach((json_t *)v, name, value)
    {
        const struct spec_key *key = spec_key_find(keys, name);
        size_t mark;
        if (spec_is_comment(name))
            continue;
        if (!key)
            return spec_unknown_key(c, name, known, n);
        mark = spec_enter_key(c, name);
        rc = spec_check_value(c, key, value, &checked);
        spec_leave(c, mark);
        if (rc)
            return rc;
        if (json_object_set_new(out, name, checked))
            return spec_fail(c, false, "out of memory");
    }
    return 0;
}

/* A default is a value like any other, except that an empty list may stand for "not given". */
static int make_default(struct spec_ctx *c, const struct spec_key *key, json_t **out)
{
    json_t *v = json_loads(key->value ? key->value : "null", JSON_DECODE_ANY, NULL);
    size_t mark;
    int rc;

    *out = v;
    if (!v)
        return spec_fail(c, false, "out of memory");
    if (json_is_null(v) || (json_is_array(v) && json_array_size(v) == 0))
        return 0;
    mark = spec_enter_key(c, key->name);
    rc = spec_check_value(c, key, v, out);
    spec_leave(c, mark);
    json_decref(v);
    return rc;
}

/* Give the missing keys their defaults. */
static int fill_defaults(struct spec_ctx *c, const struct spec_key *keys, json_t *doc)
{
    for (; keys->name; keys++) {
        json_t *v;
        int rc;
        if (json_object_get(doc, keys->name))
            continue;
        if (keys->flags & SK_REQUIRED)
            return spec_fail_missing(c, keys);
        rc = make_default(c, keys, &v);
        if (rc)
            return rc;
        if (json_object_set_new(doc, keys->name, v))
            return spec_fail(c, false, "out of memory");
    }
    return 0;
}

/* The members in the order of the table: a normalized document reads like its template. */
static json_t *in_order(const struct spec_key *keys, const json_t *v)
{
    json_t *o = json_object();

    for (; o && keys->name; keys++) {
        json_t *member = json_object_get(v, keys->name);
        if (member && json_object_set(o, keys->name, member)) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

int spec_check_object(struct spec_ctx *c, const struct spec_key *keys, const json_t *v, bool defaults,
                      json_t **out)
{
    json_t *members = json_object();
    int rc;

    *out = NULL;
    if (!members)
        return spec_fail(c, false, "out of memory");
    rc = check_members(c, keys, v, members);
    if (rc == 0 && defaults)
        rc = fill_defaults(c, keys, members);
    if (rc == 0 && !(*out = in_order(keys, members)))
        rc = spec_fail(c, false, "out of memory");
    json_decref(members);
    return rc;
}
