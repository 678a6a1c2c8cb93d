/* What SCORE asks: the questions of an evaluation, kept in work_dir/questions.json so that the dataset may
 * go. */
#include <stdlib.h>
#include <string.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/worker/job.h"

enum { QUESTIONS_MAX = 100000, QUESTIONS_BYTES_MAX = 256 << 20 };

static const char *const role_names[] = {"system", "user", "assistant"};

static void row_release(struct data_row *row)
{
    for (int i = 0; i < row->n; i++)
        free(row->turns[i].text);
    free(row->turns);
    memset(row, 0, sizeof(*row));
}

void questions_release(struct job_questions *q)
{
    for (size_t i = 0; i < q->n; i++)
        row_release(&q->v[i]);
    free(q->v);
    memset(q, 0, sizeof(*q));
}

static int row_copy(struct data_row *to, const struct data_row *from)
{
    memset(to, 0, sizeof(*to));
    to->line = from->line;
    to->file = "questions";
    to->turns = calloc((size_t)from->n, sizeof(*to->turns));
    if (!to->turns)
        return -ENOMEM;
    for (int i = 0; i < from->n; i++) {
        to->turns[i].role = from->turns[i].role;
        to->turns[i].text = strdup(from->turns[i].text);
        if (!to->turns[i].text)
            return -ENOMEM;
        to->n = i + 1;
    }
    return 0;
}

int questions_add(struct job_questions *q, const struct data_row *row, struct dtx_err *e)
{
    struct data_row *v;

    if (q->n == q->cap) {
        size_t cap = q->cap ? q->cap * 2 : 64;

        v = realloc(q->v, cap * sizeof(*v));
        if (!v)
            return dtx_fail(e, -ENOMEM, "out of memory for questions");
        q->v = v;
        q->cap = cap;
    }
    if (row_copy(&q->v[q->n], row)) {
        row_release(&q->v[q->n]);
        return dtx_fail(e, -ENOMEM, "out of memory for questions");
    }
    q->n++;
    return 0;
}

static int add_pair(struct job_questions *q, const char *system, const char *question, const char *reference,
                    struct dtx_err *e)
{
    struct data_turn turns[3];
    struct data_row row = {.turns = turns, .line = (long)q->n + 1};

    if (system && *system)
        turns[row.n++] = (struct data_turn){DATA_SYSTEM, (char *)(uintptr_t)system};
    turns[row.n++] = (struct data_turn){DATA_USER, (char *)(uintptr_t)question};
    turns[row.n++] = (struct data_turn){DATA_ASSISTANT, (char *)(uintptr_t)reference};
    return questions_add(q, &row, e);
}

static int from_list(const json_t *list, struct job_questions *q, struct dtx_err *e)
{
    const json_t *item;
    size_t i;
    int rc = 0;

    json_array_foreach(list, i, item)
    {
        const char *question = json_str(item, "question", NULL),
                   *reference = json_str(item, "reference", NULL);

        if (!question || !reference)
            return dtx_fail(e, -EINVAL, "question %zu of the evaluation needs \"question\" and \"reference\"",
                            i + 1);
        rc = add_pair(q, json_str(item, "system", NULL), question, reference, e);
        if (rc)
            return rc;
    }
    return 0;
}

struct walk {
    struct job_questions *q;
    size_t limit;
    struct dtx_err *e;
};

static int on_row(void *arg, const struct data_row *row)
{
    struct walk *walk = arg;

    if (row->plain_text || row->n < 2 || row->turns[row->n - 1].role != DATA_ASSISTANT)
        return 0; /* nothing to ask */
    if (walk->q->n >= walk->limit)
        return 1;
    return questions_add(walk->q, row, walk->e);
}

