/* The words of a refusal: where it is, what was found, what was expected, which key was perhaps meant. */
#include "mnt-layout/spec_keys.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

enum { SHOWN_BYTES = 40 };

/* ---- where ---- */

size_t spec_enter_key(struct spec_ctx *c, const char *key)
{
    size_t mark = strlen(c->path);

    snprintf(c->path + mark, sizeof(c->path) - mark, "%s%s", mark ? "." : "", key);
    return mark;
}

size_t spec_enter_item(struct spec_ctx *c, size_t index)
{
    size_t mark = strlen(c->path);

    snprintf(c->path + mark, sizeof(c->path) - mark, "[%zu]", index);
    return mark;
}

void spec_leave(struct spec_ctx *c, size_t mark)
{
    c->path[mark] = '\0';
}

/* Line and column of c->path, or of the nearest thing around it that can be found. */
static void locate(const struct spec_ctx *c, bool at_key, int *line, int *column)
{
    char path[sizeof(c->path)];

    memcpy(path, c->path, sizeof(path));
    while (json_locate(c->text, c->n, path, at_key, line, column) != 0) {
        char *dot = strrchr(path, '.'), *bracket = strrchr(path, '[');
        char *cut = dot > bracket ? dot : bracket;
        if (!*path) {
            *line = *column = 1;
            return;
        }
        *(cut ? cut : path) = '\0';
    }
}

int spec_fail(struct spec_ctx *c, bool at_key, const char *fmt, ...)
{
    struct buf b = BUF_INIT;
    int line, column, rc;
    va_list ap;

    if (c->text) {
        locate(c, at_key, &line, &column);
        buf_addf(&b, "%s:%d:%d: ", c->file, line, column);
    } else if (c->file) {
        buf_addf(&b, "%s: ", c->file);
    }
    va_start(ap, fmt);
    buf_vaddf(&b, fmt, ap);
    va_end(ap);
    rc = dtx_fail(c->e, -EINVAL, "%s", b.p ? b.p : "out of memory");
    buf_release(&b);
    return rc;
}

/* ---- what was found, what was expected ---- */

static void add_short_string(struct buf *out, const char *s, size_t n)
{
    size_t cut = n;

    if (n > SHOWN_BYTES)
        for (cut = SHOWN_BYTES; cut > 0 && ((unsigned char)s[cut] & 0xc0) == 0x80;)
            cut--;
    buf_add_json(out, s, cut);
    if (cut < n)
        buf_adds(out, "...");
}

void spec_add_found(struct buf *out, const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_STRING:
        add_short_string(out, json_string_value(v), json_string_length(v));
        buf_adds(out, " (string)");
        break;
    case JSON_INTEGER:
        buf_addf(out, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
        break;
    case JSON_REAL:
        buf_addf(out, "%.15g", json_real_value(v));
        break;
    case JSON_TRUE:
    case JSON_FALSE:
        buf_addf(out, "%s (boolean)", json_is_true(v) ? "true" : "false");
        break;
    case JSON_NULL:
        buf_adds(out, "null");
        break;
    case JSON_ARRAY:
        buf_addf(out, "a list of %zu", json_array_size(v));
        break;
    case JSON_OBJECT:
        buf_addf(out, "an object with %zu keys", json_object_size(v));
        break;
    }
}

static void add_words(struct buf *out, const char *const *words)
{
    for (int i = 0; words[i]; i++)
        buf_addf(out, "%s\"%s\"", i ? ", " : "", words[i]);
}

static void add_number_range(struct buf *out, const struct spec_key *key)
{
    if (key->type == ST_INT)
        buf_addf(out, "an integer from %.16g to %.16g", key->min, key->max);
    else
        buf_addf(out, "a number %s %.16g and %s %.16g", key->flags & SK_ABOVE ? ">" : ">=", key->min,
                 key->flags & SK_BELOW ? "<" : "<=", key->max);
}

static void add_expected_many(struct buf *out, const struct spec_key *key)
{
    buf_addf(out, "a list of %.16g to %.16g%s, each ", key->min, key->max,
             key->flags & SK_UNIQUE ? " different items" : " items");
    spec_expected(&key->sub[0], out);
}

void spec_expected(const struct spec_key *key, struct buf *out)
{
    switch (key->type) {
    case ST_STRING:
        buf_addf(out, "a string of %.16g to %.16g bytes", key->min, key->max);
        break;
    case ST_NAME:
        buf_adds(out, "a name (string of 1 to 63 bytes)");
        break;
    case ST_MODEL:
        buf_adds(out, "a base model's name or \"tuned/NAME\"");
        break;
    case ST_WORD:
        buf_adds(out, key->words[1] ? "one of " : "");
        add_words(out, key->words);
        break;
    case ST_INT:
    case ST_NUMBER:
        add_number_range(out, key);
        break;
    case ST_BOOL:
        buf_adds(out, "true or false, without quotes");
        break;
    case ST_INTERVAL:
        buf_adds(out, "a number of steps, \"10%\" of the training, or \"epoch\"");
        break;
    case ST_LIST:
        add_expected_many(out, key);
        break;
    case ST_OBJECT:
        buf_adds(out, "an object {...}");
        break;
    case ST_MAP:
        buf_adds(out, "an object {\"NAME\": ");
        spec_expected(&key->sub[0], out);
        buf_addc(out, '}');
        break;
    case ST_FREE:
        buf_adds(out, "an object {...}");
        break;
    case ST_SIZE:
        buf_adds(out, "a number of bytes, or a size like \"50 GiB\"");
        break;
    case ST_SIZES:
        buf_adds(out, "a size like \"40 GiB\", or an object of sizes {\"NAME\": SIZE}");
        break;
    case ST_USER:
        buf_adds(out, "a user's name or number");
        break;
    }
    if (key->flags & SK_NULL)
        buf_adds(out, ", or null");
}

