/* pack.h - floats as the 16-row panels of the model file.
 *
 * Everything works on a block of 16 rows with a stride of `cols` rounded up to 64, zeros beyond the
 * edge. Inner loops have a fixed length and plain integer or float operations, so that compilers
 * vectorise them without flags; no libm, so that every machine writes the same bytes.
 */
#ifndef PACK_H
#define PACK_H

#include "tool.h"

enum { PACK_ROWS = 16, PACK_BLOCK = 64 };

/* What packing a tensor met. */
typedef struct pack_report {
    uint64_t not_finite;
    uint64_t too_large; /* weights or scales that f16 cannot hold */
} pack_report;

static bool pack_little_endian(void)
{
    const uint16_t one = 1;
    uint8_t first;
    memcpy(&first, &one, 1);
    return first == 1;
}

/* Little-endian numbers in memory to the host's, and back. */
static void pack_swap_bytes(uint8_t *p, size_t count, size_t size)
{
    size_t i, j;
    if (pack_little_endian()) return;
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

/* `count` is a multiple of 16. */
static float pack_largest(const float *x, size_t count)
{
    float magnitude[PACK_ROWS], largest[PACK_ROWS] = { 0 };
    uint32_t bits[PACK_ROWS];
    size_t i;
    int lane;
    for (i = 0; i < count; i += PACK_ROWS) {
        memcpy(bits, x + i, sizeof bits);
        for (lane = 0; lane < PACK_ROWS; lane++) bits[lane] &= 0x7fffffff;
        memcpy(magnitude, bits, sizeof bits);
        for (lane = 0; lane < PACK_ROWS; lane++)
            largest[lane] = magnitude[lane] > largest[lane] ? magnitude[lane] : largest[lane];
    }
    for (lane = 1; lane < PACK_ROWS; lane++)
        if (largest[lane] > largest[0]) largest[0] = largest[lane];
    return largest[0];
}

/* Block scales are searched in whole numbers, which sum the same in any order: a block as parts of its largest
 * magnitude, cut off. */
enum { PACK_ONE = 32767 };

static void pack_parts(int16_t *parts, const float *x, size_t count, float largest)
{
    float scale = (float)PACK_ONE / largest;
    size_t i;
    for (i = 0; i < count; i++) parts[i] = (int16_t)(x[i] * scale);
}

/* ---- q8: codes to nearest, best scale ------------------------------------------------------ */

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

/* A scale is tried as the multiplier m that takes parts to codes, of 65536 parts each: 255 is the largest
 * whose codes stay within 127. */
enum { PACK_Q8_FIRST = 244, PACK_Q8_LAST = 255 };

/* Sum of the squared distances to the nearest codes, 4096 to a code. They are the low halves of the products. */
static int32_t pack_q8_error(const int16_t parts[PACK_BLOCK], uint32_t m)
{
    int32_t sum = 0;
    int i;
    for (i = 0; i < PACK_BLOCK; i++) {
        uint16_t low = (uint16_t)((uint16_t)parts[i] * m + 0x8008u);
        int16_t off = (int16_t)((low >> 4) - 2048);
        sum += off * off;
    }
    return sum;
}

static uint32_t pack_q8_best(const int16_t parts[PACK_BLOCK])
{
    double least = 0;
    uint32_t m, best = 0;
    for (m = PACK_Q8_LAST; m >= PACK_Q8_FIRST; m--) {
        double error = (double)pack_q8_error(parts, m) / (m * m);
        if (best == 0 || error < least) {
            least = error;
            best = m;
        }
    }
    return best;
}

/* The f16 scale of a block: least squares for the codes of the best scale tried. Among subnormals, which are
 * coarse, it is that of the largest magnitude, rounded up so that no weight is clamped. */
static uint32_t pack_q8_scale(const float x[PACK_BLOCK])
{
    float largest = pack_largest(x, PACK_BLOCK), scale = largest / 127.0f;
    int16_t parts[PACK_BLOCK];
    uint8_t codes[PACK_BLOCK];
    uint32_t half = jmb_float_to_f16(scale);
    int32_t xq = 0, qq = 0;
    int i;
    if (half < 0x800) return half < 0x400 && jmb_f16_to_float(half) < scale ? half + 1 : half;
    pack_parts(parts, x, PACK_BLOCK, largest);
    pack_codes(codes, x, largest * (65536.0f / PACK_ONE) / (float)pack_q8_best(parts));
    for (i = 0; i < PACK_BLOCK; i++) {
        int16_t code = (int16_t)(codes[i] - 128);
        xq += parts[i] * code;
        qq += code * code;
    }
    return jmb_float_to_f16((float)((double)xq / (double)qq * (double)largest / PACK_ONE));
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
            uint32_t scale = pack_q8_scale(x);
            if (scale >= 0x7c00) report->too_large++;
            if (scale == 0 || scale >= 0x7c00) memset(codes, 128, sizeof codes);
            else pack_codes(codes, x, jmb_f16_to_float(scale));
            for (k = 0; k < PACK_BLOCK; k += 4)
                memcpy(panel + ((block * PACK_BLOCK + k) / 4 * PACK_ROWS + (size_t)r) * 4, codes + k, 4);
            tool_store_le(scales + (block * PACK_ROWS + (size_t)r) * 2, scale, 2);
        }
}

