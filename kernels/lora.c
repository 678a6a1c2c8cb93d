/* Adapters: scale, first values, and adapters for serving. */
#include <math.h>
#include <stdlib.h>

#include "kernels/job.h"
#include "kernels/peft.h"
#include "kernels/rng.h"

enum { KEY_INIT = 0x696e6974 };

const char *const dtx_target_names[DTX_TARGETS] = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                   "gate_proj", "up_proj", "down_proj"};

struct lora_dims lora_dims_of(const struct dtx_model_config *c)
{
    int q = c->heads * c->head_dim, kv = c->kv_heads * c->head_dim;
    return (struct lora_dims){
        .layers = c->layers,
        .in = {c->hidden, c->hidden, c->hidden, q, c->hidden, c->hidden, c->ffn},
        .out = {q, kv, kv, c->hidden, c->ffn, c->ffn, c->hidden},
    };
}

float lora_scale(const struct dtx_train_params *p)
{
    return (float)(p->alpha / (p->rslora ? sqrt((double)p->rank) : (double)p->rank));
}

void lora_init(const struct lora_dims *d, unsigned targets, int rank, uint64_t seed, float *w)
{
    for (int l = 0; l < d->layers; l++)
        for (int t = 0; t < DTX_TARGETS; t++) {
            if (!(targets >> t & 1))
                continue;
            uint64_t key = rng_key(rng_key(seed, KEY_INIT), (uint64_t)l << 8 | (uint64_t)t);
            size_t at = lora_offset(d, targets, rank, l, t), a = (size_t)rank * (size_t)d->in[t];
            size_t bn = (size_t)rank * (size_t)d->out[t];
            double bound = 1.0 / sqrt((double)d->in[t]);
            for (size_t i = 0; i < a; i++)
                w[at + i] = (float)(bound * (2 * rng_double(key, i) - 1));
            for (size_t i = 0; i < bn; i++)
                w[at + a + i] = 0;
        }
}

struct op_adapter adapter_op(const struct dtx_adapter *a)
{
    return (struct op_adapter){.w = a->w, .rank = a->rank, .targets = a->targets, .scale = a->scale};
}

static int adapter_new(struct dtx_base *b, const struct dtx_train_params *p, struct dtx_adapter **out,
                       struct dtx_err *e)
{
    struct dtx_adapter *a = calloc(1, sizeof *a);
    if (!a)
        return dtx_fail(e, -ENOMEM, "out of memory");
    *a = (struct dtx_adapter){.base = b, .rank = p->rank, .targets = p->targets, .scale = lora_scale(p)};
    a->n = lora_floats(&b->dims, p->targets, p->rank);
    a->w = base_alloc(b, a->n * sizeof *a->w, e);
    if (!a->w || workspace_need(b, SERVE_ROWS, p->rank, e) < 0) {
        dtx_adapter_free(a);
        return -ENOMEM;
    }
    *out = a;
    return 0;
}

int dtx_adapter_load(struct dtx_base *b, int dirfd, const char *dir, struct dtx_adapter **out,
                     struct dtx_err *e)
{
    struct dtx_train_params p;
    struct dtx_adapter *a = NULL;
    int rc = dtx_adapter_check(&b->config, dirfd, dir, &p, e);
    if (rc == 0)
        rc = adapter_new(b, &p, &a, e);
    float *host = rc == 0 ? malloc(a->n * sizeof *host) : NULL;
    if (rc == 0 && !host)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = peft_read(&b->dims, p.targets, p.rank, dirfd, dir, host, e);
    if (rc == 0)
        b->ops->upload(b->dev, a->w, host, a->n * sizeof *host);
    free(host);
    if (rc < 0) {
        dtx_adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

int dtx_adapter_from_job(const struct dtx_job *j, struct dtx_adapter **out, struct dtx_err *e)
{
    int rc = adapter_new(j->base, &j->params, out, e);
    if (rc == 0)
        j->base->ops->copy(j->base->dev, (*out)->w, j->w, j->n * sizeof *j->w);
    return rc;
}

uint64_t dtx_adapter_bytes(const struct dtx_adapter *a)
{
    return dtx_adapter_plan(a->base->device, &a->base->config, a->rank, a->targets);
}

void dtx_adapter_free(struct dtx_adapter *a)
{
    if (!a)
        return;
    a->base->ops->free(a->base->dev, a->w);
    free(a);
}
