/* Generated files and links as the file system sees them: what exists, its text, control words, rm -r. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

/* ---- what a path is about ---- */

static bool begins(const char *pattern, const char *prefix)
{
    size_t n = strlen(prefix);

    return strncmp(pattern, prefix, n) == 0 && (pattern[n] == '\0' || pattern[n] == '/');
}

static bool find_status_object(struct sched *s, const struct layout_match *m, struct subject *out)
{
    char name[2 * NAME_CAP + 2];

    switch (m->entry->lists) {
    case OBJ_EXPERIMENT:
        out->exp = experiment_find(s, m->arg[0]);
        return out->exp != NULL;
    case OBJ_JOB:
        out->exp = experiment_find(s, m->arg[0]);
        out->job = out->exp ? job_find(out->exp, m->arg[1]) : NULL;
        return out->job && out->job->number;
    case OBJ_ASK:
        snprintf(name, sizeof(name), "%s/%s", m->arg[0], m->arg[1]);
        out->object = object_find(s, OBJ_ASK, name);
        return out->object != NULL;
    default:
        out->object = object_find(s, m->entry->lists, m->arg[0]);
        return out->object != NULL;
    }
}

static bool find_device(struct sched *s, const char *label, struct subject *out)
{
    for (int i = 0; i < s->nworkers; i++)
        if (strcmp(s->workers[i].label, label) == 0)
            out->worker = &s->workers[i];
    return out->worker != NULL;
}

bool subject_of(struct sched *s, const struct layout_match *m, struct subject *out)
{
    const char *p = m->entry->pattern;

    *out = (struct subject){0};
    if (m->entry->reader == LR_OBJECT_STATUS)
        return find_status_object(s, m, out);
    if (begins(p, "experiments/{exp}")) {
        out->exp = experiment_find(s, m->arg[0]);
        if (!out->exp || out->exp->njobs == 0)
            return false;
        if (!begins(p, "experiments/{exp}/jobs/{job}"))
            return true;
        out->job = job_find(out->exp, m->arg[1]);
        return out->job && out->job->number;
    }
    if (begins(p, "models/tuned/{exp}.best")) {
        out->exp = experiment_find(s, m->arg[0]);
        out->job = out->exp ? best_model(s, out->exp) : NULL;
        return out->job != NULL;
    }
    if (begins(p, "services/{name}")) {
        out->object = object_find(s, OBJ_SERVICE, m->arg[0]);
        return out->object != NULL;
    }
    if (begins(p, "devices/{name}"))
        return find_device(s, m->arg[0], out);
    if (strncmp(p, "models/by-", 10) == 0 && m->nargs)
        return category_has(s, m, out);
    return true;
}

/* The path of a match: its pattern with the names in it. */
static void match_path(const struct layout_match *m, char *out, size_t n)
{
    const char *p = m->entry->pattern;
    size_t len = 0;
    int arg = 0;

    out[0] = '\0';
    while (*p && len + 1 < n) {
        const char *close = *p == '{' ? strchr(p, '}') : NULL;
        if (close && arg < m->nargs) {
            len += (size_t)snprintf(out + len, n - len, "%s", m->arg[arg++]);
            p = close + 1;
        } else if (strcmp(p, "**") == 0) {
            len += (size_t)snprintf(out + len, n - len, "%s", m->rest ? m->rest : "");
            break;
        } else {
            out[len++] = *p++;
            out[len] = '\0';
        }
    }
}

/* ---- reading ---- */

/* The group may steer what its owner lets it write: the spec; once that is gone (another's of its name is no
 * part of it), the folder. */
static mode_t control_closed(struct sched *s, const struct subject *it)
{
    const char *collection = it->exp ? "experiments" : "services";
    const char *name = it->exp ? it->exp->name : it->object->name;
    uid_t owner = it->exp ? it->exp->uid : it->object->uid;
    char path[PATH_MAX];
    struct stat st;
    bool root = geteuid() == 0;

    snprintf(path, sizeof(path), "%s/%s.json", collection, name);
    if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) || (root && st.st_uid != owner)) {
        path[strlen(path) - 5] = '\0';
        if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) || (root && st.st_uid != owner))
            return 020;
    }
    return ~st.st_mode & 020;
}

