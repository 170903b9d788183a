/* writer.h - writes a model file so that it is whole or not there: the tensors in pieces, then the metadata
 * in front of them. The file is read back and checked before it takes its name (output.h). */
#ifndef WRITER_H
#define WRITER_H

#include "chat_formats.h"
#include "describe.h"
#include "families.h"
#include "output.h"
#include "pack.h"
#include "tokenizer.h"

typedef struct convert_text {
    tool_strings strings;
    tool_buffer tokenizer;
} convert_text;

static void text_free(convert_text *text)
{
    tool_buffer_free(&text->strings.bytes);
    tool_buffer_free(&text->tokenizer);
}

/* Reads what the plan's folder says about text, with the chat format `chat` or NULL; fills in the tokens that only
 * the tokenizer knows. */
JMB_UNUSED static bool text_make(convert_text *text, convert_plan *plan, const char *chat, tool_error *error)
{
    const char *dir = plan->checkpoint.dir;
    memset(text, 0, sizeof *text);
    if (!tool_strings_add(&text->strings, "architecture", plan->family->name)) return tool_no_memory(error);
    if (!tokenizer_compile(dir, plan->model.header.vocab, &text->tokenizer, error)) return false;
    if (!tokenizer_fill_ids(dir, &text->tokenizer, &plan->model.header, error)) return false;
    if (!chat_format_strings(dir, chat, &text->strings, error)) return false;
    if (text->tokenizer.failed || text->strings.bytes.failed) return tool_no_memory(error);
    return true;
}

/* ---- metadata ------------------------------------------------------------------------------ */

static void write_u16(uint8_t *p, uint32_t value)
{
    tool_store_le(p, value, 2);
}

static void write_u32(uint8_t *p, uint32_t value)
{
    tool_store_le(p, value, 4);
}

static void write_u64(uint8_t *p, uint64_t value)
{
    tool_store_le(p, value, 8);
}

static void write_f32(uint8_t *p, float value)
{
    tool_store_le(p, jmb_bits_of(value), 4);
}

static void write_header(uint8_t *p, const jmb_header *h)
{
    memcpy(p, jmb_magic, 8);
#define JMB_X(type, name, at) write_##type(p + (at), h->name);
    JMB_HEADER_FIELDS(JMB_X)
#undef JMB_X
}

static void write_block(uint8_t *p, const jmb_block *b)
{
#define JMB_X(type, name)        \
    write_##type(p, b->name); \
    p += 4;
    JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
}

static void write_entry(uint8_t *p, const jmb_tensor *t)
{
#define JMB_X(type, name, at) write_##type(p + (at), t->name);
    JMB_ENTRY_FIELDS(JMB_X)
#undef JMB_X
}

/* Gives every part its place, from the sizes of strings and tokenizer on. */
JMB_UNUSED static bool plan_place(convert_plan *plan, const convert_text *text, tool_error *error)
{
    jmb_header *h = &plan->model.header;
    jmb_parts parts;
    h->strings_size = text->strings.bytes.size;
    h->tokenizer_size = text->tokenizer.size;
    parts = jmb_place_parts(h);
    h->data_offset = parts.data;
    if (parts.data > JMB_MAX_METADATA)
        return tool_error_set(error,
            "%s: program, tensor list and tokenizer take %llu bytes, more than a model file may have",
            plan->checkpoint.dir, (unsigned long long)parts.data);
    h->file_size = jmb_place_tensors(plan->model.tensors, h->tensors, parts.data);
    return true;
}

