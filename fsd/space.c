#include "fsd/space.h"

#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <pthread.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fsd/space_scan.h"
#include "fsd/space_table.h"
#include "scheduler/base/clock.h"
#include "scheduler/base/log.h"
#include "scheduler/base/text.h"

#define SECOND ((int64_t)1000000000)

/* A scan is made so long after the end of the last one at the latest, and so many times its length. */
static const int64_t scan_every = 60 * SECOND, look_every = SECOND;
enum { SCAN_SHARE = 50, LOOK_SHARE = 5, BLOCK = 4096 };

struct space {
    struct sched *sched;
    int store_fd;
    space_unlinked_fn unlinked;
    void *unlinked_arg;
    pthread_t thread;
    bool thread_on;
    pthread_mutex_t mu; /* protects what follows; never held while the scheduler is called */
    pthread_cond_t wake;
    struct space_table table;
    bool closing;
    unsigned moves;            /* counted: renames */
    int64_t next, ended, took; /* mono: of scans */
};

/* ---- limits ---- */

/* The limits for an owner's files; asks the scheduler only after they changed. */
static struct sched_limits limits_of(struct space *sp, uid_t uid)
{
    unsigned version = sched_limits_version(sp->sched);
    struct sched_limits l = {-1, -1, 0};
    struct space_owner *o;
    bool known;

    pthread_mutex_lock(&sp->mu);
    o = space_owner_of(&sp->table, uid);
    known = o && o->version == version;
    if (known)
        l = o->limits;
    pthread_mutex_unlock(&sp->mu);
    if (known || !o)
        return l;
    sched_limits(sp->sched, uid, &l);
    pthread_mutex_lock(&sp->mu);
    o->limits = l;
    o->version = version;
    pthread_mutex_unlock(&sp->mu);
    return l;
}

static bool any_limit(const struct sched_limits *l)
{
    return l->quota >= 0 || l->store_max >= 0 || l->reserve > 0;
}

bool space_limited(struct space *sp, uid_t owner)
{
    struct sched_limits l = limits_of(sp, owner);

    return any_limit(&l);
}

/* ---- words ---- */

/* "(49.9 GiB; the largest: datasets/x 30 GiB)".  mu held. */
static void used_words(struct space *sp, const struct space_owner *o, int64_t used, char *out, size_t n)
{
    const struct space_object *big = space_largest(&sp->table, o);
    char a[24], b[24];

    if (big)
        snprintf(out, n, "(%s; %s largest: %s %s)", text_size(used, a),
                 used == o->bytes ? "the" : "of yours the", big->path, text_size(big->bytes, b));
    else
        snprintf(out, n, "(%s)", text_size(used, a));
}

static void quota_words(struct space *sp, const struct space_owner *o, int64_t quota, char why[SPACE_WORDS])
{
    char limit[24], used[SPACE_WORDS - 128];

    used_words(sp, o, o->bytes, used, sizeof(used));
    snprintf(why, SPACE_WORDS, "your quota of %s is used up %s: remove something or ask the administrator",
             text_size(quota, limit), used);
}

static void store_words(struct space *sp, const struct space_owner *o, int64_t max, char why[SPACE_WORDS])
{
    char limit[24], used[SPACE_WORDS - 128];

    used_words(sp, o, sp->table.bytes, used, sizeof(used));
    snprintf(why, SPACE_WORDS,
             "the store's limit of %s is used up %s: remove something or ask the administrator",
             text_size(max, limit), used);
}

static void reserve_words(int64_t available, int64_t reserve, char why[SPACE_WORDS])
{
    char a[24], b[24];

    snprintf(
        why, SPACE_WORDS,
        "%s are free on the store's disk and %s must stay free: remove something or ask the administrator",
        text_size(available, a), text_size(reserve, b));
}

void space_full_words(struct space *sp, char why[SPACE_WORDS])
{
    struct statvfs v;
    char a[24], b[24];

    if (fstatvfs(sp->store_fd, &v))
        memset(&v, 0, sizeof(v));
    snprintf(why, SPACE_WORDS,
             "the disk of the store is full (%s of %s are free): remove something or ask the administrator",
             text_size((int64_t)(v.f_bavail * v.f_frsize), a),
             text_size((int64_t)(v.f_blocks * v.f_frsize), b));
}

