/* Every key of every spec. */
#include "mnt-layout/spec_keys.h"

#include <stddef.h>

/* clang-format off */
#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define END {.name = NULL}

#define SEED_MAX 9007199254740991.0 /* 2^53 - 1: exact in every JSON reader */

static const struct spec_key target_module[] = {
    {.name = "target_module",
     .type = ST_WORD,
     .words = WORDS("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")},
    END};

static const struct spec_key paramgroup_keys[] = {
    {.name = "scheduler", .type = ST_WORD, .words = WORDS("cosine", "linear", "constant"), .value = "\"cosine\"",
     .help = "how the learning rate moves after warm-up"},
    {.name = "optimizer", .type = ST_WORD, .words = WORDS("adamw", "adam", "sgd"), .value = "\"adamw\"",
     .help = "adamw decays weights by themselves, adam through the gradient"},
    {.name = "learning_rate", .type = ST_NUMBER, .flags = SK_ABOVE, .min = 0, .max = 10, .value = "2e-4",
     .help = "highest learning rate"},
    {.name = "epochs", .type = ST_NUMBER, .flags = SK_ABOVE, .min = 0, .max = 10000, .value = "3",
     .help = "times through the training rows; may be fractional"},
    {.name = "max_steps", .type = ST_INT, .min = 0, .max = 1e9, .value = "0",
     .help = "optimizer steps; 0: as many as epochs says, else epochs is not used"},
    {.name = "batch_size", .type = ST_INT, .min = 1, .max = 65536, .value = "8", .help = "rows in a micro-batch"},
    {.name = "grad_acc_steps", .type = ST_INT, .min = 1, .max = 65536, .value = "1",
     .help = "micro-batches in an optimizer step"},
    {.name = "block_size", .type = ST_INT, .min = 8, .max = 1048576, .value = "1024",
     .help = "tokens a row may have; longer rows are cut and counted"},
    {.name = "warmup_ratio", .type = ST_NUMBER, .min = 0, .max = 1, .value = "0.03",
     .help = "part of the steps in which the learning rate rises from 0; not used by constant"},
    {.name = "weight_decay", .type = ST_NUMBER, .min = 0, .max = 10, .value = "0", .help = "weight decay of the adapter"},
    {.name = "max_grad_norm", .type = ST_NUMBER, .min = 0, .max = 1e6, .value = "1.0",
     .help = "gradients with a larger norm are scaled down to it; 0: never"},
    {.name = "lora_r", .type = ST_INT, .min = 1, .max = 1024, .value = "16", .help = "rank of the adapter"},
    {.name = "lora_alpha", .type = ST_NUMBER, .flags = SK_ABOVE, .min = 0, .max = 65536, .value = "32",
     .help = "the adapter counts lora_alpha / lora_r"},
    {.name = "lora_dropout", .type = ST_NUMBER, .flags = SK_BELOW, .min = 0, .max = 1, .value = "0",
     .help = "part of the adapter's inputs that is left out in training"},
    {.name = "target_modules", .type = ST_LIST, .flags = SK_UNIQUE, .min = 1, .max = 7, .sub = target_module,
     .value = "[\"q_proj\", \"k_proj\", \"v_proj\", \"o_proj\", \"gate_proj\", \"up_proj\", \"down_proj\"]",
     .help = "matrices that get an adapter"},
    {.name = "use_rslora", .type = ST_BOOL, .value = "false",
     .help = "rank-stabilized LoRA: the adapter counts lora_alpha / sqrt(lora_r)"},
    {.name = "quantization", .type = ST_WORD, .words = WORDS("none"), .not_yet = WORDS("int8", "int4", "fp8"),
     .value = "\"none\"", .help = "of the base model"},
    {.name = "seed", .type = ST_INT, .min = 0, .max = SEED_MAX, .value = "42",
     .help = "of the adapter's start, the order of rows, and dropout"},
    {.name = "save_every", .type = ST_INTERVAL, .min = 0, .max = 1e9, .value = "\"10%\"",
     .help = "how often training is saved, beside every 5 minutes; 0: only that"},
    {.name = "eval_every", .type = ST_INTERVAL, .min = 0, .max = 1e9, .value = "\"epoch\"",
     .help = "how often eval_loss is measured; 0: only at the end"},
    END};

static const struct spec_key model_item[] = {{.name = "model", .type = ST_MODEL}, END};
static const struct spec_key name_item[] = {{.name = "name", .type = ST_NAME}, END};
static const struct spec_key seed_item[] = {{.name = "seed", .type = ST_INT, .min = 0, .max = SEED_MAX}, END};

