/* naive.h - a second implementation of everything: one token at a time, in double precision, straight
 * from the equations, on a .jamba file decoded by its own reader of the layout that jamba.h documents.
 * Of the library it uses only the lists of fields, and the numbers of kinds, flags, roles and types.
 *
 * Linears of type q8 round their input as the library promises to: blocks of 64 along the columns, scale = absmax / 127
 * in float, codes to nearest with ties to even, within +-127. A q8 cache does the same to each head of each key and
 * value, an f16 cache rounds them to f16. */
#ifndef NAIVE_H
#define NAIVE_H

#include "support.h"

typedef struct naive_tensor {
    unsigned role, unit, index, type;
    size_t rows, cols;
    double *weights; /* [rows, cols] */
    double *second;  /* the same for the up projection of a paired tensor */
} naive_tensor;

typedef struct naive_block {
    unsigned self, kind, unit, flags, input, output, act; /* self: the block's index, under which adapters are stored */
    double eps, inner_eps, scale, dt_min, dt_max;
    size_t heads, kv_heads, head_dim, d_inner, d_state, d_conv, dt_rank, groups, intermediate, experts, top_k, rank;
    double *keys, *values; /* attention: [capacity, kv_heads * head_dim] */
    size_t channels;       /* mamba, mamba2: of the convolution */
    double *conv, *state;  /* [channels, d_conv] oldest first, [d_inner, d_state] */
} naive_block;

typedef struct naive_model {
    size_t vocab, hidden, block_count, tensor_count, capacity, position;
    bool own_head;
    bool keep_activations; /* q8: do not round them (to see that rounding matters) */
    jamba_kv_type kv;      /* what the keys and values are rounded to; f16 is 0, so naive_open() sets f32 */
    double nearest_tie;    /* least distance of a rounded number from a boundary between two codes, in codes */
    double nearest_choice; /* least difference in weight between an expert taken and one left out */
    double noise;          /* products are off by up to this much of the sum of what they add up; 0: exact */
    uint64_t random;       /* state of the noise's generator */
    double eps;
    naive_block *blocks;
    naive_tensor *tensors;
} naive_model;

/* ---- reading ------------------------------------------------------------------------------------ */

static uint32_t naive_u16(const uint8_t *p)
{
    return (uint32_t)(p[0] + 256 * p[1]);
}

static uint32_t naive_u32(const uint8_t *p)
{
    return naive_u16(p) + 65536u * naive_u16(p + 2);
}

static size_t naive_u64(const uint8_t *p)
{
    return (size_t)(naive_u32(p) + 4294967296.0 * naive_u32(p + 4));
}

/* A binary floating-point number of `exponent_bits` and `mantissa_bits`, by its definition. */
static double naive_decode(uint32_t bits, int exponent_bits, int mantissa_bits)
{
    int bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = (int)(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double mantissa = (double)(bits & ((1u << mantissa_bits) - 1)) / (double)(1u << mantissa_bits);
    double sign = bits >> (exponent_bits + mantissa_bits) & 1 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias);
    return sign * ldexp(1 + mantissa, exponent - bias);
}

static double naive_f32(const uint8_t *p)
{
    return naive_decode(naive_u32(p), 8, 23);
}

static double naive_f16(const uint8_t *p)
{
    return naive_decode(naive_u16(p), 5, 10);
}

static double naive_bf16(const uint8_t *p)
{
    return naive_decode(naive_u16(p), 8, 7);
}

static size_t naive_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

static size_t naive_panel_size(unsigned type, size_t cols)
{
    switch (type) {
    case JMB_F32: return cols * 16 * 4;
    case JMB_Q8: return naive_up(naive_up(cols, 64) * 16 + naive_up(cols, 64) / 64 * 16 * 2, 64);
    case JMB_Q4: return naive_up(cols, 64) * 8 + naive_up(cols, 64) / 32 * 16 * 2;
    default: return naive_up(cols, 2) * 16 * 2;
    }
}

/* Weight (row, col) of the panel at p; row < 16. */
static double naive_weight(const uint8_t *p, unsigned type, size_t cols, size_t row, size_t col)
{
    switch (type) {
    case JMB_F32: return naive_f32(p + (col * 16 + row) * 4);
    case JMB_F16: return naive_f16(p + ((col / 2 * 16 + row) * 2 + col % 2) * 2);
    case JMB_BF16: return naive_bf16(p + ((col / 2 * 16 + row) * 2 + col % 2) * 2);
    case JMB_Q4: {
        static const int levels[16] = { -127, -92, -71, -55, -41, -29, -18, -7, 3, 14, 25, 38, 52, 69, 89, 114 };
        const uint8_t *scales = p + naive_up(cols, 64) * 8;
        size_t in = col % 32;
        int pair = p[col / 32 * 256 + in % 16 / 4 * 64 + row * 4 + in % 4];
        return levels[in < 16 ? pair % 16 : pair / 16] * naive_f16(scales + (col / 32 * 16 + row) * 2);
    }
    default: {
        const uint8_t *scales = p + naive_up(cols, 64) * 16;
        int code = (int)p[(col / 4 * 16 + row) * 4 + col % 4] - 128;
        return code * naive_f16(scales + (col / 64 * 16 + row) * 2);
    }
    }
}

