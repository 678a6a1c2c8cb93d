/* Experiment: the layers of a decode step in one kernel (decode_stream.cu) beside the kernels one by one, to the bit and in time.
 * nvcc -std=c++17 -O3 -I. -gencode arch=compute_90a,code=sm_90a [-DSTREAM_PROF] -DSTREAM_TRAP [-DSTREAM_BULK] -o /tmp/bench
 *   tests/gpu/decode_stream_bench.cu kernels/cuda/decode.cu kernels/cuda/decode_layer.cu kernels/cuda/decode_stream.cu
 * DTX_CUDA_STREAM=1 /tmp/bench check | bench old | short.  Equal bits need PREPARE_THREADS = 256 in decode_layer.cu. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode_stream.cuh"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cstdarg>
#include <cmath>
#include <vector>
void dev_fail(op_dev *d, cudaError_t rc, const char *what)
{
    if (rc != cudaSuccess && d->status == cudaSuccess) { d->status = rc; printf("FAIL %s: %s\n", what, cudaGetErrorString(rc)); fflush(stdout); }
}
int trace_begin(op_dev *, const char *, ...) { return -1; }
void trace_end(op_dev *, int) {}
void *dev_alloc(op_dev *d, size_t n) { void *p = NULL; DEV_CHECK(d, cudaMalloc(&p, n)); return p; }
void dev_free(op_dev *, void *p) { cudaFree(p); }
__global__ void fill(bf16 *p, size_t n, float scale, float mid, uint32_t seed)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 2654435761u ^ seed * 0x9e3779b9u ^ (uint32_t)(i >> 32);
        x ^= x >> 16; x *= 0x85ebca6bu; x ^= x >> 13; x *= 0xc2b2ae35u; x ^= x >> 16;
        p[i] = __float2bfloat16(mid + scale * ((float)x / 2147483648.f - 1.f));
    }
}
static uint32_t seed = 1;
static bf16 *rnd(size_t n, float scale, float mid = 0) { bf16 *p; if (cudaMalloc(&p, n * 2) != cudaSuccess) { printf("oom\n"); exit(1); } fill<<<1024, 256>>>(p, n, scale, mid, seed++); return p; }
__global__ void rope_fill(float *t, int pos, int dim) { for (int i = threadIdx.x; i < dim / 2; i += blockDim.x) { float f = blockIdx.x * powf(10000.f, -2.f * i / dim); t[blockIdx.x * dim + i] = cosf(f); t[blockIdx.x * dim + dim / 2 + i] = sinf(f); } }
struct shape { const char *name; int H, F, heads, kvh, dim; bool bias; };
struct sys {
    op_dev d = {}; shape s; int sets, layers, rows, rank; std::vector<op_layer> l;
    lora_dims dims; cuda_pack c = {}; op_pack p = {}; int cap = 1024; std::vector<int> pos;
    bf16 *x0, *x; std::vector<bf16*> kv, kv0; size_t kvn; float *partial; int slices; bf16 *logits=NULL;
};
static void make(sys &y, shape s, int sets, int layers, int rows, int rank, int ctx, bool mixed)
{
    y.s = s; y.sets = sets; y.layers = layers; y.rows = rows; y.rank = rank;
    int Q = s.heads * s.dim, KV = s.kvh * s.dim, LD = Q + 2 * KV, hr = (rank + 15) / 16 * 16;
    op_dev *d = &y.d;
    cudaDeviceProp prop; cudaGetDeviceProperties(&prop, 0);
    if (!d->stream) { cudaStreamCreate(&d->stream); d->overlap = true; d->shared_bytes = prop.sharedMemPerBlockOptin; decode_setup(d); stream_setup(d); }
    if (getenv("BENCH_SHARED")) d->shared_bytes = atoi(getenv("BENCH_SHARED"));
    y.dims.layers = layers;
    int in[7], out[7];
    in[DTX_Q] = in[DTX_K] = in[DTX_V] = in[DTX_GATE] = in[DTX_UP] = s.H; in[DTX_O] = Q; in[DTX_DOWN] = s.F;
    out[DTX_Q] = Q; out[DTX_K] = out[DTX_V] = KV; out[DTX_O] = s.H; out[DTX_GATE] = out[DTX_UP] = s.F; out[DTX_DOWN] = s.H;
    for (int t = 0; t < 7; t++) { y.dims.in[t] = in[t]; y.dims.out[t] = out[t]; }
    std::vector<dev_adapter> ads(rows);
    for (int r = 0; r < rows; r++) {
        dev_adapter a = {};
        int rk = mixed ? (r % 4 == 1 ? 0 : r % 4 == 2 ? 4 : r % 4 == 3 ? 19 : rank) : rank;
        if (rk > rank) rk = rank;
        uint32_t targets = mixed ? (r % 4 == 2 ? 0x5 : r % 4 == 3 ? 0x6a : 0x7f) : 0x7f;
        if (rk) {
            a.rank = rk; a.targets = targets; a.scale = 1.5f; a.keep = 1;
            a.layer_floats = lora_layer_floats(&y.dims, targets, rk);
            for (int t = 0; t < 7; t++) a.offset[t] = lora_offset(&y.dims, targets, rk, 0, t);
            a.shadow = rnd((size_t)layers * a.layer_floats + 64, 0.02f);
        }
        ads[r] = a;
    }
    std::vector<op_seq> seqs(rows);
    y.kvn = (size_t)layers * 2 * y.cap * KV;
    y.pos.resize(rows); y.kv.clear();
    for (int r = 0; r < rows; r++) {
        y.pos[r] = mixed ? (r * 97 + 3) % 700 : ctx;
        seqs[r] = {}; seqs[r].row0 = r; seqs[r].rows = 1; seqs[r].seg = r; seqs[r].pos0 = y.pos[r]; seqs[r].kv_cap = y.cap;
        seqs[r].kv = rnd(y.kvn, 1.f); y.kv.push_back((bf16 *)seqs[r].kv);
    }
    cudaMalloc(&y.c.row_adapters, rows * sizeof(dev_adapter)); cudaMemcpy(y.c.row_adapters, ads.data(), rows * sizeof(dev_adapter), cudaMemcpyHostToDevice);
    cudaMalloc(&y.c.seqs, rows * sizeof(op_seq)); cudaMemcpy(y.c.seqs, seqs.data(), rows * sizeof(op_seq), cudaMemcpyHostToDevice);
    int longest = 0; for (int v : y.pos) longest = v + 1 > longest ? v + 1 : longest;
    y.slices = 1; while (y.slices * DECODE_SLICE < longest) y.slices *= 2;
    cudaMalloc(&y.partial, (size_t)rows * s.heads * y.slices * (2 + s.dim) * 4);
    y.c.partial = y.partial; y.c.slices_cached = y.slices;
    y.p.rows = y.p.n_seqs = y.p.n_segs = rows; y.p.decode = true; y.p.n_adapters = rank ? rows : 0; y.p.max_rank = rank; y.p.dims = &y.dims; y.p.dev = &y.c;
    float *rope; cudaMalloc(&rope, (size_t)y.cap * s.dim * 4); rope_fill<<<y.cap, 64>>>(rope, y.cap, s.dim);
    y.x0 = rnd((size_t)rows * s.H, 1.f); y.x = rnd((size_t)rows * s.H, 1.f);
    op_layer b = {};
    b.attention = {s.heads, s.kvh, s.dim, layers, 0, 1.f / sqrtf(s.dim)};
    b.rope = rope; b.eps = 1e-5f; b.x = y.x; b.x_out = y.x;
    b.xn = rnd((size_t)rows * s.H, 1); b.qkv_y = rnd((size_t)rows * LD, 1); b.o = rnd((size_t)rows * Q, 1); b.x2 = rnd((size_t)rows * s.H, 1);
    b.gu = rnd((size_t)rows * 2 * s.F, 1); b.a = rnd((size_t)rows * s.F, 1);
    float **h[4] = {&b.h_qkv, &b.h_out, &b.h_gate_up, &b.h_down};
    for (auto q : h) *q = (float *)rnd((size_t)rows * 3 * (hr + 16), 1);
    b.qkv.in = s.H; b.qkv.out = LD; b.qkv.n_parts = 3; b.qkv.part[0] = {DTX_Q, 0, Q}; b.qkv.part[1] = {DTX_K, Q, KV}; b.qkv.part[2] = {DTX_V, Q + KV, KV};
    b.out.in = Q; b.out.out = s.H; b.out.n_parts = 1; b.out.part[0] = {DTX_O, 0, s.H};
    b.gate_up.in = s.H; b.gate_up.out = 2 * s.F; b.gate_up.n_parts = 2; b.gate_up.part[0] = {DTX_GATE, 0, s.F}; b.gate_up.part[1] = {DTX_UP, s.F, s.F};
    b.down.in = s.F; b.down.out = s.H; b.down.n_parts = 1; b.down.part[0] = {DTX_DOWN, 0, s.H};
    y.l.clear();
    std::vector<op_layer> set;
    for (int i = 0; i < sets; i++) {
        op_layer k = b;
        k.qkv.W = rnd((size_t)LD * s.H, 1.7f / sqrtf(s.H)); k.out.W = rnd((size_t)s.H * Q, 1.7f / sqrtf(Q));
        k.gate_up.W = rnd((size_t)2 * s.F * s.H, 1.7f / sqrtf(s.H)); k.down.W = rnd((size_t)s.H * s.F, 1.7f / sqrtf(s.F));
        k.norm1 = rnd(s.H, 0.2f, 1); k.norm2 = rnd(s.H, 0.2f, 1);
        if (s.bias) k.qkv.bias = rnd(LD, 0.5f);
        set.push_back(k);
    }
    for (int i = 0; i < layers; i++) { op_layer k = set[i % sets]; k.attention.layer = k.qkv.layer = k.out.layer = k.gate_up.layer = k.down.layer = i; y.l.push_back(k); }
    stream_need(d, rows, s.heads);
    cudaDeviceSynchronize();
}
static void go(sys &y, bool neu, int layers)
{
    if (neu) stream_layers(&y.d, &y.p, y.l.data(), layers, NULL, y.partial, y.slices);
    else for (int i = 0; i < layers; i++) cu_decode_layer(&y.d, &y.p, &y.l[i]);
}
static std::vector<float> result(sys &y, bool neu, int layers)
{
    size_t n = (size_t)y.rows * y.s.H;
    cudaMemcpy(y.x, y.x0, n * 2, cudaMemcpyDeviceToDevice);
    go(y, neu, layers);
    std::vector<uint16_t> h(n);
    cudaError_t rc = cudaStreamSynchronize(y.d.stream);
    if (rc != cudaSuccess) { printf("%s: %s\n", neu ? "new" : "old", cudaGetErrorString(rc)); fflush(stdout); exit(3); }
    cudaMemcpy(h.data(), y.x, n * 2, cudaMemcpyDeviceToHost);
    std::vector<float> f(n);
    for (size_t i = 0; i < n; i++) { uint32_t u = (uint32_t)h[i] << 16; memcpy(&f[i], &u, 4); }
    return f;
}
static void compare(const char *what, const std::vector<float> &a, const std::vector<float> &b)
{
    double err = 0, ref = 0; size_t differ = 0, bad = 0;
    for (size_t i = 0; i < a.size(); i++) { double e = a[i] - b[i]; if (!(e == e)) bad++; else err += e * e; ref += (double)a[i] * a[i]; differ += memcmp(&a[i], &b[i], 4) != 0; }
    printf("  %-34s rel %.2e, differ %zu of %zu, nan %zu, rms %.3f\n", what, sqrt(err / ref), differ, a.size(), bad, sqrt(ref / a.size())); fflush(stdout);
}
#ifdef STREAM_PROF
void prof_print(int blocks);
#endif
static double timing(sys &y, bool neu)
{
    cudaGraph_t g = NULL; cudaGraphExec_t e = NULL; op_dev *d = &y.d;
    DEV_CHECK(d, cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal));
    go(y, neu, y.layers);
    DEV_CHECK(d, cudaStreamEndCapture(d->stream, &g));
    DEV_CHECK(d, cudaGraphInstantiate(&e, g, 0));
    bool eager = d->status != cudaSuccess;
    if (eager) { printf("  (eager launches)\n"); (void)cudaGetLastError(); d->status = cudaSuccess; }
    auto once = [&]() { if (eager) go(y, neu, y.layers); else cudaGraphLaunch(e, d->stream); };
    cudaEvent_t a, b; cudaEventCreate(&a); cudaEventCreate(&b);
    for (int i = 0; i < 5; i++) once();
    const int N = 30;
    cudaEventRecord(a, d->stream);
    for (int i = 0; i < N; i++) once();
    cudaEventRecord(b, d->stream);
    DEV_CHECK(d, cudaEventSynchronize(b));
    float ms; cudaEventElapsedTime(&ms, a, b);
    if (e) cudaGraphExecDestroy(e);
    return ms / N;
}
static double floor_bytes(const sys &y)
{
    const shape &s = y.s; int Q = s.heads * s.dim, KV = s.kvh * s.dim;
    double w = ((double)(Q + 2 * KV) * s.H + (double)s.H * Q + 3. * s.F * s.H) * 2;
    double a = y.rank ? 2. * y.rows * y.rank * (3. * s.H + Q + 2 * KV + Q + s.H + 2. * s.H + 2. * s.F + s.F + s.H) : 0, kv = 0;
    for (int p : y.pos) kv += 4. * KV * p;
    return y.layers * (w + a + kv);
}
static void bench(shape s, int sets, int layers, int rows, int rank, int ctx, bool old)
{
    sys y; make(y, s, sets, layers, rows, rank, ctx, false);
    double b = floor_bytes(y), o = old ? timing(y, false) : -1, n = timing(y, true);
    printf("%s rows %d rank %d ctx %d shared %d: old %.3f ms, new %.3f ms (%.0f GB/s), floor at 4257 %.3f (%.0f%%)\n", s.name, rows, rank, ctx, y.d.shared_bytes, o, n, b / n / 1e6, b / 4257e6, 100 * b / 4257e6 / n); fflush(stdout);
#ifdef STREAM_PROF
    prof_print(y.d.processors);
#endif
    if (getenv("KEEP")) return;
    for (auto *k : y.kv) cudaFree(k);
    for (int i = 0; i < sets; i++) { cudaFree((void *)y.l[i].qkv.W); cudaFree((void *)y.l[i].out.W); cudaFree((void *)y.l[i].gate_up.W); cudaFree((void *)y.l[i].down.W); }
}
static std::vector<float> host(const void *p, size_t n)
{
    std::vector<uint16_t> h(n); std::vector<float> f(n);
    cudaMemcpy(h.data(), p, n * 2, cudaMemcpyDeviceToHost);
    for (size_t i = 0; i < n; i++) { uint32_t u = (uint32_t)h[i] << 16; memcpy(&f[i], &u, 4); }
    return f;
}
static void parts(shape s, int rows, int rank)
{
    sys y; make(y, s, 1, 1, rows, rank, 200, false);
    printf("%s rows %d rank %d, one layer's parts\n", s.name, rows, rank);
    std::vector<float> r[2][6];
    int Q = s.heads * s.dim, LD = Q + 2 * s.kvh * s.dim, hr = (rank + 15) / 16 * 16; const op_layer &l = y.l[0];
    for (int i = 0; i < 2; i++) {
        auto x = result(y, i, 1);
        r[i][0] = host(l.h_qkv, 3 * rows * hr); r[i][1] = host(l.qkv_y, (size_t)rows * LD); r[i][2] = host(l.o, (size_t)rows * Q); r[i][3] = host(l.x2, (size_t)rows * s.H); r[i][4] = host(l.a, (size_t)rows * s.F); r[i][5] = x;
    }
    const char *n[] = {"h_qkv", "qkv", "o", "x2", "a", "x"};
    for (int k = rank ? 0 : 1; k < 6; k++) compare(n[k], r[0][k], r[1][k]);
}
static void check(shape s, int layers, int rows, int rank, bool mixed)
{
    sys y; make(y, s, layers, layers, rows, rank, 200, mixed);
    printf("%s rows %d rank %d layers %d\n", s.name, rows, rank, layers);
    auto o = result(y, false, layers), n = result(y, true, layers), again = result(y, true, layers);
    compare("new against old", o, n);
    compare("new again", n, again);
    /* a row alone, the last one */
    sys z = y; z.rows = 1; z.p.rows = z.p.n_seqs = z.p.n_segs = 1; z.p.n_adapters = rank ? 1 : 0;
    int last = rows - 1;
    z.c.seqs = y.c.seqs + last; z.c.row_adapters = y.c.row_adapters + last; z.p.dev = &z.c; z.p.dims = &z.dims; z.x0 = y.x0 + (size_t)last * s.H;
    op_seq q; cudaMemcpy(&q, z.c.seqs, sizeof q, cudaMemcpyDeviceToHost); q.row0 = 0; cudaMemcpy(z.c.seqs, &q, sizeof q, cudaMemcpyHostToDevice);
    auto one = result(z, true, layers);
    compare("last row alone", std::vector<float>(n.end() - s.H, n.end()), one);
}
int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    shape b7 = {"7b", 4096, 11008, 32, 32, 128, false}, b1 = {"1.1b", 2048, 5632, 32, 4, 64, false}, t1 = {"tiny", 256, 704, 4, 2, 64, true}, t2 = {"odd", 1056, 1504, 11, 1, 96, true}, t3 = {"h32", 512, 992, 16, 8, 32, true};
    const char *what = argc > 1 ? argv[1] : "check";
    if (!strcmp(what, "check")) {
        parts(t1, 1, 0); parts(t1, 2, 16); parts(b7, 1, 16); check(t1, 2, 1, 0, false); check(t1, 3, 5, 19, true); check(t2, 2, 8, 40, true); check(t3, 2, 13, 16, true); check(t2, 2, 21, 64, true); check(t1, 2, 41, 19, true);
        check(b7, 2, 1, 0, false); check(b7, 2, 1, 16, false); check(b7, 2, 8, 16, false); check(b7, 2, 16, 64, true); check(b1, 4, 3, 8, true); check(b1, 2, 9, 512, true);
    } else if (!strcmp(what, "short")) {
        bench(b7, 6, 32, 1, 0, 192, false); bench(b7, 6, 32, 1, 16, 192, false); bench(b7, 6, 32, 8, 16, 192, false);
    } else if (!strcmp(what, "bench")) {
        bool old = argc > 2;
        bench(b7, 6, 32, 1, 0, 192, old); bench(b7, 6, 32, 1, 16, 192, old); bench(b7, 6, 32, 8, 16, 192, old); bench(b7, 6, 32, 16, 16, 192, old);
        bench(b1, 22, 22, 1, 16, 192, old);
        if (old) { bench(b7, 6, 32, 1, 16, 900, old); bench(b7, 6, 32, 8, 64, 192, old); }
    }
    return 0;
}
