/* fork.c - what a fork costs, what it shares, and in which order all of it may go
 *
 * That forks compute what the plain run computes is the business of laws.c, with small pages; here pages have
 * their real size. */
#define SUPPORT_API_ONLY
#include "support.h"

enum { PAGE = 256, TOKENS_MAX = 900 };

typedef struct subject {
    const char *name;
    jamba_model *model;
    int32_t *tokens;
    size_t vocab;
    float *want; /* [TOKENS_MAX, vocab] logits of the plain run */
    counter counter;
    jamba_allocator allocator;
} subject;

static jamba_session_params subject_params(subject *s, int32_t context)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.context = context;
    params.allocator = &s->allocator;
    params.threads = 1;
    return params;
}

static bool subject_open(subject *s, const char *name)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    jamba_session_params params;
    memset(s, 0, sizeof *s);
    s->name = name;
    s->allocator = counter_open(&s->counter);
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (!convert(folder, name, "f32", path) || !(s->model = load_for_cpu(path, JAMBA_CPU_BEST))) return false;
    s->vocab = (size_t)model_vocab(s->model);
    s->tokens = golden_tokens(name, TOKENS_MAX);
    params = subject_params(s, TOKENS_MAX);
    s->want = model_logits(s->model, &params, s->tokens, TOKENS_MAX, 0);
    return s->want != NULL;
}

static void subject_close(subject *s)
{
    CHECK_THAT(s->counter.live == 0 && s->counter.wrong == 0, "%s: %d allocations left", s->name, s->counter.live);
    free(s->tokens);
    free(s->want);
    jamba_model_free(s->model);
}

static jamba_session *session_at(subject *s, int32_t context, size_t position)
{
    jamba_session_params params = subject_params(s, context);
    jamba_session *session = NULL;
    if (CHECK(jamba_session_create(&session, s->model, &params, NULL) == JAMBA_OK))
        CHECK(jamba_eval(session, s->tokens, position) == JAMBA_OK);
    return session;
}

static jamba_session *fork_of(const jamba_session *source, int32_t tokens)
{
    jamba_session *fork = NULL;
    jamba_error error;
    CHECK_THAT(jamba_session_fork(&fork, source, tokens, &error) == JAMBA_OK, "%s", error.message);
    return fork;
}

/* Whether the session has come to what the plain run has after `count` tokens. */
static bool stands_at(const subject *s, const jamba_session *session, size_t count)
{
    const float *logits = jamba_logits(session);
    size_t used;
    jamba_session_tokens(session, &used);
    return CHECK_THAT(used == count && logits
            && memcmp(logits, s->want + (count - 1) * s->vocab, s->vocab * sizeof *logits) == 0,
        "%s: not what the plain run has after %zu tokens", s->name, count);
}

static bool goes_on(const subject *s, jamba_session *session, size_t from, size_t to)
{
    return CHECK(jamba_eval(session, s->tokens + from, to - from) == JAMBA_OK) && stands_at(s, session, to);
}

/* ---- what it costs ------------------------------------------------------------------------------------- */

static size_t memory_total(const jamba_memory *m)
{
    return m->kv + m->state + m->marks + m->scratch;
}

/* A fork allocates what it says, and no more late in a conversation than early. */
static void test_cost(subject *s)
{
    static const size_t places[] = { 10, PAGE, 2 * PAGE + 10 };
    jamba_memory first, memory;
    size_t i, before;
    for (i = 0; i < 3; i++) {
        jamba_session *source = session_at(s, TOKENS_MAX, places[i]), *fork;
        jamba_session_info info;
        CHECK(jamba_session_fork_estimate(source, 64, &memory) == JAMBA_OK);
        if (i == 0) first = memory;
        before = s->counter.bytes;
        fork = fork_of(source, 64);
        CHECK_THAT(s->counter.bytes - before == memory_total(&memory), "%s: %zu bytes, estimated %zu", s->name,
            s->counter.bytes - before, memory_total(&memory));
        CHECK(memory.state == first.state && memory.kv == first.kv);
        /* of the past, only the log of tokens is copied */
        CHECK_THAT(memory.scratch - first.scratch <= (places[i] - places[0]) * 16 + 64, "%s: scratch %zu and %zu",
            s->name, memory.scratch, first.scratch);
        jamba_session_describe(fork, &info);
        CHECK(info.context == (int32_t)places[i] + 64 && info.position == (int32_t)places[i]);
        CHECK(memcmp(&info.memory, &memory, sizeof memory) == 0);
        before = (size_t)s->counter.calls;
        goes_on(s, fork, places[i], places[i] + 64);
        CHECK(jamba_feed(fork, s->tokens, 1) == JAMBA_ERR_CONTEXT);
        CHECK_THAT((size_t)s->counter.calls == before, "%s: a fork allocates while it runs", s->name);
        jamba_session_free(fork);
        jamba_session_free(source);
    }
}

