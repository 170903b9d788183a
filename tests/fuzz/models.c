/* models.c - see models.h */
#include "../../tools/writer.h"

#include "../tokenizer_files.h"
#include "models.h"

/* ---- tokenizers ------------------------------------------------------------------------------------------ */

typedef struct put_vocab {
    tool_buffer *out;
    int id;
} put_vocab;

static void put(tool_buffer *out, const char *text)
{
    tool_buffer_add(out, text, strlen(text));
}

static void put_token(put_vocab *v, const char *text)
{
    char number[32];
    snprintf(number, sizeof number, ":%d", v->id);
    put(v->out, v->id ? ",\"" : "\"");
    put(v->out, text);
    put(v->out, "\"");
    put(v->out, number);
    v->id++;
}

static void put_utf8(char out[8], uint32_t c)
{
    if (c < 0x80) out[0] = (char)c, out[1] = 0;
    else out[0] = (char)(0xc0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), out[2] = 0;
}

/* <0x00> and on; without `whole` only those of "é" and of "%". */
static void put_byte_tokens(put_vocab *v, int whole)
{
    char text[16];
    int i;
    for (i = 0; i < 256; i++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i);
        if (whole || i == 0xc3 || i == 0xa9 || i == '%') put_token(v, text);
    }
}

/* The characters that stand for bytes; without `whole` a few of them. */
static void put_byte_letters(put_vocab *v, int whole)
{
    char text[8];
    uint32_t c;
    for (c = 0x21; c < 0x144; c++) {
        if (tokenizer_byte_of(c) < 0 || (!whole && !strchr("abc<>s", (int)(c < 0x80 ? c : '?')) && c != 0x120
            && c != 0xc3 && c != 0xa9)) continue;
        put_utf8(text, c);
        if (c == '"' || c == '\\') text[0] = '\\', text[1] = (char)c, text[2] = 0;
        put_token(v, text);
    }
}

static void put_all(put_vocab *v, const char *const *texts)
{
    while (*texts) put_token(v, *texts++);
}

static const char *const pieces[] = { "\xe2\x96\x81", "a", "b", "c", "ab", "\xe2\x96\x81" "a", "abc", "s", "<", ">",
    "\xe2\x96\x81" "ab", "\xc3\xa9", NULL };
static const char piece_merges[] = "[\"a b\",[\"\xe2\x96\x81\",\"a\"],\"ab c\",\"\xe2\x96\x81" "a b\"]";
static const char *const raw_pieces[] = { "ab", "\xc4\xa0" "a", "\xc3\x83\xc2\xa9", "\xc4\xa0\xc4\xa0", NULL };
static const char raw_merges[] =
    "[[\"a\",\"b\"],[\"\xc4\xa0\",\"a\"],\"\xc3\x83 \xc2\xa9\",[\"\xc4\xa0\",\"\xc4\xa0\"]]";

static void put_added(tool_buffer *out, int id, const char *text, const char *flags, int first)
{
    char head[64];
    snprintf(head, sizeof head, "%s{\"id\":%d,\"content\":\"", first ? "" : ",", id);
    put(out, head);
    put(out, text);
    put(out, "\",");
    put(out, flags);
    put(out, "}");
}

#define PLAIN "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
#define REPLACE(from, to) \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\"" from "\"},\"content\":\"" to "\"}"

/* Kind 0: SentencePiece's normaliser. 1: Metaspace. 2: byte level, words of GPT-2. 3: like 1 with NFC, flags of
 * added tokens, unk. */
static const char *const texts_between[FUZZ_TOKENIZERS] = {
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"},"
    REPLACE(" ", "\xe2\x96\x81") "]},\"pre_tokenizer\":null,\"post_processor\":null,"
    "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[" REPLACE("\xe2\x96\x81", " ") ",{\"type\":\"ByteFallback\"},"
    "{\"type\":\"Fuse\"},{\"type\":\"Strip\",\"content\":\" \",\"start\":1,\"stop\":0}]},",
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","
    "\"prepend_scheme\":\"first\",\"split\":true},\"post_processor\":null,\"decoder\":{\"type\":\"Metaspace\","
    "\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"first\",\"split\":true},",
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,"
    "\"use_regex\":true},\"post_processor\":null,\"decoder\":{\"type\":\"ByteLevel\",\"add_prefix_space\":true,"
    "\"trim_offsets\":true,\"use_regex\":true},",
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"}," REPLACE("%", "b") "]},"
    "\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\",\"prepend_scheme\":\"always\","
    "\"split\":true},\"post_processor\":null,\"decoder\":{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","
    "\"prepend_scheme\":\"always\",\"split\":true}," };

