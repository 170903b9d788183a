/* json.h - a strict RFC 8259 parser for untrusted bytes.
 *
 * One flat array of nodes in document order: a container is followed by its children, so walking is
 * pointer arithmetic and nothing recurses. All text is decoded into one arena. Beyond the standard,
 * a bare Infinity is a number: transformers 4.x wrote it. Duplicate keys are an error.
 *
 *     json_doc doc;
 *     if (!json_parse(&doc, text, size, &error)) ...
 *     json_int(json_get(json_root(&doc), "hidden_size"), &hidden)
 *     json_free(&doc);
 *
 * Every accessor accepts NULL, which is a value of no kind.
 */
#ifndef JSON_H
#define JSON_H

#include "tool.h"

typedef enum json_type { JSON_NONE, JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_type;

/* Small, because a hostile document has one for every two bytes. */
typedef struct json_value {
    const char *text;    /* key of a member, then string or digits; each terminated */
    uint32_t key_length; /* of a member */
    uint32_t length;     /* of the string in bytes; children of a container; 0 or 1 of a boolean */
    uint32_t span;       /* nodes of this value, itself and all below */
    uint8_t kind;
    bool member;  /* has a key */
    bool last;    /* no sibling follows */
    bool integer; /* a number written as one */
} json_value;

typedef struct json_doc {
    json_value *nodes;
    char *arena;
} json_doc;

enum { JSON_MAX_DEPTH = 64, JSON_MAX_BYTES = 1 << 28 };

/* ---- access -------------------------------------------------------------------------------- */

JMB_UNUSED static const json_value *json_root(const json_doc *doc)
{
    return doc->nodes;
}

JMB_UNUSED static json_type json_kind(const json_value *v)
{
    return v ? (json_type)v->kind : JSON_NONE;
}

/* Members of an object, items of an array. */
JMB_UNUSED static size_t json_count(const json_value *v)
{
    return v && v->kind >= JSON_ARRAY ? v->length : 0;
}

JMB_UNUSED static const json_value *json_first(const json_value *v)
{
    return json_count(v) > 0 ? v + 1 : NULL;
}

/* The sibling after v, NULL at the end. */
JMB_UNUSED static const json_value *json_next(const json_value *v)
{
    return v && !v->last ? v + v->span : NULL;
}

/* Name of a member; `length` may be NULL. */
JMB_UNUSED static const char *json_key(const json_value *v, size_t *length)
{
    if (length) *length = v ? v->key_length : 0;
    return v && v->member ? v->text : NULL;
}

/* NULL when v is no object or lacks the key. Linear: walk with json_next() to see every member. */
JMB_UNUSED static const json_value *json_get(const json_value *v, const char *key)
{
    const json_value *member = json_kind(v) == JSON_OBJECT ? json_first(v) : NULL;
    size_t length = strlen(key);
    while (member && (member->key_length != length || memcmp(member->text, key, length) != 0))
        member = json_next(member);
    return member;
}

JMB_UNUSED static const json_value *json_at(const json_value *v, size_t index)
{
    const json_value *item = json_first(v);
    for (; item && index > 0; index--) item = json_next(item);
    return item;
}

/* The decoded string or the digits of a number. */
static const char *json_value_text(const json_value *v)
{
    return v->member ? v->text + v->key_length + 1 : v->text;
}

/* Terminated, but it may contain NUL bytes too: compare lengths where that matters. `length` may be NULL. */
JMB_UNUSED static const char *json_string(const json_value *v, size_t *length)
{
    bool is_string = json_kind(v) == JSON_STRING;
    if (length) *length = is_string ? v->length : 0;
    return is_string ? json_value_text(v) : NULL;
}

JMB_UNUSED static bool json_is_string(const json_value *v, const char *text)
{
    size_t length = strlen(text);
    return json_kind(v) == JSON_STRING && v->length == length && memcmp(json_value_text(v), text, length) == 0;
}

/* True only for a number written as an integer that fits. */
JMB_UNUSED static bool json_int(const json_value *v, int64_t *out)
{
    long long value;
    if (json_kind(v) != JSON_NUMBER || !v->integer) return false;
    errno = 0;
    value = strtoll(json_value_text(v), NULL, 10);
    if (errno) return false;
    *out = value;
    return true;
}

/* The nearest double: infinite when the number is too large. */
JMB_UNUSED static bool json_number(const json_value *v, double *out)
{
    if (json_kind(v) != JSON_NUMBER) return false;
    *out = strtod(json_value_text(v), NULL);
    return true;
}

JMB_UNUSED static bool json_bool(const json_value *v, bool *out)
{
    if (json_kind(v) != JSON_BOOL) return false;
    *out = v->length != 0;
    return true;
}

JMB_UNUSED static void json_free(json_doc *doc)
{
    free(doc->nodes);
    free(doc->arena);
    doc->nodes = NULL;
    doc->arena = NULL;
}

/* ---- parsing ------------------------------------------------------------------------------- */

typedef struct json_parser {
    const uint8_t *text, *p, *end;
    json_value *nodes;
    uint32_t count;
    char *arena, *out; /* decoded text; never longer than the input and two bytes */
    uint32_t open[JSON_MAX_DEPTH], last[JSON_MAX_DEPTH]; /* containers being read, and their newest child */
    int depth;
    const char *key; /* of the next value; NULL in an array */
    uint32_t key_length;
    tool_error *error;
} json_parser;

static bool json_fail(json_parser *s, const char *what)
{
    return tool_error_set(s->error, "not valid JSON at byte %zu: %s", (size_t)(s->p - s->text), what);
}

static void json_skip_space(json_parser *s)
{
    while (s->p < s->end && (*s->p == ' ' || *s->p == '\n' || *s->p == '\r' || *s->p == '\t')) s->p++;
}

static void json_put_utf8(json_parser *s, uint32_t c)
{
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4, i;
    static const uint8_t lead[5] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (i = n - 1; i > 0; i--) {
        s->out[i] = (char)(0x80 | (c & 0x3f));
        c >>= 6;
    }
    s->out[0] = (char)(lead[n] | c);
    s->out += n;
}

/* Four hexadecimal digits at p. */
static bool json_hex4(json_parser *s, uint32_t *out)
{
    uint32_t value = 0;
    int i;
    for (i = 0; i < 4; i++) {
        uint8_t c = s->p + i < s->end ? s->p[i] : 0;
        if (c >= '0' && c <= '9') value = value << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f') value = value << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else return json_fail(s, "\\u needs four hexadecimal digits");
    }
    s->p += 4;
    *out = value;
    return true;
}

/* After "\u". */
static bool json_unicode_escape(json_parser *s)
{
    uint32_t c = 0, low = 0;
    if (!json_hex4(s, &c)) return false;
    if (c >= 0xdc00 && c < 0xe000) return json_fail(s, "a lone surrogate");
    if (c >= 0xd800 && c < 0xdc00) {
        if (s->end - s->p < 2 || s->p[0] != '\\' || s->p[1] != 'u') return json_fail(s, "a lone surrogate");
        s->p += 2;
        if (!json_hex4(s, &low)) return false;
        if (low < 0xdc00 || low >= 0xe000) return json_fail(s, "a lone surrogate");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
    }
    json_put_utf8(s, c);
    return true;
}

/* After the backslash. */
static bool json_escape(json_parser *s)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *found;
    if (s->p == s->end) return json_fail(s, "the string does not end");
    if (*s->p == 'u') {
        s->p++;
        return json_unicode_escape(s);
    }
    found = *s->p ? strchr(from, *s->p) : NULL;
    if (!found) return json_fail(s, "an unknown escape");
    *s->out++ = to[found - from];
    s->p++;
    return true;
}

