/* export_config.h - the config.json of a model file: settings back from the program, written by the tables that
 * families.h reads them with.
 *
 * A setting that the program does not tell is left out. What comes out is no proof yet: export.c converts the
 * folder again and compares the programs.
 */
#ifndef EXPORT_CONFIG_H
#define EXPORT_CONFIG_H

#include "writer.h"

/* A model file seen as the conversion that made it. */
typedef struct export_plan {
    const char *path;
    model_file *file;
    convert_plan plan; /* blocks and tensors are the file's */
    bool known[SETTINGS];
    uint32_t *starts; /* of each layer: its first block */
    rope_settings rope;
} export_plan;

static void export_free(export_plan *e)
{
    free(e->starts);
    e->plan.model.blocks = NULL;
    e->plan.model.tensors = NULL;
    plan_free(&e->plan);
}

static void export_learn(export_plan *e, setting which, double value)
{
    if (e->known[which]) return;
    e->known[which] = true;
    e->plan.settings[which] = value;
}

/* ---- decimals ------------------------------------------------------------------------------ */

/* `value` rounded to `digits` decimal digits. */
static double export_round(double value, int digits)
{
    char text[40];
    snprintf(text, sizeof text, "%.*e", digits - 1, value);
    return strtod(text, NULL);
}

/* The shortest decimal that becomes this float. */
static double export_decimal(float value)
{
    int digits = 1;
    while (digits < 9 && (float)export_round((double)value, digits) != value) digits++;
    return export_round((double)value, digits);
}

/* ---- layers -------------------------------------------------------------------------------- */

/* Blocks of the layer that begins with block `at`. */
static uint32_t export_layer_blocks(const jmb_metadata *m, uint32_t at)
{
    const jmb_block *b = &m->blocks[at];
    if (b->input == JMB_FROM_X_AND_E) return 4;
    return at + 1 < m->header.blocks && (b[1].kind == JMB_MLP || b[1].kind == JMB_MOE) ? 2 : 1;
}

static void export_add_layer(export_plan *e, uint32_t layer, uint32_t at, uint32_t blocks)
{
    convert_plan *plan = &e->plan;
    uint32_t i;
    e->starts[layer] = at;
    plan->ordinals[layer] = (uint32_t)JMB_NONE;
    for (i = 0; i < blocks; i++) plan->layers[at + i] = layer;
    if (blocks < 4) return;
    plan->ordinals[layer] = plan->hybrid_count;
    plan->hybrids[plan->hybrid_count].layer = layer;
    plan->hybrids[plan->hybrid_count++].block = at;
}

static bool export_find_layers(export_plan *e, tool_error *error)
{
    convert_plan *plan = &e->plan;
    uint32_t count = plan->model.header.blocks, at, layers = 0, blocks;
    e->starts = (uint32_t *)calloc(count, sizeof *e->starts);
    plan->layers = (uint32_t *)calloc(count, sizeof *plan->layers);
    plan->ordinals = (uint32_t *)calloc(count, sizeof *plan->ordinals);
    plan->hybrids = calloc(count, sizeof *plan->hybrids);
    if (!e->starts || !plan->layers || !plan->ordinals || !plan->hybrids) return tool_no_memory(error);
    for (at = 0; at < count; at += blocks) {
        blocks = export_layer_blocks(&plan->model, at);
        if (blocks > count - at) return tool_error_set(error, "%s: block %u begins no whole layer", e->path, at);
        export_add_layer(e, layers++, at, blocks);
    }
    export_learn(e, SET_LAYERS, layers);
    return true;
}

/* Period and offset of the layers whose block number `place` has this kind. One alone, or none, comes with a
 * period beyond the last layer. */
static void export_find_period(export_plan *e, uint32_t kind, uint32_t place, setting period, setting offset)
{
    uint32_t layers = plan_get(&e->plan, SET_LAYERS), i, found = 0, at[2] = { 0, 0 };
    for (i = 0; i < layers && found < 2; i++) {
        uint32_t end = i + 1 < layers ? e->starts[i + 1] : e->plan.model.header.blocks;
        if (e->starts[i] + place < end && e->plan.model.blocks[e->starts[i] + place].kind == kind) at[found++] = i;
    }
    export_learn(e, period, found == 2 ? at[1] - at[0] : found == 1 ? layers : layers + 1);
    export_learn(e, offset, found > 0 ? at[0] : layers);
}

