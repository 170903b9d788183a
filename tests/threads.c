/* threads.c - one model on many threads at once: every session ends with the bits that it has alone
 *
 * Eight workers, half of them with forks of one session, one with an executor of 4 threads; beside them the
 * source of the forks goes on, goes back below them and is freed, and another thread loads and frees models. Each
 * worker forks, batches, saves, goes back and frees in its own way. Meant for ThreadSanitizer too. */
#define JMB_PAGE 16 /* so that a few tokens fill pages, which forks share */
#include "tiny.h"

#if THREADS_POSIX

enum {
    WORKERS = 8, FORKED = 4, /* the last FORKED workers begin from forks */
    PROMPT = 40,             /* tokens that all have in common */
    TEXT = 96,
    SIDE = 8,                /* tokens of a fork beside its source */
    BACK = 20,               /* where all go back to: in the middle of a page that others hold */
    OTHER = WORKERS + 1,     /* the text that all go on with from there */
    TEXTS,
    ROUNDS = 6
};

/* What all threads of a round share; nobody writes to it but through the barrier and the flags. */
typedef struct stage {
    const char *path;
    const jamba_model *model;
    size_t vocab;
    jamba_kv_type kv;
    int32_t texts[TEXTS][TEXT]; /* of the workers, the source, and OTHER */
    float *want[TEXTS];         /* (TEXT, vocab) alone */
    pthread_barrier_t start;
    int working;    /* atomic: workers that are not done */
    uint64_t ticks; /* atomic: of the clock */
} stage;

typedef struct job {
    stage *stage;
    int text;
    jamba_session *session; /* NULL: it makes one */
    threads_pool *pool;     /* NULL: serial */
    uint64_t budget;        /* ticks of a slice; 0: none */
    size_t piece;           /* tokens fed at a time */
    int rounds;             /* of the loader */
    char wrong[400];        /* the first thing that was */
} job;

static bool went_wrong(job *j, const char *what, const jamba_session *session, size_t at)
{
    if (!j->wrong[0])
        snprintf(j->wrong, sizeof j->wrong, "text %d, %s at %zu: %s", j->text, what, at,
            session ? jamba_session_error(session)->message : "");
    return false;
}

static jamba_session_params session_params(stage *s, threads_pool *pool)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.context = TEXT;
    params.chunk = 16;
    params.fork_chunk = 5;
    params.marks = params.fork_marks = 2;
    params.mark_every = 12;
    params.kv_type = s->kv;
    params.threads = 1;
    params.now_us = clock_tick;
    params.now_user = &s->ticks;
    if (pool) params.executor = &pool->executor;
    return params;
}

/* ---- what a worker does ------------------------------------------------------------------------------ */

static bool same_bits(job *j, const jamba_session *session, const char *what)
{
    const float *logits = jamba_logits(session);
    size_t vocab = j->stage->vocab, count;
    jamba_session_tokens(session, &count);
    return (logits && memcmp(logits, j->stage->want[j->text] + (count - 1) * vocab, vocab * sizeof *logits) == 0)
        || went_wrong(j, what, session, count);
}

/* Goes on with the text up to `end`, in pieces and slices. */
static bool go_on(job *j, jamba_session *session, size_t end, const char *what)
{
    size_t at;
    for (jamba_session_tokens(session, &at); at < end; jamba_session_tokens(session, &at)) {
        size_t piece = j->piece < end - at ? j->piece : end - at;
        if (jamba_feed(session, j->stage->texts[j->text] + at, piece) != JAMBA_OK
            || step_all(session, j->budget, NULL) != JAMBA_OK)
            return went_wrong(j, what, session, at);
        if (!same_bits(j, session, what)) return false;
    }
    return true;
}

/* Two sessions that stand at the same place go on together. */
static bool go_on_together(job *j, jamba_session *const pair[2], size_t end)
{
    size_t at;
    jamba_result result = JAMBA_PENDING;
    jamba_session_tokens(pair[0], &at);
    for (int i = 0; i < 2; i++)
        if (jamba_feed(pair[i], j->stage->texts[j->text] + at, end - at) != JAMBA_OK)
            return went_wrong(j, "feeding a pair", pair[i], at);
    while (result == JAMBA_PENDING) result = jamba_step_batch(pair, 2, j->budget);
    if (result != JAMBA_OK) return went_wrong(j, "a batch", pair[0], at);
    return same_bits(j, pair[0], "first of a batch") && same_bits(j, pair[1], "second of a batch");
}