/* At the opening quote. The decoded text, terminated. */
static bool json_read_string(json_parser *s, const char **text, uint32_t *length)
{
    char *start = s->out;
    for (s->p++;;) {
        int n;
        if (s->p == s->end) return json_fail(s, "the string does not end");
        if (*s->p == '"') break;
        if (*s->p == '\\') {
            s->p++;
            if (!json_escape(s)) return false;
            continue;
        }
        if (*s->p < 0x20) return json_fail(s, "a control character in a string");
        n = jmb_utf8(s->p, (size_t)(s->end - s->p));
        if (n <= 0) return json_fail(s, "not valid UTF-8");
        while (n-- > 0) *s->out++ = (char)*s->p++;
    }
    s->p++;
    *text = start;
    *length = (uint32_t)(s->out - start);
    *s->out++ = 0;
    return true;
}

static bool json_is_digit(const json_parser *s)
{
    return s->p < s->end && *s->p >= '0' && *s->p <= '9';
}

static bool json_skip_digits(json_parser *s)
{
    if (!json_is_digit(s)) return json_fail(s, "a digit is missing");
    while (json_is_digit(s)) s->p++;
    return true;
}

/* Moves over the number and says whether it is written as an integer. */
static bool json_scan_number(json_parser *s, bool *integer)
{
    *integer = true;
    if (*s->p == '-') s->p++;
    if (s->p < s->end && *s->p == '0') s->p++;
    else if (!json_skip_digits(s)) return false;
    if (json_is_digit(s)) return json_fail(s, "a number with a leading zero");
    if (s->p < s->end && *s->p == '.') {
        *integer = false;
        s->p++;
        if (!json_skip_digits(s)) return false;
    }
    if (s->p < s->end && (*s->p | 32) == 'e') {
        *integer = false;
        s->p++;
        if (s->p < s->end && (*s->p == '+' || *s->p == '-')) s->p++;
        if (!json_skip_digits(s)) return false;
    }
    return true;
}

