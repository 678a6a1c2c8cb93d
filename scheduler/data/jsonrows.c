/*
 * .jsonl: a row a line.  .json: an array of rows, {"data":[rows]}, or rows one after the other; read row by
 * row, so that a file of any size needs the memory of one row.  A row that is no valid JSON is reported and
 * passed over; a file whose brackets do not match ends with an error, because nothing after that place can be
 * trusted.
 */
#include "scheduler/data/data_int.h"

#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

/* json_parse_text's ":LINE:COLUMN: why" counts lines from the row's first; give the file's line instead. */
static void report_json(const struct row_sink *sink, long first_line, const struct dtx_err *e)
{
    long line, column;
    int used = 0;
    struct dtx_err moved;

    if (sscanf(e->msg, ":%ld:%ld: %n", &line, &column, &used) == 2 && used > 0) {
        dtx_fail(&moved, -EINVAL, "column %ld: %s", column, e->msg + used);
        sink->bad(sink->arg, first_line + line - 1, moved.msg);
    } else {
        sink->bad(sink->arg, first_line, e->msg);
    }
}

static int give_row(const struct row_sink *sink, const struct buf *text, long line)
{
    json_t *v = NULL;
    struct dtx_err e;
    int rc = 0;

    if (json_parse_text("", text->p, text->len, &v, &e))
        report_json(sink, line, &e);
    else if (!json_is_object(v))
        sink->bad(sink->arg, line,
                  "a row is an object {\"column\": value, ...}; found another kind of value");
    else
        rc = sink->row(sink->arg, v, line);
    json_decref(v);
    return rc;
}

static int in_error(const struct data_in *in, struct dtx_err *e)
{
    if (e)
        *e = in->err;
    return in->failed;
}

static const char too_long[] = "this row is longer than 4 MiB";

/* Append the rest of the line; *over: it has more than a row may have (the rest was read and left out). */
static int read_line(struct data_in *in, struct buf *line, bool *over)
{
    *over = false;
    for (;;) {
        int c = data_in_peek(in);
        unsigned char *p = in->chunk + in->at, *nl;
        size_t n;
        if (c < 0)
            return c == DATA_END && (line->len || *over) ? 0 : c;
        nl = memchr(p, '\n', in->end - in->at);
        n = nl ? (size_t)(nl - p) : in->end - in->at;
        if (line->len + n > DATA_MAX_ROW)
            *over = true;
        else
            buf_add(line, p, n);
        in->at += n;
        if (nl) {
            data_in_next(in);
            return 0;
        }
    }
}

int data_read_jsonl(struct data_in *in, const struct row_sink *sink, struct dtx_err *e)
{
    struct buf line = BUF_INIT;
    bool over;
    int rc = 0, got;

    for (;;) {
        long number = in->line;
        buf_clear(&line);
        got = read_line(in, &line, &over);
        if (got < 0 || rc)
            break;
        if (over)
            sink->bad(sink->arg, number, too_long);
        else if (line.failed)
            rc = dtx_fail(e, -ENOMEM, "%s:%ld: out of memory", in->name, number);
        else if (!text_is_blank(line.p, line.len))
            rc = give_row(sink, &line, number);
        if (rc)
            break;
    }
    buf_release(&line);
    return rc ? rc : got == DATA_FAILED ? in_error(in, e) : 0;
}

/* ---- .json ---- */

struct scan {
    struct data_in *in;
    const struct row_sink *sink;
    struct buf text; /* of the row being read */
    bool record, over;
    struct dtx_err *e;
};

static int take(struct scan *s)
{
    int c = data_in_next(s->in);

    if (c >= 0 && s->record) {
        if (s->text.len >= DATA_MAX_ROW)
            s->over = true;
        else
            buf_addc(&s->text, (char)c);
    }
    return c;
}

static int skip_space(struct scan *s) /* the next byte, not taken */
{
    int c;

    while ((c = data_in_peek(s->in)) >= 0 && strchr(" \t\r\n", c) && c)
        take(s);
    return c;
}

static int broken(struct scan *s, int c, long line, const char *why)
{
    if (c == DATA_FAILED)
        return in_error(s->in, s->e);
    return dtx_fail(s->e, -EINVAL, "%s:%ld: %s", s->in->name, line, why);
}