int sched_stat(struct sched *s, const struct layout_match *m, struct sched_attr *attr)
{
    struct subject it;
    bool there;

    *attr = (struct sched_attr){.mtime_ns = s->started};
    if (geteuid() != 0) {
        attr->uid = geteuid();
        attr->gid = getegid();
    }
    pthread_mutex_lock(&s->mutex);
    there = subject_of(s, m, &it);
    if (there && it.object) {
        *attr = (struct sched_attr){it.object->uid, it.object->gid, it.object->changed,
                                    m->entry->reader == LR_OBJECT_STATUS ? it.object->closed : 0};
    } else if (there && it.exp) {
        *attr = (struct sched_attr){it.exp->uid, it.exp->gid, it.job ? it.job->changed : it.exp->changed, 0};
        if (!it.job && (m->entry->object == OBJ_EXPERIMENT || m->entry->reader == LR_OBJECT_STATUS))
            attr->closed = experiment_closed(s, it.exp);
    }
    if (there && m->entry->kind == LK_CONTROL)
        attr->closed |= control_closed(s, &it);
    pthread_mutex_unlock(&s->mutex);
    return there ? 0 : -ENOENT;
}

int sched_render(struct sched *s, const struct layout_match *m, struct buf *out)
{
    const struct render_ops *ops = &render_table[m->entry->reader];
    struct subject it;
    int rc = -ENOENT;

    if (!ops->text) {
        struct sched_attr attr;
        rc = sched_stat(s, m, &attr);
        return rc ? rc : layout_render(m, out);
    }
    if (ops->heavy)
        return ops->text(s, m, out);
    pthread_mutex_lock(&s->mutex);
    if (subject_of(s, m, &it))
        rc = ops->text(s, m, out);
    pthread_mutex_unlock(&s->mutex);
    return rc == 0 && out->failed ? -ENOMEM : rc;
}

int sched_list(struct sched *s, const struct layout_match *m, void (*fn)(void *arg, const char *name),
               void *arg)
{
    const struct render_ops *ops = &render_table[m->entry->reader];
    struct subject it;
    int rc = -ENOENT;

    pthread_mutex_lock(&s->mutex);
    if (subject_of(s, m, &it))
        rc = ops->list ? ops->list(s, m, fn, arg) : 0;
    pthread_mutex_unlock(&s->mutex);
    return rc;
}

/* ---- who may ---- */

/* Over NFS anybody can claim to be root or an admin: there it counts only if the configuration says so. */
static bool is_admin(struct sched *s, const struct caller *who)
{
    bool admin = who->uid == 0, trusted;

    pthread_mutex_lock(&s->mutex);
    for (int i = 0; i < s->settings.nadmins; i++)
        admin |= s->settings.admins[i] == who->uid;
    trusted = s->settings.nfs_admins;
    pthread_mutex_unlock(&s->mutex);
    return admin && (trusted || !caller_is_remote(who));
}

bool caller_may(struct sched *s, const struct caller *who, uid_t uid, gid_t gid, mode_t mode)
{
    return who->uid == uid || is_admin(s, who) || ((mode & 020) && caller_in_group(who, gid));
}

static int may(struct sched *s, const struct layout_match *m, const struct caller *who)
{
    struct sched_attr attr;
    int rc = sched_stat(s, m, &attr);

    return rc ? rc : caller_may(s, who, attr.uid, attr.gid, m->entry->mode & ~attr.closed) ? 0 : -EPERM;
}

/* ---- control ---- */

static int service_word(struct sched *s, struct object *o, const char *word)
{
    bool start = strcmp(word, "start") == 0;

    if (start ? o->state == ST_PENDING || o->state == ST_RUNNING : o->state == ST_STOPPED)
        return 0;
    return object_event(s, o, start ? EV_RESUME : EV_STOP, NULL);
}

