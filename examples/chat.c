/* chat.c - talk with a model in a terminal
 *
 * Keeps one session for the whole conversation and only ever appends to it: no turn is read twice, until the context
 * is full and the last ones have to move up.
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
    "  --lora FILE[:SCALE]  a LoRA adapter made for this model (1); may be given several times\n"
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
    "/retry        have the last message answered anew\n"
    "/undo         forget the last message and its reply\n"
    "/reset        forget the conversation\n"
    "/save FILE    keep the conversation in a new file\n"
    "/load FILE    go on with a conversation kept so\n"
    "/help         this list\n"
    "/quit         leave, as does the end of input\n"
    "Ctrl-C        stops the reply; twice leaves\n";

/* The longest that a Ctrl-C waits. */
enum { SLICE_US = 20000 };

/* Marks to go back to: after the system message, and at the last message and reply. */
enum { MARKS = 3 };

/* Messages that stay, at most, when the context is full. */
enum { KEPT = 16 };

typedef struct chat {
    run_context run;
    jamba_session_params params;
    jamba_sampler sampler;
    jamba_cpu cpu;
    const char *system, *prompt, *load;
    char *lora[JAMBA_ADAPTERS_MAX]; /* files */
    float scales[JAMBA_ADAPTERS_MAX];
    jamba_adapter *adapters[JAMBA_ADAPTERS_MAX];
    size_t lora_count;
    int max, threads;
    think_filter think;
    unsigned flags; /* of the reply's text */
    bool completes; /* the model has no chat format: it goes on with the text instead */
    bool terminal;  /* stderr is one */
    int32_t start;  /* tokens before the last message; -1: none to forget */
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
}

/* FILE, or FILE:SCALE where no file has that name. */
static void parse_lora(chat *c, const char *value)
{
    const char *colon = value ? strrchr(value, ':') : NULL;
    struct stat info;
    char *path;
    if (!value) tool_usage(TOOL, USAGE, "a file is missing after", "--lora");
    if (c->lora_count == JAMBA_ADAPTERS_MAX) tool_usage(TOOL, USAGE, "too many adapters, at", value);
    if (stat(value, &info) == 0) colon = NULL;
    path = strdup(value);
    if (!path) tool_die(TOOL, "out of memory for a name");
    if (colon) path[colon - value] = 0;
    c->scales[c->lora_count] = colon ? (float)tool_argument_float(TOOL, USAGE, "--lora", colon + 1, -100, 100) : 1;
    c->lora[c->lora_count++] = path;
}

