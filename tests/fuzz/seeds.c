/* seeds.c - writes the first inputs of every fuzz target: FOLDER/TARGET/NAME for each
 *
 *     seeds FOLDER        (from the top of the repository, whose test cases it packs) */
#include "../tiny.h"

#include "models.h"

static const char *target_folder;

static void need(bool ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "seeds: %s\n", what);
    exit(1);
}

static void write_seed(const char *target, const char *name, const void *data, size_t size)
{
    char path[600];
    FILE *file;
    snprintf(path, sizeof path, "%s/%s", target_folder, target);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/%s", target_folder, target, name);
    file = fopen(path, "wb");
    need(file && fwrite(data, 1, size, file) == size && fclose(file) == 0, path);
}

static void write_text(const char *target, const char *name, const char *text)
{
    write_seed(target, name, text, strlen(text));
}

/* ---- models, states, adapters ------------------------------------------------------------------------------ */

static void save_form(jamba_session *session, const jamba_save_params *params, const char *name)
{
    size_t size = jamba_session_save_as(session, params, NULL, 0);
    uint8_t *bytes = (uint8_t *)malloc(size);
    need(size > 0 && jamba_session_save_as(session, params, bytes, size) == size, "cannot save");
    write_seed("state", name, bytes, size);
    free(bytes);
}

/* A conversation, marks, things that wait; in all forms. */
static void write_states(const jamba_model *model, int which)
{
    static const char *const forms[] = { "exact", "f16", "q8" };
    static const int32_t tokens[] = { 3, 4, 5, 1, 6, 7, 8, 3, 9, 10, 4, 5, 6, 3, 2, 7, 1, 4 };
    jamba_session_params params;
    jamba_save_params form;
    jamba_sampler sampler;
    jamba_session *session;
    const char *text;
    size_t length;
    char name[64];
    int i;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 0.5f;
    for (i = 0; i < 3; i++) {
        memset(&params, 0, sizeof params);
        memset(&form, 0, sizeof form);
        params.context = 64;
        params.marks = 4;
        params.kv_type = (jamba_kv_type)((i + which) % 3);
        form.state = (jamba_form)i;
        form.kv = (jamba_form)i;
        form.marks = i != 1;
        form.sampler = i == 2 ? &sampler : NULL;
        form.no_tokens = i == 2;
        need(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK, "cannot make a session");
        need(jamba_eval(session, tokens, 4 + 7 * (size_t)i) == JAMBA_OK, "cannot evaluate");
        jamba_session_mark(session);
        if (i == 0 && jamba_say(session, "user", "ab a") == JAMBA_OK) jamba_reply(session, NULL, &text, &length);
        else need(jamba_eval(session, tokens, 3) == JAMBA_OK, "cannot evaluate");
        if (i == 1) need(jamba_feed(session, tokens, 2) == JAMBA_OK, "cannot feed");
        snprintf(name, sizeof name, "%d-%s", which, forms[i]);
        save_form(session, &form, name);
        jamba_session_free(session);
    }
}

static void write_models(void)
{
    int which;
    for (which = 0; which < FUZZ_MODELS; which++) {
        size_t size;
        uint8_t *bytes = fuzz_model(which, &size);
        jamba_model *model;
        jamba_error error;
        char name[32];
        snprintf(name, sizeof name, "%d", which);
        if (jamba_model_load(&model, jamba_from_memory(bytes, size), NULL, &error) != JAMBA_OK) need(0, error.message);
        if (which != FUZZ_HYBRID_TWIN) write_seed("model", name, bytes, size);
        if (which <= FUZZ_MAMBA2) write_states(model, which);
        jamba_model_free(model);
        free(bytes);
    }
}

static void write_adapters(void)
{
    static const int models[] = { FUZZ_HYBRID, FUZZ_ZAMBA, FUZZ_MAMBA2 };
    size_t size;
    int i;
    for (i = 0; i < 6; i++) { /* of some matrices, of all */
        uint8_t *bytes = fuzz_adapter(models[i % 3], (uint32_t)i % 3, i < 3 ? 2 : 1, i < 3 ? 3 : 1, &size);
        char name[32];
        snprintf(name, sizeof name, "%d-%s", models[i % 3], i < 3 ? "some" : "all");
        write_seed("adapter", name, bytes, size);
        free(bytes);
    }
}

/* ---- text -------------------------------------------------------------------------------------------------- */

static void write_texts(void)
{
    static const char *const texts[] = { "ab abc  a\xc3\xa9% <s></s><unk>[x \xe2\x96\x81" "a",
        "e\xcc\x81\xea\xb0\x80\xe1\x84\x80\xe1\x85\xa1",
        "a's 12\t\n ab're \xe2\x80\x83x", "\xf0\x9f\x98\x80\xff\xc3", "" };
    static const char *const chats[] = { "\x01user\0ab\0", "\x13system\0s\0user\0ab </s>\0assistant\0b\0",
        "\x17user\0a\0tool\0x\0" };
    static const size_t chat_sizes[] = { 9, 34, 15 };
    char name[32], text[200];
    uint32_t kind;
    size_t i, size;
    for (i = 0; i < 5; i++)
        for (kind = 0; kind < 4; kind++) {
            snprintf(name, sizeof name, "%d-%d", (int)i, (int)kind);
            text[0] = (char)kind;
            memcpy(text + 1, texts[i], strlen(texts[i]));
            write_seed("text", name, text, 1 + strlen(texts[i]));
        }
    for (i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%d", (int)i);
        write_seed("chat", name, chats[i], chat_sizes[i]);
    }
    for (i = 0; i < FUZZ_TOKENIZERS; i++) {
        char *json = fuzz_tokenizer_json((int)i, i == 2);
        snprintf(name, sizeof name, "%d", (int)i);
        write_text("tokenizer_json", name, json);
        free(json);
    }
    for (i = 0; i < 3; i++) {
        uint8_t *bytes = fuzz_sentencepiece((int)i, &size);
        snprintf(name, sizeof name, "%d", (int)i);
        write_seed("tokenizer_model", name, bytes, size);
        free(bytes);
    }
}

