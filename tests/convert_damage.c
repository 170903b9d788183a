/* convert_damage.c - the converter on damaged, hostile and merely wrong checkpoint folders
 *
 * Every prefix of every input file and one test a rule: each fails with one message that names the
 * file, tensor or key at fault, and leaves nothing behind. The converter's functions run in this
 * process, so that sanitizers see them; exit codes and signals are tested on the program. */
#include "rules.h"
#include "tiny.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>

/* Thousands of files are written here: none is worth waiting for a disk. */
static int no_sync(int descriptor)
{
    (void)descriptor;
    return 0;
}

#define fsync no_sync
#define main convert_main
#include "../tools/convert.c"
#undef main
#undef fsync

static char work[PATH_ROOM]; /* the folder that is damaged */
static char out_folder[PATH_ROOM], out_path[PATH_ROOM];

/* What main() of the converter does with its arguments. */
static bool convert_type(const char *dir, uint32_t type, tool_error *error)
{
    options o;
    memset(&o, 0, sizeof o);
    memset(error, 0, sizeof *error);
    o.dir = dir;
    o.out = out_path;
    o.type = type;
    o.force = true;
    return convert_merged(&o, error);
}

/* The folder fails with one line that has `words`, and no file is left. */
static void check_fails(const char *what, const char *words)
{
    tool_error error;
    if (!CHECK_THAT(!convert_type(work, JMB_BF16, &error), "%s: converts", what)) {
        remove(out_path);
        return;
    }
    rules_note(error.message);
    CHECK_THAT(strstr(error.message, words) != NULL, "%s: '%s' lacks '%s'", what, error.message, words);
    CHECK_THAT(strchr(error.message, '\n') == NULL, "%s: more than one line", what);
    CHECK_THAT(files_in(out_folder) == 0, "%s: leaves a file", what);
}

static void check_converts(const char *what)
{
    tool_error error;
    CHECK_THAT(convert_type(work, JMB_BF16, &error), "%s: %s", what, error.message);
    remove(out_path);
}

/* ---- sweeps ------------------------------------------------------------------------------------------ */

/* One file of the folder whose bytes are swept. */
typedef struct swept_file {
    const char *name;
    char path[PATH_ROOM];
    size_t failed, converted;
} swept_file;

static void must_fail(void *user, const uint8_t *data, size_t size, const char *what)
{
    swept_file *in = (swept_file *)user;
    char full[PATH_ROOM];
    snprintf(full, sizeof full, "%s %s", in->name, what);
    sweep_write(in->path, data, size);
    check_fails(full, in->name);
}

/* Damage fails by name or leaves a folder that converts; either way nothing is left but that. */
static void may_convert(void *user, const uint8_t *data, size_t size, const char *what)
{
    swept_file *in = (swept_file *)user;
    tool_error error;
    sweep_write(in->path, data, size);
    if (convert_type(work, JMB_BF16, &error)) {
        in->converted++;
        remove(out_path);
        return;
    }
    in->failed++;
    CHECK_THAT(error.message[0] && !strchr(error.message, '\n'), "%s %s: '%s'", in->name, what, error.message);
    CHECK_THAT(files_in(out_folder) == 0, "%s %s: leaves a file", in->name, what);
}

static sweep open_sweep(swept_file *in, const char *name, void (*test)(void *, const uint8_t *, size_t, const char *))
{
    sweep w;
    memset(in, 0, sizeof *in);
    in->name = name;
    tiny_path(in->path, work, name);
    w.good = file_need(in->path, &w.size);
    w.test = test;
    w.repair = NULL;
    w.user = in;
    return w;
}

/* The file as it was. */
static void close_sweep(sweep *w)
{
    const swept_file *in = (const swept_file *)w->user;
    file_write(in->path, w->good, w->size);
    free((void *)(uintptr_t)w->good);
    check_converts(in->name);
}

static void check_prefixes(const char *name, size_t step)
{
    swept_file in;
    sweep w = open_sweep(&in, name, must_fail);
    sweep_prefixes(&w, 0, step);
    close_sweep(&w);
}

static void test_config_prefixes(void)
{
    check_prefixes("config.json", 1);
}

static void test_generation_prefixes(void)
{
    check_prefixes("generation_config.json", 1);
}

static void test_tokenizer_prefixes(void)
{
    check_prefixes("tokenizer.json", 1);
    check_prefixes("tokenizer_config.json", 1);
}

static size_t header_end(const char *name)
{
    char path[PATH_ROOM];
    size_t size, length;
    uint8_t *data = file_need(tiny_path(path, work, name), &size);
    length = 8 + (size_t)jmb_load_u64(data);
    free(data);
    return length;
}

static void test_safetensors_prefixes(void)
{
    size_t end = header_end("model.safetensors");
    check_prefixes("model.safetensors", 1);
    CHECK(end > 1000);
}

/* Prefixes of the index, and of a shard behind it. */
static void test_index_prefixes(void)
{
    tiny_write(temp_path(work, "sharded"), true);
    check_prefixes("model.safetensors.index.json", 1);
    check_prefixes(tiny_shard_2, 13);
    temp_path(work, "single");
}

/* The first `to` bytes changed, each in some ways; then edits of all kinds in them. */
static void check_changes(const char *name, size_t to, int each, uint64_t mutations)
{
    swept_file in;
    sweep w = open_sweep(&in, name, may_convert);
    if (to > w.size) to = w.size;
    sweep_bytes(&w, 0, to, SWEEP_CHANGES, each);
    if (sweep_all()) sweep_values(&w, 0, to < 4096 ? to : 4096, 256);
    CHECK_THAT(in.failed > to * (size_t)each / 4, "%s: only %zu changes fail", name, in.failed);
    sweep_mutations(&w, to, mutations);
    close_sweep(&w);
}

