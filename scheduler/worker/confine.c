#include "scheduler/worker/confine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <pwd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

/* Sanitizers take terabytes of addresses, threads to look for leaks, and read /proc. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED true
#endif
#endif
#ifndef SANITIZED
#define SANITIZED false
#endif

#define CHECK_MEMORY (UINT64_C(4) << 30) /* a header of 100 MB, the longest, takes 2 GiB as JSON */
#define CHECK_MAPPED (UINT64_C(8) << 30) /* beside the files themselves, which may be mapped */
enum { NOBODY = 65534, MAX_GROUPS = 256 };

#define BIT(cap) (UINT64_C(1) << (cap))

/* ---- capabilities ---- */

/* What is executed gets none but these.  A container's root may lack CAP_SETPCAP: no_new_privs is as good for
 * what this process does not hold itself. */
static int bound_capabilities(uint64_t keep, struct dtx_err *e)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return dtx_fail_errno(e, "cannot give up new privileges");
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno != EPERM)
            return dtx_fail_errno(e, "cannot drop capability %d", cap);
    return 0;
}

/* This process has none but these. */
static int keep_capabilities(uint64_t keep, struct dtx_err *e)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct now[2];

    if (syscall(SYS_capget, &head, now))
        return dtx_fail_errno(e, "cannot read the capabilities");
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int i = 0; i < 2; i++) {
        now[i].permitted &= (uint32_t)(keep >> 32 * i);
        now[i].effective = now[i].permitted;
        now[i].inheritable = 0;
    }
    return syscall(SYS_capset, &head, now) ? dtx_fail_errno(e, "cannot drop capabilities") : 0;
}

/* ---- who a check is ---- */

static int set_groups(uid_t uid, gid_t gid)
{
    struct passwd pw, *found = NULL;
    gid_t groups[MAX_GROUPS];
    char data[4096];
    int n = 0;

    if (uid != NOBODY && getpwuid_r(uid, &pw, data, sizeof(data), &found) == 0 && found) {
        n = MAX_GROUPS;
        if (getgrouplist(pw.pw_name, gid, groups, &n) < 0)
            n = MAX_GROUPS; /* as many as there was room for */
    }
    return setgroups((size_t)n, groups) || setresgid(gid, gid, gid) ? -1 : 0; /* errno says why */
}

/* The owner of what is checked, with no capability.  Root's files are read by nobody, who may read all. */
static int become_owner(int tree, const char *dir, struct dtx_err *e)
{
    uint64_t keep = 0;
    struct stat st;
    uid_t uid;
    gid_t gid;
    int rc;

    if (geteuid() != 0) {
        rc = bound_capabilities(0, e);
        return rc ? rc : keep_capabilities(0, e);
    }
    if (fstatat(tree, dir, &st, AT_SYMLINK_NOFOLLOW))
        return dtx_fail_errno(e, "cannot open folder %s", dir);
    uid = st.st_uid ? st.st_uid : NOBODY;
    gid = st.st_uid ? st.st_gid : NOBODY;
    if (!st.st_uid)
        keep = BIT(CAP_DAC_READ_SEARCH);
    rc = bound_capabilities(keep, e);
    if (rc)
        return rc;
    if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) || set_groups(uid, gid) || setresuid(uid, uid, uid)) {
        /* A user namespace of one user, a container without CAP_SETUID: there is nobody else to be. */
        if (errno != EPERM && errno != EINVAL)
            return dtx_fail_errno(e, "the check cannot give up root's rights");
        keep = BIT(CAP_DAC_READ_SEARCH);
    }
    return keep_capabilities(keep, e);
}

/* ---- what a check may reach: Landlock, where the kernel has it ---- */

enum { READS = LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR };

static int allow(int rules, int tree, const char *path, uint64_t rights)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = rights};
    int rc = 0;

    rule.parent_fd = openat(tree, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (rule.parent_fd < 0)
        return errno == ENOENT || errno == ENOTDIR || errno == ELOOP ? 0 : -errno; /* the check will say it */
    if (syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0))
        rc = -errno;
    close(rule.parent_fd);
    return rc;
}

