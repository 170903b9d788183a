/* families.h - what each model family's config.json and tensor names mean: the program of blocks, and
 * where in the checkpoint every tensor of that program lies.
 *
 * A family is data: its config keys, the order of blocks in a layer, and groups of naming rules. In a
 * name '#' stands for the layer, '*' for the expert and '@' for how many hybrid layers come before.
 * Several groups may offer the same tensor; the first one that the checkpoint has is taken.
 *
 * Hybrid layers (Zamba) have an attention and an MLP block that are shared: of num_mem_blocks = 2 such
 * pairs, hybrids 0, 2, 4, ... use one and 1, 3, 5, ... the other. A checkpoint may store a pair under
 * any of its layers, or under several of them with different weights, which are then not shared.
 */
#ifndef FAMILIES_H
#define FAMILIES_H

#include "lora.h"

#include <float.h>
#include <math.h>

/* ---- what a conversion knows --------------------------------------------------------------- */

typedef enum setting {
    SET_VOCAB, SET_HIDDEN, SET_LAYERS, SET_INTERMEDIATE, SET_CONTEXT, SET_EPS, SET_TIED, SET_BOS, SET_PAD,
    SET_HEADS, SET_KV_HEADS, SET_HEAD_DIM, SET_ATTENTION_BIAS, SET_MLP_BIAS, SET_THETA,
    SET_D_INNER, SET_EXPAND, SET_D_STATE, SET_D_CONV, SET_DT_RANK, SET_CONV_BIAS, SET_PROJ_BIAS,
    SET_EXPERTS, SET_TOP_K, SET_EXPERT_PERIOD, SET_EXPERT_OFFSET, SET_ATTENTION_PERIOD, SET_ATTENTION_OFFSET,
    SET_ACT, SET_CONV_ACT, SET_INNER_EPS, SET_MAMBA_HEADS, SET_MAMBA_HEAD_DIM, SET_GROUPS, SET_DT_MIN, SET_DT_MAX,
    SET_ATTENTION_WIDTH, SET_SCALE_DIM, SET_ROPE, SET_LONG, SET_MEM_BLOCKS, SET_RANK, SET_ATTENTION_ADAPTER,
    SETTINGS
} setting;

/* Where one matrix of the model file comes from: rows first, first + step, ... of a stored tensor seen
 * as a matrix of `cols` columns, or numbers computed here. */
typedef struct tensor_source {
    st_tensor *tensor; /* NULL: values */
    const float *values;
    uint64_t first, step;
    bool minus_exp; /* A is stored as its logarithm */
    lora_part lora; /* to be merged */
} tensor_source;

typedef struct family family;

typedef struct convert_plan {
    st_checkpoint checkpoint;
    const family *family;
    char *config_path; /* or that of the model file, where there is no checkpoint */
    double settings[SETTINGS]; /* integers are exact */
    jmb_metadata model; /* header, blocks and tensors; no strings */
    uint32_t *layers;   /* of each block, for names */
    uint32_t *ordinals; /* of each layer: its number among the hybrid ones, or JMB_NONE */
    struct {
        uint32_t layer, block; /* block: its first */
    } *hybrids;
    uint32_t hybrid_count;
    tensor_source (*sources)[2]; /* of each tensor; the second: see name_rule.half */
    float *rope;                 /* inverse frequencies; NULL without RoPE */
    float *ones;                 /* weights of norms that have none */
    const lora_set *lora;        /* an adapter, or NULL */
} convert_plan;

static uint32_t plan_get(const convert_plan *plan, setting which)
{
    return (uint32_t)plan->settings[which];
}

/* The layer's number among the hybrid ones, JMB_NONE for other layers. */
static uint32_t plan_ordinal(const convert_plan *plan, uint32_t layer)
{
    return plan->ordinals ? plan->ordinals[layer] : (uint32_t)JMB_NONE;
}

/* ---- config keys --------------------------------------------------------------------------- */

typedef enum key_kind {
    KEY_SIZE,    /* an integer */
    KEY_DERIVED, /* the same; null and "auto" mean 0, which plan_derive() replaces */
    KEY_NUMBER,
    KEY_FLAG,
    KEY_TOKEN,  /* null and -1: none */
    KEY_ACT,    /* silu, and gelu where `high` allows it */
    KEY_LIMIT,  /* two numbers, for `which` and the setting after it; the second may be infinite */
    KEY_UNUSED, /* must be null, false, the standard number or absent: not supported */
    KEY_TRUE    /* must be true or absent */
} key_kind;

typedef struct config_key {
    const char *name, *other; /* second spelling or NULL */
    key_kind kind;
    setting which;
    double standard, low, high; /* standard: when the key is absent */
} config_key;

static const double no_token = JMB_NO_TOKEN;

/* Keys that every family has */
static const config_key common_keys[] = {
    { "bos_token_id", NULL, KEY_TOKEN, SET_BOS, JMB_NO_TOKEN, 0, JMB_MAX_VOCAB },
    { "pad_token_id", NULL, KEY_TOKEN, SET_PAD, JMB_NO_TOKEN, 0, JMB_MAX_VOCAB },
    { "quantization_config", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    /* what related families have; a sibling's code would ignore such a key, its checkpoint would not */
    { "sliding_window", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "attention_chunk_size", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "attn_logit_softcapping", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "final_logit_softcapping", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "clip_qkv", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "alibi", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "use_qk_norm", "qk_layernorm", KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "embedding_multiplier", NULL, KEY_UNUSED, SETTINGS, 1, 0, 0 },
    { "residual_multiplier", NULL, KEY_UNUSED, SETTINGS, 1, 0, 0 },
    { "attention_multiplier", NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 },
    { "lm_head_multiplier", NULL, KEY_UNUSED, SETTINGS, 1, 0, 0 },
    { "logits_scaling", "logit_scale", KEY_UNUSED, SETTINGS, 1, 0, 0 },
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

/* The activation of convolution and MLP in one */
#define SILU_KEY { "hidden_act", NULL, KEY_ACT, SET_ACT, JMB_ACT_SILU, 0, JMB_ACT_SILU }

static const config_key jamba_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 65536, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 4096, 1, JMB_MAX_HIDDEN },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 32, 1, JMB_MAX_BLOCKS / 2 },
    { "intermediate_size", NULL, KEY_SIZE, SET_INTERMEDIATE, 14336, 1, JMB_MAX_INNER },
    { "max_position_embeddings", NULL, KEY_SIZE, SET_CONTEXT, 262144, 1, JMB_MAX_CONTEXT },
    { "rms_norm_eps", NULL, KEY_NUMBER, SET_EPS, 1e-6, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 0, 0, 1 },
    { "num_attention_heads", NULL, KEY_SIZE, SET_HEADS, 32, 1, JMB_MAX_HEADS },
    { "num_key_value_heads", NULL, KEY_DERIVED, SET_KV_HEADS, 8, 1, JMB_MAX_HEADS },
    { "head_dim", NULL, KEY_DERIVED, SET_HEAD_DIM, 0, 1, JMB_MAX_HEAD_DIM },
    { "attn_layer_period", NULL, KEY_SIZE, SET_ATTENTION_PERIOD, 8, 1, JMB_MAX_BLOCKS },
    { "attn_layer_offset", NULL, KEY_SIZE, SET_ATTENTION_OFFSET, 4, 0, JMB_MAX_BLOCKS },
    { "num_experts", "num_local_experts", KEY_SIZE, SET_EXPERTS, 16, 1, JMB_MAX_EXPERTS },
    { "num_experts_per_tok", NULL, KEY_SIZE, SET_TOP_K, 2, 1, JMB_MAX_EXPERTS },
    { "expert_layer_period", NULL, KEY_SIZE, SET_EXPERT_PERIOD, 2, 1, JMB_MAX_BLOCKS },
    { "expert_layer_offset", NULL, KEY_SIZE, SET_EXPERT_OFFSET, 1, 0, JMB_MAX_BLOCKS },
    { "mamba_d_state", NULL, KEY_SIZE, SET_D_STATE, 16, 1, JMB_MAX_STATE },
    { "mamba_d_conv", NULL, KEY_SIZE, SET_D_CONV, 4, 1, JMB_MAX_CONV },
    { "mamba_expand", NULL, KEY_SIZE, SET_EXPAND, 2, 1, 64 },
    { "mamba_dt_rank", NULL, KEY_DERIVED, SET_DT_RANK, 0, 1, JMB_MAX_HIDDEN },
    { "mamba_conv_bias", NULL, KEY_FLAG, SET_CONV_BIAS, 1, 0, 1 },
    { "mamba_proj_bias", NULL, KEY_FLAG, SET_PROJ_BIAS, 0, 0, 1 },
    { "mamba_inner_layernorms", NULL, KEY_TRUE, SETTINGS, 0, 0, 0 },
    SILU_KEY,
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

static const config_key mamba_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 50280, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 768, 1, JMB_MAX_HIDDEN },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 32, 1, JMB_MAX_BLOCKS },
    { "layer_norm_epsilon", NULL, KEY_NUMBER, SET_EPS, 1e-5, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 1, 0, 1 },
    { "intermediate_size", NULL, KEY_DERIVED, SET_D_INNER, 0, 1, JMB_MAX_INNER },
    { "expand", NULL, KEY_SIZE, SET_EXPAND, 2, 1, 64 },
    { "state_size", NULL, KEY_SIZE, SET_D_STATE, 16, 1, JMB_MAX_STATE },
    { "conv_kernel", NULL, KEY_SIZE, SET_D_CONV, 4, 1, JMB_MAX_CONV },
    { "time_step_rank", NULL, KEY_DERIVED, SET_DT_RANK, 0, 1, JMB_MAX_HIDDEN },
    { "use_conv_bias", NULL, KEY_FLAG, SET_CONV_BIAS, 1, 0, 1 },
    { "use_bias", NULL, KEY_FLAG, SET_PROJ_BIAS, 0, 0, 1 },
    { "mixer_rms_eps", NULL, KEY_NUMBER, SET_INNER_EPS, 1e-6, 1e-30, 1 }, /* Falcon-Mamba */
    SILU_KEY,
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

/* A stored intermediate_size is ignored, as are norm_before_gate and rms_norm. */
static const config_key mamba2_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 32768, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 4096, 1, JMB_MAX_HIDDEN },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 64, 1, JMB_MAX_BLOCKS },
    { "layer_norm_epsilon", NULL, KEY_NUMBER, SET_EPS, 1e-5, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 0, 0, 1 },
    { "expand", NULL, KEY_SIZE, SET_EXPAND, 2, 1, 64 },
    { "num_heads", NULL, KEY_SIZE, SET_MAMBA_HEADS, 128, 1, JMB_MAX_HEADS },
    { "head_dim", NULL, KEY_SIZE, SET_MAMBA_HEAD_DIM, 64, 1, JMB_MAX_INNER },
    { "n_groups", NULL, KEY_SIZE, SET_GROUPS, 8, 1, JMB_MAX_HEADS },
    { "state_size", NULL, KEY_SIZE, SET_D_STATE, 128, 1, JMB_MAX_STATE },
    { "conv_kernel", NULL, KEY_SIZE, SET_D_CONV, 4, 1, JMB_MAX_CONV },
    { "use_conv_bias", NULL, KEY_FLAG, SET_CONV_BIAS, 1, 0, 1 },
    { "use_bias", NULL, KEY_FLAG, SET_PROJ_BIAS, 0, 0, 1 },
    { "time_step_limit", NULL, KEY_LIMIT, SET_DT_MIN, 0, 0, (double)INFINITY },
    SILU_KEY,
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

static const config_key zamba_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 32000, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 3712, 1, JMB_MAX_HIDDEN / 2 },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 76, 1, JMB_MAX_BLOCKS / 4 },
    { "intermediate_size", NULL, KEY_SIZE, SET_INTERMEDIATE, 14848, 1, JMB_MAX_INNER },
    { "max_position_embeddings", NULL, KEY_SIZE, SET_CONTEXT, 4096, 1, JMB_MAX_CONTEXT },
    { "rms_norm_eps", NULL, KEY_NUMBER, SET_EPS, 1e-5, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 1, 0, 1 },
    { "num_attention_heads", NULL, KEY_SIZE, SET_HEADS, 16, 1, JMB_MAX_HEADS },
    { "num_key_value_heads", NULL, KEY_DERIVED, SET_KV_HEADS, 16, 1, JMB_MAX_HEADS },
    { "attention_head_dim", "head_dim", KEY_DERIVED, SET_HEAD_DIM, 0, 1, JMB_MAX_HEAD_DIM },
    { "attention_hidden_size", NULL, KEY_DERIVED, SET_ATTENTION_WIDTH, 0, 1, 2 * JMB_MAX_HIDDEN },
    { "attn_layer_period", NULL, KEY_SIZE, SET_ATTENTION_PERIOD, 6, 1, JMB_MAX_BLOCKS },
    { "attn_layer_offset", NULL, KEY_SIZE, SET_ATTENTION_OFFSET, 4, 0, JMB_MAX_BLOCKS },
    { "n_mamba_heads", NULL, KEY_SIZE, SET_MAMBA_HEADS, 2, 1, JMB_MAX_HEADS },
    { "mamba_d_state", NULL, KEY_SIZE, SET_D_STATE, 16, 1, JMB_MAX_STATE },
    { "mamba_d_conv", NULL, KEY_SIZE, SET_D_CONV, 4, 1, JMB_MAX_CONV },
    { "mamba_expand", NULL, KEY_SIZE, SET_EXPAND, 2, 1, 64 },
    { "mamba_dt_rank", NULL, KEY_DERIVED, SET_DT_RANK, 0, 1, JMB_MAX_HIDDEN },
    { "mamba_conv_bias", NULL, KEY_FLAG, SET_CONV_BIAS, 1, 0, 1 },
    { "mamba_proj_bias", NULL, KEY_FLAG, SET_PROJ_BIAS, 0, 0, 1 },
    { "hidden_act", NULL, KEY_ACT, SET_ACT, JMB_ACT_GELU, 0, JMB_ACT_GELU },
    { "hidden_mamba_act", NULL, KEY_ACT, SET_CONV_ACT, JMB_ACT_SILU, 0, JMB_ACT_GELU },
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

