/* Devices: the CPU, or a GPU through dtx_cuda.so, which is loaded here so that one binary serves both. */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/ops.h"

typedef int cuda_open_fn(int index, struct op_dev **out, const struct dtx_ops **ops, struct dtx_err *e);
typedef int cuda_count_fn(void);
typedef uint64_t cuda_layout_fn(void);

/* The library beside the program; where there is none, by the loader's path.  One that is there and cannot be
 * loaded (cuBLAS is missing) says why: dlerror tells of the last that was tried. */
static void *cuda_library(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 32);
    void *lib = NULL;
    if (n > 0) {
        path[n] = 0;
        char *slash = strrchr(path, '/');
        if (slash) {
            strcpy(slash + 1, "dtx_cuda.so");
            lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
            if (!lib && access(path, F_OK) == 0)
                return NULL;
        }
    }
    return lib ? lib : dlopen("dtx_cuda.so", RTLD_NOW | RTLD_LOCAL);
}

int dtx_cuda_count(void)
{
    void *lib = cuda_library();
    cuda_count_fn *count = lib ? (cuda_count_fn *)dlsym(lib, "dtx_cuda_ops_count") : NULL;
    int n = count ? count() : 0;
    if (lib)
        dlclose(lib);
    return n < 0 ? 0 : n;
}

static int open_cuda(struct dtx_device *d, const char *number, struct dtx_err *e)
{
    char *end = NULL;
    long index = strtol(number, &end, 10);
    if (end == number || *end || index < 0 || index > 1023)
        return dtx_fail(e, -EINVAL, "device \"cuda:%s\": expected cuda:N with N from 0", number);
    setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 0); /* N is nvidia-smi's; else the fastest would be 0 */
    d->library = cuda_library();
    cuda_open_fn *open = d->library ? (cuda_open_fn *)dlsym(d->library, "dtx_cuda_ops_open") : NULL;
    if (!open) {
        const char *why = dlerror();
        return dtx_fail(e, -ENODEV, "device cuda:%ld: dtx_cuda.so cannot be loaded (%s)", index,
                        why ? why : "no symbol");
    }
    cuda_layout_fn *layout = (cuda_layout_fn *)dlsym(d->library, "dtx_cuda_ops_layout");
    if (!layout || layout() != ops_layout())
        return dtx_fail(
            e, -ENODEV,
            "device cuda:%ld: dtx_cuda.so is of another version of DTX: build it again (make cuda)", index);
    return open((int)index, &d->dev, &d->ops, e);
}

int dtx_device_open(const char *kind, int threads, struct dtx_device **out, struct dtx_err *e)
{
    struct dtx_device *d = calloc(1, sizeof *d);
    if (!d)
        return dtx_fail(e, -ENOMEM, "device %s: out of memory", kind);
    int rc;
    if (strcmp(kind, "cpu") == 0)
        rc = cpu_ops_open(threads, &d->dev, &d->ops, e);
    else if (strncmp(kind, "cuda:", 5) == 0)
        rc = open_cuda(d, kind + 5, e);
    else
        rc = dtx_fail(e, -EINVAL, "device \"%s\": expected cpu or cuda:N", kind);
    if (rc < 0) {
        if (d->library)
            dlclose(d->library);
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void dtx_device_close(struct dtx_device *d)
{
    if (!d)
        return;
    d->ops->close(d->dev);
    if (d->library)
        dlclose(d->library);
    free(d);
}

void dtx_device_info(const struct dtx_device *d, struct dtx_device_info *info)
{
    d->ops->info(d->dev, info);
}

int dtx_device_failed(const struct dtx_device *d, struct dtx_err *e)
{
    int rc = d->ops->sync(d->dev);
    return rc < 0 ? dtx_fail(e, rc, "device: %s", d->ops->error(d->dev)) : 0;
}
