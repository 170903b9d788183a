/* frame_budget.c - does a model fit into the frames of a game?
 *
 * A game gives its characters a part of each frame, say 2 of 16 milliseconds. jamba_step() works for that long and
 * comes back, in the middle of a token if need be. How much later than asked it comes back is what a frame may be
 * late: this prints the distribution, for reading a prompt and for writing an answer. The frames follow each other
 * without the game between them.
 */
#include "tools/run.h"

#include "tools/machine.h"

static const char TOOL[] = "frame_budget";
static const char USAGE[] =
    "usage: frame_budget MODEL.jamba [options]\n"
    "  --budget US    microseconds of each frame (2000)\n"
    "  --frames N     of reading, and of writing (1000)\n"
    "  -t THREADS     (1)\n"
    "  -p TOKENS      of a prompt (256)\n";

typedef struct options {
    uint64_t budget;
    int frames, threads, prompt;
} options;

/* One kind of frames. */
typedef struct record {
    const char *name;
    double *late; /* (count) microseconds after the end of the budget, 0 where the work was done before */
    int count, tokens;
    double seconds;
} record;

/* ---- the game ------------------------------------------------------------------------------------- */

/* One frame, and how late it was. */
static void play_frame(run_context *run, const options *o, record *r)
{
    double start = tool_seconds(), late;
    int32_t result = jamba_step(run->session, o->budget);
    double spent = tool_seconds() - start;
    run_check(run, result);
    late = spent * 1e6 - (double)o->budget;
    r->seconds += spent;
    r->late[r->count++] = late > 0 ? late : 0;
}

static int tokens_done(const run_context *run)
{
    jamba_session_info info;
    jamba_session_describe(run->session, &info);
    return info.position;
}

static void feed_prompt(run_context *run, const options *o)
{
    jamba_session_reset(run->session);
    for (int32_t i = 0; i < o->prompt; i++) {
        int32_t token = (int32_t)((int64_t)i * 7919 % run->info.vocab);
        run_check(run, jamba_feed(run->session, &token, 1));
    }
}

/* Prompts, one after the other. */
static void read_frames(run_context *run, const options *o, record *r)
{
    feed_prompt(run, o);
    while (r->count < o->frames) {
        int before = tokens_done(run);
        play_frame(run, o, r);
        r->tokens += tokens_done(run) - before;
        if (jamba_logits(run->session)) feed_prompt(run, o);
    }
}

/* An answer, and another one when the context is full. Each frame that has a token ready begins the next. */
static void write_frames(run_context *run, const options *o, record *r)
{
    feed_prompt(run, o);
    run_check(run, jamba_step(run->session, 0));
    while (r->count < o->frames) {
        int32_t token = jamba_sample(run->session, NULL);
        run_check(run, token);
        if (jamba_feed(run->session, &token, 1) == JAMBA_ERR_CONTEXT) {
            feed_prompt(run, o);
            run_check(run, jamba_step(run->session, 0));
            continue;
        }
        while (!jamba_logits(run->session) && r->count < o->frames) play_frame(run, o, r);
        r->tokens += jamba_logits(run->session) != NULL;
    }
}

/* ---- what came of it ------------------------------------------------------------------------------ */

static double percentile(const record *r, double share)
{
    return tool_percentile(r->late, (size_t)r->count, share);
}

static void print_summary(record *r)
{
    tool_sort(r->late, (size_t)r->count);
    printf("%s  %8.1f tokens/s  %7.2f frames/token   late by p50 %.1f, p99 %.1f, max %.1f us\n", r->name,
        r->tokens / r->seconds, (double)r->count / (r->tokens ? r->tokens : 1), percentile(r, 0.5),
        percentile(r, 0.99), percentile(r, 1));
}

static int count_below(const record *r, double limit)
{
    int n = 0;
    while (n < r->count && r->late[n] < limit) n++;
    return n;
}

static void print_histogram(const record *reading, const record *writing)
{
    static const double edges[] = { 10, 20, 50, 100, 200, 300, 500, 1000, 1e30 };
    double from = 0;
    printf("%12s  %8s  %8s   frames\n", "late by", reading->name, writing->name);
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        char to[20];
        if (edges[i] < 1e9) snprintf(to, sizeof to, "%.0f us", edges[i]);
        else snprintf(to, sizeof to, "more");
        printf("%4.0f to %-7s %7d  %8d\n", from, to, count_below(reading, edges[i]) - count_below(reading, from),
            count_below(writing, edges[i]) - count_below(writing, from));
        from = edges[i];
    }
}

/* ---- program -------------------------------------------------------------------------------------- */

static int argument(const char *name, const char *text, int64_t high)
{
    return (int)tool_argument_int(TOOL, USAGE, name, text, 1, high);
}

static void parse_arguments(run_context *run, options *o, char **argv)
{
    for (char **at = argv + 1; *at; at++) {
        if ((*at)[0] != '-') {
            if (run->path) tool_usage(TOOL, USAGE, "too many arguments:", *at);
            run->path = *at;
            continue;
        }
        if (strcmp(*at, "--budget") == 0) o->budget = (uint64_t)argument(*at, at[1], 1000000000);
        else if (strcmp(*at, "--frames") == 0) o->frames = argument(*at, at[1], 100000000);
        else if (strcmp(*at, "-t") == 0) o->threads = argument(*at, at[1], THREADS_MAX);
        else if (strcmp(*at, "-p") == 0) o->prompt = argument(*at, at[1], 1000000);
        else tool_usage(TOOL, USAGE, "unknown option", *at);
        at++;
    }
    if (!run->path) tool_usage(TOOL, USAGE, "no model given", NULL);
}

/* `verify` reads every byte: a page that is not in memory yet would make a frame late. */
static void load(run_context *run)
{
    jamba_model_params params;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.verify = true;
    if (jamba_model_load(&run->model, jamba_from_file(run->path), &params, &error) != JAMBA_OK)
        tool_die(TOOL, "%s: %s", run->path, error.message);
    jamba_model_describe(run->model, &run->info);
}

static void introduce(const run_context *run, const options *o)
{
    char cpu[128];
    machine_cpu_name(cpu);
    printf("cpu %s, %s, %d thread%s\n", cpu, run->info.isa, o->threads, o->threads == 1 ? "" : "s");
    printf("model %s, %.2f billion weights, %s\n", run->path, (double)run->info.parameters / 1e9, run->info.type);
    printf("%d frames of %.3f ms each\n", o->frames, (double)o->budget / 1e3);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    options o = { 2000, 1000, 1, 256 };
    record reading = { "reading", NULL, 0, 0, 0 }, writing = { "writing", NULL, 0, 0, 0 };
    run_context run;
    jamba_session_params params;
    (void)argc;
    memset(&run, 0, sizeof run);
    memset(&params, 0, sizeof params);
    run.tool = TOOL;
    parse_arguments(&run, &o, argv);
    load(&run);
    params.context = o.prompt + 256;
    run_create(&run, &params, o.threads);
    reading.late = (double *)calloc((size_t)o.frames, sizeof(double));
    writing.late = (double *)calloc((size_t)o.frames, sizeof(double));
    if (!reading.late || !writing.late) tool_die(TOOL, "no memory for %d frames: ask for fewer", o.frames);
    introduce(&run, &o);
    read_frames(&run, &o, &reading);
    write_frames(&run, &o, &writing);
    print_summary(&reading);
    print_summary(&writing);
    print_histogram(&reading, &writing);
    free(reading.late);
    free(writing.late);
    run_close(&run);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