/* The rest of a string whose opening quote was taken. */
static int take_string(struct scan *s)
{
    long line = s->in->line;
    int c;

    while ((c = take(s)) >= 0 && c != '"')
        if (c == '\\')
            take(s);
    return c < 0 ? broken(s, c, line, "a text that starts on this line is never closed with \"") : 0;
}

/* A whole value: brackets are matched here, everything else is for the JSON parser to judge. */
static int take_value(struct scan *s)
{
    long line = s->in->line, depth = 0;
    int c = data_in_peek(s->in);

    if (c != '{' && c != '[' && c != '"') {
        while ((c = data_in_peek(s->in)) >= 0 && !(strchr(",]} \t\r\n", c) && c))
            take(s);
        return c == DATA_FAILED ? in_error(s->in, s->e) : 0;
    }
    do {
        c = take(s);
        if (c < 0)
            return broken(s, c, line, "the file ends inside the value that starts on this line");
        if (c == '"') {
            int rc = take_string(s);
            if (rc)
                return rc;
        }
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    } while (depth > 0);
    return 0;
}

static void start_row(struct scan *s)
{
    buf_clear(&s->text);
    s->over = false;
    s->record = true;
}

static int end_row(struct scan *s, long line)
{
    s->record = false;
    if (s->text.failed)
        return dtx_fail(s->e, -ENOMEM, "%s:%ld: out of memory", s->in->name, line);
    if (s->over) {
        s->sink->bad(s->sink->arg, line, too_long);
        return 0;
    }
    return give_row(s->sink, &s->text, line);
}

/* The rows of an array whose '[' is next. */
static int take_array(struct scan *s)
{
    int c, rc = 0;

    s->record = false;
    take(s);
    if (skip_space(s) == ']') {
        take(s);
        return 0;
    }
    while (rc == 0) {
        long line;
        c = skip_space(s);
        line = s->in->line;
        if (c < 0)
            return broken(s, c, line, "the file ends before the array of rows is closed with ]");
        start_row(s);
        rc = take_value(s);
        if (rc == 0)
            rc = end_row(s, line);
        if (rc)
            return rc;
        c = skip_space(s);
        if (c != ',' && c != ']')
            return broken(s, c, s->in->line, "expected , or ] after a row");
        take(s);
        if (c == ']')
            return 0;
    }
    return rc;
}

/* An object at the top: {"data":[rows], ...}, or else a row itself. */
static int take_top_object(struct scan *s, bool *wrapper)
{
    long line = s->in->line;
    int c, rc;

    *wrapper = false;
    start_row(s);
    take(s);
    while ((c = skip_space(s)) != '}') {
        size_t key = s->text.len + 1;
        if (c != '"')
            return broken(s, c, s->in->line, "expected a \"key\" or }");
        take(s);
        rc = take_string(s);
        if (rc)
            return rc;
        bool is_data = s->text.len == key + 5 && memcmp(s->text.p + key, "data\"", 5) == 0;
        if ((c = skip_space(s)) != ':')
            return broken(s, c, s->in->line, "expected : after a key");
        take(s);
        c = skip_space(s);
        if (c == '[' && is_data && s->record) {
            *wrapper = true;
            rc = take_array(s);
        } else {
            rc = take_value(s);
        }
        if (rc)
            return rc;
        c = skip_space(s);
        if (c == ',')
            take(s);
        else if (c != '}')
            return broken(s, c, s->in->line, "expected , or } after a value");
    }
    take(s);
    return *wrapper ? 0 : end_row(s, line);
}

static int take_top(struct scan *s)
{
    int c = skip_space(s), rc;
    bool whole = c == '[';

    if (c == '[') {
        rc = take_array(s);
    } else if (c == '{') {
        do
            rc = take_top_object(s, &whole);
        while (rc == 0 && !whole && skip_space(s) == '{');
    } else if (c == DATA_END) {
        return 0;
    } else {
        return broken(s, c, s->in->line,
                      "expected an array of rows [{...}, ...] or {\"data\": [{...}, ...]}");
    }
    if (rc == 0 && (c = skip_space(s)) != DATA_END)
        return broken(s, c, s->in->line, "more text after the end of the rows");
    return rc;
}

int data_read_json(struct data_in *in, const struct row_sink *sink, struct dtx_err *e)
{
    struct scan s = {.in = in, .sink = sink, .e = e};
    int rc = take_top(&s);

    buf_release(&s.text);
    return rc;
}
