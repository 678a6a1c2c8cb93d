/*
 * .csv and .tsv after RFC 4180: a header row; a field in double quotes may hold separators, line ends and ""
 * for a quote.
 */
#include "scheduler/data/data_int.h"

#include <stdlib.h>
#include <string.h>

#include "scheduler/base/text.h"

struct record {
    struct buf text; /* the fields one after the other */
    size_t end[DATA_MAX_COLUMNS];
    size_t n;
    long line;       /* it starts on */
    const char *bad; /* why it cannot be used, NULL: it can */
};

struct csv {
    struct data_in *in;
    char separator;
    struct record row;
    char *names[DATA_MAX_COLUMNS]; /* of the header row */
    size_t columns;
    struct dtx_err *e;
};

static int csv_fail(struct csv *c, int got, long line, const char *why)
{
    if (got != DATA_FAILED)
        return dtx_fail(c->e, -EINVAL, "%s:%ld: %s", c->in->name, line, why);
    if (c->e)
        *c->e = c->in->err;
    return c->in->failed;
}

/* After the opening quote: up to the closing one. */
static int read_quoted(struct csv *c, struct record *r)
{
    for (;;) {
        int ch = data_in_next(c->in);
        if (ch == '"') {
            if (data_in_peek(c->in) != '"')
                return 0;
            data_in_next(c->in);
        }
        if (ch < 0)
            return csv_fail(c, ch, r->line, "a field of the row that starts here is never closed with \"");
        if (r->text.len >= DATA_MAX_ROW)
            return csv_fail(c, ch, r->line,
                            "the row that starts here is longer than 4 MiB; is a \" of it never closed?");
        buf_addc(&r->text, (char)ch);
    }
}

/* Takes a carriage return that belongs to the line's end; one that does not becomes part of the field. */
static bool at_field_end(struct csv *c, int ch)
{
    if (ch == '\r') {
        struct data_in *in = c->in;
        data_in_next(in);
        ch = data_in_peek(in);
        if (ch == '\n' || ch < 0)
            return true;
        buf_addc(&c->row.text, '\r');
        return ch == c->separator;
    }
    return ch < 0 || ch == '\n' || ch == c->separator;
}

/* Up to the separator or line end, which stays. */
static int read_field(struct csv *c, struct record *r)
{
    int ch = data_in_peek(c->in);

    if (ch == '"') {
        int rc;
        data_in_next(c->in);
        rc = read_quoted(c, r);
        if (rc)
            return rc;
        ch = data_in_peek(c->in);
        if (!at_field_end(c, ch))
            r->bad = "text after a closing \"; inside a quoted field a quote is written \"\"";
    }
    while (!at_field_end(c, ch = data_in_peek(c->in))) {
        ch = data_in_next(c->in);
        if (r->text.len >= DATA_MAX_ROW)
            r->bad = "this row is longer than 4 MiB";
        else
            buf_addc(&r->text, (char)ch);
    }
    if (r->text.failed)
        return dtx_fail(c->e, -ENOMEM, "%s:%ld: out of memory", c->in->name, r->line);
    return data_in_peek(c->in) == DATA_FAILED ? csv_fail(c, DATA_FAILED, 0, "") : 0;
}

/* 1: a record, 0: end of file, negative: error. */
static int read_record(struct csv *c, struct record *r)
{
    int ch = data_in_peek(c->in), rc;

    buf_clear(&r->text);
    r->n = 0;
    r->bad = NULL;
    r->line = c->in->line;
    if (ch < 0)
        return ch == DATA_END ? 0 : csv_fail(c, ch, 0, "");
    do {
        rc = read_field(c, r);
        if (rc)
            return rc;
        if (r->n == DATA_MAX_COLUMNS)
            r->bad = "more than 1024 columns";
        else
            r->end[r->n++] = r->text.len;
    } while (data_in_next(c->in) == c->separator);
    return 1;
}

static const char *field(const struct record *r, size_t i, size_t *n)
{
    size_t start = i ? r->end[i - 1] : 0;

    *n = r->end[i] - start;
    return r->text.p ? r->text.p + start : "";
}

/* The first byte that is not UTF-8 within its own field (joined, the halves of two fields may look whole);
 * the length of the text if there is none. */
