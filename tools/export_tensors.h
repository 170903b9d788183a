/* export_tensors.h - the model.safetensors of a model file: the naming rules of families.h, with which tensors are
 * found in a checkpoint, say here which rows of which tensor they become.
 */
#ifndef EXPORT_TENSORS_H
#define EXPORT_TENSORS_H

#include "export_config.h"

typedef struct stored_tensor {
    char *name;
    st_dtype dtype;
    uint32_t rank;
    uint64_t shape[3], cols;
    uint64_t rows_left; /* that nothing has been found for */
    uint64_t offset;    /* of its data behind the header */
    uint64_t bytes;
} stored_tensor;

typedef enum part_kind {
    PART_NONE,
    PART_COPY,
    PART_LOG,  /* A goes out as its logarithm */
    PART_ONES, /* goes nowhere: its reader knows that it is ones */
    PART_ZERO  /* nothing is left of it: added to another tensor */
} part_kind;

/* Where one half of a tensor goes: rows first, first + step, ... */
typedef struct tensor_part {
    part_kind kind;
    size_t stored;
    uint64_t first, step;
} tensor_part;

typedef struct tensor_layout {
    const export_plan *e;
    stored_tensor *stored;
    size_t count;
    tensor_part (*parts)[2]; /* of each tensor of the model */
    tool_buffer header;
    uint64_t inexact; /* numbers of A that are -exp of no float */
} tensor_layout;

static void layout_free(tensor_layout *l)
{
    size_t i;
    for (i = 0; i < l->count; i++) free(l->stored[i].name);
    free(l->stored);
    free(l->parts);
    tool_buffer_free(&l->header);
}

/* ---- names and places ---------------------------------------------------------------------- */

/* The first rule for the tensor: the spelling that transformers writes. */
static const name_rule *layout_rule(const tensor_layout *l, const jmb_tensor *t, uint32_t half,
    const rule_group **group)
{
    const convert_plan *plan = &l->e->plan;
    uint32_t kind = t->unit == JMB_NONE ? 0 : plan_group_kind(plan, t->unit);
    const name_rule *rule;
    for (*group = plan->family->groups; (*group)->rules; (*group)++) {
        if ((*group)->kind != kind) continue;
        for (rule = (*group)->rules; rule->name; rule++)
            if (rule->role == t->role && rule->half == half) return rule;
    }
    return NULL;
}

/* Adapters of a shared block lie beside the tensors of its first user. */
static name_place layout_place(const tensor_layout *l, const jmb_tensor *t)
{
    const convert_plan *plan = &l->e->plan;
    name_place place = { 0, 0, t->index };
    if (t->unit == JMB_NONE) return place;
    place.layer = plan->layers[plan->model.blocks[t->unit].unit];
    place.ordinal = plan_ordinal(plan, plan->layers[t->unit]);
    return place;
}

static st_dtype layout_dtype(uint32_t type)
{
    return type == JMB_F32 ? ST_F32 : type == JMB_F16 ? ST_F16 : ST_BF16;
}

/* The tensor `name`, a new one unless it is there: tensors that share one follow each other closely. */
static stored_tensor *layout_stored(tensor_layout *l, const char *name)
{
    stored_tensor *s;
    size_t i;
    for (i = l->count; i-- > 0;)
        if (strcmp(l->stored[i].name, name) == 0) return &l->stored[i];
    s = &l->stored[l->count];
    s->name = (char *)malloc(strlen(name) + 1);
    if (!s->name) return NULL;
    strcpy(s->name, name);
    l->count++;
    return s;
}

static bool layout_add(tensor_layout *l, const jmb_tensor *t, const name_rule *rule, const rule_group *group,
    tensor_part *part, tool_error *error)
{
    const jmb_block *b = plan_block(&l->e->plan, t->unit);
    name_place place = layout_place(l, t);
    char name[NAME_ROOM];
    stored_tensor *s;
    uint64_t total;
    rule_put_name(group, rule, &place, name);
    s = layout_stored(l, name);
    if (!s) return tool_no_memory(error);
    part->stored = (size_t)(s - l->stored);
    part->kind = t->role == JMB_ROLE_A ? PART_LOG : PART_COPY;
    part->first = rule_rows_of(rule, t, b, &total);
    part->step = rule->rows == ROWS_EVEN || rule->rows == ROWS_ODD ? 2 : 1;
    if (s->bytes == 0) {
        s->dtype = layout_dtype(t->type);
        s->rank = rule_shape_of(rule, t, b, total, s->shape);
        s->cols = t->cols;
        s->rows_left = total;
        s->bytes = total * t->cols * st_dtype_bytes(s->dtype);
    }
    if (s->rows_left < t->rows || s->cols != t->cols || s->dtype != layout_dtype(t->type))
        return tool_error_set(error, "%s: the parts of %s do not belong together", l->e->path, name);
    s->rows_left -= t->rows;
    return true;
}

