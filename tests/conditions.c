/* conditions.c - what the converter's readers decide, each condition both ways
 *
 * Texts and folders too small or too odd for the other tests: JSON, safetensors, tokenizers, configurations,
 * adapters and patterns, each with the words of its refusal, or none where it must be read. */
#include "test.h"

#include <locale.h>

static struct lconv test_locale;

/* The locale whose numbers the reader of JSON sees. */
static struct lconv *test_localeconv(void)
{
    return test_locale.decimal_point ? &test_locale : localeconv();
}
#define localeconv test_localeconv

#include "tiny.h"

#include "../tools/families.h"
#include "../tools/tokenizer.h"
#include "tokenizer_files.h"

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* The result of reading `what`: `words` is part of the refusal, NULL where it is read. */
static void check_result(bool ok, const tool_error *error, const char *what, const char *words)
{
    if (!words) CHECK_THAT(ok, "%.80s: %s", what, error->message);
    else if (CHECK_THAT(!ok, "%.80s is read, and not refused with '%s'", what, words))
        CHECK_THAT(strstr(error->message, words) != NULL, "%.80s: '%s' lacks '%s'", what, error->message, words);
}

/* ---- JSON ----------------------------------------------------------------------------------------------------- */

static void check_json(const char *text, size_t size, const char *words)
{
    char *copy = (char *)malloc(size + (size == 0)); /* so that a read beyond is seen */
    tool_error error;
    json_doc doc;
    memcpy(copy, text, size);
    check_result(json_parse(&doc, copy, size, &error), &error, text, words);
    json_free(&doc);
    free(copy);
}

static void test_json(void)
{
    static const struct {
        const char *text, *words;
    } rows[] = {
        { " \r\n\t{ \"a\"\t:\r1\n,\r\"b\" : [ ] }\t", NULL },
        { "1 2", "byte 2: something follows the value" },
        { "1", NULL },
        { "-", "byte 1: a digit is missing" },
        { "-x", "byte 1: a digit is missing" },
        { "-0", NULL },
        { "00", "byte 1: a number with a leading zero" },
        { "0.", "byte 2: a digit is missing" },
        { "0.x", "byte 2: a digit is missing" },
        { "0.5", NULL },
        { "1e", "byte 2: a digit is missing" },
        { "1E+5", NULL },
        { "1e-5", NULL },
        { "1e+", "byte 3: a digit is missing" },
        { "1:", "byte 1: something follows" },
        { "1/", "byte 1: something follows" },
        { "nul", "byte 0: a value should be here" },
        { "nulx", "byte 0: a value should be here" },
        { "null", NULL },
        { "Infinity", NULL },
        { "Infinite", "byte 0: a value should be here" },
        { "\"\\", "byte 2: the string does not end" },
        { "\"\\x\"", "byte 2: an unknown escape" },
        { "\"\\ud800\\u", "\\u needs four hexadecimal digits" },
        { "\"\\b\\f\\n\\r\\t\\\"\\\\\\/\"", NULL },
        { "\"\\u00", "four hexadecimal digits" },
        { "\"\\u00g0\"", "four hexadecimal digits" },
        { "\"\\u00/0\"", "four hexadecimal digits" },
        { "\"\\u00:0\"", "four hexadecimal digits" },
        { "\"\\u00@0\"", "four hexadecimal digits" },
        { "\"\\u09aF\"", NULL },
        { "\"\\ud7ff\\ue000\\u0041\\u07ff\"", NULL },
        { "\"\\ud83d\\ude00\"", NULL },
        { "\"\\udbff\\udfff\"", NULL },
        { "\"\\udc00\"", "a lone surrogate" },
        { "\"\\udfff\"", "a lone surrogate" },
        { "\"\\ud800", "a lone surrogate" },
        { "\"\\ud800\\", "a lone surrogate" },
        { "\"\\ud800xu", "a lone surrogate" },
        { "\"\\ud800\\n", "a lone surrogate" },
        { "\"\\ud800\\uzzzz\"", "four hexadecimal digits" },
        { "\"\\ud800\\u0041\"", "a lone surrogate" },
        { "\"\\ud800\\ue000\"", "a lone surrogate" },
        { "\"\\ud800\\ud800\"", "a lone surrogate" },
        { "\"\\ud800\\udbff\"", "a lone surrogate" },
        { "\"\\ud800\\udfff\"", NULL },
        { "\"\\ud800\\udc00\"", NULL },
        { "\"\x1f\"", "a control character" },
        { "\"\xc3\"", "not valid UTF-8" },
        { "{1:2}", "a key in double quotes" },
        { "{\"a\"", "a colon should be here" },
        { "{\"a\";1}", "a colon should be here" },
        { "{\"a", "the string does not end" },
        { "{", "a key in double quotes" },
        { "{\"a\":1 \"b\":2}", "a comma or the end" },
        { "[1}", "a comma or the end" },
        { "[1", "a comma or the end" },
        { "[1,", "the text ends where a value should be" },
        { "[,1]", "a value should be here" },
        { "{\"a\":1,\"bb\":2,\"c\":3,\"dd\":4}", NULL },
        { "{\"a\":1,\"b\":2,\"a\":3}", "the key \"a\" twice" },
        { "{\"a\":1,\"a\":2}", "the key \"a\" twice" },
        { "", "the text ends where a value should be" },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) check_json(rows[i].text, strlen(rows[i].text), rows[i].words);
    check_json("\"\\\0\"", 4, "an unknown escape");
}

/* Nothing of a text that is too long is looked at. */
static void test_json_limits(void)
{
    tool_error error;
    json_doc doc;
    size_t length = 1;
    double number = 0;
    check_result(json_parse(&doc, NULL, (size_t)JSON_MAX_BYTES + 1, &error), &error, "256 MiB", "more than 256 MiB");
    CHECK(json_key(NULL, &length) == NULL && length == 0);
    if (CHECK(json_parse(&doc, "[5, 1e999, 9223372036854775808]", 31, &error))) {
        const json_value *v = json_first(json_root(&doc));
        int64_t integer;
        CHECK(json_key(v, NULL) == NULL && json_int(v, &integer) && integer == 5);
        CHECK(json_number(json_next(v), &number) && number > 1e308 && !json_int(json_next(v), &integer));
        CHECK(!json_int(json_at(json_root(&doc), 2), &integer));
        CHECK(json_at(json_root(&doc), 3) == NULL);
    }
    json_free(&doc);
    if (CHECK(json_parse(&doc, "\"\\u007f\\u0080\\u07ff\\u0800\\uffff\\ud800\\udc00\"", 44, &error)))
        CHECK(json_is_string(json_root(&doc), "\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80"));
    json_free(&doc);
    test_locale.decimal_point = (char *)(uintptr_t) "\xd9\xab";
    check_json("1.5", 3, "this locale cannot read numbers");
    check_json("15", 2, NULL);
    test_locale.decimal_point = (char *)(uintptr_t) ",";
    if (CHECK(json_parse(&doc, "1.5", 3, &error))) CHECK(strcmp(json_value_text(json_root(&doc)), "1,5") == 0);
    json_free(&doc);
    test_locale.decimal_point = NULL;
}

/* ---- safetensors ---------------------------------------------------------------------------------------------- */

static char folder[PATH_ROOM];

static void write_text(const char *name, const char *text)
{
    char path[PATH_ROOM];
    file_write(tiny_path(path, folder, name), text, strlen(text));
}

static void drop(const char *name)
{
    char path[PATH_ROOM];
    remove(tiny_path(path, folder, name));
}

static void write_tensors(const char *name, const char *header, size_t bytes)
{
    uint8_t *data = (uint8_t *)calloc(1, bytes + 1);
    char path[PATH_ROOM];
    tiny_write_parts(tiny_path(path, folder, name), header, data, bytes);
    free(data);
}

static void check_folder(const char *what, const char *words)
{
    st_checkpoint c;
    tool_error error;
    bool ok = st_open(&c, folder, &error);
    check_result(ok, &error, what, words);
    if (ok) st_close(&c);
}

static void check_header(const char *header, size_t bytes, const char *words)
{
    write_tensors("model.safetensors", header, bytes);
    check_folder(header, words);
}

#define TENSOR(name, shape, from, to) \
    "\"" name "\":{\"dtype\":\"F32\",\"shape\":[" shape "],\"data_offsets\":[" #from "," #to "]}"