/* ---- claims ---- */

static int64_t available(struct space *sp)
{
    struct statvfs v;

    return fstatvfs(sp->store_fd, &v) ? INT64_MAX : (int64_t)(v.f_bavail * v.f_frsize);
}

/* mu held */
static int check(struct space *sp, const struct space_owner *o, const struct sched_limits *l, int64_t bytes,
                 int64_t free_bytes, char why[SPACE_WORDS])
{
    const struct space_table *t = &sp->table;

    /* bytes may be anything up to INT64_MAX: it is not added to */
    if (l->quota >= 0 && bytes > l->quota - o->bytes - o->claimed) {
        quota_words(sp, o, l->quota, why);
        return -EDQUOT;
    }
    if (l->store_max >= 0 && bytes > l->store_max - t->bytes - t->claimed) {
        store_words(sp, o, l->store_max, why);
        return -ENOSPC;
    }
    if (l->reserve > 0 && bytes > free_bytes - t->claimed - l->reserve) {
        reserve_words(free_bytes, l->reserve, why);
        return -ENOSPC;
    }
    return 0;
}

int space_claim_bytes(struct space *sp, uid_t owner, int64_t bytes, struct space_claim *c,
                      char why[SPACE_WORDS])
{
    struct sched_limits l = limits_of(sp, owner);
    int64_t free_bytes = l.reserve > 0 ? available(sp) : 0;
    struct space_owner *o;
    int rc = 0;

    *c = (struct space_claim){.owner = owner, .bytes = -1};
    if (!any_limit(&l))
        return 0;
    pthread_mutex_lock(&sp->mu);
    o = space_owner_of(&sp->table, owner);
    rc = !o ? -ENOMEM : bytes > 0 ? check(sp, o, &l, bytes, free_bytes, why) : 0;
    if (!rc) {
        c->bytes = bytes;
        o->claimed += bytes;
        sp->table.claimed += bytes;
    }
    pthread_mutex_unlock(&sp->mu);
    if (rc)
        space_look(sp); /* something may have gone that we were not told of */
    return rc;
}

static int64_t up(int64_t n)
{
    return n > INT64_MAX - BLOCK ? INT64_MAX : (n + BLOCK - 1) / BLOCK * BLOCK;
}

/* Are the bytes there already?  For files with holes, where their number says nothing. */
static bool is_allocated(int fd, off_t off, off_t n)
{
    return lseek(fd, off, SEEK_DATA) == off && lseek(fd, off, SEEK_HOLE) >= off + n;
}

/* The same for what was allocated ahead, where SEEK_DATA finds nothing. */
static bool is_mapped(int fd, off_t off, off_t n)
{
    union {
        struct fiemap map;
        uint8_t room[sizeof(struct fiemap) + sizeof(struct fiemap_extent)];
    } q = {.map = {.fm_start = (uint64_t)off, .fm_length = (uint64_t)n, .fm_extent_count = 1}};
    const struct fiemap_extent *extent = q.map.fm_extents;

    return ioctl(fd, FS_IOC_FIEMAP, &q.map) == 0 && q.map.fm_mapped_extents == 1 &&
           !(extent->fe_flags & FIEMAP_EXTENT_SHARED) && extent->fe_logical <= (uint64_t)off &&
           extent->fe_length >= (uint64_t)(off - (off_t)extent->fe_logical) + (uint64_t)n;
}

/* How much longer, in blocks, a file gets at most. */
static int64_t growth(int fd, const struct stat *st, off_t off, off_t n)
{
    int64_t have = (int64_t)st->st_blocks * 512, end = off > INT64_MAX - n ? INT64_MAX : off + n, span,
            beyond;

    if (n <= 0)
        return 0;
    span = up(end) - off / BLOCK * BLOCK;
    beyond = up(end) - (have > up(st->st_size) ? have : up(st->st_size));
    if (have > up(st->st_size) && off <= INT64_MAX - n) /* blocks beyond the end: there may be holes before */
        return is_mapped(fd, off, n) ? 0 : span;
    if (have >= st->st_size) /* no holes */
        return beyond <= 0 ? 0 : beyond < span ? beyond : span;
    return end <= st->st_size && is_allocated(fd, off, n) ? 0 : span;
}

