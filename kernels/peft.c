/*
 * PEFT folders: adapter_model.safetensors (float32) and adapter_config.json, in the form that PEFT, vLLM and
 * llama.cpp load.  The folder as a whole is checked by dtx_adapter_check before peft_read.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/peft.h"
#include "scheduler/base/fdio.h"

void peft_tensor_name(char out[PEFT_NAME], int layer, int target, char matrix)
{
    snprintf(out, PEFT_NAME, "base_model.model.model.layers.%d.%s.%s.lora_%c.weight", layer,
             target <= DTX_O ? "self_attn" : "mlp", dtx_target_names[target], matrix);
}

int peft_find(const struct st_set *files, int layer, int target, char matrix, int rows, int cols,
              const struct st_tensor **out, struct dtx_err *e)
{
    char name[PEFT_NAME];
    peft_tensor_name(name, layer, target, matrix);
    const struct st_tensor *t = st_find(files, name);
    if (!t)
        return dtx_fail(e, -EINVAL, "adapter_model.safetensors: tensor %s is missing", name);
    if (t->type == ST_OTHER)
        return dtx_fail(e, -EINVAL, "adapter_model.safetensors: tensor %s: expected type F32, F16 or BF16",
                        name);
    if (t->ndim != 2 || t->shape[0] != rows || t->shape[1] != cols)
        return dtx_fail(e, -EINVAL,
                        "adapter_model.safetensors: tensor %s has shape [%lld, %lld], expected [%d, %d]: "
                        "made for another base model?",
                        name, (long long)t->shape[0], t->ndim > 1 ? (long long)t->shape[1] : 0LL, rows, cols);
    *out = t;
    return 0;
}

static int read_one(const struct st_set *files, int layer, int target, char matrix, int rows, int cols,
                    float *out, struct dtx_err *e)
{
    const struct st_tensor *t;
    int rc = peft_find(files, layer, target, matrix, rows, cols, &t, e);
    if (rc == 0 && (rc = st_read_f32(t, 0, t->elements, out)))
        dtx_fail(e, rc, "adapter_model.safetensors: tensor %s cannot be read as numbers", t->name);
    if (rc)
        return rc;
    for (uint64_t i = 0; i < t->elements; i++)
        if (!isfinite(out[i]))
            return dtx_fail(e, -EINVAL,
                            "adapter_model.safetensors: tensor %s holds a value that is not finite", t->name);
    return 0;
}

int peft_read(const struct lora_dims *d, unsigned targets, int rank, int dirfd, const char *dir, float *w,
              struct dtx_err *e)
{
    char path[PATH_MAX];
    struct st_set *files = NULL;
    int rc = fd_join(path, dir, "adapter_model.safetensors", e);
    if (rc == 0)
        rc = st_open(dirfd, path, &files, e);
    for (int l = 0; rc == 0 && l < d->layers; l++)
        for (int t = 0; rc == 0 && t < DTX_TARGETS; t++) {
            if (!(targets >> t & 1))
                continue;
            float *a = w + lora_offset(d, targets, rank, l, t);
            rc = read_one(files, l, t, 'A', rank, d->in[t], a, e);
            if (rc == 0)
                rc = read_one(files, l, t, 'B', d->out[t], rank, a + (size_t)rank * (size_t)d->in[t], e);
        }
    st_close(files);
    return rc;
}

static struct st_tensor tensor_of(char *name, const float *data, int rows, int cols)
{
    uint64_t n = (uint64_t)rows * (uint64_t)cols;
    return (struct st_tensor){.name = name,
                              .type = ST_F32,
                              .ndim = 2,
                              .shape = {rows, cols},
                              .elements = n,
                              .nbytes = 4 * n,
                              .data = data};
}

static int write_tensors(const struct lora_dims *d, unsigned targets, int rank, const float *w, int dirfd,
                         const char *path, struct dtx_err *e)
{
    size_t most = (size_t)d->layers * DTX_TARGETS * 2, n = 0;
    struct st_tensor *tensors = calloc(most, sizeof *tensors);
    char(*names)[PEFT_NAME] = calloc(most, sizeof *names);
    if (!tensors || !names) {
        free(tensors);
        free(names);
        return dtx_fail(e, -ENOMEM, "out of memory");
    }
    for (int l = 0; l < d->layers; l++)
        for (int t = 0; t < DTX_TARGETS; t++) {
            if (!(targets >> t & 1))
                continue;
            const float *a = w + lora_offset(d, targets, rank, l, t);
            peft_tensor_name(names[n], l, t, 'A');
            tensors[n] = tensor_of(names[n], a, rank, d->in[t]);
            n++;
            peft_tensor_name(names[n], l, t, 'B');
            tensors[n] = tensor_of(names[n], a + (size_t)rank * (size_t)d->in[t], d->out[t], rank);
            n++;
        }
    int rc = st_write(dirfd, path, tensors, n, e);
    free(tensors);
    free(names);
    return rc;
}

/* The shortest decimal that reads back as x. */
static void add_number(struct buf *b, double x)
{
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, x);
        if (strtod(text, NULL) == x)
            break;
    }
    buf_adds(b, text);
}

static void config_json(struct buf *b, const struct dtx_train_params *p, const char *base_name)
{
    buf_adds(b, "{\n  \"base_model_name_or_path\": ");
    buf_add_json(b, base_name, strlen(base_name));
    buf_adds(b, ",\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n  \"inference_mode\": true,\n"
                "  \"init_lora_weights\": true,\n  \"lora_alpha\": ");
    add_number(b, p->alpha);
    buf_adds(b, ",\n  \"lora_dropout\": ");
    add_number(b, p->dropout);
    buf_addf(b,
             ",\n  \"modules_to_save\": null,\n  \"peft_type\": \"LORA\",\n  \"r\": %d,\n  "
             "\"target_modules\": [",
             p->rank);
    const char *comma = "";
    for (int t = 0; t < DTX_TARGETS; t++)
        if (p->targets >> t & 1) {
            buf_addf(b, "%s\n    \"%s\"", comma, dtx_target_names[t]);
            comma = ",";
        }
    buf_addf(b, "\n  ],\n  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n  \"use_rslora\": %s\n}\n",
             p->rslora ? "true" : "false");
}

int peft_write(const struct lora_dims *d, const struct dtx_train_params *p, const float *w, int dirfd,
               const char *dir, const char *base_name, struct dtx_err *e)
{
    char path[PATH_MAX], config[PATH_MAX];
    int rc = fd_join(path, dir, "adapter_model.safetensors", e);
    if (rc == 0)
        rc = fd_join(config, dir, "adapter_config.json", e);
    if (rc == 0)
        rc = write_tensors(d, p->targets, p->rank, w, dirfd, path, e);
    struct buf b = BUF_INIT;
    config_json(&b, p, base_name);
    if (rc == 0 && b.failed)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = fd_replace_file(dirfd, config, b.p, b.len, 0644, e);
    buf_release(&b);
    return rc;
}
