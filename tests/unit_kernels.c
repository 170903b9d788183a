/* The numeric building blocks: conversions, exact fma, elementary functions against double precision,
 * hashes against published vectors, the lanes of an instruction set against plain C. That whole models are
 * equal between instruction sets is tested in invariants.c. */
#include "test.h"

#define JAMBA_IMPLEMENTATION
#define JAMBA_STATIC
#include "jamba.h"

static uint64_t seed = 20260101;

static double uniform(double low, double high)
{
    return low + jmb_random(&seed) * (high - low);
}

static uint32_t random_bits(void)
{
    return (uint32_t)uniform(0, 4294967296.0);
}

/* c near -a * b makes the sum cancel, where a sloppy fma shows. */
static float near_product(float a, float b)
{
    return jmb_float_of((jmb_bits_of(a * b) ^ 0x80000000u) + (random_bits() & 15));
}

/* a * b beside half of the last place of c: in double the sum looks half way between two floats, and is not. */
static void near_half(bool subnormal, float *a, float *b, float *c)
{
    uint32_t bits = random_bits();
    float off = (float)(random_bits() % 64) * 0x1p-23f;
    int exponent;
    if (subnormal) bits &= 0x807fffffu;
    exponent = (int)(bits >> 23 & 255);
    exponent = (exponent ? exponent : 1) - 127 - 24; /* of the half place */
    *a = ldexpf(1 + off, exponent / 2);
    *b = ldexpf(random_bits() & 1 ? 1 - off : 1 + off, exponent - exponent / 2);
    if (random_bits() & 1) *a = -*a;
    *c = jmb_float_of(bits);
}

static float special(void)
{
    static const uint32_t bits[] = { 0, 1, 0x007fffff, 0x00800000, 0x00800001, 0x3f800000, 0x3f800001, 0x33800000,
        0x4b800000, 0x7f7fffff, 0x7f800000, 0x7fc00000, 0x34000000, 0x7f000000, 0x0b800000, 0x20000000 };
    return jmb_float_of(bits[random_bits() % 16] | (random_bits() << 31));
}

/* Number i of the operands that fma is tried on. Subnormal and special ones stay out of some groups of 16, since
 * one lane may make the others take a longer way. */
static void fma_operands(long i, float *a, float *b, float *c)
{
    *a = jmb_float_of(random_bits());
    *b = jmb_float_of(random_bits());
    *c = i & 1 ? near_product(*a, *b) : jmb_float_of(random_bits());
    if (i % 4 == 2) near_half(i / 16 % 2 == 1, a, b, c);
    if (i % 8 == 4 && i / 32 % 2 == 1) {
        *a = special();
        *b = special();
        *c = special();
    }
}

static bool same_number(float x, float y)
{
    return jmb_bits_of(x) == jmb_bits_of(y) || (x != x && y != y);
}

/* A type of 113 bits, where there is one: products of floats are exact in it. */
#if defined(__SIZEOF_FLOAT128__)
__extension__ typedef __float128 wide;
#define HAS_WIDE 1
#elif LDBL_MANT_DIG == 113
typedef long double wide;
#define HAS_WIDE 1
#else
#define HAS_WIDE 0
#endif

#if HAS_WIDE
/* That neighbour of an even number which is odd: farther from zero, or nearer. */
static wide to_odd(wide x, bool farther)
{
    const uint16_t one = 1;
    uint8_t bytes[sizeof x], little;
    int at, step;
    memcpy(bytes, &x, sizeof x);
    memcpy(&little, &one, 1);
    at = little ? 0 : 15;
    step = little ? 1 : -1;
    if (bytes[at] & 1) return x;
    if (farther) bytes[at] |= 1;
    else while (bytes[at]-- == 0) at += step; /* borrows */
    memcpy(&x, bytes, sizeof x);
    return x;
}

/* The sum, which 113 bits do not always hold, is rounded to odd by its error, from two-sum; so that the second
 * rounding is right. C libraries differ: mingw's fmaf rounds twice. */
