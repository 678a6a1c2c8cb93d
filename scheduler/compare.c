/*
 * Prompts: one dropped into models/compare/ is answered by every selected model at the same time, one in
 * services/NAME/ask by that service.  The asks of a prompt are spread over the workers; an ask whose worker
 * dies goes to another one, once.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"
#include "scheduler/report/report.h"

/* MAX_ANSWERING: prompts of one owner at a time, so that a thousand of them do not make another's wait. */
enum { MAX_MODELS = 256, MAX_TRIES = 2, MAX_ANSWERING = 32 };

struct ask {
    struct model_ref ref;
    char shown[NAME_CAP];
    bool given;   /* by a service, to all */
    long long id; /* of the message, 0: not sent */
    struct worker *worker;
    int tries;
    json_t *answer; /* NULL until it came */
};

struct asking { /* what an ANSWERING prompt waits for; the object owns it */
    int n;
    struct ask v[];
};

/* Models chosen for one prompt after the other of a round. */
struct choice {
    struct ask v[MAX_MODELS];
    int n;
    bool nobody; /* there is no model at all, whoever asks: known from a prompt before */
};

static void asking_free(struct asking *a)
{
    for (int i = 0; a && i < a->n; i++)
        json_decref(a->v[i].answer);
    free(a);
}

void asking_cancel(struct sched *s, struct object *o)
{
    struct asking *a = o->asking;

    for (int i = 0; a && i < a->n; i++)
        if (a->v[i].worker) {
            a->v[i].worker->asks--;
            worker_send(s, a->v[i].worker, PM_ASK_CANCEL, json_pack("{sI}", "id", (json_int_t)a->v[i].id));
        }
    asking_free(a);
    o->asking = NULL;
}

/* ---- who is asked ---- */

/* for_whom: the prompt, whose owner has to be able to read the model; NULL where a service gives it to all.
 */
static int add_model(struct sched *s, struct choice *a, const char *model, const char *shown,
                     const struct object *for_whom, struct dtx_err *e)
{
    struct ask *ask = &a->v[a->n];
    int rc;

    if (a->n == MAX_MODELS)
        return 0;
    *ask = (struct ask){0};
    rc = model_resolve(s, model, &ask->ref, e);
    if (rc)
        return rc;
    if (for_whom && !model_readable(s, &ask->ref, for_whom->uid, for_whom->gid))
        return dtx_fail(e, -EACCES, "model %s is private", model);
    if (shown)
        snprintf(ask->shown, sizeof(ask->shown), "%.*s", NAME_CAP - 1, shown);
    else
        memcpy(ask->shown, ask->ref.shown, sizeof(ask->shown));
    ask->given = !for_whom;
    a->n++;
    return 0;
}

static void add_services(struct sched *s, struct choice *a)
{
    for (int i = 0; i < s->nobjects; i++) {
        struct object *o = s->objects[i];
        if (o->kind != OBJ_SERVICE || o->state != ST_RUNNING)
            continue;
        a->nobody = false;
        add_model(s, a, json_str(o->spec, "model", ""), o->name, NULL, NULL);
    }
}

static void add_all(struct sched *s, struct choice *a, const struct object *prompt)
{
    char name[NAME_CAP + 16];

    for (int i = 0; i < s->nobjects; i++)
        if (s->objects[i]->kind == OBJ_BASE && s->objects[i]->state == ST_READY) {
            a->nobody = false;
            snprintf(name, sizeof(name), "base/%.250s", s->objects[i]->name);
            add_model(s, a, name, NULL, prompt, NULL);
        }
    for (int i = 0; i < s->nexps; i++)
        if (!s->exps[i]->deleted && best_model(s, s->exps[i])) {
            a->nobody = false;
            snprintf(name, sizeof(name), "tuned/%.250s.best", s->exps[i]->name);
            add_model(s, a, name, NULL, prompt, NULL);
        }
}

/* Thousands of prompts may wait for the first model: it is looked for once a round. */
static int add_default(struct sched *s, struct choice *a, const struct object *prompt, struct dtx_err *e)
{
    if (!a->nobody) {
        a->nobody = true;
        add_services(s, a);
        if (a->n == 0)
            add_all(s, a, prompt);
    }
    return a->n ? 0 : dtx_fail(e, -ENOENT, "waiting for: a model (models/base/ has none that is READY)");
}

static struct object *service_of(struct sched *s, const struct object *prompt)
{
    char service[NAME_CAP];
    const char *slash = strchr(prompt->name, '/');

