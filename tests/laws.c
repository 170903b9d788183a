/* laws.c - whatever is done with a session, its logits are those of the plain run over its tokens
 *
 * Random scripts of feeding, stepping with and without a budget, sampling, marks, going back, forks, saved states and
 * batches, on every family, chunk size, cache type and executor. At the end, and whenever nothing is pending, the
 * logits equal bit for bit those of a new session that evaluates the same tokens in one go. A script that fails is cut
 * down to what still fails, and printed. LAWS=N in the environment runs N scripts on the tiny model. */
#define JMB_PAGE 16 /* so that a few tokens fill pages, which forks share */
#include "tiny.h"

enum { OPS_MAX = 24, TOKENS_MAX = 40, SESSIONS = 3 };

typedef enum op_kind {
    OP_FEED, OP_STEP, OP_FINISH, OP_SAMPLE, OP_MARK, OP_REWIND, OP_BATCH, OP_SLICES, OP_FORK, OP_SAVE, OP_RESET,
    OP_KINDS
} op_kind;

static const char *const op_names[OP_KINDS] = { "feed", "step", "finish", "sample", "mark", "rewind", "batch",
    "slices", "fork", "save", "reset" };

/* What an argument means depends on the session's place, so that any part of a script is a script. */
typedef struct script_op {
    op_kind kind;
    int session;
    uint32_t argument;
} script_op;

typedef struct script {
    uint64_t seed;
    int32_t chunk, marks, mark_every, fork_chunk, fork_marks;
    jamba_kv_type kv;
    int executor; /* 0: none, 1: in reverse, 2: threads, or in reverse where there are none */
    int count;
    script_op ops[OPS_MAX];
} script;

typedef struct laws {
    const jamba_model *model;
    size_t vocab;
    threads_pool *pool;
    uint64_t ticks;
    char why[400]; /* of the last failure */
} laws;

/* ---- scripts ----------------------------------------------------------------------------------------- */

static script script_make(uint64_t seed)
{
    static const int32_t chunks[] = { 1, 3, 7, 64 }, marks[] = { 0, 1, 2, 4 }, every[] = { 0, 0, 5 };
    static const int often[] = { OP_FEED, OP_FEED, OP_FEED, OP_STEP, OP_STEP, OP_FINISH, OP_SAMPLE, OP_SAMPLE, OP_MARK,
        OP_MARK, OP_REWIND, OP_REWIND, OP_REWIND, OP_BATCH, OP_BATCH, OP_SLICES, OP_SLICES, OP_FORK, OP_FORK,
        OP_SAVE, OP_SAVE };
    uint64_t random = seed;
    script s;
    int i;
    memset(&s, 0, sizeof s);
    s.seed = seed;
    s.chunk = chunks[random_next(&random) % 4];
    s.marks = marks[random_next(&random) % 4];
    s.mark_every = every[random_next(&random) % 3];
    s.fork_chunk = chunks[random_next(&random) % 4];
    s.fork_marks = marks[random_next(&random) % 4];
    s.kv = (jamba_kv_type)(random_next(&random) % 3);
    s.executor = random_next(&random) % 8 < 6 ? 0 : 1 + (int)(random_next(&random) % 2);
    s.count = 2 + (int)(random_next(&random) % (OPS_MAX - 1));
    for (i = 0; i < s.count; i++) {
        uint64_t r = random_next(&random);
        s.ops[i].kind = r % 97 == 0 ? OP_RESET : (op_kind)often[r / 97 % (sizeof often / sizeof *often)];
        s.ops[i].session = r >> 32 & 3 ? 0 : 1 + (int)(r >> 40 & 1);
        s.ops[i].argument = (uint32_t)(r >> 34);
    }
    return s;
}

static void script_print(const script *s)
{
    int i;
    printf("  seed %llu: chunk %d, marks %d, mark_every %d, forks' %d and %d, cache %d, executor %d\n",
        (unsigned long long)s->seed, (int)s->chunk, (int)s->marks, (int)s->mark_every, (int)s->fork_chunk,
        (int)s->fork_marks, (int)s->kv, s->executor);
    for (i = 0; i < s->count; i++)
        printf("    %s %u of session %d\n", op_names[s->ops[i].kind], (unsigned)s->ops[i].argument, s->ops[i].session);
}

