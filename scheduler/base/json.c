#include "scheduler/base/json.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/text.h"

enum { JSON_MAX_DEPTH = 64 };

static void position(const char *text, size_t at, int *line, int *column)
{
    *line = *column = 1;
    for (size_t i = 0; i < at; i++) {
        if (text[i] == '\n') {
            (*line)++;
            *column = 1;
        } else if (((unsigned char)text[i] & 0xc0) != 0x80) {
            (*column)++;
        }
    }
}

static int check_depth(const char *name, const char *text, size_t n, struct dtx_err *e)
{
    int depth = 0, line, column;
    bool in_string = false;

    for (size_t i = 0; i < n; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > JSON_MAX_DEPTH) {
                position(text, i, &line, &column);
                return dtx_fail(e, -EINVAL, "%s:%d:%d: nested deeper than %d levels", name, line, column,
                                JSON_MAX_DEPTH);
            }
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return 0;
}

int json_parse_text(const char *name, const char *text, size_t n, json_t **out, struct dtx_err *e)
{
    json_error_t je;
    size_t bad = text_utf8_bad_at(text, n);
    const char *nul;
    int line, column, rc;

    *out = NULL;
    if (bad < n) {
        position(text, bad, &line, &column);
        return dtx_fail(e, -EINVAL, "%s:%d:%d: byte 0x%02x is not UTF-8; save the file as UTF-8", name, line,
                        column, (unsigned char)text[bad]);
    }
    nul = n ? memchr(text, '\0', n) : NULL; /* jansson takes it for the end of a number */
    if (nul) {
        position(text, (size_t)(nul - text), &line, &column);
        return dtx_fail(e, -EINVAL, "%s:%d:%d: a NUL byte; is it a text file?", name, line, column);
    }
    rc = check_depth(name, text, n, e);
    if (rc)
        return rc;
    *out = json_loadb(text, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY | JSON_ALLOW_NUL, &je);
    if (!*out)
        return dtx_fail(e, -EINVAL, "%s:%d:%d: not valid JSON: %s", name, je.line < 1 ? 1 : je.line,
                        je.column < 1 ? 1 : je.column, je.text);
    return 0;
}

int json_parse_file(int dirfd, const char *path, size_t max, json_t **out, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc = fd_read_file(dirfd, path, max, &b, e);

    *out = NULL;
    if (rc == 0)
        rc = json_parse_text(path, b.p ? b.p : "", b.len, out, e);
    buf_release(&b);
    return rc;
}

/* ---- json_locate: a small scanner over a text that is known to be valid JSON ---- */

struct scan {
    const char *s;
    size_t n, i;
};

static void skip_space(struct scan *c)
{
    while (c->i < c->n && strchr(" \t\r\n", c->s[c->i]) && c->s[c->i])
        c->i++;
}

static void skip_string(struct scan *c)
{
    c->i++;
    while (c->i < c->n && c->s[c->i] != '"')
        c->i += c->s[c->i] == '\\' ? 2 : 1;
    c->i++;
}

static void skip_value(struct scan *c)
{
    int depth = 0;

    do {
        skip_space(c);
        if (c->i >= c->n)
            return;
        char ch = c->s[c->i];
        if (ch == '"') {
            skip_string(c);
        } else if (ch == '{' || ch == '[') {
            depth++;
            c->i++;
        } else if (ch == '}' || ch == ']') {
            depth--;
            c->i++;
        } else if (ch == ',' || ch == ':') {
            c->i++;
        } else {
            do
                c->i++;
            while (c->i < c->n && !strchr(",:]} \t\r\n", c->s[c->i]));
        }
    } while (depth > 0);
}

