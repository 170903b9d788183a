/* tiny.h - writes a Hugging Face folder small enough to damage every byte of it: one mamba and one
 * attention layer, a dense MLP and a mixture of two experts, hidden size 16, a byte-fallback tokenizer.
 * No file ends with white space, so that every shorter prefix of it is broken. */
#ifndef TINY_H
#define TINY_H

#include "support.h"

enum {
    TINY_HIDDEN = 16,
    TINY_INNER = 16,
    TINY_STATE = 4,
    TINY_RANK = 2,
    TINY_CONV = 3,
    TINY_FF = 16,
    TINY_EXPERTS = 2,
    TINY_HEAD_DIM = 8,
    TINY_VOCAB = 288
};

static const char tiny_config[] =
    "{\n"
    " \"architectures\": [\"JambaForCausalLM\"],\n"
    " \"model_type\": \"jamba\",\n"
    " \"vocab_size\": 288,\n"
    " \"hidden_size\": 16,\n"
    " \"intermediate_size\": 16,\n"
    " \"num_hidden_layers\": 2,\n"
    " \"num_attention_heads\": 2,\n"
    " \"num_key_value_heads\": 1,\n"
    " \"hidden_act\": \"silu\",\n"
    " \"rms_norm_eps\": 1e-06,\n"
    " \"num_experts\": 2,\n"
    " \"num_experts_per_tok\": 1,\n"
    " \"expert_layer_period\": 2,\n"
    " \"expert_layer_offset\": 1,\n"
    " \"attn_layer_period\": 2,\n"
    " \"attn_layer_offset\": 1,\n"
    " \"mamba_d_state\": 4,\n"
    " \"mamba_d_conv\": 3,\n"
    " \"mamba_expand\": 1,\n"
    " \"mamba_dt_rank\": 2,\n"
    " \"mamba_conv_bias\": true,\n"
    " \"mamba_proj_bias\": false,\n"
    " \"tie_word_embeddings\": true,\n"
    " \"max_position_embeddings\": 512,\n"
    " \"bos_token_id\": 1,\n"
    " \"eos_token_id\": 2,\n"
    " \"pad_token_id\": 0,\n"
    " \"torch_dtype\": \"bfloat16\"\n"
    "}";

static const char tiny_generation_config[] = "{\"bos_token_id\": 1, \"eos_token_id\": [2], \"pad_token_id\": 0}";

/* ---- growing text and bytes -------------------------------------------------------------------- */

typedef struct tiny_bytes {
    uint8_t *data;
    size_t size, room;
} tiny_bytes;

static void tiny_add(tiny_bytes *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        b->room = 2 * (b->size + size) + 1024;
        b->data = (uint8_t *)realloc(b->data, b->room);
        test_require(b->data != NULL, "out of memory", "");
    }
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

TEST_PRINTF(2) static void tiny_print(tiny_bytes *b, const char *format, ...)
{
    char text[400];
    int length;
    va_list args;
    va_start(args, format);
    length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    test_require(length >= 0 && (size_t)length < sizeof text, "text too long", text);
    tiny_add(b, text, (size_t)length);
}

/* ---- safetensors -------------------------------------------------------------------------------- */

typedef struct tiny_checkpoint {
    tiny_bytes header, data; /* header without its braces */
    uint64_t seed;
} tiny_checkpoint;

/* Appends a tensor of `type` "F32" or "BF16" with values around `middle`; `shape` as in "16, 3". */
static void tiny_tensor(tiny_checkpoint *c, const char *name, const char *type, const char *shape, size_t count,
    double middle, double spread)
{
    size_t start = c->data.size, i, bytes = strcmp(type, "F32") == 0 ? 4 : 2;
    for (i = 0; i < count; i++) {
        double uniform = (double)(random_next(&c->seed) >> 11) / 9007199254740992.0;
        uint32_t bits = jmb_bits_of((float)(middle + spread * (2 * uniform - 1)));
        uint8_t le[4] = { (uint8_t)bits, (uint8_t)(bits >> 8), (uint8_t)(bits >> 16), (uint8_t)(bits >> 24) };
        tiny_add(&c->data, le + 4 - bytes, bytes); /* bf16: the upper half */
    }
    tiny_print(&c->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
        c->header.size ? "," : "", name, type, shape, start, c->data.size);
}