static const struct spec_key early_stopping_keys[] = {
    {.name = "patience", .type = ST_INT, .min = 1, .max = 10000, .value = "3",
     .help = "evaluations in a row without a better eval_loss that end a job"},
    {.name = "min_delta", .type = ST_NUMBER, .min = 0, .max = 1000, .value = "0",
     .help = "how much lower eval_loss must be to count as better"},
    END};

static const struct spec_key job_keys[] = {
    {.name = "name", .type = ST_NAME, .flags = SK_NULL, .help = "of the job; null: made from what varies"},
    {.name = "model", .type = ST_MODEL, .flags = SK_REQUIRED, .example = "\"my-model\"",
     .help = "name in models/base/, or \"tuned/EXPERIMENT.best\""},
    {.name = "dataset", .type = ST_NAME, .flags = SK_REQUIRED, .example = "\"my-data\"", .help = "name in datasets/"},
    {.name = "paramgroup", .type = ST_NAME, .flags = SK_REQUIRED, .example = "\"lora-r16\"",
     .help = "name in paramgroups/, without .json"},
    {.name = "overrides", .type = ST_OBJECT, .flags = SK_PARTIAL, .sub = paramgroup_keys, .value = "{}",
     .help = "keys of the parameter group that are different for this job"},
    END};
static const struct spec_key job_item[] = {{.name = "job", .type = ST_OBJECT, .sub = job_keys}, END};

enum { MAX_LIST = 1024 };

static const struct spec_key experiment_keys[] = {
    {.name = "models", .type = ST_LIST, .flags = SK_UNIQUE, .min = 1, .max = MAX_LIST, .sub = model_item, .value = "[]",
     .example = "[\"my-model\"]", .help = "names in models/base/, or \"tuned/EXPERIMENT.best\" to go on from a tuned one"},
    {.name = "datasets", .type = ST_LIST, .flags = SK_UNIQUE, .min = 1, .max = MAX_LIST, .sub = name_item, .value = "[]",
     .example = "[\"my-data\"]", .help = "names in datasets/"},
    {.name = "paramgroups", .type = ST_LIST, .flags = SK_UNIQUE, .min = 1, .max = MAX_LIST, .sub = name_item,
     .value = "[]", .example = "[\"lora-r8\", \"lora-r16\"]",
     .help = "names in paramgroups/, without .json; every combination of the lists is a job"},
    {.name = "seeds", .type = ST_LIST, .flags = SK_UNIQUE | SK_NO_TEMPLATE, .min = 1, .max = MAX_LIST, .sub = seed_item,
     .value = "[]", .example = "[1, 2, 3]", .help = "each combination once with each seed; not given: the parameter group's"},
    {.name = "jobs", .type = ST_LIST, .flags = SK_NO_TEMPLATE, .min = 1, .max = MAX_LIST, .sub = job_item, .value = "[]",
     .example = "[{\"model\": \"my-model\", \"dataset\": \"my-data\", \"paramgroup\": \"lora-r16\", "
                "\"overrides\": {\"learning_rate\": 1e-3}}]",
     .help = "in place of the lists: each job by itself"},
    {.name = "evaluation", .type = ST_NAME, .flags = SK_NULL, .example = "\"my-eval\"",
     .help = "name in evaluations/, without .json; null: the lowest eval_loss is best"},
    {.name = "priority", .type = ST_INT, .min = -100, .max = 100, .value = "0",
     .help = "higher ones run first"},
    {.name = "early_stopping", .type = ST_OBJECT, .flags = SK_NULL, .sub = early_stopping_keys, .value = "null",
     .help = "end a job when eval_loss no longer falls: {\"patience\": 3, \"min_delta\": 0}; null: never"},
    END};

static const struct spec_key question_keys[] = {
    {.name = "question", .type = ST_STRING, .flags = SK_REQUIRED, .min = 1, .max = 1048576,
     .example = "\"What is the capital of France?\"", .help = "what the model is asked"},
    {.name = "reference", .type = ST_STRING, .flags = SK_REQUIRED, .min = 1, .max = 1048576, .example = "\"Paris\"",
     .help = "the answer that is right"},
    {.name = "system", .type = ST_STRING, .flags = SK_NULL, .min = 0, .max = 1048576, .help = "system prompt"},
    END};
static const struct spec_key question_item[] = {{.name = "question", .type = ST_OBJECT, .sub = question_keys}, END};
static const struct spec_key weight_item[] = {{.name = "weight", .type = ST_NUMBER, .min = 0, .max = 1000}, END};

