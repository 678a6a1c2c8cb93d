/* What the LoRA kernels share: their arguments, tiles in shared memory, dropout. */
#ifndef DTX_CUDA_LORA_CUH
#define DTX_CUDA_LORA_CUH

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/mma.cuh"
extern "C" {
#include "kernels/rng.h"
}

enum { LORA_THREADS = 256 };

struct lora_args { /* what every kernel here needs; by value */
    const lora_tile *tiles;
    const op_seg *segs;
    const op_seq *seqs;
    const int32_t *seq_of_row;
    const dev_adapter *adapters;
    const grad_slice *slices;
    const int32_t *first_slice;
    lora_dims dims;
    int32_t rows, hr; /* R and h_columns */
    int32_t layer, in, out, n_parts;
    int32_t target[3], out0[3], n[3];
};

static inline lora_args make_args(const op_pack *p, const op_linear *l)
{
    const cuda_pack *c = pack_dev(p);
    lora_args a = {};
    a.tiles = c->tiles;
    a.segs = c->segs;
    a.seqs = c->seqs;
    a.seq_of_row = c->seq_of_row;
    a.adapters = c->adapters;
    a.slices = c->slices;
    a.first_slice = c->first_slice;
    a.dims = *p->dims;
    a.rows = p->rows;
    a.hr = h_columns(p);
    a.layer = l->layer;
    a.in = l->in;
    a.out = l->out;
    a.n_parts = l->n_parts;
    for (int i = 0; i < l->n_parts; i++) {
        a.target[i] = l->part[i].target;
        a.out0[i] = l->part[i].out0;
        a.n[i] = l->part[i].n;
    }
    return a;
}

template <int V> struct alignas(4 * V) floats {
    float f[V];
};

template <int V> __device__ __forceinline__ void add(floats<V> &sum, const floats<V> &v)
{
#pragma unroll
    for (int e = 0; e < V; e++)
        sum.f[e] += v.f[e];
}

