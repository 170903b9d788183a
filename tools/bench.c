/* bench.c - how fast a model reads a prompt and writes, beside what the machine could do */
#include "run.h"

#include "machine.h"

static const char TOOL[] = "bench";
static const char USAGE[] =
    "usage: bench MODEL.jamba [options]\n"
    "Reads a prompt of pseudo-random tokens, and writes one token after the other; prints tokens per second, and\n"
    "what that is of this machine's limits: of the bytes that it reads from memory in a second (decode), and of\n"
    "its int8 operations (prompt).\n"
    "  -t THREADS    (one per processor, at most 8; 1 for a model under 32 MB)\n"
    "  -p TOKENS     in the prompt, 0 for none (128)\n"
    "  -n TOKENS     to write, 0 for none (32)\n"
    "  -r REPEATS    (5)\n"
    "  --context N   tokens in the context before each, not computed; a list such as 0,8192,32768 for several (0)\n"
    "  --batch N     also writes with N sessions of the model together (1)\n"
    "  --kv TYPE     of the attention cache: f32, f16 or q8 (f16)\n"
    "  --json        one object per line\n";

enum { DEPTHS_MAX = 16, BATCH_MAX = 1024 };

/* Measured at one depth: tokens a second of each repeat. */
typedef struct depth_result {
    int depth;
    jamba_memory memory; /* of a session that just has room */
    double *prompt, *decode, *batch; /* batch: of all sessions together */
} depth_result;

/* What one token costs. */
typedef struct token_work {
    double bytes; /* of weights read to write it, and of state read and written */
    double products, head_products; /* of quantised linears, in the blocks and in the head */
} token_work;

typedef struct bench {
    run_context run;
    jamba_session_params params;
    int32_t *tokens;
    int prompt, written, repeats, threads;
    depth_result depths[DEPTHS_MAX];
    int depth_count;
    double *rates; /* of all depths */
    int batch; /* sessions; the first one is the run's */
    jamba_session *sessions[BATCH_MAX];
    bool json;
    char cpu[128];
    double load_ms;
    token_work work;
    machine_limits limits;
    uint64_t resident; /* after the run, without file pages */
    bool resident_known;
} bench;

/* ---- arguments ----------------------------------------------------------------------------- */

static int parse_count(const char *name, const char *text, int low)
{
    return (int)tool_argument_int(TOOL, USAGE, name, text, low, 1 << 24);
}

static void parse_depths(bench *b, const char *name, const char *text)
{
    char item[32];
    size_t length;
    b->depth_count = 0;
    do {
        if (b->depth_count == DEPTHS_MAX) tool_usage(TOOL, USAGE, "too many numbers in --context", text);
        length = text ? strcspn(text, ",") : 0;
        snprintf(item, sizeof item, "%.*s", (int)(length < sizeof item ? length : sizeof item), text ? text : "");
        b->depths[b->depth_count++].depth = parse_count(name, length ? item : NULL, 0);
        text = text && text[length] ? text + length + 1 : NULL;
    } while (text);
}

static bool parse_option(bench *b, const char *name, const char *value)
{
    if (strcmp(name, "-t") == 0) b->threads = run_argument_threads(TOOL, USAGE, name, value);
    else if (strcmp(name, "-p") == 0) b->prompt = parse_count(name, value, 0);
    else if (strcmp(name, "-n") == 0) b->written = parse_count(name, value, 0);
    else if (strcmp(name, "-r") == 0) b->repeats = parse_count(name, value, 1);
    else if (strcmp(name, "--context") == 0) parse_depths(b, name, value);
    else if (strcmp(name, "--batch") == 0) b->batch = (int)tool_argument_int(TOOL, USAGE, name, value, 1, BATCH_MAX);
    else if (strcmp(name, "--kv") == 0) b->params.kv_type = run_argument_kv(TOOL, USAGE, value);
    else return false;
    return true;
}