/* A matrix in bf16. */
static void tiny_matrix(tiny_checkpoint *c, const char *name, int rows, int cols)
{
    char shape[40];
    snprintf(shape, sizeof shape, "%d,%d", rows, cols);
    tiny_tensor(c, name, "BF16", shape, (size_t)rows * (size_t)cols, 0, 1.5 / sqrt(cols));
}

/* A vector in f32. */
static void tiny_vector(tiny_checkpoint *c, const char *name, int count, double middle)
{
    char shape[40];
    snprintf(shape, sizeof shape, "%d", count);
    tiny_tensor(c, name, "F32", shape, (size_t)count, middle, 0.4);
}

/* PREFIX.NAME.weight */
static void tiny_weight(tiny_checkpoint *c, const char *prefix, const char *name, int rows, int cols)
{
    char full[120];
    int length = snprintf(full, sizeof full, "%s.%s.weight", prefix, name);
    test_require(length < (int)sizeof full, "name too long", full);
    tiny_matrix(c, full, rows, cols);
}

static void tiny_mlp(tiny_checkpoint *c, const char *prefix)
{
    tiny_weight(c, prefix, "gate_proj", TINY_FF, TINY_HIDDEN);
    tiny_weight(c, prefix, "up_proj", TINY_FF, TINY_HIDDEN);
    tiny_weight(c, prefix, "down_proj", TINY_HIDDEN, TINY_FF);
}

static void tiny_mamba(tiny_checkpoint *c)
{
    tiny_matrix(c, "model.layers.0.mamba.in_proj.weight", 2 * TINY_INNER, TINY_HIDDEN);
    tiny_tensor(c, "model.layers.0.mamba.conv1d.weight", "F32", "16,1,3", TINY_INNER * TINY_CONV, 0, 0.7);
    tiny_vector(c, "model.layers.0.mamba.conv1d.bias", TINY_INNER, 0);
    tiny_matrix(c, "model.layers.0.mamba.x_proj.weight", TINY_RANK + 2 * TINY_STATE, TINY_INNER);
    tiny_vector(c, "model.layers.0.mamba.dt_layernorm.weight", TINY_RANK, 1);
    tiny_vector(c, "model.layers.0.mamba.b_layernorm.weight", TINY_STATE, 1);
    tiny_vector(c, "model.layers.0.mamba.c_layernorm.weight", TINY_STATE, 1);
    tiny_matrix(c, "model.layers.0.mamba.dt_proj.weight", TINY_INNER, TINY_RANK);
    tiny_vector(c, "model.layers.0.mamba.dt_proj.bias", TINY_INNER, -0.5);
    tiny_tensor(c, "model.layers.0.mamba.A_log", "F32", "16,4", TINY_INNER * TINY_STATE, 0, 1);
    tiny_vector(c, "model.layers.0.mamba.D", TINY_INNER, 0.8);
    tiny_matrix(c, "model.layers.0.mamba.out_proj.weight", TINY_HIDDEN, TINY_INNER);
}

static void tiny_attention(tiny_checkpoint *c)
{
    tiny_matrix(c, "model.layers.1.self_attn.q_proj.weight", 2 * TINY_HEAD_DIM, TINY_HIDDEN);
    tiny_matrix(c, "model.layers.1.self_attn.k_proj.weight", TINY_HEAD_DIM, TINY_HIDDEN);
    tiny_matrix(c, "model.layers.1.self_attn.v_proj.weight", TINY_HEAD_DIM, TINY_HIDDEN);
    tiny_matrix(c, "model.layers.1.self_attn.o_proj.weight", TINY_HIDDEN, 2 * TINY_HEAD_DIM);
}