/* The sum of n times V elements, `stride` apart, in order, AHEAD read at a time. */
template <int V, int AHEAD> __device__ __forceinline__ floats<V> sum_of(const float *p, int n, size_t stride)
{
    floats<V> sum = {};
    for (int k = 0; k < n; k += AHEAD) {
        floats<V> v[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            v[j] = k + j < n ? *(const floats<V> *)(p + (k + j) * stride) : floats<V>();
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            add(sum, v[j]);
    }
    return sum;
}

/* dB of all parts [column, hr] and dA of each [hr, in], as many columns of hr, are a slice's partial sums. */
__host__ __device__ __forceinline__ size_t grad_columns(const lora_args &a)
{
    return (size_t)a.out + (size_t)a.n_parts * a.in;
}

/* Of a tile's number among those of all parts, `columns` wide: its part (0 at first) and its number there. */
__device__ __forceinline__ void to_part(const lora_args &a, int columns, int *part, int *tile)
{
    while (*tile >= (a.n[*part] + columns - 1) / columns)
        *tile -= (a.n[(*part)++] + columns - 1) / columns;
}

/* ops.h, lora_offset, for the device. */
__device__ __forceinline__ size_t adapter_offset(const lora_dims &d, uint32_t targets, int rank, int layer, int target)
{
    size_t whole = 0, before = 0;
    for (int t = 0; t < DTX_TARGETS; t++) {
        size_t n = targets >> t & 1 ? (size_t)rank * ((size_t)d.in[t] + (size_t)d.out[t]) : 0;
        whole += n;
        before += t < target ? n : 0;
    }
    return (size_t)layer * whole + before;
}

/* rows x COLS elements of a matrix into a tile of row length COLS + 8, by N threads; element (r, c) valid for r < nr,
 * c < nc, else zero.  16-byte copies where the matrix allows it. */
template <int COLS, int N = LORA_THREADS>
__device__ __forceinline__ void load_tile(bf16 *tile, const bf16 *src, size_t stride, int rows, int nr, int nc)
{
    constexpr int LD = COLS + 8;
    if (((uintptr_t)src & 15) == 0 && stride % 8 == 0 && (nc >= COLS || nc % 8 == 0)) {
        for (int i = threadIdx.x; i < rows * (COLS / 8); i += N) {
            int r = i / (COLS / 8), c = i % (COLS / 8) * 8;
            bool valid = r < nr && c < nc;
            copy16(tile + r * LD + c, src + (valid ? r * stride + c : 0), valid);
        }
    } else {
        for (int i = threadIdx.x; i < rows * COLS; i += N) {
            int r = i / COLS, c = i % COLS;
            tile[r * LD + c] = r < nr && c < nc ? src[r * stride + c] : __float2bfloat16(0.f);
        }
    }
}

/* The same again and again by N threads, ROWS x COLS elements at an offset each time: what does not change is computed
 * once. */
template <int ROWS, int COLS, int N = LORA_THREADS> struct tile_copy {
    static constexpr int LD = COLS + 8, IN_ROW = COLS / 8, STEP = N / IN_ROW, TIMES = (ROWS + STEP - 1) / STEP;
    const bf16 *mine;
    size_t stride;
    int row, col, at;
    bool wide;

    /* columns: how many there are from src on, a multiple of 8 for the fast path */
    __device__ __forceinline__ void begin(const bf16 *from, size_t row_stride, int columns)
    {
        stride = row_stride;
        row = threadIdx.x / IN_ROW;
        col = threadIdx.x % IN_ROW * 8;
        at = row * LD + col;
        mine = from + (size_t)row * row_stride + col;
        wide = ((uintptr_t)from & 15) == 0 && row_stride % 8 == 0 && columns % 8 == 0;
    }
    /* Elements at src + offset; (r, c) valid for r < nr, c < nc. */
    __device__ __forceinline__ void load(bf16 *tile, size_t offset, int nr, int nc) const
    {
        if (!wide) {
            load_tile<COLS, N>(tile, mine - row * stride - col + offset, stride, ROWS, nr, nc);
            return;
        }
        const bf16 *p = mine + offset;
        bf16 *to = tile + at;
        bool inside = col < nc;
#pragma unroll
        for (int i = 0; i < TIMES; i++, p += STEP * stride, to += STEP * LD)
            if (ROWS % STEP == 0 || row + i * STEP < ROWS)
                copy16(to, p, inside && row + i * STEP < nr);
    }
};

/* The dropout key of a row for (layer, target); 0 rows of padding get any key. */
__device__ __forceinline__ uint64_t row_key(const lora_args &a, int row, int target)
{
    int s = a.seq_of_row[row];
    if (s < 0)
        return 0;
    op_seq q = a.seqs[s];
    return rng_dropout_key(q.drop_key, q.token0 + row - q.row0, a.layer, target);
}

/* What dropout keeps of x: a bit for each element, 1 where it is kept.  [part][16 rows][64 columns][32 words], a word
 * for each lane: of 16 x 16 elements number k it has, as of mma's A operand and accumulators, those of bits 4 k (row
 * lane / 4, column lane % 4 * 2), 4 k + 1 (8 rows on), 4 k + 2 (8 columns on), 4 k + 3 (both), and 16 more for the
 * columns that follow.  The words of lanes that have the same columns of rows 2 i and 2 i + 1 are neighbours.
 * mask_bytes a row.  lora_down draws it and leaves it behind h; dA and dx take it up. */
__device__ __forceinline__ size_t kept_at(int in, int rows, int part, int row, int column)
{
    return (((size_t)part * rows + row) / 16 * ((in + 127) / 128 * 2) + column / 64) * 32;
}

__device__ __forceinline__ int kept_word(int lane)
{
    return lane / 8 * 8 + lane % 4 * 2 + lane / 4 % 2;
}

/* Which of two elements a draw of 32 bits keeps, all bits of its half: 16 bits plus spare = 2^16 - threshold reach 2^16
 * where they are at least the threshold.  spare_15: spare << 15, so that this is the sign. */
__device__ __forceinline__ uint32_t kept_pair(uint32_t bits, uint32_t spare_15)
{
    return signs((lower_half_up(bits) >> 1) + spare_15, (bits >> 1) + spare_15);
}

/* Times a mask of two halves: the lowest bit of each that is kept.  (A product, as masks and shifts have a pipe of
 * their own to wait for.) */
#define KEPT_ONES 0xfffeffffu

/* sum += keep * acc where it is kept, of 8 columns, number n of the word's 64.  Rounded once: whichever kernel it runs
 * in depends on the neighbours' ranks. */
__device__ __forceinline__ void kept_add(float sum[4], const float acc[4], uint32_t word, int n, float keep)
{
    if (word >> 2 * n & 1)
        sum[0] = __fmaf_rn(keep, acc[0], sum[0]);
    if (word >> (2 * n + 16) & 1)
        sum[1] = __fmaf_rn(keep, acc[1], sum[1]);
    if (word >> (2 * n + 1) & 1)
        sum[2] = __fmaf_rn(keep, acc[2], sum[2]);
    if (word >> (2 * n + 17) & 1)
        sum[3] = __fmaf_rn(keep, acc[3], sum[3]);
}

template <typename K> static inline void allow_smem(op_dev *d, K kernel, int bytes)
{
    DEV_CHECK(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

/* lora.cu */
void lora_join(op_dev *d, const op_pack *p, const lora_args &a, int3 n, bool back, const float *sums, bf16 *out);

#endif
