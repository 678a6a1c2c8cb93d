/*
 * The choice of a token from its logits; the rule is in kernels/choice.h.  One block a row.  All sums are of integers,
 * so their order changes nothing.  The last token kept by top_k or top_p is found digit by digit (8 bits) from the top
 * of the key (level, id): a histogram of the tokens that share the digits so far, and the bin where the sum is reached.
 */
#include "kernels/choice.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/decode_run.cuh"

#include <math_constants.h>

enum { CHOOSE_THREADS = 1024, CHOOSE_WARPS = CHOOSE_THREADS / 32, DIGITS = 256 };

typedef unsigned long long u64;

struct row_logits {
    const float *l;
    int vocab;
    float top, factor;
    __device__ u64 key(int i) const /* ~0: never chosen */
    {
        uint32_t level = choice_level(l[i], top, factor);
        return level == CHOICE_NONE ? ~0ull : (u64)level << 32 | (uint32_t)i;
    }
};

__device__ __forceinline__ u64 weight_of(u64 key)
{
    return choice_weight((uint32_t)(key >> 32));
}

__device__ __forceinline__ u64 warp_sum(u64 x)
{
    for (int m = 16; m; m /= 2)
        x += __shfl_xor_sync(~0u, x, m);
    return x;
}

/* Sum over the block, in every thread. */
__device__ u64 sum_block(u64 x)
{
    __shared__ u64 part[CHOOSE_WARPS];
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(part[threadIdx.x % 32]);
}

/* The index of the largest logit, in every thread. */
__device__ int best_of(const float *l, int vocab)
{
    __shared__ float value[CHOOSE_WARPS];
    __shared__ int index[CHOOSE_WARPS];
    float v = -CUDART_INF_F;
    int at = 0x7fffffff;
    auto take = [&](float x, int i) {
        if (x > v || (x == v && i < at)) {
            v = x;
            at = i;
        }
    };
    auto join = [&]() {
        for (int m = 16; m; m /= 2) {
            float x = __shfl_xor_sync(~0u, v, m);
            int i = __shfl_xor_sync(~0u, at, m);
            take(x, i);
        }
    };
    for (int i = threadIdx.x; i < vocab; i += CHOOSE_THREADS)
        take(isnan(l[i]) ? -CUDART_INF_F : l[i], i);
    join();
    if (threadIdx.x % 32 == 0) {
        value[threadIdx.x / 32] = v;
        index[threadIdx.x / 32] = at;
    }
    __syncthreads();
    v = value[threadIdx.x % 32];
    at = index[threadIdx.x % 32];
    join();
    return at;
}

/* The smallest key such that the keys up to it, of those up to `last`, weigh (or count) `need` or more in all. */
__device__ u64 reach(const row_logits &row, u64 last, bool by_weight, u64 need)
{
    __shared__ u64 weight[DIGITS], found;
    __shared__ uint32_t count[DIGITS];
    __shared__ u64 digit, before;
    u64 prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int i = threadIdx.x; i < DIGITS; i += CHOOSE_THREADS)
            weight[i] = count[i] = 0;
        __syncthreads();
        for (int i = threadIdx.x; i < row.vocab; i += CHOOSE_THREADS) {
            u64 key = row.key(i);
            if (key == ~0ull || key > last || (shift < 56 && key >> (shift + 8) != prefix))
                continue;
            int bin = key >> shift & (DIGITS - 1);
            atomicAdd(&count[bin], 1u);
            if (by_weight)
                atomicAdd(&weight[bin], weight_of(key));
        }
        __syncthreads();
        if (threadIdx.x < 32) { /* lane: 8 bins */
            u64 sum = 0;
            for (int i = 0; i < 8; i++)
                sum += by_weight ? weight[threadIdx.x * 8 + i] : count[threadIdx.x * 8 + i];
            u64 upto = sum;
            for (int m = 1; m < 32; m *= 2) {
                u64 x = __shfl_up_sync(~0u, upto, m);
                upto += (int)threadIdx.x >= m ? x : 0;
            }
            u64 at = upto - sum;
            if (at < need && need <= upto)
                for (int i = 0; i < 8; i++) {
                    u64 w = by_weight ? weight[threadIdx.x * 8 + i] : count[threadIdx.x * 8 + i];
                    if (at < need && need <= at + w) {
                        digit = threadIdx.x * 8 + i;
                        before = at;
                    }
                    at += w;
                }
        }
        __syncthreads();
        prefix = prefix << 8 | digit;
        need -= before;
        if (count[digit] > 1 || shift == 0)
            continue;
        for (int i = threadIdx.x; i < row.vocab; i += CHOOSE_THREADS) { /* one key is left: which? */
            u64 key = row.key(i);
            if (key != ~0ull && key <= last && key >> shift == prefix)
                found = key;
        }
        __syncthreads();
        return found;
    }
    return prefix;
}