/* Second spellings are those of the authors' own code, before the model was in transformers. */
static const config_key zamba2_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 32000, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 2560, 1, JMB_MAX_HIDDEN / 2 },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 54, 1, JMB_MAX_BLOCKS / 4 },
    { "intermediate_size", "ffn_hidden_size", KEY_DERIVED, SET_INTERMEDIATE, 0, 1, JMB_MAX_INNER },
    { "max_position_embeddings", NULL, KEY_SIZE, SET_CONTEXT, 4096, 1, JMB_MAX_CONTEXT },
    { "use_long_context", NULL, KEY_FLAG, SET_LONG, 0, 0, 1 },
    { "rms_norm_eps", NULL, KEY_NUMBER, SET_EPS, 1e-5, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 1, 0, 1 },
    { "num_attention_heads", NULL, KEY_SIZE, SET_HEADS, 32, 1, JMB_MAX_HEADS },
    { "num_key_value_heads", NULL, KEY_DERIVED, SET_KV_HEADS, 0, 1, JMB_MAX_HEADS },
    { "attention_head_dim", "head_dim", KEY_DERIVED, SET_HEAD_DIM, 0, 1, JMB_MAX_HEAD_DIM },
    { "attention_hidden_size", NULL, KEY_DERIVED, SET_ATTENTION_WIDTH, 0, 1, 2 * JMB_MAX_HIDDEN },
    { "use_mem_rope", NULL, KEY_FLAG, SET_ROPE, 0, 0, 1 },
    { "rope_theta", NULL, KEY_NUMBER, SET_THETA, 10000, 1e-3, 1e12 },
    { "num_mem_blocks", NULL, KEY_SIZE, SET_MEM_BLOCKS, 1, 1, JMB_MAX_BLOCKS },
    { "adapter_rank", "lora_rank", KEY_SIZE, SET_RANK, 128, 1, JMB_MAX_HIDDEN },
    { "use_shared_attention_adapter", "use_shared_attention_lora", KEY_FLAG, SET_ATTENTION_ADAPTER, 0, 0, 1 },
    { "n_mamba_heads", NULL, KEY_DERIVED, SET_MAMBA_HEADS, 0, 1, JMB_MAX_HEADS },
    { "mamba_headdim", NULL, KEY_DERIVED, SET_MAMBA_HEAD_DIM, 0, 1, JMB_MAX_INNER },
    { "mamba_ngroups", NULL, KEY_SIZE, SET_GROUPS, 1, 1, JMB_MAX_HEADS },
    { "mamba_d_state", "state_size", KEY_SIZE, SET_D_STATE, 64, 1, JMB_MAX_STATE },
    { "mamba_d_conv", "conv_dimension", KEY_SIZE, SET_D_CONV, 4, 1, JMB_MAX_CONV },
    { "mamba_expand", "expansion_factor", KEY_SIZE, SET_EXPAND, 2, 1, 64 },
    { "add_bias_linear", NULL, KEY_FLAG, SET_PROJ_BIAS, 0, 0, 1 },
    { "time_step_min", NULL, KEY_NUMBER, SET_DT_MIN, 0.001, 0, 1e6 },
    { "hidden_act", NULL, KEY_ACT, SET_ACT, JMB_ACT_GELU, 0, JMB_ACT_GELU },
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

static const config_key llama_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 32000, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 4096, 1, JMB_MAX_HIDDEN },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 32, 1, JMB_MAX_BLOCKS / 2 },
    { "intermediate_size", NULL, KEY_SIZE, SET_INTERMEDIATE, 11008, 1, JMB_MAX_INNER },
    { "max_position_embeddings", NULL, KEY_SIZE, SET_CONTEXT, 2048, 1, JMB_MAX_CONTEXT },
    { "rms_norm_eps", NULL, KEY_NUMBER, SET_EPS, 1e-6, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 0, 0, 1 },
    { "num_attention_heads", NULL, KEY_SIZE, SET_HEADS, 32, 1, JMB_MAX_HEADS },
    { "num_key_value_heads", NULL, KEY_DERIVED, SET_KV_HEADS, 0, 1, JMB_MAX_HEADS },
    { "head_dim", NULL, KEY_DERIVED, SET_HEAD_DIM, 0, 1, JMB_MAX_HEAD_DIM },
    { "attention_bias", NULL, KEY_FLAG, SET_ATTENTION_BIAS, 0, 0, 1 },
    { "mlp_bias", NULL, KEY_FLAG, SET_MLP_BIAS, 0, 0, 1 },
    { "rope_theta", NULL, KEY_NUMBER, SET_THETA, 10000, 1e-3, 1e12 },
    SILU_KEY,
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

static const config_key mixtral_keys[] = {
    { "vocab_size", NULL, KEY_SIZE, SET_VOCAB, 32000, 1, JMB_MAX_VOCAB },
    { "hidden_size", NULL, KEY_SIZE, SET_HIDDEN, 4096, 1, JMB_MAX_HIDDEN },
    { "num_hidden_layers", NULL, KEY_SIZE, SET_LAYERS, 32, 1, JMB_MAX_BLOCKS / 2 },
    { "intermediate_size", NULL, KEY_SIZE, SET_INTERMEDIATE, 14336, 1, JMB_MAX_INNER },
    { "max_position_embeddings", NULL, KEY_SIZE, SET_CONTEXT, 131072, 1, JMB_MAX_CONTEXT },
    { "rms_norm_eps", NULL, KEY_NUMBER, SET_EPS, 1e-5, 1e-30, 1 },
    { "tie_word_embeddings", NULL, KEY_FLAG, SET_TIED, 0, 0, 1 },
    { "num_attention_heads", NULL, KEY_SIZE, SET_HEADS, 32, 1, JMB_MAX_HEADS },
    { "num_key_value_heads", NULL, KEY_DERIVED, SET_KV_HEADS, 8, 1, JMB_MAX_HEADS },
    { "head_dim", NULL, KEY_DERIVED, SET_HEAD_DIM, 0, 1, JMB_MAX_HEAD_DIM },
    { "num_local_experts", "num_experts", KEY_SIZE, SET_EXPERTS, 8, 1, JMB_MAX_EXPERTS },
    { "num_experts_per_tok", NULL, KEY_SIZE, SET_TOP_K, 2, 1, JMB_MAX_EXPERTS },
    { "rope_theta", NULL, KEY_NUMBER, SET_THETA, 1e6, 1e-3, 1e12 },
    SILU_KEY,
    { NULL, NULL, KEY_UNUSED, SETTINGS, 0, 0, 0 }
};

/* ---- tensor names -------------------------------------------------------------------------- */

/* Which rows of the stored tensor */
typedef enum rule_rows {
    ROWS_ALL,
    ROWS_FIRST_HALF,
    ROWS_SECOND_HALF,
    ROWS_DT_LOW, /* of dt_low, B, C in one matrix */
    ROWS_B,
    ROWS_C,
    ROWS_EXPERT,      /* all experts in one tensor [experts, rows, cols] */
    ROWS_EXPERT_GATE, /* [experts, gate and up, cols] */
    ROWS_EXPERT_UP,
    ROWS_EVEN, /* u and z alternate */
    ROWS_ODD,
    ROWS_HEAD, /* all heads in one tensor [heads, rows, cols] */
    ROWS_HEAD_DT_LOW,
    ROWS_HEAD_B,
    ROWS_HEAD_C,
    ROWS_Z, /* of z, u, B, C, dt in one matrix */
    ROWS_ZU,
    ROWS_ZB,
    ROWS_ZC,
    ROWS_ZDT,
    ROWS_CONV_U, /* of u, B, C */
    ROWS_CONV_B,
    ROWS_CONV_C,
    ROWS_ONES /* stored nowhere: a norm without weights */
} rule_rows;

typedef enum rule_shape {
    SHAPE_VECTOR,
    SHAPE_MATRIX,
    SHAPE_CONV,
    SHAPE_EXPERTS,
    SHAPE_HEADS,       /* [heads, rows, cols] */
    SHAPE_HEAD_VECTORS /* [heads, rows] */
} rule_shape;

typedef struct name_rule {
    uint32_t role;
    uint32_t half; /* 1: the up projection of a pair, or a vector to be added */
    rule_rows rows;
    rule_shape shape;
    const char *name; /* NULL ends a list */
} name_rule;

enum { HYBRID = 0x100 }; /* beside a kind: in a hybrid layer */

typedef struct rule_group {
    uint32_t kind; /* of the block; 0: tensors of no block */
    const char *prefix;
    const name_rule *rules; /* NULL ends a list */
} rule_group;

#define RULES_END { JMB_ROLE_COUNT, 0, ROWS_ALL, SHAPE_VECTOR, NULL }

static const name_rule embed_rules[] = { { JMB_ROLE_EMBED, 0, ROWS_ALL, SHAPE_MATRIX, "" }, RULES_END };
static const name_rule head_rules[] = { { JMB_ROLE_HEAD, 0, ROWS_ALL, SHAPE_MATRIX, "" }, RULES_END };
static const name_rule final_norm_rules[] = { { JMB_ROLE_FINAL_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "" }, RULES_END };
static const name_rule norm_rules[] = { { JMB_ROLE_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "" }, RULES_END };

static const name_rule attention_rules[] = {
    { JMB_ROLE_Q, 0, ROWS_ALL, SHAPE_MATRIX, "q_proj.weight" },
    { JMB_ROLE_K, 0, ROWS_ALL, SHAPE_MATRIX, "k_proj.weight" },
    { JMB_ROLE_V, 0, ROWS_ALL, SHAPE_MATRIX, "v_proj.weight" },
    { JMB_ROLE_O, 0, ROWS_ALL, SHAPE_MATRIX, "o_proj.weight" },
    { JMB_ROLE_Q_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "q_proj.bias" },
    { JMB_ROLE_K_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "k_proj.bias" },
    { JMB_ROLE_V_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "v_proj.bias" },
    { JMB_ROLE_O_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "o_proj.bias" },
    RULES_END
};

static const name_rule mamba_rules[] = {
    { JMB_ROLE_U, 0, ROWS_FIRST_HALF, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_Z, 0, ROWS_SECOND_HALF, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_U_BIAS, 0, ROWS_FIRST_HALF, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_Z_BIAS, 0, ROWS_SECOND_HALF, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_CONV, 0, ROWS_ALL, SHAPE_CONV, "conv1d.weight" },
    { JMB_ROLE_CONV_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "conv1d.bias" },
    { JMB_ROLE_DT_LOW, 0, ROWS_DT_LOW, SHAPE_MATRIX, "x_proj.weight" },
    { JMB_ROLE_B, 0, ROWS_B, SHAPE_MATRIX, "x_proj.weight" },
    { JMB_ROLE_C, 0, ROWS_C, SHAPE_MATRIX, "x_proj.weight" },
    { JMB_ROLE_DT_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "dt_layernorm.weight" },
    { JMB_ROLE_B_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "b_layernorm.weight" },
    { JMB_ROLE_C_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "c_layernorm.weight" },
    { JMB_ROLE_DT, 0, ROWS_ALL, SHAPE_MATRIX, "dt_proj.weight" },
    { JMB_ROLE_DT_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "dt_proj.bias" },
    { JMB_ROLE_A, 0, ROWS_ALL, SHAPE_MATRIX, "A_log" },
    { JMB_ROLE_D, 0, ROWS_ALL, SHAPE_VECTOR, "D" },
    { JMB_ROLE_OUT, 0, ROWS_ALL, SHAPE_MATRIX, "out_proj.weight" },
    { JMB_ROLE_OUT_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "out_proj.bias" },
    RULES_END
};

/* Zamba: x and dt projections, A and D by head */
static const name_rule zamba_mamba_rules[] = {
    { JMB_ROLE_U, 0, ROWS_EVEN, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_Z, 0, ROWS_ODD, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_U_BIAS, 0, ROWS_EVEN, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_Z_BIAS, 0, ROWS_ODD, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_CONV, 0, ROWS_ALL, SHAPE_CONV, "conv1d.weight" },
    { JMB_ROLE_CONV_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "conv1d.bias" },
    { JMB_ROLE_DT_LOW, 0, ROWS_HEAD_DT_LOW, SHAPE_HEADS, "x_proj_weight" },
    { JMB_ROLE_B, 0, ROWS_HEAD_B, SHAPE_HEADS, "x_proj_weight" },
    { JMB_ROLE_C, 0, ROWS_HEAD_C, SHAPE_HEADS, "x_proj_weight" },
    { JMB_ROLE_DT, 0, ROWS_HEAD, SHAPE_HEADS, "dt_proj_weight" },
    { JMB_ROLE_DT_BIAS, 0, ROWS_ALL, SHAPE_HEAD_VECTORS, "dt_proj_bias" },
    { JMB_ROLE_A, 0, ROWS_ALL, SHAPE_HEADS, "A_log" },
    { JMB_ROLE_D, 0, ROWS_ALL, SHAPE_HEAD_VECTORS, "D" },
    { JMB_ROLE_OUT, 0, ROWS_ALL, SHAPE_MATRIX, "out_proj.weight" },
    { JMB_ROLE_OUT_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "out_proj.bias" },
    RULES_END
};

