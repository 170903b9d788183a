/* npc.c - a town of characters who talk, within 2 ms of every frame
 *
 *     build/npc MODEL.jamba --characters 40
 *
 * Each persona is a text that is read once, when the game starts: "baked". A character is a fork of one: it costs
 * the model's state and the room to grow. Of the keys and values of what was read it shares full pages, of 256 tokens
 * each, and copies the rest: short personas like these are copied whole. A character that was loaded shares nothing
 * until it forgets and is forked again. Things happen in the town; who hears of one says a line about it. All who
 * speak are worked on together, by scheduler.h, and a frame takes about its budget, whatever the model and however
 * many speak; on a slow machine they talk slower, and say the same.
 *
 * SAVING   A session is saved as bytes. A town is its sessions, saved one after the other, and the game's own
 *          variables; a character goes on in the middle of the word at which it was saved.
 * REPLAY   What a character says depends on its own timeline only: what it has read, heard and said, its persona and
 *          its sampler. It does not depend on the budget, the frame rate, who speaks beside it, or a save in between.
 *          So the log of a game holds, for each character, what happened to it and at which place of its timeline,
 *          counted in tokens, and no frames: a replay makes the same happen at the same places, on any machine, and
 *          every line comes out again, word for word. In which frame a line ends may differ.
 */
#include "tools/output.h"
#include "tools/run.h"

#include "scheduler.h"

#include <time.h>

static const char TOOL[] = "npc";
static const char USAGE[] =
    "usage: npc MODEL.jamba [options]\n"
    "  --characters N  in the town (12)\n"
    "  --frames N      in which something happens; then all finish their lines, or are saved (600)\n"
    "  --budget US     microseconds a frame for all that they say (2000)\n"
    "  --every N       frames from one event to the next (12)\n"
    "  --bell N        every N frames a bell rings, and all break off (never)\n"
    "  --seed N        of the events and of what is said (1)\n"
    "  --save FILE     save the town after the last frame, in the middle of its lines\n"
    "  --load FILE     go on with a saved town\n"
    "  --lora FILE     an adapter for those who fish, such as a pirate's voice; a saved town needs the same\n"
    "  --record FILE   write down what happens to each character\n"
    "  --replay FILE   let the same happen again, instead of new events\n"
    "  --simulate US   do not wait for frames; a clock that moves by so much at each look, instead of the real one\n";

enum {
    FRAME_US = 1000000 / 60,
    WIDTH = 16,       /* characters who go through the model together */
    ROOM = 400,       /* tokens that a character hears and says before it forgets, and is as it was baked */
    LONGEST = 40,     /* tokens of a line */
    LINE_ROOM = 1000, /* bytes of one */
    TURN_ROOM = 200   /* tokens of what is heard */
};

/* ---- the town ---------------------------------------------------------------------------------- */

enum { PERSONAS = 4, NAMES = 16, EVENTS = 10, FISHERMAN = 1 };

static const char *const persona_texts[PERSONAS] = {
    "You are a kind baker in a small town. You bake bread and cakes for everyone. You have a cat.",
    "You are an old fisherman. You have a little boat and you love the sea. You like to tell stories.",
    "You are a happy child. You like to play in the park with your dog and your friends.",
    "You are a gardener. You grow flowers and big red apples. You love the sun and the rain.",
};

static const char *const first_names[NAMES] = { "Mia", "Tom", "Lily", "Rose", "Ben", "Anna", "Max", "Lucy", "Sam",
    "Ella", "Jack", "Sue", "Tim", "Nora", "Leo", "Emma" };

static const char *const events[EVENTS] = { "Hello! How are you today?", "It is raining. What will you do?",
    "Tell me a story about a dog and a boat.", "What do you like to eat?", "Look, a big bird sits on the roof!",
    "Do you want to play with me?", "Who is your best friend?", "Tell me a story about a little girl and a tree.",
    "I lost my ball. Can you help me?", "What did you do today?" };

/* Something that happens to a character. */
typedef struct input {
    struct input *next;
    int64_t at; /* the place in its timeline; -1: as soon as it is silent */
    bool stops; /* it breaks off what it says; otherwise it hears a text */
    char *text;
} input;

