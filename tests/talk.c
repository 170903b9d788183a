/* talk.c - conversations: what say and reply feed, stop strings, going back, full contexts; scores and choices
 *
 * A scripted sampler makes the storyteller say given tokens. Random conversations run on a tiny hybrid whose chat
 * format opens replies with no token at all; CHATS=N in the environment runs N of them. */
#include "tiny.h"

enum { STORY_END = 5, TEXT_ROOM = 4096 };

static jamba_model *story, *tiny;
static char story_path[PATH_ROOM];

/* ---- sessions ---------------------------------------------------------------------------------------- */

static uint64_t ticks;

static jamba_session *session_open(const jamba_model *model, int32_t context, int32_t marks)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.context = context;
    params.marks = marks;
    params.threads = 1;
    params.now_us = clock_tick;
    params.now_user = &ticks;
    test_require(jamba_session_create(&session, model, &params, &error) == JAMBA_OK, "session", error.message);
    return session;
}

/* Everything of a session that a failed call must leave alone. */
typedef struct shot {
    jamba_session_info info;
    int32_t tokens[1024];
    jamba_turn turns[256];
    size_t count, turn_count;
    float *logits; /* NULL: none */
} shot;

static shot shot_take(const jamba_session *session)
{
    shot s;
    const int32_t *tokens = jamba_session_tokens(session, &s.count);
    const float *logits = jamba_logits(session);
    size_t size = (size_t)model_vocab(session->model) * sizeof *logits;
    jamba_session_describe(session, &s.info);
    test_require(s.count <= 1024, "a longer log than the test has room for", "");
    memcpy(s.tokens, tokens, s.count * sizeof *tokens);
    s.turn_count = jamba_turns(session, s.turns, 256);
    s.logits = logits ? (float *)malloc(size) : NULL;
    if (s.logits) memcpy(s.logits, logits, size);
    return s;
}

/* Frees the shot. */
static bool shot_same(shot *s, const jamba_session *session)
{
    shot now = shot_take(session);
    size_t size = (size_t)model_vocab(session->model) * sizeof *now.logits;
    bool same = s->count == now.count && memcmp(s->tokens, now.tokens, now.count * sizeof *now.tokens) == 0
        && s->info.position == now.info.position && s->info.marks == now.info.marks && s->turn_count == now.turn_count
        && (s->logits == NULL) == (now.logits == NULL) && (!now.logits || memcmp(s->logits, now.logits, size) == 0);
    size_t i;
    for (i = 0; same && i < now.turn_count; i++)
        same = s->turns[i].position == now.turns[i].position && s->turns[i].kind == now.turns[i].kind;
    free(s->logits);
    free(now.logits);
    s->logits = NULL;
    return same;
}

/* Finishes the queue. Whether the logits are those of a new session that evaluates the same tokens at once. */
static bool lawful(jamba_session *session)
{
    size_t count, size = (size_t)model_vocab(session->model) * sizeof(float);
    const int32_t *tokens = jamba_session_tokens(session, &count);
    jamba_session *plain = session_open(session->model, (int32_t)session->context, 0);
    bool same = jamba_step(session, 0) == JAMBA_OK && jamba_eval(plain, tokens, count) == JAMBA_OK;
    if (count == 0) same = jamba_logits(session) == NULL;
    else same = same && jamba_logits(session) && memcmp(jamba_logits(session), jamba_logits(plain), size) == 0;
    jamba_session_free(plain);
    return same;
}

static bool same_place(jamba_session *a, jamba_session *b)
{
    size_t a_count, b_count, size = (size_t)model_vocab(a->model) * sizeof(float);
    const int32_t *a_tokens = jamba_session_tokens(a, &a_count), *b_tokens = jamba_session_tokens(b, &b_count);
    return CHECK_THAT(a_count == b_count, "%zu tokens, not %zu", a_count, b_count)
        && CHECK(memcmp(a_tokens, b_tokens, a_count * sizeof *a_tokens) == 0)
        && CHECK(jamba_step(a, 0) == JAMBA_OK && jamba_step(b, 0) == JAMBA_OK)
        && CHECK(a_count == 0 || memcmp(jamba_logits(a), jamba_logits(b), size) == 0);
}

static int32_t fed_of(const jamba_session *session)
{
    size_t count;
    jamba_session_tokens(session, &count);
    return (int32_t)count;
}

static jamba_turn last_turn(const jamba_session *session)
{
    jamba_turn turn = { -1, JAMBA_TURN_SYSTEM };
    jamba_turns(session, &turn, 1);
    return turn;
}

/* ---- replies ------------------------------------------------------------------------------------------- */

/* A sampler that says given tokens, then the end of the turn. */
typedef struct actor {
    jamba_sampler sampler;
    int32_t tokens[256];
    size_t count, at;
} actor;

static void actor_filter(void *user, float *logits, int32_t vocab)
{
    actor *a = (actor *)user;
    int32_t only = a->at < a->count ? a->tokens[a->at] : STORY_END, i;
    a->at++;
    for (i = 0; i < vocab; i++)
        if (i != only) logits[i] = -INFINITY;
}

static void actor_learn(actor *a, const char *text)
{
    memset(a, 0, sizeof *a);
    CHECK(jamba_encode(story, text, strlen(text), 0, a->tokens, 256, &a->count, NULL) == JAMBA_OK);
    a->sampler.filter = actor_filter;
    a->sampler.filter_user = a;
}

typedef struct answer {
    char text[TEXT_ROOM];
    size_t size;
    int pieces, pending;
    jamba_result result;
} answer;

/* Whole characters only, and no call ends without text but the last. */
static answer reply_all(jamba_session *session, const jamba_reply_params *params)
{
    answer a;
    memset(&a, 0, sizeof a);
    for (;;) {
        const char *text = NULL;
        size_t length = 99;
        a.result = jamba_reply(session, params, &text, &length);
        if (!CHECK(text != NULL) || (a.result != JAMBA_OK && !CHECK(length == 0))) return a;
        if (a.result == JAMBA_PENDING && ++a.pending < STEPS_LIMIT) continue;
        if (a.result != JAMBA_OK || length == 0) return a;
        CHECK(jmb_utf8_prefix((const uint8_t *)text, length) == length);
        test_require(a.size + length < TEXT_ROOM, "a reply without end", "");
        memcpy(a.text + a.size, text, length);
        a.size += length;
        a.pieces++;
    }
}

static void say(jamba_session *session, const char *role, const char *content)
{
    jamba_result result = jamba_say(session, role, content);
    CHECK_THAT(result == JAMBA_OK, "say: %s", jamba_session_error(session)->message);
}

/* Text of the tokens from `begin` on, one by one; what stands before `from` does not count. */
static size_t stream_text(const jamba_session *session, int32_t from, int32_t begin, char text[TEXT_ROOM])
{
    jamba_text_stream stream;
    char piece[JAMBA_TEXT_MAX];
    size_t count, used = 0, size;
    const int32_t *tokens = jamba_session_tokens(session, &count);
    int32_t i;
    memset(&stream, 0, sizeof stream);
    for (i = from; i <= (int32_t)count; i++) {
        size = jamba_decode_next(session->model, &stream, i < (int32_t)count ? tokens[i] : -1, 0, piece);
        if (i < begin) continue;
        test_require(used + size < TEXT_ROOM, "a text without end", "");
        memcpy(text + used, piece, size);
        used += size;
    }
    text[used] = 0;
    return used;
}

/* Has the storyteller say `text`. */
static void act(jamba_session *session, const char *text)
{
    actor a;
    jamba_reply_params params;
    answer got;
    actor_learn(&a, text);
    memset(&params, 0, sizeof params);
    params.sampler = &a.sampler;
    got = reply_all(session, &params);
    CHECK_THAT(got.result == JAMBA_OK && strcmp(got.text, text) == 0, "%d '%s', not '%s'", (int)got.result, got.text,
        text);
}

static void check_tokens(
    const jamba_session *session, const jamba_message *messages, size_t count, unsigned flags, const char *what)
{
    int32_t want[512];
    size_t want_count, got_count;
    const int32_t *got = jamba_session_tokens(session, &got_count);
    CHECK(jamba_chat_encode(story, messages, count, flags, want, 512, &want_count, NULL) == JAMBA_OK);
    CHECK_THAT(got_count == want_count && memcmp(got, want, got_count * sizeof *got) == 0,
        "%s: %zu tokens, other than the %zu of the conversation written out", what, got_count, want_count);
}

