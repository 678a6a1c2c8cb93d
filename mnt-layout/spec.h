/*
 * Specs that users drop: schemas with every key, type, range and default in one table (spec_tables.c).
 * Validation, the schemas, templates and help are generated from it.
 */
#ifndef DTX_SPEC_H
#define DTX_SPEC_H

#include <jansson.h>
#include <stddef.h>
#include "scheduler/base/buf.h"
#include "scheduler/base/err.h"

enum spec_kind {
    SPEC_PARAMGROUP,
    SPEC_EVALUATION,
    SPEC_EXPERIMENT,
    SPEC_DATASET,
    SPEC_SERVICE,
    SPEC_COMPARE,
    SPEC_PLUGIN,
    SPEC_KINDS,               /* what is dropped into the mount */
    SPEC_CONFIG = SPEC_KINDS, /* the administrator's configuration file of dtxd */
    SPEC_TABLES
};

/* Parse and validate a spec's text.  On success *out is the normalized document: every key of the table
 * present with its default, DataTunerX's own paramgroup form translated ({"spec":{"parameters":{...}}},
 * numbers as strings, with DataTunerX's defaults).  On failure *e reads "name:line:column: key "lora_rr":
 * unknown; did you mean "lora_r"?" with what was found and what was expected.  The normalized forms:
 *   paramgroup  {"scheduler","optimizer","learning_rate","epochs","max_steps","batch_size","grad_acc_steps",
 *                "block_size","warmup_ratio","weight_decay","max_grad_norm","lora_r","lora_alpha","lora_dropout",
 *                "target_modules":[..],"use_rslora","quantization","seed","save_every","eval_every"}
 *               save_every/eval_every: integer steps, or "10%", or "epoch"; save_every default "10%"
 *   experiment
 * {"models":[..],"datasets":[..],"paramgroups":[..],"seeds":[..],"jobs":[{"name","model","dataset",
 *                "paramgroup","overrides":{}}],"evaluation":NAME or null,"priority":int,"early_stopping":{}
 * or null} either the lists or "jobs"; each list non-empty, no duplicates; overrides validated as paramgroup
 * keys evaluation  {"questions":[{"question","reference","system"}],"dataset":NAME or null,"split":"test",
 *                "plugin":NAME or null,"parameters":{},"metrics":{"rougeL":1.0,...},"max_new_tokens":128,
 *                "temperature":0,"seed":0,"limit":0}
 *   dataset
 * {"splits":{"train":..,"validation":..,"test":..},"features":{..},"template","plugin","metadata":{..}}
 *   service     {"model":NAME,...}   compare {"models":[..],"max_new_tokens",...} (front matter of a prompt)
 * plugin
 *   config      {"admins":[NAME or uid,..],"quotas":{"default" or NAME or "UID":bytes or
 * null},"store_max":bytes or null,"store_reserve":bytes,"log_max":bytes,"work_days":days or
 * null,"roots":[],"hosts":[]} */
int spec_parse(enum spec_kind kind, const char *file, const char *text, size_t n, json_t **out,
               struct dtx_err *e);

/* A prompt dropped into models/compare/ or a service's ask/: text, or a line "---", settings as in
 * templates/compare.json, a line "---", and the text.  *settings: normalized compare document (new
 * reference); *prompt points into text. */
int spec_parse_prompt(const char *file, const char *text, size_t n, json_t **settings, const char **prompt,
                      size_t *prompt_len, struct dtx_err *e);

/* Check one paramgroup override against the table (an experiment's "overrides" are merged with it). */
int spec_merge_overrides(json_t *paramgroup, const json_t *overrides, struct dtx_err *e);

/* The JSON Schema (draft 2020-12) of a kind, and a template to copy and edit. */
int spec_schema(enum spec_kind kind, struct buf *out);
int spec_template(enum spec_kind kind, struct buf *out);
/* The keys as paragraphs of a man page. */
int spec_man_keys(enum spec_kind kind, struct buf *out);
const char *
spec_kind_name(enum spec_kind kind); /* "paramgroup": schemas/paramgroup.json, templates/paramgroup.json */

#endif
