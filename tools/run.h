/* run.h - what the programs that run a model share: options, loading, failing with the file's name. */
#ifndef RUN_H
#define RUN_H

#include "tool.h"

#include "../examples/threads.h"

/* One model and one session; all zero but for `tool` and `path` at the start. */
typedef struct run_context {
    const char *tool, *path;
    jamba_model *model;
    jamba_session *session;
    threads_pool *pool;
    jamba_model_info info;
} run_context;

JMB_UNUSED static jamba_cpu run_argument_cpu(const char *tool, const char *usage, const char *text)
{
    static const char *const names[] = { "best", "scalar", "avx2", "avxvnni", "avx512", "neon", "wasm" };
    static const jamba_cpu values[] = { JAMBA_CPU_BEST, JAMBA_CPU_SCALAR, JAMBA_CPU_AVX2, JAMBA_CPU_AVXVNNI,
        JAMBA_CPU_AVX512, JAMBA_CPU_NEON, JAMBA_CPU_WASM };
    for (size_t i = 0; text && i < sizeof names / sizeof *names; i++)
        if (strcmp(text, names[i]) == 0) return values[i];
    tool_usage(
        tool, usage, "--cpu needs best, scalar, avx2, avxvnni, avx512, neon or wasm, not", text ? text : "nothing");
    return JAMBA_CPU_BEST;
}

/* Which of the names `text` is; usage failure for any other. */
JMB_UNUSED static int run_argument_name(const char *tool, const char *usage, const char *problem,
    const char *const *names, int count, const char *text)
{
    for (int i = 0; text && i < count; i++)
        if (strcmp(text, names[i]) == 0) return i;
    tool_usage(tool, usage, problem, text ? text : "nothing");
    return 0;
}

JMB_UNUSED static jamba_kv_type run_argument_kv(const char *tool, const char *usage, const char *text)
{
    static const char *const names[] = { "f16", "f32", "q8" }; /* as in jamba_kv_type */
    return (jamba_kv_type)run_argument_name(
        tool, usage, "cached keys and values can be f16, f32 or q8, not", names, 3, text);
}

JMB_UNUSED static int run_argument_threads(const char *tool, const char *usage, const char *name, const char *text)
{
    return (int)tool_argument_int(tool, usage, name, text, 1, THREADS_MAX);
}

JMB_UNUSED static void run_load(run_context *run, jamba_cpu cpu)
{
    jamba_model_params params;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.cpu = cpu;
    if (jamba_model_load(&run->model, jamba_from_file(run->path), &params, &error) != JAMBA_OK) {
        bool named = strstr(error.message, run->path) != NULL; /* as when it cannot be opened */
        tool_die(run->tool, "%s%s%s", named ? "" : run->path, named ? "" : ": ", error.message);
    }
    jamba_model_describe(run->model, &run->info);
}

/* Threads when the user names no number. More than eight seldom help, as memory is the limit; a small
 * model is faster without handing work over. */
JMB_UNUSED static int run_default_threads(const run_context *run)
{
    int available = threads_available();
    if (run->info.memory.mapped + run->info.memory.weights < (size_t)32 << 20) return 1;
    return available < 8 ? available : 8;
}

/* `threads` 0: run_default_threads(). */
JMB_UNUSED static void run_create(run_context *run, jamba_session_params *params, int threads)
{
    jamba_error error;
    if (threads == 0) threads = run_default_threads(run);
    if (!threads_attach(&run->pool, threads, params))
        tool_die(run->tool, "cannot start %d threads; ask for fewer", threads);
    if (jamba_session_create(&run->session, run->model, params, &error) != JAMBA_OK)
        tool_die(run->tool, "%s: %s", run->path, error.message);
}

JMB_UNUSED static void run_close(run_context *run)
{
    jamba_session_free(run->session);
    threads_stop(run->pool);
    jamba_model_free(run->model);
}

/* Ends the program when a call on the session has failed; `result` may also be a token. */
JMB_UNUSED static void run_check(const run_context *run, int32_t result)
{
    if (result < 0) tool_die(run->tool, "%s: %s", run->path, jamba_session_error(run->session)->message);
}

/* Ends the program on logits that are not finite numbers. */
JMB_UNUSED static void run_check_logits(const run_context *run, int32_t position, const float *logits)
{
    for (int32_t i = 0; i < run->info.vocab; i++)
        if (!(logits[i] - logits[i] == 0))
            tool_die(run->tool, "%s: logit %d after token %d of the input is not a finite number", run->path, (int)i,
                (int)position + 1);
}

#endif
