/* tokenize.c - text on standard input to token ids, and back */
#include "ids.h"

static const char TOOL[] = "tokenize";
static const char USAGE[] =
    "usage: tokenize MODEL.jamba [--bos] [--special] < TEXT > IDS\n"
    "       tokenize MODEL.jamba --decode [--special] < IDS > TEXT\n"
    "Takes the text byte for byte, a final newline too; writes ids in one line, separated by blanks.\n"
    "  --bos      the model's first token in front\n"
    "  --special  special tokens in the text match; with --decode, they are written out\n"
    "  --decode   ids to text\n";

typedef struct options {
    const char *path;
    bool bos, special, decode;
} options;

static void parse_arguments(options *o, char **argv)
{
    char **arg;
    for (arg = argv + 1; *arg; arg++) {
        if (strcmp(*arg, "--bos") == 0) o->bos = true;
        else if (strcmp(*arg, "--special") == 0) o->special = true;
        else if (strcmp(*arg, "--decode") == 0) o->decode = true;
        else if ((*arg)[0] == '-') tool_usage(TOOL, USAGE, "unknown option", *arg);
        else if (o->path) tool_usage(TOOL, USAGE, "one model is enough, there is also", *arg);
        else o->path = *arg;
    }
    if (!o->path) tool_usage(TOOL, USAGE, "a model file is missing", NULL);
    if (o->bos && o->decode) tool_usage(TOOL, USAGE, "--bos does not go with --decode", NULL);
}

static void write_ids(const int32_t *tokens, size_t count)
{
    size_t i;
    for (i = 0; i < count; i++) printf("%ld%c", (long)tokens[i], i + 1 < count ? ' ' : '\n');
}

static void encode(const jamba_model *model, const options *o, const char *text, size_t size)
{
    unsigned flags = (o->bos ? (unsigned)JAMBA_TEXT_BOS : 0u) | (o->special ? (unsigned)JAMBA_TEXT_SPECIAL : 0u);
    int32_t *tokens = NULL;
    size_t count = 0;
    jamba_error error;
    jamba_result result = jamba_encode(model, text, size, flags, NULL, 0, &count, &error);
    if (result == JAMBA_OK && count > 0) {
        tokens = (int32_t *)malloc(count * sizeof *tokens);
        if (!tokens) tool_die(TOOL, "out of memory");
        result = jamba_encode(model, text, size, flags, tokens, count, &count, &error);
    }
    if (result == JAMBA_ERR_TEXT) tool_die(TOOL, "%s, standard input: %s", o->path, error.message);
    if (result != JAMBA_OK) tool_die(TOOL, "standard input: %s", error.message);
    write_ids(tokens, count);
    free(tokens);
}

static void decode(const jamba_model *model, const options *o, char *input, size_t size)
{
    unsigned flags = o->special ? (unsigned)JAMBA_TEXT_SPECIAL : 0u;
    tool_buffer ids = { NULL, 0, 0, false };
    const int32_t *tokens;
    size_t count, length = 0;
    char *text = NULL;
    jamba_model_info info;
    jamba_error error;
    tool_error problem;
    jamba_result result;
    jamba_model_describe(model, &info);
    if (!ids_parse(input, size, info.vocab, &ids, &problem)) tool_die(TOOL, "%s", problem.message);
    tokens = (const int32_t *)(const void *)ids.data;
    count = ids.size / sizeof *tokens;
    result = jamba_decode(model, tokens, count, flags, NULL, 0, &length, &error);
    if (result == JAMBA_OK && length > 0) {
        text = (char *)malloc(length);
        if (!text) tool_die(TOOL, "out of memory");
        result = jamba_decode(model, tokens, count, flags, text, length, &length, &error);
    }
    if (result != JAMBA_OK) tool_die(TOOL, "%s: %s", o->path, error.message);
    if (length > 0) fwrite(text, 1, length, stdout);
    free(text);
    tool_buffer_free(&ids);
}

int main(int argc, char **argv)
{
    options o;
    jamba_model *model;
    jamba_error error;
    tool_error problem;
    uint8_t *input;
    size_t size;
    (void)argc;
    memset(&o, 0, sizeof o);
    parse_arguments(&o, argv);
    if (jamba_model_load(&model, jamba_from_file(o.path), NULL, &error) != JAMBA_OK)
        tool_die(TOOL, "%s: %s", o.path, error.message);
    if (!tool_read_stream(stdin, "standard input", JMB_MAX_TEXT, &input, &size, &problem))
        tool_die(TOOL, "%s", problem.message);
    if (size > 0 && o.decode) decode(model, &o, (char *)input, size);
    if (size > 0 && !o.decode) encode(model, &o, (const char *)input, size);
    free(input);
    jamba_model_free(model);
    if (fflush(stdout) != 0 || ferror(stdout)) tool_die(TOOL, "standard output: cannot write: %s", strerror(errno));
    return 0;
}