static float exact_fma(float a, float b, float c)
{
    wide p = (wide)a * (wide)b, d = (wide)c, sum = p + d, t = sum - p;
    wide error = (p - (sum - t)) + (d - t);
    if (error > 0 || error < 0) sum = to_odd(sum, (error > 0) == (sum > 0));
    return (float)sum;
}
#else
static float exact_fma(float a, float b, float c)
{
    return fmaf(a, b, c);
}
#endif

static void check_fma(void)
{
    long wrong = 0, i;
    for (i = 0; i < 2000000; i++) {
        float a, b, c;
        fma_operands(i, &a, &b, &c);
        if (!same_number(jmb_fma1_scalar(a, b, c), exact_fma(a, b, c))) wrong++;
    }
    CHECK(wrong == 0);
}

/* ---- lanes ---------------------------------------------------------------------------------------- */

/* Operands of the lanes, and what one instruction set makes of them. */
typedef struct lanes_in {
    float a[16], b[16], c[16];
    float whole[16], power[16]; /* integers in [-126, 127] and [-252, 254] */
    float mantissa[16];         /* in [1/2, 2) */
    uint8_t half[32];
    uint8_t bytes[64];
    int8_t codes[4];
    int32_t sum; /* of the codes */
} lanes_in;

enum { LANES_FLOATS = 22 };

typedef struct lanes_out {
    float f[LANES_FLOATS][16], swapped[16];
    int8_t i8[16];
} lanes_out;

/* vi_start takes the sum of all the activations that vi_dot then sees. v_raise gets what jmb_exp2 gives it. Of
 * v_swap(a, d) the lanes below d count: out->f[21] has them from lane d on, added to those of a. */
#define LANES_OF(set, target)                                                                                \
    target static void lanes_##set(const lanes_in *in, lanes_out *out)                                       \
    {                                                                                                        \
        jmb_v16_##set a = jmb_v_load_##set(in->a), b = jmb_v_load_##set(in->b), c = jmb_v_load_##set(in->c); \
        jmb_v16_##set r[2];                                                                                  \
        jmb_vb64_##set low, high;                                                                            \
        int32_t sum = in->sum;                                                                               \
        jmb_v_store_##set(out->f[0], jmb_v_add_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[1], jmb_v_sub_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[2], jmb_v_mul_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[3], jmb_v_div_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[4], jmb_v_sqrt_##set(a));                                                   \
        jmb_v_store_##set(out->f[5], jmb_v_max_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[6], jmb_v_min_##set(a, b));                                                 \
        jmb_v_store_##set(out->f[7], jmb_v_fma_##set(a, b, c));                                              \
        jmb_v_store_##set(out->f[8], jmb_v_fnma_##set(a, b, c));                                             \
        jmb_v_store_##set(out->f[9], jmb_v_round_##set(c));                                                  \
        jmb_v_store_##set(out->f[10], jmb_v_pow2_##set(jmb_v_load_##set(in->whole)));                        \
        jmb_v_store_##set(out->f[11], jmb_v_select_gt_##set(a, b, c, a));                                    \
        jmb_v_store_##set(out->f[12], jmb_v_load_f16_##set(in->half));                                       \
        jmb_v_pair_f16_##set(in->bytes, &r[0], &r[1]);                                                       \
        jmb_v_store_##set(out->f[13], jmb_v_add_##set(r[0], r[1]));                                          \
        jmb_v_pair_bf16_##set(in->bytes, &r[0], &r[1]);                                                      \
        jmb_v_store_##set(out->f[14], r[0]);                                                                 \
        jmb_v_store_##set(out->f[15], r[1]);                                                                 \
        low = jmb_vb_load_##set(in->bytes);                                                                  \
        jmb_v_store_##set(                                                                                   \
            out->f[16], jmb_vi_float_##set(jmb_vi_dot_##set(jmb_vi_start_##set(sum), low, in->codes)));      \
        jmb_vb_levels_##set(in->bytes, &low, &high);                                                         \
        jmb_v_store_##set(out->f[17], jmb_vi_float_##set(jmb_vi_dot_##set(                                   \
            jmb_vi_dot_##set(jmb_vi_start_##set(2 * sum), low, in->codes), high, in->codes)));               \
        jmb_v_store_##set(out->f[18], jmb_v_load_i8_##set((const int8_t *)in->bytes));                       \
        b = jmb_v_load_##set(in->mantissa);                                                                  \
        jmb_v_store_##set(out->f[19], jmb_v_ldexp_##set(b, jmb_v_load_##set(in->power)));                    \
        c = jmb_v_add_##set(jmb_v_load_##set(in->whole), jmb_v_set1_##set(12582912.0f));                     \
        jmb_v_store_##set(out->f[20], jmb_v_raise_##set(b, c));                                              \
        out->f[21][0] = 0;                                                                                   \
        LANES_SWAPPED(set, 1) LANES_SWAPPED(set, 2) LANES_SWAPPED(set, 4) LANES_SWAPPED(set, 8)              \
        jmb_v_store_i8_##set(out->i8, jmb_v_load_##set(in->whole));                                          \
    }
