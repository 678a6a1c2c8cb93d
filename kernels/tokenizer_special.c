/* Special tokens: what the JSON files beside a tokenizer say about added tokens, bos, eos and where to stop.
 */
#include "kernels/tokenizer_impl.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"

/* Whole numbers of more than 18 digits (transformers writes 1e30 as model_max_length) become
 * 999999999999999999: the JSON reader has no larger ones. */
static void clip_integers(char *s, size_t n)
{
    bool in_string = false;

    for (size_t i = 0; i < n; i++) {
        size_t digits = 0;
        if (s[i] == '"')
            in_string = !in_string;
        else if (s[i] == '\\' && in_string)
            i++;
        if (in_string || s[i] < '0' || s[i] > '9')
            continue;
        while (i + digits < n && s[i + digits] >= '0' && s[i + digits] <= '9')
            digits++;
        if (digits > 18 && !(i > 0 && s[i - 1] == '.') && !(i + digits < n && strchr(".eE", s[i + digits]))) {
            memset(s + i, '9', 18);
            memset(s + i + 18, ' ', digits - 18);
        }
        i += digits - 1;
    }
}

/* A JSON object from a file of the folder, NULL in *out when there is no such file. */
static int load_object(int fd, const char *name, struct sha256 *sha, json_t **out, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc;

    *out = NULL;
    if (faccessat(fd, name, F_OK, AT_SYMLINK_NOFOLLOW))
        return 0;
    rc = fd_read_file(fd, name, TOK_MAX_CONFIG, &b, e);
    if (rc == 0 && sha) {
        char head[128];
        sha256_add(sha, head, (size_t)snprintf(head, sizeof(head), "\n%s %zu\n", name, b.len));
        sha256_add(sha, b.p ? b.p : "", b.len);
    }
    if (rc == 0 && b.p)
        clip_integers(b.p, b.len);
    if (rc == 0)
        rc = json_parse_text(name, b.p ? b.p : "", b.len, out, e);
    buf_release(&b);
    if (rc == 0 && !json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
        rc = dtx_fail(e, -EINVAL, "%s is not a JSON object", name);
    }
    return rc;
}

/* A token as "text" or {"content": "text"}. */
static const char *token_text(const json_t *v)
{
    return json_is_string(v) ? json_string_value(v) : json_str(v, "content", NULL);
}

static int add_token(struct dtx_tokenizer *t, const char *file, int64_t id, const char *text, bool special,
                     struct dtx_err *e)
{
    if (id >= 0 && id < t->n && t->pieces[id].kind != PIECE_NONE) {
        t->pieces[id].special |= special;
        return 0;
    }
    return tok_put(t, file, id, text, strlen(text), special ? PIECE_CONTROL : PIECE_USER, e);
}

/* tokenizer_config.json: added_tokens_decoder {"32000": {"content": "<pad>", "special": true}}. */
static int read_decoder_table(struct dtx_tokenizer *t, const json_t *table, struct dtx_err *e)
{
    static const char file[] = "tokenizer_config.json";
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)table, key, v)
    {
        const char *text = token_text(v);
        char *end;
        long long id = strtoll(key, &end, 10);
        int rc;
        if (!text || !*text || !*key || *end)
            return dtx_fail(e, -EINVAL, "%s: added_tokens_decoder: %.40s is not an id with a content", file,
                            key);
        rc = add_token(t, file, id, text, json_flag(v, "special", 0), e);
        if (rc)
            return rc;
    }
    return 0;
}

/* added_tokens.json: {"<pad>": 32000}. */
static int read_added(struct dtx_tokenizer *t, const json_t *added, struct dtx_err *e)
{
    static const char file[] = "added_tokens.json";
    const char *key;
    json_t *v;

    json_object_foreach((json_t *)added, key, v)
    {
        int rc = add_token(t, file, json_is_integer(v) ? json_integer_value(v) : -1, key, false, e);
        if (rc)
            return rc;
    }
    return 0;
}

static void add_stop(struct dtx_tokenizer *t, int64_t id)
{
    if (id < 0 || id >= t->n || t->n_stops == TOK_MAX_STOPS || dtx_tokenizer_is_stop(t, (int32_t)id))
        return;
    t->stops[t->n_stops++] = (int32_t)id;
}

