/* damage.c - damaged model files
 *
 * Every prefix and every changed metadata byte of a small model gives its error or a model that can be
 * used; the hash that guards the metadata is repaired in half of the sweeps, so that the checks behind
 * it are reached. Meant to run under the sanitizers too. */
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

static void repair_identity(uint8_t *data)
{
    uint8_t digest[32];
    jmb_identity(data, jmb_load_u64(data + 24), digest);
    memcpy(data + 32, digest, 32);
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

static void test_prefixes(void)
{
    jamba_error error;
    char what[60];
    size_t n;
    for (n = 0; n < file_size; n++) {
        snprintf(what, sizeof what, "prefix of %zu", n);
        CHECK_THAT(!try_load(file, n, false, &error, what), "%s loads", what);
        CHECK_THAT(error.code == JAMBA_ERR_FORMAT, "%s: code %d", what, (int)error.code);
        if (n >= 256) CHECK_THAT(strstr(error.message, "bytes") != NULL, "%s: %s", what, error.message);
    }
}

/* The header says the prefix is the whole file, and its hash agrees. */
static void test_prefixes_repaired(void)
{
    uint8_t *data = exact_copy(file, file_size);
    jamba_error error;
    char what[60];
    size_t n;
    for (n = metadata_size; n < file_size; n += n < metadata_size + 100 ? 1 : 61) {
        snprintf(what, sizeof what, "prefix of %zu that says so", n);
        store_u64(data + 16, n);
        repair_identity(data);
        CHECK_THAT(!try_load(data, n, false, &error, what) && error.code == JAMBA_ERR_FORMAT, "%s loads", what);
    }
    free(data);
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

/* ---- changed bytes --------------------------------------------------------------------------------- */

static uint8_t changed_byte(uint8_t byte, int way)
{
    switch (way) {
    case 0: return byte ^ 1;
    case 1: return byte ^ 0x80;
    case 2: return 0;
    case 3: return 0xff;
    case 4: return (uint8_t)(byte + 1);
    default: return (uint8_t)(byte - 1);
    }
}

enum { CHANGES = 6 };

static void test_metadata_stale(void)
{
    uint8_t *data = exact_copy(file, file_size);
    jamba_error error;
    size_t at;
    int way;
    for (at = 0; at < metadata_size; at++) {
        for (way = 0; way < CHANGES; way++) {
            char what[60];
            data[at] = changed_byte(file[at], way);
            if (data[at] == file[at]) continue;
            snprintf(what, sizeof what, "byte %zu is %02x", at, data[at]);
            CHECK_THAT(!try_load(data, file_size, false, &error, what), "%s: loads", what);
            CHECK_THAT(error.code == JAMBA_ERR_FORMAT || error.code == JAMBA_ERR_UNSUPPORTED, "%s: code %d", what,
                (int)error.code);
        }
        data[at] = file[at];
    }
    free(data);
}

/* Some changes give another valid model, such as a changed token text; most do not. */
static void test_metadata_repaired(void)
{
    uint8_t *data = exact_copy(file, file_size);
    jamba_error error;
    size_t at, loaded = 0, refused = 0;
    int way;
    for (at = 8; at < metadata_size; at++) {
        if (at >= 32 && at < 64) continue;
        for (way = 0; way < CHANGES; way++) {
            char what[60];
            data[at] = changed_byte(file[at], way);
            if (data[at] == file[at] || jmb_load_u64(data + 24) > file_size || jmb_load_u64(data + 24) < 256) continue;
            repair_identity(data);
            snprintf(what, sizeof what, "byte %zu is %02x, hash repaired", at, data[at]);
            if (try_load(data, file_size, false, &error, what)) loaded++;
            else refused++;
        }
        data[at] = file[at];
    }
    CHECK_THAT(refused > 4 * metadata_size / 2 && loaded > 100, "%zu refused, %zu loaded", refused, loaded);
    free(data);
}

/* verify finds any flipped bit; without it the model is another one and must not hurt. */
static void test_data_flips(void)
{
    uint8_t *data = exact_copy(file, file_size);
    jamba_error error;
    size_t at;
    for (at = metadata_size; at < file_size; at += at < metadata_size + 64 ? 1 : 17) {
        data[at] = (uint8_t)(file[at] ^ 1u << at % 8);
        CHECK_THAT(!try_load(data, file_size, true, &error, "flipped bit"), "bit %zu of byte %zu", at % 8, at);
        CHECK_THAT(strstr(error.message, "tensor") && strstr(error.message, "damaged"), "%s", error.message);
        if (at % 5 == 0) CHECK(try_load(data, file_size, false, &error, "flipped bit, unchecked"));
        data[at] = file[at];
    }
    free(data);
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
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        { "the small model", test_size },
        { "every prefix", test_prefixes },
        { "prefixes that the header agrees with", test_prefixes_repaired },
        { "bytes after the end", test_trailing },
        { "every metadata byte changed", test_metadata_stale },
        { "every metadata byte changed, hash repaired", test_metadata_repaired },
        { "flipped data bits", test_data_flips },
        { "data of one pattern", test_data_patterns },
        { "directory rules", test_directory_rules },
        { "short files", test_claimed_sizes },
        { "stopped loads", test_stopped_loads },
        { "files that are no model", test_odd_files },
    };
    char folder[PATH_ROOM];
    size_t i;
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
    }
    for (i = 0; i < sizeof tests / sizeof tests[0]; i++) {
        if (!test_begin("%s", tests[i].name)) continue;
        tests[i].run();
        test_end();
    }
    free(file);
    return test_summary();
}
