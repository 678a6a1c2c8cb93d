/* The message framing between dtxd and dtx-worker: whole, split, joined, and broken streams. */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/proto.h"

static const enum proto_type to_worker[] = {PM_JOB_START, PM_JOB_STOP,   PM_SCORE,
                                            PM_ASK,       PM_ASK_CANCEL, PM_QUIT};
static const enum proto_type to_daemon[] = {PM_HELLO, PM_JOB_STATE, PM_JOB_HELD, PM_PROGRESS,
                                            PM_SAVED, PM_ANSWER,    PM_DEVICE,   PM_LOG};

static void put_one(struct buf *b, enum proto_type t, const char *key, const char *value)
{
    json_t *body = json_pack("{s:s}", key, value);

    ck_assert_int_eq(proto_put(b, t, body, NULL), 0);
    json_decref(body);
}

START_TEST(messages_go_through_byte_by_byte)
{
    struct buf out = BUF_INIT, in = BUF_INIT;
    enum proto_type t;
    json_t *body;
    int got = 0;

    put_one(&out, PM_ASK, "prompt", "Grüße\n\"und\" \xf0\x9f\x99\x82");
    ck_assert_int_eq(proto_put(&out, PM_QUIT, NULL, NULL), 0);
    for (size_t i = 0; i < out.len; i++) {
        int rc;

        buf_add(&in, out.p + i, 1);
        rc = proto_take(&in, PROTO_WORKER, &t, &body, NULL);
        ck_assert_int_ge(rc, 0);
        if (!rc)
            continue;
        ck_assert_int_eq(t, got == 0 ? PM_ASK : PM_QUIT);
        if (got++ == 0)
            ck_assert_str_eq(json_str(body, "prompt", ""), "Grüße\n\"und\" \xf0\x9f\x99\x82");
        json_decref(body);
    }
    ck_assert_int_eq(got, 2);
    ck_assert_uint_eq(in.len, 0);
    buf_release(&out);
    buf_release(&in);
}
END_TEST

START_TEST(several_messages_in_one_read_keep_their_order)
{
    struct buf b = BUF_INIT;
    enum proto_type t;
    json_t *body;

    for (int i = 0; i < 3; i++)
        put_one(&b, PM_LOG, "text", i == 0 ? "a" : i == 1 ? "b" : "c");
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(proto_take(&b, PROTO_DAEMON, &t, &body, NULL), 1);
        ck_assert_str_eq(json_str(body, "text", ""), i == 0 ? "a" : i == 1 ? "b" : "c");
        json_decref(body);
    }
    ck_assert_int_eq(proto_take(&b, PROTO_DAEMON, &t, &body, NULL), 0);
    buf_release(&b);
}
END_TEST

static int take_side(enum proto_type type, enum proto_side side)
{
    struct buf b = BUF_INIT;
    enum proto_type t;
    json_t *body = NULL;
    struct dtx_err e = {0};
    int rc;

    ck_assert_int_eq(proto_put(&b, type, NULL, NULL), 0);
    rc = proto_take(&b, side, &t, &body, &e);
    if (rc < 0)
        ck_assert_str_ne(e.msg, "");
    json_decref(body);
    buf_release(&b);
    return rc;
}

START_TEST(each_message_has_one_receiver)
{
    for (size_t i = 0; i < sizeof(to_worker) / sizeof(*to_worker); i++) {
        ck_assert_int_eq(take_side(to_worker[i], PROTO_WORKER), 1);
        ck_assert_int_eq(take_side(to_worker[i], PROTO_DAEMON), -EPROTO);
    }
    for (size_t i = 0; i < sizeof(to_daemon) / sizeof(*to_daemon); i++) {
        ck_assert_int_eq(take_side(to_daemon[i], PROTO_DAEMON), 1);
        ck_assert_int_eq(take_side(to_daemon[i], PROTO_WORKER), -EPROTO);
    }
}
END_TEST

