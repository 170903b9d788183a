/* mutate_json.h - a mutator that knows JSON: changes whole values and keys, wherever they lie in the input
 *
 * Half of the mutations stay libFuzzer's own. */
#ifndef MUTATE_JSON_H
#define MUTATE_JSON_H

#include "fuzz.h"

static const char *const json_values[] = { "0", "1", "-1", "2", "3", "7", "64", "65536", "1048576", "2147483647",
    "2147483648", "4294967295", "4294967296", "4611686018427387904", "9223372036854775807", "-9223372036854775808",
    "18446744073709551616", "0.5", "1e400", "-0", "null", "true", "false", "\"\"", "\"a\"", "\"\\u0000\"", "[]", "{}",
    "[0]", "[\"a\",0]", "{\"a\":0}", "Infinity" };
enum { JSON_VALUES = sizeof json_values / sizeof json_values[0], JSON_SPANS = 1024, JSON_NEAR = 48 };

typedef struct json_span {
    size_t start, end;
    bool key;
} json_span;

static bool is_word(uint8_t c)
{
    return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z') || c == '-' || c == '+' || c == '.';
}

/* End of the string, number or word at `at`; `at` when there is none. */
static size_t json_span_end(const uint8_t *data, size_t size, size_t at)
{
    if (data[at] != '"') {
        while (at < size && is_word(data[at])) at++;
        return at;
    }
    for (at++; at < size && data[at] != '"'; at++) at += data[at] == '\\';
    return at < size ? at + 1 : size;
}

/* Scalars and keys; containers have no end that a scan would see. */
static size_t json_list_spans(const uint8_t *data, size_t size, json_span *spans)
{
    size_t at = 0, count = 0;
    while (at < size && count < JSON_SPANS) {
        size_t end = json_span_end(data, size, at), next = end;
        if (end == at) {
            at++;
            continue;
        }
        while (next < size && data[next] == ' ') next++;
        spans[count].start = at;
        spans[count].end = end;
        spans[count++].key = next < size && data[next] == ':';
        at = end;
    }
    return count;
}

/* Puts `with` in place of a span. Stays as it is when there is no room. */
static size_t json_splice(
    uint8_t *data, size_t size, size_t max_size, const json_span *at, const uint8_t *with, size_t length)
{
    size_t rest = size - at->end;
    if (at->start + length + rest > max_size) return size;
    memmove(data + at->start + length, data + at->end, rest);
    memcpy(data + at->start, with, length);
    return at->start + length + rest;
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* A value becomes one of the list or another of the document; a key becomes another key. What stands in front, where
 * settings are, comes up more often. */
static size_t json_mutate(uint8_t *data, size_t size, size_t max_size, uint32_t seed)
{
    static json_span spans[JSON_SPANS];
    uint8_t copy[256];
    size_t count = json_list_spans(data, size, spans), near, tries, length;
    const json_span *at, *other;
    const char *value;
    if (count == 0) return LLVMFuzzerMutate(data, size, max_size);
    near = count > JSON_NEAR && next_random(&seed) % 2 ? (size_t)JSON_NEAR : count;
    at = &spans[next_random(&seed) % near];
    value = json_values[next_random(&seed) % JSON_VALUES];
    if (!at->key && next_random(&seed) % 2)
        return json_splice(data, size, max_size, at, (const uint8_t *)value, strlen(value));
    for (tries = 0; tries < 20; tries++) {
        other = &spans[next_random(&seed) % count];
        length = other->end - other->start;
        if (other->key != at->key || other == at || length > sizeof copy) continue;
        memcpy(copy, data + other->start, length);
        return json_splice(data, size, max_size, at, copy, length);
    }
    return LLVMFuzzerMutate(data, size, max_size);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    uint32_t changes = 1 + seed / 2 % 3;
    if (seed % 2) return LLVMFuzzerMutate(data, size, max_size);
    for (; changes > 0; changes--) size = json_mutate(data, size, max_size, seed + changes * 77773);
    return size;
}

#endif