static const char *example_of(const struct spec_key *key)
{
    return key->example ? key->example : key->value;
}

/* key "learning_rate": found "fast" (string); expected a number > 0 and <= 10; e.g. 2e-4 */
int spec_fail_found(struct spec_ctx *c, const struct spec_key *key, const json_t *v, const char *hint)
{
    struct buf b = BUF_INIT;
    int rc;

    buf_adds(&b, "found ");
    spec_add_found(&b, v);
    buf_adds(&b, "; expected ");
    spec_expected(key, &b);
    if (example_of(key) && key->type != ST_WORD && strcmp(example_of(key), "null") != 0)
        buf_addf(&b, "; e.g. %s", example_of(key));
    rc = spec_fail(c, false, "key \"%s\": %s%s%s", c->path, b.p ? b.p : "", hint ? "; " : "",
                   hint ? hint : "");
    buf_release(&b);
    return rc;
}

int spec_fail_missing(struct spec_ctx *c, const struct spec_key *key)
{
    struct buf b = BUF_INIT;
    int rc;

    spec_expected(key, &b);
    if (example_of(key))
        buf_addf(&b, "; e.g. \"%s\": %s", key->name, example_of(key));
    rc = spec_fail(c, false, "key \"%s%s%s\": missing; expected %s", c->path, *c->path ? "." : "", key->name,
                   b.p ? b.p : "");
    buf_release(&b);
    return rc;
}

/* What other trainers call the same things. */
static const char *known_elsewhere(const char *key)
{
    static const char *const pairs[][2] = {
        {"lr", "learning_rate"},
        {"learningRate", "learning_rate"},
        {"r", "lora_r"},
        {"rank", "lora_r"},
        {"lora_rank", "lora_r"},
        {"alpha", "lora_alpha"},
        {"dropout", "lora_dropout"},
        {"num_train_epochs", "epochs"},
        {"num_epochs", "epochs"},
        {"per_device_train_batch_size", "batch_size"},
        {"micro_batch_size", "batch_size"},
        {"batch", "batch_size"},
        {"batchSize", "batch_size"},
        {"gradient_accumulation_steps", "grad_acc_steps"},
        {"gradAccSteps", "grad_acc_steps"},
        {"max_seq_length", "block_size"},
        {"cutoff_len", "block_size"},
        {"max_length", "block_size"},
        {"blockSize", "block_size"},
        {"lr_scheduler_type", "scheduler"},
        {"optim", "optimizer"},
        {"lora_target", "target_modules"},
        {"lora_target_modules", "target_modules"},
        {"save_steps", "save_every"},
        {"eval_steps", "eval_every"},
        {"model", "models"},
        {"base_models", "models"},
        {"hyperparameters", "paramgroups"},
        {"scoring", "evaluation"},
        {"answer", "reference"},
        {"prompt", "question"},
        {"output", "response"},
        {"max_tokens", "max_new_tokens"},
        {"dev", "validation"},
        {"val", "validation"},
    };

    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (strcmp(pairs[i][0], key) == 0)
            return pairs[i][1];
    return NULL;
}

static const char *did_you_mean(const char *key, const char *const *known, int n)
{
    const char *other = known_elsewhere(key);
    int near;

    for (int i = 0; i < n; i++)
        if ((other && strcmp(known[i], other) == 0) || strcasecmp(known[i], key) == 0)
            return known[i];
    near =
        strlen(key) > 3 ? text_nearest(key, known, n) : -1; /* three changes make anything of three letters */
    return near >= 0 ? known[near] : NULL;
}

int spec_unknown_key(struct spec_ctx *c, const char *key, const char *const *known, int n)
{
    struct buf b = BUF_INIT;
    const char *guess = did_you_mean(key, known, n);
    size_t mark;
    int rc;

    buf_adds(&b, "key ");
    add_short_string(&b, key, strlen(key));
    buf_adds(&b, ": unknown key");
    if (guess)
        buf_addf(&b, "; did you mean \"%s\"?", guess);
    buf_adds(&b, " (known keys: ");
    for (int i = 0; i < n; i++)
        buf_addf(&b, "%s%s", i ? ", " : "", known[i]);
    mark = spec_enter_key(c, key);
    rc = spec_fail(c, true, "%s)", b.p ? b.p : "");
    spec_leave(c, mark);
    buf_release(&b);
    return rc;
}
