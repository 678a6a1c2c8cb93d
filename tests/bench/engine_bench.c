/*
 * Speed of the engine on one device, one JSON line a case.
 *
 *   engine_bench MODEL_DIR DEVICE CASE...
 *     train:JOBS:BATCH:SEQ:RANK:DROPOUT[:STEPS[:GIB]]    JOBS jobs, each BATCH rows of SEQ tokens a step,
 *         together; GIB: memory that they may have beside the base (0: no limit), by which the plan chooses
 *         how many layers are computed again
 *
 *     decode:SEQS:PROMPT:NEW:RANK[:TEMPERATURE]    SEQS sequences, each with an adapter of its own (RANK 0:
 *         bare base); with a temperature: drawn by top_k 1000 and top_p 0.9
 *
 * Rows are random tokens, all trained on (as the peer's benchmark does).  Times are wall clock around whole
 * steps, which end with the losses on the host.  First steps are not counted.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/dtx_engine.h"
#include "kernels/rng.h"
#include "scheduler/base/clock.h"

enum { WARMUP = 3, MAX_JOBS = 64 };

static struct dtx_device *device;
static struct dtx_base *base;
static double gib_before; /* in use when the device was opened: the driver's own, others' */

static double seconds(void)
{
    return (double)clock_mono_ns() * 1e-9;
}

static int failed(const char *what, const struct dtx_err *e)
{
    fprintf(stderr, "%s: %s\n", what, e->msg);
    return 1;
}

static struct dtx_rows random_rows(uint32_t n, int seq, uint64_t key)
{
    struct dtx_rows r = {.n = n};
    size_t total = (size_t)n * (size_t)seq;
    int vocab = dtx_base_config(base)->vocab;
    r.ids = malloc(total * sizeof *r.ids);
    r.labels = malloc(total * sizeof *r.labels);
    r.start = malloc(((size_t)n + 1) * sizeof *r.start);
    for (size_t i = 0; i < total; i++)
        r.ids[i] = r.labels[i] = (int32_t)(rng_double(key, i) * vocab);
    for (uint32_t i = 0; i <= n; i++)
        r.start[i] = (uint64_t)i * (uint64_t)seq;
    return r;
}

static struct dtx_train_params params(int batch, int seq, int rank, double dropout, int64_t steps,
                                      uint64_t seed)
{
    return (struct dtx_train_params){.schedule = DTX_CONSTANT,
                                     .optimizer = DTX_ADAMW,
                                     .learning_rate = 1e-4,
                                     .max_grad_norm = 1,
                                     .max_steps = steps,
                                     .batch_size = batch,
                                     .grad_acc_steps = 1,
                                     .block_size = seq,
                                     .rank = rank,
                                     .alpha = 2 * rank,
                                     .dropout = dropout,
                                     .targets = (1u << DTX_TARGETS) - 1,
                                     .seed = seed};
}

static double gib_used(void)
{
    struct dtx_device_info info;
    dtx_device_info(device, &info);
    return (double)info.mem_used / (1 << 30);
}

static int bench_train(const char *spec)
{
    int n = 1, batch = 1, seq = 512, rank = 16, steps = 10, rc = 0;
    double dropout = 0, t0 = 0, loss = 0, limit = 0;
    struct dtx_job_size sizes[MAX_JOBS];
    struct dtx_plan plan;
    struct dtx_job *jobs[MAX_JOBS] = {0};
    struct dtx_rows rows[MAX_JOBS];
    struct dtx_step_result results[MAX_JOBS];
    struct dtx_err e;

    if (sscanf(spec, "train:%d:%d:%d:%d:%lf:%d:%lf", &n, &batch, &seq, &rank, &dropout, &steps, &limit) < 4 ||
        n < 1 || n > MAX_JOBS)
        return fprintf(stderr, "bad case %s\n", spec), 2;
    for (int i = 0; i < n; i++) {
        struct dtx_train_params p = params(batch, seq, rank, dropout, 1000, (uint64_t)i);
        rows[i] = random_rows((uint32_t)batch, seq, (uint64_t)i + 7);
        if (dtx_job_new(base, &p, &rows[i], AT_FDCWD, NULL, &jobs[i], &e))
            return failed("job", &e);
        sizes[i] = dtx_job_size(&p, &rows[i], false);
    }
    rc = dtx_plan_make(device, dtx_base_config(base), sizes, n,
                       limit > 0 ? (uint64_t)(limit * (1 << 30)) : UINT64_MAX, &plan);
    if (rc)
        dtx_fail(&e, rc, "needs %.2f GiB", (double)plan.total / (1 << 30));
    else
        rc = dtx_base_plan_training(base, &plan, &e);
    for (int s = 0; rc == 0 && s < WARMUP + steps; s++) {
        if (s == WARMUP)
            t0 = seconds();
        rc = dtx_train_step(base, jobs, n, results, &e);
        loss = results[0].loss;
    }
    double dt = (seconds() - t0) / steps;
    if (rc == 0)
        printf(
            "{\"case\":\"%s\",\"ms_per_step\":%.2f,\"tokens_per_s\":%.0f,\"loss\":%.4f,\"gib_used\":%.2f,"
            "\"gib_beside_base\":%.2f,\"gib_planned_beside_base\":%.2f,\"pack_rows\":%d,\"recompute\":%d}\n",
            spec, dt * 1e3, (double)n * batch * seq / dt, loss, gib_used(),
            gib_used() - gib_before -
                (double)(dtx_base_held(base) - dtx_base_training_bytes(base)) / (1 << 30),
            (double)plan.total / (1 << 30), plan.rows, plan.recompute);
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        dtx_job_free(jobs[i]);
        free(rows[i].ids);
        free(rows[i].labels);
        free(rows[i].start);
    }
    return rc ? failed(spec, &e) : 0;
}