/* The matrix whose panels start at p, `stride` panels apart. */
static double *naive_matrix(const uint8_t *p, const naive_tensor *t, size_t stride)
{
    double *w = (double *)malloc(t->rows * t->cols * sizeof *w);
    size_t row, col, panel = naive_panel_size(t->type, t->cols);
    for (row = 0; row < t->rows; row++)
        for (col = 0; col < t->cols; col++)
            w[row * t->cols + col] = naive_weight(p + row / 16 * stride * panel, t->type, t->cols, row % 16, col);
    return w;
}

static void naive_read_tensor(naive_tensor *t, const uint8_t *file, const uint8_t *entry)
{
    const uint8_t *data = file + naive_u64(entry + 16);
    bool paired;
    t->role = naive_u16(entry);
    t->unit = naive_u16(entry + 2);
    t->index = naive_u16(entry + 4);
    t->type = naive_u16(entry + 6);
    t->rows = naive_u32(entry + 8);
    t->cols = naive_u32(entry + 12);
    paired = t->role == JMB_ROLE_GATE_UP || t->role == JMB_ROLE_GATE_UP_BIAS || t->role == JMB_ROLE_GATE_UP_B;
    t->weights = naive_matrix(data, t, paired ? 2 : 1);
    t->second = paired ? naive_matrix(data + naive_panel_size(t->type, t->cols), t, 2) : NULL;
}

static uint32_t naive_field(const uint8_t *block, unsigned field)
{
    return naive_u32(block + 4 * field);
}

static void naive_read_block(naive_block *b, const uint8_t *p, size_t capacity)
{
    b->kind = naive_field(p, FIELD_kind);
    b->unit = naive_field(p, FIELD_unit);
    b->flags = naive_field(p, FIELD_flags);
    b->input = naive_field(p, FIELD_input);
    b->output = naive_field(p, FIELD_output);
    b->act = naive_field(p, FIELD_act);
    b->eps = naive_f32(p + 4 * FIELD_eps);
    b->inner_eps = naive_f32(p + 4 * FIELD_inner_eps);
    b->scale = naive_f32(p + 4 * FIELD_scale);
    b->dt_min = naive_f32(p + 4 * FIELD_dt_min);
    b->dt_max = naive_f32(p + 4 * FIELD_dt_max);
    b->heads = naive_field(p, FIELD_heads);
    b->kv_heads = naive_field(p, FIELD_kv_heads);
    b->head_dim = naive_field(p, FIELD_head_dim);
    b->d_inner = naive_field(p, FIELD_d_inner);
    b->d_state = naive_field(p, FIELD_d_state);
    b->d_conv = naive_field(p, FIELD_d_conv);
    b->dt_rank = naive_field(p, FIELD_dt_rank);
    b->groups = naive_field(p, FIELD_n_groups);
    b->intermediate = naive_field(p, FIELD_intermediate);
    b->experts = naive_field(p, FIELD_experts);
    b->top_k = naive_field(p, FIELD_top_k);
    b->rank = naive_field(p, FIELD_rank);
    if (b->kind == JMB_ATTENTION) {
        b->keys = (double *)calloc(capacity * b->kv_heads * b->head_dim, sizeof *b->keys);
        b->values = (double *)calloc(capacity * b->kv_heads * b->head_dim, sizeof *b->values);
    }
    if (b->kind == JMB_MAMBA || b->kind == JMB_MAMBA2) {
        b->channels = b->d_inner + (b->kind == JMB_MAMBA2 ? 2 * b->groups * b->d_state : 0);
        b->conv = (double *)calloc(b->channels * b->d_conv, sizeof *b->conv);
        b->state = (double *)calloc(b->d_inner * b->d_state, sizeof *b->state);
    }
}

