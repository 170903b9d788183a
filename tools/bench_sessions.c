/* bench_sessions.c - what it costs to keep, copy, save and go back to a conversation, beside reading it again */
#include "output.h"
#include "run.h"

#include "machine.h"

static const char TOOL[] = "bench_sessions";
static const char USAGE[] =
    "usage: bench_sessions MODEL.jamba [options]\n"
    "Reads a prompt of pseudo-random tokens; then times going back to a mark, forks, saving, restoring and starting\n"
    "from a file, in turns, beside the time of reading the prompt. Medians.\n"
    "  -t THREADS    (one per processor, at most 8; 1 for a model under 32 MB)\n"
    "  -p TOKENS     in the prompt (512)\n"
    "  -r REPEATS    (5)\n"
    "  --kv TYPE     of the attention cache: f32, f16 or q8 (f16)\n"
    "  --json        one object\n";

enum { REPEATS_MAX = 100, FORK_TOKENS = 256 };

/* What is timed. */
typedef enum act {
    ACT_READ, ACT_MARK, ACT_REWIND, ACT_FORK, ACT_SAVE, ACT_RESTORE, ACT_LOAD, ACT_SAVE_Q8, ACT_RESTORE_Q8, ACT_COUNT
} act;

static const struct {
    const char *key, *label;
} acts[ACT_COUNT] = { { "read", "read the prompt" }, { "mark", "mark" }, { "rewind", "rewind to a mark" },
    { "fork", "fork" }, { "save", "save" }, { "restore", "restore" }, { "load", "start from a file" },
    { "save_q8", "save, q8" }, { "restore_q8", "restore, q8" } };

/* Forms of a saved state: of the recurrent state, and of keys and values. */
enum { FORMS = 3 };
static const char *const form_names[FORMS] = { "exact", "f16", "q8" };

typedef struct bench {
    run_context run;
    jamba_session_params params;
    int32_t *tokens;
    int prompt, repeats, threads;
    bool json;
    char cpu[128], path[64];
    output file; /* to start from: never finished, and so removed on the way out */
    jamba_session *forked;
    uint8_t *blob[FORMS];
    size_t bytes[FORMS];
    jamba_memory fork;
    double seconds[ACT_COUNT][REPEATS_MAX];
} bench;

static void parse_option(bench *b, const char *name, const char *value)
{
    if (strcmp(name, "-t") == 0) b->threads = run_argument_threads(TOOL, USAGE, name, value);
    else if (strcmp(name, "-p") == 0) b->prompt = (int)tool_argument_int(TOOL, USAGE, name, value, 1, 1 << 20);
    else if (strcmp(name, "-r") == 0) b->repeats = (int)tool_argument_int(TOOL, USAGE, name, value, 1, REPEATS_MAX);
    else if (strcmp(name, "--kv") == 0) b->params.kv_type = run_argument_kv(TOOL, USAGE, value);
    else tool_usage(TOOL, USAGE, "unknown option", name);
}

