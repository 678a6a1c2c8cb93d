/* What the fuzz targets share: one input, and a folder in memory-backed storage to put it into. */
#ifndef DTX_FUZZ_H
#define DTX_FUZZ_H

#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The folder of this process, made on first use and removed at exit. */
static char fuzz_path[64];
static int fuzz_fd = -1;

static void fuzz_remove(void)
{
    close(fuzz_fd);
    fd_remove_tree(AT_FDCWD, fuzz_path, NULL);
}

static inline int fuzz_dir(void)
{
    if (fuzz_fd >= 0)
        return fuzz_fd;
    snprintf(fuzz_path, sizeof(fuzz_path), "%s/dtx-fuzz-XXXXXX",
             access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(fuzz_path))
        abort();
    fuzz_fd = open(fuzz_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fuzz_fd < 0 || atexit(fuzz_remove))
        abort();
    return fuzz_fd;
}

static inline void fuzz_put(const char *name, const void *data, size_t n)
{
    int fd = openat(fuzz_dir(), name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

    if (fd < 0 || fd_write_all(fd, data, n) || close(fd))
        abort();
}

/* A promise of the code under test that did not hold. */
#define FUZZ_ASSERT(x)                                                                                       \
    do {                                                                                                     \
        if (!(x)) {                                                                                          \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

#endif