typedef struct character {
    char name[32];
    const jamba_session *persona;
    scheduler_speaker speaker; /* with its session and sampler */
    int64_t forgotten;         /* tokens of its timeline before those in the session */
    bool speaking, interrupted;
    bool replied;              /* the session ends with a reply, which the next turn closes */
    input *inputs;             /* what is to come, in order */
    input *answers;            /* what it speaks about */
    char line[LINE_ROOM + 1];
    size_t length;
} character;

typedef struct town {
    run_context run;
    const char *save, *load, *lora, *record, *replay;
    int64_t frames, every, bell;
    uint64_t budget, seed, tick; /* tick: of the simulated clock; 0: the real one */
    bool chats;                  /* the model has a chat format; otherwise it goes on with text */
    jamba_session *personas[PERSONAS];
    jamba_adapter *adapter; /* of the fishermen; NULL: none */
    character *characters;
    int count, silent;
    scheduler crowd;
    FILE *log;
    int64_t frame;
    uint64_t clock;              /* the simulated one */
    uint64_t heard, working;     /* tokens queued to be heard; microseconds of work */
    tool_buffer late;            /* double for each frame played: microseconds over the budget */
} town;

static uint64_t now_us(void *user)
{
    town *t = (town *)user;
    return t->tick ? t->clock += t->tick : (uint64_t)(tool_seconds() * 1e6);
}

