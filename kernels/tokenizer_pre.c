/* The steps of tokenizer.json before merging: normalizers and pre-tokenizers. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "kernels/tokenizer_impl.h"

#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utf8proc.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

static const char file[] = "tokenizer.json";

/* What ByteLevel cuts with when use_regex is on: GPT-2's pattern. */
static const char gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

enum { MAX_PATTERN = 16384, MAX_TEXT_ARG = 256 };

/* ---- normalizers ---- */

static int unknown_step(const char *what, const json_t *v, struct dtx_err *e)
{
    return dtx_fail(e, -EINVAL, "%s: %s of type %.40s is not supported", file, what,
                    json_str(v, "type", "(missing)"));
}

static const char *pattern_string(const json_t *v, const char *kind)
{
    const char *s = json_str(json_object_get(v, "pattern"), kind, NULL);

    return s && strlen(s) <= MAX_PATTERN ? s : NULL;
}

static int text_arg(const json_t *v, const char *key, char **out, struct dtx_err *e)
{
    const char *s = json_str(v, key, NULL);

    if (!s || strlen(s) > MAX_TEXT_ARG)
        return dtx_fail(e, -EINVAL, "%s: %s of a %s must be a text of at most %d bytes", file, key,
                        json_str(v, "type", "step"), MAX_TEXT_ARG);
    *out = strdup(s);
    return *out ? 0 : dtx_fail(e, -ENOMEM, "%s: out of memory", file);
}

static int replace_step(const json_t *v, struct norm_step *s, struct dtx_err *e)
{
    const char *from = pattern_string(v, "String");

    if (!from || !*from || strlen(from) > MAX_TEXT_ARG)
        return dtx_fail(e, -EINVAL,
                        "%s: a Replace normalizer is supported with a pattern {\"String\": ...} only", file);
    s->type = NORM_REPLACE;
    s->from = strdup(from);
    if (!s->from)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", file);
    return text_arg(v, "content", &s->to, e);
}