/* ---- running one ------------------------------------------------------------------------------------- */

static bool fails(laws *l, const char *why, const jamba_session *session)
{
    snprintf(l->why, sizeof l->why, "%s (%s)", why, session ? jamba_session_error(session)->message : "");
    return false;
}

static jamba_session *session_open(laws *l, const script *s)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_executor reversed;
    memset(&params, 0, sizeof params);
    memset(&reversed, 0, sizeof reversed);
    reversed.run = run_reversed;
    reversed.width = 3;
    params.context = TOKENS_MAX;
    params.chunk = s->chunk;
    params.marks = s->marks;
    params.mark_every = s->mark_every;
    params.fork_chunk = s->fork_chunk;
    params.fork_marks = s->fork_marks;
    params.kv_type = s->kv;
    params.threads = 1;
    params.now_us = clock_tick;
    params.now_user = &l->ticks;
    if (s->executor) params.executor = s->executor == 1 || !l->pool ? &reversed : &l->pool->executor;
    return jamba_session_create(&session, l->model, &params, NULL) == JAMBA_OK ? session : NULL;
}

/* Against a new session that evaluates the same tokens at once. */
static bool session_lawful(laws *l, const script *s, jamba_session *session)
{
    jamba_session_params params;
    jamba_session *plain;
    size_t count;
    const int32_t *tokens = jamba_session_tokens(session, &count);
    bool same;
    if (count == 0) return jamba_logits(session) == NULL || fails(l, "logits before the first token", session);
    memset(&params, 0, sizeof params);
    params.context = TOKENS_MAX;
    params.kv_type = s->kv;
    params.threads = 1;
    if (jamba_session_create(&plain, l->model, &params, NULL) != JAMBA_OK) return fails(l, "no plain session", NULL);
    same = jamba_eval(plain, tokens, count) == JAMBA_OK && jamba_logits(session)
        && memcmp(jamba_logits(plain), jamba_logits(session), l->vocab * sizeof(float)) == 0;
    jamba_session_free(plain);
    return same || fails(l, "other logits than the plain run", session);
}

/* Tokens that fit by its own account. Forks of what a rewind has left may hold pages that it would need. */
static bool fits(const jamba_session *session, size_t count)
{
    uint32_t to = session->fed + (uint32_t)count;
    return to <= session->context && jmb_pages_fit(session, session->fed, to);
}

static int32_t pending_of(const jamba_session *session)
{
    jamba_session_info info;
    jamba_session_describe(session, &info);
    return info.pending;
}

static bool run_feed(laws *l, jamba_session *session, uint32_t argument)
{
    int32_t tokens[9];
    size_t count = 1 + argument % 9, i;
    for (i = 0; i < count; i++) tokens[i] = 0;
    if (!fits(session, count))
        return jamba_feed(session, tokens, count) == JAMBA_ERR_CONTEXT || fails(l, "fed past the context", session);
    for (i = 0; i < count; i++) tokens[i] = (int32_t)((argument / 9 + i * 7) % l->vocab);
    return jamba_feed(session, tokens, count) == JAMBA_OK || fails(l, "feed", session);
}

/* A few slices of one tick: each ends at the next place where the work can stop. */
static bool run_step(laws *l, jamba_session *session, uint32_t argument)
{
    uint32_t i;
    for (i = 0; i < 1 + argument % 20; i++) {
        jamba_result result = jamba_step(session, 1);
        if (result != JAMBA_OK && result != JAMBA_PENDING) return fails(l, "step", session);
        if ((result == JAMBA_OK) != (pending_of(session) == 0)) return fails(l, "pending tokens", session);
    }
    return true;
}

static bool run_sample(laws *l, jamba_session *session, uint32_t argument)
{
    jamba_sampler sampler;
    int32_t token;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = argument & 1 ? 0.8f : 0;
    sampler.seed = argument;
    token = jamba_sample(session, &sampler);
    if ((token < 0) != (jamba_logits(session) == NULL)) return fails(l, "sample", session);
    if (token < 0 || !fits(session, 1)) return true;
    return jamba_eval(session, &token, 1) == JAMBA_OK || fails(l, "eval", session);
}

