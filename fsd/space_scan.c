#include "fsd/space_scan.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

enum { MAX_DEPTH = 100 };

struct scan {
    int store_fd;
    bool (*fn)(void *arg, const struct stat *st, uid_t uid, const char *path);
    void *arg;
    char path[PATH_MAX]; /* of the folder being read, relative to the store */
    size_t len;
};

/* Training state belongs to root alone on the disk, but is there for the experiment's owner. */
static uid_t owner_of_work(const struct scan *s, uid_t otherwise, char exp[PATH_MAX])
{
    char path[PATH_MAX + 32];
    struct stat st;

    snprintf(exp, PATH_MAX, "experiments/%.*s", (int)strcspn(s->path + 5, "/"), s->path + 5);
    snprintf(path, sizeof(path), "tree/%s", exp);
    return fstatat(s->store_fd, path, &st, AT_SYMLINK_NOFOLLOW) ? otherwise : st.st_uid;
}

static bool count_one(struct scan *s, const struct stat *st)
{
    char exp[PATH_MAX];

    if (strncmp(s->path, "tree/", 5) == 0)
        return s->fn(s->arg, st, st->st_uid, s->path + 5);
    if (strncmp(s->path, "work/", 5) != 0 || s->path[5] == '.')
        return s->fn(s->arg, st, st->st_uid, NULL);
    return s->fn(s->arg, st, owner_of_work(s, st->st_uid, exp), exp);
}

static bool scan_folder(struct scan *s, int parent, const char *name, int depth);

static bool scan_entry(struct scan *s, int fd, const char *name, int depth)
{
    size_t len = s->len;
    struct stat st;
    bool go_on = true;
    int n;

    if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW))
        return true; /* gone meanwhile */
    n = snprintf(s->path + len, sizeof(s->path) - len, "%s%s", len ? "/" : "", name);
    if (n > 0 && (size_t)n < sizeof(s->path) - len) {
        s->len = len + (size_t)n;
        go_on = count_one(s, &st);
        if (go_on && S_ISDIR(st.st_mode) && depth < MAX_DEPTH)
            go_on = scan_folder(s, fd, name, depth + 1);
    }
    s->len = len;
    s->path[len] = '\0';
    return go_on;
}

static bool scan_folder(struct scan *s, int parent, const char *name, int depth)
{
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd_look_into(fd);
    struct dirent *ent;
    bool go_on = true;

    if (!d)
        return true;
    while (go_on && (ent = readdir(d)))
        if (strcmp(ent->d_name, ".") != 0 && strcmp(ent->d_name, "..") != 0)
            go_on = scan_entry(s, fd, ent->d_name, depth);
    closedir(d);
    return go_on;
}

bool space_scan(int store_fd, bool (*fn)(void *arg, const struct stat *st, uid_t uid, const char *path),
                void *arg)
{
    struct scan s = {.store_fd = store_fd, .fn = fn, .arg = arg};

    return scan_folder(&s, store_fd, ".", 0);
}