static int do_word(struct sched *s, struct command *c)
{
    struct subject it;
    int rc;

    if (!subject_of(s, c->m, &it))
        return -ENOENT;
    if (c->m->entry->writer == LW_SERVICE_CONTROL)
        rc = service_word(s, it.object, c->word);
    else if (c->m->entry->writer == LW_JOB_CONTROL)
        rc = control_job(s, it.job, c->word);
    else
        rc = control_experiment(s, it.exp, c->word);
    log_line("uid %d: \"%s\" to %s%s%s%s", (int)c->who->uid, c->word, it.exp ? it.exp->name : it.object->name,
             it.job ? "/" : "", it.job ? it.job->name : "", rc ? ": refused" : "");
    return rc;
}

int sched_write(struct sched *s, const struct layout_match *m, const char *data, size_t n,
                const struct caller *who)
{
    char text[256], *save = NULL;
    int rc = may(s, m, who);

    if (rc)
        return rc;
    if (n >= sizeof(text) || memchr(data, '\0', n))
        return -EINVAL;
    memcpy(text, data, n);
    text[n] = '\0';
    for (char *word = strtok_r(text, " \t\r\n", &save); rc == 0 && word;
         word = strtok_r(NULL, " \t\r\n", &save)) {
        struct command c = {.fn = do_word, .m = m, .word = word, .who = who};
        rc = control_word_known(m->entry->writer, word) ? sched_run_command(s, &c) : -EINVAL;
    }
    return rc ? rc : (int)n;
}

/* ---- rm -r ---- */

bool sched_hidden(struct sched *s, const char *path)
{
    int64_t now = clock_mono_ns();
    bool hidden = false;

    pthread_mutex_lock(&s->mutex);
    for (struct hidden *h = s->hidden; h && !hidden; h = h->next)
        hidden = h->until > now && strcmp(h->path, path) == 0;
    pthread_mutex_unlock(&s->mutex);
    return hidden;
}

static int hide(struct sched *s, const char *path)
{
    struct hidden *h = calloc(1, sizeof(*h));

    if (!h || !(h->path = strdup(path))) {
        free(h);
        return -ENOMEM;
    }
    h->until = clock_mono_ns() + HIDDEN_S * SECOND_NS;
    pthread_mutex_lock(&s->mutex);
    h->next = s->hidden;
    s->hidden = h;
    pthread_mutex_unlock(&s->mutex);
    return 0;
}

/* What was hidden below a path that is gone for good need not be remembered. */
void forget_hidden(struct sched *s, const char *below)
{
    struct hidden **p = &s->hidden, *h;

    while ((h = *p)) {
        if (!begins(h->path, below)) {
            p = &h->next;
            continue;
        }
        *p = h->next;
        free(h->path);
        free(h);
    }
}

/* Part of something that can be deleted: an experiment, a tuned model, a comparison, a service, an answer. */
static bool removable(const struct layout_match *m)
{
    const char *p = m->entry->pattern;

    return begins(p, "experiments/{exp}") || begins(p, "models/tuned/{name}") ||
           begins(p, "models/compare/{name}") || strncmp(p, "services/{name}/", 16) == 0;
}

/* Generated rows: the owner of what they are about.  Rows of the store: the owner of the file. */
static int may_remove(struct sched *s, const struct layout_match *m, const char *path,
                      const struct caller *who)
{
    enum layout_kind kind = m->entry->kind;
    struct stat st;

    if (begins(m->entry->pattern, "experiments/{exp}") ||
        (kind != LK_STORE_FILE && kind != LK_STORE_DIR && kind != LK_STORE_ANY))
        return may(s, m, who);
    if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW))
        return -errno;
    return caller_may(s, who, st.st_uid, st.st_gid, m->entry->mode) ? 0 : -EPERM;
}

