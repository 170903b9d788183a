/* slices.c - between two looks at the clock lies at most a slice of work, and stopping anywhere changes nothing
 *
 * Work is counted by this file's own sums over what a task reads and computes. First on paper: tasks of passes over
 * models of released shapes, at 512 KiB. Then on the golden cases with slices of a few KiB, so that they are cut as
 * large models are: the kernels are replaced by ones that count, the clock by one that looks at the count. */
#include <stdint.h>
static uint32_t slice_bytes = 512u << 10;
#define JMB_SLICE slice_bytes

#include "support.h"

#include "../tools/families.h"
#include "shapes.h"

enum { WHOLE_SLICE = 512 << 10 };

/* ---- the work of a task ------------------------------------------------------------------------------ */

/* `least`: of the same task if it were for one row, 16 outputs, one query. What is more can be cut. */
typedef struct work {
    double done, least;
} work;

static double numbers_of(const jmb_tensor *w)
{
    return 16.0 * w->cols * (jmb_roles[w->role].paired ? 2 : 1);
}

static double bytes_of(const jmb_tensor *w)
{
    return (double)jmb_panel_bytes(w->type, w->cols) * (jmb_roles[w->role].paired ? 2 : 1);
}

/* Twelve rows against weights of 8 or 4 bits take as long as reading a byte for each of their numbers. */
static double row_of(const jmb_tensor *w)
{
    return numbers_of(w) * (w->type >= JMB_Q8 ? 1 : 4) / 12;
}

static work linear_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    jmb_portion portion = jmb_portion_of(p, op, task);
    const jmb_tensor *w = op->w[portion.part], *low = op->low_w[portion.part];
    double outputs = portion.stop - portion.first, rows = portion.stop_row - portion.row;
    work all;
    CHECK(outputs > 0 && rows > 0);
    all.least = bytes_of(w) + (low ? bytes_of(low) : 0);
    all.done = outputs * (all.least + (rows - 1) * (row_of(w) + (low ? row_of(low) : 0)));
    return all;
}

static work slab_work(const jmb_pass *p, uint32_t width, uint32_t task, double fixed, double row)
{
    jmb_slab slab = jmb_slab_of(p, width, task);
    double columns = slab.end - slab.begin, rows = slab.span->rows;
    work all;
    all.done = columns * (fixed + rows * row);
    all.least = (columns < 64 ? columns : 64) * (fixed + row);
    return all;
}

static work conv_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    uint32_t part = 0, tasks;
    for (; task >= (tasks = jmb_slabs(p, op->out[part].width) * p->span_count); part++) task -= tasks;
    return slab_work(p, op->out[part].width, task, 0, 16 + 4 * op->block->d_conv);
}

static work head_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    double numbers = (double)(op->block->d_inner / op->block->heads) * op->block->d_state;
    work all;
    all.done = numbers * (8 + p->spans[task / op->block->heads].rows);
    all.least = numbers * 9;
    return all;
}

static work attend_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    const jmb_span *span = p->spans;
    uint32_t most = jmb_query_count(p, b), tile = task / jmb_window_pages(p) / b->kv_heads, queries;
    double page = 2.0 * JMB_PAGE * b->head_dim;
    work all;
    for (; tile >= jmb_query_tiles(p, span, b); span++) tile -= jmb_query_tiles(p, span, b);
    queries = span->rows * (b->heads / b->kv_heads) - tile * most;
    all.done = page * (6 + (queries < most ? queries : most) / 4.0);
    all.least = page * 6.25;
    return all;
}

/* The same however many rows there are. */
static work fixed_work(double done)
{
    work all;
    all.done = all.least = done;
    return all;
}

static work row_work(double done, double least)
{
    work all;
    all.done = done;
    all.least = least;
    return all;
}

static work keep_work(const jmb_op *op, uint32_t task)
{
    double floats = (double)op->state_at + op->in.width, piece = slice_bytes / 8;
    double at = (double)(task % jmb_keep_pieces(op)) * piece;
    return row_work(8 * (floats - at < piece ? floats - at : piece), 0);
}