static int reach(int tree, const char *dir, const char *model, struct dtx_err *e)
{
    /* By version of the interface: rights to files, and what else is handled: TCP (4), abstract sockets and
     * signals (6). */
    static const int rights[] = {0, 13, 14, 15, 15, 16};
    struct {
        uint64_t fs, net, scoped;
    } handled = {.net = 3, .scoped = 3};
    char above[PATH_MAX];
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    int rules, rc;

    if (version < 1)
        return 0;
    handled.fs = (UINT64_C(1) << rights[version < 5 ? version : 5]) - 1;
    rules = (int)syscall(SYS_landlock_create_ruleset, &handled, version < 4 ? 8 : version < 6 ? 16 : 24, 0);
    if (rules < 0)
        return dtx_fail_errno(e, "cannot confine the check");
    snprintf(above, sizeof(above), "%.*s", (int)(strrchr(dir, '/') ? strrchr(dir, '/') - dir : 0), dir);
    rc = allow(rules, tree, dir, READS);
    if (rc == 0 && model)
        rc = allow(rules, tree, model, READS);
    if (rc == 0 && *above) /* its names are synced there */
        rc = allow(rules, tree, above, LANDLOCK_ACCESS_FS_READ_DIR);
    if (rc == 0 && SANITIZED)
        rc = allow(rules, AT_FDCWD, "/", READS);
    if (rc == 0 && syscall(SYS_landlock_restrict_self, rules, 0))
        rc = -errno;
    close(rules);
    return rc ? dtx_fail(e, rc, "cannot confine the check: %s", strerror(-rc)) : 0;
}

/* ---- how much a check may take ---- */

static uint64_t bytes_in(int tree, const char *dir)
{
    int fd = openat(tree, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd_look_into(fd);
    uint64_t bytes = 0;
    struct dirent *ent;
    struct stat st;

    while (d && (ent = readdir(d)))
        if (fstatat(fd, ent->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(st.st_mode))
            bytes += (uint64_t)st.st_size;
    if (d)
        closedir(d);
    return bytes;
}

static int limit(int what, uint64_t most)
{
    struct rlimit now, new = {most, most};

    if (getrlimit(what, &now))
        return -1;
    if (now.rlim_max < most) /* less than that is given already */
        new.rlim_cur = new.rlim_max = now.rlim_max;
    return setrlimit(what, &new);
}

static int set_limits(int tree, const char *dir, struct dtx_err *e)
{
    bool failed = limit(RLIMIT_FSIZE, 0);

    signal(SIGXFSZ, SIG_IGN);
    if (!SANITIZED)
        failed |= limit(RLIMIT_DATA, CHECK_MEMORY) || limit(RLIMIT_AS, CHECK_MAPPED + bytes_in(tree, dir)) ||
                  limit(RLIMIT_NPROC, 0);
    return failed ? dtx_fail_errno(e, "cannot limit the check") : 0;
}

/* ---- both ---- */

int confine_check(int tree, const char *dir, const char *model, struct dtx_err *e)
{
    pid_t parent = getppid();
    int rc = set_limits(tree, dir, e);

    if (rc == 0)
        rc = become_owner(tree, dir, e);
    if (rc == 0)
        rc = reach(tree, dir, model, e);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* forgotten with the uid */
    if (rc == 0 && getppid() != parent)
        rc = dtx_fail(e, -ESRCH, "dtxd has ended");
    return rc;
}

int confine_worker(bool gpu, struct dtx_err *e)
{
    /* Users' files, whatever their modes; what it makes of them belongs to their owners, also where a disk
     * quota of theirs is used up meanwhile. */
    uint64_t keep = BIT(CAP_CHOWN) | BIT(CAP_DAC_OVERRIDE) | BIT(CAP_DAC_READ_SEARCH) | BIT(CAP_FOWNER) |
                    BIT(CAP_FSETID) | BIT(CAP_SYS_RESOURCE);
    int rc;

    /* The driver's nodes are made by the first who opens CUDA, in nvidia-modprobe. */
    if (gpu && access("/dev/nvidia-uvm", F_OK))
        keep |= BIT(CAP_MKNOD) | BIT(CAP_SYS_MODULE);
    rc = bound_capabilities(keep, e);
    return rc ? rc : keep_capabilities(keep, e);
}
