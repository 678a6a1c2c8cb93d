/*
 * Hostile tokenizer.json and tokenizer_config.json: an input is one of them, or both with a line "%%" between
 * them.
 */
#include "tests/fuzz/fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *cut = memmem(data, size, "\n%%\n", 4);

    fuzz_put("tokenizer.json", data, cut ? (size_t)(cut - data) : size);
    unlinkat(fuzz_dir(), "tokenizer_config.json", 0);
    if (cut)
        fuzz_put("tokenizer_config.json", cut + 4, size - (size_t)(cut - data) - 4);
    fuzz_tokenizer(data, size);
    return 0;
}
