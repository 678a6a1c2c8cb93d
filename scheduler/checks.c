/*
 * CHECKING.  Datasets and base models are read by a child process (dtx-worker --check-...), so that a hostile
 * file can at worst kill that child.  It prints one JSON object: {"ok":true,"report":{}} or
 * {"ok":false,"reason":WORDS}.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/internal.h"

enum { CHECK_SECONDS = 3600, CHECK_OUTPUT = 4 << 20 };

struct check {
    struct object *object; /* NULL: no longer wanted */
    pid_t pid;
    int fd; /* its stdout, non-blocking; -1: closed */
    struct buf out;
    int64_t deadline;
    struct check *next;
};

/* Where memory ends it ends with who reads a stranger's file, not with dtxd or a training worker. */
static void be_killed_first(void)
{
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return;
    (void)!write(fd, "1000", 4);
    close(fd);
}

/* In the child, between vfork and exec: async-signal-safe calls only, on a stack frame of its own. */
static void __attribute__((noinline, noreturn)) become_check(int out, char *const argv[])
{
    struct rlimit cpu = {CHECK_SECONDS, CHECK_SECONDS}, none = {0, 0}, files = {256, 256};
    int null = open("/dev/null", O_RDWR);
    sigset_t empty;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sigemptyset(&empty);
    sigprocmask(SIG_SETMASK, &empty, NULL);
    setpgid(0, 0);
    setpriority(PRIO_PROCESS, 0, 5);
    be_killed_first();
    setrlimit(RLIMIT_CPU, &cpu);
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_NOFILE, &files);
    dup2(null, 0);
    dup2(out, 1);
    execv(argv[0], argv);
    _exit(127);
}

static int start(struct check *c, char *const argv[])
{
    int p[2];
    pid_t pid;

    if (pipe2(p, O_CLOEXEC))
        return -errno;
    pid = vfork(); /* not fork: see fsd/channel.c, make_pages_present */
    if (pid == 0)
        become_check(p[1], argv);
    c->pid = pid;
    close(p[1]);
    if (c->pid < 0) {
        close(p[0]);
        return -errno;
    }
    fcntl(p[0], F_SETFL, O_NONBLOCK);
    c->fd = p[0];
    return 0;
}

/* A tokenizer to count tokens with: any model that is there, and that the check, as who owns the dataset, may
 * read. */
static const struct object *any_base(const struct sched *s, const struct object *dataset)
{
    for (int i = 0; i < s->nobjects; i++)
        if (s->objects[i]->kind == OBJ_BASE && s->objects[i]->state == ST_READY &&
            object_readable(s->objects[i], dataset->uid, dataset->gid))
            return s->objects[i];
    return NULL;
}

static void begin(struct sched *s, struct object *o, int64_t now)
{
    const struct object *base = o->kind == OBJ_DATASET ? any_base(s, o) : NULL;
    char dir[PATH_MAX], model[PATH_MAX];
    char *argv[8] = {s->worker_path, (char *)"--store", s->store,
                     (char *)(o->kind == OBJ_BASE ? "--check-model" : "--check-dataset"), dir};
    struct check *c = calloc(1, sizeof(*c));
    int rc = c ? 0 : -ENOMEM;

    snprintf(dir, sizeof(dir), "%s/%s", object_kind_collection(o->kind), o->name);
    if (base) {
        snprintf(model, sizeof(model), "models/base/%s", base->name);
        argv[5] = (char *)"--model";
        argv[6] = model;
    }
    if (rc == 0) {
        slow_begin(s);
        rc = start(c, argv);
        slow_end(s);
    }
    if (rc) { /* out of processes or memory: later */
        free(c);
        o->retry_at = now + SECOND_NS;
        return;
    }
    c->object = o;
    c->deadline = now + CHECK_SECONDS * SECOND_NS;
    c->next = s->checks;
    s->checks = c;
    o->check = c;
}

static void judge(struct sched *s, struct object *o, const struct check *c, int status)
{
    char words[256];
    json_t *v = NULL, *report;
    struct dtx_err e = {0};

    if (json_parse_text("check", c->out.p ? c->out.p : "", c->out.len, &v, &e) == 0 &&
        json_flag(v, "ok", 0)) {
        report = json_object_get(v, "report");
        set_json(&o->report, json_incref(report));
        object_event(s, o, EV_DONE, NULL);
    } else if (json_is_object(v) && json_str(v, "reason", NULL)) {
        object_event(s, o, EV_ERROR, json_str(v, "reason", ""));
    } else {
        if (WIFSIGNALED(status))
            snprintf(words, sizeof(words),
                     "the check was ended by signal %d (%s): the files may be broken or too large",
                     WTERMSIG(status), strsignal(WTERMSIG(status)));
        else if (WIFEXITED(status) && WEXITSTATUS(status) == 127)
            snprintf(words, sizeof(words), "the check program %.150s cannot be started", s->worker_path);
        else
            snprintf(words, sizeof(words), "the check ended with status %d and said nothing",
                     WEXITSTATUS(status));
        object_event(s, o, EV_ERROR, words);
    }
    json_decref(v);
}

