/* Specs: what is accepted, how it is normalized, and the words with which the rest is refused. */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "scheduler/score/score.h"
#include "mnt-layout/spec_keys.h"
#include "scheduler/base/json.h"

static json_t *accept(enum spec_kind kind, const char *text)
{
    struct dtx_err e = {0};
    json_t *out;
    int rc = spec_parse(kind, "x.json", text, strlen(text), &out, &e);

    ck_assert_msg(rc == 0, "%.300s: %s", text, e.msg);
    ck_assert(json_is_object(out));
    return out;
}

static void refuse(enum spec_kind kind, const char *text, const char *expected)
{
    struct dtx_err e = {0};
    json_t *out;
    int rc = spec_parse(kind, "x.json", text, strlen(text), &out, &e);

    ck_assert_msg(rc < 0 && rc == e.code, "%.300s: accepted (%d)", text, rc);
    ck_assert_ptr_null(out);
    ck_assert_msg(strncmp(e.msg, expected, strlen(expected)) == 0, "%.300s\n  gives    %s\n  expected %s",
                  text, e.msg, expected);
}

static char *dump(json_t *v)
{
    char *s = json_dumps(v, JSON_COMPACT | JSON_REAL_PRECISION(12));

    json_decref(v);
    return s;
}

static void normalizes(enum spec_kind kind, const char *text, const char *expected)
{
    char *s = dump(accept(kind, text));

    ck_assert_str_eq(s, expected);
    free(s);
}

/* ---- messages, word for word ---- */

