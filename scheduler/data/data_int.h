/*
 * Inside scheduler/data: bytes of a file (input.c) -> rows as JSON objects (jsonrows.c, csv.c) -> turns
 * (rows.c), of the files that files.c found.  Every size here is a bound on what a stranger's file may make
 * us do.
 */
#ifndef DTX_DATA_INT_H
#define DTX_DATA_INT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"
#include "scheduler/data/data.h"

enum {
    DATA_MAX_ROW = 4 << 20,  /* bytes of one row's text */
    DATA_MAX_COLUMNS = 1024, /* of a csv or tsv file */
    DATA_MAX_FILES = 4096,   /* of a split */
    DATA_MAX_TURNS = 4096,   /* of a row */
    DATA_BOMB_RATIO = 250,   /* a gz that grows more than this, once past DATA_BOMB_FREE bytes, is refused */
    DATA_BOMB_FREE = 64 << 20,
    DATA_IN_CHUNK = 1 << 16,
};
#define DATA_MAX_UNPACKED (UINT64_C(64) << 30) /* bytes of one gz file */

enum data_format { DATA_JSONL, DATA_JSON, DATA_CSV, DATA_TSV, DATA_FORMATS };
extern const char *const data_format_names[DATA_FORMATS];

/* ---- input.c: a regular file, unpacked, byte by byte, with the number of the line that the next byte is on
 * ---- */

struct data_in {
    const char *name; /* for messages; borrowed */
    int fd;           /* borrowed */
    long line;        /* from 1 */
    unsigned char *chunk;
    size_t at, end; /* what is left of the chunk */
    struct gz *gz;  /* NULL: not packed */
    int failed;     /* negative errno, words in err */
    struct dtx_err err;
};
enum { DATA_END = -1, DATA_FAILED = -2 };

/* A byte order mark is left out.  data_in_release also after a failure. */
int data_in_init(struct data_in *in, int fd, const char *name, bool gz, struct dtx_err *e);
void data_in_release(struct data_in *in);
int data_in_fill(struct data_in *in); /* 0, DATA_END, DATA_FAILED */

static inline int data_in_peek(struct data_in *in) /* byte, DATA_END or DATA_FAILED */
{
    if (in->at == in->end) {
        int rc = data_in_fill(in);
        if (rc)
            return rc;
    }
    return in->chunk[in->at];
}

static inline int data_in_next(struct data_in *in)
{
    int c = data_in_peek(in);
    if (c >= 0) {
        in->at++;
        in->line += c == '\n';
    }
    return c;
}

/* ---- readers: each row as a JSON object ---- */

struct row_sink {
    int (*row)(void *arg, const json_t *object, long line); /* non-zero ends the reading with that value */
    void (*bad)(void *arg, long line, const char *why);
    void *arg;
};
int data_read_jsonl(struct data_in *in, const struct row_sink *sink, struct dtx_err *e);
int data_read_json(struct data_in *in, const struct row_sink *sink, struct dtx_err *e);
int data_read_csv(struct data_in *in, char separator, const struct row_sink *sink, struct dtx_err *e);
int data_read(struct data_in *in, enum data_format format, const struct row_sink *sink, struct dtx_err *e);

/* ---- rows.c ---- */

struct data_features { /* column names; NULL: the usual ones */
    const char *instruction, *response, *system, *history;
};
enum data_form {
    FORM_MAPPED,
    FORM_MESSAGES,
    FORM_CONVERSATIONS,
    FORM_INSTANCES,
    FORM_PAIR,
    FORM_TEXT,
    FORM_COUNT
};
extern const char *const data_form_names[FORM_COUNT];

/* Turn one object into rows (one; several for self-instruct's instances).  0; -EINVAL with the reason why
 * there is none; or what emit returned. *form: which form it was. */
int data_rows_of(const struct data_features *f, const json_t *object,
                 int (*emit)(void *arg, struct data_row *row), void *arg, enum data_form *form,
                 struct dtx_err *why);

/* ---- files.c ---- */

struct data_file {
    char *path; /* in the dataset's folder */
    enum data_format format;
    bool gz;
};
struct data_files {
    struct data_file *v;
    size_t n, cap;
};
void data_files_release(struct data_files *f);
/* Open a path below a folder; no component may be a link, "..", or the whole absolute. */
int data_open_beneath(int dirfd, const char *path, int flags, struct dtx_err *e);
/* What kind of file a name says it is; false: none that is read here. */
bool data_format_of(const char *name, enum data_format *format, bool *gz);
/* The files train.*, validation.* or val.*, test.* of a folder, sorted by name.  others (may be NULL) gets
 * the names of up to 5 files that are none. */
int data_discover(int dirfd, struct data_files files[DATA_SPLITS], struct buf *others, struct dtx_err *e);
/* The files that a spec's "splits" name for one split. */
int data_files_named(const char *split, const json_t *names, struct data_files *files, struct dtx_err *e);

extern const char *const data_split_names[DATA_SPLITS];

struct dataset {
    int fd; /* the folder */
    json_t *spec;
    struct data_features features; /* points into spec */
    const char *template_name;     /* NULL: the tokenizer's own; points into spec */
    struct data_files files[DATA_SPLITS];
    struct buf others; /* names of files that are of no use, for messages */
    unsigned forms;    /* bits of enum data_form seen by walks */
    char sha256[65];   /* "" until it was asked for */
};

/* ---- chat.c ---- */

/* What a chat template is made of, in order: special tokens by name ("<s>" and "</s>": BOS and EOS, whatever
 * they are called) and texts, each tokenized for itself. */
struct chat_sink {
    int (*special)(void *arg, const char *name, bool trained);
    int (*text)(void *arg, const char *s, size_t n, bool trained);
    void *arg;
};
/* template_name as chat_template_of gave it. */
int chat_form(const char *template_name, const struct data_row *row, bool for_answer,
              const struct chat_sink *sink);
/* NULL or "auto": llama3 or chatml where the tokenizer has their special tokens, else llama2.  t may be NULL
 * (the name alone is checked).  -EINVAL for an unknown name, or one whose special tokens the tokenizer lacks.
 */
int chat_template_of(const struct dtx_tokenizer *t, const char *name, const char **out, struct dtx_err *e);

#endif
