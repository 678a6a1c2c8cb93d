/* Prompts of dtxd: find or load the base and the adapter, put the prompt into chat form, generate, answer. */
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/data/data.h"
#include "scheduler/worker/gen.h"

enum { ASK_PATIENCE = 60 /* seconds that a prompt waits for its base to fit */, ASK_NEW_TOKENS_MAX = 32768 };

struct ask {
    struct ask *next;
    long long id;
    json_t *body;
    struct base_entry *base;
    struct adapter_entry *adapter;
    struct gen *gen;
    int64_t asked_ns, retry_ns;
};

static void ask_free(struct worker *w, struct ask *a)
{
    for (struct ask **p = &w->asks; *p; p = &(*p)->next)
        if (*p == a) {
            *p = a->next;
            break;
        }
    if (a->gen)
        gen_cancel(a->gen);
    adapter_put(a->adapter);
    base_put(a->base);
    json_decref(a->body);
    free(a);
}

static void answer_error(struct worker *w, struct ask *a, const char *why)
{
    json_t *body = json_pack("{s:I,s:s,s:i,s:i,s:n}", "id", (json_int_t)a->id, "text", "", "prompt_tokens", 0,
                             "new_tokens", 0, "finish");

    json_object_set_new(body, "error", json_text(why, strlen(why)));
    send_message(w, PM_ANSWER, body);
    ask_free(w, a);
}

static double seconds(int64_t from, int64_t to)
{
    return (double)(to - from) / 1e9;
}

static void ask_done(struct worker *w, struct gen *g)
{
    struct ask *a = g->owner;
    struct buf text = BUF_INIT;
    double total = seconds(a->asked_ns, g->end_ns), first = seconds(a->asked_ns, g->first_ns);
    double rate = g->seen > 1 ? (double)(g->seen - 1) / (total - first) : (double)g->seen / total;
    json_t *body;

    a->gen = NULL;
    if (g->error.code) {
        answer_error(w, a, g->error.msg);
        return;
    }
    gen_text(g, &text);
    body = json_pack("{s:I,s:o,s:I,s:I,s:o,s:o,s:o,s:i,s:s,s:n}", "id", (json_int_t)a->id, "text",
                     json_text(text.p ? text.p : "", text.len), "prompt_tokens", (json_int_t)g->prompt.n,
                     "new_tokens", (json_int_t)g->seen, "ttft_s", json_number(first), "total_s",
                     json_number(total), "tokens_per_s", json_number(rate), "together", g->together, "finish",
                     dtx_seq_finish(g->seq) == DTX_STOP ? "stop" : "length", "error");
    buf_release(&text);
    send_message(w, PM_ANSWER, body);
    ask_free(w, a);
}

static int build_prompt(struct ask *a, struct dtx_ids *ids, struct dtx_err *e)
{
    const char *system = json_str(a->body, "system", NULL), *prompt = json_str(a->body, "prompt", "");
    const char *form = json_str(a->body, "template", a->adapter ? a->adapter->template_name : NULL);
    struct data_turn turns[3];
    struct data_row row = {.turns = turns, .file = "prompt", .line = 1};

    if (system && *system)
        turns[row.n++] = (struct data_turn){DATA_SYSTEM, (char *)(uintptr_t)system};
    turns[row.n++] = (struct data_turn){DATA_USER, (char *)(uintptr_t)prompt};
    turns[row.n++] = (struct data_turn){DATA_ASSISTANT, (char *)(uintptr_t) ""};
    return chat_encode(a->base->tokenizer, form, &row, true, ids, NULL, e);
}

static struct dtx_sampling sampling_of(const json_t *body)
{
    long long n = json_int(body, "max_new_tokens", 128);
    struct dtx_sampling s = {
        .max_new_tokens = (int)(n < 1                    ? 1
                                : n > ASK_NEW_TOKENS_MAX ? ASK_NEW_TOKENS_MAX
                                                         : n),
        .temperature = json_num(body, "temperature", 0),
        .top_p = json_num(body, "top_p", 1),
        .top_k = (int)json_int(body, "top_k", 0),
        .seed = (uint64_t)json_int(body, "seed", 0),
    };

    return s;
}

static int ask_begin(struct worker *w, struct ask *a, struct dtx_err *e)
{
    const char *base = json_str(a->body, "base", NULL), *adapter = json_str(a->body, "adapter", NULL);
    struct dtx_sampling s = sampling_of(a->body);
    struct dtx_ids ids = {0};
    int rc;

    if (!base)
        return dtx_fail(e, -EINVAL, "the prompt names no base model");
    rc = a->base ? 0 : base_get(w, base, 0, &a->base, e);
    if (rc == 0 && adapter && !a->adapter)
        rc = adapter_get(w, a->base, adapter, false, &a->adapter, e);
    if (rc == 0)
        rc = build_prompt(a, &ids, e);
    if (rc == 0) {
        a->gen = gen_add(w, a->base, a->adapter, &ids, &s, true);
        if (!a->gen)
            rc = dtx_fail(e, -ENOMEM, "out of memory for a prompt");
    }
    dtx_ids_release(&ids);
    if (rc)
        return rc;
    a->gen->owner = a;
    a->gen->done = ask_done;
    return 0;
}

static void ask_try(struct worker *w, struct ask *a)
{
    struct dtx_err e = {0};
    int rc = ask_begin(w, a, &e);
    int64_t now = clock_mono_ns();

    w->moved = true;
    if (rc == -EAGAIN && seconds(a->asked_ns, now) < ASK_PATIENCE) {
        a->retry_ns = now + 500 * 1000000ll;
        w->moved = false;
    } else if (rc) {
        w->fatal |= dtx_device_failed(w->device, NULL) < 0;
        answer_error(w, a, e.msg);
    }
}

void ask_message(struct worker *w, const json_t *body)
{
    struct ask *a = calloc(1, sizeof(*a)), **p = &w->asks;

    if (!a) {
        send_log(w, "out of memory: a prompt was not taken");
        return;
    }
    a->id = json_int(body, "id", 0);
    a->body = json_incref((json_t *)(uintptr_t)body);
    a->asked_ns = clock_mono_ns();
    while (*p)
        p = &(*p)->next;
    *p = a;
    ask_try(w, a);
}

void asks_turn(struct worker *w)
{
    int64_t now = clock_mono_ns();

    for (struct ask *a = w->asks, *next; a; a = next) {
        next = a->next;
        if (!a->gen && now >= a->retry_ns)
            ask_try(w, a);
    }
}

void ask_cancel(struct worker *w, long long id)
{
    for (struct ask *a = w->asks, *next; a; a = next) {
        next = a->next;
        if (a->id == id)
            ask_free(w, a);
    }
}

int asks_count(const struct worker *w)
{
    int n = 0;

    for (const struct ask *a = w->asks; a; a = a->next)
        n++;
    return n;
}

void asks_release(struct worker *w)
{
    while (w->asks)
        ask_free(w, w->asks);
}
