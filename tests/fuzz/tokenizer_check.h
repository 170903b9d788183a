/* tokenizer_check.h - a compiled tokenizer in use: what it encodes are its tokens, and they decode */
#ifndef TOKENIZER_CHECK_H
#define TOKENIZER_CHECK_H

enum { CHECK_VOCAB = 600 };

static void check_encoding(const jmb_tokenizer *t, const jamba_allocator *allocator, const char *text, size_t size,
    bool special)
{
    jmb_piece piece = { text, size, special };
    int32_t tokens[400];
    size_t count, length, i;
    if (jmb_encode(t, allocator, &piece, 1, -1, tokens, 400, &count, NULL) != JAMBA_OK) return;
    for (i = 0; i < count; i++) FUZZ_CHECK(tokens[i] >= 0 && tokens[i] < CHECK_VOCAB);
    FUZZ_CHECK(jmb_decode(t, tokens, count, JAMBA_TEXT_SPECIAL, NULL, 0, &length, NULL) == JAMBA_OK);
}

/* `own`: a text from the file. */
static void check_section(const tool_buffer *section, const uint8_t *own, size_t own_size)
{
    static const char text[] = "ab  abc\xc3\xa9 \xe2\x96\x81<s>[x ]A's 12\xf0\x9f\x98\x80";
    jmb_heap heap = { { fuzz_alloc, fuzz_free, NULL }, NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
    FUZZ_CHECK(jmb_tokenizer_load(t, &heap, section->data, section->size, 0, CHECK_VOCAB, NULL) == JAMBA_OK);
    check_encoding(t, &heap.allocator, text, sizeof text - 1, true);
    check_encoding(t, &heap.allocator, text, sizeof text - 1, false);
    check_encoding(t, &heap.allocator, (const char *)own, own_size < 64 ? own_size : 64, true);
    jmb_heap_free(&heap);
    free(t);
}

#endif