/* ---- what is fed ----------------------------------------------------------------------------------------- */

static const jamba_message talk[] = { { "system", "Be short." }, { "user", "Hello!" },
    { "assistant", "Hi \xf0\x9f\x99\x82" }, { "user", "What is that?\nTell <|im_end|> me." }, { "assistant", "A dog." },
    { "user", "Oh" } };
enum { TALK = sizeof talk / sizeof talk[0] };

static bool is_reply(size_t turn)
{
    return strcmp(talk[turn].role, "assistant") == 0;
}

static void act_all(jamba_session *session, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        if (is_reply(i)) act(session, talk[i].content);
        else say(session, talk[i].role, talk[i].content);
    }
}

/* Turn by turn, the log is the whole conversation written out. */
static void test_whole(void)
{
    jamba_session *session = session_open(story, 512, 0);
    jamba_turn turns[TALK], last[2];
    int32_t places[TALK];
    size_t i;
    for (i = 0; i < TALK; i++) {
        places[i] = fed_of(session);
        if (is_reply(i)) {
            act(session, talk[i].content);
            continue;
        }
        say(session, talk[i].role, talk[i].content);
        check_tokens(session, talk, i + 1, JAMBA_CHAT_BEGIN, talk[i].content);
    }
    CHECK(jamba_turns(session, NULL, 0) == TALK && jamba_turns(session, turns, TALK) == TALK);
    for (i = 0; i < TALK; i++) {
        jamba_turn_kind kind = is_reply(i) ? JAMBA_TURN_REPLY : i == 0 ? JAMBA_TURN_SYSTEM : JAMBA_TURN_SAID;
        CHECK(turns[i].kind == kind);
        CHECK_THAT(kind == JAMBA_TURN_REPLY ? turns[i].position > places[i] : turns[i].position == places[i],
            "turn %zu is at %d", i, (int)turns[i].position);
    }
    CHECK(jamba_turns(session, last, 2) == TALK && memcmp(last, turns + TALK - 2, sizeof last) == 0);
    CHECK(jamba_turns(NULL, NULL, 0) == 0);
    CHECK(lawful(session));
    jamba_session_reset(session);
    CHECK(jamba_turns(session, NULL, 0) == 0);
    say(session, "user", "Hello!");
    check_tokens(session, talk + 1, 1, JAMBA_CHAT_BEGIN, "after reset");
    jamba_session_free(session);
}

/* The model may begin; several messages in a row; a reply that nobody lets end is closed by the next message. */
static void test_order(void)
{
    static const jamba_message first[] = { { "assistant", "Hi." }, { "user", "a" }, { "user", "b" } };
    static const jamba_message cut[] = { { "user", "a" }, { "assistant", "One" }, { "user", "b" } };
    jamba_session *session = session_open(story, 512, 0);
    jamba_reply_params params;
    const char *text;
    size_t length;
    actor a;
    act(session, "Hi.");
    say(session, "user", "a");
    say(session, "user", "b");
    check_tokens(session, first, 3, JAMBA_CHAT_BEGIN, "the model begins");
    jamba_session_reset(session);
    say(session, "user", "a");
    memset(&params, 0, sizeof params);
    actor_learn(&a, "One two three");
    params.sampler = &a.sampler;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_OK && length > 0);
    say(session, "user", "b");
    {
        int32_t one[8];
        size_t count;
        CHECK(jamba_encode(story, "One", 3, 0, one, 8, &count, NULL) == JAMBA_OK);
        if (count == 1 && a.tokens[0] == one[0]) check_tokens(session, cut, 3, JAMBA_CHAT_BEGIN, "a reply cut off");
        else CHECK_THAT(false, "the test needs a text whose first token is a word");
    }
    jamba_session_free(session);
}

/* ---- text ----------------------------------------------------------------------------------------------- */

static answer story_reply(int32_t marks, uint64_t budget, int32_t most, const char *const *stops, size_t stop_count,
    const char *text, int32_t *left)
{
    jamba_session *session = session_open(story, 512, marks);
    jamba_reply_params params;
    answer got;
    actor a;
    int32_t begin;
    memset(&params, 0, sizeof params);
    actor_learn(&a, text);
    params.sampler = &a.sampler;
    params.budget_us = budget;
    params.max_tokens = most;
    params.stops = stops;
    params.stop_count = stop_count;
    say(session, "user", "Hello!");
    got = reply_all(session, &params);
    begin = last_turn(session).position;
    if (left) *left = fed_of(session) - begin;
    CHECK(last_turn(session).kind == JAMBA_TURN_REPLY);
    CHECK(reply_all(session, &params).size == 0); /* an ended reply stays so */
    CHECK(lawful(session));
    jamba_session_free(session);
    return got;
}

static void test_pieces(void)
{
    static const char text[] = "caf\xc3\xa9 \xf0\x9f\x99\x82\xf0\x9f\x90\x95 \xe2\x82\xac.";
    answer whole = story_reply(0, 0, 0, NULL, 0, text, NULL), sliced = story_reply(0, 1, 0, NULL, 0, text, NULL);
    int32_t tokens[256], left;
    size_t count;
    CHECK(jamba_encode(story, text, strlen(text), 0, tokens, 256, &count, NULL) == JAMBA_OK);
    CHECK_THAT(strcmp(whole.text, text) == 0, "'%s'", whole.text);
    CHECK_THAT(strcmp(sliced.text, text) == 0, "'%s'", sliced.text);
    CHECK(whole.pending == 0 && sliced.pending > 10);
    CHECK_THAT((size_t)whole.pieces < count, "%d pieces of %zu tokens", whole.pieces, count);
    whole = story_reply(0, 0, 3, NULL, 0, "One two three four five six", &left);
    CHECK_THAT(left == 3 && strncmp("One two three four five six", whole.text, whole.size) == 0 && whole.size > 2,
        "%d tokens, '%s'", (int)left, whole.text);
    /* cut within a character: what is there of it becomes U+FFFD */
    whole = story_reply(0, 0, 2, NULL, 0, "\xf0\x9f\x99\x82", &left);
    CHECK_THAT(left == 2 && strstr(whole.text, "\xef\xbf\xbd") == whole.text, "'%s'", whole.text);
}

/* A reply that max_tokens has cut goes on after going back to where it stands. */
static void test_go_on(void)
{
    static const char text[] = "One two three four five six";
    jamba_session *session = session_open(story, 512, 0);
    jamba_reply_params params;
    answer first, second;
    actor a;
    memset(&params, 0, sizeof params);
    actor_learn(&a, text);
    params.sampler = &a.sampler;
    params.max_tokens = 3;
    say(session, "user", "Hello!");
    first = reply_all(session, &params);
    params.max_tokens = 0;
    CHECK(reply_all(session, &params).size == 0);
    CHECK(jamba_session_rewind(session, fed_of(session), NULL) == JAMBA_OK);
    second = reply_all(session, &params);
    memcpy(first.text + first.size, second.text, second.size + 1);
    CHECK_THAT(strcmp(first.text, text) == 0, "'%s'", first.text);
    jamba_session_free(session);
}

/* Half a character that was gone back from is forgotten, though as many tokens stand there now. */
static void test_other_tokens(void)
{
    jamba_session *session = session_open(story, 512, 0);
    jamba_reply_params params;
    const char *text;
    size_t length;
    int32_t begin, words[256];
    actor a;
    memset(&params, 0, sizeof params);
    actor_learn(&a, "\xf0\x9f\x99\x82");
    params.sampler = &a.sampler;
    params.budget_us = 1;
    say(session, "user", "Hello!");
    while (a.at < 2) CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_PENDING);
    begin = last_turn(session).position;
    CHECK(fed_of(session) == begin + 2);
    CHECK(jamba_session_rewind(session, begin, NULL) == JAMBA_OK);
    CHECK(jamba_encode(story, "One two", 7, 0, words, 256, &length, NULL) == JAMBA_OK && length >= 2);
    CHECK(jamba_feed(session, words, 2) == JAMBA_OK);
    actor_learn(&a, "three");
    params.budget_us = 0;
    CHECK(strcmp(reply_all(session, &params).text, "three") == 0);
    jamba_session_free(session);
}

