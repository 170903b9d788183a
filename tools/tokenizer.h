/* tokenizer.h - compiles the tokenizer.json of a Hugging Face folder into the tokenizer section of a
 * model file (its layout: >>tokenizer in jamba.h).
 *
 * Only what the header reproduces exactly is compiled: BPE with merges, byte fallback or unk, the
 * normalisers Prepend and Replace, the pre-tokenizer Metaspace, the decoders Replace, ByteFallback, Fuse,
 * Strip and Metaspace, added tokens with their flags. Anything else is an error that names it. Truncation and
 * padding concern batches and the post-processor adds tokens, which is the caller's business: ignored.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "json.h"

typedef struct tokenizer_token {
    const char *text; /* in the JSON document */
    uint32_t size;
    uint8_t flags; /* JMB_TOKEN_... */
} tokenizer_token;

/* One tokenizer.json on its way to a section. */
typedef struct tokenizer_build {
    const json_value *root;
    uint32_t vocab;          /* of the model: ids are below */
    tokenizer_token *tokens; /* [vocab] */
    uint32_t count;          /* highest id in use and one */
    uint32_t model_count;    /* entries of the model's vocabulary */
    uint32_t flags, unk, strip, bytes[256];
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
        const char *key = json_key(member, NULL);
        if (snprintf(word, sizeof word, " %s ", key) >= (int)sizeof word || !strstr(known, word))
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
 * one or more. */
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

static bool tokenizer_read_pre_tokenizer(tokenizer_build *b, const json_value *v)
{
    tokenizer_metaspace m;
    if (!v || json_kind(v) == JSON_NULL) return true;
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
    if (!v || json_kind(v) == JSON_NULL)
        return tool_error_set(b->error, "there is no decoder: tokens joined by blanks are not supported");
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

/* Enters a text under an id that is free. */
static bool tokenizer_add_token(tokenizer_build *b, const char *text, size_t size, int64_t id, uint32_t flags)
{
    tokenizer_token *token;
    if (id < 0 || id >= (int64_t)b->vocab)
        return tool_error_set(b->error, "token \"%.60s\" has id %lld, the model has ids 0 to %u", text, (long long)id,
            b->vocab - 1);
    if (size > JMB_MAX_TOKEN)
        return tool_error_set(b->error, "token %lld has more than %d bytes", (long long)id, (int)JMB_MAX_TOKEN);
    token = &b->tokens[id];
    if (token->text)
        return tool_error_set(b->error, "tokens \"%.60s\" and \"%.60s\" both have id %lld", token->text, text,
            (long long)id);
    token->text = text;
    token->size = (uint32_t)size;
    token->flags = (uint8_t)(size > 0 ? flags : 0);
    if (id >= (int64_t)b->count) b->count = (uint32_t)id + 1;
    return true;
}

static bool tokenizer_read_vocab(tokenizer_build *b, const json_value *vocab)
{
    const json_value *entry;
    if (json_kind(vocab) != JSON_OBJECT) return tool_error_set(b->error, "\"vocab\" is not an object");
    for (entry = json_first(vocab); entry; entry = json_next(entry)) {
        size_t size;
        const char *text = json_key(entry, &size);
        int64_t id;
        if (!json_int(entry, &id)) return tool_error_set(b->error, "token \"%.60s\" has no integer id", text);
        if (!tokenizer_add_token(b, text, size, id, JMB_TOKEN_MODEL)) return false;
    }
    b->model_count = (uint32_t)json_count(vocab);
    return b->model_count > 0 || tool_error_set(b->error, "the vocabulary is empty");
}

/* What the flags of an added token say. */
static bool tokenizer_added_flags(tokenizer_build *b, const json_value *v, uint32_t *flags)
{
    static const char *const keys[] = { "special", "lstrip", "rstrip", "single_word", "normalized" };
    static const uint32_t bits[] = { JMB_TOKEN_SPECIAL, JMB_TOKEN_LSTRIP, JMB_TOKEN_RSTRIP, JMB_TOKEN_WORD,
        JMB_TOKEN_NORMALISED };
    size_t i;
    *flags = JMB_TOKEN_ADDED;
    for (i = 0; i < sizeof bits / sizeof *bits; i++) {
        bool set;
        if (!json_bool(json_get(v, keys[i]), &set))
            return tool_error_set(b->error, "an added token lacks \"%s\"", keys[i]);
        if (set) *flags |= bits[i];
    }
    return true;
}

/* The id that the reference gives: that of the same text in the model's vocabulary, else `next`. The file
 * must agree, since the model was trained with one of them. */
static bool tokenizer_add_added(tokenizer_build *b, const json_value *v, uint32_t *next)
{
    size_t size;
    const char *text = json_string(json_get(v, "content"), &size);
    uint32_t flags, known;
    int64_t id;
    if (!tokenizer_known_keys(b, v, "an added token", " id content special lstrip rstrip single_word normalized ")
        || !tokenizer_added_flags(b, v, &flags))
        return false;
    if (!text || size == 0 || !json_int(json_get(v, "id"), &id))
        return tool_error_set(b->error, "an added token lacks a \"content\" or an integer \"id\"");
    known = jmb_model_token(&b->index, (const uint8_t *)text, size);
    if (id != (int64_t)(known == JMB_NO_TOKEN ? *next : known))
        return tool_error_set(b->error, "added token \"%.60s\" has id %lld, the vocabulary gives it %u", text,
            (long long)id, known == JMB_NO_TOKEN ? *next : known);
    if (known == JMB_NO_TOKEN) {
        ++*next;
        return tokenizer_add_token(b, text, size, id, flags);
    }
    if (b->tokens[known].flags & JMB_TOKEN_ADDED) return tool_error_set(b->error, "added token \"%.60s\" twice", text);
    b->tokens[known].flags = (uint8_t)(JMB_TOKEN_MODEL | flags);
    return true;
}

static bool tokenizer_read_added(tokenizer_build *b, const json_value *added)
{
    const json_value *v;
    uint32_t next = b->model_count;
    if (added && json_kind(added) != JSON_ARRAY) return tool_error_set(b->error, "\"added_tokens\" is not an array");
    for (v = json_first(added); v; v = json_next(v))
        if (!tokenizer_add_added(b, v, &next)) return false;
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

/* unk and the byte tokens. */
static bool tokenizer_read_fallbacks(tokenizer_build *b, const json_value *model)
{
    const json_value *unk = json_get(model, "unk_token");
    size_t size;
    const char *text = json_string(unk, &size);
    bool fuse, bytes;
    int i;
    if (!tokenizer_flag(b, model, "fuse_unk", false, &fuse)
        || !tokenizer_flag(b, model, "byte_fallback", false, &bytes))
        return false;
    if (fuse) b->flags |= JMB_TEXT_FUSE_UNK;
    if (bytes) b->flags |= JMB_TEXT_BYTES;
    for (i = 0; i < 256 && bytes; i++) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", (unsigned)i);
        b->bytes[i] = jmb_model_token(&b->index, (const uint8_t *)name, 6);
    }
    if (!unk || json_kind(unk) == JSON_NULL) return true;
    b->unk = text ? jmb_model_token(&b->index, (const uint8_t *)text, size) : JMB_NO_TOKEN;
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
    *token = jmb_model_token(&b->index, (const uint8_t *)text, size);
    return *token != JMB_NO_TOKEN
        || tool_error_set(b->error, "merge %u: \"%.*s\" is not in the vocabulary", b->merge_count,
            size < 100 ? (int)size : 100, text);
}

static bool tokenizer_resolve_merge(tokenizer_build *b, const tokenizer_pair *pair, jmb_merge *merge)
{
    char text[2 * JMB_MAX_TOKEN];
    if (!tokenizer_merge_token(b, pair->text[0], pair->size[0], &merge->left)
        || !tokenizer_merge_token(b, pair->text[1], pair->size[1], &merge->right))
        return false;
    memcpy(text, pair->text[0], pair->size[0]); /* tokens of the vocabulary, so they fit */
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

static bool tokenizer_collect_merges(tokenizer_build *b, const json_value *list, jmb_merge *merges)
{
    const json_value *v;
    tokenizer_pair pair;
    uint32_t i, count;
    for (v = json_first(list); v; v = json_next(v)) {
        const char *text = json_string(v, NULL);
        if (text && strncmp(text, "#version", 8) == 0) continue;
        if (!tokenizer_read_pair(b, v, &pair) || !tokenizer_resolve_merge(b, &pair, &merges[b->merge_count])
            || !tokenizer_keep_merge(b, merges, b->merge_count))
            return false;
        b->merge_count++;
    }
    count = b->merge_count;
    for (i = b->merge_count = 0; i < count; i++) {
        if (merges[i].result == JMB_NO_TOKEN) continue;
        tool_buffer_u32(&b->merges, merges[i].left);
        tool_buffer_u32(&b->merges, merges[i].right);
        tool_buffer_u32(&b->merges, merges[i].result);
        b->merge_count++;
    }
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

/* ---- the whole file ------------------------------------------------------------------------ */

static bool tokenizer_read_parts(tokenizer_build *b, tool_buffer *out)
{
    const json_value *root = b->root, *model = json_get(root, "model"), *version = json_get(root, "version");
    if (json_kind(root) != JSON_OBJECT || json_kind(model) != JSON_OBJECT)
        return tool_error_set(b->error, "there is no object \"model\"");
    if (!tokenizer_known_keys(b, root, "the file", " version truncation padding added_tokens normalizer "
        "pre_tokenizer post_processor decoder model "))
        return false;
    if (version && !json_is_string(version, "1.0")) return tool_error_set(b->error, "\"version\" is not \"1.0\"");
    return tokenizer_check_model(b, model) && tokenizer_read_vocab(b, json_get(model, "vocab")) && tokenizer_index(b)
        && tokenizer_read_fallbacks(b, model) && tokenizer_read_added(b, json_get(root, "added_tokens"))
        && tokenizer_read_merges(b, json_get(model, "merges"))
        && tokenizer_read_normaliser(b, json_get(root, "normalizer"))
        && tokenizer_read_pre_tokenizer(b, json_get(root, "pre_tokenizer"))
        && tokenizer_read_decoder(b, json_get(root, "decoder")) && tokenizer_write(b, out) && tokenizer_load(b, out);
}

/* Compiles one parsed tokenizer.json; `out` is left empty on failure. */
JMB_UNUSED static bool tokenizer_compile_json(
    const json_value *root, uint32_t vocab, tool_buffer *out, tool_error *error)
{
    tokenizer_build b;
    bool ok;
    memset(&b, 0, sizeof b);
    b.root = root;
    b.vocab = vocab;
    b.unk = JMB_NO_TOKEN;
    b.error = error;
    b.heap.allocator = jmb_allocator_or_default(NULL);
    b.tokens = (tokenizer_token *)calloc(vocab, sizeof *b.tokens);
    ok = b.tokens ? tokenizer_read_parts(&b, out) : tool_no_memory(error);
    if (!ok) tool_buffer_free(out);
    free(b.tokens);
    tool_buffer_free(&b.rules);
    tool_buffer_free(&b.merges);
    jmb_heap_free(&b.heap);
    return ok;
}

/* Compiles dir/tokenizer.json for a model of `vocab` ids. Without that file `out` stays empty. */
JMB_UNUSED static bool tokenizer_compile(const char *dir, uint32_t vocab, tool_buffer *out, tool_error *error)
{
    char *path = tool_path_join(dir, "tokenizer.json");
    json_doc doc;
    tool_error inner;
    bool ok = true;
    if (!path) return tool_no_memory(error);
    if (tool_file_exists(path)) {
        ok = json_read_file(&doc, path, error);
        if (ok && !tokenizer_compile_json(json_root(&doc), vocab, out, &inner))
            ok = tool_error_set(error, "%.200s: tokenizer: %.280s", path, inner.message);
        json_free(&doc);
    }
    free(path);
    return ok;
}

#endif
