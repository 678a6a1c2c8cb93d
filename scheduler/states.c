/*
 * What can become of an object.  One table of state x event -> state for each machine; what is not in it
 * cannot happen (the event is refused and logged, the state stays).  Each transition is written to the
 * catalog before it is acted on: object_event, experiment_event, job_event.
 *
 *   dataset   (none) -write,rename-> RECEIVING -settle-> CHECKING -done-> READY
 *                                     RECEIVING -fetch-> FETCHING -done-> CHECKING;  error from each of them:
 * REJECTED any later write, rename or unlink inside it: RECEIVING again;  rmdir: deleted base      the same
 * without FETCHING;  plugin: the same as base spec      (paramgroup, evaluation)  (none) -write-> RECEIVING
 * -done-> READY | -error-> REJECTED, write: RECEIVING tuned     (none) -done-> READY -rmdir-> deleted service
 * (none) -write-> PENDING -start-> RUNNING -wait-> PENDING;  RUNNING -error-> FAILED;  -stop-> STOPPED
 *             -resume-> PENDING;  a wrong spec: REJECTED
 *   compare   (none) -write,rename-> RECEIVING -settle-> PENDING -start-> ANSWERING -done-> DONE | -error->
 * FAILED (prompts in services/NAME/ask too)
 *
 *   experiment
 *     (none) -write-> RECEIVING -error-> REJECTED -write-> RECEIVING
 *                     RECEIVING -settle-> PENDING -start-> PROCESSING -done-> SUCCESS | -none_well-> FAILED
 *                                                                     | -all_cancelled-> CANCELLED
 *     PENDING, PROCESSING -pause-> PAUSED -resume-> PENDING (starts again when all it names is there)
 *     PENDING, PROCESSING, PAUSED -cancel-> CANCELLED;  SUCCESS, FAILED, CANCELLED -retry-> PENDING
 *     rmdir from everywhere: deleted
 *   job
 *     (none) -write-> INIT -start-> PENDING -finetune-> FINETUNE -export-> EXPORT -serve-> SERVE -score->
 * SCORE each of these -done-> SUCCESSFUL | -error-> FAILED | -lost-> PENDING | -pause-> PAUSED | -cancel->
 * CANCELLED a worker may skip stages, and after a restart goes on from any of them;  PAUSED -resume-> PENDING
 *     FAILED, CANCELLED -retry-> PENDING
 *   finetune  (the `finetune:` line) (none) -write-> INIT -start-> PENDING -finetune-> RUNNING -done->
 * SUCCESSFUL RUNNING -lost,pause-> PENDING;  -error,cancel-> FAILED;  FAILED -retry-> PENDING
 */
#include "scheduler/states.h"

#include <stddef.h>
#include <string.h>

static const char *const state_names[ST_COUNT] = {
    [ST_NONE] = "NONE",
    [ST_RECEIVING] = "RECEIVING",
    [ST_FETCHING] = "FETCHING",
    [ST_CHECKING] = "CHECKING",
    [ST_READY] = "READY",
    [ST_REJECTED] = "REJECTED",
    [ST_INIT] = "INIT",
    [ST_PENDING] = "PENDING",
    [ST_RUNNING] = "RUNNING",
    [ST_STOPPED] = "STOPPED",
    [ST_PROCESSING] = "PROCESSING",
    [ST_PAUSED] = "PAUSED",
    [ST_FINETUNE] = "FINETUNE",
    [ST_EXPORT] = "EXPORT",
    [ST_SERVE] = "SERVE",
    [ST_SCORE] = "SCORE",
    [ST_ANSWERING] = "ANSWERING",
    [ST_DONE] = "DONE",
    [ST_SUCCESS] = "SUCCESS",
    [ST_SUCCESSFUL] = "SUCCESSFUL",
    [ST_FAILED] = "FAILED",
    [ST_CANCELLED] = "CANCELLED",
    [ST_GONE] = "GONE",
};

