/* pack.h - weights of a checkpoint as floats, and floats as the 16-row panels of the model file.
 *
 * Everything works on a block of 16 rows with a stride of `cols` rounded up to 64, zeros beyond the
 * edge. Inner loops have a fixed length and plain integer or float operations, so that compilers
 * vectorise them without flags; no libm, so that every machine writes the same bytes.
 */
#ifndef PACK_H
#define PACK_H

#include "safetensors.h"

enum { PACK_ROWS = 16, PACK_BLOCK = 64 };

/* What packing a tensor met. */
typedef struct pack_report {
    uint64_t not_finite;
    uint64_t too_large; /* weights or scales that f16 cannot hold */
} pack_report;

/* Little-endian numbers in memory to the host's, and back. */
static void pack_swap_bytes(uint8_t *p, size_t count, size_t size)
{
    size_t i, j;
    if (jmb_little_endian()) return;
    for (i = 0; i < count; i++, p += size)
        for (j = 0; j < size / 2; j++) {
            uint8_t byte = p[j];
            p[j] = p[size - 1 - j];
            p[size - 1 - j] = byte;
        }
}

/* To nearest, ties to even. For finite x; what is beyond the largest bf16 becomes infinity (0x7f80). */
static void pack_to_bf16(uint16_t out[PACK_BLOCK], const float x[PACK_BLOCK])
{
    uint32_t bits[PACK_BLOCK];
    int i;
    memcpy(bits, x, sizeof bits);
    for (i = 0; i < PACK_BLOCK; i++) out[i] = (uint16_t)((bits[i] + 0x7fff + (bits[i] >> 16 & 1)) >> 16);
}

static void pack_to_f16(uint16_t out[PACK_BLOCK], const float x[PACK_BLOCK])
{
    int i;
    for (i = 0; i < PACK_BLOCK; i++) out[i] = (uint16_t)jmb_float_to_f16(x[i]);
}

/* ---- checkpoint numbers to floats ---------------------------------------------------------- */

static void pack_floats_block(float *out, const uint8_t *raw, st_dtype dtype)
{
    uint16_t half[PACK_BLOCK];
    uint32_t bits[PACK_BLOCK];
    int i;
    if (dtype == ST_F32) {
        memcpy(out, raw, sizeof bits);
        pack_swap_bytes((uint8_t *)out, PACK_BLOCK, 4);
        return;
    }
    memcpy(half, raw, sizeof half);
    pack_swap_bytes((uint8_t *)half, PACK_BLOCK, 2);
    if (dtype == ST_F16) {
        for (i = 0; i < PACK_BLOCK; i++) out[i] = jmb_f16_to_float(half[i]);
        return;
    }
    for (i = 0; i < PACK_BLOCK; i++) bits[i] = (uint32_t)half[i] << 16;
    memcpy(out, bits, sizeof bits);
}

/* One row of `cols` numbers; fills up to a multiple of 64 with zeros. */
static void pack_floats(float *out, const uint8_t *raw, st_dtype dtype, size_t cols)
{
    size_t size = st_dtype_bytes(dtype), i;
    uint8_t tail[PACK_BLOCK * 4];
    for (i = 0; i + PACK_BLOCK <= cols; i += PACK_BLOCK) pack_floats_block(out + i, raw + i * size, dtype);
    if (i == cols) return;
    memset(tail, 0, sizeof tail);
    memcpy(tail, raw + i * size, (cols - i) * size);
    pack_floats_block(out + i, tail, dtype);
}

/* `count` is a multiple of 64. */
static bool pack_all_finite(const float *x, size_t count)
{
    uint32_t seen = 0, bits[PACK_BLOCK];
    size_t i;
    int j;
    for (i = 0; i < count; i += PACK_BLOCK) {
        memcpy(bits, x + i, sizeof bits);
        /* an exponent of all ones carries into the sign bit */
        for (j = 0; j < PACK_BLOCK; j++) seen |= (bits[j] & 0x7fffffff) + 0x00800000;
    }
    return seen < 0x80000000u;
}

/* ---- floats to panels ---------------------------------------------------------------------- */

/* [cols][16] */
static void pack_f32(uint8_t *panel, const float *rows, size_t stride, size_t cols)
{
    size_t c;
    int r;
    for (c = 0; c < cols; c++) {
        float column[PACK_ROWS];
        for (r = 0; r < PACK_ROWS; r++) column[r] = rows[(size_t)r * stride + c];
        memcpy(panel + c * sizeof column, column, sizeof column);
    }
    pack_swap_bytes(panel, cols * PACK_ROWS, 4);
}

