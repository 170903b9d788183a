/* programs.c - models made in memory, block by block: that they compute alike
 *
 * A program is a header and blocks with random weights, written as a file whose hash is correct. It holds any mix of
 * blocks, sizes and types, and must give the same logits for every instruction set, chunk, executor and time budget.
 * The memory of a file ends with its last byte, so that a sanitizer sees a read behind it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* feenableexcept */
#endif
#include "programs.h"

#include <fenv.h>

enum { A_NAN = 0x7fc00000, TWO = 0x40000000 }; /* floats as their bits */

/* ---- x beside the embedding --------------------------------------------------------------------- */

static bool all_finite(const float *values, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        if (!jmb_finite(values[i])) return false;
    return true;
}

static void check_wide(uint32_t kind, uint32_t type, uint32_t hidden)
{
    static const int32_t tokens[] = { 3, 0, 11, 3, 7 };
    program p = start_program(12, hidden, type);
    jamba_model *model;
    image file;
    add_block(&p, kind)->input = JMB_FROM_X_AND_E;
    file = write_image(&p);
    model = load_image(&file, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        float *logits = model_logits(model, NULL, tokens, 5, 0);
        CHECK_THAT(logits && all_finite(logits, 12 * 5), "%s %s of %u: a logit is not finite", jmb_kind_names[kind],
            jmb_type_names[type], hidden);
        free(logits);
    }
    jamba_model_free(model);
    image_free(&file);
}

static void test_wide_inputs(void)
{
    static const uint32_t kinds[] = { JMB_MLP, JMB_MOE, JMB_MAMBA, JMB_MAMBA2, JMB_ATTENTION };
    uint32_t type;
    size_t i;
    for (i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (type = 0; type < JMB_TYPES; type++) check_wide(kinds[i], type, 37);
        check_wide(kinds[i], JMB_F32, 4096);
        check_wide(kinds[i], JMB_Q8, 4096);
    }
}

/* ---- random programs ---------------------------------------------------------------------------- */

enum { PROGRAMS = 300, TOKENS = 17, MANY_TOKENS = 70 };

/* A clock whose every reading is later than any budget. */
static uint64_t slow_clock(void *user)
{
    return *(uint64_t *)user += 50;
}

typedef struct trial {
    char name[64];
    size_t vocab, count;
    jamba_kv_type kv_type;
    int32_t tokens[MANY_TOKENS];
    float *expected; /* (count, vocab) */
} trial;

static void check_same(const trial *t, const jamba_model *model, const char *how, jamba_session_params params,
    uint64_t budget)
{
    float *logits;
    params.kv_type = t->kv_type;
    logits = model_logits(model, &params, t->tokens, t->count, budget);
    CHECK_THAT(logits && memcmp(logits, t->expected, t->count * t->vocab * sizeof *logits) == 0,
        "%s: %s differs, chunk %d", t->name, how, (int)params.chunk);
    free(logits);
}

static void check_chunks(const trial *t, const jamba_model *model, const char *cpu)
{
    const int32_t chunks[] = { 1, 3, 7, (int32_t)t->count };
    jamba_session_params params;
    int i;
    memset(&params, 0, sizeof params);
    for (i = 0; i < 4; i++) {
        params.chunk = chunks[i];
        check_same(t, model, cpu, params, 0);
    }
}

static void check_schedules(const trial *t, const jamba_model *model)
{
    uint64_t order = (uint64_t)t->tokens[0] + 1, time = 1;
    jamba_executor shuffled = { run_shuffled, NULL, 3, false };
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    shuffled.user = &order;
    params.now_us = slow_clock;
    params.now_user = &time;
    params.chunk = 6;
    check_same(t, model, "a budget of 1 us", params, 1);
    params.executor = &shuffled;
    check_same(t, model, "an executor that shuffles", params, 0);
    params.chunk = 5;
    check_same(t, model, "a shuffling executor with a budget", params, 1);
}

/* The last logits alone, twice from one session whose scratch memory comes dirty. */
static void check_reset(const trial *t, const jamba_model *model)
{
    counter c;
    jamba_allocator allocator = counter_open(&c);
    jamba_session_params params;
    jamba_session *session;
    int i;
    memset(&params, 0, sizeof params);
    params.allocator = &allocator;
    params.kv_type = t->kv_type;
    params.chunk = 4;
    params.context = (int32_t)t->count;
    session = open_session(model, &params);
    for (i = 0; i < 2; i++) {
        const float *last = t->expected + (t->count - 1) * t->vocab, *logits;
        jamba_session_reset(session);
        CHECK(jamba_eval(session, t->tokens, t->count - 5 * (size_t)i) == JAMBA_OK);
        if (i == 1) CHECK(jamba_eval(session, t->tokens + t->count - 5, 5) == JAMBA_OK);
        logits = jamba_logits(session);
        CHECK_THAT(logits && memcmp(logits, last, t->vocab * sizeof *logits) == 0, "%s: differs %s", t->name,
            i ? "after a reset" : "without on_logits");
    }
    jamba_session_free(session);
}