static void parse_arguments(bench *b, char **argv)
{
    b->prompt = 512;
    b->repeats = 5;
    for (char **arg = argv + 1; *arg; arg++) {
        if (strcmp(*arg, "--json") == 0) b->json = true;
        else if ((*arg)[0] == '-') {
            parse_option(b, *arg, arg[1]);
            arg++;
        } else if (b->run.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
        else b->run.path = *arg;
    }
    if (!b->run.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
}

static void fill_tokens(bench *b)
{
    uint64_t state = 1;
    b->tokens = (int32_t *)malloc((size_t)b->prompt * sizeof *b->tokens);
    if (!b->tokens) tool_die(TOOL, "out of memory for %d tokens", b->prompt);
    for (int i = 0; i < b->prompt; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (int32_t)((state >> 33) % (uint64_t)b->run.info.vocab);
    }
}

/* ---- what is timed ------------------------------------------------------------------------- */

static jamba_save_params form_params(int form)
{
    jamba_save_params params;
    memset(&params, 0, sizeof params);
    params.state = params.kv = (jamba_form)form;
    return params;
}

static void save(bench *b, int form)
{
    jamba_save_params params = form_params(form);
    if (jamba_session_save_as(b->run.session, &params, b->blob[form], b->bytes[form]) != b->bytes[form])
        tool_die(TOOL, "%s: its state cannot be saved as %s", b->run.path, form_names[form]);
}

/* Room for each form, written to once: the first touch of fresh memory is not what is measured. */
static void make_blobs(bench *b)
{
    for (int form = 0; form < FORMS; form++) {
        jamba_save_params params = form_params(form);
        b->bytes[form] = jamba_session_save_as(b->run.session, &params, NULL, 0);
        b->blob[form] = (uint8_t *)malloc(b->bytes[form] + 1);
        if (!b->blob[form]) tool_die(TOOL, "out of memory for a state of %zu bytes", b->bytes[form]);
        save(b, form);
    }
}

/* When the program fails; a signal removes it too. */
static void remove_file(void)
{
    if (output_to_remove) unlink(output_to_remove);
}

static void write_file(bench *b)
{
    tool_error error;
    snprintf(b->path, sizeof b->path, "/tmp/bench_sessions.%ld", (long)getpid());
    atexit(remove_file);
    if (!output_begin(&b->file, b->path, &error) || !output_create(&b->file, b->bytes[0], &error)
        || !output_write_at(&b->file, 0, b->blob[0], b->bytes[0], &error))
        tool_die(TOOL, "%s", error.message);
}

static void read_prompt(const bench *b)
{
    jamba_session_reset(b->run.session);
    run_check(&b->run, jamba_eval(b->run.session, b->tokens, (size_t)b->prompt));
}

static void make_fork(bench *b)
{
    jamba_error error;
    if (jamba_session_fork(&b->forked, b->run.session, FORK_TOKENS, &error) != JAMBA_OK)
        tool_die(TOOL, "%s: %s", b->run.path, error.message);
}

static void perform(bench *b, act what)
{
    jamba_session *s = b->run.session;
    switch (what) {
    case ACT_READ: read_prompt(b); break;
    case ACT_MARK: run_check(&b->run, jamba_session_mark(s)); break;
    case ACT_REWIND: run_check(&b->run, jamba_session_rewind(s, b->prompt, NULL)); break;
    case ACT_FORK: make_fork(b); break;
    case ACT_SAVE: save(b, 0); break;
    case ACT_RESTORE: run_check(&b->run, jamba_session_restore(s, b->blob[0], b->bytes[0])); break;
    case ACT_LOAD: run_check(&b->run, jamba_session_load(s, jamba_from_file(b->file.temporary))); break;
    case ACT_SAVE_Q8: save(b, 2); break;
    default: run_check(&b->run, jamba_session_restore(s, b->blob[2], b->bytes[2])); break;
    }
}

/* A token more, so that there is somewhere to go back from. */
static void measure(bench *b)
{
    read_prompt(b);
    make_blobs(b);
    write_file(b);
    for (int i = 0; i < b->repeats; i++)
        for (int what = 0; what < ACT_COUNT; what++) {
            double start;
            if (what == ACT_REWIND) run_check(&b->run, jamba_eval(b->run.session, b->tokens, 1));
            start = tool_seconds();
            perform(b, (act)what);
            b->seconds[what][i] = tool_seconds() - start;
            jamba_session_free(b->forked);
            b->forked = NULL;
        }
    output_free(&b->file);
}

/* ---- results ------------------------------------------------------------------------------- */

static double median_ms(bench *b, int what)
{
    return tool_median(b->seconds[what], (size_t)b->repeats) * 1e3;
}

static void print_text(bench *b)
{
    double read = median_ms(b, ACT_READ);
    printf("cpu      %s\nfile     %s\nprompt   %d tokens, %d thread%s\n", b->cpu, b->run.path, b->prompt, b->threads,
        b->threads == 1 ? "" : "s");
    for (int form = 0; form < FORMS; form++)
        printf("saved    %12zu bytes, state and keys and values %s\n", b->bytes[form], form_names[form]);
    printf("fork     %12zu bytes with room for %d tokens: state %zu, keys and values %zu, scratch %zu\n",
        b->fork.state + b->fork.kv + b->fork.scratch + b->fork.marks, FORK_TOKENS, b->fork.state, b->fork.kv,
        b->fork.scratch);
    for (int what = 0; what < ACT_COUNT; what++) {
        double ms = median_ms(b, what);
        printf("%-18s %10.3f ms", acts[what].label, ms);
        if (what != ACT_READ) printf("   reading takes %.0f times as long", read / ms);
        putchar('\n');
    }
}

static void print_json(bench *b)
{
    printf("{\"file\":");
    tool_print_json_string(b->run.path);
    printf(",\"prompt\":%d,\"threads\":%d", b->prompt, b->threads);
    for (int form = 0; form < FORMS; form++) printf(",\"bytes_%s\":%zu", form_names[form], b->bytes[form]);
    printf(",\"fork_bytes\":%zu,\"state_bytes\":%zu", b->fork.state + b->fork.kv + b->fork.scratch + b->fork.marks,
        b->fork.state);
    for (int what = 0; what < ACT_COUNT; what++) printf(",\"%s_ms\":%.4f", acts[what].key, median_ms(b, what));
    printf("}\n");
}

int main(int argc, char **argv)
{
    static bench b;
    (void)argc;
    b.run.tool = TOOL;
    parse_arguments(&b, argv);
    run_load(&b.run, JAMBA_CPU_BEST);
    if (b.threads == 0) b.threads = run_default_threads(&b.run);
    fill_tokens(&b);
    b.params.context = b.prompt + 1;
    b.params.marks = 1;
    run_create(&b.run, &b.params, b.threads);
    machine_cpu_name(b.cpu);
    measure(&b);
    jamba_session_fork_estimate(b.run.session, FORK_TOKENS, &b.fork);
    if (b.json) print_json(&b);
    else print_text(&b);
    for (int form = 0; form < FORMS; form++) free(b.blob[form]);
    free(b.tokens);
    run_close(&b.run);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
