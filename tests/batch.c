/* batch.c - sessions that are evaluated together end with the bits that each has alone
 *
 * Prompts of different lengths, prefill and decode mixed, every type of KV cache, passes too small for all of
 * them, threads, sessions in the middle of a token; then everything that a batch refuses. */
#define SUPPORT_API_ONLY
#include "support.h"

enum { CROWD = 6, STEPS = 5 };

/* Tokens in the prompts; the second row reaches into one, two and three pages of 256 keys. */
static const size_t lengths[2][CROWD] = { { 1, 7, 14, 21, 28, 35 }, { 10, 250, 600, 300, 252, 257 } };

typedef struct crowd {
    jamba_model *model;
    size_t vocab, given[CROWD]; /* tokens in each prompt */
    int32_t *tokens[CROWD];     /* prompt, then one for each step */
    float *want[CROWD];         /* logits after each token, alone */
    jamba_session *session[CROWD];
    logits_rows rows;           /* of session 3, which wants the logits of every token */
} crowd;

static jamba_session_params crowd_params(crowd *c, int i)
{
    static const jamba_kv_type kv[] = { JAMBA_KV_F32, JAMBA_KV_F16, JAMBA_KV_Q8 };
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.context = (int32_t)c->given[i] + STEPS;
    params.kv_type = kv[i % 3];
    params.threads = 1;
    if (i != 3) return params;
    params.on_logits = logits_collect;
    params.logits_user = &c->rows;
    return params;
}

static void crowd_open(crowd *c, const char *name, jamba_model *model, const size_t *given)
{
    int i;
    memset(c, 0, sizeof *c);
    c->model = model;
    c->vocab = (size_t)model_vocab(model);
    for (i = 0; i < CROWD; i++) {
        jamba_session_params params;
        size_t count = given[i] + STEPS, j;
        c->given[i] = given[i];
        params = crowd_params(c, i);
        c->tokens[i] = golden_tokens(name, count + (size_t)i);
        for (j = 0; j < count; j++) c->tokens[i][j] = c->tokens[i][j + (size_t)i]; /* each its own text */
        c->want[i] = model_logits(model, &params, c->tokens[i], count, 0);
        test_require(c->want[i] != NULL, "no logits alone", name);
    }
}

static bool crowd_start(crowd *c, int32_t chunk, const jamba_executor *executor)
{
    bool ok = true;
    int i;
    for (i = 0; i < CROWD && ok; i++) {
        jamba_session_params params = crowd_params(c, i);
        params.chunk = chunk;
        params.executor = executor;
        ok = CHECK(jamba_session_create(&c->session[i], c->model, &params, NULL) == JAMBA_OK);
    }
    c->rows.count = c->given[3] + STEPS;
    c->rows.vocab = c->vocab;
    c->rows.rows = (float *)calloc(c->rows.count * c->vocab, sizeof(float));
    c->rows.seen = 0;
    c->rows.in_order = true;
    return ok;
}

static void crowd_stop(crowd *c)
{
    int i;
    for (i = 0; i < CROWD; i++) {
        jamba_session_free(c->session[i]);
        c->session[i] = NULL;
    }
    free(c->rows.rows);
    c->rows.rows = NULL;
}

static void crowd_close(crowd *c)
{
    int i;
    for (i = 0; i < CROWD; i++) {
        free(c->tokens[i]);
        free(c->want[i]);
    }
}

/* The logits of session i after `count` of its tokens. */
static void check_same(const crowd *c, int i, size_t count, const char *what)
{
    const float *got = jamba_logits(c->session[i]), *want = c->want[i] + (count - 1) * c->vocab;
    CHECK_THAT(got && memcmp(got, want, c->vocab * sizeof *got) == 0, "%s: session %d differs after %zu tokens", what,
        i, count);
}