static void test_changes(void)
{
    check_changes("config.json", SIZE_MAX, 2, 500);
    check_changes("generation_config.json", SIZE_MAX, 4, 100);
    check_changes("tokenizer_config.json", SIZE_MAX, 4, 100);
    check_changes("model.safetensors", header_end("model.safetensors"), 1, 500);
    check_changes("tokenizer.json", 1500, 1, 300);
    tiny_write(temp_path(work, "sharded"), true);
    check_changes("model.safetensors.index.json", SIZE_MAX, 1, 300);
    temp_path(work, "single");
}

/* ---- config values ------------------------------------------------------------------------------------- */

/* `config` with the value of `key` replaced by `value`, or removed when that is NULL. free() it. */
static char *replace_value(const char *config, const char *key, const char *value)
{
    char quoted[80], *text = (char *)malloc(strlen(config) + 400);
    const char *start, *end;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    start = strstr(config, quoted);
    test_require(start != NULL, "the config lacks", key);
    end = start + strcspn(start, ",\n");
    if (value) sprintf(text, "%.*s\"%s\": %s%s", (int)(start - config), config, key, value, end);
    else sprintf(text, "%.*s%s", (int)(start - config), config, end + 1);
    return text;
}

static void write_config(const char *text)
{
    char path[PATH_ROOM];
    file_write(tiny_path(path, work, "config.json"), text, strlen(text));
}

typedef struct value_change {
    const char *key, *value, *words;
} value_change;

static void check_values(const char *config, const value_change *changes, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) {
        char what[160], *text = replace_value(config, changes[i].key, changes[i].value);
        snprintf(what, sizeof what, "%s = %s", changes[i].key, changes[i].value);
        write_config(text);
        check_fails(what, changes[i].words);
        free(text);
    }
    write_config(config);
    check_converts("config.json");
}

static void test_values(void)
{
    static const value_change changes[] = {
        { "model_type", "\"gpt2\"", "config.json: model_type \"gpt2\"" },
        { "model_type", "7", "config.json: no model_type" },
        { "model_type", NULL, "config.json: no model_type" },
        { "vocab_size", "0", "config.json: vocab_size" },
        { "vocab_size", "-5", "config.json: vocab_size" },
        { "vocab_size", "\"288\"", "config.json: vocab_size" },
        { "vocab_size", "288.5", "config.json: vocab_size" },
        { "vocab_size", "null", "config.json: vocab_size" },
        { "vocab_size", "1e300", "config.json: vocab_size" },
        { "vocab_size", "99999999999999999999", "config.json: vocab_size" },
        { "vocab_size", "289", "model.embed_tokens.weight" },
        { "hidden_size", "0", "config.json: hidden_size" },
        { "hidden_size", "32", "shape" },
        { "hidden_size", "[16]", "config.json: hidden_size" },
        { "intermediate_size", "0", "config.json: intermediate_size" },
        { "intermediate_size", "17", "shape" },
        { "num_hidden_layers", "0", "config.json: num_hidden_layers" },
        { "num_hidden_layers", "100000", "config.json: num_hidden_layers" },
        { "num_hidden_layers", "3", "is missing" },
        { "num_hidden_layers", "1", "has no place" },
        { "num_attention_heads", "0", "config.json: num_attention_heads" },
        { "num_attention_heads", "2000", "config.json: num_attention_heads" },
        { "num_attention_heads", "3", "shape" },
        { "num_key_value_heads", "3", "config.json" },
        { "num_key_value_heads", "2", "shape" },
        { "hidden_act", "\"gelu\"", "config.json: hidden_act is \"gelu\"" },
        { "rms_norm_eps", "0", "config.json: rms_norm_eps" },
        { "rms_norm_eps", "-1e-6", "config.json: rms_norm_eps" },
        { "rms_norm_eps", "Infinity", "config.json: rms_norm_eps" },
        { "rms_norm_eps", "\"small\"", "config.json: rms_norm_eps" },
        { "num_experts", "0", "config.json: num_experts" },
        { "num_experts", "3", "" },
        { "num_experts", "1", "" },
        { "num_experts_per_tok", "0", "config.json: num_experts_per_tok" },
        { "num_experts_per_tok", "3", "top_k" },
        { "expert_layer_period", "0", "config.json: expert_layer_period" },
        { "expert_layer_offset", "-1", "config.json: expert_layer_offset" },
        { "expert_layer_offset", "0", "" },
        { "attn_layer_period", "0", "config.json: attn_layer_period" },
        { "attn_layer_period", "1", "" },
        { "attn_layer_offset", "0", "" },
        { "mamba_d_state", "0", "config.json: mamba_d_state" },
        { "mamba_d_state", "5", "shape" },
        { "mamba_d_conv", "0", "config.json: mamba_d_conv" },
        { "mamba_d_conv", "4", "shape" },
        { "mamba_d_conv", "99", "config.json: mamba_d_conv" },
        { "mamba_expand", "2", "shape" },
        { "mamba_expand", "0", "config.json: mamba_expand" },
        { "mamba_dt_rank", "\"many\"", "config.json: mamba_dt_rank" },
        { "mamba_dt_rank", "0", "config.json: mamba_dt_rank" },
        { "mamba_dt_rank", "\"auto\"", "shape" },
        { "mamba_conv_bias", "1", "config.json: mamba_conv_bias" },
        { "mamba_conv_bias", "false", "has no place" },
        { "mamba_proj_bias", "true", "is missing" },
        { "tie_word_embeddings", "\"no\"", "config.json: tie_word_embeddings" },
        { "tie_word_embeddings", "false", "lm_head.weight" },
        { "max_position_embeddings", "0", "config.json: max_position_embeddings" },
        { "max_position_embeddings", "100000000", "config.json: max_position_embeddings" },
        { "bos_token_id", "288", "config.json" },
        { "bos_token_id", "-2", "config.json: bos_token_id" },
        { "bos_token_id", "\"<s>\"", "config.json: bos_token_id" },
        { "pad_token_id", "100000000", "config.json: pad_token_id" },
        { "eos_token_id", "288", "config.json: eos_token_id" },
        { "eos_token_id", "[3, 4, 5, 6, 7, 8, 9, 10, 11]", "eos_token_id lists more than 8 tokens" },
        { "eos_token_id", "[2, \"x\"]", "config.json: eos_token_id" },
    };
    check_values(tiny_config, changes, sizeof changes / sizeof changes[0]);
}

