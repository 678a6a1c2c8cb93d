/*
 * What the engine says of a model, for oracle.py to hold against transformers + PEFT.
 *
 *   oracle MODEL_DIR DEVICE OUT_DIR      trains a short LoRA run on random rows, exports the adapter to
 * OUT_DIR/adapter, and writes OUT_DIR/oracle.json: the rows, the negative log likelihood of each by the base
 * and by the tuned model, the losses of the run, and greedy continuations by the tuned model.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "kernels/dtx_engine.h"
#include "kernels/rng.h"

enum { ROWS = 8, LEN = 160, STEPS = 20, PROMPT = 32, NEW = 24 };

static int stop(const char *what, const struct dtx_err *e)
{
    fprintf(stderr, "%s: %s\n", what, e->msg);
    return 1;
}

static int print_nll(FILE *f, const char *name, struct dtx_base *b, const struct dtx_adapter *a,
                     const struct dtx_rows *rows, struct dtx_err *e)
{
    fprintf(f, ",\n\"%s\":[", name);
    for (uint32_t i = 0; i < rows->n; i++) {
        uint64_t start[2] = {0, LEN}, labels;
        struct dtx_rows one = {rows->ids + rows->start[i], rows->labels + rows->start[i], start, 1};
        double nll;
        int rc = dtx_eval_rows(b, a, &one, &nll, &labels, e);
        if (rc)
            return rc;
        fprintf(f, "%s%.6f", i ? "," : "", nll);
    }
    fprintf(f, "]");
    return 0;
}

static int print_greedy(FILE *f, struct dtx_base *b, const struct dtx_adapter *a,
                        const struct dtx_tokenizer *t, const struct dtx_rows *rows, struct dtx_err *e)
{
    struct dtx_sampling s = {.max_new_tokens = NEW, .top_p = 1};
    struct dtx_seq *seqs[ROWS];
    int rc = 0;
    for (int i = 0; i < ROWS && rc == 0; i++)
        rc = dtx_seq_new(b, a, t, rows->ids + rows->start[i], PROMPT, &s, &seqs[i], e);
    for (int k = 0; k < NEW && rc == 0; k++)
        rc = dtx_seq_step(b, seqs, ROWS, e);
    fprintf(f, ",\n\"greedy\":[");
    for (int i = 0; i < ROWS && rc == 0; i++) {
        size_t n;
        const int32_t *ids = dtx_seq_tokens(seqs[i], &n);
        fprintf(f, "%s[", i ? "," : "");
        for (size_t k = 0; k < n; k++)
            fprintf(f, "%s%d", k ? "," : "", ids[k]);
        fprintf(f, "]");
        dtx_seq_free(seqs[i]);
    }
    fprintf(f, "]");
    return rc;
}

int main(int argc, char **argv)
{
    struct dtx_device *d;
    struct dtx_base *b;
    struct dtx_tokenizer *t;
    struct dtx_job *j;
    struct dtx_adapter *a;
    struct dtx_step_result r;
    struct dtx_err e;
    char path[4096];

    if (argc != 4)
        return fprintf(stderr, "usage: oracle MODEL_DIR DEVICE OUT_DIR\n"), 2;
    if (dtx_device_open(argv[2], 0, &d, &e) || dtx_base_load(d, AT_FDCWD, argv[1], &b, &e) ||
        dtx_tokenizer_load(AT_FDCWD, argv[1], &t, &e))
        return stop("model", &e);
    int32_t ids[ROWS * LEN], labels[ROWS * LEN], vocab = dtx_base_config(b)->vocab;
    uint64_t start[ROWS + 1];
    for (int i = 0; i < ROWS * LEN; i++) {
        ids[i] = 3 + (int32_t)(rng_double(5, (uint64_t)i) * (vocab - 3));
        labels[i] = i % LEN < LEN / 4 ? -100 : ids[i];
    }
    for (uint64_t i = 0; i <= ROWS; i++)
        start[i] = i * LEN;
    struct dtx_rows rows = {ids, labels, start, ROWS};
    struct dtx_train_params p = {.schedule = DTX_CONSTANT,
                                 .optimizer = DTX_ADAMW,
                                 .learning_rate = 1e-3,
                                 .max_grad_norm = 1,
                                 .max_steps = STEPS,
                                 .batch_size = 4,
                                 .grad_acc_steps = 1,
                                 .block_size = LEN,
                                 .rank = 8,
                                 .alpha = 16,
                                 .targets = (1u << DTX_TARGETS) - 1,
                                 .seed = 3};
    snprintf(path, sizeof path, "%s/adapter", argv[3]);
    mkdir(argv[3], 0755);
    mkdir(path, 0755);
    if (dtx_job_new(b, &p, &rows, AT_FDCWD, NULL, &j, &e))
        return stop("job", &e);
    snprintf(path, sizeof path, "%s/oracle.json", argv[3]);
    FILE *f = fopen(path, "w");
    if (!f)
        return perror(path), 1;
    fprintf(f, "{\"losses\":[");
    for (int s = 0; s < STEPS; s++) {
        if (dtx_train_step(b, &j, 1, &r, &e))
            return stop("step", &e);
        fprintf(f, "%s%.6f", s ? "," : "", r.loss);
    }
    fprintf(f, "],\n\"rows\":[");
    for (int i = 0; i < ROWS * LEN; i++)
        fprintf(f, "%s%d", i ? "," : "", ids[i]);
    fprintf(f, "],\n\"length\":%d,\"masked\":%d,\"prompt\":%d", LEN, LEN / 4, PROMPT);
    snprintf(path, sizeof path, "%s/adapter", argv[3]);
    if (dtx_job_export(j, AT_FDCWD, path, argv[1], &e) || dtx_adapter_from_job(j, &a, &e) ||
        print_nll(f, "nll_base", b, NULL, &rows, &e) || print_nll(f, "nll_tuned", b, a, &rows, &e) ||
        print_greedy(f, b, a, t, &rows, &e))
        return stop("oracle", &e);
    fprintf(f, "}\n");
    fclose(f);
    dtx_adapter_free(a);
    dtx_job_free(j);
    dtx_tokenizer_free(t);
    dtx_base_free(b);
    dtx_device_close(d);
    return 0;
}
