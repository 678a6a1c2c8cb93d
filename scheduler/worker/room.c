/* Memory is planned: what is used now, plus what running jobs were promised and have not allocated yet. */
#include "scheduler/worker/bases.h"
#include "scheduler/worker/job.h"

uint64_t room_limit(const struct worker *w)
{
    struct dtx_device_info info;

    dtx_device_info(w->device, &info);
    return info.mem_total - info.mem_total / 20; /* a twentieth stays for prompts' caches and the system */
}

static uint64_t promised(const struct worker *w)
{
    uint64_t sum = 0;

    for (const struct job *j = w->jobs; j; j = j->next) {
        uint64_t has = j->train ? dtx_job_bytes(j->train) : 0;

        if (j->train && j->plan > has)
            sum += j->plan - has;
    }
    return sum;
}

uint64_t room_free(const struct worker *w)
{
    struct dtx_device_info info;
    uint64_t limit = room_limit(w), taken;

    dtx_device_info(w->device, &info);
    taken = info.mem_used + promised(w);
    return taken < limit ? limit - taken : 0;
}

bool room_make(struct worker *w, uint64_t need, const struct base_entry *keep)
{
    while (room_free(w) < need)
        if (!bases_drop_one(w, keep))
            return false;
    return true;
}
