/*
 * Worker processes: one a device.  Each inherits its end of a socketpair as descriptor 3 and a locked file of
 * STORE/run as descriptor 4: the lock lasts until the process is really gone, so that a new dtxd can wait for
 * the workers of one that was killed.  They end by themselves when the socket closes, and are killed when
 * dtxd dies.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

enum { LOCK_FD = 4, OUT_MAX = 64 << 20, GRACE_S = 20 };

/* ---- which devices ---- */

enum { MOST_NODES = 256 };

/* CUDA numbers what it sees from 0; in a container that was given one of several GPUs that may be
 * /dev/nvidia3. */
static int count_gpus(void)
{
    char path[64];
    int n = 0;

    for (int i = 0; i < MOST_NODES && n < MAX_WORKERS; i++) {
        snprintf(path, sizeof(path), "/dev/nvidia%d", i);
        n += access(path, F_OK) == 0;
    }
    return n;
}

static int count_cpus(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
}

static int add_worker(struct sched *s, const char *device, const char *label, int threads)
{
    struct worker *w = &s->workers[s->nworkers];

    if (s->nworkers == MAX_WORKERS)
        return -E2BIG;
    w->index = s->nworkers++;
    snprintf(w->device, sizeof(w->device), "%s", device);
    snprintf(w->label, sizeof(w->label), "%s", label);
    w->threads = threads;
    w->fd = -1;
    return 0;
}

static int plan_cpus(struct sched *s, int n)
{
    char label[32];
    int cores = count_cpus();

    for (int i = 0; i < n; i++) {
        snprintf(label, sizeof(label), "cpu%d", i);
        add_worker(s, "cpu", label, cores / n > 0 ? cores / n : 1);
        s->workers[i].share = n > 1 ? (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) /
                                          (uint64_t)n / 20 * 19
                                    : 0;
    }
    return 0;
}

static int plan_gpus(struct sched *s, const char *list, struct dtx_err *e)
{
    char device[32], label[32], *end;
    int gpus = count_gpus();

    for (int i = 0; !list && i < gpus; i++) {
        snprintf(device, sizeof(device), "cuda:%d", i);
        snprintf(label, sizeof(label), "gpu%d", i);
        add_worker(s, device, label, 0);
    }
    while (list && *list) {
        long i = strtol(list, &end, 10);
        if (end == list || i < 0 || (*end && *end != ','))
            return dtx_fail(e, -EINVAL, "--devices: expected cuda:0,1,... , found \"%.40s\"", list);
        if (i >= gpus)
            return dtx_fail(e, -ENODEV, "--devices: GPU %ld is not there (this machine has %d)", i, gpus);
        snprintf(device, sizeof(device), "cuda:%ld", i);
        snprintf(label, sizeof(label), "gpu%ld", i);
        for (int k = 0; k < s->nworkers; k++) /* two workers would plan the same memory */
            if (strcmp(s->workers[k].label, label) == 0)
                return dtx_fail(e, -EINVAL, "--devices: GPU %ld is named twice", i);
        if (add_worker(s, device, label, 0))
            return dtx_fail(e, -E2BIG, "--devices: more than %d", MAX_WORKERS);
        list = *end ? end + 1 : end;
    }
    return s->nworkers ? 0 : dtx_fail(e, -ENODEV, "--devices cuda: this machine has no GPU (/dev/nvidiaN)");
}

int workers_plan(struct sched *s, struct dtx_err *e)
{
    const char *d = s->devices;
    char *end;
    long n;

    s->workers = calloc(MAX_WORKERS, sizeof(*s->workers));
    if (!s->workers)
        return dtx_fail(e, -ENOMEM, "out of memory");
    if (!d)
        return count_gpus() ? plan_gpus(s, NULL, e) : plan_cpus(s, 1);
    if (strcmp(d, "cpu") == 0)
        return plan_cpus(s, 1);
    if (strncmp(d, "cpu:", 4) == 0) {
        n = strtol(d + 4, &end, 10);
        if (*end || end == d + 4 || n < 0 || n > MAX_WORKERS)
            return dtx_fail(e, -EINVAL, "--devices cpu:N: expected 1 to %d workers, found \"%.40s\"",
                            MAX_WORKERS, d + 4);
        return plan_cpus(s, (int)n);
    }
    if (strcmp(d, "cuda") == 0)
        return plan_gpus(s, NULL, e);
    if (strncmp(d, "cuda:", 5) == 0)
        return plan_gpus(s, d + 5, e);
    return dtx_fail(e, -EINVAL, "--devices: expected cpu, cpu:N, cuda or cuda:0,1, found \"%.40s\"", d);
}

