/* numerics.c - numbers that are none, the caller's floating-point settings and locale, and very long texts
 *
 * Whatever weights, logits and settings are: an error or numbers, the same bits under any settings of the caller, and
 * those left as they were. STEPS=N in the environment: so many tokens for each model of the long texts. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* feenableexcept */
#endif
#include "programs.h"

#include <fenv.h>
#include <locale.h>

/* ---- numbers in weights ------------------------------------------------------------------------- */

typedef struct number {
    const char *name;
    uint32_t f32, f16, bf16;
} number;

static const number numbers[] = {
    { "NaN", 0x7fc00000, 0x7e00, 0x7fc0 },
    { "a signalling NaN", 0x7f800001, 0x7c01, 0x7f81 },
    { "a negative NaN", 0xffffffff, 0xffff, 0xffff },
    { "Inf", 0x7f800000, 0x7c00, 0x7f80 },
    { "-Inf", 0xff800000, 0xfc00, 0xff80 },
    { "the highest number", 0x7f7fffff, 0x7bff, 0x7f7f },
    { "the lowest number", 0xff7fffff, 0xfbff, 0xff7f },
    { "a subnormal", 0x00000001, 0x0001, 0x0001 },
    { "-0", 0x80000000, 0x8000, 0x8000 },
};
enum { NUMBERS = sizeof numbers / sizeof numbers[0], NANS = 3, PROMPT = 3, SMALL_VOCAB = 40 };

static const int32_t prompt[PROMPT] = { 0, 1, 2 };

/* Where in a panel its numbers that can be none lie: weights, or the scales of codes. */
static size_t numbers_at(const jmb_tensor *t)
{
    return t->type == JMB_Q8 ? jmb_pad64(t->cols) * 16 : t->type == JMB_Q4 ? jmb_pad64(t->cols) * 8 : 0;
}

static size_t put_number(uint8_t *p, const jmb_tensor *t, const number *n)
{
    switch (t->type) {
    case JMB_F32: STORE_u32(p, n->f32); return 4;
    case JMB_BF16: STORE_u16(p, n->bf16); return 2;
    default: STORE_u16(p, n->f16); return 2;
    }
}

/* Rows that are spoilt one by one: a router's experts are chosen by theirs, whether they are or not. */
static uint32_t single_rows(const jmb_tensor *t)
{
    return t->role == JMB_ROLE_ROUTER ? t->rows : 1;
}

/* The first number of row `row`, or, beyond the single rows, all of the tensor. */
static void spoil(uint8_t *data, const jmb_tensor *t, const number *n, uint32_t row)
{
    size_t bytes = (size_t)jmb_panel_bytes(t->type, t->cols), panel, at;
    if (row < single_rows(t)) {
        put_number(data + numbers_at(t) + row * 4, t, n);
        return;
    }
    for (panel = 0; panel + bytes <= t->bytes; panel += bytes)
        for (at = numbers_at(t); at + 4 <= bytes;) at += put_number(data + panel + at, t, n);
}

/* Infinity is harmless where it saturates: dt, the gates and the scores of a router may. */
static bool must_stay_finite(uint32_t role)
{
    switch (role) {
    case JMB_ROLE_EMBED:
    case JMB_ROLE_NORM:
    case JMB_ROLE_FINAL_NORM:
    case JMB_ROLE_GATE_NORM:
    case JMB_ROLE_CONV:
    case JMB_ROLE_CONV_B:
    case JMB_ROLE_CONV_C:
    case JMB_ROLE_A:
    case JMB_ROLE_D: return true;
    default: return false;
    }
}

static bool numbers_all(const float *values, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++)
        if (!jmb_finite(values[i])) return false;
    return true;
}

/* Experts of the rows of the last pass: different ones that there are. */
static void check_routing(const jamba_session *s, uint32_t experts, uint32_t top_k)
{
    const int32_t *chosen = s->pass.routing.expert;
    uint32_t i;
    for (i = 0; i < PROMPT * top_k; i++)
        CHECK_THAT(chosen[i] >= 0 && chosen[i] < (int32_t)experts && (i % top_k == 0 || chosen[i] > chosen[i - 1]),
            "expert %d in row %u", (int)chosen[i], i / top_k);
}

/* A session of logits that are none says so to whoever asks, and saves what can be restored. */
static void check_spoilt(jamba_session *s, uint8_t *room, size_t capacity)
{
    jamba_save_params params;
    jamba_candidate best;
    float logprob;
    int form;
    CHECK(jamba_session_error(s)->code == JAMBA_ERR_NUMERIC);
    CHECK(jamba_top(s, &best, 1) == 0);
    CHECK(jamba_score(s, prompt, 1, &logprob) == JAMBA_ERR_NUMERIC);
    memset(&params, 0, sizeof params);
    for (form = JAMBA_EXACT; form <= JAMBA_Q8; form++) {
        size_t size;
        params.state = params.kv = (jamba_form)form;
        size = jamba_session_save_as(s, &params, room, capacity);
        CHECK(size <= capacity && (size > 0 || form == JAMBA_F16));
        if (size > 0) CHECK(jamba_session_restore(s, room, size) == JAMBA_OK);
    }
}

typedef struct spoiled {
    image file;
    jamba_model *model;
    jamba_session *session;
    uint8_t *room;
    size_t capacity;
    const jmb_block *experts;
    float good[SMALL_VOCAB]; /* logits of the file as it was */
} spoiled;

/* Evaluates the prompt; the token sampled or an error. */
static int32_t evaluate(jamba_session *s)
{
    jamba_session_reset(s);
    CHECK(jamba_eval(s, prompt, PROMPT) == JAMBA_OK && jamba_logits(s) != NULL);
    return jamba_sample(s, NULL);
}

static void check_number(spoiled *m, const jmb_tensor *t, const number *n, uint32_t row)
{
    int32_t token = evaluate(m->session);
    bool finite = numbers_all(jamba_logits(m->session), SMALL_VOCAB), nan = n < numbers + NANS;
    bool needs_error = nan || (row == 0 && n->f32 == 0x7f800000 && must_stay_finite(t->role));
    char name[64];
    CHECK_THAT(finite ? token >= 0 && token < SMALL_VOCAB : token == JAMBA_ERR_NUMERIC, "%s in %s: sampled %d", n->name,
        jmb_tensor_name(t, name), (int)token);
    CHECK_THAT(!needs_error || token == JAMBA_ERR_NUMERIC, "%s in %s (%s): sampled %d", n->name,
        jmb_tensor_name(t, name), jmb_type_names[t->type], (int)token);
    if (m->experts) check_routing(m->session, m->experts->experts, m->experts->top_k);
    if (!finite) check_spoilt(m->session, m->room, m->capacity);
}

