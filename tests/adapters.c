/* adapters.c - LoRA at run time: against weights that hold the same change, alone and in batches, and on damaged files
 *
 * Adapters with random matrices for everything that one can go with are written here, so that no converter and no
 * library is in the way; those of the peft library are the business of lora.c. */
#include "support.h"

enum { ENTRIES_MAX = 4096 };

/* An adapter file in memory. */
typedef struct image {
    uint8_t *bytes;
    size_t size;
} image;

/* What an adapter is made of: one entry for each matrix of the program. */
typedef struct plan_entry {
    jmb_lora key;
    const jmb_tensor *w;
    bool embed;
    uint32_t rank, type;
    uint64_t a_at, b_at, a_bytes, b_bytes;
    uint64_t seed; /* equal for all uses of a shared matrix, so that it can be merged */
} plan_entry;

static float lora_random(uint64_t *state, double size)
{
    return (float)(((double)(random_next(state) >> 11) / 9007199254740992.0 - 0.5) * size);
}

static void put_number(uint8_t *panel_data, const jmb_tensor *t, size_t row, size_t col, float value)
{
    uint8_t *panel = panel_data + row / 16 * (size_t)jmb_panel_bytes(t->type, t->cols);
    size_t r = row % 16;
    if (t->type == JMB_F32) jmb_store_f32(panel + (col * 16 + r) * 4, value);
    else {
        uint32_t half = t->type == JMB_BF16 ? jmb_bits_of(value) >> 16 : jmb_float_to_f16(value);
        uint8_t *at = panel + (col / 2 * 32 + r * 2 + col % 2) * 2;
        at[0] = (uint8_t)half;
        at[1] = (uint8_t)(half >> 8);
    }
}

static int compare_entries(const void *x, const void *y)
{
    return jmb_compare_loras(&((const plan_entry *)x)->key, &((const plan_entry *)y)->key);
}

/* Every matrix of the program that `want` likes. A tied head is left out where the embedding is merged. */
static size_t list_entries(
    const jamba_model *model, plan_entry *entries, bool (*want)(const plan_entry *, const jamba_model *))
{
    jamba_adapter probe;
    size_t count = 0;
    uint32_t o, i;
    memset(&probe, 0, sizeof probe);
    probe.model = model;
    for (o = 0; o < model->plan.count; o++)
        for (i = 0; i < jmb_op_slots(&model->plan.ops[o]); i++) {
            plan_entry *e = &entries[count];
            memset(e, 0, sizeof *e);
            jmb_lora_key(&probe, &model->plan.ops[o], i, &e->key, &e->w);
            e->embed = model->plan.ops[o].kind == JMB_OP_EMBED;
            e->seed = (uint64_t)(e->w - model->metadata.tensors) + 1;
            e->rank = 1 + (uint32_t)(e->seed * 7 % 20);
            if (!want(e, model)) continue;
            test_require(++count < ENTRIES_MAX, "too many matrices", "adapters.c");
        }
    qsort(entries, count, sizeof *entries, compare_entries);
    return count;
}

static bool want_all(const plan_entry *e, const jamba_model *model)
{
    (void)e, (void)model;
    return true;
}

/* Those whose change can be written into the weights. */
static bool want_mergeable(const plan_entry *e, const jamba_model *model)
{
    return model->metadata.header.head || e->w->role != JMB_ROLE_EMBED;
}

static void fill_matrix(uint8_t *data, const jmb_tensor *t, uint64_t seed, double size)
{
    size_t row, col, pairs = jmb_roles[t->role].paired ? 2 : 1, k;
    for (row = 0; row < t->rows; row++)
        for (k = 0; k < pairs; k++)
            for (col = 0; col < t->cols; col++)
                put_number(
                    data, t, pairs == 2 ? row / 16 * 32 + k * 16 + row % 16 : row, col, lora_random(&seed, size));
}

static jmb_lora entry_shape(const plan_entry *e)
{
    jmb_lora_entry entry;
    jmb_lora l;
    memset(&entry, 0, sizeof entry);
    entry.block = e->key.block;
    entry.role = e->embed ? (uint32_t)JMB_ROLE_EMBED : e->key.role;
    entry.index = e->key.index;
    entry.rank = e->rank;
    entry.type = e->type;
    entry.rows = e->w->rows;
    entry.cols = e->w->cols;
    jmb_lora_shape(&l, &entry);
    return l;
}

