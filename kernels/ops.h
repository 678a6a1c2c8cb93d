/*
 * The operations of the engine: what a device must do so that model code (forward.c, backward.c, step.c,
 * generate.c) runs on it.  kernels/cpu/ is the specification; kernels/cuda/ must agree with it within its
 * number formats.
 *
 * Types.  "act": activations and their gradients, ops->act_bytes each (4: float32; 2: bfloat16).  "weight":
 * frozen base weights, ops->weight_bytes each (float32 or bfloat16).  Adapters, their gradients, optimizer
 * state, softmax, logits, loss and norms: float32 or double everywhere.  Row-major matrices; [R, n] has R
 * rows of n contiguous values.
 *
 * Memory.  Every pointer below is device memory from ops->alloc, except what struct op_pack marks as host.
 * Operations run in the order called (one stream); none waits for the device but download, sync and free.  An
 * operation that cannot run (no scratch memory, a launch error) marks the device failed; sync and download
 * return that error.
 *
 * A pack: the tokens of several jobs side by side.
 *
 *      rows   0 ........ 70 |pad| 96 ....... 200 |pad| 224 ...        R = pack->rows
 *             segment 0 (job A) | segment 1 (job B)    | segment 2
 *             seq 0 | seq 1 | 2 | seq 3    | seq 4     |
 *
 * A segment is the rows of one adapter; it starts at a multiple of ops->row_align and is padded up to one.  A
 * sequence is one row of the dataset (or one prompt): attention sees only earlier tokens of its own sequence.
 * Padding rows have seq_of_row -1, id -1: embed gives zeros there, attention and head give zeros, so the
 * residual stream and all gradients of padding rows stay exactly 0; they must never become non-finite.
 *
 * THE PROMISE (row invariance).  What an operation computes for a segment depends on that segment's own rows
 * and adapter alone, bit for bit: not on R, on where the segment lies, on the other segments or on the number
 * of threads. Reductions have a fixed order; no atomics on floats.  In a decode pack (pack->decode) every row
 * is a segment of its own (row_align is 1) and depends on that row and its cache alone.  A value that is not
 * finite stays inside its segment: 0 * NaN of a neighbour is never computed.
 */
#ifndef DTX_OPS_H
#define DTX_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtx_engine.h"

/* ---------------------------------------------------------------- adapters
 *
 * An adapter is one flat float32 buffer, so that its gradient, moments, norm and update are flat too:
 *      for layer in layers: for target in enum order, if its bit is set in `targets`: A [rank, in], then B
 * [out, rank] dA and dB lie in the gradient buffer at the same places.
 */

struct lora_dims { /* of the base; the same for all adapters */
    int layers;
    int in[DTX_TARGETS], out[DTX_TARGETS];
};

struct op_adapter {
    float *w;         /* the flat buffer */
    float *g;         /* its gradient, accumulated into; NULL: forward only */
    int32_t rank;     /* 1..DTX_MAX_RANK */
    uint32_t targets; /* bits 1 << enum dtx_target */
    float scale;      /* alpha / rank, or alpha / sqrt(rank) */
    float dropout;    /* 0: none (always 0 where g is NULL) */
};

enum { DTX_MAX_RANK = 512 };

struct lora_dims lora_dims_of(const struct dtx_model_config *c); /* lora.c */

static inline size_t lora_layer_floats(const struct lora_dims *d, uint32_t targets, int rank)
{
    size_t n = 0;
    for (int t = 0; t < DTX_TARGETS; t++)
        n += targets >> t & 1 ? (size_t)rank * ((size_t)d->in[t] + (size_t)d->out[t]) : 0;
    return n;
}

static inline size_t lora_floats(const struct lora_dims *d, uint32_t targets, int rank)
{
    return (size_t)d->layers * lora_layer_floats(d, targets, rank);
}

/* Offset of A of (layer, target); B follows at + rank * in. */
static inline size_t lora_offset(const struct lora_dims *d, uint32_t targets, int rank, int layer, int target)
{
    return (size_t)layer * lora_layer_floats(d, targets, rank) +
           lora_layer_floats(d, targets & ((1u << target) - 1), rank);
}

/* ---------------------------------------------------------------- packs */

