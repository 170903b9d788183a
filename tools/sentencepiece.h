/* sentencepiece.h - reads a tokenizer.model: the protocol buffer of a SentencePiece model.
 *
 *     message ModelProto { repeated SentencePiece pieces = 1; TrainerSpec trainer_spec = 2;
 *                          NormalizerSpec normalizer_spec = 3; ... }
 *
 * Strict where bytes are wrong (lengths, varints, groups, types of known fields); fields it does not know
 * are passed over. Nothing recurses: a message is a range of bytes.
 */
#ifndef SENTENCEPIECE_H
#define SENTENCEPIECE_H

#include "tool.h"

typedef enum sp_type { SP_NORMAL = 1, SP_UNKNOWN, SP_CONTROL, SP_USER_DEFINED, SP_UNUSED, SP_BYTE } sp_type;
enum { SP_BPE = 2, SP_MAX_BYTES = 1 << 28 };

typedef struct sp_piece {
    const char *text; /* in the file's bytes, not terminated */
    uint32_t size;
    float score;
    sp_type type;
} sp_piece;

typedef struct sp_model {
    sp_piece *pieces; /* the id is the index */
    uint32_t count;
    uint64_t kind; /* SP_BPE, or one of the others */
    bool byte_fallback, suffix, dummy_prefix, collapse_spaces, escape_spaces;
    char normalizer[64];
    bool has_charsmap;
} sp_model;

/* ---- protocol buffers ---------------------------------------------------------------------- */

enum { SP_VARINT, SP_FIXED64, SP_BYTES, SP_GROUP, SP_GROUP_END, SP_FIXED32 };

typedef struct sp_reader {
    const uint8_t *start, *p, *end;
    tool_error *error;
} sp_reader;

typedef struct sp_field {
    uint32_t number, wire;
    uint64_t value;      /* of a number; size of bytes */
    const uint8_t *data; /* of SP_BYTES */
} sp_field;

static bool sp_fail(const sp_reader *r, const char *what)
{
    return tool_error_set(r->error, "not a valid model at byte %zu: %s", (size_t)(r->p - r->start), what);
}

