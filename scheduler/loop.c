/* The loop: waits for whatever can happen, then runs every driver once.  Drivers look at states, not at
 * edges. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/internal.h"

/* What comes through the mount comes by inotify again: it is read in batches, not event by event. */
static const int64_t watch_pause = SECOND_NS / 10;

enum { MAX_FDS = MAX_WORKERS + MAX_CHECKS + 8 }; /* checks that are being killed are not waited for */

void loop_commands(struct sched *s)
{
    struct command *c;

    while ((c = s->commands)) {
        s->commands = c->next;
        c->rc = c->fn(s, c);
        c->done = true;
        pthread_cond_broadcast(&s->answered);
    }
}

static void unhide(struct sched *s, int64_t now)
{
    struct hidden **p = &s->hidden, *h;

    while ((h = *p)) {
        if (h->until > now) {
            p = &h->next;
            continue;
        }
        *p = h->next;
        sched_changed(s, "%s", h->path);
        free(h->path);
        free(h);
    }
}

void loop_round(struct sched *s, int64_t now)
{
    loop_commands(s);
    unhide(s, now);
    intake_round(s, now);
    checks_round(s, now);
    workers_round(s, now);
    services_round(s, now);
    experiments_round(s, now);
    dispatch_round(s, now);
    asking_round(s, now);
    limits_round(s, now);
}

static int add_fd(struct pollfd *fds, int n, int fd, short events)
{
    if (fd < 0)
        return n;
    fds[n] = (struct pollfd){.fd = fd, .events = events};
    return n + 1;
}

/* Milliseconds until something is due that no descriptor tells. */
static int timeout_ms(struct sched *s, int64_t now)
{
    int64_t due = now + SECOND_NS, t = intake_next(s);

    if (t < due)
        due = t;
    if (s->watch_at > now && s->watch_at < due)
        due = s->watch_at;
    if (s->checks && due > now + SECOND_NS / 10)
        due = now + SECOND_NS / 10;
    for (int i = 0; i < s->nworkers; i++) {
        struct worker *w = &s->workers[i];
        if (w->eof_at && w->state != WS_DOWN)
            t = now + SECOND_NS / 50;
        else if (w->state == WS_DOWN)
            t = s->locks_free ? w->start_at : s->locks_look;
        else
            continue;
        if (t < due)
            due = t;
    }
    return due <= now ? 1 : (int)((due - now) / 1000000) + 1;
}

static void wait_for_events(struct sched *s)
{
    struct pollfd fds[MAX_FDS];
    int checks[MAX_CHECKS + 1], nchecks = checks_fds(s, checks, MAX_CHECKS + 1), n = 0;
    int64_t now = clock_mono_ns();
    int timeout = timeout_ms(s, now);
    uint64_t count;

    n = add_fd(fds, n, s->wake, POLLIN);
    if (s->watch_at <= now)
        n = add_fd(fds, n, watcher_fd(s), POLLIN);
    for (int i = 0; i < nchecks; i++)
        n = add_fd(fds, n, checks[i], POLLIN);
    for (int i = 0; i < s->nworkers; i++)
        if (!s->workers[i].held_body && !s->workers[i].eof_at)
            n = add_fd(fds, n, s->workers[i].fd, (short)(POLLIN | (s->workers[i].out.len ? POLLOUT : 0)));
    s->looks_at = now + timeout * (SECOND_NS / 1000);
    slow_begin(s);
    poll(fds, (nfds_t)n, timeout); /* a command that came meanwhile has written to wake */
    (void)!read(s->wake, &count, sizeof(count));
    slow_end(s);
}

static void handle_input(struct sched *s, int64_t now)
{
    if (s->watcher && s->watch_at <= now && watcher_read(s, now))
        s->watch_at = now + watch_pause;
    for (int i = 0; i < s->nworkers; i++) {
        worker_output(s, &s->workers[i]);
        worker_input(s, &s->workers[i], now);
    }
}

void *loop_main(void *arg)
{
    struct sched *s = arg;

    pthread_mutex_lock(&s->mutex);
    while (!s->closing) {
        int64_t now = clock_mono_ns();
        handle_input(s, now);
        loop_round(s, now);
        wait_for_events(s);
    }
    loop_commands(s);
    workers_end(s);
    checks_end(s);
    pthread_mutex_unlock(&s->mutex);
    return NULL;
}
