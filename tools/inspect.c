/* inspect.c - what a model file holds: identity, sizes, program, strings, tensors; or what an adapter file does. */
#include "describe.h"

static const char tool[] = "inspect";
static const char usage[] = "usage: inspect FILE [--tensors] [--verify]\n"
                            "  FILE       a model (.jamba) or an adapter for one (.jamba-lora)\n"
                            "  --tensors  list every tensor\n"
                            "  --verify   read the whole file and check the hash of every tensor\n";

static void print_identity(const char *name, const uint8_t identity[32])
{
    int i;
    printf("%s: ", name);
    for (i = 0; i < 32; i++) printf("%02x", identity[i]);
    printf("\n");
}

/* Values come from the file: at most 200 characters, none of them a control character. */
static void print_strings(const jmb_metadata *m)
{
    uint32_t i;
    char text[320];
    for (i = 0; i < m->string_count; i++) {
        size_t length = strlen(m->strings[i].value);
        snprintf(text, sizeof text, "%.64s = %.200s%s", m->strings[i].key, m->strings[i].value,
            length > 200 ? "..." : "");
        tool_clean_text(text);
        printf("  %s\n", text);
    }
}

static void print_token(const char *name, uint32_t token)
{
    if (token == JMB_NO_TOKEN) printf("%s: none\n", name);
    else printf("%s: %u\n", name, token);
}

static void print_tokens(const jmb_header *h)
{
    uint32_t i;
    print_token("token_bos", h->bos);
    print_token("token_pad", h->pad);
    printf("token_eos:");
    for (i = 0; i < h->eos_count; i++) printf(" %u", jmb_eos(h, i));
    printf(h->eos_count ? "\n" : " none\n");
    printf("tokenizer_bytes: %" PRIu64 "\n", h->tokenizer_size);
}

static void print_sizes(const jmb_metadata *m)
{
    const jmb_header *h = &m->header;
    model_sizes sizes = model_measure(m);
    printf("type: %s\n", jmb_type_names[h->type]);
    printf("vocab: %u\nhidden: %u\ncontext: %u\nblocks: %u\ntensors: %u\n", h->vocab, h->hidden, h->context, h->blocks,
        h->tensors);
    printf("parameters: %" PRIu64 "\nparameters_active: %" PRIu64 "\n", sizes.parameters, sizes.parameters_active);
    printf("file_bytes: %" PRIu64 "\nmetadata_bytes: %" PRIu64 "\n", h->file_size, h->data_offset);
    printf("kv_bytes_per_token: %" PRIu64 "\nstate_bytes: %" PRIu64 "\n", sizes.kv_bytes_per_token, sizes.state_bytes);
}

static void print_tensors(const jmb_metadata *m)
{
    uint32_t i;
    char name[64];
    printf("tensors (name, type, rows x cols, offset, bytes, hash):\n");
    for (i = 0; i < m->header.tensors; i++) {
        const jmb_tensor *t = &m->tensors[i];
        printf("  %-24s %-4s %u x %u %" PRIu64 " %" PRIu64 " %016" PRIx64 "\n", jmb_tensor_name(t, name),
            jmb_type_names[t->type], t->rows, t->cols, t->offset, t->bytes, t->hash);
    }
}

static void print_model(const jmb_metadata *m)
{
    const char *architecture = jmb_find_string(m, "architecture");
    char text[128];
    print_identity("identity", m->header.identity);
    snprintf(text, sizeof text, "%s", architecture ? architecture : "");
    tool_clean_text(text);
    printf("architecture: %s\n", text);
    print_sizes(m);
    print_tokens(&m->header);
    printf("program:\n");
    model_print_program(m);
    printf("strings:\n");
    print_strings(m);
}

/* ---- adapters ------------------------------------------------------------------------------ */

static void print_lora(const jmb_lora *l)
{
    bool embed = l->role == JMB_ROLE_EMBED;
    char name[64];
    jmb_tensor t = l->b;
    t.unit = l->block;
    t.index = l->index;
    printf("  %-24s %-4s rank %u %u x %u %016" PRIx64 "\n", jmb_tensor_name(&t, name), jmb_type_names[t.type],
        embed ? l->a.cols : l->a.rows, embed ? l->a.rows : l->b.rows, embed ? l->b.rows : l->a.cols,
        jmb_hash64(jmb_hash64(JMB_HASH_SEED, l->a.data, (size_t)l->a.bytes), l->b.data, (size_t)l->b.bytes));
}

static void print_adapter(const jamba_adapter *a, bool matrices)
{
    jamba_adapter_info info;
    uint32_t i;
    jamba_adapter_describe(a, &info);
    print_identity("adapter_for", a->data + 32);
    printf("hash: %016" PRIx64 "\nmatrices: %d\nrank: %d\n", info.hash, (int)info.matrices, (int)info.rank);
    printf("parameters: %" PRIu64 "\nfile_bytes: %" PRIu64 "\n", info.parameters, a->size);
    if (!matrices) return;
    printf("matrices (name, type, rank, rows x cols of the model's, hash of A and B):\n");
    for (i = 0; i < a->header.entries; i++) print_lora(&a->loras[i]);
}

/* Its one hash is checked in any case. */
static void inspect_adapter(const char *path, bool matrices, bool verify)
{
    adapter_image image;
    tool_error error;
    if (!adapter_image_open(&image, path, &error)) tool_die(tool, "%s", error.message);
    print_adapter(&image.adapter, matrices);
    if (verify) printf("verified: ok\n");
    adapter_image_close(&image);
}

static void inspect_model(const char *path, bool tensors, bool verify)
{
    model_file model;
    tool_error error;
    if (!model_open(&model, path, &error)) tool_die(tool, "%s", error.message);
    print_model(&model.metadata);
    if (tensors) print_tensors(&model.metadata);
    if (verify && !model_verify(&model, path, &error)) tool_die(tool, "%s", error.message);
    if (verify) printf("verified: ok\n");
    model_close(&model);
}

int main(int argc, char **argv)
{
    const char *path = NULL;
    bool tensors = false, verify = false;
    int i;
    for (i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tensors") == 0) tensors = true;
        else if (strcmp(argv[i], "--verify") == 0) verify = true;
        else if (argv[i][0] == '-') tool_usage(tool, usage, "unknown option", argv[i]);
        else if (path) tool_usage(tool, usage, "more than one file:", argv[i]);
        else path = argv[i];
    }
    if (!path) tool_usage(tool, usage, "no file given", NULL);
    if (adapter_image_is(path)) inspect_adapter(path, tensors, verify);
    else inspect_model(path, tensors, verify);
    if (fflush(stdout) != 0) tool_die(tool, "cannot write: %s", strerror(errno));
    return 0;
}