static bool sp_read_varint(sp_reader *r, uint64_t *value)
{
    unsigned shift;
    *value = 0;
    for (shift = 0;; shift += 7) {
        uint8_t byte;
        if (r->p == r->end) return sp_fail(r, "it ends inside a number");
        byte = *r->p++;
        if (shift == 63 && byte > 1) return sp_fail(r, "a number is too long");
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
}

static bool sp_read_fixed(sp_reader *r, size_t size, uint64_t *value)
{
    size_t i;
    if ((size_t)(r->end - r->p) < size) return sp_fail(r, "it ends inside a number");
    for (*value = 0, i = 0; i < size; i++) *value |= (uint64_t)*r->p++ << 8 * i;
    return true;
}

static bool sp_read_bytes(sp_reader *r, sp_field *field)
{
    if (!sp_read_varint(r, &field->value)) return false;
    if (field->value > (uint64_t)(r->end - r->p)) return sp_fail(r, "a field goes on after the end");
    field->data = r->p;
    r->p += field->value;
    return true;
}

/* The next field of a message that has not ended. */
static bool sp_read_field(sp_reader *r, sp_field *field)
{
    uint64_t tag;
    if (!sp_read_varint(r, &tag)) return false;
    if (tag > UINT32_MAX || tag < 8) return sp_fail(r, "a field has a wrong number");
    field->number = (uint32_t)(tag >> 3);
    field->wire = (uint32_t)(tag & 7);
    field->data = NULL;
    field->value = 0;
    switch (field->wire) {
    case SP_VARINT: return sp_read_varint(r, &field->value);
    case SP_FIXED64: return sp_read_fixed(r, 8, &field->value);
    case SP_FIXED32: return sp_read_fixed(r, 4, &field->value);
    case SP_BYTES: return sp_read_bytes(r, field);
    default: return sp_fail(r, "a field of a type that is not supported");
    }
}

static bool sp_expect(const sp_reader *r, const sp_field *field, uint32_t wire)
{
    return field->wire == wire || sp_fail(r, "a field has the wrong type");
}

/* The message inside a field. */
static bool sp_enter(const sp_reader *r, const sp_field *field, sp_reader *inner)
{
    if (!sp_expect(r, field, SP_BYTES)) return false;
    *inner = *r;
    inner->p = field->data;
    inner->end = field->data + field->value;
    return true;
}

static bool sp_get_bool(const sp_reader *r, const sp_field *field, bool *out)
{
    *out = field->value != 0;
    return sp_expect(r, field, SP_VARINT);
}

/* ---- the messages -------------------------------------------------------------------------- */

static bool sp_get_score(const sp_reader *r, const sp_field *field, float *score)
{
    uint32_t bits = (uint32_t)field->value;
    if (!sp_expect(r, field, SP_FIXED32)) return false;
    memcpy(score, &bits, sizeof *score);
    return (bits & 0x7f800000u) != 0x7f800000u || sp_fail(r, "a score is not finite");
}

static bool sp_get_text(const sp_reader *r, const sp_field *field, sp_piece *piece)
{
    if (!sp_expect(r, field, SP_BYTES)) return false;
    if (field->value == 0 || field->value > JMB_MAX_TOKEN) return sp_fail(r, "a piece has no text or too much");
    if (jmb_utf8_prefix(field->data, (size_t)field->value) < field->value)
        return sp_fail(r, "a piece is not valid UTF-8");
    piece->text = (const char *)field->data;
    piece->size = (uint32_t)field->value;
    return true;
}

static bool sp_get_type(const sp_reader *r, const sp_field *field, sp_piece *piece)
{
    if (!sp_expect(r, field, SP_VARINT)) return false;
    if (field->value < SP_NORMAL || field->value > SP_BYTE) return sp_fail(r, "a piece has an unknown type");
    piece->type = (sp_type)field->value;
    return true;
}

static bool sp_read_piece(sp_reader r, sp_piece *piece)
{
    sp_field field;
    memset(piece, 0, sizeof *piece);
    piece->type = SP_NORMAL;
    while (r.p < r.end) {
        if (!sp_read_field(&r, &field)) return false;
        if (field.number == 1 && !sp_get_text(&r, &field, piece)) return false;
        if (field.number == 2 && !sp_get_score(&r, &field, &piece->score)) return false;
        if (field.number == 3 && !sp_get_type(&r, &field, piece)) return false;
    }
    return piece->text || sp_fail(&r, "a piece has no text or too much");
}

static bool sp_read_trainer(sp_reader r, sp_model *m)
{
    sp_field field;
    while (r.p < r.end) {
        if (!sp_read_field(&r, &field)) return false;
        if (field.number == 3 && !sp_expect(&r, &field, SP_VARINT)) return false;
        if (field.number == 3) m->kind = field.value;
        if (field.number == 24 && !sp_get_bool(&r, &field, &m->suffix)) return false;
        if (field.number == 35 && !sp_get_bool(&r, &field, &m->byte_fallback)) return false;
    }
    return true;
}

static bool sp_get_name(const sp_reader *r, const sp_field *field, sp_model *m)
{
    size_t size = field->value < sizeof m->normalizer ? (size_t)field->value : sizeof m->normalizer - 1;
    if (!sp_expect(r, field, SP_BYTES)) return false;
    memcpy(m->normalizer, field->data, size);
    m->normalizer[size] = 0;
    return true;
}

static bool sp_get_charsmap(const sp_reader *r, const sp_field *field, sp_model *m)
{
    m->has_charsmap = field->value > 0;
    return sp_expect(r, field, SP_BYTES);
}

static bool sp_read_normalizer(sp_reader r, sp_model *m)
{
    sp_field field;
    while (r.p < r.end) {
        if (!sp_read_field(&r, &field)) return false;
        if (field.number == 1 && !sp_get_name(&r, &field, m)) return false;
        if (field.number == 2 && !sp_get_charsmap(&r, &field, m)) return false;
        if (field.number == 3 && !sp_get_bool(&r, &field, &m->dummy_prefix)) return false;
        if (field.number == 4 && !sp_get_bool(&r, &field, &m->collapse_spaces)) return false;
        if (field.number == 5 && !sp_get_bool(&r, &field, &m->escape_spaces)) return false;
    }
    return true;
}

static bool sp_add_piece(sp_reader *r, const sp_field *field, tool_buffer *pieces)
{
    sp_reader inner;
    sp_piece piece;
    if (!sp_enter(r, field, &inner) || !sp_read_piece(inner, &piece)) return false;
    if (pieces->size / sizeof piece == JMB_MAX_VOCAB) return sp_fail(r, "too many pieces");
    return tool_buffer_add(pieces, &piece, sizeof piece) || tool_no_memory(r->error);
}

static bool sp_read_model(sp_reader *r, sp_model *m, tool_buffer *pieces)
{
    while (r->p < r->end) {
        sp_field field;
        sp_reader inner;
        if (!sp_read_field(r, &field)) return false;
        if (field.number == 1 && !sp_add_piece(r, &field, pieces)) return false;
        if (field.number == 2 && (!sp_enter(r, &field, &inner) || !sp_read_trainer(inner, m))) return false;
        if (field.number == 3 && (!sp_enter(r, &field, &inner) || !sp_read_normalizer(inner, m))) return false;
    }
    return pieces->size > 0 || sp_fail(r, "it has no pieces");
}

/* Reads a model whose bytes outlive it. free(m->pieces), on failure NULL. */
JMB_UNUSED static bool sp_parse(sp_model *m, const uint8_t *data, size_t size, tool_error *error)
{
    sp_reader r;
    tool_buffer pieces = { NULL, 0, 0, false };
    memset(m, 0, sizeof *m);
    r.start = r.p = data;
    r.end = data + size;
    r.error = error;
    m->kind = 1; /* the defaults of the format */
    m->dummy_prefix = m->collapse_spaces = m->escape_spaces = true;
    if (!sp_read_model(&r, m, &pieces)) {
        tool_buffer_free(&pieces);
        return false;
    }
    m->pieces = (sp_piece *)(void *)pieces.data;
    m->count = (uint32_t)(pieces.size / sizeof *m->pieces);
    return true;
}

#endif
