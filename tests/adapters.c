/* adapters.c - LoRA at run time: against weights that hold the same change, alone and in batches, and on damaged files
 *
 * Adapters with random matrices for everything that one can go with are written here, so that no converter and no
 * library is in the way; those of the peft library are the business of lora.c. */
#include "adapter_files.h"

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
        l.a.data = file->data + e->a_at;
        l.b.data = file->data + e->b_at;
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
    free(file.data);
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
        free(p->files[i].data);
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

/* As many as a session may use. */
static void check_saved_most(const jamba_model *model, const pair *p, const int32_t *tokens)
{
    enum { MOST = JAMBA_ADAPTERS_MAX };
    jamba_session *session = open_member(model, p, 0, 5), *other = open_member(model, p, 0, 5);
    jamba_adapter *adapters[MOST];
    jamba_adapter_info adapter;
    jamba_state_info info;
    float scales[MOST];
    uint8_t *bytes;
    size_t size, i;
    for (i = 0; i < MOST; i++) {
        adapters[i] = p->adapters[i % 2];
        scales[i] = 0.0625f * (float)(1 + i);
    }
    CHECK(jamba_session_set_adapters(session, adapters, scales, MOST) == JAMBA_OK);
    CHECK(jamba_session_set_adapters(other, adapters, scales, MOST) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens, 6) == JAMBA_OK);
    size = jamba_session_save(session, NULL, 0);
    bytes = (uint8_t *)malloc(size);
    test_require(bytes && jamba_session_save(session, bytes, size) == size, "cannot save", "adapters.c");
    CHECK(jamba_state_describe(bytes, size, &info, NULL) == JAMBA_OK && info.adapters == MOST);
    for (i = 0; i < MOST; i++) {
        jamba_adapter_describe(adapters[i], &adapter);
        CHECK(info.adapter_hash[i] == adapter.hash && info.adapter_scale[i] == scales[i]);
    }
    CHECK_THAT(jamba_session_restore(other, bytes, size) == JAMBA_OK, "%s", jamba_session_error(other)->message);
    CHECK(jamba_session_set_adapters(other, adapters, scales, MOST - 1) == JAMBA_OK);
    CHECK(jamba_session_restore(other, bytes, size) == JAMBA_ERR_MISMATCH);
    jamba_session_free(session);
    jamba_session_free(other);
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
            check_saved_most(model, &p, tokens);
            check_changed(model, &p, name);
        }
        pair_close(&p);
        jamba_model_free(model);
    }
    free(tokens);
}

/* ---- what is refused ------------------------------------------------------------------------------------------ */

typedef struct damaged {
    const jamba_model *model;
    size_t loaded, refused;
} damaged;

/* Memory that a load may take beside a copy of the file. */
enum { LOAD_LIMIT = 1 << 16 };

/* Whatever the file says, loading fails or what is loaded runs. */
static void may_load(void *user, const uint8_t *data, size_t size, const char *what)
{
    damaged *d = (damaged *)user;
    uint8_t *copy = (uint8_t *)malloc(size ? size : 1); /* ends with its last byte */
    jamba_adapter *adapter = NULL;
    jamba_adapter_info info;
    jamba_error error;
    jamba_session *session;
    int32_t token = 1;
    memcpy(copy, data, size);
    memset(&error, 0, sizeof error);
    if (jamba_adapter_load(&adapter, d->model, jamba_from_memory(copy, size), &error) != JAMBA_OK) {
        CHECK_THAT(adapter == NULL && error.code < 0 && error.message[0], "%s: a failure without its error", what);
        CHECK_THAT(error.offset <= size, "%s: an error at %llu", what, (unsigned long long)error.offset);
        d->refused++;
    } else {
        jamba_adapter_describe(adapter, &info);
        CHECK_THAT(info.memory <= size + LOAD_LIMIT, "%s: takes %zu bytes", what, (size_t)info.memory);
        if (CHECK(jamba_session_create(&session, d->model, NULL, NULL) == JAMBA_OK)) {
            CHECK(jamba_session_set_adapters(session, &adapter, NULL, 1) == JAMBA_OK);
            CHECK(jamba_eval(session, &token, 1) == JAMBA_OK);
            jamba_session_free(session);
        }
        d->loaded++;
    }
    jamba_adapter_free(adapter);
    free(copy);
}

static void must_fail(void *user, const uint8_t *data, size_t size, const char *what)
{
    damaged *d = (damaged *)user;
    size_t before = d->loaded;
    may_load(user, data, size, what);
    CHECK_THAT(d->loaded == before, "%s: loads", what);
}

static void repair_adapter(uint8_t *data, size_t size)
{
    image file;
    file.data = data;
    file.size = size;
    if (size >= JMB_ADAPTER_BYTES && size % 8 == 0) seal(&file);
}

static void announce_adapter(uint8_t *data, size_t size)
{
    if (size >= JMB_ADAPTER_BYTES) STORE_u64(data + 16, size);
    repair_adapter(data, size);
}

static void check_damage(const jamba_model *model, const image *file)
{
    damaged d = { model, 0, 0 };
    size_t head = JMB_ADAPTER_BYTES + (size_t)jmb_load_u32(file->data + 12) * JMB_ADAPTER_ENTRY;
    sweep w;
    w.good = file->data;
    w.size = file->size;
    w.user = &d;
    w.test = must_fail;
    w.repair = NULL;
    sweep_prefixes(&w, 0, 1);
    sweep_bytes(&w, 0, file->size, SWEEP_CHANGES, 2);
    w.repair = announce_adapter;
    sweep_prefixes(&w, 0, 1);
    w.repair = repair_adapter;
    w.test = may_load; /* another rank may take as many bytes */
    sweep_bytes(&w, 0, head, SWEEP_CHANGES, SWEEP_CHANGES);
    sweep_bytes(&w, head, file->size, SWEEP_CHANGES, 1);
    sweep_values(&w, 0, head, 4);
    CHECK_THAT(d.refused > 6 * head && d.loaded > (file->size - head) / 2, "%zu refused, %zu loaded", d.refused,
        d.loaded);
    sweep_mutations(&w, head, 9000);
    w.repair = announce_adapter;
    sweep_mutations(&w, head, 1000);
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
    CHECK(jamba_adapter_load(NULL, model, jamba_from_memory(file->data, file->size), &error) == JAMBA_ERR_ARGUMENT);
    CHECK(jamba_adapter_load(&none, NULL, jamba_from_memory(file->data, file->size), &error) == JAMBA_ERR_ARGUMENT);
    CHECK(none == NULL);
    CHECK(jamba_adapter_load(&none, other, jamba_from_memory(file->data, file->size), &error) == JAMBA_ERR_MISMATCH);
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

/* The largest rank there may be, and eight bytes of something else. */
static void check_limits(const jamba_model *model, plan_entry *entries, size_t count)
{
    jamba_adapter *adapter = NULL;
    jamba_error error;
    image file;
    entries[0].rank = JMB_MAX_RANK;
    file = make_adapter(model, entries, count, JMB_F16, 1);
    jamba_adapter_free(load_adapter(model, &file));
    free(file.data);
    CHECK(jamba_adapter_load(&adapter, model, jamba_from_memory("jamba.h ", 8), &error) == JAMBA_ERR_FORMAT);
    CHECK_THAT(strstr(error.message, "not an adapter for jamba.h") != NULL && !adapter, "%s", error.message);
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
        size_t count = list_entries(model, entries, want_few);
        file = make_adapter(model, entries, count, JMB_F16, 1);
        check_damage(model, &file);
        check_arguments(model, other, &file);
        free(file.data);
        check_limits(model, entries, count);
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
