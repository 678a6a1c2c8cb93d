/* The loss of rows under one adapter: forward passes of at most CHUNK_TOKENS tokens (or one longer row), one
 * segment. */
#include "kernels/job.h"

static int check_row(const struct dtx_model_config *c, const struct dtx_rows *rows, uint32_t i,
                     struct dtx_err *e)
{
    uint64_t first = rows->start[i], end = rows->start[i + 1];
    if (end < first || end - first > (uint64_t)c->max_positions)
        return dtx_fail(e, -EINVAL, "row %u has %llu tokens, the model has %d positions", i + 1,
                        (unsigned long long)(end - first), c->max_positions);
    for (uint64_t k = first; k < end; k++)
        if (rows->ids[k] < 0 || rows->ids[k] >= c->vocab ||
            (rows->labels[k] != -100 && (rows->labels[k] < 0 || rows->labels[k] >= c->vocab)))
            return dtx_fail(e, -EINVAL, "row %u holds token %d, label %d; the model knows 0 to %d", i + 1,
                            rows->ids[k], rows->labels[k], c->vocab - 1);
    return 0;
}

/* rows [first, end) in one pass; adds to the base's first loss accumulator. */
static int eval_pass(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_rows *rows,
                     uint32_t first, uint32_t end, struct dtx_err *e)
{
    struct pack_room room = {.segs = 1};
    struct op_adapter op = a ? adapter_op(a) : (struct op_adapter){0};
    struct op_pack p;
    for (uint32_t i = first; i < end; i++) {
        room.rows += (int)row_trained(rows, i);
        room.labels += (int)row_labels(rows, i);
        room.seqs++;
    }
    room.rows = pack_padded(b, room.rows);
    int rc = pack_new(&p, b, room, false, e);
    if (rc < 0)
        return rc;
    pack_segment(&p, b, a ? &op : NULL, 0, 0);
    for (uint32_t i = first; i < end; i++) {
        uint32_t n = row_trained(rows, i);
        if (n)
            pack_sequence(&p, rows->ids + rows->start[i], rows->labels + rows->start[i], (int)n, 0);
    }
    rc = pack_ready(&p, b, e);
    if (rc == 0)
        rc = forward(b, &p, false, e);
    if (rc == 0)
        b->ops->head_loss(b->dev, &p, b->ws->xn, b->head, b->config.vocab, b->config.hidden, b->loss, NULL);
    pack_free(&p, b);
    return rc;
}

int dtx_eval_rows(struct dtx_base *b, const struct dtx_adapter *a, const struct dtx_rows *rows,
                  double *nll_sum, uint64_t *n_labels, struct dtx_err *e)
{
    int rc = base_need_step(b, 1, e);
    if (rc < 0)
        return rc;
    b->ops->zero(b->dev, b->loss, sizeof *b->loss);
    *nll_sum = 0;
    *n_labels = 0;
    uint32_t first = 0, used = 0;
    for (uint32_t i = 0; rc == 0 && i < rows->n; i++) {
        rc = check_row(&b->config, rows, i, e);
        if (rc < 0)
            break;
        uint32_t n = row_trained(rows, i);
        if (used && n && used + n > CHUNK_TOKENS) {
            rc = eval_pass(b, a, rows, first, i, e);
            first = i;
            used = 0;
        }
        used += n;
        *n_labels += row_labels(rows, i);
    }
    if (rc == 0 && used)
        rc = eval_pass(b, a, rows, first, rows->n, e);
    if (rc < 0)
        return rc;
    rc = b->ops->download(b->dev, nll_sum, b->loss, sizeof *nll_sum);
    return rc < 0 ? dtx_fail(e, rc, "device: %s", b->ops->error(b->dev)) : 0;
}
