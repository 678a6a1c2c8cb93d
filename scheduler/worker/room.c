/* Memory is planned: what runs was promised its bytes, whether it has allocated them yet or not. */
#include <stdio.h>

#include "scheduler/worker/bases.h"
#include "scheduler/worker/gen.h"
#include "scheduler/worker/job.h"

/* Positions of answers that a base in memory keeps room for, so that people can ask while it trains. */
enum { ANSWER_POSITIONS = 4096 };

const char *room_words(uint64_t bytes, char out[24])
{
    const double gib = 1 << 30, mib = 1 << 20;

    if ((double)bytes >= 0.1 * gib)
        snprintf(out, 24, "%.1f GiB", (double)bytes / gib);
    else
        snprintf(out, 24, "%.2f MiB", (double)bytes / mib);
    return out;
}

uint64_t room_answers(const struct worker *w, const struct dtx_model_config *c)
{
    return dtx_cache_bytes(w->device, c, ANSWER_POSITIONS);
}

/* What the answers being made on b hold. */
static uint64_t answers_of(const struct worker *w, const struct base_entry *b)
{
    uint64_t sum = 0;

    for (const struct gen *g = w->gens; g; g = g->next)
        if (g->base == b && g->seq)
            sum += g->bytes;
    return sum;
}

uint64_t room_base(const struct worker *w, const struct base_entry *b)
{
    uint64_t sum = dtx_base_held(b->base) + b->plan.adapters + b->plan.scratch, answers = answers_of(w, b),
             kept = room_answers(w, dtx_base_config(b->base));

    for (const struct adapter_entry *a = b->adapters; a; a = a->next)
        sum += dtx_adapter_bytes(a->adapter);
    return sum + (answers > kept ? answers : kept);
}

/* Of jobs that have given back their training memory and will load what they exported. */
static uint64_t adapters_to_come(const struct worker *w)
{
    uint64_t sum = 0;

    for (const struct job *j = w->jobs; j; j = j->next)
        if (j->phase == JP_SERVE && !j->spec.score_only && !j->adapter)
            sum += dtx_adapter_plan(w->device, &j->prep.config, j->spec.params.rank, j->spec.params.targets);
    return sum;
}

static uint64_t left_of(uint64_t limit, uint64_t taken)
{
    return taken < limit ? limit - taken : 0;
}

void room_look(const struct worker *w, struct room *r)
{
    struct dtx_device_info info;
    uint64_t most;

    dtx_device_info(w->device, &info);
    most = info.mem_total -
           info.mem_total / 20; /* a twentieth stays for the system and for what is not planned */
    r->total = info.mem_total;
    r->others = left_of(info.mem_used, info.mem_own);
    r->limit = w->memory && w->memory < most ? w->memory : most;
    r->usable = left_of(most, r->others) < r->limit ? left_of(most, r->others) : r->limit;
    r->planned = adapters_to_come(w);
    for (const struct base_entry *b = w->bases; b; b = b->next)
        r->planned += room_base(w, b);
    r->free = left_of(r->usable, r->planned);
}

bool room_make(struct worker *w, uint64_t need, const struct base_entry *keep)
{
    struct room r;

    for (room_look(w, &r); r.free < need; room_look(w, &r))
        if (!bases_drop_one(w, keep))
            return false;
    return true;
}

bool room_for_answer(struct worker *w, struct base_entry *b, uint64_t bytes)
{
    uint64_t now = answers_of(w, b), kept = room_answers(w, dtx_base_config(b->base)), then = now + bytes;

    now = now > kept ? now : kept;
    return then <= now || room_make(w, then - now, b);
}

static int training_on(const struct worker *w, const struct base_entry *b)
{
    int n = 0;

    for (const struct job *j = w->jobs; j; j = j->next)
        n += j->train && j->base == b;
    return n;
}

void room_describe(const struct worker *w, struct buf *out)
{
    char a[24], b[24];
    struct room r;

    room_look(w, &r);
    buf_addf(out, "%s has %s", w->kind, room_words(r.total, a));
    if (r.limit < r.total - r.total / 20)
        buf_addf(out, " (of which DTX may use %s)", room_words(r.limit, a));
    for (const struct base_entry *e = w->bases; e; e = e->next) {
        int n = training_on(w, e);
        buf_addf(out, ", %s by model %s", room_words(room_base(w, e), a), e->name);
        if (n)
            buf_addf(out, " with %d job%s", n, n > 1 ? "s" : "");
    }
    if (r.usable < r.limit)
        buf_addf(out, ", %s in use by other programs", room_words(r.others, b));
    buf_addf(out, ", %s free", room_words(r.free, a));
}

void room_wait(const struct worker *w, uint64_t need, const char *what, struct dtx_err *e)
{
    struct buf text = BUF_INIT;
    char a[24];

    room_describe(w, &text);
    dtx_fail(e, -EAGAIN, "waits for %s of device memory%s%s: %s", room_words(need, a), *what ? " for " : "",
             what, text.p ? text.p : "");
    buf_release(&text);
}
