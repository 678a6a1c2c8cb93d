/*
 * The table of open inodes (fsd/passthrough.c), in whatever order files are opened, closed and taken over
 * from a process before; the kernel's side, ioctl, is ours here and may refuse.  All who have an inode open
 * at a time have the same backing id, and each backing id is given back exactly once, with the last of them.
 *
 * The input: one byte (how often the kernel refuses), then steps of 3 bytes: what, which inode, a wish or
 * which open file.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "fsd/passthrough.h"
#include "scheduler/base/log.h"
#include "tests/fuzz/fuzz.h"

enum { OPEN, CLOSE, RESTORE, STEPS, INODES = 5, FILES = 64, IDS = 1024 };

static bool begun, held[IDS]; /* backing ids that the kernel has given out */
static uint32_t next_id;
static unsigned refuses, asked;

int ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    uint32_t id;

    va_start(ap, request);
    id = request >> 30 == 1 && (request & 0xff) == 2 ? *va_arg(ap, uint32_t *) : 0;
    va_end(ap);
    if (id) { /* BACKING_CLOSE */
        FUZZ_ASSERT(id < IDS && held[id]);
        held[id] = false;
        return 0;
    }
    if (next_id + 1 == IDS || (begun && refuses && asked++ % refuses == 0)) {
        errno = EPERM;
        return -1;
    }
    held[++next_id] = true;
    return (int)next_id;
}

static struct open_file {
    uint64_t inode;
    struct pass_grant grant;
} files[FILES];
static size_t n_files;

static bool agree(uint64_t inode, uint32_t backing_id)
{
    for (size_t i = 0; i < n_files; i++)
        if (files[i].inode == inode && files[i].grant.backing_id != backing_id)
            return false;
    return true;
}

static void note(uint64_t inode, struct pass_grant grant)
{
    FUZZ_ASSERT((grant.mode == PASS_CACHED) == (grant.backing_id == 0));
    FUZZ_ASSERT(!grant.backing_id || held[grant.backing_id]);
    FUZZ_ASSERT(agree(inode, grant.backing_id));
    files[n_files++] = (struct open_file){inode, grant};
}

static void open_one(struct passthrough *p, int fd, uint64_t inode, uint8_t wish)
{
    struct pass_grant grant;

    FUZZ_ASSERT(passthrough_open(p, inode, fd, (enum pass_wish)(wish % 3), &grant) == 0);
    FUZZ_ASSERT(grant.mode != PASS_SEEN || wish % 3 == WISH_SEEN);
    note(inode, grant);
}

static void close_one(struct passthrough *p, size_t i)
{
    struct open_file f = files[i];

    files[i] = files[--n_files];
    passthrough_close(p, f.inode, f.grant);
    for (i = 0; i < n_files && files[i].inode != f.inode; i++)
        ;
    FUZZ_ASSERT(i < n_files || !f.grant.backing_id || !held[f.grant.backing_id]);
}

/* What the process before had agreed on with the kernel. */
static void restore_one(struct passthrough *p, uint64_t inode, uint8_t mode)
{
    struct pass_grant grant = {(enum pass_mode)(mode % 3), 0};

    for (size_t i = 0; i < n_files; i++)
        if (files[i].inode == inode)
            grant.backing_id = files[i].grant.backing_id;
    if (agree(inode, 0) && !agree(inode, 1))
        grant.mode = PASS_CACHED;
    else if (!grant.backing_id && grant.mode != PASS_CACHED && next_id + 1 < IDS)
        held[grant.backing_id = ++next_id] = true;
    if (!grant.backing_id != (grant.mode == PASS_CACHED))
        grant.mode = grant.backing_id ? PASS_BACKED : PASS_CACHED;
    FUZZ_ASSERT(passthrough_restore(p, inode, grant) == 0);
    note(inode, grant);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct passthrough *p;
    int fd;

    if (size < 1)
        return 0;
    p = passthrough_new();
    fd = memfd_create("fuzz", MFD_CLOEXEC);
    FUZZ_ASSERT(p && fd >= 0);
    log_to_fd(-1);
    memset(held, 0, sizeof(held));
    n_files = next_id = asked = 0;
    refuses = data[0] % 4;
    begun = false;
    for (size_t i = 1; i + 3 <= size; i += 3) {
        unsigned what = data[i] % STEPS;
        if (what == RESTORE && !begun && n_files < FILES)
            restore_one(p, data[i + 1] % INODES, data[i + 2]);
        if (what == RESTORE)
            continue;
        if (!begun)
            passthrough_begin(p, 0, true, "");
        begun = true;
        if (what == OPEN && n_files < FILES && passthrough_is_on(p))
            open_one(p, fd, data[i + 1] % INODES, data[i + 2]);
        else if (what == CLOSE && n_files)
            close_one(p, data[i + 2] % n_files);
    }
    if (!begun)
        passthrough_begin(p, 0, true, "");
    while (n_files)
        close_one(p, 0);
    for (uint32_t id = 0; id < IDS; id++)
        FUZZ_ASSERT(!held[id]);
    passthrough_free(p);
    close(fd);
    return 0;
}
