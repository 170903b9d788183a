/* sampling.c - greedy, drawing, penalties, filters and their failures
 *
 * The filter hook may write any logits, so that most tests bring a distribution of their own. */
#include "support.h"

enum { DRAWS = 20000, VOCAB_MOST = 256 };

static jamba_model *model;
static jamba_session *session;
static size_t vocab;
static char model_path[PATH_ROOM];

/* ---- the same rules, naively ---------------------------------------------------------------------- */

/* Probability of each token under the rules of the header; 0 where it is dropped. No equal logits. */
static void naive_distribution(const jamba_sampler *p, const float *logits, double *probability)
{
    double sum = 0, top = 0, reached = 0;
    size_t rank[VOCAB_MOST], kept = 0, i, j;
    bool all = true;
    for (i = 0; i < vocab; i++) {
        size_t at = kept;
        probability[i] = 0;
        if (logits[i] == -INFINITY) continue;
        for (; at > 0 && logits[rank[at - 1]] < logits[i]; at--) rank[at] = rank[at - 1];
        rank[at] = i;
        kept++;
    }
    if (p->top_k > 0 && (size_t)p->top_k < kept) kept = (size_t)p->top_k;
    for (j = 0; j < kept; j++)
        sum += probability[rank[j]] = exp(((double)logits[rank[j]] - (double)logits[rank[0]]) / (double)p->temperature);
    for (j = 0; j < kept; j++) probability[rank[j]] /= sum;
    top = probability[rank[0]];
    for (j = 0; j < kept; j++) { /* rank is by falling probability */
        double own = probability[rank[j]];
        if (!all || (p->min_p > 0 && own < (double)p->min_p * top)) probability[rank[j]] = 0;
        reached += own;
        if (p->top_p > 0 && reached >= (double)p->top_p) all = false;
    }
    for (sum = 0, i = 0; i < vocab; i++) sum += probability[i];
    for (i = 0; i < vocab; i++) probability[i] /= sum;
}

static void write_logits(void *user, float *logits, int32_t count)
{
    memcpy(logits, user, (size_t)count * sizeof *logits);
}

/* Draws and compares the counts with the naive probabilities: none where it is 0, and chi-square below
 * its mean by five deviations otherwise. */
static void check_distribution(const char *what, jamba_sampler sampler, float *logits)
{
    double probability[VOCAB_MOST], square = 0;
    int counts[VOCAB_MOST] = { 0 }, i, cells = -1;
    size_t token;
    naive_distribution(&sampler, logits, probability);
    sampler.filter = write_logits;
    sampler.filter_user = logits;
    sampler.seed = 12345;
    for (i = 0; i < DRAWS; i++) {
        int32_t drawn = jamba_sample(session, &sampler);
        if (!CHECK_THAT(drawn >= 0 && (size_t)drawn < vocab, "%s: drew %d", what, (int)drawn)) return;
        counts[drawn]++;
    }
    for (token = 0; token < vocab; token++) {
        double expected = probability[token] * DRAWS, off = counts[token] - expected;
        if (probability[token] == 0)
            CHECK_THAT(counts[token] == 0, "%s: token %zu is dropped, yet drawn %d times", what, token, counts[token]);
        if (expected > 20) CHECK_THAT(counts[token] > 0, "%s: token %zu is never drawn", what, token);
        if (expected <= 5) continue;
        square += off * off / expected;
        cells++;
    }
    CHECK_THAT(square <= cells + 5 * sqrt(2.0 * cells + 1) + 5, "%s: chi-square %.1f of %d cells", what, square, cells);
}

/* No two equal, none near a limit of the tests. */
static void spread_logits(float *logits)
{
    static const float first[] = { 3.1f, -2.0f, 2.9f, 1.7f, 0.4f, 2.2f, -0.6f, 1.1f };
    size_t i;
    for (i = 0; i < vocab; i++) logits[(i * 37 + 11) % vocab] = i < 8 ? first[i] : -3.0f - 0.01f * (float)i;
}

