/* unit_unicode.c - the Unicode tables of jamba.h against the Unicode Consortium's files.
 *
 * Reads the folder that JAMBA_UNICODE names, or /usr/share/unicode (Debian's package unicode-data). What a
 * file does not know, because it is of another version, is counted in the name of the test and not compared.
 */
#include "support.h"

#include "tools/tool.h"

enum { CODES = 0x110000, HEADER_VERSION = 1600 };

typedef struct record {
    bool known;           /* listed, and no younger than the header's tables */
    char category[3];
    uint8_t combining;
    uint32_t parts[2];    /* one step of canonical decomposition; 0: none */
    bool space, excluded; /* White_Space; Full_Composition_Exclusion */
} record;

static record *records;
static uint16_t *ages; /* Unicode 5.2 is 502 */

/* ---- files ---------------------------------------------------------------------------------- */

static void unicode_path(char path[PATH_ROOM], const char *file)
{
    const char *folder = getenv("JAMBA_UNICODE");
    snprintf(path, PATH_ROOM, "%s/%s", folder ? folder : "/usr/share/unicode", file);
}

/* Calls `visit` with the fields of every line, cut at semicolons and comments. False when there is no file. */
static bool each_row(const char *file, void (*visit)(char **fields, int count))
{
    char path[PATH_ROOM], line[4096];
    FILE *stream;
    unicode_path(path, file);
    stream = fopen(path, "r");
    if (!stream) return false;
    while (fgets(line, sizeof line, stream)) {
        char *fields[20], *at = line;
        int count = 0;
        line[strcspn(line, "#\n")] = 0;
        while (at && count < 20) {
            char *end = strchr(at, ';');
            if (end) *end++ = 0;
            fields[count++] = at + strspn(at, " ");
            at = end;
        }
        if (count > 1) visit(fields, count);
    }
    fclose(stream);
    return true;
}

/* "0041" or "0041..005A". */
static void parse_range(const char *text, uint32_t *first, uint32_t *last)
{
    char *end;
    *first = *last = (uint32_t)strtoul(text, &end, 16);
    if (strncmp(end, "..", 2) == 0) *last = (uint32_t)strtoul(end + 2, NULL, 16);
}

static void visit_age(char **fields, int count)
{
    uint32_t c, last;
    int high = 0, low = 0;
    (void)count;
    sscanf(fields[1], "%d.%d", &high, &low);
    for (parse_range(fields[0], &c, &last); c <= last && c < CODES; c++) ages[c] = (uint16_t)(high * 100 + low);
}

static void visit_character(char **fields, int count)
{
    static uint32_t range_start;
    uint32_t c = (uint32_t)strtoul(fields[0], NULL, 16), first = c;
    record r;
    char *end;
    if (count < 6 || c >= CODES) return;
    if (strstr(fields[1], ", Last>")) first = range_start;
    range_start = c;
    memset(&r, 0, sizeof r);
    r.known = true;
    memcpy(r.category, fields[2], 2);
    r.combining = (uint8_t)strtoul(fields[3], NULL, 10);
    if (fields[5][0] && fields[5][0] != '<') {
        r.parts[0] = (uint32_t)strtoul(fields[5], &end, 16);
        r.parts[1] = (uint32_t)strtoul(end, NULL, 16);
    }
    for (; first <= c; first++) {
        records[first] = r;
        records[first].known = ages[first] <= HEADER_VERSION;
    }
}

static void visit_property(char **fields, int count)
{
    uint32_t c, last;
    (void)count;
    if (strncmp(fields[1], "White_Space", 11) != 0) return;
    for (parse_range(fields[0], &c, &last); c <= last && c < CODES; c++) records[c].space = true;
}

static void visit_derived(char **fields, int count)
{
    uint32_t c, last;
    (void)count;
    if (strncmp(fields[1], "Full_Composition_Exclusion", 26) != 0) return;
    for (parse_range(fields[0], &c, &last); c <= last && c < CODES; c++) records[c].excluded = true;
}