static void check_cpus(trial *t, const image *file)
{
    static const struct {
        const char *name;
        jamba_cpu cpu;
    } cpus[] = { { "AVX2", JAMBA_CPU_AVX2 }, { "AVX-VNNI", JAMBA_CPU_AVXVNNI }, { "AVX-512", JAMBA_CPU_AVX512 },
        { "NEON", JAMBA_CPU_NEON }, { "WebAssembly", JAMBA_CPU_WASM } };
    size_t i;
    for (i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        jamba_model *model = load_image(file, cpus[i].cpu);
        if (model) check_chunks(t, model, cpus[i].name);
        jamba_model_free(model);
    }
}

/* Plain C, all rows at once, is what every other way must equal. */
static void check_program(program *p, trial *t)
{
    image file = write_image(p);
    jamba_model *model = load_image(&file, JAMBA_CPU_SCALAR), *best = load_image(&file, JAMBA_CPU_BEST);
    jamba_session_params params;
    size_t i;
    t->vocab = p->header.vocab;
    for (i = 0; i < t->count; i++) t->tokens[i] = (int32_t)pick(&p->random, 0, p->header.vocab - 1);
    memset(&params, 0, sizeof params);
    params.kv_type = t->kv_type;
    params.chunk = (int32_t)t->count;
    t->expected = model && best ? model_logits(model, &params, t->tokens, t->count, 0) : NULL;
    if (CHECK_THAT(t->expected != NULL, "%s: does not run", t->name)) {
        CHECK_THAT(all_finite(t->expected, t->count * t->vocab), "%s: not finite", t->name);
        check_cpus(t, &file);
        check_schedules(t, best);
        check_reset(t, best);
    }
    free(t->expected);
    jamba_model_free(model);
    jamba_model_free(best);
    image_free(&file);
}

static void test_random_programs(void)
{
    uint64_t seed;
    for (seed = 1; seed <= PROGRAMS; seed++) {
        program p = random_program(seed);
        trial t;
        snprintf(t.name, sizeof t.name, "seed %llu", (unsigned long long)seed);
        t.kv_type = seed % 2 ? JAMBA_KV_F32 : JAMBA_KV_F16;
        t.count = TOKENS;
        check_program(&p, &t);
    }
}

/* Passes longer than the blocks of rows that a scan takes, states that fill its tiles and leave rests, heads
 * that end inside of 16 channels. */
static void check_scan(uint32_t kind, uint32_t d_state, uint32_t heads, uint32_t width)
{
    program p = start_program(11, 16, JMB_F32);
    jmb_block *b = add_block(&p, kind);
    trial t;
    b->d_state = d_state;
    b->heads = heads;
    b->d_inner = heads * width;
    b->n_groups = kind == JMB_MAMBA2 ? heads : 1;
    snprintf(t.name, sizeof t.name, "%s, d_state %u, %u heads of %u", kind == JMB_MAMBA ? "mamba" : "mamba2",
        (unsigned)d_state, (unsigned)heads, (unsigned)width);
    t.kv_type = JAMBA_KV_F32;
    t.count = MANY_TOKENS;
    check_program(&p, &t);
}

static void test_scans(void)
{
    static const uint32_t states[] = { 1, 5, 16, 17, 64, 128 };
    static const uint32_t heads[][2] = { { 1, 48 }, { 2, 20 }, { 2, 64 }, { 3, 33 } };
    size_t i, k;
    for (i = 0; i < sizeof states / sizeof states[0]; i++)
        for (k = 0; k < sizeof heads / sizeof heads[0]; k++) {
            check_scan(JMB_MAMBA, states[i], heads[k][0], heads[k][1]);
            check_scan(JMB_MAMBA2, states[i], heads[k][0], heads[k][1]);
        }
}

/* ---- callbacks ---------------------------------------------------------------------------------- */

typedef enum callback { FROM_NOTHING, FROM_LOGITS, FROM_PROGRESS, FROM_FILTER } callback;

