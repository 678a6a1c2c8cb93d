/*
 * The tree under the mount.  One row for each path pattern; see layout.h for the pattern language.
 *
 * Conventions that the tests hold this table to:
 *  - every LK_DIR and LK_DROP_DIR has a README.md; every collection (lists != OBJ_NONE) a LIST.tsv and
 *    NAME.status files;
 *  - every LK_DROP_DIR has a ** row, which takes what is no object: editors' and rsync's leftovers, notes;
 *  - modes of backed rows (LK_USER_*) are only what a caller gets by default; the store knows the true ones;
 *  - drop folders are sticky: everybody may add, only the owner may remove.
 */
#include "mnt-layout/layout.h"

/* clang-format off */
#define ROW(pat, kd, md, rd, wr, ob, lst, txt) {pat, kd, md, rd, wr, ob, lst, txt}
#define DIR(pat, md, rd, lst, txt) ROW(pat, LK_DIR, md, rd, LW_NONE, OBJ_NONE, lst, txt)
#define DROP(pat, rd, lst, txt)    ROW(pat, LK_DROP_DIR, 01777, rd, LW_NONE, OBJ_NONE, lst, txt)
#define TEXT(pat, rd, txt)         ROW(pat, LK_TEXT, 0444, rd, LW_NONE, OBJ_NONE, OBJ_NONE, txt)
/* 0666: the kernel knows no admins; who may is decided at the write (sched_write). */
#define CONTROL(pat, rd, wr, txt)  ROW(pat, LK_CONTROL, 0666, rd, wr, OBJ_NONE, OBJ_NONE, txt)
#define LINK(pat, rd, txt)         ROW(pat, LK_LINK, 0777, rd, LW_NONE, OBJ_NONE, OBJ_NONE, txt)
#define USER(pat, kd, ob, txt)     ROW(pat, kd, (kd) == LK_USER_DIR ? 0755 : 0644, LR_NONE, LW_NONE, ob, OBJ_NONE, txt)
#define STORE(pat, rd, txt)        ROW(pat, LK_STORE_FILE, 0444, rd, LW_NONE, OBJ_NONE, OBJ_NONE, txt)
#define STORE_DIR(pat, ob, txt)    ROW(pat, LK_STORE_DIR, 0755, LR_NONE, LW_NONE, ob, OBJ_NONE, txt)
#define STORE_ANY(pat, txt)        ROW(pat, LK_STORE_ANY, 0444, LR_NONE, LW_NONE, OBJ_NONE, OBJ_NONE, txt)
#define LEFTOVERS(dir)             USER(dir "/**", LK_USER_ANY, OBJ_NONE, "other files: kept, never taken for objects")
#define README(dir)                TEXT(dir "/README.md", LR_README, "this text")
#define LIST(dir, lst) \
    ROW(dir "/LIST.tsv", LK_TEXT, 0444, LR_LIST, LW_NONE, OBJ_NONE, lst, \
        "name, state, size, age and reason, one line each")
#define STATUS(dir, lst) \
    ROW(dir "/{name}.status", LK_TEXT, 0444, LR_OBJECT_STATUS, LW_NONE, OBJ_NONE, lst, \
        "first line the state, then what is known; reason: says what to do")

/* A collection whose objects are folders of their owner. */
#define COLLECTION(dir, ob, txt, each) \
    DROP(dir, LR_COLLECTION, ob, txt), README(dir), LIST(dir, ob), STATUS(dir, ob), \
    USER(dir "/{name}", LK_USER_DIR, ob, each), USER(dir "/{name}/**", LK_USER_ANY, OBJ_NONE, "its files"), \
    LEFTOVERS(dir)

/* A collection whose objects are specs. */
#define SPECS(dir, ob, txt, each) \
    DROP(dir, LR_COLLECTION, ob, txt), README(dir), LIST(dir, ob), STATUS(dir, ob), \
    USER(dir "/{name}.json", LK_USER_FILE, ob, each), LEFTOVERS(dir)

/* Tuned models filed by one property. */
#define CATEGORY(dir, txt, each) \
    DIR(dir, 0555, LR_CATEGORY, OBJ_NONE, txt), README(dir), \
    DIR(dir "/{value}", 0555, LR_CATEGORY_VALUE, OBJ_NONE, each), README(dir "/{value}"), \
    LINK(dir "/{value}/{name}", LR_CATEGORY_LINK, "link to the model in models/tuned/")

