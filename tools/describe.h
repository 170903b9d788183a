/* describe.h - a model file's metadata: reading it, checking its data, its sizes, its program in text. */
#ifndef DESCRIBE_H
#define DESCRIBE_H

#include "tool.h"

#include <inttypes.h>

/* ---- sizes --------------------------------------------------------------------------------- */

typedef struct model_sizes {
    uint64_t parameters, parameters_active; /* active: experts counted top_k / experts */
    uint64_t kv_bytes_per_token;            /* at 16 bits */
    uint64_t state_bytes;                   /* convolution and SSM state, f32 */
} model_sizes;

/* Convolution and SSM state of a mamba or mamba2 block; the latter's convolution runs over B and C too. */
static uint64_t model_state_bytes(const jmb_block *b)
{
    uint64_t channels = b->d_inner;
    if (b->kind == JMB_MAMBA2) channels += 2 * (uint64_t)b->n_groups * b->d_state;
    return ((b->d_conv - 1) * channels + (uint64_t)b->d_inner * b->d_state) * 4;
}

JMB_UNUSED static model_sizes model_measure(const jmb_metadata *m)
{
    model_sizes sizes = { 0, 0, 0, 0 };
    uint32_t i;
    jmb_count_parameters(m, &sizes.parameters, &sizes.parameters_active);
    for (i = 0; i < m->header.blocks; i++) {
        const jmb_block *b = &m->blocks[i];
        if (b->kind == JMB_ATTENTION) sizes.kv_bytes_per_token += (uint64_t)b->kv_heads * b->head_dim * 2 * 2;
        if (b->kind == JMB_MAMBA || b->kind == JMB_MAMBA2) sizes.state_bytes += model_state_bytes(b);
    }
    return sizes;
}

/* ---- the program --------------------------------------------------------------------------- */

static void model_print_flags(const jmb_block *b)
{
    static const struct {
        uint32_t flag;
        const char *name;
    } names[] = { { JMB_BIAS, "bias" }, { JMB_CONV_BIAS, "conv_bias" }, { JMB_DT_NORM, "dt_norm" },
        { JMB_ROPE, "rope" }, { JMB_RENORMALISE, "renormalise" } };
    size_t i;
    for (i = 0; i < sizeof names / sizeof names[0]; i++)
        if (b->flags & names[i].flag) printf(" %s", names[i].name);
}

static void model_print_mamba(const jmb_block *b)
{
    printf(" d_inner %u d_state %u d_conv %u", b->d_inner, b->d_state, b->d_conv);
    if (b->kind == JMB_MAMBA) printf(" dt_rank %u", b->dt_rank);
    if (b->kind == JMB_MAMBA2 || b->heads > 1) printf(" heads %u", b->heads);
    if (b->kind == JMB_MAMBA2)
        printf(" n_groups %u dt %g,%g", b->n_groups, (double)b->dt_min, (double)b->dt_max);
}

static void model_print_sizes(const jmb_block *b)
{
    switch (b->kind) {
    case JMB_ATTENTION: printf(" heads %u kv_heads %u head_dim %u", b->heads, b->kv_heads, b->head_dim); break;
    case JMB_MAMBA:
    case JMB_MAMBA2: model_print_mamba(b); break;
    case JMB_MLP: printf(" intermediate %u", b->intermediate); break;
    case JMB_MOE: printf(" intermediate %u experts %u top_k %u", b->intermediate, b->experts, b->top_k); break;
    default: break;
    }
    if (b->rank) printf(" rank %u", b->rank);
    if (b->act == JMB_ACT_GELU) printf(" gelu");
}

/* One line a block: index, kind, what it is made of; what it reads and writes unless that is x += f(x); the block
 * whose tensors it uses unless they are its own. */
JMB_UNUSED static void model_print_program(const jmb_metadata *m)
{
    static const char *const inputs[] = { "x", "a", "x|e", "x+a" }, *const outputs[] = { "x", "a" };
    uint32_t i;
    for (i = 0; i < m->header.blocks; i++) {
        const jmb_block *b = &m->blocks[i];
        printf("  %3u %-9s", i, jmb_kind_names[b->kind]);
        model_print_sizes(b);
        model_print_flags(b);
        if (b->input != JMB_FROM_X || b->output != JMB_ADD_TO_X)
            printf(" %s -> %s", inputs[b->input], outputs[b->output]);
        if (b->unit != i) printf(" unit %u", b->unit);
        printf("\n");
    }
}

/* ---- reading a file ------------------------------------------------------------------------ */

typedef struct model_file {
    jmb_file file;
    bool open;
    jmb_heap heap;
    uint8_t *bytes; /* all before the data */
    jmb_metadata metadata;
} model_file;

JMB_UNUSED static void model_close(model_file *m)
{
    if (m->open) jmb_file_close(&m->file);
    free(m->bytes);
    jmb_heap_free(&m->heap);
    memset(m, 0, sizeof *m);
}

/* How much to read: all before the data, or the header alone when that says nonsense, which the parser will tell. */
static bool model_metadata_bytes(jmb_file *file, uint64_t *bytes)
{
    uint8_t offset[8];
    *bytes = file->size < JMB_HEADER_BYTES ? file->size : (uint64_t)JMB_HEADER_BYTES;
    if (file->size < JMB_HEADER_BYTES) return true;
    if (jmb_file_read(file, 24, offset, sizeof offset) != sizeof offset) return false;
    if (jmb_load_u64(offset) > *bytes && jmb_load_u64(offset) <= file->size && jmb_load_u64(offset) <= JMB_MAX_METADATA)
        *bytes = jmb_load_u64(offset);
    return true;
}

