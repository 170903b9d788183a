/* tokenizer.h - compiles the tokenizer.json of a Hugging Face folder, or its tokenizer.model, into the
 * tokenizer section of a model file (its layout: >>tokenizer in jamba.h).
 *
 * Only what the header reproduces exactly is compiled: BPE with merges, byte fallback or unk, the
 * normalisers Prepend, Replace and NFC, the pre-tokenizers Metaspace and ByteLevel, the decoders Replace,
 * ByteFallback, Fuse, Strip, Metaspace and ByteLevel, added tokens with their flags. Anything else is an error
 * that names it. Truncation and padding concern batches and the post-processor adds tokens, which is the
 * caller's business: ignored. tokenizer_config.json adds the tokens that it alone lists.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "json.h"
#include "sentencepiece.h"

enum { TOKENIZER_MAX_TEXT = 2 * JMB_MAX_TOKEN }; /* of a token as written: a byte has one or two */

typedef struct tokenizer_token {
    const char *text; /* as in the section, in a document or in `bytes` of the build */
    uint32_t size;
    uint8_t flags;  /* JMB_TOKEN_... */
    bool unclaimed; /* not of bytes, in a byte-level vocabulary: must be an added token */
} tokenizer_token;

/* A tokenizer on its way to a section. */
typedef struct tokenizer_build {
    const json_value *config; /* tokenizer_config.json, or NULL */
    uint32_t vocab;           /* of the model: ids are below */
    tokenizer_token *tokens;  /* [vocab] */
    char *raw_text;           /* of byte-level tokens */
    uint32_t count;          /* highest id in use and one */
    uint32_t model_count;    /* entries of the model's vocabulary */
    uint32_t flags, unk, strip, bytes[256];
    uint32_t next_added; /* id of the next added token that the vocabulary lacks */
    tool_buffer rules, merges;
    uint32_t rule_count, merge_count;
    jmb_heap heap;
    jmb_tokenizer index; /* tokens by text, through the header's own loader */
    tool_error *error;
} tokenizer_build;

/* ---- reading JSON -------------------------------------------------------------------------- */

/* Every key of `v` is one of the words in `known`, which begins and ends with a blank. */
static bool tokenizer_known_keys(tokenizer_build *b, const json_value *v, const char *what, const char *known)
{
    const json_value *member;
    if (json_kind(v) != JSON_OBJECT) return tool_error_set(b->error, "%s is not an object", what);
    for (member = json_first(v); member; member = json_next(member)) {
        char word[64];
        size_t length;
        const char *key = json_key(member, &length);
        if (snprintf(word, sizeof word, " %s ", key) != (int)length + 2 || length + 2 >= sizeof word
            || strchr(key, ' ') || !strstr(known, word))
            return tool_error_set(b->error, "%s has the key \"%.40s\", which is not known", what, key);
    }
    return true;
}

/* The "type" of a part; "" when it has none. */
static const char *tokenizer_type(const json_value *v)
{
    const char *type = json_string(json_get(v, "type"), NULL);
    return type ? type : "";
}

static bool tokenizer_unsupported(tokenizer_build *b, const char *what, const json_value *v)
{
    return tool_error_set(b->error, "%s \"%.60s\" is not supported", what, tokenizer_type(v));
}

/* A boolean; `fallback` when absent or null. */
static bool tokenizer_flag(tokenizer_build *b, const json_value *v, const char *key, bool fallback, bool *out)
{
    const json_value *value = json_get(v, key);
    *out = fallback;
    if (!value || json_kind(value) == JSON_NULL || json_bool(value, out)) return true;
    return tool_error_set(b->error, "\"%s\" is neither true nor false", key);
}

static bool tokenizer_add_rule(
    tokenizer_build *b, uint32_t kind, const char *from, size_t from_size, const char *to, size_t to_size)
{
    size_t padding = (4 - (from_size + to_size) % 4) % 4;
    if (from_size > JMB_MAX_RULE_TEXT || to_size > JMB_MAX_RULE_TEXT)
        return tool_error_set(b->error, "a pattern or replacement has more than %d bytes", (int)JMB_MAX_RULE_TEXT);
    tool_buffer_u32(&b->rules, kind);
    tool_buffer_u32(&b->rules, (uint32_t)from_size);
    tool_buffer_u32(&b->rules, (uint32_t)to_size);
    tool_buffer_add(&b->rules, from, from_size);
    tool_buffer_add(&b->rules, to, to_size);
    tool_buffer_add(&b->rules, "\0\0\0", padding);
    if (++b->rule_count > JMB_MAX_RULES) return tool_error_set(b->error, "more than %d rules", (int)JMB_MAX_RULES);
    return true;
}

/* The list `key` of a Sequence. */
static bool tokenizer_sequence(tokenizer_build *b, const json_value *v, const char *key, const json_value **first)
{
    const json_value *list = json_get(v, key);
    *first = json_first(list);
    return json_kind(list) == JSON_ARRAY || tool_error_set(b->error, "a Sequence lacks the list \"%s\"", key);
}

/* ---- normaliser ---------------------------------------------------------------------------- */

static bool tokenizer_add_replace(tokenizer_build *b, const json_value *v, uint32_t kind)
{
    const json_value *pattern = json_get(v, "pattern");
    size_t from_size, to_size;
    const char *from = json_string(json_get(pattern, "String"), &from_size);
    const char *to = json_string(json_get(v, "content"), &to_size);
    if (!tokenizer_known_keys(b, v, "Replace", " type pattern content ")) return false;
    if (json_get(pattern, "Regex")) return tool_error_set(b->error, "Replace of a regular expression is not supported");
    if (!from || from_size == 0 || !to) return tool_error_set(b->error, "Replace lacks a String pattern or a content");
    return tokenizer_add_rule(b, kind, from, from_size, to, to_size);
}

static bool tokenizer_add_prepend(tokenizer_build *b, const json_value *v)
{
    size_t size;
    const char *text = json_string(json_get(v, "prepend"), &size);
    if (!tokenizer_known_keys(b, v, "Prepend", " type prepend ")) return false;
    if (!text) return tool_error_set(b->error, "Prepend has no string \"prepend\"");
    return size == 0 || tokenizer_add_rule(b, JMB_RULE_PREPEND, "", 0, text, size);
}

