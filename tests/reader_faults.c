/* reader_faults.c - the converter's readers while an allocation or a read fails
 *
 * Each folder is read in this process with the first, second, third ... call fault_kind, once or from then on, until
 * none is left to fail: the result is one line that says so, no block is left and no file; or, where the call was
 * not needed, the same bytes as without a failure. */
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- calls that fail ------------------------------------------------------------------------------------------ */

typedef enum call_kind {
    FAULT_ALLOC, FAULT_READ, FAULT_INTERRUPT, FAULT_END, FAULT_OPEN, FAULT_STREAM, FAULTS
} call_kind;
static const char *const fault_names[] = { "allocation", "read", "interrupted read", "file that ends", "open",
    "stream" };

static struct {
    call_kind kind;
    int at;       /* the call that fails, from 1 on; 0: none */
    bool forever; /* all after it too */
    int calls, live;
} faults;

static bool fault_now(call_kind kind)
{
    if (kind != faults.kind || faults.at == 0) return false;
    faults.calls++;
    return faults.calls == faults.at || (faults.forever && faults.calls > faults.at);
}

static void *fault_malloc(size_t size)
{
    void *block = fault_now(FAULT_ALLOC) ? NULL : malloc(size);
    faults.live += block != NULL;
    return block;
}

static void *fault_calloc(size_t count, size_t size)
{
    void *block = fault_now(FAULT_ALLOC) ? NULL : calloc(count, size);
    faults.live += block != NULL;
    return block;
}

static void *fault_realloc(void *old, size_t size)
{
    void *block = fault_now(FAULT_ALLOC) ? NULL : realloc(old, size);
    faults.live += block != NULL && old == NULL;
    return block;
}

static void fault_free(void *block)
{
    faults.live -= block != NULL;
    free(block);
}

static ssize_t fault_pread(int file, void *out, size_t size, off_t offset)
{
    errno = EIO;
    if (fault_now(FAULT_READ)) return -1;
    errno = EINTR;
    if (fault_now(FAULT_INTERRUPT)) return -1;
    return fault_now(FAULT_END) ? 0 : pread(file, out, size, offset);
}

static int fault_open(const char *path, int flags, ...)
{
    errno = EACCES;
    return fault_now(FAULT_OPEN) ? -1 : open(path, flags, 0666);
}

static int fault_fstat(int file, struct stat *info)
{
    errno = EIO;
    return fault_now(FAULT_OPEN) ? -1 : fstat(file, info);
}

static bool fault_of_stream; /* the one opened last */

static FILE *fault_fopen(const char *path, const char *mode)
{
    errno = EACCES;
    fault_of_stream = false;
    return fault_now(FAULT_OPEN) ? NULL : fopen(path, mode);
}

static size_t fault_fread(void *out, size_t size, size_t count, FILE *stream)
{
    errno = EIO;
    fault_of_stream |= fault_now(FAULT_STREAM);
    return fault_of_stream ? 0 : fread(out, size, count, stream);
}

static int fault_ferror(FILE *stream)
{
    return fault_of_stream || ferror(stream);
}

#undef ferror
#define malloc fault_malloc
#define calloc fault_calloc
#define realloc fault_realloc
#define free fault_free
#define pread fault_pread
#define open fault_open
#define fstat fault_fstat
#define fopen fault_fopen
#define fread fault_fread
#define ferror fault_ferror

#include "tiny.h"

#define main convert_main
#include "../tools/convert.c"
#undef main

/* ---- what is read --------------------------------------------------------------------------------------------- */

/* Something that reads, and gives bytes that tell whether it has read all. */
typedef struct job {
    const char *name;
    bool (*run)(const struct job *j, tool_buffer *out, tool_error *error);
    const char *dir, *merge, *base; /* an adapter to merge; the model that `dir` is an adapter for */
    const json_value *tokenizer;
    const uint8_t *model; /* a tokenizer.model */
    size_t size;
    uint32_t vocab;
} job;

static char out_folder[PATH_ROOM], out_path[PATH_ROOM];

static bool convert_files(const job *j, tool_buffer *out, tool_error *error)
{
    options o;
    uint8_t *data;
    size_t size;
    bool ok;
    memset(&o, 0, sizeof o);
    o.dir = j->dir;
    o.merge = j->merge;
    o.out = out_path;
    o.type = JMB_F32;
    o.force = true;
    ok = j->base ? adapter_convert(j->dir, j->base, out_path, JMB_F32, true, error) : convert_merged(&o, error);
    faults.at = 0;
    if (!ok) return false;
    data = file_need(out_path, &size);
    tool_buffer_add(out, data, size);
    free(data);
    remove(out_path);
    return true;
}

