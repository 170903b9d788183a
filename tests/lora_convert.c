/* lora_convert.c - adapters of PEFT written here, converted for a model and merged into one
 *
 * Every kind of linear layer: each number of the adapter file, and of the merged weights, is compared with the
 * definition W + s B A, exactly, as all values are small fractions of two. Then what must be refused, by name and
 * without leaving a file, and folders cut short or changed byte by byte. */
#include "rules.h"
#include "tiny.h"

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

static char base_folder[PATH_ROOM], base_path[PATH_ROOM], adapter_folder[PATH_ROOM], out_folder[PATH_ROOM];
static char out_path[PATH_ROOM];

/* ---- adapters as data ---------------------------------------------------------------------------------------- */

enum { PLAIN, EMBEDDING, FUSED, TRANSPOSED };

/* A pair of tensors; `name` as in the file. Of FUSED ones, rows x cols is one copy. */
typedef struct module {
    const char *name;
    int rows, cols, rank, form, copies;
} module;

/* Where rows of a module end up: row r of the model's matrix is row first + step * r. */
typedef struct target {
    const char *name; /* of the module */
    uint32_t block, role, index, half;
    int first, step;
} target;

typedef struct adapter_case {
    const char *name, *base; /* base: a golden case; NULL: the tiny folder */
    const char *config;      /* what is not the same for all */
    double alpha;
    const module *modules;
    const target *targets;
    size_t module_count, target_count;
} adapter_case;

#define COUNT(array) (sizeof(array) / sizeof(array)[0])

/* A number of A (what 0) or B (1) of a copy of a module: sixteenths from -1/2 to 1/2, which f16 and bf16 hold. */
static float number_of(const char *name, int what, int copy, int row, int col)
{
    uint64_t h = 1469598103934665603u;
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 1099511628211u;
    h = (h ^ (uint64_t)(what + 2 * copy)) * 1099511628211u;
    h = (h ^ (uint64_t)row) * 1099511628211u;
    h = (h ^ (uint64_t)col) * 1099511628211u;
    return (float)((int)(h >> 33) % 17 - 8) / 16.0f;
}

static void put_tensor(tiny_checkpoint *c, const char *name, const char *end, int rows, int cols, const float *values)
{
    size_t start = c->data.size, count = (size_t)rows * (size_t)cols, i;
    for (i = 0; i < count; i++) {
        uint8_t le[4];
        tool_store_le(le, jmb_bits_of(values[i]), 4);
        tiny_add(&c->data, le, 4);
    }
    tiny_print(&c->header, "%s\"base_model.model.%s%s\":{\"dtype\":\"F32\",\"shape\":[%d,%d],",
        c->header.size ? "," : "", name, end, rows, cols);
    tiny_print(&c->header, "\"data_offsets\":[%zu,%zu]}", start, c->data.size);
}

/* Both tensors of a module, in the layout of its form. */
static void put_module(tiny_checkpoint *c, const module *m)
{
    int ranks = m->rank * m->copies, e, k, i;
    int in = m->form == TRANSPOSED || m->form == EMBEDDING ? m->rows : m->cols, out = m->rows + m->cols - in;
    float *a = (float *)calloc((size_t)(ranks * in), sizeof *a), *b = (float *)calloc((size_t)(ranks * out), sizeof *b);
    bool swapped = in == m->rows && (m->form == TRANSPOSED || m->form == EMBEDDING);
    for (e = 0; e < m->copies; e++)
        for (k = 0; k < m->rank; k++) {
            for (i = 0; i < in; i++)
                a[(e * m->rank + k) * in + i] =
                    swapped ? number_of(m->name, 1, e, i, k) : number_of(m->name, 0, e, k, i);
            for (i = 0; i < out; i++)
                b[i * ranks + k * m->copies + e] =
                    swapped ? number_of(m->name, 0, e, k, i) : number_of(m->name, 1, e, i, k);
        }
    put_tensor(c, m->name, m->form == EMBEDDING ? ".lora_embedding_A" : ".lora_A.weight", ranks, in, a);
    put_tensor(c, m->name, m->form == EMBEDDING ? ".lora_embedding_B" : ".lora_B.weight", out, ranks, b);
    free(a);
    free(b);
}

static void write_adapter_config(const char *text)
{
    char path[PATH_ROOM];
    file_write(tiny_path(path, adapter_folder, "adapter_config.json"), text, strlen(text));
}

static void write_adapter(const adapter_case *c)
{
    tiny_checkpoint checkpoint = { { NULL, 0, 0 }, { NULL, 0, 0 }, 0 };
    char path[PATH_ROOM], config[2000];
    size_t i;
    for (i = 0; i < c->module_count; i++) put_module(&checkpoint, &c->modules[i]);
    tiny_write_checkpoint(tiny_path(path, adapter_folder, "adapter_model.safetensors"), &checkpoint);
    snprintf(config, sizeof config, "{\"peft_type\": \"LORA\", \"bias\": \"none\", \"lora_alpha\": %g, %s}", c->alpha,
        c->config);
    write_adapter_config(config);
}

/* ---- conversions ---------------------------------------------------------------------------------------------- */

/* A folder to a model of f32, with `merge` or without. */
static bool convert_folder(const char *dir, const char *merge, const char *path, tool_error *error)
{
    options o;
    memset(&o, 0, sizeof o);
    memset(error, 0, sizeof *error);
    o.dir = dir;
    o.merge = merge;
    o.out = path;
    o.type = JMB_F32;
    o.force = true;
    return convert_merged(&o, error);
}

static bool convert_adapter(uint32_t type, tool_error *error)
{
    memset(error, 0, sizeof *error);
    return adapter_convert(adapter_folder, base_path, out_path, type, true, error);
}

static void make_base(const char *name)
{
    tool_error error;
    if (name) snprintf(base_folder, sizeof base_folder, "tests/cases/%s", name);
    else tiny_write(temp_path(base_folder, "tiny"), false);
    temp_path(base_path, "base.jamba");
    test_require(convert_folder(base_folder, NULL, base_path, &error), "no base", error.message);
}

static jamba_model *need_model(const char *path)
{
    jamba_model *model = NULL;
    jamba_error error;
    test_require(jamba_model_load(&model, jamba_from_file(path), NULL, &error) == JAMBA_OK, path, error.message);
    return model;
}

/* ---- the definition ------------------------------------------------------------------------------------------- */

static const module *module_of(const adapter_case *c, const target *t)
{
    size_t i;
    for (i = 0; i < c->module_count; i++)
        if (strcmp(c->modules[i].name, t->name) == 0) return &c->modules[i];
    test_require(false, "no module", t->name);
    return NULL;
}