static void test_distributions(void)
{
    float logits[VOCAB_MOST];
    jamba_sampler plain, s;
    memset(&plain, 0, sizeof plain);
    plain.temperature = 1;
    spread_logits(logits);
    check_distribution("temperature 1", plain, logits);
    s = plain;
    s.temperature = 0.5f;
    check_distribution("temperature 0.5", s, logits);
    s.temperature = 4;
    check_distribution("temperature 4", s, logits);
    s = plain;
    s.top_k = 3;
    check_distribution("top_k 3", s, logits);
    s.top_k = 1;
    check_distribution("top_k 1", s, logits);
    s.top_k = 100000;
    check_distribution("top_k beyond the vocabulary", s, logits);
    s = plain;
    s.top_p = 0.7f;
    check_distribution("top_p 0.7", s, logits);
    s.top_p = 0.01f;
    check_distribution("top_p 0.01", s, logits);
    s.top_p = 1;
    check_distribution("top_p 1", s, logits);
    s = plain;
    s.min_p = 0.2f;
    check_distribution("min_p 0.2", s, logits);
    s.temperature = 2;
    check_distribution("min_p 0.2 at temperature 2", s, logits);
}

/* Filters in combination, where their order decides. */
static void test_order(void)
{
    float logits[VOCAB_MOST];
    static const double shares[] = { 0.4, 0.3, 0.2, 0.1 };
    jamba_sampler s;
    size_t i;
    for (i = 0; i < vocab; i++) logits[i] = -30 - (float)i;
    for (i = 0; i < 4; i++) logits[2 * i + 1] = (float)log(shares[i]);
    memset(&s, 0, sizeof s);
    s.temperature = 1;
    s.top_k = 4;
    s.top_p = 0.5f;
    s.min_p = 0.6f;
    check_distribution("top_k 4, top_p 0.5, min_p 0.6", s, logits);
    s.top_k = 0;
    check_distribution("top_p 0.5, min_p 0.6", s, logits);
    s.top_k = 2;
    s.top_p = 0.55f;
    s.min_p = 0;
    check_distribution("top_k 2, top_p 0.55", s, logits); /* a share of what top_k leaves: 0.4 of 0.7 */
    s.top_p = 0.65f;
    check_distribution("top_k 2, top_p 0.65", s, logits);
    spread_logits(logits);
    s.top_k = 5;
    s.top_p = 0.8f;
    s.min_p = 0.1f;
    s.temperature = 1.5f;
    check_distribution("all of them", s, logits);
}

static void test_forbidden(void)
{
    float logits[VOCAB_MOST];
    jamba_sampler s;
    size_t i;
    spread_logits(logits);
    for (i = 0; i < vocab; i += 2) logits[i] = -INFINITY;
    memset(&s, 0, sizeof s);
    s.temperature = 1;
    check_distribution("half not allowed", s, logits);
    for (i = 0; i < vocab; i++) logits[i] = -INFINITY;
    logits[7] = -2;
    s.temperature = 0;
    s.filter = write_logits;
    s.filter_user = logits;
    CHECK(jamba_sample(session, &s) == 7);
    s.temperature = 1;
    s.top_p = 0.9f;
    CHECK(jamba_sample(session, &s) == 7);
    logits[7] = -INFINITY;
    CHECK(jamba_sample(session, &s) == JAMBA_ERR_FILTER);
    s.temperature = 0;
    CHECK(jamba_sample(session, &s) == JAMBA_ERR_FILTER);
    CHECK(jamba_session_error(session)->code == JAMBA_ERR_FILTER);
    CHECK(strstr(jamba_session_error(session)->message, "filter") != NULL);
    CHECK(jamba_sample(session, NULL) >= 0);
}

/* ---- the ranking against a sort ----------------------------------------------------------------------- */

enum { RANKED_MOST = 5000 };

