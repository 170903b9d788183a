/* lora.c - adapters made with the peft library: at run time and merged, against its logits
 *
 * tests/make_lora_reference.py makes the cases, from the bases in tests/cases. */
#define SUPPORT_API_ONLY
#include "support.h"

static const double lora_bound = 2e-4;

static const struct {
    const char *name, *base;
} cases[] = { { "jamba-list", "jamba-dense" }, { "jamba-seed", "jamba-mixed" }, { "jamba-tied", "jamba-flags" },
    { "jamba-experts", "jamba-moe" }, { "jamba-fused", "jamba-moe" }, { "jamba-fused-down", "jamba-moe" },
    { "mamba", "mamba" }, { "mamba2", "mamba2" }, { "zamba", "zamba" }, { "zamba2-blocks", "zamba2-abc" },
    { "zamba2-adapters", "zamba2-abc" }, { "llama-layers", "llama" }, { "llama-ends", "llama" },
    { "mixtral-experts", "mixtral" }, { "mixtral-fused", "mixtral" } };

static const struct {
    const char *name, *base, *words;
} refused[] = { { "refuse-dora", "llama", "use_dora" }, { "refuse-modules-to-save", "llama", "modules_to_save" },
    { "refuse-bias", "llama", "bias" }, { "refuse-lora-bias", "llama", "lora_bias" },
    { "refuse-tokens", "llama", "trainable_token_indices" } };

static char errors[4096];

static int run_convert(const char *const *argv)
{
    return tool_run_with("convert", argv, "/dev/null", "/dev/null", errors, sizeof errors);
}

static void *case_read(const char *name, const char *file, size_t *count)
{
    return items_read("tests/cases-lora", name, file, count);
}

/* The base and its adapter, the base with it merged. */
typedef struct subject {
    const char *name;
    char base[PATH_ROOM], adapter[PATH_ROOM], merged[PATH_ROOM];
    int32_t *prompt;
    float *want;
    size_t count, vocab;
} subject;

static bool subject_convert(subject *s, const char *base)
{
    char folder[PATH_ROOM], lora[PATH_ROOM];
    const char *adapter[] = { lora, s->adapter, "--base", s->base, "--force", NULL };
    const char *merged[] = { folder, s->merged, "--type", "f32", "--merge", lora, "--force", NULL };
    snprintf(folder, sizeof folder, "tests/cases/%s", base);
    snprintf(lora, sizeof lora, "tests/cases-lora/%s", s->name);
    temp_path(s->adapter, "case.jamba-lora");
    temp_path(s->merged, "merged.jamba");
    return convert(folder, base, "f32", s->base) && CHECK_THAT(run_convert(adapter) == 0, "--base: %s", errors)
        && CHECK_THAT(run_convert(merged) == 0, "--merge: %s", errors);
}

static void subject_compare(subject *s, const char *path, bool adapted)
{
    jamba_model *model = load_for_cpu(path, JAMBA_CPU_BEST);
    jamba_adapter *adapter = NULL;
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    logits_rows rows;
    double worst;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.context = (int32_t)s->count;
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    if (!CHECK(model != NULL)) return;
    rows.count = s->count;
    rows.seen = 0;
    rows.vocab = s->vocab = (size_t)model_vocab(model);
    rows.rows = (float *)calloc(s->count * s->vocab, sizeof *rows.rows);
    test_require(rows.rows != NULL, "out of memory", s->name);
    if (adapted)
        CHECK_THAT(jamba_adapter_load(&adapter, model, jamba_from_file(s->adapter), &error) == JAMBA_OK, "%s",
            error.message);
    if (CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK)) {
        if (adapter) CHECK(jamba_session_set_adapters(session, &adapter, NULL, 1) == JAMBA_OK);
        CHECK(jamba_eval(session, s->prompt, s->count) == JAMBA_OK);
        worst = test_worst(rows.rows, s->want, s->count * s->vocab);
        CHECK_THAT(worst <= lora_bound, "%s differs from the reference by %.3g", adapted ? "run time" : "merged",
            worst);
        printf("lora: %-18s %-9s worst error %.2e\n", s->name, adapted ? "run time" : "merged", worst);
        jamba_session_free(session);
    }
    free(rows.rows);
    jamba_adapter_free(adapter);
    jamba_model_free(model);
}

static void test_case(const char *name, const char *base)
{
    subject s;
    size_t wanted;
    memset(&s, 0, sizeof s);
    s.name = name;
    s.prompt = (int32_t *)case_read(name, "prompt.i32", &s.count);
    s.want = (float *)case_read(name, "expected.f32", &wanted);
    if (subject_convert(&s, base)) {
        subject_compare(&s, s.base, true);
        CHECK(wanted == s.count * s.vocab);
        subject_compare(&s, s.merged, false);
    }
    free(s.prompt);
    free(s.want);
}

/* What is not supported is named, and leaves no file. */
static void test_refused(const char *name, const char *base, const char *words)
{
    char folder[PATH_ROOM], lora[PATH_ROOM], path[PATH_ROOM], out[PATH_ROOM];
    const char *argv[] = { lora, out, "--base", path, NULL };
    snprintf(folder, sizeof folder, "tests/cases/%s", base);
    snprintf(lora, sizeof lora, "tests/cases-lora/%s", name);
    remove(temp_path(out, "refused.jamba-lora"));
    if (!convert(folder, base, "f32", path)) return;
    CHECK_THAT(run_convert(argv) == 1 && strstr(errors, words), "%s: '%s' lacks '%s'", name, errors, words);
    CHECK_THAT(!file_exists(out), "%s was left behind", out);
}

int main(int argc, char **argv)
{
    size_t i;
    test_start(argc, argv);
    for (i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!test_begin("%s on %s", cases[i].name, cases[i].base)) continue;
        test_case(cases[i].name, cases[i].base);
        test_end();
    }
    for (i = 0; i < sizeof refused / sizeof *refused; i++) {
        if (!test_begin("%s", refused[i].name)) continue;
        test_refused(refused[i].name, refused[i].base, refused[i].words);
        test_end();
    }
    return test_summary();
}