/* Every number in every tensor in turn; then the session is as good as new. */
static void check_tensor(spoiled *m, const jmb_tensor *t)
{
    uint8_t *data = m->file.data + t->offset, *before = (uint8_t *)malloc((size_t)t->bytes);
    uint32_t i, places = single_rows(t) + 1;
    memcpy(before, data, (size_t)t->bytes);
    for (i = 0; i < places * NUMBERS; i++) {
        spoil(data, t, &numbers[i / places], i % places);
        check_number(m, t, &numbers[i / places], i % places);
        memcpy(data, before, (size_t)t->bytes);
    }
    CHECK(evaluate(m->session) >= 0);
    CHECK(memcmp(jamba_logits(m->session), m->good, sizeof m->good) == 0);
    free(before);
}

/* roles NULL: routers alone. */
static void check_tensors(program *p, jamba_cpu cpu, const jmb_block *experts, bool *roles)
{
    spoiled m;
    uint32_t i;
    memset(&m, 0, sizeof m);
    m.file = write_image(p);
    m.model = load_image(&m.file, cpu);
    m.experts = experts;
    if (m.model) {
        m.session = open_session(m.model, NULL);
        CHECK(evaluate(m.session) >= 0);
        memcpy(m.good, jamba_logits(m.session), sizeof m.good);
        m.capacity = jamba_session_save(m.session, NULL, 0) + 65536;
        m.room = (uint8_t *)malloc(m.capacity);
        for (i = 0; i < m.model->metadata.header.tensors; i++) {
            const jmb_tensor *t = &m.model->metadata.tensors[i];
            if (roles || t->role == JMB_ROLE_ROUTER) check_tensor(&m, t);
            if (roles) roles[t->role] = true;
        }
        jamba_session_free(m.session);
        free(m.room);
    }
    jamba_model_free(m.model);
    image_free(&m.file);
}

/* A block of each kind with all that it can have. */
static program every_role(uint32_t type)
{
    program p = start_program(SMALL_VOCAB, 24, type);
    jmb_block *b = add_block(&p, JMB_ATTENTION);
    p.header.head = 1;
    b->flags = JMB_ROPE | JMB_BIAS;
    b->rank = 3;
    b = add_block(&p, JMB_MAMBA);
    b->flags = JMB_BIAS | JMB_CONV_BIAS | JMB_DT_NORM;
    b->heads = 1;
    b->dt_max = INFINITY;
    b = add_block(&p, JMB_MAMBA2);
    b->flags = JMB_BIAS | JMB_CONV_BIAS;
    b->dt_max = INFINITY;
    b = add_block(&p, JMB_MLP);
    b->flags = JMB_BIAS;
    b->rank = 3;
    add_block(&p, JMB_MLP)->output = JMB_SET_A;
    add_block(&p, JMB_LINEAR);
    add_block(&p, JMB_MLP)->input = JMB_FROM_X_PLUS_A;
    b = add_block(&p, JMB_MOE);
    b->flags = JMB_RENORMALISE;
    b->top_k = b->experts; /* all of them count */
    return p;
}

/* A router that leaves experts out. */
static program some_experts(uint32_t type, uint32_t flags)
{
    program p = start_program(SMALL_VOCAB, 24, type);
    jmb_block *b = add_block(&p, JMB_MOE);
    b->flags = flags;
    b->experts = 5;
    return p;
}

static void test_numbers(void)
{
    bool roles[JMB_ROLE_COUNT] = { false };
    uint32_t type, cpu, i;
    for (type = 0; type < JMB_TYPES; type++)
        for (cpu = JAMBA_CPU_SCALAR; cpu <= JAMBA_CPU_WASM; cpu++) {
            program all = every_role(type), some = some_experts(type, 0), norm = some_experts(type, JMB_RENORMALISE);
            check_tensors(&all, (jamba_cpu)cpu, &all.blocks[7], roles);
            check_tensors(&some, (jamba_cpu)cpu, &some.blocks[0], NULL);
            check_tensors(&norm, (jamba_cpu)cpu, &norm.blocks[0], NULL);
        }
    for (i = 0; i < JMB_ROLE_COUNT; i++) CHECK_THAT(roles[i], "no tensor of role %u", i);
}


/* ---- logits and samplers ------------------------------------------------------------------------ */

typedef enum pattern { ALL, ALL_BUT_ONE, FIRST, MIDDLE, LAST, PATTERNS } pattern;

/* Where a pattern has the number; elsewhere numbers from 0 to 1, or -Inf where all but one are spoilt. */
static bool in_pattern(pattern shape, size_t i)
{
    switch (shape) {
    case ALL: return true;
    case ALL_BUT_ONE: return i != SMALL_VOCAB / 2;
    case FIRST: return i == 0;
    case MIDDLE: return i == SMALL_VOCAB / 2;
    default: return i == SMALL_VOCAB - 1;
    }
}

/* low <= value <= high by the bits of numbers that are not negative, so that it holds under -ffast-math too. */
static bool float_is(float value, float low, float high)
{
    uint32_t bits = jmb_bits_of(value);
    if (bits == 0x80000000) bits = 0;
    return bits >= jmb_bits_of(low) && bits <= jmb_bits_of(high);
}

static bool sampler_is_valid(const jamba_sampler *p)
{
    return float_is(p->temperature, 0, FLT_MAX) && float_is(p->top_p, 0, 1) && float_is(p->min_p, 0, 1)
        && p->top_k >= 0 && p->repeat_window >= 0
        && (float_is(p->repeat_penalty, 0, 0) || float_is(p->repeat_penalty, 0.001f, 1000));
}

