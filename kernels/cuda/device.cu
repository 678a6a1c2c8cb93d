/*
 * The device: opening, memory, uploads, packs, the linear operation, and the ops table.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/gemm_hopper.cuh"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>

extern "C" {
#include "kernels/rng.h"
#include "scheduler/base/err.h"
}

/* ---- errors and memory ---- */

void dev_fail(op_dev *d, cudaError_t rc, const char *what)
{
    if (rc == cudaSuccess || d->status != cudaSuccess)
        return;
    d->status = rc;
    snprintf(d->words, sizeof(d->words), "%s: %s", what, cudaGetErrorString(rc));
}

void *dev_alloc(op_dev *d, size_t bytes)
{
    void *p = NULL;
    cudaError_t rc = cudaMallocAsync(&p, bytes ? bytes : 1, d->stream);
    if (rc != cudaSuccess) {
        dev_fail(d, rc, "scratch memory");
        return NULL;
    }
    return p;
}

void dev_free(op_dev *d, void *p)
{
    if (p)
        DEV_CHECK(d, cudaFreeAsync(p, d->stream));
}

void *cu_alloc(op_dev *d, size_t bytes)
{
    void *p = NULL;
    cudaError_t rc = cudaMallocAsync(&p, bytes ? bytes : 1, d->stream);
    if (rc == cudaSuccess)
        return p;
    (void)cudaGetLastError();
    if (rc != cudaErrorMemoryAllocation) /* which is the caller's to answer, not a failed device */
        dev_fail(d, rc, "memory");
    return NULL;
}

static void cu_zero(op_dev *d, void *p, size_t bytes)
{
    DEV_CHECK(d, cudaMemsetAsync(p, 0, bytes, d->stream));
}

/* A piece of the pinned ring, safe to write now.  n <= STAGING_HALF. */
static char *staging_take(op_dev *d, size_t n)
{
    n = (n + 63) & ~(size_t)63;
    if (d->staging_used + n > STAGING_HALF) {
        DEV_CHECK(d, cudaEventRecord(d->staging_done[d->staging_half], d->stream));
        d->staging_half ^= 1;
        d->staging_used = 0;
        DEV_CHECK(d, cudaEventSynchronize(d->staging_done[d->staging_half]));
    }
    char *p = d->staging + (size_t)d->staging_half * STAGING_HALF + d->staging_used;
    d->staging_used += n;
    return p;
}

/* memcpy by several threads: one alone does not reach the speed of the bus, least of all from a mapped file. */
static void copy_wide(char *dst, const char *src, size_t n)
{
    enum { THREADS = 6, LEAST = 4 << 20 };
    std::thread helper[THREADS];
    size_t part = n < LEAST ? n : (n / THREADS + 4095) & ~(size_t)4095, at = part;
    int started = 0;

    for (; at < n; at += part) {
        size_t k = n - at < part ? n - at : part, from = at;
        try {
            helper[started] = std::thread([=] { memcpy(dst + from, src + from, k); });
            started++;
        } catch (const std::system_error &) { /* no thread to be had: here, then */
            memcpy(dst + from, src + from, k);
        }
    }
    memcpy(dst, src, part);
    for (int i = 0; i < started; i++)
        helper[i].join();
}

void dev_upload(op_dev *d, void *dst, const void *host, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < STAGING_HALF ? bytes - at : (size_t)STAGING_HALF;
        char *s = staging_take(d, n);
        copy_wide(s, (const char *)host + at, n);
        DEV_CHECK(d, cudaMemcpyAsync((char *)dst + at, s, n, cudaMemcpyHostToDevice, d->stream));
        at += n;
    }
}

static int cu_sync(op_dev *d)
{
    if (d->tracing)
        trace_collect(d);
    DEV_CHECK(d, cudaStreamSynchronize(d->stream));
    return d->status == cudaSuccess ? 0 : d->status == cudaErrorMemoryAllocation ? -ENOMEM : -EIO;
}

static int cu_download(op_dev *d, void *host, const void *src, size_t bytes)
{
    DEV_CHECK(d, cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, d->stream));
    return cu_sync(d);
}

static const char *cu_error(op_dev *d)
{
    return d->words;
}

