/*
 * DataTunerX's Hyperparameter document, so that what was made for it can be dropped here:
 *   {"kind": "Hyperparameter", "spec": {"objective": {"type": "SFT"}, "parameters": {"loRA_R": "4", ...}}}
 * Its numbers may be strings; what it leaves out has DataTunerX's defaults, not ours.
 */
#include "mnt-layout/spec_keys.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "scheduler/base/json.h"

enum { MAX_NUMBER = 40 };

/* Theirs -> ours.  value: DataTunerX's default, as JSON. */
static const struct {
    const char *theirs, *ours, *value;
} translated[] = {
    {"scheduler", "scheduler", "\"cosine\""},
    {"optimizer", "optimizer", "\"adamw\""},
    {"loRA_R", "lora_r", "4"},
    {"loRA_Alpha", "lora_alpha", "32"},
    {"loRA_Dropout", "lora_dropout", "0.1"},
    {"learningRate", "learning_rate", "0.001"},
    {"epochs", "epochs", "10"},
    {"blockSize", "block_size", "512"},
    {"batchSize", "batch_size", "32"},
    {"warmupRatio", "warmup_ratio", "0.1"},
    {"weightDecay", "weight_decay", "1e-4"},
    {"gradAccSteps", "grad_acc_steps", "1"},
};
enum { N_TRANSLATED = sizeof(translated) / sizeof(translated[0]) };

/* Keys that have no counterpart: the values that change nothing are accepted, others refused. */
static const struct {
    const char *theirs, *only /* NULL: either value */, *otherwise;
} fixed[] = {
    {"int4", "false", "quantization is not built into this version of DTX yet; expected false"},
    {"int8", "false", "quantization is not built into this version of DTX yet; expected false"},
    {"PEFT", "true", "DTX trains LoRA adapters only; expected true"},
    {"FP16", NULL, "expected true or false (the base model keeps its own precision, adapters are float32)"},
    {"trainerType", "Standard", "expected \"Standard\""},
};
enum { N_FIXED = sizeof(fixed) / sizeof(fixed[0]) };

bool datatunerx_is(const json_t *doc)
{
    return json_object_get(doc, "spec") || json_object_get(doc, "apiVersion");
}

/* "0.0001" -> 0.0001, "Cosine" -> "cosine"; anything else stays for the check to refuse.  New reference. */
static json_t *plain_value(const json_t *v)
{
    char lower[MAX_NUMBER], *end;
    const char *s = json_string_value(v);
    size_t n = s ? strlen(s) : 0;

    if (!s || n == 0 || n >= MAX_NUMBER)
        return json_deep_copy(v);
    if (strspn(s, "+-0123456789") == n) {
        errno = 0;
        long long i = strtoll(s, &end, 10);
        return *end == '\0' && errno == 0 ? json_integer(i) : json_deep_copy(v);
    }
    if (strspn(s, "+-.0123456789eE") == n) {
        double x = strtod(s, &end);
        json_t *number = *end == '\0' ? json_real(x) : NULL; /* NULL for infinities too */
        return number ? number : json_deep_copy(v);
    }
    for (size_t i = 0; i <= n; i++)
        lower[i] = s[i] >= 'A' && s[i] <= 'Z' ? (char)(s[i] - 'A' + 'a') : s[i];
    return json_string(lower);
}

static int translate_parameter(struct spec_ctx *c, size_t i, const json_t *parameters, json_t *out)
{
    const struct spec_key *key = spec_key_find(spec_tables[SPEC_PARAMGROUP].keys, translated[i].ours);
    const json_t *given = json_object_get(parameters, translated[i].theirs);
    json_t *v = given ? plain_value(given) : json_loads(translated[i].value, JSON_DECODE_ANY, NULL),
           *checked = NULL;
    size_t mark = spec_enter_key(c, translated[i].theirs);
    int rc = v ? spec_check_value(c, key, v, &checked) : spec_fail(c, false, "out of memory");

    spec_leave(c, mark);
    json_decref(v);
    if (rc == 0 && json_object_set_new(out, translated[i].ours, checked))
        rc = spec_fail(c, false, "out of memory");
    return rc;
}

static int check_fixed(struct spec_ctx *c, size_t i, const json_t *parameters)
{
    const json_t *v = json_object_get(parameters, fixed[i].theirs);
    const char *s = json_is_boolean(v) ? (json_is_true(v) ? "true" : "false") : json_string_value(v);
    size_t mark;
    int rc;

    if (!v || json_is_null(v))
        return 0;
    if (s && (fixed[i].only ? strcasecmp(s, fixed[i].only) == 0
                            : strcasecmp(s, "true") == 0 || strcasecmp(s, "false") == 0))
        return 0;
    mark = spec_enter_key(c, fixed[i].theirs);
    rc = spec_fail(c, false, "key \"%s\": %s", c->path, fixed[i].otherwise);
    spec_leave(c, mark);
    return rc;
}