/* Not through a service's folder that was exchanged for a link meanwhile. */
static int unlink_beneath(struct sched *s, const char *path, const struct caller *who)
{
    char dir[PATH_MAX];
    struct stat st;
    int fd, rc = 0;

    snprintf(dir, sizeof(dir), "%.*s", (int)(strrchr(path, '/') - path), path);
    fd = open_beneath(s->tree_fd, dir, O_PATH | O_DIRECTORY);
    if (fd < 0)
        return -errno;
    if (fstatat(fd, base_name(path), &st, AT_SYMLINK_NOFOLLOW))
        rc = -errno;
    else if (!caller_may(s, who, st.st_uid, st.st_gid, 0))
        rc = -EPERM;
    else if (unlinkat(fd, base_name(path), 0))
        rc = -errno;
    close(fd);
    return rc;
}

int sched_unlink(struct sched *s, const struct layout_match *m, const struct caller *who)
{
    char path[PATH_MAX];
    struct sched_attr attr;
    int rc;

    if (m->entry->reader == LR_OBJECT_STATUS && sched_stat(s, m, &attr) == -ENOENT)
        return 0; /* it went with its object: rm -r NAME* */
    if (!removable(m))
        return -EPERM;
    match_path(m, path, sizeof(path));
    rc = may_remove(s, m, path, who);
    if (rc)
        return rc;
    /* answers are plain files of nobody's state: they go for good */
    if (m->entry->kind == LK_STORE_FILE && strncmp(path, "services/", 9) == 0)
        return unlink_beneath(s, path, who);
    return hide(s, path);
}

static int remove_tuned(struct sched *s, struct command *c, const char *path)
{
    struct object *o = object_find(s, OBJ_TUNED, c->m->arg[0]);
    struct dtx_err e = {0};
    int rc = o ? object_event(s, o, EV_RMDIR, NULL) : 0;

    if (rc)
        return rc;
    slow_begin(s);
    rc = fd_remove_tree(s->tree_fd, path, &e);
    slow_end(s);
    return rc;
}

static int remove_comparison(struct sched *s, struct command *c, const char *path)
{
    struct object *o = object_find(s, OBJ_COMPARE, c->m->arg[0]);
    int rc = 0;

    if (o && (o->state == ST_PENDING || o->state == ST_ANSWERING)) {
        asking_cancel(s, o);
        rc = object_event(s, o, EV_ERROR,
                          "its folder was removed; write the prompt again to have it answered");
    }
    slow_begin(s);
    if (rc == 0)
        rc = fd_remove_tree(s->tree_fd, path, NULL);
    slow_end(s);
    return rc;
}

static int do_rmdir(struct sched *s, struct command *c)
{
    const char *p = c->m->entry->pattern;
    char path[PATH_MAX];
    struct subject it;
    int rc = -EPERM;

    match_path(c->m, path, sizeof(path));
    if (strcmp(p, "models/tuned/{name}") == 0)
        rc = remove_tuned(s, c, path);
    else if (strcmp(p, "models/compare/{name}") == 0)
        rc = remove_comparison(s, c, path);
    else if (!subject_of(s, c->m, &it))
        rc = -ENOENT;
    else if (strcmp(p, "experiments/{exp}") == 0)
        rc = experiment_delete(s, it.exp);
    else if (strcmp(p, "experiments/{exp}/jobs/{job}") == 0)
        rc = state_is_end(it.job->state) ? 0 : control_job(s, it.job, "cancel");
    else
        rc = 0; /* a folder on the way: only hidden */
    if (rc == 0 && (c->m->entry->object == OBJ_EXPERIMENT || !begins(p, "experiments/{exp}")))
        forget_hidden(s, path);
    sched_changed(s, "%s", path);
    return rc;
}

int sched_rmdir(struct sched *s, const struct layout_match *m, const struct caller *who)
{
    struct command c = {.fn = do_rmdir, .m = m, .who = who};
    char path[PATH_MAX];
    int rc;

    if (!removable(m))
        return -EPERM;
    match_path(m, path, sizeof(path));
    rc = may_remove(s, m, path, who);
    if (rc == 0 && begins(m->entry->pattern, "experiments/{exp}") &&
        strcmp(m->entry->pattern, "experiments/{exp}") != 0)
        rc = hide(s, path);
    return rc ? rc : sched_run_command(s, &c);
}