static bool layout_place_tensor(tensor_layout *l, uint32_t index, uint32_t half, tool_error *error)
{
    const jmb_tensor *t = &l->e->plan.model.tensors[index];
    tensor_part *part = &l->parts[index][half];
    const rule_group *group;
    const name_rule *rule = layout_rule(l, t, half, &group);
    char name[64];
    if (!rule)
        return tool_error_set(error, "%s: tensor %s has no name in a %s model", l->e->path, jmb_tensor_name(t, name),
            l->e->plan.family->name);
    if (rule->rows == ROWS_ONES) {
        part->kind = PART_ONES;
        return true;
    }
    if (!layout_add(l, t, rule, group, part, error)) return false;
    if (half == 1 && !jmb_roles[t->role].paired) part->kind = PART_ZERO;
    return true;
}

/* ---- order and header ---------------------------------------------------------------------- */

/* The wider type first, so that every tensor is aligned. */
static bool layout_order(tensor_layout *l, tool_error *error)
{
    uint64_t at = 0;
    int wide;
    size_t i;
    for (wide = 1; wide >= 0; wide--)
        for (i = 0; i < l->count; i++) {
            stored_tensor *s = &l->stored[i];
            if (s->rows_left > 0)
                return tool_error_set(error, "%s: rows of %s are missing", l->e->path, s->name);
            if ((s->dtype == ST_F32) != (wide == 1)) continue;
            s->offset = at;
            at += s->bytes;
        }
    return true;
}

static void layout_put_entry(tool_buffer *out, const stored_tensor *s)
{
    char shape[96];
    st_format_shape(shape, sizeof shape, s->shape, s->rank);
    put_text(out, ",");
    put_string(out, s->name, strlen(s->name));
    put_text(out, ":{\"dtype\":\"");
    put_text(out, st_dtype_names[s->dtype]);
    put_text(out, "\",\"shape\":");
    put_text(out, shape);
    put_text(out, ",\"data_offsets\":[");
    put_integer(out, s->offset);
    put_text(out, ",");
    put_integer(out, s->offset + s->bytes);
    put_text(out, "]}");
}