/* templates/KIND.json and schemas/KIND.json */
#define SPEC_TEXTS(name, what) \
    TEXT("templates/" name ".json", LR_TEMPLATE, what " with every key and its default: copy, edit, drop"), \
    TEXT("schemas/" name ".json", LR_SCHEMA, "JSON Schema of " what)
/* clang-format on */

const struct layout_entry layout_table[] = {
    DIR("", 0755, LR_NONE, OBJ_NONE, "the fine-tuning appliance"),
    TEXT("README.md", LR_README, "what to do first; every folder has one"),
    TEXT("status", LR_STATUS, "the whole appliance on one screen"),
    TEXT("status.json", LR_STATUS_JSON, "the same for programs: how many there are, and the newest of each"),
    TEXT("index.html", LR_CONSOLE, "the same as a page for a browser"),
    TEXT("metrics.prom", LR_METRICS, "the same as Prometheus metrics"),
    /* LK_STORE_FILE: it grows, so the scheduler appends to tree/log in the store. */
    STORE("log", LR_LOG, "what happened, one line each; tail -f"),

    DIR("bin", 0555, LR_NONE, OBJ_NONE, "programs that need nothing but this mount"),
    README("bin"),
    ROW("bin/dtx", LK_TEXT, 0555, LR_BIN_DTX, LW_NONE, OBJ_NONE, OBJ_NONE,
        "command line (POSIX sh): bin/dtx help"),

    DIR("templates", 0555, LR_NONE, OBJ_NONE, "specs to copy and edit"),
    README("templates"),
    DIR("schemas", 0555, LR_NONE, OBJ_NONE, "JSON Schema of each spec, for editors and programs"),
    README("schemas"),
    SPEC_TEXTS("paramgroup", "a parameter group"),
    SPEC_TEXTS("experiment", "an experiment"),
    SPEC_TEXTS("evaluation", "an evaluation"),
    SPEC_TEXTS("dataset", "dataset.json of a dataset"),
    SPEC_TEXTS("service", "a service"),
    SPEC_TEXTS("compare", "the settings of a compare prompt"),
    SPEC_TEXTS("plugin", "plugin.json of a plugin"),

    COLLECTION("datasets", OBJ_DATASET, "what to train on: one folder each",
               "a dataset: train.jsonl and what goes with it"),
    USER("datasets/{name}/dataset.json", LK_USER_FILE, OBJ_NONE,
         "optional: splits, columns, template, metadata"),

    SPECS("paramgroups", OBJ_PARAMGROUP, "how to train: LoRA and optimizer settings, one file each",
          "a parameter group"),
    SPECS("evaluations", OBJ_EVALUATION, "how to score: questions and metrics, one file each",
          "an evaluation"),

    DIR("plugins", 0555, LR_NONE, OBJ_NONE, "programs that make rows or scores"),
    README("plugins"),
    COLLECTION("plugins/data", OBJ_DATA_PLUGIN, "programs that make the rows of a dataset",
               "a plugin: plugin.json and its program"),
    USER("plugins/data/{name}/plugin.json", LK_USER_FILE, OBJ_NONE, "name, command, parameters"),
    COLLECTION("plugins/scoring", OBJ_SCORING_PLUGIN, "programs that score an answer",
               "a plugin: plugin.json and its program"),
    USER("plugins/scoring/{name}/plugin.json", LK_USER_FILE, OBJ_NONE, "name, command, parameters, metrics"),

    DIR("models", 0555, LR_NONE, OBJ_NONE, "base models, tuned models, and comparing them"),
    README("models"),
    COLLECTION("models/base", OBJ_BASE, "models to start from: one Hugging Face folder each",
               "a base model: config.json, *.safetensors, tokenizer.*"),

    DIR("models/tuned", 01777, LR_COLLECTION, OBJ_TUNED,
        "what experiments made: one PEFT adapter folder each"),
    README("models/tuned"),
    LIST("models/tuned", OBJ_TUNED),
    STATUS("models/tuned", OBJ_TUNED),
    STORE_DIR("models/tuned/{name}", OBJ_TUNED,
              "EXPERIMENT.JOB: adapter_model.safetensors, adapter_config.json, info.json; "
              "rm -r removes it"),
    STORE_ANY("models/tuned/{name}/**", "its files"),
    LINK("models/tuned/{exp}.best", LR_BEST_LINK,
         "link to the best model of an experiment, of those that are there"),

    CATEGORY("models/by-base", "tuned models by the base they were made from", "models of this base"),
    CATEGORY("models/by-dataset", "tuned models by the dataset they were trained on",
             "models of this dataset"),
    CATEGORY("models/by-experiment", "tuned models by experiment", "models of this experiment"),
    CATEGORY("models/by-task", "tuned models by their dataset's task", "models for this task"),
    CATEGORY("models/by-language", "tuned models by their dataset's languages", "models for this language"),
    CATEGORY("models/by-tag", "tuned models by their dataset's tags", "models with this tag"),

    DROP("models/compare", LR_COLLECTION, OBJ_COMPARE,
         "drop PROMPT.txt: every model answers it, side by side"),
    README("models/compare"),
    LIST("models/compare", OBJ_COMPARE),
    STATUS("models/compare", OBJ_COMPARE),
    USER("models/compare/{name}.txt", LK_USER_FILE, OBJ_COMPARE, "a prompt"),
    STORE_DIR("models/compare/{name}", OBJ_NONE, "its answers; rm -r removes them and stops what still runs"),
    STORE("models/compare/{name}/answers.md", LR_NONE, "all answers side by side, with their speed"),
    STORE("models/compare/{name}/answers.json", LR_NONE, "the same for programs"),
    STORE("models/compare/{name}/stats.tsv", LR_NONE,
          "tokens, tokens per second, time to first token, one line a model"),
    STORE_ANY("models/compare/{name}/**", "MODEL.txt, one a model (MODEL.partial while it is written)"),
    LEFTOVERS("models/compare"),

    DROP("services", LR_SERVICES, OBJ_SERVICE, "models that stay loaded and answer"),
    README("services"),
    LIST("services", OBJ_SERVICE),
    STATUS("services", OBJ_SERVICE),
    USER("services/{name}.json", LK_USER_FILE, OBJ_SERVICE,
         "a service as a spec; or mkdir and a link `model`"),
    USER("services/{name}", LK_USER_DIR, OBJ_SERVICE, "a service; rmdir ends it"),
    TEXT("services/{name}/README.md", LR_README, "this text"),
    USER("services/{name}/model", LK_USER_FILE, OBJ_NONE,
         "link to the model: ln -s ../../models/tuned/EXP.best model"),
    TEXT("services/{name}/stats", LR_SERVICE_STATS, "requests, tokens per second, waiting, memory"),
    TEXT("services/{name}/endpoint", LR_SERVICE_ENDPOINT, "where programs reach it"),
    CONTROL("services/{name}/control", LR_SERVICE_CONTROL, LW_SERVICE_CONTROL, "write a word: stop, start"),
    DROP("services/{name}/ask", LR_COLLECTION, OBJ_ASK, "drop PROMPT.txt, read PROMPT.md"),
    README("services/{name}/ask"),
    LIST("services/{name}/ask", OBJ_ASK),
    STATUS("services/{name}/ask", OBJ_ASK),
    USER("services/{name}/ask/{name}.txt", LK_USER_FILE, OBJ_ASK, "a prompt"),
    STORE("services/{name}/ask/{name}.md", LR_NONE, "its answer"),
    STORE("services/{name}/ask/{name}.partial", LR_NONE, "its answer so far, while it is written"),
    LEFTOVERS("services/{name}/ask"),
    USER("services/{name}/**", LK_USER_ANY, OBJ_NONE, "other files: kept as they are"),
    LEFTOVERS("services"),

    DROP("experiments", LR_EXPERIMENTS, OBJ_EXPERIMENT, "drop NAME.json: it starts; watch NAME/"),
    README("experiments"),
    LIST("experiments", OBJ_EXPERIMENT),
    STATUS("experiments", OBJ_EXPERIMENT),
    USER("experiments/{name}.json", LK_USER_FILE, OBJ_EXPERIMENT,
         "the spec: dropping it starts the experiment"),
    LEFTOVERS("experiments"),
    {"experiments/{exp}", LK_DIR, 0755, LR_NONE, LW_NONE, OBJ_EXPERIMENT, OBJ_NONE,
     "a running or finished experiment; rm -r cancels and deletes it"},
    README("experiments/{exp}"),
    TEXT("experiments/{exp}/status", LR_EXP_STATUS, "state, jobs and their states, best so far"),
    TEXT("experiments/{exp}/status.json", LR_EXP_STATUS_JSON, "the same for programs"),
    TEXT("experiments/{exp}/progress", LR_EXP_PROGRESS, "steps, loss, speed and time left, one line a job"),
    STORE("experiments/{exp}/log", LR_NONE, "what happened, one line each; tail -f"),
    TEXT("experiments/{exp}/leaderboard.tsv", LR_EXP_LEADERBOARD,
         "jobs by score, the untuned base among them"),
    TEXT("experiments/{exp}/best", LR_EXP_BEST, "name and score of the best job, and where its model is"),
    TEXT("experiments/{exp}/report.html", LR_EXP_REPORT,
         "table, loss curves and answers as one page for a browser"),
    TEXT("experiments/{exp}/spec.json", LR_EXP_SPEC,
         "what was started, with every default and parameter group filled in"),
    CONTROL("experiments/{exp}/control", LR_EXP_CONTROL, LW_EXP_CONTROL,
            "write a word: pause, resume, cancel, stop, retry"),
    DIR("experiments/{exp}/jobs", 0755, LR_JOBS, OBJ_JOB, "one folder for each combination that is trained"),
    README("experiments/{exp}/jobs"),
    LIST("experiments/{exp}/jobs", OBJ_JOB),
    STATUS("experiments/{exp}/jobs", OBJ_JOB),
    {"experiments/{exp}/jobs/{job}", LK_DIR, 0755, LR_NONE, LW_NONE, OBJ_JOB, OBJ_NONE,
     "a job; rm -r cancels it"},
    README("experiments/{exp}/jobs/{job}"),
    TEXT("experiments/{exp}/jobs/{job}/status", LR_JOB_STATUS, "state, model, dataset, parameters, score"),
    TEXT("experiments/{exp}/jobs/{job}/status.json", LR_JOB_STATUS_JSON, "the same for programs"),
    TEXT("experiments/{exp}/jobs/{job}/progress", LR_JOB_PROGRESS, "step, loss, speed and time left"),
    STORE("experiments/{exp}/jobs/{job}/log", LR_NONE, "what happened, one line each; tail -f"),
    STORE("experiments/{exp}/jobs/{job}/metrics.csv", LR_NONE,
          "one line a step: loss, eval_loss, lr, grad_norm, speed"),
    TEXT("experiments/{exp}/jobs/{job}/loss.svg", LR_JOB_SVG, "loss curve as a picture"),
    STORE("experiments/{exp}/jobs/{job}/score.json", LR_NONE, "every question, answer and metric"),
    STORE("experiments/{exp}/jobs/{job}/provenance.json", LR_NONE,
          "what made this model: inputs' hashes, seeds, versions"),
    STORE_DIR("experiments/{exp}/jobs/{job}/checkpoint", OBJ_NONE, "the adapter as PEFT loads it"),
    STORE_ANY("experiments/{exp}/jobs/{job}/checkpoint/**", "adapter_model.safetensors, adapter_config.json"),
    CONTROL("experiments/{exp}/jobs/{job}/control", LR_JOB_CONTROL, LW_JOB_CONTROL,
            "write a word: pause, resume, cancel, stop, retry"),

    DIR("devices", 0555, LR_DEVICES, OBJ_NONE, "the GPUs (or CPUs) that train and answer"),
    README("devices"),
    DIR("devices/{name}", 0555, LR_NONE, OBJ_NONE, "one device"),
    README("devices/{name}"),
    TEXT("devices/{name}/status", LR_DEVICE_STATUS, "what runs there, memory, speed"),
};