/* Keeps the digits: most numbers are never asked for. */
static bool json_read_number(json_parser *s, json_value *v)
{
    const uint8_t *start = s->p;
    const char *point = localeconv()->decimal_point;
    size_t length;
    char *dot;
    if (!json_scan_number(s, &v->integer)) return false;
    length = (size_t)(s->p - start);
    memcpy(s->out, start, length);
    s->out[length] = 0;
    dot = (char *)memchr(s->out, '.', length);
    if (dot && point[1]) return json_fail(s, "this locale cannot read numbers");
    if (dot) *dot = point[0]; /* strtod obeys the host's locale */
    s->out += length + 1;
    return true;
}

static bool json_word(json_parser *s, const char *word)
{
    size_t length = strlen(word);
    if ((size_t)(s->end - s->p) < length || memcmp(s->p, word, length) != 0) return false;
    s->p += length;
    return true;
}

static bool json_read_scalar(json_parser *s, json_value *v)
{
    const char *text;
    if (s->p == s->end) return json_fail(s, "the text ends where a value should be");
    v->kind = JSON_NUMBER;
    if (*s->p == '-' || json_is_digit(s)) return json_read_number(s, v);
    if (json_word(s, "Infinity")) {
        memcpy(s->out, "Infinity", 9); /* which strtod knows too */
        s->out += 9;
        return true;
    }
    v->kind = JSON_STRING;
    if (*s->p == '"') return json_read_string(s, &text, &v->length);
    v->kind = JSON_BOOL;
    v->length = 1;
    if (json_word(s, "true")) return true;
    v->length = 0;
    if (json_word(s, "false")) return true;
    v->kind = JSON_NULL;
    return json_word(s, "null") || json_fail(s, "a value should be here");
}

/* Nodes that a valid document of these bytes has at most: each but the first follows its own comma or bracket. */
static size_t json_count_nodes(const uint8_t *p, const uint8_t *end)
{
    size_t count = 1;
    bool quoted = false;
    for (; p < end; p++) {
        if (*p == '"') quoted = !quoted;
        else if (quoted) p += *p == '\\' && p + 1 < end;
        else count += *p == ',' || *p == '[' || *p == '{';
    }
    return count;
}

/* A new node as child of the innermost open container. */
static json_value *json_new_node(json_parser *s)
{
    json_value *v = &s->nodes[s->count];
    if (s->depth > 0) {
        s->nodes[s->open[s->depth - 1]].length++;
        s->last[s->depth - 1] = s->count;
    }
    s->count++;
    memset(v, 0, sizeof *v);
    v->member = s->key != NULL;
    v->text = v->member ? s->key : s->out;
    v->key_length = s->key_length;
    v->span = 1;
    v->last = true;
    return v;
}

static int json_compare_keys(const void *a, const void *b)
{
    const json_value *x = *(const json_value *const *)a, *y = *(const json_value *const *)b;
    if (x->key_length != y->key_length) return x->key_length < y->key_length ? -1 : 1;
    return memcmp(x->text, y->text, x->key_length);
}

/* Sorting keeps objects of a hundred thousand keys fast whatever the keys are. */
static bool json_check_keys(json_parser *s, const json_value *object)
{
    size_t i = 0, count = object->length;
    const json_value *member, **sorted;
    bool unique = true;
    if (count < 2) return true;
    sorted = (const json_value **)malloc(count * sizeof *sorted);
    if (!sorted) return tool_no_memory(s->error);
    for (member = object + 1; i < count; member += member->span) sorted[i++] = member;
    qsort(sorted, count, sizeof *sorted, json_compare_keys);
    for (i = 1; i < count && unique; i++)
        if (json_compare_keys(&sorted[i - 1], &sorted[i]) == 0) {
            char key[96];
            snprintf(key, sizeof key, "the key \"%.60s\" twice in one object", sorted[i]->text);
            unique = json_fail(s, key);
        }
    free(sorted);
    return unique;
}

