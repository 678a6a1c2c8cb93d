/* Grids, blocks, fibers: who runs when.  See soft.h. */
#include "kernels/cuda/soft/soft.h"
#include "kernels/cuda/soft/machine.h"

#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <link.h>
#include <mutex>
#include <sys/mman.h>
#include <thread>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

enum { STACK = 256 << 10, SHARED_BASE = 1024, VARIABLES = 1 << 30, VARIABLES_REACH = 1 << 24, LATE_FOR = 32 };

thread_local soft_thread *soft_now;
thread_local const soft_launch *soft_running;
static thread_local soft_cluster *running_cluster;

void soft_die(const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    fputs("the CUDA device in software: ", stderr);
    vfprintf(stderr, format, ap);
    fputc('\n', stderr);
    va_end(ap);
    abort();
}

/* ---- fibers ---- */

/* Saves what a call must keep on the stack, puts the stack pointer into *from, goes on where `to` was saved. */
extern "C" void soft_switch(void **from, void *to);
#if defined(__x86_64__)
asm(R"(
.text
.globl soft_switch
.hidden soft_switch
.type soft_switch, @function
soft_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size soft_switch, . - soft_switch
)");
enum { SAVED = 6 };
#elif defined(__aarch64__)
asm(R"(
.text
.globl soft_switch
.hidden soft_switch
.type soft_switch, %function
soft_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
)");
#else
#error "a context switch for this processor"
#endif

static thread_local void *scheduler_sp;

static void to_scheduler()
{
#if defined(__SANITIZE_ADDRESS__)
    void *fake;
    __sanitizer_start_switch_fiber(soft_now->done ? NULL : &fake, running_cluster->host_stack,
                                   running_cluster->host_stack_bytes);
#endif
    soft_switch(&soft_now->stack_pointer, scheduler_sp);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
}

static void end_of_thread(soft_thread *t)
{
    soft_block *b = t->block;
    soft_warp *w = &b->warps[t->number / 32];
    soft_copy_wait(0);
    soft_store_wait(0);
    if (!t->products.items.empty())
        soft_die("a thread ends with products in flight");
    t->done = true;
    b->alive--;
    w->alive--;
    for (int i = 0; i < SOFT_BARRIERS; i++) /* whoever ends does not come to the barriers of all */
        if (b->barrier[i].arrived && !b->wanted[i] && b->barrier[i].arrived == b->alive) {
            b->barrier[i].arrived = 0;
            b->barrier[i].round++;
        }
    if (w->meet.arrived && w->meet.arrived == w->alive) {
        w->meet.arrived = 0;
        w->meet.round++;
    }
}

static void thread_main()
{
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(NULL, &running_cluster->host_stack, &running_cluster->host_stack_bytes);
#endif
    soft_running->body();
    end_of_thread(soft_now);
    to_scheduler();
    abort();
}

static void prepare_stack(soft_thread *t)
{
    void **top = (void **)((char *)t->stack + STACK);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(t->stack, STACK); /* who had it before never returned */
#endif
#if defined(__x86_64__)
    *--top = NULL; /* keeps the stack at a multiple of 16 at the entry */
    *--top = (void *)thread_main;
    for (int i = 0; i < SAVED; i++)
        *--top = NULL;
#else
    top -= 20;
    memset(top, 0, 160);
    top[11] = (void *)thread_main;
#endif
    t->stack_pointer = top;
}

static void run_thread(soft_thread *t)
{
    soft_now = t;
#if defined(__SANITIZE_ADDRESS__)
    void *fake;
    __sanitizer_start_switch_fiber(&fake, t->stack, STACK);
#endif
    soft_switch(&scheduler_sp, t->stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, NULL, NULL);
#endif
    soft_now = NULL;
}

void soft_wait_round(const soft_meet *m, unsigned old, const char *where)
{
    soft_thread *t = soft_now;
    t->round = &m->round;
    t->old = old;
    t->where = where;
    while (m->round == old)
        to_scheduler();
    t->round = NULL;
}