static void seal(image *file)
{
    uint64_t hash = jmb_hash64(jmb_hash64(JMB_HASH_SEED, file->bytes, 24), file->bytes + 32, file->size - 32);
    jmb_store_u64(file->bytes + 24, hash);
}

static image make_adapter(const jamba_model *model, plan_entry *entries, size_t count, uint32_t type, uint64_t seed)
{
    uint64_t at = JMB_ADAPTER_BYTES + count * JMB_ADAPTER_ENTRY;
    image file;
    size_t i, j;
    for (i = 0; i < count; i++) {
        jmb_lora l;
        entries[i].type = type;
        l = entry_shape(&entries[i]);
        entries[i].a_at = at;
        entries[i].b_at = at + l.a.bytes;
        at = entries[i].b_at + l.b.bytes;
    }
    file.size = (size_t)at;
    file.bytes = (uint8_t *)calloc(file.size, 1);
    test_require(file.bytes != NULL, "out of memory", "adapters.c");
    memcpy(file.bytes, jmb_adapter_magic, 8);
    jmb_store_u32(file.bytes + 8, JMB_ADAPTER_VERSION);
    jmb_store_u32(file.bytes + 12, (uint32_t)count);
    jmb_store_u64(file.bytes + 16, at);
    memcpy(file.bytes + 32, model->metadata.header.identity, 32);
    for (i = 0; i < count; i++) {
        const plan_entry *e = &entries[i];
        jmb_lora l = entry_shape(e);
        uint32_t fields[7] = { e->key.block, l.role, e->key.index, e->rank, type, e->w->rows, e->w->cols };
        uint8_t *p = file.bytes + JMB_ADAPTER_BYTES + i * JMB_ADAPTER_ENTRY;
        for (j = 0; j < 7; j++) jmb_store_u32(p + j * 4, fields[j]);
        jmb_store_u64(p + 32, e->a_at);
        jmb_store_u64(p + 40, e->b_at);
        fill_matrix(file.bytes + e->a_at, &l.a, e->seed * 1000 + seed, 0.4);
        fill_matrix(file.bytes + e->b_at, &l.b, e->seed * 1000 + seed + 500, 0.4);
    }
    seal(&file);
    return file;
}

static jamba_adapter *load_adapter(const jamba_model *model, const image *file)
{
    jamba_adapter *adapter = NULL;
    jamba_error error;
    CHECK_THAT(jamba_adapter_load(&adapter, model, jamba_from_memory(file->bytes, file->size), &error) == JAMBA_OK,
        "%s", error.message);
    return adapter;
}

/* ---- against merged weights ------------------------------------------------------------------------------ */

/* W += scale * B A for every entry, once for a matrix that several blocks use. */
static void merge(uint8_t *model_bytes, const jamba_model *model, const plan_entry *entries, size_t count,
    const image *file, float scale)
{
    static bool done[65536];
    size_t i, row, col, k, pair;
    memset(done, 0, sizeof done);
    for (i = 0; i < count; i++) {
        const plan_entry *e = &entries[i];
        jmb_lora l = entry_shape(e);
        size_t pairs = jmb_roles[e->w->role].paired ? 2 : 1;
        if (done[e->seed]) continue;
        done[e->seed] = true;
        l.a.data = file->bytes + e->a_at;
        l.b.data = file->bytes + e->b_at;
        for (row = 0; row < e->w->rows; row++)
            for (pair = 0; pair < pairs; pair++)
                for (col = 0; col < e->w->cols; col++) {
                    size_t at = pairs == 2 ? row / 16 * 32 + pair * 16 + row % 16 : row;
                    double sum = 0;
                    for (k = 0; k < e->rank; k++)
                        sum += e->embed ? (double)jmb_weight(&l.a, row, k) * (double)jmb_weight(&l.b, col, k)
                                        : (double)jmb_weight(&l.b, at, k) * (double)jmb_weight(&l.a, k, col);
                    put_number(model_bytes + e->w->offset, e->w, at, col,
                        (float)((double)jmb_weight(e->w, at, col) + (double)scale * sum));
                }
    }
    (void)model;
}