/* Draws a few: allowed tokens, or the error that the logits or the sampler are due; spread out where all are equal. */
static void check_draws(jamba_session *s, jamba_sampler p, const char *what)
{
    const float *logits = jamba_logits(s);
    bool valid = sampler_is_valid(&p), finite = numbers_all(logits, SMALL_VOCAB);
    int i;
    for (i = 0; i < 3; i++) {
        int32_t token = jamba_sample(s, &p);
        if (!valid) CHECK_THAT(token == JAMBA_ERR_ARGUMENT, "%s, refused sampler: %d", what, (int)token);
        else if (!finite) CHECK_THAT(token == JAMBA_ERR_NUMERIC, "%s: %d", what, (int)token);
        else /* a penalty may carry huge logits over the edge */
            CHECK_THAT((token >= 0 && token < SMALL_VOCAB)
                || (token == JAMBA_ERR_NUMERIC && p.repeat_penalty > 0), "%s: %d", what, (int)token);
    }
}

/* Every setting of the sampler at its extremes, one or two at a time, upon these logits. */
static void check_samplers(jamba_session *s, const char *what)
{
    static const uint32_t floats[] = { 0, 1, 0x80000000, 0x00800000, 0x3a83126f, 0x3f000000, 0x3f800000, 0x3f800001,
        0x447a0000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001, 0xbf800000 };
    static const int32_t counts[] = { 0, 1, 2, SMALL_VOCAB, SMALL_VOCAB + 1, INT32_MAX, -1, INT32_MIN };
    size_t i, k;
    for (i = 0; i < 16; i++)
        for (k = 0; k < 4 * 8; k++) {
            jamba_sampler p;
            float *fields[4];
            memset(&p, 0, sizeof p);
            fields[0] = &p.temperature;
            fields[1] = &p.top_p;
            fields[2] = &p.min_p;
            fields[3] = &p.repeat_penalty;
            p.temperature = 1;
            p.seed = i * 32 + k;
            p.top_k = counts[k / 4];
            if (i % 2) p.repeat_window = counts[(k / 4 + i) % 8];
            memcpy(fields[k % 4], &floats[i], 4);
            check_draws(s, p, what);
        }
}

static void test_samplers(void)
{
    program p = every_role(JMB_F32);
    image file = write_image(&p);
    jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
    jamba_session *s = open_session(model, NULL);
    size_t n, i;
    int shape;
    for (n = 0; n < NUMBERS; n++)
        for (shape = ALL; shape < PATTERNS; shape++) {
            uint8_t *logits;
            char what[80];
            CHECK(evaluate(s) >= 0);
            logits = (uint8_t *)(uintptr_t)jamba_logits(s); /* of this session, and not const */
            for (i = 0; i < SMALL_VOCAB; i++) {
                float other = shape == ALL_BUT_ONE ? 1 : (float)(i % 7) / 6;
                STORE_f32(logits + i * 4, other);
                if (in_pattern((pattern)shape, i)) STORE_u32(logits + i * 4, numbers[n].f32);
            }
            snprintf(what, sizeof what, "%s, pattern %d", numbers[n].name, shape);
            check_samplers(s, what);
        }
    CHECK(evaluate(s) >= 0);
    jamba_session_free(s);
    jamba_model_free(model);
    image_free(&file);
}

/* Of equal logits the first is the highest; drawn ones are of all kinds, whatever their common value. */
static void test_equal_logits(void)
{
    static const uint32_t values[] = { 0, 0x80000000, 1, 0x7f7fffff, 0xff7fffff, 0x42c80000 };
    program p = every_role(JMB_F32);
    image file = write_image(&p);
    jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
    jamba_session *s = open_session(model, NULL);
    size_t v, i;
    for (v = 0; v < sizeof values / sizeof values[0]; v++) {
        jamba_sampler sampler;
        bool seen[SMALL_VOCAB] = { false };
        int kinds = 0;
        CHECK(evaluate(s) >= 0);
        for (i = 0; i < SMALL_VOCAB; i++) STORE_u32((uint8_t *)(uintptr_t)(jamba_logits(s) + i), values[v]);
        CHECK(jamba_sample(s, NULL) == 0);
        memset(&sampler, 0, sizeof sampler);
        sampler.temperature = 0.5f;
        for (i = 0; i < 400; i++) {
            int32_t token = jamba_sample(s, &sampler);
            if (!CHECK(token >= 0 && token < SMALL_VOCAB)) break;
            kinds += !seen[token];
            seen[token] = true;
        }
        CHECK_THAT(kinds > SMALL_VOCAB * 9 / 10, "value %08x: %d tokens", (unsigned)values[v], kinds);
    }
    jamba_session_free(s);
    jamba_model_free(model);
    image_free(&file);
}

/* ---- the caller's floating-point settings ------------------------------------------------------- */

typedef struct setting {
    int rounding;
    bool flush, traps; /* subnormals to zero; exceptions are signals */
} setting;

/* All that a call must leave as it was: control words, and exceptions raised so far. */
typedef struct registers {
    uint64_t control, status;
} registers;

#if defined(__x86_64__) || (defined(__i386__) && defined(__SSE2__))

static registers registers_now(void)
{
    registers r;
    uint16_t control, status;
    __asm__ volatile("fnstcw %0\n\tfnstsw %1" : "=m"(control), "=m"(status));
    r.control = (uint64_t)_mm_getcsr() << 16 | control;
    r.status = status;
    return r;
}

static void flush_subnormals(void)
{
    _mm_setcsr(_mm_getcsr() | 0x8040);
}

#elif defined(__aarch64__)

static registers registers_now(void)
{
    registers r;
    __asm__ volatile("mrs %0, fpcr\n\tmrs %1, fpsr" : "=r"(r.control), "=r"(r.status));
    return r;
}

static void flush_subnormals(void)
{
    uint64_t control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    __asm__ volatile("msr fpcr, %0" : : "r"(control | 1u << 24));
}

#else

static registers registers_now(void)
{
    registers r;
    r.control = (uint64_t)fegetround();
    r.status = (uint64_t)fetestexcept(FE_ALL_EXCEPT);
    return r;
}

static void flush_subnormals(void)
{
}

#endif

static void settings_default(void)
{
    fesetenv(FE_DFL_ENV);
}

static void settings_apply(const setting *s)
{
    settings_default();
    fesetround(s->rounding);
    if (s->flush) flush_subnormals();
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__i386__))
    if (s->traps) feenableexcept(FE_ALL_EXCEPT);
#endif
}

enum { SETTINGS = 16 };

static setting setting_of(int i)
{
    static const int roundings[] = { FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO };
    setting s;
    s.rounding = roundings[i % 4];
    s.flush = (i & 4) != 0;
    s.traps = (i & 8) != 0;
    return s;
}