static const struct {
    enum spec_kind kind;
    const char *text, *message; /* the beginning of the message */
} refused[] = {
    {SPEC_PARAMGROUP, "{\n\n\n  \"lora_rr\": 4}",
     "x.json:4:3: key \"lora_rr\": unknown key; did you mean \"lora_r\"? (known keys: scheduler, "
     "optimizer, "},
    {SPEC_PARAMGROUP, "{\n  \"learning_rate\": \"fast\"}",
     "x.json:2:20: key \"learning_rate\": found \"fast\" (string); expected a number > 0 and <= 10; e.g. "
     "2e-4"},
    {SPEC_PARAMGROUP, "{\"learning_rate\": \"2e-4\"}",
     "x.json:1:19: key \"learning_rate\": found \"2e-4\" (string); expected a number > 0 and <= 10; e.g. "
     "2e-4; "
     "write it without quotes"},
    {SPEC_PARAMGROUP, "{\"lr\": 1}", "x.json:1:2: key \"lr\": unknown key; did you mean \"learning_rate\"?"},
    {SPEC_PARAMGROUP, "{\"num_train_epochs\": 1}",
     "x.json:1:2: key \"num_train_epochs\": unknown key; did you mean \"epochs\"?"},
    {SPEC_PARAMGROUP, "{\"Scheduler\": 1}",
     "x.json:1:2: key \"Scheduler\": unknown key; did you mean \"scheduler\"?"},
    {SPEC_PARAMGROUP, "{\"zzzzzzzzzz\": 1}",
     "x.json:1:2: key \"zzzzzzzzzz\": unknown key (known keys: scheduler, "},
    {SPEC_PARAMGROUP, "{\"lora_r\": 0}",
     "x.json:1:12: key \"lora_r\": found 0; expected an integer from 1 to 1024; e.g. 16"},
    {SPEC_PARAMGROUP, "{\"lora_r\": -3}",
     "x.json:1:12: key \"lora_r\": found -3; expected an integer from 1"},
    {SPEC_PARAMGROUP, "{\"lora_r\": 3.5}",
     "x.json:1:12: key \"lora_r\": found 3.5; expected an integer from 1 to 1024; "
     "e.g. 16; it must be a whole number"},
    {SPEC_PARAMGROUP, "{\"lora_r\": null}", "x.json:1:12: key \"lora_r\": found null; expected an integer"},
    {SPEC_PARAMGROUP, "{\"lora_r\": [16]}",
     "x.json:1:12: key \"lora_r\": found a list of 1; expected an integer"},
    {SPEC_PARAMGROUP, "{\"use_rslora\": 1}",
     "x.json:1:16: key \"use_rslora\": found 1; expected true or false"},
    {SPEC_PARAMGROUP, "{\"learning_rate\": 0}",
     "x.json:1:19: key \"learning_rate\": found 0; expected a number > 0"},
    {SPEC_PARAMGROUP, "{\"learning_rate\": 1e300}",
     "x.json:1:19: key \"learning_rate\": found 1e+300; expected"},
    {SPEC_PARAMGROUP, "{\"learning_rate\": 1e999}", "x.json:1:23: not valid JSON: real number overflow"},
    {SPEC_PARAMGROUP, "{\"learning_rate\": NaN}", "x.json:1:21: not valid JSON: invalid token near"},
    {SPEC_PARAMGROUP, "{\"seed\": 99999999999999999999}", "x.json:1:29: not valid JSON: too big integer"},
    {SPEC_PARAMGROUP, "{\"seed\": 9007199254740992}",
     "x.json:1:10: key \"seed\": found 9007199254740992; expected"},
    {SPEC_PARAMGROUP, "{\"lora_dropout\": 1}",
     "x.json:1:18: key \"lora_dropout\": found 1; expected a number >= 0 and < 1"},
    {SPEC_PARAMGROUP, "{\"quantization\": \"int8\"}",
     "x.json:1:18: key \"quantization\": found \"int8\" (string); expected \"none\"; that is known, but not "
     "built"},
    {SPEC_PARAMGROUP, "{\"quantization\": \"int3\"}",
     "x.json:1:18: key \"quantization\": found \"int3\" (string); expected \"none\""},
    {SPEC_PARAMGROUP, "{\"scheduler\": \"cosin\"}",
     "x.json:1:15: key \"scheduler\": found \"cosin\" (string); expected one of \"cosine\", \"linear\", "
     "\"constant\"; "
     "did you mean \"cosine\"?"},
    {SPEC_PARAMGROUP, "{\"target_modules\": []}",
     "x.json:1:20: key \"target_modules\": found a list of 0; expected a list "
     "of 1 to 7 different items, each one of \"q_proj\","},
    {SPEC_PARAMGROUP, "{\"target_modules\": [\"q_proj\",\n\"qproj\"]}",
     "x.json:2:1: key \"target_modules[1]\": found \"qproj\" (string); expected one of"},
    {SPEC_PARAMGROUP, "{\"target_modules\": [\"q_proj\", \"q_proj\"]}",
     "x.json:1:31: key \"target_modules[1]\": \"q_proj\" (string) is there twice (also item [0]); remove "
     "one"},
    {SPEC_PARAMGROUP, "{\"target_modules\": \"q_proj\"}",
     "x.json:1:20: key \"target_modules\": found \"q_proj\" (string); expected a list of 1 to 7"},
    {SPEC_PARAMGROUP, "{\"save_every\": \"101%\"}",
     "x.json:1:16: key \"save_every\": found \"101%\" (string); expected a "
     "number of steps, \"10%\" of the training, or \"epoch\""},
    {SPEC_PARAMGROUP, "{\"save_every\": \"0%\"}", "x.json:1:16: key \"save_every\""},
    {SPEC_PARAMGROUP, "{\"save_every\": \"10 %\"}", "x.json:1:16: key \"save_every\""},
    {SPEC_PARAMGROUP, "{\"eval_every\": \"epochs\"}", "x.json:1:16: key \"eval_every\""},
    {SPEC_PARAMGROUP, "{\"eval_every\": -1}", "x.json:1:16: key \"eval_every\": found -1"},
    {SPEC_PARAMGROUP, "{\"lora_r\": 4, \"lora_r\": 8}", "x.json:1:22: not valid JSON: duplicate object key"},
    {SPEC_PARAMGROUP, "", "x.json:1:1: the file is empty; start from templates/paramgroup.json"},
    {SPEC_PARAMGROUP, " \n\t", "x.json:1:1: the file is empty"},
    {SPEC_PARAMGROUP, "[]",
     "x.json:1:1: found a list; expected an object {...} as in templates/paramgroup.json"},
    {SPEC_PARAMGROUP, "7", "x.json:1:1: found a single value; expected an object"},
    {SPEC_PARAMGROUP, "{\"lora_r\": 4", "x.json:1:12: not valid JSON"},
    {SPEC_PARAMGROUP, "{\"lora_r\": 4}}", "x.json:1:14: not valid JSON: end of file expected"},
    {SPEC_PARAMGROUP, "{\"x\": \"\xff\"}", "x.json:1:8: byte 0xff is not UTF-8"},
    {SPEC_PARAMGROUP, "{\"a\\nb\": 1}", "x.json:1:1: key \"a\\nb\": unknown key"},

    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"loRA_R\": \"x\"}}}",
     "x.json:1:36: key \"spec.parameters.loRA_R\": found \"x\" (string); expected an integer from 1 to 1024"},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"loRA_R\": \"8x\"}}}",
     "x.json:1:36: key \"spec.parameters.loRA_R\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"loRA_R\": \"4.5\"}}}",
     "x.json:1:36: key \"spec.parameters.loRA_R\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"learningRate\": \"1e999\"}}}",
     "x.json:1:42: key \"spec.parameters.learningRate\": found \"1e999\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"learningRate\": \"nan\"}}}",
     "x.json:1:42: key \"spec.parameters.learningRate\": found \"nan\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"lora_r\": 8}}}",
     "x.json:1:26: key \"lora_r\": unknown key; did you mean \"loRA_R\"?"},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"int4\": true}}}",
     "x.json:1:34: key \"spec.parameters.int4\": quantization is not built"},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"int8\": \"true\"}}}",
     "x.json:1:34: key \"spec.parameters.int8\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"PEFT\": false}}}",
     "x.json:1:34: key \"spec.parameters.PEFT\": DTX trains"},
    {SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {\"trainerType\": \"Ray\"}}}",
     "x.json:1:41: key \"spec.parameters.trainerType\": expected \"Standard\""},
    {SPEC_PARAMGROUP, "{\"spec\": {\"objective\": {\"type\": \"DPO\"}, \"parameters\": {}}}",
     "x.json:1:24: key \"spec.objective\": expected \"SFT\""},
    {SPEC_PARAMGROUP, "{\"spec\": {}}", "x.json:1:1: a DataTunerX document without"},
    {SPEC_PARAMGROUP, "{\"kind\": \"Dataset\", \"spec\": {\"parameters\": {}}}",
     "x.json:1:10: key \"kind\": expected"},

    {SPEC_EXPERIMENT, "{}",
     "x.json:1:1: it names nothing to work on; expected \"models\", \"datasets\" and "
     "\"paramgroups\", or instead of them \"jobs\""},
    {SPEC_EXPERIMENT, "{\"models\": [\"a\"], \"datasets\": [\"d\"]}",
     "x.json:1:1: key \"paramgroups\": missing; expected"},
    {SPEC_EXPERIMENT, "{\"models\": [\"a\", \"a\"]}",
     "x.json:1:18: key \"models[1]\": \"a\" (string) is there twice"},
    {SPEC_EXPERIMENT, "{\"models\": [\"a\", \"base/a\"]}",
     "x.json:1:18: key \"models[1]\": \"a\" (string) is there twice"},
    {SPEC_EXPERIMENT, "{\"models\": [\"tuned/\"]}",
     "x.json:1:13: key \"models[0]\": found \"tuned/\" (string); expected"},
    {SPEC_EXPERIMENT, "{\"models\": []}",
     "x.json:1:12: key \"models\": found a list of 0; expected a list of 1 to 1024"},
    {SPEC_EXPERIMENT, "{\"models\": \"llama\"}",
     "x.json:1:12: key \"models\": found \"llama\" (string); expected a list of 1 "
     "to 1024 different items, each a base model's name or \"tuned/NAME\"; "
     "e.g. [\"my-model\"]; write it in brackets, as a list"},
    {SPEC_EXPERIMENT, "{\"models\": [\"../etc\"]}",
     "x.json:1:13: key \"models[0]\": found \"../etc\" (string); expected a "
     "base model's name or \"tuned/NAME\"; name \"../etc\" begins with a dot"},
    {SPEC_EXPERIMENT, "{\"datasets\": [\"a/b\"]}", "x.json:1:15: key \"datasets[0]\": found \"a/b\""},
    {SPEC_EXPERIMENT, "{\"datasets\": [\"a\\u0000b\"]}",
     "x.json:1:15: key \"datasets[0]\": found \"a\\u0000b\""},
    {SPEC_EXPERIMENT,
     "{\"models\": [\"a\"], \"datasets\": [\"d\"], \"paramgroups\": [\"p\"], \"jobs\": "
     "[{\"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\"}]}",
     "x.json:1:1: both ways are used at once; expected"},
    {SPEC_EXPERIMENT, "{\"jobs\": [{\"model\": \"a\"}]}",
     "x.json:1:11: key \"jobs[0].dataset\": missing; expected a name"},
    {SPEC_EXPERIMENT,
     "{\"jobs\": [{\"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\", \"overrides\": {\"lora_r\": "
     "0}}]}",
     "x.json:1:85: key \"jobs[0].overrides.lora_r\": found 0; expected an integer from 1 to 1024"},
    {SPEC_EXPERIMENT,
     "{\"jobs\": [{\"name\": \"best\", \"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\"}]}",
     "x.json:1:20: key \"jobs[0].name\": \"best\" is the link to the winner"},
    {SPEC_EXPERIMENT,
     "{\"jobs\": [{\"name\": \"x\", \"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\"},\n"
     "{\"name\": \"x\", \"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\"}]}",
     "x.json:2:10: key \"jobs[1].name\": jobs[0] has the same name \"x\""},
    {SPEC_EXPERIMENT,
     "{\"seeds\": [1], \"jobs\": [{\"model\": \"a\", \"dataset\": \"d\", \"paramgroup\": \"p\"}]}",
     "x.json:1:2: key \"seeds\": belongs to the lists"},
    {SPEC_EXPERIMENT, "{\"early_stopping\": {\"patience\": 0}}",
     "x.json:1:33: key \"early_stopping.patience\": found 0"},
    {SPEC_EXPERIMENT, "{\"early_stopping\": true}",
     "x.json:1:20: key \"early_stopping\": found true (boolean); expected"},

    {SPEC_EVALUATION, "{}",
     "x.json:1:1: it names nothing to work on; expected \"questions\", or \"dataset\""},
    {SPEC_EVALUATION, "{\"questions\": [{\"question\": \"a\"}]}",
     "x.json:1:16: key \"questions[0].reference\": missing"},
    {SPEC_EVALUATION, "{\"questions\": [{\"question\": \"\", \"reference\": \"a\"}]}",
     "x.json:1:29: key \"questions[0].question\": found \"\" (string); expected a string of 1"},
    {SPEC_EVALUATION, "{\"dataset\": \"d\", \"metrics\": {\"rougel\": 1}}",
     "x.json:1:30: key \"rougel\": unknown key; did you mean \"rougeL\"?"},
    {SPEC_EVALUATION, "{\"dataset\": \"d\", \"metrics\": {\"bleu\": -1}}",
     "x.json:1:38: key \"metrics.bleu\": found -1"},
    {SPEC_EVALUATION, "{\"dataset\": \"d\", \"metrics\": {\"bleu\": 0}}",
     "x.json:1:29: key \"metrics\": the weights add up to 0"},
    {SPEC_EVALUATION, "{\"dataset\": \"d\", \"metrics\": {}}",
     "x.json:1:29: key \"metrics\": the weights add up to 0"},
    {SPEC_DATASET, "{\"splits\": {\"dev\": \"x\"}}",
     "x.json:1:13: key \"dev\": unknown key; did you mean \"validation\"?"},
    {SPEC_DATASET, "{\"splits\": {\"abc\": \"x\"}}",
     "x.json:1:13: key \"abc\": unknown key (known keys: train, "},
    {SPEC_DATASET, "{\"template\": \"llama\"}",
     "x.json:1:14: key \"template\": found \"llama\" (string); expected one of"},
    {SPEC_DATASET, "{\"features\": {\"response\": 3}}", "x.json:1:27: key \"features.response\": found 3"},
    {SPEC_SERVICE, "{}",
     "x.json:1:1: key \"model\": missing; expected a base model's name or \"tuned/NAME\"; e.g. "
     "\"model\": \"tuned/my-experiment.best\""},
    {SPEC_COMPARE, "{\"top_p\": 0}", "x.json:1:11: key \"top_p\": found 0; expected a number > 0 and <= 1"},
    {SPEC_PLUGIN, "{\"kind\": \"scoring\"}", "x.json:1:1: key \"command\": missing"},
};

