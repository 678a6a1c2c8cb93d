/* config.json of the supported families, as transformers 4 and 5 write it, and what is refused. */
#include <check.h>
#include <stdlib.h>

#include "kernels/safetensors.h"
#include "tests/unit/files_fixture.h"

static struct dtx_err err;
static struct fx f;

static void setup(void)
{
    f = fx_new();
}

static void teardown(void)
{
    fx_drop(&f);
}

#define SIZES                                                                                                \
    "\"hidden_size\":64,\"intermediate_size\":96,\"num_hidden_layers\":2,\"num_attention_heads\":8,\"vocab_" \
    "size\":512"
#define LLAMA(more) "{\"architectures\":[\"LlamaForCausalLM\"]," SIZES more "}"

static struct dtx_model_config load(const char *text)
{
    struct dtx_model_config c;

    fx_puts(&f, "config.json", text);
    ck_assert_msg(model_config_load(AT_FDCWD, f.path, &c, &err) == 0, "%s", err.msg);
    return c;
}

static void refused(const char *text, const char *word)
{
    struct dtx_model_config c;

    fx_puts(&f, "config.json", text);
    ck_assert_msg(model_config_load(AT_FDCWD, f.path, &c, &err) == -EINVAL, "accepted: %s", text);
    ck_assert_msg(strstr(err.msg, word) != NULL, "\"%s\" does not speak of \"%s\"", err.msg, word);
}

START_TEST(llama2)
{
    struct dtx_model_config c =
        load(LLAMA(",\"num_key_value_heads\":4,\"max_position_embeddings\":4096,\"rms_norm_eps\":"
                   "1e-05,\"torch_dtype\":\"float16\",\"rope_scaling\":null"));

    ck_assert_str_eq(c.arch, "LlamaForCausalLM");
    ck_assert(c.layers == 2 && c.hidden == 64 && c.ffn == 96 && c.heads == 8 && c.kv_heads == 4 &&
              c.head_dim == 8);
    ck_assert(c.vocab == 512 && c.max_positions == 4096 && c.rms_eps == 1e-5f && c.rope_theta == 10000.0f);
    ck_assert(!c.tied_head && !c.attention_bias && !c.rope_llama3);
    ck_assert_str_eq(c.dtype, "F16");
    /* per layer: q 64x64, o 64x64, k and v 32x64, mlp 3x64x96, two norms; embedding, head, norm */
    ck_assert_uint_eq(c.params, 2 * (2 * 4096 + 2 * 2048 + 3 * 6144 + 128) + 2 * 512 * 64 + 64);
}
END_TEST

static void check_llama3(const char *text)
{
    struct dtx_model_config c = load(text);

    ck_assert(c.rope_llama3 && c.rope_theta == 500000.0f && c.rope_factor == 8 && c.rope_low == 1 &&
              c.rope_high == 4);
    ck_assert_int_eq(c.rope_original, 8192);
    ck_assert(c.tied_head);
    ck_assert_str_eq(c.dtype, "BF16");
}

#define SCALING                                                                                              \
    "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":"  \
    "8192,"                                                                                                  \
    "\"rope_type\":\"llama3\""

START_TEST(llama3_of_transformers_4_and_5)
{
    check_llama3(LLAMA(",\"tie_word_embeddings\":true,\"torch_dtype\":\"bfloat16\",\"rope_theta\":500000.0,"
                       "\"rope_scaling\":{" SCALING "}"));
    check_llama3(
        LLAMA(",\"tie_word_embeddings\":true,\"dtype\":\"bfloat16\",\"rope_parameters\":{\"rope_theta\":"
              "500000.0," SCALING "}"));
    struct dtx_model_config c = load(
        LLAMA(",\"rope_parameters\":{\"rope_theta\":250000.0,\"rope_type\":\"default\"},\"head_dim\":16"));
    ck_assert(!c.rope_llama3 && c.rope_theta == 250000.0f && c.head_dim == 16);
}
END_TEST

#define FAMILY(arch, more)                                                                                   \
    "{\"architectures\":[\"" arch "\"],\"max_position_embeddings\":32768," SIZES more "}"

