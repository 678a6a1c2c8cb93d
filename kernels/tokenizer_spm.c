/*
 * tokenizer.model: SentencePiece's ModelProto, read by hand.  Only the fields that matter are looked at:
 *   1 pieces {1 text, 2 score, 3 kind}   2 trainer_spec {3 model_type, 24 suffix, 35 byte_fallback, 40-42
 * ids} 3 normalizer_spec {1 name, 2 precompiled map, 3 dummy prefix, 4 remove extra spaces, 5 escape spaces,
 * 6 rules}
 */
#include "kernels/tokenizer_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/text.h"

static const char file[] = "tokenizer.model";

struct reader {
    const unsigned char *p, *end;
};

struct field {
    uint32_t number, wire;
    uint64_t value;      /* wire types 0, 1, 5 */
    struct reader bytes; /* wire type 2 */
};

static bool read_varint(struct reader *r, uint64_t *out)
{
    uint64_t v = 0;

    for (unsigned shift = 0; shift < 64 && r->p < r->end; shift += 7) {
        unsigned char c = *r->p++;
        v |= (uint64_t)(c & 127) << shift;
        if (c < 128) {
            *out = v;
            return true;
        }
    }
    return false;
}

static bool read_fixed(struct reader *r, size_t n, uint64_t *out)
{
    *out = 0;
    if ((size_t)(r->end - r->p) < n)
        return false;
    for (size_t i = 0; i < n; i++)
        *out |= (uint64_t)r->p[i] << (8 * i);
    r->p += n;
    return true;
}

/* 1: a field, 0: the end, -1: damaged. */
static int next_field(struct reader *r, struct field *f)
{
    uint64_t key, n;

    if (r->p == r->end)
        return 0;
    if (!read_varint(r, &key) || key >> 3 == 0 || key >> 3 > 0x1fffffff)
        return -1;
    *f = (struct field){.number = (uint32_t)(key >> 3), .wire = key & 7};
    switch (f->wire) {
    case 0:
        return read_varint(r, &f->value) ? 1 : -1;
    case 1:
        return read_fixed(r, 8, &f->value) ? 1 : -1;
    case 2:
        if (!read_varint(r, &n) || n > (size_t)(r->end - r->p))
            return -1;
        f->bytes = (struct reader){r->p, r->p + n};
        r->p += n;
        return 1;
    case 5:
        return read_fixed(r, 4, &f->value) ? 1 : -1;
    default:
        return -1;
    }
}

static int damaged(struct dtx_err *e)
{
    return dtx_fail(e, -EINVAL, "%s is damaged or no SentencePiece model: copy it again", file);
}

struct spec { /* what is read beside the pieces */
    int64_t model_type, unk, bos, eos;
    float *score;
    int32_t cap;
};

static int read_piece(struct dtx_tokenizer *t, struct reader r, struct spec *s, struct dtx_err *e)
{
    struct field f;
    struct reader text = {NULL, NULL};
    uint64_t kind = PIECE_NORMAL;
    uint32_t bits = 0;
    int got, rc;

    while ((got = next_field(&r, &f)) > 0) {
        if (f.number == 1 && f.wire == 2)
            text = f.bytes;
        else if (f.number == 2 && f.wire == 5)
            bits = (uint32_t)f.value;
        else if (f.number == 3 && f.wire == 0)
            kind = f.value;
    }
    if (got < 0 || kind < PIECE_NORMAL || kind > PIECE_BYTE)
        return damaged(e);
    if (text.p == text.end || !text_utf8_valid((const char *)text.p, (size_t)(text.end - text.p)))
        return dtx_fail(e, -EINVAL, "%s: piece %d is empty or not UTF-8: copy the file again", file, t->n);
    if (t->n >= s->cap) {
        int32_t cap = s->cap ? s->cap * 2 : 1024;
        float *p = realloc(s->score, (size_t)cap * sizeof(*p));
        if (!p)
            return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
        s->score = p;
        s->cap = cap;
    }
    memcpy(&s->score[t->n], &bits, sizeof(bits));
    if (!isfinite(s->score[t->n]))
        return dtx_fail(e, -EINVAL, "%s: piece %d has no finite score: copy the file again", file, t->n);
    rc = tok_put(t, file, t->n, (const char *)text.p, (size_t)(text.end - text.p), (enum piece_kind)kind, e);
    return rc;
}

static int read_trainer(struct dtx_tokenizer *t, struct reader r, struct spec *s, struct dtx_err *e)
{
    struct field f;
    int got;

    while ((got = next_field(&r, &f)) > 0) {
        if (f.wire != 0)
            continue;
        if (f.number == 3)
            s->model_type = (int64_t)f.value;
        else if (f.number == 24 && f.value)
            return dtx_fail(e, -EINVAL, "%s: whitespace as a suffix is not supported", file);
        else if (f.number == 35)
            t->byte_fallback = f.value != 0;
        else if (f.number == 40)
            s->unk = (int64_t)f.value;
        else if (f.number == 41)
            s->bos = (int64_t)f.value;
        else if (f.number == 42)
            s->eos = (int64_t)f.value;
    }
    return got < 0 ? damaged(e) : 0;
}

