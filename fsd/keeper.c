#include "fsd/keeper.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fsd/mount.h"
#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"

/* A child that serves for less than QUICK_MS after it was ready died quickly. GATHER_MS: messages are looked
 * at so often at most, so that they cost the child no switch to the keeper each. */
enum { BUCKETS = 4096, QUICK_MS = 500, FREE_STARTS = 3, MAX_QUICK = 12, MAX_DELAY_MS = 5000, GATHER_MS = 2 };
enum { MAX_ARGS = 64, PROBE_S = 10 };

struct item {
    struct item *next;
    struct keeper_item it;
};

struct keeper {
    const struct keeper_config *config;
    struct item *table[BUCKETS];
    size_t items;
    int signals;                /* signalfd */
    int sock;                   /* to the child; -1: none */
    pid_t child;                /* 0: none */
    bool ready;                 /* the child is */
    int64_t ready_at, start_at; /* ms, monotonic; start_at: when the next child is due */
    bool was_ready;             /* some child was */
    bool resends;               /* the kernel can */
    bool ending, upgrading;
    unsigned quick; /* deaths in a row */
    char why[1024];
};

static int64_t now_ms(void)
{
    return clock_mono_ns() / 1000000;
}

/* ---- what is kept ---- */

static struct item **find(struct keeper *k, uint32_t kind, uint64_t key)
{
    struct item **p = &k->table[((key * 0x9e3779b97f4a7c15u >> 52) ^ kind) % BUCKETS];

    while (*p && ((*p)->it.kind != kind || (*p)->it.key != key))
        p = &(*p)->next;
    return p;
}

static void drop(struct keeper *k, uint32_t kind, uint64_t key)
{
    struct item **p = find(k, kind, key), *gone = *p;

    if (!gone)
        return;
    *p = gone->next;
    if (gone->it.fd >= 0)
        close(gone->it.fd);
    free(gone);
    k->items--;
}

static void put(struct keeper *k, const struct keeper_message *m, int fd)
{
    struct item **p, *new;

    drop(k, m->kind, m->key);
    p = find(k, m->kind, m->key);
    new = calloc(1, sizeof(*new));
    if (!new) {
        log_line("keeper: out of memory: an open file will not outlive dtxd");
        if (fd >= 0)
            close(fd);
        return;
    }
    new->it = (struct keeper_item){.fd = fd, .kind = m->kind, .key = m->key};
    memcpy(new->it.data, m->data, sizeof(m->data));
    *p = new;
    k->items++;
}

static void drop_all(struct keeper *k)
{
    for (size_t i = 0; i < BUCKETS; i++)
        while (k->table[i])
            drop(k, k->table[i]->it.kind, k->table[i]->it.key);
}

/* ---- messages ---- */

/* 1: got one; 0: none there now. */
static int receive(struct keeper *k, struct keeper_message *m, int *fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {m, sizeof(*m)};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct cmsghdr *c;
    ssize_t n;

    memset(m, 0, sizeof(*m));
    *fd = -1;
    do
        n = recvmsg(k->sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n <= 0)
        return 0;
    c = CMSG_FIRSTHDR(&msg);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
        memcpy(fd, CMSG_DATA(c), sizeof(*fd));
    return 1;
}

static void note_ready(struct keeper *k, bool resends)
{
    struct utsname u;

    k->ready = true;
    k->ready_at = now_ms();
    k->resends = resends && !k->config->remount;
    if (k->was_ready)
        return;
    k->was_ready = true;
    uname(&u);
    if (!resends)
        log_line(
            "keeper: Linux %s cannot send requests again (6.9 and later can): if dtxd dies, programs with "
            "open files see ENOTCONN, and the mount is made anew",
            u.release);
    k->config->started(k->config->started_arg);
}

static void act(struct keeper *k, const struct keeper_message *m, int fd)
{
    size_t used = strlen(k->why);

    switch (m->op) {
    case KEEPER_PUT:
        put(k, m, fd);
        return;
    case KEEPER_DROP:
        drop(k, m->kind, m->key);
        break;
    case KEEPER_READY:
        note_ready(k, m->key == 1);
        break;
    case KEEPER_FAILED:
        snprintf(k->why + used, sizeof(k->why) - used, "%.*s", KEEPER_DATA, (const char *)m->data);
        break;
    default:
        log_line("keeper: unknown message %u", m->op);
    }
    if (fd >= 0)
        close(fd);
}