static void cu_upload_weights(op_dev *d, void *dst, size_t first, const float *host, size_t n)
{
    bf16 *out = (bf16 *)dst + first;
    for (size_t at = 0; at < n;) {
        size_t part = n - at < STAGING_HALF / sizeof(bf16) ? n - at : STAGING_HALF / sizeof(bf16);
        bf16 *s = (bf16 *)staging_take(d, part * sizeof(bf16));
        for (size_t i = 0; i < part; i++)
            s[i] = __float2bfloat16(host[at + i]);
        DEV_CHECK(d, cudaMemcpyAsync(out + at, s, part * sizeof(bf16), cudaMemcpyHostToDevice, d->stream));
        at += part;
    }
}

/* ---- adapters that are only read keep a rounded copy until their memory changes ---- */

struct shadow {
    const float *w;
    size_t n;
    bf16 *copy;
    shadow *next;
};

static bf16 *shadow_of(op_dev *d, const float *w, size_t n)
{
    shadow *s;
    for (s = d->shadows; s; s = s->next)
        if (s->w == w && s->n == n)
            return s->copy;
    s = (shadow *)calloc(1, sizeof(*s));
    if (!s || !(s->copy = (bf16 *)cu_alloc(d, n * sizeof(bf16)))) {
        free(s);
        return NULL;
    }
    s->w = w;
    s->n = n;
    lora_round(d, w, s->copy, n);
    s->next = d->shadows;
    d->shadows = s;
    return s->copy;
}

/* Forget copies of anything that touches [p, p + bytes). */
void shadow_forget(op_dev *d, const void *p, size_t bytes)
{
    for (shadow **at = &d->shadows; *at;) {
        shadow *s = *at;
        const char *a = (const char *)s->w, *b = (const char *)p;
        if (b < a + s->n * sizeof(float) && a < b + bytes) {
            *at = s->next;
            dev_free(d, s->copy);
            free(s);
        } else {
            at = &s->next;
        }
    }
}

static void cu_free(op_dev *d, void *p)
{
    if (p)
        shadow_forget(d, p, 1);
    dev_free(d, p);
}

static void cu_upload(op_dev *d, void *dst, const void *host, size_t bytes)
{
    shadow_forget(d, dst, bytes);
    dev_upload(d, dst, host, bytes);
}

static void cu_copy(op_dev *d, void *dst, const void *src, size_t bytes)
{
    shadow_forget(d, dst, bytes);
    DEV_CHECK(d, cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, d->stream));
}

/* ---- packs ---- */

struct layout_cursor { /* places tables one after another in one block */
    size_t at;
    size_t take(size_t bytes)
    {
        size_t here = at;
        at += (bytes + 255) & ~(size_t)255;
        return here;
    }
};

/* Every row of every segment, padding included: what is written must be written everywhere. */
static int fill_lora_tiles(const op_pack *p, lora_tile *t)
{
    int n = 0;
    for (int s = 0; s < p->n_segs; s++)
        for (int r = 0; r < div_up(p->segs[s].rows, ROW_ALIGN) * ROW_ALIGN; r += LORA_ROWS) {
            int left = p->segs[s].rows - r; /* may be negative: a tile of padding */
            t[n++] = {p->segs[s].row0 + r, p->segs[s].adapter, left < LORA_ROWS ? left : LORA_ROWS, s};
        }
    return n;
}

static void fill_blocks(const op_pack *p, const dev_adapter *adapters, row_block *b)
{
    for (int s = 0; s < p->n_segs; s++)
        for (int r = 0; r < p->segs[s].rows; r += ROW_ALIGN) {
            const dev_adapter *ad = p->segs[s].adapter < 0 ? NULL : adapters + p->segs[s].adapter;
            b[(p->segs[s].row0 + r) / ROW_ALIGN] =
                ad ? row_block{p->segs[s].adapter, ad->rank, ad->targets, ad->threshold != 0} : row_block{-1, 0, 0, 0};
        }
}

