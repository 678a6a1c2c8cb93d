#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/worker/confine.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

struct arguments {
    const char *store, *device, *check_dataset, *check_model, *model;
    int threads;
    unsigned long long memory;
};

static const char usage[] =
    "usage: dtx-worker --store DIR --device cpu[:N]|cuda:N [--threads T]    (socket to dtxd on descriptor "
    "3)\n"
    "       dtx-worker --store DIR --check-dataset datasets/NAME [--model models/base/NAME]\n"
    "       dtx-worker --store DIR --check-model models/base/NAME\n"
    "dtxd starts it; paths of what is checked are relative to the store's tree.\n";

static int parse_arguments(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {
        {"store", 1, NULL, 's'},         {"device", 1, NULL, 'd'},      {"threads", 1, NULL, 't'},
        {"check-dataset", 1, NULL, 'c'}, {"check-model", 1, NULL, 'm'}, {"model", 1, NULL, 'b'},
        {"memory", 1, NULL, 'y'},        {"help", 0, NULL, 'h'},        {0}};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's':
            a->store = optarg;
            break;
        case 'd':
            a->device = optarg;
            break;
        case 't':
            a->threads = atoi(optarg);
            break;
        case 'y':
            a->memory = strtoull(optarg, NULL, 10);
            break;
        case 'c':
            a->check_dataset = optarg;
            break;
        case 'm':
            a->check_model = optarg;
            break;
        case 'b':
            a->model = optarg;
            break;
        default:
            return -EINVAL;
        }
    }
    if (optind != argc || !a->store || !(a->device || a->check_dataset || a->check_model) || a->threads < 0 ||
        a->threads > 4096)
        return -EINVAL;
    return 0;
}

/* Diagnostics of a child's end are dtxd's business: writing past a file size limit or to a closed socket must
 * be an error in words, Ctrl-C in dtxd's terminal is dtxd's, and without dtxd there is nothing to live for.
 */
static volatile sig_atomic_t terminated;

static void on_term(int sig)
{
    (void)sig;
    terminated = 1;
}

static void set_signals(void)
{
    struct sigaction term = {.sa_handler = on_term};

    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    sigaction(SIGTERM, &term, NULL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static int run_worker(int store, const struct arguments *a)
{
    struct worker w = {.store = store,
                       .sock = PROTO_WORKER_FD,
                       .kind = a->device,
                       .threads = a->threads,
                       .memory = a->memory};
    const char *engine_kind = strncmp(a->device, "cpu", 3) == 0 ? "cpu" : a->device;
    struct dtx_err e = {0};
    int status;

    if (fcntl(w.sock, F_SETFD, FD_CLOEXEC)) {
        fprintf(stderr, "dtx-worker: descriptor %d is not the socket to dtxd\n%s", PROTO_WORKER_FD, usage);
        return 2;
    }
    set_signals();
    if (confine_worker(strncmp(a->device, "cuda", 4) == 0, &e)) {
        fprintf(stderr, "dtx-worker: %s\n", e.msg);
        return 1;
    }
    w.terminated = &terminated;
    w.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w.wake < 0) {
        perror("dtx-worker: eventfd");
        return 1;
    }
    if (dtx_device_open(engine_kind, a->threads, &w.device, &e)) {
        fprintf(stderr, "dtx-worker: %s: %s\n", a->device, e.msg);
        send_log(&w, "%s: %s", a->device, e.msg);
        outbox_drain(&w, 5);
        return 1;
    }
    status = worker_run(&w);
    if (jobs_preparing(&w))
        _exit(status); /* a thread is in the middle of a dataset: nothing of it counts before it is done */
    jobs_release(&w);
    asks_release(&w);
    gens_release(&w);
    bases_release(&w);
    dtx_device_close(w.device);
    buf_release(&w.in);
    buf_release(&w.out);
    close(w.wake);
    return status;
}

static int run_check(int store, const struct arguments *a)
{
    const char *what = a->check_model ? a->check_model : a->check_dataset;
    int tree = openat(store, "tree", O_RDONLY | O_DIRECTORY | O_CLOEXEC), status;
    struct buf out = BUF_INIT;
    struct dtx_err e = {0};

    close(store); /* it may be root's alone */
    if (tree < 0) {
        fprintf(stderr, "dtx-worker: cannot open tree/ in the store: %s\n", strerror(errno));
        return 2;
    }
    if (confine_check(tree, what, a->model, &e))
        status = check_failed(&e, &out);
    else if (a->check_model)
        status = check_model(tree, a->check_model, &out);
    else
        status = check_dataset(tree, a->check_dataset, a->model, &out);
    close(tree);
    if (status == 0 && fd_write_all(STDOUT_FILENO, out.p, out.len))
        status = 1;
    buf_release(&out);
    return status;
}

int main(int argc, char **argv)
{
    struct arguments a = {0};
    int store, status;

    if (parse_arguments(argc, argv, &a)) {
        fputs(usage, stderr);
        return 2;
    }
    store = open(a.store, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store < 0) {
        fprintf(stderr, "dtx-worker: cannot open the store %s: %s\n", a.store, strerror(errno));
        return 2;
    }
    if (a.check_dataset || a.check_model)
        return run_check(store, &a);
    status = run_worker(store, &a);
    close(store);
    return status;
}
