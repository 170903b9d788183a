/* shapes.h - writes checkpoint folders with the names and shapes of released models; the data are holes */
#ifndef SHAPES_H
#define SHAPES_H

#define _FILE_OFFSET_BITS 64
#include "test.h"

#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[300]; /* where the next checkpoint goes */

static const char *in_folder(char path[400], const char *name)
{
    snprintf(path, 400, "%s/%s", folder, name);
    return path;
}

/* ---- a checkpoint of names and shapes ----------------------------------------------------------------- */

typedef struct stored {
    char name[120], shape[60];
    const char *type;
    uint64_t bytes;
    int shard;
} stored;

typedef struct checkpoint {
    stored *items;
    size_t count, room;
    uint64_t numbers, experts; /* of all tensors, and of those of experts */
    int shards;
} checkpoint;

/* Adds a tensor of up to three sizes; unused ones are 0. */
static void add(
    checkpoint *c, const char *type, const char *prefix, const char *name, uint64_t a, uint64_t b, uint64_t d)
{
    stored *t;
    if (c->count == c->room) {
        c->room = 2 * c->room + 256;
        c->items = (stored *)realloc(c->items, c->room * sizeof *c->items);
        test_require(c->items != NULL, "out of memory", name);
    }
    t = &c->items[c->count++];
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    if (d) snprintf(t->shape, sizeof t->shape, "%" PRIu64 ",%" PRIu64 ",%" PRIu64, a, b, d);
    else if (b) snprintf(t->shape, sizeof t->shape, "%" PRIu64 ",%" PRIu64, a, b);
    else snprintf(t->shape, sizeof t->shape, "%" PRIu64, a);
    t->type = type;
    a *= (b ? b : 1) * (d ? d : 1);
    t->bytes = a * (strcmp(type, "F32") == 0 ? 4 : 2);
    c->numbers += a;
    if (strstr(t->name, ".experts.")) c->experts += a;
}

/* Fills shards of at most 5 GB in order. */
static void assign_shards(checkpoint *c)
{
    uint64_t bytes = 0;
    size_t i;
    c->shards = 1;
    for (i = 0; i < c->count; i++) {
        if (bytes && bytes + c->items[i].bytes > 5000000000u) {
            bytes = 0;
            c->shards++;
        }
        bytes += c->items[i].bytes;
        c->items[i].shard = c->shards;
    }
}

static void shard_name(const checkpoint *c, int shard, char name[64])
{
    if (c->shards == 1) snprintf(name, 64, "model.safetensors");
    else snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard, c->shards);
}

static FILE *create(const char *name)
{
    char path[400];
    FILE *file = fopen(in_folder(path, name), "wb");
    test_require(file != NULL, "cannot write", path);
    return file;
}

/* Length, header, and a hole of all the data. False when the file system refuses the size. */
static bool write_shard(const checkpoint *c, int shard)
{
    char name[64];
    FILE *file;
    uint64_t at = 0, header;
    uint8_t length[8];
    size_t i;
    bool ok;
    shard_name(c, shard, name);
    file = create(name);
    fwrite("\0\0\0\0\0\0\0\0{", 1, 9, file);
    for (i = 0; i < c->count; i++) {
        const stored *t = &c->items[i];
        if (t->shard != shard) continue;
        fprintf(file, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
            at ? "," : "", t->name, t->type, t->shape, at, at + t->bytes);
        at += t->bytes;
    }
    fputs("}", file);
    header = (uint64_t)ftello(file) - 8;
    for (i = 0; i < 8; i++) length[i] = (uint8_t)(header >> (8 * i));
    rewind(file);
    fwrite(length, 1, 8, file);
    ok = fflush(file) == 0 && ftruncate(fileno(file), (off_t)(8 + header + at)) == 0;
    return fclose(file) == 0 && ok;
}