/* Every segment's real rows; returns the number of slices, counts the slots that partial sums need. */
static int fill_slices(const op_pack *p, grad_slice *t, int32_t *first, int32_t *slots)
{
    int n = 0;
    for (int s = 0; s < p->n_segs; s++) {
        bool only = p->segs[s].rows <= GRAD_ROWS;
        first[s] = n;
        for (int r = 0; r == 0 || r < p->segs[s].rows; r += GRAD_ROWS) {
            int left = p->segs[s].rows - r;
            t[n++] = {s, r, left < GRAD_ROWS ? left : GRAD_ROWS, only ? -1 : (*slots)++};
        }
    }
    return n;
}

/* Tiles late in a sequence cost most, so they come first, among the sequences whose keys and values stay in the cache
 * of the device together: there, several at a time are read by all.  The order changes no number. */
static int fill_attn_tiles(const op_pack *p, attn_tile *t)
{
    int64_t row_bytes = 2 * (int64_t)sizeof(bf16) * p->dims->out[DTX_K];
    int n = 0;
    for (int s = 0, end; s < p->n_seqs; s = end) {
        int longest = 0;
        int64_t bytes = 0;
        for (end = s; end < p->n_seqs && (end == s || bytes + p->seqs[end].rows * row_bytes <= ATTN_NEAR); end++) {
            longest = p->seqs[end].rows > longest ? p->seqs[end].rows : longest;
            bytes += p->seqs[end].rows * row_bytes;
        }
        for (int first = (longest - 1) / ATTN_ROWS * ATTN_ROWS; first >= 0; first -= ATTN_ROWS)
            for (int i = s; i < end; i++)
                if (first < p->seqs[i].rows)
                    t[n++] = {p->seqs[i].row0, p->seqs[i].rows, first};
    }
    return n;
}

bool fill_adapters(op_dev *d, const op_pack *p, cuda_pack *c, dev_adapter *out)
{
    size_t floats = 0;
    for (int i = 0; i < p->n_adapters; i++)
        if (p->adapters[i].g)
            floats += (lora_floats(p->dims, p->adapters[i].targets, p->adapters[i].rank) + 127) & ~(size_t)127;
    if (floats && !(c->shadows = cu_alloc(d, floats * sizeof(bf16))))
        return false;
    floats = 0;
    for (int i = 0; i < p->n_adapters; i++) {
        const op_adapter *a = &p->adapters[i];
        size_t n = lora_floats(p->dims, a->targets, a->rank);
        out[i] = {NULL, a->g, a->rank, a->targets, a->scale, 1.f, 0, 0, {0}};
        out[i].layer_floats = (uint32_t)lora_layer_floats(p->dims, a->targets, a->rank);
        for (int t = 0; t < DTX_TARGETS; t++)
            out[i].offset[t] = (uint32_t)lora_offset(p->dims, a->targets, a->rank, 0, t);
        if (a->g) {
            bf16 *s = (bf16 *)c->shadows + floats;
            lora_round(d, a->w, s, n);
            out[i].shadow = s;
            floats += (n + 127) & ~(size_t)127;
        } else {
            out[i].shadow = shadow_of(d, a->w, n);
        }
        if (a->dropout > 0) {
            out[i].threshold = rng_dropout_threshold(a->dropout);
            out[i].keep = out[i].threshold ? 1.f / (1.f - a->dropout) : 1.f;
            c->dropout = true;
        }
        if (!out[i].shadow)
            return false;
    }
    return true;
}

static void cu_pack_release(op_dev *d, op_pack *p)
{
    cuda_pack *c = pack_dev(p);
    if (!c)
        return;
    dev_free(d, c->partial);
    dev_free(d, c->shadows);
    dev_free(d, c->block);
    delete c;
    p->dev = NULL;
}