static bool layout_header(tensor_layout *l, tool_error *error)
{
    tool_buffer *out = &l->header;
    size_t i;
    tool_buffer_u64(out, 0);
    put_text(out, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (i = 0; i < l->count; i++) layout_put_entry(out, &l->stored[i]);
    put_text(out, "}");
    while (out->size % 64 != 0 && tool_buffer_u8(out, ' ')) {}
    if (out->failed) return tool_no_memory(error);
    tool_store_le(out->data, out->size - 8, 8);
    return true;
}

static bool layout_make(tensor_layout *l, const export_plan *e, tool_error *error)
{
    uint32_t i, count = e->plan.model.header.tensors;
    memset(l, 0, sizeof *l);
    l->e = e;
    l->stored = (stored_tensor *)calloc(2 * (size_t)count, sizeof *l->stored);
    l->parts = (tensor_part(*)[2])calloc(count, sizeof *l->parts);
    if (!l->stored || !l->parts) return tool_no_memory(error);
    for (i = 0; i < count; i++) {
        const jmb_tensor *t = &e->plan.model.tensors[i];
        if (t->role == JMB_ROLE_ROPE) continue;
        if (!layout_place_tensor(l, i, 0, error)) return false;
        if (t->unit != JMB_NONE && plan_has_second(&e->plan, t) && !layout_place_tensor(l, i, 1, error)) return false;
    }
    return layout_order(l, error) && layout_header(l, error);
}

static uint64_t layout_bytes(const tensor_layout *l)
{
    uint64_t bytes = l->header.size;
    size_t i;
    for (i = 0; i < l->count; i++) bytes += l->stored[i].bytes;
    return bytes;
}

/* ---- data ---------------------------------------------------------------------------------- */

/* A float whose -exp is `a`: the logarithm or a neighbour of it. Counts in *inexact where there is none. */
static float export_log(float a, uint64_t *inexact)
{
    float x = a == 0 ? -200.0f : (float)log(-(double)a);
    int i;
    for (i = 0; i <= 8; i++) {
        uint32_t bits = jmb_bits_of(x);
        float up = jmb_float_of(bits + (uint32_t)i), down = jmb_float_of(bits - (uint32_t)i);
        if (jmb_bits_of(pack_minus_exp(up)) == jmb_bits_of(a)) return up;
        if (jmb_bits_of(pack_minus_exp(down)) == jmb_bits_of(a)) return down;
    }
    ++*inexact;
    return x;
}

/* Pieces of one tensor on their way out. */
typedef struct export_stream {
    tensor_layout *layout;
    const jmb_tensor *tensor;
    const tensor_part *parts;
    uint32_t halves, batch; /* batch: panels of each half at a time */
    size_t size, row_bytes, panel_bytes; /* size: of a number */
    uint8_t *panels, *rows;
    uint64_t hash;
} export_stream;

static bool export_start(export_stream *s, tensor_layout *l, uint32_t index, tool_error *error)
{
    const jmb_tensor *t = &l->e->plan.model.tensors[index];
    memset(s, 0, sizeof *s);
    s->layout = l;
    s->tensor = t;
    s->parts = l->parts[index];
    s->halves = jmb_roles[t->role].paired ? 2 : 1;
    s->size = t->type == JMB_F32 ? 4 : 2;
    s->row_bytes = t->cols * s->size;
    s->panel_bytes = (size_t)jmb_panel_bytes(t->type, t->cols);
    s->batch = s->panel_bytes < WRITE_PIECE ? (uint32_t)(WRITE_PIECE / s->panel_bytes) : 1;
    if (s->batch > (t->rows + 15) / 16) s->batch = (t->rows + 15) / 16;
    s->hash = JMB_HASH_SEED;
    s->panels = (uint8_t *)malloc(s->panel_bytes * s->batch * s->halves);
    s->rows = (uint8_t *)malloc(s->row_bytes * s->batch * PACK_ROWS);
    return (s->panels && s->rows) || tool_no_memory(error);
}

static void export_stop(export_stream *s)
{
    free(s->panels);
    free(s->rows);
}

/* Row `r` of a panel: f32 is stored as [cols][16], 16 bits as [cols / 2][16][2]. */
static void export_unpack(const export_stream *s, const uint8_t *panel, uint32_t r, uint8_t *out)
{
    size_t c, cols = s->tensor->cols, pair = 4 / s->size; /* numbers of a row in a unit of four bytes */
    for (c = 0; c < cols; c++)
        memcpy(out + c * s->size, panel + (c / pair * PACK_ROWS + r) * 4 + c % pair * s->size, s->size);
}

static bool export_check_ones(const export_stream *s, uint32_t rows, tool_error *error)
{
    char name[64];
    uint32_t i;
    for (i = 0; i < rows * s->tensor->cols; i++)
        if (jmb_float_of(jmb_load_u32(s->rows + 4 * (size_t)i)) != 1)
            return tool_error_set(error, "%s: norm %s has weights, which a %s model cannot store", s->layout->e->path,
                jmb_tensor_name(s->tensor, name), s->layout->e->plan.family->name);
    return true;
}

static bool export_take_logs(const export_stream *s, uint32_t rows, tool_error *error)
{
    size_t i;
    char name[64];
    for (i = 0; i < rows * (size_t)s->tensor->cols; i++) {
        uint8_t *p = s->rows + 4 * i;
        float a = jmb_float_of(jmb_load_u32(p));
        if (!(a <= 0 && a >= -FLT_MAX))
            return tool_error_set(error, "%s: tensor %s has a number that is no -exp: no checkpoint says it",
                s->layout->e->path, jmb_tensor_name(s->tensor, name));
        tool_store_le(p, jmb_bits_of(export_log(a, &s->layout->inexact)), 4);
    }
    return true;
}

static bool export_put_rows(
    const export_stream *s, const tensor_part *part, uint64_t row, uint32_t rows, const output *out, tool_error *error)
{
    const stored_tensor *stored = &s->layout->stored[part->stored];
    uint64_t start = s->layout->header.size + stored->offset + (part->first + row * part->step) * s->row_bytes;
    size_t r, bytes = s->row_bytes;
    if (part->step == 1) return output_write_at(out, start, s->rows, rows * bytes, error);
    for (r = 0; r < rows; r++)
        if (!output_write_at(out, start + r * part->step * bytes, s->rows + r * bytes, bytes, error)) return false;
    return true;
}

/* Rows of one half, from the panels read last. */
static bool export_half(
    export_stream *s, uint32_t half, uint64_t row, uint32_t rows, const output *out, tool_error *error)
{
    const tensor_part *part = &s->parts[half];
    uint32_t r;
    if (part->kind == PART_NONE) return true;
    for (r = 0; r < rows; r++)
        export_unpack(s, s->panels + ((size_t)(r / PACK_ROWS) * s->halves + half) * s->panel_bytes, r % PACK_ROWS,
            s->rows + r * s->row_bytes);
    if (part->kind == PART_ONES) return export_check_ones(s, rows, error);
    if (part->kind == PART_LOG && !export_take_logs(s, rows, error)) return false;
    return export_put_rows(s, part, row, rows, out, error);
}

/* -0, which leaves every number as it is when it is added. */
static bool export_zeros(export_stream *s, uint64_t row, uint32_t rows, const output *out, tool_error *error)
{
    size_t i;
    if (s->parts[1].kind != PART_ZERO) return true;
    for (i = 0; i < rows * (size_t)s->tensor->cols; i++) tool_store_le(s->rows + 4 * i, 0x80000000u, 4);
    return export_put_rows(s, &s->parts[1], row, rows, out, error);
}

static bool export_read_panels(export_stream *s, uint64_t offset, size_t size, tool_error *error)
{
    char name[64];
    if (jmb_file_read(&s->layout->e->file->file, offset, s->panels, size) != size)
        return tool_error_set(error, "%s: cannot read tensor %s", s->layout->e->path, jmb_tensor_name(s->tensor, name));
    s->hash = jmb_hash64(s->hash, s->panels, size);
    return true;
}

static bool export_run(export_stream *s, const output *out, tool_error *error)
{
    uint64_t row, offset = s->tensor->offset;
    uint32_t half, step = s->batch * PACK_ROWS;
    char name[64];
    for (row = 0; row < s->tensor->rows; row += step) {
        uint32_t rows = s->tensor->rows - row < step ? (uint32_t)(s->tensor->rows - row) : step;
        size_t size = (size_t)((rows + 15) / 16) * s->halves * s->panel_bytes;
        if (!export_read_panels(s, offset, size, error)) return false;
        for (half = 0; half < s->halves; half++)
            if (!export_half(s, half, row, rows, out, error)) return false;
        if (!export_zeros(s, row, rows, out, error)) return false;
        offset += size;
    }
    return s->hash == s->tensor->hash
        || tool_error_set(error, "%s: tensor %s is damaged (its hash differs): copy the file again",
            s->layout->e->path, jmb_tensor_name(s->tensor, name));
}

static bool export_write_tensors(tensor_layout *l, const output *out, tool_error *error)
{
    const jmb_metadata *m = &l->e->plan.model;
    tool_progress progress = { 0, false };
    export_stream stream;
    bool ok = output_write_at(out, 0, l->header.data, l->header.size, error);
    uint32_t i;
    for (i = 0; i < m->header.tensors && ok; i++) {
        tool_progress_show(&progress, "exporting", m->tensors[i].offset, m->header.file_size);
        ok = export_start(&stream, l, i, error) && export_run(&stream, out, error);
        export_stop(&stream);
    }
    tool_progress_end(&progress);
    return ok;
}

/* model.safetensors at `path`. */
static bool export_tensors(const export_plan *e, const char *path, uint64_t *inexact, tool_error *error)
{
    tensor_layout layout;
    output out;
    bool ok = output_begin(&out, path, error);
    ok = layout_make(&layout, e, error) && ok;
    ok = ok && output_create(&out, layout_bytes(&layout), error) && export_write_tensors(&layout, &out, error)
        && output_sync(&out, error) && output_finish(&out, error);
    *inexact = layout.inexact;
    output_free(&out);
    layout_free(&layout);
    return ok;
}

#endif
