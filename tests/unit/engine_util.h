/* What the engine's tests share: scratch folders, small random models, rows, golden files. */
#ifndef ENGINE_UTIL_H
#define ENGINE_UTIL_H

#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/job.h"
#include "kernels/peft.h"
#include "kernels/rng.h"
#include "kernels/safetensors.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct dtx_err e = {0};                                                                              \
        int rc_ = (call);                                                                                    \
        ck_assert_msg(rc_ == 0, "%s: %d %s", #call, rc_, e.msg);                                             \
    } while (0)

static inline float util_random(uint64_t key, uint64_t i)
{
    return (float)(2 * rng_double(key, i) - 1);
}

static inline float *util_floats(uint64_t key, size_t n, float size)
{
    float *x = aligned_alloc(64, (n * sizeof *x + 127) / 64 * 64);
    for (size_t i = 0; i < n; i++)
        x[i] = size * util_random(key, i);
    return x;
}

static inline int util_dir(char path[64])
{
    strcpy(path, "/tmp/dtx-engine-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(path));
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(fd, 0);
    return fd;
}

static inline void util_dir_done(int fd, const char *path)
{
    close(fd);
    fd_remove_tree(AT_FDCWD, path, NULL);
}

struct util_model {
    int layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
    bool tied, bias, llama3;
};

static inline void util_add(struct st_tensor *t, size_t *n, const char *name, int rows, int cols, float size,
                            float mean)
{
    size_t count = (size_t)rows * (size_t)(cols ? cols : 1);
    float *x = util_floats(1000 + *n, count, size);
    for (size_t i = 0; i < count; i++)
        x[i] += mean;
    t[(*n)++] = (struct st_tensor){.name = strdup(name),
                                   .type = ST_F32,
                                   .ndim = cols ? 2 : 1,
                                   .shape = {rows, cols},
                                   .elements = count,
                                   .nbytes = 4 * count,
                                   .data = x};
}

/* A random model in the folder dirfd/name. */
static inline void util_write_model(int dirfd, const char *name, const struct util_model *m)
{
    struct st_tensor t[400];
    size_t n = 0;
    char at[128], path[256], config[1024];
    int q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    util_add(t, &n, "model.embed_tokens.weight", m->vocab, m->hidden, 0.5f, 0);
    for (int i = 0; i < m->layers; i++) {
        struct {
            const char *name;
            int rows, cols;
        } w[] = {{"self_attn.q_proj", q, m->hidden},   {"self_attn.k_proj", kv, m->hidden},
                 {"self_attn.v_proj", kv, m->hidden},  {"self_attn.o_proj", m->hidden, q},
                 {"mlp.gate_proj", m->ffn, m->hidden}, {"mlp.up_proj", m->ffn, m->hidden},
                 {"mlp.down_proj", m->hidden, m->ffn}};
        for (size_t k = 0; k < 7; k++) {
            snprintf(at, sizeof at, "model.layers.%d.%s.weight", i, w[k].name);
            util_add(t, &n, at, w[k].rows, w[k].cols, 2.0f / sqrtf((float)w[k].cols), 0);
            snprintf(at, sizeof at, "model.layers.%d.%s.bias", i, w[k].name);
            if (k < 3 && m->bias)
                util_add(t, &n, at, w[k].rows, 0, 0.3f, 0);
        }
        snprintf(at, sizeof at, "model.layers.%d.input_layernorm.weight", i);
        util_add(t, &n, at, m->hidden, 0, 0.3f, 1);
        snprintf(at, sizeof at, "model.layers.%d.post_attention_layernorm.weight", i);
        util_add(t, &n, at, m->hidden, 0, 0.3f, 1);
    }
    util_add(t, &n, "model.norm.weight", m->hidden, 0, 0.3f, 1);
    if (!m->tied)
        util_add(t, &n, "lm_head.weight", m->vocab, m->hidden, 0.5f, 0);
    MUST(fd_mkdirs(dirfd, name, 0755, &e));
    snprintf(path, sizeof path, "%s/model.safetensors", name);
    MUST(st_write(dirfd, path, t, n, &e));
    for (size_t i = 0; i < n; i++) {
        free(t[i].name);
        free((void *)t[i].data);
    }
    int len = snprintf(
        config, sizeof config,
        "{\"architectures\":[\"%s\"],\"model_type\":\"%s\",\"hidden_size\":%d,\"intermediate_size\":%d,"
        "\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,"
        "\"vocab_size\":%d,\"max_position_embeddings\":512,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0,"
        "\"hidden_act\":\"silu\",\"tie_word_embeddings\":%s,\"torch_dtype\":\"float32\"%s}",
        m->bias ? "Qwen2ForCausalLM" : "LlamaForCausalLM", m->bias ? "qwen2" : "llama", m->hidden, m->ffn,
        m->layers, m->heads, m->kv_heads, m->head_dim, m->vocab, m->tied ? "true" : "false",
        m->llama3 ? ",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,"
                    "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64}"
                  : "");
    snprintf(path, sizeof path, "%s/config.json", name);
    MUST(fd_replace_file(dirfd, path, config, (size_t)len, 0644, &e));
}

static const struct util_model util_small = {
    .layers = 2, .hidden = 48, .ffn = 80, .heads = 4, .kv_heads = 2, .head_dim = 16, .vocab = 101};

/* A base in a scratch folder, loaded. */
struct util_base {
    char path[64];
    int dir;
    struct dtx_device *device;
    struct dtx_base *base;
};

static inline struct util_base util_base_of(const struct util_model *m, int threads)
{
    struct util_base u = {0};
    u.dir = util_dir(u.path);
    util_write_model(u.dir, "model", m);
    MUST(dtx_device_open("cpu", threads, &u.device, &e));
    MUST(dtx_base_load(u.device, u.dir, "model", &u.base, &e));
    return u;
}

static inline void util_base_done(struct util_base *u)
{
    dtx_base_free(u->base);
    dtx_device_close(u->device);
    util_dir_done(u->dir, u->path);
}

/* n rows of random tokens of random lengths in [min, max], the first third of each without labels. */
static inline struct dtx_rows util_rows(uint64_t key, uint32_t n, int min, int max, int vocab)
{
    struct dtx_rows r = {.n = n, .start = calloc(n + 1, sizeof *r.start)};
    r.ids = calloc((size_t)n * (size_t)max + 1, sizeof *r.ids);
    r.labels = calloc((size_t)n * (size_t)max + 1, sizeof *r.labels);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t len = (uint64_t)min + rng_key(key, i) % (uint64_t)(max - min + 1);
        for (uint64_t k = 0; k < len; k++) {
            uint64_t at = r.start[i] + k;
            r.ids[at] = (int32_t)(rng_key(key + 77, at) % (uint64_t)vocab);
            r.labels[at] = k < len / 3 + 1 ? -100 : r.ids[at];
        }
        r.start[i + 1] = r.start[i] + len;
    }
    return r;
}

