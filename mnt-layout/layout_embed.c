/*
 * Long texts become part of the program by the assembler's .incbin (gcc and clang know it alike), so that
 * they stay ordinary files.  Paths are relative to the repository's root, where builds run.
 */
#include "mnt-layout/layout.h"

#include <string.h>

/* clang-format off */
#define TEXTS(T) \
    T(bin_dtx,         "bin/dtx",                        "bin_dtx.sh") \
    T(man,             "man",                            "text/man.md") \
    T(root,            "",                               "text/root.md") \
    T(bin,             "bin",                            "text/bin.md") \
    T(templates,       "templates",                      "text/templates.md") \
    T(schemas,         "schemas",                        "text/schemas.md") \
    T(datasets,        "datasets",                       "text/datasets.md") \
    T(paramgroups,     "paramgroups",                    "text/paramgroups.md") \
    T(evaluations,     "evaluations",                    "text/evaluations.md") \
    T(plugins,         "plugins",                        "text/plugins.md") \
    T(plugins_data,    "plugins/data",                   "text/plugins_data.md") \
    T(plugins_scoring, "plugins/scoring",                "text/plugins_scoring.md") \
    T(models,          "models",                         "text/models.md") \
    T(models_base,     "models/base",                    "text/models_base.md") \
    T(models_tuned,    "models/tuned",                   "text/models_tuned.md") \
    T(models_compare,  "models/compare",                 "text/models_compare.md") \
    T(services,        "services",                       "text/services.md") \
    T(services_ask,    "services/{name}/ask",            "text/services_ask.md") \
    T(experiments,     "experiments",                    "text/experiments.md") \
    T(experiment,      "experiments/{exp}",              "text/experiment.md") \
    T(jobs,            "experiments/{exp}/jobs",         "text/jobs.md") \
    T(job,             "experiments/{exp}/jobs/{job}",   "text/job.md") \
    T(devices,         "devices",                        "text/devices.md") \
    T(category,        "models/by-*",                    "text/category.md")

#define EMBED(id, name, file) \
    extern const char layout_text_##id[], layout_text_##id##_end[]; \
    __asm__(".pushsection .rodata\n" \
            ".global layout_text_" #id "\n.global layout_text_" #id "_end\n" \
            "layout_text_" #id ":\n.incbin \"mnt-layout/" file "\"\n" \
            "layout_text_" #id "_end:\n.byte 0\n" \
            ".popsection\n");
TEXTS(EMBED)

static const struct {
    const char *name, *text, *end;
} texts[] = {
#define ROW(id, name, file) {name, layout_text_##id, layout_text_##id##_end},
    TEXTS(ROW)
};
/* clang-format on */

const char *layout_text(const char *name, size_t *len)
{
    if (strncmp(name, "models/by-", 10) == 0 && !strchr(name + 10, '/'))
        name = "models/by-*";
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        if (strcmp(texts[i].name, name) != 0)
            continue;
        *len = (size_t)(texts[i].end - texts[i].text);
        return texts[i].text;
    }
    return NULL;
}