/* All but the weights, which only convert_files reads. */
static bool plan_files(const job *j, tool_buffer *out, tool_error *error)
{
    convert_plan plan;
    convert_text text;
    lora_set lora;
    bool ok = !j->merge || lora_open(&lora, j->merge, error);
    if (!ok) return false;
    memset(&text, 0, sizeof text);
    ok = plan_make(&plan, j->dir, JMB_F32, j->merge ? &lora : NULL, error);
    ok = ok && text_make(&text, &plan, NULL, error);
    faults.at = 0;
    if (ok) tool_buffer_add(out, plan.model.blocks, plan.model.header.blocks * sizeof *plan.model.blocks);
    if (ok) tool_buffer_add(out, plan.model.tensors, plan.model.header.tensors * sizeof *plan.model.tensors);
    if (ok) tool_buffer_add(out, text.tokenizer.data, text.tokenizer.size);
    text_free(&text);
    plan_free(&plan);
    if (j->merge) lora_close(&lora);
    return ok;
}

static bool compile_tokenizer(const job *j, tool_buffer *out, tool_error *error)
{
    if (j->model) return tokenizer_compile_model(j->model, j->size, NULL, j->vocab, out, error);
    return tokenizer_compile_json(j->tokenizer, NULL, j->vocab, out, error);
}

/* ---- the loop ------------------------------------------------------------------------------------------------- */

/* Words of the message of a failure; NULL where the call is made again. */
static const char *const fault_words[] = { "memory", "cannot read", NULL, "shorter than it was", "", "cannot " };

/* Whether the job failed; else it gave `want`. */
static bool check_once(const job *j, const tool_buffer *want, call_kind kind, int n, const char *what)
{
    tool_buffer out = { NULL, 0, 0, false };
    tool_error error;
    int live = faults.live;
    bool ok;
    memset(&error, 0, sizeof error);
    ok = j->run(j, &out, &error);
    faults.at = 0;
    /* of the calls to open, one only chooses the words for a folder in a file's place */
    if (ok && kind != FAULT_OPEN)
        CHECK_THAT(!fault_words[kind] || faults.calls < n, "%s, and nothing is said", what);
    if (ok) CHECK_THAT(out.size == want->size && memcmp(out.data, want->data, out.size) == 0, "%s: other bytes", what);
    else CHECK_THAT(fault_words[kind] && strstr(error.message, fault_words[kind]) && !strchr(error.message, '\n'),
        "%s: '%s'", what, error.message);
    tool_buffer_free(&out);
    CHECK_THAT(faults.live == live, "%s: %d blocks left", what, faults.live - live);
    CHECK_THAT(files_in(out_folder) == 0, "%s: leaves a file", what);
    return !ok;
}

static void check_kind(const job *j, const tool_buffer *want, call_kind kind, bool forever)
{
    int n = 0, failed = 0;
    do {
        char what[PATH_ROOM];
        n++;
        snprintf(what, sizeof what, "%s, %s %d fails%s", j->name, fault_names[kind], n, forever ? " for ever" : "");
        faults.kind = kind;
        faults.at = n;
        faults.forever = forever;
        faults.calls = 0;
        failed += check_once(j, want, kind, n, what);
    } while (faults.calls >= n);
    CHECK_THAT(fault_words[kind] == NULL || n == 1 || failed > 0, "%s: no failed %s shows", j->name, fault_names[kind]);
}

static void check_job(const job *j)
{
    tool_buffer want = { NULL, 0, 0, false };
    tool_error error;
    int kind;
    if (!test_begin("%s", j->name)) return;
    if (CHECK_THAT(j->run(j, &want, &error), "%s", error.message)) {
        for (kind = 0; kind < FAULTS; kind++) {
            check_kind(j, &want, (call_kind)kind, false);
            if (kind != FAULT_INTERRUPT) check_kind(j, &want, (call_kind)kind, true);
        }
    }
    tool_buffer_free(&want);
    test_end();
}

/* ---- folders -------------------------------------------------------------------------------------------------- */

static void write_text(const char *folder, const char *name, const char *text)
{
    char path[PATH_ROOM];
    file_write(tiny_path(path, folder, name), text, strlen(text));
}

static void check_folder(const char *name, bool whole, const char *dir, const char *merge, const char *base)
{
    job j;
    memset(&j, 0, sizeof j);
    j.name = name;
    j.run = whole ? convert_files : plan_files;
    j.dir = dir;
    j.merge = merge;
    j.base = base;
    check_job(&j);
}

