/* adapter.c - an adapter file of any bytes: load it for a model, set it, evaluate with it
 *
 * With FUZZ_MENDS its hash is set right first. */
#include "mutate_words.h"
#include "subjects.h"

static const int kinds[] = { FUZZ_HYBRID, FUZZ_ZAMBA, FUZZ_MAMBA2 };
enum { SUBJECTS = sizeof kinds / sizeof kinds[0] };

static subject subjects[SUBJECTS];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    jamba_session_params params;
    int i;
    (void)argc;
    (void)argv;
    memset(&params, 0, sizeof params);
    params.context = 16;
    params.chunk = 2;
    for (i = 0; i < SUBJECTS; i++) subject_open(&subjects[i], kinds[i], &params);
    return 0;
}

static void use(jamba_session *session, jamba_adapter *adapter, int32_t vocab)
{
    static const int32_t tokens[3] = { 1, 5, 3 };
    const float scales[2] = { 0.5f, -1 };
    jamba_adapter *both[2];
    jamba_adapter_info info;
    int32_t next;
    both[0] = both[1] = adapter;
    jamba_adapter_describe(adapter, &info);
    FUZZ_CHECK(info.matrices > 0 && info.rank > 0);
    jamba_session_reset(session);
    if (jamba_session_set_adapters(session, both, scales, 1 + info.parameters % 2) == JAMBA_OK) {
        FUZZ_CHECK(jamba_eval(session, tokens, 3) == JAMBA_OK);
        next = jamba_sample(session, NULL);
        FUZZ_CHECK((next >= 0 && next < vocab) || next == JAMBA_ERR_NUMERIC);
    }
    FUZZ_CHECK(jamba_session_set_adapters(session, NULL, NULL, 0) == JAMBA_OK);
}

static void run(const uint8_t *data, size_t size)
{
    jamba_adapter *adapter;
    jamba_error error;
    jamba_result result;
    int own = subject_named(subjects, SUBJECTS, data, size);
    fuzz_memory_begin();
    result = jamba_adapter_load(&adapter, subjects[own].model, jamba_from_memory(data, size), &error);
    fuzz_memory_end(4096 + 4 * size);
    FUZZ_CHECK((result == JAMBA_OK) == (adapter != NULL));
    FUZZ_CHECK(result == JAMBA_OK || (error.code == result && error.message[0]));
    if (adapter) use(subjects[own].session, adapter, subjects[own].vocab);
    jamba_adapter_free(adapter);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_mended(data, size, fuzz_mend_adapter, run);
    return 0;
}
