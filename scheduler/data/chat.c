/*
 * Chat templates: the one place that says how turns become tokens, for training, scoring and serving.
 *
 *   llama2   per question and answer: <s>[INST] <<SYS>>\nsystem\n<</SYS>>\n\nquestion [/INST] answer</s>
 *   llama3   <|begin_of_text|> and per turn <|start_header_id|>role<|end_header_id|>\n\ntext<|eot_id|>
 *   chatml   per turn <|im_start|>role\ntext<|im_end|>\n
 *   plain    <s>, then per turn text and a line end, </s> after the last answer
 *
 * Trained (labels = ids): answers and the token that ends them.  Everything else is masked (-100).
 */
#include "scheduler/data/data_int.h"

#include <string.h>

#include "scheduler/base/text.h"

struct form { /* one row being formed */
    const struct data_row *row;
    int end; /* turns before this are formed */
    bool for_answer;
    const struct chat_sink *sink;
};

static int put_special(const struct form *f, const char *name, bool trained)
{
    return f->sink->special(f->sink->arg, name, trained);
}

static int put_text(const struct form *f, const char *s, size_t n, bool trained)
{
    return n ? f->sink->text(f->sink->arg, s, n, trained) : 0;
}

static int put_stripped(const struct form *f, const char *s, bool trained)
{
    size_t n = strlen(s);

    text_strip(&s, &n);
    return put_text(f, s, n, trained);
}

static void add_stripped(struct buf *b, const char *s)
{
    size_t n = strlen(s);

    text_strip(&s, &n);
    buf_add(b, s, n);
}

static int llama2_question(const struct form *f, const char *system, const char *question)
{
    struct buf b = BUF_INIT;
    int rc = put_special(f, "<s>", false);

    buf_adds(&b, "[INST] ");
    if (system) {
        buf_adds(&b, "<<SYS>>\n");
        add_stripped(&b, system);
        buf_adds(&b, "\n<</SYS>>\n\n");
    }
    add_stripped(&b, question);
    buf_adds(&b, " [/INST]");
    if (rc == 0)
        rc = b.failed ? -ENOMEM : put_text(f, b.p, b.len, false);
    buf_release(&b);
    return rc;
}

static int form_llama2(const struct form *f)
{
    const char *system = NULL;
    bool asked = false;
    int rc = 0;

    for (int i = 0; rc == 0 && i < f->end; i++) {
        const struct data_turn *t = &f->row->turns[i];
        if (t->role == DATA_SYSTEM) {
            system = t->text;
        } else if (t->role == DATA_USER) {
            rc = llama2_question(f, system, t->text);
            system = NULL;
            asked = true;
        } else {
            if (!asked)
                rc = put_special(f, "<s>", false);
            if (rc == 0)
                rc = put_stripped(f, t->text, true);
            if (rc == 0)
                rc = put_special(f, "</s>", true);
            asked = false;
        }
    }
    return rc;
}

static const char *role_name(enum data_role r)
{
    return r == DATA_SYSTEM ? "system" : r == DATA_USER ? "user" : "assistant";
}

struct header_style {         /* templates that announce each turn by a header */
    const char *open, *close; /* special tokens around the role; close may be NULL */
    const char *gap;          /* text after the header */
    const char *end;          /* special token after a turn */
    const char *after;        /* text after that, or "" */
    bool bos;
};

static int put_header(const struct form *f, const struct header_style *s, enum data_role role)
{
    const char *name = role_name(role);
    struct buf b = BUF_INIT;
    int rc = put_special(f, s->open, false);

    buf_adds(&b, name);
    if (!s->close)
        buf_adds(&b, s->gap);
    if (rc == 0)
        rc = b.failed ? -ENOMEM : put_text(f, b.p, b.len, false);
    if (rc == 0 && s->close)
        rc = put_special(f, s->close, false);
    if (rc == 0 && s->close)
        rc = put_text(f, s->gap, strlen(s->gap), false);
    buf_release(&b);
    return rc;
}

static int form_headers(const struct form *f, const struct header_style *s)
{
    int rc = s->bos ? put_special(f, "<s>", false) : 0;

    for (int i = 0; rc == 0 && i < f->end; i++) {
        const struct data_turn *t = &f->row->turns[i];
        bool trained = t->role == DATA_ASSISTANT;
        rc = put_header(f, s, t->role);
        if (rc == 0)
            rc = put_stripped(f, t->text, trained);
        if (rc == 0)
            rc = put_special(f, s->end, trained);
        if (rc == 0)
            rc = put_text(f, s->after, strlen(s->after), false);
    }
    return rc == 0 && f->for_answer ? put_header(f, s, DATA_ASSISTANT) : rc;
}

