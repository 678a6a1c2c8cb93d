#include "scheduler/worker/worker.h"

#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/text.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

enum { OUTBOX_BUSY = 1 << 20 }; /* bytes not read by dtxd from which on progress is not worth sending */

json_t *json_number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

json_t *json_text(const char *text, size_t n)
{
    struct buf b = BUF_INIT;
    json_t *v;

    for (size_t i = 0; i < n;) {
        size_t step = text[i] ? text_utf8_step(text + i, n - i) : 0;

        if (step)
            buf_add(&b, text + i, step);
        else
            buf_adds(&b, "\xef\xbf\xbd");
        i += step ? step : 1;
    }
    v = json_stringn(b.p ? b.p : "", b.len);
    buf_release(&b);
    return v;
}

static bool can_be_dropped(enum proto_type type)
{
    return type == PM_PROGRESS || type == PM_DEVICE;
}

void send_message(struct worker *w, enum proto_type type, json_t *body)
{
    struct dtx_err e = {0};

    if (w->out.len <= OUTBOX_BUSY || !can_be_dropped(type))
        if (proto_put(&w->out, type, body, &e))
            fprintf(stderr, "dtx-worker: cannot send a %s message: %s\n", proto_type_name(type), e.msg);
    json_decref(body);
}

void send_end(struct worker *w, const char *id, const char *state, const char *reason, json_t *result,
              bool never)
{
    json_t *body = json_pack("{s:s,s:s}", "id", id, "state", state);

    json_object_set_new(body, "reason", reason ? json_text(reason, strlen(reason)) : json_string(""));
    if (result)
        json_object_set_new(body, "result", result);
    if (never)
        json_object_set_new(body, "never", json_true());
    send_message(w, PM_JOB_STATE, body);
}

void send_state(struct worker *w, const char *id, const char *state, const char *reason, json_t *result)
{
    send_end(w, id, state, reason, result, false);
}

void send_waits(struct worker *w, const char *id, const char *why)
{
    send_message(w, PM_JOB_STATE,
                 json_pack("{s:s,s:s,s:o,s:b}", "id", id, "state", "PENDING", "reason",
                           json_text(why, strlen(why)), "waits", 1));
}

void send_log(struct worker *w, const char *fmt, ...)
{
    char line[1024];
    json_t *body = json_object();
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    json_object_set_new(body, "text", json_text(line, strlen(line)));
    send_message(w, PM_LOG, body);
}

void send_hello(struct worker *w)
{
    struct dtx_device_info info;

    dtx_device_info(w->device, &info);
    send_message(w, PM_HELLO,
                 json_pack("{s:s,s:s,s:I,s:I,s:i,s:s,s:i}", "device", w->kind, "name", info.name, "mem_total",
                           (json_int_t)info.mem_total, "mem_used", (json_int_t)info.mem_used, "threads",
                           info.threads, "fingerprint", info.fingerprint, "pid", (int)getpid()));
}

void send_device(struct worker *w)
{
    int64_t now = clock_mono_ns();
    double seconds = (double)(now - w->device_ns) / 1e9;
    struct dtx_device_info info;
    struct room r;
    json_t *bases = json_array(), *body;

    if (seconds < 1) {
        json_decref(bases);
        return;
    }
    dtx_device_info(w->device, &info);
    for (const struct base_entry *b = w->bases; b; b = b->next)
        json_array_append_new(bases, json_string(b->name));
    body = json_pack("{s:I,s:o,s:i,s:o,s:i}", "mem_used", (json_int_t)info.mem_used, "base",
                     w->bases ? json_string(w->bases->name) : json_null(), "jobs", jobs_active(w),
                     "tokens_per_s", json_number((double)w->tokens / seconds), "asks", asks_count(w));
    json_object_set_new(body, "bases", bases);
    room_look(w, &r);
    json_object_set_new(body, "mem_usable", json_integer((json_int_t)r.usable));
    json_object_set_new(body, "mem_planned", json_integer((json_int_t)r.planned));
    json_object_set_new(body, "mem_others", json_integer((json_int_t)r.others));
    send_message(w, PM_DEVICE, body);
    w->device_ns = now;
    w->tokens = 0;
}

int outbox_flush(struct worker *w)
{
    size_t sent = 0;

    while (sent < w->out.len) {
        ssize_t n = send(w->sock, w->out.p + sent, w->out.len - sent, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (n < 0)
            return -EPIPE;
        sent += (size_t)n;
    }
    if (sent) {
        memmove(w->out.p, w->out.p + sent, w->out.len - sent);
        w->out.len -= sent;
    }
    return 0;
}

void outbox_drain(struct worker *w, double seconds)
{
    int64_t end = clock_mono_ns() + (int64_t)(seconds * 1e9);

    while (outbox_flush(w) == 0 && w->out.len && clock_mono_ns() < end) {
        struct pollfd p = {w->sock, POLLOUT, 0};

        if (poll(&p, 1, 100) < 0 && errno != EINTR)
            return;
    }
}
