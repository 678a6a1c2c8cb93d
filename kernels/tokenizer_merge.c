/*
 * Byte-pair merging: a chain of symbols and a heap of the pairs that may merge, best rank first, leftmost
 * among equals.  n symbols take O(n log n) steps, whatever the text is.
 */
#include "kernels/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

void merge_release(struct merger *m)
{
    free(m->s);
    free(m->heap);
    free(m->cut);
}

int merge_add(struct merger *m, uint32_t at, uint32_t len, int32_t id, bool frozen)
{
    if (m->n == m->cap) {
        uint32_t cap = m->cap ? m->cap * 2 : 64;
        struct merge_sym *p = realloc(m->s, (size_t)cap * sizeof(*p));
        if (!p)
            return -ENOMEM;
        m->s = p;
        m->cap = cap;
    }
    m->s[m->n] = (struct merge_sym){at, len, (int32_t)m->n - 1, (int32_t)m->n + 1, id, frozen};
    m->n++;
    return 0;
}

static bool before(const struct merge_cand *a, const struct merge_cand *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static int heap_push(struct merger *m, struct merge_cand c)
{
    uint32_t i = m->heap_n;

    if (m->heap_n == m->heap_cap) {
        uint32_t cap = m->heap_cap ? m->heap_cap * 2 : 128;
        struct merge_cand *p = realloc(m->heap, (size_t)cap * sizeof(*p));
        if (!p)
            return -ENOMEM;
        m->heap = p;
        m->heap_cap = cap;
    }
    m->heap_n++;
    for (; i > 0 && before(&c, &m->heap[(i - 1) / 2]); i = (i - 1) / 2)
        m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = c;
    return 0;
}

static struct merge_cand heap_pop(struct merger *m)
{
    struct merge_cand top = m->heap[0], last = m->heap[--m->heap_n];
    uint32_t i = 0, n = m->heap_n;

    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && before(&m->heap[child + 1], &m->heap[child]))
            child++;
        if (!before(&m->heap[child], &last))
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    if (n)
        m->heap[i] = last;
    return top;
}

/* The candidate that symbols left and right make, if they make one. */
static bool candidate(struct merger *m, int32_t left, int32_t right, struct merge_cand *c)
{
    const struct merge_sym *l = &m->s[left], *r = &m->s[right];

    if (l->frozen || r->frozen)
        return false;
    c->left = (uint32_t)left;
    c->right = (uint32_t)right;
    c->len = l->len + r->len;
    if (m->t->by_text) {
        c->id = tok_find(m->t, m->text + l->at, c->len);
        if (c->id < 0)
            return false;
        c->rank = m->t->pieces[c->id].rank;
        if (m->cut && m->t->pieces[c->id].kind == PIECE_UNUSED)
            m->cut[c->id] = l->len;
    } else {
        const struct pair *p = tok_pairs_find(&m->t->merges, l->id, r->id);
        if (!p)
            return false;
        c->id = p->id;
        c->rank = p->rank;
    }
    return true;
}

static int offer(struct merger *m, int32_t left, int32_t right)
{
    struct merge_cand c;

    if (left < 0 || right < 0 || !candidate(m, left, right, &c))
        return 0;
    return heap_push(m, c);
}

static int apply(struct merger *m, const struct merge_cand *c)
{
    struct merge_sym *l = &m->s[c->left], *r = &m->s[c->right];
    int rc;

    if (l->len == 0 || r->len == 0 || l->next != (int32_t)c->right || l->len + r->len != c->len)
        return 0; /* one of the two has merged with another one since */
    l->len = c->len;
    l->id = c->id;
    l->next = r->next;
    r->len = 0;
    if (l->next >= 0)
        m->s[l->next].prev = (int32_t)c->left;
    rc = offer(m, l->prev, (int32_t)c->left);
    return rc ? rc : offer(m, (int32_t)c->left, l->next);
}

int merge_run(struct merger *m)
{
    int rc = 0;

    m->heap_n = 0;
    if (m->n == 0)
        return 0;
    m->s[m->n - 1].next = -1;
    for (uint32_t i = 0; rc == 0 && i + 1 < m->n; i++)
        rc = offer(m, (int32_t)i, (int32_t)i + 1);
    while (rc == 0 && m->heap_n) {
        struct merge_cand c = heap_pop(m);
        rc = apply(m, &c);
    }
    return rc;
}
