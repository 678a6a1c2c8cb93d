/* dtxd: options, the store, daemonizing; then fs and session do the work. */
#include <fcntl.h>
#include <getopt.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"
#include "fsd/keeper.h"
#include "fsd/kept.h"
#include "fsd/mount.h"
#include "fsd/session.h"
#include "fsd/touch.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"

#define DTX_VERSION   "0.1"
#define DEFAULT_STORE "/var/lib/dtx"

enum { LOCK_TRIES = 500 }; /* of 20 ms */

struct options {
    const char *store, *config, *devices, *worker, *log, *mountpoint;
    const char *kept; /* this is the child of a keeper */
    bool foreground, remount, no_passthrough;
    char store_path[PATH_MAX], worker_path[PATH_MAX], mount_path[PATH_MAX], log_path[PATH_MAX],
        config_path[PATH_MAX], program[PATH_MAX];
};

/* Tells the parent (or, in the foreground, nobody) how the start went. */
struct starter {
    int fd; /* of the parent's pipe, -1: none */
    const char *mountpoint;
};

static const char usage_text[] =
    "usage: dtxd [options] MOUNTPOINT\n"
    "  --store DIR      where everything is kept (default " DEFAULT_STORE ")\n"
    "  --config FILE    the administrator's configuration (JSON)\n"
    "  --devices WHAT   cpu, cpu:N (N workers), cuda, cuda:0,1 (default: cuda if there is one, else cpu)\n"
    "  --no-passthrough large files go through dtxd even where the kernel could read and write them itself\n"
    "  --foreground     stay in the foreground, log to stderr\n"
    "  --worker PATH    the dtx-worker program (default: beside dtxd)\n"
    "  --log FILE       the daemon's log (default: STORE/log)\n"
    "  --remount        after a crash, mount anew rather than take the mount over\n"
    "  --help, --version\n"
    "Without --foreground it returns when the mount is live.  SIGTERM unmounts and ends it; SIGHUP starts it "
    "again\n"
    "from the program on disk, and programs with open files only see a pause.\n";

static const struct option long_options[] = {
    {"store", required_argument, NULL, 's'},
    {"config", required_argument, NULL, 'c'},
    {"devices", required_argument, NULL, 'd'},
    {"foreground", no_argument, NULL, 'f'},
    {"no-passthrough", no_argument, NULL, 'P'},
    {"worker", required_argument, NULL, 'w'},
    {"log", required_argument, NULL, 'l'},
    {"remount", no_argument, NULL, 'r'},
    {"kept", required_argument, NULL, 'k'},  /* of the keeper, to its child */
    {"takes", required_argument, NULL, 't'}, /* of the keeper, to a program that it might start */
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'V'},
    {NULL, 0, NULL, 0},
};

/* 0: go on; 1: done (exit 0); -EINVAL: usage was printed. */
static int parse_options(int argc, char **argv, struct options *o)
{
    int c;

    while ((c = getopt_long(argc, argv, "f", long_options, NULL)) != -1) {
        switch (c) {
        case 's':
            o->store = optarg;
            break;
        case 'c':
            o->config = optarg;
            break;
        case 'd':
            o->devices = optarg;
            break;
        case 'f':
            o->foreground = true;
            break;
        case 'P':
            o->no_passthrough = true;
            break;
        case 'w':
            o->worker = optarg;
            break;
        case 'l':
            o->log = optarg;
            break;
        case 'r':
            o->remount = true;
            break;
        case 'k':
            o->kept = optarg;
            break;
        case 't':
            return atoi(optarg) == KEEPER_VERSION ? 1 : -EINVAL;
        case 'h':
            fputs(usage_text, stdout);
            return 1;
        case 'V':
            puts("dtxd " DTX_VERSION);
            return 1;
        default:
            fputs(usage_text, stderr);
            return -EINVAL;
        }
    }
    if (optind + 1 != argc) {
        fputs(usage_text, stderr);
        return -EINVAL;
    }
    o->mountpoint = argv[optind];
    return 0;
}

/* ---- paths: absolute, because a daemon changes to / ---- */

static bool is_inside(const char *path, const char *folder)
{
    size_t n = strlen(folder);

    return strncmp(path, folder, n) == 0 && (path[n] == '\0' || path[n] == '/');
}

static int find_programs(struct options *o, struct dtx_err *e)
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    if (n < 0)
        return dtx_fail_errno(e, "cannot find the program's own path (is /proc mounted?)");
    self[n] = '\0';
    memcpy(o->program, self, (size_t)n + 1);
    if (o->worker) {
        if (!realpath(o->worker, o->worker_path))
            return dtx_fail_errno(e, "--worker %s", o->worker);
        return 0;
    }
    if (snprintf(o->worker_path, sizeof(o->worker_path), "%s/dtx-worker", dirname(self)) >= PATH_MAX)
        return dtx_fail(e, -ENAMETOOLONG, "the program's path is too long");
    return 0;
}

