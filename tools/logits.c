/* logits.c - the logits after each of the tokens on standard input, for comparison with a reference */
#include "ids.h"
#include "run.h"

static const char TOOL[] = "logits";
static const char USAGE[] =
    "usage: logits MODEL.jamba [options] < IDS > LOGITS\n"
    "Reads blank separated token ids; writes little-endian float32, one row of the vocabulary per token.\n"
    "  --threads N   (1)\n"
    "  --cpu NAME    highest instruction set: best, scalar, avx2, avxvnni, avx512, neon or wasm (best)\n"
    "  --chunk N     tokens per prefill pass (the library's)\n"
    "  --step        feed one token at a time\n"
    "  --kv TYPE     of cached keys and values: f32, f16 or q8 (f32)\n"
    "  --budget US   work in slices of that many microseconds\n"
    "None of them but --kv changes a bit of the result.\n";

typedef struct options {
    jamba_cpu cpu;
    int threads;
    bool step;
    uint64_t budget; /* 0: none */
} options;

static void parse_arguments(run_context *run, options *o, jamba_session_params *params, char **argv)
{
    o->threads = 1;
    params->kv_type = JAMBA_KV_F32;
    for (char **arg = argv + 1; *arg; arg++) {
        const char *name = *arg;
        if (strcmp(name, "--step") == 0) {
            o->step = true;
            continue;
        }
        if (name[0] != '-') {
            if (run->path) tool_usage(TOOL, USAGE, "one model is enough, there is also", name);
            run->path = name;
            continue;
        }
        if (strcmp(name, "--threads") == 0) o->threads = run_argument_threads(TOOL, USAGE, name, arg[1]);
        else if (strcmp(name, "--cpu") == 0) o->cpu = run_argument_cpu(TOOL, USAGE, arg[1]);
        else if (strcmp(name, "--kv") == 0) params->kv_type = run_argument_kv(TOOL, USAGE, arg[1]);
        else if (strcmp(name, "--chunk") == 0)
            params->chunk = (int32_t)tool_argument_int(TOOL, USAGE, name, arg[1], 1, INT32_MAX);
        else if (strcmp(name, "--budget") == 0)
            o->budget = (uint64_t)tool_argument_int(TOOL, USAGE, name, arg[1], 1, INT32_MAX);
        else tool_usage(TOOL, USAGE, "unknown option", name);
        arg++;
    }
    if (!run->path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
}

static void write_row(void *user, int32_t position, const float *logits)
{
    const run_context *run = (const run_context *)user;
    uint8_t bytes[4096];
    size_t used = 0;
    run_check_logits(run, position, logits);
    for (int32_t i = 0; i < run->info.vocab; i++) {
        tool_store_le(bytes + used, jmb_bits_of(logits[i]), 4);
        used += 4;
        if (used < sizeof bytes && i + 1 < run->info.vocab) continue;
        if (fwrite(bytes, 1, used, stdout) != used)
            tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
        used = 0;
    }
}

static void evaluate(const run_context *run, const options *o, const int32_t *tokens, size_t count)
{
    jamba_result result;
    run_check(run, jamba_feed(run->session, tokens, count));
    do {
        result = jamba_step(run->session, o->budget);
        run_check(run, result);
    } while (result == JAMBA_PENDING);
}

int main(int argc, char **argv)
{
    run_context run;
    options o;
    jamba_session_params params;
    tool_buffer ids = { NULL, 0, 0, false };
    tool_error error;
    const int32_t *tokens;
    uint8_t *text;
    size_t size, count;
    (void)argc;
    memset(&run, 0, sizeof run);
    memset(&o, 0, sizeof o);
    memset(&params, 0, sizeof params);
    run.tool = TOOL;
    parse_arguments(&run, &o, &params, argv);
    run_load(&run, o.cpu);
    if (!tool_read_stream(stdin, "standard input", SIZE_MAX / 2, &text, &size, &error) ||
        !ids_parse((char *)text, size, run.info.vocab, &ids, &error))
        tool_die(TOOL, "%s", error.message);
    free(text);
    tokens = (const int32_t *)(const void *)ids.data;
    count = ids.size / sizeof *tokens;
    if (count > INT32_MAX) tool_die(TOOL, "standard input: %zu ids are too many for one context", count);
    if (count > 0) {
        params.context = (int32_t)count;
        params.on_logits = write_row;
        params.logits_user = &run;
        run_create(&run, &params, o.threads);
        for (size_t i = 0; o.step && i < count; i++) evaluate(&run, &o, tokens + i, 1);
        if (!o.step) evaluate(&run, &o, tokens, count);
    }
    tool_buffer_free(&ids);
    run_close(&run);
    if (fflush(stdout) != 0) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
