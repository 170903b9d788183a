/* bench.c - how fast a model reads a prompt and writes */
#include "run.h"

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define BENCH_CPUID 1
#include <cpuid.h>
#else
#define BENCH_CPUID 0
#endif

static const char TOOL[] = "bench";
static const char USAGE[] =
    "usage: bench MODEL.jamba [options]\n"
    "Reads a prompt of pseudo-random tokens, then writes one token after the other; prints tokens per second.\n"
    "  -t THREADS    (one per processor, at most 8; 1 for a model under 32 MB)\n"
    "  -p TOKENS     in the prompt, 0 for none (128)\n"
    "  -n TOKENS     to write after it, 0 for none (32)\n"
    "  -r REPEATS    (5)\n"
    "  --batch N     not there yet\n"
    "  --context N   context of the session (what the above takes)\n"
    "  --json        one object per line\n";

typedef struct bench {
    run_context run;
    jamba_session_params params;
    int32_t *tokens; /* prompt, then what is written */
    int prompt, written, repeats, threads;
    bool json;
    char cpu[128];
} bench;

static int parse_count(const char *name, const char *text, int low)
{
    return (int)tool_argument_int(TOOL, USAGE, name, text, low, 1 << 24);
}

static bool parse_option(bench *b, const char *name, const char *value)
{
    if (strcmp(name, "-t") == 0) b->threads = run_argument_threads(TOOL, USAGE, name, value);
    else if (strcmp(name, "-p") == 0) b->prompt = parse_count(name, value, 0);
    else if (strcmp(name, "-n") == 0) b->written = parse_count(name, value, 0);
    else if (strcmp(name, "-r") == 0) b->repeats = parse_count(name, value, 1);
    else if (strcmp(name, "--context") == 0) b->params.context = parse_count(name, value, 1);
    else return false;
    return true;
}

static void parse_arguments(bench *b, char **argv)
{
    b->prompt = 128;
    b->written = 32;
    b->repeats = 5;
    for (char **arg = argv + 1; *arg; arg++) {
        if (strcmp(*arg, "--json") == 0) b->json = true;
        else if (strcmp(*arg, "--batch") == 0) tool_usage(TOOL, USAGE, "not there yet: --batch", NULL);
        else if ((*arg)[0] == '-') {
            if (!parse_option(b, *arg, arg[1])) tool_usage(TOOL, USAGE, "unknown option", *arg);
            arg++;
        } else if (b->run.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
        else b->run.path = *arg;
    }
    if (!b->run.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (b->prompt + b->written == 0) tool_usage(TOOL, USAGE, "-p 0 and -n 0 leave nothing to do", NULL);
    if (b->params.context == 0) b->params.context = b->prompt + b->written;
    if (b->params.context < b->prompt + b->written)
        tool_usage(TOOL, USAGE, "--context is less than -p and -n together", NULL);
}

/* ---- the CPU's name ------------------------------------------------------------------------ */

#if BENCH_CPUID
static void read_cpu_name(char name[128])
{
    unsigned registers[12], highest = __get_cpuid_max(0x80000000u, NULL);
    if (highest < 0x80000004u) return;
    for (unsigned i = 0; i < 3; i++) {
        unsigned *r = registers + 4 * i;
        __get_cpuid(0x80000002u + i, &r[0], &r[1], &r[2], &r[3]);
    }
    memcpy(name, registers, sizeof registers);
    name[sizeof registers] = 0;
}
#else
/* Linux: the first line of /proc/cpuinfo that names a processor or board. */
static void read_cpu_name(char name[128])
{
    static const char *const keys[] = { "model name", "Model", "cpu model", "Hardware", "uarch", "cpu" };
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file && !name[0] && fgets(line, sizeof line, file)) {
        const char *colon = strchr(line, ':');
        for (size_t i = 0; colon && i < sizeof keys / sizeof *keys; i++) {
            size_t length = strlen(keys[i]);
            if (strncmp(line, keys[i], length) == 0 && line + length + strspn(line + length, " \t") == colon)
                snprintf(name, 128, "%s", colon + 1);
        }
    }
    if (file) fclose(file);
}
#endif

/* Printable ASCII, single blanks. */
static void find_cpu_name(char name[128])
{
    char *to = name;
    read_cpu_name(name);
    for (const char *from = name; *from; from++) {
        bool blank = *from <= ' ' || *from > '~';
        if (!blank) *to++ = *from;
        else if (to > name && to[-1] != ' ') *to++ = ' ';
    }
    if (to > name && to[-1] == ' ') to--;
    *to = 0;
    if (!*name) strcpy(name, "unknown");
}

/* ---- measuring ----------------------------------------------------------------------------- */

/* The same tokens for every run; varied, so that a mixture uses all of its experts. */
static void fill_tokens(bench *b)
{
    size_t count = (size_t)(b->prompt + b->written);
    uint64_t state = 1;
    b->tokens = (int32_t *)malloc(count * sizeof *b->tokens);
    if (!b->tokens) tool_die(TOOL, "out of memory for %zu tokens", count);
    for (size_t i = 0; i < count; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        b->tokens[i] = (int32_t)((state >> 33) % (uint64_t)b->run.info.vocab);
    }
}

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
        run_check(&b->run, jamba_eval(b->run.session, b->tokens + b->prompt + i, 1));
        run_check(&b->run, jamba_sample(b->run.session, NULL));
    }
    return tool_seconds() - start;
}