struct op_seg {             /* one job's rows */
    int32_t row0, rows;     /* real rows; padding up to ops->row_align follows */
    int32_t adapter;        /* index into pack->adapters, -1: the bare base */
    int32_t slot;           /* index into the loss accumulators */
    int32_t label0, labels; /* its labelled rows: lab_row[label0 .. label0 + labels) */
    float loss_scale;       /* d(objective)/d(sum of NLL): 1 / label tokens of the whole window */
};

struct op_seq {
    int32_t row0, rows; /* within its segment */
    int32_t seg;
    int32_t pos0;      /* position of row0 */
    int32_t token0;    /* number of row0 in its dataset row, for dropout keys */
    int32_t kv_cap;    /* positions that fit into kv */
    uint64_t drop_key; /* from (seed, epoch, row) */
    void *kv;          /* act [layers][2: K, V][kv_cap][kv_dim] or NULL */
};

struct op_pack {
    /* Host memory, owned by whoever made the pack; valid and unchanged until pack_release. */
    int32_t rows; /* R, a multiple of ops->row_align (any number if decode) */
    bool decode;  /* every sequence has one row, at position pos0, and reads its cache */
    int32_t n_seqs, n_segs, n_adapters, n_labels;
    int32_t max_rank;            /* of the adapters, 0: none */
    int32_t *ids;                /* [R] token, -1: padding */
    int32_t *pos;                /* [R] position in its sequence, for RoPE; 0 in padding */
    int32_t *seq_of_row;         /* [R] -1: padding */
    int32_t *lab_row;            /* [n_labels] labelled rows, by segment, ascending */
    int32_t *lab_id;             /* [n_labels] the token to predict there */
    struct op_seg *segs;         /* [n_segs] ascending row0 */
    struct op_seq *seqs;         /* [n_seqs] ascending row0 */
    struct op_adapter *adapters; /* [n_adapters] */
    const struct lora_dims *dims;
    void *dev; /* the device's copies of all that, made by pack_prepare */
};

/* ---------------------------------------------------------------- arguments of the larger operations */

/* One frozen matrix with its adapters.  W has the rows of one to three targets below each other (q,k,v /
 * gate,up), so that one GEMM serves them; each part has its own A, B and dropout mask. */
struct op_linear {
    const void *W;    /* weight [out, in] */
    const void *bias; /* weight [out] or NULL */
    int32_t in, out, layer;
    int32_t n_parts;
    struct {
        int32_t target;  /* enum dtx_target */
        int32_t out0, n; /* rows of W, columns of y */
    } part[3];
};

struct op_attention {
    int32_t heads, kv_heads,
        head_dim;          /* qkv [R, ld]: q [heads, head_dim], k [kv_heads, head_dim], v, in this order */
    int32_t layers, layer; /* for the cache */
    float scale;           /* 1 / sqrt(head_dim) */
};

/* A whole decoder layer over a decode pack, for decode_layer: the operations of forward.c's forward_layer in
 * their order, with the same buffers. */
struct op_layer {
    struct op_linear qkv, out, gate_up, down;
    struct op_attention attention;
    const void *norm1, *norm2; /* weight [hidden] */
    const float *rope;
    float eps;
    const void *x;                              /* act [R, hidden] */
    void *xn, *qkv_y, *o, *x2, *gu, *a, *x_out; /* x_out may be x */
    float *h_qkv, *h_out, *h_gate_up, *h_down;
};

struct op_choice {             /* how a row's token is chosen */
    double temperature, top_p; /* 0: the likeliest; 1: off */
    int32_t top_k;             /* 0: off */
    uint64_t seed, number;     /* of the random number; number: of the token in its answer, from 0 */
};

enum { DECODE_AHEAD = 2 };

struct op_decode {                /* a step over a decode pack, for decode_load */
    const struct op_layer *layer; /* host memory [layers], read before the call returns */
    int32_t layers, hidden, vocab;
    const void *embed, *norm, *head; /* weight [vocab, hidden], [hidden], [vocab, hidden] */
    float eps;
    void *x, *x_last, *xn;          /* act [R, hidden]: into the first layer, out of the last, normed */
    float *logits;                  /* [R, vocab] */
    int32_t *tokens;                /* [R] */
    const struct op_choice *choice; /* host memory [R], of the first step; number counts up */
};

