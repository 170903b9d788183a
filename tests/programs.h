/* programs.h - models made in memory, block by block, with random weights and correct hashes. */
#ifndef PROGRAMS_H
#define PROGRAMS_H

#include "support.h"

/* ---- files in memory ---------------------------------------------------------------------------- */

enum { MOST_BLOCKS = 10 };

typedef struct program {
    jmb_header header;
    jmb_block blocks[MOST_BLOCKS];
    uint64_t random; /* state of the generator of weights */
    uint32_t type;   /* of the tensors; JMB_TYPES: each has one of its own */
    const uint8_t *strings, *tokenizer;
} program;

typedef struct image {
    uint8_t *data;
    size_t size;
} image;

static uint32_t pick(uint64_t *random, uint32_t low, uint32_t high)
{
    return low + (uint32_t)(random_next(random) >> 32) % (high - low + 1);
}

/* In [-1, 1]. */
TEST_UNUSED static float pick_float(uint64_t *random)
{
    return (float)((int32_t)pick(random, 0, 2000) - 1000) / 1000;
}

static void store(uint8_t *p, uint64_t value, int bytes)
{
    int i;
    for (i = 0; i < bytes; i++) p[i] = (uint8_t)(value >> (8 * i));
}

#define STORE_u16(p, value) store(p, value, 2)
#define STORE_u32(p, value) store(p, value, 4)
#define STORE_u64(p, value) store(p, value, 8)
#define STORE_f32(p, value) store(p, jmb_bits_of(value), 4)

TEST_UNUSED static program start_program(uint32_t vocab, uint32_t hidden, uint32_t type)
{
    program p;
    memset(&p, 0, sizeof p);
    p.header.version = JMB_VERSION_MAJOR;
    p.header.vocab = vocab;
    p.header.hidden = hidden;
    p.header.context = 512;
    p.header.eps = 1e-5f;
    p.header.bos = p.header.pad = JMB_NO_TOKEN;
    p.type = type;
    p.random = 1;
    return p;
}

/* Sizes small and odd; the caller changes what matters to it. */
TEST_UNUSED static jmb_block *add_block(program *p, uint32_t kind)
{
    uint32_t unit = p->header.blocks++;
    jmb_block *b = &p->blocks[unit];
    memset(b, 0, sizeof *b);
    b->kind = kind;
    b->unit = unit;
    b->act = JMB_ACT_SILU;
    b->eps = b->inner_eps = 1e-5f;
    b->scale = 0.25f;
    b->dt_max = 1;
    b->heads = 2;
    b->kv_heads = b->n_groups = 1;
    b->head_dim = 6;
    b->d_inner = 18;
    b->d_state = 5;
    b->d_conv = 3;
    b->dt_rank = 3;
    b->intermediate = 19;
    b->experts = 3;
    b->top_k = 2;
    if (kind == JMB_LINEAR) b->input = JMB_FROM_A;
    if (kind == JMB_LINEAR) b->output = JMB_SET_A;
    return b;
}

static float random_weight(uint32_t role, uint64_t *random)
{
    float value = 0.3f * pick_float(random);
    switch (role) {
    case JMB_ROLE_A: return -0.01f - fabsf(value);
    case JMB_ROLE_ROPE: return fabsf(value);
    case JMB_ROLE_NORM:
    case JMB_ROLE_FINAL_NORM:
    case JMB_ROLE_DT_NORM:
    case JMB_ROLE_B_NORM:
    case JMB_ROLE_C_NORM:
    case JMB_ROLE_GATE_NORM: return 1 + value;
    default: return value;
    }
}

/* One weight of 32 or 16 bits. */
static void fill_float(uint8_t *panel, const jmb_tensor *t, size_t row, size_t col, uint64_t *random)
{
    float value = random_weight(t->role, random);
    uint8_t *half = panel + (col / 2 * 32 + row * 2 + col % 2) * 2;
    switch (t->type) {
    case JMB_F32: STORE_f32(panel + (col * 16 + row) * 4, value); break;
    case JMB_F16: STORE_u16(half, jmb_float_to_f16(value)); break;
    default: STORE_u16(half, jmb_bits_of(value) >> 16); break;
    }
}

/* A row of q8 or q4: any codes, scales that make the weights as large as the other types'. */
static void fill_codes(uint8_t *panel, const jmb_tensor *t, size_t row, uint64_t *random)
{
    size_t cols = jmb_pad64(t->cols), block = t->type == JMB_Q8 ? 64 : 32, col, i;
    uint8_t *scales = panel + cols * (t->type == JMB_Q8 ? 16 : 8);
    for (col = 0; col < cols; col++) {
        if (t->type == JMB_Q8) {
            panel[col / 4 * 64 + row * 4 + col % 4] = (uint8_t)(col < t->cols ? pick(random, 1, 255) : 128);
        } else {
            uint8_t *pair = &panel[col / 32 * 256 + col % 16 / 4 * 64 + row * 4 + col % 4];
            *pair = (uint8_t)(*pair | pick(random, 0, 15) << (col % 32 < 16 ? 0 : 4));
        }
    }
    for (i = 0; i < cols / block; i++)
        STORE_u16(scales + (i * 16 + row) * 2, jmb_float_to_f16(0.002f + 0.001f * pick_float(random)));
}