/* A model of at most `capacity` positions from the bytes of a .jamba file. */
static naive_model *naive_parse(const uint8_t *file, size_t capacity)
{
    naive_model *m = (naive_model *)calloc(1, sizeof *m);
    size_t i, directory;
    m->vocab = naive_u32(file + 64);
    m->hidden = naive_u32(file + 68);
    m->block_count = naive_u32(file + 76);
    m->tensor_count = naive_u32(file + 80);
    m->own_head = naive_u32(file + 84) == 1;
    m->eps = naive_f32(file + 88);
    m->capacity = capacity;
    m->blocks = (naive_block *)calloc(m->block_count, sizeof *m->blocks);
    m->tensors = (naive_tensor *)calloc(m->tensor_count, sizeof *m->tensors);
    for (i = 0; i < m->block_count; i++) {
        m->blocks[i].self = (unsigned)i;
        naive_read_block(&m->blocks[i], file + 256 + 128 * i, capacity);
    }
    directory = 256 + 128 * m->block_count;
    for (i = 0; i < m->tensor_count; i++) naive_read_tensor(&m->tensors[i], file, file + directory + 64 * i);
    return m;
}

TEST_UNUSED static naive_model *naive_open(const char *path, size_t capacity)
{
    size_t size;
    uint8_t *file = file_need(path, &size);
    naive_model *m = naive_parse(file, capacity);
    m->kv = JAMBA_KV_F32;
    free(file);
    return m;
}

TEST_UNUSED static void naive_free(naive_model *m)
{
    size_t i;
    for (i = 0; i < m->tensor_count; i++) {
        free(m->tensors[i].weights);
        free(m->tensors[i].second);
    }
    for (i = 0; i < m->block_count; i++) {
        free(m->blocks[i].keys);
        free(m->blocks[i].values);
        free(m->blocks[i].conv);
        free(m->blocks[i].state);
    }
    free(m->tensors);
    free(m->blocks);
    free(m);
}

TEST_UNUSED static void naive_reset(naive_model *m)
{
    size_t i;
    m->position = 0;
    for (i = 0; i < m->block_count; i++) {
        naive_block *b = &m->blocks[i];
        if (!b->conv) continue;
        memset(b->conv, 0, b->channels * b->d_conv * sizeof *b->conv);
        memset(b->state, 0, b->d_inner * b->d_state * sizeof *b->state);
    }
}

/* Copies the recurrent state of all blocks to `room` (NULL: only measures), or back. Returns its size;
 * keys and values need no copy, the position says which count. */
TEST_UNUSED static size_t naive_state(naive_model *m, double *room, bool restore)
{
    size_t i, at = 0;
    for (i = 0; i < m->block_count; i++) {
        naive_block *b = &m->blocks[i];
        size_t conv = b->channels * b->d_conv, state = b->d_inner * b->d_state;
        if (!b->conv) continue;
        if (room) {
            memcpy(restore ? b->conv : room + at, restore ? room + at : b->conv, conv * sizeof *room);
            memcpy(restore ? b->state : room + at + conv, restore ? room + at + conv : b->state, state * sizeof *room);
        }
        at += conv + state;
    }
    return at;
}

static const naive_tensor *naive_find(const naive_model *m, unsigned role, unsigned unit, unsigned index)
{
    size_t i;
    for (i = 0; i < m->tensor_count; i++) {
        const naive_tensor *t = &m->tensors[i];
        if (t->role == role && t->unit == unit && t->index == index) return t;
    }
    test_require(false, "naive", "the model lacks a tensor");
    return NULL;
}

/* ---- linears ------------------------------------------------------------------------------------ */

/* The nearest multiple of `step`. */
static double naive_nearest(naive_model *m, double x, double step)
{
    double exact = step > 0 ? x / step : 0, code = rint(exact), tie = 0.5 - fabs(exact - code);
    if (tie < m->nearest_tie) m->nearest_tie = tie;
    return code * step;
}

/* Codes of 8 bits with one scale for each `block` numbers. */
static void naive_round(naive_model *m, const double *x, size_t count, size_t block, double *out)
{
    size_t start, i;
    for (start = 0; start < count; start += block) {
        size_t end = start + block < count ? start + block : count;
        float most = 0, scale;
        for (i = start; i < end; i++)
            if (fabsf((float)x[i]) > most) most = fabsf((float)x[i]);
        scale = most / 127.0f;
        for (i = start; i < end; i++) {
            out[i] = naive_nearest(m, x[i], (double)scale);
            if (fabs(out[i]) > 127 * (double)scale) out[i] = out[i] < 0 ? -127 * (double)scale : 127 * (double)scale;
        }
    }
}

static void naive_round_f16(naive_model *m, const double *x, size_t count, double *out)
{
    size_t i;
    for (i = 0; i < count; i++) {
        int exponent;
        frexp(x[i], &exponent); /* x = 0.5 to 1 times 2^exponent; below 2^-14 all numbers have one distance */
        out[i] = naive_nearest(m, x[i], ldexp(1, (exponent < -13 ? -13 : exponent) - 11));
    }
}

