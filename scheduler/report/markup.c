#include "scheduler/report/markup.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/json.h"
#include "scheduler/base/text.h"

void markup_textn(struct buf *out, const char *s, size_t n)
{
    for (size_t i = 0, step; i < n; i += step) {
        unsigned char c = (unsigned char)s[i];
        step = text_utf8_step(s + i, n - i);
        if (step == 0 || (c < 0x20 && !strchr("\t\n\r", c)) || c == 0x7f ||
            (step == 3 && memcmp(s + i, "\xef\xbf", 2) == 0 && (unsigned char)s[i + 2] >= 0xbe)) {
            buf_adds(out, "\xef\xbf\xbd");
            step = step ? step : 1;
        } else if (c == '\'') {
            buf_adds(out, "&#39;");
        } else {
            buf_add_html(out, s + i, step);
        }
    }
}

void markup_text(struct buf *out, const char *s)
{
    markup_textn(out, s ? s : "", s ? strlen(s) : 0);
}

/* M. Okabe and K. Ito's colours without black and yellow, which one of a white and a dark ground would hide;
 * after them darker, lighter and greyer ones. */
void markup_color(size_t i, char out[MARKUP_COLOR])
{
    static const unsigned char base[7][3] = {{0x00, 0x72, 0xb2}, {0xe6, 0x9f, 0x00}, {0x00, 0x9e, 0x73},
                                             {0xd5, 0x5e, 0x00}, {0xcc, 0x79, 0xa7}, {0x56, 0xb4, 0xe9},
                                             {0x99, 0x8b, 0x1d}};
    static const double toward[5][2] = {
        {0, 0}, {0, .38}, {255, .42}, {128, .55}, {210, .6}}; /* grey level, how far */
    const unsigned char *c = base[i % 7];
    const double *t = toward[i / 7 % 5];
    int rgb[3];

    for (int k = 0; k < 3; k++)
        rgb[k] = (int)(c[k] + (t[0] - c[k]) * t[1] + .5);
    snprintf(out, MARKUP_COLOR, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
}

static const char style[] =
    ":root{--bg:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#5d6b7e;--line:#dfe4ea;--accent:#0072b2;--good:#"
    "00795a;"
    "--bad:#b3400a;--wait:#7a6a00;--mark:#e8f4ee;--bar:#cfe3f1}"
    "@media(prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e4e9f0;--soft:#94a1b3;--line:"
    "#2f3845;"
    "--accent:#56b4e9;--good:#3fc79a;--bad:#f08a4b;--wait:#d8c54a;--mark:#17332a;--bar:#24465c}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 "
    "system-ui,-apple-system,"
    "'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif}main{max-width:1180px;margin:0 auto;padding:28px "
    "20px 60px}"
    "h1{font-size:26px;margin:0 10px 4px "
    "0;display:inline-block;overflow-wrap:anywhere}h2{font-size:17px;margin:34px 0 12px}"
    "h2::first-letter{text-transform:uppercase}.soft{color:var(--soft)}.meta{color:var(--soft);margin:2px 0 "
    "20px}"
    ".card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;margin:0 "
    "0 14px}"
    ".tiles{display:flex;flex-wrap:wrap;gap:12px;margin:0 0 14px}.tiles .card{margin:0;flex:1 1 150px}"
    ".tile b{display:block;font-size:22px;line-height:1.25;overflow-wrap:anywhere}.tile "
    "span{color:var(--soft);font-size:13px}"
    ".state{display:inline-block;border-radius:99px;padding:1px "
    "10px;font-size:12px;font-weight:600;letter-spacing:.02em;"
    "border:1px solid currentColor;color:var(--soft);vertical-align:middle;white-space:nowrap}"
    ".state.good{color:var(--good)}.state.bad{color:var(--bad)}.state.run{color:var(--accent)}.state.wait{"
    "color:var(--wait)}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}"
    "th{font-weight:600;color:var(--soft);text-align:left;font-size:12.5px}th,td{padding:7px 12px 7px "
    "0;border-bottom:1px "
    "solid "
    "var(--line);vertical-align:top;overflow-wrap:break-word}td.n,th.n{text-align:right;font-variant-numeric:"
    "tabular-nums;white-space:nowrap}td{white-space:nowrap}td.name{font-weight:600}td.reason{min-width:220px;"
    "white-space:normal}tr:"
    "last-child td{border-bottom:0}tr.best td{background:var(--mark)}"
    "tr.best td:first-child{box-shadow:inset 3px 0 var(--good);padding-left:10px}"
    ".meter{position:relative;display:inline-block;min-width:110px;background:var(--line);border-radius:4px;"
    "height:18px;"
    "overflow:hidden;vertical-align:middle}.meter "
    "i{position:absolute;left:0;top:0;bottom:0;background:var(--bar)}"
    ".meter em{position:relative;display:block;font-style:normal;font-size:12px;padding:0 "
    "6px;line-height:18px}"
    ".bars{display:grid;grid-template-columns:minmax(90px,max-content) 1fr 56px;gap:7px "
    "12px;align-items:center;font-size:14px}"
    ".bars i{display:block;height:16px;border-radius:3px;min-width:2px}.bars "
    "span:nth-child(3n){text-align:right;"
    "font-variant-numeric:tabular-nums}.bars span:first-child{overflow-wrap:anywhere}"
    ".q{font-weight:600;white-space:pre-wrap;overflow-wrap:anywhere}.pair{display:grid;grid-template-columns:"
    "repeat("
    "auto-fit,minmax(260px,1fr));gap:12px;margin-top:10px}.pair>div,details>div{border-left:3px solid "
    "var(--line);"
    "padding:2px 0 2px "
    "12px}.pair>div.tuned{border-color:var(--good)}.pair>div.ref{border-color:var(--accent)}"
    ".a{white-space:pre-wrap;overflow-wrap:anywhere}.who{font-size:12.5px;color:var(--soft);font-weight:600}"
    "details{margin-top:10px}summary{cursor:pointer;color:var(--soft);font-size:13px}details>div{margin-top:"
    "8px}"
    "svg{display:block;width:100%;height:auto}footer{color:var(--soft);font-size:12.5px;margin-top:30px}";

void page_begin(struct buf *out, const char *title, int refresh_s)
{
    buf_adds(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>"
                  "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>"
                  "<meta name=\"color-scheme\" content=\"light dark\"/>");
    if (refresh_s > 0)
        buf_addf(out, "<meta http-equiv=\"refresh\" content=\"%d\"/>", refresh_s);
    buf_adds(out, "<title>");
    markup_text(out, title);
    buf_addf(out, "</title><style>%s</style></head>\n<body><main>\n", style);
}

void page_end(struct buf *out)
{
    buf_adds(out, "</main></body></html>\n");
}

static const char *state_class(const char *state)
{
    static const struct {
        const char *state, *class;
    } table[] = {{"SUCCESS", "good"}, {"SUCCESSFUL", "good"}, {"READY", "good"},    {"DONE", "good"},
                 {"FAILED", "bad"},   {"REJECTED", "bad"},    {"CANCELLED", "bad"}, {"PROCESSING", "run"},
                 {"FINETUNE", "run"}, {"SCORE", "run"},       {"SERVE", "run"},     {"EXPORT", "run"},
                 {"RUNNING", "run"},  {"ANSWERING", "run"},   {"CHECKING", "run"},  {"RECEIVING", "run"},
                 {"PENDING", "wait"}, {"INIT", "wait"},       {"PAUSED", "wait"}};

    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(state, table[i].state) == 0)
            return table[i].class;
    return "";
}