static int unicode_form(const char *type, int *form)
{
    static const struct {
        const char *type;
        int form;
    } forms[] = {{"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
                 {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
                 {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
                 {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};

    for (size_t i = 0; i < sizeof(forms) / sizeof(forms[0]); i++)
        if (strcmp(type, forms[i].type) == 0) {
            *form = forms[i].form;
            return 1;
        }
    return 0;
}

static int load_norm(struct dtx_tokenizer *t, const json_t *v, int depth, struct dtx_err *e)
{
    const char *type = json_str(v, "type", "");
    struct norm_step *s;
    const json_t *item;
    size_t i;
    int rc = 0;

    if (!v || json_is_null(v))
        return 0;
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        json_array_foreach(json_object_get(v, "normalizers"), i, item)
        {
            rc = load_norm(t, item, depth + 1, e);
            if (rc)
                break;
        }
        return rc;
    }
    if (t->n_norm == TOK_MAX_STEPS)
        return dtx_fail(e, -EINVAL, "%s: more than %d normalizers", file, TOK_MAX_STEPS);
    s = &t->norm[t->n_norm++];
    if (strcmp(type, "Prepend") == 0) {
        s->type = NORM_PREPEND;
        return text_arg(v, "prepend", &s->to, e);
    }
    if (strcmp(type, "Replace") == 0)
        return replace_step(v, s, e);
    if (unicode_form(type, &s->form))
        return 0;
    return unknown_step("a normalizer", v, e);
}

/* ---- pre-tokenizers ---- */

static int compile(struct pre_step *s, const char *pattern, bool literal, struct dtx_err *e)
{
    uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
    int code;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[128];

    s->type = PRE_SPLIT;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &code, &at, NULL);
    if (!s->code) {
        pcre2_get_error_message(code, why, sizeof(why));
        return dtx_fail(e, -EINVAL, "%s: the pattern of its pre_tokenizer is not supported: %s at byte %zu",
                        file, (const char *)why, (size_t)at);
    }
    s->jit = pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE) ==
             0; /* without it matching is slower, not different */
    return 0;
}

static struct pre_step *new_step(struct dtx_tokenizer *t, struct dtx_err *e)
{
    if (t->n_pre < TOK_MAX_STEPS)
        return &t->pre[t->n_pre++];
    dtx_fail(e, -EINVAL, "%s: more than %d pre-tokenizers", file, TOK_MAX_STEPS);
    return NULL;
}

static int load_split(struct dtx_tokenizer *t, const json_t *v, struct dtx_err *e)
{
    const char *regex = pattern_string(v, "Regex"), *string = pattern_string(v, "String");
    const char *behavior = json_str(v, "behavior", "");
    struct pre_step *s = new_step(t, e);

    if (!s)
        return -EINVAL;
    if (strcmp(behavior, "Removed") == 0) {
        s->drop_match = !json_flag(v, "invert", 0);
        s->drop_rest = !s->drop_match;
    } else if (strcmp(behavior, "Isolated")) {
        return dtx_fail(e, -EINVAL, "%s: a Split with behavior %.40s is not supported", file, behavior);
    }
    if (!regex && !(string && *string))
        return dtx_fail(e, -EINVAL, "%s: a Split without a pattern of at most %d bytes", file, MAX_PATTERN);
    return regex ? compile(s, regex, false, e) : compile(s, string, true, e);
}

static int load_byte_level(struct dtx_tokenizer *t, const json_t *v, struct dtx_err *e)
{
    struct pre_step *s;

    t->byte_level = true;
    if (json_flag(v, "add_prefix_space", 1)) {
        s = new_step(t, e);
        if (!s)
            return -EINVAL;
        s->type = PRE_SPACE;
    }
    if (!json_flag(v, "use_regex", 1))
        return 0;
    s = new_step(t, e);
    return s ? compile(s, gpt2_pattern, false, e) : -EINVAL;
}

static int load_metaspace(struct dtx_tokenizer *t, const json_t *v, struct dtx_err *e)
{
    const char *scheme =
        json_str(v, "prepend_scheme", json_flag(v, "add_prefix_space", 1) ? "always" : "never");
    struct pre_step *s = new_step(t, e);

    if (!s)
        return -EINVAL;
    s->type = PRE_METASPACE;
    s->prepend = strcmp(scheme, "never") != 0;
    s->prepend_first_only = strcmp(scheme, "first") == 0;
    s->split = json_flag(v, "split", 1);
    return text_arg(v, "replacement", &s->space, e);
}

static int load_pre(struct dtx_tokenizer *t, const json_t *v, int depth, struct dtx_err *e)
{
    const char *type = json_str(v, "type", "");
    struct pre_step *s;
    const json_t *item;
    size_t i;
    int rc = 0;

    if (!v || json_is_null(v))
        return 0;
    if (strcmp(type, "Sequence") == 0 && depth < 4) {
        json_array_foreach(json_object_get(v, "pretokenizers"), i, item)
        {
            rc = load_pre(t, item, depth + 1, e);
            if (rc)
                break;
        }
        return rc;
    }
    if (t->byte_level)
        return dtx_fail(e, -EINVAL, "%s: a pre-tokenizer after ByteLevel is not supported", file);
    if (strcmp(type, "ByteLevel") == 0)
        return load_byte_level(t, v, e);
    if (strcmp(type, "Split") == 0)
        return load_split(t, v, e);
    if (strcmp(type, "Metaspace") == 0)
        return load_metaspace(t, v, e);
    if (strcmp(type, "Digits") == 0) {
        s = new_step(t, e);
        return s ? compile(s, json_flag(v, "individual_digits", 0) ? "\\p{N}" : "\\p{N}+", false, e)
                 : -EINVAL;
    }
    return unknown_step("a pre_tokenizer", v, e);
}

int pre_load(struct dtx_tokenizer *t, const json_t *root, struct dtx_err *e)
{
    int rc = load_norm(t, json_object_get(root, "normalizer"), 0, e);

    return rc ? rc : load_pre(t, json_object_get(root, "pre_tokenizer"), 0, e);
}

void pre_release(struct dtx_tokenizer *t)
{
    for (int i = 0; i < t->n_norm; i++) {
        free(t->norm[i].from);
        free(t->norm[i].to);
    }
    for (int i = 0; i < t->n_pre; i++) {
        pcre2_code_free(t->pre[i].code);
        free(t->pre[i].space);
    }
}

/* ---- running them ---- */

struct run { /* one call of pre_run */
    struct merger *m;
    pre_each each;
    void *arg;
    struct dtx_err *e;
};

static int cut_at(const struct run *r, int step, const char *text, size_t n, bool first);

static void replace_all(const char *text, size_t n, const char *from, const char *to, struct buf *out)
{
    size_t len = strlen(from), at = 0;

    while (at < n) {
        const char *hit = memmem(text + at, n - at, from, len);
        if (!hit)
            break;
        buf_add(out, text + at, (size_t)(hit - text) - at);
        buf_adds(out, to);
        if (out->len > TOK_MAX_TEXT)
            break;
        at = (size_t)(hit - text) + len;
    }
    buf_add(out, text + at, n - at);
}

static int cut_metaspace(const struct run *r, int step, const char *text, size_t n, bool first)
{
    const struct pre_step *s = &r->m->t->pre[step];
    size_t len = strlen(s->space), at = 0;
    struct buf b = BUF_INIT;
    int rc = 0;

    if (s->prepend && (first || !s->prepend_first_only) && text[0] != ' ' &&
        !(len && n >= len && memcmp(text, s->space, len) == 0))
        buf_adds(&b, s->space);
    replace_all(text, n, " ", s->space, &b);
    if (b.failed || b.len > TOK_MAX_TEXT)
        rc = dtx_fail(r->e, b.failed ? -ENOMEM : -EFBIG, "a text is too large to encode");
    while (rc == 0 && at < b.len) {
        size_t end = b.len;
        if (s->split && len && b.len - at > len) {
            const char *hit = memmem(b.p + at + 1, b.len - at - 1, s->space, len);
            end = hit ? (size_t)(hit - b.p) : b.len;
        }
        rc = cut_at(r, step + 1, b.p + at, end - at, first && at == 0);
        at = end;
    }
    buf_release(&b);
    return rc;
}

static int cut_space(const struct run *r, int step, const char *text, size_t n, bool first)
{
    struct buf b = BUF_INIT;
    int rc;

    if (text[0] == ' ')
        return cut_at(r, step + 1, text, n, first);
    buf_addc(&b, ' ');
    buf_add(&b, text, n);
    rc = b.failed ? dtx_fail(r->e, -ENOMEM, "out of memory encoding a text")
                  : cut_at(r, step + 1, b.p, b.len, first);
    buf_release(&b);
    return rc;
}

int64_t pre_cpu_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static int match(const struct run *r, const struct pre_step *s, const char *text, size_t n, size_t at)
{
    PCRE2_SPTR p = (PCRE2_SPTR)text;
    int got = PCRE2_ERROR_JIT_STACKLIMIT;

    if (++r->m->matches % 256 == 0 && pre_cpu_ns() > r->m->deadline)
        return PCRE2_ERROR_MATCHLIMIT;
    if (s->jit)
        got = pcre2_jit_match(s->code, p, n, at, PCRE2_NO_UTF_CHECK, r->m->match, r->m->match_context);
    if (got == PCRE2_ERROR_JIT_STACKLIMIT)
        got = pcre2_match(s->code, p, n, at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->m->match,
                          r->m->match_context);
    return got;
}

static int cut_split(const struct run *r, int step, const char *text, size_t n, bool first)
{
    const struct pre_step *s = &r->m->t->pre[step];
    size_t at = 0, from = 0;
    int rc = 0;

    while (rc == 0 && at < n) {
        int got = match(r, s, text, n, at);
        size_t *ov, begin, end;
        if (got == PCRE2_ERROR_NOMATCH)
            break;
        if (got < 0)
            return dtx_fail(r->e, -EINVAL, "%s: its pattern needs too many steps (PCRE2 error %d)", file,
                            got);
        ov = pcre2_get_ovector_pointer(r->m->match);
        begin = ov[0];
        end = ov[1];
        if (begin < from || end <= begin) { /* an empty match cuts nothing */
            at += text_utf8_step(text + at, n - at);
            continue;
        }
        if (begin > from && !s->drop_rest)
            rc = cut_at(r, step + 1, text + from, begin - from, first && from == 0);
        /* the pieces are handed on at once: match data is free again */
        if (rc == 0 && !s->drop_match)
            rc = cut_at(r, step + 1, text + begin, end - begin, first && begin == 0);
        at = from = end;
    }
    if (rc == 0 && from < n && !s->drop_rest)
        rc = cut_at(r, step + 1, text + from, n - from, first && from == 0);
    return rc;
}

static int cut_at(const struct run *r, int step, const char *text, size_t n, bool first)
{
    if (n == 0)
        return 0;
    if (step == r->m->t->n_pre)
        return r->each(r->arg, text, n);
    switch (r->m->t->pre[step].type) {
    case PRE_SPLIT:
        return cut_split(r, step, text, n, first);
    case PRE_SPACE:
        return cut_space(r, step, text, n, first);
    case PRE_METASPACE:
        return cut_metaspace(r, step, text, n, first);
    }
    return -EINVAL;
}

static bool is_ascii(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)text[i] >= 0x80)
            return false;
    return true;
}