/* s B A at one place of the model's matrix. */
static double delta_of(const adapter_case *c, const target *t, uint32_t row, uint32_t col)
{
    const module *m = module_of(c, t);
    int copy = m->copies > 1 ? (int)t->index : 0, k;
    double sum = 0;
    for (k = 0; k < m->rank; k++)
        sum += (double)number_of(m->name, 1, copy, t->first + t->step * (int)row, k)
            * (double)number_of(m->name, 0, copy, k, (int)col);
    return sum * c->alpha / m->rank;
}

/* Row of a tensor whose halves alternate by panels. */
static size_t row_of(uint32_t role, uint32_t half, uint32_t row)
{
    return jmb_roles[role].paired ? row / 16 * 32 + half * 16 + row % 16 : row;
}

static double delta_in_file(const jmb_lora *l, uint32_t half, uint32_t row, uint32_t col)
{
    double sum = 0;
    uint32_t k;
    for (k = 0; k < l->b.cols; k++)
        sum += l->role == JMB_ROLE_EMBED ? (double)jmb_weight(&l->a, row, k) * (double)jmb_weight(&l->b, col, k)
            : (double)jmb_weight(&l->b, row_of(l->role, half, row), k) * (double)jmb_weight(&l->a, k, col);
    return sum;
}

/* ---- every kind of linear ------------------------------------------------------------------------------------- */

static void check_target(const adapter_case *c, const target *t, const jamba_adapter *adapter)
{
    jmb_lora key;
    const jmb_lora *l;
    uint32_t row, col, rows, cols, wrong = 0;
    memset(&key, 0, sizeof key);
    key.block = t->block;
    key.role = t->role;
    key.index = t->index;
    l = jmb_find_lora(adapter, &key);
    if (!CHECK_THAT(l != NULL, "%s: nothing for block %u, role %s, index %u", t->name, t->block,
        jmb_roles[t->role].name, t->index)) return;
    rows = t->role == JMB_ROLE_EMBED ? l->a.rows : l->b.rows;
    cols = t->role == JMB_ROLE_EMBED ? l->b.rows : l->a.cols;
    for (row = 0; row < rows; row++)
        for (col = 0; col < cols; col++) wrong += delta_in_file(l, t->half, row, col) != delta_of(c, t, row, col);
    CHECK_THAT(wrong == 0, "%s, %s of block %u: %u of %u x %u numbers differ", t->name, jmb_roles[t->role].name,
        t->block, wrong, rows, cols);
}

static uint32_t entries_of(const adapter_case *c)
{
    uint32_t count = 0;
    size_t i, j;
    for (i = 0; i < c->target_count; i++) {
        const target *t = &c->targets[i], *o;
        for (j = 0; j < i; j++) {
            o = &c->targets[j];
            if (o->block == t->block && o->role == t->role && o->index == t->index) break;
        }
        count += j == i;
    }
    return count;
}

static void check_file(const adapter_case *c, uint32_t type)
{
    jamba_model *base = need_model(base_path);
    jamba_adapter *adapter = NULL;
    jamba_error problem;
    tool_error error;
    size_t i;
    if (CHECK_THAT(convert_adapter(type, &error), "%s", error.message)
        && CHECK_THAT(jamba_adapter_load(&adapter, base, jamba_from_file(out_path), &problem) == JAMBA_OK, "%s",
            problem.message)) {
        CHECK(adapter->header.entries == entries_of(c) && adapter->loras[0].a.type == type);
        for (i = 0; i < c->target_count; i++) check_target(c, &c->targets[i], adapter);
        CHECK(memcmp(adapter->data + 32, base->metadata.header.identity, 32) == 0);
    }
    jamba_adapter_free(adapter);
    jamba_model_free(base);
    remove(out_path);
    CHECK(files_in(out_folder) == 0);
}

static const jmb_tensor *tensor_of_unit(const jamba_model *m, uint32_t unit, uint32_t role, uint32_t index)
{
    uint32_t i;
    for (i = 0; i < m->metadata.header.tensors; i++) {
        const jmb_tensor *t = &m->metadata.tensors[i];
        if (t->role == role && t->index == index && t->unit == unit) return t;
    }
    return NULL;
}

/* As the block uses it: its own, or that of the block it shares. A tied head is the embedding. */
static const jmb_tensor *tensor_of(const jamba_model *m, uint32_t block, uint32_t role, uint32_t index)
{
    const jmb_tensor *t = tensor_of_unit(m, block, role, index);
    if (!t && role == JMB_ROLE_HEAD) return tensor_of_unit(m, block, JMB_ROLE_EMBED, 0);
    return t || block == JMB_NONE ? t : tensor_of_unit(m, m->metadata.blocks[block].unit, role, index);
}

/* The change that all targets together make to one place. */
static double change_at(const adapter_case *c, uint32_t block, const jmb_tensor *w, uint32_t role, uint32_t half,
    uint32_t row, uint32_t col)
{
    double sum = 0;
    size_t i;
    for (i = 0; i < c->target_count; i++) {
        const target *t = &c->targets[i];
        if (t->block == block && t->role == role && t->index == w->index && t->half == half)
            sum += delta_of(c, t, row, col);
    }
    return sum;
}

static void check_merged_tensor(const adapter_case *c, const jamba_model *base, const jamba_model *merged,
    uint32_t block, const jmb_tensor *t)
{
    const jmb_tensor *from = tensor_of(base, block, t->role, t->index);
    const jmb_tensor *to = tensor_of(merged, block, t->role, t->index);
    uint32_t row, col, half, wrong = 0;
    char name[64];
    jmb_tensor_name(t, name);
    if (!CHECK_THAT(from && to && to->rows == from->rows && to->cols == from->cols, "%s is missing", name)) return;
    for (half = 0; half < (jmb_roles[t->role].paired ? 2u : 1u); half++)
        for (row = 0; row < to->rows; row++)
            for (col = 0; col < to->cols; col++) {
                size_t at = row_of(t->role, half, row);
                double want = (double)jmb_weight(from, at, col) + change_at(c, block, to, t->role, half, row, col);
                wrong += jmb_weight(to, at, col) != (float)want;
            }
    CHECK_THAT(wrong == 0, "%s of block %u: %u numbers differ", name, block, wrong);
}

