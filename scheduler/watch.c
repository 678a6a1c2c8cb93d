/* What comes to the store past the mount: the scan at start, and inotify (rsync straight to the backing
 * disk). */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/log.h"
#include "scheduler/internal.h"

enum { MAX_WATCHES = 8192, MAX_DEPTH = 6 };

struct watcher {
    int fd;
    char **paths; /* by watch descriptor: folder relative to the tree, "" none */
    int n, count;
    int config_wd; /* the configuration file's folder */
    bool full;
};

static const char *const collections[] = {
    "datasets",    "paramgroups",    "evaluations", "plugins/data", "plugins/scoring",
    "models/base", "models/compare", "services",    "experiments",
};

static bool watched_inside(const char *path)
{
    /* experiments/NAME/ and models/compare/NAME/ are written by DTX itself */
    struct layout_match m;

    return layout_lookup(path, &m) == 0 && m.entry->kind != LK_STORE_DIR && m.entry->kind != LK_STORE_ANY &&
           !(m.entry->kind == LK_DIR && m.entry->object != OBJ_NONE);
}

static void add_watch(struct watcher *w, int tree_fd, const char *path)
{
    char full[PATH_MAX];
    int wd;

    if (w->count >= MAX_WATCHES) {
        if (!w->full)
            log_line("more than %d folders in the store: those past them are watched through the mount only",
                     MAX_WATCHES);
        w->full = true;
        return;
    }
    snprintf(full, sizeof(full), "/proc/self/fd/%d/%s", tree_fd, path);
    wd = inotify_add_watch(w->fd, full,
                           IN_CREATE | IN_CLOSE_WRITE | IN_MODIFY | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE |
                               IN_ONLYDIR | IN_DONT_FOLLOW);
    if (wd < 0)
        return;
    if (wd >= w->n) {
        char **p = realloc(w->paths, (size_t)(wd + 64) * sizeof(*p));
        if (!p)
            return;
        memset(p + w->n, 0, (size_t)(wd + 64 - w->n) * sizeof(*p));
        w->paths = p;
        w->n = wd + 64;
    }
    if (!w->paths[wd])
        w->count++;
    set_text(&w->paths[wd], path);
}

/* Watch a folder and all below it.  With s, what is in it is noted as found. */
static void watch_tree(struct sched *s, const char *path, int depth, bool found, int64_t now)
{
    int fd = open_beneath(s->tree_fd, path, O_RDONLY | O_DIRECTORY);
    DIR *d = fd_look_into(fd);
    struct dirent *ent;
    char sub[PATH_MAX];
    struct stat st;

    if (!d)
        return;
    if (s->watcher)
        add_watch(s->watcher, s->tree_fd, path);
    while ((ent = readdir(d))) {
        if (!strcmp(ent->d_name, ".") || !strcmp(ent->d_name, "..") ||
            snprintf(sub, sizeof(sub), "%s/%s", path, ent->d_name) >= (int)sizeof(sub) ||
            fstatat(fd, ent->d_name, &st, AT_SYMLINK_NOFOLLOW))
            continue;
        if (found)
            intake_note(s, DROP_CREATE, sub, NULL, now);
        if (S_ISDIR(st.st_mode) && depth < MAX_DEPTH && watched_inside(sub))
            watch_tree(s, sub, depth + 1, found, now);
    }
    closedir(d);
}

int watcher_open(struct sched *s, struct dtx_err *e)
{
    struct watcher *w = calloc(1, sizeof(*w));

    if (!w)
        return dtx_fail(e, -ENOMEM, "out of memory");
    w->config_wd = -1;
    w->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (w->fd < 0) {
        free(w);
        return dtx_fail_errno(e, "cannot start inotify");
    }
    s->watcher = w;
    if (s->config_path) {
        char dir[PATH_MAX];
        snprintf(dir, sizeof(dir), "%s", s->config_path);
        char *slash = strrchr(dir, '/');
        if (slash)
            *(slash == dir ? slash + 1 : slash) = '\0';
        w->config_wd = inotify_add_watch(w->fd, slash ? dir : ".", IN_CLOSE_WRITE | IN_MOVED_TO | IN_DELETE);
    }
    return 0;
}

void watcher_close(struct sched *s)
{
    struct watcher *w = s->watcher;

    if (!w)
        return;
    for (int i = 0; i < w->n; i++)
        free(w->paths[i]);
    free(w->paths);
    close(w->fd);
    free(w);
    s->watcher = NULL;
}

int watcher_fd(const struct sched *s)
{
    return s->watcher ? s->watcher->fd : -1;
}

static enum drop_event event_of(uint32_t mask)
{
    if (mask & IN_MOVED_TO)
        return DROP_RENAMED_IN;
    if (mask & IN_MOVED_FROM)
        return DROP_RENAMED_OUT;
    if (mask & IN_DELETE)
        return mask & IN_ISDIR ? DROP_RMDIR : DROP_UNLINK;
    if (mask & IN_CLOSE_WRITE)
        return DROP_RELEASE;
    if (mask & IN_MODIFY)
        return DROP_WRITE;
    return mask & IN_ISDIR ? DROP_MKDIR : DROP_CREATE;
}