static int normalize_step(const struct norm_step *s, const char *text, size_t n, struct buf *out)
{
    utf8proc_uint8_t *p = NULL;
    utf8proc_ssize_t len;

    switch (s->type) {
    case NORM_PREPEND:
        if (n)
            buf_adds(out, s->to);
        buf_add(out, text, n);
        break;
    case NORM_REPLACE:
        replace_all(text, n, s->from, s->to, out);
        break;
    case NORM_UNICODE:
        if (is_ascii(text, n)) {
            buf_add(out, text, n);
            break;
        }
        len =
            utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &p, (utf8proc_option_t)s->form);
        if (len < 0)
            return -ENOMEM;
        buf_add(out, p, (size_t)len);
        free(p);
        break;
    }
    if (out->len > TOK_MAX_TEXT)
        return -EFBIG;
    return out->failed ? -ENOMEM : 0;
}

int pre_run(struct merger *m, const char *text, size_t n, bool first, pre_each each, void *arg,
            struct dtx_err *e)
{
    struct run r = {m, each, arg, e};
    struct buf a = BUF_INIT, b = BUF_INIT;
    int rc = 0;

    for (int i = 0; rc == 0 && i < m->t->n_norm; i++) {
        struct buf swap = a;
        buf_clear(&b);
        rc = normalize_step(&m->t->norm[i], text, n, &b);
        a = b;
        b = swap;
        text = a.p;
        n = a.len;
    }
    if (rc)
        dtx_fail(e, rc, "a text is too large to encode");
    else
        rc = cut_at(&r, 0, text, n, first);
    buf_release(&a);
    buf_release(&b);
    return rc;
}
