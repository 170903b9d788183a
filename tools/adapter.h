/* adapter.h - a folder of the PEFT library as an adapter file for one model.
 *
 * The base model file has the program, and says its family: names and rows of the adapter's matrices come from that
 * family's table, as in a conversion. Every use of a shared block has entries of its own.
 */
#ifndef ADAPTER_H
#define ADAPTER_H

#include "writer.h"

/* One matrix of the model that is adapted. */
typedef struct adapter_item {
    jmb_lora_entry entry;
    jmb_lora lora;
    lora_part parts[2]; /* the second: the up projection of a pair */
    uint32_t second;    /* where the ranks of the second begin: 0 when both are of one module */
} adapter_item;

typedef struct adapter_file {
    const jamba_model *base;
    const convert_plan *plan;
    adapter_item *items;
    uint32_t count, capacity;
    uint32_t type;
    uint64_t size;
} adapter_file;

/* ---- entries ------------------------------------------------------------------------------- */

static bool adapter_add_item(adapter_file *file, const adapter_item *item, tool_error *error)
{
    if (file->count == file->capacity) {
        uint32_t capacity = file->capacity ? 2 * file->capacity : 64;
        adapter_item *grown = (adapter_item *)realloc(file->items, capacity * sizeof *grown);
        if (!grown) return tool_no_memory(error);
        file->items = grown;
        file->capacity = capacity;
    }
    file->items[file->count++] = *item;
    return true;
}

/* The rank of both halves: they share A when they are rows of one module. */
static uint32_t adapter_join(adapter_item *item)
{
    const lora_part *x = &item->parts[0], *y = &item->parts[1];
    bool same = x->module && x->module == y->module && x->right == y->right;
    item->second = same ? 0 : x->rank;
    return item->second + (same ? x->rank : y->rank);
}

/* What the adapter has for tensor `t` of block `block`. */
static bool adapter_add_tensor(adapter_file *file, uint32_t block, const jmb_tensor *t, tool_error *error)
{
    adapter_item item;
    uint32_t half;
    char name[64];
    memset(&item, 0, sizeof item);
    for (half = 0; half < (jmb_roles[t->role].paired ? 2u : 1u); half++)
        if (!plan_find_lora(file->plan, block, t, half, &item.parts[half], error)) return false;
    item.entry.rank = adapter_join(&item);
    if (item.entry.rank == 0) return true;
    if (item.entry.rank > JMB_MAX_RANK)
        return tool_error_set(error, "%s: the ranks of gate and up projection of %s are %u together, more than %d",
            file->plan->lora->path, jmb_tensor_name(t, name), item.entry.rank, (int)JMB_MAX_RANK);
    item.entry.block = block;
    item.entry.role = t->role;
    item.entry.index = t->index;
    item.entry.type = file->type;
    item.entry.rows = t->rows;
    item.entry.cols = t->cols;
    jmb_lora_shape(&item.lora, &item.entry);
    return adapter_add_item(file, &item, error);
}

static bool adapter_add_block(adapter_file *file, uint32_t block, tool_error *error)
{
    uint32_t i, count = plan_list_used(file->plan, block, JMB_F32, NULL);
    jmb_tensor *tensors = (jmb_tensor *)calloc(count, sizeof *tensors);
    bool ok = tensors != NULL || tool_no_memory(error);
    if (ok) plan_list_used(file->plan, block, JMB_F32, tensors);
    for (i = 0; i < count && ok; i++) ok = adapter_add_tensor(file, block, &tensors[i], error);
    free(tensors);
    return ok;
}

static int adapter_compare_items(const void *x, const void *y)
{
    return jmb_compare_loras(&((const adapter_item *)x)->lora, &((const adapter_item *)y)->lora);
}

