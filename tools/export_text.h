/* export_text.h - tokenizer.json or tokenizer.model, and tokenizer_config.json, of a model file's tokenizer section
 * and chat format.
 *
 * The other direction of tokenizer.h: whatever it reads into the same section would do; this is the form that
 * the tokenizers and SentencePiece libraries write.
 */
#ifndef EXPORT_TEXT_H
#define EXPORT_TEXT_H

#include "export_config.h"

typedef struct text_export {
    const jmb_metadata *model;
    jmb_heap heap;
    jmb_tokenizer *t;
    char letters[256][4]; /* of each byte in a byte-level vocabulary, UTF-8 */
} text_export;

static void text_export_free(text_export *x)
{
    jmb_heap_free(&x->heap);
    free(x->t);
}

static void text_fill_letters(text_export *x)
{
    uint32_t c;
    for (c = 0; c <= 0x143; c++) {
        int byte = tokenizer_byte_of(c);
        char *letter = byte < 0 ? NULL : x->letters[byte];
        if (letter && c < 0x80) letter[0] = (char)c;
        else if (letter) {
            letter[0] = (char)(0xc0 | c >> 6);
            letter[1] = (char)(0x80 | (c & 0x3f));
        }
    }
}

static bool text_export_open(text_export *x, const model_file *file, tool_error *error)
{
    const jmb_metadata *m = &file->metadata;
    jamba_error problem;
    memset(x, 0, sizeof *x);
    x->model = m;
    x->heap.allocator = jmb_allocator_or_default(NULL);
    x->t = (jmb_tokenizer *)calloc(1, sizeof *x->t);
    if (!x->t) return tool_no_memory(error);
    text_fill_letters(x);
    return jmb_tokenizer_load(x->t, &x->heap, file->bytes + m->parts.tokenizer, (size_t)m->header.tokenizer_size,
               m->parts.tokenizer, m->header.vocab, &problem) == JAMBA_OK
        || tool_error_set(error, "%s", problem.message);
}

/* ---- tokens -------------------------------------------------------------------------------- */

static bool token_is(const text_export *x, uint32_t token, uint32_t flag)
{
    return (x->t->token_flags[token] & flag) != 0;
}

/* The text of a token as an entry of the vocabulary. */
static void put_entry(tool_buffer *out, const text_export *x, uint32_t token)
{
    char letters[2 * JMB_MAX_TOKEN];
    size_t size, i, used = 0;
    const uint8_t *text = jmb_token_data(x->t, token, &size);
    if (!(x->t->flags & JMB_TEXT_RAW) || !token_is(x, token, JMB_TOKEN_MODEL)) {
        put_string(out, (const char *)text, size);
        return;
    }
    for (i = 0; i < size; i++) {
        const char *letter = x->letters[text[i]];
        letters[used++] = letter[0];
        if (letter[1]) letters[used++] = letter[1];
    }
    put_string(out, letters, used);
}

static void put_token_text(tool_buffer *out, const text_export *x, uint32_t token)
{
    size_t size;
    const uint8_t *text = jmb_token_data(x->t, token, &size);
    put_string(out, (const char *)text, size);
}

/* From a tokenizer.model, and to one: tokenizer.json has no word for what its added tokens match, nor for merges of
 * equal rank. */
static bool text_is_sentencepiece(const text_export *x)
{
    return (x->t->flags & JMB_TEXT_AS_WRITTEN) != 0;
}

/* In a byte-level vocabulary unk alone may be an entry that merging cannot yield. */
static bool token_in_vocab(const text_export *x, uint32_t token)
{
    return token_is(x, token, JMB_TOKEN_MODEL) || token == x->t->unk;
}

static uint32_t count_vocab(const text_export *x)
{
    uint32_t i, count = 0;
    for (i = 0; i < x->t->tokens; i++) count += token_in_vocab(x, i);
    return count;
}

static void put_flag(tool_buffer *out, const char *name, bool set)
{
    put_text(out, ", \"");
    put_text(out, name);
    put_text(out, set ? "\": true" : "\": false");
}