static void one_event(struct sched *s, const struct inotify_event *ev, int64_t now)
{
    struct watcher *w = s->watcher;
    char path[PATH_MAX];

    if (ev->wd == w->config_wd && ev->len) {
        if (strcmp(ev->name, base_name(s->config_path)) == 0)
            config_load(s);
        return;
    }
    if (ev->mask & IN_Q_OVERFLOW) {
        scan_store(s, now);
        return;
    }
    if (ev->wd < 0 || ev->wd >= w->n || !w->paths[ev->wd])
        return;
    if (ev->mask & IN_IGNORED) {
        set_text(&w->paths[ev->wd], NULL);
        w->count--;
        return;
    }
    if (!ev->len || snprintf(path, sizeof(path), "%s/%s", w->paths[ev->wd], ev->name) >= (int)sizeof(path))
        return;
    intake_note(s, event_of(ev->mask), path, NULL, now);
    if ((ev->mask & IN_ISDIR) && (ev->mask & (IN_CREATE | IN_MOVED_TO)) && watched_inside(path))
        watch_tree(s, path, 1, true, now);
}

bool watcher_read(struct sched *s, int64_t now)
{
    char data[16384] __attribute__((aligned(__alignof__(struct inotify_event))));
    bool any = false;
    ssize_t n;

    while ((n = read(s->watcher->fd, data, sizeof(data))) > 0) {
        any = true;
        for (char *p = data; p < data + n;) {
            const struct inotify_event *ev = (const struct inotify_event *)p;
            one_event(s, ev, now);
            p += sizeof(*ev) + ev->len;
        }
    }
    return any;
}

/* ---- the scan at start ---- */

/* One entry of a collection, found in the store: as old as its newest change. */
static void found(struct sched *s, const char *path, int64_t now)
{
    struct place p;
    struct intake *i;
    struct stamp st;
    int64_t age;

    if (!place_of(path, &p) || !p.is_root || p.kind == OBJ_TUNED || (p.kind == OBJ_EXPERIMENT && p.folder))
        return;
    i = stamp_path(s->tree_fd, path, &st) == 0 ? intake_get(s, &p, now) : NULL;
    if (!i || i->dirty)
        return;
    age = clock_wall_ns() - st.newest;
    i->maybe = true;
    i->meta = false;
    i->behind = st.success ? DROP_RENAMED_IN : DROP_WRITE;
    i->found_age = age > 0 ? age : 0;
    intake_found(s, i);
}

static void scan_collection(struct sched *s, const char *collection, int64_t now)
{
    int fd = open_beneath(s->tree_fd, collection, O_RDONLY | O_DIRECTORY);
    DIR *d = fd_look_into(fd);
    struct dirent *ent;
    char path[PATH_MAX];

    if (!d)
        return;
    while ((ent = readdir(d))) {
        if (!strcmp(ent->d_name, ".") || !strcmp(ent->d_name, ".."))
            continue;
        snprintf(path, sizeof(path), "%s/%s", collection, ent->d_name);
        found(s, path, now);
        if (strcmp(collection, "services") == 0 &&
            snprintf(path, sizeof(path), "services/%s/ask", ent->d_name) < (int)sizeof(path))
            scan_collection(s, path, now);
    }
    closedir(d);
}

static void note_missing(struct sched *s, const char *path, int64_t now)
{
    struct intake *i;
    struct stat st;
    struct place p;

    if (fstatat(s->tree_fd, path, &st, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT || !place_of(path, &p))
        return;
    i = intake_get(s, &p, now);
    if (i)
        i->dirty = i->gone = true;
}

/* Objects whose files went away while no dtxd ran, and specs of experiments that were refused or not yet
 * taken. */
static void find_missing(struct sched *s, int64_t now)
{
    char path[PATH_MAX];

    for (int i = 0; i < s->nobjects; i++) {
        object_path(s->objects[i], path, sizeof(path));
        if (s->objects[i]->kind != OBJ_SERVICE || !service_still_there(s, s->objects[i]))
            note_missing(s, path, now);
    }
    for (int i = 0; i < s->nexps; i++) {
        const struct experiment *x = s->exps[i];
        snprintf(path, sizeof(path), "experiments/%s.json", x->name);
        if (!x->deleted && (x->njobs == 0 || x->spec_reason))
            note_missing(s, path, now);
    }
}

void scan_store(struct sched *s, int64_t now)
{
    for (size_t i = 0; i < sizeof(collections) / sizeof(collections[0]); i++) {
        scan_collection(s, collections[i], now);
        watch_tree(s, collections[i], 0, false, now);
    }
    find_missing(s, now);
}
