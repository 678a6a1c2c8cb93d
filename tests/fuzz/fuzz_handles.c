/*
 * Open files that a dead dtxd left with the keeper (fsd/handles.c), with damage: taken over, found, moved,
 * closed once each, whatever kind, node and numbers they claim.
 *
 * The input: items of 8 bytes (of the handle's number: so that some meet) and what the keeper kept of it.
 */
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
    FUZZ_ASSERT(handles_writer_path(t, h, &path) == (bool)h->writer);
    FUZZ_ASSERT(!h->writer || strcmp(path.p, "c/b") == 0);
    buf_release(&path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct kept_shared shared;
    struct kept kept = {.sock = -1, .shared = &shared, .mount_fd = -1};
    struct handles *t;
    uint64_t fh[ITEMS];
    size_t n = 0;

    if (!nodes)
        make_nodes();
    log_to_fd(-1); /* there is no keeper */
    t = handles_new(nodes, &kept);
    FUZZ_ASSERT(t);
    for (; n < ITEMS && size >= 9; n++) {
        struct keeper_item item = {.fd = some_text(data[0]), .kind = KEEPER_HANDLE};
        size_t take = size - 9 < sizeof(item.data) ? size - 9 : sizeof(item.data);
        struct caller who;
        struct handle *h;
        memcpy(&item.key, data + 1, 8);
        memcpy(item.data, data + 9, take);
        data += 9 + take;
        size -= 9 + take;
        item.key = item.key << 4 | ITEMS | n; /* never 0, and the keeper has each number once */
        FUZZ_ASSERT(handles_restore(t, &item, &h, &who) == 0);
        use(t, h, &who);
        fh[n] = h->fh;
        if (item.fd >= 0)
            close(item.fd);
    }
    while (n--) {
        uint64_t id = handles_get(t, fh[n])->id;
        handles_remove(t, fh[n]);
        nodes_forget(nodes, id, UINT64_MAX);
        FUZZ_ASSERT(!handles_get(t, fh[n]));
    }
    handles_free(t);
    return 0;
}