#define LANES_SWAPPED(set, d)                                                    \
    jmb_v_store_##set(out->swapped, jmb_v_add_##set(a, jmb_v_swap_##set(a, d))); \
    memcpy(out->f[21] + (d), out->swapped, (d) * sizeof(float));

LANES_OF(scalar, )
#if JMB_X86_KERNELS
LANES_OF(avx2, JMB_TARGET("avx2,fma,f16c"))
LANES_OF(avx512, JMB_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))
#if JMB_AVXVNNI_KERNELS
LANES_OF(avxvnni, JMB_TARGET("avx2,fma,f16c,avxvnni"))
#endif
#elif JMB_NEON_KERNELS
#if defined(__clang__)
#define TARGET_ARM(extension) JMB_TARGET(extension)
#else
#define TARGET_ARM(extension) JMB_TARGET("arch=armv8.2-a+" extension)
#endif
LANES_OF(neon, )
LANES_OF(dotprod, TARGET_ARM("dotprod"))
#if JMB_I8MM_KERNELS
LANES_OF(i8mm, TARGET_ARM("i8mm"))
#endif
#elif JMB_WASM_KERNELS
LANES_OF(wasm, )
#endif

static bool always(void)
{
    return true;
}

/* The instruction sets of this build, worse ones first. */
static const struct {
    jamba_cpu cpu;
    bool (*detected)(void); /* besides the CPU's best being `cpu` or a later one */
    const jmb_kernels *kernels;
    void (*lanes)(const lanes_in *in, lanes_out *out);
} sets[] = {
    { JAMBA_CPU_SCALAR, always, &jmb_kernels_of_scalar, lanes_scalar },
#if JMB_X86_KERNELS
    { JAMBA_CPU_AVX2, always, &jmb_kernels_of_avx2, lanes_avx2 },
#if JMB_AVXVNNI_KERNELS
    { JAMBA_CPU_AVXVNNI, jmb_has_avxvnni, &jmb_kernels_of_avxvnni, lanes_avxvnni },
#endif
    { JAMBA_CPU_AVX512, always, &jmb_kernels_of_avx512, lanes_avx512 },
#elif JMB_NEON_KERNELS
    { JAMBA_CPU_NEON, always, &jmb_kernels_of_neon, lanes_neon },
    { JAMBA_CPU_NEON, jmb_has_dotprod, &jmb_kernels_of_dotprod, lanes_dotprod },
#if JMB_I8MM_KERNELS
    { JAMBA_CPU_NEON, jmb_has_i8mm, &jmb_kernels_of_i8mm, lanes_i8mm },
#endif
#elif JMB_WASM_KERNELS
    { JAMBA_CPU_WASM, always, &jmb_kernels_of_wasm, lanes_wasm },
#endif
};
enum { SETS = sizeof sets / sizeof *sets };

static bool usable(int set)
{
    return sets[set].cpu <= jmb_detect_cpu() && sets[set].detected();
}

/* What the library takes where nobody asks for less. */
static void check_choice(void)
{
    int best = SETS - 1;
    while (!usable(best)) best--;
    CHECK(jmb_choose_kernels(JAMBA_CPU_BEST) == sets[best].kernels);
}