/* A number that depends on nothing but the two given (splitmix64). */
static uint64_t mix(uint64_t seed, uint64_t index)
{
    uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Ends the program when a call that filled `error` has failed. */
static void check(const town *t, jamba_result result, const jamba_error *error)
{
    if (result != JAMBA_OK) tool_die(TOOL, "%s: %s", t->run.path, error->message);
}

static void check_session(const town *t, jamba_result result, const jamba_session *session)
{
    check(t, result, jamba_session_error(session));
}

static int32_t tokens_of(const jamba_session *session)
{
    size_t count;
    jamba_session_tokens(session, &count);
    return (int32_t)count;
}

/* How far a character's timeline has come, in tokens. */
static int64_t lived(const character *c)
{
    return c->forgotten + tokens_of(c->speaker.session);
}

/* ---- personas and characters ------------------------------------------------------------------- */

static jamba_session_params session_params(town *t)
{
    jamba_session_params params;
    memset(&params, 0, sizeof params);
    params.threads = 1;
    params.now_us = now_us;
    params.now_user = t;
    params.fork_chunk = 1; /* characters work in the scratch of the scheduler */
    return params;
}

static bool has_chat_format(const jamba_model *model)
{
    size_t count;
    return jamba_chat_encode(model, NULL, 0, JAMBA_CHAT_REPLY, NULL, 0, &count, NULL) != JAMBA_ERR_UNSUPPORTED;
}

/* Tokens of a persona, at most TURN_ROOM. Not every chat format has a system message. */
static size_t encode_persona(const town *t, const char *text, int32_t *tokens)
{
    const jamba_message system = { "system", text }, user = { "user", text };
    const jamba_model *model = t->run.model;
    jamba_error error;
    size_t count;
    jamba_result result;
    if (!t->chats)
        result = jamba_encode(model, text, strlen(text), JAMBA_TEXT_BOS, tokens, TURN_ROOM, &count, &error);
    else result = jamba_chat_encode(model, &system, 1, JAMBA_CHAT_BEGIN, tokens, TURN_ROOM, &count, &error);
    if (t->chats && result == JAMBA_ERR_UNSUPPORTED)
        result = jamba_chat_encode(model, &user, 1, JAMBA_CHAT_BEGIN, tokens, TURN_ROOM, &count, &error);
    check(t, result, &error);
    return count;
}

static jamba_session *session_create(town *t, int32_t context, int32_t chunk)
{
    jamba_session_params params = session_params(t);
    jamba_session *session;
    jamba_error error;
    params.context = context;
    params.chunk = chunk;
    check(t, jamba_session_create(&session, t->run.model, &params, &error), &error);
    return session;
}

/* Gives a session the adapter if its persona has one. Forks inherit it; a restored session needs it before. */
static void adapt(const town *t, jamba_session *session, const jamba_session *persona)
{
    if (t->adapter && persona == t->personas[FISHERMAN])
        check_session(t, jamba_session_set_adapters(session, &t->adapter, NULL, 1), session);
}

/* Reads a persona: the only long texts of the game. */
static void bake(const town *t, const char *text, jamba_session *persona)
{
    int32_t tokens[TURN_ROOM];
    size_t count = encode_persona(t, text, tokens);
    check_session(t, jamba_eval(persona, tokens, count), persona);
}

/* The session of a character with nothing on its mind. */
static void character_fork(const town *t, character *c)
{
    jamba_error error;
    check(t, jamba_session_fork(&c->speaker.session, c->persona, ROOM, &error), &error);
    c->replied = false;
}

static void character_forget(const town *t, character *c)
{
    c->forgotten = lived(c);
    jamba_session_free(c->speaker.session);
    character_fork(t, c);
}

/* All but their sessions. */
static void characters_make(town *t)
{
    t->characters = (character *)calloc((size_t)t->count, sizeof *t->characters);
    if (!t->characters) tool_die(TOOL, "out of memory for %d characters", t->count);
    for (int i = 0; i < t->count; i++) {
        character *c = &t->characters[i];
        snprintf(c->name, sizeof c->name, i < NAMES ? "%s" : "%s %d", first_names[i % NAMES], i / NAMES + 1);
        c->persona = t->personas[i % PERSONAS];
        c->speaker.user = c;
        c->speaker.sampler.temperature = 0.7f;
        c->speaker.sampler.top_p = 0.9f;
        c->speaker.sampler.seed = mix(t->seed, (uint64_t)i);
    }
    t->silent = t->count;
}

/* ---- inputs ------------------------------------------------------------------------------------- */

/* Behind those that wait already. */
static void input_add(character *c, int64_t at, bool stops, const char *text)
{
    input *in = (input *)calloc(1, sizeof *in), **last = &c->inputs;
    if (in) in->text = (char *)malloc(strlen(text) + 1);
    if (!in || !in->text) tool_die(TOOL, "out of memory for an event");
    strcpy(in->text, text);
    tool_clean_text(in->text); /* it may come from a file, and is printed */
    in->at = at;
    in->stops = stops;
    while (*last) last = &(*last)->next;
    *last = in;
}

static input *input_take(character *c)
{
    input *in = c->inputs;
    c->inputs = in->next;
    return in;
}

static void input_free(input *in)
{
    if (in) free(in->text);
    free(in);
}

/* What happens to a character, and where in its timeline. */
static void record(const town *t, const character *c, const char *text)
{
    if (t->log)
        fprintf(t->log, "%d %lld %s%s\n", (int)(c - t->characters), (long long)lived(c), text ? "hears " : "stops",
            text ? text : "");
}

static void replay_line(town *t, const char *line, int number)
{
    int who, end = 0;
    long long at;
    const char *what;
    if (sscanf(line, "%d %lld %n", &who, &at, &end) < 2 || end == 0 || who < 0 || who >= t->count || at < 0)
        tool_die(TOOL, "%s: line %d is not of this town", t->replay, number);
    what = line + end;
    if (strlen(what) > LINE_ROOM) tool_die(TOOL, "%s: line %d is too long", t->replay, number);
    if (strcmp(what, "stops") == 0) input_add(&t->characters[who], at, true, "");
    else if (strncmp(what, "hears ", 6) == 0) input_add(&t->characters[who], at, false, what + 6);
    else tool_die(TOOL, "%s: line %d says neither what is heard nor that something stops", t->replay, number);
}

static void record_open(town *t)
{
    if (t->record && !(t->log = fopen(t->record, "w")))
        tool_die(TOOL, "%s: cannot write: %s", t->record, strerror(errno));
    if (t->log) fprintf(t->log, "%d characters, seed %llu\n", t->count, (unsigned long long)t->seed);
}

/* Its first line says what town it is of. */
static char *replay_open(town *t)
{
    uint8_t *data;
    size_t size;
    tool_error error;
    unsigned long long seed;
    if (!tool_read_file(t->replay, (size_t)1 << 30, &data, &size, &error)) tool_die(TOOL, "%s", error.message);
    if (sscanf((const char *)data, "%d characters, seed %llu\n", &t->count, &seed) != 2 || t->count < 1)
        tool_die(TOOL, "%s: not a log of this program", t->replay);
    t->seed = seed;
    return (char *)data;
}

/* Everything in the log is to come. */
static void replay_fill(town *t, char *log)
{
    int number = 1;
    strtok(log, "\n");
    for (char *line; (line = strtok(NULL, "\n")) != NULL;) replay_line(t, line, ++number);
    free(log);
}

/* ---- hearing and speaking ------------------------------------------------------------------------ */

/* Tokens of what a character hears, up to where its own words begin. */
static size_t encode_turn(const town *t, const character *c, const char *text, int32_t *tokens)
{
    const jamba_message message = { "user", text };
    unsigned flags = JAMBA_CHAT_REPLY | (c->replied ? (unsigned)JAMBA_CHAT_CONTINUE : 0u);
    char plain[LINE_ROOM];
    jamba_error error;
    size_t count;
    snprintf(plain, sizeof plain, "\nSomebody says: %s\n%s says:", text, c->name);
    check(t, t->chats ? jamba_chat_encode(t->run.model, &message, 1, flags, tokens, TURN_ROOM, &count, &error)
        : jamba_encode(t->run.model, plain, strlen(plain), 0, tokens, TURN_ROOM, &count, &error), &error);
    return count;
}

/* Reads what it hears, into its session's queue. Who has no room left forgets first. */
static void feed_turn(town *t, character *c, const char *text)
{
    int32_t tokens[TURN_ROOM];
    size_t count = encode_turn(t, c, text, tokens);
    jamba_session_info info;
    jamba_session_describe(c->speaker.session, &info);
    if (tokens_of(c->speaker.session) + (int32_t)count + LONGEST > info.context) {
        character_forget(t, c);
        count = encode_turn(t, c, text, tokens);
    }
    check_session(t, jamba_feed(c->speaker.session, tokens, count), c->speaker.session);
    t->heard += count;
}

/* In a replay a line may have to stop at a place. */
static int32_t tokens_allowed(const character *c)
{
    int64_t until_stop = c->inputs && c->inputs->stops ? c->inputs->at - lived(c) : LONGEST;
    if (until_stop < 0) return 0;
    return until_stop < LONGEST ? (int32_t)until_stop : LONGEST;
}

/* Takes what happens next to somebody who is silent. */
static void character_hear(town *t, character *c)
{
    c->answers = input_take(c);
    if (c->answers->stops || (c->answers->at >= 0 && c->answers->at != lived(c)))
        tool_die(TOOL, "%s: %s is at %lld and not at %lld: the log is of another model, town or version",
            t->replay ? t->replay : t->run.path, c->name, (long long)lived(c), (long long)c->answers->at);
    record(t, c, c->answers->text);
    feed_turn(t, c, c->answers->text);
    memset(&c->speaker.stream, 0, sizeof c->speaker.stream);
    c->length = 0;
    c->speaker.left = tokens_allowed(c);
    c->speaking = c->replied = true;
    t->silent--;
    scheduler_add(&t->crowd, &c->speaker);
}

/* One who speaks breaks off, at the place where it happens to be. */
static void character_stop(town *t, character *c)
{
    record(t, c, NULL);
    c->interrupted = true;
    scheduler_stop(&t->crowd, &c->speaker);
}

/* Adds to the line, without control characters and blanks in front; false where it ends. */
static bool line_add(character *c, const char *text, size_t length)
{
    if (length > LINE_ROOM - c->length) return false;
    while (length > 0) {
        size_t control = tool_control_size(text, length), step = control ? control : 1;
        if (*text == '\n' && c->length > 0) return false;
        if (!control && (*text != ' ' || c->length > 0)) c->line[c->length++] = *text;
        text += step;
        length -= step;
    }
    return true;
}

static void line_print(const town *t, const character *c, scheduler_ending ending)
{
    const char *end = c->interrupted ? " --" : ending == SCHEDULER_LONGEST ? " ..." : "";
    printf("%6lld  %-8s [%s] %.*s%s\n", (long long)t->frame, c->name, c->answers->text, (int)c->length, c->line, end);
    fflush(stdout);
}

/* In a replay: whether this is where the line broke off. */
static void replay_stop(const town *t, character *c)
{
    if (!c->inputs || !c->inputs->stops || c->inputs->at != lived(c)) return;
    record(t, c, NULL);
    c->interrupted = true;
    input_free(input_take(c));
}

/* Gets what somebody says. */
static bool on_say(void *user, scheduler_speaker *speaker, const char *text, size_t length, scheduler_ending ending)
{
    town *t = (town *)user;
    character *c = (character *)speaker->user;
    bool go_on = line_add(c, text, length);
    if (ending == SCHEDULER_SPEAKS) return go_on;
    if (ending == SCHEDULER_FAILED) check_session(t, JAMBA_ERR_NUMERIC, speaker->session);
    replay_stop(t, c);
    line_print(t, c, ending);
    input_free(c->answers);
    c->answers = NULL;
    c->speaking = c->interrupted = false;
    t->silent++;
    return false;
}

/* ---- frames ------------------------------------------------------------------------------------- */

/* What happens in this frame: a player would do it; here it is drawn from the seed. */
static void happen(town *t)
{
    uint64_t drawn = mix(t->seed, (uint64_t)t->frame);
    if (t->frame % t->every == 0) {
        character *c = &t->characters[drawn % (uint64_t)t->count];
        input_add(c, -1, false, events[drawn / (uint64_t)t->count % EVENTS]);
    }
    for (int i = 0; t->bell && (t->frame + 1) % t->bell == 0 && i < t->count; i++)
        if (t->characters[i].speaking) character_stop(t, &t->characters[i]);
}

static void late_add(town *t, uint64_t spent)
{
    double late = spent > t->budget ? (double)(spent - t->budget) : 0;
    if (!tool_buffer_add(&t->late, &late, sizeof late)) tool_die(TOOL, "out of memory for the times of frames");
}

/* All that has to do with language in a frame. */
static void frame_run(town *t, bool eventful)
{
    uint64_t start = now_us(t), spent;
    double begin = tool_seconds();
    jamba_result result;
    if (eventful && !t->replay) happen(t);
    for (int i = 0; i < t->count; i++)
        if (t->characters[i].inputs && !t->characters[i].speaking) character_hear(t, &t->characters[i]);
    spent = now_us(t) - start;
    result = scheduler_frame(&t->crowd, spent < t->budget ? t->budget - spent : 1); /* at least a little */
    if (result != JAMBA_PENDING) check_session(t, result, t->crowd.desk);
    late_add(t, now_us(t) - start);
    t->working += (uint64_t)((tool_seconds() - begin) * 1e6);
    t->frame++;
}

/* Whether nobody speaks, and nothing waits for anybody. */
static bool silent(const town *t)
{
    for (int i = 0; i < t->count; i++)
        if (t->characters[i].inputs) return false;
    return t->silent == t->count;
}

/* Where a game would draw its picture. */
static void wait_for_frame(const town *t, double start, int64_t frames)
{
    double left = start + (double)frames * FRAME_US * 1e-6 - tool_seconds();
    struct timespec pause;
    if (t->tick || left <= 0) return;
    pause.tv_sec = (time_t)left;
    pause.tv_nsec = (long)((left - (double)pause.tv_sec) * 1e9);
    nanosleep(&pause, NULL);
}

static void play(town *t)
{
    double start = tool_seconds();
    for (int64_t i = 0; i < t->frames; i++) {
        frame_run(t, true);
        wait_for_frame(t, start, i + 1);
    }
    while (!t->save && !silent(t)) frame_run(t, false);
}

/* ---- saving and loading -------------------------------------------------------------------------- */

/* A file begins with the first, and a hash of all that comes then: the town, and zeros up to a multiple of 8 bytes. */
static const char SAVED[8] = { 'n', 'p', 'c', 't', 'o', 'w', 'n', '2' };
enum { SAVED_HEAD = 16, CHARACTER_BYTES = 100 /* at least */ };

/* Of frames, and of places in a timeline. */
static const uint64_t COUNT_MAX = (uint64_t)1 << 60;

static uint64_t saved_hash(const uint8_t *file, size_t size)
{
    return jmb_hash64(JMB_HASH_SEED, file + SAVED_HEAD, size - SAVED_HEAD);
}

static void save_text(tool_buffer *out, const char *text, size_t length)
{
    tool_buffer_u64(out, length);
    tool_buffer_add(out, text, length);
}

/* A session cannot be saved inside a token, so it works off its queue first. */
static void save_session(const town *t, tool_buffer *out, jamba_session *session)
{
    size_t size;
    check_session(t, jamba_step(session, 0), session);
    size = jamba_session_save(session, NULL, 0);
    tool_buffer_u64(out, size);
    if (tool_buffer_reserve(out, size)) out->size += jamba_session_save(session, out->data + out->size, size);
}

static void save_input(tool_buffer *out, const input *in)
{
    tool_buffer_u64(out, (uint64_t)(in->at + 1)); /* -1 is a place too */
    tool_buffer_u8(out, in->stops);
    save_text(out, in->text, strlen(in->text));
}

/* What it speaks about comes in front of what waits. */
static void save_inputs(tool_buffer *out, const character *c)
{
    uint32_t count = c->answers ? 1 : 0;
    for (const input *in = c->inputs; in; in = in->next) count++;
    tool_buffer_u32(out, count);
    if (c->answers) save_input(out, c->answers);
    for (const input *in = c->inputs; in; in = in->next) save_input(out, in);
}

static void save_character(const town *t, tool_buffer *out, const character *c)
{
    const jamba_text_stream *stream = &c->speaker.stream;
    tool_buffer_u64(out, (uint64_t)c->forgotten);
    tool_buffer_u64(out, c->speaker.sampler.seed);
    tool_buffer_u8(out, c->replied);
    tool_buffer_u8(out, c->speaking);
    tool_buffer_u32(out, (uint32_t)c->speaker.left);
    tool_buffer_add(out, stream->held, sizeof stream->held);
    tool_buffer_u8(out, (uint8_t)stream->held_count);
    tool_buffer_u8(out, (uint8_t)stream->started);
    save_text(out, c->line, c->length);
    save_inputs(out, c);
    save_session(t, out, c->speaker.session);
}

/* Zeros at the end, and the hash in front. */
static void save_close(tool_buffer *out)
{
    while (out->size % 8 != 0 && tool_buffer_u8(out, 0)) {}
    if (out->failed) tool_die(TOOL, "out of memory for a town of %zu bytes", out->size);
    tool_store_le(out->data + sizeof SAVED, saved_hash(out->data, out->size), 8);
}

/* Who is in which batch is no part of a town: nothing depends on it. */
static void town_save(const town *t)
{
    tool_buffer out = { NULL, 0, 0, false };
    tool_error error;
    tool_buffer_add(&out, SAVED, sizeof SAVED);
    tool_buffer_u64(&out, 0);
    tool_buffer_u32(&out, (uint32_t)t->count);
    tool_buffer_u64(&out, t->seed);
    tool_buffer_u64(&out, (uint64_t)t->frame);
    for (int i = 0; i < PERSONAS; i++) save_session(t, &out, t->personas[i]);
    for (int i = 0; i < t->count; i++) save_character(t, &out, &t->characters[i]);
    save_close(&out);
    if (!output_file(t->save, out.data, out.size, true, &error)) tool_die(TOOL, "%s", error.message);
    fprintf(stderr, "%s: %s holds the town in %.1f MB\n", TOOL, t->save, (double)out.size * 1e-6);
    tool_buffer_free(&out);
}

/* What is left of a saved town. */
typedef struct reader {
    const char *path;
    uint8_t *data;
    size_t size, at;
} reader;

static void read_check(const reader *in, bool good)
{
    if (!good) tool_die(TOOL, "%s: is damaged, cut off, or not a town that was saved here", in->path);
}

static const uint8_t *read_bytes(reader *in, uint64_t size)
{
    const uint8_t *bytes = in->data + in->at;
    read_check(in, size <= in->size - in->at);
    in->at += (size_t)size;
    return bytes;
}

static uint64_t read_number(reader *in, int bytes)
{
    const uint8_t *p = read_bytes(in, (uint64_t)bytes);
    uint64_t value = 0;
    while (bytes-- > 0) value = value << 8 | p[bytes];
    return value;
}

static uint64_t read_at_most(reader *in, int bytes, uint64_t most)
{
    uint64_t value = read_number(in, bytes);
    read_check(in, value <= most);
    return value;
}

/* Its contents are checked by the library: a damaged one, or one of another model, is refused. */
static void read_session(const town *t, reader *in, jamba_session *session)
{
    uint64_t size = read_number(in, 8);
    if (jamba_session_restore(session, read_bytes(in, size), (size_t)size) != JAMBA_OK)
        tool_die(TOOL, "%s: %s (%s)", in->path, jamba_session_error(session)->message, t->run.path);
}

/* At most LINE_ROOM bytes, and a terminating zero. */
static size_t read_text(reader *in, char *text)
{
    size_t length = (size_t)read_at_most(in, 8, LINE_ROOM);
    memcpy(text, read_bytes(in, length), length);
    text[length] = 0;
    read_check(in, strlen(text) == length);
    tool_clean_text(text);
    return length;
}

static void read_inputs(reader *in, character *c)
{
    for (uint64_t count = read_number(in, 4); count > 0; count--) {
        int64_t at = (int64_t)read_at_most(in, 8, COUNT_MAX) - 1;
        bool stops = read_at_most(in, 1, 1) != 0;
        char text[LINE_ROOM + 1];
        read_text(in, text);
        input_add(c, at, stops, text);
    }
}

/* In a session of its own, as large as a fork: what was shared with others is not any more. */
static void read_character(town *t, reader *in, character *c)
{
    jamba_text_stream *stream = &c->speaker.stream;
    c->forgotten = (int64_t)read_at_most(in, 8, COUNT_MAX);
    c->speaker.sampler.seed = read_number(in, 8);
    c->replied = read_at_most(in, 1, 1) != 0;
    c->speaking = read_at_most(in, 1, 1) != 0;
    c->speaker.left = (int32_t)read_at_most(in, 4, LONGEST);
    memcpy(stream->held, read_bytes(in, sizeof stream->held), sizeof stream->held);
    stream->held_count = (int32_t)read_at_most(in, 1, sizeof stream->held - 1);
    stream->started = (int32_t)read_at_most(in, 1, 1);
    c->length = read_text(in, c->line);
    read_inputs(in, c);
    c->speaker.session = session_create(t, tokens_of(c->persona) + ROOM, 1);
    adapt(t, c->speaker.session, c->persona);
    read_session(t, in, c->speaker.session);
    if (!c->speaking) return;
    read_check(in, c->inputs && jamba_logits(c->speaker.session));
    c->answers = input_take(c);
    t->silent--;
    scheduler_add(&t->crowd, &c->speaker);
}

static reader load_open(town *t)
{
    reader in = { t->load, NULL, 0, 0 };
    tool_error error;
    if (!tool_read_file(t->load, (size_t)1 << 40, &in.data, &in.size, &error)) tool_die(TOOL, "%s", error.message);
    read_check(&in, in.size >= SAVED_HEAD && in.size % 8 == 0 && memcmp(in.data, SAVED, sizeof SAVED) == 0
        && saved_hash(in.data, in.size) == jmb_load_u64(in.data + sizeof SAVED));
    in.at = SAVED_HEAD;
    t->count = (int)read_at_most(&in, 4, in.size / CHARACTER_BYTES < INT32_MAX ? in.size / CHARACTER_BYTES : INT32_MAX);
    read_check(&in, t->count > 0);
    t->seed = read_number(&in, 8);
    t->frame = (int64_t)read_at_most(&in, 8, COUNT_MAX);
    return in;
}

/* Nothing follows but what fills the last 8 bytes. */
static void load_close(reader *in)
{
    read_check(in, in->size - in->at < 8);
    free(in->data);
}

/* ---- from the beginning to the end -------------------------------------------------------------- */

/* A new town, or a saved one; then what is to happen in it. */
static void town_open(town *t)
{
    jamba_session_params params = session_params(t);
    reader saved = { NULL, NULL, 0, 0 };
    char *log = t->replay ? replay_open(t) : NULL;
    jamba_error error;
    if (t->load) saved = load_open(t);
    t->chats = has_chat_format(t->run.model);
    if (t->lora && jamba_adapter_load(&t->adapter, t->run.model, jamba_from_file(t->lora), &error) != JAMBA_OK)
        tool_die(TOOL, "%s: %s", t->lora, error.message);
    check(t, scheduler_open(&t->crowd, t->run.model, &params, WIDTH, &error), &error);
    t->crowd.say = on_say;
    t->crowd.user = t;
    for (int i = 0; i < PERSONAS; i++) {
        t->personas[i] = session_create(t, TURN_ROOM, 64);
        adapt(t, t->personas[i], t->personas[i]);
        if (t->load) read_session(t, &saved, t->personas[i]);
        else bake(t, persona_texts[i], t->personas[i]);
    }
    characters_make(t);
    for (int i = 0; i < t->count; i++) {
        if (t->load) read_character(t, &saved, &t->characters[i]);
        else character_fork(t, &t->characters[i]);
    }
    if (t->load) load_close(&saved);
    record_open(t);
    if (log) replay_fill(t, log);
}

static void town_close(town *t)
{
    scheduler_close(&t->crowd);
    for (int i = 0; i < t->count; i++) {
        character *c = &t->characters[i];
        jamba_session_free(c->speaker.session);
        input_free(c->answers);
        while (c->inputs) input_free(input_take(c));
    }
    free(t->characters);
    tool_buffer_free(&t->late);
    for (int i = 0; i < PERSONAS; i++) jamba_session_free(t->personas[i]);
    jamba_adapter_free(t->adapter);
    if (t->log && fclose(t->log) != 0) tool_die(TOOL, "%s: cannot write: %s", t->record, strerror(errno));
    run_close(&t->run);
}

static double kilobytes(const jamba_session *session)
{
    jamba_session_info info;
    const jamba_memory *m = &info.memory;
    jamba_session_describe(session, &info);
    return (double)(m->kv + m->state + m->marks + m->scratch) * 1e-3;
}

static void report(const town *t)
{
    double *late = (double *)(void *)t->late.data, all = 0;
    size_t frames = t->late.size / sizeof *late;
    for (int i = 0; i < t->count; i++) all += kilobytes(t->characters[i].speaker.session);
    fprintf(stderr, "%d characters: %.0f KB each, %.1f MB in all; %d personas: %.0f KB each; %.0f KB to work in\n",
        t->count, kilobytes(t->characters[0].speaker.session), all * 1e-3, (int)PERSONAS,
        kilobytes(t->personas[0]), kilobytes(t->crowd.desk));
    fprintf(stderr, "%llu tokens to hear, %llu said, %.0f ms of work\n", (unsigned long long)t->heard,
        (unsigned long long)t->crowd.said, (double)t->working * 1e-3);
    if (frames == 0) return;
    tool_sort(late, frames);
    fprintf(stderr, "%zu frames; over their %llu microseconds by p50 %.0f, p99 %.0f, at worst %.0f\n", frames,
        (unsigned long long)t->budget, tool_percentile(late, frames, 0.5), tool_percentile(late, frames, 0.99),
        tool_percentile(late, frames, 1));
}

static int64_t parse_number(const char *name, const char *value, int64_t low)
{
    return tool_argument_int(TOOL, USAGE, name, value, low, INT32_MAX);
}

static bool parse_option(town *t, const char *name, const char *value)
{
    const char **file = strcmp(name, "--save") == 0 ? &t->save : strcmp(name, "--load") == 0 ? &t->load
        : strcmp(name, "--lora") == 0 ? &t->lora
        : strcmp(name, "--record") == 0 ? &t->record : strcmp(name, "--replay") == 0 ? &t->replay : NULL;
    if (file && !value) tool_usage(TOOL, USAGE, "a file is missing after", name);
    if (file) *file = value;
    else if (strcmp(name, "--characters") == 0) t->count = (int)parse_number(name, value, 1);
    else if (strcmp(name, "--frames") == 0) t->frames = parse_number(name, value, 0);
    else if (strcmp(name, "--budget") == 0) t->budget = (uint64_t)parse_number(name, value, 1);
    else if (strcmp(name, "--every") == 0) t->every = parse_number(name, value, 1);
    else if (strcmp(name, "--bell") == 0) t->bell = parse_number(name, value, 1);
    else if (strcmp(name, "--seed") == 0) t->seed = (uint64_t)parse_number(name, value, 0);
    else if (strcmp(name, "--simulate") == 0) t->tick = (uint64_t)parse_number(name, value, 1);
    else return false;
    return true;
}

static void parse_arguments(town *t, char **argv)
{
    t->frames = 600;
    t->budget = 2000;
    t->every = 12;
    t->seed = 1;
    for (char **arg = argv + 1; *arg; arg++) {
        if ((*arg)[0] != '-') {
            if (t->run.path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
            t->run.path = *arg;
        } else if (parse_option(t, *arg, arg[1])) arg++;
        else tool_usage(TOOL, USAGE, "unknown option", *arg);
    }
    if (!t->run.path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (t->count && (t->load || t->replay))
        tool_usage(TOOL, USAGE, "the saved town or the log says how many --characters there are", NULL);
    if (t->load && t->record) tool_usage(TOOL, USAGE, "a log starts from the beginning: no --record with --load", NULL);
    if (t->load && t->replay) tool_usage(TOOL, USAGE, "a replay starts from the beginning: not with --load", NULL);
    if (!t->count) t->count = 12;
}

int main(int argc, char **argv)
{
    town t;
    (void)argc;
    memset(&t, 0, sizeof t);
    t.run.tool = TOOL;
    parse_arguments(&t, argv);
    run_load(&t.run, JAMBA_CPU_BEST);
    town_open(&t);
    play(&t);
    if (t.save) town_save(&t);
    report(&t);
    town_close(&t);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
