/* Hostile safetensors: whatever opens must have descriptors that can be trusted. */
#include "kernels/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void check_tensor(const struct st_set *s, const struct st_tensor *t)
{
    float v[8];
    uint64_t elements = 1, last;

    FUZZ_ASSERT(st_find(s, t->name) == t && t->ndim >= 0 && t->ndim <= ST_MAX_DIMS);
    for (int i = 0; i < t->ndim; i++)
        FUZZ_ASSERT(!__builtin_mul_overflow(elements, (uint64_t)t->shape[i], &elements));
    FUZZ_ASSERT(elements == t->elements);
    if (t->nbytes) { /* both ends must be readable: the map's end says if not */
        const volatile unsigned char *p = t->data;
        FUZZ_ASSERT(p[0] + p[t->nbytes - 1] >= 0);
    }
    last = t->elements < 8 ? 0 : t->elements - 8;
    FUZZ_ASSERT(st_read_f32(t, last, t->elements - last, v) == (t->type == ST_OTHER ? -EINVAL : 0));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct dtx_err e = {0};
    struct st_set *s = NULL;

    fuzz_put("f", data, size);
    if (st_open(fuzz_dir(), "f", &s, &e)) {
        FUZZ_ASSERT(s == NULL && e.code < 0 && e.msg[0]);
        return 0;
    }
    for (size_t i = 0; i < st_count(s); i++)
        check_tensor(s, st_at(s, i));
    st_close(s);
    return 0;
}
