/* versions.c - files of format version 1, kept for ever: they load, and give the bits that they always gave
 *
 * tests/versions/ has models, an adapter and a saved state, written when version 1 was new; the numbers below are the
 * hashes of the logits of then. Nothing here may be made anew: when a format changes, files of the new one are added.
 * KEEP=FOLDER writes what there is not yet into a folder, from the programs below. */
#include "adapter_files.h"
#include "tiny.h"

enum { COUNT = 20, SAVED = 13 };

/* A model of tests/versions, and what comes of tokens 0, 7, 14 ... of its vocabulary: alone, with the adapter at scale
 * 1, and with what follows SAVED of them after the state was restored. 0: there is none. */
typedef struct kept {
    const char *name;
    program (*make)(void);
    uint64_t logits, adapted, resumed;
} kept;

/* Attention with RoPE and biases, silu and gelu MLPs, f32, a head of its own, strings. */
static program make_dense(void)
{
    static const uint8_t strings[] = "\4\0\0\0\5\0\0\0namedense\3\0\0\0\3\0\0\0keytwo";
    program p = start_program(40, 24, JMB_F32);
    int i;
    for (i = 0; i < 2; i++) {
        add_block(&p, JMB_ATTENTION)->flags = JMB_ROPE | (i ? JMB_BIAS : 0);
        add_block(&p, JMB_MLP)->act = i ? JMB_ACT_GELU : JMB_ACT_SILU;
    }
    p.header.head = 1;
    p.header.bos = 1;
    p.header.eos_count = 2;
    p.header.eos0 = 2;
    p.header.eos1 = 39;
    p.strings = strings;
    p.header.strings_size = sizeof strings - 1;
    p.random = 11;
    return p;
}

/* Mamba-2 blocks and one shared by two places with an adapter each, every storage type. */
static program make_shared(void)
{
    program p = start_program(48, 40, JMB_TYPES);
    int i;
    for (i = 0; i < 2; i++) {
        jmb_block *b = add_block(&p, JMB_MAMBA2);
        b->flags = JMB_CONV_BIAS;
        b->heads = 4;
        b->n_groups = 2;
        b->d_inner = 48;
        b->d_state = 16;
        b->dt_min = 0.001f;
        b->dt_max = i ? INFINITY : 0.5f;
        b = add_block(&p, JMB_ATTENTION);
        b->input = JMB_FROM_X_AND_E;
        b->output = JMB_SET_A;
        b->rank = 4;
        b = add_block(&p, JMB_MLP);
        b->act = JMB_ACT_GELU;
        b->input = JMB_FROM_X_PLUS_A;
        if (i) p.blocks[4].unit = 1;
    }
    p.random = 12;
    return p;
}

static const kept files[] = {
    { "dense", make_dense, 0x5cea8a829b6b3d6a, 0xe826f30c4261f96b, 0x6f1fb02f84741229 },
    /* the folder of tiny.h, converted: mamba, attention, experts, a tokenizer, bf16 */
    { "hybrid", NULL, 0xe1e06676946fa034, 0, 0x5d0d49755cff44d1 },
    { "shared", make_shared, 0x77e08f04f4893e1c, 0, 0xb344b40747fe71ad },
};

enum { KEPT = sizeof files / sizeof files[0] };

static const char *kept_path(char path[PATH_ROOM], const char *name, const char *ending)
{
    const char *folder = getenv("KEEP");
    snprintf(path, PATH_ROOM, "%s/%s-1.%s", folder ? folder : "tests/versions", name, ending);
    return path;
}

static void version_tokens(const jamba_model *model, int32_t *tokens)
{
    int i;
    for (i = 0; i < COUNT; i++) tokens[i] = (int32_t)(i * 7) % model_vocab(model);
}

static jamba_session *version_session(const jamba_model *model, const jamba_adapter *adapter)
{
    jamba_adapter *list[1];
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.context = COUNT;
    params.kv_type = JAMBA_KV_F16;
    params.marks = 2;
    session = open_session(model, &params);
    memcpy(list, &adapter, sizeof adapter);
    if (adapter) CHECK(jamba_session_set_adapters(session, list, NULL, 1) == JAMBA_OK);
    return session;
}

/* Of the logits after each of the tokens from `from` on. */
static uint64_t hash_logits(jamba_session *session, const jamba_model *model, int from)
{
    int32_t tokens[COUNT];
    size_t vocab = (size_t)model_vocab(model);
    uint64_t hash = JMB_HASH_SEED;
    version_tokens(model, tokens);
    for (; from < COUNT; from++) {
        CHECK(jamba_eval(session, tokens + from, 1) == JAMBA_OK);
        hash = jmb_hash64(hash, (const uint8_t *)jamba_logits(session), vocab * sizeof(float));
    }
    return hash;
}

