#include <stdlib.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

static int text_of(const json_t *spec, const char *key, bool needed, const char **out, struct dtx_err *e)
{
    *out = json_str(spec, key, NULL);
    if (!*out && needed)
        return dtx_fail(e, -EINVAL, "the job spec has no \"%s\"", key);
    return 0;
}

static int word_index(const json_t *pg, const char *key, const char *const *words, int n, int *out,
                      struct dtx_err *e)
{
    const char *word = json_str(pg, key, words[0]);

    for (int i = 0; i < n; i++)
        if (!strcmp(word, words[i])) {
            *out = i;
            return 0;
        }
    return dtx_fail(e, -EINVAL, "\"%s\" is \"%s\", which this worker does not know", key, word);
}

static int parse_targets(const json_t *pg, unsigned *targets, struct dtx_err *e)
{
    const json_t *list = json_object_get(pg, "target_modules"), *item;
    size_t i;

    *targets = 0;
    json_array_foreach(list, i, item)
    {
        const char *name = json_string_value(item);
        int t = 0;

        while (t < DTX_TARGETS && (!name || strcmp(name, dtx_target_names[t])))
            t++;
        if (t == DTX_TARGETS)
            return dtx_fail(e, -EINVAL, "target_modules: \"%s\" is not a projection of a Llama layer",
                            name ? name : "(not text)");
        *targets |= 1u << t;
    }
    if (!*targets)
        return dtx_fail(e, -EINVAL, "target_modules is empty: nothing would be trained");
    return 0;
}

static int parse_every(const json_t *pg, const char *key, struct job_every fallback, struct job_every *out,
                       struct dtx_err *e)
{
    const json_t *v = json_object_get(pg, key);
    const char *text = json_string_value(v);
    char *end;

    *out = fallback;
    if (!v || json_is_null(v))
        return 0;
    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        *out = (struct job_every){PACE_STEPS, (double)json_integer_value(v)};
        return 0;
    }
    if (text && !strcmp(text, "epoch")) {
        *out = (struct job_every){PACE_EPOCH, 1};
        return 0;
    }
    if (text) {
        double n = strtod(text, &end);

        if (n > 0 && !strcmp(end, "%")) {
            *out = (struct job_every){PACE_PERCENT, n};
            return 0;
        }
    }
    return dtx_fail(e, -EINVAL, "%s: expected a number of steps, \"10%%\" or \"epoch\"", key);
}

int64_t job_every_steps(const struct job_every *every, int64_t per_epoch, int64_t total)
{
    double n = every->n;

    if (every->pace == PACE_STEPS && n < 1)
        return INT64_MAX; /* 0: never by steps */
    if (every->pace == PACE_EPOCH)
        n = (double)per_epoch;
    if (every->pace == PACE_PERCENT)
        n = ceil((double)total * every->n / 100);
    return n < 1 ? 1 : (int64_t)n;
}

static int parse_params(struct job_spec *s, const json_t *pg, struct dtx_err *e)
{
    static const char *const schedules[] = {"cosine", "linear", "constant"};
    static const char *const optimizers[] = {"adamw", "adam", "sgd"};
    struct dtx_train_params *p = &s->params;
    int schedule, optimizer, rc;

    if (!json_is_object(pg))
        return dtx_fail(e, -EINVAL, "the job spec has no \"paramgroup\"");
    rc = word_index(pg, "scheduler", schedules, 3, &schedule, e);
    if (rc == 0)
        rc = word_index(pg, "optimizer", optimizers, 3, &optimizer, e);
    if (rc == 0)
        rc = parse_targets(pg, &p->targets, e);
    if (rc == 0)
        rc = parse_every(pg, "save_every", (struct job_every){PACE_PERCENT, 10}, &s->save_every, e);
    if (rc == 0)
        rc = parse_every(pg, "eval_every", (struct job_every){PACE_EPOCH, 1}, &s->eval_every, e);
    if (rc)
        return rc;
    p->schedule = (enum dtx_schedule)schedule;
    p->optimizer = (enum dtx_optimizer)optimizer;
    p->learning_rate = json_num(pg, "learning_rate", 2e-4);
    p->weight_decay = json_num(pg, "weight_decay", 0);
    p->max_grad_norm = json_num(pg, "max_grad_norm", 1);
    p->warmup_ratio = json_num(pg, "warmup_ratio", 0.03);
    p->epochs = json_num(pg, "epochs", 3);
    p->max_steps = json_int(pg, "max_steps", 0);
    p->batch_size = (int)json_int(pg, "batch_size", 8);
    p->grad_acc_steps = (int)json_int(pg, "grad_acc_steps", 1);
    p->block_size = (int)json_int(pg, "block_size", 1024);
    p->rank = (int)json_int(pg, "lora_r", 16);
    p->alpha = json_num(pg, "lora_alpha", 32);
    p->dropout = json_num(pg, "lora_dropout", 0);
    p->rslora = json_flag(pg, "use_rslora", 0);
    p->shuffle = json_flag(pg, "shuffle", 1);
    p->seed = (uint64_t)json_int(s->json, "seed", json_int(pg, "seed", 42));
    return 0;
}

