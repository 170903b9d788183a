/* chat.c - talk with a model in a terminal
 *
 * Keeps one session for the whole conversation and only ever appends to it: no turn is read twice.
 */
#include "think.h"
#include "tools/output.h"
#include "tools/run.h"

#include <signal.h>
#include <sys/select.h>

static const char TOOL[] = "chat";
static const char USAGE[] =
    "usage: chat MODEL.jamba [options]\n"
    "  -s SYSTEM    system message in front of the conversation\n"
    "  -p PROMPT    answer this once and exit\n"
    "  --load FILE  begin where that saved state ends, of build/bake or of /save\n"
    "  -n MAX       longest reply in tokens (512)\n"
    "  --temp T     sampling temperature, 0 is greedy (0.7)\n"
    "  --top-k K    sample from the K likeliest tokens only, 0 is off (0)\n"
    "  --top-p P    sample from the likeliest tokens that make up P, 0 is off (0.9)\n"
    "  --min-p P    leave out tokens below P times the likeliest, 0 is off (0)\n"
    "  --repeat R   repeat penalty, 0 is off (0)\n"
    "  --seed N     of the sampling (1)\n"
    "  -t THREADS   (one per processor, at most 8; 1 for a model under 32 MB)\n"
    "  -c CONTEXT   tokens the conversation may take (the model's, at most 8192)\n"
    "  --kv TYPE    of cached keys and values: f16, f32 or q8 (f16)\n"
    "  --think HOW  reasoning between <think> and </think>: show, dim or hide (dim on a terminal, else show)\n"
    "  --cpu NAME   highest instruction set: best, scalar, avx2, avxvnni, avx512, neon or wasm (best)\n";

static const char HELP[] =
    "/reset        forget the conversation\n"
    "/save FILE    keep the conversation in a new file\n"
    "/load FILE    go on with a conversation kept so\n"
    "/help         this list\n"
    "/quit         leave, as does the end of input\n"
    "Ctrl-C        stops the reply; twice leaves\n";

/* The longest that a Ctrl-C waits. */
enum { SLICE_US = 20000 };

typedef struct chat {
    run_context run;
    jamba_session_params params;
    jamba_sampler sampler;
    jamba_cpu cpu;
    const char *system, *prompt, *load;
    int max, threads;
    think_filter think;
    bool completes; /* the model has no chat format: it goes on with the text instead */
    bool begun;     /* the session holds something */
    bool replied;   /* which ends with a reply, and that is not closed */
    bool terminal;  /* stderr is one */
} chat;

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