/* Thousands of forks of one persona; some of them speak. */
static void test_crowd(subject *s)
{
    enum { CROWD = 2000 };
    jamba_session *persona = session_at(s, TOKENS_MAX, 300), **crowd;
    jamba_memory each;
    size_t i, before = s->counter.bytes;
    crowd = (jamba_session **)malloc(CROWD * sizeof *crowd);
    test_require(crowd != NULL, "out of memory", s->name);
    CHECK(jamba_session_fork_estimate(persona, 16, &each) == JAMBA_OK);
    for (i = 0; i < CROWD; i++) crowd[i] = fork_of(persona, 16);
    CHECK(s->counter.bytes - before == CROWD * memory_total(&each));
    for (i = 0; i < CROWD; i += 97) goes_on(s, crowd[i], 300, 300 + 1 + i % 16);
    goes_on(s, persona, 300, 310);
    jamba_session_free(persona);
    for (i = 0; i < CROWD; i += 97) stands_at(s, crowd[i], 300 + 1 + i % 16);
    for (i = 0; i < CROWD; i++) jamba_session_free(crowd[CROWD - 1 - i]);
    free(crowd);
}

/* ---- what it shares -------------------------------------------------------------------------------------- */

/* Source, fork and fork of the fork go on by turns, and are freed in every order. */
static void test_orders(subject *s)
{
    static const int orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
    static const size_t places[] = { 255, 256, 257, 512, 600 };
    size_t at, i;
    for (at = 0; at < sizeof places / sizeof *places; at++) {
        size_t from = places[at];
        for (i = 0; i < 6; i++) {
            jamba_session *all[3];
            int k;
            all[0] = session_at(s, TOKENS_MAX, from);
            all[1] = fork_of(all[0], 0);
            goes_on(s, all[1], from, from + 3);
            all[2] = fork_of(all[1], 40);
            goes_on(s, all[0], from, from + 9);
            for (k = 0; k < 3; k++) {
                jamba_session *last = all[orders[i][2]];
                size_t used;
                jamba_session_tokens(last, &used);
                goes_on(s, last, used, used + 5); /* the one that is freed last, whoever went before */
                jamba_session_free(all[orders[i][k]]);
            }
        }
    }
}

/* A session that goes back below a fork has the pages that it had not used; the fork's end gives the rest back. */
static void test_reserve(subject *s)
{
    jamba_session *source = session_at(s, 3 * PAGE, 2 * PAGE + 10), *fork = fork_of(source, PAGE - 10);
    size_t i;
    jamba_memory memory;
    jamba_session_fork_estimate(source, 0, &memory);
    CHECK(jamba_session_rewind(source, 0, NULL) == JAMBA_OK);
    if (memory.kv) { /* two of its three pages are the fork's too */
        CHECK(jamba_feed(source, s->tokens, PAGE + 1) == JAMBA_ERR_CONTEXT);
        CHECK_THAT(strstr(jamba_session_error(source)->message, "fork") != NULL, "%s",
            jamba_session_error(source)->message);
        CHECK(jamba_session_tokens(source, &i) && i == 0);
    }
    goes_on(s, source, 0, PAGE);
    stands_at(s, fork, 2 * PAGE + 10);
    goes_on(s, fork, 2 * PAGE + 10, 3 * PAGE);
    jamba_session_free(fork);
    goes_on(s, source, PAGE, 3 * PAGE);
    jamba_session_free(source);
}

