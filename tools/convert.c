/* convert.c - a Hugging Face checkpoint folder to one model file. */
#include "chat_formats.h"
#include "tokenizer.h"
#include "writer.h"

static const char tool[] = "convert";
static const char usage[] =
    "usage: convert HF_DIR OUT.jamba [--type f32|f16|bf16|q8|q4] [--chat NAME] [--dt-limit MIN,MAX]\n"
    "               [--dry-run] [--force]\n"
    "  --type     how weights of linear layers are stored (default q8)\n"
    "  --chat     chat format, when the folder's own is not recognised\n"
    "  --dt-limit range of the time steps of Mamba-2 blocks, MAX may be inf (default: the checkpoint's)\n"
    "  --dry-run  read headers only and print sizes and the layer program; OUT may be left out\n"
    "  --force    replace OUT when it exists\n";

typedef struct options {
    const char *dir, *out, *chat;
    uint32_t type;
    bool dry_run, force;
    bool limit_dt;
    double dt_min, dt_max;
} options;

static uint32_t parse_type(const char *text)
{
    uint32_t i;
    if (!text) tool_usage(tool, usage, "--type needs f32, f16, bf16, q8 or q4", NULL);
    for (i = 0; i < JMB_TYPES; i++)
        if (strcmp(text, jmb_type_names[i]) == 0) return i;
    tool_usage(tool, usage, "--type needs f32, f16, bf16, q8 or q4, not", text);
    return JMB_Q8;
}

static void parse_dt_limit(options *o, const char *text)
{
    const char *comma = text ? strchr(text, ',') : NULL;
    char low[32] = "";
    double most = FLT_MAX;
    bool ok = comma && (size_t)(comma - text) < sizeof low;
    if (ok) memcpy(low, text, (size_t)(comma - text));
    ok = ok && tool_parse_float(low, 0, most, &o->dt_min);
    if (ok && strcmp(comma + 1, "inf") == 0) o->dt_max = INFINITY;
    else ok = ok && tool_parse_float(comma + 1, o->dt_min, most, &o->dt_max);
    o->limit_dt = true;
    if (!ok) tool_usage(tool, usage, "--dt-limit needs MIN,MAX such as 0.001,inf, not", text ? text : "nothing");
}

static void parse_option(options *o, char **argv, int *i)
{
    const char *name = argv[*i];
    if (strcmp(name, "--type") == 0) o->type = parse_type(argv[++*i]);
    else if (strcmp(name, "--chat") == 0) {
        o->chat = argv[++*i];
        if (!o->chat) tool_usage(tool, usage, "--chat needs a name", NULL);
    } else if (strcmp(name, "--dry-run") == 0) o->dry_run = true;
    else if (strcmp(name, "--force") == 0) o->force = true;
    else if (strcmp(name, "--dt-limit") == 0) parse_dt_limit(o, argv[++*i]);
    else tool_usage(tool, usage, "unknown option", name);
}

static void parse_options(options *o, int argc, char **argv)
{
    int i;
    memset(o, 0, sizeof *o);
    o->type = JMB_Q8;
    for (i = 1; i < argc; i++) {
        if (argv[i][0] == '-') parse_option(o, argv, &i);
        else if (!o->dir) o->dir = argv[i];
        else if (!o->out) o->out = argv[i];
        else tool_usage(tool, usage, "too many arguments:", argv[i]);
    }
    if (!o->dir) tool_usage(tool, usage, "no checkpoint folder given", NULL);
    if (!o->out && !o->dry_run) tool_usage(tool, usage, "no output file given", NULL);
}

/* The text part of the file: tokenizer, chat format and names; and the tokens that only the tokenizer knows. */
static bool make_text(const options *o, convert_plan *plan, convert_text *text, tool_error *error)
{
    memset(text, 0, sizeof *text);
    if (!tool_strings_add(&text->strings, "architecture", plan->family->name)) return tool_no_memory(error);
    if (!tokenizer_compile(o->dir, plan->model.header.vocab, &text->tokenizer, error)) return false;
    if (!tokenizer_fill_ids(o->dir, &text->tokenizer, &plan->model.header, error)) return false;
    if (!chat_format_strings(o->dir, o->chat, &text->strings, error)) return false;
    if (text->tokenizer.failed || text->strings.bytes.failed) return tool_no_memory(error);
    return true;
}

static void print_plan(const convert_plan *plan)
{
    const jmb_header *h = &plan->model.header;
    model_sizes sizes = model_measure(&plan->model);
    printf("parameters: %" PRIu64 "\nparameters_active: %" PRIu64 "\n", sizes.parameters, sizes.parameters_active);
    printf("tensors: %zu\nfile_bytes: %" PRIu64 "\n", plan->checkpoint.count, h->file_size);
    printf("kv_bytes_per_token: %" PRIu64 "\nstate_bytes: %" PRIu64 "\n", sizes.kv_bytes_per_token, sizes.state_bytes);
    printf("vocab: %u\nhidden: %u\ncontext: %u\nblocks: %u\n", h->vocab, h->hidden, h->context, h->blocks);
    model_print_program(&plan->model);
}

static bool run(const options *o, convert_plan *plan, convert_text *text, tool_error *error)
{
    if (!make_text(o, plan, text, error) || !plan_place(plan, text, error)) return false;
    if (!o->dry_run) return write_model(plan, text, o->out, o->force, error);
    print_plan(plan);
    return fflush(stdout) == 0 || tool_error_set(error, "cannot write: %s", strerror(errno));
}

int main(int argc, char **argv)
{
    options o;
    convert_plan plan;
    convert_text text;
    tool_error error;
    bool ok, no_tokenizer;
    parse_options(&o, argc, argv);
    memset(&text, 0, sizeof text);
    ok = plan_make(&plan, o.dir, o.type, &error);
    if (ok && o.limit_dt && !plan_limit_dt(&plan, o.dt_min, o.dt_max))
        tool_usage(tool, usage, "--dt-limit is for models with Mamba-2 blocks, which this is not:", o.dir);
    if (ok && !o.dry_run) ok = output_check_target(&plan, o.out, o.force, &error);
    ok = ok && run(&o, &plan, &text, &error);
    no_tokenizer = text.tokenizer.size == 0;
    tool_buffer_free(&text.strings.bytes);
    tool_buffer_free(&text.tokenizer);
    plan_free(&plan);
    if (!ok) tool_die(tool, "%s", error.message);
    if (no_tokenizer) fprintf(stderr, "%s: no tokenizer: text calls on this model will fail\n", tool);
    return 0;
}
