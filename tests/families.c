/* families.c - spellings of one checkpoint that must give one file, and values that must be refused by name
 *
 * Folders are golden cases with an edited config.json or edited tensor names. */
#define SUPPORT_API_ONLY
#include "support.h"

static char folder[PATH_ROOM], model_path[PATH_ROOM];

static const char *in_folder(char path[PATH_ROOM + 32], const char *name)
{
    snprintf(path, PATH_ROOM + 32, "%s/%s", folder, name);
    return path;
}

/* ---- text ----------------------------------------------------------------------------------------------- */

/* Every `from` becomes `to`. free() the result and forget `text`. */
static char *replace_all(char *text, const char *from, const char *to)
{
    size_t count = 0, old = strlen(from), fresh = strlen(to);
    char *out, *at, *start = text, *put;
    for (at = strstr(text, from); at; at = strstr(at + old, from)) count++;
    test_require(count > 0, "the case lacks", from);
    put = out = (char *)malloc(strlen(text) + count * fresh + 1);
    test_require(out != NULL, "out of memory", from);
    for (at = strstr(text, from); at; at = strstr(start, from)) {
        memcpy(put, start, (size_t)(at - start));
        memcpy(put + (at - start), to, fresh);
        put += (size_t)(at - start) + fresh;
        start = at + old;
    }
    strcpy(put, start);
    free(text);
    return out;
}

/* `config` with `key` set to `value`, in front of or instead of its own; NULL: removed. free() it. */
static char *with_value(char *config, const char *key, const char *value)
{
    char quoted[80], *start, *end, *out = (char *)malloc(strlen(config) + 400);
    int depth = 0;
    test_require(out != NULL, "out of memory", key);
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    start = strstr(config, quoted);
    if (!start) start = end = strchr(config, '{') + 1;
    else {
        for (end = start; *end && (depth > 0 || (*end != ',' && *end != '}')); end++)
            depth += *end == '[' || *end == '{' ? 1 : *end == ']' || *end == '}' ? -1 : 0;
        if (*end == ',') end++;
    }
    sprintf(out, "%.*s", (int)(start - config), config);
    if (value) sprintf(out + strlen(out), "\"%s\": %s%s", key, value, *end == '}' ? "" : ",");
    strcat(out, end);
    free(config);
    return out;
}

/* ---- folders -------------------------------------------------------------------------------------------- */

typedef struct parts {
    char *config, *header;
    uint8_t *file, *data; /* data: in file */
    size_t size;          /* of the data */
} parts;

static parts read_case(const char *name)
{
    char path[PATH_ROOM];
    size_t size, i, length = 0;
    parts p;
    snprintf(path, sizeof path, "tests/cases/%s/config.json", name);
    p.config = (char *)file_need(path, &size);
    snprintf(path, sizeof path, "tests/cases/%s/model.safetensors", name);
    p.file = file_need(path, &size);
    for (i = 8; i-- > 0;) length = length << 8 | p.file[i];
    p.header = (char *)calloc(1, length + 1);
    memcpy(p.header, p.file + 8, length);
    p.data = p.file + 8 + length;
    p.size = size - 8 - length;
    return p;
}

static void write_case(const parts *p)
{
    char path[PATH_ROOM + 32];
    size_t length = strlen(p->header), i;
    uint8_t *file = (uint8_t *)malloc(8 + length + p->size);
    for (i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)length >> (8 * i));
    memcpy(file + 8, p->header, length);
    memcpy(file + 8 + length, p->data, p->size);
    file_write(in_folder(path, "model.safetensors"), file, 8 + length + p->size);
    file_write(in_folder(path, "config.json"), p->config, strlen(p->config));
    free(file);
}

static void free_case(parts *p)
{
    free(p->config);
    free(p->header);
    free(p->file);
}

/* Adds to the tensors a copy of each whose name contains `from`, with `to` for it. Every byte of the copy's data
 * is the original's but the last, which is changed by `change`. */
