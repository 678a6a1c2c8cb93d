/* The vocabulary of a tokenizer: pieces by id, ids by text, merged pairs. */
#include "kernels/tokenizer_impl.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int grow(struct dtx_tokenizer *t, int32_t need)
{
    int32_t cap = t->cap ? t->cap : 1024;
    struct piece *p;

    while (cap < need)
        cap *= 2;
    if (cap > t->cap) {
        p = realloc(t->pieces, (size_t)cap * sizeof(*p));
        if (!p)
            return -ENOMEM;
        t->pieces = p;
        t->cap = cap;
    }
    if (need > t->n) {
        memset(&t->pieces[t->n], 0, (size_t)(need - t->n) * sizeof(*p));
        t->n = need;
    }
    return 0;
}

int tok_put(struct dtx_tokenizer *t, const char *file, int64_t id, const char *text, size_t n,
            enum piece_kind kind, struct dtx_err *e)
{
    struct piece *p;

    if (id < 0 || id >= TOK_MAX_PIECES)
        return dtx_fail(e, -EINVAL, "%s: token id %" PRId64 ": expected 0 to %d", file, id,
                        TOK_MAX_PIECES - 1);
    if (n > TOK_MAX_PIECE)
        return dtx_fail(e, -EINVAL, "%s: token %" PRId64 " has %zu bytes; at most %d are allowed", file, id,
                        n, TOK_MAX_PIECE);
    if (grow(t, (int32_t)id + 1))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    p = &t->pieces[id];
    p->at = (uint32_t)t->text.len;
    p->len = (uint32_t)n;
    p->kind = (uint8_t)kind;
    p->special = kind == PIECE_CONTROL || kind == PIECE_UNKNOWN;
    buf_add(&t->text, text, n);
    if (t->text.failed || t->text.len > UINT32_MAX / 2)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    return 0;
}

/* ---- text -> id ---- */

static inline uint64_t hash_step(uint64_t h, char c)
{
    return (h ^ (unsigned char)c) * 0x100000001b3ull;
}

static inline uint32_t hash_end(uint64_t h)
{
    h ^= h >> 33;
    h *= 0xff51afd7ed558ccdull;
    return (uint32_t)(h >> 32);
}

static uint32_t hash_text(const struct dtx_tokenizer *t, const char *text, size_t n)
{
    uint64_t h = t->seed;

    for (size_t i = 0; i < n; i++)
        h = hash_step(h, text[i]);
    return hash_end(h);
}

static uint32_t table_size(uint32_t n)
{
    uint32_t size = 16;

    while (size < n * 2)
        size *= 2;
    return size;
}

int tok_map_reserve(struct strmap *m, uint32_t n)
{
    uint32_t size = table_size(n);

    m->slot = malloc(size * sizeof(*m->slot));
    if (!m->slot)
        return -ENOMEM;
    memset(m->slot, 0xff, size * sizeof(*m->slot));
    m->mask = size - 1;
    m->used = 0;
    return 0;
}

static int32_t *map_slot(const struct dtx_tokenizer *t, const struct strmap *m, uint32_t hash,
                         const char *text, size_t n)
{
    for (uint32_t i = hash & m->mask;; i = (i + 1) & m->mask) {
        int32_t id = m->slot[i];
        if (id < 0 || (t->pieces[id].len == n && memcmp(tok_text(t, id), text, n) == 0))
            return &m->slot[i];
    }
}

/* The first of two pieces with one text stays. */
void tok_map_add(struct dtx_tokenizer *t, struct strmap *m, int32_t id)
{
    const char *text = tok_text(t, id);
    size_t n = t->pieces[id].len;
    int32_t *slot = map_slot(t, m, hash_text(t, text, n), text, n);

    if (*slot < 0) {
        *slot = id;
        m->used++;
    }
}

int32_t tok_find(const struct dtx_tokenizer *t, const char *text, size_t n)
{
    if (n > t->max_len || !t->normal.slot)
        return -1;
    return *map_slot(t, &t->normal, hash_text(t, text, n), text, n);
}