static void naive_product(naive_model *m, const naive_tensor *t, const double *w, const double *x, double *y)
{
    double *rounded = (double *)malloc(t->cols * sizeof *rounded);
    size_t row, col;
    if (t->type >= JMB_Q8 && !m->keep_activations) naive_round(m, x, t->cols, 64, rounded);
    else memcpy(rounded, x, t->cols * sizeof *rounded);
    for (row = 0; row < t->rows; row++) {
        double sum = 0, size = 0;
        for (col = 0; col < t->cols; col++) {
            double term = w[row * t->cols + col] * rounded[col];
            sum += term;
            size += fabs(term);
        }
        if (m->noise > 0) sum += m->noise * size * ((double)(random_next(&m->random) >> 11) / 4503599627370496.0 - 1);
        y[row] = sum;
    }
    free(rounded);
}

/* y = W x, allocated. */
static double *naive_linear(naive_model *m, unsigned role, unsigned unit, unsigned index, const double *x)
{
    const naive_tensor *t = naive_find(m, role, unit, index);
    double *y = (double *)malloc(t->rows * sizeof *y);
    naive_product(m, t, t->weights, x, y);
    return y;
}

static void naive_add(double *y, const double *x, size_t count)
{
    while (count-- > 0) y[count] += x[count];
}

/* y = W x + b where `biased`, allocated. */
static double *naive_affine(
    naive_model *m, unsigned role, unsigned bias, bool biased, unsigned unit, const double *x)
{
    double *y = naive_linear(m, role, unit, 0, x);
    if (biased) {
        const naive_tensor *b = naive_find(m, bias, unit, 0);
        naive_add(y, b->weights, b->rows);
    }
    return y;
}

/* y_i = w_i x_i / sqrt(mean(x^2) + eps), allocated. */
static double *naive_norm(const naive_model *m, unsigned role, unsigned unit, double eps, const double *x)
{
    const naive_tensor *w = naive_find(m, role, unit, 0);
    double *y = (double *)malloc(w->rows * sizeof *y), sum = 0;
    size_t i;
    for (i = 0; i < w->rows; i++) sum += x[i] * x[i];
    for (i = 0; i < w->rows; i++) y[i] = w->weights[i] * x[i] / sqrt(sum / (double)w->rows + eps);
    return y;
}

static double naive_silu(double x)
{
    return x / (1 + exp(-x));
}

static double naive_act(const naive_block *b, double x)
{
    return b->act == JMB_ACT_GELU ? 0.5 * x * (1 + erf(x / sqrt(2))) : naive_silu(x);
}

static void naive_softmax(double *x, size_t count)
{
    double most = x[0], sum = 0;
    size_t i;
    for (i = 1; i < count; i++)
        if (x[i] > most) most = x[i];
    for (i = 0; i < count; i++) sum += x[i] = exp(x[i] - most);
    for (i = 0; i < count; i++) x[i] /= sum;
}

/* ---- blocks: each returns f(a), allocated ----------------------------------------------------- */

/* Pairs (i, i + head_dim / 2) turn by position * frequency_i. */
static void naive_rotate(const naive_model *m, const naive_block *b, double *x, size_t heads)
{
    const naive_tensor *frequency = naive_find(m, JMB_ROLE_ROPE, b->unit, 0);
    size_t head, i, half = b->head_dim / 2;
    for (head = 0; head < heads; head++) {
        double *v = x + head * b->head_dim;
        for (i = 0; i < half; i++) {
            double angle = (double)((float)m->position * (float)frequency->weights[i]);
            double low = v[i], high = v[i + half];
            v[i] = low * cos(angle) - high * sin(angle);
            v[i + half] = high * cos(angle) + low * sin(angle);
        }
    }
}

/* One query head over all positions up to the present one. */
static void naive_attend(const naive_model *m, const naive_block *b, const double *q, size_t kv_head, double *out)
{
    size_t width = b->kv_heads * b->head_dim, count = m->position + 1, t, i;
    double *weight = (double *)malloc(count * sizeof *weight);
    for (t = 0; t < count; t++) {
        const double *k = b->keys + t * width + kv_head * b->head_dim;
        weight[t] = 0;
        for (i = 0; i < b->head_dim; i++) weight[t] += q[i] * k[i];
        weight[t] *= b->scale;
    }
    naive_softmax(weight, count);
    for (i = 0; i < b->head_dim; i++) {
        out[i] = 0;
        for (t = 0; t < count; t++) out[i] += weight[t] * b->values[t * width + kv_head * b->head_dim + i];
    }
    free(weight);
}