/* Documents that are JSON and no config. */
static void test_documents(void)
{
    static const char *const documents[] = { "", "null", "[]", "7", "{}", "{\"model_type\":\"jamba\"}}", "{'a':1}",
        "{\"model_type\":\"jamba\",\"model_type\":\"jamba\"}", "{\"model_type\":\"jam\xff\"}", "\xef\xbb\xbf{",
        "{\"a\":01}", "{\"a\":+1}", "{\"a\":1,}", "{\"a\":\"\x01\"}", "{\"a\":\"\\ud800\"}", "{\"a\":NaN}",
        "{\"a\" 1}", "{\"a\":\"\\u12g4\"}", "{\"a\":\"\\x\"}" };
    static const char *const names[] = { "config.json", "generation_config.json", "tokenizer.json" };
    char path[PATH_ROOM], deep[4001];
    size_t i, n, size;
    for (n = 0; n < 3; n++) {
        uint8_t *before = file_need(tiny_path(path, work, names[n]), &size);
        for (i = 0; i < sizeof documents / sizeof documents[0]; i++) {
            if (n == 1 && strcmp(documents[i], "{}") == 0) continue;
            if (n == 1 && strcmp(documents[i], "{\"model_type\":\"jamba\"}") == 0) continue;
            file_write(path, documents[i], strlen(documents[i]));
            check_fails(documents[i], names[n]);
        }
        memset(deep, '[', 4000);
        deep[4000] = 0;
        file_write(path, deep, 4000);
        check_fails("4000 brackets", names[n]);
        remove(path);
        mkdir(path, 0777);
        check_fails("a folder", names[n]);
        rmdir(path);
        file_write(path, before, size);
        free(before);
    }
    check_converts("documents");
}

/* Text with its first `from` replaced. free() it. */
static char *edited(const char *before, const char *from, const char *to)
{
    char *text = (char *)malloc(strlen(before) + strlen(to) + 1);
    const char *at = strstr(before, from);
    test_require(at != NULL, "the text lacks", from);
    sprintf(text, "%.*s%s%s", (int)(at - before), before, to, at + strlen(from));
    return text;
}

/* ---- other families -------------------------------------------------------------------------------------- */

/* Makes `work` a folder of links to the files of a golden case, with its config. free() it. */
static char *link_case(const char *name)
{
    char target[2 * PATH_ROOM], here[PATH_ROOM], path[PATH_ROOM];
    size_t size;
    char *config;
    test_require(getcwd(here, sizeof here) != NULL, "getcwd", name);
    temp_path(work, name);
    mkdir(work, 0777);
    snprintf(target, sizeof target, "%s/tests/cases/%s/model.safetensors", here, name);
    remove(tiny_path(path, work, "model.safetensors"));
    test_require(symlink(target, path) == 0, "symlink", path);
    snprintf(path, sizeof path, "tests/cases/%s/config.json", name);
    config = (char *)file_need(path, &size);
    tiny_write_tokenizer(tiny_path(path, work, "tokenizer.json"));
    remove(path); /* its vocabulary is larger than the model's */
    return config;
}

static void test_rope_values(void)
{
    static const value_change changes[] = {
        { "rope_theta", "0", "rope_theta" },
        { "rope_theta", "\"x\"", "rope_theta" },
        { "rms_norm_eps", "2", "config.json: rms_norm_eps" },
        { "hidden_act", "\"relu\"", "hidden_act" },
        { "head_dim", "11", "config.json" },
        { "head_dim", "16", "shape" },
        { "attention_bias", "false", "has no place" },
        { "mlp_bias", "false", "has no place" },
        { "num_key_value_heads", "3", "config.json" },
        { "intermediate_size", "49", "shape" },
    };
    static const value_change scalings[] = {
        { "rope_parameters", "{\"rope_type\": \"yarn\", \"factor\": 2.0}", "yarn" },
        { "rope_parameters", "{\"rope_type\": \"dynamic\", \"factor\": 2.0}", "dynamic" },
        { "rope_parameters", "{\"rope_type\": \"linear\"}", "factor" },
        { "rope_parameters", "{\"rope_type\": \"linear\", \"factor\": 0}", "factor" },
        { "rope_parameters", "{\"rope_type\": 3}", "RoPE" },
        { "rope_parameters", "{\"rope_theta\": -1, \"rope_type\": \"default\"}", "rope_theta" },
    };
    char *config = link_case("llama-linear"), *flat;
    size_t i;
    write_config(config);
    check_values(config, changes, sizeof changes / sizeof changes[0]);
    free(config);
    config = link_case("llama-llama3");
    write_config(config);
    check_converts("llama3");
    flat = strstr(config, "\"rope_parameters\"");
    test_require(flat != NULL, "no rope_parameters", "llama-llama3");
    for (i = 0; i < sizeof scalings / sizeof scalings[0]; i++) {
        char *text = (char *)malloc(strlen(config) + 200);
        sprintf(text, "%.*s\"rope_parameters\": %s%s", (int)(flat - config), config, scalings[i].value,
            strchr(flat, '}') + 1);
        write_config(text);
        check_fails(scalings[i].value, scalings[i].words);
        free(text);
    }
    free(config);
    temp_path(work, "single");
}

