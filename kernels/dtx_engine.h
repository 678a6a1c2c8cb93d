/*
 * The engine: models, tokenizers, LoRA training of many jobs on one base, and generation.
 *
 * This is the one header of kernels/ that others include.  A process opens one device, loads one base model
 * on it, and runs any number of LoRA jobs and generations on that base together.  Nothing here is
 * thread-safe: one thread drives a device (the operations use `threads` threads inside).
 *
 * Promise of every function that computes: a job's (or sequence's) numbers depend on its own spec, data and
 * base alone: not on its neighbours in a shared step, on the number of threads, on what ran before, or on a
 * save and restore in between.  Equal to the byte.
 *
 * Errors: 0 or negative errno with words in *e (may be NULL).  -ENOMEM: does not fit.  -EINVAL: bad input.
 * Ownership: X_new/X_load/X_open give an object that X_free/X_close takes; inputs stay the caller's.
 */
#ifndef DTX_ENGINE_H
#define DTX_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

/* ---------------------------------------------------------------- devices */

struct dtx_device;

struct dtx_device_info {
    char name[96];         /* "cpu: Intel(R) Xeon(R)", "cuda:0 NVIDIA H100 80GB HBM3" */
    char fingerprint[256]; /* build, library versions and device type: equal fingerprints give equal bytes */
    uint64_t mem_total, mem_used; /* bytes; used by whom ever */
    uint64_t mem_own;             /* of mem_used, what this process took for models and jobs */
    int threads;                  /* CPU threads the device uses; 0 on a GPU */
};

/* kind: "cpu" or "cuda:N".  threads: for cpu, 0 = one per core. */
int dtx_device_open(const char *kind, int threads, struct dtx_device **out, struct dtx_err *e);
void dtx_device_close(struct dtx_device *d);
void dtx_device_info(const struct dtx_device *d, struct dtx_device_info *info);
/* Waits for the device.  0, or its error, which stays: nothing can be computed on it any more. */
int dtx_device_failed(const struct dtx_device *d, struct dtx_err *e);
/* How many CUDA devices this machine has (0 where there is no driver). */
int dtx_cuda_count(void);

/* ---------------------------------------------------------------- tokenizers */

struct dtx_tokenizer;

struct dtx_ids { /* token ids; ids_release frees v */
    int32_t *v;
    size_t n, cap;
};
int dtx_ids_add(struct dtx_ids *ids, int32_t id); /* -ENOMEM */
void dtx_ids_release(struct dtx_ids *ids);

/* Loads tokenizer.model (SentencePiece BPE, byte fallback) or tokenizer.json (byte-level BPE) of a model
 * folder, with tokenizer_config.json and config.json for the special tokens.  All input is checked. */
int dtx_tokenizer_load(int dirfd, const char *dir, struct dtx_tokenizer **out, struct dtx_err *e);
void dtx_tokenizer_free(struct dtx_tokenizer *t);
/* Append the ids of text (valid UTF-8 or not) to *ids, without BOS/EOS.  Text of special tokens is plain
 * text. */
int dtx_tokenizer_encode(const struct dtx_tokenizer *t, const char *text, size_t n, struct dtx_ids *ids,
                         struct dtx_err *e);
/* Append the text of n ids to *out; special tokens are left out; incomplete bytes are given as they are. */
void dtx_tokenizer_decode(const struct dtx_tokenizer *t, const int32_t *ids, size_t n, struct buf *out);
int32_t dtx_tokenizer_bos(const struct dtx_tokenizer *t);              /* -1: none */
int32_t dtx_tokenizer_eos(const struct dtx_tokenizer *t);              /* -1: none */
bool dtx_tokenizer_is_stop(const struct dtx_tokenizer *t, int32_t id); /* eos and, for Llama 3, eot/eom */
int32_t dtx_tokenizer_size(const struct dtx_tokenizer *t);
/* Id of a special token by its text ("<|eot_id|>"), -1 if there is none. */
int32_t dtx_tokenizer_special(const struct dtx_tokenizer *t, const char *text);
/* SHA-256 (hex) of the tokenizer's files: the key of a token cache. */
const char *dtx_tokenizer_sha256(const struct dtx_tokenizer *t);

/* ---------------------------------------------------------------- base models */

struct dtx_model_config {
    char arch[48]; /* "LlamaForCausalLM" */
    int layers, hidden, ffn, heads, kv_heads, head_dim, vocab, max_positions;
    float rms_eps, rope_theta;
    bool tied_head;
    bool attention_bias; /* Qwen2: q, k, v have biases */
    bool rope_llama3;    /* rope_scaling of type llama3 and its four numbers */
    float rope_factor, rope_low, rope_high;
    int rope_original;
    char dtype[8];       /* of the files: "F32", "F16", "BF16" */
    uint64_t params;     /* number of weights */
    uint64_t file_bytes; /* of all shards */
};