static uint64_t hash_alone(const jamba_model *model, const jamba_adapter *adapter)
{
    jamba_session *session = version_session(model, adapter);
    uint64_t hash = hash_logits(session, model, 0);
    jamba_session_free(session);
    return hash;
}

/* ---- writing what is kept ------------------------------------------------------------------------------- */

static void keep_model(const kept *k, const char *path)
{
    char folder[PATH_ROOM], converted[PATH_ROOM];
    image file = { NULL, 0 };
    if (k->make) {
        program p = k->make();
        file = write_image(&p);
    } else {
        tiny_write(temp_path(folder, "tiny"), false);
        test_require(convert(folder, "tiny", "bf16", converted), "cannot convert", folder);
        file.data = file_need(converted, &file.size);
    }
    file_write(path, file.data, file.size);
    free(file.data);
}

static void keep_state(const jamba_model *model, const char *path)
{
    jamba_session *session = version_session(model, NULL);
    jamba_save_params params;
    int32_t tokens[COUNT];
    size_t size;
    uint8_t *data;
    version_tokens(model, tokens);
    memset(&params, 0, sizeof params);
    params.marks = true;
    CHECK(jamba_eval(session, tokens, 5) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens + 5, SAVED - 5) == JAMBA_OK);
    size = jamba_session_save_as(session, &params, NULL, 0);
    data = (uint8_t *)malloc(size);
    CHECK(jamba_session_save_as(session, &params, data, size) == size);
    file_write(path, data, size);
    free(data);
    jamba_session_free(session);
}

/* For every matrix of the model. */
static void keep_adapter(const jamba_model *model, const char *path)
{
    static plan_entry entries[ENTRIES_MAX];
    image file = make_adapter(model, entries, list_entries(model, entries, want_all), JMB_F16, 1);
    file_write(path, file.data, file.size);
    free(file.data);
}

static void keep(const kept *k)
{
    char path[PATH_ROOM];
    jamba_model *model;
    if (!file_exists(kept_path(path, k->name, "jamba"))) keep_model(k, path);
    model = load_model(jamba_from_file(path), NULL);
    test_require(model != NULL, "does not load", path);
    if (!file_exists(kept_path(path, k->name, "state"))) keep_state(model, path);
    if (k->make == make_dense && !file_exists(kept_path(path, k->name, "jamba-lora"))) keep_adapter(model, path);
    jamba_model_free(model);
}

/* ---- what they give ----------------------------------------------------------------------------------------- */

static void check_hash(const char *name, const char *what, uint64_t got, uint64_t want)
{
    CHECK_THAT(got == want, "%s, %s: 0x%016llx, and was 0x%016llx", name, what, (unsigned long long)got,
        (unsigned long long)want);
}

static void check_adapter(const kept *k, const jamba_model *model)
{
    char path[PATH_ROOM];
    jamba_adapter *adapter = NULL;
    jamba_error error;
    if (!CHECK_THAT(jamba_adapter_load(&adapter, model, jamba_from_file(kept_path(path, k->name, "jamba-lora")), &error)
                == JAMBA_OK, "%s: %s", path, error.message))
        return;
    check_hash(k->name, "with its adapter", hash_alone(model, adapter), k->adapted);
    jamba_adapter_free(adapter);
}

/* What was saved goes on, and saves as the same bytes. */
static void check_state(const kept *k, const jamba_model *model)
{
    jamba_session *session = version_session(model, NULL);
    jamba_save_params params;
    char path[PATH_ROOM];
    size_t size, again;
    uint8_t *data = file_need(kept_path(path, k->name, "state"), &size), *saved = (uint8_t *)malloc(size);
    memset(&params, 0, sizeof params);
    params.marks = true;
    CHECK_THAT(jamba_session_restore(session, data, size) == JAMBA_OK, "%s: %s", path,
        jamba_session_error(session)->message);
    again = jamba_session_save_as(session, &params, saved, size);
    CHECK_THAT(again == size && memcmp(saved, data, size) == 0, "%s: saves as other bytes", path);
    check_hash(k->name, "after its state", hash_logits(session, model, SAVED), k->resumed);
    jamba_session_free(session);
    free(saved);
    free(data);
}

