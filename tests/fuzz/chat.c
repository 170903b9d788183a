/* chat.c - any messages through the chat format, and a conversation: say, reply, stops, turns, restart, choose
 *
 * Input: flags, the model, then role and content of each message, each ended by a zero. */
#include "subjects.h"

static const int kinds[] = { FUZZ_HYBRID, FUZZ_MAMBA2, FUZZ_LLAMA };
enum { SUBJECTS = sizeof kinds / sizeof kinds[0], MESSAGES = 4 };

static subject subjects[SUBJECTS];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    jamba_session_params params;
    int i;
    (void)argc;
    (void)argv;
    memset(&params, 0, sizeof params);
    params.context = 48;
    params.chunk = 4;
    params.marks = 3;
    for (i = 0; i < SUBJECTS; i++) subject_open(&subjects[i], kinds[i], &params);
    return 0;
}

/* The next text up to a zero. free() it. */
static char *next_text(fuzz_input *in)
{
    const uint8_t *end = (const uint8_t *)(in->left ? memchr(in->p, 0, in->left) : NULL);
    size_t size = end ? (size_t)(end - in->p) : in->left;
    char *text = fuzz_string(in->p, size);
    in->p += end ? size + 1 : size;
    in->left -= end ? size + 1 : size;
    return text;
}

static void encode(int kind, const jamba_message *messages, size_t count, unsigned flags, size_t size)
{
    size_t need = 0, got, i;
    jamba_error error;
    int32_t *tokens;
    fuzz_memory_begin();
    if (jamba_chat_encode(subjects[kind].model, messages, count, flags, NULL, 0, &need, &error) != JAMBA_OK) {
        fuzz_memory_end(16384 + 400 * size);
        return;
    }
    fuzz_memory_end(16384 + 400 * size);
    tokens = (int32_t *)malloc((need + 1) * sizeof *tokens);
    if (need)
        FUZZ_CHECK(
            jamba_chat_encode(subjects[kind].model, messages, count, flags, tokens, need, &got, NULL) == JAMBA_OK);
    for (i = 0; i < need; i++) FUZZ_CHECK(tokens[i] >= 0 && tokens[i] < subjects[kind].vocab);
    free(tokens);
}

static void reply(jamba_session *session, uint8_t choice, const char *stop)
{
    jamba_reply_params params;
    jamba_sampler sampler;
    jamba_result result;
    const char *text;
    size_t length;
    int turns = 0;
    memset(&params, 0, sizeof params);
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = (float)(choice % 3);
    params.sampler = &sampler;
    params.max_tokens = 1 + choice % 7;
    params.stops = &stop;
    params.stop_count = choice >> 7;
    params.flags = choice & 64 ? JAMBA_TEXT_SPECIAL : 0;
    do {
        result = jamba_reply(session, &params, &text, &length);
        FUZZ_CHECK(++turns < 100);
    } while (result == JAMBA_OK && length > 0);
}

static void talk(int kind, const jamba_message *messages, size_t count, uint8_t choice)
{
    jamba_session *session = subjects[kind].session;
    const char *options[MESSAGES];
    float logprobs[MESSAGES];
    jamba_turn turns[8];
    int32_t chosen, replay;
    size_t i;
    memset(turns, 0, sizeof turns);
    jamba_session_reset(session);
    for (i = 0; i < count; i++) {
        options[i] = messages[i].content;
        jamba_say(session, messages[i].role, messages[i].content);
        if (choice >> i & 1) reply(session, choice, messages[count - 1].content);
        if (i == 2 && (choice & 8)) jamba_session_restart(session, 1, &replay);
    }
    jamba_turns(session, turns, 8);
    jamba_step(session, 0);
    if (choice & 32) jamba_choose(session, options, count, NULL, logprobs, &chosen);
    if (choice & 16) jamba_session_rewind(session, turns[0].position, &replay);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = { data, size };
    unsigned flags = fuzz_u8(&in);
    uint8_t choice = fuzz_u8(&in);
    int kind = (int)(flags >> 5) % SUBJECTS;
    jamba_message messages[MESSAGES];
    char *texts[2 * MESSAGES];
    size_t count = 0, i;
    while (in.left > 0 && count < MESSAGES) {
        messages[count].role = texts[2 * count] = next_text(&in);
        messages[count].content = texts[2 * count + 1] = next_text(&in);
        count++;
    }
    encode(kind, messages, count, flags & 31, size);
    memset(messages + count, 0, (MESSAGES - count) * sizeof *messages);
    talk(kind, messages, count, choice);
    for (i = 0; i < 2 * count; i++) free(texts[i]);
    return 0;
}
