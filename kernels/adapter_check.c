/*
 * Is a PEFT folder an adapter that this engine computes, for this base?  Reads adapter_config.json and the
 * header of adapter_model.safetensors, both hostile.  What the engine would compute wrong is refused by name:
 * DoRA, biases, modules_to_save, ranks by pattern, single layers.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/ops.h"
#include "kernels/peft.h"
#include "kernels/safetensors.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"

enum { CONFIG_MAX_BYTES = 1 << 20 };

/* A key that may only be absent, null, false, "" or empty. */
static int must_be_off(const json_t *o, const char *key, struct dtx_err *e)
{
    const json_t *v = json_object_get(o, key);
    if (!v || json_is_null(v) || json_is_false(v))
        return 0;
    if ((json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0) ||
        (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    return dtx_fail(e, -EINVAL,
                    "adapter_config.json: %s is set; this engine has plain LoRA on projections only", key);
}

static int check_kind(const json_t *o, struct dtx_err *e)
{
    static const char *const off[] = {"use_dora",
                                      "use_qalora",
                                      "fan_in_fan_out",
                                      "lora_bias",
                                      "modules_to_save",
                                      "rank_pattern",
                                      "alpha_pattern",
                                      "layers_to_transform",
                                      "layers_pattern",
                                      "megatron_config",
                                      "layer_replication",
                                      "exclude_modules",
                                      "target_parameters",
                                      "trainable_token_indices",
                                      "alora_invocation_tokens"};
    const char *type = json_str(o, "peft_type", ""), *bias = json_str(o, "bias", "none");
    if (strcmp(type, "LORA") != 0)
        return dtx_fail(e, -EINVAL, "adapter_config.json: peft_type is \"%.40s\", expected \"LORA\"", type);
    if (strcmp(bias, "none") != 0)
        return dtx_fail(e, -EINVAL, "adapter_config.json: bias is \"%.40s\", expected \"none\"", bias);
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        int rc = must_be_off(o, off[i], e);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int target_of(const char *name)
{
    for (int t = 0; name && t < DTX_TARGETS; t++)
        if (strcmp(name, dtx_target_names[t]) == 0)
            return t;
    return -1;
}

static int get_targets(const json_t *o, unsigned *targets, struct dtx_err *e)
{
    const json_t *v = json_object_get(o, "target_modules");
    *targets = 0;
    if (json_is_string(v) && strcmp(json_string_value(v), "all-linear") == 0) {
        *targets = (1u << DTX_TARGETS) - 1;
        return 0;
    }
    for (size_t i = 0; json_is_array(v) && i < json_array_size(v); i++) {
        const char *name = json_string_value(json_array_get(v, i));
        int t = target_of(name);
        if (t < 0)
            return dtx_fail(
                e, -EINVAL,
                "adapter_config.json: target_modules names %.60s; known are q_proj, k_proj, v_proj, o_proj, "
                "gate_proj, up_proj, down_proj",
                name ? name : "something that is not text");
        *targets |= 1u << t;
    }
    if (!*targets)
        return dtx_fail(e, -EINVAL,
                        "adapter_config.json: target_modules must be a list of projections, or all-linear");
    return 0;
}

static int read_config(int dirfd, const char *dir, struct dtx_train_params *p, struct dtx_err *e)
{
    char path[PATH_MAX];
    json_t *o = NULL;
    int rc = fd_join(path, dir, "adapter_config.json", e);
    if (rc == 0)
        rc = json_parse_file(dirfd, path, CONFIG_MAX_BYTES, &o, e);
    if (rc == 0 && !json_is_object(o))
        rc = dtx_fail(e, -EINVAL, "adapter_config.json: expected an object");
    if (rc == 0)
        rc = check_kind(o, e);
    if (rc == 0)
        rc = get_targets(o, &p->targets, e);
    if (rc == 0) {
        long long r = json_int(o, "r", 0);
        p->alpha = json_num(o, "lora_alpha", NAN);
        p->dropout = json_num(o, "lora_dropout", 0);
        p->rslora = json_flag(o, "use_rslora", 0);
        p->rank = r > 0 && r <= DTX_MAX_RANK ? (int)r : 0;
        if (!p->rank)
            rc = dtx_fail(e, -EINVAL, "adapter_config.json: r must be a whole number from 1 to %d",
                          DTX_MAX_RANK);
        else if (!isfinite(p->alpha))
            rc = dtx_fail(e, -EINVAL, "adapter_config.json: lora_alpha must be a number");
    }
    json_decref(o);
    return rc;
}

static int check_tensors(const struct lora_dims *d, const struct dtx_train_params *p,
                         const struct st_set *files, struct dtx_err *e)
{
    const struct st_tensor *found;
    size_t expected = 0;
    for (int l = 0; l < d->layers; l++)
        for (int t = 0; t < DTX_TARGETS; t++) {
            if (!(p->targets >> t & 1))
                continue;
            int rc = peft_find(files, l, t, 'A', p->rank, d->in[t], &found, e);
            if (rc == 0)
                rc = peft_find(files, l, t, 'B', d->out[t], p->rank, &found, e);
            if (rc < 0)
                return rc;
            expected += 2;
        }
    if (st_count(files) != expected)
        return dtx_fail(e, -EINVAL,
                        "adapter_model.safetensors has %zu tensors, expected %zu: it holds more than the "
                        "target_modules of "
                        "adapter_config.json",
                        st_count(files), expected);
    return 0;
}

int dtx_adapter_check(const struct dtx_model_config *c, int dirfd, const char *dir,
                      struct dtx_train_params *p, struct dtx_err *e)
{
    char path[PATH_MAX];
    struct st_set *files = NULL;
    struct lora_dims d = lora_dims_of(c);
    *p = (struct dtx_train_params){0};
    int rc = read_config(dirfd, dir, p, e);
    if (rc == 0)
        rc = fd_join(path, dir, "adapter_model.safetensors", e);
    if (rc == 0)
        rc = st_open(dirfd, path, &files, e);
    if (rc == 0)
        rc = check_tensors(&d, p, files, e);
    st_close(files);
    return rc;
}