/* What the calls below work on: examples/storyteller in q8, an adapter, states saved in each form. */
enum { STATE_FORMS = 3, STORY = 6 };

typedef struct host {
    image small;
    uint8_t *file, *adapter_file, *room, *states[STATE_FORMS];
    size_t size, adapter_size, room_size, state_sizes[STATE_FORMS];
    jamba_model *model;
    jamba_adapter *adapter;
    jamba_session *session;
    uint64_t hash; /* of what the calls gave */
} host;

static const int32_t story[STORY] = { 1, 4, 477, 262, 733, 502 };

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size)
{
    const uint8_t *p = (const uint8_t *)data;
    while (size-- > 0) hash = jmb_hash_word(hash, *p++);
    return hash;
}

static void note(host *h, const void *data, size_t size)
{
    h->hash = hash_bytes(h->hash, data, size);
}

static void note_number(host *h, int64_t value)
{
    note(h, &value, sizeof value);
}

static void note_logits(host *h, const jamba_session *s)
{
    const float *logits = jamba_logits(s);
    note_number(h, logits != NULL);
    if (logits) note(h, logits, (size_t)model_vocab(h->model) * sizeof *logits);
}

static void begin(host *h)
{
    jamba_session_reset(h->session);
    note_number(h, jamba_eval(h->session, story, STORY));
}

static void call_words(host *h)
{
    jamba_io io = { NULL, NULL, 0 };
    note_number(h, jamba_version());
    note_number(h, (int64_t)strlen(jamba_build_info()));
    note(h, jamba_result_name(JAMBA_ERR_NUMERIC), 5);
    note_number(h, jamba_from_file("a").path[0]);
    note_number(h, (int64_t)jamba_from_io(io).io.size);
}

static void call_load(host *h)
{
    jamba_model_params params;
    jamba_model *model;
    jamba_model_info info;
    memset(&params, 0, sizeof params);
    params.verify = true;
    note_number(h, jamba_model_load(&model, jamba_from_memory(h->file, h->size), &params, NULL));
    jamba_model_describe(model, &info);
    note(h, info.identity, sizeof info.identity);
    note_number(h, (int64_t)info.parameters_active);
    note(h, jamba_model_meta(model, "architecture"), 4);
    jamba_model_free(model);
}

/* Settings of blocks that are subnormal are positive all the same. */
static void call_small(host *h)
{
    jamba_model *model;
    jamba_session *s;
    note_number(h, jamba_model_load(&model, jamba_from_memory(h->small.data, h->small.size), NULL, NULL));
    note_number(h, jamba_session_create(&s, model, NULL, NULL));
    note_number(h, jamba_eval(s, prompt, PROMPT));
    note(h, jamba_logits(s), SMALL_VOCAB * sizeof(float));
    jamba_session_free(s);
    jamba_model_free(model);
}

static void call_adapter(host *h)
{
    jamba_adapter *adapter;
    jamba_adapter_info info;
    jamba_source source = jamba_from_memory(h->adapter_file, h->adapter_size);
    note_number(h, jamba_adapter_load(&adapter, h->model, source, NULL));
    jamba_adapter_describe(adapter, &info);
    note(h, &info.hash, sizeof info.hash);
    jamba_adapter_free(adapter);
}

static void call_adapters(host *h)
{
    static const float scales[] = { 0.7f, 1e-40f };
    size_t size;
    int i;
    for (i = 0; i < 2; i++) { /* a subnormal scale is not 0: what is saved says that an adapter is set */
        jamba_session_reset(h->session);
        note_number(h, jamba_session_set_adapters(h->session, &h->adapter, &scales[i], 1));
        note_number(h, jamba_eval(h->session, story, STORY));
        note_logits(h, h->session);
        size = jamba_session_save(h->session, h->room, h->room_size);
        note(h, h->room, size);
    }
    jamba_session_reset(h->session);
    note_number(h, jamba_session_set_adapters(h->session, NULL, NULL, 0));
}

static void call_session(host *h)
{
    jamba_session *s, *fork;
    jamba_memory memory;
    jamba_session_info info;
    size_t count;
    note_number(h, jamba_session_estimate(h->model, NULL, &memory));
    note_number(h, (int64_t)memory.scratch);
    note_number(h, jamba_session_create(&s, h->model, NULL, NULL));
    note_number(h, jamba_feed(s, story, STORY));
    while (jamba_step(s, 20) == JAMBA_PENDING) {}
    note_logits(h, s);
    note_number(h, jamba_session_fork_estimate(s, 8, &memory));
    note_number(h, jamba_session_fork(&fork, s, 8, NULL));
    note_number(h, jamba_eval(fork, story, 2));
    note_logits(h, fork);
    jamba_session_describe(fork, &info);
    note_number(h, info.position);
    note_number(h, jamba_session_tokens(fork, &count)[3]);
    note_number(h, jamba_session_error(fork)->code);
    jamba_session_free(fork);
    jamba_session_free(s);
}

static void call_eval(host *h)
{
    begin(h);
    note_logits(h, h->session);
}

static void call_batch(host *h)
{
    jamba_session *both[2];
    int32_t next[2] = { 7, 9 };
    begin(h);
    both[0] = h->session;
    note_number(h, jamba_session_fork(&both[1], h->session, 8, NULL));
    note_number(h, jamba_eval_batch(both, next, 2));
    note_number(h, jamba_feed(both[1], story, 2));
    note_number(h, jamba_step_batch(both, 2, 0));
    note_logits(h, both[0]);
    note_logits(h, both[1]);
    jamba_session_free(both[1]);
}

static void call_marks(host *h)
{
    int32_t replay;
    begin(h);
    note_number(h, jamba_session_mark(h->session));
    note_number(h, jamba_eval(h->session, story, 3));
    note_number(h, jamba_session_rewind(h->session, STORY + 2, &replay));
    note_number(h, replay);
    note_number(h, jamba_step(h->session, 0));
    note_logits(h, h->session);
}

