/* safetensors: values of every type, shards, writing, and files that lie. */
#include <check.h>
#include <math.h>
#include <stdlib.h>

#include "kernels/safetensors.h"
#include "tests/unit/files_fixture.h"

static struct dtx_err err;
static struct fx f;

static void setup(void)
{
    f = fx_new();
}

static void teardown(void)
{
    fx_drop(&f);
}

static void refused(const char *name, const char *word)
{
    struct st_set *s;

    err.msg[0] = '\0';
    ck_assert_int_lt(st_open(f.fd, name, &s, &err), 0);
    ck_assert_ptr_null(s);
    ck_assert_msg(strstr(err.msg, word) != NULL, "\"%s\" does not speak of \"%s\"", err.msg, word);
}

START_TEST(reads_a_file)
{
    static const float values[] = {1.5f, -2, 3, 4, 5, 6};
    struct st_set *s;
    const struct st_tensor *t;
    float out[6];

    fx_put_st(&f, "a.safetensors",
              "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_"
              "offsets\":[8,24]},"
              "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
              "\"n\":{\"dtype\":\"I64\",\"shape\":[0,3],\"data_offsets\":[24,24]}}   ",
              values, sizeof(values));
    ck_assert_msg(st_open(f.fd, "a.safetensors", &s, &err) == 0, "%s", err.msg);
    ck_assert_uint_eq(st_count(s), 3);
    t = st_find(s, "b");
    ck_assert(t && t->type == ST_F32 && t->ndim == 2 && t->shape[0] == 2 && t->shape[1] == 2 &&
              t->elements == 4);
    ck_assert_int_eq(st_read_f32(t, 1, 3, out), 0);
    ck_assert(out[0] == 4 && out[1] == 5 && out[2] == 6);
    ck_assert_int_eq(st_read_f32(t, 2, 3, out), -ERANGE);
    ck_assert_int_eq(st_read_f32(t, UINT64_MAX, 2, out), -ERANGE);
    t = st_find(s, "a");
    ck_assert_int_eq(st_read_f32(t, 0, 2, out), 0);
    ck_assert(out[0] == 1.5f && out[1] == -2);
    ck_assert_int_eq(st_read_f32(st_find(s, "n"), 0, 0, out), -EINVAL);
    ck_assert_ptr_null(st_find(s, "c"));
    ck_assert_ptr_null(st_at(s, 3));
    st_close(s);
}
END_TEST

