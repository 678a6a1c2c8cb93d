/* Packs on the host: the tables of struct op_pack, filled in order. */
#include <stdlib.h>

#include "kernels/model.h"

int rows_padded(const struct dtx_ops *o, int rows)
{
    return (rows + o->row_align - 1) / o->row_align * o->row_align;
}

int pack_padded(const struct dtx_base *b, int rows)
{
    return rows_padded(b->ops, rows);
}

int pack_new(struct op_pack *p, const struct dtx_base *b, struct pack_room room, bool decode,
             struct dtx_err *e)
{
    size_t rows = (size_t)room.rows + 1, labels = (size_t)room.labels + 1;
    *p = (struct op_pack){.decode = decode, .dims = &b->dims};
    p->ids = malloc(rows * sizeof *p->ids);
    p->pos = malloc(rows * sizeof *p->pos);
    p->seq_of_row = malloc(rows * sizeof *p->seq_of_row);
    p->lab_row = malloc(labels * sizeof *p->lab_row);
    p->lab_id = malloc(labels * sizeof *p->lab_id);
    p->segs = malloc(((size_t)room.segs + 1) * sizeof *p->segs);
    p->seqs = malloc(((size_t)room.seqs + 1) * sizeof *p->seqs);
    p->adapters = malloc(((size_t)room.segs + 1) * sizeof *p->adapters);
    if (p->ids && p->pos && p->seq_of_row && p->lab_row && p->lab_id && p->segs && p->seqs && p->adapters)
        return 0;
    pack_free(p, (struct dtx_base *)b);
    return dtx_fail(e, -ENOMEM, "out of memory for a step of %d tokens", room.rows);
}

static void pad_segment(struct op_pack *p, const struct dtx_base *b)
{
    for (int end = p->decode ? p->rows : pack_padded(b, p->rows); p->rows < end; p->rows++) {
        p->ids[p->rows] = -1;
        p->pos[p->rows] = 0;
        p->seq_of_row[p->rows] = -1;
    }
}

void pack_segment(struct op_pack *p, const struct dtx_base *b, const struct op_adapter *a, int slot,
                  float loss_scale)
{
    pad_segment(p, b);
    struct op_seg s = {
        .row0 = p->rows, .adapter = -1, .slot = slot, .label0 = p->n_labels, .loss_scale = loss_scale};
    if (a) {
        s.adapter = p->n_adapters;
        p->adapters[p->n_adapters++] = *a;
        p->max_rank = a->rank > p->max_rank ? a->rank : p->max_rank;
    }
    p->segs[p->n_segs++] = s;
}

struct op_seq *pack_sequence(struct op_pack *p, const int32_t *ids, const int32_t *labels, int n, int pos0)
{
    struct op_seg *seg = &p->segs[p->n_segs - 1];
    struct op_seq *s = &p->seqs[p->n_seqs];
    *s = (struct op_seq){.row0 = p->rows, .rows = n, .seg = p->n_segs - 1, .pos0 = pos0, .token0 = pos0};
    for (int i = 0; i < n; i++) {
        int row = p->rows++;
        p->ids[row] = ids[i];
        p->pos[row] = pos0 + i;
        p->seq_of_row[row] = p->n_seqs;
        if (labels && labels[i + 1] != -100) {
            p->lab_row[p->n_labels] = row;
            p->lab_id[p->n_labels++] = labels[i + 1];
            seg->labels++;
        }
    }
    seg->rows += n;
    p->n_seqs++;
    return s;
}

int pack_failed(const struct dtx_base *b, int rc, struct dtx_err *e)
{
    return rc == -ENOMEM ? dtx_fail(e, rc, "no memory on the device for the tables of a step")
                         : dtx_fail(e, rc, "device: %s", b->ops->error(b->dev));
}

int pack_ready(struct op_pack *p, struct dtx_base *b, struct dtx_err *e)
{
    pad_segment(p, b);
    int last = 0;
    for (int i = 0; i < p->n_seqs; i++) {
        int end = p->seqs[i].pos0 + p->seqs[i].rows;
        last = end > last ? end : last;
    }
    int rc = base_need_positions(b, last, e);
    if (rc == 0 && (rc = b->ops->pack_prepare(b->dev, p)) < 0)
        rc = pack_failed(b, rc, e);
    return rc;
}

void pack_free(struct op_pack *p, struct dtx_base *b)
{
    if (p->dev)
        b->ops->pack_release(b->dev, p);
    free(p->ids);
    free(p->pos);
    free(p->seq_of_row);
    free(p->lab_row);
    free(p->lab_id);
    free(p->segs);
    free(p->seqs);
    free(p->adapters);
    *p = (struct op_pack){0};
}
