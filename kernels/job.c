/* A LoRA job's life: checks, plan, creation, export. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/job.h"
#include "kernels/peft.h"
#include "scheduler/base/sha256.h"

static int check_params(const struct dtx_train_params *p, struct dtx_err *e)
{
    if (p->rank < 1 || p->rank > DTX_MAX_RANK)
        return dtx_fail(e, -EINVAL, "lora_r is %d, expected 1 to %d", p->rank, DTX_MAX_RANK);
    if (!p->targets || p->targets >> DTX_TARGETS)
        return dtx_fail(e, -EINVAL, "target_modules: expected at least one of the seven projections");
    if (p->batch_size < 1 || p->batch_size > 1 << 20 || p->grad_acc_steps < 1 || p->grad_acc_steps > 1 << 20)
        return dtx_fail(e, -EINVAL, "batch_size %d, grad_acc_steps %d: expected 1 to %d each", p->batch_size,
                        p->grad_acc_steps, 1 << 20);
    if (!(p->dropout >= 0) || p->dropout > 0.99)
        return dtx_fail(e, -EINVAL, "lora_dropout is %g, expected 0 to 0.99", p->dropout);
    if (!isfinite(p->alpha) || !(p->learning_rate >= 0) || !isfinite(p->learning_rate) ||
        !isfinite(p->weight_decay) || !(p->max_grad_norm >= 0))
        return dtx_fail(
            e, -EINVAL,
            "lora_alpha, learning_rate, weight_decay and max_grad_norm must be finite numbers, not negative");
    if (!(p->warmup_ratio >= 0) || p->warmup_ratio > 1)
        return dtx_fail(e, -EINVAL, "warmup_ratio is %g, expected 0 to 1", p->warmup_ratio);
    if (p->max_steps <= 0 && !(p->epochs > 0 && p->epochs <= 1e6))
        return dtx_fail(e, -EINVAL, "epochs is %g, expected more than 0, or max_steps", p->epochs);
    return 0;
}

/* Row lengths, ids and labels must be the model's. */
static int check_rows(const struct dtx_model_config *c, const struct dtx_rows *rows, struct dtx_err *e)
{
    if (rows->n == 0)
        return dtx_fail(e, -EINVAL, "the dataset has no rows to train on");
    for (uint32_t i = 0; i < rows->n; i++) {
        if (rows->start[i + 1] < rows->start[i] ||
            rows->start[i + 1] - rows->start[i] > (uint64_t)c->max_positions)
            return dtx_fail(
                e, -EINVAL, "row %u has %llu tokens, the model has %d positions: use a smaller block_size",
                i + 1, (unsigned long long)(rows->start[i + 1] - rows->start[i]), c->max_positions);
        for (uint64_t k = rows->start[i]; k < rows->start[i + 1]; k++)
            if (rows->ids[k] < 0 || rows->ids[k] >= c->vocab ||
                (rows->labels[k] != -100 && (rows->labels[k] < 0 || rows->labels[k] >= c->vocab)))
                return dtx_fail(e, -EINVAL, "row %u holds token %d, label %d; the model knows 0 to %d", i + 1,
                                rows->ids[k], rows->labels[k], c->vocab - 1);
    }
    return 0;
}

static void hash_number(struct sha256 *s, const char *name, double v)
{
    char line[96];
    int n = snprintf(line, sizeof line, "%s=%.17g\n", name, v);
    sha256_add(s, line, (size_t)n);
}

static int make_key(struct dtx_job *j, struct dtx_err *e)
{
    const struct dtx_train_params *p = &j->params;
    const struct dtx_model_config *c = &j->base->config;
    struct sha256 *s = sha256_new();
    if (!s)
        return dtx_fail(e, -ENOMEM, "out of memory");
    const struct {
        const char *name;
        double v;
    } f[] = {{"layers", c->layers},
             {"hidden", c->hidden},
             {"ffn", c->ffn},
             {"heads", c->heads},
             {"kv_heads", c->kv_heads},
             {"head_dim", c->head_dim},
             {"vocab", c->vocab},
             {"schedule", p->schedule},
             {"optimizer", p->optimizer},
             {"learning_rate", p->learning_rate},
             {"weight_decay", p->weight_decay},
             {"max_grad_norm", p->max_grad_norm},
             {"warmup_ratio", p->warmup_ratio},
             {"epochs", p->epochs},
             {"max_steps", (double)p->max_steps},
             {"batch_size", p->batch_size},
             {"grad_acc_steps", p->grad_acc_steps},
             {"rank", p->rank},
             {"alpha", p->alpha},
             {"dropout", p->dropout},
             {"targets", p->targets},
             {"rslora", p->rslora},
             {"shuffle", p->shuffle},
             {"seed_high", (double)(p->seed >> 32)},
             {"seed_low", (double)(uint32_t)p->seed},
             {"rows", j->rows->n}};
    for (size_t i = 0; i < sizeof f / sizeof *f; i++)
        hash_number(s, f[i].name, f[i].v);
    uint64_t first = j->rows->start[0], n = j->rows->start[j->rows->n] - first;
    sha256_add(s, j->rows->start, ((size_t)j->rows->n + 1) * sizeof *j->rows->start);
    sha256_add(s, j->rows->ids + first, n * sizeof *j->rows->ids);
    sha256_add(s, j->rows->labels + first, n * sizeof *j->rows->labels);
    sha256_finish(s, j->key);
    return 0;
}

