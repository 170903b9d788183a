/* lora.h - a folder of the PEFT library: which modules its low-rank matrices A and B adapt, and how strongly.
 *
 * adapter_model.safetensors names them base_model.model.MODULE.lora_A.weight and .lora_B.weight; of an embedding,
 * .lora_embedding_A and _B. MODULE is what the base model calls it, but for every ".base_layer" in it: parameters
 * of one module that are adapted by themselves (target_parameters: all experts in one tensor) nest, and only their
 * shapes tell which is which. Where embedding or head are adapted, PEFT stores copies of their weights too.
 */
#ifndef LORA_H
#define LORA_H

#include "pattern.h"
#include "safetensors.h"

enum { LORA_KEY = PATTERN_TEXT + 8 }; /* room for the name of a module or parameter */
typedef char lora_names_fit[(int)ST_MAX_NAME <= (int)PATTERN_TEXT ? 1 : -1];

typedef struct lora_module {
    char *name; /* of the base model */
    const st_tensor *a, *b;
    bool embedding, used;
    float *a_values, *b_values; /* once they are needed */
} lora_module;

typedef struct lora_set {
    st_checkpoint checkpoint;
    const char *path; /* of the tensors */
    char *config_path;
    json_doc doc; /* adapter_config.json */
    int64_t r;
    double alpha;
    bool rslora;
    lora_module *modules; /* by name */
    size_t count;
} lora_set;

/* ---- adapter_config.json ------------------------------------------------------------------- */

static const json_value *lora_value(const lora_set *set, const char *key)
{
    const json_value *v = json_get(json_root(&set->doc), key);
    return json_kind(v) == JSON_NULL ? NULL : v;
}

static bool lora_is_empty(const json_value *v)
{
    bool value;
    if (json_kind(v) == JSON_ARRAY || json_kind(v) == JSON_OBJECT) return json_count(v) == 0;
    return json_kind(v) == JSON_NONE || (json_bool(v, &value) && !value);
}

/* What changes the computation or the base weights beyond B A x. */
static bool lora_check_refused(const lora_set *set, tool_error *error)
{
    static const char *const keys[] = { "use_dora", "modules_to_save", "lora_bias", "trainable_token_indices",
        "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "velora_config", "kasa_config",
        "monteclora_config", "arrow_config", "fan_in_fan_out" };
    size_t i;
    for (i = 0; i < sizeof keys / sizeof keys[0]; i++)
        if (!lora_is_empty(lora_value(set, keys[i])))
            return tool_error_set(error,
                "%s: %s is set, which cannot be converted: merge the adapter in PEFT (merge_and_unload) instead",
                set->config_path, keys[i]);
    return true;
}

/* Some ways to start training replace the base weights by what A and B leave of them. */
static bool lora_check_start(const lora_set *set, tool_error *error)
{
    static const char *const harmless[] = { "gaussian", "eva", "orthogonal" };
    const json_value *v = lora_value(set, "init_lora_weights");
    size_t i;
    if (json_kind(v) == JSON_NONE || json_kind(v) == JSON_BOOL) return true;
    for (i = 0; i < sizeof harmless / sizeof harmless[0]; i++)
        if (json_is_string(v, harmless[i])) return true;
    return tool_error_set(error,
        "%s: init_lora_weights is \"%.32s\": the adapter may belong to changed base weights; save it with "
        "path_initial_model_for_weight_conversion", set->config_path,
        json_kind(v) == JSON_STRING ? json_string(v, NULL) : "?");
}

static bool lora_check_word(const lora_set *set, const char *key, const char *word, const char *hint, tool_error *error)
{
    const json_value *v = lora_value(set, key);
    if (json_is_string(v, word)) return true;
    return tool_error_set(error, "%s: %s is \"%.32s\"; only \"%s\" can be converted%s", set->config_path, key,
        json_kind(v) == JSON_STRING ? json_string(v, NULL) : "", word, hint);
}

static bool lora_is_words(const json_value *v, bool one)
{
    if (json_kind(v) == JSON_STRING) return one;
    if (json_kind(v) != JSON_ARRAY) return json_kind(v) == JSON_NONE;
    for (v = json_first(v); v; v = json_next(v))
        if (json_kind(v) != JSON_STRING) return false;
    return true;
}

static bool lora_check_words(const lora_set *set, const char *key, bool one, tool_error *error)
{
    return lora_is_words(lora_value(set, key), one)
        || tool_error_set(error, "%s: %s is not %sa list of strings", set->config_path, key, one ? "a string or " : "");
}