static void lanes_operands(long round, lanes_in *in)
{
    int i;
    for (i = 0; i < 16; i++) {
        fma_operands(round * 16 + i, &in->a[i], &in->b[i], &in->c[i]);
        in->whole[i] = (float)((int)(random_bits() % 254) - 126);
        in->power[i] = (float)((int)(random_bits() % 507) - 252);
        in->mantissa[i] = jmb_float_of((126u << 23) + (random_bits() >> 8));
        jmb_store_u16(in->half + 2 * i, (uint32_t)(round * 16 + i)); /* each of them */
    }
    for (i = 0; i < 64; i++) in->bytes[i] = (uint8_t)random_bits();
    for (in->sum = 0, i = 0; i < 4; i++) {
        in->codes[i] = (int8_t)((int)(random_bits() % 255) - 127);
        in->sum += in->codes[i];
    }
}

static void check_lanes(void)
{
    lanes_in in;
    lanes_out want, got;
    bool present[SETS]; /* asked once, as CPUID is slow in virtual machines */
    long round;
    int set, i, t;
    for (set = 0; set < SETS; set++) present[set] = usable(set);
    for (round = 0; round < 200000; round++) {
        lanes_operands(round, &in);
        lanes_scalar(&in, &want);
        for (set = 1; set < SETS; set++) {
            if (!present[set]) continue;
            sets[set].lanes(&in, &got);
            for (t = 0; t < LANES_FLOATS; t++)
                for (i = 0; i < 16 && memcmp(got.f[t], want.f[t], sizeof got.f[t]) != 0; i++)
                    CHECK_THAT(same_number(got.f[t][i], want.f[t][i]),
                        "%s: result %d is %.9g, not %.9g, of %.9g %.9g %.9g", sets[set].kernels->name, t,
                        (double)got.f[t][i], (double)want.f[t][i], (double)in.a[i], (double)in.b[i], (double)in.c[i]);
            CHECK(memcmp(got.i8, want.i8, sizeof got.i8) == 0);
        }
    }
}

static void check_f16(void)
{
    uint32_t h;
    int wrong = 0;
    for (h = 0; h < 65536; h++) {
        bool nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
        if (!nan && jmb_float_to_f16(jmb_f16_to_float(h)) != h) wrong++;
    }
    CHECK(wrong == 0);
    CHECK(jmb_float_to_f16(65519.996f) == 0x7bff);  /* rounds down to the largest */
    CHECK(jmb_float_to_f16(65520.0f) == 0x7c00);    /* half way: to even, infinity */
    CHECK(jmb_float_to_f16(2.9802322e-8f) == 0);    /* half of the smallest: to even, zero */
    CHECK(jmb_float_to_f16(2.9802326e-8f) == 1);
    CHECK(jmb_float_to_f16(1.00048828125f) == 0x3c00); /* half way: to even */
    CHECK(jmb_float_to_f16(1.00146484375f) == 0x3c02);
}

typedef struct accuracy {
    double exp, exp2, log1p, sin, cos, silu;
} accuracy;

static void worst(double *so_far, double got, double expected, double unit)
{
    double error = fabs(got - expected) / unit;
    if (error > *so_far) *so_far = error;
}

static void measure(accuracy *a, double angle)
{
    float x[16], t[16], w[16];
    jmb_v16_scalar sine, cosine, e, d2, l, s;
    int i;
    for (i = 0; i < 16; i++) {
        x[i] = (float)uniform(-87, 88);
        t[i] = (float)uniform(0, 1);
        w[i] = (float)uniform(0, angle);
    }
    e = jmb_exp_scalar(jmb_v_load_scalar(x));
    d2 = jmb_exp2_scalar(jmb_v_load_scalar(x));
    l = jmb_log1p_scalar(jmb_v_load_scalar(t));
    s = jmb_silu_scalar(jmb_v_load_scalar(x));
    jmb_sincos_scalar(jmb_v_load_scalar(w), &sine, &cosine);
    for (i = 0; i < 16; i++) {
        double d = (double)x[i];
        worst(&a->exp, (double)e.f[i], exp(d), exp(d));
        worst(&a->exp2, (double)d2.f[i], exp2(d), exp2(d));
        worst(&a->log1p, (double)l.f[i], log1p((double)t[i]), log1p((double)t[i]) + 1e-30);
        worst(&a->silu, (double)s.f[i], d / (1 + exp(-d)), fabs(d / (1 + exp(-d))) + 1e-30);
        worst(&a->sin, (double)sine.f[i], sin((double)w[i]), 1);
        worst(&a->cos, (double)cosine.f[i], cos((double)w[i]), 1);
    }
}

