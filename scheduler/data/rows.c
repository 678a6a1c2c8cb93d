/*
 * What people write -> turns.  The forms, tried in this order: the columns that dataset.json names; messages
 * (OpenAI); conversations (ShareGPT); instruction with instances (Self-Instruct); the usual pairs of columns;
 * text.
 */
#include "scheduler/data/data_int.h"

#include <stdlib.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

const char *const data_form_names[FORM_COUNT] = {
    "mapped columns", "messages", "conversations", "instruction/instances", "instruction/response", "text"};

struct build { /* one row being made */
    struct data_row row;
    int cap;
};

static void build_release(struct build *b)
{
    for (int i = 0; i < b->row.n; i++)
        free(b->row.turns[i].text);
    free(b->row.turns);
    memset(b, 0, sizeof(*b));
}

static int join_turn(struct data_turn *t, const char *between, const char *text, size_t n)
{
    size_t old = strlen(t->text), gap = strlen(between);
    char *grown = realloc(t->text, old + gap + n + 1);

    if (!grown)
        return -ENOMEM;
    memcpy(grown + old, between, gap);
    memcpy(grown + old + gap, text, n);
    grown[old + gap + n] = '\0';
    t->text = grown;
    return 0;
}

/* Two turns of one speaker in a row become one. */
static int add_turn(struct build *b, enum data_role role, const char *text, size_t n, struct dtx_err *why)
{
    struct data_row *r = &b->row;

    if (r->n && r->turns[r->n - 1].role == role)
        return join_turn(&r->turns[r->n - 1], "\n\n", text, n) ? dtx_fail(why, -ENOMEM, "out of memory") : 0;
    if (r->n == DATA_MAX_TURNS)
        return dtx_fail(why, -EINVAL, "more than %d turns", DATA_MAX_TURNS);
    if (r->n == b->cap) {
        int cap = b->cap ? 2 * b->cap : 4;
        struct data_turn *grown = realloc(r->turns, (size_t)cap * sizeof(*grown));
        if (!grown)
            return dtx_fail(why, -ENOMEM, "out of memory");
        r->turns = grown;
        b->cap = cap;
    }
    r->turns[r->n].role = role;
    r->turns[r->n].text = strndup(text, n);
    if (!r->turns[r->n].text)
        return dtx_fail(why, -ENOMEM, "out of memory");
    r->n++;
    return 0;
}

/* Text of a value: strings, and numbers and truth values as they are written.  1: some, 0: none (null,
 * blank). */
static int text_of(const json_t *v, const char *column, char number[40], const char **text, size_t *n,
                   struct dtx_err *why)
{
    const char *p;
    size_t left;

    *text = number;
    *n = 0;
    if (!v || json_is_null(v))
        return 0;
    if (json_is_string(v)) {
        *text = p = json_string_value(v);
        *n = left = json_string_length(v);
        if (memchr(p, '\0', left))
            return dtx_fail(why, -EINVAL, "\"%.60s\" has a NUL character", column);
        text_strip(&p, &left);
        return left > 0;
    }
    if (json_is_integer(v))
        snprintf(number, 40, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(number, 40, "%.15g", json_real_value(v));
    else if (json_is_boolean(v))
        snprintf(number, 40, "%s", json_is_true(v) ? "true" : "false");
    else
        return dtx_fail(why, -EINVAL, "\"%.60s\" is %s; expected text", column,
                        json_is_array(v) ? "a list" : "an object");
    *n = strlen(number);
    return 1;
}

/* A turn from a column, if it has text. */
static int add_column(struct build *b, enum data_role role, const json_t *v, const char *column,
                      struct dtx_err *why)
{
    char number[40];
    const char *text;
    size_t n;
    int rc = text_of(v, column, number, &text, &n, why);

