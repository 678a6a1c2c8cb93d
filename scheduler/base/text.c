#include "scheduler/base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

size_t text_utf8_step(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;

    if (n == 0)
        return 0;
    if (u[0] < 0x80)
        return 1;
    if (u[0] < 0xc2)
        return 0;
    if (u[0] < 0xe0)
        return n >= 2 && (u[1] & 0xc0) == 0x80 ? 2 : 0;
    if (u[0] < 0xf0) {
        if (n < 3 || (u[1] & 0xc0) != 0x80 || (u[2] & 0xc0) != 0x80)
            return 0;
        if ((u[0] == 0xe0 && u[1] < 0xa0) || (u[0] == 0xed && u[1] >= 0xa0))
            return 0;
        return 3;
    }
    if (u[0] > 0xf4 || n < 4 || (u[1] & 0xc0) != 0x80 || (u[2] & 0xc0) != 0x80 || (u[3] & 0xc0) != 0x80)
        return 0;
    if ((u[0] == 0xf0 && u[1] < 0x90) || (u[0] == 0xf4 && u[1] >= 0x90))
        return 0;
    return 4;
}

size_t text_utf8_bad_at(const char *s, size_t n)
{
    size_t i = 0;

    while (i < n) {
        size_t step = text_utf8_step(s + i, n - i);
        if (step == 0)
            return i;
        i += step;
    }
    return n;
}

bool text_utf8_valid(const char *s, size_t n)
{
    return text_utf8_bad_at(s, n) == n;
}

size_t text_space_step(const char *s, size_t n)
{
    const unsigned char *u = (const unsigned char *)s;

    if (n == 0)
        return 0;
    if (u[0] == ' ' || (u[0] >= 0x09 && u[0] <= 0x0d) || (u[0] >= 0x1c && u[0] <= 0x1f))
        return 1;
    if (u[0] == 0xc2)
        return n >= 2 && (u[1] == 0x85 || u[1] == 0xa0) ? 2 : 0;
    if (n < 3 || u[0] < 0xe1 || u[0] > 0xe3)
        return 0;
    unsigned c = (u[0] & 0x0fu) << 12 | (u[1] & 0x3fu) << 6 | (u[2] & 0x3fu);
    return c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
                   c == 0x205f || c == 0x3000
               ? 3
               : 0;
}

void text_strip(const char **s, size_t *n)
{
    size_t step;

    while ((step = text_space_step(*s, *n))) {
        *s += step;
        *n -= step;
    }
    while (*n) {
        size_t back = 1; /* to the start of the last character */
        while (back < 4 && back < *n && ((unsigned char)(*s)[*n - back] & 0xc0) == 0x80)
            back++;
        if (text_space_step(*s + *n - back, back) != back)
            return;
        *n -= back;
    }
}

static bool ends_in(const char *name, size_t n, const char *end)
{
    size_t k = strlen(end);

    return n >= k && memcmp(name + n - k, end, k) == 0;
}

/* .*  *~  *.tmp  *.part  *.sw?  sed??????  4913 */
bool name_is_leftover(const char *name)
{
    size_t n = strlen(name);

    if (n == 0)
        return false;
    return name[0] == '.' || name[n - 1] == '~' || ends_in(name, n, ".tmp") || ends_in(name, n, ".part") ||
           ends_in(name, n - 1, ".sw") || (n == 9 && memcmp(name, "sed", 3) == 0) ||
           strcmp(name, "4913") == 0;
}