/* An adapter with random A; B stays 0, which costs the same. */
static int new_adapter(int rank, uint64_t seed, struct dtx_adapter **out, struct dtx_err *e)
{
    struct dtx_train_params p = params(1, 8, rank, 0, 1, seed);
    struct dtx_rows rows = random_rows(1, 8, seed);
    struct dtx_job *j;
    int rc = dtx_job_new(base, &p, &rows, AT_FDCWD, NULL, &j, e);
    if (rc == 0) {
        rc = dtx_adapter_from_job(j, out, e);
        dtx_job_free(j);
    }
    free(rows.ids);
    free(rows.labels);
    free(rows.start);
    return rc;
}

static int bench_decode(const char *spec, const struct dtx_tokenizer *t)
{
    int n = 1, prompt = 128, fresh = 128, rank = 16, rc = 0, steps = 0;
    double temperature = 0;
    struct dtx_seq *seqs[MAX_JOBS] = {0};
    struct dtx_adapter *adapters[MAX_JOBS] = {0};
    struct dtx_err e;

    if (sscanf(spec, "decode:%d:%d:%d:%d:%lf", &n, &prompt, &fresh, &rank, &temperature) < 4 || n < 1 ||
        n > MAX_JOBS)
        return fprintf(stderr, "bad case %s\n", spec), 2;
    struct dtx_rows rows = random_rows((uint32_t)n, prompt, 99);
    struct dtx_sampling s = {.max_new_tokens = fresh, .top_p = 1};
    if (temperature > 0)
        s = (struct dtx_sampling){
            .max_new_tokens = fresh, .temperature = temperature, .top_p = 0.9, .top_k = 1000};
    for (int i = 0; i < n && rc == 0; i++) {
        if (rank && new_adapter(rank, (uint64_t)i, &adapters[i], &e))
            return failed("adapter", &e);
        rc = dtx_seq_new(base, adapters[i], t, rows.ids + rows.start[i], (size_t)prompt, &s, &seqs[i], &e);
    }
    double t0 = seconds(), t1;
    if (rc == 0)
        rc = dtx_seq_step(base, seqs, n, &e);
    t1 = seconds();
    for (int left = 1; rc == 0 && left;) {
        rc = dtx_seq_step(base, seqs, n, &e);
        steps++;
        left = 0;
        for (int i = 0; i < n; i++)
            left += dtx_seq_finish(seqs[i]) == DTX_RUNNING;
    }
    double dt = (seconds() - t1) / (steps ? steps : 1);
    if (rc == 0)
        printf(
            "{\"case\":\"%s\",\"ms_per_token\":%.3f,\"tokens_per_s_each\":%.1f,\"tokens_per_s_total\":%.1f,"
            "\"ttft_ms\":%.1f,\"steps\":%d,\"gib_used\":%.2f}\n",
            spec, dt * 1e3, 1 / dt, n / dt, (t1 - t0) * 1e3, steps, gib_used());
    fflush(stdout);
    for (int i = 0; i < n; i++) {
        dtx_seq_free(seqs[i]);
        dtx_adapter_free(adapters[i]);
    }
    free(rows.ids);
    free(rows.labels);
    free(rows.start);
    return rc ? failed(spec, &e) : 0;
}

int main(int argc, char **argv)
{
    struct dtx_tokenizer *t = NULL;
    struct dtx_err e;
    int rc = 0;

    if (argc < 4) {
        fprintf(stderr,
                "usage: engine_bench MODEL_DIR DEVICE CASE...   (cases: see the top of engine_bench.c)\n");
        return 2;
    }
    if (dtx_device_open(argv[2], 0, &device, &e))
        return failed("device", &e);
    gib_before = gib_used();
    double t0 = seconds();
    if (dtx_base_load(device, AT_FDCWD, argv[1], &base, &e))
        return failed("base", &e);
    printf("{\"case\":\"load\",\"seconds\":%.2f,\"gib\":%.2f,\"gib_per_s\":%.2f}\n", seconds() - t0,
           (double)dtx_base_bytes(base) / (1 << 30),
           (double)dtx_base_bytes(base) / (1 << 30) / (seconds() - t0));
    if (dtx_tokenizer_load(AT_FDCWD, argv[1], &t, &e))
        return failed("tokenizer", &e);
    for (int i = 3; i < argc && rc == 0; i++)
        rc = strncmp(argv[i], "train:", 6) == 0 ? bench_train(argv[i]) : bench_decode(argv[i], t);
    dtx_tokenizer_free(t);
    dtx_base_free(base);
    dtx_device_close(device);
    return rc;
}
