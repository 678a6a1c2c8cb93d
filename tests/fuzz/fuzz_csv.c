/*
 * Tables: what is read as rows must come out the same when it is written again with every field quoted.  The
 * first byte says comma or tab.
 */
#include "scheduler/data/data_int.h"
#include "tests/fuzz/fuzz.h"

static int take_row(void *arg, const json_t *object, long line)
{
    FUZZ_ASSERT(json_is_object(object) && line > 1);
    FUZZ_ASSERT(json_array_append(arg, (json_t *)object) == 0);
    return 0;
}

static void take_bad(void *arg, long line, const char *why)
{
    FUZZ_ASSERT(line > 1 && why[0]);
}

static int read_table(char separator, json_t *rows)
{
    struct row_sink sink = {take_row, take_bad, rows};
    struct data_in in;
    struct dtx_err e = {0};
    int fd = openat(fuzz_dir(), "table", O_RDONLY | O_CLOEXEC), rc;

    FUZZ_ASSERT(fd >= 0);
    rc = data_in_init(&in, fd, "table", false, &e);
    if (rc == 0)
        rc = data_read_csv(&in, separator, &sink, &e);
    FUZZ_ASSERT(rc == 0 || (rc < 0 && e.msg[0]));
    data_in_release(&in);
    close(fd);
    return rc;
}

static void add_field(struct buf *b, const char *s, size_t n, char after)
{
    buf_addc(b, '"');
    for (size_t i = 0; i < n; i++) {
        if (s[i] == '"')
            buf_addc(b, '"');
        buf_addc(b, s[i]);
    }
    buf_addc(b, '"');
    buf_addc(b, after);
}

/* The rows as a table; a nameless column that is always there keeps a row of one empty field from being a
 * blank line. */
static void write_table(char separator, const json_t *rows, struct buf *b)
{
    const char *name;
    json_t *row, *v;
    size_t i;

    json_object_foreach(json_array_get(rows, 0), name, v) add_field(b, name, strlen(name), separator);
    buf_adds(b, "\"\"\r\n");
    json_array_foreach((json_t *)rows, i, row)
    {
        json_object_foreach(row, name, v)
            add_field(b, json_string_value(v), json_string_length(v), separator);
        buf_adds(b, "\"\"\n");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char separator = size && data[0] & 1 ? '\t' : ',';
    json_t *rows = json_array(), *again = json_array();
    struct buf b = BUF_INIT;

    fuzz_put("table", data + (size > 0), size ? size - 1 : 0);
    if (read_table(separator, rows) == 0 && json_object_size(json_array_get(rows, 0)) > 0 &&
        json_object_size(json_array_get(rows, 0)) < DATA_MAX_COLUMNS) {
        write_table(separator, rows, &b);
        fuzz_put("table", b.p, b.len);
        FUZZ_ASSERT(read_table(separator, again) == 0);
        FUZZ_ASSERT(json_equal(rows, again));
    }
    buf_release(&b);
    json_decref(rows);
    json_decref(again);
    return 0;
}