static int read_normalizer(struct dtx_tokenizer *t, struct reader r, struct dtx_err *e)
{
    struct reader name = {NULL, NULL};
    struct field f;
    bool maps = false;
    int got;

    while ((got = next_field(&r, &f)) > 0) {
        if (f.number == 1 && f.wire == 2)
            name = f.bytes;
        else if ((f.number == 2 || f.number == 6) && f.wire == 2)
            maps |= f.bytes.p != f.bytes.end;
        else if (f.number == 3 && f.wire == 0)
            t->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.wire == 0)
            t->squeeze_spaces = f.value != 0;
        else if (f.number == 5 && f.wire == 0)
            t->escape_spaces = f.value != 0;
    }
    if (got < 0)
        return damaged(e);
    if (maps)
        return dtx_fail(e, -EINVAL,
                        "%s: its normalizer \"%.*s\" is not supported, only \"identity\": use a model with a "
                        "tokenizer.json, or train the tokenizer with --normalization_rule_name=identity",
                        file, (int)(name.end - name.p > 40 ? 40 : name.end - name.p),
                        text_utf8_valid((const char *)name.p, (size_t)(name.end - name.p)) && name.p
                            ? (const char *)name.p
                            : "");
    return 0;
}

static int read_model(struct dtx_tokenizer *t, struct reader r, struct spec *s, struct dtx_err *e)
{
    struct field f;
    int got, rc = 0;

    while (rc == 0 && (got = next_field(&r, &f)) != 0) {
        if (got < 0)
            return damaged(e);
        if (f.wire != 2)
            continue;
        if (f.number == 1)
            rc = read_piece(t, f.bytes, s, e);
        else if (f.number == 2)
            rc = read_trainer(t, f.bytes, s, e);
        else if (f.number == 3)
            rc = read_normalizer(t, f.bytes, e);
    }
    if (rc == 0 && t->n == 0)
        rc = damaged(e);
    if (rc == 0 && s->model_type != 2)
        rc = dtx_fail(e, -EINVAL, "%s is of type %s, expected BPE", file,
                      s->model_type == 1 ? "unigram" : "word or char");
    return rc;
}

static int by_score(const void *a, const void *b, void *arg)
{
    const float *score = arg, x = score[*(const int32_t *)a], y = score[*(const int32_t *)b];

    return x > y ? -1 : x < y;
}

static int rank_pieces(struct dtx_tokenizer *t, float *score, struct dtx_err *e)
{
    int32_t *order = malloc((size_t)t->n * sizeof(*order));
    uint32_t rank = 0;

    if (!order)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    for (int32_t i = 0; i < t->n; i++)
        order[i] = i;
    qsort_r(order, (size_t)t->n, sizeof(*order), by_score, score);
    for (int32_t i = 0; i < t->n; i++) {
        if (i > 0 && score[order[i]] != score[order[i - 1]])
            rank++;
        t->pieces[order[i]].rank = rank;
    }
    free(order);
    return 0;
}

/* Does the space sign stand only at the beginning of the piece? */
static bool word_like(const char *s, size_t n)
{
    bool letters = false;

    for (size_t i = 0; i < n; i++) {
        bool space = n - i >= 3 && memcmp(s + i, SPACE_SIGN, 3) == 0;
        if (space && letters)
            return false;
        letters |= !space;
        i += space ? 2 : 0;
    }
    return true;
}

static int index_pieces(struct dtx_tokenizer *t, struct dtx_err *e)
{
    if (tok_map_reserve(&t->normal, (uint32_t)t->n))
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    t->words_apart = t->escape_spaces;
    for (int32_t i = 0; i < t->n; i++) {
        const struct piece *p = &t->pieces[i];
        if (p->kind != PIECE_NORMAL && p->kind != PIECE_USER && p->kind != PIECE_UNUSED)
            continue;
        t->max_len = p->len > t->max_len ? p->len : t->max_len;
        t->has_unused |= p->kind == PIECE_UNUSED;
        t->words_apart &= p->kind != PIECE_UNUSED && word_like(tok_text(t, i), p->len);
        tok_map_add(t, &t->normal, i);
    }
    return 0;
}

static int32_t id_of_kind(const struct dtx_tokenizer *t, int64_t id, enum piece_kind kind)
{
    return id >= 0 && id < t->n && t->pieces[id].kind == kind ? (int32_t)id : -1;
}

static int finish(struct dtx_tokenizer *t, struct spec *s, struct dtx_err *e)
{
    int rc = rank_pieces(t, s->score, e);

    if (rc == 0)
        rc = index_pieces(t, e);
    if (rc)
        return rc;
    for (int32_t i = 0; i < t->n; i++)
        if (t->pieces[i].kind == PIECE_UNKNOWN && t->unk < 0)
            t->unk = i;
    tok_find_bytes(t);
    for (int b = 0; t->byte_fallback && b < 256; b++)
        if (t->byte_id[b] < 0)
            return dtx_fail(e, -EINVAL, "%s says byte_fallback, but has no piece <0x%02X>", file, b);
    if (!t->byte_fallback && t->unk < 0)
        return dtx_fail(e, -EINVAL, "%s has neither byte pieces nor an unknown piece", file);
    t->bos = id_of_kind(t, s->bos, PIECE_CONTROL);
    t->eos = id_of_kind(t, s->eos, PIECE_CONTROL);
    t->fuse_unk = true;
    t->strip_space = t->dummy_prefix;
    return 0;
}

int spm_load(struct dtx_tokenizer *t, const char *data, size_t n, struct dtx_err *e)
{
    struct reader r = {(const unsigned char *)data, (const unsigned char *)data + n};
    struct spec s = {.model_type = 1, .unk = 0, .bos = 1, .eos = 2};
    int rc;

    t->by_text = true;
    t->dummy_prefix = t->squeeze_spaces = t->escape_spaces = true; /* the defaults of the format */
    rc = read_model(t, r, &s, e);
    if (rc == 0)
        rc = finish(t, &s, e);
    free(s.score);
    return rc;
}