static void put_vocabulary(tool_buffer *out, int kind, int whole)
{
    put_vocab v = { out, 0 };
    put(out, "\"vocab\":{");
    put_token(&v, "<unk>");
    if (kind == 2) put_byte_letters(&v, whole);
    else put_token(&v, "<s>"), put_token(&v, "</s>");
    if (kind == 0 || (kind == 1 && whole)) put_byte_tokens(&v, whole);
    put_all(&v, kind == 2 ? raw_pieces : pieces);
    put(out, "},\"merges\":");
    put(out, kind == 2 ? raw_merges : piece_merges);
}

/* Tokens outside the model's vocabulary have the ids behind it. */
static void put_added_tokens(tool_buffer *out, int kind, int vocab)
{
    put_added(out, 0, "<unk>", PLAIN "\"special\":true", 1);
    if (kind == 2) {
        put_added(out, vocab, "<s>", PLAIN "\"special\":true", 0);
        put_added(out, vocab + 1, "</s>", PLAIN "\"special\":true", 0);
        return;
    }
    put_added(out, 1, "<s>", PLAIN "\"special\":true", 0);
    put_added(out, 2, "</s>", PLAIN "\"special\":true", 0);
    if (kind == 3)
        put_added(out, vocab, "[x", "\"single_word\":true,\"lstrip\":true,\"rstrip\":true,\"normalized\":true,"
            "\"special\":false", 0);
}

static int vocabulary_size(int kind, int whole)
{
    tool_buffer out = { NULL, 0, 0, false };
    json_doc doc;
    tool_error error;
    int count = 0;
    put(&out, "{");
    put_vocabulary(&out, kind, whole);
    put(&out, "}");
    if (json_parse(&doc, (const char *)out.data, out.size, &error))
        count = (int)json_count(json_get(json_root(&doc), "vocab"));
    json_free(&doc);
    tool_buffer_free(&out);
    return count;
}

char *fuzz_tokenizer_json(int kind, int whole)
{
    tool_buffer out = { NULL, 0, 0, false };
    put(&out, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[");
    put_added_tokens(&out, kind, vocabulary_size(kind, whole));
    put(&out, "],");
    put(&out, texts_between[kind]);
    put(&out, "\"model\":{\"type\":\"BPE\",\"dropout\":null,\"continuing_subword_prefix\":null,"
        "\"end_of_word_suffix\":null,\"ignore_merges\":false,\"fuse_unk\":true,");
    put(&out, kind == 2 ? "\"byte_fallback\":false,\"unk_token\":null," : "\"unk_token\":\"<unk>\",");
    if (kind < 2) put(&out, "\"byte_fallback\":true,");
    put_vocabulary(&out, kind, whole);
    put(&out, "}}");
    tool_buffer_u8(&out, 0);
    return (char *)out.data;
}

/* ---- tokenizer.model ------------------------------------------------------------------------------------- */

/* Kind 0: as Llama's. 1: without byte fallback, with a token of the user. 2: of the type unigram. */
uint8_t *fuzz_sentencepiece(int kind, size_t *size)
{
    tool_buffer out = { NULL, 0, 0, false }, trainer = { NULL, 0, 0, false }, normaliser = { NULL, 0, 0, false };
    char text[16];
    int i;
    pb_piece(&out, "<unk>", 0, SP_UNKNOWN);
    pb_piece(&out, "<s>", 0, SP_CONTROL);
    pb_piece(&out, "</s>", 0, SP_CONTROL);
    if (kind == 1) pb_piece(&out, "[X]", 0, SP_USER_DEFINED);
    for (i = 0; i < 256 && kind != 1; i++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)i);
        pb_piece(&out, text, 0, SP_BYTE);
    }
    for (i = 0; pieces[i]; i++) pb_piece(&out, pieces[i], (float)-i / 2, SP_NORMAL);
    pb_number(&trainer, 3, kind == 2 ? 1 : SP_BPE);
    pb_number(&trainer, 35, kind != 1);
    pb_bytes(&out, 2, trainer.data, trainer.size);
    pb_bytes(&normaliser, 1, "identity", 8);
    pb_number(&normaliser, 3, kind != 1);
    pb_number(&normaliser, 4, 0);
    pb_number(&normaliser, 5, 1);
    pb_bytes(&out, 3, normaliser.data, normaliser.size);
    tool_buffer_free(&trainer);
    tool_buffer_free(&normaliser);
    *size = out.size;
    return out.data;
}

