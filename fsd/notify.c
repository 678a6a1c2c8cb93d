#include "fsd/notify.h"
#include "fsd/touch.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"

/* Changes gather for a moment; more than so many paths are dropped: the timeouts do it then. */
enum { GATHER_MS = 50, TIDY_S = 5, LOOK_S = 1, MAX_PATHS = 4096, MAX_CHILDREN = 256 };

struct notify {
    struct fs *f;
    struct fuse_session *se;
    struct touch *touch;
    pthread_t thread;

    pthread_mutex_t mu; /* protects what follows */
    pthread_cond_t wake;
    char *path[MAX_PATHS];
    size_t paths;
    bool stop;
};

static struct timespec in_ms(int64_t ms)
{
    int64_t at = clock_mono_ns() + ms * 1000000;

    return (struct timespec){at / 1000000000, at % 1000000000};
}

/* What shows the whole appliance changes with anything (a device that says once a second that it is there is
 * no news for it). */
static void touch_root(struct notify *n)
{
    static const char *const files[] = {"status", "status.json", "metrics.prom", "index.html", "log"};

    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
        touch_changed(n->touch, files[i], false);
}

static void touch_child(struct notify *n, uint64_t id)
{
    struct buf path = BUF_INIT;

    if (nodes_path(n->f->nodes, id, &path) == 0 && path.p)
        touch_changed(n->touch, path.p, false);
    buf_release(&path);
}

/* Of a collection the changed names are told one by one. */
static bool is_collection(struct fs *f, uint64_t id)
{
    struct place p;
    bool yes = place_of_node(f, id, &p) == 0 && p.m.entry->lists != OBJ_NONE;

    place_release(&p);
    return yes;
}

static void tell_children(struct notify *n, const struct node_info *folder)
{
    struct node_info child[MAX_CHILDREN];
    size_t children = nodes_own_children(n->f->nodes, folder->id, child, MAX_CHILDREN);

    for (size_t i = 0; i < children; i++) {
        if (child[i].owner == NODE_GENERATED)
            fuse_lowlevel_notify_inval_inode(n->se, child[i].id, -1, 0);
        if (!child[i].is_dir)
            touch_child(n, child[i].id);
    }
}

/* Who watches a file that goes is told that it went (IN_DELETE_SELF).  Nobody may look it up between its end
 * and this: to the kernel it would be no file any more, and nothing would go.  So it is not touched either.
 */
static void tell_gone(struct notify *n, uint64_t parent, const struct node_info *node, const char *name)
{
    if (node->is_dir || fuse_lowlevel_notify_delete(n->se, parent, node->id, name, strlen(name)))
        fuse_lowlevel_notify_inval_entry(n->se, parent, name, strlen(name));
}

static void tell_one(struct notify *n, char *path)
{
    uint64_t parent;
    struct node_info node;
    const char *name = "";
    size_t len = strlen(path);
    bool listed = len && path[len - 1] == '/', gone;
    char copy[PATH_MAX];
    int rc;

    if (listed)
        path[len - 1] = '\0';
    snprintf(copy, sizeof(copy), "%s", path);
    rc = fs_find_path(n->f, copy, &parent, &name, &node); /* cuts it up */
    gone = !rc && parent && fs_is_gone(n->f, node.id);
    if (!gone)
        touch_changed(n->touch, path, listed);
    if (rc)
        return; /* never looked up */
    if (nodes_known(n->f->nodes, node.id))
        fuse_lowlevel_notify_inval_inode(n->se, node.id, -1, 0);
    if (gone)
        tell_gone(n, parent, &node, name);
    else if (node.is_dir && !is_collection(n->f, node.id))
        tell_children(n, &node);
}

static void tell_all(struct notify *n)
{
    char *path[64];
    size_t paths;
    bool news = false;

    do {
        pthread_mutex_lock(&n->mu);
        for (paths = 0; paths < 64 && n->paths; paths++)
            path[paths] = n->path[--n->paths];
        pthread_mutex_unlock(&n->mu);
        for (size_t i = 0; i < paths; i++) {
            news |= strncmp(path[i], "devices/", 8) != 0;
            tell_one(n, path[i]);
            free(path[i]);
        }
    } while (paths);
    if (news)
        touch_root(n);
}

static void *notify_main(void *arg)
{
    struct notify *n = arg;
    int64_t tidied = clock_mono_ns();
    bool stop;

    do {
        struct timespec until = in_ms(LOOK_S * 1000);

        pthread_mutex_lock(&n->mu);
        while (!n->stop && !n->paths && pthread_cond_timedwait(&n->wake, &n->mu, &until) == 0)
            ;
        until = in_ms(GATHER_MS);
        while (!n->stop && n->paths && pthread_cond_timedwait(&n->wake, &n->mu, &until) == 0)
            ;
        stop = n->stop;
        pthread_mutex_unlock(&n->mu);
        if (!stop)
            tell_all(n);
        fs_linger_round(n->f);
        if (clock_mono_ns() - tidied > TIDY_S * (int64_t)1000000000) {
            tidied = clock_mono_ns();
            backing_tidy(n->f->backing);
            render_cache_tidy(n->f->renders);
        }
    } while (!stop);
    return NULL;
}

int notify_new(struct fs *f, struct fuse_session *se, const char *mountpoint, struct notify **out,
               struct dtx_err *e)
{
    struct notify *n = calloc(1, sizeof(*n));
    pthread_condattr_t attr;
    int rc;

    if (!n)
        return dtx_fail(e, -ENOMEM, "out of memory");
    rc = touch_new(f, mountpoint, &n->touch, e);
    if (rc) {
        free(n);
        return rc;
    }
    n->f = f;
    n->se = se;
    pthread_mutex_init(&n->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&n->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&n->thread, NULL, notify_main, n)) {
        touch_stop(n->touch);
        touch_free(n->touch);
        free(n);
        return dtx_fail(e, -EAGAIN, "cannot start a thread");
    }
    *out = n;
    return 0;
}

void notify_changed(void *arg, const char *path)
{
    struct notify *n = arg;
    char *copy;

    pthread_mutex_lock(&n->mu);
    for (size_t i = n->paths; i-- > 0 && i + 16 > n->paths;) /* the same again and again is usual */
        if (strcmp(n->path[i], path) == 0) {
            pthread_mutex_unlock(&n->mu);
            return;
        }
    if (!n->stop && n->paths < MAX_PATHS && (copy = strdup(path))) {
        n->path[n->paths++] = copy;
        if (n->paths == 1)
            pthread_cond_signal(&n->wake);
    }
    pthread_mutex_unlock(&n->mu);
}

void notify_quiet(struct notify *n)
{
    touch_stop(n->touch);
}

void notify_stop(struct notify *n)
{
    if (!n)
        return;
    touch_stop(n->touch);
    pthread_mutex_lock(&n->mu);
    n->stop = true;
    pthread_cond_signal(&n->wake);
    pthread_mutex_unlock(&n->mu);
    pthread_join(n->thread, NULL);
}

void notify_free(struct notify *n)
{
    if (!n)
        return;
    touch_free(n->touch);
    for (size_t i = 0; i < n->paths; i++)
        free(n->path[i]);
    pthread_cond_destroy(&n->wake);
    pthread_mutex_destroy(&n->mu);
    free(n);
}