static inline void util_rows_free(struct dtx_rows *r)
{
    free(r->ids);
    free(r->labels);
    free(r->start);
}

static inline struct dtx_train_params util_params(void)
{
    return (struct dtx_train_params){.schedule = DTX_COSINE,
                                     .optimizer = DTX_ADAMW,
                                     .learning_rate = 5e-3,
                                     .weight_decay = 0.01,
                                     .max_grad_norm = 1.0,
                                     .warmup_ratio = 0.1,
                                     .epochs = 2,
                                     .batch_size = 4,
                                     .grad_acc_steps = 1,
                                     .block_size = 256,
                                     .rank = 4,
                                     .alpha = 8,
                                     .targets = (1u << DTX_TARGETS) - 1,
                                     .shuffle = true,
                                     .seed = 42};
}

/* A copy of the job's adapter (the CPU's device memory is ours). */
static inline float *util_weights(const struct dtx_job *j)
{
    float *w = malloc(j->n * sizeof *w);
    memcpy(w, j->w, j->n * sizeof *w);
    return w;
}

static inline bool util_have(const char *test, const char *path)
{
    if (access(path, R_OK) == 0)
        return true;
    printf("SKIP: %s: %s is not there\n", test, path);
    return false;
}

static inline int util_main(Suite *s)
{
    SRunner *r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
