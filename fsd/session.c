#include "fsd/session.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>

#include "fsd/mount.h"
#include "fsd/notify.h"
#include "scheduler/base/log.h"

/* Few threads beat many on few cores, but some must be left while others wait for a disk's fsync. */
enum { MIN_THREADS = 4, MAX_THREADS = 16 };

struct session {
    struct fuse_session *se;
    const char *mountpoint;
    pthread_t main_thread, signal_thread;
    bool ended; /* atomic: the loop is over */
};

static unsigned thread_count(void)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);

    return cpus < MIN_THREADS ? MIN_THREADS : cpus > MAX_THREADS ? MAX_THREADS : (unsigned)cpus;
}

/* Does /etc/fuse.conf let users show their mounts to others? */
static bool others_allowed(void)
{
    char line[256];
    bool found = false;
    FILE *in;

    if (geteuid() == 0)
        return true;
    in = fopen("/etc/fuse.conf", "re");
    while (in && !found && fgets(line, sizeof(line), in))
        found = strncmp(line, "user_allow_other", 16) == 0;
    if (in)
        fclose(in);
    return found;
}

static void interrupt(int sig)
{
}

/* Unmount in order, so that nothing that the kernel still holds is lost; if programs have files open there, write back
 * what they mapped, detach, and end the loop. */
static void unmount(struct session *s)
{
    int fd, rc = mount_remove(s->mountpoint, 0);

    if (rc == 0)
        return; /* the loop sees the end of the connection */
    log_line("unmounting %s: %s; detaching it", s->mountpoint, strerror(-rc));
    fd = open(s->mountpoint, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        syncfs(fd);
        close(fd);
    }
    mount_remove(s->mountpoint, 1);
    fuse_session_exit(s->se);
    while (!__atomic_load_n(&s->ended, __ATOMIC_ACQUIRE)) { /* it may not have begun to wait yet */
        pthread_kill(s->main_thread, SIGUSR1);
        usleep(20000);
    }
}

static void *signal_main(void *arg)
{
    struct session *s = arg;
    sigset_t set;
    int sig;

    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR2); /* the loop is over */
    sigwait(&set, &sig);
    if (sig == SIGUSR2)
        return NULL;
    log_line("%s: ending", sig == SIGTERM ? "SIGTERM" : "SIGINT");
    unmount(s);
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
    int rc = notify_new(f, s->se, &notify, e);

    if (rc)
        return rc;
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

static struct fuse_session *new_session(struct fs *f)
{
    char *argv[] = {"dtxd", "-o", "fsname=dtx,subtype=dtx,default_permissions", NULL, NULL};
    struct fuse_args args;

    if (others_allowed())
        argv[2] = "fsname=dtx,subtype=dtx,default_permissions,allow_other";
    args = (struct fuse_args)FUSE_ARGS_INIT(3, argv);
    return fuse_session_new(&args, &fs_ops, sizeof(fs_ops), f);
}

int session_serve(struct fs *f, const char *mountpoint, struct dtx_err *e)
{
    struct session s = {.mountpoint = mountpoint, .se = new_session(f)};
    int rc;

    if (!s.se)
        return dtx_fail(e, -ENOMEM, "cannot make a FUSE session");
    if (fuse_session_mount(s.se, mountpoint)) {
        fuse_session_destroy(s.se);
        return dtx_fail(e, -EIO, "cannot mount at %s: is /dev/fuse there, and may you use it?", mountpoint);
    }
    rc = serve_mounted(f, &s, e);
    fuse_session_unmount(s.se);
    fuse_session_destroy(s.se);
    return rc;
}
