/* tokenizer.json of type BPE: byte-level (GPT-2, Llama 3, Qwen2), or characters with byte fallback (Llama 2).
 */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "kernels/tokenizer_impl.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

static const char file[] = "tokenizer.json";

enum {
    MATCH_LIMIT = 20000000, /* steps of one match: a run of a million spaces needs a few millions */
    MATCH_HEAP_KIB = 65536,
    CPU_NS_A_BYTE =
        20000, /* of all matches of a text together, beside CPU_NS: usual patterns need about 30 */
};
#define CPU_NS 5000000000ll

/* ---- GPT-2's alphabet: every byte is written as one printable character ---- */

static bool shown_as_itself(int b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
}

/* The byte of each of the characters U+0000 to U+0143, -1: not in the alphabet. */
static void make_alphabet(int16_t byte_of[0x144])
{
    int next = 0x100;

    memset(byte_of, 0xff, 0x144 * sizeof(byte_of[0]));
    for (int b = 0; b < 256; b++)
        byte_of[shown_as_itself(b) ? b : next++] = (int16_t)b;
}

/* Characters of the alphabet to the bytes they stand for; false when there is another character. */
static bool to_bytes(const int16_t byte_of[0x144], const char *s, size_t n, char *out, size_t *len)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t k = 0;

    for (size_t i = 0; i < n; k++) {
        unsigned c = u[i];
        if (c < 0x80) {
            i++;
        } else if (c < 0xe0 && i + 1 < n) {
            c = (c & 0x1f) << 6 | (u[i + 1] & 0x3f);
            i += 2;
        } else {
            return false;
        }
        if (c >= 0x144 || byte_of[c] < 0)
            return false;
        out[k] = (char)byte_of[c];
    }
    *len = k;
    return true;
}

/* ---- loading ---- */

static int load_vocab(struct dtx_tokenizer *t, const json_t *vocab, struct dtx_err *e)
{
    int16_t byte_of[0x144];
    char bytes[TOK_MAX_PIECE];
    const char *key;
    json_t *v;

    if (!json_is_object(vocab) || json_object_size(vocab) == 0 || json_object_size(vocab) > TOK_MAX_PIECES)
        return dtx_fail(e, -EINVAL, "%s: model.vocab must be an object of 1 to %d tokens", file,
                        TOK_MAX_PIECES);
    make_alphabet(byte_of);
    json_object_foreach((json_t *)vocab, key, v)
    {
        size_t n = strlen(key), len = n;
        int64_t id = json_is_integer(v) ? json_integer_value(v) : -1;
        bool plain = !t->byte_level;
        int rc;
        if (n > TOK_MAX_PIECE)
            return dtx_fail(e, -EINVAL, "%s: token %lld has %zu bytes; at most %d are allowed", file,
                            (long long)id, n, TOK_MAX_PIECE);
        if (id >= 0 && id < t->n && t->pieces[id].kind != PIECE_NONE)
            return dtx_fail(e, -EINVAL, "%s: two tokens have the id %lld", file, (long long)id);
        if (t->byte_level && to_bytes(byte_of, key, n, bytes, &len))
            plain = true;
        else if (t->byte_level)
            len = n;
        rc = tok_put(t, file, id, t->byte_level && plain ? bytes : key, len,
                     plain ? PIECE_NORMAL : PIECE_UNUSED, e);
        if (rc)
            return rc;
    }
    return 0;
}

static int index_vocab(struct dtx_tokenizer *t, struct dtx_err *e)
{
    if (tok_map_reserve(&t->normal, (uint32_t)t->n))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    for (int32_t i = 0; i < t->n; i++) {
        const struct piece *p = &t->pieces[i];
        if (p->kind != PIECE_NORMAL || p->len == 0)
            continue;
        t->max_len = p->len > t->max_len ? p->len : t->max_len;
        tok_map_add(t, &t->normal, i);
        if (t->byte_level && p->len == 1)
            t->byte_id[(unsigned char)*tok_text(t, i)] = i;
    }
    return 0;
}

static int32_t vocab_id(const json_t *vocab, const char *s, size_t n)
{
    const json_t *v = json_object_getn(vocab, s, n);

    return json_is_integer(v) ? (int32_t)json_integer_value(v) : -1;
}

/* "a b" or ["a", "b"]: the two texts; false: neither. */
static bool merge_texts(const json_t *v, const char **a, size_t *na, const char **b, size_t *nb)
{
    if (json_is_string(v)) {
        const char *space;
        *a = json_string_value(v);
        space = strchr(*a, ' ');
        if (!space || strchr(space + 1, ' '))
            return false;
        *na = (size_t)(space - *a);
        *b = space + 1;
    } else {
        *a = json_string_value(json_array_get(v, 0));
        *b = json_string_value(json_array_get(v, 1));
        if (json_array_size(v) != 2 || !*a || !*b)
            return false;
        *na = strlen(*a);
    }
    *nb = strlen(*b);
    return *na > 0 && *nb > 0 && *na + *nb <= TOK_MAX_PIECE;
}

