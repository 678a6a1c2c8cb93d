/* The texts made from the table: README.md of every folder, dtx.layout(5).  What a folder is for in more
 * words than one line stands in text/FOLDER.md, embedded by layout_embed.c. */
#include "mnt-layout/layout.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mnt-layout/spec.h"
#include "scheduler/base/buf.h"

/* Is `pattern` directly below the folder `dir` (a pattern)?  Its last component, or NULL. */
static const char *child_of(const char *dir, const char *pattern)
{
    size_t n = strlen(dir);

    if (*pattern == '\0' || strncmp(pattern, dir, n) != 0 || (n && pattern[n] != '/'))
        return NULL;
    pattern += n ? n + 1 : 0;
    return strchr(pattern, '/') ? NULL : pattern;
}

/* {name}.json -> NAME.json, ** -> ...: as people read it. */
static void add_readable(struct buf *out, const char *pattern)
{
    bool in_braces = false;

    for (const char *p = pattern; *p; p++) {
        if (*p == '{' || *p == '}')
            in_braces = *p == '{';
        else if (*p == '*')
            buf_adds(out, p[1] == '*' ? "..." : "");
        else
            buf_addc(out, in_braces && *p >= 'a' && *p <= 'z' ? (char)(*p - 'a' + 'A') : *p);
    }
}

static bool is_folder(const struct layout_entry *e)
{
    return e->kind == LK_DIR || e->kind == LK_DROP_DIR || e->kind == LK_USER_DIR || e->kind == LK_STORE_DIR;
}

static void add_child_line(struct buf *out, const struct layout_entry *child, const char *name)
{
    struct buf shown = BUF_INIT;

    add_readable(&shown, name);
    if (is_folder(child))
        buf_addc(&shown, '/');
    buf_addf(out, "    %-22s %s\n", shown.p ? shown.p : "", child->help);
    if (shown.failed)
        out->failed = true;
    buf_release(&shown);
}

int layout_readme(const char *dir, struct buf *out)
{
    struct layout_match m;
    const char *text;
    size_t n;

    if (layout_lookup(dir, &m) || m.rest || !is_folder(m.entry))
        return -ENOENT;
    buf_adds(out, "# /dtx/");
    add_readable(out, m.entry->pattern);
    buf_addf(out, " - %s\n\n", m.entry->help);
    text = layout_text(m.entry->pattern, &n);
    if (text) {
        buf_add(out, text, n);
        buf_addc(out, '\n');
    }
    buf_adds(out, "## What is here\n\n");
    for (size_t i = 0; i < layout_count; i++) {
        const char *name = child_of(m.entry->pattern, layout_table[i].pattern);
        if (name)
            add_child_line(out, &layout_table[i], name);
    }
    return out->failed ? -ENOMEM : 0;
}

/* ---- dtx.layout(5) ---- */

/* Text as roff takes it: backslashes escaped, no line begins with a dot or quote, hyphens stay hyphens. */
static void add_roff(struct buf *out, const char *s, size_t n)
{
    bool line_start = out->len == 0 || out->p[out->len - 1] == '\n';

    for (size_t i = 0; i < n; i++) {
        if (line_start && (s[i] == '.' || s[i] == '\''))
            buf_adds(out, "\\&");
        if (s[i] == '\\')
            buf_adds(out, "\\e");
        else if (s[i] == '-')
            buf_adds(out, "\\-");
        else if (s[i] == '`')
            buf_adds(out, "\\(ga");
        else
            buf_addc(out, s[i]);
        line_start = s[i] == '\n';
    }
}

static const char *kind_note(const struct layout_entry *e)
{
    switch (e->kind) {
    case LK_DIR:
        return "folder";
    case LK_DROP_DIR:
        return "folder; drop here";
    case LK_USER_DIR:
        return "folder, yours";
    case LK_USER_ANY:
    case LK_USER_FILE:
        return "yours";
    case LK_TEXT:
        return "generated";
    case LK_CONTROL:
        return "generated; write a word";
    case LK_STORE_FILE:
    case LK_STORE_ANY:
        return "written by DTX";
    case LK_STORE_DIR:
        return "folder, written by DTX";
    case LK_LINK:
        return "link";
    }
    return "";
}

