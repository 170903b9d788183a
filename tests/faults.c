/* faults.c - the library where memory, files and signals fail it
 *
 * For each call that takes memory or a file, allocation or system call 1, 2, 3 ... fails, alone and with all that
 * follow, until the call succeeds. Each failure gives its error by name, leaves nothing behind, and every object as it
 * was, bit for bit. What needs no memory works while none can be had. SOAK=N in the environment loads a model N times.
 *
 * The system calls of jamba.h go through functions of this file, by their names. */
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- system calls that fail on demand ------------------------------------------------------------------- */

#if defined(__EMSCRIPTEN__) || defined(_WIN32)
#define FAULTY_CALLS 0
#else
#define FAULTY_CALLS 1
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef enum call_kind { CALL_NONE, CALL_OPEN, CALL_FSTAT, CALL_LSEEK, CALL_READ, CALL_MMAP, CALL_MUNMAP, CALL_CLOSE,
    CALL_MADVISE } call_kind;

/* How a read comes back that is not refused. */
enum { READ_END = -1, READ_ONE = -2 };

/* Which kind of call fails and how; files and mappings that are open. */
static struct {
    call_kind kind;
    int how; /* an errno, or READ_ */
    int calls, fail_at;
    bool stay_failed, no_mapping;
    int limit; /* calls that fail at most; 0: all */
    int failed, files, mappings;
} system_calls;

/* Whether this call fails; errno is set then. */
static bool call_fails(call_kind kind)
{
    if (kind == CALL_MMAP && system_calls.no_mapping) {
        errno = ENODEV;
        return true;
    }
    if (kind != system_calls.kind) return false;
    system_calls.calls++;
    if (!system_calls.fail_at || system_calls.calls < system_calls.fail_at) return false;
    if (system_calls.calls > system_calls.fail_at && !system_calls.stay_failed) return false;
    if (system_calls.limit && system_calls.failed == system_calls.limit) return false;
    system_calls.failed++;
    if (system_calls.how > 0) errno = system_calls.how;
    return true;
}

static int call_open(const char *path, int flags, ...)
{
    va_list args;
    mode_t mode = 0;
    int file;
    va_start(args, flags);
    if (flags & O_CREAT) mode = (mode_t)va_arg(args, int);
    va_end(args);
    if (call_fails(CALL_OPEN)) return -1;
    file = open(path, flags, mode);
    if (file >= 0) system_calls.files++;
    return file;
}

static int call_fstat(int file, struct stat *info)
{
    return call_fails(CALL_FSTAT) ? -1 : fstat(file, info);
}

static off_t call_lseek(int file, off_t offset, int whence)
{
    return call_fails(CALL_LSEEK) ? -1 : lseek(file, offset, whence);
}

static ssize_t call_read(int file, void *data, size_t size)
{
    if (!call_fails(CALL_READ)) return read(file, data, size);
    if (system_calls.how == READ_ONE) return read(file, data, size < 1 ? size : 1);
    return system_calls.how == READ_END ? 0 : -1;
}

static void *call_mmap(void *at, size_t size, int protection, int flags, int file, off_t offset)
{
    void *mapping = call_fails(CALL_MMAP) ? MAP_FAILED : mmap(at, size, protection, flags, file, offset);
    if (mapping != MAP_FAILED) system_calls.mappings++;
    return mapping;
}

/* These two do their work and then report a failure, as a disk does that is gone. */
static int call_munmap(void *mapping, size_t size)
{
    int result = munmap(mapping, size);
    system_calls.mappings--;
    return call_fails(CALL_MUNMAP) ? -1 : result;
}

static int call_close(int file)
{
    int result = close(file);
    system_calls.files--;
    return call_fails(CALL_CLOSE) ? -1 : result;
}

#if defined(MADV_HUGEPAGE)
static int call_madvise(void *memory, size_t size, int advice)
{
    return call_fails(CALL_MADVISE) ? -1 : madvise(memory, size, advice);
}
#define madvise call_madvise
#endif

#define open call_open
#define fstat call_fstat
#define lseek call_lseek
#define read call_read
#define mmap call_mmap
#define munmap call_munmap
#define close call_close
#endif

#if defined(FAULTS_SITES)
static int fault_site; /* line of the last allocation */
#endif

#include "tiny.h"

#include "../tools/machine.h"

/* ---- allocation sites ---------------------------------------------------------------------------------- */

