#include "fsd/mount.h"

#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "scheduler/base/log.h"

extern char **environ;

/* realpath(3) of the folder that it is in, and its own name: a dead mount answers nothing. */
int mount_resolve(const char *path, char *out, size_t outsz, struct dtx_err *e)
{
    char copy[PATH_MAX], real[PATH_MAX], *name;
    size_t n = strlen(path);

    while (n > 1 && path[n - 1] == '/')
        n--;
    if (n == 0 || n >= sizeof(copy))
        return dtx_fail(e, -EINVAL, "mountpoint \"%.100s\": give the path of a folder", path);
    memcpy(copy, path, n);
    copy[n] = '\0';
    name = strrchr(copy, '/');
    name = name ? name + 1 : copy;
    if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return dtx_fail(e, -EINVAL, "mountpoint \"%.100s\": give the path of a folder by its name", path);
    if (name == copy)
        copy[0] = '\0';
    else
        name[-1] = '\0';
    if (!realpath(name == copy ? "." : *copy ? copy : "/", real))
        return dtx_fail_errno(e, "mountpoint %s: the folder that it is in", path);
    if (snprintf(out, outsz, "%s/%s", strcmp(real, "/") ? real : "", path + (name - copy)) >= (int)outsz)
        return dtx_fail(e, -ENAMETOOLONG, "mountpoint %.100s: the path is too long", path);
    n = strlen(out);
    while (n > 1 && out[n - 1] == '/')
        out[--n] = '\0';
    return 0;
}

/* Undo mountinfo's \040 and the like, in place. */
static void unescape(char *s)
{
    char *to = s;

    while (*s) {
        unsigned c;
        if (s[0] == '\\' && sscanf(s + 1, "%3o", &c) == 1) {
            *to++ = (char)c;
            s += 4;
        } else {
            *to++ = *s++;
        }
    }
    *to = '\0';
}

/* The type of what is mounted on top there; false: nothing is. */
static bool mounted_type(const char *mountpoint, char *type, size_t typesz)
{
    FILE *in = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, where[PATH_MAX], *dash;
    size_t cap = 0;
    bool found = false;

    if (!in)
        return false;
    while (getline(&line, &cap, in) > 0) {
        if (sscanf(line, "%*s %*s %*s %*s %4095s", where) != 1 || !(dash = strstr(line, " - ")))
            continue;
        unescape(where);
        if (strcmp(where, mountpoint) != 0)
            continue;
        found = true;
        snprintf(type, typesz, "%.*s", (int)strcspn(dash + 3, " \n"), dash + 3);
    }
    free(line);
    fclose(in);
    return found;
}

static int run_fusermount(const char *mountpoint, int lazy)
{
    char *argv[] = {"fusermount3", "-u", lazy ? "-z" : "-q", "--", (char *)mountpoint, NULL};
    int status;
    pid_t pid;

    if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ))
        return -ENOENT;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

int mount_remove(const char *mountpoint, int lazy)
{
    if (umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0)
        return 0;
    return errno == EPERM ? run_fusermount(mountpoint, lazy) : -errno;
}

int mount_prepare(const char *mountpoint, struct dtx_err *e)
{
    char type[64];
    struct statvfs vfs;
    struct stat st;

    for (int tries = 0; mounted_type(mountpoint, type, sizeof(type)); tries++) {
        if (strncmp(type, "fuse", 4) != 0 || statvfs(mountpoint, &vfs) == 0 ||
            (errno != ENOTCONN && errno != ECONNABORTED))
            return dtx_fail(e, -EBUSY,
                            "%s is mounted already (%s): unmount it first, or choose another mountpoint",
                            mountpoint, type);
        log_line("clearing the dead mount at %s", mountpoint);
        if (tries == 16 || mount_remove(mountpoint, 1))
            return dtx_fail(e, -EBUSY, "a dead mount at %s cannot be cleared: umount -l %s", mountpoint,
                            mountpoint);
    }
    if (mkdir(mountpoint, 0755) && errno != EEXIST)
        return dtx_fail_errno(e, "cannot make the mountpoint %s", mountpoint);
    if (stat(mountpoint, &st) || !S_ISDIR(st.st_mode))
        return dtx_fail(e, -ENOTDIR, "mountpoint %s is not a folder", mountpoint);
    return 0;
}