/* Everything before the data; free it. NULL when there is no memory. */
static uint8_t *plan_metadata(convert_plan *plan, const convert_text *text)
{
    const jmb_header *h = &plan->model.header;
    jmb_parts parts = jmb_place_parts(h);
    uint8_t *p = (uint8_t *)calloc((size_t)parts.data, 1);
    uint32_t i;
    if (!p) return NULL;
    write_header(p, h);
    for (i = 0; i < h->blocks; i++)
        write_block(p + parts.program + (uint64_t)i * JMB_BLOCK_BYTES, &plan->model.blocks[i]);
    for (i = 0; i < h->tensors; i++)
        write_entry(p + parts.directory + (uint64_t)i * JMB_ENTRY_BYTES, &plan->model.tensors[i]);
    if (text->strings.bytes.size) memcpy(p + parts.strings, text->strings.bytes.data, text->strings.bytes.size);
    if (text->tokenizer.size) memcpy(p + parts.tokenizer, text->tokenizer.data, text->tokenizer.size);
    jmb_identity(p, parts.data, p + 32);
    return p;
}

/* ---- what OUT may be ----------------------------------------------------------------------- */

/* Other files of the folder that a conversion reads. */
static bool output_is_text_input(const char *dir, const struct stat *out)
{
    static const char *const names[] = { "config.json", "generation_config.json", "model.safetensors.index.json",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
        "chat_template.jinja", "adapter_config.json" };
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *path = tool_path_join(dir, names[i]);
        bool same = output_is_file(path, out);
        free(path);
        if (same) return true;
    }
    return false;
}

static bool output_is_of(const st_checkpoint *c, const struct stat *out)
{
    size_t i;
    for (i = 0; i < c->shard_count; i++)
        if (c->shards[i].device == out->st_dev && c->shards[i].inode == out->st_ino) return true;
    return c->dir && output_is_text_input(c->dir, out);
}

static bool output_is_input(const convert_plan *plan, const struct stat *out)
{
    return output_is_of(&plan->checkpoint, out) || output_is_file(plan->config_path, out)
        || (plan->lora && output_is_of(&plan->lora->checkpoint, out));
}

static bool output_check_target(const convert_plan *plan, const char *path, bool force, tool_error *error)
{
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISDIR(info.st_mode) && output_is_input(plan, &info))
        return tool_error_set(error, "%s: is part of the input: choose another name", path);
    return output_check_forced(path, force, error);
}

/* A of its stored logarithm. exp is taken in double: the rounding to float hides the last bit, in which libms
 * differ. */
static float pack_minus_exp(float x)
{
    return (float)-exp((double)x);
}

/* ---- tensors ------------------------------------------------------------------------------- */

/* Buffers of one tensor: as many panels at a time as fit WRITE_PIECE bytes of the checkpoint, one at least. */
typedef struct panel_stream {
    const convert_plan *plan;
    const jmb_tensor *tensor;
    const tensor_source *sources; /* one, or two of a pair */
    uint32_t halves, batch;       /* batch: panels of each half at a time */
    size_t stride, panel_bytes;
    uint8_t *raw, *added, *panels; /* added: of the second source where that is added to the first */
    float *rows;
    double *sums; /* of a row of what is merged */
    pack_report report;
} panel_stream;

enum { WRITE_PIECE = 1 << 22 };

static void stream_free(panel_stream *s)
{
    free(s->raw);
    free(s->added);
    free(s->panels);
    free(s->rows);
    free(s->sums);
}

/* A tensor of one half with two sources is their sum. */
static bool stream_adds(const panel_stream *s)
{
    return s->halves == 1 && s->sources[1].tensor;
}

static bool stream_start(panel_stream *s, const convert_plan *plan, uint32_t index, tool_error *error)
{
    const jmb_tensor *t = &plan->model.tensors[index];
    uint64_t row_block;
    memset(s, 0, sizeof *s);
    s->plan = plan;
    s->tensor = t;
    s->sources = plan->sources[index];
    s->halves = jmb_roles[t->role].paired ? 2 : 1;
    s->stride = jmb_pad64(t->cols);
    s->panel_bytes = (size_t)jmb_panel_bytes(t->type, t->cols);
    row_block = (uint64_t)t->cols * 4 * PACK_ROWS * s->sources[0].step;
    s->batch = row_block < WRITE_PIECE ? (uint32_t)(WRITE_PIECE / row_block) : 1;
    if (s->batch > (t->rows + 15) / 16) s->batch = (t->rows + 15) / 16;
    s->raw = (uint8_t *)malloc((size_t)(row_block * s->batch));
    s->rows = (float *)malloc(PACK_ROWS * s->stride * sizeof *s->rows);
    s->panels = (uint8_t *)malloc(s->panel_bytes * s->batch * s->halves);
    s->sums = (double *)malloc(s->stride * sizeof *s->sums);
    if (stream_adds(s)) s->added = (uint8_t *)malloc((size_t)(row_block * s->batch));
    if (s->raw && s->rows && s->panels && s->sums && (s->added || !stream_adds(s))) return true;
    stream_free(s);
    return tool_no_memory(error);
}

