/* What outlives a process: the log of node changes, requests that were begun, nodes after a takeover, open
 * files. */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fsd/change_log.h"
#include "fsd/handles.h"
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

/* ---- open files ---- */

static struct nodes *nodes;
static struct kept keep;
static struct handles *table;
static int keeper; /* the other end */

/* As one process after another does: what is in the memory stays. */
static void succeed(void)
{
    handles_free(table);
    table = handles_new(nodes, &keep, true);
    ck_assert_ptr_nonnull(table);
}

static void open_setup(void)
{
    struct dtx_err e;
    int pair[2];

    setup();
    ck_assert_int_eq(nodes_open(db, NULL, false, &nodes, &e), 0);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair), 0);
    keep = (struct kept){.sock = pair[0], .shared = calloc(1, sizeof(struct kept_shared)), .mount_fd = -1};
    keeper = pair[1];
    table = NULL;
    succeed();
}

static void open_teardown(void)
{
    handles_free(table);
    nodes_close(nodes);
    free(keep.shared);
    close(keep.sock);
    close(keeper);
    teardown();
}

/* What the keeper was sent: "put", "put+fd", "drop", or "" for nothing; of which handle. */
static const char *said(uint64_t *fh)
{
    char control[CMSG_SPACE(sizeof(int))];
    struct keeper_message m;
    struct iovec iov = {&m, sizeof(m)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c;
    int fd;

    if (recvmsg(keeper, &msg, MSG_DONTWAIT) <= 0)
        return "";
    ck_assert_uint_eq(m.kind, KEEPER_HANDLE);
    *fh = m.key;
    c = CMSG_FIRSTHDR(&msg);
    if (c) {
        memcpy(&fd, CMSG_DATA(c), sizeof(fd));
        close(fd);
    }
    return m.op == KEEPER_DROP ? "drop" : c ? "put+fd" : "put";
}

static unsigned noted(void)
{
    unsigned n = 0;

    for (size_t i = 0; i < KEPT_FILES; i++)
        n += keep.shared->file[i].fh != 0;
    return n;
}

static struct handle *open_file(const char *name, uint64_t ino, enum node_owner owner)
{
    struct node_info what = {.owner = owner, .key = {1, ino, 5}};
    struct handle_spec spec = {.kind = HANDLE_FILE, .writer = true, .flags = O_RDWR, .who = {1000, 100, 77}};
    struct handle *h;

    ck_assert_int_eq(nodes_bind(nodes, NODE_ROOT, name, &what, false, &spec.node), 0);
    spec.fd = memfd_create("file", MFD_CLOEXEC);
    h = handles_add(table, &spec);
    ck_assert_ptr_nonnull(h);
    handles_keep(table, h);
    return h;
}

static struct handle *open_text(const char *name, size_t n)
{
    struct node_info what = {.owner = NODE_GENERATED};
    struct handle_spec spec = {.kind = HANDLE_TEXT, .fd = -1};
    char *text = malloc(n);

    memset(text, 't', n);
    ck_assert_int_eq(nodes_bind(nodes, NODE_ROOT, name, &what, false, &spec.node), 0);
    spec.snapshot = snapshot_of_text(text, n, 4711);
    free(text);
    return handles_add(table, &spec);
}

static int reopen_rc, reopen_flags;

static int reopen(void *arg, uint64_t id, int flags)
{
    *(uint64_t *)arg = id;
    reopen_flags = flags;
    return reopen_rc ? reopen_rc : memfd_create("again", MFD_CLOEXEC);
}

START_TEST(open_file_is_opened_again)
{
    uint64_t fh = 0, id = 0;
    struct handle *h = open_file("f", 7, NODE_USER), *again;
    struct caller who;
    uint64_t was = h->fh, node = h->id;

    ck_assert_str_eq(said(&fh), ""); /* no message for each open */
    ck_assert_uint_eq(noted(), 1);
    succeed();
    reopen_rc = 0;
    ck_assert_int_eq(handles_restore_kept(table, 0, reopen, &id, &again, &who), 0);
    ck_assert_uint_eq(id, node);
    ck_assert_int_eq(reopen_flags, O_RDWR);
    ck_assert_uint_eq(who.uid, 1000);
    ck_assert_ptr_eq(handles_get(table, was), again);
    ck_assert(again->restored && again->writer && again->fd >= 0);
    ck_assert_int_eq(handles_restore_kept(table, 0, reopen, &id, &again, &who), -EEXIST);
    ck_assert_uint_eq(noted(), 1); /* still that file's */
    handles_remove(table, was);
    ck_assert_uint_eq(noted(), 0);
    ck_assert_str_eq(said(&fh), "");
}
END_TEST

/* What was removed behind the mount's back is lost, and only that. */
START_TEST(open_file_that_is_not_there)
{
    uint64_t id;
    struct handle *h = open_file("f", 7, NODE_USER), *again;
    struct caller who;
    uint64_t was = h->fh;

    succeed();
    reopen_rc = -ESTALE;
    ck_assert_int_eq(handles_restore_kept(table, 0, reopen, &id, &again, &who), -ESTALE);
    ck_assert_ptr_null(handles_get(table, was));
    ck_assert_uint_eq(noted(), 0);
    h = open_file("f", 7, NODE_USER); /* its place can be used again */
    ck_assert_uint_eq(keep.shared->file[0].fh, h->fh);
    memset(keep.shared->file[0].data, 0xff, KEPT_DATA);
    succeed();
    ck_assert_int_eq(handles_restore_kept(table, 0, reopen, &id, &again, &who), -EPROTO);
    ck_assert_uint_eq(noted(), 0);
}
END_TEST

START_TEST(open_file_loses_its_name)
{
    uint64_t fh = 0;
    struct handle *h = open_file("f", 7, NODE_USER), *other = open_file("g", 8, NODE_USER), *late;

    ck_assert(nodes_stays(nodes, h->id));
    ck_assert(nodes_leave(nodes, h->id));
    ck_assert(!nodes_stays(nodes, h->id));
    handles_give_away(table, h->id, false);
    ck_assert_str_eq(said(&fh), "put+fd");
    ck_assert_uint_eq(fh, h->fh);
    ck_assert_str_eq(said(&fh), "");
    ck_assert_uint_eq(noted(), 1);       /* the other one */
    late = open_file("f", 7, NODE_USER); /* opened while the name goes */
    ck_assert_str_eq(said(&fh), "put+fd");
    ck_assert_uint_eq(fh, late->fh);
    nodes_unbind(nodes, NODE_ROOT, "f");
    nodes_stay(nodes, h->id);
    ck_assert(!nodes_stays(nodes, h->id)); /* it has no other */
    handles_remove(table, h->fh);
    ck_assert_str_eq(said(&fh), "drop");
    handles_remove(table, other->fh);
    ck_assert_str_eq(said(&fh), "");
    ck_assert_uint_eq(noted(), 0);
    /* one that was not unlinked after all */
    h = open_file("k", 9, NODE_USER);
    nodes_leave(nodes, h->id);
    nodes_stay(nodes, h->id);
    ck_assert(nodes_stays(nodes, h->id));
}
END_TEST

/* A rename: what is below the folder cannot be found by name while nodes.db does not know of it. */
START_TEST(open_file_below_a_folder_that_is_renamed)
{
    struct node_info what = {.owner = NODE_USER, .is_dir = true, .key = {1, 20, 5}}, outer, inner, moved;
    uint64_t fh = 0, id = 0;
    struct handle *h, *other = open_file("g", 8, NODE_USER), *again;
    struct caller who;

    ck_assert_int_eq(nodes_bind(nodes, NODE_ROOT, "outer", &what, false, &outer), 0);
    what.key.ino = 21;
    ck_assert_int_eq(nodes_bind(nodes, outer.id, "inner", &what, false, &inner), 0);
    h = open_file("f", 7, NODE_USER);
    nodes_rename(nodes, NODE_ROOT, "f", inner.id, "f");
    ck_assert(nodes_below(nodes, h->id, outer.id) && nodes_below(nodes, outer.id, outer.id));
    ck_assert(!nodes_below(nodes, other->id, outer.id) && !nodes_below(nodes, outer.id, inner.id));
    ck_assert(!nodes_leave(nodes, outer.id)); /* it is not open itself */
    ck_assert(!nodes_stays(nodes, h->id) && nodes_stays(nodes, other->id));
    handles_give_away(table, outer.id, true);
    ck_assert_str_eq(said(&fh), "put+fd");
    ck_assert_uint_eq(fh, h->fh);
    ck_assert_str_eq(said(&fh), "");
    nodes_rename(nodes, NODE_ROOT, "outer", NODE_ROOT, "new");
    nodes_stay(nodes, outer.id);
    ck_assert(nodes_stays(nodes, h->id));
    ck_assert_uint_eq(noted(), 1);
    succeed();
    ck_assert_int_eq(handles_restore_kept(table, 0, reopen, &id, &again, &who), 0);
    ck_assert_int_eq(nodes_find(nodes, NODE_ROOT, "g", &moved), 0);
    ck_assert_uint_eq(id, moved.id);
}
END_TEST

/* What neither nodes.db nor the log of changes has yet is not found by name. */
START_TEST(open_file_whose_name_is_nowhere_yet)
{
    struct nodes *logged;
    struct node_info what = {.owner = NODE_USER, .key = {1, 7, 5}}, node;
    struct dtx_err e;

    nodes_close(nodes);
    ck_assert_int_eq(nodes_open(db, the_log, false, &logged, &e), 0);
    the_log->part[the_log->active].len = CHANGE_LOG_BYTES; /* full */
    ck_assert_int_eq(nodes_bind(logged, NODE_ROOT, "f", &what, false, &node), 0);
    ck_assert(!nodes_stays(logged, node.id));
    ck_assert_int_eq(nodes_sync(logged, &e), 0);
    ck_assert(nodes_stays(logged, node.id));
    nodes_close(logged);
    ck_assert_int_eq(nodes_open(db, NULL, false, &nodes, &e), 0);
}
END_TEST

START_TEST(what_the_keeper_gets_at_once)
{
    uint64_t fh = 0;
    struct handle *h = open_file("log", 7, NODE_STORE); /* DTX replaces and removes these itself */

    ck_assert_str_eq(said(&fh), "put+fd");
    handles_remove(table, h->fh);
    ck_assert_str_eq(said(&fh), "drop");
    handles_free(table);
    table = handles_new(nodes, &keep, false); /* not root: it might not be allowed to */
    open_file("f", 8, NODE_USER);
    ck_assert_str_eq(said(&fh), "put+fd");
    ck_assert_uint_eq(noted(), 0);
}
END_TEST

START_TEST(open_texts)
{
    uint64_t fh = 0, id;
    struct handle *small = open_text("status", KEPT_TEXT), *empty = open_text("none", 0),
                  *large = open_text("list", KEPT_TEXT + 1), *again;
    struct caller who;
    uint64_t was = small->fh, nothing = empty->fh;

    ck_assert_str_eq(said(&fh), "put+fd");
    ck_assert_uint_eq(fh, large->fh);
    ck_assert_str_eq(said(&fh), "");
    succeed();
    for (size_t i = 0; i < 2; i++)
        ck_assert_int_eq(handles_restore_kept(table, i, reopen, &id, &again, &who), 0);
    again = handles_get(table, was);
    ck_assert_uint_eq(again->snapshot->size, KEPT_TEXT);
    ck_assert_int_eq(again->snapshot->data[KEPT_TEXT - 1], 't');
    ck_assert_int_eq(again->snapshot->mtime_ns, 4711);
    again = handles_get(table, nothing);
    ck_assert_uint_eq(again->snapshot->size, 0);
    handles_remove(table, was);
    handles_remove(table, nothing);
    ck_assert_uint_eq(noted(), 0);
}
END_TEST

START_TEST(more_open_files_than_there_is_room_for)
{
    static uint64_t fh[KEPT_FILES];
    uint64_t one = 0;
    struct handle *h;

    for (size_t i = 0; i < KEPT_FILES; i++)
        fh[i] = open_text("status", 10)->fh;
    ck_assert_uint_eq(noted(), KEPT_FILES);
    ck_assert_str_eq(said(&one), "");
    h = open_text("status", 10);
    ck_assert_str_eq(said(&one), "put+fd");
    handles_remove(table, fh[77]);
    handles_remove(table, h->fh);
    ck_assert_str_eq(said(&one), "drop");
    open_text("status", 10);
    ck_assert_str_eq(said(&one), "");
    ck_assert_uint_eq(noted(), KEPT_FILES);
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
    t = tcase_create("open files");
    tcase_add_checked_fixture(t, open_setup, open_teardown);
    tcase_add_test(t, open_file_is_opened_again);
    tcase_add_test(t, open_file_that_is_not_there);
    tcase_add_test(t, open_file_loses_its_name);
    tcase_add_test(t, open_file_below_a_folder_that_is_renamed);
    tcase_add_test(t, open_file_whose_name_is_nowhere_yet);
    tcase_add_test(t, what_the_keeper_gets_at_once);
    tcase_add_test(t, open_texts);
    tcase_add_test(t, more_open_files_than_there_is_room_for);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
