/* long.c - prompts of 300 and 1,200 tokens: across the chunks of the reference's prefill and many pages
 * of the KV cache, in one go and token by token */
#define SUPPORT_API_ONLY
#include "support.h"

/* Rounding grows with the length: the reference's own paths differ by about this much (make_reference.py). */
static const double long_bound = 5e-4;
enum { LONG_EVERY = 25 }; /* one row of logits is kept for as many tokens */

typedef struct long_case {
    const char *name;
    int length;
} long_case;

static const long_case long_cases[] = {
    { "jamba-moe", 1200 },
    { "mamba", 1200 },
    { "llama", 1200 },
    { "zamba", 300 },
    { "zamba2-rope", 300 },
    { "zamba2-rope", 1200 },
    { "mamba2", 300 },
    { "mamba2", 1200 },
    { "mamba2-groups", 300 },
};

typedef struct kept_rows {
    float *rows;
    size_t vocab, count;
} kept_rows;

static void keep_row(void *user, int32_t position, const float *logits)
{
    kept_rows *kept = (kept_rows *)user;
    if (position % LONG_EVERY != LONG_EVERY - 1) return;
    memcpy(kept->rows + kept->count * kept->vocab, logits, kept->vocab * sizeof *logits);
    kept->count++;
}

/* Evaluates the prompt in pieces of `piece` tokens; returns the worst difference from the reference. */
static double worst_error(const jamba_model *model, const int32_t *prompt, size_t length, size_t piece,
    const float *expected, size_t expected_count)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    kept_rows kept = { NULL, (size_t)model_vocab(model), 0 };
    double worst = 1e30;
    size_t at;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.context = (int32_t)length;
    params.on_logits = keep_row;
    params.logits_user = &kept;
    kept.rows = (float *)calloc(length / LONG_EVERY * kept.vocab, sizeof *kept.rows);
    if (!CHECK_THAT(jamba_session_create(&session, model, &params, &error) == JAMBA_OK, "%s", error.message))
        return worst;
    for (at = 0; at < length; at += piece)
        if (!CHECK(jamba_eval(session, prompt + at, length - at < piece ? length - at : piece) == JAMBA_OK)) break;
    if (CHECK(kept.count * kept.vocab == expected_count)) worst = test_worst(kept.rows, expected, expected_count);
    jamba_session_free(session);
    free(kept.rows);
    return worst;
}

static void test_long(const long_case *c)
{
    char folder[PATH_ROOM], path[PATH_ROOM], file[64];
    size_t length, expected_count;
    jamba_model *model = NULL;
    int32_t *prompt;
    float *expected;
    snprintf(file, sizeof file, "long-%d.i32", c->length);
    prompt = (int32_t *)golden_read(c->name, file, &length);
    snprintf(file, sizeof file, "long-%d.f32", c->length);
    expected = (float *)golden_read(c->name, file, &expected_count);
    snprintf(folder, sizeof folder, "tests/cases/%s", c->name);
    if (convert(folder, c->name, "f32", path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(model != NULL) && CHECK(length == (size_t)c->length)) {
        double prefill = worst_error(model, prompt, length, length, expected, expected_count);
        double decode = worst_error(model, prompt, length, 1, expected, expected_count);
        CHECK_THAT(prefill <= long_bound, "prefill is off by %.3g, allowed %.3g", prefill, long_bound);
        CHECK_THAT(decode == prefill, "token by token is off by %.3g, prefill by %.3g", decode, prefill);
        printf("long: %-16s %4d tokens, worst error %.2e\n", c->name, c->length, prefill);
    }
    jamba_model_free(model);
    free(prompt);
    free(expected);
}

int main(int argc, char **argv)
{
    size_t i;
    test_start(argc, argv);
    for (i = 0; i < sizeof long_cases / sizeof long_cases[0]; i++)
        if (test_begin("%s %d", long_cases[i].name, long_cases[i].length)) {
            test_long(&long_cases[i]);
            test_end();
        }
    return test_summary();
}