static work quantise_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    if (op->flags & JMB_OP_SLABS) return slab_work(p, op->in.width, task, 0, 16);
    return fixed_work(16.0 * op->in.width);
}

static double embed_width(const jmb_op *op)
{
    return op->out[0].width < slice_bytes / 128 ? op->out[0].width : slice_bytes / 128;
}

static work task_work(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    const jmb_block *b = op->block;
    switch (op->kind) {
    case JMB_OP_EMBED: return row_work(100 * embed_width(op), 0);
    case JMB_OP_ADAPT_EMBED: case JMB_OP_ADAPT: return fixed_work(0); /* no session here has adapters */
    case JMB_OP_BESIDE: return fixed_work(16.0 * (op->in.width + op->out[1].width));
    case JMB_OP_SUM: case JMB_OP_NORM: return fixed_work(16.0 * op->in.width);
    case JMB_OP_QUANTISE: return quantise_work(p, op, task);
    case JMB_OP_LINEAR: case JMB_OP_EXPERT_UP: case JMB_OP_EXPERT_DOWN: return linear_work(p, op, task);
    case JMB_OP_CONV: return conv_work(p, op, task);
    case JMB_OP_SCAN: return slab_work(p, op->out[0].width, task, 12.0 * b->d_state, 6.0 * b->d_state);
    case JMB_OP_SCAN2: return head_work(p, op, task);
    case JMB_OP_GATE: return fixed_work(16.0 * b->d_inner);
    case JMB_OP_CACHE: return fixed_work(b->head_dim * (128.0 + 16.0 * (b->heads / b->kv_heads)));
    case JMB_OP_ATTEND: return attend_work(p, op, task);
    case JMB_OP_MERGE:
        return row_work(4.0 * (double)jmb_partial_floats(b) * jmb_window_pages(p), 4.0 * (double)jmb_partial_floats(b));
    case JMB_OP_ROUTE: return fixed_work(64.0 * b->experts * (1 + b->top_k));
    case JMB_OP_GROUP: return row_work(64.0 * (p->rows * b->top_k + b->experts), 64.0 * (b->top_k + b->experts));
    case JMB_OP_COMBINE: return fixed_work(16.0 * op->out[0].width * b->top_k);
    case JMB_OP_KEEP: return keep_work(op, task);
    default: CHECK_THAT(false, "operations of kind %d have no formula", (int)op->kind); return fixed_work(0);
    }
}

static bool lawful(double done, double least)
{
    return done <= slice_bytes || done <= least;
}

/* ---- on paper: released shapes ------------------------------------------------------------------------- */

typedef struct paper {
    jmb_plan plan;
    jmb_pass pass;
    jmb_span span;
    int32_t start[JMB_MAX_EXPERTS + 1], used[JMB_MAX_EXPERTS + 1];
    double worst, longest; /* work of any task; and of those that cannot be cut */
    const char *longest_kind;
    int broken;
} paper;

static const char *const kind_names[JMB_OP_COUNT] = { "embed", "adapt embed", "adapt", "beside", "sum", "norm",
    "quantise", "linear", "conv", "scan", "scan2", "gate", "cache", "attend", "merge", "route", "group", "expert up",
    "expert down", "combine", "keep" };

/* A pass of one session, all of its rows wanted, marked, and all with the same experts. */
static void paper_pass(paper *p, uint32_t rows, uint32_t position, bool sliced)
{
    static jmb_mark mark;
    memset(&p->pass, 0, sizeof p->pass);
    memset(&p->span, 0, sizeof p->span);
    p->span.rows = rows;
    p->span.position = position;
    p->span.mark = &mark;
    p->pass.spans = &p->span;
    p->pass.span_count = 1;
    p->pass.rows = p->pass.wanted = rows;
    p->pass.capacity = rows < 128 ? 128 : rows;
    p->pass.sliced = sliced;
    p->pass.slab = p->plan.slab;
    p->pass.routing.start = p->start;
    p->pass.routing.used = p->used;
    p->worst = 0;
    p->broken = 0;
}