static void copy_tensors(parts *p, const char *from, const char *to, uint8_t change)
{
    char *header = (char *)malloc(3 * strlen(p->header) + 100), *at = p->header;
    uint8_t *file = (uint8_t *)malloc(2 * p->size);
    size_t end = p->size;
    memcpy(file, p->data, p->size);
    strcpy(header, p->header);
    *strrchr(header, '}') = 0;
    while ((at = strstr(at, from)) != NULL) {
        char *start = at, *shape;
        unsigned long begin, stop;
        while (*start != '"') start--;
        shape = strstr(at, "[");
        test_require(sscanf(strstr(at, "data_offsets") + 15, "%lu,%lu", &begin, &stop) == 2, "no offsets", from);
        sprintf(header + strlen(header), ",%.*s%s%.*s\"data_offsets\":[%lu,%lu]}", (int)(at - start), start, to,
            (int)(strstr(shape, "\"data_offsets\"") - at - (long)strlen(from)), at + strlen(from), (unsigned long)end,
            (unsigned long)(end + stop - begin));
        memcpy(file + end, p->data + begin, stop - begin);
        end += stop - begin;
        file[end - 1] ^= change;
        at++;
    }
    strcat(header, "}");
    free(p->header);
    free(p->file);
    p->header = header;
    p->file = p->data = file;
    p->size = end;
}

/* ---- what a folder gives -------------------------------------------------------------------------------- */

static uint8_t *converted(size_t *size)
{
    *size = 0;
    return convert(folder, "model", "f32", model_path) ? file_need(model_path, size) : NULL;
}

/* `p` gives the same bytes as the case; `p` is freed. */
static void check_same(const char *name, parts p)
{
    char original[PATH_ROOM], path[PATH_ROOM];
    size_t want_size = 0, got_size;
    uint8_t *want = NULL, *got;
    snprintf(original, sizeof original, "tests/cases/%s", name);
    if (convert(original, name, "f32", path)) want = file_need(path, &want_size);
    write_case(&p);
    got = converted(&got_size);
    CHECK_THAT(want && got && want_size == got_size && memcmp(want, got, want_size) == 0, "not the file of %s", name);
    free(want);
    free(got);
    free_case(&p);
}

/* `p` fails with one line that has `words`; `p` is freed. */
static void check_refused(const char *what, parts p, const char *words)
{
    const char *arguments[] = { folder, "--dry-run", NULL };
    char errors[2000];
    int code;
    write_case(&p);
    code = tool_run("convert", arguments, errors, sizeof errors);
    CHECK_THAT(code == 1 && strstr(errors, words), "%s: exit %d, '%s' lacks '%s'", what, code, errors, words);
    free_case(&p);
}

/* ---- spellings ------------------------------------------------------------------------------------------ */

static void test_other_layer(void)
{
    parts p = read_case("zamba2-rope");
    p.header = replace_all(p.header, "layers.1.shared_transformer", "layers.4.shared_transformer");
    check_same("zamba2-rope", p);
    p = read_case("zamba2-rope");
    p.header = replace_all(p.header, "layers.3.shared_transformer.self_attn", "layers.6.shared_transformer.self_attn");
    check_same("zamba2-rope", p);
    p = read_case("zamba");
    p.header = replace_all(p.header, "layers.2.shared_transf.", "layers.4.shared_transf.");
    check_same("zamba", p);
}

static void test_wrong_layer(void)
{
    parts p = read_case("zamba2-rope");
    p.header = replace_all(p.header, "1.shared_transformer.self_attn.k", "2.shared_transformer.self_attn.k");
    check_refused("a layer that is not hybrid", p, "layers.1.shared_transformer.self_attn.k_proj.weight is missing");
    p = read_case("zamba2-rope");
    p.header = replace_all(p.header, "adapter_list.2.0", "adapter_list.4.0");
    check_refused("no such slot", p, "adapter_list.2.0.weight is missing");
}

/* A slot of the model's own adapters belongs to every use of its block: elsewhere it has no place. */
static void test_idle_adapters(void)
{
    static const char from[] = "layers.1.shared_transformer.feed_forward.gate_up_proj_adapter_list.0.";
    parts p = read_case("zamba2-rope");
    copy_tensors(&p, from, "layers.4.shared_transformer.feed_forward.gate_up_proj_adapter_list.0.", 1);
    check_same("zamba2-rope", p);
    p = read_case("zamba2-rope");
    copy_tensors(&p, from, "layers.3.shared_transformer.feed_forward.gate_up_proj_adapter_list.0.", 1);
    check_refused("a slot of the other block", p, "gate_up_proj_adapter_list.0.0.weight has no place");
    p = read_case("zamba2-rope");
    copy_tensors(&p, from, "layers.2.shared_transformer.feed_forward.gate_up_proj_adapter_list.0.", 1);
    check_refused("a slot in a layer without a block", p, "gate_up_proj_adapter_list.0.0.weight has no place");
}

