/* unit_text.c - tokenizer, chat formats and their compilation: against the tokenizers library's results,
 * and against everything a file or a text can do wrong.
 *
 * Tokenizers that may not be committed are read from ../shared/reference/tokenizers, or from the folder
 * that JAMBA_TOKENIZERS names.
 */
#include "rules.h"

#include "tools/chat_formats.h"
#include "tools/tokenizer.h"
#include "tokenizer_files.h"

/* ---- a tokenizer in memory -------------------------------------------------------------------- */

typedef struct text_model {
    tool_buffer section;
    jmb_heap heap;
    jmb_tokenizer *t;
} text_model;

static bool text_load(text_model *m, uint32_t vocab)
{
    jamba_error error;
    jamba_result result;
    m->heap.allocator = jmb_allocator_or_default(NULL);
    m->t = (jmb_tokenizer *)calloc(1, sizeof *m->t);
    result = jmb_tokenizer_load(m->t, &m->heap, m->section.data, m->section.size, 1000, vocab, &error);
    return CHECK_THAT(result == JAMBA_OK, "load: %s", error.message);
}

/* From a parsed tokenizer.json. A failed check when that does not work. */
static bool text_open_json(text_model *m, const json_value *root, uint32_t vocab)
{
    tool_error error;
    memset(m, 0, sizeof *m);
    return CHECK_THAT(tokenizer_compile_json(root, NULL, vocab, &m->section, &error), "compile: %s", error.message)
        && text_load(m, vocab);
}

static bool text_open_string(text_model *m, const char *json, uint32_t vocab)
{
    json_doc doc;
    tool_error error;
    bool ok = CHECK_THAT(json_parse(&doc, json, strlen(json), &error), "%s", error.message);
    memset(m, 0, sizeof *m);
    ok = ok && text_open_json(m, json_root(&doc), vocab);
    json_free(&doc);
    return ok;
}

static bool text_open_folder(text_model *m, const char *folder, uint32_t vocab)
{
    tool_error error;
    memset(m, 0, sizeof *m);
    return CHECK_THAT(tokenizer_compile(folder, vocab, &m->section, &error), "%s", error.message)
        && CHECK_THAT(m->section.size > 0, "no tokenizer in %s", folder) && text_load(m, vocab);
}

static void text_close(text_model *m)
{
    tool_buffer_free(&m->section);
    jmb_heap_free(&m->heap);
    free(m->t);
}

typedef struct ids {
    int32_t *items;
    size_t count;
} ids;

/* Tokens of pieces; none after a failed check. free(items) */
static ids encode_pieces(const text_model *m, const jmb_piece *pieces, size_t count)
{
    jamba_error error;
    ids out = { NULL, 0 };
    jamba_result result = jmb_encode(m->t, &m->heap.allocator, pieces, count, -1, NULL, 0, &out.count, &error);
    CHECK_THAT(result == JAMBA_OK, "encode: %s", error.message);
    out.items = (int32_t *)calloc(out.count + 1, sizeof *out.items);
    if (result != JAMBA_OK || out.count == 0) return out;
    result = jmb_encode(m->t, &m->heap.allocator, pieces, count, -1, out.items, out.count, &out.count, &error);
    CHECK_THAT(result == JAMBA_OK, "encode: %s", error.message);
    return out;
}

static ids encode(const text_model *m, const char *text, size_t length, bool special)
{
    jmb_piece piece = { text, length, special };
    return encode_pieces(m, &piece, 1);
}

/* Decoded text, terminated. free() */
static char *decode(const text_model *m, const int32_t *items, size_t count, unsigned flags, size_t *length)
{
    jamba_error error;
    char *text;
    jamba_result result = jmb_decode(m->t, items, count, flags, NULL, 0, length, &error);
    CHECK_THAT(result == JAMBA_OK, "decode: %s", error.message);
    text = (char *)calloc(*length + 1, 1);
    if (*length > 0) result = jmb_decode(m->t, items, count, flags, text, *length, length, &error);
    CHECK_THAT(result == JAMBA_OK, "decode: %s", error.message);
    return text;
}

/* The same token by token; checks that every part is valid UTF-8. free() */
static char *decode_stream(const text_model *m, const int32_t *items, size_t count, unsigned flags, size_t *length)
{
    char *text = (char *)malloc((count + 1) * JAMBA_TEXT_MAX);
    jamba_text_stream stream;
    size_t i;
    memset(&stream, 0, sizeof stream);
    *length = 0;
    for (i = 0; i <= count; i++) {
        char *part = text + *length;
        size_t size = jmb_decode_next(m->t, &stream, i < count ? items[i] : -1, flags, part);
        CHECK(size <= JAMBA_TEXT_MAX);
        CHECK(jmb_utf8_prefix((const uint8_t *)part, size) == size);
        *length += size;
    }
    return text;
}

static bool same_ids(const ids *got, const int32_t *want, size_t count)
{
    return got->count == count && (count == 0 || memcmp(got->items, want, count * sizeof *want) == 0);
}

static ids json_ids(const json_value *list)
{
    ids out = { NULL, 0 };
    const json_value *v;
    out.items = (int32_t *)calloc(json_count(list) + 1, sizeof *out.items);
    for (v = json_first(list); v; v = json_next(v)) {
        int64_t id = -1;
        json_int(v, &id);
        out.items[out.count++] = (int32_t)id;
    }
    return out;
}

/* ---- against the library ------------------------------------------------------------------------ */

static void check_encoding(const text_model *m, const json_value *text, const json_value *list, bool special)
{
    size_t length;
    const char *bytes = json_string(text, &length);
    ids got = encode(m, bytes, length, special), want = json_ids(list);
    CHECK_THAT(same_ids(&got, want.items, want.count), "%s: other tokens for \"%.60s\"",
        special ? "special tokens matched" : "special tokens as text", bytes);
    free(got.items);
    free(want.items);
}

/* The text of these tokens, and that streaming gives the same; `text` NULL: only that. */
static void check_decoding(const text_model *m, const json_value *list, const json_value *text, unsigned flags)
{
    size_t length, got_length, stream_length;
    ids tokens = json_ids(list);
    char *got = decode(m, tokens.items, tokens.count, flags, &got_length);
    char *stream = decode_stream(m, tokens.items, tokens.count, flags, &stream_length);
    const char *want = text ? json_string(text, &length) : got;
    if (!text) length = got_length;
    CHECK_THAT(got_length == length && memcmp(got, want, length) == 0, "flags %u: \"%s\" and not \"%s\"", flags, got,
        want);
    if (!strstr(want, "\xef\xbf\xbd") || (m->t->flags & JMB_TEXT_RAW))
        CHECK_THAT(stream_length == length && memcmp(stream, want, length) == 0, "streamed, flags %u: \"%.*s\"", flags,
            (int)stream_length, stream);
    free(got);
    free(stream);
    free(tokens.items);
}

/* The case's tokenizer.json, or the bytes of its tokenizer.model. */
static bool text_open_case(text_model *m, const json_value *root, uint32_t vocab)
{
    size_t digits, i;
    const char *hex = json_string(json_get(root, "model"), &digits);
    uint8_t *data;
    tool_error error;
    bool ok;
    if (!hex) return text_open_json(m, json_get(root, "tokenizer"), vocab);
    memset(m, 0, sizeof *m);
    data = (uint8_t *)malloc(digits / 2 + 1);
    for (i = 0; i < digits / 2; i++)
        data[i] = (uint8_t)(jmb_hex_digit((uint8_t)hex[2 * i]) * 16 + jmb_hex_digit((uint8_t)hex[2 * i + 1]));
    ok = CHECK_THAT(tokenizer_compile_model(data, digits / 2, NULL, vocab, &m->section, &error), "%s", error.message);
    free(data);
    return ok && text_load(m, vocab);
}

/* The text in NFC, in units, which live in the encoder. */
static const jmb_unit *units_in_nfc(jmb_encoder *e, const char *text, size_t *size)
{
    static jamba_allocator used;
    jmb_unit *units;
    used = jmb_allocator_or_default(NULL);
    memset(e, 0, sizeof *e);
    e->allocator = &used;
    units = (jmb_unit *)jmb_room_take(&e->raw, e->allocator, *size, sizeof *units);
    jmb_put_units(units, text, *size, 0);
    return jmb_nfc(e, &e->normal[0], units, size);
}

static void check_nfc(const char *text, size_t size, const char *want, size_t want_size)
{
    jmb_encoder e;
    const jmb_unit *got = units_in_nfc(&e, text, &size);
    CHECK_THAT(size == want_size && jmb_matches(got, size, (const uint8_t *)want, want_size), "NFC of \"%s\"", text);
    jmb_encoder_free(&e);
}

static void run_nfc_case(const json_value *row)
{
    for (; row; row = json_next(row)) {
        size_t size, want_size;
        const char *text = json_string(json_at(row, 0), &size), *want = json_string(json_at(row, 1), &want_size);
        check_nfc(text, size, want, want_size);
        check_nfc(want, want_size, want, want_size);
    }
}

static void run_case(const json_value *root)
{
    const json_value *row;
    text_model m;
    int64_t vocab = 0;
    bool is_model = json_get(root, "model") != NULL;
    json_int(json_get(root, "vocab"), &vocab);
    if (json_get(root, "nfc")) {
        run_nfc_case(json_first(json_get(root, "nfc")));
        return;
    }
    if (text_open_case(&m, root, (uint32_t)vocab)) {
        for (row = json_first(json_get(root, "encode")); row; row = json_next(row)) {
            if (!is_model) check_encoding(&m, json_at(row, 0), json_at(row, 1), true);
            check_encoding(&m, json_at(row, 0), json_at(row, is_model ? 1 : 2), false);
        }
        for (row = json_first(json_get(root, "decode")); row; row = json_next(row)) {
            check_decoding(&m, json_at(row, 0), json_at(row, 1), JAMBA_TEXT_SPECIAL);
            check_decoding(&m, json_at(row, 0), json_at(row, 2), 0);
        }
    }
    text_close(&m);
}

/* Calls `visit` with every line of a file of JSON values. */
static void each_line(const char *path, void (*visit)(const json_value *root, void *user), void *user)
{
    size_t size;
    char *data = (char *)file_need(path, &size), *line = data;
    while (line < data + size) {
        char *end = (char *)memchr(line, '\n', size - (size_t)(line - data));
        json_doc doc;
        tool_error error;
        if (!end) end = data + size;
        if (CHECK_THAT(json_parse(&doc, line, (size_t)(end - line), &error), "%s: %s", path, error.message))
            visit(json_root(&doc), user);
        json_free(&doc);
        line = end + 1;
    }
    free(data);
}

static void visit_case(const json_value *root, void *user)
{
    (void)user;
    if (!test_begin("library, %s", json_string(json_get(root, "name"), NULL))) return;
    run_case(root);
    test_end();
}

/* The text with U+2581 as a blank, which is what decoding can give back. */
static size_t plain_text(const char *text, size_t length, char *out)
{
    size_t at = 0, used = 0;
    while (at < length) {
        bool mark = length - at >= 3 && memcmp(text + at, "\xe2\x96\x81", 3) == 0;
        out[used++] = mark ? ' ' : text[at];
        at += mark ? 3 : 1;
    }
    return used;
}