START_TEST(half_precision_values)
{
    static const struct {
        uint16_t bits;
        double value;
    } f16[] = {{0x0000, 0},         {0x3c00, 1},        {0xc000, -2},         {0x7bff, 65504},
               {0x0400, 0x1p-14},   {0x0001, 0x1p-24},  {0x83ff, -0x3ffp-24}, {0x7c00, INFINITY},
               {0xfc00, -INFINITY}, {0x3555, 0x5.55p-4}},
      bf16[] = {{0x3f80, 1},        {0xc000, -2}, {0x0001, 0x1p-133}, {0x7f80, INFINITY}, {0xff80, -INFINITY},
                {0x7f7f, 0xffp120}, {0x8000, 0},  {0x0080, 0x1p-126}, {0x4049, 3.140625}, {0x0000, 0}};
    enum { N = sizeof(f16) / sizeof(f16[0]) };
    uint16_t data[2 * N + 2];
    struct st_set *s;
    float out[N + 1];

    for (int i = 0; i < N; i++) {
        data[i] = f16[i].bits;
        data[N + 1 + i] = bf16[i].bits;
    }
    data[N] = 0x7e01;
    data[2 * N + 1] = 0x7fc1;
    fx_put_st(&f, "h.safetensors",
              "{\"h\":{\"dtype\":\"F16\",\"shape\":[11],\"data_offsets\":[0,22]},"
              "\"b\":{\"dtype\":\"BF16\",\"shape\":[11],\"data_offsets\":[22,44]}} ",
              data, sizeof(data));
    ck_assert_msg(st_open(f.fd, "h.safetensors", &s, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(st_read_f32(st_find(s, "h"), 0, N + 1, out), 0);
    for (int i = 0; i < N; i++)
        ck_assert_msg((double)out[i] == f16[i].value, "f16 %04x: %a", f16[i].bits, out[i]);
    ck_assert(isnan(out[N]));
    ck_assert_int_eq(st_read_f32(st_find(s, "b"), 0, N + 1, out), 0);
    for (int i = 0; i < N; i++)
        ck_assert_msg((double)out[i] == bf16[i].value, "bf16 %04x: %a", bf16[i].bits, out[i]);
    ck_assert(isnan(out[N]));
    st_close(s);
}
END_TEST

/* Every half-precision number against the definition. */
START_TEST(all_f16_values)
{
    static uint16_t data[65536];
    static float out[65536];
    struct st_set *s;

    for (int i = 0; i < 65536; i++)
        data[i] = (uint16_t)i;
    fx_put_st(&f, "h.safetensors",
              "{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],\"data_offsets\":[0,131072]}}", data,
              sizeof(data));
    ck_assert_int_eq(st_open(f.fd, "h.safetensors", &s, &err), 0);
    ck_assert_int_eq(st_read_f32(st_find(s, "h"), 0, 65536, out), 0);
    for (int i = 0; i < 65536; i++) {
        int exponent = i >> 10 & 31, fraction = i & 1023;
        double v = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
        if (exponent == 31) {
            ck_assert(fraction ? isnan(out[i]) : isinf(out[i]));
            continue;
        }
        ck_assert((double)out[i] == (i & 0x8000 ? -v : v));
        ck_assert_int_eq(!!signbit(out[i]), i >> 15);
    }
    st_close(s);
}
END_TEST

#define T(offsets) "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" offsets "}}"

START_TEST(lying_headers)
{
    static const struct {
        const char *header;
        size_t data;
        const char *word;
    } bad[] = {
        {T("[0,8]"), 7, "copy it again"},
        {T("[0,8]"), 9, "after the last tensor"},
        {T("[0,12]"), 12, "the header lies"},
        {T("[8,16]"), 16, "gap"},
        {T("[8,0]"), 8, "ascending"},
        {T("[-8,0]"), 8, "ascending"},
        {T("[0]"), 8, "data_offsets"},
        {T("[0,8,9]"), 8, "data_offsets"},
        {T("[0.0,8.0]"), 8, "data_offsets"},
        {T("[0,99999999999999999999]"), 8, "too big"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[9223372036854775807],\"data_offsets\":[0,8]}}", 8,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,0]}}", 0, "dimension 0"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "9 dimensions"},
        {"{\"a\":{\"dtype\":\"F33\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype F33"},
        {"{\"a\":{\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype missing"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"a\":[]}", 0, "not an object"},
        {"[]", 0, "not a JSON object"},
        {"{\"a\":", 0, "not valid JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}",
         4, "duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
         12, "overlaps"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "the header lies"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        fx_put_st(&f, "bad.safetensors", bad[i].header, NULL, bad[i].data);
        refused("bad.safetensors", bad[i].word);
    }
}
END_TEST

START_TEST(broken_files)
{
    struct buf b = BUF_INIT;

    refused("none.safetensors", "No such file");
    refused(".", "not a regular file");
    fx_put(&f, "bad", "", 0);
    refused("bad", "0 bytes");
    fx_put(&f, "bad", "\0\0\0", 3);
    refused("bad", "3 bytes");
    fx_put(&f, "bad", "\xff\xff\xff\xff\xff\xff\xff\x7f{}", 10);
    refused("bad", "header of 9223372036854775807 bytes");
    fx_put(&f, "bad", "\x03\0\0\0\0\0\0\0{}", 10);
    refused("bad", "the file only 10");
    for (int i = 0; i < 1000; i++)
        buf_adds(&b, "[");
    fx_put_st(&f, "bad", b.p, NULL, 0);
    refused("bad", "nested deeper");
    fx_put_st(&f, "bad", "{\"\xff\":1}", NULL, 0);
    refused("bad", "UTF-8");
    buf_release(&b);
}
END_TEST

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}"

static void model_refused(const char *word)
{
    struct st_set *s;

    ck_assert_int_lt(st_open_model(AT_FDCWD, f.path, &s, &err), 0);
    ck_assert_ptr_null(s);
    ck_assert_msg(strstr(err.msg, word) != NULL, "\"%s\" does not speak of \"%s\"", err.msg, word);
}

