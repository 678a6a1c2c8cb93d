/*
 * PREPARE, in a thread of its own so that training and answers go on: read the headers of the base, check
 * that the dataset is the one that was accepted, write the token caches and the questions into work_dir.
 *
 * work_dir/prepared.json is written last: with it a job needs the dataset no more, and going on after a crash
 * only maps the caches, whatever became of the dataset meanwhile.
 */
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"
#include "scheduler/worker/job.h"

enum { SUM_ANYWAY = 64 << 20 };

static int verify_dataset(struct dataset *d, const struct job_spec *s, struct dtx_err *e)
{
    char hex[65];
    int rc = dataset_sha256(d, hex, e);

    if (rc == 0 && s->dataset_sha && strcmp(s->dataset_sha, hex) != 0)
        rc = dtx_fail(
            e, -EINVAL,
            "dataset %s is not the one that was checked: its SHA-256 is now %.12s..., %.12s... was expected; "
            "put the old files back and retry, or drop a new experiment",
            s->dataset, hex, s->dataset_sha);
    return rc;
}

static int cache_path(char out[PATH_MAX], const struct job_spec *s, enum data_split split, struct dtx_err *e)
{
    return fd_join(out, s->work_dir, split == DATA_TRAIN ? "train.tokens" : "validation.tokens", e);
}

static int make_cache(struct prepare *p, struct dataset *d, enum data_split split,
                      const struct dtx_tokenizer *t, struct token_cache *out)
{
    char path[PATH_MAX];
    int rc = cache_path(path, p->spec, split, &p->error);

    if (rc)
        return rc;
    return token_cache_make(d, split, t, p->block_size, p->store, path, out, &p->error);
}

static int make_caches(struct prepare *p, const struct dtx_tokenizer *t)
{
    const struct job_spec *s = p->spec;
    struct dataset *d = NULL;
    int rc = dataset_open(p->store, s->dataset_dir, s->dataset_spec, &d, &p->error);

    if (rc)
        return rc;
    rc = verify_dataset(d, s, &p->error);
    if (rc == 0)
        rc = make_cache(p, d, DATA_TRAIN, t, &p->train);
    if (rc == 0 && dataset_has(d, DATA_VALIDATION)) {
        rc = make_cache(p, d, DATA_VALIDATION, t, &p->validation);
        p->has_validation = rc == 0;
    }
    dataset_close(d);
    if (rc == 0 && p->train.rows.n == 0)
        rc = dtx_fail(&p->error, -EINVAL, "dataset %s has no row to train on", s->dataset);
    return rc;
}

static int write_prepared(struct prepare *p, const char *tokenizer_sha)
{
    char path[PATH_MAX];
    struct buf b = BUF_INIT;
    json_t *v = json_pack(
        "{s:s,s:i,s:b,s:s}", "dataset_sha256", p->spec->dataset_sha ? p->spec->dataset_sha : "", "block_size",
        p->spec->params.block_size, "validation", (int)p->has_validation, "tokenizer_sha256", tokenizer_sha);
    int rc;

    json_dump_buf(v, &b);
    json_decref(v);
    rc = fd_join(path, p->spec->work_dir, "prepared.json", &p->error);
    if (rc == 0)
        rc = fd_replace_file(p->store, path, b.p, b.len, 0600, &p->error);
    buf_release(&b);
    return rc;
}

/* Caches of an earlier start of this job.  False: there are none that fit. */
static bool map_prepared(struct prepare *p, const char *tokenizer_sha)
{
    const struct job_spec *s = p->spec;
    char path[PATH_MAX];
    json_t *v = NULL;
    bool ok;

    if (fd_join(path, s->work_dir, "prepared.json", NULL) || json_parse_file(p->store, path, 65536, &v, NULL))
        return false;
    ok = !strcmp(json_str(v, "dataset_sha256", "?"), s->dataset_sha ? s->dataset_sha : "") &&
         !strcmp(json_str(v, "tokenizer_sha256", "?"), tokenizer_sha) &&
         json_int(v, "block_size", -1) == p->block_size;
    p->has_validation = json_flag(v, "validation", 0);
    json_decref(v);
    ok = ok && cache_path(path, s, DATA_TRAIN, NULL) == 0 &&
         token_cache_map(p->store, path, p->block_size, &p->train, NULL) == 0;
    if (ok && p->has_validation)
        ok = cache_path(path, s, DATA_VALIDATION, NULL) == 0 &&
             token_cache_map(p->store, path, p->block_size, &p->validation, NULL) == 0;
    if (!ok) {
        token_cache_release(&p->train);
        token_cache_release(&p->validation);
        memset(&p->train, 0, sizeof(p->train));
        memset(&p->validation, 0, sizeof(p->validation));
        p->has_validation = false;
    }
    return ok;
}