    if (!slash)
        return NULL;
    snprintf(service, sizeof(service), "%.*s", (int)(slash - prompt->name), prompt->name);
    return object_find(s, OBJ_SERVICE, service);
}

static int select_models(struct sched *s, struct object *o, struct choice *a, struct dtx_err *e)
{
    json_t *models = json_object_get(o->spec, "models"), *v;
    struct object *service;
    size_t i;
    int rc = 0;

    a->n = 0;
    if (o->kind == OBJ_ASK) {
        service = service_of(s, o);
        if (!service || service->state != ST_RUNNING)
            return dtx_fail(e, -ENOENT, "waiting for: the service to run (it is %s)",
                            service ? state_name(service->state) : "not there");
        return add_model(s, a, json_str(service->spec, "model", ""), service->name, NULL, e);
    }
    json_array_foreach(models, i, v)
    {
        if (rc == 0 && (rc = add_model(s, a, json_string_value(v), NULL, o, e)))
            dtx_fail(e, rc, "waiting for: model %s", json_string_value(v));
    }
    return json_array_size(models) ? rc : add_default(s, a, o, e);
}

static void begin(struct sched *s, struct object *o, struct choice *chosen)
{
    struct dtx_err e = {0};
    int rc = select_models(s, o, chosen, &e);
    struct asking *a = rc ? NULL : malloc(sizeof(*a) + (size_t)chosen->n * sizeof(a->v[0]));

    if (!a) {
        object_event(s, o, EV_WAIT, rc ? e.msg : "out of memory");
        return;
    }
    a->n = chosen->n;
    memcpy(a->v, chosen->v, (size_t)a->n * sizeof(a->v[0]));
    if (object_event(s, o, EV_START, NULL)) {
        asking_free(a);
        return;
    }
    o->asking = a;
}

/* ---- asking ---- */

static struct worker *pick(struct sched *s, const struct ask *a)
{
    struct worker *best = NULL;
    int best_cost = 0;

    for (int i = 0; i < s->nworkers; i++) {
        struct worker *w = &s->workers[i];
        int cost = 4 * w->asks + 3 * (strcmp(w->base, a->ref.base) != 0) + (w->njobs > 0);
        if (w->state != WS_UP || w->quitting || w->let_go || w->eof_at)
            continue;
        if (!best || cost < best_cost) {
            best = w;
            best_cost = cost;
        }
    }
    return best;
}

/* Settings: the prompt's own where it has some, else the service's, else the defaults. */
static const json_t *settings_of(struct sched *s, const struct object *o)
{
    struct object *service = o->kind == OBJ_ASK ? service_of(s, o) : NULL;

    return service && service->spec && !json_flag(o->spec, "own_settings", 0) ? service->spec : o->spec;
}

static json_t *ask_body(struct sched *s, struct object *o, struct ask *a)
{
    static const char *const keys[] = {"system", "max_new_tokens", "temperature", "top_p", "top_k", "seed"};
    const json_t *settings = settings_of(s, o);
    json_t *body = json_object(), *v;

    json_object_set_new(body, "id", json_integer(a->id));
    json_object_set_new(body, "base", json_sprintf("tree/models/base/%s", a->ref.base));
    json_object_set_new(body, "adapter",
                        a->ref.tuned[0] ? json_sprintf("tree/models/tuned/%s", a->ref.tuned) : json_null());
    json_object_set(body, "prompt", json_object_get(o->spec, "prompt"));
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
        if ((v = json_object_get(settings, keys[i])))
            json_object_set(body, keys[i], v);
    return body;
}

static void send_one(struct sched *s, struct object *o, struct ask *a)
{
    struct worker *w = pick(s, a);

    if (!w)
        return;
    a->id = ++s->next_ask;
    if (worker_send(s, w, PM_ASK, ask_body(s, o, a)))
        return;
    a->worker = w;
    w->asks++;
}

/* ---- answers ---- */

static json_t *answers_json(const struct object *o)
{
    json_t *list = json_array(), *answer;

    for (int i = 0; i < o->asking->n; i++)
        if ((answer = o->asking->v[i].answer))
            json_array_append(list, answer);
    return json_pack("{sOso}", "prompt", json_object_get(o->spec, "prompt"), "answers", list);
}

/* Answers have no more readers than the prompt and the models that were asked; a service's are what its owner
 * gives to all. */
static mode_t closed_answers(struct sched *s, const struct object *o)
{
    mode_t closed = o->closed;

    for (int i = 0; o->kind == OBJ_COMPARE && i < o->asking->n; i++)
        if (!o->asking->v[i].given)
            closed |= model_closed(s, &o->asking->v[i].ref);
    return closed;
}

