/* Folders and small model files for the tests of kernels/: safetensors, config.json, tokenizer.model. */
#ifndef DTX_TEST_FILES_FIXTURE_H
#define DTX_TEST_FILES_FIXTURE_H

#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "scheduler/base/buf.h"
#include "scheduler/base/fdio.h"

#define UNUSED_FN __attribute__((unused))

/* A new folder under /tmp, opened; fx_drop removes it. */
struct fx {
    char path[64];
    int fd;
};

UNUSED_FN static struct fx fx_new(void)
{
    struct fx f;

    snprintf(f.path, sizeof(f.path), "/tmp/dtx-test-XXXXXX");
    if (!mkdtemp(f.path))
        abort();
    f.fd = open(f.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (f.fd < 0)
        abort();
    return f;
}

UNUSED_FN static void fx_drop(struct fx *f)
{
    close(f->fd);
    if (fd_remove_tree(AT_FDCWD, f->path, NULL))
        abort();
}

UNUSED_FN static void fx_put(const struct fx *f, const char *name, const void *data, size_t n)
{
    int fd = openat(f->fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    if (fd < 0 || fd_write_all(fd, data, n) || close(fd))
        abort();
}

UNUSED_FN static void fx_puts(const struct fx *f, const char *name, const char *text)
{
    fx_put(f, name, text, strlen(text));
}

/* A safetensors file: this header, whatever it says, and n bytes of data (zeros if data is NULL). */
UNUSED_FN static void fx_put_st(const struct fx *f, const char *name, const char *header, const void *data,
                                size_t n)
{
    struct buf b = BUF_INIT;
    uint64_t len = strlen(header);

    buf_add(&b, &len, 8);
    buf_adds(&b, header);
    if (data) {
        buf_add(&b, data, n);
    } else {
        for (size_t i = 0; i < n; i++)
            buf_addc(&b, '\0');
    }
    if (b.failed)
        abort();
    fx_put(f, name, b.p, b.len);
    buf_release(&b);
}

UNUSED_FN static bool fx_exists(const char *path)
{
    return access(path, R_OK) == 0;
}

/* ---- a SentencePiece model ---- */

UNUSED_FN static void pb_varint(struct buf *b, uint64_t v)
{
    for (; v >= 128; v >>= 7)
        buf_addc(b, (char)(v & 127) | (char)128);
    buf_addc(b, (char)v);
}

UNUSED_FN static void pb_int(struct buf *b, unsigned field, uint64_t v)
{
    pb_varint(b, field << 3);
    pb_varint(b, v);
}

UNUSED_FN static void pb_bytes(struct buf *b, unsigned field, const void *data, size_t n)
{
    pb_varint(b, field << 3 | 2);
    pb_varint(b, n);
    buf_add(b, data, n);
}

UNUSED_FN static void spm_piece(struct buf *b, const char *text, float score, unsigned kind)
{
    struct buf p = BUF_INIT;

    pb_bytes(&p, 1, text, strlen(text));
    pb_varint(&p, 2 << 3 | 5);
    buf_add(&p, &score, 4);
    pb_int(&p, 3, kind);
    pb_bytes(b, 1, p.p, p.len);
    buf_release(&p);
}

/* Pieces 0-2 <unk> <s> </s> and, with bytes, 3-258 the bytes. */
UNUSED_FN static void spm_begin(struct buf *b, bool bytes)
{
    char hex[8];

    spm_piece(b, "<unk>", 0, 2);
    spm_piece(b, "<s>", 0, 3);
    spm_piece(b, "</s>", 0, 3);
    for (unsigned i = 0; bytes && i < 256; i++) {
        snprintf(hex, sizeof(hex), "<0x%02X>", i);
        spm_piece(b, hex, 0, 6);
    }
}

/* model_type 2 is BPE. */
UNUSED_FN static void spm_end(struct buf *b, unsigned model_type, bool bytes, bool dummy_prefix, bool squeeze,
                              const char *map)
{
    struct buf p = BUF_INIT;

    pb_int(&p, 3, model_type);
    pb_int(&p, 35, bytes);
    pb_bytes(b, 2, p.p, p.len);
    buf_clear(&p);
    pb_bytes(&p, 1, map ? "nmt_nfkc" : "identity", 8);
    if (map)
        pb_bytes(&p, 2, map, strlen(map));
    pb_int(&p, 3, dummy_prefix);
    pb_int(&p, 4, squeeze);
    pb_bytes(b, 3, p.p, p.len);
    buf_release(&p);
}

#endif
