/* tokenizer_json.c - a tokenizer.json of any bytes, behind a zero a tokenizer_config.json: compile, encode, decode */
#include "mutate_json.h"

#include "../../tools/tokenizer.h"

#include "tokenizer_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *zero = (const uint8_t *)(size ? memchr(data, 0, size) : NULL);
    size_t first = zero ? (size_t)(zero - data) : size;
    tool_buffer section = { NULL, 0, 0, false };
    json_doc doc, config;
    tool_error error;
    bool ok;
    memset(&config, 0, sizeof config);
    if (!json_parse(&doc, (const char *)data, first, &error)) return 0;
    if (zero) json_parse(&config, (const char *)zero + 1, size - first - 1, &error); /* empty when it fails */
    error.message[0] = 0;
    fuzz_memory_begin();
    ok = tokenizer_compile_json(json_root(&doc), json_root(&config), CHECK_VOCAB, &section, &error);
    fuzz_memory_end((1 << 16) + 64 * size);
    FUZZ_CHECK(ok || (error.message[0] && !section.data));
    if (ok) check_section(&section, data, size);
    tool_buffer_free(&section);
    json_free(&doc);
    json_free(&config);
    return 0;
}
