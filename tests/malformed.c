/* malformed.c - one rule, one row: each way in which a model, tokenizer, saved state or adapter can be wrong
 *
 * A row changes a few numbers of a file that is in order, makes its hash right again, and names the error: its code,
 * the place in the file, its words. At the end every message of the readers in jamba.h must have been produced. */
#define JMB_PAGE 16 /* so that a few tokens fill pages, which forks share */
#include "adapter_files.h"
#include "rules.h"

/* ---- rows ---------------------------------------------------------------------------------------------- */

enum { /* parts of a file; rows count their places from where one begins */
    HEAD, STRINGS, SECTION, DATA,              /* of a model */
    RULES, OFFSETS, FLAGS, BYTES, MERGES, TEXT, /* of a tokenizer */
    IDS, MARKS, TURNS, REPLY,                  /* of a saved state */
    END,
    FIRST_BLOCK = 100,
    FIRST_ENTRY = 1000
};

#define BLOCK(i) (FIRST_BLOCK + (i))
#define ENTRY(i) (FIRST_ENTRY + (i))
#define RULE(i) (FIRST_BLOCK + (i))

typedef enum need { /* what else a row needs */
    PLAIN,
    STALE,   /* the hash stays what it was */
    VERIFY,  /* the data is checked too */
    SMALL,   /* a session with a small context */
    CROWDED, /* a session whose pages a fork holds */
    BARE     /* a session without adapters */
} need;

typedef struct poke {
    uint32_t part;
    int at;
    uint32_t bytes;
    uint64_t value;
} poke;

enum { POKES = 4, CUT = 1 << 24 };

typedef struct row {
    const char *words;
    jamba_result code;
    uint32_t part;
    int at; /* where the error is */
    poke pokes[POKES];
    int grow; /* bytes more or fewer at the end, or CUT_TO() */
    need how;
} row;

typedef struct format {
    const char *name;
    image good;
    uint64_t (*place)(uint32_t part);
    void (*repair)(uint8_t *data, size_t size);
    jamba_result (*load)(const image *file, need how, jamba_error *error);
} format;

#define F JAMBA_ERR_FORMAT
#define U JAMBA_ERR_UNSUPPORTED
#define B(name) (4 * FIELD_##name)
#define CUT_TO(size) ((size) - CUT)
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

#define BELOW 0xbf800000u /* -1 */
enum { ONE = 0x3f800000, A_NAN = 0x7fc00000, ENDLESS = 0x7f800000 }; /* floats as their bits */

/* The file of a row, in memory that ends with its last byte. */
static image changed_file(const format *f, const row *r)
{
    image file;
    void *data;
    size_t i;
    file.size = (size_t)((r->grow < -CUT / 2 ? CUT : (int)f->good.size) + r->grow);
    test_require(posix_memalign(&data, 64, file.size ? file.size : 1) == 0, "out of memory", f->name);
    file.data = (uint8_t *)data;
    memset(file.data, 0, file.size);
    memcpy(file.data, f->good.data, file.size < f->good.size ? file.size : f->good.size);
    for (i = 0; i < POKES && r->pokes[i].bytes; i++) {
        const poke *p = &r->pokes[i];
        store(file.data + (int64_t)f->place(p->part) + p->at, p->value, (int)p->bytes);
    }
    if (r->how != STALE) f->repair(file.data, file.size);
    return file;
}

static void check_row(const format *f, const row *r)
{
    image file = changed_file(f, r);
    jamba_error error;
    jamba_result result;
    uint64_t at = f->place(r->part) + (uint64_t)r->at;
    memset(&error, 0, sizeof error);
    result = f->load(&file, r->how, &error);
    CHECK_THAT(result == r->code && error.code == r->code && strstr(error.message, r->words) && error.offset == at,
        "%s, '%s' at %llu: result %d at %llu, '%s'", f->name, r->words, (unsigned long long)at, (int)result,
        (unsigned long long)error.offset, error.message);
    rules_note(error.message);
    free(file.data);
}

static size_t rows_checked;

static void check_rows(const format *f, const row *rows, size_t count)
{
    image same = f->good;
    jamba_error error;
    size_t i;
    CHECK_THAT(f->load(&same, PLAIN, &error) == JAMBA_OK, "%s in order: %s", f->name, error.message);
    for (i = 0; i < count; i++) check_row(f, &rows[i]);
    rows_checked += count;
}

/* ---- a tokenizer section ------------------------------------------------------------------------------- */

enum { VOCAB = 20, TOKENS = 15, SECTION_RULES = 4, SECTION_MERGES = 2, LONG_TOKEN = 250 };

static uint8_t section_bytes[4096];
static uint32_t section_at[FIRST_BLOCK + SECTION_RULES + 1]; /* where parts begin */
static size_t section_size;

static void put_u32(uint32_t value)
{
    STORE_u32(section_bytes + section_size, value);
    section_size += 4;
}

static void put_text(const char *text, size_t length)
{
    memcpy(section_bytes + section_size, text, length);
    section_size += length;
}

static void put_rule(uint32_t number, uint32_t kind, const char *from, const char *to)
{
    section_at[RULE(number)] = (uint32_t)section_size;
    put_u32(kind);
    put_u32((uint32_t)strlen(from));
    put_u32((uint32_t)strlen(to));
    put_text(from, strlen(from));
    put_text(to, strlen(to));
    section_size = (section_size + 3) / 4 * 4;
}

#define SPACE_MARK "\xe2\x96\x81"

/* Rules of every kind but NFC, an added token, two byte tokens, merges, a token without text, one that is long. */
static void make_section(void)
{
    static char filler[LONG_TOKEN + 1];
    static const char *const texts[TOKENS] = { "?", "<s>", "a", "b", "ab", "abab", "<0x0A>", SPACE_MARK, "x", "yyyyy",
        filler, "<0x0B>", "", "c", "\xc3\xa9" };
    static const uint32_t merges[3 * SECTION_MERGES] = { 2, 3, 4, 4, 4, 5 };
    uint32_t i, offset = 0;
    memset(filler, 'x', LONG_TOKEN);
    for (i = 0; i < TOKENS; i++) offset += (uint32_t)strlen(texts[i]);
    put_u32(JMB_TOKENIZER_KIND);
    put_u32(JMB_TEXT_FUSE_UNK | JMB_TEXT_BYTES | JMB_TEXT_SPLIT | JMB_TEXT_DECODE_BYTES);
    put_u32(TOKENS);
    put_u32(offset);
    put_u32(SECTION_MERGES);
    put_u32(SECTION_RULES);
    put_u32(0);
    put_u32(0);
    section_at[RULES] = (uint32_t)section_size;
    put_rule(0, JMB_RULE_PREPEND, "", SPACE_MARK);
    put_rule(1, JMB_RULE_REPLACE, "x", "yyyyy");
    put_rule(2, JMB_RULE_SPACE, " ", SPACE_MARK);
    put_rule(3, JMB_RULE_DECODE, SPACE_MARK, " ");
    section_at[RULE(4)] = section_at[OFFSETS] = (uint32_t)section_size;
    for (i = 0, offset = 0; i <= TOKENS; i++) {
        put_u32(offset);
        if (i < TOKENS) offset += (uint32_t)strlen(texts[i]);
    }
    section_at[FLAGS] = (uint32_t)section_size;
    for (i = 0; i < TOKENS; i++)
        section_bytes[section_size++] =
            (uint8_t)(i == 1 ? JMB_TOKEN_ADDED | JMB_TOKEN_SPECIAL : i == 12 ? 0 : JMB_TOKEN_MODEL);
    section_size = (section_size + 3) / 4 * 4;
    section_at[BYTES] = (uint32_t)section_size;
    for (i = 0; i < 256; i++) put_u32(i == 10 ? 6 : i == 11 ? 11 : JMB_NO_TOKEN);
    section_at[MERGES] = (uint32_t)section_size;
    for (i = 0; i < COUNT(merges); i++) put_u32(merges[i]);
    section_at[TEXT] = (uint32_t)section_size;
    for (i = 0; i < TOKENS; i++) put_text(texts[i], strlen(texts[i]));
    section_at[END] = (uint32_t)section_size;
}

enum { SECTION_OFFSET = 1000 }; /* in a file */

static uint64_t section_place(uint32_t part)
{
    return section_at[part];
}

static void no_repair(uint8_t *data, size_t size)
{
    (void)data, (void)size;
}

static jamba_result section_load(const image *file, need how, jamba_error *error)
{
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jmb_tokenizer *t = (jmb_tokenizer *)malloc(sizeof *t);
    jamba_result result =
        jmb_tokenizer_load(t, &heap, file->data, file->size, SECTION_OFFSET, how == VERIFY ? 1u << 20 : VOCAB, error);
    error->offset -= SECTION_OFFSET;
    jmb_heap_free(&heap);
    free(t);
    return result;
}