static void paper_route(paper *p, const jmb_block *b)
{
    uint32_t e;
    p->used[0] = (int32_t)b->top_k;
    for (e = 0; e <= b->experts; e++) p->start[e] = (int32_t)(p->pass.rows * (e < b->top_k ? e : b->top_k));
    for (e = 0; e < b->top_k; e++) p->used[1 + e] = (int32_t)e;
}

static void paper_task(paper *p, const jmb_op *op, uint32_t task)
{
    double done = 0, least = 0;
    uint32_t i;
    for (i = 0; i < op->chain; i++) {
        work one = task_work(&p->pass, &op[i], task);
        done += one.done;
        least += one.least;
    }
    if (!lawful(done, least)) p->broken++;
    if (done > p->worst) p->worst = done;
    if (done > slice_bytes && done <= least && done > p->longest) {
        p->longest = done;
        p->longest_kind = kind_names[op->kind];
    }
}

/* Every task, or of many a thousand from the first to the last. */
static void paper_run(paper *p, uint32_t rows, uint32_t position, bool sliced)
{
    uint32_t i, task;
    paper_pass(p, rows, position, sliced);
    for (i = 0; i < p->plan.count; i += p->plan.ops[i].chain) {
        const jmb_op *op = &p->plan.ops[i];
        uint32_t tasks, step;
        if (op->kind == JMB_OP_EXPERT_UP || op->kind == JMB_OP_EXPERT_DOWN) paper_route(p, op->block);
        tasks = jmb_op_tasks(op, &p->pass);
        step = tasks / 1000 + 1;
        for (task = 0; task < tasks; task += step) paper_task(p, op, task);
        if (tasks) paper_task(p, op, tasks - 1);
    }
}

static void check_paper(const char *name, const jmb_metadata *model)
{
    paper *p = (paper *)calloc(1, sizeof *p);
    double worst = 0;
    int i;
    jmb_build_plan(&p->plan, model);
    p->plan.ops = (jmb_op *)calloc(p->plan.count, sizeof *p->plan.ops);
    jmb_build_plan(&p->plan, model);
    for (i = 0; i < 6; i++) {
        const uint32_t most = p->plan.slice_rows, rows[3] = { 1, (most + 2) / 3, most };
        paper_run(p, rows[i % 3], i < 3 ? 0 : 40000, true);
        CHECK_THAT(p->broken == 0, "%s: %d tasks of %u rows are longer than a slice, up to %.0f KiB", name, p->broken,
            rows[i % 3], p->worst / 1024);
        if (p->worst > worst) worst = p->worst;
    }
    /* Heads of 224 and 464 in Zamba: a query of one over a page is the only thing that is longer. */
    CHECK_THAT(p->longest <= 3 * WHOLE_SLICE, "%s: what is not cut counts %.0f KiB", name, p->longest / 1024);
    CHECK_THAT(p->longest == 0 || strcmp(p->longest_kind, "attend") == 0, "%s: %s is not cut", name, p->longest_kind);
    printf("slices: %-20s passes of %4u rows, longest task %4.0f KiB%s%s\n", name, p->plan.slice_rows, worst / 1024,
        p->longest > 0 ? ", " : "", p->longest > 0 ? p->longest_kind : "");
    paper_run(p, 128, 0, false);
    CHECK_THAT(p->broken > 0, "%s: no task is too long without a budget", name); /* or nothing was counted */
    free(p->plan.ops);
    free(p);
}

static void test_shape(const shape *s, uint32_t type)
{
    checkpoint c;
    convert_plan plan;
    tool_error error;
    if (!write_shape(&c, s)) test_skip("the file system refuses files of that size");
    else {
        if (CHECK_THAT(plan_make(&plan, folder, type, NULL, &error), "%s", error.message)) {
            check_paper(s->name, &plan.model);
            plan_free(&plan);
        }
        test_end();
    }
    remove_checkpoint(&c);
}

