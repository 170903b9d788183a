/* invariants.c - what must not change a single bit of any logit
 *
 * Every golden case and the storyteller, at several storage types: chunk size, threads and the order of
 * tasks, instruction set, time budget, where the file's bytes come from, reset, and the caller's
 * floating-point settings. Then memory: the estimate is exact and nothing allocates after create. */
#define SUPPORT_API_ONLY
#include "support.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

typedef struct subject {
    char name[64], path[PATH_ROOM];
    int32_t *tokens;
    size_t count, vocab;
    jamba_model *model;
    jamba_kv_type kv;
    float *want; /* [count, vocab]: serial, default chunk, best instruction set, no budget */
} subject;

static jamba_session_params plain_params(const subject *s)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.kv_type = s->kv;
    params.threads = 1;
    return params;
}

static bool same_bits(const subject *s, const float *got, const char *what)
{
    size_t i;
    if (!CHECK_THAT(got != NULL, "%s: no logits", what)) return false;
    for (i = 0; i < s->count * s->vocab; i++)
        if (memcmp(&got[i], &s->want[i], sizeof *got) != 0) break;
    return CHECK_THAT(i == s->count * s->vocab, "%s: logit %zu after token %zu is %.9g, not %.9g", what,
        i % s->vocab, i / s->vocab, (double)got[i % (s->count * s->vocab)], (double)s->want[i % (s->count * s->vocab)]);
}

static void check_run(const subject *s, const jamba_model *model, const jamba_session_params *params, uint64_t budget,
    const char *what)
{
    float *got = model_logits(model, params, s->tokens, s->count, budget);
    same_bits(s, got, what);
    free(got);
}

/* ---- chunks, threads, instruction sets ----------------------------------------------------------- */

static void check_chunks(const subject *s)
{
    const int32_t chunks[] = { 1, 7, 64, (int32_t)s->count };
    size_t i;
    for (i = 0; i < 4; i++) {
        jamba_session_params params = plain_params(s);
        char what[40];
        params.chunk = chunks[i];
        snprintf(what, sizeof what, "chunk %d", (int)chunks[i]);
        check_run(s, s->model, &params, 0, what);
    }
}

/* Tokens fed one by one, and in uneven pieces, against all at once. */
static void check_feeding(const subject *s)
{
    static const size_t pieces[] = { 1, 5 };
    size_t i, at, vocab = s->vocab;
    for (i = 0; i < 2; i++) {
        jamba_session_params params = plain_params(s);
        jamba_session *session;
        params.context = (int32_t)s->count;
        if (!CHECK(jamba_session_create(&session, s->model, &params, NULL) == JAMBA_OK)) return;
        for (at = 0; at < s->count; at += pieces[i]) {
            size_t n = s->count - at < pieces[i] ? s->count - at : pieces[i];
            if (!CHECK(jamba_eval(session, s->tokens + at, n) == JAMBA_OK)) break;
            if (!CHECK_THAT(memcmp(jamba_logits(session), s->want + (at + n - 1) * vocab, vocab * sizeof(float)) == 0,
                    "fed %zu at a time: differs after token %zu", pieces[i], at + n - 1))
                break;
        }
        jamba_session_free(session);
    }
}

static void check_threads(const subject *s)
{
    static const int widths[] = { 1, 2, 3, 7 };
    size_t i;
    if (!THREADS_POSIX) {
        CHECK(threads_start(2) == NULL);
        return;
    }
    for (i = 0; i < 4; i++) {
        threads_pool *pool = threads_start(widths[i]);
        jamba_session_params params = plain_params(s);
        char what[40];
        if (!CHECK(pool != NULL)) return;
        params.executor = &pool->executor;
        params.chunk = i % 2 ? 5 : 0;
        snprintf(what, sizeof what, "%d threads", widths[i]);
        check_run(s, s->model, &params, 0, what);
        threads_stop(pool);
    }
#if defined(_OPENMP)
    for (i = 0; i < 4; i++) {
        jamba_session_params params = plain_params(s);
        params.threads = widths[i];
        check_run(s, s->model, &params, 0, "OpenMP");
    }
#endif
}

