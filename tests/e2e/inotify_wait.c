/*
 * What inotify says of a path, for the end-to-end scripts:
 *   inotify_wait SECONDS PATH EVENT[|EVENT...] [NAME]   waits for one of these events (of NAME in a folder);
 *   inotify_wait SECONDS PATH all                       prints every event until the time is over.
 * Prints "watching" once the watch is set, then each event.  Exit 0: it came; 1: it did not; 2: wrong use.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

static const struct {
    const char *name;
    uint32_t bit;
} events[] = {
    {"access", IN_ACCESS},
    {"modify", IN_MODIFY},
    {"attrib", IN_ATTRIB},
    {"close_write", IN_CLOSE_WRITE},
    {"close_nowrite", IN_CLOSE_NOWRITE},
    {"open", IN_OPEN},
    {"moved_from", IN_MOVED_FROM},
    {"moved_to", IN_MOVED_TO},
    {"create", IN_CREATE},
    {"delete", IN_DELETE},
    {"delete_self", IN_DELETE_SELF},
    {"move_self", IN_MOVE_SELF},
    {"ignored", IN_IGNORED},
    {"unmount", IN_UNMOUNT},
};
enum { EVENTS = sizeof(events) / sizeof(events[0]) };

static uint32_t parse(char *words)
{
    uint32_t mask = 0, one;

    for (char *w = strtok(words, "|"); w; w = strtok(NULL, "|")) {
        one = 0;
        for (int i = 0; i < EVENTS; i++)
            if (strcmp(w, events[i].name) == 0)
                one = events[i].bit;
        if (!one && strcmp(w, "all") != 0)
            exit(2);
        mask |= one ? one : IN_ALL_EVENTS;
    }
    return mask;
}

static int64_t now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void show(const struct inotify_event *e, int64_t start)
{
    printf("%lld", (long long)(now_ms() - start));
    for (int i = 0; i < EVENTS; i++)
        if (e->mask & events[i].bit)
            printf(" %s", events[i].name);
    printf("%s %s\n", e->mask & IN_ISDIR ? " isdir" : "", e->len ? e->name : "");
}

/* 1: the one that is waited for was among them. */
static int take(int fd, uint32_t mask, const char *name, int64_t start)
{
    _Alignas(struct inotify_event) char buf[65536];
    ssize_t n = read(fd, buf, sizeof(buf));
    int found = 0;

    for (char *p = buf; n > 0 && p < buf + n;) {
        const struct inotify_event *e = (const void *)p;
        show(e, start);
        if ((e->mask & mask) && (!name || (e->len && strcmp(e->name, name) == 0)))
            found = 1;
        p += sizeof(*e) + e->len;
    }
    fflush(stdout);
    return found;
}

int main(int argc, char **argv)
{
    int all = argc == 4 && strcmp(argv[3], "all") == 0;
    uint32_t mask = argc == 4 || argc == 5 ? parse(argv[3]) : 0;
    struct pollfd p = {.fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), .events = POLLIN};
    int64_t start = now_ms(), end;

    if (!mask)
        return 2;
    end = start + atoi(argv[1]) * 1000;
    if (inotify_add_watch(p.fd, argv[2], mask) < 0) {
        fprintf(stderr, "%s: %s\n", argv[2], strerror(errno));
        return 2;
    }
    puts("watching");
    fflush(stdout);
    while (now_ms() < end && poll(&p, 1, (int)(end - now_ms())) >= 0)
        if ((p.revents & POLLIN) && take(p.fd, mask, argc == 5 ? argv[4] : NULL, start) && !all)
            return 0;
    return all ? 0 : 1;
}