/* Rules of single families: the config of a golden case with its first `from` replaced. */
static void test_family_values(void)
{
    static const struct {
        const char *name, *from, *to, *words;
    } edits[] = {
        { "zamba2-rope", "\"layers_block_type\": [", "\"layers_of_block\": [", "layers_block_type is missing" },
        { "zamba2-rope", "\"hybrid\"", "\"other\"", "is \"other\"; mamba and hybrid can be converted" },
        { "zamba2-rope", "\"layers_block_type\": [", "\"layers_block_type\": [\"mamba\",",
            "layers_block_type is not a list of num_hidden_layers" },
        { "zamba2-rope", "\"attention_hidden_size\": 64", "\"attention_hidden_size\": 66",
            "attention_hidden_size must be twice hidden_size" },
        { "zamba2-rope", "\"hybrid_layer_ids\": [", "\"hybrid_layer_ids\": [0,", "do not name the same layers" },
        { "zamba2-rope", "\"n_mamba_heads\": 4", "\"n_mamba_heads\": 5", "n_mamba_heads (5) times mamba_headdim (16)" },
        { "mamba2-dt-limit", "0.6", "0.05", "time_step_limit is not a list of two numbers" },
        { "llama", "\"hidden_act\"", "\"quantization_config\": 1, \"hidden_act\"",
            "quantization_config has a value that cannot be converted" },
        { "llama-llama3", "\"high_freq_factor\": 4.0", "\"high_freq_factor\": 1.0", "high_freq_factor must be above" },
        { "llama-llama3", "\"rope_parameters\"", "\"rope_scaling\": 7, \"rope_others\"",
            "rope_scaling is neither an object nor null" },
        { "llama-llama3", "\"rope_parameters\"", "\"partial_rotary_factor\": 0.5, \"rope_parameters\"",
            "partial_rotary_factor other than 1" },
    };
    size_t i;
    for (i = 0; i < sizeof edits / sizeof edits[0]; i++) {
        char *config = link_case(edits[i].name), *text = edited(config, edits[i].from, edits[i].to);
        write_config(text);
        check_fails(edits[i].name, edits[i].words);
        free(text);
        free(config);
    }
    temp_path(work, "single");
}

/* ---- tensors ------------------------------------------------------------------------------------------------ */

typedef struct parts {
    char *header;
    uint8_t *data, *file;
    size_t size; /* of the data */
} parts;

static parts read_parts(const char *name)
{
    char path[PATH_ROOM];
    parts p;
    size_t size, length;
    p.file = file_need(tiny_path(path, work, name), &size);
    length = (size_t)jmb_load_u64(p.file);
    p.header = (char *)calloc(1, length + 1);
    memcpy(p.header, p.file + 8, length);
    p.data = p.file + 8 + length;
    p.size = size - 8 - length;
    return p;
}

static void free_parts(parts *p)
{
    free(p->header);
    free(p->file);
}

/* One edit of the header of a file, and what the converter says then. */
static void check_edit(const char *name, const parts *p, const char *from, const char *to, const char *words)
{
    char path[PATH_ROOM], *header = edited(p->header, from, to);
    tiny_write_parts(tiny_path(path, work, name), header, p->data, p->size);
    check_fails(to, words);
    free(header);
}