/* First or second layer with its norms, feed-forward and all. */
static void tiny_layer(tiny_checkpoint *c, int layer)
{
    char name[120];
    int e;
    snprintf(name, sizeof name, "model.layers.%d.input_layernorm.weight", layer);
    tiny_vector(c, name, TINY_HIDDEN, 1);
    snprintf(name, sizeof name, "model.layers.%d.pre_ff_layernorm.weight", layer);
    tiny_vector(c, name, TINY_HIDDEN, 1);
    if (layer == 0) {
        tiny_mamba(c);
        tiny_mlp(c, "model.layers.0.feed_forward");
        return;
    }
    tiny_attention(c);
    tiny_tensor(c, "model.layers.1.feed_forward.router.weight", "F32", "2,16", TINY_EXPERTS * TINY_HIDDEN, 0, 0.5);
    for (e = 0; e < TINY_EXPERTS; e++) {
        snprintf(name, sizeof name, "model.layers.1.feed_forward.experts.%d", e);
        tiny_mlp(c, name);
    }
}

static void tiny_outside(tiny_checkpoint *c)
{
    tiny_matrix(c, "model.embed_tokens.weight", TINY_VOCAB, TINY_HIDDEN);
    tiny_vector(c, "model.final_layernorm.weight", TINY_HIDDEN, 1);
}

/* Eight bytes of header length, "{HEADER}", DATA. */
static void tiny_write_parts(const char *path, const char *header, const uint8_t *data, size_t size)
{
    tiny_bytes file = { NULL, 0, 0 };
    size_t length = strlen(header), i;
    for (i = 0; i < 8; i++) {
        uint8_t byte = (uint8_t)((uint64_t)length >> (8 * i));
        tiny_add(&file, &byte, 1);
    }
    tiny_add(&file, header, length);
    if (size) tiny_add(&file, data, size);
    file_write(path, file.data, file.size);
    free(file.data);
}

/* Frees the checkpoint. */
static void tiny_write_checkpoint(const char *path, tiny_checkpoint *c)
{
    tiny_bytes header = { NULL, 0, 0 };
    tiny_add(&header, "{", 1);
    tiny_add(&header, c->header.data, c->header.size);
    tiny_add(&header, "}", 2); /* with its terminator */
    tiny_write_parts(path, (const char *)header.data, c->data.data, c->data.size);
    free(header.data);
    free(c->header.data);
    free(c->data.data);
    memset(c, 0, sizeof *c);
}

/* ---- tokenizer ---------------------------------------------------------------------------------- */

static void tiny_write_tokenizer(const char *path)
{
    static const char *const pieces[] = { "\xe2\x96\x81", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l",
        "ab", "\xe2\x96\x81" "a", "cd", "abcd", "ef", "\xe2\x96\x81" "ab", "gh", "efgh", "ij", "kl", "ijkl", "\xc3\xa9",
        "0", "1", "2" };
    static const char *const merges[] = { "a b", "\xe2\x96\x81 a", "c d", "ab cd", "e f", "\xe2\x96\x81 ab", "g h",
        "ef gh", "i j", "k l", "ij kl" };
    tiny_bytes json = { NULL, 0, 0 };
    int i, id = 0;
    tiny_print(&json, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    for (i = 0; i < 3; i++)
        tiny_print(&json, "%s{\"id\":%d,\"content\":\"%s\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
            "\"normalized\":false,\"special\":true}", i ? "," : "", i, i == 0 ? "<unk>" : i == 1 ? "<s>" : "</s>");
    tiny_print(&json,
        "],\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"},"
        "\"pre_tokenizer\":null,\"post_processor\":null,");
    tiny_print(&json, "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Replace\",\"pattern\":"
        "{\"String\":\"\xe2\x96\x81\"},\"content\":\" \"},{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},");
    tiny_print(&json,
        "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"unk_token\":\"<unk>\",\"continuing_subword_prefix\":null,"
        "\"end_of_word_suffix\":null,\"fuse_unk\":true,\"byte_fallback\":true,\"ignore_merges\":false,\"vocab\":{");
    tiny_print(&json, "\"<unk>\":0,\"<s>\":1,\"</s>\":2");
    for (id = 3, i = 0; i < 256; i++) tiny_print(&json, ",\"<0x%02X>\":%d", (unsigned)i, id++);
    for (i = 0; i < (int)(sizeof pieces / sizeof pieces[0]); i++) tiny_print(&json, ",\"%s\":%d", pieces[i], id++);
    tiny_print(&json, "},\"merges\":[");
    for (i = 0; i < (int)(sizeof merges / sizeof merges[0]); i++) {
        char left[20];
        const char *blank = strchr(merges[i], ' ');
        snprintf(left, sizeof left, "%.*s", (int)(blank - merges[i]), merges[i]);
        tiny_print(&json, "%s[\"%s\",\"%s\"]", i ? "," : "", left, blank + 1);
    }
    tiny_print(&json, "]}}");
    file_write(path, json.data, json.size);
    free(json.data);
}