/* Every entry, in order, and where its data lies. */
static bool adapter_list(adapter_file *file, tool_error *error)
{
    jmb_tensor embed = plan_vocab_tensor(file->plan, JMB_ROLE_EMBED);
    jmb_tensor head = plan_vocab_tensor(file->plan, JMB_ROLE_HEAD);
    uint32_t i;
    for (i = 0; i < file->plan->model.header.blocks; i++)
        if (!adapter_add_block(file, i, error)) return false;
    if (!adapter_add_tensor(file, JMB_NONE, &embed, error) || !adapter_add_tensor(file, JMB_NONE, &head, error))
        return false;
    if (file->count) qsort(file->items, file->count, sizeof *file->items, adapter_compare_items);
    file->size = JMB_ADAPTER_BYTES + (uint64_t)file->count * JMB_ADAPTER_ENTRY;
    for (i = 0; i < file->count; i++) {
        adapter_item *item = &file->items[i];
        item->entry.a = file->size;
        item->entry.b = item->entry.a + item->lora.a.bytes;
        file->size = item->entry.b + item->lora.b.bytes;
    }
    return true;
}

/* ---- panels -------------------------------------------------------------------------------- */

/* Row `row` of A. */
static void adapter_row_a(const adapter_item *item, uint32_t row, float *out)
{
    bool second = item->parts[1].rank > 0 && row >= item->second;
    const lora_part *part = &item->parts[second];
    uint32_t col;
    if (item->entry.role == JMB_ROLE_EMBED)
        for (col = 0; col < part->rank; col++) out[col] = part->left[row * part->left_row + col * part->left_rank];
    else
        for (col = 0; col < item->entry.cols; col++)
            out[col] = lora_right(part, second ? row - item->second : row, col);
}

/* Row `row` of B, of one half; with the scale. */
static void adapter_row_b(const adapter_item *item, uint32_t half, uint32_t row, float *out)
{
    const lora_part *part = &item->parts[half];
    uint32_t k;
    if (item->entry.role == JMB_ROLE_EMBED)
        for (k = 0; k < part->rank; k++) out[k] = (float)(part->scale * (double)lora_right(part, k, row));
    else
        for (k = 0; k < part->rank; k++) out[(half ? item->second : 0) + k] = lora_left(part, row, k);
}

/* Packs A or B at `out`; `rows` is room for 16 of them. */
static void adapter_pack(
    const adapter_item *item, const jmb_tensor *t, bool is_a, float *rows, uint8_t *out, pack_report *report)
{
    uint32_t halves = jmb_roles[t->role].paired ? 2 : 1, first, half, r;
    size_t stride = jmb_pad64(t->cols);
    for (first = 0; first < t->rows; first += PACK_ROWS)
        for (half = 0; half < halves; half++) {
            memset(rows, 0, PACK_ROWS * stride * sizeof *rows);
            for (r = 0; r < PACK_ROWS && first + r < t->rows; r++) {
                if (is_a) adapter_row_a(item, first + r, rows + r * stride);
                else adapter_row_b(item, half, first + r, rows + r * stride);
            }
            pack_panel(out, t->type, rows, t->cols, report);
            out += jmb_panel_bytes(t->type, t->cols);
        }
}

static bool adapter_check_report(
    const adapter_file *file, const adapter_item *item, const pack_report *report, tool_error *error)
{
    const lora_part *part = &item->parts[item->parts[0].module ? 0 : 1];
    if (report->not_finite || report->too_large)
        return tool_error_set(error, "%s: tensor %s or its B has numbers too large for %s: use --type %s",
            file->plan->lora->path, part->module->a->name, jmb_type_names[file->type],
            file->type == JMB_F16 ? "bf16" : "f32, or a smaller lora_alpha");
    return true;
}

static bool adapter_pack_item(const adapter_file *file, const adapter_item *item, uint8_t *bytes, tool_error *error)
{
    const jmb_tensor *a = &item->lora.a, *b = &item->lora.b;
    size_t widest = jmb_pad64(a->cols > b->cols ? a->cols : b->cols);
    float *rows = (float *)malloc(PACK_ROWS * widest * sizeof *rows);
    pack_report report = { 0, 0 };
    if (!rows) return tool_no_memory(error);
    adapter_pack(item, a, true, rows, bytes + item->entry.a, &report);
    adapter_pack(item, b, false, rows, bytes + item->entry.b, &report);
    free(rows);
    return adapter_check_report(file, item, &report, error);
}

/* ---- the file ------------------------------------------------------------------------------ */

static void adapter_write_entry(uint8_t *p, const jmb_lora_entry *e)
{
#define JMB_X(type, name, at) write_##type(p + (at), e->name);
    JMB_LORA_FIELDS(JMB_X)
#undef JMB_X
}

