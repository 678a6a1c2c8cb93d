/*
 * Inside of the engine: a base model on a device, the workspace of a pass over a pack, and the passes.
 *
 * Ownership: a base owns its weights, its rotary table, its workspace and its step buffers.  Jobs, adapters
 * and sequences own their device buffers and must be freed before their base.
 */
#ifndef DTX_MODEL_H
#define DTX_MODEL_H

#include "kernels/ops.h"

/* Tokens of one micro-batch that go through the model in one pass; a larger micro-batch is cut between rows.
 * A constant, so that the cut follows from the spec and the data alone. */
enum { CHUNK_TOKENS = 4096 };

struct layer_weights { /* weight type */
    void *norm1;       /* [hidden] */
    void *qkv;         /* [(heads + 2 kv_heads) head_dim, hidden]: q, k, v below each other */
    void *qkv_bias;    /* [(heads + 2 kv_heads) head_dim] or NULL */
    void *o;           /* [hidden, heads * head_dim] */
    void *norm2;       /* [hidden] */
    void *gate_up;     /* [2 ffn, hidden] */
    void *down;        /* [hidden, ffn] */
};

enum { H_QKV, H_O, H_GATE_UP, H_DOWN, H_COUNT };

/* What a layer's backward pass needs.  Without training all layers share one of these; with training the
 * layers up to workspace.recompute share one but for x and h[H_DOWN] (see workspace.c).  xn1, xn2 and a are
 * the same for all layers unless workspace.keep. */
struct layer_acts {
    void *x;         /* act [R, hidden] residual stream coming in */
    void *qkv;       /* act [R, (heads + 2 kv_heads) head_dim] after rope */
    void *o;         /* act [R, heads * head_dim] */
    void *x2;        /* act [R, hidden] residual stream after attention */
    void *gu;        /* act [R, 2 ffn]; its gradient is put over it */
    void *xn1, *xn2; /* act [R, hidden] the norms' outputs */
    void *a;         /* act [R, ffn] */
    float *lse, *rstd1, *rstd2;
    float *h[H_COUNT]; /* of the adapters, see ops->linear */
};

struct workspace { /* one allocation, cut up by workspace_layout */
    void *memory;
    size_t bytes;
    int rows, rank;           /* capacities */
    int recompute;            /* training: layers that run forward once more in backward */
    bool keep;                /* training: xn1, xn2 and a are not computed again either */
    bool masks;               /* behind h is room for what dropout kept, see ops.h, mask_bytes */
    struct layer_acts *layer; /* host array [layers] */
    void *x_last;             /* act [R, hidden] residual stream after the last layer */
    void *xn;                 /* act [R, hidden] the last norm's output; of all norms without keep */
    void *da, *dx, *dres, *dout, *dqkv; /* training only */
    float *rstd_last;
};

struct dtx_base {
    struct dtx_device *device;
    const struct dtx_ops *ops;
    struct op_dev *dev;
    struct dtx_model_config config;
    struct lora_dims dims;
    struct layer_weights *layer;
    void *embed, *norm, *head; /* [vocab, hidden], [hidden], [vocab, hidden] (embed itself if tied) */
    float *rope;               /* [rope_positions][head_dim] */
    int rope_positions;
    uint64_t bytes;             /* of the weights */
    struct workspace spaces[2]; /* [train] */
    struct workspace *ws;       /* the one of the current pass */
    unsigned moved; /* counts: a buffer of serving (workspace, rope, logits) is at another address now */
    int pack_rows;  /* rows of a training pack; 0: ops->pack_rows, nothing was planned */
    /* of a step: [step_jobs] each */
    double *loss;
    struct op_outcome *outcome;
    int step_jobs;
    /* of a generation step: [gen_rows] each */
    float *logits; /* [gen_rows, vocab] */
    int32_t *tokens;
    int gen_rows;
    struct decode_run *run; /* decode.c */
};