void page_state(struct buf *out, const char *state)
{
    buf_addf(out, "<span class=\"state %s\">", state_class(state));
    markup_text(out, state);
    buf_adds(out, "</span>");
}

static bool key_is(const char *key, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(key, *names) == 0)
            return true;
    return false;
}

static void add_bytes(struct buf *out, double n)
{
    static const char *const unit[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    int k = 0;

    for (; fabs(n) >= 1024 && k < 5; k++)
        n /= 1024;
    buf_addf(out, k && fabs(n) < 100 ? "%.1f %s" : "%.0f %s", n, unit[k]);
}

static void add_count(struct buf *out, double n)
{
    static const char *const unit[] = {"", "k", "M", "G"};
    int k = 0;

    if (fabs(n) < 100000) {
        buf_addf(out, "%.0f", n);
        return;
    }
    for (; fabs(n) >= 1000 && k < 3; k++)
        n /= 1000;
    buf_addf(out, "%.1f%s", n, unit[k]);
}

static void add_meter(struct buf *out, double fraction, const char *words)
{
    if (!(fraction > 0)) /* NAN too */
        fraction = 0;
    buf_addf(out, "<span class=\"meter\"><i style=\"width:%.1f%%\"></i><em>%s</em></span>",
             100 * (fraction > 1 ? 1 : fraction), words);
}

static void add_number(struct buf *out, const char *key, const json_t *v)
{
    static const char *const durations[] = {"seconds", "eta_s",   "age_s", "uptime_s",
                                            "ttft_s",  "total_s", "age",   NULL};
    static const char *const bytes[] = {"memory", "mem_used",   "mem_total",  "size",       "bytes",
                                        "free",   "store_free", "store_size", "store_used", NULL};
    double x = json_number_value(v);
    char text[40];

    if (!isfinite(x)) {
        buf_adds(out, "-");
    } else if (key_is(key, durations)) {
        buf_adds(out, clock_human(x, text, sizeof(text)));
    } else if (key_is(key, bytes)) {
        add_bytes(out, x);
    } else if (strcmp(key, "score") == 0) {
        snprintf(text, sizeof(text), "%.1f", x);
        add_meter(out, x / 100, text);
    } else if (strcmp(key, "progress") == 0 || strcmp(key, "utilisation") == 0) {
        snprintf(text, sizeof(text), "%.0f%%", 100 * x);
        add_meter(out, x, text);
    } else if (json_is_integer(v) || strcmp(key, "tokens_per_s") == 0) {
        add_count(out, x);
    } else {
        buf_addf(out, fabs(x) >= 1e6 || (x != 0 && fabs(x) < 1e-3) ? "%.3g" : "%.4f", x);
    }
}

void page_value(struct buf *out, const char *key, const json_t *v)
{
    if (json_is_number(v)) {
        add_number(out, key, v);
    } else if (json_is_string(v) && strcmp(key, "state") == 0) {
        page_state(out, json_string_value(v));
    } else if (json_is_string(v)) {
        markup_textn(out, json_string_value(v), json_string_length(v));
    } else if (json_is_boolean(v)) {
        buf_adds(out, json_is_true(v) ? "yes" : "no");
    } else if (json_is_array(v)) {
        for (size_t i = 0; i < json_array_size(v) && i < 20; i++) {
            buf_adds(out, i ? ", " : "");
            if (!json_is_array(json_array_get(v, i)))
                page_value(out, "", json_array_get(v, i));
        }
    } else {
        buf_adds(out, "<span class=\"soft\">-</span>");
    }
}

/* ---- tables ---- */

enum { MAX_COLUMNS = 40, MAX_TABLE_ROWS = 2000 };

struct columns {
    const char *key[MAX_COLUMNS];
    bool number[MAX_COLUMNS]; /* no row has text there */
    int n;
};

static const json_t *cell(const json_t *row, const char *key)
{
    const json_t *v = json_object_get(row, key);
    return v ? v : json_object_get(json_object_get(row, "metrics"), key);
}

static void add_column(struct columns *c, const json_t *rows, const char *key)
{
    static const char *const meters[] = {"score", "progress", "utilisation", NULL};
    bool any = false, number = true;
    size_t i;
    json_t *row;

    for (int k = 0; k < c->n; k++)
        if (strcmp(c->key[k], key) == 0)
            return;
    json_array_foreach((json_t *)rows, i, row)
    {
        const json_t *v = cell(row, key);
        if (!v || json_is_null(v) || json_is_object(v) || (json_is_string(v) && !json_string_length(v)))
            continue;
        any = true;
        number &= json_is_number(v) && !key_is(key, meters);
    }
    if (any && c->n < MAX_COLUMNS) {
        c->number[c->n] = number;
        c->key[c->n++] = key;
    }
}

static void find_columns(struct columns *c, const json_t *rows, const char *const *order)
{
    size_t i;
    json_t *row, *v;
    const char *key;

    memset(c, 0, sizeof(*c));
    for (; order && *order; order++)
        add_column(c, rows, *order);
    json_array_foreach((json_t *)rows, i, row)
    {
        json_object_foreach(json_object_get(row, "metrics"), key, v) add_column(c, rows, key);
        json_object_foreach(row, key, v) if (!json_is_object(v)) add_column(c, rows, key);
    }
}

void page_label(struct buf *out, const char *key)
{
    static const char *const names[][2] = {{"tokens_per_s", "tokens/s"}, {"eta_s", "time left"},
                                           {"eval_loss", "eval loss"},   {"ttft_s", "first token"},
                                           {"mem_used", "memory used"},  {"mem_total", "memory"},
                                           {"seconds", "time"},          {"total_s", "time"},
                                           {"uptime_s", "up for"},       {"exact_match", "exact match"}};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(key, names[i][0]) == 0) {
            buf_adds(out, names[i][1]);
            return;
        }
    for (size_t n; *key; key += n) {
        n = strcspn(key, "_");
        markup_textn(out, key, n);
        if (key[n] == '_') {
            buf_addc(out, ' ');
            n++;
        }
    }
}