/* ---- programs -------------------------------------------------------------------------------------------- */

enum { MAX_BLOCKS = 8 };

typedef struct model_spec {
    uint32_t hidden, type, head;
    int tokenizer; /* its kind; -1: none */
    int whole;     /* of the tokenizer */
    uint64_t seed; /* of the weights */
    jmb_block blocks[MAX_BLOCKS];
} model_spec;

/* Of every block. */
#define BLOCK(k, a) .kind = k, .act = a, .eps = 1e-5f
#define MAMBA(f, h) BLOCK(JMB_MAMBA, JMB_ACT_SILU), .inner_eps = 1e-5f, .heads = h, .d_inner = 6, .d_state = 3, \
    .d_conv = 3, .dt_rank = 2, .flags = f
#define MAMBA2(f) BLOCK(JMB_MAMBA2, JMB_ACT_SILU), .inner_eps = 1e-5f, .heads = 4, .d_inner = 8, .d_state = 2, \
    .d_conv = 2, .n_groups = 2, .dt_max = 1, .flags = f
#define ATTENTION(f, h, kv) \
    BLOCK(JMB_ATTENTION, JMB_ACT_SILU), .scale = 0.5f, .heads = h, .kv_heads = kv, .head_dim = 4, .flags = f
#define MLP(n) BLOCK(JMB_MLP, JMB_ACT_SILU), .intermediate = n
#define GELU(n) BLOCK(JMB_MLP, JMB_ACT_GELU), .intermediate = n

#define HYBRID_BLOCKS                                                                                       \
    { { MAMBA(JMB_DT_NORM | JMB_CONV_BIAS, 1) }, { MLP(5) }, { ATTENTION(JMB_ROPE, 2, 1) },                  \
        { BLOCK(JMB_MOE, JMB_ACT_SILU), .intermediate = 4, .experts = 3, .top_k = 2 } }

/* `unit` is set where blocks share; else it is the block itself. */
static const model_spec specs[FUZZ_ALL_MODELS] = {
    [FUZZ_HYBRID] = { 6, JMB_F32, 1, 0, 0, 11, HYBRID_BLOCKS },
    [FUZZ_HYBRID_TWIN] = { 6, JMB_F32, 1, 0, 0, 12, HYBRID_BLOCKS },
    [FUZZ_ZAMBA] = { 4, JMB_BF16, 0, 1, 0, 13,
        { { MAMBA(JMB_CONV_BIAS | JMB_BIAS, 2) },
            { ATTENTION(0, 2, 2), .input = JMB_FROM_X_AND_E, .output = JMB_SET_A, .rank = 2 },
            { GELU(4), .input = JMB_FROM_A, .output = JMB_SET_A, .rank = 1 },
            { BLOCK(JMB_LINEAR, JMB_ACT_SILU), .input = JMB_FROM_A, .output = JMB_SET_A },
            { MAMBA(JMB_CONV_BIAS, 2), .input = JMB_FROM_X_PLUS_A },
            { ATTENTION(0, 2, 2), .unit = 1, .input = JMB_FROM_X_AND_E, .output = JMB_SET_A, .rank = 2 },
            { GELU(4), .unit = 2, .input = JMB_FROM_A, .output = JMB_SET_A, .rank = 1 },
            { MAMBA(0, 1), .input = JMB_FROM_X_PLUS_A } } },
    [FUZZ_MAMBA2] = { 4, JMB_F16, 0, 2, 0, 14,
        { { MAMBA2(JMB_CONV_BIAS) }, { MAMBA2(JMB_BIAS) }, { GELU(4), .flags = JMB_BIAS } } },
    [FUZZ_LLAMA] = { 4, JMB_F32, 1, -1, 0, 15,
        { { ATTENTION(JMB_ROPE | JMB_BIAS, 4, 2) }, { MLP(4) },
            { BLOCK(JMB_MOE, JMB_ACT_SILU), .intermediate = 2, .experts = 4, .top_k = 1, .flags = JMB_RENORMALISE } } },
    [FUZZ_Q8] = { 8, JMB_Q8, 0, 3, 0, 16, { { ATTENTION(JMB_ROPE, 2, 1) }, { MLP(8) }, { MAMBA(0, 1) } } },
    [FUZZ_Q4] = { 8, JMB_Q4, 0, -1, 0, 17, { { ATTENTION(0, 2, 1) }, { MLP(8) }, { MAMBA2(0) } } },
    [FUZZ_HEADS] = { 4, JMB_F32, 0, -1, 0, 18, { { MAMBA(JMB_BIAS, 3) } } },
    [FUZZ_TEXT_PIECES] = { 4, JMB_F32, 0, 0, 1, 19, { { MAMBA(0, 1) }, { ATTENTION(0, 1, 1) } } },
    [FUZZ_TEXT_BYTES] = { 4, JMB_F32, 0, 2, 1, 20, { { MAMBA(0, 1) } } },
    [FUZZ_TEXT_WORDS] = { 4, JMB_F32, 0, 3, 1, 21, { { MAMBA(0, 1) } } },
};

