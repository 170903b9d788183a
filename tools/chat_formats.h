/* chat_formats.h - chooses the chat format of a Hugging Face folder and writes its strings.
 *
 * A template is never interpreted: it is recognised by its literal marks among the formats below, or the
 * user names one. The keys are those of >>chat in jamba.h.
 */
#ifndef CHAT_FORMATS_H
#define CHAT_FORMATS_H

#include "json.h"

/* A turn is open1 ROLE open2 CONTENT close. */
typedef struct chat_format {
    const char *name;
    const char *mark;           /* what its templates contain */
    const char *begin;          /* NULL: the first token, if the template or the tokenizer adds it */
    const char *open1, *open2, *close;
    const char *reply;          /* what opens the reply; NULL: as any turn of the assistant */
    const char *default_system; /* NULL: conversations may begin without a system turn */
    const char *tokens[3];      /* that must be special */
    bool role_tokens;           /* open1 ROLE ends in a special token <|ROLE|> */
} chat_format;

static const chat_format chat_formats[] = {
    { "chatml", "<|im_start|>", NULL, "<|im_start|>", "\n", "<|im_end|>\n", NULL, NULL,
        { "<|im_start|>", "<|im_end|>", NULL }, false },
    { "jamba", "<|bom|>", "<|startoftext|>", "<|bom|><|", "|> ", "<|eom|>", "<|bom|><|assistant|>", "",
        { "<|startoftext|>", "<|bom|>", "<|eom|>" }, true },
};

enum { CHAT_FORMATS = sizeof chat_formats / sizeof chat_formats[0], CHAT_ROLES = 4 };

static const char *const chat_roles[CHAT_ROLES] = { "system", "user", "assistant", "tool" };

/* ---- the folder ---------------------------------------------------------------------------- */

/* What the folder says about text; values live in the documents. */
typedef struct chat_folder {
    json_doc tokenizer, config; /* tokenizer.json, tokenizer_config.json; empty when absent */
    uint8_t *jinja;             /* chat_template.jinja */
    const char *chat_template;  /* "" when there is none */
} chat_folder;

static void chat_folder_close(chat_folder *folder)
{
    json_free(&folder->tokenizer);
    json_free(&folder->config);
    free(folder->jinja);
}

/* Parses dir/name if it is there. */
static bool chat_read_json(const char *dir, const char *name, json_doc *doc, tool_error *error)
{
    char *path = tool_path_join(dir, name);
    bool ok = path != NULL || tool_no_memory(error);
    if (ok && tool_file_exists(path)) ok = json_read_file(doc, path, error);
    free(path);
    return ok;
}

static bool chat_read_jinja(const char *dir, uint8_t **text, tool_error *error)
{
    char *path = tool_path_join(dir, "chat_template.jinja");
    bool ok = path != NULL || tool_no_memory(error);
    size_t size;
    if (ok && tool_file_exists(path)) ok = tool_read_file(path, 1 << 24, text, &size, error);
    free(path);
    return ok;
}

/* The template of tokenizer_config.json: a string, or a list of named ones, of which "default" counts. */
static const char *chat_config_template(const json_value *config)
{
    const json_value *v = json_get(config, "chat_template"), *item;
    const char *text = json_string(v, NULL);
    for (item = json_first(v); item && !text; item = json_next(item))
        if (json_is_string(json_get(item, "name"), "default")) text = json_string(json_get(item, "template"), NULL);
    return text ? text : "";
}

static bool chat_folder_open(const char *dir, chat_folder *folder, tool_error *error)
{
    memset(folder, 0, sizeof *folder);
    if (!chat_read_json(dir, "tokenizer.json", &folder->tokenizer, error)
        || !chat_read_json(dir, "tokenizer_config.json", &folder->config, error)
        || !chat_read_jinja(dir, &folder->jinja, error))
        return false;
    folder->chat_template = (const char *)folder->jinja;
    if (!folder->jinja) folder->chat_template = chat_config_template(json_root(&folder->config));
    return true;
}

static bool chat_has_special(const chat_folder *folder, const char *text)
{
    const json_value *added = json_get(json_root(&folder->tokenizer), "added_tokens");
    const json_value *v = json_kind(added) == JSON_ARRAY ? json_first(added) : NULL;
    bool special = false;
    while (v && !json_is_string(json_get(v, "content"), text)) v = json_next(v);
    return json_bool(json_get(v, "special"), &special) && special;
}

