/*
 * Hostile PEFT folders for a small base: adapter_config.json, a line "%%", adapter_model.safetensors.  What
 * is accepted must be readable as an adapter of that base.
 */
#include <math.h>

#include "kernels/dtx_engine.h"
#include "kernels/peft.h"
#include "tests/fuzz/fuzz.h"

static const struct dtx_model_config base = {.arch = "LlamaForCausalLM",
                                             .layers = 2,
                                             .hidden = 4,
                                             .ffn = 6,
                                             .heads = 2,
                                             .kv_heads = 1,
                                             .head_dim = 2,
                                             .vocab = 16,
                                             .max_positions = 64};

static void check_accepted(const struct dtx_train_params *p)
{
    struct lora_dims d = lora_dims_of(&base);
    struct dtx_err e = {0};
    size_t n;
    float *w;
    int rc;

    FUZZ_ASSERT(p->rank >= 1 && p->rank <= DTX_MAX_RANK && isfinite(p->alpha));
    FUZZ_ASSERT(p->targets && p->targets < 1u << DTX_TARGETS);
    n = lora_floats(&d, p->targets, p->rank);
    w = malloc(n * sizeof(*w));
    FUZZ_ASSERT(w);
    rc = peft_read(&d, p->targets, p->rank, fuzz_dir(), ".", w, &e);
    FUZZ_ASSERT(rc == 0 || strstr(e.msg, "not finite"));
    for (size_t i = 0; rc == 0 && i < n; i++)
        FUZZ_ASSERT(isfinite(w[i]));
    free(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *cut = memmem(data, size, "\n%%\n", 4);
    struct dtx_train_params p;
    struct dtx_err e = {0};

    fuzz_put("adapter_config.json", data, cut ? (size_t)(cut - data) : size);
    unlinkat(fuzz_dir(), "adapter_model.safetensors", 0);
    if (cut)
        fuzz_put("adapter_model.safetensors", cut + 4, size - (size_t)(cut - data) - 4);
    if (dtx_adapter_check(&base, fuzz_dir(), ".", &p, &e))
        FUZZ_ASSERT(e.code < 0 && e.msg[0]);
    else
        check_accepted(&p);
    return 0;
}