/* tests/faults.sh compiles a copy of jamba.h that notes the line of each of its allocations here. */
#if defined(FAULTS_SITES)
enum { SITE_LINES = 20000 };
static bool site_seen[SITE_LINES], site_failed[SITE_LINES];

static void *site_alloc(void *user, size_t size, size_t align)
{
    void *memory = counter_alloc(user, size, align);
    site_seen[fault_site] = true;
    if (!memory) site_failed[fault_site] = true;
    return memory;
}

static void test_sites(void)
{
    int line, failed = 0;
    for (line = 0; line < SITE_LINES; line++) {
        failed += site_failed[line];
        CHECK_THAT(site_failed[line] || !site_seen[line], "jamba.h:%d: has never failed", line);
    }
    printf("%d of %d allocation sites have failed\n", failed, FAULTS_SITES);
    CHECK(failed == FAULTS_SITES);
}
#endif

/* ---- the stage ------------------------------------------------------------------------------------------- */

enum { CONTEXT = 96, TOKENS = 24 };

static char story_path[PATH_ROOM], pirate_path[PATH_ROOM], state_path[PATH_ROOM];
static char tiny_file[PATH_ROOM], nfc_path[PATH_ROOM], mamba_path[PATH_ROOM]; /* other tokenizers; no attention */
static uint8_t *story_data, *pirate_data;
static size_t story_size, pirate_size;

/* What one call works on, and with. */
typedef struct stage stage;
struct stage {
    counter memory;
    jamba_allocator allocator;
    jamba_model_params params;
    jamba_model *model;
    jamba_session *session;    /* whose content a failure must leave alone; NULL: none */
    jamba_adapter *adapter[2]; /* the session uses the first */
    uint8_t *before;           /* that content, saved */
    size_t before_size;
    jamba_source source;
    void *made;
    jamba_result (*run)(stage *s, jamba_error *error);
    void (*undo)(stage *s); /* of what run() has done; NULL: nothing */
};

/* Everything of a session that the library can tell. free() it. */
static uint8_t *session_bytes(const jamba_session *session, size_t *size)
{
    jamba_save_params params;
    uint8_t *bytes;
    memset(&params, 0, sizeof params);
    params.marks = true;
    *size = jamba_session_save_as(session, &params, NULL, 0);
    bytes = (uint8_t *)malloc(*size);
    test_require(bytes && jamba_session_save_as(session, &params, bytes, *size) == *size, "cannot save", "");
    return bytes;
}

static void check_untouched(const stage *s)
{
    size_t size;
    uint8_t *bytes = session_bytes(s->session, &size);
    CHECK_THAT(size == s->before_size && memcmp(bytes, s->before, size) == 0, "the session has changed");
    free(bytes);
}

/* Takes back what a success has done, while nothing fails and nothing counts. */
static void stage_undo(stage *s)
{
    counter now = s->memory;
#if FAULTY_CALLS
    int calls = system_calls.calls;
    call_kind kind = system_calls.kind;
    system_calls.kind = CALL_NONE;
#endif
    s->memory.fail_at = 0;
    if (s->undo) s->undo(s);
    s->memory.calls = now.calls;
    s->memory.fail_at = now.fail_at;
#if FAULTY_CALLS
    system_calls.calls = calls;
    system_calls.kind = kind;
#endif
}

/* One attempt: whatever comes of it, memory, files, mappings and the session are what they were. */
static jamba_result stage_attempt(void *user, jamba_error *error)
{
    stage *s = (stage *)user;
    int live = s->memory.live;
    jamba_result result;
#if FAULTY_CALLS
    int files = system_calls.files, mappings = system_calls.mappings;
#endif
    s->made = NULL;
    result = s->run(s, error);
    if (result == JAMBA_OK) stage_undo(s);
    else CHECK(s->made == NULL);
    CHECK_THAT(s->memory.live == live && s->memory.wrong == 0, "%d blocks are left", s->memory.live - live);
#if FAULTY_CALLS
    CHECK_THAT(system_calls.files == files && system_calls.mappings == mappings, "%d files, %d mappings are left",
        system_calls.files - files, system_calls.mappings - mappings);
#endif
    if (s->session) check_untouched(s);
    return result;
}

/* With failing memory. */
static void stage_memory(stage *s, jamba_result (*run)(stage *, jamba_error *), void (*undo)(stage *), int least)
{
    int failed;
    s->run = run;
    s->undo = undo;
    failed = fail_each(counter_fault(&s->memory), stage_attempt, s, JAMBA_ERR_MEMORY);
    CHECK_THAT(failed >= least, "only %d allocations", failed);
}

