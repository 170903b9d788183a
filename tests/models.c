/* models.c - random valid models: every mix of blocks, sizes and storage types against the naive forward
 *
 * Each model is a file made from its seed. It is loaded mapped, from memory and through a reader, and gives equal bits
 * from all three, for any chunk, in a batch and from a saved state; and within the bound the logits that the naive
 * forward computes in double precision from the numbers that are stored. MODELS=N runs N of them, SEED=S begins with
 * seed S. */
#include "naive.h"
#include "programs.h"

static const double bound = 2e-4;
enum { MODELS = 800, TOKENS = 10, FEWEST = 4, TRIES = 40, ATTEMPTS = 20, BATCH = 3 };

typedef struct subject {
    uint64_t seed;
    jamba_kv_type kv;
    image file;
    naive_model *naive;
    uint64_t attempt;
    size_t vocab, count;
    int32_t tokens[TOKENS]; /* (count) */
    float *logits;          /* (count, vocab) of the model from memory, all tokens in one chunk */
} subject;

static TEST_PRINTF(3) bool check_subject(const subject *s, bool ok, const char *format, ...)
{
    char what[200];
    va_list args;
    va_start(args, format);
    vsnprintf(what, sizeof what, format, args);
    va_end(args);
    return CHECK_THAT(ok, "SEED=%llu MODELS=1: %s", (unsigned long long)s->seed, what);
}

/* ---- the model and its tokens --------------------------------------------------------------------- */

/* A model, and tokens that keep clear of ties where it rounds; where there are too few, or the logits hang on the last
 * bits of what is rounded, the next model of this seed. */
static bool subject_open(subject *s, uint64_t seed)
{
    static const jamba_kv_type types[] = { JAMBA_KV_F32, JAMBA_KV_F16, JAMBA_KV_Q8 };
    memset(s, 0, sizeof *s);
    s->seed = seed;
    s->kv = types[seed % 3];
    for (; s->attempt < ATTEMPTS; s->attempt++) {
        program p = random_program(seed + (s->attempt << 32));
        s->file = write_image(&p);
        s->vocab = p.header.vocab;
        s->naive = naive_parse(s->file.data, TOKENS + 1);
        s->naive->kv = s->kv;
        s->count = naive_choose(
            s->naive, s->kv == JAMBA_KV_F16 ? clear_of_f16_ties : clear_of_ties, s->tokens, TOKENS, TRIES);
        if (s->count >= FEWEST && naive_is_stable(s->naive, s->tokens, s->count, bound / 2)) return true;
        naive_free(s->naive);
        image_free(&s->file);
    }
    return check_subject(s, false, "no model whose logits can be compared");
}

static void subject_close(subject *s)
{
    free(s->logits);
    naive_free(s->naive);
    image_free(&s->file);
}

static jamba_session_params params_of(const subject *s, int32_t chunk)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.kv_type = s->kv;
    params.chunk = chunk;
    params.context = (int32_t)s->count;
    params.threads = 1;
    return params;
}

/* ---- against the naive forward ---------------------------------------------------------------------- */

static double worst_error(const subject *s)
{
    double *want = (double *)malloc(s->vocab * sizeof *want), worst = 0;
    size_t i, j;
    naive_reset(s->naive);
    for (i = 0; i < s->count; i++) {
        naive_step(s->naive, s->tokens[i], want);
        for (j = 0; j < s->vocab; j++) {
            double error = fabs((double)s->logits[i * s->vocab + j] - want[j]);
            if (!(error <= worst)) worst = error == error ? error : (double)INFINITY;
        }
    }
    free(want);
    return worst;
}

/* ---- ways that give equal bits ------------------------------------------------------------------------ */

static void check_same(const subject *s, const jamba_model *model, const char *how, int32_t chunk)
{
    jamba_session_params params = params_of(s, chunk);
    float *logits = model_logits(model, &params, s->tokens, s->count, 0);
    check_subject(s, logits && memcmp(logits, s->logits, s->count * s->vocab * sizeof *logits) == 0,
        "%s, chunk %d: other bits", how, (int)chunk);
    free(logits);
}