typedef struct intruder {
    jamba_session *session;
    int calls;
} intruder;

/* Tries everything that a callback must not do. */
static void intrude(intruder *in)
{
    static const int32_t token = 5;
    jamba_session *s = in->session;
    jamba_session_info before, after;
    jamba_sampler sampler;
    memset(&sampler, 0, sizeof sampler);
    in->calls++;
    jamba_session_describe(s, &before);
    CHECK(jamba_eval(s, &token, 1) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_step(s, 0) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_feed(s, &token, 1) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_sample(s, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_sample(s, &sampler) == JAMBA_ERR_ARGUMENT);
    CHECK(strstr(jamba_session_error(s)->message, "callback") != NULL);
    jamba_session_reset(s);
    jamba_session_describe(s, &after);
    CHECK(before.position == after.position && before.pending == after.pending);
}

static void intrude_from_logits(void *user, int32_t position, const float *logits)
{
    (void)position;
    (void)logits;
    intrude((intruder *)user);
}

static bool intrude_from_progress(void *user, const char *stage, uint64_t done, uint64_t total)
{
    (void)stage;
    (void)done;
    (void)total;
    intrude((intruder *)user);
    return true;
}

static void intrude_from_filter(void *user, float *logits, int32_t vocab)
{
    (void)logits;
    (void)vocab;
    intrude((intruder *)user);
}

/* Evaluates seven tokens, samples one and evaluates it: logits of the last, and the sampler as it ends. */
static void run_intruded(const jamba_model *model, callback from, float *logits, uint64_t *seed, int *calls)
{
    static const int32_t tokens[] = { 1, 2, 3, 4, 5, 6, 7 };
    intruder in = { NULL, 0 };
    jamba_session_params params;
    jamba_sampler sampler;
    int32_t next;
    memset(&params, 0, sizeof params);
    memset(&sampler, 0, sizeof sampler);
    params.chunk = 3;
    params.logits_user = params.progress_user = sampler.filter_user = &in;
    if (from == FROM_LOGITS) params.on_logits = intrude_from_logits;
    if (from == FROM_PROGRESS) params.progress = intrude_from_progress;
    if (from == FROM_FILTER) sampler.filter = intrude_from_filter;
    sampler.temperature = 1;
    sampler.repeat_penalty = 1.1f;
    in.session = open_session(model, &params);
    CHECK(jamba_eval(in.session, tokens, 7) == JAMBA_OK);
    next = jamba_sample(in.session, &sampler);
    CHECK(next >= 0 && jamba_eval(in.session, &next, 1) == JAMBA_OK);
    memset(logits, 0, 40 * sizeof *logits);
    if (CHECK(jamba_logits(in.session) != NULL)) memcpy(logits, jamba_logits(in.session), 40 * sizeof *logits);
    *seed = sampler.seed;
    *calls = in.calls;
    jamba_session_free(in.session);
}

static void test_intruders(void)
{
    static const int calls[] = { 0, 8, 4, 1 }; /* tokens; passes of 3, 3, 1 and 1; samples */
    program p = every_kind(JMB_F32);
    image file = write_image(&p);
    jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
    float expected[40], logits[40];
    uint64_t seed, expected_seed;
    int from, seen;
    run_intruded(model, FROM_NOTHING, expected, &expected_seed, &seen);
    for (from = FROM_LOGITS; from <= FROM_FILTER; from++) {
        run_intruded(model, (callback)from, logits, &seed, &seen);
        CHECK_THAT(seen == calls[from], "callback %d: %d calls", from, seen);
        CHECK_THAT(seed == expected_seed && memcmp(logits, expected, sizeof logits) == 0, "callback %d", from);
    }
    jamba_model_free(model);
    image_free(&file);
}

static bool refuse_progress(void *user, const char *stage, uint64_t done, uint64_t total)
{
    CHECK(strcmp(stage, "eval") == 0 && done <= total);
    ++*(int *)user;
    return false;
}

/* Every pass is stopped: each step does one, and the last, which leaves nothing to do, is none that stops. */
static void test_stopped_passes(void)
{
    static const int32_t tokens[] = { 1, 2, 3, 4, 5, 6, 7 };
    program p = every_kind(JMB_Q8);
    image file = write_image(&p);
    jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
    float *expected = model_logits(model, NULL, tokens, 7, 0);
    jamba_session_params params;
    jamba_session_info info;
    jamba_session *session;
    const float *last;
    int calls = 0, done;
    memset(&params, 0, sizeof params);
    params.chunk = 2;
    params.progress = refuse_progress;
    params.progress_user = &calls;
    session = open_session(model, &params);
    CHECK(jamba_feed(session, tokens, 7) == JAMBA_OK);
    for (done = 2; done < 7; done += 2) {
        CHECK(jamba_step(session, 0) == JAMBA_ERR_ABORTED);
        CHECK(jamba_session_error(session)->code == JAMBA_ERR_ABORTED);
        jamba_session_describe(session, &info);
        CHECK_THAT(info.position == done && info.pending == 7 - done, "position %d", (int)info.position);
        CHECK(jamba_logits(session) == NULL);
    }
    CHECK(jamba_step(session, 0) == JAMBA_OK && calls == 4);
    last = jamba_logits(session);
    CHECK(expected && last && memcmp(last, expected + 6 * 40, 40 * sizeof *last) == 0);
    jamba_session_free(session);
    jamba_model_free(model);
    image_free(&file);
    free(expected);
}

typedef struct turned_clock {
    int readings;
} turned_clock;

/* An hour back after the first reading. */
static uint64_t read_turned(void *user)
{
    turned_clock *clock = (turned_clock *)user;
    return clock->readings++ ? 10000000000u - 3600000000u : 10000000000u;
}

static void test_calls(void)
{
    static const int32_t tokens[] = { 1, 2, 3 };
    turned_clock clock = { 0 };
    program p = every_kind(JMB_F32);
    image file = write_image(&p);
    jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
    jamba_session_params params;
    jamba_session_info info;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.now_us = read_turned;
    params.now_user = &clock;
    session = open_session(model, &params);
    CHECK(jamba_feed(session, NULL, 3) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_error(session)->code == JAMBA_ERR_ARGUMENT);
    CHECK(strstr(jamba_session_error(session)->message, "tokens") != NULL);
    jamba_session_describe(session, &info);
    CHECK(info.pending == 0);
    CHECK(jamba_feed(session, tokens, 3) == JAMBA_OK);
    CHECK(jamba_step(session, 1000000) == JAMBA_PENDING);
    CHECK_THAT(clock.readings == 2, "the clock was read %d times", clock.readings);
    jamba_session_free(session);
    jamba_model_free(model);
    image_free(&file);
}

/* ---- the caller's floating-point exceptions ----------------------------------------------------- */

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__i386__))

