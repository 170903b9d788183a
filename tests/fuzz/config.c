/* config.c - a config.json and the header of a checkpoint, in parts 0 and 7: the whole plan of a conversion
 *
 * The checkpoint's data are zeros without end. What is planned, the library takes as a program. */
#include "mutate_json.h"

#include "../../tools/families.h"

/* `size` of data behind a header. */
enum { DATA = 1 << 30 };

static bool open_checkpoint(st_checkpoint *c, const char *text, size_t size, uint64_t data, tool_error *error)
{
    uint32_t index;
    if (size == 0 || text[0] != '{') return false; /* as its caller asks first */
    c->dir = "/nowhere";
    if (!st_add_shard(c, "model.safetensors", &index, error)) return false;
    c->shards[0].file = open("/dev/zero", O_RDONLY);
    return st_parse_header(c, index, text, size, 8 + size + data, error) && st_sort(c, error);
}

/* What the header's offsets end with. */
static uint64_t data_size(const char *text, size_t size)
{
    json_doc doc;
    tool_error error;
    uint64_t most = 0;
    const json_value *v;
    int64_t end;
    if (!json_parse(&doc, text, size, &error)) return 0;
    for (v = json_first(json_root(&doc)); v; v = json_next(v))
        if (json_int(json_at(json_get(v, "data_offsets"), 1), &end) && end > 0 && (uint64_t)end > most)
            most = (uint64_t)end;
    json_free(&doc);
    return most < DATA ? most : 0;
}

static void plan(const json_value *root, const char *text, size_t size)
{
    convert_plan plan;
    tool_error error;
    uint32_t i;
    memset(&plan, 0, sizeof plan);
    plan.config_path = tool_path_join("/nowhere", "config.json");
    if (open_checkpoint(&plan.checkpoint, text, size, data_size(text, size), &error)
        && plan_apply_config(&plan, root, JMB_Q8, &error) && plan_find_sources(&plan, &error)
        && plan_check_leftovers(&plan, &error)) {
        for (i = 0; i < plan.model.header.tensors; i++)
            FUZZ_CHECK(plan.sources[i][0].tensor || plan.sources[i][0].values);
        plan_limit_dt(&plan, 0, 1);
    }
    plan_free(&plan);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = { data, size };
    const uint8_t *parts[8] = { NULL }, *part;
    size_t sizes[8] = { 0 }, part_size;
    json_doc doc;
    tool_error error;
    int number;
    while (fuzz_next_part(&in, &number, &part, &part_size))
        if (number < 8) parts[number] = part, sizes[number] = part_size;
    if (!parts[0] || !json_parse(&doc, (const char *)parts[0], sizes[0], &error)) return 0;
    fuzz_memory_begin();
    plan(json_root(&doc), parts[7] ? (const char *)parts[7] : "{}", parts[7] ? sizes[7] : 2);
    /* blocks and tensors of the largest program that a config can name; then of the input */
    fuzz_memory_end(((size_t)96 << 20) + 256 * size);
    json_free(&doc);
    return 0;
}