static bool tokenizer_add_normaliser(tokenizer_build *b, const json_value *v)
{
    if (strcmp(tokenizer_type(v), "Prepend") == 0) return tokenizer_add_prepend(b, v);
    if (strcmp(tokenizer_type(v), "Replace") == 0) return tokenizer_add_replace(b, v, JMB_RULE_REPLACE);
    if (strcmp(tokenizer_type(v), "NFC") == 0)
        return tokenizer_known_keys(b, v, "NFC", " type ") && tokenizer_add_rule(b, JMB_RULE_NFC, "", 0, "", 0);
    return tokenizer_unsupported(b, "normalizer", v);
}

static bool tokenizer_read_normaliser(tokenizer_build *b, const json_value *v)
{
    const json_value *item;
    if (!v || json_kind(v) == JSON_NULL) return true;
    if (strcmp(tokenizer_type(v), "Sequence") != 0) return tokenizer_add_normaliser(b, v);
    if (!tokenizer_known_keys(b, v, "normalizer", " type normalizers ")
        || !tokenizer_sequence(b, v, "normalizers", &item))
        return false;
    for (; item; item = json_next(item))
        if (!tokenizer_add_normaliser(b, item)) return false;
    return true;
}

/* ---- Metaspace: pre-tokenizer and decoder -------------------------------------------------- */

typedef struct tokenizer_metaspace {
    const char *replacement;
    size_t size;
    uint32_t prefix; /* JMB_TEXT_PREFIX_FIRST, _ALWAYS or 0 */
    bool split;
} tokenizer_metaspace;

static bool tokenizer_read_metaspace(tokenizer_build *b, const json_value *v, tokenizer_metaspace *m)
{
    const json_value *scheme = json_get(v, "prepend_scheme");
    bool add_prefix;
    m->replacement = json_string(json_get(v, "replacement"), &m->size);
    if (!tokenizer_known_keys(b, v, "Metaspace", " type replacement prepend_scheme split add_prefix_space str_rep ")
        || !tokenizer_flag(b, v, "split", true, &m->split)
        || !tokenizer_flag(b, v, "add_prefix_space", true, &add_prefix))
        return false;
    if (!m->replacement || m->size == 0 || jmb_utf8((const uint8_t *)m->replacement, m->size) != (int)m->size)
        return tool_error_set(b->error, "the replacement of Metaspace is not one character");
    m->prefix = 0;
    if (json_is_string(scheme, "first")) m->prefix = JMB_TEXT_PREFIX_FIRST;
    else if (json_is_string(scheme, "always")) m->prefix = JMB_TEXT_PREFIX_ALWAYS;
    else if (!scheme) m->prefix = add_prefix ? JMB_TEXT_PREFIX_ALWAYS : 0; /* the older form */
    else if (!json_is_string(scheme, "never")) return tool_error_set(b->error, "Metaspace: unknown prepend_scheme");
    if (m->prefix && !add_prefix)
        return tool_error_set(b->error, "Metaspace: add_prefix_space and prepend_scheme contradict each other");
    return true;
}

/* "first" asks where a text began before normalisation: that is sure only where a character becomes
 * one or more. (NFC keeps the beginning: what composes does so with the character in front.) */
static bool tokenizer_check_first(tokenizer_build *b)
{
    size_t at = 0;
    while (at < b->rules.size) {
        const uint8_t *p = b->rules.data + at;
        uint32_t from_size = jmb_load_u32(p + 4), to_size = jmb_load_u32(p + 8);
        if (from_size > 0 && (to_size == 0 || jmb_utf8(p + 12, from_size) != (int)from_size))
            return tool_error_set(b->error, "Metaspace \"first\" after Replace of or by other than a character");
        at += 12 + (((size_t)from_size + to_size + 3) & ~(size_t)3);
    }
    return true;
}

static bool tokenizer_read_byte_level(tokenizer_build *b, const json_value *v, bool *prefix, bool *split)
{
    bool trim; /* concerns offsets only */
    return tokenizer_known_keys(b, v, "ByteLevel", " type add_prefix_space trim_offsets use_regex ")
        && tokenizer_flag(b, v, "add_prefix_space", true, prefix) && tokenizer_flag(b, v, "use_regex", true, split)
        && tokenizer_flag(b, v, "trim_offsets", true, &trim);
}

static bool tokenizer_add_byte_level(tokenizer_build *b, const json_value *v)
{
    bool prefix, split;
    if (!tokenizer_read_byte_level(b, v, &prefix, &split)) return false;
    b->flags |= JMB_TEXT_RAW | (split ? (uint32_t)JMB_TEXT_GPT2 : 0);
    if (!prefix) return true;
    b->flags |= JMB_TEXT_PREFIX_ALWAYS;
    return tokenizer_add_rule(b, JMB_RULE_SPACE, " ", 1, " ", 1);
}

static bool tokenizer_read_pre_tokenizer(tokenizer_build *b, const json_value *v)
{
    tokenizer_metaspace m;
    if (!v || json_kind(v) == JSON_NULL) return true;
    if (strcmp(tokenizer_type(v), "ByteLevel") == 0) return tokenizer_add_byte_level(b, v);
    if (strcmp(tokenizer_type(v), "Metaspace") != 0) return tokenizer_unsupported(b, "pre_tokenizer", v);
    if (!tokenizer_read_metaspace(b, v, &m)) return false;
    if (m.prefix == JMB_TEXT_PREFIX_FIRST && !tokenizer_check_first(b)) return false;
    b->flags |= m.prefix | (m.split ? (uint32_t)JMB_TEXT_SPLIT : 0);
    return tokenizer_add_rule(b, JMB_RULE_SPACE, " ", 1, m.replacement, m.size);
}

/* ---- decoder ------------------------------------------------------------------------------- */

enum { TOKENIZER_REPLACE = 1, TOKENIZER_BYTES, TOKENIZER_FUSE, TOKENIZER_STRIP };

static bool tokenizer_read_strip(tokenizer_build *b, const json_value *v)
{
    int64_t start, stop;
    if (!tokenizer_known_keys(b, v, "Strip", " type content start stop ")) return false;
    if (!json_is_string(json_get(v, "content"), " ") || !json_int(json_get(v, "start"), &start)
        || !json_int(json_get(v, "stop"), &stop) || stop != 0 || start < 0 || start > JMB_MAX_STRIP)
        return tool_error_set(b->error, "decoder Strip: only up to %d spaces at the start", (int)JMB_MAX_STRIP);
    b->strip = (uint32_t)start;
    return true;
}

