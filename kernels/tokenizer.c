/* Tokenizers: loading from a model folder, encoding, decoding. */
#include "kernels/tokenizer_impl.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"
#include "scheduler/base/sha256.h"

int dtx_ids_add(struct dtx_ids *ids, int32_t id)
{
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? ids->cap * 2 : 64;
        int32_t *v = realloc(ids->v, cap * sizeof(*v));
        if (!v)
            return -ENOMEM;
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return 0;
}

void dtx_ids_release(struct dtx_ids *ids)
{
    free(ids->v);
    *ids = (struct dtx_ids){0};
}

/* ---- loading ---- */

static bool has(int fd, const char *name)
{
    return faccessat(fd, name, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Models that were made with SentencePiece: their tokenizer.json is a translation of tokenizer.model. */
static bool prefers_model_file(int fd)
{
    json_t *c;
    const char *type;
    bool yes;

    if (json_parse_file(fd, "config.json", TOK_MAX_CONFIG, &c, NULL))
        return true;
    type = json_str(c, "model_type", "llama");
    yes = strcmp(type, "llama") == 0 || strcmp(type, "mistral") == 0;
    json_decref(c);
    return yes;
}

/* Llama 3's original tokenizer.model is a list of base64 lines; a SentencePiece file begins with its first
 * piece. */
static bool is_sentencepiece(int fd)
{
    unsigned char first = 0;
    int f = fd_open_file(fd, "tokenizer.model", NULL);
    bool yes = f >= 0 && read(f, &first, 1) == 1 && first == 0x0a;

    if (f >= 0)
        close(f);
    return yes;
}

static const char *choose(int fd)
{
    bool model = has(fd, "tokenizer.model"), json = has(fd, "tokenizer.json");

    if (model && json)
        return prefers_model_file(fd) && is_sentencepiece(fd) ? "tokenizer.model" : "tokenizer.json";
    return model ? "tokenizer.model" : (json ? "tokenizer.json" : NULL);
}

static int load_file(struct dtx_tokenizer *t, int fd, const char *name, struct sha256 *sha, struct dtx_err *e)
{
    struct buf b = BUF_INIT;
    int rc = fd_read_file(fd, name, TOK_MAX_FILE, &b, e);

    if (rc == 0) {
        sha256_add(sha, name, strlen(name) + 1);
        sha256_add(sha, b.p ? b.p : "", b.len);
        if (strcmp(name, "tokenizer.model") == 0)
            rc = spm_load(t, b.p ? b.p : "", b.len, e);
        else
            rc = tokjson_load(t, b.p ? b.p : "", b.len, e);
    }
    buf_release(&b);
    return rc;
}

static struct dtx_tokenizer *new_tokenizer(void)
{
    struct dtx_tokenizer *t = calloc(1, sizeof(*t));

    if (!t)
        return NULL;
    t->unk = t->bos = t->eos = -1;
    memset(t->byte_id, 0xff, sizeof(t->byte_id));
    buf_addc(&t->text, '\0'); /* so that texts of no length have an address too */
    if (getrandom(&t->seed, sizeof(t->seed), GRND_NONBLOCK) != sizeof(t->seed))
        t->seed = (uint64_t)(uintptr_t)t;
    return t;
}

static int load_folder(struct dtx_tokenizer *t, int fd, struct sha256 *sha, struct dtx_err *e)
{
    const char *name = choose(fd);
    char tail[64];
    int rc;

    if (!name)
        return dtx_fail(e, -ENOENT, "no tokenizer.model and no tokenizer.json: copy the tokenizer too");
    rc = load_file(t, fd, name, sha, e);
    if (rc == 0)
        rc = special_load(t, fd, sha, e);
    if (rc == 0) /* bos and eos may come from config.json */
        sha256_add(sha, tail, (size_t)snprintf(tail, sizeof(tail), "\n%d %d\n", t->bos, t->eos));
    return rc;
}

int dtx_tokenizer_load(int dirfd, const char *dir, struct dtx_tokenizer **out, struct dtx_err *e)
{
    int fd = openat(dirfd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), rc = -ENOMEM;
    struct dtx_tokenizer *t;
    struct sha256 *sha;

    *out = NULL;
    if (fd < 0)
        return dtx_fail_errno(e, "cannot open folder %s", dir);
    t = new_tokenizer();
    sha = sha256_new();
    if (t && sha)
        rc = load_folder(t, fd, sha, e);
    else
        dtx_fail(e, rc, "out of memory");
    if (sha) {
        char hex[65];
        sha256_finish(sha, hex);
        if (t)
            memcpy(t->sha256, hex, sizeof(hex));
    }
    close(fd);
    if (rc) {
        dtx_tokenizer_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void dtx_tokenizer_free(struct dtx_tokenizer *t)
{
    if (!t)
        return;
    pre_release(t);
    free(t->pieces);
    buf_release(&t->text);
    free(t->normal.slot);
    free(t->user.slot);
    free(t->merges.v);
    free(t);
}

/* ---- encoding and decoding ---- */

int dtx_tokenizer_encode(const struct dtx_tokenizer *t, const char *text, size_t n, struct dtx_ids *ids,
                         struct dtx_err *e)
{
    struct merger m = {.t = t};
    size_t before = ids->n;
    int rc;

    if (n > TOK_MAX_TEXT)
        return dtx_fail(e, -EFBIG, "a text of %zu bytes: at most %d can be encoded at once", n, TOK_MAX_TEXT);
    rc = t->by_text ? spm_encode(&m, text, n, ids, e) : tokjson_encode(&m, text, n, ids, e);
    merge_release(&m);
    if (rc)
        ids->n = before;
    return rc;
}

/* Space signs back to spaces. */
static void add_spaced(struct buf *out, const char *s, size_t n)
{
    while (n) {
        const char *hit = memmem(s, n, SPACE_SIGN, 3);
        size_t run = hit ? (size_t)(hit - s) : n;
        buf_add(out, s, run);
        if (!hit)
            return;
        buf_addc(out, ' ');
        s += run + 3;
        n -= run + 3;
    }
}

static void decode_one(const struct dtx_tokenizer *t, int32_t id, struct buf *out)
{
    const struct piece *p = &t->pieces[id];
    const char *s = tok_text(t, id);
    char hex[3] = "";

    if (p->kind == PIECE_BYTE && p->len == 6) {
        memcpy(hex, s + 3, 2);
        buf_addc(out, (char)strtoul(hex, NULL, 16));
    } else if (t->byte_level) {
        buf_add(out, s, p->len);
    } else {
        add_spaced(out, s, p->len);
    }
}

void dtx_tokenizer_decode(const struct dtx_tokenizer *t, const int32_t *ids, size_t n, struct buf *out)
{
    size_t start = out->len;

    for (size_t i = 0; i < n; i++)
        if (ids[i] >= 0 && ids[i] < t->n && t->pieces[ids[i]].kind != PIECE_NONE &&
            !t->pieces[ids[i]].special)
            decode_one(t, ids[i], out);
    if (t->strip_space && !out->failed && out->len > start && out->p[start] == ' ') {
        memmove(out->p + start, out->p + start + 1, out->len - start);
        out->len--;
    }
}

/* ---- what there is ---- */

int32_t dtx_tokenizer_bos(const struct dtx_tokenizer *t)
{
    return t->bos;
}

int32_t dtx_tokenizer_eos(const struct dtx_tokenizer *t)
{
    return t->eos;
}

bool dtx_tokenizer_is_stop(const struct dtx_tokenizer *t, int32_t id)
{
    for (int i = 0; i < t->n_stops; i++)
        if (t->stops[i] == id)
            return true;
    return false;
}

int32_t dtx_tokenizer_size(const struct dtx_tokenizer *t)
{
    return t->n;
}

int32_t dtx_tokenizer_special(const struct dtx_tokenizer *t, const char *text)
{
    int32_t id = tok_by_text(t, text);

    return id >= 0 && (t->pieces[id].special || t->pieces[id].kind == PIECE_USER) ? id : -1;
}

const char *dtx_tokenizer_sha256(const struct dtx_tokenizer *t)
{
    return t->sha256;
}
