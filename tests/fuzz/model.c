/* model.c - a model file of any bytes: load, describe, encode, evaluate, sample, decode, save, restore
 *
 * The identity in the header, which is free where hashes are not checked, chooses what the session is like. With
 * FUZZ_MENDS it is set right first, for a library that checks it. */
#include "mutate_words.h"
#include "subjects.h"

enum { SESSION_MOST = 1 << 24, CONTEXT = 40, GENERATED = 4 };

/* What a load may take for a file of `size` bytes: tables; a block of 128 bytes can be up to 130 operations. */
static size_t load_limit(size_t size)
{
    return (1 << 19) + 900 * size;
}

/* A text with something for each tokenizer, and the text of a token. Returns how many tokens to start with. */
static size_t encode_some(const jamba_model *model, int32_t vocab, int32_t *tokens, size_t room)
{
    static const char text[] = "ab a<s> abc\xc3\xa9 \xe2\x96\x81" "ab%[x ]</s>s \xf0\x9f\x98\x80" "c's 12";
    int32_t ids[400];
    size_t count = 0, length, i;
    char out[4000];
    const char *own = jamba_token_text(model, 3, &length);
    if (own) jamba_encode(model, own, length, 0, NULL, 0, &count, NULL);
    if (jamba_encode(model, text, sizeof text - 1, JAMBA_TEXT_BOS | JAMBA_TEXT_SPECIAL, ids, 400, &count, NULL)
        != JAMBA_OK) count = 0;
    for (i = 0; i < count; i++) FUZZ_CHECK(ids[i] >= 0 && ids[i] < vocab);
    if (count) jamba_decode(model, ids, count, JAMBA_TEXT_SPECIAL, out, sizeof out, &length, NULL);
    if (count > room) count = room;
    for (i = 0; i < count; i++) tokens[i] = ids[i];
    for (; count < 3; count++) tokens[count] = (int32_t)count % vocab;
    return count;
}

static void generate(const jamba_model *model, jamba_session *session, int32_t vocab)
{
    jamba_text_stream stream;
    jamba_sampler sampler;
    char text[JAMBA_TEXT_MAX];
    int i;
    memset(&stream, 0, sizeof stream);
    memset(&sampler, 0, sizeof sampler);
    sampler.top_k = 5;
    sampler.top_p = 0.9f;
    sampler.repeat_penalty = 1.1f;
    for (i = 0; i < GENERATED; i++) {
        int32_t token;
        sampler.temperature = (float)(i % 2);
        token = jamba_sample(session, &sampler);
        FUZZ_CHECK((token >= 0 && token < vocab) || token == JAMBA_ERR_NUMERIC);
        if (token < 0) token = i % vocab;
        FUZZ_CHECK(jamba_decode_next(model, &stream, token, JAMBA_TEXT_SPECIAL, text) <= JAMBA_TEXT_MAX);
        FUZZ_CHECK(jamba_eval(session, &token, 1) == JAMBA_OK);
    }
}

/* What a session saves, it takes back. */
static void save_and_restore(jamba_session *session)
{
    size_t size = jamba_session_save(session, NULL, 0);
    uint8_t *bytes = (uint8_t *)malloc(size);
    FUZZ_CHECK(size > 0 && jamba_session_save(session, bytes, size) == size);
    FUZZ_CHECK(jamba_session_restore(session, bytes, size) == JAMBA_OK);
    free(bytes);
}

static void use(const jamba_model *model, const uint8_t *choice)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_memory memory;
    jamba_model_info info;
    jamba_error error;
    int32_t tokens[16];
    size_t count;
    jamba_model_describe(model, &info);
    count = encode_some(model, info.vocab, tokens, 16);
    memset(&params, 0, sizeof params);
    params.allocator = &subject_allocator;
    params.context = CONTEXT;
    params.chunk = 1 + choice[0] % 5;
    params.marks = choice[1] % 2;
    params.kv_type = (jamba_kv_type)(choice[2] % 3);
    if (jamba_session_estimate(model, &params, &memory) != JAMBA_OK) return;
    if (memory.kv > SESSION_MOST || memory.state + memory.marks + memory.scratch > SESSION_MOST) return;
    if (jamba_session_create(&session, model, &params, &error) != JAMBA_OK) return;
    FUZZ_CHECK(jamba_eval(session, tokens, count) == JAMBA_OK);
    generate(model, session, info.vocab);
    save_and_restore(session);
    jamba_session_free(session);
}

static void run(const uint8_t *data, size_t size)
{
    jamba_model_params params;
    jamba_model *model;
    jamba_error error;
    jamba_result result;
    memset(&params, 0, sizeof params);
    params.allocator = &subject_allocator;
    params.verify = size > 40 && data[40] == 1;
    fuzz_memory_begin();
    result = jamba_model_load(&model, jamba_from_memory(data, size), &params, &error);
    fuzz_memory_end(load_limit(size));
    FUZZ_CHECK((result == JAMBA_OK) == (model != NULL));
    FUZZ_CHECK(result == JAMBA_OK || (error.code == result && error.message[0]));
    if (model) use(model, data + 33);
    jamba_model_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_mended(data, size, fuzz_mend_model, run);
    return 0;
}
