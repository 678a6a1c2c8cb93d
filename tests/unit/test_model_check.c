/* dtx_model_check: a small made-up model that is right, and every way in which it can be wrong. */
#include <check.h>
#include <stdlib.h>

#include "kernels/safetensors.h"
#include "tests/unit/files_fixture.h"

static struct dtx_err err;
static struct fx f;

enum { H = 8, FFN = 12, LAYERS = 2, VOCAB = 264 }; /* two heads of 4, one key-value head */

struct part {
    char name[64];
    int64_t rows, columns;
    enum st_type type;
};

static struct part parts[64];
static size_t n_parts;

static void part(const char *name, int64_t rows, int64_t columns)
{
    snprintf(parts[n_parts].name, sizeof(parts[0].name), "%s", name);
    parts[n_parts].rows = rows;
    parts[n_parts].columns = columns;
    parts[n_parts++].type = ST_BF16;
}

static void layer_part(int layer, const char *name, int64_t rows, int64_t columns)
{
    char full[64];

    snprintf(full, sizeof(full), "model.layers.%d.%s.weight", layer, name);
    part(full, rows, columns);
}

static void list_parts(void)
{
    n_parts = 0;
    part("model.embed_tokens.weight", VOCAB, H);
    for (int i = 0; i < LAYERS; i++) {
        layer_part(i, "input_layernorm", H, 0);
        layer_part(i, "self_attn.q_proj", H, H);
        layer_part(i, "self_attn.k_proj", 4, H);
        layer_part(i, "self_attn.v_proj", 4, H);
        layer_part(i, "self_attn.o_proj", H, H);
        layer_part(i, "post_attention_layernorm", H, 0);
        layer_part(i, "mlp.gate_proj", FFN, H);
        layer_part(i, "mlp.up_proj", FFN, H);
        layer_part(i, "mlp.down_proj", H, FFN);
    }
    part("model.norm.weight", H, 0);
    part("lm_head.weight", VOCAB, H);
}

static void put_weights(void)
{
    static const float zeros[VOCAB * H];
    struct st_tensor t[64];

    for (size_t i = 0; i < n_parts; i++) {
        uint64_t n = (uint64_t)parts[i].rows * (uint64_t)(parts[i].columns ? parts[i].columns : 1);
        t[i] = (struct st_tensor){.name = parts[i].name,
                                  .type = parts[i].type,
                                  .ndim = parts[i].columns ? 2 : 1,
                                  .shape = {parts[i].rows, parts[i].columns},
                                  .elements = n,
                                  .nbytes = n * (parts[i].type == ST_F32 ? 4 : 2),
                                  .data = zeros};
    }
    ck_assert_msg(st_write(f.fd, "model.safetensors", t, n_parts, &err) == 0, "%s", err.msg);
}

static void put_tokenizer(int extra)
{
    struct buf b = BUF_INIT;
    char text[16];

    spm_begin(&b, true);
    for (int i = 0; i < extra; i++) {
        snprintf(text, sizeof(text), "x%d", i);
        spm_piece(&b, text, (float)-i, 1);
    }
    spm_end(&b, 2, true, true, false, NULL);
    fx_put(&f, "tokenizer.model", b.p, b.len);
    buf_release(&b);
}

static void put_config(const char *arch, bool tied, int vocab)
{
    struct buf b = BUF_INIT;

    buf_addf(
        &b,
        "{\"architectures\":[\"%s\"],\"hidden_size\":%d,\"intermediate_size\":%d,\"num_hidden_layers\":%d,"
        "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":%d,\"tie_word_embeddings\":%s}",
        arch, H, FFN, LAYERS, vocab, tied ? "true" : "false");
    fx_puts(&f, "config.json", b.p);
    buf_release(&b);
}

static void setup(void)
{
    f = fx_new();
    list_parts();
    put_weights();
    put_tokenizer(5);
    put_config("LlamaForCausalLM", false, VOCAB);
}

static void teardown(void)
{
    fx_drop(&f);
}

static struct dtx_model_config good(void)
{
    struct dtx_model_config c;

    ck_assert_msg(dtx_model_check(AT_FDCWD, f.path, &c, &err) == 0, "%s", err.msg);
    return c;
}

static void refused(const char *word)
{
    struct dtx_model_config c;

    ck_assert_int_lt(dtx_model_check(AT_FDCWD, f.path, &c, &err), 0);
    ck_assert_msg(strstr(err.msg, word) != NULL, "\"%s\" does not speak of \"%s\"", err.msg, word);
}

static struct part *find_part(const char *name)
{
    for (size_t i = 0; i < n_parts; i++)
        if (strcmp(parts[i].name, name) == 0)
            return &parts[i];
    ck_abort_msg("no part %s", name);
}

START_TEST(a_good_model)
{
    struct dtx_model_config c = good();
    uint64_t elements = 0;

    for (size_t i = 0; i < n_parts; i++)
        elements += (uint64_t)parts[i].rows * (uint64_t)(parts[i].columns ? parts[i].columns : 1);
    ck_assert_uint_eq(c.params, elements);
    ck_assert_uint_gt(c.file_bytes, 2 * elements);
    ck_assert_str_eq(c.dtype, "BF16");
}
END_TEST