static const char *const event_names[EV_COUNT] = {
    [EV_WRITE] = "write",
    [EV_RENAME] = "rename",
    [EV_UNLINK] = "unlink",
    [EV_RMDIR] = "rmdir",
    [EV_SETTLE] = "settle",
    [EV_FETCH] = "fetch",
    [EV_DONE] = "done",
    [EV_ERROR] = "error",
    [EV_WAIT] = "wait",
    [EV_START] = "start",
    [EV_FINETUNE] = "finetune",
    [EV_EXPORT] = "export",
    [EV_SERVE] = "serve",
    [EV_SCORE] = "score",
    [EV_LOST] = "worker lost",
    [EV_NONE_WELL] = "none_well",
    [EV_ALL_CANCELLED] = "all_cancelled",
    [EV_PAUSE] = "pause",
    [EV_RESUME] = "resume",
    [EV_CANCEL] = "cancel",
    [EV_STOP] = "stop",
    [EV_RETRY] = "retry",
};

static const char *const machine_names[M_COUNT] = {
    "dataset", "spec", "plugin", "base", "tuned", "service", "experiment", "job", "finetune", "compare",
};

#define BIT(s)   (1u << (s))
#define TAKEN    (BIT(ST_NONE) | BIT(ST_RECEIVING) | BIT(ST_READY) | BIT(ST_REJECTED)) /* of a spec */
#define CHECKED  (TAKEN | BIT(ST_CHECKING))                                            /* of a folder */
#define RECEIVED (CHECKED | BIT(ST_FETCHING))                                          /* of a dataset */
#define RUNS     (BIT(ST_PENDING) | BIT(ST_FINETUNE) | BIT(ST_EXPORT) | BIT(ST_SERVE) | BIT(ST_SCORE))

