/* hfdir.c - a whole checkpoint folder in one input, converted: its files are parts, numbered as in `names`
 *
 * With the two files of an adapter it is merged, and made an adapter file for the result. What converts, loads. The
 * folder is in memory where the system has /dev/shm. */
#include "mutate_json.h"

#define main convert_main
#include "../../tools/convert.c"
#undef main

static const char *const names[] = { "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "chat_template.jinja", "model.safetensors.index.json", "model.safetensors",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "adapter_config.json",
    "adapter_model.safetensors" };
enum { NAMES = sizeof names / sizeof names[0], ADAPTER = 10 };

static char folder[64], out_path[96], lora_path[96];

/* The files that stand in the folder, as the last input left them: most of them come again. */
static struct {
    uint8_t *data;
    size_t size;
} kept[NAMES];

static void remove_part(int number)
{
    char path[160];
    if (!kept[number].data) return;
    snprintf(path, sizeof path, "%s/%s", folder, names[number]);
    unlink(path);
    free(kept[number].data);
    kept[number].data = NULL;
}

static void remove_folder(void)
{
    int i;
    for (i = 0; i < NAMES; i++) remove_part(i);
    unlink(out_path);
    unlink(lora_path);
    rmdir(folder);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    snprintf(folder, sizeof folder, "%s/jamba-hfdir-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    FUZZ_CHECK(mkdtemp(folder) != NULL);
    snprintf(out_path, sizeof out_path, "%s/out.jamba", folder);
    snprintf(lora_path, sizeof lora_path, "%s/out.jamba-lora", folder);
    atexit(remove_folder);
    return 0;
}

/* The header of a checkpoint file ends with its first two closing braces. */
static size_t header_size(const uint8_t *data, size_t size)
{
    const uint8_t *p = data, *end = data + size;
    while ((p = (const uint8_t *)memchr(p, '}', (size_t)(end - p))) != NULL && ++p < end)
        if (*p == '}') return (size_t)(p + 1 - data);
    return size;
}

/* One part of the input. A checkpoint file has its header's length in front, which no mutation would keep. */
static void write_part(int number, const uint8_t *data, size_t size)
{
    char path[160];
    uint8_t length[8];
    FILE *file;
    if (kept[number].data && kept[number].size == size && memcmp(kept[number].data, data, size) == 0) return;
    free(kept[number].data);
    kept[number].data = (uint8_t *)fuzz_string(data, size);
    kept[number].size = size;
    snprintf(path, sizeof path, "%s/%s", folder, names[number]);
    file = fopen(path, "wb");
    FUZZ_CHECK(file != NULL);
    if (strstr(names[number], ".safetensors") && !strstr(names[number], ".json")) {
        tool_store_le(length, header_size(data, size), 8);
        fwrite(length, 1, 8, file);
    }
    fwrite(data, 1, size, file);
    fclose(file);
}

static bool convert(bool merge, tool_error *error)
{
    convert_plan plan;
    convert_text text;
    lora_set lora;
    bool ok;
    memset(&text, 0, sizeof text);
    memset(&lora, 0, sizeof lora);
    if (merge && !lora_open(&lora, folder, error)) return false;
    ok = plan_make(&plan, folder, JMB_Q8, merge ? &lora : NULL, error);
    if (ok && text_make(&text, &plan, NULL, error) && plan_place(&plan, &text, error))
        ok = write_model(&plan, &text, out_path, true, error);
    else ok = false;
    text_free(&text);
    plan_free(&plan);
    lora_close(&lora);
    return ok;
}

static void check_model(void)
{
    jamba_model_params params;
    jamba_model *model;
    memset(&params, 0, sizeof params);
    params.verify = true;
    FUZZ_CHECK(jamba_model_load(&model, jamba_from_file(out_path), &params, NULL) == JAMBA_OK);
    jamba_model_free(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_input in = { data, size };
    uint32_t written = 0;
    const uint8_t *part;
    size_t part_size;
    tool_error error;
    int number;
    while (fuzz_next_part(&in, &number, &part, &part_size))
        if (number < NAMES) write_part(number, part, part_size), written |= 1u << number;
    for (number = 0; number < NAMES; number++)
        if (!(written >> number & 1)) remove_part(number);
    error.message[0] = 0;
    fuzz_memory_begin();
    if (convert((written >> ADAPTER & 3) == 3, &error)) check_model();
    else FUZZ_CHECK(error.message[0] && access(out_path, F_OK) != 0);
    if ((written >> ADAPTER & 3) == 3 && convert(false, &error)) {
        check_model();
        adapter_convert(folder, out_path, lora_path, JMB_F32, true, &error);
    }
    fuzz_memory_end(((size_t)160 << 20) + 256 * size);
    unlink(out_path);
    unlink(lora_path);
    return 0;
}