/* One paragraph for each row but README.md, which is the same everywhere. */
static void add_man_row(struct buf *out, const struct layout_entry *e)
{
    struct buf shown = BUF_INIT;

    buf_adds(&shown, "/dtx/");
    add_readable(&shown, e->pattern);
    buf_adds(out, ".TP\n.B ");
    add_roff(out, shown.p ? shown.p : "", shown.len);
    buf_addf(out, "\n(%s) ", kind_note(e));
    add_roff(out, e->help, strlen(e->help));
    buf_addc(out, '\n');
    buf_release(&shown);
}

/* The Markdown of text/man.md, in which "## TITLE" begins a section and an indented line is an example. */
static void add_man_prose(struct buf *out, const char *text, size_t n)
{
    bool example = false;

    for (size_t i = 0, len; i < n; i += len + 1) {
        const char *line = text + i;
        len = strcspn(line, "\n") < n - i ? strcspn(line, "\n") : n - i;
        bool indented = len > 4 && memcmp(line, "    ", 4) == 0;
        if (indented != example && (len || !example))
            buf_adds(out, indented ? ".PP\n.EX\n" : ".EE\n");
        if (len || !example)
            example = indented;
        if (len > 3 && memcmp(line, "## ", 3) == 0)
            buf_addf(out, ".SH %.*s\n", (int)len - 3, line + 3);
        else if (len == 0)
            buf_adds(out, example ? "\n" : ".PP\n");
        else
            add_roff(out, line, len), buf_addc(out, '\n');
    }
    if (example)
        buf_adds(out, ".EE\n");
}

void layout_man_page(struct buf *out)
{
    const char *prose;
    size_t n;

    buf_adds(
        out,
        ".TH DTX.LAYOUT 5 \"\" DTX \"File formats\"\n.SH NAME\ndtx.layout \\- the tree under a DTX mount\n");
    prose = layout_text("man", &n);
    if (prose)
        add_man_prose(out, prose, n);
    buf_adds(out,
             ".SH FILES\nWords in capitals stand for names. Every folder of DTX's own has a README.md.\n");
    for (size_t i = 0; i < layout_count; i++)
        if (layout_table[i].reader != LR_README)
            add_man_row(out, &layout_table[i]);
    buf_adds(out, ".SH SEE ALSO\n.BR dtxd (8)\n");
}

/* ---- what a row's reader gives ---- */

static int render_spec_text(const char *pattern, int (*render)(enum spec_kind kind, struct buf *out),
                            struct buf *out)
{
    const char *name = strchr(pattern, '/') + 1;
    size_t n = strlen(name) - strlen(".json");

    for (int k = 0; k < SPEC_KINDS; k++)
        if (strncmp(spec_kind_name((enum spec_kind)k), name, n) == 0 &&
            spec_kind_name((enum spec_kind)k)[n] == '\0')
            return render((enum spec_kind)k, out);
    return -ENOENT;
}

int layout_render(const struct layout_match *m, struct buf *out)
{
    char dir[LAYOUT_NAME_MAX];
    const char *text, *slash = strrchr(m->entry->pattern, '/');
    size_t n;

    switch (m->entry->reader) {
    case LR_README:
        snprintf(dir, sizeof(dir), "%.*s", slash ? (int)(slash - m->entry->pattern) : 0, m->entry->pattern);
        return layout_readme(dir, out);
    case LR_TEMPLATE:
        return render_spec_text(m->entry->pattern, spec_template, out);
    case LR_SCHEMA:
        return render_spec_text(m->entry->pattern, spec_schema, out);
    case LR_BIN_DTX:
        text = layout_text("bin/dtx", &n);
        if (!text)
            return -ENOENT;
        buf_add(out, text, n);
        return out->failed ? -ENOMEM : 0;
    default:
        return -ENOENT;
    }
}