static void parse_arguments(bench *b, char **argv)
{
    b->prompt = 128;
    b->written = 32;
    b->repeats = 5;
    b->depth_count = b->batch = 1;
    for (char **arg = argv + 1; *arg; arg++) {
        if (strcmp(*arg, "--json") == 0) b->json = true;
        else if ((*arg)[0] == '-') {
            if (!parse_option(b, *arg, arg[1])) tool_usage(TOOL, USAGE, "unknown option", *arg);
            arg++;
        } else if (b->run.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
        else b->run.path = *arg;
    }
    if (!b->run.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (b->prompt + b->written == 0) tool_usage(TOOL, USAGE, "-p 0 and -n 0 leave nothing to do", NULL);
    if (b->batch > 1 && b->written == 0) tool_usage(TOOL, USAGE, "--batch writes, which -n 0 forbids", NULL);
}

/* ---- what a token costs -------------------------------------------------------------------- */

static bool is_adapter(uint32_t role)
{
    static const uint32_t roles[] = { JMB_ROLE_Q_A, JMB_ROLE_K_A, JMB_ROLE_V_A, JMB_ROLE_Q_B, JMB_ROLE_K_B,
        JMB_ROLE_V_B, JMB_ROLE_GATE_UP_A, JMB_ROLE_GATE_UP_B };
    for (size_t i = 0; i < sizeof roles / sizeof *roles; i++)
        if (roles[i] == role) return true;
    return false;
}

/* How often a token goes through a tensor of the blocks: once for each block that shares it, and through top_k
 * of the experts. */
static double tensor_uses(const jmb_metadata *m, const jmb_tensor *t)
{
    const jmb_block *block = &m->blocks[t->unit];
    bool expert = block->kind == JMB_MOE && (t->role == JMB_ROLE_GATE_UP || t->role == JMB_ROLE_DOWN);
    double uses = 0;
    for (uint32_t i = 0; i < m->header.blocks; i++)
        if (m->blocks[i].unit == t->unit && (i == t->unit || !is_adapter(t->role))) uses++;
    return expert ? uses * block->top_k / block->experts : uses;
}

static token_work count_work(const jmb_metadata *m)
{
    token_work work = { 0, 0, 0 };
    uint32_t head = m->header.head ? JMB_ROLE_HEAD : JMB_ROLE_EMBED;
    for (uint32_t i = 0; i < m->header.tensors; i++) {
        const jmb_tensor *t = &m->tensors[i];
        double products = (double)t->rows * t->cols * (jmb_roles[t->role].paired ? 2 : 1);
        double uses = t->unit == JMB_NONE ? 1 : tensor_uses(m, t);
        if (t->unit == JMB_NONE && t->role == JMB_ROLE_EMBED && head != JMB_ROLE_EMBED) uses /= t->rows;
        work.bytes += (double)t->bytes * uses;
        if (t->type < JMB_Q8) continue;
        if (t->unit != JMB_NONE) work.products += products * uses;
        else if (t->role == head) work.head_products += products;
    }
    return work;
}

/* Share of the machine's int8 operations, 0 when it is not known or the weights are no integers. The head
 * is for the last token only. */
static double prompt_fraction(const bench *b, double rate)
{
    double products = b->work.products * b->prompt + b->work.head_products;
    if (b->limits.int8 == 0 || b->run.model->metadata.header.type < JMB_Q8) return 0;
    return 2 * products / b->prompt * rate / b->limits.int8;
}

/* At a depth, all keys and values before it are read too. */
static double decode_fraction(const bench *b, const depth_result *at, double rate)
{
    return (b->work.bytes + (double)(at->depth ? at->memory.kv : 0)) * rate / b->limits.read_4;
}

/* ---- a session at a depth ------------------------------------------------------------------ */

/* The same tokens for every run; varied, so that a mixture uses all of its experts. */
static void fill_tokens(bench *b)
{
    size_t count = (size_t)b->params.context;
    uint64_t state = 1;
    b->tokens = (int32_t *)malloc(count * sizeof *b->tokens);
    if (!b->tokens) tool_die(TOOL, "out of memory for %zu tokens", count);
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (int32_t)((state >> 33) % (uint64_t)b->run.info.vocab);
    }
}

/* Repeats the first page of keys and values, so that they fill those of `depth` tokens. */
static void fill_pages(jamba_session *s, int depth)
{
    size_t bytes = (size_t)jmb_page_bytes(&s->model->plan, s->own.kv_type);
    jmb_pages_grow(s, (uint32_t)depth);
    s->fed = (uint32_t)depth;
    for (uint32_t i = 1; i < s->held; i++) memcpy(s->own.pages[i], s->own.pages[0], bytes);
}

/* As if `depth` tokens had been read: keys and values repeat those of the first page, the recurrent state is
 * what the last tokens left. */
static void go_to_depth(jamba_session *s, int depth)
{
    if (depth == 0) jamba_session_reset(s);
    if (s->fed < (uint32_t)depth) jmb_pages_grow(s, (uint32_t)depth); /* the same ones as before, their numbers there */
    jmb_drop_fed(s, (uint32_t)depth);
    s->position = s->own.kept = (uint32_t)depth;
}

static int deepest(const bench *b)
{
    int depth = 0;
    for (int i = 0; i < b->depth_count; i++)
        if (b->depths[i].depth > depth) depth = b->depths[i].depth;
    return depth;
}

static int room(const bench *b)
{
    return b->prompt > b->written ? b->prompt : b->written;
}

/* As run_check, for any session of the batch. */
static void check_session(const bench *b, jamba_session *s, int32_t result)
{
    run_context run = b->run;
    run.session = s;
    run_check(&run, result);
}

/* Reads real tokens for one page of keys and values, and repeats them. */
static void fill_session(const bench *b, jamba_session *s)
{
    int depth = deepest(b), page = depth < JMB_PAGE ? depth : JMB_PAGE;
    jamba_session_reset(s);
    check_session(b, s, jamba_eval(s, b->tokens, (size_t)page));
    memcpy(s->tokens, b->tokens, (size_t)depth * sizeof *b->tokens);
    fill_pages(s, depth);
}

/* The sessions of a batch share the first one's executor. */
static void create_sessions(bench *b)
{
    jamba_error error;
    for (int i = 0; i < b->depth_count; i++) {
        jamba_session_params params = b->params;
        params.context = b->depths[i].depth + room(b);
        if (jamba_session_estimate(b->run.model, &params, &b->depths[i].memory) != JAMBA_OK)
            tool_die(TOOL, "%s: a context of %d tokens is too large", b->run.path, (int)params.context);
    }
    b->params.context = deepest(b) + room(b);
    run_create(&b->run, &b->params, b->threads);
    b->sessions[0] = b->run.session;
    for (int i = 1; i < b->batch; i++)
        if (jamba_session_create(&b->sessions[i], b->run.model, &b->params, &error) != JAMBA_OK)
            tool_die(TOOL, "%s: session %d of the batch: %s", b->run.path, i + 1, error.message);
    fill_tokens(b);
}

/* ---- measuring ----------------------------------------------------------------------------- */

/* Seconds for a prompt; seconds for a pass over `count` further tokens one by one, sampling included. */
static double read_prompt(const bench *b, int count)
{
    double start = tool_seconds();
    run_check(&b->run, jamba_eval(b->run.session, b->tokens, (size_t)count));
    run_check(&b->run, jamba_sample(b->run.session, NULL));
    return tool_seconds() - start;
}

static double write_tokens(const bench *b, int count)
{
    double start = tool_seconds();
    for (int i = 0; i < count; i++) {
        run_check(&b->run, jamba_eval(b->run.session, b->tokens + i, 1));
        run_check(&b->run, jamba_sample(b->run.session, NULL));
    }
    return tool_seconds() - start;
}

/* A token for each session, `count` times. */
static double write_batch(const bench *b, int count)
{
    int32_t tokens[BATCH_MAX];
    double start = tool_seconds();
    for (int i = 0; i < count; i++) {
        for (int k = 0; k < b->batch; k++) tokens[k] = b->tokens[(i + k * 7) % b->params.context];
        run_check(&b->run, jamba_eval_batch(b->sessions, tokens, (size_t)b->batch));
        for (int k = 0; k < b->batch; k++) check_session(b, b->sessions[k], jamba_sample(b->sessions[k], NULL));
    }
    return tool_seconds() - start;
}

/* Brings the file into memory and wakes the threads. */
static void warm_up(const bench *b)
{
    if (b->prompt > 0) read_prompt(b, b->prompt < 64 ? b->prompt : 64);
    jamba_session_reset(b->run.session);
    write_tokens(b, b->written < 2 ? b->written : 2);
    for (int i = 0; i < b->batch && deepest(b) > 0; i++) fill_session(b, b->sessions[i]);
}

static void measure_depth(const bench *b, const depth_result *at, int repeat)
{
    go_to_depth(b->run.session, at->depth);
    if (b->prompt > 0) at->prompt[repeat] = b->prompt / read_prompt(b, b->prompt);
    go_to_depth(b->run.session, at->depth);
    if (b->written > 0) at->decode[repeat] = b->written / write_tokens(b, b->written);
    if (b->batch == 1) return;
    for (int i = 0; i < b->batch; i++) go_to_depth(b->sessions[i], at->depth);
    at->batch[repeat] = (double)b->written * b->batch / write_batch(b, b->written);
}

/* Every repeat goes through the limits and all depths, so that all share the machine's good and bad moments. */
static void measure(bench *b)
{
    tool_progress progress = { 0, false };
    if (!machine_limits_start(&b->limits, &b->run.session->executor, b->run.info.isa))
        tool_die(TOOL, "no memory to measure its speed; close other programs");
    warm_up(b);
    for (int i = 0; i < b->repeats; i++) {
        tool_progress_show(&progress, "measuring", (uint64_t)i, (uint64_t)b->repeats);
        machine_limits_measure(&b->limits);
        for (int k = 0; k < b->depth_count; k++) measure_depth(b, &b->depths[k], i);
    }
    machine_limits_measure(&b->limits);
    machine_limits_stop(&b->limits);
    b->resident_known = machine_resident(&b->resident);
    tool_progress_end(&progress);
}

/* The second of two loads, as the first one may wait for the disk. */
static void load(bench *b)
{
    double start;
    run_load(&b->run, JAMBA_CPU_BEST);
    jamba_model_free(b->run.model);
    start = tool_seconds();
    run_load(&b->run, JAMBA_CPU_BEST);
    b->load_ms = (tool_seconds() - start) * 1e3;
    b->work = count_work(&b->run.model->metadata);
    b->work.bytes += 2.0 * (double)b->run.model->plan.state_floats * sizeof(float);
}

/* ---- results ------------------------------------------------------------------------------- */

static const double MIB = 1048576.0;

/* What the process holds beyond the file's pages and the sessions. */
static double resident_over(const bench *b)
{
    return (double)b->resident - (double)(b->run.session->size + b->run.session->memory.kv) * b->batch;
}

static void print_json_strings(const bench *b)
{
    const char *const strings[] = { "cpu", b->cpu, "isa", b->run.info.isa, "file", b->run.path, "type",
        b->run.info.type, "version", jamba_build_info() };
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i += 2) {
        tool_print_json_string(strings[i]);
        putchar(':');
        tool_print_json_string(strings[i + 1]);
        putchar(',');
    }
}