/* ---- q4: nearest level, best scale --------------------------------------------------------- */

enum { PACK_Q4_BLOCK = 32, PACK_Q4_STEPS = 15, PACK_Q4_TRIES = 10, PACK_Q4_BINS = 128 };

/* Least scale and distance between the scales tried, in percent of the one that takes the largest magnitude
 * to 127. */
enum { PACK_Q4_START = 74, PACK_Q4_STEP = 5 };

/* From code k to k + 1: how far the level rises, how far its square, and for each scale tried the bin from
 * which parts are nearer to level k + 1. */
typedef struct pack_q4_table {
    int32_t rise[PACK_Q4_STEPS], square_rise[PACK_Q4_STEPS];
    int bins[PACK_Q4_TRIES][PACK_Q4_STEPS];
} pack_q4_table;

static int32_t pack_q4_level(int code)
{
    return (int32_t)jmb_q4_levels[code] - 128;
}

/* Between codes k and k + 1, at a scale of `scale` parts a level. */
static int16_t pack_q4_limit(int k, float scale)
{
    float limit = (float)(pack_q4_level(k) + pack_q4_level(k + 1)) * 0.5f * scale;
    return (int16_t)(limit < INT16_MIN ? INT16_MIN : limit > INT16_MAX ? INT16_MAX : limit);
}

static int pack_q4_bin(int part)
{
    return (part - INT16_MIN) / (65536 / PACK_Q4_BINS);
}

static void pack_q4_fill(pack_q4_table *table)
{
    int k, i;
    for (k = 0; k < PACK_Q4_STEPS; k++) {
        int32_t low = pack_q4_level(k), high = pack_q4_level(k + 1);
        table->rise[k] = high - low;
        table->square_rise[k] = high * high - low * low;
        for (i = 0; i < PACK_Q4_TRIES; i++) {
            float scale = (float)(PACK_Q4_START + PACK_Q4_STEP * i) * (PACK_ONE / 12700.0f);
            table->bins[i][k] = pack_q4_bin(pack_q4_limit(k, scale) + 32768 / PACK_Q4_BINS);
        }
    }
}

/* Sum and number of the parts from each bin on. */
typedef struct pack_q4_sums {
    int32_t sum[PACK_Q4_BINS + 1], count[PACK_Q4_BINS + 1];
} pack_q4_sums;

static void pack_q4_sum(pack_q4_sums *sums, const int16_t parts[PACK_Q4_BLOCK])
{
    int i;
    memset(sums, 0, sizeof *sums);
    for (i = 0; i < PACK_Q4_BLOCK; i++) {
        int bin = pack_q4_bin(parts[i]);
        sums->sum[bin] += parts[i];
        sums->count[bin]++;
    }
    for (i = PACK_Q4_BINS; i-- > 0;) {
        sums->sum[i] += sums->sum[i + 1];
        sums->count[i] += sums->count[i + 1];
    }
}

/* How well the nearest levels fit: with a free scale the squared error is sum x x - (sum x q)^2 / sum q q. */
typedef struct pack_q4_fit {
    int32_t xq, qq;
} pack_q4_fit;

static bool pack_q4_better(const pack_q4_fit *a, const pack_q4_fit *b)
{
    double x = a->xq, y = b->xq;
    return x * x * b->qq > y * y * a->qq;
}

/* The levels are not symmetric, so that a negative scale may fit better: there bins count from the other end.
 * xq then has the scale's sign. */