/* ---- starting ---- */

/* Are workers of an earlier dtxd still there?  Each holds its lock file. */
static bool old_workers_gone(struct sched *s, int64_t now)
{
    int fd = openat(s->store_fd, "run", O_RDONLY | O_DIRECTORY | O_CLOEXEC), lock;
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *ent;
    bool gone = true;

    if (!d)
        return true;
    while (gone && (ent = readdir(d))) {
        if (strncmp(ent->d_name, "worker-", 7) != 0)
            continue;
        lock = fd_lock_file(fd, ent->d_name, NULL);
        if (lock == -EBUSY)
            gone = false;
        else if (lock >= 0)
            close(lock);
    }
    closedir(d);
    if (!gone && now - s->log_locks > 10 * SECOND_NS) {
        log_line("a worker of an earlier dtxd still runs on this store: waiting for it to end");
        s->log_locks = now;
    }
    return gone;
}

/* In the child, between vfork and exec: async-signal-safe calls only, on a stack frame of its own. */
static void __attribute__((noinline, noreturn)) become_worker(int sock, int lock, int log, char *const argv[])
{
    int null = open("/dev/null", O_RDWR);
    sigset_t empty;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&empty);
    sigprocmask(SIG_SETMASK, &empty, NULL);
    setpgid(0, 0);
    /* Out of the way first: one of them may sit where another one must go. */
    sock = fcntl(sock, F_DUPFD_CLOEXEC, 16);
    lock = fcntl(lock, F_DUPFD_CLOEXEC, 16);
    log = log < 0 ? null : fcntl(log, F_DUPFD_CLOEXEC, 16);
    dup2(null, 0);
    dup2(null, 1);
    dup2(log, 2);
    dup2(sock, PROTO_WORKER_FD);
    dup2(lock, LOCK_FD);
    execv(argv[0], argv);
    _exit(127);
}

/* What its process may use of the device; 0: it sees for itself. */
static uint64_t memory_of(const struct sched *s, const struct worker *w)
{
    for (int i = 0; i < s->settings.ndevice_memory; i++)
        if (strcmp(s->settings.device_memory[i].label, w->label) == 0)
            return s->settings.device_memory[i].bytes;
    return s->settings.memory ? s->settings.memory : w->share;
}

static int spawn(struct sched *s, struct worker *w, struct dtx_err *e)
{
    char lock_name[64], threads[16], memory[32];
    char *argv[] = {s->worker_path, (char *)"--store",
                    s->store,       (char *)"--device",
                    w->device,      (char *)"--memory",
                    memory,         w->threads ? (char *)"--threads" : NULL,
                    threads,        NULL};
    int pair[2], lock;
    pid_t pid;

    snprintf(lock_name, sizeof(lock_name), "run/worker-%d.lock", w->index);
    snprintf(threads, sizeof(threads), "%d", w->threads);
    snprintf(memory, sizeof(memory), "%llu", (unsigned long long)memory_of(s, w));
    lock = fd_lock_file(s->store_fd, lock_name, e);
    if (lock < 0)
        return lock;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        dtx_fail_errno(e, "cannot make a socket pair");
        close(lock);
        return e->code;
    }
    pid = vfork(); /* not fork: see fsd/channel.c, make_pages_present */
    if (pid == 0)
        become_worker(pair[1], lock, s->log_fd, argv);
    w->pid = pid; /* not by the child, with which we share memory */
    if (w->pid < 0)
        dtx_fail_errno(e, "cannot start a process");
    close(lock);
    close(pair[1]);
    if (w->pid < 0) {
        w->pid = 0;
        close(pair[0]);
        return e->code;
    }
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    w->fd = pair[0];
    return 0;
}

static void back_off(struct worker *w, int64_t now)
{
    int shift = w->failures < 9 ? w->failures : 9;

    w->failures++;
    w->start_at = now + (SECOND_NS / 10 << shift); /* 0.1 s, 0.2 s, ... 51 s */
}