static bool run_mark(laws *l, jamba_session *session)
{
    bool possible = session->mark_room > 0 && pending_of(session) == 0;
    return (jamba_session_mark(session) == JAMBA_OK) == possible || fails(l, "mark", session);
}

static bool run_rewind(laws *l, jamba_session *session, uint32_t argument)
{
    size_t used, after;
    int32_t replay = -1, to;
    jamba_session_info info;
    jamba_session_tokens(session, &used);
    to = (int32_t)(argument % (used + 1));
    if (jamba_session_rewind(session, to, &replay) != JAMBA_OK) return fails(l, "rewind", session);
    jamba_session_tokens(session, &after);
    jamba_session_describe(session, &info);
    if (after != (size_t)to || info.pending != replay || info.position + replay != to)
        return fails(l, "rewound to another place", session);
    return jamba_session_rewind(session, to + 1, NULL) == JAMBA_ERR_ARGUMENT || fails(l, "rewound forward", session);
}

/* One token for each; the argument says who leads. */
static bool run_batch(laws *l, jamba_session *const *sessions, uint32_t argument)
{
    jamba_session *order[SESSIONS];
    int32_t tokens[SESSIONS], pending = 0;
    bool room = true;
    uint32_t i;
    for (i = 0; i < SESSIONS; i++) {
        order[i] = sessions[(argument + i) % SESSIONS];
        room = room && fits(order[i], 1);
        tokens[i] = (int32_t)((argument + i) % l->vocab);
    }
    if (jamba_eval_batch(order, tokens, SESSIONS) != (room ? JAMBA_OK : JAMBA_ERR_CONTEXT))
        return fails(l, "batch", order[0]);
    for (i = 0; i < SESSIONS && room; i++) pending += pending_of(order[i]);
    return pending == 0 || fails(l, "left over", order[0]);
}

/* A few slices of one tick of some of the sessions together. */
static bool run_slices(laws *l, jamba_session *const *sessions, uint32_t argument)
{
    jamba_session *order[SESSIONS];
    size_t count = 1 + argument % SESSIONS;
    uint32_t i, slices = argument / 9 % 30;
    for (i = 0; i < count; i++) order[i] = sessions[(argument / 3 + i) % SESSIONS];
    while (slices-- > 0) {
        jamba_result result = jamba_step_batch(order, count, 1);
        int32_t pending = 0;
        for (i = 0; i < count; i++) pending += pending_of(order[i]);
        if (result != (pending ? JAMBA_PENDING : JAMBA_OK)) return fails(l, "slices", order[0]);
    }
    return true;
}

/* Another session becomes a fork of this one. */
static bool run_fork(laws *l, jamba_session **sessions, int source, uint32_t argument)
{
    jamba_session *fork, *from = sessions[source];
    jamba_session **to = &sessions[((uint32_t)source + 1 + argument % (SESSIONS - 1)) % SESSIONS];
    int32_t tokens = (int32_t)(argument / 2 % 4 == 0 ? 0 : 1 + argument / 8 % 20);
    bool possible = jmb_span_in(from) == NULL;
    size_t used, forked;
    jamba_session_tokens(from, &used);
    if (used + (size_t)tokens > TOKENS_MAX) tokens = 0;
    if ((jamba_session_fork(&fork, from, tokens, NULL) == JAMBA_OK) != possible) return fails(l, "fork", NULL);
    if (!possible) return true;
    jamba_session_tokens(fork, &forked);
    if (forked != used || pending_of(fork) != pending_of(from)) return fails(l, "forked elsewhere", fork);
    if (tokens && !fits(fork, (size_t)tokens)) return fails(l, "no room for what the fork reserved", fork);
    jamba_session_free(*to);
    *to = fork;
    return true;
}