static bool read_files(void)
{
    records = (record *)calloc(CODES, sizeof *records);
    ages = (uint16_t *)calloc(CODES, sizeof *ages);
    return each_row("DerivedAge.txt", visit_age) && each_row("UnicodeData.txt", visit_character)
        && each_row("PropList.txt", visit_property) && each_row("DerivedNormalizationProps.txt", visit_derived);
}

/* ---- tables --------------------------------------------------------------------------------- */

static jmb_char_class expected_class(const record *r)
{
    if (r->space) return JMB_CHAR_SPACE;
    if (r->category[0] == 'L') return JMB_CHAR_LETTER;
    if (strcmp(r->category, "No") == 0) return JMB_CHAR_NUMBER;
    if (r->category[0] == 'N') return JMB_CHAR_DIGIT;
    return r->category[0] == 'M' || strcmp(r->category, "Pc") == 0 ? JMB_CHAR_MARK : JMB_CHAR_OTHER;
}

/* What the header knows of a character is what the files say; the 132 that belong to words by other
 * properties than their category are known by their number only. */
static void test_properties(void)
{
    uint32_t c, compared = 0, words = 0, unknown = 0;
    for (c = 0; c < CODES; c++) {
        const record *r = &records[c];
        const uint32_t *step = jmb_find_decomposed(c);
        if (!r->known) {
            unknown += jmb_class_of(c) != JMB_CHAR_OTHER;
            continue;
        }
        compared++;
        if (jmb_class_of(c) == JMB_CHAR_MARK && expected_class(r) == JMB_CHAR_OTHER) words++;
        else CHECK_THAT(jmb_class_of(c) == expected_class(r), "U+%04X has class %d", c, (int)jmb_class_of(c));
        CHECK_THAT(jmb_combining_class(c) == r->combining, "U+%04X combines in class %u", c, jmb_combining_class(c));
        CHECK_THAT((step ? step[0] : 0) == r->parts[0] && (step ? step[1] : 0) == r->parts[1], "U+%04X decomposes", c);
    }
    CHECK_THAT(words == 132, "%u words of no category for them", words);
    CHECK_THAT(compared > 280000, "only %u characters compared", compared);
    printf("unicode: %u characters compared; %u letters, marks and numbers are younger than the files\n", compared,
        unknown);
}

/* Every pair that composes does so, and no other one: they are counted. */
static void test_composition(void)
{
    uint32_t c, pairs = 0, younger = 0;
    size_t i;
    for (c = 0; c < CODES; c++) {
        const record *r = &records[c];
        if (!r->known || !r->parts[1]) continue;
        pairs += !r->excluded;
        CHECK_THAT(jmb_compose(r->parts[0], r->parts[1]) == (r->excluded ? 0 : c), "U+%04X composes", c);
    }
    for (i = 0; i < JMB_COUNT(jmb_composed); i++) younger += !records[jmb_decomposed_char(jmb_composed[i])].known;
    CHECK_THAT(pairs + younger == JMB_COUNT(jmb_composed), "%u pairs compose, the header has %zu", pairs + younger,
        JMB_COUNT(jmb_composed));
}

/* The formula for Hangul, in both directions. */
static void test_hangul(void)
{
    uint32_t c;
    for (c = 0xac00; c <= 0xd7a3; c++) {
        uint32_t parts[JMB_NFC_PARTS], index = c - 0xac00;
        size_t count = jmb_decompose(c, parts);
        CHECK(parts[0] == 0x1100 + index / 588 && parts[1] == 0x1161 + index % 588 / 28);
        CHECK(index % 28 == 0 ? count == 2 : count == 3 && parts[2] == 0x11a7 + index % 28);
        CHECK(jmb_compose(parts[0], parts[1]) == c - index % 28);
        if (count == 3) CHECK(jmb_compose(c - index % 28, parts[2]) == c);
    }
    CHECK(jmb_compose(0x1100, 0x11a8) == 0 && jmb_compose(0xac00, 0x11a7) == 0 && jmb_compose(0xac01, 0x11a8) == 0);
    CHECK(jmb_compose(0x1113, 0x1161) == 0 && jmb_compose(0x1100, 0x1176) == 0 && jmb_compose(0xac00, 0x11c3) == 0);
}