static void check_stop(const char *text, const char *const *stops, size_t count, const char *want)
{
    int marks;
    for (marks = 0; marks < 4; marks += 3) {
        int32_t left, tokens[256];
        answer got = story_reply(marks, 0, 0, stops, count, text, &left);
        answer sliced = story_reply(marks, 1, 0, stops, count, text, NULL);
        size_t exact, length = strlen(want);
        CHECK_THAT(got.result == JAMBA_OK && strcmp(got.text, want) == 0, "'%s' gives '%s'", text, got.text);
        CHECK_THAT(strcmp(sliced.text, want) == 0, "'%s' in slices gives '%s'", text, sliced.text);
        CHECK(jamba_encode(story, text, strlen(text), 0, tokens, 256, &exact, NULL) == JAMBA_OK);
        /* taken back: no more tokens are left than have text that was given */
        if (marks && CHECK((size_t)left <= exact)) {
            char kept[TEXT_ROOM];
            size_t size = 0;
            CHECK(jamba_decode(story, tokens, (size_t)left, 0, kept, sizeof kept, &size, NULL) == JAMBA_OK);
            CHECK_THAT(size <= length && memcmp(kept, want, size) == 0, "'%s' keeps '%.*s'", text, (int)size, kept);
        }
    }
}

static void test_stops(void)
{
    static const char *const line[] = { "\n\n" }, *const word[] = { "three" }, *const two[] = { "xyz", "ee f" };
    static const char *const dog[] = { "\xf0\x9f\x90\x95" }, *const never[] = { "never", "\n" };
    static const char *const smile[] = { "i\xf0\x9f\x99\x82!" };
    static const char *const longest[] = { "0123456789012345678901234567890123456789012345678901234567890123" };
    check_stop("One two three four", word, 1, "One two ");
    check_stop("three four", word, 1, "");
    check_stop("One two thre four", word, 1, "One two thre four");
    check_stop("One two three four", two, 2, "One two thr");
    check_stop("One\n\ntwo", line, 1, "One");
    check_stop("One\ntwo\n", line, 1, "One\ntwo\n");
    check_stop("Hi \xf0\x9f\x99\x82\xf0\x9f\x90\x95 and so on", dog, 1, "Hi \xf0\x9f\x99\x82");
    check_stop("Hi\xf0\x9f\x99\x82! and so on", smile, 1, "H");
    check_stop("Hi\xf0\x9f\x99\x82? and so on", smile, 1, "Hi\xf0\x9f\x99\x82? and so on");
    check_stop("One two three four", never, 2, "One two three four");
    check_stop("a0123456789012345678901234567890123456789012345678901234567890123b", longest, 1, "a");
    check_stop("a01234567890123456789012345678901234567890123456789012345678901x", longest, 1,
        "a01234567890123456789012345678901234567890123456789012345678901x");
}

/* Taking a stop string back costs what follows the last mark of the reply, and the next message is as if it had never
 * been there. */
static void test_taken_back(void)
{
    static const char *const stops[] = { "\n\nUser:" };
    static const jamba_message want[] = { { "user", "Hello!" }, { "assistant", "Hi there." }, { "user", "Bye" } };
    jamba_session *session = session_open(story, 512, 3), *plain = session_open(story, 512, 0);
    jamba_reply_params params;
    actor a;
    memset(&params, 0, sizeof params);
    actor_learn(&a, "Hi there.\n\nUser: no");
    params.sampler = &a.sampler;
    params.stops = stops;
    params.stop_count = 1;
    say(session, "user", "Hello!");
    CHECK(strcmp(reply_all(session, &params).text, "Hi there.") == 0);
    say(session, "user", "Bye");
    check_tokens(session, want, 3, JAMBA_CHAT_BEGIN, "taken back");
    say(plain, "user", "Hello!");
    act(plain, "Hi there.");
    say(plain, "user", "Bye");
    same_place(session, plain);
    jamba_session_free(session);
    jamba_session_free(plain);
}

static void test_special(void)
{
    jamba_session *session = session_open(story, 512, 0);
    jamba_reply_params params;
    actor a;
    memset(&params, 0, sizeof params);
    actor_learn(&a, "One two");
    a.tokens[a.count++] = 4; /* <|im_start|> */
    params.sampler = &a.sampler;
    say(session, "user", "Hello!");
    CHECK(strcmp(reply_all(session, &params).text, "One two") == 0);
    CHECK(jamba_session_rewind(session, last_turn(session).position, NULL) == JAMBA_OK);
    a.at = 0;
    params.flags = JAMBA_TEXT_SPECIAL;
    CHECK(strcmp(reply_all(session, &params).text, "One two<|im_start|>") == 0);
    jamba_session_free(session);
}

/* ---- going back ------------------------------------------------------------------------------------------ */

/* Another reply, and another message, have the bits of a session that knows no other. */
static void test_back(int32_t marks)
{
    jamba_session *session = session_open(story, 512, marks), *plain = session_open(story, 512, 0);
    jamba_turn turns[TALK];
    int32_t replay;
    act_all(session, 5);
    CHECK(jamba_turns(session, turns, TALK) == 5);
    CHECK(jamba_session_rewind(session, turns[4].position, &replay) == JAMBA_OK);
    CHECK_THAT(marks < 8 || replay == 0, "%d tokens for another reply", (int)replay);
    CHECK(jamba_turns(session, NULL, 0) == 5);
    act(session, "A cat.");
    act_all(plain, 4);
    act(plain, "A cat.");
    same_place(session, plain);
    CHECK(jamba_session_rewind(session, turns[3].position, &replay) == JAMBA_OK);
    CHECK_THAT(marks < 8 || replay <= 1, "%d tokens for another message", (int)replay);
    CHECK(jamba_turns(session, NULL, 0) == 3);
    say(session, "user", "What else?");
    jamba_session_reset(plain);
    act_all(plain, 3);
    say(plain, "user", "What else?");
    same_place(session, plain);
    CHECK(jamba_session_rewind(session, 0, &replay) == JAMBA_OK && jamba_turns(session, NULL, 0) == 0);
    act_all(session, TALK);
    check_tokens(session, talk, TALK, JAMBA_CHAT_BEGIN, "from the start again");
    jamba_session_free(session);
    jamba_session_free(plain);
}

/* Marks come at each turn; however many follow, the one after the system messages stays. */
static void test_marks(void)
{
    jamba_session *session = session_open(story, 1024, 3);
    jamba_session_info info;
    jamba_turn turns[4];
    int32_t replay;
    int i;
    act_all(session, 2);
    jamba_turns(session, turns, 4);
    for (i = 0; i < 12; i++) {
        act(session, "Yes. No. Perhaps.");
        say(session, "user", "Really?");
    }
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    jamba_session_describe(session, &info);
    CHECK_THAT(info.marks == 3, "%d marks", (int)info.marks);
    CHECK(jamba_session_rewind(session, turns[1].position, &replay) == JAMBA_OK);
    CHECK_THAT(replay == 0, "%d tokens replayed", (int)replay);
    jamba_session_free(session);
    session = session_open(story, 1024, 8);
    act_all(session, 5);
    jamba_session_describe(session, &info);
    CHECK_THAT(info.marks == 4, "%d marks of two messages and two replies", (int)info.marks);
    jamba_session_free(session);
}

/* A fork goes on with the reply, held text and all; so does the source. */
static void test_fork(void)
{
    static const char *const stops[] = { "two three!" };
    jamba_session *session = session_open(story, 512, 0), *fork;
    jamba_reply_params params;
    answer rest;
    const char *text;
    size_t length = 0, pieces = 0;
    actor a, b;
    memset(&params, 0, sizeof params);
    actor_learn(&a, "One two three four");
    params.stops = stops;
    params.stop_count = 1;
    params.sampler = &a.sampler;
    say(session, "user", "Hello!");
    while (a.at < 2) CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_OK && ++pieces < 10);
    CHECK(jamba_session_fork(&fork, session, 200, NULL) == JAMBA_OK);
    b = a;
    b.sampler.filter_user = &b;
    rest = reply_all(session, &params);
    params.sampler = &b.sampler;
    CHECK_THAT(strcmp(reply_all(fork, &params).text, rest.text) == 0 && rest.size > 10, "'%s'", rest.text);
    same_place(session, fork);
    CHECK(jamba_turns(fork, NULL, 0) == jamba_turns(session, NULL, 0));
    jamba_session_free(session);
    jamba_session_free(fork);
}