/* Tasks that do not run at once, in orders nobody would choose. */
static void check_task_order(const subject *s)
{
    uint64_t seed = 7;
    jamba_session_params params = plain_params(s);
    jamba_executor executor;
    memset(&executor, 0, sizeof executor);
    params.executor = &executor;
    executor.user = &seed;
    executor.run = run_reversed;
    executor.width = 4;
    check_run(s, s->model, &params, 0, "tasks in reverse");
    executor.run = run_shuffled;
    executor.width = 5;
    check_run(s, s->model, &params, 0, "tasks shuffled");
}

static void test_cpu(const subject *s, jamba_cpu cpu)
{
    jamba_model *model = load_for_cpu(s->path, cpu);
    jamba_session_params params = plain_params(s);
    if (!model && test_state.checks_failed == 0) {
        test_skip("this CPU lacks it");
        return;
    }
    if (CHECK(model != NULL)) {
        check_run(s, model, &params, 0, "all at once");
        params.chunk = 7;
        check_run(s, model, &params, 0, "chunk 7");
    }
    jamba_model_free(model);
    test_end();
}

/* ---- time budgets ---------------------------------------------------------------------------------- */

static void check_every_stop(const subject *s)
{
    jamba_session_params params = plain_params(s);
    jamba_session *session;
    logits_rows rows;
    uint64_t now = 0;
    int calls = 0;
    rows.vocab = s->vocab;
    rows.count = s->count;
    rows.seen = 0;
    rows.in_order = true;
    rows.rows = (float *)calloc(s->count * s->vocab, sizeof *rows.rows);
    params.now_us = clock_tick;
    params.now_user = &now;
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    params.context = (int32_t)s->count;
    params.chunk = 16;
    if (CHECK(jamba_session_create(&session, s->model, &params, NULL) == JAMBA_OK)) {
        CHECK(jamba_feed(session, s->tokens, s->count) == JAMBA_OK);
        CHECK(jamba_step(session, 1) == JAMBA_PENDING && jamba_logits(session) == NULL);
        CHECK(step_all(session, 1, &calls) == JAMBA_OK && jamba_logits(session) != NULL);
        CHECK_THAT(calls > 4 * (int)(s->count / 16), "only %d stops", calls);
        CHECK(rows.seen == s->count && rows.in_order);
        same_bits(s, rows.rows, "every stop");
    }
    jamba_session_free(session);
    free(rows.rows);
}

static void check_budgets(const subject *s)
{
    static const uint64_t budgets[] = { 1, 3, 10, 50 };
    size_t i;
    for (i = 0; i < 4; i++) {
        jamba_session_params params = plain_params(s);
        char what[40];
        params.chunk = i % 2 ? 3 : 0;
        snprintf(what, sizeof what, "budget of %d us", (int)budgets[i]);
        check_run(s, s->model, &params, budgets[i], what);
    }
    check_every_stop(s);
}

/* ---- sources --------------------------------------------------------------------------------------- */

static size_t read_memory(void *user, uint64_t offset, void *dst, size_t size)
{
    memcpy(dst, (const uint8_t *)user + offset, size);
    return size;
}

static void check_source(
    const subject *s, jamba_source source, bool no_mmap, bool verify, bool huge_pages, const char *what)
{
    jamba_model_params model_params;
    jamba_session_params params = plain_params(s);
    jamba_model_info info, want;
    jamba_model *model;
    memset(&model_params, 0, sizeof model_params);
    model_params.no_mmap = no_mmap;
    model_params.verify = verify;
    model_params.huge_pages = params.huge_pages = huge_pages;
    model = load_model(source, &model_params);
    if (!CHECK(model != NULL)) return;
    jamba_model_describe(model, &info);
    jamba_model_describe(s->model, &want);
    CHECK(memcmp(info.identity, want.identity, sizeof info.identity) == 0);
    check_run(s, model, &params, 0, what);
    jamba_model_free(model);
}

static void check_sources(const subject *s)
{
    size_t size;
    uint8_t *file = file_need(s->path, &size), *room = (uint8_t *)malloc(size + 128);
    uint8_t *aligned = room + (64 - (uintptr_t)room % 64);
    jamba_io io;
    memcpy(aligned, file, size);
    check_source(s, jamba_from_memory(aligned, size), false, true, false, "aligned memory");
    memmove(aligned + 1, aligned, size);
    check_source(s, jamba_from_memory(aligned + 1, size), false, false, false, "unaligned memory");
    io.read = read_memory;
    io.user = file;
    io.size = size;
    check_source(s, jamba_from_io(io), false, false, false, "reader");
    check_source(s, jamba_from_file(s->path), true, true, false, "file read into the heap");
    check_source(s, jamba_from_file(s->path), false, true, false, "file mapped");
    check_source(s, jamba_from_file(s->path), false, true, true, "huge pages");
    free(room);
    free(file);
}