static void write_index(const checkpoint *c)
{
    FILE *file = create("model.safetensors.index.json");
    char name[64];
    size_t i;
    fputs("{\"metadata\":{\"total_size\":0},\"weight_map\":{", file);
    for (i = 0; i < c->count; i++) {
        shard_name(c, c->items[i].shard, name);
        fprintf(file, "%s\"%s\":\"%s\"", i ? "," : "", c->items[i].name, name);
    }
    fputs("}}", file);
    test_require(fclose(file) == 0, "cannot write", "the index");
}

static void remove_checkpoint(const checkpoint *c)
{
    char path[400], name[64];
    int shard;
    for (shard = 1; shard <= c->shards; shard++) {
        shard_name(c, shard, name);
        remove(in_folder(path, name));
    }
    remove(in_folder(path, "model.safetensors.index.json"));
    remove(in_folder(path, "config.json"));
    free(c->items);
}

/* ---- the released shapes ------------------------------------------------------------------------------ */

typedef struct shape shape;
struct shape {
    const char *name;
    void (*write)(checkpoint *c, FILE *config, const shape *s);
    const char *type; /* of the linears */
    uint64_t layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied;
    uint64_t period, offset, experts, top_k;      /* attention layers; every second layer has experts */
    uint64_t state, rank, mamba_heads, groups;    /* rank: of dt, or of adapters */
    uint64_t blocks, attention_adapter, rope;     /* zamba2 */
    const int *hybrids;                           /* zamba2, ends with -1 */
    /* What the config gives, worked out apart from this program: */
    uint64_t parameters, active, kv_bytes_per_token, state_bytes, tensors;
    double billions, active_billions; /* as published, 0 where they are not */
};

static bool is_hybrid(const shape *s, uint64_t layer)
{
    const int *h = s->hybrids;
    while (*h >= 0 && (uint64_t)*h != layer) h++;
    return *h >= 0;
}

/* in_proj and out_proj are found in every mixer; A_log, D and the biases of dt are often kept in f32. */
static void write_mamba(checkpoint *c, const shape *s, const char *prefix)
{
    uint64_t inner = 2 * s->hidden;
    add(c, s->type, prefix, "in_proj.weight", 2 * inner, s->hidden, 0);
    add(c, s->type, prefix, "conv1d.weight", inner, 1, 4);
    add(c, s->type, prefix, "conv1d.bias", inner, 0, 0);
    add(c, s->type, prefix, "x_proj.weight", s->rank + 2 * s->state, inner, 0);
    add(c, s->type, prefix, "dt_proj.weight", inner, s->rank, 0);
    add(c, "F32", prefix, "dt_proj.bias", inner, 0, 0);
    add(c, "F32", prefix, "A_log", inner, s->state, 0);
    add(c, "F32", prefix, "D", inner, 0, 0);
    add(c, s->type, prefix, "out_proj.weight", s->hidden, inner, 0);
}

static void write_attention(checkpoint *c, const shape *s, const char *prefix, uint64_t width)
{
    add(c, s->type, prefix, "q_proj.weight", s->heads * s->head_dim, width, 0);
    add(c, s->type, prefix, "k_proj.weight", s->kv_heads * s->head_dim, width, 0);
    add(c, s->type, prefix, "v_proj.weight", s->kv_heads * s->head_dim, width, 0);
    add(c, s->type, prefix, "o_proj.weight", s->hidden, s->heads * s->head_dim, 0);
}

static void write_gated(
    checkpoint *c, const shape *s, const char *prefix, const char *gate, const char *up, const char *down)
{
    add(c, s->type, prefix, gate, s->intermediate, s->hidden, 0);
    add(c, s->type, prefix, up, s->intermediate, s->hidden, 0);
    add(c, s->type, prefix, down, s->hidden, s->intermediate, 0);
}

static void write_ends(checkpoint *c, const shape *s, const char *embed, const char *norm)
{
    add(c, s->type, "", embed, s->vocab, s->hidden, 0);
    add(c, s->type, "", norm, s->hidden, 0, 0);
    if (!s->tied) add(c, s->type, "", "lm_head.weight", s->vocab, s->hidden, 0);
}

