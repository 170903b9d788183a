/* convert.c - a Hugging Face checkpoint folder to one model file; a folder of the PEFT library to an adapter file. */
#include "adapter.h"

static const char tool[] = "convert";
static const char usage[] =
    "usage: convert HF_DIR OUT.jamba [--type f32|f16|bf16|q8|q4] [--merge ADAPTER_DIR] [--chat NAME]\n"
    "               [--dt-limit MIN,MAX] [--dry-run] [--force]\n"
    "       convert ADAPTER_DIR OUT.jamba-lora --base MODEL.jamba [--type f32|f16|bf16] [--force]\n"
    "  --type     how weights of linear layers are stored (default q8; of an adapter f32)\n"
    "  --merge    add the LoRA adapter in that folder (as PEFT saves it) to the weights\n"
    "  --base     convert a LoRA adapter for that model\n"
    "  --chat     chat format, when the folder's own is not recognised\n"
    "  --dt-limit range of the time steps of Mamba-2 blocks, MAX may be inf (default: the checkpoint's)\n"
    "  --dry-run  read headers only and print sizes and the layer program; OUT may be left out\n"
    "  --force    replace OUT when it exists\n";

typedef struct options {
    const char *dir, *out, *chat, *merge, *base;
    uint32_t type; /* JMB_TYPES: not given */
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
}

static void parse_dt_limit(options *o, const char *text)
{
    const char *comma = text ? strchr(text, ',') : NULL;
    char low[32] = "";
    double most = (double)FLT_MAX;
    bool ok = comma && (size_t)(comma - text) < sizeof low;
    if (ok) memcpy(low, text, (size_t)(comma - text));
    ok = ok && tool_parse_float(low, 0, most, &o->dt_min);
    if (ok && strcmp(comma + 1, "inf") == 0) o->dt_max = (double)INFINITY;
    else ok = ok && tool_parse_float(comma + 1, o->dt_min, most, &o->dt_max);
    o->limit_dt = true;
    if (!ok) tool_usage(tool, usage, "--dt-limit needs MIN,MAX such as 0.001,inf, not", text ? text : "nothing");
}

static const char *parse_path(const char *name, const char *text)
{
    if (!text) tool_usage(tool, usage, "a path is missing after", name);
    return text;
}

static void parse_option(options *o, char **argv, int *i)
{
    const char *name = argv[*i];
    if (strcmp(name, "--type") == 0) o->type = parse_type(argv[++*i]);
    else if (strcmp(name, "--chat") == 0) {
        o->chat = argv[++*i];
        if (!o->chat) tool_usage(tool, usage, "--chat needs a name", NULL);
    } else if (strcmp(name, "--merge") == 0) o->merge = parse_path(name, argv[++*i]);
    else if (strcmp(name, "--base") == 0) o->base = parse_path(name, argv[++*i]);
    else if (strcmp(name, "--dry-run") == 0) o->dry_run = true;
    else if (strcmp(name, "--force") == 0) o->force = true;
    else if (strcmp(name, "--dt-limit") == 0) parse_dt_limit(o, argv[++*i]);
    else tool_usage(tool, usage, "unknown option", name);
}

/* What goes with --base. */
static void check_adapter_options(options *o)
{
    if (o->merge || o->chat || o->limit_dt || o->dry_run)
        tool_usage(tool, usage, "--base goes with --type and --force only", NULL);
    if (o->type == JMB_TYPES) o->type = JMB_F32;
    if (o->type > JMB_BF16)
        tool_usage(tool, usage, "an adapter is stored as f32, f16 or bf16, not", jmb_type_names[o->type]);
}

static void parse_options(options *o, int argc, char **argv)
{
    int i;
    memset(o, 0, sizeof *o);
    o->type = JMB_TYPES;
    for (i = 1; i < argc; i++) {
        if (argv[i][0] == '-') parse_option(o, argv, &i);
        else if (!o->dir) o->dir = argv[i];
        else if (!o->out) o->out = argv[i];
        else tool_usage(tool, usage, "too many arguments:", argv[i]);
    }
    if (!o->dir) tool_usage(tool, usage, "no checkpoint folder given", NULL);
    if (o->base) check_adapter_options(o);
    else if (o->type == JMB_TYPES) o->type = JMB_Q8;
    if (!o->out && !o->dry_run) tool_usage(tool, usage, "no output file given", NULL);
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
    if (!text_make(text, plan, o->chat, error) || !plan_place(plan, text, error)) return false;
    if (!o->dry_run) return write_model(plan, text, o->out, o->force, error);
    print_plan(plan);
    return fflush(stdout) == 0 || tool_error_set(error, "cannot write: %s", strerror(errno));
}

/* A folder, with the adapter that is to be merged into it or NULL. */
static bool convert_model(const options *o, const lora_set *lora, tool_error *error)
{
    convert_plan plan;
    convert_text text;
    bool ok;
    memset(&text, 0, sizeof text);
    ok = plan_make(&plan, o->dir, o->type, lora, error);
    if (ok && o->limit_dt && !plan_limit_dt(&plan, o->dt_min, o->dt_max))
        tool_usage(tool, usage, "--dt-limit is for models with Mamba-2 blocks, which this is not:", o->dir);
    if (ok && !o->dry_run) ok = output_check_target(&plan, o->out, o->force, error);
    ok = ok && run(o, &plan, &text, error);
    if (ok && text.tokenizer.size == 0)
        fprintf(stderr, "%s: no tokenizer: text calls on this model will fail\n", tool);
    text_free(&text);
    plan_free(&plan);
    return ok;
}

static bool convert_merged(const options *o, tool_error *error)
{
    lora_set lora;
    bool ok;
    if (!o->merge) return convert_model(o, NULL, error);
    if (!lora_open(&lora, o->merge, error)) return false;
    ok = convert_model(o, &lora, error);
    lora_close(&lora);
    return ok;
}

int main(int argc, char **argv)
{
    options o;
    tool_error error;
    bool ok;
    parse_options(&o, argc, argv);
    ok = o.base ? adapter_convert(o.dir, o.base, o.out, o.type, o.force, &error) : convert_merged(&o, &error);
    if (!ok) tool_die(tool, "%s", error.message);
    return 0;
}
