/* quantised.c - storage that rounds the weights or the cache, against the naive forward of the rounded numbers
 *
 * f32, f16 and bf16 take float activations. q8 rounds activations too: there a value on the boundary
 * between two codes may go either way in single and in double precision, and everything after it
 * differs by up to a tenth of a logit's spread. So q8 is compared on sequences chosen by the naive forward
 * so that no activation of theirs comes near a boundary; then it has to agree as closely as the others. */
#include "naive.h"

static const double bound = 2e-4;
enum { SEQUENCE = 24, TRIES = 20000 };

/* Logits of the library and of the naive forward for one sequence; returns the largest difference. */
static double compare_sequence(const jamba_model *model, naive_model *naive, const int32_t *tokens, size_t count)
{
    jamba_session_params params;
    size_t vocab = naive->vocab, i, j;
    double worst = 0, *want = (double *)malloc(vocab * sizeof *want);
    float *got;
    memset(&params, 0, sizeof params);
    params.kv_type = naive->kv;
    got = model_logits(model, &params, tokens, count, 0);
    naive_reset(naive);
    for (i = 0; i < count && got; i++) {
        naive_step(naive, tokens[i], want);
        for (j = 0; j < vocab; j++) {
            double error = fabs((double)got[i * vocab + j] - want[j]);
            if (!(error <= worst)) worst = error == error ? error : (double)INFINITY;
        }
    }
    free(want);
    free(got);
    return got ? worst : (double)INFINITY;
}

static void check_floats(const char *name, const char *type, const jamba_model *model, naive_model *naive)
{
    size_t count;
    int32_t *prompt = (int32_t *)golden_read(name, "prompt.i32", &count);
    double worst = compare_sequence(model, naive, prompt, count);
    CHECK_THAT(worst <= bound, "differs from the naive forward by %.3g, allowed %.3g", worst, bound);
    printf("quantised: %-24s %-5s worst error %.2e\n", name, type, worst);
    free(prompt);
}

/* How far a rounded cache moves a logit at most. Logits reach 10 here; the heads have 8 to 32 numbers and
 * weights at random, which is harder than any trained model. */
static const double cache_bound[2] = { 0.1, 1.5 };

static double cache_drift(const jamba_model *model, jamba_kv_type kv, const int32_t *tokens)
{
    jamba_session_params params;
    float *exact, *rounded;
    double worst;
    memset(&params, 0, sizeof params);
    params.kv_type = JAMBA_KV_F32;
    exact = model_logits(model, &params, tokens, SEQUENCE, 0);
    params.kv_type = kv;
    rounded = model_logits(model, &params, tokens, SEQUENCE, 0);
    worst = exact && rounded ? test_worst(rounded, exact, SEQUENCE * (size_t)model_vocab(model)) : (double)INFINITY;
    free(exact);
    free(rounded);
    return worst;
}

static void check_q8(const char *name, const jamba_model *model, naive_model *naive)
{
    int32_t tokens[SEQUENCE];
    double worst, plain;
    if (!CHECK(naive_choose(naive, clear_of_ties, tokens, SEQUENCE, TRIES) == SEQUENCE)) return;
    worst = compare_sequence(model, naive, tokens, SEQUENCE);
    CHECK_THAT(worst <= bound, "differs from the naive forward by %.3g, allowed %.3g", worst, bound);
    naive->keep_activations = true;
    plain = compare_sequence(model, naive, tokens, SEQUENCE);
    CHECK_THAT(plain > 100 * bound, "rounding the activations moves a logit by only %.3g: nothing was tested", plain);
    printf("quantised: %-24s q8    worst error %.2e (against unrounded activations %.2e)\n", name, worst, plain);
}

/* A rounded cache, under weights that are not rounded. */
static void test_cache(const char *name, jamba_kv_type kv)
{
    const char *type = kv == JAMBA_KV_Q8 ? "q8" : "f16";
    char folder[PATH_ROOM], path[PATH_ROOM];
    jamba_model *model = NULL;
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, "f32", path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        naive_model *naive = naive_open(path, 128);
        int32_t tokens[SEQUENCE];
        double worst = 1, plain, clear = kv == JAMBA_KV_Q8 ? clear_of_ties : clear_of_f16_ties;
        naive->kv = kv;
        if (CHECK(naive_choose(naive, clear, tokens, SEQUENCE, TRIES) == SEQUENCE))
            worst = compare_sequence(model, naive, tokens, SEQUENCE);
        CHECK_THAT(worst <= bound, "differs from the naive forward by %.3g, allowed %.3g", worst, bound);
        plain = cache_drift(model, kv, tokens);
        CHECK_THAT(plain > 2 * bound, "rounding the cache moves a logit by only %.3g: nothing was tested", plain);
        CHECK_THAT(plain < cache_bound[kv == JAMBA_KV_Q8], "rounding the cache moves a logit by %.3g", plain);
        printf("quantised: %-24s cache %-4s worst error %.2e, from an f32 cache %.2e\n", name, type, worst, plain);
        naive_free(naive);
    }
    jamba_model_free(model);
}