/* Figures that are not known are left out. */
static void print_json_machine(const bench *b)
{
    printf("\"threads\":%d,\"load_ms\":%.2f,\"read_1_gb_per_s\":%.2f,\"read_4_gb_per_s\":%.2f,", b->threads,
        b->load_ms, b->limits.read_1 * 1e-9, b->limits.read_4 * 1e-9);
    if (b->limits.int8 > 0) printf("\"int8_gop_per_s\":%.1f,", b->limits.int8 * 1e-9);
    if (b->resident_known) printf("\"resident_over_mib\":%.1f,", resident_over(b) / MIB);
}

/* One set of rates to print. */
typedef struct rate_line {
    const char *label, *what; /* what: "prompt" or "decode", as in the keys of the objects */
    int tokens, batch;
    double *rates;
    double fraction, ratio; /* of the limit, and of one session alone; 0: does not apply */
} rate_line;

static double median(const bench *b, double *rates)
{
    return tool_median(rates, (size_t)b->repeats);
}

static void print_json(const bench *b, const depth_result *at, const rate_line *line)
{
    double middle = median(b, line->rates);
    putchar('{');
    print_json_strings(b);
    print_json_machine(b);
    printf("\"file_bytes\":%llu,\"state_bytes\":%zu,\"kv_bytes\":%zu,\"scratch_bytes\":%zu,",
        (unsigned long long)b->run.model->size, at->memory.state, at->memory.kv, at->memory.scratch);
    printf("\"context\":%d,\"batch\":%d,\"repeats\":%d,\"tokens\":%d,", at->depth, line->batch, b->repeats,
        line->tokens);
    if (line->fraction > 0) printf("\"%s_fraction\":%.4f,", line->what, line->fraction);
    if (line->ratio > 0) printf("\"ratio_to_one\":%.3f,", line->ratio);
    printf("\"%s_tokens_per_s\":%.2f,\"min\":%.2f,\"max\":%.2f}\n", line->what, middle, line->rates[0],
        line->rates[b->repeats - 1]);
}