static const row section_rows[] = {
    { "tokenizer: too short, bytes: 31", F, HEAD, 0, { { 0, 0, 0, 0 } }, CUT_TO(31), PLAIN },
    { "tokenizer kind 2 is not supported", U, HEAD, 0, { { HEAD, 0, 4, 2 } }, 0, PLAIN },
    { "tokenizer flags 1024 not supported", U, HEAD, 4, { { HEAD, 4, 4, 1024 } }, 0, PLAIN },
    { "tokens is 0, outside 1 to 20", F, HEAD, 8, { { HEAD, 8, 4, 0 } }, 0, PLAIN },
    { "tokens is 21, outside 1 to 20", F, HEAD, 8, { { HEAD, 8, 4, 21 } }, 0, PLAIN },
    { "text size is 67108865", F, HEAD, 12, { { HEAD, 12, 4, (1u << 26) + 1 } }, 0, PLAIN },
    { "merges is 1048577", F, HEAD, 16, { { HEAD, 16, 4, (1u << 20) + 1 } }, 0, PLAIN },
    { "rules is 9, outside 0 to 8", F, HEAD, 20, { { HEAD, 20, 4, 9 } }, 0, PLAIN },
    { "unk is 15, outside 0 to 14", F, HEAD, 24, { { HEAD, 24, 4, TOKENS } }, 0, PLAIN },
    { "strip is 65, outside 0 to 64", F, HEAD, 28, { { HEAD, 28, 4, 65 } }, 0, PLAIN },
    { "it ends inside rule of kind 0", F, RULE(0), 0, { { 0, 0, 0, 0 } }, CUT_TO(43), PLAIN },
    { "too much text in rule of kind 1", F, RULE(0), 0, { { RULE(0), 4, 4, 65 } }, 0, PLAIN },
    { "too much text in rule of kind 1", F, RULE(0), 0, { { RULE(0), 8, 4, 65 } }, 0, PLAIN },
    { "too much text in rule of kind 1", F, RULE(0), 0, { { 0, 0, 0, 0 } }, CUT_TO(44), PLAIN },
    { "too much text in rule of kind 1", F, RULE(0), 0, { { 0, 0, 0, 0 } }, CUT_TO(46), PLAIN },
    { "a byte that must be zero is not", F, RULE(0), 15, { { RULE(0), 15, 1, 1 } }, 0, PLAIN },
    { "text is not UTF-8 in rule of kind 2", F, RULE(1), 0, { { RULE(1), 12, 1, 0xff } }, 0, PLAIN },
    { "text is not UTF-8 in rule of kind 2", F, RULE(1), 0, { { RULE(1), 17, 1, 0xc3 } }, 0, PLAIN },
    { "wrong contents or order in rule 0", F, RULE(1), 0, { { RULE(0), 0, 4, 0 } }, 0, PLAIN },
    { "wrong contents or order in rule 0", F, RULE(1), 0, { { RULE(0), 0, 4, 6 } }, 0, PLAIN },
    { "wrong contents or order in rule 0", F, RULE(1), 0, { { RULE(0), 0, 4, JMB_RULE_REPLACE } }, 0, PLAIN },
    { "wrong contents or order in rule 0", F, RULE(1), 0, { { RULE(0), 0, 4, JMB_RULE_NFC } }, 0, PLAIN },
    { "wrong contents or order in rule 1", F, RULE(2), 0, { { RULE(1), 0, 4, JMB_RULE_PREPEND } }, 0, PLAIN },
    { "wrong contents or order in rule 1", F, RULE(2), 0, { { RULE(1), 0, 4, JMB_RULE_SPACE } }, 0, PLAIN },
    { "wrong contents or order in rule 1", F, RULE(2), 0, { { RULE(1), 0, 4, JMB_RULE_DECODE } }, 0, PLAIN },
    { "wrong contents or order in rule 2", F, RULE(3), 0, { { RULE(2), 12, 1, '_' } }, 0, PLAIN },
    { "wrong contents or order in rule 3", F, RULE(4), 0, { { RULE(3), 0, 4, JMB_RULE_REPLACE } }, 0, PLAIN },
    { "wrong contents or order in rule 3", F, RULE(4), 0,
        { { RULE(2), 0, 4, JMB_RULE_DECODE }, { RULE(3), 0, 4, JMB_RULE_DECODE } }, 0, PLAIN },
    { "text grows too much in rule 2", F, RULE(3), 0, { { RULE(1), 8, 4, 7 } }, 0, PLAIN },
    { "no rule SPACE for flags 39", F, RULE(4), 0,
        { { RULE(2), 0, 4, JMB_RULE_REPLACE }, { HEAD, 4, 4, 39 } }, 0, PLAIN },
    { "no rule SPACE for flags 43", F, RULE(4), 0,
        { { RULE(2), 0, 4, JMB_RULE_REPLACE }, { HEAD, 4, 4, 43 } }, 0, PLAIN },
    { "no rule SPACE for flags 51", F, RULE(4), 0,
        { { RULE(2), 0, 4, JMB_RULE_REPLACE }, { HEAD, 4, 4, 51 } }, 0, PLAIN },
    { "no rule DECODE for flags 103", F, RULE(3), 0, { { HEAD, 4, 4, 103 }, { HEAD, 20, 4, 3 } }, 0, PLAIN },
    { "no rule DECODE for flags 103", F, RULE(4), 0, { { HEAD, 4, 4, 103 }, { HEAD, 28, 4, 1 } }, 0, PLAIN },
    { "exclude each other: 258", F, RULE(4), 0, { { HEAD, 4, 4, JMB_TEXT_RAW | JMB_TEXT_BYTES } }, 0, PLAIN },
    { "exclude each other: 256", F, RULE(4), 0, { { HEAD, 4, 4, JMB_TEXT_RAW } }, 0, PLAIN },
    { "exclude each other: 256", F, RULE(3), 0,
        { { HEAD, 4, 4, JMB_TEXT_RAW }, { HEAD, 20, 4, 3 }, { HEAD, 28, 4, 1 } }, 0, PLAIN },
    { "exclude each other: 132", F, RULE(4), 0, { { HEAD, 4, 4, JMB_TEXT_GPT2 | JMB_TEXT_SPLIT } }, 0, PLAIN },
    { "bytes, not ", F, HEAD, 0, { { 0, 0, 0, 0 } }, -1, PLAIN },
    { "bytes, not ", F, HEAD, 0, { { 0, 0, 0, 0 } }, 1, PLAIN },
    { "bytes, not ", F, HEAD, 0, { { HEAD, 16, 4, 3 } }, 0, PLAIN },
    { "its text does not begin at 0 but at 1", F, OFFSETS, 0, { { OFFSETS, 0, 4, 1 } }, 0, PLAIN },
    { "wrong size of token 1", F, OFFSETS, 4, { { OFFSETS, 8, 4, 0 } }, 0, PLAIN },
    { "wrong size of token 0", F, OFFSETS, 0, { { OFFSETS, 4, 4, 1025 } }, 0, PLAIN },
    { "its text does not end at ", F, OFFSETS, 4 * TOKENS, { { OFFSETS, 4 * TOKENS, 4, 307 } }, 0, PLAIN },
    { "wrong flags of token 0", F, FLAGS, 0, { { FLAGS, 0, 1, 0 } }, 0, PLAIN },
    { "wrong flags of token 12", F, FLAGS, 12, { { FLAGS, 12, 1, JMB_TOKEN_MODEL } }, 0, PLAIN },
    { "wrong flags of token 2", F, FLAGS, 2, { { FLAGS, 2, 1, 128 | JMB_TOKEN_MODEL } }, 0, PLAIN },
    { "wrong flags of token 2", F, FLAGS, 2, { { FLAGS, 2, 1, JMB_TOKEN_MODEL | JMB_TOKEN_LSTRIP } }, 0, PLAIN },
    { "a byte that must be zero is not", F, FLAGS, TOKENS, { { FLAGS, TOKENS, 1, 1 } }, 0, PLAIN },
    { "not UTF-8: token 2", F, TEXT, 0, { { TEXT, 4, 1, 0xff } }, 0, PLAIN },
    { "repeated text in token 3", F, TEXT, 0, { { TEXT, 5, 1, 'a' } }, 0, PLAIN },
    { "wrong token for byte 10", F, BYTES, 40, { { BYTES, 40, 4, TOKENS } }, 0, PLAIN },
    { "wrong token for byte 10", F, BYTES, 40, { { BYTES, 40, 4, 1 } }, 0, PLAIN },
    { "wrong token for byte 10", F, BYTES, 40, { { BYTES, 40, 4, 11 } }, 0, PLAIN },
    { "wrong token for byte 12", F, BYTES, 48, { { BYTES, 48, 4, 2 } }, 0, PLAIN },
    { "no merge before merge 0", F, MERGES, 0, { { MERGES, 8, 4, JMB_MERGE_TIE | 4 } }, 0, PLAIN },
    { "wrong tokens in merge 0", F, MERGES, 0, { { MERGES, 0, 4, TOKENS } }, 0, PLAIN },
    { "wrong tokens in merge 0", F, MERGES, 0, { { MERGES, 4, 4, TOKENS } }, 0, PLAIN },
    { "wrong tokens in merge 0", F, MERGES, 0, { { MERGES, 8, 4, TOKENS } }, 0, PLAIN },
    { "wrong tokens in merge 0", F, MERGES, 0, { { MERGES, 0, 4, 1 } }, 0, PLAIN },
    { "wrong tokens in merge 0", F, MERGES, 0, { { MERGES, 8, 4, 5 } }, 0, PLAIN },
    { "repeated pair in merge 1", F, MERGES, 12,
        { { MERGES, 12, 4, 2 }, { MERGES, 16, 4, 3 }, { MERGES, 20, 4, 4 } }, 0, PLAIN },
    { "unk is not in the model's vocabulary: 1", F, TEXT, 0, { { HEAD, 24, 4, 1 } }, 0, PLAIN },
    { "wrong size, normalised, of token 10", F, TEXT, 0,
        { { FLAGS, 10, 1, JMB_TOKEN_ADDED | JMB_TOKEN_NORMALISED } }, 0, PLAIN },
    { "repeated normalised text in token 9", F, TEXT, 0,
        { { FLAGS, 8, 1, JMB_TOKEN_ADDED | JMB_TOKEN_NORMALISED },
            { FLAGS, 9, 1, JMB_TOKEN_ADDED | JMB_TOKEN_NORMALISED } }, 0, PLAIN },
};

