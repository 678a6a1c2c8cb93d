/*
 * The names in a folder, in the order of their cookies.
 *
 * A cookie (d_off) is a hash of the name: it means the same place in every listing of that folder, before and
 * after a restart, while other names come and go.  NFS servers open the folder anew for each READDIR and go
 * on from a cookie; an index would skip names there as soon as rm -r removes some.
 */
#ifndef DTX_FSD_LISTING_H
#define DTX_FSD_LISTING_H

#include <stddef.h>
#include <stdint.h>

struct listing_entry {
    int64_t cookie; /* of this entry; a reader goes on with the first greater one */
    char *name;
};

struct listing {
    struct listing_entry *entry;
    size_t n, cap;
    int failed; /* out of memory */
};

void listing_init(struct listing *l);
void listing_release(struct listing *l);
/* Names may be added twice. */
void listing_add(struct listing *l, const char *name);
/* Sort and remove doubles.  0 or -ENOMEM. */
int listing_finish(struct listing *l);
/* Index of the first entry with a cookie greater than `after` (0 = from the start). */
size_t listing_seek(const struct listing *l, int64_t after);
/* Add the names in a folder of the store, given by an O_PATH descriptor. */
int listing_add_folder(struct listing *l, int path_fd);

#endif
