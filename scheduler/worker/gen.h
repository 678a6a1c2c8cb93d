/*
 * Sequences being generated: answers to prompts and to the questions of an evaluation.  All of one base
 * advance in one step of the engine, whatever their adapters.  A gen waits until there is memory for its
 * cache.
 */
#ifndef DTX_WORKER_GEN_H
#define DTX_WORKER_GEN_H

#include "scheduler/worker/bases.h"

enum { GEN_TOGETHER = 64 /* sequences in one step */, GEN_PREFILLS = 8 /* new ones in one step */ };

struct gen {
    struct gen *next;
    struct base_entry *base;       /* one user counted by the owner */
    struct adapter_entry *adapter; /* NULL: the bare base */
    struct dtx_ids prompt;
    struct dtx_sampling sampling;
    struct dtx_seq *seq; /* NULL: waiting */
    bool urgent;         /* somebody waits for it: before evaluations */
    bool over;           /* finished, failed or cancelled */
    uint64_t bytes;      /* that seq holds */
    size_t seen;         /* new tokens so far */
    int together;        /* the most sequences that were in a step with it */
    int64_t asked_ns, first_ns, end_ns;
    struct dtx_err error;
    void (*done)(struct worker *w, struct gen *g); /* called once; g is freed afterwards */
    void *owner;
};

/* Takes over prompt (ids moved). */
struct gen *gen_add(struct worker *w, struct base_entry *b, struct adapter_entry *a, struct dtx_ids *prompt,
                    const struct dtx_sampling *s, bool urgent);
void gen_cancel(struct gen *g); /* done is not called */
/* Steps for about `budget` seconds, one at least; false: there was nothing to do. */
bool gens_turn(struct worker *w, double budget);
bool gens_urgent(const struct worker *w);
int gens_running(const struct worker *w);
void gens_release(struct worker *w);
/* The answer's text, trimmed. */
void gen_text(const struct gen *g, struct buf *out);

/* ask.c */
void ask_message(struct worker *w, const json_t *body);
void ask_cancel(struct worker *w, long long id);
void asks_turn(struct worker *w); /* those that wait for a base */
int asks_count(const struct worker *w);
void asks_release(struct worker *w);

#endif