/* A byte-level tokenizer gives back every byte, of the text in NFC. */
static void check_raw_round_trip(const char *text, size_t length, const char *back, size_t back_length)
{
    jmb_encoder e;
    const jmb_unit *want = units_in_nfc(&e, text, &length);
    CHECK_THAT(length == back_length && jmb_matches(want, length, (const uint8_t *)back, length),
        "\"%.60s\" comes back as \"%.60s\"", text, back);
    jmb_encoder_free(&e);
}

/* Tokens of the text, and the text of the tokens. */
static void visit_encoding(const json_value *root, void *user)
{
    const text_model *m = (const text_model *)user;
    size_t length, back_length, plain_length;
    const char *text = json_string(json_get(root, "text"), &length);
    ids tokens = json_ids(json_get(root, "ids"));
    char *back = decode(m, tokens.items, tokens.count, JAMBA_TEXT_SPECIAL, &back_length);
    char *plain = (char *)calloc(length + 1, 1);
    plain_length = plain_text(text, length, plain);
    if (m->t->space.kind && m->t->strip && plain[0] == ' ') { /* no prefix was added, one blank is taken off */
        memmove(plain, plain + 1, plain_length);
        plain_length--;
    }
    check_encoding(m, json_get(root, "text"), json_get(root, "ids"), true);
    check_decoding(m, json_get(root, "ids"), NULL, JAMBA_TEXT_SPECIAL);
    if (m->t->flags & JMB_TEXT_RAW) check_raw_round_trip(text, length, back, back_length);
    /* a special token in the text: a blank may come or go at its side, as in the reference */
    else if (!strchr(text, '<'))
        CHECK_THAT(back_length == plain_length && memcmp(back, plain, plain_length) == 0,
            "\"%.60s\" comes back as \"%.60s\"", text, back);
    free(plain);
    free(back);
    free(tokens.items);
}

static void test_encodings(const char *name, const char *folder, const char *lines, uint32_t vocab)
{
    char path[PATH_ROOM];
    text_model m;
    if (!test_begin("encodings of %s", name)) return;
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    if (!file_exists(path)) {
        test_skip("not there");
        return;
    }
    if (text_open_folder(&m, folder, vocab)) each_line(lines, visit_encoding, &m);
    text_close(&m);
    test_end();
}

static void shared_path(char path[PATH_ROOM], const char *name, const char *file)
{
    const char *folders = getenv("JAMBA_TOKENIZERS");
    snprintf(path, PATH_ROOM, "%s/%s%s", folders ? folders : "../shared/reference/tokenizers", name, file);
}

static void test_shared_encodings(const char *name, uint32_t vocab)
{
    char folder[PATH_ROOM], lines[PATH_ROOM];
    shared_path(folder, name, "");
    shared_path(lines, name, "/encodings.jsonl");
    test_encodings(name, folder, lines, vocab);
}

/* The same ids from the tokenizer.model beside a tokenizer.json, in a folder of its own. */
static void test_shared_model(const char *name, uint32_t vocab)
{
    char model[PATH_ROOM], lines[PATH_ROOM], folder[PATH_ROOM], path[PATH_ROOM + 32];
    text_model m;
    uint8_t *data;
    size_t size;
    if (!test_begin("encodings of the tokenizer.model of %s", name)) return;
    shared_path(model, name, "/tokenizer.model");
    shared_path(lines, name, "/encodings.jsonl");
    if (!file_exists(model)) {
        test_skip("not there");
        return;
    }
    temp_path(folder, "model");
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/tokenizer.model", folder);
    data = (uint8_t *)file_need(model, &size);
    file_write(path, data, size);
    free(data);
    if (text_open_folder(&m, folder, vocab)) each_line(lines, visit_encoding, &m);
    text_close(&m);
    unlink(path);
    test_end();
}

/* ---- pieces and special tokens ------------------------------------------------------------------ */

static const char raw_folder[] = "tests/tokenizers/small-bytelevel";
static const char small_folder[] = "tests/tokenizers/small-metaspace", story[] = "examples/storyteller";
enum { SMALL_VOCAB = 1200, SMALL_SPECIALS = 3 };

static const char sample[] = "<s>Hello  world </s> <s>\xe2\x96\x81 caf\xc3\xa9 <unk></s>tail <s";

/* One text cut at random places is the same text. */
static void test_pieces(const text_model *m)
{
    uint64_t random = 7;
    size_t length = strlen(sample), i, round;
    ids whole = encode(m, sample, length, true);
    for (round = 0; round < 300; round++) {
        jmb_piece pieces[40];
        size_t count = 0, at = 0;
        ids cut;
        while (at < length) {
            size_t size = (size_t)(random_next(&random) % 9);
            size = size < length - at ? size : length - at;
            while (at + size < length && (sample[at + size] & 0xc0) == 0x80) size++;
            if (count == 39) size = length - at;
            pieces[count].text = sample + at;
            pieces[count].length = size;
            pieces[count++].special = true;
            at += size;
        }
        cut = encode_pieces(m, pieces, count);
        CHECK(same_ids(&cut, whole.items, whole.count));
        free(cut.items);
    }
    for (i = 0; i < whole.count; i++) CHECK(whole.items[i] >= 0);
    free(whole.items);
}

static size_t count_specials(const ids *tokens)
{
    size_t i, count = 0;
    for (i = 0; i < tokens->count; i++) count += tokens->items[i] < SMALL_SPECIALS;
    return count;
}

/* Special tokens come from special text only, also when one is put together from both kinds. */
static void test_forging(const text_model *m)
{
    static const char mark[] = "</s>";
    size_t cut;
    ids tokens = encode(m, sample, strlen(sample), false);
    CHECK(count_specials(&tokens) == 0);
    free(tokens.items);
    for (cut = 0; cut <= 4; cut++) {
        jmb_piece pieces[3];
        pieces[0].text = mark;
        pieces[0].length = cut;
        pieces[0].special = true;
        pieces[1].text = mark + cut;
        pieces[1].length = 4 - cut;
        pieces[1].special = false;
        pieces[2].text = mark;
        pieces[2].length = 4;
        pieces[2].special = true;
        tokens = encode_pieces(m, pieces, 3);
        CHECK_THAT(count_specials(&tokens) == (cut == 4 ? 2u : 1u), "cut at %zu: %zu special tokens", cut,
            count_specials(&tokens));
        free(tokens.items);
        pieces[0].special = false;
        pieces[1].special = true;
        tokens = encode_pieces(m, pieces, 3);
        CHECK(count_specials(&tokens) == (cut == 0 ? 2u : 1u));
        free(tokens.items);
    }
}

/* ---- calls -------------------------------------------------------------------------------------- */

static void test_capacity(const text_model *m)
{
    jmb_piece piece = { "Hello world", 11, false };
    const jamba_allocator *a = &m->heap.allocator;
    int32_t tokens[16];
    size_t count, i;
    jamba_error error;
    char text[32];
    CHECK(jmb_encode(m->t, a, &piece, 1, -1, NULL, 0, &count, &error) == JAMBA_OK && count == 4);
    memset(tokens, 0x55, sizeof tokens);
    CHECK(jmb_encode(m->t, a, &piece, 1, -1, tokens, 3, &count, &error) == JAMBA_ERR_ARGUMENT && count == 4);
    CHECK(error.code == JAMBA_ERR_ARGUMENT && strcmp(error.message, "4 tokens do not fit in 3") == 0);
    for (i = 0; i < 16; i++) CHECK(tokens[i] == 0x55555555);
    CHECK(jmb_encode(m->t, a, &piece, 1, 1, tokens, 16, &count, &error) == JAMBA_OK && count == 5 && tokens[0] == 1);
    CHECK(tokens[5] == 0x55555555);
    CHECK(jmb_encode(m->t, a, NULL, 0, 1, tokens, 16, &count, &error) == JAMBA_OK && count == 1);
    CHECK(jmb_encode(m->t, a, NULL, 0, -1, NULL, 0, &count, &error) == JAMBA_OK && count == 0);
    piece.text = NULL;
    CHECK(jmb_encode(m->t, a, &piece, 1, -1, NULL, 0, &count, &error) == JAMBA_ERR_ARGUMENT);
    memset(text, 'x', sizeof text);
    tokens[0] = 1094;
    tokens[1] = 331;
    CHECK(jmb_decode(m->t, tokens, 2, 0, text, 4, &count, &error) == JAMBA_ERR_ARGUMENT && count == 5);
    CHECK(text[0] == 'x');
    CHECK(jmb_decode(m->t, tokens, 2, 0, text, 5, &count, &error) == JAMBA_OK && memcmp(text, "Hellox", 6) == 0);
    tokens[1] = SMALL_VOCAB;
    CHECK(jmb_decode(m->t, tokens, 2, 0, text, 32, &count, &error) == JAMBA_ERR_ARGUMENT);
    CHECK_THAT(strcmp(error.message, "token 1200 is outside the vocabulary (0 to 1199)") == 0, "%s", error.message);
    tokens[1] = -1;
    CHECK(jmb_decode(m->t, tokens, 2, 0, text, 32, &count, &error) == JAMBA_ERR_ARGUMENT);
}

static void test_lookup(const text_model *m)
{
    size_t length;
    int32_t i;
    for (i = 0; i < SMALL_VOCAB; i++) {
        const char *text = jmb_token_bytes(m->t, i, &length);
        if (CHECK(text != NULL)) CHECK(jmb_token_lookup(m->t, text, length) == i);
    }
    CHECK(jmb_token_bytes(m->t, -1, &length) == NULL && length == 0);
    CHECK(jmb_token_bytes(m->t, SMALL_VOCAB, &length) == NULL && length == 0);
    CHECK(jmb_token_lookup(m->t, "", 0) == -1 && jmb_token_lookup(m->t, "no such token", 13) == -1);
    CHECK(jmb_token_lookup(m->t, "</s>", 4) == 2);
}

