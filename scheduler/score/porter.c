/*
 * M.F. Porter, "An algorithm for suffix stripping", 1980, with the deviations of NLTK's default mode:
 * irregular words, -ies and -ied of four-letter words, y -> i after any consonant, -alli, -fulli and -logi,
 * and two-letter words of vowel and consonant counting as "cvc".
 */
#include "scheduler/score/porter.h"

#include <stdbool.h>
#include <string.h>

struct word {
    char *w;
    size_t n;
};

static bool is_vowel_letter(char c)
{
    return c == 'a' || c == 'e' || c == 'i' || c == 'o' || c == 'u';
}

/* A y is a consonant at the start and after a vowel. */
static bool is_consonant(const char *w, size_t i)
{
    size_t first = i;

    if (is_vowel_letter(w[i]))
        return false;
    if (w[i] != 'y')
        return true;
    while (first > 0 && w[first] == 'y')
        first--;
    return !is_vowel_letter(w[first]) != ((i - first) % 2 == 1);
}

/* m of [C](VC){m}[V] for w[0..n). */
static size_t measure(const char *w, size_t n)
{
    size_t m = 0;
    bool consonant = true;

    for (size_t i = 0; i < n; i++) {
        bool before = consonant;
        consonant = is_vowel_letter(w[i]) ? false : w[i] == 'y' ? i == 0 || !before : true;
        m += i > 0 && !before && consonant;
    }
    return m;
}

static bool contains_vowel(const char *w, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (is_vowel_letter(w[i]) || (w[i] == 'y' && !is_consonant(w, i)))
            return true;
    return false;
}

static bool ends_double_consonant(const char *w, size_t n)
{
    return n >= 2 && w[n - 1] == w[n - 2] && is_consonant(w, n - 1);
}

static bool ends_cvc(const char *w, size_t n)
{
    if (n == 2)
        return !is_consonant(w, 0) && is_consonant(w, 1);
    return n >= 3 && is_consonant(w, n - 3) && !is_consonant(w, n - 2) && is_consonant(w, n - 1) &&
           w[n - 1] != 'w' && w[n - 1] != 'x' && w[n - 1] != 'y';
}

static bool ends_with(const struct word *s, const char *suffix)
{
    size_t n = strlen(suffix);
    return s->n >= n && memcmp(s->w + s->n - n, suffix, n) == 0;
}

static void put_suffix(struct word *s, size_t stem, const char *replacement)
{
    size_t n = strlen(replacement);
    memcpy(s->w + stem, replacement, n);
    s->n = stem + n;
}

enum condition { ALWAYS, M_OVER_0, M_OVER_1, M_OVER_1_AFTER_S_OR_T, M_OVER_0_WITH_L };
struct rule {
    const char *suffix, *replacement;
    enum condition when;
    unsigned char length; /* of the suffix */
    char last;            /* letter of it: most rules are ruled out by it */
};
#define RULE(suffix, replacement, when)                                                                      \
    {                                                                                                        \
        suffix, replacement, when, sizeof(suffix) - 1, suffix[sizeof(suffix) - 2]                            \
    }

static bool holds(enum condition c, const struct word *s, size_t stem)
{
    switch (c) {
    case ALWAYS:
        return true;
    case M_OVER_0:
        return measure(s->w, stem) > 0;
    case M_OVER_1:
        return measure(s->w, stem) > 1;
    case M_OVER_1_AFTER_S_OR_T:
        return measure(s->w, stem) > 1 && (s->w[stem - 1] == 's' || s->w[stem - 1] == 't');
    case M_OVER_0_WITH_L:
        return measure(s->w, stem + 1) > 0;
    }
    return false;
}

/* The first rule whose suffix fits decides, whether its condition holds or not. */
static void apply_rules(struct word *s, const struct rule *rules)
{
    for (; rules->suffix; rules++) {
        if (s->w[s->n - 1] != rules->last || s->n < rules->length ||
            memcmp(s->w + s->n - rules->length, rules->suffix, rules->length))
            continue;
        size_t stem = s->n - rules->length;
        if (holds(rules->when, s, stem))
            put_suffix(s, stem, rules->replacement);
        return;
    }
}

static void step_1a(struct word *s)
{
    static const struct rule rules[] = {RULE("sses", "ss", ALWAYS),
                                        RULE("ies", "i", ALWAYS),
                                        RULE("ss", "ss", ALWAYS),
                                        RULE("s", "", ALWAYS),
                                        {0}};

    if (s->n == 4 && ends_with(s, "ies"))
        s->n = 3;
    else
        apply_rules(s, rules);
}

/* After -ed or -ing went: conflat -> conflate, hopp -> hop, fil -> file. */
static void repair_stem(struct word *s)
{
    char last = s->w[s->n - 1];

    if (ends_with(s, "at") || ends_with(s, "bl") || ends_with(s, "iz")) {
        put_suffix(s, s->n, "e");
    } else if (ends_double_consonant(s->w, s->n)) {
        if (last != 'l' && last != 's' && last != 'z')
            s->n--;
    } else if (measure(s->w, s->n) == 1 && ends_cvc(s->w, s->n)) {
        put_suffix(s, s->n, "e");
    }
}

