/* Hostile JSON: what parses dumps to text that parses to the same; every key of the top can be located. */
#include "scheduler/base/json.h"
#include "tests/fuzz/fuzz.h"

static void check_dump(const json_t *v)
{
    struct buf b = BUF_INIT;
    struct dtx_err e = {0};
    json_t *again = NULL;

    json_dump_buf(v, &b);
    FUZZ_ASSERT(json_parse_text("again", b.p, b.len, &again, &e) == 0);
    FUZZ_ASSERT(json_equal(v, again));
    json_decref(again);
    buf_release(&b);
}

static void check_positions(const json_t *v, const char *text, size_t n)
{
    const char *key;
    json_t *item;
    int line, column;

    json_object_foreach((json_t *)v, key, item)
    {
        if (*key && strspn(key, "abcdefghijklmnopqrstuvwxyz_0123456789") == strlen(key)) {
            int rc = json_locate(text, n, key, 1, &line, &column);
            FUZZ_ASSERT(rc == -ENOENT || (rc == 0 && line >= 1 && column >= 1));
        }
    }
    json_locate(text, n, "a.b[1].c", 0, &line, &column);
    json_locate(text, n, "[0][1]", 0, &line, &column);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dtx_err e = {0};
    json_t *v = NULL;
    struct buf b = BUF_INIT;

    buf_add_json(&b, (const char *)data, size); /* any bytes make a JSON string */
    FUZZ_ASSERT(json_parse_text("string", b.p, b.len, &v, &e) == 0 && json_is_string(v));
    json_decref(v);
    buf_release(&b);
    if (json_parse_text("input", (const char *)data, size, &v, &e)) {
        FUZZ_ASSERT(v == NULL && e.code < 0 && e.msg[0]);
        return 0;
    }
    check_dump(v);
    check_positions(v, (const char *)data, size);
    json_decref(v);
    return 0;
}