/* The members of an added token, behind its id. */
static void put_added(tool_buffer *out, const text_export *x, uint32_t token)
{
    put_text(out, "\"content\": ");
    put_token_text(out, x, token);
    put_flag(out, "single_word", token_is(x, token, JMB_TOKEN_WORD));
    put_flag(out, "lstrip", token_is(x, token, JMB_TOKEN_LSTRIP));
    put_flag(out, "rstrip", token_is(x, token, JMB_TOKEN_RSTRIP));
    put_flag(out, "normalized", token_is(x, token, JMB_TOKEN_NORMALISED));
    put_flag(out, "special", token_is(x, token, JMB_TOKEN_SPECIAL));
    put_text(out, "}");
}

/* The type of piece that comes closest to a token. A byte's piece is never a merge's result. */
static sp_type token_piece_type(const text_export *x, uint32_t token)
{
    size_t size;
    const uint8_t *text = jmb_token_data(x->t, token, &size);
    if (token == x->t->unk) return SP_UNKNOWN;
    if (token_is(x, token, JMB_TOKEN_MODEL)) return jmb_byte_of(text, size) >= 0 ? SP_BYTE : SP_NORMAL;
    return token_is(x, token, JMB_TOKEN_SPECIAL) ? SP_CONTROL : SP_USER_DEFINED;
}

/* Whether tokenizer.json or tokenizer.model says the flags and id of an added token: the former gives those
 * outside the vocabulary the ids that follow it, `next` being the first of them left. */
static bool added_is_plain(const text_export *x, uint32_t token, uint32_t next)
{
    if (text_is_sentencepiece(x))
        return tokenizer_piece_flags[token_piece_type(x, token)] == x->t->token_flags[token];
    return token_in_vocab(x, token) || token == next;
}

/* The added tokens that tokenizer.json lists, or the `odd` ones that only tokenizer_config.json can. */
static void put_all_added(tool_buffer *out, const text_export *x, bool odd)
{
    uint32_t i, next = count_vocab(x);
    const char *between = "";
    for (i = 0; i < x->t->tokens; i++) {
        bool plain = added_is_plain(x, i, next);
        if (!token_is(x, i, JMB_TOKEN_ADDED)) continue;
        if (plain && !token_in_vocab(x, i)) next++;
        if (plain == odd) continue;
        put_text(out, between);
        between = ",";
        put_text(out, odd ? "\n    \"" : "\n    {\"id\": ");
        put_integer(out, i);
        put_text(out, odd ? "\": {" : ", ");
        put_added(out, x, i);
    }
}

/* ---- normaliser, pre-tokenizer, decoder ---------------------------------------------------- */

static void put_rule_string(tool_buffer *out, const char *before, const uint8_t *text, size_t size)
{
    put_text(out, before);
    put_string(out, (const char *)text, size);
}

static void put_replace(tool_buffer *out, const jmb_rule *rule)
{
    put_rule_string(out, "{\"type\": \"Replace\", \"pattern\": {\"String\": ", rule->from, rule->from_size);
    put_rule_string(out, "}, \"content\": ", rule->to, rule->to_size);
    put_text(out, "}");
}

static void put_normaliser_rule(tool_buffer *out, const jmb_rule *rule)
{
    if (rule->kind == JMB_RULE_NFC) put_text(out, "{\"type\": \"NFC\"}");
    else if (rule->kind == JMB_RULE_REPLACE) put_replace(out, rule);
    else {
        put_rule_string(out, "{\"type\": \"Prepend\", \"prepend\": ", rule->to, rule->to_size);
        put_text(out, "}");
    }
}

static void put_normaliser(tool_buffer *out, const jmb_tokenizer *t)
{
    uint32_t i;
    put_key(out, "normalizer");
    if (t->normaliser_count == 0) put_text(out, "null");
    if (t->normaliser_count > 1) put_text(out, "{\"type\": \"Sequence\", \"normalizers\": [");
    for (i = 0; i < t->normaliser_count; i++) {
        if (i > 0) put_text(out, ", ");
        put_normaliser_rule(out, &t->normaliser[i]);
    }
    if (t->normaliser_count > 1) put_text(out, "]}");
}

static void put_byte_level(tool_buffer *out, bool prefix, bool regex)
{
    put_text(out, "{\"type\": \"ByteLevel\"");
    put_flag(out, "add_prefix_space", prefix);
    put_flag(out, "trim_offsets", true);
    put_flag(out, "use_regex", regex);
    put_text(out, "}");
}

static void put_metaspace(
    tool_buffer *out, const uint8_t *replacement, size_t size, const char *scheme, bool split)
{
    put_rule_string(out, "{\"type\": \"Metaspace\", \"replacement\": ", replacement, size);
    put_text(out, ", \"prepend_scheme\": ");
    put_string(out, scheme, strlen(scheme));
    put_flag(out, "split", split);
    put_text(out, "}");
}

