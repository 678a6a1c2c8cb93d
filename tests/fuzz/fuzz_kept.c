/*
 * What a dtxd that died left to the next one (fsd/kept.h), with damage: the list of what the keeper keeps,
 * the shared memory with INIT, begun requests and the log of node changes.  Taken over within bounds, or
 * refused in words.
 *
 * The input: one byte (1: the memory has the right size, 2: a list without a whole number of items), one of
 * how many bytes of the rest are the head of the shared memory, 8 of where the other bytes of it go, then the
 * list and the memory.
 */
#include <sys/mman.h>
#include <sys/socket.h>

#include "fsd/kept.h"
#include "tests/fuzz/fuzz.h"

enum { LIST_MAX = 16 };

static int memory(const void *data, size_t n, size_t size)
{
    int fd = memfd_create("fuzz", MFD_CLOEXEC);

    FUZZ_ASSERT(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
    FUZZ_ASSERT(n == 0 || pwrite(fd, data, n < size ? n : size, 0) >= 0);
    return fd;
}

/* The items, their descriptors replaced by ours: one of them the shared memory. */
static int make_list(const uint8_t *data, size_t n, bool torn, int shared)
{
    struct keeper_item items[LIST_MAX + 1] = {{.fd = shared, .kind = KEEPER_SHARED}};
    size_t count = 1;

    for (; count <= LIST_MAX && n >= 16; count++) {
        size_t take = n < sizeof(items[0]) ? n : sizeof(items[0]);
        memcpy(&items[count], data, take);
        items[count].fd = items[count].key & 1 ? memory("x", 1, 1) : -1;
        data += take;
        n -= take;
    }
    if (torn && items[count - 1].fd >= 0) /* nobody will know of it */
        close(items[count - 1].fd);
    return memory(items, count * sizeof(items[0]), count * sizeof(items[0]) - (torn ? 5 : 0));
}

static void use(struct kept *k)
{
    static uint8_t sink[sizeof(k->shared->init)];
    struct nodes_change *list = NULL;
    int rc = change_log_read(&k->shared->changes, &list);

    FUZZ_ASSERT(rc == 0 || rc == -EIO || rc == -ENOMEM);
    while (list) {
        struct nodes_change *next = list->next;
        FUZZ_ASSERT(strlen(list->name) < CHANGE_LOG_BYTES);
        free(list);
        list = next;
    }
    memcpy(sink, k->shared->init, k->shared->init_len);
    memcpy(sink, k->shared->reply, k->shared->reply_len);
    for (uint64_t unique = 2; unique < 8; unique += 2) {
        struct kept_turn t;
        kept_request(unique | (uint64_t)1 << 63);
        t = kept_begin(k, 7);
        FUZZ_ASSERT(t.again || t.note == 7);
        kept_done(k, -17);
        kept_answered(k);
        kept_request(unique | (uint64_t)1 << 63);
        kept_answered(k);
    }
}

/* The lowest number that is free. */
static int next_fd(void)
{
    int fd = dup(0);

    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t whole = sizeof(struct kept_shared), head, list_n;
    uint64_t at;
    struct kept *k = NULL;
    struct dtx_err e = {0};
    char arg[64];
    int pair[2], shared, list, rc, before = next_fd();

    if (size < 10)
        return 0;
    memcpy(&at, data + 2, 8);
    head = data[1] < size - 10 ? data[1] : size - 10;
    list_n = (size - 10 - head) / 2;
    shared = memory(data + 10, head, data[0] & 1 ? whole : whole - 1);
    at %= whole;
    if (pwrite(shared, data + 10 + head + list_n, size - 10 - head - list_n, (off_t)at) < 0)
        abort();
    list = make_list(data + 10 + head, list_n, data[0] & 2, shared);
    FUZZ_ASSERT(lseek(list, 0, SEEK_SET) == 0 &&
                socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, pair) == 0);
    snprintf(arg, sizeof(arg), "%d:%d", pair[0], list);
    rc = kept_open(arg, &k, &e);
    FUZZ_ASSERT(rc == 0 || (rc == e.code && e.msg[0]));
    if (rc == 0) {
        use(k);
        if (k->mount_fd >= 0) /* the session's, which closes it */
            close(k->mount_fd);
        kept_close(k);
    }
    close(pair[1]);
    FUZZ_ASSERT(next_fd() == before);
    return 0;
}
