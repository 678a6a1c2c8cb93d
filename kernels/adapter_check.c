/*
 * A PEFT folder against a base model, without a device: everything that dtx_adapter_load relies on.
 *
 * Supported is plain LoRA on the seven projections of every layer.  Whatever would change the numbers in
 * another way (DoRA, biases, patterns of ranks, chosen layers, saved modules) is refused by name instead of
 * being ignored.
 */
#include <stdio.h>
#include <string.h>

#include "kernels/model.h"
#include "kernels/safetensors.h"
#include "scheduler/base/json.h"

enum { CONFIG_MAX = 1 << 20, NAME_MAX_BYTES = 160 };

/* Keys that must be absent, null, false, empty or the given word. */
static const struct {
    const char *key, *neutral;
} plain[] = {{"use_dora", NULL},          {"bias", "none"},
             {"fan_in_fan_out", NULL},    {"rank_pattern", NULL},
             {"alpha_pattern", NULL},     {"layers_to_transform", NULL},
             {"layers_pattern", NULL},    {"modules_to_save", NULL},
             {"lora_bias", NULL},         {"target_parameters", NULL},
             {"layer_replication", NULL}, {"trainable_token_indices", NULL}};

static bool is_neutral(const json_t *v, const char *word)
{
    if (!v || json_is_null(v) || json_is_false(v))
        return true;
    if (json_is_object(v))
        return json_object_size(v) == 0;
    if (json_is_array(v))
        return json_array_size(v) == 0;
    return word && json_is_string(v) && strcmp(json_string_value(v), word) == 0;
}

static int read_targets(const char *path, const json_t *list, unsigned *targets, struct dtx_err *e)
{
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > DTX_TARGETS)
        return dtx_fail(e, -EINVAL, "%s: target_modules: expected a list of 1 to %d names such as \"q_proj\"",
                        path, DTX_TARGETS);
    *targets = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *name = json_string_value(json_array_get(list, i));
        int t = name ? 0 : DTX_TARGETS;
        while (t < DTX_TARGETS && strcmp(name, dtx_target_names[t]) != 0)
            t++;
        if (t == DTX_TARGETS)
            return dtx_fail(e, -EINVAL,
                            "%s: target_modules: found \"%.40s\"; adapters can be on q_proj, k_proj, v_proj, "
                            "o_proj, gate_proj, up_proj and down_proj",
                            path, name ? name : "(no string)");
        *targets |= 1u << t;
    }
    return 0;
}

static int read_config(const char *path, const json_t *v, struct dtx_train_params *p, struct dtx_err *e)
{
    long long rank = json_int(v, "r", 0);

    memset(p, 0, sizeof(*p));
    if (strcmp(json_str(v, "peft_type", ""), "LORA") != 0)
        return dtx_fail(e, -EINVAL, "%s: peft_type: expected \"LORA\", found \"%.40s\"", path,
                        json_str(v, "peft_type", ""));
    if (rank < 1 || rank > DTX_MAX_RANK)
        return dtx_fail(e, -EINVAL, "%s: r: expected a rank of 1 to %d, found %lld", path, DTX_MAX_RANK,
                        rank);
    p->alpha = json_num(v, "lora_alpha", 0);
    p->dropout = json_num(v, "lora_dropout", 0);
    if (!(p->alpha > 0 && p->alpha <= 1e6))
        return dtx_fail(e, -EINVAL, "%s: lora_alpha: expected a number above 0, found %g", path, p->alpha);
    if (!(p->dropout >= 0 && p->dropout < 1))
        return dtx_fail(e, -EINVAL, "%s: lora_dropout: expected 0 to below 1, found %g", path, p->dropout);
    for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
        if (!is_neutral(json_object_get(v, plain[i].key), plain[i].neutral))
            return dtx_fail(e, -EINVAL, "%s: %s is set: only plain LoRA adapters can be loaded", path,
                            plain[i].key);
    p->rank = (int)rank;
    p->rslora = json_flag(v, "use_rslora", 0);
    return read_targets(path, json_object_get(v, "target_modules"), &p->targets, e);
}

static int check_tensor(const struct st_set *files, int layer, int target, char matrix, int rows, int cols,
                        struct dtx_err *e)
{
    char name[NAME_MAX_BYTES];
    const struct st_tensor *t;

    snprintf(name, sizeof(name), "base_model.model.model.layers.%d.%s.%s.lora_%c.weight", layer,
             target <= DTX_O ? "self_attn" : "mlp", dtx_target_names[target], matrix);
    t = st_find(files, name);
    if (!t)
        return dtx_fail(e, -EINVAL, "adapter_model.safetensors: tensor %s is missing", name);
    if (t->type == ST_OTHER)
        return dtx_fail(e, -EINVAL, "adapter_model.safetensors: %s is not of type F32, F16 or BF16", name);
    if (t->ndim != 2 || t->shape[0] != rows || t->shape[1] != cols)
        return dtx_fail(e, -EINVAL,
                        "adapter_model.safetensors: %s: expected shape [%d, %d], found [%lld, %lld]; was it "
                        "trained on another base model?",
                        name, rows, cols, (long long)t->shape[0], (long long)(t->ndim > 1 ? t->shape[1] : 1));
    return 0;
}

static int check_tensors(const struct dtx_model_config *c, const struct st_set *files,
                         const struct dtx_train_params *p, struct dtx_err *e)
{
    struct lora_dims d = lora_dims_of(c);
    size_t expected = 0;
    int rc = 0;

    for (int l = 0; l < d.layers; l++)
        for (int t = 0; t < DTX_TARGETS; t++) {
            if (!(p->targets >> t & 1))
                continue;
            expected += 2;
            rc = check_tensor(files, l, t, 'A', p->rank, d.in[t], e);
            if (rc == 0)
                rc = check_tensor(files, l, t, 'B', d.out[t], p->rank, e);
            if (rc)
                return rc;
        }
    if (st_count(files) != expected)
        return dtx_fail(
            e, -EINVAL,
            "adapter_model.safetensors: %zu tensors, expected %zu: it holds more than the adapters "
            "that adapter_config.json names",
            st_count(files), expected);
    return 0;
}

int dtx_adapter_check(const struct dtx_model_config *c, int dirfd, const char *dir,
                      struct dtx_train_params *p, struct dtx_err *e)
{
    char path[4096];
    struct st_set *files = NULL;
    json_t *config = NULL;
    int rc;

    if ((size_t)snprintf(path, sizeof(path), "%s/adapter_config.json", dir) >= sizeof(path))
        return dtx_fail(e, -ENAMETOOLONG, "%.200s: path too long", dir);
    rc = json_parse_file(dirfd, path, CONFIG_MAX, &config, e);
    if (rc == 0)
        rc = read_config(path, config, p, e);
    json_decref(config);
    if (rc)
        return rc;
    snprintf(path, sizeof(path), "%.4000s/adapter_model.safetensors", dir);
    rc = st_open(dirfd, path, &files, e);
    if (rc == 0)
        rc = check_tensors(c, files, p, e);
    st_close(files);
    return rc;
}