static void put_pre_tokenizer(tool_buffer *out, const jmb_tokenizer *t)
{
    bool always = (t->flags & JMB_TEXT_PREFIX_ALWAYS) != 0, first = (t->flags & JMB_TEXT_PREFIX_FIRST) != 0;
    put_key(out, "pre_tokenizer");
    if (t->flags & JMB_TEXT_RAW) put_byte_level(out, always, (t->flags & JMB_TEXT_GPT2) != 0);
    else if (t->space.kind)
        put_metaspace(out, t->space.to, t->space.to_size, always ? "always" : first ? "first" : "never",
            (t->flags & JMB_TEXT_SPLIT) != 0);
    else put_text(out, "null");
}

static void put_decoder(tool_buffer *out, const jmb_tokenizer *t)
{
    put_key(out, "decoder");
    if (t->flags & JMB_TEXT_RAW) {
        put_byte_level(out, true, true);
        return;
    }
    if (t->flags & JMB_TEXT_DROP_FIRST) {
        put_metaspace(out, t->decode.from, t->decode.from_size, "always", true);
        return;
    }
    put_text(out, "{\"type\": \"Sequence\", \"decoders\": [");
    if (t->decode.kind) put_replace(out, &t->decode);
    if (t->decode.kind) put_text(out, ", ");
    if (t->flags & JMB_TEXT_DECODE_BYTES) put_text(out, "{\"type\": \"ByteFallback\"}, ");
    put_text(out, "{\"type\": \"Fuse\"}");
    if (t->strip > 0) {
        put_text(out, ", {\"type\": \"Strip\", \"content\": \" \", \"start\": ");
        put_integer(out, t->strip);
        put_text(out, ", \"stop\": 0}");
    }
    put_text(out, "]}");
}

/* ---- tokenizer.json ------------------------------------------------------------------------ */

static void put_vocab(tool_buffer *out, const text_export *x)
{
    const char *between = "";
    uint32_t i;
    put_text(out, "\"vocab\": {");
    for (i = 0; i < x->t->tokens; i++) {
        if (!token_in_vocab(x, i)) continue;
        put_text(out, between);
        between = ",";
        put_text(out, "\n    ");
        put_entry(out, x, i);
        put_text(out, ": ");
        put_integer(out, i);
    }
    put_text(out, "}");
}

static void put_merges(tool_buffer *out, const text_export *x)
{
    uint32_t i;
    put_text(out, "\"merges\": [");
    for (i = 0; i < x->t->merges; i++) {
        put_text(out, i == 0 ? "\n    [" : ",\n    [");
        put_entry(out, x, x->t->merge[i].left);
        put_text(out, ", ");
        put_entry(out, x, x->t->merge[i].right);
        put_text(out, "]");
    }
    put_text(out, "]");
}

static void put_model(tool_buffer *out, const text_export *x)
{
    put_key(out, "model");
    put_text(out, "{\"type\": \"BPE\", \"dropout\": null, \"unk_token\": ");
    if (x->t->unk == JMB_NO_TOKEN) put_text(out, "null");
    else put_entry(out, x, x->t->unk);
    put_text(out, ", \"continuing_subword_prefix\": null, \"end_of_word_suffix\": null");
    put_flag(out, "fuse_unk", (x->t->flags & JMB_TEXT_FUSE_UNK) != 0);
    put_flag(out, "byte_fallback", (x->t->flags & JMB_TEXT_BYTES) != 0);
    put_flag(out, "ignore_merges", false);
    put_text(out, ",\n    ");
    put_vocab(out, x);
    put_text(out, ",\n    ");
    put_merges(out, x);
    put_text(out, "}");
}

static void export_tokenizer(const text_export *x, tool_buffer *out)
{
    put_text(out, "{");
    put_member(out, "version", "1.0");
    put_key(out, "truncation");
    put_text(out, "null");
    put_key(out, "padding");
    put_text(out, "null");
    put_key(out, "added_tokens");
    put_text(out, "[");
    put_all_added(out, x, false);
    put_text(out, "]");
    put_normaliser(out, x->t);
    put_pre_tokenizer(out, x->t);
    put_key(out, "post_processor");
    put_text(out, "null");
    put_decoder(out, x->t);
    put_model(out, x);
    put_text(out, "\n}\n");
}