/* y += B (A x), the block's own adapter; `second` for the up projection of a pair. */
static void naive_adapt(
    naive_model *m, const naive_block *b, unsigned A, unsigned B, bool second, const double *x, double *y)
{
    const naive_tensor *t;
    double *low, *more;
    if (b->rank == 0) return;
    t = naive_find(m, B, b->self, 0);
    low = naive_linear(m, A, b->self, 0, x);
    more = (double *)malloc(t->rows * sizeof *more);
    naive_product(m, t, second ? t->second : t->weights, low, more);
    naive_add(y, more, t->rows);
    free(low);
    free(more);
}

static void naive_keep(naive_model *m, const naive_block *b, const double *x, size_t width, double *out)
{
    if (m->kv == JAMBA_KV_Q8) naive_round(m, x, width, b->head_dim, out);
    else if (m->kv == JAMBA_KV_F16) naive_round_f16(m, x, width, out);
    else memcpy(out, x, width * sizeof *x);
}

static double *naive_attention(naive_model *m, naive_block *b, const double *a)
{
    bool biased = (b->flags & JMB_BIAS) != 0;
    double *q = naive_affine(m, JMB_ROLE_Q, JMB_ROLE_Q_BIAS, biased, b->unit, a);
    double *k = naive_affine(m, JMB_ROLE_K, JMB_ROLE_K_BIAS, biased, b->unit, a);
    double *v = naive_affine(m, JMB_ROLE_V, JMB_ROLE_V_BIAS, biased, b->unit, a);
    double *joined = (double *)malloc(b->heads * b->head_dim * sizeof *joined), *out;
    size_t head, width = b->kv_heads * b->head_dim;
    naive_adapt(m, b, JMB_ROLE_Q_A, JMB_ROLE_Q_B, false, a, q);
    naive_adapt(m, b, JMB_ROLE_K_A, JMB_ROLE_K_B, false, a, k);
    naive_adapt(m, b, JMB_ROLE_V_A, JMB_ROLE_V_B, false, a, v);
    if (b->flags & JMB_ROPE) {
        naive_rotate(m, b, q, b->heads);
        naive_rotate(m, b, k, b->kv_heads);
    }
    naive_keep(m, b, k, width, b->keys + m->position * width);
    naive_keep(m, b, v, width, b->values + m->position * width);
    for (head = 0; head < b->heads; head++) /* consecutive query heads share a key head */
        naive_attend(m, b, q + head * b->head_dim, head / (b->heads / b->kv_heads), joined + head * b->head_dim);
    out = naive_affine(m, JMB_ROLE_O, JMB_ROLE_O_BIAS, biased, b->unit, joined);
    free(q);
    free(k);
    free(v);
    free(joined);
    return out;
}

/* In place: u_c = act(bias_c + sum_j w[c, j] x_(t - d_conv + 1 + j)); the last tap meets the newest input.
 * Channel c of u is channel first + c of the state. */
static void naive_convolve(
    const naive_model *m, naive_block *b, unsigned role, unsigned bias, size_t first, double *u)
{
    const naive_tensor *w = naive_find(m, role, b->unit, 0);
    size_t c, j, past = b->d_conv - 1;
    for (c = 0; c < w->rows; c++) {
        double *window = b->conv + (first + c) * b->d_conv, sum = 0;
        window[past] = u[c];
        for (j = 0; j < b->d_conv; j++) sum += w->weights[c * b->d_conv + j] * window[j];
        if (b->flags & JMB_CONV_BIAS) sum += naive_find(m, bias, b->unit, 0)->weights[c];
        memmove(window, window + 1, past * sizeof *window);
        u[c] = naive_act(b, sum);
    }
}

static void naive_norm_in_place(const naive_model *m, const naive_block *b, unsigned role, double **x)
{
    double *y = naive_norm(m, role, b->unit, b->inner_eps, *x);
    free(*x);
    *x = y;
}

/* One channel: h = exp(dt A) h + dt u B; returns h C + D u. */
static double naive_channel(double *h, const double *A, bool one_A, double D, double u, double dt, const double *B,
    const double *C, size_t states)
{
    double y = D * u;
    size_t n;
    for (n = 0; n < states; n++) {
        h[n] = exp(dt * A[one_A ? 0 : n]) * h[n] + dt * u * B[n];
        y += h[n] * C[n];
    }
    return y;
}

/* Mamba: A by channel and state, dt and D by channel, B and C by head. Mamba-2: A, dt and D by head, B and C by
 * group of heads. Allocated. */
static double *naive_scan(const naive_model *m, naive_block *b, const double *u, const double *dt, const double *B,
    const double *C)
{
    const double *A = naive_find(m, JMB_ROLE_A, b->unit, 0)->weights;
    const double *D = naive_find(m, JMB_ROLE_D, b->unit, 0)->weights;
    double *y = (double *)malloc(b->d_inner * sizeof *y);
    bool two = b->kind == JMB_MAMBA2;
    size_t c;
    for (c = 0; c < b->d_inner; c++) {
        size_t head = c / (b->d_inner / b->heads), row = two ? head : c;
        size_t part = two ? head / (b->heads / b->groups) : head;
        y[c] = naive_channel(b->state + c * b->d_state, A + (two ? head : c * b->d_state), two, D[row], u[c], dt[row],
            B + part * b->d_state, C + part * b->d_state, b->d_state);
    }
    return y;
}