/* "?", "a", "b", "ab" and the merge of a and b. */
static const uint8_t small_tokenizer[] = { JMB_TOKENIZER_KIND, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, /* header */
    0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, /* offsets */
    1, 1, 1, 1, /* flags */
    1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, /* merges */
    '?', 'a', 'b', 'a', 'b' };

typedef struct trap {
    image good, bad[3]; /* bad: dt_min or dt_max are NaN, or the wrong way round */
    jamba_model *model;
    jamba_session *session;
} trap;

static bool trap_load(const trap *t)
{
    jamba_model_params params;
    jamba_model *model;
    jamba_model_info info;
    bool ok;
    memset(&params, 0, sizeof params);
    params.verify = true;
    ok = jamba_model_load(&model, jamba_from_memory(t->good.data, t->good.size), &params, NULL) == JAMBA_OK;
    jamba_model_describe(model, &info);
    jamba_model_free(model);
    return ok && info.blocks == 7;
}

static bool trap_bad_files(const trap *t)
{
    int i;
    for (i = 0; i < 3; i++) {
        jamba_model *model;
        jamba_source source = jamba_from_memory(t->bad[i].data, t->bad[i].size);
        if (jamba_model_load(&model, source, NULL, NULL) != JAMBA_ERR_FORMAT) return false;
    }
    return true;
}

static bool trap_encode(const trap *t)
{
    int32_t tokens[8];
    char text[16];
    size_t count, length;
    if (jamba_encode(t->model, "abxba", 5, JAMBA_TEXT_BOS, tokens, 8, &count, NULL) != JAMBA_OK) return false;
    if (count != 4 || tokens[0] != 3 || tokens[1] != 0) return false;
    return jamba_decode(t->model, tokens, count, 0, text, sizeof text, &length, NULL) == JAMBA_OK && length == 5;
}

static bool trap_eval(const trap *t)
{
    static const int32_t tokens[] = { 1, 2, 3, 4, 5 };
    return jamba_eval(t->session, tokens, 5) == JAMBA_OK && jamba_logits(t->session) != NULL;
}

