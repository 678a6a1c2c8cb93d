/* config.json of a Hugging Face model folder: Llama, Mistral and Qwen2, as transformers 4 and 5 write it. */
#include "kernels/safetensors.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/json.h"

enum { CONFIG_MAX_BYTES = 1 << 20 };

static const struct {
    const char *arch, *model_type;
} families[] = {
    {"LlamaForCausalLM", "llama"},
    {"MistralForCausalLM", "mistral"},
    {"Qwen2ForCausalLM", "qwen2"},
};
enum { LLAMA, MISTRAL, QWEN2, FAMILIES };

/* A whole number between min and max; fallback < 0: the key must be there. */
static int get_int(const json_t *o, const char *key, int min, int max, int fallback, int *out,
                   struct dtx_err *e)
{
    const json_t *v = json_object_get(o, key);

    if (!v || json_is_null(v)) {
        if (fallback < 0)
            return dtx_fail(e, -EINVAL, "config.json: %s is missing", key);
        *out = fallback;
        return 0;
    }
    if (!json_is_integer(v))
        return dtx_fail(e, -EINVAL, "config.json: %s must be a whole number", key);
    if (json_integer_value(v) < min || json_integer_value(v) > max)
        return dtx_fail(e, -EINVAL, "config.json: %s is %lld, expected %d to %d", key,
                        (long long)json_integer_value(v), min, max);
    *out = (int)json_integer_value(v);
    return 0;
}

/* A finite number above 0 and at most max; fallback <= 0: the key must be there. */
static int get_positive(const json_t *o, const char *key, double max, double fallback, float *out,
                        struct dtx_err *e)
{
    const json_t *v = json_object_get(o, key);
    double x;

    if (!v || json_is_null(v)) {
        if (fallback <= 0)
            return dtx_fail(e, -EINVAL, "config.json: %s is missing", key);
        *out = (float)fallback;
        return 0;
    }
    x = json_number_value(v);
    if (!json_is_number(v) || !(x > 0) || !(x <= max) || (float)x <= 0)
        return dtx_fail(e, -EINVAL, "config.json: %s must be a number above 0 and at most %g", key, max);
    *out = (float)x;
    return 0;
}

static int get_family(const json_t *o, struct dtx_model_config *c, struct dtx_err *e)
{
    const char *arch = json_string_value(json_array_get(json_object_get(o, "architectures"), 0));
    const char *type = json_str(o, "model_type", NULL);

    for (int i = 0; i < FAMILIES; i++) {
        if (arch ? strcmp(arch, families[i].arch) : !type || strcmp(type, families[i].model_type))
            continue;
        snprintf(c->arch, sizeof(c->arch), "%s", families[i].arch);
        return i;
    }
    return dtx_fail(e, -EINVAL,
                    "config.json: architecture %.60s is not supported; supported are LlamaForCausalLM, "
                    "MistralForCausalLM and Qwen2ForCausalLM",
                    arch ? arch : (type ? type : "(missing)"));
}

/* What a model may have that this engine does not compute: refused rather than computed wrong. */
static int refuse_unknown(const json_t *o, int family, struct dtx_err *e)
{
    const char *act = json_str(o, "hidden_act", "silu");
    const json_t *q = json_object_get(o, "quantization_config");

    if (strcmp(act, "silu") && strcmp(act, "swish"))
        return dtx_fail(e, -EINVAL, "config.json: hidden_act %.40s is not supported; expected silu", act);
    if (q && !json_is_null(q))
        return dtx_fail(e, -EINVAL,
                        "config.json: the weights are quantized (%.40s): copy the unquantized model",
                        json_str(q, "quant_method", "quantization_config"));
    if (json_flag(o, "mlp_bias", 0))
        return dtx_fail(e, -EINVAL, "config.json: mlp_bias is not supported");
    if (family != QWEN2 && json_flag(o, "attention_bias", 0))
        return dtx_fail(e, -EINVAL, "config.json: attention_bias is not supported for %s",
                        families[family].arch);
    return 0;
}

static int get_sizes(const json_t *o, struct dtx_model_config *c, struct dtx_err *e)
{
    int rc = get_int(o, "num_hidden_layers", 1, 1024, -1, &c->layers, e);

    if (rc == 0)
        rc = get_int(o, "hidden_size", 2, 1 << 17, -1, &c->hidden, e);
    if (rc == 0)
        rc = get_int(o, "intermediate_size", 1, 1 << 20, -1, &c->ffn, e);
    if (rc == 0)
        rc = get_int(o, "num_attention_heads", 1, 4096, -1, &c->heads, e);
    if (rc == 0)
        rc = get_int(o, "num_key_value_heads", 1, 4096, c->heads, &c->kv_heads, e);
    if (rc == 0)
        rc = get_int(o, "vocab_size", 1, 1 << 24, -1, &c->vocab, e);
    if (rc == 0)
        rc = get_int(o, "max_position_embeddings", 1, 1 << 26, 2048, &c->max_positions, e);
    if (rc == 0)
        rc = get_int(o, "head_dim", 2, 4096, 0, &c->head_dim, e);
    if (rc)
        return rc;
    if (c->heads % c->kv_heads)
        return dtx_fail(e, -EINVAL,
                        "config.json: num_attention_heads %d is not a multiple of num_key_value_heads %d",
                        c->heads, c->kv_heads);
    if (c->head_dim == 0 && c->hidden % c->heads)
        return dtx_fail(e, -EINVAL, "config.json: hidden_size %d is not a multiple of num_attention_heads %d",
                        c->hidden, c->heads);
    if (c->head_dim == 0)
        c->head_dim = c->hidden / c->heads;
    if (c->head_dim < 2 || c->head_dim % 2 || c->head_dim > 4096)
        return dtx_fail(e, -EINVAL,
                        "config.json: a head of %d values: an even number from 2 to 4096 is expected",
                        c->head_dim);
    return 0;
}