/* Stored twice: the same is stored once in the model, something else is a block of its own. */
static void test_copies(void)
{
    parts p = read_case("zamba2-rope");
    size_t size, original;
    copy_tensors(&p, "layers.1.shared_transformer", "layers.4.shared_transformer", 0);
    check_same("zamba2-rope", p);
    free(converted(&original));
    p = read_case("zamba2-rope");
    copy_tensors(&p, "layers.1.shared_transformer.self_attn", "layers.4.shared_transformer.self_attn", 1);
    write_case(&p);
    free(converted(&size));
    CHECK_THAT(size > original, "a block with weights of its own is shared: %zu bytes, %zu before", size, original);
    free_case(&p);
}

static void test_tied_head(void)
{
    parts p = read_case("zamba2-rope");
    size_t size, original;
    copy_tensors(&p, "model.embed_tokens.weight", "lm_head.weight", 0);
    check_same("zamba2-rope", p);
    free(converted(&original));
    p = read_case("zamba2-rope");
    copy_tensors(&p, "model.embed_tokens.weight", "lm_head.weight", 1);
    write_case(&p);
    free(converted(&size));
    CHECK_THAT(size > original, "a head with weights of its own is ignored");
    free_case(&p);
}

static void test_layer_types(void)
{
    parts p = read_case("zamba2-rope");
    p.config = replace_all(replace_all(p.config, "\"linear_attention\"", "\"m\""), "\"hybrid\"", "\"g\"");
    check_same("zamba2-rope", p);
    p = read_case("zamba");
    p.config = replace_all(p.config, "\"linear_attention\"", "\"mamba\"");
    check_same("zamba", p);
    p = read_case("zamba");
    p.config = replace_all(p.config, "\"layers_block_type\"", "\"layer_types\"");
    check_same("zamba", p);
    p = read_case("zamba");
    p.config = with_value(p.config, "layers_block_type", NULL); /* by period and offset */
    check_same("zamba", p);
}

/* The keys of the authors' own code, and derived sizes left out. */
static void test_old_keys(void)
{
    parts p = read_case("zamba2-rope");
    p.config = replace_all(p.config, "\"mamba_d_state\"", "\"state_size\"");
    p.config = replace_all(p.config, "\"mamba_d_conv\"", "\"conv_dimension\"");
    p.config = replace_all(p.config, "\"mamba_expand\"", "\"expansion_factor\"");
    p.config = replace_all(p.config, "\"intermediate_size\"", "\"ffn_hidden_size\"");
    p.config = replace_all(p.config, "\"adapter_rank\"", "\"lora_rank\"");
    p.config = replace_all(p.config, "\"use_shared_attention_adapter\"", "\"use_shared_attention_lora\"");
    p.config = with_value(p.config, "n_mamba_heads", NULL);
    p.config = with_value(p.config, "attention_head_dim", NULL);
    p.config = with_value(p.config, "attention_hidden_size", "null");
    p.config = with_value(p.config, "num_key_value_heads", "null");
    p.config = with_value(p.config, "hybrid_layer_ids", NULL);
    check_same("zamba2-rope", p);
}

static void test_mamba2_spellings(void)
{
    static const char *const forever[] = { "[0.0, Infinity]", "[0, {\"__float__\": \"Infinity\"}]", NULL };
    parts p = read_case("mamba2");
    size_t i;
    p.header = replace_all(p.header, "\"backbone.", "\"model.backbone.");
    p.header = replace_all(p.header, "\"lm_head.", "\"model.lm_head.");
    check_same("mamba2", p);
    for (i = 0; i < 3; i++) {
        p = read_case("mamba2");
        p.config = with_value(p.config, "time_step_limit", forever[i]);
        check_same("mamba2", p);
    }
    p = read_case("mamba2");
    p.config = with_value(with_value(p.config, "intermediate_size", "77"), "norm_before_gate", "true");
    check_same("mamba2", p);
}

