#include "scheduler/score/lcs.h"

#include <stdlib.h>
#include <string.h>

/* Row i of the table from row i - 1: row[j] = LCS of a[0..i) and b[0..j). */
static void next_row(int32_t word, const struct words *b, const uint16_t *up, uint16_t *row)
{
    row[0] = 0;
    for (size_t j = 0; j < b->n; j++) {
        uint16_t best = up[j + 1] > row[j] ? up[j + 1] : row[j];
        row[j + 1] = b->id[j] == word ? (uint16_t)(up[j] + 1) : best;
    }
}

size_t lcs_length(const struct words *a, const struct words *b, bool *failed)
{
    uint16_t *up = calloc(b->n + 1, sizeof(*up)),
             *row = calloc(b->n + 1, sizeof(*row)); /* <= WORDS_MAX fits */
    size_t length = 0;

    if (up && row) {
        for (size_t i = 0; i < a->n; i++) {
            uint16_t *swap = up;
            next_row(a->id[i], b, up, row);
            up = row;
            row = swap;
        }
        length = up[b->n];
    } else {
        *failed = true;
    }
    free(up);
    free(row);
    return length;
}

/* One bit a cell is all that walking back needs: is the cell to the left greater than the cell above? */
static void mark_left(const uint16_t *up, const uint16_t *row, size_t n, unsigned char *bits)
{
    for (size_t j = 0; j < n; j++)
        if (row[j] > up[j + 1])
            bits[j / 8] |= (unsigned char)(1u << j % 8);
}

static void walk_back(const struct words *ref, const struct words *can, const unsigned char *bits,
                      size_t stride, bool *hit)
{
    size_t i = ref->n, j = can->n;

    while (i > 0 && j > 0) {
        if (ref->id[i - 1] == can->id[j - 1]) {
            hit[--i] = true;
            j--;
        } else if (bits[(i - 1) * stride + (j - 1) / 8] >> (j - 1) % 8 & 1) {
            j--;
        } else {
            i--;
        }
    }
}

void lcs_mark(const struct words *ref, const struct words *can, bool *hit, bool *failed)
{
    size_t stride = can->n / 8 + 1; /* bytes a row; at most 8 MiB for two texts of WORDS_MAX */
    uint16_t *up = calloc(can->n + 1, sizeof(*up)), *row = calloc(can->n + 1, sizeof(*row));
    unsigned char *bits = calloc(ref->n + 1, stride);

    if (up && row && bits) {
        for (size_t i = 0; i < ref->n; i++) {
            uint16_t *swap = up;
            next_row(ref->id[i], can, up, row);
            mark_left(up, row, can->n, bits + i * stride);
            up = row;
            row = swap;
        }
        walk_back(ref, can, bits, stride, hit);
    } else {
        *failed = true;
    }
    free(up);
    free(row);
    free(bits);
}