static double naive_softplus(double x)
{
    return x > 20 ? x : log1p(exp(x));
}

/* dt of one head's channels, its B and its C, from its share of u. */
static void naive_mamba_head(
    naive_model *m, const naive_block *b, size_t head, const double *u, double *dt, double *B, double *C)
{
    size_t width = b->d_inner / b->heads, c;
    const double *bias = naive_find(m, JMB_ROLE_DT_BIAS, b->unit, 0)->weights + head * width;
    double *low = naive_linear(m, JMB_ROLE_DT_LOW, b->unit, (unsigned)head, u + head * width);
    double *own_B = naive_linear(m, JMB_ROLE_B, b->unit, (unsigned)head, u + head * width);
    double *own_C = naive_linear(m, JMB_ROLE_C, b->unit, (unsigned)head, u + head * width), *own_dt;
    if (b->flags & JMB_DT_NORM) {
        naive_norm_in_place(m, b, JMB_ROLE_DT_NORM, &low);
        naive_norm_in_place(m, b, JMB_ROLE_B_NORM, &own_B);
        naive_norm_in_place(m, b, JMB_ROLE_C_NORM, &own_C);
    }
    own_dt = naive_linear(m, JMB_ROLE_DT, b->unit, (unsigned)head, low);
    for (c = 0; c < width; c++) dt[head * width + c] = naive_softplus(own_dt[c] + bias[c]);
    memcpy(B + head * b->d_state, own_B, b->d_state * sizeof *B);
    memcpy(C + head * b->d_state, own_C, b->d_state * sizeof *C);
    free(low);
    free(own_B);
    free(own_C);
    free(own_dt);
}

static double *naive_mamba(naive_model *m, naive_block *b, const double *a)
{
    bool biased = (b->flags & JMB_BIAS) != 0;
    double *u = naive_affine(m, JMB_ROLE_U, JMB_ROLE_U_BIAS, biased, b->unit, a);
    double *z = naive_affine(m, JMB_ROLE_Z, JMB_ROLE_Z_BIAS, biased, b->unit, a);
    double *B = (double *)malloc(b->heads * b->d_state * sizeof *B), *dt = (double *)malloc(b->d_inner * sizeof *dt);
    double *C = (double *)malloc(b->heads * b->d_state * sizeof *C), *y, *out;
    size_t i;
    naive_convolve(m, b, JMB_ROLE_CONV, JMB_ROLE_CONV_BIAS, 0, u);
    for (i = 0; i < b->heads; i++) naive_mamba_head(m, b, i, u, dt, B, C);
    y = naive_scan(m, b, u, dt, B, C);
    for (i = 0; i < b->d_inner; i++) y[i] *= naive_silu(z[i]);
    out = naive_affine(m, JMB_ROLE_OUT, JMB_ROLE_OUT_BIAS, biased, b->unit, y);
    free(u);
    free(z);
    free(B);
    free(C);
    free(dt);
    free(y);
    return out;
}

/* In place: gated, then each group by itself divided by its root mean square, then weighted. */
static void naive_gate(const naive_model *m, const naive_block *b, double *y, const double *z)
{
    const double *w = naive_find(m, JMB_ROLE_GATE_NORM, b->unit, 0)->weights;
    size_t width = b->d_inner / b->groups, group, i;
    for (group = 0; group < b->groups; group++) {
        double sum = 0;
        for (i = group * width; i < (group + 1) * width; i++) {
            y[i] *= naive_silu(z[i]);
            sum += y[i] * y[i];
        }
        for (i = group * width; i < (group + 1) * width; i++) y[i] *= w[i] / sqrt(sum / (double)width + b->inner_eps);
    }
}

