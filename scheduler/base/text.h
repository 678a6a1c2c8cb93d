/*
 * UTF-8 and names.  Every name and text that a stranger sends goes through these checks.
 */
#ifndef DTX_BASE_TEXT_H
#define DTX_BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "scheduler/base/err.h"

/* Length (1-4) of the valid UTF-8 character at s, 0 if there is none within n bytes (overlong, surrogate,
 * cut). */
size_t text_utf8_step(const char *s, size_t n);
bool text_utf8_valid(const char *s, size_t n);
/* Offset of the first invalid byte, or n. */
size_t text_utf8_bad_at(const char *s, size_t n);
/* Length of the white space character (Unicode's White_Space) at s, 0 if there is none. */
size_t text_space_step(const char *s, size_t n);
/* Length of the character at s that steers a terminal or turns a line around: control characters (of ASCII,
 * and U+0080 to U+009F), ends of lines and paragraphs, overrides of the direction of writing.  0: it is none.
 */
size_t text_control_step(const char *s);
/* Spaces in their places: a text of somebody's that is shown to others. */
void text_flatten(char *s);
bool text_is_ascii(const char *s);
/* Nothing but spaces, tabs and line ends? */
bool text_is_blank(const char *s, size_t n);
/* Leave out white space at both ends: moves *s and shortens *n. */
void text_strip(const char **s, size_t *n);

/* Names of editor, rsync, Finder and NFS leftovers (.* *~ *.sw? *.tmp *.part sed?????? ._* .nfs* 4913):
 * stored like other files, never taken for specs or objects. */
bool name_is_leftover(const char *name);

/* Check the name of an object: UTF-8, 1 to 63 bytes, no leading dot, no slash or control character, not
 * ending in ".status", not a leftover's.  The text in *e says what is wrong. */
int name_check(const char *name, struct dtx_err *e);

/* NFC of a name into out (size outsz); -EINVAL for bad UTF-8, -ENAMETOOLONG. */
int name_nfc(const char *name, char *out, size_t outsz);

/* Edit distance, for "did you mean"; returns the index of the nearest of n words within distance 3, or -1. */
int text_nearest(const char *word, const char *const *words, int n);

/* Bytes of "1048576", "50 GiB", "50G" (of 1024) or "50 GB" (of 1000); -1 where it is none or does not fit. */
int64_t text_parse_size(const char *s);
/* "49.9 GiB"; out has room for 24 bytes. Returns out. */
const char *text_size(int64_t bytes, char out[24]);

#endif
