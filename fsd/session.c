#include "fsd/session.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

#include "fsd/channel.h"
#include "fsd/mount.h"
#include "fsd/notify.h"
#include "scheduler/base/log.h"

/* Few threads beat many on few cores, but some must be left while others wait for a disk's fsync. */
enum { MIN_THREADS = 4, MAX_THREADS = 16 };

/* The kernel ends the connection right after the last umount(2). */
enum { END_WAIT_MS = 2000 };

struct session {
    struct fuse_session *se;
    struct channel channel;
    const char *mountpoint;
    struct notify *notify;
    bool left; /* to a process after this one; atomic */
    pthread_t main_thread, signal_thread;
    bool ended; /* atomic: the loop is over */
};

static unsigned thread_count(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    return cpus < MIN_THREADS ? MIN_THREADS : cpus > MAX_THREADS ? MAX_THREADS : (unsigned)cpus;
}

static void interrupt(int sig)
{
}

static void end_loop(struct session *s)
{
    fuse_session_exit(s->se);
    while (!__atomic_load_n(&s->ended, __ATOMIC_ACQUIRE)) { /* it may not have begun to wait yet */
        pthread_kill(s->main_thread, SIGUSR1);
        usleep(20000);
    }
}

/* A mount namespace that was copied from ours (unshare -m, a container) may have the mount still: it would
 * keep the connection, and us, for as long as it lives. */
static void await_end(struct session *s)
{
    for (int ms = 0; ms < END_WAIT_MS; ms += 20) {
        if (__atomic_load_n(&s->ended, __ATOMIC_ACQUIRE))
            return;
        usleep(20000);
    }
    log_line("%s is still mounted in another mount namespace: ending, programs there get an error",
             s->mountpoint);
    end_loop(s);
}

/* Unmount in order, so that nothing that the kernel still holds is lost; if programs have files open there,
 * write back what they mapped, detach, and end the loop. */
static void unmount(struct session *s)
{
    int fd, rc;

    notify_quiet(s->notify);
    rc = mount_remove(s->mountpoint, 0);
    if (rc == 0) {
        await_end(s);
        return;
    }
    log_line("unmounting %s: %s; detaching it", s->mountpoint, strerror(-rc));
    fd = open(s->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
    mount_remove(s->mountpoint, 1);
    end_loop(s);
}

/* Leave the mount and everything that is open there. */
static void leave(struct session *s)
{
    log_line("SIGHUP: leaving the mount to another process");
    notify_quiet(s->notify);
    __atomic_store_n(&s->left, true, __ATOMIC_RELEASE);
    end_loop(s);
}

static void *signal_main(void *arg)
{
    struct session *s = arg;
    sigset_t set;
    int sig;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR2); /* the loop is over */
    sigwait(&set, &sig);
    if (sig == SIGUSR2)
        return NULL;
    if (sig == SIGHUP) {
        leave(s);
    } else {
        log_line("%s: ending", sig == SIGTERM ? "SIGTERM" : "SIGINT");
        unmount(s);
    }
    do
        sigwait(&set, &sig);
    while (sig != SIGUSR2);
    return NULL;
}

/* SIGUSR1 interrupts the loop's wait, SIGUSR2 ends the signal thread. */
static void prepare_signals(void)
{
    struct sigaction sa = {.sa_handler = interrupt};
    sigset_t set;

    sigaction(SIGUSR1, &sa, NULL);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static int run_loop(struct session *s)
{
    struct fuse_loop_config *cfg = fuse_loop_cfg_create();
    int rc;

    if (!cfg)
        return -ENOMEM;
    fuse_loop_cfg_set_clone_fd(cfg, 0);
    fuse_loop_cfg_set_max_threads(cfg, thread_count());
    rc = fuse_session_loop_mt(s->se, cfg);
    __atomic_store_n(&s->ended, true, __ATOMIC_RELEASE);
    fuse_loop_cfg_destroy(cfg);
    return rc;
}

static int serve_mounted(struct fs *f, struct session *s, struct dtx_err *e)
{
    struct notify *notify;
    int rc = channel_begin(&s->channel, s->se, e);

    if (!rc)
        rc = notify_new(f, s->se, s->mountpoint, &notify, e);
    if (rc)
        return rc;
    channel_resend(&s->channel, s->se);
    s->notify = notify;
    s->main_thread = pthread_self();
    prepare_signals();
    if (pthread_create(&s->signal_thread, NULL, signal_main, s)) {
        rc = dtx_fail(e, -EAGAIN, "cannot start a thread");
    } else {
        sched_on_change(f->sched, notify_changed, notify);
        rc = run_loop(s);
        pthread_kill(s->signal_thread, SIGUSR2);
        pthread_join(s->signal_thread, NULL);
        sched_on_change(f->sched, NULL, NULL);
    }
    notify_stop(notify);
    notify_free(notify);
    if (rc < 0)
        dtx_fail(e, rc, "the conversation with the kernel broke: %s", strerror(-rc));
    return rc < 0 ? rc : 0;
}

static int serve_channel(struct fs *f, struct session *s, struct dtx_err *e)
{
    int fd = f->kept->mount_fd, rc;

    if (fd < 0) {
        fd = channel_mount(s->mountpoint, e);
        if (fd < 0)
            return fd;
        kept_put(f->kept, KEEPER_MOUNT, 0, NULL, 0, fd);
    }
    s->channel.passthrough = f->pass;
    s->channel.stack_depth = f->want_passthrough ? passthrough_depth(f->tree_fd) : 0;
    rc = channel_attach(&s->channel, s->se, f->kept, fd, e);
    if (rc)
        close(fd);
    else
        rc = serve_mounted(f, s, e);
    return rc ? rc : __atomic_load_n(&s->left, __ATOMIC_ACQUIRE);
}

int session_serve(struct fs *f, const char *mountpoint, struct dtx_err *e)
{
    char *argv[] = {"dtxd", NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    struct session s = {.mountpoint = mountpoint, .se = fuse_session_new(&args, &fs_ops, sizeof(fs_ops), f)};
    int rc;

    fuse_opt_free_args(&args);
    f->se = s.se;
    if (!s.se)
        return dtx_fail(e, -ENOMEM, "cannot make a FUSE session");
    rc = serve_channel(f, &s, e);
    fuse_session_destroy(s.se);
    return rc;
}
