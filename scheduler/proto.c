#include "scheduler/proto.h"

#include <string.h>

#include "scheduler/base/json.h"

static const uint32_t proto_magic = 0x4d585444; /* "DTXM" in memory on a little-endian machine */

/* Every message: its name and which side may receive it. */
static const struct message {
    const char *name;
    enum proto_side receiver;
} messages[PM_MAX] = {
    [PM_JOB_START] = {"job_start", PROTO_WORKER},   [PM_JOB_STOP] = {"job_stop", PROTO_WORKER},
    [PM_SCORE] = {"score", PROTO_WORKER},           [PM_ASK] = {"ask", PROTO_WORKER},
    [PM_ASK_CANCEL] = {"ask_cancel", PROTO_WORKER}, [PM_QUIT] = {"quit", PROTO_WORKER},
    [PM_HELLO] = {"hello", PROTO_DAEMON},           [PM_JOB_STATE] = {"job_state", PROTO_DAEMON},
    [PM_JOB_HELD] = {"job_held", PROTO_DAEMON},     [PM_PROGRESS] = {"progress", PROTO_DAEMON},
    [PM_SAVED] = {"saved", PROTO_DAEMON},           [PM_ANSWER] = {"answer", PROTO_DAEMON},
    [PM_DEVICE] = {"device", PROTO_DAEMON},         [PM_LOG] = {"log", PROTO_DAEMON},
};

const char *proto_type_name(enum proto_type t)
{
    if ((unsigned)t >= PM_MAX || !messages[t].name)
        return "unknown";
    return messages[t].name;
}

int proto_put(struct buf *out, enum proto_type type, const json_t *body, struct dtx_err *e)
{
    struct proto_header h = {proto_magic, PROTO_VERSION, (uint16_t)type, 0};
    size_t start = out->len, length;

    if ((unsigned)type >= PM_MAX || !messages[type].name)
        return dtx_fail(e, -EINVAL, "message type %d does not exist", (int)type);
    if (body && !json_is_object(body))
        return dtx_fail(e, -EINVAL, "the body of a %s message is not an object", proto_type_name(type));
    buf_add(out, &h, sizeof(h));
    if (body)
        json_dump_buf(body, out);
    else
        buf_adds(out, "{}");
    if (out->failed)
        return dtx_fail(e, -ENOMEM, "out of memory making a %s message", proto_type_name(type));
    length = out->len - start - sizeof(h);
    if (length > PROTO_MAX_MESSAGE) {
        out->len = start;
        out->p[start] = '\0';
        return dtx_fail(e, -EMSGSIZE, "a %s message of %zu bytes is over the limit of %d",
                        proto_type_name(type), length, (int)PROTO_MAX_MESSAGE);
    }
    h.length = (uint32_t)length;
    memcpy(out->p + start, &h, sizeof(h));
    return 0;
}

static int check_header(const struct proto_header *h, enum proto_side side, struct dtx_err *e)
{
    if (h->magic != proto_magic)
        return dtx_fail(e, -EPROTO, "broken stream: a message begins with %08x instead of %08x", h->magic,
                        proto_magic);
    if (h->version != PROTO_VERSION)
        return dtx_fail(e, -EPROTO,
                        "the other side speaks version %u of the protocol, this one version %d; dtxd and "
                        "dtx-worker must be of one build",
                        h->version, PROTO_VERSION);
    if (h->length > PROTO_MAX_MESSAGE)
        return dtx_fail(e, -EPROTO, "broken stream: a message of %u bytes (the limit is %d)", h->length,
                        (int)PROTO_MAX_MESSAGE);
    if (h->type >= PM_MAX || !messages[h->type].name)
        return dtx_fail(e, -EPROTO, "broken stream: unknown message type %u", h->type);
    if (messages[h->type].receiver != side)
        return dtx_fail(e, -EPROTO, "broken stream: a %s message came to the wrong side",
                        messages[h->type].name);
    return 0;
}

int proto_take(struct buf *in, enum proto_side side, enum proto_type *type, json_t **body, struct dtx_err *e)
{
    struct proto_header h;
    size_t whole;
    int rc;

    *body = NULL;
    if (in->len < sizeof(h))
        return 0;
    memcpy(&h, in->p, sizeof(h));
    rc = check_header(&h, side, e);
    if (rc)
        return rc;
    whole = sizeof(h) + h.length;
    if (in->len < whole)
        return 0;
    rc = json_parse_text(proto_type_name(h.type), in->p + sizeof(h), h.length, body, e);
    if (rc)
        return rc;
    if (!json_is_object(*body)) {
        json_decref(*body);
        *body = NULL;
        return dtx_fail(e, -EPROTO, "broken stream: the body of a %s message is not an object",
                        messages[h.type].name);
    }
    *type = (enum proto_type)h.type;
    memmove(in->p, in->p + whole, in->len - whole);
    in->len -= whole;
    in->p[in->len] = '\0';
    return 1;
}
