/*
 * Prompts with settings in front.  An input is the text between two fences; a first byte of 0xff makes the
 * rest the whole prompt file.
 */
#include "mnt-layout/spec.h"
#include "tests/fuzz/fuzz.h"

/* The settings mean what they mean as a spec of their own, and a prompt without fences has the defaults. */
static void check_settings(const json_t *settings, const char *prompt, size_t n)
{
    json_t *defaults, *again;
    const char *rest;
    size_t len;
    char *text = json_dumps(settings, JSON_COMPACT);
    struct dtx_err e = {0};

    FUZZ_ASSERT(text && spec_parse(SPEC_COMPARE, "again", text, strlen(text), &again, &e) == 0);
    FUZZ_ASSERT(json_equal(settings, again));
    if (n < 3 || memcmp(prompt, "---", 3) != 0) {
        FUZZ_ASSERT(spec_parse_prompt("plain", prompt, n, &defaults, &rest, &len, &e) == 0);
        FUZZ_ASSERT(rest == prompt && len == n);
        json_decref(defaults);
    }
    json_decref(again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    bool whole = size && data[0] == 0xff;
    struct buf b = BUF_INIT;
    struct dtx_err e = {0};
    json_t *settings;
    const char *prompt;
    size_t n;

    buf_adds(&b, whole ? "" : "---\n");
    buf_add(&b, data + whole, size - whole);
    buf_adds(&b, whole ? "" : "\n---\nWhat is it?\n");
    if (spec_parse_prompt("p.txt", b.p ? b.p : "", b.len, &settings, &prompt, &n, &e)) {
        FUZZ_ASSERT(!settings && e.code < 0 && strncmp(e.msg, "p.txt", 5) == 0);
    } else {
        FUZZ_ASSERT(json_is_object(settings) && prompt + n == (b.p ? b.p + b.len : prompt));
        FUZZ_ASSERT(whole || (n > 0 && prompt[n - 1] == '\n'));
        check_settings(settings, prompt, n);
        json_decref(settings);
    }
    buf_release(&b);
    return 0;
}