/* [cols/2][16][2] of f16 or bf16 */
static void pack_16(uint8_t *panel, const float *rows, size_t stride, size_t cols, bool half, pack_report *report)
{
    size_t block, c;
    int r, i;
    uint32_t limit = half ? 0x7c00 : 0x7f80;
    for (block = 0; block < cols; block += PACK_BLOCK)
        for (r = 0; r < PACK_ROWS; r++) {
            const float *x = rows + (size_t)r * stride + block;
            uint32_t large = 0;
            uint16_t codes[PACK_BLOCK];
            if (half) pack_to_f16(codes, x);
            else pack_to_bf16(codes, x);
            for (i = 0; i < PACK_BLOCK; i++) large += (codes[i] & 0x7fffu) >= limit;
            report->too_large += large;
            pack_swap_bytes((uint8_t *)codes, PACK_BLOCK, 2);
            for (c = 0; c < PACK_BLOCK && block + c < cols; c += 2)
                memcpy(panel + ((block + c) / 2 * PACK_ROWS + (size_t)r) * 4, codes + c, 4);
        }
}

static float pack_largest(const float x[PACK_BLOCK])
{
    float magnitude[PACK_BLOCK], largest[PACK_ROWS] = { 0 };
    uint32_t bits[PACK_BLOCK];
    int i, lane;
    memcpy(bits, x, sizeof bits);
    for (i = 0; i < PACK_BLOCK; i++) bits[i] &= 0x7fffffff;
    memcpy(magnitude, bits, sizeof bits);
    for (i = 0; i < PACK_BLOCK; i += PACK_ROWS)
        for (lane = 0; lane < PACK_ROWS; lane++)
            largest[lane] = magnitude[i + lane] > largest[lane] ? magnitude[i + lane] : largest[lane];
    for (lane = 1; lane < PACK_ROWS; lane++)
        if (largest[lane] > largest[0]) largest[0] = largest[lane];
    return largest[0];
}

/* The f16 scale of a block. Among subnormals, which are coarse, it rounds up: no weight is clamped then. */
static uint32_t pack_scale(float largest)
{
    float exact = largest / 127.0f;
    uint32_t half = jmb_float_to_f16(exact);
    if (half < 0x400 && jmb_f16_to_float(half) < exact) half++;
    return half;
}

/* Codes to nearest, ties to even, of 64 weights; a code is stored plus 128. */
static void pack_codes(uint8_t codes[PACK_BLOCK], const float x[PACK_BLOCK], float scale)
{
    /* Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the float */
    uint32_t bits[PACK_BLOCK];
    float shifted[PACK_BLOCK];
    int i;
    for (i = 0; i < PACK_BLOCK; i++) shifted[i] = x[i] / scale + 12582912.0f;
    memcpy(bits, shifted, sizeof bits);
    for (i = 0; i < PACK_BLOCK; i++) {
        int32_t code = (int32_t)(bits[i] - 0x4b400000u);
        code = code > 127 ? 127 : code < -127 ? -127 : code;
        codes[i] = (uint8_t)(code + 128);
    }
}

/* [cols/4][16][4] codes, then [cols/64][16] scales */
static void pack_q8(uint8_t *panel, const float *rows, size_t stride, pack_report *report)
{
    size_t blocks = stride / PACK_BLOCK, block, k;
    uint8_t *scales = panel + stride * PACK_ROWS, codes[PACK_BLOCK];
    int r;
    for (block = 0; block < blocks; block++)
        for (r = 0; r < PACK_ROWS; r++) {
            const float *x = rows + (size_t)r * stride + block * PACK_BLOCK;
            uint32_t scale = pack_scale(pack_largest(x));
            if (scale >= 0x7c00) report->too_large++;
            if (scale == 0 || scale >= 0x7c00) memset(codes, 128, sizeof codes);
            else pack_codes(codes, x, jmb_f16_to_float(scale));
            for (k = 0; k < PACK_BLOCK; k += 4)
                memcpy(panel + ((block * PACK_BLOCK + k) / 4 * PACK_ROWS + (size_t)r) * 4, codes + k, 4);
            tool_store_le(scales + (block * PACK_ROWS + (size_t)r) * 2, scale, 2);
        }
}

/* ---- q4: nearest level, best scale --------------------------------------------------------- */

enum { PACK_Q4_BLOCK = 32, PACK_Q4_TRIES = 4 };

/* The code nearest to each whole number from -128 to 127. */
typedef struct pack_q4_table {
    uint8_t code[256];
} pack_q4_table;

