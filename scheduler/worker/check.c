/* The checks that dtxd runs in a child process: a hostile file can at worst end the child. */
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/data/data.h"
#include "scheduler/worker/worker.h"

/* One JSON object on *out; the exit status. */
static int print_verdict(struct buf *out, int rc, json_t *report, const struct dtx_err *e)
{
    json_t *v;

    if (rc == 0)
        v = json_pack("{s:b,s:o}", "ok", 1, "report", report ? report : json_object());
    else
        v = json_pack("{s:b,s:o}", "ok", 0, "reason", json_text(e->msg, strlen(e->msg)));
    if (rc)
        json_decref(report);
    json_dump_buf(v, out);
    buf_addc(out, '\n');
    json_decref(v);
    return out->failed ? 1 : 0;
}

int check_failed(const struct dtx_err *e, struct buf *out)
{
    return print_verdict(out, e->code, NULL, e);
}

int check_dataset(int tree, const char *dataset, const char *model, struct buf *out)
{
    struct dtx_tokenizer *t = NULL;
    json_t *report = NULL;
    struct dtx_err e = {0};
    int rc;

    if (model) /* it only counts tokens: that it went away or was closed meanwhile is nothing the dataset can
                  help */
        (void)!dtx_tokenizer_load(tree, model, &t, NULL);
    rc = dataset_check(tree, dataset, t, &report, &e);
    if (rc == 0) /* what is READY is on the disk */
        rc = fd_sync_tree(tree, dataset, &e);
    dtx_tokenizer_free(t);
    return print_verdict(out, rc, report, &e);
}

static json_t *config_json(const struct dtx_model_config *c)
{
    json_t *v =
        json_pack("{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i}", "architecture", c->arch, "layers", c->layers,
                  "hidden", c->hidden, "ffn", c->ffn, "heads", c->heads, "kv_heads", c->kv_heads, "head_dim",
                  c->head_dim, "vocab", c->vocab, "max_positions", c->max_positions);

    json_object_set_new(v, "rope_theta", json_number((double)c->rope_theta));
    json_object_set_new(v, "tied_head", json_boolean(c->tied_head));
    json_object_set_new(v, "dtype", json_string(c->dtype));
    json_object_set_new(v, "params", json_integer((json_int_t)c->params));
    json_object_set_new(v, "bytes", json_integer((json_int_t)c->file_bytes));
    return v;
}

int check_model(int tree, const char *model, struct buf *out)
{
    struct dtx_model_config c;
    struct dtx_tokenizer *t = NULL;
    json_t *report = NULL;
    struct dtx_err e = {0};
    int rc = dtx_model_check(tree, model, &c, &e);

    if (rc == 0)
        rc = dtx_tokenizer_load(tree, model, &t, &e);
    if (rc == 0) {
        report = config_json(&c);
        json_object_set_new(report, "tokenizer_size", json_integer(dtx_tokenizer_size(t)));
        json_object_set_new(report, "tokenizer_sha256", json_string(dtx_tokenizer_sha256(t)));
        rc = fd_sync_tree(tree, model, &e);
    }
    dtx_tokenizer_free(t);
    return print_verdict(out, rc, report, &e);
}
