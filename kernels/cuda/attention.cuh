/*
 * Variable-length causal attention, forward and backward, bf16 in and out, float32 inside.
 *
 * Tokens of all segments (rows of all jobs) lie one after another without padding.  A segment attends only to itself.
 * Everything is computed by position within its own segment: in tiles of 64 consecutive positions (keys of 64 or 128),
 * which are visited in ascending order, and nothing is accumulated by atomics.  So a segment's numbers depend neither
 * on where it lies in the batch nor on its neighbours.
 *
 *   q  [T, heads,    D]  row stride q_stride elements        o, lse: forward results kept for the backward
 *   k  [T, kv_heads, D]  row stride k_stride                 o   [T, heads, D]  row stride o_stride
 *   v  [T, kv_heads, D]  row stride v_stride                 lse [T, heads] float32, natural log, of the scaled scores
 * GQA: query head h reads key head h / (heads / kv_heads).
 */
#ifndef DTX_CUDA_ATTENTION_CUH
#define DTX_CUDA_ATTENTION_CUH

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

enum { ATTN_TILE = 64, ATTN_ROWS = 128 };

struct attn_tile { /* ATTN_ROWS positions of one segment */
    int32_t start; /* first token of the segment */
    int32_t len;   /* tokens in the segment */
    int32_t first; /* first position of the tile within the segment, a multiple of ATTN_ROWS */
};

struct attn_shape {
    int tokens, heads, kv_heads, head_dim; /* head_dim: a multiple of 8 up to 128 */
    int q_stride, k_stride, v_stride, o_stride;
    int dq_stride, dk_stride, dv_stride, do_stride;
    const float *rope;  /* Hopper's backward rotates dq and dk back by this table, see ops.h; NULL: it does not */
    const int32_t *pos; /* [tokens], for that */
    bool hopper;        /* attention_hopper.cu may be used */
    int sms;            /* multiprocessors of the device */
    unsigned *next;     /* attention_hopper.cu's: 0, on the device; 0 again afterwards */
};

/* Is it attention_hopper.cu's? */
static inline bool attn_on_hopper(const attn_shape *s)
{
    return s->hopper && (s->head_dim == 64 || s->head_dim == 128);
}

/* tiles: ntiles of them on the device, in any order, which changes no number; best is: of what lies near, those with
 * the most keys before them first.  Returns cudaErrorInvalidValue for a head size not built. */
cudaError_t attn_forward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                         const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, __nv_bfloat16 *o,
                         float *lse);

/* delta: scratch [T, heads] float32.  dq, dk, dv are written (not added to). */
cudaError_t attn_backward(cudaStream_t stream, const attn_shape *s, const attn_tile *tiles, int ntiles,
                          const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                          const __nv_bfloat16 *o, const float *lse, const __nv_bfloat16 *d_o, float *delta,
                          __nv_bfloat16 *dq, __nv_bfloat16 *dk, __nv_bfloat16 *dv);

#endif
