/*
 * What the hardware does beside the threads: copies to shared memory, boxes of tensors, products of warpgroups, and the
 * mbarriers that tell of it.  See soft.h: each is done at once or only when somebody waits for it, by chance.
 */
#include "kernels/cuda/soft/machine.h"
#include "kernels/cuda/soft/soft.h"

#include <cstdio>
#include <cstring>

static bool at_once()
{
    return soft_chance(soft_now->block->cluster) & 1;
}

/* The items of all but the last `groups` committed groups are done, in order. */
template <typename T, typename F> static void finish(soft_queue<T> *q, int groups, F f)
{
    size_t n = q->ends.size() > (size_t)groups ? q->ends.size() - (size_t)groups : 0, end = n ? q->ends[n - 1] : 0;
    for (size_t i = 0; i < end; i++)
        f(q->items[i]);
    q->items.erase(q->items.begin(), q->items.begin() + (ptrdiff_t)end);
    q->ends.erase(q->ends.begin(), q->ends.begin() + (ptrdiff_t)n);
    for (size_t &e : q->ends)
        e -= end;
}

/* ---- cp.async ---- */

static void copy_now(const soft_copy &c)
{
    memset(c.to, 0, (size_t)c.bytes);
    memcpy(c.to, c.from, (size_t)c.n);
}

void soft_copy_start(void *to, const void *from, int n, int bytes)
{
    if ((uintptr_t)to % (unsigned)bytes || (n && (uintptr_t)from % (unsigned)bytes))
        soft_die("a copy of %d bytes at an odd address", bytes);
    if (at_once())
        copy_now({to, from, n, bytes});
    else
        soft_now->copies.items.push_back({to, from, n, bytes});
}

void soft_copy_commit()
{
    soft_now->copies.commit();
}

void soft_copy_wait(int groups)
{
    finish(&soft_now->copies, groups, copy_now);
}

/* ---- wgmma ---- */

/* Where 16 bytes lie: the pieces of rows of 32, 64 or 128 bytes are swizzled by the address itself, as wgmma.cuh
 * describes it. */
static uint32_t swizzled(uint32_t address, uint32_t row_bytes)
{
    return address ^ (address >> 7 & (row_bytes / 16 - 1)) << 4;
}

/* Eight elements from an address on, a multiple of 16. */
static void read_piece(uint32_t address, uint32_t row_bytes, float to[8])
{
    uint32_t words[4];
    memcpy(words, soft_pointer(swizzled(address, row_bytes)), 16);
    for (unsigned i = 0; i < 8; i++)
        to[i] = soft_half(words[i / 2], i % 2);
}

struct operand {
    uint32_t start, leading, stride, row_bytes;
};

static operand read_descriptor(uint64_t d)
{
    if (d >> 62 == 0)
        soft_die("wgmma: an operand without a swizzle");
    return {(uint32_t)(d & 0x3fff) << 4, (uint32_t)(d >> 16 & 0x3fff) << 4, (uint32_t)(d >> 32 & 0x3fff) << 4,
            256u >> (d >> 62)};
}

/* to[k][i]: what lies with k down the rows, i along them, i < n; and that with k along the rows. */
static void read_down(uint64_t descriptor, unsigned n, float (*to)[256])
{
    operand o = read_descriptor(descriptor);
    unsigned width = o.row_bytes / 2;
    for (unsigned k = 0; k < 16; k++)
        for (unsigned i = 0; i < n; i += 8)
            read_piece(o.start + i / width * o.leading + k / 8 * o.stride + k % 8 * o.row_bytes + i % width * 2,
                       o.row_bytes, &to[k][i]);
}

static void read_along(uint64_t descriptor, unsigned n, float (*to)[256])
{
    operand o = read_descriptor(descriptor);
    for (unsigned i = 0; i < n; i++)
        for (unsigned k = 0; k < 16; k += 8) {
            float piece[8];
            read_piece(o.start + i / 8 * o.stride + i % 8 * o.row_bytes + k * 2, o.row_bytes, piece);
            for (unsigned j = 0; j < 8; j++)
                to[k + j][i] = piece[j];
        }
}

/* A thread has rows lane / 4 and 8 more of its warp's 16, columns lane % 4 * 2 (+ 1) and 8 more. */
static void read_fragments(const soft_thread *group, size_t item, float (*a)[256])
{
    for (unsigned t = 0; t < SOFT_WARPGROUP; t++)
        for (unsigned i = 0; i < 4; i++)
            for (unsigned j = 0; j < 2; j++)
                a[t % 4 * 2 + j + i / 2 * 8][t / 32 * 16 + t % 32 / 4 + i % 2 * 8] =
                    soft_half(group[t].products.items[item].fragment[i], j);
}

