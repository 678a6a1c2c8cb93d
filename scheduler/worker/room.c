/* Memory is planned: what runs was promised its bytes, whether it has allocated them yet or not. */
#include "scheduler/worker/bases.h"
#include "scheduler/worker/job.h"

uint64_t room_limit(const struct worker *w)
{
    struct dtx_device_info info;
    uint64_t limit;

    dtx_device_info(w->device, &info);
    limit = info.mem_total - info.mem_total / 20; /* a twentieth stays for prompts' caches and the system */
    return w->memory && w->memory < limit ? w->memory : limit;
}

/* By plan: the bases in memory and the jobs that run. */
static uint64_t promised(const struct worker *w)
{
    uint64_t sum = 0;

    for (const struct base_entry *b = w->bases; b; b = b->next)
        sum += dtx_base_bytes(b->base);
    for (const struct job *j = w->jobs; j; j = j->next)
        if (j->train)
            sum += j->plan;
    return sum;
}

static uint64_t left_of(uint64_t limit, uint64_t taken)
{
    return taken < limit ? limit - taken : 0;
}

uint64_t room_free(const struct worker *w)
{
    struct dtx_device_info info;
    uint64_t planned = promised(w), limit, taken, room;

    dtx_device_info(w->device, &info);
    limit = info.mem_total - info.mem_total / 20;
    taken = w->mem_before + planned > info.mem_used ? w->mem_before + planned : info.mem_used;
    room = left_of(limit, taken);
    if (w->memory && left_of(w->memory, planned) < room)
        room = left_of(w->memory, planned);
    return room;
}

bool room_make(struct worker *w, uint64_t need, const struct base_entry *keep)
{
    while (room_free(w) < need)
        if (!bases_drop_one(w, keep))
            return false;
    return true;
}