START_TEST(refused_in_words)
{
    refuse(refused[_i].kind, refused[_i].text, refused[_i].message);
}
END_TEST

/* ---- what comes out ---- */

#define OWN_DEFAULTS                                                                                         \
    "{\"scheduler\":\"cosine\",\"optimizer\":\"adamw\",\"learning_rate\":0.0002,\"epochs\":3.0,\"max_"       \
    "steps\":0,"                                                                                             \
    "\"batch_size\":8,\"grad_acc_steps\":1,\"block_size\":1024,\"warmup_ratio\":0.03,\"weight_decay\":0.0,"  \
    "\"max_grad_norm\":1.0,\"lora_r\":16,\"lora_alpha\":32.0,\"lora_dropout\":0.0,\"target_modules\":[\"q_"  \
    "proj\","                                                                                                \
    "\"k_proj\",\"v_proj\",\"o_proj\",\"gate_proj\",\"up_proj\",\"down_proj\"],\"use_rslora\":false,"        \
    "\"quantization\":\"none\",\"seed\":42,\"save_every\":\"10%\",\"eval_every\":\"epoch\"}"

START_TEST(an_empty_paramgroup_has_the_defaults)
{
    normalizes(SPEC_PARAMGROUP, "{}", OWN_DEFAULTS);
    normalizes(SPEC_PARAMGROUP, "{\"$schema\": \"x\", \"$comment\": [1, 2], \"lora_r\": 16.0}", OWN_DEFAULTS);
}
END_TEST

