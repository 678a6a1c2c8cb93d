/* The administrator's configuration file: JSON; read at start and whenever it changes. */
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"
#include "scheduler/internal.h"

/* admins: user names or numbers who may change what is not theirs.  memory: what DTX may use of the devices.
 * worker_timeout: seconds after which a worker that says nothing is killed.  roots: folders that datasets may
 * name, hosts: what may be fetched from, quotas: bytes a user may store; these three are read by later parts
 * and only checked here. */
static const char *const keys[] = {"admins", "memory", "worker_timeout", "roots", "hosts", "quotas"};
enum { KEYS = sizeof(keys) / sizeof(keys[0]) };

static int check_keys(const json_t *v, const char *text, size_t n, const char *path, struct dtx_err *e)
{
    const char *key;
    json_t *value;
    int line = 1, column = 1, near;

    if (!json_is_object(v))
        return dtx_fail(e, -EINVAL, "%s:1:1: expected a JSON object", path);
    json_object_foreach((json_t *)v, key, value)
    {
        bool known = false;
        for (int i = 0; i < KEYS; i++)
            known |= strcmp(key, keys[i]) == 0;
        if (known)
            continue;
        json_locate(text, n, key, 1, &line, &column);
        near = text_nearest(key, keys, KEYS);
        return dtx_fail(e, -EINVAL,
                        "%s:%d:%d: key \"%s\": unknown%s%s%s; expected admins, memory, worker_timeout, "
                        "roots, hosts or quotas",
                        path, line, column, key, near < 0 ? "" : "; did you mean \"",
                        near < 0 ? "" : keys[near], near < 0 ? "" : "\"?");
    }
    return 0;
}

static int one_admin(const json_t *v, uid_t *uid, struct dtx_err *e)
{
    const char *name = json_string_value(v);
    struct passwd pw, *found = NULL;
    char data[4096];

    if (json_is_integer(v) && json_integer_value(v) >= 0) {
        *uid = (uid_t)json_integer_value(v);
        return 0;
    }
    if (!name || getpwnam_r(name, &pw, data, sizeof(data), &found) || !found)
        return dtx_fail(e, -EINVAL, "admins: expected names of users of this machine or numbers, found %s",
                        name ? name : "something else");
    *uid = found->pw_uid;
    return 0;
}

static int read_admins(const json_t *all, struct settings *out, struct dtx_err *e)
{
    json_t *list = json_object_get(all, "admins"), *v;
    int rc = 0;
    size_t i;

    if (list && !json_is_array(list))
        return dtx_fail(e, -EINVAL, "admins: expected a list, like [\"alice\", 1001]");
    if (json_array_size(list) > sizeof(out->admins) / sizeof(out->admins[0]))
        return dtx_fail(e, -E2BIG, "admins: at most %zu", sizeof(out->admins) / sizeof(out->admins[0]));
    json_array_foreach(list, i, v)
    {
        if (rc == 0)
            rc = one_admin(v, &out->admins[out->nadmins++], e);
    }
    return rc;
}

static int read_worker_timeout(const json_t *all, struct settings *out, struct dtx_err *e)
{
    const json_t *v = json_object_get(all, "worker_timeout");
    json_int_t n = json_integer_value(v);

    if (!v)
        return 0;
    if (!json_is_integer(v) || n < 0 || n > 86400 || (n && n < 5))
        return dtx_fail(e, -EINVAL,
                        "worker_timeout: expected seconds, 5 to 86400, or 0 for never (default %d)",
                        WORKER_TIMEOUT_S);
    out->worker_timeout = n ? (int)n : -1;
    return 0;
}

/* "40 GiB", "800M", or a number of bytes. */
static int one_size(const json_t *v, const char *where, uint64_t *bytes, struct dtx_err *e)
{
    static const char units[] = "KMGT";
    const char *text = json_string_value(v), *unit;
    char *end = NULL;
    double n = json_is_integer(v) ? (double)json_integer_value(v) : text ? strtod(text, &end) : -1;
    bool ok = n > 0 && n < 1e18;

    if (ok && text) {
        while (*end == ' ')
            end++;
        unit = *end ? strchr(units, *end & ~0x20) : NULL;
        if (unit)
            n *= (double)(1ull << (10 * (unit - units + 1)));
        ok = end != text && (!*end || (unit && (!end[1] || !strcmp(end + 1, "B") || !strcmp(end + 1, "iB"))));
    }
    if (!ok || n < 1 || n >= 1e18)
        return dtx_fail(e, -EINVAL, "%s: expected a size like \"40 GiB\", found %s", where,
                        text ? text : "something else");
    *bytes = (uint64_t)n;
    return 0;
}

/* One size for each device, or an object of sizes by the device's name. */
static int read_memory(const json_t *all, struct settings *out, struct dtx_err *e)
{
    json_t *v = json_object_get(all, "memory"), *size;
    char where[64];
    const char *label;
    int rc = 0;

    if (!json_is_object(v))
        return v ? one_size(v, "memory", &out->memory, e) : 0;
    json_object_foreach(v, label, size)
    {
        struct device_memory *m = &out->device_memory[out->ndevice_memory];
        if (rc)
            continue;
        if (out->ndevice_memory == MAX_WORKERS || strlen(label) >= sizeof(m->label))
            return dtx_fail(e, -EINVAL, "memory: expected names of devices/ like gpu0, found \"%.40s\"",
                            label);
        snprintf(where, sizeof(where), "memory: %s", label);
        strcpy(m->label, label);
        rc = one_size(size, where, &m->bytes, e);
        out->ndevice_memory++;
    }
    return rc;
}

/* A wrong file changes nothing: what was read before stays, and the log says what is wrong. */
void config_load(struct sched *s)
{
    struct settings now = {.nadmins = 0};
    struct buf text = BUF_INIT;
    struct dtx_err e = {0};
    json_t *all = NULL;
    int rc;

    if (!s->config_path)
        return;
    rc = fd_read_file(AT_FDCWD, s->config_path, MAX_SPEC, &text, &e);
    if (rc == 0)
        rc = json_parse_text(s->config_path, text.p ? text.p : "", text.len, &all, &e);
    if (rc == 0)
        rc = check_keys(all, text.p, text.len, s->config_path, &e);
    if (rc == 0 && ((rc = read_admins(all, &now, &e)) || (rc = read_memory(all, &now, &e)) ||
                    (rc = read_worker_timeout(all, &now, &e))))
        dtx_fail_context(&e, "%s", s->config_path);
    buf_release(&text);
    json_decref(all);
    if (rc) {
        log_line("configuration not taken: %s", e.msg);
        return;
    }
    s->settings = now;
    log_line("configuration read from %s: %d admins", s->config_path, now.nadmins);
}