/* ---- counted: kernels that count, a clock that looks ---------------------------------------------------- */

enum { COUNTERS = 64 };

/* Since its thread last looked at the clock. */
typedef struct counted {
    double done, least;
    int tasks;
} counted;

/* How many tasks may lie between two looks, all threads together, or each on its own. */
typedef enum look { LOOK_ALONE, LOOK_TOGETHER } look;

static struct {
    jmb_kernels kernels;      /* these count */
    const jmb_kernels *inner; /* and call these */
#if THREADS_POSIX
    pthread_key_t key;
#endif
    counted counters[COUNTERS];
    int used; /* atomic */
    look how;
    int width;
    uint64_t time;
    int broken, looks; /* atomic */
    uint64_t kept;     /* atomic: floats of marks */
} counts;

#if THREADS_POSIX
static counted *counter_of_thread(void)
{
    counted *c = (counted *)pthread_getspecific(counts.key);
    if (c) return c;
    c = &counts.counters[__atomic_fetch_add(&counts.used, 1, __ATOMIC_RELAXED) % COUNTERS];
    pthread_setspecific(counts.key, c);
    return c;
}
#else
static counted *counter_of_thread(void)
{
    return &counts.counters[0];
}
#endif

static void run_counting(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    work one = task_work(p, op, task);
    counted *c = counter_of_thread();
    c->done += one.done;
    c->least += one.least;
    c->tasks += op->chain > 0; /* the first of a phase */
    if (op->kind == JMB_OP_KEEP) __atomic_fetch_add(&counts.kept, (uint64_t)one.done / 8, __ATOMIC_RELAXED);
    counts.inner->run[op->kind](p, op, task);
}

static void look_at(counted *c, int width)
{
    bool ok = c->done <= (double)slice_bytes * width || (c->tasks <= width && (width > 1 || c->done <= c->least));
    if (!ok) __atomic_fetch_add(&counts.broken, 1, __ATOMIC_RELAXED);
    memset(c, 0, sizeof *c);
}

/* Moves on by one, so that a budget of n ends after n looks. */
static uint64_t clock_looks(void *user)
{
    int i;
    (void)user;
    if (counts.how == LOOK_ALONE) look_at(counter_of_thread(), 1);
    else {
        counted all = { 0, 0, 0 };
        for (i = 0; i < COUNTERS; i++) {
            all.done += counts.counters[i].done;
            all.least += counts.counters[i].least;
            all.tasks += counts.counters[i].tasks;
            memset(&counts.counters[i], 0, sizeof all);
        }
        look_at(&all, counts.width);
    }
    __atomic_fetch_add(&counts.looks, 1, __ATOMIC_RELAXED);
    return __atomic_add_fetch(&counts.time, 1, __ATOMIC_RELAXED);
}

/* From now on the model's kernels count. */
static void count_model(jamba_model *model)
{
    int i;
    counts.inner = model->kernels;
    counts.kernels = *model->kernels;
    for (i = 0; i < JMB_OP_COUNT; i++) counts.kernels.run[i] = run_counting;
    model->kernels = &counts.kernels;
}

static void count_start(look how, int width)
{
    memset(counts.counters, 0, sizeof counts.counters);
    counts.how = how;
    counts.width = width;
    counts.broken = counts.looks = 0;
    counts.kept = 0;
}

static void count_check(const char *what)
{
    CHECK_THAT(counts.broken == 0, "%s: %d times of %d was there more than a slice between two looks", what,
        counts.broken, counts.looks);
    CHECK_THAT(counts.looks > 20, "%s: only %d looks", what, counts.looks);
}

/* ---- golden cases --------------------------------------------------------------------------------------- */

enum { TOKENS = 70, PROMPT = 60, SESSIONS = 3, EVERY = 7 };