/* Back below the forks, and on with another text up to `end`. */
static bool go_back(job *j, jamba_session *session, size_t end)
{
    job other = *j;
    bool ok = jamba_session_rewind(session, BACK, NULL) == JAMBA_OK;
    other.text = OTHER;
    if (!ok || !go_on(&other, session, end, "gone back")) ok = went_wrong(&other, "rewind", session, BACK);
    memcpy(j->wrong, other.wrong, sizeof j->wrong);
    return ok;
}

/* A fork goes on beside the session; that goes back below it, on again, and away; the fork goes on to the end. */
static bool fork_and_part(job *j, jamba_session **session)
{
    jamba_session *pair[2];
    size_t at;
    bool ok;
    jamba_session_tokens(*session, &at);
    pair[0] = *session;
    if (jamba_session_fork(&pair[1], pair[0], (int32_t)(TEXT - at), NULL) != JAMBA_OK)
        return went_wrong(j, "fork", NULL, at);
    ok = go_on_together(j, pair, at + SIDE);
    ok = ok && go_back(j, pair[0], at - SIDE) && same_bits(j, pair[1], "fork of what went back");
    jamba_session_free(pair[0]);
    *session = pair[1];
    return ok && go_on(j, pair[1], TEXT, "fork");
}

/* A new session takes over what the old one has saved. */
static bool save_and_restore(job *j, jamba_session **session)
{
    jamba_session_params params = session_params(j->stage, j->pool);
    jamba_session *restored = NULL;
    size_t size = jamba_session_save(*session, NULL, 0);
    uint8_t *bytes = (uint8_t *)malloc(size + 1);
    bool ok = bytes && size > 0 && jamba_session_save(*session, bytes, size) == size
        && jamba_session_create(&restored, j->stage->model, &params, NULL) == JAMBA_OK
        && jamba_session_restore(restored, bytes, size) == JAMBA_OK;
    free(bytes);
    jamba_session_free(*session);
    *session = restored;
    return (ok || went_wrong(j, "save and restore", restored, size)) && same_bits(j, restored, "restored");
}

