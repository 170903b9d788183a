/* real_size.c - checkpoints of real size with random weights: converted, inspected, run
 *
 *     real_size BUILD NAME...       names as in shapes.h
 *
 * Writes the folder into BUILD/real (2 bytes a weight), converts it to q4 and q8, prints size and seconds, runs
 * inspect --verify and bench on the latter, and removes everything again. */
#include "shapes.h"

#include <sys/resource.h>
#include <time.h>

static uint64_t random_state = 0x9e3779b97f4a7c15u;

static uint64_t random_bits(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), size = strlen(end);
    return length >= size && strcmp(name + length - size, end) == 0;
}

/* Values are middle +- spread, such that activations keep their size from layer to layer. */
static void choose_range(const stored *t, float *middle, float *spread)
{
    const char *last = strrchr(t->shape, ',');
    bool vector = last == NULL;
    *middle = 0;
    *spread = vector ? 0.1f : (float)sqrt(3 / atof(last + 1));
    if (ends_with(t->name, "A_log")) *middle = *spread = 1.4f;           /* A from -1 to -16 */
    if (ends_with(t->name, "dt_proj.bias") || ends_with(t->name, "dt_bias")) *middle = -4; /* dt near 0.02 */
    if (ends_with(t->name, ".D") || (vector && strstr(t->name, "norm"))) *middle = 1;
}

static float random_value(float middle, float spread)
{
    return middle + spread * ((float)(int16_t)(random_bits() >> 48) / 32768.0f);
}

/* In little-endian order; bf16 by cutting off. */
static void put_value(uint8_t *p, float value, size_t bytes)
{
    uint32_t bits;
    size_t i;
    memcpy(&bits, &value, 4);
    for (i = 0; i < bytes; i++) p[i] = (uint8_t)(bits >> (8 * (4 - bytes + i)));
}

static void fill_tensor(FILE *file, const stored *t)
{
    enum { PIECE = 1 << 16 };
    static uint8_t piece[PIECE];
    size_t size = strcmp(t->type, "F32") == 0 ? 4 : 2, i;
    uint64_t left = t->bytes;
    float middle, spread;
    choose_range(t, &middle, &spread);
    while (left > 0) {
        size_t part = left < PIECE ? (size_t)left : PIECE;
        for (i = 0; i < part; i += size) put_value(piece + i, random_value(middle, spread), size);
        test_require(fwrite(piece, 1, part, file) == part, "cannot write", t->name);
        left -= part;
    }
}

/* Writes numbers where write_shape() left holes. */
static void fill_shard(const checkpoint *c, int shard)
{
    char path[400], name[64];
    uint8_t length[8];
    uint64_t header = 0;
    FILE *file;
    size_t i;
    shard_name(c, shard, name);
    file = fopen(in_folder(path, name), "r+b");
    test_require(file && fread(length, 1, 8, file) == 8, "cannot open", path);
    for (i = 8; i-- > 0;) header = header << 8 | length[i];
    test_require(fseeko(file, (off_t)(8 + header), SEEK_SET) == 0, "cannot seek", path);
    for (i = 0; i < c->count; i++)
        if (c->items[i].shard == shard) fill_tensor(file, &c->items[i]);
    test_require(fclose(file) == 0, "cannot write", path);
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Runs BUILD/TOOL with arguments on the model or the folder; returns the seconds. */
static double run(const char *tool, const char *before, const char *subject, const char *after)
{
    char command[1000];
    double start = seconds();
    snprintf(command, sizeof command, "'%s/%s' %s '%s' %s", test_state.build, tool, before, subject, after);
    fflush(stdout);
    CHECK_THAT(system(command) == 0, "fails: %s", command);
    return seconds() - start;
}

/* Of the programs run so far. */
static double processor_seconds(void)
{
    struct rusage used;
    getrusage(RUSAGE_CHILDREN, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec)
        + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static bool convert_to(const checkpoint *c, const char *type, const char *model)
{
    char after[500];
    struct stat info;
    uint64_t bytes = 0;
    double taken, before = processor_seconds(), used;
    size_t i;
    snprintf(after, sizeof after, "'%s' --type %s --force 2>/dev/null", model, type);
    taken = run("convert", "", folder, after);
    used = processor_seconds() - before;
    if (!CHECK(stat(model, &info) == 0)) return false;
    for (i = 0; i < c->count; i++) bytes += c->items[i].bytes;
    printf("  convert --type %s: %.1f s for %.2f billion weights, %.0f MB of them a processor second, the file has"
           " %.2f GB\n",
        type, taken, (double)c->numbers / 1e9, (double)bytes / used * 1e-6, (double)info.st_size / 1e9);
    return true;
}

static void run_model(const checkpoint *c)
{
    char model[400];
    double taken;
    in_folder(model, "model.jamba");
    if (!convert_to(c, "q4", model) || !convert_to(c, "q8", model)) return;
    taken = run("inspect", "", model, "--verify | tail -n 1");
    printf("  inspect --verify: %.0f s\n", taken);
    run("bench", "", model, "-p 32 -n 8 -r 1");
    remove(model);
}

static void test_size(const shape *s)
{
    checkpoint c;
    double start = seconds();
    int shard;
    if (!test_begin("%s", s->name)) return;
    test_require(write_shape(&c, s), "cannot write", folder);
    for (shard = 1; shard <= c.shards; shard++) fill_shard(&c, shard);
    printf("%s: written in %.0f s\n", s->name, seconds() - start);
    run_model(&c);
    remove_checkpoint(&c);
    test_end();
}

int main(int argc, char **argv)
{
    int i, k;
    if (argc < 3) {
        fprintf(stderr, "usage: real_size BUILD NAME...\n");
        return 2;
    }
    test_start(1, argv);
    snprintf(test_state.build, sizeof test_state.build, "%s", argv[1]);
    snprintf(folder, sizeof folder, "%s/real", test_state.build);
    mkdir(folder, 0777);
    for (k = 2; k < argc; k++)
        for (i = 0; i < SHAPES; i++)
            if (strcmp(shapes[i].name, argv[k]) == 0) test_size(&shapes[i]);
    rmdir(folder);
    return test_summary();
}
