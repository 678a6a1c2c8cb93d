/* Node ids: stable over restarts, renames and links; never given twice. */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fsd/nodes.h"

static char dir[] = "/tmp/dtx-nodes.XXXXXX";
static char db[128];

static void setup(void)
{
    strcpy(dir, "/tmp/dtx-nodes.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(db, sizeof(db), "%s/nodes.db", dir);
}

static void teardown(void)
{
    char cmd[200];

    snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
    ck_assert_int_eq(system(cmd), 0);
}

static struct nodes *reopen(struct nodes *n)
{
    struct dtx_err e;

    nodes_close(n);
    ck_assert_msg(nodes_open(db, NULL, false, &n, &e) == 0, "%s", e.msg);
    return n;
}

/* Bind as a lookup does; ino 0 makes a generated node. */
static struct node_info bind(struct nodes *n, uint64_t parent, const char *name, uint64_t ino, bool is_dir)
{
    struct node_info what = {.owner = ino ? NODE_USER : NODE_GENERATED, .is_dir = is_dir}, out;

    if (ino)
        what.key = (struct node_key){.dev = 1, .ino = ino, .btime = 77};
    ck_assert_int_eq(nodes_bind(n, parent, name, &what, true, &out), 0);
    return out;
}

static const char *path_of(struct nodes *n, uint64_t id)
{
    static char text[512];
    struct buf b = BUF_INIT;
    int rc = nodes_path(n, id, &b);

    snprintf(text, sizeof(text), "%s", rc ? strerror(-rc) : b.p ? b.p : "");
    buf_release(&b);
    return text;
}

START_TEST(test_restart_keeps_ids)
{
    struct nodes *n = reopen(NULL);
    struct node_info a = bind(n, NODE_ROOT, "datasets", 10, true), b = bind(n, a.id, "x", 11, false), c,
                     again;

    c = bind(n, NODE_ROOT, "status", 0, false);
    ck_assert_uint_ne(a.id, b.id);
    ck_assert_uint_ne(a.generation, b.generation); /* or handles of NFS could be guessed */
    n = reopen(n);
    again = bind(n, NODE_ROOT, "datasets", 10, true);
    ck_assert_uint_eq(again.id, a.id);
    ck_assert_uint_eq(again.generation, a.generation);
    ck_assert_str_eq(path_of(n, b.id), "datasets/x");
    ck_assert_int_eq(nodes_get(n, b.id, &again), 0);
    ck_assert_uint_eq(again.key.ino, 11);
    ck_assert_uint_eq(again.parent, a.id);
    ck_assert_uint_eq(bind(n, NODE_ROOT, "status", 0, false).id, c.id);
    nodes_close(n);
}
END_TEST

/* The kernel knows the root as (1, 0) and warns of any other answer. */
START_TEST(test_root_has_no_generation)
{
    struct nodes *n = reopen(NULL);
    struct node_info root;

    ck_assert_int_eq(nodes_get(n, NODE_ROOT, &root), 0);
    ck_assert_uint_eq(root.generation, 0);
    nodes_close(n);
}
END_TEST

START_TEST(test_replaced_file_gets_new_id)
{
    struct nodes *n = reopen(NULL);
    struct node_info a = bind(n, NODE_ROOT, "f", 10, false), b, c;

    b = bind(n, NODE_ROOT, "f", 12, false);
    ck_assert_uint_ne(a.id, b.id);
    ck_assert_str_eq(path_of(n, a.id), strerror(ESTALE));
    ck_assert_str_eq(path_of(n, b.id), "f");
    ck_assert(nodes_forget(n, a.id, 1));
    ck_assert_int_eq(nodes_get(n, a.id, &c), -ESTALE);
    nodes_close(n);
}
END_TEST

/* The same inode number with another birth time is another file. */
START_TEST(test_inode_number_used_again)
{
    struct nodes *n = reopen(NULL);
    struct node_info a = bind(n, NODE_ROOT, "f", 10, false);
    struct node_info what = {.owner = NODE_USER, .key = {.dev = 1, .ino = 10, .btime = 78}}, b;

    nodes_unbind(n, NODE_ROOT, "f");
    ck_assert_int_eq(nodes_bind(n, NODE_ROOT, "f", &what, true, &b), 0);
    ck_assert_uint_ne(a.id, b.id);
    nodes_close(n);
}
END_TEST

START_TEST(test_hard_links_share_a_node)
{
    struct nodes *n = reopen(NULL);
    struct node_info a = bind(n, NODE_ROOT, "one", 10, false), b = bind(n, NODE_ROOT, "two", 10, false);
    struct buf name = BUF_INIT;
    uint64_t parent;

    ck_assert_uint_eq(a.id, b.id);
    ck_assert_str_eq(path_of(n, a.id), "two");
    bind(n, NODE_ROOT, "one", 10, false);
    ck_assert_str_eq(path_of(n, a.id), "one");
    ck_assert_int_eq(nodes_name(n, a.id, 1, &parent, &name), 0);
    ck_assert_str_eq(name.p, "two");
    ck_assert_int_eq(nodes_name(n, a.id, 2, &parent, &name), -ENOENT);
    nodes_unbind(n, NODE_ROOT, "one");
    ck_assert_str_eq(path_of(n, a.id), "two");
    n = reopen(n);
    ck_assert_str_eq(path_of(n, a.id), "two");
    buf_release(&name);
    nodes_close(n);
}
END_TEST

/* CPU seconds to make names in a folder, look each up in turn, and take them away. */
static double time_of_names(struct nodes *n, unsigned names, bool one_file)
{
    struct node_info folder = bind(n, NODE_ROOT, one_file ? "links" : "files", one_file ? 10 : 11, true);
    clock_t start = clock();
    char name[32];

    for (unsigned round = 0; round < 2; round++)
        for (unsigned i = 0; i < names; i++) {
            snprintf(name, sizeof(name), "%u", i);
            bind(n, folder.id, name, one_file ? 20 : 100 + i, false);
        }
    for (unsigned i = 0; i < names; i++) {
        snprintf(name, sizeof(name), "%u", i);
        nodes_unbind(n, folder.id, name);
    }
    return (double)(clock() - start) / CLOCKS_PER_SEC;
}

/* As many names as ext4 gives a file: whoever makes them must not make all others wait. */
START_TEST(test_many_hard_links_cost_what_files_cost)
{
    struct nodes *n = reopen(NULL);
    double files = time_of_names(n, 65000, false), links = time_of_names(n, 65000, true);

    ck_assert_msg(links < 5 * files + 0.2, "65000 files took %.2f s, 65000 links %.2f s", files, links);
    nodes_close(n);
}
END_TEST

START_TEST(test_rename_of_a_folder)
{
    struct nodes *n = reopen(NULL);
    struct node_info d = bind(n, NODE_ROOT, "d", 10, true), f = bind(n, d.id, "f", 11, false);
    struct node_info over = bind(n, NODE_ROOT, "e", 12, true);

    nodes_rename(n, NODE_ROOT, "d", NODE_ROOT, "e");
    ck_assert_str_eq(path_of(n, f.id), "e/f");
    ck_assert_str_eq(path_of(n, over.id), strerror(ESTALE));
    n = reopen(n);
    ck_assert_str_eq(path_of(n, f.id), "e/f");
    ck_assert_uint_eq(bind(n, NODE_ROOT, "e", 10, true).id, d.id);
    nodes_close(n);
}
END_TEST

/* Renamed behind the mount's back: found by its key, and it has one name only. */
START_TEST(test_folder_renamed_behind_the_back)
{
    struct nodes *n = reopen(NULL);
    struct node_info d = bind(n, NODE_ROOT, "d", 10, true), gone;

    ck_assert_uint_eq(bind(n, NODE_ROOT, "e", 10, true).id, d.id);
    ck_assert_str_eq(path_of(n, d.id), "e");
    ck_assert_int_eq(nodes_find(n, NODE_ROOT, "d", &gone), -ENOENT);
    nodes_close(n);
}
END_TEST

START_TEST(test_exchange)
{
    struct nodes *n = reopen(NULL);
    struct node_info a = bind(n, NODE_ROOT, "a", 10, true), b = bind(n, NODE_ROOT, "b", 11, false);
    struct node_info in = bind(n, a.id, "in", 12, false);

    nodes_exchange(n, NODE_ROOT, "a", NODE_ROOT, "b");
    n = reopen(n);
    ck_assert_str_eq(path_of(n, a.id), "b");
    ck_assert_str_eq(path_of(n, b.id), "a");
    ck_assert_str_eq(path_of(n, in.id), "b/in");
    nodes_close(n);
}
END_TEST

START_TEST(test_unlinked_folder_takes_names_along)
{
    struct nodes *n = reopen(NULL);
    struct node_info d = bind(n, NODE_ROOT, "e1", 0, true), s = bind(n, d.id, "status", 0, false), out;
    uint64_t before = nodes_count(n);

    nodes_unbind(n, NODE_ROOT, "e1");
    ck_assert_int_eq(nodes_get(n, s.id, &out), 0); /* the kernel knows it still */
    ck_assert_uint_eq(out.parent, 0);
    ck_assert(!nodes_forget(n, s.id, 0));
    ck_assert(nodes_forget(n, s.id, 1));
    ck_assert(nodes_forget(n, d.id, 1));
    ck_assert_uint_eq(nodes_count(n), before - 2);
    ck_assert_uint_ne(bind(n, NODE_ROOT, "e1", 0, true).id, d.id);
    n = reopen(n);
    ck_assert_int_eq(nodes_get(n, s.id, &out), -ESTALE);
    nodes_close(n);
}
END_TEST

/* A new name in an unlinked folder is refused. */
START_TEST(test_bind_in_orphan)
{
    struct nodes *n = reopen(NULL);
    struct node_info d = bind(n, NODE_ROOT, "d", 10, true), what = {.owner = NODE_USER, .key = {1, 11, 0}},
                     out;

    nodes_unbind(n, NODE_ROOT, "d");
    ck_assert_int_eq(nodes_bind(n, d.id, "f", &what, true, &out), -ESTALE);
    nodes_close(n);
}
END_TEST

static uint64_t last_id_of_killed(void)
{
    int fd[2];
    uint64_t last = 0;
    pid_t pid;

    ck_assert_int_eq(pipe(fd), 0);
    pid = fork();
    if (pid == 0) {
        struct nodes *n = reopen(NULL);
        char name[32];
        for (int i = 0; i < 1000; i++) {
            snprintf(name, sizeof(name), "f%d-%d", (int)getpid(), i);
            last = bind(n, NODE_ROOT, name, 1000000 + (uint64_t)getpid() * 1000 + (uint64_t)i, false).id;
        }
        _exit(write(fd[1], &last, sizeof(last)) == sizeof(last) ? 0 : 1); /* no close: as kill -9 */
    }
    ck_assert_int_eq((int)read(fd[0], &last, sizeof(last)), (int)sizeof(last));
    ck_assert_int_eq((int)waitpid(pid, NULL, 0), pid);
    close(fd[0]);
    close(fd[1]);
    return last;
}

START_TEST(test_killed_daemon_never_gives_an_id_again)
{
    uint64_t last = 0;

    for (int i = 0; i < 3; i++) {
        uint64_t now = last_id_of_killed();
        ck_assert_uint_gt(now, last + 999);
        last = now;
    }
}
END_TEST

START_TEST(test_synced_ids_survive_a_kill)
{
    int fd[2];
    uint64_t id = 0;
    pid_t pid;

    ck_assert_int_eq(pipe(fd), 0);
    pid = fork();
    if (pid == 0) {
        struct nodes *n = reopen(NULL);
        struct dtx_err e;
        id = bind(n, NODE_ROOT, "kept", 42, false).id;
        if (nodes_sync(n, &e))
            _exit(1);
        _exit(write(fd[1], &id, sizeof(id)) == sizeof(id) ? 0 : 1);
    }
    ck_assert_int_eq((int)read(fd[0], &id, sizeof(id)), (int)sizeof(id));
    ck_assert_int_eq((int)waitpid(pid, NULL, 0), pid);
    struct nodes *n = reopen(NULL);
    ck_assert_str_eq(path_of(n, id), "kept");
    nodes_close(n);
    close(fd[0]);
    close(fd[1]);
}
END_TEST

/* More ids than one reserved block, names beyond the first buckets, and all of it there after a restart. */
START_TEST(test_many)
{
    enum { MANY = 70000 };
    struct nodes *n = reopen(NULL);
    uint64_t first = 0, last = 0;
    char name[32];

    for (int i = 0; i < MANY; i++) {
        snprintf(name, sizeof(name), "f%d", i);
        last = bind(n, NODE_ROOT, name, 100 + (uint64_t)i, false).id;
        if (!first)
            first = last;
    }
    n = reopen(n);
    ck_assert_uint_eq(nodes_count(n), MANY + 1);
    ck_assert_str_eq(path_of(n, first), "f0");
    ck_assert_str_eq(path_of(n, last), "f69999");
    nodes_close(n);
}
END_TEST

START_TEST(test_damaged_database)
{
    struct nodes *n = NULL;
    struct dtx_err e = {0};
    FILE *out = fopen(db, "w");

    ck_assert_ptr_nonnull(out);
    for (int i = 0; i < 1000; i++)
        fputs("this is no database\n", out);
    fclose(out);
    ck_assert_int_lt(nodes_open(db, NULL, false, &n, &e), 0);
    ck_assert_ptr_nonnull(strstr(e.msg, "nodes.db"));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("fsd nodes");
    TCase *c = tcase_create("nodes");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_set_timeout(c, 60);
    tcase_add_test(c, test_restart_keeps_ids);
    tcase_add_test(c, test_root_has_no_generation);
    tcase_add_test(c, test_replaced_file_gets_new_id);
    tcase_add_test(c, test_inode_number_used_again);
    tcase_add_test(c, test_hard_links_share_a_node);
    tcase_add_test(c, test_many_hard_links_cost_what_files_cost);
    tcase_add_test(c, test_rename_of_a_folder);
    tcase_add_test(c, test_folder_renamed_behind_the_back);
    tcase_add_test(c, test_exchange);
    tcase_add_test(c, test_unlinked_folder_takes_names_along);
    tcase_add_test(c, test_bind_in_orphan);
    tcase_add_test(c, test_killed_daemon_never_gives_an_id_again);
    tcase_add_test(c, test_synced_ids_survive_a_kill);
    tcase_add_test(c, test_many);
    tcase_add_test(c, test_damaged_database);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? 1 : 0;
}
