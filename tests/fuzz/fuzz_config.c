/*
 * The administrator's configuration file: what is taken is within bounds, what is not is refused in words
 * that name the file and a place in it.
 */
#include "scheduler/internal.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct settings s = {0};
    struct dtx_err e = {0};
    int rc;

    if (size > 1 << 16)
        return 0;
    rc = config_parse("dtx.json", (const char *)data, size, &s, &e);
    FUZZ_ASSERT(rc == 0 || (rc == e.code && rc < 0 && e.msg[0]));
    if (rc == 0) {
        FUZZ_ASSERT(s.nadmins >= 0 && s.nadmins <= (int)(sizeof(s.admins) / sizeof(s.admins[0])));
        FUZZ_ASSERT(s.ndevice_memory >= 0 && s.ndevice_memory <= MAX_WORKERS);
        FUZZ_ASSERT(s.worker_timeout >= -1 && s.worker_timeout <= 86400);
    }
    return 0;
}