static void check_accuracy(void)
{
    accuracy a = { 0, 0, 0, 0, 0, 0 };
    int i;
    for (i = 0; i < 20000; i++) measure(&a, i % 2 ? 16777216.0 : 100.0);
    CHECK(a.exp < 1.2e-7);   /* relative; 2^-23 is 1.19e-7 */
    CHECK(a.exp2 < 1.2e-7);
    CHECK(a.log1p < 2.4e-7); /* relative */
    CHECK(a.silu < 3.6e-7);  /* relative */
    CHECK(a.sin < 1.8e-7);   /* absolute */
    CHECK(a.cos < 1.8e-7);
}

static float exp_of(float x)
{
    return jmb_exp_scalar(jmb_v_set1_scalar(x)).f[0];
}

static float exp2_of(float x)
{
    return jmb_exp2_scalar(jmb_v_set1_scalar(x)).f[0];
}

static void check_exp2_limits(void)
{
    CHECK(exp2_of(0) == 1.0f);
    CHECK(exp2_of(1e-30f) == 1.0f && exp2_of(-1e-30f) == 1.0f);
    CHECK(exp2_of(-126.0f) == FLT_MIN && exp2_of(-1e30f) == FLT_MIN && exp2_of(-INFINITY) == FLT_MIN);
    CHECK(exp2_of(127.75f) > 2.8e38f && exp2_of(127.75f) < 2.9e38f);
    CHECK(jmb_bits_of(exp2_of(128.0f)) == 0x7f800000u && jmb_bits_of(exp2_of(INFINITY)) == 0x7f800000u);
    CHECK(!jmb_finite(exp2_of(jmb_float_of(0x7fc00000u))));
}

static void check_limits(void)
{
    check_exp2_limits();
    CHECK(exp_of(0) == 1.0f);
    CHECK(exp_of(-1000.0f) == 0.0f);
    CHECK(jmb_bits_of(exp_of(1000.0f)) == 0x7f800000u);
    CHECK(exp_of(-3e38f) == 0.0f);
    CHECK(exp_of(-95.0f) > 0.0f && exp_of(-95.0f) < 1e-38f); /* subnormal */
    CHECK(jmb_softplus_scalar(jmb_v_set1_scalar(50.0f)).f[0] == 50.0f);
    CHECK(jmb_softplus_scalar(jmb_v_set1_scalar(-200.0f)).f[0] == 0.0f);
    CHECK(jmb_silu_scalar(jmb_v_set1_scalar(-200.0f)).f[0] == 0.0f);
    CHECK(jmb_round1_scalar(2.5f) == 2.0f && jmb_round1_scalar(-3.5f) == -4.0f);
    CHECK(jmb_round1_scalar(8388609.0f) == 8388609.0f);
}

static void check_quantise(void)
{
    float x[64], scale;
    int8_t codes[64];
    int32_t sums[2], expected = 0, i;
    for (i = 0; i < 64; i++) x[i] = (float)uniform(-3, 3);
    x[17] = -4.0f;
    jmb_quantise_block_scalar(x, 64, codes, &scale, sums);
    CHECK(scale == (float)(4.0f / 127.0f));
    CHECK(codes[17] == -127);
    for (i = 0; i < 64; i++) {
        expected += codes[i];
        if (i == 31) CHECK(sums[0] == expected);
        CHECK(fabsf(x[i] - (float)codes[i] * scale) <= scale * 0.50001f);
    }
    CHECK(sums[0] + sums[1] == expected);
    jmb_quantise_block_scalar(x, 3, codes, &scale, sums);
    for (i = 3; i < 64; i++) CHECK(codes[i] == 0);
    memset(x, 0, sizeof x);
    jmb_quantise_block_scalar(x, 64, codes, &scale, sums);
    CHECK(scale == 0 && sums[0] == 0 && sums[1] == 0);
    x[5] = jmb_float_of(0x7fc00000u);
    jmb_quantise_block_scalar(x, 64, codes, &scale, sums);
    CHECK(!jmb_finite(scale));
    x[5] = jmb_float_of(0xff800000u);
    jmb_quantise_block_scalar(x, 64, codes, &scale, sums);
    CHECK(!jmb_finite(scale));
}

