/* JSON Schema (draft 2020-12) and template of each kind, made from the tables. */
#include <stdlib.h>
#include <string.h>

#include "mnt-layout/spec_keys.h"
#include "scheduler/base/json.h"

/* A failed allocation leaves a value out of the object; spec_schema checks what it can at the end. */
static void set(json_t *o, const char *key, json_t *v)
{
    json_object_set_new(o, key, v);
}

static json_t *words_schema(const char *const *words)
{
    json_t *list = json_array();

    for (int i = 0; words[i]; i++)
        json_array_append_new(list, json_string(words[i]));
    return list;
}

/* 3.0 as 3 */
static json_t *number_json(double x)
{
    return x == (double)(long long)x ? json_integer((long long)x) : json_real(x);
}

static json_t *range_schema(const struct spec_key *key)
{
    json_t *o = json_pack("{s:s}", "type", key->type == ST_INT ? "integer" : "number");

    set(o, key->flags & SK_ABOVE ? "exclusiveMinimum" : "minimum", number_json(key->min));
    set(o, key->flags & SK_BELOW ? "exclusiveMaximum" : "maximum", number_json(key->max));
    return o;
}

static json_t *object_schema(const struct spec_key *keys, bool partial)
{
    json_t *o = json_pack("{s:s}", "type", "object"), *properties = json_object(), *required = json_array();

    set(properties, "$schema", json_pack("{s:s}", "type", "string"));
    set(properties, "$comment", json_object());
    for (; keys->name; keys++) {
        set(properties, keys->name, spec_key_schema(keys));
        if (keys->flags & SK_REQUIRED && !partial)
            json_array_append_new(required, json_string(keys->name));
    }
    set(o, "properties", properties);
    if (json_array_size(required))
        set(o, "required", required);
    else
        json_decref(required);
    set(o, "additionalProperties", json_false());
    return o;
}

static json_t *list_schema(const struct spec_key *key)
{
    json_t *o = json_pack("{s:s,s:o}", "type", "array", "items", spec_key_schema(&key->sub[0]));

    set(o, "minItems", number_json(key->min));
    set(o, "maxItems", number_json(key->max));
    if (key->flags & SK_UNIQUE)
        set(o, "uniqueItems", json_true());
    return o;
}

static json_t *map_schema(const struct spec_key *key)
{
    json_t *o =
        json_pack("{s:s,s:o}", "type", "object", "additionalProperties", spec_key_schema(&key->sub[0]));
    json_t *properties = json_object();

    for (int i = 0; key->words && key->words[i]; i++)
        set(properties, key->words[i], spec_key_schema(&key->sub[0]));
    set(o, "properties", properties);
    set(o, "maxProperties", number_json(key->max));
    return o;
}

static json_t *typed_schema(const struct spec_key *key)
{
    switch (key->type) {
    case ST_STRING:
        return json_pack("{s:s,s:o,s:o}", "type", "string", "minLength", number_json(key->min > 0),
                         "maxLength", number_json(key->max));
    case ST_NAME:
        return json_pack("{s:s,s:s,s:i}", "type", "string", "pattern", "^[^./][^/]*$", "maxLength", 63);
    case ST_MODEL:
        return json_pack("{s:s,s:s,s:i}", "type", "string", "pattern", "^((base|tuned)/)?[^./][^/]*$",
                         "maxLength", 69);
    case ST_WORD:
        return json_pack("{s:o}", "enum", words_schema(key->words));
    case ST_INT:
    case ST_NUMBER:
        return range_schema(key);
    case ST_BOOL:
        return json_pack("{s:s}", "type", "boolean");
    case ST_INTERVAL:
        return json_pack("{s:[{s:s,s:i},{s:s,s:s}]}", "anyOf", "type", "integer", "minimum", 0, "type",
                         "string", "pattern", "^([0-9]+([.][0-9]+)?%|epoch)$");
    case ST_LIST:
        return list_schema(key);
    case ST_OBJECT:
        return object_schema(key->sub, key->flags & SK_PARTIAL);
    case ST_MAP:
        return map_schema(key);
    case ST_FREE:
        return json_pack("{s:s}", "type", "object");
    case ST_SIZE:
        return json_pack("{s:[{s:s,s:i},{s:s,s:s}]}", "anyOf", "type", "integer", "minimum", 0, "type",
                         "string", "pattern", "^[0-9]+([.][0-9]+)? ?([KMGTPkmgtp]?B?|[KMGTPkmgtp]iB)$");
    case ST_SIZES:
        return json_object(); /* checked by spec_check.c alone: no spec in the mount has it */
    case ST_USER:
        return json_pack("{s:[{s:s,s:i},{s:s,s:i}]}", "anyOf", "type", "integer", "minimum", 0, "type",
                         "string", "minLength", 1);
    }
    return NULL;
}

