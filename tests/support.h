/* support.h - what several test programs need: files, child processes, golden cases, models,
 * evaluation of a token list, executors, a counting allocator. Includes the library privately, or, where
 * SUPPORT_API_ONLY is defined, only its interface: such programs link api_second.c, compiled once. */
#ifndef SUPPORT_H
#define SUPPORT_H

#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(_WIN32)
#include <direct.h>
#define mkdir(path, mode) _mkdir(path)
#else
#include <sys/wait.h>
#endif

#if !defined(SUPPORT_API_ONLY) /* the implementation is in another translation unit */
#define JAMBA_IMPLEMENTATION
#define JAMBA_STATIC
#endif
#include "jamba.h"

#include "../examples/threads.h"

/* With AddressSanitizer, which takes memory of its own and keeps what is freed. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

/* ---- files ------------------------------------------------------------------------------------ */

enum { PATH_ROOM = 512 };

#if defined(_WIN32)
#define NULL_DEVICE "NUL"
#else
#define NULL_DEVICE "/dev/null"
#endif

/* Whether a model file can be mapped here. */
#if defined(__EMSCRIPTEN__)
enum { FILES_MAP = 0 };
#else
enum { FILES_MAP = 1 };
#endif

/* Contents of a file and a terminating zero; NULL when it cannot be read. free() it. */
TEST_UNUSED static uint8_t *file_read(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    long length;
    *size = 0;
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (length = ftell(file)) >= 0 && fseek(file, 0, SEEK_SET) == 0) {
        data = (uint8_t *)malloc((size_t)length + 1);
        if (data && fread(data, 1, (size_t)length, file) == (size_t)length) {
            *size = (size_t)length;
            data[length] = 0;
        } else {
            free(data);
            data = NULL;
        }
    }
    fclose(file);
    return data;
}

TEST_UNUSED static uint8_t *file_need(const char *path, size_t *size)
{
    uint8_t *data = file_read(path, size);
    test_require(data != NULL, "cannot read", path);
    return data;
}

TEST_UNUSED static void file_write(const char *path, const void *data, size_t size)
{
    FILE *file = fopen(path, "wb");
    bool ok = file && fwrite(data, 1, size, file) == size;
    if (file) ok = fclose(file) == 0 && ok;
    test_require(ok, "cannot write", path);
}

TEST_UNUSED static bool file_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

/* BUILD/tmp/PROGRAM/NAME, with the folders above it made. */
TEST_UNUSED static const char *temp_path(char path[PATH_ROOM], const char *name)
{
    snprintf(path, PATH_ROOM, "%s/tmp", test_state.build);
    mkdir(path, 0777);
    snprintf(path, PATH_ROOM, "%s/tmp/%s", test_state.build, test_state.program);
    mkdir(path, 0777);
    snprintf(path, PATH_ROOM, "%s/tmp/%s/%s", test_state.build, test_state.program, name);
    return path;
}

/* Files of a folder, but hidden ones. */
TEST_UNUSED static int files_in(const char *folder)
{
    DIR *dir = opendir(folder);
    int count = 0;
    const struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL) count += entry->d_name[0] != '.';
    if (dir) closedir(dir);
    return count;
}

/* ---- child processes -------------------------------------------------------------------------- */

/* Runs BUILD/TOOL with the arguments (NULL at the end); stdin and stdout are the files given, stderr goes
 * to `errors`. Returns the exit code, -1 when it did not exit by itself. */
