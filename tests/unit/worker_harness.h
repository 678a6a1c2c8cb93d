/*
 * Drives the real dtx-worker program over a socketpair, as dtxd does, on a store of its own under /tmp.
 *
 *   struct harness h;
 *   harness_init(&h);            a store with base model "tiny" and dataset "words" (24 + 6 rows)
 *   harness_start(&h, 1);        the worker, with 1 thread
 *   job = harness_job(&h, "exp/01", "{\"max_steps\":20}");   a job_start message
 *   harness_send(&h, PM_JOB_START, job);
 *   body = harness_state(&h, "exp/01", "SUCCESSFUL", 30);    waits for it; fails the test on FAILED or time
 *   harness_end(&h);             quit, wait, remove the store
 */
#ifndef WORKER_HARNESS_H
#define WORKER_HARNESS_H

#include <check.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"
#include "scheduler/data/data.h"
#include "scheduler/proto.h"
#include "tests/unit/tiny_model.h"

struct harness {
    char dir[64];
    int store, sock;
    pid_t pid;
    struct buf in;
    json_t *seen;      /* array of {"type","body"}: everything that came, in order */
    size_t next;       /* first of `seen` that harness_wait has not looked at */
    rlim_t file_limit; /* RLIMIT_FSIZE of the next worker; 0: none */
    uint64_t memory;   /* --memory of the next worker; 0: no limit */
    char sha[65];      /* of dataset words */
};