static void test_tensor_edits(void)
{
    static const char embed[] =
        "\"model.embed_tokens.weight\":{\"dtype\":\"BF16\",\"shape\":[288,16],\"data_offsets\":[0,9216]}";
    static const struct {
        const char *from, *to, *words;
    } edits[] = {
        { "model.final_layernorm", "model.final_layernorn", "model.final_layernorm.weight" },
        { "model.layers.0.mamba.D\"", "model.layers.0.mamba.E\"", "model.layers.0.mamba.D" },
        { "model.layers.1.feed_forward.experts.1.up_proj", "model.layers.1.feed_forward.experts.2.up_proj",
            "model.layers.1.feed_forward.experts.1.up_proj.weight" },
        { "[288,16]", "[16,288]", "model.embed_tokens.weight" },
        { "[288,16]", "[288,16,1]", "model.embed_tokens.weight" },
        { "[288,16]", "[4608]", "model.embed_tokens.weight" },
        { "[288,16]", "[]", "model.embed_tokens.weight" },
        { "[288,16]", "[288,17]", "model.embed_tokens.weight" },
        { "[288,16]", "[-288,-16]", "model.embed_tokens.weight" },
        { "[288,16]", "[4294967296,4294967296]", "model.embed_tokens.weight" },
        { "[288,16]", "[288.0,16]", "model.embed_tokens.weight" },
        { "[288,16]", "\"288\"", "model.embed_tokens.weight" },
        { "[288,16]", "[1,1,1,1,1,1,1,288,16]", "model.embed_tokens.weight" },
        { "\"BF16\"", "\"F32\"", "model.embed_tokens.weight" },
        { "\"BF16\"", "\"F64\"", "F64" },
        { "\"BF16\"", "\"I16\"", "I16" },
        { "\"BF16\"", "\"F8_E4M3\"", "F8_E4M3" },
        { "\"BF16\"", "7", "dtype" },
        { "[0,9216]", "[0,9214]", "model.embed_tokens.weight" },
        { "[0,9216]", "[2,9218]", "model.safetensors" },
        { "[0,9216]", "[9216,0]", "model.embed_tokens.weight" },
        { "[0,9216]", "[-9216,0]", "model.embed_tokens.weight" },
        { "[0,9216]", "[0,18446744073709551615]", "model.embed_tokens.weight" },
        { "[0,9216]", "[9223372036854775000,9223372036854784216]", "model.embed_tokens.weight" },
        { "[0,9216]", "[0]", "model.embed_tokens.weight" },
        { "[0,9216]", "[9216,18432]", "model.safetensors" },
        { "\"dtype\":\"BF16\",", "", "model.embed_tokens.weight" },
        { "\"dtype\":\"BF16\",", "\"dtype\":\"BF16\",\"more\":1,", "model.embed_tokens.weight" },
        { "\"model.embed_tokens.weight\":{", "\"\":{", "name" },
        { "{\"model.embed", "[\"model.embed", "model.safetensors" },
        { "{\"model.embed", "{\"__metadata__\":7,\"model.embed", "__metadata__" },
        { "{\"model.embed", " {\"model.embed", "model.safetensors" },
    };
    char doubled[2 * sizeof embed + 1];
    parts p = read_parts("model.safetensors");
    size_t i;
    char path[PATH_ROOM];
    for (i = 0; i < sizeof edits / sizeof edits[0]; i++)
        check_edit("model.safetensors", &p, edits[i].from, edits[i].to, edits[i].words);
    snprintf(doubled, sizeof doubled, "%s,%s", embed, embed);
    check_edit("model.safetensors", &p, embed, doubled, "model.safetensors");
    check_edit("model.safetensors", &p, embed,
        "\"model.extra\":{\"dtype\":\"BF16\",\"shape\":[288,16],\"data_offsets\":[0,9216]}",
        "model.embed_tokens.weight");
    file_write(tiny_path(path, work, "model.safetensors"), p.file, 8 + strlen(p.header) + p.size);
    check_converts("the checkpoint put back");
    free_parts(&p);
}

/* Bytes before, between and after the tensors; a tensor too many. */
static void test_tensor_cover(void)
{
    parts p = read_parts("model.safetensors");
    uint8_t *room = (uint8_t *)calloc(1, p.size + 64);
    char path[PATH_ROOM], extra[200], *header;
    tiny_path(path, work, "model.safetensors");
    memcpy(room, p.data, p.size);
    tiny_write_parts(path, p.header, room, p.size + 1);
    check_fails("a byte after the last tensor", "model.safetensors");
    tiny_write_parts(path, p.header, room, p.size + 64);
    check_fails("64 bytes after the last tensor", "follow the last tensor");
    snprintf(extra, sizeof extra,
        "{\"model.extra.weight\":{\"dtype\":\"F32\",\"shape\":[16],\"data_offsets\":[%zu,%zu]},", p.size, p.size + 64);
    header = edited(p.header, "{", extra);
    tiny_write_parts(path, header, room, p.size + 64);
    check_fails("a tensor too many", "model.extra.weight");
    free(header);
    tiny_write_parts(path, "{}", NULL, 0);
    check_fails("a header without tensors", "the checkpoint has no tensors");
    remove(path);
    check_fails("no checkpoint", "neither model.safetensors nor model.safetensors.index.json is there");
    file_write(path, p.file, 8 + strlen(p.header) + p.size);
    check_converts("the checkpoint put back");
    free(room);
    free_parts(&p);
}

/* What readers must accept: metadata, blanks after the header, another order of the tensors. */
static void test_tensor_forms(void)
{
    parts p = read_parts("model.safetensors");
    char path[PATH_ROOM], *header = edited(p.header, "{", "{\"__metadata__\":{\"format\":\"pt\"},");
    tool_error error;
    size_t want_size, got_size;
    uint8_t *want, *got;
    header = (char *)realloc(header, strlen(header) + 10);
    strcat(header, "   ");
    CHECK(convert_type(work, JMB_BF16, &error));
    want = file_need(out_path, &want_size);
    remove(out_path);
    tiny_write_parts(tiny_path(path, work, "model.safetensors"), header, p.data, p.size);
    CHECK_THAT(convert_type(work, JMB_BF16, &error), "%s", error.message);
    got = file_need(out_path, &got_size);
    remove(out_path);
    CHECK(want_size == got_size && memcmp(want, got, want_size) == 0);
    free(got);
    tiny_write(temp_path(work, "sharded"), true);
    CHECK_THAT(convert_type(work, JMB_BF16, &error), "%s", error.message);
    got = file_need(out_path, &got_size);
    remove(out_path);
    CHECK_THAT(want_size == got_size && memcmp(want, got, want_size) == 0, "shards give another file");
    temp_path(work, "single");
    file_write(tiny_path(path, work, "model.safetensors"), p.file, 8 + strlen(p.header) + p.size);
    free(got);
    free(want);
    free(header);
    free_parts(&p);
}