/* Ctrl-C sets `interrupted` from now on. */
static void catch_interrupt(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_interrupt;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

/* ---- options ------------------------------------------------------------------------------- */

static double parse_float(const char *name, const char *text, double high)
{
    return tool_argument_float(TOOL, USAGE, name, text, 0, high);
}

static bool parse_sampling(jamba_sampler *sampler, const char *name, const char *value)
{
    if (strcmp(name, "--temp") == 0) sampler->temperature = (float)parse_float(name, value, 100);
    else if (strcmp(name, "--top-p") == 0) sampler->top_p = (float)parse_float(name, value, 1);
    else if (strcmp(name, "--min-p") == 0) sampler->min_p = (float)parse_float(name, value, 1);
    else if (strcmp(name, "--repeat") == 0) sampler->repeat_penalty = (float)parse_float(name, value, 100);
    else if (strcmp(name, "--top-k") == 0)
        sampler->top_k = (int32_t)tool_argument_int(TOOL, USAGE, name, value, 0, INT32_MAX);
    else if (strcmp(name, "--seed") == 0)
        sampler->seed = (uint64_t)tool_argument_int(TOOL, USAGE, name, value, 0, INT64_MAX);
    else return false;
    return true;
}

static think_mode parse_think(const char *text)
{
    static const char *const names[] = { "show", "dim", "hide" };
    for (int i = 0; text && i < 3; i++)
        if (strcmp(text, names[i]) == 0) return (think_mode)i;
    tool_usage(TOOL, USAGE, "--think needs show, dim or hide, not", text ? text : "nothing");
    return THINK_SHOW;
}

static bool parse_option(chat *c, const char *name, const char *value)
{
    const char **text = strcmp(name, "-s") == 0 ? &c->system : strcmp(name, "-p") == 0 ? &c->prompt : NULL;
    if (strcmp(name, "--load") == 0) text = &c->load;
    if (strcmp(name, "--lora") == 0) tool_usage(TOOL, USAGE, "not there yet: --lora", NULL);
    if (text && !value) tool_usage(TOOL, USAGE, "a text is missing after", name);
    if (text) *text = value;
    else if (strcmp(name, "-n") == 0) c->max = (int)tool_argument_int(TOOL, USAGE, name, value, 1, INT32_MAX);
    else if (strcmp(name, "-t") == 0) c->threads = run_argument_threads(TOOL, USAGE, name, value);
    else if (strcmp(name, "-c") == 0)
        c->params.context = (int32_t)tool_argument_int(TOOL, USAGE, name, value, 1, INT32_MAX);
    else if (strcmp(name, "--kv") == 0) c->params.kv_type = run_argument_kv(TOOL, USAGE, value);
    else if (strcmp(name, "--think") == 0) c->think.mode = parse_think(value);
    else if (strcmp(name, "--cpu") == 0) c->cpu = run_argument_cpu(TOOL, USAGE, value);
    else return parse_sampling(&c->sampler, name, value);
    return true;
}

static void parse_arguments(chat *c, char **argv)
{
    c->max = 512;
    c->sampler.temperature = 0.7f;
    c->sampler.top_p = 0.9f;
    c->sampler.seed = 1;
    c->think.mode = isatty(1) ? THINK_DIM : THINK_SHOW;
    for (char **arg = argv + 1; *arg; arg++) {
        if ((*arg)[0] != '-') {
            if (c->run.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
            c->run.path = *arg;
        } else if (parse_option(c, *arg, arg[1])) arg++;
        else tool_usage(TOOL, USAGE, "unknown option", *arg);
    }
    if (!c->run.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (c->load && c->system) tool_usage(TOOL, USAGE, "what --load begins with has its system message: no -s", NULL);
}

/* ---- one reply ----------------------------------------------------------------------------- */

/* Leaves out control characters, C1 in UTF-8 among them: a model's text must not command the terminal. */
static void print_text(const char *text, size_t length, bool code)
{
    const unsigned char *bytes = (const unsigned char *)text;
    for (size_t i = 0; i < length; i++) {
        bool c1 = bytes[i] == 0xc2 && i + 1 < length && bytes[i + 1] < 0xa0;
        if (code) putchar(bytes[i]);
        else if (c1) i++;
        else if (bytes[i] == '\n' || bytes[i] == '\t' || (bytes[i] >= 0x20 && bytes[i] != 0x7f)) putchar(bytes[i]);
    }
    fflush(stdout);
}

/* The text of the reply's next token. Reasoning tags count as text even where they are special tokens. */
static void print_token(chat *c, jamba_text_stream *stream, int32_t token)
{
    char text[JAMBA_TEXT_MAX];
    size_t length = 0;
    const char *stored = token < 0 ? NULL : jamba_token_text(c->run.model, token, &length);
    bool tag = stored && ((length == 7 && memcmp(stored, "<think>", 7) == 0)
        || (length == 8 && memcmp(stored, "</think>", 8) == 0));
    length = jamba_decode_next(c->run.model, stream, token, tag ? JAMBA_TEXT_SPECIAL : 0, text);
    think_text(&c->think, text, length, print_text);
}

/* Tokens of the user's turn; as jamba_encode() with `capacity` 0 it only counts. */
static jamba_result encode_turn(
    const chat *c, const char *text, int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    const jamba_message messages[2] = { { "system", c->system }, { "user", text } };
    bool system = c->system && !c->begun;
    unsigned flags = JAMBA_CHAT_REPLY;
    if (!c->begun) flags |= JAMBA_CHAT_BEGIN;
    if (c->replied) flags |= JAMBA_CHAT_CONTINUE;
    if (c->completes)
        return jamba_encode(c->run.model, text, strlen(text), c->begun ? 0 : JAMBA_TEXT_BOS, tokens, capacity, count,
            error);
    return jamba_chat_encode(c->run.model, messages + !system, system ? 2 : 1, flags, tokens, capacity, count, error);
}

/* Puts tokens into the session's queue; all or none. */
static jamba_result append(chat *c, const int32_t *tokens, size_t count)
{
    jamba_result result = jamba_feed(c->run.session, tokens, count);
    if (result != JAMBA_ERR_CONTEXT) run_check(&c->run, result);
    if (result == JAMBA_OK) c->begun = c->replied = true;
    return result;
}

/* Queues the user's turn. What comes before a continued text matters to the stream's spaces. */
static bool append_turn(chat *c, const char *text, jamba_text_stream *stream, jamba_error *error)
{
    char ignored[JAMBA_TEXT_MAX];
    size_t count;
    int32_t *tokens;
    bool ok = encode_turn(c, text, NULL, 0, &count, error) == JAMBA_OK;
    if (!ok) return false;
    tokens = (int32_t *)malloc((count + 1) * sizeof *tokens);
    if (!tokens) tool_die(TOOL, "out of memory for a message of %zu tokens", count);
    ok = encode_turn(c, text, tokens, count, &count, error) == JAMBA_OK;
    if (ok && append(c, tokens, count) != JAMBA_OK) {
        *error = *jamba_session_error(c->run.session);
        ok = false;
    }
    for (size_t i = 0; ok && c->completes && i < count; i++)
        jamba_decode_next(c->run.model, stream, tokens[i], 0, ignored);
    free(tokens);
    return ok;
}

/* Works the queue off in slices. False when Ctrl-C came; the rest then stays in the queue. */
static bool work(const chat *c)
{
    tool_progress progress = { 0, false };
    jamba_session_info info;
    jamba_result result = JAMBA_PENDING;
    double start = tool_seconds();
    int32_t total;
    jamba_session_describe(c->run.session, &info);
    total = info.pending;
    while (result == JAMBA_PENDING && !interrupted) {
        result = jamba_step(c->run.session, SLICE_US);
        run_check(&c->run, result);
        jamba_session_describe(c->run.session, &info);
        if (total > 1 && tool_seconds() - start > 0.3)
            tool_progress_show(&progress, "reading", (uint64_t)(total - info.pending), (uint64_t)total);
    }
    tool_progress_end(&progress);
    return !interrupted;
}

/* Why a reply ended. */
typedef enum ending { ENDING_DONE, ENDING_STOPPED, ENDING_LONGEST, ENDING_FULL } ending;

/* Streams a reply to what is queued; its tokens join the queue, the end token does not. */
static ending stream_reply(chat *c, jamba_text_stream *stream, int *made)
{
    for (*made = 0; work(c); ++*made) {
        int32_t token = jamba_sample(c->run.session, &c->sampler);
        run_check(&c->run, token);
        if (jamba_token_is_end(c->run.model, token)) return ENDING_DONE;
        if (*made == c->max) return ENDING_LONGEST;
        print_token(c, stream, token);
        if (append(c, &token, 1) != JAMBA_OK) return ENDING_FULL;
    }
    return ENDING_STOPPED;
}

static void report(const chat *c, ending end, int read, double read_seconds, int made, double made_seconds)
{
    static const char *const notes[] = { "", "; stopped", "; cut, -n allows more",
        "; the context is full: /reset starts anew, -c allows more" };
    if (!c->terminal && end == ENDING_FULL) fprintf(stderr, "%s: the reply ends here, the context is full\n", TOOL);
    if (!c->terminal) return;
    fprintf(stderr, "[read %d tokens at %.0f/s", read, read / (read_seconds + 1e-9));
    if (made > 0) fprintf(stderr, ", wrote %d at %.0f/s", made, made / (made_seconds + 1e-9));
    fprintf(stderr, "%s]\n", notes[end]);
}

/* Answers one message. False with an error when it cannot be taken; the conversation is then as before. */
static bool answer(chat *c, const char *message, jamba_error *error)
{
    jamba_text_stream stream = { { 0 }, 0, 0 };
    jamba_session_info before, after;
    double start = tool_seconds(), middle;
    ending end = ENDING_STOPPED;
    bool read;
    int made = 0;
    if (!append_turn(c, message, &stream, error)) return false;
    jamba_session_describe(c->run.session, &before);
    read = work(c);
    jamba_session_describe(c->run.session, &after);
    middle = tool_seconds();
    if (read) end = stream_reply(c, &stream, &made);
    print_token(c, &stream, -1);
    think_end(&c->think, print_text);
    print_text("\n", 1, false);
    report(c, end, after.position - before.position, middle - start, made, tool_seconds() - middle);
    return true;
}

/* ---- the conversation ---------------------------------------------------------------------- */

typedef enum input { INPUT_LINE, INPUT_END, INPUT_STOPPED } input;

/* Standard input, without stdio: what that has buffered, select() does not see. */
typedef struct reader {
    char bytes[4096];
    size_t at, size;
    tool_buffer line;
} reader;

/* More bytes. Ctrl-C arrives only while it waits, so that none gets lost on the way there. */
static input read_more(reader *in)
{
    ssize_t got = -1;
    sigset_t interrupt, before;
    fd_set files;
    FD_ZERO(&files);
    FD_SET(0, &files);
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    if (!interrupted && pselect(1, &files, NULL, NULL, NULL, &before) > 0) got = read(0, in->bytes, sizeof in->bytes);
    sigprocmask(SIG_SETMASK, &before, NULL);
    in->at = 0;
    in->size = got > 0 ? (size_t)got : 0;
    return got > 0 ? INPUT_LINE : interrupted ? INPUT_STOPPED : INPUT_END;
}

/* The next line, terminated, without its newline. */
static input read_line(reader *in)
{
    in->line.size = 0;
    for (;;) {
        const char *from = in->bytes + in->at;
        const char *newline = (const char *)memchr(from, '\n', in->size - in->at);
        size_t size = newline ? (size_t)(newline - from) : in->size - in->at;
        input more = INPUT_LINE;
        tool_buffer_add(&in->line, from, size);
        in->at += newline ? size + 1 : size;
        if (!newline) more = read_more(in);
        if (more == INPUT_STOPPED || (more == INPUT_END && in->line.size == 0)) return more;
        if (!newline && more == INPUT_LINE) continue;
        if (!tool_buffer_u8(&in->line, 0)) tool_die(TOOL, "out of memory for a line of %zu bytes", in->line.size);
        return INPUT_LINE;
    }
}

/* With the sampler, so that the replies go on as they would have; without one where no reply stands at the end. */
static bool save_conversation(const chat *c, const char *path, tool_error *error)
{
    jamba_save_params params;
    uint8_t *data;
    size_t size;
    bool ok;
    memset(&params, 0, sizeof params);
    if (c->replied) params.sampler = &c->sampler;
    if (c->begun) run_check(&c->run, jamba_step(c->run.session, 0)); /* what Ctrl-C has left in the queue */
    size = jamba_session_save_as(c->run.session, &params, NULL, 0);
    data = (uint8_t *)malloc(size);
    if (!data) return tool_no_memory(error);
    jamba_session_save_as(c->run.session, &params, data, size);
    ok = output_file(path, data, size, false, error);
    free(data);
    return ok;
}

static bool load_conversation(chat *c, const char *path, tool_error *error)
{
    jamba_state_info info;
    uint8_t *data;
    size_t size;
    bool ok;
    if (!tool_read_file(path, SIZE_MAX / 2, &data, &size, error)) return false;
    ok = jamba_session_restore(c->run.session, data, size) == JAMBA_OK;
    if (ok) {
        jamba_state_describe(data, size, &info, NULL);
        c->begun = info.position + info.pending > 0;
        c->replied = info.has_sampler;
        if (info.has_sampler) c->sampler.seed = info.sampler.seed;
    } else tool_error_set(error, "%s: %s", path, jamba_session_error(c->run.session)->message);
    free(data);
    return ok;
}

/* False: leave. */
static bool command(chat *c, const char *line)
{
    tool_error error;
    bool ok = true;
    if (strcmp(line, "/quit") == 0) return false;
    if (strcmp(line, "/reset") == 0) {
        jamba_session_reset(c->run.session);
        c->begun = c->replied = false;
    } else if (strncmp(line, "/save ", 6) == 0) {
        ok = save_conversation(c, line + 6, &error);
        catch_interrupt(); /* which meanwhile removed a file half written */
    } else if (strncmp(line, "/load ", 6) == 0) ok = load_conversation(c, line + 6, &error);
    else if (strcmp(line, "/help") == 0) fputs(HELP, stderr);
    else fprintf(stderr, "unknown command; /help lists them\n");
    if (!ok) fprintf(stderr, "%s: %s\n", TOOL, error.message);
    return true;
}

static bool handle_line(chat *c, const char *line)
{
    jamba_error error;
    if (line[0] == '/') return command(c, line);
    if (line[strspn(line, " \t\r")] == 0 || answer(c, line, &error)) return true;
    if (error.code == JAMBA_ERR_CONTEXT)
        fprintf(stderr, "The context is full: shorten the message, or start anew with /reset; -c allows more.\n");
    else fprintf(stderr, "%s: %s\n", TOOL, error.message);
    return true;
}

static void converse(chat *c)
{
    reader in;
    bool prompts = c->terminal && isatty(0), leave = false;
    int stops = 0; /* Ctrl-C in a row, with no line between */
    memset(&in, 0, sizeof in);
    catch_interrupt();
    while (!leave) {
        input got;
        interrupted = 0;
        if (prompts) fputs("> ", stderr);
        got = read_line(&in);
        if (got != INPUT_LINE && prompts) fputs("\n", stderr);
        if (got == INPUT_END) break;
        if (got == INPUT_STOPPED) {
            leave = ++stops >= 2;
            if (!leave) fprintf(stderr, "Ctrl-C again leaves, as do /quit and the end of input.\n");
            continue;
        }
        leave = !handle_line(c, (const char *)in.line.data);
        stops = interrupted ? 1 : 0;
    }
    tool_buffer_free(&in.line);
}

/* Whether the model can take a conversation such as is asked for. */
static void check_format(chat *c)
{
    jamba_error error;
    size_t count;
    jamba_result result = encode_turn(c, "", NULL, 0, &count, &error);
    const char *system = c->system;
    if (result == JAMBA_ERR_UNSUPPORTED && system) {
        c->system = NULL;
        if (encode_turn(c, "", NULL, 0, &count, &error) == JAMBA_OK)
            tool_die(TOOL, "%s: its chat format has no system message; leave out -s", c->run.path);
        tool_die(TOOL, "%s: has no chat format and so no system message; leave out -s", c->run.path);
    }
    c->completes = result == JAMBA_ERR_UNSUPPORTED;
    if (c->completes) result = encode_turn(c, "", NULL, 0, &count, &error);
    if (result != JAMBA_OK) tool_die(TOOL, "%s: %s", c->run.path, error.message);
    if (c->completes) fprintf(stderr, "%s: %s has no chat format, it goes on with your text\n", TOOL, c->run.path);
}

static void introduce(const chat *c)
{
    jamba_session_info info;
    jamba_session_describe(c->run.session, &info);
    if (c->terminal)
        fprintf(stderr, "%s: %s, %.1f million parameters, %s, %d thread%s, context %d; /help lists commands\n",
            c->run.path, c->run.info.type, (double)c->run.info.parameters * 1e-6, c->run.info.isa,
            (int)info.width, info.width == 1 ? "" : "s", (int)info.context);
}

int main(int argc, char **argv)
{
    chat c;
    jamba_error error;
    tool_error why;
    (void)argc;
    memset(&c, 0, sizeof c);
    c.run.tool = TOOL;
    c.terminal = isatty(2) != 0;
    parse_arguments(&c, argv);
    run_load(&c.run, c.cpu);
    check_format(&c);
    run_create(&c.run, &c.params, c.threads);
    if (c.load && !load_conversation(&c, c.load, &why)) tool_die(TOOL, "%s", why.message);
    if (!c.prompt) {
        introduce(&c);
        converse(&c);
    } else if (!answer(&c, c.prompt, &error))
        tool_die(TOOL, "%s: %s%s", c.run.path, error.message,
            error.code == JAMBA_ERR_CONTEXT ? "; shorten the prompt, or allow more with -c" : "");
    run_close(&c.run);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