/* The hybrid that owns what hybrid `i` uses as its block number `place`: attention 0, mlp 1. */
static uint32_t export_owner(const export_plan *e, uint32_t i, uint32_t place)
{
    const convert_plan *plan = &e->plan;
    uint32_t unit = plan->model.blocks[plan->hybrids[i].block + place].unit;
    return plan->ordinals[plan->layers[unit]];
}

/* The largest number of block pairs taken in turn that explains who shares with whom. */
static void export_find_sharing(export_plan *e)
{
    uint32_t pairs, i, place, count = e->plan.hybrid_count;
    for (pairs = count; pairs > 1; pairs--) {
        bool fits = true;
        for (i = 0; i < count; i++)
            for (place = 0; place < 2; place++) {
                uint32_t owner = export_owner(e, i, place);
                fits = fits && (owner == i || owner == i % pairs);
            }
        if (fits) break;
    }
    if (count > 0) export_learn(e, SET_MEM_BLOCKS, pairs);
}

/* ---- settings ------------------------------------------------------------------------------ */

static void export_learn_header(export_plan *e)
{
    const jmb_header *h = &e->plan.model.header;
    export_learn(e, SET_VOCAB, h->vocab);
    export_learn(e, SET_HIDDEN, h->hidden);
    export_learn(e, SET_CONTEXT, h->context);
    export_learn(e, SET_EPS, export_decimal(h->eps));
    export_learn(e, SET_TIED, !h->head);
    export_learn(e, SET_BOS, h->bos);
    export_learn(e, SET_PAD, h->pad);
}

static void export_learn_attention(export_plan *e, const jmb_block *b)
{
    export_learn(e, SET_HEADS, b->heads);
    export_learn(e, SET_KV_HEADS, b->kv_heads);
    export_learn(e, SET_HEAD_DIM, b->head_dim);
    export_learn(e, SET_ATTENTION_BIAS, (b->flags & JMB_BIAS) != 0);
    export_learn(e, SET_ROPE, (b->flags & JMB_ROPE) != 0);
    export_learn(e, SET_ATTENTION_ADAPTER, b->rank > 0);
    if (b->rank) export_learn(e, SET_RANK, b->rank);
}

static void export_learn_mamba(export_plan *e, const jmb_block *b)
{
    uint32_t hidden = e->plan.model.header.hidden;
    export_learn(e, SET_D_INNER, b->d_inner);
    if (b->d_inner % hidden == 0) export_learn(e, SET_EXPAND, b->d_inner / hidden);
    export_learn(e, SET_D_STATE, b->d_state);
    export_learn(e, SET_D_CONV, b->d_conv);
    export_learn(e, SET_MAMBA_HEADS, b->heads);
    export_learn(e, SET_MAMBA_HEAD_DIM, b->d_inner / b->heads);
    export_learn(e, SET_CONV_ACT, b->act);
    export_learn(e, SET_INNER_EPS, export_decimal(b->inner_eps));
    export_learn(e, SET_PROJ_BIAS, (b->flags & JMB_BIAS) != 0);
    export_learn(e, SET_CONV_BIAS, (b->flags & JMB_CONV_BIAS) != 0);
    if (b->kind == JMB_MAMBA) {
        export_learn(e, SET_DT_RANK, b->dt_rank);
        return;
    }
    export_learn(e, SET_GROUPS, b->n_groups);
    export_learn(e, SET_DT_MIN, export_decimal(b->dt_min));
    export_learn(e, SET_DT_MAX, b->dt_max > FLT_MAX ? (double)INFINITY : export_decimal(b->dt_max));
}

static void export_learn_mlp(export_plan *e, const jmb_block *b)
{
    export_learn(e, SET_INTERMEDIATE, b->intermediate);
    export_learn(e, SET_ACT, b->act);
    if (b->kind == JMB_MOE) {
        export_learn(e, SET_EXPERTS, b->experts);
        export_learn(e, SET_TOP_K, b->top_k);
        return;
    }
    if (b->rank) export_learn(e, SET_RANK, b->rank);
    export_learn(e, SET_MLP_BIAS, (b->flags & JMB_BIAS) != 0);
}