/* The rule may neither break a byte token nor make one. */
static bool tokenizer_check_decode_rule(tokenizer_build *b, const json_value *v)
{
    size_t from_size, to_size, i;
    const char *from = json_string(json_get(json_get(v, "pattern"), "String"), &from_size);
    const char *to = json_string(json_get(v, "content"), &to_size);
    bool clear = to_size <= 3 * from_size;
    for (i = 0; i < from_size; i++) clear = clear && !memchr("<0x123456789abcdefABCDEF>", from[i], 25);
    for (i = 0; i < to_size; i++) clear = clear && !memchr("<0x123456789abcdefABCDEF>", to[i], 25);
    return clear || tool_error_set(b->error, "decoder Replace of \"%.60s\" by \"%.60s\" is not supported", from, to);
}

/* One decoder. *stage is the last one's: only their usual order is what the header does. */
static bool tokenizer_add_decoder(tokenizer_build *b, const json_value *v, int *stage)
{
    static const char *const names[] = { "", "Replace", "ByteFallback", "Fuse", "Strip" };
    int found = TOKENIZER_STRIP;
    while (found > 0 && strcmp(tokenizer_type(v), names[found]) != 0) found--;
    if (found == 0) return tokenizer_unsupported(b, "decoder", v);
    if (found <= *stage || (found == TOKENIZER_STRIP && *stage != TOKENIZER_FUSE))
        return tool_error_set(b->error, "decoder %s stands in an unusual place, which is not supported", names[found]);
    *stage = found;
    if (found == TOKENIZER_STRIP) return tokenizer_read_strip(b, v);
    if (found == TOKENIZER_REPLACE)
        return tokenizer_add_replace(b, v, JMB_RULE_DECODE) && tokenizer_check_decode_rule(b, v);
    if (found == TOKENIZER_BYTES) b->flags |= JMB_TEXT_DECODE_BYTES;
    return tokenizer_known_keys(b, v, names[found], " type ");
}

static bool tokenizer_read_decoder(tokenizer_build *b, const json_value *v)
{
    tokenizer_metaspace m;
    const json_value *item;
    int stage = 0;
    bool raw = (b->flags & JMB_TEXT_RAW) != 0, prefix, split;
    if (!v || json_kind(v) == JSON_NULL)
        return tool_error_set(b->error, "there is no decoder: tokens joined by blanks are not supported");
    if ((strcmp(tokenizer_type(v), "ByteLevel") == 0) != raw)
        return tool_error_set(b->error, "ByteLevel must be both pre_tokenizer and decoder, or neither");
    if (raw) return tokenizer_read_byte_level(b, v, &prefix, &split);
    if (strcmp(tokenizer_type(v), "Metaspace") == 0) {
        if (!tokenizer_read_metaspace(b, v, &m)) return false;
        if (m.prefix) b->flags |= JMB_TEXT_DROP_FIRST;
        return tokenizer_add_rule(b, JMB_RULE_DECODE, m.replacement, m.size, " ", 1);
    }
    if (strcmp(tokenizer_type(v), "Sequence") != 0) return tokenizer_add_decoder(b, v, &stage);
    if (!tokenizer_known_keys(b, v, "decoder", " type decoders ") || !tokenizer_sequence(b, v, "decoders", &item))
        return false;
    for (; item; item = json_next(item))
        if (!tokenizer_add_decoder(b, item, &stage)) return false;
    return true;
}

/* ---- tokens -------------------------------------------------------------------------------- */

/* The byte that a byte-level vocabulary writes as this character; -1 when it is none. Printable ones of
 * Latin-1 stand for themselves, the other 68 are U+0100 and on. */
static int tokenizer_byte_of(uint32_t c)
{
    if ((c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff)) return (int)c;
    if (c >= 0x100 && c <= 0x120) return (int)c - 0x100;        /* 0 to 0x20 */
    if (c >= 0x121 && c <= 0x142) return (int)c - 0x121 + 0x7f; /* 0x7f to 0xa0 */
    return c == 0x143 ? 0xad : -1;
}

/* The bytes that a byte-level text stands for; false when it has characters that stand for none. `out` has
 * room for `size` bytes. */
static bool tokenizer_to_bytes(const char *text, size_t size, char *out, size_t *out_size)
{
    jmb_unit c[4];
    size_t at, length;
    *out_size = 0;
    for (at = 0; at < size; at += length) {
        int byte;
        length = jmb_char_size((uint8_t)text[at]); /* JSON text is valid UTF-8 */
        jmb_put_units(c, text + at, length, 0);
        byte = tokenizer_byte_of(jmb_char_at(c));
        if (byte < 0) return false;
        out[(*out_size)++] = (char)byte;
    }
    return true;
}

/* Enters a text under an id that is free. */
static bool tokenizer_add_token(tokenizer_build *b, const char *text, size_t size, int64_t id, uint32_t flags)
{
    tokenizer_token *token;
    int shown = size < 60 ? (int)size : 60;
    if (id < 0 || id >= (int64_t)b->vocab)
        return tool_error_set(b->error, "token \"%.*s\" has id %lld, the model has ids 0 to %u", shown, text,
            (long long)id, b->vocab - 1);
    if (size > JMB_MAX_TOKEN)
        return tool_error_set(b->error, "token %lld has more than %d bytes", (long long)id, (int)JMB_MAX_TOKEN);
    token = &b->tokens[id];
    if (token->text)
        return tool_error_set(b->error, "tokens \"%.*s\" and \"%.*s\" both have id %lld",
            token->size < 60 ? (int)token->size : 60, token->text, shown, text, (long long)id);
    token->text = text;
    token->size = (uint32_t)size;
    token->flags = (uint8_t)(size > 0 ? flags : 0);
    if (id >= (int64_t)b->count) b->count = (uint32_t)id + 1;
    return true;
}

/* An entry of a byte-level vocabulary. *room is where its bytes go. */
static bool tokenizer_add_raw(tokenizer_build *b, const char *text, size_t size, int64_t id, char **room)
{
    size_t raw_size;
    if (!tokenizer_to_bytes(text, size, *room, &raw_size)) {
        if (!tokenizer_add_token(b, text, size, id, JMB_TOKEN_ADDED)) return false;
        b->tokens[id].unclaimed = true;
        return true;
    }
    if (!tokenizer_add_token(b, *room, raw_size, id, JMB_TOKEN_MODEL)) return false;
    *room += raw_size;
    return true;
}