static uint32_t spec_blocks(const model_spec *s)
{
    uint32_t count = 0;
    while (count < MAX_BLOCKS && s->blocks[count].kind) count++;
    return count;
}

/* ---- weights --------------------------------------------------------------------------------------------- */

static float uniform(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(*seed >> 40) / 8388608.0f - 1.0f;
}

/* A weight that makes a model's numbers neither vanish nor grow. */
static float weight_of(const jmb_tensor *t, uint32_t row, uint64_t *seed)
{
    float x = uniform(seed);
    switch (t->role) {
    case JMB_ROLE_A: return -1.0f - 0.5f * x;
    case JMB_ROLE_ROPE: return 1.0f / (float)(row + 1);
    case JMB_ROLE_NORM:
    case JMB_ROLE_FINAL_NORM:
    case JMB_ROLE_GATE_NORM:
    case JMB_ROLE_DT_NORM:
    case JMB_ROLE_B_NORM:
    case JMB_ROLE_C_NORM: return 1.0f + 0.25f * x;
    default: return 0.75f * x;
    }
}

/* All panels of a tensor. */
static void pack_tensor(uint8_t *out, const jmb_tensor *t, uint64_t *seed)
{
    uint32_t halves = jmb_roles[t->role].paired ? 2 : 1, first, half, r, c;
    size_t stride = jmb_pad64(t->cols);
    float *rows = (float *)calloc(PACK_ROWS * stride, sizeof *rows);
    pack_report report = { 0, 0 };
    for (first = 0; first < t->rows; first += PACK_ROWS)
        for (half = 0; half < halves; half++) {
            for (r = 0; r < PACK_ROWS; r++)
                for (c = 0; c < t->cols; c++)
                    rows[r * stride + c] = first + r < t->rows ? weight_of(t, first + r, seed) : 0;
            pack_panel(out, t->type, rows, t->cols, &report);
            out += jmb_panel_bytes(t->type, t->cols);
        }
    free(rows);
}

/* ---- the file -------------------------------------------------------------------------------------------- */

static const char *const chat_strings[][2] = { { "chat.format", "test" }, { "chat.begin", "<s>" },
    { "chat.system.open", "<s>s " }, { "chat.system.close", "</s>" }, { "chat.user.open", "a" },
    { "chat.user.close", "</s>" }, { "chat.assistant.open", "b" }, { "chat.assistant.close", "</s>" } };

static void spec_text(const model_spec *s, convert_text *text)
{
    char *json;
    json_doc doc;
    tool_error error;
    size_t i;
    memset(text, 0, sizeof *text);
    tool_strings_add(&text->strings, "architecture", s->tokenizer == 1 ? "zamba" : "jamba");
    if (s->tokenizer < 0) return;
    for (i = 0; i < sizeof chat_strings / sizeof chat_strings[0]; i++)
        tool_strings_add(&text->strings, chat_strings[i][0], chat_strings[i][1]);
    json = fuzz_tokenizer_json(s->tokenizer, s->whole);
    if (!json_parse(&doc, json, strlen(json), &error)
        || !tokenizer_compile_json(json_root(&doc), NULL, JMB_MAX_VOCAB, &text->tokenizer, &error)) {
        fprintf(stderr, "models.c: tokenizer %d: %s\n", s->tokenizer, error.message);
        abort();
    }
    json_free(&doc);
    free(json);
}