/* Another session takes over what this one has saved, or this one goes back to it; with its marks or without. */
static bool run_save(laws *l, jamba_session *const *sessions, int source, uint32_t argument)
{
    jamba_session *from = sessions[source], *to = sessions[((uint32_t)source + argument % SESSIONS) % SESSIONS];
    jamba_save_params params;
    size_t size, used, room = (size_t)to->context;
    jamba_result result;
    bool possible;
    uint8_t *bytes;
    memset(&params, 0, sizeof params);
    params.marks = argument / 4 % 2 == 0;
    size = jamba_session_save_as(from, &params, NULL, 0);
    if ((size > 0) != (jmb_span_in(from) == NULL)) return fails(l, "save", NULL);
    if (size == 0) return true;
    jamba_session_tokens(from, &used);
    bytes = (uint8_t *)malloc(size);
    test_require(bytes != NULL, "out of memory", "laws.c");
    jamba_session_save_as(from, &params, bytes, size);
    possible = used <= room && jmb_pages_fit(to, 0, (uint32_t)used);
    result = jamba_session_restore(to, bytes, size);
    free(bytes);
    if (result != (possible ? JAMBA_OK : JAMBA_ERR_CONTEXT)) return fails(l, "restore", to);
    if (possible && pending_of(to) != pending_of(from)) return fails(l, "restored elsewhere", to);
    return true;
}

static bool run_op(laws *l, const script *s, jamba_session **sessions, const script_op *op)
{
    jamba_session *session = sessions[op->session];
    switch (op->kind) {
    case OP_FEED: return run_feed(l, session, op->argument);
    case OP_STEP: return run_step(l, session, op->argument);
    case OP_FINISH:
        return (jamba_step(session, 0) == JAMBA_OK || fails(l, "finish", session)) && session_lawful(l, s, session);
    case OP_SAMPLE: return run_sample(l, session, op->argument);
    case OP_MARK: return run_mark(l, session);
    case OP_REWIND: return run_rewind(l, session, op->argument);
    case OP_BATCH: return run_batch(l, sessions, op->argument);
    case OP_SLICES: return run_slices(l, sessions, op->argument);
    case OP_SAVE: return run_save(l, sessions, op->session, op->argument);
    case OP_FORK: return run_fork(l, sessions, op->session, op->argument);
    default: jamba_session_reset(session); return true;
    }
}

static bool script_lawful(laws *l, const script *s)
{
    jamba_session *sessions[SESSIONS];
    bool ok = true;
    int i;
    l->why[0] = 0;
    for (i = 0; i < SESSIONS; i++) ok = (sessions[i] = session_open(l, s)) != NULL && ok;
    if (!ok) fails(l, "no session", NULL);
    for (i = 0; i < s->count && ok; i++) ok = run_op(l, s, sessions, &s->ops[i]);
    for (i = 0; i < SESSIONS && ok; i++)
        ok = (jamba_step(sessions[i], 0) == JAMBA_OK || fails(l, "last step", sessions[i]))
            && session_lawful(l, s, sessions[i]);
    for (i = 0; i < SESSIONS; i++) jamba_session_free(sessions[i]);
    return ok;
}

/* Leaves out what is not needed to fail. */
static void script_shrink(laws *l, script *s)
{
    int i;
    for (i = s->count - 1; i >= 0; i--) {
        script less = *s;
        memmove(less.ops + i, less.ops + i + 1, (size_t)(less.count - i - 1) * sizeof *less.ops);
        less.count--;
        if (!script_lawful(l, &less)) *s = less;
    }
    script_lawful(l, s);
}

static void run_scripts(const char *path, uint64_t first, int count)
{
    jamba_model *model = load_for_cpu(path, JAMBA_CPU_BEST);
    laws l;
    int i;
    memset(&l, 0, sizeof l);
    l.model = model;
    l.pool = threads_start(2);
    if (!CHECK(model != NULL) || !CHECK(l.pool != NULL || !THREADS_POSIX)) return;
    l.vocab = (size_t)model_vocab(model);
    for (i = 0; i < count && !test_state.checks_failed; i++) {
        script s = script_make(first + (uint64_t)i);
        if (script_lawful(&l, &s)) continue;
        script_shrink(&l, &s);
        CHECK_THAT(false, "%s, after %d operations:", l.why, s.count);
        script_print(&s);
    }
    threads_stop(l.pool);
    jamba_model_free(model);
}