/* layers_to_transform: a number or a list of them. */
static bool lora_check_layers(const lora_set *set, tool_error *error)
{
    const json_value *v = lora_value(set, "layers_to_transform"), *item;
    int64_t layer;
    bool ok = !v || json_kind(v) == JSON_ARRAY || json_int(v, &layer);
    for (item = json_kind(v) == JSON_ARRAY ? json_first(v) : NULL; item; item = json_next(item))
        ok = ok && json_int(item, &layer);
    return ok || tool_error_set(error, "%s: layers_to_transform is not a list of integers", set->config_path);
}

static bool lora_check_pattern_numbers(const lora_set *set, const char *key, tool_error *error)
{
    const json_value *v = lora_value(set, key), *item;
    double value;
    bool ok = !v || json_kind(v) == JSON_OBJECT;
    for (item = json_first(v); item; item = json_next(item)) ok = ok && json_number(item, &value);
    return ok || tool_error_set(error, "%s: %s is not an object of numbers", set->config_path, key);
}

static bool lora_check_alpha(const lora_set *set, double alpha, tool_error *error)
{
    return (alpha >= -1e6 && alpha <= 1e6)
        || tool_error_set(error, "%s: lora_alpha must be a number up to a million", set->config_path);
}

static bool lora_read_numbers(lora_set *set, tool_error *error)
{
    const json_value *rslora = lora_value(set, "use_rslora");
    if (!json_int(lora_value(set, "r"), &set->r) || set->r < 1 || set->r > JMB_MAX_RANK)
        return tool_error_set(error, "%s: r must be an integer from 1 to %d", set->config_path, (int)JMB_MAX_RANK);
    if (!json_number(lora_value(set, "lora_alpha"), &set->alpha))
        return tool_error_set(error, "%s: lora_alpha is missing or no number", set->config_path);
    if (rslora && !json_bool(rslora, &set->rslora))
        return tool_error_set(error, "%s: use_rslora must be true or false", set->config_path);
    return lora_check_alpha(set, set->alpha, error);
}

static bool lora_read_config(lora_set *set, tool_error *error)
{
    if (json_kind(json_root(&set->doc)) != JSON_OBJECT)
        return tool_error_set(error, "%s: not a JSON object", set->config_path);
    return lora_check_word(set, "peft_type", "LORA", "", error) && lora_check_refused(set, error)
        && lora_check_start(set, error)
        && (!lora_value(set, "bias") || lora_check_word(set, "bias", "none", ": biases stay the base model's", error))
        && lora_read_numbers(set, error) && lora_check_words(set, "target_modules", true, error)
        && lora_check_words(set, "exclude_modules", true, error)
        && lora_check_words(set, "target_parameters", false, error)
        && lora_check_words(set, "layers_pattern", true, error) && lora_check_layers(set, error)
        && lora_check_pattern_numbers(set, "rank_pattern", error)
        && lora_check_pattern_numbers(set, "alpha_pattern", error);
}

/* ---- patterns ------------------------------------------------------------------------------ */

static bool lora_matches(const lora_set *set, const char *key, const char *pattern, const char *name,
    pattern_start start, bool *matches, tool_error *error)
{
    return pattern_match(pattern, name, start, matches)
        || tool_error_set(error, "%s: %s: the pattern \"%.128s\" is wrong or of a kind that is not known here",
            set->config_path, key, pattern);
}

/* The number of the first pattern of an object that fits; `value` stays without one. */
static bool lora_pattern_number(
    const lora_set *set, const char *key, const char *name, double *value, tool_error *error)
{
    const json_value *item;
    for (item = json_first(lora_value(set, key)); item; item = json_next(item)) {
        bool matches;
        if (!lora_matches(set, key, json_key(item, NULL), name, PATTERN_TAIL, &matches, error)) return false;
        if (matches) return json_number(item, value);
    }
    return true;
}

/* Whether `name` is the word or ends with it behind a dot. */
static bool lora_ends_with(const char *name, const char *word)
{
    size_t length = strlen(name), end = strlen(word);
    return end <= length && strcmp(name + length - end, word) == 0 && (end == length || name[length - end - 1] == '.');
}

/* Whether `name` has one of a list of ends. */
static bool lora_in_list(const lora_set *set, const char *key, const char *name)
{
    const json_value *item;
    bool listed = false;
    for (item = json_first(lora_value(set, key)); item; item = json_next(item))
        listed |= lora_ends_with(name, json_string(item, NULL));
    return listed;
}