/* What is left of a reply when it goes on from a saved state in another session, with a copy of its actor. */
static answer reply_elsewhere(const uint8_t *bytes, size_t size, actor a, jamba_reply_params params, bool ended)
{
    jamba_session *other = session_open(story, 512, 0);
    size_t at = a.at;
    answer rest;
    a.sampler.filter_user = &a;
    params.sampler = &a.sampler;
    memset(other->reply.text, '?', JMB_REPLY_TEXT); /* or what an earlier session left there would do */
    CHECK(jamba_session_restore(other, bytes, size) == JAMBA_OK);
    rest = reply_all(other, &params);
    CHECK(!ended || a.at == at); /* nothing is drawn */
    jamba_session_free(other);
    return rest;
}

/* Saved wherever it is between tokens: with a byte or more held back for a stop string, and ended, which it stays. */
static void check_saved(const char *words, const char *stop)
{
    jamba_session *session = session_open(story, 512, 0);
    jamba_reply_params params;
    jamba_result result = JAMBA_PENDING;
    const char *text;
    size_t length = 0, said = 0, saves = 0;
    actor a;
    memset(&params, 0, sizeof params);
    actor_learn(&a, words);
    params.stops = &stop;
    params.stop_count = 1;
    params.sampler = &a.sampler;
    params.budget_us = 1;
    say(session, "user", "Hello!");
    while (result == JAMBA_PENDING || length > 0) {
        size_t size;
        uint8_t *bytes;
        result = jamba_reply(session, &params, &text, &length);
        said += length;
        size = jamba_session_save(session, NULL, 0);
        if (size == 0) continue; /* in the middle of a token */
        bytes = (uint8_t *)malloc(size);
        if (CHECK(jamba_session_save(session, bytes, size) == size)) {
            answer rest = reply_elsewhere(bytes, size, a, params, result == JAMBA_OK && length == 0);
            CHECK_THAT(strcmp(rest.text, words + said) == 0, "'%s' instead of '%s'", rest.text, words + said);
            saves++;
        }
        free(bytes);
    }
    CHECK(result == JAMBA_OK && said == strlen(words) && saves > a.count);
    jamba_session_free(session);
}

static void test_saved(void)
{
    check_saved("One two three four", "rx");
    check_saved("One two three four", "r?!");
    check_saved("One two three four", "four x");
}

/* ---- full contexts ---------------------------------------------------------------------------------------- */

static void test_full_say(void)
{
    char longer[4000];
    jamba_session *session = session_open(story, 64, 2);
    shot before;
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    say(session, "user", "Hello!");
    act(session, "Hi.");
    before = shot_take(session);
    CHECK(jamba_say(session, "user", longer) == JAMBA_ERR_CONTEXT);
    CHECK(jamba_say(session, "user", "\xff") == JAMBA_ERR_TEXT);
    CHECK(jamba_say(session, "poet", "a") == JAMBA_ERR_UNSUPPORTED);
    CHECK(jamba_say(session, NULL, "a") == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_say(session, "user", NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_say(NULL, "user", "a") == JAMBA_ERR_ARGUMENT);
    CHECK(shot_same(&before, session));
    jamba_session_free(session);
}

/* A session of the messages [from, to) of talk as they stand in the kept part of a restart. */
static void act_some(jamba_session *session, size_t head, size_t from, size_t to)
{
    size_t i;
    for (i = 0; i < to; i = i + 1 == head ? from : i + 1) {
        if (is_reply(i)) act(session, talk[i].content);
        else say(session, talk[i].role, talk[i].content);
    }
}

/* The system message and the last exchanges: the bits of a session that was told nothing else. */
static void test_restart(int32_t marks)
{
    jamba_session *session = session_open(story, 512, marks), *plain = session_open(story, 512, 0);
    jamba_session_info info;
    int32_t replay = -1, before;
    jamba_turn turns[4];
    shot whole;
    act_all(session, TALK);
    before = fed_of(session);
    whole = shot_take(session);
    CHECK(jamba_session_restart(session, 0, &replay) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_restart(session, 3, &replay) == JAMBA_ERR_CONTEXT);
    CHECK(jamba_session_restart(session, 99, &replay) == JAMBA_ERR_CONTEXT && replay == -1);
    CHECK(shot_same(&whole, session));
    CHECK(jamba_session_restart(session, 2, &replay) == JAMBA_OK && fed_of(session) < before);
    jamba_session_describe(session, &info);
    CHECK(info.pending == replay);
    act_some(plain, 1, 3, TALK);
    CHECK(jamba_turns(plain, turns, 4) == 4 && turns[1].kind == JAMBA_TURN_SAID);
    CHECK_THAT(replay == fed_of(plain) - (marks ? turns[1].position : 0), "%d tokens again", (int)replay);
    same_place(session, plain);
    CHECK(jamba_turns(session, NULL, 0) == jamba_turns(plain, NULL, 0));
    CHECK(jamba_session_restart(session, 1, &replay) == JAMBA_OK);
    jamba_session_reset(plain);
    act_some(plain, 1, 5, TALK);
    same_place(session, plain);
    act(session, "So be it.");
    act(plain, "So be it.");
    same_place(session, plain);
    jamba_session_free(session);
    jamba_session_free(plain);
}

/* Without a system message what is kept begins as a conversation does; where the model began, behind its greeting. */
static void test_restart_heads(void)
{
    static const jamba_message plain[] = { { "user", "Really?" }, { "assistant", "Yes." }, { "user", "Oh" } };
    static const jamba_message greeting[] = { { "assistant", "Welcome!" }, { "user", "Oh" } };
    jamba_session *session = session_open(story, 512, 2);
    int32_t baked[3] = { 1, 700, 701 }, replay;
    size_t count;
    say(session, "user", "Hello!");
    CHECK(jamba_session_restart(session, 1, NULL) == JAMBA_ERR_CONTEXT);
    act(session, "Hi.");
    say(session, "user", "Really?");
    act(session, "Yes.");
    say(session, "user", "Oh");
    CHECK(jamba_session_restart(session, 2, NULL) == JAMBA_OK);
    check_tokens(session, plain, 3, JAMBA_CHAT_BEGIN, "no system message");
    CHECK(lawful(session));
    jamba_session_reset(session);
    act(session, "Welcome!");
    say(session, "user", "Hello!");
    act(session, "Hi.");
    say(session, "user", "Oh");
    CHECK(jamba_session_restart(session, 1, NULL) == JAMBA_OK);
    check_tokens(session, greeting, 2, JAMBA_CHAT_BEGIN, "a greeting");
    CHECK(lawful(session));
    jamba_session_reset(session);
    CHECK(jamba_eval(session, baked, 3) == JAMBA_OK);
    say(session, "user", "Hello!");
    act(session, "Hi.");
    say(session, "user", "Oh");
    CHECK(jamba_session_restart(session, 1, &replay) == JAMBA_OK && replay == fed_of(session) - 3);
    CHECK(memcmp(jamba_session_tokens(session, &count), baked, sizeof baked) == 0 && lawful(session));
    jamba_session_reset(session);
    CHECK(jamba_session_restart(session, 1, NULL) == JAMBA_ERR_CONTEXT && jamba_session_restart(NULL, 1, NULL) < 0);
    jamba_session_free(session);
}

/* What a saved state has left out cannot be read again. */
static void test_restart_unknown(void)
{
    jamba_session *session = session_open(story, 512, 8);
    jamba_save_params params;
    size_t size;
    uint8_t *state;
    shot before;
    act_all(session, 5);
    memset(&params, 0, sizeof params);
    params.no_tokens = true;
    params.marks = true;
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    size = jamba_session_save_as(session, &params, NULL, 0);
    state = (uint8_t *)malloc(size + 1);
    CHECK(size > 0 && jamba_session_save_as(session, &params, state, size) == size);
    CHECK(jamba_session_restore(session, state, size) == JAMBA_OK);
    before = shot_take(session);
    CHECK(jamba_session_restart(session, 1, NULL) < 0);
    CHECK(shot_same(&before, session));
    say(session, "user", "Oh");
    act(session, "Yes.");
    say(session, "user", "So?");
    before = shot_take(session);
    CHECK(jamba_session_restart(session, 3, NULL) < 0); /* which leaves nothing out */
    CHECK(shot_same(&before, session));
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    free(state);
    jamba_session_free(session);
}

/* A long game: replies that run into the end of the context go on after a restart, and lose no letter. */
static void test_long_game(void)
{
    static const char text[] = "One two three four five six seven eight \xf0\x9f\x99\x82 nine ten.";
    jamba_session *session = session_open(story, 120, 3);
    int full = 0, i;
    say(session, "system", "Be short.");
    for (i = 0; i < 30; i++) {
        jamba_reply_params params;
        answer got;
        size_t size;
        actor a;
        actor_learn(&a, text);
        memset(&params, 0, sizeof params);
        params.sampler = &a.sampler;
        params.budget_us = i % 2 ? 3 : 0;
        if (jamba_say(session, "user", "And then?") != JAMBA_OK) {
            CHECK(jamba_session_restart(session, 1, NULL) == JAMBA_OK);
            say(session, "user", "And then?");
            full++;
        }
        got = reply_all(session, &params);
        if (got.result == JAMBA_ERR_CONTEXT) {
            uint64_t seed = a.sampler.seed;
            size_t at = a.at;
            shot before = shot_take(session);
            CHECK(reply_all(session, &params).result == JAMBA_ERR_CONTEXT && a.at == at && a.sampler.seed == seed);
            CHECK(shot_same(&before, session));
            CHECK(jamba_session_restart(session, 1, NULL) == JAMBA_OK);
            size = got.size;
            got = reply_all(session, &params);
            memmove(got.text + size, got.text, got.size + 1);
            memcpy(got.text, text, size);
            full++;
        }
        CHECK_THAT(got.result == JAMBA_OK && strcmp(got.text, text) == 0, "turn %d: '%s'", i, got.text);
        CHECK(i % 5 || lawful(session));
    }
    CHECK_THAT(full > 5, "full only %d times", full);
    jamba_session_free(session);
}

/* ---- errors ------------------------------------------------------------------------------------------------ */

static void refuse_all(void *user, float *logits, int32_t vocab)
{
    int32_t i;
    (void)user;
    for (i = 0; i < vocab; i++) logits[i] = -INFINITY;
}

typedef struct inside {
    jamba_session *session;
    int refused;
} inside;

static void call_back(void *user, float *logits, int32_t vocab)
{
    inside *in = (inside *)user;
    const char *text;
    size_t length;
    int32_t token = 7, choice;
    float score;
    const char *option = "a";
    (void)logits;
    (void)vocab;
    in->refused += jamba_say(in->session, "user", "a") == JAMBA_ERR_ARGUMENT;
    in->refused += jamba_reply(in->session, NULL, &text, &length) == JAMBA_ERR_ARGUMENT;
    in->refused += jamba_session_restart(in->session, 1, NULL) == JAMBA_ERR_ARGUMENT;
    in->refused += jamba_score(in->session, &token, 1, &score) == JAMBA_ERR_ARGUMENT;
    in->refused += jamba_choose(in->session, &option, 1, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT;
}

static void test_errors(void)
{
    static const char *const bad[][1] = { { "" }, { NULL }, { "\xff" }, { "\xe2\x82" },
        { "01234567890123456789012345678901234567890123456789012345678901234" } };
    jamba_session *session = session_open(story, 512, 2);
    jamba_reply_params params;
    jamba_sampler sampler;
    const char *text;
    size_t length, i;
    shot before;
    inside in = { NULL, 0 };
    memset(&params, 0, sizeof params);
    memset(&sampler, 0, sizeof sampler);
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    before = shot_take(session);
    CHECK(jamba_reply(NULL, &params, &text, &length) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_reply(session, &params, NULL, &length) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_reply(session, &params, &text, NULL) == JAMBA_ERR_ARGUMENT);
    params.stop_count = 1;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_ERR_ARGUMENT);
    for (i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        params.stops = bad[i];
        CHECK_THAT(jamba_reply(session, &params, &text, &length) == JAMBA_ERR_ARGUMENT && length == 0, "stop %zu", i);
    }
    params.stop_count = 0;
    params.max_tokens = -1;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_ERR_ARGUMENT);
    params.max_tokens = 0;
    params.sampler = &sampler;
    sampler.temperature = -1;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_ERR_ARGUMENT);
    CHECK(shot_same(&before, session));
    sampler.temperature = 1;
    sampler.filter = refuse_all;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_ERR_FILTER && length == 0);
    in.session = session;
    sampler.filter = call_back;
    sampler.filter_user = &in;
    CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_OK && in.refused == 5);
    jamba_session_reset(session);
    CHECK(jamba_reply(session, NULL, &text, &length) == JAMBA_OK && length > 0); /* the model begins */
    jamba_session_free(session);
}

