#include "fsd/passthrough.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/ioctl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "scheduler/base/log.h"

/* Of newer kernels' <linux/fuse.h> (protocol 7.40). */
struct backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};
#define BACKING_OPEN  _IOW(229, 1, struct backing_map)
#define BACKING_CLOSE _IOW(229, 2, uint32_t)

enum { BUCKETS = 1024 };

struct open_inode {
    struct open_inode *next;
    uint64_t id;
    uint32_t backing_id; /* 0: cached */
    unsigned opens;
};

struct passthrough {
    int dev_fd;
    bool on;           /* atomic */
    bool drops_fsetid; /* this process has CAP_FSETID: */
    struct __user_cap_data_struct all[2], fewer[2];

    pthread_mutex_t mu; /* protects what follows */
    struct open_inode *table[BUCKETS];
    bool told; /* the log has it that a file cannot be backed */
};

uint32_t passthrough_depth(int store_fd)
{
    struct statfs s;

    return fstatfs(store_fd, &s) == 0 && s.f_type == OVERLAYFS_SUPER_MAGIC ? 2 : 1;
}

static void learn_caps(struct passthrough *p)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};

    if (syscall(SYS_capget, &head, p->all))
        return;
    memcpy(p->fewer, p->all, sizeof(p->all));
    p->fewer[0].effective &= ~(1u << CAP_FSETID);
    p->drops_fsetid = p->fewer[0].effective != p->all[0].effective;
}

struct passthrough *passthrough_new(void)
{
    struct passthrough *p = calloc(1, sizeof(*p));

    if (!p)
        return NULL;
    p->dev_fd = -1;
    learn_caps(p);
    pthread_mutex_init(&p->mu, NULL);
    return p;
}

void passthrough_free(struct passthrough *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < BUCKETS; i++)
        for (struct open_inode *o = p->table[i], *next; o; o = next) {
            next = o->next;
            free(o);
        }
    pthread_mutex_destroy(&p->mu);
    free(p);
}

/* ---- the kernel's side ---- */

/* The kernel keeps the credentials of whoever registers a file and writes with them.  Without CAP_FSETID
 * writing takes the set-id bits away, as it does for users on a disk. */
static bool set_caps(const struct __user_cap_data_struct caps[2])
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};

    return syscall(SYS_capset, &head, caps) == 0;
}

/* A backing id, or a negative errno. */
static int backing_open(const struct passthrough *p, int fd)
{
    struct backing_map map = {.fd = fd};
    bool dropped = p->drops_fsetid && set_caps(p->fewer);
    int id = ioctl(p->dev_fd, BACKING_OPEN, &map);

    if (id <= 0)
        id = id < 0 ? -errno : -EIO;
    if (dropped)
        set_caps(p->all);
    return id;
}

static void backing_close(const struct passthrough *p, uint32_t backing_id)
{
    ioctl(p->dev_fd, BACKING_CLOSE, &backing_id);
}

/* Does the kernel take files from this process?  Any regular file will do. */
static int probe(const struct passthrough *p)
{
    int fd = memfd_create("dtx-probe", MFD_CLOEXEC), id = fd < 0 ? -errno : backing_open(p, fd);

    if (fd >= 0)
        close(fd);
    if (id < 0)
        return id;
    backing_close(p, (uint32_t)id);
    return 0;
}

void passthrough_begin(struct passthrough *p, int dev_fd, bool agreed, const char *why)
{
    int rc;

    p->dev_fd = dev_fd;
    rc = agreed ? probe(p) : 0;
    if (agreed && rc == 0)
        log_line("passthrough: the kernel reads and writes large files of the store itself");
    else
        log_line("passthrough: off, large files go through dtxd: %s%s", agreed ? "the kernel refuses: " : why,
                 agreed ? strerror(-rc) : "");
    __atomic_store_n(&p->on, agreed && rc == 0, __ATOMIC_RELEASE);
}

bool passthrough_is_on(const struct passthrough *p)
{
    return __atomic_load_n(&p->on, __ATOMIC_ACQUIRE);
}

/* ---- open inodes (mu held) ---- */

static struct open_inode **slot_of(struct passthrough *p, uint64_t id)
{
    struct open_inode **slot = &p->table[id % BUCKETS];

    while (*slot && (*slot)->id != id)
        slot = &(*slot)->next;
    return slot;
}

static struct open_inode *add(struct open_inode **slot, uint64_t id)
{
    struct open_inode *o = calloc(1, sizeof(*o));

    if (o) {
        o->id = id;
        *slot = o;
    }
    return o;
}

/* The first open of an inode.  The kernel gets a descriptor for reading: one for writing would make the file
 * count as being written for as long as the kernel knows it. */
static uint32_t register_file(struct passthrough *p, int fd)
{
    char path[40];
    int for_reading, id;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    for_reading = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    id = for_reading < 0 ? -errno : backing_open(p, for_reading);
    if (for_reading >= 0)
        close(for_reading);
    if (id < 0 && !p->told) {
        p->told = true;
        log_line("passthrough: the kernel does not take a file of the store: %s; such files go through dtxd",
                 strerror(-id));
    }
    return id < 0 ? 0 : (uint32_t)id;
}

static int open_locked(struct passthrough *p, uint64_t id, int fd, enum pass_wish wish,
                       struct pass_grant *grant)
{
    struct open_inode **slot = slot_of(p, id), *o = *slot;

    if (!o) {
        o = add(slot, id);
        if (!o)
            return -ENOMEM;
        o->backing_id = wish == WISH_BACKED ? register_file(p, fd) : 0;
    }
    o->opens++;
    grant->backing_id = o->backing_id;
    grant->mode = !o->backing_id ? PASS_CACHED : wish == WISH_SEEN ? PASS_SEEN : PASS_BACKED;
    return 0;
}

int passthrough_open(struct passthrough *p, uint64_t id, int fd, enum pass_wish wish,
                     struct pass_grant *grant)
{
    int rc;

    *grant = (struct pass_grant){PASS_CACHED, 0};
    if (!passthrough_is_on(p))
        return 0;
    pthread_mutex_lock(&p->mu);
    rc = open_locked(p, id, fd, wish, grant);
    pthread_mutex_unlock(&p->mu);
    return rc;
}

void passthrough_close(struct passthrough *p, uint64_t id, struct pass_grant grant)
{
    struct open_inode **slot, *o;

    if (!passthrough_is_on(p))
        return;
    pthread_mutex_lock(&p->mu);
    slot = slot_of(p, id);
    o = *slot;
    if (o && o->backing_id == grant.backing_id && --o->opens == 0) {
        if (o->backing_id)
            backing_close(p, o->backing_id);
        *slot = o->next;
        free(o);
    }
    pthread_mutex_unlock(&p->mu);
}

int passthrough_restore(struct passthrough *p, uint64_t id, struct pass_grant grant)
{
    struct open_inode **slot, *o;

    pthread_mutex_lock(&p->mu);
    slot = slot_of(p, id);
    o = *slot ? *slot : add(slot, id);
    if (o) {
        if (grant.backing_id)
            o->backing_id = grant.backing_id;
        o->opens++;
    }
    pthread_mutex_unlock(&p->mu);
    return o ? 0 : -ENOMEM;
}

/* A read lease is given only where nobody has the file open for writing; a shared writable mapping counts. */
bool passthrough_is_written(int fd)
{
    if (fcntl(fd, F_SETLEASE, F_RDLCK))
        return errno == EAGAIN;
    fcntl(fd, F_SETLEASE, F_UNLCK);
    return false;
}
