/* state.c - a saved state of any bytes, restored into a live session: of the model that it names, of its twin with
 * other weights; then four tokens. With FUZZ_MENDS its hash is set right first. */
#include "mutate_words.h"
#include "subjects.h"

static const int kinds[] = { FUZZ_HYBRID, FUZZ_HYBRID_TWIN, FUZZ_ZAMBA, FUZZ_MAMBA2 };
enum { SUBJECTS = sizeof kinds / sizeof kinds[0] };

static subject subjects[SUBJECTS];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int i;
    (void)argc;
    (void)argv;
    for (i = 0; i < SUBJECTS; i++) {
        jamba_session_params params;
        memset(&params, 0, sizeof params);
        params.context = 40 + 10 * i;
        params.chunk = 3;
        params.marks = i;
        params.kv_type = (jamba_kv_type)(i % 3);
        subject_open(&subjects[i], kinds[i], &params);
    }
    return 0;
}

/* It goes on from whatever was restored. */
static void go_on(int i, const jamba_state_info *info)
{
    jamba_session *session = subjects[i].session;
    jamba_sampler sampler = info->sampler;
    jamba_reply_params reply;
    const char *text;
    size_t length, size, count;
    jamba_turn turns[4];
    uint8_t *bytes;
    int n;
    memset(&reply, 0, sizeof reply);
    reply.max_tokens = 2;
    jamba_turns(session, turns, 4);
    jamba_session_tokens(session, &count);
    if (jamba_step(session, 0) != JAMBA_OK) return;
    for (n = 0; n < 4; n++) {
        int32_t token = jamba_logits(session) ? jamba_sample(session, &sampler) : JAMBA_ERR_ARGUMENT;
        FUZZ_CHECK(token < subjects[i].vocab);
        if (token < 0) token = n;
        if (jamba_eval(session, &token, 1) != JAMBA_OK) break;
    }
    size = jamba_session_save(session, NULL, 0);
    bytes = (uint8_t *)malloc(size);
    FUZZ_CHECK(jamba_session_save(session, bytes, size) == size);
    FUZZ_CHECK(jamba_session_restore(session, bytes, size) == JAMBA_OK);
    free(bytes);
    jamba_reply(session, &reply, &text, &length);
    if (jamba_session_rewind(session, info->position / 2, NULL) == JAMBA_OK) jamba_step(session, 0);
}

static void restore(int i, const uint8_t *data, size_t size)
{
    jamba_session *session = subjects[i].session;
    jamba_state_info info;
    jamba_error error;
    jamba_result result, described;
    jamba_session_reset(session);
    fuzz_memory_begin();
    described = jamba_state_describe(data, size, &info, &error);
    result = jamba_session_restore(session, data, size);
    fuzz_memory_end(0);
    FUZZ_CHECK(described == JAMBA_OK || result != JAMBA_OK);
    if (result != JAMBA_OK) {
        FUZZ_CHECK(jamba_session_error(session)->code == result && jamba_session_error(session)->message[0]);
        return;
    }
    FUZZ_CHECK(memcmp(info.identity, subjects[i].identity, 32) == 0);
    go_on(i, &info);
}

static void run(const uint8_t *data, size_t size)
{
    int own = subject_named(subjects, SUBJECTS, data, size);
    restore(own, data, size);
    if (size >= 64) restore((own + 1) % 2, data, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_mended(data, size, fuzz_mend_state, run);
    return 0;
}