static void fill_tensor(uint8_t *data, const jmb_tensor *t, uint64_t *random)
{
    size_t bytes = (size_t)jmb_panel_bytes(t->type, t->cols), count = (size_t)t->bytes / bytes, i, row, col;
    size_t matrices = jmb_roles[t->role].paired ? 2 : 1;
    for (i = 0; i < count; i++) {
        size_t first = i / matrices * 16, rows = t->rows - first < 16 ? t->rows - first : 16;
        for (row = 0; row < rows; row++) {
            if (t->type >= JMB_Q8) fill_codes(data + i * bytes, t, row, random);
            for (col = 0; t->type < JMB_Q8 && col < t->cols; col++)
                fill_float(data + i * bytes, t, row, col, random);
        }
    }
}

/* The tensors of the program with their types; free() them. */
static jmb_tensor *list_tensors(program *p)
{
    uint32_t type = p->type == JMB_TYPES ? JMB_F32 : p->type, i;
    jmb_tensor *t;
    p->header.tensors = jmb_list_tensors(&p->header, p->blocks, type, NULL);
    t = (jmb_tensor *)calloc(p->header.tensors, sizeof *t);
    jmb_list_tensors(&p->header, p->blocks, type, t);
    for (i = 0; p->type == JMB_TYPES && i < p->header.tensors; i++) {
        bool expert = t[i].role == JMB_ROLE_GATE_UP || t[i].role == JMB_ROLE_DOWN;
        t[i].type = jmb_role_type(t[i].role, pick(&p->random, 0, JMB_TYPES - 1));
        if (expert && t[i].index > 0) t[i].type = t[i - 2].type;
        t[i].bytes = jmb_tensor_bytes(&t[i]);
    }
    return t;
}

static void write_metadata(const program *p, const jmb_parts *parts, const jmb_tensor *tensors, uint8_t *data)
{
    const jmb_header *h = &p->header;
    uint32_t i;
    memcpy(data, jmb_magic, sizeof jmb_magic);
#define JMB_X(type, name, at) STORE_##type(data + (at), h->name);
    JMB_HEADER_FIELDS(JMB_X)
#undef JMB_X
    for (i = 0; i < h->blocks; i++) {
        uint8_t *record = data + parts->program + i * JMB_BLOCK_BYTES;
#define JMB_X(type, name) STORE_##type(record + 4 * JMB_AT_##name, p->blocks[i].name);
        JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
    }
    for (i = 0; i < h->tensors; i++) {
        uint8_t *record = data + parts->directory + i * JMB_ENTRY_BYTES;
#define JMB_X(type, name, at) STORE_##type(record + (at), tensors[i].name);
        JMB_ENTRY_FIELDS(JMB_X)
#undef JMB_X
    }
    if (p->strings) memcpy(data + parts->strings, p->strings, (size_t)h->strings_size);
    if (p->tokenizer) memcpy(data + parts->tokenizer, p->tokenizer, (size_t)h->tokenizer_size);
}

static void repair_identity(uint8_t *data)
{
    jmb_identity(data, jmb_load_u64(data + 24), data + 32);
}

/* The file; image_free() it. Same program and state of the generator, same file. */
TEST_UNUSED static image write_image(program *p)
{
    jmb_tensor *tensors = list_tensors(p);
    jmb_parts parts = jmb_place_parts(&p->header);
    image file;
    void *data;
    uint32_t i;
    p->header.data_offset = parts.data;
    p->header.file_size = jmb_place_tensors(tensors, p->header.tensors, parts.data);
    file.size = (size_t)p->header.file_size;
    test_require(posix_memalign(&data, 64, file.size) == 0, "out of memory", "");
    memset(data, 0, file.size);
    file.data = (uint8_t *)data;
    for (i = 0; i < p->header.tensors; i++) {
        jmb_tensor *t = &tensors[i];
        fill_tensor(file.data + t->offset, t, &p->random);
        t->hash = jmb_hash64(JMB_HASH_SEED, file.data + t->offset, (size_t)t->bytes);
    }
    write_metadata(p, &parts, tensors, file.data);
    repair_identity(file.data);
    free(tensors);
    return file;
}

TEST_UNUSED static void image_free(image *file)
{
    free(file->data);
    file->data = NULL;
}

