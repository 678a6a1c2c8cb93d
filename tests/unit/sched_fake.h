/*
 * For the tests of the scheduler: a fake dtx-worker (the test program itself, started again) that speaks
 * proto.h but only pretends to train, and helpers that do to the scheduler what the file system does.
 *
 * What the fake does with a job follows from its parameter group's name: good*, fail*, poison* (kills the
 * worker at step 3, always), once* (kills it at step 3, once), slow* (1000 steps), hold* (neither releases
 * the dataset nor moves on), wait* (does not fit beside another job, then as slow*).  With "notN" in it,
 * worker N's device is too small for the job.  A dataset whose train.jsonl begins with "bad" is refused.
 */
#ifndef TESTS_SCHED_FAKE_H
#define TESTS_SCHED_FAKE_H

#include <check.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/proto.h"
#include "scheduler/sched.h"
#include "tests/unit/slow.h"

/* ---- the fake worker ---- */

struct fake_job {
    json_t *body;
    long long step;
    bool stop, over, waits;
};

struct fake {
    int store;
    struct buf in, out;
    struct fake_job jobs[2048];
    int njobs;
};

static void fake_send(struct fake *f, enum proto_type type, json_t *body)
{
    proto_put(&f->out, type, body, NULL);
    json_decref(body);
    if (fd_write_all(PROTO_WORKER_FD, f->out.p, f->out.len))
        _exit(0);
    buf_clear(&f->out);
}

static const char *fake_spec(const struct fake_job *j, const char *key)
{
    return json_str(json_object_get(j->body, "spec"), key, "");
}

static void fake_state(struct fake *f, struct fake_job *j, const char *state, const char *reason,
                       json_t *result)
{
    fake_send(f, PM_JOB_STATE,
              json_pack("{ss ss ss so}", "id", json_str(j->body, "id", ""), "state", state, "reason", reason,
                        "result", result ? result : json_null()));
}

static void fake_save(struct fake *f, struct fake_job *j)
{
    char path[4096], text[32];

    snprintf(path, sizeof(path), "%s/state", fake_spec(j, "work_dir"));
    snprintf(text, sizeof(text), "%lld", j->step);
    fd_replace_file(f->store, path, text, strlen(text), 0600, NULL);
    fake_send(f, PM_SAVED,
              json_pack("{ss sI}", "id", json_str(j->body, "id", ""), "step", (json_int_t)j->step));
}

/* The folder that a job reads, if its spec names one, is there. */
static bool fake_finds(struct fake *f, const struct fake_job *j, const char *key)
{
    const char *dir = fake_spec(j, key);

    return !*dir || faccessat(f->store, dir, F_OK, 0) == 0;
}

/* Which worker this is: its lock file's number. */
static bool fake_too_small(const struct fake_job *j)
{
    const char *group = strstr(fake_spec(j, "paramgroup_name"), "not");
    char path[4096], *mine;
    ssize_t n = readlink("/proc/self/fd/4", path, sizeof(path) - 1);

    path[n > 0 ? n : 0] = '\0';
    mine = strstr(path, "worker-");
    return group && mine && group[3] == mine[7];
}

static void fake_end(struct fake *f, struct fake_job *j, const char *reason, bool never)
{
    fake_send(f, PM_JOB_STATE,
              json_pack("{ss ss ss sb}", "id", json_str(j->body, "id", ""), "state", "FAILED", "reason",
                        reason, "never", never));
    j->over = true;
}

static void fake_start(struct fake *f, json_t *body)
{
    struct fake_job *j = &f->jobs[f->njobs++];
    struct buf b = BUF_INIT;
    char path[4096];

    *j = (struct fake_job){.body = json_incref(body)};
    snprintf(path, sizeof(path), "%s/state", fake_spec(j, "work_dir"));
    if (fd_read_file(f->store, path, 64, &b, NULL) == 0)
        j->step = atoll(b.p);
    buf_release(&b);
    j->waits = strncmp(fake_spec(j, "paramgroup_name"), "wait", 4) == 0;
    if (fake_too_small(j))
        fake_end(f, j, "it can never fit", true);
    else if (!fake_finds(f, j, "base_dir") || (!j->step && !fake_finds(f, j, "dataset_dir")))
        fake_end(f, j, "what it reads is not there", false);
    else if (j->waits)
        fake_send(f, PM_JOB_STATE,
                  json_pack("{ss ss ss sb}", "id", json_str(body, "id", ""), "state", "PENDING", "reason",
                            "waits for 1.0 GiB of device memory", "waits", 1));
    else if (json_object_get(json_object_get(body, "spec"), "paramgroup"))
        fake_state(f, j, "FINETUNE", "", NULL);
}

