/* The rendering cache: size, mtime and content agree, at most one change a second, snapshots stay whole.
 * Directory cookies: the same in every listing. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <errno.h>
#include <pthread.h>

#include "fsd/listing.h"
#include "fsd/render_cache.h"
#include "scheduler/base/clock.h"

struct maker {
    char text[64];
    int calls, fail;
    int64_t mtime;
};

static int make(void *arg, struct buf *out, int64_t *mtime)
{
    struct maker *m = arg;

    m->calls++;
    *mtime = m->mtime;
    buf_adds(out, m->text);
    return m->fail;
}

static struct snapshot *get(struct render_cache *c, uint64_t id, enum render_use use, struct maker *m)
{
    struct snapshot *s = NULL;

    ck_assert_int_eq(render_cache_get(c, id, use, make, m, &s), 0);
    ck_assert_uint_eq(s->size, strlen(s->data));
    return s;
}

static void sleep_ms(int ms)
{
    usleep((useconds_t)ms * 1000);
}

START_TEST(test_changes_once_a_second)
{
    struct render_cache *c = render_cache_new();
    struct maker m = {.text = "one", .mtime = 123456789};
    struct snapshot *a = get(c, 5, RENDER_FOR_ATTR, &m), *b, *d;

    ck_assert_int_eq(a->mtime_ns, 123456789);
    sleep_ms(RENDER_HOLD_MS + 50);
    strcpy(m.text, "three");
    b = get(c, 5, RENDER_FOR_ATTR, &m); /* the first change is seen at once */
    ck_assert_str_eq(b->data, "three");
    ck_assert_int_gt(b->mtime_ns, a->mtime_ns);
    ck_assert_str_eq(a->data, "one"); /* whole for who holds it */
    strcpy(m.text, "four");
    sleep_ms(RENDER_HOLD_MS + 50);
    d = get(c, 5, RENDER_FOR_ATTR, &m); /* the next one only after a second */
    ck_assert_str_eq(d->data, "three");
    ck_assert_int_eq(d->mtime_ns, b->mtime_ns);
    snapshot_put(d);
    sleep_ms(RENDER_MIN_MS - RENDER_HOLD_MS);
    d = get(c, 5, RENDER_FOR_ATTR, &m);
    ck_assert_str_eq(d->data, "four");
    snapshot_put(a);
    snapshot_put(b);
    snapshot_put(d);
    render_cache_free(c);
}
END_TEST

/* What the kernel was told is what an open reads, as long as the kernel may believe it. */
START_TEST(test_open_reads_what_stat_said)
{
    struct render_cache *c = render_cache_new();
    struct maker m = {.text = "old"};
    struct snapshot *a = get(c, 5, RENDER_FOR_ATTR, &m), *b;

    snapshot_put(a);
    sleep_ms(RENDER_HOLD_MS - 100);
    strcpy(m.text, "newer");
    b = get(c, 5, RENDER_FOR_OPEN, &m);
    ck_assert_str_eq(b->data, "old");
    snapshot_put(b);
    sleep_ms(200);
    b = get(c, 5, RENDER_FOR_OPEN, &m);
    ck_assert_str_eq(b->data, "newer");
    a = get(c, 5, RENDER_FOR_ATTR, &m); /* and fstat after open says the same */
    ck_assert_ptr_eq(a, b);
    snapshot_put(a);
    snapshot_put(b);
    render_cache_free(c);
}
END_TEST

START_TEST(test_unchanged_text_keeps_its_mtime)
{
    struct render_cache *c = render_cache_new();
    struct maker m = {.text = "same"};
    struct snapshot *a = get(c, 5, RENDER_FOR_ATTR, &m), *b;

    sleep_ms(RENDER_HOLD_MS + 50);
    b = get(c, 5, RENDER_FOR_ATTR, &m);
    ck_assert_int_eq(m.calls, 2);
    ck_assert_ptr_eq(a, b);
    snapshot_put(a);
    snapshot_put(b);
    render_cache_free(c);
}
END_TEST