static double *naive_mamba2(naive_model *m, naive_block *b, const double *a)
{
    bool biased = (b->flags & JMB_BIAS) != 0;
    double *u = naive_affine(m, JMB_ROLE_U, JMB_ROLE_U_BIAS, biased, b->unit, a);
    double *z = naive_affine(m, JMB_ROLE_Z, JMB_ROLE_Z_BIAS, biased, b->unit, a);
    double *B = naive_affine(m, JMB_ROLE_B, JMB_ROLE_B_BIAS, biased, b->unit, a);
    double *C = naive_affine(m, JMB_ROLE_C, JMB_ROLE_C_BIAS, biased, b->unit, a);
    double *dt = naive_affine(m, JMB_ROLE_DT, JMB_ROLE_DT_BIAS, true, b->unit, a), *y, *out;
    size_t i;
    naive_convolve(m, b, JMB_ROLE_CONV, JMB_ROLE_CONV_BIAS, 0, u);
    naive_convolve(m, b, JMB_ROLE_CONV_B, JMB_ROLE_CONV_B_BIAS, b->d_inner, B);
    naive_convolve(m, b, JMB_ROLE_CONV_C, JMB_ROLE_CONV_C_BIAS, b->d_inner + b->groups * b->d_state, C);
    for (i = 0; i < b->heads; i++) dt[i] = fmin(fmax(naive_softplus(dt[i]), b->dt_min), b->dt_max);
    y = naive_scan(m, b, u, dt, B, C);
    naive_gate(m, b, y, z);
    out = naive_affine(m, JMB_ROLE_OUT, JMB_ROLE_OUT_BIAS, biased, b->unit, y);
    free(u);
    free(z);
    free(B);
    free(C);
    free(dt);
    free(y);
    return out;
}

/* down(act(gate(a)) * up(a)) of one expert. */
static double *naive_expert(naive_model *m, const naive_block *b, unsigned index, const double *a)
{
    const naive_tensor *t = naive_find(m, JMB_ROLE_GATE_UP, b->unit, index);
    bool biased = b->kind == JMB_MLP && (b->flags & JMB_BIAS);
    double *gate = (double *)malloc(t->rows * sizeof *gate), *up = (double *)malloc(t->rows * sizeof *up), *out;
    size_t i;
    naive_product(m, t, t->weights, a, gate);
    naive_product(m, t, t->second, a, up);
    if (biased) {
        const naive_tensor *bias = naive_find(m, JMB_ROLE_GATE_UP_BIAS, b->unit, 0);
        naive_add(gate, bias->weights, bias->rows);
        naive_add(up, bias->second, bias->rows);
    }
    if (b->kind == JMB_MLP) {
        naive_adapt(m, b, JMB_ROLE_GATE_UP_A, JMB_ROLE_GATE_UP_B, false, a, gate);
        naive_adapt(m, b, JMB_ROLE_GATE_UP_A, JMB_ROLE_GATE_UP_B, true, a, up);
    }
    for (i = 0; i < t->rows; i++) gate[i] = naive_act(b, gate[i]) * up[i];
    out = naive_linear(m, JMB_ROLE_DOWN, b->unit, index, gate);
    if (biased) naive_add(out, naive_find(m, JMB_ROLE_DOWN_BIAS, b->unit, 0)->weights, m->hidden);
    free(gate);
    free(up);
    return out;
}

/* Softmax over all experts, the top_k largest kept, divided by their sum where the flag says so. */
static double *naive_moe(naive_model *m, const naive_block *b, const double *a)
{
    double *weight = naive_linear(m, JMB_ROLE_ROUTER, b->unit, 0, a);
    double *out = (double *)calloc(m->hidden, sizeof *out), sum = 0, least = 0;
    size_t k, e, i;
    bool *chosen = (bool *)calloc(b->experts, sizeof *chosen);
    naive_softmax(weight, b->experts);
    for (k = 0; k < b->top_k; k++) {
        size_t best = b->experts;
        for (e = 0; e < b->experts; e++)
            if (!chosen[e] && (best == b->experts || weight[e] > weight[best])) best = e;
        chosen[best] = true;
        least = weight[best];
        sum += least;
    }
    for (e = 0; e < b->experts; e++)
        if (!chosen[e] && least - weight[e] < m->nearest_choice) m->nearest_choice = least - weight[e];
    for (e = 0; e < b->experts; e++) {
        double *y;
        if (!chosen[e]) continue;
        y = naive_expert(m, b, (unsigned)e, a);
        for (i = 0; i < m->hidden; i++) out[i] += (b->flags & JMB_RENORMALISE ? weight[e] / sum : weight[e]) * y[i];
        free(y);
    }
    free(weight);
    free(chosen);
    return out;
}

/* ---- the model ---------------------------------------------------------------------------------- */

/* What the block computes from, allocated: the norm of x, a, x beside e, or x + a; a linear block reads a as it is. */
static double *naive_input(
    const naive_model *m, const naive_block *b, const double *x, const double *a, const double *e)
{
    double *in = (double *)malloc(2 * m->hidden * sizeof *in), *out;
    memcpy(in, b->input == JMB_FROM_A ? a : x, m->hidden * sizeof *in);
    if (b->input == JMB_FROM_X_AND_E) memcpy(in + m->hidden, e, m->hidden * sizeof *in);
    if (b->input == JMB_FROM_X_PLUS_A) naive_add(in, a, m->hidden);
    if (b->kind == JMB_LINEAR) return in;
    out = naive_norm(m, JMB_ROLE_NORM, b->unit, b->eps, in);
    free(in);
    return out;
}

