/*
 * A job of this worker: the fine-tuning of one adapter, or the score of an untuned base.
 *
 *   PREPARE --> WAIT --> TRAIN <--> EVAL --> EXPORT --> SERVE --> SCORE --> (SUCCESSFUL)
 *                 \________________________________________________/  a score spec: WAIT -> SERVE -> SCORE
 *   anything --> (FAILED | CANCELLED | PAUSED)
 *
 *   PREPARE  job_prepare.c  a thread: check the dataset's sum, write token caches and questions into work_dir
 *   WAIT     job_start.c    for the base model and for memory, by plan; then the engine's job, new or
 * restored TRAIN    job_train.c    the loop makes the steps; job_after_step takes each result EVAL
 * job_train.c    loss on the validation rows, a slice a turn EXPORT   job_export.c   checkpoint/ and
 * tuned_dir, durable SERVE    job_score.c    the exported adapter is loaded as for serving SCORE job_score.c
 * answers, metrics, perplexity, score.json
 *
 * Going on after a crash: work_dir/state.json (job_state.c) names the engine's saved state and holds what the
 * loop itself must remember; the two are one generation, replaced by one rename.  metrics.csv is synced
 * before and cut back to the saved step.  Phases after TRAIN are simply done again: they give the same files.
 */
#ifndef DTX_WORKER_JOB_H
#define DTX_WORKER_JOB_H

#include <math.h>
#include <pthread.h>

#include "scheduler/data/data.h"
#include "scheduler/worker/bases.h"

enum job_phase { JP_PREPARE, JP_WAIT, JP_TRAIN, JP_EVAL, JP_EXPORT, JP_SERVE, JP_SCORE, JP_OVER };

enum job_pace { PACE_STEPS, PACE_PERCENT, PACE_EPOCH };
struct job_every { /* "10%", "epoch", or a number of steps */
    enum job_pace pace;
    double n;
};

enum { SAVE_AFTER_SECONDS = 30 };
struct job_spec { /* strings are borrowed from `json` */
    json_t *json;
    const char *id, *experiment, *job, *base_name, *base_dir, *init_dir, *dataset, *dataset_dir, *dataset_sha;
    const char *job_dir, *work_dir, *tuned_dir, *template_name;
    const json_t *dataset_spec, *evaluation;
    const char *evaluation_dataset_dir;
    const json_t *evaluation_dataset_spec;
    struct dtx_train_params params;
    struct job_every save_every, eval_every;
    int patience; /* 0: no early stopping */
    double min_delta;
    int64_t save_after; /* save early once it is past this step, -1: no hurry; after so many seconds */
    double save_after_s;
    uid_t uid;
    gid_t gid;
    bool score_only;
};

/* job_spec.c.  Keeps a reference of body's spec. */
int job_spec_parse(struct job_spec *s, const json_t *body, bool score_only, struct dtx_err *e);
void job_spec_release(struct job_spec *s);
int64_t job_every_steps(const struct job_every *every, int64_t per_epoch, int64_t total);

struct job_questions { /* what a SCORE asks: rows whose last turn is the reference */
    struct data_row *v;
    size_t n, cap;
};
int questions_add(struct job_questions *q, const struct data_row *row, struct dtx_err *e); /* copies */
void questions_release(struct job_questions *q);
/* The questions of an evaluation, from its list or its dataset (of a file "questions.json" when that is
 * there). */
int questions_make(int store, const struct job_spec *s, struct job_questions *q, struct dtx_err *e);

struct prepare { /* result of a prepare thread; until it is joined it belongs to the thread */
    pthread_t thread;
    bool started, ended; /* ended: atomic */
    int store, wake;
    const struct job_spec *spec;
    struct dtx_model_config config;
    struct token_cache train, validation;
    int block_size; /* of the spec, but no more than the model's positions */
    bool has_validation;
    struct job_questions questions;
    json_t *base_sums; /* file -> SHA-256 */
    int rc;
    struct dtx_err error;
};

struct job_loop { /* what the loop remembers across a restart (state.json) */
    int64_t step, last_eval_step, best_step;
    double loss, eval_loss, best_eval; /* NAN: none */
    int bad_evals;                     /* evaluations since the best */
    double seconds;
    uint64_t tokens;
    bool trained; /* no more steps: done, stopped early or by a user */
};

struct score_run;