static void test_forward(const char *name, const char *type)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    jamba_model *model = NULL;
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, type, path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        naive_model *naive = naive_open(path, 128);
        if (type[0] == 'q') check_q8(name, model, naive);
        else check_floats(name, type, model, naive);
        naive_free(naive);
    }
    jamba_model_free(model);
}

/* Past two pages of 256 keys, where the blocks of the softmax are merged, and rotations far from 0. */
static void test_long(const char *name, size_t count)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    jamba_model *model = NULL;
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, "f32", path)) model = load_for_cpu(path, JAMBA_CPU_BEST);
    if (CHECK(model != NULL)) {
        naive_model *naive = naive_open(path, count);
        int32_t *tokens = golden_tokens(name, count);
        double worst = compare_sequence(model, naive, tokens, count);
        CHECK_THAT(worst <= bound, "differs from the naive forward by %.3g, allowed %.3g", worst, bound);
        printf("quantised: %-24s f32   worst error %.2e over %zu tokens\n", name, worst, count);
        free(tokens);
        naive_free(naive);
    }
    jamba_model_free(model);
}

/* ---- the converter's rounding ------------------------------------------------------------------- */

/* Squared errors of all blocks of q8 so far: with the plain scale, and the converter's. */
static double q8_errors[2];

/* x to the nearest multiple of its ulp in a format of `mantissa_bits`, whose smallest normal number is
 * 2^lowest; ties to even. */
static double nearest(double x, int mantissa_bits, int lowest)
{
    int exponent;
    double step;
    frexp(x, &exponent);
    if (exponent - 1 < lowest) exponent = lowest + 1;
    step = ldexp(1, exponent - 1 - mantissa_bits);
    return rint(x / step) * step;
}

/* Squared error of the codes nearest at the scale that takes the largest weight to 127. */
static double plain_q8_error(const double *exact, size_t count)
{
    double most = 0, scale, sum = 0;
    size_t i;
    for (i = 0; i < count; i++)
        if (fabs(exact[i]) > most) most = fabs(exact[i]);
    scale = nearest(most / 127, 10, -14);
    for (i = 0; i < count && scale > 0; i++) {
        double error = exact[i] - scale * rint(exact[i] / scale);
        sum += error * error;
    }
    return sum;
}

/* The converter looks for a better scale than that, and never finds one that is much worse: its search rounds
 * weights to 1/32767 of the largest and does not see the scale's own rounding. */
static double q8_excess(const double *exact, const double *stored, size_t count)
{
    double plain = plain_q8_error(exact, count), sum = 0;
    size_t i;
    for (i = 0; i < count; i++) sum += (exact[i] - stored[i]) * (exact[i] - stored[i]);
    q8_errors[0] += plain;
    q8_errors[1] += sum;
    return sum <= 1.1 * plain ? 0 : sqrt(sum / plain);
}

/* A block of q4 loses about 7.5 % of its energy on Gaussian weights (as a root); 64 of them never twice that. */
static double q4_excess(const double *exact, const double *stored, size_t count)
{
    double energy = 0, error = 0;
    size_t i;
    for (i = 0; i < count; i++) {
        energy += exact[i] * exact[i];
        error += (exact[i] - stored[i]) * (exact[i] - stored[i]);
    }
    return error <= 0.15 * 0.15 * energy ? 0 : sqrt(error / energy);
}

/* How far `stored` is from the best that its type can do with `exact`. */
static double rounding_excess(unsigned type, const double *exact, const double *stored, size_t count)
{
    double worst = 0;
    size_t i;
    if (type == JMB_Q8) return q8_excess(exact, stored, count);
    if (type == JMB_Q4) return q4_excess(exact, stored, count);
    for (i = 0; i < count; i++) {
        double want = type == JMB_F16 ? nearest(exact[i], 10, -14) : type == JMB_BF16 ? nearest(exact[i], 7, -126)
                                                                                    : exact[i];
        double error = fabs(stored[i] - want);
        if (error > worst) worst = error;
    }
    return worst;
}

