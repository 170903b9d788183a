/* api.c - the public interface from a translation unit that sees nothing else (the implementation is
 * api_second.c): arguments, error codes and messages, what a failed call leaves behind. */
#define SUPPORT_API_ONLY
#include "support.h"

#ifdef JMB_VERSION_MAJOR
#error "the implementation must not be visible here"
#endif

static char model_path[PATH_ROOM], story_path[PATH_ROOM];
static jamba_model *model, *story; /* without and with a tokenizer */
static int32_t vocab;

static jamba_session *open_session(int32_t context)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    memset(&params, 0, sizeof params);
    params.context = context;
    test_require(jamba_session_create(&session, model, &params, &error) == JAMBA_OK, "session", error.message);
    return session;
}

/* ---- names and versions --------------------------------------------------------------------------- */

static void test_names(void)
{
#define NAME_OF(name, value, text) CHECK(strcmp(jamba_result_name(name), text) == 0 && name == (value));
    JAMBA_RESULTS(NAME_OF)
#undef NAME_OF
    CHECK(jamba_result_name((jamba_result)12345) != NULL && jamba_result_name((jamba_result)12345)[0]);
    CHECK(jamba_result_name((jamba_result)-99) != NULL);
    CHECK(jamba_version() == JAMBA_VERSION);
    CHECK(strstr(jamba_build_info(), "0.1.0") == jamba_build_info());
#if defined(__OPTIMIZE__)
    CHECK(strstr(jamba_build_info(), "unoptimised") == NULL);
#elif defined(__GNUC__)
    CHECK(strstr(jamba_build_info(), "unoptimised") != NULL);
#endif
}

/* ---- loading -------------------------------------------------------------------------------------- */

static size_t read_nothing(void *user, uint64_t offset, void *dst, size_t size)
{
    (void)user;
    (void)offset;
    (void)dst;
    (void)size;
    return 0;
}