    return rc > 0 ? add_turn(b, role, text, n, why) : rc;
}

static int role_of(const char *name, enum data_role *role)
{
    static const struct {
        const char *name;
        enum data_role role;
    } table[] = {{"system", DATA_SYSTEM},     {"developer", DATA_SYSTEM},    {"user", DATA_USER},
                 {"human", DATA_USER},        {"assistant", DATA_ASSISTANT}, {"gpt", DATA_ASSISTANT},
                 {"chatgpt", DATA_ASSISTANT}, {"bot", DATA_ASSISTANT},       {"model", DATA_ASSISTANT}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(name, table[i].name) == 0) {
            *role = table[i].role;
            return 0;
        }
    return -EINVAL;
}

/* OpenAI's content may be a list of parts; only text can be used. */
static int add_content(struct build *b, enum data_role role, const json_t *content, struct dtx_err *why)
{
    size_t i;
    json_t *part;

    if (!json_is_array(content))
        return add_column(b, role, content, "content", why);
    json_array_foreach((json_t *)content, i, part)
    {
        int rc;
        if (strcmp(json_str(part, "type", ""), "text"))
            return dtx_fail(why, -EINVAL, "a content part of type \"%.40s\"; only text can be trained",
                            json_str(part, "type", "?"));
        rc = add_column(b, role, json_object_get(part, "text"), "text", why);
        if (rc)
            return rc;
    }
    return 0;
}

/* Messages {"role","content"} or {"from","value"}. */
static int add_messages(struct build *b, const json_t *list, struct dtx_err *why)
{
    size_t i;
    json_t *m;

    json_array_foreach((json_t *)list, i, m)
    {
        const char *name = json_str(m, "role", json_str(m, "from", NULL));
        const json_t *content = json_object_get(m, "content");
        enum data_role role;
        int rc;
        if (!json_is_object(m) || !name)
            return dtx_fail(why, -EINVAL, "message %zu has no \"role\" (or \"from\")", i + 1);
        if (role_of(name, &role))
            return dtx_fail(
                why, -EINVAL,
                "message %zu: role \"%.40s\" cannot be trained; expected system, user or assistant", i + 1,
                name);
        rc = add_content(b, role, content ? content : json_object_get(m, "value"), why);
        if (rc)
            return rc;
    }
    return 0;
}

/* Earlier turns: [[question, answer], ...] or messages. */
static int add_history(struct build *b, const json_t *list, struct dtx_err *why)
{
    size_t i;
    json_t *pair;

    if (json_is_object(json_array_get(list, 0)))
        return add_messages(b, list, why);
    json_array_foreach((json_t *)list, i, pair)
    {
        int rc;
        if (!json_is_array(pair) || json_array_size(pair) != 2)
            return dtx_fail(why, -EINVAL, "history item %zu is no [question, answer]", i + 1);
        rc = add_column(b, DATA_USER, json_array_get(pair, 0), "history", why);
        if (rc == 0)
            rc = add_column(b, DATA_ASSISTANT, json_array_get(pair, 1), "history", why);
        if (rc)
            return rc;
    }
    return 0;
}

/* A column that holds a list, or (in csv) the JSON text of one.  *list is a new reference or NULL for an
 * empty one. */
static int list_of(const json_t *v, const char *column, json_t **list, struct dtx_err *why)
{
    struct dtx_err e;

    *list = NULL;
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    if (json_is_array(v)) {
        *list = json_incref((json_t *)v);
        return 0;
    }
    if (!json_is_string(v) || json_string_value(v)[0] != '[')
        return dtx_fail(why, -EINVAL, "\"%.60s\" is no list", column);
    if (json_parse_text(column, json_string_value(v), json_string_length(v), list, &e))
        return dtx_fail(why, -EINVAL, "%s", e.msg);
    return 0;
}

static int add_list(struct build *b, const json_t *v, const char *column,
                    int (*add)(struct build *b, const json_t *list, struct dtx_err *why), struct dtx_err *why)
{
    json_t *list;
    int rc = list_of(v, column, &list, why);

    if (rc == 0 && list)
        rc = add(b, list, why);
    json_decref(list);
    return rc;
}

/* Checks what must hold of every row; a question after the last answer goes. */
static int finish(struct build *b, struct dtx_err *why)
{
    struct data_row *r = &b->row;
    int first = 0;

    while (r->n && r->turns[r->n - 1].role != DATA_ASSISTANT)
        free(r->turns[--r->n].text);
    if (r->n == 0)
        return dtx_fail(why, -EINVAL, "no answer");
    if (r->plain_text)
        return 0;
    if (r->turns[0].role == DATA_SYSTEM)
        first = 1;
    if (first == r->n || r->turns[first].role != DATA_USER)
        return dtx_fail(why, -EINVAL, "an answer without a question before it");
    for (int i = first; i < r->n; i++)
        if (r->turns[i].role == DATA_SYSTEM)
            return dtx_fail(why, -EINVAL, "a system message after the first turn");
    return 0;
}

static int finish_and_emit(struct build *b, int (*emit)(void *arg, struct data_row *row), void *arg,
                           struct dtx_err *why)
{
    int rc = finish(b, why);

