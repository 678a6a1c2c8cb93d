/*
 * A VFS for SQLite whose calls fail when told to: open, write, truncate, sync, delete and read are counted,
 * and the Nth fails (FAULT_ONCE), or the Nth and all after it until fault_clear() (FAULT_UNTIL_CLEARED).
 *
 *   fault_install();                       once: becomes the default VFS
 *   fault_arm(7, FAULT_ONCE, ENOSPC);      from now on; the counts start at 0
 *   ...                                    fault.calls, fault.injected, fault.wal_writes (of those injected)
 *   fault_clear();
 */
#ifndef TESTS_FAULT_VFS_H
#define TESTS_FAULT_VFS_H

#include <errno.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum fault_mode { FAULT_ONCE, FAULT_UNTIL_CLEARED };

static struct {
    atomic_int calls, injected, wal_writes, nth; /* nth 0: nothing fails */
    enum fault_mode mode;
    int error;
    sqlite3_vfs *real, vfs;
    sqlite3_io_methods methods;
} fault;

struct fault_file {
    sqlite3_file base;
    bool wal;
    sqlite3_file *real; /* lies behind this struct */
};

static bool fault_now(void)
{
    int n = atomic_fetch_add(&fault.calls, 1) + 1, nth = atomic_load(&fault.nth);

    if (!nth || (fault.mode == FAULT_ONCE ? n != nth : n < nth))
        return false;
    atomic_fetch_add(&fault.injected, 1);
    return true;
}

static sqlite3_file *fault_real(sqlite3_file *f)
{
    return ((struct fault_file *)f)->real;
}

static int fault_close(sqlite3_file *f)
{
    return fault_real(f)->pMethods ? fault_real(f)->pMethods->xClose(fault_real(f)) : SQLITE_OK;
}

static int fault_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
    return fault_now() ? SQLITE_IOERR_READ : fault_real(f)->pMethods->xRead(fault_real(f), p, n, at);
}

static int fault_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
    if (!fault_now())
        return fault_real(f)->pMethods->xWrite(fault_real(f), p, n, at);
    if (((struct fault_file *)f)->wal)
        atomic_fetch_add(&fault.wal_writes, 1);
    if (n > 1 && fault.error == ENOSPC) /* as a full disk does: some of it may still fit */
        fault_real(f)->pMethods->xWrite(fault_real(f), p, n / 2, at);
    return fault.error == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static int fault_truncate(sqlite3_file *f, sqlite3_int64 n)
{
    return fault_now() ? SQLITE_IOERR_TRUNCATE : fault_real(f)->pMethods->xTruncate(fault_real(f), n);
}

static int fault_sync(sqlite3_file *f, int flags)
{
    return fault_now() ? SQLITE_IOERR_FSYNC : fault_real(f)->pMethods->xSync(fault_real(f), flags);
}

static int fault_size(sqlite3_file *f, sqlite3_int64 *n)
{
    return fault_real(f)->pMethods->xFileSize(fault_real(f), n);
}

static int fault_lock(sqlite3_file *f, int level)
{
    return fault_real(f)->pMethods->xLock(fault_real(f), level);
}

static int fault_unlock(sqlite3_file *f, int level)
{
    return fault_real(f)->pMethods->xUnlock(fault_real(f), level);
}

static int fault_reserved(sqlite3_file *f, int *out)
{
    return fault_real(f)->pMethods->xCheckReservedLock(fault_real(f), out);
}

static int fault_control(sqlite3_file *f, int op, void *arg)
{
    return fault_real(f)->pMethods->xFileControl(fault_real(f), op, arg);
}

static int fault_sector(sqlite3_file *f)
{
    return fault_real(f)->pMethods->xSectorSize(fault_real(f));
}

static int fault_device(sqlite3_file *f)
{
    return fault_real(f)->pMethods->xDeviceCharacteristics(fault_real(f));
}

static int fault_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out)
{
    if (extend && fault_now())
        return SQLITE_IOERR_SHMSIZE;
    return fault_real(f)->pMethods->xShmMap(fault_real(f), page, size, extend, out);
}

static int fault_shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
    return fault_real(f)->pMethods->xShmLock(fault_real(f), offset, n, flags);
}

static void fault_shm_barrier(sqlite3_file *f)
{
    fault_real(f)->pMethods->xShmBarrier(fault_real(f));
}

static int fault_shm_unmap(sqlite3_file *f, int remove)
{
    return fault_real(f)->pMethods->xShmUnmap(fault_real(f), remove);
}

static int fault_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out)
{
    struct fault_file *p = (struct fault_file *)f;
    int rc;

    p->base.pMethods = NULL;
    p->real = (sqlite3_file *)(p + 1);
    p->wal = (flags & SQLITE_OPEN_WAL) != 0;
    if (fault_now())
        return SQLITE_CANTOPEN;
    rc = fault.real->xOpen(fault.real, name, p->real, flags, out);
    if (p->real->pMethods)
        p->base.pMethods = &fault.methods;
    return rc;
}

static int fault_delete(sqlite3_vfs *v, const char *name, int sync)
{
    return fault_now() ? SQLITE_IOERR_DELETE : fault.real->xDelete(fault.real, name, sync);
}

static inline void fault_install(void)
{
    if (fault.real)
        return;
    fault.real = sqlite3_vfs_find(NULL);
    fault.vfs = *fault.real;
    fault.vfs.zName = "fault";
    fault.vfs.pNext = NULL;
    fault.vfs.szOsFile = (int)sizeof(struct fault_file) + fault.real->szOsFile;
    fault.vfs.xOpen = fault_open;
    fault.vfs.xDelete = fault_delete;
    fault.methods = (sqlite3_io_methods){
        .iVersion = 2,
        .xClose = fault_close,
        .xRead = fault_read,
        .xWrite = fault_write,
        .xTruncate = fault_truncate,
        .xSync = fault_sync,
        .xFileSize = fault_size,
        .xLock = fault_lock,
        .xUnlock = fault_unlock,
        .xCheckReservedLock = fault_reserved,
        .xFileControl = fault_control,
        .xSectorSize = fault_sector,
        .xDeviceCharacteristics = fault_device,
        .xShmMap = fault_shm_map,
        .xShmLock = fault_shm_lock,
        .xShmBarrier = fault_shm_barrier,
        .xShmUnmap = fault_shm_unmap,
    };
    sqlite3_vfs_register(&fault.vfs, 1);
}

static inline void fault_arm(int nth, enum fault_mode mode, int error)
{
    fault.mode = mode;
    fault.error = error;
    atomic_store(&fault.calls, 0);
    atomic_store(&fault.injected, 0);
    atomic_store(&fault.wal_writes, 0);
    atomic_store(&fault.nth, nth);
}

static inline void fault_clear(void)
{
    atomic_store(&fault.nth, 0);
}

#endif