/* Beside its weights the engine reads only small files of a folder: to sum up terabytes of holes, which cost
 * nothing to make, would keep the jobs waiting. */
static bool is_hole(const struct stat *st)
{
    return st->st_size > SUM_ANYWAY && (off_t)st->st_blocks * 512 < st->st_size / 2;
}

/* SHA-256 of every file of the base, for provenance.json. */
static int sum_base(struct prepare *p)
{
    int fd = openat(p->store, p->spec->base_dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *ent;
    int rc = 0;

    if (!d) {
        rc = dtx_fail_errno(&p->error, "cannot open %s", p->spec->base_dir);
        if (fd >= 0)
            close(fd);
        return rc;
    }
    p->base_sums = json_object();
    while (rc == 0 && (ent = readdir(d))) {
        struct stat st;
        char hex[65];

        if (ent->d_name[0] == '.' || fstatat(fd, ent->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
            !S_ISREG(st.st_mode) || is_hole(&st))
            continue;
        rc = sha256_file(fd, ent->d_name, hex, &p->error);
        if (rc == 0)
            json_object_set_new(p->base_sums, ent->d_name, json_string(hex));
    }
    closedir(d);
    return rc;
}

static int prepare_training(struct prepare *p)
{
    const int positions = p->config.max_positions;
    struct dtx_tokenizer *t = NULL; /* its own: the engine's objects are not thread-safe */
    int rc = dtx_tokenizer_load(p->store, p->spec->base_dir, &t, &p->error);

    if (rc)
        return rc;
    p->block_size = p->spec->params.block_size < positions ? p->spec->params.block_size : positions;
    if (!map_prepared(p, dtx_tokenizer_sha256(t))) {
        rc = make_caches(p, t);
        if (rc == 0)
            rc = questions_make(p->store, p->spec, &p->questions, &p->error);
        if (rc == 0)
            rc = write_prepared(p, dtx_tokenizer_sha256(t));
    } else {
        rc = questions_make(p->store, p->spec, &p->questions, &p->error);
    }
    dtx_tokenizer_free(t);
    if (rc == 0 && !p->base_sums)
        rc = sum_base(p);
    return rc;
}

static void *prepare_main(void *arg)
{
    struct prepare *p = arg;
    uint64_t one = 1;

    p->rc = dtx_model_check(p->store, p->spec->base_dir, &p->config, &p->error);
    if (p->rc == 0)
        p->rc = fd_mkdirs(p->store, p->spec->work_dir, 0700, &p->error);
    if (p->rc == 0)
        p->rc = p->spec->score_only ? questions_make(p->store, p->spec, &p->questions, &p->error)
                                    : prepare_training(p);
    __atomic_store_n(&p->ended, true, __ATOMIC_RELEASE);
    (void)!write(p->wake, &one, sizeof(one));
    return NULL;
}

/* Sums of the same base that an earlier job of this worker made. */
static json_t *known_sums(struct worker *w, const struct job *j, uint64_t signature)
{
    for (struct job *o = w->jobs; o; o = o->next)
        if (o != j && o->prepared && o->prep.base_sums && o->base_signature == signature &&
            !strcmp(o->spec.base_dir, j->spec.base_dir))
            return json_deep_copy(
                o->prep.base_sums); /* a copy: reference counts are not shared between threads */
    return NULL;
}

int prepare_start(struct worker *w, struct job *j, struct dtx_err *e)
{
    struct prepare *p = &j->prep;
    int rc;

    p->store = w->store;
    p->wake = w->wake;
    p->spec = &j->spec;
    j->base_signature = folder_signature(w->store, j->spec.base_dir);
    p->base_sums = known_sums(w, j, j->base_signature);
    rc = pthread_create(&p->thread, NULL, prepare_main, p);
    if (rc)
        return dtx_fail(e, -rc, "cannot start a thread: %s", strerror(rc));
    p->started = true;
    return 0;
}

bool prepare_ended(struct job *j)
{
    if (!j->prep.started)
        return true;
    if (!__atomic_load_n(&j->prep.ended, __ATOMIC_ACQUIRE))
        return false;
    pthread_join(j->prep.thread, NULL);
    j->prep.started = false;
    return true;
}

void prepare_release(struct prepare *p)
{
    token_cache_release(&p->train);
    token_cache_release(&p->validation);
    questions_release(&p->questions);
    json_decref(p->base_sums);
    p->base_sums = NULL;
}