static void fake_succeed(struct fake *f, struct fake_job *j)
{
    long long rank = json_int(json_object_get(json_object_get(j->body, "spec"), "paramgroup"), "lora_r", 0);
    bool scored = json_is_object(json_object_get(json_object_get(j->body, "spec"), "evaluation"));
    char path[4096];

    if (*fake_spec(j, "tuned_dir")) {
        fake_state(f, j, "EXPORT", "", NULL);
        fd_mkdirs(f->store, fake_spec(j, "tuned_dir"), 0755, NULL);
        snprintf(path, sizeof(path), "%s/adapter_model.safetensors", fake_spec(j, "tuned_dir"));
        fd_replace_file(f->store, path, "adapter", 7, 0644, NULL);
        fake_state(f, j, "SERVE", "", NULL);
    }
    fake_state(f, j, "SCORE", "", NULL);
    fake_state(f, j, "SUCCESSFUL", "",
               json_pack("{so s{sf} sf sf sf sI sf sI sf sI}", "score",
                         scored ? json_real(10.0 + (double)rank) : json_null(), "metrics", "rougeL",
                         0.1 + (double)rank / 100, "eval_loss", 2.0 - (double)rank / 100, "perplexity", 7.5,
                         "loss", 1.5, "steps", (json_int_t)j->step, "seconds", 0.5, "tokens", (json_int_t)100,
                         "tokens_per_s", 200.0, "trainable", (json_int_t)1000));
    j->over = true;
}