static bool json_open(json_parser *s, json_value *v)
{
    if (s->depth == JSON_MAX_DEPTH) return json_fail(s, "nested more than 64 deep");
    v->kind = *s->p == '{' ? JSON_OBJECT : JSON_ARRAY;
    s->open[s->depth++] = (uint32_t)(v - s->nodes);
    s->p++;
    return true;
}

static bool json_close(json_parser *s)
{
    uint32_t index = s->open[--s->depth];
    json_value *v = &s->nodes[index];
    s->p++;
    v->span = s->count - index;
    return v->kind != JSON_OBJECT || json_check_keys(s, v);
}

/* In an object: the key and its colon. */
static bool json_read_key(json_parser *s)
{
    s->key = NULL;
    s->key_length = 0;
    if (s->depth == 0 || s->nodes[s->open[s->depth - 1]].kind != JSON_OBJECT) return true;
    if (s->p == s->end || *s->p != '"') return json_fail(s, "a key in double quotes should be here");
    if (!json_read_string(s, &s->key, &s->key_length)) return false;
    json_skip_space(s);
    if (s->p == s->end || *s->p != ':') return json_fail(s, "a colon should be here");
    s->p++;
    json_skip_space(s);
    return true;
}

static bool json_at_close(const json_parser *s)
{
    return s->depth > 0 && s->p < s->end && *s->p == (s->nodes[s->open[s->depth - 1]].kind == JSON_OBJECT ? '}' : ']');
}

/* After a value: closes what ends here. *more says whether another value follows. */
static bool json_after_value(json_parser *s, bool *more)
{
    json_skip_space(s);
    while (json_at_close(s)) {
        if (!json_close(s)) return false;
        json_skip_space(s);
    }
    *more = s->depth > 0;
    if (!*more) return s->p == s->end || json_fail(s, "something follows the value");
    if (s->p == s->end || *s->p != ',') return json_fail(s, "a comma or the end of the container should be here");
    s->p++;
    s->nodes[s->last[s->depth - 1]].last = false;
    json_skip_space(s);
    return true;
}

static bool json_run(json_parser *s)
{
    bool more = true;
    json_skip_space(s);
    while (more) {
        json_value *v;
        if (!json_read_key(s)) return false;
        v = json_new_node(s);
        if (s->p < s->end && (*s->p == '{' || *s->p == '[')) {
            if (!json_open(s, v)) return false;
            json_skip_space(s);
            if (!json_at_close(s)) continue;
        } else if (!json_read_scalar(s, v)) return false;
        if (!json_after_value(s, &more)) return false;
    }
    return true;
}

/* On failure the message gives the byte offset and *doc is empty. */
JMB_UNUSED static bool json_parse(json_doc *doc, const char *text, size_t size, tool_error *error)
{
    json_parser s;
    bool ok;
    memset(&s, 0, sizeof s);
    memset(doc, 0, sizeof *doc);
    if (size > JSON_MAX_BYTES) return tool_error_set(error, "more than 256 MiB of JSON");
    s.text = s.p = (const uint8_t *)text;
    s.end = s.text + size;
    s.error = error;
    s.arena = s.out = (char *)malloc(size + 2);
    s.nodes = (json_value *)malloc(json_count_nodes(s.p, s.end) * sizeof *s.nodes);
    ok = s.arena && s.nodes ? json_run(&s) : tool_no_memory(error);
    doc->nodes = s.nodes;
    doc->arena = s.arena;
    if (!ok) json_free(doc);
    return ok;
}

/* Reads and parses one file; messages name it. */
JMB_UNUSED static bool json_read_file(json_doc *doc, const char *path, tool_error *error)
{
    uint8_t *data;
    size_t size;
    tool_error inner;
    bool ok;
    memset(doc, 0, sizeof *doc);
    if (!tool_read_file(path, JSON_MAX_BYTES, &data, &size, error)) return false;
    ok = json_parse(doc, (const char *)data, size, &inner);
    free(data);
    return ok || tool_error_set(error, "%s: %s", path, inner.message);
}

#endif