/* Brings the file into memory and wakes the threads. */
static void warm_up(const bench *b)
{
    if (b->prompt > 0) read_prompt(b, b->prompt < 64 ? b->prompt : 64);
    write_tokens(b, b->written < 2 ? b->written : 2);
}

static int compare_rates(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* ---- results ------------------------------------------------------------------------------- */

static void print_json_string(const char *text)
{
    putchar('"');
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\') printf("\\%c", *p);
        else if (*p < 0x20 || *p == 0x7f) printf("\\u%04x", *p);
        else putchar(*p);
    }
    putchar('"');
}

static void print_json(const bench *b, const char *what, int tokens, const double *sorted)
{
    const char *const strings[] = { "cpu", b->cpu, "isa", b->run.info.isa, "file", b->run.path, "type",
        b->run.info.type, "version", jamba_build_info() };
    putchar('{');
    for (size_t i = 0; i < sizeof strings / sizeof *strings; i += 2) {
        print_json_string(strings[i]);
        putchar(':');
        print_json_string(strings[i + 1]);
        putchar(',');
    }
    printf("\"threads\":%d,\"context\":%d,\"repeats\":%d,\"tokens\":%d,", b->threads, (int)b->params.context,
        b->repeats, tokens);
    printf("\"%s_tokens_per_s\":%.2f,\"min\":%.2f,\"max\":%.2f}\n", what, sorted[b->repeats / 2], sorted[0],
        sorted[b->repeats - 1]);
}

static void print_result(const bench *b, const char *what, int tokens, double *rates)
{
    if (tokens == 0) return;
    qsort(rates, (size_t)b->repeats, sizeof *rates, compare_rates);
    if (b->json) print_json(b, what, tokens, rates);
    else
        printf("%-7s %d tokens  %10.2f tokens/s  (min %.2f, max %.2f)\n", what, tokens, rates[b->repeats / 2],
            rates[0], rates[b->repeats - 1]);
}

static void measure(const bench *b, double *prompt_rates, double *decode_rates)
{
    tool_progress progress = { 0, false };
    warm_up(b);
    for (int i = 0; i < b->repeats; i++) {
        tool_progress_show(&progress, "measuring", (uint64_t)i, (uint64_t)b->repeats);
        jamba_session_reset(b->run.session);
        if (b->prompt > 0) prompt_rates[i] = b->prompt / read_prompt(b, b->prompt);
        if (b->written > 0) decode_rates[i] = b->written / write_tokens(b, b->written);
    }
    tool_progress_end(&progress);
}

int main(int argc, char **argv)
{
    bench b;
    double *rates;
    (void)argc;
    memset(&b, 0, sizeof b);
    b.run.tool = TOOL;
    parse_arguments(&b, argv);
    run_load(&b.run, JAMBA_CPU_BEST);
    if (b.threads == 0) b.threads = run_default_threads(&b.run);
    run_create(&b.run, &b.params, b.threads);
    find_cpu_name(b.cpu);
    fill_tokens(&b);
    rates = (double *)calloc((size_t)b.repeats, 2 * sizeof *rates);
    if (!rates) tool_die(TOOL, "out of memory for %d repeats", b.repeats);
    if (!b.json)
        printf("cpu     %s\nisa     %s\nfile    %s\ntype    %s\nthreads %d\n", b.cpu, b.run.info.isa, b.run.path,
            b.run.info.type, b.threads);
    measure(&b, rates, rates + b.repeats);
    print_result(&b, "prompt", b.prompt, rates);
    print_result(&b, "decode", b.written, rates + b.repeats);
    free(rates);
    free(b.tokens);
    run_close(&b.run);
    return 0;
}