static bool tokenizer_read_vocab(tokenizer_build *b, const json_value *vocab)
{
    const json_value *entry;
    size_t total = 1;
    char *room;
    if (json_kind(vocab) != JSON_OBJECT) return tool_error_set(b->error, "\"vocab\" is not an object");
    for (entry = json_first(vocab); entry; entry = json_next(entry)) {
        size_t size;
        json_key(entry, &size);
        total += size;
    }
    b->raw_text = room = (char *)malloc(total);
    if (!room) return tool_no_memory(b->error);
    for (entry = json_first(vocab); entry; entry = json_next(entry)) {
        size_t size;
        const char *text = json_key(entry, &size);
        int64_t id;
        if (!json_int(entry, &id)) return tool_error_set(b->error, "token \"%.60s\" has no integer id", text);
        if (b->flags & JMB_TEXT_RAW ? !tokenizer_add_raw(b, text, size, id, &room)
                                    : !tokenizer_add_token(b, text, size, id, JMB_TOKEN_MODEL))
            return false;
    }
    b->model_count = (uint32_t)json_count(vocab);
    return b->model_count > 0 || tool_error_set(b->error, "the vocabulary is empty");
}

/* What the flags of an added token say. Without `all`, they may be absent. */
static bool tokenizer_added_flags(tokenizer_build *b, const json_value *v, bool all, uint32_t *flags)
{
    static const char *const keys[] = { "special", "lstrip", "rstrip", "single_word", "normalized" };
    static const uint32_t bits[] = { JMB_TOKEN_SPECIAL, JMB_TOKEN_LSTRIP, JMB_TOKEN_RSTRIP, JMB_TOKEN_WORD,
        JMB_TOKEN_NORMALISED };
    size_t i;
    *flags = JMB_TOKEN_ADDED;
    for (i = 0; i < sizeof bits / sizeof *bits; i++) {
        const json_value *flag = json_get(v, keys[i]);
        bool set = bits[i] == JMB_TOKEN_NORMALISED && !(*flags & JMB_TOKEN_SPECIAL); /* the library's default */
        if ((flag || all) && !json_bool(flag, &set))
            return tool_error_set(b->error, "an added token lacks \"%s\"", keys[i]);
        if (set) *flags |= bits[i];
    }
    return true;
}

/* The token of the vocabulary that is written like this; JMB_NO_TOKEN when there is none. */
static uint32_t tokenizer_known(const tokenizer_build *b, const char *text, size_t size)
{
    char raw[TOKENIZER_MAX_TEXT];
    size_t raw_size = size;
    bool plain = !(b->flags & JMB_TEXT_RAW);
    if (size > sizeof raw) return JMB_NO_TOKEN;
    if (plain) memcpy(raw, text, size);
    if (plain || tokenizer_to_bytes(text, size, raw, &raw_size))
        return jmb_model_token(&b->index, (const uint8_t *)raw, raw_size);
    return jmb_find_text(&b->index, (const uint8_t *)text, size, JMB_TOKEN_ADDED, NULL);
}

/* Decoding would read such an added token as bytes: it is matched as one text and written as another. */
static bool tokenizer_check_added_text(tokenizer_build *b, const char *text, size_t size)
{
    char raw[TOKENIZER_MAX_TEXT];
    size_t raw_size;
    if (!(b->flags & JMB_TEXT_RAW) || size > sizeof raw || !tokenizer_to_bytes(text, size, raw, &raw_size))
        return true;
    return raw_size == size /* ASCII, which stands for itself */
        || tool_error_set(b->error, "added token \"%.60s\" is letters for bytes: not supported", text);
}

/* Makes a token, which may be in the vocabulary, an added one. */
static bool tokenizer_enter_added(tokenizer_build *b, const char *text, size_t size, int64_t id, uint32_t flags)
{
    uint32_t known = tokenizer_known(b, text, size);
    tokenizer_token *token;
    if (!tokenizer_check_added_text(b, text, size)) return false;
    if (known == JMB_NO_TOKEN) return tokenizer_add_token(b, text, size, id, flags);
    token = &b->tokens[known];
    token->flags = (uint8_t)(token->unclaimed ? flags : JMB_TOKEN_MODEL | flags);
    token->unclaimed = false;
    return true;
}

/* The id that the reference gives: that of the same text in the model's vocabulary, else the next. The file
 * must agree, since the model was trained with one of them. */
static bool tokenizer_add_added(tokenizer_build *b, const json_value *v)
{
    size_t size;
    const char *text = json_string(json_get(v, "content"), &size);
    uint32_t flags, known;
    int64_t id;
    if (!tokenizer_known_keys(b, v, "an added token", " id content special lstrip rstrip single_word normalized ")
        || !tokenizer_added_flags(b, v, true, &flags))
        return false;
    if (!text || size == 0 || !json_int(json_get(v, "id"), &id))
        return tool_error_set(b->error, "an added token lacks a \"content\" or an integer \"id\"");
    known = tokenizer_known(b, text, size);
    if (id != (int64_t)(known == JMB_NO_TOKEN ? b->next_added : known))
        return tool_error_set(b->error, "added token \"%.60s\" has id %lld, the vocabulary gives it %u", text,
            (long long)id, known == JMB_NO_TOKEN ? b->next_added : known);
    if (known == JMB_NO_TOKEN) b->next_added++;
    else if ((b->tokens[known].flags & JMB_TOKEN_ADDED) && !b->tokens[known].unclaimed)
        return tool_error_set(b->error, "added token \"%.60s\" twice", text);
    return tokenizer_enter_added(b, text, size, id, flags);
}

/* A token that tokenizer_config.json lists under its id, unless it is an added one already. */
static bool tokenizer_add_config(tokenizer_build *b, const json_value *v)
{
    size_t size;
    const char *text = json_string(json_get(v, "content"), &size), *key = json_key(v, NULL);
    const tokenizer_token *token;
    int64_t id;
    uint32_t flags, known;
    if (!tool_parse_int(key, 0, (int64_t)b->vocab - 1, &id))
        return tool_error_set(b->error, "added_tokens_decoder: \"%.40s\" is no id from 0 to %u", key, b->vocab - 1);
    if (!text || size == 0)
        return tool_error_set(b->error, "added_tokens_decoder: token %.40s has no \"content\"", key);
    token = &b->tokens[id];
    if ((token->flags & JMB_TOKEN_ADDED) && !token->unclaimed && token->size == size
        && memcmp(token->text, text, size) == 0)
        return true;
    known = tokenizer_known(b, text, size);
    if (known != JMB_NO_TOKEN && id != (int64_t)known)
        return tool_error_set(b->error, "added_tokens_decoder: token \"%.60s\" has id %lld, the tokenizer gives it %u",
            text, (long long)id, known);
    if (known == JMB_NO_TOKEN && token->text)
        return tool_error_set(b->error, "added_tokens_decoder: id %lld is \"%.60s\", in the tokenizer \"%.*s\"",
            (long long)id, text, token->size < 60 ? (int)token->size : 60, token->text);
    return tokenizer_added_flags(b, v, false, &flags) && tokenizer_enter_added(b, text, size, id, flags);
}