START_TEST(datatunerx_has_its_own_defaults)
{
    static const char expected[] =
        "{\"scheduler\":\"cosine\",\"optimizer\":\"adamw\",\"learning_rate\":0.001,\"epochs\":10.0,\"max_"
        "steps\":0,"
        "\"batch_size\":32,\"grad_acc_steps\":1,\"block_size\":512,\"warmup_ratio\":0.1,\"weight_decay\":0."
        "0001,"
        "\"max_grad_norm\":1.0,\"lora_r\":4,\"lora_alpha\":32.0,\"lora_dropout\":0.1,\"target_modules\":[\"q_"
        "proj\","
        "\"v_proj\"],\"use_rslora\":false,\"quantization\":\"none\",\"seed\":42,\"save_every\":\"10%\","
        "\"eval_every\":\"epoch\"}";

    normalizes(SPEC_PARAMGROUP, "{\"spec\": {\"parameters\": {}}}", expected);
    normalizes(
        SPEC_PARAMGROUP,
        "{\"apiVersion\": \"core.datatunerx.io/v1beta1\", \"kind\": \"Hyperparameter\", \"metadata\": "
        "{\"name\": "
        "\"x\"}, \"spec\": {\"objective\": {\"type\": \"SFT\"}, \"parameters\": {\"scheduler\": \"Cosine\", "
        "\"optimizer\": \"AdamW\", \"int4\": false, \"int8\": \"false\", \"loRA_R\": \"4\", \"loRA_Alpha\": "
        "\"32\", "
        "\"loRA_Dropout\": \"0.1\", \"learningRate\": \"0.001\", \"epochs\": 10, \"blockSize\": 512, "
        "\"batchSize\": \"32\", \"warmupRatio\": \"0.1\", \"weightDecay\": \"0.0001\", \"gradAccSteps\": 1, "
        "\"trainerType\": \"Standard\", \"PEFT\": true, \"FP16\": true}}}",
        expected);
}
END_TEST

