/* Reads the golden runs of transformers + PEFT (../shared/golden/peft): for the unit test and for
 * tests/gpu/golden.c. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dtx_engine.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"

#define GOLDEN "../shared/golden/peft"
#define MODEL  "../shared/models/stories260K"

static const char *const golden_cases[] = {"all_cosine", "qv_linear", "rs_constant", "sgd_linear"};

enum { GOLDEN_TOKENS = 1 << 18, GOLDEN_ROWS = 10000 };

static inline void golden_rows_free(struct dtx_rows *r)
{
    free(r->ids);
    free(r->labels);
    free(r->start);
    *r = (struct dtx_rows){0};
}

static inline void golden_add_row(struct dtx_rows *r, const json_t *v)
{
    json_t *ids = json_object_get(v, "input_ids"), *labels = json_object_get(v, "labels");
    size_t n = json_array_size(ids);
    for (size_t i = 0; i < n; i++) {
        r->ids[r->start[r->n] + i] = (int32_t)json_integer_value(json_array_get(ids, i));
        r->labels[r->start[r->n] + i] = (int32_t)json_integer_value(json_array_get(labels, i));
    }
    r->start[r->n + 1] = r->start[r->n] + n;
    r->n++;
}

/* encoded.jsonl; the caller frees with golden_rows_free.  0 or -errno with e set. */
static inline int golden_rows(struct dtx_rows *r, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc = fd_read_file(AT_FDCWD, GOLDEN "/encoded.jsonl", GOLDEN_TOKENS * 4, &b, e);
    *r = (struct dtx_rows){
        .ids = calloc(GOLDEN_TOKENS, 4), .labels = calloc(GOLDEN_TOKENS, 4), .start = calloc(GOLDEN_ROWS, 8)};
    if (!rc && (!r->ids || !r->labels || !r->start))
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    for (char *line = rc ? NULL : strtok(b.p, "\n"); line && !rc; line = strtok(NULL, "\n")) {
        json_t *v = NULL;
        rc = json_parse_text("encoded.jsonl", line, strlen(line), &v, e);
        if (!rc)
            golden_add_row(r, v);
        json_decref(v);
    }
    buf_release(&b);
    return rc;
}

/* A file of a case, as JSON: NULL with e set. */
static inline json_t *golden_json(const char *name, const char *file, struct dtx_err *e)
{
    char path[256];
    json_t *v = NULL;
    snprintf(path, sizeof path, GOLDEN "/%s/%s", name, file);
    return json_parse_file(AT_FDCWD, path, 1 << 24, &v, e) ? NULL : v;
}

/* The parameters of a case.json. */
static inline struct dtx_train_params golden_params(const json_t *c)
{
    struct dtx_train_params p = {
        .learning_rate = json_num(c, "lr", 0),
        .weight_decay = json_num(c, "wd", 0),
        .max_grad_norm = json_num(c, "clip", 0),
        .warmup_ratio = json_num(c, "warmup_ratio", 0),
        .epochs = json_num(c, "epochs", 0),
        .batch_size = (int)json_int(c, "batch", 0),
        .grad_acc_steps = (int)json_int(c, "accum", 0),
        .block_size = 512,
        .rank = (int)json_int(c, "r", 0),
        .alpha = json_num(c, "alpha", 0),
        .rslora = json_flag(c, "rslora", 0),
        .seed = 42,
    };
    const char *s = json_str(c, "scheduler", ""), *o = json_str(c, "optimizer", "");
    p.schedule = strcmp(s, "cosine") == 0 ? DTX_COSINE : strcmp(s, "linear") == 0 ? DTX_LINEAR : DTX_CONSTANT;
    p.optimizer = strcmp(o, "sgd") == 0 ? DTX_SGD : DTX_ADAMW;
    const json_t *targets = json_object_get(c, "targets");
    for (size_t i = 0; i < json_array_size(targets); i++)
        for (int t = 0; t < DTX_TARGETS; t++)
            if (strcmp(json_string_value(json_array_get(targets, i)), dtx_target_names[t]) == 0)
                p.targets |= 1u << t;
    return p;
}

#endif