static void take_messages(struct keeper *k)
{
    struct keeper_message m;
    int fd;

    while (k->sock >= 0 && receive(k, &m, &fd))
        act(k, &m, fd);
}

/* ---- starting a child ---- */

/* Everything that is kept, for the child to read; -1: no memory. */
static int list_items(struct keeper *k)
{
    int fd = memfd_create("dtxd-kept", MFD_CLOEXEC);

    for (size_t i = 0; fd >= 0 && i < BUCKETS; i++)
        for (struct item *p = k->table[i]; fd >= 0 && p; p = p->next)
            if (fd_write_all(fd, &p->it, sizeof(p->it))) {
                close(fd);
                fd = -1;
            }
    return fd;
}

static void inherit(int fd)
{
    fcntl(fd, F_SETFD, 0);
}

/* In the child, between fork and exec. */
static void become_child(struct keeper *k, pid_t parent, int sock, int list)
{
    char *argv[MAX_ARGS + 4], fds[64];
    sigset_t none;
    int n = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(1);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct item *p = k->table[i]; p; p = p->next)
            if (p->it.fd >= 0)
                inherit(p->it.fd);
    inherit(sock);
    inherit(list);
    snprintf(fds, sizeof(fds), "%d:%d", sock, list);
    for (; n < MAX_ARGS && k->config->argv[n]; n++)
        argv[n] = k->config->argv[n];
    argv[n++] = (char *)"--kept";
    argv[n++] = fds;
    argv[n] = NULL;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(k->config->program, argv);
    _exit(127);
}

static int start_child(struct keeper *k)
{
    pid_t self = getpid(), pid;
    int pair[2], list;

    k->ready = false;
    k->why[0] = '\0';
    list = list_items(k);
    if (list < 0)
        return -errno;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) {
        int rc = -errno;
        close(list);
        return rc;
    }
    pid = fork();
    if (pid == 0)
        become_child(k, self, pair[1], list);
    close(pair[1]);
    close(list);
    if (pid < 0) {
        close(pair[0]);
        return -EAGAIN;
    }
    k->sock = pair[0];
    k->child = pid;
    return 0;
}

static void try_start(struct keeper *k)
{
    int rc = start_child(k);

    if (!rc)
        return;
    log_line("keeper: cannot start dtxd: %s; again in 1 s", strerror(-rc));
    k->start_at = now_ms() + 1000;
}

/* ---- ends ---- */

static bool have_mount(struct keeper *k)
{
    return *find(k, KEEPER_MOUNT, 0) != NULL;
}

/* Programs with open files get errors from now on. */
static void take_mount_away(struct keeper *k)
{
    if (have_mount(k))
        mount_remove(k->config->mountpoint, 1);
    drop_all(k);
}

