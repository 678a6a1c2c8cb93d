/*
 * Hostile base models: config.json, model.safetensors.index.json ("" for none), two files of weights and
 * tokenizer.json, with a line "%%" between each.  Whether all is there is looked at by dtxd, the rest by a
 * check.
 */
#include "kernels/dtx_engine.h"
#include "scheduler/internal.h"
#include "tests/fuzz/fuzz.h"

enum { CONFIG, INDEX, WEIGHTS, MORE, TOKENIZER, PARTS };

static void put_or_remove(const char *name, const uint8_t *data, size_t n)
{
    if (n)
        fuzz_put(name, data, n);
    else
        unlinkat(fuzz_dir(), name, 0);
}

static void check_accepted(const struct dtx_model_config *c)
{
    FUZZ_ASSERT(c->layers > 0 && c->hidden > 0 && c->ffn > 0 && c->vocab > 0 && c->max_positions > 0);
    FUZZ_ASSERT(c->heads > 0 && c->kv_heads > 0 && c->head_dim > 0 && c->heads % c->kv_heads == 0);
    FUZZ_ASSERT(c->rms_eps > 0 && c->rope_theta > 0 && c->arch[0] && c->dtype[0]);
    FUZZ_ASSERT(c->params && c->params <= c->file_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *part[PARTS] = {0};
    size_t n[PARTS] = {0};
    struct dtx_model_config c;
    struct dtx_err e = {0};

    for (int i = 0; i < PARTS && size; i++) {
        const uint8_t *cut = memmem(data, size, "\n%%\n", 4);
        part[i] = data;
        n[i] = cut ? (size_t)(cut - data) : size;
        size -= n[i] + (cut ? 4 : 0);
        data += n[i] + (cut ? 4 : 0);
    }
    put_or_remove("config.json", part[CONFIG], n[CONFIG]);
    put_or_remove("model.safetensors.index.json", part[INDEX], n[INDEX]);
    put_or_remove("model.safetensors", part[WEIGHTS], n[INDEX] ? 0 : n[WEIGHTS]);
    put_or_remove("a.safetensors", part[WEIGHTS], n[INDEX] ? n[WEIGHTS] : 0);
    put_or_remove("b.safetensors", part[MORE], n[MORE]);
    put_or_remove("tokenizer.json", part[TOKENIZER], n[TOKENIZER]);
    model_shards_complete(fuzz_dir(), ".");
    if (dtx_model_check(fuzz_dir(), ".", &c, &e))
        FUZZ_ASSERT(e.code < 0 && e.msg[0]);
    else
        check_accepted(&c);
    return 0;
}