/* transformers 4: rope_theta and rope_scaling; transformers 5: both in rope_parameters. */
static int get_rope(const json_t *o, struct dtx_model_config *c, struct dtx_err *e)
{
    const json_t *p = json_object_get(o, "rope_parameters"), *s = json_object_get(o, "rope_scaling");
    const char *type;
    float original;
    int rc;

    if (json_is_object(p))
        s = p;
    rc = get_positive(json_object_get(p, "rope_theta") ? p : o, "rope_theta", 1e12, 10000.0, &c->rope_theta,
                      e);
    if (rc)
        return rc;
    if (json_num(o, "partial_rotary_factor", 1) != 1 || json_num(s, "partial_rotary_factor", 1) != 1)
        return dtx_fail(e, -EINVAL, "config.json: partial_rotary_factor other than 1 is not supported");
    if (!json_is_object(s))
        return 0;
    type = json_str(s, "rope_type", json_str(s, "type", "default"));
    if (strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "llama3"))
        return dtx_fail(e, -EINVAL,
                        "config.json: rope scaling of type %.40s is not supported; supported is llama3",
                        type);
    c->rope_llama3 = true;
    rc = get_positive(s, "factor", 1e6, 0, &c->rope_factor, e);
    if (rc == 0)
        rc = get_positive(s, "low_freq_factor", 1e6, 0, &c->rope_low, e);
    if (rc == 0)
        rc = get_positive(s, "high_freq_factor", 1e6, 0, &c->rope_high, e);
    if (rc == 0)
        rc = get_positive(s, "original_max_position_embeddings", 1 << 26, 0, &original, e);
    if (rc)
        return rc;
    if (c->rope_high <= c->rope_low)
        return dtx_fail(e, -EINVAL, "config.json: high_freq_factor must be above low_freq_factor");
    c->rope_original = (int)original;
    return c->rope_original >= 1
               ? 0
               : dtx_fail(e, -EINVAL, "config.json: original_max_position_embeddings must be at least 1");
}

static bool slides(const json_t *o, int family)
{
    const json_t *types = json_object_get(o, "layer_types"), *t;
    size_t i;

    if (json_is_array(types)) {
        json_array_foreach(types, i, t)
        {
            if (json_is_string(t) && strcmp(json_string_value(t), "sliding_attention") == 0)
                return true;
        }
        return false;
    }
    return family == MISTRAL || (family == QWEN2 && json_flag(o, "use_sliding_window", 0));
}

/* Within the window sliding attention is full attention: the model is used up to that length. */
static int get_window(const json_t *o, int family, struct dtx_model_config *c, struct dtx_err *e)
{
    int window, rc = get_int(o, "sliding_window", 1, 1 << 26, 0, &window, e);

    if (rc == 0 && window > 0 && window < c->max_positions && slides(o, family))
        c->max_positions = window;
    return rc;
}

static void get_dtype(const json_t *o, struct dtx_model_config *c)
{
    static const char *const names[][2] = {{"float32", "F32"}, {"float16", "F16"}, {"bfloat16", "BF16"}};
    const char *dtype = json_str(o, "dtype", json_str(o, "torch_dtype", "float32"));

    snprintf(c->dtype, sizeof(c->dtype), "F32");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(dtype, names[i][0]) == 0)
            snprintf(c->dtype, sizeof(c->dtype), "%s", names[i][1]);
}

static uint64_t count_params(const struct dtx_model_config *c)
{
    uint64_t h = (uint64_t)c->hidden, q = (uint64_t)c->heads * (uint64_t)c->head_dim;
    uint64_t kv = (uint64_t)c->kv_heads * (uint64_t)c->head_dim;
    uint64_t layer = 2 * h * q + 2 * h * kv + 3 * h * (uint64_t)c->ffn + 2 * h;

    if (c->attention_bias)
        layer += q + 2 * kv;
    return (uint64_t)c->layers * layer + (uint64_t)c->vocab * h * (c->tied_head ? 1 : 2) + h;
}

static int read_config(const json_t *o, struct dtx_model_config *c, struct dtx_err *e)
{
    int family, rc;

    if (!json_is_object(o))
        return dtx_fail(e, -EINVAL, "config.json is not a JSON object");
    family = get_family(o, c, e);
    if (family < 0)
        return family;
    rc = refuse_unknown(o, family, e);
    if (rc == 0)
        rc = get_sizes(o, c, e);
    if (rc == 0)
        rc = get_positive(o, "rms_norm_eps", 1, 1e-6, &c->rms_eps, e);
    if (rc == 0)
        rc = get_rope(o, c, e);
    if (rc == 0)
        rc = get_window(o, family, c, e);
    if (rc)
        return rc;
    c->tied_head = json_flag(o, "tie_word_embeddings", 0);
    c->attention_bias = family == QWEN2;
    get_dtype(o, c);
    c->params = count_params(c);
    return 0;
}

int model_config_load(int dirfd, const char *dir, struct dtx_model_config *c, struct dtx_err *e)
{
    int fd = openat(dirfd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), rc;
    json_t *o;

    memset(c, 0, sizeof(*c));
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open folder %s", dir);
    rc = json_parse_file(fd, "config.json", CONFIG_MAX_BYTES, &o, e);
    close(fd);
    if (rc)
        return rc;
    rc = read_config(o, c, e);
    json_decref(o);
    return rc;
}