static void stage_open(stage *s)
{
    memset(s, 0, sizeof *s);
    s->allocator = counter_open(&s->memory);
#if defined(FAULTS_SITES)
    s->allocator.alloc = site_alloc;
#endif
    s->params.allocator = &s->allocator;
}

static void stage_close(stage *s)
{
    jamba_session_free(s->session);
    jamba_adapter_free(s->adapter[0]);
    jamba_adapter_free(s->adapter[1]);
    jamba_model_free(s->model);
    free(s->before);
    CHECK_THAT(s->memory.live == 0 && s->memory.wrong == 0, "%d blocks are left", s->memory.live);
}

static const int32_t tokens[TOKENS] = { 1, 4, 477, 262, 1733, 502, 360, 722, 548, 360, 818, 370, 360, 1817, 276, 5, 262,
    4, 478, 262, 712, 659, 360, 555 };

static const int32_t few[4] = { 1, 5, 3, 2 };

static jamba_session *make_session(const jamba_model *model)
{
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.context = CONTEXT;
    params.marks = params.fork_marks = 3;
    params.threads = 1;
    test_require(jamba_session_create(&session, model, &params, NULL) == JAMBA_OK, "no session", "");
    return session;
}

/* A session in the middle of a conversation: adapter, marks, turns, a reply that is being written. */
static void converse(jamba_session *session)
{
    jamba_reply_params params;
    const char *text;
    size_t length;
    int i;
    memset(&params, 0, sizeof params);
    CHECK(jamba_say(session, "system", "You tell stories.") == JAMBA_OK);
    CHECK(jamba_say(session, "user", "Hi!") == JAMBA_OK);
    for (i = 0; i < 3; i++) CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_OK);
    CHECK(jamba_step(session, 0) == JAMBA_OK);
}

/* Saves what the session is now. */
static void stage_keep(stage *s)
{
    free(s->before);
    s->before = session_bytes(s->session, &s->before_size);
    file_write(state_path, s->before, s->before_size);
}

static void stage_load(stage *s, const char *path)
{
    stage_open(s);
    s->model = load_model(jamba_from_file(path), &s->params);
    test_require(s->model != NULL, "no model", path);
}

static void stage_converse(stage *s)
{
    int i;
    stage_load(s, story_path);
    for (i = 0; i < 2; i++)
        test_require(jamba_adapter_load(&s->adapter[i], s->model, jamba_from_memory(pirate_data, pirate_size), NULL)
            == JAMBA_OK, "no adapter", "");
    s->session = make_session(s->model);
    CHECK(jamba_session_set_adapters(s->session, s->adapter, NULL, 1) == JAMBA_OK);
    converse(s->session);
    stage_keep(s);
}

/* ---- what is tried ------------------------------------------------------------------------------------- */

static jamba_result run_model(stage *s, jamba_error *error)
{
    return jamba_model_load((jamba_model **)&s->made, s->source, &s->params, error);
}

static void undo_model(stage *s)
{
    jamba_model_free((jamba_model *)s->made);
}

static jamba_result run_adapter(stage *s, jamba_error *error)
{
    return jamba_adapter_load((jamba_adapter **)&s->made, s->model, s->source, error);
}

static void undo_adapter(stage *s)
{
    jamba_adapter_free((jamba_adapter *)s->made);
}

static jamba_result run_create(stage *s, jamba_error *error)
{
    return jamba_session_create((jamba_session **)&s->made, s->model, NULL, error);
}

static jamba_result run_fork(stage *s, jamba_error *error)
{
    return jamba_session_fork((jamba_session **)&s->made, s->session, 8, error);
}

static void undo_session(stage *s)
{
    jamba_session_free((jamba_session *)s->made);
}

/* Results of calls that leave their error in the session. */
static jamba_result of_session(const stage *s, jamba_result result, jamba_error *error)
{
    if (result < 0) *error = *jamba_session_error(s->session);
    return result;
}

static jamba_result run_adapters(stage *s, jamba_error *error)
{
    const float scales[] = { 0.5f, 0.25f };
    return of_session(s, jamba_session_set_adapters(s->session, s->adapter, scales, 2), error);
}

static void undo_adapters(stage *s)
{
    CHECK(jamba_session_set_adapters(s->session, s->adapter, NULL, 1) == JAMBA_OK);
    CHECK(jamba_session_restore(s->session, s->before, s->before_size) == JAMBA_OK);
}

static jamba_result run_restore(stage *s, jamba_error *error)
{
    return of_session(s, jamba_session_load(s->session, s->source), error);
}