static void test_headers(void)
{
    static const struct {
        const char *header;
        size_t bytes;
        const char *words;
    } rows[] = {
        { "{" TENSOR("a", "2", 0, 8) "}", 8, NULL },
        { "{" TENSOR("a", "", 0, 4) "}", 4, NULL },
        { "{" TENSOR("a", "2,0", 0, 0) "," TENSOR("b", "0", 0, 0) "," TENSOR("c", "1", 0, 4) "}", 4, NULL },
        { "{" TENSOR("c", "1", 0, 4) "," TENSOR("a", "0", 0, 0) "," TENSOR("b", "0", 4, 4) "}", 4, NULL },
        { "", 0, "does not begin with {" },
        { "x", 0, "does not begin with {" },
        { "{", 0, "not valid JSON" },
        { "{}", 0, "has no tensors" },
        { "{\"__metadata__\":{}}", 0, "has no tensors" },
        { "{\"__metadata__\":{\"a\":\"b\"}," TENSOR("a", "1", 0, 4) "}", 4, NULL },
        { "{\"__metadata__\":{\"a\":1}," TENSOR("a", "1", 0, 4) "}", 4, "__metadata__" },
        { "{\"__metadata__\":[1]," TENSOR("a", "1", 0, 4) "}", 4, "__metadata__" },
        { "{" TENSOR("", "1", 0, 4) "}", 4, "a tensor name is empty" },
        { "{" TENSOR("a\\u0000b", "1", 0, 4) "}", 4, "a tensor name is empty" },
        { "{\"a\":7}", 4, "is not described by" },
        { "{\"a\":{\"dtype\":\"F32\"}}", 4, "is not described by" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"offsets\":[0,4]}}", 4, "data_offsets outside" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":7,\"data_offsets\":[0,4]}}", 4, "no shape" },
        { "{" TENSOR("a", "1,1,1,1,1,1,1,1", 0, 4) "}", 4, NULL },
        { "{" TENSOR("a", "1,1,1,1,1,1,1,1,1", 0, 4) "}", 4, "no shape" },
        { "{" TENSOR("a", "-1", 0, 4) "}", 4, "no whole number" },
        { "{" TENSOR("a", "\\\"", 0, 4) "}", 4, "not valid JSON" },
        { "{" TENSOR("a", "\"1\"", 0, 4) "}", 4, "no whole number" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[\"0\",4]}}", 4, "data_offsets outside" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,\"4\"]}}", 4, "data_offsets outside" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "data_offsets outside" },
        { "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{\"a\":0,\"b\":4}}}", 4, "data_offsets outside" },
        { "{" TENSOR("a", "1", -4, 0) "}", 4, "data_offsets outside" },
        { "{" TENSOR("a", "1", 4, 0) "}", 4, "data_offsets outside" },
        { "{" TENSOR("a", "1", 0, 5) "}", 4, "data_offsets outside" },
        { "{" TENSOR("a", "1", 0, 3) "}", 4, "has 3 bytes, its shape and type need 4" },
        { "{" TENSOR("a", "1", 0, 4) "," TENSOR("b", "1", 0, 4) "}", 4, "an overlap before tensor" },
        { "{" TENSOR("a", "1", 0, 4) "," TENSOR("b", "2", 0, 8) "}", 8, "an overlap before tensor" },
        { "{" TENSOR("b", "2", 0, 8) "," TENSOR("a", "1", 0, 4) "}", 8, "an overlap before tensor" },
        { "{" TENSOR("a", "1", 4, 8) "}", 8, "a hole before tensor" },
        { "{" TENSOR("a", "1", 0, 4) "}", 5, "1 bytes follow" },
    };
    size_t i;
    char header[1200], name[1026], path[PATH_ROOM];
    for (i = 0; i < COUNT(rows); i++) check_header(rows[i].header, rows[i].bytes, rows[i].words);
    memset(name, 'n', 1025);
    name[1025] = 0;
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", name);
    check_header(header, 4, "longer than 1024 bytes");
    snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", name + 1);
    check_header(header, 4, NULL);
    write_text("model.safetensors", "1234567");
    check_folder("7 bytes", "too short");
    write_text("model.safetensors", "\x01\x01\x01\x01\x01\x01\x01\x01");
    check_folder("a long header", "not a safetensors file");
    file_write(tiny_path(path, folder, "model.safetensors"), "\3\0\0\0\0\0\0\0{}", 10);
    check_folder("a header behind the end", "a header of 3 bytes in 10");
    drop("model.safetensors");
}

/* Shapes of any rank fit; a tensor is compared in pieces, and no further than it must be. */
/* The longest header there may be, most of it blanks, and one byte more. */
static void test_long_headers(void)
{
    static const char start[] = "{" TENSOR("a", "1", 0, 4);
    char path[PATH_ROOM];
    size_t size, extra;
    for (extra = 0; extra < 2; extra++) {
        uint8_t *data;
        size = ST_MAX_HEADER + extra;
        data = (uint8_t *)malloc(8 + size + 4);
        test_require(data != NULL, "out of memory", "a long header");
        memset(data, ' ', 8 + size + 4);
        jmb_store_u64(data, size);
        memcpy(data + 8, start, sizeof start - 1);
        data[8 + size - 1] = '}';
        file_write(tiny_path(path, folder, "model.safetensors"), data, 8 + size + 4);
        check_folder("a long header", extra ? "not a safetensors file" : NULL);
        free(data);
    }
    drop("model.safetensors");
}

static void test_tensors(void)
{
    static const uint64_t shape[ST_MAX_RANK] = { 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000 };
    static const char header[] = "{" TENSOR("a", "8", 0, 32) "," TENSOR("b", "8", 32, 64) "," TENSOR("c", "4,2", 64, 96)
        "," TENSOR("d", "2,4", 96, 128) ",\"e\":{\"dtype\":\"BF16\",\"shape\":[16],\"data_offsets\":[128,160]}}";
    char text[80], path[PATH_ROOM];
    uint8_t room[32], data[160];
    st_checkpoint c;
    tool_error error;
    bool same = true;
    size_t n;
    st_format_shape(text, sizeof text, shape, ST_MAX_RANK);
    CHECK(strcmp(text, "[1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]") == 0);
    for (n = 1; n < 60; n++) {
        st_format_shape(text, n, shape, ST_MAX_RANK);
        CHECK(strlen(text) <= n - 1);
    }
    memset(data, 1, sizeof data);
    data[60] = 2; /* in b */
    tiny_write_parts(tiny_path(path, folder, "model.safetensors"), header, data, sizeof data);
    if (!CHECK_THAT(st_open(&c, folder, &error), "%s", error.message)) return;
    CHECK(st_same(&c, &c.tensors[0], &c.tensors[1], &same, &error) && !same);
    CHECK(st_same(&c, &c.tensors[0], &c.tensors[2], &same, &error) && !same); /* another rank */
    CHECK(st_same(&c, &c.tensors[2], &c.tensors[3], &same, &error) && !same); /* another shape */
    CHECK(st_same(&c, &c.tensors[0], &c.tensors[4], &same, &error) && !same); /* another type */
    CHECK(st_same(&c, &c.tensors[0], &c.tensors[0], &same, &error) && same);
    CHECK(st_same_piece(&c, &c.tensors[0], &c.tensors[1], room, 12, &same, &error) && !same);
    same = true;
    CHECK(st_same_piece(&c, &c.tensors[2], &c.tensors[3], room, 12, &same, &error) && same);
    same = true;
    data[40] = 3; /* the first piece differs: the others are not read */
    tiny_write_parts(path, header, data, sizeof data);
    CHECK(st_same_piece(&c, &c.tensors[0], &c.tensors[1], room, 12, &same, &error) && !same);
    same = true;
    test_require(truncate(path, (off_t)(8 + strlen(header) + 40)) == 0, "truncate", path);
    CHECK(!st_same_piece(&c, &c.tensors[0], &c.tensors[1], room, 12, &same, &error)
        && strstr(error.message, "shorter than it was"));
    CHECK(!st_same_piece(&c, &c.tensors[1], &c.tensors[0], room, 12, &same, &error));
    CHECK(!st_same(&c, &c.tensors[0], &c.tensors[1], &same, &error) || !same);
    st_close(&c);
    remove(path);
}

static void check_index(const char *map, const char *words)
{
    char text[400];
    snprintf(text, sizeof text, "{\"weight_map\":%s}", map);
    write_text("model.safetensors.index.json", text);
    check_folder(map, words);
}

static void test_indexes(void)
{
    static const struct {
        const char *map, *words;
    } rows[] = {
        { "{\"a\":\"one\",\"b\":\"two\"}", NULL },
        { "{\"a\":\"one\"}", "not in weight_map" },
        { "{\"b\":\"two\"}", NULL },
        { "{\"a\":\"one\",\"b\":\"one\"}", "is not in one as weight_map says" },
        { "{\"a\":\"one\",\"c\":\"two\"}", "is not in two as weight_map says" },
        { "{}", "weight_map is missing or empty" },
        { "[\"one\"]", "weight_map is missing or empty" },
        { "null", "weight_map is missing or empty" },
        { "{\"a\":1}", "does not name a file of this folder" },
        { "{\"a\":\"\"}", "does not name a file of this folder" },
        { "{\"a\":\"o\\u0000e\"}", "does not name a file of this folder" },
        { "{\"a\":\"./one\"}", "does not name a file of this folder" },
        { "{\"a\":\"..\"}", "does not name a file of this folder" },
        { "{\"a\":\"-one\"}", "does not name a file of this folder" },
        { "{\"a\":\"three\"}", "three: cannot open" },
        { "{\"a\":\"folder\"}", "folder: not a regular file" },
    };
    char path[PATH_ROOM], *many, name[300];
    size_t i, used;
    write_tensors("one", "{" TENSOR("a", "1", 0, 4) "," TENSOR("x", "1", 4, 8) "}", 8);
    check_index("{\"a\":\"one\"}", "tensor x of one is not in weight_map");
    write_tensors("one", "{" TENSOR("a", "1", 0, 4) "}", 4);
    write_tensors("two", "{" TENSOR("b", "1", 0, 4) "}", 4);
    mkdir(tiny_path(path, folder, "folder"), 0777);
    for (i = 0; i < COUNT(rows); i++)
        check_index(rows[i].map, i == 1 ? NULL : rows[i].words); /* one shard of its own is a checkpoint */
    memset(name, 'n', 256);
    name[256] = 0;
    snprintf(path, sizeof path, "{\"a\":\"%s\"}", name);
    check_index(path, "does not name a file of this folder");
    snprintf(path, sizeof path, "{\"a\":\"%s\"}", name + 1);
    check_index(path, "cannot open");
    many = (char *)malloc(40 * 1001 + 40);
    used = (size_t)sprintf(many, "{\"weight_map\":{");
    for (i = 0; i < 1001; i++) used += (size_t)sprintf(many + used, "%s\"%zu\":\"%zu\"", i ? "," : "", i, i);
    sprintf(many + used, "}}");
    write_text("model.safetensors.index.json", many);
    check_folder("1001 shards", "more than 1000 shards");
    free(many);
    drop("model.safetensors.index.json");
    check_folder("an empty folder", "neither model.safetensors nor");
}

/* ---- tokenizer.model ------------------------------------------------------------------------------------------ */

static void check_model(const char *bytes, size_t size, const char *words)
{
    tool_buffer out = { NULL, 0, 0, false };
    uint8_t *copy = (uint8_t *)malloc(size + (size == 0));
    tool_error error;
    memcpy(copy, bytes, size);
    check_result(tokenizer_compile_model(copy, size, NULL, 40, &out, &error), &error, words ? words : "a model", words);
    tool_buffer_free(&out);
    free(copy);
}

#define MODEL(bytes, words) check_model(bytes, sizeof bytes - 1, words)

#define CHAR(c) "\x0a\x03\x0a\x01" c
#define ONE_PIECE CHAR("a")
#define BPE "\x12\x02\x18\x02\x1a\x02\x20\x00"
#define FORTY "0123456789012345678901234567890123456789"
#define NINETEEN "abcdefghijklmnopqrs"

static void test_models(void)
{
    MODEL("\x80\x80\x80\x80\x80\x01", "a field has a wrong number");
    MODEL("\x07", "a field has a wrong number");
    MODEL("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02", "a number is too long");
    MODEL("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a field goes on after the end");
    MODEL("\x0a\x03\x12\x01" "a", "wrong type"); /* a score of bytes */
    MODEL("\x0a\x03\x0a\x01" "a\x0d", "it ends inside a number");
    MODEL("\x0a\x03\x0a\x01" "a", "model type \"unigram\"");
    MODEL("\x0a\x05\x15\x00\x00\x80\x3f", "a piece has no text");
    MODEL("\x0a\x08\x0a\x01" "a\x15\x00\x00\x80\x7f", "a score is not finite");
    MODEL("\x0a\x08\x0a\x01" "a\x15\x01\x00\x80\x7f", "a score is not finite");
    MODEL("\x0a\x08\x0a\x01" "a\x15\x00\x00\x80\xff", "a score is not finite");
    MODEL("\x09\x00\x00\x00\x00\x00\x00\x00", "it ends inside a number");
    MODEL(ONE_PIECE BPE, NULL);
    MODEL(ONE_PIECE BPE "\x1a\x0d\x0a\x08" "identity\x12\x01x", NULL);
    MODEL(ONE_PIECE BPE "\x1a\x0d\x0a\x08" "nmt_nfkc\x12\x01x", "normalizer \"nmt_nfkc\"");
    MODEL(ONE_PIECE BPE "\x1a\x2f\x0a\x2a" FORTY "xy\x12\x01x", "normalizer \"" FORTY);
    MODEL(ONE_PIECE BPE "\x1a\x57\x0a\x52" FORTY FORTY "xy\x12\x01x", "normalizer \"" FORTY);
    MODEL(ONE_PIECE BPE "\x1a\x02\x18\x00", NULL);
    MODEL("\x0a\x0a\x0a\x06" "<0x41>" "\x18\x06" CHAR("<") CHAR("0") CHAR("x") CHAR("4") CHAR("1") CHAR(">") CHAR("b")
        "\x0a\x09\x0a\x07" "<0x41>b" BPE, NULL); /* no merge of a byte */
    MODEL("\x0a\x2e\x0a\x2a" FORTY "xy\x18\x05" BPE, "of type unused");
    MODEL("\x0a\x56\x0a\x52" FORTY FORTY "xy\x18\x05" BPE, "of type unused");
    MODEL("\x0a\x3f\x0a\x3b" FORTY NINETEEN "\x18\x05" BPE, "piece \"" FORTY NINETEEN "\" of type unused");
    MODEL("\x0a\x40\x0a\x3c" FORTY NINETEEN "x\x18\x05" BPE, "piece \"" FORTY NINETEEN "x\" of type unused");
    MODEL("\x0a\x41\x0a\x3d" FORTY NINETEEN "xy\x18\x05" BPE, "piece \"" FORTY NINETEEN "x\" of type unused");
    MODEL("\x0a\x08\x0a\x06" "<0x00>" "\x12\x05\x18\x02\x98\x02\x01\x1a\x02\x20\x00",
        "byte_fallback without a piece <0x00>");
    MODEL("\x0a\x05\x0a\x01" "a\x18\x04" "\x0a\x04\x0a\x02" "ba" "\x0a\x03\x0a\x01" "b" BPE,
        "a character that is no piece");
}

static tool_buffer repeated(const char *bytes, size_t size, size_t count, const char *end, size_t end_size)
{
    tool_buffer out = { NULL, 0, 0, false };
    while (count-- > 0) tool_buffer_add(&out, bytes, size);
    tool_buffer_add(&out, end, end_size);
    return out;
}

/* byte_fallback needs all 256 pieces of bytes. */
static void test_byte_pieces(void)
{
    static const char trainer[] = "\x12\x05\x18\x02\x98\x02\x01\x1a\x02\x20\x00";
    unsigned count, i;
    for (count = 255; count <= 256; count++) {
        tool_buffer data = { NULL, 0, 0, false }, out = { NULL, 0, 0, false };
        tool_error error;
        for (i = 0; i < count; i++) {
            char piece[16];
            int size = snprintf(piece, sizeof piece, "\x0a\x0a\x0a\x06<0x%02X>\x18\x06", i);
            tool_buffer_add(&data, piece, (size_t)size);
        }
        tool_buffer_add(&data, trainer, sizeof trainer - 1);
        check_result(tokenizer_compile_model(data.data, data.size, NULL, 300, &out, &error), &error, "pieces of bytes",
            count < 256 ? "byte_fallback without a piece <0xFF>" : NULL);
        tool_buffer_free(&data);
        tool_buffer_free(&out);
    }
}

/* Merges that make the same piece stand in the order of their left parts, so that a file has the same bytes wherever it
 * is converted. */
static void test_equal_merges(void)
{
    static const char pieces[] = CHAR("a") "\x0a\x05\x0a\x03" "aaa" "\x0a\x06\x0a\x04" "aaaa" "\x0a\x04\x0a\x02" "aa"
        BPE;
    static const uint32_t want[][3] = { { 0, 3, 1 }, { 3, 0, 1 }, { 0, 1, 2 }, { 1, 0, 2 }, { 3, 3, 2 }, { 0, 0, 3 } };
    tool_buffer out = { NULL, 0, 0, false };
    tool_error error;
    size_t i, k, at;
    test_require(tokenizer_compile_model((const uint8_t *)pieces, sizeof pieces - 1, NULL, 4, &out, &error), "pieces",
        error.message);
    CHECK(jmb_load_u32(out.data + 16) == COUNT(want));
    at = out.size - jmb_load_u32(out.data + 12) - sizeof want;
    for (i = 0; i < COUNT(want); i++)
        for (k = 0; k < 3; k++, at += 4)
            CHECK_THAT((jmb_load_u32(out.data + at) & ~JMB_MERGE_TIE) == want[i][k], "merge %zu, part %zu: %u", i, k,
                jmb_load_u32(out.data + at));
    tool_buffer_free(&out);
}

/* Pieces of one to 1024 letters: of three letters they have more merges than there may be. */
static void test_many_merges(void)
{
    tool_buffer data = { NULL, 0, 0, false }, out = { NULL, 0, 0, false };
    tool_error error;
    char text[JMB_MAX_TOKEN];
    uint32_t letter, length;
    for (letter = 0; letter < 3; letter++) {
        memset(text, (int)('a' + letter), sizeof text);
        for (length = 1; length <= JMB_MAX_TOKEN; length++) {
            uint32_t inner = length + (length < 128 ? 2 : 3);
            tool_buffer_u8(&data, 0x0a);
            if (inner > 127) tool_buffer_u8(&data, (uint8_t)(inner | 128));
            tool_buffer_u8(&data, (uint8_t)(inner > 127 ? inner >> 7 : inner));
            tool_buffer_u8(&data, 0x0a);
            if (length > 127) tool_buffer_u8(&data, (uint8_t)(length | 128));
            tool_buffer_u8(&data, (uint8_t)(length > 127 ? length >> 7 : length));
            tool_buffer_add(&data, text, length);
        }
    }
    tool_buffer_add(&data, BPE, sizeof BPE - 1);
    check_result(tokenizer_compile_model(data.data, data.size, NULL, 4000, &out, &error), &error, "3072 pieces",
        "more than 1048576 merges");
    tool_buffer_free(&data);
}

/* More pieces than a model may have, and texts that are too long. */
static void test_large_models(void)
{
    static const tokenizer_scored low = { { 0, 0, 1, 0 }, 1 }, high = { { 0, 0, 2, 0 }, 1 };
    tool_buffer text = repeated("x", 1, 1025, "", 0), data = repeated(ONE_PIECE, 5, JMB_MAX_VOCAB + 1, "", 0);
    tokenizer_build b;
    tool_error error;
    uint32_t i;
    check_model((const char *)data.data, data.size, "too many pieces");
    tool_buffer_free(&data);
    data = repeated(ONE_PIECE, 5, 41, BPE, sizeof BPE - 1);
    check_model((const char *)data.data, data.size, "40");
    tool_buffer_free(&data);
    tool_buffer_add(&data, "\x0a\x84\x08\x0a\x81\x08", 6);
    tool_buffer_add(&data, text.data, text.size);
    check_model((const char *)data.data, data.size, "no text or too much");
    tool_buffer_free(&data);
    CHECK(tokenizer_compare_scored(&low, &high) == -1 && tokenizer_compare_scored(&high, &low) == 1);
    if (!CHECK(tokenizer_begin(&b, NULL, 70000, &error))) return;
    for (i = 0; i < 70000; i++) {
        b.tokens[i].text = (const char *)text.data;
        b.tokens[i].size = 1024;
    }
    b.count = 65536;
    CHECK(tokenizer_write(&b, &data) && data.size > (64u << 20));
    tool_buffer_free(&data);
    b.count = 65537;
    check_result(tokenizer_write(&b, &data), &error, "65537 KiB", "more than 64 MiB of text");
    tokenizer_end(&b, false, &data);
    tool_buffer_free(&text);
}

/* ---- tokenizer.json ------------------------------------------------------------------------------------------- */

static const char words_json[] = WORDS_JSON("");

static const char raw_json[] =
    "{\"version\":\"1.0\",\"added_tokens\":[],\"normalizer\":{\"type\":\"NFC\"},"
    "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
    "\"model\":{\"type\":\"BPE\","
    "\"vocab\":{\"a\":0,\"\xc4\xa0\":1,\"\xc3\x83\":2,\"\xc2\xa9\":3,\"\xc3\x83\xc2\xa9\":4},"
    "\"merges\":[[\"\xc3\x83\",\"\xc2\xa9\"]]}}";

/* A document with a tokenizer_config.json, which may be NULL. */
static void check_document(const char *json, const char *config, const char *what, const char *words)
{
    tool_buffer out = { NULL, 0, 0, false };
    json_doc doc, extra;
    tool_error error;
    test_require(json_parse(&doc, json, strlen(json), &error), what, error.message);
    memset(&extra, 0, sizeof extra);
    if (config) test_require(json_parse(&extra, config, strlen(config), &error), config, error.message);
    check_result(tokenizer_compile_json(json_root(&doc), json_root(&extra), 12, &out, &error), &error, what, words);
    tool_buffer_free(&out);
    json_free(&extra);
    json_free(&doc);
}

/* A list of merges that is too long is not read; the pieces of a model go with a tokenizer_config.json. */
static void test_long_lists(void)
{
    static const char end[] = "0]}}", config[] = "{\"added_tokens_decoder\":7}", model[] = ONE_PIECE BPE;
    const char *merges = strstr(words_json, "\"merges\":[") + 10;
    tool_buffer data = repeated("0,", 2, JMB_MAX_MERGES, end, sizeof end - 1), out = { NULL, 0, 0, false };
    size_t front = (size_t)(merges - words_json);
    char *text = (char *)calloc(1, front + data.size + 1);
    tool_error error;
    json_doc doc;
    memcpy(text, words_json, front);
    memcpy(text + front, data.data, data.size);
    check_document(text, NULL, "a million merges", "more than 1048576 merges");
    free(text);
    tool_buffer_free(&data);
    test_require(json_parse(&doc, config, strlen(config), &error), config, error.message);
    check_result(tokenizer_compile_model((const uint8_t *)model, sizeof model - 1, json_root(&doc), 40, &out, &error),
        &error, config, "is not an object");
    json_free(&doc);
}

/* `json` with the first `from` replaced. */
static void check_tokenizer(const char *json, const char *from, const char *to, const char *words)
{
    const char *at = strstr(json, from);
    char text[8192];
    test_require(at != NULL, "the tokenizer lacks", from);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    check_document(text, NULL, to[0] ? to : from, words);
}

#define PREPEND "{\"type\":\"Prepend\",\"prepend\":\"\\u2581\"}"
#define METASPACE "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"always\",\"split\":true}"
#define NORMALIZER "{\"type\":\"Sequence\",\"normalizers\":[" PREPEND \
    ",{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\\u2581\"}]}"
#define FULL_RULE "0123456789012345678901234567890123456789012345678901234567890123"
#define LONG_RULE FULL_RULE "4"
#define UNK "{\"id\":0,\"content\":\"<unk>\",\"special\":true,\"normalized\":false,\"lstrip\":false,\"rstrip\":false," \
    "\"single_word\":false}"

#define NFC "{\"type\":\"NFC\"}"
#define FOUR_NFC NFC "," NFC "," NFC "," NFC
#define DECODER "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":{\"String\":" \
    "\"\\u2581\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}," \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]}"