START_TEST(sliding_windows)
{
    ck_assert_int_eq(load(FAMILY("MistralForCausalLM", ",\"sliding_window\":4096")).max_positions, 4096);
    ck_assert_int_eq(load(FAMILY("MistralForCausalLM", ",\"sliding_window\":null")).max_positions, 32768);
    ck_assert_int_eq(load(FAMILY("MistralForCausalLM", ",\"sliding_window\":65536")).max_positions, 32768);
    ck_assert_int_eq(load(FAMILY("Qwen2ForCausalLM", ",\"sliding_window\":4096,\"use_sliding_window\":false"))
                         .max_positions,
                     32768);
    ck_assert_int_eq(load(FAMILY("Qwen2ForCausalLM", ",\"sliding_window\":4096,\"use_sliding_window\":true"))
                         .max_positions,
                     4096);
    ck_assert_int_eq(
        load(FAMILY("Qwen2ForCausalLM", ",\"sliding_window\":4096,\"layer_types\":[\"full_attention\"]"))
            .max_positions,
        32768);
}
END_TEST

START_TEST(qwen2_has_biases)
{
    struct dtx_model_config c = load(FAMILY("Qwen2ForCausalLM", ",\"tie_word_embeddings\":true"));

    ck_assert(c.attention_bias && c.tied_head);
    ck_assert_uint_eq(c.params, 2 * (4 * 4096 + 3 * 6144 + 128 + 3 * 64) + 512 * 64 + 64);
    c = load("{\"model_type\":\"mistral\"," SIZES "}");
    ck_assert_str_eq(c.arch, "MistralForCausalLM");
}
END_TEST

START_TEST(refusals)
{
    static const char *const bad[][2] = {
        {"[]", "not a JSON object"},
        {"{}", "(missing)"},
        {"{\"architectures\":[\"GPT2LMHeadModel\"]}", "GPT2LMHeadModel"},
        {"{\"architectures\":[\"LlamaForCausalLM\"]}", "num_hidden_layers is missing"},
        {LLAMA(",\"num_key_value_heads\":3"), "multiple of num_key_value_heads"},
        {LLAMA(",\"num_key_value_heads\":0"), "num_key_value_heads is 0"},
        {LLAMA(",\"num_key_value_heads\":\"4\""), "whole number"},
        {LLAMA(",\"head_dim\":7"), "head of 7"},
        {LLAMA(",\"max_position_embeddings\":99999999999"), "max_position_embeddings is 99999999999"},
        {LLAMA(",\"rms_norm_eps\":0"), "rms_norm_eps"},
        {LLAMA(",\"rms_norm_eps\":-1"), "rms_norm_eps"},
        {LLAMA(",\"rope_theta\":\"x\""), "rope_theta"},
        {LLAMA(",\"rope_theta\":1e300"), "rope_theta"},
        {LLAMA(",\"hidden_act\":\"gelu\""), "gelu"},
        {LLAMA(",\"attention_bias\":true"), "attention_bias"},
        {LLAMA(",\"mlp_bias\":true"), "mlp_bias"},
        {LLAMA(",\"quantization_config\":{\"quant_method\":\"gptq\"}"), "gptq"},
        {LLAMA(",\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}"), "linear"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}"), "low_freq_factor is missing"},
        {LLAMA(",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_"
               "factor\":4,"
               "\"original_max_position_embeddings\":8192}"),
         "above low_freq_factor"},
        {LLAMA(",\"partial_rotary_factor\":0.5"), "partial_rotary_factor"},
        {"{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":65,\"intermediate_size\":96,"
         "\"num_hidden_layers\":2,\"num_attention_heads\":8,\"vocab_size\":512}",
         "not a multiple of num_attention_heads"},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        refused(bad[i][0], bad[i][1]);
}
END_TEST

START_TEST(no_file)
{
    struct dtx_model_config c;

    ck_assert_int_eq(model_config_load(AT_FDCWD, f.path, &c, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.msg, "config.json"));
    ck_assert_int_eq(model_config_load(AT_FDCWD, "/no/such/folder", &c, &err), -ENOENT);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config");
    TCase *c = tcase_create("all");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, llama2);
    tcase_add_test(c, llama3_of_transformers_4_and_5);
    tcase_add_test(c, sliding_windows);
    tcase_add_test(c, qwen2_has_biases);
    tcase_add_test(c, refusals);
    tcase_add_test(c, no_file);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