TEST_UNUSED static jamba_model *load_image(const image *file, jamba_cpu cpu)
{
    jamba_model_params params;
    memset(&params, 0, sizeof params);
    params.cpu = cpu;
    params.verify = true;
    return load_model(jamba_from_memory(file->data, file->size), &params);
}

TEST_UNUSED static jamba_session *open_session(const jamba_model *model, const jamba_session_params *params)
{
    jamba_session *session;
    jamba_error error;
    test_require(
        jamba_session_create(&session, model, params, &error) == JAMBA_OK, "cannot make a session", error.message);
    return session;
}

/* One block of every kind: attention, mamba, mamba2, mlp, moe, and an mlp and a linear over stream a. */
TEST_UNUSED static program every_kind(uint32_t type)
{
    program p = start_program(40, 24, type);
    add_block(&p, JMB_ATTENTION)->flags = JMB_ROPE | JMB_BIAS;
    add_block(&p, JMB_MAMBA)->flags = JMB_CONV_BIAS;
    add_block(&p, JMB_MAMBA2);
    add_block(&p, JMB_MLP)->output = JMB_SET_A;
    add_block(&p, JMB_LINEAR);
    add_block(&p, JMB_MLP)->input = JMB_FROM_X_PLUS_A;
    add_block(&p, JMB_MOE);
    return p;
}

/* ---- random programs ---------------------------------------------------------------------------- */

enum { PROGRAM_BLOCKS = 4 }; /* at most, of a random one */

static void random_mamba(jmb_block *b, uint64_t *random)
{
    b->d_inner = b->heads * pick(random, 1, 20);
    b->d_state = pick(random, 1, 18);
    b->d_conv = pick(random, 1, 5);
    b->dt_rank = pick(random, 1, 20);
    b->n_groups = pick(random, 0, 1) ? b->kv_heads : 1; /* divides heads */
    b->dt_min = pick(random, 0, 1) ? 0.01f : 0;
    b->dt_max = pick(random, 0, 1) ? 0.7f : INFINITY;
    if (b->kind == JMB_MAMBA && b->flags & JMB_DT_NORM) {
        b->d_inner /= b->heads;
        b->heads = 1;
    }
}

static void random_sizes(jmb_block *b, uint64_t *random)
{
    b->flags = pick(random, 0, 31) & jmb_known_flags(b->kind);
    b->act = pick(random, 0, 1) ? JMB_ACT_GELU : JMB_ACT_SILU;
    b->kv_heads = pick(random, 1, 3);
    b->heads = b->kv_heads * pick(random, 1, 3);
    b->head_dim = pick(random, 1, 20);
    if (b->flags & JMB_ROPE) b->head_dim *= 2;
    b->intermediate = pick(random, 1, 70);
    b->experts = pick(random, 1, 9);
    b->top_k = pick(random, 1, b->experts < 3 ? b->experts : 3);
    if ((b->kind == JMB_ATTENTION || b->kind == JMB_MLP) && pick(random, 0, 2) == 0) b->rank = pick(random, 1, 20);
    if (b->kind == JMB_MAMBA || b->kind == JMB_MAMBA2) random_mamba(b, random);
}

/* Streams that the format allows here; `a_set`: an earlier block has written stream a. */
static void random_streams(jmb_block *b, bool a_set, uint64_t *random)
{
    if (b->kind == JMB_LINEAR) return;
    if (pick(random, 0, 1)) b->input = pick(random, 0, JMB_INPUTS - 1);
    if (!a_set && b->input != JMB_FROM_X_AND_E) b->input = JMB_FROM_X;
    if (b->kind != JMB_MOE && pick(random, 0, 2) == 0) b->output = JMB_SET_A;
}

/* The tensors of an earlier block, one time in four. */
static void random_share(program *p, jmb_block *b, uint64_t *random)
{
    uint32_t own = b->unit;
    const jmb_block *owner;
    if (own == 0 || pick(random, 0, 3)) return;
    owner = &p->blocks[pick(random, 0, own - 1)];
    if (owner->unit == (uint32_t)(owner - p->blocks)) *b = *owner;
}

TEST_UNUSED static program random_program(uint64_t seed)
{
    uint64_t random = seed;
    program p = start_program(pick(&random, 2, 40), pick(&random, 1, 80), JMB_TYPES);
    uint32_t count = pick(&random, 1, PROGRAM_BLOCKS);
    bool a_set = false;
    p.header.head = pick(&random, 0, 1);
    while (p.header.blocks < count) {
        jmb_block *b = add_block(&p, pick(&random, 1, a_set ? JMB_LINEAR : JMB_MAMBA2));
        random_sizes(b, &random);
        random_streams(b, a_set, &random);
        random_share(&p, b, &random);
        a_set = a_set || b->output == JMB_SET_A;
    }
    p.random = random;
    return p;
}

#endif