/* The bias of in_proj's dt rows has no role of its own: dt_bias, the next thing that is added to dt, takes it in. */
static const name_rule mamba2_rules[] = {
    { JMB_ROLE_Z, 0, ROWS_Z, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_U, 0, ROWS_ZU, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_B, 0, ROWS_ZB, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_C, 0, ROWS_ZC, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_DT, 0, ROWS_ZDT, SHAPE_MATRIX, "in_proj.weight" },
    { JMB_ROLE_Z_BIAS, 0, ROWS_Z, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_U_BIAS, 0, ROWS_ZU, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_B_BIAS, 0, ROWS_ZB, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_C_BIAS, 0, ROWS_ZC, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_DT_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "dt_bias" },
    { JMB_ROLE_DT_BIAS, 1, ROWS_ZDT, SHAPE_VECTOR, "in_proj.bias" },
    { JMB_ROLE_CONV, 0, ROWS_CONV_U, SHAPE_CONV, "conv1d.weight" },
    { JMB_ROLE_CONV_B, 0, ROWS_CONV_B, SHAPE_CONV, "conv1d.weight" },
    { JMB_ROLE_CONV_C, 0, ROWS_CONV_C, SHAPE_CONV, "conv1d.weight" },
    { JMB_ROLE_CONV_BIAS, 0, ROWS_CONV_U, SHAPE_VECTOR, "conv1d.bias" },
    { JMB_ROLE_CONV_B_BIAS, 0, ROWS_CONV_B, SHAPE_VECTOR, "conv1d.bias" },
    { JMB_ROLE_CONV_C_BIAS, 0, ROWS_CONV_C, SHAPE_VECTOR, "conv1d.bias" },
    { JMB_ROLE_A, 0, ROWS_ALL, SHAPE_VECTOR, "A_log" },
    { JMB_ROLE_D, 0, ROWS_ALL, SHAPE_VECTOR, "D" },
    { JMB_ROLE_GATE_NORM, 0, ROWS_ALL, SHAPE_VECTOR, "norm.weight" },
    { JMB_ROLE_OUT, 0, ROWS_ALL, SHAPE_MATRIX, "out_proj.weight" },
    { JMB_ROLE_OUT_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "out_proj.bias" },
    RULES_END
};

/* Falcon-Mamba: its norms inside have no weights */
static const name_rule plain_norm_rules[] = {
    { JMB_ROLE_DT_NORM, 0, ROWS_ONES, SHAPE_VECTOR, "" },
    { JMB_ROLE_B_NORM, 0, ROWS_ONES, SHAPE_VECTOR, "" },
    { JMB_ROLE_C_NORM, 0, ROWS_ONES, SHAPE_VECTOR, "" },
    RULES_END
};

static const name_rule linear_rules[] = { { JMB_ROLE_LINEAR, 0, ROWS_ALL, SHAPE_MATRIX, "" }, RULES_END };

/* Gate and up projection in one matrix */
static const name_rule gate_up_rules[] = {
    { JMB_ROLE_GATE_UP, 0, ROWS_FIRST_HALF, SHAPE_MATRIX, "gate_up_proj.weight" },
    { JMB_ROLE_GATE_UP, 1, ROWS_SECOND_HALF, SHAPE_MATRIX, "gate_up_proj.weight" },
    { JMB_ROLE_GATE_UP_BIAS, 0, ROWS_FIRST_HALF, SHAPE_VECTOR, "gate_up_proj.bias" },
    { JMB_ROLE_GATE_UP_BIAS, 1, ROWS_SECOND_HALF, SHAPE_VECTOR, "gate_up_proj.bias" },
    { JMB_ROLE_DOWN, 0, ROWS_ALL, SHAPE_MATRIX, "down_proj.weight" },
    { JMB_ROLE_DOWN_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "down_proj.bias" },
    RULES_END
};

static const name_rule attention_adapter_rules[] = {
    { JMB_ROLE_Q_A, 0, ROWS_ALL, SHAPE_MATRIX, "linear_q_adapter_list.@.0.weight" },
    { JMB_ROLE_Q_B, 0, ROWS_ALL, SHAPE_MATRIX, "linear_q_adapter_list.@.1.weight" },
    { JMB_ROLE_K_A, 0, ROWS_ALL, SHAPE_MATRIX, "linear_k_adapter_list.@.0.weight" },
    { JMB_ROLE_K_B, 0, ROWS_ALL, SHAPE_MATRIX, "linear_k_adapter_list.@.1.weight" },
    { JMB_ROLE_V_A, 0, ROWS_ALL, SHAPE_MATRIX, "linear_v_adapter_list.@.0.weight" },
    { JMB_ROLE_V_B, 0, ROWS_ALL, SHAPE_MATRIX, "linear_v_adapter_list.@.1.weight" },
    RULES_END
};

static const name_rule mlp_adapter_rules[] = {
    { JMB_ROLE_GATE_UP_A, 0, ROWS_ALL, SHAPE_MATRIX, "gate_up_proj_adapter_list.@.0.weight" },
    { JMB_ROLE_GATE_UP_B, 0, ROWS_FIRST_HALF, SHAPE_MATRIX, "gate_up_proj_adapter_list.@.1.weight" },
    { JMB_ROLE_GATE_UP_B, 1, ROWS_SECOND_HALF, SHAPE_MATRIX, "gate_up_proj_adapter_list.@.1.weight" },
    RULES_END
};

static const name_rule mlp_rules[] = {
    { JMB_ROLE_GATE_UP, 0, ROWS_ALL, SHAPE_MATRIX, "gate_proj.weight" },
    { JMB_ROLE_GATE_UP, 1, ROWS_ALL, SHAPE_MATRIX, "up_proj.weight" },
    { JMB_ROLE_GATE_UP_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "gate_proj.bias" },
    { JMB_ROLE_GATE_UP_BIAS, 1, ROWS_ALL, SHAPE_VECTOR, "up_proj.bias" },
    { JMB_ROLE_DOWN, 0, ROWS_ALL, SHAPE_MATRIX, "down_proj.weight" },
    { JMB_ROLE_DOWN_BIAS, 0, ROWS_ALL, SHAPE_VECTOR, "down_proj.bias" },
    RULES_END
};

static const name_rule jamba_moe_rules[] = {
    { JMB_ROLE_ROUTER, 0, ROWS_ALL, SHAPE_MATRIX, "router.weight" },
    { JMB_ROLE_GATE_UP, 0, ROWS_ALL, SHAPE_MATRIX, "experts.*.gate_proj.weight" },
    { JMB_ROLE_GATE_UP, 1, ROWS_ALL, SHAPE_MATRIX, "experts.*.up_proj.weight" },
    { JMB_ROLE_DOWN, 0, ROWS_ALL, SHAPE_MATRIX, "experts.*.down_proj.weight" },
    RULES_END
};

static const name_rule mixtral_moe_rules[] = {
    { JMB_ROLE_ROUTER, 0, ROWS_ALL, SHAPE_MATRIX, "gate.weight" },
    { JMB_ROLE_GATE_UP, 0, ROWS_ALL, SHAPE_MATRIX, "experts.*.w1.weight" },
    { JMB_ROLE_GATE_UP, 1, ROWS_ALL, SHAPE_MATRIX, "experts.*.w3.weight" },
    { JMB_ROLE_DOWN, 0, ROWS_ALL, SHAPE_MATRIX, "experts.*.w2.weight" },
    RULES_END
};

/* All experts in one tensor, the gate's rows before the up projection's */
static const name_rule fused_moe_rules[] = {
    { JMB_ROLE_GATE_UP, 0, ROWS_EXPERT_GATE, SHAPE_EXPERTS, "experts.gate_up_proj" },
    { JMB_ROLE_GATE_UP, 1, ROWS_EXPERT_UP, SHAPE_EXPERTS, "experts.gate_up_proj" },
    { JMB_ROLE_DOWN, 0, ROWS_EXPERT, SHAPE_EXPERTS, "experts.down_proj" },
    RULES_END
};

static const rule_group jamba_groups[] = {
    { 0, "model.embed_tokens.weight", embed_rules },
    { 0, "model.final_layernorm.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_ATTENTION, "model.layers.#.input_layernorm.weight", norm_rules },
    { JMB_MAMBA, "model.layers.#.input_layernorm.weight", norm_rules },
    { JMB_MLP, "model.layers.#.pre_ff_layernorm.weight", norm_rules },
    { JMB_MOE, "model.layers.#.pre_ff_layernorm.weight", norm_rules },
    { JMB_MLP, "model.layers.#.pre_moe_layernorm.weight", norm_rules }, /* files of early 2024 */
    { JMB_MOE, "model.layers.#.pre_moe_layernorm.weight", norm_rules },
    { JMB_ATTENTION, "model.layers.#.self_attn.", attention_rules },
    { JMB_MAMBA, "model.layers.#.mamba.", mamba_rules },
    { JMB_MLP, "model.layers.#.feed_forward.", mlp_rules },
    { JMB_MLP, "model.layers.#.feed_forward.experts.0.", mlp_rules },
    { JMB_MLP, "model.layers.#.moe.", mlp_rules },
    { JMB_MLP, "model.layers.#.moe.experts.0.", mlp_rules },
    { JMB_MOE, "model.layers.#.feed_forward.", jamba_moe_rules },
    { JMB_MOE, "model.layers.#.feed_forward.", fused_moe_rules },
    { JMB_MOE, "model.layers.#.moe.", jamba_moe_rules },
    { JMB_MOE, "model.layers.#.moe.", fused_moe_rules },
    { 0, NULL, NULL }
};

static const rule_group mamba_groups[] = {
    { 0, "backbone.embeddings.weight", embed_rules },
    { 0, "backbone.embedding.weight", embed_rules },
    { 0, "backbone.norm_f.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_MAMBA, "backbone.layers.#.norm.weight", norm_rules },
    { JMB_MAMBA, "backbone.layers.#.mixer.", mamba_rules },
    { 0, NULL, NULL }
};

static const rule_group falcon_mamba_groups[] = {
    { 0, "backbone.embeddings.weight", embed_rules },
    { 0, "backbone.norm_f.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_MAMBA, "backbone.layers.#.norm.weight", norm_rules },
    { JMB_MAMBA, "", plain_norm_rules },
    { JMB_MAMBA, "backbone.layers.#.mixer.", mamba_rules },
    { 0, NULL, NULL }
};

/* Codestral's own files put model. in front. */
static const rule_group mamba2_groups[] = {
    { 0, "backbone.embeddings.weight", embed_rules },
    { 0, "backbone.embedding.weight", embed_rules },
    { 0, "model.backbone.embeddings.weight", embed_rules },
    { 0, "model.backbone.embedding.weight", embed_rules },
    { 0, "backbone.norm_f.weight", final_norm_rules },
    { 0, "model.backbone.norm_f.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { 0, "model.lm_head.weight", head_rules },
    { JMB_MAMBA2, "backbone.layers.#.norm.weight", norm_rules },
    { JMB_MAMBA2, "model.backbone.layers.#.norm.weight", norm_rules },
    { JMB_MAMBA2, "backbone.layers.#.mixer.", mamba2_rules },
    { JMB_MAMBA2, "model.backbone.layers.#.mixer.", mamba2_rules },
    { 0, NULL, NULL }
};

static const rule_group zamba_groups[] = {
    { 0, "model.embed_tokens.weight", embed_rules },
    { 0, "model.final_layernorm.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_MAMBA, "model.layers.#.input_layernorm.weight", norm_rules },
    { JMB_MAMBA, "model.layers.#.mamba.", zamba_mamba_rules },
    { JMB_MAMBA | HYBRID, "model.layers.#.mamba_decoder.input_layernorm.weight", norm_rules },
    { JMB_MAMBA | HYBRID, "model.layers.#.mamba_decoder.mamba.", zamba_mamba_rules },
    { JMB_LINEAR | HYBRID, "model.layers.#.linear.weight", linear_rules },
    { JMB_ATTENTION | HYBRID, "model.layers.#.shared_transf.input_layernorm.weight", norm_rules },
    { JMB_ATTENTION | HYBRID, "model.layers.#.shared_transf.self_attn.", attention_rules },
    { JMB_MLP | HYBRID, "model.layers.#.shared_transf.pre_ff_layernorm.weight", norm_rules },
    { JMB_MLP | HYBRID, "model.layers.#.shared_transf.feed_forward.", mlp_rules },
    { 0, NULL, NULL }
};

static const rule_group zamba2_groups[] = {
    { 0, "model.embed_tokens.weight", embed_rules },
    { 0, "model.final_layernorm.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_MAMBA2, "model.layers.#.input_layernorm.weight", norm_rules },
    { JMB_MAMBA2, "model.layers.#.mamba.", mamba2_rules },
    { JMB_MAMBA2 | HYBRID, "model.layers.#.mamba_decoder.input_layernorm.weight", norm_rules },
    { JMB_MAMBA2 | HYBRID, "model.layers.#.mamba_decoder.mamba.", mamba2_rules },
    { JMB_LINEAR | HYBRID, "model.layers.#.linear.weight", linear_rules },
    { JMB_ATTENTION | HYBRID, "model.layers.#.shared_transformer.input_layernorm.weight", norm_rules },
    { JMB_ATTENTION | HYBRID, "model.layers.#.shared_transformer.self_attn.", attention_rules },
    { JMB_ATTENTION | HYBRID, "model.layers.#.shared_transformer.self_attn.", attention_adapter_rules },
    { JMB_MLP | HYBRID, "model.layers.#.shared_transformer.pre_ff_layernorm.weight", norm_rules },
    { JMB_MLP | HYBRID, "model.layers.#.shared_transformer.feed_forward.", gate_up_rules },
    { JMB_MLP | HYBRID, "model.layers.#.shared_transformer.feed_forward.", mlp_adapter_rules },
    { 0, NULL, NULL }
};

static const rule_group llama_groups[] = {
    { 0, "model.embed_tokens.weight", embed_rules },
    { 0, "model.norm.weight", final_norm_rules },
    { 0, "lm_head.weight", head_rules },
    { JMB_ATTENTION, "model.layers.#.input_layernorm.weight", norm_rules },
    { JMB_MLP, "model.layers.#.post_attention_layernorm.weight", norm_rules },
    { JMB_MOE, "model.layers.#.post_attention_layernorm.weight", norm_rules },
    { JMB_ATTENTION, "model.layers.#.self_attn.", attention_rules },
    { JMB_MLP, "model.layers.#.mlp.", mlp_rules },
    { JMB_MOE, "model.layers.#.block_sparse_moe.", mixtral_moe_rules },
    { JMB_MOE, "model.layers.#.block_sparse_moe.", fused_moe_rules },
    { JMB_MOE, "model.layers.#.mlp.", mixtral_moe_rules },
    { JMB_MOE, "model.layers.#.mlp.", fused_moe_rules },
    { 0, NULL, NULL }
};

/* ---- the families -------------------------------------------------------------------------- */

/* Kinds of the blocks of a layer, in order; 0 ends them. */
typedef struct layer_kinds {
    uint32_t kinds[4];
} layer_kinds;

struct family {
    const char *name; /* model_type */
    const config_key *keys;
    const rule_group *groups;
    layer_kinds (*layer)(const convert_plan *plan, uint32_t layer);
    /* Settings that follow from others, and checks of them; before those that all families have. */
    bool (*derive)(convert_plan *plan, const json_value *root, tool_error *error);
    uint32_t flags[JMB_KINDS]; /* of every block of a kind */
};

static layer_kinds jamba_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds k = { { JMB_MAMBA, JMB_MLP, 0, 0 } };
    if (layer % plan_get(plan, SET_ATTENTION_PERIOD) == plan_get(plan, SET_ATTENTION_OFFSET))
        k.kinds[0] = JMB_ATTENTION;
    if (plan_get(plan, SET_EXPERTS) > 1
        && layer % plan_get(plan, SET_EXPERT_PERIOD) == plan_get(plan, SET_EXPERT_OFFSET))
        k.kinds[1] = JMB_MOE;
    return k;
}

static layer_kinds mamba_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds k = { { JMB_MAMBA, 0, 0, 0 } };
    (void)plan;
    (void)layer;
    return k;
}

static layer_kinds llama_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds k = { { JMB_ATTENTION, JMB_MLP, 0, 0 } };
    (void)plan;
    (void)layer;
    return k;
}

static layer_kinds mixtral_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds k = { { JMB_ATTENTION, JMB_MOE, 0, 0 } };
    (void)plan;
    (void)layer;
    return k;
}

static layer_kinds mamba2_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds k = { { JMB_MAMBA2, 0, 0, 0 } };
    (void)plan;
    (void)layer;
    return k;
}

static layer_kinds zamba_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds plain = { { JMB_MAMBA, 0, 0, 0 } }, hybrid = { { JMB_ATTENTION, JMB_MLP, JMB_LINEAR, JMB_MAMBA } };
    return plan_ordinal(plan, layer) == JMB_NONE ? plain : hybrid;
}