#define REPLACE(from, to) "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"
#define TWO(first, second) "{\"type\":\"Sequence\",\"normalizers\":[" first "," second "]}"
#define FIRST "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"first\"," \
    "\"split\":true}"

static void test_tokenizers(void)
{
    static const struct {
        const char *from, *to, *words;
    } rows[] = {
        { "{", "{", NULL },
        { "\"fuse_unk\":true", "\"fuse_unk\":null", NULL },
        { "\"fuse_unk\":true", "\"dropout\":null", NULL },
        { "\"fuse_unk\":true", "\"dropout\":0", NULL },
        { "\"fuse_unk\":true", "\"dropout\":0.0", NULL },
        { "\"fuse_unk\":true", "\"dropout\":\"no\"", "dropout is not supported" },
        { "\"fuse_unk\":true", "\"ignore_merges\":7", "\"ignore_merges\" is neither" },
        { "\"fuse_unk\":true", "\"ignore_merges\":false", NULL },
        { "\"fuse_unk\":true", "\"end_of_word_suffix\":\"\"", NULL },
        { "\"fuse_unk\":true", "\"end_of_word_suffix\":null", NULL },
        { "\"byte_fallback\":true", "\"byte_fallback\":7", "\"byte_fallback\" is neither" },
        { "\"unk_token\":\"<unk>\"", "\"unk_token\":null", NULL },
        { "\"unk_token\":\"<unk>\"", "\"unk_token\":\"nope\"", "unk_token is not in the vocabulary" },
        { "\"prepend\":\"\\u2581\"", "\"prepend\":7", "Prepend has no string" },
        { "\"prepend\":\"\\u2581\"", "\"prepend\":\"\"", NULL },
        { "\"prepend\":\"\\u2581\"", "\"prepend\":\"" LONG_RULE "\"", "64" },
        { "\"prepend\":\"\\u2581\"", "\"prepend\":\"" FULL_RULE "\"", NULL },
        { "{\"String\":\" \"}", "{\"String\":\"" LONG_RULE "\"}", "64" },
        { "{\"String\":\" \"}", "{\"String\":\"" FULL_RULE "\"}", NULL },
        { "{\"String\":\" \"},\"content\":\"\\u2581\"", "{\"String\":\" \"},\"content\":7", "Replace lacks a String" },
        { "{\"String\":\" \"},\"content\"", "{\"String\":7},\"content\"", "Replace lacks a String" },
        { "\"normalizer\":" NORMALIZER, "\"normalizer\":null", NULL },
        { NORMALIZER, "{\"type\":\"Sequence\",\"normalizers\":7}", "normalizers" },
        { NORMALIZER, "{\"type\":\"Sequence\"}", "normalizers" },
        { NORMALIZER, "{\"type\":\"Sequence\",\"normalizers\":[],\"more\":1}", "which is not known" },
        { NORMALIZER, "7", "normalizer" },
        { "\"split\":true", "\"split\":7", "\"split\" is neither" },
        { "\"split\":true", "\"add_prefix_space\":7", "\"add_prefix_space\" is neither" },
        { "\"split\":true", "\"more\":7", "which is not known" },
        { "\"prepend_scheme\":\"always\",\"split\":true", "\"add_prefix_space\":true", NULL },
        { "\"prepend_scheme\":\"always\",\"split\":true", "\"add_prefix_space\":false", NULL },
        { "\"replacement\":\"\\u2581\"", "\"replacement\":7", "not one character" },
        { "\"replacement\":\"\\u2581\"", "\"replacement\":\"_\"", NULL },
        { "\"replacement\":\"\\u2581\"", "\"replacement\":\"__\"", "not one character" },
        { "\"replacement\":\"\\u2581\"", "\"replacement\":\"\"", "not one character" },
        { METASPACE, "null", NULL },
        { METASPACE, "{\"type\":\"Split\"}", "Split" },
        { "\"always\"", "\"first\"", NULL },
        { "\"content\":\" \",\"start\":1", "\"content\":\"_\",\"start\":1", "only up to 64 spaces" },
        { "\"start\":1", "\"start\":\"1\"", "only up to 64 spaces" },
        { "\"start\":1", "\"start\":-1", "only up to 64 spaces" },
        { "\"start\":1", "\"start\":65", "only up to 64 spaces" },
        { "\"start\":1", "\"start\":64", NULL },
        { "\"stop\":0", "\"stop\":\"0\"", "only up to 64 spaces" },
        { "{\"type\":\"Fuse\"},", "{\"type\":\"Fuse\"},{\"type\":\"Fuse\"},", "unusual place" },
        { "{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}", "{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}",
            "unusual place" },
        { "\"decoders\":[", "\"more\":[],\"decoders\":[", "which is not known" },
        { "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[", "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[7,",
            "decoder" },
        { "\"vocab\":{", "\"vocab\":[],\"merges\":[]},\"x\":{\"y\":{", "which is not known" },
        { "[\"a\",\"b\"],", "[\"a\",\"b\"],\"#version: 0.2\",", NULL },
        { "[\"a\",\"b\"]", "[\"a\",7]", "is not a pair of tokens" },
        { "[\"a\",\"b\"]", "[\"a\",\"b\",\"c\"]", "is not a pair of tokens" },
        { "[\"a\",\"b\"]", "[7,\"b\"]", "is not a pair of tokens" },
        { "[\"a\",\"b\"]", "7", "is not a pair of tokens" },
        { "\"\\u2581 a\"", "\"\\u2581a\"", "is not a pair of tokens" },
        { "\"added_tokens\":[" UNK "]", "\"added_tokens\":7", "\"added_tokens\" is not an array" },
        { "\"added_tokens\":[" UNK "]", "\"added_tokens\":[7]", "added token" },
        { "\"content\":\"<unk>\",", "\"content\":\"\",", "added token" },
        { "\"id\":0,", "\"id\":\"0\",", "added token" },
        { "\"content\":\"<unk>\",", "\"content\":7,", "added token" },
        { UNK, UNK "," UNK, "added token" },
        { "\"version\":\"1.0\",", "", NULL },
        { "\"normalizer\":" NORMALIZER ",", "", NULL },
        { NORMALIZER, "{\"type\":\"Sequence\",\"normalizers\":[" FOUR_NFC "," FOUR_NFC "," NFC "]}",
            "more than 8 rules" },
        { "\"pre_tokenizer\":" METASPACE ",", "", NULL },
        { DECODER ",", "", "there is no decoder" },
        { DECODER, "\"decoder\":{\"type\":\"Metaspace\",\"replacement\":7}", "not one character" },
        { DECODER, "\"decoder\":{\"type\":\"Sequence\",\"decoders\":7}", "lacks the list" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, REPLACE("ab", "x") "," FIRST, "after Replace of or by" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, REPLACE("b", "") "," FIRST, "after Replace of or by" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, REPLACE("b", "xy") "," FIRST, NULL },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, REPLACE("\xc3\xa9", "e") "," FIRST, NULL },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, PREPEND "," FIRST, NULL },
        { "\"\\u2581\"},\"content\":\" \"}", "\"z\"},\"content\":\"zzz\"}", NULL },
        { "\"\\u2581\"},\"content\":\" \"}", "\"z\"},\"content\":\"zzzz\"}", "decoder Replace of \"z\"" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, TWO(REPLACE("b", "xyz"), REPLACE("\xc3\xa9", "e")) "," FIRST,
            NULL },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, TWO(REPLACE("b", "xyz"), REPLACE("ab", "x")) "," FIRST,
            "after Replace of or by" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, NFC "," FIRST, NULL },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, TWO(REPLACE("b", "wxyz"), REPLACE("ab", "x")) "," FIRST,
            "after Replace of or by" },
        { NORMALIZER ",\"pre_tokenizer\":" METASPACE, TWO(REPLACE("b", "xy"), REPLACE("ab", "x")) "," FIRST,
            "after Replace of or by" },
        { "\"unk_token\":\"<unk>\"", "\"unk_token\":7", "unk_token is not in the vocabulary" },
        { "[\"a\",\"b\"],", "[\"a\",\"b\"],[\"a\",\"b\"],", NULL },
        { "[\"a\",\"b\"]", "[\"" FORTY FORTY FORTY "\",\"b\"]", "\"" FORTY FORTY "01234567890123456789\" is not" },
        { "[\"a\",\"b\"]", "[\"" FORTY "\",\"b\"]", "\"" FORTY "\" is not in the vocabulary" },
        { "\"aab\":8", "\"\":8", "" },
        { "\"model\":{\"type\":\"BPE\",", "\"model\":{", "model type \"\" is not supported" },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) check_tokenizer(words_json, rows[i].from, rows[i].to, rows[i].words);
}