static float *adapted_logits(const jamba_model *model, jamba_adapter *const *adapters, const float *scales,
    size_t count, int32_t chunk, const int32_t *tokens, size_t length)
{
    size_t vocab = (size_t)model_vocab(model);
    jamba_session_params params;
    jamba_session *session;
    logits_rows rows;
    memset(&params, 0, sizeof params);
    params.context = (int32_t)length;
    params.chunk = chunk;
    params.kv_type = JAMBA_KV_F32;
    params.threads = 1;
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    rows.count = length;
    rows.seen = 0;
    rows.vocab = vocab;
    rows.rows = (float *)calloc(length * vocab, sizeof *rows.rows);
    test_require(rows.rows != NULL, "out of memory", "adapters.c");
    if (!CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK)) return rows.rows;
    CHECK_THAT(jamba_session_set_adapters(session, adapters, scales, count) == JAMBA_OK, "%s",
        jamba_session_error(session)->message);
    CHECK(jamba_eval(session, tokens, length) == JAMBA_OK);
    jamba_session_free(session);
    return rows.rows;
}

static double worst_of(const float *a, const float *b, size_t count)
{
    double worst = 0;
    size_t i;
    for (i = 0; i < count; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= worst)) worst = fabs((double)a[i] - (double)b[i]);
    return worst;
}

static void check_merged(const char *name, const char *path, const jamba_model *model)
{
    static plan_entry entries[ENTRIES_MAX];
    size_t count = list_entries(model, entries, want_mergeable), length = 24, size;
    size_t all = length * (size_t)model_vocab(model);
    image file = make_adapter(model, entries, count, JMB_F32, 1);
    jamba_adapter *adapter = load_adapter(model, &file);
    int32_t *tokens = golden_tokens(name, length);
    uint8_t *bytes = file_need(path, &size), *room = (uint8_t *)malloc(size + 64), *at;
    const float scale = 0.75f;
    float *plain, *run, *want;
    jamba_model *merged = NULL;
    test_require(room != NULL, "out of memory", name);
    at = room + (64 - (uintptr_t)room % 64) % 64;
    memcpy(at, bytes, size);
    merge(at, model, entries, count, &file, scale);
    if (CHECK(adapter && jamba_model_load(&merged, jamba_from_memory(at, size), NULL, NULL) == JAMBA_OK)) {
        plain = adapted_logits(model, NULL, NULL, 0, 0, tokens, length);
        run = adapted_logits(model, &adapter, &scale, 1, 5, tokens, length);
        want = adapted_logits(merged, NULL, NULL, 0, 0, tokens, length);
        CHECK_THAT(worst_of(run, want, all) < 1e-3, "%s: %g from merged weights", name, worst_of(run, want, all));
        CHECK_THAT(worst_of(run, plain, all) > 0.1, "%s: the adapter changes only %g", name, worst_of(run, plain, all));
        if (test_state.verbose) printf("adapters: %-24s %4zu matrices, worst %.2e, change %.2g\n", name, count,
            worst_of(run, want, all), worst_of(run, plain, all));
        free(plain);
        free(run);
        free(want);
    }
    jamba_model_free(merged);
    jamba_adapter_free(adapter);
    free(room);
    free(bytes);
    free(tokens);
    free(file.bytes);
}

/* ---- the same bits, however it is run ----------------------------------------------------------------------- */

enum { LENGTH = 20, CROWD = 4 };

/* Two adapters of one model: everything in f16, and the mergeable in f32. */
typedef struct pair {
    image files[2];
    jamba_adapter *adapters[2];
} pair;

static bool pair_open(pair *p, const jamba_model *model)
{
    static plan_entry entries[ENTRIES_MAX];
    p->files[0] = make_adapter(model, entries, list_entries(model, entries, want_all), JMB_F16, 7);
    p->files[1] = make_adapter(model, entries, list_entries(model, entries, want_mergeable), JMB_BF16, 8);
    p->adapters[0] = load_adapter(model, &p->files[0]);
    p->adapters[1] = load_adapter(model, &p->files[1]);
    return p->adapters[0] && p->adapters[1];
}

static void pair_close(pair *p)
{
    int i;
    for (i = 0; i < 2; i++) {
        jamba_adapter_free(p->adapters[i]);
        free(p->files[i].bytes);
    }
}