#define MAX_NEW_TOKENS(n)                                                                                             \
    {.name = "max_new_tokens", .type = ST_INT, .min = 1, .max = 65536, .value = n, .help = "longest answer, in tokens"}
#define TEMPERATURE                                                                                                   \
    {.name = "temperature", .type = ST_NUMBER, .min = 0, .max = 10, .value = "0", .help = "0: the likeliest token always"}
#define SEED                                                                                                          \
    {.name = "seed", .type = ST_INT, .min = 0, .max = SEED_MAX, .value = "0", .help = "of the answers' randomness"}
#define SAMPLING                                                                                                      \
    TEMPERATURE,                                                                                                      \
        {.name = "top_p", .type = ST_NUMBER, .flags = SK_ABOVE, .min = 0, .max = 1, .value = "1",                     \
         .help = "draw from the likeliest tokens that together have this probability; 1: from all"},                  \
        {.name = "top_k", .type = ST_INT, .min = 0, .max = 1000000, .value = "0",                                     \
         .help = "draw from this many likeliest tokens; 0: from all"},                                                \
        SEED
#define SYSTEM                                                                                                        \
    {.name = "system", .type = ST_STRING, .flags = SK_NULL, .min = 0, .max = 1048576, .help = "system prompt"}

/* score_metric_names of scheduler/score less perplexity, which breaks ties and is no part of the score: a test compares
 * the two lists. */
static const struct spec_key evaluation_keys[] = {
    {.name = "questions", .type = ST_LIST, .min = 1, .max = 10000, .sub = question_item, .value = "[]",
     .example = "[{\"question\": \"What is the capital of France?\", \"reference\": \"Paris\"}]",
     .help = "questions with reference answers"},
    {.name = "dataset", .type = ST_NAME, .flags = SK_NULL, .help = "or rows of a dataset in datasets/ as questions"},
    {.name = "split", .type = ST_WORD, .words = WORDS("train", "validation", "test"), .value = "\"test\"",
     .help = "which of its rows"},
    {.name = "plugin", .type = ST_NAME, .flags = SK_NULL,
     .help = "a plugin in plugins/scoring/ that scores the answers; null: the metrics below"},
    {.name = "parameters", .type = ST_FREE, .value = "{}", .help = "for the plugin"},
    {.name = "metrics", .type = ST_MAP, .max = 32, .sub = weight_item,
     .words = WORDS("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "exact_match", "accuracy", "precision", "recall",
                    "f1"),
     .value = "{\"rougeL\": 1.0}", .help = "metric: its weight in the score (0 to 100); a plugin's own names, if there is one"},
    MAX_NEW_TOKENS("128"),
    TEMPERATURE,
    SEED,
    {.name = "limit", .type = ST_INT, .min = 0, .max = 1e9, .value = "0", .help = "ask only so many questions; 0: all"},
    END};

#define SPLIT(n, txt)                                                                                                 \
    {.name = n, .type = ST_STRING, .flags = SK_NULL, .min = 1, .max = 4096, .help = txt}
static const struct spec_key splits_keys[] = {
    SPLIT("train", "file in this folder, or an s3://, http:// or https:// address that the administrator allows; null: train.*"),
    SPLIT("validation", "the same for eval_loss; null: validation.* or val.*, if there is one"),
    SPLIT("test", "the same for scoring; null: test.*, if there is one"), END};

#define COLUMN(n, txt)                                                                                                \
    {.name = n, .type = ST_STRING, .flags = SK_NULL, .min = 1, .max = 256, .help = txt}
static const struct spec_key features_keys[] = {
    COLUMN("instruction", "column with the question or instruction; null: found by the usual names"),
    COLUMN("input", "column that is put below the instruction"), COLUMN("response", "column with the answer"),
    COLUMN("system", "column with the system prompt"), COLUMN("history", "column with earlier questions and answers"),
    END};

static const struct spec_key short_text_item[] = {{.name = "word", .type = ST_STRING, .min = 1, .max = 63}, END};
#define SHORT_TEXT(n, txt) {.name = n, .type = ST_STRING, .flags = SK_NULL, .min = 1, .max = 63, .help = txt}
static const struct spec_key metadata_keys[] = {
    {.name = "languages", .type = ST_LIST, .flags = SK_UNIQUE, .min = 0, .max = 64, .sub = short_text_item, .value = "[]",
     .example = "[\"en\"]", .help = "models/by-language/ files tuned models by them"},
    {.name = "tags", .type = ST_LIST, .flags = SK_UNIQUE, .min = 0, .max = 64, .sub = short_text_item, .value = "[]",
     .help = "models/by-tag/"},
    SHORT_TEXT("license", "for people"), SHORT_TEXT("task", "models/by-task/"), SHORT_TEXT("subtask", "for people"),
    SHORT_TEXT("size", "for people"), END};