/* The file need not exist. */
static int absolute(const char *path, char out[PATH_MAX], struct dtx_err *e)
{
    char cwd[PATH_MAX];

    if (path[0] != '/' && !getcwd(cwd, sizeof(cwd)))
        return dtx_fail_errno(e, "the current folder");
    if (snprintf(out, PATH_MAX, "%s%s%s", path[0] == '/' ? "" : cwd, path[0] == '/' ? "" : "/", path) >=
        PATH_MAX)
        return dtx_fail(e, -ENAMETOOLONG, "path too long: %.100s", path);
    return 0;
}

static int resolve_paths(struct options *o, struct dtx_err *e)
{
    int rc = mount_resolve(o->mountpoint, o->mount_path, sizeof(o->mount_path), e);

    if (!rc)
        rc = fd_mkdirs(AT_FDCWD, o->store, 0700, e);
    if (!rc && !realpath(o->store, o->store_path))
        rc = dtx_fail_errno(e, "--store %s", o->store);
    if (!rc && (is_inside(o->store_path, o->mount_path) || is_inside(o->mount_path, o->store_path)))
        rc = dtx_fail(e, -EINVAL, "store %s and mountpoint %s must not contain each other", o->store_path,
                      o->mount_path);
    if (!rc && o->log)
        rc = absolute(o->log, o->log_path, e);
    else if (!rc && snprintf(o->log_path, PATH_MAX, "%s/log", o->store_path) >= PATH_MAX)
        rc = dtx_fail(e, -ENAMETOOLONG, "the store's path is too long");
    if (!rc && o->config)
        rc = absolute(o->config, o->config_path, e);
    return rc ? rc : find_programs(o, e);
}

/* ---- starting ---- */

static void report_start(struct starter *s, const char *text)
{
    if (s->fd < 0)
        return;
    (void)!fd_write_all(s->fd, text, strlen(text));
    close(s->fd);
    s->fd = -1;
}

static void mount_is_live(void *arg)
{
    struct starter *s = arg;

    log_line("mounted at %s", s->mountpoint);
    report_start(s, "ok");
}

