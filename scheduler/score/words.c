#include "scheduler/score/words.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "scheduler/base/text.h"
#include "scheduler/score/porter.h"

struct vocab_entry {
    size_t at, len; /* in vocab.text */
    uint64_t hash;
    int32_t next; /* in the same bucket, -1: last */
};

void vocab_init(struct vocab *v)
{
    memset(v, 0, sizeof(*v));
}

void vocab_release(struct vocab *v)
{
    buf_release(&v->text);
    free(v->entry);
    free(v->bucket);
    vocab_init(v);
}

static uint64_t hash_of(const char *s, size_t n)
{
    uint64_t h = 1469598103934665603u; /* FNV-1a */

    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)s[i]) * 1099511628211u;
    return h ^ h >> 32;
}

static bool vocab_grow(struct vocab *v)
{
    size_t cap = v->cap ? v->cap * 2 : 256;
    struct vocab_entry *entry = realloc(v->entry, cap * sizeof(*entry));
    int32_t *bucket;

    if (!entry)
        return false;
    v->entry = entry;
    bucket = realloc(v->bucket, 2 * cap * sizeof(*bucket));
    if (!bucket)
        return false;
    v->bucket = bucket;
    v->cap = cap;
    v->buckets = 2 * cap;
    memset(bucket, 0xff, v->buckets * sizeof(*bucket));
    for (size_t i = 0; i < v->n; i++) {
        int32_t *head = &bucket[entry[i].hash & (v->buckets - 1)];
        entry[i].next = *head;
        *head = (int32_t)i;
    }
    return true;
}

int32_t vocab_add(struct vocab *v, const char *word, size_t n)
{
    uint64_t h = hash_of(word, n);

    if (v->buckets)
        for (int32_t i = v->bucket[h & (v->buckets - 1)]; i >= 0; i = v->entry[i].next)
            if (v->entry[i].hash == h && v->entry[i].len == n &&
                memcmp(v->text.p + v->entry[i].at, word, n) == 0)
                return i;
    if (v->n == v->cap && !vocab_grow(v)) {
        v->failed = true;
        return -1;
    }
    int32_t *head = &v->bucket[h & (v->buckets - 1)], i = (int32_t)v->n++;
    v->entry[i] = (struct vocab_entry){v->text.len, n, h, *head};
    *head = i;
    buf_add(&v->text, word, n);
    v->failed |= v->text.failed;
    return v->failed ? -1 : i;
}

void words_add(struct words *w, struct vocab *v, const char *word, size_t n)
{
    int32_t id;

    if (w->n >= WORDS_MAX || v->failed)
        return;
    id = vocab_add(v, word, n);
    if (w->n == w->cap) {
        size_t cap = w->cap ? w->cap * 2 : 64;
        int32_t *grown = realloc(w->id, cap * sizeof(*grown));
        if (!grown) {
            v->failed = true;
            return;
        }
        w->id = grown;
        w->cap = cap;
    }
    w->id[w->n++] = id;
}

void words_release(struct words *w)
{
    free(w->id);
    memset(w, 0, sizeof(*w));
}

/* The lower-case [a-z0-9] letter at s, 0 if there is none; *step: its length.  Two characters outside ASCII
 * have an ASCII lower case: the Kelvin sign, and I with a dot (whose i is followed by a combining dot, which
 * ends the word). */
static char rouge_letter(const char *s, size_t n, size_t *step)
{
    *step = 1;
    if (isascii((unsigned char)*s))
        return isalnum((unsigned char)*s) ? (char)tolower((unsigned char)*s) : 0;
    if (n >= 3 && memcmp(s, "\xe2\x84\xaa", 3) == 0) {
        *step = 3;
        return 'k';
    }
    if (n >= 2 && memcmp(s, "\xc4\xb0", 2) == 0) /* the second byte is looked at next, and ends the word */
        return 'i';
    return 0;
}

void words_rouge(struct words *w, struct vocab *v, const char *text, size_t n, bool stem)
{
    struct buf word = BUF_INIT;
    size_t step = 1;

    for (size_t i = 0; i <= n && w->n < WORDS_MAX; i += step) {
        char c = i < n ? rouge_letter(text + i, n - i, &step) : 0;
        if (c) {
            buf_addc(&word, c);
        } else if (word.len) {
            buf_reserve(&word, 1);
            if (stem && word.len > 3 && !word.failed)
                word.len = porter_stem(word.p, word.len);
            words_add(w, v, word.p, word.len);
            buf_clear(&word);
        }
    }
    v->failed |= word.failed;
    buf_release(&word);
}

void words_split(struct words *w, struct vocab *v, const char *text, size_t n)
{
    size_t start = 0;

    for (size_t i = 0; i <= n;) {
        size_t step = i < n ? text_space_step(text + i, n - i) : 1;
        if (step && i > start)
            words_add(w, v, text + start, i - start);
        if (step)
            start = i + step;
        i += step ? step : 1;
    }
}

