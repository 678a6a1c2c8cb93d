/*
 * Open files that a dead dtxd left with the keeper or in the shared memory (fsd/handles.c), with damage:
 * taken over, found, moved, closed once each, whatever kind, node and numbers they claim.
 *
 * The input: items of a byte of flags (read_item), 8 bytes (of the handle's number: so that some meet) and
 * what was kept of it.
 */
#include <errno.h>
#include <sys/mman.h>

#include "fsd/handles.h"
#include "fsd/nodes.h"
#include "scheduler/base/log.h"
#include "tests/fuzz/fuzz.h"

enum { ITEMS = 8 };

static struct nodes *nodes;

static void make_nodes(void)
{
    static struct kept_shared shared;
    char path[128];
    struct dtx_err e;

    fuzz_dir();
    snprintf(path, sizeof(path), "%s/nodes.db", fuzz_path);
    FUZZ_ASSERT(nodes_open(path, &shared.changes, true, &nodes, &e) == 0);
}

static int some_text(uint8_t n)
{
    int fd = n & 1 ? memfd_create("fuzz", MFD_CLOEXEC) : -1;

    if (fd >= 0 && n & 2)
        FUZZ_ASSERT(write(fd, "text", 4) == 4);
    return fd;
}

static void moved(void *arg, const struct handle *h, const char *was)
{
    FUZZ_ASSERT(h->path && was);
}

static void use(struct handles *t, struct handle *h, const struct caller *who)
{
    struct handle *found = handles_get(t, h->fh);
    struct buf path = BUF_INIT;

    FUZZ_ASSERT(found == h && h->who.uid == who->uid && h->restored);
    FUZZ_ASSERT(handles_of_request(t, h->unique));
    handles_get_dir(t, h->fh, h->id);
    if (h->writer)
        handles_set_path(t, h, strdup("a/b"));
    handles_move(t, "a", "c", false, moved, NULL);
    nodes_leave(nodes, h->id);
    handles_give_away(t, h->id, h->node.is_dir);
    nodes_stay(nodes, h->id);
    FUZZ_ASSERT(handles_writer_path(t, h, &path) == (bool)h->writer);
    FUZZ_ASSERT(!h->writer || strcmp(path.p, "c/b") == 0);
    buf_release(&path);
}

static int reopen(void *arg, uint64_t id, int flags)
{
    return flags & 1 ? -ESTALE : memfd_create("fuzz", MFD_CLOEXEC);
}

static struct kept_shared shared;

/* As the keeper has it, or (4) as it is in the shared memory at n, with a text (8: too long a one). */
static size_t read_item(const uint8_t *data, size_t size, size_t n, struct keeper_item *item)
{
    size_t take = size - 9 < sizeof(item->data) ? size - 9 : sizeof(item->data);
    struct kept_file *p = &shared.file[n];

    *item = (struct keeper_item){.fd = -1, .kind = KEEPER_HANDLE};
    memcpy(&item->key, data + 1, 8);
    memcpy(item->data, data + 9, take);
    item->key = item->key << 4 | ITEMS | n; /* never 0, and each number is kept once */
    *p = (struct kept_file){.fh = data[0] & 4 ? item->key : 0, .text = data[0] & 8 ? KEPT_TEXT + 1 : data[0]};
    memcpy(p->data, item->data, sizeof(p->data));
    if (!p->fh)
        item->fd = some_text(data[0]);
    return 9 + take;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct kept kept = {.sock = -1, .shared = &shared, .mount_fd = -1};
    struct keeper_item item[ITEMS];
    struct handles *t;
    uint64_t fh[ITEMS];
    size_t items = 0, n = 0;

    if (!nodes)
        make_nodes();
    log_to_fd(-1); /* there is no keeper */
    for (size_t taken; items < ITEMS && size >= 9; data += taken, size -= taken) {
        taken = read_item(data, size, items, &item[items]);
        items++;
    }
    t = handles_new(nodes, &kept, true);
    FUZZ_ASSERT(t);
    for (size_t i = 0; i < items; i++) {
        struct caller who;
        struct handle *h;
        int rc = 0;
        if (shared.file[i].fh)
            rc = handles_restore_kept(t, i, reopen, NULL, &h, &who);
        else
            FUZZ_ASSERT(handles_restore(t, &item[i], &h, &who) == 0);
        if (item[i].fd >= 0)
            close(item[i].fd);
        FUZZ_ASSERT(rc == 0 || (rc < 0 && !shared.file[i].fh));
        if (rc)
            continue;
        use(t, h, &who);
        fh[n++] = h->fh;
    }
    while (n--) {
        uint64_t id = handles_get(t, fh[n])->id;
        handles_remove(t, fh[n]);
        nodes_forget(nodes, id, UINT64_MAX);
        FUZZ_ASSERT(!handles_get(t, fh[n]));
    }
    for (size_t i = 0; i < KEPT_FILES; i++)
        FUZZ_ASSERT(!shared.file[i].fh);
    handles_free(t);
    return 0;
}