static void start_worker(struct sched *s, struct worker *w, int64_t now)
{
    struct dtx_err e = {0};
    int rc;

    slow_begin(s);
    rc = spawn(s, w, &e);
    slow_end(s);
    if (rc) {
        log_line("%s: %s", w->label, e.msg);
        set_text(&w->trouble, e.msg);
        back_off(w, now);
        return;
    }
    w->state = WS_STARTING;
    set_text(&w->trouble, NULL);
    w->started = w->heard_at = now;
    w->eof_at = 0;
    w->hung = false;
    w->njobs = w->asks = 0;
    w->base[0] = '\0';
    buf_clear(&w->in);
    buf_clear(&w->out);
    sched_changed(s, "devices/%s", w->label);
}

/* ---- ending ---- */

static int worker_timeout(const struct sched *s)
{
    return s->settings.worker_timeout ? s->settings.worker_timeout : WORKER_TIMEOUT_S;
}

/* A worker speaks every second, between steps.  One that does not hangs: in a driver, on a dead disk. */
static void end_hung(struct sched *s, struct worker *w, int64_t now)
{
    int limit = worker_timeout(s);

    if (w->held_body) /* it is we who do not listen */
        w->heard_at = now;
    if (limit < 0 || w->hung || w->eof_at || now - w->heard_at < limit * SECOND_NS)
        return;
    log_line("%s: worker %d has said nothing for %d s: killed", w->label, (int)w->pid, limit);
    w->hung = true;
    kill(w->pid, SIGKILL);
}

static void worker_ended(struct sched *s, struct worker *w, int status, int64_t now)
{
    char why[400];

    if (w->hung)
        snprintf(why, sizeof(why), "it said nothing for %d s and was killed", worker_timeout(s));
    else if (WIFSIGNALED(status))
        snprintf(why, sizeof(why), "signal %d, %s", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) == 127 && w->state == WS_STARTING)
        snprintf(why, sizeof(why), "the program %.150s cannot be started", s->worker_path);
    else if (WEXITSTATUS(status) == 1 && w->state == WS_STARTING && w->trouble)
        snprintf(why, sizeof(why), "%s", w->trouble); /* its last words */
    else
        snprintf(why, sizeof(why), "exit status %d", WEXITSTATUS(status));
    if (!w->quitting)
        log_line("%s: worker %d ended: %s", w->label, (int)w->pid, why);
    if (w->fd >= 0)
        close(w->fd);
    w->fd = -1;
    w->pid = 0;
    worker_lost(s, w, why);
    w->state = WS_DOWN;
    w->base[0] = w->job_base[0] = '\0';
    set_json(&w->held_body, NULL);
    set_json(&w->stats, NULL);
    set_text(&w->trouble, why);
    if (now - w->started > 60 * SECOND_NS)
        w->failures = 0;
    if (w->quitting)
        w->start_at = now;
    else
        back_off(w, now);
    w->quitting = w->let_go = false;
    sched_changed(s, "devices/%s", w->label);
}

static void hang_up(struct worker *w, int64_t now)
{
    if (!w->eof_at)
        w->eof_at = now;
}

/* ---- messages ---- */

int worker_send(struct sched *s, struct worker *w, enum proto_type type, json_t *body)
{
    struct dtx_err e = {0};
    int rc = w->fd < 0 || w->eof_at ? -EPIPE
             : w->out.len > OUT_MAX ? -EAGAIN
                                    : proto_put(&w->out, type, body, &e);

    json_decref(body);
    if (rc == 0)
        worker_output(s, w);
    return rc;
}

void worker_output(struct sched *s, struct worker *w)
{
    while (w->fd >= 0 && w->out.len) {
        ssize_t n = send(w->fd, w->out.p, w->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            if (errno != EAGAIN)
                hang_up(w, clock_mono_ns());
            return;
        }
        memmove(w->out.p, w->out.p + n, w->out.len - (size_t)n);
        w->out.len -= (size_t)n;
    }
}

static void broken_stream(struct worker *w, const char *why, int64_t now)
{
    log_line("%s: %s", w->label, why);
    kill(w->pid, SIGKILL);
    hang_up(w, now);
    buf_clear(&w->in);
}