static void adapter_write_header(const adapter_file *file, uint8_t *bytes)
{
    jmb_adapter_header header;
    const jmb_adapter_header *h = &header;
    memset(&header, 0, sizeof header);
    header.version = JMB_ADAPTER_VERSION;
    header.entries = file->count;
    header.size = file->size;
    memcpy(bytes, jmb_adapter_magic, sizeof jmb_adapter_magic);
    memcpy(bytes + 32, file->base->metadata.header.identity, 32);
#define JMB_X(type, name, at) write_##type(bytes + (at), h->name);
    JMB_ADAPTER_FIELDS(JMB_X)
#undef JMB_X
    header.hash = jmb_hash64(jmb_hash64(JMB_HASH_SEED, bytes, 24), bytes + 32, (size_t)file->size - 32);
    write_u64(bytes + 24, header.hash);
}

/* All of the file; free it. */
static uint8_t *adapter_bytes(const adapter_file *file, tool_error *error)
{
    uint8_t *bytes = file->size > SIZE_MAX / 2 ? NULL : (uint8_t *)calloc((size_t)file->size, 1);
    bool ok = bytes != NULL || tool_no_memory(error);
    uint32_t i;
    for (i = 0; i < file->count && ok; i++) {
        adapter_write_entry(bytes + JMB_ADAPTER_BYTES + (size_t)i * JMB_ADAPTER_ENTRY, &file->items[i].entry);
        ok = adapter_pack_item(file, &file->items[i], bytes, error);
    }
    if (ok) adapter_write_header(file, bytes);
    if (ok) return bytes;
    free(bytes);
    return NULL;
}

/* Loads it with the library, beside its model. */
static bool adapter_check(const adapter_file *file, const char *path, tool_error *error)
{
    jamba_adapter *adapter;
    jamba_error problem;
    if (jamba_adapter_load(&adapter, file->base, jamba_from_file(path), &problem) != JAMBA_OK)
        return tool_error_set(error, "%s: %s", path, problem.message);
    jamba_adapter_free(adapter);
    return true;
}

static bool adapter_write(const adapter_file *file, const char *path, bool force, tool_error *error)
{
    uint8_t *bytes = adapter_bytes(file, error);
    output out;
    bool ok;
    if (!bytes) return false;
    ok = output_begin(&out, path, error) && output_create(&out, file->size, error)
        && output_write_at(&out, 0, bytes, (size_t)file->size, error) && output_sync(&out, error)
        && adapter_check(file, out.temporary, error) && output_check_target(file->plan, path, force, error)
        && output_finish(&out, error);
    output_free(&out);
    free(bytes);
    return ok;
}

static bool adapter_convert_for(
    const jamba_model *base, const convert_plan *plan, const char *path, uint32_t type, bool force, tool_error *error)
{
    adapter_file file;
    bool ok;
    memset(&file, 0, sizeof file);
    file.base = base;
    file.plan = plan;
    file.type = type;
    ok = output_check_target(plan, path, force, error) && adapter_list(&file, error)
        && lora_check_leftovers(plan, error) && adapter_write(&file, path, force, error);
    free(file.items);
    return ok;
}

/* Converts the adapter in folder `dir` for the model file `base_path`. On failure there is no file, or the old one. */
static bool adapter_convert(
    const char *dir, const char *base_path, const char *path, uint32_t type, bool force, tool_error *error)
{
    jamba_model *base;
    jamba_error problem;
    convert_plan plan;
    lora_set lora;
    bool ok;
    if (jamba_model_load(&base, jamba_from_file(base_path), NULL, &problem) != JAMBA_OK) {
        bool named = strstr(problem.message, base_path) != NULL;
        return tool_error_set(error, "%s%s%s", named ? "" : base_path, named ? "" : ": ", problem.message);
    }
    ok = lora_open(&lora, dir, error);
    if (ok) {
        ok = plan_of_model(&plan, &base->metadata, base_path, &lora, error);
        if (ok) {
            ok = adapter_convert_for(base, &plan, path, type, force, error);
            plan_free(&plan);
        }
        lora_close(&lora);
    }
    jamba_model_free(base);
    return ok;
}

#endif
