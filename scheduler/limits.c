/* The administrator's limits on what DTX itself keeps: logs, and the training state of jobs that ended. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

static const int64_t look_every = 10 * SECOND_NS;
enum { ALIGN = 4096, TAIL_MAX = 64 << 20 };

/* Where the store's file system cannot cut off the front of a file: its end is written over its beginning.  A
 * line that comes in that moment may be lost. */
static int move_down(int fd, off_t from, off_t size)
{
    size_t n = (size_t)(size - from > TAIL_MAX ? TAIL_MAX : size - from);
    char *data = malloc(n);
    int rc = data ? fd_pread_all(fd, data, n, size - (off_t)n) : -ENOMEM;

    if (rc == 0)
        rc = fd_pwrite_all(fd, data, n, 0);
    if (rc == 0 && ftruncate(fd, (off_t)n))
        rc = -errno;
    free(data);
    return rc;
}

int log_trim(int dirfd, const char *path, int64_t max)
{
    int fd = openat(dirfd, path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK), rc = 0;
    struct stat st;
    off_t cut;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > max) {
        cut = (st.st_size - max / 2) / ALIGN * ALIGN;
        if (cut > 0 && fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, cut))
            rc = move_down(fd, cut, st.st_size);
    }
    close(fd);
    return rc;
}

/* An ended job's state serves only a retry, which then begins anew. */
static void drop_state(struct sched *s, struct job *j, int64_t before)
{
    char job_dir[PATH_MAX], work_dir[PATH_MAX], tuned[PATH_MAX];
    struct dtx_err e = {0};
    struct stat st;
    int rc;

    if (j->worker || !state_is_end(j->state) || !j->finished || j->finished > before)
        return;
    job_paths(j, job_dir, work_dir, tuned, sizeof(tuned));
    if (fstatat(s->store_fd, work_dir, &st, AT_SYMLINK_NOFOLLOW))
        return;
    j->has_run = j->cached = false; /* first: a retry has to read the dataset again */
    if (job_keep(s, j))
        return;
    slow_begin(s);
    rc = fd_remove_tree(s->store_fd, work_dir, &e);
    slow_end(s);
    if (rc)
        log_line("training state of job %s/%s: %s", j->exp->name, j->name, e.msg);
    else
        log_line("training state of job %s/%s removed: it ended longer ago than work_days", j->exp->name,
                 j->name);
}

void limits_round(struct sched *s, int64_t now)
{
    int64_t before = clock_wall_ns() - s->settings.work_ns;

    if (now < s->limits_look)
        return;
    s->limits_look = now + look_every;
    if (s->settings.log_max > 0)
        log_trim(s->tree_fd, "log", s->settings.log_max);
    for (int i = 0; s->settings.work_ns >= 0 && i < s->nexps; i++)
        for (int k = 0; !s->exps[i]->deleted && k < s->exps[i]->njobs; k++)
            drop_state(s, s->exps[i]->jobs[k], before);
}
