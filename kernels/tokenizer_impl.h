/*
 * Inside of the tokenizers: the vocabulary, the merging core that both kinds share, and the steps of
 * tokenizer.json.
 *
 * A tokenizer is SentencePiece BPE (tokenizer.model: any two neighbours whose text together is a piece may
 * merge, the piece with the highest score first) or tokenizer.json's BPE (a list of pairs, the first in the
 * list first).  In both the leftmost wins among equals.  An object never changes once it was loaded.
 */
#ifndef DTX_TOKENIZER_IMPL_H
#define DTX_TOKENIZER_IMPL_H

#include "kernels/dtx_engine.h"

#include <jansson.h>

enum {
    TOK_MAX_FILE = 64 << 20,   /* bytes of tokenizer.model and tokenizer.json */
    TOK_MAX_CONFIG = 16 << 20, /* bytes of the small JSON files beside them */
    TOK_MAX_PIECES = 1 << 22,
    TOK_MAX_PIECE = 4096,   /* bytes of one piece */
    TOK_MAX_USER = 256,     /* bytes of a piece that is looked for in the text before merging */
    TOK_MAX_TEXT = 1 << 28, /* bytes of one text to encode */
    TOK_MAX_STEPS = 16,     /* normalizers, pre-tokenizers */
    TOK_MAX_STOPS = 16,
};

enum piece_kind {                 /* the numbers of SentencePiece's ModelProto */
                  PIECE_NONE = 0, /* an id without a text */
                  PIECE_NORMAL = 1,
                  PIECE_UNKNOWN = 2,
                  PIECE_CONTROL = 3,
                  PIECE_USER = 4,   /* found in the text as a whole, before any merging */
                  PIECE_UNUSED = 5, /* may appear while merging, is taken apart at the end */
                  PIECE_BYTE = 6,
};

struct piece {
    uint32_t at, len; /* in dtx_tokenizer.text; of byte-level tokenizers the bytes themselves */
    uint32_t rank;    /* SentencePiece: place of its score, 0 the highest, equal scores equal ranks */
    uint8_t kind;
    bool special; /* left out by decode */
};

struct strmap { /* text of a piece -> id; open addressing */
    int32_t *slot;
    uint32_t mask, used;
};

struct pairmap { /* (left id, right id) -> rank and merged id */
    struct pair {
        uint64_t key;
        uint32_t rank;
        int32_t id;
    } * v;
    uint32_t mask;
};

enum norm_type { NORM_UNICODE, NORM_PREPEND, NORM_REPLACE };
struct norm_step {
    enum norm_type type;
    int form; /* options of utf8proc_map */
    char *from, *to;
};

enum pre_type { PRE_SPLIT, PRE_SPACE, PRE_METASPACE };
struct pre_step {
    enum pre_type type;
    void *code;                      /* PRE_SPLIT: pcre2_code */
    bool jit, drop_match, drop_rest; /* PRE_SPLIT */
    char *space;                     /* PRE_METASPACE: what stands for a space */
    bool prepend, prepend_first_only, split;
};

struct dtx_tokenizer {
    struct piece *pieces;
    int32_t n, cap;
    struct buf text;
    struct strmap normal, user;
    uint64_t seed; /* of the hash: strangers cannot choose texts that collide */
    uint32_t max_len, max_user;
    bool user_first[256]; /* first bytes of user pieces */
    int32_t byte_id[256]; /* piece of a byte, -1 if there is none */
    int32_t unk;          /* -1: none */
    bool by_text;         /* SentencePiece rules */
    bool byte_level;      /* pieces are bytes (GPT-2's alphabet) */
    bool byte_fallback, fuse_unk;
    bool strip_space; /* decode takes one space off the beginning */
    /* SentencePiece */
    bool dummy_prefix, squeeze_spaces, escape_spaces, has_unused;
    bool words_apart; /* no piece reaches over the beginning of a word: words can be encoded one by one */
    /* tokenizer.json */
    struct pairmap merges;
    bool ignore_merges;
    struct norm_step norm[TOK_MAX_STEPS];
    struct pre_step pre[TOK_MAX_STEPS];
    int n_norm, n_pre;

    int32_t bos, eos, stops[TOK_MAX_STOPS];
    int n_stops;
    char sha256[65];
};

#define SPACE_SIGN "\xe2\x96\x81" /* U+2581 */

