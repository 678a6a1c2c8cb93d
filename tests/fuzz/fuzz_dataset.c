/* A dataset file: the first byte says which format, the rest is the file. */
#include "scheduler/base/text.h"
#include "scheduler/data/data.h"
#include "tests/fuzz/fuzz.h"

static int check_row(void *arg, const struct data_row *row)
{
    FUZZ_ASSERT(row->n > 0 && row->turns[row->n - 1].role == DATA_ASSISTANT && row->line > 0);
    for (int i = 0; i < row->n; i++)
        FUZZ_ASSERT(text_utf8_valid(row->turns[i].text, strlen(row->turns[i].text)));
    ++*(long *)arg;
    return 0;
}

static void check_skip(void *arg, const char *why)
{
    FUZZ_ASSERT(strncmp(why, "train.", 6) == 0 && strlen(why) > 10);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"train.jsonl", "train.json",    "train.csv",
                                        "train.tsv",   "train.json.gz", "dataset.json"};
    const char *name = size ? names[data[0] % 6] : names[0];
    struct dataset *d;
    struct dtx_err e = {0};
    long rows = 0;
    int rc;

    for (size_t i = 0; i < 6; i++)
        unlinkat(fuzz_dir(), names[i], 0);
    if (strcmp(name, "dataset.json") == 0)
        fuzz_put("train.jsonl", "{\"prompt\":\"a\",\"completion\":\"b\"}\n", 33);
    fuzz_put(name, data + (size > 0), size ? size - 1 : 0);
    rc = dataset_open(fuzz_dir(), ".", NULL, &d, &e);
    if (rc == 0) {
        rc = dataset_walk(d, DATA_TRAIN, check_row, check_skip, &rows, &e);
        FUZZ_ASSERT(rc <= 0);
        dataset_close(d);
    }
    FUZZ_ASSERT((rc < 0) == (e.code < 0) && (rc == 0 || e.msg[0]));
    return 0;
}
