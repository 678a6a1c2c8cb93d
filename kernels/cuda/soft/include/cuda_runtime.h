/* Stands in for CUDA's header on the device in software (soft.h): the part of the language and of the runtime that
 * kernels/cuda uses. */
#ifndef DTX_SOFT_CUDA_RUNTIME_H
#define DTX_SOFT_CUDA_RUNTIME_H

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/soft/soft.h"

/* ---- the language ---- */

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
/* All threads of a block run on one thread of the host, and only one block at a time. */
#define __shared__ static thread_local

typedef soft_uint3 uint3;
struct dim3 : soft_uint3 {
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : soft_uint3{x, y, z}
    {
    }
};

struct int3 {
    int x, y, z;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) int4 {
    int32_t x, y, z, w;
};

static inline int3 make_int3(int x, int y, int z)
{
    return {x, y, z};
}
static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w)
{
    return {x, y, z, w};
}
static inline uint2 make_uint2(uint32_t x, uint32_t y)
{
    return {x, y};
}
static inline float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y)
{
    return {x, y};
}

#define threadIdx (soft_now->index)
#define blockIdx  (soft_now->block->index)

/* These are names of fields, too. */
template <soft_uint3 soft_launch::*DIM> struct soft_dim {
    struct {
        operator unsigned() const
        {
            return (soft_running->*DIM).x;
        }
    } x;
    struct {
        operator unsigned() const
        {
            return (soft_running->*DIM).y;
        }
    } y;
    struct {
        operator unsigned() const
        {
            return (soft_running->*DIM).z;
        }
    } z;
};
static const soft_dim<&soft_launch::block> blockDim = {};
static const soft_dim<&soft_launch::grid> gridDim = {};

using std::isfinite;
using std::isnan;
using std::max;
using std::min;
static inline unsigned min(unsigned a, int b)
{
    return a < (unsigned)b ? a : (unsigned)b;
}

/* ---- functions of the device ---- */

#define __expf expf /* which the C library declares for itself */

static inline void __syncthreads()
{
    soft_barrier(0, 0);
}

static inline void __syncwarp(unsigned = ~0u)
{
    soft_show(NULL, 0);
}

template <typename T> static inline T soft_of_lane(T mine, unsigned lane)
{
    T v;
    memcpy(&v, soft_show(&mine, sizeof(T)) + lane % 32 * 64, sizeof(T));
    return v;
}

template <typename T> static inline T __shfl_xor_sync(unsigned, T v, int mask)
{
    return soft_of_lane(v, threadIdx.x % 32 ^ (unsigned)mask);
}

template <typename T> static inline T __shfl_sync(unsigned, T v, int lane)
{
    return soft_of_lane(v, (unsigned)lane);
}

template <typename T> static inline T __shfl_up_sync(unsigned, T v, unsigned by)
{
    unsigned lane = threadIdx.x % 32;
    return soft_of_lane(v, lane < by ? lane : lane - by);
}

static inline unsigned __ballot_sync(unsigned, bool mine)
{
    const unsigned char *all = soft_show(&mine, 1);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++)
        bits |= (unsigned)all[i * 64] << i;
    return bits;
}

template <typename T, typename V> static inline T atomicAdd(T *p, V v)
{
    return __atomic_fetch_add(p, (T)v, __ATOMIC_SEQ_CST);
}

static inline float rsqrtf(float x)
{
    return 1.f / sqrtf(x);
}

static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}

static inline float __uint_as_float(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t __float_as_uint(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

template <typename T> static inline T __ldcs(const T *p)
{
    return *p;
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

static inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector)
{
    uint64_t both = (uint64_t)b << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++)
        r |= (uint32_t)(both >> ((selector >> 4 * i & 7) * 8) & 0xff) << 8 * i;
    return r;
}

/* ---- the runtime ---- */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue,
    cudaErrorMemoryAllocation,
    cudaErrorInitializationError,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaEnableDefault = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4, cudaMemPoolAttrReservedMemCurrent };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum cudaLaunchAttributeID {
    cudaLaunchAttributeCooperative = 2,
    cudaLaunchAttributeClusterDimension = 4,
    cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };

struct soft_stream;
struct soft_event;
struct soft_graph;
typedef soft_stream *cudaStream_t;
typedef soft_event *cudaEvent_t;
typedef soft_graph *cudaGraph_t, *cudaGraphExec_t;
typedef int cudaMemPool_t;

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
        int cooperative, programmaticStreamSerializationAllowed;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute *attrs;
    unsigned numAttrs;
};

struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, l2CacheSize;
    size_t totalGlobalMem, sharedMemPerBlockOptin;
};

cudaError_t cudaGetLastError();
const char *cudaGetErrorString(cudaError_t rc);
cudaError_t cudaGetDeviceCount(int *n);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
                                             cudaDriverEntryPointQueryResult *found);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total);
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device);
cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value);
cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute, void *value);
cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t stream);
cudaError_t cudaFreeAsync(void *p, cudaStream_t stream);
cudaError_t cudaMallocHost(void **p, size_t bytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream);
cudaError_t cudaMemsetAsync(void *p, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);

/* Does it now, or keeps it where the stream is being captured. */
void soft_enqueue(cudaStream_t stream, std::function<void()> work);
cudaError_t soft_fail(cudaError_t rc);
/* What the kernel was allowed; the hardware's limit without that is 48 KiB. */
size_t soft_shared_allowed(const void *kernel);
cudaError_t soft_allow_shared(const void *kernel, int bytes);

template <typename F> static inline cudaError_t cudaFuncSetAttribute(F *kernel, cudaFuncAttribute, int value)
{
    return soft_allow_shared((const void *)kernel, value);
}

template <typename F> static inline cudaError_t cudaOccupancyMaxActiveClusters(int *n, F *, const cudaLaunchConfig_t *)
{
    *n = 2;
    return cudaSuccess;
}

template <typename... P, typename... A>
static inline cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *c, void (*kernel)(P...), A &&...args)
{
    soft_launch l = {c->gridDim, c->blockDim, c->dynamicSmemBytes, 1, false, {}};
    for (unsigned i = 0; i < c->numAttrs; i++) {
        if (c->attrs[i].id == cudaLaunchAttributeClusterDimension)
            l.cluster = (int)c->attrs[i].val.clusterDim.x;
        if (c->attrs[i].id == cudaLaunchAttributeCooperative)
            l.together = c->attrs[i].val.cooperative;
    }
    if (l.shared_bytes > soft_shared_allowed((const void *)kernel) || !l.block.x ||
        l.block.x * l.block.y * l.block.z > 1024 || l.grid.y > 65535 || l.grid.z > 65535)
        return soft_fail(cudaErrorInvalidValue);
    l.body = [kernel, args...] { kernel(P(args)...); };
    soft_enqueue(c->stream, [l] { soft_run(l); });
    return cudaSuccess;
}

#endif