static void export_learn_block(export_plan *e, const jmb_block *b)
{
    switch (b->kind) {
    case JMB_ATTENTION: export_learn_attention(e, b); break;
    case JMB_MAMBA:
    case JMB_MAMBA2: export_learn_mamba(e, b); break;
    case JMB_MLP:
    case JMB_MOE: export_learn_mlp(e, b); break;
    default: break;
    }
}

static void export_learn_all(export_plan *e)
{
    uint32_t i;
    export_learn_header(e);
    for (i = 0; i < e->plan.model.header.blocks; i++) export_learn_block(e, &e->plan.model.blocks[i]);
    if (e->plan.hybrid_count > 0) export_learn(e, SET_ATTENTION_WIDTH, 2.0 * e->plan.model.header.hidden);
    else {
        export_find_period(e, JMB_ATTENTION, 0, SET_ATTENTION_PERIOD, SET_ATTENTION_OFFSET);
        export_find_period(e, JMB_MOE, 1, SET_EXPERT_PERIOD, SET_EXPERT_OFFSET);
    }
    export_find_sharing(e);
    export_learn(e, SET_ACT, JMB_ACT_SILU); /* of a model without MLP */
    export_learn(e, SET_EXPERTS, 1);
    export_learn(e, SET_TOP_K, 1);
}

/* ---- RoPE ---------------------------------------------------------------------------------- */

/* The frequencies of the file, and how many of them settings explain. */
typedef struct rope_search {
    export_plan *e;
    const float *want;
    uint32_t count;
} rope_search;

/* Frequencies from the front that come out of these settings. */
static uint32_t rope_matches(const rope_search *s)
{
    convert_plan *plan = &s->e->plan;
    tool_error none;
    uint32_t i = 0;
    free(plan->rope);
    plan->rope = NULL;
    if (!rope_compute(plan, &s->e->rope, &none)) return 0;
    while (i < s->count && jmb_bits_of(plan->rope[i]) == jmb_bits_of(s->want[i])) i++;
    return i;
}

/* Rounds an estimate to as few digits as give the first `need` frequencies. */
static bool rope_fit(const rope_search *s, double *value, double estimate, uint32_t need)
{
    int digits;
    for (digits = 1; digits <= 17; digits++) {
        *value = export_round(estimate, digits);
        if (*value > 0 && rope_matches(s) >= need) return true;
    }
    return false;
}

/* theta by frequency i, which nothing scales but the linear factor. */
static bool rope_fit_theta(const rope_search *s, uint32_t i, uint32_t need)
{
    double factor = s->e->rope.linear ? s->e->rope.factor : 1, dim = plan_get(&s->e->plan, SET_HEAD_DIM);
    double estimate = i == 0 ? 10000 : pow(1 / ((double)s->want[i] * factor), dim / (2.0 * i));
    return rope_fit(s, &s->e->plan.settings[SET_THETA], estimate, need);
}

/* f_0 is 1 unless it is scaled. */
static bool rope_find_linear(const rope_search *s)
{
    rope_settings *rope = &s->e->rope;
    rope->linear = s->want[0] != 1;
    s->e->plan.settings[SET_THETA] = 10000;
    if (rope->linear && !rope_fit(s, &rope->factor, 1 / (double)s->want[0], 1)) return false;
    return rope_fit_theta(s, s->count - 1, s->count);
}

/* The plain frequency of index i at the theta found. */
static double rope_plain(const rope_search *s, uint32_t i)
{
    return pow(s->e->plan.settings[SET_THETA], -2.0 * i / plan_get(&s->e->plan, SET_HEAD_DIM));
}

/* The inverse wavelength of frequency i before scaling, and how far it is from scaled (0) to plain (1): interpolation
 * is linear in the former. */
static double rope_turns(const rope_search *s, uint32_t i)
{
    return rope_plain(s, i) / (2 * 3.14159265358979323846);
}

static double rope_smooth(const rope_search *s, uint32_t i)
{
    double factor = s->e->rope.factor;
    return ((double)s->want[i] / rope_plain(s, i) - 1 / factor) / (1 - 1 / factor);
}

/* original_max_position_embeddings for a high_freq_factor, from frequency i between. */
static bool rope_fit_original(const rope_search *s, double high, uint32_t i)
{
    rope_settings *rope = &s->e->rope;
    rope->high = high;
    return rope_fit(s, &rope->original, (rope_smooth(s, i) * (high - rope->low) + rope->low) / rope_turns(s, i),
        s->count);
}

