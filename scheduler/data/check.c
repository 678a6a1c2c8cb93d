/* CHECKING a dataset: can it be used, and what is in it, for people to look at. */
#include "scheduler/data/data_int.h"

#include <string.h>

#include "scheduler/base/text.h"

enum { CHECK_REASONS = 20, CHECK_EXAMPLES = 3, CHECK_EXAMPLE_BYTES = 4000 };

struct check {
    const struct dtx_tokenizer *t;
    const char *template_name;
    uint64_t rows, skipped, chars, longest_chars, tokens, longest;
    json_t *reasons, *examples;
    struct dtx_ids ids;
    struct dtx_err *e;
    bool examples_wanted;
};

/* A JSON string of valid UTF-8, cut to n bytes with "..." behind. */
static json_t *json_cut(const char *s, size_t n)
{
    size_t cut = n > CHECK_EXAMPLE_BYTES ? CHECK_EXAMPLE_BYTES : n;
    struct buf b = BUF_INIT;
    json_t *v;

    while (cut && cut < n && ((unsigned char)s[cut] & 0xc0) == 0x80)
        cut--;
    buf_add(&b, s, cut);
    if (cut < n)
        buf_adds(&b, "...");
    v = json_stringn(b.p ? b.p : "", b.len);
    buf_release(&b);
    return v;
}

struct example { /* pieces of one trained-ness put together */
    const struct dtx_tokenizer *t;
    json_t *pieces;
    struct buf text, all, trained;
    bool is_trained;
    size_t tokens;
};

static void end_piece(struct example *x)
{
    json_t *piece;

    if (x->text.len == 0)
        return;
    piece = json_pack("{s:o,s:b}", "text", json_cut(x->text.p, x->text.len), "trained", x->is_trained);
    if (x->t)
        json_object_set_new(piece, "tokens", json_integer((json_int_t)x->tokens));
    json_array_append_new(x->pieces, piece);
    buf_clear(&x->text);
    x->tokens = 0;
}

static void add_piece(struct example *x, const char *s, size_t n, bool trained, size_t tokens)
{
    if (x->is_trained != trained)
        end_piece(x);
    x->is_trained = trained;
    x->tokens += tokens;
    buf_add(&x->text, s, n);
    buf_add(&x->all, s, n);
    if (trained)
        buf_add(&x->trained, s, n);
}

static int example_special(void *arg, const char *name, bool trained)
{
    add_piece(arg, name, strlen(name), trained, 1);
    return 0;
}

static int example_text(void *arg, const char *s, size_t n, bool trained)
{
    struct example *x = arg;
    struct dtx_ids ids = {0};
    int rc = x->t ? dtx_tokenizer_encode(x->t, s, n, &ids, NULL) : 0;

    add_piece(x, s, n, trained, ids.n);
    dtx_ids_release(&ids);
    return rc;
}

static void add_example(struct check *c, const struct data_row *row)
{
    struct example x = {.t = c->t, .pieces = json_array()};
    const struct chat_sink sink = {example_special, example_text, &x};

    if (chat_form(c->template_name, row, false, &sink) == 0) {
        end_piece(&x);
        json_array_append_new(c->examples,
                              json_pack("{s:o,s:o,s:O}", "text", json_cut(x.all.p ? x.all.p : "", x.all.len),
                                        "trained", json_cut(x.trained.p ? x.trained.p : "", x.trained.len),
                                        "pieces", x.pieces));
    }
    json_decref(x.pieces);
    buf_release(&x.text);
    buf_release(&x.all);
    buf_release(&x.trained);
}

