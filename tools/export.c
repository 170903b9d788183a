/* export.c - a model file back to a Hugging Face checkpoint folder, which converts to the same file.
 *
 * The folder is written beside its name, converted again in memory and compared with the model file, and only
 * then takes its name.
 */
#include "export_tensors.h"
#include "export_text.h"

#if !defined(_WIN32)
#include <dirent.h>
#endif

static const char tool[] = "export";
static const char usage[] =
    "usage: export MODEL.jamba HF_DIR [--force]\n"
    "  writes config.json, generation_config.json, model.safetensors, and with a tokenizer tokenizer.json (or\n"
    "  tokenizer.model) and tokenizer_config.json, from a model of type f32, f16 or bf16\n"
    "  --force    replace HF_DIR when it is a folder with no other files\n";

static const char *const export_names[] = { "model.safetensors", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json" };
enum { EXPORT_NAMES = sizeof export_names / sizeof export_names[0] };

/* ---- folders ------------------------------------------------------------------------------- */

/* "PATH.suffix" without slashes at the end of PATH. */
static char *folder_beside(const char *path, const char *suffix)
{
    size_t size = strlen(path);
    char *name = (char *)malloc(size + strlen(suffix) + 1);
    while (size > 1 && path[size - 1] == '/') size--;
    if (!name) return NULL;
    memcpy(name, path, size);
    strcpy(name + size, suffix);
    return name;
}

/* Whether the folder holds nothing but what an export writes; `other` gets the name of another file. */
static bool folder_is_export(const char *path, char other[256])
{
    DIR *dir = opendir(path);
    const struct dirent *entry;
    bool mine = dir != NULL;
    other[0] = 0;
    while (mine && (entry = readdir(dir)) != NULL) {
        size_t i = 0, size;
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        for (; i < EXPORT_NAMES; i++) {
            size = strlen(export_names[i]);
            if (strncmp(entry->d_name, export_names[i], size) != 0) continue;
            if (entry->d_name[size] == 0 || strcmp(entry->d_name + size, ".part") == 0) break;
        }
        mine = i < EXPORT_NAMES;
        if (!mine) snprintf(other, 256, "%s", entry->d_name);
    }
    if (dir) closedir(dir);
    return mine;
}

enum { FOLDER_ROOM = 4096 }; /* of a path that exists */

/* Removes a folder that is an export, and nothing else. Takes no memory, as there may be none, and a
 * signal handler calls it. */
static void folder_remove(const char *path)
{
    char name[FOLDER_ROOM + 64];
    size_t length = strlen(path), i;
    if (length >= FOLDER_ROOM) return;
    memcpy(name, path, length);
    name[length] = '/';
    for (i = 0; i < EXPORT_NAMES; i++) {
        strcpy(name + length + 1, export_names[i]);
        unlink(name);
        strcat(name, ".part");
        unlink(name);
    }
    rmdir(path);
}

static bool folder_check(const char *path, bool force, tool_error *error)
{
    struct stat info;
    char other[256];
    bool there, unused = output_is_free(path, &info, &there, error);
    if (!there) return unused;
    if (!force) return tool_error_set(error, "%s: exists: give --force to replace it", path);
    if (!S_ISDIR(info.st_mode)) return tool_error_set(error, "%s: is not a folder", path);
    if (folder_is_export(path, other)) return true;
    if (!other[0]) return tool_error_set(error, "%s: cannot read: %s", path, strerror(errno));
    return tool_error_set(error, "%s: holds %s, which no export writes: choose another name", path, other);
}

/* A new folder at `path`; one of a run that was killed goes first. */
static bool folder_create(const char *path, tool_error *error)
{
    char other[256];
    struct stat info;
    if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode) && folder_is_export(path, other)) folder_remove(path);
    return mkdir(path, 0777) == 0 || tool_error_set(error, "%s: cannot create: %s", path, strerror(errno));
}

/* Gives the finished folder its name; an old one steps aside first and is removed last. What a run that was killed then
 * has left aside goes before. */