static void print_text(const bench *b, const rate_line *line, const char *limit)
{
    double middle = median(b, line->rates);
    printf("%-8s %d tokens  %10.2f tokens/s  (min %.2f, max %.2f)", line->label, line->tokens, middle, line->rates[0],
        line->rates[b->repeats - 1]);
    if (line->fraction > 0) printf("  %.1f %% of %s", line->fraction * 100, limit);
    if (line->ratio > 0) printf("  %d sessions, %.2f times one", line->batch, line->ratio);
    putchar('\n');
}

static void print_rates(const bench *b, const depth_result *at)
{
    static const char *const limits[] = { "the int8 operations", "what four streams read", "" };
    rate_line lines[] = { { "prompt", "prompt", b->prompt, 1, at->prompt, 0, 0 },
        { "decode", "decode", b->written, 1, at->decode, 0, 0 },
        { "batch", "decode", b->batch > 1 ? b->written : 0, b->batch, at->batch, 0, 0 } };
    if (b->prompt > 0) lines[0].fraction = prompt_fraction(b, median(b, at->prompt));
    if (b->written > 0) lines[1].fraction = decode_fraction(b, at, median(b, at->decode));
    if (b->batch > 1) lines[2].ratio = median(b, at->batch) / median(b, at->decode);
    for (size_t i = 0; i < sizeof lines / sizeof *lines; i++) {
        if (lines[i].tokens == 0) continue;
        if (b->json) print_json(b, at, &lines[i]);
        else print_text(b, &lines[i], limits[i]);
    }
}

