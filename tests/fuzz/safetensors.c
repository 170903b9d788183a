/* safetensors.c - the header of a checkpoint file; how much data follows is the last number in it */
#include "mutate_json.h"

#include "../../tools/families.h"

static volatile unsigned empty_seen;

static void check_tensor(const st_tensor *t, uint64_t start, uint64_t end)
{
    uint64_t bytes = st_dtype_bytes(t->dtype), i;
    bool empty = false;
    for (i = 0; i < t->rank; i++) empty = empty || t->shape[i] == 0;
    for (i = 0; i < t->rank; i++) FUZZ_CHECK(!__builtin_mul_overflow(bytes, t->shape[i], &bytes) || empty);
    if (empty) {
        empty_seen++; /* a branch of its own, so that such an input is kept */
        bytes = 0;
    }
    FUZZ_CHECK(bytes == t->bytes && t->offset >= start && t->bytes <= end && t->offset <= end - t->bytes);
}

/* The last number. */
static uint64_t claimed(const uint8_t *data, size_t size)
{
    uint64_t value = 0, scale = 1;
    while (size > 0 && (data[size - 1] < '0' || data[size - 1] > '9')) size--;
    for (; size > 0 && data[size - 1] >= '0' && data[size - 1] <= '9' && scale < 1000000000000u; size--, scale *= 10)
        value += (uint64_t)(data[size - 1] - '0') * scale;
    return value;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    st_checkpoint c;
    tool_error error;
    uint32_t index;
    uint64_t end = 8 + size + claimed(data, size);
    size_t i;
    bool ok;
    if (size == 0 || data[0] != '{') return 0; /* as its caller asks first */
    memset(&c, 0, sizeof c);
    c.dir = "folder";
    fuzz_memory_begin();
    ok = st_add_shard(&c, "model.safetensors", &index, &error)
        && st_parse_header(&c, index, (const char *)data, size, end, &error) && st_sort(&c, &error);
    for (i = 0; i < c.count && ok; i++) {
        check_tensor(&c.tensors[i], 8 + size, end);
        FUZZ_CHECK(st_find(&c, c.tensors[i].name) == &c.tensors[i]);
    }
    st_close(&c);
    fuzz_memory_end(4096 + 100 * size);
    return 0;
}
