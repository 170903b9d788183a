/* tokenizer_model.c - a SentencePiece model of any bytes: compile, encode, decode */
#include "fuzz.h"

#include "../../tools/tokenizer.h"

#include "tokenizer_check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tool_buffer section = { NULL, 0, 0, false };
    tool_error error;
    bool ok;
    error.message[0] = 0;
    fuzz_memory_begin();
    ok = tokenizer_compile_model(data, size, NULL, CHECK_VOCAB, &section, &error);
    fuzz_memory_end((1 << 16) + 64 * size);
    FUZZ_CHECK(ok || (error.message[0] && !section.data));
    if (ok) check_section(&section, data, size);
    tool_buffer_free(&section);
    return 0;
}
