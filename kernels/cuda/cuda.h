/*
 * The CUDA device: what the .cu files share.  Implements kernels/ops.h for bf16 activations and weights;
 * adapters, gradients, moments, losses and logits are float32 or double as ops.h says.
 *
 * Rules that keep THE PROMISE of ops.h here:
 *  - a GEMM uses one algorithm per (shape of the frozen matrix, type), never split-K, or one order of sums in tiles of
 *    any size; see gemm.cu, gemm_hopper.cu;
 *  - LoRA products, attention, norms and losses are tiled by position within the segment or sequence;
 *  - sums run in a fixed order, no atomics on floats.
 * One stream; memory comes from the stream-ordered pool, which never gives memory back to the driver.
 */
#ifndef DTX_CUDA_H
#define DTX_CUDA_H

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#include "kernels/ops.h"
}
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ptx/launch.cuh"
#include "kernels/cuda/ptx/warp.cuh"

typedef __nv_bfloat16 bf16;

enum {
    ROW_ALIGN = 128,
    LORA_ROWS = 32,          /* rows of one tile in the LoRA products */
    GRAD_ROWS = 1024,        /* rows of one slice in the sums of LoRA gradients */
    STAGING_HALF = 32 << 20, /* bytes of each half of the pinned staging ring */
    CUBLAS_WORKSPACE = 64 << 20,
    HEAD_ROWS = 2048,     /* labelled rows whose logits exist at a time */
    DECODE_SLICE = 128,   /* cached positions of one slice in the attention of decode */
    NOT_YET = 0xffff,     /* in h of decode: a NaN that no rounding makes */
    ATTN_NEAR = 20 << 20, /* bytes of keys and values that are read at about the same time */
    HEAD_STEP = 8,
    HEAD_MOST = 128, /* of the kernels of attention */
};

struct lora_tile {                    /* LORA_ROWS rows of one segment */
    int32_t row0, adapter, rows, seg; /* rows: real ones, at most LORA_ROWS */
};

struct grad_slice {           /* up to GRAD_ROWS real rows of one segment */
    int32_t seg, first, rows; /* first: within the segment */
    int32_t slot;             /* of its partial sums, ascending within a segment; -1: the only slice */
};

struct dev_adapter {    /* op_adapter as kernels see it */
    const bf16 *shadow; /* the flat buffer rounded to bf16 */
    float *g;
    int32_t rank;
    uint32_t targets;
    float scale, keep;                          /* keep = 1 / (1 - dropout) */
    uint32_t threshold;                         /* of dropout; 0: none */
    uint32_t layer_floats, offset[DTX_TARGETS]; /* of A within a layer, as lora_offset says */
};

struct row_block {         /* ROW_ALIGN rows, of one segment */
    int32_t adapter, rank; /* rank 0: no adapter */
    uint32_t targets;
    int32_t dropout; /* its adapter has some */
};

struct cuda_pack { /* op_pack.dev */
    void *block;   /* one allocation for all tables */
    int32_t *ids, *pos, *seq_of_row, *lab_row, *lab_id;
    op_seg *segs;
    op_seq *seqs;
    dev_adapter *adapters;
    dev_adapter *row_adapters; /* decode: [rows], shadow NULL where a row has none */
    lora_tile *tiles;
    row_block *blocks; /* [R / ROW_ALIGN] */
    attn_tile *attn;
    grad_slice *slices;
    int32_t *first_slice; /* [segments] index of its first slice */
    int32_t n_tiles, n_attn, n_slices, n_slots, max_seg_rows;
    bool dropout;   /* any adapter has some */
    float *partial; /* of attention_cached and decode_layer, made when first needed */
    int32_t slices_cached;
    void *shadows; /* bf16 copies made for this pack (training adapters), or NULL */
    bool padded;   /* some rows belong to no sequence */
};

struct gemm_plan;
struct hopper_choice;
struct trace;
struct decode_run;
struct shadow; /* cached bf16 copies of adapters that are only read (serving) */

