/* What must hold for any tokenizer that loads: every text encodes to ids in range, and decoding them is safe.
 */
#ifndef DTX_FUZZ_TOKENIZER_H
#define DTX_FUZZ_TOKENIZER_H

#include "kernels/dtx_engine.h"
#include "tests/fuzz/fuzz.h"

static void fuzz_text(const struct dtx_tokenizer *t, const char *text, size_t n)
{
    struct dtx_ids ids = {0};
    struct dtx_err e = {0};
    struct buf out = BUF_INIT;

    if (dtx_tokenizer_encode(t, text, n, &ids, &e)) {
        FUZZ_ASSERT(e.code < 0 && e.msg[0] && ids.n == 0);
    } else {
        for (size_t i = 0; i < ids.n; i++)
            FUZZ_ASSERT(ids.v[i] >= 0 && ids.v[i] < dtx_tokenizer_size(t));
        dtx_tokenizer_decode(t, ids.v, ids.n, &out);
    }
    buf_release(&out);
    dtx_ids_release(&ids);
}

static inline void fuzz_tokenizer(const uint8_t *data, size_t size)
{
    static const char sample[] = "Hello  wor\xc3\xa9ld 123\n\t <s></s> \xff\xfe\xe2\x82 \xe2\x96\x81"
                                 "aab ab aaaa 'll";
    const int32_t ids[] = {-1, 0, 1, 2, 3, 300, INT32_MAX};
    struct dtx_tokenizer *t = NULL;
    struct dtx_err e = {0};
    struct buf out = BUF_INIT;

    if (dtx_tokenizer_load(fuzz_dir(), ".", &t, &e)) {
        FUZZ_ASSERT(t == NULL && e.code < 0 && e.msg[0]);
        return;
    }
    FUZZ_ASSERT(dtx_tokenizer_size(t) > 0);
    FUZZ_ASSERT(dtx_tokenizer_bos(t) < dtx_tokenizer_size(t) && dtx_tokenizer_eos(t) < dtx_tokenizer_size(t));
    fuzz_text(t, sample, sizeof(sample) - 1);
    fuzz_text(t, (const char *)data, size > 2000 ? 2000 : size);
    fuzz_text(t, "", 0);
    dtx_tokenizer_decode(t, ids, sizeof(ids) / sizeof(ids[0]), &out);
    buf_release(&out);
    dtx_tokenizer_free(t);
}

#endif
