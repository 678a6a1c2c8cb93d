/* What a check can still do once it is confined, tried in a child of its own; what a worker keeps. */
#include <check.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/worker/confine.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

static char top[64];
static int tree;

static void put(const char *path, mode_t mode, uid_t uid)
{
    int fd = openat(tree, path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(fd_write_all(fd, "text", 4), 0);
    ck_assert_int_eq(fchmod(fd, mode), 0);
    if (geteuid() == 0)
        ck_assert_int_eq(fchown(fd, uid, uid), 0);
    close(fd);
}

static void folder(const char *path, mode_t mode, uid_t uid)
{
    ck_assert_int_eq(fd_mkdirs(tree, path, 0755, NULL), 0);
    ck_assert_int_eq(fchmodat(tree, path, mode, 0), 0);
    if (geteuid() == 0)
        ck_assert_int_eq(fchownat(tree, path, uid, uid, 0), 0);
}

static void setup(void)
{
    char path[80];

    snprintf(top, sizeof(top), "/tmp/dtx-confine-XXXXXX"); /* 0700: the store may be root's alone */
    ck_assert_ptr_nonnull(mkdtemp(top));
    snprintf(path, sizeof(path), "%s/tree", top);
    ck_assert_int_eq(mkdir(path, 0755), 0);
    tree = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(tree, 0);
    folder("datasets/own", 0700, 1001);
    put("datasets/own/train.jsonl", 0600, 1001);
    folder("datasets/other", 0755, 1002);
    put("datasets/other/open.jsonl", 0644, 1002);
    put("datasets/other/closed.jsonl", 0600, 1002);
    folder("datasets/roots", 0700, 0);
    put("datasets/roots/train.jsonl", 0600, 0);
    folder("models/base/tiny", 0755, 1002);
    put("models/base/tiny/config.json", 0644, 1002);
}

static void teardown(void)
{
    close(tree);
    ck_assert_int_eq(fd_remove_tree(AT_FDCWD, top, NULL), 0);
}

/* In the child, where nothing of Check works: the first thing that is not as it must be, NULL. */
#define MUST(x)                                                                                              \
    do {                                                                                                     \
        if (!(x))                                                                                            \
            return #x;                                                                                       \
    } while (0)

static bool opens(const char *path, int flags)
{
    int fd = openat(tree, path, flags | O_CLOEXEC, 0600);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static uint64_t permitted(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct now[2];

    return syscall(SYS_capget, &head, now) ? UINT64_MAX : now[0].permitted | (uint64_t)now[1].permitted << 32;
}

/* None of the bounding set is left but these; where this process could not drop any it does not count. */
static bool bounded(uint64_t keep)
{
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1 && !(keep >> cap & 1))
            return false;
    return true;
}

static bool has_landlock(void)
{
    return syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) >= 1;
}