static jamba_result run_say(stage *s, jamba_error *error)
{
    return of_session(s, jamba_say(s->session, "user", "Tell me of a dog that finds a boat \xf0\x9f\x90\xb6!"), error);
}

static jamba_result run_reply(stage *s, jamba_error *error)
{
    const char *text;
    size_t length;
    return of_session(s, jamba_reply(s->session, NULL, &text, &length), error);
}

static void undo_content(stage *s)
{
    CHECK(jamba_session_restore(s->session, s->before, s->before_size) == JAMBA_OK);
}

static jamba_result run_choose(stage *s, jamba_error *error)
{
    static const char *const options[] = { " yes.", " no.", " yes, and then some more.", " never." };
    int32_t choice;
    return of_session(s, jamba_choose(s->session, options, 4, NULL, NULL, &choice), error);
}

static const char long_text[] =
    "The quick <|im_end|> brown fox jumps over 12 lazy dogs, e\xcc\x81t\xc3\xa9 \xe2\x82\xac and \xf0\x9f\x90\xb6; "
    "once more, and again, until no buffer of the first size holds it any longer.";

static jamba_result run_encode(stage *s, jamba_error *error)
{
    int32_t ids[256];
    size_t count;
    return jamba_encode(s->model, long_text, sizeof long_text - 1, JAMBA_TEXT_SPECIAL, ids, 256, &count, error);
}

static jamba_result run_chat_encode(stage *s, jamba_error *error)
{
    const jamba_message messages[] = { { "system", "You are a dog." }, { "user", long_text } };
    int32_t ids[256];
    size_t count;
    return jamba_chat_encode(s->model, messages, 2, JAMBA_CHAT_BEGIN | JAMBA_CHAT_REPLY, ids, 256, &count, error);
}

/* ---- failing memory ------------------------------------------------------------------------------------ */

static size_t read_story(void *user, uint64_t offset, void *dst, size_t size)
{
    (void)user;
    memcpy(dst, story_data + offset, size);
    return size;
}

static jamba_source story_io(void)
{
    jamba_io io;
    memset(&io, 0, sizeof io);
    io.read = read_story;
    io.size = story_size;
    return jamba_from_io(io);
}

/* From wherever a model can come. */
static void test_load(void)
{
    uint8_t *unaligned = (uint8_t *)malloc(story_size + 128);
    uint8_t *odd = unaligned + 1 + (63 & (64 - ((uintptr_t)unaligned & 63)));
    jamba_source sources[4];
    size_t i;
    stage s;
    test_require(unaligned != NULL, "out of memory", "");
    memcpy(odd, story_data, story_size);
    sources[0] = jamba_from_file(story_path);
    sources[1] = jamba_from_memory(story_data, story_size);
    sources[2] = jamba_from_memory(odd, story_size);
    sources[3] = story_io();
    stage_open(&s);
    for (i = 0; i < 4; i++) {
        s.source = sources[i];
        stage_memory(&s, run_model, undo_model, 17);
    }
    s.source = jamba_from_file(tiny_file);
    stage_memory(&s, run_model, undo_model, 17);
    s.source = jamba_from_file(nfc_path);
    stage_memory(&s, run_model, undo_model, 19);
    s.source = sources[0];
    s.params.no_mmap = s.params.verify = true;
    stage_memory(&s, run_model, undo_model, 18);
    stage_close(&s);
    free(unaligned);
}

static void test_adapter(void)
{
    stage s;
    stage_converse(&s);
    s.source = jamba_from_memory(pirate_data, pirate_size);
    stage_memory(&s, run_adapter, undo_adapter, 4);
    s.source = jamba_from_file(pirate_path);
    stage_memory(&s, run_adapter, undo_adapter, 4);
#if FAULTY_CALLS
    system_calls.no_mapping = true;
    stage_memory(&s, run_adapter, undo_adapter, 5);
    system_calls.no_mapping = false;
#endif
    stage_memory(&s, run_adapters, undo_adapters, 1);
    stage_close(&s);
}

static void test_session(void)
{
    stage s;
    stage_converse(&s);
    stage_memory(&s, run_create, undo_session, 2);
    stage_memory(&s, run_fork, undo_session, 3); /* with adapters */
#if FAULTY_CALLS
    s.source = jamba_from_file(state_path);
    system_calls.no_mapping = true;
    stage_memory(&s, run_restore, NULL, 1);
    system_calls.no_mapping = false;
#endif
    stage_close(&s);
}