static void check_experts(void)
{
    float p[5] = { 0.1f, 0.4f, 0.2f, 0.4f, 0.05f };
    int32_t chosen[5];
    int i;
    jmb_choose_experts_scalar(p, 5, 2, chosen);
    CHECK(chosen[0] == 1 && chosen[1] == 3);
    jmb_choose_experts_scalar(p, 5, 1, chosen);
    CHECK(chosen[0] == 1); /* the lower of two equals */
    for (i = 0; i < 5; i++) p[i] = jmb_float_of(0x7fc00000u);
    jmb_choose_experts_scalar(p, 5, 3, chosen);
    CHECK(chosen[0] == 0 && chosen[1] == 1 && chosen[2] == 2);
}

/* One linear of a few panels, all of its memory inside; COLS: at most. */
enum { ROWS = 13, COLS = 201, PANELS = 7, SCRATCH = ROWS * (256 + PANELS * 16) };

typedef struct linear {
    jmb_tensor w;
    jmb_op op;
    jmb_pass pass;
    float scratch[SCRATCH], expected[SCRATCH];
    uint8_t codes[ROWS * 384];
    uint8_t weights[PANELS * COLS * 64]; /* in f32, the largest type */
} linear;

static void random_weights(linear *l)
{
    size_t panel = (size_t)jmb_panel_bytes(l->w.type, l->w.cols), codes, i;
    codes = l->w.type == JMB_Q8 ? 256 * 16 : l->w.type == JMB_Q4 ? 256 * 8 : 0;
    for (i = 0; i < sizeof l->weights; i++) l->weights[i] = (uint8_t)(random_bits() >> 24);
    for (i = 1; i < sizeof l->weights; i += 2) /* floats and scales below 2 */
        if (i % panel >= codes) l->weights[i] &= 0xbf;
}

static void make_linear(linear *l, uint32_t type, uint32_t cols, uint32_t panels)
{
    uint32_t row, i;
    memset(l, 0, sizeof *l);
    l->w.type = type;
    l->w.role = JMB_ROLE_DOWN;
    l->w.rows = 16 * panels;
    l->w.cols = cols;
    l->w.data = l->weights;
    random_weights(l);
    l->op.in.width = cols;
    l->op.in.stride = 256;
    l->op.out[0].width = l->op.out[0].stride = 16 * panels;
    l->op.out[0].offset = 256;
    l->op.flags = type >= JMB_Q8 ? (uint32_t)JMB_OP_CODES : 0;
    l->op.w[0] = &l->w;
    l->op.parts = 1;
    l->op.tiles[0][0].outputs = panels;
    l->op.tiles[0][0].rows = UINT32_MAX;
    l->pass.capacity = ROWS;
    l->pass.scratch = l->scratch;
    l->pass.codes = l->codes;
    l->pass.codes_row = jmb_codes_bytes(cols);
    for (row = 0; row < ROWS; row++) {
        for (i = 0; i < cols; i++) l->scratch[row * 256 + i] = (float)uniform(-1, 1);
        jmb_run_quantise_scalar(&l->pass, &l->op, row);
    }
}

/* Any count of rows, full tiles or not: the bits that plain C gives all of them. */
static void check_linear(linear *l, const jmb_kernels *kernels)
{
    const size_t width = l->op.out[0].width;
    float *out = l->scratch + 256 * ROWS;
    for (l->pass.rows = 1; l->pass.rows <= ROWS; l->pass.rows++) {
        memset(out, 0, ROWS * width * sizeof *out);
        kernels->run[JMB_OP_LINEAR](&l->pass, &l->op, 0);
        CHECK_THAT(memcmp(out, l->expected, l->pass.rows * width * sizeof *out) == 0,
            "%s %s: %u rows, %u inputs, %u outputs", kernels->name, jmb_type_names[l->w.type], l->pass.rows, l->w.cols,
            l->w.rows);
    }
}

