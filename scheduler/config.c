/* The administrator's configuration file: JSON; read at start and whenever it changes. */
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

/* A name or number of a user of this machine. */
static int find_user(const char *name, uid_t *uid, struct dtx_err *e)
{
    struct passwd pw, *found = NULL;
    char data[4096], *end;
    unsigned long n = strtoul(name, &end, 10);

    if (*name >= '0' && *name <= '9' && !*end && n < UINT32_MAX) {
        *uid = (uid_t)n;
        return 0;
    }
    if (getpwnam_r(name, &pw, data, sizeof(data), &found) || !found)
        return dtx_fail(e, -EINVAL, "expected names of users of this machine or numbers, found %s", name);
    *uid = found->pw_uid;
    return 0;
}

static int read_admins(const json_t *list, struct settings *out, struct dtx_err *e)
{
    int rc = 0;
    json_t *v;
    size_t i;

    json_array_foreach(list, i, v)
    {
        uid_t *uid = &out->admins[out->nadmins++]; /* the table has bounded the list */
        if (json_is_integer(v))
            *uid = (uid_t)json_integer_value(v);
        else if (rc == 0)
            rc = find_user(json_string_value(v), uid, e);
    }
    return rc ? dtx_fail_context(e, "key \"admins\"") : 0;
}

/* -1 for null and what is not there: no limit. */
static int64_t size_or_none(const json_t *v)
{
    return json_is_integer(v) ? json_integer_value(v) : -1;
}

static int read_quotas(const json_t *map, struct settings *out, struct dtx_err *e)
{
    const char *name;
    json_t *v;

    out->quota_default = -1;
    json_object_foreach((json_t *)map, name, v)
    {
        struct quota *q = &out->quotas[out->nquotas];
        if (strcmp(name, "default") == 0) {
            out->quota_default = size_or_none(v);
            continue;
        }
        if (find_user(name, &q->uid, e))
            return dtx_fail_context(e, "key \"quotas\"");
        q->bytes = size_or_none(v);
        out->nquotas++;
    }
    return 0;
}

/* One size for each device, or sizes by the device's name. */
static int read_memory(const json_t *v, struct settings *out, struct dtx_err *e)
{
    const char *label;
    json_t *size;

    if (!json_is_object(v)) {
        out->memory = (uint64_t)json_integer_value(v);
        return 0;
    }
    json_object_foreach((json_t *)v, label, size)
    {
        struct device_memory *m = &out->device_memory[out->ndevice_memory];
        if (out->ndevice_memory == MAX_WORKERS || strlen(label) >= sizeof(m->label))
            return dtx_fail(e, -EINVAL, "memory: expected names of devices/ like gpu0, found \"%.40s\"",
                            label);
        strcpy(m->label, label);
        m->bytes = (uint64_t)json_integer_value(size);
        out->ndevice_memory++;
    }
    return 0;
}

static int read_worker_timeout(long long n, struct settings *out, struct dtx_err *e)
{
    if (n && n < 5)
        return dtx_fail(e, -EINVAL,
                        "worker_timeout: expected seconds, 5 to 86400, or 0 for never (default %d)",
                        WORKER_TIMEOUT_S);
    out->worker_timeout = n ? (int)n : -1;
    return 0;
}

static int read_settings(const json_t *doc, struct settings *out, struct dtx_err *e)
{
    const json_t *days = json_object_get(doc, "work_days");
    int rc = read_admins(json_object_get(doc, "admins"), out, e);

    if (rc == 0)
        rc = read_quotas(json_object_get(doc, "quotas"), out, e);
    if (rc == 0)
        rc = read_memory(json_object_get(doc, "memory"), out, e);
    if (rc == 0)
        rc = read_worker_timeout(json_int(doc, "worker_timeout", WORKER_TIMEOUT_S), out, e);
    out->nfs_admins = json_is_true(json_object_get(doc, "nfs_admins"));
    out->store_max = size_or_none(json_object_get(doc, "store_max"));
    out->store_reserve = json_int(doc, "store_reserve", 0);
    out->log_max = json_int(doc, "log_max", 0);
    out->work_ns = json_is_number(days) ? (int64_t)(json_number_value(days) * 86400) * SECOND_NS : -1;
    return rc;
}

int config_parse(const char *path, const char *text, size_t n, struct settings *out, struct dtx_err *e)
{
    json_t *doc = NULL;
    int rc = spec_parse(SPEC_CONFIG, path, text, n, &doc, e);

    *out = (struct settings){.nadmins = 0};
    if (rc == 0 && (rc = read_settings(doc, out, e)))
        dtx_fail_context(e, "%s", path);
    json_decref(doc);
    return rc;
}

/* The administrator's own, so it may be a link. */
static int read_config(const char *path, struct buf *text, struct dtx_err *e)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), rc;

    if (fd < 0)
        return dtx_fail_errno(e, "cannot open %s", path);
    rc = fd_read_open(fd, path, MAX_SPEC, text, e);
    close(fd);
    return rc;
}

/* A wrong file changes nothing: what was read before stays, and the log says what is wrong. */
void config_load(struct sched *s)
{
    struct buf text = BUF_INIT;
    struct dtx_err e = {0};
    struct settings now;
    int rc = 0;

    if (s->config_path)
        rc = read_config(s->config_path, &text, &e);
    else
        buf_adds(&text, "{}");
    if (rc == 0)
        rc = config_parse(s->config_path ? s->config_path : "", text.p ? text.p : "", text.len, &now, &e);
    buf_release(&text);
    if (rc && !s->limits_gen) /* the first time: the defaults */
        config_parse("", "{}", 2, &now, NULL);
    if (rc == 0 || !s->limits_gen) {
        s->settings = now;
        s->limits_look = 0;
        atomic_fetch_add(&s->limits_gen, 1);
    }
    if (rc)
        log_line("configuration not taken: %s", e.msg);
    else if (s->config_path)
        log_line("configuration read from %s: %d admins, %d quotas", s->config_path, now.nadmins,
                 now.nquotas);
}

/* ---- limits, for the file system ---- */

unsigned sched_limits_version(struct sched *s)
{
    return atomic_load(&s->limits_gen);
}

int64_t settings_quota(const struct settings *set, uid_t uid)
{
    for (int i = 0; i < set->nquotas; i++)
        if (set->quotas[i].uid == uid)
            return set->quotas[i].bytes;
    return uid == 0 ? -1 : set->quota_default;
}

void sched_limits(struct sched *s, uid_t uid, struct sched_limits *out)
{
    pthread_mutex_lock(&s->mutex);
    *out = (struct sched_limits){.quota = settings_quota(&s->settings, uid),
                                 .store_max = s->settings.store_max,
                                 .reserve = s->settings.store_reserve};
    pthread_mutex_unlock(&s->mutex);
}
