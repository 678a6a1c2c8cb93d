/* The CPU device: memory, scratch, packs, and the table of its operations. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "kernels/cpu/blas.h"
#include "kernels/cpu/cpu.h"

void cpu_failed(struct op_dev *d, int code)
{
    int none = 0;
    atomic_compare_exchange_strong(&d->error, &none, code);
}

static float *scratch_get(struct op_dev *d, struct scratch *s, size_t n)
{
    if (n <= s->n)
        return s->p;
    free(s->p);
    s->n = 0;
    s->p = n < SIZE_MAX / 8 ? aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64) : NULL;
    if (!s->p) {
        cpu_failed(d, -ENOMEM);
        return NULL;
    }
    s->n = n;
    return s->p;
}

float *cpu_scratch(struct op_dev *d, int thread, size_t n)
{
    return scratch_get(d, &d->scratch[thread], n);
}

float *cpu_shared(struct op_dev *d, struct scratch *s, size_t n)
{
    return scratch_get(d, s, n);
}

static void *cpu_alloc(struct op_dev *d, size_t bytes)
{
    return bytes < SIZE_MAX / 2 ? aligned_alloc(64, (bytes + 63 + !bytes) / 64 * 64) : NULL;
}

static void cpu_free(struct op_dev *d, void *p)
{
    free(p);
}

static void cpu_zero(struct op_dev *d, void *p, size_t bytes)
{
    memset(p, 0, bytes);
}

static void cpu_upload(struct op_dev *d, void *dst, const void *host, size_t bytes)
{
    memcpy(dst, host, bytes);
}

static int cpu_download(struct op_dev *d, void *host, const void *src, size_t bytes)
{
    memcpy(host, src, bytes);
    return atomic_load(&d->error);
}

static void cpu_upload_weights(struct op_dev *d, void *dst, size_t first, const float *host, size_t n)
{
    memcpy((float *)dst + first, host, n * sizeof *host);
}

static int cpu_sync(struct op_dev *d)
{
    return atomic_load(&d->error);
}

static const char *cpu_error(struct op_dev *d)
{
    return atomic_load(&d->error) == -ENOMEM ? "out of memory for scratch space of an operation" : "no error";
}

static int cpu_pack_prepare(struct op_dev *d, struct op_pack *p)
{
    int n = 0;
    for (int s = 0; s < p->n_segs; s++)
        n += div_up(p->segs[s].rows, TILE_ROWS);
    struct cpu_pack *cp = malloc(sizeof *cp);
    struct tile *tiles = malloc(sizeof *tiles * (size_t)(n + 1));
    if (!cp || !tiles) {
        free(cp);
        free(tiles);
        return -ENOMEM;
    }
    *cp = (struct cpu_pack){.tiles = tiles};
    for (int s = 0; s < p->n_segs; s++) {
        const struct op_seg *seg = &p->segs[s];
        for (int r = 0; r < seg->rows; r += TILE_ROWS) {
            int left = div_up(seg->rows - r, ROW_ALIGN) * ROW_ALIGN;
            tiles[cp->n_tiles++] =
                (struct tile){.seg = s, .row0 = seg->row0 + r, .m = left < TILE_ROWS ? left : TILE_ROWS};
        }
    }
    p->dev = cp;
    return 0;
}

static void cpu_pack_release(struct op_dev *d, struct op_pack *p)
{
    struct cpu_pack *cp = p->dev;
    if (!cp)
        return;
    free(cp->tiles);
    free(cp);
    p->dev = NULL;
}

static void cpu_name(char *out, size_t n)
{
    char line[256], *model = NULL;
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && !model && fgets(line, sizeof line, f))
        if (strncmp(line, "model name", 10) == 0 && (model = strchr(line, ':')))
            model += strspn(model, ": ");
    if (f)
        fclose(f);
    snprintf(out, n, "cpu: %.*s", model ? (int)strcspn(model, "\n") : 7, model ? model : "unknown");
}

/* Bytes that programs can still have: the page cache counts as free.  0: unknown. */
static uint64_t memory_available(void)
{
    unsigned long long kb = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return kb * 1024;
}