static bool tokenizer_read_added(tokenizer_build *b, const json_value *added)
{
    const json_value *v, *listed = json_get(b->config, "added_tokens_decoder");
    uint32_t i;
    b->next_added = b->model_count;
    if (added && json_kind(added) != JSON_ARRAY) return tool_error_set(b->error, "\"added_tokens\" is not an array");
    if (listed && json_kind(listed) != JSON_OBJECT)
        return tool_error_set(b->error, "\"added_tokens_decoder\" is not an object");
    for (v = json_first(added); v; v = json_next(v))
        if (!tokenizer_add_added(b, v)) return false;
    for (v = json_first(listed); v; v = json_next(v))
        if (!tokenizer_add_config(b, v)) return false;
    for (i = 0; i < b->count; i++)
        if (b->tokens[i].unclaimed)
            return tool_error_set(b->error, "token %u, \"%.60s\", is neither made of bytes nor an added token", i,
                b->tokens[i].text);
    return true;
}

/* ---- writing the section, and the index ---------------------------------------------------- */

static bool tokenizer_write(const tokenizer_build *b, tool_buffer *out)
{
    uint32_t i, offset = 0;
    uint64_t text_size = 0;
    for (i = 0; i < b->count; i++) text_size += b->tokens[i].size;
    if (text_size > JMB_MAX_TOKEN_TEXT) return tool_error_set(b->error, "the tokens have more than 64 MiB of text");
    tool_buffer_u32(out, JMB_TOKENIZER_KIND);
    tool_buffer_u32(out, b->flags);
    tool_buffer_u32(out, b->count);
    tool_buffer_u32(out, (uint32_t)text_size);
    tool_buffer_u32(out, b->merge_count);
    tool_buffer_u32(out, b->rule_count);
    tool_buffer_u32(out, b->unk);
    tool_buffer_u32(out, b->strip);
    tool_buffer_add(out, b->rules.data, b->rules.size);
    for (i = 0; i < b->count; i++) {
        tool_buffer_u32(out, offset);
        offset += b->tokens[i].size;
    }
    tool_buffer_u32(out, offset);
    for (i = 0; i < b->count; i++) tool_buffer_u8(out, b->tokens[i].flags);
    tool_buffer_add(out, "\0\0\0", (4 - b->count % 4) % 4);
    for (i = 0; i < 256 && (b->flags & JMB_TEXT_BYTES); i++) tool_buffer_u32(out, b->bytes[i]);
    tool_buffer_add(out, b->merges.data, b->merges.size);
    for (i = 0; i < b->count; i++) tool_buffer_add(out, b->tokens[i].text, b->tokens[i].size);
    return (!out->failed && !b->rules.failed && !b->merges.failed) || tool_no_memory(b->error);
}

/* Reads a section as the header will. */
static bool tokenizer_load(tokenizer_build *b, const tool_buffer *section)
{
    jamba_error error;
    jamba_result result;
    jmb_heap_free(&b->heap);
    result = jmb_tokenizer_load(&b->index, &b->heap, section->data, section->size, 0, b->vocab, &error);
    return result == JAMBA_OK || tool_error_set(b->error, "%s", error.message);
}

/* Writes what is known so far and indexes it. */
static bool tokenizer_index(tokenizer_build *b)
{
    tool_buffer section = { NULL, 0, 0, false };
    bool ok = tokenizer_write(b, &section) && tokenizer_load(b, &section);
    tool_buffer_free(&section);
    return ok;
}

/* ---- model --------------------------------------------------------------------------------- */

/* Options that would change results are refused; their neutral values are not. */
static bool tokenizer_check_model(tokenizer_build *b, const json_value *model)
{
    static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
    const json_value *dropout = json_get(model, "dropout");
    double rate = 0;
    bool ignore_merges;
    size_t i;
    if (!json_is_string(json_get(model, "type"), "BPE")) return tokenizer_unsupported(b, "model type", model);
    if (!tokenizer_known_keys(b, model, "the model", " type dropout unk_token continuing_subword_prefix "
        "end_of_word_suffix fuse_unk byte_fallback ignore_merges vocab merges "))
        return false;
    if (dropout && json_kind(dropout) != JSON_NULL && (!json_number(dropout, &rate) || rate != 0))
        return tool_error_set(b->error, "dropout is not supported");
    for (i = 0; i < 2; i++) {
        const json_value *affix = json_get(model, affixes[i]);
        if (affix && json_kind(affix) != JSON_NULL && !json_is_string(affix, ""))
            return tool_error_set(b->error, "%s is not supported", affixes[i]);
    }
    if (!tokenizer_flag(b, model, "ignore_merges", false, &ignore_merges)) return false;
    return !ignore_merges || tool_error_set(b->error, "ignore_merges is not supported");
}

static void tokenizer_find_bytes(tokenizer_build *b)
{
    unsigned i;
    for (i = 0; i < 256; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", i);
        b->bytes[i] = jmb_model_token(&b->index, (const uint8_t *)name, 6);
    }
}

/* unk and the byte tokens. */
static bool tokenizer_read_fallbacks(tokenizer_build *b, const json_value *model)
{
    const json_value *unk = json_get(model, "unk_token");
    size_t size;
    const char *text = json_string(unk, &size);
    bool fuse, bytes;
    if (!tokenizer_flag(b, model, "fuse_unk", false, &fuse)
        || !tokenizer_flag(b, model, "byte_fallback", false, &bytes))
        return false;
    if (bytes && (b->flags & JMB_TEXT_RAW))
        return tool_error_set(b->error, "ByteLevel with byte_fallback is not supported");
    if (fuse) b->flags |= JMB_TEXT_FUSE_UNK;
    if (bytes) b->flags |= JMB_TEXT_BYTES;
    if (bytes) tokenizer_find_bytes(b);
    if (!unk || json_kind(unk) == JSON_NULL) return true;
    b->unk = text ? tokenizer_known(b, text, size) : JMB_NO_TOKEN;
    return b->unk != JMB_NO_TOKEN || tool_error_set(b->error, "unk_token is not in the vocabulary");
}

typedef struct tokenizer_pair {
    const char *text[2];
    size_t size[2];
} tokenizer_pair;