/* The first token in order of id where the kept weights so far exceed r; r is below their sum. */
__device__ int walk(const row_logits &row, u64 last, u64 r)
{
    __shared__ u64 part[CHOOSE_WARPS];
    __shared__ int token;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, span = (row.vocab + CHOOSE_THREADS - 1) / CHOOSE_THREADS * 32;
    int first = warp * span, end = min(first + span, row.vocab);
    auto kept = [&](int i) -> u64 {
        u64 key = i < end ? row.key(i) : ~0ull;
        return key == ~0ull || key > last ? 0 : weight_of(key);
    };
    u64 sum = 0;
    for (int i = first + lane; i < end; i += 32)
        sum += kept(i);
    sum = warp_sum(sum);
    if (lane == 0)
        part[warp] = sum;
    __syncthreads();
    u64 at = 0;
    for (int i = 0; i < warp; i++)
        at += part[i];
    if (at <= r && r < at + sum)
        for (int base = first; base < end; base += 32) {
            u64 w = kept(base + lane), upto = w;
            for (int m = 1; m < 32; m *= 2) {
                u64 x = __shfl_up_sync(~0u, upto, m);
                upto += lane >= m ? x : 0;
            }
            if (at + upto - w <= r && r < at + upto)
                token = base + lane;
            at += __shfl_sync(~0u, upto, 31);
        }
    __syncthreads();
    return token;
}

__device__ int draw(const float *l, int vocab, int best, const op_choice &how)
{
    row_logits row = {l, vocab, l[best], choice_factor(how.temperature)};
    u64 n = 0, last = ~0ull - 1;
    for (int i = threadIdx.x; i < vocab; i += CHOOSE_THREADS)
        n += row.key(i) != ~0ull;
    n = sum_block(n);
    if (n == 0)
        return best;
    if (how.top_k > 0 && (u64)how.top_k < n)
        last = reach(row, last, false, how.top_k);
    auto weigh = [&]() {
        u64 sum = 0;
        for (int i = threadIdx.x; i < vocab; i += CHOOSE_THREADS) {
            u64 key = row.key(i);
            sum += key == ~0ull || key > last ? 0 : weight_of(key);
        }
        return sum_block(sum);
    };
    u64 sum = weigh();
    if (how.top_p < 1) {
        last = reach(row, last, true, choice_limit(how.top_p, sum));
        sum = weigh();
    }
    return walk(row, last, __umul64hi(choice_random(how.seed, how.number), sum));
}

__global__ void __launch_bounds__(CHOOSE_THREADS)
    choose_kernel(const float *logits, int vocab, op_choice *choice, int32_t *out, step_tables t)
{
    int row = blockIdx.x;
    const float *l = logits + (size_t)row * vocab;
    const op_choice how = choice[row];
    int token = best_of(l, vocab);
    if (how.temperature > 0)
        token = draw(l, vocab, token, how);
    if (threadIdx.x)
        return;
    out[row] = token;
    if (t.ids) {
        t.ids[row] = token;
        t.pos[row]++;
        t.seqs[row].pos0++;
        choice[row].number = how.number + 1;
    }
}

void choose_launch(op_dev *d, const float *logits, int32_t n, int32_t vocab, op_choice *choice, int32_t *out,
                   step_tables t)
{
    launch(d->stream, choose_kernel, n, CHOOSE_THREADS, 0, logits, vocab, choice, out, t);
    DEV_LAUNCHED(d, "choose");
}

void cu_choose(op_dev *d, const float *logits, int32_t n, int32_t vocab, const op_choice *how, int32_t *out)
{
    TRACE(d, "choose n %d", n);
    op_choice *dev = (op_choice *)dev_alloc(d, n * sizeof(op_choice));
    if (!dev)
        return;
    dev_upload(d, dev, how, n * sizeof(op_choice));
    choose_launch(d, logits, n, vocab, dev, out, step_tables());
    dev_free(d, dev);
}