/* ---- marks: how far a way back is -------------------------------------------------------------------- */

static jamba_session *marked_session(const jamba_model *model, int32_t marks, int32_t every)
{
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.context = TOKENS_MAX;
    params.chunk = 8;
    params.marks = marks;
    params.mark_every = every;
    return jamba_session_create(&session, model, &params, NULL) == JAMBA_OK ? session : NULL;
}

/* Marks made on the way through a prompt can be gone back to without reading anything again. */
static void check_automatic(const jamba_model *model, const int32_t *tokens)
{
    jamba_session *marked = marked_session(model, 4, 8), *plain = marked_session(model, 0, 0);
    int32_t replay = -1;
    size_t vocab = (size_t)model_vocab(model) * sizeof(float);
    if (!CHECK(marked && plain)) return;
    CHECK(jamba_eval(marked, tokens, 30) == JAMBA_OK);
    CHECK(jamba_session_rewind(marked, 16, &replay) == JAMBA_OK && replay == 0);
    CHECK(jamba_eval(plain, tokens, 16) == JAMBA_OK);
    CHECK(jamba_logits(marked) && memcmp(jamba_logits(marked), jamba_logits(plain), vocab) == 0);
    CHECK(jamba_session_rewind(marked, 15, &replay) == JAMBA_OK && replay == 7);
    jamba_session_free(marked);
    jamba_session_free(plain);
}

/* More marks than room: those that stay lie spread over the whole way. */
static void check_spread(const jamba_model *model, const int32_t *tokens)
{
    int32_t i, to, replay;
    for (to = 1; to < TOKENS_MAX; to++) {
        jamba_session *session = marked_session(model, 4, 0);
        if (!CHECK(session != NULL)) return;
        for (i = 0; i < TOKENS_MAX; i++)
            CHECK(jamba_eval(session, tokens + i, 1) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
        CHECK(jamba_session_rewind(session, to, &replay) == JAMBA_OK);
        CHECK_THAT(replay < TOKENS_MAX / 2, "back to %d takes %d tokens again", (int)to, (int)replay);
        CHECK(jamba_session_rewind(session, 0, &replay) == JAMBA_OK && replay == 0 && jamba_logits(session) == NULL);
        jamba_session_free(session);
    }
}

static void test_marks(const char *path)
{
    jamba_model *model = load_for_cpu(path, JAMBA_CPU_BEST);
    int32_t tokens[TOKENS_MAX], i;
    for (i = 0; i < TOKENS_MAX; i++) tokens[i] = 1 + i * 7;
    if (CHECK(model != NULL)) {
        check_automatic(model, tokens);
        check_spread(model, tokens);
    }
    jamba_model_free(model);
}

int main(int argc, char **argv)
{
    const char *wanted = getenv("LAWS");
    char folder[PATH_ROOM], path[PATH_ROOM];
    int i, scripts = wanted ? atoi(wanted) : 10000;
    test_start(argc, argv);
    test_require(scripts > 0, "LAWS must be a number of scripts, not", wanted);
    if (test_begin("%d scripts on a tiny hybrid", scripts)) {
        tiny_write(temp_path(folder, "tiny"), false);
        if (convert(folder, "tiny", "q8", path)) run_scripts(path, 1, scripts);
        test_end();
    }
    if (test_begin("marks on the way, and spread")) {
        tiny_write(temp_path(folder, "tiny"), false);
        if (convert(folder, "tiny", "q8", path)) test_marks(path);
        test_end();
    }
    for (i = 0; i < GOLDEN_CASES; i++) {
        static const char *const types[] = { "f32", "q8", "q4" };
        const char *name = golden_cases[i].name, *type = types[i % 3];
        if (!test_begin("%s %s", name, type)) continue;
        snprintf(folder, sizeof folder, "tests/cases/%s", name);
        if (convert(folder, name, type, path)) run_scripts(path, 1000000 + (uint64_t)i * 1000, 200);
        test_end();
    }
    return test_summary();
}
