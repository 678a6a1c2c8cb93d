/* Arbitrary texts as each kind of spec and as a prompt.  What is accepted must be accepted again in its
 * normalized form, and come out the same; what is refused must say why, in one line that a terminal can show.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mnt-layout/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_message(const struct dtx_err *e)
{
    if (e->code >= 0 || !e->msg[0])
        abort();
    for (const char *p = e->msg; *p; p++)
        if ((unsigned char)*p < 0x20)
            abort();
}

/* An experiment's empty lists stand for "not given" and are no longer there to be given. */
static json_t *as_dropped(const json_t *normalized)
{
    static const char *const lists[] = {"models", "datasets", "paramgroups", "seeds", "jobs", "questions"};
    json_t *v = json_deep_copy(normalized);

    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
        if (json_array_size(json_object_get(v, lists[i])) == 0)
            json_object_del(v, lists[i]);
    return v;
}

static void check_again(enum spec_kind kind, const json_t *normalized)
{
    struct dtx_err e;
    json_t *dropped = as_dropped(normalized), *again;
    char *text = json_dumps(dropped, JSON_COMPACT);

    if (!text || spec_parse(kind, "again", text, strlen(text), &again, &e) || !json_equal(normalized, again))
        abort();
    json_decref(again);
    json_decref(dropped);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data, *prompt;
    struct dtx_err e;
    json_t *out;
    size_t n;

    for (int kind = 0; kind < SPEC_KINDS; kind++) {
        if (spec_parse((enum spec_kind)kind, "f", text, size, &out, &e))
            check_message(&e);
        else
            check_again((enum spec_kind)kind, out);
        json_decref(out);
    }
    if (spec_parse_prompt("f", text, size, &out, &prompt, &n, &e))
        check_message(&e);
    else if (prompt < text || prompt + n != text + size)
        abort();
    json_decref(out);
    return 0;
}