typedef struct subject {
    jamba_model *model;
    size_t vocab;
    int32_t *tokens;
    float *want; /* (TOKENS, vocab), without a budget */
    const jmb_kernels *plain;
} subject;

static jamba_session *subject_session(const subject *t, const jamba_executor *executor, int32_t marks)
{
    jamba_session_params params;
    jamba_session *session = NULL;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    params.context = TOKENS;
    params.chunk = 64;
    params.marks = marks;
    params.mark_every = marks ? EVERY : 0;
    params.executor = executor;
    params.threads = 1;
    params.now_us = clock_looks;
    CHECK(jamba_session_create(&session, t->model, &params, NULL) == JAMBA_OK);
    return session;
}

static void check_logits(const subject *t, jamba_session *session, size_t count, const char *what)
{
    const float *logits = jamba_logits(session);
    CHECK_THAT(logits && memcmp(logits, t->want + (count - 1) * t->vocab, t->vocab * sizeof *logits) == 0,
        "%s: other logits after %zu tokens", what, count);
}

/* A prompt, then tokens one by one, with marks on the way. */
static void check_alone(const subject *t, const jamba_executor *executor, uint64_t budget, const char *what)
{
    jamba_session *session = subject_session(t, executor, 3);
    size_t i, state = (size_t)t->model->plan.state_floats + jmb_pad16(t->vocab);
    bool together = executor && !executor->concurrent;
    count_start(together ? LOOK_TOGETHER : LOOK_ALONE, together ? executor->width : 1);
    CHECK(jamba_feed(session, t->tokens, PROMPT) == JAMBA_OK);
    CHECK(step_all(session, budget, NULL) == JAMBA_OK);
    check_logits(t, session, PROMPT, what);
    for (i = PROMPT; i < TOKENS; i++) {
        CHECK(jamba_feed(session, t->tokens + i, 1) == JAMBA_OK);
        CHECK(step_all(session, budget, NULL) == JAMBA_OK);
        check_logits(t, session, i + 1, what);
    }
    count_check(what);
    CHECK_THAT(counts.kept > 0 && counts.kept % state == 0, "%s: %.0f floats were kept for marks of %zu", what,
        (double)counts.kept, state);
    CHECK(jamba_session_rewind(session, TOKENS - EVERY, NULL) == JAMBA_OK);
    CHECK(step_all(session, budget, NULL) == JAMBA_OK);
    check_logits(t, session, TOKENS - EVERY, what);
    jamba_session_free(session);
}

/* Prompts of different lengths, then tokens, together. */
static void check_together(const subject *t, uint64_t budget)
{
    jamba_session *sessions[SESSIONS];
    size_t fed[SESSIONS], step;
    int i, calls = 0;
    jamba_result result;
    for (i = 0; i < SESSIONS; i++) sessions[i] = subject_session(t, NULL, 2);
    count_start(LOOK_ALONE, 1);
    for (step = 0; step < 6; step++) {
        for (i = 0; i < SESSIONS; i++) {
            size_t more = step ? 1 : (size_t)(20 + 21 * i);
            fed[i] = step ? fed[i] : 0;
            CHECK(jamba_feed(sessions[i], t->tokens + fed[i], more) == JAMBA_OK);
            fed[i] += more;
        }
        do result = jamba_step_batch(sessions, SESSIONS, budget);
        while (result == JAMBA_PENDING && calls++ < STEPS_LIMIT);
        CHECK(result == JAMBA_OK);
        for (i = 0; i < SESSIONS; i++) check_logits(t, sessions[i], fed[i], "together");
    }
    count_check("together");
    for (i = 0; i < SESSIONS; i++) jamba_session_free(sessions[i]);
}