/* True for whoever comes last. */
bool soft_arrive(soft_meet *m, int count)
{
    if (++m->arrived < count)
        return false;
    m->arrived = 0;
    m->round++;
    return true;
}

void soft_yield(const char *where)
{
    soft_now->where = where;
    to_scheduler();
}

void soft_pause()
{
    soft_cluster *c = soft_now->block->cluster;
    if (soft_chance(c) % 4)
        return;
    c->pause = true;
    soft_yield("its turn");
}

const unsigned char *soft_show(const void *mine, size_t n)
{
    soft_thread *t = soft_now;
    soft_warp *w = &t->block->warps[t->number / 32];
    unsigned round = w->meet.round;
    if (n && w->alive < 32)
        soft_die("lanes of a warp exchange values, but %d of them have ended", 32 - w->alive);
    if (n)
        memcpy(w->post[round & 1][t->number % 32], mine, n);
    if (!soft_arrive(&w->meet, w->alive))
        soft_wait_round(&w->meet, round, "the other lanes of its warp");
    return w->post[round & 1][0];
}

struct mma_lane {
    uint32_t a[4], b[2];
    float *c;
};

/* Lane: g = lane / 4, t = lane % 4.  a: rows g, g + 8, columns 2 t (+ 1) and 8 more; b: rows 2 t (+ 1) and 8 more,
 * column g; c: rows g, g + 8, columns 2 t (+ 1). */
static void mma_of_warp(const unsigned char *shown)
{
    float a[16][16], b[16][8], sum[16][8] = {};
    for (unsigned lane = 0; lane < 32; lane++) {
        mma_lane l;
        unsigned g = lane / 4, t = lane % 4;
        memcpy(&l, shown + lane * 64, sizeof(l));
        for (unsigned i = 0; i < 4; i++)
            for (unsigned j = 0; j < 2; j++)
                a[g + i % 2 * 8][t * 2 + j + i / 2 * 8] = soft_half(l.a[i], j);
        for (unsigned i = 0; i < 2; i++)
            for (unsigned j = 0; j < 2; j++)
                b[t * 2 + j + i * 8][g] = soft_half(l.b[i], j);
    }
    for (unsigned r = 0; r < 16; r++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned n = 0; n < 8; n++)
                sum[r][n] += a[r][k] * b[k][n];
    for (unsigned lane = 0; lane < 32; lane++) {
        mma_lane l;
        memcpy(&l, shown + lane * 64, sizeof(l));
        for (unsigned i = 0; i < 4; i++)
            l.c[i] += sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

/* The last lane to come does the work of all: their sums lie on their stacks. */
void soft_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    soft_thread *t = soft_now;
    soft_warp *w = &t->block->warps[(size_t)t->number / 32];
    unsigned round = w->meet.round;
    mma_lane mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}, c};
    if (w->alive < 32)
        soft_die("mma: lanes of the warp have ended");
    memcpy(w->post[round & 1][t->number % 32], &mine, sizeof(mine));
    if (w->meet.arrived + 1 == w->alive)
        mma_of_warp(w->post[round & 1][0]);
    if (!soft_arrive(&w->meet, w->alive))
        soft_wait_round(&w->meet, round, "the other lanes of its warp");
}

void soft_barrier(int id, int threads)
{
    soft_block *b = soft_now->block;
    soft_meet *m = &b->barrier[id];
    unsigned round = m->round;
    if (m->arrived && b->wanted[id] != threads)
        soft_die("barrier %d is used for %d threads and for %d", id, b->wanted[id], threads);
    b->wanted[id] = threads;
    if (!soft_arrive(m, threads ? threads : b->alive))
        soft_wait_round(m, round, threads ? "a barrier of some threads" : "the threads of its block");
}