static void spec_header(const model_spec *s, const convert_text *text, jmb_header *h)
{
    memset(h, 0, sizeof *h);
    h->version = JMB_VERSION_MAJOR | (uint32_t)JMB_VERSION_MINOR << 16;
    h->vocab = text->tokenizer.size ? jmb_load_u32(text->tokenizer.data + 8) : 20;
    h->hidden = s->hidden;
    h->context = 64;
    h->blocks = spec_blocks(s);
    h->head = s->head;
    h->eps = 1e-5f;
    h->type = s->type;
    h->bos = s->tokenizer == 2 ? h->vocab - 2 : 1;
    h->pad = JMB_NO_TOKEN;
    h->eos_count = 1;
    h->eos0 = h->bos + 1;
    h->strings_size = text->strings.bytes.size;
    h->tokenizer_size = text->tokenizer.size;
}

/* Blocks and tensors, with their places. Free both. */
static void spec_plan(const model_spec *s, const convert_text *text, jmb_metadata *m)
{
    uint32_t i;
    memset(m, 0, sizeof *m);
    spec_header(s, text, &m->header);
    m->blocks = (jmb_block *)calloc(m->header.blocks, sizeof *m->blocks);
    for (i = 0; i < m->header.blocks; i++) {
        m->blocks[i] = s->blocks[i];
        if (!m->blocks[i].unit) m->blocks[i].unit = i;
    }
    m->header.tensors = jmb_list_tensors(&m->header, m->blocks, s->type, NULL);
    m->tensors = (jmb_tensor *)calloc(m->header.tensors, sizeof *m->tensors);
    jmb_list_tensors(&m->header, m->blocks, s->type, m->tensors);
    m->parts = jmb_place_parts(&m->header);
    m->header.data_offset = m->parts.data;
    m->header.file_size = jmb_place_tensors(m->tensors, m->header.tensors, m->parts.data);
}

static void write_metadata_of(uint8_t *p, const jmb_metadata *m, const convert_text *text)
{
    uint32_t i;
    write_header(p, &m->header);
    for (i = 0; i < m->header.blocks; i++)
        write_block(p + m->parts.program + (uint64_t)i * JMB_BLOCK_BYTES, &m->blocks[i]);
    for (i = 0; i < m->header.tensors; i++)
        write_entry(p + m->parts.directory + (uint64_t)i * JMB_ENTRY_BYTES, &m->tensors[i]);
    if (text->strings.bytes.size) memcpy(p + m->parts.strings, text->strings.bytes.data, text->strings.bytes.size);
    if (text->tokenizer.size) memcpy(p + m->parts.tokenizer, text->tokenizer.data, text->tokenizer.size);
}

uint8_t *fuzz_model(int which, size_t *size)
{
    const model_spec *s = &specs[which];
    uint64_t seed = s->seed;
    convert_text text;
    jmb_metadata m;
    uint8_t *p;
    uint32_t i;
    spec_text(s, &text);
    spec_plan(s, &text, &m);
    *size = (size_t)m.header.file_size;
    p = (uint8_t *)calloc(*size, 1);
    for (i = 0; i < m.header.tensors; i++) {
        jmb_tensor *t = &m.tensors[i];
        pack_tensor(p + t->offset, t, &seed);
        t->hash = jmb_hash64(JMB_HASH_SEED, p + t->offset, (size_t)t->bytes);
    }
    write_metadata_of(p, &m, &text);
    fuzz_mend_model(p, *size);
    free(m.blocks);
    free(m.tensors);
    text_free(&text);
    return p;
}

/* ---- adapters -------------------------------------------------------------------------------------------- */

static int compare_loras(const void *a, const void *b)
{
    return jmb_compare_loras((const jmb_lora *)a, (const jmb_lora *)b);
}

/* Matrices that an adapter can go with. */
static bool is_adapted(const jmb_tensor *t)
{
    switch (t->role) {
    case JMB_ROLE_EMBED: case JMB_ROLE_HEAD: case JMB_ROLE_Q: case JMB_ROLE_K: case JMB_ROLE_V: case JMB_ROLE_O:
    case JMB_ROLE_U: case JMB_ROLE_Z: case JMB_ROLE_OUT: case JMB_ROLE_GATE_UP: case JMB_ROLE_DOWN: return true;
    default: return false;
    }
}

