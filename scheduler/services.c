/* Services: a folder with a link `model`, or NAME.json; and what a model's name means. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

static int resolve_base(struct sched *s, const char *name, struct model_ref *out)
{
    struct object *o = object_ready(s, OBJ_BASE, name);

    if (!o)
        return -ENOENT;
    snprintf(out->base, sizeof(out->base), "%.*s", NAME_CAP - 1, o->name); /* as its folder writes it */
    snprintf(out->shown, sizeof(out->shown), "%s", name);
    return 0;
}

/* The own name of what EXP.best is now. */
static bool follow_best(struct sched *s, const char *name, char *out, size_t n)
{
    char exp[NAME_CAP];
    size_t len = strlen(name);
    struct experiment *x;
    struct job *best;

    if (len < 6 || strcmp(name + len - 5, ".best") != 0 || len >= sizeof(exp))
        return false;
    snprintf(exp, sizeof(exp), "%.*s", (int)(len - 5), name);
    x = experiment_find(s, exp);
    best = x ? best_model(s, x) : NULL;
    if (best)
        snprintf(out, n, "%s.%s", exp, best->name);
    return best != NULL;
}

static int resolve_tuned(struct sched *s, const char *name, struct model_ref *out)
{
    char winner[2 * NAME_CAP];
    struct object *o = object_find(s, OBJ_TUNED, name);

    if (!o && follow_best(s, name, winner, sizeof(winner)))
        o = object_find(s, OBJ_TUNED, winner);
    if (!o || o->state != ST_READY || resolve_base(s, json_str(o->spec, "base", ""), out))
        return -ENOENT;
    snprintf(out->tuned, sizeof(out->tuned), "%.*s", NAME_CAP - 1, o->name);
    snprintf(out->shown, sizeof(out->shown), "%.*s", NAME_CAP - 1, name);
    return 0;
}

int model_resolve(struct sched *s, const char *text, struct model_ref *out, struct dtx_err *e)
{
    int rc;

    *out = (struct model_ref){0};
    if (strncmp(text, "base/", 5) == 0)
        rc = resolve_base(s, text + 5, out);
    else if (strncmp(text, "tuned/", 6) == 0)
        rc = resolve_tuned(s, text + 6, out);
    else
        rc = resolve_base(s, text, out) == 0 ? 0 : resolve_tuned(s, text, out);
    return rc ? dtx_fail(e, rc, "model %s is not there (yet)", text) : 0;
}

/* ---- services ---- */

static const char *const no_model = "waiting for: a link `model` in it: ln -s ../../models/tuned/NAME model";

bool service_still_there(struct sched *s, const struct object *o)
{
    char path[PATH_MAX];
    struct stat st;

    snprintf(path, sizeof(path), "services/%s", o->name);
    if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0)
        return true;
    snprintf(path, sizeof(path), "services/%s.json", o->name);
    return fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0;
}

/* ../../models/tuned/EXP.best -> tuned/EXP.best: the link is read, never followed. */
static int spec_from_link(const char *name, char *target, json_t **spec, struct dtx_err *e)
{
    char *last = strrchr(target, '/'), text[2 * PATH_MAX], *model;
    struct buf b = BUF_INIT;
    int rc;

    if (last)
        *last++ = '\0';
    model = last ? last : target;
    buf_adds(&b, "{\"model\":");
    if (last && strcmp(base_name(target), "tuned") == 0)
        snprintf(text, sizeof(text), "tuned/%s", model);
    else
        snprintf(text, sizeof(text), "%s", model);
    buf_add_json(&b, text, strlen(text));
    buf_addc(&b, '}');
    rc = spec_parse(SPEC_SERVICE, name, b.p, b.len, spec, e);
    buf_release(&b);
    return rc ? dtx_fail_context(e, "the link `model`") : 0;
}

/* *spec stays NULL when neither NAME.json nor the link is there. */
static int read_spec(struct sched *s, const char *name, json_t **spec, struct dtx_err *e)
{
    char path[PATH_MAX], target[PATH_MAX];
    struct buf text = BUF_INIT;
    ssize_t n;
    int rc;

    *spec = NULL;
    snprintf(path, sizeof(path), "services/%s.json", name);
    rc = read_beneath(s->tree_fd, path, MAX_SPEC, &text, e);
    if (rc == 0)
        rc = spec_parse(SPEC_SERVICE, base_name(path), text.p ? text.p : "", text.len, spec, e);
    buf_release(&text);
    if (rc != -ENOENT)
        return rc;
    snprintf(path, sizeof(path), "services/%s/model", name);
    n = readlinkat(s->tree_fd, path, target, sizeof(target) - 1);
    if (n < 0)
        return errno == EINVAL
                   ? dtx_fail(e, -EINVAL,
                              "services/%s/model is not a symbolic link: ln -s ../../models/tuned/NAME model",
                              name)
                   : 0;
    target[n] = '\0';
    return spec_from_link(name, target, spec, e);
}

