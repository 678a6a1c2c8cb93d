/*
 * Datasets: files of rows in many forms -> turns -> token rows.  Used by dtx-worker only (a hostile file can
 * at worst kill that process).  DESIGN section 2, "Dataset".
 */
#ifndef DTX_DATA_H
#define DTX_DATA_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/dtx_engine.h"
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

enum data_role { DATA_SYSTEM, DATA_USER, DATA_ASSISTANT };
struct data_turn {
    enum data_role role;
    char *text; /* NUL-terminated, valid UTF-8 */
};
struct data_row { /* one training example or question */
    struct data_turn *turns;
    int n;
    bool plain_text;  /* a "text" row: one assistant turn, every token is trained */
    const char *file; /* of the dataset, for messages; borrowed */
    long line;
};

enum data_split { DATA_TRAIN, DATA_VALIDATION, DATA_TEST, DATA_SPLITS };

struct dataset; /* an opened dataset folder: which files make which split, formats, feature mapping, template
                 */

/* dir relative to dirfd; spec: normalized dataset.json (spec.h), or NULL to read dir/dataset.json or the
 * defaults. */
int dataset_open(int dirfd, const char *dir, const json_t *spec, struct dataset **out, struct dtx_err *e);
void dataset_close(struct dataset *d);
bool dataset_has(const struct dataset *d, enum data_split split);

/* Call fn for every good row in file order (row is borrowed), skip for every bad one with "file:line: why".
 * fn returning non-zero ends the walk with that value.  Either may be NULL. */
int dataset_walk(struct dataset *d, enum data_split split, int (*fn)(void *arg, const struct data_row *row),
                 void (*skip)(void *arg, const char *why), void *arg, struct dtx_err *e);

/* SHA-256 over the content of all files of all splits and dataset.json. */
int dataset_sha256(struct dataset *d, char hex[65], struct dtx_err *e);

/* CHECKING: {"rows":{"train":n,...},"skipped":n,"skip_reasons":["file:line: why", first
 * 20],"longest_chars":n, "chars":n,"sha256","formats":[..],"examples":[{"text","trained"}
 * x3],"metadata":{..}} ; with a tokenizer also "tokens","longest" and the examples as pieces with their label
 * mask.  -EINVAL with words when it cannot be used (no train split, no usable row). */
int dataset_check(int dirfd, const char *dir, const struct dtx_tokenizer *t, json_t **report,
                  struct dtx_err *e);

/* Chat form: the one function for training, scoring and serving.  Appends ids and labels of the whole row;
 * with for_answer the row ends before the last assistant turn (a prompt to be continued) and labels may be
 * NULL. template: NULL or "llama2" ("[INST] q [/INST] a </s>" as in the reference), "llama3", "plain". */
int chat_encode(const struct dtx_tokenizer *t, const char *template_name, const struct data_row *row,
                bool for_answer, struct dtx_ids *ids, struct dtx_ids *labels, struct dtx_err *e);

/* Tokenize a split into a cache file (temporary name, fsync, rename) and map it.  truncated counts rows cut
 * to block_size.  A cache whose key (dataset sha, tokenizer sha, template, block_size) agrees is only mapped.
 */
struct token_cache {
    struct dtx_rows rows; /* points into the map */
    uint64_t tokens, longest, truncated, skipped;
    void *map;
    size_t map_len;
};
int token_cache_make(struct dataset *d, enum data_split split, const struct dtx_tokenizer *t, int block_size,
                     int dirfd, const char *path, struct token_cache *out, struct dtx_err *e);
/* Map a cache that was made before, without its dataset (which may be gone by then). */
int token_cache_map(int dirfd, const char *path, int block_size, struct token_cache *out, struct dtx_err *e);
void token_cache_release(struct token_cache *c);

#endif