/* Every tensor as every block uses it. */
static void check_merged(const adapter_case *c)
{
    jamba_model *base = need_model(base_path), *merged;
    jmb_tensor head, embed, *list;
    tool_error error;
    uint32_t block, i, count;
    if (CHECK_THAT(convert_folder(base_folder, adapter_folder, out_path, &error), "%s", error.message)) {
        merged = need_model(out_path);
        embed = merged->metadata.tensors[0];
        head = embed;
        head.role = JMB_ROLE_HEAD;
        check_merged_tensor(c, base, merged, JMB_NONE, &embed);
        check_merged_tensor(c, base, merged, JMB_NONE, &head);
        for (block = 0; block < merged->metadata.header.blocks; block++) {
            jmb_block b = merged->metadata.blocks[block];
            jmb_tensor_list all = { NULL, 0, block, JMB_F32 };
            jmb_list_block(&all, &b, merged->metadata.header.hidden);
            if (b.rank) jmb_list_adapters(&all, &b, merged->metadata.header.hidden);
            count = all.count;
            all.count = 0;
            all.items = list = (jmb_tensor *)calloc(count, sizeof *list);
            jmb_list_block(&all, &b, merged->metadata.header.hidden);
            if (b.rank) jmb_list_adapters(&all, &b, merged->metadata.header.hidden);
            for (i = 0; i < count; i++) check_merged_tensor(c, base, merged, block, &list[i]);
            free(list);
        }
        jamba_model_free(merged);
    }
    jamba_model_free(base);
    remove(out_path);
    CHECK(files_in(out_folder) == 0);
}

#define L0 "model.layers.0."
#define L1 "model.layers.1."
#define EXPERT(e) L1 "feed_forward.experts." #e "."

static const module tiny_modules[] = {
    { "model.embed_tokens", TINY_VOCAB, 16, 2, EMBEDDING, 1 }, { "lm_head", TINY_VOCAB, 16, 2, PLAIN, 1 },
    { L0 "mamba.in_proj", 32, 16, 2, PLAIN, 1 }, { L0 "mamba.x_proj", 10, 16, 2, PLAIN, 1 },
    { L0 "mamba.dt_proj", 16, 2, 2, PLAIN, 1 }, { L0 "mamba.out_proj", 16, 16, 2, PLAIN, 1 },
    { L0 "feed_forward.gate_proj", 16, 16, 2, PLAIN, 1 }, { L0 "feed_forward.up_proj", 16, 16, 4, PLAIN, 1 },
    { L0 "feed_forward.down_proj", 16, 16, 2, PLAIN, 1 }, { L1 "self_attn.q_proj", 16, 16, 2, PLAIN, 1 },
    { L1 "self_attn.k_proj", 8, 16, 2, PLAIN, 1 }, { L1 "self_attn.v_proj", 8, 16, 2, PLAIN, 1 },
    { L1 "self_attn.o_proj", 16, 16, 2, PLAIN, 1 }, { L1 "feed_forward.router", 2, 16, 2, PLAIN, 1 },
    { EXPERT(0) "up_proj", 16, 16, 4, PLAIN, 1 }, { EXPERT(1) "gate_proj", 16, 16, 2, PLAIN, 1 },
    { EXPERT(1) "down_proj", 16, 16, 2, PLAIN, 1 },
};
static const target tiny_targets[] = {
    { "model.embed_tokens", JMB_NONE, JMB_ROLE_EMBED, 0, 0, 0, 1 }, { "lm_head", JMB_NONE, JMB_ROLE_HEAD, 0, 0, 0, 1 },
    { L0 "mamba.in_proj", 0, JMB_ROLE_U, 0, 0, 0, 1 }, { L0 "mamba.in_proj", 0, JMB_ROLE_Z, 0, 0, 16, 1 },
    { L0 "mamba.x_proj", 0, JMB_ROLE_DT_LOW, 0, 0, 0, 1 }, { L0 "mamba.x_proj", 0, JMB_ROLE_B, 0, 0, 2, 1 },
    { L0 "mamba.x_proj", 0, JMB_ROLE_C, 0, 0, 6, 1 }, { L0 "mamba.dt_proj", 0, JMB_ROLE_DT, 0, 0, 0, 1 },
    { L0 "mamba.out_proj", 0, JMB_ROLE_OUT, 0, 0, 0, 1 },
    { L0 "feed_forward.gate_proj", 1, JMB_ROLE_GATE_UP, 0, 0, 0, 1 },
    { L0 "feed_forward.up_proj", 1, JMB_ROLE_GATE_UP, 0, 1, 0, 1 },
    { L0 "feed_forward.down_proj", 1, JMB_ROLE_DOWN, 0, 0, 0, 1 },
    { L1 "self_attn.q_proj", 2, JMB_ROLE_Q, 0, 0, 0, 1 }, { L1 "self_attn.k_proj", 2, JMB_ROLE_K, 0, 0, 0, 1 },
    { L1 "self_attn.v_proj", 2, JMB_ROLE_V, 0, 0, 0, 1 }, { L1 "self_attn.o_proj", 2, JMB_ROLE_O, 0, 0, 0, 1 },
    { L1 "feed_forward.router", 3, JMB_ROLE_ROUTER, 0, 0, 0, 1 },
    { EXPERT(0) "up_proj", 3, JMB_ROLE_GATE_UP, 0, 1, 0, 1 },
    { EXPERT(1) "gate_proj", 3, JMB_ROLE_GATE_UP, 1, 0, 0, 1 }, { EXPERT(1) "down_proj", 3, JMB_ROLE_DOWN, 1, 0, 0, 1 },
};

/* All experts in one tensor, gate before up; two parameters of one module nest. */
#define FUSED_GATE L1 "feed_forward.experts.base_layer"
#define FUSED_DOWN L1 "feed_forward.experts"
static const module fused_modules[] = { { FUSED_GATE, 32, 16, 2, FUSED, 2 }, { FUSED_DOWN, 16, 16, 2, FUSED, 2 } };
static const module transposed_modules[] = {
    { FUSED_GATE, 32, 16, 2, TRANSPOSED, 2 }, { FUSED_DOWN, 16, 16, 2, FUSED, 2 },
};
static const target fused_targets[] = {
    { FUSED_GATE, 3, JMB_ROLE_GATE_UP, 0, 0, 0, 1 }, { FUSED_GATE, 3, JMB_ROLE_GATE_UP, 0, 1, 16, 1 },
    { FUSED_GATE, 3, JMB_ROLE_GATE_UP, 1, 0, 0, 1 }, { FUSED_GATE, 3, JMB_ROLE_GATE_UP, 1, 1, 16, 1 },
    { FUSED_DOWN, 3, JMB_ROLE_DOWN, 0, 0, 0, 1 }, { FUSED_DOWN, 3, JMB_ROLE_DOWN, 1, 0, 0, 1 },
};