static bool is_13a_symbol(unsigned char c)
{
    return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
           (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_point(char c)
{
    return c == '.' || c == ',';
}

/* One pass of 13a: wherever two neighbours fit, the gap or gaps get spaces; matches do not overlap. */
static void pass_13a(struct buf *in, struct buf *out, int pass)
{
    buf_clear(out);
    for (size_t i = 0; i < in->len; i++) {
        char c = in->p[i], d = i + 1 < in->len ? in->p[i + 1] : '\0';
        bool pair = i + 1 < in->len;
        if (pass == 2 && pair && !is_digit(c) && is_point(d)) {
            buf_add(out, (char[]){c, ' ', d, ' '}, 4);
            i++;
        } else if (pass == 3 && pair && is_point(c) && !is_digit(d)) {
            buf_add(out, (char[]){' ', c, ' ', d}, 4);
            i++;
        } else if (pass == 4 && pair && is_digit(c) && d == '-') {
            buf_add(out, (char[]){c, ' ', '-', ' '}, 4);
            i++;
        } else if (pass == 1 && is_13a_symbol((unsigned char)c)) {
            buf_add(out, (char[]){' ', c, ' '}, 3);
        } else {
            buf_addc(out, c);
        }
    }
}

/* Entities become characters, line ends spaces, a hyphen at a line's end goes. */
static void unescape_13a(const char *text, size_t n, struct buf *out)
{
    static const char *const from[] = {"<skipped>", "-\n", "\n", "&quot;", "&amp;", "&lt;", "&gt;"};
    static const char *const to[] = {"", "", " ", "\"", "&", "<", ">"};

    buf_addc(out, ' ');
    for (size_t i = 0; i < n;) {
        size_t k = 0, len = 0;
        for (; k < sizeof(from) / sizeof(from[0]); k++) {
            len = strlen(from[k]);
            if (i + len <= n && memcmp(text + i, from[k], len) == 0)
                break;
        }
        if (k < sizeof(from) / sizeof(from[0])) {
            buf_adds(out, to[k]);
            i += len;
        } else {
            buf_addc(out, text[i++]);
        }
    }
    buf_addc(out, ' ');
}

void words_13a(struct words *w, struct vocab *v, const char *text)
{
    struct buf a = BUF_INIT, b = BUF_INIT;
    size_t n = strlen(text);

    while (n && text_space_step(text + n - 1, 1))
        n--;
    unescape_13a(text, n, &a);
    for (int pass = 1; pass <= 4; pass++) {
        struct buf swap;
        pass_13a(&a, &b, pass);
        swap = a;
        a = b;
        b = swap;
    }
    v->failed |= a.failed || b.failed;
    if (!v->failed)
        words_split(w, v, a.p, a.len);
    buf_release(&a);
    buf_release(&b);
}

static void add_lower(struct buf *out, const char *s, size_t n)
{
    utf8proc_int32_t c;
    utf8proc_uint8_t lower[4];

    if (utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &c) <= 0)
        buf_add(out, s, n);
    else
        buf_add(out, lower, (size_t)utf8proc_encode_char(utf8proc_tolower(c), lower));
}

static bool is_article(const char *s, size_t n)
{
    return (n == 1 && s[0] == 'a') || (n == 2 && memcmp(s, "an", 2) == 0) ||
           (n == 3 && memcmp(s, "the", 3) == 0);
}

void normalize_squad(const char *text, struct buf *out)
{
    struct buf low = BUF_INIT;
    size_t n = strlen(text), start = 0;

    for (size_t i = 0, step; i < n; i += step) {
        step = text_utf8_step(text + i, n - i);
        if (step == 0)
            step = 1;
        if (!ispunct((unsigned char)text[i]) || !isascii((unsigned char)text[i]))
            add_lower(&low, text + i, step);
    }
    for (size_t i = 0; i <= low.len && low.p;) {
        size_t step = i < low.len ? text_space_step(low.p + i, low.len - i) : 1;
        if (step && i > start && !is_article(low.p + start, i - start)) {
            if (out->len)
                buf_addc(out, ' ');
            buf_add(out, low.p + start, i - start);
        }
        if (step)
            start = i + step;
        i += step ? step : 1;
    }
    buf_addc(out, '\0'); /* so that out->p is a text even when nothing was left */
    if (!out->failed)
        out->len--;
    out->failed |= low.failed;
    buf_release(&low);
}

/* n-grams of one text and how often they are there; open addressing. */
struct grams {
    const int32_t **at; /* where the first of them stands, NULL: free */
    uint32_t *count;
    size_t size; /* a power of two */
    size_t n;    /* words of a gram */
};

static size_t find_gram(const struct grams *g, const int32_t *gram)
{
    uint64_t h = 0;

    for (size_t i = 0; i < g->n; i++)
        h = (h ^ (uint32_t)gram[i]) * 0x9e3779b97f4a7c15u;
    for (size_t at = (h >> 32) & (g->size - 1);; at = (at + 1) & (g->size - 1))
        if (!g->at[at] || memcmp(g->at[at], gram, g->n * sizeof(*gram)) == 0)
            return at;
}

static bool grams_init(struct grams *g, const struct words *w, size_t n, size_t count)
{
    g->n = n;
    for (g->size = 16; g->size < 2 * count;)
        g->size *= 2;
    g->at = calloc(g->size, sizeof(*g->at));
    g->count = calloc(g->size, sizeof(*g->count));
    if (!g->at || !g->count)
        return false;
    for (size_t i = 0; i < count; i++) {
        size_t at = find_gram(g, w->id + i);
        if (!g->at[at])
            g->at[at] = w->id + i;
        g->count[at]++;
    }
    return true;
}

size_t ngrams_shared(const struct words *a, const struct words *b, size_t n, bool *failed)
{
    size_t na = a->n >= n ? a->n - n + 1 : 0, nb = b->n >= n ? b->n - n + 1 : 0, shared = 0;
    struct grams g = {0};

    if (*failed) /* some ids may be -1 */
        return 0;
    if (!grams_init(&g, a, n, na))
        *failed = true;
    for (size_t i = 0; i < nb && !*failed; i++) {
        size_t at = find_gram(&g, b->id + i);
        if (g.count[at]) {
            g.count[at]--;
            shared++;
        }
    }
    free(g.at);
    free(g.count);
    return shared;
}