START_TEST(datatunerx_numbers_may_be_strings)
{
    json_t *v =
        accept(SPEC_PARAMGROUP, "{\"spec\": {\"objective\": \"SFT\", \"parameters\": {\"loRA_R\": \"8\", "
                                "\"learningRate\": \"5e-4\", \"epochs\": \"2\", \"optimizer\": \"SGD\"}}}");

    ck_assert_int_eq(json_int(v, "lora_r", -1), 8);
    ck_assert_double_eq(json_num(v, "learning_rate", -1), 5e-4);
    ck_assert_double_eq(json_num(v, "epochs", -1), 2);
    ck_assert_str_eq(json_str(v, "optimizer", ""), "sgd");
    json_decref(v);
}
END_TEST

START_TEST(experiments_are_normalized)
{
    normalizes(
        SPEC_EXPERIMENT,
        "{\"models\": [\"base/m\", \"tuned/e.best\"], \"datasets\": [\"d\"], \"paramgroups\": [\"p\"]}",
        "{\"models\":[\"m\",\"tuned/e.best\"],\"datasets\":[\"d\"],\"paramgroups\":[\"p\"],\"seeds\":[],"
        "\"jobs\":[],\"evaluation\":null,\"priority\":0,\"early_stopping\":null}");
    normalizes(SPEC_EXPERIMENT,
               "{\"jobs\": [{\"model\": \"m\", \"dataset\": \"d\", \"paramgroup\": \"p\", \"overrides\": "
               "{\"seed\": 7.0}}], "
               "\"early_stopping\": {}}",
               "{\"models\":[],\"datasets\":[],\"paramgroups\":[],\"seeds\":[],\"jobs\":[{\"name\":null,"
               "\"model\":\"m\","
               "\"dataset\":\"d\",\"paramgroup\":\"p\",\"overrides\":{\"seed\":7}}],\"evaluation\":null,"
               "\"priority\":0,"
               "\"early_stopping\":{\"patience\":3,\"min_delta\":0.0}}");
}
END_TEST

START_TEST(names_are_compared_after_nfc)
{
    json_t *v = accept(SPEC_EXPERIMENT,
                       "{\"models\": [\"m\"], \"datasets\": [\"cafe\xcc\x81\"], \"paramgroups\": [\"p\"]}");

    ck_assert_str_eq(json_string_value(json_array_get(json_object_get(v, "datasets"), 0)), "caf\xc3\xa9");
    json_decref(v);
    refuse(SPEC_EXPERIMENT, "{\"datasets\": [\"caf\xc3\xa9\", \"cafe\xcc\x81\"]}",
           "x.json:1:23: key \"datasets[1]\": \"caf\xc3\xa9\" (string) is there twice");
}
END_TEST

START_TEST(the_other_kinds_are_normalized)
{
    normalizes(SPEC_EVALUATION,
               "{\"questions\": [{\"question\": \"q\", \"reference\": \"a\", \"$comment\": \"c\"}]}",
               "{\"questions\":[{\"question\":\"q\",\"reference\":\"a\",\"system\":null}],\"dataset\":null,"
               "\"split\":\"test\",\"plugin\":null,\"parameters\":{},\"metrics\":{\"rougeL\":1.0},\"max_new_"
               "tokens\":128,"
               "\"temperature\":0.0,\"seed\":0,\"limit\":0}");
    normalizes(
        SPEC_DATASET, "{}",
        "{\"splits\":{\"train\":null,\"validation\":null,\"test\":null},\"features\":{\"instruction\":null,"
        "\"input\":null,\"response\":null,\"system\":null,\"history\":null},\"template\":null,\"plugin\":"
        "null,"
        "\"parameters\":{},\"metadata\":{\"languages\":[],\"tags\":[],\"license\":null,\"task\":null,"
        "\"subtask\":null,\"size\":null}}");
    normalizes(SPEC_SERVICE, "{\"model\": \"m\"}",
               "{\"model\":\"m\",\"system\":null,\"max_new_tokens\":256,\"temperature\":0.0,\"top_p\":1.0,"
               "\"top_k\":0,"
               "\"seed\":0}");
    normalizes(SPEC_PLUGIN, "{\"kind\": \"data\", \"command\": [\"./run\"]}",
               "{\"name\":null,\"kind\":\"data\",\"version\":\"1\",\"command\":[\"./run\"],\"parameters\":{},"
               "\"metrics\":[],\"timeout_s\":600,\"memory_mb\":1024}");
}
END_TEST

START_TEST(a_plugin_brings_its_own_metrics)
{
    json_t *v =
        accept(SPEC_EVALUATION, "{\"dataset\": \"d\", \"plugin\": \"p\", \"metrics\": {\"taste\": 2}}");

    ck_assert_double_eq(json_num(json_object_get(v, "metrics"), "taste", -1), 2);
    json_decref(v);
}
END_TEST

/* ---- bounds ---- */