static const float both_scales[2] = { 0.5f, -0.25f };

static void check_ways(const char *path, const jamba_model *model, const pair *p, const int32_t *tokens)
{
    static const jamba_cpu cpus[] = { JAMBA_CPU_SCALAR, JAMBA_CPU_AVX2, JAMBA_CPU_NEON };
    size_t all = LENGTH * (size_t)model_vocab(model) * sizeof(float), i;
    float *want = adapted_logits(model, p->adapters, both_scales, 2, 0, tokens, LENGTH), *got;
    static const int32_t chunks[] = { 1, 3, 64 };
    for (i = 0; i < 3; i++) {
        got = adapted_logits(model, p->adapters, both_scales, 2, chunks[i], tokens, LENGTH);
        CHECK_THAT(memcmp(got, want, all) == 0, "chunk %d differs", (int)chunks[i]);
        free(got);
    }
    for (i = 0; i < 3; i++) {
        jamba_model *other = load_for_cpu(path, cpus[i]);
        pair same;
        if (!other) continue;
        if (CHECK(pair_open(&same, other))) {
            got = adapted_logits(other, same.adapters, both_scales, 2, 0, tokens, LENGTH);
            CHECK_THAT(memcmp(got, want, all) == 0, "instruction set %d differs", (int)cpus[i]);
            free(got);
        }
        pair_close(&same);
        jamba_model_free(other);
    }
    free(want);
}

static void check_scale_zero(const jamba_model *model, const pair *p, const int32_t *tokens)
{
    static const float none[2] = { 0, 0 }, one[2] = { 0, 0.5f };
    size_t all = LENGTH * (size_t)model_vocab(model) * sizeof(float);
    float *plain = adapted_logits(model, NULL, NULL, 0, 0, tokens, LENGTH);
    float *zero = adapted_logits(model, p->adapters, none, 2, 0, tokens, LENGTH);
    float *second = adapted_logits(model, p->adapters, one, 2, 0, tokens, LENGTH);
    float *alone = adapted_logits(model, p->adapters + 1, one + 1, 1, 0, tokens, LENGTH);
    CHECK_THAT(memcmp(plain, zero, all) == 0, "scale 0 is not nothing");
    CHECK_THAT(memcmp(second, alone, all) == 0, "scale 0 beside another is not nothing");
    CHECK_THAT(memcmp(plain, alone, all) != 0, "the adapter changes nothing");
    free(plain);
    free(zero);
    free(second);
    free(alone);
}

/* Member `i` of the crowd: without adapters, with the first, the second, both. */
static jamba_result adapt_member(jamba_session *session, const pair *p, int i)
{
    size_t count = i == 3 ? 2 : i > 0;
    return jamba_session_set_adapters(session, p->adapters + (i == 2), both_scales + (i == 2), count);
}

static jamba_session *open_member(const jamba_model *model, const pair *p, int i, int32_t chunk)
{
    jamba_session_params params;
    jamba_session *session = NULL;
    memset(&params, 0, sizeof params);
    params.context = 2 * LENGTH;
    params.chunk = chunk;
    params.threads = 1;
    if (CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK))
        CHECK(adapt_member(session, p, i) == JAMBA_OK);
    return session;
}

/* Sessions with different adapters in one batch, prompts in common passes, and forks that keep what they have. */
static void check_batch(const jamba_model *model, const pair *p, const int32_t *tokens)
{
    jamba_session *crowd[CROWD], *fork;
    size_t row = (size_t)model_vocab(model) * sizeof(float);
    int i;
    for (i = 0; i < CROWD; i++) {
        crowd[i] = open_member(model, p, i, i == 0 ? 48 : 5); /* the first one lends room for all */
        if (!CHECK(crowd[i] && jamba_feed(crowd[i], tokens, LENGTH - 1 - (size_t)i) == JAMBA_OK)) return;
    }
    CHECK(jamba_step_batch(crowd, CROWD, 0) == JAMBA_OK);
    CHECK(jamba_eval_batch(crowd, tokens, CROWD) == JAMBA_OK);
    for (i = 0; i < CROWD; i++) {
        jamba_session *alone = open_member(model, p, i, 64);
        CHECK(jamba_eval(alone, tokens, LENGTH - 1 - (size_t)i) == JAMBA_OK);
        CHECK(jamba_eval(alone, tokens + i, 1) == JAMBA_OK);
        CHECK_THAT(memcmp(jamba_logits(alone), jamba_logits(crowd[i]), row) == 0, "session %d of the batch differs", i);
        CHECK(jamba_session_fork(&fork, crowd[i], 4, NULL) == JAMBA_OK);
        CHECK(jamba_eval(alone, tokens, 3) == JAMBA_OK && jamba_eval(fork, tokens, 3) == JAMBA_OK);
        CHECK_THAT(memcmp(jamba_logits(alone), jamba_logits(fork), row) == 0, "the fork of session %d differs", i);
        jamba_session_free(fork);
        jamba_session_free(alone);
    }
    for (i = 0; i < CROWD; i++) jamba_session_free(crowd[i]);
}