/* Bytes of this process that are not pages of files.  0: unknown. */
static uint64_t memory_own(void)
{
    unsigned long long size, resident = 0, shared = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu %llu", &size, &resident, &shared) != 3)
        resident = shared = 0;
    if (f)
        fclose(f);
    return (resident - shared) * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void cpu_info(struct op_dev *d, struct dtx_device_info *info)
{
    struct sysinfo si;
    memset(info, 0, sizeof *info);
    cpu_name(info->name, sizeof info->name);
    char blas[192];
    blas_describe(blas, sizeof blas);
    snprintf(info->fingerprint, sizeof info->fingerprint, "dtx-cpu 1, %s", blas);
    if (sysinfo(&si) == 0) {
        info->mem_total = (uint64_t)si.totalram * si.mem_unit;
        uint64_t available = memory_available();
        info->mem_used = available < info->mem_total ? info->mem_total - available : 0;
        info->mem_own = memory_own();
    }
    info->threads = pool_threads(d->pool);
}

static void cpu_close(struct op_dev *d)
{
    for (int i = 0; d->scratch && i < pool_threads(d->pool); i++)
        free(d->scratch[i].p);
    free(d->scratch);
    free(d->shared.p);
    free(d->shared2.p);
    cpu_decode_close(d);
    pool_free(d->pool);
    free(d);
}

static const struct dtx_ops cpu_ops = {
    .name = "cpu",
    .row_align = ROW_ALIGN,
    .act_bytes = 4,
    .weight_bytes = 4,
    .pack_rows = PACK_ROWS,
    .head_step = 2,
    .head_most = 4096, /* the most that a config.json may have */
    .close = cpu_close,
    .info = cpu_info,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .zero = cpu_zero,
    .upload = cpu_upload,
    .download = cpu_download,
    .copy = cpu_upload,
    .upload_weights = cpu_upload_weights,
    .sync = cpu_sync,
    .error = cpu_error,
    .pack_prepare = cpu_pack_prepare,
    .pack_release = cpu_pack_release,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .rmsnorm_back = cpu_rmsnorm_back,
    .linear = cpu_linear,
    .linear_h_floats = cpu_linear_h_floats,
    .linear_back = cpu_linear_back,
    .rope = cpu_rope,
    .attention = cpu_attention,
    .attention_back = cpu_attention_back,
    .swiglu = cpu_swiglu,
    .swiglu_back = cpu_swiglu_back,
    .head_loss = cpu_head_loss,
    .optim = cpu_optim,
    .kv_store = cpu_kv_store,
    .attention_cached = cpu_attention_cached,
    .logits = cpu_logits,
    .choose = cpu_choose,
    .decode_load = cpu_decode_load,
    .decode_step = cpu_decode_step,
    .decode_take = cpu_decode_take,
};

static int default_threads(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 256 ? 256 : (int)n;
}

int cpu_ops_open(int threads, struct op_dev **out, const struct dtx_ops **ops, struct dtx_err *e)
{
    if (threads < 0 || threads > 1024)
        return dtx_fail(e, -EINVAL, "cpu device: %d threads (expected 0 to 1024)", threads);
#ifndef __AVX2__
#error "the CPU operations are built for AVX2 (see KERNEL_CFLAGS in the Makefile)"
#endif
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return dtx_fail(e, -ENOTSUP, "this processor has no AVX2 and FMA, which DTX's CPU engine needs");
    int rc = blas_open(e);
    if (rc < 0)
        return rc;
    struct op_dev *d = calloc(1, sizeof *d);
    if (!d || !(d->pool = pool_new(threads ? threads : default_threads()))) {
        free(d);
        return dtx_fail(e, -ENOMEM, "cpu device: cannot start its threads");
    }
    d->scratch = calloc((size_t)pool_threads(d->pool), sizeof *d->scratch);
    if (!d->scratch) {
        cpu_close(d);
        return dtx_fail(e, -ENOMEM, "cpu device: out of memory");
    }
    *out = d;
    *ops = &cpu_ops;
    return 0;
}