#define M1 "backbone.layers.1.mixer."
static const module mamba2_modules[] = {
    { M1 "in_proj", 264, 48, 4, PLAIN, 1 }, { M1 "out_proj", 48, 96, 4, PLAIN, 1 },
};
static const target mamba2_targets[] = {
    { M1 "in_proj", 1, JMB_ROLE_Z, 0, 0, 0, 1 }, { M1 "in_proj", 1, JMB_ROLE_U, 0, 0, 96, 1 },
    { M1 "in_proj", 1, JMB_ROLE_B, 0, 0, 192, 1 }, { M1 "in_proj", 1, JMB_ROLE_C, 0, 0, 224, 1 },
    { M1 "in_proj", 1, JMB_ROLE_DT, 0, 0, 256, 1 }, { M1 "out_proj", 1, JMB_ROLE_OUT, 0, 0, 0, 1 },
};

/* Rows of u and z alternate; parameters of the mixer for each head; one of two uses of a shared block. */
#define ZAMBA_X "model.layers.1.mamba.base_layer"
#define ZAMBA_DT "model.layers.1.mamba"
#define ZAMBA_IN "model.layers.1.mamba.base_layer.base_layer.in_proj"
#define ZAMBA_DOWN "model.layers.4.shared_transf.feed_forward.down_proj"
static const module zamba_modules[] = {
    { ZAMBA_X, 19, 48, 2, FUSED, 2 }, { ZAMBA_DT, 48, 3, 2, FUSED, 2 }, { ZAMBA_IN, 192, 48, 2, PLAIN, 1 },
    { ZAMBA_DOWN, 48, 64, 2, PLAIN, 1 },
};
static const target zamba_targets[] = {
    { ZAMBA_IN, 1, JMB_ROLE_U, 0, 0, 0, 2 }, { ZAMBA_IN, 1, JMB_ROLE_Z, 0, 0, 1, 2 },
    { ZAMBA_X, 1, JMB_ROLE_DT_LOW, 0, 0, 0, 1 }, { ZAMBA_X, 1, JMB_ROLE_B, 0, 0, 3, 1 },
    { ZAMBA_X, 1, JMB_ROLE_C, 0, 0, 11, 1 }, { ZAMBA_X, 1, JMB_ROLE_DT_LOW, 1, 0, 0, 1 },
    { ZAMBA_X, 1, JMB_ROLE_B, 1, 0, 3, 1 }, { ZAMBA_X, 1, JMB_ROLE_C, 1, 0, 11, 1 },
    { ZAMBA_DT, 1, JMB_ROLE_DT, 0, 0, 0, 1 }, { ZAMBA_DT, 1, JMB_ROLE_DT, 1, 0, 0, 1 },
    { ZAMBA_DOWN, 8, JMB_ROLE_DOWN, 0, 0, 0, 1 },
};

/* Two uses of a shared block, each with its own; adapters of the model's own, one of them in a place that is idle. */
#define Z2 "model.layers.2.shared_transformer."
#define Z4 "model.layers.4.shared_transformer."
static const module zamba2_modules[] = {
    { Z2 "self_attn.q_proj", 64, 64, 2, PLAIN, 1 }, { Z4 "self_attn.q_proj", 64, 64, 2, PLAIN, 1 },
    { Z4 "feed_forward.gate_up_proj", 192, 32, 2, PLAIN, 1 }, { "model.layers.4.linear", 32, 32, 2, PLAIN, 1 },
    { Z4 "self_attn.linear_q_adapter_list.1.0", 6, 64, 2, PLAIN, 1 },
    { Z4 "self_attn.linear_q_adapter_list.2.0", 6, 64, 2, PLAIN, 1 },
    { Z2 "feed_forward.gate_up_proj_adapter_list.0.0", 6, 32, 2, PLAIN, 1 },
    { "model.layers.4.mamba_decoder.mamba.out_proj", 32, 64, 2, PLAIN, 1 },
};
static const target zamba2_targets[] = {
    { Z2 "self_attn.q_proj", 2, JMB_ROLE_Q, 0, 0, 0, 1 }, { Z4 "self_attn.q_proj", 7, JMB_ROLE_Q, 0, 0, 0, 1 },
    { Z4 "feed_forward.gate_up_proj", 8, JMB_ROLE_GATE_UP, 0, 0, 0, 1 },
    { Z4 "feed_forward.gate_up_proj", 8, JMB_ROLE_GATE_UP, 0, 1, 96, 1 },
    { "model.layers.4.linear", 9, JMB_ROLE_LINEAR, 0, 0, 0, 1 },
    { Z4 "self_attn.linear_q_adapter_list.1.0", 7, JMB_ROLE_Q_A, 0, 0, 0, 1 },
    { Z2 "feed_forward.gate_up_proj_adapter_list.0.0", 3, JMB_ROLE_GATE_UP_A, 0, 0, 0, 1 },
    { "model.layers.4.mamba_decoder.mamba.out_proj", 10, JMB_ROLE_OUT, 0, 0, 0, 1 },
};

#define CASE(name, base, config, alpha, modules, targets) \
    { name, base, config, alpha, modules, targets, COUNT(modules), COUNT(targets) }
static const adapter_case cases[] = {
    CASE("jamba", NULL, "\"r\": 2, \"rank_pattern\": {\"up_proj\": 4}, \"target_modules\": [\"embed_tokens\", "
        "\"lm_head\", \"in_proj\", \"x_proj\", \"dt_proj\", \"out_proj\", \"gate_proj\", \"up_proj\", "
        "\"down_proj\", \"q_proj\", "
        "\"k_proj\", \"v_proj\", \"o_proj\", \"router\"]", 4, tiny_modules, tiny_targets),
    CASE("fused experts", NULL, "\"r\": 2, \"target_modules\": null, \"target_parameters\": [\"experts.gate_up_proj\", "
        "\"experts.down_proj\"]", 1, fused_modules, fused_targets),
    CASE("transposed experts", NULL, "\"r\": 2, \"target_modules\": [], \"target_parameters\": "
        "[\"feed_forward.experts.gate_up_proj\", \"experts.down_proj\"]", 1, transposed_modules, fused_targets),
    CASE("mamba2", "mamba2-groups", "\"r\": 4, \"target_modules\": \".*\\\\.(in|out)_proj\", "
        "\"layers_to_transform\": 1", -2, mamba2_modules, mamba2_targets),
    CASE("zamba", "zamba", "\"r\": 2, \"target_modules\": [\"in_proj\", \"down_proj\"], \"target_parameters\": "
        "[\"mamba.x_proj_weight\", \"mamba.dt_proj_weight\"]", 2, zamba_modules, zamba_targets),
    CASE("zamba2", "zamba2-attn-adapter", "\"r\": 2, \"target_modules\": \"model\\\\.layers\\\\.[24]\\\\..*\"", 8,
        zamba2_modules, zamba2_targets),
};