/* A list of ends, or one pattern. */
static bool lora_listed(const lora_set *set, const char *key, const char *name, bool *listed, tool_error *error)
{
    const json_value *v = lora_value(set, key);
    if (json_kind(v) == JSON_STRING)
        return lora_matches(set, key, json_string(v, NULL), name, PATTERN_WHOLE, listed, error);
    *listed = lora_in_list(set, key, name);
    return true;
}

/* The layer of a module: the first number between two dots whose name in front, all up to it, ends with the pattern.
 * NULL: any name behind a dot. Stays without one. */
static bool lora_find_layer(
    const lora_set *set, const char *name, const char *pattern, int64_t *layer, tool_error *error)
{
    char front[PATTERN_TEXT + 1];
    const char *dot;
    for (dot = strchr(name, '.'); dot && *layer < 0; dot = strchr(dot + 1, '.')) {
        size_t digits = strspn(dot + 1, "0123456789");
        bool named;
        if (digits == 0 || digits > 9 || dot[1 + digits] != '.') continue;
        snprintf(front, sizeof front, "%.*s", (int)(dot - name), name);
        named = strchr(front, '.') != NULL;
        if (pattern && !lora_matches(set, "layers_pattern", pattern, front, PATTERN_TAIL, &named, error)) return false;
        if (named) *layer = strtol(dot + 1, NULL, 10);
    }
    return true;
}

/* By the first of layers_pattern that finds one, or without it. */
static bool lora_layer(const lora_set *set, const char *name, int64_t *layer, tool_error *error)
{
    const json_value *v = lora_value(set, "layers_pattern"), *item;
    *layer = -1;
    if (json_kind(v) == JSON_STRING && json_string(v, NULL)[0])
        return lora_find_layer(set, name, json_string(v, NULL), layer, error);
    if (json_count(v) == 0) return lora_find_layer(set, name, NULL, layer, error);
    for (item = json_first(v); item && *layer < 0; item = json_next(item))
        if (!lora_find_layer(set, name, json_string(item, NULL), layer, error)) return false;
    return true;
}

static bool lora_is_layer(const json_value *v, int64_t layer)
{
    int64_t value = -1;
    return json_int(v, &value) && value == layer;
}

/* Whether layers_to_transform has the module's layer, or there is no such list. */
static bool lora_layer_is_meant(const lora_set *set, const char *name, bool *meant, tool_error *error)
{
    const json_value *v = lora_value(set, "layers_to_transform"), *item;
    int64_t own;
    *meant = !v || (json_kind(v) == JSON_ARRAY && json_count(v) == 0);
    if (*meant) return true;
    if (!lora_layer(set, name, &own, error)) return false;
    for (item = json_first(v); item; item = json_next(item)) *meant |= lora_is_layer(item, own);
    *meant |= lora_is_layer(v, own);
    return true;
}

/* Whether the configuration names the module; with layers of a list, as a single pattern names layers itself. */
static bool lora_module_is_meant(const lora_set *set, const char *name, bool *meant, tool_error *error)
{
    bool listed, excluded, layer = true;
    if (!lora_listed(set, "target_modules", name, &listed, error)
        || !lora_listed(set, "exclude_modules", name, &excluded, error)) return false;
    if (json_kind(lora_value(set, "target_modules")) == JSON_ARRAY
        && !lora_layer_is_meant(set, name, &layer, error)) return false;
    *meant = listed && !excluded && layer;
    return true;
}

/* Whether the configuration names a module, its weight, or a parameter, without which PEFT leaves it out; `key` is what
 * its patterns are matched with. A head that is to stay tied goes with the embedding. */
static bool lora_is_meant(
    const lora_set *set, const char *name, char key[LORA_KEY], bool *meant, tool_error *error)
{
    bool tying = false;
    snprintf(key, LORA_KEY, "%s", name);
    json_bool(lora_value(set, "ensure_weight_tying"), &tying);
    if (!lora_module_is_meant(set, name, meant, error)) return false;
    *meant |= tying && lora_ends_with(name, "lm_head");
    *meant |= lora_in_list(set, "target_parameters", key);
    if (*meant) return true;
    snprintf(key, LORA_KEY, "%s.weight", name);
    *meant = lora_in_list(set, "target_parameters", key);
    return true;
}

