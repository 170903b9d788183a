/* api.c - a script of public calls, one byte each and its arguments behind it, on several sessions of two models
 *
 * Any order and any arguments but pointers: errors are fine, what a call promises is checked. */
#include "subjects.h"

enum { SESSIONS = 4, CALLS = 40, CONTEXT = 40, STATE_ROOM = 1 << 16 };

static subject subjects[2];
static jamba_adapter *adapter;

/* One run of a script. */
typedef struct machine {
    fuzz_input in;
    jamba_session *sessions[SESSIONS];
    int model[SESSIONS];
    uint8_t *saved;
    size_t saved_size;
    uint64_t clock;
    jamba_sampler sampler;
} machine;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    uint8_t *bytes;
    size_t size;
    (void)argc;
    (void)argv;
    subject_open(&subjects[0], FUZZ_HYBRID, NULL);
    subject_open(&subjects[1], FUZZ_ZAMBA, NULL);
    bytes = fuzz_adapter(FUZZ_HYBRID, 0, 2, 2, &size);
    FUZZ_CHECK(jamba_adapter_load(&adapter, subjects[0].model, jamba_from_memory(bytes, size), NULL) == JAMBA_OK);
    free(bytes);
    return 0;
}

/* ---- arguments ----------------------------------------------------------------------------------------- */

static float any_float(fuzz_input *in)
{
    static const float some[] = { 0, 1, 0.5f, -1, 1e-30f, 1e30f, 0.9f, 2 };
    uint8_t kind = fuzz_u8(in);
    uint32_t bits;
    float value;
    if (kind < 224) return some[kind % 8];
    bits = fuzz_u32(in);
    memcpy(&value, &bits, 4);
    return value;
}

/* Mostly small. */
static int32_t any_int(fuzz_input *in)
{
    uint8_t kind = fuzz_u8(in);
    return kind < 240 ? kind % 32 : (int32_t)fuzz_u32(in);
}

static size_t any_tokens(machine *m, int32_t *tokens, size_t room)
{
    size_t count = fuzz_u8(&m->in) % (room + 1), i;
    for (i = 0; i < count; i++) {
        uint8_t byte = fuzz_u8(&m->in);
        tokens[i] = byte == 255 ? (int32_t)fuzz_u32(&m->in) : byte % 20;
    }
    return count;
}

static uint64_t tick(void *user)
{
    return ++*(uint64_t *)user;
}

static bool stop_sometimes(void *user, const char *stage, uint64_t done, uint64_t total)
{
    (void)stage;
    FUZZ_CHECK(done <= total);
    return ++*(uint64_t *)user % 13 != 0;
}

static void sometimes_forbid(void *user, float *logits, int32_t vocab)
{
    int32_t i;
    uint64_t which = *(uint64_t *)user;
    for (i = 0; i < vocab; i++)
        if (which >> (i % 8) & 1) logits[i] = -1.0f / 0.0f;
}

static void see_logits(void *user, int32_t position, const float *logits)
{
    (void)position;
    *(uint64_t *)user += logits[0] > 0;
}

/* ---- calls ---------------------------------------------------------------------------------------------- */

static void call_create(machine *m, int s)
{
    jamba_session_params params;
    jamba_memory memory;
    jamba_error error;
    uint8_t kind = fuzz_u8(&m->in);
    jamba_session_free(m->sessions[s]);
    memset(&params, 0, sizeof params);
    params.allocator = &subject_allocator;
    params.context = kind & 16 ? any_int(&m->in) : CONTEXT;
    params.chunk = any_int(&m->in) % 4096;
    params.marks = any_int(&m->in) % 4096;
    params.mark_every = kind & 1 ? any_int(&m->in) : 0;
    params.kv_type = (jamba_kv_type)(kind / 2 % 4);
    params.fork_chunk = any_int(&m->in) % 4096;
    params.fork_marks = any_int(&m->in) % 4096;
    params.now_us = tick;
    params.now_user = &m->clock;
    if (kind & 32) params.progress = stop_sometimes, params.progress_user = &m->clock;
    if (kind & 64) params.on_logits = see_logits, params.logits_user = &m->clock;
    m->model[s] = kind >> 7;
    m->sessions[s] = NULL;
    if (jamba_session_estimate(subjects[kind >> 7].model, &params, &memory) != JAMBA_OK) return;
    if (memory.kv + memory.state + memory.marks + memory.scratch > (8u << 20)) return;
    fuzz_memory_begin();
    FUZZ_CHECK(jamba_session_create(&m->sessions[s], subjects[kind >> 7].model, &params, &error) == JAMBA_OK);
    fuzz_memory_end(memory.kv + memory.state + memory.marks + memory.scratch);
}

