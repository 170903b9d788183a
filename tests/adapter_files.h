/* adapter_files.h - adapter files made in memory, with random matrices for whatever a model's program has */
#ifndef ADAPTER_FILES_H
#define ADAPTER_FILES_H

#include "programs.h"

enum { ENTRIES_MAX = 4096 };

/* What an adapter is made of: one entry for each matrix of the program. */
typedef struct plan_entry {
    jmb_lora key;
    const jmb_tensor *w;
    bool embed;
    uint32_t rank, type;
    uint64_t a_at, b_at, a_bytes, b_bytes;
    uint64_t seed; /* equal for all uses of a shared matrix, so that it can be merged */
} plan_entry;

static float lora_random(uint64_t *state, double size)
{
    return (float)(((double)(random_next(state) >> 11) / 9007199254740992.0 - 0.5) * size);
}

static void put_number(uint8_t *panel_data, const jmb_tensor *t, size_t row, size_t col, float value)
{
    uint8_t *panel = panel_data + row / 16 * (size_t)jmb_panel_bytes(t->type, t->cols);
    size_t r = row % 16;
    if (t->type == JMB_F32) jmb_store_f32(panel + (col * 16 + r) * 4, value);
    else {
        uint32_t half = t->type == JMB_BF16 ? jmb_bits_of(value) >> 16 : jmb_float_to_f16(value);
        uint8_t *at = panel + (col / 2 * 32 + r * 2 + col % 2) * 2;
        at[0] = (uint8_t)half;
        at[1] = (uint8_t)(half >> 8);
    }
}

static int compare_entries(const void *x, const void *y)
{
    return jmb_compare_loras(&((const plan_entry *)x)->key, &((const plan_entry *)y)->key);
}

/* Every matrix of the program that `want` likes. A tied head is left out where the embedding is merged. */
static size_t list_entries(
    const jamba_model *model, plan_entry *entries, bool (*want)(const plan_entry *, const jamba_model *))
{
    jamba_adapter probe;
    size_t count = 0;
    uint32_t o, i;
    memset(&probe, 0, sizeof probe);
    probe.model = model;
    for (o = 0; o < model->plan.count; o++)
        for (i = 0; i < jmb_op_slots(&model->plan.ops[o]); i++) {
            plan_entry *e = &entries[count];
            memset(e, 0, sizeof *e);
            jmb_lora_key(&probe, &model->plan.ops[o], i, &e->key, &e->w);
            e->embed = model->plan.ops[o].kind == JMB_OP_EMBED;
            e->seed = (uint64_t)(e->w - model->metadata.tensors) + 1;
            e->rank = 1 + (uint32_t)(e->seed * 7 % 20);
            if (!want(e, model)) continue;
            test_require(++count < ENTRIES_MAX, "too many matrices", "adapter_files.h");
        }
    qsort(entries, count, sizeof *entries, compare_entries);
    return count;
}

TEST_UNUSED static bool want_all(const plan_entry *e, const jamba_model *model)
{
    (void)e, (void)model;
    return true;
}

/* Those whose change can be written into the weights. */
TEST_UNUSED static bool want_mergeable(const plan_entry *e, const jamba_model *model)
{
    return model->metadata.header.head || e->w->role != JMB_ROLE_EMBED;
}

static void fill_matrix(uint8_t *data, const jmb_tensor *t, uint64_t seed, double size)
{
    size_t row, col, pairs = jmb_roles[t->role].paired ? 2 : 1, k;
    for (row = 0; row < t->rows; row++)
        for (k = 0; k < pairs; k++)
            for (col = 0; col < t->cols; col++)
                put_number(
                    data, t, pairs == 2 ? row / 16 * 32 + k * 16 + row % 16 : row, col, lora_random(&seed, size));
}

static jmb_lora entry_shape(const plan_entry *e)
{
    jmb_lora_entry entry;
    jmb_lora l;
    memset(&entry, 0, sizeof entry);
    entry.block = e->key.block;
    entry.role = e->embed ? (uint32_t)JMB_ROLE_EMBED : e->key.role;
    entry.index = e->key.index;
    entry.rank = e->rank;
    entry.type = e->type;
    entry.rows = e->w->rows;
    entry.cols = e->w->cols;
    jmb_lora_shape(&l, &entry);
    return l;
}

static void seal(image *file)
{
    uint64_t hash = jmb_hash64(jmb_hash64(JMB_HASH_SEED, file->data, 24), file->data + 32, file->size - 32);
    jmb_store_u64(file->data + 24, hash);
}

static image make_adapter(const jamba_model *model, plan_entry *entries, size_t count, uint32_t type, uint64_t seed)
{
    uint64_t at = JMB_ADAPTER_BYTES + count * JMB_ADAPTER_ENTRY;
    image file;
    size_t i, j;
    for (i = 0; i < count; i++) {
        jmb_lora l;
        entries[i].type = type;
        l = entry_shape(&entries[i]);
        entries[i].a_at = at;
        entries[i].b_at = at + l.a.bytes;
        at = entries[i].b_at + l.b.bytes;
    }
    file.size = (size_t)at;
    file.data = (uint8_t *)calloc(file.size, 1);
    test_require(file.data != NULL, "out of memory", "adapter_files.h");
    memcpy(file.data, jmb_adapter_magic, 8);
    jmb_store_u32(file.data + 8, JMB_ADAPTER_VERSION);
    jmb_store_u32(file.data + 12, (uint32_t)count);
    jmb_store_u64(file.data + 16, at);
    memcpy(file.data + 32, model->metadata.header.identity, 32);
    for (i = 0; i < count; i++) {
        const plan_entry *e = &entries[i];
        jmb_lora l = entry_shape(e);
        uint32_t fields[7] = { e->key.block, l.role, e->key.index, e->rank, type, e->w->rows, e->w->cols };
        uint8_t *p = file.data + JMB_ADAPTER_BYTES + i * JMB_ADAPTER_ENTRY;
        for (j = 0; j < 7; j++) jmb_store_u32(p + j * 4, fields[j]);
        jmb_store_u64(p + 32, e->a_at);
        jmb_store_u64(p + 40, e->b_at);
        fill_matrix(file.data + e->a_at, &l.a, e->seed * 1000 + seed, 0.4);
        fill_matrix(file.data + e->b_at, &l.b, e->seed * 1000 + seed + 500, 0.4);
    }
    seal(&file);
    return file;
}

TEST_UNUSED static jamba_adapter *load_adapter(const jamba_model *model, const image *file)
{
    jamba_adapter *adapter = NULL;
    jamba_error error;
    CHECK_THAT(jamba_adapter_load(&adapter, model, jamba_from_memory(file->data, file->size), &error) == JAMBA_OK,
        "%s", error.message);
    return adapter;
}

#endif
