/* Pieces of HTML and SVG that pages and charts share. */
#ifndef DTX_REPORT_MARKUP_H
#define DTX_REPORT_MARKUP_H

#include <jansson.h>
#include "scheduler/base/buf.h"

/* Text for any place of an HTML or XML document: escaped, and what XML forbids (control characters, broken
 * UTF-8) replaced by U+FFFD. */
void markup_text(struct buf *out, const char *s);
void markup_textn(struct buf *out, const char *s, size_t n);

/* A colour for the i-th of many things, "#rrggbb": told apart by people with any kind of colour vision. */
enum { MARKUP_COLOR = 8 };
void markup_color(size_t i, char out[MARKUP_COLOR]);

void page_begin(struct buf *out, const char *title, int refresh_s /* 0: never */);
void page_end(struct buf *out);
void page_state(struct buf *out, const char *state); /* a coloured badge */

void page_label(struct buf *out, const char *key); /* a key in words */

/* A value as people read it; key says what it is ("seconds", "mem_used", "tokens_per_s", "score", "state",
 * ...). */
void page_value(struct buf *out, const char *key, const json_t *v);

/* A table of an array of objects.  Columns: those of `order` (NULL-terminated) that any row has, then any
 * others with plain values; members of an object called "metrics" are columns too.  The row whose "job" or
 * "name" is `best` is marked (NULL: none). */
void page_table(struct buf *out, const json_t *rows, const char *const *order, const char *best);

#endif