/* A head beside the embedding that it is tied to, by a copy of the case's files. */
static void check_tied_head(void)
{
    char folder[PATH_ROOM], path[PATH_ROOM], *config, *tied;
    uint8_t *weights;
    size_t size;
    mkdir(temp_path(folder, "tied"), 0777);
    config = (char *)file_need("tests/cases/llama/config.json", &size);
    tied = strstr(config, "\"tie_word_embeddings\": false");
    test_require(tied != NULL, "no tie_word_embeddings", "tests/cases/llama/config.json");
    memcpy(tied, "\"tie_word_embeddings\": true ", 28);
    write_text(folder, "config.json", config);
    free(config);
    weights = file_need("tests/cases/llama/model.safetensors", &size);
    file_write(tiny_path(path, folder, "model.safetensors"), weights, size);
    free(weights);
    check_folder("a tied head", false, folder, NULL, NULL);
}

static void check_tiny_folders(void)
{
    char folder[PATH_ROOM];
    tiny_write(temp_path(folder, "single"), false);
    write_text(folder, "tokenizer_config.json", "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}");
    check_folder("one file", true, folder, NULL, NULL);
    tiny_write(temp_path(folder, "sharded"), true);
    check_folder("shards", false, folder, NULL, NULL);
}

/* The adapter merged; `whole`: with all weights, and as a file for its model too. */
static void check_adapter(const char *name, const char *base, bool whole)
{
    char what[80], dir[PATH_ROOM], lora[PATH_ROOM], model[PATH_ROOM];
    options o;
    tool_error error;
    snprintf(dir, sizeof dir, "tests/cases/%s", base);
    snprintf(lora, sizeof lora, "tests/cases-lora/%s", name);
    memset(&o, 0, sizeof o);
    o.dir = dir;
    o.out = temp_path(model, "base.jamba");
    o.type = JMB_F32;
    o.force = true;
    if (whole) test_require(convert_merged(&o, &error), dir, error.message);
    snprintf(what, sizeof what, "%s for its model", name);
    if (whole) check_folder(what, true, lora, NULL, model);
    snprintf(what, sizeof what, "%s merged", name);
    check_folder(what, whole, dir, lora, NULL);
}

/* ---- tokenizers ----------------------------------------------------------------------------------------------- */

static void check_tokenizer(const json_value *root)
{
    const char *hex = json_string(json_get(root, "model"), NULL);
    uint8_t *data = hex ? (uint8_t *)malloc(strlen(hex) / 2 + 1) : NULL;
    int64_t vocab = 0;
    char name[80];
    job j;
    memset(&j, 0, sizeof j);
    if (!json_int(json_get(root, "vocab"), &vocab)) return; /* a case of normalisation */
    snprintf(name, sizeof name, "tokenizer, %s", json_string(json_get(root, "name"), NULL));
    j.name = name;
    j.run = compile_tokenizer;
    j.vocab = (uint32_t)vocab;
    j.tokenizer = json_get(root, "tokenizer");
    j.model = data;
    for (; hex && hex[0] && hex[1]; hex += 2)
        data[j.size++] = (uint8_t)(jmb_hex_digit((uint8_t)hex[0]) * 16 + jmb_hex_digit((uint8_t)hex[1]));
    check_job(&j);
    free(data);
}

static void check_tokenizers(void)
{
    size_t size;
    char *data = (char *)file_need("tests/tokenizers/cases.jsonl", &size), *line = data, *end;
    for (; line < data + size; line = end + 1) {
        json_doc doc;
        tool_error error;
        end = (char *)memchr(line, '\n', size - (size_t)(line - data));
        if (!end) end = data + size;
        test_require(json_parse(&doc, line, (size_t)(end - line), &error), "cases.jsonl", error.message);
        check_tokenizer(json_root(&doc));
        json_free(&doc);
    }
    free(data);
}

int main(int argc, char **argv)
{
    static const char *const cases[] = { "jamba-moe", "llama-llama3", "zamba2-abc", "zamba2-attn-adapter",
        "zamba2-untied" };
    size_t i;
    test_start(argc, argv);
    temp_path(out_folder, "out");
    mkdir(out_folder, 0777);
    temp_path(out_path, "out/out.jamba");
    remove(out_path);
    if (!freopen("/dev/null", "r", stdin)) return 1;
    if (!freopen("/dev/null", "w", stderr)) return 1; /* notices that a folder has no tokenizer */
    check_tiny_folders();
    for (i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char dir[PATH_ROOM];
        snprintf(dir, sizeof dir, "tests/cases/%s", cases[i]);
        check_folder(cases[i], false, dir, NULL, NULL);
    }
    check_tied_head();
    check_adapter("zamba2-blocks", "zamba2-abc", false);
    check_adapter("jamba-seed", "jamba-mixed", true);
    check_adapter("jamba-tied", "jamba-flags", false);
    check_adapter("llama-ends", "llama", true);
    check_tokenizers();
    if (test_begin("files that were never opened are not closed")) {
        CHECK(fcntl(0, F_GETFD) == 0);
        test_end();
    }
    return test_summary();
}