/* A good message, then `poke` changes the header or the body; taking it must fail in words. */
static void expect_broken(void (*poke)(struct proto_header *h, char *text), const char *word)
{
    struct buf b = BUF_INIT;
    struct proto_header h;
    enum proto_type t;
    json_t *body;
    struct dtx_err e = {0};

    put_one(&b, PM_ASK, "k", "v");
    memcpy(&h, b.p, sizeof(h));
    poke(&h, b.p + sizeof(h));
    memcpy(b.p, &h, sizeof(h));
    ck_assert_int_lt(proto_take(&b, PROTO_WORKER, &t, &body, &e), 0);
    ck_assert_ptr_null(body);
    ck_assert_msg(strstr(e.msg, word) != NULL, "message \"%s\" has no \"%s\"", e.msg, word);
    buf_release(&b);
}

static void poke_magic(struct proto_header *h, char *text)
{
    h->magic ^= 1;
}
static void poke_version(struct proto_header *h, char *text)
{
    h->version = PROTO_VERSION + 1;
}
static void poke_type(struct proto_header *h, char *text)
{
    h->type = 7;
}
static void poke_type_high(struct proto_header *h, char *text)
{
    h->type = 65535;
}
static void poke_length(struct proto_header *h, char *text)
{
    h->length = PROTO_MAX_MESSAGE + 1;
}
static void poke_json(struct proto_header *h, char *text)
{
    text[0] = '[';
}
static void poke_array(struct proto_header *h, char *text)
{
    memcpy(text, "[1, 2, 3]", h->length);
}
static void poke_utf8(struct proto_header *h, char *text)
{
    text[2] = (char)0xff;
}

START_TEST(broken_streams_fail_in_words)
{
    expect_broken(poke_magic, "begins with");
    expect_broken(poke_version, "one build");
    expect_broken(poke_type, "unknown message type 7");
    expect_broken(poke_type_high, "unknown message type 65535");
    expect_broken(poke_length, "limit");
    expect_broken(poke_json, "not valid JSON");
    expect_broken(poke_array, "not an object");
    expect_broken(poke_utf8, "not UTF-8");
}
END_TEST

START_TEST(too_large_a_message_is_not_put)
{
    struct buf b = BUF_INIT;
    size_t n = PROTO_MAX_MESSAGE;
    char *text = malloc(n + 1);
    json_t *body;

    memset(text, 'x', n);
    text[n] = '\0';
    put_one(&b, PM_LOG, "text", "first");
    body = json_pack("{s:s}", "text", text);
    size_t before = b.len;
    ck_assert_int_eq(proto_put(&b, PM_LOG, body, NULL), -EMSGSIZE);
    ck_assert_uint_eq(b.len, before);
    json_decref(body);
    free(text);
    buf_release(&b);
}
END_TEST

START_TEST(names_and_bad_types)
{
    struct buf b = BUF_INIT;
    json_t *array = json_array();

    ck_assert_str_eq(proto_type_name(PM_JOB_START), "job_start");
    ck_assert_str_eq(proto_type_name((enum proto_type)9), "unknown");
    ck_assert_str_eq(proto_type_name((enum proto_type) - 1), "unknown");
    ck_assert_int_eq(proto_put(&b, (enum proto_type)9, NULL, NULL), -EINVAL);
    ck_assert_int_eq(proto_put(&b, PM_LOG, array, NULL), -EINVAL);
    ck_assert_uint_eq(b.len, 0);
    json_decref(array);
    buf_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("proto");
    TCase *tc = tcase_create("proto");
    SRunner *r;
    int failed;

    tcase_add_test(tc, messages_go_through_byte_by_byte);
    tcase_add_test(tc, several_messages_in_one_read_keep_their_order);
    tcase_add_test(tc, each_message_has_one_receiver);
    tcase_add_test(tc, broken_streams_fail_in_words);
    tcase_add_test(tc, too_large_a_message_is_not_put);
    tcase_add_test(tc, names_and_bad_types);
    suite_add_tcase(s, tc);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