static void print_machine(const bench *b)
{
    const machine_limits *l = &b->limits;
    printf("cpu      %s\nisa      %s\nfile     %s\ntype     %s\nthreads  %d\n", b->cpu, b->run.info.isa, b->run.path,
        b->run.info.type, b->threads);
    printf("load     %.1f ms\n", b->load_ms);
    printf("read     %.1f GB/s in one stream a thread, %.1f in four\n", l->read_1 * 1e-9, l->read_4 * 1e-9);
    if (l->int8 > 0) printf("int8     %.0f Gop/s, a product and its addition being two\n", l->int8 * 1e-9);
    else printf("int8     not measured for %s\n", b->run.info.isa);
    if (b->resident_known) printf("memory   %.1f MiB resident beyond file and sessions\n", resident_over(b) / MIB);
}

static void print_depth(const bench *b, const depth_result *at)
{
    if (!b->json)
        printf("context  %d tokens: file %.1f MiB, state %.1f, kv %.1f, scratch %.1f\n", at->depth,
            (double)b->run.model->size / MIB, (double)at->memory.state / MIB, (double)at->memory.kv / MIB,
            (double)at->memory.scratch / MIB);
    print_rates(b, at);
}

static void take_results(bench *b)
{
    size_t count = (size_t)b->repeats;
    b->rates = (double *)calloc(count * (size_t)b->depth_count, 3 * sizeof *b->rates);
    if (!b->rates) tool_die(TOOL, "out of memory for %d repeats", b->repeats);
    for (int i = 0; i < b->depth_count; i++) {
        b->depths[i].prompt = b->rates + (size_t)i * 3 * count;
        b->depths[i].decode = b->depths[i].prompt + count;
        b->depths[i].batch = b->depths[i].decode + count;
    }
}

int main(int argc, char **argv)
{
    bench b;
    (void)argc;
    memset(&b, 0, sizeof b);
    b.run.tool = TOOL;
    parse_arguments(&b, argv);
    load(&b);
    if (b.threads == 0) b.threads = run_default_threads(&b.run);
    create_sessions(&b);
    machine_cpu_name(b.cpu);
    take_results(&b);
    measure(&b);
    if (!b.json) print_machine(&b);
    for (int i = 0; i < b.depth_count; i++) print_depth(&b, &b.depths[i]);
    free(b.rates);
    free(b.tokens);
    for (int i = 1; i < b.batch; i++) jamba_session_free(b.sessions[i]);
    run_close(&b.run);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