/* A model without a chat format goes on with the text; what is fed behind a reply gets one of its own. */
static void test_completion(void)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    jamba_model *model = NULL;
    jamba_session *session;
    jamba_reply_params params;
    int32_t tokens[64], begin = 0, replay;
    size_t count, size;
    answer got;
    char text[TEXT_ROOM];
    int i;
    tiny_write(temp_path(folder, "plain"), false);
    if (convert(folder, "plain", "f32", path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (!CHECK(model != NULL)) return;
    session = session_open(model, 256, 2);
    memset(&params, 0, sizeof params);
    params.max_tokens = 9;
    CHECK(reply_all(session, &params).result == JAMBA_ERR_ARGUMENT && fed_of(session) == 0);
    CHECK(jamba_say(session, "user", "a") == JAMBA_ERR_UNSUPPORTED);
    for (i = 0; i < 3; i++) {
        unsigned flags = i == 0 ? (unsigned)JAMBA_TEXT_BOS : 0;
        CHECK(jamba_encode(model, "abcd efgh", 9, flags, tokens, 64, &count, NULL) == JAMBA_OK);
        CHECK(jamba_feed(session, tokens, count) == JAMBA_OK);
        CHECK(jamba_step(session, 0) == JAMBA_OK); /* nothing opens the reply: its mark is made at once */
        begin = fed_of(session);
        got = reply_all(session, &params);
        CHECK_THAT(got.result == JAMBA_OK && fed_of(session) <= begin + 9, "%d", (int)got.result);
        CHECK(jamba_turns(session, NULL, 0) == (size_t)i + 1 && last_turn(session).position == begin);
        size = stream_text(session, 0, begin, text);
        CHECK_THAT(size == got.size && memcmp(text, got.text, size) == 0, "'%s', not '%s'", text, got.text);
    }
    CHECK(jamba_session_rewind(session, begin, &replay) == JAMBA_OK && replay == 0);
    CHECK(lawful(session));
    jamba_session_free(session);
    jamba_model_free(model);
}

/* ---- log-probabilities ------------------------------------------------------------------------------------- */

static double log_sum(const float *logits, size_t vocab)
{
    double top = (double)logits[0], sum = 0;
    size_t i;
    for (i = 1; i < vocab; i++)
        if ((double)logits[i] > top) top = (double)logits[i];
    for (i = 0; i < vocab; i++) sum += exp((double)logits[i] - top);
    return top + log(sum);
}

/* The logits are at most 40 here: 40 2^-24 for each of two differences, and the logarithm's own. */
static const double LOGPROB_BOUND = 6e-6;

static void test_top(void)
{
    jamba_session *session = session_open(story, 64, 0);
    size_t vocab = (size_t)model_vocab(story), i, n;
    jamba_candidate *all = (jamba_candidate *)malloc(vocab * sizeof *all), few[10];
    const float *logits;
    double norm, worst = 0, mass = 0;
    CHECK(jamba_top(session, all, 5) == 0 && jamba_top(NULL, all, 5) == 0);
    say(session, "user", "Hello!");
    CHECK(jamba_top(session, all, 5) == 0 && jamba_step(session, 0) == JAMBA_OK);
    logits = jamba_logits(session);
    norm = log_sum(logits, vocab);
    CHECK(jamba_top(session, all, vocab + 7) == vocab && jamba_top(session, few, 10) == 10);
    CHECK(jamba_top(session, NULL, 10) == 0 && jamba_top(session, few, 0) == 0);
    CHECK(memcmp(all, few, sizeof few) == 0 && few[0].token == jamba_sample(session, NULL));
    for (i = 0; i < vocab; i++) {
        double off = fabs((double)all[i].logprob - ((double)logits[all[i].token] - norm));
        if (off > worst) worst = off;
        mass += exp((double)all[i].logprob);
        if (i == 0) continue;
        CHECK(all[i].logprob < all[i - 1].logprob
            || (all[i].logprob == all[i - 1].logprob && all[i].token > all[i - 1].token));
    }
    CHECK_THAT(worst < LOGPROB_BOUND, "off by %g", worst);
    CHECK_NEAR(mass, 1, 1e-5);
    for (n = 1; n < 40; n++) {
        jamba_candidate some[40];
        CHECK(jamba_top(session, some, n) == n && memcmp(some, all, n * sizeof *some) == 0);
    }
    free(all);
    jamba_session_free(session);
}

/* Equal logits come by number, and a flat distribution has the logarithm of the vocabulary. */
static void test_top_ties(void)
{
    jamba_session *session = session_open(story, 64, 0);
    jamba_candidate out[2048];
    size_t vocab = (size_t)model_vocab(story), i;
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK && vocab == 2048);
    for (i = 0; i < vocab; i++) session->logits[i] = i % 2 ? 3.0f : 3.5f;
    CHECK(jamba_top(session, out, vocab) == vocab);
    for (i = 0; i < vocab; i++) CHECK(out[i].token == (int32_t)(i < 1024 ? 2 * i : 2 * (i - 1024) + 1));
    for (i = 0; i < vocab; i++) session->logits[i] = -7;
    CHECK(jamba_top(session, out, 1) == 1);
    CHECK_NEAR((double)out[0].logprob, -log(2048), 1e-6);
    session->logits[77] = INFINITY;
    CHECK(jamba_top(session, out, 1) == 0);
    jamba_session_free(session);
}