/* Settings that need exact arithmetic: their results are full of roundings and subnormals. */
static void call_sample(host *h)
{
    static const float temperatures[] = { 1e-40f, 1e-3f, 0.3f, 0.7f, 1, 1.9f, 30, 3e38f };
    jamba_sampler p;
    int i;
    begin(h);
    memset(&p, 0, sizeof p);
    note_number(h, jamba_sample(h->session, NULL));
    for (i = 0; i < 64; i++) {
        p.temperature = temperatures[i / 8];
        p.top_p = i % 2 ? 0.37f : 0;
        p.min_p = i % 3 ? 0 : 0.01f;
        p.top_k = i % 4 ? 0 : 13;
        p.repeat_penalty = i % 5 ? 1.3f : 0;
        note_number(h, jamba_sample(h->session, &p));
    }
    note(h, &p.seed, sizeof p.seed);
}

static void call_scores(host *h)
{
    jamba_candidate best[5];
    float logprobs[3];
    size_t count, i;
    begin(h);
    count = jamba_top(h->session, best, 5);
    for (i = 0; i < count; i++) {
        note_number(h, best[i].token);
        note(h, &best[i].logprob, sizeof best[i].logprob);
    }
    note_number(h, jamba_score(h->session, story, 3, logprobs));
    note(h, logprobs, sizeof logprobs);
}

static jamba_save_params form_of(int form)
{
    jamba_save_params params;
    memset(&params, 0, sizeof params);
    params.state = params.kv = (jamba_form)form;
    return params;
}

static void call_save(host *h)
{
    int form;
    begin(h);
    for (form = 0; form < STATE_FORMS; form++) {
        jamba_save_params params = form_of(form);
        size_t size = jamba_session_save_as(h->session, &params, h->room, h->room_size);
        note_number(h, (int64_t)size);
        note(h, h->room, size);
    }
}

static void call_restore(host *h)
{
    int form;
    for (form = 0; form < STATE_FORMS; form++) {
        jamba_source source = jamba_from_memory(h->states[form], h->state_sizes[form]);
        jamba_state_info info;
        note_number(h, jamba_state_describe(h->states[form], h->state_sizes[form], &info, NULL));
        note_number(h, info.position);
        note_number(h, jamba_session_restore(h->session, h->states[form], h->state_sizes[form]));
        note_logits(h, h->session);
        note_number(h, jamba_session_load(h->session, source));
        note_number(h, jamba_eval(h->session, story, 1));
        note_logits(h, h->session);
    }
}

static void call_text(host *h)
{
    static const char text[] = "I, Iris, paid 1,5 coins. \xc4\xb0stanbul \xc4\xb1";
    int32_t tokens[64];
    char back[JAMBA_TEXT_MAX];
    jamba_text_stream stream;
    size_t count, length, i;
    memset(&stream, 0, sizeof stream);
    note_number(h, jamba_encode(h->model, text, sizeof text - 1, JAMBA_TEXT_BOS, tokens, 64, &count, NULL));
    note(h, tokens, count * sizeof *tokens);
    note_number(h, jamba_decode(h->model, tokens, count, 0, back, sizeof back, &length, NULL));
    note(h, back, length);
    for (i = 0; i < count; i++) note(h, back, jamba_decode_next(h->model, &stream, tokens[i], 0, back));
    note(h, jamba_token_text(h->model, 300, &length), length);
    note_number(h, jamba_token_find(h->model, "I"));
    note_number(h, jamba_token_is_end(h->model, 2));
}

static void call_talk(host *h)
{
    static const jamba_message message = { "user", "Tell me a story about a dog." };
    jamba_reply_params params;
    jamba_sampler sampler;
    jamba_turn turns[4];
    int32_t tokens[64], replay;
    const char *text;
    size_t length, count;
    memset(&params, 0, sizeof params);
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 0.8f;
    params.sampler = &sampler;
    params.max_tokens = 8;
    note_number(h, jamba_chat_encode(h->model, &message, 1, JAMBA_CHAT_BEGIN, tokens, 64, &count, NULL));
    note(h, tokens, count * sizeof *tokens);
    jamba_session_reset(h->session);
    note_number(h, jamba_say(h->session, message.role, message.content));
    while (jamba_reply(h->session, &params, &text, &length) == JAMBA_OK && length > 0) note(h, text, length);
    note_number(h, jamba_say(h->session, "user", "And then?"));
    note_number(h, (int64_t)jamba_turns(h->session, turns, 4));
    note_number(h, jamba_session_restart(h->session, 1, &replay));
    note_number(h, jamba_step(h->session, 0));
    note_logits(h, h->session);
}

static void call_choose(host *h)
{
    static const char *const options[] = { " dog.", " cat and a dog.", " cat." };
    jamba_sampler sampler;
    static const float temperatures[] = { 1e-40f, 0.5f, 3 };
    float logprobs[3];
    int32_t choice;
    int i;
    begin(h);
    memset(&sampler, 0, sizeof sampler);
    note_number(h, jamba_choose(h->session, options, 3, NULL, logprobs, &choice));
    note(h, logprobs, sizeof logprobs);
    note_number(h, choice);
    for (i = 0; i < 3; i++) {
        sampler.temperature = temperatures[i];
        note_number(h, jamba_choose(h->session, options, 3, &sampler, NULL, &choice));
        note_number(h, choice);
        note(h, &sampler.seed, sizeof sampler.seed);
    }
}

static const struct {
    const char *name;
    void (*run)(host *h);
} calls[] = {
    { "words", call_words },
    { "load", call_load },
    { "small", call_small },
    { "adapter", call_adapter },
    { "adapters", call_adapters },
    { "session", call_session },
    { "eval", call_eval },
    { "batch", call_batch },
    { "marks", call_marks },
    { "sample", call_sample },
    { "scores", call_scores },
    { "save", call_save },
    { "restore", call_restore },
    { "text", call_text },
    { "talk", call_talk },
    { "choose", call_choose },
};
enum { CALLS = sizeof calls / sizeof calls[0] };

/* A model whose settings are the least positive numbers. */
static image small_image(void)
{
    program p = start_program(SMALL_VOCAB, 16, JMB_F32);
    jmb_block *b = add_block(&p, JMB_MAMBA2);
    b->eps = b->inner_eps = jmb_float_of(1);
    b->dt_min = jmb_float_of(2);
    b->dt_max = jmb_float_of(3);
    return write_image(&p);
}