static void test_values_of_weights(void)
{
    static const uint8_t bad[][2] = { { 0xc0, 0x7f }, { 0x80, 0x7f }, { 0x80, 0xff } };
    parts p = read_parts("model.safetensors");
    char path[PATH_ROOM];
    tool_error error;
    size_t i;
    uint8_t before[2] = { p.data[100], p.data[101] };
    tiny_path(path, work, "model.safetensors");
    for (i = 0; i < 3; i++) {
        memcpy(p.data + 100, bad[i], 2);
        tiny_write_parts(path, p.header, p.data, p.size);
        check_fails("not a finite number", "model.embed_tokens.weight");
    }
    p.data[100] = 0x80; /* 65536, too large for f16 */
    p.data[101] = 0x47;
    tiny_write_parts(path, p.header, p.data, p.size);
    CHECK(!convert_type(work, JMB_F16, &error) && files_in(out_folder) == 0);
    CHECK_THAT(strstr(error.message, "model.embed_tokens.weight") && strstr(error.message, "f16"), "%s", error.message);
    check_converts("65536 in bf16");
    memcpy(p.data + 100, before, 2);
    tiny_write_parts(path, p.header, p.data, p.size);
    free_parts(&p);
}

/* ---- the index ---------------------------------------------------------------------------------------------- */

static void check_shard_name(const parts *index, const char *name, const char *words)
{
    char path[PATH_ROOM], to[300], *text;
    snprintf(to, sizeof to, ":%s", name);
    text = edited(index->header, ":\"model-00001-of-00002.safetensors\"", to);
    file_write(tiny_path(path, work, "model.safetensors.index.json"), text, strlen(text));
    check_fails(name, words);
    free(text);
}

/* One shard more than there may be. */
static void check_many_shards(const char *path)
{
    tiny_bytes text = { NULL, 0, 0 };
    int i;
    for (i = 0; i <= ST_MAX_SHARDS; i++) tiny_print(&text, "%s\"%d\":\"%d\"", i ? "," : "{\"weight_map\":{", i, i);
    tiny_print(&text, "}}");
    file_write(path, text.data, text.size);
    check_fails("1,001 shards", "more than 1000 shards");
    free(text.data);
}

static void test_index(void)
{
    static const char *const names[] = { "\"../single/model.safetensors\"", "\"/etc/passwd\"", "\"sub/x.safetensors\"",
        "\"a\\\\b.safetensors\"", "\"\"", "\"-x.safetensors\"", "\"C:x.safetensors\"", "\"..\"", "\"x\\u0000y\"", "7",
        "null" };
    static const char index_name[] = "model.safetensors.index.json";
    char path[PATH_ROOM], shard[PATH_ROOM], *text;
    parts index;
    size_t size, i;
    tiny_write(temp_path(work, "sharded"), true);
    index.file = file_need(tiny_path(path, work, index_name), &size);
    index.header = (char *)index.file;
    for (i = 0; i < sizeof names / sizeof names[0]; i++) check_shard_name(&index, names[i], index_name);
    check_shard_name(&index, "\"model-00003-of-00002.safetensors\"", "model-00003-of-00002.safetensors");
    check_shard_name(&index, "\"model-00002-of-00002.safetensors\"", index_name);
    text = edited(index.header, "\"model.embed_tokens.weight\"", "\"model.embed.weight\"");
    file_write(path, text, size - 7);
    check_fails("an unknown name in the index", index_name);
    free(text);
    text = edited(index.header, "\"weight_map\"", "\"weights\"");
    file_write(path, text, strlen(text));
    check_fails("no weight_map", "weight_map");
    free(text);
    text = edited(index.header, "\"model.embed_tokens.weight\":\"model-00001-of-00002.safetensors\",", "");
    file_write(path, text, strlen(text));
    check_fails("a tensor that the index lacks", "is not in weight_map: download the folder again");
    free(text);
    mkdir(tiny_path(shard, work, "folder"), 0777);
    check_shard_name(&index, "\"folder\"", "folder: not a regular file");
    rmdir(shard);
    check_many_shards(path);
    file_write(path, index.file, size);
    check_converts("index");
    remove(tiny_path(path, work, tiny_shard_1));
    check_fails("a missing shard", tiny_shard_1);
    free(index.file);
    temp_path(work, "single");
}

/* The same tensor in both shards. */
static void test_doubled_tensor(void)
{
    char path[PATH_ROOM], extra[200], words[200], *header;
    parts p;
    uint8_t *room;
    tiny_write(temp_path(work, "sharded"), true);
    p = read_parts(tiny_shard_2);
    room = (uint8_t *)calloc(1, p.size + 64);
    memcpy(room, p.data, p.size);
    snprintf(extra, sizeof extra,
        "{\"model.final_layernorm.weight\":{\"dtype\":\"F32\",\"shape\":[16],\"data_offsets\":[%zu,%zu]},", p.size,
        p.size + 64);
    header = edited(p.header, "{", extra);
    tiny_write_parts(tiny_path(path, work, tiny_shard_2), header, room, p.size + 64);
    snprintf(
        words, sizeof words, "model.final_layernorm.weight is in two shards, %s and %s", tiny_shard_1, tiny_shard_2);
    check_fails("a tensor in two shards", words);
    free(header);
    free(room);
    free_parts(&p);
    temp_path(work, "single");
}

