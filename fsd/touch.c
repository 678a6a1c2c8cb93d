/* dtxd's side of touch.h: what is to be touched when. */
#include "fsd/touch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"

enum {
    BUCKETS = 4096,
    MAX_ITEMS = 32768, /* more: no events for the rest until some were idle for a while */
    AGAIN_MS = 150,
    IDLE_MS = 120000,
    FILE_SHARE = 100, /* a file that takes d ms is touched every 100 d ms at most */
    TOTAL_SHARE = 4,  /* after d ms of touching 4 d ms of rest */
    MAX_REST_MS = 500,
    HELPER_MS = 10000 /* it is killed and started anew when it does not answer: a request may take long */
};

struct item {
    struct item *next;
    int64_t first_ms; /* of the first change that no touch has told of; 0: none.  Monotonic, as all times */
    int64_t last_ms;  /* of the last one */
    int64_t due_ms;   /* not before */
    int64_t used_ms;
    int64_t cost_ms; /* of a touch; grows slowly, so that one on a busy machine does not count */
    int64_t told_ns; /* modification time and size that the last touch told of; 0: none yet */
    int64_t told_size;
    bool listed;
    char path[];
};

struct touch {
    struct fs *f;
    char *mountpoint;
    pthread_t thread;

    pthread_mutex_t mu; /* protects what follows */
    pthread_cond_t wake;
    struct item *table[BUCKETS];
    size_t items;
    int64_t due_ms; /* of the first item that is due; INT64_MAX: none */
    bool stop, ended;

    /* the thread's own */
    int fd; /* to the helper, -1 */
    int64_t tidied_ms;
    unsigned failures;

    /* of the order that the helper carries out; atomic: the FUSE thread that it asks reads them */
    pid_t helper;
    int64_t since_ms;             /* what changed then must be seen */
    int64_t told_ns, told_size;   /* of the last touch */
    int64_t shown_ns, shown_size; /* the answer: of this one, and what changed before shown_ms is in it */
    int64_t shown_ms;
};

static int64_t now_ms(void)
{
    return clock_mono_ns() / 1000000;
}

/* ---- the helper process ---- */

/* In the child, between vfork and exec: async-signal-safe calls only, on a stack frame of its own. */
static void __attribute__((noinline, noreturn)) become_helper(int sock, char *const argv[])
{
    sigset_t empty;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&empty);
    sigprocmask(SIG_SETMASK, &empty, NULL);
    sock = fcntl(sock, F_DUPFD_CLOEXEC, 16);
    dup2(sock, TOUCH_FD);
    execv("/proc/self/exe", argv);
    _exit(127);
}

static int start_helper(struct touch *t)
{
    char *argv[] = {"dtxd", "--touch", t->mountpoint, NULL};
    int pair[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
        return -errno;
    pid = vfork(); /* not fork: see fsd/channel.c, make_pages_present */
    if (pid == 0)
        become_helper(pair[1], argv);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        return -EAGAIN;
    }
    t->fd = pair[0];
    __atomic_store_n(&t->helper, pid, __ATOMIC_RELEASE);
    return 0;
}

/* It ends with its socket; what it asked of us is still being answered, so that it can. */
static void end_helper(struct touch *t)
{
    pid_t pid = __atomic_load_n(&t->helper, __ATOMIC_ACQUIRE);
    siginfo_t info = {0};

    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
    for (int i = 0; pid > 0 && i < 200 && info.si_pid != pid; i++) {
        if (i == 100)
            kill(pid, SIGKILL);
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT))
            break;
        if (info.si_pid != pid)
            usleep(10000);
    }
    __atomic_store_n(&t->helper, 0, __ATOMIC_RELEASE); /* before its number may be another's */
    if (pid > 0)
        waitpid(pid, NULL, info.si_pid == pid ? 0 : WNOHANG);
}

static bool stopping(struct touch *t)
{
    bool stop;

    pthread_mutex_lock(&t->mu);
    stop = t->stop;
    pthread_mutex_unlock(&t->mu);
    return stop;
}

/* -EPIPE: there is none, or it does not answer. */
static int ask_helper(struct touch *t, const struct touch_order *order)
{
    size_t n = offsetof(struct touch_order, path) + strlen(order->path) + 1;
    struct pollfd p = {.fd = t->fd, .events = POLLIN};
    int rc, ready = 0, left = HELPER_MS;

    if (t->fd < 0 || send(t->fd, order, n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)n)
        return -EPIPE;
    for (; left > 0 && (ready = poll(&p, 1, 200)) == 0; left -= 200)
        if (stopping(t) && left > 1000)
            left = 1000;
    if (ready != 1 || recv(t->fd, &rc, sizeof(rc), MSG_DONTWAIT) != (ssize_t)sizeof(rc))
        return -EPIPE;
    return rc;
}

/* ---- what the file system asks ---- */

bool touch_asks(struct fs *f, fuse_req_t req)
{
    struct touch *t = __atomic_load_n(&f->touch, __ATOMIC_ACQUIRE);
    pid_t pid = t ? __atomic_load_n(&t->helper, __ATOMIC_ACQUIRE) : 0;

    return pid > 0 && fuse_req_ctx(req)->pid == pid;
}