int space_claim_write(struct space *sp, int fd, off_t off, off_t n, struct space_claim *c,
                      char why[SPACE_WORDS])
{
    struct stat st;

    *c = (struct space_claim){.bytes = -1};
    if (off < 0 || fstat(fd, &st))
        return 0;
    if (!space_limited(sp, st.st_uid)) {
        c->owner = st.st_uid;
        return 0;
    }
    return space_claim_bytes(sp, st.st_uid, growth(fd, &st, off, n), c, why);
}

void space_settle(struct space *sp, struct space_claim *c, int fd, const char *path)
{
    struct space_owner *o;
    struct stat st;
    bool there;

    if (c->bytes < 0)
        return;
    there = fd >= 0 && fstat(fd, &st) == 0;
    pthread_mutex_lock(&sp->mu);
    o = space_owner_of(&sp->table, c->owner);
    o->claimed -= c->bytes;
    sp->table.claimed -= c->bytes;
    if (there)
        space_count(&sp->table, &st, st.st_uid, path);
    pthread_mutex_unlock(&sp->mu);
    c->bytes = -1;
}

void space_note(struct space *sp, int fd, const char *path)
{
    struct stat st;

    if (fd >= 0 && fstat(fd, &st) == 0)
        space_note_stat(sp, &st, path);
}

void space_note_stat(struct space *sp, const struct stat *st, const char *path)
{
    pthread_mutex_lock(&sp->mu);
    if (st->st_nlink == 0)
        space_discount(&sp->table, st);
    else
        space_count(&sp->table, st, st->st_uid, path);
    if (sp->table.new_owner)
        pthread_cond_signal(&sp->wake);
    pthread_mutex_unlock(&sp->mu);
}

void space_moved(struct space *sp)
{
    pthread_mutex_lock(&sp->mu);
    sp->moves++;
    pthread_mutex_unlock(&sp->mu);
}

void space_look(struct space *sp)
{
    int64_t at, rest;

    pthread_mutex_lock(&sp->mu);
    rest = LOOK_SHARE * sp->took;
    at = sp->ended + (rest > look_every ? rest : look_every);
    if (at < sp->next) {
        sp->next = at;
        pthread_cond_signal(&sp->wake);
    }
    pthread_mutex_unlock(&sp->mu);
}

/* ---- df ---- */