static bool model_read_metadata(model_file *m, const char *path, tool_error *error)
{
    const jmb_metadata *meta = &m->metadata;
    jmb_tokenizer tokenizer;
    jamba_error problem;
    uint64_t size;
    memset(&problem, 0, sizeof problem);
    memset(&tokenizer, 0, sizeof tokenizer);
    if (!model_metadata_bytes(&m->file, &size)) return tool_error_set(error, "%s: cannot read", path);
    m->bytes = (uint8_t *)malloc((size_t)size + 1);
    if (!m->bytes) return tool_no_memory(error);
    if (jmb_file_read(&m->file, 0, m->bytes, (size_t)size) != size)
        return tool_error_set(error, "%s: cannot read", path);
    if (jmb_parse_metadata(&m->metadata, &m->heap, m->bytes, size, m->file.size, &problem) == JAMBA_OK)
        jmb_tokenizer_load(&tokenizer, &m->heap, m->bytes + meta->parts.tokenizer, (size_t)meta->header.tokenizer_size,
            meta->parts.tokenizer, meta->header.vocab, &problem);
    return problem.code == JAMBA_OK
        || tool_error_set(error, "%s: %s (byte %llu)", path, problem.message, (unsigned long long)problem.offset);
}

/* On failure nothing stays open. */
JMB_UNUSED static bool model_open(model_file *m, const char *path, tool_error *error)
{
    const char *why;
    memset(m, 0, sizeof *m);
    m->heap.allocator = jmb_allocator_or_default(NULL);
    why = jmb_file_open(&m->file, path);
    if (why) return tool_error_set(error, "%s: cannot open: %s", path, why);
    m->open = true;
    if (model_read_metadata(m, path, error)) return true;
    model_close(m);
    return false;
}

/* Reads one tensor in pieces and compares its hash. */
static bool model_verify_tensor(
    model_file *m, const char *path, const jmb_tensor *t, uint8_t *piece, size_t capacity, tool_error *error)
{
    uint64_t done = 0, hash = JMB_HASH_SEED;
    char name[64];
    while (done < t->bytes) {
        size_t part = t->bytes - done < capacity ? (size_t)(t->bytes - done) : capacity;
        if (jmb_file_read(&m->file, t->offset + done, piece, part) != part)
            return tool_error_set(error, "%s: cannot read tensor %s", path, jmb_tensor_name(t, name));
        hash = jmb_hash64(hash, piece, part);
        done += part;
    }
    return hash == t->hash
        || tool_error_set(error, "%s: tensor %s is damaged (its hash differs): copy the file again", path,
            jmb_tensor_name(t, name));
}

/* The hash of every tensor; reads the whole file. */
JMB_UNUSED static bool model_verify(model_file *m, const char *path, tool_error *error)
{
    enum { PIECE = 1 << 20 };
    uint8_t *piece = (uint8_t *)malloc(PIECE);
    const jmb_header *h = &m->metadata.header;
    tool_progress progress = { 0, false };
    bool ok = piece != NULL || tool_no_memory(error);
    uint32_t i;
    for (i = 0; i < h->tensors && ok; i++) {
        ok = model_verify_tensor(m, path, &m->metadata.tensors[i], piece, PIECE, error);
        tool_progress_show(&progress, "verifying", m->metadata.tensors[i].offset, h->file_size);
    }
    tool_progress_end(&progress);
    free(piece);
    return ok;
}

/* ---- adapter files ------------------------------------------------------------------------- */

/* An adapter read without its model: `model` is nothing but the identity that it names. */
typedef struct adapter_image {
    jamba_adapter adapter;
    jamba_model model;
    uint8_t *bytes;
} adapter_image;

JMB_UNUSED static void adapter_image_close(adapter_image *image)
{
    jmb_heap_free(&image->adapter.heap);
    free(image->bytes);
    memset(image, 0, sizeof *image);
}

/* Whether the file begins as an adapter does. */
JMB_UNUSED static bool adapter_image_is(const char *path)
{
    uint8_t magic[sizeof jmb_adapter_magic];
    FILE *file = fopen(path, "rb");
    bool is = file && fread(magic, sizeof magic, 1, file) == 1 && memcmp(magic, jmb_adapter_magic, sizeof magic) == 0;
    if (file) fclose(file);
    return is;
}

static jamba_result adapter_image_parse(adapter_image *image, size_t size, jamba_error *error)
{
    jamba_adapter *a = &image->adapter;
    a->model = &image->model;
    a->heap.allocator = jmb_allocator_or_default(NULL);
    a->data = image->bytes;
    a->size = size;
    image->model.plan.slots = UINT32_MAX;
    if (size >= JMB_ADAPTER_BYTES) memcpy(image->model.metadata.header.identity, image->bytes + 32, 32);
    JMB_TRY(jmb_parse_adapter_header(&a->header, a->data, a->size, a->model, error));
    JMB_TRY(jmb_check_adapter_hash(a, error));
    return jmb_parse_loras(a, error);
}

/* Checks all of the file but whether its matrices are the model's. On failure nothing stays open. */
JMB_UNUSED static bool adapter_image_open(adapter_image *image, const char *path, tool_error *error)
{
    jamba_error problem;
    size_t size;
    memset(image, 0, sizeof *image);
    if (!tool_read_file(path, SIZE_MAX / 2, &image->bytes, &size, error)) return false;
    if (adapter_image_parse(image, size, &problem) == JAMBA_OK) return true;
    tool_error_fill(error, "%s: %s (byte %llu)", path, problem.message, (unsigned long long)problem.offset);
    adapter_image_close(image);
    return false;
}

#endif