/* Everything that can be known without reading the weights: config.json, index and shard headers, every
 * tensor's presence, type, shape and extent, no overlaps, file lengths, tokenizer and its size against the
 * vocabulary. */
int dtx_model_check(int dirfd, const char *dir, struct dtx_model_config *config, struct dtx_err *e);

struct dtx_base; /* the frozen weights on a device; read-only, shared by all jobs */
int dtx_base_load(struct dtx_device *d, int dirfd, const char *dir, struct dtx_base **out, struct dtx_err *e);
void dtx_base_free(struct dtx_base *b);
const struct dtx_model_config *dtx_base_config(const struct dtx_base *b);
uint64_t dtx_base_bytes(const struct dtx_base *b); /* of the weights */

/* ---------------------------------------------------------------- training data */

/* Tokenized rows: row i is ids[start[i] .. start[i+1]) with labels alike; a label of -100 is not trained on.
 * labels[k] belongs to ids[k] itself (as in transformers): the model's prediction at k-1 is compared with it.
 */
struct dtx_rows {
    int32_t *ids, *labels;
    uint64_t *start; /* n + 1 offsets */
    uint32_t n;
};

/* ---------------------------------------------------------------- LoRA jobs */

enum dtx_target { DTX_Q, DTX_K, DTX_V, DTX_O, DTX_GATE, DTX_UP, DTX_DOWN, DTX_TARGETS };
extern const char *const dtx_target_names[DTX_TARGETS]; /* "q_proj", ... */

enum dtx_schedule { DTX_COSINE, DTX_LINEAR, DTX_CONSTANT };
enum dtx_optimizer { DTX_ADAMW, DTX_ADAM, DTX_SGD };

struct dtx_train_params { /* DESIGN.md section 2, "Parameter group" */
    enum dtx_schedule schedule;
    enum dtx_optimizer optimizer;
    double learning_rate, weight_decay, max_grad_norm /* 0: no clipping */, warmup_ratio;
    double epochs;
    int64_t max_steps; /* 0: by epochs */
    int batch_size, grad_acc_steps, block_size;
    int rank;
    double alpha, dropout;
    unsigned targets; /* bits 1 << enum dtx_target */
    bool rslora;
    bool shuffle; /* rows in an order keyed by (seed, epoch); false: file order */
    uint64_t seed;
};

struct dtx_job;

struct dtx_step_result {
    int64_t step;     /* optimizer steps done, counted from 1 */
    double epoch;     /* epochs done, fractional */
    double loss;      /* mean over the label tokens of the window; NAN when the window was skipped */
    double lr;        /* used by this step */
    double grad_norm; /* before clipping */
    uint32_t tokens, label_tokens; /* of the window */
    bool skipped;                  /* a window without label tokens: nothing was trained */
    bool done;                     /* that was the last step */
    int failed; /* negative errno: non-finite loss or gradient; nothing was applied; why in error */
    struct dtx_err error;
};

/* New job.  rows must live as long as the job; rows longer than block_size must have been cut before.  init:
 * folder of a PEFT adapter to go on from (its rank, alpha and targets must equal the params'), or NULL for
 * the usual A ~ U(-1/sqrt(in), 1/sqrt(in)) keyed by seed, B = 0. */
int dtx_job_new(struct dtx_base *b, const struct dtx_train_params *p, const struct dtx_rows *rows,
                int init_dirfd, const char *init, struct dtx_job **out, struct dtx_err *e);
void dtx_job_free(struct dtx_job *j);
int64_t dtx_job_total_steps(const struct dtx_job *j);
int64_t dtx_job_steps_done(const struct dtx_job *j);
int64_t dtx_job_steps_per_epoch(const struct dtx_job *j);
/* Bytes that it takes beside the base: its own, and the activations that it shares with the others. */
uint64_t dtx_job_bytes(const struct dtx_job *j);

/* One optimizer step of each of n jobs, all on b, their tokens together through each frozen product.
 * results[i] belongs to jobs[i].  A job that fails fails alone.  Negative return: the device failed (all
 * jobs). */
int dtx_train_step(struct dtx_base *b, struct dtx_job *const *jobs, int n, struct dtx_step_result *results,
                   struct dtx_err *e);

/* The whole state (adapter, optimizer moments, counters) into a file: temporary name, fsync, rename.
 * Restoring it into a job made with the same params and rows goes on exactly. */
int dtx_job_save(const struct dtx_job *j, int dirfd, const char *path, struct dtx_err *e);
int dtx_job_restore(struct dtx_job *j, int dirfd, const char *path, struct dtx_err *e);

/* PEFT folder: adapter_model.safetensors (float32) and adapter_config.json, each fsynced.  The folder exists.
 */
int dtx_job_export(const struct dtx_job *j, int dirfd, const char *dir, const char *base_name,
                   struct dtx_err *e);

/* ---------------------------------------------------------------- the memory plan
 *
 * Bytes of device memory, known before anything is allocated (plan.c).
 */