/* The factor of B A for a module or parameter of that name and rank. */
static bool lora_scale(const lora_set *set, const char *name, uint32_t rank, double *scale, tool_error *error)
{
    double r = (double)set->r, alpha = set->alpha;
    char key[LORA_KEY];
    bool meant;
    if (!lora_is_meant(set, name, key, &meant, error) || !lora_pattern_number(set, "rank_pattern", key, &r, error)
        || !lora_pattern_number(set, "alpha_pattern", key, &alpha, error) || !lora_check_alpha(set, alpha, error))
        return false;
    if (!meant)
        return tool_error_set(error, "%s: %s is adapted in adapter_model.safetensors, but not by target_modules and "
            "the rest of the configuration: the two do not belong together", set->config_path, name);
    if (r != rank)
        return tool_error_set(error, "%s: the rank of %s is %g here and %u in adapter_model.safetensors",
            set->config_path, name, r, rank);
    *scale = alpha / (set->rslora ? sqrt(r) : r);
    return true;
}

/* ---- tensors ------------------------------------------------------------------------------- */

static bool lora_ends(const char *name, const char *end)
{
    size_t length = strlen(name), size = strlen(end);
    return length > size && strcmp(name + length - size, end) == 0;
}

/* What the base model calls a tensor: `name` without the first `prefix` and the last `suffix` characters, and without
 * every ".base_layer". free() it. */
static char *lora_base_name(const char *name, size_t prefix, size_t suffix)
{
    static const char wrapped[] = ".base_layer";
    size_t length = strlen(name) - prefix - suffix, size = sizeof wrapped - 1;
    char *copy = (char *)malloc(length + 1), *at;
    if (!copy) return NULL;
    memcpy(copy, name + prefix, length);
    copy[length] = 0;
    while ((at = strstr(copy, wrapped)) != NULL) memmove(at, at + size, strlen(at + size) + 1);
    return copy;
}

static const char lora_prefix[] = "base_model.model.";

/* The tensor of the same name but for its end. */
static const st_tensor *lora_partner(const lora_set *set, const st_tensor *t, const char *end, const char *other)
{
    char name[ST_MAX_NAME + 32];
    snprintf(name, sizeof name, "%.*s%s", (int)(strlen(t->name) - strlen(end)), t->name, other);
    return st_find(&set->checkpoint, name);
}

/* Takes a tensor that is A or B of a pair; the other half must be there. */
static bool lora_add_half(
    lora_set *set, const st_tensor *t, const char *const ends[2], uint32_t half, bool embedding, tool_error *error)
{
    const st_tensor *other = lora_partner(set, t, ends[half], ends[!half]);
    lora_module *m = &set->modules[set->count];
    if (!other)
        return tool_error_set(error, "%s: tensor %s has no %s beside it: the file is incomplete", set->path, t->name,
            half ? "A" : "B");
    if (t->rank != 2)
        return tool_error_set(error, "%s: tensor %s is no matrix: only linear layers and embeddings can be converted",
            set->path, t->name);
    if (half) return true;
    memset(m, 0, sizeof *m);
    m->name = lora_base_name(t->name, sizeof lora_prefix - 1, strlen(ends[0]));
    m->a = t;
    m->b = other;
    m->embedding = embedding;
    set->count++;
    return m->name != NULL || tool_no_memory(error);
}

/* A tensor that is none of A and B: a copy of a base weight, for lora_next_copy(), or something unknown. */
static bool lora_check_other(const lora_set *set, const st_tensor *t, tool_error *error)
{
    if (lora_ends(t->name, "lora_magnitude_vector") || strstr(t->name, "lora_magnitude_vector."))
        return tool_error_set(error, "%s: tensor %s belongs to DoRA, which cannot be converted", set->path, t->name);
    if (lora_ends(t->name, ".bias"))
        return tool_error_set(error, "%s: tensor %s is a bias of the adapter's own, which cannot be converted",
            set->path, t->name);
    return lora_ends(t->name, ".weight") || tool_error_set(error, "%s: tensor %s is unknown", set->path, t->name);
}

static bool lora_add_tensor(lora_set *set, const st_tensor *t, tool_error *error)
{
    static const char *const linear[2] = { ".lora_A.weight", ".lora_B.weight" };
    static const char *const embedding[2] = { ".lora_embedding_A", ".lora_embedding_B" };
    uint32_t half;
    if (strncmp(t->name, lora_prefix, sizeof lora_prefix - 1) != 0)
        return tool_error_set(error, "%s: tensor %s does not begin with %s: not what PEFT saves of a language model",
            set->path, t->name, lora_prefix);
    for (half = 0; half < 2; half++) {
        if (lora_ends(t->name, linear[half])) return lora_add_half(set, t, linear, half, false, error);
        if (lora_ends(t->name, embedding[half])) return lora_add_half(set, t, embedding, half, true, error);
    }
    return lora_check_other(set, t, error);
}