/* {"KEY": ["p0", ...], ...} */
static void add_names(struct buf *b, const char *key, int n)
{
    buf_addf(b, "\"%s\": [", key);
    for (int i = 0; i < n; i++)
        buf_addf(b, "%s\"p%d\"", i ? ", " : "", i);
    buf_adds(b, "]");
}

static void experiment_of(struct buf *b, int models, int datasets, int groups)
{
    buf_clear(b);
    buf_adds(b, "{");
    add_names(b, "models", models);
    buf_adds(b, ", ");
    add_names(b, "datasets", datasets);
    buf_adds(b, ", ");
    add_names(b, "paramgroups", groups);
    buf_adds(b, "}");
}

START_TEST(the_number_of_jobs_is_bounded)
{
    struct buf b = BUF_INIT;

    experiment_of(&b, 4, 8, 32);
    json_decref(accept(SPEC_EXPERIMENT, b.p));
    experiment_of(&b, 4, 8, 33);
    refuse(SPEC_EXPERIMENT, b.p,
           "x.json:1:1: 4 models x 8 datasets x 33 paramgroups x 1 seeds = 1056 jobs; expected at most "
           "1024 in one experiment");
    experiment_of(&b, 1, 1, 1025);
    refuse(SPEC_EXPERIMENT, b.p,
           "x.json:1:55: key \"paramgroups\": found a list of 1025; expected a list of 1 to 1024");
    buf_release(&b);
}
END_TEST

START_TEST(size_and_depth_are_bounded)
{
    size_t n = (16 << 20) + 1;
    char *text = malloc(n);
    struct dtx_err e;
    json_t *v;

    memset(text, ' ', n);
    ck_assert_int_eq(spec_parse(SPEC_PARAMGROUP, "x.json", text, n, &v, &e), -EFBIG);
    ck_assert_ptr_nonnull(strstr(e.msg, "expected at most 16 MiB"));
    memset(text, '[', 1000);
    ck_assert_int_eq(spec_parse(SPEC_PARAMGROUP, "x.json", text, 1000, &v, &e), -EINVAL);
    ck_assert_ptr_nonnull(strstr(e.msg, "nested deeper than"));
    free(text);
}
END_TEST

/* Every number of every table: its bounds are accepted or refused as it says, and the next number beyond is
 * refused. */
static void check_bound(enum spec_kind kind, const struct spec_key *key, double x, bool good)
{
    struct spec_ctx c = {.file = "x"};
    struct dtx_err e = {0};
    json_t *v = json_real(x), *out = NULL;
    int rc;

    c.e = &e;
    strcpy(c.path, key->name);
    rc = spec_check_value(&c, key, v, &out);
    ck_assert_msg((rc == 0) == good, "%s.%s: %.17g is %s", spec_kind_name(kind), key->name, x,
                  good ? "refused" : "accepted");
    ck_assert_msg(good || strstr(e.msg, "expected") != NULL, "%s", e.msg);
    json_decref(v);
    json_decref(out);
}

static void check_bounds(enum spec_kind kind, const struct spec_key *keys)
{
    for (const struct spec_key *k = keys; k->name; k++) {
        double step = k->type == ST_INT ? 1 : 1e-3;
        if (k->sub && k->sub != keys)
            check_bounds(kind, k->sub);
        if (k->type != ST_INT && k->type != ST_NUMBER)
            continue;
        ck_assert_msg(k->min < k->max, "%s", k->name);
        check_bound(kind, k, k->min, !(k->flags & SK_ABOVE));
        check_bound(kind, k, k->max, !(k->flags & SK_BELOW));
        check_bound(kind, k, k->min - step, false);
        check_bound(kind, k, k->max + (step > k->max * 1e-15 ? step : k->max), false);
    }
}

START_TEST(every_number_keeps_its_bounds)
{
    for (int k = 0; k < SPEC_KINDS; k++)
        check_bounds((enum spec_kind)k, spec_tables[k].keys);
}
END_TEST

/* Every key refuses every type that it is not. */
static bool fits_type(const struct spec_key *k, const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
        return k->flags & SK_NULL;
    case JSON_TRUE:
    case JSON_FALSE:
        return k->type == ST_BOOL;
    case JSON_STRING:
        return k->type == ST_STRING || k->type == ST_NAME || k->type == ST_MODEL || k->type == ST_USER;
    case JSON_INTEGER:
    case JSON_REAL:
        return k->type == ST_INT || k->type == ST_NUMBER || k->type == ST_INTERVAL || k->type == ST_SIZE ||
               k->type == ST_USER;
    case JSON_ARRAY:
        return k->type == ST_LIST && k->min == 0;
    case JSON_OBJECT:
        return k->type == ST_OBJECT || k->type == ST_MAP || k->type == ST_FREE;
    }
    return false;
}

START_TEST(every_key_refuses_other_types)
{
    static const char *const values[] = {"null", "true", "\"text\"", "[]", "{}", "7"};

    for (int kind = 0; kind < SPEC_KINDS; kind++) {
        for (const struct spec_key *k = spec_tables[kind].keys; k->name; k++) {
            for (size_t i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
                json_t *v = json_loads(values[i], JSON_DECODE_ANY, NULL);
                char text[256], expected[128];
                snprintf(text, sizeof(text), "{\n \"%s\": %s}", k->name, values[i]);
                snprintf(expected, sizeof(expected), "x.json:2:%zu: key \"%s", strlen(k->name) + 6, k->name);
                if (!fits_type(k, v))
                    refuse((enum spec_kind)kind, text, expected);
                json_decref(v);
            }
        }
    }
}
END_TEST

