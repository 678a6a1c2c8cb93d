/* Values of tensors as float32. */
#include "kernels/safetensors.h"

#include <string.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

/* Half precision to float32, exact for every number, denormals and infinities too. */
static float f16_value(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff, w;
    float f;

    if (rest >= 0x7c00) {
        w = sign | 0x7f800000 | (rest & 0x3ff) << 13;
    } else if (rest >= 0x400) {
        w = sign | ((rest << 13) + (112u << 23));
    } else { /* zero or denormal: rest * 2^-24 */
        f = (float)rest * 0x1p-24f;
        memcpy(&w, &f, 4);
        w |= sign;
    }
    memcpy(&f, &w, 4);
    return f;
}

static void read_f16(const unsigned char *p, uint64_t n, float *out)
{
    uint64_t i = 0;

#ifdef __F16C__
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 2 * i))));
#endif
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = f16_value(h);
    }
}

static void read_bf16(const unsigned char *p, uint64_t n, float *out)
{
    for (uint64_t i = 0; i < n; i++) {
        uint16_t h;
        uint32_t w;
        memcpy(&h, p + 2 * i, 2);
        w = (uint32_t)h << 16;
        memcpy(&out[i], &w, 4);
    }
}

int st_read_f32(const struct st_tensor *t, uint64_t first, uint64_t elements, float *out)
{
    const unsigned char *p = t->data;

    if (first > t->elements || elements > t->elements - first)
        return -ERANGE;
    if (elements == 0)
        return t->type == ST_OTHER ? -EINVAL : 0;
    switch (t->type) {
    case ST_F32:
        memcpy(out, p + 4 * first, 4 * elements);
        return 0;
    case ST_F16:
        read_f16(p + 2 * first, elements, out);
        return 0;
    case ST_BF16:
        read_bf16(p + 2 * first, elements, out);
        return 0;
    case ST_OTHER:
        break;
    }
    return -EINVAL;
}