START_TEST(tied_head_and_extra_tensors)
{
    put_config("LlamaForCausalLM", true, VOCAB);
    good(); /* a copy of the head is tolerated */
    n_parts--;
    put_weights();
    good();
    part("model.layers.0.self_attn.rotary_emb.inv_freq", 2, 0);
    put_weights();
    good();
    put_config("LlamaForCausalLM", false, VOCAB);
    refused("lm_head.weight is missing");
}
END_TEST

START_TEST(wrong_tensors)
{
    find_part("model.layers.1.mlp.up_proj.weight")->rows = FFN + 1;
    put_weights();
    refused("model.layers.1.mlp.up_proj.weight has shape [13, 8], config.json asks for [12, 8]");
    list_parts();
    find_part("model.norm.weight")->columns = 1;
    put_weights();
    refused("model.norm.weight has shape [8, 1]");
    list_parts();
    snprintf(find_part("model.layers.0.self_attn.q_proj.weight")->name, 64, "model.layers.0.self_attn.W");
    put_weights();
    refused("model.layers.0.self_attn.q_proj.weight is missing");
    list_parts();
    layer_part(LAYERS, "mlp.up_proj", FFN, H);
    put_weights();
    refused("model.layers.2.mlp.up_proj.weight does not belong");
}
END_TEST

START_TEST(biases)
{
    char name[64];

    put_config("Qwen2ForCausalLM", false, VOCAB);
    refused("q_proj.bias is missing");
    for (int i = 0; i < LAYERS; i++)
        for (int k = 0; k < 3; k++) {
            snprintf(name, sizeof(name), "model.layers.%d.self_attn.%c_proj.bias", i, "qkv"[k]);
            part(name, k ? 4 : H, 0);
        }
    put_weights();
    good();
    put_config("LlamaForCausalLM", false, VOCAB);
    refused("bias does not belong");
}
END_TEST

START_TEST(a_quantized_tensor)
{
    fx_put_st(
        &f, "model.safetensors",
        "{\"model.embed_tokens.weight\":{\"dtype\":\"I8\",\"shape\":[264,8],\"data_offsets\":[0,2112]}}",
        NULL, 264 * 8);
    refused("quantized");
}
END_TEST

START_TEST(truncated_weights)
{
    struct stat st;

    ck_assert_int_eq(fstatat(f.fd, "model.safetensors", &st, 0), 0);
    for (off_t cut = 1; cut < st.st_size; cut += 97) {
        int fd = openat(f.fd, "model.safetensors", O_WRONLY);
        ck_assert_int_eq(ftruncate(fd, st.st_size - cut), 0);
        close(fd);
        refused("model.safetensors");
    }
}
END_TEST

START_TEST(wrong_tokenizer)
{
    put_tokenizer(6);
    refused("the tokenizer has 265 tokens, the model only 264");
    put_tokenizer(0);
    good(); /* some rows without a token are usual */
    ck_assert_int_eq(unlinkat(f.fd, "tokenizer.model", 0), 0);
    refused("copy the tokenizer");
}
END_TEST

START_TEST(a_tokenizer_of_another_model)
{
    n_parts = 0;
    list_parts();
    put_config("LlamaForCausalLM", true, 4000);
    n_parts--;
    find_part("model.embed_tokens.weight")->rows = 4000;
    find_part("model.embed_tokens.weight")->type = ST_BF16;
    /* written without data of that size: only the header matters, the file is extended */
    struct buf b = BUF_INIT;
    uint64_t at = 0;
    buf_adds(&b, "{");
    for (size_t i = 0; i < n_parts; i++) {
        uint64_t n = 2 * (uint64_t)parts[i].rows * (uint64_t)(parts[i].columns ? parts[i].columns : 1);
        buf_addf(&b, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%d", i ? "," : "", parts[i].name,
                 (int)parts[i].rows);
        if (parts[i].columns)
            buf_addf(&b, ",%d", (int)parts[i].columns);
        buf_addf(&b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + n);
        at += n;
    }
    buf_adds(&b, "}");
    fx_put_st(&f, "model.safetensors", b.p, NULL, at);
    buf_release(&b);
    refused("the tokenizer has only 264 tokens, the model 4000");
}
END_TEST

START_TEST(a_real_model)
{
    struct dtx_model_config c;

    if (!fx_exists("../shared/models/stories260K/config.json")) {
        printf("SKIP: a_real_model: ../shared/models/stories260K is not there\n");
        return;
    }
    ck_assert_msg(dtx_model_check(AT_FDCWD, "../shared/models/stories260K", &c, &err) == 0, "%s", err.msg);
    ck_assert_uint_eq(c.params, 260032);
    ck_assert_uint_eq(c.file_bytes, 1044992);
    ck_assert_str_eq(c.dtype, "F32");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("model_check");
    TCase *c = tcase_create("all");
    SRunner *r;
    int failed;

    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, a_good_model);
    tcase_add_test(c, tied_head_and_extra_tensors);
    tcase_add_test(c, wrong_tensors);
    tcase_add_test(c, biases);
    tcase_add_test(c, a_quantized_tensor);
    tcase_add_test(c, truncated_weights);
    tcase_add_test(c, wrong_tokenizer);
    tcase_add_test(c, a_tokenizer_of_another_model);
    tcase_add_test(c, a_real_model);
    suite_add_tcase(s, c);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
