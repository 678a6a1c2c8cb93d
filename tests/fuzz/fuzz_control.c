/*
 * One write to the control file of an experiment that waits for its model, as the file system passes it on: a
 * scheduler without workers takes it.  What it takes is words that are known, all of them.
 */
#include "scheduler/internal.h"
#include "tests/fuzz/fuzz.h"

static struct sched *sched;
static const struct caller root;

static void release(void)
{
    sched_close(sched);
}

static void drop(const char *path, const char *text)
{
    int fd = openat(sched_tree_fd(sched), path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    FUZZ_ASSERT(fd >= 0);
    sched_drop_event(sched, DROP_OPEN_WRITE, path, &root);
    sched_drop_event(sched, DROP_CREATE, path, &root);
    FUZZ_ASSERT(fd_write_all(fd, text, strlen(text)) == 0);
    sched_drop_event(sched, DROP_WRITE, path, &root);
    FUZZ_ASSERT(sched_flush(sched, path) == 0);
    close(fd);
    sched_drop_event(sched, DROP_RELEASE, path, &root);
}

static void wait_until_there(const char *path)
{
    struct sched_attr attr;
    struct layout_match m;

    FUZZ_ASSERT(layout_lookup(path, &m) == 0);
    for (int i = 0; sched_stat(sched, &m, &attr); i++) {
        FUZZ_ASSERT(i < 1000);
        usleep(10000);
    }
}

static void begin(void)
{
    struct sched_config c = {
        .store = fuzz_path, .devices = "cpu:0", .worker = "/bin/false", .version = "fuzz"};
    struct dtx_err e = {0};

    fuzz_dir();
    if (sched_open(&c, &sched, &e)) {
        fprintf(stderr, "%s\n", e.msg);
        abort();
    }
    drop("experiments/e.json", "{\"models\":[\"none\"],\"datasets\":[\"none\"],\"paramgroups\":[\"none\"]}");
    wait_until_there("experiments/e/control");
    FUZZ_ASSERT(atexit(release) == 0); /* after what libraries register on first use, so before it */
}

/* As sched_write is documented: whole words, each known. */
static bool all_known(enum layout_writer w, const char *text, size_t n)
{
    char word[256];
    size_t len = 0;

    for (size_t i = 0; i <= n; i++) {
        if (i < n && !strchr(" \t\r\n", text[i])) {
            word[len++] = text[i];
            continue;
        }
        word[len] = '\0';
        if (len && !control_word_known(w, word))
            return false;
        len = 0;
    }
    return true;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct layout_match m;
    int rc;

    if (!sched)
        begin();
    FUZZ_ASSERT(layout_lookup("experiments/e/control", &m) == 0);
    rc = sched_write(sched, &m, (const char *)data, size, &root);
    FUZZ_ASSERT(rc == (int)size || rc == -EINVAL);
    if (rc == -EINVAL)
        return 0;
    FUZZ_ASSERT(size < 256 && !memchr(data, '\0', size));
    FUZZ_ASSERT(all_known(m.entry->writer, (const char *)data, size));
    return 0;
}