static bool trap_sample(const trap *t)
{
    jamba_sampler sampler;
    bool ok = trap_eval(t) && jamba_sample(t->session, NULL) >= 0;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 0.7f;
    sampler.repeat_penalty = 1.3f;
    ok = ok && jamba_sample(t->session, &sampler) >= 0;
    sampler.min_p = 0.1f;
    sampler.top_p = 0.9f;
    sampler.top_k = 9;
    return ok && jamba_sample(t->session, &sampler) >= 0;
}

/* Fields that are NaN are refused, not compared. */
static bool trap_bad_samplers(const trap *t)
{
    int i;
    bool ok = trap_eval(t);
    for (i = 0; i < 4 && ok; i++) {
        jamba_sampler sampler;
        float *fields[4];
        const uint32_t bits = A_NAN;
        memset(&sampler, 0, sizeof sampler);
        fields[0] = &sampler.temperature;
        fields[1] = &sampler.top_p;
        fields[2] = &sampler.min_p;
        fields[3] = &sampler.repeat_penalty;
        memcpy(fields[i], &bits, 4);
        ok = jamba_sample(t->session, &sampler) == JAMBA_ERR_ARGUMENT;
    }
    return ok;
}

/* Runs `step` in a child process whose every floating-point exception is a signal. */
static void check_trap(const trap *t, const char *what, bool (*step)(const trap *t))
{
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        feenableexcept(FE_ALL_EXCEPT);
        _exit(step(t) && fegetexcept() == FE_ALL_EXCEPT ? 0 : 3);
    }
    if (!CHECK(child > 0 && waitpid(child, &status, 0) == child)) return;
    CHECK_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: status %d", what, status);
}

static image trap_image(uint32_t dt_min, uint32_t dt_max)
{
    program p = every_kind(JMB_Q8);
    image file;
    uint8_t *block;
    p.tokenizer = small_tokenizer;
    p.header.tokenizer_size = sizeof small_tokenizer;
    file = write_image(&p);
    block = file.data + JMB_HEADER_BYTES + 2 * JMB_BLOCK_BYTES;
    STORE_u32(block + 4 * JMB_AT_dt_min, dt_min);
    STORE_u32(block + 4 * JMB_AT_dt_max, dt_max);
    repair_identity(file.data);
    return file;
}

static void test_traps(void)
{
    trap t;
    int i;
    t.good = trap_image(0, TWO);
    t.bad[0] = trap_image(A_NAN, TWO);
    t.bad[1] = trap_image(0, A_NAN);
    t.bad[2] = trap_image(A_NAN, A_NAN);
    t.model = load_image(&t.good, JAMBA_CPU_BEST);
    test_require(t.model != NULL, "does not load:", "a file with a tokenizer");
    t.session = open_session(t.model, NULL);
    check_trap(&t, "load", trap_load);
    check_trap(&t, "load of NaN", trap_bad_files);
    check_trap(&t, "encode", trap_encode);
    check_trap(&t, "eval", trap_eval);
    check_trap(&t, "sample", trap_sample);
    check_trap(&t, "samplers of NaN", trap_bad_samplers);
    jamba_session_free(t.session);
    jamba_model_free(t.model);
    image_free(&t.good);
    for (i = 0; i < 3; i++) image_free(&t.bad[i]);
    test_end();
}

#else

static void test_traps(void)
{
    test_skip("needs glibc on x86");
}

#endif

/* ---- sampling ----------------------------------------------------------------------------------- */

typedef struct sampling {
    image file;
    jamba_model *model;
    jamba_session *session; /* has seen the tokens 1, 2, 2, 2, 3 */
} sampling;

static sampling sampling_open(void)
{
    static const int32_t tokens[] = { 1, 2, 2, 2, 3 };
    program p = every_kind(JMB_F32);
    sampling s;
    s.file = write_image(&p);
    s.model = load_image(&s.file, JAMBA_CPU_BEST);
    test_require(s.model != NULL, "does not load:", "a block of every kind");
    s.session = open_session(s.model, NULL);
    CHECK(jamba_eval(s.session, tokens, 5) == JAMBA_OK);
    return s;
}

static void sampling_close(sampling *s)
{
    jamba_session_free(s->session);
    jamba_model_free(s->model);
    image_free(&s->file);
}

static void copy_logits(void *user, float *logits, int32_t vocab)
{
    memcpy(user, logits, (size_t)vocab * sizeof *logits);
}