struct op_dev {
    cudaStream_t stream;
    cublasLtHandle_t lt;
    void *workspace;
    cudaError_t status; /* the first error; stays */
    char words[256];
    int index;
    struct dtx_device_info info;
    /* pinned staging ring of two halves for uploads that need not wait */
    char *staging;
    size_t staging_used;
    int staging_half;
    cudaEvent_t staging_done[2];
    gemm_plan *plans;
    shadow *shadows;
    bool overlap;                  /* kernels of a chain may start before their predecessor ends (Hopper and newer) */
    int32_t shared_bytes;          /* shared memory that a block may have */
    int32_t cache_bytes;           /* of the second level */
    bool hopper;                   /* compute capability 9.0 */
    void *encode_map;              /* cuTensorMapEncodeTiled */
    int32_t gemm_blocks[2];        /* blocks that run at a time, alone and in clusters of two */
    hopper_choice *hopper_choices; /* of gemm_hopper.cu */
    int32_t tiles;                 /* the only one of its candidates; -1: the fastest */
    int32_t sms;                   /* multiprocessors */
    unsigned *drawn;               /* on the device, attention_hopper.cu's: 0 between its kernels */
    trace *tracing;                /* NULL: off */
    decode_run *run;               /* decode_run.cu; NULL: none yet */
};

/* Remember the first error with words. */
void dev_fail(op_dev *d, cudaError_t rc, const char *what);
#define DEV_CHECK(d, call)    dev_fail(d, (call), #call)
#define DEV_LAUNCHED(d, what) dev_fail(d, cudaGetLastError(), what)

/* trace.cu */
trace *trace_open();
int trace_begin(op_dev *d, const char *format, ...) __attribute__((format(printf, 2, 3)));
void trace_end(op_dev *d, int span);
void trace_collect(op_dev *d);
void trace_close(op_dev *d);
struct trace_scope {
    op_dev *d;
    int span;
    ~trace_scope()
    {
        if (d->tracing)
            trace_end(d, span);
    }
};
#define TRACE(d, ...) trace_scope traced = {(d), (d)->tracing ? trace_begin((d), __VA_ARGS__) : -1}

void *dev_alloc(op_dev *d, size_t bytes); /* NULL: the device has failed */
void *cu_alloc(op_dev *d, size_t bytes);  /* of the ops table.  NULL: no memory */
void dev_free(op_dev *d, void *p);
void dev_upload(op_dev *d, void *dst, const void *host, size_t bytes);
/* Adapter memory [p, p + bytes) changes: drop the rounded copies made of it. */
void shadow_forget(op_dev *d, const void *p, size_t bytes);

static inline cuda_pack *pack_dev(const op_pack *p)
{
    return (cuda_pack *)p->dev;
}

static inline int div_up(int64_t a, int64_t b)
{
    return (int)((a + b - 1) / b);
}

/* Columns of one part of h: max_rank rounded up to 16. */
static inline int h_columns(const op_pack *p)
{
    return (p->max_rank + 15) / 16 * 16;
}

/* device.cu: the adapters of a pack as kernels see them, out [n_adapters]. */
bool fill_adapters(op_dev *d, const op_pack *p, cuda_pack *c, dev_adapter *out);
/* decode_run.cu */
void decode_run_close(op_dev *d);

/* gemm.cu.  y[M, N] = x[M, K] W^T + (beta ? y : 0), W [N, K]; transposed: y[M, K] = x[M, N] W + ...
 * ldx, ldy: row lengths of x and y.  y bf16, or float32 with out_f32. */
void gemm(op_dev *d, bool transposed, int M, int N, int K, const bf16 *x, int ldx, const bf16 *W, bool beta, void *y,
          int ldy, bool out_f32);
/* The most that choosing an algorithm takes: for `rows` rows, the wider side of the matrix, bytes of a result. */
size_t gemm_scratch(size_t rows, size_t widest, size_t out_bytes);
void gemm_free_plans(op_dev *d);

/* decode.cu: the same product for a few rows, each row's result independent of the number of rows; y = add + x
 * W^T + bias + LoRA (h NULL: none).  make_h: h = x A^T is made on the way, and the kernel before has set it to NOT_YET;
 * else it is there. */
void gemv(op_dev *d, const op_pack *p, const op_linear *l, int M, int N, int K, const bf16 *x, const bf16 *W,
          const bf16 *bias, const bf16 *add, bf16 *h, bool make_h, void *y, bool out_f32);
/* h = x A^T of a decode pack's rows, by itself. */
void decode_h(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h);