/* The rows' sums go to the threads' registers. */
static void add_row(soft_thread *group, size_t item, unsigned row, const float *sum)
{
    for (unsigned q = 0; q < 4; q++) {
        const soft_product &p = group[row / 16 * 32 + row % 8 * 4 + q].products.items[item];
        float *c = &p.c[0][row % 16 / 8 * 2];
        for (int i = 0; i < p.n / 8; i++)
            for (int j = 0; j < 2; j++)
                c[i * 4 + j] = (p.keep ? c[i * 4 + j] : 0.f) + sum[(unsigned)(i * 8 + j) + q * 2];
    }
}

static void multiply(soft_thread *group, size_t item)
{
    const soft_product &p = group[0].products.items[item];
    float a[16][256], b[16][256], sum[256];
    for (unsigned t = 1; t < SOFT_WARPGROUP; t++) {
        const soft_product &o = group[t].products.items[item];
        if (o.a != p.a || o.b != p.b || o.n != p.n || o.registers != p.registers || o.n_major != p.n_major ||
            o.m_major != p.m_major || o.keep != p.keep)
            soft_die("wgmma: the threads of a warpgroup start different products");
    }
    if (p.registers)
        read_fragments(group, item, a);
    else if (p.m_major)
        read_down(p.a, 64, a);
    else
        read_along(p.a, 64, a);
    if (p.n_major)
        read_down(p.b, (unsigned)p.n, b);
    else
        read_along(p.b, (unsigned)p.n, b);
    for (unsigned r = 0; r < 64; r++) {
        memset(sum, 0, sizeof(float) * (size_t)p.n);
        for (unsigned k = 0; k < 16; k++)
            for (int n = 0; n < p.n; n++)
                sum[n] += a[k][r] * b[k][n];
        add_row(group, item, r, sum);
    }
}

void soft_product_start(const soft_product &p)
{
    soft_now->products.items.push_back(p);
}

static void finish_products(soft_thread *group, int groups)
{
    const soft_queue<soft_product> &q = group[0].products;
    size_t n = q.ends.size() > (size_t)groups ? q.ends.size() - (size_t)groups : 0, end = n ? q.ends[n - 1] : 0;
    for (unsigned t = 1; t < SOFT_WARPGROUP; t++)
        if (group[t].products.ends.size() != q.ends.size() || group[t].products.items.size() != q.items.size())
            soft_die("wgmma: the threads of a warpgroup started different numbers of products");
    for (size_t i = 0; i < end; i++)
        multiply(group, i);
    for (unsigned t = 0; t < SOFT_WARPGROUP; t++)
        finish(&group[t].products, groups, [](const soft_product &) {});
}

/* The last of the warpgroup to come does the work of all: their registers lie on their stacks.  Nobody goes on before
 * that, so the products of a group may as well be done here as at their start. */
static void meet_for_products(int groups, const char *where)
{
    soft_thread *t = soft_now;
    soft_block *b = t->block;
    size_t g = (size_t)t->number / SOFT_WARPGROUP;
    soft_meet *m = &b->warpgroups[g];
    unsigned round = m->round;
    if (m->arrived + 1 == SOFT_WARPGROUP)
        finish_products(&b->threads[g * SOFT_WARPGROUP], groups);
    if (!soft_arrive(m, SOFT_WARPGROUP))
        soft_wait_round(m, round, where);
}

/* By chance, but the same for the whole warpgroup, at once. */
void soft_product_commit()
{
    soft_thread *t = soft_now;
    t->products.commit();
    if ((t->products.committed * 0x9e3779b9u >> 16 ^ (unsigned)t->block->cluster->seed) & 1)
        meet_for_products(0, "its warpgroup, to start products");
    soft_pause();
}

void soft_product_wait(int groups)
{
    meet_for_products(groups, "the products of its warpgroup");
}

/* ---- mbarriers: a phase is over when `pending` arrivals and `bytes` have come ---- */

struct mbarrier {
    int32_t bytes;
    uint16_t pending, expected : 15, phase : 1;
};
static_assert(sizeof(mbarrier) == 8, "as in the hardware");

static mbarrier *bar_in(soft_block *b, uint32_t bar)
{
    if (bar % 8)
        soft_die("an mbarrier at an odd address");
    return (mbarrier *)soft_pointer_in(b, bar);
}

static void turn_if_over(mbarrier *m)
{
    if (m->pending || m->bytes)
        return;
    m->pending = m->expected;
    m->phase ^= 1;
}

void soft_bar_init(uint32_t bar, unsigned count)
{
    *bar_in(soft_now->block, bar) = {0, (uint16_t)count, (uint16_t)(count & 0x7fff), 0};
}