static int refuse_what_is_not_built(const struct job_spec *s, struct dtx_err *e)
{
    const char *q = json_str(json_object_get(s->json, "paramgroup"), "quantization", "none");

    if (json_str(s->evaluation, "plugin", NULL))
        return dtx_fail(e, -EINVAL, "evaluation %s uses a scoring plugin: plugins are not built yet",
                        json_str(s->json, "evaluation_name", ""));
    if (s->dataset_spec && !json_is_null(json_object_get(s->dataset_spec, "plugin")) &&
        json_object_get(s->dataset_spec, "plugin"))
        return dtx_fail(e, -EINVAL, "dataset %s uses a data plugin: plugins are not built yet", s->dataset);
    if (strcmp(q, "none") != 0)
        return dtx_fail(e, -EINVAL, "quantization \"%s\" is not built yet; use \"none\"", q);
    return 0;
}

static const json_t *object_of(const json_t *spec, const char *key)
{
    const json_t *v = json_object_get(spec, key);

    return json_is_object(v) ? v : NULL;
}

static int parse_training(struct job_spec *s, struct dtx_err *e)
{
    const json_t *early = object_of(s->json, "early_stopping");
    int rc = text_of(s->json, "dataset", true, &s->dataset, e);

    if (rc == 0)
        rc = text_of(s->json, "dataset_dir", true, &s->dataset_dir, e);
    if (rc == 0)
        rc = text_of(s->json, "dataset_sha256", false, &s->dataset_sha, e);
    if (rc == 0)
        rc = text_of(s->json, "job_dir", true, &s->job_dir, e);
    if (rc == 0)
        rc = text_of(s->json, "tuned_dir", true, &s->tuned_dir, e);
    if (rc)
        return rc;
    s->init_dir = json_str(s->json, "init_dir", NULL);
    s->dataset_spec = object_of(s->json, "dataset_spec");
    s->template_name = json_str(s->dataset_spec, "template", NULL);
    if (early) {
        s->patience = (int)json_int(early, "patience", 3);
        s->min_delta = json_num(early, "min_delta", 0);
    }
    return parse_params(s, json_object_get(s->json, "paramgroup"), e);
}

int job_spec_parse(struct job_spec *s, const json_t *body, bool score_only, struct dtx_err *e)
{
    int rc;

    memset(s, 0, sizeof(*s));
    s->score_only = score_only;
    s->json = json_incref(json_object_get(body, "spec"));
    if (!json_is_object(s->json))
        return dtx_fail(e, -EINVAL, "a job without a spec");
    json_object_set(s->json, "id",
                    json_object_get(body, "id")); /* so that the string lives as long as the spec */
    rc = text_of(s->json, "id", true, &s->id, e);
    if (rc == 0)
        rc = text_of(s->json, "base_dir", true, &s->base_dir, e);
    if (rc == 0)
        rc = text_of(s->json, "work_dir", true, &s->work_dir, e);
    if (rc)
        return rc;
    s->experiment = json_str(s->json, "experiment", "");
    s->job = json_str(s->json, "job", s->id);
    s->base_name = json_str(s->json, "base", s->base_dir);
    s->evaluation = object_of(s->json, "evaluation");
    s->evaluation_dataset_dir = json_str(s->json, "evaluation_dataset_dir", NULL);
    s->evaluation_dataset_spec = object_of(s->json, "evaluation_dataset_spec");
    s->save_after = json_int(s->json, "save_after", -1);
    s->save_after_s = json_num(s->json, "save_after_s", SAVE_AFTER_SECONDS);
    s->uid = (uid_t)json_int(s->json, "uid", -1);
    s->gid = (gid_t)json_int(s->json, "gid", -1);
    s->template_name = json_str(s->json, "template", json_str(s->evaluation_dataset_spec, "template", NULL));
    rc = score_only ? 0 : parse_training(s, e);
    return rc ? rc : refuse_what_is_not_built(s, e);
}

void job_spec_release(struct job_spec *s)
{
    json_decref(s->json);
    memset(s, 0, sizeof(*s));
}