static void describe(int status, char *out, size_t n)
{
    if (WIFSIGNALED(status))
        snprintf(out, n, "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        snprintf(out, n, "exit status %d", WEXITSTATUS(status));
}

static int64_t delay_ms(unsigned quick)
{
    int64_t delay = quick <= FREE_STARTS ? 0 : (int64_t)100 << (quick - FREE_STARTS - 1);

    return delay > MAX_DELAY_MS ? MAX_DELAY_MS : delay;
}

/* The child is gone before its time.  1: start another; else the keeper's end. */
static int child_died(struct keeper *k, int status, struct dtx_err *e)
{
    char how[80];

    describe(status, how, sizeof(how));
    if (!k->was_ready || k->ending) {
        bool starting = !k->was_ready;
        take_mount_away(k);
        if (*k->why)
            return dtx_fail(e, -EIO, "%s", k->why);
        return dtx_fail(e, -EIO, "ended (%s)%s", how, starting ? " before the mount was live" : "");
    }
    k->quick = k->ready && now_ms() - k->ready_at >= QUICK_MS ? 1 : k->quick + 1;
    if (k->quick > MAX_QUICK) {
        take_mount_away(k);
        return dtx_fail(
            e, -EIO,
            "dtxd died %d times in a row within %d ms of being ready (last: %s%s%s): unmounted, giving up",
            MAX_QUICK, QUICK_MS, how, *k->why ? ": " : "", k->why);
    }
    log_line("keeper: dtxd %d died (%s%s%s): %s", (int)k->child, how, *k->why ? ": " : "", k->why,
             k->resends ? "another takes the mount over" : "mounting anew");
    if (!k->resends)
        take_mount_away(k);
    k->start_at = now_ms() + delay_ms(k->quick);
    return 1;
}

/* 1: go on; else the keeper's end. */
static int child_ended(struct keeper *k, int status, struct dtx_err *e)
{
    int rc = 1;

    take_messages(k); /* what it said before */
    close(k->sock);
    k->sock = -1;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        rc = 0;
    else if (WIFEXITED(status) && WEXITSTATUS(status) == KEEPER_AGAIN && !k->ending)
        k->start_at = now_ms();
    else
        rc = child_died(k, status, e);
    k->upgrading = false;
    k->child = 0;
    return rc;
}

/* ---- signals ---- */

/* Does the program on disk know how to go on from here?  It is asked before the running one is ended. */
static bool program_takes_over(const struct keeper *k)
{
    char version[16];
    int status = -1;
    pid_t pid = fork();

    if (pid == 0) {
        sigset_t none;
        snprintf(version, sizeof(version), "%d", KEEPER_VERSION);
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        alarm(PROBE_S);
        execl(k->config->program, k->config->argv[0], "--takes", version, (char *)NULL);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void upgrade(struct keeper *k)
{
    if (!k->child || !k->ready || k->upgrading || k->ending)
        return; /* the next child comes from the disk anyway */
    if (!k->resends) {
        log_line("keeper: SIGHUP: not without a remount here: stop dtxd and start it again");
        return;
    }
    if (!program_takes_over(k)) {
        log_line("keeper: SIGHUP: %s does not run or cannot take over from this dtxd: nothing changed",
                 k->config->program);
        return;
    }
    log_line("keeper: SIGHUP: starting dtxd again from %s", k->config->program);
    k->upgrading = true;
    kill(k->child, SIGHUP);
}

/* 1: go on; else the keeper's end. */
static int end_by_signal(struct keeper *k, int sig)
{
    k->ending = true;
    if (k->child) {
        kill(k->child, sig);
        return 1;
    }
    log_line("keeper: %s while dtxd is being started again: unmounting", strsignal(sig));
    take_mount_away(k);
    return 0;
}

static int take_signals(struct keeper *k, struct dtx_err *e)
{
    struct signalfd_siginfo si;
    int status, rc = 1;

    while (rc == 1 && read(k->signals, &si, sizeof(si)) == sizeof(si)) {
        if (si.ssi_signo == SIGHUP)
            upgrade(k);
        else if (si.ssi_signo == SIGTERM || si.ssi_signo == SIGINT)
            rc = end_by_signal(k, (int)si.ssi_signo);
    }
    /* SIGCHLDs merge: look in any case. */
    if (rc == 1 && k->child && waitpid(k->child, &status, WNOHANG) == k->child)
        rc = child_ended(k, status, e);
    return rc;
}

/* ---- the loop ---- */

static int wait_ms(const struct keeper *k)
{
    int64_t wait;

    if (k->child)
        return -1;
    wait = k->start_at - now_ms();
    return wait < 0 ? 0 : (int)wait;
}

static int loop(struct keeper *k, struct dtx_err *e)
{
    int rc = 1;

    while (rc == 1) {
        struct pollfd p[2] = {{.fd = k->signals, .events = POLLIN}, {.fd = k->sock, .events = POLLIN}};
        bool closed;

        poll(p, 2, wait_ms(k));
        take_messages(k);
        closed = k->sock >= 0 && (p[1].revents & (POLLHUP | POLLERR)); /* its end is near */
        rc = take_signals(k, e);
        if (rc == 1 && !k->child && now_ms() >= k->start_at)
            try_start(k);
        else if (rc == 1 && k->child && (closed || p[1].revents))
            poll(p, 1, GATHER_MS);
    }
    return rc;
}

static void raise_descriptor_limit(void)
{
    struct rlimit lim;

    if (getrlimit(RLIMIT_NOFILE, &lim) == 0) {
        lim.rlim_cur = lim.rlim_max < 1 << 20 ? lim.rlim_max : 1 << 20;
        setrlimit(RLIMIT_NOFILE, &lim);
    }
}

int keeper_run(const struct keeper_config *config, struct dtx_err *e)
{
    struct keeper *k = calloc(1, sizeof(*k));
    sigset_t set;
    int rc;

    if (!k)
        return dtx_fail(e, -ENOMEM, "out of memory");
    raise_descriptor_limit();
    k->config = config;
    k->sock = -1;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGCHLD);
    k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    rc = k->signals < 0 ? dtx_fail_errno(e, "signalfd") : loop(k, e);
    if (k->signals >= 0)
        close(k->signals);
    if (k->sock >= 0)
        close(k->sock);
    drop_all(k);
    free(k);
    return rc;
}