static void read_output(struct check *c)
{
    ssize_t n;

    while (c->fd >= 0) {
        if (c->out.len > CHECK_OUTPUT || buf_reserve(&c->out, 65536)) {
            kill(c->pid, SIGKILL);
            n = 0;
        } else {
            n = read(c->fd, c->out.p + c->out.len, 65536);
        }
        if (n > 0) {
            c->out.len += (size_t)n;
            c->out.p[c->out.len] = '\0';
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            close(c->fd);
            c->fd = -1;
        } else if (errno == EAGAIN) {
            break;
        }
    }
}

/* True when it is over and freed. */
static bool look(struct sched *s, struct check *c, int64_t now)
{
    struct object *o = c->object;
    int status;

    read_output(c);
    if (now > c->deadline)
        kill(c->pid, SIGKILL);
    if (c->fd >= 0 || waitpid(c->pid, &status, WNOHANG) == 0)
        return false;
    for (struct check **p = &s->checks; *p; p = &(*p)->next)
        if (*p == c) {
            *p = c->next;
            break;
        }
    if (o) {
        o->check = NULL;
        judge(s, o, c, status);
    }
    buf_release(&c->out);
    free(c);
    return true;
}

/* In the plugin's folder itself: as root we would tell of any program of the machine whether it is there. */
static bool is_program(struct sched *s, const struct object *o, const char *program)
{
    char path[PATH_MAX];
    struct stat st;
    int folder, fd;
    bool yes;

    snprintf(path, sizeof(path), "%s/%s", object_kind_collection(o->kind), o->name);
    folder = open_beneath(s->tree_fd, path, O_PATH | O_DIRECTORY);
    fd = folder < 0 ? -1 : open_beneath(folder, program, O_PATH);
    yes = fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && (st.st_mode & 0111);
    if (fd >= 0)
        close(fd);
    if (folder >= 0)
        close(folder);
    return yes;
}

/* Plugins: the description was parsed when it was taken; the program must be there. */
static void check_plugin(struct sched *s, struct object *o)
{
    const char *program = json_string_value(json_array_get(json_object_get(o->spec, "command"), 0));
    char words[512];

    if (program && strncmp(program, "./", 2) == 0 && !is_program(s, o, program)) {
        snprintf(words, sizeof(words),
                 "plugin.json: command: %.200s is not there or not executable (chmod +x)", program);
        object_event(s, o, EV_ERROR, words);
        return;
    }
    object_event(s, o, EV_DONE, NULL);
}

void checks_round(struct sched *s, int64_t now)
{
    int running = 0;
    struct check *next;

    for (struct check *c = s->checks; c; c = next) {
        next = c->next;
        if (!look(s, c, now))
            running++;
    }
    for (int i = 0; i < s->nobjects; i++) {
        struct object *o = s->objects[i];
        if (o->state != ST_CHECKING || o->check || o->retry_at > now)
            continue;
        if (o->kind == OBJ_DATA_PLUGIN || o->kind == OBJ_SCORING_PLUGIN)
            check_plugin(s, o);
        else if (running < MAX_CHECKS && ++running)
            begin(s, o, now);
    }
}

void check_cancel(struct sched *s, struct object *o)
{
    if (!o->check)
        return;
    kill(o->check->pid, SIGKILL);
    o->check->object = NULL;
    o->check = NULL;
}

void checks_end(struct sched *s)
{
    while (s->checks) {
        struct check *c = s->checks;
        kill(c->pid, SIGKILL);
        waitpid(c->pid, NULL, 0);
        if (c->fd >= 0)
            close(c->fd);
        s->checks = c->next;
        if (c->object)
            c->object->check = NULL;
        buf_release(&c->out);
        free(c);
    }
}

int checks_fds(struct sched *s, int *fds, int max)
{
    int n = 0;

    for (struct check *c = s->checks; c && n < max; c = c->next)
        if (c->fd >= 0)
            fds[n++] = c->fd;
    return n;
}