START_TEST(every_key_is_documented)
{
    for (int kind = 0; kind < SPEC_TABLES; kind++) {
        ck_assert_ptr_nonnull(spec_tables[kind].name);
        for (const struct spec_key *k = spec_tables[kind].keys; k->name; k++) {
            ck_assert_msg(k->help && strlen(k->help) > 5, "%s.%s: help", spec_tables[kind].name, k->name);
            ck_assert_msg(k->value || k->flags & (SK_NULL | SK_REQUIRED), "%s.%s: default",
                          spec_tables[kind].name, k->name);
            ck_assert_msg(!(k->flags & SK_REQUIRED) || k->example, "%s.%s: example", spec_tables[kind].name,
                          k->name);
        }
    }
}
END_TEST

/* ---- templates, schemas ---- */

START_TEST(templates_are_accepted_as_they_are)
{
    for (int kind = 0; kind < SPEC_KINDS; kind++) {
        struct buf b = BUF_INIT;
        ck_assert_int_eq(spec_template((enum spec_kind)kind, &b), 0);
        json_decref(accept((enum spec_kind)kind, b.p));
        for (const struct spec_key *k = spec_tables[kind].keys; k->name; k++) {
            char comment[80], member[80];
            snprintf(comment, sizeof(comment), "\n    \"%s: ", k->name);
            snprintf(member, sizeof(member), "\n  \"%s\": ", k->name);
            ck_assert_msg(strstr(b.p, comment) != NULL, "%s: no word about %s", spec_tables[kind].name,
                          k->name);
            ck_assert_msg((strstr(b.p, member) == NULL) == !!(k->flags & SK_NO_TEMPLATE), "%s: %s",
                          spec_tables[kind].name, k->name);
        }
        buf_release(&b);
    }
}
END_TEST

static size_t count_keys(const struct spec_key *keys)
{
    size_t n = 0;

    while (keys[n].name)
        n++;
    return n;
}

START_TEST(schemas_have_every_key_and_default)
{
    for (int kind = 0; kind < SPEC_KINDS; kind++) {
        struct buf b = BUF_INIT;
        json_t *schema, *properties;

        ck_assert_int_eq(spec_schema((enum spec_kind)kind, &b), 0);
        schema = json_loads(b.p, 0, NULL);
        ck_assert_str_eq(json_str(schema, "$schema", ""), "https://json-schema.org/draft/2020-12/schema");
        properties = json_object_get(
            kind == SPEC_PARAMGROUP ? json_array_get(json_object_get(schema, "anyOf"), 0) : schema,
            "properties");
        for (const struct spec_key *k = spec_tables[kind].keys; k->name; k++) {
            const json_t *p = json_object_get(properties, k->name);
            ck_assert_str_eq(json_str(p, "description", ""), k->help);
            ck_assert((json_object_get(p, "default") != NULL) == !(k->flags & SK_REQUIRED));
        }
        ck_assert_uint_eq(json_object_size(properties), 2 + count_keys(spec_tables[kind].keys));
        json_decref(schema);
        buf_release(&b);
    }
}
END_TEST

START_TEST(the_paramgroup_schema_has_bounds)
{
    struct buf b = BUF_INIT;
    json_t *schema, *p, *lr, *theirs;

    ck_assert_int_eq(spec_schema(SPEC_PARAMGROUP, &b), 0);
    schema = json_loads(b.p, 0, NULL);
    p = json_object_get(json_array_get(json_object_get(schema, "anyOf"), 0), "properties");
    lr = json_object_get(p, "learning_rate");
    ck_assert_str_eq(json_str(lr, "type", ""), "number");
    ck_assert_int_eq(json_int(lr, "exclusiveMinimum", -1), 0);
    ck_assert_int_eq(json_int(lr, "maximum", -1), 10);
    ck_assert_double_eq(json_num(lr, "default", -1), 2e-4);
    ck_assert_uint_eq(json_array_size(json_object_get(json_object_get(p, "scheduler"), "enum")), 3);
    theirs = json_array_get(json_object_get(schema, "anyOf"), 1);
    ck_assert_str_eq(json_str(theirs, "title", ""), "DataTunerX's Hyperparameter");
    json_decref(schema);
    buf_release(&b);
}
END_TEST

/* ---- metrics ---- */

START_TEST(metrics_are_those_that_can_be_computed)
{
    const struct spec_key *metrics = spec_key_find(spec_tables[SPEC_EVALUATION].keys, "metrics");
    int computed = 0, known = 0;

    while (metrics->words[known])
        known++;
    for (; score_metric_names[computed]; computed++) {
        bool found = strcmp(score_metric_names[computed], "perplexity") == 0; /* shown, not part of a score */
        for (int i = 0; i < known && !found; i++)
            found = strcmp(metrics->words[i], score_metric_names[computed]) == 0;
        ck_assert_msg(found, "%s is computed, but no spec may ask for it", score_metric_names[computed]);
    }
    ck_assert_int_eq(known, computed - 1);
}
END_TEST