/* Of recurrent state alone. */
static void test_recurrent(void)
{
    stage s;
    stage_load(&s, mamba_path);
    s.session = make_session(s.model);
    CHECK(jamba_eval(s.session, few, 4) == JAMBA_OK && jamba_session_mark(s.session) == JAMBA_OK);
    stage_keep(&s);
    stage_memory(&s, run_create, undo_session, 1);
    stage_memory(&s, run_fork, undo_session, 1);
    stage_close(&s);
}

static void test_text(void)
{
    stage s;
    stage_load(&s, story_path);
    stage_memory(&s, run_encode, NULL, 5);
    stage_memory(&s, run_chat_encode, NULL, 6);
    stage_close(&s);
    stage_load(&s, tiny_file);
    stage_memory(&s, run_encode, NULL, 3);
    stage_close(&s);
    stage_load(&s, nfc_path);
    stage_memory(&s, run_encode, NULL, 5);
    stage_close(&s);
}

/* Messages, replies and choices leave the conversation as it is. */
static void test_talk(void)
{
    stage s;
    stage_converse(&s);
    stage_memory(&s, run_choose, NULL, 20);
    stage_memory(&s, run_say, undo_content, 6);
    CHECK(jamba_say(s.session, "user", "And then?") == JAMBA_OK);
    stage_keep(&s);
    stage_memory(&s, run_reply, undo_content, 4);
    stage_close(&s);
}

/* The same logits, to the bit, as of a session that has seen no fault. */
static void check_twin(const stage *s)
{
    jamba_session *twin = make_session(s->model);
    size_t bytes = (size_t)model_vocab(s->model) * sizeof(float);
    int32_t choice[2];
    const char *const options[] = { " yes.", " no." };
    CHECK(jamba_session_set_adapters(twin, s->adapter, NULL, 1) == JAMBA_OK);
    converse(twin);
    CHECK(jamba_choose(twin, options, 2, NULL, NULL, &choice[0]) == JAMBA_OK);
    CHECK(jamba_choose(s->session, options, 2, NULL, NULL, &choice[1]) == JAMBA_OK && choice[0] == choice[1]);
    CHECK(jamba_eval(twin, tokens, TOKENS) == JAMBA_OK && jamba_eval(s->session, tokens, TOKENS) == JAMBA_OK);
    CHECK(memcmp(jamba_logits(twin), jamba_logits(s->session), bytes) == 0);
    jamba_session_free(twin);
}

/* One fault after another of every kind, on one session: it goes on as if nothing had been. */
static void test_afterwards(void)
{
    stage s;
    stage_converse(&s);
    stage_memory(&s, run_choose, NULL, 20);
    stage_memory(&s, run_fork, undo_session, 3);
    stage_memory(&s, run_adapters, undo_adapters, 1);
    stage_memory(&s, run_say, undo_content, 6);
    check_twin(&s);
    stage_close(&s);
}

/* What works without any memory: all that a running game calls. */
static void check_without_memory(stage *s, jamba_session *fork)
{
    jamba_session *both[2];
    float logprobs[TOKENS];
    jamba_candidate top[3];
    size_t size;
    uint8_t *bytes;
    int32_t replay;
    both[0] = s->session;
    both[1] = fork;
    CHECK(jamba_feed(s->session, tokens, 8) == JAMBA_OK && step_all(s->session, 1, NULL) == JAMBA_OK);
    CHECK(jamba_sample(s->session, NULL) >= 0 && jamba_top(s->session, top, 3) == 3);
    CHECK(jamba_session_mark(s->session) == JAMBA_OK);
    CHECK(jamba_score(s->session, tokens, 8, logprobs) == JAMBA_OK);
    CHECK(jamba_session_rewind(s->session, 4, &replay) == JAMBA_OK);
    CHECK(jamba_feed(fork, tokens, 8) == JAMBA_OK && jamba_step_batch(both, 2, 0) == JAMBA_OK);
    CHECK(jamba_eval_batch(both, tokens, 2) == JAMBA_OK);
    bytes = session_bytes(s->session, &size);
    CHECK(jamba_session_restore(s->session, bytes, size) == JAMBA_OK);
    CHECK(jamba_session_load(s->session, jamba_from_file(state_path)) == JAMBA_OK || !FILES_MAP);
    jamba_session_reset(fork);
    CHECK(jamba_eval(fork, tokens, TOKENS) == JAMBA_OK);
    free(bytes);
}

