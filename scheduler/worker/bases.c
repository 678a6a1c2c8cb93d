#include "scheduler/worker/bases.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/clock.h"
#include "scheduler/base/fdio.h"
#include "scheduler/base/json.h"

static uint64_t mix(uint64_t h, const void *data, size_t n) /* FNV-1a */
{
    const unsigned char *p = data;

    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}

uint64_t folder_signature(int dirfd, const char *dir)
{
    int fd = openat(dirfd, dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    uint64_t sum = 1;
    struct dirent *ent;

    if (!d) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    while ((ent = readdir(d))) {
        struct stat st;
        uint64_t h = 14695981039346656037u;

        if (ent->d_name[0] == '.' || fstatat(fd, ent->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
            !S_ISREG(st.st_mode))
            continue;
        if (!strcmp(ent->d_name, "score.json") || !strcmp(ent->d_name, "info.json"))
            continue; /* written after the adapter; its weights are the same */
        h = mix(h, ent->d_name, strlen(ent->d_name) + 1);
        h = mix(h, &st.st_ino, sizeof(st.st_ino));
        h = mix(h, &st.st_size, sizeof(st.st_size));
        h = mix(h, &st.st_mtim, sizeof(st.st_mtim));
        sum += h; /* a sum: the order of readdir does not matter */
    }
    closedir(d);
    return sum ? sum : 1;
}

static void adapter_entry_free(struct adapter_entry *a)
{
    dtx_adapter_free(a->adapter);
    free(a->dir);
    free(a->template_name);
    free(a);
}

static void base_entry_free(struct base_entry *b)
{
    while (b->adapters) {
        struct adapter_entry *a = b->adapters;
        b->adapters = a->next;
        adapter_entry_free(a);
    }
    dtx_base_free(b->base);
    dtx_tokenizer_free(b->tokenizer);
    free(b->dir);
    free(b->name);
    free(b);
}

static void base_unlink(struct worker *w, struct base_entry *b)
{
    for (struct base_entry **p = &w->bases; *p; p = &(*p)->next)
        if (*p == b) {
            *p = b->next;
            break;
        }
    base_entry_free(b);
}

static bool drop_adapter(struct worker *w)
{
    struct adapter_entry **oldest = NULL, *a;

    for (struct base_entry *b = w->bases; b; b = b->next)
        for (struct adapter_entry **p = &b->adapters; *p; p = &(*p)->next)
            if (!(*p)->users && (!oldest || (*p)->used_ns < (*oldest)->used_ns))
                oldest = p;
    if (!oldest)
        return false;
    a = *oldest;
    *oldest = a->next;
    adapter_entry_free(a);
    return true;
}

bool bases_drop_one(struct worker *w, const struct base_entry *keep)
{
    struct base_entry *oldest = NULL;

    for (struct base_entry *b = w->bases; b; b = b->next)
        if (!b->users && b != keep && (!oldest || b->used_ns < oldest->used_ns))
            oldest = b;
    if (!oldest)
        return drop_adapter(w);
    base_unlink(w, oldest);
    return true;
}

void bases_release(struct worker *w)
{
    while (w->bases)
        base_unlink(w, w->bases);
}

static struct base_entry *find_base(const struct worker *w, const char *dir, uint64_t signature)
{
    for (struct base_entry *b = w->bases; b; b = b->next)
        if (!strcmp(b->dir, dir) && b->signature == signature)
            return b;
    return NULL;
}

bool base_resident(const struct worker *w, const char *dir)
{
    return find_base(w, dir, folder_signature(w->store, dir)) != NULL;
}

static const char *last_component(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int load_base(struct worker *w, const char *dir, uint64_t signature, struct base_entry **out,
                     struct dtx_err *e)
{
    struct base_entry *b = calloc(1, sizeof(*b));
    int rc;

    if (!b || !(b->dir = strdup(dir)) || !(b->name = strdup(last_component(dir)))) {
        if (b)
            free(b->dir);
        free(b);
        return dtx_fail(e, -ENOMEM, "out of memory loading %s", dir);
    }
    rc = dtx_tokenizer_load(w->store, dir, &b->tokenizer, e);
    if (rc == 0)
        rc = dtx_base_load(w->device, w->store, dir, &b->base, e);
    if (rc) {
        base_entry_free(b);
        return rc;
    }
    b->signature = signature;
    b->next = w->bases;
    w->bases = b;
    *out = b;
    return 0;
}

static int make_room_for(struct worker *w, const struct dtx_model_config *c, const char *dir, uint64_t beside,
                         struct dtx_err *e)
{
    uint64_t need = dtx_base_plan(w->device, c) + room_answers(w, c) + beside;
    char a[24], b[24], what[300];
    struct room r;

    room_look(w, &r);
    if (need > r.limit)
        return dtx_fail(e, -ENOMEM, "%s needs %s with what runs on it, %s may use %s in all",
                        last_component(dir), room_words(need, a), w->kind, room_words(r.limit, b));
    if (room_make(w, need, NULL))
        return 0;
    snprintf(what, sizeof(what), "model %s", last_component(dir));
    room_wait(w, need, what, e);
    return -EAGAIN;
}

int base_get(struct worker *w, const char *dir, uint64_t beside, struct base_entry **out, struct dtx_err *e)
{
    uint64_t signature = folder_signature(w->store, dir);
    struct base_entry *b = find_base(w, dir, signature);
    struct dtx_model_config c;
    int rc;

    if (!b) {
        rc = dtx_model_check(w->store, dir, &c, e);
        if (rc == 0)
            rc = make_room_for(w, &c, dir, beside, e);
        if (rc == 0)
            rc = load_base(w, dir, signature, &b, e);
        if (rc)
            return rc;
    }
    b->users++;
    b->used_ns = clock_mono_ns();
    *out = b;
    return 0;
}

void base_put(struct base_entry *b)
{
    if (b) {
        b->users--;
        b->used_ns = clock_mono_ns();
    }
}

/* The chat form that info.json of a tuned model names. */
static char *read_template(int store, const char *dir)
{
    char path[PATH_MAX];
    json_t *info = NULL;
    const char *name;
    char *copy;

    if (fd_join(path, dir, "info.json", NULL) || json_parse_file(store, path, 1 << 20, &info, NULL))
        return NULL;
    name = json_str(info, "template", NULL);
    copy = name ? strdup(name) : NULL;
    json_decref(info);
    return copy;
}

static int room_for_adapter(struct worker *w, struct base_entry *b, const char *dir, struct dtx_err *e)
{
    const struct dtx_model_config *c = dtx_base_config(b->base);
    struct dtx_train_params p;
    uint64_t need;
    char what[300];
    int rc = dtx_adapter_check(c, w->store, dir, &p, e);

    if (rc)
        return rc;
    need = dtx_adapter_plan(w->device, c, p.rank, p.targets);
    if (room_make(w, need, b))
        return 0;
    snprintf(what, sizeof(what), "adapter %s", last_component(dir));
    room_wait(w, need, what, e);
    return -EAGAIN;
}

int adapter_get(struct worker *w, struct base_entry *b, const char *dir, bool promised,
                struct adapter_entry **out, struct dtx_err *e)
{
    uint64_t signature = folder_signature(w->store, dir);
    struct adapter_entry *a;
    int rc;

    for (a = b->adapters; a; a = a->next)
        if (!strcmp(a->dir, dir) && a->signature == signature)
            break;
    if (!a) {
        rc = promised ? 0 : room_for_adapter(w, b, dir, e);
        if (rc)
            return rc;
        a = calloc(1, sizeof(*a));
        if (!a || !(a->dir = strdup(dir))) {
            free(a);
            return dtx_fail(e, -ENOMEM, "out of memory loading %s", dir);
        }
        rc = dtx_adapter_load(b->base, w->store, dir, &a->adapter, e);
        if (rc) {
            adapter_entry_free(a);
            return rc;
        }
        a->template_name = read_template(w->store, dir);
        a->signature = signature;
        a->base = b;
        a->next = b->adapters;
        b->adapters = a;
    }
    a->users++;
    a->used_ns = clock_mono_ns();
    *out = a;
    return 0;
}

void adapter_put(struct adapter_entry *a)
{
    if (a) {
        a->users--;
        a->used_ns = clock_mono_ns();
    }
}