/* ---- reset ----------------------------------------------------------------------------------------- */

static void check_reset(const subject *s)
{
    jamba_session_params params = plain_params(s);
    jamba_session *session;
    jamba_session_info info;
    logits_rows rows;
    uint64_t now = 0;
    int round;
    rows.vocab = s->vocab;
    rows.count = s->count;
    rows.rows = (float *)calloc(s->count * s->vocab, sizeof *rows.rows);
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    params.context = (int32_t)s->count;
    params.now_us = clock_tick;
    params.now_user = &now;
    if (CHECK(jamba_session_create(&session, s->model, &params, NULL) == JAMBA_OK)) {
        for (round = 0; round < 3; round++) {
            if (session_run(session, &rows, s->tokens, 0)) same_bits(s, rows.rows, "after a reset");
            jamba_session_reset(session);
            CHECK(jamba_logits(session) == NULL);
            if (round == 1) { /* now in the middle of a token */
                CHECK(jamba_feed(session, s->tokens + 3, 5) == JAMBA_OK);
                CHECK(jamba_step(session, 1) == JAMBA_PENDING);
                jamba_session_reset(session);
            }
            jamba_session_describe(session, &info);
            CHECK(info.position == 0 && info.pending == 0);
        }
    }
    jamba_session_free(session);
    free(rows.rows);
}

/* ---- the caller's floating-point settings ------------------------------------------------------------ */

#if defined(__SSE2__) || defined(_M_X64)
enum { MXCSR_DAZ = 1 << 6, MXCSR_MASKS = 0x1f80, MXCSR_FTZ = 1 << 15, MXCSR_CONTROL = 0xffc0 };

/* What a game may set: the rounding modes, flushing, and exceptions that trap. */
static const unsigned float_settings[] = {
    MXCSR_MASKS | 1 << 13,
    MXCSR_MASKS | 2 << 13,
    MXCSR_MASKS | 3 << 13,
    MXCSR_MASKS | MXCSR_FTZ | MXCSR_DAZ,
    MXCSR_MASKS | MXCSR_FTZ | MXCSR_DAZ | 3 << 13,
    (MXCSR_MASKS & ~(1u << 7 | 1u << 9 | 1u << 10)), /* invalid, division by zero, overflow trap */
};
enum { FLOAT_SETTINGS = sizeof float_settings / sizeof float_settings[0] };

static void check_float_settings(const subject *s)
{
    const float *last = s->want + (s->count - 1) * s->vocab;
    unsigned usual = _mm_getcsr(), setting, after;
    size_t i;
    int threads;
    for (i = 0; i < FLOAT_SETTINGS; i++) {
        for (threads = 1; threads <= 2; threads++) {
            jamba_session_params params = plain_params(s);
            jamba_sampler sampler;
            jamba_session *session;
            threads_pool *pool;
            int32_t want, got;
            setting = float_settings[i];
            params.context = (int32_t)s->count;
            _mm_setcsr(setting); /* the pool's threads start with it */
            pool = threads_start(threads);
            params.executor = threads > 1 ? &pool->executor : NULL;
            jamba_session_create(&session, s->model, &params, NULL);
            jamba_eval(session, s->tokens, s->count);
            memset(&sampler, 0, sizeof sampler);
            sampler.temperature = 0.9f;
            sampler.top_p = 0.9f;
            got = jamba_sample(session, &sampler);
            after = _mm_getcsr();
            _mm_setcsr(usual);
            CHECK_THAT((after & MXCSR_CONTROL) == (setting & MXCSR_CONTROL), "settings %x left as %x", setting, after);
            CHECK_THAT(memcmp(jamba_logits(session), last, s->vocab * sizeof *last) == 0,
                "MXCSR %x, %d threads: other logits", setting, threads);
            memset(&sampler, 0, sizeof sampler);
            sampler.temperature = 0.9f;
            sampler.top_p = 0.9f;
            want = jamba_sample(session, &sampler);
            CHECK_THAT(got == want, "MXCSR %x: sampled %d, not %d", setting, (int)got, (int)want);
            jamba_session_free(session);
            threads_stop(pool);
        }
    }
}
#else
static void check_float_settings(const subject *s)
{
    jamba_session_params params = plain_params(s);
    check_run(s, s->model, &params, 0, "again");
}
#endif