/* Messages in order; one that cannot be acted on now (the catalog is full) stops the rest until it can. */
static void act(struct sched *s, struct worker *w, int64_t now)
{
    struct dtx_err e = {0};
    int rc;

    for (;;) {
        rc = w->held_body ? 1 : proto_take(&w->in, PROTO_DAEMON, &w->held_type, &w->held_body, &e);
        if (rc < 0)
            broken_stream(w, e.msg, now);
        if (rc <= 0)
            return;
        rc = worker_message(s, w, w->held_type, w->held_body);
        if (rc && rc != -EINVAL) /* EINVAL: it means nothing in this state; that was logged */
            return;
        set_json(&w->held_body, NULL);
    }
}

void worker_input(struct sched *s, struct worker *w, int64_t now)
{
    while (w->fd >= 0 && !w->held_body) {
        ssize_t n;
        if (buf_reserve(&w->in, 65536))
            return;
        n = recv(w->fd, w->in.p + w->in.len, 65536, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            if (n == 0 || errno != EAGAIN)
                hang_up(w, now);
            break;
        }
        w->in.len += (size_t)n;
        w->heard_at = now;
        act(s, w, now);
    }
}

void workers_round(struct sched *s, int64_t now)
{
    int status;

    if (!s->locks_free && now >= s->locks_look) {
        s->locks_free = old_workers_gone(s, now);
        s->locks_look = now + SECOND_NS / 10;
        if (s->locks_free)
            experiments_sweep(s);
    }
    for (int i = 0; i < s->nworkers; i++) {
        struct worker *w = &s->workers[i];
        if (w->state != WS_DOWN) {
            if (w->held_body)
                act(s, w, now);
            if (w->let_go && w->state == WS_UP && !w->quitting && !w->njobs && !w->asks) {
                w->quitting = true;
                worker_send(s, w, PM_QUIT, NULL);
            }
            if (w->eof_at && now - w->eof_at > SECOND_NS)
                kill(w->pid, SIGKILL);
            end_hung(s, w, now);
            if (waitpid(w->pid, &status, WNOHANG) == w->pid) {
                worker_input(s, w, now); /* what it said before it ended */
                worker_ended(s, w, status, now);
            }
        } else if (s->locks_free && !s->closing && now >= w->start_at) {
            start_worker(s, w, now);
        }
    }
}

/* Up, or about to be: one that starts afresh is no reason to give a job up.  But not after five deaths in a
 * row. */
static bool may_take(const struct worker *w, const struct job *j)
{
    return (w->state == WS_UP || w->failures < 5) && !(j->too_big >> w->index & 1);
}

bool worker_for(const struct sched *s, const struct job *j)
{
    for (int i = 0; i < s->nworkers; i++)
        if (may_take(&s->workers[i], j))
            return true;
    return false;
}

bool worker_beside(const struct sched *s, const struct worker *w, const struct job *j)
{
    for (int i = 0; i < s->nworkers; i++)
        if (&s->workers[i] != w && may_take(&s->workers[i], j))
            return true;
    return false;
}

bool worker_has_base(const struct worker *w, const char *base)
{
    json_t *bases = json_object_get(w->stats, "bases"), *v;
    size_t i;

    if (w->state != WS_UP)
        return false;
    if (strcmp(w->base, base) == 0)
        return true;
    json_array_foreach(bases, i, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), base) == 0)
            return true;
    }
    return false;
}

/* Orderly end: every job is saved.  Mutex held; other threads may look meanwhile. */
void workers_end(struct sched *s)
{
    int64_t until = clock_mono_ns() + GRACE_S * SECOND_NS;
    bool any = true;

    for (int i = 0; i < s->nworkers; i++) {
        s->workers[i].quitting = true;
        if (s->workers[i].fd >= 0)
            worker_send(s, &s->workers[i], PM_QUIT, NULL);
    }
    while (any) {
        int64_t now = clock_mono_ns();
        any = false;
        for (int i = 0; i < s->nworkers; i++) {
            struct worker *w = &s->workers[i];
            if (w->state == WS_DOWN)
                continue;
            any = true;
            worker_output(s, w);
            worker_input(s, w, now);
            if (now > until)
                kill(w->pid, SIGKILL);
        }
        workers_round(s, now);
        slow_begin(s);
        usleep(10000);
        slow_end(s);
    }
    for (int i = 0; i < s->nworkers; i++) {
        struct worker *w = &s->workers[i];
        buf_release(&w->in);
        buf_release(&w->out);
        json_decref(w->hello);
        json_decref(w->stats);
        free(w->trouble);
    }
    free(s->workers);
    s->workers = NULL;
    s->nworkers = 0;
}