/* model.c */
void *base_alloc(struct dtx_base *b, size_t bytes, struct dtx_err *e); /* NULL: -ENOMEM in *e */
int base_need_positions(struct dtx_base *b, int positions, struct dtx_err *e);
int base_need_step(struct dtx_base *b, int jobs, struct dtx_err *e);
int base_need_logits(struct dtx_base *b, int rows, struct dtx_err *e);
/* What serving and evaluation take of the device, so that they never have to ask for it later: passes over
 * SERVE_ROWS rows, logits of SERVE_LOGITS sequences, positions.  Longer prompts and adapters of a higher rank
 * ask for more when they are made (dtx_seq_new, dtx_adapter_load). */
enum {
    SERVE_ROWS = CHUNK_TOKENS,
    SERVE_LOGITS = 64,
    SERVE_RANK = 64,
    SERVE_POSITIONS = 8192,
    STEP_JOBS = 64
};
int base_reserve(struct dtx_base *b, struct dtx_err *e);

/* workspace.c */
/* Bytes of a workspace of w's rows, rank, recompute, keep and masks; with memory and layer set, its pointers
 * are set too. */
size_t workspace_layout(struct workspace *w, const struct dtx_model_config *c, int act_bytes, bool train);
/* Makes b->ws one with room for that: of serving, or for a pass over p; it grows, and recomputes as before.
 */
int workspace_need(struct dtx_base *b, int rows, int rank, struct dtx_err *e);
int workspace_need_for(struct dtx_base *b, const struct op_pack *p, bool train, struct dtx_err *e);
/* The training workspace exactly as planned, whatever it was before; rows 0: none. */
int workspace_set(struct dtx_base *b, const struct dtx_plan *p, struct dtx_err *e);
void workspace_free(struct dtx_base *b);

/* pack.c: makes packs on the host.  pack_new with the most there will be, then segments, each followed by its
 * sequences, then pack_ready. */
struct pack_room {
    int rows, seqs, segs, labels; /* rows: with the padding of each segment */
};
int pack_padded(const struct dtx_base *b, int rows);
int rows_padded(const struct dtx_ops *o, int rows);
int pack_new(struct op_pack *p, const struct dtx_base *b, struct pack_room room, bool decode,
             struct dtx_err *e);
void pack_segment(struct op_pack *p, const struct dtx_base *b, const struct op_adapter *a, int slot,
                  float loss_scale);
/* n tokens; labels (or NULL): labels[i + 1] is what row i is to predict, -100: nothing. */
struct op_seq *pack_sequence(struct op_pack *p, const int32_t *ids, const int32_t *labels, int n, int pos0);
int pack_ready(struct op_pack *p, struct dtx_base *b, struct dtx_err *e);
int pack_failed(const struct dtx_base *b, int rc, struct dtx_err *e); /* rc of pack_prepare, decode_load */
void pack_free(struct op_pack *p, struct dtx_base *b);

/* forward.c, backward.c: over a ready pack.  forward leaves the normed output of the last layer in ws.xn. */
int forward(struct dtx_base *b, const struct op_pack *p, bool train, struct dtx_err *e);
/* After forward with train: ops->head_loss has put the gradient of ws.xn into ws.dx. */
void backward(struct dtx_base *b, const struct op_pack *p);
/* Once more what a layer computed up to its gate and up products, from its x: the same bytes. */
void forward_again(struct dtx_base *b, const struct op_pack *p, int layer);
struct op_linear linear_of(const struct dtx_base *b, int layer, int which);
struct op_attention attention_of(const struct dtx_base *b, int layer);
struct op_layer layer_of(const struct dtx_base *b, int layer); /* with the buffers of b->ws */

/* lora.c */
struct dtx_adapter {
    struct dtx_base *base;
    float *w;
    size_t n;
    int rank;
    unsigned targets;
    float scale;
};
float lora_scale(const struct dtx_train_params *p);
struct op_adapter adapter_op(const struct dtx_adapter *a);
/* A ~ U(-1/sqrt(in), 1/sqrt(in)) keyed by seed, B = 0, into host memory of lora_floats floats. */
void lora_init(const struct lora_dims *d, unsigned targets, int rank, uint64_t seed, float *w);

#endif