struct dtx_job_size { /* what the plan must know of a job */
    int rank;
    unsigned targets;
    bool moments, eval; /* eval: it has rows to evaluate on while it trains */
    bool dropout;
    int tokens;  /* of its largest pass */
    int longest; /* tokens of its longest row */
};
struct dtx_job_size dtx_job_size(const struct dtx_train_params *p, const struct dtx_rows *rows, bool eval);
/* What the job has to itself: adapter, gradient, moments, the copy that is evaluated. */
uint64_t dtx_job_state_bytes(const struct dtx_device *d, const struct dtx_model_config *c,
                             const struct dtx_job_size *s);

struct dtx_plan {          /* of all jobs that train on a base, together */
    int jobs, longest;     /* how many; tokens of their longest row */
    int rows, rank;        /* of the shared workspace: rows of a pack, the highest rank */
    int recompute, layers; /* layers whose activations are computed again in backward, of how many */
    bool keep;             /* outputs of norms and of swiglu, too, are kept for backward */
    bool masks;            /* what dropout kept is, for some job */
    uint64_t adapters;     /* what the jobs have to themselves */
    uint64_t activations;  /* the shared workspace */
    uint64_t scratch;      /* of operations, beyond what serving takes */
    uint64_t total;
};
/* The fastest plan of at most `budget` bytes beside the base.  -ENOSPC: none fits, *p is the smallest. */
int dtx_plan_make(const struct dtx_device *d, const struct dtx_model_config *c,
                  const struct dtx_job_size *jobs, int n, uint64_t budget, struct dtx_plan *p);
/* Takes the shared workspace as planned, between two steps; what was there before goes first.  A plan of no
 * jobs gives it back.  -ENOMEM: the device did not have it after all, and there is none now. */
int dtx_base_plan_training(struct dtx_base *b, const struct dtx_plan *p, struct dtx_err *e);

/* A base model with what serving needs beside it, before it is loaded; and what it holds now, the workspace
 * of training too. */
uint64_t dtx_base_plan(const struct dtx_device *d, const struct dtx_model_config *c);
uint64_t dtx_base_held(const struct dtx_base *b);
uint64_t dtx_base_training_bytes(const struct dtx_base *b); /* of that, the workspace of training */
struct dtx_adapter; /* a LoRA adapter on the device, for evaluation and generation */
/* An adapter loaded for serving. */
uint64_t dtx_adapter_plan(const struct dtx_device *d, const struct dtx_model_config *c, int rank,
                          unsigned targets);
uint64_t dtx_adapter_bytes(const struct dtx_adapter *a);
/* Keys and values of so many positions. */
uint64_t dtx_cache_bytes(const struct dtx_device *d, const struct dtx_model_config *c, int positions);

/* ---------------------------------------------------------------- adapters for serving */

int dtx_adapter_load(struct dtx_base *b, int dirfd, const char *dir, struct dtx_adapter **out,
                     struct dtx_err *e);
/* A copy of a job's current adapter. */
int dtx_adapter_from_job(const struct dtx_job *j, struct dtx_adapter **out, struct dtx_err *e);
void dtx_adapter_free(struct dtx_adapter *a);
/* Check a PEFT folder against a base's config without a device: sizes, names, rank. */
int dtx_adapter_check(const struct dtx_model_config *c, int dirfd, const char *dir,
                      struct dtx_train_params *p, struct dtx_err *e);

/* Sum of the negative log likelihood of the label tokens of rows, and their number.  adapter NULL: the bare
 * base. */
int dtx_eval_rows(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_rows *rows,
                  double *nll_sum, uint64_t *n_labels, struct dtx_err *e);

/* ---------------------------------------------------------------- generation */

struct dtx_sampling {
    int max_new_tokens;
    double temperature; /* 0: greedy */
    double top_p;       /* 1: off */
    int top_k;          /* 0: off */
    uint64_t seed;
};

enum dtx_finish { DTX_RUNNING, DTX_STOP /* stop token */, DTX_LENGTH /* max_new_tokens or positions */ };

struct dtx_seq; /* one sequence being generated, with its KV cache */

/* Checks sizes and reserves the cache (-ENOMEM: wait or refuse).  The adapter must outlive the sequence. */
int dtx_seq_new(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_tokenizer *t,
                const int32_t *prompt, size_t n_prompt, const struct dtx_sampling *s, struct dtx_seq **out,
                struct dtx_err *e);
/* Bytes that it will take. */
uint64_t dtx_seq_plan(const struct dtx_base *b, size_t n_prompt, const struct dtx_sampling *s);
void dtx_seq_free(struct dtx_seq *s);
/* One step of all n sequences together: a new one is prefilled and gives its first token, the others one
 * token each; finished ones are passed over. */
int dtx_seq_step(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct dtx_err *e);
enum dtx_finish dtx_seq_finish(const struct dtx_seq *s);
/* The new tokens so far (a final stop token is not among them). */
const int32_t *dtx_seq_tokens(const struct dtx_seq *s, size_t *n);

#endif