/* Both forms of a merge: "a b" and ["a", "b"]. */
static bool tokenizer_read_pair(tokenizer_build *b, const json_value *v, tokenizer_pair *pair)
{
    size_t size;
    const char *text = json_string(v, &size), *blank = text ? (const char *)memchr(text, ' ', size) : NULL;
    if (blank && !memchr(blank + 1, ' ', size - (size_t)(blank + 1 - text))) {
        pair->text[0] = text;
        pair->size[0] = (size_t)(blank - text);
        pair->text[1] = blank + 1;
        pair->size[1] = size - pair->size[0] - 1;
        return true;
    }
    pair->text[0] = json_string(json_at(v, 0), &pair->size[0]);
    pair->text[1] = json_string(json_at(v, 1), &pair->size[1]);
    if (!text && json_count(v) == 2 && pair->text[0] && pair->text[1]) return true;
    return tool_error_set(b->error, "merge %u is not a pair of tokens%s%.60s", b->merge_count, text ? ": " : "",
        text ? text : "");
}

static bool tokenizer_merge_token(tokenizer_build *b, const char *text, size_t size, uint32_t *token)
{
    *token = tokenizer_known(b, text, size);
    return *token != JMB_NO_TOKEN
        || tool_error_set(b->error, "merge %u: \"%.*s\" is not in the vocabulary", b->merge_count,
            size < 100 ? (int)size : 100, text);
}

static bool tokenizer_resolve_merge(tokenizer_build *b, const tokenizer_pair *pair, jmb_merge *merge)
{
    char text[2 * TOKENIZER_MAX_TEXT];
    if (!tokenizer_merge_token(b, pair->text[0], pair->size[0], &merge->left)
        || !tokenizer_merge_token(b, pair->text[1], pair->size[1], &merge->right))
        return false;
    memcpy(text, pair->text[0], pair->size[0]); /* tokens of the vocabulary */
    memcpy(text + pair->size[0], pair->text[1], pair->size[1]);
    return tokenizer_merge_token(b, text, pair->size[0] + pair->size[1], &merge->result);
}

/* Enters the merge. Of a pair that comes twice the last one counts, as in the reference. */
static bool tokenizer_keep_merge(tokenizer_build *b, jmb_merge *merges, uint32_t at)
{
    uint32_t slot, earlier = jmb_find_merge(&b->index, merges[at].left, merges[at].right, &slot);
    if (slot == JMB_NO_TOKEN) return tool_error_set(b->error, "too many hash collisions at merge %u", at);
    b->index.by_pair.slots[slot] = at;
    if (earlier != JMB_NO_TOKEN) merges[earlier].result = JMB_NO_TOKEN;
    return true;
}

/* Keeps merges for the section, but for those without result. Those of equal rank follow each other. */
static void tokenizer_put_merges(tokenizer_build *b, const jmb_merge *merges, uint32_t count)
{
    uint32_t i, rank = JMB_NO_TOKEN;
    for (i = b->merge_count = 0; i < count; i++) {
        uint32_t tie = merges[i].rank == rank ? JMB_MERGE_TIE : 0;
        if (merges[i].result == JMB_NO_TOKEN) continue;
        tool_buffer_u32(&b->merges, merges[i].left);
        tool_buffer_u32(&b->merges, merges[i].right);
        tool_buffer_u32(&b->merges, merges[i].result | tie);
        rank = merges[i].rank;
        b->merge_count++;
    }
}

static bool tokenizer_collect_merges(tokenizer_build *b, const json_value *list, jmb_merge *merges)
{
    const json_value *v;
    tokenizer_pair pair;
    for (v = json_first(list); v; v = json_next(v)) {
        const char *text = json_string(v, NULL);
        if (text && strncmp(text, "#version", 8) == 0) continue;
        if (!tokenizer_read_pair(b, v, &pair) || !tokenizer_resolve_merge(b, &pair, &merges[b->merge_count]))
            return false;
        if (!tokenizer_keep_merge(b, merges, b->merge_count)) return false;
        merges[b->merge_count].rank = b->merge_count;
        b->merge_count++;
    }
    tokenizer_put_merges(b, merges, b->merge_count);
    return true;
}

static bool tokenizer_read_merges(tokenizer_build *b, const json_value *list)
{
    jmb_merge *merges;
    size_t count = json_count(list);
    if (json_kind(list) != JSON_ARRAY) return tool_error_set(b->error, "\"merges\" is not an array");
    if (count > JMB_MAX_MERGES) return tool_error_set(b->error, "more than %d merges", (int)JMB_MAX_MERGES);
    merges = (jmb_merge *)jmb_heap_take(&b->heap, count, sizeof *merges);
    if (!merges || !jmb_table_make(&b->index.by_pair, &b->heap, (uint32_t)count)) return tool_no_memory(b->error);
    b->index.merge = merges;
    return tokenizer_collect_merges(b, list, merges);
}

/* ---- tokenizer.model ----------------------------------------------------------------------- */

/* What the SentencePiece library would do otherwise than the header. */
static bool tokenizer_check_sentencepiece(tokenizer_build *b, const sp_model *m)
{
    static const char *const kinds[] = { "0", "unigram", "bpe", "word", "char" };
    if (m->kind != SP_BPE)
        return tool_error_set(b->error, "SentencePiece model type \"%s\" is not supported, only bpe",
            m->kind < 5 ? kinds[m->kind] : "unknown");
    if (m->has_charsmap && strcmp(m->normalizer, "identity") != 0)
        return tool_error_set(b->error, "SentencePiece normalizer \"%.60s\" is not supported", m->normalizer);
    if (m->collapse_spaces) return tool_error_set(b->error, "remove_extra_whitespaces is not supported");
    if (m->suffix) return tool_error_set(b->error, "treat_whitespace_as_suffix is not supported");
    if (!m->escape_spaces) return tool_error_set(b->error, "escape_whitespaces false is not supported");
    return true;
}

/* Flags of a token by the type of its piece. */
static const uint32_t tokenizer_piece_flags[] = { 0, JMB_TOKEN_MODEL,
    JMB_TOKEN_MODEL | JMB_TOKEN_ADDED | JMB_TOKEN_SPECIAL, JMB_TOKEN_ADDED | JMB_TOKEN_SPECIAL,
    JMB_TOKEN_ADDED | JMB_TOKEN_NORMALISED, 0, JMB_TOKEN_MODEL };