/* high_freq_factor from the line through two frequencies between. */
static bool rope_fit_high(const rope_search *s, uint32_t first)
{
    uint32_t last = s->count - 1;
    double slope, at_zero;
    int digits;
    while (last > first && rope_smooth(s, last) < 1e-3) last--;
    if (last == first) return false;
    slope = (rope_smooth(s, first) - rope_smooth(s, last)) / (rope_turns(s, first) - rope_turns(s, last));
    at_zero = rope_smooth(s, first) - slope * rope_turns(s, first);
    for (digits = 1; digits <= 6 && at_zero < 0; digits++)
        if (rope_fit_original(s, export_round(1 - 1 / at_zero, digits), first)) return true;
    return false;
}

/* Where no frequency lies between, any power of two that leaves none there. */
static bool rope_guess_original(const rope_search *s, double high)
{
    rope_settings *rope = &s->e->rope;
    rope->high = high;
    for (rope->original = 1; rope->original < 1e9; rope->original *= 2)
        if (rope_matches(s) == s->count) return true;
    return false;
}

/* Everything for one high_freq_factor, when the first `plain` + 1 frequencies are plain. */
static bool rope_try_high(const rope_search *s, double high, uint32_t plain)
{
    uint32_t i;
    for (i = plain + 1; i < s->count; i++)
        if (rope_fit_original(s, high, i)) return true;
    return rope_guess_original(s, high);
}

/* Of low, high and original only two count, so that low is 1; high is 4 in every model published. */
static bool rope_find_llama3(const rope_search *s)
{
    static const double highs[] = { 4, 2, 3, 1.5, 8 };
    rope_settings *rope = &s->e->rope;
    uint32_t plain = s->count - 1;
    size_t i;
    memset(rope, 0, sizeof *rope);
    while (plain > 0 && !rope_fit_theta(s, plain, plain + 1)) plain--;
    if (plain == 0 || plain + 1 == s->count) return false;
    rope->llama3 = true;
    rope->low = 1;
    rope->factor = export_round(rope_plain(s, s->count - 1) / (double)s->want[s->count - 1], 5);
    if (!(rope->factor > 1)) return false;
    for (i = 0; i < sizeof highs / sizeof highs[0]; i++)
        if (rope_try_high(s, highs[i], plain)) return true;
    return rope_fit_high(s, plain + 1);
}

static bool export_read_rope(const export_plan *e, const jmb_tensor *t, float *out, tool_error *error)
{
    uint8_t *data = (uint8_t *)malloc((size_t)t->bytes);
    bool ok = data != NULL || tool_no_memory(error);
    uint32_t i;
    if (ok && (jmb_file_read(&e->file->file, t->offset, data, (size_t)t->bytes) != t->bytes
                  || jmb_hash64(JMB_HASH_SEED, data, (size_t)t->bytes) != t->hash))
        ok = tool_error_set(error, "%s: the RoPE frequencies are damaged: copy the file again", e->path);
    for (i = 0; i < t->rows && ok; i++) out[i] = jmb_float_of(jmb_load_u32(data + 4 * (size_t)i)); /* one column */
    free(data);
    return ok;
}

/* The settings of the model's RoPE, by its frequencies alone. */
static bool export_find_rope(export_plan *e, tool_error *error)
{
    const jmb_metadata *m = &e->plan.model;
    float want[JMB_MAX_HEAD_DIM];
    rope_search s = { e, want, 0 };
    const jmb_tensor *rope = NULL;
    uint32_t i;
    for (i = 0; i < m->header.tensors; i++) {
        if (m->tensors[i].role != JMB_ROLE_ROPE) continue;
        if (rope && rope->hash != m->tensors[i].hash)
            return tool_error_set(error, "%s: layers differ in RoPE, which no config.json can say", e->path);
        rope = &m->tensors[i];
    }
    if (!rope) return true;
    s.count = rope->rows;
    if (!export_read_rope(e, rope, want, error)) return false;
    e->known[SET_THETA] = true;
    return rope_find_linear(&s) || rope_find_llama3(&s)
        || tool_error_set(error, "%s: no RoPE settings (default, linear, llama3) give its frequencies", e->path);
}

/* ---- everything from a file ---------------------------------------------------------------- */