/* ---- dt limits ------------------------------------------------------------------------------------------ */

/* --dt-limit with the range in the config gives the config's file, with another one another. */
static void test_dt_limit(void)
{
    const char *arguments[] = { "tests/cases/mamba2-dt-limit", model_path, "--type", "f32", "--force", "--dt-limit",
        "0.1,0.6", NULL };
    char path[PATH_ROOM], errors[2000];
    size_t want_size, size;
    uint8_t *want, *got;
    if (!convert(arguments[0], "mamba2-dt-limit", "f32", path)) return;
    want = file_need(path, &want_size);
    temp_path(model_path, "limited.jamba");
    CHECK(tool_run("convert", arguments, errors, sizeof errors) == 0);
    got = file_need(model_path, &size);
    CHECK(size == want_size && memcmp(got, want, size) == 0);
    free(got);
    arguments[6] = "0.1,inf";
    CHECK(tool_run("convert", arguments, errors, sizeof errors) == 0);
    got = file_need(model_path, &size);
    CHECK(size == want_size && memcmp(got, want, size) != 0);
    free(got);
    free(want);
}

/* Old configs do not say the width; one that says another is wrong. */
static void test_mamba_width(void)
{
    parts p = read_case("mamba");
    p.config = with_value(p.config, "intermediate_size", "null");
    check_same("mamba", p);
    p = read_case("mamba");
    p.config = with_value(p.config, "intermediate_size", "126");
    check_refused("another width", p, "has the shape");
}

static void test_dt_limit_usage(void)
{
    static const char *const wrong[] = { "0.5", "1,0", "x,inf", "1,inf,", ",1", "", "inf,inf", "nan,1", "-1,1", NULL };
    const char *arguments[] = { "tests/cases/mamba2-dt-limit", "--dry-run", "--dt-limit", NULL, NULL };
    char errors[2000];
    size_t i;
    for (i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        arguments[3] = wrong[i];
        CHECK_THAT(tool_run("convert", arguments, errors, sizeof errors) == 2 && strstr(errors, "--dt-limit"), "%s: %s",
            wrong[i] ? wrong[i] : "nothing", errors);
    }
    arguments[0] = "tests/cases/zamba"; /* Mamba-1 */
    arguments[3] = "0,1";
    CHECK(tool_run("convert", arguments, errors, sizeof errors) == 2 && strstr(errors, "--dt-limit"));
}

/* ---- refused -------------------------------------------------------------------------------------------- */

typedef struct refusal {
    const char *name, *key, *value, *words;
} refusal;