/* ---- JSON and checkpoints ------------------------------------------------------------------------------------ */

static void write_json(void)
{
    static const char *const documents[] = { "{}", "[1,-2.5e+3,0.1,true,false,null,\"a\\u00e9\\ud83d\\ude00\\n\"]",
        "{\"a\":{\"b\":[[],{}]},\"c\":9223372036854775807}", " Infinity ", "[[[[[[[[]]]]]]]]" };
    char name[16];
    size_t i;
    for (i = 0; i < 5; i++) snprintf(name, sizeof name, "%d", (int)i), write_text("json", name, documents[i]);
    write_text("safetensors", "empty", "{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}");
    write_text("safetensors", "two", "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
        "\"b.c\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[16,18]},"
        "\"d\":{\"dtype\":\"F16\",\"shape\":[3],\"data_offsets\":[18,24]},"
        "\"e\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[24,24]}}");
}

typedef struct bytes {
    uint8_t data[1 << 20];
    size_t size;
} bytes;

static void add_part(bytes *out, int number, const void *data, size_t size)
{
    const uint8_t mark[3] = { 0xff, 0xfe, (uint8_t)number };
    if (size == 0 || out->size + size + 3 > sizeof out->data) return;
    memcpy(out->data + out->size, mark, 3);
    memcpy(out->data + out->size + 3, data, size);
    out->size += size + 3;
}

static const char *const files[] = { "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model",
    "tokenizer_config.json", "chat_template.jinja", "model.safetensors.index.json", "model.safetensors",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "adapter_config.json",
    "adapter_model.safetensors" };
enum { FILES = sizeof files / sizeof files[0], FIRST_TENSORS = 7 };

static bool holds_tensors(size_t i)
{
    return i >= FIRST_TENSORS && strstr(files[i], ".json") == NULL;
}

/* A folder as hfdir.c takes it: all files, without the length in front of a checkpoint's header. */
static void pack_folder(const char *name, const char *in)
{
    static bytes out;
    size_t i, size;
    out.size = 0;
    for (i = 0; i < FILES; i++) {
        char path[PATH_ROOM];
        uint8_t *data = file_read(tiny_path(path, in, files[i]), &size);
        size_t skip = holds_tensors(i) && size > 8 ? 8 : 0;
        if (data) add_part(&out, (int)i, data + skip, size - skip);
        free(data);
    }
    write_seed("hfdir", name, out.data, out.size);
}

/* A folder as config.c takes it: config.json and the checkpoint's header. */
static void pack_headers(const char *name, const char *in)
{
    static bytes out;
    char path[PATH_ROOM];
    size_t size;
    uint8_t *data = file_need(tiny_path(path, in, files[0]), &size);
    out.size = 0;
    add_part(&out, 0, data, size);
    free(data);
    data = file_read(tiny_path(path, in, files[FIRST_TENSORS]), &size);
    if (data) add_part(&out, FIRST_TENSORS, data + 8, data[0] + 256u * data[1]);
    free(data);
    write_seed("config", name, out.data, out.size);
}

/* An adapter of one matrix, beside the model. */
static void write_lora(const char *in)
{
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"target_modules\":[\"q_proj\"],"
        "\"bias\":\"none\"}";
    tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 5 };
    char path[PATH_ROOM];
    file_write(tiny_path(path, in, "adapter_config.json"), config, strlen(config));
    tiny_matrix(&c, "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight", 2, TINY_HIDDEN);
    tiny_matrix(&c, "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight", 2 * TINY_HEAD_DIM, 2);
    tiny_write_checkpoint(tiny_path(path, in, "adapter_model.safetensors"), &c);
}

/* The tiny model as one file, in shards, with an adapter; with a tokenizer.model. */
static void write_folders(void)
{
    char in[PATH_ROOM], path[PATH_ROOM];
    static const char text[] = "{\"bos_token\":\"<s>\",\"chat_template\":\"[INST]\"}";
    uint8_t *model;
    size_t size;
    tiny_path(in, target_folder, "single");
    tiny_write(in, false);
    pack_folder("single", in);
    pack_headers("tiny", in);
    write_lora(in);
    pack_folder("lora", in);
    model = fuzz_sentencepiece(0, &size);
    file_write(tiny_path(path, in, "tokenizer.model"), model, size);
    free(model);
    remove(tiny_path(path, in, "tokenizer.json"));
    remove(tiny_path(path, in, "adapter_config.json"));
    file_write(tiny_path(path, in, "tokenizer_config.json"), text, strlen(text));
    pack_folder("pieces", in);
    tiny_path(in, target_folder, "sharded");
    tiny_write(in, true);
    remove(tiny_path(path, in, "tokenizer.json"));
    pack_folder("sharded", in);
}

static void write_cases(void)
{
    DIR *dir = opendir("tests/cases");
    const struct dirent *entry;
    char path[400];
    need(dir != NULL, "tests/cases is not there: run it from the top of the repository");
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "tests/cases/%s", entry->d_name);
        pack_headers(entry->d_name, path);
    }
    closedir(dir);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: seeds FOLDER\n");
        return 2;
    }
    target_folder = argv[1];
    mkdir(target_folder, 0777);
    write_models();
    write_adapters();
    write_texts();
    write_json();
    write_cases();
    write_folders();
    return 0;
}
