/* damage.c - damaged model files
 *
 * Every prefix, every changed byte and random mutations of small models, with blocks of every kind, give an error or
 * a model that can be used; the hash that guards the metadata is repaired in half of the sweeps, so that the checks
 * behind it are reached. Meant to run under the sanitizers too. */
#include "programs.h"
#include "tiny.h"

static uint8_t *file;
static size_t file_size, metadata_size;
static char model_path[PATH_ROOM];

/* What a load may take of the heap: the file, its tables, the tokenizer's. */
enum { LOAD_LIMIT = 1 << 20 };

/* Exactly `size` bytes aligned to 64, so that a sanitizer sees the first byte read behind them. */
static uint8_t *exact_copy(const uint8_t *data, size_t size)
{
    void *copy;
    test_require(posix_memalign(&copy, 64, size ? size : 1) == 0, "out of memory", "");
    memcpy(copy, data, size);
    return (uint8_t *)copy;
}

static void store_u32(uint8_t *p, uint32_t value)
{
    int i;
    for (i = 0; i < 4; i++) p[i] = (uint8_t)(value >> (8 * i));
}

static void store_u64(uint8_t *p, uint64_t value)
{
    store_u32(p, (uint32_t)value);
    store_u32(p + 4, (uint32_t)(value >> 32));
}

/* A failure is as documented: no model, a message, the code in the struct too. */
static void check_failure(jamba_result result, const jamba_model *model, const jamba_error *error, const char *what)
{
    CHECK_THAT(model == NULL && error->code == result && error->message[0], "%s: result %d, code %d, '%s'", what,
        (int)result, (int)error->code, error->message);
}

/* Evaluates, samples, encodes and decodes a little; whatever the file says must not hurt. */
static void use_model(const jamba_model *model)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_sampler sampler;
    int32_t tokens[3] = { 1, 5, 3 }, ids[64], vocab = model_vocab(model), next;
    size_t i, count;
    char text[256];
    memset(&params, 0, sizeof params);
    memset(&sampler, 0, sizeof sampler);
    params.context = 4;
    params.chunk = 2;
    for (i = 0; i < 3; i++) tokens[i] = tokens[i] < vocab ? tokens[i] : 0;
    if (jamba_session_create(&session, model, &params, NULL) == JAMBA_OK) {
        CHECK(jamba_eval(session, tokens, 3) == JAMBA_OK);
        sampler.temperature = 1;
        next = jamba_sample(session, &sampler);
        CHECK_THAT(next == JAMBA_ERR_NUMERIC || (next >= 0 && next < vocab), "sampled %d", (int)next);
        if (next >= 0) CHECK(jamba_eval(session, &next, 1) == JAMBA_OK);
        jamba_session_free(session);
    }
    if (jamba_encode(model, "ab <s>abcd\xc3\xa9", 12, JAMBA_TEXT_BOS | JAMBA_TEXT_SPECIAL, ids, 64, &count, NULL)
        == JAMBA_OK)
        for (i = 0; i < count && i < 64; i++) CHECK_THAT(ids[i] >= 0 && ids[i] < vocab, "encoded as %d", (int)ids[i]);
    for (i = 0; i < 64; i++) ids[i] = (int32_t)(i * 5) % vocab;
    jamba_decode(model, ids, 64, JAMBA_TEXT_SPECIAL, text, sizeof text, &count, NULL);
}

/* Loads `size` bytes; uses what loads. Returns whether it did. */
static bool try_load(const uint8_t *data, size_t size, bool verify, jamba_error *error, const char *what)
{
    counter c;
    jamba_allocator allocator = counter_open(&c);
    jamba_model_params params;
    jamba_model *model = NULL;
    jamba_result result;
    uint8_t *copy = exact_copy(data, size);
    memset(&params, 0, sizeof params);
    memset(error, 0, sizeof *error);
    params.allocator = &allocator;
    params.verify = verify;
    result = jamba_model_load(&model, jamba_from_memory(copy, size), &params, error);
    CHECK_THAT(c.peak <= LOAD_LIMIT, "%s: the load takes %zu bytes", what, c.peak);
    if (result == JAMBA_OK) use_model(model);
    else check_failure(result, model, error, what);
    jamba_model_free(model);
    CHECK_THAT(c.live == 0 && c.wrong == 0, "%s: %d blocks left", what, c.live);
    free(copy);
    return result == JAMBA_OK;
}