static int open_log(const struct options *o, struct dtx_err *e)
{
    int fd;

    if (o->foreground && !o->log)
        return 0;
    fd = open(o->log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open the log %s", o->log_path);
    log_to_fd(fd);
    if (!o->foreground)
        dup2(fd, STDERR_FILENO); /* for what a library says */
    return 0;
}

/* Signals are taken by one thread of session.c, or by the keeper's loop: every thread that is started
 * inherits this. */
static void block_signals(void)
{
    sigset_t set;

    signal(SIGPIPE, SIG_IGN);
    signal(SIGIO, SIG_IGN); /* somebody opens a file while passthrough_is_written looks at it */
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* ---- the child: dtxd proper ---- */

/* The keeper has the store for itself: who has its lock now is a child that was killed and has not quite
 * ended. */
static int open_sched(const struct sched_config *config, struct sched **sched, struct dtx_err *e)
{
    int rc = sched_open(config, sched, e);

    for (int i = 0; rc == -EBUSY && i < LOCK_TRIES; i++) {
        usleep(20000);
        rc = sched_open(config, sched, e);
    }
    return rc;
}

/* 1: left to another process. */
static int serve(struct options *o, struct kept *kept, struct dtx_err *e)
{
    struct sched_config config = {.store = o->store_path,
                                  .config = o->config ? o->config_path : NULL,
                                  .devices = o->devices,
                                  .worker = o->worker_path,
                                  .version = DTX_VERSION};
    struct sched *sched;
    struct fs fs;
    int rc = open_sched(&config, &sched, e);

    if (rc)
        return rc;
    if (kept->mount_fd < 0)
        rc = mount_prepare(o->mount_path, e);
    if (!rc)
        rc = fs_init(&fs, sched, kept, o->store_path, e);
    if (rc) {
        sched_close(sched);
        return rc;
    }
    fs.want_passthrough = !o->no_passthrough;
    rc = session_serve(&fs, o->mount_path, e);
    if (!rc)
        log_line("unmounted");
    sched_close(sched);
    fs_release(&fs);
    return rc;
}

static int run_child(struct options *o)
{
    struct kept *kept = NULL;
    struct dtx_err e = {0};
    int rc = kept_open(o->kept, &kept, &e);

    block_signals();
    umask(0);
    if (!rc)
        rc = open_log(o, &e);
    if (!rc)
        rc = serve(o, kept, &e);
    if (rc < 0 && kept)
        kept_failed(kept, e.msg);
    kept_close(kept);
    return rc < 0 ? 1 : rc ? KEEPER_AGAIN : 0;
}

/* ---- the keeper ---- */

/* As long as it lives nobody else takes the store, also while no child has it. */
static int lock_store(const struct options *o, struct dtx_err *e)
{
    int dir = open(o->store_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd;

    if (dir < 0)
        return dtx_fail_errno(e, "cannot open the store %s", o->store_path);
    fd = fd_lock_file(dir, "keeper.lock", e);
    close(dir);
    return fd == -EBUSY ? dtx_fail(e, -EBUSY, "another dtxd runs on the store %s", o->store_path) : fd;
}

static void add_option(char **argv, int *n, const char *name, const char *value)
{
    argv[(*n)++] = (char *)name;
    if (value)
        argv[(*n)++] = (char *)value;
}

/* What the child is started with: the same options, with absolute paths. */
static void child_arguments(struct options *o, char *argv[24])
{
    int n = 0;

    argv[n++] = (char *)"dtxd";
    add_option(argv, &n, "--store", o->store_path);
    add_option(argv, &n, "--worker", o->worker_path);
    if (o->config)
        add_option(argv, &n, "--config", o->config_path);
    if (o->devices)
        add_option(argv, &n, "--devices", o->devices);
    if (o->log)
        add_option(argv, &n, "--log", o->log_path);
    if (o->foreground)
        add_option(argv, &n, "--foreground", NULL);
    if (o->no_passthrough)
        add_option(argv, &n, "--no-passthrough", NULL);
    argv[n++] = o->mount_path;
    argv[n] = NULL;
}

static int keep(struct options *o, struct starter *starter, struct dtx_err *e)
{
    char *argv[24];
    struct keeper_config config = {.program = o->program,
                                   .argv = argv,
                                   .mountpoint = o->mount_path,
                                   .remount = o->remount,
                                   .started = mount_is_live,
                                   .started_arg = starter};
    sigset_t set;
    int lock = lock_store(o, e), rc;

    if (lock < 0)
        return lock;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    child_arguments(o, argv);
    rc = keeper_run(&config, e);
    close(lock);
    return rc;
}

static int run(struct options *o, struct starter *starter)
{
    struct dtx_err e = {0};
    int rc = open_log(o, &e);

    block_signals();
    if (!rc)
        rc = keep(o, starter, &e);
    if (rc) {
        if (!o->foreground || o->log)
            log_line("dtxd: %s", e.msg);
        if (o->foreground)
            fprintf(stderr, "dtxd: %s\n", e.msg);
        report_start(starter, e.msg);
    }
    return rc ? 1 : 0;
}

/* ---- daemonizing ---- */

/* In the parent: wait until the child says how it went. */
static int wait_for_start(int fd)
{
    char text[1024];
    size_t n = 0;
    ssize_t got;

    while (n < sizeof(text) - 1 && (got = read(fd, text + n, sizeof(text) - 1 - n)) != 0) {
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            break;
        n += (size_t)got;
    }
    text[n] = '\0';
    if (strcmp(text, "ok") == 0)
        return 0;
    fprintf(stderr, "dtxd: %s\n", n ? text : "ended before the mount was live; its log says more");
    return 1;
}

static void detach_from_terminal(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    setsid();
    (void)!chdir("/");
    if (null < 0)
        return;
    dup2(null, STDIN_FILENO);
    dup2(null, STDOUT_FILENO);
    dup2(null, STDERR_FILENO);
    close(null);
}

static int run_as_daemon(struct options *o)
{
    struct starter starter = {.mountpoint = o->mount_path};
    int fd[2];
    pid_t pid;

    if (pipe2(fd, O_CLOEXEC) || (pid = fork()) < 0) {
        perror("dtxd: cannot start");
        return 1;
    }
    if (pid > 0) {
        close(fd[1]);
        return wait_for_start(fd[0]);
    }
    close(fd[0]);
    starter.fd = fd[1];
    detach_from_terminal();
    return run(o, &starter);
}

int main(int argc, char **argv)
{
    struct options o = {.store = DEFAULT_STORE};
    struct starter nobody = {.fd = -1};
    struct dtx_err e;
    int rc;

    if (argc == 3 && strcmp(argv[1], "--touch") == 0)
        return touch_helper_main(argv[2]);
    rc = parse_options(argc, argv, &o);
    if (rc)
        return rc < 0 ? 2 : 0;
    if (resolve_paths(&o, &e)) {
        fprintf(stderr, "dtxd: %s\n", e.msg);
        return 1;
    }
    nobody.mountpoint = o.mount_path;
    if (o.kept)
        return run_child(&o);
    return o.foreground ? run(&o, &nobody) : run_as_daemon(&o);
}