static jamba_result restore_member(const jamba_model *model, const pair *p, int i, const uint8_t *bytes, size_t size)
{
    jamba_session *session = open_member(model, p, i, 5);
    jamba_result result = jamba_session_restore(session, bytes, size);
    jamba_session_free(session);
    return result;
}

/* A saved state says which adapters it was made with, and goes on with no others. */
static void check_saved(const jamba_model *model, const pair *p, const int32_t *tokens)
{
    jamba_session *session = open_member(model, p, 3, 5);
    jamba_adapter_info adapter;
    jamba_state_info info;
    uint8_t *bytes;
    size_t size;
    int i;
    CHECK(jamba_eval(session, tokens, 6) == JAMBA_OK);
    size = jamba_session_save(session, NULL, 0);
    bytes = (uint8_t *)malloc(size);
    test_require(bytes && jamba_session_save(session, bytes, size) == size, "cannot save", "adapters.c");
    CHECK(jamba_state_describe(bytes, size, &info, NULL) == JAMBA_OK && info.adapters == 2);
    for (i = 0; i < 2; i++) {
        jamba_adapter_describe(p->adapters[i], &adapter);
        CHECK(info.adapter_hash[i] == adapter.hash && info.adapter_scale[i] == both_scales[i]);
    }
    for (i = 0; i < CROWD; i++)
        CHECK(restore_member(model, p, i, bytes, size) == (i == 3 ? JAMBA_OK : JAMBA_ERR_MISMATCH));
    jamba_session_free(session);
    free(bytes);
}

static jamba_session *open_marked(const jamba_model *model)
{
    jamba_session_params params;
    jamba_session *session = NULL;
    memset(&params, 0, sizeof params);
    params.context = 600;
    params.marks = 2;
    params.threads = 1;
    CHECK(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK);
    return session;
}

/* Tokens that are run again with other adapters get keys and values anew, in pages that no fork shares: what comes of
 * it is what a state saved before goes on with. */