static layer_kinds zamba2_layer(const convert_plan *plan, uint32_t layer)
{
    layer_kinds plain = { { JMB_MAMBA2, 0, 0, 0 } }, hybrid = { { JMB_ATTENTION, JMB_MLP, JMB_LINEAR, JMB_MAMBA2 } };
    return plan_ordinal(plan, layer) == JMB_NONE ? plain : hybrid;
}

/* ---- reading config.json ------------------------------------------------------------------- */

static bool config_fail_range(const convert_plan *plan, const config_key *key, tool_error *error)
{
    if (key->kind == KEY_NUMBER)
        return tool_error_set(error, "%s: %s must be a number from %g to %g", plan->config_path, key->name, key->low,
            key->high);
    return tool_error_set(error, "%s: %s must be an integer from %.0f to %.0f%s", plan->config_path, key->name,
        key->low, key->high, key->kind == KEY_TOKEN ? ", or null" : "");
}

static bool config_read_number(convert_plan *plan, const config_key *key, const json_value *v, tool_error *error)
{
    int64_t integer = 0;
    double value = 0;
    bool ok = json_number(v, &value);
    if (key->kind != KEY_NUMBER) ok = json_int(v, &integer);
    if (key->kind == KEY_TOKEN && ok && integer == -1) {
        plan->settings[key->which] = no_token;
        return true;
    }
    if (!ok || value < key->low || value > key->high) return config_fail_range(plan, key, error);
    plan->settings[key->which] = value;
    return true;
}

static bool config_read_flag(convert_plan *plan, const config_key *key, const json_value *v, tool_error *error)
{
    bool value;
    if (!json_bool(v, &value))
        return tool_error_set(error, "%s: %s must be true or false", plan->config_path, key->name);
    plan->settings[key->which] = value;
    return true;
}

static bool config_read_act(convert_plan *plan, const config_key *key, const json_value *v, tool_error *error)
{
    double *act = &plan->settings[key->which];
    *act = json_is_string(v, "silu") || json_is_string(v, "swish") ? JMB_ACT_SILU
        : json_is_string(v, "gelu")                                ? JMB_ACT_GELU
                                                                   : SETTINGS;
    return *act <= key->high
        || tool_error_set(error, "%s: %s is \"%.32s\"; only silu%s can be converted", plan->config_path, key->name,
            json_kind(v) == JSON_STRING ? json_string(v, NULL) : "?", key->high == JMB_ACT_GELU ? " and gelu" : "");
}

/* Beside a bare Infinity, {"__float__": "Infinity"}: how transformers 5 writes it. */
static bool config_limit_number(const json_value *v, double *out)
{
    if (json_is_string(json_get(v, "__float__"), "Infinity") && json_count(v) == 1) {
        *out = (double)INFINITY;
        return true;
    }
    return json_number(v, out);
}

static bool config_read_limit(convert_plan *plan, const config_key *key, const json_value *v, tool_error *error)
{
    double *limit = &plan->settings[key->which];
    bool ok = json_kind(v) == JSON_ARRAY && json_count(v) == 2 && config_limit_number(json_at(v, 0), &limit[0])
        && config_limit_number(json_at(v, 1), &limit[1]);
    return (ok && limit[0] >= 0 && limit[0] <= limit[1] && limit[0] <= (double)FLT_MAX)
        || tool_error_set(error, "%s: %s is not a list of two numbers, the second not below the first",
            plan->config_path, key->name);
}

/* A key whose value decides nothing but whether the model can be converted. */
static bool config_require(const convert_plan *plan, const config_key *key, const json_value *v, tool_error *error)
{
    bool value = true;
    double number;
    if (json_bool(v, &value) && value == (key->kind == KEY_TRUE)) return true;
    if (key->kind == KEY_UNUSED && key->standard != 0 && json_number(v, &number) && number == key->standard)
        return true;
    return tool_error_set(error, "%s: %s has a value that cannot be converted: use a checkpoint without it",
        plan->config_path, key->name);
}

static bool config_read_key(convert_plan *plan, const config_key *key, const json_value *root, tool_error *error)
{
    const json_value *v = json_get(root, key->name);
    bool derived;
    if (!v && key->other) v = json_get(root, key->other);
    derived = key->kind == KEY_DERIVED && (json_kind(v) == JSON_NULL || json_is_string(v, "auto"));
    if (!v || derived) {
        if (key->which < SETTINGS) plan->settings[key->which] = v ? 0 : key->standard;
        if (key->kind == KEY_LIMIT) plan->settings[key->which + 1] = key->high;
        return true;
    }
    if (json_kind(v) == JSON_NULL && (key->kind == KEY_UNUSED || key->kind == KEY_TRUE)) return true;
    if (json_kind(v) == JSON_NULL && key->kind == KEY_TOKEN) {
        plan->settings[key->which] = no_token;
        return true;
    }
    switch (key->kind) {
    case KEY_UNUSED:
    case KEY_TRUE: return config_require(plan, key, v, error);
    case KEY_ACT: return config_read_act(plan, key, v, error);
    case KEY_LIMIT: return config_read_limit(plan, key, v, error);
    case KEY_FLAG: return config_read_flag(plan, key, v, error);
    default: return config_read_number(plan, key, v, error);
    }
}

static bool config_read_keys(convert_plan *plan, const config_key *keys, const json_value *root, tool_error *error)
{
    for (; keys->name; keys++)
        if (!config_read_key(plan, keys, root, error)) return false;
    return true;
}

/* ---- settings that follow from others ------------------------------------------------------ */

/* The width of a Mamba mixer is what its weights say: old configs do not carry it. */
static bool mamba_derive(convert_plan *plan, const json_value *root, tool_error *error)
{
    const st_tensor *t = st_find(&plan->checkpoint, "backbone.layers.0.mixer.in_proj.weight");
    (void)root;
    (void)error;
    if (plan->settings[SET_D_INNER] == 0 && t && t->rank == 2 && t->shape[0] <= 2 * (uint64_t)JMB_MAX_INNER)
        plan->settings[SET_D_INNER] = (double)(t->shape[0] / 2);
    return true;
}

static bool plan_check_mamba_heads(const convert_plan *plan, const char *heads, const char *width, tool_error *error)
{
    const double *s = plan->settings;
    return s[SET_MAMBA_HEADS] * s[SET_MAMBA_HEAD_DIM] == s[SET_EXPAND] * s[SET_HIDDEN]
        || tool_error_set(error, "%s: %s (%.0f) times %s (%.0f) is not %.0f, the width by hidden_size and expand",
            plan->config_path, heads, s[SET_MAMBA_HEADS], width, s[SET_MAMBA_HEAD_DIM],
            s[SET_EXPAND] * s[SET_HIDDEN]);
}

static bool mamba2_derive(convert_plan *plan, const json_value *root, tool_error *error)
{
    (void)root;
    return plan_check_mamba_heads(plan, "num_heads", "head_dim", error);
}

/* Fills plan->hybrids from plan->ordinals, where each hybrid layer is marked by 0. */
static bool plan_number_hybrids(convert_plan *plan, tool_error *error)
{
    uint32_t i, layers = plan_get(plan, SET_LAYERS);
    plan->hybrids = calloc(layers, sizeof *plan->hybrids);
    if (!plan->hybrids) return tool_no_memory(error);
    for (i = 0; i < layers; i++) {
        if (plan->ordinals[i] == JMB_NONE) continue;
        plan->ordinals[i] = plan->hybrid_count;
        plan->hybrids[plan->hybrid_count++].layer = i;
    }
    return true;
}

/* "mamba" is how transformers 4 calls a plain layer, "linear_attention" 5; "m" and "g" are the authors' own. */
static bool zamba_read_layer(convert_plan *plan, uint32_t layer, const json_value *v, tool_error *error)
{
    if (json_is_string(v, "hybrid") || json_is_string(v, "g")) plan->ordinals[layer] = 0;
    else if (!json_is_string(v, "mamba") && !json_is_string(v, "linear_attention") && !json_is_string(v, "m"))
        return tool_error_set(error, "%s: layers_block_type: layer %u is \"%.32s\"; mamba and hybrid can be converted",
            plan->config_path, layer, json_kind(v) == JSON_STRING ? json_string(v, NULL) : "?");
    return true;
}

/* The list of layer types, NULL where the config leaves it to the family. */
static const json_value *zamba_layer_list(const json_value *root)
{
    const json_value *list = json_get(root, "layers_block_type");
    if (!list) list = json_get(root, "layer_types");
    return json_kind(list) == JSON_NULL ? NULL : list;
}

/* The hybrid layers by list, or else by the family's own rule. */
static bool zamba_read_layers(
    convert_plan *plan, const json_value *list, bool (*is_hybrid)(const convert_plan *, uint32_t), tool_error *error)
{
    uint32_t i, layers = plan_get(plan, SET_LAYERS);
    const json_value *v = json_first(list);
    plan->ordinals = (uint32_t *)calloc(layers, sizeof *plan->ordinals);
    if (!plan->ordinals) return tool_no_memory(error);
    if (list && (json_kind(list) != JSON_ARRAY || json_count(list) != layers))
        return tool_error_set(error, "%s: layers_block_type is not a list of num_hidden_layers (%u) types",
            plan->config_path, layers);
    for (i = 0; i < layers; i++, v = json_next(v)) {
        plan->ordinals[i] = !list && is_hybrid(plan, i) ? 0 : (uint32_t)JMB_NONE;
        if (list && !zamba_read_layer(plan, i, v, error)) return false;
    }
    return plan_number_hybrids(plan, error);
}

/* Attention of shared blocks: on x beside e, scaled by (head_dim / 2)^-0.5 */
static bool zamba_derive_attention(convert_plan *plan, tool_error *error)
{
    double *s = plan->settings;
    if (s[SET_ATTENTION_WIDTH] != 0 && s[SET_ATTENTION_WIDTH] != 2 * s[SET_HIDDEN])
        return tool_error_set(error, "%s: attention_hidden_size must be twice hidden_size", plan->config_path);
    if (s[SET_HEAD_DIM] == 0) s[SET_HEAD_DIM] = 2 * plan_get(plan, SET_HIDDEN) / plan_get(plan, SET_HEADS);
    s[SET_SCALE_DIM] = s[SET_HEAD_DIM] / 2;
    return true;
}

static bool zamba_is_hybrid(const convert_plan *plan, uint32_t layer)
{
    if (layer < 3) return layer == 2;
    return (layer - 3) % plan_get(plan, SET_ATTENTION_PERIOD) == plan_get(plan, SET_ATTENTION_OFFSET);
}

static bool zamba_derive(convert_plan *plan, const json_value *root, tool_error *error)
{
    plan->settings[SET_MEM_BLOCKS] = 1;
    return zamba_derive_attention(plan, error)
        && zamba_read_layers(plan, zamba_layer_list(root), zamba_is_hybrid, error);
}

/* Of Zamba2-2.7B, which is the standard */
static bool zamba2_is_hybrid(const convert_plan *plan, uint32_t layer)
{
    (void)plan;
    if (layer > 42) return layer == 47 || layer == 51;
    return layer > 0 && layer % 6 == 0;
}

/* Heads come from their width in configs of the authors' own code. */
static bool zamba2_derive_heads(convert_plan *plan, tool_error *error)
{
    double *s = plan->settings, inner = s[SET_EXPAND] * s[SET_HIDDEN];
    if (s[SET_MAMBA_HEADS] == 0)
        s[SET_MAMBA_HEADS] = s[SET_MAMBA_HEAD_DIM] == 0 ? 8 : floor(inner / s[SET_MAMBA_HEAD_DIM]);
    if (s[SET_MAMBA_HEAD_DIM] == 0) s[SET_MAMBA_HEAD_DIM] = floor(inner / s[SET_MAMBA_HEADS]);
    return plan_check_mamba_heads(plan, "n_mamba_heads", "mamba_headdim", error);
}

