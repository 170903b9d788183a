/* json.c - tools/json.h on any bytes; whatever parses is walked whole */
#include "mutate_json.h"

#include "../../tools/json.h"

/* The nodes below the root by two ways: as they lie, and by children. */
static void walk(const json_doc *doc)
{
    const json_value *root = json_root(doc), *v, *child;
    uint32_t i;
    for (i = 0; i < root->span; i++) {
        size_t length, count = 0, sum = 1;
        int64_t integer;
        double number;
        bool truth;
        v = root + i;
        for (child = json_first(v); child; child = json_next(child), count++) sum += child->span;
        FUZZ_CHECK(count == json_count(v) && sum == v->span);
        if (json_key(v, &length)) FUZZ_CHECK(json_key(v, NULL)[length] == 0);
        if (json_string(v, &length)) FUZZ_CHECK(json_string(v, NULL)[length] == 0);
        if (json_number(v, &number)) FUZZ_CHECK(number == number);
        if (json_int(v, &integer)) FUZZ_CHECK(v->integer);
        json_bool(v, &truth);
        json_get(v, "a");
        json_at(v, 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_doc doc;
    tool_error error;
    bool ok;
    error.message[0] = 0;
    fuzz_memory_begin();
    ok = json_parse(&doc, (const char *)data, size, &error);
    if (ok) walk(&doc);
    else FUZZ_CHECK(error.message[0] && !doc.nodes && !doc.arena);
    json_free(&doc);
    fuzz_memory_end(256 + 64 * size);
    return 0;
}