static bool tokenizer_read_pieces(tokenizer_build *b, const sp_model *m)
{
    uint32_t i;
    for (i = 0; i < m->count; i++) {
        const sp_piece *piece = &m->pieces[i];
        int shown = piece->size < 60 ? (int)piece->size : 60;
        if (piece->type == SP_UNUSED)
            return tool_error_set(b->error, "piece \"%.*s\" of type unused is not supported", shown, piece->text);
        if (piece->type == SP_BYTE && jmb_byte_of((const uint8_t *)piece->text, piece->size) < 0)
            return tool_error_set(b->error, "piece \"%.*s\" is of type byte and names none", shown, piece->text);
        if (piece->type == SP_UNKNOWN && b->unk != JMB_NO_TOKEN)
            return tool_error_set(b->error, "pieces %u and %u are both of type unknown", b->unk, i);
        if (piece->type == SP_UNKNOWN) b->unk = i;
        if (!tokenizer_add_token(b, piece->text, piece->size, i, tokenizer_piece_flags[piece->type])) return false;
    }
    b->model_count = m->count;
    return true;
}

/* Rules and flags that say what the library does with spaces and unknown characters. */
static void tokenizer_sentencepiece_rules(tokenizer_build *b, const sp_model *m)
{
    static const char mark[] = "\xe2\x96\x81";
    b->flags = JMB_TEXT_FUSE_UNK | JMB_TEXT_DECODE_BYTES | JMB_TEXT_AS_WRITTEN;
    if (m->dummy_prefix) tokenizer_add_rule(b, JMB_RULE_PREPEND, "", 0, mark, 3);
    b->strip = m->dummy_prefix ? 1 : 0;
    tokenizer_add_rule(b, JMB_RULE_REPLACE, " ", 1, mark, 3);
    tokenizer_add_rule(b, JMB_RULE_DECODE, mark, 3, " ", 1);
}

static bool tokenizer_sentencepiece_bytes(tokenizer_build *b, const sp_model *m)
{
    unsigned i;
    if (!m->byte_fallback) return true;
    b->flags |= JMB_TEXT_BYTES;
    tokenizer_find_bytes(b);
    for (i = 0; i < 256; i++)
        if (b->bytes[i] == JMB_NO_TOKEN || m->pieces[b->bytes[i]].type != SP_BYTE)
            return tool_error_set(b->error, "byte_fallback without a piece <0x%02X> of type byte", i);
    return true;
}

/* A merge with the score of its result. */
typedef struct tokenizer_scored {
    jmb_merge merge;
    float score;
} tokenizer_scored;

static int tokenizer_compare_scored(const void *a, const void *b)
{
    const tokenizer_scored *x = (const tokenizer_scored *)a, *y = (const tokenizer_scored *)b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    if (x->merge.result != y->merge.result) return x->merge.result < y->merge.result ? -1 : 1;
    return x->merge.left < y->merge.left ? -1 : x->merge.left > y->merge.left;
}

static uint32_t tokenizer_normal_piece(const tokenizer_build *b, const sp_model *m, const char *text, size_t size)
{
    uint32_t token = jmb_model_token(&b->index, (const uint8_t *)text, size);
    return token != JMB_NO_TOKEN && m->pieces[token].type == SP_NORMAL ? token : JMB_NO_TOKEN;
}

/* Every way to make a piece from two. The library merges characters that are no pieces too. */
static bool tokenizer_split_piece(tokenizer_build *b, const sp_model *m, uint32_t result, tool_buffer *merges)
{
    const sp_piece *piece = &m->pieces[result];
    size_t at, size = 0;
    for (at = 0; at < piece->size; at += size) {
        tokenizer_scored found;
        size = jmb_char_size((uint8_t)piece->text[at]);
        if (tokenizer_normal_piece(b, m, piece->text + at, size) == JMB_NO_TOKEN)
            return tool_error_set(b->error, "piece %u has a character that is no piece: not supported", result);
        memset(&found, 0, sizeof found);
        found.score = piece->score;
        found.merge.result = result;
        if (at == 0) continue;
        found.merge.left = tokenizer_normal_piece(b, m, piece->text, at);
        found.merge.right = tokenizer_normal_piece(b, m, piece->text + at, piece->size - at);
        if (found.merge.left == JMB_NO_TOKEN || found.merge.right == JMB_NO_TOKEN) continue;
        if (merges->size / sizeof found == JMB_MAX_MERGES)
            return tool_error_set(b->error, "more than %d merges", (int)JMB_MAX_MERGES);
        if (!tool_buffer_add(merges, &found, sizeof found)) return tool_no_memory(b->error);
    }
    return true;
}

/* The library takes the pair whose piece has the highest score, the leftmost one of equals. */
static bool tokenizer_rank_merges(tokenizer_build *b, tokenizer_scored *scored, uint32_t count)
{
    jmb_merge *merges = (jmb_merge *)malloc((count + (size_t)1) * sizeof *merges);
    uint32_t i;
    if (!merges) return tool_no_memory(b->error);
    if (count > 0) qsort(scored, count, sizeof *scored, tokenizer_compare_scored);
    for (i = 0; i < count; i++) {
        merges[i] = scored[i].merge;
        merges[i].rank = i > 0 && scored[i].score == scored[i - 1].score ? merges[i - 1].rank : i;
    }
    tokenizer_put_merges(b, merges, count);
    free(merges);
    return true;
}

static bool tokenizer_derive_merges(tokenizer_build *b, const sp_model *m)
{
    tool_buffer merges = { NULL, 0, 0, false };
    bool ok = true;
    uint32_t i;
    for (i = 0; i < m->count && ok; i++)
        if (m->pieces[i].type == SP_NORMAL) ok = tokenizer_split_piece(b, m, i, &merges);
    ok = ok && tokenizer_rank_merges(b, (tokenizer_scored *)(void *)merges.data,
        (uint32_t)(merges.size / sizeof(tokenizer_scored)));
    tool_buffer_free(&merges);
    return ok;
}

static bool tokenizer_read_sentencepiece(tokenizer_build *b, const sp_model *m, tool_buffer *out)
{
    if (!tokenizer_check_sentencepiece(b, m)) return false;
    tokenizer_sentencepiece_rules(b, m);
    return tokenizer_read_pieces(b, m) && tokenizer_index(b) && tokenizer_sentencepiece_bytes(b, m)
        && tokenizer_derive_merges(b, m) && tokenizer_read_added(b, NULL) && tokenizer_write(b, out)
        && tokenizer_load(b, out);
}

/* ---- whole files --------------------------------------------------------------------------- */

