/* The layers of a decode step in one kernel (decode_fused.cu), as decode_run.cu uses it. */
#ifndef DTX_CUDA_DECODE_FUSED_CUH
#define DTX_CUDA_DECODE_FUSED_CUH

#include "kernels/cuda/decode.cuh"

enum { FUSED_ROWS = 8 };

struct fused_layer {
    const bf16 *W[4], *bias, *norm1, *norm2; /* qkv, o, gate_up, down; bias of qkv or NULL */
};

struct fused_parts { /* of a linear: as in op_linear */
    int n, target[3], out0[3];
};

struct fused_sync { /* zero before each launch; y, h: blocks that have arrived, barrier after barrier */
    uint32_t y, pad[31], h, pad2[31];
    uint32_t slices[]; /* [rows][heads] done */
};

struct fused_args {
    const fused_layer *layer; /* device [layers] */
    int layers, rows, hidden;
    int tiles[4], K[4];               /* of each linear: tiles of 16 rows of W, columns */
    int window, slots, x_stride, x_bytes; /* set by fused_fits */
    float eps;
    fused_parts parts[4];
    const dev_adapter *row_adapters; /* NULL: no adapters */
    int hr;
    bf16 *h[4];
    bf16 *x, *qkv, *o, *x2, *a; /* [rows, ...]; x: in and out */
    attend_args attend;         /* its layer does not matter */
    fused_sync *sync;
    int flight; /* slots under way at a time */
    long long *clocks;
};

/* Sets how the block's memory is shared out; false: not for these sizes or this device. */
bool fused_fits(const op_dev *d, fused_args *a, int blocks);
/* Queues the layers: a->x becomes what the last layer leaves. */
void fused_launch(op_dev *d, const fused_args *a, int blocks);
void fused_setup(op_dev *d);

#endif
