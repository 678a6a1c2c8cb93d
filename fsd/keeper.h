/*
 * The keeper: a small parent of dtxd proper, so that the mount outlives it.
 *
 * The keeper runs one child (the same program with --kept), which does all the work.  What the next child
 * needs to go on it gives to the keeper: descriptors (of /dev/fuse, of the shared memory of kept.h, of open
 * files), each with a kind, a key and some bytes that mean nothing to the keeper.  A child that dies is
 * started again and inherits them all; meanwhile the kernel keeps the requests of programs waiting, because
 * /dev/fuse is still open.
 *
 *   child dies, is killed          another is started (at once; later and later when they die within a
 * moment) MAX_QUICK deaths in a row      the mount is taken away, exit status 1 child ends with status 0
 * unmounted: the keeper ends with 0 child ends with KEEPER_AGAIN   it was asked to by SIGHUP: another is
 * started from the program on disk SIGTERM, SIGINT                passed on; the child unmounts child ends
 * before it was ready at the very first start: that is an error of the start
 *
 * One thread, no libfuse, no allocation but the table of what is kept.
 */
#ifndef DTX_FSD_KEEPER_H
#define DTX_FSD_KEEPER_H

#include <stdbool.h>
#include <stdint.h>

#include "scheduler/base/err.h"

/* KEEPER_VERSION: of everything that a new child takes over, kept.h and the messages below; a program that
 * answers `--takes VERSION` with exit status 0 can take over from a child of that version. */
enum { KEEPER_VERSION = 3, KEEPER_DATA = 256, KEEPER_AGAIN = 75 };

enum keeper_op {
    KEEPER_PUT = 1, /* keep the descriptor that comes along (or none) */
    KEEPER_DROP,
    KEEPER_READY,  /* the mount is live; key: 1 if the kernel can resend requests */
    KEEPER_FAILED, /* data: words, NUL-terminated; more of it may follow */
};

enum keeper_kind { KEEPER_MOUNT = 1, KEEPER_SHARED, KEEPER_HANDLE, KEEPER_HIDDEN };

/* One packet of the socket. */
struct keeper_message {
    uint32_t op, kind;
    uint64_t key;
    uint8_t data[KEEPER_DATA];
};

/* A new child finds these in a file that it inherits. */
struct keeper_item {
    int32_t fd; /* -1: none; inherited */
    uint32_t kind;
    uint64_t key;
    uint8_t data[KEEPER_DATA];
};

struct keeper_config {
    const char *program; /* absolute path: what is there when a child is started */
    char *const *argv;   /* of the child, argv[0] first, NULL-terminated; --kept is added */
    const char *mountpoint;
    bool remount;               /* do not take over: after a death, mount anew */
    void (*started)(void *arg); /* called once, when the mount is live */
    void *started_arg;
};

/* Run until the mount is gone: 0 after an orderly end, else an error.  SIGTERM, SIGINT, SIGHUP and SIGCHLD
 * must be blocked. */
int keeper_run(const struct keeper_config *config, struct dtx_err *e);

#endif
