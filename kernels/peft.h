/* The tensors of a PEFT folder, from and to an adapter's flat buffer on the host (see kernels/ops.h). */
#ifndef DTX_PEFT_H
#define DTX_PEFT_H

#include "kernels/ops.h"
#include "kernels/safetensors.h"

enum { PEFT_NAME = 128 };

/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"; matrix: 'A' or 'B'. */
void peft_tensor_name(char out[PEFT_NAME], int layer, int target, char matrix);
/* The tensor [rows, cols] of a projection's A or B in the files of a PEFT folder; words of what is wrong with
 * it. */
int peft_find(const struct st_set *files, int layer, int target, char matrix, int rows, int cols,
              const struct st_tensor **out, struct dtx_err *e);
/* Into w [lora_floats]; every tensor's shape and values (finite) are checked. */
int peft_read(const struct lora_dims *d, unsigned targets, int rank, int dirfd, const char *dir, float *w,
              struct dtx_err *e);
int peft_write(const struct lora_dims *d, const struct dtx_train_params *p, const float *w, int dirfd,
               const char *dir, const char *base_name, struct dtx_err *e);

#endif