int touch_attr(struct fs *f, uint64_t id, struct fs_attr *a)
{
    struct touch *t = __atomic_load_n(&f->touch, __ATOMIC_ACQUIRE);
    struct node_info node;
    int64_t ns, checked = now_ms();
    int rc = nodes_get(f->nodes, id, &node);

    if (!rc)
        rc = fs_attr_of(f, id, a);
    if (!rc && !node.is_dir && node.owner == NODE_GENERATED)
        checked = render_cache_checked(f->renders, id);
    __atomic_store_n(&t->shown_ms, checked, __ATOMIC_RELEASE);
    if (rc || node.is_dir)
        return rc;
    if (checked <= __atomic_load_n(&t->since_ms, __ATOMIC_ACQUIRE))
        return -EAGAIN;
    ns = (int64_t)a->st.st_mtim.tv_sec * 1000000000 + a->st.st_mtim.tv_nsec;
    if (ns == __atomic_load_n(&t->told_ns, __ATOMIC_ACQUIRE) &&
        a->st.st_size == __atomic_load_n(&t->told_size, __ATOMIC_ACQUIRE))
        return -EALREADY;
    __atomic_store_n(&t->shown_size, a->st.st_size, __ATOMIC_RELEASE);
    __atomic_store_n(&t->shown_ns, ns, __ATOMIC_RELEASE);
    return 0;
}

/* ---- items ---- */

static struct item **slot_of(struct touch *t, const char *path)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (; *path; path++)
        h = (h ^ (unsigned char)*path) * 0x100000001b3u;
    return &t->table[(h ^ h >> 29) % BUCKETS];
}

/* mu held */
static struct item *item_of(struct touch *t, const char *path)
{
    struct item **slot = slot_of(t, path), *p = *slot;
    size_t n = strlen(path);

    while (p && strcmp(p->path, path) != 0)
        p = p->next;
    if (p || t->items >= MAX_ITEMS || n >= PATH_MAX || !(p = calloc(1, sizeof(*p) + n + 1)))
        return p;
    memcpy(p->path, path, n + 1);
    p->next = *slot;
    *slot = p;
    t->items++;
    return p;
}

void touch_changed(struct touch *t, const char *path, bool listed)
{
    struct item *p;

    pthread_mutex_lock(&t->mu);
    p = t->stop ? NULL : item_of(t, path);
    if (p) {
        p->last_ms = p->used_ms = now_ms();
        if (!p->first_ms)
            p->first_ms = p->last_ms;
        p->listed |= listed;
        if (p->due_ms < t->due_ms) {
            t->due_ms = p->due_ms;
            pthread_cond_signal(&t->wake);
        }
    }
    pthread_mutex_unlock(&t->mu);
}

/* Forget what did not change for a while (mu held). */
static void tidy(struct touch *t, int64_t now)
{
    if (now - t->tidied_ms < IDLE_MS / 4)
        return;
    t->tidied_ms = now;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct item **p = &t->table[i], *old; (old = *p);) {
            if (old->first_ms || now - old->used_ms < IDLE_MS) {
                p = &old->next;
                continue;
            }
            *p = old->next;
            free(old);
            t->items--;
        }
}

/* ---- one touch ---- */

/* May anybody watch it, and is it a thing to touch?  (What users write is told of by the kernel, and a folder
 * tells only of its names.) */
static bool watchable(struct fs *f, const char *path, bool listed)
{
    char copy[PATH_MAX];
    const char *name = "";
    struct node_info node;
    uint64_t parent;
    int rc;

    snprintf(copy, sizeof(copy), "%s", path);
    rc = fs_find_path(f, copy, &parent, &name, &node);
    if (rc == 0 && (node.is_dir ? !listed : node.owner == NODE_USER))
        return false;
    if (rc == 0 && nodes_known(f->nodes, node.id))
        return !fs_is_gone(f, node.id); /* else its end is about to be told: notify.c */
    /* what shows the whole appliance takes long to make: only when somebody has looked at it */
    return rc != -ENOTDIR && parent && (parent != NODE_ROOT ? nodes_known(f->nodes, parent) : listed);
}

/* The order for this item; false: there is nothing to do any more.  mu held, dropped meanwhile. */
static bool prepare(struct touch *t, const struct item *p, struct touch_order *order)
{
    bool listed = p->listed, watched;

    snprintf(order->path, sizeof(order->path), "%s", p->path);
    __atomic_store_n(&t->told_ns, p->told_ns, __ATOMIC_RELEASE);
    __atomic_store_n(&t->told_size, p->told_size, __ATOMIC_RELEASE);
    __atomic_store_n(&t->since_ms, p->first_ms, __ATOMIC_RELEASE);
    __atomic_store_n(&t->shown_ns, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&t->mu);
    watched = watchable(t->f, order->path, listed);
    pthread_mutex_lock(&t->mu);
    order->kind = listed ? TOUCH_FOLDER : TOUCH_FILE;
    return watched;
}