void soft_bar_arrive(uint32_t bar, int rank, unsigned bytes)
{
    soft_block *own = soft_now->block;
    if (rank >= (int)own->cluster->blocks.size())
        soft_die("an arrival at block %d of a cluster of %zu", rank, own->cluster->blocks.size());
    mbarrier *m = bar_in(rank < 0 ? own : &own->cluster->blocks[(size_t)rank], bar);
    if (!m->pending)
        soft_die("one arrival more than an mbarrier was made for");
    m->bytes += (int32_t)bytes;
    m->pending--;
    turn_if_over(m);
    soft_pause();
}

bool soft_phase_over(uint64_t bar, unsigned parity)
{
    mbarrier m;
    memcpy(&m, &bar, sizeof(m));
    return m.phase != (parity & 1);
}

bool soft_bar_over(uint32_t bar, unsigned parity)
{
    return bar_in(soft_now->block, bar)->phase != (parity & 1);
}

void soft_bar_wait(uint32_t bar, unsigned parity)
{
    soft_thread *t = soft_now;
    const uint64_t *at = (const uint64_t *)bar_in(t->block, bar);
    if (soft_phase_over(*at, parity))
        return;
    t->bar = at;
    t->parity = parity;
    while (!soft_phase_over(*at, parity))
        soft_yield("an mbarrier");
    t->bar = NULL;
}

/* ---- boxes of tensors ---- */

static soft_map map_of(const void *map)
{
    soft_map m;
    memcpy(&m, map, sizeof(m));
    if (!m.base || !m.box_columns)
        soft_die("a tensor map that was not encoded");
    return m;
}

/* Calls f(shared address, place in the tensor, bytes of it that exist) for each 16 bytes of the box. */
template <typename F> static void each_of_box(const soft_map &m, int column, int row, uint32_t at, F f)
{
    if (column < 0 || row < 0)
        soft_die("a box that begins outside its tensor");
    for (int r = 0; r < m.box_rows; r++)
        for (int c = 0; c < m.box_columns; c += 8) {
            uint32_t linear = at + (uint32_t)(r * m.box_columns + c) * 2;
            int64_t left = row + r < m.rows ? m.columns - column - c : 0;
            f(swizzled(linear, (uint32_t)m.box_columns * 2), m.base + (row + r) * m.stride + (column + c) * 2,
              (size_t)(left < 0   ? 0
                       : left < 8 ? left
                                  : 8) *
                  2);
        }
}

static void load_now(soft_cluster *c, const soft_load &l)
{
    for (size_t b = 0; b < c->blocks.size(); b++) {
        if (!(l.mask >> b & 1))
            continue;
        soft_block *to = &c->blocks[b];
        each_of_box(l.map, l.column, l.row, l.to, [&](uint32_t at, const char *from, size_t n) {
            unsigned char *p = soft_pointer_in(to, at);
            memset(p, 0, 16);
            memcpy(p, from, n);
        });
        mbarrier *m = bar_in(to, l.bar);
        m->bytes -= l.map.box_rows * l.map.box_columns * 2;
        if (!m->pending)
            turn_if_over(m);
    }
}

bool soft_loads_some(soft_cluster *c, bool must)
{
    bool any = false;
    while (!c->loads.empty() && ((must && !any) || soft_chance(c) % 2)) {
        size_t i = soft_chance(c) % c->loads.size(); /* in any order */
        soft_load l = c->loads[i];
        c->loads.erase(c->loads.begin() + (ptrdiff_t)i);
        load_now(c, l);
        any = true;
    }
    return any;
}

void soft_box_load(uint32_t to, const void *map, int column, int row, uint32_t bar, unsigned mask)
{
    soft_cluster *c = soft_now->block->cluster;
    soft_load l = {map_of(map), column, row, to, bar, mask ? mask : 1u << soft_now->block->rank};
    if (l.mask >> c->blocks.size())
        soft_die("a load for blocks beyond the cluster");
    if (at_once())
        load_now(c, l);
    else
        c->loads.push_back(l);
    soft_pause();
}

static void store_now(const soft_store &s)
{
    each_of_box(s.map, s.column, s.row, s.from,
                [](uint32_t at, char *to, size_t n) { memcpy(to, soft_pointer(at), n); });
}

void soft_box_store(const void *map, int column, int row, uint32_t from)
{
    soft_store s = {map_of(map), column, row, from};
    if (at_once())
        store_now(s);
    else
        soft_now->stores.items.push_back(s);
}

void soft_store_commit()
{
    soft_now->stores.commit();
}

void soft_store_wait(int groups)
{
    finish(&soft_now->stores, groups, store_now);
}