static int from_dataset(int store, const struct job_spec *s, struct job_questions *q, struct dtx_err *e)
{
    static const char *const names[DATA_SPLITS] = {"train", "validation", "test"};
    const char *want = json_str(s->evaluation, "split", "test");
    long long limit = json_int(s->evaluation, "limit", 0);
    struct walk walk = {q, limit > 0 && limit < QUESTIONS_MAX ? (size_t)limit : QUESTIONS_MAX, e};
    struct dataset *d = NULL;
    enum data_split split = DATA_TEST;
    int rc = dataset_open(store, s->evaluation_dataset_dir, s->evaluation_dataset_spec, &d, e);

    if (rc)
        return rc;
    for (int i = 0; i < DATA_SPLITS; i++)
        if (!strcmp(want, names[i]))
            split = (enum data_split)i;
    if (!dataset_has(d, split))
        rc =
            dtx_fail(e, -EINVAL, "%s has no %s split to score with", s->evaluation_dataset_dir, names[split]);
    else
        rc = dataset_walk(d, split, on_row, NULL, &walk, e);
    dataset_close(d);
    if (rc >= 0 && q->n == 0)
        return dtx_fail(e, -EINVAL, "%s: no row of the %s split has a question and an answer",
                        s->evaluation_dataset_dir, names[split]);
    return rc < 0 ? rc : 0;
}

static json_t *row_to_json(const struct data_row *row)
{
    json_t *turns = json_array();

    for (int i = 0; i < row->n; i++)
        json_array_append_new(turns, json_pack("{s:s,s:o}", "role", role_names[row->turns[i].role], "text",
                                               json_text(row->turns[i].text, strlen(row->turns[i].text))));
    return turns;
}

static int keep(int store, const char *path, const struct job_questions *q, struct dtx_err *e)
{
    json_t *all = json_array();
    struct buf b = BUF_INIT;
    int rc;

    for (size_t i = 0; i < q->n; i++)
        json_array_append_new(all, row_to_json(&q->v[i]));
    json_dump_buf(all, &b);
    json_decref(all);
    rc = b.failed ? dtx_fail(e, -ENOMEM, "out of memory for questions")
                  : fd_replace_file(store, path, b.p, b.len, 0600, e);
    buf_release(&b);
    return rc;
}

static int row_from_json(const json_t *turns, struct job_questions *q, struct dtx_err *e)
{
    struct data_row row = {.n = (int)json_array_size(turns), .line = (long)q->n + 1};
    int rc;

    row.turns = calloc((size_t)row.n + 1, sizeof(*row.turns));
    if (!row.turns)
        return dtx_fail(e, -ENOMEM, "out of memory for questions");
    for (int i = 0; i < row.n; i++) {
        const json_t *t = json_array_get(turns, (size_t)i);
        const char *role = json_str(t, "role", "user");

        row.turns[i].role = !strcmp(role, "system") ? DATA_SYSTEM
                            : !strcmp(role, "user") ? DATA_USER
                                                    : DATA_ASSISTANT;
        row.turns[i].text = (char *)(uintptr_t)json_str(t, "text", "");
    }
    rc = questions_add(q, &row, e);
    free(row.turns);
    return rc;
}

static int from_kept(int store, const char *path, struct job_questions *q, struct dtx_err *e)
{
    json_t *all;
    size_t i;
    const json_t *turns;
    int rc = json_parse_file(store, path, QUESTIONS_BYTES_MAX, &all, e);

    if (rc)
        return rc;
    json_array_foreach(all, i, turns)
    {
        rc = row_from_json(turns, q, e);
        if (rc)
            break;
    }
    json_decref(all);
    return rc;
}

int questions_make(int store, const struct job_spec *s, struct job_questions *q, struct dtx_err *e)
{
    char path[PATH_MAX];
    int rc;

    if (!s->evaluation)
        return 0;
    rc = fd_join(path, s->work_dir, "questions.json", e);
    if (rc)
        return rc;
    rc = from_kept(store, path, q, NULL);
    if (rc == 0 && q->n)
        return 0;
    questions_release(q); /* none kept, or a broken file: made anew */
    rc = from_list(json_object_get(s->evaluation, "questions"), q, e);
    if (rc == 0 && s->evaluation_dataset_dir)
        rc = from_dataset(store, s, q, e);
    if (rc == 0)
        rc = keep(store, path, q, e);
    return rc;
}