static size_t bad_utf8_at(const struct record *r)
{
    for (size_t i = 0; i < r->n; i++) {
        size_t n, bad;
        const char *p = field(r, i, &n);
        bad = text_utf8_bad_at(p, n);
        if (bad < n)
            return (size_t)(p - r->text.p) + bad;
    }
    return r->text.len;
}

static int read_header(struct csv *c)
{
    int rc = read_record(c, &c->row);

    if (rc <= 0)
        return rc;
    if (c->row.bad)
        return csv_fail(c, 0, c->row.line, c->row.bad);
    if (bad_utf8_at(&c->row) < c->row.text.len)
        return csv_fail(c, 0, c->row.line, "the header row is not UTF-8; save the file as UTF-8");
    if (c->row.text.len && memchr(c->row.text.p, '\0', c->row.text.len))
        return csv_fail(c, 0, c->row.line, "the header row holds a NUL byte; save the file as UTF-8 text");
    for (size_t i = 0; i < c->row.n; i++) {
        size_t n;
        const char *p = field(&c->row, i, &n);
        text_strip(&p, &n);
        c->names[i] = strndup(p, n);
        if (!c->names[i])
            return dtx_fail(c->e, -ENOMEM, "%s: out of memory", c->in->name);
        c->columns = i + 1;
        for (size_t k = 0; n && k < i; k++)
            if (strcmp(c->names[k], c->names[i]) == 0)
                return dtx_fail(c->e, -EINVAL, "%s:1: two columns are called \"%.100s\"", c->in->name,
                                c->names[i]);
    }
    return 1;
}

static json_t *record_object(const struct csv *c, const struct record *r)
{
    json_t *o = json_object();

    for (size_t i = 0; o && i < r->n; i++) {
        size_t n;
        const char *p = field(r, i, &n);
        if (c->names[i][0] && json_object_set_new_nocheck(o, c->names[i], json_stringn_nocheck(p, n))) {
            json_decref(o);
            return NULL;
        }
    }
    return o;
}

static int give_record(struct csv *c, const struct row_sink *sink)
{
    struct record *r = &c->row;
    struct dtx_err why;
    size_t bad = bad_utf8_at(r);
    json_t *o;
    int rc;

    if (r->n == 1 && r->text.len == 0 && !r->bad) /* an empty line */
        return 0;
    if (r->bad || bad < r->text.len || r->n != c->columns) {
        if (r->bad)
            dtx_fail(&why, -EINVAL, "%s", r->bad);
        else if (bad < r->text.len)
            dtx_fail(&why, -EINVAL, "byte 0x%02x is not UTF-8; save the file as UTF-8",
                     (unsigned char)r->text.p[bad]);
        else
            dtx_fail(&why, -EINVAL, "%zu fields, but the header row has %zu", r->n, c->columns);
        sink->bad(sink->arg, r->line, why.msg);
        return 0;
    }
    o = record_object(c, r);
    if (!o)
        return dtx_fail(c->e, -ENOMEM, "%s:%ld: out of memory", c->in->name, r->line);
    rc = sink->row(sink->arg, o, r->line);
    json_decref(o);
    return rc;
}

int data_read_csv(struct data_in *in, char separator, const struct row_sink *sink, struct dtx_err *e)
{
    struct csv *c = calloc(1, sizeof(*c));
    int rc;

    if (!c)
        return dtx_fail(e, -ENOMEM, "%s: out of memory", in->name);
    c->in = in;
    c->separator = separator;
    c->e = e;
    rc = read_header(c);
    while (rc > 0) {
        rc = read_record(c, &c->row);
        if (rc > 0) {
            rc = give_record(c, sink);
            if (rc)
                break;
            rc = 1;
        }
    }
    for (size_t i = 0; i < c->columns; i++)
        free(c->names[i]);
    buf_release(&c->row.text);
    free(c);
    return rc;
}

const char *const data_format_names[DATA_FORMATS] = {"jsonl", "json", "csv", "tsv"};

int data_read(struct data_in *in, enum data_format format, const struct row_sink *sink, struct dtx_err *e)
{
    switch (format) {
    case DATA_JSONL:
        return data_read_jsonl(in, sink, e);
    case DATA_JSON:
        return data_read_json(in, sink, e);
    case DATA_CSV:
    case DATA_TSV:
        return data_read_csv(in, format == DATA_CSV ? ',' : '\t', sink, e);
    default:
        return dtx_fail(e, -EINVAL, "%s: unknown format", in->name);
    }
}