static uint64_t characters(const char *s)
{
    uint64_t n = 0;

    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static int check_row(void *arg, const struct data_row *row)
{
    struct check *c = arg;
    uint64_t chars = 0;
    int rc;

    for (int i = 0; i < row->n; i++)
        chars += characters(row->turns[i].text);
    c->rows++;
    c->chars += chars;
    if (chars > c->longest_chars)
        c->longest_chars = chars;
    if (c->examples_wanted && json_array_size(c->examples) < CHECK_EXAMPLES)
        add_example(c, row);
    if (!c->t)
        return 0;
    c->ids.n = 0;
    rc = chat_encode(c->t, c->template_name, row, false, &c->ids, NULL, c->e);
    c->tokens += c->ids.n;
    if (c->ids.n > c->longest)
        c->longest = c->ids.n;
    return rc;
}

static void check_skip(void *arg, const char *why)
{
    struct check *c = arg;

    c->skipped++;
    if (json_array_size(c->reasons) < CHECK_REASONS) {
        struct buf b = BUF_INIT; /* why may hold a cut piece of a user's text: make it whole UTF-8 */
        for (size_t i = 0, n = strlen(why), step; i < n; i += step ? step : 1) {
            step = text_utf8_step(why + i, n - i);
            buf_add(&b, step ? why + i : "?", step ? step : 1);
        }
        json_array_append_new(c->reasons, json_stringn(b.p ? b.p : "", b.len));
        buf_release(&b);
    }
}

static json_t *formats_of(const struct dataset *d)
{
    json_t *list = json_array();
    unsigned seen = 0;

    for (int s = 0; s < DATA_SPLITS; s++)
        for (size_t i = 0; i < d->files[s].n; i++)
            seen |= 1u << (2 * d->files[s].v[i].format + d->files[s].v[i].gz);
    for (int f = 0; f < DATA_FORMATS; f++)
        for (int gz = 0; gz < 2; gz++)
            if (seen >> (2 * f + gz) & 1)
                json_array_append_new(list, json_sprintf("%s%s", data_format_names[f], gz ? ".gz" : ""));
    return list;
}

static json_t *forms_of(const struct dataset *d)
{
    json_t *list = json_array();

    for (int f = 0; f < FORM_COUNT; f++)
        if (d->forms >> f & 1)
            json_array_append_new(list, json_string(data_form_names[f]));
    return list;
}

static int no_train(const struct dataset *d, struct dtx_err *e)
{
    return dtx_fail(
        e, -EINVAL,
        "no training data: expected train.jsonl (or .json, .csv, .tsv, each also .gz; or parts like "
        "train-00000-of-00002.jsonl)%s%s",
        d->others.len ? "; found " : "; the folder has no such file", d->others.len ? d->others.p : "");
}

static int check_splits(struct dataset *d, struct check *c, json_t *rows)
{
    for (int s = 0; s < DATA_SPLITS; s++) {
        uint64_t before = c->rows;
        int rc;
        if (!dataset_has(d, (enum data_split)s))
            continue;
        c->examples_wanted = s == DATA_TRAIN;
        rc = dataset_walk(d, (enum data_split)s, check_row, check_skip, c, c->e);
        if (rc)
            return rc;
        json_object_set_new(rows, data_split_names[s], json_integer((json_int_t)(c->rows - before)));
        if (c->rows == before) {
            const char *why = json_string_value(json_array_get(c->reasons, 0));
            return dtx_fail(c->e, -EINVAL, "no usable row in the %s split%s%.600s", data_split_names[s],
                            why ? ": " : ": it is empty", why ? why : "");
        }
    }
    return 0;
}

static json_t *report_of(struct dataset *d, struct check *c, json_t *rows, const char *sha)
{
    json_t *metadata = json_object_get(d->spec, "metadata");
    json_t *r = json_pack("{s:O,s:I,s:O,s:I,s:I,s:s,s:o,s:o,s:s,s:O,s:o}", "rows", rows, "skipped",
                          (json_int_t)c->skipped, "skip_reasons", c->reasons, "longest_chars",
                          (json_int_t)c->longest_chars, "chars", (json_int_t)c->chars, "sha256", sha,
                          "formats", formats_of(d), "row_forms", forms_of(d), "template", c->template_name,
                          "examples", c->examples, "metadata",
                          json_is_object(metadata) ? json_deep_copy(metadata) : json_object());

    if (r && c->t) {
        json_object_set_new(r, "tokens", json_integer((json_int_t)c->tokens));
        json_object_set_new(r, "longest", json_integer((json_int_t)c->longest));
    }
    return r;
}

int dataset_check(int dirfd, const char *dir, const struct dtx_tokenizer *t, json_t **report,
                  struct dtx_err *e)
{
    struct check c = {.t = t, .reasons = json_array(), .examples = json_array(), .e = e};
    json_t *rows = json_object();
    struct dataset *d = NULL;
    char sha[65];
    int rc;

    *report = NULL;
    rc = dataset_open(dirfd, dir, NULL, &d, e);
    if (rc == 0 && !dataset_has(d, DATA_TRAIN))
        rc = no_train(d, e);
    if (rc == 0)
        rc = chat_template_of(t, d->template_name, &c.template_name, e);
    if (rc == 0)
        rc = check_splits(d, &c, rows);
    if (rc == 0)
        rc = dataset_sha256(d, sha, e);
    if (rc == 0) {
        *report = report_of(d, &c, rows, sha);
        if (!*report)
            rc = dtx_fail(e, -ENOMEM, "out of memory");
    }
    dataset_close(d);
    dtx_ids_release(&c.ids);
    json_decref(rows);
    json_decref(c.reasons);
    json_decref(c.examples);
    return rc;
}