static void test_raw_tokenizers(void)
{
    static const char flags[] = "\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true";
    static const char vocab[] = "{\"a\":0,\"\xc4\xa0\":1,\"\xc3\x83\":2,\"\xc2\xa9\":3,\"\xc3\x83\xc2\xa9\":4}";
    check_document(raw_json, NULL, "byte level", NULL);
    check_tokenizer(raw_json, flags, "\"add_prefix_space\":7", "\"add_prefix_space\" is neither");
    check_tokenizer(raw_json, flags, "\"trim_offsets\":7", "\"trim_offsets\" is neither");
    check_tokenizer(raw_json, flags, "\"add_prefix_space\":false,\"use_regex\":false", NULL);
    check_tokenizer(raw_json, "{\"type\":\"NFC\"}", "{\"type\":\"NFC\",\"more\":1}", "which is not known");
    check_tokenizer(raw_json, vocab, "[]", "\"vocab\" is not an object");
    check_tokenizer(raw_json, vocab, "{}", "the vocabulary is empty");
    check_tokenizer(raw_json, "[[\"\xc3\x83\",\"\xc2\xa9\"]]", "{}", "\"merges\" is not an array");
    check_tokenizer(raw_json, "[[\"\xc3\x83\",\"\xc2\xa9\"]]", "[]", NULL);
    check_tokenizer(raw_json, "\"a\":0", "\"\xc2\x80\":0", "neither made of bytes nor an added token");
    check_tokenizer(raw_json, "\"a\":0", "\"\xc2\xad\":0", "neither made of bytes nor an added token");
    check_tokenizer(raw_json, "\"a\":0", "\"\xc2\xae\":0", NULL);
}

#define LISTED(id, content) "{\"added_tokens_decoder\":{\"" id "\":{\"content\":" content "}}}"

/* Tokens by their names in tokenizer_config.json: a string, or an object with its content. */
static void test_config_tokens(void)
{
    static const struct {
        const char *config, *text;
    } rows[] = {
        { "{}", NULL },
        { "{\"bos_token\":null}", NULL },
        { "{\"bos_token\":7}", NULL },
        { "{\"bos_token\":\"\"}", NULL },
        { "{\"bos_token\":\"<s>\"}", "<s>" },
        { "{\"bos_token\":{}}", NULL },
        { "{\"bos_token\":{\"content\":\"\"}}", NULL },
        { "{\"bos_token\":{\"content\":\"<s>\"}}", "<s>" },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        const char *text;
        json_doc doc;
        tool_error error;
        test_require(json_parse(&doc, rows[i].config, strlen(rows[i].config), &error), rows[i].config, error.message);
        text = tokenizer_config_token(json_root(&doc), "bos_token");
        CHECK_THAT(text && rows[i].text ? strcmp(text, rows[i].text) == 0 : !text && !rows[i].text, "%s: %s",
            rows[i].config, text ? text : "none");
        json_free(&doc);
    }
}

/* What tokenizer_config.json adds to the vocabulary. */
static void test_listed_tokens(void)
{
    static const struct {
        const char *config, *words;
    } rows[] = {
        { "{}", NULL },
        { "{\"added_tokens_decoder\":7}", "is not an object" },
        { LISTED("10", "\"<e>\""), NULL },
        { LISTED("x", "\"<e>\""), "is no id from 0 to 11" },
        { "{\"added_tokens_decoder\":{\"10\":{}}}", "token 10 has no \"content\"" },
        { LISTED("10", "\"\""), "token 10 has no \"content\"" },
        { LISTED("10", "\"<e>\",\"special\":7"), "lacks \"special\"" },
        { LISTED("10", "\"<e>\",\"special\":true"), NULL },
        { LISTED("0", "\"<unk>\""), NULL },
        { LISTED("0", "\"<u>\""), "in the tokenizer \"<unk>\"" },
        { LISTED("0", "\"<unx>\""), "in the tokenizer \"<unk>\"" },
        { LISTED("1", "\"<unk>\""), "the tokenizer gives it 0" },
    };
    static const char unclaimed[] = "\"vocab\":{\"  \":5,";
    char text[8192];
    const char *vocab = strstr(raw_json, "\"vocab\":{");
    size_t i;
    for (i = 0; i < COUNT(rows); i++) check_document(words_json, rows[i].config, rows[i].config, rows[i].words);
    check_document(raw_json, LISTED("10", "\"\xc3\xa9\""), "letters", "is letters for bytes");
    check_document(raw_json, LISTED("10", "\"plain\""), "letters", NULL);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(vocab - raw_json), raw_json, unclaimed, vocab + 9);
    check_document(text, NULL, "a token of blanks", "neither made of bytes");
    check_document(text, LISTED("5", "\"  \""), "a token of blanks", NULL);
    check_document(text, LISTED("5", "\" \""), "a token of blanks", "in the tokenizer");
    snprintf(text, sizeof text, "%.*s\"vocab\":{\"%s%s\":5,%s", (int)(vocab - raw_json), raw_json, FORTY, FORTY,
        vocab + 9);
    check_document(text, LISTED("5", "\"x\""), "a long token", "in the tokenizer \"" FORTY "01234567890123456789\"");
}

/* A folder whose tokenizer cannot be read, or does not name its first and last tokens. */
static void test_tokenizer_folders(void)
{
    static const struct {
        const char *config;
        uint32_t bos, eos;
    } rows[] = { { "{\"bos_token\":\"\",\"eos_token\":7}", JMB_NO_TOKEN, 0 },
        { "{\"bos_token\":\"nope\",\"eos_token\":\"nope\"}", JMB_NO_TOKEN, 0 },
        { "{\"bos_token\":\"<unk>\",\"eos_token\":{\"content\":\"<unk>\"}}", 0, 1 }, { "{}", JMB_NO_TOKEN, 0 } };
    tool_buffer out = { NULL, 0, 0, false };
    char path[PATH_ROOM];
    tool_error error;
    json_doc doc;
    size_t i;
    mkdir(tiny_path(path, folder, "tokenizer.model"), 0777);
    check_result(tokenizer_compile(folder, 12, &out, &error), &error, "a folder", "tokenizer.model: is a directory");
    rmdir(path);
    test_require(json_parse(&doc, words_json, strlen(words_json), &error), "tokenizer", error.message);
    test_require(tokenizer_compile_json(json_root(&doc), NULL, 12, &out, &error), "tokenizer", error.message);
    for (i = 0; i < COUNT(rows); i++) {
        jmb_header header;
        memset(&header, 0, sizeof header);
        header.vocab = 12;
        header.bos = JMB_NO_TOKEN;
        write_text("tokenizer_config.json", rows[i].config);
        CHECK(tokenizer_fill_ids(folder, &out, &header, &error));
        CHECK_THAT(header.bos == rows[i].bos && header.eos_count == rows[i].eos, "%s", rows[i].config);
    }
    drop("tokenizer_config.json");
    tool_buffer_free(&out);
    json_free(&doc);
}

#define ADDED(id, content) "{\"id\":" id ",\"content\":\"" content "\",\"special\":true,\"normalized\":false," \
    "\"lstrip\":false,\"rstrip\":false,\"single_word\":false}"

/* A token, or a message about one, of any length. */
static void test_long_tokens(void)
{
    char text[8192], token[1100];
    size_t length;
    for (length = 1023; length <= 1025; length++) {
        memset(token, 'x', length);
        token[length] = 0;
        snprintf(text, sizeof text, "\"%s\":8", token);
        check_tokenizer(words_json, "\"aab\":8", text, length > 1024 ? "1024" : "\"aab\" is not in the vocabulary");
    }
    token[200] = 0;
    snprintf(text, sizeof text, "\"%s\":8", token);
    check_tokenizer(words_json, "\"b\":2", text, "");
    snprintf(text, sizeof text, "\"%.150s %.150s %.150s\"", token, token, token);
    check_tokenizer(words_json, "\"\\u2581 a\"", text, "is not a pair of tokens");
    memset(token, 'x', sizeof token);
    snprintf(text, sizeof text, "\"content\":\"%.1090s%.1090s\",", token, token);
    check_tokenizer(words_json, "\"content\":\"<unk>\",", text, "has id 0");
    snprintf(text, sizeof text, "\"added_tokens\":[" ADDED("5", "%.1090s%.1090s") "]", token, token);
    check_tokenizer(raw_json, "\"added_tokens\":[]", text, "more than 1024 bytes");
    for (length = 0; length < 1024; length++) token[length] = length % 2 ? '\xa9' : '\xc3';
    snprintf(text, sizeof text, "\"added_tokens\":[" ADDED("5", "%.1024s") "]", token);
    check_tokenizer(raw_json, "\"added_tokens\":[]", text, "is letters for bytes");
}

/* ---- configurations ------------------------------------------------------------------------------------------- */

/* Behind the JSON value at p. */
static const char *value_end(const char *p)
{
    int depth = 0;
    bool quoted = false;
    for (; *p; p++) {
        if (*p == '"') quoted = !quoted;
        if (quoted) continue;
        if (*p == '[' || *p == '{') depth++;
        if ((*p == ']' || *p == '}') && depth-- == 0) break;
        if (*p == ',' && depth == 0) break;
    }
    return p;
}

/* Takes the member `key` out of the object. */
static void take_out(char *json, const char *key)
{
    char quoted[80], *at;
    const char *end;
    snprintf(quoted, sizeof quoted, "\n  \"%s\":", key);
    at = strstr(json, quoted);
    if (!at) return;
    end = value_end(at);
    if (*end == ',') end++;
    else while (*at != ',') at--; /* the last member */
    memmove(at, end, strlen(end) + 1);
}

/* The config of a golden case with other members; free() it. */
static char *case_config(const char *name, const char *without, const char *members)
{
    char path[PATH_ROOM], *config, *text;
    json_doc doc;
    tool_error error;
    const json_value *v;
    size_t size;
    snprintf(path, sizeof path, "tests/cases/%s/config.json", name);
    config = (char *)file_need(path, &size);
    text = (char *)malloc(size + strlen(members) + 20);
    sprintf(text, "{%s}", members);
    test_require(json_parse(&doc, text, strlen(text), &error), members, error.message);
    for (v = json_first(json_root(&doc)); v; v = json_next(v)) take_out(config, json_key(v, NULL));
    if (without) take_out(config, without);
    sprintf(text, "{%s%s%s", members, members[0] ? "," : "", config + 1);
    json_free(&doc);
    free(config);
    return text;
}

static bool is_checkpoint(const char *name)
{
    return strstr(name, "safetensors") != NULL;
}

/* `folder` gets links to the checkpoint of a golden case. */
static void link_case(const char *name)
{
    char here[PATH_ROOM], source[2 * PATH_ROOM], target[3 * PATH_ROOM], path[PATH_ROOM];
    const struct dirent *entry;
    DIR *dir;
    test_require(getcwd(here, sizeof here) != NULL, "getcwd", name);
    temp_path(folder, name);
    mkdir(folder, 0777);
    snprintf(source, sizeof source, "%s/tests/cases/%s", here, name);
    dir = opendir(source);
    test_require(dir != NULL, "cannot open", source);
    while ((entry = readdir(dir)) != NULL) {
        if (!is_checkpoint(entry->d_name)) continue;
        snprintf(target, sizeof target, "%s/%s", source, entry->d_name);
        remove(tiny_path(path, folder, entry->d_name));
        test_require(symlink(target, path) == 0, "symlink", path);
    }
    closedir(dir);
}

/* The plan of the folder; `words` as above. */
static void check_plan(const char *what, const char *words)
{
    convert_plan plan;
    tool_error error;
    bool ok = plan_make(&plan, folder, JMB_BF16, NULL, &error);
    check_result(ok, &error, what, words);
    if (ok) plan_free(&plan);
}

static void check_config(const char *name, const char *without, const char *members, const char *words)
{
    char *text = case_config(name, without, members);
    link_case(name);
    write_text("config.json", text);
    check_plan(members[0] ? members : without, words);
    free(text);
}

#define HYBRIDS(second) "\"num_hidden_layers\":2,\"layers_block_type\":[\"mamba\"," second "]"
#define LLAMA3(low, high, original) "\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":2" low high original "}"

static void check_hybrids(bool (*is_hybrid)(const convert_plan *, uint32_t), const convert_plan *plan,
    const uint32_t *want, size_t count)
{
    uint32_t layer;
    size_t i = 0;
    for (layer = 0; layer <= want[count - 1]; layer++) {
        CHECK_THAT(is_hybrid(plan, layer) == (want[i] == layer), "layer %u of %u", layer, want[count - 1] + 1);
        i += want[i] == layer;
    }
}

/* The layers of Zamba-7B and Zamba2-2.7B that configs need not name. */
static void test_standard_layers(void)
{
    static const uint32_t zamba[] = { 2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73 };
    static const uint32_t zamba2[] = { 6, 12, 18, 24, 30, 36, 42, 47, 51 };
    convert_plan plan;
    memset(&plan, 0, sizeof plan);
    plan.settings[SET_ATTENTION_PERIOD] = 6;
    plan.settings[SET_ATTENTION_OFFSET] = 4;
    check_hybrids(zamba_is_hybrid, &plan, zamba, COUNT(zamba));
    check_hybrids(zamba2_is_hybrid, &plan, zamba2, COUNT(zamba2));
}