/* Of whoever the check is. */
static const char *common(bool root, uint64_t keep)
{
    pid_t child;

    MUST(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    MUST(permitted() == keep);
    MUST(!root || bounded(keep));
    MUST(syscall(SYS_setresuid, 0, 0, 0) != 0 || !root);
    MUST(opens("models/base/tiny/config.json", O_RDONLY));
    MUST(!opens("models/base/tiny/config.json", O_WRONLY));
    MUST(opens("datasets", O_RDONLY | O_DIRECTORY)); /* to sync it */
    MUST(fd_sync_path(tree, "datasets", NULL) == 0);
    if (has_landlock() && !SANITIZED) {
        MUST(!opens("datasets/other/open.jsonl", O_RDONLY));
        MUST(!opens("/etc/passwd", O_RDONLY));
        MUST(!opens("/tmp", O_RDONLY | O_DIRECTORY));
    }
    MUST(!opens("/etc/passwd", O_WRONLY));
    if (!SANITIZED) {
        child = fork();
        if (child == 0)
            _exit(0);
        MUST(child < 0);
        MUST(!malloc((size_t)5 << 30));
    }
    return NULL;
}

static const char *as_owner(void)
{
    bool root = geteuid() == 0;
    struct dtx_err e = {0};
    const char *bad;
    int fd;

    if (confine_check(tree, "datasets/own", "models/base/tiny", &e)) {
        fprintf(stderr, "%s\n", e.msg);
        return "confine_check";
    }
    MUST(!root || (getuid() == 1001 && geteuid() == 1001 && getgid() == 1001 && getgroups(0, NULL) == 0));
    bad = common(root, 0);
    if (bad)
        return bad;
    MUST(opens("datasets/own", O_RDONLY | O_DIRECTORY));
    MUST((fd = openat(tree, "datasets/own/train.jsonl", O_RDONLY)) >= 0 && fsync(fd) == 0);
    MUST(!root || !opens("datasets/other/closed.jsonl", O_RDONLY));
    MUST(!root || kill(getppid(), 0) != 0);
    if (has_landlock()) { /* not even what is its owner's */
        MUST(!opens("datasets/own/train.jsonl", O_WRONLY));
        MUST(!opens("datasets/own/new", O_WRONLY | O_CREAT));
        MUST(unlinkat(tree, "datasets/own/train.jsonl", 0) != 0);
    } else {
        MUST((fd = openat(tree, "datasets/own/train.jsonl", O_WRONLY)) >= 0 && write(fd, "x", 1) < 0);
    }
    return NULL;
}

static const char *as_nobody(void)
{
    struct dtx_err e = {0};
    const char *bad;

    MUST(confine_check(tree, "datasets/roots", "models/base/tiny", &e) == 0);
    MUST(getuid() == 65534 && geteuid() == 65534 && getgid() == 65534 && getgroups(0, NULL) == 0);
    bad = common(true, UINT64_C(1) << CAP_DAC_READ_SEARCH);
    if (bad)
        return bad;
    MUST(opens("datasets/roots/train.jsonl", O_RDONLY));
    MUST(!opens("datasets/roots/train.jsonl", O_WRONLY));
    MUST(!has_landlock() || SANITIZED || !opens("datasets/other/closed.jsonl", O_RDONLY));
    return NULL;
}

static const char *as_worker(void)
{
    struct dtx_err e = {0};
    uint64_t before = permitted(), keep = UINT64_C(1) << CAP_CHOWN | UINT64_C(1) << CAP_DAC_OVERRIDE |
                                          UINT64_C(1) << CAP_DAC_READ_SEARCH | UINT64_C(1) << CAP_FOWNER |
                                          UINT64_C(1) << CAP_FSETID | UINT64_C(1) << CAP_SYS_RESOURCE;

    MUST(confine_worker(false, &e) == 0);
    MUST(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    MUST(permitted() == (before & keep));
    MUST(geteuid() != 0 || bounded(keep));
    if (geteuid() == 0) {
        MUST(opens("datasets/own/train.jsonl", O_RDWR));
        MUST(fchownat(tree, "datasets/roots/train.jsonl", 1001, 1001, 0) == 0);
        MUST(fchmodat(tree, "datasets/own/train.jsonl", 0640, 0) == 0);
        MUST(syscall(SYS_setresuid, 1001, 1001, 1001) != 0 && chroot("/") != 0); /* (libc asks all threads) */
    }
    return NULL;
}

static void in_child(const char *(*fn)(void))
{
    char words[200] = "";
    const char *bad;
    int out[2], status;
    pid_t pid;

    ck_assert_int_eq(pipe(out), 0);
    pid = fork();
    if (pid == 0) {
        bad = fn();
        if (bad)
            (void)!write(out[1], bad, strlen(bad)); /* a pipe is no file: its size has no limit */
        _exit(bad ? 1 : 0);
    }
    close(out[1]);
    (void)!read(out[0], words, sizeof(words) - 1);
    close(out[0]);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x: %s", status, words);
}

START_TEST(check_of_a_users_folder)
{
    in_child(as_owner);
}
END_TEST

START_TEST(check_of_roots_folder)
{
    if (geteuid() == 0)
        in_child(as_nobody);
    else
        printf("SKIP: check_of_roots_folder: not root\n");
}
END_TEST

START_TEST(worker)
{
    in_child(as_worker);
}
END_TEST

static const char *not_there(void)
{
    struct dtx_err e = {0};

    MUST(confine_check(tree, "datasets/none", NULL, &e) == (geteuid() == 0 ? -ENOENT : 0));
    MUST(geteuid() != 0 || strstr(e.msg, "datasets/none"));
    return NULL;
}

START_TEST(of_what_is_not_there)
{
    in_child(not_there);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("confine");
    TCase *t = tcase_create("confine");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, check_of_a_users_folder);
    tcase_add_test(t, check_of_roots_folder);
    tcase_add_test(t, worker);
    tcase_add_test(t, of_what_is_not_there);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