/* At '{': stop at the value of key; *key_at is where the key stands. */
static bool enter_member(struct scan *c, const char *key, size_t len, size_t *key_at)
{
    c->i++;
    for (;;) {
        size_t start;
        skip_space(c);
        if (c->i >= c->n || c->s[c->i] != '"')
            return false;
        start = c->i;
        skip_string(c);
        bool hit = c->i - start == len + 2 && memcmp(c->s + start + 1, key, len) == 0;
        skip_space(c);
        c->i++; /* ':' */
        skip_space(c);
        if (hit) {
            *key_at = start;
            return true;
        }
        skip_value(c);
        skip_space(c);
        if (c->i >= c->n || c->s[c->i] != ',')
            return false;
        c->i++;
    }
}

static bool enter_item(struct scan *c, long index)
{
    c->i++;
    for (long k = 0;; k++) {
        skip_space(c);
        if (c->i >= c->n || c->s[c->i] == ']')
            return false;
        if (k == index)
            return true;
        skip_value(c);
        skip_space(c);
        if (c->i >= c->n || c->s[c->i] != ',')
            return false;
        c->i++;
    }
}

int json_locate(const char *text, size_t n, const char *path, int want_key, int *line, int *column)
{
    struct scan c = {text, n, 0};
    size_t key_at = 0;
    bool by_key = false;

    skip_space(&c);
    while (*path) {
        if (c.i >= n)
            return -ENOENT;
        if (*path == '[') {
            char *end;
            long index = strtol(path + 1, &end, 10);
            if (c.s[c.i] != '[' || *end != ']' || !enter_item(&c, index))
                return -ENOENT;
            path = end + 1;
            by_key = false;
        } else {
            size_t len = strcspn(path, ".[");
            if (c.s[c.i] != '{' || !enter_member(&c, path, len, &key_at))
                return -ENOENT;
            path += len;
            by_key = true;
        }
        if (*path == '.')
            path++;
    }
    position(text, want_key && by_key ? key_at : c.i, line, column);
    return 0;
}

static int dump_chunk(const char *data, size_t n, void *arg)
{
    buf_add(arg, data, n);
    return 0;
}

void json_dump_buf(const json_t *v, struct buf *b)
{
    json_dump_callback(v, dump_chunk, b, JSON_COMPACT | JSON_SORT_KEYS | JSON_ENCODE_ANY);
}

/* What jansson wrote of a number with 17 digits, shorter; integers stay as they are. */
static void add_number_text(struct buf *b, const char *p, size_t n)
{
    char text[40], shorter[40];
    double x;

    if (n >= sizeof(text) || !memchr(p, '.', n)) {
        buf_add(b, p, n);
        return;
    }
    memcpy(text, p, n);
    text[n] = '\0';
    x = strtod(text, NULL);
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(shorter, sizeof(shorter), "%.*g", digits, x);
        if (strtod(shorter, NULL) == x)
            break;
    }
    buf_adds(b, shorter);
    if (!strpbrk(shorter, ".e"))
        buf_adds(b, ".0"); /* it stays a real number */
}

void json_print_buf(const json_t *v, struct buf *b)
{
    char *text = json_dumps(v, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_ENCODE_ANY);
    struct scan c = {text, text ? strlen(text) : 0, 0};

    if (!text)
        b->failed = true;
    while (c.i < c.n) {
        size_t start = c.i;
        if (c.s[c.i] == '"')
            skip_string(&c);
        else
            c.i += strspn(c.s + c.i, "0123456789+-.eE");
        if (c.i == start)
            buf_addc(b, c.s[c.i++]);
        else if (c.s[start] == '"' || !strpbrk("0123456789-", (char[]){c.s[start], 0}))
            buf_add(b, c.s + start, c.i - start);
        else
            add_number_text(b, c.s + start, c.i - start);
    }
    buf_addc(b, '\n');
    free(text);
}

const char *json_str(const json_t *obj, const char *key, const char *fallback)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_string(v) ? json_string_value(v) : fallback;
}

long long json_int(const json_t *obj, const char *key, long long fallback)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_integer(v) ? json_integer_value(v) : fallback;
}

double json_num(const json_t *obj, const char *key, double fallback)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

int json_flag(const json_t *obj, const char *key, int fallback)
{
    const json_t *v = json_object_get(obj, key);
    return json_is_boolean(v) ? json_is_true(v) : fallback;
}