static void host_open(host *h)
{
    char model[PATH_ROOM], adapter[PATH_ROOM], errors[2000];
    const char *arguments[] = { "examples/characters/pirate", adapter, "--base", model, "--force", NULL };
    jamba_session_params params;
    int form;
    memset(h, 0, sizeof *h);
    memset(&params, 0, sizeof params);
    params.marks = 4;
    params.context = 256;
    test_require(convert("examples/storyteller", "storyteller", "q8", model), "cannot convert", "examples/storyteller");
    temp_path(adapter, "pirate.jamba-lora");
    test_require(tool_run("convert", arguments, errors, sizeof errors) == 0, "cannot convert the adapter", errors);
    h->file = file_need(model, &h->size);
    h->adapter_file = file_need(adapter, &h->adapter_size);
    h->model = load_model(jamba_from_memory(h->file, h->size), NULL);
    test_require(h->model != NULL, "does not load:", model);
    jamba_adapter_load(&h->adapter, h->model, jamba_from_memory(h->adapter_file, h->adapter_size), NULL);
    h->session = open_session(h->model, &params);
    begin(h);
    h->small = small_image();
    h->room_size = jamba_session_save(h->session, NULL, 0) + 4096;
    h->room = (uint8_t *)malloc(h->room_size);
    for (form = 0; form < STATE_FORMS; form++) {
        jamba_save_params save = form_of(form);
        h->state_sizes[form] = jamba_session_save_as(h->session, &save, NULL, 0);
        h->states[form] = (uint8_t *)malloc(h->state_sizes[form]);
        jamba_session_save_as(h->session, &save, h->states[form], h->state_sizes[form]);
    }
}

static void host_close(host *h)
{
    int form;
    jamba_session_free(h->session);
    jamba_adapter_free(h->adapter);
    jamba_model_free(h->model);
    for (form = 0; form < STATE_FORMS; form++) free(h->states[form]);
    image_free(&h->small);
    free(h->room);
    free(h->adapter_file);
    free(h->file);
}

/* A call under a setting: the hash of what it gave, and whether it left the setting alone. */
static uint64_t run_call(host *h, size_t call, const setting *s, bool *left)
{
    registers before, after;
    h->hash = JMB_HASH_SEED;
    settings_apply(s);
    before = registers_now();
    calls[call].run(h);
    after = registers_now();
    settings_default();
    *left = before.control == after.control && before.status == after.status;
    return h->hash;
}

static void test_settings(void)
{
    const setting standard = { FE_TONEAREST, false, false };
    host h;
    size_t call;
    int i;
    host_open(&h);
    for (call = 0; call < CALLS; call++) {
        bool left;
        uint64_t expected = run_call(&h, call, &standard, &left);
        for (i = 0; i < SETTINGS; i++) {
            setting s = setting_of(i);
            bool same = run_call(&h, call, &s, &left) == expected;
            CHECK_THAT(same, "%s with setting %d: other results", calls[call].name, i);
            CHECK_THAT(left, "%s with setting %d: leaves other settings", calls[call].name, i);
        }
    }
    host_close(&h);
}

/* Every function of the interface is in some row of the table above. */
static void test_every_call(void)
{
    size_t size, own_size, count = 0;
    uint8_t *header = file_need("jamba.h", &size), *own = file_need("tests/numerics.c", &own_size);
    char *at = (char *)header, *end = strstr((char *)header, "#endif /* JAMBA_H */");
    while (end && (at = strstr(at, "\nJAMBA_API ")) != NULL && at < end) {
        char *open = strchr(++at, '('), *name = open, call[80];
        while (name[-1] != ' ' && name[-1] != '*') name--;
        snprintf(call, sizeof call, "%.*s(", (int)(open - name), name);
        CHECK_THAT(strstr((char *)own, call) != NULL, "%s) is not called with any settings", call);
        count++;
    }
    CHECK_THAT(count > 40, "%d functions", (int)count);
    free(header);
    free(own);
}

/* ---- numbers in adapters ------------------------------------------------------------------------ */

/* The adapter's file as it stands, used for some tokens: an error or a token. */
static int32_t sample_adapted(host *h)
{
    uint8_t *file = h->adapter_file;
    jamba_source source = jamba_from_memory(file, h->adapter_size);
    jamba_adapter *adapter;
    bool finite;
    int32_t token;
    STORE_u64(file + 24, jmb_hash64(jmb_hash64(JMB_HASH_SEED, file, 24), file + 32, h->adapter_size - 32));
    CHECK(jamba_adapter_load(&adapter, h->model, source, NULL) == JAMBA_OK);
    jamba_session_reset(h->session);
    CHECK(jamba_session_set_adapters(h->session, &adapter, NULL, 1) == JAMBA_OK);
    token = evaluate(h->session);
    finite = numbers_all(jamba_logits(h->session), (size_t)model_vocab(h->model));
    CHECK(finite ? token >= 0 : token == JAMBA_ERR_NUMERIC);
    jamba_session_reset(h->session);
    CHECK(jamba_session_set_adapters(h->session, NULL, NULL, 0) == JAMBA_OK);
    jamba_adapter_free(adapter);
    return token;
}

/* The first number of each matrix; experts may go unused. */
static void test_adapter_numbers(void)
{
    host h;
    uint32_t count, i, n, side;
    host_open(&h);
    count = jmb_load_u32(h.adapter_file + 12);
    for (i = 0; i < count; i++) {
        const uint8_t *entry = h.adapter_file + JMB_ADAPTER_BYTES + i * JMB_ADAPTER_ENTRY;
        uint32_t role = jmb_load_u32(entry + 4);
        bool expert = role == JMB_ROLE_GATE_UP || role == JMB_ROLE_DOWN;
        jmb_tensor t;
        memset(&t, 0, sizeof t);
        t.type = jmb_load_u32(entry + 16);
        for (n = 0; n < 2 * NUMBERS; n++) {
            uint8_t *at, before[4];
            int32_t token;
            side = n % 2;
            at = h.adapter_file + jmb_load_u64(entry + 32 + 8 * side);
            memcpy(before, at, 4);
            put_number(at, &t, &numbers[n / 2]);
            token = sample_adapted(&h);
            CHECK_THAT(expert || n / 2 >= NANS || token == JAMBA_ERR_NUMERIC, "%s in matrix %u of entry %u: %d",
                numbers[n / 2].name, side, i, (int)token);
            memcpy(at, before, 4);
        }
    }
    CHECK(count > 0 && sample_adapted(&h) >= 0);
    host_close(&h);
}

/* ---- threads with settings of their own --------------------------------------------------------- */