static int load_merges(struct dtx_tokenizer *t, const json_t *vocab, const json_t *merges, struct dtx_err *e)
{
    char joined[TOK_MAX_PIECE];
    const json_t *v;
    size_t i;

    if (!json_is_array(merges) || json_array_size(merges) > 2 * (size_t)TOK_MAX_PIECES)
        return dtx_fail(e, -EINVAL, "%s: model.merges must be an array of at most %d pairs", file,
                        2 * TOK_MAX_PIECES);
    if (tok_pairs_reserve(&t->merges, (uint32_t)json_array_size(merges)))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    json_array_foreach(merges, i, v)
    {
        const char *a, *b;
        size_t na, nb;
        int32_t left, right, id;
        if (!merge_texts(v, &a, &na, &b, &nb))
            return dtx_fail(e, -EINVAL,
                            "%s: model.merges[%zu] is not \"left right\" and not [\"left\", \"right\"]", file,
                            i);
        memcpy(joined, a, na);
        memcpy(joined + na, b, nb);
        left = vocab_id(vocab, a, na);
        right = vocab_id(vocab, b, nb);
        id = vocab_id(vocab, joined, na + nb);
        if (left < 0 || right < 0 || id < 0)
            return dtx_fail(e, -EINVAL, "%s: model.merges[%zu]: %.60s is not in model.vocab", file, i,
                            left < 0 ? a : (right < 0 ? b : "the merged token"));
        tok_pairs_put(&t->merges, left, right, (uint32_t)i, id);
    }
    return 0;
}

static int check_model(struct dtx_tokenizer *t, const json_t *model, struct dtx_err *e)
{
    const char *type = json_str(model, "type", "BPE");
    const char *unk = json_str(model, "unk_token", NULL);

    if (strcmp(type, "BPE"))
        return dtx_fail(e, -EINVAL, "%s: a model of type %.40s is not supported; supported is BPE", file,
                        type);
    if (*json_str(model, "continuing_subword_prefix", "") || *json_str(model, "end_of_word_suffix", ""))
        return dtx_fail(e, -EINVAL, "%s: continuing_subword_prefix and end_of_word_suffix are not supported",
                        file);
    t->ignore_merges = json_flag(model, "ignore_merges", 0);
    t->byte_fallback = json_flag(model, "byte_fallback", 0);
    t->fuse_unk = json_flag(model, "fuse_unk", 0);
    if (unk)
        t->unk = vocab_id(json_object_get(model, "vocab"), unk, strlen(unk));
    return 0;
}

/* A decoder that takes a space off the beginning undoes the prepended one. */
static void read_decoder(struct dtx_tokenizer *t, const json_t *v, int depth)
{
    const char *type = json_str(v, "type", "");
    const json_t *item;
    size_t i;

    if (strcmp(type, "Strip") == 0)
        t->strip_space |= strcmp(json_str(v, "content", ""), " ") == 0 && json_int(v, "start", 0) > 0;
    else if (strcmp(type, "Metaspace") == 0)
        t->strip_space |= strcmp(json_str(v, "prepend_scheme", "always"), "never") != 0;
    if (depth == 0)
        json_array_foreach(json_object_get(v, "decoders"), i, item)
        {
            read_decoder(t, item, 1);
        }
}

static int load_added(struct dtx_tokenizer *t, const json_t *added, struct dtx_err *e)
{
    const json_t *v;
    size_t i;

    if (json_array_size(added) > TOK_MAX_PIECES)
        return dtx_fail(e, -EINVAL, "%s: too many added_tokens", file);
    json_array_foreach(added, i, v)
    {
        const char *text = json_str(v, "content", NULL);
        bool special = json_flag(v, "special", 0);
        int rc;
        if (!text || !*text)
            return dtx_fail(e, -EINVAL, "%s: added_tokens[%zu] has no content", file, i);
        if (!special &&
            (json_flag(v, "lstrip", 0) || json_flag(v, "rstrip", 0) || json_flag(v, "single_word", 0)))
            return dtx_fail(e, -EINVAL,
                            "%s: added token %.60s: lstrip, rstrip and single_word are not supported", file,
                            text);
        rc = tok_put(t, file, json_int(v, "id", -1), text, strlen(text), special ? PIECE_CONTROL : PIECE_USER,
                     e);
        if (rc)
            return rc;
    }
    return 0;
}

static int load_root(struct dtx_tokenizer *t, const json_t *root, struct dtx_err *e)
{
    const json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    int rc;

    if (!json_is_object(model))
        return dtx_fail(e, -EINVAL, "%s has no model", file);
    rc = check_model(t, model, e);
    if (rc == 0)
        rc = pre_load(t, root, e);
    if (rc == 0)
        rc = load_vocab(t, vocab, e);
    if (rc == 0)
        rc = index_vocab(t, e);
    if (rc == 0)
        rc = load_merges(t, vocab, json_object_get(model, "merges"), e);
    if (rc)
        return rc;
    if (t->unk >= t->n || (t->unk >= 0 && t->pieces[t->unk].kind == PIECE_NONE))
        t->unk = -1;
    if (t->byte_fallback && !t->byte_level)
        tok_find_bytes(t);
    read_decoder(t, json_object_get(root, "decoder"), 0);
    return load_added(t, json_object_get(root, "added_tokens"), e);
}