/* ---- length -------------------------------------------------------------------------------------- */

static void test_size(void)
{
    jamba_error error;
    CHECK_THAT(file_size < 32768, "the model has %zu bytes", file_size);
    CHECK(jmb_load_u32(file + 68) == 16);
    CHECK(try_load(file, file_size, true, &error, "whole"));
}

static void test_trailing(void)
{
    uint8_t *data = (uint8_t *)calloc(1, file_size + 128);
    jamba_error error;
    size_t n;
    for (n = 1; n <= 128; n += 21) {
        memcpy(data, file, file_size);
        CHECK(!try_load(data, file_size + n, false, &error, "bytes after the end"));
        store_u64(data + 16, file_size + n);
        repair_identity(data);
        CHECK(!try_load(data, file_size + n, false, &error, "bytes after the end, announced"));
        CHECK_THAT(strstr(error.message, "end") != NULL, "%s", error.message);
    }
    free(data);
}

/* ---- sweeps ------------------------------------------------------------------------------------------ */

/* A model file whose bytes are swept, and what has come of it. */
typedef struct subject {
    const char *name;
    const uint8_t *data;
    size_t size, metadata;
    size_t loaded, refused;
} subject;

enum { SUBJECTS = 5 };

static subject subjects[SUBJECTS];
static image subject_images[SUBJECTS];

/* Biases, norms inside, adapters, shared tensors, a head of its own. */
static program every_flag(uint32_t type)
{
    program p = start_program(24, 12, type);
    jmb_block *b = add_block(&p, JMB_MAMBA);
    b->flags = JMB_BIAS | JMB_CONV_BIAS | JMB_DT_NORM;
    b->heads = 1;
    b = add_block(&p, JMB_ATTENTION);
    b->flags = JMB_BIAS | JMB_ROPE;
    b->input = JMB_FROM_X_AND_E;
    b->rank = 2;
    b = add_block(&p, JMB_ATTENTION);
    *b = p.blocks[1];
    b = add_block(&p, JMB_MLP);
    b->flags = JMB_BIAS;
    b->rank = 3;
    b = add_block(&p, JMB_MAMBA2);
    b->flags = JMB_BIAS | JMB_CONV_BIAS;
    b->n_groups = 2;
    b = add_block(&p, JMB_MOE);
    b->flags = JMB_RENORMALISE;
    b->experts = 2;
    p.header.head = 1;
    return p;
}

/* The converted model, and others whose programs have blocks of every kind. */
static void open_subjects(void)
{
    static const char *const names[] = { "", "every kind, f32", "every kind, mixed types", "every flag, f32",
        "every flag, q4" };
    program programs[SUBJECTS];
    int i;
    subjects[0].name = "converted";
    subjects[0].data = file;
    subjects[0].size = file_size;
    subjects[0].metadata = metadata_size;
    programs[1] = every_kind(JMB_F32);
    programs[2] = every_kind(JMB_TYPES);
    programs[3] = every_flag(JMB_F32);
    programs[4] = every_flag(JMB_Q4);
    for (i = 1; i < SUBJECTS; i++) {
        subject_images[i] = write_image(&programs[i]);
        subjects[i].name = names[i];
        subjects[i].data = subject_images[i].data;
        subjects[i].size = subject_images[i].size;
        subjects[i].metadata = (size_t)jmb_load_u64(subject_images[i].data + 24);
    }
}

static void close_subjects(void)
{
    int i;
    for (i = 1; i < SUBJECTS; i++) image_free(&subject_images[i]);
}

static sweep sweep_of(subject *s, void (*test)(void *, const uint8_t *, size_t, const char *),
    void (*repair)(uint8_t *, size_t))
{
    sweep w;
    w.good = s->data;
    w.size = s->size;
    w.repair = repair;
    w.test = test;
    w.user = s;
    s->loaded = s->refused = 0;
    return w;
}

static void repair_hash(uint8_t *data, size_t size)
{
    if (size >= JMB_HEADER_BYTES && jmb_load_u64(data + 24) >= JMB_HEADER_BYTES && jmb_load_u64(data + 24) <= size)
        repair_identity(data);
}

