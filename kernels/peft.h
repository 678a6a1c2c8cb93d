/* The tensors of a PEFT folder, from and to an adapter's flat buffer on the host (see kernels/ops.h). */
#ifndef DTX_PEFT_H
#define DTX_PEFT_H

#include "kernels/ops.h"

enum { PEFT_NAME = 128 };

/* "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"; matrix: 'A' or 'B'. */
void peft_tensor_name(char out[PEFT_NAME], int layer, int target, char matrix);
/* Into w [lora_floats]; every tensor's shape and values (finite) are checked. */
int peft_read(const struct lora_dims *d, unsigned targets, int rank, int dirfd, const char *dir, float *w,
              struct dtx_err *e);
int peft_write(const struct lora_dims *d, const struct dtx_train_params *p, const float *w, int dirfd,
               const char *dir, const char *base_name, struct dtx_err *e);

#endif