static void *worker_main(void *user)
{
    job *j = (job *)user;
    jamba_session_params params = session_params(j->stage, j->pool);
    bool ok;
    pthread_barrier_wait(&j->stage->start);
    ok = j->session || jamba_session_create(&j->session, j->stage->model, &params, NULL) == JAMBA_OK
        || went_wrong(j, "create", NULL, 0);
    ok = ok && go_on(j, j->session, PROMPT + 2 * SIDE, "alone");
    if (j->text % 4 == 1) ok = ok && save_and_restore(j, &j->session);
    if (ok) fork_and_part(j, &j->session);
    jamba_session_free(j->session);
    __atomic_sub_fetch(&j->stage->working, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* The source of the forks goes on, goes back to a page that they share, goes on, and is freed before they are. */
static void *source_main(void *user)
{
    job *j = (job *)user;
    pthread_barrier_wait(&j->stage->start);
    if (go_on(j, j->session, PROMPT + 3 * SIDE, "source")) go_back(j, j->session, PROMPT + SIDE);
    jamba_session_free(j->session);
    return NULL;
}

/* Loads, uses and frees models of the same file for as long as others work on theirs. */
static void *loader_main(void *user)
{
    job *j = (job *)user;
    stage shared = *j->stage; /* with a model of its own */
    jamba_model_params params;
    memset(&params, 0, sizeof params);
    pthread_barrier_wait(&j->stage->start);
    for (j->rounds = 0; j->rounds < 1 || __atomic_load_n(&j->stage->working, __ATOMIC_SEQ_CST); j->rounds++) {
        jamba_model *model;
        jamba_session_params session = session_params(j->stage, NULL);
        job own = *j;
        params.no_mmap = j->rounds % 2 != 0;
        params.verify = j->rounds % 3 == 0;
        if (jamba_model_load(&model, jamba_from_file(shared.path), &params, NULL) != JAMBA_OK) {
            went_wrong(j, "load", NULL, (size_t)j->rounds);
            break;
        }
        own.stage = &shared;
        if (jamba_session_create(&own.session, model, &session, NULL) != JAMBA_OK) went_wrong(&own, "create", NULL, 0);
        else go_on(&own, own.session, SIDE, "loaded");
        memcpy(j->wrong, own.wrong, sizeof j->wrong);
        jamba_session_free(own.session);
        jamba_model_free(model);
    }
    return NULL;
}

/* ---- rounds ------------------------------------------------------------------------------------------- */

static void texts_fill(stage *s)
{
    uint64_t random = 1;
    for (int i = 0; i < TEXTS; i++)
        for (int at = 0; at < TEXT; at++)
            s->texts[i][at] = i > 0 && at < (i == OTHER ? BACK : PROMPT)
                ? s->texts[0][at] : (int32_t)(random_next(&random) % (uint64_t)s->vocab);
}

static bool stage_open(stage *s, const char *path, const jamba_model *model, jamba_kv_type kv)
{
    bool ok = true;
    memset(s, 0, sizeof *s);
    s->path = path;
    s->model = model;
    s->vocab = (size_t)model_vocab(model);
    s->kv = kv;
    texts_fill(s);
    for (int i = 0; i < TEXTS && ok; i++) {
        jamba_session_params params = session_params(s, NULL);
        s->want[i] = model_logits(model, &params, s->texts[i], TEXT, 0);
        ok = s->want[i] != NULL;
    }
    return ok;
}

/* The source with what all have in common read, and the forks of it. */
static bool forks_make(stage *s, job *jobs)
{
    jamba_session_params params = session_params(s, NULL);
    job *source = &jobs[WORKERS];
    bool ok = CHECK(jamba_session_create(&source->session, s->model, &params, NULL) == JAMBA_OK)
        && CHECK(go_on(source, source->session, PROMPT, "prompt"));
    for (int i = WORKERS - FORKED; i < WORKERS && ok; i++)
        ok = CHECK(jamba_session_fork(&jobs[i].session, source->session, TEXT - PROMPT, NULL) == JAMBA_OK);
    return ok;
}

static void jobs_fill(stage *s, job *jobs, threads_pool *pool, int round)
{
    static const uint64_t budgets[] = { 0, 1, 7, 30 };
    static const size_t pieces[] = { 1, 3, 16, 50, 7 };
    memset(jobs, 0, (WORKERS + 2) * sizeof *jobs);
    for (int i = 0; i < WORKERS + 2; i++) {
        jobs[i].stage = s;
        jobs[i].text = i < WORKERS ? i : WORKERS;
        jobs[i].budget = budgets[(i + round) % 4];
        jobs[i].piece = pieces[(2 * i + round) % 5];
    }
    jobs[round % 2].pool = pool;
}

/* All of them at once; false when they could not be started. */
static bool jobs_run(stage *s, job *jobs)
{
    pthread_t threads[WORKERS + 2];
    int i;
    s->working = WORKERS;
    if (pthread_barrier_init(&s->start, NULL, WORKERS + 2) != 0) return false;
    for (i = 0; i < WORKERS + 2; i++) {
        void *(*work)(void *) = i < WORKERS ? worker_main : i == WORKERS ? source_main : loader_main;
        test_require(pthread_create(&threads[i], NULL, work, &jobs[i]) == 0, "cannot start", "a thread");
    }
    for (i = 0; i < WORKERS + 2; i++) pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&s->start);
    return true;
}

static void check_round(stage *s, threads_pool *pool, int round)
{
    job jobs[WORKERS + 2];
    jobs_fill(s, jobs, pool, round);
    if (!forks_make(s, jobs) || !CHECK(jobs_run(s, jobs))) return;
    for (int i = 0; i < WORKERS + 2; i++) CHECK_THAT(jobs[i].wrong[0] == 0, "round %d, %s", round, jobs[i].wrong);
    CHECK(jobs[WORKERS + 1].rounds > 0);
}

static void test_threads(const char *path)
{
    jamba_model *model = load_for_cpu(path, JAMBA_CPU_BEST);
    threads_pool *pool = threads_start(4);
    if (CHECK(model != NULL) && CHECK(pool != NULL)) {
        for (int round = 0; round < ROUNDS; round++) {
            stage s;
            if (CHECK(stage_open(&s, path, model, (jamba_kv_type)(round % 3)))) check_round(&s, pool, round);
            for (int i = 0; i < TEXTS; i++) free(s.want[i]);
        }
    }
    threads_stop(pool);
    jamba_model_free(model);
}

#else

static void test_threads(const char *path)
{
    (void)path;
}

#endif

static void test_case(const char *folder, const char *name, const char *type)
{
    char path[PATH_ROOM];
    if (!THREADS_POSIX) {
        test_skip("no threads here");
        return;
    }
    if (convert(folder, name, type, path)) test_threads(path);
    test_end();
}

int main(int argc, char **argv)
{
    static const char *const cases[][2] = { { "llama-llama3", "q4" }, { "zamba2-abc", "f32" }, { "mamba", "q8" } };
    char folder[PATH_ROOM];
    test_start(argc, argv);
    if (test_begin("tiny hybrid, q8")) {
        tiny_write(temp_path(folder, "tiny"), false);
        test_case(folder, "tiny", "q8");
    }
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        if (!test_begin("%s, %s", cases[i][0], cases[i][1])) continue;
        snprintf(folder, sizeof folder, "tests/cases/%s", cases[i][0]);
        test_case(folder, cases[i][0], cases[i][1]);
    }
    return test_summary();
}