void soft_cluster_barrier()
{
    soft_cluster *c = soft_now->block->cluster;
    unsigned round = c->meet.round;
    if (!soft_arrive(&c->meet, (int)(c->blocks.size() * c->blocks[0].threads.size())))
        soft_wait_round(&c->meet, round, "the blocks of its cluster");
}

/* ---- shared memory ---- */

/* Variables in shared memory lie among this host thread's own, at some distance of this one. */
static thread_local unsigned char anchor;

uint32_t soft_address(const void *p)
{
    soft_block *b = soft_now->block;
    size_t at = (size_t)((const unsigned char *)p - b->shared);
    ptrdiff_t other = (const unsigned char *)p - &anchor;
    if (at <= b->shared_bytes)
        return SHARED_BASE + (uint32_t)at;
    if (other < -VARIABLES_REACH || other > VARIABLES_REACH)
        soft_die("an address outside shared memory is used as one in it");
    return VARIABLES + (uint32_t)other;
}

unsigned char *soft_pointer_in(soft_block *b, uint32_t address)
{
    if (address >= VARIABLES - VARIABLES_REACH && address <= VARIABLES + VARIABLES_REACH) {
        if (b->cluster->blocks.size() > 1)
            soft_die("a cluster of blocks with shared variables: their blocks would share them here");
        return &anchor + (ptrdiff_t)(int32_t)(address - VARIABLES);
    }
    if (address < SHARED_BASE || address - SHARED_BASE > b->shared_bytes)
        soft_die("shared address %#x: the block has %zu bytes", address, b->shared_bytes);
    return b->shared + (address - SHARED_BASE);
}

unsigned char *soft_pointer(uint32_t address)
{
    return soft_pointer_in(soft_now->block, address);
}

/* ---- a cluster ---- */

static bool may_run(const soft_thread *t)
{
    return !t->done && !(t->round && *t->round == t->old) && !(t->bar && !soft_phase_over(*t->bar, t->parity));
}

/* One warp for as long as any of its lanes can go on, or for a while, or to a pause; its lanes in ascending or in
 * descending order. */
static bool run_warp(soft_cluster *c, size_t warp)
{
    size_t warps = c->blocks[0].warps.size(), first = warp % warps * 32;
    soft_block *b = &c->blocks[warp / warps];
    size_t lanes = std::min(b->threads.size() - first, (size_t)32);
    unsigned rounds = 1 + soft_chance(c) % 64, down = soft_chance(c) & 1;
    bool ran = false, again = true;
    c->pause = false;
    for (; again && rounds; rounds--) {
        again = false;
        for (size_t i = 0; i < lanes && !c->pause; i++) {
            soft_thread *t = &b->threads[first + (down ? lanes - 1 - i : i)];
            if (may_run(t)) {
                run_thread(t);
                ran = again = true;
            }
        }
    }
    return ran;
}

/* Of threads side by side that wait for the same, the first. */
[[noreturn]] static void say_who_waits(const soft_cluster *c)
{
    for (const soft_block &b : c->blocks) {
        const soft_thread *last = NULL;
        for (const soft_thread &t : b.threads) {
            if (t.done || (last && t.where == last->where && t.bar == last->bar && t.parity == last->parity))
                continue;
            last = &t;
            fprintf(stderr, "block %u,%u,%u thread %d waits for %s", b.index.x, b.index.y, b.index.z, t.number,
                    t.where ? t.where : "nothing");
            if (t.bar)
                fprintf(stderr, " (byte %td of its shared memory, phase %u)", (const unsigned char *)t.bar - b.shared,
                        t.parity & 1);
            fputc('\n', stderr);
        }
    }
    soft_die("all threads of a block wait");
}

