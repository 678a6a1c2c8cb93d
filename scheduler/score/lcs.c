/*
 * The table t[i][j] = LCS of a[0..i) and b[0..j) by bits (H. Hyyroe, "Bit-parallel LCS-length computation
 * revisited", 2004): row i is kept as its steps, bit j = t[i][j + 1] - t[i][j], and made from row i - 1 for
 * 64 words of b at once. With match = where b has the word a[i - 1], and v = the complement of the steps, v'
 * = (v + (v & match)) | (v & ~match).
 */
#include "scheduler/score/lcs.h"

#include <stdlib.h>
#include <string.h>

struct masks {      /* word of b -> where b has it; open addressing */
    int32_t *key;   /* -1: free */
    uint64_t *bits; /* [size][width]; a free slot has none set */
    size_t size;    /* a power of two */
    size_t width;   /* 64-bit words a row */
};

static void masks_release(struct masks *m)
{
    free(m->key);
    free(m->bits);
}

static size_t find_slot(const struct masks *m, int32_t id)
{
    size_t at = (uint32_t)id * 2654435761u & (m->size - 1);

    while (m->key[at] >= 0 && m->key[at] != id)
        at = (at + 1) & (m->size - 1);
    return at;
}

static bool masks_init(struct masks *m, const struct words *b)
{
    m->width = b->n / 64 + 1;
    for (m->size = 16; m->size < 2 * b->n;)
        m->size *= 2;
    m->key = malloc(m->size * sizeof(*m->key));
    m->bits = calloc(m->size * m->width, sizeof(*m->bits)); /* 16 MiB of zero pages for WORDS_MAX words */
    if (!m->key || !m->bits)
        return false;
    memset(m->key, 0xff, m->size * sizeof(*m->key));
    for (size_t j = 0; j < b->n; j++) {
        size_t at = find_slot(m, b->id[j]);
        m->key[at] = b->id[j];
        m->bits[at * m->width + j / 64] |= UINT64_C(1) << j % 64;
    }
    return true;
}

/* steps' of one more word of a, from the row before it. */
static void next_row(const uint64_t *match, size_t width, const uint64_t *before, uint64_t *row)
{
    unsigned carry = 0;

    for (size_t k = 0; k < width; k++) {
        uint64_t v = ~before[k], add = v & match[k], sum = v + add, total = sum + carry;
        carry = sum < v || total < sum;
        row[k] = ~(total | (v & ~match[k]));
    }
}

static size_t steps_before(const uint64_t *row, size_t j)
{
    size_t n = 0;

    for (size_t k = 0; k < j / 64; k++)
        n += (size_t)__builtin_popcountll(row[k]);
    if (j % 64)
        n += (size_t)__builtin_popcountll(row[j / 64] & ((UINT64_C(1) << j % 64) - 1));
    return n;
}

size_t lcs_length(const struct words *a, const struct words *b, bool *failed)
{
    struct masks m = {0};
    uint64_t *row = NULL;
    size_t length = 0;

    if (masks_init(&m, b) && (row = calloc(m.width, sizeof(*row)))) {
        for (size_t i = 0; i < a->n; i++)
            next_row(m.bits + find_slot(&m, a->id[i]) * m.width, m.width, row, row);
        length = steps_before(row, b->n);
    } else {
        *failed = true;
    }
    masks_release(&m);
    free(row);
    return length;
}

/* From the last cell back to the first: diagonally where the words are equal, else to the greater neighbour,
 * up when they are the same.  here = t[i][j], above = t[i - 1][j]. */
static void walk_back(const struct words *ref, const struct words *can, const uint64_t *rows, size_t width,
                      bool *hit)
{
    size_t i = ref->n, j = can->n;

    while (i > 0 && j > 0) {
        const uint64_t *row = rows + i * width, *up = row - width;
        size_t here = steps_before(row, j), above = steps_before(up, j);
        for (; j > 0 && ref->id[i - 1] != can->id[j - 1]; j--) {
            size_t bit = (j - 1) % 64, left = here - (row[(j - 1) / 64] >> bit & 1);
            if (left <= above)
                break;
            here = left;
            above -= up[(j - 1) / 64] >> bit & 1;
        }
        i--;
        if (j > 0 && ref->id[i] == can->id[j - 1]) {
            hit[i] = true;
            j--;
        }
    }
}

void lcs_mark(const struct words *ref, const struct words *can, bool *hit, bool *failed)
{
    struct masks m = {0};
    uint64_t *rows = NULL;

    if (masks_init(&m, can) && (rows = calloc((ref->n + 1) * m.width, sizeof(*rows)))) { /* at most 8 MiB */
        for (size_t i = 0; i < ref->n; i++)
            next_row(m.bits + find_slot(&m, ref->id[i]) * m.width, m.width, rows + i * m.width,
                     rows + (i + 1) * m.width);
        walk_back(ref, can, rows, m.width, hit);
    } else {
        *failed = true;
    }
    masks_release(&m);
    free(rows);
}