/* A session of no model: only what sampling needs. */
typedef struct bare {
    jamba_model model;
    jamba_session session;
    float logits[RANKED_MOST];
} bare;

static bare *bare_open(size_t count, jamba_cpu cpu)
{
    bare *b = (bare *)calloc(1, sizeof *b);
    b->model.metadata.header.vocab = (uint32_t)count;
    b->model.kernels = jmb_choose_kernels(cpu);
    b->session.model = &b->model;
    b->session.candidates = (float *)calloc(RANKED_MOST + 16, sizeof(float));
    b->session.order = (int32_t *)calloc(RANKED_MOST, sizeof(int32_t));
    return b;
}

static void bare_free(bare *b)
{
    free(b->session.candidates);
    free(b->session.order);
    free(b);
}

static const float *compared; /* by by_rank */

static int by_rank(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (compared[x] != compared[y]) return compared[x] > compared[y] ? -1 : 1;
    return (x > y) - (x < y);
}

/* Of the first `count` of the ranking, those within which top_p and min_p end. */
static size_t sorted_kept(const jamba_sampler *p, const float *probability, const int32_t *rank, size_t count)
{
    double total = 0, sum = 0;
    size_t kept, i;
    if (p->top_k > 0 && (size_t)p->top_k < count) count = (size_t)p->top_k;
    for (i = 0; i < count; i++) total += (double)probability[rank[i]];
    for (kept = 0; kept < count && (p->top_p == 0 || sum < total * (double)p->top_p); kept++)
        sum += (double)probability[rank[kept]];
    while (kept > 1 && probability[rank[kept - 1]] < p->min_p) kept--;
    return kept;
}

/* What a draw gives that sorts all tokens; without top_k and top_p they stay in order of their numbers. */
static int32_t sorted_draw(const jamba_sampler *p, const float *probability, size_t count, double random)
{
    static int32_t rank[RANKED_MOST];
    double sum = 0;
    size_t kept = count, i;
    for (i = 0; i < count; i++) rank[i] = (int32_t)i;
    compared = probability;
    if (p->top_k > 0 || (p->top_p > 0 && p->top_p < 1)) {
        qsort(rank, count, sizeof *rank, by_rank);
        kept = sorted_kept(p, probability, rank, count);
    }
    for (i = 0; i < kept; i++) sum += probability[rank[i]] >= p->min_p ? (double)probability[rank[i]] : 0;
    for (sum *= random, i = 0; i + 1 < kept; i++) {
        if (probability[rank[i]] < p->min_p) continue;
        sum -= (double)probability[rank[i]];
        if (sum < 0) break;
    }
    return rank[i];
}

/* Gaussian of several widths; `ties`: of few different values. */
static void random_logits(bare *b, uint64_t *random, double width, bool ties)
{
    uint32_t count = b->model.metadata.header.vocab, i, j;
    for (i = 0; i < count; i++) {
        double sum = -6;
        for (j = 0; j < 12; j++) sum += (double)(random_next(random) % 65536) / 65536;
        b->logits[i] = (float)((ties ? floor(2 * sum) / 2 : sum) * width);
    }
}

static void forbid_most(void *user, float *logits, int32_t count)
{
    int32_t i;
    (void)user;
    for (i = 0; i < count; i++)
        if (i % 7 != 3 && i > 0) logits[i] = -INFINITY;
}

static void check_ranking(bare *b, jamba_sampler s, const char *what)
{
    size_t count = b->model.metadata.header.vocab;
    int i;
    for (i = 0; i < 6; i++) {
        uint64_t seed = s.seed;
        int32_t got = jmb_sample(&b->session, &s, b->logits); /* leaves the probabilities behind */
        int32_t want = sorted_draw(&s, b->session.candidates, count, jmb_random(&seed));
        CHECK_THAT(got == want && s.seed == seed,
            "%s, %zu tokens, temperature %g, top_k %d, top_p %g, min_p %g: drew %d, a sort gives %d", what, count,
            (double)s.temperature, (int)s.top_k, (double)s.top_p, (double)s.min_p, (int)got, (int)want);
    }
}