/* ---- the conformance test of NFC ------------------------------------------------------------- */

static uint32_t conformance_rows, conformance_younger;

/* Hexadecimal code points as units; how many. *known becomes false when one is younger than the header. */
static size_t parse_text(const char *text, jmb_unit *out, bool *known)
{
    size_t size = 0;
    char *end;
    for (; *text; text = end + strspn(end, " ")) {
        uint32_t c = (uint32_t)strtoul(text, &end, 16);
        if (end == text) break;
        if (c < CODES && !records[c].known) *known = false;
        size += jmb_nfc_put(c, out + size);
    }
    return size;
}

static void check_nfc(const jmb_unit *text, size_t size, const jmb_unit *want, size_t want_size, const char *name)
{
    jmb_encoder e;
    jamba_allocator allocator = jmb_allocator_or_default(NULL);
    const jmb_unit *got;
    memset(&e, 0, sizeof e);
    e.allocator = &allocator;
    got = jmb_nfc(&e, &e.normal[0], text, &size);
    CHECK_THAT(size == want_size && memcmp(got, want, size * sizeof *want) == 0, "NFC of %s", name);
    jmb_encoder_free(&e);
}

/* Source, NFC, NFD, NFKC, NFKD: the first three have the second as NFC, the last two the fourth. */
static void visit_conformance(char **fields, int count)
{
    jmb_unit text[5][512];
    size_t size[5];
    bool known = true;
    int i;
    if (count < 5) return;
    for (i = 0; i < 5; i++) size[i] = parse_text(fields[i], text[i], &known);
    conformance_younger += !known;
    if (!known) return;
    conformance_rows++;
    for (i = 0; i < 5; i++) check_nfc(text[i], size[i], text[i < 3 ? 1 : 3], size[i < 3 ? 1 : 3], fields[0]);
}

/* Debian packs the file. */
static bool unpack_conformance(const char *out)
{
    char path[PATH_ROOM], command[3 * PATH_ROOM];
    unicode_path(path, "NormalizationTest.txt.bz2");
    if (!file_exists(path)) return false;
    snprintf(command, sizeof command, "bzip2 -dc '%s' >'%s' 2>/dev/null", path, out);
    return system(command) == 0;
}

static void test_conformance(void)
{
    char plain[PATH_ROOM], unpacked[PATH_ROOM];
    if (!test_begin("NFC conformance test")) return;
    unicode_path(plain, "NormalizationTest.txt");
    temp_path(unpacked, "NormalizationTest.txt");
    if (!file_exists(plain)) {
        if (!unpack_conformance(unpacked)) {
            test_skip("no NormalizationTest.txt, or no bzip2");
            return;
        }
        setenv("JAMBA_UNICODE", strcpy(plain, unpacked), 1);
        *strrchr(plain, '/') = 0;
        setenv("JAMBA_UNICODE", plain, 1);
    }
    CHECK(each_row("NormalizationTest.txt", visit_conformance));
    CHECK_THAT(conformance_rows > 18000, "only %u rows", conformance_rows);
    printf("unicode: %u rows of NormalizationTest.txt, %u more are younger\n", conformance_rows, conformance_younger);
    test_end();
}

int main(int argc, char **argv)
{
    bool found;
    test_start(argc, argv);
    found = read_files();
    if (test_begin("Hangul")) {
        test_hangul();
        test_end();
    }
    if (test_begin("properties of all characters")) {
        if (found) {
            test_properties();
            test_end();
        } else test_skip("no Unicode files");
    }
    if (test_begin("composition of all pairs")) {
        if (found) {
            test_composition();
            test_end();
        } else test_skip("no Unicode files");
    }
    if (found) test_conformance();
    free(records);
    free(ages);
    return test_summary();
}