static void test_without_memory(void)
{
    jamba_session *fork;
    stage s;
    int calls;
    stage_converse(&s);
    CHECK(jamba_session_fork(&fork, s.session, TOKENS, NULL) == JAMBA_OK);
    calls = s.memory.calls;
    s.memory.fail_at = calls + 1;
    s.memory.stay_failed = true;
    check_without_memory(&s, fork);
    CHECK_THAT(s.memory.calls == calls, "%d allocations", s.memory.calls - calls);
    jamba_session_free(fork);
    stage_close(&s);
}

/* ---- failing reads of the host ------------------------------------------------------------------------- */

typedef struct reader {
    const uint8_t *data;
    int calls, fail_at;
    bool stay_failed;
    size_t short_by;
} reader;

static size_t read_short(void *user, uint64_t offset, void *dst, size_t size)
{
    reader *r = (reader *)user;
    r->calls++;
    memcpy(dst, r->data + offset, size);
    if (!r->fail_at || r->calls < r->fail_at || (r->calls > r->fail_at && !r->stay_failed)) return size;
    return size - (r->short_by < size ? r->short_by : size);
}

/* Every callback that a source makes comes back short, by a little or all. */
static void stage_reads(stage *s, const uint8_t *data, size_t size, int least)
{
    static const size_t shorts[] = { 1, 100, SIZE_MAX };
    reader r = { NULL, 0, 0, false, 0 };
    failing f;
    jamba_io io;
    size_t i;
    r.data = data;
    f.calls = &r.calls;
    f.fail_at = &r.fail_at;
    f.stay_failed = &r.stay_failed;
    io.read = read_short;
    io.user = &r;
    io.size = size;
    s->source = jamba_from_io(io);
    for (i = 0; i < 3; i++) {
        r.short_by = shorts[i];
        CHECK(fail_each(f, stage_attempt, s, JAMBA_ERR_IO) >= least);
    }
}

static void test_reads(void)
{
    stage s;
    stage_converse(&s);
    s.run = run_model;
    s.undo = undo_model;
    stage_reads(&s, story_data, story_size, 2);
    s.run = run_adapter;
    s.undo = undo_adapter;
    stage_reads(&s, pirate_data, pirate_size, 2);
    s.run = run_restore;
    s.undo = NULL;
    stage_reads(&s, s.before, s.before_size, 2);
    check_twin(&s);
    stage_close(&s);
}

/* ---- failing system calls ------------------------------------------------------------------------------ */

#if FAULTY_CALLS

typedef struct call_fault {
    const char *name;
    call_kind kind;
    int how, limit;
    jamba_result expected;
} call_fault;

/* What is interrupted or short is tried again, in the end it is done: a limit stands for that end. */
static const call_fault call_faults[] = {
    { "open: EIO", CALL_OPEN, EIO, 0, JAMBA_ERR_IO },
    { "open: EACCES", CALL_OPEN, EACCES, 0, JAMBA_ERR_IO },
    { "open: EMFILE", CALL_OPEN, EMFILE, 0, JAMBA_ERR_IO },
    { "open: EINTR", CALL_OPEN, EINTR, 40, JAMBA_OK },
    { "fstat: EIO", CALL_FSTAT, EIO, 0, JAMBA_ERR_IO },
    { "lseek: EIO", CALL_LSEEK, EIO, 0, JAMBA_ERR_IO },
    { "read: EIO", CALL_READ, EIO, 0, JAMBA_ERR_IO },
    { "read: the end", CALL_READ, READ_END, 0, JAMBA_ERR_IO },
    { "read: EINTR", CALL_READ, EINTR, 40, JAMBA_OK },
    { "read: one byte", CALL_READ, READ_ONE, 5000, JAMBA_OK },
    { "mmap: ENODEV", CALL_MMAP, ENODEV, 0, JAMBA_OK },
    { "mmap: ENOMEM", CALL_MMAP, ENOMEM, 0, JAMBA_OK },
    { "munmap: EINVAL", CALL_MUNMAP, EINVAL, 0, JAMBA_OK },
    { "close: EIO", CALL_CLOSE, EIO, 0, JAMBA_OK },
    { "close: EINTR", CALL_CLOSE, EINTR, 0, JAMBA_OK },
#if defined(MADV_HUGEPAGE)
    { "madvise: ENOMEM", CALL_MADVISE, ENOMEM, 0, JAMBA_OK },
#endif
};
enum { CALL_FAULTS = sizeof call_faults / sizeof call_faults[0] };