static void call_fork(machine *m, int s, int to)
{
    int32_t tokens = any_int(&m->in);
    jamba_session *fork;
    if (tokens > 1000) tokens = 1000;
    if (s == to || jamba_session_fork(&fork, m->sessions[s], tokens, NULL) != JAMBA_OK) return;
    jamba_session_free(m->sessions[to]);
    m->sessions[to] = fork;
    m->model[to] = m->model[s];
}

static void call_batch(machine *m)
{
    jamba_session *batch[SESSIONS];
    int32_t tokens[SESSIONS];
    size_t count = 0;
    int model = fuzz_u8(&m->in) % 2, s;
    for (s = 0; s < SESSIONS; s++)
        if (m->sessions[s] && m->model[s] == model) tokens[count] = any_int(&m->in), batch[count++] = m->sessions[s];
    if (fuzz_u8(&m->in) % 2) jamba_step_batch(batch, count, fuzz_u8(&m->in));
    else jamba_eval_batch(batch, tokens, count);
}

static void call_sample(machine *m, int s)
{
    jamba_sampler *p = &m->sampler;
    int32_t token;
    if (fuzz_u8(&m->in) % 2) {
        p->temperature = any_float(&m->in);
        p->top_k = any_int(&m->in);
        p->top_p = any_float(&m->in);
        p->min_p = any_float(&m->in);
        p->repeat_penalty = any_float(&m->in);
        p->repeat_window = any_int(&m->in);
        p->filter = fuzz_u8(&m->in) % 4 ? NULL : sometimes_forbid;
        p->filter_user = &m->clock;
    }
    token = jamba_sample(m->sessions[s], p);
    FUZZ_CHECK(token < subjects[m->model[s]].vocab && token >= JAMBA_ERR_FILTER);
    if (token >= 0) jamba_eval(m->sessions[s], &token, 1);
}

static void call_save(machine *m, int s)
{
    jamba_save_params params;
    uint8_t kind = fuzz_u8(&m->in);
    size_t size, written;
    memset(&params, 0, sizeof params);
    params.state = (jamba_form)(kind % 4);
    params.kv = (jamba_form)(kind / 4 % 4);
    params.no_tokens = kind & 16;
    params.no_logits = kind & 32;
    params.marks = kind & 64;
    params.sampler = kind & 128 ? &m->sampler : NULL;
    size = jamba_session_save_as(m->sessions[s], &params, NULL, 0);
    if (size > STATE_ROOM) return;
    written = jamba_session_save_as(m->sessions[s], &params, m->saved, size);
    FUZZ_CHECK(written == size || (written == 0 && (params.state != JAMBA_EXACT || params.kv != JAMBA_EXACT)));
    m->saved_size = written; /* 0: a number that F16 does not hold */
}

static void call_restore(machine *m, int s)
{
    jamba_state_info info;
    jamba_result result = jamba_session_restore(m->sessions[s], m->saved, m->saved_size);
    if (m->saved_size) FUZZ_CHECK(jamba_state_describe(m->saved, m->saved_size, &info, NULL) == JAMBA_OK);
    FUZZ_CHECK(result == JAMBA_OK || m->saved_size == 0 || result == JAMBA_ERR_MISMATCH || result == JAMBA_ERR_CONTEXT
        || result == JAMBA_ERR_ARGUMENT);
}