/* ---- tokenizer.model ----------------------------------------------------------------------- */

static void sp_put_varint(tool_buffer *out, uint64_t value)
{
    for (; value >= 0x80; value >>= 7) tool_buffer_u8(out, (uint8_t)(value | 0x80));
    tool_buffer_u8(out, (uint8_t)value);
}

static void sp_put_number(tool_buffer *out, uint32_t field, uint64_t value)
{
    sp_put_varint(out, field << 3 | SP_VARINT);
    sp_put_varint(out, value);
}

static void sp_put_bytes(tool_buffer *out, uint32_t field, const void *bytes, size_t size)
{
    sp_put_varint(out, field << 3 | SP_BYTES);
    sp_put_varint(out, size);
    tool_buffer_add(out, bytes, size);
}

/* Appends a message and empties it. */
static void sp_put_message(tool_buffer *out, uint32_t field, tool_buffer *message)
{
    sp_put_bytes(out, field, message->data, message->size);
    out->failed = out->failed || message->failed;
    tool_buffer_free(message);
}

/* The score of a piece orders the merges that make it. */
static void sp_put_piece(tool_buffer *out, const text_export *x, uint32_t token, const float *scores)
{
    tool_buffer piece = { NULL, 0, 0, false };
    size_t size;
    const uint8_t *text = jmb_token_data(x->t, token, &size);
    sp_put_bytes(&piece, 1, text, size);
    sp_put_varint(&piece, 2 << 3 | SP_FIXED32);
    tool_buffer_u32(&piece, jmb_bits_of(scores[token]));
    sp_put_number(&piece, 3, token_piece_type(x, token));
    sp_put_message(out, 1, &piece);
}

/* Tokens behind the last piece are of tokenizer_config.json. */
static uint32_t sp_count_pieces(const text_export *x)
{
    uint32_t count = x->t->tokens;
    while (count > 0 && !added_is_plain(x, count - 1, 0) && !token_is(x, count - 1, JMB_TOKEN_MODEL)) count--;
    return count;
}

static void sp_put_specs(tool_buffer *out, const jmb_tokenizer *t)
{
    tool_buffer spec = { NULL, 0, 0, false };
    sp_put_number(&spec, 3, SP_BPE);
    sp_put_number(&spec, 35, (t->flags & JMB_TEXT_BYTES) != 0);
    sp_put_message(out, 2, &spec);
    sp_put_bytes(&spec, 1, "identity", 8);
    sp_put_number(&spec, 3, t->strip > 0); /* add_dummy_prefix */
    sp_put_number(&spec, 4, 0);            /* remove_extra_whitespaces */
    sp_put_number(&spec, 5, 1);            /* escape_whitespaces */
    sp_put_message(out, 3, &spec);
}

static void export_sentencepiece(const text_export *x, tool_buffer *out)
{
    float *scores = (float *)calloc(x->t->tokens, sizeof *scores);
    uint32_t i, count = sp_count_pieces(x);
    out->failed = out->failed || !scores;
    if (!scores) return;
    for (i = 0; i < x->t->tokens; i++) scores[i] = -(float)x->t->merges;
    for (i = 0; i < x->t->merges; i++) scores[x->t->merge[i].result] = -(float)x->t->merge[i].rank;
    for (i = 0; i < count; i++) sp_put_piece(out, x, i, scores);
    sp_put_specs(out, x->t);
    free(scores);
}

/* ---- chat template ------------------------------------------------------------------------- */

/* A string of Jinja. */
static void put_literal(tool_buffer *out, const char *text)
{
    tool_buffer_u8(out, '\'');
    for (; *text; text++) {
        if (*text == '\'' || *text == '\\') tool_buffer_u8(out, '\\');
        if (*text == '\n') put_text(out, "\\n");
        else tool_buffer_u8(out, (uint8_t)*text);
    }
    tool_buffer_u8(out, '\'');
}

static void put_output(tool_buffer *out, const char *text)
{
    put_text(out, "{{- ");
    put_literal(out, text);
    put_text(out, " }}");
}

static void put_turn(tool_buffer *out, const jmb_metadata *m, const char *role)
{
    put_text(out, "{{- ");
    put_literal(out, jmb_chat_string(m, role, "open"));
    put_text(out, " + message['content'] + ");
    put_literal(out, jmb_chat_string(m, role, "close"));
    put_text(out, " }}\n");
}