/* ---- sections too large for a table ------------------------------------------------------------------- */

/* Tokens whose texts stand one behind the other, and all have the same flags; and what else is in their section. */
typedef struct texts {
    uint8_t *bytes;
    uint32_t *offsets; /* (count + 1) */
    uint32_t count;
    uint32_t form, nfc; /* flags of the section; rules, all of them NFC */
    uint8_t flags, padding; /* padding: the last byte behind the flags of a number of tokens that needs some */
    const uint32_t *merges; /* (merge_count, 3) */
    uint32_t merge_count;
} texts;

static texts texts_open(uint32_t most, size_t bytes)
{
    texts t;
    memset(&t, 0, sizeof t);
    t.flags = JMB_TOKEN_MODEL;
    t.bytes = (uint8_t *)calloc(1, bytes);
    t.offsets = (uint32_t *)calloc((size_t)most + 1, sizeof *t.offsets);
    test_require(t.bytes && t.offsets, "out of memory", "texts");
    return t;
}

static void texts_add(texts *t, const void *text, size_t size)
{
    memcpy(t->bytes + t->offsets[t->count], text, size);
    t->offsets[t->count + 1] = t->offsets[t->count] + (uint32_t)size;
    t->count++;
}

/* The section is refused with these words, or without words loaded. */
static void check_texts(texts *t, const char *words)
{
    uint32_t text_size = t->offsets[t->count], i;
    size_t offsets_at = 32 + 12 * (size_t)t->nfc, flags_at = offsets_at + 4 * ((size_t)t->count + 1);
    size_t merges_at = flags_at + (t->count + 3) / 4 * 4;
    jamba_result result;
    jamba_error error;
    image file;
    file.size = merges_at + 12 * (size_t)t->merge_count + text_size;
    file.data = (uint8_t *)calloc(1, file.size);
    test_require(file.data != NULL, "out of memory", "section");
    STORE_u32(file.data, JMB_TOKENIZER_KIND);
    STORE_u32(file.data + 4, t->form);
    STORE_u32(file.data + 8, t->count);
    STORE_u32(file.data + 12, text_size);
    STORE_u32(file.data + 16, t->merge_count);
    STORE_u32(file.data + 20, t->nfc);
    STORE_u32(file.data + 24, JMB_NO_TOKEN);
    for (i = 0; i < t->nfc; i++) STORE_u32(file.data + 32 + 12 * i, JMB_RULE_NFC);
    for (i = 0; i <= t->count; i++) STORE_u32(file.data + offsets_at + 4 * i, t->offsets[i]);
    memset(file.data + flags_at, t->flags, t->count);
    if (t->padding) file.data[merges_at - 1] = t->padding;
    for (i = 0; i < 3 * t->merge_count; i++) STORE_u32(file.data + merges_at + 4 * i, t->merges[i]);
    memcpy(file.data + file.size - text_size, t->bytes, text_size);
    result = section_load(&file, VERIFY, &error);
    if (words) {
        CHECK_THAT(result == F, "%s: loads", words);
        CHECK_THAT(strstr(error.message, words) != NULL, "'%s' lacks '%s'", error.message, words);
        rules_note(error.message);
        rows_checked++;
    } else {
        CHECK_THAT(result == JAMBA_OK, "%s", error.message);
    }
    free(file.data);
    free(t->bytes);
    free(t->offsets);
}

static void test_much_text(void)
{
    enum { MANY = 4097, EACH = 1024 };
    texts t = texts_open(MANY, (size_t)MANY * EACH);
    char text[EACH + 1];
    uint32_t i;
    memset(text, 'a', EACH);
    for (i = 0; i < MANY; i++) {
        snprintf(text, sizeof text, "%06u", (unsigned)i);
        text[6] = 'a';
        texts_add(&t, text, EACH);
    }
    t.flags = JMB_TOKEN_ADDED;
    check_texts(&t, "too much text of added tokens up to 4096");
}

/* Bytes that are no text: only as tokens of byte-level models, and there as no added one. */
static void test_raw_texts(void)
{
    static const struct {
        uint32_t form;
        uint8_t flags;
        const char *words;
    } cases[] = {
        { 0, JMB_TOKEN_MODEL, "not UTF-8: token 1" },
        { JMB_TEXT_RAW, JMB_TOKEN_ADDED, "not UTF-8: token 1" },
        { JMB_TEXT_RAW, JMB_TOKEN_MODEL | JMB_TOKEN_ADDED, "not UTF-8: token 1" },
        { JMB_TEXT_RAW, JMB_TOKEN_MODEL, NULL },
    };
    size_t i;
    for (i = 0; i < COUNT(cases); i++) {
        texts t = texts_open(2, 8);
        texts_add(&t, "a", 1);
        texts_add(&t, "b\xff", 2);
        t.form = cases[i].form;
        t.flags = cases[i].flags;
        check_texts(&t, cases[i].words);
    }
}

/* NFC makes at most three bytes of one; 16 are allowed. */
static void test_growth(void)
{
    static const char *const words[] = { NULL, NULL, NULL, "text grows too much in rule 2" };
    uint32_t rules;
    for (rules = 0; rules < COUNT(words); rules++) {
        texts t = texts_open(1, 8);
        texts_add(&t, "a", 1);
        t.nfc = rules;
        check_texts(&t, words[rules]);
    }
}

static void test_flag_padding(void)
{
    static const char letters[] = "abcd";
    uint32_t count, i;
    for (count = 1; count < 4; count++) {
        texts t = texts_open(count, 8);
        for (i = 0; i < count; i++) texts_add(&t, letters + i, 1);
        t.padding = 1;
        check_texts(&t, "a byte that must be zero is not");
    }
}

/* As many as are probed, and one. */
enum { COLLIDING = JMB_MAX_PROBES + 1, SLOTS = 2048 };

static void test_colliding_texts(void)
{
    texts t = texts_open(COLLIDING, COLLIDING * 8);
    uint32_t i;
    for (i = 0; t.count < COLLIDING; i++) {
        char text[12];
        snprintf(text, sizeof text, "%08x", (unsigned)i);
        if (jmb_hash_text((const uint8_t *)text, 8) % SLOTS == 7) texts_add(&t, text, 8);
    }
    check_texts(&t, "too many hash collisions at token 512");
}

/* Pairs of 1,300 tokens of four letters, and their results. */
static void test_colliding_merges(void)
{
    enum { SINGLE = 1300 };
    static uint32_t merges[3 * COLLIDING];
    texts t = texts_open(SINGLE + COLLIDING, SINGLE * 4 + COLLIDING * 8);
    uint32_t left, right, count = 0;
    char text[12];
    for (left = 0; left < SINGLE; left++) {
        snprintf(text, sizeof text, "%04u", (unsigned)left);
        texts_add(&t, text, 4);
    }
    for (left = 0; left < SINGLE; left++)
        for (right = 0; right < SINGLE && count < COLLIDING; right++) {
            if (jmb_hash_pair(left, right) % SLOTS != 7) continue;
            merges[3 * count] = left;
            merges[3 * count + 1] = right;
            merges[3 * count++ + 2] = t.count;
            snprintf(text, sizeof text, "%04u%04u", (unsigned)left, (unsigned)right);
            texts_add(&t, text, 8);
        }
    CHECK(count == COLLIDING);
    t.merges = merges;
    t.merge_count = count;
    check_texts(&t, "too many hash collisions at merge 512");
}

/* ---- a model with a block of every kind ---------------------------------------------------------------- */

enum { ATTENTION, MLP, MAMBA, MAMBA2, MOE, SETTER, LINEAR, READER, SHARER, LAST }; /* its blocks */

static image model_file;
static jmb_header model_header;
static jmb_parts model_parts;

/* SHARER has the tensors of MLP. */
static program model_program(void)
{
    static const uint32_t kinds[MOST_BLOCKS] = { JMB_ATTENTION, JMB_MLP, JMB_MAMBA, JMB_MAMBA2, JMB_MOE, JMB_MLP,
        JMB_LINEAR, JMB_MLP, JMB_MLP, JMB_MLP };
    static uint8_t strings[128];
    program p = start_program(VOCAB, 20, JMB_F32);
    int i;
    for (i = 0; i < MOST_BLOCKS; i++) add_block(&p, kinds[i]);
    p.blocks[ATTENTION].flags = JMB_ROPE;
    p.blocks[MOE].experts = 2;
    p.blocks[SETTER].output = JMB_SET_A;
    p.blocks[READER].input = JMB_FROM_A;
    p.blocks[SHARER].unit = MLP;
    p.blocks[LAST].rank = 4;
    STORE_u32(strings, 4);
    STORE_u32(strings + 4, 70);
    memcpy(strings + 8, "name", 4);
    memset(strings + 12, 'n', 70);
    STORE_u32(strings + 82, 3);
    STORE_u32(strings + 86, 5);
    memcpy(strings + 90, "key\tone\n", 8);
    p.strings = strings;
    p.header.strings_size = 98;
    p.tokenizer = section_bytes;
    p.header.tokenizer_size = section_size;
    return p;
}