const size_t layout_count = sizeof(layout_table) / sizeof(layout_table[0]);

static const struct {
    const char *name, *collection;
} kinds[OBJ_KINDS] = {
    [OBJ_NONE] = {"none", ""},
    [OBJ_DATASET] = {"dataset", "datasets"},
    [OBJ_PARAMGROUP] = {"paramgroup", "paramgroups"},
    [OBJ_EVALUATION] = {"evaluation", "evaluations"},
    [OBJ_DATA_PLUGIN] = {"data plugin", "plugins/data"},
    [OBJ_SCORING_PLUGIN] = {"scoring plugin", "plugins/scoring"},
    [OBJ_BASE] = {"base model", "models/base"},
    [OBJ_TUNED] = {"tuned model", "models/tuned"},
    [OBJ_SERVICE] = {"service", "services"},
    [OBJ_EXPERIMENT] = {"experiment", "experiments"},
    [OBJ_JOB] = {"job", "experiments/{exp}/jobs"},
    [OBJ_COMPARE] = {"compare prompt", "models/compare"},
    [OBJ_ASK] = {"service prompt", "services/{name}/ask"},
};

const char *object_kind_name(enum object_kind k)
{
    return (unsigned)k < OBJ_KINDS ? kinds[k].name : "?";
}

const char *object_kind_collection(enum object_kind k)
{
    return (unsigned)k < OBJ_KINDS ? kinds[k].collection : "";
}