/* Prompts in two waves, so that prefill meets decode; then one token for each at a time. */
static void check_crowd(crowd *c, int32_t chunk, const jamba_executor *executor, const char *what)
{
    int32_t next[CROWD];
    int i, step;
    bool ok = crowd_start(c, chunk, executor);
    for (i = 0; i < CROWD && ok; i++) {
        size_t first = i % 2 ? 1 : c->given[i];
        ok = CHECK(jamba_feed(c->session[i], c->tokens[i], first) == JAMBA_OK);
    }
    ok = ok && CHECK(jamba_eval_batch(c->session, NULL, CROWD) == JAMBA_OK);
    for (i = 0; i < CROWD && ok; i++) check_same(c, i, i % 2 ? 1 : c->given[i], what);
    for (i = 1; i < CROWD && ok; i += 2)
        ok = CHECK(jamba_feed(c->session[i], c->tokens[i] + 1, c->given[i] - 1) == JAMBA_OK);
    for (step = 0; step < STEPS && ok; step++) {
        for (i = 0; i < CROWD; i++) next[i] = c->tokens[i][c->given[i] + (size_t)step];
        ok = CHECK_THAT(jamba_eval_batch(c->session, next, CROWD) == JAMBA_OK, "%s",
            jamba_session_error(c->session[0])->message);
        for (i = 0; i < CROWD && ok; i++) check_same(c, i, c->given[i] + (size_t)step + 1, what);
    }
    CHECK(c->rows.seen == c->rows.count && c->rows.in_order);
    CHECK_THAT(memcmp(c->rows.rows, c->want[3], c->rows.count * c->vocab * sizeof(float)) == 0,
        "%s: on_logits saw other numbers", what);
    crowd_stop(c);
}

/* A session that a budget stopped inside a token joins. */
static void check_half_way(crowd *c)
{
    jamba_session_params params = crowd_params(c, 1);
    jamba_session *pair[2];
    uint64_t ticks = 0;
    int stops;
    params.now_us = clock_tick;
    params.now_user = &ticks;
    for (stops = 1; stops < 40; stops += 6) {
        int i;
        if (!CHECK(jamba_session_create(&c->session[1], c->model, &params, NULL) == JAMBA_OK)) return;
        if (!CHECK(jamba_session_create(&c->session[4], c->model, &params, NULL) == JAMBA_OK)) return;
        pair[0] = c->session[4];
        pair[1] = c->session[1];
        CHECK(jamba_feed(pair[0], c->tokens[1], 3) == JAMBA_OK);
        CHECK(jamba_feed(pair[1], c->tokens[1], c->given[1]) == JAMBA_OK);
        for (i = 0; i < stops; i++) CHECK(jamba_step(pair[1], 1) == JAMBA_PENDING);
        CHECK(jamba_eval_batch(pair, NULL, 2) == JAMBA_OK);
        check_same(c, 1, c->given[1], "half way");
        CHECK(memcmp(jamba_logits(pair[0]), c->want[1] + 2 * c->vocab, c->vocab * sizeof(float)) == 0);
        crowd_stop(c);
    }
}

/* ---- what a batch refuses -------------------------------------------------------------------------- */

static void check_refused(crowd *c, jamba_session *const *sessions, const int32_t *tokens, size_t count,
    jamba_result want, const char *says)
{
    jamba_session_info before, after;
    jamba_result got;
    jamba_session_describe(c->session[0], &before);
    got = jamba_eval_batch(sessions, tokens, count);
    jamba_session_describe(c->session[0], &after);
    CHECK_THAT(got == want, "%s, not %s", jamba_result_name(got), jamba_result_name(want));
    CHECK(before.position == after.position && before.pending == after.pending);
    if (says)
        CHECK_THAT(strstr(jamba_session_error(c->session[0])->message, says) != NULL, "'%s' lacks '%s'",
            jamba_session_error(c->session[0])->message, says);
}

static void check_refusals(crowd *c, const jamba_model *other)
{
    jamba_session *sessions[3], *foreign;
    int32_t tokens[3] = { 1, 2, 3 };
    if (!crowd_start(c, 0, NULL)) return;
    CHECK(jamba_session_create(&foreign, other, NULL, NULL) == JAMBA_OK);
    sessions[0] = c->session[0];
    sessions[1] = c->session[1];
    sessions[2] = c->session[0];
    check_refused(c, NULL, tokens, 2, JAMBA_ERR_ARGUMENT, NULL);
    check_refused(c, sessions, tokens, 0, JAMBA_ERR_ARGUMENT, NULL);
    check_refused(c, sessions, tokens, 3, JAMBA_ERR_ARGUMENT, "session 2 is in the batch twice");
    sessions[2] = NULL;
    check_refused(c, sessions, tokens, 3, JAMBA_ERR_ARGUMENT, "session 2");
    sessions[2] = foreign;
    check_refused(c, sessions, tokens, 3, JAMBA_ERR_ARGUMENT, "another model");
    sessions[2] = c->session[2];
    tokens[2] = (int32_t)c->vocab;
    check_refused(c, sessions, tokens, 3, JAMBA_ERR_ARGUMENT, "vocabulary");
    tokens[2] = 3;
    while (jamba_feed(c->session[2], tokens, 1) == JAMBA_OK) continue;
    check_refused(c, sessions, tokens, 3, JAMBA_ERR_CONTEXT, "do not fit");
    CHECK_THAT(jamba_eval_batch(sessions, tokens, 2) == JAMBA_OK, "%s",
        jamba_session_error(c->session[0])->message); /* nothing was left held */
    jamba_session_free(foreign);
    crowd_stop(c);
}