size_t tok_user_at(const struct dtx_tokenizer *t, const char *text, size_t n, int32_t *id)
{
    size_t best = 0;
    uint64_t h = t->seed;

    if (!t->user.used || n == 0 || !t->user_first[(unsigned char)text[0]])
        return 0;
    for (size_t i = 0; i < n && i < t->max_user; i++) {
        int32_t found;
        h = hash_step(h, text[i]);
        found = *map_slot(t, &t->user, hash_end(h), text, i + 1);
        if (found >= 0) {
            best = i + 1;
            *id = found;
        }
    }
    return best;
}

int tok_index_user(struct dtx_tokenizer *t, const char *file, struct dtx_err *e)
{
    uint32_t count = 0;

    for (int32_t i = 0; i < t->n; i++)
        count += t->pieces[i].kind == PIECE_USER;
    free(t->user.slot);
    if (tok_map_reserve(&t->user, count))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    t->max_user = 0;
    memset(t->user_first, 0, sizeof(t->user_first));
    for (int32_t i = 0; i < t->n; i++) {
        const struct piece *p = &t->pieces[i];
        if (p->kind != PIECE_USER || p->len == 0)
            continue;
        if (p->len > TOK_MAX_USER)
            return dtx_fail(e, -EINVAL, "%s: added token %d has %u bytes; at most %d are supported", file, i,
                            p->len, TOK_MAX_USER);
        t->max_user = p->len > t->max_user ? p->len : t->max_user;
        t->user_first[(unsigned char)*tok_text(t, i)] = true;
        tok_map_add(t, &t->user, i);
    }
    return 0;
}

int32_t tok_by_text(const struct dtx_tokenizer *t, const char *text)
{
    size_t n = strlen(text);
    int32_t found = -1;

    for (int32_t i = 0; i < t->n; i++) {
        const struct piece *p = &t->pieces[i];
        if (p->kind == PIECE_NONE || p->len != n || memcmp(tok_text(t, i), text, n))
            continue;
        if (p->special || p->kind == PIECE_USER)
            return i;
        if (found < 0)
            found = i;
    }
    return found;
}

void tok_find_bytes(struct dtx_tokenizer *t)
{
    for (int32_t i = 0; i < t->n; i++) {
        const char *s = tok_text(t, i);
        unsigned b;
        char hex[3] = "";
        if (t->pieces[i].kind == PIECE_NONE || t->pieces[i].len != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
            continue;
        memcpy(hex, s + 3, 2);
        if (strspn(hex, "0123456789abcdefABCDEF") != 2)
            continue;
        b = (unsigned)strtoul(hex, NULL, 16);
        if (t->byte_id[b] < 0) {
            t->byte_id[b] = i;
            t->pieces[i].kind = PIECE_BYTE;
        }
    }
}

/* ---- pairs ---- */

static uint32_t hash_pair(uint64_t key)
{
    key *= 0x9e3779b97f4a7c15ull;
    return (uint32_t)(key >> 32);
}

int tok_pairs_reserve(struct pairmap *m, uint32_t n)
{
    uint32_t size = table_size(n);

    m->v = malloc(size * sizeof(*m->v));
    if (!m->v)
        return -ENOMEM;
    memset(m->v, 0xff, size * sizeof(*m->v));
    m->mask = size - 1;
    return 0;
}

static struct pair *pair_slot(const struct pairmap *m, uint64_t key)
{
    for (uint32_t i = hash_pair(key) & m->mask;; i = (i + 1) & m->mask)
        if (m->v[i].key == key || m->v[i].key == UINT64_MAX)
            return &m->v[i];
}

void tok_pairs_put(struct pairmap *m, int32_t left, int32_t right, uint32_t rank, int32_t id)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;

    *pair_slot(m, key) = (struct pair){key, rank, id};
}

const struct pair *tok_pairs_find(const struct pairmap *m, int32_t left, int32_t right)
{
    const struct pair *p;

    if (left < 0 || right < 0 || !m->v)
        return NULL;
    p = pair_slot(m, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
    return p->key == UINT64_MAX ? NULL : p;
}