static void check_linears_of(uint32_t type, uint32_t cols, uint32_t panels)
{
    static linear l;
    int set;
    make_linear(&l, type, cols, panels);
    l.pass.rows = ROWS;
    jmb_run_linear_scalar(&l.pass, &l.op, 0);
    memcpy(l.expected, l.scratch + 256 * ROWS, ROWS * 16 * panels * sizeof *l.expected);
    CHECK(l.expected[0] != 0 && jmb_finite(l.expected[0]));
    for (set = 0; set < SETS; set++)
        if (usable(set)) check_linear(&l, sets[set].kernels);
}

static void check_linears(void)
{
    uint32_t type, panels;
    for (type = 0; type < JMB_TYPES; type++)
        for (panels = 1; panels <= PANELS; panels++) {
            check_linears_of(type, COLS, panels); /* odd: the 16-bit types store columns in pairs */
            check_linears_of(type, COLS - 1, panels);
        }
}

static void sha256_hex(const char *text, size_t repeat, char hex[65])
{
    static const char digits[] = "0123456789abcdef";
    jmb_sha256 hash;
    uint8_t digest[32];
    size_t i;
    jmb_sha256_begin(&hash);
    for (i = 0; i < repeat; i++) jmb_sha256_add(&hash, text, strlen(text));
    jmb_sha256_end(&hash, digest);
    for (i = 0; i < 64; i++) hex[i] = digits[digest[i / 2] >> (i % 2 ? 0 : 4) & 15];
    hex[64] = 0;
}

static void check_sha256(void)
{
    char hex[65];
    sha256_hex("", 1, hex);
    CHECK(strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == 0);
    sha256_hex("abc", 1, hex);
    CHECK(strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad") == 0);
    sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1, hex);
    CHECK(strcmp(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1") == 0);
    sha256_hex("a", 1000000, hex);
    CHECK(strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0") == 0);
}

static void check_hash64(void)
{
    uint8_t data[64] = { 0 };
    uint64_t plain = jmb_hash64(JMB_HASH_SEED, data, sizeof data);
    int bit, same = 0;
    for (bit = 0; bit < 512; bit++) {
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (jmb_hash64(JMB_HASH_SEED, data, sizeof data) == plain) same++;
        data[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    CHECK(same == 0);
    CHECK(jmb_hash64(jmb_hash64(JMB_HASH_SEED, data, 24), data + 24, 40) == plain);
}

static void check_arithmetic(void)
{
    char text[32];
    CHECK(jmb_add(UINT64_MAX, 1) == UINT64_MAX);
    CHECK(jmb_add(3, 4) == 7);
    CHECK(jmb_mul(UINT64_MAX / 2, 3) == UINT64_MAX);
    CHECK(jmb_mul(0, UINT64_MAX) == 0 && jmb_mul(UINT64_MAX, 0) == 0);
    CHECK(jmb_round_up(UINT64_MAX - 3, 64) == UINT64_MAX);
    CHECK(jmb_round_up(65, 64) == 128 && jmb_round_up(64, 64) == 64 && jmb_round_up(0, 64) == 0);
    jmb_format(text, sizeof text, "%d %u %s%%", -12, 7u, "x");
    CHECK(strcmp(text, "-12 7 x%") == 0);
    jmb_format(text, 8, "%s", "longer than that");
    CHECK(strcmp(text, "longer ") == 0);
    jmb_format(text, sizeof text, "%l %z", UINT64_MAX, (size_t)0);
    CHECK(strcmp(text, "18446744073709551615 0") == 0);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = { { "fma is exact", check_fma }, { "lanes equal plain C", check_lanes },
        { "f16 conversion", check_f16 },
        { "accuracy of elementary functions", check_accuracy }, { "limits of elementary functions", check_limits },
        { "activation codes", check_quantise }, { "linears of every instruction set", check_linears },
        { "choice of experts", check_experts }, { "sha-256", check_sha256 },
        { "64-bit hash", check_hash64 }, { "checked arithmetic and messages", check_arithmetic } };
    test_start(argc, argv);
    test_run(tests, sizeof tests / sizeof tests[0]);
    if (test_begin("best kernels: %s", jmb_choose_kernels(JAMBA_CPU_BEST)->name)) {
        check_choice();
        test_end();
    }
    return test_summary();
}