static const struct row {
    enum machine machine;
    unsigned from; /* set of states */
    enum event ev;
    enum state to;
} table[] = {
    {M_DATASET, RECEIVED, EV_WRITE, ST_RECEIVING},
    {M_DATASET, RECEIVED, EV_RENAME, ST_RECEIVING},
    {M_DATASET, RECEIVED & ~BIT(ST_NONE), EV_UNLINK, ST_RECEIVING},
    {M_DATASET, RECEIVED & ~BIT(ST_NONE), EV_RMDIR, ST_GONE},
    {M_DATASET, BIT(ST_RECEIVING), EV_SETTLE, ST_CHECKING},
    {M_DATASET, BIT(ST_RECEIVING), EV_FETCH, ST_FETCHING},
    {M_DATASET, BIT(ST_FETCHING), EV_DONE, ST_CHECKING},
    {M_DATASET, BIT(ST_CHECKING), EV_DONE, ST_READY},
    {M_DATASET, BIT(ST_RECEIVING) | BIT(ST_FETCHING) | BIT(ST_CHECKING), EV_ERROR, ST_REJECTED},

    {M_SPEC, TAKEN, EV_WRITE, ST_RECEIVING},
    {M_SPEC, TAKEN, EV_RENAME, ST_RECEIVING},
    {M_SPEC, TAKEN & ~BIT(ST_NONE), EV_UNLINK, ST_GONE},
    {M_SPEC, BIT(ST_RECEIVING), EV_DONE, ST_READY},
    {M_SPEC, BIT(ST_RECEIVING), EV_ERROR, ST_REJECTED},

    {M_PLUGIN, CHECKED, EV_WRITE, ST_RECEIVING},
    {M_PLUGIN, CHECKED, EV_RENAME, ST_RECEIVING},
    {M_PLUGIN, CHECKED & ~BIT(ST_NONE), EV_UNLINK, ST_RECEIVING},
    {M_PLUGIN, CHECKED & ~BIT(ST_NONE), EV_RMDIR, ST_GONE},
    {M_PLUGIN, BIT(ST_RECEIVING), EV_SETTLE, ST_CHECKING},
    {M_PLUGIN, BIT(ST_CHECKING), EV_DONE, ST_READY},
    {M_PLUGIN, BIT(ST_RECEIVING) | BIT(ST_CHECKING), EV_ERROR, ST_REJECTED},

    {M_BASE, CHECKED, EV_WRITE, ST_RECEIVING},
    {M_BASE, CHECKED, EV_RENAME, ST_RECEIVING},
    {M_BASE, CHECKED & ~BIT(ST_NONE), EV_UNLINK, ST_RECEIVING},
    {M_BASE, CHECKED & ~BIT(ST_NONE), EV_RMDIR, ST_GONE},
    {M_BASE, BIT(ST_RECEIVING), EV_SETTLE, ST_CHECKING},
    {M_BASE, BIT(ST_CHECKING), EV_DONE, ST_READY},
    {M_BASE, BIT(ST_RECEIVING) | BIT(ST_CHECKING), EV_ERROR, ST_REJECTED},

    {M_TUNED, BIT(ST_NONE) | BIT(ST_READY), EV_DONE, ST_READY},
    {M_TUNED, BIT(ST_READY), EV_RMDIR, ST_GONE},

    {M_SERVICE, BIT(ST_NONE) | BIT(ST_PENDING) | BIT(ST_RUNNING) | BIT(ST_FAILED) | BIT(ST_REJECTED),
     EV_WRITE, ST_PENDING},
    {M_SERVICE, BIT(ST_STOPPED), EV_WRITE, ST_STOPPED},
    {M_SERVICE, BIT(ST_PENDING), EV_START, ST_RUNNING},
    {M_SERVICE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_WAIT, ST_PENDING},
    {M_SERVICE, BIT(ST_PENDING) | BIT(ST_STOPPED) | BIT(ST_REJECTED), EV_ERROR, ST_REJECTED},
    {M_SERVICE, BIT(ST_RUNNING) | BIT(ST_FAILED), EV_ERROR, ST_FAILED},
    {M_SERVICE, BIT(ST_PENDING) | BIT(ST_RUNNING) | BIT(ST_FAILED), EV_STOP, ST_STOPPED},
    {M_SERVICE, BIT(ST_STOPPED) | BIT(ST_FAILED), EV_RESUME, ST_PENDING},
    {M_SERVICE, BIT(ST_PENDING) | BIT(ST_RUNNING) | BIT(ST_STOPPED) | BIT(ST_FAILED) | BIT(ST_REJECTED),
     EV_RMDIR, ST_GONE},

    {M_EXPERIMENT, BIT(ST_NONE) | BIT(ST_RECEIVING) | BIT(ST_REJECTED), EV_WRITE, ST_RECEIVING},
    {M_EXPERIMENT, BIT(ST_RECEIVING), EV_ERROR, ST_REJECTED},
    {M_EXPERIMENT, BIT(ST_RECEIVING) | BIT(ST_REJECTED), EV_UNLINK, ST_GONE},
    {M_EXPERIMENT, BIT(ST_RECEIVING), EV_SETTLE, ST_PENDING},
    {M_EXPERIMENT, BIT(ST_PENDING), EV_WAIT, ST_PENDING},
    {M_EXPERIMENT, BIT(ST_PENDING), EV_START, ST_PROCESSING},
    {M_EXPERIMENT, BIT(ST_PROCESSING) | BIT(ST_PAUSED), EV_DONE, ST_SUCCESS},
    {M_EXPERIMENT, BIT(ST_PROCESSING) | BIT(ST_PAUSED), EV_NONE_WELL, ST_FAILED},
    {M_EXPERIMENT, BIT(ST_PROCESSING) | BIT(ST_PAUSED), EV_ALL_CANCELLED, ST_CANCELLED},
    {M_EXPERIMENT, BIT(ST_PENDING) | BIT(ST_PROCESSING), EV_PAUSE, ST_PAUSED},
    {M_EXPERIMENT, BIT(ST_PAUSED), EV_RESUME, ST_PENDING},
    {M_EXPERIMENT, BIT(ST_PENDING) | BIT(ST_PROCESSING) | BIT(ST_PAUSED), EV_CANCEL, ST_CANCELLED},
    {M_EXPERIMENT, BIT(ST_SUCCESS) | BIT(ST_FAILED) | BIT(ST_CANCELLED), EV_RETRY, ST_PENDING},
    {M_EXPERIMENT,
     BIT(ST_RECEIVING) | BIT(ST_REJECTED) | BIT(ST_PENDING) | BIT(ST_PROCESSING) | BIT(ST_PAUSED) |
         BIT(ST_SUCCESS) | BIT(ST_FAILED) | BIT(ST_CANCELLED),
     EV_RMDIR, ST_GONE},

    {M_JOB, BIT(ST_NONE), EV_WRITE, ST_INIT},
    {M_JOB, BIT(ST_INIT), EV_START, ST_PENDING},
    {M_JOB, RUNS, EV_FINETUNE, ST_FINETUNE},
    {M_JOB, RUNS, EV_EXPORT, ST_EXPORT},
    {M_JOB, RUNS, EV_SERVE, ST_SERVE},
    {M_JOB, RUNS, EV_SCORE, ST_SCORE},
    {M_JOB, RUNS, EV_DONE, ST_SUCCESSFUL},
    {M_JOB, RUNS | BIT(ST_INIT), EV_ERROR, ST_FAILED},
    {M_JOB, RUNS, EV_LOST, ST_PENDING},
    {M_JOB, RUNS, EV_PAUSE, ST_PAUSED},
    {M_JOB, BIT(ST_PAUSED), EV_RESUME, ST_PENDING},
    {M_JOB, RUNS | BIT(ST_INIT) | BIT(ST_PAUSED), EV_CANCEL, ST_CANCELLED},
    {M_JOB, BIT(ST_FAILED) | BIT(ST_CANCELLED), EV_RETRY, ST_PENDING},

    {M_FINETUNE, BIT(ST_NONE), EV_WRITE, ST_INIT},
    {M_FINETUNE, BIT(ST_INIT), EV_START, ST_PENDING},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_FINETUNE, ST_RUNNING},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_EXPORT, ST_SUCCESSFUL},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_SERVE, ST_SUCCESSFUL},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_SCORE, ST_SUCCESSFUL},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_DONE, ST_SUCCESSFUL},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_LOST, ST_PENDING},
    {M_FINETUNE, BIT(ST_PENDING) | BIT(ST_RUNNING), EV_PAUSE, ST_PENDING},
    {M_FINETUNE, BIT(ST_INIT) | BIT(ST_PENDING) | BIT(ST_RUNNING), EV_ERROR, ST_FAILED},
    {M_FINETUNE, BIT(ST_INIT) | BIT(ST_PENDING) | BIT(ST_RUNNING), EV_CANCEL, ST_FAILED},
    {M_FINETUNE, BIT(ST_FAILED), EV_RETRY, ST_PENDING},

    {M_COMPARE,
     BIT(ST_NONE) | BIT(ST_RECEIVING) | BIT(ST_PENDING) | BIT(ST_ANSWERING) | BIT(ST_DONE) | BIT(ST_FAILED),
     EV_WRITE, ST_RECEIVING},
    {M_COMPARE,
     BIT(ST_NONE) | BIT(ST_RECEIVING) | BIT(ST_PENDING) | BIT(ST_ANSWERING) | BIT(ST_DONE) | BIT(ST_FAILED),
     EV_RENAME, ST_RECEIVING},
    {M_COMPARE, BIT(ST_RECEIVING), EV_SETTLE, ST_PENDING},
    {M_COMPARE, BIT(ST_PENDING), EV_START, ST_ANSWERING},
    {M_COMPARE, BIT(ST_PENDING) | BIT(ST_ANSWERING), EV_WAIT, ST_PENDING},
    {M_COMPARE, BIT(ST_ANSWERING), EV_DONE, ST_DONE},
    {M_COMPARE, BIT(ST_RECEIVING) | BIT(ST_PENDING) | BIT(ST_ANSWERING), EV_ERROR, ST_FAILED},
    {M_COMPARE, BIT(ST_RECEIVING) | BIT(ST_PENDING) | BIT(ST_ANSWERING) | BIT(ST_DONE) | BIT(ST_FAILED),
     EV_RMDIR, ST_GONE},
};

int state_next(enum machine m, enum state from, enum event ev)
{
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].machine == m && table[i].ev == ev && (table[i].from & BIT(from)))
            return (int)table[i].to;
    return -1;
}

const char *state_name(enum state s)
{
    return (unsigned)s < ST_COUNT ? state_names[s] : "?";
}

int state_by_name(const char *name)
{
    for (int i = 0; i < ST_COUNT; i++)
        if (name && strcmp(state_names[i], name) == 0)
            return i;
    return -1;
}

const char *event_name(enum event e)
{
    return (unsigned)e < EV_COUNT ? event_names[e] : "?";
}

const char *machine_name(enum machine m)
{
    return (unsigned)m < M_COUNT ? machine_names[m] : "?";
}

bool state_is_end(enum state s)
{
    return s == ST_SUCCESS || s == ST_SUCCESSFUL || s == ST_FAILED || s == ST_CANCELLED;
}
