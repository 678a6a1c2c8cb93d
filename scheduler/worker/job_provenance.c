/* provenance.json: what made this adapter.  Written at the start and again, with the adapter's sum, at the
 * end. */
#include <stdio.h>
#include <string.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"
#include "scheduler/worker/job.h"

/* 0 when the adapter is not there yet. */
static int adapter_sum(struct worker *w, const struct job *j, json_t *sums, struct dtx_err *e)
{
    char path[PATH_MAX], hex[65];
    int rc = fd_join(path, j->spec.job_dir, "checkpoint/adapter_model.safetensors", e);

    if (rc == 0)
        rc = sha256_file(w->store, path, hex, e);
    if (rc == 0)
        json_object_set_new(sums, "adapter_model.safetensors", json_string(hex));
    return rc;
}

static json_t *versions(struct worker *w)
{
    struct dtx_device_info info;

    dtx_device_info(w->device, &info);
    return json_pack("{s:s,s:s,s:s,s:s}", "device", info.name, "fingerprint", info.fingerprint, "compiler",
                     __VERSION__, "jansson", jansson_version_str());
}

int job_provenance(struct worker *w, struct job *j, struct dtx_err *e)
{
    json_t *sums = json_object(), *v = json_object();
    char path[PATH_MAX], stamp[32];
    int rc = 0;

    json_object_set(sums, "base", j->prep.base_sums);
    json_object_set_new(sums, "dataset", json_string(j->spec.dataset_sha ? j->spec.dataset_sha : ""));
    json_object_set_new(sums, "tokenizer", json_string(dtx_tokenizer_sha256(j->base->tokenizer)));
    if (j->phase == JP_SCORE || j->phase == JP_SERVE)
        rc = adapter_sum(w, j, sums, e);
    json_object_set_new(v, "versions", versions(w));
    json_object_set_new(v, "started", json_string(clock_iso(j->started_ns, stamp, sizeof(stamp))));
    if (j->phase == JP_SCORE)
        json_object_set_new(v, "finished", json_string(clock_iso(clock_wall_ns(), stamp, sizeof(stamp))));
    json_object_set_new(v, "sha256", sums);
    json_object_set(v, "spec", j->spec.json);
    if (rc == 0)
        rc = fd_join(path, j->spec.job_dir, "provenance.json", e);
    if (rc == 0)
        rc = job_write_json(w, j, path, v, e);
    json_decref(v);
    return rc;
}