struct op_optim {         /* one job's update; host memory, read before the call returns */
    float *w, *g, *m, *v; /* [n]; m and v NULL for SGD */
    size_t n;
    enum dtx_optimizer kind;
    int32_t slot; /* its loss accumulator */
    double lr, weight_decay, beta1, beta2, eps;
    double bias1, bias2; /* 1 - beta^t, t = updates applied so far + 1 */
    double max_norm;     /* 0: no clipping */
};

struct op_outcome {  /* device memory; downloaded once a step */
    double norm;     /* global L2 norm of g before clipping */
    int32_t applied; /* 0: loss or norm was not finite, nothing was changed */
    int32_t unused;
};

/* Of devices that keep masks: bytes of one part's mask of a row, a bit for each element of x. */
static inline size_t mask_bytes(int32_t in)
{
    return (size_t)(in + 127) / 128 * 16;
}

static inline bool pack_drops(const struct op_pack *p)
{
    bool drops = false;
    for (int32_t i = 0; i < p->n_adapters; i++)
        drops = drops || p->adapters[i].dropout > 0;
    return drops;
}

/* ---------------------------------------------------------------- the operations */

struct op_dev; /* a device's own state */

struct dtx_ops {
    const char *name;  /* "cpu", "cuda" */
    int32_t row_align; /* segments start at and are padded to multiples of this many rows */
    int32_t act_bytes, weight_bytes;
    int32_t pack_rows; /* the model code packs jobs together up to about this many rows (never changes a
                          number) */
    int32_t head_step, head_most; /* attention is built for heads of a multiple of this many values, up to
                                     that many */
    int32_t keeps_masks; /* linear leaves what dropout kept of x behind h, for linear_back: see mask_bytes */

    void (*close)(struct op_dev *d);
    void (*info)(struct op_dev *d, struct dtx_device_info *info);

    /* Memory.  alloc gives at least 64-byte aligned memory, contents undefined, NULL: out of memory.
     * upload and upload_weights may return before the copy is done only if they kept a copy of src. */
    void *(*alloc)(struct op_dev *d, size_t bytes);
    void (*free)(struct op_dev *d, void *p);
    void (*zero)(struct op_dev *d, void *p, size_t bytes);
    void (*upload)(struct op_dev *d, void *dst, const void *host, size_t bytes);
    int (*download)(struct op_dev *d, void *host, const void *src,
                    size_t bytes);                                            /* waits; the device's error */
    void (*copy)(struct op_dev *d, void *dst, const void *src, size_t bytes); /* device to device */
    /* n float32 values, converted to the weight type, to dst + first weights. */
    void (*upload_weights)(struct op_dev *d, void *dst, size_t first, const float *host, size_t n);
    int (*sync)(struct op_dev *d);          /* waits; 0 or the device's error, which stays until close */
    const char *(*error)(struct op_dev *d); /* words for it */

    /* Put p's tables on the device (p->dev); pack_release frees them once the work queued so far is done. */
    int (*pack_prepare)(struct op_dev *d, struct op_pack *p);
    void (*pack_release)(struct op_dev *d, struct op_pack *p);

    /* x act [R, hidden]: x[r] = E[ids[r]], E weight [vocab, hidden]; zeros where ids[r] = -1. */
    void (*embed)(struct op_dev *d, const struct op_pack *p, const void *E, int32_t hidden, void *x);

    /* y[r] = w * x[r] * rstd[r], rstd[r] = 1 / sqrt(mean(x[r]^2) + eps).  x, y act [R, n], w weight [n], rstd
     * float [R] (NULL: not kept). */
    void (*rmsnorm)(struct op_dev *d, const struct op_pack *p, const void *x, const void *w, int32_t n,
                    float eps, void *y, float *rstd);
    /* dx[r] = (add ? add[r] : 0) + rstd * (w dy - xhat * mean(w dy xhat)), xhat = x rstd.  No dw: w is
     * frozen. add (act [R, n] or NULL) may be dx itself. */
    void (*rmsnorm_back)(struct op_dev *d, const struct op_pack *p, const void *dy, const void *x,
                         const void *w, const float *rstd, int32_t n, const void *add, void *dx);