static void compare_weights(const naive_tensor *exact, const naive_tensor *stored, const double *a, const double *b)
{
    size_t row, start;
    for (row = 0; row < exact->rows && a; row++) {
        for (start = 0; start < exact->cols; start += 64) {
            size_t at = row * exact->cols + start, count = exact->cols - start < 64 ? exact->cols - start : 64;
            double excess = rounding_excess(stored->type, a + at, b + at, count);
            CHECK_THAT(excess == 0, "%u.%s row %zu column %zu: off by %g", exact->unit,
                jmb_roles[exact->role].name, row, start, excess);
        }
    }
}

/* Of the weights that the converter makes of jamba-moe, whatever machine and compiler it runs on. */
static uint64_t expected_hash(uint32_t type)
{
    static const uint64_t hashes[JMB_TYPES] = { 0, 0xdc3c6a4aba274cfeu, 0x1cf13a5be69e5c21u, 0x5581b2c992d42504u,
        0x1e4304b4abfd192du };
    return hashes[type];
}

/* Of the bits, the low byte first on every machine. */
static uint64_t hash_doubles(uint64_t hash, const double *x, size_t count)
{
    uint8_t *bytes = (uint8_t *)malloc(8 * count);
    size_t i;
    test_require(bytes != NULL, "out of memory", "weights");
    for (i = 0; i < count; i++) {
        uint64_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        jmb_store_u64(bytes + 8 * i, bits);
    }
    hash = jmb_hash64(hash, bytes, 8 * count);
    free(bytes);
    return hash;
}

static uint64_t hash_weights(uint64_t hash, const naive_tensor *t)
{
    hash = hash_doubles(hash, t->weights, t->rows * t->cols);
    return t->second ? hash_doubles(hash, t->second, t->rows * t->cols) : hash;
}

/* Every tensor of the file of `type` is the nearest to that of the f32 file. */
static void test_rounding(const char *name, const char *type)
{
    uint32_t asked = 0;
    char folder[PATH_ROOM], exact_path[PATH_ROOM], path[PATH_ROOM];
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, "f32", exact_path) && convert(folder, name, type, path)) {
        naive_model *exact = naive_open(exact_path, 1), *stored = naive_open(path, 1);
        uint64_t hash = JMB_HASH_SEED;
        size_t i, rounded = 0;
        while (strcmp(jmb_type_names[asked], type) != 0) asked++;
        CHECK(exact->tensor_count == stored->tensor_count);
        for (i = 0; i < exact->tensor_count; i++) {
            const naive_tensor *a = &exact->tensors[i], *b = &stored->tensors[i];
            CHECK(a->role == b->role && a->unit == b->unit && a->index == b->index);
            CHECK(b->type == jmb_role_type(b->role, asked));
            rounded += b->type != JMB_F32;
            if (b->type != JMB_F32) hash = hash_weights(hash, b);
            compare_weights(a, b, a->weights, b->weights);
            compare_weights(a, b, a->second, b->second);
        }
        CHECK(rounded > 5);
        CHECK_THAT(hash == expected_hash(asked), "%s: the weights' hash is %016llx", type, (unsigned long long)hash);
        if (asked == JMB_Q8)
            CHECK_THAT(q8_errors[1] < 0.95 * q8_errors[0], "q8's squared error is %g of the plain one",
                q8_errors[1] / q8_errors[0]);
        naive_free(exact);
        naive_free(stored);
    }
}

int main(int argc, char **argv)
{
    static const char *const types[] = { "f32", "f16", "bf16", "q8", "q4" };
    int i, t;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        for (t = 0; t < 5; t++) {
            if (!test_begin("naive forward %s %s", golden_cases[i].name, types[t])) continue;
            test_forward(golden_cases[i].name, types[t]);
            test_end();
        }
    }
    for (i = 0; i < GOLDEN_CASES; i++) {
        const char *name = golden_cases[i].name;
        if (strstr(name, "mamba") && !strstr(name, "zamba")) continue; /* no attention */
        /* zamba2-abc makes more of a flipped last bit than the bound, and keeping clear of all of them takes too long:
         * q8 has to do there. */
        for (t = strcmp(name, "zamba2-abc") == 0; t < 2; t++) {
            if (!test_begin("%s with a cache of %s", name, t ? "q8" : "f16")) continue;
            test_cache(name, t ? JAMBA_KV_Q8 : JAMBA_KV_F16);
            test_end();
        }
    }
    for (i = 0; i < 3; i++) {
        static const char *const long_cases[] = { "llama-llama3", "jamba-moe", "mamba" };
        if (!test_begin("%s, 700 tokens", long_cases[i])) continue;
        test_long(long_cases[i], 700);
        test_end();
    }
    for (t = 1; t < 5; t++) {
        if (!test_begin("rounding to %s", types[t])) continue;
        test_rounding("jamba-moe", types[t]);
        test_end();
    }
    return test_summary();
}