static int lora_compare_modules(const void *a, const void *b)
{
    const lora_module *x = (const lora_module *)a, *y = (const lora_module *)b;
    int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->a->name, y->a->name);
}

static bool lora_list_modules(lora_set *set, tool_error *error)
{
    size_t i;
    set->path = set->checkpoint.shards[0].path;
    set->modules = (lora_module *)calloc(set->checkpoint.count, sizeof *set->modules);
    if (!set->modules) return tool_no_memory(error);
    for (i = 0; i < set->checkpoint.count; i++)
        if (!lora_add_tensor(set, &set->checkpoint.tensors[i], error)) return false;
    if (set->count == 0) return tool_error_set(error, "%s: holds no LoRA matrices", set->path);
    qsort(set->modules, set->count, sizeof *set->modules, lora_compare_modules);
    return true;
}

/* The first module of that name; others may follow. NULL: none. */
static lora_module *lora_find(const lora_set *set, const char *name)
{
    size_t low = 0, high = set->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(set->modules[middle].name, name) < 0) low = middle + 1;
        else high = middle;
    }
    return low < set->count && strcmp(set->modules[low].name, name) == 0 ? &set->modules[low] : NULL;
}

static lora_module *lora_next(const lora_set *set, const lora_module *m)
{
    size_t next = (size_t)(m - set->modules) + 1;
    return next < set->count && strcmp(set->modules[next].name, m->name) == 0 ? &set->modules[next] : NULL;
}

/* ---- numbers ------------------------------------------------------------------------------- */

/* All numbers of a tensor, once. */
static bool lora_load_tensor(const lora_set *set, const st_tensor *t, float **values, tool_error *error)
{
    size_t count = (size_t)(t->bytes / st_dtype_bytes(t->dtype));
    uint8_t *raw;
    bool ok;
    if (*values) return true;
    raw = (uint8_t *)malloc((size_t)t->bytes + 1);
    *values = (float *)calloc((size_t)jmb_pad64(count) + 1, sizeof **values);
    ok = (raw && *values) || tool_no_memory(error);
    ok = ok && st_read_data(&set->checkpoint, t, 0, raw, (size_t)t->bytes, error);
    if (ok) pack_floats(*values, raw, t->dtype, count);
    free(raw);
    return ok && (pack_all_finite(*values, jmb_pad64(count))
        || tool_error_set(error, "%s: tensor %s holds NaN or infinity: the training failed", set->path, t->name));
}

static bool lora_load(const lora_set *set, lora_module *m, tool_error *error)
{
    return lora_load_tensor(set, m->a, &m->a_values, error) && lora_load_tensor(set, m->b, &m->b_values, error);
}

/* ---- what a matrix of the model file gets from it ------------------------------------------ */

/* W[row, col] += scale * sum over k of left(row, k) * right(k, col). */
typedef struct lora_part {
    const lora_module *module; /* NULL: nothing */
    uint32_t rank;
    double scale;
    const float *left, *right;
    size_t left_row, left_rank, right_rank, right_col; /* distances of neighbours */
} lora_part;

/* Where the matrix lies in the module's: rows first, first + step, ... of `rows` x `cols`, or of that one of so many
 * copies of it which are adapted as one tensor. */
typedef struct lora_place {
    uint64_t rows, cols, first, step;
    uint32_t copies, copy;
} lora_place;

/* The rank of a module whose B has `out` rows and A `in` columns; 0: they have not. */
static uint32_t lora_rank(const lora_module *m, uint64_t out, uint64_t in, uint32_t copies)
{
    uint64_t ranks = m->a->shape[0];
    if (m->a->shape[1] != in || m->b->shape[0] != out || m->b->shape[1] != ranks) return 0;
    return ranks % copies == 0 && ranks / copies <= JMB_MAX_RANK ? (uint32_t)(ranks / copies) : 0;
}

/* Left is B, right A. Of copies, A has the rows of one after the other's, B alternates their columns. */
static void lora_fill_linear(lora_part *part, const lora_module *m, const lora_place *p)
{
    size_t ranks = (size_t)part->rank * p->copies;
    part->left = m->b_values + (size_t)p->first * ranks + p->copy;
    part->left_row = (size_t)p->step * ranks;
    part->left_rank = p->copies;
    part->right = m->a_values + (size_t)p->copy * part->rank * (size_t)p->cols;
    part->right_rank = (size_t)p->cols;
    part->right_col = 1;
}