/* The adapters of the reference are numbered by hybrid_layer_ids, so that it must be the same list. */
static bool zamba2_check_ids(const convert_plan *plan, const json_value *ids, tool_error *error)
{
    const json_value *v = json_first(ids);
    bool ok = json_count(ids) == plan->hybrid_count;
    int64_t layer;
    uint32_t i;
    if (!ids || json_kind(ids) == JSON_NULL) return true;
    for (i = 0; i < plan->hybrid_count && ok; i++, v = json_next(v))
        ok = json_int(v, &layer) && layer == plan->hybrids[i].layer;
    return ok
        || tool_error_set(error, "%s: hybrid_layer_ids and layers_block_type do not name the same layers",
            plan->config_path);
}

static bool zamba2_derive(convert_plan *plan, const json_value *root, tool_error *error)
{
    const json_value *list = zamba_layer_list(root);
    double *s = plan->settings;
    if (!list && plan_get(plan, SET_LAYERS) != 54)
        return tool_error_set(error, "%s: layers_block_type is missing: which of the %u layers are hybrid?",
            plan->config_path, plan_get(plan, SET_LAYERS));
    if (s[SET_INTERMEDIATE] == 0) s[SET_INTERMEDIATE] = 4 * s[SET_HIDDEN];
    if (s[SET_LONG] != 0) s[SET_CONTEXT] = 16384;
    s[SET_INNER_EPS] = 1e-5; /* whatever rms_norm_eps says */
    s[SET_CONV_BIAS] = 1;    /* whatever use_conv_bias says */
    s[SET_MLP_BIAS] = s[SET_PROJ_BIAS];
    s[SET_DT_MAX] = (double)INFINITY;
    return zamba2_derive_heads(plan, error) && zamba_derive_attention(plan, error)
        && zamba_read_layers(plan, list, zamba2_is_hybrid, error)
        && zamba2_check_ids(plan, json_get(root, "hybrid_layer_ids"), error);
}

/* Settings that the config leaves to others. */
static bool plan_derive(convert_plan *plan, const json_value *root, tool_error *error)
{
    double *s = plan->settings;
    if (plan->family->derive && !plan->family->derive(plan, root, error)) return false;
    if (s[SET_KV_HEADS] == 0) s[SET_KV_HEADS] = s[SET_HEADS];
    if (s[SET_HEAD_DIM] == 0 && s[SET_HEADS] > 0)
        s[SET_HEAD_DIM] = plan_get(plan, SET_HIDDEN) / plan_get(plan, SET_HEADS);
    if (s[SET_SCALE_DIM] == 0) s[SET_SCALE_DIM] = s[SET_HEAD_DIM];
    if (s[SET_DT_RANK] == 0) s[SET_DT_RANK] = (plan_get(plan, SET_HIDDEN) + 15) / 16;
    if (s[SET_D_INNER] == 0) s[SET_D_INNER] = s[SET_EXPAND] * s[SET_HIDDEN];
    if (s[SET_MAMBA_HEADS] == 0) s[SET_MAMBA_HEADS] = 1;
    if (s[SET_INNER_EPS] == 0) s[SET_INNER_EPS] = s[SET_EPS];
    if (s[SET_CONV_ACT] == 0) s[SET_CONV_ACT] = JMB_ACT_SILU;
    if (s[SET_CONTEXT] == 0) s[SET_CONTEXT] = 1 << 20; /* recurrent all through: nothing limits it */
    if (plan->family->flags[JMB_ATTENTION] & JMB_ROPE) s[SET_ROPE] = 1;
    return true;
}

/* ---- the list of families ------------------------------------------------------------------ */

/* Flags in the order none, attention, mamba, mlp, moe */
static const family families[] = {
    { "jamba", jamba_keys, jamba_groups, jamba_layer, NULL, { 0, 0, JMB_DT_NORM, 0, 0, 0, 0 } },
    { "zamba", zamba_keys, zamba_groups, zamba_layer, zamba_derive, { 0, 0, 0, 0, 0, 0, 0 } },
    { "zamba2", zamba2_keys, zamba2_groups, zamba2_layer, zamba2_derive, { 0, 0, 0, 0, 0, 0, 0 } },
    { "mamba", mamba_keys, mamba_groups, mamba_layer, mamba_derive, { 0, 0, 0, 0, 0, 0, 0 } },
    { "mamba2", mamba2_keys, mamba2_groups, mamba2_layer, mamba2_derive, { 0, 0, 0, 0, 0, 0, 0 } },
    { "falcon_mamba", mamba_keys, falcon_mamba_groups, mamba_layer, mamba_derive, { 0, 0, JMB_DT_NORM, 0, 0, 0, 0 } },
    { "llama", llama_keys, llama_groups, llama_layer, NULL, { 0, JMB_ROPE, 0, 0, 0, 0, 0 } },
    { "mixtral", mixtral_keys, llama_groups, mixtral_layer, NULL, { 0, JMB_ROPE, 0, 0, JMB_RENORMALISE, 0, 0 } },
};
enum { FAMILIES = sizeof families / sizeof families[0] };

static bool config_find_family(convert_plan *plan, const json_value *root, tool_error *error)
{
    const json_value *type = json_get(root, "model_type");
    char names[128] = "";
    int i;
    for (i = 0; i < FAMILIES; i++) {
        if (json_is_string(type, families[i].name)) plan->family = &families[i];
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
            i == 0 ? "" : i == FAMILIES - 1 ? " and " : ", ", families[i].name);
    }
    if (plan->family) return true;
    if (json_kind(type) != JSON_STRING)
        return tool_error_set(error, "%s: no model_type: this is not the config of a Hugging Face checkpoint",
            plan->config_path);
    return tool_error_set(error, "%s: model_type \"%.64s\" cannot be converted; %s can", plan->config_path,
        json_string(type, NULL), names);
}

/* ---- end of text --------------------------------------------------------------------------- */

static void plan_set_eos(jmb_header *h, uint32_t i, uint32_t token)
{
    uint32_t *const eos[JMB_MAX_EOS] = { &h->eos0, &h->eos1, &h->eos2, &h->eos3, &h->eos4, &h->eos5, &h->eos6,
        &h->eos7 };
    *eos[i] = token;
}

static bool plan_add_eos(jmb_header *h, const char *path, const json_value *v, tool_error *error)
{
    int64_t token;
    uint32_t i;
    if (!json_int(v, &token) || token < 0 || token >= h->vocab)
        return tool_error_set(error, "%s: eos_token_id is no token of the vocabulary of %u", path, h->vocab);
    for (i = 0; i < h->eos_count; i++)
        if (jmb_eos(h, i) == (uint32_t)token) return true;
    if (h->eos_count == JMB_MAX_EOS)
        return tool_error_set(error, "%s: eos_token_id lists more than %d tokens", path, (int)JMB_MAX_EOS);
    plan_set_eos(h, h->eos_count++, (uint32_t)token);
    return true;
}

static bool plan_check_token(const convert_plan *plan, const char *key, uint32_t token, tool_error *error)
{
    return token == JMB_NO_TOKEN || token < plan->model.header.vocab
        || tool_error_set(error, "%s: %s is %u, outside the vocabulary of %u: null means none", plan->config_path, key,
            token, plan->model.header.vocab);
}

/* One token, a list, or null. */
static bool plan_read_eos(jmb_header *h, const char *path, const json_value *root, tool_error *error)
{
    const json_value *v = json_get(root, "eos_token_id");
    if (!v || json_kind(v) == JSON_NULL) return true;
    if (json_kind(v) != JSON_ARRAY) return plan_add_eos(h, path, v, error);
    for (v = json_first(v); v; v = json_next(v))
        if (!plan_add_eos(h, path, v, error)) return false;
    return true;
}

/* The list used for generation often has the end of a turn where the config has only that of a text. */
static bool plan_read_generation_config(convert_plan *plan, tool_error *error)
{
    char *path = tool_path_join(plan->checkpoint.dir, "generation_config.json");
    json_doc doc;
    bool ok = true;
    if (!path) return tool_no_memory(error);
    if (tool_file_exists(path)) {
        ok = json_read_file(&doc, path, error);
        if (ok && json_kind(json_root(&doc)) != JSON_OBJECT) ok = tool_error_set(error, "%s: not a JSON object", path);
        ok = ok && plan_read_eos(&plan->model.header, path, json_root(&doc), error);
        json_free(&doc);
    }
    free(path);
    return ok;
}

/* ---- RoPE ---------------------------------------------------------------------------------- */

typedef struct rope_settings {
    bool linear, llama3;
    double factor, low, high, original;
} rope_settings;

static bool rope_number(
    const convert_plan *plan, const json_value *scaling, const char *name, double *out, tool_error *error)
{
    if (json_number(json_get(scaling, name), out) && *out > 0 && *out <= 1e12) return true;
    return tool_error_set(error, "%s: RoPE scaling needs a positive number \"%s\"", plan->config_path, name);
}

static bool rope_read_type(const convert_plan *plan, rope_settings *rope, const json_value *scaling, tool_error *error)
{
    const json_value *type = json_get(scaling, "rope_type");
    if (!type) type = json_get(scaling, "type");
    if (json_is_string(type, "default") || (!type && !json_get(scaling, "factor"))) return true;
    rope->linear = json_is_string(type, "linear");
    rope->llama3 = json_is_string(type, "llama3");
    if (!rope->linear && !rope->llama3)
        return tool_error_set(error, "%s: RoPE type \"%.32s\" cannot be converted; default, linear and llama3 can",
            plan->config_path, json_kind(type) == JSON_STRING ? json_string(type, NULL) : "");
    if (!rope_number(plan, scaling, "factor", &rope->factor, error)) return false;
    if (rope->linear) return true;
    if (!rope_number(plan, scaling, "low_freq_factor", &rope->low, error)
        || !rope_number(plan, scaling, "high_freq_factor", &rope->high, error)
        || !rope_number(plan, scaling, "original_max_position_embeddings", &rope->original, error)) return false;
    return rope->high > rope->low
        || tool_error_set(error, "%s: RoPE high_freq_factor must be above low_freq_factor", plan->config_path);
}

/* transformers 5 writes rope_parameters with theta in it, 4 wrote rope_theta and rope_scaling. */
static bool rope_read(convert_plan *plan, rope_settings *rope, const json_value *root, tool_error *error)
{
    const json_value *scaling = json_get(root, "rope_parameters"), *theta;
    double partial = 1;
    memset(rope, 0, sizeof *rope);
    if (!scaling || json_kind(scaling) == JSON_NULL) scaling = json_get(root, "rope_scaling");
    theta = json_get(scaling, "rope_theta");
    if (theta && !rope_number(plan, scaling, "rope_theta", &plan->settings[SET_THETA], error)) return false;
    if (scaling && json_kind(scaling) != JSON_OBJECT && json_kind(scaling) != JSON_NULL)
        return tool_error_set(error, "%s: %s is neither an object nor null", plan->config_path,
            json_key(scaling, NULL));
    json_number(json_get(root, "partial_rotary_factor"), &partial);
    json_number(json_get(scaling, "partial_rotary_factor"), &partial);
    if (partial != 1)
        return tool_error_set(error, "%s: partial_rotary_factor other than 1 cannot be converted", plan->config_path);
    return rope_read_type(plan, rope, scaling, error);
}

/* Scaling as the reference does it, in float32. volatile: no compiler may keep more precision. */
static float rope_scale(const rope_settings *rope, float f)
{
    volatile float wavelength = (float)(2 * 3.14159265358979323846) / f, scaled = f / (float)rope->factor;
    volatile float smooth, slow, fast;
    if (rope->linear) return scaled;
    if (!rope->llama3 || wavelength < (float)(rope->original / rope->high)) return f;
    if (wavelength > (float)(rope->original / rope->low)) return scaled;
    smooth = (float)rope->original / wavelength;
    smooth = (smooth - (float)rope->low) / (float)(rope->high - rope->low);
    slow = (1.0f - smooth) * f;
    slow = slow / (float)rope->factor;
    fast = smooth * f;
    return slow + fast;
}

/* f_i = theta^(-2i/D) with the reference's rounding: the exponent, the power and the inverse each to
 * float32. The power is taken in double, so libm's last bit does not matter. */
static bool rope_compute(convert_plan *plan, const rope_settings *rope, tool_error *error)
{
    uint32_t i, dim = plan_get(plan, SET_HEAD_DIM);
    plan->rope = (float *)calloc(dim / 2 + 1u, sizeof *plan->rope);
    if (!plan->rope) return tool_no_memory(error);
    for (i = 0; i < dim / 2; i++) {
        volatile float exponent = (float)(2 * i) / (float)dim;
        volatile float power = (float)pow(plan->settings[SET_THETA], (double)exponent);
        plan->rope[i] = rope_scale(rope, 1.0f / power);
    }
    return true;
}

/* ---- names of tensors ---------------------------------------------------------------------- */

/* What stands for '#', '@' and '*' in a name. */
typedef struct name_place {
    uint32_t layer, ordinal, expert;
} name_place;

/* Appends `pattern` with its marks replaced. */
static void rule_append(char *out, size_t capacity, const char *pattern, const name_place *place)
{
    size_t used = strlen(out);
    for (; *pattern && used + 12 < capacity; pattern++) {
        if (*pattern == '#' || *pattern == '*' || *pattern == '@')
            used += (size_t)snprintf(out + used, capacity - used, "%u",
                *pattern == '#' ? place->layer : *pattern == '*' ? place->expert : place->ordinal);
        else {
            out[used++] = *pattern;
            out[used] = 0;
        }
    }
}

enum { NAME_ROOM = 192 };