static int cu_pack_prepare(op_dev *d, op_pack *p)
{
    TRACE(d, "pack_prepare R %d", p->rows);
    cuda_pack *c = new cuda_pack();
    layout_cursor at = {0};
    int max_tiles = 0, max_attn = 0, max_slices = 0;

    p->dev = c;
    for (int s = 0; s < p->n_segs; s++) {
        max_tiles += p->decode ? 0 : div_up(p->segs[s].rows, ROW_ALIGN) * (ROW_ALIGN / LORA_ROWS);
        max_slices += p->decode ? 0 : 1 + p->segs[s].rows / GRAD_ROWS;
        c->max_seg_rows = p->segs[s].rows > c->max_seg_rows ? p->segs[s].rows : c->max_seg_rows;
    }
    if (!p->decode)
        for (int s = 0; s < p->n_seqs; s++)
            max_attn += div_up(p->seqs[s].rows, ATTN_ROWS);
    size_t ids = at.take(p->rows * 4ull), pos = at.take(p->rows * 4ull), sor = at.take(p->rows * 4ull);
    size_t lab = at.take(p->n_labels * 4ull), lid = at.take(p->n_labels * 4ull);
    size_t segs = at.take(p->n_segs * sizeof(op_seg)), seqs = at.take(p->n_seqs * sizeof(op_seq));
    size_t ads = at.take(p->n_adapters * sizeof(dev_adapter)), tiles = at.take(max_tiles * sizeof(lora_tile));
    size_t blocks = at.take(p->decode ? 0 : div_up(p->rows, ROW_ALIGN) * sizeof(row_block));
    size_t attn = at.take(max_attn * sizeof(attn_tile));
    size_t slices = at.take(max_slices * sizeof(grad_slice)), firsts = at.take(p->n_segs * 4ull);
    size_t row_ads = at.take(p->decode ? p->rows * sizeof(dev_adapter) : 0);
    char *host = (char *)calloc(1, at.at + 1), *dev = (char *)cu_alloc(d, at.at + 1);
    c->block = dev;
    if (!host || !dev || !fill_adapters(d, p, c, (dev_adapter *)(host + ads))) {
        free(host);
        cu_pack_release(d, p);
        return d->status == cudaSuccess ? -ENOMEM : -EIO;
    }
    memcpy(host + ids, p->ids, p->rows * 4ull);
    memcpy(host + pos, p->pos, p->rows * 4ull);
    memcpy(host + sor, p->seq_of_row, p->rows * 4ull);
    if (p->n_labels) {
        memcpy(host + lab, p->lab_row, p->n_labels * 4ull);
        memcpy(host + lid, p->lab_id, p->n_labels * 4ull);
    }
    memcpy(host + segs, p->segs, p->n_segs * sizeof(op_seg));
    memcpy(host + seqs, p->seqs, p->n_seqs * sizeof(op_seq));
    for (int r = 0; r < p->rows; r++)
        c->padded = c->padded || p->seq_of_row[r] < 0;
    c->n_tiles = p->decode ? 0 : fill_lora_tiles(p, (lora_tile *)(host + tiles));
    if (!p->decode)
        fill_blocks(p, (dev_adapter *)(host + ads), (row_block *)(host + blocks));
    c->n_attn = p->decode ? 0 : fill_attn_tiles(p, (attn_tile *)(host + attn));
    c->n_slices =
        p->decode ? 0 : fill_slices(p, (grad_slice *)(host + slices), (int32_t *)(host + firsts), &c->n_slots);
    for (int r = 0; p->decode && r < p->rows; r++) {
        int ad = p->segs[p->seqs[p->seq_of_row[r]].seg].adapter;
        if (ad >= 0)
            ((dev_adapter *)(host + row_ads))[r] = ((dev_adapter *)(host + ads))[ad];
    }
    dev_upload(d, dev, host, at.at);
    free(host);
    c->ids = (int32_t *)(dev + ids);
    c->pos = (int32_t *)(dev + pos);
    c->seq_of_row = (int32_t *)(dev + sor);
    c->lab_row = (int32_t *)(dev + lab);
    c->lab_id = (int32_t *)(dev + lid);
    c->segs = (op_seg *)(dev + segs);
    c->seqs = (op_seq *)(dev + seqs);
    c->adapters = (dev_adapter *)(dev + ads);
    c->tiles = (lora_tile *)(dev + tiles);
    c->blocks = (row_block *)(dev + blocks);
    c->attn = (attn_tile *)(dev + attn);
    c->slices = (grad_slice *)(dev + slices);
    c->row_adapters = (dev_adapter *)(dev + row_ads);
    c->first_slice = (int32_t *)(dev + firsts);
    return d->status == cudaSuccess ? 0 : -EIO;
}

/* ---- linear ---- */