static void check_changed(const jamba_model *model, const pair *p, const char *name)
{
    int32_t *tokens = golden_tokens(name, 300);
    jamba_session *session = open_marked(model), *other = open_marked(model), *fork;
    size_t row = (size_t)model_vocab(model) * sizeof(float), size;
    uint8_t *bytes;
    int order;
    for (order = 0; order < 2; order++) { /* back, then other adapters; other adapters, then back */
        jamba_session_reset(session);
        CHECK(jamba_session_set_adapters(session, NULL, NULL, 0) == JAMBA_OK);
        CHECK(jamba_eval(session, tokens, 5) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
        CHECK(jamba_eval(session, tokens + 5, 290) == JAMBA_OK);
        CHECK(jamba_session_fork(&fork, session, 10, NULL) == JAMBA_OK);
        if (order == 0) CHECK(jamba_session_rewind(session, 280, NULL) == JAMBA_OK);
        CHECK(jamba_session_set_adapters(session, p->adapters, both_scales, 2) == JAMBA_OK);
        if (order == 1) CHECK(jamba_session_rewind(session, 280, NULL) == JAMBA_OK);
        size = jamba_session_save(session, NULL, 0);
        bytes = (uint8_t *)malloc(size);
        test_require(bytes && jamba_session_save(session, bytes, size) == size, "cannot save", name);
        CHECK(jamba_session_set_adapters(other, p->adapters, both_scales, 2) == JAMBA_OK);
        CHECK_THAT(jamba_session_restore(other, bytes, size) == JAMBA_OK, "%s", jamba_session_error(other)->message);
        CHECK(jamba_step(session, 0) == JAMBA_OK && jamba_step(other, 0) == JAMBA_OK);
        CHECK_THAT(memcmp(jamba_logits(session), jamba_logits(other), row) == 0, "order %d: restored, it differs",
            order);
        jamba_session_free(session);
        session = open_marked(model);
        CHECK(jamba_eval(session, tokens, 295) == JAMBA_OK && jamba_eval(session, tokens, 3) == JAMBA_OK);
        CHECK(jamba_eval(fork, tokens, 3) == JAMBA_OK);
        CHECK_THAT(memcmp(jamba_logits(session), jamba_logits(fork), row) == 0, "order %d: the fork has changed",
            order);
        jamba_session_free(fork);
        free(bytes);
    }
    jamba_session_free(session);
    jamba_session_free(other);
    free(tokens);
}

static void test_ways(const char *name, const char *type)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    int32_t *tokens = golden_tokens(name, LENGTH);
    jamba_model *model;
    pair p;
    snprintf(folder, sizeof folder, "tests/cases/%s", name);
    if (convert(folder, name, type, path) && CHECK((model = load_for_cpu(path, JAMBA_CPU_BEST)) != NULL)) {
        if (CHECK(pair_open(&p, model))) {
            check_ways(path, model, &p, tokens);
            check_scale_zero(model, &p, tokens);
            check_batch(model, &p, tokens);
            check_saved(model, &p, tokens);
            check_changed(model, &p, name);
        }
        pair_close(&p);
        jamba_model_free(model);
    }
    free(tokens);
}

/* ---- what is refused ------------------------------------------------------------------------------------------ */

/* Whatever the file says, loading fails or what is loaded runs. */
static bool loads(const jamba_model *model, const image *file, size_t size)
{
    jamba_adapter *adapter = NULL;
    jamba_error error;
    jamba_session *session;
    int32_t token = 1;
    memset(&error, 0, sizeof error);
    if (jamba_adapter_load(&adapter, model, jamba_from_memory(file->bytes, size), &error) != JAMBA_OK) {
        CHECK_THAT(adapter == NULL && error.code < 0 && error.message[0], "a failure without its error");
        return false;
    }
    if (CHECK(jamba_session_create(&session, model, NULL, NULL) == JAMBA_OK)) {
        CHECK(jamba_session_set_adapters(session, &adapter, NULL, 1) == JAMBA_OK);
        CHECK(jamba_eval(session, &token, 1) == JAMBA_OK);
        jamba_session_free(session);
    }
    jamba_adapter_free(adapter);
    return true;
}

static void check_damage(const jamba_model *model, image *file)
{
    size_t i, head = JMB_ADAPTER_BYTES + 2 * JMB_ADAPTER_ENTRY;
    for (i = 0; i < file->size; i++) {
        CHECK_THAT(!loads(model, file, i), "the first %zu bytes load", i);
        file->bytes[i] ^= 0x10;
        CHECK_THAT(!loads(model, file, file->size), "byte %zu changed and loads", i);
        file->bytes[i] ^= 0x10;
    }
    for (i = 0; i < head; i++) { /* well hashed, and wrong */
        static const uint8_t values[] = { 0, 1, 0x7f, 0xff };
        uint8_t was = file->bytes[i];
        size_t k;
        for (k = 0; k < sizeof values; k++) {
            file->bytes[i] = values[k];
            seal(file);
            if (values[k] != was && (i < 24 || i >= 32))
                CHECK_THAT(!loads(model, file, file->size), "byte %zu is %u", i, values[k]);
        }
        file->bytes[i] = was;
    }
    seal(file);
    CHECK(loads(model, file, file->size));
}

static size_t no_read(void *user, uint64_t offset, void *dst, size_t size)
{
    (void)user, (void)offset, (void)dst, (void)size;
    return 0;
}