static int refuse_unknown(struct spec_ctx *c, const json_t *object, const char *const *known, int n)
{
    const char *name;
    json_t *v;

    json_object_foreach((json_t *)object, name, v)
    {
        bool found = spec_is_comment(name);
        for (int i = 0; i < n && !found; i++)
            found = strcmp(known[i], name) == 0;
        if (!found)
            return spec_unknown_key(c, name, known, n);
    }
    return 0;
}

static int refuse_unknown_parameters(struct spec_ctx *c, const json_t *parameters)
{
    const char *known[N_TRANSLATED + N_FIXED];

    for (int i = 0; i < N_TRANSLATED; i++)
        known[i] = translated[i].theirs;
    for (int i = 0; i < N_FIXED; i++)
        known[N_TRANSLATED + i] = fixed[i].theirs;
    return refuse_unknown(c, parameters, known, N_TRANSLATED + N_FIXED);
}

/* "SFT" or {"type": "SFT"} */
static int check_objective(struct spec_ctx *c, const json_t *objective)
{
    const char *type =
        json_is_object(objective) ? json_str(objective, "type", "") : json_string_value(objective);

    if (!objective || json_is_null(objective) || (type && strcasecmp(type, "SFT") == 0))
        return 0;
    spec_enter_key(c, "objective");
    return spec_fail(c, false, "key \"%s\": expected \"SFT\": DTX does supervised fine-tuning only", c->path);
}

static int translate_parameters(struct spec_ctx *c, const json_t *parameters, json_t *out)
{
    int rc = refuse_unknown_parameters(c, parameters);

    for (size_t i = 0; i < N_FIXED && rc == 0; i++)
        rc = check_fixed(c, i, parameters);
    for (size_t i = 0; i < N_TRANSLATED && rc == 0; i++)
        rc = translate_parameter(c, i, parameters, out);
    return rc;
}

int datatunerx_translate(struct spec_ctx *c, const json_t *doc, json_t **out)
{
    static const char *const top[] = {"apiVersion", "kind", "metadata", "spec", "status"};
    static const char *const in_spec[] = {"objective", "parameters"};
    const json_t *spec = json_object_get(doc, "spec"), *parameters = json_object_get(spec, "parameters");
    json_t *translated_doc;
    int rc = refuse_unknown(c, doc, top, 5);

    if (rc)
        return rc;
    if (!json_is_object(spec) || !json_is_object(parameters))
        return spec_fail(c, false, "a DataTunerX document without \"spec\": {\"parameters\": {...}}");
    if (strcmp(json_str(doc, "kind", "Hyperparameter"), "Hyperparameter") != 0) {
        spec_enter_key(c, "kind");
        return spec_fail(c, false, "key \"kind\": expected \"Hyperparameter\"");
    }
    spec_enter_key(c, "spec");
    rc = refuse_unknown(c, spec, in_spec, 2);
    if (rc == 0)
        rc = check_objective(c, json_object_get(spec, "objective"));
    if (rc)
        return rc;
    spec_enter_key(c, "parameters");
    translated_doc = json_object();
    rc = translate_parameters(c, parameters, translated_doc);
    if (rc == 0 &&
        json_object_set_new(translated_doc, "target_modules", json_pack("[ss]", "q_proj", "v_proj")))
        rc = spec_fail(c, false, "out of memory");
    c->path[0] = '\0';
    if (rc == 0) /* what DataTunerX does not have gets our defaults */
        rc = spec_check_object(c, spec_tables[SPEC_PARAMGROUP].keys, translated_doc, true, out);
    json_decref(translated_doc);
    return rc;
}

/* ---- its schema ---- */

static json_t *parameter_schema(size_t i)
{
    json_t *own = spec_key_schema(spec_key_find(spec_tables[SPEC_PARAMGROUP].keys, translated[i].ours));

    json_object_set_new(own, "default", json_loads(translated[i].value, JSON_DECODE_ANY, NULL));
    return json_pack("{s:[o,{s:s}]}", "anyOf", own, "type", "string");
}

json_t *datatunerx_schema(void)
{
    json_t *properties = json_object();

    for (size_t i = 0; i < N_TRANSLATED; i++)
        json_object_set_new(properties, translated[i].theirs, parameter_schema(i));
    for (size_t i = 0; i < N_FIXED; i++)
        json_object_set_new(
            properties, fixed[i].theirs,
            json_pack("{s:[s,s],s:s}", "type", "boolean", "string", "description", fixed[i].otherwise));
    return json_pack("{s:s,s:s,s:[s],s:{s:{s:s,s:[s],s:{s:{},s:{s:s,s:o,s:b}}}}}", "title",
                     "DataTunerX's Hyperparameter", "type", "object", "required", "spec", "properties",
                     "spec", "type", "object", "required", "parameters", "properties", "objective",
                     "parameters", "type", "object", "properties", properties, "additionalProperties", 0);
}
