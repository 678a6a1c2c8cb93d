/*
 * safetensors: 8 bytes little-endian header length, a JSON header, raw tensors.  Files are hostile: header
 * length, JSON depth, names, types, shapes, offsets (in range, no overlap, no gaps), products (overflow) are
 * checked before use.
 */
#ifndef DTX_SAFETENSORS_H
#define DTX_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/dtx_engine.h"

enum st_type { ST_F32, ST_F16, ST_BF16, ST_OTHER };
enum { ST_MAX_DIMS = 8 };

struct st_tensor {
    char *name;
    enum st_type type;
    int ndim;
    int64_t shape[ST_MAX_DIMS];
    uint64_t elements, nbytes;
    const void *data; /* into the read-only map; may be unaligned */
};

struct st_set; /* one file, or the shards of an index, mapped read-only */

/* One file. */
int st_open(int dirfd, const char *path, struct st_set **out, struct dtx_err *e);
/* A model folder: model.safetensors, or model.safetensors.index.json and its shards (names without a slash).
 */
int st_open_model(int dirfd, const char *dir, struct st_set **out, struct dtx_err *e);
void st_close(struct st_set *s);
size_t st_count(const struct st_set *s);
const struct st_tensor *st_at(const struct st_set *s, size_t i);
const struct st_tensor *st_find(const struct st_set *s, const char *name); /* NULL: not there */
/* Bytes of all its files. */
uint64_t st_file_bytes(const struct st_set *s);
/* elements values of a tensor from element `first` on, as float32.  -EINVAL for ST_OTHER, -ERANGE
 * outside of the tensor. */
int st_read_f32(const struct st_tensor *t, uint64_t first, uint64_t elements, float *out);

/* Write a file: temporary name, fsync, rename, fsync of the folder.  Tensors in the order given; data points
 * to host memory of the type. */
int st_write(int dirfd, const char *path, const struct st_tensor *tensors, size_t n, struct dtx_err *e);

/* config.json of a model folder, checked (known architecture, sane sizes, hidden = heads * head_dim unless
 * head_dim is given, heads divisible by kv_heads, ...). */
int model_config_load(int dirfd, const char *dir, struct dtx_model_config *c, struct dtx_err *e);

#endif
