/* limits.c - sizes beyond an address space, which 32-bit machines must notice before they cut them off: files whose
 * length is right in its low 32 bits, a model too large to read, sessions too large to hold */
#include "tiny.h"

static const uint64_t FOUR_GIB = (uint64_t)1 << 32;

static char model_path[PATH_ROOM];
static uint8_t *file;
static size_t file_size;

/* A file as long as `size` says, the given bytes first; it takes no room on disk. */
static bool write_long(const char *path, const uint8_t *data, size_t count, uint64_t size)
{
    file_write(path, data, count);
#if defined(_WIN32)
    (void)size;
    return false; /* zeros take room here */
#else
    return (uint64_t)(off_t)size == size && truncate(path, (off_t)size) == 0;
#endif
}

static void expect(jamba_source source, const jamba_model_params *params, jamba_result want, const char *what)
{
    jamba_model *model;
    jamba_error error;
    jamba_result result = jamba_model_load(&model, source, params, &error);
    CHECK_THAT(result == want && model == NULL, "%s: %s, not %s (%s)", what, jamba_result_name(result),
        jamba_result_name(want), error.message);
}

/* The model, then zeros without end. */
static size_t read_long(void *user, uint64_t offset, void *out, size_t size)
{
    size_t at = offset < file_size ? (size_t)offset : file_size, some = file_size - at < size ? file_size - at : size;
    (void)user;
    if (some > 0) memcpy(out, file + at, some);
    memset((uint8_t *)out + some, 0, size - some);
    return size;
}

static jamba_source long_model(uint64_t size)
{
    jamba_io io;
    io.read = read_long;
    io.user = NULL;
    io.size = size;
    return jamba_from_io(io);
}

/* Gives out at most a gigabyte at a time. */
static void *alloc_some(void *user, size_t size, size_t align)
{
    return size > (size_t)1 << 30 ? NULL : jmb_default_alloc(user, size, align);
}

static void test_low_bits(void)
{
    char path[PATH_ROOM];
    jamba_model_params params;
    memset(&params, 0, sizeof params);
    expect(long_model(FOUR_GIB + file_size), NULL, JAMBA_ERR_FORMAT, "a reader");
    if (!write_long(temp_path(path, "long.jamba"), file, file_size, FOUR_GIB + file_size)) return;
    expect(jamba_from_file(path), NULL, JAMBA_ERR_FORMAT, "a file");
    params.no_mmap = true;
    expect(jamba_from_file(path), &params, JAMBA_ERR_FORMAT, "a file that is read");
    remove(path);
}

/* A header that says 5 GiB, of a source that has them. */
static void test_large_model(void)
{
    const jamba_allocator allocator = { alloc_some, jmb_default_free, NULL };
    jamba_model_params params;
    memset(&params, 0, sizeof params);
    params.allocator = &allocator;
    jmb_store_u64(file + 16, 5 * (FOUR_GIB / 4));
    jmb_identity(file, jmb_load_u64(file + 24), file + 32);
    expect(long_model(5 * (FOUR_GIB / 4)), &params, JAMBA_ERR_MEMORY, "5 GiB");
    jmb_store_u64(file + 16, file_size);
    jmb_identity(file, jmb_load_u64(file + 24), file + 32);
}

static void test_long_state(const jamba_model *model)
{
    static const int32_t token = 1;
    char path[PATH_ROOM];
    jamba_session *session;
    jamba_error error;
    size_t size;
    uint8_t *state;
    if (!CHECK(jamba_session_create(&session, model, NULL, &error) == JAMBA_OK)) return;
    CHECK(jamba_eval(session, &token, 1) == JAMBA_OK);
    size = jamba_session_save(session, NULL, 0);
    state = (uint8_t *)malloc(size);
    if (CHECK(state && jamba_session_save(session, state, size) == size)
        && write_long(temp_path(path, "long.state"), state, size, FOUR_GIB + size)) {
        jamba_result result = jamba_session_load(session, jamba_from_file(path));
        CHECK_THAT(result == JAMBA_ERR_FORMAT, "%s", jamba_result_name(result));
        remove(path);
    }
    free(state);
    jamba_session_free(session);
}

/* Every size that the parameters allow is measured in 64 bits: either memory of that size is asked for, or none. */
static void test_sessions(const jamba_model *model)
{
    static const int32_t contexts[] = { 1 << 12, 1 << 20, JMB_MAX_CONTEXT }, chunks[] = { 1, 65536 };
    static const int32_t marks[] = { 0, JMB_MAX_MARKS };
    const jamba_allocator allocator = { alloc_some, jmb_default_free, NULL };
    int i, refused = 0;
    for (i = 0; i < 12; i++) {
        jamba_session_params params;
        jamba_session *session;
        jamba_memory memory;
        jamba_error error;
        jamba_result result, estimate;
        uint64_t least;
        memset(&params, 0, sizeof params);
        params.context = contexts[i % 3];
        params.chunk = chunks[i / 3 % 2];
        params.marks = marks[i / 6];
        params.kv_type = JAMBA_KV_F32;
        params.allocator = &allocator;
        least = (uint64_t)params.context * (4 + 2 * TINY_HEAD_DIM * 4) + (uint64_t)params.marks * TINY_VOCAB * 4;
        estimate = jamba_session_estimate(model, &params, &memory);
        result = jamba_session_create(&session, model, &params, &error);
        if (result == JAMBA_OK)
            CHECK(estimate == JAMBA_OK && (uint64_t)memory.kv + memory.scratch + memory.marks >= least);
        else CHECK_THAT(result == JAMBA_ERR_MEMORY && !session, "%s: %s", jamba_result_name(result), error.message);
        refused += result != JAMBA_OK;
        jamba_session_free(session);
    }
    CHECK_THAT(refused > 0 && refused < 12, "%d of 12 sessions refused", refused);
}

int main(int argc, char **argv)
{
    char folder[PATH_ROOM];
    jamba_model *model = NULL;
    test_start(argc, argv);
    if (!test_state.list) {
        tiny_write(temp_path(folder, "tiny"), false);
        test_require(convert(folder, "tiny", "bf16", model_path), "cannot convert", folder);
        file = file_need(model_path, &file_size);
        model = load_for_cpu(model_path, JAMBA_CPU_BEST);
        test_require(model != NULL, "cannot load", model_path);
    }
    if (test_begin("files right in their low 32 bits")) {
        test_low_bits();
        test_end();
    }
    if (test_begin("a model of 5 GiB")) {
        test_large_model();
        test_end();
    }
    if (test_begin("a state right in its low 32 bits")) {
        test_long_state(model);
        test_end();
    }
    if (test_begin("sessions of any size")) {
        test_sessions(model);
        test_end();
    }
    jamba_model_free(model);
    free(file);
    return test_summary();
}