/* All warps but a late one, in another order each time. */
static bool run_warps(soft_cluster *c, std::vector<size_t> *order, size_t late)
{
    bool ran = false;
    for (size_t i = 0; i < order->size(); i++)
        std::swap((*order)[i], (*order)[i + soft_chance(c) % (order->size() - i)]);
    for (size_t w : *order) {
        if (w != late)
            ran |= run_warp(c, w);
        if (soft_chance(c) % c->load_odds == 0)
            ran |= soft_loads_some(c, false);
    }
    return ran;
}

/* Now and then a warp is late: it runs when the others wait. */
static void run_cluster(soft_cluster *c)
{
    size_t warps = c->blocks.size() * c->blocks[0].warps.size(), alive = 1, late = warps;
    std::vector<size_t> order(warps);
    for (size_t i = 0; i < warps; i++)
        order[i] = i;
    for (unsigned turn = 0; alive; turn++) {
        if (turn % LATE_FOR == 0)
            late = soft_chance(c) % (2 * warps);
        if (!run_warps(c, &order, late) && !(late < warps && run_warp(c, late)) && !soft_loads_some(c, true))
            say_who_waits(c);
        alive = 0;
        for (const soft_block &b : c->blocks)
            alive += (size_t)b.alive;
    }
    if (!c->loads.empty())
        soft_die("a block ends with loads in flight");
}

/* A thread of the host keeps the stacks from grid to grid.  Where its instance of this library's thread-local variables
 * lies, the kernels' variables in shared memory among them: */
struct host {
    std::vector<void *> stacks;
    unsigned char *variables;
    size_t variables_bytes;
};

static thread_local host *own;

static void *stack_of(host *h, size_t i)
{
    while (h->stacks.size() <= i) {
        void *s = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (s == MAP_FAILED)
            soft_die("no memory for the stack of a thread");
        h->stacks.push_back(s);
    }
    return h->stacks[i];
}

static int find_variables(struct dl_phdr_info *info, size_t, void *p)
{
    host *h = (host *)p;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        unsigned char *from = (unsigned char *)info->dlpi_tls_data;
        size_t n = info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_TLS && from && &anchor >= from && &anchor < from + n) {
            h->variables = from;
            h->variables_bytes = n;
        }
    }
    return h->variables != NULL;
}

/* Variables in shared memory begin as NaN like the rest of it.  No fiber runs now, so what is ours among them need not
 * be kept, but for one. */
static host *begin_host()
{
    host *h = own;
    if (!h) {
        h = new host();
        if (!dl_iterate_phdr(find_variables, h))
            soft_die("where are the variables in shared memory?");
    }
    memset(h->variables, 0xff, h->variables_bytes);
    own = h;
    return h;
}

enum { RED = 1024 }; /* bytes of 0xff behind shared memory: nobody writes there */

static unsigned char *new_shared(size_t bytes)
{
    void *p = NULL;
    if (posix_memalign(&p, 1024, bytes + SOFT_RED_ZONE(RED)))
        soft_die("no memory for shared memory");
    memset(p, 0xff, bytes + SOFT_RED_ZONE(RED));
    return (unsigned char *)p;
}

static void begin_block(soft_cluster *c, soft_block *b, const soft_launch &l, size_t number, host *h, size_t *stack)
{
    size_t n = (size_t)l.block.x * l.block.y * l.block.z;
    b->cluster = c;
    b->index = {(unsigned)(number % l.grid.x), (unsigned)(number / l.grid.x % l.grid.y),
                (unsigned)(number / l.grid.x / l.grid.y)};
    b->alive = (int)n;
    b->shared_bytes = l.shared_bytes;
    b->shared = new_shared(l.shared_bytes);
    memset(b->barrier, 0, sizeof(b->barrier));
    memset(b->wanted, 0, sizeof(b->wanted));
    b->threads.resize(n);
    b->warps.assign((n + 31) / 32, soft_warp());
    b->warpgroups.assign((n + SOFT_WARPGROUP - 1) / SOFT_WARPGROUP, soft_meet());
    for (size_t i = 0; i < n; i++) {
        soft_thread *t = &b->threads[i];
        *t = soft_thread();
        t->stack = stack_of(h, (*stack)++);
        t->block = b;
        t->number = (int)i;
        t->index = {(unsigned)(i % l.block.x), (unsigned)(i / l.block.x % l.block.y),
                    (unsigned)(i / l.block.x / l.block.y)};
        b->warps[i / 32].alive++;
        prepare_stack(t);
    }
}