static void test_no_tokenizer(void)
{
    jmb_heap heap = { { NULL, NULL, NULL }, NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
    jmb_piece piece = { "a", 1, false };
    jamba_text_stream stream;
    jamba_error error;
    size_t count = 9;
    char text[JAMBA_TEXT_MAX];
    memset(&stream, 0, sizeof stream);
    CHECK(jmb_tokenizer_load(t, &heap, NULL, 0, 0, 10, &error) == JAMBA_OK);
    CHECK(jmb_encode(t, &heap.allocator, &piece, 1, -1, NULL, 0, &count, &error) == JAMBA_ERR_TEXT && count == 0);
    CHECK(strcmp(error.message, "the model has no tokenizer") == 0);
    CHECK(jmb_decode(t, NULL, 0, 0, NULL, 0, &count, &error) == JAMBA_ERR_TEXT);
    CHECK(jmb_decode_next(t, &stream, 0, 0, text) == 0);
    CHECK(jmb_token_bytes(t, 0, &count) == NULL && jmb_token_lookup(t, "a", 1) == -1);
    free(t);
}

/* ---- text that is wrong, long, or arrives in parts ------------------------------------------------ */

static void test_invalid_utf8(const text_model *m)
{
    static const char *const wrong[] = { "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80",
        "\xed\xbf\xbf", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xfe", "\xc3", "\xe2\x96",
        "\xf0\x9f\x98", "\xc3(", "\xe2(\x81", "\xf0\x9f(\x80" };
    static const char good[] = "a\xc3\xa9\xe2\x96\x81\xf0\x9f\x98\x80z";
    const size_t starts[] = { 0, 1, 3, 6, 10, 11 };
    size_t i, k, count;
    jamba_error error;
    for (i = 0; i < sizeof wrong / sizeof *wrong; i++)
        for (k = 0; k < sizeof starts / sizeof *starts; k++) {
            char text[32];
            jmb_piece pieces[2] = { { good, 11, true }, { text, 0, false } };
            jamba_result result;
            memcpy(text, good, starts[k]);
            strcpy(text + starts[k], wrong[i]);
            strcat(text, good + starts[k]);
            pieces[1].length = strlen(text);
            result = jmb_encode(m->t, &m->heap.allocator, pieces, 2, -1, NULL, 0, &count, &error);
            CHECK_THAT(result == JAMBA_ERR_TEXT && error.offset == 11 + starts[k], "kind %zu at %zu: %s at %llu", i,
                starts[k], jamba_result_name(result), (unsigned long long)error.offset);
        }
    for (i = 0; i < 11; i++) { /* cut inside a character */
        jmb_piece piece = { good, i, false };
        bool whole = i < 2 || i == 3 || i == 6 || i == 10;
        jamba_result result = jmb_encode(m->t, &m->heap.allocator, &piece, 1, -1, NULL, 0, &count, &error);
        CHECK(result == (whole ? JAMBA_OK : JAMBA_ERR_TEXT));
    }
}

/* Time and memory stay in proportion to the text, whatever it is. */
static void test_long_words(const text_model *m)
{
    static const char *const parts[] = { "a", " ", "\xc3\xa9", "the", "\xf0\x9f\x98\x80", "</s>", "ab\n", "'ll",
        "\xcc\xa7\xcc\x81" /* two marks, already in order */ };
    enum { LONG = 1000000 };
    char *text = (char *)malloc(LONG + 8);
    size_t i;
    for (i = 0; i < sizeof parts / sizeof *parts; i++) {
        size_t part = strlen(parts[i]), size = 0, count, length;
        counter c;
        jamba_allocator a = counter_open(&c);
        jmb_piece piece = { text, 0, true };
        jamba_error error;
        int32_t *tokens;
        char *back;
        double start = tool_seconds(), seconds;
        while (size < LONG) {
            memcpy(text + size, parts[i], part);
            size += part;
        }
        piece.length = size;
        CHECK(jmb_encode(m->t, &a, &piece, 1, -1, NULL, 0, &count, &error) == JAMBA_OK);
        seconds = tool_seconds() - start;
        CHECK_THAT(seconds < 60, "\"%s\" repeated takes %.1f s", parts[i], seconds);
        CHECK_THAT(c.peak < 160 * size, "\"%s\" repeated takes %zu bytes", parts[i], c.peak);
        CHECK(c.live == 0 && c.wrong == 0);
        tokens = (int32_t *)malloc(count * sizeof *tokens);
        CHECK(jmb_encode(m->t, &m->heap.allocator, &piece, 1, -1, tokens, count, &count, &error) == JAMBA_OK);
        back = decode(m, tokens, count, JAMBA_TEXT_SPECIAL, &length);
        CHECK_THAT(strcmp(parts[i], " ") == 0 || i == 8 || (length == size && memcmp(back, text, size) == 0),
            "\"%s\" repeated", parts[i]);
        free(back);
        free(tokens);
    }
    free(text);
}

static int32_t byte_token(const text_model *m, unsigned byte)
{
    return (int32_t)m->t->bytes[byte];
}

/* Streams bytes and returns what came out, terminated. */
static void stream_bytes(const text_model *m, const char *bytes, char *out)
{
    jamba_text_stream stream;
    memset(&stream, 0, sizeof stream);
    stream.started = 2; /* no blank to strip */
    for (; *bytes; bytes++) out += jmb_decode_next(m->t, &stream, byte_token(m, (uint8_t)*bytes), 0, out);
    out += jmb_decode_next(m->t, &stream, -1, 0, out);
    CHECK(stream.held_count == 0);
    *out = 0;
}

#define BAD "\xef\xbf\xbd"

static void test_stream(const text_model *m)
{
    static const char *const rows[][2] = { { "a\xc3\xa9z", "a\xc3\xa9z" }, { "\xf0\x9f\x98\x80", "\xf0\x9f\x98\x80" },
        { "\xc3", BAD }, { "\xc3z", BAD "z" }, { "\xc3\xc3\xa9", BAD "\xc3\xa9" }, { "\xe2\x96z", BAD BAD "z" },
        { "\xf0\x9f\x98\xe2\x96\x81", BAD BAD BAD "\xe2\x96\x81" }, { "\x80\x80", BAD BAD }, { "\xff" "a", BAD "a" },
        { "\xed\xa0\x80", BAD BAD BAD }, { "\xf0\x9f", BAD BAD } };
    static char out[20 * JAMBA_TEXT_MAX];
    jamba_text_stream stream;
    size_t i;
    for (i = 0; i < sizeof rows / sizeof *rows; i++) {
        stream_bytes(m, rows[i][0], out);
        CHECK_THAT(strcmp(out, rows[i][1]) == 0, "row %zu gives \"%s\"", i, out);
    }
    memset(&stream, 0, sizeof stream); /* a token of text breaks a character off */
    CHECK(jmb_decode_next(m->t, &stream, byte_token(m, 0xe2), 0, out) == 0);
    CHECK(jmb_decode_next(m->t, &stream, 331, 0, out) > 3 && memcmp(out, BAD, 3) == 0);
    CHECK(jmb_decode_next(m->t, &stream, 5000, 0, out) == 0 && jmb_decode_next(m->t, &stream, -5, 0, out) == 0);
    CHECK(jmb_decode_next(m->t, &stream, 2, 0, out) == 0);
    CHECK(jmb_decode_next(m->t, &stream, 2, JAMBA_TEXT_SPECIAL, out) == 4 && memcmp(out, "</s>", 4) == 0);
}

/* Bytes that begin a character and do not end it are one U+FFFD, whichever tokens they come in. */
static void test_raw_stream(void)
{
    static const char *const rows[][2] = { { "a\xc3\xa9z", "a\xc3\xa9z" }, { "\xc3", BAD }, { "\xe2\x96z", BAD "z" },
        { "\xf0\x9f\x98\xe2\x96\x81", BAD "\xe2\x96\x81" }, { "\x80\x80", BAD BAD }, { "\xed\xa0\x80", BAD BAD BAD },
        { "\xf0\x9f", BAD } };
    text_model m;
    size_t i, k, length;
    if (text_open_folder(&m, raw_folder, SMALL_VOCAB)) {
        for (i = 0; i < sizeof rows / sizeof *rows; i++) {
            int32_t tokens[16];
            size_t count = strlen(rows[i][0]);
            char *whole, *stream;
            for (k = 0; k < count; k++) tokens[k] = jmb_token_lookup(m.t, &rows[i][0][k], 1);
            whole = decode(&m, tokens, count, 0, &length);
            CHECK_THAT(strcmp(whole, rows[i][1]) == 0, "row %zu gives \"%s\"", i, whole);
            stream = decode_stream(&m, tokens, count, 0, &length);
            CHECK_THAT(length == strlen(whole) && memcmp(stream, whole, length) == 0, "row %zu streams differently", i);
            free(whole);
            free(stream);
        }
    }
    text_close(&m);
}

/* A million marks are put in order in time that is in proportion to them. */
static void test_many_marks(void)
{
    static const char *const marks[] = { "\xcc\x81", "\xcc\xa7", "\xcc\xb4" }; /* classes 230, 202, 1 */
    enum { ROUNDS = 350000 };
    char *text = (char *)malloc(6 * ROUNDS + 1), *want = (char *)malloc(6 * ROUNDS + 1);
    size_t i, k;
    text[0] = want[0] = 'x'; /* composes with none of them */
    for (i = 0; i < ROUNDS; i++)
        for (k = 0; k < 3; k++) {
            memcpy(text + 1 + 6 * i + 2 * k, marks[k], 2);
            memcpy(want + 1 + 2 * (ROUNDS * (2 - k) + i), marks[k], 2);
        }
    check_nfc(text, 6 * ROUNDS + 1, want, 6 * ROUNDS + 1);
    free(text);
    free(want);
}

/* ---- memory ------------------------------------------------------------------------------------- */

/* Work on a model's tokenizer with failing memory. */
typedef struct memory_work {
    jamba_result (*run)(const text_model *m, const jamba_allocator *a);
    const text_model *model;
    counter memory;
    jamba_allocator allocator;
} memory_work;

static jamba_result memory_attempt(void *user, jamba_error *error)
{
    memory_work *w = (memory_work *)user;
    jamba_result result = w->run(w->model, &w->allocator);
    CHECK(w->memory.live == 0 && w->memory.wrong == 0);
    return result == JAMBA_OK ? result : jmb_fail(error, result, 0, "failed");
}

/* Every allocation fails in turn. Returns how many there are. */
static int fail_run(jamba_result (*run)(const text_model *m, const jamba_allocator *a), const text_model *m)
{
    memory_work w;
    w.run = run;
    w.model = m;
    w.allocator = counter_open(&w.memory);
    return fail_each(counter_fault(&w.memory), memory_attempt, &w, JAMBA_ERR_MEMORY);
}

static jamba_result run_load(const text_model *m, const jamba_allocator *a)
{
    jmb_heap heap = { *a, NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
    jamba_result result = jmb_tokenizer_load(t, &heap, m->section.data, m->section.size, 0, m->t->vocab, NULL);
    CHECK(result == JAMBA_OK || t->tokens == 0);
    jmb_heap_free(&heap);
    free(t);
    return result;
}

static jamba_result run_encode(const text_model *m, const jamba_allocator *a)
{
    jmb_piece piece = { sample, strlen(sample), true };
    size_t count;
    return jmb_encode(m->t, a, &piece, 1, 1, NULL, 0, &count, NULL);
}

static jamba_result run_encode_marks(const text_model *m, const jamba_allocator *a)
{
    jmb_piece piece = { "e\xcc\x81\xcc\xa7 it's", 10, true };
    size_t count;
    return jmb_encode(m->t, a, &piece, 1, 1, NULL, 0, &count, NULL);
}

static void test_failing_memory(const text_model *m)
{
    CHECK(fail_run(run_load, m) >= 8);
    CHECK(fail_run(run_encode, m) >= 5);
    if (m->t->flags & JMB_TEXT_RAW) CHECK(fail_run(run_encode_marks, m) >= 6);
}

/* ---- damaged sections ----------------------------------------------------------------------------- */

static const char tiny_json[] =
    WORDS_JSON(",{\"id\":9,\"content\":\"XY\",\"special\":false,\"normalized\":true,\"lstrip\":true,\"rstrip\":true,"
        "\"single_word\":true}");
enum { TINY_VOCAB = 12 };

/* A byte-level one: \u0120 is a blank, \u00c3\u00a9 the two bytes of U+00E9, and "  " no token of bytes. */
static const char raw_json[] =
    "{\"version\":\"1.0\",\"added_tokens\":["
    "{\"id\":7,\"content\":\"XY\",\"special\":true,\"normalized\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"single_word\":false},"
    "{\"id\":6,\"content\":\"  \",\"special\":false,\"normalized\":true,\"lstrip\":false,\"rstrip\":false,"
    "\"single_word\":false}],"
    "\"normalizer\":{\"type\":\"NFC\"},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"model\":{\"type\":\"BPE\","
    "\"vocab\":{\"a\":0,\"\xc4\xa0\":1,\"\xc3\x83\":2,\"\xc2\xa9\":3,\"\xc3\x83\xc2\xa9\":4,"
    "\"\xc4\xa0\xc4\xa0\":5,\"  \":6},\"merges\":[[\"\xc3\x83\",\"\xc2\xa9\"],\"\xc4\xa0 \xc4\xa0\"]}}";

/* Loads a section that may be damaged, in a block of its exact size so that a read beyond is seen, and uses
 * it if it loads. False when it is refused. */
static bool try_section(const uint8_t *data, size_t size, uint32_t vocab)
{
    uint8_t *copy = (uint8_t *)malloc(size + (size == 0));
    counter c;
    jmb_heap heap = { counter_open(&c), NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
    jamba_error error;
    jamba_result result;
    memcpy(copy, data, size);
    result = jmb_tokenizer_load(t, &heap, copy, size, 64, vocab, &error);
    free(copy);
    CHECK(c.peak <= 16384 + 40 * size);
    if (result == JAMBA_OK) {
        static const int32_t tokens[] = { 0, 6, 7, 9, 8, 3, 1, 2, 6, 11, 5 };
        char text[8192];
        size_t count;
        jmb_piece piece = { "a\xc3\xa9 XY  aab<unk>", 15, true };
        if (size > 0) CHECK(jmb_encode(t, &heap.allocator, &piece, 1, -1, NULL, 0, &count, &error) == JAMBA_OK);
        if (size > 0) CHECK(jmb_decode(t, tokens, 11, 0, text, sizeof text, &count, &error) == JAMBA_OK);
    } else {
        CHECK(result == JAMBA_ERR_FORMAT || result == JAMBA_ERR_UNSUPPORTED);
        CHECK_THAT(error.offset >= 64 && error.offset <= 64 + size, "offset %llu", (unsigned long long)error.offset);
    }
    jmb_heap_free(&heap);
    CHECK(c.live == 0 && c.wrong == 0);
    free(t);
    return result == JAMBA_OK;
}

static void damage_section(const char *json)
{
    static const uint8_t values[] = { 0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 0x20, 0x40, 0x7f, 0x80, 0xc3, 0xe2, 0xfe, 0xff };
    text_model m;
    size_t size, i, k, refused = 0;
    if (text_open_string(&m, json, TINY_VOCAB)) {
        uint8_t *data = m.section.data;
        CHECK(try_section(data, m.section.size, TINY_VOCAB));
        for (size = 1; size < m.section.size; size++)
            CHECK_THAT(!try_section(data, size, TINY_VOCAB), "prefix %zu", size);
        CHECK(!try_section(data, m.section.size, 7)); /* more tokens than the model has */
        for (i = 0; i < m.section.size; i++) {
            uint8_t good = data[i];
            for (k = 0; k < sizeof values + 2; k++) {
                data[i] = (uint8_t)(k < sizeof values ? values[k] : good + (k == sizeof values ? 1 : 255));
                refused += !try_section(data, m.section.size, TINY_VOCAB);
            }
            data[i] = good;
        }
        CHECK_THAT(refused > 5 * m.section.size, "only %zu refused", refused);
        CHECK(try_section(data, m.section.size, TINY_VOCAB));
    }
    text_close(&m);
}

static void test_damaged_section(void)
{
    damage_section(tiny_json);
    damage_section(raw_json);
}

/* One field changed, and what must be said about it and where. */
static void test_section_errors(void)
{
    static const struct {
        size_t at;
        uint32_t value;
        jamba_result result;
        const char *message;
    } rows[] = {
        { 0, 2, JAMBA_ERR_UNSUPPORTED, "tokenizer kind 2 is not supported" },
        { 4, 1024, JAMBA_ERR_UNSUPPORTED, "tokenizer flags 1024 not supported" },
        { 8, 13, JAMBA_ERR_FORMAT, "tokenizer: tokens is 13, outside 1 to 12" },
        { 8, 0, JAMBA_ERR_FORMAT, "tokenizer: tokens is 0, outside 1 to 12" },
        { 12, (1u << 26) + 1, JAMBA_ERR_FORMAT, "tokenizer: text size is 67108865, outside 0 to 67108864" },
        { 16, (1u << 20) + 1, JAMBA_ERR_FORMAT, "tokenizer: merges is 1048577, outside 0 to 1048576" },
        { 20, 9, JAMBA_ERR_FORMAT, "tokenizer: rules is 9, outside 0 to 8" },
        { 24, 10, JAMBA_ERR_FORMAT, "tokenizer: unk is 10, outside 0 to 9" },
        { 24, 9, JAMBA_ERR_FORMAT, "tokenizer: unk is not in the model's vocabulary: 9" },
        { 28, 65, JAMBA_ERR_FORMAT, "tokenizer: strip is 65, outside 0 to 64" },
    };
    text_model m;
    size_t i;
    if (text_open_string(&m, tiny_json, TINY_VOCAB)) {
        for (i = 0; i < sizeof rows / sizeof *rows; i++) {
            jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
            jmb_tokenizer *t = (jmb_tokenizer *)calloc(1, sizeof *t);
            uint8_t *copy = (uint8_t *)malloc(m.section.size);
            jamba_error error;
            jamba_result result;
            memcpy(copy, m.section.data, m.section.size);
            tool_store_le(copy + rows[i].at, rows[i].value, 4);
            result = jmb_tokenizer_load(t, &heap, copy, m.section.size, 0, TINY_VOCAB, &error);
            CHECK_THAT(result == rows[i].result && strcmp(error.message, rows[i].message) == 0, "row %zu: %s", i,
                result == JAMBA_OK ? "loads" : error.message);
            jmb_heap_free(&heap);
            free(copy);
            free(t);
        }
    }
    text_close(&m);
}

/* ---- compiling ------------------------------------------------------------------------------------ */

/* Compiles JSON text and keeps the message. */
static bool compile(const char *json, size_t size, uint32_t vocab, tool_error *error)
{
    json_doc doc;
    tool_buffer out = { NULL, 0, 0, false };
    bool ok = json_parse(&doc, json, size, error);
    ok = ok && tokenizer_compile_json(json_root(&doc), NULL, vocab, &out, error);
    json_free(&doc);
    tool_buffer_free(&out);
    return ok;
}

static void cut_json(const char *json)
{
    size_t length = strlen(json), size;
    tool_error error;
    for (size = 0; size < length; size++) {
        char *copy = (char *)malloc(size + (size == 0)); /* so that a read beyond is seen */
        memcpy(copy, json, size);
        CHECK_THAT(!compile(copy, size, TINY_VOCAB, &error), "the first %zu bytes compile", size);
        free(copy);
    }
    CHECK_THAT(compile(json, length, TINY_VOCAB, &error), "%s", error.message);
}

static void test_cut_json(void)
{
    cut_json(tiny_json);
    cut_json(raw_json);
}

/* Whatever a byte becomes, compiling ends, and what compiles also loads (tokenizer_compile_json sees to it). */
static void change_json(const char *json)
{
    static const char values[] = "\"{}[],:0129x\\\xff ";
    size_t length = strlen(json), i, k, refused = 0;
    char *text = (char *)malloc(length);
    tool_error error;
    memcpy(text, json, length);
    for (i = 0; i < length; i++) {
        for (k = 0; k + 1 < sizeof values; k++) {
            text[i] = values[k];
            if (compile(text, length, TINY_VOCAB, &error)) continue;
            refused++;
            CHECK(error.message[0] != 0);
        }
        text[i] = json[i];
    }
    CHECK(refused > 10 * length);
    free(text);
}

static void test_changed_json(void)
{
    change_json(tiny_json);
    change_json(raw_json);
}

/* The tokenizer.json with `from` replaced by `to` fails to compile with this message. */
static void refuse_in(const char *json, const char *from, const char *to, const char *message)
{
    const char *found = strstr(json, from);
    char text[4096];
    tool_error error;
    if (!CHECK_THAT(found != NULL, "no %s", from)) return;
    snprintf(text, sizeof text, "%.*s%s%s", (int)(found - json), json, to, found + strlen(from));
    rules_note(compile(text, strlen(text), TINY_VOCAB, &error) ? "" : error.message);
    if (CHECK_THAT(!compile(text, strlen(text), TINY_VOCAB, &error), "%s compiles", to))
        CHECK_THAT(strcmp(error.message, message) == 0, "%s: %s", to, error.message);
}

static void refuse(const char *from, const char *to, const char *message)
{
    refuse_in(tiny_json, from, to, message);
}

static void test_refused_byte_level(void)
{
    refuse_in(raw_json, "\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"Fuse\"",
        "ByteLevel must be both pre_tokenizer and decoder, or neither");
    refuse_in(raw_json, "\"pre_tokenizer\":{\"type\":\"ByteLevel\"",
        "\"pre_tokenizer\":null,\"post_processor\":{\"x\":1",
        "ByteLevel must be both pre_tokenizer and decoder, or neither");
    refuse_in(raw_json, "\"use_regex\":true", "\"use_regex\":1", "\"use_regex\" is neither true nor false");
    refuse_in(raw_json, "\"BPE\"", "\"BPE\",\"byte_fallback\":true", "ByteLevel with byte_fallback is not supported");
    refuse_in(raw_json, "\"NFC\"", "\"NFKC\"", "normalizer \"NFKC\" is not supported");
    refuse_in(raw_json, "\"id\":6,\"content\":\"  \"", "\"id\":8,\"content\":\"b \"",
        "token 6, \"  \", is neither made of bytes nor an added token");
    refuse_in(raw_json, "\"id\":7,\"content\":\"XY\"", "\"id\":7,\"content\":\"\xc3\xa9\"",
        "added token \"\xc3\xa9\" is letters for bytes: not supported");
    refuse_in(raw_json, "\"id\":6,", "\"id\":5,", "added token \"  \" has id 5, the vocabulary gives it 6");
    refuse_in(raw_json, "\xc4\xa0 \xc4\xa0", "\xc4\xa0 \xe2\x96\x81",
        "merge 1: \"\xe2\x96\x81\" is not in the vocabulary");
}

/* The same, with a part of the message. */
static void refuse_part(const char *json, const char *from, const char *to, const char *words)
{
    const char *found = strstr(json, from);
    size_t room = strlen(json) + strlen(to) + 1;
    char *text = (char *)malloc(room);
    tool_error error;
    if (CHECK_THAT(found != NULL, "no %s", from)) {
        snprintf(text, room, "%.*s%s%s", (int)(found - json), json, to, found + strlen(from));
        if (CHECK_THAT(!compile(text, strlen(text), TINY_VOCAB, &error), "%s compiles", words))
            CHECK_THAT(strstr(error.message, words) != NULL, "'%s' lacks '%s'", error.message, words);
        rules_note(error.message);
    }
    free(text);
}

static const char sequence_start[] = "\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"},";

static const char bare_json[] = "{\"added_tokens\":[],\"normalizer\":null,\"pre_tokenizer\":null,"
    "\"decoder\":{\"type\":\"Fuse\"},\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[]}}";

static void test_refused_parts(void)
{
    static const char rule[] = "{\"type\":\"Replace\",\"pattern\":{\"String\":\"q\"},\"content\":\"q\"},";
    char many[40 + 9 * sizeof rule], longer[1100], big[1400];
    int i;
    snprintf(many, sizeof many, "\"normalizers\":[");
    for (i = 0; i < 9; i++) strcat(many, rule);
    refuse_part(tiny_json, sequence_start, many, "more than 8 rules");
    memset(longer, 'q', sizeof longer);
    longer[65] = 0;
    snprintf(big, sizeof big, "\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"%s\"},", longer);
    refuse_part(tiny_json, sequence_start, big, "a pattern or replacement has more than 64 bytes");
    longer[65] = 'q';
    longer[1025] = 0;
    snprintf(big, sizeof big, "\"%s\":1", longer);
    refuse_part(tiny_json, "\"a\":1", big, "token 1 has more than 1024 bytes");
    refuse_part(tiny_json, sequence_start, "\"normalizers\":[7,", "is not");
    refuse_part(tiny_json, "\"prepend\":\"\\u2581\"", "\"prepend\":7", "Prepend has no string \"prepend\"");
    refuse_part(tiny_json, "\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"\\u2581\"}",
        "\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":\"x\"}",
        "decoder Replace of \"x\" by \" \"");
    refuse_part(bare_json, "{\"a\":0}", "7", "\"vocab\" is not an object");
    refuse_part(bare_json, "{\"a\":0}", "{}", "the vocabulary is empty");
    refuse_part(bare_json, "\"merges\":[]", "\"merges\":7", "\"merges\" is not an array");
    refuse_part(bare_json, "\"model\":{", "\"model\":7,\"other\":{", "there is no object \"model\"");
    refuse_part("[]", "[]", "[]", "there is no object \"model\"");
    refuse_part(tiny_json, "\"content\":\"XY\"", "\"content\":7", "lacks a \"content\" or an integer \"id\"");
    refuse_part(tiny_json, "{\"id\":9,\"content\":\"XY\"", "{\"id\":0,\"content\":\"<unk>\"",
        "added token \"<unk>\" twice");
    refuse_part(bare_json, "\"added_tokens\":[]", "\"added_tokens\":7", "\"added_tokens\" is not an array");
    refuse_part(bare_json, "\"added_tokens\":[]", "\"added_tokens\":[7]", "an added token is not an object");
    refuse_part(bare_json, "null", "{\"type\":\"Sequence\",\"normalizers\":7}",
        "a Sequence lacks the list \"normalizers\"");
    refuse_part(bare_json, "null,\"pre_tokenizer\":null",
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"qq\"},\"content\":\"r\"},\"pre_tokenizer\":"
        "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"first\",\"split\":false}",
        "Metaspace \"first\" after Replace of or by other than a character");
}

static void test_refused_forms(void)
{
    refuse("\"BPE\"", "\"Unigram\"", "model type \"Unigram\" is not supported");
    refuse("\"fuse_unk\":true", "\"dropout\":0.1", "dropout is not supported");
    refuse("\"fuse_unk\":true", "\"ignore_merges\":true", "ignore_merges is not supported");
    refuse("\"fuse_unk\":true", "\"end_of_word_suffix\":\"</w>\"", "end_of_word_suffix is not supported");
    refuse("\"fuse_unk\":true", "\"continuing_subword_prefix\":\"#\"", "continuing_subword_prefix is not supported");
    refuse("\"fuse_unk\":true", "\"shape\":1", "the model has the key \"shape\", which is not known");
    refuse("\"fuse_unk\":true", "\"type dropout\":1", "the model has the key \"type dropout\", which is not known");
    refuse("\"fuse_unk\":true", "\"type\\u0000s\":1", "the model has the key \"type\", which is not known");
    refuse("\"fuse_unk\":true", "\"a_key_of_more_than_the_sixty_two_characters_that_known_keys_could_have\":1",
        "the model has the key \"a_key_of_more_than_the_sixty_two_charact\", which is not known");
    refuse("\"fuse_unk\":true", "\"fuse_unk\":1", "\"fuse_unk\" is neither true nor false");
    refuse("\"unk_token\":\"<unk>\"", "\"unk_token\":\"<u>\"", "unk_token is not in the vocabulary");
    refuse("\"Sequence\",\"normalizers\"", "\"NFC\",\"normalizers\"",
        "NFC has the key \"normalizers\", which is not known");
    refuse("\"Prepend\"", "\"Lowercase\"", "normalizer \"Lowercase\" is not supported");
    refuse("{\"String\":\" \"}", "{\"Regex\":\" +\"}", "Replace of a regular expression is not supported");
    refuse("{\"String\":\" \"}", "{\"String\":\"\"}", "Replace lacks a String pattern or a content");
    refuse("\"Metaspace\"", "\"ByteLevel\"", "ByteLevel has the key \"replacement\", which is not known");
    refuse("\"always\"", "\"last\"", "Metaspace: unknown prepend_scheme");
    refuse("\"split\":true", "\"add_prefix_space\":false",
        "Metaspace: add_prefix_space and prepend_scheme contradict each other");
    refuse("\"replacement\":\"\\u2581\"", "\"replacement\":\"ab\"",
        "the replacement of Metaspace is not one character");
    refuse("{\"type\":\"Fuse\"},", "", "decoder Strip stands in an unusual place, which is not supported");
    refuse("\"ByteFallback\"", "\"WordPiece\"", "decoder \"WordPiece\" is not supported");
    refuse("\"stop\":0", "\"stop\":1", "decoder Strip: only up to 64 spaces at the start");
    refuse("\"decoder\":{\"type\":\"Sequence\"", "\"decoder\":null,\"post_processor\":{\"type\":\"x\"",
        "there is no decoder: tokens joined by blanks are not supported");
    refuse("\"version\":\"1.0\"", "\"version\":\"2.0\"", "\"version\" is not \"1.0\"");
    refuse("\"version\":\"1.0\"", "\"extra\":1", "the file has the key \"extra\", which is not known");
    refuse("\"b\":2", "\"b\":1", "tokens \"a\" and \"b\" both have id 1");
    refuse("\"b\":2", "\"b\":12", "token \"b\" has id 12, the model has ids 0 to 11");
    refuse("\"b\":2", "\"b\":-1", "token \"b\" has id -1, the model has ids 0 to 11");
    refuse("\"b\":2", "\"b\":\"2\"", "token \"b\" has no integer id");
    refuse("\"aab\":8", "\"abb\":8", "merge 2: \"aab\" is not in the vocabulary");
    refuse("[\"a\",\"b\"]", "[\"a\",\"c\"]", "merge 0: \"c\" is not in the vocabulary");
    refuse("[\"a\",\"b\"]", "[\"a\"]", "merge 0 is not a pair of tokens");
    refuse("\"\\u2581 a\"", "\"a b c\"", "merge 1 is not a pair of tokens: a b c");
    refuse("\"\\u2581 a\"", "\"a  b\"", "merge 1 is not a pair of tokens: a  b");
    refuse("\"\\u2581 a\"", "\"a b \"", "merge 1 is not a pair of tokens: a b ");
    refuse("\"id\":9", "\"id\":10", "added token \"XY\" has id 10, the vocabulary gives it 9");
    refuse("\"content\":\"XY\"", "\"content\":\"<unk>\"", "added token \"<unk>\" has id 9, the vocabulary gives it 0");
    refuse("\"content\":\"XY\",\"special\"", "\"content\":\"XY\",\"odd\"",
        "an added token has the key \"odd\", which is not known");
    refuse("\"lstrip\":true,", "", "an added token lacks \"lstrip\"");
}

/* ---- tokenizer.model --------------------------------------------------------------------------------- */

/* A model of six normal pieces; what varies is one of its settings, or one more piece. */
typedef struct model_spec {
    uint64_t kind;
    bool bytes, suffix, collapse, raw_spaces;
    const char *normalizer, *charsmap, *piece; /* NULL: none */
    sp_type type;                              /* of that piece */
} model_spec;

static const model_spec good_spec = { SP_BPE, false, false, false, false, NULL, NULL, NULL, SP_NORMAL };
enum { MODEL_VOCAB = 12 };

static tool_buffer make_model(const model_spec *spec)
{
    tool_buffer out = { NULL, 0, 0, false }, trainer = { NULL, 0, 0, false }, normalizer = { NULL, 0, 0, false };
    pb_piece(&out, "<unk>", 0, SP_UNKNOWN);
    pb_piece(&out, "<s>", 0, SP_CONTROL);
    pb_piece(&out, "\xe2\x96\x81", -1, SP_NORMAL);
    pb_piece(&out, "a", -2, SP_NORMAL);
    pb_piece(&out, "aa", -9, SP_NORMAL);
    pb_piece(&out, "aaa", -9, SP_NORMAL);
    pb_piece(&out, "\xe2\x96\x81" "a", -3, SP_NORMAL);
    pb_piece(&out, "[X]", 0, SP_USER_DEFINED);
    if (spec->piece) pb_piece(&out, spec->piece, -4, spec->type);
    pb_number(&trainer, 3, spec->kind);
    pb_number(&trainer, 24, spec->suffix);
    pb_number(&trainer, 35, spec->bytes);
    pb_message(&out, 2, &trainer);
    if (spec->normalizer) pb_bytes(&normalizer, 1, spec->normalizer, strlen(spec->normalizer));
    if (spec->charsmap) pb_bytes(&normalizer, 2, spec->charsmap, strlen(spec->charsmap));
    pb_number(&normalizer, 4, spec->collapse);
    pb_number(&normalizer, 5, !spec->raw_spaces);
    pb_message(&out, 3, &normalizer);
    return out;
}

static bool compile_model(const uint8_t *data, size_t size, tool_error *error)
{
    tool_buffer out = { NULL, 0, 0, false };
    uint8_t *copy = (uint8_t *)malloc(size + (size == 0)); /* so that a read beyond is seen */
    bool ok;
    memcpy(copy, data, size);
    ok = tokenizer_compile_model(copy, size, NULL, MODEL_VOCAB, &out, error);
    tool_buffer_free(&out);
    free(copy);
    return ok;
}

static void test_model(void)
{
    static const int32_t plain[] = { 6, 4 }, defined[] = { 6, 7, 3 }, unknown[] = { 2, 0, 3 };
    static const int32_t special[] = { 1, 6 }, as_text[] = { 2, 0, 3 };
    tool_buffer data = make_model(&good_spec);
    text_model m;
    tool_error error;
    size_t length;
    memset(&m, 0, sizeof m);
    if (CHECK_THAT(tokenizer_compile_model(data.data, data.size, NULL, MODEL_VOCAB, &m.section, &error), "%s",
            error.message)
        && text_load(&m, MODEL_VOCAB)) {
        static const struct {
            const char *text;
            bool special;
            const int32_t *want;
            size_t count;
        } rows[] = { { "aaa", false, plain, 2 }, { "a[X]a", false, defined, 3 }, { "bca", false, unknown, 3 },
            { "<s>a", true, special, 2 }, { "<s>a", false, as_text, 3 }, { "", false, NULL, 0 } };
        size_t i;
        char *text;
        for (i = 0; i < sizeof rows / sizeof *rows; i++) {
            ids got = encode(&m, rows[i].text, strlen(rows[i].text), rows[i].special);
            CHECK_THAT(same_ids(&got, rows[i].want, rows[i].count), "other tokens for \"%s\"", rows[i].text);
            free(got.items);
        }
        text = decode(&m, defined, 3, 0, &length);
        CHECK_THAT(strcmp(text, "a[X]a") == 0, "\"%s\"", text);
        free(text);
    }
    text_close(&m);
    tool_buffer_free(&data);
}

/* Every beginning is refused: remove_extra_whitespaces false, which is not the default, comes last. */
static void test_cut_model(void)
{
    tool_buffer data = make_model(&good_spec);
    tool_error error;
    size_t size, whole = 0;
    for (size = 0; size < data.size; size++) {
        bool ok = compile_model(data.data, size, &error);
        whole += ok;
        CHECK(ok || error.message[0] != 0);
    }
    CHECK_THAT(whole == 0, "%zu cut models compile", whole);
    CHECK_THAT(compile_model(data.data, data.size, &error), "%s", error.message);
    tool_buffer_free(&data);
}

static void test_changed_model(void)
{
    tool_buffer data = make_model(&good_spec);
    tool_error error;
    size_t i, refused = 0;
    unsigned value;
    for (i = 0; i < data.size; i++) {
        uint8_t good = data.data[i];
        for (value = 0; value < 256; value++) {
            data.data[i] = (uint8_t)value;
            if (compile_model(data.data, data.size, &error)) continue;
            refused++;
            CHECK(error.message[0] != 0);
        }
        data.data[i] = good;
    }
    CHECK_THAT(refused > 100 * data.size, "only %zu refused", refused);
    tool_buffer_free(&data);
}

static void refuse_spec(const model_spec *spec, const char *message)
{
    tool_buffer data = make_model(spec);
    tool_error error;
    if (CHECK_THAT(!compile_model(data.data, data.size, &error), "compiles, and not \"%s\"", message))
        CHECK_THAT(strcmp(error.message, message) == 0, "%s", error.message);
    rules_note(error.message);
    tool_buffer_free(&data);
}

static void refuse_bytes(const char *bytes, size_t size, const char *message)
{
    tool_error error;
    if (CHECK_THAT(!compile_model((const uint8_t *)bytes, size, &error), "compiles, and not \"%s\"", message))
        CHECK_THAT(strstr(error.message, message) != NULL, "%s", error.message);
    rules_note(error.message);
}

/* A normalizer that changes nothing may have any name. */
static void test_idle_normalizers(void)
{
    static const char *const names[] = { "nmt_nfkc", "identity" }, *const charsmaps[] = { "", "xyz" };
    size_t i;
    for (i = 0; i < 2; i++) {
        model_spec spec = good_spec;
        tool_buffer data;
        tool_error error;
        spec.normalizer = names[i];
        spec.charsmap = charsmaps[i];
        data = make_model(&spec);
        CHECK_THAT(compile_model(data.data, data.size, &error), "%s: %s", names[i], error.message);
        free(data.data);
    }
}

static void test_refused_models(void)
{
    model_spec spec = good_spec;
    spec.kind = 1;
    refuse_spec(&spec, "SentencePiece model type \"unigram\" is not supported, only bpe");
    spec = good_spec;
    spec.suffix = true;
    refuse_spec(&spec, "treat_whitespace_as_suffix is not supported");
    spec = good_spec;
    spec.collapse = true;
    refuse_spec(&spec, "remove_extra_whitespaces is not supported");
    spec = good_spec;
    spec.raw_spaces = true;
    refuse_spec(&spec, "escape_whitespaces false is not supported");
    spec = good_spec;
    spec.normalizer = "nmt_nfkc";
    spec.charsmap = "xyz";
    refuse_spec(&spec, "SentencePiece normalizer \"nmt_nfkc\" is not supported");
    spec = good_spec;
    spec.bytes = true;
    refuse_spec(&spec, "byte_fallback without a piece <0x00> of type byte");
    spec = good_spec;
    spec.piece = "b";
    spec.type = SP_UNUSED;
    refuse_spec(&spec, "piece \"b\" of type unused is not supported");
    spec.type = SP_BYTE;
    refuse_spec(&spec, "piece \"b\" is of type byte and names none");
    spec.type = SP_UNKNOWN;
    refuse_spec(&spec, "pieces 0 and 8 are both of type unknown");
    spec.type = SP_NORMAL;
    spec.piece = "ab";
    refuse_spec(&spec, "piece 8 has a character that is no piece: not supported");
    spec.piece = "\xff";
    refuse_spec(&spec, "not a valid model at byte 117: a piece is not valid UTF-8");
    refuse_bytes("", 0, "it has no pieces");
    refuse_bytes("\x0a", 1, "it ends inside a number");
    refuse_bytes("\x0a\x05" "ab", 4, "a field goes on after the end");
    refuse_bytes("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11, "a field goes on after the end");
    refuse_bytes("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", 11, "a number is too long");
    refuse_bytes("\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x00", 12, "a number is too long");
    refuse_bytes("\x0b\x0c", 2, "a field of a type that is not supported");
    refuse_bytes("\x02\x00", 2, "a field has a wrong number");
    refuse_bytes("\x08\x00", 2, "a field has the wrong type");
    refuse_bytes("\x0a\x00", 2, "a piece has no text or too much");
    refuse_bytes("\x0a\x05\x0a\x01" "a\x18\x07", 7, "a piece has an unknown type");
    refuse_bytes("\x0a\x08\x0a\x01" "a\x15\x00\x00\xc0\x7f", 10, "a score is not finite");
}

/* ---- tokenizer_config.json ----------------------------------------------------------------------------- */

/* Compiles tiny_json with a tokenizer_config.json; false with a message. */
static bool compile_with(text_model *m, const char *config, tool_error *error)
{
    json_doc json, extra;
    bool ok = json_parse(&json, tiny_json, strlen(tiny_json), error)
        && json_parse(&extra, config, strlen(config), error);
    memset(m, 0, sizeof *m);
    if (!CHECK_THAT(ok, "%s", error->message)) return false;
    ok = tokenizer_compile_json(json_root(&json), json_root(&extra), TINY_VOCAB, &m->section, error);
    json_free(&json);
    json_free(&extra);
    return ok;
}

static void refuse_config(const char *config, const char *message)
{
    text_model m;
    tool_error error;
    if (CHECK_THAT(!compile_with(&m, config, &error), "%s compiles", config))
        CHECK_THAT(strcmp(error.message, message) == 0, "%s", error.message);
    rules_note(error.message);
    tool_buffer_free(&m.section);
}

static void test_config_tokens(void)
{
    text_model m;
    tool_error error;
    bool ok = compile_with(&m, "{\"added_tokens_decoder\":{\"0\":{\"content\":\"<unk>\"},"
        "\"10\":{\"content\":\"<e>\",\"special\":true},\"4\":{\"content\":\"ab\",\"rstrip\":true}}}", &error);
    if (CHECK_THAT(ok, "%s", error.message) && text_load(&m, TINY_VOCAB)) {
        CHECK(jmb_token_lookup(m.t, "<e>", 3) == 10);
        CHECK(m.t->token_flags[10] == (JMB_TOKEN_ADDED | JMB_TOKEN_SPECIAL));
        CHECK(m.t->token_flags[4] == (JMB_TOKEN_MODEL | JMB_TOKEN_ADDED | JMB_TOKEN_RSTRIP | JMB_TOKEN_NORMALISED));
        CHECK(m.t->token_flags[0] == (JMB_TOKEN_MODEL | JMB_TOKEN_ADDED | JMB_TOKEN_SPECIAL));
    }
    text_close(&m);
    refuse_config("{\"added_tokens_decoder\":{\"4\":{\"content\":\"<e>\"}}}",
        "added_tokens_decoder: id 4 is \"<e>\", in the tokenizer \"ab\"");
    refuse_config("{\"added_tokens_decoder\":{\"10\":{\"content\":\"ab\"}}}",
        "added_tokens_decoder: token \"ab\" has id 10, the tokenizer gives it 4");
    refuse_config("{\"added_tokens_decoder\":{\"12\":{\"content\":\"x\"}}}",
        "added_tokens_decoder: \"12\" is no id from 0 to 11");
    refuse_config("{\"added_tokens_decoder\":{\"10\":{\"content\":\"\"}}}",
        "added_tokens_decoder: token 10 has no \"content\"");
    refuse_config("{\"added_tokens_decoder\":[1]}", "\"added_tokens_decoder\" is not an object");
}

/* What config.json does not tell is looked up in the tokenizer. */
static void test_config_ids(void)
{
    char folder[PATH_ROOM], path[PATH_ROOM + 32];
    static const char config[] = "{\"bos_token\":\"<unk>\",\"eos_token\":{\"content\":\"XY\"}}";
    text_model m;
    jmb_header header;
    tool_error error;
    temp_path(folder, "ids");
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    file_write(path, config, strlen(config));
    if (text_open_string(&m, tiny_json, TINY_VOCAB)) {
        memset(&header, 0, sizeof header);
        header.vocab = TINY_VOCAB;
        header.bos = JMB_NO_TOKEN;
        CHECK_THAT(tokenizer_fill_ids(folder, &m.section, &header, &error), "%s", error.message);
        CHECK(header.bos == 0 && header.eos_count == 1 && header.eos0 == 9);
        header.bos = header.eos0 = 5;
        CHECK(tokenizer_fill_ids(folder, &m.section, &header, &error));
        CHECK(header.bos == 5 && header.eos_count == 1 && header.eos0 == 5);
    }
    unlink(path);
    text_close(&m);
}

static void test_reading_folders(void)
{
    char folder[PATH_ROOM], path[PATH_ROOM + 20];
    tool_buffer out = { NULL, 0, 0, false };
    tool_error error;
    temp_path(folder, "folder");
    mkdir(folder, 0777);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    unlink(path);
    CHECK(tokenizer_compile(folder, 10, &out, &error) && out.size == 0); /* no tokenizer is no error */
    file_write(path, "{\"model\":", 9);
    CHECK(!tokenizer_compile(folder, 10, &out, &error) && strstr(error.message, "tokenizer.json: not valid JSON"));
    file_write(path, "{\"model\":1}", 11);
    CHECK(!tokenizer_compile(folder, 10, &out, &error));
    CHECK_THAT(strstr(error.message, "tokenizer.json: tokenizer: there is no object") != NULL, "%s", error.message);
    rules_note(error.message);
    unlink(path);
}

/* ---- chat ------------------------------------------------------------------------------------------ */

/* Metadata with the strings that chat_formats.h would put in the file. */
typedef struct chat_model {
    text_model text;
    jmb_metadata metadata;
    tool_strings strings;
} chat_model;

static void chat_strings(chat_model *c, int32_t bos)
{
    jamba_error error;
    memset(&c->metadata, 0, sizeof c->metadata);
    c->metadata.header.bos = (uint32_t)bos;
    c->metadata.header.strings_size = c->strings.bytes.size;
    c->metadata.parts.tokenizer = c->strings.bytes.size;
    CHECK(jmb_parse_strings(&c->metadata, &c->text.heap, c->strings.bytes.data, &error) == JAMBA_OK);
}

static ids chat_encode(const chat_model *c, const jamba_message *messages, size_t count, unsigned flags)
{
    ids out = { NULL, 0 };
    jamba_error error;
    const jamba_allocator *a = &c->text.heap.allocator;
    const jmb_metadata *m = &c->metadata;
    jamba_result result = jmb_chat_encode(m, c->text.t, a, messages, count, flags, NULL, 0, &out.count, &error);
    size_t room = out.count;
    out.items = (int32_t *)calloc(room + 1, sizeof *out.items);
    if (room > 0)
        result = jmb_chat_encode(m, c->text.t, a, messages, count, flags, out.items, room, &out.count, &error);
    CHECK_THAT(result == JAMBA_OK, "chat: %s", error.message);
    return out;
}

static void check_chat(
    const chat_model *c, const jamba_message *messages, size_t count, unsigned flags, const char *rendered)
{
    ids got = chat_encode(c, messages, count, flags), want = encode(&c->text, rendered, strlen(rendered), true);
    CHECK_THAT(same_ids(&got, want.items, want.count), "not as \"%s\"", rendered);
    free(got.items);
    free(want.items);
}

static jamba_result chat_fail(
    const chat_model *c, const char *role, const char *content, unsigned flags, jamba_error *error)
{
    const jamba_allocator *a = &c->text.heap.allocator;
    jamba_message message = { role, content };
    size_t count;
    return jmb_chat_encode(&c->metadata, c->text.t, a, &message, 1, flags, NULL, 0, &count, error);
}

static void test_chatml(void)
{
    static const int32_t expected[] = { 1, 4, 477, 262, 1704, 263, 1711, 551, 416, 293, 5, 262, 4, 478, 262 };
    static const jamba_message talk[] = { { "user", "Hi" }, { "assistant", "Hello <|im_end|>" }, { "tool", "" } };
    jamba_message hello = { "user", "Hello! How are you?" };
    chat_model c;
    tool_error problem;
    jamba_error error;
    ids got;
    memset(&c, 0, sizeof c);
    if (text_open_folder(&c.text, story, 2048)
        && CHECK_THAT(chat_format_strings(story, NULL, &c.strings, &problem), "%s", problem.message)) {
        chat_strings(&c, 1);
        got = chat_encode(&c, &hello, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY);
        CHECK(same_ids(&got, expected, sizeof expected / sizeof *expected));
        free(got.items);
        check_chat(&c, &hello, 1, JAMBA_CHAT_CONTINUE | JAMBA_CHAT_REPLY,
            "<|im_end|>\n<|im_start|>user\nHello! How are you?<|im_end|>\n<|im_start|>assistant\n");
        check_chat(&c, NULL, 0, JAMBA_CHAT_BEGIN, "<|startoftext|>");
        check_chat(&c, NULL, 0, 0, "");
        got = chat_encode(&c, talk, 3, 0);
        CHECK(got.count > 8 && got.items[got.count - 1] == 262 && got.items[got.count - 2] == 5);
        free(got.items);
        CHECK(chat_fail(&c, "user", "a\xff", 0, &error) == JAMBA_ERR_TEXT && error.offset == 1);
        CHECK(chat_fail(&c, "poet", "a", 0, &error) == JAMBA_ERR_UNSUPPORTED && strstr(error.message, "'poet'"));
        CHECK(chat_fail(&c, NULL, "a", 0, &error) == JAMBA_ERR_ARGUMENT);
        CHECK(chat_fail(&c, "user", NULL, 0, &error) == JAMBA_ERR_ARGUMENT);
        CHECK(chat_fail(&c, "user", "a", JAMBA_CHAT_BEGIN | JAMBA_CHAT_CONTINUE, &error) == JAMBA_ERR_ARGUMENT);
        c.metadata.string_count = 0;
        CHECK(chat_fail(&c, "user", "a", 0, &error) == JAMBA_ERR_UNSUPPORTED);
        CHECK(strcmp(error.message, "this model has no chat format: it completes text") == 0);
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
}

static void put(char **out, const char *text)
{
    strcpy(*out, text);
    *out += strlen(text);
}

/* Where write_folder's tokenizer puts a blank in front: "first", "always" or "never". */
static const char *folder_prefix = "never";

/* A folder with the given special tokens, template and configuration. */
static void write_folder(char folder[PATH_ROOM], const char *const *specials, const char *config, const char *jinja)
{
    char path[PATH_ROOM + 32], text[4096], *out = text, number[240];
    int i;
    temp_path(folder, "chat");
    mkdir(folder, 0777);
    put(&out, "{\"version\":\"1.0\",\"added_tokens\":[");
    for (i = 0; specials[i]; i++) {
        snprintf(number, sizeof number, "%s{\"id\":%d,\"content\":\"%s\",", i ? "," : "", i + 5, specials[i]);
        put(&out, number);
        put(&out, "\"special\":true,\"normalized\":false,\"lstrip\":false,\"rstrip\":false,\"single_word\":false}");
    }
    put(&out, "],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"},");
    snprintf(number, sizeof number, "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\","
        "\"prepend_scheme\":\"%s\",\"split\":false},", folder_prefix);
    put(&out, number);
    put(&out, "\"decoder\":{\"type\":\"Fuse\"},\"model\":{\"type\":\"BPE\",\"unk_token\":\"?\",");
    put(&out, "\"vocab\":{\"?\":0,\"\\u2581\":1,\"a\":2,\"b\":3,\"\\u2581a\":4},\"merges\":[\"\\u2581 a\"]}}");
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    file_write(path, text, strlen(text));
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    file_write(path, config, strlen(config));
    snprintf(path, sizeof path, "%s/chat_template.jinja", folder);
    unlink(path);
    if (jinja) file_write(path, jinja, strlen(jinja));
}

static const char *const jamba_specials[] = { "<|startoftext|>", "<|bom|>", "<|eom|>", "<|system|>", "<|user|>",
    "<|assistant|>", NULL };
static const char *const chatml_specials[] = { "<s>", "<|im_start|>", "<|im_end|>", NULL };

static void test_jamba_chat(void)
{
    static const jamba_message talk[] = { { "user", "a b" }, { "assistant", "a<|eom|>" } };
    jamba_message system = { "system", "a" };
    chat_model c;
    tool_error problem;
    jamba_error error;
    char folder[PATH_ROOM];
    memset(&c, 0, sizeof c);
    write_folder(folder, jamba_specials, "{\"chat_template\":\"... <|bom|> ...\"}", NULL);
    if (text_open_folder(&c.text, folder, 20)
        && CHECK_THAT(chat_format_strings(folder, NULL, &c.strings, &problem), "%s", problem.message)) {
        chat_strings(&c, -1);
        check_chat(&c, talk, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY,
            "<|startoftext|><|bom|><|system|> <|eom|><|bom|><|user|> a b<|eom|><|bom|><|assistant|>");
        check_chat(&c, &system, 1, JAMBA_CHAT_BEGIN, "<|startoftext|><|bom|><|system|> a<|eom|>");
        check_chat(&c, talk, 1, JAMBA_CHAT_CONTINUE | JAMBA_CHAT_REPLY,
            "<|eom|><|bom|><|user|> a b<|eom|><|bom|><|assistant|>");
        CHECK(chat_fail(&c, "tool", "a", 0, &error) == JAMBA_ERR_UNSUPPORTED); /* no <|tool|> in the tokenizer */
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
}

static jamba_result run_chat(const text_model *m, const jamba_allocator *a)
{
    const chat_model *c = (const chat_model *)(const void *)m;
    jamba_message message = { "user", "a b <s>" };
    size_t count;
    return jmb_chat_encode(&c->metadata, m->t, a, &message, 1, JAMBA_CHAT_BEGIN, NULL, 0, &count, NULL);
}

/* The folder's format as its strings say: name, and begin ("-" when absent). NULL in `want`: none. */
static void check_format(const char *folder, const char *name, const char *want, const char *begin)
{
    chat_model c;
    tool_error error;
    memset(&c, 0, sizeof c);
    if (text_open_folder(&c.text, folder, 20)
        && CHECK_THAT(chat_format_strings(folder, name, &c.strings, &error), "%s", error.message)) {
        const char *format, *got;
        chat_strings(&c, 5);
        format = jmb_find_string(&c.metadata, "chat.format");
        got = jmb_find_string(&c.metadata, "chat.begin");
        CHECK_THAT(want ? format && strcmp(format, want) == 0 : !format, "format %s", format ? format : "none");
        CHECK_THAT(strcmp(got ? got : "-", begin) == 0, "begin %s", got ? got : "-");
        if (format) CHECK(fail_run(run_chat, (const text_model *)(const void *)&c) >= 6);
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
}

static void test_chat_detection(void)
{
    char folder[PATH_ROOM];
    tool_strings strings = { { NULL, 0, 0, false } };
    tool_error error;
    write_folder(folder, chatml_specials, "{}", "x <|im_start|> y");
    check_format(folder, NULL, "chatml", "");
    check_format(folder, "chatml", "chatml", "");
    check_format(folder, "none", NULL, "-");
    CHECK(!chat_format_strings(folder, "jamba", &strings, &error));
    CHECK_THAT(strstr(error.message, "lacks the special token <|startoftext|>") != NULL, "%s", error.message);
    CHECK(!chat_format_strings(folder, "llama", &strings, &error));
    CHECK_THAT(strstr(error.message, "format \"llama\", known are: chatml, jamba, mistral, none") != NULL, "%s",
        error.message);
    write_folder(folder, chatml_specials, "{\"bos_token\":{\"content\":\"<s>\"}}", "{{bos_token}} <|im_start|> y");
    check_format(folder, NULL, "chatml", "<s>");
    write_folder(folder, chatml_specials, "{\"add_bos_token\":true}", "<|im_start|> y");
    check_format(folder, NULL, "chatml", "-");
    write_folder(folder, chatml_specials,
        "{\"chat_template\":[{\"name\":\"rag\",\"template\":\"\"},"
        "{\"name\":\"default\",\"template\":\"<|im_start|>\"}]}", NULL);
    check_format(folder, NULL, "chatml", "");
    write_folder(folder, chatml_specials, "{\"chat_template\":\"[INST]\"}", NULL);
    check_format(folder, NULL, NULL, "-");
    write_folder(folder, jamba_specials, "{}", "<|im_start|>"); /* the marks are not special tokens here */
    check_format(folder, NULL, NULL, "-");
    write_folder(folder, jamba_specials, "{", "");
    CHECK(!chat_format_strings(folder, NULL, &strings, &error) && strstr(error.message, "tokenizer_config.json"));
    tool_buffer_free(&strings.bytes);
}

static const char *const mistral_specials[] = { "<s>", "</s>", "[INST]", "[/INST]", NULL };
static const char *const early_specials[] = { "<s>", "</s>", NULL };

/* A first turn, and the next one after a reply, in the tokens of these texts. */
static void check_mistral(const char *const *specials, const char *first, const char *next)
{
    static const jamba_message talk[] = { { "user", "a b" }, { "assistant", "b" }, { "user", "a" } };
    chat_model c;
    tool_error problem;
    jamba_error error;
    char folder[PATH_ROOM];
    memset(&c, 0, sizeof c);
    write_folder(folder, specials, "{\"chat_template\":\"{{bos_token}}[INST]\"}", NULL);
    if (text_open_folder(&c.text, folder, 20)
        && CHECK_THAT(chat_format_strings(folder, NULL, &c.strings, &problem), "%s", problem.message)) {
        chat_strings(&c, -1);
        check_chat(&c, talk, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY, first);
        check_chat(&c, talk, 3, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY, next);
        check_chat(&c, NULL, 0, JAMBA_CHAT_CONTINUE, "</s>");
        CHECK(chat_fail(&c, "system", "a", 0, &error) == JAMBA_ERR_UNSUPPORTED);
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
}

/* A text has a blank in front where the tokenizer puts one at its start: of every text after a special token, or
 * of the whole only, and then the format does. */
static void test_mistral_chat(void)
{
    static const char *const plain[] = { "never", "always" };
    char folder[PATH_ROOM];
    int i;
    for (i = 0; i < 2; i++) {
        folder_prefix = plain[i];
        check_mistral(mistral_specials, "<s>[INST]a b[/INST]", "<s>[INST]a b[/INST]b</s>[INST]a[/INST]");
        check_mistral(early_specials, "<s>[INST] a b [/INST]", "<s>[INST] a b [/INST] b</s>[INST] a [/INST]");
    }
    folder_prefix = "first";
    check_mistral(mistral_specials, "<s>[INST] a b[/INST]", "<s>[INST] a b[/INST] b</s>[INST] a[/INST]");
    check_mistral(early_specials, "<s> [INST] a b [/INST]", "<s> [INST] a b [/INST] b</s> [INST] a [/INST]");
    folder_prefix = "never";
    write_folder(folder, early_specials, "{\"chat_template\":\"[INST] <<SYS>>\"}", NULL);
    check_format(folder, NULL, NULL, "-");
    check_format(folder, "mistral", "mistral", "<s>");
}

static void append(ids *out, ids part)
{
    out->items = (int32_t *)realloc(out->items, (out->count + part.count + 1) * sizeof *out->items);
    memcpy(out->items + out->count, part.items, part.count * sizeof *part.items);
    out->count += part.count;
    free(part.items);
}

/* Mistral's own tools encode every text on its own and put tokens between: the format must give the same. */
static void test_shared_mistral(const char *name, uint32_t vocab, const char *const parts[])
{
    static const jamba_message talk[] = { { "user", "Hello you" }, { "assistant", "I am here." }, { "user", "So?" } };
    char folder[PATH_ROOM];
    chat_model c;
    tool_error problem;
    ids got, want = { NULL, 0 };
    if (!test_begin("chat of %s", name)) return;
    shared_path(folder, name, "");
    if (!file_exists(folder)) {
        test_skip("not there");
        return;
    }
    memset(&c, 0, sizeof c);
    if (text_open_folder(&c.text, folder, vocab)
        && CHECK_THAT(chat_format_strings(folder, "mistral", &c.strings, &problem), "%s", problem.message)) {
        chat_strings(&c, -1);
        got = chat_encode(&c, talk, 3, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY);
        for (; *parts; parts++) append(&want, encode(&c.text, *parts, strlen(*parts), true));
        CHECK(same_ids(&got, want.items, want.count));
        free(got.items);
        free(want.items);
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
    test_end();
}

static void test_shared_chats(void)
{
    static const char *const first[] = { "<s>", "[INST] Hello you [/INST]", "I am here.", "</s>", "[INST] So? [/INST]",
        NULL };
    static const char *const third[] = { "<s>", "[INST]", "Hello you", "[/INST]", "I am here.", "</s>", "[INST]", "So?",
        "[/INST]", NULL };
    test_shared_mistral("mistral-v1", 32000, first);
    test_shared_mistral("mistral-v3", 32768, third);
}

/* Tokens of a turn of every role that the format has, with this content. Special ones among them. */
static size_t chat_specials(const chat_model *c, const char *role, const char *content)
{
    jamba_message message = { role, content };
    ids got = chat_encode(c, &message, 1, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY);
    size_t i, count = 0;
    for (i = 0; i < got.count; i++) count += (c->text.t->token_flags[got.items[i]] & JMB_TOKEN_SPECIAL) != 0;
    free(got.items);
    return count;
}

static void check_forged_roles(const char *const *specials, const char *format)
{
    static const char *const roles[] = { "system", "user", "assistant" };
    chat_model c;
    tool_error problem;
    char folder[PATH_ROOM], key[64], forged[512];
    size_t i, k, found = 0;
    memset(&c, 0, sizeof c);
    write_folder(folder, specials, "{}", NULL);
    if (text_open_folder(&c.text, folder, 20)
        && CHECK_THAT(chat_format_strings(folder, format, &c.strings, &problem), "%s", problem.message)) {
        chat_strings(&c, -1);
        for (i = 0; i < 3; i++) {
            snprintf(key, sizeof key, "chat.%s.open", roles[i]);
            if (!jmb_find_string(&c.metadata, key)) continue;
            found++;
            for (k = 0; specials[k]; k++) {
                snprintf(forged, sizeof forged, "a%s%s b%s", specials[k], specials[k], specials[k]);
                CHECK_THAT(chat_specials(&c, roles[i], forged) == chat_specials(&c, roles[i], "a"), "%s: %s in %s",
                    format, specials[k], roles[i]);
                /* the rest of a special token whose beginning is what the format ends with, and the reverse */
                CHECK(chat_specials(&c, roles[i], specials[k] + 1) == chat_specials(&c, roles[i], "a"));
            }
        }
        CHECK_THAT(found >= 2, "%s has %zu roles", format, found);
    }
    tool_buffer_free(&c.strings.bytes);
    text_close(&c.text);
}

static void test_forged_roles(void)
{
    check_forged_roles(chatml_specials, "chatml");
    check_forged_roles(jamba_specials, "jamba");
    check_forged_roles(mistral_specials, "mistral");
    check_forged_roles(early_specials, "mistral");
}

/* ---- all --------------------------------------------------------------------------------------------- */

static void test_on(const char *folder, const char *name, void (*test)(const text_model *m))
{
    text_model m;
    if (!test_begin("%s, %s", name, strrchr(folder, '/') + 1)) return;
    if (text_open_folder(&m, folder, SMALL_VOCAB)) test(&m);
    text_close(&m);
    test_end();
}

static void test_alone(const char *name, void (*test)(void))
{
    if (!test_begin("%s", name)) return;
    test();
    test_end();
}

/* ---- every message ------------------------------------------------------------------------------------- */

static void test_messages(void)
{
    static const rules_call calls[] = { { "tool_error_set", "", "" },
        { "sp_fail", "not a valid model at byte %zu: ", "" } };
    static const rules_excuse excuses[] = {
        { "more than 64 MiB of text", "takes so much" },
        { "more than %d merges", "takes a million of them" },
        { "too many hash collisions at merge", "malformed.c has such merges, for the library's own check" },
        { "too many pieces", "takes a million of them" },
        { NULL, NULL },
    };
    size_t count;
    if (test_state.filter) return; /* rows were left out */
    count = rules_check("tools/tokenizer.h", NULL, NULL, calls, 1, excuses);
    count += rules_check("tools/sentencepiece.h", NULL, NULL, calls, 2, excuses);
    printf("unit_text: %zu calls that refuse\n", count);
}

int main(int argc, char **argv)
{
    test_start(argc, argv);
    each_line("tests/tokenizers/cases.jsonl", visit_case, NULL);
    test_encodings("small-metaspace", small_folder, "tests/tokenizers/small-metaspace/encodings.jsonl", SMALL_VOCAB);
    test_encodings("storyteller", story, "tests/tokenizers/storyteller/encodings.jsonl", 2048);
    test_encodings("small-bytelevel", raw_folder, "tests/tokenizers/small-bytelevel/encodings.jsonl", SMALL_VOCAB);
    test_shared_encodings("gpt-neox", 50280);
    test_shared_encodings("mistral-v1", 32000);
    test_shared_encodings("mistral-v3", 32768);
    test_shared_model("mistral-v1", 32000);
    test_shared_model("mistral-v3", 32768);
    test_on(small_folder, "pieces of one text", test_pieces);
    test_on(small_folder, "forged special tokens", test_forging);
    test_on(small_folder, "counts and capacity", test_capacity);
    test_on(small_folder, "tokens by text and back", test_lookup);
    test_on(small_folder, "text that is not UTF-8", test_invalid_utf8);
    test_on(small_folder, "long texts", test_long_words);
    test_on(raw_folder, "long texts", test_long_words);
    test_alone("marks in any number", test_many_marks);
    test_on(small_folder, "streams", test_stream);
    test_alone("streams of a byte-level tokenizer", test_raw_stream);
    test_on(small_folder, "memory runs out", test_failing_memory);
    test_on(raw_folder, "memory runs out", test_failing_memory);
    test_alone("no tokenizer", test_no_tokenizer);
    test_alone("damaged sections", test_damaged_section);
    test_alone("wrong fields of a section", test_section_errors);
    test_alone("tokenizer.json cut off", test_cut_json);
    test_alone("tokenizer.json with bytes changed", test_changed_json);
    test_alone("forms that are refused", test_refused_forms);
    test_alone("parts that are refused", test_refused_parts);
    test_alone("byte-level forms that are refused", test_refused_byte_level);
    test_alone("a tokenizer.model", test_model);
    test_alone("tokenizer.model cut off", test_cut_model);
    test_alone("tokenizer.model with bytes changed", test_changed_model);
    test_alone("normalizers that change nothing", test_idle_normalizers);
    test_alone("models that are refused", test_refused_models);
    test_alone("folders", test_reading_folders);
    test_alone("tokens of tokenizer_config.json", test_config_tokens);
    test_alone("first and last tokens of tokenizer_config.json", test_config_ids);
    test_alone("chatml", test_chatml);
    test_alone("jamba chat", test_jamba_chat);
    test_alone("chat formats detected", test_chat_detection);
    test_alone("mistral chat", test_mistral_chat);
    test_shared_chats();
    test_alone("every message of the readers", test_messages);
    test_alone("forged roles in chats", test_forged_roles);
    return test_summary();
}