static void make_model(void)
{
    program p = model_program();
    model_file = write_image(&p);
    jmb_read_header(&model_header, model_file.data);
    model_parts = jmb_place_parts(&model_header);
}

static uint64_t model_place(uint32_t part)
{
    if (part >= FIRST_ENTRY) return model_parts.directory + (uint64_t)(part - FIRST_ENTRY) * JMB_ENTRY_BYTES;
    if (part >= FIRST_BLOCK) return model_parts.program + (uint64_t)(part - FIRST_BLOCK) * JMB_BLOCK_BYTES;
    switch (part) {
    case STRINGS: return model_parts.strings;
    case SECTION: return model_parts.tokenizer;
    case DATA: return model_parts.data;
    default: return 0;
    }
}

static void model_repair(uint8_t *data, size_t size)
{
    if (size >= JMB_HEADER_BYTES && jmb_load_u64(data + 24) >= 64 && jmb_load_u64(data + 24) <= size)
        repair_identity(data);
}

static jamba_result model_load(const image *file, need how, jamba_error *error)
{
    jamba_model_params params;
    jamba_model *model = NULL;
    jamba_result result;
    memset(&params, 0, sizeof params);
    params.verify = how == VERIFY;
    result = jamba_model_load(&model, jamba_from_memory(file->data, file->size), &params, error);
    CHECK((result == JAMBA_OK) == (model != NULL));
    jamba_model_free(model);
    return result;
}

/* Where a tensor stands in the directory. */
static uint32_t entry_of(uint32_t unit, uint32_t role, uint32_t index)
{
    uint32_t i;
    for (i = 0; i < model_header.tensors; i++) {
        jmb_entry e;
        jmb_read_entry(&e, model_file.data + model_place(ENTRY(i)));
        if (e.unit == unit && e.role == role && e.index == index) return i;
    }
    test_require(false, "the model lacks", jmb_roles[role].name);
    return 0;
}

#define WRONG(words, part, at, value) { words, F, part, at, { { part, at, 4, value } }, 0, PLAIN }
/* A rule on several fields is placed at their block. */
#define BLOCKED(words, block, field, value) \
    { words, F, BLOCK(block), 0, { { BLOCK(block), B(field), 4, value } }, 0, PLAIN }
#define IN_BLOCK(words, block, field, value) WRONG(words, BLOCK(block), B(field), value)
#define NOT_YET(words, block, field, value, at) \
    { words, U, BLOCK(block), at, { { BLOCK(block), B(field), 4, value } }, 0, PLAIN }

static const row header_rows[] = {
    { "too short for a model file (255 bytes)", F, HEAD, 255, { { 0, 0, 0, 0 } }, CUT_TO(255), PLAIN },
    { "the file has 256 bytes and should have", F, HEAD, 16, { { 0, 0, 0, 0 } }, CUT_TO(256), PLAIN },
    { "not a .jamba file", F, HEAD, 0, { { HEAD, 0, 1, 'P' } }, 0, PLAIN },
    { "not a .jamba file", F, HEAD, 0, { { HEAD, 7, 1, '\r' } }, 0, PLAIN },
    { "file format 2, but this is 1", U, HEAD, 8, { { HEAD, 8, 4, 2 } }, 0, PLAIN },
    { "file format 0, but this is 1", U, HEAD, 8, { { HEAD, 8, 4, 0x10000 } }, 0, PLAIN },
    { "the file needs a newer jamba.h (features 2147483648)", U, HEAD, 12, { { HEAD, 12, 4, 1u << 31 } }, 0, PLAIN },
    WRONG("vocab is 0, outside 1 to 1048576", HEAD, 64, 0),
    WRONG("vocab is 1048577", HEAD, 64, (1u << 20) + 1),
    WRONG("hidden is 0, outside 1 to 65536", HEAD, 68, 0),
    WRONG("hidden is 65537", HEAD, 68, 65537),
    WRONG("context is 0, outside 1 to 16777216", HEAD, 72, 0),
    WRONG("context is 16777217", HEAD, 72, (1u << 24) + 1),
    WRONG("blocks is 0, outside 1 to 4096", HEAD, 76, 0),
    WRONG("blocks is 4097", HEAD, 76, 4097),
    WRONG("tensors is 0, outside 1 to 131072", HEAD, 80, 0),
    WRONG("tensors is 131073", HEAD, 80, (1u << 17) + 1),
    WRONG("head is 2, outside 0 to 1", HEAD, 84, 2),
    WRONG("eps is not a positive number", HEAD, 88, 0),
    WRONG("eps is not a positive number", HEAD, 88, BELOW),
    WRONG("eps is not a positive number", HEAD, 88, A_NAN),
    WRONG("eps is not a positive number", HEAD, 88, ENDLESS),
    WRONG("type is 5, outside 0 to 4", HEAD, 92, 5),
    WRONG("bos is token 20, outside the vocabulary", HEAD, 96, VOCAB),
    WRONG("pad is token 20, outside the vocabulary", HEAD, 100, VOCAB),
    WRONG("eos_count is 9, outside 0 to 8", HEAD, 104, 9),
    { "eos is 20, outside 0 to 19", F, HEAD, 136, { { HEAD, 104, 4, 8 }, { HEAD, 136, 4, VOCAB } }, 0, PLAIN },
    { "a byte that must be zero is not", F, HEAD, 143, { { HEAD, 143, 1, 1 } }, 0, PLAIN },
    { "a byte that must be zero is not", F, HEAD, 160, { { HEAD, 160, 1, 1 } }, 0, PLAIN },
    { "a byte that must be zero is not", F, HEAD, 255, { { HEAD, 255, 1, 1 } }, 0, PLAIN },
    { "bytes and should have", F, HEAD, 16, { { 0, 0, 0, 0 } }, 1, PLAIN },
    { "bytes and should have", F, HEAD, 16, { { 0, 0, 0, 0 } }, -1, PLAIN },
    { "and should have 18446744073709551615", F, HEAD, 16, { { HEAD, 16, 8, UINT64_MAX } }, 0, PLAIN },
    { "data at 63 does not follow the metadata", F, HEAD, 24, { { HEAD, 24, 8, 63 } }, 0, PLAIN },
    { "does not follow the metadata", F, HEAD, 24, { { HEAD, 144, 8, 500 } }, 0, PLAIN },
    { "does not follow the metadata", F, HEAD, 24, { { HEAD, 144, 8, UINT64_MAX } }, 0, PLAIN },
    { "does not follow the metadata", F, HEAD, 24, { { HEAD, 152, 8, UINT64_MAX } }, 0, PLAIN },
    { "does not follow the metadata", F, HEAD, 24, { { HEAD, 76, 4, 11 } }, 0, PLAIN },
    { "the metadata is damaged (its hash differs)", F, HEAD, 32, { { HEAD, 63, 1, 0 } }, 0, STALE },
    { "the metadata is damaged (its hash differs)", F, HEAD, 32, { { HEAD, 10, 2, 1 } }, 0, STALE },
};

