/* What comes back for a prompt that was dropped into models/compare. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/base/json.h"
#include "scheduler/report/report.h"

static const char *const numbers[] = {"prompt_tokens", "new_tokens", "tokens_per_s",
                                      "ttft_s",        "total_s",    "together"};
enum { NUMBERS = sizeof(numbers) / sizeof(numbers[0]) };

static void add_number(struct buf *out, const json_t *answer, const char *key)
{
    const json_t *v = json_object_get(answer, key);

    if (json_is_integer(v))
        buf_addf(out, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v) && isfinite(json_real_value(v)))
        buf_addf(out, strcmp(key, "tokens_per_s") == 0 ? "%.1f" : "%.3f", json_real_value(v));
    else
        buf_addc(out, '-');
}

/* Text of one line: line ends and tabs become spaces; pipes are escaped for a Markdown table. */
static void add_line(struct buf *out, const char *s, bool table)
{
    for (; *s; s++) {
        if (table && (*s == '|' || *s == '\\'))
            buf_addc(out, '\\');
        buf_addc(out, (unsigned char)*s < 0x20 ? ' ' : *s);
    }
}

/* A fence that the text cannot close. */
static void add_fenced(struct buf *out, const char *text)
{
    size_t longest = 2, run = 0;

    for (const char *p = text; *p; p++) {
        run = *p == '`' ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i <= longest; i++)
            buf_addc(out, '`');
        buf_adds(out, side ? "\n" : "text\n");
        if (side == 0)
            buf_adds(out, text);
        if (side == 0 && *text && text[strlen(text) - 1] != '\n')
            buf_addc(out, '\n');
    }
}

static void add_stats_row(struct buf *out, const json_t *a)
{
    buf_adds(out, "| ");
    add_line(out, json_str(a, "model", "?"), true);
    buf_adds(out, " |");
    for (int k = 0; k < NUMBERS; k++) {
        buf_addc(out, ' ');
        add_number(out, a, numbers[k]);
        buf_adds(out, " |");
    }
    buf_addc(out, '\n');
}

void compare_markdown(struct buf *out, const json_t *comparison)
{
    const json_t *answers = json_object_get(comparison, "answers");
    size_t i;
    json_t *a;

    buf_adds(out, "# Prompt\n\n");
    add_fenced(out, json_str(comparison, "prompt", ""));
    buf_adds(out,
             "\n| model | prompt tokens | new tokens | tokens/s | first token (s) | total (s) | together |\n"
             "|:--|--:|--:|--:|--:|--:|--:|\n");
    json_array_foreach((json_t *)answers, i, a) add_stats_row(out, a);
    json_array_foreach((json_t *)answers, i, a)
    {
        const char *error = json_str(a, "error", NULL);
        buf_adds(out, "\n## ");
        add_line(out, json_str(a, "model", "?"), false);
        buf_adds(out, "\n\n");
        if (error) {
            buf_adds(out, "No answer: ");
            add_line(out, error, false);
            buf_addc(out, '\n');
        } else {
            add_fenced(out, json_str(a, "text", ""));
        }
    }
}

void compare_stats_tsv(struct buf *out, const json_t *comparison)
{
    const json_t *answers = json_object_get(comparison, "answers");
    size_t i;
    json_t *a;

    buf_adds(out, "model");
    for (int k = 0; k < NUMBERS; k++)
        buf_addf(out, "\t%s", numbers[k]);
    buf_adds(out, "\terror\n");
    json_array_foreach((json_t *)answers, i, a)
    {
        add_line(out, json_str(a, "model", "?"), false);
        for (int k = 0; k < NUMBERS; k++) {
            buf_addc(out, '\t');
            add_number(out, a, numbers[k]);
        }
        buf_addc(out, '\t');
        add_line(out, json_str(a, "error", "-"), false);
        buf_addc(out, '\n');
    }
}