int name_check(const char *name, struct dtx_err *e)
{
    size_t n = strlen(name);

    if (n == 0)
        return dtx_fail(e, -EINVAL, "empty name: an object's name has 1 to 63 bytes");
    if (n > 63)
        return dtx_fail(e, -ENAMETOOLONG, "name \"%.40s...\" has %zu bytes: an object's name has 1 to 63",
                        name, n);
    if (!text_utf8_valid(name, n))
        return dtx_fail(e, -EINVAL, "name is not UTF-8: rename it");
    if (name[0] == '.')
        return dtx_fail(e, -EINVAL,
                        "name \"%s\" begins with a dot: names that begin with a dot are hidden files", name);
    if (name_is_leftover(name)) /* the folders made from it would be taken for leftovers */
        return dtx_fail(
            e, -EINVAL,
            "name \"%s\" looks like what an editor or rsync leaves behind (NAME~, NAME.tmp, NAME.part, "
            "NAME.sw?, sed??????, 4913): rename it",
            name);
    for (size_t i = 0; i < n; i++)
        if (text_control_step(name + i) || name[i] == '/')
            return dtx_fail(e, -EINVAL, "name has a control character or slash at byte %zu: rename it", i);
    if (n >= 7 && strcmp(name + n - 7, ".status") == 0)
        return dtx_fail(e, -EINVAL, "name \"%s\" ends in .status: such names are DTX's own", name);
    return 0;
}

bool text_is_ascii(const char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s >= 0x80)
            return false;
    return true;
}

bool text_is_blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r' && s[i] != '\n')
            return false;
    return true;
}

int name_nfc(const char *name, char *out, size_t outsz)
{
    utf8proc_uint8_t *nfc;
    size_t n;

    if (!text_utf8_valid(name, strlen(name)))
        return -EINVAL;
    nfc = utf8proc_NFC((const utf8proc_uint8_t *)name);
    if (!nfc)
        return -ENOMEM;
    n = strlen((char *)nfc);
    if (n >= outsz) {
        free(nfc);
        return -ENAMETOOLONG;
    }
    memcpy(out, nfc, n + 1);
    free(nfc);
    return 0;
}

static int edit_distance(const char *a, const char *b)
{
    int row[65], n = (int)strlen(a), m = (int)strlen(b);

    if (n > 64 || m > 64)
        return 65;
    for (int j = 0; j <= m; j++)
        row[j] = j;
    for (int i = 1; i <= n; i++) {
        int diag = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int up = row[j], best = diag + (a[i - 1] != b[j - 1]);
            if (up + 1 < best)
                best = up + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diag = up;
            row[j] = best;
        }
    }
    return row[m];
}

int text_nearest(const char *word, const char *const *words, int n)
{
    int best = -1, best_distance = 4;

    for (int i = 0; i < n; i++) {
        int d = edit_distance(word, words[i]);
        if (d < best_distance) {
            best = i;
            best_distance = d;
        }
    }
    return best;
}

/* ---- sizes ---- */

int64_t text_parse_size(const char *s)
{
    static const char units[] = "kmgtp";
    size_t digits = strspn(s, "0123456789"),
           more = s[digits] == '.' ? 1 + strspn(s + digits + 1, "0123456789") : 0;
    const char *unit = s + digits + more, *at;
    double v, base = 1024;

    if (digits == 0 || digits > 19 || more == 1 || sscanf(s, "%lf", &v) != 1)
        return -1;
    unit += *unit == ' ';
    at = *unit ? strchr(units, *unit | 0x20) : NULL;
    if (at)
        unit++;
    if (at && unit[0] == 'i' && unit[1] == 'B')
        unit += 2;
    else if (unit[0] == 'B') {
        base = 1000;
        unit++;
    }
    for (int i = 0; at && i <= at - units; i++)
        v *= base;
    return *unit || v > 9.0e18 || (!at && more) ? -1 : (int64_t)v;
}

const char *text_size(int64_t bytes, char out[24])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    int u = 0;

    for (; v >= 1024 && u < 5; u++)
        v /= 1024;
    if (u == 0 || v >= 99.95 || v - (double)(int64_t)v < 0.05)
        snprintf(out, 24, "%.0f %s", v, units[u]);
    else
        snprintf(out, 24, "%.1f %s", v, units[u]);
    return out;
}