/* The header says that what there is is the whole file. */
static void announce(uint8_t *data, size_t size)
{
    if (size >= JMB_HEADER_BYTES) store_u64(data + 16, size);
    repair_hash(data, size);
}

/* Damage that a hash or a size gives away. */
static void must_fail(void *user, const uint8_t *data, size_t size, const char *what)
{
    subject *s = (subject *)user;
    jamba_error error;
    CHECK_THAT(!try_load(data, size, false, &error, what), "%s: %s: loads", s->name, what);
    CHECK_THAT(error.code == JAMBA_ERR_FORMAT || error.code == JAMBA_ERR_UNSUPPORTED, "%s: %s: code %d", s->name, what,
        (int)error.code);
    s->refused++;
}

/* The same, where the data is looked at. */
static void must_be_found(void *user, const uint8_t *data, size_t size, const char *what)
{
    jamba_error error;
    CHECK_THAT(!try_load(data, size, true, &error, what), "%s: %s: is not found", ((subject *)user)->name, what);
    CHECK_THAT(strstr(error.message, "tensor") && strstr(error.message, "damaged"), "%s", error.message);
}

/* Some damage gives another valid model, such as a changed token text. */
static void may_load(void *user, const uint8_t *data, size_t size, const char *what)
{
    subject *s = (subject *)user;
    jamba_error error;
    if (try_load(data, size, false, &error, what)) s->loaded++;
    else s->refused++;
}

static void test_prefixes(subject *s)
{
    sweep w = sweep_of(s, must_fail, NULL);
    sweep_prefixes(&w, 0, s == subjects ? 1 : 37);
    w.repair = announce;
    sweep_prefixes(&w, s->metadata, 61);
}

/* Every change is seen, of one bit or more. */
static void test_metadata_stale(subject *s)
{
    sweep w = sweep_of(s, must_fail, NULL);
    sweep_bytes(&w, 0, s->metadata, SWEEP_CHANGES, s == subjects ? 3 : 1);
    if (s == subjects && sweep_all()) sweep_values(&w, 0, 4096, 256);
    CHECK_THAT(s->refused >= s->metadata / 2, "only %zu changes", s->refused);
}

static void test_metadata_repaired(subject *s)
{
    sweep w = sweep_of(s, may_load, repair_hash);
    sweep_bytes(&w, 0, s->metadata, SWEEP_CHANGES, s == subjects ? 2 : 1);
    if (s == subjects && sweep_all()) sweep_values(&w, 0, 4096, 256);
    CHECK_THAT(s->refused > s->metadata / 4 && s->loaded > 100, "%zu refused, %zu loaded", s->refused, s->loaded);
}

/* verify finds any flipped bit of a tensor; without it the model is another one and must not hurt. */
static void test_data_flips(subject *s)
{
    sweep w = sweep_of(s, must_be_found, NULL);
    if (s == subjects || sweep_all()) sweep_bytes(&w, s->metadata, s->size, SWEEP_FLIPS, 1);
    w.test = may_load;
    sweep_bytes(&w, s->size - s->size / 64, s->size, SWEEP_FLIPS, 1);
    CHECK_THAT(s->loaded > s->size / 128, "only %zu load", s->loaded);
}

static void test_mutations(subject *s)
{
    sweep w = sweep_of(s, may_load, repair_hash);
    sweep_mutations(&w, s->metadata, s == subjects ? 3600 : 1200);
    w.repair = NULL;
    sweep_mutations(&w, s->metadata, 100);
    w.repair = announce;
    sweep_mutations(&w, s->metadata, 200);
    CHECK_THAT(s->loaded > 10 && s->refused > 500, "%zu refused, %zu loaded", s->refused, s->loaded);
}