static const char *cell_class(const struct columns *c, int k)
{
    if (strcmp(c->key[k], "job") == 0 || strcmp(c->key[k], "name") == 0)
        return "name";
    return c->number[k] ? "n" : strcmp(c->key[k], "reason") == 0 ? "reason" : "";
}

static void add_row(struct buf *out, const json_t *row, const struct columns *c, const char *best)
{
    const char *name = json_str(row, "job", json_str(row, "name", ""));
    bool is_best = best && *best && strcmp(name, best) == 0;

    buf_adds(out, is_best ? "<tr class=\"best\">" : "<tr>");
    for (int k = 0; k < c->n; k++) {
        buf_addf(out, "<td class=\"%s\">", cell_class(c, k));
        page_value(out, c->key[k], cell(row, c->key[k]));
        buf_adds(out, "</td>");
    }
    buf_adds(out, "</tr>\n");
}

void page_table(struct buf *out, const json_t *rows, const char *const *order, const char *best)
{
    struct columns c;
    size_t n = json_array_size(rows);

    find_columns(&c, rows, order);
    if (c.n == 0)
        return;
    buf_adds(out, "<div class=\"card scroll\"><table><thead><tr>");
    for (int k = 0; k < c.n; k++) {
        buf_adds(out, c.number[k] ? "<th class=\"n\">" : "<th>");
        page_label(out, c.key[k]);
        buf_adds(out, "</th>");
    }
    buf_adds(out, "</tr></thead><tbody>\n");
    for (size_t i = 0; i < n && i < MAX_TABLE_ROWS; i++)
        add_row(out, json_array_get(rows, i), &c, best);
    buf_adds(out, "</tbody></table>");
    if (n > MAX_TABLE_ROWS)
        buf_addf(out, "<p class=\"soft\">and %zu more</p>", n - MAX_TABLE_ROWS);
    buf_adds(out, "</div>\n");
}