/* bf16 [n_parts][R][h_columns], then the masks. */
static size_t cu_linear_h_floats(const op_pack *p, const op_linear *l)
{
    size_t rows = (size_t)l->n_parts * p->rows, mask = pack_drops(p) ? mask_bytes(l->in) : 0;
    return (rows * (h_columns(p) * sizeof(bf16) + mask) + 3) / sizeof(float);
}

__global__ void add_bias_kernel(bf16 *y, const bf16 *bias, const bf16 *add, int n)
{
    size_t row = (size_t)blockIdx.x * n;
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[row + i] =
            __float2bfloat16((bias ? __bfloat162float(bias[i]) : 0.f) + (add ? __bfloat162float(add[row + i]) : 0.f));
}

static void cu_linear(op_dev *d, const op_pack *p, const op_linear *l, const void *x, const void *add, void *y,
                      float *h)
{
    const bf16 *xb = (const bf16 *)x, *W = (const bf16 *)l->W, *bias = (const bf16 *)l->bias, *addb = (const bf16 *)add;
    bool lora = p->n_adapters > 0 && p->max_rank > 0, onto = lora;

    if (p->decode) {
        if (lora)
            decode_h(d, p, l, xb, (bf16 *)h);
        gemv(d, p, l, p->rows, l->out, l->in, xb, W, bias, addb, lora ? (bf16 *)h : NULL, false, y, false);
        return;
    }
    if (lora)
        lora_down(d, p, l, xb, (bf16 *)h);
    if (hopper_gemm_fits(d, l)) {
        hopper_linear(d, p, l, xb, addb, (bf16 *)y, lora ? (bf16 *)h : NULL);
        return;
    }
    if (lora) {
        if (addb && bias) {
            launch(d->stream, add_bias_kernel, p->rows, 256, 0, (bf16 *)y, bias, addb, l->out);
            addb = (bf16 *)y;
        } else if (bias) {
            launch(d->stream, add_bias_kernel, p->rows, 256, 0, (bf16 *)y, bias, nullptr, l->out);
            addb = (bf16 *)y;
        }
        lora_up(d, p, l, (bf16 *)h, addb, (bf16 *)y);
    } else if (bias || addb) {
        onto = true;
        if (bias || addb != y)
            launch(d->stream, add_bias_kernel, p->rows, 256, 0, (bf16 *)y, bias, addb, l->out);
    }
    gemm(d, false, p->rows, l->out, l->in, xb, l->in, W, onto, y, l->out, false);
}

static void cu_linear_back(op_dev *d, const op_pack *p, const op_linear *l, const void *dy, const void *x,
                           const float *h, void *dx)
{
    bool lora = p->n_adapters > 0 && p->max_rank > 0, hopper = hopper_gemm_fits(d, l);
    const uint32_t *kept = NULL;
    bf16 *dh = NULL;

    if (lora) {
        dh = (bf16 *)dev_alloc(d, (size_t)l->n_parts * p->rows * h_columns(p) * sizeof(bf16));
        if (!dh)
            return;
        kept = lora_kept(p, l, (const bf16 *)h);
        lora_back(d, p, l, (const bf16 *)dy, (const bf16 *)x, (const bf16 *)h, dh);
        if (dx && !hopper)
            lora_up_back(d, p, l, dh, kept, (bf16 *)dx);
    }
    if (dx && hopper)
        hopper_linear_back(d, p, l, (const bf16 *)dy, dh, kept, (bf16 *)dx);
    else if (dx)
        gemm(d, true, p->rows, l->out, l->in, (const bf16 *)dy, l->out, (const bf16 *)l->W, lora, dx, l->in, false);
    dev_free(d, dh);
}

/* The rounded adapter for the whole pass, and the larger of the head's and a linear's scratch, which follow each other.
 * A segment just over GRAD_ROWS has two slices of gradients, so a pack of many has up to twice as many as its rows
 * need. Where an algorithm is chosen, one more result of a product lies beside that (not where gemm_hopper.cu serves).
 */
