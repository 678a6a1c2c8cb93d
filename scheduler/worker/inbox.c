#include <string.h>
#include <sys/socket.h>

#include "scheduler/base/json.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

static void on_job_start(struct worker *w, const json_t *body)
{
    job_message(w, body, false);
}

static void on_score(struct worker *w, const json_t *body)
{
    job_message(w, body, true);
}

static void on_ask_cancel(struct worker *w, const json_t *body)
{
    ask_cancel(w, json_int(body, "id", -1));
}

static void on_quit(struct worker *w, const json_t *body)
{
    (void)body;
    w->quit = true;
}

static void (*const handlers[PM_MAX])(struct worker *w, const json_t *body) = {
    [PM_JOB_START] = on_job_start, [PM_JOB_STOP] = job_stop_message, [PM_SCORE] = on_score,
    [PM_ASK] = ask_message,        [PM_ASK_CANCEL] = on_ask_cancel,  [PM_QUIT] = on_quit,
};

static int take_all(struct worker *w, struct dtx_err *e)
{
    enum proto_type type;
    json_t *body;
    int rc;

    while ((rc = proto_take(&w->in, PROTO_WORKER, &type, &body, e)) == 1) {
        handlers[type](w, body);
        json_decref(body);
        w->moved = true;
    }
    return rc;
}

int inbox_read(struct worker *w, struct dtx_err *e)
{
    for (;;) {
        ssize_t n;
        int rc;

        if (buf_reserve(&w->in, 65536))
            return dtx_fail(e, -ENOMEM, "out of memory reading from dtxd");
        n = recv(w->sock, w->in.p + w->in.len, 65536, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n <= 0)
            return dtx_fail(e, -EPIPE, "dtxd is gone");
        w->in.len += (size_t)n;
        rc = take_all(w, e);
        if (rc)
            return rc;
    }
}