/* Their shapes, in order; returns how many. */
static uint32_t list_loras(const jmb_metadata *m, uint32_t type, uint32_t rank, int every, jmb_lora *loras)
{
    uint32_t i, count = 0, seen = 0;
    for (i = 0; i < m->header.tensors; i++) {
        const jmb_tensor *t = &m->tensors[i];
        jmb_lora_entry e;
        if (!is_adapted(t) || seen++ % (uint32_t)every) continue;
        memset(&e, 0, sizeof e);
        e.block = t->unit;
        e.role = t->role;
        e.index = t->index;
        e.rank = rank;
        e.type = type;
        e.rows = t->rows;
        e.cols = t->cols;
        jmb_lora_shape(&loras[count++], &e);
    }
    qsort(loras, count, sizeof *loras, compare_loras);
    return count;
}

static void write_lora(uint8_t *at, const jmb_lora *l, uint64_t place)
{
    bool embed = l->role == JMB_ROLE_EMBED;
    jmb_lora_entry entry;
    const jmb_lora_entry *e = &entry;
    memset(&entry, 0, sizeof entry);
    entry.block = l->block;
    entry.role = l->role;
    entry.index = l->index;
    entry.rank = l->b.cols;
    entry.type = l->a.type;
    entry.rows = embed ? l->a.rows : l->b.rows;
    entry.cols = embed ? l->b.rows : l->a.cols;
    entry.a = place;
    entry.b = place + l->a.bytes;
#define JMB_X(type, name, at_) write_##type(at + (at_), e->name);
    JMB_LORA_FIELDS(JMB_X)
#undef JMB_X
}

uint8_t *fuzz_adapter(int which, uint32_t type, uint32_t rank, int every, size_t *size)
{
    const model_spec *s = &specs[which];
    uint64_t seed = s->seed + 100, at;
    size_t model_size;
    uint8_t *model = fuzz_model(which, &model_size), *p;
    convert_text text;
    jmb_metadata m;
    jmb_lora *loras;
    uint32_t count, i;
    spec_text(s, &text);
    spec_plan(s, &text, &m);
    loras = (jmb_lora *)calloc(m.header.tensors, sizeof *loras);
    count = list_loras(&m, type, rank, every, loras);
    at = JMB_ADAPTER_BYTES + (uint64_t)count * JMB_ADAPTER_ENTRY;
    for (i = 0, *size = (size_t)at; i < count; i++) *size += (size_t)(loras[i].a.bytes + loras[i].b.bytes);
    p = (uint8_t *)calloc(*size, 1);
    memcpy(p, jmb_adapter_magic, 8);
    memcpy(p + 32, model + 32, 32);
    write_u32(p + 8, JMB_ADAPTER_VERSION);
    write_u32(p + 12, count);
    write_u64(p + 16, *size);
    for (i = 0; i < count; at += loras[i].a.bytes + loras[i].b.bytes, i++) {
        write_lora(p + JMB_ADAPTER_BYTES + i * JMB_ADAPTER_ENTRY, &loras[i], at);
        pack_tensor(p + at, &loras[i].a, &seed);
        pack_tensor(p + at + loras[i].a.bytes, &loras[i].b, &seed);
    }
    fuzz_mend_adapter(p, *size);
    free(loras);
    free(m.blocks);
    free(m.tensors);
    text_free(&text);
    free(model);
    return p;
}

/* ---- hashes ---------------------------------------------------------------------------------------------- */

void fuzz_mend_model(uint8_t *data, size_t size)
{
    uint64_t end = size < JMB_HEADER_BYTES ? 0 : jmb_load_u64(data + 24);
    uint8_t digest[32];
    if (end < JMB_HEADER_BYTES || end > size) return;
    jmb_identity(data, end, digest);
    memcpy(data + 32, digest, 32);
}

void fuzz_mend_state(uint8_t *data, size_t size)
{
    if (size >= JMB_SAVED_BYTES && size % 8 == 0) write_u64(data + 24, jmb_saved_hash(data, size));
}

void fuzz_mend_adapter(uint8_t *data, size_t size)
{
    if (size < JMB_ADAPTER_BYTES || size % 8) return;
    write_u64(data + 24, jmb_hash64(jmb_hash64(JMB_HASH_SEED, data, 24), data + 32, size - 32));
}