/* ---- overrides ---- */

START_TEST(overrides_are_merged)
{
    json_t *group = accept(SPEC_PARAMGROUP, "{\"lora_r\": 4}"),
           *over = json_pack("{s:f,s:i}", "learning_rate", 0.5, "seed", 1);
    struct dtx_err e;

    ck_assert_int_eq(spec_merge_overrides(group, over, &e), 0);
    ck_assert_double_eq(json_num(group, "learning_rate", 0), 0.5);
    ck_assert_int_eq(json_int(group, "seed", 0), 1);
    ck_assert_int_eq(json_int(group, "lora_r", 0), 4);
    ck_assert_int_eq(spec_merge_overrides(group, NULL, &e), 0);
    json_decref(over);
    over = json_pack("{s:i}", "lora_rr", 4);
    ck_assert_int_eq(spec_merge_overrides(group, over, &e), -EINVAL);
    ck_assert(strncmp(e.msg, "overrides: key \"lora_rr\": unknown key; did you mean \"lora_r\"?", 58) == 0);
    json_decref(over);
    over = json_pack("{s:i}", "lora_r", 0);
    ck_assert_int_eq(spec_merge_overrides(group, over, &e), -EINVAL);
    ck_assert_int_eq(json_int(group, "lora_r", 0), 4);
    json_decref(over);
    json_decref(group);
}
END_TEST

/* ---- prompts ---- */

static void prompt_is(const char *text, int max_new_tokens, const char *expected)
{
    struct dtx_err e = {0};
    json_t *settings;
    const char *prompt;
    size_t n;

    ck_assert_msg(spec_parse_prompt("p.txt", text, strlen(text), &settings, &prompt, &n, &e) == 0, "%s",
                  e.msg);
    ck_assert_int_eq(json_int(settings, "max_new_tokens", -1), max_new_tokens);
    ck_assert_uint_eq(n, strlen(expected));
    ck_assert_mem_eq(prompt, expected, n);
    json_decref(settings);
}

static void prompt_refused(const char *text, const char *expected)
{
    struct dtx_err e = {0};
    json_t *settings;
    const char *prompt;
    size_t n;

    ck_assert_int_lt(spec_parse_prompt("p.txt", text, strlen(text), &settings, &prompt, &n, &e), 0);
    ck_assert_ptr_null(settings);
    ck_assert_msg(strncmp(e.msg, expected, strlen(expected)) == 0, "%s", e.msg);
}

START_TEST(prompts_may_begin_with_settings)
{
    prompt_is("How?\n", 256, "How?\n");
    prompt_is("", 256, "");
    prompt_is("--- How?\n---\n", 256, "--- How?\n---\n");
    prompt_is("---\n{\"max_new_tokens\": 9}\n---\nHow?\n", 9, "How?\n");
    prompt_is("---\r\n{\"max_new_tokens\": 9}\r\n---\r\nHow?\r\n", 9, "How?\r\n");
    prompt_is("---\n{}\n---", 256, "");
    prompt_refused("---\n{}\n", "p.txt:1:1: it begins with a line --- but has no second one");
    prompt_refused("---\n\n{\"max_new_tokens\": 0}\n---\nHow?\n",
                   "p.txt:3:20: key \"max_new_tokens\": found 0; expected");
    prompt_refused("---\nmodels: a\n---\nHow?\n", "p.txt:2:6: not valid JSON");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("spec");
    TCase *t = tcase_create("spec");
    SRunner *r;
    int failed;

    tcase_add_loop_test(t, refused_in_words, 0, (int)(sizeof(refused) / sizeof(refused[0])));
    tcase_add_test(t, an_empty_paramgroup_has_the_defaults);
    tcase_add_test(t, datatunerx_has_its_own_defaults);
    tcase_add_test(t, datatunerx_numbers_may_be_strings);
    tcase_add_test(t, experiments_are_normalized);
    tcase_add_test(t, names_are_compared_after_nfc);
    tcase_add_test(t, the_other_kinds_are_normalized);
    tcase_add_test(t, a_plugin_brings_its_own_metrics);
    tcase_add_test(t, the_number_of_jobs_is_bounded);
    tcase_add_test(t, size_and_depth_are_bounded);
    tcase_add_test(t, every_number_keeps_its_bounds);
    tcase_add_test(t, every_key_refuses_other_types);
    tcase_add_test(t, every_key_is_documented);
    tcase_add_test(t, templates_are_accepted_as_they_are);
    tcase_add_test(t, schemas_have_every_key_and_default);
    tcase_add_test(t, the_paramgroup_schema_has_bounds);
    tcase_add_test(t, metrics_are_those_that_can_be_computed);
    tcase_add_test(t, overrides_are_merged);
    tcase_add_test(t, prompts_may_begin_with_settings);
    suite_add_tcase(s, t);
    r = srunner_create(s);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