/* The adapter's first values, on the host. */
static int first_values(const struct dtx_job *j, int init_dirfd, const char *init, float *w,
                        struct dtx_err *e)
{
    const struct dtx_train_params *p = &j->params;
    if (!init) {
        lora_init(&j->base->dims, p->targets, p->rank, p->seed, w);
        return 0;
    }
    struct dtx_train_params q;
    int rc = dtx_adapter_check(&j->base->config, init_dirfd, init, &q, e);
    if (rc < 0)
        return rc;
    if (q.rank != p->rank || q.targets != p->targets || lora_scale(&q) != lora_scale(p))
        return dtx_fail(
            e, -EINVAL,
            "the adapter to go on from has rank %d, scale %g, targets 0x%x; the parameters say %d, %g, 0x%x",
            q.rank, (double)lora_scale(&q), q.targets, p->rank, (double)lora_scale(p), p->targets);
    return peft_read(&j->base->dims, p->targets, p->rank, init_dirfd, init, w, e);
}

static int alloc_state(struct dtx_job *j, struct dtx_err *e)
{
    size_t bytes = j->n * sizeof *j->w;
    bool moments = j->params.optimizer != DTX_SGD;
    j->w = base_alloc(j->base, bytes, e);
    j->g = base_alloc(j->base, bytes, e);
    j->m = moments ? base_alloc(j->base, bytes, e) : NULL;
    j->v = moments ? base_alloc(j->base, bytes, e) : NULL;
    j->order = malloc(((size_t)j->rows->n + 1) * sizeof *j->order);
    j->order_epoch = -1;
    if (!j->w || !j->g || (moments && (!j->m || !j->v)))
        return -ENOMEM;
    return j->order ? 0 : dtx_fail(e, -ENOMEM, "out of memory");
}

static int start(struct dtx_job *j, int init_dirfd, const char *init, struct dtx_err *e)
{
    const struct dtx_ops *o = j->base->ops;
    size_t bytes = j->n * sizeof *j->w;
    int rc = alloc_state(j, e);
    float *w = rc == 0 ? malloc(bytes) : NULL;
    if (rc == 0 && !w)
        rc = dtx_fail(e, -ENOMEM, "out of memory");
    if (rc == 0)
        rc = first_values(j, init_dirfd, init, w, e);
    if (rc == 0) {
        o->upload(j->base->dev, j->w, w, bytes);
        if (j->m) {
            o->zero(j->base->dev, j->m, bytes);
            o->zero(j->base->dev, j->v, bytes);
        }
        rc = make_key(j, e);
    }
    free(w);
    return rc;
}

int dtx_job_new(struct dtx_base *b, const struct dtx_train_params *p, const struct dtx_rows *rows,
                int init_dirfd, const char *init, struct dtx_job **out, struct dtx_err *e)
{
    int rc = check_params(p, e);
    if (rc == 0)
        rc = check_rows(&b->config, rows, e);
    if (rc < 0)
        return rc;
    struct dtx_job *j = calloc(1, sizeof *j);
    if (!j)
        return dtx_fail(e, -ENOMEM, "out of memory");
    *j = (struct dtx_job){.base = b, .params = *p, .rows = rows, .size = dtx_job_size(p, rows, false)};
    j->n = lora_floats(&b->dims, p->targets, p->rank);
    j->steps_per_epoch = schedule_steps_per_epoch(p, rows->n);
    j->total_steps = schedule_total(p, rows->n);
    j->warmup = schedule_warmup(p, j->total_steps);
    rc = start(j, init_dirfd, init, e);
    if (rc < 0) {
        dtx_job_free(j);
        return rc;
    }
    *out = j;
    return 0;
}

void dtx_job_free(struct dtx_job *j)
{
    if (!j)
        return;
    void (*release)(struct op_dev *, void *) = j->base->ops->free;
    release(j->base->dev, j->w);
    release(j->base->dev, j->g);
    release(j->base->dev, j->m);
    release(j->base->dev, j->v);
    free(j->order);
    free(j);
}

int64_t dtx_job_total_steps(const struct dtx_job *j)
{
    return j->total_steps;
}

int64_t dtx_job_steps_done(const struct dtx_job *j)
{
    return j->steps;
}

int64_t dtx_job_steps_per_epoch(const struct dtx_job *j)
{
    return j->steps_per_epoch;
}

uint64_t dtx_job_bytes(const struct dtx_job *j)
{
    return dtx_job_state_bytes(j->base->device, &j->base->config, &j->size) + j->base->spaces[1].bytes;
}

struct op_adapter job_op(const struct dtx_job *j, bool grad)
{
    return (struct op_adapter){.w = j->w,
                               .g = grad ? j->g : NULL,
                               .rank = j->params.rank,
                               .targets = j->params.targets,
                               .scale = lora_scale(&j->params),
                               .dropout = grad ? (float)j->params.dropout : 0};
}

int dtx_job_export(const struct dtx_job *j, int dirfd, const char *dir, const char *base_name,
                   struct dtx_err *e)
{
    float *w = malloc(j->n * sizeof *w);
    if (!w)
        return dtx_fail(e, -ENOMEM, "out of memory");
    int rc = j->base->ops->download(j->base->dev, w, j->w, j->n * sizeof *w);
    if (rc < 0)
        dtx_fail(e, rc, "device: %s", j->base->ops->error(j->base->dev));
    if (rc == 0)
        rc = peft_write(&j->base->dims, &j->params, w, dirfd, dir, base_name, e);
    free(w);
    return rc;
}