/* All of a tensor's data with one bit pattern: memory-safe, and an error or a token. */
static void test_data_patterns(void)
{
    static const uint8_t patterns[][4] = { { 0, 0, 0xc0, 0x7f }, { 0, 0, 0x80, 0x7f }, { 0xff, 0xff, 0xff, 0xff },
        { 0xff, 0xff, 0x7f, 0x7f }, { 1, 0, 1, 0 }, { 0, 0, 0, 0 }, { 0, 0, 0x80, 0xff } };
    uint8_t *data = exact_copy(file, file_size);
    jmb_header header;
    jamba_error error;
    uint32_t i;
    size_t p, k;
    jmb_read_header(&header, file);
    for (i = 0; i < header.tensors; i++) {
        jmb_entry entry;
        jmb_read_entry(&entry, file + JMB_HEADER_BYTES + header.blocks * JMB_BLOCK_BYTES + i * JMB_ENTRY_BYTES);
        for (p = 0; p < sizeof patterns / sizeof patterns[0]; p++) {
            for (k = 0; k < entry.bytes; k++) data[entry.offset + k] = patterns[p][k % 4];
            CHECK(try_load(data, file_size, false, &error, "tensor of one pattern"));
        }
        memcpy(data + entry.offset, file + entry.offset, (size_t)entry.bytes);
    }
    free(data);
}

/* ---- one rule, one error ------------------------------------------------------------------------------ */

typedef struct header_change {
    size_t at; /* relative to the start of the part */
    uint32_t value;
    jamba_result code;
    const char *words; /* that the message has */
} header_change;

static void check_change(uint8_t *data, size_t at, const header_change *c)
{
    jamba_error error;
    uint32_t before = jmb_load_u32(data + at);
    store_u32(data + at, c->value);
    repair_identity(data);
    CHECK_THAT(!try_load(data, file_size, false, &error, c->words), "%u at %zu loads", c->value, at);
    CHECK_THAT(error.code == c->code && strstr(error.message, c->words), "%u at %zu: code %d, '%s', expected '%s'",
        c->value, at, (int)error.code, error.message, c->words);
    store_u32(data + at, before);
}

/* Missing, doubled, swapped, misshaped and misplaced directory entries. */
static void test_directory_rules(void)
{
    uint8_t *data = exact_copy(file, file_size);
    uint32_t tensors = jmb_load_u32(file + 80), i;
    size_t start = 256 + 128 * 4;
    jamba_error error;
    for (i = 0; i < tensors; i++) {
        static const header_change changes[] = {
            { 0, 0x00ff00ffu, JAMBA_ERR_FORMAT, "tensor" },
            { 8, 7, JAMBA_ERR_FORMAT, "should be" },
            { 12, 0x10000000u, JAMBA_ERR_FORMAT, "should be" },
            { 16, 64, JAMBA_ERR_FORMAT, "where it should be" },
            { 24, 0, JAMBA_ERR_FORMAT, "where it should be" },
            { 28, 1, JAMBA_ERR_FORMAT, "where it should be" },
            { 60, 1, JAMBA_ERR_FORMAT, "zero" },
        };
        size_t entry = start + 64 * i, k;
        for (k = 0; k < sizeof changes / sizeof changes[0]; k++) check_change(data, entry + changes[k].at, &changes[k]);
        data[entry + 6] = 77;
        repair_identity(data);
        CHECK(!try_load(data, file_size, false, &error, "type") && strstr(error.message, "type"));
        data[entry + 6] = file[entry + 6];
        if (i == 0) continue;
        memcpy(data + entry, file + entry - 64, 64); /* doubled */
        repair_identity(data);
        CHECK(!try_load(data, file_size, false, &error, "doubled") && strstr(error.message, "missing or out of order"));
        memcpy(data + entry - 64, file + entry, 64); /* swapped */
        repair_identity(data);
        CHECK(!try_load(data, file_size, false, &error, "swapped") && strstr(error.message, "missing or out of order"));
        memcpy(data + entry - 64, file + entry - 64, 128);
    }
    store_u32(data + 80, tensors - 1);
    repair_identity(data);
    CHECK(!try_load(data, file_size, false, &error, "a tensor fewer"));
    store_u64(data + 144, jmb_load_u64(data + 144) + 64); /* its entry now counts as strings */
    repair_identity(data);
    CHECK(!try_load(data, file_size, false, &error, "a tensor fewer, the layout kept"));
    CHECK_THAT(error.code == JAMBA_ERR_FORMAT && strstr(error.message, "its program"), "%s", error.message);
    free(data);
}

/* ---- sizes and stops ---------------------------------------------------------------------------------------- */

static size_t read_piece(void *user, uint64_t offset, void *dst, size_t size)
{
    memcpy(dst, (const uint8_t *)user + offset, size);
    return size;
}