static void test_case(const adapter_case *c)
{
    make_base(c->base);
    write_adapter(c);
    check_file(c, JMB_F32);
    check_file(c, JMB_F16);
    check_file(c, JMB_BF16);
    check_merged(c);
}

/* ---- what must be refused -------------------------------------------------------------------------------------- */

/* Both ways fail with one line that has `words`, and no file is left. */
static void check_fails(const char *what, const char *words)
{
    tool_error error;
    int way;
    for (way = 0; way < 2; way++) {
        bool ok = way == 0 ? convert_adapter(JMB_F32, &error)
            : convert_folder(base_folder, adapter_folder, out_path, &error);
        if (!CHECK_THAT(!ok, "%s: converts (%d)", what, way)) {
            remove(out_path);
            continue;
        }
        rules_note(error.message);
        CHECK_THAT(strstr(error.message, words) != NULL, "%s: '%s' lacks '%s'", what, error.message, words);
        CHECK_THAT(!strchr(error.message, '\n') && strstr(error.message, adapter_folder), "%s: '%s'", what,
            error.message);
    }
    CHECK_THAT(files_in(out_folder) == 0, "%s: leaves a file", what);
}

static void check_converts(const char *what)
{
    tool_error error;
    CHECK_THAT(convert_adapter(JMB_F32, &error), "%s: %s", what, error.message);
    remove(out_path);
}

/* A few modules of the tiny model, for what follows. */
static const module small_modules[] = {
    { L0 "mamba.in_proj", 32, 16, 2, PLAIN, 1 }, { L1 "self_attn.q_proj", 16, 16, 2, PLAIN, 1 },
};
static const char small_config[] = "{\"peft_type\": \"LORA\", \"bias\": \"none\", \"r\": 2, \"lora_alpha\": 2, "
    "\"target_modules\": [\"in_proj\", \"q_proj\"]}";

static void write_modules(const module *modules, size_t count)
{
    adapter_case c = { "", NULL, "", 1, NULL, NULL, 0, 0 };
    c.modules = modules;
    c.module_count = count;
    write_adapter(&c);
}

static void write_small(void)
{
    write_modules(small_modules, COUNT(small_modules));
    write_adapter_config(small_config);
}

static void check_config(const char *members, const char *words)
{
    char text[600];
    snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", %s}", members);
    write_adapter_config(text);
    check_fails(members, words);
}

#define SMALL "\"r\": 2, \"lora_alpha\": 2, \"target_modules\": [\"in_proj\", \"q_proj\"], "

static void test_configs(void)
{
    static const char *const set[] = { "\"use_dora\": true", "\"modules_to_save\": [\"norm\"]", "\"lora_bias\": true",
        "\"trainable_token_indices\": [1]", "\"layer_replication\": [[0, 1]]", "\"alora_invocation_tokens\": [5]",
        "\"use_qalora\": true", "\"fan_in_fan_out\": true", "\"arrow_config\": {\"top_k\": 3}",
        "\"kasa_config\": {\"a\": 1}" };
    char text[400];
    size_t i;
    for (i = 0; i < COUNT(set); i++) {
        char key[40];
        snprintf(text, sizeof text, SMALL "%s", set[i]);
        snprintf(key, sizeof key, "adapter_config.json: %.*s is set", (int)strcspn(set[i] + 1, "\""), set[i] + 1);
        check_config(text, key);
    }
    check_config(SMALL "\"bias\": \"all\"", "bias is \"all\"");
    check_config(SMALL "\"init_lora_weights\": \"pissa\"", "init_lora_weights is \"pissa\"");
    check_config(SMALL "\"use_rslora\": 1", "use_rslora");
    check_config(SMALL "\"rank_pattern\": [1]", "rank_pattern");
    check_config(SMALL "\"rank_pattern\": {\"q_proj\": 3}", "the rank of model.layers.1.self_attn.q_proj is 3");
    check_config(SMALL "\"alpha_pattern\": {\"q_proj\": \"a\"}", "alpha_pattern");
    check_config(SMALL "\"alpha_pattern\": {\"q_proj\": 1e9}", "lora_alpha");
    check_config(SMALL "\"alpha_pattern\": {\"(?<=q)_proj\": 2}", "alpha_pattern: the pattern");
    check_config(SMALL "\"alpha_pattern\": {\"q_(proj\": 2}", "alpha_pattern: the pattern");
    check_config(SMALL "\"layers_to_transform\": [1, \"a\"]", "layers_to_transform");
    check_config(SMALL "\"layers_to_transform\": [1]", "model.layers.0.mamba.in_proj is adapted");
    check_config(SMALL "\"layers_to_transform\": 0", "model.layers.1.self_attn.q_proj is adapted");
    check_config(SMALL "\"exclude_modules\": \".*in_proj\"", "model.layers.0.mamba.in_proj is adapted");
    check_config("\"r\": 4, \"lora_alpha\": 2, \"target_modules\": [\"in_proj\", \"q_proj\"]", "the rank of");
    check_config("\"r\": 0, \"lora_alpha\": 2, \"target_modules\": [\"in_proj\"]", "r must be");
    check_config("\"r\": 2, \"target_modules\": [\"in_proj\"]", "lora_alpha");
    check_config("\"r\": 2, \"lora_alpha\": 2, \"target_modules\": [\"proj\"]", "is adapted in adapter_model");
    check_config("\"r\": 2, \"lora_alpha\": 2, \"target_modules\": \".*in_proj\"", "q_proj is adapted");
    check_config("\"r\": 2, \"lora_alpha\": 2, \"target_modules\": [3]", "target_modules");
    write_adapter_config("{\"peft_type\": \"LOHA\", \"r\": 2}");
    check_fails("LOHA", "peft_type is \"LOHA\"");
    write_adapter_config("{\"r\": 2}");
    check_fails("no type", "peft_type is \"\"");
    write_adapter_config("[]");
    check_fails("no object", "adapter_config.json: not a JSON object");
}

