/*
 * Messages between dtxd and a dtx-worker: a stream socketpair (the worker's is descriptor 3); each message is
 * a header and one JSON object.  proto.c holds the table of which message is allowed in which state.
 *
 *   dtxd -> worker
 *   job_start  {"id":"EXP/JOB","spec":{...}}         see job spec below; several may run on one base together
 *   job_stop   {"id","how":"cancel"|"stop"|"pause"}  stop: end training now, export and score what there is
 *   score      {"id":"EXP/base:MODEL","spec":{...}}  the untuned base's row: no training, only SCORE
 *   ask
 * {"id":N,"base":DIR,"adapter":DIR|null,"system","prompt","max_new_tokens","temperature","top_p","top_k",
 *               "seed","template"}                    DIR relative to STORE; template: of info.json when left
 * out ask_cancel {"id":N} quit       {}                                     save every job, then end
 *
 *   worker -> dtxd
 *   hello      {"device","name","mem_total","mem_used","threads","fingerprint","pid"}
 *   job_state
 * {"id","state":"PENDING|FINETUNE|EXPORT|SERVE|SCORE|SUCCESSFUL|FAILED|PAUSED|CANCELLED","reason",
 *               "result":{...},"waits":true,"never":true}
 *              result with SUCCESSFUL: see below; waits with PENDING: it does not fit beside what runs now;
 *              never with FAILED: this device is too small for it; reason has the numbers
 *   job_held   {"id","dataset":false}                 the token cache is made: the dataset is no longer
 * needed progress
 * {"id","step","total","epoch","loss","eval_loss"|null,"lr","grad_norm","tokens_per_s","eta_s","memory",
 *               "phase":"train|eval|score","done":n,"of":n}      at most every 0.5 s a job
 *   saved      {"id","step"}                          a save is durable up to that step
 *   answer     {"id":N,"text","prompt_tokens","new_tokens","ttft_s","total_s","tokens_per_s","together",
 *               "finish":"stop|length","error":null|WORDS}
 *   device     {"mem_used","mem_usable","mem_planned","mem_others","base":NAME|null,"bases":[NAME],
 *               "jobs":n,"tokens_per_s","asks":n}     every second
 *              base: the one loaded last; bases: all in memory; mem_usable: what DTX may use now;
 *              mem_planned: promised of that; mem_others: used by other programs
 *   log        {"text"}
 *
 *   Job spec:
 * {"experiment","job","base":NAME,"base_dir":"tree/models/base/NAME","init_dir":"tree/models/tuned/X"|null,
 *     "dataset":NAME,"dataset_dir":"tree/datasets/NAME","dataset_spec":{normalized},"dataset_sha256",
 *     "paramgroup":{normalized},"paramgroup_name","seed","evaluation":{normalized}|null,"evaluation_name",
 *     "evaluation_dataset_dir":DIR|null,"evaluation_dataset_spec":{}|null,
 *     "early_stopping":{"patience":n,"min_delta":x}|null,"job_dir":"tree/experiments/EXP/jobs/JOB",
 *     "work_dir":"work/EXP/JOB","tuned_dir":"tree/models/tuned/EXP.JOB","uid","gid","save_after":step|absent}
 *   save_after: its worker died there; it is saved once it is past that and has trained for save_after_s
 *   seconds (30), and then need not run alone any more
 *   A score spec has the same keys less dataset, paramgroup, init_dir, tuned_dir; "job" is "base:MODEL"; its
 * score.json goes to work_dir. result:
 * {"score":x|null,"metrics":{...},"eval_loss":x|null,"perplexity":x|null,"loss":x,"steps":n,"seconds":x,
 *     "tokens":n,"tokens_per_s":x,"trainable":n}
 *
 *   Files that a worker writes in job_dir: log, metrics.csv, score.json, provenance.json, checkpoint/ (and
 * the same files hard-linked in tuned_dir, with info.json and score.json); in work_dir: state.json and the
 * state.N that it names (dtx_job_save), prepared.json, token caches, questions.json.  A job_start for a job
 * whose work_dir has a state goes on from it (and needs the dataset no more); metrics.csv is cut back to the
 * saved step first. score.json:
 * {"score","metrics","perplexity","evaluation","job","base","questions":n,"weights","items":[{"question",
 *     "answer","reference","metrics","score","messages" (when
 * longer),"prompt_tokens","new_tokens","finish","error"}]} A stop before the first step gives FAILED: there
 * is nothing to export.
 */
#ifndef DTX_PROTO_H
#define DTX_PROTO_H

#include <jansson.h>
#include <stdint.h>
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

enum { PROTO_VERSION = 1, PROTO_MAX_MESSAGE = 16 << 20, PROTO_WORKER_FD = 3 };

enum proto_type {
    PM_JOB_START = 1,
    PM_JOB_STOP,
    PM_SCORE,
    PM_ASK,
    PM_ASK_CANCEL,
    PM_QUIT,
    PM_HELLO = 32,
    PM_JOB_STATE,
    PM_JOB_HELD,
    PM_PROGRESS,
    PM_SAVED,
    PM_ANSWER,
    PM_DEVICE,
    PM_LOG,
    PM_MAX
};

struct proto_header { /* native byte order: both ends are one build */
    uint32_t magic;   /* "DTXM" */
    uint16_t version, type;
    uint32_t length; /* of the JSON text that follows, without NUL */
};

enum proto_side { PROTO_DAEMON, PROTO_WORKER }; /* the side that *receives* */

/* Append a framed message to *out (body may be NULL: {}). */
int proto_put(struct buf *out, enum proto_type type, const json_t *body, struct dtx_err *e);
/* Take one whole message off the front of *in.  1: got one (*type, *body a new reference), 0: not there yet,
 * negative: broken stream (bad magic, version, length, JSON, or a type that this side must not receive). */
int proto_take(struct buf *in, enum proto_side side, enum proto_type *type, json_t **body, struct dtx_err *e);
const char *proto_type_name(enum proto_type t);

#endif