static int call_hits[CALL_FAULTS]; /* how often each fault was met, alone */

/* An attempt whose message must name the file. */
static jamba_result stage_named(void *user, jamba_error *error)
{
    const stage *s = (const stage *)user;
    jamba_result result = stage_attempt(user, error);
    system_calls.failed = 0;
    if (result == JAMBA_ERR_IO)
        CHECK_THAT(strstr(error->message, s->source.path) != NULL, "'%s' does not name the file", error->message);
    return result;
}

/* Every system call of one way to read a file, failing in every way. */
static void stage_calls(stage *s, jamba_result (*run)(stage *, jamba_error *), void (*undo)(stage *), const char *path)
{
    failing f;
    size_t i;
    f.calls = &system_calls.calls;
    f.fail_at = &system_calls.fail_at;
    f.stay_failed = &system_calls.stay_failed;
    s->source = jamba_from_file(path);
    s->run = run;
    s->undo = undo;
    for (i = 0; i < CALL_FAULTS; i++) {
        system_calls.kind = call_faults[i].kind;
        system_calls.how = call_faults[i].how;
        system_calls.limit = call_faults[i].limit;
        call_hits[i] += fail_each(f, stage_named, s, call_faults[i].expected);
    }
    system_calls.kind = CALL_NONE;
}

static void stage_files(stage *s)
{
    stage_calls(s, run_model, undo_model, story_path);
    stage_calls(s, run_adapter, undo_adapter, pirate_path);
    stage_calls(s, run_restore, NULL, state_path);
}

static void test_calls(void)
{
    size_t i;
    stage s;
    stage_converse(&s);
    s.params.verify = true;
    stage_files(&s);
    system_calls.no_mapping = true;
    stage_files(&s);
    system_calls.no_mapping = false;
    s.params.huge_pages = true;
    stage_calls(&s, run_model, undo_model, story_path);
    check_twin(&s);
    stage_close(&s);
    for (i = 0; i < CALL_FAULTS; i++) CHECK_THAT(call_hits[i] > 0, "%s: never met", call_faults[i].name);
}

/* ---- processes and signals ----------------------------------------------------------------------------- */

/* Logits of the tokens from a new session. free() them. */
static float *fresh_logits(const jamba_model *model)
{
    return model_logits(model, NULL, tokens, TOKENS, 0);
}