    /* y = (add ? add : 0) + x W^T + bias, and for every part t and segment with an adapter that has t:
     *      h_t = drop_t(x) A_t^T;   y[:, part t] += scale * h_t B_t^T
     * x act [R, in], y act [R, out], add act [R, out] or NULL (may be y).  h: linear_h_floats floats for this
     * pack, its layout private to the device; linear_back gets it back. drop_t(x)[r][i] = x[r][i] / (1 - p)
     * if rng_dropout(rng_dropout_key(seq.drop_key, seq.token0 + r - seq.row0, layer, t), i) >=
     * rng_dropout_threshold(p), else 0. */
    void (*linear)(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *x,
                   const void *add, void *y, float *h);
    size_t (*linear_h_floats)(const struct op_pack *p,
                              const struct op_linear *l); /* grows with p->rows, p->max_rank and, where some
                                                             adapter has dropout, l->in only */
    /* dh_t = scale * dy[:, part t] B_t;  dx = dy W + sum_t drop_t'(dh_t A_t)  (drop_t': the same mask and
     * factor); for adapters with g:  dB_t += scale * dy[:, part t]^T h_t,  dA_t += dh_t^T drop_t(x), over the
     * segment's real rows only, in a fixed order.  dx may be NULL (nothing below needs it).  No dW, no dbias:
     * frozen. */
    void (*linear_back)(struct op_dev *d, const struct op_pack *p, const struct op_linear *l, const void *dy,
                        const void *x, const float *h, void *dx);

    /* Rotates q and k of qkv in place by each row's position: HF's half-split form, x1' = x1 c - x2 s, x2' =
     * x2 c + x1 s. table float [positions][head_dim]: cos of head_dim/2 angles, then sin.  inverse: rotates
     * back (the gradient). */
    void (*rope)(struct op_dev *d, const struct op_pack *p, const struct op_attention *a, const float *table,
                 bool inverse, void *qkv);

    /* Causal attention inside each sequence: o = softmax(scale q k^T) v; o act [R, heads * head_dim], zeros
     * in padding; lse float [R, heads]: log sum exp of the scaled scores (NULL: not kept).  Head h reads k/v
     * head h / (heads / kv_heads).  The sequence's keys and values are those of its rows in qkv. */
    void (*attention)(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                      const void *qkv, void *o, float *lse);
    /* dqkv act [R, ld] written whole (zeros in padding) from do, o, qkv and lse.  table: rope's, by which q
     * and k had been rotated: their gradients are rotated back; NULL: they are not. */
    void (*attention_back)(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                           const void *dout, const void *o, const void *qkv, const float *lse,
                           const float *table, void *dqkv);

    /* gu act [R, 2 * ffn] = [gate | up];  y = silu(gate) * up, act [R, ffn]. */
    void (*swiglu)(struct op_dev *d, const struct op_pack *p, const void *gu, int32_t ffn, void *y);
    /* dgu from dy; dgu may be gu itself. */
    void (*swiglu_back)(struct op_dev *d, const struct op_pack *p, const void *dy, const void *gu,
                        int32_t ffn, void *dgu);

    /* Cross-entropy at the labelled rows only: logits = x[lab_row] W^T in float32 (W weight [vocab, hidden]),
     * chunked; loss[seg.slot] += sum of -log softmax(logits)[lab_id] (double, per segment in a fixed order).
     * dx (or NULL: only the loss) act [R, hidden] = seg.loss_scale * (softmax - onehot) W at labelled rows,
     * else 0. */
    void (*head_loss)(struct op_dev *d, const struct op_pack *p, const void *x, const void *W, int32_t vocab,
                      int32_t hidden, double *loss, void *dx);

    /* loss[i] accumulators -> norm, clip by max_norm / (norm + 1e-6) if that is below 1, update; see
     * op_optim. AdamW: w *= 1 - lr wd; m += (1-b1)(g - m); v = b2 v + (1-b2) g^2; w -= lr/bias1 * m /
     * (sqrt(v)/sqrt(bias2) + eps). Adam: g += wd w first, no decay of w.  SGD: g += wd w; w -= lr g. All n
     * jobs in one call; out[i] belongs to jobs[i]; a job whose loss or norm is not finite is left as it was.
     */
    void (*optim)(struct op_dev *d, const struct op_optim *jobs, int32_t n, const double *loss,
                  struct op_outcome *out);