struct job {
    struct job *next;
    struct job_spec spec;
    enum job_phase phase;
    struct prepare prep;
    bool prepared;            /* the thread was joined and was successful */
    bool stop;                /* end training now */
    bool held;                /* dtxd was told that the dataset is free */
    bool never;               /* it fails because it does not fit on this device */
    struct dtx_job_size size; /* for the memory plan */
    uint64_t base_signature;  /* when preparation began */
    char why[512];            /* the reason last sent with PENDING */
    uint64_t why_planned;     /* what was promised to others then */
    int64_t retry_ns;         /* not before: WAIT after an allocation failed */

    struct base_entry *base;
    struct dtx_job *train;
    struct adapter_entry *adapter;
    struct job_loop loop;
    int64_t total, per_epoch, save_steps, eval_steps;
    int log_fd, metrics_fd;
    struct buf metrics; /* rows not yet written */
    int64_t metrics_ns, progress_ns, saved_ns, step_ns;
    int64_t state_generation, saved_step;
    int save_failures;
    double tokens_per_s, step_s; /* smoothed */
    struct dtx_step_result last;
    bool row_open; /* last has no row in metrics.csv yet */

    struct dtx_adapter *eval_adapter;
    uint32_t eval_row;
    double eval_nll;
    uint64_t eval_labels;

    struct score_run *score;
    json_t *result;
    int64_t started_ns; /* wall clock */
};

/* jobs.c: the list, messages and the state machine */
void job_message(struct worker *w, const json_t *body, bool score_only);
void job_stop_message(struct worker *w, const json_t *body);
void jobs_turn(struct worker *w);  /* everything but training steps */
void jobs_train(struct worker *w); /* one step of all jobs of each base */
void jobs_save_all(struct worker *w);
void jobs_release(struct worker *w);
int jobs_active(const struct worker *w);
bool jobs_training(const struct worker *w);
bool jobs_preparing(const struct worker *w);
void job_fail(struct worker *w, struct job *j, const struct dtx_err *e);
void job_end(struct worker *w, struct job *j, const char *state, const char *reason, json_t *result);
void job_phase(struct worker *w, struct job *j, enum job_phase phase);

/* job_prepare.c */
int prepare_start(struct worker *w, struct job *j, struct dtx_err *e);
bool prepare_ended(struct job *j); /* and joined */
void prepare_release(struct prepare *p);

/* group.c: the memory of the jobs that train together on a base */
/* Room for j beside those that train on b: takes the shared workspace.  -EAGAIN: not now, in words. */
int group_join(struct worker *w, struct base_entry *b, const struct job *j, struct dtx_err *e);
void group_leave(struct worker *w, struct base_entry *b); /* a job has gone: plan for the others */
/* -ENOMEM with numbers if the job does not fit alone on this device. */
int group_never(const struct worker *w, const struct job *j, struct dtx_err *e);

/* job_start.c */
void job_try_start(struct worker *w, struct job *j);

/* job_train.c */
void job_after_step(struct worker *w, struct job *j, const struct dtx_step_result *r);
void job_eval_slice(struct worker *w, struct job *j);
void job_stop_training(struct worker *w, struct job *j);
void job_progress(struct worker *w, struct job *j, const char *phase, uint64_t done, uint64_t of);

/* job_state.c */
int job_state_load(struct worker *w, struct job *j, char *file, size_t n,
                   struct dtx_err *e); /* -ENOENT: none */
int job_state_save(struct worker *w, struct job *j, struct dtx_err *e);
void job_loop_init(struct job_loop *l);

/* job_files.c */
int job_files_open(struct worker *w, struct job *j, struct dtx_err *e);
void job_files_close(struct job *j);
void job_log(struct job *j, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void metrics_add(struct job *j, const struct dtx_step_result *r, double eval_loss, double tokens_per_s);
int metrics_flush(struct job *j, bool sync, struct dtx_err *e);
int metrics_cut(struct job *j, int64_t step, struct dtx_err *e); /* drop rows after step */
int job_write_json(struct worker *w, struct job *j, const char *path, const json_t *v, struct dtx_err *e);
int job_chown(struct worker *w, const struct job *j, const char *path);
int job_provenance(struct worker *w, struct job *j, struct dtx_err *e);

/* job_export.c */
int job_export(struct worker *w, struct job *j, struct dtx_err *e);
int job_export_result(struct worker *w, struct job *j,
                      struct dtx_err *e); /* info.json and score.json of tuned_dir */

/* job_score.c */
int score_begin(struct worker *w, struct job *j, struct dtx_err *e);
void score_turn(struct worker *w, struct job *j);
void score_release(struct job *j);

#endif