/* A child uses the model that its parent has loaded, and the parent goes on. */
static void test_fork(void)
{
    jamba_model *model = load_for_cpu(story_path, JAMBA_CPU_BEST);
    size_t bytes = (size_t)model_vocab(model) * TOKENS * sizeof(float);
    float *before = fresh_logits(model), *after;
    int i, status;
    for (i = 0; i < 5; i++) {
        pid_t child;
        fflush(stdout);
        child = fork();
        if (child == 0) {
            float *there = fresh_logits(model);
            _exit(there && memcmp(there, before, bytes) == 0 ? 0 : 1);
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    after = fresh_logits(model);
    CHECK(memcmp(after, before, bytes) == 0);
    free(before);
    free(after);
    jamba_model_free(model);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
    (void)number;
    alarms++;
}

/* Signals every 200 microseconds, whose handler lets system calls be interrupted; 0: none. */
static void storm(int on)
{
    struct sigaction action;
    struct itimerval every;
    memset(&action, 0, sizeof action);
    memset(&every, 0, sizeof every);
    action.sa_handler = on_alarm;
    every.it_value.tv_usec = every.it_interval.tv_usec = on ? 200 : 0;
    if (on) sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &every, NULL);
}

static void test_storm(void)
{
    float *calm, *stormy;
    size_t bytes;
    int i;
    stage s;
    stage_converse(&s);
    calm = fresh_logits(s.model);
    bytes = (size_t)model_vocab(s.model) * TOKENS * sizeof(float);
    storm(1);
    for (i = 0; i < 10; i++) {
        s.params.no_mmap = i % 2 == 0;
        s.params.verify = true;
        s.source = jamba_from_file(story_path);
        CHECK(run_model(&s, NULL) == JAMBA_OK);
        stormy = fresh_logits((jamba_model *)s.made);
        CHECK(stormy && memcmp(stormy, calm, bytes) == 0);
        free(stormy);
        undo_model(&s);
        CHECK(jamba_session_load(s.session, jamba_from_file(state_path)) == JAMBA_OK);
        check_untouched(&s);
    }
    storm(0);
    CHECK_THAT(alarms > 10, "only %d signals", (int)alarms);
    free(calm);
    stage_close(&s);
}
#endif

/* ---- soak ---------------------------------------------------------------------------------------------- */

static void soak_once(stage *s)
{
    jamba_session *session;
    CHECK(run_model(s, NULL) == JAMBA_OK);
    session = make_session((jamba_model *)s->made);
    CHECK(jamba_eval(session, tokens, 2) == JAMBA_OK);
    jamba_session_free(session);
    undo_model(s);
}

/* Loads and frees again and again: memory does not grow. */
static void test_soak(int cycles)
{
    uint64_t early = 0, late = 0;
    bool told;
    stage s;
    int i;
    memset(&s, 0, sizeof s);
    for (i = 0; i < cycles / 4; i++) {
        s.source = i % 2 ? jamba_from_file(story_path) : jamba_from_memory(story_data, story_size);
        soak_once(&s);
    }
    told = machine_resident(&early);
    for (i = 0; i < cycles; i++) {
        s.source = i % 2 ? jamba_from_file(story_path) : jamba_from_memory(story_data, story_size);
        soak_once(&s);
    }
#if defined(SANITIZED)
    told = false;
#endif
    if (!told || !machine_resident(&late)) return;
    CHECK_THAT(late <= early + (64 << 10), "%llu bytes resident, %llu before %d cycles", (unsigned long long)late,
        (unsigned long long)early, cycles);
}

/* ---- the program --------------------------------------------------------------------------------------- */

/* The tiny model with bytes as tokens, with NFC, and with an added token that is looked for after it. */
static void make_nfc(void)
{
    static const char json[] = "{\"version\":\"1.0\",\"added_tokens\":["
        "{\"id\":3,\"content\":\"e\xcc\x81\",\"special\":false,\"normalized\":true,\"lstrip\":false,\"rstrip\":false,"
        "\"single_word\":false}],\"normalizer\":{\"type\":\"NFC\"},"
        "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
        "\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,\"trim_offsets\":true,\"use_regex\":true},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}}";
    char folder[PATH_ROOM], path[PATH_ROOM];
    tiny_write(temp_path(folder, "nfc"), false);
    file_write(tiny_path(path, folder, "tokenizer.json"), json, strlen(json));
    test_require(convert(folder, "nfc", "bf16", nfc_path), "convert", folder);
}

/* The storyteller and an adapter of it; others for what it lacks. */
static void make_files(void)
{
    const char *arguments[] = { "examples/characters/pirate", NULL, "--base", NULL, "--force", NULL };
    char errors[1000], folder[PATH_ROOM];
    tiny_write(temp_path(folder, "tiny"), false);
    test_require(convert(folder, "tiny", "bf16", tiny_file), "convert", folder);
    make_nfc();
    test_require(convert("tests/cases/mamba2", "mamba2", "bf16", mamba_path), "convert", "mamba2");
    test_require(convert("examples/storyteller", "storyteller", "q8", story_path), "convert", "storyteller");
    arguments[1] = temp_path(pirate_path, "pirate.jamba-lora");
    arguments[3] = story_path;
    if (tool_run("convert", arguments, errors, sizeof errors) != 0) test_require(false, "convert", errors);
    temp_path(state_path, "kept.state");
    story_data = file_need(story_path, &story_size);
    pirate_data = file_need(pirate_path, &pirate_size);
}

int main(int argc, char **argv)
{
    static const named_test tests[] = {
        { "memory: load", test_load },
        { "memory: adapters", test_adapter },
        { "memory: sessions", test_session },
        { "memory: recurrent sessions", test_recurrent },
        { "memory: text", test_text },
        { "memory: conversations", test_talk },
        { "memory: as if nothing had been", test_afterwards },
        { "memory: not needed", test_without_memory },
        { "callbacks that read", test_reads },
#if defined(FAULTS_SITES)
        { "allocation sites", test_sites },
#endif
#if FAULTY_CALLS
        { "system calls", test_calls },
        { "a forked process", test_fork },
        { "a storm of signals", test_storm },
#endif
    };
    const char *wanted = getenv("SOAK");
    int cycles = wanted ? atoi(wanted) : 200;
    test_start(argc, argv);
    test_require(cycles > 0, "SOAK must be a number of cycles, not", wanted);
    if (!test_state.list) make_files();
    test_run(tests, sizeof tests / sizeof tests[0]);
    if (test_begin("%d loads", cycles)) {
        test_soak(cycles);
        test_end();
    }
    free(story_data);
    free(pirate_data);
    return test_summary();
}