static int64_t at_most(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

void space_statvfs(struct space *sp, uid_t caller, struct statvfs *v)
{
    struct sched_limits l = limits_of(sp, caller);
    int64_t unit = (int64_t)v->f_frsize, size = (int64_t)v->f_blocks * unit,
            left = (int64_t)v->f_bavail * unit;
    struct space_owner *o;

    if (!any_limit(&l) || unit <= 0)
        return;
    left -= l.reserve;
    pthread_mutex_lock(&sp->mu);
    o = space_owner_of(&sp->table, caller);
    if (l.store_max >= 0) {
        size = at_most(size, l.store_max);
        left = at_most(left, l.store_max - sp->table.bytes);
    }
    if (l.quota >= 0 && o) {
        size = at_most(size, l.quota);
        left = at_most(left, l.quota - o->bytes);
    }
    pthread_mutex_unlock(&sp->mu);
    v->f_bavail = (fsblkcnt_t)(left > 0 ? left / unit : 0);
    if (l.store_max >= 0 || l.quota >= 0) {
        v->f_blocks = (fsblkcnt_t)(size / unit);
        v->f_bfree = v->f_bavail;
    }
}

/* ---- the thread ---- */

static bool count_found(void *arg, const struct stat *st, uid_t uid, const char *path)
{
    struct space *sp = arg;
    bool go_on;

    pthread_mutex_lock(&sp->mu);
    go_on = !sp->closing;
    space_count(&sp->table, st, uid, path);
    pthread_mutex_unlock(&sp->mu);
    return go_on;
}

/* Looked up here, because a directory service may answer slowly.  mu held, let go of meanwhile. */
static void name_owners(struct space *sp)
{
    struct passwd pw, *found;
    char data[4096], name[sizeof(sp->table.owners->name)];

    sp->table.new_owner = false;
    for (struct space_owner *o = sp->table.owners; o; o = o->next) {
        if (o->name[0])
            continue;
        pthread_mutex_unlock(&sp->mu);
        if (getpwuid_r(o->uid, &pw, data, sizeof(data), &found) == 0 && found)
            snprintf(name, sizeof(name), "%s", pw.pw_name);
        else
            snprintf(name, sizeof(name), "%u", (unsigned)o->uid);
        pthread_mutex_lock(&sp->mu);
        memcpy(o->name, name, sizeof(name));
    }
}

static void count_unlinked(struct space *sp)
{
    struct stat *st;
    size_t n = sp->unlinked(sp->unlinked_arg, &st);

    for (size_t i = 0; i < n; i++)
        count_found(sp, &st[i], st[i].st_uid, NULL);
    free(st);
}

/* mu held, let go of meanwhile.  What was not seen is gone, unless names moved while we looked: then what was
 * not seen twice. */
static void scan(struct space *sp)
{
    unsigned moves = sp->moves, mark = ++sp->table.now;
    int64_t begun = clock_mono_ns();
    bool whole;

    pthread_mutex_unlock(&sp->mu);
    whole = space_scan(sp->store_fd, count_found, sp);
    count_unlinked(sp);
    pthread_mutex_lock(&sp->mu);
    if (whole)
        space_sweep(&sp->table, moves == sp->moves ? mark : mark - 1);
    sp->ended = clock_mono_ns();
    sp->took = sp->ended - begun;
    sp->next = sp->ended + (SCAN_SHARE * sp->took > scan_every ? SCAN_SHARE * sp->took : scan_every);
}

static void *thread_main(void *arg)
{
    struct space *sp = arg;
    struct timespec until;

    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
    pthread_mutex_lock(&sp->mu);
    while (!sp->closing) {
        if (clock_mono_ns() >= sp->next)
            scan(sp);
        if (sp->table.new_owner)
            name_owners(sp);
        until = (struct timespec){sp->next / SECOND, sp->next % SECOND};
        if (!sp->closing && clock_mono_ns() < sp->next)
            pthread_cond_timedwait(&sp->wake, &sp->mu, &until);
    }
    pthread_mutex_unlock(&sp->mu);
    return NULL;
}

/* For status.  The scheduler's mutex is held. */
static size_t usage(void *arg, struct sched_usage *out, size_t max)
{
    struct space *sp = arg;
    size_t n = 0;

    pthread_mutex_lock(&sp->mu);
    for (const struct space_owner *o = sp->table.owners; o && n < max; o = o->next) {
        if (o->files == 0)
            continue;
        out[n] = (struct sched_usage){.uid = o->uid, .bytes = o->bytes, .files = o->files};
        snprintf(out[n].name, sizeof(out[n].name), "%s", o->name);
        n++;
    }
    pthread_mutex_unlock(&sp->mu);
    return n;
}

static int start_thread(struct space *sp)
{
    sigset_t all, old;
    int rc;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are for the main thread */
    rc = pthread_create(&sp->thread, NULL, thread_main, sp);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    sp->thread_on = rc == 0;
    return -rc;
}

int space_new(struct sched *sched, int store_fd, space_unlinked_fn unlinked, void *arg, struct space **out,
              struct dtx_err *e)
{
    struct space *sp = calloc(1, sizeof(*sp));
    pthread_condattr_t attr;

    *out = sp;
    if (!sp)
        return dtx_fail(e, -ENOMEM, "out of memory");
    sp->sched = sched;
    sp->store_fd = store_fd;
    sp->unlinked = unlinked;
    sp->unlinked_arg = arg;
    pthread_mutex_init(&sp->mu, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&sp->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (space_table_init(&sp->table) || start_thread(sp)) {
        space_free(sp);
        *out = NULL;
        return dtx_fail(e, -EAGAIN, "cannot start a thread");
    }
    sched_on_usage(sched, usage, sp);
    return 0;
}

void space_free(struct space *sp)
{
    if (!sp)
        return;
    if (sp->thread_on) {
        pthread_mutex_lock(&sp->mu);
        sp->closing = true;
        pthread_cond_signal(&sp->wake);
        pthread_mutex_unlock(&sp->mu);
        pthread_join(sp->thread, NULL);
    }
    space_table_release(&sp->table);
    pthread_cond_destroy(&sp->wake);
    pthread_mutex_destroy(&sp->mu);
    free(sp);
}