static void step_1b(struct word *s)
{
    if (ends_with(s, "ied")) {
        s->n -= s->n == 4 ? 1 : 2;
        return;
    }
    if (ends_with(s, "eed")) {
        if (measure(s->w, s->n - 3) > 0)
            s->n--;
        return;
    }
    if (ends_with(s, "ed") && contains_vowel(s->w, s->n - 2))
        s->n -= 2;
    else if (ends_with(s, "ing") && contains_vowel(s->w, s->n - 3))
        s->n -= 3;
    else
        return;
    repair_stem(s);
}

static void step_1c(struct word *s)
{
    if (s->n > 2 && s->w[s->n - 1] == 'y' && is_consonant(s->w, s->n - 2))
        s->w[s->n - 1] = 'i';
}

static void step_2(struct word *s)
{
    static const struct rule rules[] = {RULE("ational", "ate", M_OVER_0),
                                        RULE("tional", "tion", M_OVER_0),
                                        RULE("enci", "ence", M_OVER_0),
                                        RULE("anci", "ance", M_OVER_0),
                                        RULE("izer", "ize", M_OVER_0),
                                        RULE("bli", "ble", M_OVER_0),
                                        RULE("alli", "al", M_OVER_0),
                                        RULE("entli", "ent", M_OVER_0),
                                        RULE("eli", "e", M_OVER_0),
                                        RULE("ousli", "ous", M_OVER_0),
                                        RULE("ization", "ize", M_OVER_0),
                                        RULE("ation", "ate", M_OVER_0),
                                        RULE("ator", "ate", M_OVER_0),
                                        RULE("alism", "al", M_OVER_0),
                                        RULE("iveness", "ive", M_OVER_0),
                                        RULE("fulness", "ful", M_OVER_0),
                                        RULE("ousness", "ous", M_OVER_0),
                                        RULE("aliti", "al", M_OVER_0),
                                        RULE("iviti", "ive", M_OVER_0),
                                        RULE("biliti", "ble", M_OVER_0),
                                        RULE("fulli", "ful", M_OVER_0),
                                        RULE("logi", "log", M_OVER_0_WITH_L),
                                        {0}};

    while (ends_with(s, "alli") && measure(s->w, s->n - 4) > 0)
        s->n -= 2;
    apply_rules(s, rules);
}

static void step_3(struct word *s)
{
    static const struct rule rules[] = {RULE("icate", "ic", M_OVER_0), RULE("ative", "", M_OVER_0),
                                        RULE("alize", "al", M_OVER_0), RULE("iciti", "ic", M_OVER_0),
                                        RULE("ical", "ic", M_OVER_0),  RULE("ful", "", M_OVER_0),
                                        RULE("ness", "", M_OVER_0),    {0}};
    apply_rules(s, rules);
}

static void step_4(struct word *s)
{
    static const struct rule rules[] = {RULE("al", "", M_OVER_1),    RULE("ance", "", M_OVER_1),
                                        RULE("ence", "", M_OVER_1),  RULE("er", "", M_OVER_1),
                                        RULE("ic", "", M_OVER_1),    RULE("able", "", M_OVER_1),
                                        RULE("ible", "", M_OVER_1),  RULE("ant", "", M_OVER_1),
                                        RULE("ement", "", M_OVER_1), RULE("ment", "", M_OVER_1),
                                        RULE("ent", "", M_OVER_1),   RULE("ion", "", M_OVER_1_AFTER_S_OR_T),
                                        RULE("ou", "", M_OVER_1),    RULE("ism", "", M_OVER_1),
                                        RULE("ate", "", M_OVER_1),   RULE("iti", "", M_OVER_1),
                                        RULE("ous", "", M_OVER_1),   RULE("ive", "", M_OVER_1),
                                        RULE("ize", "", M_OVER_1),   {0}};
    apply_rules(s, rules);
}

static void step_5(struct word *s)
{
    if (ends_with(s, "e")) {
        size_t m = measure(s->w, s->n - 1);
        if (m > 1 || (m == 1 && !ends_cvc(s->w, s->n - 1)))
            s->n--;
    }
    if (ends_with(s, "ll") && measure(s->w, s->n - 1) > 1)
        s->n--;
}

static bool irregular(struct word *s)
{
    static const char *const table[][2] = {
        {"sky", "sky"},        {"skies", "sky"},       {"dying", "die"},        {"lying", "lie"},
        {"tying", "tie"},      {"news", "news"},       {"innings", "inning"},   {"inning", "inning"},
        {"outings", "outing"}, {"outing", "outing"},   {"cannings", "canning"}, {"canning", "canning"},
        {"howe", "howe"},      {"proceed", "proceed"}, {"exceed", "exceed"},    {"succeed", "succeed"}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (s->w[0] == table[i][0][0] && s->n == strlen(table[i][0]) &&
            memcmp(s->w, table[i][0], s->n) == 0) {
            put_suffix(s, 0, table[i][1]);
            return true;
        }
    return false;
}

size_t porter_stem(char *w, size_t n)
{
    struct word s = {w, n};

    if (n <= 2 || irregular(&s))
        return s.n;
    step_1a(&s);
    step_1b(&s);
    step_1c(&s);
    step_2(&s);
    step_3(&s);
    step_4(&s);
    step_5(&s);
    return s.n;
}
