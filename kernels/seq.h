/* A sequence being generated: what generate.c (prompts, first tokens) and decode.c (the other tokens) share.
 */
#ifndef DTX_SEQ_H
#define DTX_SEQ_H

#include "kernels/model.h"

struct dtx_seq {
    struct dtx_base *base;
    const struct dtx_adapter *adapter; /* NULL: the bare base */
    const struct dtx_tokenizer *tokenizer;
    struct dtx_sampling sampling;
    int32_t *ids; /* [cap] prompt, then new tokens */
    int n_prompt, n, cap;
    int n_cached; /* positions in the cache; the last token chosen is not there yet */
    void *kv;     /* device, act [layers][2][cap][kv_dim] */
    enum dtx_finish finish;
};

/* generate.c */
struct op_choice seq_choice(const struct dtx_seq *s); /* of its next token */
void seq_add_token(struct dtx_seq *s, int32_t id);

/* decode.c */
/* A token for each of n running sequences that have their prompts cached. */
int decode_step(struct dtx_base *b, struct dtx_seq *const *seqs, int n, struct dtx_err *e);
void decode_forget(struct dtx_base *b, const struct dtx_seq *s); /* it goes away */
void decode_free(struct dtx_base *b);

#endif