static void check_kept(const kept *k)
{
    static const jamba_cpu cpus[] = { JAMBA_CPU_SCALAR, JAMBA_CPU_BEST };
    char path[PATH_ROOM];
    size_t i;
    for (i = 0; i < 2; i++) {
        jamba_model_params params;
        jamba_model *model;
        memset(&params, 0, sizeof params);
        params.cpu = cpus[i];
        params.verify = true;
        model = load_model(jamba_from_file(kept_path(path, k->name, "jamba")), &params);
        if (!model) continue;
        check_hash(k->name, "alone", hash_alone(model, NULL), k->logits);
        if (k->adapted) check_adapter(k, model);
        check_state(k, model);
        jamba_model_free(model);
    }
}

/* The tokenizer of the hybrid one. */
static void test_text(void)
{
    static const char text[] = "abcd efgh <s>ijkl \xc3\xa9 zz\n";
    static const int32_t want[] = { 1, 275, 259, 279, 259, 1, 282, 259, 283, 259, 125, 125, 13 };
    char path[PATH_ROOM];
    int32_t tokens[64];
    size_t count = 0, i;
    jamba_model *model = load_model(jamba_from_file(kept_path(path, "hybrid", "jamba")), NULL);
    if (!CHECK(model != NULL)) return;
    CHECK(jamba_encode(model, text, sizeof text - 1, JAMBA_TEXT_BOS | JAMBA_TEXT_SPECIAL, tokens, 64, &count, NULL)
        == JAMBA_OK);
    CHECK_THAT(count == sizeof want / sizeof want[0], "%zu tokens", count);
    for (i = 0; i < count && i < sizeof want / sizeof want[0]; i++)
        CHECK_THAT(tokens[i] == want[i], "token %zu is %d, and was %d", i, (int)tokens[i], (int)want[i]);
    jamba_model_free(model);
}

/* ---- other versions --------------------------------------------------------------------------------------------- */

/* A file of the dense program whose header says another version or required features. */
static image other_version(uint32_t version, uint32_t required)
{
    program p = make_dense();
    image file = write_image(&p);
    STORE_u32(file.data + 8, version);
    STORE_u32(file.data + 12, required);
    repair_identity(file.data);
    return file;
}

static void check_refused(uint32_t version, uint32_t required, const char *words)
{
    image file = other_version(version, required);
    jamba_model *model = NULL;
    jamba_error error;
    CHECK(jamba_model_load(&model, jamba_from_memory(file.data, file.size), NULL, &error) == JAMBA_ERR_UNSUPPORTED);
    CHECK_THAT(model == NULL && strstr(error.message, words) != NULL, "'%s' lacks '%s'", error.message, words);
    image_free(&file);
}

/* A later minor version says what a reader may leave alone, in strings; a later major one, or a required feature, what
 * it must know. */
static void test_others(void)
{
    static const uint32_t minors[] = { 1, 2, 0x7fff, 0xffff };
    size_t i;
    for (i = 0; i < sizeof minors / sizeof minors[0]; i++) {
        image file = other_version(JMB_VERSION_MAJOR | minors[i] << 16, 0);
        jamba_model *model = load_image(&file, JAMBA_CPU_BEST);
        if (CHECK_THAT(model != NULL, "minor version %u", (unsigned)minors[i])) {
            check_hash("dense", "of a later minor version", hash_alone(model, NULL), files[0].logits);
            CHECK(jamba_model_meta(model, "key") && strcmp(jamba_model_meta(model, "key"), "two") == 0);
            CHECK(jamba_model_meta(model, "unknown") == NULL);
        }
        jamba_model_free(model);
        image_free(&file);
    }
    check_refused(JMB_VERSION_MAJOR + 1, 0, "file format 2, but this is 1");
    check_refused((JMB_VERSION_MAJOR + 1) | 5 << 16, 0, "file format 2, but this is 1");
    check_refused(0, 0, "file format 0, but this is 1");
    for (i = 0; i < 32; i++) check_refused(JMB_VERSION_MAJOR, 1u << i, "needs a newer jamba.h");
}

int main(int argc, char **argv)
{
    size_t i;
    test_start(argc, argv);
    for (i = 0; i < KEPT; i++) {
        if (!test_begin("version 1, %s", files[i].name)) continue;
        if (getenv("KEEP")) keep(&files[i]);
        check_kept(&files[i]);
        test_end();
    }
    if (test_begin("version 1, text to tokens")) {
        test_text();
        test_end();
    }
    if (test_begin("other versions")) {
        test_others();
        test_end();
    }
    return test_summary();
}
