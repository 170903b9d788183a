/* export.c - model files exported to a checkpoint folder and converted again: the same bytes, or a refusal that
 * leaves nothing behind.
 */
#include "tiny.h"

static char made[PATH_ROOM], first[PATH_ROOM], again[PATH_ROOM], exported[PATH_ROOM], errors[2000];

static const char *in_folder(char path[PATH_ROOM + 64], const char *folder, const char *name)
{
    snprintf(path, PATH_ROOM + 64, "%s/%s", folder, name);
    return path;
}

/* ---- folders ---------------------------------------------------------------------------------- */

static const char *const file_names[] = { "config.json", "generation_config.json", "model.safetensors",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja", "other" };
enum { FILE_NAMES = sizeof file_names / sizeof file_names[0] };

static void remove_folder(const char *folder)
{
    char path[PATH_ROOM + 64];
    int i;
    for (i = 0; i < FILE_NAMES; i++) unlink(in_folder(path, folder, file_names[i]));
    rmdir(folder);
}

static void copy_file(const char *from, const char *to)
{
    size_t size;
    uint8_t *data = file_read(from, &size);
    if (data) file_write(to, data, size);
    free(data);
}

/* The folder to convert, with copies of what `from` has of the named files. */
static void make_folder(const char *from)
{
    char source[PATH_ROOM + 64], target[PATH_ROOM + 64];
    int i;
    remove_folder(made);
    mkdir(made, 0777);
    for (i = 0; i < FILE_NAMES && from; i++)
        copy_file(in_folder(source, from, file_names[i]), in_folder(target, made, file_names[i]));
}

/* The storyteller's checkpoint without its text files. */
static void make_textless_story(void)
{
    char path[PATH_ROOM + 64];
    int i;
    make_folder("examples/storyteller");
    for (i = 3; i < FILE_NAMES; i++) unlink(in_folder(path, made, file_names[i]));
}

static void write_made(const char *name, const char *text, size_t size)
{
    char path[PATH_ROOM + 64];
    file_write(in_folder(path, made, name), text, size);
}

/* Puts `to` for every `from`, of the same length or shorter, in a file of the folder. */
static void edit_made(const char *name, const char *from, const char *to)
{
    char path[PATH_ROOM + 64], *text, *at;
    size_t size;
    text = (char *)file_need(in_folder(path, made, name), &size);
    test_require(strstr(text, from) && strlen(to) <= strlen(from), "cannot edit", name);
    for (at = text; (at = strstr(at, from)) != NULL; at += strlen(to)) {
        memmove(at + strlen(to), at + strlen(from), strlen(at + strlen(from)) + 1);
        memcpy(at, to, strlen(to));
    }
    file_write(path, text, strlen(text));
    free(text);
}

/* Puts `text` in the place of everything from `from` to the first `to` behind it. */
static void replace_made(const char *name, const char *from, const char *to, const char *text)
{
    char path[PATH_ROOM + 64], *data, *start, *end, *out;
    size_t size;
    data = (char *)file_need(in_folder(path, made, name), &size);
    start = strstr(data, from);
    end = start ? strstr(start, to) : NULL;
    out = (char *)malloc(size + strlen(text) + 1);
    test_require(end && out, "cannot edit", name);
    sprintf(out, "%.*s%s%s", (int)(start - data), data, text, end + strlen(to));
    file_write(path, out, strlen(out));
    free(out);
    free(data);
}

/* ---- running ---------------------------------------------------------------------------------- */

/* convert FOLDER OUT --type TYPE [OPTION VALUE] */
static int run_convert(const char *folder, const char *out, const char *type, const char *option, const char *value)
{
    const char *arguments[] = { folder, out, "--type", type, "--force", option, value, NULL };
    return tool_run("convert", arguments, errors, sizeof errors);
}

static int run_export(const char *model, const char *folder, const char *option)
{
    const char *arguments[] = { model, folder, option, NULL };
    return tool_run("export", arguments, errors, sizeof errors);
}

static bool same_files(const char *a, const char *b)
{
    size_t a_size, b_size;
    uint8_t *x = file_need(a, &a_size), *y = file_need(b, &b_size);
    bool same = a_size == b_size && memcmp(x, y, a_size) == 0;
    free(x);
    free(y);
    return same;
}

/* Converts, exports, and converts the export with the same option, which may be NULL. */
static void check_with(const char *folder, const char *type, const char *option, const char *value)
{
    remove_folder(exported);
    if (!CHECK_THAT(run_convert(folder, first, type, option, value) == 0, "convert: %s", errors)) return;
    if (!CHECK_THAT(run_export(first, exported, NULL) == 0, "export: %s", errors)) return;
    if (!option) CHECK_THAT(errors[0] == 0, "export says %s", errors);
    if (!CHECK_THAT(run_convert(exported, again, type, option, value) == 0, "convert again: %s", errors)) return;
    CHECK_THAT(same_files(first, again), "the export of %s as %s converts to other bytes", folder, type);
}

/* No option the second time: the export says it all by itself. */
static void check_told(const char *type, const char *option, const char *value)
{
    remove_folder(exported);
    if (!CHECK_THAT(run_convert(made, first, type, option, value) == 0, "convert: %s", errors)) return;
    if (!CHECK_THAT(run_export(first, exported, NULL) == 0 && errors[0] == 0, "export: %s", errors)) return;
    CHECK_THAT(run_convert(exported, again, type, NULL, NULL) == 0, "convert again: %s", errors);
    CHECK_THAT(same_files(first, again), "%s %s: the export converts to other bytes", option, value);
}

/* An export that fails with `message` and leaves neither the folder nor a part of it. */
static void check_refused(const char *model, const char *message)
{
    char part[PATH_ROOM + 8];
    remove_folder(exported);
    snprintf(part, sizeof part, "%s.part", exported);
    CHECK(run_export(model, exported, NULL) == 1);
    CHECK_THAT(strstr(errors, message), "no \"%s\" in: %s", message, errors);
    CHECK(!file_exists(exported) && !file_exists(part));
}

/* ---- golden cases ----------------------------------------------------------------------------- */

static void test_golden(const golden_case *c)
{
    char folder[PATH_ROOM];
    snprintf(folder, sizeof folder, "tests/cases/%s", c->name);
    if (test_begin("%s f32", c->name)) {
        check_with(folder, "f32", NULL, NULL);
        test_end();
    }
    if (strcmp(c->stored, "f32") != 0 && test_begin("%s %s", c->name, c->stored)) {
        check_with(folder, c->stored, NULL, NULL);
        test_end();
    }
}

/* ---- settings that are derived ------------------------------------------------------------------ */

/* RoPE is stored as frequencies only. The case's own settings are at theta 10000. */
static void test_rope(void)
{
    static const char *const settings[] = {
        "\"rope_theta\": 500000.0",
        "\"rope_theta\": 1000042.5",
        "\"rope_theta\": 10000.0, \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2.5}",
        "\"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
        "\"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 32.0, "
        "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}",
        "\"rope_theta\": 1000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 4.0, "
        "\"low_freq_factor\": 2.0, \"high_freq_factor\": 8.0, \"original_max_position_embeddings\": 256}",
    };
    size_t i;
    for (i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        make_folder("tests/cases/llama");
        replace_made("config.json", "\"rope_parameters\"", "}", settings[i]);
        check_with(made, "f32", NULL, NULL);
    }
}

/* convert --dt-limit: Mamba-2 has a key for it, Zamba2 only for its lower end. */
static void test_limits(void)
{
    make_folder("tests/cases/mamba2-groups");
    check_told("f32", "--dt-limit", "0.01,inf");
    check_told("f32", "--dt-limit", "0.01,0.3");
    make_folder("tests/cases/zamba2-dt-min");
    check_told("f32", "--dt-limit", "0.01,inf");
    check_with(made, "f32", "--dt-limit", "0.01,0.3");
    CHECK(run_export(first, exported, "--force") == 0);
    CHECK_THAT(strstr(errors, "--dt-limit 0.01,0.3"), "%s", errors);
}

/* ---- tokenizers ------------------------------------------------------------------------------- */

/* The text between `before` and the last `after` in a line; NULL when there is none. */
static char *between(char *line, const char *before, const char *after)
{
    char *start = strstr(line, before), *end = NULL, *at;
    if (!start) return NULL;
    start += strlen(before);
    for (at = start; (at = strstr(at, after)) != NULL; at++) end = at;
    if (end) *end = 0;
    return end ? start : NULL;
}

static size_t from_hex(char *text)
{
    size_t i, size = strlen(text) / 2;
    for (i = 0; i < size; i++) {
        unsigned byte = 0;
        test_require(sscanf(text + 2 * i, "%2x", &byte) == 1, "not hexadecimal:", text);
        text[i] = (char)byte;
    }
    return size;
}

/* A line of cases.jsonl: {"name":...,"tokenizer":{...},"encode":...} or {"name":...,"model":"hex","encode":...} */
static void test_tokenizer_line(char *line)
{
    char name[100] = "", path[PATH_ROOM + 64], *model, *json;
    int vocab = 0;
    sscanf(line, "{\"name\":\"%99[^\"]\",\"vocab\":%d", name, &vocab);
    model = strstr(line, ",\"model\":\"");
    json = strstr(line, ",\"tokenizer\":{");
    if ((!model && !json) || !test_begin("tokenizer, %s", name)) return;
    if (vocab > TINY_VOCAB) make_textless_story();
    else tiny_write(made, false);
    if (json) json = between(line, ",\"tokenizer\":", ",\"encode\":");
    else {
        model += strlen(",\"model\":\"");
        model[strcspn(model, "\"")] = 0;
        unlink(in_folder(path, made, "tokenizer.json"));
        write_made("tokenizer.model", model, from_hex(model));
    }
    if (json) write_made("tokenizer.json", json, strlen(json));
    if (CHECK(json || model)) check_with(made, "f32", NULL, NULL);
    test_end();
}

static void test_tokenizer_lines(void)
{
    size_t size;
    char *data = (char *)file_need("tests/tokenizers/cases.jsonl", &size), *line = data, *next;
    for (; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        remove_folder(made);
        test_tokenizer_line(line);
    }
    free(data);
}

static void test_tokenizer_file(const char *name)
{
    char path[PATH_ROOM], target[PATH_ROOM + 64];
    if (!test_begin("tokenizer, %s", name)) return;
    make_textless_story();
    snprintf(path, sizeof path, "tests/tokenizers/%s/tokenizer.json", name);
    copy_file(path, in_folder(target, made, "tokenizer.json"));
    CHECK(file_exists(target));
    check_with(made, "f32", NULL, NULL);
    test_end();
}

/* ---- chat formats ----------------------------------------------------------------------------- */

static void test_chat(void)
{
    make_folder("examples/storyteller");
    check_with(made, "f32", NULL, NULL);
    check_with(made, "bf16", NULL, NULL);
    make_textless_story();
    check_with(made, "bf16", NULL, NULL);
}

/* A format that was named by hand is told by the template that goes out. */
static void test_named_chat(void)
{
    make_folder("examples/storyteller");
    remove_folder(exported);
    check_told("bf16", "--chat", "chatml");
    check_told("bf16", "--chat", "none");
    edit_made("tokenizer.json", "<|im_start|>", "<|bom|>");
    edit_made("tokenizer.json", "<|im_end|>", "<|eom|>");
    check_told("bf16", "--chat", "jamba");
    edit_made("tokenizer.json", "<|pad|>", "<|tool|");
    edit_made("tokenizer.json", "<|startoftext|>", "<s>");
    edit_made("tokenizer.json", "<|endoftext|>", "</s>");
    check_told("bf16", "--chat", "mistral");
}

/* ---- refusals --------------------------------------------------------------------------------- */

static void test_types(void)
{
    make_folder("tests/cases/jamba-moe");
    CHECK(run_convert(made, first, "q8", NULL, NULL) == 0);
    check_refused(first, "has weights in q8");
    CHECK(run_convert(made, first, "q4", NULL, NULL) == 0);
    check_refused(first, "convert the original with --type f32, f16 or bf16");
}

static void test_places(void)
{
    char path[PATH_ROOM + 64];
    make_folder("tests/cases/mamba");
    CHECK(run_convert(made, first, "f32", NULL, NULL) == 0);
    remove_folder(exported);
    CHECK(run_export(first, exported, NULL) == 0);
    CHECK(run_export(first, exported, NULL) == 1 && strstr(errors, "exists: give --force"));
    CHECK_THAT(run_export(first, exported, "--force") == 0 && errors[0] == 0, "%s", errors);
    CHECK(run_convert(exported, again, "f32", NULL, NULL) == 0 && same_files(first, again));
    file_write(in_folder(path, exported, "other"), "x", 1);
    CHECK(run_export(first, exported, "--force") == 1 && strstr(errors, "holds other"));
    CHECK(run_convert(exported, again, "f32", NULL, NULL) == 0 && same_files(first, again));
    CHECK(run_export(first, first, "--force") == 1 && strstr(errors, "is not a folder"));
    CHECK(run_export(first, in_folder(path, exported, "no/such"), NULL) == 1 && strstr(errors, "cannot create"));
    CHECK(run_export("no-such.jamba", exported, "--force") == 1 && strstr(errors, "no-such.jamba"));
}

/* A run that was killed leaves DIR.part, which the next one replaces. */
static void test_left_over(void)
{
    char part[PATH_ROOM + 8], path[PATH_ROOM + 80];
    make_folder("tests/cases/mamba");
    CHECK(run_convert(made, first, "f32", NULL, NULL) == 0);
    remove_folder(exported);
    snprintf(part, sizeof part, "%s.part", exported);
    mkdir(part, 0777);
    snprintf(path, sizeof path, "%s/model.safetensors.part", part);
    file_write(path, "x", 1);
    CHECK_THAT(run_export(first, exported, NULL) == 0, "%s", errors);
    CHECK(file_exists(exported) && !file_exists(part));
}

static void test_usage(void)
{
    const char *const none[] = { NULL }, *const one[] = { first, NULL };
    const char *const many[] = { first, exported, "more", NULL }, *const option[] = { first, exported, "--type", NULL };
    CHECK(tool_run("export", none, errors, sizeof errors) == 2);
    CHECK(tool_run("export", one, errors, sizeof errors) == 2 && strstr(errors, "usage:"));
    CHECK(tool_run("export", many, errors, sizeof errors) == 2);
    CHECK(tool_run("export", option, errors, sizeof errors) == 2 && strstr(errors, "unknown option --type"));
}

/* ---- damage ----------------------------------------------------------------------------------- */

/* A tiny model in memory; free() it. */
static uint8_t *tiny_model(size_t *size)
{
    remove_folder(made);
    tiny_write(made, false);
    test_require(run_convert(made, first, "bf16", NULL, NULL) == 0, "convert", errors);
    return file_need(first, size);
}

/* One bit of every tensor, and of many places before them. */
static void test_flips(void)
{
    size_t size, at, data_offset;
    uint8_t *data = tiny_model(&size);
    data_offset = (size_t)jmb_load_u64(data + 24);
    for (at = data_offset; at < size; at += 997) {
        data[at] ^= 16;
        file_write(again, data, size);
        check_refused(again, "damaged");
        data[at] ^= 16;
    }
    for (at = 0; at < data_offset; at += 401) {
        data[at] ^= 4;
        file_write(again, data, size);
        check_refused(again, again);
        data[at] ^= 4;
    }
    free(data);
}

static void test_cut(void)
{
    size_t size, at;
    uint8_t *data = tiny_model(&size);
    for (at = 0; at < size; at += size / 23) {
        file_write(again, data, at);
        check_refused(again, again);
    }
    free(data);
}

/* A sound file with one field of a block changed. */
static void check_program(uint32_t block, uint32_t field, uint32_t value, const char *message)
{
    size_t size;
    uint8_t *data = tiny_model(&size), *p = data + JMB_HEADER_BYTES + block * JMB_BLOCK_BYTES + 4 * field;
    int i;
    for (i = 0; i < 4; i++) p[i] = (uint8_t)(value >> 8 * i);
    jmb_identity(data, jmb_load_u64(data + 24), data + 32);
    file_write(again, data, size);
    check_refused(again, message);
    free(data);
}

/* What the library runs and no config.json says. */
static void test_programs(void)
{
    check_program(2, FIELD_eps, jmb_bits_of(0.5f), "block 2 is not what any config.json of a jamba model says");
    check_program(0, FIELD_act, JMB_ACT_GELU, "block 0 is not what any config.json of a jamba model says");
    check_program(3, FIELD_flags, JMB_RENORMALISE, "block 3 is not what any config.json of a jamba model says");
}

/* Stores `bits` as number `at` of the f32 tensors of a role, in its first `count` layers, in a file that is sound
 * otherwise. */
static void change_tensors(uint8_t *data, uint32_t role, int count, uint32_t at, uint32_t bits)
{
    uint32_t i, tensors = jmb_load_u32(data + 80);
    uint8_t *entry = data + JMB_HEADER_BYTES + (size_t)jmb_load_u32(data + 76) * JMB_BLOCK_BYTES;
    for (i = 0; i < tensors; i++, entry += JMB_ENTRY_BYTES) {
        uint8_t *numbers = data + jmb_load_u64(entry + 16);
        uint64_t hash;
        int byte;
        if (jmb_load_u16(entry) != role || count-- <= 0) continue;
        for (byte = 0; byte < 4; byte++) numbers[4 * at + (uint32_t)byte] = (uint8_t)(bits >> 8 * byte);
        hash = jmb_hash64(JMB_HASH_SEED, numbers, (size_t)jmb_load_u64(entry + 24));
        for (byte = 0; byte < 8; byte++) entry[32 + byte] = (uint8_t)(hash >> 8 * byte);
    }
    jmb_identity(data, jmb_load_u64(data + 24), data + 32);
}

static void test_strange_rope(void)
{
    size_t size;
    uint8_t *data;
    make_folder("tests/cases/llama");
    CHECK(run_convert(made, first, "f32", NULL, NULL) == 0);
    data = file_need(first, &size);
    change_tensors(data, JMB_ROLE_ROPE, 4, 3, jmb_bits_of(0.75f));
    file_write(again, data, size);
    check_refused(again, "no RoPE settings (default, linear, llama3) give its frequencies");
    change_tensors(data, JMB_ROLE_ROPE, 1, 3, jmb_bits_of(0.25f));
    file_write(again, data, size);
    check_refused(again, "layers differ in RoPE");
    free(data);
}

/* A is -exp of a float in every file that convert writes. In others the nearest goes out, and is told. */
static void test_strange_a(void)
{
    size_t size;
    uint8_t *data = tiny_model(&size);
    uint32_t bits = jmb_bits_of(-1000.0f);
    while ((float)-exp((double)(float)log(-(double)jmb_float_of(bits))) == jmb_float_of(bits)) bits++;
    change_tensors(data, JMB_ROLE_A, 1, 0, bits);
    file_write(again, data, size);
    remove_folder(exported);
    CHECK(run_export(again, exported, NULL) == 0 && strstr(errors, "numbers of A that are -exp of no float: 1;"));
    change_tensors(data, JMB_ROLE_A, 1, 0, jmb_bits_of(1.0f));
    file_write(again, data, size);
    check_refused(again, "a number that is no -exp");
    free(data);
}

static void test_architecture(void)
{
    size_t size, at;
    uint8_t *data = tiny_model(&size);
    for (at = 0; memcmp(data + at, "architecturejamba", 17) != 0; at++) {}
    data[at + 16] = 'o';
    jmb_identity(data, jmb_load_u64(data + 24), data + 32);
    file_write(again, data, size);
    check_refused(again, "architecture \"jambo\" is none that convert writes");
    free(data);
}

/* ---- all -------------------------------------------------------------------------------------- */

static void test_named(const char *name, void (*test)(void))
{
    if (!test_begin("%s", name)) return;
    test();
    test_end();
}

int main(int argc, char **argv)
{
    int i;
    test_start(argc, argv);
    temp_path(made, "made");
    temp_path(first, "first.jamba");
    temp_path(again, "again.jamba");
    temp_path(exported, "exported");
    for (i = 0; i < GOLDEN_CASES; i++) test_golden(&golden_cases[i]);
    test_named("RoPE by its frequencies", test_rope);
    test_named("time step limits", test_limits);
    test_tokenizer_lines();
    test_tokenizer_file("small-metaspace");
    test_tokenizer_file("small-bytelevel");
    test_named("the storyteller, with and without text", test_chat);
    test_named("chat formats given by name", test_named_chat);
    test_named("quantised files", test_types);
    test_named("folders in the way", test_places);
    test_named("left by a killed run", test_left_over);
    test_named("usage", test_usage);
    test_named("bits flipped", test_flips);
    test_named("files cut off", test_cut);
    test_named("programs that no config says", test_programs);
    test_named("RoPE that no config says", test_strange_rope);
    test_named("A that no float gives", test_strange_a);
    test_named("unknown architecture", test_architecture);
    return test_summary();
}