static void pack_q4_fill(pack_q4_table *table)
{
    int value, code;
    for (value = 0, code = 0; value < 256; value++) {
        while (code < 15 && 2 * value > jmb_q4_levels[code] + jmb_q4_levels[code + 1]) code++;
        table->code[value] = (uint8_t)code;
    }
}

/* Codes of 32 weights at a scale, and the sums that tell how well they fit: of x q and of q q. */
static void pack_q4_codes(
    uint8_t codes[PACK_Q4_BLOCK], const float *x, float scale, const pack_q4_table *table, float *xq, float *qq)
{
    float inverse = 1 / scale, sums[2][4] = { { 0 }, { 0 } };
    int i;
    for (i = 0; i < PACK_Q4_BLOCK; i++) {
        float t = x[i] * inverse + 128.5f, q;
        int value = t < 0 ? 0 : t > 255 ? 255 : (int)t;
        codes[i] = table->code[value];
        q = (float)((int)jmb_q4_levels[codes[i]] - 128);
        sums[0][i % 4] += x[i] * q;
        sums[1][i % 4] += q * q;
    }
    *xq = (sums[0][0] + sums[0][1]) + (sums[0][2] + sums[0][3]);
    *qq = (sums[1][0] + sums[1][1]) + (sums[1][2] + sums[1][3]);
}

/* The least-squares scale of the best codes found from several starts, on both sides: the levels are not
 * symmetric. The squared error is sum x x - (sum x q)^2 / sum q q. */
static float pack_q4_scale(const float *x, const pack_q4_table *table)
{
    static const float starts[PACK_Q4_TRIES] = { 1.0f, 0.92f, 0.84f, 0.76f };
    uint8_t codes[PACK_Q4_BLOCK];
    float largest = 0, best = 0, scale = 0, xq, qq;
    int i;
    for (i = 0; i < PACK_Q4_BLOCK; i++) {
        float magnitude = x[i] < 0 ? -x[i] : x[i];
        if (magnitude > largest) largest = magnitude;
    }
    if (largest < 1e-30f) return 0;
    for (i = 0; i < 2 * PACK_Q4_TRIES; i++) {
        float start = largest / 127.0f * starts[i / 2];
        pack_q4_codes(codes, x, i % 2 ? -start : start, table, &xq, &qq);
        if (xq * xq > best * qq) {
            best = xq * xq / qq;
            scale = xq / qq;
        }
    }
    return scale;
}

/* [cols/32][4][16][4] pairs of codes, then [cols/32][16] scales */
static void pack_q4(uint8_t *panel, const float *rows, size_t stride, pack_report *report)
{
    size_t blocks = stride / PACK_Q4_BLOCK, block;
    uint8_t *scales = panel + stride * 8, codes[PACK_Q4_BLOCK];
    pack_q4_table table;
    float xq, qq;
    int r, i;
    pack_q4_fill(&table);
    for (block = 0; block < blocks; block++)
        for (r = 0; r < PACK_ROWS; r++) {
            const float *x = rows + (size_t)r * stride + block * PACK_Q4_BLOCK;
            uint32_t scale = jmb_float_to_f16(pack_q4_scale(x, &table));
            if ((scale & 0x7fff) >= 0x7c00) report->too_large++;
            if ((scale & 0x7fff) == 0) memset(codes, 0, sizeof codes);
            else pack_q4_codes(codes, x, jmb_f16_to_float(scale), &table, &xq, &qq);
            for (i = 0; i < 16; i++)
                panel[block * 256 + (size_t)(i / 4 * 64 + r * 4 + i % 4)] = (uint8_t)(codes[i] | codes[i + 16] << 4);
            tool_store_le(scales + (block * PACK_ROWS + (size_t)r) * 2, scale, 2);
        }
}

/* Writes one panel of jmb_panel_bytes(type, cols) from 16 rows of stride jmb_pad64(cols). */
static void pack_panel(uint8_t *panel, uint32_t type, const float *rows, size_t cols, pack_report *report)
{
    size_t stride = jmb_pad64(cols);
    if (!pack_all_finite(rows, PACK_ROWS * stride)) {
        report->not_finite++;
        return;
    }
    memset(panel, 0, (size_t)jmb_panel_bytes(type, cols));
    switch (type) {
    case JMB_F32: pack_f32(panel, rows, stride, cols); break;
    case JMB_F16: pack_16(panel, rows, stride, cols, true, report); break;
    case JMB_BF16: pack_16(panel, rows, stride, cols, false, report); break;
    case JMB_Q4: pack_q4(panel, rows, stride, report); break;
    default: pack_q8(panel, rows, stride, report); break;
    }
}

#endif
