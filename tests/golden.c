/* golden.c - logits of every golden case against those of the reference implementation
 *
 * Prefill, token by token, and 16 greedy tokens; at f32 storage, and in the 16-bit type of a
 * checkpoint that is stored so. */
#define SUPPORT_API_ONLY
#include "support.h"

/* Largest difference from the reference, which is itself float32: its prefill and decode differ by
 * up to 9e-5 (see make_reference.py). */
static const double golden_bound = 2e-4;

/* The reference clamps the time steps of Mamba-2 in prefill and not in decode; the library always does. Where
 * that shows, in these cases, its prefill is the measure for decode too, and its decode for nothing. */
static bool clamps_in_prefill_only(const char *name)
{
    return strstr(name, "-dt-") != NULL;
}

typedef struct golden_run {
    const char *name, *type;
    jamba_model *model;
    size_t vocab, prompt_count;
    int32_t *prompt;
    double worst; /* of all checks so far */
} golden_run;

static void compare_rows(golden_run *run, const char *what, const float *got, const float *want, size_t rows)
{
    double worst = test_worst(got, want, rows * run->vocab);
    CHECK_THAT(worst <= golden_bound, "%s differs from the reference by %.3g, allowed %.3g", what, worst, golden_bound);
    if (worst > run->worst) run->worst = worst;
}

static void compare_file(golden_run *run, const char *file, const float *got)
{
    size_t count;
    float *want = (float *)golden_read(run->name, file, &count);
    if (CHECK(count == run->prompt_count * run->vocab)) compare_rows(run, file, got, want, run->prompt_count);
    free(want);
}

static jamba_session *open_session(golden_run *run)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.context = (int32_t)run->prompt_count + GOLDEN_GREEDY;
    CHECK_THAT(jamba_session_create(&session, run->model, &params, &error) == JAMBA_OK, "%s", error.message);
    return session;
}

static void check_prefill(golden_run *run)
{
    jamba_session_params params;
    float *got;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    got = model_logits(run->model, &params, run->prompt, run->prompt_count, 0);
    if (got) compare_file(run, "expected.f32", got);
    free(got);
}

static void check_decode(golden_run *run)
{
    jamba_session *session = open_session(run);
    float *got = (float *)calloc(run->prompt_count * run->vocab, sizeof *got);
    size_t i;
    for (i = 0; i < run->prompt_count && session; i++) {
        if (!CHECK(jamba_eval(session, run->prompt + i, 1) == JAMBA_OK)) break;
        memcpy(got + i * run->vocab, jamba_logits(session), run->vocab * sizeof *got);
    }
    if (session) compare_file(run, clamps_in_prefill_only(run->name) ? "expected.f32" : "expected_decode.f32", got);
    free(got);
    jamba_session_free(session);
}

/* Row j chooses token j, which is then fed. */
static void check_greedy(golden_run *run)
{
    size_t count, greedy_count, j, rows = clamps_in_prefill_only(run->name) ? 1 : GOLDEN_GREEDY;
    float *want = (float *)golden_read(run->name, "expected_greedy.f32", &count);
    int32_t *greedy = (int32_t *)golden_read(run->name, "greedy.i32", &greedy_count);
    jamba_session *session = open_session(run);
    bool ok = CHECK(greedy_count == GOLDEN_GREEDY && count == GOLDEN_GREEDY * run->vocab) && session;
    ok = ok && CHECK(jamba_eval(session, run->prompt, run->prompt_count) == JAMBA_OK);
    for (j = 0; j < rows && ok; j++) {
        compare_rows(run, "expected_greedy.f32", jamba_logits(session), want + j * run->vocab, 1);
        CHECK_THAT(jamba_sample(session, NULL) == greedy[j], "greedy token %zu is %d, the reference has %d", j,
            (int)jamba_sample(session, NULL), (int)greedy[j]);
        ok = CHECK(jamba_eval(session, greedy + j, 1) == JAMBA_OK);
    }
    jamba_session_free(session);
    free(greedy);
    free(want);
}

static void test_case_type(const char *name, const char *type)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    golden_run run;
    memset(&run, 0, sizeof run);
    run.name = name;
    run.type = type;
    run.prompt = (int32_t *)golden_read(name, "prompt.i32", &run.prompt_count);
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, type, path)) run.model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(run.model != NULL)) {
        run.vocab = (size_t)model_vocab(run.model);
        check_prefill(&run);
        check_decode(&run);
        check_greedy(&run);
        printf("golden: %-24s %-5s worst error %.2e\n", name, type, run.worst);
    }
    jamba_model_free(run.model);
    free(run.prompt);
}

int main(int argc, char **argv)
{
    int i;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        const golden_case *c = &golden_cases[i];
        if (test_begin("%s f32", c->name)) {
            test_case_type(c->name, "f32");
            test_end();
        }
        if (strcmp(c->stored, "f32") != 0 && test_begin("%s %s", c->name, c->stored)) {
            test_case_type(c->name, c->stored);
            test_end();
        }
    }
    return test_summary();
}