static size_t cu_scratch_bytes(const lora_dims *l, int32_t hidden, int32_t vocab, int32_t rows, int32_t rank,
                               uint32_t targets)
{
    static const struct {
        int n, target[3];
    } linear[] = {{3, {DTX_Q, DTX_K, DTX_V}}, {1, {DTX_O}}, {2, {DTX_GATE, DTX_UP}}, {1, {DTX_DOWN}}};
    size_t hr = (rank + 15) / 16 * 16, slots = rows > GRAD_ROWS ? 2 * (size_t)rows / GRAD_ROWS : 0, most = 0;
    size_t R = (size_t)div_up(rows, ROW_ALIGN) * ROW_ALIGN, head = head_scratch(rows, hidden, vocab);

    for (const auto &q : linear) {
        int n[3] = {}, in = l->in[q.target[0]], out = 0;
        for (int i = 0; i < q.n; i++)
            out += n[i] = l->out[q.target[i]];
        size_t forward = lora_down_scratch(R, in, q.n, (int)hr),
               back = lora_back_scratch(R, slots, in, q.n, n, (int)hr);
        size_t choice = rows ? gemm_scratch(rows, in > out ? in : out, sizeof(bf16)) : 0;
        size_t lora = forward > back ? forward : back;
        size_t bytes = q.n * R * hr * sizeof(bf16) + (lora > choice ? lora : choice);
        most = bytes > most ? bytes : most;
    }
    head += rows ? gemm_scratch(rows < HEAD_ROWS ? rows : HEAD_ROWS, div_up(vocab, 8) * 8, sizeof(float)) : 0;
    return lora_floats(l, targets, rank) * sizeof(bf16) + (head > most ? head : most);
}

/* ---- opening ---- */

static void cu_info(op_dev *d, struct dtx_device_info *info)
{
    size_t free_bytes = 0, total = 0;
    cudaMemPool_t pool;
    uint64_t own = 0;
    *info = d->info;
    if (cudaMemGetInfo(&free_bytes, &total) == cudaSuccess) {
        info->mem_total = total;
        info->mem_used = total - free_bytes;
    }
    if (cudaDeviceGetDefaultMemPool(&pool, d->index) == cudaSuccess &&
        cudaMemPoolGetAttribute(pool, cudaMemPoolAttrReservedMemCurrent, &own) == cudaSuccess)
        info->mem_own = own;
}

static void cu_close(op_dev *d)
{
    if (!d)
        return;
    if (d->stream) {
        cudaStreamSynchronize(d->stream);
        trace_close(d);
        decode_run_close(d);
        while (d->shadows)
            shadow_forget(d, d->shadows->w, 1);
        gemm_free_plans(d);
        hopper_gemm_close(d);
        if (d->workspace)
            cudaFreeAsync(d->workspace, d->stream);
        if (d->drawn)
            cudaFreeAsync(d->drawn, d->stream);
        cudaStreamSynchronize(d->stream);
    }
    if (d->lt)
        cublasLtDestroy(d->lt);
    for (int i = 0; i < 2; i++)
        if (d->staging_done[i])
            cudaEventDestroy(d->staging_done[i]);
    if (d->staging)
        cudaFreeHost(d->staging);
    if (d->stream)
        cudaStreamDestroy(d->stream);
    free(d);
}

static const struct dtx_ops cuda_ops = {
    "cuda",
    ROW_ALIGN,
    sizeof(bf16),
    sizeof(bf16),
    16384,
    HEAD_STEP,
    HEAD_MOST,
    true,
    cu_close,
    cu_info,
    cu_alloc,
    cu_free,
    cu_zero,
    cu_upload,
    cu_download,
    cu_copy,
    cu_upload_weights,
    cu_sync,
    cu_error,
    cu_pack_prepare,
    cu_pack_release,
    cu_embed,
    cu_rmsnorm,
    cu_rmsnorm_back,
    cu_linear,
    cu_linear_h_floats,
    cu_linear_back,
    cu_rope,
    cu_attention,
    cu_attention_back,
    cu_swiglu,
    cu_swiglu_back,
    cu_head_loss,
    cu_optim,
    cu_kv_store,
    cu_attention_cached,
    cu_logits,
    cu_choose,
    cu_decode_layer,
    cu_decode_load,
    cu_decode_step,
    cu_decode_take,
    cu_scratch_bytes,
};