static double *naive_block_out(naive_model *m, naive_block *b, const double *in)
{
    switch (b->kind) {
    case JMB_ATTENTION: return naive_attention(m, b, in);
    case JMB_MAMBA: return naive_mamba(m, b, in);
    case JMB_MAMBA2: return naive_mamba2(m, b, in);
    case JMB_MLP: return naive_expert(m, b, 0, in);
    case JMB_LINEAR: return naive_linear(m, JMB_ROLE_LINEAR, b->unit, 0, in);
    default: return naive_moe(m, b, in);
    }
}

/* Logits that follow `token`, [vocab]. */
TEST_UNUSED static void naive_step(naive_model *m, int32_t token, double *logits)
{
    const naive_tensor *embed = naive_find(m, JMB_ROLE_EMBED, JMB_NONE, 0);
    const naive_tensor *head = m->own_head ? naive_find(m, JMB_ROLE_HEAD, JMB_NONE, 0) : embed;
    const double *e = embed->weights + (size_t)token * m->hidden;
    double *x = (double *)malloc(m->hidden * sizeof *x), *a = (double *)calloc(m->hidden, sizeof *a), *last;
    size_t i;
    memcpy(x, e, m->hidden * sizeof *x);
    for (i = 0; i < m->block_count; i++) {
        naive_block *b = &m->blocks[i];
        double *in = naive_input(m, b, x, a, e), *out = naive_block_out(m, b, in);
        if (b->output == JMB_SET_A) memcpy(a, out, m->hidden * sizeof *a);
        else naive_add(x, out, m->hidden);
        free(in);
        free(out);
    }
    last = naive_norm(m, JMB_ROLE_FINAL_NORM, JMB_NONE, m->eps, x);
    naive_product(m, head, head->weights, last, logits);
    m->position++;
    free(last);
    free(x);
    free(a);
}

/* ---- sequences that can be compared ------------------------------------------------------------- */

/* Codes from a boundary. Single precision moves an activation by about 1e-7 of its size, a code of 8 bits by 1e-5,
 * the last bit of an f16 by 2e-4 and more. */
TEST_UNUSED static const double clear_of_ties = 5e-5, clear_of_f16_ties = 2e-3;
TEST_UNUSED static const double clear_of_choices = 1e-5; /* in an expert's weight */

/* A sequence whose rounded numbers all keep `clear` of ties, and its choices of experts. Returns how long it has become
 * after so many tries. */
TEST_UNUSED static size_t naive_choose(naive_model *naive, double clear, int32_t *tokens, size_t count, int tries)
{
    size_t size = naive_state(naive, NULL, false), i;
    double *before = (double *)malloc((size + 1) * sizeof *before), *logits;
    uint64_t random = 3;
    logits = (double *)malloc(naive->vocab * sizeof *logits);
    naive_reset(naive);
    for (i = 0; i < count && tries > 0; tries--) {
        naive_state(naive, before, false);
        tokens[i] = (int32_t)(random_next(&random) % naive->vocab);
        naive->nearest_tie = naive->nearest_choice = 1;
        naive_step(naive, tokens[i], logits);
        if (naive->nearest_tie >= clear && naive->nearest_choice >= clear_of_choices) {
            i++;
        } else {
            naive->position--;
            naive_state(naive, before, true);
        }
    }
    free(before);
    free(logits);
    return i;
}

static void naive_run(naive_model *naive, const int32_t *tokens, size_t count, double *logits)
{
    size_t i;
    naive_reset(naive);
    for (i = 0; i < count; i++) naive_step(naive, tokens[i], logits + i * naive->vocab);
}

/* Whether products that are a little off move the logits of a sequence by no more than `most`: where they do, a number
 * stands closer to a boundary than the arithmetic before it is exact. */
TEST_UNUSED static bool naive_is_stable(naive_model *naive, const int32_t *tokens, size_t count, double most)
{
    enum { DRAWS = 4 };
    size_t size = count * naive->vocab, i;
    double *exact = (double *)malloc(size * sizeof *exact), *other = (double *)malloc(size * sizeof *other);
    bool stable = true;
    naive_run(naive, tokens, count, exact);
    naive->noise = ldexp(1, -19);
    naive->random = 1;
    for (i = 0; i < DRAWS * size && stable; i++) {
        if (i % size == 0) naive_run(naive, tokens, count, other);
        stable = fabs(other[i % size] - exact[i % size]) <= most;
    }
    naive->noise = 0;
    free(exact);
    free(other);
    return stable;
}

#endif