/* Left after every task of a prompt in turn, then gone back or begun anew: whatever follows is what it always is. */
static void check_cancel(const subject *t)
{
    jamba_session *session = subject_session(t, NULL, 3);
    int stops, i;
    jamba_result result = JAMBA_PENDING;
    count_start(LOOK_ALONE, 1);
    for (stops = 1; result == JAMBA_PENDING; stops++) {
        size_t to = stops % 3 == 0 ? 0 : (size_t)(stops % 3 * 4);
        jamba_session_reset(session);
        CHECK(jamba_eval(session, t->tokens, 9) == JAMBA_OK);
        CHECK(jamba_feed(session, t->tokens + 9, 9) == JAMBA_OK);
        for (i = 0; i < stops && result == JAMBA_PENDING; i++) result = jamba_step(session, 1);
        if (stops % 2) CHECK(jamba_session_rewind(session, (int32_t)to, NULL) == JAMBA_OK);
        else jamba_session_reset(session);
        if (stops % 2 == 0) to = 0;
        CHECK(jamba_feed(session, t->tokens + to, 11 - to) == JAMBA_OK && jamba_step(session, 0) == JAMBA_OK);
        check_logits(t, session, 11, "cancelled");
        if (result == JAMBA_PENDING) continue;
        CHECK_THAT(stops > 20, "the prompt took only %d tasks", stops);
    }
    jamba_session_free(session);
}

static void check_subject(const subject *t)
{
    jamba_executor reversed = { run_reversed, NULL, 3, false };
    threads_pool *pool;
    check_alone(t, NULL, 1, "alone, stopped after each task");
    check_alone(t, NULL, 17, "alone");
    check_alone(t, &reversed, 1, "on an executor that runs one by one");
    check_together(t, 1);
    check_together(t, 23);
    check_cancel(t);
    pool = threads_start(3);
    if (!THREADS_POSIX || !CHECK(pool != NULL)) return;
    check_alone(t, &pool->executor, 5, "on three threads");
    pool->executor.concurrent = false;
    check_alone(t, &pool->executor, 2, "on three threads, task by task");
    threads_stop(pool);
}

static void test_golden(const char *name, const char *type, uint32_t slice)
{
    char source[PATH_ROOM], path[PATH_ROOM];
    jamba_session_params params;
    jamba_model *plain;
    subject t;
    memset(&t, 0, sizeof t);
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    snprintf(source, sizeof source, "tests/cases/%s", name);
    if (!convert(source, name, type, path)) return;
    slice_bytes = slice;
    plain = load_for_cpu(path, JAMBA_CPU_BEST);
    t.model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(plain && t.model)) {
        t.vocab = (size_t)model_vocab(plain);
        t.tokens = golden_tokens(name, TOKENS);
        t.want = model_logits(plain, &params, t.tokens, TOKENS, 0);
        count_model(t.model);
        if (t.want) check_subject(&t);
    }
    jamba_model_free(plain);
    jamba_model_free(t.model);
    free(t.tokens);
    free(t.want);
    slice_bytes = WHOLE_SLICE;
}

int main(int argc, char **argv)
{
    static const char *const types[] = { "f32", "q8", "q4", "f16" };
    int i;
    test_start(argc, argv);
    snprintf(folder, sizeof folder, "%s/tmp", test_state.build);
    mkdir(folder, 0777);
    snprintf(folder, sizeof folder, "%s/tmp/slices-shapes", test_state.build);
    mkdir(folder, 0777);
    for (i = 0; i < SHAPES; i++) {
        if (!test_begin("%s %s", shapes[i].name, i % 2 ? "q4" : "q8")) continue;
        test_shape(&shapes[i], i % 2 ? JMB_Q4 : JMB_Q8);
    }
    rmdir(folder);
#if THREADS_POSIX
    pthread_key_create(&counts.key, NULL);
#endif
    for (i = 0; i < GOLDEN_CASES; i++) {
        const char *name = golden_cases[i].name, *type = types[i % 4];
        uint32_t slice = i % 3 ? 4096 : 32768;
        if (!test_begin("%s %s, slices of %u KiB", name, type, slice / 1024)) continue;
        test_golden(name, type, slice);
        test_end();
    }
    return test_summary();
}
