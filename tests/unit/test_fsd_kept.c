/* What outlives a process: the log of node changes, requests that were begun, nodes after a takeover. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fsd/change_log.h"
#include "fsd/kept.h"
#include "fsd/nodes.h"

static struct change_log *the_log;
static char folder[64], db[96];

static void setup(void)
{
    the_log = calloc(1, sizeof(*the_log));
    strcpy(folder, "/tmp/dtx-kept.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(db, sizeof(db), "%s/nodes.db", folder);
}

static void teardown(void)
{
    char command[128];

    free(the_log);
    snprintf(command, sizeof(command), "rm -rf %s", folder);
    ck_assert_int_eq(system(command), 0);
}

static void add(struct change_log *log, uint64_t id, const char *name)
{
    struct nodes_change *c = calloc(1, sizeof(*c) + strlen(name) + 1);

    c->op = NOP_PUT_NAME;
    c->node.id = id;
    c->parent = NODE_ROOT;
    strcpy(c->name, name);
    change_log_add(log, c);
    free(c);
}

/* "id:name " of each change, in order. */
static char *contents(const struct change_log *log)
{
    static char text[1024];
    struct nodes_change *list = NULL;
    size_t n = 0;

    text[0] = '\0';
    ck_assert_int_eq(change_log_read(log, &list), 0);
    while (list) {
        struct nodes_change *next = list->next;
        n += (size_t)snprintf(text + n, sizeof(text) - n, "%d:%s ", (int)list->node.id, list->name);
        free(list);
        list = next;
    }
    return text;
}

START_TEST(log_keeps_the_order)
{
    ck_assert_str_eq(contents(the_log), "");
    add(the_log, 1, "a");
    change_log_take(the_log); /* a is being written */
    add(the_log, 2, "b");
    ck_assert_str_eq(contents(the_log), "1:a 2:b ");
    change_log_committed(the_log);
    ck_assert_str_eq(contents(the_log), "2:b ");
    change_log_take(the_log);
    add(the_log, 3, "c");
    /* the write failed: b stays, and is written again together with c */
    change_log_take(the_log);
    add(the_log, 4, "d");
    ck_assert_str_eq(contents(the_log), "2:b 3:c 4:d ");
    change_log_committed(the_log);
    ck_assert_str_eq(contents(the_log), "3:c 4:d ");
    change_log_clear(the_log);
    ck_assert_str_eq(contents(the_log), "");
}
END_TEST

START_TEST(log_that_is_full_keeps_what_it_has)
{
    char name[200];

    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    for (uint64_t i = 0; i < CHANGE_LOG_BYTES / 200; i++)
        add(the_log, i, name);
    ck_assert_uint_le(the_log->part[the_log->active].len, CHANGE_LOG_BYTES);
    struct nodes_change *list = NULL;
    ck_assert_int_eq(change_log_read(the_log, &list), 0);
    ck_assert_uint_eq(list->node.id, 0);
    while (list) {
        struct nodes_change *next = list->next;
        free(list);
        list = next;
    }
}
END_TEST

START_TEST(damaged_log)
{
    struct nodes_change *list = NULL;

    add(the_log, 1, "a");
    memset(the_log->part[0].bytes, 0xff, 4);
    ck_assert_int_eq(change_log_read(the_log, &list), -EIO);
    the_log->part[0].len = CHANGE_LOG_BYTES + 1;
    ck_assert_int_eq(change_log_read(the_log, &list), -EIO);
}
END_TEST