/* Configurations that say the same in another way. */
static void test_same_configs(void)
{
    static const char *const configs[] = {
        SMALL "\"use_dora\": false, \"modules_to_save\": null, \"layers_to_transform\": null",
        SMALL "\"layers_to_transform\": [0, 1], \"layers_pattern\": \"layers\"",
        SMALL "\"layers_to_transform\": [0, 1], \"layers_pattern\": [\"h\", \"layers\"]",
        SMALL "\"init_lora_weights\": true, \"exclude_modules\": [\"k_proj\"]",
        "\"r\": 9, \"lora_alpha\": 2, "
        "\"target_modules\": \".*\\\\.layers\\\\.\\\\d+\\\\.(?:mamba|self_attn)\\\\.(in|q)_proj\", "
        "\"rank_pattern\": {\"^model.layers.0.mamba.in_proj\": 2, \"[p-r]_proj\": 2}",
        "\"r\": 2, \"lora_alpha\": 2, \"target_modules\": \"(?!lm_head).*_proj\", "
        "\"alpha_pattern\": {\"(in|q)_proj{1,2}?\": 2}",
        "\"r\": 2, \"lora_alpha\": 2, \"target_modules\": [\"self_attn.q_proj\"], "
        "\"target_parameters\": [\"in_proj.weight\"], \"rank_pattern\": {\"in_proj.weight\": 2}",
    };
    uint8_t *first = NULL;
    size_t i, size = 0;
    for (i = 0; i < COUNT(configs); i++) {
        char text[600];
        uint8_t *data;
        tool_error error;
        size_t other = 0;
        snprintf(text, sizeof text, "{\"peft_type\": \"LORA\", %s}", configs[i]);
        write_adapter_config(text);
        if (!CHECK_THAT(convert_adapter(JMB_F32, &error), "%s: %s", configs[i], error.message)) continue;
        data = file_need(out_path, i == 0 ? &size : &other);
        if (i == 0) first = data;
        else {
            CHECK_THAT(first && size == other && memcmp(first, data, size) == 0, "%s: other bytes", configs[i]);
            free(data);
        }
        remove(out_path);
    }
    free(first);
}

/* What Python's re says of patterns; 2: not known here. */
static void test_patterns(void)
{
    static const struct {
        const char *pattern, *text;
        int whole, tail;
    } rows[] = {
        { "q_proj", "model.layers.0.q_proj", 0, 1 }, { "proj", "q_proj", 0, 0 }, { "q.proj", "qxproj", 1, 1 },
        { ".*\\.(q|v)_proj", "a.v_proj", 1, 1 }, { "(a|ab)(c|bcd)(d*)", "abcd", 1, 1 }, { "a{2,3}", "aa", 1, 1 },
        { "a{2,3}", "aaaa", 0, 0 }, { "a{,2}b", "aab", 1, 1 }, { "a{2}", "aaa", 0, 0 }, { "(ab)+?c", "ababc", 1, 1 },
        { "[^.]+", "a.b", 0, 1 }, { "[a-c\\d]+", "b7", 1, 1 }, { "[]a]", "]", 1, 1 }, { "\\w+\\.\\d+", "x_1.42", 1, 1 },
        { "^b", "a.b", 0, 0 }, { "^a\\.b$", "a.b", 1, 1 }, { "(?!lm).*", "lm_head", 0, 0 },
        { "(?=.*q).*", "x.q.y", 1, 1 },
        { "(?:x|y)?z", "z", 1, 1 }, { "(?P<n>\\d+)", "12", 1, 1 }, { "a|", "", 1, 1 }, { "\\bq\\b.*", "q_proj", 0, 0 },
        { "((((a))))*", "aaaa", 1, 1 }, { "(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 0, 0 }, { "\\Aq", "q", 2, 2 },
        { "(?<=a)b", "ab", 2, 2 }, { "(a", "a", 2, 2 }, { "a)", "a", 2, 2 }, { "[a", "a", 2, 2 }, { "*a", "a", 2, 2 },
        { "a**", "a", 2, 2 }, { "(a)\\1", "aa", 2, 2 }, { "a++", "a", 2, 2 }, { "[z-a]", "b", 2, 2 },
        { "[a-]+", "-a", 1, 1 }, { "[a-]x", "bx", 0, 0 }, { "[a-", "a", 2, 2 }, { "x?z", "xz", 1, 1 },
        { "a{0,65536}", "aa", 1, 1 }, { "a{0,655360}", "aa", 2, 2 },
        { "a\\", "a", 2, 2 },
    };
    size_t i;
    for (i = 0; i < COUNT(rows); i++) {
        bool whole = false, tail = false;
        int got = pattern_match(rows[i].pattern, rows[i].text, PATTERN_WHOLE, &whole) ? whole : 2;
        CHECK_THAT(got == rows[i].whole, "%s on %s: %d", rows[i].pattern, rows[i].text, got);
        got = pattern_match(rows[i].pattern, rows[i].text, PATTERN_TAIL, &tail) ? tail : 2;
        CHECK_THAT(got == rows[i].tail, "%s at the end of %s: %d", rows[i].pattern, rows[i].text, got);
    }
}

/* One more tensor of `count` ones. */
static void check_extra(const char *name, const char *shape, size_t count, const char *words)
{
    tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 1 };
    char path[PATH_ROOM];
    size_t i;
    for (i = 0; i < COUNT(small_modules); i++) put_module(&c, &small_modules[i]);
    tiny_tensor(&c, name, "F32", shape, count, 1, 0);
    tiny_write_checkpoint(tiny_path(path, adapter_folder, "adapter_model.safetensors"), &c);
    check_fails(name, words);
}

static void check_modules(const module *m, const char *words)
{
    write_modules(m, 1);
    write_adapter_config("{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1, \"target_modules\": \".*\", "
        "\"target_parameters\": [\"experts.gate_up_proj\"]}");
    check_fails(m->name, words);
}

/* No matrices, matrices that are none, a long name, ranks that are too high together. */
static void check_edges(void)
{
    static const module high[] = { { L0 "feed_forward.gate_proj", 16, 16, 600, PLAIN, 1 },
        { L0 "feed_forward.up_proj", 16, 16, 600, PLAIN, 1 } };
    tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 1 };
    tiny_bytes header = { NULL, 0, 0 };
    char path[PATH_ROOM], name[1025];
    tool_error error;
    tiny_path(path, adapter_folder, "adapter_model.safetensors");
    tiny_tensor(&c, "base_model.model." L0 "mamba.in_proj.lora_A.weight", "F32", "2,16,1", 32, 1, 0);
    tiny_tensor(&c, "base_model.model." L0 "mamba.in_proj.lora_B.weight", "F32", "32,2,1", 64, 1, 0);
    tiny_write_checkpoint(path, &c);
    check_fails("a cube", "is no matrix: only linear layers and embeddings");
    memset(name, 'n', sizeof name); /* the longest, whole in the message */
    name[sizeof name - 1] = 0;
    memcpy(name, "base_model.model.", 17);
    tiny_add(&header, "{\"", 2);
    tiny_add(&header, name, strlen(name));
    tiny_print(&header, "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    tiny_add(&header, "", 1);
    tiny_write_parts(path, (const char *)header.data, (const uint8_t *)"\0\0\0\0", 4);
    free(header.data);
    check_fails("a long name", "is unknown");
    tiny_tensor(&c, "base_model.model.model.embed_tokens.base_layer.weight", "F32", "288,16", 4608, 1, 0);
    tiny_write_checkpoint(path, &c);
    check_fails("a base layer alone", "holds no LoRA matrices");
    CHECK(!convert_folder(adapter_folder, NULL, out_path, &error));
    CHECK_THAT(strstr(error.message, "is an adapter: say for which model with --base") != NULL, "%s", error.message);
    rules_note(error.message);
    write_modules(high, COUNT(high));
    write_adapter_config("{\"peft_type\": \"LORA\", \"bias\": \"none\", \"r\": 600, \"lora_alpha\": 2, "
        "\"target_modules\": [\"gate_proj\", \"up_proj\"]}");
    CHECK(!convert_adapter(JMB_F32, &error));
    CHECK_THAT(strstr(error.message, "are 1200 together, more than 1024") != NULL, "%s", error.message);
    rules_note(error.message);
    write_small();
    CHECK(!adapter_convert(adapter_folder, "tests/versions/dense-1.jamba", out_path, JMB_F32, true, &error));
    CHECK_THAT(strstr(error.message, "is none that adapters are known for") != NULL, "%s", error.message);
    rules_note(error.message);
}