static void check_rankings(bare *b, const char *what)
{
    static const float temperatures[] = { 0.7f, 1, 100, 1e30f }, shares[] = { 0, 1e-6f, 0.5f, 0.95f, 0.9999f, 1 };
    static const int32_t counts[] = { 0, 1, 40, 4000 };
    static const float least[] = { 0, 0.05f, 1 };
    uint32_t i;
    for (i = 0; i < 4 * 6 * 4 * 3; i++) {
        jamba_sampler s;
        memset(&s, 0, sizeof s);
        s.temperature = temperatures[i % 4];
        s.top_p = shares[i / 4 % 6];
        s.top_k = counts[i / 24 % 4];
        s.min_p = least[i / 96];
        s.seed = i;
        s.filter = i % 5 == 0 ? forbid_most : NULL;
        check_ranking(b, s, what);
    }
}

static void test_ranking(void)
{
    static const size_t counts[] = { 1, 3, 128, 700, RANKED_MOST };
    uint64_t random = 11;
    size_t i;
    for (i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        bare *b = bare_open(counts[i], JAMBA_CPU_BEST);
        random_logits(b, &random, 2.5, false);
        check_rankings(b, "gaussian");
        random_logits(b, &random, 30, false);
        check_rankings(b, "wide");
        random_logits(b, &random, 3, true);
        check_rankings(b, "ties");
        random_logits(b, &random, 0, false);
        check_rankings(b, "all equal");
        bare_free(b);
    }
}

/* Every cut of a ranking: by count, and by the mass before, at and after each candidate. */
static void check_cuts(bare *b)
{
    static int32_t rank[RANKED_MOST];
    uint32_t count = b->model.metadata.header.vocab, i;
    jmb_digit first[JMB_DIGITS];
    uint64_t mass = 0;
    jamba_sampler s;
    memset(&s, 0, sizeof s);
    s.temperature = 1;
    CHECK(jmb_sample(&b->session, &s, b->logits) >= 0);
    for (i = 0; i < count; i++) rank[i] = (int32_t)i;
    compared = b->session.candidates;
    qsort(rank, count, sizeof *rank, by_rank);
    jmb_count_digits(first, b->session.candidates, NULL, count, JMB_FIRST_SHIFT);
    for (i = 0; i < count; i++) {
        uint64_t own = jmb_mass(b->session.candidates[rank[i]]);
        jmb_cut at = jmb_cut_ranking(&b->session, first, i + 1, UINT64_MAX);
        jmb_cut start = own ? jmb_cut_ranking(&b->session, first, UINT32_MAX, mass + 1) : at;
        jmb_cut end = own ? jmb_cut_ranking(&b->session, first, UINT32_MAX, mass + own) : at;
        mass += own;
        CHECK_THAT(at.count == i + 1 && at.mass == mass && at.last == rank[i], "cut after %u: %u, token %d", i,
            at.count, (int)at.last);
        CHECK_THAT(start.count == i + 1 && start.mass == mass && start.last == rank[i], "from the mass after %u: %u", i,
            start.count);
        CHECK_THAT(end.count == i + 1 && end.mass == mass && end.last == rank[i], "to the mass of %u: %u", i,
            end.count);
    }
}

static void test_cuts(void)
{
    bare *b = bare_open(900, JAMBA_CPU_BEST);
    uint64_t random = 13;
    random_logits(b, &random, 2.5, false);
    check_cuts(b);
    random_logits(b, &random, 12, false);
    check_cuts(b);
    random_logits(b, &random, 3, true);
    check_cuts(b);
    random_logits(b, &random, 0, false);
    check_cuts(b);
    bare_free(b);
}