/* lora.cu */
void lora_setup(op_dev *d);
size_t lora_down_scratch(size_t R, int in, int n_parts, int hr);
void lora_down(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *x, bf16 *h);
void lora_up(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *h, const bf16 *add, bf16 *y);
void lora_up_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dh, const uint32_t *kept, bf16 *dx);
/* What dropout kept of x, behind h; NULL if nothing was dropped. */
uint32_t *lora_kept(const op_pack *p, const op_linear *l, const bf16 *h);
void lora_round(op_dev *d, const float *w, bf16 *shadow, size_t n); /* float32 -> bf16 */
/* lora_back.cu: dh, written whole but for padding tiles without an adapter, and the gradients of A and B. */
void lora_back_setup(op_dev *d);
size_t lora_back_scratch(size_t R, size_t slots, int in, int n_parts, const int *n, int hr);
void lora_back(op_dev *d, const op_pack *p, const op_linear *l, const bf16 *dy, const bf16 *x, const bf16 *h, bf16 *dh);

/* The first thing in a kernel of a chain that has nothing to do before its predecessor ends. */
__device__ __forceinline__ void chain_begin()
{
    chain_next();
    chain_wait();
}

/* Launches a kernel that begins with chain_wait() and so may start while its predecessor still runs. */
template <typename... P, typename... A>
static inline void chain_launch(op_dev *d, void (*kernel)(P...), dim3 grid, int threads, size_t smem, A... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute[1];
    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem;
    config.stream = d->stream;
    config.attrs = attribute;
    config.numAttrs = d->overlap ? 1 : 0;
    DEV_CHECK(d, cudaLaunchKernelEx(&config, kernel, P(args)...));
}

/* A of (layer, target) in the rounded copy, or NULL; B [out, rank] follows at + rank * in.  For decode's
 * row_adapters, where an adapter is read by its place in memory. */
__device__ __forceinline__ const bf16 *adapter_at(const dev_adapter *ad, int layer, int target)
{
    return ad->shadow && (ad->targets >> target & 1)
               ? ad->shadow + (size_t)layer * ad->layer_floats + ad->offset[target]
               : NULL;
}

/* elementwise.cu, loss.cu, optim.cu, decode.cu: entries of the ops table */
void cu_embed(op_dev *d, const op_pack *p, const void *E, int32_t hidden, void *x);
void cu_rmsnorm(op_dev *d, const op_pack *p, const void *x, const void *w, int32_t n, float eps, void *y, float *rstd);
void cu_rmsnorm_back(op_dev *d, const op_pack *p, const void *dy, const void *x, const void *w, const float *rstd,
                     int32_t n, const void *add, void *dx);
void cu_rope(op_dev *d, const op_pack *p, const op_attention *a, const float *table, bool inverse, void *qkv);
void cu_swiglu(op_dev *d, const op_pack *p, const void *gu, int32_t ffn, void *y);
void cu_swiglu_back(op_dev *d, const op_pack *p, const void *dy, const void *gu, int32_t ffn, void *dgu);
void cu_attention(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv, void *o, float *lse);
void cu_attention_back(op_dev *d, const op_pack *p, const op_attention *a, const void *dout, const void *o,
                       const void *qkv, const float *lse, const float *table, void *dqkv);
size_t head_scratch(int32_t labels, int32_t hidden, int32_t vocab);
void cu_head_loss(op_dev *d, const op_pack *p, const void *x, const void *W, int32_t vocab, int32_t hidden,
                  double *loss, void *dx);
void cu_optim(op_dev *d, const op_optim *jobs, int32_t n, const double *loss, op_outcome *out);
void cu_kv_store(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv);
void cu_attention_cached(op_dev *d, const op_pack *p, const op_attention *a, const void *qkv, void *o);
void cu_decode_layer(op_dev *d, const op_pack *p, const op_layer *l);
float *cached_partial(op_dev *d, const op_pack *p, const op_attention *a, int *slices);
void cu_logits(op_dev *d, const void *x, const int32_t *rows, int32_t n, const void *W, int32_t vocab, int32_t hidden,
               float *logits);
void cu_choose(op_dev *d, const float *logits, int32_t n, int32_t vocab, const op_choice *how, int32_t *out);
int cu_decode_load(op_dev *d, op_pack *p, const op_decode *s);
void cu_decode_step(op_dev *d);
int cu_decode_take(op_dev *d, int32_t *tokens);

#endif