static pack_q4_fit pack_q4_try(const pack_q4_sums *sums, const pack_q4_table *table, int i, bool negative)
{
    const int *bins = table->bins[i];
    int32_t xq = 0, qq = 0, first = pack_q4_level(0), last = pack_q4_level(15);
    pack_q4_fit fit;
    int k;
    for (k = 0; k < PACK_Q4_STEPS; k++) {
        int bin = negative ? PACK_Q4_BINS - bins[k] : bins[k];
        xq += table->rise[k] * sums->sum[bin];
        qq += table->square_rise[k] * sums->count[bin];
    }
    fit.xq = negative ? last * sums->sum[0] - xq : first * sums->sum[0] + xq;
    fit.qq = negative ? last * last * PACK_Q4_BLOCK - qq : first * first * PACK_Q4_BLOCK + qq;
    return fit;
}

/* The least-squares fit of the best levels found from all starts on both sides. */
static pack_q4_fit pack_q4_search(const int16_t parts[PACK_Q4_BLOCK], const pack_q4_table *table)
{
    pack_q4_fit best = { 0, 1 };
    pack_q4_sums sums;
    int i;
    pack_q4_sum(&sums, parts);
    for (i = 0; i < PACK_Q4_TRIES; i++) {
        pack_q4_fit up = pack_q4_try(&sums, table, i, false), down = pack_q4_try(&sums, table, i, true);
        if (up.xq > 0 && pack_q4_better(&up, &best)) best = up;
        if (down.xq < 0 && pack_q4_better(&down, &best)) best = down;
    }
    return best;
}

/* The nearest codes at a positive scale. */
static void pack_q4_codes(int16_t codes[PACK_Q4_BLOCK], const int16_t parts[PACK_Q4_BLOCK], float scale)
{
    int i, k;
    for (i = 0; i < PACK_Q4_BLOCK; i++) codes[i] = 0;
    for (k = 0; k < PACK_Q4_STEPS; k++) {
        int16_t limit = pack_q4_limit(k, scale);
        for (i = 0; i < PACK_Q4_BLOCK; i++) codes[i] = (int16_t)(codes[i] + (parts[i] > limit));
    }
}

/* The f16 scale of a block, and its codes. */
static uint32_t pack_q4_block(int16_t codes[PACK_Q4_BLOCK], const float *x, const pack_q4_table *table)
{
    int16_t parts[PACK_Q4_BLOCK];
    float largest = pack_largest(x, PACK_Q4_BLOCK), one, exact;
    pack_q4_fit fit;
    uint32_t scale;
    int i;
    memset(codes, 0, PACK_Q4_BLOCK * sizeof *codes);
    if (largest < 1e-30f) return 0;
    pack_parts(parts, x, PACK_Q4_BLOCK, largest);
    fit = pack_q4_search(parts, table);
    if (fit.xq < 0)
        for (i = 0; i < PACK_Q4_BLOCK; i++) parts[i] = (int16_t)-parts[i];
    one = largest / (float)PACK_ONE;
    exact = (float)fit.xq / (float)fit.qq;
    scale = jmb_float_to_f16((exact < 0 ? -exact : exact) * one);
    if (scale > 0 && scale < 0x7c00) pack_q4_codes(codes, parts, jmb_f16_to_float(scale) / one);
    return fit.xq < 0 ? scale | 0x8000 : scale;
}

/* [cols/32][4][16][4] pairs of codes, then [cols/32][16] scales */
static void pack_q4(uint8_t *panel, const float *rows, size_t stride, pack_report *report)
{
    size_t blocks = stride / PACK_Q4_BLOCK, block;
    uint8_t *scales = panel + stride * 8;
    int16_t codes[PACK_Q4_BLOCK];
    pack_q4_table table;
    int r, i;
    pack_q4_fill(&table);
    for (block = 0; block < blocks; block++)
        for (r = 0; r < PACK_ROWS; r++) {
            const float *x = rows + (size_t)r * stride + block * PACK_Q4_BLOCK;
            uint32_t scale = pack_q4_block(codes, x, &table);
            if ((scale & 0x7fff) >= 0x7c00) report->too_large++;
            for (i = 0; i < 16; i++)
                panel[block * 256 + (size_t)(i / 4 * 64 + r * 4 + i % 4)] = (uint8_t)(codes[i] | codes[i + 16] << 4);
            tool_store_le(scales + (block * PACK_ROWS + (size_t)r) * 2, scale, 2);
        }
}

/* Writes one panel of jmb_panel_bytes(type, cols) from 16 rows of stride jmb_pad64(cols). */
JMB_UNUSED static void pack_panel(uint8_t *panel, uint32_t type, const float *rows, size_t cols, pack_report *report)
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