static const refusal refusals[] = {
    { "zamba2-rope", "model_type", "\"bamba\"", "model_type \"bamba\"" },
    { "zamba2-rope", "hidden_act", "\"gelu_pytorch_tanh\"", "hidden_act is \"gelu_pytorch_tanh\"" },
    { "zamba2-rope", "n_mamba_heads", "5", "n_mamba_heads" },
    { "zamba2-rope", "mamba_headdim", "8", "mamba_headdim" },
    { "zamba2-rope", "attention_hidden_size", "32", "attention_hidden_size" },
    { "zamba2-rope", "layers_block_type", "null", "layers_block_type" },
    { "zamba2-rope", "layers_block_type", "[\"hybrid\", \"mamba\"]", "layers_block_type" },
    { "zamba2-rope", "layers_block_type", "[\"m\", \"m\", \"m\", \"m\", \"m\", \"m\", \"moe\"]", "\"moe\"" },
    { "zamba2-rope", "hybrid_layer_ids", "[1, 3]", "hybrid_layer_ids" },
    { "zamba2-rope", "num_hidden_layers", "6", "num_hidden_layers" },
    { "zamba2-rope", "num_mem_blocks", "3", "is missing" },
    { "zamba2-rope", "num_mem_blocks", "0", "num_mem_blocks" },
    { "zamba2-rope", "adapter_rank", "4", "adapter_list.0.0.weight has the shape" },
    { "zamba2-rope", "use_shared_attention_adapter", "true", "linear_q_adapter_list.0.0.weight is missing" },
    { "zamba2-attn-adapter", "use_shared_attention_adapter", "false", "has no place" },
    { "zamba2-rope", "use_mem_rope", "1", "use_mem_rope" },
    { "zamba2-rope", "time_step_min", "-1", "time_step_min" },
    { "zamba2-rope", "rope_parameters", "{\"rope_type\": \"yarn\", \"factor\": 2}", "yarn" },
    { "zamba2-rope", "rope_parameters", "{\"rope_type\": \"longrope\", \"factor\": 2}", "longrope" },
    { "zamba2-rope", "rope_parameters", "{\"rope_type\": \"default\", \"partial_rotary_factor\": 0.5}", "partial" },
    { "zamba2-rope", "mamba_ngroups", "3", "groups" },
    { "zamba2-rope", "add_bias_linear", "true", "in_proj.bias is missing" },
    { "zamba2-rope", "num_key_value_heads", "2", "k_proj.weight has the shape" },
    { "zamba2-rope", "tie_word_embeddings", "false", "lm_head.weight is missing" },
    { "zamba2-rope", "embedding_multiplier", "2.0", "embedding_multiplier" },
    { "zamba2-rope", "logits_scaling", "8", "logits_scaling" },
    { "zamba2-rope", "final_logit_softcapping", "30.0", "final_logit_softcapping" },
    { "zamba2-rope", "sliding_window", "4096", "sliding_window" },
    { "zamba2-rope", "use_qk_norm", "true", "use_qk_norm" },
    { "zamba", "n_mamba_heads", "3", "x_proj_weight has the shape" },
    { "zamba", "n_mamba_heads", "5", "5 heads" },
    { "zamba", "mamba_dt_rank", "4", "x_proj_weight has the shape" },
    { "zamba", "hidden_mamba_act", "\"relu\"", "hidden_mamba_act is \"relu\"" },
    { "mamba2", "num_heads", "4", "num_heads" },
    { "mamba2", "n_groups", "2", "in_proj.weight has the shape" },
    { "mamba2", "hidden_act", "\"gelu\"", "hidden_act" },
    { "mamba2", "time_step_limit", "[0.1]", "time_step_limit" },
    { "mamba2", "time_step_limit", "[0.6, 0.1]", "time_step_limit" },
    { "mamba2", "time_step_limit", "[-1, 2]", "time_step_limit" },
    { "mamba2", "time_step_limit", "[Infinity, Infinity]", "time_step_limit" },
    { "mamba2", "time_step_limit", "[0, {\"__float__\": \"NaN\"}]", "time_step_limit" },
    { "mamba2", "time_step_limit", "0.5", "time_step_limit" },
    { "mamba2", "use_conv_bias", "false", "has no place" },
    { "falcon-mamba", "mixer_rms_eps", "0", "mixer_rms_eps" },
};

static void test_refusals(void)
{
    size_t i;
    char what[200];
    for (i = 0; i < sizeof refusals / sizeof refusals[0]; i++) {
        parts p = read_case(refusals[i].name);
        snprintf(what, sizeof what, "%s with %s = %s", refusals[i].name, refusals[i].key, refusals[i].value);
        p.config = with_value(p.config, refusals[i].key, refusals[i].value);
        check_refused(what, p, refusals[i].words);
    }
}

int main(int argc, char **argv)
{
    static const named_test tests[] = { { "shared blocks under another layer's name", test_other_layer },
        { "tensors under a wrong name", test_wrong_layer },
        { "adapters that nothing uses", test_idle_adapters }, { "copies of shared blocks", test_copies },
        { "a stored head that is tied", test_tied_head }, { "types of layers", test_layer_types },
        { "old keys of zamba2", test_old_keys }, { "spellings of mamba2", test_mamba2_spellings },
        { "the width of mamba", test_mamba_width }, { "--dt-limit", test_dt_limit },
        { "--dt-limit, wrong", test_dt_limit_usage }, { "refused", test_refusals } };
    test_start(argc, argv);
    temp_path(folder, "folder");
    mkdir(folder, 0777);
    test_run(tests, sizeof tests / sizeof tests[0]);
    return test_summary();
}
