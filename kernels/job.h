/* A LoRA job: its adapter and optimizer state on the device, and where it stands. */
#ifndef DTX_JOB_H
#define DTX_JOB_H

#include "kernels/model.h"

/* A piece of a window that goes through the model in one pass: `n` of the window's rows from `first`. */
struct chunk {
    uint32_t first, n;
};

/* The rows of one optimizer step.  What a row trains on ends at its last label: later tokens are left out. */
struct window {
    uint32_t epoch;
    uint32_t *rows, n;
    struct chunk *chunks; /* rows without labels are in none */
    uint32_t n_chunks;
    uint32_t tokens, label_tokens;
};

struct dtx_job {
    struct dtx_base *base;
    struct dtx_train_params params;
    const struct dtx_rows *rows;
    struct dtx_job_size size;
    int64_t total_steps, steps_per_epoch, warmup;
    size_t n;             /* floats of the adapter */
    float *w, *g, *m, *v; /* device [n]; m, v NULL for SGD */
    int64_t steps;        /* optimizer steps done, skipped ones too */
    int64_t updates;      /* applied: the t of Adam */
    int64_t skipped;      /* windows without labels */
    uint32_t *order;      /* [rows->n] of order_epoch */
    int64_t order_epoch;  /* -1: none yet */
    char key[65];         /* SHA-256 of params, rows and the base's shape: what a saved state belongs to */
};

/* schedule.c */
int64_t schedule_steps_per_epoch(const struct dtx_train_params *p, uint32_t n_rows);
int64_t schedule_total(const struct dtx_train_params *p, uint32_t n_rows);
int64_t schedule_warmup(const struct dtx_train_params *p, int64_t total);
double schedule_lr(const struct dtx_train_params *p, int64_t step, int64_t total, int64_t warmup);

/* window.c */
/* Tokens of row i that go through the model: up to, not with, its last label; 0: it has none. */
uint32_t row_trained(const struct dtx_rows *rows, uint32_t i);
uint32_t row_labels(const struct dtx_rows *rows, uint32_t i);
int window_make(struct dtx_job *j, int64_t step, struct window *w, struct dtx_err *e);
void window_release(struct window *w);
/* Rows of the largest pass, padded, over the whole data set in any order (an upper bound). */
int largest_chunk(const struct dtx_train_params *p, const struct dtx_rows *rows);

struct op_adapter job_op(const struct dtx_job *j, bool grad);

#endif