static int form_plain(const struct form *f)
{
    int rc = put_special(f, "<s>", false);

    for (int i = 0; rc == 0 && i < f->end; i++) {
        const struct data_turn *t = &f->row->turns[i];
        bool last = i + 1 == f->end && t->role == DATA_ASSISTANT;
        struct buf b = BUF_INIT;
        if (f->row->plain_text)
            buf_adds(&b, t->text);
        else
            add_stripped(&b, t->text);
        if (!last)
            buf_addc(&b, '\n');
        rc = b.failed ? -ENOMEM : put_text(f, b.p, b.len, t->role == DATA_ASSISTANT);
        if (rc == 0 && last)
            rc = put_special(f, "</s>", true);
        buf_release(&b);
    }
    return rc;
}

static const struct header_style llama3 = {
    "<|start_header_id|>", "<|end_header_id|>", "\n\n", "<|eot_id|>", "", true};
static const struct header_style chatml = {"<|im_start|>", NULL, "\n", "<|im_end|>", "\n", false};

int chat_form(const char *template_name, const struct data_row *row, bool for_answer,
              const struct chat_sink *sink)
{
    struct form f = {row, row->n, for_answer, sink};

    if (for_answer)
        for (int i = 0; i < row->n; i++)
            if (row->turns[i].role == DATA_ASSISTANT)
                f.end = i;
    if (for_answer && row->n && row->turns[row->n - 1].role != DATA_ASSISTANT)
        f.end = row->n;
    if (row->plain_text || strcmp(template_name, "plain") == 0)
        return form_plain(&f);
    if (strcmp(template_name, "llama3") == 0)
        return form_headers(&f, &llama3);
    if (strcmp(template_name, "chatml") == 0)
        return form_headers(&f, &chatml);
    return form_llama2(&f);
}

static bool has_header_tokens(const struct dtx_tokenizer *t, const struct header_style *s)
{
    return dtx_tokenizer_special(t, s->open) >= 0 && dtx_tokenizer_special(t, s->end) >= 0 &&
           (!s->close || dtx_tokenizer_special(t, s->close) >= 0);
}

int chat_template_of(const struct dtx_tokenizer *t, const char *name, const char **out, struct dtx_err *e)
{
    static const char *const names[] = {"auto", "llama2", "llama3", "chatml", "plain"};
    const char *found = NULL;

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(name ? name : "auto", names[i]) == 0)
            found = names[i];
    if (!found)
        return dtx_fail(e, -EINVAL,
                        "template \"%.60s\": unknown; expected auto, llama2, llama3, chatml or plain", name);
    if (t && found == names[0])
        found = has_header_tokens(t, &llama3)   ? "llama3"
                : has_header_tokens(t, &chatml) ? "chatml"
                                                : "llama2";
    else if (t && ((found == names[2] && !has_header_tokens(t, &llama3)) ||
                   (found == names[3] && !has_header_tokens(t, &chatml))))
        return dtx_fail(e, -EINVAL, "template \"%s\": the model's tokenizer has no %s", found,
                        found == names[2] ? llama3.open : chatml.open);
    if (out)
        *out = found;
    return 0;
}

/* ---- encoding ---- */

struct encoder {
    const struct dtx_tokenizer *t;
    struct dtx_ids *ids, *labels; /* labels may be NULL */
    struct dtx_err *e;
};

/* Labels for what was added to ids since there were `from`. */
static int label_from(struct encoder *c, size_t from, bool trained)
{
    for (size_t i = from; c->labels && i < c->ids->n; i++)
        if (dtx_ids_add(c->labels, trained ? c->ids->v[i] : -100))
            return dtx_fail(c->e, -ENOMEM, "out of memory");
    return 0;
}

static int encode_special(void *arg, const char *name, bool trained)
{
    struct encoder *c = arg;
    int32_t id = strcmp(name, "<s>") == 0    ? dtx_tokenizer_bos(c->t)
                 : strcmp(name, "</s>") == 0 ? dtx_tokenizer_eos(c->t)
                                             : dtx_tokenizer_special(c->t, name);
    size_t from = c->ids->n;

    if (id < 0) /* a model without BOS or EOS */
        return 0;
    if (dtx_ids_add(c->ids, id))
        return dtx_fail(c->e, -ENOMEM, "out of memory");
    return label_from(c, from, trained);
}

static int encode_text(void *arg, const char *s, size_t n, bool trained)
{
    struct encoder *c = arg;
    size_t from = c->ids->n;
    int rc = dtx_tokenizer_encode(c->t, s, n, c->ids, c->e);

    return rc ? rc : label_from(c, from, trained);
}

int chat_encode(const struct dtx_tokenizer *t, const char *template_name, const struct data_row *row,
                bool for_answer, struct dtx_ids *ids, struct dtx_ids *labels, struct dtx_err *e)
{
    struct encoder c = {t, ids, labels, e};
    const struct chat_sink sink = {encode_special, encode_text, &c};
    const char *name;
    int rc = chat_template_of(t, template_name, &name, e);

    if (rc == 0)
        rc = chat_form(name, row, for_answer, &sink);
    return rc == -ENOMEM ? dtx_fail(e, -ENOMEM, "out of memory") : rc;
}