static bool fake_dies(struct fake *f, struct fake_job *j, const char *group)
{
    char path[4096];
    int fd;

    if (j->step != 3)
        return false;
    if (strncmp(group, "poison", 6) == 0)
        return true;
    if (strncmp(group, "once", 4) != 0)
        return false;
    snprintf(path, sizeof(path), "%s/died", fake_spec(j, "work_dir"));
    fd = openat(f->store, path, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

static void fake_step(struct fake *f, struct fake_job *j)
{
    const char *group = fake_spec(j, "paramgroup_name");
    bool score_only = !json_object_get(json_object_get(j->body, "spec"), "paramgroup");
    long long total = score_only                                                         ? 0
                      : strncmp(group, "slow", 4) == 0 || strncmp(group, "wait", 4) == 0 ? 1000
                                                                                         : 6;

    if (strncmp(group, "hold", 4) == 0 && !j->stop)
        return;
    if (j->waits) {
        for (int i = 0; i < f->njobs; i++)
            if (&f->jobs[i] != j && !f->jobs[i].over && !f->jobs[i].waits)
                return;
        j->waits = false;
        fake_state(f, j, "FINETUNE", "", NULL);
    }
    if (j->step < total && !j->stop) {
        j->step++;
        if (j->step == 1)
            fake_send(f, PM_JOB_HELD, json_pack("{ss sb}", "id", json_str(j->body, "id", ""), "dataset", 0));
        if (fake_dies(f, j, group))
            raise(SIGKILL);
        if (strncmp(group, "fail", 4) == 0 && j->step == 2) {
            fake_state(f, j, "FAILED", "loss is not finite at step 2", NULL);
            j->over = true;
            return;
        }
        fake_send(f, PM_PROGRESS,
                  json_pack("{ss sI sI sf sf sn sf sf sf sf sI ss sI sI}", "id", json_str(j->body, "id", ""),
                            "step", (json_int_t)j->step, "total", (json_int_t)total, "epoch", 0.5, "loss",
                            2.5, "eval_loss", "lr", 1e-4, "grad_norm", 1.0, "tokens_per_s", 1000.0, "eta_s",
                            3.0, "memory", (json_int_t)1000, "phase", "train", "done", (json_int_t)j->step,
                            "of", (json_int_t)total));
        if (j->step % 2 == 0)
            fake_save(f, j);
        return;
    }
    fake_succeed(f, j);
}

static void fake_stop(struct fake *f, const char *id, const char *how)
{
    for (int i = 0; i < f->njobs; i++) {
        struct fake_job *j = &f->jobs[i];
        if (j->over || strcmp(json_str(j->body, "id", ""), id) != 0)
            continue;
        if (strcmp(how, "stop") == 0) {
            j->stop = true;
            continue;
        }
        fake_save(f, j);
        fake_state(f, j, strcmp(how, "pause") == 0 ? "PAUSED" : "CANCELLED", "", NULL);
        j->over = true;
    }
}

static void fake_answer(struct fake *f, json_t *body)
{
    const char *adapter = json_str(body, "adapter", "none");
    char text[1024];

    snprintf(text, sizeof(text), "%s says %s", adapter, json_str(body, "prompt", ""));
    fake_send(f, PM_ANSWER,
              json_pack("{sO ss si si sf sf sf si ss sn}", "id", json_object_get(body, "id"), "text", text,
                        "prompt_tokens", 3, "new_tokens", 5, "ttft_s", 0.01, "total_s", 0.05, "tokens_per_s",
                        100.0, "together", 1, "finish", "stop", "error"));
}

static void fake_message(struct fake *f, enum proto_type type, json_t *body)
{
    if (type == PM_JOB_START || type == PM_SCORE)
        fake_start(f, body);
    else if (type == PM_JOB_STOP)
        fake_stop(f, json_str(body, "id", ""), json_str(body, "how", ""));
    else if (type == PM_ASK)
        fake_answer(f, body);
    if (type != PM_QUIT)
        return;
    for (int i = 0; i < f->njobs; i++)
        if (!f->jobs[i].over)
            fake_stop(f, json_str(f->jobs[i].body, "id", ""), "pause");
    _exit(0);
}

static int fake_check(const char *store, const char *dir)
{
    char path[4096];
    struct buf b = BUF_INIT;

    snprintf(path, sizeof(path), "%s/tree/%s/train.jsonl", store, dir);
    if (strstr(dir, "models/base"))
        printf("{\"ok\":true,\"report\":{\"layers\":2,\"params\":1000}}\n");
    else if (fd_read_file(AT_FDCWD, path, 1 << 20, &b, NULL))
        printf("{\"ok\":false,\"reason\":\"no train.jsonl in the folder\"}\n");
    else if (strncmp(b.p, "bad", 3) == 0)
        printf("{\"ok\":false,\"reason\":\"train.jsonl:1: not JSON\"}\n");
    else if (strncmp(b.p, "crash", 5) == 0)
        raise(SIGKILL); /* not abort: a sanitizer may make a report and an exit status of that */
    else
        printf("{\"ok\":true,\"report\":{\"rows\":{\"train\":3},\"skipped\":0,\"sha256\":\"abc\",\"longest_"
               "chars\":9,"
               "\"examples\":[{\"pieces\":[{\"text\":\"Q\",\"trained\":false},{\"text\":\"A\",\"trained\":"
               "true}]}]}}\n");
    buf_release(&b);
    return 0;
}

/* Call first in main: returns only in the test process. */
static inline void fake_worker_main(int argc, char **argv)
{
    struct fake f = {0};
    struct pollfd p = {.fd = PROTO_WORKER_FD, .events = POLLIN};

    if (argc < 5 || strcmp(argv[1], "--store") != 0)
        return;
    if (strncmp(argv[3], "--check", 7) == 0)
        exit(fake_check(argv[2], argv[4]));
    f.store = open(argv[2], O_RDONLY | O_DIRECTORY);
    fake_send(&f, PM_HELLO,
              json_pack("{ss sI sI si ss si}", "device", "fake", "mem_total", (json_int_t)1000, "mem_used",
                        (json_int_t)10, "threads", 1, "fingerprint", "fake", "pid", (int)getpid()));
    for (;;) {
        enum proto_type type;
        json_t *body;
        poll(&p, 1, 5);
        if (p.revents) {
            buf_reserve(&f.in, 65536);
            ssize_t n = recv(PROTO_WORKER_FD, f.in.p + f.in.len, 65536, MSG_DONTWAIT);
            if (n == 0)
                _exit(0);
            if (n > 0)
                f.in.len += (size_t)n;
        }
        while (proto_take(&f.in, PROTO_WORKER, &type, &body, NULL) == 1) {
            fake_message(&f, type, body);
            json_decref(body);
        }
        for (int i = 0; i < f.njobs; i++)
            if (!f.jobs[i].over)
                fake_step(&f, &f.jobs[i]);
    }
}

/* ---- the file system's side ---- */

static char fake_store[64], fake_self[4096];
static struct sched *fake_sched;

static inline struct caller fake_me(void)
{
    return (struct caller){getuid(), getgid(), getpid()};
}

static inline void open_sched(const char *devices)
{
    struct sched_config c = {.store = fake_store, .devices = devices, .worker = fake_self, .version = "test"};
    struct dtx_err e = {0};

    ck_assert_msg(sched_open(&c, &fake_sched, &e) == 0, "sched_open: %s", e.msg);
}

static inline void new_store(void)
{
    ssize_t n = readlink("/proc/self/exe", fake_self, sizeof(fake_self) - 1);

    fake_self[n > 0 ? n : 0] = '\0';
    snprintf(fake_store, sizeof(fake_store), "/tmp/dtx-sched-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(fake_store));
}

static inline void end_store(void)
{
    fd_remove_tree(AT_FDCWD, fake_store, NULL);
}

static inline void event(enum drop_event ev, const char *path)
{
    struct caller me = fake_me();

    sched_drop_event(fake_sched, ev, path, &me);
}

static inline void make_dir(const char *path)
{
    int rc = mkdirat(sched_tree_fd(fake_sched), path, 0755);

    ck_assert_msg(rc == 0 || errno == EEXIST, "mkdir %s: %s", path, strerror(errno));
    event(DROP_MKDIR, path);
}

/* As cp does: create, write, flush, close.  Returns what close gives. */
static inline int put(const char *path, const char *text)
{
    int fd, rc;

    fd = openat(sched_tree_fd(fake_sched), path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    ck_assert_msg(fd >= 0, "open %s: %s", path, strerror(errno));
    event(DROP_OPEN_WRITE, path);
    event(DROP_CREATE, path);
    ck_assert_int_eq(fd_write_all(fd, text, strlen(text)), 0);
    event(DROP_WRITE, path);
    rc = sched_flush(fake_sched, path);
    close(fd);
    event(DROP_RELEASE, path);
    return rc;
}

/* Text of a generated file; the caller frees.  NULL: not there. */
static inline char *text_of(const char *path)
{
    struct layout_match m;
    struct buf b = BUF_INIT;

    ck_assert_msg(layout_lookup(path, &m) == 0, "layout: %s", path);
    if (sched_render(fake_sched, &m, &b)) {
        buf_release(&b);
        return NULL;
    }
    return buf_detach(&b, NULL);
}

static inline bool text_has(const char *path, const char *words)
{
    char *t = text_of(path);
    bool has = t && strstr(t, words);

    free(t);
    return has;
}

static inline void wait_text(const char *path, const char *words, double seconds)
{
    int64_t until = clock_mono_ns() + (int64_t)(4 * seconds * slow() * 1e9); /* a bound, not a measure */
    char *t;

    while (!text_has(path, words)) {
        if (clock_mono_ns() > until) {
            t = text_of(path);
            ck_abort_msg("%s has no \"%s\" after %g s:\n%s", path, words, seconds, t ? t : "(not there)");
        }
        usleep(5000);
    }
}

static inline int word(const char *path, const char *text)
{
    struct caller me = fake_me();
    struct layout_match m;

    ck_assert_int_eq(layout_lookup(path, &m), 0);
    return sched_write(fake_sched, &m, text, strlen(text), &me);
}

static inline int remove_dir(const char *path)
{
    struct caller me = fake_me();
    struct layout_match m;

    ck_assert_int_eq(layout_lookup(path, &m), 0);
    return sched_rmdir(fake_sched, &m, &me);
}

/* A base model, a dataset, and parameter groups of the given names; all READY. */
static inline void put_basics(const char *const *groups)
{
    char path[256], text[128];

    make_dir("models/base/tiny");
    put("models/base/tiny/config.json", "{}");
    put("models/base/tiny/_SUCCESS", "");
    make_dir("datasets/data");
    put("datasets/data/train.jsonl", "{\"text\":\"hello\"}\n");
    put("datasets/data/_SUCCESS", "");
    for (int i = 0; groups[i]; i++) {
        snprintf(path, sizeof(path), "paramgroups/%s.json", groups[i]);
        snprintf(text, sizeof(text), "{\"lora_r\": %d}", 8 + i);
        ck_assert_int_eq(put(path, text), 0);
    }
    wait_text("datasets/data.status", "READY", 5);
    wait_text("models/base/tiny.status", "READY", 5);
    for (int i = 0; groups[i]; i++) {
        snprintf(path, sizeof(path), "paramgroups/%s.status", groups[i]);
        wait_text(path, "READY", 5);
    }
}

#endif