static void rule_put_name(
    const rule_group *group, const name_rule *rule, const name_place *place, char name[NAME_ROOM])
{
    name[0] = 0;
    rule_append(name, NAME_ROOM, group->prefix, place);
    rule_append(name, NAME_ROOM, rule->name, place);
}

static st_tensor *rule_find(const convert_plan *plan, const rule_group *group, const name_rule *rule,
    const name_place *place, char name[NAME_ROOM])
{
    rule_put_name(group, rule, place, name);
    return st_find(&plan->checkpoint, name);
}

/* A block; of tensors that belong to none, one with all sizes 0. */
static const jmb_block *plan_block(const convert_plan *plan, uint32_t unit)
{
    static const jmb_block none = { 0 };
    return unit == JMB_NONE ? &none : &plan->model.blocks[unit];
}

/* First row of a rule's part, and the rows of the whole stored matrix in *total. */
static uint64_t rule_rows_of(const name_rule *rule, const jmb_tensor *t, const jmb_block *b, uint64_t *total)
{
    uint64_t rows = t->rows, x = b->dt_rank + 2u * b->d_state, bc = (uint64_t)b->n_groups * b->d_state;
    uint64_t zubc = 2 * (b->d_inner + bc);
    *total = rows;
    switch (rule->rows) {
    case ROWS_FIRST_HALF: *total = 2 * rows; return 0;
    case ROWS_SECOND_HALF: *total = 2 * rows; return rows;
    case ROWS_DT_LOW: *total = x; return 0;
    case ROWS_B: *total = x; return b->dt_rank;
    case ROWS_C: *total = x; return b->dt_rank + b->d_state;
    case ROWS_EXPERT: *total = b->experts * rows; return t->index * rows;
    case ROWS_EXPERT_GATE: *total = 2 * b->experts * rows; return 2 * t->index * rows;
    case ROWS_EXPERT_UP: *total = 2 * b->experts * rows; return (2 * t->index + 1) * rows;
    case ROWS_EVEN: *total = 2 * rows; return 0;
    case ROWS_ODD: *total = 2 * rows; return 1;
    case ROWS_HEAD: *total = b->heads * rows; return t->index * rows;
    case ROWS_HEAD_DT_LOW: *total = b->heads * x; return t->index * x;
    case ROWS_HEAD_B: *total = b->heads * x; return t->index * x + b->dt_rank;
    case ROWS_HEAD_C: *total = b->heads * x; return t->index * x + b->dt_rank + b->d_state;
    case ROWS_Z: *total = zubc + b->heads; return 0;
    case ROWS_ZU: *total = zubc + b->heads; return b->d_inner;
    case ROWS_ZB: *total = zubc + b->heads; return 2 * (uint64_t)b->d_inner;
    case ROWS_ZC: *total = zubc + b->heads; return 2 * (uint64_t)b->d_inner + bc;
    case ROWS_ZDT: *total = zubc + b->heads; return zubc;
    case ROWS_CONV_U: *total = b->d_inner + 2 * bc; return 0;
    case ROWS_CONV_B: *total = b->d_inner + 2 * bc; return b->d_inner;
    case ROWS_CONV_C: *total = b->d_inner + 2 * bc; return b->d_inner + bc;
    default: return 0;
    }
}

/* Of block `index`: its kind as rule groups say it. */
static uint32_t plan_group_kind(const convert_plan *plan, uint32_t index)
{
    uint32_t kind = plan->model.blocks[index].kind;
    return plan_ordinal(plan, plan->layers[index]) == JMB_NONE ? kind : kind | (uint32_t)HYBRID;
}

static bool kind_is_shared(uint32_t group_kind)
{
    return group_kind == (JMB_ATTENTION | HYBRID) || group_kind == (JMB_MLP | HYBRID);
}

/* The tensor under its layer's own name, or else under that of the first layer that shares the block.
 * `name` is the own one when there is none. */
static st_tensor *rule_find_shared(const convert_plan *plan, const rule_group *group, const name_rule *rule,
    const name_place *place, char name[NAME_ROOM])
{
    st_tensor *found = rule_find(plan, group, rule, place, name);
    name_place other = *place;
    uint32_t i, blocks = plan_get(plan, SET_MEM_BLOCKS);
    char other_name[NAME_ROOM];
    if (found || !kind_is_shared(group->kind)) return found;
    for (i = place->ordinal % blocks; i < plan->hybrid_count && !found; i += blocks) {
        other.layer = plan->hybrids[i].layer;
        found = rule_find(plan, group, rule, &other, other_name);
    }
    return found;
}

/* ---- low-rank matrices --------------------------------------------------------------------- */

static bool role_is_linear(uint32_t role)
{
    return jmb_roles[role].lowest != JMB_F32 || role == JMB_ROLE_ROUTER;
}

static lora_place rule_lora_place(const name_rule *rule, const jmb_tensor *t, const jmb_block *b)
{
    lora_place p;
    uint64_t total, first = rule_rows_of(rule, t, b, &total);
    p.copies = rule->shape == SHAPE_EXPERTS ? b->experts : rule->shape == SHAPE_HEADS ? b->heads : 1;
    p.rows = total / p.copies;
    p.cols = t->cols;
    p.copy = (uint32_t)(first / p.rows);
    p.first = first % p.rows;
    p.step = rule->rows == ROWS_EVEN || rule->rows == ROWS_ODD ? 2 : 1;
    return p;
}

static bool lora_fail_shape(
    const lora_set *set, const lora_module *m, const lora_place *p, bool embedding, tool_error *error)
{
    char a[96], b[96];
    unsigned long long in = m->embedding ? p->rows : p->cols, out = m->embedding ? p->cols : p->rows;
    if (m->embedding != embedding)
        return tool_error_set(error, "%s: tensor %s is for %s, but the base model has %s of that name", set->path,
            m->a->name, embedding ? "a linear layer" : "an embedding", embedding ? "an embedding" : "a linear layer");
    st_format_shape(a, sizeof a, m->a->shape, m->a->rank);
    st_format_shape(b, sizeof b, m->b->shape, m->b->rank);
    return tool_error_set(error,
        "%s: tensor %s has the shape %s and its B %s; by the base model they should be [r, %llu] and [%llu, r]: "
        "another model's adapter", set->path, m->a->name, a, b, in, out);
}

/* What the adapter has for the tensor by one rule; `part` stays without a module when that is nothing. `name` is the
 * stored tensor's. */
static bool rule_find_lora(const lora_set *set, const name_rule *rule, const jmb_tensor *t, const jmb_block *b,
    char name[NAME_ROOM], lora_part *part, tool_error *error)
{
    bool matrix = rule->shape == SHAPE_MATRIX, embedding = t->role == JMB_ROLE_EMBED;
    lora_place place = rule_lora_place(rule, t, b);
    lora_module *m;
    char module[NAME_ROOM], *dot;
    memcpy(module, name, sizeof module);
    dot = strrchr(module, '.'); /* before "weight", or before the parameter of the module */
    if (dot) *dot = 0;
    for (m = lora_find(set, module); m && !part->module; m = lora_next(set, m)) {
        if (m->embedding != embedding) continue;
        if (!lora_fill(set, m, matrix ? module : name, &place, part, error)) return false;
    }
    m = lora_find(set, module);
    return part->module || !m || !matrix || lora_fail_shape(set, m, &place, embedding, error);
}

/* What the adapter has for one half of a tensor as block `index` uses it (JMB_NONE: a tensor of no block). */
static bool plan_find_lora(const convert_plan *plan, uint32_t index, const jmb_tensor *t, uint32_t half,
    lora_part *part, tool_error *error)
{
    const jmb_block *b = plan_block(plan, index);
    uint32_t kind = index == JMB_NONE ? 0 : plan_group_kind(plan, index);
    uint32_t layer = index == JMB_NONE ? 0 : plan->layers[index];
    name_place place = { layer, plan_ordinal(plan, layer), t->index };
    const rule_group *group;
    const name_rule *rule;
    char name[NAME_ROOM];
    memset(part, 0, sizeof *part);
    if (!plan->lora || !role_is_linear(t->role)) return true;
    for (group = plan->family->groups; group->rules && !part->module; group++) {
        if (group->kind != kind) continue;
        for (rule = group->rules; rule->name && !part->module; rule++) {
            if (rule->role != t->role || rule->half != half) continue;
            rule_find(plan, group, rule, &place, name);
            if (!rule_find_lora(plan->lora, rule, t, b, name, part, error)) return false;
        }
    }
    return true;
}

/* All tensors that a block uses, under its own number: its unit's and its own adapters. Returns how many. */
JMB_UNUSED static uint32_t plan_list_used(const convert_plan *plan, uint32_t block, uint32_t type, jmb_tensor *items)
{
    jmb_tensor_list list = { items, 0, block, type };
    const jmb_block *b = &plan->model.blocks[block];
    jmb_list_block(&list, b, plan->model.header.hidden);
    if (b->rank) jmb_list_adapters(&list, b, plan->model.header.hidden);
    return list.count;
}

/* Whether the adapter does the same to a tensor in two blocks that could share it, y the first that uses it. */
static bool plan_same_lora(const convert_plan *plan, const jmb_tensor *t, uint32_t x, uint32_t y, bool *same,
    tool_error *error)
{
    lora_part a, b;
    uint32_t half;
    for (half = 0; half < (jmb_roles[t->role].paired ? 2u : 1u) && *same; half++) {
        if (!plan_find_lora(plan, y, t, half, &b, error) || !plan_find_lora(plan, x, t, half, &a, error)) return false;
        *same = lora_same(&a, &b, t->rows, t->cols);
    }
    return true;
}

/* The same for all tensors of a block that are not its own anyway. */
static bool plan_same_loras(const convert_plan *plan, uint32_t x, uint32_t y, bool *same, tool_error *error)
{
    jmb_tensor_list list = { NULL, 0, x, JMB_F32 };
    const jmb_block *b = &plan->model.blocks[x];
    uint32_t i;
    bool ok = true;
    *same = true;
    if (!plan->lora) return true;
    jmb_list_block(&list, b, plan->model.header.hidden);
    list.items = (jmb_tensor *)calloc(list.count, sizeof *list.items);
    if (!list.items) return tool_no_memory(error);
    list.count = 0;
    jmb_list_block(&list, b, plan->model.header.hidden);
    for (i = 0; i < list.count && *same && ok; i++) ok = plan_same_lora(plan, &list.items[i], x, y, same, error);
    free(list.items);
    return ok;
}

/* ---- sharing ------------------------------------------------------------------------------- */

/* Whether hybrid `ordinal` has, of one tensor, a copy that differs from what the block's first user has.
 * One that does not differ needs no place. */
static bool rule_differs(const convert_plan *plan, const rule_group *group, const name_rule *rule, uint32_t ordinal,
    bool *differs, tool_error *error)
{
    uint32_t first = ordinal % plan_get(plan, SET_MEM_BLOCKS);
    name_place place = { plan->hybrids[ordinal].layer, ordinal, 0 };
    char name[NAME_ROOM];
    st_tensor *own = rule_find(plan, group, rule, &place, name);
    const st_tensor *other;
    bool same = true;
    if (!own || strchr(rule->name, '@')) return true; /* adapters are never shared */
    place.layer = plan->hybrids[first].layer;
    place.ordinal = first;
    other = rule_find_shared(plan, group, rule, &place, name);
    if (other != own && !st_same(&plan->checkpoint, own, other, &same, error)) return false;
    own->used = same;
    *differs |= !same;
    return true;
}

/* Attention or MLP of a hybrid layer: takes the tensors of the block's first user unless it has its own. */
static bool plan_share_block(convert_plan *plan, uint32_t ordinal, uint32_t kind, tool_error *error)
{
    uint32_t base = plan->hybrids[ordinal % plan_get(plan, SET_MEM_BLOCKS)].block;
    uint32_t block = plan->hybrids[ordinal].block;
    const rule_group *group;
    const name_rule *rule;
    bool differs = false, same;
    while (plan->model.blocks[block].kind != kind) {
        block++;
        base++;
    }
    for (group = plan->family->groups; group->rules; group++) {
        if (group->kind != (kind | HYBRID)) continue;
        for (rule = group->rules; rule->name; rule++)
            if (!rule_differs(plan, group, rule, ordinal, &differs, error)) return false;
    }
    if (!plan_same_loras(plan, block, base, &same, error)) return false;
    if (!differs && same) plan->model.blocks[block].unit = base;
    return true;
}

static bool plan_share_blocks(convert_plan *plan, tool_error *error)
{
    uint32_t i;
    for (i = 0; i < plan->hybrid_count; i++)
        if (!plan_share_block(plan, i, JMB_ATTENTION, error) || !plan_share_block(plan, i, JMB_MLP, error))
            return false;
    return true;
}

static const name_place nowhere = { 0, 0, 0 };

/* The tensor of a role that belongs to no block, or NULL. */
static st_tensor *plan_find_global(const convert_plan *plan, uint32_t role)
{
    const rule_group *group;
    char name[NAME_ROOM];
    for (group = plan->family->groups; group->rules; group++) {
        st_tensor *found;
        if (group->kind != 0 || group->rules->role != role) continue;
        found = rule_find(plan, group, group->rules, &nowhere, name);
        if (found) return found;
    }
    return NULL;
}

/* A matrix of vocab x hidden: the embedding or the head. */
static jmb_tensor plan_vocab_tensor(const convert_plan *plan, uint32_t role)
{
    jmb_tensor t;
    memset(&t, 0, sizeof t);
    t.role = role;
    t.unit = JMB_NONE;
    t.rows = plan->model.header.vocab;
    t.cols = plan->model.header.hidden;
    return t;
}

/* An adapter is for the embedding or the head alone even where they are tied, so that merging parts them. (PEFT's own
 * merge_and_unload changes both then, and no longer computes what the adapter does.) */
static bool plan_lora_parts_head(const convert_plan *plan, bool *parts, tool_error *error)
{
    jmb_tensor embed = plan_vocab_tensor(plan, JMB_ROLE_EMBED), head = plan_vocab_tensor(plan, JMB_ROLE_HEAD);
    lora_part a, b;
    if (!plan_find_lora(plan, JMB_NONE, &embed, 0, &a, error) || !plan_find_lora(plan, JMB_NONE, &head, 0, &b, error))
        return false;
    *parts = a.module || b.module;
    return true;
}