/* The hub's cache is a folder of links. */
static void test_links(void)
{
    static const char *const names[] = { "config.json", "generation_config.json", "tokenizer.json",
        "model.safetensors" };
    char here[PATH_ROOM], target[PATH_ROOM], path[PATH_ROOM], linked[PATH_ROOM];
    tool_error error;
    size_t i, want_size, got_size;
    uint8_t *want, *got;
    test_require(getcwd(here, sizeof here) != NULL, "getcwd", "");
    mkdir(temp_path(linked, "linked"), 0777);
    for (i = 0; i < 4; i++) {
        if (work[0] == '/') tiny_path(target, work, names[i]);
        else tiny_path(target, here, tiny_path(path, work, names[i]));
        remove(tiny_path(path, linked, names[i]));
        CHECK(symlink(target, path) == 0);
    }
    CHECK(convert_type(work, JMB_Q8, &error));
    want = file_need(out_path, &want_size);
    CHECK_THAT(convert_type(linked, JMB_Q8, &error), "%s", error.message);
    got = file_need(out_path, &got_size);
    remove(out_path);
    CHECK_THAT(want_size == got_size && memcmp(want, got, want_size) == 0, "another folder gives another file");
    free(want);
    free(got);
}

/* ---- the program -------------------------------------------------------------------------------------------- */

/* Exit code and one line on stderr that names what it should. */
static void check_program(int code, const char *words, const char *a, const char *b, const char *c, const char *d)
{
    const char *arguments[5];
    char errors[4000];
    int got;
    arguments[0] = a;
    arguments[1] = b;
    arguments[2] = c;
    arguments[3] = d;
    arguments[4] = NULL;
    got = tool_run("convert", arguments, errors, sizeof errors);
    CHECK_THAT(got == code, "convert %s %s %s: exits %d, not %d: %s", a ? a : "", b ? b : "", c ? c : "", got, code,
        errors);
    CHECK_THAT(strstr(errors, words) != NULL, "'%s' lacks '%s'", errors, words);
    if (code == 1) CHECK_THAT(strchr(errors, '\n') == errors + strlen(errors) - 1, "more than one line: %s", errors);
}

static void test_program(void)
{
    char path[PATH_ROOM], input[PATH_ROOM];
    size_t size;
    uint8_t *data;
    remove(out_path);
    check_program(2, "usage", NULL, NULL, NULL, NULL);
    check_program(2, "usage", work, NULL, NULL, NULL);
    check_program(2, "usage", work, out_path, "more", NULL);
    check_program(2, "--type", work, out_path, "--type", NULL);
    check_program(2, "--type", work, out_path, "--type", "q7");
    check_program(2, "q5", work, out_path, "--type", "q5");
    check_program(2, "--dt-limit", work, out_path, "--dt-limit", "0,1");
    check_program(2, "--what", work, out_path, "--what", NULL);
    check_program(1, "no/such/folder", "no/such/folder", out_path, NULL, NULL);
    check_program(1, "no/such", work, "no/such/folder/out.jamba", NULL, NULL);
    check_program(1, out_folder, work, out_folder, NULL, NULL);
    check_program(0, "", work, out_path, NULL, NULL);
    check_program(1, out_path, work, out_path, NULL, NULL);
    check_program(0, "", work, out_path, "--force", NULL);
    check_program(1, "config.json", work, tiny_path(input, work, "config.json"), "--force", NULL);
    check_program(1, "model.safetensors", work, tiny_path(input, work, "model.safetensors"), "--force", NULL);
    remove(out_path);
    check_program(0, "", work, "--dry-run", NULL, NULL);
    CHECK(files_in(out_folder) == 0);
    data = file_need(tiny_path(path, work, "config.json"), &size);
    file_write(path, data, size / 2);
    check_program(1, "config.json", work, out_path, NULL, NULL);
    file_write(path, data, size);
    free(data);
    CHECK(files_in(out_folder) == 0);
}

/* Starts a conversion and stops it after a while that grows with `round`. Whether OUT was whole. */
static bool convert_and_stop(int number, int round)
{
    struct timespec wait = { 0, 1000000L * (1 + round * round / 2) };
    char program[PATH_ROOM];
    jamba_model_params params;
    jamba_model *model;
    int status;
    pid_t child;
    snprintf(program, sizeof program, "%s/convert", test_state.build);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        execl(program, program, "examples/storyteller", out_path, "--type", "f32", "--force", (char *)NULL);
        _exit(127);
    }
    nanosleep(&wait, NULL);
    kill(child, number);
    waitpid(child, &status, 0);
    if (!file_exists(out_path)) return false;
    memset(&params, 0, sizeof params);
    params.verify = true;
    model = load_model(jamba_from_file(out_path), &params);
    jamba_model_free(model);
    remove(out_path);
    return model != NULL;
}

/* Stopped at any moment: OUT is absent or whole. Only SIGKILL may leave a temporary file, which the next
 * run replaces. */
static void test_killed(void)
{
    int i, whole = 0;
    for (i = 0; i < 12; i++) {
        whole += convert_and_stop(SIGTERM, i);
        CHECK_THAT(files_in(out_folder) == 0, "a file is left after SIGTERM");
    }
    for (i = 0; i < 12; i++) whole += convert_and_stop(SIGKILL, i);
    check_program(0, "", work, out_path, NULL, NULL);
    CHECK_THAT(files_in(out_folder) == 1, "a killed run's file stays");
    remove(out_path);
    CHECK_THAT(whole < 24, "never killed in time");
}