static bool parse_option(chat *c, const char *name, const char *value)
{
    const char **text = strcmp(name, "-s") == 0 ? &c->system : strcmp(name, "-p") == 0 ? &c->prompt : NULL;
    if (strcmp(name, "--load") == 0) text = &c->load;
    if (text && !value) tool_usage(TOOL, USAGE, "a text is missing after", name);
    if (text) *text = value;
    else if (strcmp(name, "--lora") == 0) parse_lora(c, value);
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

static void print_text(const char *text, size_t length, bool code)
{
    if (code) fwrite(text, 1, length, stdout);
    else tool_print_text(text, length);
    fflush(stdout);
}

static jamba_session_info describe(const chat *c)
{
    jamba_session_info info;
    jamba_session_describe(c->run.session, &info);
    return info;
}

/* Tokens of the session, evaluated or not. */
static int32_t fed(const chat *c)
{
    jamba_session_info info = describe(c);
    return info.position + info.pending;
}

/* Tokens of a message with what opens the reply; as jamba_encode() with `capacity` 0 it only counts. */
static jamba_result encode_turn(
    const chat *c, const char *text, int32_t *tokens, size_t capacity, size_t *count, jamba_error *error)
{
    const jamba_message messages[2] = { { "system", c->system }, { "user", text } };
    bool begins = fed(c) == 0, system = c->system && begins;
    unsigned flags = JAMBA_CHAT_REPLY | (begins ? (unsigned)JAMBA_CHAT_BEGIN : (unsigned)JAMBA_CHAT_CONTINUE);
    if (c->completes)
        return jamba_encode(c->run.model, text, strlen(text), begins ? JAMBA_TEXT_BOS : 0, tokens, capacity, count,
            error);
    return jamba_chat_encode(c->run.model, messages + !system, system ? 2 : 1, flags, tokens, capacity, count, error);
}

/* Queues text to go on with; all or nothing. */
static jamba_result feed_text(chat *c, const char *text, jamba_error *error)
{
    size_t count;
    int32_t *tokens;
    jamba_result result = encode_turn(c, text, NULL, 0, &count, error);
    if (result != JAMBA_OK) return result;
    tokens = (int32_t *)malloc((count + 1) * sizeof *tokens);
    if (!tokens) tool_die(TOOL, "out of memory for a message of %zu tokens", count);
    result = encode_turn(c, text, tokens, count, &count, error);
    if (result == JAMBA_OK) {
        result = jamba_feed(c->run.session, tokens, count);
        *error = *jamba_session_error(c->run.session);
    }
    free(tokens);
    return result;
}

/* Queues the user's message, in front of a new conversation the system's; all or nothing. There must be room for the
 * beginning of a reply too. */
static jamba_result say(chat *c, const char *text, jamba_error *error)
{
    bool begins = fed(c) == 0;
    size_t count;
    jamba_result result;
    if (c->completes) return feed_text(c, text, error);
    result = encode_turn(c, text, NULL, 0, &count, error);
    if (result != JAMBA_OK) return result;
    if (count > (size_t)(describe(c).context - fed(c))) {
        error->code = JAMBA_ERR_CONTEXT;
        snprintf(error->message, sizeof error->message, "a message of %zu tokens does not fit in what is left", count);
        return JAMBA_ERR_CONTEXT;
    }
    if (begins && c->system) result = jamba_say(c->run.session, "system", c->system);
    if (result == JAMBA_OK) result = jamba_say(c->run.session, "user", text);
    *error = *jamba_session_error(c->run.session);
    if (result != JAMBA_OK && begins) jamba_session_reset(c->run.session);
    return result;
}

/* Forgets the oldest turns, so that half of the context is free if that can be; `inside` a reply or between. False when
 * nothing is left to forget. */
static bool make_room(chat *c, bool inside)
{
    int32_t before = fed(c), turns, replay = 0;
    bool made = false;
    for (turns = KEPT; turns > 0 && !(made && fed(c) <= describe(c).context / 2); turns /= 2)
        made = jamba_session_restart(c->run.session, turns, &replay) == JAMBA_OK || made;
    if (made)
        fprintf(stderr, "%s[the context is full: %d tokens of the oldest turns are forgotten, %d are read again]\n",
            c->terminal && inside ? "\n" : "", (int)(before - fed(c)), (int)replay);
    return made;
}

/* As say(), forgetting what is in the way; not for a message that would take half of the context. */
static jamba_result say_with_room(chat *c, const char *text, jamba_error *error)
{
    jamba_result result = say(c, text, error);
    jamba_error ignored;
    size_t count;
    bool fits = !c->completes && encode_turn(c, text, NULL, 0, &count, &ignored) == JAMBA_OK
        && count <= (size_t)describe(c).context / 2;
    while (result == JAMBA_ERR_CONTEXT && fits && make_room(c, false)) result = say(c, text, error);
    return result;
}

/* Why a reply ended. */
typedef enum ending { ENDING_DONE, ENDING_STOPPED, ENDING_LONGEST, ENDING_FULL } ending;

/* What a reply took. */
typedef struct account {
    ending end;
    int32_t position;     /* tokens evaluated, when last looked at */
    int32_t read, made;   /* tokens read, and of the reply */
    double start, middle; /* seconds, when reading began and ended */
    tool_progress progress;
} account;

/* Until there is a first token. */
static void show_reading(const chat *c, account *a)
{
    jamba_session_info info = describe(c);
    if (info.position > a->position) a->read += info.position - a->position;
    a->position = info.position;
    a->middle = tool_seconds();
    if (info.pending > 1 && a->middle - a->start > 0.3)
        tool_progress_show(&a->progress, "reading", (uint64_t)a->read,
            (uint64_t)a->read + (uint64_t)info.pending);
    else tool_progress_end(&a->progress);
}

/* Streams the reply in slices, until it ends or Ctrl-C comes. */
static void stream_reply(chat *c, account *a)
{
    jamba_reply_params params;
    const char *text;
    size_t length = 0;
    jamba_result result = JAMBA_PENDING;
    jamba_turn turn = { 0, JAMBA_TURN_REPLY };
    memset(&params, 0, sizeof params);
    params.sampler = &c->sampler;
    params.budget_us = SLICE_US;
    params.max_tokens = c->max;
    params.flags = c->flags;
    while (!interrupted && (result == JAMBA_PENDING || length > 0)) {
        result = jamba_reply(c->run.session, &params, &text, &length);
        if (result == JAMBA_ERR_CONTEXT && make_room(c, true)) result = JAMBA_PENDING;
        if (result == JAMBA_ERR_CONTEXT) break;
        run_check(&c->run, result);
        if (a->made == 0) show_reading(c, a);
        think_text(&c->think, text, length, print_text);
        jamba_turns(c->run.session, &turn, 1);
        a->made = fed(c) - turn.position;
    }
    tool_progress_end(&a->progress);
    a->end = result == JAMBA_ERR_CONTEXT ? ENDING_FULL : result == JAMBA_PENDING || length > 0 ? ENDING_STOPPED
        : a->made == c->max ? ENDING_LONGEST : ENDING_DONE;
}

static void report(const chat *c, const account *a)
{
    static const char *const notes[] = { "", "; stopped", "; cut, -n allows more",
        "; the context is full: /reset starts anew, -c allows more" };
    double read_seconds = a->middle - a->start, made_seconds = tool_seconds() - a->middle;
    if (!c->terminal && a->end == ENDING_FULL)
        fprintf(stderr, "%s: the reply ends here, the context is full\n", TOOL);
    if (!c->terminal) return;
    fprintf(stderr, "[read %d tokens at %.0f/s", (int)a->read, a->read / (read_seconds + 1e-9));
    if (a->made > 0) fprintf(stderr, ", wrote %d at %.0f/s", (int)a->made, a->made / (made_seconds + 1e-9));
    fprintf(stderr, "%s]\n", notes[a->end]);
}

/* Answers what the session holds. */
static void answer(chat *c)
{
    account a;
    memset(&a, 0, sizeof a);
    a.start = a.middle = tool_seconds();
    a.position = describe(c).position;
    stream_reply(c, &a);
    think_end(&c->think, print_text);
    print_text("\n", 1, false);
    report(c, &a);
}

/* Answers one message. False with an error when it cannot be taken; the conversation is then as before. */
static bool converse_once(chat *c, const char *message, jamba_error *error)
{
    int32_t start = fed(c);
    if (say_with_room(c, message, error) != JAMBA_OK) return false;
    c->start = start;
    answer(c);
    return true;
}

/* ---- going back ---------------------------------------------------------------------------- */

/* Where the last turn of this kind begins; -1 when there is none. */
static int32_t last_turn(const chat *c, jamba_turn_kind kind)
{
    size_t count = jamba_turns(c->run.session, NULL, 0), i;
    jamba_turn *turns = (jamba_turn *)malloc((count + 1) * sizeof *turns);
    int32_t at = -1;
    if (!turns) tool_die(TOOL, "out of memory for %zu turns", count);
    jamba_turns(c->run.session, turns, count);
    for (i = 0; i < count; i++)
        if (turns[i].kind == kind) at = turns[i].position;
    free(turns);
    return at;
}

static void retry(chat *c)
{
    int32_t reply = last_turn(c, JAMBA_TURN_REPLY), said = last_turn(c, JAMBA_TURN_SAID);
    if (reply < 0 && said < 0) {
        fprintf(stderr, "there is nothing to answer\n");
        return;
    }
    if (reply > said) run_check(&c->run, jamba_session_rewind(c->run.session, reply, NULL));
    answer(c);
}

/* A text that is gone on with is no turn: then only the last one is known. */
static void undo(chat *c)
{
    int32_t start = c->completes ? c->start : last_turn(c, JAMBA_TURN_SAID);
    if (start < 0) {
        fprintf(stderr, "there is nothing to forget\n");
        return;
    }
    run_check(&c->run, jamba_session_rewind(c->run.session, start, NULL));
    c->start = -1;
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
    params.sampler = &c->sampler;
    params.marks = true; /* so that /retry and /undo need not read again */
    run_check(&c->run, jamba_step(c->run.session, 0)); /* what Ctrl-C has left in the queue */
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
        c->start = -1;
        if (info.has_sampler) c->sampler.seed = info.sampler.seed;
    } else tool_error_fill(error, "%s: %s", path, jamba_session_error(c->run.session)->message);
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
        c->start = -1;
    } else if (strcmp(line, "/retry") == 0) retry(c);
    else if (strcmp(line, "/undo") == 0) undo(c);
    else if (strncmp(line, "/save ", 6) == 0) {
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
    if (line[strspn(line, " \t\r")] == 0 || converse_once(c, line, &error)) return true;
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

/* Reasoning tags count as text even where they are special tokens. */
static unsigned text_flags(const chat *c)
{
    int32_t tag = jamba_token_find(c->run.model, "</think>");
    size_t length = 1;
    if (tag >= 0) jamba_decode(c->run.model, &tag, 1, 0, NULL, 0, &length, NULL);
    return length == 0 ? JAMBA_TEXT_SPECIAL : 0;
}

static void introduce(const chat *c)
{
    jamba_session_info info = describe(c);
    if (c->terminal)
        fprintf(stderr, "%s: %s, %.1f million parameters, %s, %d thread%s, context %d; /help lists commands\n",
            c->run.path, c->run.info.type, (double)c->run.info.parameters * 1e-6, c->run.info.isa,
            (int)info.width, info.width == 1 ? "" : "s", (int)info.context);
}

static void load_adapters(chat *c)
{
    jamba_error error;
    for (size_t i = 0; i < c->lora_count; i++)
        if (jamba_adapter_load(&c->adapters[i], c->run.model, jamba_from_file(c->lora[i]), &error) != JAMBA_OK)
            tool_die(TOOL, "%s: %s", c->lora[i], error.message);
    run_check(&c->run, jamba_session_set_adapters(c->run.session, c->adapters, c->scales, c->lora_count));
}

/* After their session. */
static void free_adapters(chat *c)
{
    for (size_t i = 0; i < c->lora_count; i++) {
        jamba_adapter_free(c->adapters[i]);
        free(c->lora[i]);
    }
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
    c.flags = text_flags(&c);
    c.start = -1;
    if (!c.prompt) c.params.marks = MARKS;
    run_create(&c.run, &c.params, c.threads);
    load_adapters(&c);
    if (c.load && !load_conversation(&c, c.load, &why)) tool_die(TOOL, "%s", why.message);
    if (!c.prompt) {
        introduce(&c);
        converse(&c);
    } else if (!converse_once(&c, c.prompt, &error))
        tool_die(TOOL, "%s: %s%s", c.run.path, error.message,
            error.code == JAMBA_ERR_CONTEXT ? "; shorten the prompt, or allow more with -c" : "");
    jamba_session_free(c.run.session);
    c.run.session = NULL;
    free_adapters(&c);
    run_close(&c.run);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