    return rc ? rc : emit(arg, &b->row);
}

/* system, history, question (with Alpaca's input after it), answer. */
static int add_pair(struct build *b, const struct data_features *f, const json_t *o, const json_t *question,
                    const json_t *input, const json_t *answer, struct dtx_err *why)
{
    const char *system = f->system ? f->system : "system", *history = f->history ? f->history : "history";
    char number[40];
    const char *text;
    size_t n;
    int rc = add_column(b, DATA_SYSTEM, json_object_get(o, system), system, why);

    if (rc == 0)
        rc = add_list(b, json_object_get(o, history), history, add_history, why);
    if (rc == 0)
        rc = json_is_array(question) ? add_messages(b, question, why)
                                     : add_column(b, DATA_USER, question, "question", why);
    if (rc == 0 && (rc = text_of(input, "input", number, &text, &n, why)) > 0) {
        struct data_turn *last = b->row.n ? &b->row.turns[b->row.n - 1] : NULL;
        rc = last && last->role == DATA_USER ? join_turn(last, "\n", text, n)
                                             : add_turn(b, DATA_USER, text, n, why);
    }
    if (rc == 0)
        rc = json_is_array(answer) ? add_messages(b, answer, why)
                                   : add_column(b, DATA_ASSISTANT, answer, "answer", why);
    return rc;
}

static int need_column(const json_t *o, const char *column, const char *feature, struct dtx_err *why)
{
    if (json_object_get(o, column))
        return 0;
    return dtx_fail(why, -EINVAL, "no column \"%.60s\" (features.%s of dataset.json)", column, feature);
}

static int mapped_rows(struct build *b, const struct data_features *f, const json_t *o, struct dtx_err *why)
{
    const char *question = f->instruction ? f->instruction : "instruction";
    const char *answer = f->response ? f->response : "response";
    int rc = need_column(o, question, "instruction", why);

    if (rc == 0)
        rc = need_column(o, answer, "response", why);
    if (rc == 0)
        rc = add_pair(b, f, o, json_object_get(o, question), NULL, json_object_get(o, answer), why);
    return rc;
}

/* Self-Instruct: one instruction, several inputs and outputs, each a row. */
static int instance_rows(const struct data_features *f, const json_t *o,
                         int (*emit)(void *arg, struct data_row *row), void *arg, struct dtx_err *why)
{
    json_t *list = json_object_get(o, "instances"), *x;
    size_t i;
    int rc = json_array_size(list) ? 0 : dtx_fail(why, -EINVAL, "\"instances\" is empty");

    json_array_foreach(list, i, x)
    {
        struct build b = {0};
        rc = add_pair(&b, f, o, json_object_get(o, "instruction"), json_object_get(x, "input"),
                      json_object_get(x, "output"), why);
        if (rc == 0)
            rc = finish_and_emit(&b, emit, arg, why);
        build_release(&b);
        if (rc)
            break;
    }
    return rc;
}

static const struct {
    const char *question, *answer;
} pairs[] = {{"instruction", "response"},
             {"instruction", "output"},
             {"prompt", "completion"},
             {"prompt", "response"},
             {"question", "answer"}};

static int unknown_columns(const json_t *o, struct dtx_err *why)
{
    struct buf names = BUF_INIT;
    const char *key;
    json_t *v;

    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        if (json_object_get(o, pairs[i].question))
            return dtx_fail(why, -EINVAL, "\"%s\" without an answer (\"%s\")", pairs[i].question,
                            pairs[i].answer);
    json_object_foreach((json_t *)o, key, v)
    {
        if (names.len > 200)
            break;
        buf_addf(&names, "%s%.60s", names.len ? ", " : "", key);
    }
    dtx_fail(why, -EINVAL,
             "none of the known columns (instruction/response, instruction/input/output, prompt/completion, "
             "question/answer, messages, conversations, text); found: %s. Name yours in dataset.json: "
             "{\"features\": "
             "{\"instruction\": COLUMN, \"response\": COLUMN}}",
             names.len ? names.p : "nothing");
    buf_release(&names);
    return -EINVAL;
}

static int known_rows(struct build *b, const struct data_features *f, const json_t *o, enum data_form *form,
                      struct dtx_err *why)
{
    if (json_object_get(o, "messages")) {
        *form = FORM_MESSAGES;
        return add_list(b, json_object_get(o, "messages"), "messages", add_messages, why);
    }
    if (json_object_get(o, "conversations")) {
        int rc = add_column(b, DATA_SYSTEM, json_object_get(o, "system"), "system", why);
        *form = FORM_CONVERSATIONS;
        return rc ? rc : add_list(b, json_object_get(o, "conversations"), "conversations", add_messages, why);
    }
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        const json_t *q = json_object_get(o, pairs[i].question), *a = json_object_get(o, pairs[i].answer);
        *form = FORM_PAIR;
        if (q && a)
            return add_pair(b, f, o, q, json_object_get(o, "input"), a, why);
    }
    *form = FORM_TEXT;
    if (!json_object_get(o, "text"))
        return unknown_columns(o, why);
    b->row.plain_text = true;
    return add_column(b, DATA_ASSISTANT, json_object_get(o, "text"), "text", why);
}

int data_rows_of(const struct data_features *f, const json_t *object,
                 int (*emit)(void *arg, struct data_row *row), void *arg, enum data_form *form,
                 struct dtx_err *why)
{
    struct build b = {0};
    int rc;

    if (f->instruction || f->response) {
        *form = FORM_MAPPED;
        rc = mapped_rows(&b, f, object, why);
    } else if (json_is_array(json_object_get(object, "instances"))) {
        *form = FORM_INSTANCES;
        return instance_rows(f, object, emit, arg, why);
    } else {
        rc = known_rows(&b, f, object, form, why);
    }
    if (rc == 0)
        rc = finish_and_emit(&b, emit, arg, why);
    build_release(&b);
    return rc;
}