/* A tensor of 128 MiB, all zero and so a hole on disk, among the few others that the model needs. */
static void write_large(const char *folder)
{
    static const char config[] = "{\"model_type\":\"mamba\",\"vocab_size\":262144,\"hidden_size\":256,"
        "\"num_hidden_layers\":1,\"state_size\":4,\"expand\":1,\"conv_kernel\":2,\"time_step_rank\":4}";
    static const struct {
        const char *name, *shape;
        size_t count;
    } tensors[] = {
        { "backbone.layers.0.norm.weight", "256", 256 },
        { "backbone.layers.0.mixer.in_proj.weight", "512,256", 512 * 256 },
        { "backbone.layers.0.mixer.conv1d.weight", "256,1,2", 512 },
        { "backbone.layers.0.mixer.conv1d.bias", "256", 256 },
        { "backbone.layers.0.mixer.x_proj.weight", "12,256", 12 * 256 },
        { "backbone.layers.0.mixer.dt_proj.weight", "256,4", 1024 },
        { "backbone.layers.0.mixer.dt_proj.bias", "256", 256 },
        { "backbone.layers.0.mixer.A_log", "256,4", 1024 },
        { "backbone.layers.0.mixer.D", "256", 256 },
        { "backbone.layers.0.mixer.out_proj.weight", "256,256", 256 * 256 },
        { "backbone.norm_f.weight", "256", 256 },
        { "backbone.embeddings.weight", "262144,256", (size_t)262144 * 256 },
    };
    tiny_bytes header = { NULL, 0, 0 };
    char path[PATH_ROOM];
    size_t i, at = 0;
    for (i = 0; i < sizeof tensors / sizeof tensors[0]; i++) {
        tiny_print(&header, "%s\"%s\":{\"dtype\":\"BF16\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}", i ? "," : "{",
            tensors[i].name, tensors[i].shape, at, at + 2 * tensors[i].count);
        at += 2 * tensors[i].count;
    }
    tiny_print(&header, "}");
    tiny_add(&header, "", 1);
    mkdir(folder, 0777);
    file_write(tiny_path(path, folder, "config.json"), config, strlen(config));
    tiny_write_parts(tiny_path(path, folder, "model.safetensors"), (const char *)header.data, NULL, 0);
    test_require(truncate(path, (off_t)(8 + header.size - 1 + at)) == 0, "cannot enlarge", path);
    free(header.data);
}

/* The converter streams: with less memory than the largest tensor takes, and twice less than the model. */
TEST_UNUSED static void test_memory(void)
{
    char folder[PATH_ROOM], program[PATH_ROOM];
    int status = -1;
    pid_t child;
    write_large(temp_path(folder, "large"));
    snprintf(program, sizeof program, "%s/convert", test_state.build);
    fflush(stdout);
    child = fork();
    if (child == 0) {
        struct rlimit limit = { 64u << 20, 64u << 20 };
        setrlimit(RLIMIT_AS, &limit);
        if (!freopen("/dev/null", "w", stderr)) _exit(126);
        execl(program, program, folder, out_path, "--force", (char *)NULL);
        _exit(127);
    }
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_THAT(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x in 64 MiB", (unsigned)status);
    CHECK(file_exists(out_path));
    remove(out_path);
    remove(tiny_path(program, folder, "model.safetensors"));
}

/* ---- every message ------------------------------------------------------------------------------------------ */

static const rules_call reader_calls[] = { { "tool_error_set", "", "" },
    { "json_fail", "not valid JSON at byte %zu: ", "" } };

static void test_messages(void)
{
    static const rules_excuse excuses[] = {
        { "cannot read", "tool_faults.c fails every read" },
        { "shorter than it was", "a file that shrinks while it is read" },
        { "more than 256 MiB of JSON", "takes so much" },
        { "this locale cannot read numbers", "tools stay in the C locale" },
        { NULL, NULL },
    };
    size_t count;
    if (test_state.filter) return; /* rows were left out */
    count = rules_check("tools/safetensors.h", NULL, NULL, reader_calls, 1, excuses);
    count += rules_check("tools/json.h", NULL, NULL, reader_calls, 2, excuses);
    count += rules_check("tools/families.h", NULL, "/* ---- low-rank matrices", reader_calls, 1, excuses);
    count += rules_check(
        "tools/families.h", "/* ---- sharing", "/* ---- all of an adapter", reader_calls, 1, excuses);
    printf("convert_damage: %zu calls that refuse\n", count);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "every prefix of config.json", test_config_prefixes },
        { "every prefix of generation_config.json", test_generation_prefixes },
        { "every prefix of tokenizer.json", test_tokenizer_prefixes },
        { "every prefix of model.safetensors", test_safetensors_prefixes },
        { "every prefix of the index", test_index_prefixes },
        { "changed bytes", test_changes },
        { "config values", test_values },
        { "documents that are no config", test_documents },
        { "RoPE and other families", test_rope_values },
        { "rules of single families", test_family_values },
        { "tensor descriptions", test_tensor_edits },
        { "holes and leftovers", test_tensor_cover },
        { "forms that must be read", test_tensor_forms },
        { "NaN, infinity and overflow", test_values_of_weights },
        { "index entries", test_index },
        { "a tensor in two shards", test_doubled_tensor },
        { "a folder of links", test_links },
        { "exit codes", test_program },
        { "every message of the readers", test_messages },
        { "killed conversions", test_killed },
#if !defined(SANITIZED) /* which reserve all of the address space */
        { "memory does not grow with the model", test_memory },
#endif
    };
    test_start(argc, argv);
    if (!test_state.list) {
        static const char tokenizer_config[] =
            "{\"add_bos_token\": true, \"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
        char path[PATH_ROOM];
        tiny_write(temp_path(work, "single"), false);
        tiny_path(path, work, "tokenizer_config.json");
        file_write(path, tokenizer_config, strlen(tokenizer_config));
        mkdir(temp_path(out_folder, "out"), 0777);
        tiny_path(out_path, out_folder, "out.jamba");
        remove(out_path);
    }
    test_run(tests, sizeof tests / sizeof tests[0]);
    return test_summary();
}
