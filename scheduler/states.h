/* The states and events of every object, and the one table that says which event leads where (states.c). */
#ifndef DTX_SCHED_STATES_H
#define DTX_SCHED_STATES_H

#include <stdbool.h>

enum state {
    ST_NONE, /* not there yet */
    ST_RECEIVING,
    ST_FETCHING,
    ST_CHECKING,
    ST_READY,
    ST_REJECTED,
    ST_INIT,
    ST_PENDING,
    ST_RUNNING,
    ST_STOPPED,
    ST_PROCESSING,
    ST_PAUSED,
    ST_FINETUNE,
    ST_EXPORT,
    ST_SERVE,
    ST_SCORE,
    ST_ANSWERING,
    ST_DONE,
    ST_SUCCESS,
    ST_SUCCESSFUL,
    ST_FAILED,
    ST_CANCELLED,
    ST_GONE, /* deleted */
    ST_COUNT
};

enum event {
    EV_WRITE,    /* its bytes changed */
    EV_RENAME,   /* renamed into place */
    EV_UNLINK,   /* a file of it is gone */
    EV_RMDIR,    /* its root is gone */
    EV_SETTLE,   /* the drop is complete */
    EV_FETCH,    /* complete, but its files lie elsewhere */
    EV_DONE,     /* the work of this state ended well */
    EV_ERROR,    /* it did not: the reason says why */
    EV_WAIT,     /* something it needs is not there (any more) */
    EV_START,    /* all it needs is there */
    EV_FINETUNE, /* a worker says: training */
    EV_EXPORT,
    EV_SERVE,
    EV_SCORE,
    EV_LOST,      /* the worker died or let go */
    EV_NONE_WELL, /* all jobs ended, none well */
    EV_ALL_CANCELLED,
    EV_PAUSE,
    EV_RESUME,
    EV_CANCEL,
    EV_STOP,
    EV_RETRY,
    EV_COUNT
};

enum machine {
    M_DATASET,
    M_SPEC,
    M_PLUGIN,
    M_BASE,
    M_TUNED,
    M_SERVICE,
    M_EXPERIMENT,
    M_JOB,
    M_FINETUNE,
    M_COMPARE,
    M_COUNT
};

/* Where the event leads, or -1: it means nothing in that state. */
int state_next(enum machine m, enum state from, enum event ev);

const char *state_name(enum state s); /* "RECEIVING" */
int state_by_name(const char *name);  /* -1: no such state */
const char *event_name(enum event e);
const char *machine_name(enum machine m);
bool state_is_end(enum state s); /* SUCCESS, SUCCESSFUL, FAILED, CANCELLED: only retry leads on */

#endif
