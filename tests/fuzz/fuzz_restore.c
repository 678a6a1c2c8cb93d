/*
 * Hostile training states.  The first byte says what of the file is put right, so that more than the checksum
 * is tried: 1 magic and key, 2 the adapter's length, 4 the checksum.  A refused state leaves the job as it
 * was; an accepted one is saved again as the same bytes, and training goes on or says why not.
 */
#include "kernels/job.h"
#include "scheduler/base/sha256.h"
#include "tests/fuzz/fuzz.h"
#include "tests/unit/tiny_model.h"

enum { HEADER = 8 + 64 + 4 * 8, SUM = 64 };

static struct dtx_base *base;
static struct dtx_device *device;
static struct dtx_job *job;
static struct buf fresh; /* the state of a job that has done nothing */

static void release(void)
{
    buf_release(&fresh);
    dtx_job_free(job);
    dtx_base_free(base);
    dtx_device_close(device);
}

static void saved(struct buf *b)
{
    buf_clear(b);
    FUZZ_ASSERT(dtx_job_save(job, fuzz_dir(), "saved", NULL) == 0);
    FUZZ_ASSERT(fd_read_file(fuzz_dir(), "saved", 1 << 20, b, NULL) == 0);
}

static void begin(void)
{
    static int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8}, labels[] = {-100, 2, 3, 4, -100, 6, 7, 8};
    static uint64_t starts[] = {0, 4, 8};
    static const struct dtx_rows rows = {.ids = ids, .labels = labels, .start = starts, .n = 2};
    const struct dtx_train_params p = {.learning_rate = 1e-3,
                                       .epochs = 3,
                                       .batch_size = 1,
                                       .grad_acc_steps = 1,
                                       .block_size = 8,
                                       .rank = 1,
                                       .alpha = 1,
                                       .targets = 1u << DTX_Q};

    FUZZ_ASSERT(tiny_model_make(fuzz_dir(), "base", 1) == 0);
    FUZZ_ASSERT(dtx_device_open("cpu", 1, &device, NULL) == 0);
    FUZZ_ASSERT(dtx_base_load(device, fuzz_dir(), "base", &base, NULL) == 0);
    FUZZ_ASSERT(dtx_job_new(base, &p, &rows, -1, NULL, &job, NULL) == 0);
    saved(&fresh);
    FUZZ_ASSERT(atexit(release) == 0);
}

static void put_right(struct buf *b, int what)
{
    if (what & 2)
        while (b->len < fresh.len)
            buf_addc(b, '\0');
    if (what & 2)
        b->len = fresh.len;
    if (what & 1 && b->len >= HEADER)
        memcpy(b->p, fresh.p, 8 + 64);
    if (what & 2 && b->len >= HEADER)
        memcpy(b->p + HEADER - 8, fresh.p + HEADER - 8, 8);
    if (what & 4 && b->len >= HEADER + SUM) {
        char sum[65];
        sha256_text(b->p, b->len - SUM, sum);
        memcpy(b->p + b->len - SUM, sum, SUM);
    }
}

static void train(void)
{
    struct dtx_step_result r;

    if (dtx_job_steps_done(job) == dtx_job_total_steps(job))
        return;
    FUZZ_ASSERT(dtx_train_step(base, &job, 1, &r, NULL) == 0);
    FUZZ_ASSERT(r.failed == 0 || (r.failed < 0 && r.error.msg[0]));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf file = BUF_INIT, now = BUF_INIT;
    struct dtx_err e = {0};
    int rc;

    if (!job)
        begin();
    fuzz_put("fresh", fresh.p, fresh.len);
    FUZZ_ASSERT(dtx_job_restore(job, fuzz_dir(), "fresh", NULL) == 0);
    buf_add(&file, data + (size > 0), size ? size - 1 : 0);
    put_right(&file, size ? data[0] : 0);
    fuzz_put("state", file.p, file.len);
    rc = dtx_job_restore(job, fuzz_dir(), "state", &e);
    FUZZ_ASSERT(rc == 0 || (rc == e.code && rc < 0 && e.msg[0]));
    saved(&now);
    FUZZ_ASSERT(now.len == fresh.len && memcmp(now.p, rc ? fresh.p : file.p, now.len) == 0);
    FUZZ_ASSERT(dtx_job_steps_done(job) >= 0 && dtx_job_steps_done(job) <= dtx_job_total_steps(job));
    if (rc == 0)
        train();
    buf_release(&file);
    buf_release(&now);
    return 0;
}