static bool folder_finish(const char *part, const char *path, bool force, tool_error *error)
{
    char *old = folder_beside(path, ".old"), *beside = output_folder(path), other[256];
    bool there = tool_file_exists(path), ok = old != NULL || tool_no_memory(error);
    ok = ok && folder_check(path, force, error);
    if (ok && there && folder_is_export(old, other)) folder_remove(old);
    if (ok && there && rename(path, old) != 0)
        ok = tool_error_set(error, "%s: cannot rename: %s", path, strerror(errno));
    else if (ok && rename(part, path) != 0) {
        tool_error_fill(error, "%s: cannot rename: %s", part, strerror(errno));
        if (there && rename(old, path) != 0)
            tool_error_fill(error, "%s: the old folder is now %s: %s", path, old, strerror(errno));
        ok = false;
    } else if (ok) {
        if (beside) output_sync_folder(beside);
        if (there) folder_remove(old);
    }
    free(beside);
    free(old);
    return ok;
}

/* ---- comparing ----------------------------------------------------------------------------- */

/* Where a config cannot say the range of the time steps, an option of convert can. */
static void compare_limits(const convert_plan *plan, const jmb_metadata *m)
{
    uint32_t i;
    for (i = 0; i < m->header.blocks; i++) {
        jmb_block *b = &plan->model.blocks[i];
        if (b->dt_min == m->blocks[i].dt_min && b->dt_max == m->blocks[i].dt_max) continue;
        fprintf(stderr, "%s: config.json cannot say the time steps' range: convert with --dt-limit %g,%g\n", tool,
            (double)m->blocks[i].dt_min, (double)m->blocks[i].dt_max);
        return;
    }
}

static bool compare_program(const convert_plan *plan, const export_plan *e, tool_error *error)
{
    const jmb_header *a = &plan->model.header, *b = &e->plan.model.header;
    const uint32_t want[] = { b->vocab, b->hidden, b->context, b->head, b->bos, b->pad, b->eos_count, b->blocks,
        b->tensors, jmb_bits_of(b->eps) };
    const uint32_t have[] = { a->vocab, a->hidden, a->context, a->head, a->bos, a->pad, a->eos_count, a->blocks,
        a->tensors, jmb_bits_of(a->eps) };
    uint32_t i;
    if (memcmp(want, have, sizeof want) != 0)
        return tool_error_set(error, "%s: no config.json says the sizes of this program", e->path);
    for (i = 0; i < a->eos_count; i++)
        if (jmb_eos(a, i) != jmb_eos(b, i))
            return tool_error_set(error, "%s: no config.json says its last tokens", e->path);
    for (i = 0; i < a->blocks; i++) {
        jmb_block block = plan->model.blocks[i];
        block.dt_min = e->plan.model.blocks[i].dt_min;
        block.dt_max = e->plan.model.blocks[i].dt_max;
        if (memcmp(&block, &e->plan.model.blocks[i], sizeof block) != 0)
            return tool_error_set(error, "%s: block %u is not what any config.json of a %s model says", e->path, i,
                plan->family->name);
    }
    return true;
}

/* Notices only: the folder is a checkpoint of the model in any case. */
static void compare_text(const convert_text *text, const export_plan *e)
{
    const jmb_metadata *m = &e->plan.model;
    const uint8_t *bytes = e->file->bytes;
    bool tokenizer = text->tokenizer.size == m->header.tokenizer_size
        && memcmp(text->tokenizer.data ? text->tokenizer.data : bytes, bytes + m->parts.tokenizer,
               text->tokenizer.size) == 0;
    bool strings = text->strings.bytes.size == m->header.strings_size
        && memcmp(text->strings.bytes.data, bytes + m->parts.strings, text->strings.bytes.size) == 0;
    const char *format = jmb_find_string(m, "chat.format");
    char name[64];
    snprintf(name, sizeof name, "%s", format ? format : "none");
    tool_clean_text(name);
    if (!tokenizer)
        fprintf(stderr, "%s: no tokenizer file says this tokenizer: copy the original's files into the folder\n", tool);
    else if (!strings)
        fprintf(stderr, "%s: its template does not tell the chat format: convert with --chat %s\n", tool, name);
}