static bool export_find_family(export_plan *e, tool_error *error)
{
    const char *name = jmb_find_string(&e->plan.model, "architecture");
    int i;
    for (i = 0; i < FAMILIES; i++)
        if (name && strcmp(families[i].name, name) == 0) e->plan.family = &families[i];
    return e->plan.family
        || tool_error_set(error, "%s: architecture \"%.64s\" is none that convert writes", e->path, name ? name : "");
}

static bool export_check_types(const export_plan *e, tool_error *error)
{
    const jmb_metadata *m = &e->plan.model;
    uint32_t i;
    for (i = 0; i < m->header.tensors; i++)
        if (m->tensors[i].type != jmb_role_type(m->tensors[i].role, m->header.type) || m->tensors[i].type >= JMB_Q8)
            return tool_error_set(error,
                "%s: has weights in %s, which a checkpoint cannot hold: convert the original with --type f32, f16 or "
                "bf16 and export that", e->path, jmb_type_names[m->tensors[i].type]);
    return true;
}

/* Free it in any case. */
static bool export_make(export_plan *e, model_file *file, const char *path, tool_error *error)
{
    memset(e, 0, sizeof *e);
    e->path = path;
    e->file = file;
    e->plan.model = file->metadata;
    if (!export_check_types(e, error) || !export_find_family(e, error) || !export_find_layers(e, error)) return false;
    export_learn_all(e);
    return export_find_rope(e, error);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

static void put_text(tool_buffer *out, const char *text)
{
    tool_buffer_add(out, text, strlen(text));
}

static void put_integer(tool_buffer *out, uint64_t value)
{
    char text[24];
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    put_text(out, text);
}

/* A string of UTF-8. */
static void put_string(tool_buffer *out, const char *text, size_t size)
{
    size_t i;
    char escape[8];
    tool_buffer_u8(out, '"');
    for (i = 0; i < size; i++) {
        uint8_t c = (uint8_t)text[i];
        if (c == '\n') snprintf(escape, sizeof escape, "\\n");
        else snprintf(escape, sizeof escape, c == '"' || c == '\\' ? "\\%c" : "\\u%04x", c);
        if (c == '"' || c == '\\' || c < 0x20 || c == 0x7f) put_text(out, escape);
        else tool_buffer_u8(out, c);
    }
    tool_buffer_u8(out, '"');
}

/* The shortest decimal; it has a point or an exponent, which makes it a float to Python. Infinity is bare, as
 * Python writes and reads it. */
static void put_number(tool_buffer *out, double value)
{
    char text[40];
    int digits = 1;
    while (digits < 17 && export_round(value, digits) != value) digits++;
    if (value > DBL_MAX) snprintf(text, sizeof text, "Infinity");
    else if (value == floor(value) && fabs(value) < 1e15) snprintf(text, sizeof text, "%.1f", value);
    else snprintf(text, sizeof text, "%.*g", digits, value);
    put_text(out, text);
}

/* What goes in front of a member: a comma unless it is the first, a new line, the key. */
static void put_key(tool_buffer *out, const char *key)
{
    put_text(out, out->size > 0 && out->data[out->size - 1] == '{' ? "\n  " : ",\n  ");
    put_string(out, key, strlen(key));
    put_text(out, ": ");
}

static void put_member(tool_buffer *out, const char *key, const char *text)
{
    put_key(out, key);
    put_string(out, text, strlen(text));
}

static void put_token_id(tool_buffer *out, uint32_t token)
{
    if (token == JMB_NO_TOKEN) put_text(out, "null");
    else put_integer(out, token);
}

/* One token as itself, several as a list. */
static void put_eos(tool_buffer *out, const jmb_header *h)
{
    uint32_t i;
    put_key(out, "eos_token_id");
    if (h->eos_count < 2) {
        put_token_id(out, h->eos_count ? h->eos0 : JMB_NO_TOKEN);
        return;
    }
    for (i = 0; i < h->eos_count; i++) {
        put_text(out, i == 0 ? "[" : ", ");
        put_integer(out, jmb_eos(h, i));
    }
    put_text(out, "]");
}

/* ---- config.json --------------------------------------------------------------------------- */

/* Of model_type falcon_mamba, FalconMambaForCausalLM. */
static void put_architecture(tool_buffer *out, const char *name)
{
    bool capital = true;
    put_key(out, "architectures");
    put_text(out, "[\"");
    for (; *name; name++) {
        if (*name != '_') tool_buffer_u8(out, (uint8_t)(capital && *name >= 'a' ? *name - 'a' + 'A' : *name));
        capital = *name == '_';
    }
    put_text(out, "ForCausalLM\"]");
}

static void put_limit(tool_buffer *out, const double limit[2])
{
    put_text(out, "[");
    put_number(out, limit[0]);
    put_text(out, ", ");
    put_number(out, limit[1]);
    put_text(out, "]");
}

static bool key_is_told(const export_plan *e, const config_key *key)
{
    const double *value;
    if (key->which >= SETTINGS || !e->known[key->which]) return false;
    value = &e->plan.settings[key->which];
    return key->kind != KEY_LIMIT || value[0] != key->standard || value[1] != key->high; /* as no limit is written */
}

static void put_setting(tool_buffer *out, const export_plan *e, const config_key *key)
{
    const double *value = &e->plan.settings[key->which];
    if (!key_is_told(e, key)) return;
    put_key(out, key->name);
    switch (key->kind) {
    case KEY_FLAG: put_text(out, *value != 0 ? "true" : "false"); break;
    case KEY_TOKEN: put_token_id(out, (uint32_t)*value); break;
    case KEY_ACT: put_text(out, *value == JMB_ACT_GELU ? "\"gelu\"" : "\"silu\""); break;
    case KEY_LIMIT: put_limit(out, value); break;
    case KEY_NUMBER: put_number(out, *value); break;
    default: put_integer(out, (uint64_t)*value); break;
    }
}

static void put_rope_number(tool_buffer *out, const char *key, double value)
{
    put_text(out, ", ");
    put_string(out, key, strlen(key));
    put_text(out, ": ");
    put_number(out, value);
}

/* As transformers 4 wrote it, which 5 reads too. Positions are an integer there. */
static void put_rope_scaling(tool_buffer *out, const rope_settings *rope)
{
    if (!rope->linear && !rope->llama3) return;
    put_key(out, "rope_scaling");
    put_text(out, rope->linear ? "{\"rope_type\": \"linear\"" : "{\"rope_type\": \"llama3\"");
    put_rope_number(out, "factor", rope->factor);
    if (rope->llama3) {
        put_rope_number(out, "low_freq_factor", rope->low);
        put_rope_number(out, "high_freq_factor", rope->high);
        put_text(out, ", \"original_max_position_embeddings\": ");
        if (rope->original == floor(rope->original)) put_integer(out, (uint64_t)rope->original);
        else put_number(out, rope->original);
    }
    put_text(out, "}");
}

static void put_hybrids(tool_buffer *out, const convert_plan *plan)
{
    uint32_t i, layers = plan_get(plan, SET_LAYERS);
    put_key(out, "layers_block_type");
    for (i = 0; i < layers; i++) {
        put_text(out, i == 0 ? "[" : ", ");
        put_text(out, plan->ordinals[i] == JMB_NONE ? "\"mamba\"" : "\"hybrid\"");
    }
    put_text(out, "]");
    put_key(out, "hybrid_layer_ids");
    put_text(out, "[");
    for (i = 0; i < plan->hybrid_count; i++) {
        if (i > 0) put_text(out, ", ");
        put_integer(out, plan->hybrids[i].layer);
    }
    put_text(out, "]");
}

static void export_config(const export_plan *e, tool_buffer *out)
{
    static const char *const dtypes[] = { "float32", "float16", "bfloat16" };
    const convert_plan *plan = &e->plan;
    const config_key *key;
    put_text(out, "{");
    put_architecture(out, plan->family->name);
    put_member(out, "model_type", plan->family->name);
    put_member(out, "torch_dtype", dtypes[plan->model.header.type]);
    for (key = plan->family->keys; key->name; key++) put_setting(out, e, key);
    for (key = common_keys; key->name; key++) put_setting(out, e, key);
    put_eos(out, &plan->model.header);
    put_rope_scaling(out, &e->rope);
    if (plan->family->layer == zamba_layer || plan->family->layer == zamba2_layer) put_hybrids(out, plan);
    put_text(out, "\n}\n");
}

static void export_generation_config(const export_plan *e, tool_buffer *out)
{
    const jmb_header *h = &e->plan.model.header;
    put_text(out, "{");
    put_key(out, "bos_token_id");
    put_token_id(out, h->bos);
    put_eos(out, h);
    put_key(out, "pad_token_id");
    put_token_id(out, h->pad);
    put_text(out, "\n}\n");
}

#endif