/* Sessions that end at different tokens, evaluated together. */
static void check_batch(const subject *s, const jamba_model *model)
{
    jamba_session *sessions[BATCH];
    size_t i;
    for (i = 0; i < BATCH; i++) {
        jamba_session_params params = params_of(s, 1 + 2 * (int32_t)i);
        sessions[i] = open_session(model, &params);
        CHECK(jamba_feed(sessions[i], s->tokens, s->count - i) == JAMBA_OK);
    }
    CHECK(jamba_step_batch(sessions, BATCH, 0) == JAMBA_OK);
    for (i = 0; i < BATCH; i++) {
        const float *want = s->logits + (s->count - i - 1) * s->vocab, *got = jamba_logits(sessions[i]);
        check_subject(s, got && memcmp(got, want, s->vocab * sizeof *got) == 0, "session %zu of a batch", i);
        jamba_session_free(sessions[i]);
    }
}

/* Saved after some of the tokens and restored elsewhere: the same logits at once, and after the others. */
static void check_saved(const subject *s, const jamba_model *model)
{
    jamba_session_params params = params_of(s, 0);
    jamba_session *a = open_session(model, &params), *b = open_session(model, &params);
    size_t first = (s->count + 1) / 2, row = s->vocab * sizeof(float), size;
    uint8_t *bytes;
    CHECK(jamba_eval(a, s->tokens, first) == JAMBA_OK);
    size = jamba_session_save(a, NULL, 0);
    bytes = (uint8_t *)malloc(size);
    CHECK(bytes && jamba_session_save(a, bytes, size) == size);
    if (check_subject(s, jamba_session_restore(b, bytes, size) == JAMBA_OK, "%s", jamba_session_error(b)->message)) {
        const float *at_once = s->logits + (first - 1) * s->vocab, *later = s->logits + (s->count - 1) * s->vocab;
        check_subject(s, memcmp(jamba_logits(b), at_once, row) == 0, "restored: other logits");
        CHECK(jamba_eval(b, s->tokens + first, s->count - first) == JAMBA_OK);
        check_subject(s, memcmp(jamba_logits(b), later, row) == 0, "restored: other bits");
    }
    free(bytes);
    jamba_session_free(a);
    jamba_session_free(b);
}

static size_t read_image(void *user, uint64_t offset, void *dst, size_t size)
{
    memcpy(dst, ((const image *)user)->data + offset, size);
    return size;
}

static void check_source(const subject *s, jamba_source source, const char *how, int32_t chunk)
{
    jamba_model_params params;
    jamba_model *model;
    memset(&params, 0, sizeof params);
    params.verify = true;
    model = load_model(source, &params);
    if (check_subject(s, model != NULL, "%s: does not load", how)) check_same(s, model, how, chunk);
    jamba_model_free(model);
}

static void check_sources(subject *s, const char *path)
{
    jamba_io io;
    sweep_write(path, s->file.data, s->file.size);
    check_source(s, jamba_from_file(path), "mapped", 5);
    io.read = read_image;
    io.user = &s->file;
    io.size = s->file.size;
    check_source(s, jamba_from_io(io), "through a reader", 1);
}

/* ---- one model after the other -------------------------------------------------------------------------- */

/* Returns the largest error. */
static double check_model(subject *s, const char *path)
{
    jamba_model *model = load_image(&s->file, JAMBA_CPU_BEST);
    jamba_session_params params = params_of(s, (int32_t)s->count);
    double worst = (double)INFINITY;
    s->logits = model ? model_logits(model, &params, s->tokens, s->count, 0) : NULL;
    if (check_subject(s, s->logits != NULL, "does not run")) {
        worst = worst_error(s);
        check_subject(s, worst <= bound, "differs from the naive forward by %.3g, allowed %.3g", worst, bound);
        check_same(s, model, "from memory", 1);
        check_same(s, model, "from memory", 4);
        check_batch(s, model);
        check_saved(s, model);
        check_sources(s, path);
    }
    jamba_model_free(model);
    return worst;
}

static void test_models(void)
{
    uint64_t first = env_number("SEED", 1), count = env_number("MODELS", MODELS), i, tokens = 0, attempts = 0;
    double worst = 0, error;
    char path[PATH_ROOM];
    temp_path(path, "model.jamba");
    for (i = 0; i < count; i++) {
        subject s;
        if (!subject_open(&s, first + i)) continue;
        error = check_model(&s, path);
        if (error > worst) worst = error;
        tokens += s.count;
        attempts += s.attempt + 1;
        subject_close(&s);
    }
    remove(path);
    printf("models: %llu random models of %llu, %llu tokens, worst error %.2e\n", (unsigned long long)count,
        (unsigned long long)attempts, (unsigned long long)tokens, worst);
}

int main(int argc, char **argv)
{
    test_start(argc, argv);
    if (test_begin("random models against the naive forward")) {
        test_models();
        test_end();
    }
    return test_summary();
}