static int put_file(const struct object *o, mode_t closed, int dir, const char *name, const struct buf *b,
                    struct dtx_err *e)
{
    int rc = fd_replace_file(dir, name, b->p ? b->p : "", b->len, 0644 & ~closed, e);

    if (rc == 0)
        give_at(dir, name, o->uid, o->gid);
    return rc;
}

static int put_text(const struct object *o, const struct ask *a, mode_t closed, int dir, struct dtx_err *e)
{
    char name[NAME_CAP + 8];
    const char *error = json_str(a->answer, "error", NULL);
    struct buf b = BUF_INIT;
    int rc;

    snprintf(name, sizeof(name), "%.240s.txt", a->shown);
    for (char *c = name; *c; c++)
        if (*c == '/')
            *c = '.';
    buf_addf(&b, "%s%s\n", error ? "ERROR: " : "", error ? error : json_str(a->answer, "text", ""));
    rc = put_file(o, closed, dir, name, &b, e);
    buf_release(&b);
    return rc;
}

/* The folder of a prompt's answers.  Only what is a folder, and no link to one, is opened: the mode, the
 * owner and the files are put into what was opened. */
static int answers_folder(struct sched *s, const struct object *o, mode_t closed, struct dtx_err *e)
{
    char path[PATH_MAX / 2];
    int fd, rc;

    snprintf(path, sizeof(path), "models/compare/%s", o->name);
    rc = fd_mkdirs(s->tree_fd, path, 0755 & ~closed, e);
    if (rc)
        return rc;
    fd = open_beneath(s->tree_fd, path, O_RDONLY | O_DIRECTORY);
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    if (fchmod(fd, 0755 & ~closed)) {
        rc = dtx_fail_errno(e, "cannot set the permissions of %s", path);
        close(fd);
        return rc;
    }
    if (geteuid() == 0)
        (void)!fchown(fd, o->uid, o->gid);
    return fd;
}

static int put_comparison(const struct object *o, mode_t closed, int dir, const json_t *all,
                          struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc = 0;

    for (int i = 0; rc == 0 && i < o->asking->n; i++)
        rc = put_text(o, &o->asking->v[i], closed, dir, e);
    if (rc == 0) {
        compare_markdown(&b, all);
        rc = put_file(o, closed, dir, "answers.md", &b, e);
    }
    if (rc == 0) {
        buf_clear(&b);
        compare_stats_tsv(&b, all);
        rc = put_file(o, closed, dir, "stats.tsv", &b, e);
    }
    if (rc == 0) {
        buf_clear(&b);
        json_dump_buf(all, &b);
        buf_addc(&b, '\n');
        rc = put_file(o, closed, dir, "answers.json", &b, e);
    }
    buf_release(&b);
    return rc;
}

static int write_comparison(struct sched *s, const struct object *o, mode_t closed, const json_t *all,
                            struct dtx_err *e)
{
    int dir = answers_folder(s, o, closed, e), rc;

    if (dir < 0)
        return dir;
    rc = put_comparison(o, closed, dir, all, e);
    close(dir);
    return rc;
}

