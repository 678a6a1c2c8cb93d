/* Streams of arbitrary bytes into proto_take, on either side, in two pieces. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "scheduler/proto.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int drain(struct buf *in, enum proto_side side)
{
    enum proto_type t;
    json_t *body;
    struct dtx_err e;
    int rc;

    while ((rc = proto_take(in, side, &t, &body, &e)) == 1) {
        struct buf again = BUF_INIT;
        enum proto_type t2;
        json_t *body2 = NULL;

        /* What was taken can be put and taken again as the same. */
        if (proto_put(&again, t, body, NULL) == 0 &&
            (proto_take(&again, side, &t2, &body2, NULL) != 1 || t2 != t || !json_equal(body, body2)))
            abort();
        json_decref(body);
        json_decref(body2);
        buf_release(&again);
    }
    return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum proto_side side = size && data[0] & 1 ? PROTO_WORKER : PROTO_DAEMON;
    struct buf in = BUF_INIT;

    buf_add(&in, data, size / 2);
    if (drain(&in, side) == 0) {
        buf_add(&in, data + size / 2, size - size / 2);
        drain(&in, side);
    }
    buf_release(&in);
    return 0;
}