static const row block_rows[] = {
    IN_BLOCK("block kind is 0, outside 1 to 6", ATTENTION, kind, 0),
    IN_BLOCK("block kind is 7, outside 1 to 6", ATTENTION, kind, 7),
    IN_BLOCK("unit is 1, outside 0 to 0", ATTENTION, unit, 1),
    IN_BLOCK("unknown flags 2 in block 0", ATTENTION, flags, JMB_CONV_BIAS),
    IN_BLOCK("unknown flags 2 in block 1", MLP, flags, JMB_CONV_BIAS),
    IN_BLOCK("unknown flags 8 in block 2", MAMBA, flags, JMB_ROPE),
    IN_BLOCK("unknown flags 4 in block 3", MAMBA2, flags, JMB_DT_NORM),
    IN_BLOCK("unknown flags 1 in block 4", MOE, flags, JMB_BIAS),
    IN_BLOCK("unknown flags 1 in block 6", LINEAR, flags, JMB_BIAS),
    IN_BLOCK("input is 4, outside 0 to 3", MLP, input, 4),
    IN_BLOCK("output is 2, outside 0 to 1", MLP, output, 2),
    IN_BLOCK("act is 0, outside 1 to 2", MLP, act, 0),
    IN_BLOCK("act is 3, outside 1 to 2", MLP, act, 3),
    IN_BLOCK("eps is not a positive number", MLP, eps, 0),
    IN_BLOCK("eps is not a positive number", MLP, eps, A_NAN),
    NOT_YET("adapters in a moe block", MOE, rank, 4, 0),
    NOT_YET("adapters in a mamba block", MAMBA, rank, 4, 0),
    NOT_YET("adapters in a mamba2 block", MAMBA2, rank, 4, 0),
    NOT_YET("adapters in a linear block", LINEAR, rank, 4, 0),
    IN_BLOCK("rank is 65537, outside 1 to 65536", LAST, rank, 65537),
    BLOCKED("block 9 has the tensors of block 0, but differs", LAST, unit, 0),
    BLOCKED("block 9 has the tensors of block 8, but differs", LAST, unit, SHARER),
    BLOCKED("block 8 has the tensors of block 1, but differs", SHARER, intermediate, 20),
    BLOCKED("block 8 has the tensors of block 1, but differs", SHARER, flags, JMB_BIAS),
    IN_BLOCK("heads is 0, outside 1 to 1024", ATTENTION, heads, 0),
    IN_BLOCK("heads is 1025", ATTENTION, heads, 1025),
    IN_BLOCK("kv_heads is 0, outside 1 to 2", ATTENTION, kv_heads, 0),
    IN_BLOCK("kv_heads is 3, outside 1 to 2", ATTENTION, kv_heads, 3),
    IN_BLOCK("head_dim is 0, outside 1 to 1024", ATTENTION, head_dim, 0),
    IN_BLOCK("head_dim is 1025", ATTENTION, head_dim, 1025),
    { "3 heads do not share 2 kv_heads evenly", F, BLOCK(ATTENTION), 0,
        { { BLOCK(ATTENTION), B(heads), 4, 3 }, { BLOCK(ATTENTION), B(kv_heads), 4, 2 } }, 0, PLAIN },
    BLOCKED("head_dim 7 is odd, rope needs pairs", ATTENTION, head_dim, 7),
    IN_BLOCK("scale is not a positive number", ATTENTION, scale, 0),
    IN_BLOCK("scale is not a positive number", ATTENTION, scale, ENDLESS),
    IN_BLOCK("d_inner is 0, outside 1 to 131072", MAMBA, d_inner, 0),
    IN_BLOCK("d_inner is 131073", MAMBA, d_inner, (1u << 17) + 1),
    IN_BLOCK("d_state is 0, outside 1 to 1024", MAMBA, d_state, 0),
    IN_BLOCK("d_state is 1025", MAMBA, d_state, 1025),
    IN_BLOCK("d_conv is 0, outside 1 to 16", MAMBA, d_conv, 0),
    IN_BLOCK("d_conv is 17", MAMBA, d_conv, 17),
    IN_BLOCK("heads is 0, outside 1 to 32", MAMBA, heads, 0),
    IN_BLOCK("heads is 33, outside 1 to 32", MAMBA, heads, 33),
    IN_BLOCK("heads is 1025, outside 1 to 1024", MAMBA2, heads, 1025),
    IN_BLOCK("inner_eps is not a positive number", MAMBA, inner_eps, 0),
    BLOCKED("d_inner 19 is not a multiple of 2 heads", MAMBA, d_inner, 19),
    NOT_YET("norms on dt, B and C of several heads", MAMBA, flags, JMB_DT_NORM, 0),
    IN_BLOCK("dt_rank is 0, outside 1 to 65536", MAMBA, dt_rank, 0),
    IN_BLOCK("dt_rank is 65537", MAMBA, dt_rank, 65537),
    IN_BLOCK("n_groups is 0, outside 1 to 2", MAMBA2, n_groups, 0),
    IN_BLOCK("n_groups is 3, outside 1 to 2", MAMBA2, n_groups, 3),
    { "3 heads do not share 2 groups evenly", F, BLOCK(MAMBA2), 0,
        { { BLOCK(MAMBA2), B(heads), 4, 3 }, { BLOCK(MAMBA2), B(n_groups), 4, 2 } }, 0, PLAIN },
    BLOCKED("dt_min and dt_max are not a range", MAMBA2, dt_min, BELOW),
    BLOCKED("dt_min and dt_max are not a range", MAMBA2, dt_min, ENDLESS),
    BLOCKED("dt_min and dt_max are not a range", MAMBA2, dt_min, A_NAN),
    BLOCKED("dt_min and dt_max are not a range", MAMBA2, dt_max, A_NAN),
    BLOCKED("dt_min and dt_max are not a range", MAMBA2, dt_max, ENDLESS + 1),
    { "dt_min and dt_max are not a range", F, BLOCK(MAMBA2), 0,
        { { BLOCK(MAMBA2), B(dt_min), 4, ONE }, { BLOCK(MAMBA2), B(dt_max), 4, 0 } }, 0, PLAIN },
    IN_BLOCK("intermediate is 0, outside 1 to 131072", MLP, intermediate, 0),
    IN_BLOCK("intermediate is 131073", MLP, intermediate, (1u << 17) + 1),
    IN_BLOCK("intermediate is 0, outside 1 to 131072", MOE, intermediate, 0),
    IN_BLOCK("experts is 0, outside 1 to 1024", MOE, experts, 0),
    IN_BLOCK("experts is 1025", MOE, experts, 1025),
    NOT_YET("a moe block must add to stream x", MOE, output, JMB_SET_A, B(output)),
    IN_BLOCK("top_k is 0, outside 1 to 2", MOE, top_k, 0),
    IN_BLOCK("top_k is 3, outside 1 to 2", MOE, top_k, 3),
    NOT_YET("a linear block must read and write stream a", LINEAR, input, JMB_FROM_X, B(input)),
    NOT_YET("a linear block must read and write stream a", LINEAR, output, JMB_ADD_TO_X, B(input)),
    { "a byte that must be zero is not", F, BLOCK(LAST), 127, { { BLOCK(LAST), 127, 1, 1 } }, 0, PLAIN },
    { "a byte that must be zero is not", F, BLOCK(0), 4 * JMB_AT_END,
        { { BLOCK(0), 4 * JMB_AT_END, 1, 1 } }, 0, PLAIN },
    IN_BLOCK("block 0 reads stream a before any block sets it", ATTENTION, input, JMB_FROM_A),
    IN_BLOCK("block 4 reads stream a before any block sets it", MOE, input, JMB_FROM_X_PLUS_A),
    { "block 6 reads stream a before any block sets it", F, BLOCK(LINEAR), B(input),
        { { BLOCK(SETTER), B(output), 4, JMB_ADD_TO_X } }, 0, PLAIN },
};