/* Each task under a setting of its own, which it must leave as it was. */
static void run_unsettled(void *user, int count, jamba_task_fn task, void *ctx)
{
    int *spoilt = (int *)user, i;
    for (i = 0; i < count; i++) {
        setting s = setting_of(i % SETTINGS);
        registers before, after;
        settings_apply(&s);
        before = registers_now();
        task(ctx, i);
        after = registers_now();
        if (before.control != after.control || before.status != after.status) ++*spoilt;
    }
    settings_default();
}

#if THREADS_POSIX

typedef struct worker {
    pthread_t thread;
    jamba_task_fn task;
    void *ctx;
    int index, spoilt;
} worker;

static void *work(void *user)
{
    worker *w = (worker *)user;
    setting s = setting_of((w->index + 1) * 5 % SETTINGS);
    registers before, after;
    settings_apply(&s);
    before = registers_now();
    w->task(w->ctx, w->index);
    after = registers_now();
    w->spoilt = before.control != after.control || before.status != after.status;
    return NULL;
}

/* The same on threads that live at once. */
static void run_workers(void *user, int count, jamba_task_fn task, void *ctx)
{
    worker workers[8];
    int i;
    for (i = 0; i < count; i++) {
        workers[i].task = task;
        workers[i].ctx = ctx;
        workers[i].index = i;
        test_require(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "no threads", "");
    }
    for (i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        *(int *)user += workers[i].spoilt;
    }
}

#endif

static void check_executor(const jamba_model *model, const float *expected, jamba_executor executor, const char *what)
{
    static const int32_t tokens[] = { 1, 2, 3, 4, 5, 6, 7 };
    jamba_session_params params;
    int spoilt = 0;
    float *logits;
    memset(&params, 0, sizeof params);
    executor.user = &spoilt;
    params.executor = &executor;
    params.chunk = 4;
    logits = model_logits(model, &params, tokens, 7, 0);
    CHECK_THAT(logits && memcmp(logits, expected, 7 * SMALL_VOCAB * sizeof *logits) == 0, "%s: other logits", what);
    CHECK_THAT(spoilt == 0, "%s: %d tasks leave other settings", what, spoilt);
    free(logits);
}

static void test_threads(void)
{
    static const int32_t tokens[] = { 1, 2, 3, 4, 5, 6, 7 };
    uint32_t cpu;
    for (cpu = JAMBA_CPU_SCALAR; cpu <= JAMBA_CPU_WASM; cpu++) {
        program p = every_role(JMB_TYPES);
        image file = write_image(&p);
        jamba_model *model = load_image(&file, (jamba_cpu)cpu);
        float *expected = model ? model_logits(model, NULL, tokens, 7, 0) : NULL;
        jamba_executor executor;
        memset(&executor, 0, sizeof executor);
        executor.width = 5;
        executor.run = run_unsettled;
        if (expected) check_executor(model, expected, executor, "one after the other");
#if THREADS_POSIX
        executor.run = run_workers;
        executor.concurrent = true;
        if (expected) check_executor(model, expected, executor, "at once");
#endif
        free(expected);
        jamba_model_free(model);
        image_free(&file);
    }
}

/* The last norm's weights as subnormals. */
static void make_subnormal(const image *file, const jamba_model *model)
{
    uint32_t i, at;
    for (i = 0; i < model->metadata.header.tensors; i++) {
        const jmb_tensor *t = &model->metadata.tensors[i];
        for (at = 0; t->role == JMB_ROLE_FINAL_NORM && at < t->rows; at++)
            STORE_u32(file->data + t->offset + at * 4, 0x00400000 + at);
    }
}

/* Tasks do not flush to zero: logits of such weights are subnormal, not 0. */
static void test_subnormals(void)
{
    const setting flush = { FE_TONEAREST, true, false };
    uint32_t cpu, i;
    for (cpu = JAMBA_CPU_SCALAR; cpu <= JAMBA_CPU_WASM; cpu++) {
        program p = start_program(SMALL_VOCAB, 16, JMB_F32);
        image file;
        jamba_model *model;
        jamba_session *s;
        uint32_t subnormal = 0;
        add_block(&p, JMB_MLP);
        file = write_image(&p);
        model = load_image(&file, (jamba_cpu)cpu);
        if (model) {
            make_subnormal(&file, model);
            s = open_session(model, NULL);
            settings_apply(&flush);
            CHECK(evaluate(s) >= 0);
            settings_default();
            for (i = 0; i < SMALL_VOCAB; i++) {
                uint32_t bits = jmb_bits_of(jamba_logits(s)[i]) & 0x7fffffff;
                subnormal += bits > 0 && bits < 0x00800000;
            }
            CHECK_THAT(subnormal > SMALL_VOCAB / 2, "%u subnormal logits", subnormal);
            jamba_session_free(s);
        }
        jamba_model_free(model);
        image_free(&file);
    }
}

/* ---- the caller's locale ------------------------------------------------------------------------ */

#if !defined(__EMSCRIPTEN__)

/* The locale with a decimal comma; where the system lacks it, one made in the build folder, before it is asked for:
 * libc remembers what it has not found. */
static bool enter_locale(const char *name)
{
    char folder[PATH_ROOM], full[40], place[PATH_ROOM], command[3 * PATH_ROOM];
    snprintf(full, sizeof full, "%s.UTF-8", name);
    if (!setlocale(LC_ALL, full)) {
        mkdir(temp_path(folder, "locales"), 0777);
        snprintf(place, sizeof place, "%.400s/%s", folder, name);
        snprintf(command, sizeof command, "localedef -i %s -f UTF-8 '%s' >/dev/null 2>&1", name, place);
        if (!file_exists(place) && system(command) < 0) return false;
        setenv("LOCPATH", folder, 1);
        snprintf(full, sizeof full, "%s", name);
        if (!setlocale(LC_ALL, full)) return false;
    }
    setenv("LC_ALL", full, 1);
    return localeconv()->decimal_point[0] == ',';
}

static void leave_locale(void)
{
    setlocale(LC_ALL, "C");
    unsetenv("LC_ALL");
    unsetenv("LOCPATH");
}