static void end_block(soft_block *b)
{
    if (!soft_untouched(b->shared + b->shared_bytes, SOFT_RED_ZONE(RED)))
        soft_die("block %u,%u,%u wrote behind its shared memory of %zu bytes", b->index.x, b->index.y, b->index.z,
                 b->shared_bytes);
    free(b->shared);
}

static void run_one(const soft_launch &l, size_t first, size_t blocks, uint64_t seed)
{
    host *h = begin_host();
    soft_cluster c = {};
    size_t stack = 0;
    c.seed = seed;
    c.random = seed * 0x9e3779b97f4a7c15u + first + 1;
    c.load_odds = soft_chance(&c) % 2 ? 8 : 1u << 31; /* the latter: as late as can be */
    c.blocks.resize(blocks);
    for (size_t i = 0; i < blocks; i++) {
        c.blocks[i].rank = (int)i;
        begin_block(&c, &c.blocks[i], l, first + i, h, &stack);
    }
    soft_now = NULL;
    running_cluster = &c;
    soft_running = &l;
    run_cluster(&c);
    for (soft_block &b : c.blocks)
        end_block(&b);
}

/* ---- a grid ---- */

static uint64_t first_seed()
{
    const char *s = getenv("DTX_SOFT_SEED");
    return s ? strtoull(s, NULL, 10) : 1;
}

static unsigned host_threads()
{
    const char *s = getenv("DTX_SOFT_THREADS");
    unsigned n = s ? (unsigned)strtoul(s, NULL, 10) : std::thread::hardware_concurrency();
    return n ? n : 1;
}

/* The host's threads that share a grid.  They are never joined: they end with the process. */
struct crew {
    std::mutex mu;
    std::condition_variable start, ended;
    const soft_launch *grid; /* protected by mu, as what follows but next */
    size_t blocks, each;
    uint64_t seed, turn;
    unsigned busy, size;
    std::atomic<size_t> next;

    void work()
    {
        for (size_t i; (i = next.fetch_add(each)) < blocks;)
            run_one(*grid, i, each, seed);
    }
    void member()
    {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mu);
        for (;;) {
            start.wait(lock, [&] { return turn != seen; });
            seen = turn;
            lock.unlock();
            work();
            lock.lock();
            if (--busy == 0)
                ended.notify_one();
        }
    }
};

void soft_run(const soft_launch &l)
{
    static crew *c = new crew();
    static std::mutex one_grid;
    std::lock_guard<std::mutex> alone(one_grid);
    std::unique_lock<std::mutex> lock(c->mu);
    size_t blocks = (size_t)l.grid.x * l.grid.y * l.grid.z;

    if (!blocks || blocks % (size_t)l.cluster)
        soft_die("a grid of %zu blocks in clusters of %d", blocks, l.cluster);
    if (!c->size) {
        c->size = host_threads();
        c->seed = first_seed();
        for (unsigned i = 1; i < c->size; i++)
            std::thread([] { c->member(); }).detach();
    }
    c->grid = &l;
    c->blocks = blocks;
    c->each = l.together ? blocks : (size_t)l.cluster;
    c->seed++;
    c->next = 0;
    c->busy = blocks > c->each ? c->size - 1 : 0;
    if (c->busy) {
        c->turn++;
        c->start.notify_all();
    }
    lock.unlock();
    c->work();
    lock.lock();
    c->ended.wait(lock, [] { return c->busy == 0; });
}