static void check_arguments(const jamba_model *model, const jamba_model *other, const image *file)
{
    jamba_adapter *adapter = load_adapter(model, file), *none = adapter, *list[2];
    const float bad[1] = { NAN };
    jamba_session *session;
    jamba_adapter_info info;
    jamba_io io = { no_read, NULL, 1000 };
    jamba_error error;
    CHECK(jamba_adapter_load(NULL, model, jamba_from_memory(file->bytes, file->size), &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_adapter_load(&none, NULL, jamba_from_memory(file->bytes, file->size), &error) == JAMBA_ERR_ARGUMENT);
    CHECK(none == NULL);
    CHECK(jamba_adapter_load(&none, other, jamba_from_memory(file->bytes, file->size), &error) == JAMBA_ERR_MISMATCH);
    CHECK(jamba_adapter_load(&none, model, jamba_from_io(io), &error) == JAMBA_ERR_IO);
    CHECK(jamba_adapter_load(&none, model, jamba_from_file("build/no such file"), &error) == JAMBA_ERR_IO);
    CHECK(strstr(error.message, "no such file") != NULL);
    jamba_adapter_describe(adapter, &info);
    CHECK(info.matrices > 0 && info.rank > 0 && info.parameters > 0 && info.memory > file->size && info.hash != 0);
    if (!CHECK(jamba_session_create(&session, other, NULL, NULL) == JAMBA_OK)) return;
    list[0] = adapter;
    list[1] = NULL;
    CHECK(jamba_session_set_adapters(session, list, NULL, 1) == JAMBA_ERR_MISMATCH);
    CHECK(jamba_session_set_adapters(session, list + 1, NULL, 1) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_set_adapters(session, NULL, NULL, 1) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_set_adapters(session, list, NULL, 1000) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_set_adapters(NULL, list, NULL, 1) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_session_set_adapters(session, NULL, NULL, 0) == JAMBA_OK);
    jamba_session_free(session);
    if (!CHECK(jamba_session_create(&session, model, NULL, NULL) == JAMBA_OK)) return;
    CHECK(jamba_session_set_adapters(session, list, bad, 1) == JAMBA_ERR_ARGUMENT);
    jamba_session_free(session);
    jamba_adapter_free(adapter);
}

static bool want_few(const plan_entry *e, const jamba_model *model)
{
    (void)model;
    return e->key.block == 0 && e->w->cols < 200 && (e->key.role == JMB_ROLE_DT || e->key.role == JMB_ROLE_DT_LOW);
}

static void test_refusals(void)
{
    static plan_entry entries[ENTRIES_MAX];
    char path[PATH_ROOM], other_path[PATH_ROOM];
    jamba_model *model, *other;
    image file;
    if (!convert("tests/cases/jamba-moe", "jamba-moe", "f32", path)) return;
    if (!convert("tests/cases/jamba-moe", "jamba-moe-q8", "q8", other_path)) return;
    model = load_for_cpu(path, JAMBA_CPU_BEST);
    other = load_for_cpu(other_path, JAMBA_CPU_BEST);
    if (CHECK(model && other)) {
        file = make_adapter(model, entries, list_entries(model, entries, want_few), JMB_F16, 1);
        check_damage(model, &file);
        check_arguments(model, other, &file);
        free(file.bytes);
    }
    jamba_model_free(model);
    jamba_model_free(other);
}

int main(int argc, char **argv)
{
    char folder[PATH_ROOM], path[PATH_ROOM];
    size_t i;
    test_start(argc, argv);
    for (i = 0; i < GOLDEN_CASES; i++) {
        const char *name = golden_cases[i].name;
        jamba_model *model;
        if (!test_begin("%s", name)) continue;
        snprintf(folder, sizeof folder, "tests/cases/%s", name);
        if (convert(folder, name, "f32", path) && CHECK((model = load_for_cpu(path, JAMBA_CPU_BEST)) != NULL)) {
            check_merged(name, path, model);
            jamba_model_free(model);
        }
        test_end();
    }
    for (i = 0; i < 6; i++) {
        static const char *const names[] = { "jamba-moe", "mixtral", "zamba", "zamba2-abc", "mamba", "llama" };
        static const char *const types[] = { "q8", "f32", "f32", "q8", "q4", "f16" };
        if (!test_begin("%s %s, every way to run it", names[i], types[i])) continue;
        test_ways(names[i], types[i]);
        test_end();
    }
    if (test_begin("refusals")) {
        test_refusals();
        test_end();
    }
    return test_summary();
}