static bool stop_at_once(void *user, const char *stage, uint64_t done, uint64_t total)
{
    (void)user;
    (void)stage;
    (void)done;
    (void)total;
    return false;
}

/* A progress callback stops a batch between two passes; going on gives the same bits. */
static void check_stopped(crowd *c)
{
    jamba_session_params params = crowd_params(c, 1);
    jamba_session *pair[2];
    int calls = 0;
    params.chunk = 2;
    CHECK(jamba_session_create(&pair[0], c->model, &params, NULL) == JAMBA_OK);
    params.progress = stop_at_once;
    CHECK(jamba_session_create(&pair[1], c->model, &params, NULL) == JAMBA_OK);
    CHECK(jamba_feed(pair[1], c->tokens[1], c->given[1]) == JAMBA_OK);
    CHECK(jamba_eval_batch(pair, NULL, 2) == JAMBA_ERR_ABORTED);
    while (calls++ < 100 && jamba_eval_batch(pair, NULL, 2) == JAMBA_ERR_ABORTED) continue;
    c->session[1] = pair[1];
    check_same(c, 1, c->given[1], "stopped and gone on");
    CHECK(calls > 1);
    c->session[1] = pair[0];
    pair[0] = pair[1];
    pair[1] = c->session[1];
    CHECK(jamba_feed(pair[1], c->tokens[1], c->given[1]) == JAMBA_OK);
    CHECK(jamba_eval_batch(pair, c->tokens[1], 2) == JAMBA_ERR_ABORTED); /* stops what another has left */
    CHECK(jamba_step(pair[1], 0) == JAMBA_OK);
    CHECK(jamba_eval_batch(pair, NULL, 2) == JAMBA_OK);
    jamba_session_free(pair[0]);
    jamba_session_free(pair[1]);
    c->session[1] = NULL;
}

/* ---- all of it, on every family ---------------------------------------------------------------------- */

static void check_threads(crowd *c, const char *what)
{
    threads_pool *pool = threads_start(3);
    jamba_executor executor;
    if (!THREADS_POSIX || !CHECK(pool != NULL)) return;
    check_crowd(c, 0, &pool->executor, what);
    executor = pool->executor;
    executor.concurrent = false;
    check_crowd(c, 5, &executor, "an executor that may run one by one");
    threads_stop(pool);
}

static jamba_model *open_case(const char *name, const char *type, char path[PATH_ROOM])
{
    char folder[PATH_ROOM];
    jamba_model *model = NULL;
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, type, path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    CHECK(model != NULL);
    return model;
}

/* Attention over pages that some of the sessions do not have. */
static void test_pages(const char *name)
{
    char path[PATH_ROOM];
    jamba_model *model = open_case(name, "f32", path);
    crowd c;
    if (!model) return;
    crowd_open(&c, name, model, lengths[1]);
    check_crowd(&c, 0, NULL, "together");
    check_crowd(&c, 4, NULL, "in passes of 4 tokens");
    check_crowd(&c, 600, NULL, "in passes of 600 tokens");
    check_threads(&c, "3 threads");
    crowd_close(&c);
    jamba_model_free(model);
}

static void test_crowd(const char *name, const char *type)
{
    char path[PATH_ROOM];
    jamba_model *model = open_case(name, type, path), *other = model ? load_for_cpu(path, JAMBA_CPU_BEST) : NULL;
    crowd c;
    if (model && CHECK(other != NULL)) {
        crowd_open(&c, name, model, lengths[0]);
        check_crowd(&c, 0, NULL, "together");
        check_crowd(&c, 4, NULL, "in passes of 4 tokens");
        check_crowd(&c, 1, NULL, "in passes of one token");
        check_threads(&c, "3 threads");
        check_half_way(&c);
        check_refusals(&c, other);
        check_stopped(&c);
        crowd_close(&c);
    }
    jamba_model_free(other);
    jamba_model_free(model);
}

int main(int argc, char **argv)
{
    static const char *const types[] = { "f32", "q8", "q4" };
    int i;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        const char *name = golden_cases[i].name, *type = types[i % 3];
        if (!test_begin("%s %s", name, type)) continue;
        test_crowd(name, type);
        test_end();
    }
    for (i = 0; i < 2; i++) {
        static const char *const paged[] = { "llama-llama3", "jamba-moe" };
        if (!test_begin("%s, over several pages", paged[i])) continue;
        test_pages(paged[i]);
        test_end();
    }
    return test_summary();
}