/* What two tools write under the environment's locale. */
static uint64_t tool_hash(void)
{
    char model[PATH_ROOM], out[PATH_ROOM], errors[2000];
    const char *arguments[] = { model, "--tensors", NULL };
    uint64_t hash = JMB_HASH_SEED;
    size_t size;
    uint8_t *bytes;
    int i;
    convert("tests/cases/zamba2-dt-min", "locale", "q8", model);
    temp_path(out, "inspect.txt");
    CHECK(tool_run_with("inspect", arguments, "/dev/null", out, errors, sizeof errors) == 0);
    for (i = 0; i < 2; i++) {
        bytes = file_need(i ? out : model, &size);
        hash = hash_bytes(hash, bytes, size);
        free(bytes);
    }
    return hash;
}

/* Everything under a locale in which 1.5 is 1,5, and I no capital i. */
static void check_locale(const char *name)
{
    const setting standard = { FE_TONEAREST, false, false };
    uint64_t expected[CALLS], tools = tool_hash();
    host h;
    bool left;
    size_t call;
    host_open(&h);
    for (call = 0; call < CALLS; call++) expected[call] = run_call(&h, call, &standard, &left);
    if (!enter_locale(name)) {
        leave_locale();
        host_close(&h);
        test_skip("no such locale, nor the sources of it (Debian: locales)");
        return;
    }
    for (call = 0; call < CALLS; call++)
        CHECK_THAT(run_call(&h, call, &standard, &left) == expected[call], "%s: other results", calls[call].name);
    CHECK(tool_hash() == tools);
    leave_locale();
    host_close(&h);
    test_end();
}

#else

static void check_locale(const char *name)
{
    (void)name;
    test_skip("WebAssembly has no locales");
}

#endif

/* ---- very long texts ---------------------------------------------------------------------------- */

enum { LONG_BLOCKS = 4, STRETCH = 1000 };

typedef struct family {
    const char *name;
    uint32_t kinds[LONG_BLOCKS];
} family;

static const family families[] = {
    { "mamba", { JMB_MAMBA, JMB_MAMBA, 0, 0 } },
    { "mamba2", { JMB_MAMBA2, JMB_MAMBA2, 0, 0 } },
    { "mamba and experts", { JMB_MAMBA, JMB_MLP, JMB_MAMBA, JMB_MOE } },
    { "attention and experts", { JMB_MAMBA, JMB_ATTENTION, JMB_MOE, JMB_MAMBA2 } },
};
enum { FAMILIES = sizeof families / sizeof families[0] };

static bool has_attention(const family *f)
{
    int i;
    for (i = 0; i < LONG_BLOCKS; i++)
        if (f->kinds[i] == JMB_ATTENTION) return true;
    return false;
}

/* Attention looks at all tokens for each one: a tenth of them is enough. */
static size_t steps_of(const family *f)
{
    const char *given = getenv("STEPS");
    size_t steps = given ? (size_t)strtoull(given, NULL, 10) : 50000;
    if (has_attention(f)) steps /= 10;
    return (steps + 2 * STRETCH - 1) / (2 * STRETCH) * 2 * STRETCH;
}

/* Feeds `steps` tokens, all the same or random ones; whether all logits looked at are finite. */
static bool run_on(jamba_session *s, size_t steps, bool constant, uint64_t *random)
{
    int32_t tokens[STRETCH];
    size_t done, i;
    for (done = 0; done < steps; done += STRETCH) {
        for (i = 0; i < STRETCH; i++) tokens[i] = constant ? 7 : (int32_t)pick(random, 0, SMALL_VOCAB - 1);
        if (!CHECK(jamba_eval(s, tokens, STRETCH) == JAMBA_OK)) return false;
        if (!CHECK_THAT(numbers_all(jamba_logits(s), SMALL_VOCAB), "not finite after %u tokens", (unsigned)done))
            return false;
    }
    return true;
}

/* Half the way, saved, restored into a new session, and on: the same state as in one go, byte for byte. */
static void check_long(const jamba_model *model, size_t steps, bool constant)
{
    jamba_session_params params;
    jamba_session *whole, *half;
    uint64_t random = 5, again = 5;
    uint8_t *first, *second;
    size_t size, other;
    memset(&params, 0, sizeof params);
    params.context = (int32_t)steps;
    whole = open_session(model, &params);
    half = open_session(model, &params);
    run_on(half, steps / 2, constant, &again);
    size = jamba_session_save(half, NULL, 0);
    first = (uint8_t *)malloc(size);
    CHECK(jamba_session_save(half, first, size) == size);
    jamba_session_free(half);
    half = open_session(model, &params);
    CHECK(jamba_session_restore(half, first, size) == JAMBA_OK);
    free(first);
    run_on(half, steps / 2, constant, &again);
    run_on(whole, steps, constant, &random);
    size = jamba_session_save(whole, NULL, 0);
    other = jamba_session_save(half, NULL, 0);
    first = (uint8_t *)malloc(size);
    second = (uint8_t *)malloc(other);
    jamba_session_save(whole, first, size);
    jamba_session_save(half, second, other);
    CHECK(size == other && memcmp(first, second, size) == 0);
    free(first);
    free(second);
    jamba_session_free(whole);
    jamba_session_free(half);
}

static void test_long(const family *f)
{
    program p = start_program(SMALL_VOCAB, 24, JMB_Q8);
    image file;
    jamba_model *model;
    int i;
    p.header.context = 1 << 20;
    for (i = 0; i < LONG_BLOCKS && f->kinds[i]; i++) add_block(&p, f->kinds[i]);
    file = write_image(&p);
    model = load_image(&file, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        check_long(model, steps_of(f), true);
        check_long(model, steps_of(f), false);
    }
    jamba_model_free(model);
    image_free(&file);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "numbers in every tensor", test_numbers },
        { "samplers and logits of every number", test_samplers },
        { "equal logits", test_equal_logits },
        { "the caller's settings", test_settings },
        { "every call with the caller's settings", test_every_call },
        { "numbers in every matrix of an adapter", test_adapter_numbers },
        { "threads with settings of their own", test_threads },
        { "subnormal logits", test_subnormals },
    };
    static const char *const locales[] = { "de_DE", "tr_TR" };
    size_t i;
    test_start(argc, argv);
    test_run(tests, sizeof tests / sizeof tests[0]);
    for (i = 0; i < sizeof locales / sizeof locales[0]; i++)
        if (test_begin("locale %s", locales[i])) check_locale(locales[i]);
    for (i = 0; i < FAMILIES; i++) {
        if (!test_begin("%s, %u tokens", families[i].name, (unsigned)steps_of(&families[i]))) continue;
        test_long(&families[i]);
        test_end();
    }
    return test_summary();
}