START_TEST(shards)
{
    float one = 1, two = 2, got;
    struct st_set *s;

    fx_put_st(&f, "m-1.safetensors", ONE("a"), &one, 4);
    fx_put_st(&f, "m-2.safetensors", ONE("b"), &two, 4);
    fx_puts(&f, "model.safetensors.index.json",
            "{\"metadata\":{},\"weight_map\":{\"b\":\"m-2.safetensors\",\"a\":\"m-1.safetensors\"}}");
    ck_assert_msg(st_open_model(AT_FDCWD, f.path, &s, &err) == 0, "%s", err.msg);
    ck_assert_uint_eq(st_count(s), 2);
    ck_assert_int_eq(st_read_f32(st_find(s, "b"), 0, 1, &got), 0);
    ck_assert(got == 2);
    ck_assert_uint_eq(st_file_bytes(s), 2 * (8 + strlen(ONE("a")) + 4));
    st_close(s);
    fx_put_st(&f, "m-2.safetensors", ONE("b"), &two, 3);
    model_refused("m-2.safetensors: header says");
    fx_put_st(&f, "m-2.safetensors", ONE("a"), &two, 4);
    model_refused("in two files");
    fx_put_st(&f, "m-2.safetensors", ONE("c"), &two, 4);
    model_refused("m-2.safetensors has no tensor b");
}
END_TEST

START_TEST(hostile_index)
{
    static const char *const bad[][2] = {
        {"{\"weight_map\":{\"a\":\"../m-1.safetensors\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"x/m-1.safetensors\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":\"\"}}", "same folder"},
        {"{\"weight_map\":{\"a\":7}}", "no file name"},
        {"{\"weight_map\":{}}", "0 entries"},
        {"{\"weight_map\":[]}", "no weight_map"},
        {"[]", "no weight_map"},
        {"{\"weight_map\":{\"a\":\"gone.safetensors\"}}", "gone.safetensors"},
    };

    model_refused("copy the weights");
    fx_puts(&f, "pytorch_model.bin", "x");
    model_refused("pytorch_model.bin");
    fx_put_st(&f, "m-1.safetensors", ONE("a"), NULL, 4);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        fx_puts(&f, "model.safetensors.index.json", bad[i][0]);
        model_refused(bad[i][1]);
    }
}
END_TEST

START_TEST(writes_what_it_reads)
{
    static const float a[6] = {1, 2, 3, 4, 5, 6};
    static const uint16_t b[3] = {0x3f80, 0x4000, 0x4040};
    struct st_tensor t[] = {
        {.name = "a\"x", .type = ST_F32, .ndim = 2, .shape = {2, 3}, .elements = 6, .nbytes = 24, .data = a},
        {.name = "b", .type = ST_BF16, .ndim = 1, .shape = {3}, .elements = 3, .nbytes = 6, .data = b},
    };
    struct st_set *s;
    struct buf raw = BUF_INIT;
    float out[6];

    ck_assert_msg(st_write(f.fd, "out.safetensors", t, 2, &err) == 0, "%s", err.msg);
    ck_assert_int_eq(fd_read_file(f.fd, "out.safetensors", 1 << 20, &raw, &err), 0);
    ck_assert_int_eq(raw.p[0] % 8, 0); /* the data begins at a multiple of 8 */
    buf_release(&raw);
    ck_assert_msg(st_open(f.fd, "out.safetensors", &s, &err) == 0, "%s", err.msg);
    ck_assert_uint_eq(st_count(s), 2);
    ck_assert_int_eq(st_read_f32(st_find(s, "a\"x"), 0, 6, out), 0);
    ck_assert(memcmp(out, a, sizeof(a)) == 0);
    ck_assert_int_eq(st_read_f32(st_find(s, "b"), 0, 3, out), 0);
    ck_assert(out[0] == 1 && out[1] == 2 && out[2] == 3);
    st_close(s);
    t[0].nbytes = 20;
    ck_assert_int_eq(st_write(f.fd, "out.safetensors", t, 2, &err), -EINVAL);
    t[0].nbytes = 24;
    ck_assert_int_eq(st_write(f.fd, "no/such/out.safetensors", t, 2, &err), -ENOENT);
    ck_assert_int_eq(st_open(f.fd, "out.safetensors", &s, &err), 0); /* the old file is whole */
    st_close(s);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("safetensors");
    TCase *c = tcase_create("all");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, reads_a_file);
    tcase_add_test(c, half_precision_values);
    tcase_add_test(c, all_f16_values);
    tcase_add_test(c, lying_headers);
    tcase_add_test(c, broken_files);
    tcase_add_test(c, shards);
    tcase_add_test(c, hostile_index);
    tcase_add_test(c, writes_what_it_reads);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