static void test_same_draws(void)
{
    static const jamba_cpu cpus[] = { JAMBA_CPU_AVX2, JAMBA_CPU_AVX512, JAMBA_CPU_NEON, JAMBA_CPU_BEST };
    bare *plain = bare_open(RANKED_MOST, JAMBA_CPU_SCALAR);
    uint64_t random = 12;
    size_t i, draw;
    random_logits(plain, &random, 2.5, false);
    for (i = 0; i < sizeof cpus / sizeof cpus[0]; i++) {
        bare *b = bare_open(RANKED_MOST, cpus[i]);
        jamba_sampler s, other;
        memset(&s, 0, sizeof s);
        s.temperature = 0.8f;
        s.top_p = 0.99f;
        other = s;
        for (draw = 0; draw < 20 && b->model.kernels; draw++)
            CHECK(jmb_sample(&b->session, &s, plain->logits) == jmb_sample(&plain->session, &other, plain->logits));
        bare_free(b);
    }
    bare_free(plain);
}

/* Each place of a vocabulary that is no multiple of what is looked at together. */
static void test_places(void)
{
    bare *b = bare_open(1000, JAMBA_CPU_BEST);
    jamba_sampler s;
    char token[32];
    int32_t i;
    memset(&s, 0, sizeof s);
    for (i = 0; i < 1000; i++) {
        b->logits[i] = b->logits[(i + 300) % 1000] = 1;
        CHECK_THAT(jmb_sample(&b->session, &s, b->logits) == (i < 700 ? i : i - 700), "the first of the highest: %d",
            (int)i);
        b->logits[i] = i % 2 ? (float)NAN : (float)-INFINITY;
        snprintf(token, sizeof token, "token %d is", (int)i);
        CHECK(jmb_sample(&b->session, &s, b->logits) == JAMBA_ERR_NUMERIC);
        CHECK_THAT(strstr(b->session.error.message, token) != NULL, "%s: %s", token, b->session.error.message);
        b->logits[i] = b->logits[(i + 300) % 1000] = -1;
    }
    bare_free(b);
}

/* ---- greedy and seeds --------------------------------------------------------------------------------- */