    /* ---- generation */

    /* Copies k and v of every row of qkv into its sequence's cache at its position (after rope). */
    void (*kv_store)(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                     const void *qkv);
    /* Decode packs: o[r] = attention of row r over positions 0..pos of its cache (the row itself included).
     */
    void (*attention_cached)(struct op_dev *d, const struct op_pack *p, const struct op_attention *a,
                             const void *qkv, void *o);
    /* logits float [n, vocab] = x[rows[i]] W^T; rows: host memory, read before the call returns.  Each row of
     * the result depends on that row of x alone, for any n. */
    void (*logits)(struct op_dev *d, const void *x, const int32_t *rows, int32_t n, const void *W,
                   int32_t vocab, int32_t hidden, float *logits);
    /* out int32 [n]: the token of each row, chosen as how[i] (host memory, read before the call returns)
     * says; kernels/choice.h has the rule. */
    void (*choose)(struct op_dev *d, const float *logits, int32_t n, int32_t vocab,
                   const struct op_choice *how, int32_t *out);
    /* Optional (NULL: the operations one by one): a layer over a decode pack whose sequences all have a
     * cache. */
    void (*decode_layer)(struct op_dev *d, const struct op_pack *p, const struct op_layer *l);
    /* Decode steps of the same rows one after another, without the host between them.
     * decode_load takes a decode pack (without pack_prepare) and what a step consists of, and drops steps
     * queued for the pack before it; -ENOMEM: no room, nothing is loaded.  The pack's host tables belong to
     * the device until the next load; adapters, caches and buffers must live until the queued steps are done
     * (ops->free waits its turn). decode_step queues: embed, the layers, norm, logits, choose; then every
     * row's token is its next input, at the next position.  At most DECODE_AHEAD steps are queued and not
     * taken; no row may pass its kv_cap. decode_take waits for the oldest step not taken: tokens[i] is row
     * i's. */
    int (*decode_load)(struct op_dev *d, struct op_pack *p, const struct op_decode *s);
    void (*decode_step)(struct op_dev *d);
    int (*decode_take)(struct op_dev *d, int32_t *tokens);
    /* Optional (NULL: next to nothing): the most that operations allocate for themselves while a job trains,
     * beside what they are given: for passes over `rows` rows, all of them labelled. */
    size_t (*scratch_bytes)(const struct lora_dims *d, int32_t hidden, int32_t vocab, int32_t rows,
                            int32_t rank, uint32_t targets);
};

struct dtx_device {
    const struct dtx_ops *ops;
    struct op_dev *dev;
    void *library;        /* dlopen handle of the CUDA library, NULL on the CPU */
    const void *decoding; /* whose steps are loaded (decode.c): bases share the device */
};

/* kernels/cpu/device.c */
int cpu_ops_open(int threads, struct op_dev **out, const struct dtx_ops **ops, struct dtx_err *e);

/*
 * The CUDA library (dtx_cuda.so, found beside the program, or by the loader's path) exports these three:
 *      int dtx_cuda_ops_open(int index, struct op_dev **out, const struct dtx_ops **ops, struct dtx_err *e);
 *      int dtx_cuda_ops_count(void);
 *      uint64_t dtx_cuda_ops_layout(void);
 */

/* Of the structs above: a library that was built with others is not used. */
static inline uint64_t ops_layout(void)
{
    const size_t sizes[] = {
        sizeof(struct dtx_ops),      sizeof(struct op_pack),        sizeof(struct op_seg),
        sizeof(struct op_seq),       sizeof(struct op_adapter),     sizeof(struct op_linear),
        sizeof(struct op_attention), sizeof(struct op_layer),       sizeof(struct op_decode),
        sizeof(struct op_choice),    sizeof(struct op_optim),       sizeof(struct op_outcome),
        sizeof(struct lora_dims),    sizeof(struct dtx_device_info)};
    uint64_t h = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        h = h * 1099511628211u + sizes[i];
    return h;
}

#endif