/* Adds row `row` of B A. Sums are of exact products in double, so that every machine rounds them alike. */
static void stream_merge(const panel_stream *s, const lora_part *part, uint64_t row, float *out)
{
    size_t cols = s->tensor->cols, i;
    uint32_t k;
    memset(s->sums, 0, cols * sizeof *s->sums);
    for (k = 0; k < part->rank; k++) {
        double left = (double)lora_left(part, row, k);
        for (i = 0; i < cols; i++) s->sums[i] += left * (double)lora_right(part, k, i);
    }
    for (i = 0; i < cols; i++) out[i] = (float)((double)out[i] + s->sums[i]);
}

/* Row `r` of the rows read last as floats. */
static void stream_row(panel_stream *s, const tensor_source *source, uint64_t row, uint32_t r, float *out)
{
    size_t cols = s->tensor->cols, i;
    if (!source->tensor) {
        memset(out, 0, s->stride * sizeof *out);
        memcpy(out, source->values + row * cols, cols * sizeof *out);
        return;
    }
    pack_floats(out, s->raw + (size_t)(r * source->step) * cols * st_dtype_bytes(source->tensor->dtype),
        source->tensor->dtype, cols);
    if (source->minus_exp)
        for (i = 0; i < cols; i++) out[i] = pack_minus_exp(out[i]);
    if (source->lora.module) stream_merge(s, &source->lora, row, out);
}

static bool stream_read(panel_stream *s, const tensor_source *source, uint64_t row, uint32_t rows, uint8_t *raw,
    tool_error *error)
{
    uint64_t row_bytes;
    if (!source->tensor) return true;
    row_bytes = (uint64_t)s->tensor->cols * st_dtype_bytes(source->tensor->dtype);
    return st_read_data(&s->plan->checkpoint, source->tensor, (source->first + row * source->step) * row_bytes, raw,
        (size_t)(((rows - 1) * source->step + 1) * row_bytes), error);
}

/* Adds the second source, which is a vector: a row is one number. */
static void stream_add(const panel_stream *s, uint32_t r, float *out)
{
    const st_tensor *added = s->sources[1].tensor;
    float number[PACK_BLOCK];
    pack_floats(number, s->added + r * st_dtype_bytes(added->dtype), added->dtype, 1);
    out[0] += number[0];
}

/* Packs `rows` rows of one half from `row` on; the panels of two halves alternate. */
static void stream_pack(panel_stream *s, uint32_t half, uint64_t row, uint32_t rows)
{
    uint32_t panel, r;
    for (panel = 0; panel * PACK_ROWS < rows; panel++) {
        for (r = 0; r < PACK_ROWS; r++) {
            float *out = s->rows + r * s->stride;
            uint32_t at = panel * PACK_ROWS + r;
            if (at < rows) stream_row(s, &s->sources[half], row + at, at, out);
            else memset(out, 0, s->stride * sizeof *out);
            if (at < rows && s->added) stream_add(s, at, out);
        }
        pack_panel(s->panels + ((size_t)panel * s->halves + half) * s->panel_bytes, s->tensor->type, s->rows,
            s->tensor->cols, &s->report);
    }
}