static void test_configs(void)
{
    static const struct {
        const char *name, *without, *members, *words;
    } rows[] = {
        { "llama", NULL, "\"vocab_size\":[]", "vocab_size must be an integer" },
        { "jamba-dense", NULL, "\"hidden_act\":\"swish\"", NULL },
        { "jamba-dense", NULL, "\"hidden_act\":7", "hidden_act is \"?\"" },
        { "zamba", NULL, "\"hidden_act\":7", "only silu and gelu" },
        { "zamba", NULL, "\"hidden_act\":\"silu\"", NULL },
        { "jamba-dense", NULL, "\"pad_token_id\":-1", NULL },
        { "jamba-dense", NULL, "\"pad_token_id\":-2", "pad_token_id must be an integer" },
        { "jamba-dense", NULL, "\"pad_token_id\":\"x\"", "or null" },
        { "jamba-dense", NULL, "\"pad_token_id\":1048575", "pad_token_id is 1048575, outside the vocabulary" },
        { "jamba-dense", NULL, "\"bos_token_id\":null,\"eos_token_id\":null", NULL },
        { "jamba-dense", NULL, "\"bos_token_id\":1048575", "bos_token_id is 1048575, outside the vocabulary" },
        { "jamba-dense", NULL, "\"vocab_size\":null", "vocab_size must be an integer" },
        { "jamba-dense", NULL, "\"eos_token_id\":\"x\"", "eos_token_id is no token" },
        { "jamba-dense", NULL, "\"eos_token_id\":-1", "eos_token_id is no token" },
        { "jamba-dense", NULL, "\"eos_token_id\":0", NULL },
        { "jamba-dense", NULL, "\"bos_token_id\":0", NULL },
        { "jamba-dense", NULL, "\"bos_token_id\":255", NULL },
        { "jamba-dense", NULL, "\"bos_token_id\":256", "bos_token_id is 256, outside the vocabulary" },
        { "jamba-dense", NULL, "\"eos_token_id\":256", "eos_token_id is no token" },
        { "jamba-dense", NULL, "\"eos_token_id\":1048575", "eos_token_id is no token" },
        { "jamba-dense", NULL, "\"eos_token_id\":[1,2,1,3,4,5,6,7,8]", NULL },
        { "jamba-dense", NULL, "\"eos_token_id\":[1,2,3,4,5,6,7,8,9]", "lists more than 8 tokens" },
        { "jamba-dense", NULL, "\"mamba_inner_layernorms\":true", NULL },
        { "jamba-dense", NULL, "\"mamba_inner_layernorms\":null", NULL },
        { "jamba-dense", NULL, "\"mamba_inner_layernorms\":false", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"mamba_inner_layernorms\":1", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"clip_qkv\":false", NULL },
        { "jamba-dense", NULL, "\"clip_qkv\":null", NULL },
        { "jamba-dense", NULL, "\"clip_qkv\":true", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"clip_qkv\":0", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"logit_scale\":1.0", NULL },
        { "jamba-dense", NULL, "\"logit_scale\":2", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"logits_scaling\":\"1\"", "has a value that cannot be converted" },
        { "jamba-dense", NULL, "\"tie_word_embeddings\":7", "must be true or false" },
        { "jamba-dense", NULL, "\"num_key_value_heads\":\"auto\"", NULL },
        { "jamba-dense", NULL, "\"num_hidden_layers\":2048,\"num_experts\":1024,\"attn_layer_period\":4096,"
            "\"attn_layer_offset\":4095,\"expert_layer_period\":1,\"expert_layer_offset\":0",
            "tensors is" },
        { "jamba-dense", NULL, "\"num_attention_heads\":3,\"num_key_value_heads\":2", "3 heads do not share" },
        { "jamba-dense", NULL, "\"model_type\":\"gpt2\"", "cannot be converted; jamba, zamba" },
        { "mamba2", NULL, "\"time_step_limit\":[0,{\"__float__\":\"Infinity\"}]", NULL },
        { "mamba2", NULL, "\"time_step_limit\":[0,{\"__float__\":\"Infinity\",\"more\":1}]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[0,{\"__float__\":\"NaN\"}]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[0,Infinity]", NULL },
        { "mamba2", NULL, "\"time_step_limit\":[1,1]", NULL },
        { "mamba2", NULL, "\"time_step_limit\":[0,0]", NULL },
        { "mamba2", NULL, "\"time_step_limit\":[\"0\",1]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[0,\"1\"]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[0]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":{\"a\":0,\"b\":1}", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[-1,1]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[3.4028234663852886e38,Infinity]", NULL },
        { "mamba2", NULL, "\"time_step_limit\":[3.4028235e39,Infinity]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[2,1]", "time_step_limit" },
        { "mamba2", NULL, "\"time_step_limit\":[1e39,1e39]", "time_step_limit" },
        { "mamba2", NULL, "\"num_heads\":5", "times head_dim" },
        { "zamba", "layers_block_type", "", NULL },
        { "zamba", "layers_block_type", "\"layer_types\":null", NULL },
        { "zamba", NULL, "\"layers_block_type\":7", "not a list of num_hidden_layers" },
        { "zamba", NULL, "\"layers_block_type\":[\"m\"]", "not a list of num_hidden_layers" },
        { "zamba", NULL, HYBRIDS("7"), "layer 1 is \"?\"" },
        { "zamba", NULL, HYBRIDS("\"attention\""), "layer 1 is \"attention\"" },
        { "zamba", NULL, "\"layers_block_type\":[\"m\",\"linear_attention\",\"g\",\"mamba\",\"hybrid\",\"m\"]", NULL },
        { "zamba", NULL, "\"attention_hidden_size\":97", "must be twice hidden_size" },
        { "zamba", NULL, "\"attention_hidden_size\":null", NULL },
        { "zamba", NULL, "\"attention_head_dim\":null", NULL },
        { "zamba2-abc", NULL, "\"attention_hidden_size\":97", "must be twice hidden_size" },
        { "zamba2-abc", "layers_block_type", "", "layers_block_type is missing: which of the" },
        { "zamba2-abc", "layers_block_type", "\"num_hidden_layers\":54,\"hybrid_layer_ids\":null", "is missing" },
        { "zamba2-abc", NULL, "\"hybrid_layer_ids\":null", NULL },
        { "zamba2-abc", "hybrid_layer_ids", "", NULL },
        { "zamba2-abc", NULL, "\"hybrid_layer_ids\":[0]", "do not name the same layers" },
        { "zamba2-abc", NULL, "\"hybrid_layer_ids\":[0,1,3,4,5,6,8]", "do not name the same layers" },
        { "zamba2-abc", NULL, "\"hybrid_layer_ids\":[0,1,3,4,5,6,\"7\"]", "do not name the same layers" },
        { "zamba2-abc", NULL, "\"intermediate_size\":null", "shape" },
        { "zamba2-abc", NULL, "\"use_long_context\":true", NULL },
        { "zamba2-abc", NULL, "\"n_mamba_heads\":null", NULL },
        { "zamba2-abc", NULL, "\"mamba_headdim\":null", NULL },
        { "zamba2-abc", NULL, "\"n_mamba_heads\":null,\"mamba_headdim\":null", "" },
        { "zamba2-abc", NULL, "\"n_mamba_heads\":null,\"mamba_headdim\":131072", "n_mamba_heads (0)" },
        { "llama", "head_dim", "\"num_attention_heads\":1,\"num_key_value_heads\":1", "shape" },
        { "llama", NULL, "\"rope_parameters\":7", "neither an object nor null" },
        { "llama", NULL, "\"rope_parameters\":null", NULL },
        { "llama", NULL, "\"rope_parameters\":null,\"rope_scaling\":[]", "neither an object nor null" },
        { "llama", "rope_parameters", "", NULL },
        { "llama", NULL, "\"rope_parameters\":{\"factor\":2}", "RoPE type \"\"" },
        { "llama", NULL, "\"rope_parameters\":{}", NULL },
        { "llama", NULL, "\"rope_parameters\":{\"type\":\"linear\",\"factor\":2}", NULL },
        { "llama", NULL, "\"rope_parameters\":{\"type\":\"linear\",\"factor\":1e13}", "positive number \"factor\"" },
        { "llama", NULL, "\"rope_parameters\":{\"rope_theta\":-1}", "positive number \"rope_theta\"" },
        { "llama", NULL, "\"rope_parameters\":{\"partial_rotary_factor\":0.5}", "partial_rotary_factor" },
        { "llama", NULL, "\"partial_rotary_factor\":0.5", "partial_rotary_factor" },
        { "llama", NULL, LLAMA3("", "", ""), "\"low_freq_factor\"" },
        { "llama", NULL, LLAMA3(",\"low_freq_factor\":1", "", ""), "\"high_freq_factor\"" },
        { "llama", NULL, LLAMA3(",\"low_freq_factor\":1", ",\"high_freq_factor\":4", ""), "\"original_max_position" },
        { "llama", NULL, LLAMA3(",\"low_freq_factor\":4", ",\"high_freq_factor\":4",
            ",\"original_max_position_embeddings\":64"), "must be above low_freq_factor" },
        { "llama", NULL, LLAMA3(",\"low_freq_factor\":1", ",\"high_freq_factor\":4",
            ",\"original_max_position_embeddings\":64"), NULL },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) check_config(rows[i].name, rows[i].without, rows[i].members, rows[i].words);
}

/* A Mamba without its width in the config, whose first weights say it, or nothing that can be. */
static void test_mamba_width(void)
{
    static const struct {
        const char *shape;
        size_t bytes;
        double d_inner;
    } rows[] = { { "4", 16, 0 }, { "8,2", 64, 4 }, { "262146,0", 0, 0 }, { "262144,0", 0, 131072 } };
    char *text = case_config("mamba", "intermediate_size", "");
    size_t i;
    check_config("mamba", "intermediate_size", "", NULL);
    drop("model.safetensors");
    write_tensors("model.safetensors", "{" TENSOR("x", "1", 0, 4) "}", 4);
    write_text("config.json", text);
    check_plan("no in_proj", "backbone.");
    for (i = 0; i < COUNT(rows); i++) {
        convert_plan plan;
        tool_error error;
        char header[200];
        snprintf(header, sizeof header,
            "{\"backbone.layers.0.mixer.in_proj.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[0,%zu]}}",
            rows[i].shape, rows[i].bytes);
        write_tensors("model.safetensors", header, rows[i].bytes);
        check_plan(rows[i].shape, "backbone.");
        memset(&plan, 0, sizeof plan);
        if (!CHECK_THAT(st_open(&plan.checkpoint, folder, &error), "%s", error.message)) continue;
        CHECK(mamba_derive(&plan, NULL, &error));
        CHECK_NEAR(plan_get(&plan, SET_D_INNER), rows[i].d_inner, 0);
        st_close(&plan.checkpoint);
    }
    free(text);
    drop("model.safetensors");
}

/* Zamba2 says how long a text may be in two ways. */
static void test_long_context(void)
{
    static const struct {
        const char *members;
        uint32_t context;
    } rows[] = {
        { "\"max_position_embeddings\":77", 77 },
        { "\"max_position_embeddings\":77,\"use_long_context\":false", 77 },
        { "\"max_position_embeddings\":77,\"use_long_context\":true", 16384 },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        char *text = case_config("zamba2-abc", NULL, rows[i].members);
        convert_plan plan;
        tool_error error;
        link_case("zamba2-abc");
        write_text("config.json", text);
        free(text);
        if (!CHECK_THAT(plan_make(&plan, folder, JMB_F32, NULL, &error), "%s", error.message)) continue;
        CHECK_THAT(plan.model.header.context == rows[i].context, "%s: %u", rows[i].members, plan.model.header.context);
        plan_free(&plan);
    }
}

/* What stands beside the config. */
static void test_folders(void)
{
    link_case("llama");
    drop("config.json");
    write_text("adapter_config.json", "{}");
    check_plan("an adapter's folder", "is an adapter");
    drop("adapter_config.json");
    check_plan("no config", "config.json");
    write_text("generation_config.json", "[]");
    check_config("llama", NULL, "", "generation_config.json: not a JSON object");
    write_text("generation_config.json", "{\"eos_token_id\":[1,\"x\"]}");
    check_plan("another end", "generation_config.json: eos_token_id is no token");
    write_text("generation_config.json", "{\"eos_token_id\":null}");
    check_plan("no end", NULL);
    drop("generation_config.json");
    write_text("config.json", "[]");
    check_plan("a list", "config.json: not a JSON object");
}

static void test_names(void)
{
    static const name_place place = { 12, 34, 56 };
    char name[NAME_ROOM] = "", small[32] = "";
    rule_append(name, sizeof name, "a.#.b.@.c.*", &place);
    CHECK_THAT(strcmp(name, "a.12.b.34.c.56") == 0, "%s", name);
    rule_append(small, sizeof small, "0123456789012345678901234567890123456789", &place);
    CHECK_THAT(strcmp(small, "01234567890123456789") == 0, "%s", small);
    CHECK(name_number("a.layers.12.b", ".layers.") == 12 && name_number("a.layers.b", ".layers.") == SIZE_MAX);
    CHECK(name_number("a.layers./", ".layers.") == SIZE_MAX && name_number("a", ".layers.") == SIZE_MAX);
    CHECK(name_number("a.layers.:", ".layers.") == SIZE_MAX && name_number("a.layers.9", ".layers.") == 9);
}

static void test_leftovers(void)
{
    static const float row[64] = { 1, -1, 0.5f }, above[64] = { 1.009f, -1, 0.5f }, below[64] = { 0.991f, -1, 0.5f },
        far_off[64] = { 1, -1.02f, 0.5f };
    convert_plan plan;
    tool_error error;
    char *text = case_config("llama", NULL, "\"tie_word_embeddings\":true");
    link_case("llama");
    write_text("config.json", text);
    if (CHECK_THAT(plan_make(&plan, folder, JMB_F32, NULL, &error), "%s", error.message)) {
        lora_part part;
        lora_set none;
        jmb_block nothing;
        char name[NAME_ROOM] = "nameless";
        memset(&nothing, 0, sizeof nothing);
        memset(&part, 0, sizeof part);
        memset(&none, 0, sizeof none);
        CHECK(plan_is_harmless(&plan, "a.rotary_emb.inv_freq") && !plan_is_harmless(&plan, "inv_freq"));
        CHECK(!plan_is_harmless(&plan, "model.layers.0.self_attn.q_proj.weight"));
        CHECK(rule_find_lora(&none, &head_rules[0], &plan.model.tensors[0], &nothing, name, &part, &error));
        plan_free(&plan);
    }
    drop("model.safetensors");
    write_tensors("model.safetensors", "{" TENSOR("lm_head.weight", "1", 0, 4) "}", 4);
    check_plan("a head alone", "model.embed_tokens.weight is missing");
    drop("model.safetensors");
    free(text);
    CHECK(copy_row_is_near(row, row, 3) && copy_row_is_near(above, row, 3) && copy_row_is_near(below, row, 3));
    CHECK(!copy_row_is_near(far_off, row, 3));
}

/* The shapes of one tensor that holds all experts. */
static void test_shapes(void)
{
    name_rule rule;
    jmb_block block;
    jmb_tensor t;
    uint64_t shape[3];
    memset(&rule, 0, sizeof rule);
    memset(&block, 0, sizeof block);
    memset(&t, 0, sizeof t);
    rule.shape = SHAPE_EXPERTS;
    block.experts = 4;
    t.cols = 7;
    CHECK(rule_shape_of(&rule, &t, &block, 40, shape) == 3 && shape[0] == 4 && shape[1] == 10 && shape[2] == 7);
}

/* Rows of embedding and head of a model file, and copies of them in an adapter. */
static void test_vocab_rows(void)
{
    static const char names[2][48] = { "base_model.model.lm_head.weight",
        "base_model.model.model.embed_tokens.weight" };
    char path[PATH_ROOM], name[96];
    jamba_model *model;
    convert_plan plan;
    tool_error error;
    lora_set set;
    st_tensor t;
    uint8_t room[4];
    float out[256];
    uint32_t i, col;
    if (!convert("tests/cases/llama", "llama", "f32", path)) return;
    model = load_model(jamba_from_file(path), NULL);
    if (!model) return;
    memset(&set, 0, sizeof set);
    memset(&t, 0, sizeof t);
    set.path = "an adapter";
    t.name = name;
    if (CHECK_THAT(plan_of_model(&plan, &model->metadata, path, &set, &error), "%s", error.message)) {
        const jmb_header *h = &plan.model.header;
        for (i = 0; i < 2; i++) {
            const jmb_tensor *w = &plan.model.tensors[i == 0 ? h->tensors - 1 : 0];
            CHECK(plan_vocab_row(&plan, i == 0 ? JMB_ROLE_HEAD : JMB_ROLE_EMBED, 5, room, out, &error));
            for (col = 0; col < h->hidden; col++) CHECK(out[col] == jmb_weight(w, 5, col));
            snprintf(name, sizeof name, "%s", names[i]);
            t.rank = 1;
            check_result(lora_check_copy(&plan, &t, &error), &error, "a vector", "is not");
            t.rank = 2;
            t.shape[0] = h->vocab + 1;
            t.shape[1] = h->hidden;
            check_result(lora_check_copy(&plan, &t, &error), &error, "another vocabulary", "is not");
            t.shape[0] = h->vocab;
            t.shape[1] = h->hidden + 1;
            check_result(lora_check_copy(&plan, &t, &error), &error, "another width", "is not");
        }
        plan_free(&plan);
    }
    jamba_model_free(model);
}

/* A model file says which family it is of. */
static void test_model_plans(void)
{
    static const struct {
        const char *key, *value, *words;
    } rows[] = { { "architecture", "llama", NULL }, { "architecture", "other", "architecture \"other\"" },
        { "name", "llama", "architecture \"\"" } };
    static jmb_block blocks[2];
    static jmb_tensor tensor;
    size_t i;
    blocks[0].kind = JMB_MLP; /* a layer all the same */
    blocks[1].kind = JMB_ATTENTION;
    for (i = 0; i < COUNT(rows); i++) {
        jmb_string string;
        jmb_metadata model;
        convert_plan plan;
        tool_error error;
        bool ok;
        memset(&model, 0, sizeof model);
        string.key = rows[i].key;
        string.value = rows[i].value;
        model.header.blocks = 2;
        model.header.tensors = 1;
        model.blocks = blocks;
        model.tensors = &tensor;
        model.strings = &string;
        model.string_count = 1;
        ok = plan_of_model(&plan, &model, "a model", NULL, &error);
        check_result(ok, &error, rows[i].value, rows[i].words);
        if (!ok) continue;
        CHECK(plan.layers[0] == 0 && plan.layers[1] == 1 && plan_get(&plan, SET_LAYERS) == 2);
        plan_free(&plan);
    }
}

/* ---- adapters ------------------------------------------------------------------------------------------------- */

#define PAIR(name, rows, cols) "{" TENSOR("base_model.model." name ".lora_A.weight", "2," #cols, 0, 32) "," \
    TENSOR("base_model.model." name ".lora_B.weight", #rows ",2", 32, 64) "}"
#define LORA "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4"

/* Opens the adapter of these members of its configuration, and asks for the factor of a module. */
static void check_lora(const char *members, const char *name, const char *words)
{
    char text[1400];
    lora_set set;
    tool_error error;
    double scale = 0;
    bool ok;
    snprintf(text, sizeof text, "{%s}", members);
    write_text("adapter_config.json", text);
    ok = lora_open(&set, folder, &error);
    if (ok && name) {
        ok = lora_scale(&set, name, 2, &scale, &error);
        lora_close(&set);
    } else if (ok) lora_close(&set);
    check_result(ok, &error, members, words);
}

static void test_lora_configs(void)
{
    static const struct {
        const char *members, *words;
    } rows[] = {
        { LORA, NULL },
        { "\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":4", NULL },
        { "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":-1000000", NULL },
        { "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1000000", NULL },
        { "\"peft_type\":7", "peft_type is \"\"" },
        { "\"peft_type\":\"IA3\"", "peft_type is \"IA3\"" },
        { LORA ",\"bias\":\"all\"", "bias is \"all\"" },
        { LORA ",\"bias\":\"none\"", NULL },
        { LORA ",\"bias\":null", NULL },
        { LORA ",\"use_dora\":true", "use_dora is set" },
        { LORA ",\"use_dora\":false", NULL },
        { LORA ",\"use_dora\":7", "use_dora is set" },
        { LORA ",\"modules_to_save\":[]", NULL },
        { LORA ",\"modules_to_save\":[\"a\"]", "modules_to_save is set" },
        { LORA ",\"arrow_config\":{}", NULL },
        { LORA ",\"arrow_config\":{\"a\":1}", "arrow_config is set" },
        { LORA ",\"init_lora_weights\":null", NULL },
        { LORA ",\"init_lora_weights\":true", NULL },
        { LORA ",\"init_lora_weights\":\"gaussian\"", NULL },
        { LORA ",\"init_lora_weights\":\"orthogonal\"", NULL },
        { LORA ",\"init_lora_weights\":\"pissa\"", "init_lora_weights is \"pissa\"" },
        { LORA ",\"init_lora_weights\":7", "init_lora_weights is \"?\"" },
        { LORA ",\"layers_to_transform\":3", NULL },
        { LORA ",\"layers_to_transform\":[1,2]", NULL },
        { LORA ",\"layers_to_transform\":\"x\"", "layers_to_transform is not a list" },
        { LORA ",\"layers_to_transform\":[\"x\",1]", "layers_to_transform is not a list" },
        { LORA ",\"rank_pattern\":[1]", "rank_pattern is not an object" },
        { LORA ",\"rank_pattern\":{\"a\":\"x\",\"b\":1}", "rank_pattern is not an object" },
        { LORA ",\"alpha_pattern\":7", "alpha_pattern is not an object" },
        { LORA ",\"alpha_pattern\":{\"a\":7}", NULL },
        { "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1e7", "lora_alpha must be" },
        { "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":-1e7", "lora_alpha must be" },
        { "\"peft_type\":\"LORA\",\"r\":2", "lora_alpha is missing" },
        { "\"peft_type\":\"LORA\",\"lora_alpha\":2", "r must be an integer" },
        { "\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":2", "r must be an integer" },
        { "\"peft_type\":\"LORA\",\"r\":1025,\"lora_alpha\":2", "r must be an integer" },
        { LORA ",\"use_rslora\":7", "use_rslora must be" },
        { LORA ",\"use_rslora\":true", NULL },
        { LORA ",\"target_modules\":7", "target_modules is not a string or a list" },
        { LORA ",\"target_modules\":[7]", "target_modules is not a string or a list" },
        { LORA ",\"exclude_modules\":7", "exclude_modules is not a string or a list" },
        { LORA ",\"target_parameters\":\"x\"", "target_parameters is not a list" },
        { LORA ",\"layers_pattern\":7", "layers_pattern is not a string or a list" },
    };
    size_t i;
    write_tensors("adapter_model.safetensors", PAIR("model.layers.1.q", 4, 4), 64);
    for (i = 0; i < COUNT(rows); i++) check_lora(rows[i].members, NULL, rows[i].words);
    write_text("adapter_config.json", "[]");
    {
        lora_set set;
        tool_error error;
        check_result(lora_open(&set, folder, &error), &error, "a list", "not a JSON object");
    }
}

static void test_lora_modules(void)
{
    static const char others[] = "but not by target_modules";
    static const struct {
        const char *members, *name, *words;
    } rows[] = {
        { LORA, "a", others },
        { LORA ",\"target_modules\":[\"q\"]", "model.layers.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"]", "q", NULL },
        { LORA ",\"target_modules\":[\"q\"]", "model.layers.1.xq", others },
        { LORA ",\"target_modules\":[\"layers.1.q\"]", "1.q", others },
        { LORA ",\"target_modules\":\".*q\"", "model.layers.1.q", NULL },
        { LORA ",\"target_modules\":\".*k\"", "model.layers.1.q", others },
        { LORA ",\"target_modules\":\"(\"", "q", "target_modules: the pattern \"(\" is wrong" },
        { LORA ",\"target_modules\":[\"q\"],\"exclude_modules\":\"(\"", "q", "exclude_modules: the pattern" },
        { LORA ",\"target_modules\":[\"q\"],\"exclude_modules\":[\"1.q\"]", "model.layers.1.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"exclude_modules\":[\"1.q\"]", "model.layers.2.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[]", "model.layers.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":1", "model.layers.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":2", "model.layers.1.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[0,1]", "model.layers.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[0,2]", "model.layers.1.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1]", "model.layers.x.1.2.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1]", "1.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1]", "a.1234567890.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1234567890]", "a.h.1234567890.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[123456789]", "a.h.123456789.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[10]", "a.h.10.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[0]", "a.h.0.q", NULL },
        { LORA ",\"target_modules\":[\"1\"],\"layers_to_transform\":[1]", "a.b.1", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":\"\"", "a.h.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":[]", "a.h.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":\"h\"", "a.h.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":\"i\"", "a.h.1.q", others },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":[\"i\",\"h\",\"j\"]",
            "a.h.1.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":\"(\"", "a.h.1.q",
            "layers_pattern: the pattern" },
        { LORA ",\"target_modules\":[\"q\"],\"layers_to_transform\":[1],\"layers_pattern\":[\"(\"]", "a.h.1.q",
            "layers_pattern: the pattern" },
        { LORA ",\"target_modules\":[\"q\"],\"layers_pattern\":\"(\"", "a.h.1.q", NULL }, /* of no use */
        { LORA ",\"ensure_weight_tying\":true", "lm_head", NULL },
        { LORA ",\"ensure_weight_tying\":true", "q", others },
        { LORA ",\"ensure_weight_tying\":false", "lm_head", others },
        { LORA ",\"target_parameters\":[\"mlp.up\"]", "a.mlp.up", NULL },
        { LORA ",\"target_parameters\":[\"mlp.up.weight\"]", "a.mlp.up", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"rank_pattern\":{\"(\":2}", "q", "rank_pattern: the pattern" },
        { LORA ",\"target_modules\":[\"q\"],\"rank_pattern\":{\"k\":3,\"q\":2,\"q2\":5}", "a.q", NULL },
        { LORA ",\"target_modules\":[\"q\"],\"rank_pattern\":{\"q\":3}", "a.q", "the rank of a.q is 3 here" },
        { LORA ",\"target_modules\":[\"q\"],\"alpha_pattern\":{\"(\":2}", "q", "alpha_pattern: the pattern" },
        { LORA ",\"target_modules\":[\"q\"],\"alpha_pattern\":{\"q\":1e7}", "q", "lora_alpha must be" },
    };
    size_t i;
    write_tensors("adapter_model.safetensors", PAIR("model.layers.1.q", 4, 4), 64);
    for (i = 0; i < COUNT(rows); i++) check_lora(rows[i].members, rows[i].name, rows[i].words);
}

static void test_lora_tensors(void)
{
    static const struct {
        const char *header;
        size_t bytes;
        const char *words;
    } rows[] = {
        { PAIR("a", 4, 4), 64, NULL },
        { "{" TENSOR("model.a.lora_A.weight", "1", 0, 4) "}", 4, "does not begin with base_model.model." },
        { "{" TENSOR("base_model.model.a.lora_A.weight", "4", 0, 16) ","
            TENSOR("base_model.model.a.lora_B.weight", "2,2", 16, 32) "}", 32, "is no matrix" },
        { "{" TENSOR("base_model.model.a.lora_A.weight", "2,2", 0, 16) "}", 16, "has no B beside it" },
        { "{" TENSOR("base_model.model.a.lora_B.weight", "2,2", 0, 16) "}", 16, "has no A beside it" },
        { "{" TENSOR("base_model.model.a.lora_embedding_B", "2,2", 0, 16) "}", 16, "has no A beside it" },
        { "{" TENSOR("base_model.model.", "2,2", 0, 16) "}", 16, "is unknown" },
        { "{" TENSOR("base_model.model.a.lora_magnitude_vector", "4", 0, 16) "}", 16, "belongs to DoRA" },
        { "{" TENSOR("base_model.model.a.lora_magnitude_vector.default", "4", 0, 16) "}", 16, "belongs to DoRA" },
        { "{" TENSOR("base_model.model.a.bias", "4", 0, 16) "}", 16, "is a bias" },
        { "{" TENSOR("base_model.model.a.gain", "4", 0, 16) "}", 16, "is unknown" },
        { "{" TENSOR("base_model.model.a.weight", "4", 0, 16) "}", 16, "holds no LoRA matrices" },
        { "{}", 0, "has no tensors" },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        write_tensors("adapter_model.safetensors", rows[i].header, rows[i].bytes);
        check_lora(LORA, NULL, rows[i].words);
    }
}

/* Parts with the same rank are the same when all their numbers are. */
static void test_lora_parts(void)
{
    static const float one[4] = { 1, 2, 3, 4 }, two[4] = { 1, 2, 3, 5 };
    static const lora_module first, second;
    lora_part x, y;
    memset(&x, 0, sizeof x);
    x.module = &first;
    x.rank = 2;
    x.scale = 1;
    x.left = x.right = one;
    x.left_row = 2;
    x.left_rank = 1;
    x.right_rank = 2;
    x.right_col = 1;
    y = x;
    CHECK(lora_same(&x, &y, 2, 2));
    y.module = &second;
    CHECK(lora_same(&x, &y, 2, 2));
    y.left = two;
    CHECK(!lora_same(&x, &y, 2, 2));
    y.left = one;
    y.right = two;
    CHECK(!lora_same(&x, &y, 2, 2));
    y.rank = 1;
    CHECK(!lora_same(&x, &y, 2, 2));
}

/* Shared blocks are compared with the adapter of their first layer, whose rank here is another. */
static void test_lora_of_shared(void)
{
    static const char source[] = "tests/cases-lora/zamba2-blocks/adapter_config.json";
    char *config, *text, path[PATH_ROOM];
    convert_plan plan;
    lora_set set;
    tool_error error;
    uint8_t *weights;
    size_t size;
    weights = file_need("tests/cases-lora/zamba2-blocks/adapter_model.safetensors", &size);
    file_write(tiny_path(path, folder, "adapter_model.safetensors"), weights, size);
    free(weights);
    config = (char *)file_need(source, &size);
    take_out(config, "rank_pattern");
    text = (char *)malloc(size + 100);
    sprintf(text, "{\"rank_pattern\":{\".*layers\\\\.0\\\\..*shared_transformer.*\":99},%s", config + 1);
    write_text("adapter_config.json", text);
    if (CHECK_THAT(lora_open(&set, folder, &error), "%s", error.message)) {
        bool ok = plan_make(&plan, "tests/cases/zamba2-abc", JMB_F32, &set, &error);
        check_result(ok, &error, "another rank", "is 99 here");
        if (ok) plan_free(&plan);
        lora_close(&set);
    }
    free(text);
    free(config);
}

/* Whether the MLP of hybrid 3 takes its tensors from that of hybrid 0, merged with the adapter in the folder. */
static bool shares_mlp(void)
{
    convert_plan plan;
    lora_set set;
    tool_error error;
    bool shares = false;
    if (!CHECK_THAT(lora_open(&set, folder, &error), "%s", error.message)) return false;
    if (CHECK_THAT(plan_make(&plan, "tests/cases/zamba2-abc", JMB_F32, &set, &error), "%s", error.message)) {
        uint32_t first = plan.hybrids[0].block, other = plan.hybrids[3].block;
        while (plan.model.blocks[first].kind != JMB_MLP) first++;
        while (plan.model.blocks[other].kind != JMB_MLP) other++;
        shares = plan.model.blocks[other].unit == first;
        plan_free(&plan);
    }
    lora_close(&set);
    return shares;
}

/* Two layers of one shared block share it on as long as the adapter does the same to both, in every number. */
static void test_lora_of_equals(void)
{
    static const char source[] = "tests/cases-lora/zamba2-blocks", part[] = ".layers.4.shared_transformer.";
    static const char *const changes[] = { "gate_up_proj.lora_A", "gate_up_proj.lora_B", "down_proj.lora_B" };
    char path[PATH_ROOM], name[NAME_ROOM];
    const st_tensor *ends[COUNT(changes)] = { NULL, NULL, NULL };
    uint8_t *config, *weights;
    size_t config_size, size, i, k;
    lora_set set;
    tool_error error;
    snprintf(path, sizeof path, "%s/adapter_config.json", source);
    config = file_need(path, &config_size);
    file_write(tiny_path(path, folder, "adapter_config.json"), config, config_size);
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", source);
    weights = file_need(path, &size);
    test_require(lora_open(&set, source, &error), source, error.message);
    for (i = 0; i < set.checkpoint.count; i++) {
        const st_tensor *t = &set.checkpoint.tensors[i], *from;
        if (!strstr(t->name, part)) continue;
        snprintf(name, sizeof name, "%s", t->name);
        strstr(name, ".4.")[1] = '0';
        from = st_find(&set.checkpoint, name);
        test_require(from && from->bytes == t->bytes, "no counterpart of", t->name);
        memcpy(weights + t->offset, weights + from->offset, (size_t)t->bytes);
        for (k = 0; k < COUNT(changes); k++)
            if (strstr(t->name, changes[k])) ends[k] = t;
    }
    file_write(tiny_path(path, folder, "adapter_model.safetensors"), weights, size);
    CHECK(shares_mlp());
    for (k = 0; k < COUNT(changes); k++) {
        uint8_t *last = weights + ends[k]->offset + ends[k]->bytes - 1;
        *last ^= 0x80; /* a sign */
        file_write(path, weights, size);
        CHECK_THAT(!shares_mlp(), "%s differs", changes[k]);
        *last ^= 0x80;
    }
    lora_close(&set);
    free(config);
    free(weights);
}

/* Ranks of a module for a matrix of 4 rows and 6 columns. */
static void test_lora_ranks(void)
{
    static const uint64_t shapes[][4] = { { 2, 6, 4, 2 }, { 2, 5, 4, 2 }, { 2, 6, 3, 2 }, { 2, 6, 4, 3 },
        { JMB_MAX_RANK + 1, 6, 4, JMB_MAX_RANK + 1 }, { 3, 6, 4, 3 } };
    static const uint32_t ranks[] = { 2, 0, 0, 0, 0, 3 };
    st_tensor a, b;
    lora_module m;
    size_t i;
    memset(&m, 0, sizeof m);
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    m.a = &a;
    m.b = &b;
    for (i = 0; i < COUNT(ranks); i++) {
        memcpy(a.shape, shapes[i], 2 * sizeof(uint64_t));
        memcpy(b.shape, shapes[i] + 2, 2 * sizeof(uint64_t));
        CHECK_THAT(lora_rank(&m, 4, 6, 1) == ranks[i], "row %zu", i);
    }
    CHECK(lora_rank(&m, 4, 6, 3) == 1 && lora_rank(&m, 4, 6, 2) == 0);
}

/* What becomes of a module for a matrix of 4 rows and 6 columns, one or one of three. Experts may be the other way
 * round, a matrix by itself may not. */
static void test_lora_fill(void)
{
    static const struct {
        const char *a, *b;
        size_t bytes;
        uint32_t copies, rank;
        size_t left_row, left_rank;
    } rows[] = {
        { "1,6", "4,1", 40, 1, 1, 1, 1 },
        { "1,4", "6,1", 40, 1, 0, 0, 0 },
        { "3,6", "4,3", 120, 3, 1, 3, 3 },
        { "3,4", "6,3", 120, 3, 1, 1, 4 },
        { "3,5", "6,3", 132, 3, 0, 0, 0 },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        lora_place place = { 4, 6, 0, 1, 1, 0 };
        char header[400];
        lora_part part;
        lora_set set;
        tool_error error;
        size_t a_bytes = 4u * (unsigned)(rows[i].a[0] - '0') * (unsigned)(rows[i].a[2] - '0');
        snprintf(header, sizeof header,
            "{\"base_model.model.q.lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[0,%zu]},"
            "\"base_model.model.q.lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}}",
            rows[i].a, a_bytes, rows[i].b, a_bytes, rows[i].bytes);
        write_tensors("adapter_model.safetensors", header, rows[i].bytes);
        write_text("adapter_config.json",
            "{\"peft_type\":\"LORA\",\"r\":1,\"lora_alpha\":4,\"target_modules\":[\"q\"]}");
        if (!CHECK_THAT(lora_open(&set, folder, &error), "%s", error.message)) return;
        memset(&part, 0, sizeof part);
        place.copies = rows[i].copies;
        CHECK_THAT(lora_fill(&set, set.modules, "q", &place, &part, &error), "%s", error.message);
        CHECK_THAT(part.rank == rows[i].rank && part.left_row == rows[i].left_row
                && part.left_rank == rows[i].left_rank,
            "row %zu: rank %u, steps %zu and %zu", i, part.rank, part.left_row, part.left_rank);
        CHECK((part.module != NULL) == (part.rank > 0) && set.modules->used == (part.rank > 0));
        lora_close(&set);
    }
}

/* ---- patterns ------------------------------------------------------------------------------------------------- */

static void test_patterns(void)
{
    enum { NO, YES, WRONG };
    static const struct {
        const char *pattern, *text;
        int want;
    } rows[] = {
        { "\\d\\D\\w\\W\\s\\S", "1a_- x", YES }, { "\\d", "a", NO }, { "\\D", "1", NO }, { "\\D", ":", YES },
        { "\\d", "/", NO }, { "\\w\\w\\w\\w", "Zz9_", YES }, { "\\w", "[", NO }, { "\\w", "{", NO }, { "\\w", "@", NO },
        { "\\w", "`", NO }, { "\\w\\w", "\xc3\xa9", YES },
        { "\\w\\w", "\xc3\x80", YES }, { "\\w", ":", NO }, { "\\s\\s", "\t\r", YES },
        { "\\s", "\x0e", NO }, { "\\s", "\x08", NO }, { "\\s", " ", YES }, { "\\S", " ", NO }, { "\\W", "a", NO },
        { "[\\d]", "5", YES }, { "[\\d]", "a", NO }, { "[a-]", "-", YES }, { "[a-c]", "b", YES }, { "[a-c]", "d", NO },
        { "[a-c]", "a", YES }, { "[a-c]", "c", YES }, { "[b-c]", "a", NO },
        { "[a-c]", "A", NO }, { "[c-a]", "b", WRONG }, { "[a-", "a", WRONG }, { "[a", "a", WRONG }, { "[", "a", WRONG },
        { "[+-\\-]", ",", YES }, { "[+-\\z]", ",", WRONG }, { "[\\z]", "z", WRONG }, { "[^a]", "b", YES },
        { "[^a]", "a", NO }, { "[]a]", "]", YES }, { "[a-\\", "b", WRONG }, { "\\", "a", WRONG }, { "\\z", "z", WRONG },
        { "\\.", ".", YES }, { ".", "\n", NO }, { ".", "x", YES }, { "a\\b.b", "a-b", YES }, { "a\\Bb", "ab", YES },
        { "a\\bb", "ab", NO }, { "\\ba", "a", YES }, { "\\B-", "-", YES }, { "a\\b", "a", YES }, { "-\\B", "-", YES },
        { "^a$", "a", YES }, { "a^b", "ab", NO }, { "a$b", "ab", NO }, { "*", "a", WRONG }, { "+", "a", WRONG },
        { "?", "a", WRONG }, { "{2}", "a", WRONG }, { "a{2}", "aa", YES }, { "a{2}", "a", NO }, { "a{,2}", "aa", YES },
        { "a{9}", "aaaaaaaaa", YES }, { "a{9}", "aaaaaaaa", NO }, { "a{0}b", "b", YES }, { "a{0}b", "ab", NO },
        { "a{10,19}", "aaaaaaaaaaaaaaaaaaa", YES }, { "a{10,19}", "aaaaaaaaa", NO },
        { "a{,2}", "aaa", NO }, { "a{2,}", "aaa", YES }, { "a{2", "aa", WRONG }, { "a{3,2}", "aa", WRONG },
        { "a{x}", "a", WRONG }, { "a{99999999}", "a", WRONG }, { "a{1:}", "a", WRONG }, { "a+?", "aa", YES },
        { "a++", "aa", WRONG }, { "a**", "aa", WRONG }, { "(?=ab)a.", "ab", YES }, { "(?!ab)a.", "ab", NO },
        { "(?=*)a", "a", WRONG }, { "(?:a|b)+", "abba", YES }, { "(?P<n>a)", "a", YES }, { "(?P<na)", "a", WRONG },
        { "(?Pn>a)", "a", WRONG },
        { "(?<a)", "a", WRONG }, { "(a", "a", WRONG }, { "a)", "a", WRONG }, { "ab?c", "ac", YES },
        { "ab?c", "abbc", NO },
        { "a|b|c", "c", YES }, { "", "", YES },
        { "((((((((((a))))))))))", "a", YES }, { "(((((((((((((((((a)))))))))))))))))", "a", WRONG },
        { "(a*)*b", "aaaa", NO }, { "(?=(?=a)a)a", "a", YES }, { "(((a{300}){300}){300})", "a", WRONG },
    };
    char text[1100];
    bool matches = false;
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        bool known = pattern_match(rows[i].pattern, rows[i].text, PATTERN_WHOLE, &matches);
        CHECK_THAT((known ? matches ? YES : NO : WRONG) == rows[i].want, "%s on %s", rows[i].pattern, rows[i].text);
    }
    CHECK(pattern_match("b", "a.b", PATTERN_TAIL, &matches) && matches);
    CHECK(pattern_match("b", "a.b", PATTERN_WHOLE, &matches) && !matches);
    memset(text, 'a', sizeof text);
    text[1024] = 0;
    CHECK(pattern_match("a*", text, PATTERN_WHOLE, &matches) && matches);
    text[1024] = 'a';
    text[1025] = 0;
    CHECK(!pattern_match("a*", text, PATTERN_WHOLE, &matches));
}

/* ---- the library's own files ---------------------------------------------------------------------------------- */

static uint8_t *model_file;
static size_t model_size;

static void make_model(void)
{
    char dir[PATH_ROOM], path[PATH_ROOM];
    uint8_t *data;
    void *aligned;
    if (model_file) return;
    tiny_write(temp_path(dir, "tiny"), false);
    test_require(convert(dir, "tiny", "f32", path), "cannot convert", dir);
    data = file_need(path, &model_size);
    test_require(posix_memalign(&aligned, 64, model_size) == 0, "out of memory", path);
    model_file = (uint8_t *)memcpy(aligned, data, model_size);
    free(data);
}

/* A header whose parts follow each other, but not inside the file, or too far in it. */
static void test_far_data(void)
{
    static const struct {
        uint64_t size, strings;
    } rows[] = { { 1 << 20, 1 << 21 }, { (uint64_t)1 << 30, (uint64_t)1 << 29 } };
    uint8_t header[JMB_HEADER_BYTES];
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jmb_metadata m;
    jamba_error error;
    size_t i;
    make_model();
    for (i = 0; i < COUNT(rows); i++) {
        memset(&m, 0, sizeof m);
        memcpy(header, model_file, sizeof header);
        tool_store_le(header + 16, rows[i].size, 8);
        tool_store_le(header + 144, rows[i].strings, 8);
        jmb_read_header(&m.header, header);
        tool_store_le(header + 24, jmb_place_parts(&m.header).data, 8);
        CHECK(jmb_parse_header(&m, header, rows[i].size, &error) == JAMBA_ERR_FORMAT);
        CHECK_THAT(error.offset == 24 && strstr(error.message, "does not follow"), "%s", error.message);
    }
    memset(&m, 0, sizeof m);
    CHECK(jmb_parse_metadata(&m, &heap, model_file, 300, model_size, &error) == JAMBA_ERR_FORMAT);
    CHECK_THAT(error.offset == 24 && strstr(error.message, "cut off"), "%s", error.message);
}

/* Of a file that says its metadata is larger than any may be, no more than the header is touched. */
static void test_large_metadata(void)
{
    void *header;
    jamba_model *model = NULL;
    jamba_error error;
    make_model();
    test_require(posix_memalign(&header, 64, JMB_HEADER_BYTES) == 0, "out of memory", "");
    memcpy(header, model_file, JMB_HEADER_BYTES);
    tool_store_le((uint8_t *)header + 24, (1u << 28) + 64, 8);
    CHECK(jamba_model_load(&model, jamba_from_memory(header, 1u << 29), NULL, &error) == JAMBA_ERR_FORMAT);
    CHECK_THAT(error.offset == 16, "%s", error.message);
    free(header);
}

/* Gives the model, and zeros behind it; or something else each time it is asked. */
typedef struct odd_reader {
    size_t calls, changes; /* the call from which on all is zero */
    const uint8_t *data;
    size_t size;
} odd_reader;

static size_t odd_read(void *user, uint64_t offset, void *dst, size_t size)
{
    odd_reader *r = (odd_reader *)user;
    size_t have = offset < r->size && ++r->calls < r->changes ? r->size - (size_t)offset : 0;
    memset(dst, 0, size);
    memcpy(dst, r->data + (have ? offset : 0), have < size ? have : size);
    return size;
}

static jamba_source odd_source(odd_reader *r, const uint8_t *data, size_t size, uint64_t whole, size_t changes)
{
    jamba_io io;
    r->calls = 0;
    r->changes = changes;
    r->data = data;
    r->size = size;
    io.read = odd_read;
    io.user = r;
    io.size = whole;
    return jamba_from_io(io);
}

/* Files are read in pieces of 64 MiB; huge pages change where the bytes lie and nothing else. */
static void test_sources(void)
{
    uint8_t *copy;
    odd_reader r;
    jamba_source none;
    jamba_model_params params;
    jamba_model *model = NULL;
    jamba_error error;
    char path[PATH_ROOM];
    memset(&params, 0, sizeof params);
    make_model();
    copy = (uint8_t *)malloc(model_size);
    memcpy(copy, model_file, model_size);
    tool_store_le(copy + 16, (1u << 26) + 64, 8);
    CHECK(jamba_model_load(&model, odd_source(&r, copy, model_size, (1u << 26) + 64, 9), NULL, &error)
        == JAMBA_ERR_FORMAT);
    CHECK_THAT(strstr(error.message, "hash differs") && r.calls == 2, "%s after %zu reads", error.message, r.calls);
    memset(copy, 'x', JMB_HEADER_BYTES); /* no model: the rest is not read */
    CHECK(jamba_model_load(&model, odd_source(&r, copy, model_size, model_size, 9), NULL, &error) == JAMBA_ERR_FORMAT);
    CHECK_THAT(strstr(error.message, "not a .jamba file") && r.calls == 1, "%s after %zu reads", error.message,
        r.calls);
    free(copy);
    memset(&none, 0, sizeof none);
    CHECK(jamba_model_load(&model, none, NULL, &error) == JAMBA_ERR_ARGUMENT);
    params.huge_pages = true;
    if (CHECK_THAT(jamba_model_load(&model, odd_source(&r, model_file, model_size, model_size, 9), &params, &error)
            == JAMBA_OK, "%s", error.message)) jamba_model_free(model);
    model = NULL;
    file_write(temp_path(path, "pages.jamba"), model_file, model_size);
    if (CHECK_THAT(jamba_model_load(&model, jamba_from_file(path), &params, &error) == JAMBA_OK, "%s", error.message))
        CHECK(!model->mapping || !JMB_HUGE_PAGES);
    jamba_model_free(model);
    remove(path);
}

/* What was looked at is looked at again when all of it has been read. */
static void test_changing_files(void)
{
    static const uint8_t none[JMB_HEAD_BYTES];
    jamba_session *session = NULL;
    jamba_session_params params;
    jamba_model *model = NULL;
    jamba_adapter adapter;
    jmb_bytes bytes;
    jamba_error error;
    memset(&params, 0, sizeof params);
    memset(&adapter, 0, sizeof adapter);
    memset(&bytes, 0, sizeof bytes);
    adapter.heap.allocator = jmb_allocator_or_default(NULL);
    params.context = 8;
    make_model();
    bytes.data = none;
    bytes.size = sizeof none;
    CHECK(jmb_take_adapter(&adapter, &bytes, &error) == JAMBA_ERR_FORMAT && strstr(error.message, "not an adapter"));
    jmb_heap_free(&adapter.heap);
    if (!CHECK(jamba_model_load(&model, jamba_from_memory(model_file, model_size), NULL, &error) == JAMBA_OK)) return;
    if (CHECK(jamba_session_create(&session, model, &params, &error) == JAMBA_OK))
        CHECK(jmb_restore(session, none, sizeof none) == JAMBA_ERR_FORMAT);
    jamba_session_free(session);
    jamba_model_free(model);
}

/* Callers that want no message, and parts of no bytes. */
static void test_sections(void)
{
    static const uint8_t data[64] = { 1 };
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jmb_section s;
    jmb_rule rule;
    memset(&s, 0, sizeof s);
    s.data = data;
    s.size = sizeof data;
    s.heap = &heap;
    CHECK(jmb_check_padding(&s, 0, 8) == JAMBA_ERR_FORMAT && jmb_check_padding(&s, 1, 8) == JAMBA_OK);
    CHECK(jmb_section_bytes(&s, 0) != NULL && s.at == 0);
    memset(&rule, 0, sizeof rule);
    rule.kind = JMB_RULE_SPACE;
    rule.from[0] = rule.to[0] = ' ';
    rule.from_size = rule.to_size = 1;
    CHECK(jmb_rule_is_sound(&rule));
    rule.to_size = 0;
    CHECK(!jmb_rule_is_sound(&rule));
    rule.kind = JMB_RULE_PREPEND;
    rule.to_size = 1;
    CHECK(!jmb_rule_is_sound(&rule));
    rule.from_size = 0;
    CHECK(jmb_rule_is_sound(&rule));
    jmb_heap_free(&heap);
}

/* Added tokens of which the normaliser leaves nothing, or too much. */
static void test_normalised_tokens(void)
{
    char text[8192], many[300];
    const char *added = strstr(words_json, "\"added_tokens\":["), *rules = strstr(words_json, "\"pre_tokenizer\"");
    static const char *const forms[] = { "{\"type\":\"Replace\",\"pattern\":{\"String\":\"X\"},\"content\":\"\"}",
        "{\"type\":\"Replace\",\"pattern\":{\"String\":\"X\"},\"content\":\"0123\"}" };
    size_t i;
    memset(many, 'X', sizeof many);
    for (i = 0; i < 2; i++) {
        snprintf(text, sizeof text, "{\"version\":\"1.0\",\"added_tokens\":[" UNK ",{\"id\":9,\"content\":\"%.*s\","
            "\"special\":false,\"normalized\":true,\"lstrip\":false,\"rstrip\":false,\"single_word\":false}],"
            "\"normalizer\":%s,%s", i ? 300 : 1, many, forms[i], rules);
        check_document(text, NULL, forms[i], "wrong size, normalised, of token 9");
    }
    CHECK(added != NULL);
}

static void test_chat_arguments(void)
{
    static const jamba_message none[1] = { { "user", NULL } }, nobody[1] = { { NULL, "hello" } };
    static jmb_string format = { "chat.format", "x" };
    jmb_metadata m;
    jamba_error error;
    memset(&m, 0, sizeof m);
    m.strings = &format;
    CHECK(jmb_chat_check(&m, NULL, 0, 0, &error) == JAMBA_ERR_UNSUPPORTED);
    m.string_count = 1;
    CHECK(jmb_chat_check(&m, NULL, 0, 0, &error) == JAMBA_OK);
    CHECK(jmb_chat_check(&m, NULL, 1, 0, &error) == JAMBA_ERR_ARGUMENT && strstr(error.message, "messages is NULL"));
    CHECK(jmb_chat_check(&m, none, 1, 0, &error) == JAMBA_ERR_ARGUMENT && strstr(error.message, "message 0 is NULL"));
    CHECK(jmb_chat_check(&m, nobody, 1, 0, &error) == JAMBA_ERR_ARGUMENT && strstr(error.message, "message 0 is NULL"));
    CHECK(jmb_chat_check(&m, NULL, 0, JAMBA_CHAT_BEGIN | JAMBA_CHAT_CONTINUE, &error) == JAMBA_ERR_ARGUMENT);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "JSON", test_json },
        { "limits of JSON", test_json_limits },
        { "headers of safetensors", test_headers },
        { "the longest header", test_long_headers },
        { "shapes and copies", test_tensors },
        { "indexes", test_indexes },
        { "tokenizer.model", test_models },
        { "pieces of bytes", test_byte_pieces },
        { "merges of equal scores", test_equal_merges },
        { "large and odd models of tokens", test_large_models },
        { "more merges than there may be", test_many_merges },
        { "lists that are too long", test_long_lists },
        { "tokenizer.json", test_tokenizers },
        { "tokens of tokenizer_config.json", test_listed_tokens },
        { "tokens named in a configuration", test_config_tokens },
        { "folders of tokenizers", test_tokenizer_folders },
        { "byte level", test_raw_tokenizers },
        { "long tokens", test_long_tokens },
        { "standard layers", test_standard_layers },
        { "configurations", test_configs },
        { "the width of a Mamba", test_mamba_width },
        { "the length of a context", test_long_context },
        { "files beside the configuration", test_folders },
        { "names", test_names },
        { "leftovers", test_leftovers },
        { "shapes of experts", test_shapes },
        { "rows of the vocabulary", test_vocab_rows },
        { "plans of model files", test_model_plans },
        { "configurations of adapters", test_lora_configs },
        { "modules of adapters", test_lora_modules },
        { "tensors of adapters", test_lora_tensors },
        { "parts of adapters", test_lora_parts },
        { "ranks of adapters", test_lora_ranks },
        { "a module's place in an adapter", test_lora_fill },
        { "adapters of shared blocks", test_lora_of_shared },
        { "adapters that are the same for a shared block", test_lora_of_equals },
        { "patterns", test_patterns },
        { "data far away", test_far_data },
        { "large metadata", test_large_metadata },
        { "large files and pages", test_sources },
        { "files that change", test_changing_files },
        { "sections without a message", test_sections },
        { "normalised tokens", test_normalised_tokens },
        { "arguments of chats", test_chat_arguments },
    };
    test_start(argc, argv);
    mkdir(temp_path(folder, "folder"), 0777);
    test_run(tests, sizeof tests / sizeof tests[0]);
    return test_summary();
}