static void test_log(void)
{
    uint64_t seed = 1, mass;
    double worst = 0;
    int i;
    for (i = 0; i < 200000; i++) {
        uint64_t r = random_next(&seed);
        double want, got;
        mass = ((uint64_t)1 << 40) + (r >> 24 >> r % 24) * (i % 3 ? 1 : 1024);
        want = log((double)mass / 1099511627776.0);
        got = (double)jmb_log_mass(mass);
        if (fabs(got - want) / (want + 0.25) > worst) worst = fabs(got - want) / (want + 0.25);
    }
    CHECK(jmb_log_mass((uint64_t)1 << 40) == 0.0f);
    CHECK_THAT(worst < 4e-7, "error %g", worst); /* 2^-24 of the mass, and twice that relative to the logarithm */
}

static size_t story_tokens(const char *text, int32_t *tokens)
{
    size_t count;
    CHECK(jamba_encode(story, text, strlen(text), 0, tokens, 256, &count, NULL) == JAMBA_OK);
    return count;
}

static void count_rows(void *user, int32_t position, const float *logits)
{
    (void)position;
    (void)logits;
    ++*(int *)user;
}

static void test_score(void)
{
    static const char text[] = " there was a little dog who had a boat and a red ball.";
    jamba_session *session = session_open(story, 512, 0), *plain = session_open(story, 512, 0), *rows;
    jamba_session_params params;
    size_t vocab = (size_t)model_vocab(story), count, i;
    int32_t tokens[256];
    float scores[256], chunked[256];
    int seen = 0;
    shot before;
    count = story_tokens(text, tokens);
    CHECK(jamba_score(session, tokens, count, scores) == JAMBA_ERR_ARGUMENT && fed_of(session) == 0);
    say(session, "user", "Hello!");
    say(plain, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_step(plain, 0) == JAMBA_OK);
    before = shot_take(session);
    CHECK(jamba_score(session, tokens, 600, scores) == JAMBA_ERR_CONTEXT);
    CHECK(jamba_score(session, NULL, 3, scores) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_score(session, tokens, 3, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_score(session, tokens, 0, NULL) == JAMBA_OK);
    CHECK(shot_same(&before, session));
    CHECK(jamba_score(session, tokens, count, scores) == JAMBA_OK);
    for (i = 0; i < count; i++) {
        const float *logits = jamba_logits(plain);
        CHECK_NEAR((double)scores[i], (double)logits[tokens[i]] - log_sum(logits, vocab), LOGPROB_BOUND);
        CHECK(jamba_eval(plain, &tokens[i], 1) == JAMBA_OK);
    }
    same_place(session, plain);
    memset(&params, 0, sizeof params);
    params.context = 512;
    params.chunk = 5;
    params.on_logits = count_rows;
    params.logits_user = &seen;
    CHECK(jamba_session_create(&rows, story, &params, NULL) == JAMBA_OK);
    say(rows, "user", "Hello!");
    CHECK(jamba_step(rows, 0) == JAMBA_OK && jamba_score(rows, tokens, count, chunked) == JAMBA_OK);
    CHECK(memcmp(scores, chunked, count * sizeof *scores) == 0 && seen == fed_of(rows));
    same_place(session, rows);
    jamba_session_free(session);
    jamba_session_free(plain);
    jamba_session_free(rows);
}

/* Equal bits whatever the instruction set and the caller's rounding. */
static void test_score_everywhere(void)
{
    static const jamba_cpu cpus[] = { JAMBA_CPU_SCALAR, JAMBA_CPU_AVX2, JAMBA_CPU_AVX512, JAMBA_CPU_NEON };
    jamba_candidate want[50], got[50];
    jamba_session *session = session_open(story, 64, 0);
    size_t i;
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_top(session, want, 50) == 50);
    jamba_session_free(session);
    for (i = 0; i < sizeof cpus / sizeof *cpus; i++) {
        jamba_model *model = load_for_cpu(story_path, cpus[i]);
        if (!model) continue;
        session = session_open(model, 64, 0);
        say(session, "user", "Hello!");
        CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_top(session, got, 50) == 50);
        CHECK_THAT(memcmp(want, got, sizeof got) == 0, "other bits on cpu %d", (int)cpus[i]);
        jamba_session_free(session);
        jamba_model_free(model);
    }
}

/* ---- choices ----------------------------------------------------------------------------------------------- */

static const char *const options[] = { "go north\"", "go south\"", "go\"", "take the lamp\"", "take the little lamp\"",
    "go north\"", "go", "caf\xc3\xa9", "t" };
enum { OPTIONS = sizeof options / sizeof options[0] };

static float score_alone(const jamba_session *session, const char *option)
{
    jamba_session *fork;
    int32_t tokens[256];
    float scores[256], sum = 0;
    size_t count = story_tokens(option, tokens), i;
    if (!CHECK(jamba_session_fork(&fork, session, 256, NULL) == JAMBA_OK)) return 0;
    CHECK(jamba_score(fork, tokens, count, scores) == JAMBA_OK);
    for (i = 0; i < count; i++) sum += scores[i];
    jamba_session_free(fork);
    return sum;
}

static void test_choose(void)
{
    jamba_session *session = session_open(story, 300, 2);
    float scores[OPTIONS], few[2];
    int32_t choice = -1, best = 0, i;
    shot before;
    act_all(session, 4);
    CHECK(jamba_choose(session, options, OPTIONS, NULL, scores, &choice) == JAMBA_ERR_ARGUMENT); /* no logits */
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    before = shot_take(session);
    CHECK(jamba_choose(session, options, OPTIONS, NULL, scores, &choice) == JAMBA_OK);
    CHECK(shot_same(&before, session));
    for (i = 0; i < OPTIONS; i++) {
        float alone = score_alone(session, options[i]);
        CHECK_THAT(alone == scores[i], "'%s': %.9g, alone %.9g", options[i], (double)scores[i], (double)alone);
        if (scores[i] > scores[best]) best = i;
    }
    CHECK_THAT(choice == best, "%d, not %d", (int)choice, (int)best);
    CHECK(jamba_choose(session, options + 1, 2, NULL, few, &choice) == JAMBA_OK);
    CHECK(few[0] == scores[1] && few[1] == scores[2] && jamba_choose(session, options, 1, NULL, NULL, &choice) == 0);
    CHECK(choice == 0);
    act(session, "Hm."); /* and it goes on as ever */
    CHECK(lawful(session));
    jamba_session_free(session);
}

static int passes;

static void count_embed(const jmb_pass *p, const jmb_op *op, uint32_t task)
{
    passes += task == 0;
    jmb_kernels_for(JAMBA_CPU_SCALAR)->run[JMB_OP_EMBED](p, op, task);
}

static int choice_passes(jamba_session *session, const char *const *given, size_t count)
{
    int32_t choice;
    passes = 0;
    CHECK(jamba_choose(session, given, count, NULL, NULL, &choice) == JAMBA_OK);
    return passes;
}