json_t *spec_key_schema(const struct spec_key *key)
{
    json_t *o = typed_schema(key);

    if (key->flags & SK_NULL)
        o = json_pack("{s:[o,{s:s}]}", "anyOf", o, "type", "null");
    if (key->help)
        set(o, "description", json_string(key->help));
    if (!(key->flags & SK_REQUIRED) && (key->value || key->flags & SK_NULL))
        set(o, "default", json_loads(key->value ? key->value : "null", JSON_DECODE_ANY, NULL));
    return o;
}

static json_t *alternatives_schema(const struct spec_table *t)
{
    json_t *list = json_array();

    for (int i = 0; i < SPEC_MAX_ALTERNATIVES; i++) {
        json_t *required = json_array();
        for (int k = 0; k < SPEC_MAX_TOGETHER && t->alternatives[i][k]; k++)
            json_array_append_new(required, json_string(t->alternatives[i][k]));
        json_array_append_new(list, json_pack("{s:o}", "required", required));
    }
    return list;
}

int spec_schema(enum spec_kind kind, struct buf *out)
{
    const struct spec_table *t = &spec_tables[kind];
    json_t *o = object_schema(t->keys, false);
    char *text;

    set(o, "title", json_sprintf("DTX %s: %s", t->name, t->title));
    if (t->alternatives[0][0])
        set(o, "anyOf", alternatives_schema(t));
    if (kind == SPEC_PARAMGROUP)
        o = json_pack("{s:[o,o]}", "anyOf", o, datatunerx_schema());
    set(o, "$schema", json_string("https://json-schema.org/draft/2020-12/schema"));
    text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(o);
    if (!text)
        return -ENOMEM;
    buf_adds(out, text);
    buf_addc(out, '\n');
    free(text);
    return out->failed ? -ENOMEM : 0;
}

/* ---- templates ---- */

static void add_comment_line(struct buf *out, const struct spec_key *key)
{
    struct buf b = BUF_INIT;

    buf_addf(&b, "%s: %s (", key->name, key->help);
    spec_expected(key, &b);
    if (key->flags & SK_REQUIRED)
        buf_adds(&b, "; required");
    else if (key->value && strlen(key->value) < 20 && !strpbrk(key->value, "[{"))
        buf_addf(&b, "; default %s", key->value);
    buf_addc(&b, ')');
    buf_adds(out, ",\n    ");
    buf_add_json(out, b.p ? b.p : "", b.len);
    if (b.failed)
        out->failed = true;
    buf_release(&b);
}

int spec_template(enum spec_kind kind, struct buf *out)
{
    const struct spec_table *t = &spec_tables[kind];

    buf_addf(out,
             "{\n  \"$schema\": \"%s\",\n  \"$comment\": [\n    \"DTX %s: %s. Keys may be left out; they "
             "then have "
             "their defaults. This comment may go.\"",
             t->schema_path, t->name, t->title);
    for (const struct spec_key *key = t->keys; key->name; key++)
        add_comment_line(out, key);
    buf_adds(out, "\n  ]");
    for (const struct spec_key *key = t->keys; key->name; key++)
        if (!(key->flags & SK_NO_TEMPLATE))
            buf_addf(out, ",\n  \"%s\": %s", key->name,
                     key->example ? key->example
                     : key->value ? key->value
                                  : "null");
    buf_adds(out, "\n}\n");
    return out->failed ? -ENOMEM : 0;
}

/* ---- man page ---- */

int spec_man_keys(enum spec_kind kind, struct buf *out)
{
    for (const struct spec_key *key = spec_tables[kind].keys; key->name; key++) {
        buf_addf(out, ".TP\n.B %s\n%s", key->name, key->help);
        buf_adds(out, ".\nExpected: ");
        spec_expected(key, out);
        buf_adds(out, ".\n");
        if (!(key->flags & SK_REQUIRED))
            buf_addf(out, "Default: %s.\n", key->value ? key->value : "null");
    }
    return out->failed ? -ENOMEM : 0;
}