static void test_load_arguments(void)
{
    jamba_source source = jamba_from_file(NULL);
    jamba_model_params params;
    jamba_model *m = (jamba_model *)&params;
    jamba_error error;
    jamba_io io;
    memset(&error, 0, sizeof error);
    CHECK(jamba_model_load(NULL, jamba_from_file(model_path), NULL, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(error.code == JAMBA_ERR_ARGUMENT && error.message[0]);
    CHECK(jamba_model_load(NULL, jamba_from_file(model_path), NULL, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_model_load(&m, source, NULL, &error) == JAMBA_ERR_ARGUMENT && m == NULL);
    CHECK(jamba_model_load(&m, jamba_from_memory(NULL, 1000), NULL, &error) == JAMBA_ERR_ARGUMENT);
    memset(&io, 0, sizeof io);
    CHECK(jamba_model_load(&m, jamba_from_io(io), NULL, &error) == JAMBA_ERR_ARGUMENT);
    source = jamba_from_file(model_path);
    source.data = &io;
    CHECK(jamba_model_load(&m, source, NULL, &error) == JAMBA_ERR_ARGUMENT && m == NULL);
    io.read = read_nothing;
    io.size = 5000;
    CHECK(jamba_model_load(&m, jamba_from_io(io), NULL, &error) == JAMBA_ERR_IO && m == NULL);
    memset(&params, 0, sizeof params);
    params.cpu = (jamba_cpu)77;
    CHECK(jamba_model_load(&m, jamba_from_file(model_path), &params, &error) < 0 && m == NULL);
    CHECK(jamba_model_load(&m, jamba_from_file("no/such.jamba"), NULL, &error) == JAMBA_ERR_IO && m == NULL);
    CHECK(strstr(error.message, "no/such.jamba") != NULL && error.code == JAMBA_ERR_IO);
    CHECK(jamba_model_load(&m, jamba_from_file("no/such.jamba"), NULL, NULL) == JAMBA_ERR_IO);
    jamba_model_free(NULL);
}

static void test_describe(void)
{
    jamba_model_info info;
    memset(&info, 0xa5, sizeof info);
    jamba_model_describe(NULL, &info);
    jamba_model_describe(model, NULL);
    jamba_model_describe(model, &info);
    CHECK(strcmp(info.architecture, "llama") == 0 && strcmp(info.type, "f32") == 0 && info.isa[0]);
    CHECK(info.vocab == 128 && info.hidden == 32 && info.blocks == 6);
    CHECK(info.attention_blocks == 3 && info.recurrent_blocks == 0 && info.state_bytes == 0);
    CHECK(info.kv_bytes_per_token == 3 * 2 * 2 * 12 * 2);
    CHECK(info.context == 2048 && info.token_bos == 1 && info.token_pad == 0);
    CHECK(info.eos_count == 1 && info.token_eos[0] == 2);
    CHECK(info.parameters == info.parameters_active && info.parameters > 2 * 128 * 32);
    CHECK(jamba_token_is_end(model, 2) && !jamba_token_is_end(model, 1) && !jamba_token_is_end(model, -1));
    CHECK(!jamba_token_is_end(NULL, 2));
    CHECK(strcmp(jamba_model_meta(model, "architecture"), "llama") == 0);
    CHECK(jamba_model_meta(model, "nothing") == NULL && jamba_model_meta(NULL, "a") == NULL);
    CHECK(jamba_model_meta(model, NULL) == NULL);
    jamba_model_describe(story, &info);
    CHECK(strcmp(info.architecture, "jamba") == 0 && info.eos_count == 2 && info.token_eos[1] == 5);
    CHECK(info.attention_blocks == 1 && info.recurrent_blocks == 7);
    CHECK(info.state_bytes == 7 * (256 * 3 + 256 * 16) * 4);
    CHECK(info.parameters_active < info.parameters && info.parameters > 3000000 && info.parameters < 3200000);
}

/* ---- sessions ------------------------------------------------------------------------------------- */

static void check_params(const char *what, const jamba_session_params *params)
{
    jamba_session *session = (jamba_session *)&vocab;
    jamba_memory memory;
    jamba_error error;
    memset(&error, 0, sizeof error);
    CHECK_THAT(jamba_session_create(&session, model, params, &error) == JAMBA_ERR_ARGUMENT, "%s is accepted", what);
    CHECK_THAT(session == NULL && error.code == JAMBA_ERR_ARGUMENT && error.message[0], "%s: %s", what, error.message);
    CHECK_THAT(jamba_session_estimate(model, params, &memory) == JAMBA_ERR_ARGUMENT, "%s is estimated", what);
}

static void test_session_arguments(void)
{
    jamba_session_params plain, p;
    jamba_executor executor;
    jamba_session *session = NULL;
    jamba_session_info info;
    jamba_memory memory;
    jamba_error error;
    memset(&plain, 0, sizeof plain);
    memset(&executor, 0, sizeof executor);
    CHECK(jamba_session_create(NULL, model, NULL, &error) == JAMBA_ERR_ARGUMENT && error.message[0]);
    CHECK(jamba_session_create(&session, NULL, NULL, &error) == JAMBA_ERR_ARGUMENT && session == NULL);
    CHECK(jamba_session_estimate(NULL, NULL, &memory) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_estimate(model, NULL, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_estimate(model, NULL, &memory) == JAMBA_OK);
    p = plain;
    p.context = -1;
    check_params("context -1", &p);
    p.context = INT32_MAX;
    check_params("context of two thousand million", &p);
    p = plain;
    p.chunk = -1;
    check_params("chunk -1", &p);
    p.chunk = INT32_MAX;
    check_params("chunk of two thousand million", &p);
    p = plain;
    p.threads = -1;
    check_params("threads -1", &p);
    p = plain;
    p.kv_type = (jamba_kv_type)9;
    check_params("kv_type 9", &p);
    p = plain;
    p.executor = &executor;
    executor.width = 4;
    check_params("an executor without run", &p);
    executor.run = run_reversed;
    executor.width = 0;
    check_params("an executor of width 0", &p);
    p = plain;
    p.context = 100;
    p.chunk = 1000;
    CHECK(jamba_session_create(&session, model, &p, &error) == JAMBA_OK);
    jamba_session_describe(session, &info);
    CHECK(info.context == 100 && info.chunk <= 100 && info.position == 0 && info.pending == 0 && info.width >= 1);
    jamba_session_describe(NULL, &info);
    jamba_session_describe(session, NULL);
    jamba_session_reset(NULL);
    jamba_session_free(session);
    jamba_session_free(NULL);
    CHECK(jamba_session_error(NULL) == NULL && jamba_logits(NULL) == NULL);
    CHECK(jamba_session_create(&session, model, NULL, NULL) == JAMBA_OK);
    jamba_session_describe(session, &info);
    CHECK(info.context == 2048 && info.chunk == 128);
    jamba_session_free(session);
}

/* ---- feeding ---------------------------------------------------------------------------------------- */

static bool same_logits(const jamba_session *session, const float *want)
{
    return jamba_logits(session) && memcmp(jamba_logits(session), want, (size_t)vocab * sizeof *want) == 0;
}

/* Each failed call between these tokens must not leave a trace in their logits. */
static void test_failed_feeds(void)
{
    const int32_t first[] = { 1, 9, 33 }, last[] = { 8, 127 }, bad[] = { 5, 6, -1 }, large[] = { 5, 128 };
    const int32_t huge[] = { INT32_MIN, INT32_MAX };
    int32_t many[20] = { 0 };
    jamba_session *plain = open_session(16), *session = open_session(16);
    jamba_session_info info;
    const jamba_error *error = jamba_session_error(session);
    float *want = (float *)malloc((size_t)vocab * sizeof *want);
    size_t count;
    CHECK(jamba_eval(plain, first, 3) == JAMBA_OK && jamba_eval(plain, last, 2) == JAMBA_OK);
    memcpy(want, jamba_logits(plain), (size_t)vocab * sizeof *want);
    CHECK(jamba_feed(NULL, first, 3) == JAMBA_ERR_ARGUMENT && jamba_step(NULL, 0) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_eval(NULL, first, 3) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_eval(session, first, 3) == JAMBA_OK);
    CHECK(jamba_feed(session, bad, 3) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(error->code == JAMBA_ERR_ARGUMENT && strstr(error->message, "token -1"), "%s", error->message);
    CHECK(jamba_eval(session, large, 2) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(strstr(error->message, "token 128") && strstr(error->message, "128"), "%s", error->message);
    CHECK(jamba_feed(session, huge, 2) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(strstr(error->message, "-2147483648") != NULL, "%s", error->message);
    CHECK(jamba_feed(session, NULL, 2) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_feed(session, NULL, 0) == JAMBA_OK && jamba_feed(session, first, 0) == JAMBA_OK);
    CHECK(jamba_feed(session, many, 14) == JAMBA_ERR_CONTEXT);
    CHECK_THAT(error->code == JAMBA_ERR_CONTEXT && strstr(error->message, "3 of 16"), "%s", error->message);
    CHECK(jamba_eval(session, many, 20) == JAMBA_ERR_CONTEXT);
    CHECK(jamba_feed(session, many, SIZE_MAX) == JAMBA_ERR_CONTEXT);
    jamba_session_describe(session, &info);
    CHECK(info.position == 3 && info.pending == 0);
    CHECK(jamba_session_tokens(session, &count) != NULL && count == 3);
    CHECK(memcmp(jamba_session_tokens(session, NULL), first, sizeof first) == 0);
    CHECK(jamba_eval(session, last, 2) == JAMBA_OK && same_logits(session, want));
    CHECK(jamba_eval(session, many, 11) == JAMBA_OK); /* exactly full */
    CHECK(jamba_eval(session, many, 1) == JAMBA_ERR_CONTEXT && jamba_logits(session) != NULL);
    CHECK(jamba_session_tokens(NULL, &count) == NULL && count == 0);
    jamba_session_free(session);
    jamba_session_free(plain);
    free(want);
}

static void test_logits_times(void)
{
    const int32_t tokens[] = { 1, 9, 33, 2 };
    jamba_session *session = open_session(1);
    CHECK(jamba_logits(session) == NULL && jamba_step(session, 0) == JAMBA_OK && jamba_logits(session) == NULL);
    CHECK(jamba_eval(session, tokens, 1) == JAMBA_OK && jamba_logits(session) != NULL);
    CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_step(session, 1) == JAMBA_OK && jamba_logits(session) != NULL);
    CHECK(jamba_eval(session, tokens, 1) == JAMBA_ERR_CONTEXT);
    jamba_session_reset(session);
    CHECK(jamba_logits(session) == NULL && jamba_sample(session, NULL) == JAMBA_ERR_ARGUMENT);
    jamba_session_free(session);
    session = open_session(16);
    CHECK(jamba_eval(session, tokens, 2) == JAMBA_OK && jamba_logits(session) != NULL);
    CHECK(jamba_feed(session, tokens + 2, 2) == JAMBA_OK && jamba_logits(session) == NULL);
    CHECK(jamba_sample(session, NULL) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_logits(session) != NULL);
    jamba_session_free(session);
}

/* More tokens while a pass is unfinished. */
static void test_feeding_meanwhile(void)
{
    int32_t tokens[24];
    jamba_session *plain = open_session(32), *session = open_session(32);
    int i;
    for (i = 0; i < 24; i++) tokens[i] = (i * 29 + 1) % vocab;
    CHECK(jamba_eval(plain, tokens, 24) == JAMBA_OK);
    for (i = 0; i < 24; i++) {
        CHECK(jamba_feed(session, tokens + i, 1) == JAMBA_OK);
        CHECK(jamba_step(session, 1) >= 0);
    }
    CHECK(step_all(session, 1, NULL) == JAMBA_OK);
    CHECK(same_logits(session, jamba_logits(plain)));
    jamba_session_free(plain);
    jamba_session_free(session);
}

/* ---- callbacks that stop ------------------------------------------------------------------------------ */

static bool stop_after(void *user, const char *stage, uint64_t done, uint64_t total)
{
    int *left = (int *)user;
    CHECK(stage && stage[0] && done <= total);
    return --*left != 0;
}

static void test_stopping(void)
{
    int32_t tokens[30];
    jamba_session_params params;
    jamba_session *plain = open_session(32), *session;
    int left, i, n;
    for (i = 0; i < 30; i++) tokens[i] = (i * 31 + 2) % vocab;
    CHECK(jamba_eval(plain, tokens, 30) == JAMBA_OK);
    memset(&params, 0, sizeof params);
    params.context = 32;
    params.chunk = 4;
    params.progress = stop_after;
    params.progress_user = &left;
    for (n = 1; n < 7; n++) {
        left = n;
        CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK);
        CHECK(jamba_eval(session, tokens, 30) == JAMBA_ERR_ABORTED);
        CHECK(jamba_session_error(session)->code == JAMBA_ERR_ABORTED && jamba_session_error(session)->message[0]);
        CHECK(jamba_logits(session) == NULL);
        CHECK(jamba_step(session, 0) == JAMBA_OK); /* goes on where it stopped */
        CHECK(same_logits(session, jamba_logits(plain)));
        jamba_session_free(session);
    }
    jamba_session_free(plain);
}

/* ---- text ------------------------------------------------------------------------------------------------ */

static void test_no_tokenizer(void)
{
    jamba_message message = { "user", "hi" };
    jamba_text_stream stream;
    jamba_error error;
    int32_t tokens[8] = { 3 };
    size_t count = 0;
    char text[JAMBA_TEXT_MAX];
    memset(&stream, 0, sizeof stream);
    CHECK(jamba_encode(model, "hi", 2, 0, tokens, 8, &count, &error) == JAMBA_ERR_TEXT);
    CHECK_THAT(error.code == JAMBA_ERR_TEXT && strstr(error.message, "tokenizer"), "%s", error.message);
    CHECK(jamba_decode(model, tokens, 1, 0, text, 8, &count, &error) == JAMBA_ERR_TEXT);
    CHECK(jamba_chat_encode(model, &message, 1, JAMBA_CHAT_BEGIN, tokens, 8, &count, &error) < 0 && error.message[0]);
    CHECK(jamba_decode_next(model, &stream, 3, 0, text) == 0);
    CHECK(jamba_token_text(model, 3, &count) == NULL);
    CHECK(jamba_token_find(model, "hi") == -1);
}

static void test_bad_utf8(void)
{
    static const struct {
        const char *text;
        size_t length;
        uint64_t offset;
    } texts[] = {
        { "\xff", 1, 0 },
        { "ab\x80", 3, 2 },
        { "abc\xc3", 4, 3 },
        { "\xc0\xaf", 2, 0 },
        { "a\xe2\x82", 3, 1 },
        { "\xed\xa0\x80", 3, 0 },
        { "\xf4\x90\x80\x80", 4, 0 },
        { "\xf8\x88\x80\x80\x80", 5, 0 },
        { "x\xe2\x28\xa1", 4, 1 },
        { "\xf0\x82\x82\xac", 4, 0 },
    };
    jamba_message message = { "user", "\xff" };
    jamba_error error;
    int32_t tokens[16], before;
    size_t i, count;
    for (i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        tokens[0] = before = 4321;
        memset(&error, 0, sizeof error);
        CHECK_THAT(jamba_encode(story, texts[i].text, texts[i].length, 0, tokens, 16, &count, &error) == JAMBA_ERR_TEXT,
            "text %zu is accepted", i);
        CHECK_THAT(error.code == JAMBA_ERR_TEXT && error.message[0] && error.offset == texts[i].offset,
            "text %zu: offset %d, '%s'", i, (int)error.offset, error.message);
        CHECK(tokens[0] == before);
        CHECK(jamba_encode(story, texts[i].text, texts[i].length, 0, tokens, 16, &count, NULL) == JAMBA_ERR_TEXT);
    }
    CHECK(jamba_chat_encode(story, &message, 1, JAMBA_CHAT_BEGIN, tokens, 16, &count, &error) == JAMBA_ERR_TEXT);
}

static void test_text_arguments(void)
{
    static const char text[] = "Once upon a time";
    jamba_error error;
    int32_t tokens[32], guard[32];
    size_t need, count, length, i;
    char out[64];
    CHECK(jamba_encode(NULL, text, 4, 0, tokens, 32, &count, &error) == JAMBA_ERR_ARGUMENT && error.message[0]);
    CHECK(jamba_encode(story, NULL, 4, 0, tokens, 32, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_encode(story, text, 4, 0, NULL, 32, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_encode(story, text, 4, 0, tokens, 32, NULL, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_encode(story, text, sizeof text - 1, 0, NULL, 0, &need, &error) == JAMBA_OK && need > 1 && need < 16);
    CHECK(jamba_encode(story, text, sizeof text - 1, JAMBA_TEXT_BOS, tokens, 32, &count, &error) == JAMBA_OK);
    CHECK(count == need + 1 && tokens[0] == 1);
    memset(guard, 0x5a, sizeof guard);
    memcpy(tokens, guard, sizeof guard);
    CHECK(jamba_encode(story, text, sizeof text - 1, 0, tokens, need - 1, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(count == need && memcmp(tokens, guard, sizeof guard) == 0);
    CHECK(jamba_encode(story, text, sizeof text - 1, 0, tokens, need, &count, &error) == JAMBA_OK && count == need);
    CHECK(tokens[need] == guard[0]);
    CHECK(jamba_encode(story, NULL, 0, 0, tokens, 32, &count, &error) == JAMBA_OK && count == 0);
    CHECK(jamba_encode(story, text, sizeof text - 1, 0, tokens, 32, &count, &error) == JAMBA_OK);
    CHECK(jamba_decode(story, tokens, count, 0, NULL, 0, &length, &error) == JAMBA_OK && length == sizeof text - 1);
    CHECK(jamba_decode(story, tokens, count, 0, out, length - 1, &length, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_decode(story, tokens, count, 0, out, sizeof out, &length, &error) == JAMBA_OK);
    CHECK(length == sizeof text - 1 && memcmp(out, text, length) == 0);
    CHECK(jamba_decode(NULL, tokens, count, 0, out, sizeof out, &length, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_decode(story, NULL, 3, 0, out, sizeof out, &length, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_decode(story, tokens, count, 0, out, sizeof out, NULL, &error) == JAMBA_ERR_ARGUMENT);
    for (i = 0; i < 2; i++) {
        const int32_t bad[2] = { -7, 2048 };
        CHECK(jamba_decode(story, bad + i, 1, 0, out, sizeof out, &length, &error) == JAMBA_ERR_ARGUMENT);
        CHECK_THAT(error.message[0] != 0, "no message for token %d", (int)bad[i]);
        CHECK(jamba_token_text(story, bad[i], &length) == NULL);
    }
    CHECK(jamba_token_text(story, 4, &length) && length == 12);
    CHECK(jamba_token_text(story, 4, NULL) != NULL && jamba_token_text(NULL, 4, NULL) == NULL);
    CHECK(jamba_token_find(story, "<|im_start|>") == 4 && jamba_token_find(story, "no such token") == -1);
    CHECK(jamba_token_find(story, NULL) == -1 && jamba_token_find(NULL, "a") == -1);
}

/* Special tokens only where the caller asks. */
static void test_special_text(void)
{
    static const char text[] = "a<|im_end|>b";
    jamba_message messages[2] = { { "user", "x<|im_end|>y" }, { "robot", "hello" } };
    jamba_error error;
    int32_t tokens[64];
    size_t count, i, ends = 0;
    CHECK(jamba_encode(story, text, sizeof text - 1, 0, tokens, 64, &count, &error) == JAMBA_OK);
    for (i = 0; i < count; i++) ends += tokens[i] == 5;
    CHECK(ends == 0 && count > 3);
    CHECK(jamba_encode(story, text, sizeof text - 1, JAMBA_TEXT_SPECIAL, tokens, 64, &count, &error) == JAMBA_OK);
    for (i = 0; i < count; i++) ends += tokens[i] == 5;
    CHECK(ends == 1);
    CHECK(jamba_chat_encode(story, messages, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY, tokens, 64, &count, &error)
        == JAMBA_OK);
    for (ends = 0, i = 0; i < count; i++) ends += tokens[i] == 5;
    CHECK_THAT(ends == 1 && tokens[0] == 1, "%zu ends of turn", ends);
    CHECK(jamba_chat_encode(story, messages, 2, JAMBA_CHAT_BEGIN, tokens, 64, &count, &error) == JAMBA_ERR_UNSUPPORTED);
    CHECK_THAT(strstr(error.message, "robot") != NULL, "%s", error.message);
    CHECK(jamba_chat_encode(NULL, messages, 1, 0, tokens, 64, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_chat_encode(story, NULL, 1, 0, tokens, 64, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_chat_encode(story, messages, 1, 0, tokens, 64, NULL, &error) == JAMBA_ERR_ARGUMENT);
    messages[0].content = NULL;
    CHECK(jamba_chat_encode(story, messages, 1, 0, tokens, 64, &count, &error) == JAMBA_ERR_ARGUMENT);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "names and version", test_names },
        { "load arguments", test_load_arguments },
        { "describe", test_describe },
        { "session arguments", test_session_arguments },
        { "failed feeds leave no trace", test_failed_feeds },
        { "when there are logits", test_logits_times },
        { "feeding while a pass runs", test_feeding_meanwhile },
        { "stopping by the progress callback", test_stopping },
        { "text without a tokenizer", test_no_tokenizer },
        { "text that is not UTF-8", test_bad_utf8 },
        { "text arguments", test_text_arguments },
        { "special tokens in text", test_special_text },
    };
    test_start(argc, argv);
    if (!test_state.list) {
        test_require(convert("tests/cases/llama-linear", "llama-linear", "f32", model_path), "convert", "llama-linear");
        test_require(convert("examples/storyteller", "storyteller", "q8", story_path), "convert", "storyteller");
        model = load_for_cpu(model_path, JAMBA_CPU_BEST);
        story = load_for_cpu(story_path, JAMBA_CPU_BEST);
        test_require(model && story, "no model", "");
        vocab = model_vocab(model);
    }
    test_run(tests, sizeof tests / sizeof tests[0]);
    jamba_model_free(model);
    jamba_model_free(story);
    return test_summary();
}