static int32_t highest(const float *logits)
{
    size_t i, best = 0;
    for (i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return (int32_t)best;
}

static void test_greedy(void)
{
    jamba_sampler zero, s;
    float logits[VOCAB_MOST];
    memset(&zero, 0, sizeof zero);
    CHECK(jamba_sample(session, NULL) == highest(jamba_logits(session)));
    CHECK(jamba_sample(session, &zero) == highest(jamba_logits(session)));
    CHECK(zero.seed == 0);
    s = zero;
    s.temperature = 1e-30f;
    CHECK(jamba_sample(session, &s) == highest(jamba_logits(session)));
    s.temperature = 1e30f;
    CHECK(jamba_sample(session, &s) >= 0);
    spread_logits(logits);
    s = zero;
    s.filter = write_logits;
    s.filter_user = logits;
    CHECK(jamba_sample(session, &s) == highest(logits));
}

static void test_seeds(void)
{
    jamba_sampler first, copy, other;
    int32_t drawn[64];
    int i, differ = 0;
    memset(&first, 0, sizeof first);
    first.temperature = 1.5f;
    first.seed = 42;
    copy = first;
    for (i = 0; i < 64; i++) drawn[i] = jamba_sample(session, &first);
    CHECK(first.seed != copy.seed);
    for (i = 0; i < 64; i++) CHECK_THAT(jamba_sample(session, &copy) == drawn[i], "draw %d is another one", i);
    CHECK(first.seed == copy.seed);
    other = copy;
    other.seed = 43;
    for (i = 0; i < 64; i++) differ += jamba_sample(session, &other) != drawn[i];
    CHECK_THAT(differ > 20, "another seed changes only %d of 64 draws", differ);
}

/* ---- penalties -------------------------------------------------------------------------------------------- */

static void copy_logits(void *user, float *logits, int32_t count)
{
    memcpy(user, logits, (size_t)count * sizeof *logits);
}

static void check_penalty(float penalty, int32_t window)
{
    float seen[VOCAB_MOST], want[VOCAB_MOST], before[VOCAB_MOST];
    bool done[VOCAB_MOST] = { false };
    size_t count, i, back = window ? (size_t)window : 64;
    const int32_t *tokens = jamba_session_tokens(session, &count);
    jamba_sampler s;
    memset(&s, 0, sizeof s);
    s.repeat_penalty = penalty;
    s.repeat_window = window;
    s.filter = copy_logits;
    s.filter_user = seen;
    memcpy(before, jamba_logits(session), vocab * sizeof *before);
    memcpy(want, before, sizeof want);
    for (i = count > back ? count - back : 0; i < count; i++) {
        float *logit = &want[tokens[i]];
        if (done[tokens[i]]) continue;
        done[tokens[i]] = true;
        *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
    }
    CHECK(jamba_sample(session, &s) == highest(want));
    CHECK_THAT(memcmp(seen, want, vocab * sizeof *want) == 0, "penalty %g over %d tokens", (double)penalty,
        (int)window);
    CHECK_THAT(memcmp(before, jamba_logits(session), vocab * sizeof *before) == 0, "sampling changed the logits");
}

static void test_penalties(void)
{
    check_penalty(1.3f, 0);
    check_penalty(3.0f, 2);
    check_penalty(0.5f, 1);
    check_penalty(2.0f, 10000);
    check_penalty(1.0f, 0);
}

/* ---- failures ---------------------------------------------------------------------------------------------- */

static void check_refused(const char *what, jamba_sampler s)
{
    s.seed = 5;
    CHECK_THAT(jamba_sample(session, &s) == JAMBA_ERR_ARGUMENT, "%s is accepted", what);
    CHECK(jamba_session_error(session)->code == JAMBA_ERR_ARGUMENT && jamba_session_error(session)->message[0]);
    CHECK(s.seed == 5);
}

static void test_parameters(void)
{
    const float bad[] = { -1.0f, -1e-9f, (float)NAN, (float)INFINITY, (float)-INFINITY };
    jamba_sampler plain, s;
    jamba_session_params params;
    jamba_session *fresh;
    size_t i;
    memset(&plain, 0, sizeof plain);
    plain.temperature = 1;
    for (i = 0; i < 5; i++) {
        s = plain;
        s.temperature = bad[i];
        check_refused("temperature", s);
        s = plain;
        s.top_p = bad[i];
        check_refused("top_p", s);
        s = plain;
        s.min_p = bad[i];
        check_refused("min_p", s);
        s = plain;
        s.repeat_penalty = bad[i];
        check_refused("repeat_penalty", s);
    }
    s = plain;
    s.top_p = 1.5f;
    check_refused("top_p 1.5", s);
    s = plain;
    s.min_p = 1.5f;
    check_refused("min_p 1.5", s);
    s = plain;
    s.top_k = -1;
    check_refused("top_k -1", s);
    s = plain;
    s.repeat_window = -1;
    check_refused("repeat_window -1", s);
    CHECK(jamba_sample(NULL, NULL) == JAMBA_ERR_ARGUMENT);
    memset(&params, 0, sizeof params);
    params.context = 4;
    CHECK(jamba_session_create(&fresh, model, &params, NULL) == JAMBA_OK);
    CHECK(jamba_sample(fresh, NULL) == JAMBA_ERR_ARGUMENT);
    jamba_session_free(fresh);
}

/* A filter that writes what is no number. */
static void test_filter_numbers(void)
{
    const float bad[] = { (float)NAN, (float)INFINITY };
    float logits[VOCAB_MOST];
    jamba_sampler s;
    size_t i;
    for (i = 0; i < 4; i++) {
        memset(&s, 0, sizeof s);
        spread_logits(logits);
        logits[i * 5] = bad[i % 2];
        s.filter = write_logits;
        s.filter_user = logits;
        s.temperature = i < 2 ? 0 : 1.0f;
        CHECK(jamba_sample(session, &s) == JAMBA_ERR_NUMERIC);
    }
}

/* The head's data in the bytes of a .jamba file. */
static uint8_t *head_data(uint8_t *file, size_t *size)
{
    const uint8_t *entry = file + JMB_HEADER_BYTES + JMB_BLOCK_BYTES * (size_t)jmb_load_u32(file + 76);
    while (jmb_load_u16(entry) != JMB_ROLE_HEAD) entry += JMB_ENTRY_BYTES;
    *size = (size_t)jmb_load_u64(entry + 24);
    return file + jmb_load_u64(entry + 16);
}

/* One weight of the head, of every value that is no number: an error, and the token named. */
static void test_bad_weight(uint32_t bits)
{
    size_t size, head_size, token = 21;
    uint8_t *file = file_need(model_path, &size), *head = head_data(file, &head_size);
    jamba_model *broken;
    jamba_session *s;
    jamba_sampler sampler;
    int32_t first = 3;
    memset(&sampler, 0, sizeof sampler);
    sampler.temperature = 1;
    CHECK(head_size > 64 * token);
    head += token / 16 * (head_size / ((vocab + 15) / 16)) + token % 16 * 4;
    head[0] = (uint8_t)bits;
    head[1] = (uint8_t)(bits >> 8);
    head[2] = (uint8_t)(bits >> 16);
    head[3] = (uint8_t)(bits >> 24);
    broken = load_model(jamba_from_memory(file, size), NULL);
    if (CHECK(broken != NULL) && CHECK(jamba_session_create(&s, broken, NULL, NULL) == JAMBA_OK)) {
        CHECK(jamba_eval(s, &first, 1) == JAMBA_OK);
        CHECK(jamba_sample(s, NULL) == JAMBA_ERR_NUMERIC);
        CHECK(jamba_sample(s, &sampler) == JAMBA_ERR_NUMERIC);
        CHECK(jamba_session_error(s)->code == JAMBA_ERR_NUMERIC);
        CHECK_THAT(strstr(jamba_session_error(s)->message, "21") != NULL, "%s", jamba_session_error(s)->message);
        jamba_session_free(s);
    }
    jamba_model_free(broken);
    free(file);
}

static void test_bad_weights(void)
{
    test_bad_weight(0x7fc00000u);
    test_bad_weight(0xffc00001u);
    test_bad_weight(0x7f800000u);
    test_bad_weight(0xff800000u);
    test_bad_weight(0x7f800001u);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "greedy", test_greedy },
        { "seeds", test_seeds },
        { "distributions", test_distributions },
        { "order of the filters", test_order },
        { "ranking against a sort", test_ranking },
        { "cuts of the ranking", test_cuts },
        { "the same draws on every instruction set", test_same_draws },
        { "every place of a vocabulary", test_places },
        { "tokens that are not allowed", test_forbidden },
        { "repeat penalty", test_penalties },
        { "parameters out of range", test_parameters },
        { "filter writes NaN or infinity", test_filter_numbers },
        { "NaN and infinite weights", test_bad_weights },
    };
    int32_t *tokens = NULL;
    test_start(argc, argv);
    if (!test_state.list) {
        test_require(convert("tests/cases/mixtral-top3", "mixtral-top3", "f32", model_path), "convert", "mixtral-top3");
        model = load_for_cpu(model_path, JAMBA_CPU_BEST);
        test_require(model != NULL && jamba_session_create(&session, model, NULL, NULL) == JAMBA_OK, "no session", "");
        vocab = (size_t)model_vocab(model);
        tokens = golden_tokens("mixtral-top3", 90);
        test_require(jamba_eval(session, tokens, 90) == JAMBA_OK, "evaluation", jamba_session_error(session)->message);
    }
    test_run(tests, sizeof tests / sizeof tests[0]);
    free(tokens);
    jamba_session_free(session);
    jamba_model_free(model);
    return test_summary();
}
