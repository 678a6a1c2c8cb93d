/* SentencePiece BPE: spaces become U+2581, characters merge by score, what is left over is spelled in bytes.
 */
#include "kernels/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

#include "scheduler/base/text.h"

static void normalize(const struct dtx_tokenizer *t, const char *text, size_t n, struct buf *out)
{
    const char *space = t->escape_spaces ? SPACE_SIGN : " ";
    bool after_space = t->squeeze_spaces;

    if (t->squeeze_spaces) {
        while (n && text[0] == ' ') {
            text++;
            n--;
        }
        while (n && text[n - 1] == ' ')
            n--;
    }
    if (n == 0)
        return;
    if (buf_reserve(out, n + n / 2 + 4))
        return;
    if (t->dummy_prefix)
        buf_adds(out, space);
    for (size_t i = 0; i < n;) {
        size_t run = 0;
        while (i + run < n && text[i + run] != ' ')
            run++;
        if (run) {
            buf_add(out, text + i, run);
            after_space = false;
            i += run;
            continue;
        }
        if (!(after_space && t->squeeze_spaces))
            buf_adds(out, space);
        after_space = true;
        i++;
    }
}

static int add_symbols(struct merger *m, size_t at, size_t end)
{
    int rc = 0;

    m->n = 0;
    while (rc == 0 && at < end) {
        int32_t id = -1;
        size_t len = tok_user_at(m->t, m->text + at, end - at, &id);
        bool frozen = len > 0;
        if (!frozen) {
            len = text_utf8_step(m->text + at, end - at);
            len = len ? len : 1; /* a byte that is not UTF-8 stays alone */
        }
        rc = merge_add(m, (uint32_t)at, (uint32_t)len, id, frozen);
        at += len;
    }
    return rc;
}

/* One text that is no piece: its bytes, or the unknown piece, once for a row of them. */
static int emit_unknown(const struct merger *m, const char *text, size_t n, bool *was_unknown,
                        struct dtx_ids *ids)
{
    int rc = 0;

    if (m->t->byte_fallback) {
        for (size_t i = 0; rc == 0 && i < n; i++)
            rc = dtx_ids_add(ids, m->t->byte_id[(unsigned char)text[i]]);
        return rc;
    }
    if (!*was_unknown)
        rc = dtx_ids_add(ids, m->t->unk);
    *was_unknown = true;
    return rc;
}

/* A piece; an unused one is taken apart the way it was put together.  Every part is shorter, so this ends. */
static int emit(const struct merger *m, const char *text, size_t n, bool *was_unknown, struct dtx_ids *ids)
{
    int32_t id = tok_find(m->t, text, n);
    uint32_t left = id >= 0 && m->cut && m->t->pieces[id].kind == PIECE_UNUSED ? m->cut[id] : 0;
    int rc;

    if (id < 0)
        return emit_unknown(m, text, n, was_unknown, ids);
    if (left > 0 && left < n) {
        rc = emit(m, text, left, was_unknown, ids);
        return rc ? rc : emit(m, text + left, n - left, was_unknown, ids);
    }
    *was_unknown = false;
    return dtx_ids_add(ids, id);
}

static int encode_part(struct merger *m, size_t at, size_t end, bool *was_unknown, struct dtx_ids *ids)
{
    int rc = add_symbols(m, at, end);

    if (rc == 0)
        rc = merge_run(m);
    for (int32_t i = m->n ? 0 : -1; rc == 0 && i >= 0; i = m->s[i].next) {
        const struct merge_sym *s = &m->s[i];
        if (s->id < 0 || m->cut) {
            rc = emit(m, m->text + s->at, s->len, was_unknown, ids);
        } else {
            *was_unknown = false;
            rc = dtx_ids_add(ids, s->id);
        }
    }
    return rc;
}

/* End of the word that begins at `at`: the next space sign after something else. */
static size_t word_end(const char *p, size_t at, size_t n)
{
    while (at < n && (unsigned char)p[at] == 0xe2 && n - at >= 3 && memcmp(p + at, SPACE_SIGN, 3) == 0)
        at += 3;
    while (at < n) {
        const char *hit = memchr(p + at, 0xe2, n - at);
        if (!hit)
            return n;
        at = (size_t)(hit - p);
        if (n - at >= 3 && memcmp(hit, SPACE_SIGN, 3) == 0)
            return at;
        at++;
    }
    return n;
}

int spm_encode(struct merger *m, const char *text, size_t n, struct dtx_ids *ids, struct dtx_err *e)
{
    const struct dtx_tokenizer *t = m->t;
    struct buf norm = BUF_INIT;
    bool was_unknown = false;
    int rc = 0;

    normalize(t, text, n, &norm);
    if (t->has_unused && !(m->cut = calloc((size_t)t->n, sizeof(*m->cut))))
        rc = -ENOMEM;
    if (norm.failed)
        rc = -ENOMEM;
    m->text = norm.p;
    for (size_t at = 0; rc == 0 && at < norm.len;) {
        size_t end = t->words_apart ? word_end(norm.p, at, norm.len) : norm.len;
        rc = encode_part(m, at, end, &was_unknown, ids);
        at = end;
    }
    buf_release(&norm);
    return rc ? dtx_fail(e, rc, "out of memory encoding a text of %zu bytes", n) : 0;
}