int tokjson_load(struct dtx_tokenizer *t, const char *data, size_t n, struct dtx_err *e)
{
    json_t *root;
    int rc = json_parse_text(file, data, n, &root, e);

    if (rc)
        return rc;
    rc = json_is_object(root) ? load_root(t, root, e) : dtx_fail(e, -EINVAL, "%s is not a JSON object", file);
    json_decref(root);
    return rc;
}

/* ---- encoding ---- */

struct sink {
    struct merger *m;
    struct dtx_ids *ids;
};

static int add_bytes(struct merger *m, size_t n)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < n; i++) {
        int32_t id = m->t->byte_id[(unsigned char)m->text[i]];
        if (id < 0)
            id = m->t->unk;
        if (id >= 0) /* as in tokenizers: without an unknown token it is left out */
            rc = merge_add(m, (uint32_t)i, 1, id, false);
    }
    return rc;
}

static int add_unknown(struct merger *m, size_t at, size_t len)
{
    bool all = m->t->byte_fallback;
    int rc = 0;

    for (size_t i = 0; all && i < len; i++)
        all = m->t->byte_id[(unsigned char)m->text[at + i]] >= 0;
    for (size_t i = 0; rc == 0 && all && i < len; i++)
        rc = merge_add(m, (uint32_t)(at + i), 1, m->t->byte_id[(unsigned char)m->text[at + i]], false);
    if (!all && m->t->unk >= 0)
        rc = merge_add(m, (uint32_t)at, (uint32_t)len, m->t->unk, false);
    return rc;
}

static int add_chars(struct merger *m, size_t n)
{
    int rc = 0;

    for (size_t at = 0; rc == 0 && at < n;) {
        size_t len = text_utf8_step(m->text + at, n - at);
        int32_t id;
        len = len ? len : 1;
        id = tok_find(m->t, m->text + at, len);
        rc = id >= 0 ? merge_add(m, (uint32_t)at, (uint32_t)len, id, false) : add_unknown(m, at, len);
        at += len;
    }
    return rc;
}

static int encode_piece(void *arg, const char *text, size_t n)
{
    struct sink *s = arg;
    struct merger *m = s->m;
    int32_t id = m->t->ignore_merges ? tok_find(m->t, text, n) : -1, last = -1;
    int rc;

    if (id >= 0 && !m->t->pieces[id].special)
        return dtx_ids_add(s->ids, id);
    m->text = text;
    m->n = 0;
    rc = m->t->byte_level ? add_bytes(m, n) : add_chars(m, n);
    if (rc == 0)
        rc = merge_run(m);
    for (int32_t i = m->n ? 0 : -1; rc == 0 && i >= 0; i = m->s[i].next) {
        if (!(m->t->fuse_unk && m->s[i].id == m->t->unk && last == m->t->unk))
            rc = dtx_ids_add(s->ids, m->s[i].id);
        last = m->s[i].id;
    }
    return rc;
}

/* Length of the part that is encoded as one: up to the next added token, or where UTF-8 begins or ends. */
static size_t part_length(const struct dtx_tokenizer *t, const char *text, size_t n, bool *valid)
{
    size_t at = 0, step = text_utf8_step(text, n);
    int32_t id;

    *valid = step > 0;
    while (at < n && (step > 0) == *valid) {
        if (at > 0 && tok_user_at(t, text + at, n - at, &id))
            break;
        at += step ? step : 1;
        step = text_utf8_step(text + at, n - at);
    }
    return at;
}

static int encode_text(struct merger *m, const char *text, size_t n, struct dtx_ids *ids, struct dtx_err *e)
{
    struct sink sink = {m, ids};
    int rc = 0;

    for (size_t at = 0; rc == 0 && at < n;) {
        bool valid;
        int32_t id;
        size_t len = tok_user_at(m->t, text + at, n - at, &id);
        if (len) {
            rc = dtx_ids_add(ids, id);
        } else {
            len = part_length(m->t, text + at, n - at, &valid);
            rc = valid ? pre_run(m, text + at, len, at == 0, encode_piece, &sink, e)
                       : encode_piece(&sink, text + at, len);
        }
        at += len;
    }
    return rc;
}

int tokjson_encode(struct merger *m, const char *text, size_t n, struct dtx_ids *ids, struct dtx_err *e)
{
    pcre2_match_data *data = pcre2_match_data_create(1, NULL);
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    int rc = -ENOMEM;

    if (e)
        e->code = 0;
    if (data && context) {
        pcre2_set_match_limit(context, MATCH_LIMIT);
        pcre2_set_heap_limit(context, MATCH_HEAP_KIB);
        m->match = data;
        m->match_context = context;
        m->deadline = pre_cpu_ns() + CPU_NS + (int64_t)n * CPU_NS_A_BYTE;
        rc = encode_text(m, text, n, ids, e);
    }
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (rc && e && e->code == 0)
        dtx_fail(e, rc, "out of memory encoding a text of %zu bytes", n);
    return rc;
}
