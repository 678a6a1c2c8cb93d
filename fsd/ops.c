/* The table of operations, and what we agree on with the kernel. */
#include "fsd/fs.h"

enum { MAX_WRITE = 1 << 20, MAX_BACKGROUND = 64 };

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
    conn->want |= conn->capable & (FUSE_CAP_EXPORT_SUPPORT | FUSE_CAP_AUTO_INVAL_DATA |
                                   FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ATOMIC_O_TRUNC);
    /* With a writeback cache the kernel would believe its own size and mtime of every regular file, and the
     * generated ones could never change. */
    conn->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
    /* Each message is read(2) whole: channel.c looks at its head, and splicing was no faster.  Answers with
     * pages of a file are: twice as fast as through a buffer. */
    conn->want &= ~(unsigned)FUSE_CAP_SPLICE_READ;
    conn->want |= conn->capable & FUSE_CAP_SPLICE_WRITE;
    conn->max_write = MAX_WRITE;
    conn->max_background = MAX_BACKGROUND;
    conn->congestion_threshold = MAX_BACKGROUND * 3 / 4;
    conn->time_gran = 1;
}

/* Left out on purpose: access (default_permissions), locks (the kernel's own), ioctl, poll, bmap.
 * tmpfile comes as create (channel.h). */
const struct fuse_lowlevel_ops fs_ops = {
    .init = op_init,
    .lookup = fs_op_lookup,
    .forget = fs_op_forget,
    .forget_multi = fs_op_forget_multi,
    .getattr = fs_op_getattr,
    .setattr = fs_op_setattr,
    .readlink = fs_op_readlink,
    .mknod = fs_op_mknod,
    .mkdir = fs_op_mkdir,
    .unlink = fs_op_unlink,
    .rmdir = fs_op_rmdir,
    .symlink = fs_op_symlink,
    .rename = fs_op_rename,
    .link = fs_op_link,
    .open = fs_op_open,
    .create = fs_op_create,
    .read = fs_op_read,
    .write_buf = fs_op_write_buf,
    .flush = fs_op_flush,
    .release = fs_op_release,
    .fsync = fs_op_fsync,
    .opendir = fs_op_opendir,
    .readdir = fs_op_readdir,
    .readdirplus = fs_op_readdirplus,
    .releasedir = fs_op_releasedir,
    .fsyncdir = fs_op_fsyncdir,
    .statfs = fs_op_statfs,
    .setxattr = fs_op_setxattr,
    .getxattr = fs_op_getxattr,
    .listxattr = fs_op_listxattr,
    .removexattr = fs_op_removexattr,
    .fallocate = fs_op_fallocate,
    .copy_file_range = fs_op_copy_file_range,
    .lseek = fs_op_lseek,
};