/* ---- the folder --------------------------------------------------------------------------------- */

/* FOLDER/NAME */
static const char *tiny_path(char path[PATH_ROOM], const char *folder, const char *name)
{
    int length = snprintf(path, PATH_ROOM, "%s/%s", folder, name);
    test_require(length < PATH_ROOM, "path too long", folder);
    return path;
}

static const char tiny_shard_1[] = "model-00001-of-00002.safetensors";
static const char tiny_shard_2[] = "model-00002-of-00002.safetensors";

/* Every name that the header of the checkpoint has, mapped to `shard`. */
static void tiny_index_part(tiny_bytes *index, const tiny_bytes *header, const char *shard, bool first)
{
    const char *p = (const char *)header->data, *end = p + header->size;
    while (p < end) {
        const char *close = (const char *)memchr(p + 1, '"', (size_t)(end - p - 1));
        tiny_print(index, "%s%.*s:\"%s\"", first ? "" : ",", (int)(close + 1 - p), p, shard);
        first = false;
        p = (const char *)memchr(close, '}', (size_t)(end - close)) + 2;
    }
}

static void tiny_write_shards(const char *folder)
{
    tiny_checkpoint first = { { NULL, 0, 0 }, { NULL, 0, 0 }, 1 }, second = { { NULL, 0, 0 }, { NULL, 0, 0 }, 2 };
    tiny_bytes index = { NULL, 0, 0 };
    char path[PATH_ROOM];
    tiny_outside(&first);
    tiny_layer(&first, 0);
    tiny_layer(&second, 1);
    tiny_print(&index, "{\"metadata\":{\"total_size\":%zu},\"weight_map\":{", first.data.size + second.data.size);
    tiny_index_part(&index, &first.header, tiny_shard_1, true);
    tiny_index_part(&index, &second.header, tiny_shard_2, false);
    tiny_print(&index, "}}");
    file_write(tiny_path(path, folder, "model.safetensors.index.json"), index.data, index.size);
    free(index.data);
    tiny_write_checkpoint(tiny_path(path, folder, tiny_shard_1), &first);
    tiny_write_checkpoint(tiny_path(path, folder, tiny_shard_2), &second);
}

/* The whole folder, as one safetensors file or as two shards with an index. */
TEST_UNUSED static void tiny_write(const char *folder, bool sharded)
{
    char path[PATH_ROOM];
    mkdir(folder, 0777);
    file_write(tiny_path(path, folder, "config.json"), tiny_config, strlen(tiny_config));
    tiny_path(path, folder, "generation_config.json");
    file_write(path, tiny_generation_config, strlen(tiny_generation_config));
    tiny_write_tokenizer(tiny_path(path, folder, "tokenizer.json"));
    if (sharded) {
        tiny_write_shards(folder);
    } else {
        tiny_checkpoint c = { { NULL, 0, 0 }, { NULL, 0, 0 }, 1 };
        tiny_outside(&c);
        tiny_layer(&c, 0);
        c.seed = 2; /* as in the second shard */
        tiny_layer(&c, 1);
        tiny_write_checkpoint(tiny_path(path, folder, "model.safetensors"), &c);
    }
}

#endif