static const char *truth(uint64_t value)
{
    return value ? "true" : "false";
}

static void write_common(FILE *config, const shape *s, const char *type)
{
    fprintf(config, "{\"model_type\": \"%s\", \"vocab_size\": %" PRIu64 ", \"hidden_size\": %" PRIu64
        ", \"num_hidden_layers\": %" PRIu64 ", \"tie_word_embeddings\": %s, \"bos_token_id\": 1, \"eos_token_id\": 2",
        type, s->vocab, s->hidden, s->layers, truth(s->tied));
}

static void write_attention_keys(FILE *config, const shape *s)
{
    fprintf(config, ", \"intermediate_size\": %" PRIu64 ", \"num_attention_heads\": %" PRIu64
        ", \"num_key_value_heads\": %" PRIu64, s->intermediate, s->heads, s->kv_heads);
}

static void write_jamba_layer(checkpoint *c, const shape *s, uint64_t layer)
{
    char prefix[100];
    uint64_t e;
    snprintf(prefix, sizeof prefix, "model.layers.%d.", (int)layer);
    add(c, s->type, prefix, "input_layernorm.weight", s->hidden, 0, 0);
    add(c, s->type, prefix, "pre_ff_layernorm.weight", s->hidden, 0, 0);
    if (layer % s->period == s->offset) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.self_attn.", (int)layer);
        write_attention(c, s, prefix, s->hidden);
    } else {
        snprintf(prefix, sizeof prefix, "model.layers.%d.mamba.", (int)layer);
        write_mamba(c, s, prefix);
        add(c, s->type, prefix, "dt_layernorm.weight", s->rank, 0, 0);
        add(c, s->type, prefix, "b_layernorm.weight", s->state, 0, 0);
        add(c, s->type, prefix, "c_layernorm.weight", s->state, 0, 0);
    }
    snprintf(prefix, sizeof prefix, "model.layers.%d.feed_forward.", (int)layer);
    if (s->experts == 1 || layer % 2 == 0) {
        write_gated(c, s, prefix, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
        return;
    }
    add(c, s->type, prefix, "router.weight", s->experts, s->hidden, 0);
    for (e = 0; e < s->experts; e++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.feed_forward.experts.%d.", (int)layer, (int)e);
        write_gated(c, s, prefix, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
    }
}

static void write_jamba(checkpoint *c, FILE *config, const shape *s)
{
    uint64_t i;
    write_common(config, s, "jamba");
    write_attention_keys(config, s);
    fprintf(config, ", \"attn_layer_period\": %d, \"attn_layer_offset\": %d, \"num_experts\": %d, "
        "\"num_experts_per_tok\": %d, \"expert_layer_period\": 2, \"expert_layer_offset\": 1, \"mamba_d_state\": %d, "
        "\"mamba_d_conv\": 4, \"mamba_expand\": 2, \"mamba_dt_rank\": %d, \"rms_norm_eps\": 1e-06}", (int)s->period,
        (int)s->offset, (int)s->experts, (int)s->top_k, (int)s->state, (int)s->rank);
    write_ends(c, s, "model.embed_tokens.weight", "model.final_layernorm.weight");
    for (i = 0; i < s->layers; i++) write_jamba_layer(c, s, i);
}

static void write_mamba1(checkpoint *c, FILE *config, const shape *s)
{
    char prefix[100];
    uint64_t i;
    write_common(config, s, "mamba");
    fprintf(config, ", \"state_size\": %d, \"conv_kernel\": 4, \"expand\": 2, \"time_step_rank\": %d}", (int)s->state,
        (int)s->rank);
    write_ends(c, s, "backbone.embeddings.weight", "backbone.norm_f.weight");
    for (i = 0; i < s->layers; i++) {
        snprintf(prefix, sizeof prefix, "backbone.layers.%d.", (int)i);
        add(c, s->type, prefix, "norm.weight", s->hidden, 0, 0);
        snprintf(prefix, sizeof prefix, "backbone.layers.%d.mixer.", (int)i);
        write_mamba(c, s, prefix);
    }
}

static void write_mamba2_mixer(checkpoint *c, const shape *s, const char *prefix)
{
    uint64_t inner = 2 * s->hidden, conv = inner + 2 * s->groups * s->state;
    add(c, s->type, prefix, "in_proj.weight", inner + conv + s->mamba_heads, s->hidden, 0);
    add(c, s->type, prefix, "conv1d.weight", conv, 1, 4);
    add(c, s->type, prefix, "conv1d.bias", conv, 0, 0);
    add(c, "F32", prefix, "dt_bias", s->mamba_heads, 0, 0);
    add(c, "F32", prefix, "A_log", s->mamba_heads, 0, 0);
    add(c, "F32", prefix, "D", s->mamba_heads, 0, 0);
    add(c, s->type, prefix, "norm.weight", inner, 0, 0);
    add(c, s->type, prefix, "out_proj.weight", s->hidden, inner, 0);
}

/* Codestral as its authors spell it. */
static void write_mamba2(checkpoint *c, FILE *config, const shape *s)
{
    char prefix[100];
    uint64_t i;
    write_common(config, s, "mamba2");
    fprintf(config, ", \"state_size\": %d, \"conv_kernel\": 4, \"expand\": 2, \"num_heads\": %d, \"head_dim\": %d, "
        "\"n_groups\": %d, \"norm_before_gate\": true, \"rms_norm\": true, \"intermediate_size\": %d, "
        "\"time_step_limit\": [0.0, Infinity]}", (int)s->state, (int)s->mamba_heads,
        (int)(2 * s->hidden / s->mamba_heads), (int)s->groups, (int)(2 * s->hidden));
    add(c, s->type, "", "model.backbone.embeddings.weight", s->vocab, s->hidden, 0);
    add(c, s->type, "", "model.backbone.norm_f.weight", s->hidden, 0, 0);
    add(c, s->type, "", "model.lm_head.weight", s->vocab, s->hidden, 0);
    for (i = 0; i < s->layers; i++) {
        snprintf(prefix, sizeof prefix, "model.backbone.layers.%d.", (int)i);
        add(c, s->type, prefix, "norm.weight", s->hidden, 0, 0);
        snprintf(prefix, sizeof prefix, "model.backbone.layers.%d.mixer.", (int)i);
        write_mamba2_mixer(c, s, prefix);
    }
}

static void write_zamba_mixer(checkpoint *c, const shape *s, const char *prefix)
{
    uint64_t inner = 2 * s->hidden, heads = s->mamba_heads, width = inner / heads;
    add(c, s->type, prefix, "in_proj.weight", 2 * inner, s->hidden, 0);
    add(c, s->type, prefix, "conv1d.weight", inner, 1, 4);
    add(c, s->type, prefix, "conv1d.bias", inner, 0, 0);
    add(c, s->type, prefix, "x_proj_weight", heads, s->rank + 2 * s->state, width);
    add(c, s->type, prefix, "dt_proj_weight", heads, width, s->rank);
    add(c, s->type, prefix, "dt_proj_bias", heads, width, 0);
    add(c, s->type, prefix, "A_log", heads, width, s->state);
    add(c, s->type, prefix, "D", heads, width, 0);
    add(c, s->type, prefix, "out_proj.weight", s->hidden, inner, 0);
}

static void write_zamba_block(checkpoint *c, const shape *s, uint64_t layer)
{
    char prefix[100];
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transf.", (int)layer);
    add(c, s->type, prefix, "input_layernorm.weight", 2 * s->hidden, 0, 0);
    add(c, s->type, prefix, "pre_ff_layernorm.weight", s->hidden, 0, 0);
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transf.self_attn.", (int)layer);
    write_attention(c, s, prefix, 2 * s->hidden);
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transf.feed_forward.", (int)layer);
    write_gated(c, s, prefix, "gate_proj.weight", "up_proj.weight", "down_proj.weight");
}

static void write_zamba(checkpoint *c, FILE *config, const shape *s)
{
    char prefix[100];
    uint64_t i;
    write_common(config, s, "zamba");
    write_attention_keys(config, s);
    fprintf(config, ", \"attention_hidden_size\": %d, \"attention_head_dim\": %d, \"n_mamba_heads\": %d, "
        "\"attn_layer_period\": 6, \"attn_layer_offset\": 4, \"mamba_dt_rank\": %d, \"hidden_act\": \"gelu\"}",
        (int)(2 * s->hidden), (int)s->head_dim, (int)s->mamba_heads, (int)s->rank);
    write_ends(c, s, "model.embed_tokens.weight", "model.final_layernorm.weight");
    for (i = 0; i < s->layers; i++) {
        const char *inside = is_hybrid(s, i) ? "mamba_decoder." : "";
        if (i == (uint64_t)s->hybrids[0]) write_zamba_block(c, s, i);
        snprintf(prefix, sizeof prefix, "model.layers.%d.", (int)i);
        if (is_hybrid(s, i)) add(c, s->type, prefix, "linear.weight", s->hidden, s->hidden, 0);
        snprintf(prefix, sizeof prefix, "model.layers.%d.%s", (int)i, inside);
        add(c, s->type, prefix, "input_layernorm.weight", s->hidden, 0, 0);
        snprintf(prefix, sizeof prefix, "model.layers.%d.%smamba.", (int)i, inside);
        write_zamba_mixer(c, s, prefix);
    }
}

static void write_adapter(
    checkpoint *c, const shape *s, uint64_t layer, const char *list, int slot, uint64_t in, uint64_t out)
{
    char prefix[100];
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transformer.%s_adapter_list.%d.", (int)layer, list, slot);
    add(c, s->type, prefix, "0.weight", s->rank, in, 0);
    add(c, s->type, prefix, "1.weight", out, s->rank, 0);
}

/* A shared block, under the layer of its first use, with the adapters of all its uses. */
static void write_zamba2_block(checkpoint *c, const shape *s, int first)
{
    char prefix[100];
    uint64_t layer = (uint64_t)s->hybrids[first], width = 2 * s->hidden;
    int slot;
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transformer.", (int)layer);
    add(c, s->type, prefix, "input_layernorm.weight", width, 0, 0);
    add(c, s->type, prefix, "pre_ff_layernorm.weight", s->hidden, 0, 0);
    add(c, s->type, prefix, "feed_forward.gate_up_proj.weight", 2 * s->intermediate, s->hidden, 0);
    add(c, s->type, prefix, "feed_forward.down_proj.weight", s->hidden, s->intermediate, 0);
    snprintf(prefix, sizeof prefix, "model.layers.%d.shared_transformer.self_attn.", (int)layer);
    write_attention(c, s, prefix, width);
    for (slot = first; s->hybrids[slot] >= 0; slot++) {
        if ((uint64_t)slot % s->blocks != (uint64_t)first) continue;
        write_adapter(c, s, layer, "feed_forward.gate_up_proj", slot, s->hidden, 2 * s->intermediate);
        if (!s->attention_adapter) continue;
        write_adapter(c, s, layer, "self_attn.linear_q", slot, width, width);
        write_adapter(c, s, layer, "self_attn.linear_k", slot, width, width);
        write_adapter(c, s, layer, "self_attn.linear_v", slot, width, width);
    }
}

static void write_zamba2_config(FILE *config, const shape *s)
{
    uint64_t i;
    write_common(config, s, "zamba2");
    write_attention_keys(config, s);
    fprintf(config, ", \"mamba_d_state\": %d, \"n_mamba_heads\": %d, \"mamba_headdim\": %d, \"mamba_ngroups\": %d, "
        "\"num_mem_blocks\": %d, \"adapter_rank\": %d, \"use_shared_attention_adapter\": %s, \"use_mem_rope\": %s, "
        "\"rope_theta\": 10000, \"hidden_act\": \"gelu\", \"layers_block_type\": [", (int)s->state,
        (int)s->mamba_heads, (int)(2 * s->hidden / s->mamba_heads), (int)s->groups, (int)s->blocks, (int)s->rank,
        truth(s->attention_adapter), truth(s->rope));
    for (i = 0; i < s->layers; i++) fprintf(config, "%s\"%s\"", i ? ", " : "", is_hybrid(s, i) ? "hybrid" : "mamba");
    fputs("]}", config);
}

static void write_zamba2(checkpoint *c, FILE *config, const shape *s)
{
    char prefix[100];
    uint64_t i;
    int first;
    write_zamba2_config(config, s);
    write_ends(c, s, "model.embed_tokens.weight", "model.final_layernorm.weight");
    for (first = 0; first < (int)s->blocks; first++) write_zamba2_block(c, s, first);
    for (i = 0; i < s->layers; i++) {
        const char *inside = is_hybrid(s, i) ? "mamba_decoder." : "";
        snprintf(prefix, sizeof prefix, "model.layers.%d.", (int)i);
        if (is_hybrid(s, i)) add(c, s->type, prefix, "linear.weight", s->hidden, s->hidden, 0);
        snprintf(prefix, sizeof prefix, "model.layers.%d.%s", (int)i, inside);
        add(c, s->type, prefix, "input_layernorm.weight", s->hidden, 0, 0);
        snprintf(prefix, sizeof prefix, "model.layers.%d.%smamba.", (int)i, inside);
        write_mamba2_mixer(c, s, prefix);
    }
}

static void write_mixtral(checkpoint *c, FILE *config, const shape *s)
{
    char prefix[100];
    uint64_t i, e;
    write_common(config, s, "mixtral");
    write_attention_keys(config, s);
    fprintf(config, ", \"num_local_experts\": %d, \"num_experts_per_tok\": %d, \"rope_theta\": 1000000.0, "
        "\"sliding_window\": null}", (int)s->experts, (int)s->top_k);
    write_ends(c, s, "model.embed_tokens.weight", "model.norm.weight");
    for (i = 0; i < s->layers; i++) {
        snprintf(prefix, sizeof prefix, "model.layers.%d.", (int)i);
        add(c, s->type, prefix, "input_layernorm.weight", s->hidden, 0, 0);
        add(c, s->type, prefix, "post_attention_layernorm.weight", s->hidden, 0, 0);
        add(c, s->type, prefix, "block_sparse_moe.gate.weight", s->experts, s->hidden, 0);
        for (e = 0; e < s->experts; e++) {
            snprintf(prefix, sizeof prefix, "model.layers.%d.block_sparse_moe.experts.%d.", (int)i, (int)e);
            write_gated(c, s, prefix, "w1.weight", "w3.weight", "w2.weight");
        }
        snprintf(prefix, sizeof prefix, "model.layers.%d.self_attn.", (int)i);
        write_attention(c, s, prefix, s->hidden);
    }
}

static const int zamba_7b[] = { 2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73, -1 };
static const int zamba2_1b[] = { 5, 11, 17, 23, 29, 35, -1 };
static const int zamba2_3b[] = { 6, 12, 18, 24, 30, 36, 42, 47, 51, -1 };
static const int zamba2_7b[] = { 6, 11, 17, 23, 29, 35, 41, 47, 53, 59, 65, 71, 77, -1 };

/* From configs and counts in public code; Jamba-tiny-dev's experts and their width from its 319 million parameters.
 * Versions of a checkpoint, such as 1.5, 1.6 and 1.7 of Jamba or the instruct ones of Zamba2, share their shape. */
static const shape shapes[] = {
    { .name = "Jamba-v0.1", .write = write_jamba, .type = "BF16",
        .layers = 32, .hidden = 4096, .intermediate = 14336, .heads = 32, .kv_heads = 8, .head_dim = 128,
        .vocab = 65536, .period = 8, .offset = 4, .experts = 16, .top_k = 2, .state = 16, .rank = 256,
        .parameters = 51570323328, .active = 12110311296, .kv_bytes_per_token = 16384,
        .state_bytes = 17432576, .tensors = 1251, .billions = 52, .active_billions = 12 },
    { .name = "Jamba-1.5-Large", .write = write_jamba, .type = "BF16",
        .layers = 72, .hidden = 8192, .intermediate = 24576, .heads = 64, .kv_heads = 8, .head_dim = 128,
        .vocab = 65536, .period = 8, .offset = 4, .experts = 16, .top_k = 2, .state = 16, .rank = 512,
        .parameters = 398555145696, .active = 94149338592, .kv_bytes_per_token = 36864,
        .state_bytes = 78446592, .tensors = 2811, .billions = 398, .active_billions = 94 },
    { .name = "Jamba-Reasoning-3B", .write = write_jamba, .type = "BF16",
        .layers = 28, .hidden = 2560, .intermediate = 8192, .heads = 20, .kv_heads = 1, .head_dim = 128,
        .vocab = 65536, .tied = 1, .period = 14, .offset = 7, .experts = 1, .top_k = 1, .state = 16, .rank = 160,
        .parameters = 3029337472, .active = 3029337472, .kv_bytes_per_token = 1024,
        .state_bytes = 10117120, .tensors = 462, .billions = 3 },
    { .name = "Jamba-tiny-dev", .write = write_jamba, .type = "BF16",
        .layers = 16, .hidden = 512, .intermediate = 2048, .heads = 8, .kv_heads = 2, .head_dim = 64, .vocab = 65536,
        .period = 8, .offset = 4, .experts = 8, .top_k = 2, .state = 16, .rank = 32,
        .parameters = 318688640, .active = 167693696, .kv_bytes_per_token = 1024,
        .state_bytes = 1089536, .tensors = 435, .billions = 0.319 },
    { .name = "Zamba-7B-v1", .write = write_zamba, .type = "BF16",
        .layers = 76, .hidden = 3712, .intermediate = 14848, .heads = 16, .kv_heads = 16, .head_dim = 464,
        .vocab = 32000, .tied = 1, .state = 16, .rank = 232, .mamba_heads = 2, .hybrids = zamba_7b,
        .parameters = 7232490496, .active = 7232490496, .kv_bytes_per_token = 386048,
        .state_bytes = 42881024, .tensors = 784 },
    { .name = "Zamba2-1.2B", .write = write_zamba2, .type = "BF16",
        .layers = 38, .hidden = 2048, .intermediate = 8192, .heads = 32, .kv_heads = 32, .head_dim = 128,
        .vocab = 32000, .tied = 1, .state = 128, .rank = 128, .mamba_heads = 64, .groups = 1, .blocks = 1,
        .attention_adapter = 1, .rope = 1, .hybrids = zamba2_1b,
        .parameters = 1215064704, .active = 1215064704, .kv_bytes_per_token = 98304,
        .state_bytes = 81676288, .tensors = 406, .billions = 1.2 },
    { .name = "Zamba2-2.7B", .write = write_zamba2, .type = "BF16",
        .layers = 54, .hidden = 2560, .intermediate = 10240, .heads = 32, .kv_heads = 32, .head_dim = 160,
        .vocab = 32000, .tied = 1, .state = 64, .rank = 128, .mamba_heads = 80, .groups = 1, .blocks = 2,
        .hybrids = zamba2_3b,
        .parameters = 2662214560, .active = 2662214560, .kv_bytes_per_token = 184320,
        .state_bytes = 74179584, .tensors = 531, .billions = 2.7 },
    { .name = "Zamba2-7B", .write = write_zamba2, .type = "BF16",
        .layers = 81, .hidden = 3584, .intermediate = 14336, .heads = 32, .kv_heads = 32, .head_dim = 224,
        .vocab = 32000, .tied = 1, .state = 64, .rank = 128, .mamba_heads = 112, .groups = 2, .blocks = 2, .rope = 1,
        .hybrids = zamba2_7b,
        .parameters = 7356749648, .active = 7356749648, .kv_bytes_per_token = 372736,
        .state_bytes = 155851776, .tensors = 786, .billions = 7.4 },
    { .name = "mamba-130m-hf", .write = write_mamba1, .type = "F32",
        .layers = 24, .hidden = 768, .vocab = 50280, .tied = 1, .state = 16, .rank = 48,
        .parameters = 129135360, .active = 129135360, .kv_bytes_per_token = 0,
        .state_bytes = 2801664, .tensors = 242, .billions = 0.13 },
    { .name = "mamba-370m-hf", .write = write_mamba1, .type = "F32",
        .layers = 48, .hidden = 1024, .vocab = 50280, .tied = 1, .state = 16, .rank = 64,
        .parameters = 371516416, .active = 371516416, .kv_bytes_per_token = 0,
        .state_bytes = 7471104, .tensors = 482, .billions = 0.37 },
    { .name = "mamba-790m-hf", .write = write_mamba1, .type = "F32",
        .layers = 48, .hidden = 1536, .vocab = 50280, .tied = 1, .state = 16, .rank = 96,
        .parameters = 793204224, .active = 793204224, .kv_bytes_per_token = 0,
        .state_bytes = 11206656, .tensors = 482, .billions = 0.79 },
    { .name = "mamba-1.4b-hf", .write = write_mamba1, .type = "F32",
        .layers = 48, .hidden = 2048, .vocab = 50280, .tied = 1, .state = 16, .rank = 128,
        .parameters = 1372178432, .active = 1372178432, .kv_bytes_per_token = 0,
        .state_bytes = 14942208, .tensors = 482, .billions = 1.4 },
    { .name = "mamba-2.8b-hf", .write = write_mamba1, .type = "F32",
        .layers = 64, .hidden = 2560, .vocab = 50280, .tied = 1, .state = 16, .rank = 160,
        .parameters = 2768345600, .active = 2768345600, .kv_bytes_per_token = 0,
        .state_bytes = 24903680, .tensors = 642, .billions = 2.8 },
    { .name = "Codestral-7B", .write = write_mamba2, .type = "BF16",
        .layers = 64, .hidden = 4096, .vocab = 32768, .state = 128, .mamba_heads = 128, .groups = 8,
        .parameters = 7285403648, .active = 7285403648, .kv_bytes_per_token = 0,
        .state_bytes = 276299776, .tensors = 579, .billions = 7.3 },
    { .name = "Mixtral-8x7B", .write = write_mixtral, .type = "BF16",
        .layers = 32, .hidden = 4096, .intermediate = 14336, .heads = 32, .kv_heads = 8, .head_dim = 128,
        .vocab = 32000, .experts = 8, .top_k = 2,
        .parameters = 46702792704, .active = 12879925248, .kv_bytes_per_token = 131072,
        .state_bytes = 0, .tensors = 995, .billions = 46.7, .active_billions = 12.9 },
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* Config and tensors of a shape in `folder`. False when the file system refuses files of that size. */
static bool write_shape(checkpoint *c, const shape *s)
{
    FILE *config = create("config.json");
    bool ok = true;
    int shard;
    memset(c, 0, sizeof *c);
    s->write(c, config, s);
    test_require(fclose(config) == 0, "cannot write", "config.json");
    assign_shards(c);
    for (shard = 1; shard <= c->shards && ok; shard++) ok = write_shard(c, shard);
    if (c->shards > 1) write_index(c);
    return ok;
}

#endif