/* ---- memory ------------------------------------------------------------------------------------------ */

static size_t memory_total(const jamba_memory *m)
{
    return m->mapped + m->weights + m->kv + m->state + m->marks + m->scratch;
}

/* One session with these parameters: the estimate, allocations of exactly that, one of them for keys and values; none
 * later. */
static void check_session_memory(const subject *s, jamba_session_params params)
{
    counter c;
    jamba_allocator allocator = counter_open(&c);
    jamba_memory estimate;
    jamba_session *session;
    jamba_session_info info;
    jamba_sampler sampler;
    int made;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1;
    sampler.top_k = 5;
    sampler.top_p = 0.9f;
    sampler.min_p = 0.01f;
    sampler.repeat_penalty = 1.1f;
    params.allocator = &allocator;
    CHECK(jamba_session_estimate(s->model, &params, &estimate) == JAMBA_OK);
    CHECK_THAT(c.calls == 0, "the estimate allocates");
    if (!CHECK(jamba_session_create(&session, s->model, &params, NULL) == JAMBA_OK)) return;
    made = estimate.kv ? 2 : 1;
    CHECK_THAT(c.calls == made, "create makes %d allocations", c.calls);
    CHECK_THAT(c.bytes == memory_total(&estimate), "allocated %zu bytes, estimated %zu", c.bytes,
        memory_total(&estimate));
    jamba_session_describe(session, &info);
    CHECK(memcmp(&info.memory, &estimate, sizeof estimate) == 0);
    CHECK(jamba_feed(session, s->tokens, s->count - 1) == JAMBA_OK);
    CHECK(step_all(session, 20, NULL) == JAMBA_OK);
    CHECK(jamba_sample(session, &sampler) >= 0 && jamba_sample(session, NULL) >= 0);
    CHECK(jamba_eval(session, s->tokens, 1) == JAMBA_OK);
    jamba_session_reset(session);
    CHECK(jamba_eval(session, s->tokens, 1) == JAMBA_OK);
    CHECK_THAT(c.calls == made, "%d allocations after create", c.calls - made);
    jamba_session_free(session);
    CHECK(c.live == 0 && c.bytes == 0 && c.wrong == 0);
}

static void check_memory(const subject *s)
{
    logits_rows rows;
    jamba_session_params params = plain_params(s);
    params.context = (int32_t)s->count;
    check_session_memory(s, params);
    params.chunk = 1;
    params.kv_type = JAMBA_KV_F32;
    check_session_memory(s, params);
    params.chunk = 33;
    params.context = 1000;
    rows.count = rows.seen = 0;
    rows.vocab = s->vocab;
    rows.rows = NULL;
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    check_session_memory(s, params);
}

static void check_model_memory(const subject *s)
{
    counter c;
    jamba_model_params params;
    jamba_model_info info;
    jamba_model *model;
    jamba_allocator allocator = counter_open(&c);
    int mapped;
    for (mapped = 0; mapped < 2; mapped++) {
        memset(&params, 0, sizeof params);
        params.allocator = &allocator;
        params.no_mmap = mapped == 0;
        model = load_model(jamba_from_file(s->path), &params);
        if (!CHECK(model != NULL)) return;
        jamba_model_describe(model, &info);
        CHECK_THAT(info.memory.weights == c.bytes, "says %zu bytes on the heap, has %zu", info.memory.weights, c.bytes);
        CHECK((info.memory.mapped > 0) == (mapped == 1 && FILES_MAP));
        jamba_model_free(model);
        CHECK(c.live == 0 && c.wrong == 0);
    }
}

/* ---- all of it for one file --------------------------------------------------------------------------- */

typedef void (*check_fn)(const subject *s);

static const struct {
    const char *name;
    check_fn check;
} checks[] = {
    { "chunks", check_chunks },
    { "feeding", check_feeding },
    { "threads", check_threads },
    { "task order", check_task_order },
    { "budgets", check_budgets },
    { "sources", check_sources },
    { "reset", check_reset },
    { "float settings", check_float_settings },
    { "memory", check_memory },
    { "model memory", check_model_memory },
};