static const struct spec_key dataset_keys[] = {
    {.name = "splits", .type = ST_OBJECT, .sub = splits_keys, .value = "{}",
     .example = "{\"train\": null, \"validation\": null, \"test\": null}",
     .help = "which file is what: train, validation, test; null: found by name"},
    {.name = "features", .type = ST_OBJECT, .sub = features_keys, .value = "{}",
     .example = "{\"instruction\": null, \"input\": null, \"response\": null, \"system\": null, \"history\": null}",
     .help = "which column is what; null: found by the usual names"},
    {.name = "template", .type = ST_WORD, .flags = SK_NULL, .words = WORDS("llama2", "llama3", "plain"),
     .help = "how question and answer become one text; null: as the model wants it"},
    {.name = "plugin", .type = ST_NAME, .flags = SK_NULL, .help = "a plugin in plugins/data/ that makes the rows"},
    {.name = "parameters", .type = ST_FREE, .value = "{}", .help = "for the plugin"},
    {.name = "metadata", .type = ST_OBJECT, .sub = metadata_keys, .value = "{}",
     .example = "{\"languages\": [\"en\"], \"tags\": [], \"license\": null, \"task\": null, \"subtask\": null, \"size\": null}",
     .help = "what it is; tuned models are filed by it"},
    END};

static const struct spec_key service_keys[] = {
    {.name = "model", .type = ST_MODEL, .flags = SK_REQUIRED, .example = "\"tuned/my-experiment.best\"",
     .help = "name in models/base/, or \"tuned/NAME\""},
    SYSTEM, MAX_NEW_TOKENS("256"), SAMPLING, END};

static const struct spec_key compare_keys[] = {
    {.name = "models", .type = ST_LIST, .flags = SK_UNIQUE, .min = 0, .max = 256, .sub = model_item, .value = "[]",
     .help = "names in models/base/ or \"tuned/NAME\"; none: the running services, else all bases and every best one"},
    SYSTEM, MAX_NEW_TOKENS("256"), SAMPLING, END};

static const struct spec_key argument_item[] = {{.name = "argument", .type = ST_STRING, .min = 1, .max = 4096}, END};
static const struct spec_key plugin_keys[] = {
    {.name = "name", .type = ST_NAME, .flags = SK_NULL, .help = "the folder's, if given"},
    {.name = "kind", .type = ST_WORD, .flags = SK_REQUIRED, .words = WORDS("data", "scoring"), .example = "\"scoring\"",
     .help = "data: makes rows; scoring: scores answers"},
    {.name = "version", .type = ST_STRING, .min = 1, .max = 63, .value = "\"1\"", .help = "for people and provenance"},
    {.name = "command", .type = ST_LIST, .flags = SK_REQUIRED, .min = 1, .max = 64, .sub = argument_item,
     .example = "[\"./score.py\"]", .help = "program and arguments, run in the plugin's folder"},
    {.name = "parameters", .type = ST_FREE, .value = "{}", .help = "JSON Schema of its parameters"},
    {.name = "metrics", .type = ST_LIST, .flags = SK_UNIQUE, .min = 0, .max = 32, .sub = name_item, .value = "[]",
     .help = "metrics that a scoring plugin gives"},
    {.name = "timeout_s", .type = ST_INT, .min = 1, .max = 86400, .value = "600", .help = "longest run, in seconds"},
    {.name = "memory_mb", .type = ST_INT, .min = 16, .max = 1048576, .value = "1024", .help = "most memory, in MiB"},
    END};

/* ---- the administrator's configuration ---- */

#define SIZE_MAX_BYTES 9.0e18
static const struct spec_key user_item[] = {{.name = "user", .type = ST_USER, .min = 0, .max = 4294967294.0}, END};
static const struct spec_key quota_item[] = {
    {.name = "quota", .type = ST_SIZE, .flags = SK_NULL, .min = 0, .max = SIZE_MAX_BYTES}, END};
static const struct spec_key not_yet_item[] = {{.name = "item", .type = ST_STRING, .min = 1, .max = 4096}, END};