START_TEST(test_failure_is_passed_on)
{
    struct render_cache *c = render_cache_new();
    struct maker m = {.text = "x", .fail = -ENOENT};
    struct snapshot *s = NULL;

    ck_assert_int_eq(render_cache_get(c, 5, RENDER_FOR_ATTR, make, &m, &s), -ENOENT);
    ck_assert_ptr_null(s);
    m.fail = 0;
    snapshot_put(get(c, 5, RENDER_FOR_ATTR, &m));
    render_cache_free(c);
}
END_TEST

struct counter {
    pthread_mutex_t mu;
    unsigned n;
};

/* A text that is different each time, and consistent in itself. */
static int make_counter(void *arg, struct buf *out, int64_t *mtime)
{
    struct counter *k = arg;
    unsigned n;

    pthread_mutex_lock(&k->mu);
    n = ++k->n;
    pthread_mutex_unlock(&k->mu);
    for (unsigned i = 0; i < 1 + n % 7; i++)
        buf_addf(out, "%u ", n);
    return 0;
}

struct reader {
    struct render_cache *c;
    struct counter *k;
    int bad;
};

static void *read_much(void *arg)
{
    struct reader *r = arg;
    int64_t end = clock_mono_ns() + 1500000000;

    for (uint64_t i = 0; clock_mono_ns() < end; i++) {
        struct snapshot *s;
        char first[16];
        if (render_cache_get(r->c, i % 3, i % 2 ? RENDER_FOR_ATTR : RENDER_FOR_OPEN, make_counter, r->k,
                             &s)) {
            r->bad++;
            continue;
        }
        snprintf(first, sizeof(first), "%.*s", (int)strcspn(s->data, " "), s->data);
        for (char *p = s->data; *p; p += strcspn(p, " ") + 1)
            r->bad += strncmp(p, first, strlen(first)) != 0;
        snapshot_put(s);
        if (i % 64 == 0)
            render_cache_tidy(r->c);
    }
    return NULL;
}

START_TEST(test_many_readers)
{
    struct render_cache *c = render_cache_new();
    struct counter k = {.mu = PTHREAD_MUTEX_INITIALIZER};
    struct reader r[4];
    pthread_t t[4];

    for (int i = 0; i < 4; i++) {
        r[i] = (struct reader){c, &k, 0};
        ck_assert_int_eq(pthread_create(&t[i], NULL, read_much, &r[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
        ck_assert_int_eq(r[i].bad, 0);
    }
    ck_assert_uint_ge(k.n, 3);
    ck_assert_uint_le(k.n, 3 * 4); /* three files, 1.5 s: two or three renderings each */
    render_cache_free(c);
}
END_TEST

START_TEST(test_cookies)
{
    struct listing a, b;
    char name[32];
    size_t kept = 0;

    listing_init(&a);
    listing_init(&b);
    listing_add(&a, ".");
    listing_add(&a, "..");
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof(name), "n%d", i);
        listing_add(&a, name);
        listing_add(&a, name);
        if (i % 3)
            listing_add(&b, name);
    }
    ck_assert_int_eq(listing_finish(&a), 0);
    ck_assert_int_eq(listing_finish(&b), 0);
    ck_assert_uint_eq(a.n, 1002);
    ck_assert_str_eq(a.entry[0].name, ".");
    ck_assert_str_eq(a.entry[1].name, "..");
    /* reading on in a listing that lost names meanwhile skips none of the others */
    for (size_t i = listing_seek(&b, a.entry[500].cookie); i < b.n; i++)
        kept++;
    for (size_t i = 501; i < a.n; i++)
        kept -= atoi(a.entry[i].name + 1) % 3 != 0;
    ck_assert_uint_eq(kept, 0);
    ck_assert_uint_eq(listing_seek(&a, 0), 0);
    ck_assert_uint_eq(listing_seek(&a, a.entry[a.n - 1].cookie), a.n);
    listing_release(&a);
    listing_release(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fsd render cache");
    TCase *c = tcase_create("render");
    SRunner *r;
    int failed;

    tcase_set_timeout(c, 30);
    tcase_add_test(c, test_changes_once_a_second);
    tcase_add_test(c, test_open_reads_what_stat_said);
    tcase_add_test(c, test_unchanged_text_keeps_its_mtime);
    tcase_add_test(c, test_failure_is_passed_on);
    tcase_add_test(c, test_many_readers);
    tcase_add_test(c, test_cookies);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