/* The branches of a level go through the weights together: as many passes for nine options as for the longest. */
static void test_choose_together(void)
{
    static const char *const nine[] = { "red cat and a dog", "red cat", "red dog", "big cat", "big cat sat", "big dog",
        "old cat", "old dog", "old dog and so on and on" };
    jamba_session *session = session_open(story, 64, 0);
    const jmb_kernels *kernels = story->kernels;
    jmb_kernels counted = *kernels;
    int longest = 0, alone, i;
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    counted.run[JMB_OP_EMBED] = count_embed;
    story->kernels = &counted;
    for (i = 0; i < 9; i++) {
        int32_t tokens[256];
        alone = choice_passes(session, nine + i, 1);
        CHECK_THAT(alone == (int)story_tokens(nine[i], tokens) - 1, "%d passes for '%s'", alone, nine[i]);
        if (alone > longest) longest = alone;
    }
    CHECK_THAT(choice_passes(session, nine, 9) == longest, "%d passes, %d for the longest", passes, longest);
    story->kernels = kernels;
    jamba_session_free(session);
}

/* Drawn as often as softmax(score / temperature) says. */
static void test_choose_drawn(void)
{
    jamba_session *session = session_open(story, 64, 0);
    jamba_sampler sampler;
    float scores[3];
    int32_t choice;
    double share[3], sum = 0;
    int counts[3] = { 0, 0, 0 }, i, draws = 2000;
    const char *const three[] = { "a", "b", "the" };
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 2;
    sampler.seed = 7;
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    for (i = 0; i < draws; i++) {
        CHECK(jamba_choose(session, three, 3, &sampler, scores, &choice) == JAMBA_OK && choice >= 0 && choice < 3);
        counts[choice]++;
    }
    for (i = 0; i < 3; i++) sum += share[i] = exp((double)scores[i] / 2);
    for (i = 0; i < 3; i++) { /* five standard deviations */
        double expected = draws * share[i] / sum, spread = sqrt(expected * (1 - share[i] / sum)) + 1;
        CHECK_THAT(fabs(counts[i] - expected) < 5 * spread, "%d times option %d, expected %g", counts[i], i, expected);
    }
    jamba_session_free(session);
}

static void test_choose_errors(void)
{
    const char *const empty[] = { "a", "" }, *const missing[] = { "a", NULL }, *const invalid[] = { "a", "\xff" };
    jamba_session *session = session_open(story, 64, 1);
    jamba_sampler sampler;
    int32_t choice = 77;
    shot before;
    memset(&sampler, 0, sizeof sampler);
    say(session, "user", "Hello!");
    CHECK(jamba_step(session, 0) == JAMBA_OK);
    before = shot_take(session);
    CHECK(jamba_choose(NULL, options, 2, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, NULL, 2, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, options, 0, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, options, 2, NULL, NULL, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, empty, 2, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, missing, 2, NULL, NULL, &choice) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_choose(session, invalid, 2, NULL, NULL, &choice) == JAMBA_ERR_TEXT);
    sampler.top_p = 2;
    CHECK(jamba_choose(session, options, 2, &sampler, NULL, &choice) == JAMBA_ERR_ARGUMENT && choice == 77);
    CHECK(shot_same(&before, session));
    jamba_session_free(session);
}

/* ---- random conversations ---------------------------------------------------------------------------------- */

typedef struct chat {
    jamba_session *session;
    uint64_t random;
    jamba_sampler sampler;
    const char *why;
} chat;

static int below(chat *c, int n)
{
    return (int)(random_next(&c->random) % (uint64_t)n);
}

static bool fails(chat *c, const char *why)
{
    c->why = why;
    return false;
}

static bool chat_say(chat *c)
{
    static const char *const words[] = { "abcd", "a b", "", "efgh ij kl", "\xc3\xa9", "ab ab ab ab ab ab ab ab" };
    shot before = shot_take(c->session);
    jamba_result result = jamba_say(c->session, "user", words[below(c, 6)]);
    bool same = shot_same(&before, c->session);
    if (result == JAMBA_ERR_CONTEXT) return same || fails(c, "a message that does not fit");
    return (result == JAMBA_OK && !same) || fails(c, "say");
}

/* The reply's text so far is what its tokens decode to, but for what is held back and a stop string. */
static bool chat_text(chat *c, int32_t begin, const answer *got, bool whole)
{
    char text[TEXT_ROOM];
    size_t size = stream_text(c->session, begin, begin, text);
    if (whole && size != got->size) return fails(c, "text of another length");
    return memcmp(text, got->text, size < got->size ? size : got->size) == 0 || fails(c, "other text");
}

static bool chat_reply(chat *c)
{
    static const char *const stops[] = { "a", "ef", "\xef\xbf\xbd", "gh i" };
    jamba_reply_params params;
    answer got;
    shot before;
    bool stopped, same;
    memset(&params, 0, sizeof params);
    params.sampler = below(c, 2) ? &c->sampler : NULL;
    params.budget_us = below(c, 2) ? 0 : 1 + (uint64_t)below(c, 50);
    params.max_tokens = 1 + below(c, 12);
    params.stops = stops + below(c, 4);
    params.stop_count = (size_t)below(c, 2);
    if (last_turn(c->session).kind == JAMBA_TURN_REPLY) { /* another one */
        if (jamba_session_rewind(c->session, last_turn(c->session).position, NULL) != JAMBA_OK) return fails(c, "back");
    }
    got = reply_all(c->session, &params);
    if (got.result == JAMBA_ERR_ARGUMENT) return fed_of(c->session) == 0 || fails(c, "reply");
    if (got.result == JAMBA_ERR_CONTEXT) {
        before = shot_take(c->session);
        got = reply_all(c->session, &params);
        same = shot_same(&before, c->session);
        return (got.result == JAMBA_ERR_CONTEXT && same) || fails(c, "a full context");
    }
    if (got.result != JAMBA_OK) return fails(c, "reply");
    if (params.stop_count && strstr(got.text, params.stops[0])) return fails(c, "a stop string in the text");
    stopped = params.stop_count != 0;
    return chat_text(c, last_turn(c->session).position, &got, !stopped);
}

static bool chat_rewind(chat *c)
{
    jamba_turn turns[256];
    size_t count = jamba_turns(c->session, turns, 256), left;
    int32_t to = count && below(c, 4) ? turns[below(c, (int)count)].position : below(c, fed_of(c->session) + 1);
    int32_t replay;
    size_t i, want = 0;
    if (jamba_session_rewind(c->session, to, &replay) != JAMBA_OK) return fails(c, "rewind");
    for (i = 0; i < count; i++)
        want += turns[i].position < to || (turns[i].position == to && turns[i].kind == JAMBA_TURN_REPLY);
    left = jamba_turns(c->session, NULL, 0);
    return (left == want && fed_of(c->session) == to) || fails(c, "turns after going back");
}

static bool chat_restart(chat *c)
{
    jamba_turn old[256], now[256];
    shot before = shot_take(c->session);
    size_t old_count = jamba_turns(c->session, old, 256), now_count;
    int32_t turns = 1 + below(c, 3), replay = -1, gap;
    jamba_session_info info;
    jamba_result result = jamba_session_restart(c->session, turns, &replay);
    if (result == JAMBA_ERR_CONTEXT) return shot_same(&before, c->session) || fails(c, "a restart refused");
    if (result != JAMBA_OK) return fails(c, "restart");
    jamba_session_describe(c->session, &info);
    gap = (int32_t)before.count - fed_of(c->session);
    now_count = jamba_turns(c->session, now, 256);
    free(before.logits);
    if (gap <= 0 || info.pending != replay || now_count >= old_count) return fails(c, "nothing left out");
    for (; turns > 0 && now_count > 1; turns -= now[now_count].kind == JAMBA_TURN_SAID) { /* the last ones moved up */
        now_count--;
        old_count--;
        if (now[now_count].kind != old[old_count].kind) return fails(c, "other turns");
        if (now[now_count].kind == JAMBA_TURN_REPLY && old[old_count].position - now[now_count].position != gap)
            return fails(c, "a reply elsewhere");
    }
    return true;
}

static bool chat_fork(chat *c)
{
    jamba_session *fork;
    if (jamba_session_fork(&fork, c->session, (int32_t)(c->session->context - c->session->fed), NULL) != JAMBA_OK) {
        if (jmb_span_in(c->session)) return true; /* in the middle of a token */
        return c->session->context == c->session->fed || fails(c, "fork");
    }
    jamba_session_free(c->session);
    c->session = fork;
    return true;
}

static jamba_session *chat_reopen(const chat *c)
{
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.context = (int32_t)c->session->context;
    params.marks = (int32_t)c->session->mark_room;
    params.mark_every = (int32_t)c->session->mark_every;
    params.threads = 1;
    params.now_us = clock_tick;
    params.now_user = &ticks;
    return jamba_session_create(&session, tiny, &params, NULL) == JAMBA_OK ? session : NULL;
}