static bool stream_check(const panel_stream *s, uint32_t half, tool_error *error)
{
    const st_tensor *stored = s->sources[half].tensor;
    const char *name = stored ? stored->name : "rope";
    const char *path = stored ? s->plan->checkpoint.shards[stored->shard].path : s->plan->config_path;
    if (s->report.not_finite)
        return tool_error_set(error, "%s: tensor %s holds NaN or infinity%s: the checkpoint is damaged", path, name,
            s->sources[half].minus_exp ? " (or its exp does)" : "");
    if (s->report.too_large)
        return tool_error_set(error,
            "%s: tensor %s has weights too large for %s (%llu of them in one piece): use --type bf16", path, name,
            s->tensor->type >= JMB_Q8 ? "the f16 scales" : jmb_type_names[s->tensor->type],
            (unsigned long long)s->report.too_large);
    return true;
}

/* Copies one tensor into the file and takes its hash. */
static bool stream_run(panel_stream *s, const output *out, uint64_t *hash, tool_error *error)
{
    uint64_t row, offset = s->tensor->offset;
    uint32_t half, step = s->batch * PACK_ROWS;
    *hash = JMB_HASH_SEED;
    for (row = 0; row < s->tensor->rows; row += step) {
        uint32_t rows = s->tensor->rows - row < step ? (uint32_t)(s->tensor->rows - row) : step;
        size_t size = (size_t)((rows + 15) / 16) * s->halves * s->panel_bytes;
        for (half = 0; half < s->halves; half++) {
            if (!stream_read(s, &s->sources[half], row, rows, s->raw, error)) return false;
            if (s->added && !stream_read(s, &s->sources[1], row, rows, s->added, error)) return false;
            stream_pack(s, half, row, rows);
            if (!stream_check(s, half, error)) return false;
        }
        *hash = jmb_hash64(*hash, s->panels, size);
        if (!output_write_at(out, offset, s->panels, size, error)) return false;
        offset += size;
    }
    return true;
}

static bool write_tensors(convert_plan *plan, const output *out, tool_error *error)
{
    tool_progress progress = { 0, false };
    panel_stream stream;
    bool ok = true;
    uint32_t i;
    for (i = 0; i < plan->model.header.tensors && ok; i++) {
        tool_progress_show(&progress, "converting", plan->model.tensors[i].offset, plan->model.header.file_size);
        ok = stream_start(&stream, plan, i, error);
        if (!ok) break;
        ok = stream_run(&stream, out, &plan->model.tensors[i].hash, error);
        stream_free(&stream);
    }
    tool_progress_end(&progress);
    return ok;
}

/* ---- the whole ----------------------------------------------------------------------------- */

static bool write_metadata(convert_plan *plan, const convert_text *text, const output *out, tool_error *error)
{
    uint8_t *metadata = plan_metadata(plan, text);
    bool ok;
    if (!metadata) return tool_no_memory(error);
    ok = output_write_at(out, 0, metadata, (size_t)plan->model.header.data_offset, error);
    free(metadata);
    return ok && output_sync(out, error);
}

/* Reads the file back with the library's own parser. */
static bool write_check(const output *out, tool_error *error)
{
    model_file model;
    bool ok;
    if (!model_open(&model, out->temporary, error)) return false;
    ok = model_verify(&model, out->temporary, error);
    model_close(&model);
    return ok;
}

static bool write_parts(
    convert_plan *plan, const convert_text *text, output *out, bool force, tool_error *error)
{
    return output_create(out, plan->model.header.file_size, error) && write_tensors(plan, out, error)
        && write_metadata(plan, text, out, error) && write_check(out, error)
        && output_check_target(plan, out->path, force, error) && output_finish(out, error);
}

/* Writes the model file. On failure there is no file, or the old one. */
JMB_UNUSED static bool write_model(
    convert_plan *plan, const convert_text *text, const char *path, bool force, tool_error *error)
{
    output out;
    bool ok = output_begin(&out, path, error) && write_parts(plan, text, &out, force, error);
    output_free(&out);
    return ok;
}

#endif
