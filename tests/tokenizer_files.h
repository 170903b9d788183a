/* tokenizer_files.h - small tokenizers as files: the text of a tokenizer.json, and what writes a tokenizer.model */
#ifndef TOKENIZER_FILES_H
#define TOKENIZER_FILES_H

#include <string.h>

#include "../tools/sentencepiece.h"

#ifndef TEST_UNUSED
#define TEST_UNUSED
#endif

/* Pairs of characters, bytes to fall back on, U+2581 for a blank. `more`: further added tokens, each behind a comma. */
#define WORDS_JSON(more) \
    "{\"version\":\"1.0\",\"added_tokens\":[" \
    "{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false,\"lstrip\":false,\"rstrip\":false," \
    "\"single_word\":false}" more "]," \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"}," \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]}," \
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"always\"," \
    "\"split\":true}," \
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"}," \
    "\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}," \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}," \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":true," \
    "\"vocab\":{\"<unk>\":0,\"a\":1,\"b\":2,\"\\u2581\":3,\"ab\":4,\"\\u2581a\":5," \
    "\"<0xC3>\":6,\"<0xA9>\":7,\"aab\":8}," \
    "\"merges\":[[\"a\",\"b\"],\"\\u2581 a\",[\"a\",\"ab\"]]}}"

/* ---- messages of a tokenizer.model ------------------------------------------------------------------------- */

TEST_UNUSED static void pb_varint(tool_buffer *out, uint64_t value)
{
    for (; value > 127; value >>= 7) tool_buffer_u8(out, (uint8_t)(value | 128));
    tool_buffer_u8(out, (uint8_t)value);
}

TEST_UNUSED static void pb_number(tool_buffer *out, uint32_t field, uint64_t value)
{
    pb_varint(out, field << 3);
    pb_varint(out, value);
}

TEST_UNUSED static void pb_bytes(tool_buffer *out, uint32_t field, const void *bytes, size_t size)
{
    pb_varint(out, field << 3 | 2);
    pb_varint(out, size);
    tool_buffer_add(out, bytes, size);
}

TEST_UNUSED static void pb_message(tool_buffer *out, uint32_t field, tool_buffer *message)
{
    pb_bytes(out, field, message->data, message->size);
    tool_buffer_free(message);
}

TEST_UNUSED static void pb_piece(tool_buffer *out, const char *text, float score, sp_type type)
{
    tool_buffer piece = { NULL, 0, 0, false };
    pb_bytes(&piece, 1, text, strlen(text));
    tool_buffer_u8(&piece, 2 << 3 | 5);
    tool_buffer_u32(&piece, jmb_bits_of(score));
    pb_number(&piece, 3, type);
    pb_message(out, 1, &piece);
}

#endif