/* What both say from here on is the same, and they are at the same turn. */
static bool chat_same(chat *c, jamba_session *other, const jamba_reply_params *params)
{
    jamba_turn turns[2][256];
    jamba_sampler sampler = c->sampler;
    jamba_reply_params again = *params;
    size_t count = jamba_turns(c->session, turns[0], 256);
    answer a, b;
    if (count != jamba_turns(other, turns[1], 256) || memcmp(turns[0], turns[1], count * sizeof(jamba_turn)) != 0)
        return fails(c, "other turns after restoring");
    again.sampler = &sampler;
    a = reply_all(c->session, params);
    b = reply_all(other, &again);
    if (a.result != b.result || a.size != b.size || memcmp(a.text, b.text, a.size) != 0)
        return fails(c, "another reply after restoring");
    return same_place(c->session, other) || fails(c, "another place after restoring");
}

/* Saved wherever a reply stands, text held back for a stop string too, and gone on with in a new session. */
static bool chat_save(chat *c)
{
    static const char *const stops[] = { "ab ab ab", "efgh", "\xc3\xa9\xc3\xa9" };
    jamba_reply_params params;
    jamba_save_params all;
    jamba_session *other;
    const char *text;
    size_t length, size;
    uint8_t *bytes;
    bool ok;
    int i;
    memset(&params, 0, sizeof params);
    params.sampler = &c->sampler;
    params.max_tokens = 12;
    params.stops = stops;
    params.stop_count = 3;
    for (i = below(c, 6); i > 0; i--) jamba_reply(c->session, &params, &text, &length);
    if (jmb_span_in(c->session)) return true; /* in the middle of a token */
    memset(&all, 0, sizeof all);
    all.marks = true; /* which decide what a stop string takes back */
    size = jamba_session_save_as(c->session, &all, NULL, 0);
    bytes = (uint8_t *)malloc(size + 1);
    other = chat_reopen(c);
    ok = size > 0 && bytes && other && jamba_session_save_as(c->session, &all, bytes, size) == size
        && (jamba_session_restore(other, bytes, size) == JAMBA_OK || fails(c, jamba_session_error(other)->message));
    free(bytes);
    ok = ok && chat_same(c, other, &params);
    jamba_session_free(c->session);
    c->session = other;
    return ok;
}

static bool chat_step(chat *c)
{
    int i;
    for (i = 0; i < 5; i++) {
        const char *text;
        size_t length;
        jamba_reply_params params;
        jamba_result result;
        memset(&params, 0, sizeof params);
        params.budget_us = 1;
        result = i % 2 ? jamba_step(c->session, 1) : jamba_reply(c->session, &params, &text, &length);
        if (result < 0 && result != JAMBA_ERR_CONTEXT && fed_of(c->session) > 0) return fails(c, "a slice");
    }
    return true;
}

static bool chat_run(chat *c)
{
    static bool (*const steps[])(chat *) = { chat_say, chat_say, chat_say, chat_reply, chat_reply, chat_reply,
        chat_rewind, chat_rewind, chat_restart, chat_fork, chat_step, chat_save };
    int i, count = 4 + below(c, 24);
    bool ok = true;
    for (i = 0; i < count && ok; i++) {
        ok = steps[below(c, (int)(sizeof steps / sizeof steps[0]))](c);
        if (ok && below(c, 4) == 0) ok = lawful(c->session) || fails(c, "other logits than the plain run");
    }
    return ok && (lawful(c->session) || fails(c, "other logits than the plain run"));
}

static void test_random(uint64_t chats)
{
    static const int32_t chunks[] = { 1, 3, 64 };
    uint64_t seed;
    for (seed = 1; seed <= chats && !test_state.checks_failed; seed++) {
        jamba_session_params params;
        chat c;
        memset(&c, 0, sizeof c);
        memset(&params, 0, sizeof params);
        c.random = seed;
        c.sampler.temperature = 1;
        c.sampler.seed = seed;
        params.context = 40 + below(&c, 80);
        params.chunk = chunks[below(&c, 3)];
        params.marks = below(&c, 5);
        params.mark_every = below(&c, 3) ? 0 : 7;
        params.fork_marks = below(&c, 3);
        params.threads = 1;
        params.now_us = clock_tick;
        params.now_user = &ticks;
        CHECK(jamba_session_create(&c.session, tiny, &params, NULL) == JAMBA_OK);
        if (!chat_run(&c))
            CHECK_THAT(false, "seed %llu: %s (%s)", (unsigned long long)seed, c.why,
                jamba_session_error(c.session)->message);
        jamba_session_free(c.session);
    }
}

/* ---- the program ------------------------------------------------------------------------------------------- */

static void test_back_without(void)
{
    test_back(0);
}

static void test_back_with(void)
{
    test_back(8);
}

static void test_restart_without(void)
{
    test_restart(0);
}

static void test_restart_with(void)
{
    test_restart(3);
}

/* Makes decoding take a blank off the front of a text, as most tokenizers of pieces do. */
static void write_strip(const char *path)
{
    static const char fuse[] = "{\"type\":\"Fuse\"}";
    static const char strip[] = ",{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}";
    size_t size;
    uint8_t *json = file_need(path, &size);
    const char *end = strstr((const char *)json, fuse);
    tiny_bytes out = { NULL, 0, 0 };
    test_require(end != NULL, "no decoder in", path);
    end += sizeof fuse - 1;
    tiny_add(&out, json, (size_t)(end - (const char *)json));
    tiny_add(&out, strip, sizeof strip - 1);
    tiny_add(&out, end, strlen(end));
    file_write(path, out.data, out.size);
    free(out.data);
    free(json);
}

/* The tiny hybrid with a chat format. */
static jamba_model *tiny_chat(void)
{
    static const char config[] = "{\"chat_template\":\"{{bos_token}}[INST]\",\"bos_token\":\"<s>\"}";
    char folder[PATH_ROOM], path[PATH_ROOM];
    tiny_write(temp_path(folder, "tiny"), false);
    write_strip(tiny_path(path, folder, "tokenizer.json"));
    tiny_path(path, folder, "tokenizer_config.json");
    file_write(path, config, strlen(config));
    return convert(folder, "tiny", "q8", path) ? load_for_cpu(path, JAMBA_CPU_BEST) : NULL;
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "the log is the conversation written out", test_whole },
        { "who may begin, and in which order", test_order },
        { "pieces of whole characters", test_pieces },
        { "a reply that was cut goes on", test_go_on },
        { "other tokens in place of a reply's", test_other_tokens },
        { "stop strings", test_stops },
        { "stop strings are taken back", test_taken_back },
        { "special tokens as text", test_special },
        { "another reply, another message", test_back_without },
        { "another reply, another message, with marks", test_back_with },
        { "marks at turns", test_marks },
        { "a fork in the middle of a reply", test_fork },
        { "saved in the middle of a reply", test_saved },
        { "messages that fail change nothing", test_full_say },
        { "restart", test_restart_without },
        { "restart with marks", test_restart_with },
        { "restart: what comes first", test_restart_heads },
        { "restart: tokens that were not saved", test_restart_unknown },
        { "a long game", test_long_game },
        { "wrong arguments of a reply", test_errors },
        { "models without a chat format", test_completion },
        { "the likeliest tokens", test_top },
        { "the likeliest tokens: ties", test_top_ties },
        { "logarithm of a mass", test_log },
        { "scores", test_score },
        { "scores on every instruction set", test_score_everywhere },
        { "choices", test_choose },
        { "choices: read together", test_choose_together },
        { "choices drawn", test_choose_drawn },
        { "choices: wrong arguments", test_choose_errors },
    };
    const char *wanted = getenv("CHATS");
    int chats = wanted ? atoi(wanted) : 2000;
    test_start(argc, argv);
    test_require(chats > 0, "CHATS must be a number of conversations, not", wanted);
    if (!test_state.list) {
        test_require(convert("examples/storyteller", "storyteller", "q8", story_path), "convert", "storyteller");
        story = load_for_cpu(story_path, JAMBA_CPU_BEST);
        tiny = tiny_chat();
        test_require(story && tiny, "no model", "");
    }
    test_run(tests, sizeof tests / sizeof tests[0]);
    if (test_begin("%d random conversations", chats)) {
        test_random((uint64_t)chats);
        test_end();
    }
    jamba_model_free(story);
    jamba_model_free(tiny);
    return test_summary();
}