static void test_tensors(void)
{
    static const module wrong[] = {
        { L0 "mamba.in_proj", 32, 15, 2, PLAIN, 1 }, { L0 "mamba.in_proj", 31, 16, 2, PLAIN, 1 },
        { L0 "mamba.in_proj", 32, 16, 2, EMBEDDING, 1 }, { "model.embed_tokens", TINY_VOCAB, 16, 2, PLAIN, 1 },
        { "model.embed_tokens", TINY_VOCAB + 1, 16, 2, EMBEDDING, 1 },
    };
    static const module absent[] = {
        { L0 "self_attn.q_proj", 16, 16, 2, PLAIN, 1 }, { "model.layers.2.mamba.in_proj", 32, 16, 2, PLAIN, 1 },
        { L1 "feed_forward.experts.2.gate_proj", 16, 16, 2, PLAIN, 1 }, { L0 "mamba.conv1d", 16, 3, 2, PLAIN, 1 },
        { L0 "mamba.A_log", 16, 4, 2, PLAIN, 1 }, { FUSED_DOWN, 16, 24, 2, FUSED, 2 },
        { "in_proj", 32, 16, 2, PLAIN, 1 },
    };
    size_t i;
    for (i = 0; i < COUNT(wrong); i++)
        check_modules(&wrong[i], i == 2 || i == 3 ? "of that name" : "by the base model they should be");
    for (i = 0; i < COUNT(absent); i++) check_modules(&absent[i], "has no place");
    write_small();
    check_extra("base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight", "2,16", 32, "has no B beside it");
    check_extra("base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight", "8,2", 16, "has no A beside it");
    check_extra("base_model.model.model.embed_tokens.lora_embedding_A", "2,288", 576, "has no B beside it");
    check_extra("model.layers.1.self_attn.k_proj.lora_A.weight", "2,16", 32, "does not begin with base_model.model.");
    check_extra("base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector", "16", 16, "DoRA");
    check_extra("base_model.model.model.layers.1.self_attn.q_proj.lora_B.bias", "16", 16, "is a bias");
    check_extra("base_model.model.model.layers.1.self_attn.q_proj.lora_E", "2", 2, "is unknown");
    check_extra("base_model.model.model.final_layernorm.weight", "16", 16, "is a whole weight");
    check_extra("base_model.model.model.embed_tokens.base_layer.weight", "288,16", 4608,
        "is not what the base model has");
    check_extra("base_model.model.lm_head.weight", "289,16", 4624, "is not 288 x 16");
    check_edges();
    write_small();
    check_converts("the small adapter");
}

/* Of two uses of a shared block, each with its own adapter, one has one of another shape. */
static void test_wrong_use(void)
{
    static const module uses[] = {
        { Z2 "self_attn.q_proj", 64, 63, 2, PLAIN, 1 }, { Z4 "self_attn.q_proj", 64, 64, 2, PLAIN, 1 },
        { Z2 "self_attn.q_proj", 64, 64, 2, PLAIN, 1 }, { Z4 "self_attn.q_proj", 64, 63, 2, PLAIN, 1 },
    };
    size_t i;
    make_base("zamba2-attn-adapter");
    for (i = 0; i < 2; i++) {
        write_modules(uses + 2 * i, 2);
        write_adapter_config("{\"peft_type\": \"LORA\", \"r\": 2, \"lora_alpha\": 1, "
            "\"target_modules\": [\"q_proj\"]}");
        check_fails(uses[3 * i].name, "by the base model they should be");
    }
}

/* Copies of embedding and head that PEFT stores beside what adapts them. */
static void test_copies(void)
{
    tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 1 };
    char path[PATH_ROOM];
    size_t i;
    /* the first of tiny.h's tensors, from the same seed */
    tiny_matrix(&c, "base_model.model.model.embed_tokens.base_layer.weight", TINY_VOCAB, TINY_HIDDEN);
    c.seed = 1;
    tiny_matrix(&c, "base_model.model.lm_head.weight", TINY_VOCAB, TINY_HIDDEN);
    for (i = 0; i < COUNT(small_modules); i++) put_module(&c, &small_modules[i]);
    tiny_write_checkpoint(tiny_path(path, adapter_folder, "adapter_model.safetensors"), &c);
    check_converts("copies");
    write_small();
}

static void test_numbers(void)
{
    char path[PATH_ROOM];
    size_t size;
    uint8_t *data = file_need(tiny_path(path, adapter_folder, "adapter_model.safetensors"), &size);
    tool_error error;
    tool_store_le(data + size - 4, 0x7fc00000, 4);
    file_write(path, data, size);
    check_fails("NaN", "holds NaN or infinity");
    tool_store_le(data + size - 4, jmb_bits_of(1e6f), 4);
    file_write(path, data, size);
    CHECK(!convert_adapter(JMB_F16, &error) && strstr(error.message, "too large for f16: use --type bf16"));
    rules_note(error.message);
    CHECK(files_in(out_folder) == 0);
    check_converts("a million in f32");
    free(data);
    write_small();
}

/* ---- damage ------------------------------------------------------------------------------------------------------ */

/* One file of the adapter's folder whose bytes are swept. */
typedef struct input {
    const char *name;
    char path[PATH_ROOM];
    size_t failed;
} input;

static void must_fail(void *user, const uint8_t *data, size_t size, const char *what)
{
    const input *in = (const input *)user;
    char full[PATH_ROOM];
    snprintf(full, sizeof full, "%s %s", in->name, what);
    sweep_write(in->path, data, size);
    check_fails(full, in->name);
}