static void call_talk(machine *m, int s)
{
    static const char *const roles[] = { "user", "system", "assistant", "nobody" };
    static const char *const contents[] = { "ab", "", "</s>", "a b\xff" };
    static const char *const options[] = { "a", "ab", "" };
    static const char *const stops[] = { "b", "abc" };
    jamba_session *session = m->sessions[s];
    uint8_t kind = fuzz_u8(&m->in);
    jamba_reply_params params;
    jamba_turn turns[3];
    const char *text;
    size_t length;
    int32_t number;
    float logprobs[3];
    memset(&params, 0, sizeof params);
    params.sampler = kind & 64 ? &m->sampler : NULL;
    params.budget_us = kind & 128;
    params.max_tokens = any_int(&m->in);
    params.stops = stops;
    params.stop_count = kind / 16 % 3;
    switch (kind % 4) {
    case 0: jamba_say(session, roles[kind / 4 % 4], contents[kind / 16 % 4]); break;
    case 1: jamba_reply(session, &params, &text, &length); break;
    case 2: jamba_session_restart(session, any_int(&m->in), &number); break;
    default: jamba_choose(session, options, kind / 4 % 4, &m->sampler, logprobs, &number); break;
    }
    jamba_turns(session, turns, 3);
}

static void call_adapters(machine *m, int s)
{
    jamba_adapter *list[JAMBA_ADAPTERS_MAX + 1];
    float scales[JAMBA_ADAPTERS_MAX + 1];
    size_t count = fuzz_u8(&m->in) % (JAMBA_ADAPTERS_MAX + 2), i;
    for (i = 0; i < count; i++) list[i] = adapter, scales[i] = any_float(&m->in);
    jamba_session_set_adapters(m->sessions[s], list, scales, count);
}

static void call_look(machine *m, int s)
{
    jamba_session_info info;
    jamba_candidate top[5];
    jamba_memory memory;
    size_t count, i;
    const int32_t *tokens;
    jamba_session_describe(m->sessions[s], &info);
    tokens = jamba_session_tokens(m->sessions[s], &count);
    FUZZ_CHECK(info.position + info.pending == (int32_t)count && (int32_t)count <= info.context);
    for (i = 0; i < count; i++) FUZZ_CHECK(tokens[i] >= -1 && tokens[i] < subjects[m->model[s]].vocab);
    count = jamba_top(m->sessions[s], top, 5);
    for (i = 0; i < count; i++) FUZZ_CHECK(top[i].token >= 0 && top[i].token < subjects[m->model[s]].vocab);
    jamba_session_fork_estimate(m->sessions[s], any_int(&m->in), &memory);
}

static void call(machine *m, uint8_t byte)
{
    int s = byte >> 6;
    jamba_session *session = m->sessions[s];
    int32_t tokens[8], replay;
    float logprobs[8];
    size_t count;
    if (byte % 16 == 0 || !session) {
        call_create(m, s);
        return;
    }
    switch (byte % 16) {
    case 1: count = any_tokens(m, tokens, 8); jamba_feed(session, tokens, count); break;
    case 2: count = any_tokens(m, tokens, 8); jamba_eval(session, tokens, count); break;
    case 3: jamba_step(session, fuzz_u8(&m->in)); break;
    case 4: call_batch(m); break;
    case 5: call_sample(m, s); break;
    case 6: jamba_session_mark(session); break;
    case 7: jamba_session_rewind(session, any_int(&m->in), &replay); break;
    case 8: call_fork(m, s, fuzz_u8(&m->in) % SESSIONS); break;
    case 9: call_save(m, s); break;
    case 10: call_restore(m, s); break;
    case 11: call_talk(m, s); break;
    case 12: call_adapters(m, s); break;
    case 13: call_look(m, s); break;
    case 14: count = any_tokens(m, tokens, 8); jamba_score(session, tokens, count, logprobs); break;
    default:
        if (byte & 16) jamba_session_reset(session);
        else jamba_session_free(session), m->sessions[s] = NULL;
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    machine m;
    int calls, s;
    memset(&m, 0, sizeof m);
    m.in.p = data;
    m.in.left = size;
    m.saved = (uint8_t *)malloc(STATE_ROOM);
    for (calls = 0; calls < CALLS && m.in.left > 0; calls++) call(&m, fuzz_u8(&m.in));
    for (s = 0; s < SESSIONS; s++) jamba_session_free(m.sessions[s]);
    free(m.saved);
    return 0;
}
