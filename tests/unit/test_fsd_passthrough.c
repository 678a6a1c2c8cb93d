/* Which way an open file goes (fsd/passthrough.h); the kernel's side is played by ioctl() below. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fsd/passthrough.h"

static int next_id, registered, refuse; /* refuse: with this errno */

int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    uint32_t *arg;

    va_start(ap, request);
    arg = va_arg(ap, uint32_t *);
    va_end(ap);
    ck_assert_int_eq(_IOC_TYPE(request), 229);
    if (_IOC_NR(request) == 2) {
        ck_assert_uint_gt(*arg, 0);
        registered--;
        return 0;
    }
    ck_assert_int_eq(_IOC_SIZE(request), 16);
    ck_assert_int_eq(fcntl((int)*arg, F_GETFL) & O_ACCMODE,
                     next_id == 0 ? O_RDWR : O_RDONLY); /* 0: the probe */
    if (refuse) {
        errno = refuse;
        return -1;
    }
    registered++;
    return ++next_id;
}

static struct passthrough *p;
static int file;
static char name[] = "/tmp/dtx-pass.XXXXXX";

static void setup(void)
{
    strcpy(name + sizeof(name) - 7, "XXXXXX");
    file = mkstemp(name);
    ck_assert_int_ge(file, 0);
    next_id = registered = refuse = 0;
    p = passthrough_new();
    ck_assert_ptr_nonnull(p);
    ck_assert(!passthrough_is_on(p));
}

static void teardown(void)
{
    passthrough_free(p);
    close(file);
    unlink(name);
}

static struct pass_grant open_as(uint64_t id, enum pass_wish wish)
{
    struct pass_grant g;

    ck_assert_int_eq(passthrough_open(p, id, file, wish, &g), 0);
    return g;
}

static void begin(void)
{
    passthrough_begin(p, 3, true, "");
    ck_assert(passthrough_is_on(p));
    ck_assert_int_eq(registered, 0);
}

START_TEST(off_where_it_was_not_agreed_or_is_refused)
{
    passthrough_begin(p, 3, false, "no");
    ck_assert(!passthrough_is_on(p));
    refuse = EPERM;
    passthrough_begin(p, 3, true, "");
    ck_assert(!passthrough_is_on(p));
    ck_assert_int_eq(open_as(7, WISH_BACKED).mode, PASS_CACHED);
    ck_assert_int_eq(registered, 0);
}
END_TEST

START_TEST(all_opens_of_a_backed_inode_share_its_file)
{
    struct pass_grant a, b, c, other;

    begin();
    a = open_as(7, WISH_BACKED);
    b = open_as(7, WISH_CACHED);
    c = open_as(7, WISH_SEEN);
    other = open_as(7 + 1024, WISH_BACKED); /* the same bucket */
    ck_assert_int_eq(a.mode, PASS_BACKED);
    ck_assert_int_eq(b.mode, PASS_BACKED);
    ck_assert_int_eq(c.mode, PASS_SEEN);
    ck_assert_uint_eq(a.backing_id, b.backing_id);
    ck_assert_uint_eq(a.backing_id, c.backing_id);
    ck_assert_uint_ne(a.backing_id, other.backing_id);
    passthrough_close(p, 7, a);
    passthrough_close(p, 7, c);
    ck_assert_int_eq(registered, 2);
    passthrough_close(p, 7, b);
    ck_assert_int_eq(registered, 1);
    passthrough_close(p, 7 + 1024, other);
    ck_assert_int_eq(registered, 0);
}
END_TEST

START_TEST(a_cached_inode_stays_so_until_it_is_closed)
{
    struct pass_grant a, b;

    begin();
    a = open_as(7, WISH_SEEN);
    b = open_as(7, WISH_BACKED);
    ck_assert_int_eq(a.mode, PASS_CACHED);
    ck_assert_int_eq(b.mode, PASS_CACHED);
    ck_assert_int_eq(registered, 0);
    passthrough_close(p, 7, a);
    ck_assert_int_eq(open_as(7, WISH_BACKED).mode, PASS_CACHED);
    passthrough_close(p, 7, b);
    passthrough_close(p, 7, b);
    a = open_as(7, WISH_BACKED);
    ck_assert_int_eq(a.mode, PASS_BACKED);
    passthrough_close(p, 7, a);
    ck_assert_int_eq(registered, 0);
}
END_TEST

START_TEST(a_file_that_the_kernel_refuses_goes_through_us)
{
    struct pass_grant a;

    begin();
    refuse = ELOOP;
    a = open_as(7, WISH_BACKED);
    ck_assert_int_eq(a.mode, PASS_CACHED);
    refuse = 0;
    ck_assert_int_eq(open_as(7, WISH_BACKED).mode, PASS_CACHED); /* as long as it is open */
    ck_assert_int_eq(open_as(8, WISH_BACKED).mode, PASS_BACKED);
    passthrough_close(p, 7, a);
}
END_TEST

START_TEST(what_a_process_before_had_open_is_closed_by_this_one)
{
    const struct pass_grant old = {PASS_BACKED, 41}, seen = {PASS_SEEN, 41};

    ck_assert_int_eq(passthrough_restore(p, 7, old), 0);
    ck_assert_int_eq(passthrough_restore(p, 7, seen), 0);
    begin();
    registered = 1;
    ck_assert_uint_eq(open_as(7, WISH_CACHED).backing_id, 41);
    passthrough_close(p, 7, old);
    passthrough_close(p, 7, old);
    ck_assert_int_eq(registered, 1);
    passthrough_close(p, 7, seen);
    ck_assert_int_eq(registered, 0);
}
END_TEST

START_TEST(writers_and_writable_mappings_are_seen)
{
    int reader = open(name, O_RDONLY), fd = dup(file);
    char *map;

    ck_assert_int_eq(ftruncate(file, 4096), 0);
    ck_assert(passthrough_is_written(reader));
    map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ck_assert(map != MAP_FAILED);
    close(file);
    close(fd);
    ck_assert(passthrough_is_written(reader));
    munmap(map, 4096);
    ck_assert(!passthrough_is_written(reader));
    file = open(name, O_RDWR);
    ck_assert_int_ge(file, 0); /* no lease is left */
    ck_assert(passthrough_is_written(reader));
    close(reader);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("passthrough");
    TCase *t = tcase_create("passthrough");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, off_where_it_was_not_agreed_or_is_refused);
    tcase_add_test(t, all_opens_of_a_backed_inode_share_its_file);
    tcase_add_test(t, a_cached_inode_stays_so_until_it_is_closed);
    tcase_add_test(t, a_file_that_the_kernel_refuses_goes_through_us);
    tcase_add_test(t, what_a_process_before_had_open_is_closed_by_this_one);
    tcase_add_test(t, writers_and_writable_mappings_are_seen);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