/* A size that the caller only claims. */
static void test_claimed_sizes(void)
{
    static const uint64_t sizes[] = { 0, 1, 255, 256 };
    size_t i;
    for (i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        jamba_model *model;
        jamba_error error;
        jamba_io io;
        io.read = read_piece;
        io.user = file;
        io.size = sizes[i];
        CHECK(jamba_model_load(&model, jamba_from_io(io), NULL, &error) == JAMBA_ERR_FORMAT && model == NULL);
        CHECK(error.message[0]);
    }
}

static bool stop_at(void *user, const char *stage, uint64_t done, uint64_t total)
{
    int *left = (int *)user;
    CHECK(stage && stage[0] && done <= total);
    return --*left != 0;
}

static void test_stopped_loads(void)
{
    int n, left;
    for (n = 1; n < 1000; n++) {
        counter c;
        jamba_allocator allocator = counter_open(&c);
        jamba_model_params params;
        jamba_model *model = NULL;
        jamba_error error;
        jamba_result result;
        memset(&params, 0, sizeof params);
        params.allocator = &allocator;
        params.no_mmap = params.verify = true;
        params.progress = stop_at;
        params.progress_user = &left;
        left = n;
        result = jamba_model_load(&model, jamba_from_file(model_path), &params, &error);
        if (result == JAMBA_OK) {
            jamba_model_free(model);
            break;
        }
        CHECK(result == JAMBA_ERR_ABORTED && c.live == 0);
        check_failure(result, model, &error, "stopped");
    }
    CHECK_THAT(n > 10 && n < 1000, "progress is called %d times", n - 1);
}

static void test_odd_files(void)
{
    static const struct {
        const char *path;
        jamba_result code;
    } files[] = {
        { "tests/no/such/file", JAMBA_ERR_IO },
        { "tests", JAMBA_ERR_IO },
        { "/dev/null", JAMBA_ERR_IO },
        { "Makefile", JAMBA_ERR_FORMAT },
    };
    char empty[PATH_ROOM];
    jamba_model *model;
    jamba_error error;
    size_t i;
    for (i = 0; i < sizeof files / sizeof files[0]; i++) {
        jamba_result result = jamba_model_load(&model, jamba_from_file(files[i].path), NULL, &error);
        CHECK_THAT(result == files[i].code, "%s: %d", files[i].path, (int)result);
        check_failure(result, model, &error, files[i].path);
        if (result == JAMBA_ERR_IO) CHECK_THAT(strstr(error.message, files[i].path) != NULL, "%s", error.message);
    }
    file_write(temp_path(empty, "empty.jamba"), "", 0);
    CHECK(jamba_model_load(&model, jamba_from_file(empty), NULL, &error) == JAMBA_ERR_FORMAT && model == NULL);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "the small model", test_size },
        { "bytes after the end", test_trailing },
        { "data of one pattern", test_data_patterns },
        { "directory rules", test_directory_rules },
        { "short files", test_claimed_sizes },
        { "stopped loads", test_stopped_loads },
        { "files that are no model", test_odd_files },
    };
    static const struct {
        const char *name;
        void (*run)(subject *);
    } sweeps[] = {
        { "every prefix", test_prefixes },
        { "every metadata byte changed", test_metadata_stale },
        { "every metadata byte changed, hash repaired", test_metadata_repaired },
        { "flipped data bits", test_data_flips },
        { "random mutations", test_mutations },
    };
    char folder[PATH_ROOM];
    size_t i, k;
    test_start(argc, argv);
    if (!test_state.list) {
        tiny_write(temp_path(folder, "tiny"), false);
        test_require(convert(folder, "tiny", "bf16", model_path), "cannot convert", folder);
        file = file_need(model_path, &file_size);
        metadata_size = (size_t)jmb_load_u64(file + 24);
        {
            uint8_t *aligned = exact_copy(file, file_size);
            free(file);
            file = aligned;
        }
        open_subjects();
    }
    for (k = 0; k < sizeof sweeps / sizeof sweeps[0]; k++)
        for (i = 0; i < SUBJECTS; i++) {
            if (!test_begin("%s of %s", sweeps[k].name, subjects[i].name ? subjects[i].name : "a model")) continue;
            sweeps[k].run(&subjects[i]);
            test_end();
        }
    test_run(tests, sizeof tests / sizeof tests[0]);
    close_subjects();
    free(file);
    return test_summary();
}
