/*
 * Who is in a group, for decisions that the kernel's default_permissions do not take: the groups of the
 * calling process where it is one of this machine with the caller's uid; else (an NFS client's user, the
 * owner of a spec that is acted on later) those that this machine's user database gives the uid.
 */
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/internal.h"

enum { MAX_GROUPS = 256, CACHED_USERS = 64 };
static const int64_t keep_for = 30 * SECOND_NS;

/* Groups of users as the database gave them: a directory service may be slow. */
static struct cached {
    uid_t uid;
    int64_t until; /* mono; 0: free */
    gid_t groups[MAX_GROUPS];
    int n;
} cache[CACHED_USERS];
static pthread_mutex_t cache_mutex = PTHREAD_MUTEX_INITIALIZER;

static void ask_database(uid_t uid, struct cached *out)
{
    struct passwd pw, *found = NULL;
    char data[4096];

    out->uid = uid;
    out->n = 0;
    out->until = clock_mono_ns() + keep_for;
    if (getpwuid_r(uid, &pw, data, sizeof(data), &found) || !found)
        return;
    out->n = MAX_GROUPS;
    if (getgrouplist(pw.pw_name, pw.pw_gid, out->groups, &out->n) < 0)
        out->n = MAX_GROUPS; /* as many as there was room for */
}

static bool has_group(const struct cached *c, gid_t gid)
{
    for (int i = 0; i < c->n; i++)
        if (c->groups[i] == gid)
            return true;
    return false;
}

bool user_in_group(uid_t uid, gid_t gid)
{
    struct cached *slot = &cache[uid % CACHED_USERS], now;
    bool in = false, known;

    pthread_mutex_lock(&cache_mutex);
    known = slot->until > clock_mono_ns() && slot->uid == uid;
    if (known)
        in = has_group(slot, gid);
    pthread_mutex_unlock(&cache_mutex);
    if (known)
        return in;
    ask_database(uid, &now);
    pthread_mutex_lock(&cache_mutex);
    *slot = now;
    pthread_mutex_unlock(&cache_mutex);
    return has_group(&now, gid);
}

/* The uid that the process has for files: the fourth of its line. */
static bool runs_as(const char *status, uid_t uid)
{
    const char *line = strstr(status, "\nUid:");
    unsigned id[4];

    return line && sscanf(line, "\nUid: %u %u %u %u", &id[0], &id[1], &id[2], &id[3]) == 4 && id[3] == uid;
}

static bool listed(const char *status, gid_t gid)
{
    const char *line = strstr(status, "\nGroups:");
    char *end;

    for (line = line ? line + 8 : ""; *line && *line != '\n'; line = end) {
        unsigned long g = strtoul(line, &end, 10);
        if (end == line)
            break;
        if (g == gid)
            return true;
    }
    return false;
}

bool caller_in_group(const struct caller *who, gid_t gid)
{
    struct buf b = BUF_INIT;
    char path[64];
    bool in, here;

    if (who->gid == gid)
        return true;
    snprintf(path, sizeof(path), "/proc/%d/status", (int)who->pid);
    here =
        who->pid > 0 && fd_read_file(AT_FDCWD, path, 65536, &b, NULL) == 0 && b.p && runs_as(b.p, who->uid);
    in = here ? listed(b.p, gid) : user_in_group(who->uid, gid);
    buf_release(&b);
    return in;
}
