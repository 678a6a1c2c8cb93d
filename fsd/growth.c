/* Where requests meet space.h: claims before something grows, notes after something changed. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fsd/fs.h"

static void tell(fuse_req_t req, const char *path, const char *why)
{
    struct caller who = fs_caller(req);

    if (path)
        sched_no_space(fs_of(req)->sched, path, &who, why);
}

static int told(fuse_req_t req, const char *path, int rc, const char *why)
{
    if (rc == -EDQUOT || rc == -ENOSPC)
        tell(req, path, why);
    return rc;
}

int fs_claim_new(fuse_req_t req, const char *path, struct space_claim *c)
{
    struct fs *f = fs_of(req);
    char why[SPACE_WORDS] = "";
    uid_t owner = f->root ? fuse_req_ctx(req)->uid : geteuid();

    return told(req, path, space_claim_bytes(f->space, owner, SPACE_INODE, c, why), why);
}

int fs_claim_write(fuse_req_t req, int fd, off_t off, off_t n, const char *path, struct space_claim *c)
{
    char why[SPACE_WORDS] = "";

    return told(req, path, space_claim_write(fs_of(req)->space, fd, off, n, c, why), why);
}

/* A longer size takes no blocks, but says what is going to be written. */
int fs_claim_size(fuse_req_t req, int fd, off_t size, const char *path, struct space_claim *c)
{
    char why[SPACE_WORDS] = "";
    struct stat st;
    off_t more;

    *c = (struct space_claim){.bytes = -1};
    if (fstat(fd, &st))
        return -errno;
    more = size > st.st_size ? size - st.st_size : 0;
    return told(req, path, space_claim_bytes(fs_of(req)->space, st.st_uid, more, c, why), why);
}

void fs_settle(fuse_req_t req, struct space_claim *c, int fd, const char *path, int rc)
{
    char why[SPACE_WORDS];

    space_settle(fs_of(req)->space, c, fd, path);
    if (rc != -ENOSPC && rc != -EDQUOT)
        return;
    space_full_words(fs_of(req)->space, why);
    tell(req, path, why);
}

int fs_hold(int dirfd, const char *name)
{
    return openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
}

void fs_note_held(struct fs *f, int fd, const char *path)
{
    if (fd < 0)
        return;
    space_note(f->space, fd, path);
    close(fd);
}