/* Back into the middle of a shared page: the fork copies it, and the source's is as before. */
static void test_below(subject *s)
{
    jamba_session *source = session_at(s, TOKENS_MAX, 2 * PAGE + 10), *fork = fork_of(source, PAGE);
    int32_t other = s->tokens[100] ? 0 : 1, replay;
    CHECK(jamba_session_rewind(fork, 100, &replay) == JAMBA_OK && replay <= 100);
    CHECK(jamba_eval(fork, &other, 1) == JAMBA_OK);
    goes_on(s, source, 2 * PAGE + 10, 2 * PAGE + 20);
    CHECK(jamba_session_rewind(fork, 100, NULL) == JAMBA_OK);
    goes_on(s, fork, 100, PAGE + 50);
    jamba_session_free(source);
    jamba_session_free(fork);
}

/* ---- what it refuses --------------------------------------------------------------------------------------- */

/* In the middle of a token there is no state to copy. */
static void check_half_way(const jamba_session *source)
{
    jamba_session *none = (jamba_session *)(uintptr_t)source;
    jamba_error error;
    CHECK(jamba_session_fork(&none, source, 0, &error) == JAMBA_ERR_ARGUMENT && none == NULL);
    CHECK(strstr(error.message, "middle of a token") != NULL);
}

static void test_refusals(subject *s)
{
    jamba_session_params params = subject_params(s, 400);
    jamba_session *source, *fork;
    jamba_memory memory;
    jamba_error error;
    uint64_t ticks = 0;
    params.now_us = clock_tick;
    params.now_user = &ticks;
    params.fork_chunk = -1;
    CHECK(jamba_session_create(&source, s->model, &params, &error) == JAMBA_ERR_ARGUMENT);
    params.fork_chunk = 0;
    params.fork_marks = 70000;
    CHECK(jamba_session_create(&source, s->model, &params, &error) == JAMBA_ERR_ARGUMENT);
    params.fork_marks = 1;
    test_require(jamba_session_create(&source, s->model, &params, NULL) == JAMBA_OK, "no session", s->name);
    CHECK(jamba_eval(source, s->tokens, 30) == JAMBA_OK);
    CHECK(jamba_session_fork(NULL, source, 0, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_fork(&fork, NULL, 0, &error) == JAMBA_ERR_ARGUMENT && fork == NULL);
    CHECK(jamba_session_fork(&fork, source, -1, &error) == JAMBA_ERR_ARGUMENT && fork == NULL);
    CHECK(jamba_session_fork(&fork, source, INT32_MAX, &error) == JAMBA_ERR_ARGUMENT && fork == NULL);
    CHECK(jamba_session_fork_estimate(source, -1, &memory) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_fork_estimate(NULL, 0, &memory) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_feed(source, s->tokens + 30, 10) == JAMBA_OK);
    fork = fork_of(source, 5); /* with its queue */
    CHECK(jamba_step(source, 1) == JAMBA_PENDING);
    check_half_way(source);
    CHECK(jamba_step(source, 0) == JAMBA_OK && jamba_step(fork, 0) == JAMBA_OK);
    stands_at(s, source, 40);
    stands_at(s, fork, 40);
    CHECK(jamba_session_mark(fork) == JAMBA_OK); /* fork_marks */
    CHECK(jamba_session_mark(source) == JAMBA_ERR_ARGUMENT);
    jamba_session_free(source);
    jamba_session_free(fork);
}

int main(int argc, char **argv)
{
    static const char *const names[] = { "jamba-moe", "mamba2", "zamba2-abc", "llama" };
    static void (*const tests[])(subject *) = { test_cost, test_crowd, test_orders, test_reserve, test_below,
        test_refusals };
    static const char *const titles[] = { "cost", "crowd", "orders", "reserve", "below", "refusals" };
    size_t i, j;
    test_start(argc, argv);
    for (i = 0; i < sizeof names / sizeof *names; i++) {
        subject s;
        bool open = subject_open(&s, names[i]);
        for (j = 0; j < sizeof tests / sizeof *tests; j++) {
            if (!test_begin("%s %s", names[i], titles[j])) continue;
            if (CHECK(open)) tests[j](&s);
            test_end();
        }
        if (open) subject_close(&s);
    }
    return test_summary();
}
