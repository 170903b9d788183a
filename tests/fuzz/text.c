/* text.c - any bytes to tokens and back, on four kinds of tokenizer: the first byte chooses
 *
 * Text that is not UTF-8 is refused where it stops being that. What a byte-level tokenizer or one of pieces encodes,
 * it decodes to the same bytes; a stream gives the text of the whole. */
#include "subjects.h"

static const int kinds[] = { FUZZ_TEXT_PIECES, FUZZ_TEXT_BYTES, FUZZ_TEXT_WORDS, FUZZ_ZAMBA };
enum { SUBJECTS = sizeof kinds / sizeof kinds[0] };

static subject subjects[SUBJECTS];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    int i;
    (void)argc;
    (void)argv;
    for (i = 0; i < SUBJECTS; i++) subject_open(&subjects[i], kinds[i], NULL);
    return 0;
}

/* The pieces of one kind write a blank as U+2581, and read both as a blank. */
static size_t blanks_of_marks(char *text, size_t size)
{
    size_t from, to = 0;
    for (from = 0; from < size; to++) {
        bool mark = size - from >= 3 && memcmp(text + from, "\xe2\x96\x81", 3) == 0;
        text[to] = mark ? ' ' : text[from];
        from += mark ? 3 : 1;
    }
    return to;
}

/* Pieces of whole characters that make up `text`. Bytes that are no characters may be cut otherwise. */
static void check_stream(const jamba_model *model, const int32_t *tokens, size_t count, const char *text, size_t size)
{
    char *streamed = (char *)malloc((count + 1) * JAMBA_TEXT_MAX);
    jamba_text_stream stream;
    size_t got = 0, i;
    memset(&stream, 0, sizeof stream);
    for (i = 0; i < count; i++) got += jamba_decode_next(model, &stream, tokens[i], JAMBA_TEXT_SPECIAL, streamed + got);
    got += jamba_decode_next(model, &stream, -1, JAMBA_TEXT_SPECIAL, streamed + got);
    FUZZ_CHECK(got == size && memcmp(streamed, text, size) == 0);
    free(streamed);
}

static void check_back(int kind, const uint8_t *data, size_t size, const int32_t *tokens, size_t count)
{
    const jamba_model *model = subjects[kind].model;
    size_t need, length, want_size = size;
    char *want = fuzz_string(data, size), *text;
    FUZZ_CHECK(jamba_decode(model, tokens, count, JAMBA_TEXT_SPECIAL, NULL, 0, &need, NULL) == JAMBA_OK);
    text = (char *)malloc(need + 1);
    FUZZ_CHECK(jamba_decode(model, tokens, count, JAMBA_TEXT_SPECIAL, text, need, &length, NULL) == JAMBA_OK);
    FUZZ_CHECK(length == need);
    if (kinds[kind] == FUZZ_TEXT_PIECES) want_size = blanks_of_marks(want, size);
    if (kinds[kind] == FUZZ_TEXT_PIECES || kinds[kind] == FUZZ_TEXT_BYTES)
        FUZZ_CHECK(length == want_size && memcmp(text, want, want_size) == 0);
    check_stream(model, tokens, count, text, length);
    free(text);
    free(want);
}

static void encode(int kind, const uint8_t *data, size_t size, unsigned flags)
{
    jamba_error error;
    jamba_result result;
    int32_t *tokens;
    size_t need = 0, count, i;
    fuzz_memory_begin();
    result = jamba_encode(subjects[kind].model, (const char *)data, size, flags, NULL, 0, &need, &error);
    fuzz_memory_end(4096 + 400 * size);
    FUZZ_CHECK(result == JAMBA_OK || (result == JAMBA_ERR_TEXT && error.offset < size));
    if (result != JAMBA_OK) return;
    tokens = (int32_t *)malloc((need + 1) * sizeof *tokens);
    FUZZ_CHECK(need == 0
        || jamba_encode(subjects[kind].model, (const char *)data, size, flags, tokens, need, &count, NULL) == JAMBA_OK);
    for (i = 0; i < need; i++) FUZZ_CHECK(tokens[i] >= 0 && tokens[i] < subjects[kind].vocab);
    if (flags == 0) check_back(kind, data, size, tokens, need);
    free(tokens);
}

/* Any tokens decode, in one go and one by one. */
static void decode(int kind, const uint8_t *data, size_t size)
{
    int32_t *tokens = (int32_t *)malloc((size + 1) * sizeof *tokens);
    jamba_text_stream stream;
    char text[JAMBA_TEXT_MAX];
    size_t i, length;
    jamba_error error;
    memset(&stream, 0, sizeof stream);
    for (i = 0; i < size; i++) {
        tokens[i] = data[i] == 255 ? -1 : data[i] * 2 % subjects[kind].vocab;
        FUZZ_CHECK(jamba_decode_next(subjects[kind].model, &stream, tokens[i], 0, text) <= JAMBA_TEXT_MAX);
    }
    jamba_decode(subjects[kind].model, tokens, size, 0, NULL, 0, &length, &error);
    free(tokens);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int kind = size ? data[0] % SUBJECTS : 0;
    if (size == 0) return 0;
    encode(kind, data + 1, size - 1, 0);
    encode(kind, data + 1, size - 1, JAMBA_TEXT_SPECIAL | JAMBA_TEXT_BOS);
    decode(kind, data + 1, size - 1);
    return 0;
}