#if defined(__EMSCRIPTEN__) || defined(_WIN32) /* which have no fork, but a shell */
#if defined(_WIN32)
#define QUOTE "\""
#define ALL_QUOTED "\""
#define EXIT_CODE(status) (status)
#else
#define QUOTE "'"
#define ALL_QUOTED ""
#define EXIT_CODE(status) (WIFEXITED(status) ? WEXITSTATUS(status) : -1)
#endif
TEST_UNUSED static int tool_run_with(
    const char *tool, const char *const *arguments, const char *in, const char *out, char *errors, size_t capacity)
{
    char command[8 * PATH_ROOM], log[PATH_ROOM];
    size_t used, size = 0;
    uint8_t *text;
    int status;
    temp_path(log, "errors");
    used = (size_t)snprintf(command, sizeof command, ALL_QUOTED QUOTE "%s/%s" QUOTE, test_state.build, tool);
    for (; *arguments && used < sizeof command; arguments++)
        used += (size_t)snprintf(command + used, sizeof command - used, " " QUOTE "%s" QUOTE, *arguments);
    if (used < sizeof command)
        used += (size_t)snprintf(command + used, sizeof command - used,
            " <" QUOTE "%s" QUOTE " >" QUOTE "%s" QUOTE " 2>" QUOTE "%s" QUOTE ALL_QUOTED, in, out, log);
    if (used >= sizeof command) return -1;
    status = system(command);
    text = file_read(log, &size);
    snprintf(errors, capacity, "%s", text ? (const char *)text : "");
    free(text);
    return EXIT_CODE(status);
}
#else
TEST_UNUSED static int tool_run_with(
    const char *tool, const char *const *arguments, const char *in, const char *out, char *errors, size_t capacity)
{
    const char *argv[16];
    char program[PATH_ROOM];
    int status = -1, ends[2], count = 0;
    size_t used = 0;
    ssize_t got;
    pid_t child;
    snprintf(program, sizeof program, "%s/%s", test_state.build, tool);
    argv[count++] = program;
    while (*arguments && count < 15) argv[count++] = *arguments++;
    argv[count] = NULL;
    if (pipe(ends) != 0) return -1;
    fflush(stdout);
    child = fork();
    if (child == 0) {
        dup2(open(in, O_RDONLY), 0);
        dup2(open(out, O_WRONLY | O_CREAT | O_TRUNC, 0666), 1);
        dup2(ends[1], 2);
        close(ends[0]);
        execv(program, (char *const *)argv);
        _exit(127);
    }
    close(ends[1]);
    while (used + 1 < capacity && (got = read(ends[0], errors + used, capacity - 1 - used)) > 0) used += (size_t)got;
    errors[used] = 0;
    close(ends[0]);
    if (child < 0 || waitpid(child, &status, 0) != child) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
#endif

TEST_UNUSED static int tool_run(const char *tool, const char *const *arguments, char *errors, size_t capacity)
{
    return tool_run_with(tool, arguments, NULL_DEVICE, NULL_DEVICE, errors, capacity);
}

/* Converts a Hugging Face folder into BUILD/tmp/PROGRAM/NAME.TYPE.jamba. False with a failed check. */
TEST_UNUSED static bool convert(const char *folder, const char *name, const char *type, char path[PATH_ROOM])
{
    const char *arguments[6];
    char file[PATH_ROOM / 2], errors[2000];
    int code;
    snprintf(file, sizeof file, "%s.%s.jamba", name, type);
    temp_path(path, file);
    arguments[0] = folder;
    arguments[1] = path;
    arguments[2] = "--type";
    arguments[3] = type;
    arguments[4] = "--force";
    arguments[5] = NULL;
    code = tool_run("convert", arguments, errors, sizeof errors);
    return CHECK_THAT(code == 0, "convert %s --type %s exits %d: %s", folder, type, code, errors);
}

#if !defined(SUPPORT_API_ONLY)
/* Which of the four-byte fields of a block's record. */
enum {
#define JMB_X(type, name) FIELD_##name,
    JMB_BLOCK_FIELDS(JMB_X)
#undef JMB_X
    FIELD_COUNT
};
#endif

/* ---- golden cases ----------------------------------------------------------------------------- */

typedef struct golden_case {
    const char *name, *stored; /* type of the checkpoint's linears */
} golden_case;

static const golden_case golden_cases[] = {
    { "jamba-dense", "f32" },
    { "jamba-moe", "f32" },
    { "jamba-gqa-bf16-sharded", "bf16" },
    { "jamba-flags", "f32" },
    { "jamba-mixed", "bf16" },
    { "mamba", "f32" },
    { "mamba-bias", "f16" },
    { "llama", "f16" },
    { "llama-linear", "f32" },
    { "llama-llama3", "bf16" },
    { "mixtral", "bf16" },
    { "mixtral-top3", "f32" },
    { "zamba", "f32" },
    { "zamba2-rope", "f32" },
    { "zamba2-attn-adapter", "f16" },
    { "zamba2-dt-min", "f32" },
    { "mamba2", "bf16" },
    { "mamba2-groups", "f32" },
    { "mamba2-dt-limit", "f32" },
    { "zamba-flags", "f32" },
    { "zamba2-abc", "f32" },
    { "zamba2-untied", "f32" },
    { "falcon-mamba", "f32" },
};
enum { GOLDEN_CASES = sizeof golden_cases / sizeof golden_cases[0], GOLDEN_GREEDY = 16 };

TEST_UNUSED static bool big_endian(void)
{
    const uint32_t one = 1;
    return *(const uint8_t *)&one == 0;
}

/* Little-endian 32-bit items of FOLDER/NAME/FILE, as floats or integers. free() them. */
TEST_UNUSED static void *items_read(const char *folder, const char *name, const char *file, size_t *count)
{
    char path[PATH_ROOM];
    size_t size, i;
    uint8_t *data;
    snprintf(path, sizeof path, "%s/%s/%s", folder, name, file);
    data = file_need(path, &size);
    *count = size / 4;
    for (i = 0; big_endian() && i < *count; i++) {
        uint8_t *p = data + 4 * i, swap[4] = { p[3], p[2], p[1], p[0] };
        memcpy(p, swap, 4);
    }
    return data;
}

TEST_UNUSED static void *golden_read(const char *name, const char *file, size_t *count)
{
    return items_read("tests/cases", name, file, count);
}

/* The prompt, the greedy tokens, and the prompt again and again: `count` tokens to run. free() them. */
TEST_UNUSED static int32_t *golden_tokens(const char *name, size_t count)
{
    size_t prompt_count, greedy_count, i;
    int32_t *prompt = (int32_t *)golden_read(name, "prompt.i32", &prompt_count);
    int32_t *greedy = (int32_t *)golden_read(name, "greedy.i32", &greedy_count);
    int32_t *tokens = (int32_t *)malloc(count * sizeof *tokens);
    for (i = 0; i < count; i++) {
        size_t at = i % (prompt_count + greedy_count);
        tokens[i] = at < prompt_count ? prompt[at] : greedy[at - prompt_count];
    }
    free(prompt);
    free(greedy);
    return tokens;
}

/* ---- models and evaluation ---------------------------------------------------------------------- */

/* NULL with a failed check, but for JAMBA_ERR_UNSUPPORTED (an instruction set the CPU lacks): just NULL. */
TEST_UNUSED static jamba_model *load_model(jamba_source source, const jamba_model_params *params)
{
    jamba_model *model;
    jamba_error error;
    jamba_result result = jamba_model_load(&model, source, params, &error);
    if (result != JAMBA_ERR_UNSUPPORTED) CHECK_THAT(result == JAMBA_OK, "load: %s", error.message);
    return model;
}

TEST_UNUSED static jamba_model *load_for_cpu(const char *path, jamba_cpu cpu)
{
    jamba_model_params params;
    memset(&params, 0, sizeof params);
    params.cpu = cpu;
    return load_model(jamba_from_file(path), &params);
}

TEST_UNUSED static int32_t model_vocab(const jamba_model *model)
{
    jamba_model_info info;
    jamba_model_describe(model, &info);
    return info.vocab;
}

typedef struct logits_rows {
    float *rows;
    size_t vocab, count, seen;
    bool in_order;
} logits_rows;

TEST_UNUSED static void logits_collect(void *user, int32_t position, const float *logits)
{
    logits_rows *out = (logits_rows *)user;
    if ((size_t)position != out->seen) out->in_order = false;
    if ((size_t)position < out->count)
        memcpy(out->rows + (size_t)position * out->vocab, logits, out->vocab * sizeof *logits);
    out->seen++;
}

enum { STEPS_LIMIT = 2000000 }; /* of one budgeted evaluation: beyond it nothing moves */

/* jamba_step() until the queue is empty; the number of calls goes to *calls (may be NULL). */
TEST_UNUSED static jamba_result step_all(jamba_session *session, uint64_t budget, int *calls)
{
    jamba_result result = JAMBA_PENDING;
    int n = 0;
    while (result == JAMBA_PENDING && n < STEPS_LIMIT) {
        result = jamba_step(session, budget);
        n++;
    }
    if (calls) *calls = n;
    return result;
}

/* Evaluates the tokens on `session`, which was made with rows as its logits_user. */
TEST_UNUSED static bool session_run(jamba_session *session, logits_rows *rows, const int32_t *tokens, uint64_t budget)
{
    jamba_result result;
    rows->seen = 0;
    rows->in_order = true;
    result = jamba_feed(session, tokens, rows->count);
    if (result == JAMBA_OK) result = step_all(session, budget, NULL);
    CHECK_THAT(result == JAMBA_OK, "evaluation: %s (%s)", jamba_result_name(result),
        jamba_session_error(session)->message);
    CHECK(rows->seen == rows->count && rows->in_order);
    return result == JAMBA_OK;
}

/* Logits of every token, [count, vocab], from a new session. free() them; NULL after a failed check. */
TEST_UNUSED static float *model_logits(const jamba_model *model, const jamba_session_params *given,
    const int32_t *tokens, size_t count, uint64_t budget)
{
    jamba_session_params params;
    jamba_session *session;
    jamba_error error;
    logits_rows rows;
    bool ok;
    memset(&params, 0, sizeof params);
    if (given) params = *given;
    rows.vocab = (size_t)model_vocab(model);
    rows.count = count;
    rows.rows = (float *)calloc(rows.vocab * count, sizeof *rows.rows);
    params.on_logits = logits_collect;
    params.logits_user = &rows;
    if (params.context == 0) params.context = (int32_t)count;
    ok = jamba_session_create(&session, model, &params, &error) == JAMBA_OK;
    CHECK_THAT(ok, "session: %s", error.message);
    ok = ok && session_run(session, &rows, tokens, budget);
    jamba_session_free(session);
    if (ok) return rows.rows;
    free(rows.rows);
    return NULL;
}

/* A clock that moves at every look, from any thread: each place where the work may stop does stop it. `user` is the
 * time, a uint64_t. */
TEST_UNUSED static uint64_t clock_tick(void *user)
{
#if defined(__GNUC__) || defined(__clang__)
    return __atomic_add_fetch((uint64_t *)user, 1, __ATOMIC_RELAXED);
#else /* no atomic operations, and so no threads (threads.h) */
    return ++*(uint64_t *)user;
#endif
}

/* ---- executors ---------------------------------------------------------------------------------- */

/* One thread, tasks last to first. */
TEST_UNUSED static void run_reversed(void *user, int count, jamba_task_fn task, void *ctx)
{
    (void)user;
    while (count-- > 0) task(ctx, count);
}

TEST_UNUSED static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* One thread, tasks in an order that changes from run to run; `user` is the generator's state. */
TEST_UNUSED static void run_shuffled(void *user, int count, jamba_task_fn task, void *ctx)
{
    int order[256], i;
    if (count > 256) {
        run_reversed(user, count, task, ctx);
        return;
    }
    for (i = 0; i < count; i++) {
        int at = (int)(random_next((uint64_t *)user) % (uint64_t)(i + 1));
        order[i] = order[at];
        order[at] = i;
    }
    for (i = 0; i < count; i++) task(ctx, order[i]);
}

/* Memory whose end is where it says; NULL when there is none. */
TEST_UNUSED static void *aligned_take(size_t align, size_t size)
{
#if defined(_WIN32)
    return _aligned_malloc(size, align);
#else
    void *memory;
    return posix_memalign(&memory, align, size) == 0 ? memory : NULL;
#endif
}

TEST_UNUSED static void aligned_free(void *memory)
{
#if defined(_WIN32)
    _aligned_free(memory);
#else
    free(memory);
#endif
}

/* ---- allocator that counts, and fails on demand --------------------------------------------------- */

typedef struct counter {
    int calls, live, fail_at; /* fail_at: the call that fails, counted from 1; 0: none */
    bool stay_failed;         /* every later call fails too */
    size_t bytes, peak;
    int wrong; /* frees whose size is not the one allocated, misaligned requests */
} counter;

static void *counter_alloc(void *user, size_t size, size_t align)
{
    counter *c = (counter *)user;
    size_t room = align < 64 ? 64 : align;
    void *block;
    c->calls++;
    if (align == 0 || (align & (align - 1)) != 0) c->wrong++;
    if (c->fail_at && (c->calls == c->fail_at || (c->stay_failed && c->calls > c->fail_at))) return NULL;
    block = aligned_take(room, room + size);
    if (!block) return NULL;
    memset(block, 0xa5, room + size); /* memory comes dirty */
    memcpy(block, &size, sizeof size);
    c->live++;
    c->bytes += size;
    if (c->bytes > c->peak) c->peak = c->bytes;
    return (uint8_t *)block + room;
}

static void counter_free(void *user, void *ptr, size_t size)
{
    counter *c = (counter *)user;
    uint8_t *block = (uint8_t *)ptr - 64;
    size_t stored;
    memcpy(&stored, block, sizeof stored);
    if (stored != size) c->wrong++;
    c->live--;
    c->bytes -= stored;
    aligned_free(block);
}

/* Blocks aligned to at most 64, as the library asks for. */
TEST_UNUSED static jamba_allocator counter_open(counter *c)
{
    jamba_allocator allocator;
    memset(c, 0, sizeof *c);
    allocator.alloc = counter_alloc;
    allocator.free = counter_free;
    allocator.user = c;
    return allocator;
}

/* ---- fault loops ---------------------------------------------------------------------------------- */

/* A kind of call that can be made to fail: at call number *fail_at, and where *stay_failed at all later ones. */
typedef struct failing {
    int *calls, *fail_at;
    bool *stay_failed;
} failing;

TEST_UNUSED static failing counter_fault(counter *c)
{
    failing f;
    f.calls = &c->calls;
    f.fail_at = &c->fail_at;
    f.stay_failed = &c->stay_failed;
    return f;
}

/* What is tried with a fault ahead; leaves nothing behind when it is done. */
typedef jamba_result (*fault_work)(void *user, jamba_error *error);

enum { FAULTS_MAX = 5000 }; /* more than any work makes calls */

/* One attempt, whose n-th call fails. Whether there was such a call. */
TEST_UNUSED static bool fail_once(failing f, int n, fault_work work, void *user, jamba_result expected)
{
    jamba_error error;
    jamba_result result;
    int before = *f.calls;
    bool met;
    memset(&error, 0, sizeof error);
    *f.fail_at = before + n;
    result = work(user, &error);
    *f.fail_at = 0;
    met = *f.calls - before >= n;
    if (!met) expected = JAMBA_OK;
    CHECK_THAT(result == expected && error.code == expected && (error.message[0] != 0) == (expected != JAMBA_OK),
        "call %d%s: %s, not %s: '%s'", n, *f.stay_failed ? " and later" : "", jamba_result_name(result),
        jamba_result_name(expected), error.message);
    return met;
}

/* Lets call 1, 2, 3 ... of the work fail, alone and then with all that follow, until it is done without such a call.
 * Each attempt must give `expected`. Returns how many calls failed alone. */
TEST_UNUSED static int fail_each(failing f, fault_work work, void *user, jamba_result expected)
{
    int stay, n = 0, alone = 0;
    for (stay = 0; stay < 2; stay++) {
        *f.stay_failed = stay == 1;
        for (n = 1; n < FAULTS_MAX && fail_once(f, n, work, user, expected); n++) alone += stay == 0;
        CHECK_THAT(n < FAULTS_MAX, "no end after %d calls", n);
    }
    *f.stay_failed = false;
    return alone;
}

/* ---- sweeps --------------------------------------------------------------------------------------- */

/* A file that is in order, and what is done with each damaged copy of it. SWEEPS=all makes every sweep whole; without
 * it those that take long leave out some of the damage, never the same for neighbouring bytes. */
typedef struct sweep {
    const uint8_t *good;
    size_t size;
    void (*repair)(uint8_t *data, size_t size); /* makes the hash right again; NULL: it stays */
    void (*test)(void *user, const uint8_t *data, size_t size, const char *what);
    void *user;
} sweep;

enum { SWEEP_CHANGES = 12, SWEEP_FLIPS = 8, SWEEP_ROOM = 64 };

TEST_UNUSED static uint64_t env_number(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

TEST_UNUSED static bool sweep_all(void)
{
    const char *text = getenv("SWEEPS");
    return text && strcmp(text, "all") == 0;
}

/* A file in place of one there; truncating that instead waits for the disk on some file systems. */
TEST_UNUSED static void sweep_write(const char *path, const uint8_t *data, size_t size)
{
    remove(path);
    file_write(path, data, size);
}

static uint8_t *sweep_copy(const sweep *s)
{
    uint8_t *data = (uint8_t *)calloc(1, s->size + SWEEP_ROOM);
    test_require(data != NULL, "out of memory", "sweep");
    memcpy(data, s->good, s->size);
    return data;
}

/* One damaged copy; afterwards it is good again, if no more than its hash was repaired. */
static void sweep_one(const sweep *s, uint8_t *data, size_t at, uint8_t value)
{
    char what[60];
    if (value == s->good[at]) return;
    data[at] = value;
    if (s->repair) s->repair(data, s->size);
    snprintf(what, sizeof what, "byte %zu is %02x%s", at, value, s->repair ? ", hash repaired" : "");
    s->test(s->user, data, s->size, what);
    data[at] = s->good[at];
}

/* The file cut to each length from `from` on that is a multiple of `step` more. */
TEST_UNUSED static void sweep_prefixes(const sweep *s, size_t from, size_t step)
{
    uint8_t *data = sweep_copy(s);
    char what[60];
    size_t n;
    for (n = from; n < s->size; n += sweep_all() ? 1 : step) {
        memcpy(data, s->good, n);
        if (s->repair) s->repair(data, n);
        snprintf(what, sizeof what, "cut to %zu bytes", n);
        s->test(s->user, data, n, what);
    }
    free(data);
}

/* Its eight bits flipped, one more, one less, no bits, all bits. */
static uint8_t sweep_change(uint8_t byte, int way)
{
    if (way < SWEEP_FLIPS) return (uint8_t)(byte ^ 1u << way);
    return (uint8_t)(way == 8 ? byte + 1 : way == 9 ? byte - 1 : way == 10 ? 0 : 0xff);
}

/* Each byte from `from` to `to`, changed in `each` of the first `ways` ways. */
TEST_UNUSED static void sweep_bytes(const sweep *s, size_t from, size_t to, int ways, int each)
{
    uint8_t *data = sweep_copy(s);
    size_t at;
    int k;
    if (sweep_all()) each = ways;
    for (at = from; at < to && at < s->size; at++)
        for (k = 0; k < each; k++)
            sweep_one(s, data, at, sweep_change(s->good[at], (int)((at * 5 + (size_t)k) % (size_t)ways)));
    free(data);
}

/* Each byte from `from` to `to` given `each` of all values. */
TEST_UNUSED static void sweep_values(const sweep *s, size_t from, size_t to, int each)
{
    uint8_t *data = sweep_copy(s);
    size_t at;
    int k;
    if (sweep_all()) each = 256;
    for (at = from; at < to && at < s->size; at++)
        for (k = 0; k < each; k++) sweep_one(s, data, at, (uint8_t)(at * 89 + (size_t)k * 37));
    free(data);
}

/* A few bytes that numbers are made wrong with. */
static size_t sweep_edit(uint8_t *data, size_t size, size_t room, size_t focus, uint64_t *random)
{
    static const uint64_t numbers[] = { 0, 1, 2, 15, 63, 64, 255, 256, 1024, 4096, 65535, 65536, 1u << 20, 0x7fffffff,
        0x80000000, 0xffffffff, 0x100000000u, INT64_MAX, UINT64_MAX, 0x7fc00000, 0x7f800000, 0xbf800000 };
    uint64_t r = random_next(random), value = numbers[(r >> 8) % (sizeof numbers / sizeof numbers[0])];
    size_t within = r & 1 && focus < size ? focus : size, at, bytes, from;
    if (size < 16) return size;
    at = (size_t)(random_next(random) % (within - 8));
    from = (size_t)(random_next(random) % (size - 8));
    switch (r >> 1 & 7) {
    case 0: data[at] = (uint8_t)(data[at] ^ 1u << (r >> 16 & 7)); break;
    case 1: data[at] = (uint8_t)(r >> 16); break;
    case 2: data[at & ~(size_t)3] = (uint8_t)(data[at & ~(size_t)3] + (r >> 16 & 1 ? 1 : -1)); break;
    case 3:
    case 4: /* a number of 4 or 8 bytes in its place */
        bytes = r >> 16 & 1 ? 4 : 8;
        at -= at % 4;
        while (bytes-- > 0) data[at + bytes] = (uint8_t)(value >> (8 * bytes));
        break;
    case 5: memmove(data + at, data + from, 8); break;
    case 6: /* a piece taken out or put in */
        bytes = (size_t)(r >> 16) % 16;
        if (r >> 32 & 1 || size + bytes > room) {
            memmove(data + at, data + at + bytes % (size - at), size - at - bytes % (size - at));
            return size - bytes % (size - at);
        }
        memmove(data + at + bytes, data + at, size - at);
        return size + bytes;
    default: return (r >> 16 & 15) == 0 ? from : size;
    }
    return size;
}

/* `count` files, each with some edits, half of them in the first `focus` bytes. MUTATIONS=N: how many; SEED=S: only
 * that one. */
TEST_UNUSED static void sweep_mutations(const sweep *s, size_t focus, uint64_t count)
{
    uint8_t *data = sweep_copy(s);
    uint64_t seed, first = env_number("SEED", 0), last = first ? first : env_number("MUTATIONS", count);
    for (seed = first ? first : 1; seed <= last; seed++) {
        uint64_t random = seed, edits = 1 + random_next(&random) % 6;
        size_t size = s->size;
        char what[60];
        memcpy(data, s->good, s->size);
        while (edits-- > 0) size = sweep_edit(data, size, s->size + SWEEP_ROOM, focus, &random);
        if (s->repair) s->repair(data, size);
        snprintf(what, sizeof what, "mutation SEED=%llu%s", (unsigned long long)seed, s->repair ? ", repaired" : "");
        s->test(s->user, data, size, what);
    }
    free(data);
}

#endif