/* Killed before anything was written to nodes.db: in a child, without nodes_close. */
START_TEST(nodes_of_a_killed_process)
{
    struct node_info what = {.owner = NODE_USER, .key = {1, 77, 5}}, node, again;
    struct dtx_err e;
    struct nodes *n;

    ck_assert_int_eq(nodes_open(db, the_log, false, &n, &e), 0);
    nodes_close(n);
    ck_assert_int_eq(nodes_open(db, the_log, false, &n, &e), 0);
    ck_assert_int_eq(nodes_bind(n, NODE_ROOT, "file", &what, true, &node), 0);
    struct change_log *left = malloc(sizeof(*left));
    memcpy(left, the_log, sizeof(*left)); /* as a successor finds it */
    nodes_unbind(n, NODE_ROOT, "file");
    nodes_close(n); /* nodes.db knows nothing of it */
    ck_assert_int_eq(nodes_open(db, left, true, &n, &e), 0);
    ck_assert_int_eq(nodes_find(n, NODE_ROOT, "file", &again), 0);
    ck_assert_uint_eq(again.id, node.id);
    ck_assert_uint_eq(again.generation, node.generation);
    /* The kernel may know it, until it says that it does not. */
    ck_assert(nodes_known(n, node.id));
    nodes_use(n, node.id);
    nodes_unbind(n, NODE_ROOT, "file");
    ck_assert(!nodes_forget(n, node.id, 100)); /* still open */
    ck_assert_int_eq(nodes_get(n, node.id, &again), 0);
    ck_assert(nodes_unuse(n, node.id));
    ck_assert_int_eq(nodes_get(n, node.id, &again), -ESTALE);
    ck_assert(nodes_forget(n, node.id, 3)); /* harmless */
    nodes_close(n);
    free(left);
}
END_TEST

START_TEST(orphan_of_a_process_before)
{
    struct node_info orphan = {.id = 4711, .generation = 9, .owner = NODE_USER, .key = {1, 78, 5}}, node;
    struct dtx_err e;
    struct nodes *n;

    ck_assert_int_eq(nodes_open(db, NULL, true, &n, &e), 0);
    ck_assert_int_eq(nodes_restore(n, &orphan), 0);
    ck_assert_int_eq(nodes_restore(n, &orphan), 0);
    ck_assert_int_eq(nodes_get(n, 4711, &node), 0);
    ck_assert_uint_eq(node.generation, 9);
    ck_assert_uint_eq(node.parent, 0);
    ck_assert(nodes_forget(n, 4711, 1));
    ck_assert_int_eq(nodes_get(n, 4711, &node), -ESTALE);
    nodes_close(n);
}
END_TEST

START_TEST(requests_that_were_begun)
{
    const uint64_t mark = (uint64_t)1 << 63;
    struct kept k = {.sock = -1, .shared = calloc(1, sizeof(struct kept_shared)), .mount_fd = -1};

    kept_request(100);
    ck_assert(!kept_begin(&k, 7).again);
    kept_answered(&k);
    kept_request(100 | mark); /* answered: as good as new */
    ck_assert(kept_resent());
    ck_assert_uint_eq(kept_unique(), 100);
    ck_assert(!kept_begin(&k, 8).again);
    /* ... and now not answered */
    kept_request(102);
    kept_begin(&k, 9);
    kept_done(&k, -EPERM);
    kept_request(100 | mark);
    struct kept_turn t = kept_begin(&k, 1);
    ck_assert(t.again && !t.done);
    ck_assert_uint_eq(t.note, 8);
    kept_answered(&k);
    kept_request(102 | mark);
    t = kept_begin(&k, 1);
    ck_assert(t.again && t.done);
    ck_assert_int_eq(t.rc, -EPERM);
    kept_answered(&k);
    kept_request(102);
    t = kept_begin(&k, 1);
    ck_assert(!t.again && !t.done);
    /* more that were never answered than there is room for: the oldest go */
    for (uint64_t i = 1; i <= 2 * KEPT_ONCE; i++) {
        kept_request(1000 + 2 * i);
        kept_begin(&k, i);
    }
    kept_request((1000 + 4 * KEPT_ONCE) | mark);
    ck_assert_uint_eq(kept_begin(&k, 0).note, 2 * KEPT_ONCE);
    kept_request(1002 | mark);
    ck_assert(!kept_begin(&k, 0).again);
    free(k.shared);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fsd kept");
    TCase *t = tcase_create("kept");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, log_keeps_the_order);
    tcase_add_test(t, log_that_is_full_keeps_what_it_has);
    tcase_add_test(t, damaged_log);
    tcase_add_test(t, nodes_of_a_killed_process);
    tcase_add_test(t, orphan_of_a_process_before);
    tcase_add_test(t, requests_that_were_begun);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