/* Text of the first token, NULL when the configuration does not tell it. */
static const char *chat_bos_text(const chat_folder *folder)
{
    const json_value *bos = json_get(json_root(&folder->config), "bos_token");
    const char *text = json_string(json_kind(bos) == JSON_OBJECT ? json_get(bos, "content") : bos, NULL);
    return text && *text ? text : NULL;
}

/* Whether a post-processor of tokenizer.json puts a special token in front of a text. */
static bool chat_processor_adds_bos(const json_value *processor)
{
    const json_value *item = json_get(processor, "processors"), *first;
    if (json_is_string(json_get(processor, "type"), "Sequence"))
        for (item = json_first(item); item; item = json_next(item))
            if (json_is_string(json_get(item, "type"), "TemplateProcessing")) processor = item;
    first = json_first(json_get(processor, "single"));
    return json_get(first, "SpecialToken") != NULL;
}

static bool chat_adds_bos(const chat_folder *folder)
{
    const char *bos = chat_bos_text(folder);
    bool add = false;
    if (strstr(folder->chat_template, "bos_token") || (bos && strstr(folder->chat_template, bos))) return true;
    if (json_bool(json_get(json_root(&folder->config), "add_bos_token"), &add)) return add;
    return chat_processor_adds_bos(json_get(json_root(&folder->tokenizer), "post_processor"));
}

/* ---- choosing ------------------------------------------------------------------------------ */

/* A special token that the format needs and the tokenizer lacks; NULL when it has all. */
static const char *chat_lacks(const chat_format *format, const chat_folder *folder)
{
    size_t i;
    for (i = 0; i < sizeof format->tokens / sizeof *format->tokens; i++)
        if (format->tokens[i] && !chat_has_special(folder, format->tokens[i])) return format->tokens[i];
    return NULL;
}

static const chat_format *chat_detect(const chat_folder *folder)
{
    size_t i;
    for (i = 0; i < CHAT_FORMATS; i++)
        if (strstr(folder->chat_template, chat_formats[i].mark) && !chat_lacks(&chat_formats[i], folder))
            return &chat_formats[i];
    return NULL;
}

static bool chat_named(const chat_folder *folder, const char *name, const chat_format **format, tool_error *error)
{
    const char *missing;
    size_t i;
    if (strcmp(name, "none") == 0) return true;
    for (i = 0; i < CHAT_FORMATS && strcmp(chat_formats[i].name, name) != 0;) i++;
    if (i == CHAT_FORMATS)
        return tool_error_set(error, "unknown chat format \"%.60s\": use chatml, jamba or none", name);
    *format = &chat_formats[i];
    missing = chat_lacks(*format, folder);
    if (!missing) return true;
    return tool_error_set(error, "chat format %s: the tokenizer lacks the special token %s", name, missing);
}

/* ---- writing ------------------------------------------------------------------------------- */

static bool chat_write_role(
    const chat_format *format, const chat_folder *folder, const char *role, tool_strings *strings)
{
    char key[64], open[64];
    snprintf(open, sizeof open, "<|%s|>", role);
    if (format->role_tokens && !chat_has_special(folder, open)) return true;
    snprintf(open, sizeof open, "%s%s%s", format->open1, role, format->open2);
    snprintf(key, sizeof key, "chat.%s.open", role);
    tool_strings_add(strings, key, open);
    snprintf(key, sizeof key, "chat.%s.close", role);
    return tool_strings_add(strings, key, format->close);
}

static bool chat_write(const chat_format *format, const chat_folder *folder, tool_strings *strings)
{
    const char *begin = format->begin ? format->begin : chat_adds_bos(folder) ? chat_bos_text(folder) : "";
    size_t i;
    tool_strings_add(strings, "chat.format", format->name);
    if (begin) tool_strings_add(strings, "chat.begin", begin); /* else the header's bos */
    for (i = 0; i < CHAT_ROLES; i++) chat_write_role(format, folder, chat_roles[i], strings);
    if (format->reply) tool_strings_add(strings, "chat.reply", format->reply);
    if (format->default_system) tool_strings_add(strings, "chat.default_system", format->default_system);
    return !strings->bytes.failed;
}

/* Adds the strings of format `name`; NULL: of the one the folder's template is, or nothing. */
JMB_UNUSED static bool chat_format_strings(const char *dir, const char *name, tool_strings *strings, tool_error *error)
{
    const chat_format *format = NULL;
    chat_folder folder;
    bool ok = chat_folder_open(dir, &folder, error);
    if (ok && name) ok = chat_named(&folder, name, &format, error);
    else if (ok) format = chat_detect(&folder);
    if (ok && format) ok = chat_write(format, &folder, strings) || tool_no_memory(error);
    chat_folder_close(&folder);
    return ok;
}

#endif