static void check_penalty(const sampling *s, int32_t window, float penalty, const char *punished)
{
    const float *logits = jamba_logits(s->session);
    float seen[40];
    jamba_sampler sampler;
    int i;
    memset(&sampler, 0, sizeof sampler);
    sampler.repeat_penalty = penalty;
    sampler.repeat_window = window;
    sampler.filter = copy_logits;
    sampler.filter_user = seen;
    CHECK(jamba_sample(s->session, &sampler) >= 0);
    for (i = 0; i < 40; i++) {
        bool hit = i < 4 && punished[i] == 'x';
        float want = !hit ? logits[i] : logits[i] > 0 ? logits[i] / penalty : logits[i] * penalty;
        CHECK_THAT(seen[i] == want, "window %d: logit %d is %g, not %g", (int)window, i, (double)seen[i], (double)want);
    }
}

static void test_penalty(void)
{
    static const float refused[] = { 1e-39f, 1e6f, -1, 9e-4f, 1001, NAN, INFINITY };
    sampling s = sampling_open();
    jamba_sampler sampler;
    size_t i;
    check_penalty(&s, 1000000, 1.5f, ".xxx");
    check_penalty(&s, 0, 1.5f, ".xxx");
    check_penalty(&s, 5, 1e3f, ".xxx");
    check_penalty(&s, 4, 1e-3f, "..xx");
    check_penalty(&s, 1, 2, "...x");
    memset(&sampler, 0, sizeof sampler);
    for (i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        sampler.repeat_penalty = refused[i];
        CHECK_THAT(jamba_sample(s.session, &sampler) == JAMBA_ERR_ARGUMENT, "penalty %g", (double)refused[i]);
        CHECK(jamba_session_error(s.session)->code == JAMBA_ERR_ARGUMENT);
    }
    sampling_close(&s);
}

enum { DRAWS = 20000 };

static void count_draws(const sampling *s, jamba_sampler sampler, int counts[40])
{
    int i;
    memset(counts, 0, 40 * sizeof *counts);
    for (i = 0; i < DRAWS; i++) {
        int32_t token = jamba_sample(s->session, &sampler);
        if (CHECK(token >= 0 && token < 40)) counts[token]++;
    }
}

/* Each logit 0.1 below the one before, in an order of its own. */
static void write_ladder(void *user, float *logits, int32_t vocab)
{
    int32_t i;
    (void)user;
    for (i = 0; i < vocab; i++) logits[i * 7 % vocab] = -0.1f * (float)i;
}

/* top_k of the whole vocabulary sorts and drops nothing. Two samples of one distribution over `kept` tokens:
 * chi-square stays within five deviations of its mean. */
static void check_draws(const sampling *s, float temperature, float min_p, int kept)
{
    jamba_sampler sampler;
    int plain[40], sorted[40], i;
    double square = 0;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = temperature;
    sampler.min_p = min_p;
    sampler.filter = write_ladder;
    sampler.seed = 7;
    count_draws(s, sampler, plain);
    sampler.top_k = 40;
    sampler.seed = 8;
    count_draws(s, sampler, sorted);
    for (i = 0; i < 40; i++) {
        int token = i * 7 % 40, both = plain[token] + sorted[token], off = plain[token] - sorted[token];
        CHECK_THAT((plain[token] > 0) == (i < kept) && (sorted[token] > 0) == (i < kept),
            "min_p %g: token %d of rank %d is drawn %d and %d times", (double)min_p, token, i, plain[token],
            sorted[token]);
        if (both > 0) square += (double)off * off / both;
    }
    CHECK_THAT(square <= kept - 1 + 5 * sqrt(2.0 * kept), "min_p %g: chi-square %.1f of %d tokens", (double)min_p,
        square, kept);
}

static void test_draws(void)
{
    sampling s = sampling_open();
    check_draws(&s, 1, 0, 40);
    check_draws(&s, 3, 0, 40);
    check_draws(&s, 1, 0.1f, 24);
    check_draws(&s, 0.5f, 0.1f, 12);
    check_draws(&s, 1, 0.6f, 6);
    check_draws(&s, 1, 1, 1);
    sampling_close(&s);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "x beside the embedding", test_wide_inputs },
        { "random programs", test_random_programs },
        { "scans of all shapes", test_scans },
        { "calls from callbacks", test_intruders },
        { "passes that are stopped", test_stopped_passes },
        { "no tokens, and a clock set back", test_calls },
        { "repeat penalty", test_penalty },
        { "draws without and with order", test_draws },
    };
    test_start(argc, argv);
    test_run(tests, sizeof tests / sizeof tests[0]);
    if (test_begin("floating-point exceptions that trap")) test_traps();
    return test_summary();
}