/* build/dtx-worker beside build/tests/test_X */
static inline void harness_program(char out[PATH_MAX])
{
    char self[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

    ck_assert_int_gt(n, 0);
    self[n] = '\0';
    snprintf(out, PATH_MAX, "%.*s/dtx-worker", (int)(PATH_MAX - 16), dirname(dirname(self)));
}

static inline void harness_init(struct harness *h)
{
    struct dataset *d = NULL;
    struct dtx_err e = {0};

    memset(h, 0, sizeof(*h));
    h->sock = -1;
    strcpy(h->dir, "/tmp/dtx-worker-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(h->dir));
    h->store = open(h->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ck_assert_int_ge(h->store, 0);
    ck_assert_int_eq(tiny_model_make(h->store, "tree/models/base/tiny", 1), 0);
    ck_assert_int_eq(tiny_dataset_make(h->store, "tree/datasets/words", 24, 6), 0);
    ck_assert_msg(dataset_open(h->store, "tree/datasets/words", NULL, &d, &e) == 0, "%s", e.msg);
    ck_assert_int_eq(dataset_sha256(d, h->sha, &e), 0);
    dataset_close(d);
    h->seen = json_array();
}

static inline void harness_start(struct harness *h, int threads)
{
    char program[PATH_MAX], count[16], memory[32];
    int pair[2];

    harness_program(program);
    snprintf(count, sizeof(count), "%d", threads);
    snprintf(memory, sizeof(memory), "%llu", (unsigned long long)h->memory);
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    h->pid = fork();
    ck_assert_int_ge(h->pid, 0);
    if (h->pid == 0) {
        struct rlimit limit = {h->file_limit, h->file_limit};

        if (h->file_limit)
            setrlimit(RLIMIT_FSIZE, &limit);
        if (pair[1] == PROTO_WORKER_FD)
            fcntl(pair[1], F_SETFD, 0);
        else
            dup2(pair[1], PROTO_WORKER_FD);
        execl(program, "dtx-worker", "--store", h->dir, "--device", "cpu:0", "--threads", count, "--memory",
              memory, (char *)NULL);
        _exit(127);
    }
    close(pair[1]);
    h->sock = pair[0];
    buf_clear(&h->in);
}

static inline void harness_send(struct harness *h, enum proto_type type, json_t *body)
{
    struct buf out = BUF_INIT;

    ck_assert_int_eq(proto_put(&out, type, body, NULL), 0);
    ck_assert_int_eq(fd_write_all(h->sock, out.p, out.len), 0);
    json_decref(body);
    buf_release(&out);
}

/* Read what there is within `ms`; false: the worker closed the socket. */
static inline bool harness_read(struct harness *h, int ms)
{
    struct pollfd p = {h->sock, POLLIN, 0};
    char block[65536];
    enum proto_type type;
    json_t *body;
    struct dtx_err e;
    ssize_t n;
    int rc;

    if (poll(&p, 1, ms) <= 0)
        return true;
    n = read(h->sock, block, sizeof(block));
    if (n <= 0)
        return false;
    buf_add(&h->in, block, (size_t)n);
    while ((rc = proto_take(&h->in, PROTO_DAEMON, &type, &body, &e)) == 1)
        json_array_append_new(h->seen, json_pack("{s:i,s:o}", "type", (int)type, "body", body));
    ck_assert_msg(rc == 0, "%s", e.msg);
    return true;
}

typedef bool harness_match(const json_t *body, const void *arg);

/* The next message of a type for which match is true (borrowed). */
static inline const json_t *harness_wait(struct harness *h, enum proto_type type, harness_match *match,
                                         const void *arg, double seconds)
{
    int64_t end = clock_mono_ns() + (int64_t)(seconds * 1e9);

    for (;;) {
        while (h->next < json_array_size(h->seen)) {
            const json_t *m = json_array_get(h->seen, h->next++), *body = json_object_get(m, "body");

            if (json_int(m, "type", 0) == (int)type && (!match || match(body, arg)))
                return body;
        }
        ck_assert_msg(clock_mono_ns() < end, "no %s message within %g s", proto_type_name(type), seconds);
        ck_assert_msg(harness_read(h, 100), "the worker ended while a %s message was expected",
                      proto_type_name(type));
    }
}

/* What has come so far is old news. */
static inline void harness_pass_over(struct harness *h)
{
    struct pollfd p = {h->sock, POLLIN, 0};

    while (poll(&p, 1, 0) > 0 && harness_read(h, 0))
        ;
    h->next = json_array_size(h->seen);
}

struct harness_want {
    const char *id, *state;
};

static inline bool harness_is_state(const json_t *body, const void *arg)
{
    const struct harness_want *want = arg;

    if (strcmp(json_str(body, "id", ""), want->id) != 0)
        return false;
    if (!strcmp(json_str(body, "state", ""), want->state))
        return true;
    ck_assert_msg(strcmp(json_str(body, "state", ""), "FAILED") != 0, "job %s failed: %s", want->id,
                  json_str(body, "reason", ""));
    return false;
}

static inline const json_t *harness_state(struct harness *h, const char *id, const char *state,
                                          double seconds)
{
    struct harness_want want = {id, state};

    return harness_wait(h, PM_JOB_STATE, harness_is_state, &want, seconds);
}

/* As harness_state, for messages that may have been passed over while another was waited for. */
static inline const json_t *harness_state_any(struct harness *h, const char *id, const char *state,
                                              double seconds)
{
    h->next = 0;
    return harness_state(h, id, state, seconds);
}

static inline bool harness_step_reached(const json_t *body, const void *arg)
{
    return json_int(body, "step", 0) >= *(const int *)arg;
}

static inline void harness_kill(struct harness *h)
{
    kill(h->pid, SIGKILL);
    waitpid(h->pid, NULL, 0);
    close(h->sock);
    h->sock = -1;
    h->pid = 0;
    json_array_clear(h->seen);
    h->next = 0;
}

/* quit; the worker must end by itself with status 0. */
static inline void harness_quit(struct harness *h)
{
    int status = -1;

    harness_send(h, PM_QUIT, NULL);
    for (int64_t end = clock_mono_ns() + 60000000000ll; harness_read(h, 100);)
        ck_assert_msg(clock_mono_ns() < end, "the worker did not quit");
    ck_assert_int_eq(waitpid(h->pid, &status, 0), h->pid);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the worker ended with status %x", status);
    close(h->sock);
    h->sock = -1;
    h->pid = 0;
    json_array_clear(h->seen);
    h->next = 0;
}

static inline void harness_end(struct harness *h)
{
    if (h->pid)
        harness_quit(h);
    json_decref(h->seen);
    buf_release(&h->in);
    close(h->store);
    ck_assert_int_eq(fd_remove_tree(AT_FDCWD, h->dir, NULL), 0);
}

/* A job_start message.  group: JSON object with keys that replace those of the parameter group. */
static inline json_t *harness_job(struct harness *h, const char *id, const char *group)
{
    const char *exp = "exp", *job = strchr(id, '/') + 1;
    char job_dir[128], work_dir[128], tuned_dir[128];
    json_t *pg, *over = NULL, *spec;

    snprintf(job_dir, sizeof(job_dir), "tree/experiments/%s/jobs/%s", exp, job);
    snprintf(work_dir, sizeof(work_dir), "work/%s/%s", exp, job);
    snprintf(tuned_dir, sizeof(tuned_dir), "tree/models/tuned/%s.%s", exp, job);
    pg = json_pack(
        "{s:s,s:s,s:f,s:i,s:i,s:i,s:i,s:i,s:f,s:f,s:f,s:i,s:f,s:f,s:[s,s,s,s,s,s,s],s:b,s:s,s:s,s:s}",
        "scheduler", "cosine", "optimizer", "adamw", "learning_rate", 0.01, "epochs", 3, "max_steps", 0,
        "batch_size", 4, "grad_acc_steps", 1, "block_size", 128, "warmup_ratio", 0.1, "weight_decay", 0.0,
        "max_grad_norm", 1.0, "lora_r", 4, "lora_alpha", 8.0, "lora_dropout", 0.05, "target_modules",
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "use_rslora", 0,
        "quantization", "none", "save_every", "10%", "eval_every", "epoch");
    ck_assert_ptr_nonnull(pg);
    ck_assert_int_eq(json_parse_text("group", group, strlen(group), &over, NULL), 0);
    json_object_update(pg, over);
    json_decref(over);
    spec = json_pack("{s:s,s:s,s:s,s:s,s:n,s:s,s:s,s:n,s:s,s:o,s:s,s:i}", "experiment", exp, "job", job,
                     "base", "tiny", "base_dir", "tree/models/base/tiny", "init_dir", "dataset", "words",
                     "dataset_dir", "tree/datasets/words", "dataset_spec", "dataset_sha256", h->sha,
                     "paramgroup", pg, "paramgroup_name", "pg", "seed", 7);
    ck_assert_ptr_nonnull(spec);
    json_object_update_new(spec,
                           json_pack("{s:n,s:s,s:n,s:s,s:s,s:s,s:i,s:i}", "evaluation", "evaluation_name", "",
                                     "early_stopping", "job_dir", job_dir, "work_dir", work_dir, "tuned_dir",
                                     tuned_dir, "uid", (int)geteuid(), "gid", (int)getegid()));
    return json_pack("{s:s,s:o}", "id", id, "spec", spec);
}

static inline json_t *harness_questions(int n, int max_new_tokens)
{
    json_t *questions = json_array();

    for (int i = 0; i < n; i++) {
        char q[32], a[8];

        snprintf(q, sizeof(q), "after %c?", 'a' + i);
        snprintf(a, sizeof(a), "%c%c.", 'b' + i, 'b' + i);
        json_array_append_new(questions, json_pack("{s:s,s:s,s:n}", "question", q, "reference", a, "system"));
    }
    return json_pack("{s:o,s:n,s:s,s:n,s:{},s:{s:f,s:f},s:i,s:i,s:i,s:i}", "questions", questions, "dataset",
                     "split", "test", "plugin", "parameters", "metrics", "rougeL", 1.0, "exact_match", 1.0,
                     "max_new_tokens", max_new_tokens, "temperature", 0, "seed", 0, "limit", 0);
}

static inline json_t *harness_spec(json_t *job)
{
    return json_object_get(job, "spec");
}

/* SHA-256 of a file of the store; "" when it is not there. */
static inline const char *harness_sum(struct harness *h, const char *path)
{
    static char hex[8][65];
    static int next;
    char *out = hex[next++ % 8];

    if (sha256_file(h->store, path, out, NULL))
        out[0] = '\0';
    return out;
}

static inline const char *harness_adapter(struct harness *h, const char *job)
{
    char path[256];

    snprintf(path, sizeof(path), "tree/experiments/exp/jobs/%s/checkpoint/adapter_model.safetensors", job);
    return harness_sum(h, path);
}

static inline bool harness_exists(struct harness *h, const char *path)
{
    return faccessat(h->store, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Text of a file of the store; free it. */
static inline char *harness_text(struct harness *h, const char *path)
{
    struct buf b = BUF_INIT;
    struct dtx_err e = {0};

    ck_assert_msg(fd_read_file(h->store, path, 16 << 20, &b, &e) == 0, "%s", e.msg);
    return buf_detach(&b, NULL);
}

#endif
