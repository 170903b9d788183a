/* bake.c - reads a prompt once and saves the session behind it, as an asset that sessions start from */
#include "output.h"
#include "run.h"

static const char TOOL[] = "bake";
static const char USAGE[] =
    "usage: bake MODEL.jamba PROMPT.txt OUT.state [options]\n"
    "Evaluates the text of PROMPT.txt, but for a newline at its end, and saves the session for jamba_session_load().\n"
    "  --system        the text is the system message of a conversation (else it begins with the model's first token)\n"
    "  --state FORM    of convolution and SSM state: exact, f16 or q8 (exact)\n"
    "  --kv FORM       of keys and values: exact, which is as evaluated, f16 or q8 (exact)\n"
    "  --kv-type TYPE  of keys and values while evaluating: f16, f32 or q8 (f16)\n"
    "  -t THREADS      (one per processor, at most 8; 1 for a model under 32 MB)\n"
    "  --force         replace OUT.state when it exists\n";

static const char *const FORMS[] = { "exact", "f16", "q8" }; /* as in jamba_form */

typedef struct bake {
    run_context run;
    const char *prompt, *out;
    jamba_session_params params;
    jamba_save_params save;
    int threads;
    bool system, force;
    tool_progress progress;
} bake;

static jamba_form parse_form(const char *text)
{
    return (jamba_form)run_argument_name(TOOL, USAGE, "a form is exact, f16 or q8, not", FORMS, 3, text);
}

/* Returns whether the option takes a value. */
static bool parse_option(bake *b, const char *name, const char *value)
{
    if (strcmp(name, "--system") == 0) b->system = true;
    else if (strcmp(name, "--force") == 0) b->force = true;
    else {
        if (strcmp(name, "--state") == 0) b->save.state = parse_form(value);
        else if (strcmp(name, "--kv") == 0) b->save.kv = parse_form(value);
        else if (strcmp(name, "--kv-type") == 0) b->params.kv_type = run_argument_kv(TOOL, USAGE, value);
        else if (strcmp(name, "-t") == 0) b->threads = run_argument_threads(TOOL, USAGE, name, value);
        else tool_usage(TOOL, USAGE, "unknown option", name);
        return true;
    }
    return false;
}

static void parse_arguments(bake *b, char **argv)
{
    const char **const files[] = { &b->run.path, &b->prompt, &b->out };
    size_t count = 0;
    for (char **arg = argv + 1; *arg; arg++) {
        if ((*arg)[0] == '-') arg += parse_option(b, *arg, arg[1]);
        else if (count == 3) tool_usage(TOOL, USAGE, "too many arguments:", *arg);
        else *files[count++] = *arg;
    }
    if (count < 3) tool_usage(TOOL, USAGE, "needs a model, a text and the name of what to make", NULL);
}

/* The prompt, terminated; free it. */
static char *read_prompt(const bake *b, size_t *size)
{
    tool_error error;
    uint8_t *text;
    if (!tool_read_file(b->prompt, SIZE_MAX / 2, &text, size, &error)) tool_die(TOOL, "%s", error.message);
    if (*size > 0 && text[*size - 1] == '\n') text[--*size] = 0;
    if (*size > 0 && text[*size - 1] == '\r') text[--*size] = 0;
    if (*size > 0 && !memchr(text, 0, *size)) return (char *)text;
    free(text);
    tool_die(TOOL, "%s: %s", b->prompt, *size == 0 ? "holds no text" : "holds a zero byte, it is no text");
    return NULL;
}

static jamba_result encode(
    const bake *b, const char *text, size_t size, int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    const jamba_message message = { "system", text };
    if (b->system)
        return jamba_chat_encode(b->run.model, &message, 1, JAMBA_CHAT_BEGIN, tokens, capacity, count, error);
    return jamba_encode(b->run.model, text, size, JAMBA_TEXT_BOS, tokens, capacity, count, error);
}

/* Tokens of the prompt; free them. */
static int32_t *encode_prompt(const bake *b, size_t *count)
{
    jamba_error error;
    int32_t *tokens = NULL;
    size_t size;
    char *text = read_prompt(b, &size);
    jamba_result result = encode(b, text, size, NULL, 0, count, &error);
    if (result == JAMBA_OK) {
        tokens = (int32_t *)malloc(*count * sizeof *tokens);
        if (!tokens) tool_die(TOOL, "%s: no memory for %zu tokens", b->prompt, *count);
        result = encode(b, text, size, tokens, *count, count, &error);
    }
    free(text);
    if (result == JAMBA_ERR_TEXT) /* of the text, or the model has no tokenizer */
        tool_die(TOOL, "%s with %s: %s", b->prompt, b->run.path, error.message);
    if (result == JAMBA_ERR_UNSUPPORTED)
        tool_die(TOOL, "%s: %s; leave out --system", b->run.path, error.message);
    if (result != JAMBA_OK) tool_die(TOOL, "%s: %s", b->run.path, error.message);
    if (*count > INT32_MAX) tool_die(TOOL, "%s: %zu tokens are too many", b->prompt, *count);
    return tokens;
}

static bool show_progress(void *user, const char *stage, uint64_t done, uint64_t total)
{
    bake *b = (bake *)user;
    (void)stage;
    tool_progress_show(&b->progress, "reading", done, total);
    return true;
}

static void evaluate(bake *b)
{
    size_t count;
    int32_t *tokens = encode_prompt(b, &count);
    b->params.context = (int32_t)count;
    b->params.progress = show_progress;
    b->params.progress_user = b;
    run_create(&b->run, &b->params, b->threads);
    run_check(&b->run, jamba_eval(b->run.session, tokens, count));
    tool_progress_end(&b->progress);
    run_check_logits(&b->run, (int32_t)count - 1, jamba_logits(b->run.session));
    free(tokens);
}

/* Whether OUT may be written, which is looked at before all the work. */
static void check_out(const bake *b)
{
    struct stat out;
    tool_error error;
    if (stat(b->out, &out) == 0 && (output_is_file(b->run.path, &out) || output_is_file(b->prompt, &out)))
        tool_die(TOOL, "%s: is part of the input: choose another name", b->out);
    if (!output_check_forced(b->out, b->force, &error)) tool_die(TOOL, "%s", error.message);
}

static void write_state(const bake *b)
{
    size_t size = jamba_session_save_as(b->run.session, &b->save, NULL, 0);
    uint8_t *data = (uint8_t *)malloc(size);
    jamba_state_info info;
    tool_error error;
    bool written;
    if (!data) tool_die(TOOL, "no memory for a state of %zu bytes", size);
    if (jamba_session_save_as(b->run.session, &b->save, data, size) != size)
        tool_die(TOOL, "%s: f16 does not hold a number of the state: use exact or q8", b->out);
    written = output_file(b->out, data, size, b->force, &error);
    jamba_state_describe(data, size, &info, NULL);
    free(data);
    if (!written) tool_die(TOOL, "%s", error.message);
    fprintf(stderr, "%s: %s: %d tokens, %zu bytes\n", TOOL, b->out, (int)info.position, size);
}

int main(int argc, char **argv)
{
    bake b;
    (void)argc;
    memset(&b, 0, sizeof b);
    b.run.tool = TOOL;
    parse_arguments(&b, argv);
    check_out(&b);
    run_load(&b.run, JAMBA_CPU_BEST);
    evaluate(&b);
    write_state(&b);
    run_close(&b.run);
    return 0;
}