static const row text_rows[] = {
    { "a string is damaged", F, STRINGS, 0, { { STRINGS, 0, 4, 200 } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 0, { { STRINGS, 4, 4, UINT32_MAX } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 0, { { STRINGS, 12, 1, 0x1b } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 0, { { STRINGS, 8, 1, 0x7f } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 0, { { STRINGS, 81, 1, 0x1b } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 82, { { STRINGS, 93, 1, 0 } }, 0, PLAIN },
    { "a string is damaged", F, STRINGS, 98, { { HEAD, 144, 8, 105 } }, 0, PLAIN },
    { "string name stands there twice", F, STRINGS, 82,
        { { STRINGS, 82, 4, 4 }, { STRINGS, 86, 4, 4 }, { STRINGS, 90, 4, 0x656d616e } }, 0, PLAIN },
    { "a byte that must be zero is not", F, STRINGS, 98, { { STRINGS, 98, 1, 1 } }, 0, PLAIN },
    { "tokenizer kind 2 is not supported", U, SECTION, 0, { { SECTION, 0, 4, 2 } }, 0, PLAIN },
    { "unk is 255, outside 0 to 14", F, SECTION, 24, { { SECTION, 24, 1, 255 } }, 0, PLAIN },
    { "a byte that must be zero is not", F, DATA, -1, { { DATA, -1, 1, 1 } }, 0, PLAIN },
};

/* Rows about tensors, whose entries are looked up. */
static size_t directory_rows(row *rows)
{
    const uint32_t q = ENTRY(entry_of(ATTENTION, JMB_ROLE_Q, 0)), norm = ENTRY(entry_of(MLP, JMB_ROLE_NORM, 0));
    const uint32_t expert = ENTRY(entry_of(MOE, JMB_ROLE_GATE_UP, 1)), down = ENTRY(entry_of(MOE, JMB_ROLE_DOWN, 1));
    const uint32_t low = ENTRY(entry_of(LAST, JMB_ROLE_GATE_UP_B, 0)), embed = ENTRY(0);
    const uint32_t number = model_header.tensors, last = ENTRY(number - 1);
    const uint32_t q_at = q - FIRST_ENTRY;
    static char moved[64];
    row all[] = {
        { "its program needs", F, HEAD, 80,
            { { HEAD, 80, 4, number - 1 }, { HEAD, 144, 8, 98 + 64 } }, 0, PLAIN },
        { "its program needs", F, HEAD, 80,
            { { HEAD, 80, 4, number + 1 }, { HEAD, 144, 8, 98 - 64 } }, 0, PLAIN },
        { "its program needs", F, HEAD, 80, { { HEAD, 84, 4, 1 } }, 0, PLAIN },
        { "tensor 0.q is missing or out of order", F, q, 0, { { q, 0, 2, JMB_ROLE_K } }, 0, PLAIN },
        { "tensor 0.q is missing or out of order", F, q, 0, { { q, 2, 2, 5 } }, 0, PLAIN },
        { "tensor 0.q is missing or out of order", F, q, 0, { { q, 4, 2, 1 } }, 0, PLAIN },
        { "tensor 0.q is 11 x 20 and should be 12 x 20", F, q, 8, { { q, 8, 4, 11 } }, 0, PLAIN },
        { "tensor 0.q is 12 x 21 and should be 12 x 20", F, q, 8, { { q, 12, 4, 21 } }, 0, PLAIN },
        { "tensor 0.q has type 5, which it cannot have", F, q, 6, { { q, 6, 2, 5 } }, 0, PLAIN },
        { "tensor 1.norm has type 1, which it cannot have", F, norm, 6, { { norm, 6, 2, JMB_F16 } }, 0, PLAIN },
        { "tensor embed has type 4, which it cannot have", F, embed, 6, { { embed, 6, 2, JMB_Q4 } }, 0, PLAIN },
        { "tensor 9.gate_up_b has type 3, which it cannot have", F, low, 6, { { low, 6, 2, JMB_Q8 } }, 0, PLAIN },
        { "experts of one block differ in type", F, expert, 6, { { expert, 6, 2, JMB_F16 } }, 0, PLAIN },
        { "experts of one block differ in type", F, down, 6, { { down, 6, 2, JMB_BF16 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, q, 40, { { q, 40, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, last, 63, { { last, 63, 1, 1 } }, 0, PLAIN },
        { "tensor 0 is not where it should be", F, embed, 16, { { embed, 16, 8, 0 } }, 0, PLAIN },
        { moved, F, q, 16, { { q, 24, 8, 1 } }, 0, PLAIN },
        { moved, F, q, 16, { { q, 16, 8, UINT64_MAX } }, 0, PLAIN },
        { "the tensors end at", F, HEAD, 16, { { HEAD, 16, 8, model_file.size + 64 } }, 64, PLAIN },
        { "the tensors end at", F, HEAD, 16, { { HEAD, 16, 8, model_file.size - 64 } }, -64, PLAIN },
        { "tensor embed is damaged (its hash differs)", F, DATA, 0, { { embed, 32, 1, 0 } }, 0, VERIFY },
    };
    snprintf(moved, sizeof moved, "tensor %u is not where it should be", (unsigned)q_at);
    memcpy(rows, all, sizeof all);
    return COUNT(all);
}

/* More strings than there may be: empty keys of 0, 1, 2 ... blanks would be the same, so each is a number. */
static void test_many_strings(void)
{
    enum { MANY = JMB_MAX_STRINGS + 1, EACH = 8 + 4 };
    program p = start_program(VOCAB, 8, JMB_F32);
    uint8_t *strings = (uint8_t *)calloc(MANY, EACH);
    jamba_error error;
    image file;
    uint32_t i;
    add_block(&p, JMB_MLP);
    for (i = 0; i < MANY; i++) {
        char key[8];
        snprintf(key, sizeof key, "%04x", (unsigned)i);
        STORE_u32(strings + i * EACH, 4);
        memcpy(strings + i * EACH + 8, key, 4);
    }
    p.strings = strings;
    p.header.strings_size = MANY * EACH;
    file = write_image(&p);
    CHECK(model_load(&file, PLAIN, &error) == F && strcmp(error.message, "a string is damaged") == 0);
    CHECK(error.offset == jmb_place_parts(&p.header).strings + (uint64_t)JMB_MAX_STRINGS * EACH);
    image_free(&file);
    p.header.strings_size -= EACH;
    file = write_image(&p);
    CHECK_THAT(model_load(&file, PLAIN, &error) == JAMBA_OK, "%s", error.message);
    image_free(&file);
    free(strings);
}

/* A mapped file may change between two looks at its header: what was copied is then shorter than it says. */
static void test_cut_metadata(void)
{
    jmb_heap heap = { jmb_allocator_or_default(NULL), NULL, 0 };
    jmb_metadata m;
    jamba_error error;
    memset(&m, 0, sizeof m);
    CHECK(jmb_parse_metadata(&m, &heap, model_file.data, JMB_HEADER_BYTES, model_file.size, &error) == F);
    CHECK_THAT(strcmp(error.message, "the metadata is cut off") == 0 && error.offset == 24, "%s", error.message);
    rules_note(error.message);
    jmb_heap_free(&heap);
}

/* Blocks that all use one block's tensors, each a small part of the file and a large one of the plan. */
static void test_many_operations(void)
{
    jamba_model model;
    jamba_error error;
    program p = start_program(VOCAB, 64, JMB_F32);
    jmb_block *b = add_block(&p, JMB_MAMBA), *blocks;
    image file;
    uint32_t i;
    b->heads = JMB_MAX_MAMBA_HEADS;
    b->d_inner = 64;
    file = write_image(&p);
    memset(&model, 0, sizeof model);
    model.heap.allocator = jmb_allocator_or_default(NULL);
    model.data = file.data;
    test_require(jmb_parse_metadata(&model.metadata, &model.heap, file.data, file.size, file.size, &error) == JAMBA_OK,
        "no metadata", error.message);
    blocks = (jmb_block *)jmb_heap_take(&model.heap, JMB_MAX_BLOCKS, sizeof *blocks);
    test_require(blocks != NULL, "out of memory", "blocks");
    for (i = 0; i < JMB_MAX_BLOCKS; i++) blocks[i] = model.metadata.blocks[0];
    model.metadata.blocks = blocks;
    model.metadata.header.blocks = JMB_MAX_BLOCKS;
    CHECK(jmb_load_plan(&model, &error) == F && error.offset == JMB_HEADER_BYTES);
    CHECK_THAT(strstr(error.message, " operations, more than 65536") != NULL, "%s", error.message);
    rules_note(error.message);
    model.metadata.header.blocks = JMB_MAX_OPERATIONS / JMB_MAX_MAMBA_HEADS / 8;
    CHECK_THAT(jmb_load_plan(&model, &error) == JAMBA_OK, "%s", error.message);
    jmb_heap_free(&model.heap);
    image_free(&file);
}

/* ---- an adapter ---------------------------------------------------------------------------------------- */

static jamba_model *base;
static image adapter_image;
static jamba_adapter *adapter;

/* Three matrices: of the attention's q, and of two experts. */
static bool want_three(const plan_entry *e, const jamba_model *model)
{
    (void)model;
    return e->key.block == ATTENTION ? e->key.role == JMB_ROLE_Q
                                     : e->key.block == MOE && e->key.role == JMB_ROLE_DOWN;
}

static void make_adapter_file(void)
{
    static plan_entry entries[ENTRIES_MAX];
    size_t count = list_entries(base, entries, want_three);
    test_require(count == 3, "the adapter has other matrices", "malformed.c");
    adapter_image = make_adapter(base, entries, count, JMB_F32, 1);
    adapter = load_adapter(base, &adapter_image);
    test_require(adapter != NULL, "no adapter", "malformed.c");
}

static uint64_t adapter_place(uint32_t part)
{
    if (part >= FIRST_ENTRY) return JMB_ADAPTER_BYTES + (uint64_t)(part - FIRST_ENTRY) * JMB_ADAPTER_ENTRY;
    return part == END ? adapter_image.size : 0;
}

static void adapter_repair(uint8_t *data, size_t size)
{
    image file = { data, size };
    if (size >= JMB_ADAPTER_BYTES && size % 8 == 0) seal(&file);
}

static jamba_result adapter_load(const image *file, need how, jamba_error *error)
{
    jamba_adapter *loaded = NULL;
    jamba_result result = jamba_adapter_load(&loaded, base, jamba_from_memory(file->data, file->size), error);
    (void)how;
    CHECK((result == JAMBA_OK) == (loaded != NULL));
    jamba_adapter_free(loaded);
    return result;
}

static size_t adapter_rows(row *rows)
{
    const uint32_t size = (uint32_t)adapter_image.size, b_at = (uint32_t)jmb_load_u64(adapter_image.data + 128 + 40);
    row all[] = {
        { "not an adapter for jamba.h", F, HEAD, 0, { { HEAD, 3, 1, 'B' } }, 0, PLAIN },
        { "not an adapter for jamba.h", F, HEAD, 0, { { HEAD, 7, 1, '\r' } }, CUT_TO(8), PLAIN },
        { "too short for an adapter (127 bytes)", F, HEAD, 127, { { 0, 0, 0, 0 } }, CUT_TO(127), PLAIN },
        { "too short for an adapter (7 bytes)", F, HEAD, 7, { { 0, 0, 0, 0 } }, CUT_TO(7), PLAIN },
        { "the adapter has format 2, this jamba.h reads format 1", U, HEAD, 8, { { HEAD, 8, 4, 2 } }, 0, PLAIN },
        { "the adapter has format 65537", U, HEAD, 8, { { HEAD, 8, 4, 0x10001 } }, 0, PLAIN },
        { "bytes and should have", F, HEAD, 16, { { HEAD, 16, 8, size + 8 } }, 0, PLAIN },
        { "bytes and should have", F, HEAD, 16, { { HEAD, 16, 8, size + 4 } }, 4, PLAIN },
        { "made for another model", JAMBA_ERR_MISMATCH, HEAD, 32, { { HEAD, 40, 8, 0 } }, 0, PLAIN },
        { "the adapter has 0 matrices", F, HEAD, 12, { { HEAD, 12, 4, 0 } }, 0, PLAIN },
        { "the adapter has 4294967295 matrices", F, HEAD, 12, { { HEAD, 12, 4, UINT32_MAX } }, 0, PLAIN },
        { "a byte that must be zero is not", F, HEAD, 64, { { HEAD, 64, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, HEAD, 127, { { HEAD, 127, 1, 1 } }, 0, PLAIN },
        { "too short for its 3 matrices", F, HEAD, 12, { { HEAD, 16, 8, 312 } }, CUT_TO(312), PLAIN },
        { "matrix 0 of the adapter has role 4096", F, ENTRY(0), 0, { { ENTRY(0), 4, 4, 4096 } }, 0, PLAIN },
        { "matrix 0 of the adapter has role", F, ENTRY(0), 0, { { ENTRY(0), 4, 4, JMB_ROLE_COUNT } }, 0, PLAIN },
        { "type 3 and rank", F, ENTRY(0), 0, { { ENTRY(0), 16, 4, JMB_Q8 } }, 0, PLAIN },
        { "and rank 0", F, ENTRY(0), 0, { { ENTRY(0), 12, 4, 0 } }, 0, PLAIN },
        { "and rank 1025", F, ENTRY(0), 0, { { ENTRY(0), 12, 4, 1025 } }, 0, PLAIN },
        { "matrix 1 of the adapter is out of order", F, ENTRY(1), 0, { { ENTRY(0), 0, 4, LAST } }, 0, PLAIN },
        { "matrix 2 of the adapter is out of order", F, ENTRY(2), 0, { { ENTRY(2), 8, 4, 0 } }, 0, PLAIN },
        { "matrix 0 of the adapter lies elsewhere", F, ENTRY(0), 32, { { ENTRY(0), 32, 8, 0 } }, 0, PLAIN },
        { "matrix 0 of the adapter lies elsewhere", F, ENTRY(0), 32, { { ENTRY(0), 40, 8, b_at + 64 } }, 0, PLAIN },
        { "matrix 2 of the adapter lies elsewhere", F, ENTRY(2), 32, { { HEAD, 16, 8, size - 64 } }, -64, PLAIN },
        { "matrix 0 of the adapter lies elsewhere", F, ENTRY(0), 32, { { ENTRY(0), 24, 4, UINT32_MAX } }, 0, PLAIN },
        { "a byte that must be zero is not", F, ENTRY(0), 28, { { ENTRY(0), 28, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, ENTRY(1), 31, { { ENTRY(1), 31, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, ENTRY(1), 48, { { ENTRY(1), 48, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, ENTRY(2), 63, { { ENTRY(2), 63, 1, 1 } }, 0, PLAIN },
        { "the adapter has 64 bytes after its matrices", F, END, 0, { { HEAD, 16, 8, size + 64 } }, 64, PLAIN },
        { "the adapter's matrix for 0.q has other dimensions", F, ENTRY(0), 20, { { ENTRY(0), 20, 4, 11 } }, 0, PLAIN },
        { "1 of the adapter's 3 matrices are none of the model's", F, HEAD, 128, { { ENTRY(2), 8, 4, 9 } }, 0, PLAIN },
        { "1 of the adapter's 3 matrices are none of the model's", F, HEAD, 128,
            { { ENTRY(2), 0, 4, UINT32_MAX } }, 0, PLAIN },
        { "the adapter is damaged (its hash differs)", F, HEAD, 24, { { HEAD, 24, 1, 0 } }, 0, STALE },
        { "the adapter is damaged (its hash differs)", F, HEAD, 24, { { END, -1, 1, 0x55 } }, 0, STALE },
    };
    memcpy(rows, all, sizeof all);
    return COUNT(all);
}

/* ---- a saved state ------------------------------------------------------------------------------------- */

enum { FED = 24, CONTEXT = 40 };

static image state_image;
static uint64_t state_at[END + 1];

/* A reply whose text is held back: what it begins with is the beginning of a stop string. */
static void hold_reply(jamba_session *session)
{
    jamba_reply_params params;
    const char *text, *stop;
    char piece[JAMBA_STOP_MAX + 1];
    size_t length = 0;
    int i;
    memset(&params, 0, sizeof params);
    for (i = 0; length == 0 && i < 8; i++) CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_OK);
    test_require(length > 0 && length < 40, "the reply has no text", "malformed.c");
    snprintf(piece, sizeof piece, "%.*sabc", (int)length, text);
    stop = piece;
    params.stops = &stop;
    params.stop_count = 1;
    CHECK(jamba_session_rewind(session, FED, NULL) == JAMBA_OK && jamba_step(session, 0) == JAMBA_OK);
    params.budget_us = 500;
    for (i = 0; session->reply.size == session->reply.given && i < 8; i++)
        CHECK(jamba_reply(session, &params, &text, &length) == JAMBA_PENDING && length == 0);
    test_require(session->reply.size > session->reply.given, "no text is held back", "malformed.c");
}

/* A clock that goes on with each token fed to the session. */
static jamba_session *clocked;

static uint64_t clock_of_tokens(void *user)
{
    (void)user;
    return clocked ? (uint64_t)clocked->fed * 1000 : 0;
}

static jamba_session *state_session(need how)
{
    jamba_session_params params;
    jamba_session *session;
    memset(&params, 0, sizeof params);
    params.context = how == SMALL ? FED / 2 : CONTEXT;
    params.marks = 2;
    params.threads = 1;
    params.kv_type = JAMBA_KV_F32;
    params.now_us = clock_of_tokens;
    session = open_session(base, &params);
    if (how != BARE) CHECK(jamba_session_set_adapters(session, &adapter, NULL, 1) == JAMBA_OK);
    return session;
}

/* Tokens, two marks, an adapter, a message, a reply that has begun; the first two tokens are left out by hand. */
static void make_state(void)
{
    jamba_session *session = state_session(PLAIN);
    jamba_save_params params;
    int32_t tokens[FED];
    jmb_saved h;
    jmb_walk w;
    size_t i;
    for (i = 0; i < FED; i++) tokens[i] = (int32_t)(2 + i % 5);
    memset(&params, 0, sizeof params);
    params.marks = true;
    CHECK(jamba_eval(session, tokens, 4) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens + 4, 4) == JAMBA_OK && jamba_session_mark(session) == JAMBA_OK);
    CHECK(jamba_eval(session, tokens + 8, FED - 8) == JAMBA_OK);
    clocked = session;
    hold_reply(session);
    clocked = NULL;
    jmb_set_turn(session, 3, JMB_TURN_SAID); /* a message too, in front of the reply */
    state_image.size = jamba_session_save_as(session, &params, NULL, 0);
    state_image.data = (uint8_t *)malloc(state_image.size);
    CHECK(jamba_session_save_as(session, &params, state_image.data, state_image.size) == state_image.size);
    test_require(jmb_read_saved(&h, state_image.data, state_image.size, NULL) == JAMBA_OK, "no state", "malformed.c");
    state_at[IDS] = JMB_SAVED_BYTES;
    state_at[MARKS] = state_at[IDS] + 4 * (uint64_t)jmb_saved_tokens(&h);
    state_at[TURNS] = state_at[MARKS] + 4 * (uint64_t)h.marks;
    state_at[REPLY] = state_at[TURNS] + 8 * (uint64_t)h.turns;
    w = jmb_walk_of(session, &h, NULL, false);
    jmb_walk_all(&w);
    state_at[END] = w.at;
    CHECK(h.marks == 2 && h.turns == 2 && h.text == 3);
    jamba_session_free(session);
}

static uint64_t state_place(uint32_t part)
{
    return state_at[part];
}

static void state_repair(uint8_t *data, size_t size)
{
    if (size >= JMB_SAVED_BYTES && size % 8 == 0) jmb_store_u64(data + 24, jmb_saved_hash(data, size));
}

static jamba_result state_load(const image *file, need how, jamba_error *error)
{
    jamba_session *session = state_session(how), *fork = NULL;
    jamba_result result;
    if (how == CROWDED) {
        static int32_t tokens[CONTEXT];
        CHECK(jamba_eval(session, tokens, CONTEXT) == JAMBA_OK);
        CHECK(jamba_session_fork(&fork, session, 0, NULL) == JAMBA_OK);
    }
    result = jamba_session_restore(session, file->data, file->size);
    *error = *jamba_session_error(session);
    jamba_session_free(fork);
    jamba_session_free(session);
    return result;
}

/* As many bytes of a character as a reply may hold back come back. */
static void test_held_bytes(void)
{
    jamba_session *session = state_session(PLAIN);
    image file = state_image;
    file.data = (uint8_t *)malloc(file.size);
    memcpy(file.data, state_image.data, file.size);
    jmb_store_u32(file.data + state_at[REPLY], 3);
    state_repair(file.data, file.size);
    CHECK(jamba_session_restore(session, file.data, file.size) == JAMBA_OK);
    CHECK(session->reply.stream.held_count == 3);
    jamba_session_free(session);
    free(file.data);
}

#define M JAMBA_ERR_MISMATCH

static size_t state_rows(row *rows)
{
    const uint32_t size = (uint32_t)state_image.size, turn = jmb_load_u32(state_image.data + state_at[TURNS]);
    row all[] = {
        { "not a saved state", F, HEAD, 0, { { HEAD, 3, 1, 'B' } }, 0, PLAIN },
        { "not a saved state", F, HEAD, 0, { { HEAD, 7, 1, '\r' } }, 0, PLAIN },
        { "not a saved state", F, HEAD, 0, { { HEAD, 3, 1, 'B' } }, CUT_TO(8), PLAIN },
        { "too short for a saved state (319 bytes)", F, HEAD, 319, { { 0, 0, 0, 0 } }, CUT_TO(319), PLAIN },
        { "too short for a saved state (7 bytes)", F, HEAD, 7, { { 0, 0, 0, 0 } }, CUT_TO(7), PLAIN },
        { "the state was saved in format 2, this jamba.h reads format 1", U, HEAD, 8, { { HEAD, 8, 4, 2 } }, 0, PLAIN },
        { "the saved state has unknown flags 4", F, HEAD, 12, { { HEAD, 12, 4, 4 } }, 0, PLAIN },
        { "bytes and should have", F, HEAD, 16, { { HEAD, 16, 8, size + 8 } }, 0, PLAIN },
        { "bytes and should have", F, HEAD, 16, { { HEAD, 16, 8, size + 4 } }, 4, PLAIN },
        { "numbers of unknown form", F, HEAD, 80, { { HEAD, 80, 4, 3 } }, 0, PLAIN },
        { "numbers of unknown form", F, HEAD, 80, { { HEAD, 84, 4, 3 } }, 0, PLAIN },
        { "tokens, 65535 of them unknown", F, HEAD, 64, { { HEAD, 72, 4, 65535 } }, 0, PLAIN },
        { "the saved state has 16777217 and", F, HEAD, 64, { { HEAD, 64, 4, (1u << 24) + 1 } }, 0, PLAIN },
        { "and 4294967295 tokens", F, HEAD, 64, { { HEAD, 68, 4, UINT32_MAX } }, 0, PLAIN },
        { "too many marks: 100", F, HEAD, 76, { { HEAD, 76, 4, 100 } }, 0, PLAIN },
        { "too many marks: 65537", F, HEAD, 76, { { HEAD, 76, 4, 65537 }, { HEAD, 64, 4, 70000 } }, 0, PLAIN },
        { "a reply or turns that are too long", F, HEAD, 88, { { HEAD, 88, 4, JAMBA_STOP_MAX + 1 } }, 0, PLAIN },
        { "a reply or turns that are too long", F, HEAD, 88, { { HEAD, 92, 4, CONTEXT } }, 0, PLAIN },
        { "a reply or turns that are too long", F, HEAD, 88, { { HEAD, 92, 4, FED + 3 } }, 0, PLAIN },
        { "its content needs", F, HEAD, 16, { { HEAD, 92, 4, FED + 2 } }, 0, PLAIN }, /* one at each place */
        { "a byte that must be zero is not", F, HEAD, 140, { { HEAD, 140, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, HEAD, 255, { { HEAD, 255, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, HEAD, 260, { { HEAD, 260, 1, 1 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, HEAD, 319, { { HEAD, 319, 1, 1 } }, 0, PLAIN },
        { "the saved state is damaged (its hash differs)", F, HEAD, 24, { { HEAD, 24, 1, 0 } }, 0, STALE },
        { "the saved state is damaged (its hash differs)", F, HEAD, 24, { { IDS, 0, 1, 9 } }, 0, STALE },
        { "saved with another model or other weights", M, HEAD, 32, { { HEAD, 63, 1, 0x5a } }, 0, PLAIN },
        { "saved with other LoRA adapters or scales", M, HEAD, 128, { { HEAD, 128, 8, 1 } }, 0, PLAIN },
        { "saved with other LoRA adapters or scales", M, HEAD, 128, { { HEAD, 136, 4, 0x3f000000 } }, 0, PLAIN },
        { "saved with other LoRA adapters or scales", M, HEAD, 128, { { HEAD, 144, 8, 1 } }, 0, PLAIN },
        { "saved with other LoRA adapters or scales", M, HEAD, 128, { { 0, 0, 0, 0 } }, 0, BARE },
        { "bytes, its content needs", F, HEAD, 16, { { HEAD, 64, 4, 32 } }, 0, PLAIN },
        { "bytes, its content needs", F, HEAD, 16, { { HEAD, 16, 8, size + 8 } }, 8, PLAIN },
        { "the session's context only 12", JAMBA_ERR_CONTEXT, HEAD, 64, { { 0, 0, 0, 0 } }, 0, SMALL },
        { "forks hold pages of this session", JAMBA_ERR_CONTEXT, HEAD, 64, { { 0, 0, 0, 0 } }, 0, CROWDED },
        { "a token of the saved state is outside the vocabulary", F, IDS, 4, { { IDS, 4, 4, VOCAB } }, 0, PLAIN },
        { "mark 0 of the saved state is out of order", F, MARKS, 0, { { MARKS, 0, 4, 0 } }, 0, PLAIN },
        { "mark 1 of the saved state is out of order", F, MARKS, 4, { { MARKS, 4, 4, 4 } }, 0, PLAIN },
        { "mark 1 of the saved state is out of order", F, MARKS, 4, { { MARKS, 4, 4, CONTEXT } }, 0, PLAIN },
        { "turn 0 of the saved state is out of order", F, TURNS, 0, { { TURNS, 0, 4, CONTEXT } }, 0, PLAIN },
        { "turn 0 of the saved state is out of order", F, TURNS, 0, { { TURNS, 4, 4, 0 } }, 0, PLAIN },
        { "turn 0 of the saved state is out of order", F, TURNS, 0,
            { { TURNS, 4, 4, 2 * JMB_TURN_PROPER } }, 0, PLAIN },
        { "turn 1 of the saved state is out of order", F, TURNS, 8, { { TURNS, 8, 4, 3 } }, 0, PLAIN },
        { "the reply of the saved state is no text", F, REPLY, 0, { { REPLY, 0, 4, 4 } }, 0, PLAIN },
        { "the reply of the saved state is no text", F, REPLY, 0, { { REPLY, 4, 4, 2 } }, 0, PLAIN },
        { "the reply of the saved state is no text", F, REPLY, 0, { { REPLY, 12, 1, 0xff } }, 0, PLAIN },
        { "the reply of the saved state is no text", F, REPLY, 0,
            { { REPLY, 12, 1, 'a' }, { REPLY, 13, 1, 0xc3 } }, 0, PLAIN },
        { "the reply of the saved state is no text", F, REPLY, 0,
            { { REPLY, 12, 1, 'a' }, { REPLY, 13, 2, 0xa9c3 } }, 0, PLAIN },
        { "a byte that must be zero is not", F, END, 0, { { END, 0, 1, 1 } }, 0, PLAIN },
    };
    CHECK(turn <= CONTEXT && state_at[END] < size);
    memcpy(rows, all, sizeof all);
    return COUNT(all);
}

/* ---- every message ------------------------------------------------------------------------------------- */

/* What refuses in jamba.h. */
static const rules_call library_calls[] = {
    { "jmb_fail", "", "" },
    { "jmb_bad_section", "tokenizer: ", " %u" },
    { "jmb_check_range", "", " is %u, outside %u to %u" },
    { "jmb_check_positive", "", " is not a positive number" },
    { "jmb_check_token", "", " is token %u, outside the vocabulary" },
};

static const rules_excuse library_excuses[] = {
    { "out of memory", "faults.c fails every allocation" },
    { "could not be read", "faults.c fails every read" },
    { "cannot open", "damage.c opens files that are none" },
    { "stopped by the progress callback", "damage.c stops every load" },
    { "a source needs one of", "api.c: no file is wrong" },
    { "instruction set asked for", "no file is wrong" },
    { "need a little-endian CPU", "big-endian machines" },
    { "computes in more than single precision", "32-bit x86 without SSE2" },
    { NULL, NULL },
};

static void test_messages(void)
{
    static const char *const parts[][2] = { { " * >>format", " * >>tokenizer" },
        { "/* The section while it is read. */", " * >>chat" }, { " * >>model", " * >>session" },
        { "/* ---- reading -----------------------------------------------------------------"
          "-------------- */\n\nstatic jamba_result jmb_check_saved", " * >>sampler" } };
    size_t i, count = 0;
    for (i = 0; i < COUNT(parts); i++)
        count += rules_check(
            "jamba.h", parts[i][0], parts[i][1], library_calls, COUNT(library_calls), library_excuses);
    CHECK_THAT(count > 120, "only %zu calls that refuse were found", count);
    printf("malformed: %zu rows, %zu calls that refuse in jamba.h\n", rows_checked, count);
}

int main(int argc, char **argv)
{
    static row rows[128];
    format section = { "a tokenizer", { NULL, 0 }, section_place, no_repair, section_load };
    format model = { "a model", { NULL, 0 }, model_place, model_repair, model_load };
    format lora = { "an adapter", { NULL, 0 }, adapter_place, adapter_repair, adapter_load };
    format state = { "a state", { NULL, 0 }, state_place, state_repair, state_load };
    test_start(argc, argv);
    if (!test_begin("one rule, one row")) return test_summary();
    make_section();
    section.good.data = section_bytes;
    section.good.size = section_size;
    check_rows(&section, section_rows, COUNT(section_rows));
    test_much_text();
    test_raw_texts();
    test_growth();
    test_flag_padding();
    test_colliding_texts();
    test_colliding_merges();
    make_model();
    model.good = model_file;
    check_rows(&model, header_rows, COUNT(header_rows));
    check_rows(&model, block_rows, COUNT(block_rows));
    check_rows(&model, text_rows, COUNT(text_rows));
    check_rows(&model, rows, directory_rows(rows));
    test_many_strings();
    test_cut_metadata();
    test_many_operations();
    base = load_image(&model_file, JAMBA_CPU_BEST);
    test_require(base != NULL, "the model does not load", "malformed.c");
    make_adapter_file();
    lora.good = adapter_image;
    check_rows(&lora, rows, adapter_rows(rows));
    make_state();
    state.good = state_image;
    check_rows(&state, rows, state_rows(rows));
    test_held_bytes();
    test_messages();
    test_end();
    free(state_image.data);
    jamba_adapter_free(adapter);
    free(adapter_image.data);
    jamba_model_free(base);
    image_free(&model_file);
    return test_summary();
}