/* The service's folder may have been exchanged for a link meanwhile. */
static int write_answer(struct sched *s, const struct object *o, mode_t closed, struct dtx_err *e)
{
    const char *slash = strchr(o->name, '/'), *error = json_str(o->asking->v[0].answer, "error", NULL);
    char path[PATH_MAX / 2], name[NAME_CAP + 8];
    struct buf b = BUF_INIT;
    int dir, rc;

    snprintf(path, sizeof(path), "services/%.*s/ask", (int)(slash - o->name), o->name);
    snprintf(name, sizeof(name), "%s.md", slash + 1);
    dir = open_beneath(s->tree_fd, path, O_RDONLY | O_DIRECTORY);
    if (dir < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    buf_addf(&b, "%s%s\n", error ? "ERROR: " : "",
             error ? error : json_str(o->asking->v[0].answer, "text", ""));
    rc = put_file(o, closed, dir, name, &b, e);
    buf_release(&b);
    close(dir);
    return rc;
}

/* How it went, for NAME.status: everything of the answers but their texts. */
static json_t *summary(const json_t *all)
{
    json_t *copy = json_deep_copy(json_object_get(all, "answers")), *v;
    size_t i;

    json_array_foreach(copy, i, v) json_object_del(v, "text");
    return json_pack("{so}", "answers", copy);
}

static void finish(struct sched *s, struct object *o)
{
    json_t *all = answers_json(o);
    const char *error = NULL;
    mode_t closed = closed_answers(s, o);
    struct dtx_err e = {0};
    int rc, good = 0;

    for (int i = 0; i < o->asking->n; i++) {
        const char *words = json_str(o->asking->v[i].answer, "error", NULL);
        if (words)
            error = words;
        else
            good++;
    }
    slow_begin(s);
    rc = o->kind == OBJ_ASK ? write_answer(s, o, closed, &e) : write_comparison(s, o, closed, all, &e);
    slow_end(s);
    if (rc) {
        catalog_trouble(s, &e);
        o->retry_at = clock_mono_ns() + SECOND_NS;
        json_decref(all);
        return;
    }
    set_json(&o->report, summary(all));
    json_decref(all);
    if (object_event(s, o, good ? EV_DONE : EV_ERROR, good ? NULL : error))
        return;
    asking_free(o->asking);
    o->asking = NULL;
    object_changed(s, o, true);
}

static void go_on(struct sched *s, struct object *o)
{
    bool all = true;

    for (int i = 0; i < o->asking->n; i++) {
        struct ask *a = &o->asking->v[i];
        if (!a->answer && !a->worker)
            send_one(s, o, a);
        all &= a->answer != NULL;
    }
    if (all)
        finish(s, o);
}

static bool is_prompt(const struct object *o)
{
    return o->kind == OBJ_COMPARE || o->kind == OBJ_ASK;
}

/* First those that are under way, so that what ends makes room at once. */
void asking_round(struct sched *s, int64_t now)
{
    static struct choice chosen; /* large; the loop's only */
    struct by_owner answering = {.owners = 0};

    chosen.nobody = false;
    for (int i = 0; i < s->nobjects; i++) {
        struct object *o = s->objects[i];
        if (!is_prompt(o) || o->retry_at > now || o->state != ST_ANSWERING)
            continue;
        if (!o->asking)
            object_event(s, o, EV_WAIT, NULL); /* dtxd was restarted: ask again */
        else
            go_on(s, o);
        if (o->state == ST_ANSWERING)
            ++*count_of_owner(&answering, o->uid);
        loop_commands(s);
    }
    for (int i = 0; i < s->nobjects; i++) {
        struct object *o = s->objects[i];
        if (!is_prompt(o) || o->retry_at > now || o->state != ST_PENDING ||
            *count_of_owner(&answering, o->uid) >= MAX_ANSWERING)
            continue;
        begin(s, o, &chosen);
        if (o->state == ST_ANSWERING && o->asking) {
            ++*count_of_owner(&answering, o->uid);
            go_on(s, o);
        }
        loop_commands(s);
    }
}

static struct ask *find_ask(struct sched *s, long long id, struct object **prompt)
{
    for (int i = 0; i < s->nobjects; i++) {
        struct asking *a = s->objects[i]->asking;
        for (int k = 0; a && k < a->n; k++)
            if (a->v[k].id == id && a->v[k].worker) {
                *prompt = s->objects[i];
                return &a->v[k];
            }
    }
    return NULL;
}

static void take_answer(struct sched *s, struct object *o, struct ask *a, json_t *answer)
{
    json_object_set_new(answer, "model", json_string(a->shown));
    json_object_del(answer, "id");
    a->answer = answer;
    if (o->kind == OBJ_ASK) {
        char service[NAME_CAP];
        snprintf(service, sizeof(service), "%.*s", (int)(strchr(o->name, '/') - o->name), o->name);
        service_counted(s, service, answer);
    }
}

void asking_answer(struct sched *s, struct worker *w, json_t *body)
{
    struct object *o;
    struct ask *a = find_ask(s, json_int(body, "id", 0), &o);

    if (!a || a->worker != w)
        return; /* cancelled meanwhile */
    a->worker = NULL;
    w->asks--;
    take_answer(s, o, a, json_deep_copy(body));
    object_changed(s, o, false);
}

void asking_worker_lost(struct sched *s, struct worker *w)
{
    for (int i = 0; i < s->nobjects; i++) {
        struct asking *a = s->objects[i]->asking;
        for (int k = 0; a && k < a->n; k++) {
            if (a->v[k].worker != w)
                continue;
            a->v[k].worker = NULL;
            if (++a->v[k].tries >= MAX_TRIES)
                take_answer(
                    s, s->objects[i], &a->v[k],
                    json_pack("{ss ss}", "text", "", "error", "its worker ended twice while answering"));
        }
    }
    w->asks = 0;
}