/* ---- vocabulary (tokenizer_vocab.c); file is used in messages ---- */
int tok_put(struct dtx_tokenizer *t, const char *file, int64_t id, const char *text, size_t n,
            enum piece_kind kind, struct dtx_err *e);
int tok_map_reserve(struct strmap *m, uint32_t n); /* room for n texts; -ENOMEM */
void tok_map_add(struct dtx_tokenizer *t, struct strmap *m, int32_t id);
int32_t tok_find(const struct dtx_tokenizer *t, const char *text, size_t n); /* an ordinary piece, or -1 */
/* The longest user piece at the beginning of text; its length, 0: none. */
size_t tok_user_at(const struct dtx_tokenizer *t, const char *text, size_t n, int32_t *id);
int32_t tok_by_text(const struct dtx_tokenizer *t, const char *text); /* any piece, special ones first */
int tok_pairs_reserve(struct pairmap *m, uint32_t n);
void tok_pairs_put(struct pairmap *m, int32_t left, int32_t right, uint32_t rank, int32_t id);
const struct pair *tok_pairs_find(const struct pairmap *m, int32_t left, int32_t right);
/* Id of "<0xHH>" for every byte into byte_id. */
void tok_find_bytes(struct dtx_tokenizer *t);
/* Put every piece of kind PIECE_USER into the map of texts that are looked for. */
int tok_index_user(struct dtx_tokenizer *t, const char *file, struct dtx_err *e);

static inline const char *tok_text(const struct dtx_tokenizer *t, int32_t id)
{
    return t->text.p + t->pieces[id].at;
}

/* ---- merging (tokenizer_merge.c) ---- */
enum { SYM_UNKNOWN = -1, SYM_FROZEN = -2 };

struct merge_sym {
    uint32_t at, len; /* in the text; len 0: merged away */
    int32_t prev, next;
    int32_t id;
    bool frozen; /* takes part in no merge */
};

struct merge_cand {
    uint32_t rank, left, right, len;
    int32_t id;
};

struct merger { /* working memory of one encode call */
    const struct dtx_tokenizer *t;
    const char *text;
    struct merge_sym *s;
    uint32_t n, cap;
    struct merge_cand *heap;
    uint32_t heap_n, heap_cap;
    uint32_t *cut; /* has_unused: by id, length of the left part of its last candidate */
    void *match;   /* pcre2_match_data */
    void *match_context;
    uint64_t matches; /* done so far */
    int64_t deadline; /* CPU time of this thread, ns: a hostile pattern ends here */
};
void merge_release(struct merger *m);
int merge_add(struct merger *m, uint32_t at, uint32_t len, int32_t id, bool frozen);
/* Merge until nothing merges.  The symbols that are left are the chain from 0 (none if n is 0). */
int merge_run(struct merger *m);

/* ---- SentencePiece (tokenizer_spm.c, tokenizer_spm_encode.c) ---- */
int spm_load(struct dtx_tokenizer *t, const char *data, size_t n, struct dtx_err *e);
int spm_encode(struct merger *m, const char *text, size_t n, struct dtx_ids *ids, struct dtx_err *e);

/* ---- tokenizer.json (tokenizer_json.c, tokenizer_pre.c) ---- */
int tokjson_load(struct dtx_tokenizer *t, const char *data, size_t n, struct dtx_err *e);
int tokjson_encode(struct merger *m, const char *text, size_t n, struct dtx_ids *ids, struct dtx_err *e);
int pre_load(struct dtx_tokenizer *t, const json_t *root,
             struct dtx_err *e); /* normalizer and pre_tokenizer */
void pre_release(struct dtx_tokenizer *t);
int64_t pre_cpu_ns(void); /* CPU time of this thread */
/* Normalize valid UTF-8 and cut it into the pieces that are merged apart; each goes to `each`. */
typedef int (*pre_each)(void *arg, const char *text, size_t n);
int pre_run(struct merger *m, const char *text, size_t n, bool first, pre_each each, void *arg,
            struct dtx_err *e);

/* ---- special tokens (tokenizer_special.c) ---- */
/* Added tokens, bos, eos and stops from the JSON files of the folder; sha is fed with those that decide on
 * ids. */
struct sha256;
int special_load(struct dtx_tokenizer *t, int fd, struct sha256 *sha, struct dtx_err *e);

#endif