static bool tokenizer_read_json(tokenizer_build *b, const json_value *root, tool_buffer *out)
{
    const json_value *model = json_get(root, "model"), *version = json_get(root, "version");
    if (json_kind(root) != JSON_OBJECT || json_kind(model) != JSON_OBJECT)
        return tool_error_set(b->error, "there is no object \"model\"");
    if (!tokenizer_known_keys(b, root, "the file", " version truncation padding added_tokens normalizer "
        "pre_tokenizer post_processor decoder model "))
        return false;
    if (version && !json_is_string(version, "1.0")) return tool_error_set(b->error, "\"version\" is not \"1.0\"");
    return tokenizer_check_model(b, model) && tokenizer_read_normaliser(b, json_get(root, "normalizer"))
        && tokenizer_read_pre_tokenizer(b, json_get(root, "pre_tokenizer"))
        && tokenizer_read_decoder(b, json_get(root, "decoder")) && tokenizer_read_vocab(b, json_get(model, "vocab"))
        && tokenizer_index(b) && tokenizer_read_fallbacks(b, model)
        && tokenizer_read_added(b, json_get(root, "added_tokens"))
        && tokenizer_read_merges(b, json_get(model, "merges")) && tokenizer_write(b, out) && tokenizer_load(b, out);
}

static bool tokenizer_begin(tokenizer_build *b, const json_value *config, uint32_t vocab, tool_error *error)
{
    memset(b, 0, sizeof *b);
    b->config = config;
    b->vocab = vocab;
    b->unk = JMB_NO_TOKEN;
    b->error = error;
    b->heap.allocator = jmb_allocator_or_default(NULL);
    b->tokens = (tokenizer_token *)calloc(vocab, sizeof *b->tokens);
    return b->tokens || tool_no_memory(error);
}

static bool tokenizer_end(tokenizer_build *b, bool ok, tool_buffer *out)
{
    if (!ok) tool_buffer_free(out);
    free(b->tokens);
    free(b->raw_text);
    tool_buffer_free(&b->rules);
    tool_buffer_free(&b->merges);
    jmb_heap_free(&b->heap);
    return ok;
}

/* Compiles one parsed tokenizer.json; `out` is left empty on failure. `config`, a parsed tokenizer_config.json,
 * may be NULL. */
JMB_UNUSED static bool tokenizer_compile_json(
    const json_value *root, const json_value *config, uint32_t vocab, tool_buffer *out, tool_error *error)
{
    tokenizer_build b;
    bool ok = tokenizer_begin(&b, config, vocab, error) && tokenizer_read_json(&b, root, out);
    return tokenizer_end(&b, ok, out);
}

/* The same for the bytes of a tokenizer.model. */
JMB_UNUSED static bool tokenizer_compile_model(const uint8_t *data, size_t size, const json_value *config,
    uint32_t vocab, tool_buffer *out, tool_error *error)
{
    tokenizer_build b;
    sp_model m;
    bool ok = sp_parse(&m, data, size, error);
    if (!ok) return false;
    ok = tokenizer_begin(&b, config, vocab, error) && tokenizer_read_sentencepiece(&b, &m, out);
    free(m.pieces);
    return tokenizer_end(&b, ok, out);
}

/* ---- folders ------------------------------------------------------------------------------- */

/* Compiles the file at `path`, which is there. */
static bool tokenizer_compile_file(
    const char *path, bool is_json, const json_value *config, uint32_t vocab, tool_buffer *out, tool_error *error)
{
    tool_error inner;
    json_doc doc;
    uint8_t *data = NULL;
    size_t size;
    bool ok;
    if (is_json && !json_read_file(&doc, path, error)) return false;
    if (!is_json && !tool_read_file(path, SP_MAX_BYTES, &data, &size, error)) return false;
    if (is_json) ok = tokenizer_compile_json(json_root(&doc), config, vocab, out, &inner);
    else ok = tokenizer_compile_model(data, size, config, vocab, out, &inner);
    if (is_json) json_free(&doc);
    free(data);
    return ok || tool_error_set(error, "%.200s: tokenizer: %.280s", path, inner.message);
}

/* Parses dir/tokenizer_config.json; an empty document when it is not there. */
JMB_UNUSED static bool tokenizer_read_config(const char *dir, json_doc *config, tool_error *error)
{
    char *path = tool_path_join(dir, "tokenizer_config.json");
    bool ok = path != NULL || tool_no_memory(error);
    memset(config, 0, sizeof *config);
    if (ok && tool_file_exists(path)) ok = json_read_file(config, path, error);
    free(path);
    return ok;
}

/* Compiles dir/tokenizer.json, or dir/tokenizer.model when there is no such file, for a model of `vocab` ids.
 * Without both `out` stays empty. */
JMB_UNUSED static bool tokenizer_compile(const char *dir, uint32_t vocab, tool_buffer *out, tool_error *error)
{
    static const char *const names[] = { "tokenizer.json", "tokenizer.model" };
    json_doc config;
    bool ok = tokenizer_read_config(dir, &config, error), done = false;
    size_t i;
    for (i = 0; i < 2 && ok && !done; i++) {
        char *path = tool_path_join(dir, names[i]);
        ok = path != NULL || tool_no_memory(error);
        done = ok && tool_file_exists(path);
        if (done) ok = tokenizer_compile_file(path, i == 0, json_root(&config), vocab, out, error);
        free(path);
    }
    json_free(&config);
    return ok;
}

/* Text of the token that tokenizer_config.json calls `key`, such as bos_token; NULL when it names none. */
JMB_UNUSED static const char *tokenizer_config_token(const json_value *config, const char *key)
{
    const json_value *v = json_get(config, key);
    const char *text = json_string(json_kind(v) == JSON_OBJECT ? json_get(v, "content") : v, NULL);
    return text && *text ? text : NULL;
}

/* Fills in the first and last tokens that config.json does not tell. */
JMB_UNUSED static bool tokenizer_fill_ids(
    const char *dir, const tool_buffer *section, jmb_header *header, tool_error *error)
{
    json_doc config;
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
    const char *bos, *eos;
    int32_t id;
    bool ok = tokenizer_read_config(dir, &config, error);
    if (ok && (!t || jmb_tokenizer_load(t, &heap, section->data, section->size, 0, header->vocab, NULL) != JAMBA_OK))
        ok = tool_no_memory(error);
    bos = ok ? tokenizer_config_token(json_root(&config), "bos_token") : NULL;
    eos = ok ? tokenizer_config_token(json_root(&config), "eos_token") : NULL;
    if (bos && header->bos == JMB_NO_TOKEN && (id = jmb_token_lookup(t, bos, strlen(bos))) >= 0)
        header->bos = (uint32_t)id;
    if (eos && header->eos_count == 0 && (id = jmb_token_lookup(t, eos, strlen(eos))) >= 0) {
        header->eos0 = (uint32_t)id;
        header->eos_count = 1;
    }
    jmb_heap_free(&heap);
    free(t);
    json_free(&config);
    return ok;
}

#endif