/* Damage fails by name or leaves a folder that converts; either way nothing is left but that. */
static void may_convert(void *user, const uint8_t *data, size_t size, const char *what)
{
    input *in = (input *)user;
    tool_error error;
    sweep_write(in->path, data, size);
    if (convert_adapter(JMB_F32, &error)) {
        remove(out_path);
        return;
    }
    in->failed++;
    CHECK_THAT(strstr(error.message, adapter_folder) && !strchr(error.message, '\n'), "%s %s: '%s'", in->name, what,
        error.message);
    CHECK_THAT(files_in(out_folder) == 0, "%s %s: leaves a file", in->name, what);
}

/* Every prefix; the first `to` bytes changed, and edited. */
static void sweep_input(const char *name, size_t to, int each)
{
    input in;
    sweep w;
    memset(&in, 0, sizeof in);
    in.name = name;
    w.good = file_need(tiny_path(in.path, adapter_folder, name), &w.size);
    w.repair = NULL;
    w.user = &in;
    w.test = must_fail;
    sweep_prefixes(&w, 0, 1);
    w.test = may_convert;
    if (to > w.size) to = w.size;
    sweep_bytes(&w, 0, to, SWEEP_CHANGES, each);
    if (sweep_all()) sweep_values(&w, 0, to < 4096 ? to : 4096, 256);
    CHECK_THAT(in.failed > to / 2, "only %zu changes fail", in.failed);
    sweep_mutations(&w, to, 500);
    file_write(in.path, w.good, w.size);
    free((void *)(uintptr_t)w.good);
    check_converts(name);
}

static void test_damage(void)
{
    char path[PATH_ROOM];
    size_t size;
    uint8_t *data = file_need(tiny_path(path, adapter_folder, "adapter_model.safetensors"), &size);
    size_t header = 8 + (size_t)jmb_load_u64(data);
    free(data);
    sweep_input("adapter_config.json", SIZE_MAX, 3);
    sweep_input("adapter_model.safetensors", header, 2);
}

/* ---- the programs ------------------------------------------------------------------------------------------------ */

typedef struct call {
    const char *tool, *arguments[8];
    int code;
    const char *words;
} call;

static void test_programs(void)
{
    const call calls[] = {
        { "convert", { adapter_folder, out_path, "--base", base_path, NULL }, 0, "" },
        { "convert", { adapter_folder, out_path, "--base", base_path, NULL }, 1, "--force" },
        { "convert", { adapter_folder, out_path, "--base", base_path, "--force", NULL }, 0, "" },
        { "inspect", { out_path, "--tensors", "--verify", NULL }, 0, "" },
        { "convert", { adapter_folder, base_path, "--base", base_path, "--force", NULL }, 1, "part of the input" },
        { "convert", { adapter_folder, out_path, "--base", out_path, "--force", NULL }, 1, out_path },
        { "convert", { adapter_folder, out_path, NULL }, 1, "--base" },
        { "convert", { base_folder, out_path, "--merge", base_folder, "--force", NULL }, 1, "adapter_config.json" },
        { "convert", { base_folder, out_path, "--merge", NULL }, 2, "--merge" },
        { "convert", { adapter_folder, out_path, "--base", base_path, "--type", "q8", NULL }, 2, "f32, f16 or bf16" },
        { "convert", { adapter_folder, out_path, "--base", base_path, "--dry-run", NULL }, 2, "--base" },
        { "convert", { base_folder, out_path, "--merge", adapter_folder, "--force", NULL }, 0, "" },
        { "inspect", { out_path, NULL }, 0, "" },
    };
    char errors[2000];
    size_t i;
    for (i = 0; i < COUNT(calls); i++) {
        int code = tool_run(calls[i].tool, calls[i].arguments, errors, sizeof errors);
        CHECK_THAT(code == calls[i].code && strstr(errors, calls[i].words), "call %zu: exits %d: %s", i, code, errors);
    }
    remove(out_path);
    CHECK(files_in(out_folder) == 0);
}

/* inspect on an adapter whose bytes are changed or cut. */
static void test_inspect(void)
{
    tool_error error;
    adapter_image image;
    size_t size, at;
    uint8_t *data;
    if (!CHECK(convert_adapter(JMB_F16, &error))) return;
    data = file_need(out_path, &size);
    for (at = 0; at < size; at += at < 400 ? 1 : 97) {
        data[at] ^= 4;
        file_write(out_path, data, size);
        data[at] ^= 4;
        CHECK_THAT(!adapter_image_open(&image, out_path, &error), "byte %zu does not matter", at);
        file_write(out_path, data, at);
        CHECK_THAT(!adapter_image_open(&image, out_path, &error), "%zu bytes are enough", at);
    }
    file_write(out_path, data, size);
    if (CHECK(adapter_image_open(&image, out_path, &error))) adapter_image_close(&image);
    free(data);
    remove(out_path);
}

static void run_small(const char *name, void (*test)(void))
{
    if (!test_begin("%s", name)) return;
    make_base(NULL);
    write_small();
    test();
    test_end();
}

/* ---- every message ---------------------------------------------------------------------------- */

static void test_messages(void)
{
    static const rules_call calls[] = { { "tool_error_set", "", "" } };
    static const rules_excuse excuses[] = { { NULL, NULL } };
    size_t count;
    if (test_state.filter) return; /* rows were left out */
    count = rules_check("tools/lora.h", NULL, NULL, calls, 1, excuses);
    count += rules_check("tools/families.h", "/* ---- low-rank", "/* ---- sharing", calls, 1, excuses);
    count += rules_check("tools/families.h", "/* ---- all of an adapter", NULL, calls, 1, excuses);
    count += rules_check("tools/pattern.h", NULL, NULL, calls, 1, excuses);
    count += rules_check("tools/adapter.h", NULL, NULL, calls, 1, excuses);
    printf("lora_convert: %zu calls that refuse\n", count);
}

int main(int argc, char **argv)
{
    size_t i;
    test_start(argc, argv);
    mkdir(temp_path(adapter_folder, "adapter"), 0777);
    mkdir(temp_path(out_folder, "out"), 0777);
    tiny_path(out_path, out_folder, "out.file");
    remove(out_path);
    for (i = 0; i < COUNT(cases); i++)
        if (test_begin("%s", cases[i].name)) {
            test_case(&cases[i]);
            test_end();
        }
    run_small("refused configurations", test_configs);
    run_small("equal configurations", test_same_configs);
    run_small("patterns", test_patterns);
    run_small("refused tensors", test_tensors);
    run_small("a use of a shared block", test_wrong_use);
    run_small("copies", test_copies);
    run_small("numbers", test_numbers);
    run_small("damage", test_damage);
    run_small("programs", test_programs);
    run_small("inspect", test_inspect);
    run_small("every message of the readers", test_messages);
    return test_summary();
}