/* mu held */
static void note_answer(struct touch *t, struct item *p, int rc, int64_t last, int64_t took, int64_t now)
{
    bool looked = rc == 0 || rc == -EALREADY;

    p->due_ms = now + AGAIN_MS;
    if (rc == -EAGAIN || rc == -EPIPE)
        return;
    if (looked ? p->last_ms < __atomic_load_n(&t->shown_ms, __ATOMIC_ACQUIRE) : p->last_ms == last)
        p->first_ms = 0;
    else
        p->first_ms = p->last_ms;
    if (rc)
        return;
    p->listed &= p->first_ms != 0;
    p->told_ns = __atomic_load_n(&t->shown_ns, __ATOMIC_ACQUIRE);
    p->told_size = __atomic_load_n(&t->shown_size, __ATOMIC_ACQUIRE);
    p->cost_ms = took < 2 * p->cost_ms + 1 ? took : 2 * p->cost_ms + 1;
    p->due_ms = now + (p->cost_ms * FILE_SHARE > TOUCH_MIN_MS ? p->cost_ms * FILE_SHARE : TOUCH_MIN_MS);
}

static void revive_helper(struct touch *t)
{
    if (t->fd >= 0)
        return;
    if (t->failures++)
        usleep(t->failures < 50 ? t->failures * 20000 : 1000000);
    if (start_helper(t) && t->failures == 1)
        log_line("inotify watchers of the mount get no events: no process can be started");
}

/* mu held, dropped meanwhile.  Items stay where they are: only this thread frees them. */
static void touch_item(struct touch *t, struct item *p)
{
    struct touch_order order;
    int64_t last = p->last_ms, start, took = 0, rest;
    int rc = -ENOENT;

    if (prepare(t, p, &order)) {
        pthread_mutex_unlock(&t->mu);
        revive_helper(t);
        start = now_ms();
        rc = ask_helper(t, &order);
        took = now_ms() - start;
        if (rc == -EPIPE)
            end_helper(t);
        else
            t->failures = 0;
        rest = took * TOTAL_SHARE < MAX_REST_MS ? took * TOTAL_SHARE : MAX_REST_MS;
        usleep((useconds_t)(rest * 1000 + 300));
        pthread_mutex_lock(&t->mu);
    }
    note_answer(t, p, rc, last, took, now_ms());
}

/* Touch what is due; when is the next?  mu held, dropped meanwhile. */
static void round_of_touches(struct touch *t)
{
    t->due_ms = INT64_MAX;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct item *p = t->table[i]; p && !t->stop; p = p->next) {
            if (p->first_ms && p->due_ms <= now_ms())
                touch_item(t, p);
            if (p->first_ms && p->due_ms < t->due_ms)
                t->due_ms = p->due_ms;
        }
}

static void *touch_main(void *arg)
{
    struct touch *t = arg;

    prctl(PR_SET_NAME, "touch");
    pthread_mutex_lock(&t->mu);
    while (!t->stop) {
        int64_t now = now_ms(), until = t->due_ms < now + IDLE_MS / 4 ? t->due_ms : now + IDLE_MS / 4;
        struct timespec at = {until / 1000, until % 1000 * 1000000};

        if (until > now) {
            pthread_cond_timedwait(&t->wake, &t->mu, &at);
            continue;
        }
        round_of_touches(t);
        tidy(t, now_ms());
    }
    pthread_mutex_unlock(&t->mu);
    end_helper(t);
    return NULL;
}

/* ---- starting and ending ---- */

int touch_new(struct fs *f, const char *mountpoint, struct touch **out, struct dtx_err *e)
{
    struct touch *t = calloc(1, sizeof(*t));
    pthread_condattr_t attr;

    if (!t || !(t->mountpoint = strdup(mountpoint))) {
        free(t);
        return dtx_fail(e, -ENOMEM, "out of memory");
    }
    t->f = f;
    t->fd = -1;
    t->due_ms = INT64_MAX;
    pthread_mutex_init(&t->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&t->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&t->thread, NULL, touch_main, t)) {
        free(t->mountpoint);
        free(t);
        return dtx_fail(e, -EAGAIN, "cannot start a thread");
    }
    __atomic_store_n(&f->touch, t, __ATOMIC_RELEASE);
    *out = t;
    return 0;
}

void touch_stop(struct touch *t)
{
    bool ended;

    pthread_mutex_lock(&t->mu);
    t->stop = true;
    ended = t->ended;
    t->ended = true;
    pthread_cond_signal(&t->wake);
    pthread_mutex_unlock(&t->mu);
    if (!ended)
        pthread_join(t->thread, NULL);
}

/* After the last request. */
void touch_free(struct touch *t)
{
    __atomic_store_n(&t->f->touch, NULL, __ATOMIC_RELEASE);
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct item *p = t->table[i], *next; p; p = next) {
            next = p->next;
            free(p);
        }
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->mu);
    free(t->mountpoint);
    free(t);
}
