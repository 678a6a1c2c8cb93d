#include <poll.h>
#include <stdio.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

/* Seconds of generation in a turn: a person who asks gets most of the device, an evaluation half of it. */
static double generation_budget(const struct worker *w)
{
    double share = gens_urgent(w) ? 3 * w->last_step_s : w->last_step_s;

    return share < 0.02 ? 0.02 : share > 2 ? 2 : share;
}

static void worker_turn(struct worker *w)
{
    asks_turn(w);
    jobs_turn(w);
    if (w->fatal)
        return;
    jobs_train(w);
    if (!w->fatal && gens_turn(w, generation_budget(w)))
        w->moved = true;
    send_device(w);
}

/* Sleep until something happens, or go on at once while there is work. */
static void wait_for_events(struct worker *w)
{
    struct pollfd p[2] = {{w->sock, POLLIN, 0}, {w->wake, POLLIN, 0}};
    uint64_t count;

    if (w->out.len)
        p[0].events |= POLLOUT;
    if (poll(p, 2, w->moved ? 0 : 500) > 0 && (p[1].revents & POLLIN))
        (void)!read(w->wake, &count, sizeof(count));
    w->moved = false;
}

static void save_and_end(struct worker *w)
{
    jobs_save_all(w);
    send_log(w, "%s: worker ends", w->kind);
    outbox_drain(w, 5);
}

/* What another program holds from the start is not there for jobs. */
static void tell_room(struct worker *w)
{
    char total[24], others[24], usable[24];
    struct room r;

    room_look(w, &r);
    if (r.usable < r.limit || r.limit < r.total - r.total / 20)
        send_log(w, "%s has %s of memory, %s of it in use by other programs: jobs may use %s", w->kind,
                 room_words(r.total, total), room_words(r.others, others), room_words(r.usable, usable));
}

int worker_run(struct worker *w)
{
    struct dtx_err e = {0};
    int rc = 0;

    send_hello(w);
    tell_room(w);
    w->device_ns = clock_mono_ns();
    while (rc == 0 && !w->quit && !w->fatal) {
        rc = outbox_flush(w);
        if (rc == 0)
            wait_for_events(w);
        if (rc == 0)
            rc = inbox_read(w, &e);
        w->quit |= *w->terminated;
        if (rc == 0 && !w->quit)
            worker_turn(w);
    }
    if (rc) {
        if (rc != -EPIPE)
            fprintf(stderr, "dtx-worker: %s\n", e.msg);
        return rc == -EPIPE ? 0 : 1;
    }
    if (w->quit)
        save_and_end(w);
    else
        outbox_drain(w, 5);
    return w->fatal ? 1 : 0;
}
