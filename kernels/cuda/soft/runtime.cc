/* The runtime of the device in software: memory, streams (what is put into one is done at once), graphs, events. */
#include <cuda.h>
#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <unordered_map>

#include "kernels/cuda/soft/machine.h"

enum { MULTIPROCESSORS = 3, SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10 };
static const size_t MEMORY = (size_t)16 << 30;

struct soft_graph {
    std::vector<std::function<void()>> work;
};

struct soft_stream {
    soft_graph *captured; /* NULL: what is enqueued is done */
};

struct soft_event {
    std::chrono::steady_clock::time_point at;
};

static std::atomic<cudaError_t> last_error; /* of all threads of the host */

cudaError_t soft_fail(cudaError_t rc)
{
    last_error = rc;
    return rc;
}

cudaError_t cudaGetLastError()
{
    return last_error.exchange(cudaSuccess);
}

const char *cudaGetErrorString(cudaError_t rc)
{
    return rc == cudaSuccess                 ? "no error"
           : rc == cudaErrorInvalidValue     ? "invalid argument"
           : rc == cudaErrorMemoryAllocation ? "out of memory"
           : rc == cudaErrorNotSupported     ? "operation not supported"
                                             : "unknown error";
}

/* ---- the device ---- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    return device == 0 ? cudaSuccess : soft_fail(cudaErrorInvalidValue);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    *p = {};
    snprintf(p->name, sizeof(p->name), "software");
    p->major = 9;
    p->multiProcessorCount = MULTIPROCESSORS;
    p->l2CacheSize = 50 << 20;
    p->totalGlobalMem = MEMORY;
    p->sharedMemPerBlockOptin = SHARED_MOST;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    return cudaRuntimeGetVersion(version);
}

static CUresult encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *base, const cuuint64_t *size,
                       const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps, CUtensorMapInterleave,
                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill)
{
    soft_map m = {(char *)base, (int64_t)size[0], (int64_t)size[1], (int64_t)strides[0], (int)box[0], (int)box[1]};
    static_assert(sizeof(m) <= sizeof(*map), "fits");
    if (type != CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 || rank != 2 || (uintptr_t)base % 16 || strides[0] % 16 ||
        box[1] == 0 || box[1] > 256 || steps[0] != 1 || steps[1] != 1 || !size[0] || !size[1] ||
        swizzle < CU_TENSOR_MAP_SWIZZLE_32B || box[0] * 2 != 16u << swizzle)
        return CUDA_ERROR_INVALID_VALUE;
    memset(map, 0, sizeof(*map));
    memcpy(map, &m, sizeof(m));
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found)
{
    if (strcmp(name, "cuTensorMapEncodeTiled"))
        return soft_fail(cudaErrorInvalidValue);
    *f = (void *)encode;
    *found = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

/* ---- memory: new memory is full of NaN, and so is what lies behind it, which nobody may write ---- */

enum { RED = 256 };

static std::mutex mu; /* protects what follows */
static std::map<void *, size_t> sizes;
static size_t used, reserved;
static std::unordered_map<const void *, int> shared_of;

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    std::lock_guard<std::mutex> lock(mu);
    *free_bytes = MEMORY - reserved;
    *total = MEMORY;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int)
{
    *pool = 0;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *)
{
    return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value)
{
    std::lock_guard<std::mutex> lock(mu);
    *(uint64_t *)value = reserved;
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t)
{
    std::lock_guard<std::mutex> lock(mu);
    if (bytes > MEMORY - used || posix_memalign(p, 256, bytes + SOFT_RED_ZONE(RED)))
        return soft_fail(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes + SOFT_RED_ZONE(RED));
    sizes[*p] = bytes;
    used += bytes;
    reserved = used > reserved ? used : reserved;
    return cudaSuccess;
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t)
{
    std::lock_guard<std::mutex> lock(mu);
    auto at = sizes.find(p);
    if (at == sizes.end())
        return soft_fail(cudaErrorInvalidValue);
    if (!soft_untouched((unsigned char *)p + at->second, SOFT_RED_ZONE(RED)))
        soft_die("something was written behind an allocation of %zu bytes", at->second);
    used -= at->second;
    sizes.erase(at);
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    *p = malloc(bytes);
    return *p ? cudaSuccess : soft_fail(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream)
{
    soft_enqueue(stream, [=] { memcpy(to, from, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream)
{
    soft_enqueue(stream, [=] { memset(p, value, bytes); });
    return cudaSuccess;
}

cudaError_t soft_allow_shared(const void *kernel, int bytes)
{
    std::lock_guard<std::mutex> lock(mu);
    if (bytes > SHARED_MOST)
        return soft_fail(cudaErrorInvalidValue);
    shared_of[kernel] = bytes;
    return cudaSuccess;
}

size_t soft_shared_allowed(const void *kernel)
{
    std::lock_guard<std::mutex> lock(mu);
    auto at = shared_of.find(kernel);
    return at == shared_of.end() || at->second < SHARED_DEFAULT ? (size_t)SHARED_DEFAULT : (size_t)at->second;
}

/* ---- streams, graphs, events ---- */

void soft_enqueue(cudaStream_t stream, std::function<void()> work)
{
    if (stream && stream->captured)
        stream->captured->work.push_back(std::move(work));
    else
        work();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new soft_stream();
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t)
{
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode)
{
    stream->captured = new soft_graph();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = stream->captured;
    stream->captured = NULL;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = new soft_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    for (const std::function<void()> &work : exec->work)
        soft_enqueue(stream, work);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    return cudaGraphDestroy(exec);
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    *event = new soft_event();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    return cudaEventCreate(event);
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t)
{
    event->at = std::chrono::steady_clock::now();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t)
{
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end)
{
    *ms = std::chrono::duration<float, std::milli>(end->at - begin->at).count();
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}
