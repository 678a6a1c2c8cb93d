/* Hostile tokenizer.model files. */
#include "tests/fuzz/fuzz_tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_put("tokenizer.model", data, size);
    fuzz_tokenizer(data, size);
    return 0;
}