/* A tied head that is stored all the same counts where it differs from the embeddings. */
static bool plan_choose_head(convert_plan *plan, tool_error *error)
{
    st_tensor *head = plan_find_global(plan, JMB_ROLE_HEAD);
    const st_tensor *embed = plan_find_global(plan, JMB_ROLE_EMBED);
    bool same = true, parts;
    if (!plan_lora_parts_head(plan, &parts, error)) return false;
    plan->model.header.head = plan_get(plan, SET_TIED) && !parts ? 0 : 1;
    if (plan->model.header.head || !head || !embed) return true;
    if (!st_same(&plan->checkpoint, head, embed, &same, error)) return false;
    plan->model.header.head = same ? 0 : 1;
    head->used = same;
    return true;
}

/* ---- the program --------------------------------------------------------------------------- */

static void plan_fill_attention(const convert_plan *plan, jmb_block *b)
{
    b->heads = plan_get(plan, SET_HEADS);
    b->kv_heads = plan_get(plan, SET_KV_HEADS);
    b->head_dim = plan_get(plan, SET_HEAD_DIM);
    b->scale = b->head_dim ? (float)(1 / sqrt(plan->settings[SET_SCALE_DIM])) : 0;
    if (plan_get(plan, SET_ATTENTION_BIAS)) b->flags |= JMB_BIAS;
    if (plan_get(plan, SET_ROPE)) b->flags |= JMB_ROPE;
    if (plan_get(plan, SET_ATTENTION_ADAPTER)) b->rank = plan_get(plan, SET_RANK);
}

static void plan_fill_mamba(const convert_plan *plan, jmb_block *b)
{
    b->d_inner = plan_get(plan, SET_D_INNER);
    b->d_state = plan_get(plan, SET_D_STATE);
    b->d_conv = plan_get(plan, SET_D_CONV);
    b->heads = plan_get(plan, SET_MAMBA_HEADS);
    b->act = plan_get(plan, SET_CONV_ACT);
    b->inner_eps = (float)plan->settings[SET_INNER_EPS];
    if (plan_get(plan, SET_PROJ_BIAS)) b->flags |= JMB_BIAS;
    if (plan_get(plan, SET_CONV_BIAS)) b->flags |= JMB_CONV_BIAS;
    if (b->kind == JMB_MAMBA) {
        b->dt_rank = plan_get(plan, SET_DT_RANK);
        return;
    }
    b->n_groups = plan_get(plan, SET_GROUPS);
    b->dt_min = (float)plan->settings[SET_DT_MIN];
    b->dt_max = (float)plan->settings[SET_DT_MAX];
}

static void plan_fill_mlp(const convert_plan *plan, jmb_block *b)
{
    b->intermediate = plan_get(plan, SET_INTERMEDIATE);
    b->act = plan_get(plan, SET_ACT);
    if (b->kind == JMB_MOE) {
        b->experts = plan_get(plan, SET_EXPERTS);
        b->top_k = plan_get(plan, SET_TOP_K);
        return;
    }
    b->rank = plan_get(plan, SET_RANK);
    if (plan_get(plan, SET_MLP_BIAS)) b->flags |= JMB_BIAS;
}

/* A hybrid layer: a = linear(mlp(attention(x beside e))), without residuals; x += mamba(x + a). */
static void plan_route_hybrid(jmb_block *b)
{
    switch (b->kind) {
    case JMB_ATTENTION: b->input = JMB_FROM_X_AND_E; break;
    case JMB_MLP:
    case JMB_LINEAR: b->input = JMB_FROM_A; break;
    default: b->input = JMB_FROM_X_PLUS_A; return;
    }
    b->output = JMB_SET_A;
}

static void plan_add_block(convert_plan *plan, uint32_t kind, uint32_t layer)
{
    uint32_t index = plan->model.header.blocks++;
    jmb_block *b = &plan->model.blocks[index];
    memset(b, 0, sizeof *b);
    b->kind = kind;
    b->unit = index;
    b->flags = plan->family->flags[kind];
    b->input = JMB_FROM_X;
    b->output = JMB_ADD_TO_X;
    b->act = JMB_ACT_SILU;
    b->eps = (float)plan->settings[SET_EPS];
    plan->layers[index] = layer;
    switch (kind) {
    case JMB_ATTENTION: plan_fill_attention(plan, b); break;
    case JMB_MAMBA:
    case JMB_MAMBA2: plan_fill_mamba(plan, b); break;
    case JMB_MLP:
    case JMB_MOE: plan_fill_mlp(plan, b); break;
    default: break;
    }
    if (plan_ordinal(plan, layer) != JMB_NONE) plan_route_hybrid(b);
}

static bool plan_build_program(convert_plan *plan, tool_error *error)
{
    uint32_t layer, i, layers = plan_get(plan, SET_LAYERS);
    plan->model.blocks = (jmb_block *)calloc((size_t)layers * 4, sizeof *plan->model.blocks);
    plan->layers = (uint32_t *)calloc((size_t)layers * 4, sizeof *plan->layers);
    if (!plan->model.blocks || !plan->layers) return tool_no_memory(error);
    for (layer = 0; layer < layers; layer++) {
        layer_kinds k = plan->family->layer(plan, layer);
        if (plan_ordinal(plan, layer) != JMB_NONE)
            plan->hybrids[plan_ordinal(plan, layer)].block = plan->model.header.blocks;
        for (i = 0; i < 4 && k.kinds[i]; i++) plan_add_block(plan, k.kinds[i], layer);
    }
    return true;
}

static bool plan_make_ones(convert_plan *plan, tool_error *error)
{
    uint32_t i, rank = plan_get(plan, SET_DT_RANK), state = plan_get(plan, SET_D_STATE);
    uint32_t count = rank > state ? rank : state;
    plan->ones = (float *)malloc((count + 1u) * sizeof *plan->ones);
    if (!plan->ones) return tool_no_memory(error);
    for (i = 0; i < count; i++) plan->ones[i] = 1;
    return true;
}

static void plan_fill_header(convert_plan *plan, uint32_t type)
{
    jmb_header *h = &plan->model.header;
    h->version = JMB_VERSION_MAJOR | (uint32_t)JMB_VERSION_MINOR << 16;
    h->vocab = plan_get(plan, SET_VOCAB);
    h->hidden = plan_get(plan, SET_HIDDEN);
    h->context = plan_get(plan, SET_CONTEXT);
    h->eps = (float)plan->settings[SET_EPS];
    h->type = type;
    h->bos = plan_get(plan, SET_BOS);
    h->pad = plan_get(plan, SET_PAD);
}

/* The library's own checks, so that nothing is written which it would refuse, and sizes may be divided by. */
static bool plan_check_blocks(const convert_plan *plan, tool_error *error)
{
    jamba_error problem;
    uint32_t i;
    for (i = 0; i < plan->model.header.blocks; i++)
        if (jmb_check_block(plan->model.blocks, i, &problem))
            return tool_error_set(error, "%s: layer %u: %s", plan->config_path, plan->layers[i], problem.message);
    return true;
}

static bool plan_check_header(const convert_plan *plan, tool_error *error)
{
    jamba_error problem;
    return !jmb_check_header(&plan->model.header, &problem)
        || tool_error_set(error, "%s: %s", plan->config_path, problem.message);
}

static bool plan_list_tensors(convert_plan *plan, tool_error *error)
{
    jmb_header *h = &plan->model.header;
    h->tensors = jmb_list_tensors(h, plan->model.blocks, h->type, NULL);
    if (!plan_check_header(plan, error)) return false; /* limits the count too */
    plan->model.tensors = (jmb_tensor *)calloc(h->tensors, sizeof *plan->model.tensors);
    plan->sources = (tensor_source(*)[2])calloc(h->tensors, sizeof *plan->sources);
    if (!plan->model.tensors || !plan->sources) return tool_no_memory(error);
    jmb_list_tensors(h, plan->model.blocks, h->type, plan->model.tensors);
    return true;
}

static bool plan_apply_config(convert_plan *plan, const json_value *root, uint32_t type, tool_error *error)
{
    rope_settings rope;
    if (json_kind(root) != JSON_OBJECT) return tool_error_set(error, "%s: not a JSON object", plan->config_path);
    if (!config_find_family(plan, root, error) || !config_read_keys(plan, common_keys, root, error)
        || !config_read_keys(plan, plan->family->keys, root, error)) return false;
    if (!plan_derive(plan, root, error)) return false;
    plan_fill_header(plan, type);
    if (!plan_check_token(plan, "bos_token_id", plan->model.header.bos, error)
        || !plan_check_token(plan, "pad_token_id", plan->model.header.pad, error)
        || !plan_read_eos(&plan->model.header, plan->config_path, root, error)
        || !plan_read_generation_config(plan, error)) return false;
    if (plan_get(plan, SET_ROPE) && (!rope_read(plan, &rope, root, error) || !rope_compute(plan, &rope, error)))
        return false;
    return plan_make_ones(plan, error) && plan_build_program(plan, error) && plan_check_blocks(plan, error)
        && plan_share_blocks(plan, error) && plan_choose_head(plan, error) && plan_list_tensors(plan, error);
}

/* ---- finding the tensors ------------------------------------------------------------------- */

/* The shape in which a checkpoint stores a matrix of `total` rows; returns its rank. */
static uint32_t rule_shape_of(
    const name_rule *rule, const jmb_tensor *t, const jmb_block *b, uint64_t total, uint64_t shape[3])
{
    shape[0] = total;
    shape[1] = t->cols;
    shape[2] = t->cols;
    switch (rule->shape) {
    case SHAPE_VECTOR: return 1;
    case SHAPE_CONV: shape[1] = 1; return 3;
    case SHAPE_EXPERTS:
        shape[0] = b->experts;
        shape[1] = total / b->experts;
        return 3;
    case SHAPE_HEADS:
    case SHAPE_HEAD_VECTORS:
        shape[0] = b->heads;
        shape[1] = total / b->heads;
        return rule->shape == SHAPE_HEADS ? 3 : 2;
    default: return 2;
    }
}

static bool plan_use_values(tensor_source *source, const float *values)
{
    source->values = values;
    source->step = 1;
    return true;
}

static bool rule_bind(
    convert_plan *plan, const name_rule *rule, const jmb_tensor *t, const jmb_block *b, tensor_source *source,
    tool_error *error)
{
    st_tensor *stored = source->tensor;
    uint64_t shape[3], total;
    uint32_t rank;
    char want[96], have[96];
    source->first = rule_rows_of(rule, t, b, &total);
    source->step = rule->rows == ROWS_EVEN || rule->rows == ROWS_ODD ? 2 : 1;
    source->minus_exp = t->role == JMB_ROLE_A;
    rank = rule_shape_of(rule, t, b, total, shape);
    stored->used = true;
    if (stored->rank == rank && memcmp(stored->shape, shape, rank * sizeof shape[0]) == 0) return true;
    st_format_shape(want, sizeof want, shape, rank);
    st_format_shape(have, sizeof have, stored->shape, stored->rank);
    return tool_error_set(error,
        "%s: tensor %s has the shape %s; by %s it should be %s: the two do not belong together",
        plan->checkpoint.shards[stored->shard].path, stored->name, have, plan->config_path, want);
}

/* Searches the family's groups for the tensor; its first spelling is the one named when none is there. */
static bool plan_find_stored(
    convert_plan *plan, const jmb_tensor *t, uint32_t half, tensor_source *source, tool_error *error)
{
    const jmb_block *b = plan_block(plan, t->unit);
    uint32_t kind = t->unit == JMB_NONE ? 0 : plan_group_kind(plan, t->unit);
    uint32_t layer = t->unit == JMB_NONE ? 0 : plan->layers[t->unit];
    name_place place = { layer, plan_ordinal(plan, layer), t->index };
    const rule_group *group;
    const name_rule *rule;
    char name[NAME_ROOM], missing[NAME_ROOM] = "";
    for (group = plan->family->groups; group->rules; group++) {
        if (group->kind != kind) continue;
        for (rule = group->rules; rule->name; rule++) {
            if (rule->role != t->role || rule->half != half) continue;
            if (rule->rows == ROWS_ONES) return plan_use_values(source, plan->ones);
            source->tensor = rule_find_shared(plan, group, rule, &place, name);
            if (source->tensor) return rule_bind(plan, rule, t, b, source, error);
            if (!missing[0]) memcpy(missing, name, sizeof name);
        }
    }
    if (t->role == JMB_ROLE_HEAD && plan_get(plan, SET_TIED)) source->tensor = plan_find_global(plan, JMB_ROLE_EMBED);
    if (source->tensor) return rule_bind(plan, head_rules, t, b, source, error);
    if (!missing[0]) jmb_tensor_name(t, missing);
    return tool_error_set(error,
        "%s: tensor %s is missing: the download is incomplete, or config.json belongs to another model",
        plan->checkpoint.dir, missing);
}

/* The source of one half of a tensor, and what is to be merged into it. */
static bool plan_find_source(
    convert_plan *plan, const jmb_tensor *t, uint32_t half, tensor_source *source, tool_error *error)
{
    return plan_find_stored(plan, t, half, source, error)
        && plan_find_lora(plan, t->unit, t, half, &source->lora, error);
}

/* Whether a tensor has two sources. */
static bool plan_has_second(const convert_plan *plan, const jmb_tensor *t)
{
    const jmb_block *b = &plan->model.blocks[t->unit];
    if (jmb_roles[t->role].paired) return true;
    return t->role == JMB_ROLE_DT_BIAS && b->kind == JMB_MAMBA2 && (b->flags & JMB_BIAS);
}