static cudaError_t open_device(op_dev *d)
{
    cudaDeviceProp prop;
    cudaMemPool_t pool;
    uint64_t keep = UINT64_MAX;
    int runtime = 0, driver = 0, n;
    cudaError_t rc;

    if ((rc = cudaSetDevice(d->index)) || (rc = cudaGetDeviceProperties(&prop, d->index)) ||
        (rc = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking)) ||
        (rc = cudaDeviceGetDefaultMemPool(&pool, d->index)) ||
        (rc = cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep)) ||
        (rc = cudaMallocHost((void **)&d->staging, 2 * (size_t)STAGING_HALF)) ||
        (rc = cudaEventCreateWithFlags(&d->staging_done[0], cudaEventDisableTiming)) ||
        (rc = cudaEventCreateWithFlags(&d->staging_done[1], cudaEventDisableTiming)) ||
        (rc = cudaMallocAsync(&d->workspace, CUBLAS_WORKSPACE, d->stream)) ||
        (rc = cudaMallocAsync((void **)&d->drawn, sizeof(*d->drawn), d->stream)) ||
        (rc = cudaMemsetAsync(d->drawn, 0, sizeof(*d->drawn), d->stream)) || (rc = cudaRuntimeGetVersion(&runtime)) ||
        (rc = cudaDriverGetVersion(&driver)))
        return rc;
    d->overlap = prop.major >= 9 && !getenv("DTX_CUDA_NO_OVERLAP");
    d->sms = prop.multiProcessorCount;
    d->shared_bytes = (int32_t)prop.sharedMemPerBlockOptin;
    d->cache_bytes = prop.l2CacheSize;
    d->hopper = prop.major == 9 && prop.minor == 0 && !getenv("DTX_CUDA_NO_HOPPER") &&
                hopper_attn_setup() == cudaSuccess && hopper_gemm_setup(d) == cudaSuccess;
    (void)cudaGetLastError(); /* of the two, where they cannot be had */
    if (cublasLtCreate(&d->lt) != CUBLAS_STATUS_SUCCESS)
        return cudaErrorInitializationError;
    snprintf(d->info.name, sizeof(d->info.name), "cuda:%d %.70s", d->index, prop.name);
    n = snprintf(d->info.fingerprint, sizeof(d->info.fingerprint), "cuda %.64s sm_%d%d runtime %d cublasLt %zu",
                 prop.name, prop.major, prop.minor, runtime, cublasLtGetVersion());
    if (prop.major == 9 && prop.minor == 0 && !d->hopper) /* attention.cu gives other bytes */
        snprintf(d->info.fingerprint + n, sizeof(d->info.fingerprint) - n, " without wgmma");
    if (prop.major > 9 || (prop.major == 9 && prop.minor > 0)) /* the driver compiles the kernels: see GENCODE */
        snprintf(d->info.fingerprint + n, sizeof(d->info.fingerprint) - n, " driver %d", driver);
    return cudaSuccess;
}

extern "C" int dtx_cuda_ops_count(void)
{
    int n = 0;
    return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

extern "C" uint64_t dtx_cuda_ops_layout(void)
{
    return ops_layout();
}

extern "C" int dtx_cuda_ops_open(int index, struct op_dev **out, const struct dtx_ops **ops, struct dtx_err *e)
{
    op_dev *d = (op_dev *)calloc(1, sizeof(*d));
    cudaError_t rc;

    if (!d)
        return dtx_fail(e, -ENOMEM, "out of memory");
    d->index = index;
    d->tracing = trace_open();
    rc = open_device(d);
    if (rc != cudaSuccess) {
        cu_close(d);
        return dtx_fail(e, -ENODEV, "cannot open GPU %d: %s (nvidia-smi lists the GPUs)", index,
                        cudaGetErrorString(rc));
    }
    lora_setup(d);
    if (d->status != cudaSuccess) {
        rc = d->status;
        cu_close(d);
        return dtx_fail(e, -ENODEV, "cannot use GPU %d: %s (compute capability 8.0 or newer is needed)", index,
                        cudaGetErrorString(rc));
    }
    *out = d;
    *ops = &cuda_ops;
    return 0;
}
