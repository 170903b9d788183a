/* chat_formats.h - chooses the chat format of a Hugging Face folder and writes its strings.
 *
 * A template is never interpreted: it is recognised by its literal marks among the formats below, or the
 * user names one. The keys are those of >>chat in jamba.h.
 */
#ifndef CHAT_FORMATS_H
#define CHAT_FORMATS_H

#include "tokenizer.h"

/* What stands around the content of a role. "\1" is a blank that some tokenizers put there themselves. */
typedef struct chat_role {
    const char *role, *open, *close;
    const char *token; /* without this special token the role is left out; NULL: never */
} chat_role;

typedef struct chat_format {
    const char *name;
    const char *mark, *other;   /* what its templates contain, and what they do not (or NULL) */
    const char *begin;          /* NULL: the first token, if the template or the tokenizer adds it */
    const char *reply;          /* what opens the reply; NULL: as any turn of the assistant */
    const char *default_system; /* NULL: conversations may begin without a system turn */
    const char *tokens[4];      /* that must be special; ends with NULL */
    chat_role roles[5];         /* ends with all NULL */
} chat_format;

/* Of formats with one name the first one counts whose tokens are there. In Mistral's first format [INST] is
 * text, later on a token; what follows a token or begins a turn has a blank in front, and there is no
 * system role: its template puts that text into a user turn. */
static const chat_format chat_formats[] = {
    { "chatml", "<|im_start|>", NULL, NULL, NULL, NULL, { "<|im_start|>", "<|im_end|>" },
        { { "system", "<|im_start|>system\n", "<|im_end|>\n", NULL },
            { "user", "<|im_start|>user\n", "<|im_end|>\n", NULL },
            { "assistant", "<|im_start|>assistant\n", "<|im_end|>\n", NULL },
            { "tool", "<|im_start|>tool\n", "<|im_end|>\n", NULL } } },
    { "jamba", "<|bom|>", NULL, "<|startoftext|>", "<|bom|><|assistant|>", "",
        { "<|startoftext|>", "<|bom|>", "<|eom|>" },
        { { "system", "<|bom|><|system|> ", "<|eom|>", "<|system|>" },
            { "user", "<|bom|><|user|> ", "<|eom|>", "<|user|>" },
            { "assistant", "<|bom|><|assistant|> ", "<|eom|>", "<|assistant|>" },
            { "tool", "<|bom|><|tool|> ", "<|eom|>", "<|tool|>" } } },
    { "mistral", "[INST]", "<<SYS>>", "<s>", "", NULL, { "</s>", "[INST]", "[/INST]" },
        { { "user", "[INST]\1", "[/INST]", NULL }, { "assistant", "\1", "</s>", NULL } } },
    { "mistral", "[INST]", "<<SYS>>", "<s>", "", NULL, { "<s>", "</s>" },
        { { "user", "\1[INST] ", " [/INST]", NULL }, { "assistant", " ", "</s>", NULL } } },
};

enum { CHAT_FORMATS = sizeof chat_formats / sizeof chat_formats[0] };

/* ---- the folder ---------------------------------------------------------------------------- */

/* What the folder says about text; values live in the documents. */
typedef struct chat_folder {
    json_doc tokenizer, config; /* tokenizer.json, tokenizer_config.json; empty when absent */
    uint8_t *jinja;             /* chat_template.jinja */
    const char *chat_template;  /* "" when there is none */
    jmb_heap heap;
    jmb_tokenizer *tokens;      /* compiled; all zero when there is none */
} chat_folder;

static void chat_folder_close(chat_folder *folder)
{
    json_free(&folder->tokenizer);
    json_free(&folder->config);
    free(folder->jinja);
    jmb_heap_free(&folder->heap);
    free(folder->tokens);
}

/* Parses dir/tokenizer.json if it is there. */
static bool chat_read_tokenizer(const char *dir, json_doc *doc, tool_error *error)
{
    char *path = tool_path_join(dir, "tokenizer.json");
    bool ok = path != NULL || tool_no_memory(error);
    if (ok && tool_file_exists(path)) ok = json_read_file(doc, path, error);
    free(path);
    return ok;
}

/* Compiles the tokenizer, to ask it for tokens. */
static bool chat_load_tokens(const char *dir, chat_folder *folder, tool_error *error)
{
    tool_buffer section = { NULL, 0, 0, false };
    bool ok;
    folder->heap.allocator = jmb_allocator_or_default(NULL);
    folder->tokens = (jmb_tokenizer *)calloc(1, sizeof *folder->tokens);
    ok = folder->tokens ? tokenizer_compile(dir, JMB_MAX_VOCAB, &section, error) : tool_no_memory(error);
    ok = ok && (jmb_tokenizer_load(folder->tokens, &folder->heap, section.data, section.size, 0, JMB_MAX_VOCAB, NULL)
                    == JAMBA_OK || tool_no_memory(error));
    tool_buffer_free(&section);
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
    if (!chat_read_tokenizer(dir, &folder->tokenizer, error) || !tokenizer_read_config(dir, &folder->config, error)
        || !chat_read_jinja(dir, &folder->jinja, error) || !chat_load_tokens(dir, folder, error))
        return false;
    folder->chat_template = (const char *)folder->jinja;
    if (!folder->jinja) folder->chat_template = chat_config_template(json_root(&folder->config));
    return true;
}