static bool plan_find_sources(convert_plan *plan, tool_error *error)
{
    uint32_t i;
    for (i = 0; i < plan->model.header.tensors; i++) {
        const jmb_tensor *t = &plan->model.tensors[i];
        if (t->role == JMB_ROLE_ROPE) {
            plan_use_values(&plan->sources[i][0], plan->rope);
            continue;
        }
        if (!plan_find_source(plan, t, 0, &plan->sources[i][0], error)) return false;
        if (t->unit != JMB_NONE && plan_has_second(plan, t)
            && !plan_find_source(plan, t, 1, &plan->sources[i][1], error)) return false;
    }
    return true;
}

/* The number after `mark` in a name, SIZE_MAX when there is none. */
static size_t name_number(const char *name, const char *mark)
{
    const char *at = strstr(name, mark);
    if (!at || at[strlen(mark)] < '0' || at[strlen(mark)] > '9') return SIZE_MAX;
    return (size_t)strtoul(at + strlen(mark), NULL, 10);
}

/* Where blocks are not tied, every copy is saved with the adapters of all layers that could have shared it. */
static bool plan_is_idle_adapter(const convert_plan *plan, const char *name)
{
    size_t layer = name_number(name, ".layers."), slot = name_number(name, "_adapter_list.");
    uint32_t blocks = plan_get(plan, SET_MEM_BLOCKS);
    const rule_group *group;
    const name_rule *rule;
    char other[NAME_ROOM];
    name_place place;
    if (layer >= plan_get(plan, SET_LAYERS) || slot >= plan->hybrid_count) return false;
    if (plan->ordinals[layer] == JMB_NONE || plan->ordinals[layer] % blocks != slot % blocks) return false;
    place.layer = (uint32_t)layer;
    place.ordinal = (uint32_t)slot;
    place.expert = 0;
    for (group = plan->family->groups; group->rules; group++) {
        if (group->kind == (JMB_ATTENTION | HYBRID) && !plan_get(plan, SET_ATTENTION_ADAPTER)) continue;
        for (rule = group->rules; rule->name; rule++) {
            if (!strchr(rule->name, '@')) continue;
            rule_find(plan, group, rule, &place, other);
            if (strcmp(name, other) == 0) return true;
        }
    }
    return false;
}

/* Buffers that some versions saved although they are computed, and copies that nothing reads. */
static bool plan_is_harmless(const convert_plan *plan, const char *name)
{
    static const char buffer[] = ".rotary_emb.inv_freq";
    size_t length = strlen(name), end = sizeof buffer - 1;
    if (length >= end && strcmp(name + length - end, buffer) == 0) return true;
    return plan_is_idle_adapter(plan, name);
}

/* A tensor without a place is a part of the model that would silently be dropped. */
static bool plan_check_leftovers(const convert_plan *plan, tool_error *error)
{
    size_t i;
    for (i = 0; i < plan->checkpoint.count; i++) {
        const st_tensor *t = &plan->checkpoint.tensors[i];
        if (!t->used && !plan_is_harmless(plan, t->name))
            return tool_error_set(error,
                "%s: tensor %s has no place in a %s model with this config.json: a wrong config, or a variant "
                "that cannot be converted", plan->checkpoint.shards[t->shard].path, t->name, plan->family->name);
    }
    return true;
}

/* ---- all of an adapter --------------------------------------------------------------------- */

/* The role of a matrix that PEFT may store a copy of. */
static uint32_t plan_copy_role(const convert_plan *plan, const char *name)
{
    const rule_group *group;
    char other[NAME_ROOM];
    for (group = plan->family->groups; group->rules; group++) {
        uint32_t role = group->rules->role;
        if (group->kind != 0 || (role != JMB_ROLE_EMBED && role != JMB_ROLE_HEAD)) continue;
        rule_find(plan, group, group->rules, &nowhere, other);
        if (strcmp(name, other) == 0) return role;
    }
    return JMB_ROLE_COUNT;
}

/* Every number within a hundredth of the row's largest: as far as q8 may round, and no further. */
static bool copy_row_is_near(const float *copy, const float *base, size_t cols)
{
    float largest = pack_largest(base, jmb_pad64(cols)), largest_off = 0;
    size_t i;
    for (i = 0; i < cols; i++) {
        float off = copy[i] < base[i] ? base[i] - copy[i] : copy[i] - base[i];
        if (!(off <= largest_off)) largest_off = off;
    }
    return largest_off <= largest * 0.01f;
}

/* A row of the model's embedding or head, from the checkpoint or the model file; a tied head is the embedding. */
static bool plan_vocab_row(
    const convert_plan *plan, uint32_t role, uint64_t row, uint8_t *room, float *out, tool_error *error)
{
    const st_tensor *head = plan_find_global(plan, role), *t = head ? head : plan_find_global(plan, JMB_ROLE_EMBED);
    const jmb_tensor *packed = plan->model.tensors;
    size_t cols = plan->model.header.hidden, bytes = t ? cols * st_dtype_bytes(t->dtype) : 0, i;
    if (t) {
        if (!st_read_data(&plan->checkpoint, t, row * bytes, room, bytes, error)) return false;
        pack_floats(out, room, t->dtype, cols);
        return true;
    }
    if (role == JMB_ROLE_HEAD && plan->model.header.head) packed += plan->model.header.tensors - 1;
    for (i = 0; i < cols; i++) out[i] = jmb_weight(packed, (size_t)row, i);
    return true;
}

static bool lora_compare_copy(const convert_plan *plan, const st_tensor *t, uint32_t role, uint8_t *raw, float *rows,
    bool *near, tool_error *error)
{
    size_t cols = plan->model.header.hidden, stride = jmb_pad64(cols), bytes = cols * st_dtype_bytes(t->dtype);
    uint64_t row;
    for (row = 0, *near = true; row < plan->model.header.vocab && *near; row++) {
        if (!st_read_data(&plan->lora->checkpoint, t, row * bytes, raw, bytes, error)) return false;
        pack_floats(rows, raw, t->dtype, cols);
        if (!plan_vocab_row(plan, role, row, raw, rows + stride, error)) return false;
        *near = copy_row_is_near(rows, rows + stride, cols);
    }
    return true;
}

/* A weight that the adapter holds whole must be the base model's: it is not low-rank. */
static bool lora_check_copy(const convert_plan *plan, const st_tensor *t, tool_error *error)
{
    char *name = lora_base_name(t->name, sizeof lora_prefix - 1, 0);
    uint32_t role = name ? plan_copy_role(plan, name) : (uint32_t)JMB_ROLE_COUNT;
    size_t stride = jmb_pad64(plan->model.header.hidden);
    float *rows = (float *)calloc(2 * stride, sizeof *rows);
    uint8_t *raw = (uint8_t *)malloc(stride * 4); /* of the widest type */
    bool ok = (name && rows && raw) || tool_no_memory(error), near = true;
    if (ok && role == JMB_ROLE_COUNT)
        ok = tool_error_set(error,
            "%s: tensor %s is a whole weight, which an adapter cannot change: merge the adapter in PEFT "
            "(merge_and_unload) instead", plan->lora->path, t->name);
    if (ok && (t->rank != 2 || t->shape[0] != plan->model.header.vocab || t->shape[1] != plan->model.header.hidden))
        ok = tool_error_set(error,
            "%s: tensor %s is not %u x %u as the base model's: its vocabulary was changed, or it is another model's",
            plan->lora->path, t->name, plan->model.header.vocab, plan->model.header.hidden);
    ok = ok && lora_compare_copy(plan, t, role, raw, rows, &near, error);
    if (ok && !near)
        ok = tool_error_set(error,
            "%s: tensor %s is not what the base model has: it was trained, or it is another model's", plan->lora->path,
            t->name);
    free(name);
    free(rows);
    free(raw);
    return ok;
}

/* A tensor of the adapter without a place is a part of it that would silently be dropped. */
static bool lora_check_leftovers(const convert_plan *plan, tool_error *error)
{
    char weight[LORA_KEY];
    size_t i;
    for (i = 0; i < plan->lora->count; i++) {
        const lora_module *m = &plan->lora->modules[i];
        snprintf(weight, sizeof weight, "%s.weight", m->name);
        if (!m->used && !plan_is_idle_adapter(plan, weight))
            return tool_error_set(error,
                "%s: tensor %s has no place: the base model has no such linear layer, or not in these dimensions",
                plan->lora->path, m->a->name);
    }
    for (i = 0; i < plan->lora->checkpoint.count; i++) {
        const st_tensor *t = &plan->lora->checkpoint.tensors[i];
        if (strstr(t->name, ".lora_") == NULL && !lora_check_copy(plan, t, error)) return false;
    }
    return true;
}

static void plan_free(convert_plan *plan)
{
    st_close(&plan->checkpoint);
    free(plan->config_path);
    free(plan->model.blocks);
    free(plan->layers);
    free(plan->ordinals);
    free(plan->hybrids);
    free(plan->ones);
    free(plan->model.tensors);
    free(plan->sources);
    free(plan->rope);
    memset(plan, 0, sizeof *plan);
}

static bool plan_check_folder(const convert_plan *plan, const char *dir, tool_error *error)
{
    char *path = tool_path_join(dir, "adapter_config.json");
    bool adapter;
    if (!path) return tool_no_memory(error);
    adapter = !tool_file_exists(plan->config_path) && tool_file_exists(path);
    free(path);
    return !adapter
        || tool_error_set(error, "%s: is an adapter: say for which model with --base MODEL.jamba, or give its model's "
            "folder and this one with --merge", dir);
}

static bool plan_open(convert_plan *plan, const char *dir, uint32_t type, tool_error *error)
{
    json_doc doc;
    bool ok;
    plan->config_path = tool_path_join(dir, "config.json");
    if (!plan->config_path) return tool_no_memory(error);
    if (!plan_check_folder(plan, dir, error) || !json_read_file(&doc, plan->config_path, error)) return false;
    ok = st_open(&plan->checkpoint, dir, error) && plan_apply_config(plan, json_root(&doc), type, error)
        && plan_find_sources(plan, error) && plan_check_leftovers(plan, error)
        && (!plan->lora || lora_check_leftovers(plan, error));
    json_free(&doc);
    return ok;
}

/* The range to which every mamba2 block clamps dt, instead of the config's. False when there is none. */
JMB_UNUSED static bool plan_limit_dt(convert_plan *plan, double low, double high)
{
    bool any = false;
    uint32_t i;
    for (i = 0; i < plan->model.header.blocks; i++) {
        jmb_block *b = &plan->model.blocks[i];
        if (b->kind != JMB_MAMBA2) continue;
        b->dt_min = (float)low;
        b->dt_max = (float)high;
        any = true;
    }
    return any;
}

/* Everything there is to know before data is read: sizes checked, every tensor of the program and of
 * the checkpoint accounted for. `dir` and `lora`, an adapter to be merged or NULL, must outlive the plan. On failure
 * nothing stays open. */
JMB_UNUSED static bool plan_make(
    convert_plan *plan, const char *dir, uint32_t type, const lora_set *lora, tool_error *error)
{
    bool ok;
    memset(plan, 0, sizeof *plan);
    plan->lora = lora;
    ok = plan_open(plan, dir, type, error);
    if (!ok) plan_free(plan);
    return ok;
}

/* ---- a model file's plan ------------------------------------------------------------------- */

/* A layer begins with its mixer: what follows it in one layer is an MLP, or of a hybrid layer. */
static bool block_begins_layer(const jmb_block *b)
{
    return b->kind != JMB_MLP && b->kind != JMB_MOE && b->kind != JMB_LINEAR && b->input != JMB_FROM_X_PLUS_A;
}

static void plan_number_layers(convert_plan *plan)
{
    uint32_t i, layers = 0;
    for (i = 0; i < plan->model.header.blocks; i++) {
        const jmb_block *b = &plan->model.blocks[i];
        if (block_begins_layer(b) || i == 0) plan->ordinals[layers++] = JMB_NONE;
        plan->layers[i] = layers - 1;
        if (b->input == JMB_FROM_X_AND_E) plan->ordinals[layers - 1] = plan->hybrid_count++;
        if (b->kind == JMB_ATTENTION && b->rank) plan->settings[SET_ATTENTION_ADAPTER] = 1;
    }
    plan->settings[SET_LAYERS] = layers;
    plan->settings[SET_MEM_BLOCKS] = 1; /* which blocks share is in the program */
    plan->settings[SET_TIED] = !plan->model.header.head;
}

/* The plan of a model file, from its program and the family that it names: for the names of Hugging Face tensors, as
 * there is no checkpoint. `model` must outlive it. On failure nothing stays open. */
JMB_UNUSED static bool plan_of_model(
    convert_plan *plan, const jmb_metadata *model, const char *path, const lora_set *lora, tool_error *error)
{
    const char *name = jmb_find_string(model, "architecture");
    size_t blocks = model->header.blocks, i;
    memset(plan, 0, sizeof *plan);
    for (i = 0; i < FAMILIES && name; i++)
        if (strcmp(name, families[i].name) == 0) plan->family = &families[i];
    if (!plan->family)
        return tool_error_set(error, "%s: its architecture \"%.64s\" is none that adapters are known for", path,
            name ? name : "");
    plan->model.header = model->header;
    plan->lora = lora;
    plan->model.blocks = (jmb_block *)calloc(blocks, sizeof *plan->model.blocks);
    plan->layers = (uint32_t *)calloc(blocks, sizeof *plan->layers);
    plan->ordinals = (uint32_t *)calloc(blocks, sizeof *plan->ordinals);
    plan->model.tensors = (jmb_tensor *)calloc(model->header.tensors, sizeof *plan->model.tensors);
    plan->config_path = tool_path_join(path, "");
    if (!plan->model.blocks || !plan->model.tensors || !plan->layers || !plan->ordinals || !plan->config_path) {
        plan_free(plan);
        return tool_no_memory(error);
    }
    strcpy(plan->config_path, path);
    memcpy(plan->model.blocks, model->blocks, blocks * sizeof *plan->model.blocks);
    memcpy(plan->model.tensors, model->tensors, model->header.tensors * sizeof *plan->model.tensors);
    plan_number_layers(plan);
    return true;
}

#endif