/* An id, or a list of ids: the first into *first, all as stops. */
static void read_eos_ids(struct dtx_tokenizer *t, const json_t *v, int32_t *first)
{
    const json_t *item;
    size_t i;

    if (json_is_integer(v)) {
        if (*first < 0 && json_integer_value(v) >= 0 && json_integer_value(v) < t->n)
            *first = (int32_t)json_integer_value(v);
        add_stop(t, json_integer_value(v));
    }
    json_array_foreach(v, i, item)
    {
        if (json_is_integer(item))
            read_eos_ids(t, item, first);
    }
}

/* The text of a key in the first file that has the key; *found tells whether one had it (it may be null
 * there). */
static int32_t token_of(const struct dtx_tokenizer *t, json_t *const files[2], const char *key, bool *found)
{
    *found = false;
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(files[i], key);
        const char *text = token_text(v);
        if (!v)
            continue;
        *found = true;
        return text ? tok_by_text(t, text) : -1;
    }
    return -1;
}

static int32_t id_of(const struct dtx_tokenizer *t, const json_t *o, const char *key)
{
    long long id = json_int(o, key, -1);

    return id >= 0 && id < t->n ? (int32_t)id : -1;
}

/* texts: tokenizer_config.json and special_tokens_map.json; ids: generation_config.json and config.json. */
static void decide(struct dtx_tokenizer *t, json_t *const texts[2], json_t *const ids[2])
{
    static const char *const stops[] = {"<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>",
                                        "<|endoftext|>"};
    bool found;
    int32_t id = token_of(t, texts, "bos_token", &found);

    if (found)
        t->bos = id;
    for (int i = 0; i < 2 && !found && t->bos < 0; i++)
        t->bos = id_of(t, ids[i], "bos_token_id");
    id = token_of(t, texts, "eos_token", &found);
    if (found && id >= 0)
        t->eos = id;
    for (int i = 1; i >= 0; i--)
        read_eos_ids(t, json_object_get(ids[i], "eos_token_id"), &t->eos);
    add_stop(t, t->eos);
    for (size_t i = 0; i < sizeof(stops) / sizeof(stops[0]); i++)
        add_stop(t, dtx_tokenizer_special(t, stops[i]));
}

static int read_tokens(struct dtx_tokenizer *t, json_t *const texts[2], const json_t *added,
                       struct dtx_err *e)
{
    int rc = read_decoder_table(t, json_object_get(texts[0], "added_tokens_decoder"), e);
    const json_t *v;
    size_t i;

    if (rc == 0)
        rc = read_added(t, added, e);
    if (rc)
        return rc;
    for (int k = 0; k < 2; k++)
        json_array_foreach(json_object_get(texts[k], "additional_special_tokens"), i, v)
        {
            const char *text = token_text(v);
            int32_t id = text ? tok_by_text(t, text) : -1;
            if (id >= 0) {
                t->pieces[id].special = true;
                if (t->pieces[id].kind == PIECE_USER)
                    t->pieces[id].kind = PIECE_CONTROL;
            }
        }
    return tok_index_user(t, "the tokenizer", e);
}

int special_load(struct dtx_tokenizer *t, int fd, struct sha256 *sha, struct dtx_err *e)
{
    json_t *texts[2] = {NULL, NULL}, *ids[2] = {NULL, NULL}, *added = NULL;
    int rc = load_object(fd, "tokenizer_config.json", sha, &texts[0], e);

    if (rc == 0)
        rc = load_object(fd, "special_tokens_map.json", sha, &texts[1], e);
    if (rc == 0)
        rc = load_object(fd, "added_tokens.json", sha, &added, e);
    if (rc == 0)
        rc = load_object(fd, "generation_config.json", NULL, &ids[0], e);
    if (rc == 0)
        rc = load_object(fd, "config.json", NULL, &ids[1], e);
    if (rc == 0)
        rc = read_tokens(t, texts, added, e);
    if (rc == 0)
        decide(t, texts, ids);
    json_decref(texts[0]);
    json_decref(texts[1]);
    json_decref(added);
    json_decref(ids[0]);
    json_decref(ids[1]);
    return rc;
}
