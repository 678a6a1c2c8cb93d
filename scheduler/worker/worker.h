/*
 * dtx-worker: one process, one device.  It trains, scores and answers.
 *
 *   main.c     arguments, signals; check.c the one-shot checks (--check-dataset, --check-model)
 *   loop.c     the loop: socket, one turn of work after the other
 *   inbox.c    what each message of dtxd does;  outbox.c  what is sent to dtxd
 *   bases.c    base models and adapters in memory, and who uses them
 *   room.c     what fits;  group.c  the memory of jobs that train together
 *   gen.c      sequences being generated;  ask.c  prompts of dtxd
 *   job.h      jobs: job_*.c
 *
 * One turn (worker_turn): every job moves on as far as it can without computing; each base makes one training
 * step of all its jobs together; jobs that evaluate compute one slice; running sequences get their share of
 * time. Only the main thread drives the device.  Prepare threads (job_prepare.c) read datasets and write
 * token caches; they touch nothing of the worker and hand over their result when they are joined.
 */
#ifndef DTX_WORKER_H
#define DTX_WORKER_H

#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

#include "kernels/dtx_engine.h"
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"
#include "scheduler/proto.h"

struct job;
struct gen;
struct ask;
struct base_entry;

struct worker {
    int store;        /* descriptor of STORE */
    int sock;         /* to dtxd, non-blocking */
    int wake;         /* eventfd: a prepare thread has ended */
    const char *kind; /* "cpu", "cpu:1", "cuda:0": as given */
    int threads;
    struct dtx_device *device;
    struct buf in, out;
    struct base_entry *bases;
    struct job *jobs; /* in the order they came */
    struct gen *gens;
    struct ask *asks;
    volatile sig_atomic_t *terminated; /* SIGTERM came: as quit */
    bool quit;                         /* save all and end */
    bool fatal;                        /* the device failed: nothing more can be computed in this process */
    bool moved;                        /* this turn did something: do not sleep */
    uint64_t memory;    /* bytes that bases and jobs may take (--memory); 0: all but a twentieth */
    double last_step_s; /* how long the last training step took */
    uint64_t tokens;    /* trained and generated since the last device message */
    int64_t device_ns;  /* of the last device message */
};

/* loop.c: until quit or the end of the socket.  Exit status of the process. */
int worker_run(struct worker *w);

/* inbox.c: read what there is and act on it.  -EPIPE: dtxd is gone; other errors: broken stream. */
int inbox_read(struct worker *w, struct dtx_err *e);

/* outbox.c.  Steals the reference of body; messages that can be dropped are when dtxd does not read. */
void send_message(struct worker *w, enum proto_type type, json_t *body);
void send_state(struct worker *w, const char *id, const char *state, const char *reason, json_t *result);
/* never: FAILED because this device is too small. */
void send_end(struct worker *w, const char *id, const char *state, const char *reason, json_t *result,
              bool never);
void send_waits(struct worker *w, const char *id, const char *why); /* PENDING, for memory */
void send_log(struct worker *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void send_device(struct worker *w); /* at most once a second */
void send_hello(struct worker *w);
int outbox_flush(struct worker *w);                  /* as much as the socket takes now; -EPIPE */
void outbox_drain(struct worker *w, double seconds); /* before the end: wait for dtxd to read */
json_t *json_number(double x);                       /* null where x is not finite */
json_t *json_text(const char *text, size_t n);       /* bytes that are not UTF-8 become U+FFFD */

/* room.c: bytes of the device. */
struct room {
    uint64_t total;
    uint64_t others;  /* in use, but not by this process' models and jobs */
    uint64_t limit;   /* what this process may ever use: all but a twentieth, or --memory */
    uint64_t usable;  /* of that, what others leave now */
    uint64_t planned; /* promised to bases, jobs, adapters and answers */
    uint64_t free;    /* usable and not planned */
};
void room_look(const struct worker *w, struct room *r);
const char *room_words(uint64_t bytes, char out[24]); /* "12.3 GiB" */
uint64_t room_base(const struct worker *w,
                   const struct base_entry *b); /* promised to it and to what is on it */
/* What a base keeps free for answers. */
uint64_t room_answers(const struct worker *w, const struct dtx_model_config *c);
/* True if an answer on b may hold so many bytes more. */
bool room_for_answer(struct worker *w, struct base_entry *b, uint64_t bytes);
void room_describe(const struct worker *w, struct buf *out); /* who has what, in words */
/* "waits for 12.3 GiB of device memory: who has what" and -EAGAIN. */
void room_wait(const struct worker *w, uint64_t need, const char *what, struct dtx_err *e);
/* Make `need` bytes free by dropping what nobody uses (bases, oldest first, but not keep).  True if they are.
 */
bool room_make(struct worker *w, uint64_t need, const struct base_entry *keep);

/* check.c: one JSON object in *out (see scheduler/checks.c); the exit status.  Paths relative to tree. */
int check_dataset(int tree, const char *dataset, const char *model, struct buf *out);
int check_model(int tree, const char *model, struct buf *out);
int check_failed(const struct dtx_err *e, struct buf *out); /* the verdict where nothing could be checked */

#endif