static const struct spec_key config_keys[] = {
    {.name = "admins", .type = ST_LIST, .flags = SK_UNIQUE, .min = 0, .max = 64, .sub = user_item, .value = "[]",
     .example = "[\"alice\", 1001]", .help = "users who may change and cancel what belongs to others"},
    {.name = "nfs_admins", .type = ST_BOOL, .value = "false",
     .help = "whether root and admins may do that over NFS too, where a client can claim to be anybody: only for exports to "
             "machines that you alone administer, or with sec=krb5"},
    {.name = "quotas", .type = ST_MAP, .max = 256, .sub = quota_item, .value = "{}",
     .example = "{\"default\": \"50 GiB\", \"alice\": \"500 GiB\", \"1002\": null}",
     .help = "how much a user's files may take, by name or number; \"default\": everybody else but root; null: as much "
             "as there is"},
    {.name = "store_max", .type = ST_SIZE, .flags = SK_NULL, .min = 0, .max = SIZE_MAX_BYTES,
     .help = "how much everything in the store may take together; null: what the disk has"},
    {.name = "store_reserve", .type = ST_SIZE, .min = 0, .max = SIZE_MAX_BYTES, .value = "0",
     .help = "how much of the store's disk copies through the mount leave free, for checkpoints and the catalog"},
    {.name = "log_max", .type = ST_SIZE, .min = 4096, .max = SIZE_MAX_BYTES, .value = "\"64 MiB\"",
     .help = "how long the log of the mount, of an experiment or of a job may grow; its older half then goes"},
    {.name = "work_days", .type = ST_NUMBER, .flags = SK_NULL | SK_ABOVE, .min = 0, .max = 36500,
     .help = "days after which the training state of a job that ended goes (a retry then begins anew); null: never"},
    {.name = "memory", .type = ST_SIZES, .flags = SK_NULL, .min = 1, .max = 1e18, .example = "{\"gpu0\": \"60 GiB\"}",
     .help = "what DTX may use of each device's memory, or of devices by their name in devices/; null: all but a twentieth, "
             "less what other programs use; the workers of cpu:N share the machine's.  It holds for workers that start "
             "afterwards.  What does not fit waits; what can never fit is refused"},
    {.name = "worker_timeout", .type = ST_INT, .min = 0, .max = 86400, .value = "600",
     .help = "seconds, at least 5, after which a worker that says nothing is taken to hang, and is killed; its jobs go on "
             "from their last save.  A worker speaks once a second, but not within a training step or while it loads a "
             "model; 0: never"},
    {.name = "roots", .type = ST_LIST, .min = 0, .max = 0, .sub = not_yet_item, .value = "[]",
     .help = "reserved: folders outside of the store that datasets may name"},
    {.name = "hosts", .type = ST_LIST, .min = 0, .max = 0, .sub = not_yet_item, .value = "[]",
     .help = "reserved: what datasets may be fetched from"},
    END};

const struct spec_table spec_tables[SPEC_TABLES] = {
    [SPEC_PARAMGROUP] = {.name = "paramgroup", .title = "how to train", .schema_path = "../schemas/paramgroup.json",
                         .keys = paramgroup_keys},
    [SPEC_EVALUATION] = {.name = "evaluation", .title = "how to score", .schema_path = "../schemas/evaluation.json",
                         .keys = evaluation_keys, .alternatives = {{"questions"}, {"dataset"}}},
    [SPEC_EXPERIMENT] = {.name = "experiment", .title = "what to train", .schema_path = "../schemas/experiment.json",
                         .keys = experiment_keys,
                         .alternatives = {{"models", "datasets", "paramgroups"}, {"jobs"}}, .either_or = true},
    [SPEC_DATASET] = {.name = "dataset", .title = "what the files of a dataset are",
                      .schema_path = "../../schemas/dataset.json", .keys = dataset_keys},
    [SPEC_SERVICE] = {.name = "service", .title = "a model that answers", .schema_path = "../schemas/service.json",
                      .keys = service_keys},
    [SPEC_COMPARE] = {.name = "compare", .title = "who answers a prompt, and how",
                      .schema_path = "../../schemas/compare.json", .keys = compare_keys},
    [SPEC_PLUGIN] = {.name = "plugin", .title = "a program that makes rows or scores",
                     .schema_path = "../../../schemas/plugin.json", .keys = plugin_keys},
    [SPEC_CONFIG] = {.name = "dtxd.conf", .title = "the administrator's configuration", .schema_path = "",
                     .keys = config_keys},
};

const char *spec_kind_name(enum spec_kind kind)
{
    return (unsigned)kind < SPEC_TABLES ? spec_tables[kind].name : "?";
}