/* What stands in front of the first message. */
static void put_chat_begin(tool_buffer *out, const jmb_metadata *m)
{
    const char *begin = jmb_find_string(m, "chat.begin"), *system = jmb_find_string(m, "chat.default_system");
    const char *open = jmb_chat_string(m, "system", "open"), *close = jmb_chat_string(m, "system", "close");
    if (!begin) put_text(out, "{{- bos_token }}\n");
    else if (*begin) {
        put_output(out, begin);
        put_text(out, "\n");
    }
    if (!system || !open || !close) return;
    put_text(out, "{%- if not messages or messages[0]['role'] != 'system' %}");
    put_output(out, open);
    put_output(out, system);
    put_output(out, close);
    put_text(out, "{%- endif %}\n");
}

/* The role of a key chat.ROLE.open that has its close too; false for other keys. */
static bool chat_role_of(const jmb_metadata *m, const char *key, char role[33])
{
    size_t size = strlen(key), front = sizeof "chat." - 1, end = sizeof ".open" - 1;
    if (size <= front + end || size - front - end > 32 || strncmp(key, "chat.", front) != 0) return false;
    if (strcmp(key + size - end, ".open") != 0) return false;
    memcpy(role, key + front, size - front - end);
    role[size - front - end] = 0;
    return jmb_chat_string(m, role, "close") != NULL;
}

/* The file's format as a template: plain strings around the content of each role. */
static void export_chat_template(const jmb_metadata *m, tool_buffer *out)
{
    const char *reply = jmb_find_string(m, "chat.reply"), *branch = "{%- if";
    char role[33];
    uint32_t i;
    if (!reply) reply = jmb_chat_string(m, "assistant", "open");
    put_chat_begin(out, m);
    put_text(out, "{%- for message in messages %}\n");
    for (i = 0; i < m->string_count; i++) {
        if (!chat_role_of(m, m->strings[i].key, role)) continue;
        put_text(out, branch);
        put_text(out, " message['role'] == ");
        put_literal(out, role);
        put_text(out, " %}");
        put_turn(out, m, role);
        branch = "{%- elif";
    }
    put_text(out, "{%- else %}{{- raise_exception('no such role: ' + message['role']) }}\n{%- endif %}\n");
    put_text(out, "{%- endfor %}");
    if (!reply) return;
    put_text(out, "\n{%- if add_generation_prompt %}");
    put_output(out, reply);
    put_text(out, "{%- endif %}");
}

/* ---- tokenizer_config.json ----------------------------------------------------------------- */

static void put_special(tool_buffer *out, const text_export *x, const char *key, uint32_t token)
{
    size_t size;
    if (token >= x->t->tokens) return;
    jmb_token_data(x->t, token, &size);
    if (size == 0 || !token_is(x, token, JMB_TOKEN_ADDED)) return;
    put_key(out, key);
    put_token_text(out, x, token);
}

/* chatml without chat.begin has a first token whose text its folder did not tell. */
static bool text_knows_bos(const jmb_metadata *m)
{
    return !jmb_find_string(m, "chat.format") || jmb_find_string(m, "chat.begin");
}

static void export_tokenizer_config(const text_export *x, tool_buffer *out)
{
    const jmb_header *h = &x->model->header;
    tool_buffer template = { NULL, 0, 0, false };
    put_text(out, "{");
    put_member(out, "tokenizer_class", text_is_sentencepiece(x) ? "LlamaTokenizer" : "PreTrainedTokenizerFast");
    put_key(out, "model_max_length");
    put_integer(out, h->context);
    put_key(out, "clean_up_tokenization_spaces");
    put_text(out, "false");
    if (text_knows_bos(x->model)) put_special(out, x, "bos_token", h->bos);
    if (h->eos_count > 0) put_special(out, x, "eos_token", h->eos0);
    put_special(out, x, "pad_token", h->pad);
    put_special(out, x, "unk_token", x->t->unk);
    put_key(out, "added_tokens_decoder");
    put_text(out, "{");
    put_all_added(out, x, true);
    put_text(out, "}");
    if (jmb_find_string(x->model, "chat.format")) {
        export_chat_template(x->model, &template);
        put_key(out, "chat_template");
        put_string(out, (const char *)template.data, template.size);
    }
    put_text(out, "\n}\n");
    out->failed = out->failed || template.failed;
    tool_buffer_free(&template);
}

#endif