static bool chat_has_special(const chat_folder *folder, const char *text)
{
    int32_t token = jmb_token_lookup(folder->tokens, text, strlen(text));
    return token >= 0 && (folder->tokens->token_flags[token] & JMB_TOKEN_SPECIAL);
}

/* Tokens of a text in which special ones match; how many of them, 0 when there are more than 8. */
static size_t chat_tokens(const chat_folder *folder, const char *text, int32_t tokens[8])
{
    jmb_piece piece = { text, strlen(text), true };
    size_t count;
    const jamba_allocator *a = &folder->heap.allocator;
    return jmb_encode(folder->tokens, a, &piece, 1, -1, tokens, 8, &count, NULL) == JAMBA_OK ? count : 0;
}

/* Whether the tokenizer puts a blank between a special token and the text after it. */
static bool chat_blank_after(const chat_folder *folder, const char *special)
{
    char text[128];
    int32_t joined[8], alone[8];
    size_t joined_count, alone_count = chat_tokens(folder, "a", alone);
    snprintf(text, sizeof text, "%sa", special);
    joined_count = chat_tokens(folder, text, joined);
    return alone_count > 0 && joined_count == alone_count + 1
        && memcmp(joined + 1, alone, alone_count * sizeof *alone) == 0;
}

/* Text of the first token, NULL when the configuration does not tell it. */
static const char *chat_bos_text(const chat_folder *folder)
{
    return tokenizer_config_token(json_root(&folder->config), "bos_token");
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
    const char *const *token = format->tokens;
    while (*token && chat_has_special(folder, *token)) token++;
    return *token;
}

static bool chat_is_template_of(const chat_format *format, const char *text)
{
    return strstr(text, format->mark) && !(format->other && strstr(text, format->other));
}

static const chat_format *chat_detect(const chat_folder *folder)
{
    size_t i;
    for (i = 0; i < CHAT_FORMATS; i++)
        if (chat_is_template_of(&chat_formats[i], folder->chat_template) && !chat_lacks(&chat_formats[i], folder))
            return &chat_formats[i];
    return NULL;
}

/* The known names, separated by commas. */
static void chat_list_names(char *out, size_t size)
{
    size_t i, used = 0;
    for (i = 0; i < CHAT_FORMATS; i++)
        if (i == 0 || strcmp(chat_formats[i].name, chat_formats[i - 1].name) != 0)
            used += (size_t)snprintf(out + used, size - used, "%s, ", chat_formats[i].name);
    snprintf(out + used, size - used, "none");
}

static bool chat_named(const chat_folder *folder, const char *name, const chat_format **format, tool_error *error)
{
    const char *missing = NULL;
    char names[128];
    size_t i;
    if (strcmp(name, "none") == 0) return true;
    for (i = 0; i < CHAT_FORMATS; i++) {
        if (strcmp(chat_formats[i].name, name) != 0) continue;
        missing = chat_lacks(&chat_formats[i], folder);
        *format = &chat_formats[i];
        if (!missing) return true;
    }
    chat_list_names(names, sizeof names);
    if (!missing) return tool_error_set(error, "unknown chat format \"%.60s\", known are: %s", name, names);
    return tool_error_set(error, "chat format %s: the tokenizer lacks the special token %s", name, missing);
}

/* ---- writing ------------------------------------------------------------------------------- */

/* Adds chat.ROLE.PART with each "\1" as a blank or nothing. */
static bool chat_write_part(const char *role, const char *part, const char *text, bool blank, tool_strings *strings)
{
    char key[64], value[64];
    size_t used = 0;
    for (; *text; text++)
        if (*text != 1 || blank) value[used++] = (char)(*text == 1 ? ' ' : *text);
    value[used] = 0;
    snprintf(key, sizeof key, "chat.%s.%s", role, part);
    return tool_strings_add(strings, key, value);
}

static bool chat_write(const chat_format *format, const chat_folder *folder, tool_strings *strings)
{
    const char *begin = format->begin ? format->begin : chat_adds_bos(folder) ? chat_bos_text(folder) : "";
    bool blank = !chat_blank_after(folder, format->tokens[0]);
    const chat_role *role;
    tool_strings_add(strings, "chat.format", format->name);
    if (begin) tool_strings_add(strings, "chat.begin", begin); /* else the header's bos */
    for (role = format->roles; role->role; role++) {
        if (role->token && !chat_has_special(folder, role->token)) continue;
        chat_write_part(role->role, "open", role->open, blank, strings);
        chat_write_part(role->role, "close", role->close, blank, strings);
    }
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