/* O_PATH of services/NAME, which is made where only NAME.json is there.  Never of what a link leads to. */
static int service_folder(struct sched *s, const struct object *o, struct dtx_err *e)
{
    char path[PATH_MAX];
    int fd;

    snprintf(path, sizeof(path), "services/%s", o->name);
    if (mkdirat(s->tree_fd, path, 0755) == 0)
        give_to(s, path, o->uid, o->gid);
    fd = open_beneath(s->tree_fd, path, O_PATH | O_DIRECTORY);
    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return dtx_fail(e, -EINVAL, "%s is a symbolic link: make a folder, with the link `model` in it",
                        path);
    return fd < 0 ? dtx_fail_errno(e, "cannot open %s", path) : fd;
}

/* Everybody's to ask in, so DTX's own, also where its service was a folder of somebody's before. */
static int make_ask_folder(struct sched *s, const struct object *o, struct dtx_err *e)
{
    int folder = service_folder(s, o, e), ask;
    struct stat st;
    bool made;

    if (folder < 0)
        return folder;
    made = mkdirat(folder, "ask", 0755) == 0;
    ask = openat(folder, "ask", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(folder);
    if (ask < 0)
        return dtx_fail_errno(e, "services/%s/ask", o->name);
    if (fstat(ask, &st) == 0 && (made || st.st_uid != geteuid()) &&
        (fchown(ask, geteuid(), (gid_t)-1) || fchmod(ask, 01777)))
        log_line("service %s: its folder ask cannot be opened to all", o->name);
    close(ask);
    return 0;
}

int service_take(struct sched *s, struct object *o, const char *path, struct dtx_err *e)
{
    json_t *spec = NULL;
    int rc;

    slow_begin(s);
    rc = read_spec(s, o->name, &spec, e);
    if (rc == 0)
        rc = make_ask_folder(s, o, e);
    slow_end(s);
    if (rc) {
        json_decref(spec);
        return rc;
    }
    if (o->state == ST_RUNNING && spec && o->spec && json_equal(spec, o->spec)) {
        json_decref(spec);
        return 0;
    }
    set_json(&o->spec, spec);
    return object_event(s, o, EV_WRITE, spec ? NULL : no_model);
}

void services_round(struct sched *s, int64_t now)
{
    for (int i = 0; i < s->nobjects; i++) {
        struct object *o = s->objects[i];
        char words[2 * NAME_CAP];
        const char *model;
        struct model_ref ref;

        if (o->kind != OBJ_SERVICE || o->retry_at > now || (o->state != ST_PENDING && o->state != ST_RUNNING))
            continue;
        model = json_str(o->spec, "model", NULL);
        if (!model) {
            if (!o->reason) /* started, but its spec was refused or its link is gone */
                object_event(s, o, EV_WAIT, no_model);
            continue;
        }
        if (model_resolve(s, model, &ref, NULL)) {
            snprintf(words, sizeof(words), "waiting for: model %.400s", model);
            object_event(s, o, EV_WAIT, words);
        } else if (!model_readable(s, &ref, o->uid, o->gid)) {
            snprintf(words, sizeof(words), "waiting for: its owner to let you read model %.400s (chmod -R)",
                     model);
            object_event(s, o, EV_WAIT, words);
        } else if (o->state == ST_PENDING) {
            object_event(s, o, EV_START, NULL);
        }
    }
}

void service_counted(struct sched *s, const char *service, const json_t *answer)
{
    struct object *o = object_find(s, OBJ_SERVICE, service);

    if (!o)
        return;
    o->served.requests++;
    if (json_is_string(json_object_get(answer, "error")))
        o->served.failed++;
    o->served.tokens += (uint64_t)json_int(answer, "new_tokens", 0);
    o->served.seconds += json_num(answer, "total_s", 0);
    o->served.ttft += json_num(answer, "ttft_s", 0);
    sched_changed(s, "services/%s", service);
}