/* Converts the folder in memory, all but the tensors' data. */
static bool compare_folder(const char *dir, const export_plan *e, tool_error *error)
{
    convert_plan plan;
    convert_text text;
    bool ok;
    memset(&text, 0, sizeof text);
    if (!plan_make(&plan, dir, e->plan.model.header.type, NULL, error)) return false;
    ok = text_make(&text, &plan, NULL, error) && compare_program(&plan, e, error);
    if (ok) compare_limits(&plan, &e->plan.model);
    if (ok) compare_text(&text, e);
    text_free(&text);
    plan_free(&plan);
    return ok;
}

/* ---- the files ----------------------------------------------------------------------------- */

/* Writes a text as DIR/NAME and empties it. */
static bool write_text(const char *dir, const char *name, tool_buffer *text, tool_error *error)
{
    char *path = tool_path_join(dir, name);
    bool ok = (path && !text->failed) || tool_no_memory(error);
    ok = ok && output_file(path, text->data, text->size, false, error);
    free(path);
    tool_buffer_free(text);
    return ok;
}

static bool write_configs(const export_plan *e, const char *dir, tool_error *error)
{
    tool_buffer text = { NULL, 0, 0, false };
    export_config(e, &text);
    if (!write_text(dir, "config.json", &text, error)) return false;
    export_generation_config(e, &text);
    return write_text(dir, "generation_config.json", &text, error);
}

/* Nothing without a tokenizer. */
static bool write_tokenizer(const export_plan *e, const char *dir, tool_error *error)
{
    tool_buffer text = { NULL, 0, 0, false };
    text_export x;
    bool ok = text_export_open(&x, e->file, error);
    if (ok && e->plan.model.header.tokenizer_size > 0) {
        bool pieces = text_is_sentencepiece(&x);
        if (pieces) export_sentencepiece(&x, &text);
        else export_tokenizer(&x, &text);
        ok = write_text(dir, pieces ? "tokenizer.model" : "tokenizer.json", &text, error);
        if (ok) export_tokenizer_config(&x, &text);
        ok = ok && write_text(dir, "tokenizer_config.json", &text, error);
    }
    text_export_free(&x);
    return ok;
}

static bool write_folder(const export_plan *e, const char *dir, uint64_t *inexact, tool_error *error)
{
    char *path = tool_path_join(dir, export_names[0]);
    bool ok = path != NULL || tool_no_memory(error);
    ok = ok && export_tensors(e, path, inexact, error) && write_configs(e, dir, error)
        && write_tokenizer(e, dir, error);
    free(path);
    return ok;
}

/* The folder that a signal removes. */
static const char *volatile export_part;

static void remove_part(void)
{
    if (export_part) folder_remove(export_part);
}

/* ---- the whole ----------------------------------------------------------------------------- */

static bool run(const export_plan *e, const char *dir, bool force, tool_error *error)
{
    char *part = folder_beside(dir, ".part");
    uint64_t inexact = 0;
    bool created, ok = part != NULL || tool_no_memory(error);
    output_also_remove = remove_part;
    output_watch_signals();
    export_part = part;
    ok = ok && folder_check(dir, force, error) && folder_create(part, error);
    created = ok;
    ok = ok && write_folder(e, part, &inexact, error) && compare_folder(part, e, error)
        && folder_finish(part, dir, force, error);
    export_part = NULL;
    if (created && !ok) folder_remove(part);
    if (ok && inexact > 0)
        fprintf(stderr, "%s: numbers of A that are -exp of no float: %llu; the nearest were written\n", tool,
            (unsigned long long)inexact);
    free(part);
    return ok;
}

int main(int argc, char **argv)
{
    const char *path = NULL, *dir = NULL;
    bool force = false, ok;
    model_file model;
    export_plan e;
    tool_error error;
    int i;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--force") == 0) force = true;
        else if (argv[i][0] == '-') tool_usage(tool, usage, "unknown option", argv[i]);
        else if (!path) path = argv[i];
        else if (!dir) dir = argv[i];
        else tool_usage(tool, usage, "too many arguments:", argv[i]);
    }
    if (!path) tool_usage(tool, usage, "no model given", NULL);
    if (!dir || !*dir) tool_usage(tool, usage, "no output folder given", NULL);
    if (!model_open(&model, path, &error)) tool_die(tool, "%s", error.message);
    ok = export_make(&e, &model, path, &error) && run(&e, dir, force, &error);
    export_free(&e);
    model_close(&model);
    if (!ok) tool_die(tool, "%s", error.message);
    return 0;
}
