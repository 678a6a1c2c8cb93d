/* The layers of a decode step in one kernel (decode_stream.cu). */
#ifndef DTX_CUDA_DECODE_STREAM_CUH
#define DTX_CUDA_DECODE_STREAM_CUH

#include "kernels/cuda/cuda.h"

void stream_setup(op_dev *d);
/* Is it built for such layers on this device?  Asks nothing about rows: they must not choose between two ways to sum.
 */
bool stream_fits(const op_dev *d, const op_layer *l);
/* What the kernel counts with, for so many rows; before stream_layers and outside of captures. */
bool stream_need(op_dev *d, int rows, int heads);
/* The layers l [layers] and, with `end`, the model's norm and head.  partial, slices: as cached_partial has them. */
void stream_layers(op_dev *d, const op_pack *p, const op_layer *l, int layers, const op_decode *end, float *partial,
                   int slices);

#endif