static const struct {
    const char *name;
    jamba_cpu cpu;
} cpus[] = {
    { "scalar", JAMBA_CPU_SCALAR },
#if !defined(__wasm__)
    { "avx2", JAMBA_CPU_AVX2 },
    { "avx-vnni", JAMBA_CPU_AVXVNNI },
    { "avx512", JAMBA_CPU_AVX512 },
#endif
};

/* Whether the filter, if any, leaves a test of this subject. */
static bool subject_wanted(const char *name)
{
    char test[160];
    size_t i;
    if (!test_state.filter || strstr(test_state.filter, name)) return true;
    for (i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        snprintf(test, sizeof test, "%s %s", name, checks[i].name);
        if (strstr(test, test_state.filter)) return true;
    }
    for (i = 0; i < sizeof cpus / sizeof cpus[0]; i++) {
        snprintf(test, sizeof test, "%s %s", name, cpus[i].name);
        if (strstr(test, test_state.filter)) return true;
    }
    return false;
}

/* Converts, evaluates once for comparison, runs every check. Takes the tokens. */
static void test_subject(const char *folder, const char *name, const char *type, jamba_kv_type kv, int32_t *tokens,
    size_t count)
{
    subject s;
    jamba_session_params params;
    size_t i;
    memset(&s, 0, sizeof s);
    snprintf(s.name, sizeof s.name, "%s %s", name, type);
    s.tokens = tokens;
    s.count = count;
    s.kv = kv;
    params = plain_params(&s);
    if (subject_wanted(s.name) && !test_state.list) {
        snprintf(test_state.name, sizeof test_state.name, "%s", s.name);
        if (convert(folder, name, type, s.path)) s.model = load_for_cpu(s.path, JAMBA_CPU_BEST);
        test_require(s.model != NULL, "no model", s.name);
        s.vocab = (size_t)model_vocab(s.model);
        s.want = model_logits(s.model, &params, s.tokens, s.count, 0);
        test_require(s.want != NULL, "no logits", s.name);
    }
    for (i = 0; i < sizeof checks / sizeof checks[0]; i++) {
        if (!test_begin("%s %s", s.name, checks[i].name)) continue;
        checks[i].check(&s);
        test_end();
    }
    for (i = 0; i < sizeof cpus / sizeof cpus[0]; i++)
        if (test_begin("%s %s", s.name, cpus[i].name)) test_cpu(&s, cpus[i].cpu);
    free(s.want);
    free(s.tokens);
    jamba_model_free(s.model);
}

/* "Once upon a time" and on, as often as it takes. */
static int32_t *story_tokens(size_t count)
{
    static const int32_t story[] = { 1, 712, 659, 360, 555, 274, 538, 398, 360, 531, 665, 750, 641, 276, 493, 840, 372,
        528, 1098, 409, 363, 940, 276, 851, 507, 274, 447, 602, 360, 580, 274, 1075, 930 };
    int32_t *tokens = (int32_t *)malloc(count * sizeof *tokens);
    size_t i;
    for (i = 0; i < count; i++) tokens[i] = story[i % (sizeof story / sizeof story[0])];
    return tokens;
}

int main(int argc, char **argv)
{
    static const char *const story_types[] = { "f32", "bf16", "q8", "q4" };
    static const jamba_kv_type story_kv[] = { JAMBA_KV_F32, JAMBA_KV_F16, JAMBA_KV_F16, JAMBA_KV_Q8 };
    int i, t;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        const golden_case *c = &golden_cases[i];
        char folder[PATH_ROOM];
        /* past one chunk of 64; the last past two 256-key pages */
        size_t count = strcmp(c->name, "llama-llama3") == 0 ? 550 : 75;
        snprintf(folder, sizeof folder, "tests/cases/%s", c->name);
        test_subject(folder, c->name, "f32", JAMBA_KV_F32, golden_tokens(c->name, count), count);
        test_subject(folder, c->name, "q8", JAMBA_KV_F16, golden_tokens(c->name, count), count);
        if (strcmp(c->stored, "f32") != 0)
            test_subject(folder, c->name, c->stored, JAMBA_KV_Q8, golden_tokens(c->name, count), count);
    }
    for (t = 0; t < 4; t++)
        test_subject("examples/storyteller", "storyteller", story_types[t], story_kv[t],
            story_tokens(70), 70);
    return test_summary();
}
