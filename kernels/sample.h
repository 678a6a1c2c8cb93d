/* Choosing a token from logits on the host. */
#ifndef DTX_SAMPLE_H
#define DTX_SAMPLE_H

#include "kernels/dtx_engine.h"

struct sample_room { /* [vocab]; reused between calls, sample_room_free frees it */
    struct candidate {
        float logit;
        int32_t id;
    } * c;
    double *p;
    int vocab;
};

int sample_room_need(struct sample_room *r, int vocab); /* -ENOMEM */
void sample_room_free(struct sample_room *r);
/* The token by temperature (above 0), top_k, top_p; random number `number` of the seed.  logits that are NaN
 * are never chosen. */
int32_t sample_token(struct sample_room *r, const float *logits, int vocab, const struct dtx_sampling *s,
                     uint64_t number);

#endif
