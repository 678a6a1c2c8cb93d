/* The files of a job: whose they are, its log, metrics.csv, JSON documents. */
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

static const char metrics_header[] = "step,epoch,loss,eval_loss,lr,grad_norm,tokens_per_s,memory\n";
enum { METRICS_FILE_MAX = 1 << 30, METRICS_WAITING_MAX = 4 << 20 };

int job_chown(struct worker *w, const struct job *j, const char *path)
{
    if (geteuid() != 0 || (j->spec.uid == (uid_t)-1 && j->spec.gid == (gid_t)-1))
        return 0;
    return fchownat(w->store, path, j->spec.uid, j->spec.gid, AT_SYMLINK_NOFOLLOW) ? -errno : 0;
}

static int open_append(struct worker *w, struct job *j, const char *name, int *out, struct dtx_err *e)
{
    char path[PATH_MAX];
    int rc = fd_join(path, j->spec.job_dir, name, e);

    if (rc)
        return rc;
    *out = openat(w->store, path, O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (*out < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    job_chown(w, j, path);
    return 0;
}

int job_files_open(struct worker *w, struct job *j, struct dtx_err *e)
{
    struct stat st;
    int rc;

    fd_sweep(w->store, j->spec.work_dir);
    if (j->spec.score_only)
        return 0;
    fd_sweep(w->store, j->spec.job_dir);
    fd_sweep(w->store, j->spec.tuned_dir);
    rc = fd_mkdirs(w->store, j->spec.job_dir, 0755, e);
    if (rc == 0)
        rc = open_append(w, j, "log", &j->log_fd, e);
    if (rc == 0)
        rc = open_append(w, j, "metrics.csv", &j->metrics_fd, e);
    if (rc)
        return rc;
    if (fstat(j->metrics_fd, &st))
        return dtx_fail_errno(e, "cannot read metrics.csv");
    if (st.st_size == 0) {
        rc = fd_write_all(j->metrics_fd, metrics_header, sizeof(metrics_header) - 1);
        if (rc)
            return dtx_fail(e, rc, "cannot write %s/metrics.csv: %s", j->spec.job_dir, strerror(-rc));
    }
    return fd_sync_chain(w->store, j->spec.job_dir, e);
}

void job_files_close(struct job *j)
{
    if (j->log_fd >= 0)
        close(j->log_fd);
    if (j->metrics_fd >= 0)
        close(j->metrics_fd);
    j->log_fd = j->metrics_fd = -1;
    buf_release(&j->metrics);
}

void job_log(struct job *j, const char *fmt, ...)
{
    char line[2048], stamp[32];
    va_list ap;
    int n, m;

    if (j->log_fd < 0)
        return;
    n = snprintf(line, sizeof(line), "%s ", clock_iso(clock_wall_ns(), stamp, sizeof(stamp)));
    va_start(ap, fmt);
    m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, fmt, ap);
    va_end(ap);
    n = m < 0 ? n : n + m > (int)sizeof(line) - 2 ? (int)sizeof(line) - 2 : n + m;
    line[n++] = '\n';
    (void)!fd_write_all(j->log_fd, line, (size_t)n); /* a full disk must not end a job because of its log */
}

static void add_number(struct buf *b, const char *fmt, double x)
{
    char text[64];

    if (isfinite(x)) {
        snprintf(text, sizeof(text), fmt, x);
        buf_adds(b, text);
    }
    buf_addc(b, ',');
}

void metrics_add(struct job *j, const struct dtx_step_result *r, double eval_loss, double tokens_per_s)
{
    struct buf *b = &j->metrics;

    buf_addf(b, "%lld,", (long long)r->step);
    add_number(b, "%.4f", r->epoch);
    add_number(b, "%.9g", r->loss);
    add_number(b, "%.9g", eval_loss);
    add_number(b, "%.9g", r->lr);
    add_number(b, "%.9g", r->grad_norm);
    add_number(b, "%.1f", tokens_per_s);
    buf_addf(b, "%llu\n", (unsigned long long)(j->train ? dtx_job_bytes(j->train) : 0));
}

int metrics_flush(struct job *j, bool sync, struct dtx_err *e)
{
    off_t end = lseek(j->metrics_fd, 0, SEEK_END);
    int rc = 0;

    if (j->metrics.failed)
        return dtx_fail(e, -ENOMEM, "out of memory for metrics.csv");
    if (j->metrics.len)
        rc = fd_write_all(j->metrics_fd, j->metrics.p, j->metrics.len);
    if (rc) { /* no half rows: they are kept and tried again */
        if (end < 0 || ftruncate(j->metrics_fd, end))
            return dtx_fail(e, rc, "cannot write metrics.csv, and cannot cut off what was half written");
        if (j->metrics.len > METRICS_WAITING_MAX)
            buf_clear(&j->metrics);
        return dtx_fail(e, rc, "cannot write %s/metrics.csv: %s", j->spec.job_dir, strerror(-rc));
    }
    buf_clear(&j->metrics);
    if (sync && fsync(j->metrics_fd))
        return dtx_fail_errno(e, "cannot sync %s/metrics.csv", j->spec.job_dir);
    return 0;
}

/* Length of the header and the whole rows up to `step`; 0 when the text is not a metrics.csv.  After a power
 * cut there may be anything behind what was synced: a row that is none ends it. */
static size_t kept_length(const char *text, size_t n, int64_t step)
{
    size_t at = sizeof(metrics_header) - 1;

    if (n < at || memcmp(text, metrics_header, at) != 0)
        return 0;
    for (int64_t last = 0, row; at < n; last = row) {
        const char *end = memchr(text + at, '\n', n - at);

        row = end && !memchr(text + at, '\0', (size_t)(end - text) - at) ? strtoll(text + at, NULL, 10) : 0;
        if (row <= last || row > step)
            break;
        at = (size_t)(end - text) + 1;
    }
    return at;
}

int metrics_cut(struct job *j, int64_t step, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    struct stat st;
    size_t keep;
    int rc = 0;

    if (fstat(j->metrics_fd, &st) || st.st_size > METRICS_FILE_MAX)
        return dtx_fail(e, -EFBIG, "%s/metrics.csv cannot be read back", j->spec.job_dir);
    if (buf_reserve(&b, (size_t)st.st_size))
        return dtx_fail(e, -ENOMEM, "out of memory reading metrics.csv");
    rc = fd_pread_all(j->metrics_fd, b.p, (size_t)st.st_size, 0);
    if (rc == 0) {
        b.len = (size_t)st.st_size;
        keep = kept_length(b.p, b.len, step);
        if (keep < b.len && ftruncate(j->metrics_fd, (off_t)keep))
            rc = -errno;
        if (rc == 0 && keep == 0)
            rc = fd_write_all(j->metrics_fd, metrics_header, sizeof(metrics_header) - 1);
    }
    buf_release(&b);
    return rc ? dtx_fail(e, rc, "cannot cut back %s/metrics.csv: %s", j->spec.job_dir, strerror(-rc)) : 0;
}

int job_write_json(struct worker *w, struct job *j, const char *path, const json_t *v, struct dtx_err *e)
{
    char *text = json_dumps(v, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(15));
    struct buf b = BUF_INIT;
    int rc;

    if (!text)
        return dtx_fail(e, -ENOMEM, "out of memory writing %s", path);
    buf_adds(&b, text);
    buf_addc(&b, '\n');
    free(text);
    rc = b.failed ? dtx_fail(e, -ENOMEM, "out of memory writing %s", path)
                  : fd_replace_file(w->store, path, b.p, b.len, 0644, e);
    buf_release(&b);
    if (rc == 0)
        job_chown(w, j, path);
    return rc;
}