/* Copies as PEFT saw them before it knew that their matrices have a row for each output: A B is the transpose. */
static void lora_fill_transposed(lora_part *part, const lora_module *m, const lora_place *p)
{
    part->left = m->a_values + (size_t)p->copy * part->rank * (size_t)p->rows + (size_t)p->first;
    part->left_row = (size_t)p->step;
    part->left_rank = (size_t)p->rows;
    part->right = m->b_values + p->copy;
    part->right_rank = p->copies;
    part->right_col = (size_t)part->rank * p->copies;
}

/* Of an embedding of `rows` tokens: A has a column for each of them, B a row for each of its columns. */
static void lora_fill_embedding(lora_part *part, const lora_module *m, const lora_place *p)
{
    part->left = m->a_values;
    part->left_row = 1;
    part->left_rank = (size_t)p->rows;
    part->right = m->b_values;
    part->right_rank = 1;
    part->right_col = part->rank;
}

/* Fills `part` when the module has the shapes for the place; its rank stays 0 otherwise. `name` is that of the
 * module or parameter. */
static bool lora_fill(
    const lora_set *set, lora_module *m, const char *name, const lora_place *p, lora_part *part, tool_error *error)
{
    bool transposed = false;
    part->rank = m->embedding ? lora_rank(m, p->cols, p->rows, 1) : lora_rank(m, p->rows, p->cols, p->copies);
    if (part->rank == 0 && p->copies > 1) {
        part->rank = lora_rank(m, p->cols, p->rows, p->copies);
        transposed = part->rank > 0;
    }
    if (part->rank == 0) return true;
    if (!lora_scale(set, name, part->rank, &part->scale, error) || !lora_load(set, m, error)) return false;
    part->module = m;
    m->used = true;
    if (m->embedding) lora_fill_embedding(part, m, p);
    else if (transposed) lora_fill_transposed(part, m, p);
    else lora_fill_linear(part, m, p);
    return true;
}

/* Left with the scale in it, rounded to float. */
static float lora_left(const lora_part *part, uint64_t row, uint32_t k)
{
    return (float)(part->scale * (double)part->left[(size_t)row * part->left_row + k * part->left_rank]);
}

static float lora_right(const lora_part *part, uint32_t k, size_t col)
{
    return part->right[k * part->right_rank + col * part->right_col];
}

static bool lora_same(const lora_part *x, const lora_part *y, uint64_t rows, uint64_t cols)
{
    uint64_t row, col;
    uint32_t k;
    if (x->rank != y->rank || x->module == y->module) return x->rank == y->rank;
    for (k = 0; k < x->rank; k++) {
        for (row = 0; row < rows; row++)
            if (jmb_bits_of(lora_left(x, row, k)) != jmb_bits_of(lora_left(y, row, k))) return false;
        for (col = 0; col < cols; col++)
            if (jmb_bits_of(lora_right(x, k, (size_t)col)) != jmb_bits_of(lora_right(y, k, (size_t)col))) return false;
    }
    return true;
}

/* ---- the folder ---------------------------------------------------------------------------- */

static void lora_close(lora_set *set)
{
    size_t i;
    for (i = 0; i < set->count; i++) {
        free(set->modules[i].name);
        free(set->modules[i].a_values);
        free(set->modules[i].b_values);
    }
    free(set->modules);
    json_free(&set->doc);
    free(set->config_path);
    st_close(&set->checkpoint);
    memset(set, 0, sizeof *set);
}

static bool lora_open_parts(lora_set *set, const char *dir, tool_error *error)
{
    set->config_path = tool_path_join(dir, "adapter_config.json");
    if (!set->config_path) return tool_no_memory(error);
    return json_read_file(&set->doc, set->config_path, error) && lora_read_config(set, error)
        && st_open_single(&set->checkpoint, dir, "adapter_model.safetensors", error) && lora_list_modules(set, error);
}

/* `dir` must outlive the set. On failure nothing stays open. */
JMB_UNUSED static bool lora_open(lora_set *set, const char *dir, tool_error *error)
{
    bool ok;
    memset(set, 0, sizeof *set);
    ok = lora_open_parts(set, dir, error);
    if (!ok) lora_close(set);
    return ok;
}

#endif
